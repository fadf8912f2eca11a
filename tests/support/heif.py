"""Photos made of tiles, as phones write them: HEIC and AVIF files with a grid of separately encoded images."""

import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from tests.support.media import write_video

CODECS = {".heic": ("libx265", b"hvc1", b"hvcC", b"heic"), ".avif": ("libsvtav1", b"av01", b"av1C", b"avif")}


def tiled_photo(
    path: Path,
    image: np.ndarray,
    tile: tuple[int, int] = (128, 128),
    transforms: Sequence[tuple[str, int]] = (),
    pix_fmt: str = "yuv420p",
) -> Path:
    """Write (H, W, 3) uint8 RGB as tiles of `tile` = (width, height) pixels, the last ones padded.

    `transforms` are properties of the photo in the order in which players apply them: ("irot", quarter turns
    counterclockwise), ("imir", 0 top to bottom or 1 left to right).
    """
    codec, kind, record, brand = CODECS[path.suffix]
    width, height = tile
    rows, columns = -(-image.shape[0] // height), -(-image.shape[1] // width)
    padding = ((0, rows * height - image.shape[0]), (0, columns * width - image.shape[1]), (0, 0))
    padded = np.pad(image, padding, mode="edge")
    encoded = [
        _encode(padded[y : y + height, x : x + width], codec, pix_fmt)
        for y in range(0, rows * height, height)
        for x in range(0, columns * width, width)
    ]
    grid_id, tile_ids = 1, range(2, 2 + len(encoded))
    properties = [
        _box(record, encoded[0][0]),
        _full(b"ispe", struct.pack(">II", width, height)),
        _full(b"ispe", struct.pack(">II", image.shape[1], image.shape[0])),
        *(_box(name.encode(), bytes([value])) for name, value in transforms),
    ]
    essential = 0x80  # as readers must be told of what changes the image
    of_item = {grid_id: [3, *(essential | 4 + index for index in range(len(transforms)))]}
    of_item |= {number: [essential | 1, 2] for number in tile_ids}
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, image.shape[1], image.shape[0])

    def meta(offset: int) -> bytes:
        """With the tiles from `offset` in the file on."""
        locations = struct.pack(">HHHHII", grid_id, 1, 0, 1, 0, len(grid))
        for number, (_, data) in zip(tile_ids, encoded, strict=True):
            locations += struct.pack(">HHHHII", number, 0, 0, 1, offset, len(data))
            offset += len(data)
        kinds = [(grid_id, b"grid"), *((number, kind) for number in tile_ids)]
        infos = b"".join(_full(b"infe", struct.pack(">HH", number, 0) + name + b"\0", 2) for number, name in kinds)
        references = struct.pack(f">HH{len(tile_ids)}H", grid_id, len(tile_ids), *tile_ids)
        associations = struct.pack(">I", len(of_item)) + b"".join(
            struct.pack(">HB", number, len(indices)) + bytes(indices) for number, indices in of_item.items()
        )
        return _full(
            b"meta",
            _full(b"hdlr", bytes(4) + b"pict" + bytes(13))
            + _full(b"pitm", struct.pack(">H", grid_id))
            + _full(b"iloc", struct.pack(">BBH", 0x44, 0, len(kinds)) + locations, 1)
            + _full(b"iinf", struct.pack(">H", len(kinds)) + infos)
            + _full(b"iref", _box(b"dimg", references))
            + _box(b"iprp", _box(b"ipco", b"".join(properties)) + _full(b"ipma", associations))
            + _box(b"idat", grid),
        )

    start = _box(b"ftyp", brand + bytes(4) + b"mif1" + brand)
    data = b"".join(data for _, data in encoded)
    path.write_bytes(start + meta(len(start) + len(meta(0)) + 8) + _box(b"mdat", data))
    return path


def _encode(image: np.ndarray, codec: str, pix_fmt: str) -> tuple[bytes, bytes]:
    """The configuration record and the data of an encoded image."""
    # with B-frames, x265 gives a single frame a random decoding time
    options = {"x265-params": "log-level=none:bframes=0"} if codec == "libx265" else {}
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "tile.mp4", [image], codec=codec, pix_fmt=pix_fmt, options=options)
        with av.open(str(path)) as container:
            data = next(bytes(packet) for packet in container.demux(video=0) if packet.size)
            return container.streams.video[0].codec_context.extradata, data


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def _full(name: bytes, content: bytes, version: int = 0) -> bytes:
    return _box(name, struct.pack(">I", version << 24) + content)
