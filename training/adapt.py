"""Adapt a generator to a speaker on minutes of video, without a prepared dataset:

    python -m training.adapt speaker.mp4 --output speaker.safetensors

The videos should show one speaker. The result is a generator for `inference.py --checkpoint`.
`inference.py --adapt` adapts to the video that it dubs, and keeps the result in a cache.
"""

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

from configs.schema import dump_config, load_config
from data_processing.face.detectors import BACKENDS
from data_processing.media.video_reader import check_readable
from models.checkpoint import load_model
from training.adaptation import CONFIG, Progress, adapt, describe_origin, file_sha256, resolved_minutes
from utils.bundled import BUNDLED_GENERATOR
from utils.command_line import run_command
from utils.device import choose_device
from utils.errors import CheckpointError, OutputError, error_reason
from utils.files import cut_name
from utils.limits import DEFAULT_LIMITS, Limits
from utils.weights import cache_folder

VERSION = 2  # of the procedure of adaptation.py; part of the names in the cache
logger = logging.getLogger(__name__)


def adapted_generator(
    video: str | Path,
    path: str | Path | None = None,
    *,
    checkpoint: str | Path = BUNDLED_GENERATOR,
    minutes: float | None = None,
    device: str = "auto",
    landmarks: str = "dlib",
    face: str = "largest",
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress = lambda stage, done, expected: None,
) -> Path:
    """The file of the generator adapted to a video. It is made if it does not exist.

    Args:
        video: source video.
        path: the file; None for one in the cache folder (utils/weights.py), whose name depends on the content of
            `video` and `checkpoint` and on the options.
        checkpoint, minutes, device, landmarks, face, limits, progress: as for `adapt`.

    Raises:
        UserError: as `adapt` raises.
        CheckpointError: `path` exists, but is not `checkpoint` adapted to `video`.
    """
    video, checkpoint = Path(video), Path(checkpoint)
    check_readable(video)
    origin = describe_origin([video], checkpoint)
    minutes = resolved_minutes(minutes, choose_device(device))
    if path is None:
        photo = Path(face)
        selected = file_sha256(photo) if photo.is_file() else face
        openface_csv = video.with_suffix(".csv")
        detected = file_sha256(openface_csv) if landmarks == "openface" and openface_csv.is_file() else landmarks
        sources = [file["sha256"] for file in (origin["checkpoint"], *origin["videos"])]
        key = repr((VERSION, sources, minutes, detected, selected, dump_config(load_config(CONFIG))))
        digest = hashlib.sha256(key.encode()).hexdigest()
        path = _cache() / f"{cut_name(video.stem, 60)}-{digest[:16]}.safetensors"
    path = Path(path)
    if path.exists():
        _check_origin(path, origin)
        logger.info("%s: adapted before", path)
        return path
    options = {"minutes": minutes, "device": device, "landmarks": landmarks, "face": face, "limits": limits}
    result = adapt([video], path, checkpoint=checkpoint, origin=origin, progress=progress, **options)
    logger.info("%s", result.summary())
    return path


def _cache() -> Path:
    folder = cache_folder() / "adapted"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(folder, f"cannot create the folder: {error_reason(error)}") from None
    return folder


def _check_origin(path: Path, origin: dict[str, Any]) -> None:
    """Raise CheckpointError unless `path` was adapted from these files, by their content."""
    notes = load_model(path).info.get("adapted")
    if notes is None:
        raise CheckpointError(path, "is a generator that was not adapted to a video; choose another file")
    if notes["checkpoint"]["sha256"] != origin["checkpoint"]["sha256"]:
        reason = f"was adapted from another checkpoint ({notes['checkpoint']['name']}); choose another file"
        raise CheckpointError(path, reason)
    if [video["sha256"] for video in notes["videos"]] != [video["sha256"] for video in origin["videos"]]:
        names = ", ".join(video["name"] for video in notes["videos"])
        raise CheckpointError(path, f"was adapted to another video ({names}); choose another file")


class AdaptationBar:
    """A progress bar for each stage of `adapt`: use it as a context manager, and as the argument `progress`."""

    def __init__(self) -> None:
        self._stage, self._bar = "", None

    def __call__(self, stage: str, done: int, expected: int) -> None:
        if stage != self._stage:
            self.close()
            self._stage, self._bar = stage, tqdm(desc=stage, delay=1)
        self._bar.total = expected
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(args: argparse.Namespace) -> None:
    with AdaptationBar() as bar:
        result = adapt(
            args.videos,
            args.output,
            checkpoint=args.checkpoint,
            minutes=args.minutes,
            device=args.device,
            landmarks=args.landmarks,
            face=args.face,
            progress=bar,
        )
    print(result.summary())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.adapt",
        description="Adapt a generator to a speaker on minutes of video. The trained weights are then mixed with "
        "the old ones: of the mixtures that keep 95 % of the sync confidence with speech of another voice, the one "
        "that draws held-out frames best is the result. Up to a minute of each video is used. All face crops are "
        "held in memory, 37 MB a minute for the bundled generator.",
    )
    add = parser.add_argument
    add("videos", nargs="+", type=Path, metavar="VIDEO", help="video of the speaker")
    add("--output", type=Path, required=True, metavar="FILE", help="adapted generator (.safetensors)")
    add("--minutes", type=float, help="time for everything (default: 5 on a CPU, 1 on a GPU)")
    add("--checkpoint", type=Path, default=BUNDLED_GENERATOR, help="generator to adapt (default: the bundled one)")
    add("--landmarks", choices=BACKENDS, default="dlib", help="landmark detector (default dlib)")
    add("--face", default="largest", help="face to adapt to, as for inference.py (default largest)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    run_command(parser, run)


if __name__ == "__main__":
    main()
