"""One speaker of a dub: a face in the source frames and the driving audio for it."""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, cycle, groupby, islice
from math import inf
from typing import TYPE_CHECKING

import cv2
import numpy as np

from data_processing.face.crop import FaceCrop
from data_processing.face.radius import ShotRadius, face_scales
from data_processing.face.tracking import TrackChunk, track_chunks
from data_processing.media.frame import Frame
from dubbing.audio_stream import AudioStream
from dubbing.covers import CoverFinder, StillSearch, face_of, uncovered
from dubbing.face_track import TrackedFrame
from dubbing.frame_sources import FrameSource
from dubbing.light import FaceLight, LightChange, Tint, to_uint8
from dubbing.placements import NO_SHOT, FacePlacement
from dubbing.references import ReferenceCrop, choose_references
from dubbing.texture import NUM_CANDIDATES, Candidate, ShotTexture, lower_part

if TYPE_CHECKING:
    from dubbing.generator import GeneratorSession  # imports PyTorch, and faces are tracked before that is loaded

CACHED_SHOTS = 8  # shots whose reference frames and texture stay in memory: about 10 MB each at 1080 lines
NUM_EXAMINED = 30  # frames of a shot among which covered candidates for texture find a substitute
LIVE_CHUNK = 2  # live frames whose placements are found at once
LIVE_RESELECTION_S = 1.6  # after which reference frames of a live shot are selected again, back to its beginning
CROSSFADE_S = 0.5  # from the mouth that follows from the first selection of a shot to that of the second


@dataclass(frozen=True)
class _Appearance:
    """How a face looks in a shot.

    light: median of the reference frames.
    to_natural: the change from it to the light in which the generator sees all crops of the shot.
    tint: of monochrome video, else None.
    crops: (13S/8, 5S/4, 3) uint8 RGB each, the reference crops as the generator sees them.
    texture: of frames of the shot; None if it is not used.
    covers: finds what covers the face; None if that is not kept.
    """

    light: FaceLight
    to_natural: LightChange
    tint: Tint | None
    crops: list[np.ndarray]
    texture: ShotTexture | None
    covers: CoverFinder | None


@dataclass(frozen=True)
class Drawing:
    """A mouth that has been generated and is not pasted yet.

    image: (13S/8, 5S/4, 3) uint8 RGB, as generated.
    appearance: of the face in the shot.
    change: from the light of the frame to that of the shot.
    source: the source frame.
    placement, crop: of the face in it.
    bounds: the pixels (x0, y0, x1, y1) that `part` shows: of the source frame, uint8 RGB.
    face: (13S/8, 5S/4, 3) uint8 RGB, the face crop of the source frame.
    """

    image: np.ndarray
    appearance: _Appearance
    change: LightChange
    source: Frame
    placement: FacePlacement
    crop: FaceCrop
    bounds: tuple[int, int, int, int]
    part: np.ndarray
    face: np.ndarray

    def paste(self, frame: Frame) -> Frame:
        """A new frame with the mouth: a source frame into which others may have been pasted."""
        appearance, change, corner = self.appearance, self.change, self.bounds[:2]
        crop, points = self.crop.moved(*corner), self.placement.points - corner
        cover = detail = None
        if appearance.covers:
            lower = appearance.to_natural.apply(change.apply(lower_part(self.part, crop)))
            cover = appearance.covers.mask(to_uint8(lower), self.crop, self.placement.points)
        image = self.image
        x0, y0, x1, y1 = bounds = crop.paste_bounds(self.part)
        if x0 >= x1 or y0 >= y1:
            return frame
        if appearance.texture:
            image, brightness = appearance.texture.transfer(image, crop, bounds)
            # texture is shading, so it has the colour of the face
            colour = appearance.light.colour / (max(appearance.light.colour.mean(), 1) * change.gain)
            detail = cv2.merge([brightness * np.float32(one) for one in colour])
        image = appearance.to_natural.revert(image)
        if appearance.tint:
            image = appearance.tint.apply(image)
        image = change.revert(image).clip(0, 255)
        contrast = 1 / change.gain.mean()
        strength = self.placement.strength * (1 - self.placement.fade)
        part, face = (self.part, self.face) if frame is self.source else (frame.region(*self.bounds), None)
        _, added = crop.change(part, image, points, strength, contrast, cover, detail, face)
        return frame.changed(corner[0] + x0, corner[1] + y0, added)


class Speaker:
    """Follows a face through the source frames and generates its mouth.

    Args:
        generator: the generator.
        source: the source frames.
        audio: the driving audio.
        tracked: the face in them, from `track_face`.
        look_ahead_s: seconds of a shot that are tracked before its first frame is generated.
        first_selection_s: the same for the first shot, so that the first frame comes soon. After this time
            reference frames are selected again, from as much as in other shots, and the mouths that follow from
            both selections are crossfaded. None to select them once.
        reference_crops: N reference crops to use for all shots; chosen in each shot if None.
        texture: give the generated mouth the texture of frames of the shot.
        keep_covers: keep what covers the mouth as it is in the source frames.
        chosen_before_s: as in DubSettings.
        live: return every placement as soon as `look_ahead_s` after it is known. Reference frames of
            each shot are selected again after LIVE_RESELECTION_S, for which `source` keeps frames, and the mouths
            are crossfaded.

    Attributes:
        references: (frame index, placement) of the N reference frames of every selection so far.
        candidates: the same of the frames that texture is taken from.
        cancelled: set it to end `placements` soon.
    """

    def __init__(
        self,
        generator: "GeneratorSession",
        source: FrameSource,
        audio: AudioStream,
        tracked: Iterable[TrackedFrame],
        look_ahead_s: float = 1.0,
        first_selection_s: float | None = None,
        reference_crops: list[ReferenceCrop] | None = None,
        texture: bool = True,
        keep_covers: bool = False,
        chosen_before_s: float = inf,
        live: bool = False,
    ) -> None:
        self.generator, self.source, self.audio = generator, source, audio
        self._tracked = tracked
        self.look_ahead_frames = max(0 if live else 1, round(look_ahead_s * source.fps))
        self._first_selection_frames = (
            None if first_selection_s is None else max(1, round(first_selection_s * source.fps))
        )
        self.references: list[list[tuple[int, FacePlacement]]] = []
        self.candidates: list[list[tuple[int, FacePlacement]]] = []
        self.cancelled = threading.Event()
        self._fixed_crops = reference_crops
        self._texture, self._keep_covers = texture, keep_covers
        self._chosen_before = chosen_before_s * source.fps
        self._reselection_frames = round(LIVE_RESELECTION_S * source.fps) if live else None
        # of every selection: reference frames, candidates, and what is examined, as if the face were never covered
        self._preferred: list[list[list[tuple[int, FacePlacement]]]] = []
        # brightness and contrast of the face in tracked frames, by frame index
        self._levels: dict[int, tuple[float, float]] = {}
        self._appearance = lru_cache(CACHED_SHOTS)(self._measure_appearance)
        self._encoded = lru_cache(CACHED_SHOTS)(
            lambda selection: generator.encode_references(self._appearance(selection).crops)
        )

    def placements(self) -> Iterator[FacePlacement]:
        """Where the face is in every frame, as soon as it is known."""
        radius = ShotRadius(self.source.fps)
        num_shots, fade_frames = 0, round(CROSSFADE_S * self.source.fps)
        tracked, fps, num_ahead = self._landmarks(), self.source.fps, self.look_ahead_frames
        if self._reselection_frames is None:
            chunks = track_chunks(tracked, fps, num_ahead, self._first_selection_frames)
        else:
            chunks = track_chunks(tracked, fps, LIVE_CHUNK, ahead=num_ahead, history=self._reselection_frames)
        reselection, reselected = inf, -inf  # frames
        for chunk_number, chunk in enumerate(chunks):
            self._levels = {frame: level for frame, level in self._levels.items() if frame >= chunk.offset}
            numbered = zip(range(chunk.start, chunk.stop), chunk.numbers, strict=True)
            for number, group in groupby(numbered, key=lambda frame: int(frame[1])):
                frames = [frame for frame, _ in group]
                if number < 0:
                    yield from (FacePlacement(chunk.points(frame), 0.0, NO_SHOT, 0.0) for frame in frames)
                    continue
                first, last = chunk.shot_rows(frames[0])
                begin = start = frames[0] - chunk.offset
                starts_shot = number == num_shots
                if starts_shot:
                    radius = ShotRadius(self.source.fps)
                    num_shots += 1
                    reselection, reselected = frames[0] + (self._reselection_frames or inf), -inf
                points = chunk.landmarks.points[first:last]
                radii = radius.extend(points, start - first, start - first + len(frames))
                # the first chunk was short
                selects_again = self._first_selection_frames is not None and chunk_number == 1 and not starts_shot
                selects_again = selects_again and frames[0] < self._chosen_before
                if frames[0] >= reselection:
                    selects_again, reselection, begin = True, inf, first
                if selects_again:
                    reselected = frames[0]
                if starts_shot or selects_again:
                    scales = face_scales(points)
                    earlier = radii[0] * scales[begin - first : start - first] / scales[start - first]
                    self._select(chunk, begin, last, np.concatenate([earlier, radii]))
                for frame, radius_px in zip(frames, radii, strict=False):
                    strength = float(chunk.strengths[frame - chunk.start])
                    fade = max(0.0, 1 - (frame - reselected + 1) / (fade_frames + 1))
                    yield FacePlacement(
                        chunk.points(frame), float(radius_px), len(self.references) - 1, strength, fade
                    )

    def _select(self, chunk: TrackChunk, start: int, last: int, radii: np.ndarray) -> None:
        """Choose reference frames and candidates among the rows [start, last) of a chunk, all of one shot, with
        radii from row `start` on."""
        end = int(min(last, max(start, self._chosen_before - chunk.offset)))
        if chunk.landmarks.found[start:end].any():
            last = end
        levels = np.array([self._levels.get(chunk.offset + row, (0, 0)) for row in range(start, last)])
        selection = len(self.references)
        placed = {
            row: FacePlacement(chunk.landmarks.points[row], float(radii[row - start]), selection, 1.0)
            for row in range(start, last)
        }
        num_found = int(chunk.landmarks.found[start:last].sum())
        num_references = self.generator.model.config.num_references
        counts = [num_references, *(min(count, num_found) for count in (NUM_CANDIDATES, NUM_EXAMINED))]
        chosen = [choose_references(chunk.landmarks, start, last, count, levels) for count in counts]
        preferred = [[(chunk.offset + row, placed[row]) for row in rows] for rows in chosen]
        self._preferred.append(preferred)
        self.references.append(preferred[0])
        self.candidates.append(preferred[1])
        self._encoded(selection)  # now, while live frames are still held

    def generate(
        self, selection: int, times_s: list[float], placements: list[FacePlacement], frames: list[Frame]
    ) -> list[list[Drawing]]:
        """Generate the mouth in frames of one shot.

        Args:
            selection: number of the selection of reference frames.
            times_s: times in the driving audio.
            placements: of the face.
            frames: the source frames.

        Returns:
            For each frame the drawings to paste into it, in this order.
        """
        drawings: list[list[Drawing]] = [[] for _ in frames]
        if fading := [index for index, one in enumerate(placements) if one.fade > 0]:
            earlier = self.generate(
                selection - 1,
                [times_s[index] for index in fading],
                [placements[index]._replace(fade=0.0) for index in fading],
                [frames[index] for index in fading],
            )
            for index, drawing in zip(fading, earlier, strict=True):
                drawings[index] += drawing
        appearance = self._appearance(selection)
        faces, changes, source_crops = [], [], []
        for frame, one in zip(frames, placements, strict=True):
            crop = self._crop(one)
            bounds = crop.bounds(frame.width, frame.height)
            part, local = frame.region(*bounds), crop.moved(*bounds[:2])
            image = local.extract(part)
            changes.append(LightChange.between(FaceLight.of(image, crop.to_crop(one.points)), appearance.light))
            source_crops.append(to_uint8(appearance.to_natural.apply(changes[-1].apply(image))))
            faces.append((frame, one, crop, bounds, part, image))
        windows = self.audio.windows(np.array(times_s))
        generated = self.generator.generate(source_crops, self._encoded(selection), windows)
        for drawing, image, change, face in zip(drawings, generated, changes, faces, strict=True):
            drawing.append(Drawing(image, appearance, change, *face))
        return drawings

    def _crop(self, placement: FacePlacement) -> FaceCrop:
        return FaceCrop.from_landmarks(placement.points, placement.radius_px, self.generator.mouth_size)

    def _measure_appearance(self, selection: int) -> _Appearance:
        """Examine some frames of a shot. Covered ones in `references` and `candidates` give way to others."""
        preferred_references, preferred_candidates, examined = self._preferred[selection]
        placements = dict(preferred_references + preferred_candidates + examined)
        indices = sorted(placements)
        face_crops = {index: self._crop(placements[index]) for index in indices}
        crops: dict[int, ReferenceCrop] = {}
        candidates: dict[int, Candidate] = {}
        still_search = StillSearch(list(face_crops.values()))
        for index, frame in zip(indices, self.source.frames(indices), strict=True):
            crop, points = face_crops[index], placements[index].points
            bounds = crop.bounds(frame.width, frame.height)
            part, local = frame.region(*bounds), crop.moved(*bounds[:2])
            crops[index] = ReferenceCrop(local.extract(part), crop.to_crop(points))
            candidates[index] = Candidate.of(part, local)
            still_search.add(frame, points)
        still = still_search.finish()
        lights = {index: FaceLight.of(*crop) for index, crop in crops.items()}
        usual = FaceLight.median(list(lights.values()))
        images = [LightChange.between(lights[index], usual).apply(candidates[index].image) for index in indices]
        faces = [
            face_of(crop, placements[index].points) & (still.in_crop(crop) == 0)
            for index, crop in face_crops.items()
        ]
        clear = list(compress(indices, uncovered(list(map(to_uint8, images)), faces)))
        for chosen, preferred in (self.references, preferred_references), (self.candidates, preferred_candidates):
            own = {index: one for index, one in preferred + examined if index in clear} or dict(preferred)
            chosen[selection] = list(islice(cycle(own.items()), len(preferred)))

        references = self._fixed_crops or [crops[index] for index, _ in self.references[selection]]
        reference_lights = [FaceLight.of(*reference) for reference in references]
        median = FaceLight.median(reference_lights)
        changed = [
            LightChange.between(light, median).apply(one.image)
            for light, one in zip(reference_lights, references, strict=True)
        ]
        to_natural = LightChange.between(median, median.natural())
        reference_crops = [to_uint8(to_natural.apply(image)) for image in changed]
        natural = {
            index: candidates[index].in_light(LightChange.between(lights[index], median), to_natural)
            for index in dict.fromkeys([*clear, *dict(self.candidates[selection])])
        }
        texture = covers = None
        if self._texture:
            texture = ShotTexture([natural[index] for index in sorted(dict(self.candidates[selection]))])
        if self._keep_covers:
            covers = CoverFinder([one.image for one in natural.values()], still)
        return _Appearance(median, to_natural, Tint.of(changed), reference_crops, texture, covers)

    def _landmarks(self) -> Iterator[tuple[np.ndarray, bool]]:
        """Landmarks (68, 2) and shot cut of every frame."""
        for index, one in enumerate(self._tracked):
            if self.cancelled.is_set():
                return
            if one.levels:
                self._levels[index] = one.levels
            yield one.points, one.cut
