"""The options of a dub."""

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
