"""What becomes of every kind of video: python -m tests.tools.input_matrix --output DIR

Makes one of each kind of tests/media.py (a talking portrait of a second or two) and of each situation of the
face, dubs each with two seconds of sound by the bundled generator, and prints a Markdown table of the results.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import av
from tqdm import tqdm

from data_processing.media.video_reader import probe
from tests.support.media import FACES, KINDS, speech_like_wav
from utils.command_line import run_command

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 2.0  # of sound
COLUMNS = ["video", "size", "fps", "frames", "sound", "notes or error"]


def dub(video: Path, audio: Path, output: Path) -> tuple[bool, list[str]]:
    """Run inference.py; whether it ended well, and what it had to say."""
    command = [sys.executable, str(ROOT / "inference.py"), "--video", video, "--audio", audio, "--output", output]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    lines = re.split(r"[\r\n]+", done.stderr.strip())
    if done.returncode:
        return False, [next((line for line in lines if line.startswith("error: ")), f"traceback: {lines[-1]}")]
    said = [line for line in lines if line.startswith(("note: ", "warning: "))]
    said += [note for note in probe(video).notes if note not in done.stderr]
    return True, said + re.findall(r"\d+ frames without a face[^;\n]*", done.stdout)


def describe(path: Path) -> list[str]:
    """Size, frame rate, number of frames and length of the sound of a video, by decoding it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        size = f"{stream.width}×{stream.height}"
        if stream.sample_aspect_ratio not in (None, 1):
            size += f" (pixels {stream.sample_aspect_ratio})"
        rate = f"{float(stream.average_rate):.5g}"
        frames = sum(1 for _ in container.decode(stream))
    with av.open(str(path)) as container:
        sound = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    return [size, rate, str(frames), f"{sound:.2f} s"]


def run(args: argparse.Namespace) -> None:
    results = args.output / "dubbed"
    results.mkdir(parents=True, exist_ok=True)
    speech = speech_like_wav(args.output / "speech.wav", SECONDS, seed=1)
    rows = []
    for name, make in tqdm({**KINDS, **FACES}.items(), unit="video"):
        video, output = make(args.output / name), results / f"{name}.mp4"
        output.unlink(missing_ok=True)
        audio = video if name == "two_sounds.mkv" else speech  # only there does it matter what else is heard
        well, said = dub(video, audio, output)
        cells = describe(output) if well else ["–"] * 4
        rows.append([name, *cells, "; ".join(said).replace(str(video), name).replace("|", r"\|")])
    for row in [COLUMNS, ["---"] * len(COLUMNS), *rows]:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("input_matrix"), help="folder to keep all files in")
    run_command(parser, run)


if __name__ == "__main__":
    main()
