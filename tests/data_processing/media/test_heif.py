"""Photos made of tiles."""

import struct
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageOps

from data_processing.media.heif import MAX_META_BYTES, read_tile_grid
from data_processing.media.video_reader import probe, read_frames
from tests.support.heif import tiled_photo
from tests.support.media import write_video
from utils.errors import LimitError, MediaError
from utils.limits import Limits

PORTRAIT = skimage.data.astronaut()[:200, 60:330]  # 3 x 2 tiles of 128 x 128, the last cut off


@pytest.mark.parametrize("name", ["photo.heic", "photo.avif"])
def test_tiles_are_put_together(name, tmp_path):
    path = tiled_photo(tmp_path / name, PORTRAIT)
    (frame,) = read_frames(path)
    assert frame.shape == PORTRAIT.shape
    assert np.abs(frame.astype(int) - PORTRAIT).mean() < 5
    info = probe(path)
    assert (info.width, info.height, info.fps) == (270, 200, 25)


@pytest.mark.parametrize(
    "transforms",
    [[("irot", 1)], [("irot", 3)], [("imir", 0)], [("imir", 1)], [("irot", 1), ("imir", 1)]],
)
def test_tiled_photo_is_upright(transforms, tmp_path):
    """As libavif shows it."""
    path = tiled_photo(tmp_path / "photo.avif", PORTRAIT, transforms=transforms)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    frame = next(read_frames(path))
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 2
    assert probe(path).width == expected.shape[1]


def test_ten_bits(tmp_path):
    path = tiled_photo(tmp_path / "photo.heic", PORTRAIT, pix_fmt="yuv420p10le")
    assert np.abs(next(read_frames(path)).astype(int) - PORTRAIT).mean() < 5


def test_other_files_have_no_grid(tmp_path):
    assert read_tile_grid(write_video(tmp_path / "video.mp4", [PORTRAIT])) is None
    Image.fromarray(PORTRAIT).save(tmp_path / "photo.avif")
    assert read_tile_grid(tmp_path / "photo.avif") is None
    (tmp_path / "text.heic").write_text("not a photo")
    assert read_tile_grid(tmp_path / "text.heic") is None


def test_limits_hold_before_memory_is_taken(tmp_path):
    path = tiled_photo(tmp_path / "photo.heic", PORTRAIT)
    with pytest.raises(LimitError, match="at most 260 pixels a side, found 270 x 200"):
        next(read_frames(path, limits=Limits(max_side_px=260)))


def damaged(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (struct.pack(">BBHH", 1, 2, 270, 200), struct.pack(">BBHH", 1, 2, 0, 200), "description of its tiles"),
        (struct.pack(">BBHH", 1, 2, 270, 200), struct.pack(">BBHH", 1, 2, 999, 200), "6 of the 6 tiles"),
        (b"dimg", b"gone", "description of its tiles"),
        (b"grid\0", b"iovl\0", "made of several images in an unknown way"),
    ],
)
def test_damaged_photos(old, new, reason, tmp_path):
    path = damaged(tiled_photo(tmp_path / "photo.heic", PORTRAIT), old, new)
    with pytest.raises(MediaError, match=f"{path}: .*{reason}.*; convert .* to JPEG or PNG") as caught:
        next(read_frames(path))
    assert "\n" not in str(caught.value)


def test_truncated_photo(tmp_path):
    path = tiled_photo(tmp_path / "photo.heic", PORTRAIT)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(MediaError, match="of the 6 tiles of this photo cannot be decoded"):
        next(read_frames(path))


def test_bytes_changed_at_random(tmp_path):
    """Whatever the header says, the result is a grid, none, or one line about the file."""
    path = tiled_photo(tmp_path / "photo.heic", PORTRAIT)
    data = path.read_bytes()
    end = data.index(b"mdat")
    rng = np.random.default_rng(0)
    results = set()
    for _ in range(300):
        changed = bytearray(data)
        for position in rng.integers(0, end, 4):
            changed[position] = rng.integers(256)
        path.write_bytes(changed)
        try:
            results.add(type(read_tile_grid(path)).__name__)
        except MediaError:
            results.add("error")
    assert results == {"TileGrid", "NoneType", "error"}


def test_large_metadata_is_not_read(tmp_path):
    path = tmp_path / "large.heic"
    with path.open("wb") as file:
        file.write(struct.pack(">I4s", 8, b"ftyp") + struct.pack(">I4s", MAX_META_BYTES + 1, b"meta"))
        file.truncate(MAX_META_BYTES + 100)
    assert read_tile_grid(path) is None
