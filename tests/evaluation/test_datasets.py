"""Scores on a prepared dataset: the same report on a cluster as in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import LocalCluster

from evaluation import datasets
from evaluation.datasets import Evaluation, evaluate_dataset
from models.checkpoint import SYNCNET, LoadedModel, load_model
from models.dinet import DINetConfig
from tests.support.datasets import make_dataset
from tests.support.training import SmallGenerator


def load(path: Path, *options: Any, kinds: tuple[str, ...] = ()) -> LoadedModel:
    """A small generator in place of DINet."""
    if kinds == SYNCNET:
        return load_model(path, *options, kinds=kinds)
    torch.manual_seed(0)
    generator = SmallGenerator(audio_dim=384, num_references=2).eval()
    generator.config = DINetConfig(num_references=2)
    torch.nn.init.normal_(generator.audio_encoder.conv.weight, 0, 1e-4)  # the features are up to 2045
    return LoadedModel(generator, "whisper", 32, {})


def error(output: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    return (output - target).abs().mean(dim=(1, 2, 3)).numpy()


def test_a_cluster_gives_the_report_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """18 samples are two batches; SyncNet scores two clips."""
    monkeypatch.setattr(datasets, "image_metrics", lambda device, with_vgg: {"error": error})
    monkeypatch.setattr(datasets, "load_model", load)
    data = make_dataset(tmp_path / "data", num_clips=3, num_frames=46, num_val=2)
    evaluation = Evaluation(tmp_path / "generator", data, "val", None, 9, torch.device("cpu"), None)
    here = evaluate_dataset(evaluation, with_sync=True)
    assert (here["num_frames"], here["num_clips"], here["compared_at"]) == (18, 2, 32)
    assert here["sync"]["num_clips"] == 2
    assert here["matched"]["error"]["mean"] != here["shifted"]["error"]["mean"]
    errors = capsys.readouterr().err
    assert "scoring: 100%" in errors and "sync check: 100%" in errors
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        there = evaluate_dataset(evaluation, with_sync=True, scheduler=cluster.scheduler_address)
    assert there == here
