"""TODO."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import groupby, islice
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np

from data_processing.face.tracking import FADE_S
from dubbing.frame_sources import FrameSource, VideoFileSource
from dubbing.placements import FacePlacement, PlacementSpool, same_face
from dubbing.prefetch import prefetch
from dubbing.speaker import Speaker

BATCH_SIZE = 8
READ_AHEAD = 2 * BATCH_SIZE  # frames waiting between reading, drawing and writing


class OutputFrame(NamedTuple):
    """A frame to be shown: its number, its time in seconds, the places of all faces in it, and the frame."""

    number: int
    time_s: float
    places: list[FacePlacement]
    frame: np.ndarray


class FramePair(NamedTuple):
    """A frame of the source and the same with the mouths redrawn; (H, W, 3) uint8 RGB."""

    source: np.ndarray
    dubbed: np.ndarray


class Compositor:
    """Redraws the faces in footage as long as their sounds last.

    Args:
        footage: the frames.
        speakers: faces in them, each with its sound.
    """

    def __init__(self, footage: FrameSource, speakers: list[Speaker]) -> None:
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

    def frames(self, keep_rest: bool = False, first: int = 0) -> Iterator[FramePair]:
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
                    yield from map(FramePair, frames[done:], dubbed[done:])

    def _sharpens_from(self, shots: tuple[int, ...]) -> bool:
        """Whether the first frames of one of these shots have yet to be drawn for how sharp its lips are."""
        return any(
            shot >= 0 and speaker.amounts is not None and shot not in speaker.amounts
            for speaker, shot in zip(self.speakers, shots, strict=True)
        )

    def _moments(self, keep_rest: bool) -> Iterator[OutputFrame]:
        """Everything to be shown."""
        with closing(self._timeline()) as timeline:
            for number, (places, frame) in enumerate(timeline):
                time_s = float(number / self.footage.fps)
                left_s = [speaker.sound.left(time_s, FADE_S) for speaker in self.speakers]
                rest_follows = keep_rest and number < self.seen
                if not any(left_s) and not rest_follows:
                    return
                for index, own_s in enumerate(left_s):
                    contested = own_s > 0 and any(same_face(places[index], other) for other in places[:index])
                    self.contested += contested
                    if own_s == 0 or contested:
                        places[index] = places[index]._replace(shot=-1)
                    elif own_s < FADE_S and (rest_follows or own_s < max(left_s)):
                        strength = places[index].strength * own_s / FADE_S
                        places[index] = places[index]._replace(strength=strength)
                yield OutputFrame(number, time_s, places, frame)

    def _timeline(self) -> Iterator[tuple[list[FacePlacement], np.ndarray]]:
        """Places and frames of the footage, and of a file again, backward and forward, without end."""
        from_file = isinstance(self.footage, VideoFileSource)
        with TemporaryFile() as file:
            kept = PlacementSpool(file, len(self.speakers))
            with ExitStack() as open_ones:

                def made(items: Iterator, count: int, stop: Callable[[], None] = lambda: None) -> Iterator:
                    return open_ones.enter_context(closing(prefetch(items, count, stop) if from_file else items))

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
