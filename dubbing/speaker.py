"""One speaker of a dub: a face in the source frames and the driving audio for it."""

import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

import numpy as np

from data_processing.face.crop import FaceCrop
from data_processing.face.detectors import FaceSelector, largest_face, track_landmarks
from data_processing.face.radius import ShotRadius
from data_processing.face.tracking import mouth_in_view, track_chunks
from dubbing.audio_stream import AudioStream
from dubbing.frame_sources import FrameSource
from dubbing.generator import GeneratorSession
from dubbing.placements import NO_SHOT, FacePlacement
from dubbing.references import choose_references
from dubbing.sharpening import sharpening_amount, unsharp_mask

CACHED_SHOTS = 16  # shots whose reference frames stay in memory


class Speaker:
    """Tracks a face through the source frames and generates its mouth.

    Args:
        generator: the generator.
        source: the source frames.
        audio: the driving audio.
        detector: landmark detector, one of BACKENDS.
        select_face: which of several faces.
        look_ahead_s: seconds of a shot that are tracked before its first frame is generated.
        reference_crops: N face crops (13S/8, 5S/4, 3) uint8 RGB to use for all shots; chosen in each shot if None.
        sharpen: sharpen the lips to the detail of the reference frames.

    Attributes:
        references: (frame index, crop) of the N reference frames of every shot so far.
        sharpening: amount for every shot so far, None without `sharpen`.
        cancelled: set it to end `placements` soon.
    """

    def __init__(
        self,
        generator: GeneratorSession,
        source: FrameSource,
        audio: AudioStream,
        detector: str = "dlib",
        select_face: FaceSelector = largest_face,
        look_ahead_s: float = 1.0,
        reference_crops: list[np.ndarray] | None = None,
        sharpen: bool = False,
    ) -> None:
        self.generator, self.source, self.audio = generator, source, audio
        self.detector, self.select_face = detector, select_face
        self.look_ahead_frames = max(1, round(look_ahead_s * source.fps))
        self.references: list[list[tuple[int, FaceCrop]]] = []
        self.sharpening: dict[int, float] | None = {} if sharpen else None
        self.cancelled = threading.Event()
        self._fixed_crops = reference_crops
        self._reference_crops = lru_cache(CACHED_SHOTS)(self._extract_references)
        self._encoded = lru_cache(CACHED_SHOTS)(
            lambda shot: generator.encode_references(self._reference_crops(shot))
        )

    def placements(self) -> Iterator[FacePlacement]:
        """Where the face is in every frame, as soon as it is known."""
        num_references = self.generator.model.config.num_references
        radius = ShotRadius(self.source.fps)
        for chunk in track_chunks(self._landmarks(), self.source.fps, self.look_ahead_frames):
            numbered = zip(range(chunk.start, chunk.stop), chunk.numbers, strict=True)
            for number, group in groupby(numbered, key=lambda frame: int(frame[1])):
                frames = [frame for frame, _ in group]
                if number < 0:
                    yield from (FacePlacement(chunk.points(frame), 0.0, NO_SHOT, 0.0) for frame in frames)
                    continue
                first, last = chunk.shot_rows(frames[0])
                start = frames[0] - chunk.offset  # earlier live frames are no longer held
                starts_shot = number == len(self.references)
                if starts_shot:
                    radius = ShotRadius(self.source.fps)
                radii = radius.extend(
                    chunk.landmarks.points[first:last], start - first, start - first + len(frames)
                )
                if starts_shot:
                    chosen = choose_references(chunk.landmarks, start, last, num_references)
                    crops = [self._crop(chunk.landmarks.points[row], radii[row - start]) for row in chosen]
                    self.references.append(
                        [(chunk.offset + row, crop) for row, crop in zip(chosen, crops, strict=True)]
                    )
                    self._reference_crops(number)  # now, while live frames are still held
                for frame, radius_px in zip(frames, radii, strict=False):
                    strength = float(chunk.strengths[frame - chunk.start])
                    yield FacePlacement(chunk.points(frame), float(radius_px), number, strength)

    def render(
        self, shot: int, times_s: list[float], placements: list[FacePlacement], frames: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Generate the mouth in frames of one shot and paste it back.

        Args:
            shot: number of the shot.
            times_s: times in the driving audio.
            placements: of the face.
            frames: (H, W, 3) uint8 RGB each.

        Returns:
            New frames of the same size.
        """
        crops = [self._crop(one.points, one.radius_px) for one in placements]
        source_crops = [crop.extract(frame) for crop, frame in zip(crops, frames, strict=True)]
        windows = self.audio.windows(np.array(times_s))
        generated = self.generator.generate(source_crops, self._encoded(shot), windows)
        if self.sharpening is not None:
            if shot not in self.sharpening:  # one amount for the whole shot, so that it does not flicker
                self.sharpening[shot] = sharpening_amount(generated, self._reference_crops(shot))
            generated = unsharp_mask(generated, self.sharpening[shot])
        return [
            crop.paste(frame, image, one.points, one.strength)
            for crop, frame, image, one in zip(crops, frames, generated, placements, strict=True)
        ]

    def _crop(self, points: np.ndarray, radius_px: float) -> FaceCrop:
        return FaceCrop.from_landmarks(points, radius_px, self.generator.mouth_size)

    def _extract_references(self, shot: int) -> list[np.ndarray]:
        return self._fixed_crops or [
            crop.extract(self.source.frame(index)) for index, crop in self.references[shot]
        ]

    def _landmarks(self) -> Iterator[tuple[np.ndarray, bool]]:
        """Landmarks (68, 2) and shot cut of every frame; NaN also where the face is turned away or its mouth is
        outside the frame."""
        size = (0, 0)

        def frames_until_cancelled() -> Iterator[np.ndarray]:
            nonlocal size
            for frame in self.source.first_pass():
                if self.cancelled.is_set():
                    return
                size = frame.shape[1::-1]
                yield frame

        path = getattr(self.source, "path", None)
        tracked = track_landmarks(
            frames_until_cancelled(), self.detector, path, self.source.fps, choose=self.select_face
        )
        for points, cut in tracked:
            yield points if mouth_in_view(points, *size) else np.full_like(points, np.nan), cut
