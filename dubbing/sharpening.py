"""Unsharp masking of generated crops (`--sharpen`)."""

from collections.abc import Iterable

import cv2
import numpy as np

from models.crop_layout import lips_box, mouth_size_of

MAX_SHARPENING = 1.0  # larger amounts amplify noise


def sharpening_amount(generated: np.ndarray, references: list[np.ndarray]) -> float:
    """The amount for `unsharp_mask` that gives generated lips the detail of those of the reference frames.

    Detail is the variance of the Laplacian in the lips box.

    Args:
        generated: (B, 13S/8, 5S/4, 3) uint8 RGB.
        references: (13S/8, 5S/4, 3) uint8 RGB each.

    Returns:
        A multiple of 1/8, MAX_SHARPENING at most.
    """
    box = lips_box(mouth_size_of(generated.shape[1]))

    def detail(crops: Iterable[np.ndarray]) -> float:
        grays = (cv2.cvtColor(crop[box], cv2.COLOR_RGB2GRAY) for crop in crops)
        return float(np.mean([cv2.Laplacian(gray, cv2.CV_32F).var() for gray in grays]))

    target = detail(references)
    amounts = np.arange(0, MAX_SHARPENING + 0.01, 0.125)
    return next((amount for amount in amounts if detail(unsharp_mask(generated, amount)) >= target), MAX_SHARPENING)


def unsharp_mask(crops: np.ndarray, amount: float) -> np.ndarray:
    """Crops (B, 13S/8, 5S/4, 3) uint8 with `amount` times their fine detail added."""
    if amount == 0:
        return crops
    blurred = np.stack([cv2.GaussianBlur(crop, (0, 0), 1) for crop in crops])
    detail = crops.astype(np.float32) - blurred
    return np.clip(np.rint(crops + amount * detail), 0, 255).astype(np.uint8)
