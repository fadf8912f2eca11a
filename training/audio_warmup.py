"""Warm-up of an audio encoder: it learns the codes of a lip-driven generator before any image is generated."""

import logging
import math
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data_processing.audio.framing import audio_windows
from data_processing.dataset import Clip, thin
from data_processing.face.lips import lip_features
from models.dinet import DINet
from training.dinet_trainer import Trainer
from training.schedule import cosine_decay

CHECK_EVERY = 100  # steps between two checks on held-out speakers
logger = logging.getLogger(__name__)


def fit_whitening(trainer: Trainer, clips: Sequence[Clip]) -> None:
    """Set the whitening in front of a new audio encoder to the audio features of the training clips."""
    features = np.concatenate([clip.features for clip in thin(clips)])
    trainer.generator.audio_encoder[0].fit(torch.from_numpy(features).to(trainer.device))


def warm_up_audio(trainer: Trainer, teacher: DINet, clips: Sequence[Clip], held_out: Sequence[Clip]) -> None:
    """Train the audio encoder alone to predict the codes of a lip-driven generator from the audio.

    The target is what AdaAT's first layer computes from `teacher`'s code of the lip features. Lip features also
    change with the pose of the head, which the audio does not tell. Therefore the mean of every speaker is removed
    from the target, and errors count relative to the speaker's variance. The weights with the lowest error on
    held-out speakers are kept. A regression predicts the conditional mean, so the predictions vary less than the
    targets and the lips would move too little. At the end the layer is rescaled so that mean and variance,
    relative as above, equal those of the targets.

    Args:
        trainer: its generator is `init_from` with a new audio encoder.
        teacher: the generator of `init_from`, driven by lip features, on the trainer's device.
        clips: training clips, with the audio features of the trainer's configuration; of very many, some are used.
        held_out: validation clips, likewise.
    """
    config, encoder = trainer.config, trainer.generator.audio_encoder
    clips, held_out = thin(clips), thin(held_out)
    # The columns of AdaAT's first layer that multiply the audio code; the others multiply the alignment code.
    layer = trainer.generator.deformation.common
    weight = layer.weight.detach()[:, 128:].clone()

    def lip_codes(clips: Sequence[Clip]) -> torch.Tensor:
        windows = _Windows([lip_features(clip.landmarks) for clip in clips], trainer.device)
        return _encode(teacher.audio_encoder, windows) @ weight.T

    audio, held_out_audio = (
        _Windows([clip.features for clip in part], trainer.device) for part in (clips, held_out)
    )
    codes = lip_codes(clips)
    target, weights = _per_speaker(codes, clips)
    held_out_target, held_out_weights = _per_speaker(lip_codes(held_out), held_out)

    def held_out_error() -> float:
        """Unexplained part of the variance within held-out speakers, mean over their frames."""
        predicted, _ = _per_speaker(_encode(encoder, held_out_audio) @ weight.T, held_out)
        return float(((predicted - held_out_target).square().mean(dim=1) * held_out_weights).mean())

    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    encoder.requires_grad_(True)  # also if it is frozen afterwards
    optimizer = torch.optim.AdamW(encoder.parameters(), weight_decay=0.2)
    best_error, best_step, best_state = math.inf, 0, {}
    bar = tqdm(range(1, config.audio_warmup_steps + 1), unit="step", desc="audio encoder warm-up")
    for step in bar:
        optimizer.param_groups[0]["lr"] = 2e-3 * cosine_decay(step - 1, config.audio_warmup_steps)
        indices = torch.from_numpy(rng.integers(len(target), size=256)).to(trainer.device)
        errors = (encoder(audio[indices]) @ weight.T - target[indices]).square().mean(dim=1)
        loss = (errors * weights[indices]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == config.audio_warmup_steps:
            error = held_out_error()
            bar.set_postfix(unexplained_variance=f"{loss.item():.3f}", held_out=f"{error:.3f}")
            if error < best_error:
                best_error, best_step, best_state = error, step, deepcopy(encoder.state_dict())
    encoder.load_state_dict(best_state)
    encoder.requires_grad_("audio_encoder" not in config.frozen)
    predicted = _encode(encoder, audio) @ weight.T
    relative_variance = (_per_speaker(predicted, clips)[0].square().mean(dim=1) * weights).mean()
    gain = relative_variance.rsqrt()  # that of the targets is 1
    with torch.no_grad():
        layer.bias += codes.mean(dim=0) - gain * predicted.mean(dim=0)
        layer.weight[:, 128:] *= gain
    message = "audio encoder of step %d: %.3f of the held-out variance unexplained; codes rescaled by %.2f"
    logger.info(message, best_step, best_error, gain)


def _per_speaker(codes: torch.Tensor, clips: Sequence[Clip]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (N, C) of all frames without the mean over their speaker, and 1 / the speaker's variance, (N,)."""
    speakers = [clip.speaker for clip in clips for _ in clip.features]
    _, speaker, counts = np.unique(speakers, return_inverse=True, return_counts=True)
    speaker, counts = torch.from_numpy(speaker).to(codes.device), torch.from_numpy(counts).to(codes)
    mean = codes.new_zeros(len(counts), codes.shape[1]).index_add_(0, speaker, codes) / counts[:, None]
    centred = codes - mean[speaker]
    variance = codes.new_zeros(len(counts)).index_add_(0, speaker, centred.square().mean(dim=1)) / counts
    return centred, 1 / variance.clamp(min=1e-2 * codes.var(dim=0).mean())[speaker]


class _Windows:
    """Windows of rows of features, made on demand: `windows[indices]` is (B, D, 5)."""

    def __init__(self, features: list[np.ndarray], device: torch.device) -> None:
        """features: (T, D) of each clip."""
        starts = np.cumsum([0, *map(len, features)])
        rows = [
            start + audio_windows(np.arange(len(part))[:, None], np.arange(len(part)))[:, 0]
            for start, part in zip(starts, features, strict=False)
        ]
        self.features = torch.from_numpy(np.concatenate(features)).to(device)
        self.rows = torch.from_numpy(np.concatenate(rows)).to(device)  # (N, 5)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self.features[self.rows[indices]].transpose(1, 2)


@torch.no_grad()
def _encode(encoder: nn.Module, windows: _Windows) -> torch.Tensor:
    """Codes (N, 128) of all windows, in evaluation mode."""
    was_training = encoder.training
    encoder.eval()
    codes = torch.cat([encoder(windows[indices]) for indices in torch.arange(len(windows)).split(4096)])
    encoder.train(was_training)
    return codes
