"""Dubbing the videos of a folder, to be scored."""

import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import probe
from data_processing.workers import in_workers
from evaluation.folders import find_videos
from utils.errors import MediaError, OutputError, ParameterError, UserError
from utils.files import output_errors

MARKER = ".dubs_of_evaluate"  # a file in folders whose videos may be deleted


def dub_folder(
    dub: Callable[..., Any],
    videos: Path,
    output: Path,
    driven_by: str = "own",
    jobs: int = 1,
    scheduler: str | None = None,
    load: Callable[[], Any] | None = None,
) -> dict[str, str]:
    """Dub all videos of a folder to `output`/NAME.mp4.

    Args:
        dub: dubs one video, from what `load` returns, if it is given, source video, driving audio and output path.
        output: created if missing; the dubs of an earlier call in it are deleted.
        driven_by: the driving audio of each video: its "own", that of the "next" video, or "silence" of its length.
        jobs, scheduler, load: see `in_workers`.

    Returns:
        The reason of each failure, by name.

    Raises:
        FileError: the folder does not exist.
        MediaError: it contains no video, or no video could be dubbed.
        ParameterError: with "next", there is only one video; or there is no scheduler.
        OutputError: `output` cannot be written, or has videos that no earlier call has written; a UserError if
            other processes write it.
    """
    sources = find_videos(videos)
    if driven_by == "next" and len(sources) < 2:
        raise ParameterError("cross", f"expected two videos or more in {videos}, found one")
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        earlier = list(output.glob("*.mp4"))
        if earlier and not (output / MARKER).exists():
            raise OutputError(output, "has videos that this command has not written; choose another --output")
        (output / MARKER).touch()
        for path in earlier:  # they would be scored too
            path.unlink()
    paths = list(sources.values())
    following = [*paths[1:], paths[0]]
    audio = {"own": paths, "next": following, "silence": [None] * len(paths)}[driven_by]
    items = list(zip(paths, audio, [output / f"{name}.mp4" for name in sources], strict=True))
    if scheduler:
        items = [tuple(path and path.absolute() for path in item) for item in items]
    work = partial(_try, dub)
    reasons = dict(in_workers(work, items, jobs, scheduler, unit="video", description="dubbing", load=load))
    failed = {name: reasons[name] for name in sources if reasons[name]}
    if len(failed) == len(sources):
        raise MediaError(videos, f"no video could be dubbed ({next(iter(failed.values()))})")
    return failed


def _try(dub: Callable[..., Any], *loaded_and_item: Any) -> tuple[str, str]:
    """Dub one video; its name, and why it could not be dubbed, "" if it was.

    The item is source video, driving audio (None: silence) and output path.
    """
    *loaded, (video, audio, output) = loaded_and_item
    try:
        if audio is None:
            with TemporaryDirectory() as folder:
                dub(*loaded, video, _silence(video, Path(folder) / "silence.wav"), output)
        else:
            dub(*loaded, video, audio, output)
    except OutputError:  # not the fault of the video
        raise
    except UserError as error:
        return output.stem, str(error)
    except Exception as error:  # must not lose the videos that are done
        return output.stem, f"{type(error).__name__}: {error}"
    return output.stem, ""


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
