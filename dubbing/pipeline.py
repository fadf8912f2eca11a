"""Dubbing as a library:

    pipeline = DubbingPipeline()
    pipeline.dub("speaker.mp4", "speech.wav", "dubbed.mp4")

    for frame in pipeline.stream(frames, audio_blocks, fps=30):  # live
        show(frame)

Both hold a few seconds of frames and audio in memory. inference.py is the command line of `dub`, examples/live.py
that of `stream`.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import inf
from numbers import Real
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING

import numpy as np

from data_processing.face.crop import FaceCrop
from data_processing.face.detectors import BACKENDS, FaceSelector, no_face_reason, track_landmarks
from data_processing.face.radius import face_scales, radius_per_scale
from data_processing.face.selection import face_selector
from data_processing.media.audio_io import media_duration_s, read_audio
from data_processing.media.frame import Frame, RgbFrame
from data_processing.media.video_reader import FPS, VideoInfo, check_readable, probe, read_frames
from data_processing.media.video_writer import VideoWriter, can_store, check_writable
from dubbing.audio_stream import CONTEXT_S, AudioStream
from dubbing.compositor import PREFETCH_DEPTH, Compositor
from dubbing.face_track import TrackedFrame, track_face
from dubbing.frame_sources import LiveFrameSource, VideoFileSource
from dubbing.prefetch import Prefetch
from dubbing.references import ReferenceCrop
from dubbing.segments import SegmentedWriter, file_fingerprint
from dubbing.settings import PRECISIONS, DubSettings, check_choice
from dubbing.signing import DUBBED, SOURCE_TYPE, ContentSigner
from dubbing.speaker import LIVE_CHUNK, LIVE_RESELECTION_S, Speaker
from utils.bundled import BUNDLED_GENERATOR
from utils.errors import LimitError, NoFaceError, ParameterError
from utils.malloc import release_freed_memory
from utils.weights import weight_path

if TYPE_CHECKING:
    from dubbing.generator import GeneratorSession  # imports PyTorch; see DubbingPipeline._load

LEVEL_S = 120  # seconds of the driving audio from which its loudness is measured
LOOK_AHEAD_S = 8  # seconds of a shot of a video file that are tracked before its first frame: enough for references
# the same at the beginning of the file, and seconds of audio whose features are extracted, so that the first frame
# comes soon
FIRST_SELECTION_S, FIRST_BLOCK_S = 0.5, 5
LIVE_BLOCK_S = 0.24  # seconds of live audio whose features are extracted at a time, 0.1 s of processor time each
MAX_WAIT_S = 5  # of tracking for the first frame, which is not the first of the video when a dub is resumed
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DubResult:
    """What a dub produced.

    num_frames: frames written.
    num_dubbed: those of them in which a mouth was generated; the others are unchanged.
    fps: frames per second of the output.
    first_frame_s: seconds from the call to the first output frame.
    total_s: seconds from the call to the complete file.
    """

    num_frames: int
    num_dubbed: int
    fps: Fraction
    first_frame_s: float
    total_s: float


@dataclass(frozen=True)
class _Job:
    """A validated dub: its files, its options, and what probing the video found."""

    video: Path
    audio_paths: Sequence[Path]
    heard_paths: Sequence[Path]
    output: Path
    settings: DubSettings
    info: VideoInfo
    expected_frames: int
    signer: ContentSigner | None
    first_frame: Event = field(default_factory=Event)  # set when it is written


class DubbingPipeline:
    """Dubs videos with one generator, which is loaded in a thread while the first video is read.

    Args:
        checkpoint: the generator; default: the bundled one.
        device: auto, cpu, cuda, cuda:1, …
        precision: auto, fp32, bf16 or fp16; auto is the fastest that the device supports.
        landmarks: landmark detector: dlib, face_alignment or openface.

    Raises:
        ParameterError: precision or landmarks is not one of these.
        UserError (from `generator` and all methods): the checkpoint, third-party weights or the device are not
            available.
    """

    def __init__(
        self,
        checkpoint: str | Path = BUNDLED_GENERATOR,
        *,
        device: str = "auto",
        precision: str = "auto",
        landmarks: str = "dlib",
    ) -> None:
        check_choice("precision", precision, ("auto", *PRECISIONS))
        check_choice("landmarks", landmarks, BACKENDS)
        self.checkpoint, self.landmarks = Path(checkpoint), landmarks
        self._load_options = device, precision
        self._lock = Lock()
        self._loading: Future[GeneratorSession] | None = None

    def _start_loading(self) -> "Future[GeneratorSession]":
        """Load the generator in a thread, unless that has begun."""
        with self._lock:
            if self._loading is None:
                thread = ThreadPoolExecutor(1)
                self._loading = thread.submit(self._load, *self._load_options)
                thread.shutdown(wait=False)
            return self._loading

    def _load(self, device: str, precision: str) -> "GeneratorSession":
        # imports PyTorch, which takes a second
        from dubbing.generator import GeneratorSession, load_audio_driven_generator
        from utils.device import choose_device, choose_precision

        torch_device = choose_device(device)
        loaded = load_audio_driven_generator(self.checkpoint, torch_device)
        session = GeneratorSession(loaded, torch_device, choose_precision(precision, torch_device))
        del loaded  # the weights as they were read
        release_freed_memory()
        return session

    @property
    def generator(self) -> "GeneratorSession":
        """The generator, as soon as it is loaded."""
        return self._start_loading().result()

    def dub(
        self,
        video: str | Path,
        audio: str | Path | Sequence[str | Path],
        output: str | Path,
        settings: DubSettings = DubSettings(),  # noqa: B008 (frozen)
        progress: Callable[[int, int], None] | None = None,
    ) -> DubResult:
        """Dub a video file, at its own resolution and frame rate (60 fps at most; 25 if it is a still or slow).

        Args:
            video: source video or photo, any file that FFmpeg reads.
            audio: driving audio, audio or video files. With several, each drives a face of its own
                (`settings.faces`), and the output has all of them mixed.
            output: .mp4, .mov or .mkv, none of the inputs; it appears when it is complete.
            settings: options.
            progress: called with the number of frames done and the number expected, after every frame and every
                half second without one. An exception that it raises ends the dub and leaves no output.

        Raises:
            MediaError: an input cannot be read.
            LimitError: an input exceeds `settings.limits`.
            NoFaceError: no face was detected in the video.
            ParameterError: the faces do not match the audio, the references do not match the video, the output is
                also an input, or it cannot be signed.
            FileError: `settings.sign` names files that are not a certificate and its key.
            OutputError: the output cannot be written.
        """
        started = time.monotonic()
        audio_paths = [audio] if isinstance(audio, str | Path) else audio
        job = self._validate(Path(video), list(map(Path, audio_paths)), Path(output), settings)
        self._start_loading()  # not before: a process ends when its threads have ended
        with ExitStack() as stack:
            compositor = self._build_compositor(job, stack)
            num_frames, first_frame_s = self._run(job, compositor, started, progress)
        self._warn(job, compositor, num_frames)
        total_s = time.monotonic() - started
        return DubResult(num_frames, compositor.num_dubbed, job.info.fps, first_frame_s, total_s)

    def _validate(self, video: Path, audio_paths: list[Path], output: Path, settings: DubSettings) -> _Job:
        """Check what can be checked before frames are read."""
        if not audio_paths:
            raise ParameterError("audio", "expected at least one file, found none")
        if len(settings.faces) != len(audio_paths):
            raise ParameterError(
                "face", f"expected one for each of {len(audio_paths)} audio files, found {len(settings.faces)}"
            )
        heard_paths = audio_paths if settings.soundtrack is None else [Path(settings.soundtrack)]
        for path in (video, *audio_paths, *heard_paths):
            check_readable(path)
        check_writable(output)
        signer = ContentSigner(*settings.sign, output) if settings.sign else None
        inputs = (video, *audio_paths, *heard_paths, self.checkpoint, *map(Path, settings.faces))
        if output.exists() and any(path.exists() and output.samefile(path) for path in inputs):
            raise ParameterError("output", f"{output} is also an input; choose another name")
        info = probe(video, settings.limits)
        for note in info.notes:
            logger.info("%s", note, extra={"path": video})
        if settings.codec == "av1" and output.suffix.lower() == ".mov":
            raise ParameterError("codec", "AV1 cannot be stored in .mov; use .mp4 or .mkv for the output")
        if info.layout is not None and info.layout.pix_fmt != "yuv420p":
            if settings.side_by_side or not can_store(settings.codec, info.layout):
                message = "the source is %s; the output is 4:2:0 with 8 bits"
                parameter = "side_by_side" if settings.side_by_side else "codec"
                logger.info(message, info.layout.description, extra={"parameter": parameter})
            elif settings.codec == "h264":
                message = "the output is %s like the source, which some players do not show in H.264; hevc may help"
                logger.info(message, info.layout.description, extra={"parameter": "codec"})
        durations = [(media_duration_s(path), path) for path in audio_paths]
        if settings.when_short == "keep":
            durations.append((info.duration_s, video))
        duration_s, longest = max(durations, key=lambda pair: pair[0])
        if duration_s > settings.limits.max_duration_s:
            hours, allowed = duration_s / 3600, settings.limits.max_duration_s / 3600
            raise LimitError(longest, f"expected at most {allowed:g} h, found {hours:.1f} h")
        expected_frames = round(duration_s * info.fps)
        return _Job(video, audio_paths, heard_paths, output, settings, info, expected_frames, signer)

    def _build_compositor(self, job: _Job, stack: ExitStack) -> Compositor:
        """The compositor with its speakers. Errors in the audio and in the selection of faces are raised here.

        The faces are tracked from now on, before the generator is loaded, until `stack` is closed.
        """
        settings = job.settings
        source = VideoFileSource(job.video, job.info.fps, settings.limits)
        speakers = []
        selectors = [face_selector(face, settings.limits) for face in settings.faces]
        ahead = round(LOOK_AHEAD_S * source.fps)
        first = round((FIRST_SELECTION_S + 1) * source.fps) + 1  # frames that the first selection needs
        tracks = []
        cancelled = Event()

        def cancel() -> None:
            cancelled.set()
            job.first_frame.set()

        for select_face in selectors:
            tracked = track_face(source, self.landmarks, select_face, cancelled)
            tracked = _held_back(tracked, first, job.first_frame)
            tracks.append(stack.enter_context(closing(Prefetch(tracked, ahead, cancel))))
        for path, select_face, tracked in zip(job.audio_paths, selectors, tracks, strict=True):
            blocks = read_audio(path, settings.limits)
            features = self.generator.audio_features
            audio = AudioStream(blocks, features, level_s=LEVEL_S, first_block_s=FIRST_BLOCK_S)
            stack.enter_context(closing(audio))
            crops = None
            if settings.references is not None:
                crops = self._reference_crops(source, settings.references, select_face)
            speakers.append(
                Speaker(
                    self.generator,
                    source,
                    audio,
                    tracked,
                    LOOK_AHEAD_S,
                    FIRST_SELECTION_S,
                    reference_crops=crops,
                    texture=settings.texture,
                    keep_covers=settings.keep_covers,
                    chosen_before_s=settings.chosen_before_s,
                )
            )
        return Compositor(source, speakers, on_cancel=cancel)

    def _run(
        self,
        job: _Job,
        compositor: Compositor,
        started: float,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[int, float]:
        """Generate and write all frames: number of frames written, and seconds until the first was generated."""
        settings = job.settings
        first_frame_s = 0.0

        def report() -> None:
            if progress:
                progress(num_frames, max(job.expected_frames, num_frames))

        with ExitStack() as stack:
            writer, num_frames = self._open_writer(job)
            stack.enter_context(writer)
            pairs = compositor.frames(keep_rest=settings.when_short == "keep", first=num_frames)
            pairs = stack.enter_context(closing(Prefetch(pairs, PREFETCH_DEPTH, compositor.cancel, report)))
            if num_frames:
                message = "continuing after frame %d; tracking the face up to there first"
                logger.info(message, num_frames, extra={"parameter": "resume"})
            for pair in pairs:
                if settings.side_by_side:
                    halves = [_converted(frame) for frame in (pair.source, pair.dubbed)]
                    writer.write(np.concatenate(halves, axis=1))
                else:
                    writer.write(pair.dubbed)
                num_frames += 1
                job.first_frame.set()
                first_frame_s = first_frame_s or time.monotonic() - started
                report()
            if not compositor.num_dubbed:
                raise NoFaceError(job.video, no_face_reason(compositor.num_source_frames, self.landmarks))
        return num_frames, first_frame_s

    def _open_writer(self, job: _Job) -> tuple[VideoWriter | SegmentedWriter, int]:
        """The writer of the output, and how many frames an earlier run has written."""
        settings, info = job.settings, job.info
        size = (info.width * (2 if settings.side_by_side else 1), info.height)
        options = {"crf": settings.crf, "pixel_aspect": info.pixel_aspect}
        options |= {"layout": None if settings.side_by_side else info.layout, "codec": settings.codec}
        options |= {"audio_paths": job.heard_paths, "limits": settings.limits}
        comment = f"{DUBBED} (DINet, {self.checkpoint.name})"
        options |= {"metadata": {"comment": comment, "description": SOURCE_TYPE}}
        if job.signer:
            sources = dict.fromkeys([*job.audio_paths, *job.heard_paths])
            made_of = {"generator": self.checkpoint.name, "video": job.video, "audio": list(sources)}
            options["finish"] = partial(job.signer.sign, **made_of)
        if not settings.resume:
            return VideoWriter(job.output, *size, info.fps, **options), 0
        writer = SegmentedWriter(job.output, self._describe(job), *size, info.fps, **options)
        return writer, writer.num_done

    def _describe(self, job: _Job) -> dict[str, str]:
        """Everything that the frames of a dub depend on, for `SegmentedWriter`."""
        settings, openface_csv = job.settings, job.video.with_suffix(".csv")
        photos = [Path(face) for face in settings.faces]
        return {
            "video": file_fingerprint(job.video),
            "audio": "; ".join(map(file_fingerprint, job.audio_paths)),
            "face": "; ".join(
                file_fingerprint(photo) if photo.is_file() else face
                for photo, face in zip(photos, settings.faces, strict=True)
            ),
            "checkpoint": file_fingerprint(self.checkpoint),
            "audio features": weight_path(self.generator.audio_features).name,  # some have two sources
            "landmarks": self.landmarks + (f"; {file_fingerprint(openface_csv)}" if openface_csv.is_file() else ""),
            "device": self.generator.device.type,
            "precision": self.generator.precision,
            "references": str(settings.references),
            "when_short": settings.when_short,
            "texture": str(settings.texture),
            "keep_covers": str(settings.keep_covers),
            "chosen_before_s": str(settings.chosen_before_s),
            "side_by_side": str(settings.side_by_side),
        }

    def _warn(self, job: _Job, compositor: Compositor, num_frames: int) -> None:
        """Log what the user should know about a finished dub."""
        count = compositor.num_source_frames
        for face, num_dubbed in zip(job.settings.faces, compositor.num_dubbed_of, strict=True):
            if not num_dubbed:
                message = "%s: no face of its own detected in %d frames of %s (%s); its audio is in the output"
                logger.warning(message, face, count, job.video, self.landmarks, extra={"parameter": "face"})
        if compositor.num_conflicts:
            message = "two audio files selected the same face in %d frames; the first one drove it"
            logger.warning(message, compositor.num_conflicts, extra={"parameter": "face"})
        read_s = float(count / job.info.fps)
        read_to_end = count < num_frames or job.settings.when_short == "keep"
        if read_to_end and read_s < 0.9 * job.info.duration_s:
            message = "%s: the container states %.1f s, %.1f s could be read"
            logger.warning(message, job.video, job.info.duration_s, read_s, extra={"path": job.video})

    def stream(
        self,
        frames: Iterable[np.ndarray],
        audio: Iterable[np.ndarray],
        fps: Fraction | int = FPS,
        look_ahead_s: float = 0.3,
        face: str | Path = "largest",
    ) -> Iterator[np.ndarray]:
        """Dub live frames, `look_ahead_s` and a third of a second behind them, and the time of computing.

        What covers the mouth is not kept: too little of a shot is known to tell it from the face. Dissolves and
        wipes are not found.

        Args:
            frames: (H, W, 3) uint8 RGB, all of one size, each an array of its own, which is not written to later.
            audio: blocks (n,) float in [-1, 1], mono, 16 kHz; the first sample is at the time of the first frame.
            fps: constant frame rate.
            look_ahead_s: seconds of frames and audio that are known after what is generated; with 0 the landmarks
                tremble, and more than 0.3 gives little (docs/dubbing.md).
            face: which face to dub, as in `DubSettings.faces`.

        Yields:
            A frame for each frame that arrives while there is audio; frames without a face are unchanged.

        Raises:
            ParameterError: an option is out of range (at once), or a frame or block is not as described (when it
                arrives).
            NoFaceError: no face detected in the photo `face`.
        """
        if not isinstance(fps, Real) or not 0 < fps < inf:
            raise ParameterError("fps", f"expected a positive number, found {fps!r}")
        if not isinstance(look_ahead_s, Real) or not 0 <= look_ahead_s < inf:
            raise ParameterError("look_ahead_s", f"expected a number from 0 on, found {look_ahead_s!r}")
        select_face = face_selector(str(face))
        blocks, after_s = _checked_blocks(audio), min(look_ahead_s, CONTEXT_S)
        audio_stream = AudioStream(blocks, self.generator.audio_features, LIVE_BLOCK_S, after_s, live=True)
        source = LiveFrameSource(frames, fps, round(LIVE_RESELECTION_S * fps))
        tracked = track_face(source, self.landmarks, select_face, live=True)
        speaker = Speaker(self.generator, source, audio_stream, tracked, look_ahead_s, live=True)
        return (pair.dubbed.rgb() for pair in Compositor(source, [speaker], LIVE_CHUNK).frames())

    def _reference_crops(
        self, source: VideoFileSource, indices: Sequence[int], select_face: FaceSelector
    ) -> list[ReferenceCrop]:
        """Face crops of the frames that `DubSettings.references` names."""
        count = self.generator.model.config.num_references
        if len(indices) != count:
            raise ParameterError("references", f"expected {count} frame numbers, found {len(indices)}")
        found = []
        for index in indices:
            frame = next(read_frames(source.path, index, index + 1, source.fps, source.limits), None)
            points = np.full((68, 2), np.nan)
            if frame is not None:
                position = (source.path, source.fps, index)
                points, _ = next(track_landmarks(iter([RgbFrame(frame)]), self.landmarks, *position, select_face))
            if np.isnan(points).any():
                raise ParameterError("references", f"no face detected in frame {index} of {source.path}")
            found.append((points, frame))
        landmarks = np.stack([points for points, _ in found])
        radii = radius_per_scale(landmarks) * face_scales(landmarks)
        crops = [
            FaceCrop.from_landmarks(points, radius_px, self.generator.mouth_size)
            for points, radius_px in zip(landmarks, radii, strict=True)
        ]
        return [
            ReferenceCrop(crop.extract(frame), crop.to_crop(points))
            for crop, (points, frame) in zip(crops, found, strict=True)
        ]


def _converted(frame: Frame) -> np.ndarray:
    """(H, W, 3) uint8 RGB, converted in the same way whether the frame was decoded or drawn on."""
    return frame.region(0, 0, frame.width, frame.height)


def _held_back(
    tracked: Generator[TrackedFrame, None, None], count: int, first_frame: Event
) -> Generator[TrackedFrame, None, None]:
    """The same; after `count` frames, tracking waits until the first frame of the dub is written, since it would
    take the processor from loading the generator."""
    with closing(tracked):
        for number, one in enumerate(tracked):
            if number == count:
                first_frame.wait(MAX_WAIT_S)
            yield one


def _checked_blocks(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same blocks, with 0 for NaN and Inf. Raises ParameterError for one that is not (n,) float."""
    warned = False
    for block in blocks:
        dtype = getattr(block, "dtype", type(block))
        if not isinstance(block, np.ndarray) or block.ndim != 1 or dtype.kind != "f":
            found = f"{getattr(block, 'shape', '')} {dtype}".strip()
            raise ParameterError("audio", f"expected blocks (n,) of float samples in [-1, 1], found {found}")
        finite = np.isfinite(block)
        if not finite.all() and not warned:
            logger.warning("NaN or Inf in the audio; they are silent", extra={"parameter": "audio"})
            warned = True
        yield np.where(finite, block, 0)
