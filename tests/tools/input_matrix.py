"""Results for all kinds of videos: python -m tests.tools.input_matrix --output DIR

Makes one video of each kind in tests/support/media.py (a talking portrait of one or two seconds), photos, and one
video of each situation of the face, dubs each with two seconds of audio by the bundled generator, and prints the
results as a Markdown table.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from data_processing.media.video_reader import probe
from tests.support.heif import tiled_photo
from tests.support.media import FACES, KINDS, portraits, speech_like_wav
from utils.command_line import run_command

ROOT = Path(__file__).resolve().parents[2]
AUDIO_S = 2.0
COLUMNS = ["video", "size", "fps", "frames", "audio", "notes or error"]


def jpeg(path: Path) -> Path:
    cv2.imwrite(str(path), next(portraits(np.zeros(1)))[..., ::-1])
    return path


def photo_of_tiles(path: Path) -> Path:
    """As of a phone held upright: stored on its side."""
    return tiled_photo(path, np.rot90(next(portraits(np.zeros(1)))), transforms=[("irot", 3)])


PHOTOS = {"photo.jpg": jpeg, "photo_of_tiles.heic": photo_of_tiles}


def dub(video: Path, audio: Path, output: Path) -> tuple[bool, list[str]]:
    """Run inference.py: whether it succeeded, and its notes and warnings, or its error."""
    command = [sys.executable, str(ROOT / "inference.py"), "--video", video, "--audio", audio, "--output", output]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    lines = re.split(r"[\r\n]+", result.stderr.strip())
    if result.returncode:
        return False, [next((line for line in lines if line.startswith("error: ")), f"traceback: {lines[-1]}")]
    messages = [line for line in lines if line.startswith(("note: ", "warning: "))]
    messages += [note for note in probe(video).notes if note not in result.stderr]
    return True, messages + unchanged_frames(result.stdout)


def unchanged_frames(summary: str) -> list[str]:
    """["K frames left unchanged"] from the summary that inference.py prints; [] if all frames are dubbed."""
    return re.findall(r"\d+ frames left unchanged", summary)


def describe(path: Path) -> list[str]:
    """Size, frame rate, number of frames and length of the audio track of a video, by decoding it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        size = f"{stream.width}×{stream.height}"
        if stream.sample_aspect_ratio not in (None, 1):
            size += f" (pixels {stream.sample_aspect_ratio})"
        fps = f"{float(stream.average_rate):.5g}"
        num_frames = sum(1 for _ in container.decode(stream))
    with av.open(str(path)) as container:
        audio_s = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    return [size, fps, str(num_frames), f"{audio_s:.2f} s"]


def run(args: argparse.Namespace) -> None:
    """Make, dub and describe all videos."""
    results = args.output / "dubbed"
    results.mkdir(parents=True, exist_ok=True)
    speech = speech_like_wav(args.output / "speech.wav", AUDIO_S, seed=1)
    rows = []
    for name, make in tqdm({**KINDS, **PHOTOS, **FACES}.items(), unit="video"):
        video, output = make(args.output / name), results / f"{name}.mp4"
        output.unlink(missing_ok=True)
        audio = video if name == "two_audio_tracks.mkv" else speech  # its own audio shows which track is used
        succeeded, messages = dub(video, audio, output)
        cells = describe(output) if succeeded else ["–"] * 4
        rows.append([name, *cells, "; ".join(messages).replace(str(video), name).replace("|", r"\|")])
    for row in [COLUMNS, ["---"] * len(COLUMNS), *rows]:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("input_matrix"), help="folder for all files")
    run_command(parser, run)


if __name__ == "__main__":
    main()
