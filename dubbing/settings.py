"""The options of a dub, shared by the command line and the library."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real
from pathlib import Path

from data_processing.media.video_writer import ENCODERS
from utils.errors import ParameterError
from utils.limits import DEFAULT_LIMITS, Limits

WHEN_SHORT = ("stop", "keep")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class DubSettings:
    """Options of `DubbingPipeline.dub`.

    faces: for each driving audio, which face it drives: "largest", "left", "right", "X,Y" (the face nearest to that
        position in pixels), or the path of a photo of the speaker. One alone need not be in a tuple.
    references: indices of the frames to use as reference frames in all shots; None chooses them in each shot.
    chosen_before_s: reference frames and texture come from the frames before this time, in shots that start before
        it. For an evaluation that scores only later frames.
    when_short: what happens if the audio is shorter than the video: "stop" ends the output with the audio, "keep"
        appends the rest of the video unchanged and silent.
    texture: give the generated mouth the texture of frames of the shot.
    keep_covers: keep what covers the mouth, such as hands and microphones, as it is in the source frames.
    side_by_side: write source and dubbed frame beside each other.
    crf: quality in numbers of x264, 0 (lossless) to 51.
    codec: "h264", "hevc" or "av1".
    soundtrack: media file whose audio track the output gets instead of the driving audio; it ends with the video.
    sign: PEM files of a certificate, followed by those of its issuers, and of its private key, with which the
        output is signed (`ContentSigner`).
    resume: keep completed segments when interrupted, and continue from those of an earlier run.
    limits: sanity limits of the inputs.

    Raises:
        ParameterError: a value is out of range.
    """

    faces: tuple[str, ...] = ("largest",)
    references: tuple[int, ...] | None = None
    chosen_before_s: float = inf
    when_short: str = "stop"
    texture: bool = True
    keep_covers: bool = True
    side_by_side: bool = False
    crf: int = 16
    codec: str = "h264"
    soundtrack: str | Path | None = None
    sign: tuple[str | Path, str | Path] | None = None
    resume: bool = False
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        faces = [self.faces] if isinstance(self.faces, str | Path) else self.faces
        if not _all_are(faces, str | Path) or not faces:
            raise ParameterError("face", f"expected names, positions or photos of faces, found {self.faces!r}")
        object.__setattr__(self, "faces", tuple(map(str, faces)))
        if self.references is not None:
            if not _all_are(self.references, Integral) or any(index < 0 for index in self.references):
                raise ParameterError("references", f"expected frame numbers from 0 on, found {self.references!r}")
            object.__setattr__(self, "references", tuple(map(int, self.references)))
        if not isinstance(self.chosen_before_s, Real) or not self.chosen_before_s > 0:
            raise ParameterError("chosen_before_s", f"expected a number above 0, found {self.chosen_before_s!r}")
        check_choice("when_short", self.when_short, WHEN_SHORT)
        if not isinstance(self.crf, Integral) or not 0 <= self.crf <= 51:
            raise ParameterError("crf", f"expected a whole number from 0 to 51, found {self.crf!r}")
        check_choice("codec", self.codec, tuple(ENCODERS))
        for name in ("texture", "keep_covers", "side_by_side", "resume"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(name, f"expected True or False, found {getattr(self, name)!r}")
        if not isinstance(self.soundtrack, str | Path | None):
            raise ParameterError("soundtrack", f"expected a file, found {self.soundtrack!r}")
        if self.sign is not None and (not _all_are(self.sign, str | Path) or len(self.sign) != 2):
            raise ParameterError("sign", f"expected the files of a certificate and of its key, found {self.sign!r}")
        if not isinstance(self.limits, Limits):
            raise ParameterError("limits", f"expected Limits, found {self.limits!r}")
        if self.references is not None and len(self.faces) > 1:
            raise ParameterError("references", f"expected one face to choose them for, found {len(self.faces)}")


def _all_are(values: object, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def check_choice(parameter: str, value: object, choices: Sequence[str]) -> None:
    """Raise ParameterError unless `value` is one of `choices`."""
    if value not in choices:
        raise ParameterError(parameter, f"expected one of {', '.join(choices)}, found {value!r}")


def parse_references(text: str) -> tuple[int, ...]:
    """Frame indices from "3,40,55,80,121".

    Raises:
        ParameterError: the text is not a list of integers.
    """
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)*", text):
        raise ParameterError("references", f"expected frame numbers like 3,40,55,80,121, found {text!r}")
    return tuple(int(part) for part in text.split(","))
