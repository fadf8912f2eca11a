"""cutting: an interval of a video stream and an audio track, copied or encoded."""

from pathlib import Path

import av
import numpy as np
import pytest

from data_processing.media.audio_io import SAMPLE_RATE, load_audio
from data_processing.media.cutting import Box, cut
from data_processing.media.video_reader import read_frames
from tests.support.media import no_face_video, text_file, write_video
from tests.support.numbered_media import click, decoded, numbered, numbers, write_audio
from utils.errors import MediaError, OutputError

START_S, STOP_S = 3.0, 6.0
FIRST, LAST = 75, 149  # frames at these times


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    """8 s with a click at 4.5 s."""
    path = tmp_path_factory.mktemp("audio") / "audio.m4a"
    with av.open(str(path), "w", "mp4") as container:
        track = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(click(SAMPLE_RATE, 4.5, 8.0)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, 0
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return path


def video(path: Path, codec: str, options: dict[str, str], container: str = "mp4") -> Path:
    """8 s of numbered frames with a key frame every 2.4 s, none of them at START_S."""
    frames = (numbered(index) for index in range(200))
    return write_video(path, frames, codec=codec, options={"g": "60"} | options, container=container)


def click_s(path: Path) -> float:
    waveform = load_audio(path)
    return float(np.argmax(np.abs(waveform) > 0.3)) / SAMPLE_RATE


def packets_of(path: Path) -> set[bytes]:
    with av.open(str(path)) as container:
        return {bytes(packet) for packet in container.demux(video=0) if packet.size}


@pytest.mark.parametrize(
    ("codec", "options", "container"),
    [
        ("libx264", {"preset": "medium", "bf": "3"}, "mp4"),
        ("libx265", {"x265-params": "log-level=none:keyint=60"}, "mp4"),
        ("libvpx-vp9", {}, "webm"),
        ("libsvtav1", {"preset": "12", "svtav1-params": "keyint=60"}, "mp4"),
    ],
)
def test_packets_are_copied_and_the_part_begins_between_key_frames(tmp_path, audio, codec, options, container):
    source = video(tmp_path / "source", codec, options, container)
    output = tmp_path / "part.mp4"
    cut(source, audio, START_S, STOP_S, output)
    assert packets_of(output) <= packets_of(source)
    found = numbers(read_frames(output))
    assert found == list(range(FIRST, FIRST + len(found)))  # no frame is missing in between
    assert LAST - 8 <= found[-1] <= LAST
    assert numbers(read_frames(output, 20, 22)) == [FIRST + 20, FIRST + 21]  # by seeking
    assert click_s(output) == pytest.approx(1.5, abs=0.001)
    shown = dict(decoded(source))
    assert {time + 3: pixels for time, pixels in decoded(output)}.items() <= shown.items()


def test_audio_packets_are_copied(tmp_path):
    source = video(tmp_path / "source.mp4", "libx264", {"preset": "ultrafast"})
    track = write_audio(tmp_path / "track.mp3", "libmp3lame")
    cut(source, track, 0.2, 1.8, tmp_path / "part.mp4")
    with av.open(str(track)) as given, av.open(str(tmp_path / "part.mp4")) as found:
        begin_s = float(given.streams.audio[0].start_time * given.streams.audio[0].time_base)  # the encoder's delay
        packets = [{bytes(packet) for packet in file.demux(audio=0) if packet.size} for file in (given, found)]
    assert packets[1] and packets[1] <= packets[0]
    assert click_s(tmp_path / "part.mp4") == pytest.approx(begin_s + 0.5 - 0.2, abs=0.001)


def test_what_an_mp4_cannot_hold_is_encoded_at_its_own_frame_rate(tmp_path, audio):
    frames = (numbered(index) for index in range(200))
    source = write_video(tmp_path / "source.mkv", frames, 50, codec="ffv1")
    cut(source, audio, 2.0, 3.0, tmp_path / "part.mp4")
    assert numbers(read_frames(tmp_path / "part.mp4", fps=50)) == list(range(100, 150))
    cut(source, audio, 3.9, 9.0, tmp_path / "part.mp4")  # the video ends at 4.0 s
    assert numbers(read_frames(tmp_path / "part.mp4", fps=50)) == list(range(195, 200))


def test_encoded_part_is_in_sync_where_a_stream_begins_later(tmp_path, audio):
    frames = (numbered(index) for index in range(50))
    late = write_video(tmp_path / "late.mkv", frames, codec="ffv1", times=4.2 + np.arange(50) / 25)
    cut(late, audio, 4.0, 6.0, tmp_path / "part.mp4")
    assert numbers(read_frames(tmp_path / "part.mp4")) == list(range(45))
    assert click_s(tmp_path / "part.mp4") == pytest.approx(0.3, abs=0.001)
    source = write_video(tmp_path / "source.mkv", (numbered(index) for index in range(50)), codec="ffv1")
    late_audio = write_audio(tmp_path / "late.mka", "pcm_s16le", audio_start=1.0)  # its click is 0.5 s later
    cut(source, late_audio, 0.2, 2.0, tmp_path / "part.mp4")
    assert numbers(read_frames(tmp_path / "part.mp4")) == list(range(5, 50))
    assert click_s(tmp_path / "part.mp4") == pytest.approx(1.3, abs=0.001)


def test_box(tmp_path, audio):
    source = video(tmp_path / "source.mp4", "libx264", {"preset": "ultrafast"})
    output = tmp_path / "part.mp4"
    cut(source, audio, START_S, STOP_S, output, Box(left=8, top=-4, width=40, height=24))
    frames = list(read_frames(output))
    whole = list(read_frames(source, FIRST, LAST + 1))
    assert len(frames) == len(whole) and frames[0].shape == (20, 40, 3)  # what lies above the frame is left out
    assert np.abs(np.array(frames).astype(int) - np.array(whole)[:, :20, 8:48]).mean() < 4
    assert click_s(output) == pytest.approx(1.5, abs=0.001)
    with pytest.raises(MediaError, match="expected a box within 64 x 48 pixels, found "):
        cut(source, audio, START_S, STOP_S, output, Box(64, 0, 10, 10))


def test_errors(tmp_path, audio):
    source = video(tmp_path / "source.mp4", "libx264", {"preset": "ultrafast"})
    for interval, box in (((9.0, 10.0), None), ((3.001, 3.002), None), ((9.0, 10.0), Box(0, 0, 20, 20))):
        with pytest.raises(MediaError, match=r"source\.mp4: has no frame between"):
            cut(source, audio, *interval, tmp_path / "part.mp4", box)
    with pytest.raises(MediaError, match="no audio track"):
        cut(source, no_face_video(tmp_path / "silent.mp4"), 0, 1, tmp_path / "part.mp4")
    with pytest.raises(MediaError, match="no video stream"):
        cut(audio, audio, 0, 1, tmp_path / "part.mp4")
    with pytest.raises(MediaError, match=r"text\.mp4"):
        cut(text_file(tmp_path / "text.mp4"), audio, 0, 1, tmp_path / "part.mp4")
    with pytest.raises(OutputError, match="cannot be written"):
        cut(source, audio, START_S, STOP_S, tmp_path / "absent" / "part.mp4")
    assert not (tmp_path / "part.mp4").exists() and not list(tmp_path.glob(".*"))
