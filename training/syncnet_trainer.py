"""Training of SyncNet on matched and mismatched audio–video pairs: optimizer, warm-up, one training step."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from configs.schema import SyncNetConfig
from data_processing.audio.features import FEATURE_DIMS
from data_processing.audio.framing import audio_windows
from data_processing.batches import (
    SYNC_RADIUS,
    SyncBatch,
    clip_probabilities,
    draw_clips,
    mouth_stack,
    sample_augmentation,
    to_float,
)
from data_processing.dataset import Clip, thin
from data_processing.face.lips import LIP_FEATURES, lip_features
from models.checkpoint import SYNCNET, load_model, save_model
from models.syncnet import CLIP_LENGTH, SyncNet
from training import distributed
from training.schedule import cosine_decay, learning_rate
from training.steps import autocast, check_finite, micro_batches, optimizer_step
from utils.errors import ParameterError

TEMPERATURE = 0.05  # of the contrastive loss; cosine similarities lie in [0, 1]


@dataclass
class Trainer:
    """SyncNet with its optimizer, and the training progress.

    Attributes:
        step: number of training steps taken.
        best: highest accuracy on held-out speakers so far.
    """

    syncnet: SyncNet
    optimizer: torch.optim.AdamW
    config: SyncNetConfig
    device: torch.device
    step: int = 0
    best: float = 0.0

    def distribute(self) -> None:
        """Train jointly with the other processes of training/distributed.py from now on."""
        distributed.synchronize(self.syncnet)

    @classmethod
    def create(cls, config: SyncNetConfig, device: torch.device) -> "Trainer":
        """Network and optimizer at step 0, initialised from the seed or from `init_from`.

        Raises:
            ParameterError: `init_from` was trained with other audio features.
            CheckpointError: `init_from` cannot be read.
        """
        torch.manual_seed(config.seed)
        syncnet = SyncNet(FEATURE_DIMS[config.audio_features])
        if config.init_from:
            initial = load_model(config.init_from, kinds=SYNCNET)
            check_initial_syncnet(config, initial.audio_features)
            syncnet = initial.model.train()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        syncnet.to(device, memory_format=layout)
        options = {"weight_decay": config.weight_decay, "fused": device.type == "cuda" or None}
        optimizer = torch.optim.AdamW(syncnet.parameters(), lr=config.learning_rate, **options)
        return cls(syncnet, optimizer, config, device)

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs; batches and learning rate follow from the step."""
        return {
            "step": self.step,
            "best": self.best,
            "syncnet": self.syncnet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.syncnet.load_state_dict(state["syncnet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]


def check_initial_syncnet(config: SyncNetConfig, audio_features: str) -> None:
    """Raise ParameterError unless a run can start from a SyncNet of these audio features."""
    if audio_features != config.audio_features:
        reason = f"{config.init_from}: expected {config.audio_features} features, found {audio_features}"
        raise ParameterError("init_from", reason)


def train_step(trainer: Trainer, batch: SyncBatch) -> dict[str, float]:
    """One optimizer step on B mouth windows, each with matched audio and K mismatched audio windows.

    Returns:
        Averaged over the samples of all passes (`grad_accum_steps`) and processes:
        loss: least squares of the scores to 1 (matched) and 0 (mismatched), both with equal weight.
        contrast: cross-entropy of selecting the matched audio by the similarity of the codes; ln(1 + K) by chance.
        accuracy: fraction of matched pairs above 0.5 and of mismatched pairs below it, averaged.

    Raises:
        UserError: a loss is NaN or Inf; the message names the clips of the batch.
    """
    config = trainer.config
    sums: defaultdict[str, torch.Tensor | float] = defaultdict(float)
    trainer.optimizer.zero_grad()
    for part, share in micro_batches(batch, config.grad_accum_steps, trainer.device):
        values = _losses(trainer, part)
        for name, value in values.items():
            sums[name] += share * value.detach()
        (share * (values["loss"] + config.contrast_weight * values["contrast"])).backward()
    means = distributed.sum_values(sums)
    check_finite(means, trainer.step, batch.clip_ids)
    optimizer_step(trainer.optimizer, learning_rate(config, trainer.step))
    trainer.step += 1
    return means


def _losses(trainer: Trainer, batch: SyncBatch) -> dict[str, torch.Tensor]:
    """The values that `train_step` returns, for one forward pass."""
    syncnet, (size, choices) = trainer.syncnet, batch.audio.shape[:2]
    with autocast(trainer.config.precision, trainer.device):
        # a mouth window is encoded once for all its audio windows: almost all computation is in the face encoder
        face_codes = syncnet.face_encoder(batch.mouths)
        audio_codes = syncnet.audio_encoder(batch.audio.flatten(0, 1))
        scores = syncnet.merge(face_codes.repeat_interleave(choices, dim=0), audio_codes)
    scores = scores.unflatten(0, (size, choices))
    matched, mismatched = scores[:, 0], scores[:, 1:]
    similarity = F.cosine_similarity(
        face_codes.float().mean(dim=(2, 3))[:, None],
        audio_codes.float()[..., 0].unflatten(0, (size, choices)),
        dim=-1,
    )
    target = torch.zeros(size, dtype=torch.long, device=trainer.device)
    correct = [(matched.mean(dim=(-3, -2, -1)) > 0.5), (mismatched.mean(dim=(-3, -2, -1)) < 0.5)]
    return {
        "loss": ((matched - 1).square().mean() + mismatched.square().mean()) / 2,
        "contrast": F.cross_entropy(similarity / TEMPERATURE, target),
        "accuracy": sum(pairs.float().mean() for pairs in correct) / 2,
    }


def warm_up_shapes(trainer: Trainer, clips: Sequence[Clip]) -> None:
    """Train both encoders to predict the lip features, through one linear head that is discarded afterwards.

    From random weights, matching mouths to audio is hard to learn: neither encoder gets a useful gradient before
    the other one is good. Lip features from the landmarks give each encoder a target of its own, and the common
    head aligns their codes.
    """
    config = trainer.config
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    clips = thin(clips)
    cumulative = np.cumsum(clip_probabilities(clips, config.speaker_sampling_exponent, CLIP_LENGTH))
    lips = [lip_features(clip.landmarks) for clip in clips]
    head = nn.Linear(128, LIP_FEATURES).to(trainer.device)
    optimizer = torch.optim.AdamW([*trainer.syncnet.parameters(), *head.parameters()])

    def sample(count: int) -> list[tuple[int, int]]:
        """Clip numbers and frame indices."""
        numbers = draw_clips(rng, cumulative, count)
        return [(number, int(rng.integers(2, len(lips[number]) - 2))) for number in numbers]

    def head_loss(codes: torch.Tensor, samples: list[tuple[int, int]]) -> torch.Tensor:
        target = np.stack([lips[number][index] for number, index in samples])
        return (head(codes).float() - torch.from_numpy(target).to(trainer.device)).square().mean()

    bar = tqdm(range(config.shape_warmup_steps), unit="step", desc="lip-shape warm-up")
    for step in bar:
        optimizer.param_groups[0]["lr"] = 5e-4 * cosine_decay(step, config.shape_warmup_steps)
        face_samples = sample(config.batch_size)
        audio_samples = sample(8 * config.batch_size)  # the audio encoder is cheap
        mouths = np.stack([mouth_stack(clips[n], index, *sample_augmentation(rng)) for n, index in face_samples])
        audio = np.stack(
            [audio_windows(clips[n].features, np.array([index]), SYNC_RADIUS)[0] for n, index in audio_samples]
        )
        with autocast(config.precision, trainer.device):
            images = to_float(torch.from_numpy(mouths).to(trainer.device))
            face_codes = trainer.syncnet.face_encoder(images).mean(dim=(2, 3))
            audio_codes = trainer.syncnet.audio_encoder(torch.from_numpy(audio).to(trainer.device))[..., 0]
            losses = [head_loss(face_codes, face_samples), head_loss(audio_codes, audio_samples)]
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        optimizer.step()
        bar.set_postfix(face_loss=f"{losses[0].item():.3f}", audio_loss=f"{losses[1].item():.3f}")


def save_release(trainer: Trainer, path: Path, info: dict[str, Any]) -> None:
    """Save SyncNet for train_dinet.py, with notes on its training (`info`, JSON values)."""
    config = trainer.config
    save_model(
        path,
        trainer.syncnet,
        audio_features=config.audio_features,
        mouth_size=config.mouth_size,
        info={"steps": trainer.step, "batch_size": config.batch_size, "seed": config.seed, **info},
    )
