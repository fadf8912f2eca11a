"""What is shown before a dub: the faces of a video, and one generated mouth."""

import cv2
import numpy as np
import pytest

from data_processing.media.audio_io import load_audio, save_wav
from data_processing.media.video_reader import read_frames
from dubbing.preview import YELLOW, find_faces, numbered_faces, preview_mouth
from dubbing.settings import DubSettings
from tests.support.dubbing import small_and_large_face
from tests.support.media import no_face_video, speech_like, write_video
from utils.errors import MediaError, NoFaceError


def test_faces_from_left_to_right(portrait_clip, tmp_path):
    frame, boxes = find_faces(small_and_large_face(portrait_clip, tmp_path / "two.mp4"))
    assert frame.shape == (320, 576, 3)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert len(boxes) == 2
    assert np.abs(centres[0] - [128, 115]).max() < 25  # in the left portrait, of 256 pixels
    assert np.abs(centres[1] - [416, 144]).max() < 30  # in the right one, of 320
    image, scale = numbered_faces(frame, boxes, longer_side=288)
    assert image.shape == (160, 288, 3) and scale == 0.5
    left, top, right, bottom = np.rint(boxes[1] / 2).astype(int)
    assert tuple(image[bottom, (left + right) // 2]) == tuple(image[(top + bottom) // 2, left]) == YELLOW
    assert not (frame == YELLOW).all(axis=2).any()  # the frame itself is unchanged


def test_faces_after_a_title(portrait_clip, tmp_path):
    title = [np.zeros((256, 256, 3), np.uint8)] * 30
    portraits = list(read_frames(portrait_clip))
    frame, boxes = find_faces(write_video(tmp_path / "title.mp4", title + portraits))
    assert np.abs(frame.astype(int) - portraits[20]).mean() < 4  # at two seconds: 50 frames, 30 of the title
    assert len(boxes) == 1


def test_photo(portrait_clip, tmp_path):
    photo = next(read_frames(portrait_clip))
    cv2.imwrite(str(tmp_path / "photo.png"), photo[..., ::-1])
    frame, boxes = find_faces(tmp_path / "photo.png")
    assert np.array_equal(frame, photo) and len(boxes) == 1


def test_no_face(tmp_path):
    with pytest.raises(NoFaceError, match="no face detected in 1 frame"):
        find_faces(no_face_video(tmp_path / "noise.mp4"))
    with pytest.raises(MediaError, match="no such file"):
        find_faces(tmp_path / "none.mp4")


@pytest.mark.slow
def test_preview_is_a_loud_moment(pipeline, portrait_clip, tmp_path):
    waveform = np.zeros(48000)
    waveform[20000:36000] = speech_like(1, seed=3)
    save_wav(tmp_path / "speech.wav", waveform)
    both = preview_mouth(pipeline, portrait_clip, tmp_path / "speech.wav", tmp_path, DubSettings())
    dubbed_with = load_audio(tmp_path / "preview.wav")
    assert len(dubbed_with) == 9600
    loudness = [np.square(waveform[start : start + 9600]).sum() for start in range(0, 38400, 100)]
    assert np.square(dubbed_with).sum() > 0.999 * max(loudness)
    height, width = both.shape[:2]
    assert height == 360 and width == pytest.approx(720, abs=8)
    source, dubbed = both[:, : width // 2].astype(int), both[:, width // 2 : width // 2 * 2].astype(int)
    change = np.abs(source - dubbed).mean(axis=2)
    assert change[150:250, 100:260].mean() > 10  # the mouth is in the centre
    assert change[:40].mean() < 3
    noise = no_face_video(tmp_path / "noise.mp4")
    assert preview_mouth(pipeline, noise, tmp_path / "speech.wav", tmp_path, DubSettings()) is None
