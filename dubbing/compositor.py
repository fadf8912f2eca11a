"""The output frames of a dub, in order: placements and source frames together, the mouths generated in batches."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import groupby, islice
from tempfile import TemporaryFile
from typing import NamedTuple

from data_processing.face.tracking import FADE_S
from data_processing.media.frame import Frame
from dubbing.frame_sources import FrameSource, VideoFileSource
from dubbing.light import visibility
from dubbing.placements import NO_SHOT, FacePlacement, PlacementSpool, same_face
from dubbing.prefetch import Prefetch
from dubbing.speaker import Drawing, Speaker
from utils.cores import num_cores

BATCH_SIZE = 8
FIRST_BATCH_SIZE = 2  # of the dub, so that its first frame comes soon
PREFETCH_DEPTH = BATCH_SIZE // 2  # frames that wait between reading, generating and writing, beside whole batches


class OutputFrame(NamedTuple):
    """What is known of an output frame before it is generated.

    number: from 0.
    time_s: its time in the output.
    placements: one for each speaker.
    frame: the source frame.
    """

    number: int
    time_s: float
    placements: list[FacePlacement]
    frame: Frame


class FramePair(NamedTuple):
    """A source frame and the same frame dubbed."""

    source: Frame
    dubbed: Frame


class Batch(NamedTuple):
    """Source frames, and for each the mouths to paste into it."""

    frames: list[Frame]
    drawings: list[list[Drawing]]


class Compositor:
    """Produces the frames of a dub for as long as there is driving audio.

    Args:
        source: the source frames.
        speakers: the faces in them, each with its driving audio.
        batch_size: frames that are generated at once. Live frames wait for the last of their batch.
        on_cancel: called by `cancel`; it should end what the speakers' placements wait for.

    Attributes:
        num_source_frames: source frames read so far.
        num_dubbed: output frames so far in which a mouth was generated.
        num_dubbed_of: the same for each speaker.
        num_conflicts: how often a speaker was left out of a frame because an earlier one has the same face.
    """

    def __init__(
        self,
        source: FrameSource,
        speakers: list[Speaker],
        batch_size: int = BATCH_SIZE,
        on_cancel: Callable[[], None] = lambda: None,
    ) -> None:
        self.source, self.speakers, self._batch_size, self._on_cancel = source, speakers, batch_size, on_cancel
        self.num_source_frames = 0
        self.num_dubbed = 0
        self.num_dubbed_of = [0] * len(speakers)
        self.num_conflicts = 0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Make `frames`, and what is prefetched for it, end soon."""
        self._cancelled.set()
        self._on_cancel()
        for speaker in self.speakers:
            speaker.cancelled.set()

    def frames(self, keep_rest: bool = False, first: int = 0) -> Iterator[FramePair]:
        """The output frames from number `first` on, until the driving audio ends.

        A video file that is shorter than the audio is played forward and backward.

        Args:
            keep_rest: continue with unchanged frames to the end of the source.
            first: earlier frames are not generated.
        """
        batches = self._batches(keep_rest, first)
        if isinstance(self.source, VideoFileSource):  # the generator does not wait for pasting
            batches = Prefetch(batches, 1, self.cancel)
        with closing(batches), ThreadPoolExecutor(max(1, num_cores() // 4)) as pasters:
            for batch in batches:
                yield from pasters.map(_pasted, *batch)

    def _batches(self, keep_rest: bool, first: int) -> Iterator[Batch]:
        """The output frames from number `first` on with their generated mouths."""
        batch_size = FIRST_BATCH_SIZE
        with closing(self._output_frames(keep_rest)) as outputs:
            for shots, group in groupby(outputs, key=lambda output: tuple(one.shot for one in output.placements)):
                # batches start at the same frames whatever `first` is, so that the results are the same
                while batch := list(islice(group, batch_size)):
                    batch_size = self._batch_size
                    if self._cancelled.is_set():
                        return
                    active = [index for index, shot in enumerate(shots) if shot >= 0]
                    for index in active:
                        self.num_dubbed_of[index] += len(batch)
                    self.num_dubbed += len(batch) * bool(active)
                    if batch[-1].number < first:
                        continue
                    numbers, times_s, placements, frames = map(list, zip(*batch, strict=True))
                    drawings: list[list[Drawing]] = [[] for _ in frames]
                    for index in active:
                        own = [in_frame[index] for in_frame in placements]
                        drawn = self.speakers[index].generate(shots[index], times_s, own, frames)
                        drawings = [before + ones for before, ones in zip(drawings, drawn, strict=True)]
                    num_skipped = sum(number < first for number in numbers)
                    yield Batch(frames[num_skipped:], drawings[num_skipped:])

    def _output_frames(self, keep_rest: bool) -> Iterator[OutputFrame]:
        """All output frames. Placements end with their speaker's audio, fading out if others go on."""
        with closing(self._timeline()) as timeline:
            for number, (placements, frame) in enumerate(timeline):
                time_s = float(number / self.source.fps)
                remaining_s = [speaker.audio.remaining_s(time_s, FADE_S) for speaker in self.speakers]
                rest_follows = keep_rest and number < self.num_source_frames
                if not any(remaining_s) and not rest_follows:
                    return
                for index, own_s in enumerate(remaining_s):
                    earlier = placements[:index]
                    conflict = own_s > 0 and any(same_face(placements[index], other) for other in earlier)
                    self.num_conflicts += conflict
                    if own_s == 0 or conflict:
                        placements[index] = placements[index]._replace(shot=NO_SHOT)
                    elif own_s < FADE_S and (rest_follows or own_s < max(remaining_s)):
                        strength = placements[index].strength * own_s / FADE_S
                        placements[index] = placements[index]._replace(strength=strength)
                for index, one in enumerate(placements):
                    if one.shot >= 0 and (visible := visibility(frame, one.points)) < 1:  # in black or white
                        shot = one.shot if visible > 0 else NO_SHOT
                        placements[index] = one._replace(shot=shot, strength=one.strength * visible)
                yield OutputFrame(number, time_s, placements, frame)

    def _timeline(self) -> Iterator[tuple[list[FacePlacement], Frame]]:
        """Placements and source frames; those of a file again, backward and forward, endlessly."""
        from_file = isinstance(self.source, VideoFileSource)
        with TemporaryFile() as file:
            spool = PlacementSpool(file, len(self.speakers))
            with ExitStack() as stack:

                def prefetched(items: Iterator, depth: int, cancel: Callable[[], None] = lambda: None) -> Iterator:
                    return stack.enter_context(closing(Prefetch(items, depth, cancel) if from_file else items))

                stop_waiting = self.source.stop_holding if from_file else lambda: None
                frames = prefetched(self.source.second_pass(), PREFETCH_DEPTH, stop_waiting)
                placements_of = [
                    prefetched(speaker.placements(), speaker.look_ahead_frames, speaker.cancelled.set)
                    for speaker in self.speakers
                ]
                # placements first: the second pass over live frames must not overtake the first
                for *placements, frame in zip(*placements_of, frames, strict=False):
                    self.num_source_frames += 1
                    if from_file:
                        spool.append(placements)
                    yield placements, frame
            any_face = any(speaker.references for speaker in self.speakers)
            if from_file and any_face and not self._cancelled.is_set():
                for index, frame in self.source.back_and_forth(self.num_source_frames):
                    yield spool[index], frame


def _pasted(frame: Frame, drawings: list[Drawing]) -> FramePair:
    """A source frame, and the same with mouths pasted into it."""
    dubbed = frame
    for drawing in drawings:
        dubbed = drawing.paste(dubbed)
    return FramePair(frame, dubbed)
