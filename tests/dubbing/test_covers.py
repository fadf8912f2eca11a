"""What covers a mouth: the marked pixels of portraits with and without covers, and from given probabilities."""

import cv2
import numpy as np
import pytest
import torch

from data_processing.face.crop import FaceCrop
from dubbing import covers
from dubbing.audio_stream import AudioStream
from dubbing.compositor import Compositor
from dubbing.covers import CoverFinder
from dubbing.frame_sources import LiveFrameSource
from dubbing.pipeline import DubbingPipeline
from dubbing.speaker import Speaker
from models.cover_net import SIDE, TOP
from models.crop_layout import crop_size, mouth_box
from tests.support.media import portraits, speech_like

BOX = mouth_box(64)


@pytest.fixture(scope="module")
def finder() -> CoverFinder:
    return CoverFinder(torch.device("cpu"))


def face_crops(count: int) -> list[np.ndarray]:
    """Face crops at S = 64 of a portrait, with camera noise."""
    frame = next(portraits(np.zeros(1), (256, 256), np.zeros(16000)))
    crop = FaceCrop(left=98, top=104, pixel_size=0.75, mouth_size=64).extract(frame)
    noise = np.random.default_rng(0).normal(0, 2, (count, *crop.shape))
    return list(np.clip(crop + noise, 0, 255).astype(np.uint8))


def test_an_uncovered_face_has_empty_masks(finder: CoverFinder) -> None:
    crops = face_crops(12)
    for change in (lambda crop: crop, lambda crop: crop[:, ::-1], lambda crop: np.uint8(0.8 * crop)):
        views = finder.views([change(crop) for crop in crops[:3]])
        masks = finder.masks([change(crop) for crop in crops[3:]], views)
        assert len(masks) == 9
        assert masks[0].shape == crop_size(64)
        assert all(not mask.any() for mask in masks)


@pytest.mark.parametrize("colour", [(20, 20, 25), (60, 120, 220), (240, 240, 240)])
def test_a_bar_before_the_lips_is_marked(finder: CoverFinder, colour: tuple) -> None:
    bar = np.zeros(crop_size(64), bool)
    bar[:, 36:50] = True
    crops = face_crops(6)
    covered = [np.where(bar[..., None], np.uint8(colour), crop) for crop in crops]
    for mask in finder.masks(covered[3:], finder.views(crops[:3])):
        assert mask[BOX][bar[BOX]].mean() > 0.9
        assert mask[BOX][~bar[BOX]].mean() < 0.1


def test_crops_of_any_size(finder: CoverFinder) -> None:
    """The same masks from crops at S = 64 and S = 128, and with one reference frame instead of three."""
    crops = face_crops(4)
    crops[3][40:70, 20:40] = 10
    large = [cv2.resize(crop, (160, 208), interpolation=cv2.INTER_NEAREST) for crop in crops]
    small_mask, large_mask = (finder.masks(some[3:], finder.views(some[:1] * 3))[0] for some in (crops, large))
    assert np.array_equal(small_mask, large_mask)
    assert np.array_equal(finder.masks(crops[3:], finder.views(crops[:1]))[0], small_mask)


class Given(torch.nn.Module):
    """Instead of the network: these probabilities (B, SIDE, SIDE)."""

    def __init__(self, probabilities: np.ndarray) -> None:
        super().__init__()
        self.probabilities = torch.from_numpy(probabilities)

    def forward(self, source: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return torch.logit(self.probabilities)


def masks_of(probabilities: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    monkeypatch.setattr(covers, "load_cover_net", lambda path, device: Given(probabilities.astype(np.float32)))
    finder = CoverFinder(torch.device("cpu"))
    crops = [np.zeros((*crop_size(64), 3), np.uint8)] * len(probabilities)
    return finder.masks(crops, finder.views(crops[:1]))


def test_unsure_and_tiny_regions_are_no_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    probability = np.full((1, SIDE, SIDE), 0.01)
    probability[0, 10:30, 10:30] = 0.7  # unsure throughout
    probability[0, 40:42, 40:42] = 0.99  # tiny
    assert not masks_of(probability, monkeypatch)[0].any()
    probability[0, 20:24, 20:24] = 0.99  # sure at one place: the whole region
    mask = masks_of(probability, monkeypatch)[0]
    assert mask[TOP + 12 : TOP + 28, 12:28].min() > 0.99
    assert mask[TOP + 36 :, 36:].max() == 0
    assert mask[:TOP].max() < 0.01


def test_what_shows_in_a_single_frame_is_no_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    probability = np.full((8, SIDE, SIDE), 0.01)
    probability[3, 20:40, 20:40] = 0.99
    probability[5:, 50:60, 50:60] = 0.99
    masks = masks_of(probability, monkeypatch)
    assert [bool(mask[TOP + 25, 25]) for mask in masks] == [False] * 8
    assert [bool(mask[TOP + 55, 55]) for mask in masks] == [False] * 5 + [True] * 3


@pytest.mark.slow
def test_a_dub_keeps_what_comes_before_the_mouth(pipeline: DubbingPipeline) -> None:
    """A bar in the last ten of 30 frames, in a dub with and without keeping covers."""
    frames = list(portraits(np.arange(30) / 25, (256, 256), np.zeros(20000)))
    bar = slice(132, 176), slice(120, 132)
    for frame in frames[20:]:
        frame[130:, bar[1]] = (20, 90, 200)
    changes = []
    for keep in (True, False):
        source = LiveFrameSource((frame.copy() for frame in frames), 25)
        audio = AudioStream(iter([speech_like(1.2, 1)]), "whisper")
        speaker = Speaker(pipeline.generator, source, audio, look_ahead_s=2, texture=False, keep_covers=keep)
        dubbed = [pair.dubbed for pair in Compositor(source, [speaker]).frames()]
        changes.append(
            [np.abs(dub[bar].astype(int) - frame[bar]).mean() for dub, frame in zip(dubbed, frames, strict=True)]
        )
    kept, changed = np.array(changes)[:, 22:]
    assert changed.mean() > 5
    assert kept.mean() < changed.mean() / 4
