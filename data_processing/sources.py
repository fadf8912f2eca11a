"""Find the videos of a dataset, with the metadata in MANIFEST.tsv files, and split speakers into train and val."""

import csv
import logging
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from data_processing.media.video_reader import VIDEO_SUFFIXES
from utils.errors import FileError, MediaError, ParameterError

METADATA_NAME = "MANIFEST.tsv"
NUM_NAMED = 5  # files named in a note
BY_FOLDER = "folder"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One video to prepare.

    path: the video file.
    speaker: name of the speaker, for the split.
    audio_delay_ms: known A/V offset, positive if the audio lags the video.
    is_named: whether somebody or something named the speaker; otherwise the name is that of the file.
    """

    path: Path
    speaker: str
    audio_delay_ms: float
    is_named: bool = True


def list_videos(folder: Path, *, recursive: bool = False, exclude: Path | None = None) -> list[Path]:
    """The videos of a folder, recognised by their suffix, sorted. A note counts and names what is skipped.

    Hidden files and folders are ignored, as are MANIFEST.tsv and the .csv files of OpenFace.

    Args:
        folder: must exist.
        recursive: also list the videos in its subfolders; otherwise these are skipped.
        exclude: a folder whose files are ignored.
    """
    excluded = exclude and exclude.resolve()
    videos, skipped = [], []
    for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or (excluded and excluded in path.resolve().parents):
            continue
        if path.is_dir():
            skipped += [] if recursive else [f"{name}/"]
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            videos.append(path)
        elif path.name != METADATA_NAME and path.suffix.lower() != ".csv":
            skipped.append(str(name))
    if skipped:
        names = ", ".join(skipped[:NUM_NAMED]) + (", …" if len(skipped) > NUM_NAMED else "")
        message = "%s: skipped %d of %d entries, which are not videos: %s"
        logger.info(message, folder, len(skipped), len(skipped) + len(videos), names, extra={"path": folder})
    return videos


def find_sources(
    inputs: list[Path], output: Path, speaker: str | None, person_by: str | None = None
) -> list[Source]:
    """List the videos in files and folders, each once.

    The columns `file`, `person` and `audio_late_ms` of a MANIFEST.tsv beside the videos are read if it exists. A
    video without a named speaker counts as a speaker of its own. Files in `output` are skipped, so that a dataset
    inside the folder of its source videos is not prepared again.

    Args:
        inputs: video files, or folders that are searched recursively.
        output: folder of the prepared dataset.
        speaker: name of the speaker of all videos; None for the names in MANIFEST.tsv.
        person_by: where the paths of the videos, from the input on, have the speaker's name instead: BY_FOLDER for
            the first folder inside the input (the input itself, for videos that are in none), or a regular
            expression: its first group, or all that it matches.

    Raises:
        MediaError: an input does not exist.
        FileError: a MANIFEST.tsv is not valid.
        ParameterError: there is no video in the inputs, or `person_by` is not valid or not in every path.
    """
    sources, metadata, unnamed = [], {}, []
    pattern = _compiled(person_by) if person_by not in (None, BY_FOLDER) else None
    for given in inputs:
        if not given.exists():
            raise MediaError(given, "no such file or folder")
        for path in list_videos(given, recursive=True, exclude=output) if given.is_dir() else [given]:
            row: dict[str, str] = {}
            for folder in path.parents:  # the nearest MANIFEST.tsv that lists the file, up to the input folder
                if folder not in metadata:
                    metadata[folder] = _read_metadata(folder / METADATA_NAME)
                row = metadata[folder].get(path.relative_to(folder).as_posix(), {})
                if row or folder in (given, given.parent):
                    break
            folder = given if given.is_dir() else given.parent
            inside = path.relative_to(folder)
            if person_by == BY_FOLDER:
                name = inside.parts[0] if len(inside.parts) > 1 else folder.resolve().name
            elif pattern:
                found = pattern.search(inside.as_posix())
                name = found and found[min(1, pattern.groups)]
                if not name:
                    unnamed.append(inside)
            else:
                name = speaker or row.get("person")
            sources.append(Source(path, name or path.stem, float(row.get("audio_late_ms") or 0), bool(name)))
    if unnamed:
        reason = f"{person_by!r} finds no name in {len(unnamed)} of {len(sources)} paths, such as {unnamed[0]}"
        raise ParameterError("person_by", reason)
    if not sources:
        raise ParameterError("inputs", f"no video file (.mp4, .mov, .mkv, …) in {', '.join(map(str, inputs))}")
    return list({source.path.resolve(): source for source in sources}.values())


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ParameterError("person_by", f"{pattern!r} is not a regular expression: {error}") from None


def _read_metadata(path: Path) -> dict[str, dict[str, str]]:
    """Rows of a MANIFEST.tsv by file name, relative to its folder; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"not tab-separated text: {error}") from None
    if rows and "file" not in rows[0]:
        raise FileError(path, f"no column 'file' (columns: {', '.join(rows[0])})")
    for row in rows:
        try:
            float(row.get("audio_late_ms") or 0)
        except ValueError:
            found = row["audio_late_ms"]
            raise FileError(path, f"audio_late_ms of {row['file']}: expected a number, found {found!r}") from None
    return {row["file"]: row for row in rows}


def rename_speakers(clips: list[dict], speakers: dict[str, str]) -> int:
    """Set "person" of the manifest lines of some videos; return how many lines had another one.

    A clip moves to the split of its new speaker if other clips of that speaker stay as they are, so that the split
    of a speaker does not change.

    Args:
        clips: manifest lines, changed in place.
        speakers: name of the speaker, by "source".
    """
    renamed = [clip for clip in clips if speakers.get(clip["source"], clip["person"]) != clip["person"]]
    kept = {clip["person"] for clip in clips if speakers.get(clip["source"], clip["person"]) == clip["person"]}
    for clip in renamed:
        clip["person"] = speakers[clip["source"]]
        if clip["person"] in kept:
            clip.pop("split", None)
    return len(renamed)


def assign_splits(clips: list[dict], val_percent: int) -> None:
    """Set "split" of every manifest line to "train" or "val", with all clips of a speaker in the same split.

    A speaker whose clips have a split already keeps it. That of a new one depends only on a hash of the name; but
    with two or more speakers neither split is left empty. With one speaker, the last clips of the last videos, by
    name, are held out.

    Args:
        clips: manifest lines, changed in place.
        val_percent: percentage of new speakers (or of clips, with one speaker) in the val split.
    """
    speakers = sorted({clip["person"] for clip in clips}, key=lambda name: (_hash_percent(name), name))
    if len(speakers) > 1:
        kept = ({clip["person"] for clip in clips if clip.get("split") == split} for split in ("train", "val"))
        train, val = kept
        new = [speaker for speaker in speakers if (speaker in train) == (speaker in val)]
        val = val.difference(new) | {speaker for speaker in new if _hash_percent(speaker) < val_percent}
        if new:
            val = (val or {new[0]}) - ({new[-1]} if len(val) == len(speakers) else set())
        for clip in clips:
            clip["split"] = "val" if clip["person"] in val else "train"
    else:
        held_out = min(len(clips) - 1, max(1, len(clips) * val_percent // 100))
        in_order = sorted(clips, key=lambda clip: (clip["source"], clip["start_frame"]))
        for number, clip in enumerate(in_order):
            clip["split"] = "val" if number >= len(clips) - held_out else "train"


def _hash_percent(name: str) -> int:
    """A number from 0 to 99 that depends only on the name."""
    return zlib.crc32(name.encode(errors="surrogateescape")) % 100
