"""prepare: what a prepared dataset holds, measured against its sources; going on after a stop; bad videos."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from distributed import LocalCluster

from data_processing import clips, prepare
from data_processing.audio.features import extract_features
from data_processing.av_sync import AVOffset
from data_processing.clips import MIN_FRAMES, Settings, unfit_reason
from data_processing.face.crop import FaceCrop
from data_processing.face.tracking import Landmarks, find_landmarks
from data_processing.media.audio_io import SAMPLE_RATE, load_audio, save_wav
from data_processing.media.video_reader import read_frames
from data_processing.media.video_writer import VideoWriter
from data_processing.sources import Source, assign_splits, find_sources
from tests.support.media import no_face_video, silent_video_without_audio, talking_portrait, text_file
from utils.errors import UserError
from utils.files import read_jsonl

NOWHERE = Path("nowhere")  # an output folder that holds none of the inputs
SETTINGS = Settings(mouth_size=64, landmarks="dlib", audio_features="whisper")
from tests.support.golden import DATA


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def prepare_one(path: Path, output: Path, audio_late_ms: float = 0, person: str = "Bob") -> dict:
    """Prepare one video and return its one manifest line."""
    prepare.prepare([Source(path, person, audio_late_ms)], output, SETTINGS, 10, jobs=1)
    lines = read_jsonl(output / "manifest.jsonl")
    assert len(lines) == 1, read_jsonl(output / "rejected.jsonl")
    return lines[0]


def with_sound(path: Path, portrait: Path, waveform: np.ndarray) -> Path:
    """The portrait's picture with another sound."""
    wav = path.with_suffix(".wav")
    save_wav(wav, waveform)
    with VideoWriter(path, 256, 256, audio_paths=[wav]) as writer:
        for frame in read_frames(portrait):
            writer.write(frame)
    wav.unlink()
    return path


def burst(at: float, seconds: float) -> np.ndarray:
    """(N,) silence but for 50 ms of a 1 kHz tone from `at` on."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return np.where((times >= at) & (times < at + 0.05), 0.5 * np.sin(2 * np.pi * 1000 * times), 0)


def onset(waveform: np.ndarray) -> float:
    return float(np.flatnonzero(np.abs(waveform) > 0.2)[0] / SAMPLE_RATE)


# --- finding the videos -------------------------------------------------------------------------------------


def test_find_sources(tmp_path):
    for name in ("b.mp4", "a.MOV", "inner/c.mkv", "notes.txt", "d.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    alone = [Source(tmp_path / n, p, 0.0) for n, p in [("a.MOV", "a"), ("b.mp4", "b"), ("inner/c.mkv", "c")]]
    assert find_sources([tmp_path], NOWHERE, None) == alone

    (tmp_path / "MANIFEST.tsv").write_text(
        "file\ttitle\tperson\taudio_late_ms\nb.mp4\tx\tBob\t-40\ninner/c.mkv\ty\t\t12.5\n"
    )
    described = [
        Source(tmp_path / "a.MOV", "a", 0.0),
        Source(tmp_path / "b.mp4", "Bob", -40.0),
        Source(tmp_path / "inner/c.mkv", "c", 12.5),
    ]
    assert find_sources([tmp_path], NOWHERE, None) == described
    assert find_sources([tmp_path / "b.mp4"], NOWHERE, None) == [described[1]]
    assert find_sources([tmp_path, tmp_path / "b.mp4"], NOWHERE, None) == described  # each once
    assert {source.speaker for source in find_sources([tmp_path], NOWHERE, "Eve")} == {"Eve"}


def test_find_sources_refuses(tmp_path):
    with pytest.raises(UserError, match=r"INPUT: no such file or folder: .*absent"):
        find_sources([tmp_path / "absent"], NOWHERE, None)
    with pytest.raises(UserError, match="found no video"):
        find_sources([tmp_path], NOWHERE, None)
    (tmp_path / "a.mp4").touch()
    (tmp_path / "MANIFEST.tsv").write_text("name\tperson\na.mp4\tBob\n")
    with pytest.raises(UserError, match="expected a column 'file', found name, person"):
        find_sources([tmp_path], NOWHERE, None)
    (tmp_path / "MANIFEST.tsv").write_text("file\taudio_late_ms\na.mp4\tlate\n")
    with pytest.raises(UserError, match=r"audio_late_ms of a\.mp4: expected a number, found 'late'"):
        find_sources([tmp_path], NOWHERE, None)


def splits(people: list[str], val_percent: int) -> list[str]:
    clips = [{"person": person} for person in people]
    assign_splits(clips, val_percent)
    return [clip["split"] for clip in clips]


def test_split_is_fixed_by_the_person():
    people = [f"person {k // 2}" for k in range(4000)]  # two clips each
    val = {person for person, split in zip(people, splits(people, 10), strict=True) if split == "val"}
    assert 150 < len(val) < 250
    assert splits(people, 10)[::2] == splits(people, 10)[1::2]
    more = {person for person, split in zip(people, splits(people, 20), strict=True) if split == "val"}
    assert val < more  # more are added, none leaves
    assert splits(["Bob", "Joe"], 10) == ["train", "val"]  # never to change between versions


def test_no_split_is_empty():
    for val_percent in (0, 10, 100):
        for people in (["Bob", "Ann"], ["Joe", "Jim", "Joe"], ["Bob", "Bob", "Bob"], [f"{k}" for k in range(7)]):
            assert set(splits(people, val_percent)) == {"train", "val"}
    assert splits(["Bob", "Bob", "Bob"], 10) == ["train", "train", "val"]  # of one person, the last clips


def test_dataset_inside_its_videos_is_no_source(tmp_path):
    (tmp_path / "out" / "clips").mkdir(parents=True)
    for name in ("a.mp4", "out/clips/a-0.mp4", ".hidden.mp4"):
        (tmp_path / name).touch()
    assert [source.path.name for source in find_sources([tmp_path], tmp_path / "out", None)] == ["a.mp4"]


def test_manifest_of_a_subfolder_counts(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.mp4").touch()
    (tmp_path / "sub" / "MANIFEST.tsv").write_text("\ufefffile\tperson\na.mp4\tAnn\n", encoding="utf-8")
    assert [source.speaker for source in find_sources([tmp_path], NOWHERE, None)] == ["Ann"]


# --- what is written ----------------------------------------------------------------------------------------


def test_prepared_dataset(prepared_dataset, portrait_clip):
    lines = {line["person"]: line for line in read_jsonl(prepared_dataset / "manifest.jsonl")}
    assert {person: line["split"] for person, line in lines.items()} == {"Bob": "train", "Joe": "val"}
    assert read_jsonl(prepared_dataset / "rejected.jsonl") == []
    names = {"manifest.jsonl", "rejected.jsonl", "dataset.json"}
    for person, line in lines.items():
        assert Path(line["source"]) == prepared_dataset.parent / "videos" / f"{person.lower()}.mp4"
        assert (line["start_frame"], line["num_frames"], line["found"]) == (0, 40, 1.0)
        assert (line["audio_features"], line["audio_late_ms"]) == ("whisper", 0.0)
        names |= {f"clips/{line['id']}.mp4", f"clips/{line['id']}.npz"}
    assert set(files_of(prepared_dataset)) == names

    line = lines["Bob"]
    clip = prepared_dataset / "clips" / f"{line['id']}.mp4"
    truth = find_landmarks(portrait_clip)
    waveform = load_audio(portrait_clip)
    with np.load(clip.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert np.array_equal(arrays["landmarks"], truth.points)
        assert np.array_equal(arrays["features"], extract_features(waveform, "whisper", 40))
        assert arrays["found"].shape == (40,) and arrays["found"].all()

    frames = np.array(list(read_frames(clip)))
    assert frames.shape == (40, 104, 80, 3)
    crops = [
        FaceCrop.from_landmarks(points, line["radius_px"], 64).extract(frame)
        for points, frame in zip(truth.points, read_frames(portrait_clip), strict=True)
    ]
    assert np.abs(frames.astype(int) - crops).mean() < 2
    sound = load_audio(clip)
    assert abs(len(sound) / SAMPLE_RATE - 1.6) < 0.065
    lag = np.argmax(np.correlate(sound[:16000], waveform[800:15200], "valid")) - 800
    assert abs(lag) <= 16  # 1 ms


def test_name_with_dots(tmp_path, portrait_clip):
    """What follows a dot is no suffix to be replaced: two takes must not share one file."""
    for name in ("talk.v1.mp4", "talk.v2.mp4"):
        shutil.copy(portrait_clip, tmp_path / name)
    prepare.prepare(find_sources([tmp_path], NOWHERE, None), tmp_path / "out", SETTINGS, 10, jobs=1)
    ids = {line["id"] for line in read_jsonl(tmp_path / "out" / "manifest.jsonl")}
    assert len(ids) == 2
    assert {path.name for path in (tmp_path / "out" / "clips").iterdir()} == {
        f"{clip_id}{suffix}" for clip_id in ids for suffix in (".mp4", ".npz")
    }


@pytest.mark.parametrize("audio_delay_ms", [200, -200])
def test_late_sound_is_put_right(tmp_path, portrait_clip, audio_delay_ms):
    path = with_sound(tmp_path / "clip.mp4", portrait_clip, burst(at=0.8, seconds=1.6))
    line = prepare_one(path, tmp_path / "out", audio_late_ms=audio_delay_ms)
    assert line["audio_late_ms"] == audio_delay_ms
    # sound that comes 200 ms too late is moved forward, and the picture's last 200 ms have none
    assert line["num_frames"] == (35 if audio_delay_ms > 0 else 40)
    clip = tmp_path / "out" / "clips" / f"{line['id']}.mp4"
    assert onset(load_audio(clip)) == pytest.approx(0.8 - audio_delay_ms / 1000, abs=0.005)

    heard = load_audio(path)
    shifted = heard[3200:] if audio_delay_ms > 0 else np.concatenate([np.zeros(3200, np.float32), heard])
    with np.load(clip.with_suffix(".npz")) as arrays:
        expected = extract_features(shifted, "whisper", 40)[: line["num_frames"]]
        assert np.array_equal(arrays["features"], expected)
        assert len(arrays["landmarks"]) == len(list(read_frames(clip))) == line["num_frames"]


@pytest.mark.parametrize("audio_delay_ms", [120.0, -80.0])
def test_measured_offset_is_put_right(tmp_path, portrait_clip, monkeypatch, audio_delay_ms):
    path = with_sound(tmp_path / "clip.mp4", portrait_clip, burst(at=0.8, seconds=1.6))
    heard = load_audio(path)
    asked = []

    def measure(video, shots, waveform):
        asked.append((video, [(start, len(points)) for start, points, _ in shots], onset(waveform)))
        return AVOffset(audio_delay_ms, 0.25)

    monkeypatch.setattr(clips, "measure_offset", measure)
    monkeypatch.setattr(clips, "MIN_SYNC_FRAMES", 39)
    settings = replace(SETTINGS, min_sync_confidence=0.2)
    prepare.prepare([Source(path, "Bob", 40)], tmp_path / "out", settings, 10, jobs=1)
    (line,) = read_jsonl(tmp_path / "out" / "manifest.jsonl")
    # what the manifest said was put right before it was measured, and both are told together
    assert asked == [(path, [(0, 39)], pytest.approx(onset(heard) - 0.04, abs=1e-3))]
    assert (line["audio_late_ms"], line["sync_confidence"]) == (40 + audio_delay_ms, 0.25)
    clip = tmp_path / "out" / "clips" / f"{line['id']}.mp4"
    assert onset(load_audio(clip)) == pytest.approx(0.8 - 0.04 - audio_delay_ms / 1000, abs=0.005)


def test_sound_that_fits_nowhere_is_rejected(tmp_path, portrait_clip, monkeypatch):
    monkeypatch.setattr(clips, "measure_offset", lambda *args: AVOffset(0.0, 0.19))
    monkeypatch.setattr(clips, "MIN_SYNC_FRAMES", 40)
    settings = replace(SETTINGS, min_sync_confidence=0.2)
    prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", settings, 10, jobs=1)
    assert read_jsonl(tmp_path / "out" / "manifest.jsonl") == []
    (line,) = read_jsonl(tmp_path / "out" / "rejected.jsonl")
    assert line["reason"] == "the sound fits the picture nowhere within 15 frames (confidence below 0.2)"


def test_short_video_is_not_measured(tmp_path, portrait_clip, monkeypatch):
    monkeypatch.setattr(clips, "measure_offset", None)
    settings = replace(SETTINGS, min_sync_confidence=0.2)
    prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", settings, 10, jobs=1)
    (line,) = read_jsonl(tmp_path / "out" / "manifest.jsonl")
    assert (line["audio_late_ms"], line["sync_confidence"]) == (0, None)


@pytest.mark.parametrize(("seconds", "expected"), [(1.59, 39), (1.3, 32), (2.5, 40)])
def test_frames_without_sound_are_dropped(tmp_path, portrait_clip, seconds, expected, monkeypatch):
    path = tmp_path / "clip.mp4"
    shutil.copy(portrait_clip, path)
    waveform = burst(0.5, seconds).astype(np.float32)  # the exact length, which AAC would round up
    monkeypatch.setattr(clips, "load_audio", lambda path, flag: waveform)
    assert prepare_one(path, tmp_path / "out")["num_frames"] == expected


def test_sound_starts_with_the_shot(tmp_path, portrait_clip, monkeypatch):
    """A shot that begins at frame 12 has the sound and the features from 0.48 s on."""
    path = with_sound(tmp_path / "clip.mp4", portrait_clip, burst(at=0.88, seconds=1.6))
    whole = find_landmarks(path)
    monkeypatch.setattr(
        prepare, "find_landmarks", lambda *args, **kwargs: Landmarks(whole.points, whole.found, [(0, 12), (12, 40)])
    )
    line = prepare_one(path, tmp_path / "out")
    assert (line["start_frame"], line["num_frames"]) == (12, 28)
    clip = tmp_path / "out" / "clips" / f"{line['id']}.mp4"
    assert onset(load_audio(clip)) == pytest.approx(0.4, abs=0.005)
    with np.load(clip.with_suffix(".npz")) as arrays:
        assert np.array_equal(arrays["landmarks"], whole.points[12:])
        assert np.array_equal(arrays["features"], extract_features(load_audio(path), "whisper", 40)[12:])
    crop = FaceCrop.from_landmarks(whole.points[12], line["radius_px"], 64)
    expected = crop.extract(list(read_frames(path))[12])
    assert np.abs(next(read_frames(clip)).astype(int) - expected).mean() < 2


# --- going on after a stop ----------------------------------------------------------------------------------


def test_second_run_does_nothing(prepared_dataset, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(prepared_dataset, output)
    before = files_of(output)
    sources = find_sources([prepared_dataset.parent / "videos"], NOWHERE, None)
    prepare.prepare(sources, output, SETTINGS, 10, jobs=1)
    assert "2 of them done before, 0 to do" in capsys.readouterr().out
    after = files_of(output)
    assert {name for name in before if "clips" in name and before[name] != after[name]} == set()
    assert read_jsonl(output / "manifest.jsonl") == read_jsonl(prepared_dataset / "manifest.jsonl")


@pytest.mark.parametrize("cut_off", [False, True])
def test_line_missing_from_the_manifest_is_done_again(prepared_dataset, tmp_path, cut_off):
    """`cut_off`: half of the line was still written when the machine stopped."""
    output = tmp_path / "out"
    shutil.copytree(prepared_dataset, output)
    before = files_of(output)
    first, second = (output / "manifest.jsonl").read_text().splitlines(keepends=True)
    (output / "manifest.jsonl").write_text(first + (second[: len(second) // 2] if cut_off else ""))
    prepare.prepare(find_sources([prepared_dataset.parent / "videos"], NOWHERE, None), output, SETTINGS, 10, jobs=1)
    assert read_jsonl(output / "manifest.jsonl") == [json.loads(first), json.loads(second)]
    after = files_of(output)
    redone = {name for name in before if name.startswith("clips/") and after[name] != before[name]}
    assert redone == {f"clips/{json.loads(second)['id']}{suffix}" for suffix in (".mp4", ".npz")}


def test_other_settings_are_refused(prepared_dataset, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(prepared_dataset, output)
    other = Settings(mouth_size=128, landmarks="dlib", audio_features="whisper")
    with pytest.raises(UserError, match=r"--output: .* was prepared with .*64.*, now asked for .*128"):
        prepare.prepare([], output, other, 10, jobs=1)


# --- bad videos ---------------------------------------------------------------------------------------------


def test_bad_files_do_not_stop_the_rest(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    text_file(videos / "text.mp4")
    no_face_video(videos / "no_sound.mp4")
    with_noise = no_face_video(tmp_path / "gradient.mp4")
    wav = tmp_path / "noise.wav"
    save_wav(wav, burst(0.1, 0.4))
    with VideoWriter(videos / "no_face.mp4", 256, 256, audio_paths=[wav]) as writer:
        for frame in read_frames(with_noise):
            writer.write(frame)
    talking_portrait(videos / "short.mp4", num_frames=MIN_FRAMES - 5)
    silent_video_without_audio(videos / "silent.mp4", num_frames=5)
    talking_portrait(videos / "good.mp4", num_frames=25)

    prepare.prepare(find_sources([videos], NOWHERE, None), tmp_path / "out", SETTINGS, 10, jobs=2)
    accepted = read_jsonl(tmp_path / "out" / "manifest.jsonl")
    assert [Path(line["source"]).name for line in accepted] == ["good.mp4"]
    reasons = {
        Path(line["source"]).name: line["reason"] for line in read_jsonl(tmp_path / "out" / "rejected.jsonl")
    }
    assert set(reasons) == {"text.mp4", "no_sound.mp4", "no_face.mp4", "short.mp4", "silent.mp4"}
    assert "expected a video" in reasons["text.mp4"]
    assert "expected an audio track, found none" in reasons["no_sound.mp4"] == reasons["silent.mp4"]
    assert "no face found in any of the 10 frames" in reasons["no_face.mp4"]
    assert reasons["short.mp4"] == "shot shorter than 20 frames"
    out = capsys.readouterr().out
    assert "train: 1 clips, 1 people" in out or "val: 1 clips, 1 people" in out
    assert "rejected: 5 videos" in out
    assert not list((tmp_path / "out").rglob(".*"))


def test_dask_cluster(tmp_path, portrait_clip):
    """Two videos on a cluster of two worker processes give the same as here."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("bob.mp4", "joe.mp4"):
        shutil.copy(portrait_clip, videos / name)
    sources = find_sources([videos], NOWHERE, None)
    prepare.prepare(sources, tmp_path / "here", SETTINGS, 10, jobs=1)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        prepare.prepare(sources, tmp_path / "there", SETTINGS, 10, jobs=1, scheduler=cluster.scheduler_address)
    here, there = (read_jsonl(tmp_path / name / "manifest.jsonl") for name in ("here", "there"))
    assert sorted(here, key=str) == sorted(there, key=str)
    for line in here:
        a, b = (np.load(tmp_path / name / "clips" / f"{line['id']}.npz") for name in ("here", "there"))
        for array in ("landmarks", "features"):
            np.testing.assert_allclose(a[array], b[array], atol=1e-3)


def test_no_scheduler_there(tmp_path, portrait_clip):
    with pytest.raises(UserError, match=r"--scheduler tcp://127\.0\.0\.1:9: expected a Dask scheduler, found"):
        prepare.prepare(
            [Source(portrait_clip, "Bob", 0)], tmp_path, SETTINGS, 10, jobs=1, scheduler="tcp://127.0.0.1:9"
        )


def test_unexpected_error_is_told_and_tried_again(tmp_path, portrait_clip, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(clips, "find_landmarks", broken)
    prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", SETTINGS, 10, jobs=1)
    assert f"{portrait_clip}: ZeroDivisionError: oh" in capsys.readouterr().out
    monkeypatch.undo()
    prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", SETTINGS, 10, jobs=1)
    assert [clip["person"] for clip in read_jsonl(tmp_path / "out" / "manifest.jsonl")] == ["Bob"]


def test_missing_model_rejects_no_video(tmp_path, portrait_clip, monkeypatch):
    def missing(*args):
        raise UserError("whisper: cannot be had")

    monkeypatch.setattr(prepare, "extract_features", missing)
    with pytest.raises(UserError, match="cannot be had"):
        prepare.prepare([Source(portrait_clip, "Bob", 0)], tmp_path / "out", SETTINGS, 10, jobs=1)
    assert read_jsonl(tmp_path / "out" / "rejected.jsonl") == []


def shot(num_frames: int = 30, radius_px: float = 50, growth: float = 1.0, found: float = 1.0) -> Landmarks:
    points = np.zeros((num_frames, 68, 2), np.float32)
    points[:, 54, 0] = 2 * radius_px / 1.05 * np.linspace(1, growth, num_frames)
    return Landmarks(points, np.arange(num_frames) < found * num_frames, [(0, num_frames)])


@pytest.mark.parametrize(
    ("landmarks", "reason"),
    [
        (shot(), None),
        (shot(20), None),
        (shot(19), "shot shorter than 20 frames"),
        (shot(found=0.85), None),
        (shot(found=0.75), "face seen in less than 80%"),
        (shot(radius_px=25), None),
        (shot(radius_px=23), "face radius below 24 px"),
        (shot(growth=1.45), None),
        (shot(growth=1.55), "face size changes by more than 1.5 times"),
    ],
)
def test_unfit_reason(landmarks, reason):
    given = unfit_reason(landmarks, 0, len(landmarks.points))
    assert given is None if reason is None else given.startswith(reason)


def test_authors_limit_on_growth():
    """Every shot that the authors accept passes; those rejected for growing (2.2 times) do not."""
    golden = np.load(DATA / "crop_radius.npz")
    points = np.repeat(golden["landmarks"], 3, axis=1).astype(np.float32)  # 27 frames
    found = np.ones(27, bool)
    reasons = [unfit_reason(Landmarks(p, found, [(0, 27)]), 0, 27) for p in points]
    growing = np.array([bool(reason and "changes" in reason) for reason in reasons])
    assert growing.sum() == 8
    assert not (golden["ok"] & growing).any()


# --- command line -------------------------------------------------------------------------------------------


def run_main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, arguments)])
    try:
        prepare.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.mp4", "--output", "out"], "INPUT: no such file or folder: absent.mp4"),
        (["{clip}", "--output", "out", "--mouth-size", "60"], "--mouth-size: expected a multiple of 8, found 60"),
        (["{clip}", "--output", "out", "--val-percent", "101"], "--val-percent: expected 0 to 100, found 101"),
        (["{clip}", "--output", "out", "--jobs", "0"], "--jobs: expected 1 or more, found 0"),
        (["{clip}", "--output", "{clip}"], "--output: cannot make the folder"),
    ],
)
def test_command_line_refuses(tmp_path, monkeypatch, capsys, portrait_clip, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *(a.format(clip=portrait_clip) for a in arguments)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and words in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path, monkeypatch, capsys, portrait_clip):
    arguments = [portrait_clip, "--output", tmp_path / "out", "--mouth-size", 64, "--person", "Bob", "--jobs", 1]
    assert run_main(monkeypatch, *arguments) == 0
    (line,) = read_jsonl(tmp_path / "out" / "manifest.jsonl")
    assert (line["person"], line["num_frames"]) == ("Bob", 40)
    assert f"dataset: {tmp_path / 'out'}" in capsys.readouterr().out
    with av.open(str(tmp_path / "out" / "clips" / f"{line['id']}.mp4")) as container:
        video = container.streams.video[0]
        assert (video.width, video.height, video.average_rate, video.frames) == (80, 104, 25, 40)
        assert container.streams.audio[0].codec_context.name == "aac"


def test_interrupted(tmp_path, monkeypatch, capsys, portrait_clip):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "prepare", stop)
    assert run_main(monkeypatch, portrait_clip, "--output", tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted; nothing half-written is left\n"
