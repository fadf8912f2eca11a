"""Compare trackers of one face: python -m tests.tools.tracker_table VIDEO … [--tflite FILE …]

Every tracker starts from the same landmarks and follows the face frame by frame, each time from the landmarks of
the frame before. MediaPipe's face meshes are compared where their files are given: `face_landmark.tflite` in the
wheel mediapipe==0.10.14, and `face_landmarks_detector.tflite` in any `face_landmarker.task`, which is a zip file.
They run in TensorFlow Lite (pip install tensorflow); the project does not need them.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import cv2
import dlib
import numpy as np
from tqdm import tqdm

from data_processing.face.detectors import BOX_SHIFTS, box_around, fit_landmarks, track_landmarks
from data_processing.face.lips import mouth_opening
from data_processing.media.frame import Frame, RgbFrame
from data_processing.media.video_reader import read_video
from utils.command_line import run_command
from utils.errors import NoFaceError
from utils.weights import weight_path

NUM_MOVED = 24  # frames that one frame is turned, scaled and shifted into
SENSOR_NOISE = 2.0  # grey levels, standard deviation, in each of them
LARGE = 720  # pixels of the shorter side of a frame from which on it counts as large
# From the box around the landmarks to the square that MediaPipe's face meshes expect: the part of its height that
# the forehead adds, and a margin.
FOREHEAD, MARGIN = 0.35, 1.5
# points of MediaPipe's face meshes that are nearest to the 68 landmarks
MESH_TO_68 = [
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(71, 63, 105, 66, 107, 336, 296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
]  # fmt: skip

Tracker = Callable[[Frame, np.ndarray], np.ndarray]  # a frame, landmarks of the one before it -> its landmarks


def this_project(frame: Frame, points: np.ndarray, num_boxes: int) -> np.ndarray:
    return fit_landmarks(frame, box_around(points), BOX_SHIFTS[:num_boxes])


class FullResolution:
    """dlib's predictor on the frame as it is, in boxes around the face; their results are averaged.

    Args:
        shifts: (x, y) of the boxes, in widths of the face.
    """

    def __init__(self, *shifts: tuple[float, float]) -> None:
        self._predictor = dlib.shape_predictor(str(weight_path("landmarks68")))
        self._shifts = np.array(shifts)

    def __call__(self, frame: Frame, points: np.ndarray) -> np.ndarray:
        black, white = frame.luma_range
        luma = cv2.convertScaleAbs(cv2.subtract(frame.luma, black), alpha=255 / (white - black))
        box = box_around(points)
        found = []
        for shift in self._shifts * (box[2] - box[0]):
            shape = self._predictor(luma, dlib.rectangle(*np.rint(box + np.tile(shift, 2)).astype(int).tolist()))
            found.append([(part.x, part.y) for part in shape.parts()])
        return np.mean(found, axis=0)


class FaceMesh:
    """A face mesh of MediaPipe, in a square around the face that is turned so that the eyes are level."""

    def __init__(self, path: Path) -> None:
        from tensorflow.lite.python.interpreter import Interpreter

        self._network = Interpreter(str(path), num_threads=1)
        self._network.allocate_tensors()
        (self._input,) = self._network.get_input_details()
        self._side = int(self._input["shape"][1])
        # the mesh, three numbers for each of its points; the other outputs are smaller
        self._output = max(self._network.get_output_details(), key=lambda one: np.prod(one["shape"]))

    def __call__(self, frame: Frame, points: np.ndarray) -> np.ndarray:
        eyes = points[45] - points[36]
        cos, sin = eyes / np.linalg.norm(eyes)
        rotation = np.array([[cos, -sin], [sin, cos]])
        level = points @ rotation
        low, high = level.min(axis=0), level.max(axis=0)
        low[1] -= FOREHEAD * (high[1] - low[1])
        side = MARGIN * (high - low).max()
        axes, corner = side / self._side * rotation, rotation @ ((low + high - side) / 2)
        corners = corner + side * np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) @ rotation.T
        x0, y0 = np.clip(np.floor(corners.min(axis=0)), 0, [frame.width - 1, frame.height - 1]).astype(int)
        x1, y1 = np.clip(np.ceil(corners.max(axis=0)), [x0 + 1, y0 + 1], [frame.width, frame.height]).astype(int)
        image = cv2.warpAffine(
            frame.region(x0, y0, x1, y1),
            np.column_stack([axes, corner - [x0, y0]]),
            (self._side, self._side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        self._network.set_tensor(self._input["index"], image[None].astype(np.float32) / 255)
        self._network.invoke()
        mesh = self._network.get_tensor(self._output["index"]).reshape(-1, 3)[MESH_TO_68, :2]
        return mesh @ axes.T + corner


def moved(image: np.ndarray) -> Iterator[tuple[RgbFrame, np.ndarray]]:
    """An image (H, W, 3) uint8 RGB turned, scaled and shifted, with sensor noise; and matrices (2, 3) that bring
    points back."""
    rng = np.random.default_rng(0)
    height, width = image.shape[:2]
    for index in range(NUM_MOVED):
        scale, angle = 1 + 0.04 * np.sin(index / 5), 2 * np.sin(index / 4)
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
        matrix[:, 2] += 0.01 * height * np.array([np.sin(index / 3), np.cos(index / 3.7)])
        method = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REPLICATE}
        noisy = cv2.warpAffine(image, matrix, (width, height), **method) + rng.normal(0, SENSOR_NOISE, image.shape)
        yield RgbFrame(np.clip(np.rint(noisy), 0, 255).astype(np.uint8)), cv2.invertAffineTransform(matrix)


def follow(tracker: Tracker, frames: Iterable[Frame], points: np.ndarray) -> tuple[np.ndarray, float]:
    """Landmarks (T, 68, 2) of frames, from those of the frame before them, and milliseconds of processor time per
    frame."""
    found = []
    start = time.process_time()
    for frame in frames:
        points = tracker(frame, points)
        found.append(points)
    return np.array(found), 1000 * (time.process_time() - start) / len(found)


def error_under_known_motion(
    tracker: Tracker, motion: list[tuple[RgbFrame, np.ndarray]], points: np.ndarray
) -> float:
    """Root mean square error in pixels in following the frames of `moved`, from landmarks (68, 2) in the image; a
    constant error does not count."""
    frames, matrices = zip(*motion, strict=True)
    found, _ = follow(tracker, frames, points)
    back = np.array([one @ matrix[:, :2].T + matrix[:, 2] for one, matrix in zip(found, matrices, strict=True)])
    return float(np.sqrt(np.square(back - back.mean(axis=0)).sum(axis=2).mean()))


def measure(tracker: Tracker, frames: list[Frame], start: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """What one tracker does on one video. Lengths are in percent of the width of the face.

    Args:
        tracker: the tracker.
        frames: of the video.
        start: landmarks (68, 2) of the first frame.
        reference: landmarks (T, 68, 2) to compare with.
    """
    unit = 100 / np.ptp(reference[:, :, 0], axis=1).mean()
    points, ms = follow(tracker, frames, start)
    differences = points - reference
    is_large = min(frames[0].width, frames[0].height) >= LARGE
    return {
        "ms, large" if is_large else "ms, small": ms,
        "jitter": unit * float(np.median(np.linalg.norm(np.diff(points, 2, axis=0), axis=2))),
        "distance": unit * np.linalg.norm(differences, axis=2).mean(),
        "distance less its mean": unit * np.linalg.norm(differences - differences.mean(axis=0), axis=2).mean(),
        "correlation of openings": float(np.corrcoef(mouth_opening(points), mouth_opening(reference))[0, 1]),
    }


def run(args: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    trackers: dict[str, Tracker] = {
        "this project, 4 boxes": partial(this_project, num_boxes=4),
        "3 boxes (30 fps)": partial(this_project, num_boxes=3),
        "2 boxes (50 and 60 fps)": partial(this_project, num_boxes=2),
        "dlib alone": FullResolution((0, 0)),
    }
    trackers |= {f"MediaPipe, {path.stem}": FaceMesh(path) for path in args.tflite}
    reference_tracker = FullResolution(*product(np.linspace(-0.08, 0.08, 4), repeat=2))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in trackers}
    for path in tqdm(args.videos, unit="video"):
        frames = list(read_video(path, stop=args.frames))
        start, _ = next(track_landmarks(iter(frames[:1]), "dlib"))
        if np.isnan(start).any():
            raise NoFaceError(path, "no face detected in the first frame (dlib)")
        reference, _ = follow(reference_tracker, frames, start)
        left, top, right, bottom = np.rint(box_around(start)).astype(int)
        around = max(0, 2 * left - right), max(0, 2 * top - bottom)
        face = frames[0].rgb()[around[1] : 2 * bottom - top, around[0] : 2 * right - left]
        motion = list(moved(face))
        unit = 100 / np.ptp(start[:, 0])
        for name, tracker in trackers.items():
            error = unit * error_under_known_motion(tracker, motion, start - around)
            results[name].append({"error under known motion": error} | measure(tracker, frames, start, reference))
    columns = dict.fromkeys(column for row in results["dlib alone"] for column in row)
    columns = sorted(columns, key=lambda name: not name.startswith("ms"))
    print(f"| tracker | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name, rows in results.items():
        means = (np.mean([row[column] for row in rows if column in row]) for column in columns)
        print(f"| {name} | {' | '.join(f'{mean:.2f}' for mean in means)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path, help="with one face from the first frame on")
    parser.add_argument("--frames", type=int, default=100, help="of each video (default: %(default)s)")
    parser.add_argument("--tflite", nargs="*", default=[], type=Path, help="face meshes of MediaPipe")
    run_command(parser, run)


if __name__ == "__main__":
    main()
