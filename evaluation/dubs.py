"""Dubbing the videos of a folder, to be scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation.videos import find_videos
from utils.errors import MediaError, OutputError, ParameterError, UserError
from utils.files import output_errors


def dub_folder(
    dub: Callable[[Path, Path, Path], Any], videos: Path, output: Path, *, cross: bool = False
) -> dict[str, str]:
    """Dub all videos of a folder to `output`/NAME.mp4, each with its own audio or, if `cross`, with the next one's.

    Args:
        dub: dubs one video, from source video, driving audio and output path.
        output: created if missing; mp4 files in it are deleted.

    Returns:
        The reason of each failure, by name.

    Raises:
        FileError: the folder does not exist.
        MediaError: it contains no video, or no video could be dubbed.
        ParameterError: `cross` needs two videos.
        OutputError: `output` cannot be written.
    """
    sources = find_videos(videos)
    if cross and len(sources) < 2:
        raise ParameterError("cross", f"expected two videos or more in {videos}, found one")
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        for old in output.glob("*.mp4"):  # dubs of an earlier run would be scored too
            old.unlink()
    failed = {}
    names = list(sources)
    for name, following in zip(names, [*names[1:], names[0]], strict=True):
        try:
            dub(sources[name], sources[following if cross else name], output / f"{name}.mp4")
        except OutputError:  # not the fault of the video
            raise
        except UserError as error:
            failed[name] = str(error)
    if len(failed) == len(sources):
        raise MediaError(videos, f"no video could be dubbed ({next(iter(failed.values()))})")
    return failed
