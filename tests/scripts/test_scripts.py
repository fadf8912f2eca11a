"""The thin commands: chains of stages with a stand-in for Python, a smaller checkpoint, tables and pictures."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from configs.schema import load_config
from data_processing.dataset import load_clips
from models.checkpoint import load_model, save_model
from models.crop_layout import mouth_box
from models.dinet import DINet, DINetConfig
from scripts.visualize import best_lag, draw_strips, dubbed_crops, loudness_of, moved_grid

ROOT = Path(__file__).resolve().parents[2]

# Notes what it is asked for; a training leaves a state and what it should give.
# The one that BREAKS names is killed before it is done.
STAND_IN = """#!/bin/bash
echo "$@" >> "$LOG"
run= scores=
while [[ $# -gt 0 ]]; do
    [[ $1 == --run-dir ]] && run=$2
    [[ $1 == --frames-per-clip ]] && scores=yes
    [[ $1 == --output && -n $scores ]] && mkdir -p "$2" && touch "$2/evaluation.json"
    shift
done
[[ -z $run ]] && exit 0
mkdir -p "$run"
touch "$run/state.pt"
[[ $BREAKS == "$(basename "$run")" ]] && kill -9 $$
touch "$run/generator.safetensors" "$run/best.safetensors" "$run/syncnet.safetensors"
"""


def chain(script: str, home: Path, *flags: str, breaks: str = "") -> tuple[int, list[str]]:
    """The exit status of a script and the commands it ran."""
    log = home / "log"
    log.unlink(missing_ok=True)
    command = ["bash", home / "scripts" / script, home / "given", home / "work", *flags]
    result = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", "LOG": log, "BREAKS": breaks}, capture_output=True
    )
    return result.returncode, log.read_text().splitlines() if log.exists() else []


def make_home(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for script in ("train_all.sh", "reproduce_tables.sh", "stage.sh"):
        shutil.copy(ROOT / "scripts" / script, tmp_path / "scripts")
    python = tmp_path / ".venv/bin/python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return tmp_path


def trained(commands: list[str]) -> list[str]:
    """Names of the stages trained, in order."""
    found = []
    for line in commands:
        words = line.split()
        if "--run-dir" in words:
            found.append(Path(words[words.index("--run-dir") + 1]).name)
    return found


def test_train_all_goes_from_coarse_to_fine(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    code, commands = chain("train_all.sh", home)
    assert code == 0
    assert trained(commands) == [
        *(f"syncnet_{size}" for size in (64, 128, 256)),
        *(f"frame_{size}" for size in (64, 128, 256)),
        "clip_256",
    ]
    clip = next(line for line in commands if "--run-dir" in line and "clip_256" in line)
    assert f"--init-from {home}/work/frame_256/generator.safetensors" in clip
    assert f"--syncnet {home}/work/syncnet_256/syncnet.safetensors" in clip
    assert not any("--resume" in line for line in commands)
    assert (home / "work/dinet_256.safetensors").exists()
    for line in commands:  # every recipe and script it names is there
        for word in line.split():
            if word.startswith(("configs/", "train_", "evaluate", "inference", "checkpoints/")):
                assert (ROOT / word).is_file(), word


def test_train_all_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    whole = trained(chain("train_all.sh", home, "small")[1])
    shutil.rmtree(home / "work")
    code, commands = chain("train_all.sh", home, "small", breaks=whole[1])
    assert code != 0
    assert trained(commands) == whole[:2]
    code, commands = chain("train_all.sh", home, "small")
    assert code == 0
    assert trained(commands) == whole[1:]
    assert [line.endswith("--resume") for line in commands if "--run-dir" in line] == [
        True,
        *[False] * (len(whole) - 2),
    ]
    for line in commands:
        for word in line.split():
            if word.startswith(("configs/", "checkpoints/")):
                assert (ROOT / word).is_file(), word


ABLATIONS = ["without_deformation", "without_inpainting", "attention", "flow"]
BASELINES = ["wav2lip_96", "wav2lip_192", "wav2lip_384"]


@pytest.mark.parametrize("variant", [[], ["small"]])
def test_reproduce_tables(variant: list[str], tmp_path: Path) -> None:
    home = make_home(tmp_path)
    whole = trained(chain("reproduce_tables.sh", home, *variant)[1])
    sizes = ("_64", "_128", "")
    dinets = [name + size for name in ["full", *ABLATIONS] for size in sizes]
    dinets = ["full", *ABLATIONS, "dinet_64"] if variant else dinets
    assert [name for name in whole if name in dinets] == dinets  # the two halves may run at a time
    assert [name for name in whole if name not in dinets] == BASELINES
    shutil.rmtree(home / "work")
    code, commands = chain("reproduce_tables.sh", home, *variant, breaks="attention")
    assert code != 0
    begun = trained(commands)
    code, commands = chain("reproduce_tables.sh", home, *variant)
    assert code == 0
    assert sorted(trained(commands)) == sorted(set(whole) - set(begun) | {"attention"})
    scored = [line for line in commands if line.startswith("evaluate.py")]
    assert len(scored) == (7 if variant else 10)  # one half was not broken
    assert len({line.split()[line.split().index("--size") + 1] for line in scored if "/table1/" in line}) == 1
    for line in commands:
        words = line.split()
        for word in words:
            if word.startswith(("configs/", "checkpoints/", "scripts/", "train_", "evaluate")):
                assert (ROOT / word).is_file(), word
        if line.startswith("train_dinet.py"):  # with its ablation, in every size
            recipes = [Path(word).stem for word in words if word.startswith("configs/")]
            name = words[words.index("--run-dir") + 1].split("/")[-1].removesuffix("_64").removesuffix("_128")
            assert (name in recipes) == (name in ABLATIONS + BASELINES)
            load_config([ROOT / word for word in words if word.startswith("configs/")])
    assert chain("reproduce_tables.sh", home, *([] if variant else ["small"]))[0] == 2  # not into the same folder
    again = [line for line in chain("reproduce_tables.sh", home, *variant)[1] if "visualize" not in line]
    assert again == [f"scripts/tables.py {home}/work --output {home}/work/results"]


def report(psnr: float, frames: int = 4) -> dict:
    """As evaluate.py writes it."""
    measured = {name: {"mean": 0.25, "interval": [0.125, 0.5]} for name in ("ssim", "lpips", "lpips_vgg")}
    measured["psnr"] = {"mean": psnr, "interval": None}
    sync = {"score": 0.5, "confidence": 0.2, "within_one_frame": 1.0}
    return {
        "checkpoint": {"path": "model", "sha256": "0123456789abcdef"},
        "num_frames": frames,
        "num_clips": 2,
        "num_people": 1,
        "compared_at": 64,
        "data": "data/mine",
        "split": "val",
        "matched": measured,
        "difference": {"psnr": {"mean": 0.5, "interval": [0.25, 0.75]}},
        "sync": {"num_clips": 1, "real": sync, "generated": sync},
    }


def test_tables_stand_beside_the_papers(tmp_path: Path) -> None:
    for run, start in (("full", None), ("dinet_64", tmp_path / "full/generator.safetensors"), ("flow", None)):
        (tmp_path / run).mkdir()
        values = {"max_steps": 10, "batch_size": 8, "mouth_size": 32 if start is None else 64}
        (tmp_path / run / "config.yaml").write_text(yaml.safe_dump(values | {"init_from": start and str(start)}))
    for place, psnr in (("table1/dinet_64", 20), ("table1/bundled", 21), ("table2/flow", 22), ("table2/full", 23)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "evaluation.json").write_text(json.dumps(report(psnr)))
    command = [sys.executable, "-m", "scripts.tables", tmp_path, "--output", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    first, second = ((tmp_path / "out" / f"table{number}.md").read_text().splitlines() for number in (1, 2))
    cells = first[2].strip("| ").split(" | ")
    assert cells[0] == "DINet, S = 64"
    assert cells[6:11] == ["0.2500 [0.1250, 0.5000]", "20.00", "0.2500 [0.1250, 0.5000]", "missing", "missing"]
    assert "0.50 [0.25, 0.75]" in cells
    assert cells[-2:] == ["80 at S = 32, 80 at S = 64", "`0123456789ab`"]
    assert len({line.count("|") for line in first[:4]}) == 1
    assert second[2].startswith("| dense flow for AdaAT | 0.9001 | 23.57 | 0.0656 | 0.2500 [")
    assert second[3].startswith("| DINet | 0.9425 | 30.01 | 0.0289 | 0.2500 [")
    for content, message in (
        (json.dumps(report(22, frames=5)), "table2: expected all rows on the same images, found 4 frames"),
        ("{}", "evaluation.json: expected what evaluate.py --data --sync writes"),
    ):
        (tmp_path / "table2/flow/evaluation.json").write_text(content)
        refused = subprocess.run(command, capture_output=True, text=True)
        assert refused.returncode == 2
        assert message in refused.stderr


def test_chains_say_how_they_are_used(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    for script in ("train_all.sh", "reproduce_tables.sh"):
        assert chain(script, home, "tiny") == (2, [])


def test_compact_checkpoint_halves_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=8, num_references=1))
    save_model(tmp_path / "in", model, audio_features="phoneme", mouth_size=64, info={"steps": 3})
    subprocess.run(
        [sys.executable, "-m", "scripts.compact_checkpoint", tmp_path / "in", tmp_path / "out"], check=True
    )
    assert (tmp_path / "out").stat().st_size < 0.52 * (tmp_path / "in").stat().st_size
    small = load_model(tmp_path / "out")
    assert small.info == {"steps": 3}
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:  # to half a step of 127 a channel
            step = tensor.abs().amax(dim=tuple(range(1, tensor.ndim)), keepdim=True) / 127
            assert ((small.model.state_dict()[name] - tensor).abs() <= 0.51 * step + 1e-3 * tensor.abs()).all(), (
                name
            )


def test_plot_runs_draws_every_number(tmp_path: Path) -> None:
    for run, bend in (("one", 1.0), ("two", 2.0)):
        (tmp_path / run).mkdir()
        lines = [{"step": step, "loss": bend / (step + 1), "psnr": 20 + step} for step in range(30)]
        (tmp_path / run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = []
    for flags in ([], ["--only", "psnr"]):
        picture = tmp_path / "curves.png"
        command = [sys.executable, "-m", "scripts.plot_runs", tmp_path / "one", tmp_path / "two", "--output"]
        subprocess.run([*command, picture, *flags], check=True, capture_output=True)
        sizes.append(cv2.imread(str(picture)).shape[1])
    assert sizes[0] == 2 * sizes[1]  # a panel for each number
    refused = subprocess.run([*command, picture, "--only", "fun"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "error: --only: expected some of loss, psnr, found fun\n"


def test_visualize_draws_a_frame(tmp_path: Path, portrait_clip: Path) -> None:
    torch.manual_seed(0)
    model = DINet(DINetConfig(audio_dim=29, num_references=2))
    save_model(tmp_path / "model", model, audio_features="phoneme", mouth_size=32, info={})
    command = [sys.executable, "-m", "scripts.visualize", "generator", "--video", portrait_clip, "--checkpoint"]
    picture = tmp_path / "figure.png"
    subprocess.run([*command, tmp_path / "model", "--frame", "5", "--output", picture], check=True)
    assert cv2.imread(str(picture)).std() > 10
    refused = subprocess.run([*command, tmp_path / "model", "--frame", "99"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "error: --frame: expected one of 0 to 39 with a face, found 99" in refused.stderr


def test_strips_show_real_frames_and_what_each_checkpoint_draws(prepared_dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "nothing_learned.safetensors"
    save_model(path, DINet(DINetConfig(29, 2)), audio_features="lips", mouth_size=32, info={})
    (clip,) = load_clips(prepared_dataset, "val", 64, "lips")
    (small,) = load_clips(prepared_dataset, "val", 32, "lips")
    drawn = dubbed_crops(load_model(path), small, clip, np.array([3, 9]))
    changed = (drawn != clip.frames[[3, 9]]).any(axis=(0, 3))
    rows, columns = mouth_box(64)
    assert changed[rows, columns].mean() > 0.9
    changed[rows, columns] = False
    assert not changed.any()
    picture = tmp_path / "strips.png"
    command = [sys.executable, "-m", "scripts.visualize", "strips", "--data", prepared_dataset, "--size", "64"]
    subprocess.run([*command, "--checkpoints", path, path, "--output", picture], check=True)
    assert cv2.imread(str(picture)).std() > 10
    black, white = (np.full((2, 8, 6, 3), level, np.uint8) for level in (0, 255))
    figure = draw_strips([("real", [white, black]), ("same", [black, white]), ("same", [white, white])])
    shown = [axes.images[0].get_array().max() for axes in figure.axes]
    assert shown == [255, 255, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255]


def test_loudness_and_the_lag_of_a_mouth(portrait_clip: Path, tmp_path: Path) -> None:
    tone = 0.1 * np.sin(np.arange(3 * 640) * 0.2)
    tone[640:1280] = 0
    np.testing.assert_allclose(loudness_of(tone, 4), [-23.0, -60, -23.0, -60], atol=0.1)
    sound = np.random.default_rng(0).random(50)
    for behind in (-3, 0, 2):
        assert best_lag(np.roll(sound, behind), sound) == (behind, pytest.approx(1))
    hidden = np.roll(sound, 2)
    hidden[20:30] = np.nan
    assert best_lag(hidden, sound) == (2, pytest.approx(1))
    assert best_lag(sound, np.zeros(50)) is best_lag(hidden[:4], sound[:4]) is None
    picture = tmp_path / "curves.png"
    command = [sys.executable, "-m", "scripts.visualize", "loudness", "--videos", portrait_clip, portrait_clip]
    subprocess.run([*command, "--output", picture], check=True)
    assert cv2.imread(str(picture)).std() > 10


def test_moved_grids_are_where_adaat_reads() -> None:
    translation = np.array([0.3, -0.1])
    grid = F.affine_grid(
        torch.tensor([[[0.5 * np.cos(1), -0.5 * np.sin(1), 0.3], [0.5 * np.sin(1), 0.5 * np.cos(1), -0.1]]]),
        [1, 1, 9, 50],
        align_corners=True,
    )[0]
    lines = moved_grid(0.5, 1.0, translation)
    assert len(lines) == 18
    for row, line in zip(grid.numpy(), lines[::2], strict=True):
        np.testing.assert_allclose(line.T, row, atol=1e-6)
