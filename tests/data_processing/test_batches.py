"""batches: samples of clips whose pixel values encode the frame, the column and the clip."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_processing.batches import (
    REFERENCE_GAP,
    SyncBatches,
    TrainingBatches,
    clip_probabilities,
    draw_clips,
    make_batch,
    mouth_stack,
    reference_indices,
    to_float,
    zoom_out,
)
from data_processing.dataset import Clip
from utils.errors import ParameterError


def numbered_clip(number: int, num_frames: int) -> Clip:
    """S = 16: red is the index of the frame, green the column, blue the number of the clip.

    Row t of the features is 10 t + 0, 1, 2, …
    """
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


CLIPS = [numbered_clip(0, 100), numbered_clip(1, 50), numbered_clip(2, 30)]


def test_make_batch():
    references = np.array([9, 3, 20])
    batch = make_batch([(CLIPS[0], 12, references, 1.0, 0.0, False), (CLIPS[1], 0, references, 1.0, 0.0, True)])
    assert batch.target.shape == (2, 3, 26, 20)
    assert batch.references.shape == (2, 9, 26, 20)
    assert batch.audio_window.shape == (2, 29, 5)
    assert all(part.dtype == torch.float32 for part in batch[:4])
    assert batch.target.min() >= 0 and batch.target.max() <= 1
    assert batch.clip_ids == ["clip0", "clip1"]

    columns = torch.arange(20) / 255
    for sample, index, number, order in [(0, 12, 0, columns), (1, 0, 1, columns.flip(0))]:
        assert torch.allclose(batch.target[sample, 0], torch.tensor(index / 255))
        assert torch.allclose(batch.target[sample, 1], order.expand(26, 20))
        assert torch.allclose(batch.target[sample, 2], torch.tensor(number / 255))
        for n, reference in enumerate(references.tolist()):  # mirrored like the target, in the given order
            assert torch.allclose(batch.references[sample, 3 * n], torch.tensor(reference / 255))
            assert torch.allclose(batch.references[sample, 3 * n + 1], order.expand(26, 20))
    rows = 10 * torch.tensor([[10, 11, 12, 13, 14], [0, 0, 0, 1, 2]])
    assert torch.equal(batch.audio_window, (rows[:, None] + torch.arange(29)[:, None]).float())


def test_make_batch_of_consecutive_frames():
    augmentation = (1.0, 0.0, False)
    samples = [
        (CLIPS[0], np.arange(12, 17), np.array([90, 60]), *augmentation),
        (CLIPS[1], np.arange(5), np.array([9, 3]), *augmentation),
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


def test_target_and_references_have_the_same_gain_and_bias():
    batch = make_batch([(CLIPS[0], 50, np.array([90, 10]), 1.1, -0.05, False)])
    for image, red in [(batch.target[0], 50), (batch.references[0, :3], 90), (batch.references[0, 3:], 10)]:
        expected = (torch.tensor([red, 7, 0]) / 255 * 1.1 - 0.05).clamp(0, 1)
        assert torch.allclose(image[:, 0, 7], expected, atol=0.5 / 255 + 1e-6)  # in uint8


def test_references_keep_their_distance_from_the_target():
    rng = np.random.default_rng(0)
    seen = set()
    for index in range(30):
        for _ in range(30):
            chosen = reference_indices(rng, 30, index, 5)
            assert len(set(chosen.tolist())) == 5
            assert np.abs(chosen - index).min() >= REFERENCE_GAP
            seen |= set(chosen.tolist())
    assert seen == set(range(30))


def test_references_keep_their_distance_from_all_target_frames():
    rng = np.random.default_rng(0)
    seen = {frame for _ in range(200) for frame in reference_indices(rng, 40, np.arange(12, 17), 5).tolist()}
    assert seen == {*range(8), *range(21, 40)}  # without frames 12 … 16 and REFERENCE_GAP on either side


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
    assert not equal(other[0], forwards[1])  # another seed is not the same sequence shifted


def test_speaker_sampling_exponent():
    clips = [
        numbered_clip(0, 10),
        replace(numbered_clip(1, 30), speaker="person0"),
        numbered_clip(2, 20),
    ]  # 40 and 20 frames
    uniform = clip_probabilities(clips, 1.0)
    np.testing.assert_allclose(uniform, np.array([10, 30, 20]) / 60)
    favouring_long = clip_probabilities(clips, 2.0)
    np.testing.assert_allclose(favouring_long, np.array([1600 * 0.25, 1600 * 0.75, 400]) / 2000)
    batches = TrainingBatches(clips, 200, 1, 3, 0, speaker_sampling_exponent=2.0)
    drawn = [clip_id for step in range(3) for clip_id in batches[step].clip_ids]
    assert abs(drawn.count("clip1") / 600 - 0.6) < 0.08


def test_drawn_clips_are_those_of_numpy():
    probabilities = np.random.default_rng(1).dirichlet(np.ones(50))
    expected = np.random.default_rng(2).choice(50, 100, p=probabilities)
    assert draw_clips(np.random.default_rng(2), np.cumsum(probabilities), 100) == expected.tolist()


def test_consecutive_frames_stay_within_their_clip():
    batches = TrainingBatches([numbered_clip(0, 24)], 4, 5, 60, 0, clip_length=5)
    middles = torch.cat([batches[step].audio_window[:, 0, 2] / 10 for step in range(60)]).reshape(-1, 5)
    assert torch.equal(middles - middles[:, :1], torch.arange(5.0).expand(240, 5))
    assert (middles.min(), middles.max()) == (0, 23)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_clips_that_are_too_short_are_counted_and_not_sampled(caplog, exponent):
    """Batches are those of a dataset without them."""
    clips = [numbered_clip(0, 4), numbered_clip(1, 10), replace(numbered_clip(2, 2), speaker="person1"), CLIPS[0]]
    options = {"clip_length": 5, "speaker_sampling_exponent": exponent}
    batches, without = (TrainingBatches(part, 4, 1, 20, 0, **options) for part in (clips, [clips[1], clips[3]]))
    assert all(equal(batches[step], without[step]) for step in range(20))
    (record,) = caplog.records
    message = "2 of 4 clips have fewer than 5 frames and are not trained on; the shortest has 2"
    assert (record.getMessage(), record.parameter, record.levelname) == (message, "data", "WARNING")
    sync = SyncBatches(clips, 4, 20, 0, num_negatives=2, negative_gap=2, speaker_sampling_exponent=exponent)
    assert {name for step in range(20) for name in sync[step].clip_ids} <= {"clip1", "clip0"}
    with pytest.raises(ParameterError, match=r"^a sample needs clips of 101 frames or more, the longest has 100$"):
        TrainingBatches(clips, 4, 1, 20, 0, clip_length=101)


def test_mouth_stack():
    mouths = mouth_stack(CLIPS[0], 30)
    assert mouths.shape == (15, 16, 16) and mouths.dtype == np.uint8
    assert (mouths[::3] == np.arange(28, 33)[:, None, None]).all()
    assert (mouths[1::3] == np.arange(2, 18)).all()
    assert (mouth_stack(CLIPS[0], 30, right=2)[1, 0] == np.arange(4, 20)).all()
    assert (mouth_stack(CLIPS[0], 30, mirror=True)[1, 0] == np.arange(17, 1, -1)).all()


def test_sync_batches():
    batches = SyncBatches(CLIPS, batch_size=8, num_steps=100, seed=0, num_negatives=2, negative_gap=10)
    mismatched = 0
    for step in range(100):
        mouths, audio, ids = batches[step]
        assert mouths.shape == (8, 15, 16, 16) and audio.shape == (8, 3, 29, 9)
        matched = audio[:, 0]
        middle = matched[:, 0, 4] / 10
        assert torch.equal(
            matched[:, 0] / 10,
            (middle[:, None] + torch.arange(-4, 5))
            .clamp(min=0)
            .minimum(torch.tensor([len(CLIPS[int(name[4:])].frames) - 1 for name in ids])[:, None]),
        )
        # the five frames are those in the middle of the audio: red grows with the frame at any gain and bias
        red = mouths[:, ::3, 0, 0].int().diff(dim=1)
        assert (red >= 0).all()
        negatives = audio[:, 1:, 0, 4] / 10
        for name, matched_at, negatives_at in zip(ids, middle.tolist(), negatives.tolist(), strict=True):
            num_frames = len(CLIPS[int(name[4:])].frames)
            mismatched += sum(abs(matched_at - at) < 10 or at >= num_frames - 2 for at in negatives_at)
    assert mismatched > 300  # too near, or beyond its end: these must come from other clips
    single_clip = SyncBatches(CLIPS[:1], batch_size=8, num_steps=50, seed=0, num_negatives=1, negative_gap=10)
    middles = torch.cat([single_clip[k].audio[:, :, 0, 4] for k in range(50)]) / 10
    gaps = (middles[:, 0] - middles[:, 1]).abs()
    assert (gaps >= 10).float().mean() > 0.7


def test_training_batches():
    batches = TrainingBatches(CLIPS, batch_size=8, num_references=5, num_steps=150, seed=0)
    clips, mirrored, indices = [], [], []
    for step in range(150):
        batch = batches[step]
        assert batch.target.dtype == batch.references.dtype == torch.uint8
        assert batch.target.shape == (8, 3, 26, 20) and batch.references.shape == (8, 15, 26, 20)
        clips += batch.clip_ids
        # the middle feature row is that of the target frame
        index = (batch.audio_window[:, 0, 2] / 10).long()
        indices += index.tolist()
        batch = batch._replace(target=to_float(batch.target), references=to_float(batch.references))
        slope = batch.target[:, 1, 0, -1] - batch.target[:, 1, 0, 0]
        mirrored += (slope < 0).tolist()
        reference_slope = batch.references[:, 1::3, 0, -1] - batch.references[:, 1::3, 0, 0]
        # a reference is mirrored with its target; red grows with the index of the frame in all images
        assert ((reference_slope < 0) == (slope < 0)[:, None]).all()
        red = torch.cat([batch.target[:, None, 0, 0, 0], batch.references[:, ::3, 0, 0]], dim=1)
        later = red[:, 1:] - red[:, :1]
        bright = red.min(dim=1).values > 0  # where no value was clipped, distant frames differ measurably
        assert (later[bright].abs() > (REFERENCE_GAP - 0.5) * 0.85 / 255).all()
    assert 0.45 < np.mean(mirrored) < 0.55
    # sampled evenly over frames: 100, 50 and 30 of 180
    fractions = np.array([clips.count(f"clip{k}") for k in range(3)]) / len(clips)
    assert np.abs(fractions - np.array([100, 50, 30]) / 180).max() < 0.05
    of_first = [index for index, clip in zip(indices, clips, strict=True) if clip == "clip0"]
    assert min(of_first) < 3 and max(of_first) > 96


def test_shards_together_are_the_whole_batch():
    shards = [range(rank, 4, 2) for rank in range(2)]
    whole, *parts = (TrainingBatches(CLIPS, 4, 2, 1, seed=0, shard=shard)[0] for shard in (None, *shards))
    assert torch.equal(torch.stack([part.target for part in parts], dim=1).flatten(0, 1), whole.target)
    assert whole.clip_ids == parts[0].clip_ids == parts[1].clip_ids
    whole, *parts = (SyncBatches(CLIPS, 4, 1, 0, 2, 10, shard=shard)[0] for shard in (None, *shards))
    assert torch.equal(torch.stack([part.audio for part in parts], dim=1).flatten(0, 1), whole.audio)


def test_each_frame_of_a_clip_may_have_its_own_references():
    options = {"clip_length": 3, "augment": False}
    shared, own = (
        TrainingBatches([CLIPS[0]], 2, 4, 1, seed=0, references_per_frame=per_frame, **options)[0]
        for per_frame in (False, True)
    )
    assert shared.references.shape == (2, 12, 26, 20) and own.references.shape == (6, 12, 26, 20)
    index, references = own.target[:, 0, 0, 0].int(), own.references[:, ::3, 0, 0].int()  # red is the frame index
    assert len({tuple(row) for row in references.tolist()}) == 6
    for sample in (slice(0, 3), slice(3, 6)):  # as far from all frames of the clip as shared ones
        assert (references[sample].flatten()[:, None] - index[sample]).abs().min() >= REFERENCE_GAP
    assert torch.equal(own.target[:, 1], torch.arange(20, dtype=torch.uint8).expand(6, 26, 20))  # as it is


def test_zoom_out_shows_more_around_the_anchor():
    """S = 32: the crop's anchor is between the pixels 15 and 16 of rows, and 19 and 20 of columns."""
    rows, columns = np.mgrid[:52, :40]
    crop = np.stack([4 * rows, 5 * columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    zoomed = zoom_out(crop, 1.1)
    inside = (slice(2, 46), slice(3, 37))
    assert np.abs(zoomed[..., 0] - 4 * (15.5 + 1.1 * (rows - 15.5)))[inside].max() < 1
    assert np.abs(zoomed[..., 1] - 5 * (19.5 + 1.1 * (columns - 19.5)))[inside].max() < 1
    assert zoomed[-1, 20, 0] < 4 * 51  # reflected: nothing is below the last row
    assert zoom_out(crop, 1) is crop


def test_crop_scale_jitter_is_one_scale_for_the_target_and_one_for_each_reference():
    crop = np.zeros((26, 20, 3), np.uint8)
    crop[:, :, 1] = 12 * np.arange(20)
    clip = replace(CLIPS[0], frames=np.broadcast_to(crop, (100, 26, 20, 3)))
    options = {"clip_length": 5, "augment": False, "crop_scale_jitter": 0.2}
    batch = TrainingBatches([clip], 8, 5, 1, seed=1, **options)[0]

    def slopes(green: torch.Tensor) -> torch.Tensor:  # of the middle of a row
        return (green[..., 13, 14].float() - green[..., 13, 5].float()) / 108

    targets = slopes(batch.target[:, 1].unflatten(0, (8, 5)))
    assert torch.equal(targets, targets[:, :1].expand(8, 5))
    scales = torch.cat([targets[:, 0], slopes(batch.references[:, 1::3]).flatten()])
    assert scales.min() > 0.97 and scales.max() < 1.23
    assert len(scales.unique()) > 6 and scales.std() > 0.03
