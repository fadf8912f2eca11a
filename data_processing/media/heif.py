"""Photos made of tiles, as phones write them in HEIC and AVIF files (ISO/IEC 23008-12).

PyAV opens every tile as a video stream of its own, whose id is the number of the tile in the file, but it does not
say how the tiles make up the photo. That is read here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from data_processing.media.frame_conversion import to_rgb
from utils.errors import MediaError

MAX_META_BYTES = 1 << 24  # of a phone's photo it has some ten thousand


@dataclass(frozen=True)
class TileGrid:
    """How the tiles of a file make up its main photo.

    tiles: stream ids of the tiles, row by row.
    num_rows, num_columns: of the grid.
    width, height: in pixels, before `transforms`; the last tiles may reach beyond.
    transforms: in their order: ("irot", quarter turns counterclockwise) and ("imir", 0 to exchange
        top and bottom, 1 to exchange left and right).
    """

    tiles: tuple[int, ...]
    num_rows: int
    num_columns: int
    width: int
    height: int
    transforms: tuple[tuple[str, int], ...]


def read_tile_grid(path: Path) -> TileGrid | None:
    """The grid of the main photo in a file; None if the file is no HEIC or AVIF, or its photo is not made of tiles.

    Raises:
        MediaError: the description of the grid is damaged.
    """
    try:
        with path.open("rb") as file:
            meta = _find_meta(file)
            return _parse_grid(meta, file) if meta is not None else None
    except (struct.error, KeyError, ValueError):
        reason = "the description of its tiles is damaged; convert the photo to JPEG or PNG"
        raise MediaError(path, reason) from None


def assemble(container: av.container.InputContainer, grid: TileGrid, path: Path) -> av.VideoFrame:
    """Decode the tiles of an open file and put them together: an upright frame in rgb24.

    Raises:
        MediaError: a tile is missing or cannot be decoded.
    """
    image = np.zeros((grid.height, grid.width, 3), np.uint8)
    found = set()
    for packet in container.demux([stream for stream in container.streams.video if stream.id in grid.tiles]):
        try:
            tiles = [to_rgb(frame) for frame in packet.decode()]
        except av.error.FFmpegError:
            continue
        for tile in tiles:
            height, width = tile.shape[:2]
            if height * grid.num_rows < grid.height or width * grid.num_columns < grid.width:
                continue
            for index, number in enumerate(grid.tiles):  # one tile may occur several times
                if number == packet.stream.id:
                    row, column = divmod(index, grid.num_columns)
                    region = image[row * height :, column * width :][:height, :width]
                    region[...] = tile[: region.shape[0], : region.shape[1]]
            found.add(packet.stream.id)
    if missing := len(set(grid.tiles) - found):
        reason = f"{missing} of the {len(set(grid.tiles))} tiles of this photo cannot be decoded"
        raise MediaError(path, f"{reason}; convert it to JPEG or PNG")
    for name, value in grid.transforms:
        image = np.rot90(image, value) if name == "irot" else np.flip(image, axis=value)
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def _find_meta(file: BinaryIO) -> bytes | None:
    """The content of the box `meta` at the top level of an ISO media file; None if there is none."""
    while len(header := file.read(8)) == 8:
        size, name = struct.unpack(">I4s", header)
        if size == 1:
            size = struct.unpack(">Q", file.read(8))[0] - 8
        if name == b"meta" and 8 < size <= MAX_META_BYTES:
            return file.read(size - 8)
        if size < 8:  # the last box, or no ISO media file
            return None
        file.seek(size - 8, 1)
    return None


def _parse_grid(meta: bytes, file: BinaryIO) -> TileGrid | None:
    boxes = dict(_boxes(meta[4:]))
    if b"pitm" not in boxes or b"iinf" not in boxes:
        return None  # metadata of another kind
    main = _Fields(boxes[b"pitm"]).take(4 if boxes[b"pitm"][0] else 2)
    if _item_kinds(boxes[b"iinf"]).get(main) != b"grid":
        return None
    fields = _Fields(b"\0\0" + _item_data(main, boxes, file))
    wide = fields.flags & 1
    num_rows, num_columns = fields.take(1) + 1, fields.take(1) + 1
    width, height = (fields.take(4 if wide else 2) for _ in "wh")
    tiles = _tiles(main, boxes[b"iref"])
    if len(tiles) != num_rows * num_columns or not width or not height:
        raise ValueError
    return TileGrid(tiles, num_rows, num_columns, width, height, _transforms(main, boxes[b"iprp"]))


class _Fields:
    """Big-endian integers from the content of a box with version and flags."""

    def __init__(self, content: bytes) -> None:
        self._stream = BytesIO(content)
        self.version, self.flags = self.take(1), self.take(3)

    def take(self, num_bytes: int) -> int:
        data = self._stream.read(num_bytes)
        if len(data) < num_bytes:
            raise ValueError
        return int.from_bytes(data)

    def rest(self) -> bytes:
        return self._stream.read()


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of the boxes in `data`."""
    start = 0
    while start + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, start)
        size = size or len(data) - start
        if size < 8:
            raise ValueError
        yield name, data[start + 8 : start + size]
        start += size


def _item_kinds(iinf: bytes) -> dict[int, bytes]:
    fields, kinds = _Fields(iinf), {}
    fields.take(4 if fields.version else 2)
    for _, content in _boxes(fields.rest()):
        item = _Fields(content)
        number, _ = item.take(4 if item.version > 2 else 2), item.take(2)
        kinds[number] = item.rest()[:4]
    return kinds


def _tiles(main: int, iref: bytes) -> tuple[int, ...]:
    """The items that item `main` is derived from."""
    fields = _Fields(iref)
    size = 4 if fields.version else 2
    for name, content in _boxes(fields.rest()):
        reference = _Fields(bytes(4) + content)
        if name == b"dimg" and reference.take(size) == main:
            return tuple(reference.take(size) for _ in range(reference.take(2)))
    raise KeyError(main)


def _item_data(main: int, boxes: dict[bytes, bytes], file: BinaryIO) -> bytes:
    fields = _Fields(boxes[b"iloc"])
    sizes = fields.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if fields.version else 0
    for _ in range(fields.take(4 if fields.version > 1 else 2)):
        number = fields.take(4 if fields.version > 1 else 2)
        in_meta = fields.version > 0 and fields.take(2) & 15 == 1
        fields.take(2)
        base = fields.take(base_size)
        data = b""
        for _ in range(fields.take(2)):
            fields.take(index_size)
            start, length = base + fields.take(offset_size), fields.take(length_size)
            if number != main:
                continue
            if in_meta:
                data += boxes[b"idat"][start : start + length]
            else:
                file.seek(start)
                data += file.read(min(length, MAX_META_BYTES))
        if number == main:
            return data
    raise KeyError(main)


def _transforms(main: int, iprp: bytes) -> tuple[tuple[str, int], ...]:
    boxes = list(_boxes(iprp))
    properties = list(_boxes(dict(boxes)[b"ipco"]))
    found = []
    for fields in (_Fields(content) for name, content in boxes if name == b"ipma"):
        size = 2 if fields.flags & 1 else 1
        for _ in range(fields.take(4)):
            number = fields.take(4 if fields.version else 2)
            for _ in range(fields.take(1)):
                index = fields.take(size) & (0x7FFF if size == 2 else 0x7F)  # the highest bit: essential or not
                if number != main or not index:
                    continue
                if index > len(properties):
                    raise ValueError
                name, content = properties[index - 1]
                if name in (b"irot", b"imir"):
                    found.append((name.decode(), content[0] & (3 if name == b"irot" else 1)))
    return tuple(found)
