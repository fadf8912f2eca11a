"""Delay of `DubbingPipeline.stream` against quality: python -m tests.tools.delay_table VIDEO …

Every video is dubbed with its own audio, as a stream with several look-aheads, and as a file is, then with
reference frames from its first two seconds. The mouth is compared with that of the source from 2.5 seconds on. The
delay is counted, whatever the speed of the machine: how much later than an output frame the last frame or the last
sample was recorded that had been taken when the frame was returned.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data_processing.face.crop import FaceCrop
from data_processing.face.radius import crop_radii
from data_processing.face.tracking import Landmarks, find_landmarks, track_chunks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio
from data_processing.media.video_reader import FPS, read_frames
from dubbing.audio_stream import AudioStream
from dubbing.compositor import Compositor
from dubbing.face_track import track_face
from dubbing.frame_sources import LiveFrameSource
from dubbing.pipeline import DubbingPipeline
from dubbing.speaker import LIVE_CHUNK, Speaker
from evaluation.artifacts import jitter
from evaluation.metrics import image_metrics
from models.crop_layout import mouth_box
from utils.command_line import run_command

BLOCK = SAMPLE_RATE // 100  # samples of audio that arrive at once
CHOSEN_BEFORE_S, JUDGED_FROM_S = 2.0, 2.5
MOUTH_SIZE = 256
FILE = "file"


def stream_with_delays(
    stream: Callable[[Iterator[np.ndarray], Iterator[np.ndarray]], Iterable[np.ndarray]],
    frames: list[np.ndarray],
    waveform: np.ndarray,
    fps: float = FPS,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The output frames of a stream, and the delay of each in seconds.

    Args:
        stream: takes frames and audio blocks.
        frames: (H, W, 3) uint8 each.
        waveform: (N,) float, 16 kHz.
        fps: frame rate.
    """
    num_frames = num_samples = 0

    def camera() -> Iterator[np.ndarray]:
        nonlocal num_frames
        for frame in frames:
            num_frames += 1
            yield frame

    def microphone() -> Iterator[np.ndarray]:
        nonlocal num_samples
        for start in range(0, len(waveform), BLOCK):
            block = waveform[start : start + BLOCK]
            num_samples += len(block)
            yield block

    outputs, delays = [], []
    for index, output in enumerate(stream(camera(), microphone())):
        outputs.append(output)
        delays.append(max((num_frames - 1) / fps, num_samples / SAMPLE_RATE) - index / fps)
    return outputs, np.array(delays)


def dub_like_a_file(pipeline: DubbingPipeline, frames: list[np.ndarray], waveform: np.ndarray) -> list[np.ndarray]:
    """The output frames of a dub, without a file."""
    source = LiveFrameSource(iter(frames), FPS)
    audio = AudioStream(iter([waveform]), pipeline.generator.audio_features)
    options = {"look_ahead_s": len(frames) / FPS, "chosen_before_s": CHOSEN_BEFORE_S}
    speaker = Speaker(pipeline.generator, source, audio, track_face(source), **options)
    return [pair.dubbed.rgb() for pair in Compositor(source, [speaker]).frames()]


def live_points(tracked: list[tuple[np.ndarray, bool]], look_ahead_s: float) -> np.ndarray:
    """Landmarks (T, 68, 2) of a stream."""
    chunks = track_chunks(iter(tracked), FPS, LIVE_CHUNK, ahead=round(look_ahead_s * FPS))
    return np.stack([chunk.points(frame) for chunk in chunks for frame in range(chunk.start, chunk.stop)])


def mouths(frames: list[np.ndarray], landmarks: Landmarks) -> torch.Tensor:
    """(T, 3, 256, 256) in [0, 1]: the mouth boxes of every second frame from JUDGED_FROM_S on."""
    radii = crop_radii(landmarks.points[: len(frames)])
    rows, columns = mouth_box(MOUTH_SIZE)
    found = []
    for index in range(round(JUDGED_FROM_S * FPS), len(frames), 2):
        crop = FaceCrop.from_landmarks(landmarks.points[index], radii[index], MOUTH_SIZE)
        found.append(crop.extract(frames[index])[rows, columns])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def run(args: argparse.Namespace) -> None:
    pipeline = DubbingPipeline(device="cpu")
    metrics = image_metrics(torch.device("cpu"))
    results: dict[float | str, list[dict[str, float]]] = {one: [] for one in (*args.look_ahead, FILE)}
    for path in tqdm(args.videos, unit="video"):
        frames = list(read_frames(path, stop=args.frames))
        waveform = load_audio(path)[: len(frames) * SAMPLE_RATE // FPS]
        landmarks = find_landmarks(path, stop=args.frames)
        target = mouths(frames, landmarks)
        source = LiveFrameSource(iter(frames), FPS)
        tracked = [(one.points, one.cut) for one in track_face(source, live=True)]
        for look_ahead_s, rows in results.items():
            started = time.process_time()
            if look_ahead_s == FILE:
                outputs, delays, points = dub_like_a_file(pipeline, frames, waveform), [np.nan], landmarks.points
            else:

                def stream(
                    camera: Iterator[np.ndarray], microphone: Iterator[np.ndarray], look_ahead_s=look_ahead_s
                ) -> Iterable[np.ndarray]:
                    return pipeline.stream(camera, microphone, FPS, look_ahead_s)

                outputs, delays = stream_with_delays(stream, frames, waveform)
                points = live_points(tracked, look_ahead_s)
            ms = 1000 * (time.process_time() - started) / len(outputs)
            output = mouths(outputs, landmarks)
            away = np.linalg.norm(points - landmarks.points[: len(points)], axis=2)
            width = np.nanmean(np.ptp(landmarks.points[:, :, 0], axis=1))
            row = {"delay, s": float(np.max(delays)), "ms per frame": ms}
            row |= {name: float(np.mean(metric(output, target[: len(output)]))) for name, metric in metrics.items()}
            row |= {"landmarks off, %": 100 * np.nanmean(away) / width, "jitter, %": 100 * jitter([points]) / width}
            rows.append(row)
            tqdm.write(f"{path.name} {look_ahead_s}: {row}")
    columns = list(results[FILE][0])
    print(f"| look_ahead_s | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name, rows in results.items():
        means = (np.mean([row[column] for row in rows]) for column in columns)
        print(f"| {name} | {' | '.join('–' if np.isnan(mean) else f'{mean:.3g}' for mean in means)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path, help="with one face from the first frame on, and speech")
    parser.add_argument("--frames", type=int, default=150, help="of each video, at 25 fps (default: %(default)s)")
    look_aheads = [0.0, 0.16, 0.3, 0.6, 1.0]
    parser.add_argument(
        "--look-ahead", type=float, nargs="+", default=look_aheads, help="seconds (default: %(default)s)"
    )
    run_command(parser, run)


if __name__ == "__main__":
    main()
