"""Training of SyncNet on matched and mismatched audio–video pairs: optimizer, warm-up, one training step."""

from dataclasses import dataclass, field
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
    mouth_stack,
    sample_augmentation,
)
from data_processing.dataset import Clip
from data_processing.face.lips import LIP_FEATURES, lip_features
from models.checkpoint import SYNCNET, load_model, save_model
from models.syncnet import SyncNet
from training import distributed
from training.run import autocast, check_finite
from training.schedule import cosine_decay, learning_rate
from utils.errors import ParameterError

TEMPERATURE = 0.05  # of the contrastive loss; cosine similarities lie in [0, 1]


class PairScorer(nn.Module):
    """SyncNet's forward pass for B mouth windows with K audio windows each.

    Each mouth window is encoded only once, because almost all computation is in the face encoder.
    """

    def __init__(self, syncnet: SyncNet) -> None:
        super().__init__()
        self.syncnet = syncnet

    def forward(self, mouths: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode and score.

        Args:
            mouths: (B, 15, S, S), RGB in [0, 1].
            audio: (B·K, D, 9), the K audio windows of a mouth window one after another.

        Returns:
            Scores (B·K, 1, S/32, S/32), face codes (B, 128, S/32, S/32), audio codes (B·K, 128, 1).
        """
        face_codes, audio_codes = self.syncnet.face_encoder(mouths), self.syncnet.audio_encoder(audio)
        repeated = face_codes.repeat_interleave(len(audio) // len(mouths), dim=0)
        return self.syncnet.merge(repeated, audio_codes), face_codes, audio_codes


@dataclass
class Trainer:
    """SyncNet with its optimizer, and the training progress.

    Attributes:
        parallel: a PairScorer of `syncnet` for the forward pass of a step, wrapped when several processes train.
        step: number of training steps taken.
        best: highest accuracy on held-out speakers so far.
    """

    syncnet: SyncNet
    optimizer: torch.optim.AdamW
    config: SyncNetConfig
    device: torch.device
    parallel: nn.Module = field(init=False)
    step: int = 0
    best: float = 0.0

    def __post_init__(self) -> None:
        self.parallel = PairScorer(self.syncnet)

    def distribute(self) -> None:
        """Train jointly with the other processes of training/distributed.py from now on."""
        self.parallel = distributed.wrap(self.parallel)

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
            if initial.audio_features != config.audio_features:
                raise ParameterError(
                    "init_from",
                    f"{config.init_from}: expected {config.audio_features} features, "
                    f"found {initial.audio_features}",
                )
            syncnet = initial.model.train()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        syncnet.to(device, memory_format=layout)
        optimizer = torch.optim.AdamW(
            syncnet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
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


def train_step(trainer: Trainer, batch: SyncBatch) -> dict[str, float]:
    """One optimizer step on B mouth windows, each with matched audio and K mismatched audio windows.

    Returns:
        Averaged over all processes:
        loss: least squares of the scores to 1 (matched) and 0 (mismatched), both with equal weight.
        contrast: cross-entropy of selecting the matched audio by the similarity of the codes; ln(1 + K) by chance.
        accuracy: fraction of matched pairs above 0.5 and of mismatched pairs below it, averaged.

    Raises:
        UserError: a loss is NaN or Inf; the message names the clips of the batch.
    """
    trainer.optimizer.param_groups[0]["lr"] = learning_rate(trainer.config, trainer.step)
    mouths, audio = batch.mouths.to(trainer.device), batch.audio.to(trainer.device)
    size, choices = audio.shape[:2]
    with autocast(trainer.config.precision, trainer.device):
        scores, face_codes, audio_codes = trainer.parallel(mouths, audio.flatten(0, 1))
    scores = scores.unflatten(0, (size, choices))
    matched, mismatched = scores[:, 0], scores[:, 1:]
    loss = ((matched - 1).square().mean() + mismatched.square().mean()) / 2
    similarity = F.cosine_similarity(
        face_codes.float().mean(dim=(2, 3))[:, None],
        audio_codes.float()[..., 0].unflatten(0, (size, choices)),
        dim=-1,
    )
    target = torch.zeros(size, dtype=torch.long, device=trainer.device)
    contrast = F.cross_entropy(similarity / TEMPERATURE, target)
    matched, mismatched = (score.detach().mean(dim=(-3, -2, -1)) for score in (matched, mismatched))
    values = {
        "loss": loss.item(),
        "contrast": contrast.item(),
        "accuracy": ((matched > 0.5).float().mean() + (mismatched < 0.5).float().mean()).item() / 2,
    }
    values = distributed.all_reduce_mean(values, trainer.device)
    check_finite(values, trainer.step, batch.clip_ids)
    trainer.optimizer.zero_grad(set_to_none=True)
    (loss + trainer.config.contrast_weight * contrast).backward()
    trainer.optimizer.step()
    trainer.step += 1
    return values


def warm_up_shapes(trainer: Trainer, clips: list[Clip]) -> None:
    """Train both encoders to predict the lip features, through one linear head that is discarded afterwards.

    From random weights, matching mouths to audio is hard to learn: neither encoder gets a useful gradient before
    the other one is good. Lip features from the landmarks give each encoder a target of its own, and the common
    head aligns their codes.
    """
    config = trainer.config
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    probabilities = clip_probabilities(clips, config.speaker_sampling_exponent)
    lips = [lip_features(clip.landmarks) for clip in clips]
    head = nn.Linear(128, LIP_FEATURES).to(trainer.device)
    optimizer = torch.optim.AdamW([*trainer.syncnet.parameters(), *head.parameters()])

    def sample(count: int) -> list[tuple[int, int]]:
        """Clip numbers and frame indices."""
        numbers = rng.choice(len(clips), count, p=probabilities)
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
            face_codes = trainer.syncnet.face_encoder(torch.from_numpy(mouths).to(trainer.device)).mean(dim=(2, 3))
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
