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

from data_processing.audio import media_seconds, read_audio
from data_processing.audio_features import Sound
from data_processing.errors import UserError
from data_processing.faces import choice_of
from data_processing.footage import LiveFrames, VideoFile, ahead
from data_processing.geometry import FaceCrop, crop_radius
from data_processing.landmarks import Choice, track
from data_processing.limits import HOW_TO_LIFT, limits
from data_processing.pieces import Pieces, described
from data_processing.video import FPS, probe, read_frames
from data_processing.writing import VideoWriter
from models.device import choose_device, choose_precision
from redrawing import READ_AHEAD, Dubber, Redrawer, Speaker, load_hearing

ROOT = Path(__file__).parent
BUNDLED_CHECKPOINT = ROOT / "checkpoints/dinet_64.safetensors"
LEVEL_S = 120  # of a sound, by which it is known how loud it is
LOOK_AHEAD_S = 8  # of a file, before its first frame is drawn: long enough to choose references from


class Dubbed(NamedTuple):
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
        checkpoint: Path = BUNDLED_CHECKPOINT,
        *,
        device: str = "auto",
        precision: str = "auto",
        landmarks: str = "dlib",
    ) -> None:
        chosen = choose_device(device)
        self.precision = choose_precision(precision, chosen)
        self.dubber = Dubber(load_hearing(checkpoint, chosen), chosen, self.precision)
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
    ) -> Dubbed:
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
        info = probe(video, "--video")
        for note in info.notes:
            print(f"note: --video: {note}", file=sys.stderr)
        expected_s = max([*map(media_seconds, audios), info.duration_s if when_short == "keep" else 0])
        if expected_s > limits.length_s:
            longest, found = limits.length_s / 3600, expected_s / 3600
            raise UserError(
                f"--audio, --video: expected at most {longest:g} h, found {found:.1f} h ({HOW_TO_LIFT})"
            )
        expected = round(expected_s * info.fps)
        redrawer = self._redrawer(VideoFile(video, info.fps), audios, faces, references, sharpen)
        width = info.width * (2 if side_by_side else 1)
        settings = {"crf": crf, "sounds": audios, "pixel_aspect": info.pixel_aspect}
        first_s = 0.0
        with ExitStack() as stack:
            if resume:
                job = self._described(video, audios, faces)
                job |= {"--references": str(references), "--when-short": when_short}
                job |= {"--sharpen": str(sharpen), "--side-by-side": str(side_by_side)}
                writer = Pieces(output, job, width, info.height, info.fps, **settings)
                frames = writer.done
            else:
                writer = VideoWriter(output, width, info.height, info.fps, **settings)
                frames = 0
            stack.enter_context(writer)
            drawing = redrawer.frames(keep_rest=when_short == "keep", first=frames)
            made = stack.enter_context(closing(ahead(drawing, READ_AHEAD, redrawer.stop)))
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
        return Dubbed(frames, redrawer.changed, info.fps, first_s, time.monotonic() - began)

    def _redrawer(
        self, footage: VideoFile, audios: list[Path], faces: list[str], references: str | None, sharpen: bool
    ) -> Redrawer:
        """What redraws the faces of a file. What is wrong with a sound is told here, before anything is written."""
        speakers = []
        for path, name in zip(audios, faces, strict=True):
            choose = choice_of(name)
            sound = Sound(read_audio(path, "--audio"), self.dubber.audio_features, level_s=LEVEL_S)
            given = self._given_references(footage, references, choose)
            where = (self.dubber, footage, sound, self.landmarks, choose, LOOK_AHEAD_S)
            speakers.append(Speaker(*where, given=given, sharpen=sharpen))
        return Redrawer(footage, speakers)

    def _described(self, video: Path, audios: list[Path], faces: list[str]) -> dict[str, str]:
        """What a dub is made of, by flags."""
        pictures, table = [Path(name) for name in faces], video.with_suffix(".csv")  # which OpenFace wrote
        return {
            "--video": described(video, "--video"),
            "--audio": "; ".join(described(path, "--audio") for path in audios),
            "--face": "; ".join(
                described(path, "--face") if path.is_file() else name
                for path, name in zip(pictures, faces, strict=True)
            ),
            "--checkpoint": described(self.checkpoint, "--checkpoint"),
            "--landmarks": self.landmarks + (f"; {described(table, '--landmarks')}" if table.is_file() else ""),
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
        heard = Sound(iter(sound), self.dubber.audio_features, block_s=0.4, after_s=0.6)
        footage = LiveFrames(frames, fps)
        speaker = Speaker(self.dubber, footage, heard, self.landmarks, look_ahead_s=look_ahead_s)
        return (drawn.dubbed for drawn in Redrawer(footage, [speaker]).frames())

    def _given_references(self, footage: VideoFile, text: str | None, choose: Choice) -> list[np.ndarray] | None:
        """Crops of the frames that `--references` names."""
        count = self.dubber.model.config.num_references
        indices = parse_references(text, count)
        if indices is None:
            return None
        found, where = [], (self.landmarks, footage.path, footage.fps)
        for index in indices:
            frame = next(read_frames(footage.path, index, index + 1, fps=footage.fps), None) if index >= 0 else None
            shown = [] if frame is None else track(iter([frame]), *where, index, choose)
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
