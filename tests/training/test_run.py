"""The run directory, configuration overrides and other things that both training commands share."""

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.schema import TrainConfig, load_config
from tests.support.training import TINY
from training import distributed
from training.loading import DeviceBatches
from training.run import TrainingRun, check_run_dir, create_run_dir, process_samples, training_parser
from utils.errors import OutputError, ParameterError


@pytest.fixture
def config(tmp_path) -> TrainConfig:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return load_config(tmp_path / "tiny.yaml")


def test_new_run_directory_holds_the_configuration(config, tmp_path):
    create_run_dir(tmp_path / "runs" / "one", config)
    assert load_config(tmp_path / "runs" / "one" / "config.yaml") == config


def test_run_directory_with_a_run_must_be_resumed(config, tmp_path):
    run_dir = tmp_path / "run"
    create_run_dir(run_dir, config)
    check_run_dir(run_dir, config, resume=False)
    (run_dir / "state.pt").touch()
    with pytest.raises(OutputError, match="holds a run already") as caught:
        check_run_dir(run_dir, config, resume=False)
    assert caught.value.path == run_dir
    (run_dir / ".state.123.partial.pt").touch()  # left by a killed run
    check_run_dir(run_dir, config, resume=True)
    create_run_dir(run_dir, config)
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.yaml", "state.pt"]


def test_all_processes_resume_from_the_same_folder(config, tmp_path, monkeypatch):
    run = TrainingRun(config, tmp_path, tmp_path / "run", torch.device("cpu"))
    monkeypatch.setattr(distributed, "broadcast_flag", lambda flag: not flag)  # process 0 has a state.pt
    with pytest.raises(OutputError, match="is not the folder of process 0") as caught:
        run.load_state(None)
    assert caught.value.path == tmp_path / "run"


def test_resume_needs_a_run_with_the_same_configuration(config, tmp_path):
    run_dir = tmp_path / "run"
    with pytest.raises(ParameterError, match=r"no run to continue") as caught:
        check_run_dir(run_dir, config, resume=True)
    assert caught.value.parameter == "resume"
    create_run_dir(run_dir, config)
    (run_dir / "state.pt").touch()
    with pytest.raises(ParameterError, match="differs in seed, learning_rate;"):
        check_run_dir(run_dir, replace(config, max_steps=5, seed=1, learning_rate=1.0), resume=True)
    assert load_config(run_dir / "config.yaml") == config


def test_length_and_intervals_may_change(config, tmp_path):
    run_dir = tmp_path / "run"
    create_run_dir(run_dir, config)
    (run_dir / "state.pt").touch()
    changed = replace(config, max_steps=9, log_every=5, validate_every=5, image_every=5, save_every=5)
    check_run_dir(run_dir, changed, resume=True)


def test_flags_override_the_configuration(config, tmp_path):
    flags = ["--config", tmp_path / "tiny.yaml", "--data", "data", "--device", "cpu", "--max-steps", 7]
    flags += ["--init-from", "start.safetensors", "--max-minutes", 0.5]
    args = training_parser("", base="configs/base.yaml").parse_args([str(flag) for flag in flags])
    run = TrainingRun.from_args(args, TrainConfig)
    assert run.config == replace(config, max_steps=7, init_from="start.safetensors")
    assert (run.data, run.run_dir, run.device) == (Path("data"), Path("runs/tiny"), torch.device("cpu"))
    assert (run.resume, run.max_minutes) == (False, 0.5)


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan])
def test_time_limit_must_be_positive(minutes):
    with pytest.raises(ParameterError, match="expected a number above 0") as caught:
        TrainingRun.from_args(argparse.Namespace(max_minutes=minutes), TrainConfig)
    assert caught.value.parameter == "max_minutes"


def test_training_ends_at_max_steps_or_at_the_time_limit(config, tmp_path):
    run = TrainingRun(config, tmp_path, tmp_path, torch.device("cpu"))
    run.batches = DeviceBatches([], run.device)
    assert [run.step_ended(step) for step in (1, 3, 4)] == [False, False, True]
    run.max_minutes = 1e-9
    time.sleep(1e-3)
    assert run.step_ended(1)


def test_intervals(config, tmp_path):
    run = TrainingRun(config, tmp_path, tmp_path, torch.device("cpu"))
    assert [step for step in range(1, 8) if run.is_due(step, 3)] == [3, 6]
    assert run.is_due(7, 3, last=True)


def test_newest_numbered_checkpoints_are_kept(config, tmp_path):
    run = TrainingRun(replace(config, keep_checkpoints=2), tmp_path, tmp_path, torch.device("cpu"))
    for step in (5, 10, 1000, 99_000):
        run.save_numbered(step, lambda path, step=step: path.write_text(str(step)))
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [(path.name, path.read_text()) for path in kept] == [
        ("step_00001000.safetensors", "1000"),
        ("step_00099000.safetensors", "99000"),
    ]


def test_one_process_trains_on_the_whole_batch(config):
    assert process_samples(replace(config, batch_size=5, grad_accum_steps=2)) == [0, 1, 2, 3, 4]
