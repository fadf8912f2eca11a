"""Dubbing the videos of a folder, to be scored."""

import wave
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import probe
from evaluation.folders import find_videos
from utils.errors import MediaError, OutputError, ParameterError, UserError
from utils.files import output_errors


def dub_folder(
    dub: Callable[[Path, Path, Path], Any], videos: Path, output: Path, driven_by: str = "own"
) -> dict[str, str]:
    """Dub all videos of a folder to `output`/NAME.mp4.

    Args:
        dub: dubs one video, from source video, driving audio and output path.
        output: created if missing; mp4 files in it are deleted.
        driven_by: the driving audio of each video: its "own", that of the "next" video, or "silence" of its length.

    Returns:
        The reason of each failure, by name.

    Raises:
        FileError: the folder does not exist.
        MediaError: it contains no video, or no video could be dubbed.
        ParameterError: with "next", there is only one video.
        OutputError: `output` cannot be written.
    """
    sources = find_videos(videos)
    if driven_by == "next" and len(sources) < 2:
        raise ParameterError("cross", f"expected two videos or more in {videos}, found one")
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        for old in output.glob("*.mp4"):  # dubs of an earlier run would be scored too
            old.unlink()
    failed = {}
    names = list(sources)
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        video, dubbed = sources[name], output / f"{name}.mp4"
        try:
            if driven_by == "silence":
                with TemporaryDirectory() as folder:
                    dub(video, _silence(video, Path(folder) / "silence.wav"), dubbed)
            else:
                dub(video, sources[following] if driven_by == "next" else video, dubbed)
        except OutputError:  # not the fault of the video
            raise
        except UserError as error:
            failed[name] = str(error)
    if len(failed) == len(sources):
        raise MediaError(videos, f"no video could be dubbed ({next(iter(failed.values()))})")
    return failed


def _silence(video: Path, path: Path) -> Path:
    """Write digital silence as long as a video, mono, 16 kHz, and return its path. Raises MediaError."""
    num_samples = round(probe(video).duration_s * SAMPLE_RATE)
    if not num_samples:
        raise MediaError(video, "the container states no duration")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(bytes(2 * num_samples))
    return path
