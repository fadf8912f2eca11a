"""Dub live: a camera and a microphone, or files as if they were live, into a window, a virtual camera or a file.

    python -m examples.live                                               camera 0, the microphone, a window
    python -m examples.live --video 0 --audio speech.wav --output camera
    python -m examples.live --video speaker.mp4 --audio speech.wav --output dubbed.mp4

It ends with the video or the audio, with Ctrl-C or SIGTERM, or when the window is closed, always with exit code 0,
and prints how late the frames were. If the machine is slower than real time, frames are dropped together with their
audio; a lower --fps is smoother.
Microphone, virtual camera and --play need the packages of the extra "live" (docs/dubbing.md).
"""

import argparse
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from fractions import Fraction
from itertools import chain, count
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

from data_processing.media.audio_io import SAMPLE_RATE, read_audio, save_wav
from data_processing.media.video_reader import FPS, check_readable, probe, read_frames
from data_processing.media.video_writer import VideoWriter, check_writable, concatenate_videos
from dubbing.pipeline import DubbingPipeline
from dubbing.signing import DUBBED, SOURCE_TYPE
from utils.bundled import BUNDLED_GENERATOR, EXAMPLE_VIDEO
from utils.command_line import run_command
from utils.errors import ParameterError

MICROPHONE, WINDOW, CAMERA, NOWHERE = "microphone", "window", "camera", "none"
MAX_WAITING_S = 0.5  # of frames that wait to be dubbed; more of them are dropped
MAX_FPS = 60
MIN_PERIOD = 0.8  # of the frame period, from one output frame to the next: two are dubbed at once

Show = Callable[[np.ndarray, np.ndarray], bool]  # an output frame and its audio -> whether to go on


# --- inputs ------------------------------------------------------------------------------------------------------


def camera_frames(number: int) -> Iterator[np.ndarray]:
    """The newest frame of a camera, (H, W, 3) uint8 RGB, whenever one is asked for.

    Raises:
        ParameterError: there is no such camera, or it ended.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it prints more than one line without camera
    capture = cv2.VideoCapture(number)
    is_read, newest = capture.read()
    stopped = threading.Event()

    def read() -> None:  # a camera that is not read falls behind
        nonlocal is_read, newest
        while is_read and not stopped.is_set():
            is_read, newest = capture.read()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while is_read:
            yield newest[..., ::-1].copy()
        raise ParameterError("video", f"camera {number} cannot be read")
    finally:
        stopped.set()
        reader.join()
        capture.release()


def microphone_reader(stack: ExitStack) -> Callable[[int], np.ndarray]:
    """A function that waits for n samples of the default microphone, (n,) float32, 16 kHz."""
    stream = stack.enter_context(sound_device("audio", "InputStream"))

    def read(length: int) -> np.ndarray:
        if not stream.active:  # what is recorded while the generator is loaded would be late
            stream.start()
        samples, _ = stream.read(length)
        return samples[:, 0].copy()

    return read


@contextmanager
def sound_device(parameter: str, kind: str) -> Iterator[Any]:
    """The default microphone ("InputStream") or speakers ("OutputStream"), mono, 16 kHz, not started."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: no PortAudio
        raise ParameterError(parameter, f"no sound device ({error}); see docs/dubbing.md") from None
    try:
        with closing(getattr(sounddevice, kind)(SAMPLE_RATE, channels=1, dtype="float32", latency="low")) as stream:
            yield stream
    except sounddevice.PortAudioError as error:
        raise ParameterError(parameter, f"no sound device ({error})") from None


def file_reader(path: Path) -> Callable[[int], np.ndarray]:
    """A function that returns the next n samples of a file, (n,) float32, 16 kHz; fewer at its end."""
    blocks, waiting = read_audio(path), np.zeros(0, np.float32)

    def read(length: int) -> np.ndarray:
        nonlocal waiting
        while len(waiting) < length and (block := next(blocks, None)) is not None:
            waiting = np.concatenate([waiting, block])
        samples, waiting = waiting[:length], waiting[length:]
        return samples

    return read


class Recorder(threading.Thread):
    """Takes a frame and its audio at the time of each frame, and lets go of both where too many wait.

    Args:
        frames: (H, W, 3) uint8 RGB each.
        read_samples: returns the next n samples, (n,) float32; fewer than n at the end.
        fps: how often.
        paced: wait for the time of each frame; not needed if the samples come in real time.

    Attributes:
        recorded: when each frame was complete (time.monotonic), and its samples; of those neither dropped nor taken
            from here.
        num_dropped: frames.
        error: what ended the recording; None if nothing did.
    """

    def __init__(
        self,
        frames: Iterator[np.ndarray],
        read_samples: Callable[[int], np.ndarray],
        fps: Fraction,
        paced: bool = True,
    ) -> None:
        super().__init__(daemon=True)
        self.recorded: deque[tuple[float, np.ndarray]] = deque()
        self.num_dropped = 0
        self.error: Exception | None = None
        self._sources, self._fps, self._paced = (frames, read_samples), fps, paced
        self._frames: Queue[np.ndarray | None] = Queue()
        self._blocks: Queue[np.ndarray | None] = Queue()
        self._stopped = threading.Event()

    def frames(self) -> Iterator[np.ndarray]:
        """The frames that are not dropped, as they come."""
        while (frame := self._frames.get()) is not None:
            yield frame

    def blocks(self) -> Iterator[np.ndarray]:
        """Their audio."""
        while (block := self._blocks.get()) is not None:
            yield block

    def stop(self) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        try:
            self._record()
        except Exception as error:
            self.error = error
        for queue in (self._frames, self._blocks):
            queue.put(None)

    def _record(self) -> None:
        frames, read_samples = self._sources
        started, max_waiting = time.monotonic(), max(2, round(MAX_WAITING_S * self._fps))
        for number in count(1):
            frame = next(frames, None)
            start, end = (round(SAMPLE_RATE * one / self._fps) for one in (number - 1, number))
            samples = read_samples(end - start)
            wait_s = started + float(number / self._fps) - time.monotonic() if self._paced else 0.0
            if frame is None or not len(samples) or self._stopped.wait(max(0.0, wait_s)):
                return
            if self._frames.qsize() >= max_waiting:
                self.num_dropped += 1
                continue
            self.recorded.append((time.monotonic(), samples))
            self._blocks.put(samples)
            self._frames.put(frame)


# --- outputs -----------------------------------------------------------------------------------------------------


@contextmanager
def window(width: int, height: int) -> Iterator[Show]:
    """A window that shows the frames."""
    try:
        import tkinter

        root = tkinter.Tk()
    except Exception as error:  # no tkinter, or tkinter.TclError
        raise ParameterError("output", f"cannot open a window ({error}); choose a file or camera") from None
    is_open = True

    def close() -> None:
        nonlocal is_open
        is_open = False

    root.title("dubbed")
    root.protocol("WM_DELETE_WINDOW", close)
    image = tkinter.PhotoImage(width=width, height=height)
    tkinter.Label(root, image=image).pack()

    def show(frame: np.ndarray, _: np.ndarray) -> bool:
        image.configure(data=b"P6 %d %d 255\n" % (width, height) + frame.tobytes())
        root.update()
        return is_open

    try:
        yield show
    finally:
        root.destroy()


@contextmanager
def virtual_camera(width: int, height: int, fps: Fraction) -> Iterator[Show]:
    """A camera for other programs, which show the frames."""
    try:
        import pyvirtualcam

        camera = pyvirtualcam.Camera(width, height, float(fps))
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ParameterError("output", f"no virtual camera ({reason}); see docs/dubbing.md") from None

    def show(frame: np.ndarray, _: np.ndarray) -> bool:
        camera.send(frame)
        return True

    with camera:
        yield show


@contextmanager
def video_file(path: Path, width: int, height: int, fps: Fraction) -> Iterator[Show]:
    """A video with audio, which appears when it is complete."""
    blocks = []

    def show(frame: np.ndarray, samples: np.ndarray) -> bool:
        video.write(frame)
        blocks.append(samples)
        return True

    with TemporaryDirectory(dir=path.parent) as folder:
        frames, audio = Path(folder) / "frames.mkv", Path(folder) / "audio.wav"
        with VideoWriter(frames, width, height, fps) as video:
            yield show
        if blocks:
            save_wav(audio, np.concatenate(blocks))
            metadata = {"comment": DUBBED, "description": SOURCE_TYPE}
            concatenate_videos([frames], path, [audio], metadata=metadata)


@contextmanager
def speakers(show: Show) -> Iterator[Show]:
    """The same, and its audio from the default speakers."""
    with sound_device("play", "OutputStream") as stream:
        stream.start()

        def show_and_play(frame: np.ndarray, samples: np.ndarray) -> bool:
            stream.write(samples[:, None])  # returns when it is nearly played
            return show(frame, samples)

        yield show_and_play


# --- the command -------------------------------------------------------------------------------------------------


def open_inputs(args: argparse.Namespace, stack: ExitStack) -> tuple[Recorder, int, int, Fraction]:
    """The recorder, not started, and the width, height and rate of the frames."""
    if args.fps is not None and not 1 <= args.fps <= MAX_FPS:
        raise ParameterError("fps", f"expected 1 to {MAX_FPS}, found {float(args.fps):g}")
    for path in (args.video, args.audio):
        if isinstance(path, Path):
            check_readable(path)
    if isinstance(args.video, int):
        fps, frames = args.fps or Fraction(FPS), camera_frames(args.video)
    else:
        fps = args.fps or probe(args.video).fps
        frames = read_frames(args.video, fps=fps)
    stack.enter_context(closing(frames))
    first = next(frames)
    is_microphone = args.audio == MICROPHONE
    read_samples = microphone_reader(stack) if is_microphone else file_reader(args.audio)
    recorder = Recorder(chain([first], frames), read_samples, fps, paced=not is_microphone)
    return recorder, first.shape[1], first.shape[0], fps


def open_output(args: argparse.Namespace, width: int, height: int, fps: Fraction, stack: ExitStack) -> Show:
    """What shows the output frames."""
    if args.output == WINDOW:
        output = window(width, height)
    elif args.output == CAMERA:
        output = virtual_camera(width, height, fps)
    elif args.output == NOWHERE:
        output = nullcontext(lambda frame, samples: True)
    else:
        check_writable(args.output)
        inputs = [path for path in (args.video, args.audio) if isinstance(path, Path)]
        if args.output.exists() and any(map(args.output.samefile, inputs)):
            raise ParameterError("output", f"{args.output} is also an input; choose another name")
        output = video_file(args.output, width, height, fps)
    show = stack.enter_context(output)
    return stack.enter_context(speakers(show)) if args.play else show


def summary(delays: list[float], num_dropped: int, total_s: float) -> str:
    """One line about the frames that were shown, `delays` seconds after they were recorded."""
    if not delays:
        return "no frame was dubbed"
    line = f"{len(delays)} frames in {total_s:.1f} s, {num_dropped} dropped"
    line += f"; delay {np.median(delays):.2f} s (median), {np.percentile(delays, 95):.2f} s (95 %)"
    rate = int(len(delays) / total_s)
    return line + (f"; --fps {max(1, rate)} drops fewer" if num_dropped > len(delays) / 10 else "")


def run(args: argparse.Namespace) -> None:
    delays: list[float] = []
    with ExitStack() as devices:
        recorder, width, height, fps = open_inputs(args, devices)
        with ExitStack() as stack:
            show = open_output(args, width, height, fps, stack)
            pipeline = DubbingPipeline(args.checkpoint, device=args.device)
            inputs = recorder.frames(), recorder.blocks()
            dubbed = stack.enter_context(closing(pipeline.stream(*inputs, fps, args.look_ahead_s, args.face)))
            # loads all that the first frames would wait for
            example = read_frames(EXAMPLE_VIDEO, 0, 4), [np.zeros(SAMPLE_RATE // 4)]
            deque(pipeline.stream(*example, look_ahead_s=0), 0)
            print("live; Ctrl-C ends", flush=True)
            stack.callback(recorder.stop)
            recorder.start()
            started = shown_s = time.monotonic()
            try:
                for frame in dubbed:
                    recorded_s, samples = recorder.recorded.popleft()
                    time.sleep(max(0.0, shown_s + MIN_PERIOD / float(fps) - time.monotonic()))
                    is_open = show(frame, samples)
                    shown_s = time.monotonic()
                    delays.append(shown_s - recorded_s)
                    if not is_open:
                        break
            except KeyboardInterrupt:
                pass  # the usual end
        print(summary(delays, recorder.num_dropped, shown_s - started))
        if recorder.error:
            raise recorder.error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--video", type=camera_or_file, default=0, metavar="NUMBER|FILE", help="camera (default: 0) or video file")
    add(
        "--audio",
        type=lambda text: text if text == MICROPHONE else Path(text),
        default=MICROPHONE,
        metavar="FILE",
        help="driving audio: microphone (default) or a media file",
    )
    add(
        "--output",
        type=lambda text: text if text in (WINDOW, CAMERA, NOWHERE) else Path(text),
        default=WINDOW,
        metavar="FILE",
        help="window (default), camera (a virtual one), none, or a video file (.mp4, .mov, .mkv)",
    )
    add(
        "--play",
        action="store_true",
        help="play the driving audio with the frames; use headphones with a microphone",
    )
    add("--fps", type=Fraction, help="frames per second (default: 25 of a camera, a file's own)")
    add("--face", default="largest", help="which face: largest, left, right, x,y or a photo (docs/dubbing.md)")
    add(
        "--look-ahead",
        type=float,
        default=0.3,
        dest="look_ahead_s",
        metavar="SECONDS",
        help="delay beside about 0.35 s that cannot be avoided; less of it is less exact (default: %(default)s)",
    )
    add("--checkpoint", type=Path, default=BUNDLED_GENERATOR, help="generator (default: the bundled one)")
    add("--device", default="auto", help="auto, cpu, cuda, mps, … (default: %(default)s)")
    return parser


def camera_or_file(text: str) -> int | Path:
    return int(text) if text.isdecimal() else Path(text)


def main() -> None:
    run_command(build_parser(), run)


if __name__ == "__main__":
    main()
