"""The options of a dub, shared by the command line and the library."""

import re
from dataclasses import dataclass

from utils.errors import ParameterError
from utils.limits import DEFAULT_LIMITS, Limits

WHEN_SHORT = ("stop", "keep")


@dataclass(frozen=True)
class DubSettings:
    """Options of `DubbingPipeline.dub`.

    faces: for each driving audio, which face it drives: "largest", "left", "right", "X,Y" (the face nearest to that
        position in pixels), or the path of a photo of the speaker.
    references: indices of the frames to use as reference frames in all shots; None chooses them in each shot.
    when_short: what happens if the audio is shorter than the video: "stop" ends the output with the audio, "keep"
        appends the rest of the video unchanged and silent.
    sharpen: sharpen the lips to the detail of the reference frames.
    side_by_side: write source and dubbed frame beside each other.
    crf: x264 quality, 0 (lossless) to 51.
    resume: keep completed segments when interrupted, and continue from those of an earlier run.
    limits: sanity limits of the inputs.

    Raises:
        ParameterError: a value is out of range.
    """

    faces: tuple[str, ...] = ("largest",)
    references: tuple[int, ...] | None = None
    when_short: str = "stop"
    sharpen: bool = False
    side_by_side: bool = False
    crf: int = 16
    resume: bool = False
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.when_short not in WHEN_SHORT:
            raise ParameterError(
                "when_short", f"expected one of {', '.join(WHEN_SHORT)}, found {self.when_short!r}"
            )
        if not 0 <= self.crf <= 51:
            raise ParameterError("crf", f"expected 0 to 51, found {self.crf}")
        if self.references is not None and len(self.faces) > 1:
            raise ParameterError("references", f"expected one face to choose them for, found {len(self.faces)}")


def parse_references(text: str) -> tuple[int, ...]:
    """Frame indices from "3,40,55,80,121".

    Raises:
        ParameterError: the text is not a list of integers.
    """
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)*", text):
        raise ParameterError("references", f"expected frame numbers like 3,40,55,80,121, found {text!r}")
    return tuple(int(part) for part in text.split(","))
