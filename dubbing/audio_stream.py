"""Audio features of a driving audio track, extracted block by block as it is read."""

import threading
from collections.abc import Iterator

import numpy as np

from data_processing.audio.features import FEATURE_DIMS, extract_features
from data_processing.audio.framing import SAMPLES_PER_FRAME, WINDOW_RADIUS, audio_windows
from data_processing.audio.silence import SilenceMouthClosure, with_noise_floor
from data_processing.media.audio_io import SAMPLE_RATE
from data_processing.media.video_reader import FPS

KEPT_S = 20  # seconds before the current time whose features stay available
KEPT_ROWS = 60 * FPS  # rows of features that stay in memory
CONTEXT_S = 5  # seconds before and after a block that its features are extracted with
LIVE_CONTEXT_S = 3  # the same before a block of live audio


class AudioStream:
    """Audio windows of a driving audio track of any length, of which about a minute is held in memory.

    Whisper features are shifted in silence so that the mouth closes (SilenceMouthClosure); all others are those of
    `extract_features`.

    Args:
        blocks: (n,) float in [-1, 1], 16 kHz, as from `read_audio`.
        name: a key of FEATURE_DIMS.
        block_s: seconds of which features are extracted at a time, with CONTEXT_S before and after. The features of
            a track that is not longer than one block equal those of `extract_features` on the whole track.
        after_s: seconds of context after a block, if fewer.
        level_s: seconds that are read at once, to measure the loudness; 0 measures it block by block.
        first_block_s: instead of `block_s` for the first block, whose features are extracted from now on, in a
            thread, so that they come soon. Call `close` then when done.
        live: extract features in less time, less exactly, and with LIVE_CONTEXT_S before a block: for short blocks.

    Raises:
        AudioError: with `level_s`, an error in the beginning of the track.
    """

    def __init__(
        self,
        blocks: Iterator[np.ndarray],
        name: str,
        block_s: float = 60,
        after_s: float = CONTEXT_S,
        level_s: float = 0,
        first_block_s: float | None = None,
        live: bool = False,
    ) -> None:
        self._blocks, self._name, self._live = blocks, name, live
        self._later_block_size, self._block_size, self._before, self._after = (
            SAMPLES_PER_FRAME * round(seconds * FPS)
            for seconds in (block_s, first_block_s or block_s, LIVE_CONTEXT_S if live else CONTEXT_S, after_s)
        )
        self._waveform = np.zeros(0, np.float32)  # from sample `_start` on
        self._unjoined: list[np.ndarray] = []  # blocks read after `_waveform`
        # in samples: start of `_waveform`, end of what has been read, end of what has features
        self._start = self._read = self._extracted = 0
        self._ended = False
        self._rows = np.zeros((0, FEATURE_DIMS[name]), np.float32)  # from row `_first_row` on
        self._first_row = 0
        while not self._ended and self._read < level_s * SAMPLE_RATE:
            self._read_block()
        self._close_mouth = None
        if name == "whisper":  # the direction of closed lips is known for Whisper features only
            self._close_mouth = SilenceMouthClosure(np.concatenate(self._unjoined) if self._unjoined else None)
        self._lock = threading.Lock()
        self._error: Exception | None = None  # of the thread
        self._thread = threading.Thread(target=self._extract_first_block, daemon=True)
        if first_block_s is not None:
            self._thread.start()

    def close(self) -> None:
        """Wait for the thread."""
        if self._thread.is_alive():
            self._thread.join()

    def remaining_s(self, time_s: float, at_most_s: float) -> float:
        """Seconds of audio after `time_s`, `at_most_s` at most; reads that far."""
        position = round(time_s * SAMPLE_RATE)
        with self._lock:
            while not self._ended and self._read < position + at_most_s * SAMPLE_RATE:
                self._read_block()
            self._skip_unused(time_s - KEPT_S)
        return min(max(self._read - position, 0) / SAMPLE_RATE, at_most_s)

    def windows(self, times_s: np.ndarray) -> np.ndarray:
        """Audio windows (B, D, 5) around times (B,) in seconds, which must increase from call to call."""
        rows = np.round(times_s * FPS, 6)  # integers for frames at 25 fps
        with self._lock:
            if self._error:
                raise self._error
            while self._extracted < self._read or not self._ended:
                if self._extracted // SAMPLES_PER_FRAME > np.ceil(rows.max()) + WINDOW_RADIUS:
                    break
                self._extract_block()
        return audio_windows(self._rows, rows - self._first_row)

    def _extract_first_block(self) -> None:
        with self._lock:
            if self._extracted:
                return
            try:
                self._extract_block()
            except Exception as error:  # raised by `windows`
                self._error = error

    def _skip_unused(self, before_s: float) -> None:
        """Skip whole blocks before a time for which no window was requested, as when no face is in view."""
        if self._block_size != self._later_block_size:  # the first block is never skipped, whenever its thread runs
            return
        num_blocks = (round(min(before_s * SAMPLE_RATE, self._read)) - self._extracted) // self._block_size
        if num_blocks > 0:
            self._extracted += num_blocks * self._block_size
            self._rows, self._first_row = self._rows[:0], self._extracted // SAMPLES_PER_FRAME
            self._join_blocks()
            self._drop_samples()

    def _read_block(self) -> None:
        block = next(self._blocks, None)
        self._ended = block is None
        if block is not None:
            self._unjoined.append(block)
            self._read += len(block)

    def _join_blocks(self) -> None:
        self._waveform, self._unjoined = np.concatenate([self._waveform, *self._unjoined]), []

    def _drop_samples(self) -> None:
        """Drop the samples that are not context of the next block."""
        dropped = max(0, self._extracted - self._before - self._start)
        self._waveform, self._start = self._waveform[dropped:], self._start + dropped

    def _extract_block(self) -> None:
        """Extract the features of one more block."""
        stop = self._extracted + self._block_size
        while not self._ended and self._read < stop + self._after:
            self._read_block()
        if self._ended and self._read <= stop + self._after:
            stop = self._read
        self._join_blocks()
        start = max(0, self._extracted - self._before)
        waveform = self._waveform[start - self._start : stop + self._after - self._start]
        if self._close_mouth:
            features = extract_features(with_noise_floor(waveform), self._name, live=self._live)
            features = self._close_mouth(features, waveform)
        else:
            features = extract_features(waveform, self._name, live=self._live)
        context_rows = (self._extracted - start) // SAMPLES_PER_FRAME
        num_rows = max(1, -(-(stop - self._extracted) // SAMPLES_PER_FRAME))
        kept = self._rows[-KEPT_ROWS:]
        self._rows = np.concatenate([kept, features[context_rows : context_rows + num_rows]])
        self._first_row = self._extracted // SAMPLES_PER_FRAME - len(kept)
        self._extracted, self._block_size = stop, self._later_block_size
        self._drop_samples()
