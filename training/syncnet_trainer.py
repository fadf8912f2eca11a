"""TODO."""

import math
from contextlib import nullcontext
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
    mouth_stack,
    sample_augmentation,
)
from data_processing.dataset import Clip
from data_processing.face.lips import LIP_FEATURES, lip_features
from models.checkpoint import SYNCNET, load_model, save_model
from models.syncnet import SyncNet
from training import distributed
from training.run import check_finite
from training.schedule import learning_rate
from utils.errors import UserError

TEMPERATURE = 0.05  # of the contrast: the codes' likeness lies in [0, 1]


class PairScorer(nn.Module):
    """Moments (B, 15, S, S), each with K sounds (B·K, D, 9) -> their scores, and the codes of both.

    The mouths, where all the work is, are encoded once for all K.
    """

    def __init__(self, syncnet: SyncNet) -> None:
        super().__init__()
        self.syncnet = syncnet

    def forward(self, mouths: torch.Tensor, sounds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        faces, codes = self.syncnet.face_encoder(mouths), self.syncnet.audio_encoder(sounds)
        repeated = faces.repeat_interleave(len(sounds) // len(mouths), dim=0)
        return self.syncnet.merge(repeated, codes), faces, codes


@dataclass
class Trainer:
    """SyncNet with its optimizer, the number of steps taken and the best held-out accuracy so far.

    parallel: SyncNet's parts, see Comparison, as a step calls them.
    """

    syncnet: SyncNet
    optimizer: torch.optim.AdamW
    config: SyncNetConfig
    device: torch.device
    parallel: nn.Module | None = None
    step: int = 0
    best: float = 0.0

    def __post_init__(self) -> None:
        self.parallel = PairScorer(self.syncnet)

    def share(self) -> None:
        """Let the processes of processes.py train together from now on."""
        self.parallel = distributed.wrap(self.parallel)

    @classmethod
    def create(cls, config: SyncNetConfig, device: torch.device) -> "Trainer":
        """Network and optimizer at step 0, from the seed or from `init_from`."""
        torch.manual_seed(config.seed)
        syncnet = SyncNet(FEATURE_DIMS[config.audio_features])
        if config.init_from:
            start = load_model(config.init_from, kinds=SYNCNET)
            if start.audio_features != config.audio_features:
                raise UserError(
                    f"init_from {config.init_from}: expected {config.audio_features} features, "
                    f"found {start.audio_features}"
                )
            syncnet = start.model.train()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        syncnet.to(device, memory_format=layout)
        optimizer = torch.optim.AdamW(
            syncnet.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return cls(syncnet, optimizer, config, device)

    def autocast(self):
        """bf16 autocast where the configuration asks for it."""
        return (
            torch.autocast(self.device.type, torch.bfloat16) if self.config.precision == "bf16" else nullcontext()
        )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs; batches and learning rate follow from the step."""
        return {
            "step": self.step,
            "best": self.best,
            "syncnet": self.syncnet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.syncnet.load_state_dict(state["syncnet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]


def train_step(trainer: Trainer, batch: SyncBatch) -> dict[str, float]:
    """One step: every moment's mouths, encoded once, with their own sound and with wrong ones.

    Returns:
        loss, least squares of the scores to 1 and 0, as the sync loss reads them, right and wrong in equal weight;
        contrast, how badly the codes alone tell the own sound among the others (ln(1 + K) by chance); accuracy,
        the share of right and of wrong pairs on their side of 0.5, averaged.

    Raises:
        UserError: the loss is not finite; the clips of the batch are named.
    """
    trainer.optimizer.param_groups[0]["lr"] = learning_rate(trainer.config, trainer.step)
    mouths, sounds = batch.mouths.to(trainer.device), batch.audio.to(trainer.device)
    size, choices = sounds.shape[:2]
    with trainer.autocast():
        scores, faces, codes = trainer.parallel(mouths, sounds.flatten(0, 1))
    scores = scores.unflatten(0, (size, choices))
    right, wrong = scores[:, 0], scores[:, 1:]
    loss = ((right - 1).square().mean() + wrong.square().mean()) / 2
    likeness = F.cosine_similarity(
        faces.float().mean(dim=(2, 3))[:, None], codes.float()[..., 0].unflatten(0, (size, choices)), dim=-1
    )
    contrast = F.cross_entropy(likeness / TEMPERATURE, torch.zeros(size, dtype=torch.long, device=trainer.device))
    right, wrong = (score.detach().mean(dim=(-3, -2, -1)) for score in (right, wrong))
    values = {
        "loss": loss.item(),
        "contrast": contrast.item(),
        "accuracy": ((right > 0.5).float().mean() + (wrong < 0.5).float().mean()).item() / 2,
    }
    values = distributed.all_reduce_mean(values, trainer.device)
    check_finite(values, trainer.step, batch.clip_ids)
    trainer.optimizer.zero_grad(set_to_none=True)
    (loss + trainer.config.contrast_weight * contrast).backward()
    trainer.optimizer.step()
    trainer.step += 1
    return values


def warm_up_shapes(trainer: Trainer, clips: list[Clip]) -> None:
    """Teach either encoder alone to tell how the lips stand, through a linear head that is thrown away.

    Whether a mouth fits a sound is hard to learn for two encoders that know nothing of mouths: both have to be
    right before either is rewarded. Shapes from the landmarks reward each by itself, and the head they share makes
    them speak of it in the same way.
    """
    config = trainer.config
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    probabilities = clip_probabilities(clips, config.speaker_sampling_exponent)
    shapes = [lip_features(clip.landmarks) for clip in clips]
    head = nn.Linear(128, LIP_FEATURES).to(trainer.device)
    optimizer = torch.optim.AdamW([*trainer.syncnet.parameters(), *head.parameters()])

    def draw(count: int) -> list[tuple[int, int]]:
        numbers = rng.choice(len(clips), count, p=probabilities)
        return [(number, int(rng.integers(2, len(shapes[number]) - 2))) for number in numbers]

    def unexplained(codes: torch.Tensor, drawn: list[tuple[int, int]]) -> torch.Tensor:
        wanted = np.stack([shapes[number][middle] for number, middle in drawn])
        return (head(codes).float() - torch.from_numpy(wanted).to(trainer.device)).square().mean()

    bar = tqdm(range(config.shape_warmup_steps), unit="step", desc="lips")
    for step in bar:
        optimizer.param_groups[0]["lr"] = 5e-4 * 0.5 * (1 + math.cos(math.pi * step / config.shape_warmup_steps))
        seen, heard = draw(config.batch_size), draw(8 * config.batch_size)  # sounds cost next to nothing
        mouths = np.stack([mouth_stack(clips[n], middle, *sample_augmentation(rng)) for n, middle in seen])
        audio = np.stack(
            [audio_windows(clips[n].features, np.array([middle]), SYNC_RADIUS)[0] for n, middle in heard]
        )
        with trainer.autocast():
            faces = trainer.syncnet.face_encoder(torch.from_numpy(mouths).to(trainer.device)).mean(dim=(2, 3))
            sounds = trainer.syncnet.audio_encoder(torch.from_numpy(audio).to(trainer.device))[..., 0]
            losses = [unexplained(faces, seen), unexplained(sounds, heard)]
        optimizer.zero_grad(set_to_none=True)
        sum(losses).backward()
        optimizer.step()
        bar.set_postfix(unexplained_by_picture=f"{losses[0].item():.3f}", by_sound=f"{losses[1].item():.3f}")


def save_release(trainer: Trainer, path: Path, info: dict[str, Any]) -> None:
    """Save SyncNet for train_dinet.py, with what has to be known of its training."""
    config = trainer.config
    notes = {"steps": trainer.step, "batch_size": config.batch_size, "seed": config.seed, **info}
    save_model(
        path, trainer.syncnet, audio_features=config.audio_features, mouth_size=config.mouth_size, info=notes
    )
