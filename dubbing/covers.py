"""What covers a mouth stays: hands, microphones, cups, captions and logos keep the pixels of the source frame."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from models.cover_net import COVER_SIZE, NUM_VIEWS, TOP, load_cover_net
from models.crop_layout import crop_size
from utils.bundled import COVER_NET

SURE = 0.8  # probability that one pixel of a cover must have
POSSIBLE = 0.4  # probability of all its pixels
MIN_PIXELS = 12  # of a cover, at S = COVER_SIZE
OVER_TIME = np.array([0.1, 0.8, 0.1])  # weights of the frame before, the frame itself and the frame after
EDGE = 0.6  # standard deviation of the blurred edge of a mask, in pixels at S = COVER_SIZE


class CoverFinder:
    """Finds what covers the mouth in the frames of a shot, by comparing them with its reference frames."""

    def __init__(self, device: torch.device) -> None:
        self._network, self._device = load_cover_net(COVER_NET, device), device

    def views(self, references: Sequence[np.ndarray]) -> torch.Tensor:
        """What `masks` needs of the reference frames of a shot, (13S/8, 5S/4, 3) uint8 RGB face crops."""
        views = [references[index % len(references)] for index in range(NUM_VIEWS)]
        return self._to_network(views).flatten(0, 1)

    @torch.no_grad()
    def masks(self, crops: Sequence[np.ndarray], views: torch.Tensor) -> list[np.ndarray]:
        """Masks of what is not the face.

        Args:
            crops: (13S/8, 5S/4, 3) uint8 RGB face crops of consecutive source frames, in the light of the
                reference frames. The probabilities are smoothed over these frames only.
            views: of the shot, from `views`.

        Returns:
            (104, 80) float32 each, the face crop at S = 64: 1 where the face is covered, 0 where it is not.
        """
        sources = self._to_network(crops)
        logits = self._network(sources, views.expand(len(crops), -1, -1, -1))
        covered = torch.sigmoid(logits).cpu().numpy()
        around = np.pad(covered, ((1, 1), (0, 0), (0, 0)), mode="edge")
        steady = np.tensordot(OVER_TIME, np.stack([around[:-2], around[1:-1], around[2:]]), 1)
        return [_mask(one) for one in steady.astype(np.float32)]

    def _to_network(self, crops: Sequence[np.ndarray]) -> torch.Tensor:
        """Crops of any S -> (B, 3, SIDE, SIDE) in [0, 1] on the device."""
        height, width = crop_size(COVER_SIZE)
        small = [cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)[TOP:] for crop in crops]
        return torch.from_numpy(np.stack(small)).to(self._device).permute(0, 3, 1, 2).float() / 255


def _mask(covered: np.ndarray) -> np.ndarray:
    """The mask of a face crop from probabilities (SIDE, SIDE): connected regions, without those that are unsure."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(np.uint8(covered > POSSIBLE), connectivity=8)
    sure = np.zeros(len(stats), bool)
    sure[labels[covered > SURE]] = True
    sure[0] = False  # what is around the regions
    sure &= stats[:, cv2.CC_STAT_AREA] >= MIN_PIXELS
    mask = np.zeros(crop_size(COVER_SIZE), np.float32)
    mask[TOP:] = sure[labels]
    return cv2.GaussianBlur(mask, (0, 0), EDGE) if sure.any() else mask
