"""train_all.py: the stages of the recipes are checked, in order, resumed; its commands are recorded, not run."""

import shutil
from pathlib import Path

import pytest

from configs.schema import load_config
from scripts import train_all
from tests.support.commands import run_command_line
from tests.support.shell import ROOT, missing_files, trained
from utils.errors import UserError

CHAINS = {
    "recommended": [
        *(f"syncnet_{size}" for size in (64, 128, 256)),
        *(f"frame_{size}" for size in (64, 128, 256)),
        "clip_256",
    ],
    "paper": ["syncnet_256", *(f"frame_{size}" for size in (64, 128, 256)), "clip_256"],
    "small": ["syncnet_32", "finetune_64", "bundled_64_clip"],
}


@pytest.fixture
def commands(monkeypatch, tmp_path) -> list[str]:
    """The commands that train_all.py runs. A training writes a state, then its checkpoints."""
    recorded: list[str] = []

    def record(*arguments: object) -> None:
        words = [str(word).removeprefix(f"{ROOT}/") for word in arguments]
        recorded.append(" ".join(words))
        if "--run-dir" in words:
            run_dir = Path(words[words.index("--run-dir") + 1])
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "state.pt").touch()
            if recorded[-1].endswith("BREAKS") or run_dir.name == breaks.get("stage"):
                raise UserError("killed")
            for name in ("generator", "best", "syncnet"):
                (run_dir / f"{name}.safetensors").touch()

    breaks: dict[str, str] = {}
    record.breaks = breaks
    monkeypatch.setattr(train_all, "run_python", record)
    (tmp_path / "videos").mkdir()
    return recorded


def run(folder: Path, *flags: str) -> None:
    run_command_line(train_all.main, folder / "videos", folder / "work", *flags)


@pytest.mark.parametrize("recipe", list(CHAINS))
def test_stages_are_trained_in_order(recipe, commands, tmp_path):
    run(tmp_path, recipe)
    assert trained(commands) == CHAINS[recipe]
    *_, last = (line for line in commands if "--run-dir" in line)
    start, syncnet = {
        "recommended": ("frame_256/generator", "syncnet_256/syncnet"),
        "paper": ("frame_256/generator", "syncnet_256/syncnet"),
        "small": ("finetune_64/best", "syncnet_32/syncnet"),
    }[recipe]
    assert f"--init-from {tmp_path}/work/{start}.safetensors" in last
    assert f"--syncnet {tmp_path}/work/{syncnet}.safetensors" in last
    assert not any("--resume" in line for line in commands)
    size = 64 if recipe == "small" else 256
    assert f"--mouth-size {size}" in commands[0] and "data_processing.prepare" in commands[0]
    assert (tmp_path / "work" / f"dinet_{size}.safetensors").exists()
    assert not missing_files(commands)


def test_it_resumes_where_it_was_killed(commands, tmp_path):
    train_all.run_python.breaks["stage"] = "finetune_64"
    with pytest.raises(SystemExit):
        run(tmp_path, "small")
    assert trained(commands) == CHAINS["small"][:2]
    commands.clear()
    train_all.run_python.breaks.clear()
    run(tmp_path, "small")
    assert trained(commands) == CHAINS["small"][1:]
    assert not any("data_processing.prepare" in line for line in commands)  # runs are not resumed on other data
    assert [line.endswith("--resume") for line in commands if "--run-dir" in line] == [True, False]


@pytest.mark.parametrize("gpus", ["1", "2", "4", "8"])
@pytest.mark.parametrize("recipe", list(CHAINS))
def test_dry_run_checks_all_stages_and_writes_nothing(recipe, gpus, commands, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPUS", gpus)
    run(tmp_path, recipe, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == CHAINS[recipe]
    assert lines[-1] == f"every stage can be trained in {gpus} processes; nothing was written"
    assert not commands and not (tmp_path / "work").exists()
    if recipe == "paper" and gpus == "4":
        assert lines[5].split() == ["clip_256", "256", "3", "1", "58080", "1,", "none", "in", "1", "of", "4"]


def test_several_processes_are_started_by_torchrun(commands, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUS", "2")
    run(tmp_path, "small")
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2 train_"
    assert [launcher in line for line in commands if "--run-dir" in line] == [True] * 3


@pytest.mark.parametrize(
    ("changed", "line", "message"),
    [
        ("stages/clip_256.yaml", "mouth_size: 128\nclip_length: 5", "SyncNet for mouths of at most 128 pixels"),
        (
            "stages/clip_256.yaml",
            "audio_features: deepspeech",
            "expected audio_features deepspeech, found",
        ),
        ("stages/frame_128.yaml", "num_references: 3", "expected num_references 3, found num_references 5"),
        ("stages/syncnet_128.yaml", "audio_features: deepspeech", "expected deepspeech features, found whisper"),
        ("stages/clip_256.yaml", "grad_accum_steps: 4", "expected at most the batch_size of 3, found 4"),
    ],
)
def test_a_stage_that_cannot_be_trained_is_found_before_the_first(
    changed, line, message, commands, tmp_path, monkeypatch, capsys
):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    with (tmp_path / "configs" / changed).open("a") as file:
        file.write(f"\n{line}\n")
    monkeypatch.setattr(train_all, "FOLDER", tmp_path / "configs")
    with pytest.raises(SystemExit) as caught:
        run(tmp_path)
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and message in error and Path(changed).name in error
    assert not commands and not (tmp_path / "work").exists()


def test_a_missing_bundled_checkpoint_is_found_before_the_first_stage(commands, tmp_path, monkeypatch, capsys):
    absent = train_all.Stage("stages/finetune_64.yaml", tmp_path / "absent.safetensors")
    monkeypatch.setitem(train_all.RECIPES, "small", [absent])
    with pytest.raises(SystemExit):
        run(tmp_path, "small")
    assert "stages/finetune_64.yaml: " in (error := capsys.readouterr().err) and "no such file" in error
    assert not commands


@pytest.mark.parametrize("gpus", ["0", "two"])
def test_number_of_processes_is_checked(gpus, commands, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPUS", gpus)
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert f"GPUS: expected a number of processes above 0, found '{gpus}'" in capsys.readouterr().err


def test_failure_of_a_command_is_reported():
    with pytest.raises(UserError, match=r"evaluate\.py ended with exit code 2"):
        train_all.run_python("evaluate.py", "--no-such-flag")


def test_recipes_name_configurations_of_their_kind():
    for recipe, stages in train_all.RECIPES.items():
        for stage in stages:
            if stage.result != train_all.SYNCNET_FILE:
                load_config(ROOT / "configs" / stage.config)
            assert (recipe == "paper") == stage.config.startswith("paper/")
