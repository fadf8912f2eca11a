"""Training in several processes, on the CPU: they take the same steps as one process."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import train_dinet
import train_syncnet
from configs.schema import SyncNetConfig, load_config
from data_processing.batches import Batch, SyncBatch
from models.blocks import ConvBlock
from models.checkpoint import LoadedModel, load_training_state, save_model
from models.syncnet import SyncNet
from tests.support.commands import run_command_line
from tests.support.training import SmallGenerator
from training import dinet_trainer, distributed, syncnet_trainer
from training.run import process_samples
from utils.errors import ParameterError
from utils.files import read_jsonl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ALL_LOSSES = """
mouth_size: 64
clip_length: 5
batch_size: 2
max_steps: 1
precision: fp32
num_references: 2
loss_weights: {pixel: 1.0, lips: 1.0, perceptual: 10.0, adversarial: 1.0, clip_adversarial: 1.0, sync: 0.1}
log_every: 1
validate_every: 1
val_frames: 1
"""
SYNCNET = """
mouth_size: 32
batch_size: 2
max_steps: 3
precision: fp32
shape_warmup_steps: 2
log_every: 1
validate_every: 3
"""


def run(processes: int, script: str, *flags: object) -> subprocess.CompletedProcess:
    """Run a command in several processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, script, "--device", "cpu", *map(str, flags)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def log_lines(run_dir: Path, key: str) -> list[dict[str, float]]:
    """The lines of log.jsonl that have a value for `key`."""
    return [line for line in read_jsonl(run_dir / "log.jsonl") if key in line]


def assert_same_losses(one: Path, two: Path, key: str, steps: int) -> None:
    one_lines, two_lines = log_lines(one, key), log_lines(two, key)
    assert [line["step"] for line in two_lines] == [line["step"] for line in one_lines] == list(range(1, steps + 1))
    for one_line, two_line in zip(one_lines, two_lines, strict=True):
        assert two_line == pytest.approx(one_line, rel=1e-3)


def gradient(optimizer: dict) -> torch.Tensor:
    """What Adam has after its first step: all gradients, times a constant."""
    return torch.cat([part["exp_avg"].flatten() for part in optimizer["state"].values()])


def test_generator_with_all_losses(prepared_dataset, tmp_path):
    torch.manual_seed(0)
    syncnet = tmp_path / "syncnet.safetensors"
    save_model(syncnet, SyncNet(384), audio_features="whisper", mouth_size=64, info={})
    (tmp_path / "all.yaml").write_text(ALL_LOSSES + f"syncnet: {syncnet}\n")
    flags = ("train_dinet.py", "--config", tmp_path / "all.yaml", "--data", prepared_dataset, "--run-dir")
    run_command_line(train_dinet.main, "--device", "cpu", *flags[1:], tmp_path / "1")
    done = run(2, *flags, tmp_path / "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 1") == 1  # only process 0 prints
    assert_same_losses(tmp_path / "1", tmp_path / "2", "perceptual", steps=1)
    one, two = (load_training_state(tmp_path / name / "state.pt") for name in ("1", "2"))
    for name, value in one["generator"].items():
        if "running" in name:  # statistics of the whole batch
            torch.testing.assert_close(two["generator"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    # that of the generator depends on the signs of the smallest gradients of the discriminators, which are noise
    first, second = (gradient(state["discriminator_optimizer"]) for state in (one, two))
    assert (second - first).norm() < 1e-3 * first.norm()


def test_syncnet_and_a_process_without_a_sample(prepared_dataset, tmp_path):
    """There are two samples: the third process ends at once."""
    (tmp_path / "tiny.yaml").write_text(SYNCNET)
    flags = ("train_syncnet.py", "--config", tmp_path / "tiny.yaml", "--data", prepared_dataset, "--run-dir")
    run_command_line(train_syncnet.main, "--device", "cpu", *flags[1:], tmp_path / "1")
    done = run(3, *flags, tmp_path / "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 3") == 1
    assert_same_losses(tmp_path / "1", tmp_path / "3", "contrast", steps=3)


# --- one step, in float64, with small networks ----------------------------------------------------------------

SAMPLES, FRAMES = 10, 5
DISCRIMINATORS = {"adversarial": 1, "clip_adversarial": FRAMES}  # frames that each sees


def small_trainer(grad_accum_steps: int, freeze_bn: bool) -> dinet_trainer.Trainer:
    weights = {
        "pixel": 3.0,
        "lips": 5.0,
        "perceptual": 2.0,
        "adversarial": 2.0,
        "clip_adversarial": 4.0,
        "sync": 6.0,
    }
    config = replace(
        load_config(ROOT / "configs/stages/frame_64.yaml"),
        **{"mouth_size": 32, "precision": "fp32", "clip_length": FRAMES, "batch_size": SAMPLES},
        **{"loss_weights": weights, "grad_accum_steps": grad_accum_steps, "freeze_bn": freeze_bn},
    )
    torch.manual_seed(0)
    generator = SmallGenerator(audio_dim=4, num_references=2)
    discriminators = torch.nn.ModuleDict(
        {name: torch.nn.Conv2d(3 * frames, 1, 5, 2) for name, frames in DISCRIMINATORS.items()}
    )
    syncnet = LoadedModel(SyncNet(4).requires_grad_(False), "whisper", 32, {})
    return dinet_trainer.Trainer(
        generator,
        discriminators,
        torch.optim.Adam(generator.parameters()),
        torch.optim.Adam(discriminators.parameters()),
        lambda output, target: (output - target).square().mean(),  # in place of the perceptual loss
        syncnet,
        config,
        torch.device("cpu"),
    )


def generator_step(grad_accum_steps: int, freeze_bn: bool = False) -> dict[str, torch.Tensor]:
    """Losses, gradients and running statistics of one step of the generator and the discriminators."""
    trainer = small_trainer(grad_accum_steps, freeze_bn)
    trainer.distribute()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(SAMPLES, FRAMES, 9, 52, 40, generator=generator, dtype=torch.float64)
    audio = torch.rand(SAMPLES, 4, 9, generator=generator, dtype=torch.float64)
    own = process_samples(trainer.config)
    windows = audio.unfold(2, 5, 1).transpose(1, 2)[own].flatten(0, 1)
    target, references = images[own, :, :3].flatten(0, 1), images[own, 0, 3:]
    batch = Batch(target, references, windows, audio[own], [""] * SAMPLES)
    networks = torch.nn.ModuleDict({"generator": trainer.generator, **trainer.discriminators})
    return step_values(networks, lambda: dinet_trainer.train_step(trainer, batch))


def syncnet_step(grad_accum_steps: int) -> dict[str, torch.Tensor]:
    """Losses and gradients of one step of SyncNet."""
    settings = {"mouth_size": 32, "precision": "fp32", "audio_features": "phoneme", "batch_size": SAMPLES}
    settings |= {"grad_accum_steps": grad_accum_steps, "channels_last": False}
    config = load_config(ROOT / "configs/stages/syncnet_64.yaml", settings, SyncNetConfig)
    trainer = syncnet_trainer.Trainer.create(config, torch.device("cpu"))
    trainer.distribute()
    generator = torch.Generator().manual_seed(1)
    mouths = torch.rand(SAMPLES, 15, 32, 32, generator=generator, dtype=torch.float64)
    audio = torch.rand(SAMPLES, 3, 29, 9, generator=generator, dtype=torch.float64)
    own = process_samples(config)
    batch = SyncBatch(mouths[own], audio[own], [""] * SAMPLES)
    return step_values(trainer.syncnet, lambda: syncnet_trainer.train_step(trainer, batch))


def step_values(network: torch.nn.Module, step: Callable[[], dict[str, float]]) -> dict[str, torch.Tensor]:
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    losses = step()
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} is not trained"
    return {
        **{name: torch.tensor(value) for name, value in losses.items()},
        **{name: parameter.grad for name, parameter in network.named_parameters()},
        **{name: buffer for name, buffer in network.named_buffers() if buffer.is_floating_point()},
    }


STEPS = {
    "generator": partial(generator_step, 1),
    "generator, three passes": partial(generator_step, 3),
    "generator, three passes, frozen norms": partial(generator_step, 3, True),
    "SyncNet": partial(syncnet_step, 1),
    "SyncNet, three passes": partial(syncnet_step, 3),
}


def use_float64(patch: pytest.MonkeyPatch) -> None:
    """Compute everything in float64, also where the code asks for float32."""
    patch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)


def steps_in_process(number: int, folder: Path, ports: list[int]) -> None:
    """Take the steps in two processes, the third of which has no sample, then in three."""
    torch.set_num_threads(1)
    use_float64(pytest.MonkeyPatch())
    for processes, port in zip((2, 3), ports, strict=True):
        os.environ |= {"WORLD_SIZE": "3", "RANK": f"{number}", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
        if processes == 2 and number == 2:
            with pytest.raises(SystemExit):
                distributed.init(torch.device("cpu"), processes)
            continue
        distributed.init(torch.device("cpu"), processes)
        for name, step in STEPS.items():
            torch.save(step(), folder / f"{name} {processes} {number}")
        distributed.shutdown()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.fixture
def float64():
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        yield
    torch.set_default_dtype(torch.float32)


def test_two_and_three_processes_take_the_step_of_one(float64, tmp_path):
    """Ten samples, in one pass or in three: the shares are not equal."""
    ports = [free_port(), free_port()]
    torch.multiprocessing.set_forkserver_preload([__name__])  # imports PyTorch once, not three times
    torch.multiprocessing.start_processes(steps_in_process, (tmp_path, ports), nprocs=3, start_method="forkserver")
    for name, step in STEPS.items():
        expected = step()
        for processes in (2, 3):
            for number in range(processes):
                assert_close(torch.load(tmp_path / f"{name} {processes} {number}"), expected)


def test_passes_take_the_step_of_one_pass(float64):
    """But for batch norms that see the samples of a pass."""
    assert_close(generator_step(3, freeze_bn=True), generator_step(1, freeze_bn=True))
    assert_close(syncnet_step(3), syncnet_step(1))
    one, three = generator_step(1), generator_step(3)
    assert (one["generator.images.conv.weight"] - three["generator.images.conv.weight"]).abs().max() > 1e-6


def test_replaced_batch_norms_have_the_parameters_that_the_optimizer_trains():
    network = ConvBlock(3, 4, 3)
    parameters, names = [*network.parameters()], [*network.state_dict()]
    distributed._convert_batchnorm(network)
    assert isinstance(network.norm, distributed.CpuSyncBatchNorm)
    assert all(new is old for new, old in zip(network.parameters(), parameters, strict=True))
    assert [*network.state_dict()] == names


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ParameterError, match="2 GPUs on this machine; start at most as many processes") as caught:
        distributed.init(torch.device("cuda"), 8)
    assert caught.value.parameter == "device"


def test_shares_are_disjoint_and_complete(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shares = []
    for number in range(3):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        shares.append([list(part) for part in distributed.shares(7, 2)])
    assert shares == [[[0], [3, 6]], [[1], [4]], [[2], [5]]]
