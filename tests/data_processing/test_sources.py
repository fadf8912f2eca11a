"""sources: finding videos and their metadata, and the train and val splits."""

import itertools
import logging
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from data_processing.media.video_reader import VIDEO_SUFFIXES, read_frames
from data_processing.sources import (
    Source,
    _hash_percent,
    assign_splits,
    find_sources,
    list_videos,
    rename_speakers,
)
from evaluation.folders import find_videos
from tests.support.media import write_video
from tests.support.numbered_media import numbered
from utils.errors import FileError, MediaError, ParameterError

NOWHERE = Path("nowhere")  # an output folder that contains none of the inputs


def test_find_sources(tmp_path):
    for name in ("b.mp4", "a.MOV", "inner/c.mkv", "notes.txt", "d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    without_metadata = [
        Source(tmp_path / n, p, 0.0, is_named=False)
        for n, p in [("a.MOV", "a"), ("b.mp4", "b"), ("inner/c.mkv", "c")]
    ]
    assert find_sources([tmp_path], NOWHERE, None) == without_metadata

    (tmp_path / "MANIFEST.tsv").write_text(
        "file\ttitle\tperson\taudio_late_ms\nb.mp4\tx\tBob\t-40\ninner/c.mkv\ty\t\t12.5\n"
    )
    with_metadata = [
        Source(tmp_path / "a.MOV", "a", 0.0, is_named=False),
        Source(tmp_path / "b.mp4", "Bob", -40.0),
        Source(tmp_path / "inner/c.mkv", "c", 12.5, is_named=False),
    ]
    assert find_sources([tmp_path], NOWHERE, None) == with_metadata
    assert find_sources([tmp_path / "b.mp4"], NOWHERE, None) == [with_metadata[1]]
    assert find_sources([tmp_path, tmp_path / "b.mp4"], NOWHERE, None) == with_metadata  # each once
    assert {source.speaker for source in find_sources([tmp_path], NOWHERE, "Eve")} == {"Eve"}


@pytest.mark.parametrize(
    ("container", "codec", "suffixes"),
    [
        ("mpegts", "libx264", "ts MTS m2ts m2t tp trp"),
        ("ogg", "libvpx", "ogv OGM"),
        ("mxf", "mpeg2video", "mxf MXF"),
        ("mpeg2video", "mpeg2video", "m2v mpv"),
        ("vob", "mpeg2video", "VOB mpg mpeg mpe m2p evo tod mod"),
        ("asf", "wmv2", "asf wmv"),
        ("flv", "flv", "flv f4v"),
        ("avi", "mpeg4", "avi DIVX"),
        ("rm", "rv10", "rm"),
        ("mp4", "libx264", "qt M4V 3gp 3g2 3gpp m4s"),
        ("matroska", "libx264", "mk3d"),
        ("h264", "libx264", "h264 264 avc"),
        ("ivf", "libvpx", "ivf"),
        ("nut", "mpeg4", "nut"),
    ],
)
def test_videos_that_inference_reads_are_listed(tmp_path, container, codec, suffixes):
    made = tmp_path / "made"
    write_video(made, (numbered(index, (128, 96)) for index in range(5)), codec=codec, container=container)
    for suffix in suffixes.split():
        folder = tmp_path / suffix
        folder.mkdir()
        path = folder / f"clip.{suffix}"
        shutil.copy(made, path)
        assert len(list(read_frames(path))) >= 4
        assert list_videos(folder) == [path]
        assert find_sources([folder], NOWHERE, None) == [Source(path, "clip", 0, is_named=False)]
        assert find_videos(folder) == {"clip": path}


def test_suffixes_are_in_lower_case():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in VIDEO_SUFFIXES)


def test_skipped_files_are_counted_and_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    hidden = ["._a.mp4", ".DS_Store", ".trash/c.mp4"]  # macOS stores resource forks as ._NAME
    for name in ("a.mp4", "sub/b.MTS", "a.csv", "MANIFEST.tsv", "out/clips/a-0.npz", *hidden):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "MANIFEST.tsv").write_text("file\tperson\n")
    assert len(find_sources([tmp_path], tmp_path / "out", None)) == 2
    assert not caplog.records
    for name in ("me.jpg", "notes.txt", "sub/s.wav"):
        (tmp_path / name).touch()
    assert len(find_sources([tmp_path], tmp_path / "out", None)) == 2
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: skipped 3 of 5 entries, which are not videos: me.jpg, notes.txt, sub/s.wav"
    )
    assert record.path == tmp_path and record.levelno == logging.INFO
    caplog.clear()
    assert find_videos(tmp_path) == {"a": tmp_path / "a.mp4"}  # does not look into folders
    assert "skipped 4 of 5 entries, which are not videos: me.jpg, notes.txt, out/, sub/" in caplog.text
    for k in range(9):
        (tmp_path / f"b{k}.txt").touch()
    find_videos(tmp_path)
    assert (
        "skipped 13 of 14 entries, which are not videos: b0.txt, b1.txt, b2.txt, b3.txt, b4.txt, …" in caplog.text
    )


def test_names_that_are_not_utf_8(tmp_path):
    (tmp_path / "\udcff.mp4").touch()
    (tmp_path / "other.mp4").touch()
    clips = [{"person": source.speaker} for source in find_sources([tmp_path], NOWHERE, None)]
    assign_splits(clips, 10)
    assert {clip["split"] for clip in clips} == {"train", "val"}


def test_speakers_in_the_paths(tmp_path):
    """As in VoxCeleb and MEAD, and in HDTF as others publish it."""
    for name in (
        "id10001/xyz/00001.mp4",
        "id10002/abc/00001.mp4",
        "WDA_BarbaraLee0_000.mp4",
        "WDA_BarbaraLee1_001.mp4",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "MANIFEST.tsv").write_text("file\tperson\taudio_late_ms\nWDA_BarbaraLee0_000.mp4\tBob\t40\n")

    def speakers(inputs: list[Path], person_by: str) -> list[str]:
        return [source.speaker for source in find_sources(inputs, NOWHERE, None, person_by)]

    name = tmp_path.name
    assert speakers([tmp_path], "folder") == [name, name, "id10001", "id10002"]
    assert speakers([tmp_path / "id10001" / "xyz"], "folder") == ["xyz"]
    assert speakers([tmp_path / "WDA_BarbaraLee1_001.mp4"], "folder") == [name]
    videos = sorted(tmp_path.glob("*.mp4"))
    assert speakers(videos, r"^(WDA_\w+?)\d*_\d+\.") == ["WDA_BarbaraLee"] * 2
    assert speakers([tmp_path / "id10001", tmp_path / "id10002"], "xyz|abc") == ["xyz", "abc"]
    assert find_sources(videos, NOWHERE, None, "Barbara")[0].audio_delay_ms == 40
    for person_by, message in (
        (r"id\d+", r"'id.*' finds no name in 2 of 4 paths, such as WDA_BarbaraLee0_000\.mp4"),
        ("z*", "finds no name in 4 of 4 paths"),  # an empty name is none
        ("(", r"'\(' is not a regular expression: "),
    ):
        with pytest.raises(ParameterError, match=message) as caught:
            speakers([tmp_path], person_by)
        assert caught.value.parameter == "person_by"


def test_invalid_inputs_are_refused(tmp_path):
    with pytest.raises(MediaError, match=r"absent: no such file or folder"):
        find_sources([tmp_path / "absent"], NOWHERE, None)
    with pytest.raises(ParameterError, match=r"no video file \(.*\.mp4.*\) in ") as caught:
        find_sources([tmp_path], NOWHERE, None)
    assert caught.value.parameter == "inputs"
    (tmp_path / "a.mp4").touch()
    (tmp_path / "MANIFEST.tsv").write_text("name\tperson\na.mp4\tBob\n")
    with pytest.raises(FileError, match=r"MANIFEST\.tsv: no column 'file' \(columns: name, person\)"):
        find_sources([tmp_path], NOWHERE, None)
    (tmp_path / "MANIFEST.tsv").write_text("file\taudio_late_ms\na.mp4\tlate\n")
    with pytest.raises(FileError, match=r"audio_late_ms of a\.mp4: expected a number, found 'late'"):
        find_sources([tmp_path], NOWHERE, None)


def test_dataset_inside_the_folder_of_its_videos_is_skipped(tmp_path):
    (tmp_path / "out" / "clips").mkdir(parents=True)
    for name in ("a.mp4", "out/clips/a-0.mp4", ".hidden.mp4"):
        (tmp_path / name).touch()
    assert [source.path.name for source in find_sources([tmp_path], tmp_path / "out", None)] == ["a.mp4"]


def test_manifest_in_a_subfolder_is_read(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mp4").touch()
    (tmp_path / "sub" / "MANIFEST.tsv").write_text("\ufefffile\tperson\na.mp4\tAnn\n", encoding="utf-8")
    assert [source.speaker for source in find_sources([tmp_path], NOWHERE, None)] == ["Ann"]


def clips_of(speakers: list[str]) -> list[dict]:
    """Manifest lines of clips of one video, in their order."""
    return [{"person": speaker, "source": "a", "start_frame": k} for k, speaker in enumerate(speakers)]


def splits(speakers: list[str], val_percent: int) -> list[str]:
    """The splits of clips, one per entry of `speakers`."""
    clips = clips_of(speakers)
    assign_splits(clips, val_percent)
    return [clip["split"] for clip in clips]


def test_split_depends_only_on_the_name_of_the_speaker():
    speakers = [f"person {k // 2}" for k in range(4000)]  # two clips each
    val = {speaker for speaker, split in zip(speakers, splits(speakers, 10), strict=True) if split == "val"}
    assert 150 < len(val) < 250
    assert splits(speakers, 10)[::2] == splits(speakers, 10)[1::2]
    larger = {speaker for speaker, split in zip(speakers, splits(speakers, 20), strict=True) if split == "val"}
    assert val < larger  # a higher percentage only adds speakers
    assert splits(["Bob", "Joe"], 10) == ["train", "val"]  # must not change between versions


def test_split_of_a_speaker_does_not_change_when_others_are_added():
    clips: list[dict] = []
    before: dict[str, str] = {}
    # by the hash alone, Ann would be in val, until Joe, who has a lower hash, comes
    for new in (["Bob", "Ann"], ["Joe"], [f"person {k}" for k in range(30)], ["Bob", "Joe"]):
        clips += [{"person": speaker} for speaker in new]
        assign_splits(clips, 10)
        after = {clip["person"]: clip["split"] for clip in clips}
        assert {speaker: after[speaker] for speaker in before} == before
        assert all(clip["split"] == after[clip["person"]] for clip in clips)
        before = after
    assert 1 < sum(split == "val" for split in before.values()) < 10


def test_a_speaker_who_was_alone_gets_one_split_when_others_come():
    clips = clips_of(["Bob"] * 3)
    assign_splits(clips, 10)
    assert len({clip["split"] for clip in clips}) == 2
    clips.append({"person": "Joe"})
    assign_splits(clips, 10)
    assert [clip["split"] for clip in clips] == ["train", "train", "train", "val"]


def test_held_out_clips_of_one_speaker_do_not_depend_on_the_order_in_which_videos_are_finished():
    clips = [
        {"person": "Bob", "source": source, "start_frame": start} for source in "ab" for start in (0, 900, 1000)
    ]
    for order in itertools.permutations(clips):
        assign_splits(order, 34)
        assert [clip["split"] for clip in clips] == ["train"] * 4 + ["val"] * 2


def test_speakers_with_the_same_hash_are_split_by_name():
    by_hash = defaultdict(list)
    for name in map(str, range(2000)):
        by_hash[_hash_percent(name)].append(name)
    pairs = [sorted(names[:2]) for names in by_hash.values()]
    assert [splits(pair, 0) for pair in pairs] == [["val", "train"]] * 100


def test_renamed_clips_take_the_split_of_their_speaker():
    clips = [
        {"source": source, "person": person, "split": split}
        for source, person, split in (
            ("1", "Ann", "val"),
            ("2", "b", "train"),  # Ann, too
            ("3", "c", "val"),  # Cyd
            ("4", "d", "train"),
            ("4", "d", "train"),
        )
    ]
    names = {"1": "Ann", "2": "Ann", "3": "Cyd"}
    assert rename_speakers(clips, names) == 2
    assert rename_speakers(clips, names) == 0
    assign_splits(clips, 10)
    assert [(clip["person"], clip["split"]) for clip in clips] == [
        ("Ann", "val"),
        ("Ann", "val"),
        ("Cyd", "val"),
        ("d", "train"),
        ("d", "train"),
    ]


def test_no_split_is_empty():
    for val_percent in (0, 10, 100):
        for speakers in (["Bob", "Ann"], ["Joe", "Jim", "Joe"], ["Bob", "Bob", "Bob"], [f"{k}" for k in range(7)]):
            assert set(splits(speakers, val_percent)) == {"train", "val"}
    assert splits(["Bob", "Bob", "Bob"], 10) == ["train", "train", "val"]  # with one speaker, the last clips
