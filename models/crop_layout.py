"""TODO."""


def crop_size(mouth_size: int) -> tuple[int, int]:
    """(height, width) of the face crop for mouth size S: (13S/8, 5S/4); S must be a multiple of 8."""
    return mouth_size * 13 // 8, mouth_size * 5 // 4


def mouth_size_of(crop_height: int) -> int:
    """Mouth size S of a face crop of that height: the inverse of `crop_size`."""
    return crop_height * 8 // 13


def mouth_box(mouth_size: int) -> tuple[slice, slice]:
    """Rows and columns of the mouth box inside the face crop."""
    s = mouth_size
    return slice(s // 2, s * 3 // 2), slice(s // 8, s * 9 // 8)


def mouth_margin_top(mouth_size: int) -> int:
    """First row of the face crop that pasting looks at, as far above the mouth box as the crop's sides from it."""
    return mouth_size * 3 // 8


def lips_box(mouth_size: int) -> tuple[slice, slice]:
    """Rows and columns of the face crop in which speaking lips stay, about a third of the mouth box."""
    s = mouth_size
    return slice(s * 13 // 16, s * 21 // 16), slice(s * 5 // 16, s * 15 // 16)
