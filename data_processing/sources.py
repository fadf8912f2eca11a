"""TODO."""

import csv
import zlib
from dataclasses import dataclass
from pathlib import Path

from data_processing.media.video_reader import VIDEO_SUFFIXES
from utils.errors import UserError

METADATA_NAME = "MANIFEST.tsv"


@dataclass(frozen=True)
class Source:
    """One video to prepare: its person (for the split) and how late its sound is against its picture."""

    path: Path
    speaker: str
    audio_late_ms: float


def find_sources(inputs: list[Path], output: Path, speaker: str | None) -> list[Source]:
    """List the videos of files and folders, with what a MANIFEST.tsv beside them says of each.

    Columns `file`, `person` and `audio_late_ms` are read where they exist. Without a person a video is its own.
    What lies in `output` is left out, so that a dataset inside the folder of its videos does not feed on itself.

    Raises:
        UserError: a path does not exist, or no video is found.
    """
    sources, metadata = [], {}
    for given in inputs:
        if not given.exists():
            raise UserError(f"INPUT: no such file or folder: {given}")
        for path in sorted(given.rglob("*")) if given.is_dir() else [given]:
            hidden = given.is_dir() and (path.suffix.lower() not in VIDEO_SUFFIXES or path.name.startswith("."))
            if hidden or path.is_dir() or output.resolve() in path.resolve().parents:
                continue
            row: dict[str, str] = {}
            for folder in path.parents:  # the nearest MANIFEST.tsv that knows the file, up to the folder given
                if folder not in metadata:
                    metadata[folder] = _read_metadata(folder / METADATA_NAME)
                row = metadata[folder].get(path.relative_to(folder).as_posix(), {})
                if row or folder in (given, given.parent):
                    break
            who = speaker or row.get("person") or path.stem
            sources.append(Source(path, who, float(row.get("audio_late_ms") or 0)))
    if not sources:
        raise UserError(
            f"INPUT: found no video ({', '.join(sorted(VIDEO_SUFFIXES))}) in {', '.join(map(str, inputs))}"
        )
    return list({source.path.resolve(): source for source in sources}.values())  # each once


def _read_metadata(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # with or without the mark that Excel puts first
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected tab-separated text, found something else ({error})") from None
    if rows and "file" not in rows[0]:
        raise UserError(f"{path}: expected a column 'file', found {', '.join(rows[0])}")
    for row in rows:
        try:
            float(row.get("audio_late_ms") or 0)
        except ValueError:
            raise UserError(
                f"{path}: audio_late_ms of {row['file']}: expected a number, found {row['audio_late_ms']!r}"
            ) from None
    return {row["file"]: row for row in rows}


def assign_splits(clips: list[dict], val_percent: int) -> None:
    """Set 'split' of every manifest line to 'train' or 'val': all clips of a person fall on one side.

    Which side a person's name alone decides, so that it stays when others come; but with two people or more
    neither side stays empty. Of a single person the last clips are held out.
    """
    people = sorted({clip["person"] for clip in clips}, key=lambda person: zlib.crc32(person.encode()) % 100)
    val = {person for person in people if zlib.crc32(person.encode()) % 100 < val_percent}
    if len(people) > 1:
        val = (val or {people[0]}) - ({people[-1]} if len(val) == len(people) else set())
        for clip in clips:
            clip["split"] = "val" if clip["person"] in val else "train"
    else:
        held_out = min(len(clips) - 1, max(1, len(clips) * val_percent // 100))
        for number, clip in enumerate(clips):
            clip["split"] = "val" if number >= len(clips) - held_out else "train"
