"""What covers a mouth: what no other frame shows, what stands still; and which frames show the face alone."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest

from data_processing.face.crop import LOWER_FACE_LANDMARKS, FaceCrop
from data_processing.media.frame import RgbFrame
from dubbing.audio_stream import AudioStream
from dubbing.compositor import Compositor
from dubbing.covers import CoverFinder, StillPixels, StillSearch, face_of, uncovered
from dubbing.face_track import track_face
from dubbing.frame_sources import LiveFrameSource
from dubbing.light import CHEEKS
from dubbing.pipeline import DubbingPipeline
from dubbing.speaker import Speaker
from dubbing.texture import FLOW_SIZE, HEIGHT, TOP, WIDTH, lower_part
from models.crop_layout import crop_size
from tests.support.media import portraits, speech_like

FRAME = next(portraits(np.zeros(1), (256, 256), np.zeros(16000)))
CROP = FaceCrop(left=98, top=104, pixel_size=0.75, mouth_size=64)  # of the portrait
STEP = 0.75 * 64 / FLOW_SIZE  # source pixels per pixel of the lower part
NOTHING_STILL = StillPixels(np.zeros((1, 1), np.float32), np.zeros(2), 1.0)


def landmarks() -> np.ndarray:
    """(68, 2): lips, cheeks and the rest of the lower face of the portrait, as ellipses; 0 elsewhere."""
    points = np.zeros((68, 2), np.float32)
    for some, size in ((LOWER_FACE_LANDMARKS, (20, 30)), (CHEEKS, (18, 10)), (range(48, 60), (9, 5))):
        angles = np.linspace(0, 2 * np.pi, len(some), endpoint=False)
        centre = (128, 150) if size[1] == 30 else (128, 135) if size[1] == 10 else (127, 148)
        points[list(some)] = np.array(centre) + np.stack([np.cos(angles), np.sin(angles)], axis=1) * size
    return points


def noisy(count: int, seed: int = 0) -> list[np.ndarray]:
    """Frames of the portrait, with camera noise."""
    noise = np.random.default_rng(seed).normal(0, 2, (count, *FRAME.shape))
    return list(np.clip(FRAME + noise, 0, 255).astype(np.uint8))


def finder(frames: list[np.ndarray]) -> CoverFinder:
    return CoverFinder([lower_part(frame, CROP) for frame in frames], NOTHING_STILL)


def mask_of(frame: np.ndarray, found: CoverFinder) -> np.ndarray:
    return found.mask(lower_part(frame, CROP), CROP, landmarks())


def in_crop(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) of the frame in the face crop at FLOW_SIZE, as a share."""
    crop = replace(CROP, pixel_size=STEP, mouth_size=FLOW_SIZE)
    return crop.extract(np.repeat(np.uint8(255 * mask)[..., None], 3, axis=2))[..., 0] / 255


def test_an_uncovered_face_has_empty_masks() -> None:
    for frame in noisy(4, seed=1):
        mask = mask_of(frame, finder(noisy(8)))
        assert mask.shape == crop_size(FLOW_SIZE)
        assert not mask.any()


def test_too_few_frames_tell_nothing() -> None:
    """As of a photo."""
    (frame,) = noisy(1)
    frame[:, 124:134] = 250
    assert not mask_of(frame, finder(noisy(4))).any()
    assert mask_of(frame, finder(noisy(5))).any()


@pytest.mark.parametrize("colour", [(20, 20, 25), (60, 120, 220), (250, 250, 250)])
@pytest.mark.parametrize("shown_in", [0, 1])
def test_a_bar_before_the_lips_is_marked(colour: tuple, shown_in: int) -> None:
    """Also if one of the frames that count as uncovered shows it at the same place."""
    bar = np.zeros(FRAME.shape[:2], bool)
    bar[:, 124:134] = True
    frames = [np.where(bar[..., None], np.uint8(colour), frame) for frame in noisy(9)]
    mask = mask_of(frames[8], finder(noisy(8 - shown_in, seed=1) + frames[:shown_in]))[TOP:]
    truth = in_crop(bar)[TOP:]
    assert mask[truth == 1].mean() > 0.95
    assert mask[cv2.dilate(truth, np.ones((11, 11))) == 0].max() < 0.01


def test_a_cover_has_no_holes() -> None:
    """Not even where it has the colour of the face behind it."""
    hole = slice(154, 159), slice(120, 130)
    (frame,) = noisy(1, seed=1)
    skin = frame[hole].copy()
    frame[140:168, 108:146] = (60, 120, 220)
    frame[hole] = skin
    mask = in_crop(np.pad(np.ones((5, 10)), ((154, 97), (120, 126)))) == 1
    assert mask_of(frame, finder(noisy(8)))[mask].min() > 0.95


def test_what_is_within_the_lips_is_no_cover() -> None:
    """Teeth that no other frame shows; the same pixels with a finger beside them are covered."""
    found, (frame,) = finder(noisy(8)), noisy(1, seed=1)
    frame[145:151, 121:133] = 250
    assert not mask_of(frame, found).any()
    frame[145:151, 100:133] = 250
    assert mask_of(frame, found).any()


def moving(
    overlay: np.ndarray | None, distance: float
) -> tuple[list[np.ndarray], list[FaceCrop], list[np.ndarray]]:
    """A head that moves by up to `distance` pixels in 16 frames, with a white overlay (H, W) that stands still."""
    frames, crops, points = [], [], []
    for index, frame in enumerate(noisy(16)):
        shift = distance * np.array([np.sin(index), np.cos(1.7 * index)])
        matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
        frame = cv2.warpAffine(frame, matrix, (256, 256), borderMode=cv2.BORDER_REPLICATE)
        if overlay is not None:
            frame[overlay] = 235
        frames.append(frame)
        crops.append(replace(CROP, left=CROP.left + shift[0], top=CROP.top + shift[1]))
        points.append(landmarks() + shift)
    return frames, crops, points


def still_in(overlay: np.ndarray | None, distance: float) -> np.ndarray:
    """What is found to stand still in the fifth frame: (HEIGHT, WIDTH)."""
    frames, crops, points = moving(overlay, distance)
    search = StillSearch(crops)
    for frame, one in zip(frames, points, strict=True):
        search.add(RgbFrame(frame), one)
    return search.finish().in_crop(crops[4])


def caption() -> np.ndarray:
    image = np.zeros((256, 256), np.uint8)
    cv2.putText(image, "caption", (85, 160), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 3)
    return image > 127


def test_a_caption_stands_still_while_the_face_moves() -> None:
    overlay, crops = caption(), moving(None, 3)[1]
    crop = replace(crops[4], pixel_size=STEP, mouth_size=FLOW_SIZE)
    truth = crop.extract(np.repeat(np.uint8(255 * overlay)[..., None], 3, axis=2))[TOP:, :, 0] / 255
    face = face_of(crops[4], moving(None, 3)[2][4])
    still = still_in(overlay, 3)
    assert still.shape == (HEIGHT, WIDTH)
    assert still[truth > 0.9].mean() > 0.9
    far = cv2.dilate(truth, np.ones((15, 15))) == 0
    assert still[face & far].mean() < 0.1
    assert still_in(None, 3)[face].mean() < 0.1


def test_nothing_stands_still_if_the_face_does() -> None:
    assert not still_in(caption(), 0).any()


def test_frames_with_a_cover_are_found() -> None:
    """A cup at different heights in six of 14 frames; too few frames to tell; nothing covered."""
    frames = noisy(14)
    for index in range(6):
        frames[index][140 + 4 * index :, 112:144] = (40, 80, 200)
    images, faces = [lower_part(frame, CROP) for frame in frames], [face_of(CROP, landmarks())] * 14
    assert uncovered(images, faces) == [False] * 6 + [True] * 8
    assert uncovered(images[3:10], faces[3:10]) == [True] * 7
    assert all(uncovered(images[6:], faces[6:]))


@pytest.mark.slow
def test_a_dub_keeps_what_comes_before_the_mouth(pipeline: DubbingPipeline) -> None:
    """A bar in ten of 40 frames, in a dub with and without keeping covers. No texture and no reference frame comes
    from those ten."""
    frames = list(portraits(np.arange(40) / 25, (256, 256), np.zeros(30000)))
    bar = slice(132, 176), slice(120, 132)
    for frame in frames[20:30]:
        frame[130:, bar[1]] = (20, 90, 200)
    changes = []
    for keep in (True, False):
        source = LiveFrameSource((frame.copy() for frame in frames), Fraction(25))
        audio = AudioStream(iter([speech_like(1.6, 1)]), "whisper")
        speaker = Speaker(pipeline.generator, source, audio, track_face(source), look_ahead_s=2, keep_covers=keep)
        dubbed = [pair.dubbed.rgb() for pair in Compositor(source, [speaker]).frames()]
        changes.append(
            [np.abs(dub[bar].astype(int) - frame[bar]).mean() for dub, frame in zip(dubbed, frames, strict=True)]
        )
        examined = [index for index, _ in speaker.references[0] + speaker.candidates[0]]
        assert len(speaker.references[0]) == 5
        assert len(examined) > 15
        assert not set(examined) & set(range(20, 30))
    kept, changed = np.array(changes)[:, 21:29]
    assert changed.mean() > 5
    assert kept.mean() < changed.mean() / 10
