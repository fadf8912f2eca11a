"""Fetch HDTF, the paper's dataset, from its published lists: python -m scripts.prepare_hdtf LISTS --output DIR

LISTS is the folder HDTF_dataset of https://github.com/MRzzm/HDTF. For each of three sources (RD, WDA, WRA) it lists
videos on YouTube, the times of their clips, the boxes around the faces and the heights at which these were drawn.
The command fetches video and audio with yt-dlp, cuts the clips and writes

    downloads/           what was fetched; no longer needed when all clips are cut
    clips/NAME.mp4       the clips, not encoded again; with --crop their boxes only, in cropped/
    clips/MANIFEST.tsv   the speaker of each clip, as data_processing.prepare reads it
    left_out.tsv         what is not among the clips, and why

Started again, it continues where it stopped, and tries again what could not be fetched.

The lists name no speakers, but WDA and WRA (weekly addresses of two American parties) name each video after its
speaker, with a number if there are several: BarbaraLee0 and BarbaraLee1 show one. RD (radio) numbers its videos
only, so each counts as a speaker of its own; the lists do not say if two show the same. One address under two names
counts as one speaker, and so do all other videos of these names.
"""

import argparse
import csv
import glob
import importlib.util
import io
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import av
from tqdm import tqdm

from data_processing.media.cutting import Box, cut
from data_processing.media.video_reader import moving_stream, open_media, probe
from data_processing.sources import METADATA_NAME
from utils.command_line import run_command
from utils.errors import FileError, MediaError, UserError, error_reason
from utils.files import output_errors, write_atomically

NAMED_AFTER_SPEAKER = {"RD": False, "WDA": True, "WRA": True}  # by source
MAX_FAILURES = 10  # downloads that fail one after another: then the network or YouTube refuses, not the videos
YT_DLP = [
    *("--quiet", "--no-warnings", "--no-playlist", "--socket-timeout", "30"),
    *("--sleep-requests", "1", "--sleep-interval", "5", "--max-sleep-interval", "15"),
    *("--format", "bv,ba"),  # two files: yt-dlp needs the program ffmpeg to join them
    *("--output", "{name}.%(format_id)s.%(ext)s"),
]
PREFERRED = "res:{height},vcodec:h264,acodec:aac"  # at most the height of the boxes; codecs that an mp4 can hold


@dataclass(frozen=True)
class Clip:
    """A clip of the lists: its name, its times in seconds, and the box around the face, None if none is listed."""

    name: str
    start_s: float
    stop_s: float
    box: Box | None


@dataclass(frozen=True)
class Video:
    """A video of the lists.

    name: with its source, as in "WDA_BarbaraLee0".
    url: its address.
    speaker: name of the speaker.
    height: of the frames in which the boxes were drawn, in pixels; 0 if it is not known.
    clips: in the order of the list.
    """

    name: str
    url: str
    speaker: str
    height: int
    clips: tuple[Clip, ...]


def read_lists(folder: Path) -> list[Video]:
    """The videos of the published lists in `folder`, in their order.

    Raises:
        FileError: a list is missing or has a line of another form.
    """
    videos: list[Video] = []
    first_names: dict[str, str] = {}  # by video of YouTube
    speakers: dict[str, str] = {}  # by name of a speaker in the lists
    for source, is_named in NAMED_AFTER_SPEAKER.items():
        urls = _read_list(folder / f"{source}_video_url.txt")
        times = _read_list(folder / f"{source}_annotion_time.txt")  # their spelling
        boxes = _read_list(folder / f"{source}_crop_wh.txt")
        heights = _read_list(folder / f"{source}_resolution.txt")
        for video, fields in urls.items():
            name = f"{source}_{video.rstrip('0123456789') if is_named else video}"
            try:
                (url,) = fields
                (youtube_id,) = parse_qs(urlsplit(url).query)["v"]  # "&t=6s" may follow it
                clips = [
                    Clip(f"{source}_{video}_{number:03d}", *_interval(text), _box(boxes.get(f"{video}_{number}")))
                    for number, text in enumerate(times.get(video, []))
                ]
                height = int(heights.get(video, ["0"])[0])
            except (ValueError, KeyError) as error:
                raise FileError(folder, f"unexpected lines about {source}'s {video} ({error})") from None
            old, new = speakers.setdefault(name, name), speakers[first_names.setdefault(youtube_id, name)]
            speakers = {name: new if speaker == old else speaker for name, speaker in speakers.items()}
            videos.append(Video(f"{source}_{video}", url, name, height, tuple(clips)))
    return [replace(video, speaker=speakers[video.speaker]) for video in videos]


def _read_list(path: Path) -> dict[str, list[str]]:
    """The lines of a list, by their first field without .mp4."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot be read ({error_reason(error)}); expected the folder HDTF_dataset of MRzzm/HDTF"
        raise FileError(path, reason) from None
    return {fields[0].removesuffix(".mp4"): fields[1:] for fields in lines if fields}


def _interval(text: str) -> tuple[float, float]:
    """ "00:30-01:45" in seconds."""
    start_s, stop_s = (
        sum(float(part) * 60**power for power, part in enumerate(reversed(time.split(":"))))
        for time in text.split("-")
    )
    if start_s >= stop_s:
        raise ValueError(f"{text} ends before it starts")
    return start_s, stop_s


def _box(fields: list[str] | None) -> Box | None:
    """The box of a line "left width top height"."""
    if fields is None:
        return None
    left, width, top, height = map(int, fields)
    return Box(left, top, width, height)


class _NotFetched(Exception):
    """yt-dlp did not fetch a video; the message is its own."""


def fetch_and_cut(videos: list[Video], output: Path, crop: bool) -> None:
    """Fetch the videos that are not fetched yet, cut the clips that are not cut yet, and list them.

    Args:
        videos: of `read_lists`.
        output: folder; created if it does not exist.
        crop: keep only the boxes of the lists, as far as they are in the frame. Clips without a box are left out.

    Raises:
        OutputError: a file or folder cannot be written.
        UserError: yt-dlp is missing, or MAX_FAILURES videos in a row could not be fetched.
    """
    folder, downloads = output / ("cropped" if crop else "clips"), output / "downloads"
    for path in (folder, downloads):
        with output_errors(path):
            path.mkdir(parents=True, exist_ok=True)
    left_out: list[dict[str, str]] = []
    num_refused = num_failures = 0
    for video in tqdm(videos, unit="video", desc="HDTF", disable=None):
        reasons = _reasons_to_leave_out(video, crop)
        wanted = [clip for clip in video.clips if clip.name not in reasons]
        missing = [clip for clip in wanted if not (folder / f"{clip.name}.mp4").exists()]
        try:
            if missing:
                files = _fetched(video, downloads)
            if wanted:
                num_failures = 0  # also if an earlier run fetched it
        except _NotFetched as error:
            num_refused, num_failures = num_refused + 1, num_failures + 1
            if num_failures == MAX_FAILURES:
                reason = f"{MAX_FAILURES} videos in a row cannot be fetched, the last for: {error}; try again later"
                raise UserError(reason) from None
            reasons |= {clip.name: f"not fetched: {error}" for clip in missing}
            missing = []
        for clip in missing:
            try:
                _cut(clip, video, files, folder / f"{clip.name}.mp4", crop)
            except MediaError as error:
                reasons[clip.name] = str(error)
        left_out += [{"name": name, "url": video.url, "reason": reason} for name, reason in reasons.items()]
        # every clip that is there, also those of a run before, so that none is ever without its speaker
        rows = [
            {"file": f"{clip.name}.mp4", "person": video.speaker, "url": video.url}
            | {"start_s": clip.start_s, "stop_s": clip.stop_s}
            for video in videos
            for clip in video.clips
            if (folder / f"{clip.name}.mp4").exists()
        ]
        _write_table(folder / METADATA_NAME, rows, ("file", "person", "url", "start_s", "stop_s"))
        _write_table(output / "left_out.tsv", left_out, ("name", "url", "reason"))
    print(f"{len(rows)} clips of {len({row['person'] for row in rows})} speakers: {folder}")
    print(f"{num_refused} of {len(videos)} videos not fetched; {len(left_out)} clips left out, see left_out.tsv")


def _reasons_to_leave_out(video: Video, crop: bool) -> dict[str, str]:
    """Why the lists do not suffice for some clips, by name of the clip, or of the video if it has none."""
    if not video.clips:
        return {video.name: "the lists have no times"}
    if not crop:
        return {}
    if not video.height:
        return {clip.name: "the lists have no height of the frames for its box" for clip in video.clips}
    return {clip.name: "the lists have no box" for clip in video.clips if clip.box is None}


def _fetched(video: Video, downloads: Path) -> tuple[Path, Path]:
    """The files of the video stream and of the audio track of a video, fetched first if they are not there.

    Raises:
        UserError: yt-dlp is missing.
        _NotFetched: it fails.
    """
    if files := _downloaded(video, downloads):
        return files
    if importlib.util.find_spec("yt_dlp") is None:
        raise UserError('yt-dlp is not installed: pip install "yt-dlp[default]"')
    options = [option.format(name=video.name) for option in YT_DLP]
    sorting = PREFERRED.format(height=video.height or 1080)
    command = [sys.executable, "-m", "yt_dlp", *options, "--format-sort", sorting, "--", video.url]
    # in the folder, because a path may hold characters that mean something in a template of yt-dlp
    result = subprocess.run(command, cwd=downloads, capture_output=True, text=True, errors="replace")
    files = _downloaded(video, downloads)
    if result.returncode == 0 and files:
        return files
    lines = [line for line in result.stderr.splitlines() if line.strip()] or ["yt-dlp gave no reason"]
    errors = [line for line in lines if line.startswith("ERROR:")]
    raise _NotFetched((errors or lines)[-1].removeprefix("ERROR: "))


def _downloaded(video: Video, downloads: Path) -> tuple[Path, Path] | None:
    """The files with the video stream and with the audio track of a video; None unless both are complete."""
    seen = heard = None
    for path in sorted(downloads.glob(f"{glob.escape(video.name)}.*")):
        if ".part" in path.name or path.suffix == ".ytdl":  # not complete
            continue
        try:
            with open_media(path) as container:
                seen = path if moving_stream(container) else seen
                heard = path if container.streams.audio and not container.streams.video else heard
        except (av.error.FFmpegError, OSError):
            continue
    return (seen, heard) if seen and heard else None


def _cut(clip: Clip, video: Video, files: tuple[Path, Path], output: Path, crop: bool) -> None:
    box = None
    if crop and clip.box:
        scale = probe(files[0]).height / video.height
        box = Box(*(round(scale * value) for value in clip.box))
    cut(*files, clip.start_s, clip.stop_s, output, box)


def _write_table(path: Path, rows: list[dict], columns: tuple[str, ...]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def run(args: argparse.Namespace) -> None:
    fetch_and_cut(read_lists(args.lists), args.output, args.crop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("lists", type=Path, metavar="LISTS", help="folder HDTF_dataset of https://github.com/MRzzm/HDTF")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for downloads and clips")
    add("--crop", action="store_true", help="keep only the boxes around the faces, which encodes the clips again")
    run_command(parser, run)


if __name__ == "__main__":
    main()
