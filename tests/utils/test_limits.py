"""Sanity limits."""

from dataclasses import FrozenInstanceError, astuple
from math import inf

import pytest

from utils.limits import DEFAULT_LIMITS, NO_LIMITS


def test_default_limits():
    assert astuple(DEFAULT_LIMITS) == (8192, 60, 3600, 12 * 3600)


def test_no_limits():
    assert set(astuple(NO_LIMITS)) == {inf}


def test_limits_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        DEFAULT_LIMITS.max_side_px = inf
