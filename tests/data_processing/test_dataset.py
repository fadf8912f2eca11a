"""dataset: samples rebuilt by hand from clips whose pixels tell which frame and column they are."""

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_processing import dataset
from data_processing.audio.features import extract_features
from data_processing.dataset import (
    REFERENCE_GAP,
    Clip,
    SyncBatches,
    TrainingBatches,
    load_clips,
    make_batch,
    mouth_stack,
    reference_indices,
)
from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from utils.errors import UserError
from utils.files import read_jsonl


def made_clip(number: int, num_frames: int) -> Clip:
    """S = 16: red is the frame's index, green the column, blue the clip's number; features count 10 a row."""
    frames = np.empty((num_frames, 26, 20, 3), np.uint8)
    frames[..., 0] = np.arange(num_frames)[:, None, None]
    frames[..., 1] = np.arange(20)
    frames[..., 2] = number
    features = 10 * np.arange(num_frames)[:, None] + np.arange(29)
    return Clip(
        f"clip{number}",
        f"person{number}",
        frames,
        features.astype(np.float32),
        np.zeros((len(frames), 68, 2), np.float32),
    )


CLIPS = [made_clip(0, 100), made_clip(1, 50), made_clip(2, 30)]


@pytest.fixture
def copy(prepared_dataset, tmp_path) -> Path:
    return Path(shutil.copytree(prepared_dataset, tmp_path / "prepared"))


# --- loading ------------------------------------------------------------------------------------------------


def test_load_clips(prepared_dataset):
    (bob,), (joe,) = (load_clips(prepared_dataset, split, 64, "whisper") for split in ("train", "val"))
    assert (bob.speaker, joe.speaker) == ("Bob", "Joe")
    path = prepared_dataset / "clips" / f"{bob.id}.mp4"
    assert np.array_equal(bob.frames, list(read_frames(path)))
    with np.load(path.with_suffix(".npz")) as arrays:
        assert np.array_equal(bob.features, arrays["features"])
    assert bob.frames.dtype == np.uint8 and bob.features.dtype == np.float32


@pytest.mark.parametrize("mouth_size", [32, 128])
def test_load_clips_at_another_size(prepared_dataset, mouth_size):
    (clip,) = load_clips(prepared_dataset, "train", mouth_size, "whisper")
    (own,) = load_clips(prepared_dataset, "train", 64, "whisper")
    assert clip.frames.shape == (40, mouth_size * 13 // 8, mouth_size * 5 // 4, 3)
    back = cv2.resize(clip.frames[7], (80, 104), interpolation=cv2.INTER_LINEAR)
    assert np.abs(back.astype(int) - own.frames[7]).mean() < 6


def test_other_features_come_from_the_clips_own_sound(copy, monkeypatch):
    (clip,) = load_clips(copy, "train", 64, "mel")
    waveform = load_audio(copy / "clips" / f"{clip.id}.mp4")
    np.testing.assert_array_equal(clip.features, extract_features(waveform, "mel", 40))
    assert len(clip.features) == len(clip.frames)
    assert clip.features.std() > 0.1
    monkeypatch.setattr(dataset, "extract_features", None)  # the second time they are read
    (again,) = load_clips(copy, "train", 64, "mel")
    np.testing.assert_array_equal(again.features, clip.features)
    (copy / "features" / "mel" / f"{clip.id}.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=rf"{clip.id}\.npy: cannot be read"):
        load_clips(copy, "train", 64, "mel")


def test_load_clips_refuses(prepared_dataset, copy, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"--data: expected a prepared dataset, found no manifest\.jsonl"):
        load_clips(tmp_path / "other", "train", 64, "whisper")
    manifest = copy / "manifest.jsonl"
    manifest.write_text("".join(line for line in manifest.read_text().splitlines(True) if "Joe" not in line))
    with pytest.raises(UserError, match="no clip in its val split"):
        load_clips(copy, "val", 64, "whisper")


def no_video(path):
    path.unlink()


def no_arrays(path):
    path.with_suffix(".npz").unlink()


def broken_arrays(path):
    path.with_suffix(".npz").write_bytes(b"PK\x03\x04 not really")


def no_features(path):
    np.savez(path.with_suffix(".npz"), landmarks=np.zeros((40, 68, 2)))


def pickled_features(path):
    np.savez(path.with_suffix(".npz"), features=np.array([{}] * 40, object))


def fewer_features(path):
    np.savez(path.with_suffix(".npz"), features=np.zeros((39, 29)))


@pytest.mark.parametrize(
    "damage", [no_video, no_arrays, broken_arrays, no_features, pickled_features, fewer_features]
)
def test_damaged_clip_is_named(copy, damage):
    (line,) = (line for line in read_jsonl(copy / "manifest.jsonl") if line["person"] == "Bob")
    damage(copy / "clips" / f"{line['id']}.mp4")
    with pytest.raises(UserError, match=f"--data: .*{line['id']}"):
        load_clips(copy, "train", 64, "whisper")
    assert load_clips(copy, "val", 64, "whisper")


@pytest.mark.parametrize("num_frames", [39, 41])
def test_clip_of_another_length_is_named(copy, num_frames):
    manifest = copy / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"num_frames": 40', f'"num_frames": {num_frames}'))
    with pytest.raises(UserError, match=rf"--data: clip bob-\S+: expected {num_frames} frames, found 40"):
        load_clips(copy, "train", 64, "whisper")


def test_what_does_not_fit_into_memory_is_read_from_files(copy, monkeypatch, capsys):
    (held,) = load_clips(copy, "train", 32, "whisper")
    assert not (copy / "decoded").exists()
    monkeypatch.setattr(dataset, "sysconf", lambda name: 100)  # 10 kB free
    (read,) = load_clips(copy, "train", 32, "whisper")
    assert "do not fit into" in capsys.readouterr().out
    assert isinstance(read.frames, np.memmap) and np.array_equal(read.frames, held.frames)
    batches = [TrainingBatches([clip], 2, 2, 1, seed=0)[0] for clip in (held, read)]
    assert torch.equal(batches[0].target, batches[1].target)

    monkeypatch.setattr(dataset, "read_frames", None)  # decoded once
    (again,) = load_clips(copy, "train", 32, "whisper")
    assert np.array_equal(again.frames, held.frames)


def test_no_room_for_decoded_files(copy, monkeypatch):
    monkeypatch.setattr(dataset, "sysconf", lambda name: 100)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset.np, "save", full)
    with pytest.raises(UserError, match=r"npy: cannot be written: No space"):
        load_clips(copy, "train", 32, "whisper")
    assert list((copy / "decoded" / "32").iterdir()) == []


# --- samples ------------------------------------------------------------------------------------------------


def test_make_batch():
    references = np.array([9, 3, 20])
    batch = make_batch([(CLIPS[0], 12, references, 1.0, 0.0, False), (CLIPS[1], 0, references, 1.0, 0.0, True)])
    assert batch.target.shape == (2, 3, 26, 20)
    assert batch.references.shape == (2, 9, 26, 20)
    assert batch.audio_window.shape == (2, 29, 5)
    assert all(part.dtype == torch.float32 for part in batch[:4])
    assert batch.clip_ids == ["clip0", "clip1"]

    columns = torch.arange(20) / 255
    for sample, index, number, order in [(0, 12, 0, columns), (1, 0, 1, columns.flip(0))]:
        assert torch.allclose(batch.target[sample, 0], torch.tensor(index / 255))
        assert torch.allclose(batch.target[sample, 1], order.expand(26, 20))
        assert torch.allclose(batch.target[sample, 2], torch.tensor(number / 255))
        for n, reference in enumerate(references.tolist()):  # all mirrored together, in the order given
            assert torch.allclose(batch.references[sample, 3 * n], torch.tensor(reference / 255))
            assert torch.allclose(batch.references[sample, 3 * n + 1], order.expand(26, 20))
    rows = 10 * torch.tensor([[10, 11, 12, 13, 14], [0, 0, 0, 1, 2]])
    assert torch.equal(batch.audio_window, (rows[:, None] + torch.arange(29)[:, None]).float())


def test_make_batch_of_clips():
    looks = (1.0, 0.0, False)
    samples = [
        (CLIPS[0], np.arange(12, 17), np.array([90, 60]), *looks),
        (CLIPS[1], np.arange(5), np.array([9, 3]), *looks),
    ]
    batch = make_batch(samples)
    assert batch.target.shape == (10, 3, 26, 20)
    assert batch.references.shape == (2, 6, 26, 20)
    red = torch.tensor([12, 13, 14, 15, 16, 0, 1, 2, 3, 4])
    assert torch.allclose(batch.target[:, 0], red[:, None, None] / 255)
    assert torch.equal(batch.audio_window[:, 0, 2], 10.0 * red)  # each frame has its own window
    steps = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17, 18], [0, 0, 0, 1, 2, 3, 4, 5, 6]])
    assert torch.equal(batch.sync_audio, 10.0 * steps[:, None] + torch.arange(29)[:, None])
    single = make_batch([(CLIPS[0], 12, *samples[0][2:]), (CLIPS[0], 16, *samples[0][2:])])
    assert torch.equal(single.target, batch.target[[0, 4]])
    assert torch.equal(single.audio_window, batch.audio_window[[0, 4]])


def test_light_is_changed_alike_in_all_images():
    batch = make_batch([(CLIPS[0], 50, np.array([90, 10]), 1.1, -0.05, False)])
    for image, red in [(batch.target[0], 50), (batch.references[0, :3], 90), (batch.references[0, 3:], 10)]:
        expected = torch.tensor([red, 7, 0])
        assert torch.allclose(image[:, 0, 7], (expected / 255 * 1.1 - 0.05).clamp(0, 1), atol=1e-6)


def test_references_are_apart_from_the_frame():
    rng = np.random.default_rng(0)
    seen = set()
    for index in range(30):
        for _ in range(30):
            chosen = reference_indices(rng, 30, index, 5)
            assert len(set(chosen.tolist())) == 5
            assert np.abs(chosen - index).min() >= REFERENCE_GAP
            seen |= set(chosen.tolist())
    assert seen == set(range(30))


def test_references_are_apart_from_the_whole_clip():
    rng = np.random.default_rng(0)
    seen = {frame for _ in range(200) for frame in reference_indices(rng, 40, np.arange(12, 17), 5).tolist()}
    assert seen == {*range(8), *range(21, 40)}  # frames 12 … 16, and REFERENCE_GAP to either side


@pytest.mark.parametrize(("num_frames", "distinct"), [(9, 5), (5, 5), (3, None), (1, None)])
def test_references_of_short_clips(num_frames, distinct):
    chosen = reference_indices(np.random.default_rng(0), num_frames, num_frames // 2, 5)
    assert chosen.shape == (5,)
    assert set(chosen.tolist()) <= set(range(num_frames))
    assert distinct is None or len(set(chosen.tolist())) == distinct


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True)) and a.clip_ids == b.clip_ids


def test_batch_is_a_function_of_seed_and_step():
    batches = TrainingBatches(CLIPS, batch_size=4, num_references=5, num_steps=10, seed=7)
    again = TrainingBatches(CLIPS, batch_size=4, num_references=5, num_steps=99, seed=7)
    forwards, backwards = [batches[k] for k in range(10)], [again[k] for k in reversed(range(10))][::-1]
    assert len(batches) == 10
    assert all(equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not equal(forwards[0], forwards[1])
    other = TrainingBatches(CLIPS, batch_size=4, num_references=5, num_steps=10, seed=8)
    assert not equal(other[0], forwards[0])
    assert not equal(other[0], forwards[1])  # nor is another seed the same sequence shifted


def test_person_power_leans_to_long_recordings():
    clips = [made_clip(0, 10), replace(made_clip(1, 30), speaker="person0"), made_clip(2, 20)]  # 40 and 20 frames
    evenly = TrainingBatches(clips, 4, 5, 1, 0).probabilities
    np.testing.assert_allclose(evenly, np.array([10, 30, 20]) / 60)
    leaning = TrainingBatches(clips, 4, 5, 1, 0, speaker_sampling_exponent=2.0).probabilities
    np.testing.assert_allclose(leaning, np.array([1600 * 0.25, 1600 * 0.75, 400]) / 2000)


def test_training_batches_of_clips_end_within_their_recording():
    batches = TrainingBatches([made_clip(0, 24)], 4, 5, 60, 0, clip_length=5)
    middles = torch.cat([batches[step].audio_window[:, 0, 2] / 10 for step in range(60)]).reshape(-1, 5)
    assert torch.equal(middles - middles[:, :1], torch.arange(5.0).expand(240, 5))
    assert (middles.min(), middles.max()) == (0, 23)


def test_mouth_stack():
    mouths = mouth_stack(CLIPS[0], 30)
    assert mouths.shape == (15, 16, 16) and mouths.dtype == np.float32
    np.testing.assert_allclose(mouths[::3], np.arange(28, 33)[:, None, None].repeat(16, 1).repeat(16, 2) / 255)
    np.testing.assert_allclose(mouths[1::3], np.arange(2, 18) / 255 * np.ones((5, 16, 1)), rtol=1e-6)
    np.testing.assert_allclose(mouth_stack(CLIPS[0], 30, right=2)[1, 0], np.arange(4, 20) / 255, rtol=1e-6)
    np.testing.assert_allclose(mouth_stack(CLIPS[0], 30, mirror=True)[1, 0], np.arange(17, 1, -1) / 255, rtol=1e-6)


def test_sync_batches():
    batches = SyncBatches(CLIPS, batch_size=8, num_steps=100, seed=0, num_negatives=2, negative_gap=10)
    foreign = 0
    for step in range(100):
        mouths, sounds, ids = batches[step]
        assert mouths.shape == (8, 15, 16, 16) and sounds.shape == (8, 3, 29, 9)
        matched = sounds[:, 0]
        middle = matched[:, 0, 4] / 10
        assert torch.equal(
            matched[:, 0] / 10,
            (middle[:, None] + torch.arange(-4, 5))
            .clamp(min=0)
            .minimum(torch.tensor([len(CLIPS[int(name[4:])].frames) - 1 for name in ids])[:, None]),
        )
        # the five frames are those of the middle of their sound: red grows by one a frame, whatever the light
        red = mouths[:, ::3, 0, 0].diff(dim=1)
        assert (red >= 0).all()
        wrong = sounds[:, 1:, 0, 4] / 10
        for name, right_at, wrong_at in zip(ids, middle.tolist(), wrong.tolist(), strict=True):
            num_frames = len(CLIPS[int(name[4:])].frames)
            foreign += sum(abs(right_at - at) < 10 or at >= num_frames - 2 for at in wrong_at)
    assert foreign > 300  # at least those too near, or too late, to be from the same clip
    alone = SyncBatches(CLIPS[:1], batch_size=8, num_steps=50, seed=0, num_negatives=1, negative_gap=10)
    middles = torch.cat([alone[k].sounds[:, :, 0, 4] for k in range(50)]) / 10
    gaps = (middles[:, 0] - middles[:, 1]).abs()
    assert (gaps >= 10).float().mean() > 0.7


def test_training_batches():
    batches = TrainingBatches(CLIPS, batch_size=8, num_references=5, num_steps=150, seed=0)
    clips, mirrored, indices = [], [], []
    for step in range(150):
        batch = batches[step]
        for image in (batch.target, batch.references):
            assert image.min() >= 0 and image.max() <= 1
        assert batch.target.shape == (8, 3, 26, 20) and batch.references.shape == (8, 15, 26, 20)
        clips += batch.clip_ids
        # the middle feature row is the drawn frame's own
        index = (batch.audio_window[:, 0, 2] / 10).long()
        indices += index.tolist()
        slope = batch.target[:, 1, 0, -1] - batch.target[:, 1, 0, 0]
        mirrored += (slope < 0).tolist()
        reference_slope = batch.references[:, 1::3, 0, -1] - batch.references[:, 1::3, 0, 0]
        # a reference is mirrored with its frame; red grows with the frame's index in all images alike
        assert ((reference_slope < 0) == (slope < 0)[:, None]).all()
        red = torch.cat([batch.target[:, None, 0, 0, 0], batch.references[:, ::3, 0, 0]], dim=1)
        later = red[:, 1:] - red[:, :1]
        bright = red.min(dim=1).values > 0  # where nothing was clipped, frames apart differ visibly
        assert (later[bright].abs() > (REFERENCE_GAP - 0.5) * 0.85 / 255).all()
    assert 0.45 < np.mean(mirrored) < 0.55
    # drawn evenly over frames: 100, 50 and 30 of 180
    share = np.array([clips.count(f"clip{k}") for k in range(3)]) / len(clips)
    assert np.abs(share - np.array([100, 50, 30]) / 180).max() < 0.05
    of_first = [index for index, clip in zip(indices, clips, strict=True) if clip == "clip0"]
    assert min(of_first) < 3 and max(of_first) > 96
