"""Fuzzing of the media readers: python -m tests.tools.fuzz --cases 1000 --seed 0

A case is one of a few small generated files with random damage. A worker process reads it with every reader of
`data_processing`. A case passes if the file is read or rejected with a `UserError`. Defects are:

error   another exception, or an invalid result (an image without pixels, NaN in audio)
crash   the process died
hang    not finished within LIMIT_S
leak    a file left open; or memory that keeps growing over all cases of a worker
memory  more than MAX_MEMORY_MB for a file of a few kilobytes

The exit code is 1 if there was a defect. After Ctrl-C the results so far are printed. `--case K` repeats case K in
this process, keeps its file and shows the traceback.
"""

import argparse
import contextlib
import faulthandler
import gc
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from tqdm import tqdm

from data_processing.media.audio_io import load_audio
from data_processing.media.video_reader import first_frame_time, probe, read_frames
from data_processing.media.video_writer import VideoWriter
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60
MAX_MEMORY_MB = 4000
MAX_FRAMES = 20_000  # allowed for a file of 12 frames with damaged timestamps
LEAK_MB_PER_CASE = 0.05
OUTCOMES = ("read", "rejected", "error", "crash", "hang", "leak", "memory")
PASSED = {"read", "rejected"}

SIZE = (64, 48)  # width, height
NUM_FRAMES = 12
SECONDS = NUM_FRAMES / 25
SEEDS = {  # file name: codecs of video and audio
    "h264_aac.mp4": ("libx264", "aac"),
    "h264_aac.mkv": ("libx264", "aac"),
    "h264_pcm.mov": ("libx264", "pcm_s16le"),
    "h264_aac.ts": ("libx264", "aac"),
    "mpeg4_mp3.avi": ("mpeg4", "libmp3lame"),
    "mjpeg_pcm.avi": ("mjpeg", "pcm_s16le"),
    "vp9_opus.webm": ("libvpx-vp9", "libopus"),
    "mpeg1_mp2.mpg": ("mpeg1video", "mp2"),
    "mpeg2_mp2.mpg": ("mpeg2video", "mp2"),
    "wmv2_wma.wmv": ("wmv2", "wmav2"),
    "pcm.wav": (None, "pcm_s16le"),
    "adpcm.wav": (None, "adpcm_ima_wav"),
    "mp3.mp3": (None, "libmp3lame"),
    "flac.flac": (None, "flac"),
    "opus.ogg": (None, "libopus"),
}
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62)
# names of container elements, beside which sizes, counts, times and rates are stored
MARKERS = re.compile(
    rb"moov|mvhd|trak|tkhd|edts|elst|mdia|mdhd|stbl|stsd|avc1|mp4a|sowt|esds|avcC|stts|ctts|stsc|stsz|stco|mdat"
    rb"|RIFF|LIST|avih|strh|strf|idx1|movi|00dc|01wb|fmt |data|fact|OggS|OpusHead|fLaC|ID3|Xing|Info"
    rb"|\x18\x53\x80\x67|\x15\x49\xa9\x66|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\x1c\x53\xbb\x6b|\x2a\xd7\xb1|\x23\xe3\x83"
    rb"|\x44\x89|\x00\x00\x01[\xb3\xb5\xb8\xba\xbb\xc0\xe0]|\x00\x00\x01\x67",
    re.DOTALL,
)


class Result(NamedTuple):
    """The result of one case."""

    case: int
    kind: str
    outcome: str
    detail: str
    seconds: float
    memory_mb: float


# --- the files ----------------------------------------------------------------------------------------------


def make_seeds() -> dict[str, bytes]:
    """The undamaged files, always identical: twelve frames with a key frame every four, half a second of audio."""
    with tempfile.TemporaryDirectory() as folder:
        for name, codecs in SEEDS.items():
            _write(Path(folder) / name, *codecs)
        return {name: (Path(folder) / name).read_bytes() for name in SEEDS}


def _write(path: Path, video_codec: str | None, audio_codec: str) -> None:
    rng = np.random.default_rng(0)
    options = {"page_duration": "50000"} if path.suffix == ".ogg" else {}
    with av.open(str(path), "w", options={"fflags": "+bitexact", **options}) as container:
        video = container.add_stream(video_codec, rate=25, options={"g": "4"}) if video_codec else None
        if video:
            video.width, video.height = SIZE
            video.pix_fmt = "yuvj420p" if video_codec == "mjpeg" else "yuv420p"
            video.codec_context.thread_count = 1
            if path.suffix == ".mov":
                video.set_display_rotation(90)
        rate = 48000 if audio_codec == "libopus" else 44100
        audio = container.add_stream(audio_codec, rate=rate, layout="mono")
        audio.bit_rate = 64_000
        texture = rng.integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
        for index in range(NUM_FRAMES if video else 0):
            image = av.VideoFrame.from_ndarray(np.roll(texture, index, axis=1), format="rgb24")
            container.mux(video.encode(image))
        if video:
            container.mux(video.encode(None))
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(SECONDS * rate)) / rate)
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(audio.format.name, "mono", rate, frame_size=audio.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(audio.encode(part))


def damage(case: int, seed: int, seeds: dict[str, bytes]) -> tuple[str, bytes, list[str]]:
    """Name of the file that case `case` damages, the damaged bytes, and the names of the changes."""
    rng = np.random.default_rng([seed, case])
    name = list(seeds)[case % len(seeds)]
    if rng.random() < 0.02:
        return name, rng.bytes(int(rng.integers(1, 20_000))), ["garbage"]
    data, changes = bytearray(seeds[name]), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        change = CHANGES[rng.integers(len(CHANGES))]
        change(rng, data, seeds)
        changes.append(change.__name__)
    if name.endswith(".ogg") and rng.random() < 0.8:  # readers skip a page with a wrong checksum
        data = _with_checksums(bytes(data))
    return name, bytes(data), changes


def _with_checksums(ogg: bytes) -> bytes:
    """Ogg pages with corrected checksums."""
    pages = [bytearray(b"OggS" + page) for page in ogg.split(b"OggS")]
    for page in pages:
        page[22:26] = bytes(4)
        checksum = 0
        for byte in page:
            checksum ^= byte << 24
            for _ in range(8):
                checksum = (checksum << 1 ^ (checksum >> 31) * 0x104C11DB7) & 0xFFFFFFFF
        page[22:26] = checksum.to_bytes(4, "little")
    return b"".join(pages)[4:]


def _random_slice(rng: np.random.Generator, data: bytearray) -> slice:
    """A random slice of one byte to half of the file; the logarithm of its length is uniformly distributed."""
    length = int(np.exp(rng.uniform(0, np.log(max(2, len(data) // 2)))))
    start = int(rng.integers(0, max(1, len(data) - length)))
    return slice(start, start + length)


def flip_bits(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    for position in rng.integers(0, max(1, len(data)), int(rng.integers(1, 64))):
        data[position : position + 1] = bytes(byte ^ 1 << rng.integers(8) for byte in data[position : position + 1])


def flip_bits_of_header(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    header = data[:1000]
    flip_bits(rng, header, seeds)
    data[:1000] = header


def overwrite(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    part = _random_slice(rng, data)
    length = part.stop - part.start
    data[part] = [bytes(length), b"\xff" * length, rng.bytes(length)][rng.integers(3)]


def truncate(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    del data[int(rng.integers(0, len(data) + 1)) :]


def cut_out(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    del data[_random_slice(rng, data)]


def duplicate(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    part = data[_random_slice(rng, data)]
    position = int(rng.integers(0, len(data) + 1))
    data[position:position] = part * int(rng.integers(1, 4))


def swap(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    part = _random_slice(rng, data)
    moved = data[part]
    del data[part]
    position = int(rng.integers(0, len(data) + 1))
    data[position:position] = moved


def join(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    """Join the beginning of this file and the end of another."""
    other = list(seeds.values())[rng.integers(len(seeds))]
    position = rng.random()
    data[int(position * len(data)) :] = other[int(position * len(other)) :]


def change_field(rng: np.random.Generator, data: bytearray, seeds: dict[str, bytes]) -> None:
    """Write an extreme or random number before, after or near the name of an element, or anywhere."""
    begin, end = 4, 4
    if names := [match.span() for match in MARKERS.finditer(data)]:
        begin, end = names[rng.integers(len(names))]
    anywhere = int(rng.integers(0, len(data) + 1))
    position = [max(0, begin - 4), end, end + int(rng.integers(0, 48)), anywhere][rng.integers(4)]
    width = int(rng.choice([1, 2, 4, 8]))
    number = EXTREMES[rng.integers(len(EXTREMES))] if rng.random() < 0.7 else int(rng.integers(1 << 40))
    order = "big" if rng.random() < 0.5 else "little"
    data[position : position + width] = (number % (1 << 8 * width)).to_bytes(width, order)


# fields are changed most often, since they have the largest effect
CHANGES = [flip_bits, flip_bits_of_header, overwrite, truncate, cut_out, duplicate, swap, join] + 6 * [change_field]


# --- reading -------------------------------------------------------------------------------------------


def read_all(path: Path) -> bool:
    """Read a file with all READERS; False if all of them rejected it. Raises other exceptions than `UserError`."""
    reasons = [_reason_for_rejection(read, path) for read in READERS]
    return None in reasons


def _reason_for_rejection(read: Callable[[Path], None], path: Path) -> str | None:
    """The message of the `UserError` that `read` raises; None if the file can be read."""
    try:
        read(path)
    except UserError as error:
        assert "\n" not in str(error), f"more than one line: {error}"
        return str(error)


def _read_frames(path: Path) -> None:
    info = probe(path)
    assert 0 < info.width <= 8192 and 0 < info.height <= 8192, info
    assert 0 < info.fps <= 60 and info.pixel_aspect > 0 and 0 <= info.duration_s < float("inf"), info
    for fps in (25, info.fps):
        with contextlib.closing(read_frames(path, fps=fps)) as frames:
            sizes = Counter(frame.shape for frame in islice(frames, MAX_FRAMES + 1))
        assert list(sizes) == [(info.height, info.width, 3)], (sizes, info)
        assert sizes.total() <= MAX_FRAMES, sizes


def _read_slices(path: Path) -> None:
    for start, stop in [(0, 3), (5, 8), (9, None), (1000, 1003)]:
        with contextlib.closing(read_frames(path, start, stop)) as frames:
            assert sum(1 for _ in islice(frames, MAX_FRAMES + 1)) <= (MAX_FRAMES if stop is None else stop - start)


def _read_audio(path: Path) -> None:
    time_of_first = first_frame_time(path)
    assert time_of_first is None or np.isfinite(time_of_first)
    waveform = load_audio(path)
    assert waveform.ndim == 1 and waveform.dtype == np.float32 and np.abs(waveform).max() <= 1


def _copy_audio(path: Path) -> None:
    output = path.with_name("copy.mp4")
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    try:
        with VideoWriter(output, *SIZE, audio_paths=[path]) as writer:
            for _ in range(NUM_FRAMES):
                writer.write(image)
        assert probe(output).width == SIZE[0]
    finally:
        output.unlink(missing_ok=True)
        leftovers = [file.name for file in path.parent.iterdir() if file != path]
    assert not leftovers, leftovers


READERS = (_read_frames, _read_slices, _read_audio, _copy_audio)


def _open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def _memory_mb(field: str) -> float:
    """Memory of this process: VmRSS, or VmHWM, the peak since `_reset_peak`; 0 where /proc is missing."""
    with contextlib.suppress(OSError):
        return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return 0.0


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def run_case(case: int, name: str, path: Path) -> Result:
    """Read a file and classify the outcome, except crashes and hangs, which `Worker` detects."""
    open_before, start = _open_files(), time.perf_counter()
    _reset_peak()
    try:
        outcome, detail = "read" if read_all(path) else "rejected", ""
    except Exception as error:
        line = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename][-1]
        outcome, detail = "error", f"{error!r} in {Path(line.filename).name}, {line.name}"
    gc.collect()
    if outcome in PASSED and _open_files() > open_before:
        outcome, detail = "leak", "a file is left open"
    if outcome in PASSED and _memory_mb("VmHWM") > MAX_MEMORY_MB:
        outcome, detail = "memory", f"{_memory_mb('VmHWM'):.0f} MB"
    return Result(case, name, outcome, detail, time.perf_counter() - start, _memory_mb("VmRSS"))


# --- many cases -------------------------------------------------------------------------------------------


def _serve(connection: Connection, seed: int, seeds: dict[str, bytes]) -> None:
    """A worker process: receives case numbers and sends results."""
    sys.stderr = Path(os.devnull).open("w")  # load_audio's warnings  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        while (case := connection.recv()) is not None:
            name, data, changes = damage(case, seed, seeds)
            path = Path(folder) / name
            path.write_bytes(data)
            result = run_case(case, name, path)
            connection.send(result._replace(detail=f"{', '.join(changes)}: {result.detail}"))
            path.unlink()


class Worker:
    """A process that reads one case after the other; a new one is started when it dies."""

    def __init__(self, seed: int, seeds: dict[str, bytes]):
        self.arguments = (seed, seeds)
        self.process = None
        self.memory_mb: list[float] = []  # after each case of the current process

    def read(self, case: int) -> Result:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, *self.arguments), daemon=True)
            self.process.start()
            theirs.close()
            self.memory_mb = []
        name = list(self.arguments[1])[case % len(self.arguments[1])]
        self.connection.send(case)
        try:
            if not self.connection.poll(LIMIT_S):
                self.process.kill()
                self._join()
                return Result(case, name, "hang", f"over {LIMIT_S} s", LIMIT_S, 0)
            result = self.connection.recv()
        except EOFError:
            exit_code = self._join()
            return Result(case, name, "crash", f"exit {exit_code}", 0, 0)
        self.memory_mb.append(result.memory_mb)
        return result

    def _join(self) -> int:
        self.process.join()
        exit_code, self.process = self.process.exitcode, None
        self.connection.close()
        return exit_code

    def close(self) -> None:
        if self.process is not None:
            self.connection.send(None)
            self._join()

    def growth_mb(self) -> float:
        """Growth of memory in MB per case after the first hundred cases; 0 unless it grows in both halves."""
        values = self.memory_mb[100:]
        if len(values) < 200:
            return 0.0
        third = len(values) // 3
        first, second, last = (statistics.median(values[i * third :][:third]) for i in range(3))
        return min(second - first, last - second) / third


def run(cases: range, seed: int, jobs: int = 1) -> Iterator[Result]:
    """Results in the order of completion; for a worker whose memory keeps growing, one more at the end."""
    seeds, remaining, results = make_seeds(), iter(cases), []
    workers = [Worker(seed, seeds) for _ in range(jobs)]
    lock, ready = threading.Lock(), threading.Semaphore(0)

    def work(worker: Worker) -> None:
        while True:
            with lock:
                case = next(remaining, None)
            if case is None:
                break
            results.append(worker.read(case))
            ready.release()
        worker.close()
        if worker.growth_mb() > LEAK_MB_PER_CASE:
            growth = f"memory grows by {worker.growth_mb():.2f} MB a case"
            results.append(Result(-1, "all", "leak", growth, 0, worker.memory_mb[-1]))
        ready.release()

    for worker in workers:
        threading.Thread(target=work, args=(worker,), daemon=True).start()
    finished = 0
    while finished < len(cases) + jobs:
        ready.acquire()
        finished += 1
        while results:
            yield results.pop(0)


def table(results: list[Result]) -> str:
    """Counts by kind of file and outcome."""
    counts = Counter((result.kind, result.outcome) for result in results)
    rows = [["", *OUTCOMES]]
    for kind in dict.fromkeys(sorted(result.kind for result in results)):
        rows.append([kind, *(str(counts[kind, outcome] or "") for outcome in OUTCOMES)])
    totals = Counter(result.outcome for result in results)
    rows.append(["sum", *(str(totals[outcome]) for outcome in OUTCOMES)])
    return "\n".join(row[0].ljust(16) + "".join(cell.rjust(9) for cell in row[1:]) for row in rows)


def read_one(case: int, seed: int) -> Result:
    """Run case `case` in this process and keep its file."""
    name, data, changes = damage(case, seed, make_seeds())
    folder = Path(tempfile.mkdtemp(prefix="fuzz_"))
    path = folder / name
    path.write_bytes(data)
    print(f"case {case}: {path} ({', '.join(changes)})")
    for read in READERS:
        try:
            print(f"{read.__name__}: {_reason_for_rejection(read, path) or 'read'}")
        except Exception:
            traceback.print_exc()
    return run_case(case, name, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random damage")
    parser.add_argument("--jobs", type=int, default=1, help="worker processes")
    parser.add_argument("--case", type=int, help="run only this case, in this process")
    args = parser.parse_args()
    if args.case is not None:
        faulthandler.enable()
        results = [read_one(args.case, args.seed)]
        print(f"{results[0].outcome} in {results[0].seconds:.1f} s")
    else:
        results = []
        with contextlib.suppress(KeyboardInterrupt):  # print the results so far
            for result in tqdm(run(range(args.cases), args.seed, args.jobs), total=args.cases, unit="case"):
                results.append(result)
        print(table(results))
        slowest = max(results, key=lambda result: result.seconds)
        print(f"slowest: case {slowest.case} ({slowest.kind}), {slowest.seconds:.1f} s")
    defects = [result for result in results if result.outcome not in PASSED]
    for defect in defects if args.case is None else []:
        print(f"case {defect.case} ({defect.kind}): {defect.outcome}: {defect.detail}")
    sys.exit(1 if defects else 0)


if __name__ == "__main__":
    main()
