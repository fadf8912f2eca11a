"""Faces in footage, and redrawing them: what dubbing does between reading and writing.

A `Redrawer` goes through footage once. For each of its `Speaker`s, a face and the sound it is to speak, it is told
where the face is a few seconds before it gets to it, and has the `Dubber`, the generator, draw the mouth.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from functools import lru_cache
from itertools import groupby, islice
from os import SEEK_END
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import torch

from data_processing.audio_features import FEATURE_DIMS, Sound
from data_processing.errors import UserError, reason_of
from data_processing.footage import Footage, VideoFile, ahead
from data_processing.geometry import FaceCrop, crop_radius, lips_box
from data_processing.landmarks import (
    FADE_S,
    Choice,
    Landmarks,
    Stretch,
    follow,
    in_view,
    largest,
    mouth_opening,
    track,
)
from models.checkpoint import LoadedModel, load_model
from models.dinet import DINet
from models.engine import Engine

BATCH_SIZE = 8
READ_AHEAD = 2 * BATCH_SIZE  # frames waiting between reading, drawing and writing
SHOTS_HELD = 16  # whose references are kept ready
MOST_SHARPENING = 1.0  # more makes teeth of noise
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


# --- footage ----------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where and how a face is redrawn in a frame: its landmarks (68, 2), the crop's radius, the shot whose
    references it is drawn with (−1 for not at all), and how far the new mouth covers the old one, 0 to 1."""

    points: np.ndarray
    radius_px: float
    shot: int
    strength: float


def _same(place: Place, other: Place) -> bool:
    """Whether two places in a frame are one face."""
    distance = np.linalg.norm(place.points[33] - other.points[33])
    return place.shot >= 0 and other.shot >= 0 and bool(distance < other.radius_px)


class KeptPlaces:
    """The places of `count` speakers in every frame, in a file: those of an hour would take 70 MB of memory.

    Raises UserError where that has no room.
    """

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file, self._shape = file, (count, 68 * 2 + 3)

    def append(self, places: list[Place]) -> None:
        """The places of the next frame, as many as there are speakers."""
        rows = [[*at.points.ravel(), at.radius_px, at.shot, at.strength] for at in places]
        try:
            self._file.seek(0, SEEK_END)
            self._file.write(np.array(rows, np.float32).tobytes())
        except OSError as error:
            raise UserError(f"{gettempdir()}: no temporary file can be written: {reason_of(error)}") from None

    def __getitem__(self, index: int) -> list[Place]:
        rows = np.zeros(self._shape, np.float32)
        self._file.seek(index * rows.nbytes)
        self._file.readinto(rows)
        return [Place(row[:136].reshape(68, 2), float(row[136]), int(row[137]), float(row[138])) for row in rows]


class Moment(NamedTuple):
    """A frame to be shown: its number, its time in seconds, the places of all faces in it, and the frame."""

    number: int
    time_s: float
    places: list[Place]
    frame: np.ndarray


class Drawn(NamedTuple):
    """A frame of the source and the same with the mouths redrawn; (H, W, 3) uint8 RGB."""

    source: np.ndarray
    dubbed: np.ndarray


class Speaker:
    """A face in footage and the sound it is to speak.

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
        look_ahead_s: float = 1.0,
        given: list[np.ndarray] | None = None,
        sharpen: bool = False,
    ) -> None:
        self.dubber, self.footage, self.sound, self.backend = dubber, footage, sound, backend
        self.choose, self.look_ahead, self.given = choose, max(1, round(look_ahead_s * footage.fps)), given
        self.amounts: dict[int, float] | None = {} if sharpen else None  # of sharpening, of every shot
        self.chosen: list[list[tuple[int, FaceCrop]]] = []  # references of every shot
        self.references = lru_cache(SHOTS_HELD)(self._extract)
        self.encode = lru_cache(SHOTS_HELD)(lambda shot: dubber.encode_references(self.references(shot)))
        self.stopped = threading.Event()

    def redraw(
        self, shot: int, times_s: list[float], places: list[Place], frames: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Frames of one shot with the mouth as it is heard at those times."""
        crops = [FaceCrop.from_landmarks(at.points, at.radius_px, self.dubber.mouth_size) for at in places]
        extracted = [crop.extract(frame) for crop, frame in zip(crops, frames, strict=True)]
        drawn = self.dubber.redraw(extracted, self.encode(shot), self.sound.windows(np.array(times_s)))
        if self.amounts is not None:
            if shot not in self.amounts:  # once a shot, so that it is steady
                self.amounts[shot] = sharpening(drawn, self.references(shot))
            drawn = sharpened(drawn, self.amounts[shot])
        return [
            crop.paste(frame, image, place.points, place.strength)
            for crop, frame, image, place in zip(crops, frames, drawn, places, strict=True)
        ]

    def _extract(self, shot: int) -> list[np.ndarray]:
        """The reference crops of a shot."""
        return self.given or [crop.extract(self.footage.frame(index)) for index, crop in self.chosen[shot]]

    def places(self) -> Iterator[Place]:
        """Where the face is in all frames, as it becomes known."""
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


class Redrawer:
    """Redraws the faces in footage as long as their sounds last.

    Args:
        footage: the frames.
        speakers: faces in them, each with its sound.
    """

    def __init__(self, footage: Footage, speakers: list[Speaker]) -> None:
        self.footage, self.speakers = footage, speakers
        self.seen = 0  # frames of the footage so far
        self.redrawn = [0] * len(speakers)  # frames in which each of them was
        self.changed = 0  # frames in which any of them was
        self.stopped = threading.Event()
        self.contested = 0  # times that one was where another was already

    def stop(self) -> None:
        """Have `frames` and what looks ahead for it end soon."""
        self.stopped.set()
        for speaker in self.speakers:
            speaker.stopped.set()

    def frames(self, keep_rest: bool = False, first: int = 0) -> Iterator[Drawn]:
        """The frames from number `first` on, as long as a sound lasts; with `keep_rest` to the footage's end,
        untouched from there on.

        A file that ends before the sounds do is played backward and forward again.
        """
        with closing(self._moments(keep_rest)) as moments:
            for shots, run in groupby(moments, key=lambda moment: tuple(at.shot for at in moment.places)):
                # in the same batches wherever one begins, so that the same is drawn
                while batch := list(islice(run, BATCH_SIZE)):
                    if self.stopped.is_set():
                        return
                    speaking = [index for index, shot in enumerate(shots) if shot >= 0]
                    for index in speaking:
                        self.redrawn[index] += len(batch)
                    self.changed += len(batch) * bool(speaking)
                    if batch[-1].number < first and not self._sharpens_from(shots):
                        continue
                    numbers, times_s, places, frames = map(list, zip(*batch, strict=True))
                    dubbed = frames
                    for index in speaking:
                        own = [at[index] for at in places]
                        dubbed = self.speakers[index].redraw(shots[index], times_s, own, dubbed)
                    done = sum(number < first for number in numbers)
                    yield from map(Drawn, frames[done:], dubbed[done:])

    def _sharpens_from(self, shots: tuple[int, ...]) -> bool:
        """Whether the first frames of one of these shots have yet to be drawn for how sharp its lips are."""
        return any(
            shot >= 0 and speaker.amounts is not None and shot not in speaker.amounts
            for speaker, shot in zip(self.speakers, shots, strict=True)
        )

    def _moments(self, keep_rest: bool) -> Iterator[Moment]:
        """Everything to be shown."""
        with closing(self._timeline()) as timeline:
            for number, (places, frame) in enumerate(timeline):
                time_s = float(number / self.footage.fps)
                left_s = [speaker.sound.left(time_s, FADE_S) for speaker in self.speakers]
                rest_follows = keep_rest and number < self.seen
                if not any(left_s) and not rest_follows:
                    return
                for index, own_s in enumerate(left_s):
                    contested = own_s > 0 and any(_same(places[index], other) for other in places[:index])
                    self.contested += contested
                    if own_s == 0 or contested:
                        places[index] = places[index]._replace(shot=-1)
                    elif own_s < FADE_S and (rest_follows or own_s < max(left_s)):
                        strength = places[index].strength * own_s / FADE_S
                        places[index] = places[index]._replace(strength=strength)
                yield Moment(number, time_s, places, frame)

    def _timeline(self) -> Iterator[tuple[list[Place], np.ndarray]]:
        """Places and frames of the footage, and of a file again, backward and forward, without end."""
        from_file = isinstance(self.footage, VideoFile)
        with TemporaryFile() as file:
            kept = KeptPlaces(file, len(self.speakers))
            with ExitStack() as open_ones:

                def made(items: Iterator, count: int, stop: Callable[[], None] = lambda: None) -> Iterator:
                    return open_ones.enter_context(closing(ahead(items, count, stop) if from_file else items))

                again = made(self.footage.again(), READ_AHEAD)
                looked_at = [
                    made(speaker.places(), speaker.look_ahead, speaker.stopped.set) for speaker in self.speakers
                ]
                # first the places: live frames are not there again before they were looked at
                for *places, frame in zip(*looked_at, again, strict=False):
                    self.seen += 1
                    if from_file:
                        kept.append(places)
                    yield places, frame
            if from_file and any(speaker.chosen for speaker in self.speakers) and not self.stopped.is_set():
                for index, frame in self.footage.back_and_forth(self.seen):
                    yield kept[index], frame
