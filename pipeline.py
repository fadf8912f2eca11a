"""Dubbing as a library:

    pipeline = DubbingPipeline()
    pipeline.dub(Path("speaker.mp4"), Path("speech.wav"), Path("dubbed.mp4"))

    for frame in pipeline.stream(frames, sound, fps=30):  # as they come
        show(frame)

Both hold a few seconds of frames and sound at most, and give the first frame as soon as the face is known for long
enough. inference.py is the command line of `dub`.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from fractions import Fraction
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from data_processing.audio import media_seconds, read_audio
from data_processing.audio_features import FEATURE_DIMS, Sound
from data_processing.errors import UserError
from data_processing.faces import Choice, choice_of, largest
from data_processing.footage import Footage, LiveFrames, VideoFile, ahead
from data_processing.geometry import FaceCrop, crop_radius, lips_box
from data_processing.landmarks import FADE_S, Landmarks, Stretch, follow, in_view, mouth_opening, track
from data_processing.video import FPS, probe, read_frames
from data_processing.writing import VideoWriter
from models.checkpoint import LoadedModel, load_model
from models.device import choose_device, choose_precision
from models.dinet import DINet
from models.engine import Engine

ROOT = Path(__file__).parent
BUNDLED_CHECKPOINT = ROOT / "checkpoints/dinet_64.safetensors"
BATCH_SIZE = 8
LOOK_AHEAD_S = 8  # of a file, before its first frame is drawn: long enough to choose references from
READ_AHEAD = 2 * BATCH_SIZE  # frames waiting between reading, drawing and writing
SHOTS_HELD = 16  # whose references are kept ready
MOST_SHARPENING = 1.0  # more makes teeth of noise
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Dubbed(NamedTuple):
    """What became of a video: frames written, redrawn ones among them, frames per second, and seconds it took until
    the first frame was drawn and in all."""

    frames: int
    redrawn: int
    fps: Fraction
    first_s: float
    seconds: float


class Drawn(NamedTuple):
    """A frame of the source, the same with the mouth redrawn, and whether it was; (H, W, 3) uint8 RGB."""

    source: np.ndarray
    dubbed: np.ndarray
    changed: bool


# --- the generator ------------------------------------------------------------------------------------------


class Dubber:
    """A generator with the means to redraw face crops."""

    def __init__(self, loaded: LoadedModel, device: torch.device, precision: str) -> None:
        model = loaded.model.to(device, memory_format=torch.channels_last)
        # The engine is DINet's; a Wav2Lip is run as it is.
        self.model = Engine(model, DTYPES[precision]) if isinstance(model, DINet) else model
        self.mouth_size = loaded.mouth_size
        self.audio_features = loaded.audio_features
        self.device = device
        self._autocast = None if isinstance(model, DINet) or precision == "fp32" else DTYPES[precision]

    def _casting(self) -> Any:
        return torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()

    def _to_tensor(self, crops: list[np.ndarray]) -> torch.Tensor:
        """(13S/8, 5S/4, 3) uint8 crops -> (B, 3, H, W) in [0, 1]."""
        images = torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2)
        return (images.float() / 255).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode_references(self, crops: list[np.ndarray]) -> Any:
        """Encode the N reference crops of a shot, (13S/8, 5S/4, 3) uint8 RGB each."""
        stacked = self._to_tensor(crops).flatten(0, 1)[None]
        with self._casting():
            return self.model.encode_references(stacked)

    @torch.inference_mode()
    def redraw(self, crops: list[np.ndarray], references: Any, windows: np.ndarray) -> np.ndarray:
        """Face crops as the audio windows (B, D, 5) would have them: (B, 13S/8, 5S/4, 3) uint8 RGB."""
        masked = self.model.mask(self._to_tensor(crops))
        with self._casting():
            output = self.model.generate(masked, references, torch.from_numpy(windows).to(self.device))
        if not torch.isfinite(output).all():
            raise UserError("--checkpoint: the generator drew what are no numbers; try --precision fp32")
        images = (output.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return images.permute(0, 2, 3, 1).cpu().numpy()


def load_hearing(checkpoint: Path, device: torch.device) -> LoadedModel:
    """A generator that is driven by a sound.

    Raises:
        UserError: the file is none, or is driven by lips.
    """
    loaded = load_model(checkpoint, device)
    if loaded.audio_features not in FEATURE_DIMS:
        raise UserError(
            f"--checkpoint: {checkpoint} is driven by {loaded.audio_features}, not by a sound; train on from "
            "it with audio_warmup_steps (README, Train)"
        )
    return loaded


# --- shots ------------------------------------------------------------------------------------------------------


def choose_references(landmarks: Landmarks, start: int, stop: int, count: int) -> list[int]:
    """Frames of a shot spread over mouth shapes and head poses: farthest-point sampling, the same every time.

    The first is the frame nearest the middle of all; each further one is the frame least like those chosen.
    Frames with unusual landmarks (the outer two per cent of any measure) are left to the side.
    """
    frames = start + np.flatnonzero(landmarks.found[start:stop])
    points = landmarks.points[frames]
    eyes = points[:, 36:48].mean(axis=1)
    face = np.linalg.norm(points[:, 8] - eyes, axis=1)
    measures = np.stack(
        [
            2 * mouth_opening(points),  # mouth shapes count twice
            2 * np.linalg.norm(points[:, 54] - points[:, 48], axis=1) / face,
            (points[:, 30, 0] - points[:, [0, 16], 0].mean(axis=1)) / face,  # yaw
            (points[:, 30, 1] - eyes[:, 1]) / face,  # pitch
            (points[:, 45, 1] - points[:, 36, 1]) / face,  # roll
        ],
        axis=1,
    )
    low, high = np.percentile(measures, [2, 98], axis=0)
    usual = ((measures >= low) & (measures <= high)).all(axis=1)
    if usual.sum() >= count:
        frames, measures = frames[usual], measures[usual]
    chosen = [int(np.argmin(np.linalg.norm(measures - np.median(measures, axis=0), axis=1)))]
    while len(chosen) < count:
        distance = np.linalg.norm(measures[:, None] - measures[chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    return [int(frames[index]) for index in chosen]


def references_of(
    stretch: Stretch, shot: tuple[int, int], count: int, radius_px: float, mouth_size: int
) -> list[tuple[int, FaceCrop]]:
    """Frames and their crops to take as references of a shot, rows [first, last) of the stretch's landmarks."""
    known = max(shot[0], stretch.start - stretch.offset), shot[1]  # live frames before are gone
    points = stretch.landmarks.points
    return [
        (stretch.offset + row, FaceCrop.from_landmarks(points[row], radius_px, mouth_size))
        for row in choose_references(stretch.landmarks, *known, count)
    ]


def sharpening(drawn: np.ndarray, references: list[np.ndarray]) -> float:
    """How much `sharpened` has to add for drawn lips (B, 13S/8, 5S/4, 3) to have the detail of those of references
    (13S/8, 5S/4, 3), all uint8; MOST_SHARPENING at most."""
    box = lips_box(drawn.shape[2] * 4 // 5)

    def detail(crops: Iterable[np.ndarray]) -> float:
        grays = (cv2.cvtColor(crop[box], cv2.COLOR_RGB2GRAY) for crop in crops)
        return float(np.mean([cv2.Laplacian(gray, cv2.CV_32F).var() for gray in grays]))

    wanted = detail(references)
    amounts = np.arange(0, MOST_SHARPENING + 0.01, 0.125)
    return next((amount for amount in amounts if detail(sharpened(drawn, amount)) >= wanted), MOST_SHARPENING)


def sharpened(crops: np.ndarray, amount: float) -> np.ndarray:
    """Crops (B, 13S/8, 5S/4, 3) uint8 with so much of their detail added again (unsharp masking)."""
    if amount == 0:
        return crops
    blurred = np.stack([cv2.GaussianBlur(crop, (0, 0), 1) for crop in crops])
    detail = crops.astype(np.float32) - blurred
    return np.clip(np.rint(crops + amount * detail), 0, 255).astype(np.uint8)


class Place(NamedTuple):
    """Where and how a frame is redrawn: its landmarks (68, 2), the crop's radius, the shot whose references it is
    drawn with (−1 for not at all), and how far the new mouth covers the old one, 0 to 1."""

    points: np.ndarray
    radius_px: float
    shot: int
    strength: float


class Redrawer:
    """Finds the face in footage, and redraws it as long as the sound lasts.

    Args:
        dubber: the generator.
        footage: the frames.
        sound: what the lips are to say.
        backend: landmark detector.
        choose: which of several faces.
        look_ahead_s: seconds by which a shot is seen before it is drawn.
        given: reference crops to use in place of those chosen in each shot.
        sharpen: give the lips as much detail as those of the references have.
    """

    def __init__(
        self,
        dubber: Dubber,
        footage: Footage,
        sound: Sound,
        backend: str = "dlib",
        choose: Choice = largest,
        look_ahead_s: float = LOOK_AHEAD_S,
        given: list[np.ndarray] | None = None,
        sharpen: bool = False,
    ) -> None:
        self.dubber, self.footage, self.sound, self.backend = dubber, footage, sound, backend
        self.choose, self.look_ahead, self.given = choose, max(1, round(look_ahead_s * footage.fps)), given
        self.sharpen = sharpen
        self.amounts: dict[int, float] = {}  # of sharpening, of every shot
        self.chosen: list[list[tuple[int, FaceCrop]]] = []  # references of every shot
        self.references = lru_cache(SHOTS_HELD)(self._extract)
        self.encode = lru_cache(SHOTS_HELD)(lambda shot: dubber.encode_references(self.references(shot)))
        self.seen = 0  # frames of the footage so far
        self.places: list[Place] = []  # of every one of them, if they are shown again
        self.stopped = threading.Event()

    def frames(self, keep_rest: bool = False) -> Iterator[Drawn]:
        """The frames as long as the sound lasts; with `keep_rest` to the footage's end, untouched from there on.

        A file that ends before the sound does is played backward and forward again.
        """
        with closing(self._moments(keep_rest)) as moments:
            for shot, run in groupby(moments, key=lambda moment: moment[1].shot):
                while batch := list(islice(run, BATCH_SIZE)):
                    if shot < 0:
                        yield from (Drawn(frame, frame, False) for _, _, frame in batch)
                    else:
                        yield from self._redraw(shot, *map(list, zip(*batch, strict=True)))

    def _redraw(
        self, shot: int, times_s: list[float], places: list[Place], frames: list[np.ndarray]
    ) -> Iterator[Drawn]:
        crops = [FaceCrop.from_landmarks(at.points, at.radius_px, self.dubber.mouth_size) for at in places]
        extracted = [crop.extract(frame) for crop, frame in zip(crops, frames, strict=True)]
        windows = self.sound.windows(np.array(times_s))
        drawn = self.dubber.redraw(extracted, self.encode(shot), windows)
        if self.sharpen:
            if shot not in self.amounts:  # once a shot, so that it is steady
                self.amounts[shot] = sharpening(drawn, self.references(shot))
            drawn = sharpened(drawn, self.amounts[shot])
        for crop, frame, image, place in zip(crops, frames, drawn, places, strict=True):
            yield Drawn(frame, crop.paste(frame, image, place.points, place.strength), True)

    def _moments(self, keep_rest: bool) -> Iterator[tuple[float, Place, np.ndarray]]:
        """(seconds, place, frame) of everything to be shown."""
        with closing(self._timeline()) as timeline:
            for number, (place, frame) in enumerate(timeline):
                time_s = float(number / self.footage.fps)
                left_s = self.sound.left(time_s, FADE_S)
                rest_follows = keep_rest and number < self.seen
                if left_s == 0 and not rest_follows:
                    return
                if left_s == 0:
                    place = place._replace(shot=-1)
                elif rest_follows and left_s < FADE_S:
                    place = place._replace(strength=place.strength * left_s / FADE_S)
                yield time_s, place, frame

    def _timeline(self) -> Iterator[tuple[Place, np.ndarray]]:
        """Places and frames of the footage, and of a file again, backward and forward, without end."""
        looked_at, again = self._places(), self.footage.again()
        from_file = isinstance(self.footage, VideoFile)
        if from_file:
            looked_at, again = ahead(looked_at, self.look_ahead), ahead(again, READ_AHEAD)
        with closing(looked_at), closing(again):
            try:
                for place, frame in zip(looked_at, again, strict=False):
                    self.seen += 1
                    if from_file:
                        self.places.append(place)
                    yield place, frame
            finally:
                self.stopped.set()
        if from_file and self.chosen:
            for index, frame in self.footage.back_and_forth(len(self.places)):
                yield self.places[index], frame

    def _extract(self, shot: int) -> list[np.ndarray]:
        """The reference crops of a shot."""
        return self.given or [crop.extract(self.footage.frame(index)) for index, crop in self.chosen[shot]]

    def _places(self) -> Iterator[Place]:
        """Where the frames are redrawn, as it becomes known."""
        footage, count = self.footage, self.dubber.model.config.num_references
        radius = 0.0
        for stretch in follow(self._tracked(), footage.fps, self.look_ahead):
            frames = range(stretch.start, stretch.stop)
            for number, run in groupby(zip(frames, stretch.numbers, strict=True), key=lambda frame: int(frame[1])):
                run_frames = [frame for frame, _ in run]
                if number < 0:
                    yield from (Place(stretch.points(frame), 0.0, -1, 0.0) for frame in run_frames)
                    continue
                shot = stretch.seen_of(run_frames[0])
                wanted = crop_radius(stretch.landmarks.points[slice(*shot)])
                if number == len(self.chosen):
                    self.chosen.append(references_of(stretch, shot, count, wanted, self.dubber.mouth_size))
                    self.references(number)  # now: live frames are soon gone
                    radius = wanted
                # A face that comes nearer in a long shot is followed so slowly that the crop does not breathe.
                radii = np.linspace(radius, max(radius, wanted), len(run_frames) + 1)[1:]
                radius = float(radii[-1])
                for frame, radius_px in zip(run_frames, radii, strict=True):
                    strength = float(stretch.strengths[frame - stretch.start])
                    yield Place(stretch.points(frame), float(radius_px), number, strength)

    def _tracked(self) -> Iterator[tuple[np.ndarray, bool]]:
        """Landmarks of every frame, NaN too where the face is turned away or its lips are out of the picture."""
        size = (0, 0)

        def measured() -> Iterator[np.ndarray]:
            nonlocal size
            for frame in self.footage.look():
                if self.stopped.is_set():  # nobody waits for the rest of this stretch
                    return
                size = frame.shape[1::-1]
                yield frame

        path = getattr(self.footage, "path", None)
        for points, cut in track(measured(), self.backend, path, self.footage.fps, choose=self.choose):
            yield points if in_view(points, *size) else np.full_like(points, np.nan), cut


# --- the library ------------------------------------------------------------------------------------------------


class DubbingPipeline:
    """Dubs videos with one generator.

    Args:
        checkpoint: the generator; the bundled one unless told.
        device: auto, cpu, cuda, cuda:1, …
        precision: auto, fp32, bf16 or fp16; auto is the fastest that the device has.
        landmarks: dlib, face_alignment or openface.

    Raises:
        UserError: a weight cannot be had, or the device.
    """

    def __init__(
        self,
        checkpoint: Path = BUNDLED_CHECKPOINT,
        *,
        device: str = "auto",
        precision: str = "auto",
        landmarks: str = "dlib",
    ) -> None:
        chosen = choose_device(device)
        self.dubber = Dubber(load_hearing(checkpoint, chosen), chosen, choose_precision(precision, chosen))
        self.landmarks = landmarks

    def dub(
        self,
        video: Path,
        audio: Path,
        output: Path,
        *,
        face: str = "largest",
        references: str | None = None,
        when_short: str = "stop",
        sharpen: bool = False,
        side_by_side: bool = False,
        crf: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> Dubbed:
        """Dub a video file, in its own resolution and frame rate, 60 at most.

        Args:
            video, audio: any files that ffmpeg reads.
            output: .mp4, .mov or .mkv; it appears when it is whole.
            face: which of several: "largest", "left", "right", the one nearest to a place "X,Y" in pixels, or the
                one in a picture file.
            references: numbers of the frames to take the mouth's looks from, "3,40,55,80,121"; chosen unless told.
            when_short: what a sound shorter than the video does: "stop" ends the video with it, "keep" leaves the
                rest of the video as it was, in silence.
            sharpen: give the lips as much detail as the source's have, as far as that goes.
            side_by_side: write source and dubbed frame beside each other.
            crf: H.264 quality, 0 to 51.
            progress: called after every frame with how many are done and about how many there will be.

        Raises:
            UserError: a file cannot be read or written, the video shows no face, or `references` do not fit it.
        """
        began = time.monotonic()
        info = probe(video, "--video")
        for note in info.notes:
            print(f"note: --video: {note}", file=sys.stderr)
        footage = VideoFile(video, info.fps)
        choose = choice_of(face)
        given = self._given_references(footage, references, choose)
        sound = Sound(read_audio(audio, "--audio"), self.dubber.audio_features)
        sound.left(0, FADE_S)  # so that what is wrong with it is told before anything is written
        redrawer = Redrawer(self.dubber, footage, sound, self.landmarks, choose, given=given, sharpen=sharpen)
        expected_s = media_seconds(audio)
        if when_short == "keep":
            expected_s = max(expected_s, info.duration_s)
        expected = round(expected_s * info.fps)
        frames = redrawn = 0
        first_s = 0.0
        width = info.width * (2 if side_by_side else 1)
        with (
            VideoWriter(
                output, width, info.height, info.fps, crf=crf, sounds=[audio], pixel_aspect=info.pixel_aspect
            ) as writer,
            closing(ahead(redrawer.frames(keep_rest=when_short == "keep"), READ_AHEAD)) as made,
        ):
            try:
                for drawn in made:
                    writer.write(np.concatenate(drawn[:2], axis=1) if side_by_side else drawn.dubbed)
                    frames, redrawn = frames + 1, redrawn + drawn.changed
                    first_s = first_s or time.monotonic() - began
                    if progress:
                        progress(frames, max(expected, frames))
            finally:
                redrawer.stopped.set()
            seen = redrawer.seen
            if not redrawn:
                raise UserError(f"--video: no face found in any of the {seen} frames of {video} ({self.landmarks})")
        if (seen < frames or when_short == "keep") and seen < 0.9 * info.duration_s * info.fps:
            print(
                f"warning: --video: {video} says it has {info.duration_s:.1f} s, {float(seen / info.fps):.1f} s "
                "could be read",
                file=sys.stderr,
            )
        return Dubbed(frames, redrawn, info.fps, first_s, time.monotonic() - began)

    def stream(
        self,
        frames: Iterable[np.ndarray],
        sound: Iterable[np.ndarray],
        fps: Fraction | int = FPS,
        look_ahead_s: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Dub frames as they come: at most `look_ahead_s` and about two seconds behind them.

        Args:
            frames: (H, W, 3) uint8 RGB, all of one size.
            sound: (n,) float in [-1, 1], mono, 16 kHz, from the first frame's time on.
            fps: frames per second, constant.
            look_ahead_s: how long a shot is seen before it is drawn; the longer, the better the references.

        Yields:
            As many frames as came while the sound lasted; those without a face as they came.
        """
        heard = Sound(iter(sound), self.dubber.audio_features, block_s=0.4, after_s=0.6)
        redrawer = Redrawer(self.dubber, LiveFrames(frames, fps), heard, self.landmarks, look_ahead_s=look_ahead_s)
        return (drawn.dubbed for drawn in redrawer.frames())

    def _given_references(self, footage: VideoFile, text: str | None, choose: Choice) -> list[np.ndarray] | None:
        """Crops of the frames that `--references` names."""
        count = self.dubber.model.config.num_references
        indices = parse_references(text, count)
        if indices is None:
            return None
        found, where = [], (self.landmarks, footage.path, footage.fps)
        for index in indices:
            frame = next(read_frames(footage.path, index, index + 1, fps=footage.fps), None) if index >= 0 else None
            shown = [] if frame is None else track(iter([frame]), *where, index, choose)
            points = next((points for points, _ in shown), np.full((68, 2), np.nan))
            if np.isnan(points).any():
                raise UserError(f"--references: expected frames of {footage.path} with a face, found {index}")
            found.append((points, frame))
        radius = crop_radius(np.stack([points for points, _ in found]))
        return [
            FaceCrop.from_landmarks(points, radius, self.dubber.mouth_size).extract(frame)
            for points, frame in found
        ]


def parse_references(text: str | None, count: int) -> list[int] | None:
    """`--references 3,40,55,80,121` as frame numbers; None for the automatic choice."""
    if text is None:
        return None
    try:
        indices = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--references: expected {count} frame numbers like 3,40,55, found {text!r}") from None
    if len(indices) != count:
        raise UserError(f"--references: expected {count} frame numbers, found {len(indices)}")
    return indices
