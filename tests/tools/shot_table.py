"""Compare shot detectors on made cuts: python -m tests.tools.shot_table FOLDER

Joins and changes the videos of a folder (talking faces, each of one shot) in many ways, and prints for each way and
each detector how many boundaries are found, and how many false ones, as a Markdown table; in the last row, on the
unchanged videos. PySceneDetect is compared where it is installed (pip install scenedetect); the project does not
need it.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from data_processing.media.frame import RgbFrame
from data_processing.media.shots import LUMA, ShotDetector
from data_processing.media.video_reader import FPS, VIDEO_SUFFIXES, read_frames
from utils.command_line import run_command
from utils.errors import FileError

WIDTH = 256  # of the frames that are compared, as in PySceneDetect
CLIP_S = 6.0  # of each video, to make examples of
BEFORE = 50  # frames of each example before and after the change
TOLERANCE = 3  # frames between a boundary and its detection

Frames = np.ndarray  # (T, H, W, 3) uint8 RGB


@dataclass
class Example:
    """A made video and its true shot boundaries, as ranges of frames [first, last] in which a shot may start."""

    frames: Frames
    boundaries: list[tuple[int, int]] = field(default_factory=list)
    fps: float = FPS


@dataclass
class Material:
    """Clips to make examples of, and the generator that chooses them."""

    clips: list[Frames]
    rng: np.random.Generator

    def one(self, length: int = 2 * BEFORE + 50) -> Frames:
        """A random part of a random clip; played forward and backward where it is too short."""
        return self._part(self.clips[self.rng.integers(len(self.clips))], length)

    def two(self, length: int = 2 * BEFORE + 50) -> tuple[Frames, Frames]:
        """Random parts of two clips, the second in the size of the first."""
        a, b = self.rng.choice(len(self.clips), 2, replace=False)
        first = self._part(self.clips[a], length)
        return first, fill(self._part(self.clips[b], length), first.shape[1:3])

    def alike(self, length: int = 2 * BEFORE + 50) -> tuple[Frames, Frames]:
        """Random parts of a clip and of the clip that is most like it, of 20 random ones."""
        a = self.rng.integers(len(self.clips))
        first = self._part(self.clips[a], length)
        others = [index for index in self.rng.permutation(len(self.clips)) if index != a][:20]
        candidates = [fill(self.clips[index][:1], first.shape[1:3])[0] for index in others]
        closest = np.argmax([np.corrcoef(first[0].ravel(), one.ravel())[0, 1] for one in candidates])
        return first, fill(self._part(self.clips[others[closest]], length), first.shape[1:3])

    def _part(self, clip: Frames, length: int) -> Frames:
        index = np.arange(length) + self.rng.integers(max(1, len(clip) - length + 1))
        index = index % max(1, 2 * len(clip) - 2)
        return clip[np.where(index < len(clip), index, 2 * len(clip) - 2 - index)]


def fill(frames: Frames, size: tuple[int, int]) -> Frames:
    """Scale to cover (height, width) and cut off what is outside."""
    height, width = size
    scale = max(height / frames.shape[1], width / frames.shape[2])
    scaled_size = (max(width, round(frames.shape[2] * scale)), max(height, round(frames.shape[1] * scale)))
    scaled = np.stack([cv2.resize(frame, scaled_size, interpolation=cv2.INTER_AREA) for frame in frames])
    top, left = (scaled.shape[1] - height) // 2, (scaled.shape[2] - width) // 2
    return scaled[:, top : top + height, left : left + width]


def scaled(frames: Frames, gain: np.ndarray | float, offset: np.ndarray | float = 0.0) -> Frames:
    """Frames times `gain` plus `offset`, both scalar or (T,)."""
    gain, offset = (np.reshape(value, (-1, 1, 1, 1)) for value in (gain, offset))
    return np.clip(frames * gain + offset, 0, 255).astype(np.uint8)


def window(frames: Frames, x: np.ndarray, y: np.ndarray, zoom: np.ndarray) -> Frames:
    """What a camera sees that shows 1 / zoom of each frame, centred at (x, y), in [0, 1] as far as it can move."""
    height, width = frames.shape[1:3]
    result = []
    for frame, u, v, z in zip(frames, x, y, zoom, strict=True):
        left, top = u * width * (1 - 1 / z), v * height * (1 - 1 / z)
        matrix = np.array([[1 / z, 0, left], [0, 1 / z, top]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        result.append(cv2.warpAffine(frame, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT))
    return np.stack(result)


def ramp(length: int, start: int, stop: int) -> np.ndarray:
    """(length,): 0 before `start`, 1 from `stop`, linear between."""
    return np.clip((np.arange(length) - start + 1) / (stop - start + 1), 0, 1)


# --- boundaries: each makes one example ------------------------------------------------------------------------


def cut(first: Frames, second: Frames) -> Example:
    return Example(np.concatenate([first[:BEFORE], second[-BEFORE:]]), [(BEFORE, BEFORE)])


def other_time(material: Material) -> Example:
    clip = max((material.one(150) for _ in range(5)), key=lambda one: np.abs(one[0] - 1.0 * one[-1]).mean())
    return cut(clip, clip)


def cut_of_contrast(gain: float, offset: float) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        example = cut(*material.two())
        noise = material.rng.integers(0, 2, example.frames.shape, dtype=np.uint8)
        return Example(scaled(example.frames, gain, offset) + noise, example.boundaries)

    return make


def punch_in(zoom: float) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        clip = material.one(2 * BEFORE)
        zooms = np.where(np.arange(len(clip)) < BEFORE, 1, zoom)
        half = np.full(len(clip), 0.5)
        return Example(window(clip, half, half, zooms), [(BEFORE, BEFORE)])

    return make


def dissolve(length: int) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        first, second = material.two(2 * BEFORE + length)
        weight = ramp(len(first), BEFORE, BEFORE + length)[:, None, None, None]
        blend = np.rint(first * (1 - weight) + second * weight).astype(np.uint8)
        return Example(blend, [(BEFORE, BEFORE + length)])

    return make


def dip(level: int, length: int) -> Callable[[Material], Example]:
    """Fade to a uniform level in `length` frames and up to another clip."""

    def make(material: Material) -> Example:
        first, second = material.two(2 * BEFORE + 2 * length)
        t = np.arange(len(first))
        away = np.clip(1 - np.abs(t - BEFORE - length + 0.5) / length, 0, 1)
        frames = np.where((t < BEFORE + length)[:, None, None, None], first, second)
        return Example(scaled(frames, 1 - away, level * away), [(BEFORE, BEFORE + 2 * length)])

    return make


def colour(length: int, arrives: bool) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        clip = material.one(2 * BEFORE + length)
        gray = clip @ np.array(LUMA)
        weight = ramp(len(clip), BEFORE, BEFORE + length) if length else np.arange(len(clip)) >= BEFORE
        weight = (weight if arrives else 1 - weight)[:, None, None, None]
        return Example(
            (gray[..., None] * (1 - weight) + clip * weight).astype(np.uint8), [(BEFORE, BEFORE + length)]
        )

    return make


def smaller(material: Material) -> Example:
    """The second half is of 3/4 of the size, with black bars around it."""
    clip = material.one(2 * BEFORE).copy()
    top, left = clip.shape[1] // 8, clip.shape[2] // 8
    for frame in clip[BEFORE:]:
        inner = frame[top:-top, left:-left]
        inner[:] = cv2.resize(frame, inner.shape[1::-1], interpolation=cv2.INTER_AREA)
        frame[:top], frame[-top:], frame[:, :left], frame[:, -left:] = 0, 0, 0, 0
    return Example(clip, [(BEFORE, BEFORE)])


def wipe(length: int) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        first, second = material.two(2 * BEFORE + length)
        frames = first.copy()
        for frame, other, weight in zip(frames, second, ramp(len(first), BEFORE, BEFORE + length), strict=True):
            column = round(weight * frame.shape[1])
            frame[:, :column] = other[:, :column]
        return Example(frames, [(BEFORE, BEFORE + length)])

    return make


def iris(length: int) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        first, second = material.two(2 * BEFORE + length)
        row, column = np.mgrid[-1 : 1 : first.shape[1] * 1j, -1 : 1 : first.shape[2] * 1j]
        replaced = np.hypot(row, column) < 1.5 * ramp(len(first), BEFORE, BEFORE + length)[:, None, None]
        return Example(np.where(replaced[..., None], second, first), [(BEFORE, BEFORE + length)])

    return make


def slide(length: int) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        first, second = material.two(2 * BEFORE + length)
        frames = first.copy()
        for index, weight in enumerate(ramp(len(first), BEFORE, BEFORE + length)):
            column = round(weight * frames.shape[2])
            frames[index] = np.roll(np.concatenate([first[index], second[index]], axis=1), -column, axis=1)[
                :, : frames.shape[2]
            ]
        return Example(frames, [(BEFORE, BEFORE + length)])

    return make


def at_10_fps(frames: Frames) -> Frames:
    return frames[np.arange(0, len(frames), 2.5).astype(int)]


def cut_at_10_fps(material: Material) -> Example:
    first, second = material.two(125)
    return Example(np.concatenate([at_10_fps(first), at_10_fps(second)]), [(50, 50)], 10.0)


def repeated(material: Material) -> Example:
    example = cut(*material.two())
    return Example(example.frames.repeat(2, axis=0), [(2 * BEFORE, 2 * BEFORE)], 2.0 * FPS)


# --- no boundary -----------------------------------------------------------------------------------------------


def flash(length: int) -> Callable[[Material], Example]:
    def make(material: Material) -> Example:
        clip = material.one()
        gain = np.where((np.arange(len(clip)) >= BEFORE) & (np.arange(len(clip)) < BEFORE + length), 1.5, 1)
        return Example(scaled(clip, gain, np.where(gain > 1, 130, 0)))

    return make


def exposure_step(material: Material) -> Example:
    clip = material.one()
    gain = np.where(np.arange(len(clip)) < BEFORE, 1, material.rng.choice([0.4, 0.6, 1.5]))
    return Example(scaled(clip, gain, np.where(gain == 1, 0, material.rng.choice([0, 20]))))


def lamp(length: int) -> Callable[[Material], Example]:
    """Light from one side arrives."""

    def make(material: Material) -> Example:
        clip = material.one()
        side = np.linspace(0.25, 1.0, clip.shape[2]) ** 1.5
        weight = ramp(len(clip), BEFORE, BEFORE + length)[:, None, None, None]
        gain = 0.25 * (1 - weight) + side[:, None] * weight
        return Example(np.clip(clip * gain, 0, 255).astype(np.uint8))

    return make


def clouds(material: Material) -> Example:
    clip = material.one()
    return Example(scaled(clip, 0.75 + 0.25 * np.sin(np.arange(len(clip)) / 6)))


def tint(material: Material) -> Example:
    """The colours of the light change within a second; the clip is sepia in every second example."""
    clip = material.one().astype(np.float32)
    if material.rng.random() < 0.5:
        clip = (clip @ np.float32(LUMA))[..., None] * np.float32([1.05, 0.95, 0.75])
    gains = material.rng.uniform(0.6, 1.2, 3)
    weight = ramp(len(clip), BEFORE, BEFORE + material.rng.integers(1, 25))[:, None, None, None]
    return Example(np.clip(clip * (1 - weight + gains * weight), 0, 255).astype(np.uint8))


def background(material: Material) -> Example:
    """Something else is shown behind a person every two seconds, on a third of the frame."""
    first, second = material.two(200)
    first = first.copy()
    width = first.shape[2] // 3
    for index, frame in enumerate(first):
        if index // BEFORE % 2:
            frame[:, :width] = second[index, :, :width]
    return Example(first)


def fade(level: int, length: int, dark: int) -> Callable[[Material], Example]:
    """Fade to a uniform level, stay there for `dark` frames, and up again to the same clip."""

    def make(material: Material) -> Example:
        clip = material.one(2 * BEFORE + 2 * length + dark)
        down = ramp(len(clip), BEFORE, BEFORE + length)
        away = np.minimum(down, 1 - ramp(len(clip), BEFORE + length + dark, BEFORE + 2 * length + dark))
        return Example(scaled(clip, 1 - away, level * away))

    return make


def pan(speed: float) -> Callable[[Material], Example]:
    """A camera that shows half of the frame and moves over it in 1 / speed frames, over a still or a video."""

    def make(material: Material) -> Example:
        clip = material.one()
        if material.rng.random() < 0.5:
            clip = np.repeat(clip[:1], len(clip), axis=0)
        x = np.clip((np.arange(len(clip)) - BEFORE) * speed, 0, 1)
        return Example(window(clip, x, np.full(len(clip), 0.3), np.full(len(clip), 2.0)))

    return make


def zoom(material: Material) -> Example:
    clip = material.one()
    half = np.full(len(clip), 0.5)
    return Example(window(clip, half, half, np.linspace(1, 2, len(clip))))


def shake(material: Material) -> Example:
    clip = material.one()
    x, y = 0.5 + 0.12 * cv2.blur(material.rng.normal(0, 3, (2, len(clip))), (3, 1))
    return Example(window(clip, x, y, np.full(len(clip), 1.3)))


def caption(material: Material) -> Example:
    clip = material.one().copy()
    height, width = clip.shape[1:3]
    for index in range(BEFORE, len(clip)):
        text = "word by word"[: (index - BEFORE) // 4 % 12 + 1].upper()
        cv2.rectangle(clip[index], (0, int(0.75 * height)), (width, int(0.95 * height)), (20, 30, 90), -1)
        cv2.putText(clip[index], text, (20, int(0.9 * height)), 0, height / 200, (255, 255, 255), 2)
    return Example(clip)


def inset(material: Material) -> Example:
    """A second video appears in a corner, a quarter of the width, and disappears."""
    first, second = material.two()
    first = first.copy()
    height, width = first.shape[1] // 4, first.shape[2] // 4
    for frame, other in zip(first[BEFORE : 2 * BEFORE], second[BEFORE:], strict=False):
        frame[4 : 4 + height, 4 : 4 + width] = cv2.resize(other, (width, height), interpolation=cv2.INTER_AREA)
    return Example(first)


def steady_10_fps(material: Material) -> Example:
    return Example(at_10_fps(material.one(250)), fps=10.0)


def steady_repeated(material: Material) -> Example:
    return Example(material.one().repeat(2, axis=0), fps=2.0 * FPS)


KINDS: dict[str, Callable[[Material], Example]] = {
    "cut between two clips": lambda material: cut(*material.two()),
    "cut between similar clips": lambda material: cut(*material.alike()),
    "cut, dark": cut_of_contrast(0.12, 0),
    "cut, low contrast": cut_of_contrast(0.12, 90),
    "cut, 10 fps": cut_at_10_fps,
    "cut, every frame twice": repeated,
    "jump cut of one person": other_time,
    "punch-in, 1.1": punch_in(1.1),
    "punch-in, 1.2": punch_in(1.2),
    "punch-in, 1.3": punch_in(1.3),
    "dissolve, 5 frames": dissolve(5),
    "dissolve, 12 frames": dissolve(12),
    "dissolve, 25 frames": dissolve(25),
    "dissolve, 50 frames": dissolve(50),
    "dip to black, 12 + 12": dip(0, 12),
    "dip to white, 12 + 12": dip(255, 12),
    "dip to black, 3 + 3": dip(0, 3),
    "colour arrives at once": colour(0, True),
    "colour arrives in 25 frames": colour(25, True),
    "colour leaves at once": colour(0, False),
    "colour leaves in 25 frames": colour(25, False),
    "other image size": smaller,
    "wipe, 12 frames": wipe(12),
    "iris, 12 frames": iris(12),
    "slide, 12 frames": slide(12),
    "none: flash, 1 frame": flash(1),
    "none: flash, 3 frames": flash(3),
    "none: flash, 5 frames": flash(5),
    "none: exposure step": exposure_step,
    "none: lamp, at once": lamp(1),
    "none: lamp, 25 frames": lamp(25),
    "none: clouds": clouds,
    "none: dip to black, same clip": fade(0, 12, 6),
    "none: dip to white, same clip": fade(255, 12, 6),
    "none: sepia, white balance": tint,
    "none: new background": background,
    "none: pan, 2 s": pan(1 / 50),
    "none: pan, 0.5 s": pan(1 / 12),
    "none: whip pan, 0.2 s": pan(1 / 5),
    "none: zoom": zoom,
    "none: hand-held": shake,
    "none: captions": caption,
    "none: inset video": inset,
    "none: 10 fps": steady_10_fps,
    "none: every frame twice": steady_repeated,
}


# --- detectors: frames -> first frames of shots ------------------------------------------------------------------


def grey_change(frames: Frames, fps: float) -> list[int]:
    """The rule used before: a mean change of more than 35 grey levels of a 32 × 32 thumbnail."""
    found, previous = [], None
    for index, frame in enumerate(frames):
        gray = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        thumbnail = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
        if previous is not None and np.abs(thumbnail - previous).mean() > 35:
            found.append(index)
        previous = thumbnail
    return found


def this_project(frames: Frames, fps: float) -> list[int]:
    detector = ShotDetector(fps)
    states = []
    for frame in frames:
        detector.add(RgbFrame(frame))
        states += detector.decide()
    states += detector.decide(ended=True)
    return [index for index, state in enumerate(states) if state.starts]


def pyscenedetect(*names: str) -> Callable[[Frames, float], list[int]]:
    """Detectors of PySceneDetect at their defaults, fed frame by frame."""
    from scenedetect import FrameTimecode, detectors

    logging.getLogger("pyscenedetect").setLevel(logging.ERROR)

    def detect(frames: Frames, fps: float) -> list[int]:
        found = set()
        for name in names:
            detector = getattr(detectors, name)()
            for index, frame in enumerate(frames):
                bgr = np.ascontiguousarray(frame[..., ::-1])
                found |= {cut.frame_num for cut in detector.process_frame(FrameTimecode(index, float(fps)), bgr)}
            last = FrameTimecode(len(frames) - 1, float(fps))
            found |= {cut.frame_num for cut in detector.post_process(last)}
        return sorted(found - {0})

    return detect


def available_detectors() -> dict[str, Callable[[Frames, float], list[int]]]:
    found = {"grey change": grey_change, "this project": this_project}
    if find_spec("scenedetect"):
        names = ("Content", "Adaptive", "Threshold", "Histogram", "Hash")
        found |= {name: pyscenedetect(f"{name}Detector") for name in names}
        found["Adaptive + Threshold"] = pyscenedetect("AdaptiveDetector", "ThresholdDetector")
    return found


def score(example: Example, found: list[int]) -> tuple[int, int]:
    """Numbers of true boundaries found and of detections that belong to none."""
    slack = TOLERANCE * example.fps / FPS
    near = [
        [index for index in found if first - slack <= index <= last + slack] for first, last in example.boundaries
    ]
    return sum(map(bool, near)), len(set(found) - {index for group in near for index in group})


def shrunk(path: Path) -> Iterator[np.ndarray]:
    """The frames of a video, WIDTH pixels wide."""
    for frame in read_frames(path):
        height = round(frame.shape[0] * WIDTH / frame.shape[1])
        yield cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA)


def run(args: argparse.Namespace) -> None:
    paths = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if len(paths) < 2:
        raise FileError(args.folder, f"expected two or more videos, found {len(paths)}")
    cv2.setNumThreads(1)  # for small images, more are slower
    detectors = available_detectors()
    clips, false_alarms, num_frames = [], dict.fromkeys(detectors, 0), 0
    for path in tqdm(paths, unit="video"):
        frames = np.stack(list(shrunk(path)))
        num_frames += len(frames)
        for name, detect in detectors.items():
            found = detect(frames, FPS)
            false_alarms[name] += len(found)
            if found:
                tqdm.write(f"{path.name}: {name}: {found}", file=sys.stderr)
        clips.append(frames[: round(CLIP_S * FPS)])
    rows = [["made of the videos", *detectors], ["---"] * (1 + len(detectors))]
    for kind, make in tqdm(KINDS.items(), unit="kind"):
        material = Material(clips, np.random.default_rng([args.seed, *kind.encode()]))
        counts = dict.fromkeys(detectors, (0, 0))
        num_boundaries = 0
        for _ in range(args.examples):
            example = make(material)
            num_boundaries += len(example.boundaries)
            for name, detect in detectors.items():
                counts[name] = tuple(np.add(counts[name], score(example, detect(example.frames, example.fps))))
        cells = [
            (f"{right}/{num_boundaries}" if num_boundaries else "") + (f" +{wrong}" if wrong else "")
            for right, wrong in counts.values()
        ]
        rows.append([kind, *cells])
    minutes = num_frames / FPS / 60
    rows.append([f"unchanged videos, {minutes:.1f} minutes", *(f"+{count}" for count in false_alarms.values())])
    for row in rows:
        print(f"| {' | '.join(cell.strip() or '0' for cell in row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="two or more videos of talking faces, each of one shot")
    parser.add_argument("--examples", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    run_command(parser, run)


if __name__ == "__main__":
    main()
