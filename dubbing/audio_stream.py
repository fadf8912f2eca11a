"""TODO."""

from collections.abc import Iterator

import numpy as np

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME, WINDOW_RADIUS, audio_windows
from data_processing.audio.silence import SilenceMouthClosure
from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS

KEPT_S = 20  # seconds of a sound that may be asked for again
KEPT_ROWS = 60 * FPS  # of features already found
CONTEXT_S = 5  # seconds before and after a block of a long sound that are heard with it


class AudioStream:
    """Audio features of a sound that is read as it goes on: of a long one only a minute is held.

    In silence, Whisper's are moved to where lips close (silence.py); elsewhere they are those of `extract`.

    Args:
        pieces: (n,) float in [-1, 1], 16 kHz, as data_processing.audio.read_audio gives them.
        name: a key of `FEATURE_DIMS`.
        block_s: seconds of which features are found at a time, each with CONTEXT_S before and after it. A sound
            that is no longer than one of these is heard in one, as `extract` hears it.
        after_s: seconds after a block, if fewer.
        level_s: seconds that are read at once, to know how loud the sound is; 0 to find out as it goes on.

    Raises:
        UserError: by `level_s`, what is wrong with the beginning of the sound.
    """

    def __init__(
        self,
        pieces: Iterator[np.ndarray],
        name: str,
        block_s: float = 60,
        after_s: float = CONTEXT_S,
        level_s: float = 0,
    ) -> None:
        self._pieces, self._name = pieces, name
        self._block, self._before, self._after = (
            SAMPLES_PER_FRAME * round(seconds * FPS) for seconds in (block_s, CONTEXT_S, after_s)
        )
        self._waveform = np.zeros(0, np.float32)  # from sample `_start` on, and what was read since
        self._new: list[np.ndarray] = []
        self._start = self._read = self._done = 0  # samples; features are known up to `_done`
        self._ended = False
        self._rows = np.zeros((0, FEATURE_DIMS[name]), np.float32)  # from row `_first` on
        self._first = 0
        while not self._ended and self._read < level_s * SAMPLE_RATE:
            self._take()
        self._close_mouth = None
        if name == "whisper":  # of others nobody knows
            self._close_mouth = SilenceMouthClosure(np.concatenate(self._new) if self._new else None)

    def left(self, time_s: float, most_s: float) -> float:
        """Seconds that the sound goes on after a time, at most `most_s`; it is read so far."""
        at = round(time_s * SAMPLE_RATE)
        while not self._ended and self._read < at + most_s * SAMPLE_RATE:
            self._take()
        self._forget(time_s - KEPT_S)
        return min(max(self._read - at, 0) / SAMPLE_RATE, most_s)

    def _forget(self, before_s: float) -> None:
        """Leave out whole blocks that nobody asked for, where nothing was drawn for long."""
        blocks = (round(min(before_s * SAMPLE_RATE, self._read)) - self._done) // self._block
        if blocks > 0:
            self._done += blocks * self._block
            self._rows, self._first = self._rows[:0], self._done // SAMPLES_PER_FRAME
            waveform = np.concatenate([self._waveform, *self._new])
            forgotten = max(0, self._done - self._before - self._start)
            self._waveform, self._start, self._new = waveform[forgotten:], self._start + forgotten, []

    def windows(self, times_s: np.ndarray) -> np.ndarray:
        """Audio audio_windows (B, D, 5) around growing times (B,) in seconds."""
        at = np.round(times_s * FPS, 6)  # whole for frames at 25 per second
        while self._done < self._read or not self._ended:
            if self._done // SAMPLES_PER_FRAME > at.max() + WINDOW_RADIUS + 1:
                break
            self._hear()
        return audio_windows(self._rows, at - self._first)

    def _take(self) -> None:
        piece = next(self._pieces, None)
        self._ended = piece is None
        if piece is not None:
            self._new.append(piece)
            self._read += len(piece)

    def _hear(self) -> None:
        """Find the features of one more block."""
        stop = self._done + self._block
        while not self._ended and self._read < stop + self._after:
            self._take()
        if self._ended and self._read <= stop + self._after:
            stop = self._read
        self._waveform, self._new = np.concatenate([self._waveform, *self._new]), []
        start = max(0, self._done - self._before)
        waveform = self._waveform[start - self._start : stop + self._after - self._start]
        heard = extract_features(waveform, self._name)
        if self._close_mouth:
            heard = self._close_mouth(heard, waveform)
        skipped = (self._done - start) // SAMPLES_PER_FRAME
        new = heard[skipped : skipped + max(1, -(-(stop - self._done) // SAMPLES_PER_FRAME))]
        kept = self._rows[-KEPT_ROWS:]
        self._rows = np.concatenate([kept, new])
        self._first = self._done // SAMPLES_PER_FRAME - len(kept)
        self._done = stop
        forgotten = max(0, stop - self._before - self._start)
        self._waveform, self._start = self._waveform[forgotten:], self._start + forgotten
