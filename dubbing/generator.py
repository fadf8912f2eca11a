"""Faces in footage, and redrawing them: what dubbing does between reading and writing.

A `Redrawer` goes through footage once. For each of its `Speaker`s, a face and the sound it is to speak, it is told
where the face is a few seconds before it gets to it, and has the `Dubber`, the generator, draw the mouth.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_processing.audio.features import FEATURE_DIMS
from dubbing.engine import Engine
from models.checkpoint import LoadedModel, load_model
from models.dinet import DINet
from utils.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class GeneratorSession:
    """A generator with the means to redraw face crops."""

    def __init__(self, loaded: LoadedModel, device: torch.device, precision: str) -> None:
        model = loaded.model.to(device, memory_format=torch.channels_last)
        # The engine is DINet's; a Wav2Lip is run as it is.
        self.model = Engine(model, DTYPES[precision]) if isinstance(model, DINet) else model
        self.mouth_size = loaded.mouth_size
        self.audio_features = loaded.audio_features
        self.device = device
        self._autocast = None if isinstance(model, DINet) or precision == "fp32" else DTYPES[precision]

    def _casting(self) -> Any:
        return torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()

    def _to_tensor(self, crops: list[np.ndarray]) -> torch.Tensor:
        """(13S/8, 5S/4, 3) uint8 crops -> (B, 3, H, W) in [0, 1]."""
        images = torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2)
        return (images.float() / 255).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode_references(self, crops: list[np.ndarray]) -> Any:
        """Encode the N reference crops of a shot, (13S/8, 5S/4, 3) uint8 RGB each."""
        stacked = self._to_tensor(crops).flatten(0, 1)[None]
        with self._casting():
            return self.model.encode_references(stacked)

    @torch.inference_mode()
    def redraw(self, crops: list[np.ndarray], references: Any, windows: np.ndarray) -> np.ndarray:
        """Face crops as the audio windows (B, D, 5) would have them: (B, 13S/8, 5S/4, 3) uint8 RGB."""
        masked = self.model.mask(self._to_tensor(crops))
        with self._casting():
            output = self.model.generate(masked, references, torch.from_numpy(windows).to(self.device))
        if not torch.isfinite(output).all():
            raise UserError("--checkpoint: the generator drew what are no numbers; try --precision fp32")
        images = (output.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return images.permute(0, 2, 3, 1).cpu().numpy()


def load_audio_driven_generator(checkpoint: Path, device: torch.device) -> LoadedModel:
    """A generator that is driven by a sound.

    Raises:
        UserError: the file is none, or is driven by lips.
    """
    loaded = load_model(checkpoint, device)
    if loaded.audio_features not in FEATURE_DIMS:
        raise UserError(
            f"--checkpoint: {checkpoint} is driven by {loaded.audio_features}, not by a sound; train on from "
            "it with audio_warmup_steps (README, Train)"
        )
    return loaded
