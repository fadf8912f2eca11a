"""A loaded generator, ready to generate face crops."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_processing.audio.features import FEATURE_DIMS
from dubbing.engine import Engine
from dubbing.settings import PRECISIONS
from models.checkpoint import LoadedModel, load_model
from models.dinet import DINet
from utils.errors import CheckpointError, ParameterError

DTYPES = dict(zip(PRECISIONS, (torch.float32, torch.bfloat16, torch.float16), strict=True))


class GeneratorSession:
    """A generator on its device, called with NumPy arrays.

    Args:
        loaded: a DINet, which runs as an `Engine`, or a Wav2Lip, which runs as it is under autocast.
        device: where it runs.
        precision: a key of DTYPES.
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, precision: str) -> None:
        model = loaded.model.to(device, memory_format=torch.channels_last)
        self.model = Engine(model, DTYPES[precision]) if isinstance(model, DINet) else model
        self.mouth_size = loaded.mouth_size
        self.audio_features = loaded.audio_features
        self.device, self.precision = device, precision
        self._autocast_dtype = None if isinstance(model, DINet) or precision == "fp32" else DTYPES[precision]

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, self._autocast_dtype) if self._autocast_dtype else nullcontext()

    def _to_tensor(self, crops: list[np.ndarray]) -> torch.Tensor:
        """B crops (13S/8, 5S/4, 3) uint8 -> (B, 3, H, W) in [0, 1]."""
        images = torch.from_numpy(np.stack(crops)).to(self.device).permute(0, 3, 1, 2)
        return (images.float() / 255).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def encode_references(self, crops: list[np.ndarray]) -> Any:
        """Encode the N reference crops of a shot, (13S/8, 5S/4, 3) uint8 RGB each."""
        stacked = self._to_tensor(crops).flatten(0, 1)[None]
        with self._autocast():
            return self.model.encode_references(stacked)

    @torch.inference_mode()
    def generate(self, crops: list[np.ndarray], references: Any, windows: np.ndarray) -> np.ndarray:
        """Face crops with the mouth that follows the audio.

        Args:
            crops: B source crops, (13S/8, 5S/4, 3) uint8 RGB each.
            references: from `encode_references`.
            windows: (B, D, 5) audio windows.

        Returns:
            (B, 13S/8, 5S/4, 3) uint8 RGB.

        Raises:
            ParameterError: the output contains NaN or Inf.
        """
        masked = self.model.mask(self._to_tensor(crops))
        with self._autocast():
            output = self.model.generate(masked, references, torch.from_numpy(windows).to(self.device))
        if not torch.isfinite(output).all():
            raise ParameterError("checkpoint", "the output contains NaN or Inf; try precision fp32")
        images = (output.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return images.permute(0, 2, 3, 1).cpu().numpy()


def load_audio_driven_generator(checkpoint: Path, device: torch.device) -> LoadedModel:
    """Load a generator that is driven by audio features.

    Raises:
        CheckpointError: the file is not a generator, or the generator is driven by lip features.
    """
    loaded = load_model(checkpoint, device)
    if loaded.audio_features not in FEATURE_DIMS:
        raise CheckpointError(
            checkpoint,
            f"is driven by {loaded.audio_features} features, not by audio; continue its training with "
            "audio_warmup_steps (docs/training.md)",
        )
    return loaded
