"""Layout of the face crop as a function of the mouth size S: crop size, mouth box and lips box, in crop pixels.

The crop is 13S/8 × 5S/4 pixels (height × width). data_processing/face/crop.py places it in a source frame.
"""


def crop_size(mouth_size: int) -> tuple[int, int]:
    """(height, width) of the face crop for mouth size S, a multiple of 8: (13S/8, 5S/4)."""
    return mouth_size * 13 // 8, mouth_size * 5 // 4


def mouth_size_of(crop_height: int) -> int:
    """Mouth size S of a face crop of this height: the inverse of `crop_size`."""
    return crop_height * 8 // 13


def mouth_box(mouth_size: int) -> tuple[slice, slice]:
    """Rows [S/2, 3S/2) and columns [S/8, 9S/8) of the face crop: the mouth box, S × S pixels."""
    s = mouth_size
    return slice(s // 2, s * 3 // 2), slice(s // 8, s * 9 // 8)


def mouth_margin_top(mouth_size: int) -> int:
    """First row of the face crop that pasting uses: S/8 above the mouth box, as wide as the margin at its sides."""
    return mouth_size * 3 // 8


def lips_box(mouth_size: int) -> tuple[slice, slice]:
    """Rows [13S/16, 21S/16) and columns [5S/16, 15S/16) of the face crop: the region in which speaking lips stay,
    about a third of the mouth box."""
    s = mouth_size
    return slice(s * 13 // 16, s * 21 // 16), slice(s * 5 // 16, s * 15 // 16)
