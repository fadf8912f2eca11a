"""examples/live.py on files, and on stand-ins of devices: no camera, microphone or screen is needed."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import read_frames
from examples.live import Recorder, main, summary, window
from tests.support.commands import run_command_line
from tests.support.dubbing import lips_change
from utils.bundled import ROOT
from utils.errors import MediaError


def numbered_frames(num_frames: int) -> Iterator[np.ndarray]:
    return (np.full((2, 2, 3), number, np.uint8) for number in range(num_frames))


def numbered_samples(num_samples: int, per_frame: int) -> Callable[[int], np.ndarray]:
    """A reader of samples that are the number of their frame."""
    left = np.arange(num_samples, dtype=np.float32) // per_frame

    def read(length: int) -> np.ndarray:
        nonlocal left
        samples, left = left[:length], left[length:]
        return samples

    return read


def test_frames_are_dropped_with_their_audio() -> None:
    """At 200 fps with 80 samples each, nothing is dubbed for 0.6 s: half a second of frames may wait."""
    recorder = Recorder(numbered_frames(150), numbered_samples(120 * 80, 80), Fraction(200))
    started = time.monotonic()
    recorder.start()
    recorder.join()
    assert time.monotonic() - started >= 0.6  # the samples end first
    frames, blocks = list(recorder.frames()), list(recorder.blocks())
    assert [frame[0, 0, 0] for frame in frames] == list(range(100)) and recorder.num_dropped == 20
    assert [set(block) for block in blocks] == [{number} for number in range(100)]
    times_s, samples = zip(*recorder.recorded, strict=True)
    assert all(map(np.array_equal, samples, blocks))
    assert times_s[-1] - times_s[0] > 0.4  # not at once


def test_audio_of_frames_at_a_fractional_rate_is_complete() -> None:
    lengths = []

    def read(length: int) -> np.ndarray:
        lengths.append(length)
        return np.zeros(length, np.float32)

    recorder = Recorder(numbered_frames(120), read, Fraction(30000, 1001), paced=False)
    recorder.start()
    recorder.join()
    assert set(lengths[:120]) == {533, 534} and sum(lengths[:120]) == round(16000 * 120 * 1001 / 30000)


@pytest.mark.slow
def test_what_was_recorded_before_an_error_is_kept(
    portrait_clip, speech, checkpoint, tmp_path, monkeypatch, capsys
) -> None:
    def broken(path: Path, *args: object, **options: object) -> Iterator[np.ndarray]:
        frames = read_frames(path, *args, **options)
        yield from islice(frames, 30)
        if path == portrait_clip:
            raise MediaError(path, "damaged")

    monkeypatch.setattr("examples.live.read_frames", broken)
    output = tmp_path / "dubbed.mp4"
    flags = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--device", "cpu")
    with pytest.raises(SystemExit) as caught:
        run_command_line(main, *flags, "--output", output)
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.err == f"error: --video: {portrait_clip}: damaged\n"
    assert len(list(read_frames(output))) == int(printed.out.splitlines()[-1].split()[0]) > 0


def test_summary() -> None:
    assert summary([0.5] * 95 + [0.9] * 5, 3, 4.0) == (
        "100 frames in 4.0 s, 3 dropped; delay 0.50 s (median), 0.52 s (95 %)"
    )
    assert summary([0.5] * 60, 40, 4.0).endswith("; --fps 15 drops fewer")
    assert summary([], 0, 0.0) == "no frame was dubbed"


@pytest.mark.slow
def test_file_to_file(portrait_clip, speech, checkpoint, tmp_path, capsys) -> None:
    output = tmp_path / "dubbed.mp4"
    flags = ("--video", portrait_clip, "--audio", speech, "--checkpoint", checkpoint, "--device", "cpu")
    run_command_line(main, *flags, "--output", output)
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.match(r"(\d+) frames in .* s, (\d+) dropped; delay ([\d.]+) s", line)
    num_frames, num_dropped = int(found[1]), int(found[2])
    assert num_frames + num_dropped == 40 and num_frames >= 12
    assert float(found[3]) >= 0.5  # no sooner than its audio window is known
    source, dubbed = list(read_frames(portrait_clip)), list(read_frames(output))
    assert len(dubbed) == num_frames and lips_change(dubbed[0], source[0]) > 15
    assert abs(len(load_audio(output)) - 640 * num_frames) <= 2048  # AAC frames
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for other processes")
def test_interrupt_completes_the_file(portrait_clip, speech, checkpoint, tmp_path) -> None:
    output = tmp_path / "dubbed.mkv"
    command = [sys.executable, "-m", "examples.live", "--video", "examples/portrait.mp4", "--audio", speech]
    command += ["--checkpoint", checkpoint, "--device", "cpu", "--output", output]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "live; Ctrl-C ends\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate()
    assert process.returncode == 0 and errors == ""
    if "no frame" not in printed:  # a loaded machine may need longer for the first one
        assert len(list(read_frames(output))) == int(printed.split()[0])
    assert {path.name for path in tmp_path.iterdir()} <= {output.name}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--video", "missing.mp4"], "error: --video: missing.mp4: no such file"),
        (["--fps", "0"], "error: --fps: expected 1 to 60, found 0"),
        (["--fps", "fast"], "error: --fps: "),
        (["--output", "dubbed.gif"], "error: --output: dubbed.gif: the name must end in .mp4, .mov or .mkv"),
        (["--output", "camera"], "error: --output: no virtual camera ("),
        (["--output", "window"], "error: --output: cannot open a window ("),
        (["--audio", "microphone"], "error: --audio: no sound device ("),
        (["--play"], "error: --play: no sound device ("),
        (["--video", "99"], "error: --video: camera 99 cannot be read"),
        (["--face", "middle"], "error: --face: expected largest, left, right"),
        (["--look-ahead", "-1"], "error: --look-ahead: expected a number from 0 on"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_errors_are_one_line(flags, message, portrait_clip, speech, checkpoint, monkeypatch, capfd) -> None:
    for name in ("sounddevice", "pyvirtualcam", "tkinter"):
        monkeypatch.setitem(sys.modules, name, None)  # cannot be imported
    defaults = ["--video", portrait_clip, "--audio", speech, "--output", "none", "--checkpoint", checkpoint]
    with pytest.raises(SystemExit) as caught:
        run_command_line(main, *defaults, "--device", "cpu", *flags)
    assert caught.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(message)


def test_output_onto_an_input_is_refused(portrait_clip, speech, capsys) -> None:
    with pytest.raises(SystemExit):
        run_command_line(main, "--video", portrait_clip, "--audio", speech, "--output", portrait_clip)
    assert capsys.readouterr().err.endswith("portrait.mp4 is also an input; choose another name\n")


def test_window_shows_frames_until_it_is_closed() -> None:
    tkinter = pytest.importorskip("tkinter")
    try:
        tkinter.Tk().destroy()
    except tkinter.TclError as error:
        pytest.skip(f"no screen: {error}")
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[4, 3] = 255, 128, 7
    with window(64, 48) as show:
        assert show(frame, np.zeros(0))
        root = tkinter._default_root
        (label,) = root.winfo_children()
        assert (label.winfo_reqwidth(), label.winfo_reqheight()) >= (64, 48)
        assert root.tk.splitlist(root.tk.call(label.cget("image"), "get", 3, 4)) == (255, 128, 7)
        root.tk.call(root.protocol("WM_DELETE_WINDOW"))
        assert not show(frame, np.zeros(0))


@pytest.mark.slow
def test_devices_get_frames_and_samples(portrait_clip, checkpoint, monkeypatch, capsys) -> None:
    """A microphone, speakers and a virtual camera that only record what they are asked for."""
    sent, played = [], []

    class Device:
        active = False

        def __init__(self, *args: object, **options: object) -> None:
            assert args in [(16000,), (256, 256, 25.0)]

        def __enter__(self) -> "Device":
            return self

        def __exit__(self, *error: object) -> None:
            self.close()

        def close(self) -> None:
            self.active = False

        def start(self) -> None:
            self.active = True

        def read(self, length: int) -> tuple[np.ndarray, bool]:
            assert self.active
            time.sleep(length / 16000)
            return np.full((length, 1), 0.01, np.float32), False

        def write(self, samples: np.ndarray) -> None:
            played.append(samples)

        def send(self, frame: np.ndarray) -> None:
            sent.append(frame)

    sound = SimpleNamespace(InputStream=Device, OutputStream=Device, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", sound)
    monkeypatch.setitem(sys.modules, "pyvirtualcam", SimpleNamespace(Camera=Device))
    flags = ("--video", portrait_clip, "--checkpoint", checkpoint, "--device", "cpu")
    run_command_line(main, *flags, "--output", "camera", "--play")
    assert len(sent) == len(played) == int(capsys.readouterr().out.splitlines()[-1].split()[0]) > 0
    assert sent[0].shape == (256, 256, 3) and {block.shape for block in played} == {(640, 1)}
