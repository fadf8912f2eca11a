"""The learning rate against its closed form."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema import load_config
from training.schedule import cosine_decay, learning_rate


def test_learning_rate_closed_form():
    config = load_config(Path("configs/stages/frame_64.yaml"))
    config = replace(config, learning_rate=2e-4, warmup_steps=10, max_steps=100)
    expected = {
        0: 2e-5,
        4: 1e-4 * (1 + math.cos(0.04 * math.pi)) / 2,
        9: 1e-4 * (1 + math.cos(0.09 * math.pi)),
        25: 1e-4 * (1 + math.sqrt(0.5)),
        50: 1e-4,
        75: 1e-4 * (1 - math.sqrt(0.5)),
        100: 0,
        250: 0,
    }
    assert {step: learning_rate(config, step) for step in expected} == pytest.approx(expected, abs=1e-18)
    assert learning_rate(replace(config, warmup_steps=0), 0) == pytest.approx(2e-4)
    constant = replace(config, schedule="constant")
    assert [learning_rate(constant, step) for step in (4, 9, 50, 250)] == pytest.approx([1e-4, 2e-4, 2e-4, 2e-4])


def test_cosine_decay_falls_from_one_to_zero():
    values = [cosine_decay(step, 4) for step in range(6)]
    assert values == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0], abs=1e-15)
