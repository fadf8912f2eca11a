"""Texture: detail of other frames comes back at the right place, and only where they agree."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from data_processing.face.crop import FaceCrop
from dubbing.light import LightChange
from dubbing.texture import MAX_SIZE, ZERO, Candidate, ShotTexture
from models.crop_layout import crop_size, lips_box

S = 64
CROP = FaceCrop(left=40.3, top=30.6, pixel_size=4.0, mouth_size=S)
INSIDE = slice(220, 400), slice(120, 280)  # source pixels around the lips, away from the border of the crop
NO_CHANGE = LightChange(np.ones(3), np.zeros(3))


def textured(seed: int = 0, fine: float = 12) -> np.ndarray:
    """A frame (520, 420, 3) uint8: large shapes, which crops of any size show, and fine noise, which none does."""
    shapes = np.random.default_rng(0).normal(size=(520, 420, 3)).astype(np.float32)
    shapes = cv2.GaussianBlur(shapes, (0, 0), 14)
    noise = np.random.default_rng(seed).normal(size=(520, 420, 1)).astype(np.float32)
    return np.clip(128 + 40 * shapes / shapes.std() + fine * noise, 0, 255).astype(np.uint8)


def moved(frame: np.ndarray, x: int, y: int) -> np.ndarray:
    return np.roll(frame, (y, x), axis=(0, 1))


def fine_part(frame: np.ndarray, crop: FaceCrop = CROP) -> np.ndarray:
    """Brightness that a crop does not hold, inside."""
    bounds = crop.paste_bounds(frame)
    whole = np.zeros(frame.shape[:2])
    whole[bounds[1] : bounds[3], bounds[0] : bounds[2]] = crop.detail(frame, bounds).mean(axis=2)
    return whole[INSIDE]


def transferred(texture: ShotTexture, generated: np.ndarray, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The crop with texture, and the finer detail inside."""
    bounds = CROP.paste_bounds(frame)
    drawn, detail = texture.transfer(generated, CROP, bounds)
    whole = np.zeros(frame.shape[:2])
    whole[bounds[1] : bounds[3], bounds[0] : bounds[2]] = detail
    return drawn, whole[INSIDE]


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


@pytest.mark.parametrize("shift", [(0, 0), (7, -5), (-12, 3)])
def test_detail_comes_back_where_the_generated_crop_is(shift: tuple[int, int]) -> None:
    """The only candidate shows the same frame elsewhere, so its detail has to be moved back."""
    frame = textured()
    texture = ShotTexture([Candidate.of(moved(frame, *shift), CROP)])
    drawn, detail = transferred(texture, CROP.extract(frame), frame)
    assert correlation(detail, fine_part(frame)) > 0.8
    assert detail.std() == pytest.approx(fine_part(frame).std(), rel=0.3)
    lips = lips_box(S)
    assert np.abs(drawn - CROP.extract(frame))[lips].mean() < 3


def test_blurred_crop_becomes_sharp() -> None:
    frame = textured()
    sharp = CROP.extract(frame)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 1.5)
    drawn, _ = transferred(ShotTexture([Candidate.of(frame, CROP)]), blurred, frame)
    lips = lips_box(S)
    before, after = (np.abs(one.astype(float) - sharp)[lips].mean() for one in (blurred, drawn))
    assert after < 0.6 * before


def test_brightness_is_the_generators_and_colour_that_of_candidates() -> None:
    """The only candidate is a little redder and brighter, within the tolerance."""
    frame = textured()
    candidate = Candidate.of(np.clip(frame + np.array([12, 3, 3]), 0, 255).astype(np.uint8), CROP)
    drawn, _ = transferred(ShotTexture([candidate]), CROP.extract(frame), frame)
    change = (drawn - CROP.extract(frame))[lips_box(S)].mean(axis=(0, 1))
    assert change.mean() == pytest.approx(0, abs=0.5)
    assert change[0] - change[1] == pytest.approx(0.8 * 9, abs=2)  # DRAWN_WEIGHT of the difference


def test_nothing_comes_from_a_candidate_that_does_not_agree() -> None:
    frame = textured()
    other = textured()[::-1, ::-1]
    texture = ShotTexture([Candidate.of(np.where(other > 128, 250, 5).astype(np.uint8), CROP)])
    drawn, detail = transferred(texture, CROP.extract(frame), frame)
    lips = lips_box(S)
    assert np.abs(drawn - CROP.extract(frame))[lips].mean() < 3
    assert np.abs(detail).mean() < 0.2 * np.abs(fine_part(frame)).mean()


def test_most_similar_candidates_are_blended_and_none_appears_suddenly() -> None:
    frame = textured(fine=0) // 2
    texture = ShotTexture([Candidate.of(frame + np.uint8(20 * k), CROP) for k in (0, 4, 1, 3, 2)])
    lips = texture._lips[0]
    chosen, shares = texture._most_similar(lips)
    assert chosen.tolist() == [0, 2, 4]
    assert shares[0] == 1
    assert (np.diff(shares) < 0).all()
    # brightness 30: the third nearest, at 0 or 60, is as far as the fourth, and counts nothing
    chosen, shares = texture._most_similar(lips + 30)
    assert set(chosen[:2]) == {2, 4}
    assert shares[2] < 0.05


def test_light_of_a_candidate() -> None:
    """A candidate in half the light has half the detail; brought to the usual light, it has all of it."""
    frame = textured()
    dark = Candidate.of((frame // 2).astype(np.uint8), CROP)
    bright = dark.in_light(LightChange(np.full(3, 2.0), np.zeros(3)), NO_CHANGE)
    expected = Candidate.of(frame, CROP)
    assert np.abs(bright.image.astype(int) - expected.image).mean() < 2
    levels = [one.detail.astype(float) - ZERO for one in (dark, bright, expected)]
    assert levels[0].std() == pytest.approx(levels[2].std() / 2, rel=0.1)
    assert levels[1].std() == pytest.approx(levels[2].std(), rel=0.1)


def test_detail_of_a_huge_face_is_limited() -> None:
    frame = cv2.resize(textured(), None, fx=4, fy=4)
    crop = replace(CROP, left=4 * CROP.left, top=4 * CROP.top, pixel_size=4 * CROP.pixel_size)
    candidate = Candidate.of(frame, crop)
    assert max(candidate.detail.shape) <= crop_size(MAX_SIZE)[0]
    bounds = crop.paste_bounds(frame)
    _, detail = ShotTexture([candidate]).transfer(crop.extract(frame), crop, bounds)
    assert detail.shape == (bounds[3] - bounds[1], bounds[2] - bounds[0])
    whole = crop.detail(frame, bounds).mean(axis=2)
    centre = tuple(slice(size // 4, 3 * size // 4) for size in detail.shape)
    assert correlation(detail[centre], whole[centre]) > 0.6


def test_face_at_the_border_of_the_frame() -> None:
    frame = textured()[:250, :200]
    candidate = Candidate.of(frame, CROP)
    bounds = CROP.paste_bounds(frame)
    drawn, detail = ShotTexture([candidate]).transfer(CROP.extract(frame), CROP, bounds)
    assert np.isfinite(drawn).all()
    assert np.isfinite(detail).all()
    assert CROP.paste(frame, drawn.clip(0, 255), detail=detail[..., None]).shape == frame.shape
