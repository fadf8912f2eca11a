"""The table of delays: its count on streams whose delay is known."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from tests.tools.delay_table import stream_with_delays


@pytest.mark.parametrize(("frames_ahead", "blocks_ahead", "delay_s"), [(5, 0, 0.2), (5, 40, 0.4), (0, 0, 0)])
def test_delay_is_that_of_the_last_frame_or_sample_taken(frames_ahead, blocks_ahead, delay_s) -> None:
    """Output frame k needs the frame k + `frames_ahead` and the blocks of 10 ms up to 4 k + `blocks_ahead`."""

    def stream(camera: Iterator[np.ndarray], microphone: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        list(islice(camera, frames_ahead))
        list(islice(microphone, blocks_ahead))
        for frame in camera:
            yield frame
            list(islice(microphone, 4))

    frames = [np.full((2, 2, 3), number, np.uint8) for number in range(50)]
    outputs, delays = stream_with_delays(stream, frames, np.zeros(50 * 640, np.float32))
    assert len(outputs) == len(delays) == 50 - frames_ahead
    np.testing.assert_allclose(delays[: 50 - blocks_ahead // 4], delay_s, atol=1e-9)
