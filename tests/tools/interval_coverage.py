"""How often intervals of a mean contain it: python -m tests.tools.interval_coverage

Draws experiments of mean 0: every speaker has a value, from which the speaker's clips differ by noise. Prints a
Markdown table of how many intervals of nominally 95 % contain the mean, by bootstrap over clips, over speakers,
over speakers with bias correction and acceleration (BCa), and by `evaluation.metrics.mean_interval`.
"""

import argparse
from collections.abc import Iterator

import numpy as np
from scipy.special import ndtr, ndtri

from evaluation.metrics import mean_interval
from utils.command_line import run_command

CLIP_DEVIATION = 0.6  # of clips of one speaker, where that of speakers is 1
NUM_RESAMPLES = 1000
CASES = {  # numbers of clips of each speaker, and whether the values are skewed
    "20 speakers of 3 clips": ([3] * 20, False),
    "20 speakers of 3 clips, skewed": ([3] * 20, True),
    "20 speakers of 1 to 8 clips": ([1, 1, 2, 2, 3, 3, 4, 5, 6, 8] * 2, False),
    "6 speakers of 1 clip": ([1] * 6, False),
}


def experiments(
    num_clips: list[int], skewed: bool, count: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values (K,) of the clips, and the number of the speaker of each, of `count` experiments of mean 0."""
    rng = np.random.default_rng(seed)
    speakers = np.repeat(np.arange(len(num_clips)), num_clips)
    for _ in range(count):
        own = rng.exponential(1, len(num_clips)) - 1 if skewed else rng.normal(0, 1, len(num_clips))
        yield own[speakers] + rng.normal(0, CLIP_DEVIATION, len(speakers)), speakers


def bootstrap_interval(values: np.ndarray, groups: np.ndarray, corrected: bool = False) -> tuple[float, float]:
    """95 % percentile interval of the mean, resampling whole groups; with `corrected` BCa (Efron, 1987)."""
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    resampled = np.random.default_rng(0).integers(len(sums), size=(NUM_RESAMPLES, len(sums)))
    means = sums[resampled].sum(axis=1) / counts[resampled].sum(axis=1)
    levels = np.array([0.025, 0.975])
    if corrected:
        left_out = (sums.sum() - sums) / (counts.sum() - counts)
        deviations = left_out.mean() - left_out
        acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
        bias = ndtri(np.clip((means < values.mean()).mean(), 1e-3, 1 - 1e-3))
        shifted = bias + ndtri(levels)
        levels = ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def coverage(num_clips: list[int], skewed: bool, count: int) -> dict[str, float]:
    """By kind of interval, the fraction of `count` experiments whose interval contains the true mean."""
    hits = dict.fromkeys(("bootstrap over clips", "over speakers", "over speakers, BCa", "mean_interval"), 0)
    for values, speakers in experiments(num_clips, skewed, count):
        intervals = (
            bootstrap_interval(values, np.arange(len(values))),
            bootstrap_interval(values, speakers),
            bootstrap_interval(values, speakers, corrected=True),
            mean_interval(values, speakers),
        )
        for name, (low, high) in zip(hits, intervals, strict=True):
            hits[name] += low <= 0 <= high
    return {name: number / count for name, number in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="experiments per row (default: %(default)s)")

    def run(args: argparse.Namespace) -> None:
        for number, (case, (num_clips, skewed)) in enumerate(CASES.items()):
            found = coverage(num_clips, skewed, args.count)
            if not number:
                print(f"| experiment | {' | '.join(found)} |\n|{' --- |' * (len(found) + 1)}")
            print(f"| {case} | {' | '.join(f'{fraction:.1%}' for fraction in found.values())} |", flush=True)

    run_command(parser, run)


if __name__ == "__main__":
    main()
