"""Layout of the face crop."""

from models.crop_layout import crop_size, lips_box, mouth_box, mouth_margin_top, mouth_size_of


def test_sizes() -> None:
    assert [crop_size(s) for s in (64, 128, 256)] == [(104, 80), (208, 160), (416, 320)]
    assert mouth_box(256) == (slice(128, 384), slice(32, 288))


def test_mouth_size_is_the_inverse_of_the_crop_size() -> None:
    assert all(mouth_size_of(crop_size(s)[0]) == s for s in range(8, 1024, 8))


def test_boxes_are_nested() -> None:
    for s in (32, 64, 256):
        (outer_rows, outer_columns), (rows, columns) = mouth_box(s), lips_box(s)
        assert outer_rows.start < rows.start < rows.stop < outer_rows.stop
        assert outer_columns.start < columns.start < columns.stop < outer_columns.stop
        assert mouth_margin_top(s) == outer_rows.start - s // 8
