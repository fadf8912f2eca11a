"""The golden files: inputs and outputs of the original networks, with weights generated from their names."""

import json
import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

DATA = Path(__file__).resolve().parents[1] / "data"


def golden_arrays(name: str) -> dict[str, torch.Tensor]:
    """The tensors of tests/data/<name>.npz."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def golden_state(network: str | None, file: str = "state_dicts.json") -> dict[str, torch.Tensor]:
    """The weights of the golden outputs, under the original tensor names.

    `network` is a key of the file, or None if it has only one network.
    """
    shapes = json.loads((DATA / file).read_text())
    shapes = shapes[network] if network else shapes
    return {name: _tensor(name, shape) for name, shape in shapes.items()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Assert that tensors agree within a relative or absolute tolerance."""
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def _tensor(name: str, shape: list[int]) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(1)
    if last == "running_var" or (len(shape) == 1 and last == "weight"):
        values = rng.uniform(0.8, 1.2, shape)
    elif len(shape) == 1:
        values = rng.normal(0, 0.05, shape)
    else:
        values = rng.normal(0, 1, shape) * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def random_inception(path: Path) -> Path:
    """A file in the format of the weight `fid_inception`, with random weights."""
    torch.manual_seed(0)
    with patch("torch.load", return_value={}), patch.object(torch.nn.Module, "load_state_dict"):
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=path)
    torch.save(network.state_dict(), path)
    return path
