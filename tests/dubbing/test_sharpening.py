"""Unsharp masking to the detail of the reference frames."""

import cv2
import numpy as np
import pytest

from dubbing.sharpening import MAX_SHARPENING, sharpening_amount, unsharp_mask
from models.crop_layout import lips_box


def test_detail_equals_that_of_the_references() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 52, 40, 3), np.uint8)
    references = [cv2.GaussianBlur(crop, (0, 0), 1.5) for crop in noise]
    generated = np.stack([cv2.GaussianBlur(crop, (0, 0), 0.5) for crop in references])
    amount = sharpening_amount(generated, references)
    assert 0 < amount < MAX_SHARPENING

    def detail(crops: np.ndarray) -> float:
        return float(np.mean([cv2.Laplacian(crop[lips_box(32)], cv2.CV_32F).var() for crop in crops]))

    assert detail(unsharp_mask(generated, amount)) == pytest.approx(detail(np.stack(references)), rel=0.2)
    assert sharpening_amount(np.stack(references), references) == 0
    assert sharpening_amount(np.full_like(generated, 128), references) == MAX_SHARPENING
    assert np.array_equal(unsharp_mask(generated, 0), generated)
