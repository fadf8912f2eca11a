"""Dubbing as a library:

    pipeline = DubbingPipeline()
    pipeline.dub(Path("speaker.mp4"), Path("speech.wav"), Path("dubbed.mp4"))

    for frame in pipeline.stream(frames, sound, fps=30):  # as they come
        show(frame)

Both hold a few seconds of frames and sound at most, and give the first frame as soon as the face is known for long
enough. inference.py is the command line of `dub`.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_processing.face.crop import FaceCrop, crop_radius
from data_processing.face.detectors import FaceSelector, track_landmarks
from data_processing.face.selection import face_selector
from data_processing.media.audio_io import media_duration_s, read_audio
from data_processing.media.video_reader import FPS, probe, read_frames
from data_processing.media.video_writer import VideoWriter
from dubbing.audio_stream import AudioStream
from dubbing.compositor import READ_AHEAD, Compositor
from dubbing.frame_sources import LiveFrameSource, VideoFileSource
from dubbing.generator import GeneratorSession, load_audio_driven_generator
from dubbing.prefetch import prefetch
from dubbing.segments import SegmentedWriter, file_fingerprint
from dubbing.speaker import Speaker
from utils.bundled import BUNDLED_GENERATOR
from utils.device import choose_device, choose_precision
from utils.errors import UserError
from utils.limits import DEFAULT_LIMITS

LEVEL_S = 120  # of a sound, by which it is known how loud it is
LOOK_AHEAD_S = 8  # of a file, before its first frame is drawn: long enough to choose references from


class DubResult(NamedTuple):
    """What became of a video: frames written, redrawn ones among them, frames per second, and seconds it took until
    the first frame was drawn and in all."""

    frames: int
    redrawn: int
    fps: Fraction
    first_s: float
    seconds: float


class DubbingPipeline:
    """Dubs videos with one generator.

    Args:
        checkpoint: the generator; the bundled one unless told.
        device: auto, cpu, cuda, cuda:1, …
        precision: auto, fp32, bf16 or fp16; auto is the fastest that the device has.
        landmarks: dlib, face_alignment or openface.

    Raises:
        UserError: a weight cannot be had, or the device.
    """

    def __init__(
        self,
        checkpoint: Path = BUNDLED_GENERATOR,
        *,
        device: str = "auto",
        precision: str = "auto",
        landmarks: str = "dlib",
    ) -> None:
        chosen = choose_device(device)
        self.precision = choose_precision(precision, chosen)
        self.dubber = GeneratorSession(load_audio_driven_generator(checkpoint, chosen), chosen, self.precision)
        self.checkpoint, self.landmarks = checkpoint, landmarks

    def dub(
        self,
        video: Path,
        audio: Path | Sequence[Path],
        output: Path,
        *,
        face: str | Sequence[str] = "largest",
        references: str | None = None,
        when_short: str = "stop",
        sharpen: bool = False,
        side_by_side: bool = False,
        crf: int = 16,
        resume: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> DubResult:
        """Dub a video file, in its own resolution and frame rate, 60 at most.

        Args:
            video, audio: any files that ffmpeg reads. Of several sounds each is spoken by a face of its own, and
                the result has them all at once.
            output: .mp4, .mov or .mkv; it appears when it is whole.
            face: which of several, for each sound: "largest", "left", "right", the one nearest to a place "X,Y" in
                pixels, or the one in a picture file.
            references: numbers of the frames to take the mouth's looks from, "3,40,55,80,121"; chosen unless told.
            when_short: what a sound shorter than the video does: "stop" ends the video with it, "keep" leaves the
                rest of the video as it was, in silence.
            sharpen: give the lips as much detail as the source's have, as far as that goes.
            side_by_side: write source and dubbed frame beside each other.
            crf: H.264 quality, 0 to 51.
            resume: keep what there is when the dub is stopped, in a folder beside the output, and go on from there
                if this is there from the last time.
            progress: called after every frame with how many are done and about how many there will be.

        Raises:
            UserError: a file cannot be read or written, the video does not show a face, there are not as many
                faces as sounds, or `references` do not fit the video.
        """
        began = time.monotonic()
        audios = [audio] if isinstance(audio, Path) else list(audio)
        faces = [face] if isinstance(face, str) else list(face)
        if len(faces) != len(audios):
            raise UserError(f"--face: expected one for each of {len(audios)} sounds, found {len(faces)}")
        if references is not None and len(faces) > 1:
            raise UserError(f"--references: expected one face to choose them for, found {len(faces)}")
        info = probe(video)
        for note in info.notes:
            print(f"note: --video: {note}", file=sys.stderr)
        expected_s = max([*map(media_duration_s, audios), info.duration_s if when_short == "keep" else 0])
        if expected_s > DEFAULT_LIMITS.max_duration_s:
            longest, found = DEFAULT_LIMITS.max_duration_s / 3600, expected_s / 3600
            raise UserError(f"--audio, --video: expected at most {longest:g} h, found {found:.1f} h")
        expected = round(expected_s * info.fps)
        redrawer = self._redrawer(VideoFileSource(video, info.fps), audios, faces, references, sharpen)
        width = info.width * (2 if side_by_side else 1)
        settings = {"crf": crf, "audio_paths": audios, "pixel_aspect": info.pixel_aspect}
        first_s = 0.0
        with ExitStack() as stack:
            if resume:
                job = self._described(video, audios, faces)
                job |= {"--references": str(references), "--when-short": when_short}
                job |= {"--sharpen": str(sharpen), "--side-by-side": str(side_by_side)}
                writer = SegmentedWriter(output, job, width, info.height, info.fps, **settings)
                frames = writer.done
            else:
                writer = VideoWriter(output, width, info.height, info.fps, **settings)
                frames = 0
            stack.enter_context(writer)
            drawing = redrawer.frames(keep_rest=when_short == "keep", first=frames)
            made = stack.enter_context(closing(prefetch(drawing, READ_AHEAD, redrawer.stop)))
            if frames:
                print(f"note: --resume: {frames} frames are there; looking for the face in them", file=sys.stderr)
            for drawn in made:
                writer.write(np.concatenate(drawn, axis=1) if side_by_side else drawn.dubbed)
                frames += 1
                first_s = first_s or time.monotonic() - began
                if progress:
                    progress(frames, max(expected, frames))
            where = f"any of the {redrawer.seen} frames of {video} ({self.landmarks})"
            if not redrawer.changed:
                raise UserError(f"--video: no face found in {where}")
        for name, redrawn in zip(faces, redrawer.redrawn, strict=True):
            if not redrawn:
                said = f"no face of its own found in {where}; its sound is heard all the same"
                print(f"warning: --face {name}: {said}", file=sys.stderr)
        if redrawer.contested:
            said = f"{redrawer.contested} times two sounds had the same face; the first one spoke"
            print(f"warning: --face: {said}", file=sys.stderr)
        read_s = float(redrawer.seen / info.fps)
        if (redrawer.seen < frames or when_short == "keep") and read_s < 0.9 * info.duration_s:
            said = f"{video} says it has {info.duration_s:.1f} s, {read_s:.1f} s could be read"
            print(f"warning: --video: {said}", file=sys.stderr)
        return DubResult(frames, redrawer.changed, info.fps, first_s, time.monotonic() - began)

    def _redrawer(
        self, footage: VideoFileSource, audios: list[Path], faces: list[str], references: str | None, sharpen: bool
    ) -> Compositor:
        """What redraws the faces of a file. What is wrong with a sound is told here, before anything is written."""
        speakers = []
        for path, name in zip(audios, faces, strict=True):
            choose = face_selector(name)
            sound = AudioStream(read_audio(path), self.dubber.audio_features, level_s=LEVEL_S)
            given = self._given_references(footage, references, choose)
            where = (self.dubber, footage, sound, self.landmarks, choose, LOOK_AHEAD_S)
            speakers.append(Speaker(*where, given=given, sharpen=sharpen))
        return Compositor(footage, speakers)

    def _described(self, video: Path, audios: list[Path], faces: list[str]) -> dict[str, str]:
        """What a dub is made of, by flags."""
        pictures, table = [Path(name) for name in faces], video.with_suffix(".csv")  # which OpenFace wrote
        return {
            "--video": file_fingerprint(video, "--video"),
            "--audio": "; ".join(file_fingerprint(path, "--audio") for path in audios),
            "--face": "; ".join(
                file_fingerprint(path, "--face") if path.is_file() else name
                for path, name in zip(pictures, faces, strict=True)
            ),
            "--checkpoint": file_fingerprint(self.checkpoint, "--checkpoint"),
            "--landmarks": self.landmarks
            + (f"; {file_fingerprint(table, '--landmarks')}" if table.is_file() else ""),
            "--device": self.dubber.device.type,
            "--precision": self.precision,
        }

    def stream(
        self,
        frames: Iterable[np.ndarray],
        sound: Iterable[np.ndarray],
        fps: Fraction | int = FPS,
        look_ahead_s: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Dub frames as they come: at most `look_ahead_s` and about two seconds behind them.

        Args:
            frames: (H, W, 3) uint8 RGB, all of one size.
            sound: (n,) float in [-1, 1], mono, 16 kHz, from the first frame's time on.
            fps: frames per second, constant.
            look_ahead_s: how long a shot is seen before it is drawn; the longer, the better the references.

        Yields:
            As many frames as came while the sound lasted; those without a face as they came.
        """
        heard = AudioStream(iter(sound), self.dubber.audio_features, block_s=0.4, after_s=0.6)
        footage = LiveFrameSource(frames, fps)
        speaker = Speaker(self.dubber, footage, heard, self.landmarks, look_ahead_s=look_ahead_s)
        return (drawn.dubbed for drawn in Compositor(footage, [speaker]).frames())

    def _given_references(
        self, footage: VideoFileSource, text: str | None, choose: FaceSelector
    ) -> list[np.ndarray] | None:
        """Crops of the frames that `--references` names."""
        count = self.dubber.model.config.num_references
        indices = parse_references(text, count)
        if indices is None:
            return None
        found, where = [], (self.landmarks, footage.path, footage.fps)
        for index in indices:
            frame = next(read_frames(footage.path, index, index + 1, fps=footage.fps), None) if index >= 0 else None
            shown = [] if frame is None else track_landmarks(iter([frame]), *where, index, choose)
            points = next((points for points, _ in shown), np.full((68, 2), np.nan))
            if np.isnan(points).any():
                raise UserError(f"--references: expected frames of {footage.path} with a face, found {index}")
            found.append((points, frame))
        radius = crop_radius(np.stack([points for points, _ in found]))
        return [
            FaceCrop.from_landmarks(points, radius, self.dubber.mouth_size).extract(frame)
            for points, frame in found
        ]


def parse_references(text: str | None, count: int) -> list[int] | None:
    """`--references 3,40,55,80,121` as frame numbers; None for the automatic choice."""
    if text is None:
        return None
    try:
        indices = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--references: expected {count} frame numbers like 3,40,55, found {text!r}") from None
    if len(indices) != count:
        raise UserError(f"--references: expected {count} frame numbers, found {len(indices)}")
    return indices
