"""Training on made clips: interrupted and unbroken runs agree to the bit, one step against plain autograd, the run
directory, and what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator

import train_dinet
from configs.schema import load_config
from data_processing.audio.framing import audio_windows
from data_processing.batches import Batch, TrainingBatches
from data_processing.dataset import load_clips
from data_processing.face.lips import lip_features
from models import checkpoint
from models.checkpoint import load_model, load_training_state, save_model
from models.dinet import DINet, DINetConfig
from models.syncnet import SyncNet
from models.wav2lip import Wav2Lip, Wav2LipConfig
from training.dinet_trainer import Trainer, train_step, warm_up_audio
from training.run import prepare_run_dir
from training.schedule import learning_rate
from utils.errors import UserError
from utils.files import read_jsonl

ROOT = Path(__file__).resolve().parents[1]
TINY = """
mouth_size: 32
batch_size: 2
max_steps: 4
warmup_steps: 2
loss_weights: {pixel: 1.0, perceptual: 10.0, adversarial: 0.0}
precision: fp32
log_every: 1
validate_every: 3
image_every: 2
save_every: 2
val_frames: 2
"""
ADVERSARIAL_BF16 = (
    TINY
    + """
mouth_size: 64
loss_weights: {pixel: 0.0, perceptual: 10.0, adversarial: 1.0}
adversarial_start: 1
precision: bf16
speaker_sampling_exponent: 0.5
"""
)


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def train(*flags: object) -> None:
    """`train_dinet.py` with these flags, in this process, on the CPU: GPUs do not repeat themselves to the bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_dinet.py", "--device", "cpu", *map(str, flags)])
        train_dinet.main()


def refusal(capsys: pytest.CaptureFixture, *flags: object) -> str:
    """The one line of a refused command line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        train(*flags)
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, prepared_dataset) -> Path:
    """The run directory of four steps without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(TINY)
    train("--config", folder / "tiny.yaml", "--data", prepared_dataset, "--run-dir", folder / "run")
    return folder / "run"


def assert_same(one: object, other: object, where: str = "state") -> None:
    """Equal to the bit, through dicts and lists."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def events(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir), size_guidance={SCALARS: 0, IMAGES: 0}).Reload()


def scalar_steps(run_dir: Path, name: str) -> list[int]:
    return [event.step for event in events(run_dir).Scalars(name)]


# --- interruption -------------------------------------------------------------------------------------------


def interrupted_at_step_4(monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    """Ctrl-C after three steps, the third of which is logged but not saved; then go on to the end."""

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


def assert_same_run(run_dir: Path, unbroken: Path) -> None:
    assert load_training_state(unbroken / "state.pt")["step"] == 4
    assert_same(load_training_state(run_dir / "state.pt"), load_training_state(unbroken / "state.pt"))
    for name in ("generator.safetensors", "log.jsonl", "config.yaml"):
        assert (run_dir / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert scalar_steps(run_dir, "train/perceptual") == [1, 2, 3, 4]
    assert scalar_steps(run_dir, "val/psnr_matched") == [3, 4]


def test_resumed_run_equals_unbroken_run(recipe, prepared_dataset, finished_run, monkeypatch, tmp_path):
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run")
    interrupted_at_step_4(monkeypatch, *flags)
    assert_same_run(tmp_path / "run", finished_run)


def test_resumed_adversarial_bf16_run_equals_unbroken_run(recipe, prepared_dataset, monkeypatch, tmp_path):
    recipe.write_text(ADVERSARIAL_BF16)
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir")
    train(*flags, tmp_path / "unbroken")
    interrupted_at_step_4(monkeypatch, *flags, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")
    moments = load_training_state(tmp_path / "run" / "state.pt")["discriminator_optimizer"]["state"]
    assert {int(moment["step"]) for moment in moments.values()} == {3}  # all but the one before it starts


KILLED_WHILE_SAVING = """
import io, os, signal, torch, train_dinet
save, calls = torch.save, []

def torn(state, file):
    calls.append(state["step"])
    if len(calls) < 3:  # steps 0 and 2 are saved whole
        return save(state, file)
    whole = io.BytesIO()
    save(state, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

torch.save = torn
train_dinet.main()
"""


def test_run_killed_while_saving_goes_on_from_the_save_before(recipe, prepared_dataset, finished_run, tmp_path):
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run", "--device", "cpu")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED_WHILE_SAVING, *map(str, flags)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert load_training_state(tmp_path / "run" / "state.pt")["step"] == 2
    assert load_model(tmp_path / "run" / "generator.safetensors").info["steps"] == 2
    with (tmp_path / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "pix')  # as a kill while logging leaves it

    train(*flags, "--resume")
    assert load_training_state(tmp_path / "run" / "state.pt")["step"] == 4
    assert not list((tmp_path / "run").glob("*.partial*"))
    log, expected = (read_jsonl(folder / "log.jsonl") for folder in (tmp_path / "run", finished_run))
    assert [(line["step"], *line) for line in log] == [(line["step"], *line) for line in expected]


def test_time_limit_stops_and_the_run_can_be_continued(recipe, prepared_dataset, tmp_path, capsys):
    run_dir = tmp_path / "run"
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir", run_dir, "--max-steps", 2)
    train(*flags, "--max-minutes", 1e-6)
    assert load_training_state(run_dir / "state.pt")["step"] == 1
    assert load_model(run_dir / "generator.safetensors").info["steps"] == 1
    assert "time is over at step 1" in capsys.readouterr().out

    assert "--run-dir" in refusal(capsys, *flags)
    assert "another max_steps;" in refusal(capsys, *flags[:-1], 3, "--resume")
    recipe.write_text(TINY + "seed: 1\nlearning_rate: 1.0e-3\n")
    assert "another seed, learning_rate;" in refusal(capsys, *flags, "--resume")
    assert load_training_state(run_dir / "state.pt")["step"] == 1

    recipe.write_text(TINY)
    train(*flags, "--resume")
    assert load_training_state(run_dir / "state.pt")["step"] == 2
    assert "finished at step 2" in capsys.readouterr().out


# --- the run directory --------------------------------------------------------------------------------------


def test_run_directory(finished_run):
    names = {
        path.name.split(".")[0] + path.suffix for path in finished_run.iterdir() if "tfevents" not in path.name
    }
    assert names == {"config.yaml", "state.pt", "generator.safetensors", "best.safetensors", "log.jsonl"}

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
    found = [line for line in read_jsonl(finished_run / "log.jsonl") if "lpips_matched" in line]
    assert best == min(found, key=lambda line: line["lpips_matched"])
    assert load_training_state(finished_run / "state.pt")["best"] == best["lpips_matched"]


def test_full_disk_keeps_the_last_state(recipe, prepared_dataset, tmp_path, monkeypatch, capsys):
    run, saved = tmp_path / "run", []
    write = checkpoint.torch.save

    def until_full(state, file):
        write(state, file)
        saved.append(state["step"])
        if len(saved) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", until_full)
    line = refusal(capsys, "--config", recipe, "--data", prepared_dataset, "--run-dir", run)
    assert line.endswith(f"{run / 'state.pt'}: cannot be written: No space left on device")
    assert saved == [0, 2, 4]
    monkeypatch.undo()
    assert load_training_state(run / "state.pt")["step"] == 2
    assert not list(run.glob("*.partial*"))
    train("--config", recipe, "--data", prepared_dataset, "--run-dir", run, "--resume")
    assert load_training_state(run / "state.pt")["step"] == 4


def test_tensorboard_events(finished_run):
    found = events(finished_run)
    log = [line for line in read_jsonl(finished_run / "log.jsonl") if "pixel" in line]
    for name in ("pixel", "perceptual"):
        values = [event.value for event in found.Scalars(f"train/{name}")]
        assert values == pytest.approx([line[name] for line in log])
    (tag,) = found.Tags()["images"]
    sizes = [(image.step, image.height, image.width) for image in found.Images(tag)]
    assert sizes == [(2, 2 * 52, 5 * 40), (4, 2 * 52, 5 * 40)]


def test_one_reference_is_enough(recipe, prepared_dataset, tmp_path):
    recipe.write_text(TINY + "num_references: 1\n")
    train("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run", "--max-steps", 1)
    found = events(tmp_path / "run")
    assert found.Images(found.Tags()["images"][0])[0].width == 4 * 40  # source, one reference, output, target


def test_dry_run_writes_nothing(recipe, prepared_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted([*tmp_path.rglob("*"), *prepared_dataset.rglob("*")])
    train("--config", recipe, "--data", prepared_dataset, "--dry-run")
    assert "nothing was written" in capsys.readouterr().out
    assert sorted([*tmp_path.rglob("*"), *prepared_dataset.rglob("*")]) == before


@pytest.mark.parametrize("split", ["train", "val"])
def test_dry_run_looks_at_both_splits(split, recipe, prepared_dataset, tmp_path, capsys):
    lines = [line for line in read_jsonl(prepared_dataset / "manifest.jsonl") if line["split"] != split]
    data = tmp_path / "data"
    data.mkdir()
    (data / "clips").symlink_to(prepared_dataset / "clips")
    (data / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    line = refusal(capsys, "--config", recipe, "--data", data, "--dry-run")
    assert "--data" in line
    assert f"{split} split" in line


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_refused_start_does_not_block_the_run_directory(recipe, tmp_path, capsys):
    run_dir = tmp_path / "run"
    line = refusal(capsys, "--config", recipe, "--data", tmp_path / "absent", "--run-dir", run_dir)
    assert "--data" in line
    prepare_run_dir(run_dir, load_config(recipe), resume=False)
    assert load_config(run_dir / "config.yaml") == load_config(recipe)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--device", "nonsense"), "--device nonsense"),
        (("--device", "meta"), "--device meta"),
        (("--max-minutes", "0"), "--max-minutes"),
        (("--max-minutes", "nan"), "--max-minutes"),
        (("--max-steps", "0"), "max_steps"),
        (("--resume",), "--resume"),
        (("--init-from", "absent.safetensors"), "absent.safetensors"),
        (("--run-dir", __file__), "--run-dir"),
        (("--config", "absent.yaml"), "--config"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, tuple) else "",
)
def test_refused_command_lines(recipe, prepared_dataset, tmp_path, capsys, flags, named):
    given = ("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "run")
    assert named in refusal(capsys, *given, *flags)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_clips_whose_loss_is_not_finite_are_named(recipe, prepared_dataset, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(prepared_dataset, data)
    (line,) = [line for line in read_jsonl(data / "manifest.jsonl") if line["split"] == "train"]
    path = data / "clips" / f"{line['id']}.npz"
    arrays = dict(np.load(path, allow_pickle=False))
    arrays["features"][:] = np.nan
    np.savez(path, **arrays)

    message = refusal(capsys, "--config", recipe, "--data", data, "--run-dir", tmp_path / "run")
    assert "step 0: a loss is not finite" in message
    assert line["id"] in message
    saved = load_training_state(tmp_path / "run" / "state.pt")["generator"]
    assert all(tensor.isfinite().all() for tensor in saved.values())


# --- one step -----------------------------------------------------------------------------------------------


def test_learning_rate_closed_form(recipe):
    config = replace(load_config(recipe), learning_rate=2e-4, warmup_steps=10, max_steps=100)
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


@pytest.fixture
def adversarial_trainer(recipe) -> Trainer:
    """Of the clip stage, with every loss there is."""
    torch.manual_seed(0)
    syncnet = SyncNet(384)
    torch.nn.init.normal_(syncnet.merge_encoder[-1].weight, std=0.05)
    judge = recipe.with_name("syncnet.safetensors")
    save_model(judge, syncnet, audio_features="whisper", mouth_size=64, info={}, bits=32)
    recipe.write_text(
        ADVERSARIAL_BF16
        + f"precision: fp32\nclip_length: 5\nsyncnet: {judge}\n"
        + "loss_weights: {pixel: 3, lips: 5, perceptual: 10, "
        + "adversarial: 2, clip_adversarial: 4, sync: 6}"
    )
    return Trainer.create(load_config(recipe), torch.device("cpu"))


@pytest.fixture
def batch(prepared_dataset) -> Batch:
    return TrainingBatches(load_clips(prepared_dataset, "train", 64, "whisper"), 2, 5, 1, 0, clip_length=5)[0]


def clips(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images[:5].reshape(1, 15, 104, 80), images[5:].reshape(1, 15, 104, 80)])


def test_clip_step_against_plain_autograd(adversarial_trainer, batch):
    trainer = adversarial_trainer
    trainer.step = 1  # where the adversarial losses start
    # In float32 a bias before a batch norm gets nothing but rounding, which differs from machine to machine.
    trainer.generator.double()
    trainer.generator.mask = lambda images: DINet.mask(images).double()
    batch = batch._replace(references=batch.references.double(), audio_window=batch.audio_window.double())
    generator, discriminators = deepcopy(trainer.generator), deepcopy(trainer.discriminators)
    losses = train_step(trainer, batch)

    references = batch.references.repeat_interleave(5, dim=0)
    output = generator(generator.mask(batch.target), references, batch.audio_window)
    frames, five = discriminators["adversarial"], discriminators["clip_adversarial"]
    pairs = [
        (frames(batch.target), frames(output.detach())),
        (five(clips(batch.target)), five(clips(output.detach()))),
    ]
    loss = sum(((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2 for real, fake in pairs)
    assert losses["discriminator"] == pytest.approx(loss.item(), rel=1e-4)
    gradients = torch.autograd.grad(loss, list(discriminators.parameters()))
    rows = zip(trainer.discriminators.named_parameters(), discriminators.parameters(), gradients, strict=True)
    for (name, new), old, gradient in rows:
        # no trace of the generator's loss, which these networks answered after their own step
        torch.testing.assert_close(new.grad, gradient, rtol=1e-3, atol=1e-6, msg=name)
        # Adam's first step in closed form, on the gradient it had
        rate = learning_rate(trainer.config, 1)
        torch.testing.assert_close(new.detach(), old.detach() - rate * new.grad / (new.grad.abs() + 1e-8))

    s = trainer.config.mouth_size
    error = (output - batch.target)[:, :, s * 13 // 16 : s * 21 // 16, s * 5 // 16 : s * 15 // 16]
    # the discriminators answer after their step
    frames, five = trainer.discriminators["adversarial"], trainer.discriminators["clip_adversarial"]
    mouths = clips(output)[:, :, s // 2 : s * 3 // 2, s // 8 : s * 9 // 8]
    expected = {
        "pixel": (3, (output - batch.target).abs().mean()),
        "lips": (5, error.abs().mean()),
        "perceptual": (10, trainer.perceptual(output, batch.target)),
        "adversarial": (2, ((frames(output) - 1) ** 2).mean()),
        "clip_adversarial": (4, ((five(clips(output)) - 1) ** 2).mean()),
        "sync": (6, ((trainer.syncnet.model(mouths, batch.sync_audio) - 1) ** 2).mean()),
    }
    assert set(losses) == {*expected, "discriminator"}
    for name, (_, value) in expected.items():
        assert losses[name] == pytest.approx(value.item(), rel=1e-4), name
    total = sum(weight * value for weight, value in expected.values())
    gradients = torch.autograd.grad(total, list(generator.parameters()))
    for (name, new), gradient in zip(trainer.generator.named_parameters(), gradients, strict=True):
        scale = gradient.abs().max().item()
        torch.testing.assert_close(new.grad, gradient, rtol=1e-3, atol=1e-4 * scale + 1e-9, msg=name)


@pytest.mark.parametrize(
    ("lines", "references", "audio_dim"),
    [
        ("generator: wav2lip_96\nnum_references: 1\naudio_features: mel\n", 1, 1280),
        ("deformation: flow\n", 5, 384),
        ("inpainting: false\n", 5, 384),
    ],
)
def test_other_generators_take_steps(recipe, lines, references, audio_dim):
    recipe.write_text(TINY + "mouth_size: 64\n" + lines)
    trainer = Trainer.create(load_config(recipe), torch.device("cpu"))
    before = {name: weight.clone() for name, weight in trainer.generator.named_parameters()}
    audio = torch.rand(2, audio_dim, 9)
    batch = Batch(
        torch.rand(2, 3, 104, 80), torch.rand(2, 3 * references, 104, 80), audio[..., :5], audio, ["a", "b"]
    )
    for _ in range(2):  # at first the flow's last layer is 0, and what is before it gets no gradient
        losses = train_step(trainer, batch)
    assert losses.keys() == {"pixel", "perceptual"}
    assert not any(torch.equal(weight, before[name]) for name, weight in trainer.generator.named_parameters())


def test_a_larger_wav2lip_takes_the_stages_of_a_smaller_one(recipe):
    lines = TINY + "num_references: 1\naudio_features: mel\n"
    recipe.write_text(lines + "generator: wav2lip_96\n")
    small = Trainer.create(load_config(recipe), torch.device("cpu")).generator
    path = recipe.with_name("small.safetensors")
    save_model(path, small, audio_features="mel", mouth_size=32, info={}, bits=32)
    recipe.write_text(lines + f"generator: wav2lip_384\ninit_from: {path}\n")
    large = Trainer.create(load_config(recipe), torch.device("cpu")).generator
    inner = torch.rand(1, 16, 96, 96)  # what the stages that both have are given
    for mine, theirs in zip(large.face_encoder_blocks[3:], small.face_encoder_blocks[1:], strict=True):
        assert torch.equal(mine.eval()(inner), theirs.eval()(inner))
        inner = theirs(inner)
    for mine, theirs in zip(large.face_decoder_blocks, small.face_decoder_blocks, strict=False):
        assert str(mine.state_dict()) == str(theirs.state_dict())
    save_model(path, large, audio_features="mel", mouth_size=32, info={}, bits=32)
    recipe.write_text(lines + f"generator: wav2lip_192\ninit_from: {path}\n")
    with pytest.raises(UserError, match=r"expected Wav2LipConfig\(face_size=192"):
        Trainer.create(load_config(recipe), torch.device("cpu"))
    blue_first = Wav2Lip(Wav2LipConfig(bgr=True))  # as the authors' weights; its colours would be swapped
    save_model(path, blue_first, audio_features="mel", mouth_size=32, info={}, bits=32)
    with pytest.raises(UserError, match="expected Wav2LipConfig"):
        Trainer.create(load_config(recipe), torch.device("cpu"))


def test_frozen_norms_keep_their_statistics(recipe):
    recipe.write_text(TINY + "mouth_size: 64\n")
    start = Trainer.create(load_config(recipe), torch.device("cpu"))
    for buffer in start.generator.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    path = recipe.with_name("start.safetensors")
    recipe.write_text(TINY + "freeze_bn: true\n")
    with pytest.raises(UserError, match="freeze_bn: expected init_from"):
        Trainer.create(load_config(recipe), torch.device("cpu"))
    save_model(path, start.generator, audio_features="whisper", mouth_size=64, info={}, bits=32)
    recipe.write_text(TINY + f"mouth_size: 64\nfrozen_norms: true\ninit_from: {path}\n")
    trainer = Trainer.create(load_config(recipe), torch.device("cpu"))
    audio = torch.rand(2, 384, 9)
    batch = Batch(torch.rand(2, 3, 104, 80), torch.rand(2, 15, 104, 80), audio[..., :5], audio, ["a", "b"])
    with torch.no_grad():
        drawn = trainer.generator.eval()(trainer.generator.mask(batch.target), batch.references, batch.audio_window)
    trainer.generator.train()
    losses = train_step(trainer, batch)
    assert losses["pixel"] == pytest.approx((drawn - batch.target).abs().mean().item(), rel=1e-4)  # as at inference
    for name, buffer in trainer.generator.named_buffers():
        assert torch.equal(buffer, start.generator.get_buffer(name)), name


def test_before_their_start_the_discriminators_rest(adversarial_trainer, batch):
    trainer = adversarial_trainer
    before = deepcopy(trainer.discriminators.state_dict())
    losses = train_step(trainer, batch)
    assert set(losses) == {"pixel", "lips", "perceptual", "sync"}
    assert trainer.step == 1
    assert_same(dict(trainer.discriminators.state_dict()), dict(before))


def test_sync_target_real_asks_no_more_than_the_real_mouths_give(adversarial_trainer, batch):
    trainer = adversarial_trainer
    trainer.config = replace(trainer.config, sync_target="real")
    trainer.generator.forward = lambda *_: batch.target.clone().requires_grad_()  # a perfect generator
    assert train_step(trainer, batch)["sync"] == 0


@pytest.mark.parametrize(("mouth_size", "features"), [(128, "whisper"), (64, "deepspeech")])
def test_another_syncnet_is_refused(recipe, tmp_path, mouth_size, features):
    save_model(tmp_path / "judge", SyncNet(), audio_features=features, mouth_size=mouth_size, info={})
    recipe.write_text(
        ADVERSARIAL_BF16
        + f"clip_length: 5\nsyncnet: {tmp_path / 'judge'}\nloss_weights: {{sync: 1.0, adversarial: 0}}"
    )
    with pytest.raises(UserError, match="expected one for mouths of at most 64 pixels and whisper features, found"):
        Trainer.create(load_config(recipe), torch.device("cpu"))


def test_a_refused_step_leaves_the_generator_as_it_was(adversarial_trainer, batch):
    trainer = adversarial_trainer
    before = deepcopy([*trainer.generator.parameters()])
    target = batch.target.clone()
    target[1, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match=f"clips: {batch.clip_ids[0]}, {batch.clip_ids[1]}"):
        train_step(trainer, batch._replace(target=target))
    assert_same([*trainer.generator.parameters()], before)
    assert trainer.step == 0


@pytest.fixture
def driven_by_lips(recipe, prepared_dataset, tmp_path) -> Path:
    """A generator after four steps with the lips' own movements."""
    recipe.write_text(TINY + "audio_features: lips\n")
    train("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "lips")
    recipe.write_text(TINY)
    return tmp_path / "lips" / "generator.safetensors"


def heard(generator: DINet, features: list[np.ndarray]) -> torch.Tensor:
    """What AdaAT's first layer makes of features, without the alignment code."""
    rows = np.concatenate([audio_windows(part, np.arange(len(part))) for part in features])
    with torch.no_grad():
        codes = generator.eval().audio_encoder(torch.from_numpy(rows))
    return (
        codes @ generator.deformation.common.weight.detach()[:, 128:].T + generator.deformation.common.bias.detach()
    )


def test_audio_encoder_is_taught_the_codes_of_lips(recipe, prepared_dataset, driven_by_lips):
    config = replace(load_config(recipe), audio_warmup_steps=3, init_from=str(driven_by_lips))
    clips = load_clips(prepared_dataset, "train", 32, "whisper")
    teacher = load_model(driven_by_lips).model
    taught = []
    for _ in range(2):
        trainer = Trainer.create(config, torch.device("cpu"))
        warm_up_audio(trainer, teacher, clips)
        assert trainer.step == 0
        taught.append(trainer.generator)
    assert_same(dict(taught[0].state_dict()), dict(taught[1].state_dict()))  # the seed decides, nothing else
    before = teacher.state_dict()
    changed = {
        name.split(".")[0] for name, new in taught[0].state_dict().items() if not torch.equal(before[name], new)
    }
    assert changed == {"audio_encoder", "deformation"}
    assert torch.equal(taught[0].deformation.common.weight[:, :128], teacher.deformation.common.weight[:, :128])
    # however little it has learned, in the mean and in the variance over the clips it says as much as the lips did
    sound = heard(taught[0], [clip.features for clip in clips])
    lips = heard(teacher, [lip_features(clip.landmarks) for clip in clips])
    torch.testing.assert_close(sound.mean(dim=0), lips.mean(dim=0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(sound.var(dim=0).mean(), lips.var(dim=0).mean(), rtol=1e-3, atol=0)


def test_from_lips_to_sound(recipe, prepared_dataset, driven_by_lips, tmp_path, capsys):
    assert load_model(driven_by_lips).audio_features == "lips"
    recipe.write_text(TINY + f"init_from: {driven_by_lips}\n")
    flags = ("--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "sound")
    assert "expected DINetConfig" in refusal(capsys, *flags)  # without being taught it would not understand
    shutil.rmtree(tmp_path / "sound")
    recipe.write_text(TINY + f"init_from: {driven_by_lips}\naudio_warmup_steps: 2\n")
    train(*flags)
    assert load_model(tmp_path / "sound" / "generator.safetensors").audio_features == "whisper"
    recipe.write_text(TINY + "audio_warmup_steps: 2\n")
    assert "expected init_from with a generator driven by lips" in refusal(
        capsys, "--config", recipe, "--data", prepared_dataset, "--run-dir", tmp_path / "none"
    )


def test_init_from_starts_from_those_weights(recipe, tmp_path):
    torch.manual_seed(123)
    start = DINet(DINetConfig())
    saved = tmp_path / "start.safetensors"
    save_model(saved, start, audio_features="whisper", mouth_size=64, info={}, bits=32)
    config = replace(load_config(recipe), init_from=str(saved))
    trainer = Trainer.create(config, torch.device("cpu"))
    assert_same(dict(trainer.generator.state_dict()), dict(start.state_dict()))
    assert trainer.generator.training
    assert trainer.step == 0
    updated = trainer.generator_optimizer.param_groups[0]["params"]
    assert {id(parameter) for parameter in updated} == {id(p) for p in trainer.generator.parameters()}

    own = Trainer.create(replace(config, init_from=None), torch.device("cpu")).generator
    assert not torch.equal(own.decoder[-1].weight, start.decoder[-1].weight)


@pytest.mark.parametrize(("references", "features"), [(3, "whisper"), (5, "deepspeech")])
def test_init_from_another_kind_of_generator_is_refused(recipe, tmp_path, references, features):
    saved = tmp_path / "start.safetensors"
    model = DINet(DINetConfig(num_references=references))
    save_model(saved, model, audio_features=features, mouth_size=64, info={})
    with pytest.raises(UserError, match=r"init_from .*start\.safetensors: expected "):
        Trainer.create(replace(load_config(recipe), init_from=str(saved)), torch.device("cpu"))
