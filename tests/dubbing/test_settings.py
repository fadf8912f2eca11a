"""The options of a dub."""

from pathlib import Path

import numpy as np
import pytest

from dubbing.settings import DubSettings, parse_references
from utils.errors import ParameterError


def test_reference_numbers_are_parsed() -> None:
    assert parse_references("29, 0,3,3,25") == (29, 0, 3, 3, 25)
    assert parse_references("-1,2") == (-1, 2)
    for text in ("", "1,2,x,4,5", "1.5,2,3,4,5", "1,,2"):
        with pytest.raises(ParameterError) as caught:
            parse_references(text)
        assert caught.value.parameter == "references"
        assert f"found {text!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"crf": 52}, "crf"),
        ({"crf": -1}, "crf"),
        ({"when_short": "loop"}, "when_short"),
        ({"faces": ("left", "right"), "references": (1, 2, 3, 4, 5)}, "references"),
    ],
)
def test_values_out_of_range(options: dict, parameter: str) -> None:
    with pytest.raises(ParameterError) as caught:
        DubSettings(**options)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("options", "parameter"),
    [
        ({"crf": "x"}, "crf"),
        ({"crf": 16.5}, "crf"),
        ({"crf": None}, "crf"),
        ({"when_short": None}, "when_short"),
        ({"faces": ()}, "face"),
        ({"faces": None}, "face"),
        ({"faces": (1, 2)}, "face"),
        ({"references": "1,2,3,4,5"}, "references"),
        ({"references": (1, 2, 3, 4, "5")}, "references"),
        ({"references": (0.5, 1, 2, 3, 4)}, "references"),
        ({"references": (-1, 2, 3, 4, 5)}, "references"),
        ({"references": 3}, "references"),
        ({"texture": "no"}, "texture"),
        ({"chosen_before_s": 0}, "chosen_before_s"),
        ({"side_by_side": None}, "side_by_side"),
        ({"resume": 2}, "resume"),
        ({"soundtrack": 3}, "soundtrack"),
        ({"limits": None}, "limits"),
    ],
    ids=str,
)
def test_malformed_values(options: dict, parameter: str) -> None:
    with pytest.raises(ParameterError, match=r"^expected .*, found ") as caught:
        DubSettings(**options)
    assert caught.value.parameter == parameter


def test_values_are_converted() -> None:
    assert DubSettings(faces="left").faces == ("left",)
    assert DubSettings(faces=["left", Path("photo.png")]).faces == ("left", "photo.png")
    assert DubSettings(references=list(np.arange(5))).references == (0, 1, 2, 3, 4)
    assert DubSettings(crf=np.int64(20)) == DubSettings(crf=20)
