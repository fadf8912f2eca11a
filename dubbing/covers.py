"""What covers a mouth stays: hands, microphones, cups, captions and logos keep the pixels of the source frame.

Other frames of the shot show the face. What none of them shows at the same place of the face covers it: so hands
and cups are found, which come and go. What stands still in the frame while the face moves covers it, too: so
captions, logos and microphones on a stand are found. Neither test has a state, so that the masks do not depend on
where a dub is resumed.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from data_processing.face.crop import LOWER_FACE_LANDMARKS, MARGIN, FaceCrop, sample_region
from data_processing.media.frame import Frame
from dubbing.light import CHEEKS
from dubbing.texture import FLOW_SIZE, HEIGHT, TOP, WIDTH
from models.crop_layout import crop_size

SOFTNESS = 1.0  # standard deviation of the blur of images that are compared, in pixels at FLOW_SIZE
LIPS = slice(48, 60)  # landmarks
LIPS_MARGIN = 3  # pixels at FLOW_SIZE around the lips that speech changes
NEIGHBOURS = np.ones((3, 3), np.uint8)

# What no other frame shows, at FLOW_SIZE
POSSIBLE, SURE = 4, 20  # grey levels outside the colours of the other frames: all pixels of a cover, and some
MIN_SURE = 24  # pixels of a cover that are sure
FRAMES_AT_ONCE = 4  # that an image is compared with
CLOSING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))  # gaps within a cover
MAX_HOLE = 400  # pixels of a hole in a cover; lips have more
EDGE = 1.0  # standard deviation of the blurred edge of a mask

# Which frames are uncovered, at a quarter of FLOW_SIZE
COARSE = 4
UNEXPLAINED = 20  # grey levels outside the colours of the other frames
MAX_UNEXPLAINED = 0.0025  # part of the face
MIN_FRAMES = 5  # with fewer uncovered frames nothing can be told
USUAL_PART = 0.25  # of the frames that the most usual frame is like

# What stands still
MAX_REGION = 512  # pixels: side of the region that is searched, coarsely if the face moves through the frame
STILL = 4.0  # variance up to which a pixel may belong to what stands still: noise
MIN_EXPECTED = 36.0  # variance that edges would have if they moved with the face
MAX_PART = 0.1  # of it, that edges which stand still have
MIN_EDGE = 8  # such pixels of what stands still
MOVES = 0.5  # part of the expected variance that a face which moves has


class StillSearch:
    """Finds what stands still in a shot while the face moves, in frames that `add` gets one after the other.

    Args:
        crops: face crops of these frames.
    """

    def __init__(self, crops: Sequence[FaceCrop]) -> None:
        corners = np.array([[crop.left, crop.top] for crop in crops])
        pixel_size = float(np.median([crop.pixel_size * crop.mouth_size for crop in crops])) / FLOW_SIZE
        extent = np.ptp(corners, axis=0) + pixel_size * np.array(crop_size(FLOW_SIZE)[::-1])
        self._corner = corners.min(axis=0)
        self._pixel_size = max(pixel_size, extent.max() / MAX_REGION)
        width, height = np.ceil(extent / self._pixel_size).astype(int)
        self._shifts = (corners - corners.mean(axis=0)) / self._pixel_size
        self._sum, self._squares = np.zeros((2, height, width, 3), np.float32)
        self._cheeks = np.zeros((len(CHEEKS), 2))
        self._count = 0

    def add(self, frame: Frame, points: np.ndarray) -> None:
        """The next frame, with landmarks (68, 2)."""
        height, width = self._sum.shape[:2]
        x0, y0 = np.maximum(np.floor(self._corner).astype(int) - MARGIN, 0)
        x1, y1 = np.ceil(self._corner + self._pixel_size * np.array([width, height])).astype(int) + MARGIN
        part = frame.region(x0, y0, min(x1, frame.width), min(y1, frame.height))
        region = sample_region(part, *(self._corner - (x0, y0)), self._pixel_size, (height, width))
        region = cv2.GaussianBlur(region.astype(np.float32), (0, 0), SOFTNESS)
        self._sum += region
        self._squares += region * region
        self._cheeks += (points[CHEEKS] - self._corner) / self._pixel_size
        self._count += 1

    def finish(self) -> "StillPixels":
        """What stands still, from all frames added."""
        mean = self._sum / self._count
        variance = (self._squares / self._count - mean * mean).mean(axis=2)
        expected = np.zeros_like(variance)  # if the whole region moved with the face
        for shift in self._shifts:
            matrix = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]])
            moved = cv2.warpAffine(mean, matrix, mean.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
            expected += np.square(moved - mean).mean(axis=2) / len(self._shifts)
        variance, expected = cv2.blur(variance, (3, 3)), cv2.blur(expected, (3, 3))
        face = _hull(self._cheeks / self._count, variance.shape)
        still = np.zeros(variance.shape, np.float32)
        if face.any() and variance[face].mean() > MOVES * expected[face].mean():
            edges = (expected > MIN_EXPECTED) & (variance < MAX_PART * expected)
            still = np.float32(_regions(edges | (variance < STILL), edges, MIN_EDGE))
        return StillPixels(cv2.dilate(still, NEIGHBOURS), self._corner, self._pixel_size)


class StillPixels:
    """What stands still in the frames of a shot.

    Args:
        mask: (h, w) float32, 1 where something stands still.
        corner: (2,) of the mask in source pixels.
        pixel_size: source pixels per pixel of the mask.
    """

    def __init__(self, mask: np.ndarray, corner: np.ndarray, pixel_size: float) -> None:
        self._mask, self._corner, self._pixel_size = mask, corner, pixel_size

    def in_crop(self, crop: FaceCrop) -> np.ndarray:
        """The mask in a face crop at FLOW_SIZE, from row TOP on: (HEIGHT, WIDTH) float32."""
        step = crop.pixel_size * crop.mouth_size / FLOW_SIZE
        scale = step / self._pixel_size
        start = np.array([crop.left, crop.top + TOP * step]) - self._corner
        offset = (start + step / 2) / self._pixel_size - 0.5
        matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]])
        return cv2.warpAffine(self._mask, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


class Palette:
    """The colours that frames show at each place of the face.

    Args:
        images: (h, w, 3) uint8 RGB each, of the same part of the face.
    """

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        highest = np.stack([cv2.dilate(image, NEIGHBOURS) for image in images])
        lowest = np.stack([cv2.erode(image, NEIGHBOURS) for image in images])
        self._highest, self._lowest = (np.ascontiguousarray(one.transpose(3, 0, 1, 2)) for one in (highest, lowest))

    def distances(self, image: np.ndarray) -> np.ndarray:
        """How far an image (h, w, 3) is outside the colours of each of the K frames: (K, h, w) uint8 grey levels,
        the largest of the three colours."""
        return self._distances(image, slice(None))

    def second_distance(self, image: np.ndarray, counted: np.ndarray) -> np.ndarray | None:
        """The second smallest of `distances` at each pixel, (h, w) uint8, so that one frame that is wrongly taken
        for uncovered does no harm. None if fewer than MIN_SURE of the pixels `counted` (h, w) have more than SURE,
        which few frames show in most cases."""
        smallest = second = np.full(image.shape[:2], 255, np.uint8)
        for start in range(0, self._highest.shape[1], FRAMES_AT_ONCE):
            for distance in self._distances(image, slice(start, start + FRAMES_AT_ONCE)):
                smallest, second = cv2.min(smallest, distance), cv2.min(second, cv2.max(smallest, distance))
            if np.count_nonzero((second > SURE) & counted) < MIN_SURE:
                return None
        return second

    def _distances(self, image: np.ndarray, frames: slice) -> np.ndarray:
        outside = []
        for plane, highest, lowest in zip(
            image.transpose(2, 0, 1), self._highest[:, frames], self._lowest[:, frames], strict=True
        ):
            count, height, width = highest.shape
            repeated = np.broadcast_to(plane, (count, height, width)).reshape(count * height, width)
            above = cv2.subtract(repeated, highest.reshape(repeated.shape))  # 0 instead of negative numbers
            outside.append(cv2.max(above, cv2.subtract(lowest.reshape(repeated.shape), repeated)))
        return cv2.max(cv2.max(outside[0], outside[1]), outside[2]).reshape(count, height, width)


def uncovered(images: Sequence[np.ndarray], faces: Sequence[np.ndarray]) -> list[bool]:
    """Which frames of a shot show the face uncovered.

    They are those that are like each other: first the frame that is most like a quarter of the others, then, one
    after the other, those that show nothing new. What covers the face in most frames is taken for a part of it. All
    frames count as uncovered if fewer than MIN_FRAMES are like each other.

    Args:
        images: (HEIGHT, WIDTH, 3) uint8 RGB each, in one light.
        faces: (HEIGHT, WIDTH) bool each, where the face is, without lips and what stands still.
    """
    size = (WIDTH // COARSE, HEIGHT // COARSE)
    small = [_softened(cv2.resize(image, size, interpolation=cv2.INTER_AREA)) for image in images]
    masks = np.stack([cv2.resize(np.float32(face), size, interpolation=cv2.INTER_AREA) > 0.9 for face in faces])
    palette = Palette(small)
    distances = np.stack([palette.distances(image) for image in small])  # of the first frame from the second
    distances *= masks[:, None]
    areas = np.maximum(masks.sum(axis=(1, 2)), 1)
    parts = (distances > UNEXPLAINED).sum(axis=(2, 3)) / areas[:, None]
    chosen = [int(np.argmin(np.quantile(parts, USUAL_PART, axis=1)))]
    while True:
        unexplained = (distances[:, chosen].min(axis=1) > UNEXPLAINED).sum(axis=(1, 2)) / areas
        unexplained[chosen] = 1
        if unexplained.min() > MAX_UNEXPLAINED:
            return [len(chosen) < MIN_FRAMES or index in chosen for index in range(len(images))]
        chosen.append(int(np.argmin(unexplained)))


class CoverFinder:
    """Finds what covers the mouth in the frames of a shot.

    Args:
        images: of `lower_part`, of uncovered frames, in the usual light of the shot. With fewer than MIN_FRAMES
            only what stands still is found.
        still: what stands still.
    """

    def __init__(self, images: Sequence[np.ndarray], still: StillPixels) -> None:
        self._palette = Palette([_softened(image) for image in images]) if len(images) >= MIN_FRAMES else None
        self._still = still

    def mask(self, image: np.ndarray, crop: FaceCrop, points: np.ndarray) -> np.ndarray:
        """The mask of one frame.

        Args:
            image: (HEIGHT, WIDTH, 3) uint8 RGB, from `lower_part`, in the usual light of the shot.
            crop: the face crop of the frame.
            points: (68, 2) landmarks in source pixels.

        Returns:
            The face crop at FLOW_SIZE, float32: 1 where something covers the face, 0 elsewhere, with soft edges.
        """
        covered, distance = self._still.in_crop(crop), None
        if self._palette:
            # Lips, teeth and tongue may look as in no other frame. What covers them reaches beyond them.
            lips = _lips(crop, points)
            distance = self._palette.second_distance(_softened(image), ~lips)
        if distance is not None:
            possible = distance > np.where(lips, SURE, POSSIBLE)
            new = np.uint8(_regions(possible, (distance > SURE) & ~lips, MIN_SURE))
            new = cv2.morphologyEx(new, cv2.MORPH_CLOSE, CLOSING, borderType=cv2.BORDER_REPLICATE)
            _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - new, connectivity=4)
            new[stats[labels, cv2.CC_STAT_AREA] <= MAX_HOLE] = 1
            covered = np.maximum(covered, cv2.dilate(new, NEIGHBOURS))
        mask = np.zeros(crop_size(FLOW_SIZE), np.float32)
        mask[TOP:] = covered
        return cv2.GaussianBlur(mask, (0, 0), EDGE) if mask.any() else mask


def face_of(crop: FaceCrop, points: np.ndarray) -> np.ndarray:
    """Where the face is in the lower part of its crop, without the lips, from landmarks (68, 2): (HEIGHT, WIDTH)
    bool."""
    return _hull(_in_lower_part(crop, points[LOWER_FACE_LANDMARKS]), (HEIGHT, WIDTH)) & ~_lips(crop, points)


def _lips(crop: FaceCrop, points: np.ndarray) -> np.ndarray:
    """The lips and a margin around them, (HEIGHT, WIDTH) bool."""
    lips = np.uint8(_hull(_in_lower_part(crop, points[LIPS]), (HEIGHT, WIDTH)))
    return cv2.dilate(lips, NEIGHBOURS, iterations=LIPS_MARGIN) > 0


def _in_lower_part(crop: FaceCrop, points: np.ndarray) -> np.ndarray:
    """Source coordinates (..., 2) in pixels of `lower_part`."""
    return crop.to_crop(points) * FLOW_SIZE / crop.mouth_size - np.array([0, TOP])


def _hull(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The convex hull of points (K, 2) in an image of this size, bool."""
    mask = np.zeros(size, np.uint8)
    cv2.fillConvexPoly(mask, np.rint(cv2.convexHull(points.astype(np.float32))).astype(np.int32), 1)
    return mask > 0


def _regions(possible: np.ndarray, sure: np.ndarray, min_sure: int) -> np.ndarray:
    """The connected regions of `possible` with at least `min_sure` pixels of `sure`, (h, w) bool all."""
    count, labels = cv2.connectedComponents(np.uint8(possible), connectivity=4)
    chosen = np.bincount(labels[sure], minlength=count) >= min_sure
    chosen[0] = False  # what is around the regions
    return chosen[labels]


def _softened(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), SOFTNESS)
