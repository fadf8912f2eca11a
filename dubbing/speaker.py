"""TODO."""

import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

import numpy as np

from data_processing.face.crop import FaceCrop, crop_radius
from data_processing.face.detectors import FaceSelector, largest_face, track_landmarks
from data_processing.face.tracking import mouth_in_view, track_chunks
from dubbing.audio_stream import AudioStream
from dubbing.frame_sources import FrameSource
from dubbing.generator import GeneratorSession
from dubbing.placements import FacePlacement
from dubbing.references import shot_references
from dubbing.sharpening import sharpening_amount, unsharp_mask

SHOTS_HELD = 16  # whose references are kept ready


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
        dubber: GeneratorSession,
        footage: FrameSource,
        sound: AudioStream,
        backend: str = "dlib",
        choose: FaceSelector = largest_face,
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
        self, shot: int, times_s: list[float], places: list[FacePlacement], frames: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Frames of one shot with the mouth as it is heard at those times."""
        crops = [FaceCrop.from_landmarks(at.points, at.radius_px, self.dubber.mouth_size) for at in places]
        extracted = [crop.extract(frame) for crop, frame in zip(crops, frames, strict=True)]
        drawn = self.dubber.redraw(extracted, self.encode(shot), self.sound.windows(np.array(times_s)))
        if self.amounts is not None:
            if shot not in self.amounts:  # once a shot, so that it is steady
                self.amounts[shot] = sharpening_amount(drawn, self.references(shot))
            drawn = unsharp_mask(drawn, self.amounts[shot])
        return [
            crop.paste(frame, image, place.points, place.strength)
            for crop, frame, image, place in zip(crops, frames, drawn, places, strict=True)
        ]

    def _extract(self, shot: int) -> list[np.ndarray]:
        """The reference crops of a shot."""
        return self.given or [crop.extract(self.footage.frame(index)) for index, crop in self.chosen[shot]]

    def places(self) -> Iterator[FacePlacement]:
        """Where the face is in all frames, as it becomes known."""
        footage, count = self.footage, self.dubber.model.config.num_references
        radius = 0.0
        for stretch in track_chunks(self._tracked(), footage.fps, self.look_ahead):
            frames = range(stretch.start, stretch.stop)
            for number, run in groupby(zip(frames, stretch.numbers, strict=True), key=lambda frame: int(frame[1])):
                run_frames = [frame for frame, _ in run]
                if number < 0:
                    yield from (FacePlacement(stretch.points(frame), 0.0, -1, 0.0) for frame in run_frames)
                    continue
                shot = stretch.shot_rows(run_frames[0])
                wanted = crop_radius(stretch.landmarks.points[slice(*shot)])
                if number == len(self.chosen):
                    self.chosen.append(shot_references(stretch, shot, count, wanted, self.dubber.mouth_size))
                    self.references(number)  # now: live frames are soon gone
                    radius = wanted
                # A face that comes nearer in a long shot is followed so slowly that the crop does not breathe.
                radii = np.linspace(radius, max(radius, wanted), len(run_frames) + 1)[1:]
                radius = float(radii[-1])
                for frame, radius_px in zip(run_frames, radii, strict=True):
                    strength = float(stretch.strengths[frame - stretch.start])
                    yield FacePlacement(stretch.points(frame), float(radius_px), number, strength)

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
        for points, cut in track_landmarks(measured(), self.backend, path, self.footage.fps, choose=self.choose):
            yield points if mouth_in_view(points, *size) else np.full_like(points, np.nan), cut
