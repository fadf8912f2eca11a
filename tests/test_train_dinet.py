"""train_dinet.py: an interrupted and an uninterrupted run are bit-identical; the run directory; user errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train_dinet
from configs.schema import load_config
from data_processing.batches import Batch
from models import checkpoint
from models.checkpoint import load_model, load_training_state
from tests.support.commands import run_command_line
from tests.support.training import (
    ADVERSARIAL_BF16,
    TINY,
    assert_same,
    tensorboard_events,
    write_recipe,
)
from training.dinet_trainer import Trainer, train_step
from utils.files import read_jsonl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def recipe(tmp_path) -> Path:
    return write_recipe(tmp_path, TINY)


def train(*flags: object) -> None:
    """Run `train_dinet.py` on the CPU; results on a GPU are not bit-identical between runs."""
    run_command_line(train_dinet.main, "--device", "cpu", *flags)


def refusal(capsys: pytest.CaptureFixture, *flags: object) -> str:
    """The error line of a command line that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        train(*flags)
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, prepared_dataset) -> Path:
    """The run directory after four steps without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    train("--config", write_recipe(folder, TINY), "--data", prepared_dataset, "--run-dir", folder / "run")
    return folder / "run"


def log_without_speed(run_dir: Path) -> list[dict[str, float]]:
    return [line for line in read_jsonl(run_dir / "log.jsonl") if "samples_per_s" not in line]


def scalar_steps(run_dir: Path, name: str) -> list[int]:
    return [event.step for event in tensorboard_events(run_dir).Scalars(name)]


# --- interruption -------------------------------------------------------------------------------------------


def interrupted_at_step_4(monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    """Interrupt a run after three steps, the third of which is logged but not saved; then resume it."""

    def step(trainer: Trainer, batch: Batch) -> dict[str, float]:
        if trainer.step == 3:
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    monkeypatch.setattr(train_dinet, "train_step", step)
    with pytest.raises(SystemExit) as caught:
        train(*flags)
    assert caught.value.code == 130
    monkeypatch.undo()
    train(*flags, "--resume")


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert load_training_state(expected / "state.pt")["step"] == 4
    assert_same(load_training_state(run_dir / "state.pt"), load_training_state(expected / "state.pt"))
    for name in ("generator.safetensors", "config.yaml"):
        assert (run_dir / name).read_bytes() == (expected / name).read_bytes(), name
    assert log_without_speed(run_dir) == log_without_speed(expected)
    assert scalar_steps(run_dir, "train/perceptual") == [1, 2, 3, 4]
    assert scalar_steps(run_dir, "val/psnr_matched") == [3, 4]


def test_resumed_run_equals_uninterrupted_run(recipe, prepared_dataset, finished_run, monkeypatch, tmp_path):
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run")
    interrupted_at_step_4(monkeypatch, *flags)
    assert_same_run(tmp_path / "run", finished_run)


def test_resumed_adversarial_bf16_run_equals_uninterrupted_run(recipe, prepared_dataset, monkeypatch, tmp_path):
    recipe.write_text(ADVERSARIAL_BF16)
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir")
    train(*flags, tmp_path / "uninterrupted")
    interrupted_at_step_4(monkeypatch, *flags, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "uninterrupted")
    state = load_training_state(tmp_path / "run" / "state.pt")["discriminator_optimizer"]["state"]
    assert {int(parameter["step"]) for parameter in state.values()} == {3}  # one step was before adversarial_start


KILLED_WHILE_SAVING = """
import io, os, signal, torch, train_dinet
save, calls = torch.save, []

def save_half(state, file):
    calls.append(state["step"])
    if len(calls) < 3:  # steps 0 and 2 are saved completely
        return save(state, file)
    complete = io.BytesIO()
    save(state, complete)
    file.write(complete.getvalue()[: complete.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = save_half
train_dinet.main()
"""


def test_run_killed_while_saving_resumes_from_the_previous_save(recipe, prepared_dataset, finished_run, tmp_path):
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run", "--device", "cpu")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, *map(str, flags)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert load_training_state(tmp_path / "run" / "state.pt")["step"] == 2
    assert load_model(tmp_path / "run" / "generator.safetensors").info["steps"] == 2
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "pix')  # left by a kill while logging

    train(*flags, "--resume")
    assert load_training_state(tmp_path / "run" / "state.pt")["step"] == 4
    assert not list((tmp_path / "run").glob("*.partial*"))
    log, expected = (read_jsonl(folder / "log.jsonl") for folder in (tmp_path / "run", finished_run))
    assert [(line["step"], *line) for line in log] == [(line["step"], *line) for line in expected]


def test_run_stopped_by_the_time_limit_can_be_resumed(recipe, prepared_dataset, tmp_path, capsys):
    run_dir = tmp_path / "run"
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir", run_dir, "--max-steps", 2)
    train(*flags, "--max-minutes", 1e-6)
    assert load_training_state(run_dir / "state.pt")["step"] == 1
    assert load_model(run_dir / "generator.safetensors").info["steps"] == 1
    assert "time limit reached at step 1" in capsys.readouterr().out

    assert "--run-dir" in refusal(capsys, *flags)
    recipe.write_text(TINY + "seed: 1\nlearning_rate: 1.0e-3\n")
    assert "differs in seed, learning_rate;" in refusal(capsys, *flags, "--resume")
    assert load_training_state(run_dir / "state.pt")["step"] == 1

    recipe.write_text(TINY)
    train(*flags, "--resume")
    assert load_training_state(run_dir / "state.pt")["step"] == 2
    assert "finished at step 2" in capsys.readouterr().out


def test_numbered_checkpoints_are_of_the_moving_average(recipe, prepared_dataset, tmp_path):
    recipe.write_text(TINY + "ema: 0.5\ncheckpoint_every: 1\nkeep_checkpoints: 2\n")
    train("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path, "--max-steps", 3)
    paths = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in paths] == ["step_00000002.safetensors", "step_00000003.safetensors"]
    state, (second, third) = load_training_state(tmp_path / "state.pt"), (load_model(path).model for path in paths)
    name = "decoder.4.weight"
    mean = 0.5 * second.state_dict()[name] + 0.5 * state["generator"][name]
    torch.testing.assert_close(third.state_dict()[name], mean, rtol=1e-3, atol=1e-6)  # stored in 16 bits
    torch.testing.assert_close(state["ema"][f"module.{name}"], mean, rtol=1e-3, atol=1e-6)
    assert not torch.equal(state["generator"][name], state["ema"][f"module.{name}"])


def test_longer_run_continues_with_its_optimizer(recipe, prepared_dataset, finished_run, tmp_path, monkeypatch):
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copytree(finished_run, tmp_path / "other")
    flags = ("--config", recipe, "--data", prepared_dataset, "--max-steps", 6, "--resume", "--run-dir")
    recipe.write_text(TINY.replace("save_every: 2", "save_every: 1").replace("log_every: 1", "log_every: 2"))
    train(*flags, tmp_path / "run")
    state = load_training_state(tmp_path / "run" / "state.pt")
    moments = state["generator_optimizer"]["state"].values()
    assert state["step"] == 6 and {int(moment["step"]) for moment in moments} == {6}
    assert load_config(tmp_path / "run" / "config.yaml").max_steps == 6
    lines = [line for line in read_jsonl(tmp_path / "run" / "log.jsonl") if "pixel" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6]

    recipe.write_text(TINY.replace("image_every: 2", "image_every: 1"))  # intervals do not change the weights
    train(*flags, tmp_path / "other")
    assert_same(load_training_state(tmp_path / "other" / "state.pt"), state)


# --- the run directory --------------------------------------------------------------------------------------


def test_run_directory(finished_run):
    names = {
        path.name.split(".")[0] + path.suffix for path in finished_run.iterdir() if "tfevents" not in path.name
    }
    checkpoints = {"state.pt", "generator.safetensors", "best.safetensors"}
    assert names == {"config.yaml", "log.jsonl", "report.html", *checkpoints}

    config = load_config(finished_run / "config.yaml")
    assert (config.mouth_size, config.max_steps, config.precision) == (32, 4, "fp32")

    loaded = load_model(finished_run / "generator.safetensors")
    assert (loaded.mouth_size, loaded.audio_features) == (32, "whisper")
    assert (loaded.info["steps"], loaded.info["batch_size"]) == (4, 2)
    trained = load_training_state(finished_run / "state.pt")["generator"]
    for name, tensor in loaded.model.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=1e-3, atol=1e-6, msg=name)  # kernels in 16 bits

    log = [json.loads(line) for line in (finished_run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "pixel" in line] == [1, 2, 3, 4]
    validations = [line for line in log if "psnr_matched" in line]
    assert [line["step"] for line in validations] == [3, 4]
    for line in validations:
        assert line["audio_gap_db"] == line["psnr_matched"] - line["psnr_shifted"]
    assert loaded.info["held_out"] == validations[-1]


def test_best_is_the_lowest_lpips(finished_run):
    best = load_model(finished_run / "best.safetensors").info["held_out"]
    validations = [line for line in read_jsonl(finished_run / "log.jsonl") if "lpips_matched" in line]
    assert best == min(validations, key=lambda line: line["lpips_matched"])
    assert load_training_state(finished_run / "state.pt")["best"] == best["lpips_matched"]


def test_full_disk_keeps_the_last_state(recipe, prepared_dataset, tmp_path, monkeypatch, capsys):
    run, saved = tmp_path / "run", []
    write = checkpoint.torch.save

    def save_until_full(state, file):
        write(state, file)
        saved.append(state["step"])
        if len(saved) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", save_until_full)
    line = refusal(capsys, "--config", recipe, "--data", prepared_dataset, "--run-dir", run)
    assert line.endswith(f"{run / 'state.pt'}: cannot be written: the disk is full")
    assert saved == [0, 2, 4]
    monkeypatch.undo()
    assert load_training_state(run / "state.pt")["step"] == 2
    assert not list(run.glob("*.partial*"))
    train("--config", recipe, "--data", prepared_dataset, "--run-dir", run, "--resume")
    assert load_training_state(run / "state.pt")["step"] == 4


def test_tensorboard_events(finished_run):
    events = tensorboard_events(finished_run)
    log = [line for line in read_jsonl(finished_run / "log.jsonl") if "pixel" in line]
    for name in ("pixel", "perceptual"):
        values = [event.value for event in events.Scalars(f"train/{name}")]
        assert values == pytest.approx([line[name] for line in log])
    (tag,) = events.Tags()["images"]
    sizes = [(image.step, image.height, image.width) for image in events.Images(tag)]
    assert sizes == [(2, 2 * 52, 5 * 40), (4, 2 * 52, 5 * 40)]


def test_one_reference_is_enough(recipe, prepared_dataset, tmp_path):
    recipe.write_text(TINY + "num_references: 1\n")
    train("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run", "--max-steps", 1)
    events = tensorboard_events(tmp_path / "run")
    assert events.Images(events.Tags()["images"][0])[0].width == 4 * 40  # source, one reference, output, target


def test_dry_run_writes_no_run(recipe, prepared_dataset, tmp_path, monkeypatch, capsys):
    def files() -> list[Path]:
        packed = prepared_dataset / "packed"
        return sorted({*tmp_path.rglob("*"), *prepared_dataset.rglob("*")} - {packed, *packed.rglob("*")})

    monkeypatch.chdir(tmp_path)
    before = files()
    train("--config", recipe, "--data", prepared_dataset, "--dry-run")
    assert "no run was written" in capsys.readouterr().out
    assert files() == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_dry_run_reads_both_splits(split, recipe, prepared_dataset, tmp_path, capsys):
    lines = [line for line in read_jsonl(prepared_dataset / "manifest.jsonl") if line["split"] != split]
    data = tmp_path / "data"
    data.mkdir()
    (data / "clips").symlink_to(prepared_dataset / "clips")
    (data / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = refusal(capsys, "--config", recipe, "--data", data, "--dry-run")
    assert "--data" in line
    assert f"{split} split" in line


# --- user errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--device", "nonsense"), "--device: .* found 'nonsense'"),
        (("--device", "meta"), "--device: .* found 'meta'"),
        (("--max-minutes", "0"), "--max-minutes"),
        (("--max-minutes", "nan"), "--max-minutes"),
        (("--max-steps", "0"), "--max-steps"),
        (("--resume",), "--resume"),
        (("--init-from", "absent.safetensors"), "--init-from: absent.safetensors"),
        (("--run-dir", __file__), "--run-dir"),
        (("--config", "absent.yaml"), "--config"),
        (("--data", "absent"), "--data"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_refused_command_lines(recipe, prepared_dataset, tmp_path, capsys, flags, named):
    given = ("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run")
    assert re.search(named, refusal(capsys, *given, *flags))
    assert not (tmp_path / "run").exists()


def test_resuming_on_other_data_is_refused(recipe, prepared_dataset, finished_run, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "clips").symlink_to(prepared_dataset / "clips")
    lines = read_jsonl(prepared_dataset / "manifest.jsonl")
    swapped = [line | {"split": "val" if line["split"] == "train" else "train"} for line in lines]
    (data / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in swapped))
    flags = ("--config", recipe, "--data", data, "--run-dir", finished_run, "--max-steps", 6, "--resume")
    assert f"--data: {data}: is not the dataset" in refusal(capsys, *flags)
    assert load_training_state(finished_run / "state.pt")["step"] == 4


def test_clips_with_a_nan_loss_are_named(recipe, prepared_dataset, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(prepared_dataset, data, ignore=shutil.ignore_patterns("packed"))
    (line,) = [line for line in read_jsonl(data / "manifest.jsonl") if line["split"] == "train"]
    path = data / "clips" / f"{line['id']}.npz"
    arrays = dict(np.load(path, allow_pickle=False))
    arrays["features"][:] = np.nan
    np.savez(path, **arrays)

    message = refusal(capsys, "--config", recipe, "--data", data, "--run-dir", tmp_path / "run")
    assert "step 0: a loss is NaN or Inf" in message
    assert line["id"] in message
    saved = load_training_state(tmp_path / "run" / "state.pt")["generator"]
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_lip_driven_generator_is_changed_to_audio(recipe, prepared_dataset, tmp_path, capsys):
    recipe.write_text(TINY + "audio_features: lips\n")
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir")
    train(*flags, tmp_path / "lips", "--max-steps", 1)
    lip_driven = tmp_path / "lips" / "generator.safetensors"
    assert load_model(lip_driven).audio_features == "lips"
    recipe.write_text(TINY + f"init_from: {lip_driven}\n")
    # the audio encoder needs a warm-up first
    assert "expected audio_features whisper, found" in refusal(capsys, *flags, tmp_path / "audio")
    recipe.write_text(TINY + f"init_from: {lip_driven}\naudio_warmup_steps: 2\n")
    train(*flags, tmp_path / "audio", "--max-steps", 1)
    assert load_model(tmp_path / "audio" / "generator.safetensors").audio_features == "whisper"
    recipe.write_text(TINY + "audio_warmup_steps: 2\n")
    line = refusal(capsys, *flags, tmp_path / "none")
    assert "audio_warmup_steps: expected init_from with a lip-driven generator" in line
