"""The table of interval coverage: its experiments and its bootstrap intervals."""

import numpy as np
import pytest
import scipy.stats

from tests.tools import interval_coverage
from tests.tools.interval_coverage import CLIP_DEVIATION, bootstrap_interval, coverage, experiments


@pytest.mark.parametrize("skewed", [False, True])
def test_experiments_have_mean_0_and_the_stated_deviations(skewed: bool) -> None:
    values = np.array([values for values, _ in experiments([2, 2], skewed, 4000)])
    assert abs(values.mean()) < 0.05
    within = (values[:, ::2] - values[:, 1::2]) / np.sqrt(2)  # of two clips of one speaker
    assert within.std() == pytest.approx(CLIP_DEVIATION, rel=0.05)
    assert values.var() == pytest.approx(1 + CLIP_DEVIATION**2, rel=0.1)


@pytest.mark.parametrize("corrected", [False, True])
def test_bootstrap_intervals_are_those_of_scipy(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval_coverage, "NUM_RESAMPLES", 20000)
    values = np.random.default_rng(0).exponential(1, 40)
    interval = bootstrap_interval(values, np.arange(40), corrected)
    method = "BCa" if corrected else "percentile"
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method=method, rng=1
    ).confidence_interval
    assert interval == pytest.approx(tuple(expected), abs=0.02)


def test_coverage_of_all_kinds() -> None:
    found = coverage([3] * 20, False, 50)
    assert list(found)[-1] == "mean_interval"
    assert found["bootstrap over clips"] < found["over speakers"] <= found["mean_interval"] <= 1
