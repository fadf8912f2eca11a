"""Dub a video: redraw the mouth so that the lips follow another recording.

    python inference.py --video speaker.mp4 --audio speech.wav --output dubbed.mp4

Without arguments the bundled example is dubbed. A video shorter than the sound is played forward and backward
until the sound ends; frames without a face pass through unchanged.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data_processing import audio_features
from data_processing.audio import load_audio
from data_processing.errors import UserError, command_line
from data_processing.geometry import FaceCrop, crop_radius
from data_processing.landmarks import BACKENDS, Landmarks, find_landmarks, mouth_opening
from data_processing.video import (
    FPS,
    VideoWriter,
    check_readable,
    check_writable,
    probe,
    read_frames,
    read_frames_backward,
)
from models.checkpoint import LoadedModel, load_model
from models.device import choose_device, choose_precision
from models.dinet import ReferenceFeatures

ROOT = Path(__file__).parent
EXAMPLE_VIDEO, EXAMPLE_AUDIO = ROOT / "examples/portrait.mp4", ROOT / "examples/speech.wav"
BUNDLED_CHECKPOINT = ROOT / "checkpoints/dinet_64.safetensors"
BATCH_SIZE = 8
MIN_SEARCHED = 60 * FPS  # frames looked at for references, if the sound is shorter than that
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Shot(NamedTuple):
    """What is computed once for all frames of a shot."""

    radius_px: float
    references: ReferenceFeatures


class Dubbed(NamedTuple):
    """How many frames a dubbed video has, how many of them are redrawn, and how long the drawing took."""

    frames: int
    redrawn: int
    drawing_s: float


class Dubber:
    """A generator with the means to redraw frames."""

    def __init__(self, loaded: LoadedModel, device: torch.device, precision: str) -> None:
        self.model = loaded.model.to(device, memory_format=torch.channels_last)
        self.mouth_size = loaded.mouth_size
        self.audio_features = loaded.audio_features
        self.device = device
        self.dtype = DTYPES[precision]

    def _autocast(self):
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def _to_tensor(self, crops: list[np.ndarray]) -> torch.Tensor:
        """(13S/8, 5S/4, 3) uint8 crops -> (B, 3, H, W) in [0, 1]."""
        images = torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2)
        return (images.float() / 255).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode_references(self, crops: list[np.ndarray]) -> ReferenceFeatures:
        """Encode the N reference crops of a shot, (13S/8, 5S/4, 3) uint8 RGB each."""
        stacked = self._to_tensor(crops).flatten(0, 1)[None]
        with self._autocast():
            return self.model.encode_references(stacked)

    @torch.inference_mode()
    def redraw(self, crops: list[np.ndarray], references: ReferenceFeatures, windows: np.ndarray) -> np.ndarray:
        """Face crops as the audio windows (B, D, 5) would have them: (B, 13S/8, 5S/4, 3) uint8 RGB."""
        masked = self.model.mask(self._to_tensor(crops))
        with self._autocast():
            output = self.model.generate(masked, references, torch.from_numpy(windows).to(self.device))
        images = (output.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return images.permute(0, 2, 3, 1).cpu().numpy()


def choose_references(landmarks: Landmarks, start: int, stop: int, count: int) -> list[int]:
    """Frames of a shot spread over mouth shapes and head poses: farthest-point sampling, the same every time.

    The first is the frame nearest the middle of all; each further one is the frame least like those chosen.
    Frames with unusual landmarks (the outer two per cent of any measure) are left to the side.
    """
    frames = start + np.flatnonzero(landmarks.found[start:stop])
    points = landmarks.points[frames]
    eyes = points[:, 36:48].mean(axis=1)
    face = np.linalg.norm(points[:, 8] - eyes, axis=1)
    measures = np.stack(
        [
            2 * mouth_opening(points),  # mouth shapes count twice
            2 * np.linalg.norm(points[:, 54] - points[:, 48], axis=1) / face,
            (points[:, 30, 0] - points[:, [0, 16], 0].mean(axis=1)) / face,  # yaw
            (points[:, 30, 1] - eyes[:, 1]) / face,  # pitch
            (points[:, 45, 1] - points[:, 36, 1]) / face,  # roll
        ],
        axis=1,
    )
    low, high = np.percentile(measures, [2, 98], axis=0)
    usual = ((measures >= low) & (measures <= high)).all(axis=1)
    if usual.sum() >= count:
        frames, measures = frames[usual], measures[usual]
    chosen = [int(np.argmin(np.linalg.norm(measures - np.median(measures, axis=0), axis=1)))]
    while len(chosen) < count:
        distance = np.linalg.norm(measures[:, None] - measures[chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    return [int(frames[index]) for index in chosen]


def prepare_shots(dubber: Dubber, video: Path, landmarks: Landmarks, references: list[int] | None) -> list[Shot]:
    """Radius and encoded references of every shot; `references` that are given serve all shots."""
    radii = [crop_radius(landmarks.points[start:stop]) for start, stop in landmarks.shots]
    shot_of = shot_numbers(landmarks)
    shots = []
    for number, (start, stop) in enumerate(landmarks.shots):
        crops = []
        for index in references or choose_references(landmarks, start, stop, dubber.model.config.num_references):
            crop = FaceCrop.from_landmarks(landmarks.points[index], radii[shot_of[index]], dubber.mouth_size)
            crops.append(crop.extract(next(read_frames(video, index, index + 1))))
        shots.append(Shot(radii[number], dubber.encode_references(crops)))
    return shots


def shot_numbers(landmarks: Landmarks) -> np.ndarray:
    """(T,) the number of the shot each frame lies in, -1 for frames without a face."""
    numbers = np.full(len(landmarks.points), -1)
    for number, (start, stop) in enumerate(landmarks.shots):
        numbers[start:stop] = number
    return numbers


def back_and_forth(video: Path, num_frames: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index, frame) of a video played forward, backward, forward, … without end."""
    while True:
        yield from enumerate(read_frames(video, 0, num_frames))
        yield from zip(reversed(range(num_frames)), read_frames_backward(video, num_frames), strict=True)


def redraw_frames(
    dubber: Dubber, video: Path, landmarks: Landmarks, shots: list[Shot], features: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """(source frame, dubbed frame, whether it was redrawn) for every row of `features` (T, D)."""
    numbers = shot_numbers(landmarks)
    timeline = enumerate(islice(back_and_forth(video, len(numbers)), len(features)))
    for number, run in groupby(timeline, key=lambda moment: int(numbers[moment[1][0]])):
        while batch := list(islice(run, BATCH_SIZE)):
            times = [time_index for time_index, _ in batch]
            frames = [frame for _, (_, frame) in batch]
            if number < 0:
                yield from ((frame, frame, False) for frame in frames)
                continue
            shot = shots[number]
            points = [landmarks.points[index] for _, (index, _) in batch]
            crops = [FaceCrop.from_landmarks(p, shot.radius_px, dubber.mouth_size) for p in points]
            extracted = [crop.extract(frame) for crop, frame in zip(crops, frames, strict=True)]
            windows = audio_features.windows(features, np.array(times))
            drawn = dubber.redraw(extracted, shot.references, windows)
            for frame, crop, image in zip(frames, crops, drawn, strict=True):
                yield frame, crop.paste(frame, image), True


def parse_references(text: str | None, count: int) -> list[int] | None:
    """`--references 3,40,55,80,121` as frame numbers at 25 fps; None for the automatic choice."""
    if text is None:
        return None
    try:
        indices = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--references: expected {count} frame numbers like 3,40,55, found {text!r}") from None
    if len(indices) != count:
        raise UserError(f"--references: expected {count} frame numbers, found {len(indices)}")
    return indices


def check_references(indices: list[int] | None, landmarks: Landmarks) -> None:
    """Raises UserError if one of the frames is not there or shows no face."""
    for index in indices or ():
        if not 0 <= index < len(landmarks.points) or not landmarks.usable[index]:
            last = len(landmarks.points) - 1
            raise UserError(f"--references: expected frames 0 to {last} with a face, found {index}")


def dub(args: argparse.Namespace) -> None:
    """Check the arguments, dub, and say what was done."""
    began = time.monotonic()
    check_readable(args.video, "--video")
    check_readable(args.audio, "--audio")
    check_readable(args.checkpoint, "--checkpoint")
    check_writable(args.output, "--output")
    if args.output.exists() and any(args.output.samefile(given) for given in (args.video, args.audio)):
        raise UserError(f"--output: expected another file than the input {args.output}")
    probe(args.video, "--video")
    device = choose_device(args.device)
    loaded = load_hearing(args.checkpoint, device)
    wanted = args.audio_features or loaded.audio_features
    if wanted != loaded.audio_features:
        raise UserError(
            f"--audio-features: {args.checkpoint} was trained with {loaded.audio_features}, found {wanted}"
        )
    dubber = Dubber(loaded, device, choose_precision(args.precision, device))
    options = {"backend": args.landmarks, "references": args.references}
    options |= {"side_by_side": args.side_by_side, "crf": args.crf}
    done = dub_video(dubber, args.video, args.audio, args.output, **options)
    without = done.frames - done.redrawn
    print(
        f"{args.output}: {done.frames} frames ({done.frames / FPS:.1f} s at {FPS} fps) in "
        f"{time.monotonic() - began:.1f} s, {done.frames / done.drawing_s:.1f} frames/s dubbing"
        + (f"; {without} frames without a face left unchanged" if without else "")
    )


def load_hearing(checkpoint: Path, device: torch.device) -> LoadedModel:
    """A generator that is driven by a sound.

    Raises:
        UserError: the file is none, or is driven by lips.
    """
    loaded = load_model(checkpoint, device)
    if loaded.audio_features not in audio_features.FEATURE_DIMS:
        raise UserError(
            f"--checkpoint: {checkpoint} is driven by {loaded.audio_features}, not by a sound; train on from "
            "it with audio_warmup_steps (README, Train)"
        )
    return loaded


def dub_video(
    dubber: Dubber,
    video: Path,
    audio: Path,
    output: Path,
    *,
    backend: str = "dlib",
    references: str | None = None,
    side_by_side: bool = False,
    crf: int = 16,
) -> Dubbed:
    """Dub one video; `backend`, `references`, `side_by_side` and `crf` as on the command line.

    Raises:
        UserError: a file cannot be read or written, the video shows no face, or --references do not fit it.
    """
    info = probe(video, "--video")
    indices = parse_references(references, dubber.model.config.num_references)
    waveform = load_audio(audio, "--audio")
    features = audio_features.extract(waveform, dubber.audio_features)
    expected = round(info.duration_s * FPS) or len(features)
    needed = max(len(features), MIN_SEARCHED)

    def progress(frames: Iterator) -> Iterator:
        return iter(tqdm(frames, total=min(expected, needed), unit="frame", desc="finding the face"))

    landmarks = find_landmarks(video, backend, progress, stop=needed)
    if len(landmarks.points) < 0.9 * min(expected, needed):
        found, wanted = len(landmarks.points) / FPS, min(expected, needed) / FPS
        print(
            f"warning: --video: {video} says it has {wanted:.1f} s, {found:.1f} s could be read",
            file=sys.stderr,
        )
    check_references(indices, landmarks)
    shots = prepare_shots(dubber, video, landmarks, indices)

    width = info.width * (2 if side_by_side else 1)
    redrawn, generating = 0, time.monotonic()
    with VideoWriter(
        output, width, info.height, crf=crf, audio_path=audio, pixel_aspect=info.pixel_aspect
    ) as writer:
        frames = redraw_frames(dubber, video, landmarks, shots, features)
        for source, dubbed, changed in tqdm(frames, total=len(features), unit="frame", desc="dubbing"):
            writer.write(np.concatenate([source, dubbed], axis=1) if side_by_side else dubbed)
            redrawn += changed
    return Dubbed(len(features), redrawn, time.monotonic() - generating)


@command_line
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--video", type=Path, default=EXAMPLE_VIDEO, help="video of a speaking face (default: the bundled example)")
    add("--audio", type=Path, default=EXAMPLE_AUDIO, help="sound or video file to speak (default: the example)")
    add("--output", type=Path, default=Path("dubbed.mp4"), help=".mp4, .mov or .mkv to write (default dubbed.mp4)")
    add("--checkpoint", type=Path, default=BUNDLED_CHECKPOINT, help="generator (default: the bundled one)")
    add("--landmarks", choices=BACKENDS, default="dlib", help="landmark detector (default dlib)")
    add("--references", metavar="N,N,…", help="frames to take the mouth's looks from (default: chosen)")
    add("--audio-features", choices=list(audio_features.FEATURE_DIMS), help="default: what the checkpoint needs")
    add("--side-by-side", action="store_true", help="write the source and the dubbed video beside each other")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    add("--precision", choices=["auto", *DTYPES], default="auto", help="default: the fastest the device has")
    add("--crf", type=int, default=16, help="H.264 quality, 0 lossless to 51 (default 16, visually lossless)")
    args = parser.parse_args()
    if not 0 <= args.crf <= 51:
        raise UserError(f"--crf: expected 0 to 51, found {args.crf}")
    dub(args)


if __name__ == "__main__":
    main()
