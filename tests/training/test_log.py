"""log.jsonl and TensorBoard events of a run."""

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

from configs.schema import load_config
from tests.support.training import TINY, tensorboard_events, write_recipe
from training import log
from training.log import RunLog, TensorBoardLogger, WandbLogger
from training.run import TrainingRun
from utils.errors import ParameterError
from utils.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]


def test_values_go_to_both_logs(tmp_path):
    run_log = RunLog(tmp_path, 0, [TensorBoardLogger(tmp_path, 0)])
    run_log.add("train", 1, {"loss": 0.5})
    run_log.add("val", 1, {"psnr": 20.0})
    run_log.close()
    assert read_jsonl(tmp_path / "log.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 1, "psnr": 20.0}]
    events = tensorboard_events(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/psnr")] == [(1, 20.0)]


def test_continued_log_drops_later_and_incomplete_lines(tmp_path):
    """A killed run may have logged after its last saved state. Keys of earlier versions stay."""
    lines = '{"step": 2, "val_ranked_right": 0.5}\n{"step": 3, "loss": 1.0}\n{"step": 4, "lo'
    (tmp_path / "log.jsonl").write_text(lines)
    run_log = RunLog(tmp_path, 2, [])
    run_log.add("train", 3, {"loss": 2.0})
    run_log.close()
    assert read_jsonl(tmp_path / "log.jsonl") == [{"step": 2, "val_ranked_right": 0.5}, {"step": 3, "loss": 2.0}]


class FakeWandb:
    """Records what would be sent to Weights & Biases."""

    Image = staticmethod(lambda image: type(image).__name__)

    def __init__(self) -> None:
        self.runs, self.sent = [], []

    def init(self, **options: object) -> SimpleNamespace:
        self.runs.append(options)
        return SimpleNamespace(define_metric=lambda *_, **__: None, log=self.sent.append, finish=lambda: None)


def test_wandb_gets_values_images_and_figures_of_one_run(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run_dir = tmp_path / "frame_64"
    run_dir.mkdir()
    for step in (0, 2):  # started, then resumed
        run_log = RunLog(run_dir, step, [WandbLogger(run_dir, "dinet", {"batch_size": 4})])
        run_log.add("train", step + 1, {"loss": 0.5})
        run_log.add_image("image", step + 1, torch.rand(3, 4, 4))
        run_log.add_figure("figure", step + 1, Figure())
        run_log.close()
    assert fake.sent[:3] == [
        {"step": 1, "train/loss": 0.5},
        {"step": 1, "image": "Tensor"},
        {"step": 1, "figure": "Figure"},
    ]
    first, second = fake.runs
    assert first == second  # with the same id
    assert (first["project"], first["name"], first["config"]) == ("dinet", "frame_64", {"batch_size": 4})


def test_missing_wandb_is_one_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ParameterError, match="the package wandb is not installed") as caught:
        WandbLogger(tmp_path, "dinet", {})
    assert caught.value.parameter == "wandb"
    assert not list(tmp_path.iterdir())


def test_wandb_that_cannot_start_is_one_error_and_writes_nothing(monkeypatch, tmp_path):
    def refuse(**options):
        raise RuntimeError("api_key not configured (no-tty).\n call wandb.login()")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    config = load_config(write_recipe(tmp_path, TINY))
    run = TrainingRun(config, tmp_path, tmp_path / "run", torch.device("cpu"), wandb="dinet")
    with pytest.raises(
        ParameterError, match=r"^cannot start a run: api_key not configured \(no-tty\)\. call wandb"
    ):
        run.start(SimpleNamespace(step=0), [])
    assert not list(run.run_dir.iterdir())


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from training.log import RunLog, TensorBoardLogger
from utils.errors import OutputError

for limit in (10, 600, 100_000):  # the first line, the first image, a later image
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    folder = Path(f"{sys.argv[1]}/{limit}")
    log = RunLog(folder, 0, [TensorBoardLogger(folder, 0)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        for step in range(1, 200):
            log.add("train", step, {"loss": 0.5})
            log.add_image("image", step, torch.rand(3, 64, 64))
        log.close()
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")
@pytest.mark.slow
def test_full_disk_is_one_error(tmp_path):
    """Nothing comes from TensorBoard's thread, which writes."""
    command = [sys.executable, "-c", FULL_DISK, tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = ("10/log.jsonl", "600", "100000")
    assert result.stdout == "".join(f"{tmp_path}/{name}: cannot be written: File too large\n" for name in names)
    assert (result.stderr, result.returncode) == ("", 0)


def test_errors_of_other_threads_are_reported(monkeypatch):
    reported = []
    monkeypatch.setattr(log._report_thread_error, "__defaults__", (reported.append,))

    def fail(error):
        raise error

    for module, error, is_reported in [
        ("training.log", OSError, True),
        ("tensorboardish", OSError, True),
        ("tensorboard.summary.writer", ZeroDivisionError, True),
        ("tensorboard.summary.writer", PermissionError, False),
    ]:
        thread = type("Writer", (threading.Thread,), {"__module__": module})(target=fail, args=(error,))
        monkeypatch.setattr(threading, "excepthook", log._report_thread_error)
        thread.start()
        thread.join()
        assert [args.exc_type for args in reported] == [error] * is_reported
        reported.clear()


@pytest.mark.slow
def test_tensorflow_is_not_imported():
    """TensorBoard imports it if it is installed, and it cannot share a process with Triton."""
    code = "import sys, train_dinet; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
