"""The generator as inference runs it: the same function as `DINet`, with less arithmetic.

What depends on the references alone is computed once a video, batch norms are folded into the convolutions beside
them, and enlarging and convolving is one transposed convolution of the small map. Processors draw few frames at
once, each core its own, multiply wide kernels as spectra, and find two rows of residual blocks at a time. In
float32 the output is that of `DINet` to rounding (tests/test_engine.py).
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Barrier, Lock
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import nn

from models.blocks import ConvBlock, ResBlock, UpBlock
from models.crop_layout import mouth_margin_top, mouth_size_of
from models.dinet import DINet

WIDE_KERNEL, MANY_CHANNELS = 9, 64  # from which on spectra are faster on processors
BLOCK_REACH, DECODER_REACH = 2, 4  # rows of the feature maps that a residual block and the decoder look beyond
# Bytes of the maps of a layer on processors: malloc asks the system for each of larger ones, and the system clears
# every page of it first, a sixth of the time.
MAX_MAP_BYTES = 20_000_000
MAX_WORKERS = 8  # threads that draw frames, as many as come at once
_STARTING = Lock()
TILE = 30  # results along one side of a tile at most: larger ones cost memory, smaller ones overlap more


class EncodedReferences(NamedTuple):
    """What the engine needs of a video's references."""

    pose: torch.Tensor  # (1, 128, H/4, W/4), their share of the alignment encoder's first convolution
    appearance: torch.Tensor  # (1, 256, H/4, W/4) float32, to be deformed


class Engine(nn.Module):
    """A `DINet` rewritten for inference; the model it is made of stays as it was.

    Args:
        model: in evaluation mode, on its device.
        dtype: of kernels and features. Transforms are found and applied in float32, whatever it is.
    """

    def __init__(self, model: DINet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = model.config, dtype
        self.source_encoder = _fused(model.source_encoder, dtype)
        self.reference_encoder = _fused(model.reference_encoder, dtype)
        self.appearance_before = _fused(model.appearance_before, dtype)
        kernel, bias = _folded(model.alignment_encoder[0].conv, model.alignment_encoder[0].norm)
        of_source, of_references = kernel.split(kernel.shape[1] // 2, dim=1)
        self.source_pose = Conv(of_source, None, dtype, relu=False)
        self.reference_pose = Conv(of_references, bias, dtype, relu=False)
        self.alignment_encoder = _fused(model.alignment_encoder[1:], dtype)
        self.audio_encoder, self.deformation = model.audio_encoder, model.deformation
        self.appearance_after = _fused(model.appearance_after, dtype)
        self.decoder = _fused(model.decoder, dtype)

    mask = staticmethod(DINet.mask)

    def encode_references(self, references: torch.Tensor) -> EncodedReferences:
        """Encode the stacked references (1, 3N, H, W) of a video."""
        encoded = self.reference_encoder(references.to(self.dtype))
        return EncodedReferences(self.reference_pose(encoded).float(), self.appearance_before(encoded).float())

    def generate(
        self, masked_source: torch.Tensor, references: EncodedReferences, audio_window: torch.Tensor
    ) -> torch.Tensor:
        """As `DINet.generate`, for frames (B, 3, H, W) of one video; rows above `mouth_margin_top` as they came."""
        if masked_source.device.type != "cpu":
            return self._generate(masked_source, references, audio_window)
        height, width = masked_source.shape[-2:]
        largest = height * width * self.decoder[-1].kernel.shape[1] * self.dtype.itemsize  # map of a frame
        drawers, count = _worker_pool()
        few = min(max(1, MAX_MAP_BYTES // largest), -(-len(masked_source) // count))
        parts = zip(masked_source.split(few), audio_window.split(few), strict=True)
        return torch.cat(list(drawers.map(lambda part: self._generate(part[0], references, part[1]), parts)))

    @torch.inference_mode()  # threads do not have it of those they work for
    def _generate(
        self, masked_source: torch.Tensor, references: EncodedReferences, audio_window: torch.Tensor
    ) -> torch.Tensor:
        source = self.source_encoder(masked_source.to(self.dtype))
        pose = F.relu(self.source_pose(source).float().add_(references.pose))
        code = torch.cat([self.alignment_encoder(pose).float(), self.audio_encoder(audio_window)], dim=1)
        appearance = references.appearance.expand(len(source), -1, -1, -1)
        deformed = self.deformation(appearance, code, source.float())
        # What lies further above the mouth box than it reaches to the sides is nobody's business; but the layers
        # from here on look so many rows of their maps beyond what they draw.
        first = mouth_margin_top(mouth_size_of(masked_source.shape[-2]))
        decoded_from = max(0, first // 4 - DECODER_REACH)
        blocks = len(self.appearance_after)
        needed_from = [max(0, decoded_from - BLOCK_REACH * left) for left in range(blocks, -1, -1)]
        refined = deformed[:, :, needed_from[0] :].to(self.dtype, memory_format=torch.channels_last)
        for block, (start, stop) in zip(self.appearance_after, pairwise(needed_from), strict=True):
            refined = block(refined)[:, :, stop - start :]
        if self.config.inpainting:
            refined = torch.cat([source[:, :, decoded_from:], refined], dim=1)
        drawn = self.decoder(refined).float().sigmoid()
        return torch.cat([masked_source[:, :, :first], drawn[:, :, first - 4 * decoded_from :]], dim=2)


def _worker_pool() -> tuple[ThreadPoolExecutor, int]:
    """Threads that draw frames, each with its share of the cores as they were at the first call, and their number.

    A frame that one core draws waits for no other core; those that draw one together wait after every layer.
    """
    with _STARTING:
        return _started_workers()


@cache
def _started_workers() -> tuple[ThreadPoolExecutor, int]:
    cores = torch.get_num_threads()
    count = min(cores, MAX_WORKERS)
    ready = Barrier(count + 1)

    def begin() -> None:
        torch.get_num_threads()  # settles this thread's; else it would take those of the others when it computes
        torch.set_num_threads(cores // count)
        ready.wait()

    drawers = ThreadPoolExecutor(count, "drawer", begin)
    try:
        for _ in range(count):
            drawers.submit(int)
        ready.wait()
    except BaseException:  # those that began would wait for the others for ever
        ready.abort()
        drawers.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(cores)  # which counts for threads that begin later: back to what it was
    return drawers, count


class Conv(nn.Module):
    """Convolution, at will with ReLU; the kernel kept ready in the type and layout it is used in."""

    def __init__(
        self,
        kernel: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        stride: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel.to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.stride, self.relu = stride, relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.kernel.dtype, memory_format=torch.channels_last)
        y = F.conv2d(x, self.kernel, self.bias, self.stride, padding=self.kernel.shape[-1] // 2)
        return y.relu_() if self.relu else y


class RowPairConv(nn.Module):
    """Convolution with a kernel three rows high, at will with ReLU, two rows of results at a time.

    Of the four rows that these see, four sums are convolved with kernels one row high, where one row after the
    other would need six (Winograd's F(2, 3), along the columns only: both ways would round bfloat16 too often).
    """

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, relu: bool = True) -> None:
        super().__init__()
        above, middle, below = kernel.split(1, dim=2)
        rows = above, (above + middle + below) / 2, (above - middle + below) / 2, below
        for index, row in enumerate(rows):
            self.register_buffer(f"row{index}", row.to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(dtype))
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = x.shape
        x = F.pad(x, (0, 0, 1, 1 + height % 2))
        x0, x1, x2, x3 = x[:, :, :-2:2], x[:, :, 1:-1:2], x[:, :, 2::2], x[:, :, 3::2]
        reach = (0, self.row0.shape[3] // 2)
        y0 = F.conv2d(x0 - x2, self.row0, padding=reach)
        y1 = F.conv2d(x1 + x2, self.row1, self.bias, padding=reach)  # counts in both rows, as the bias does
        y2 = F.conv2d(x2 - x1, self.row2, padding=reach)
        y3 = F.conv2d(x1 - x3, self.row3, padding=reach)
        size = (batch, len(self.bias), height + height % 2, width)
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        torch.add(y0, y1, out=y[:, :, ::2]).add_(y2)
        torch.sub(y1, y2, out=y[:, :, 1::2]).sub_(y3)
        return (y.relu_() if self.relu else y)[:, :, :height]


class UpConv(nn.Module):
    """Nearest-neighbour upsampling by two, 3-wide convolution, ReLU, as one transposed convolution.

    A pixel of the small map is two rows and columns of the large one, from where it reaches one further: 4 × 4.
    """

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        # The pixel reaches the row before its two through the kernel's last row, its first through the last two, …
        reached = torch.tensor(
            [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=kernel.dtype, device=kernel.device
        )
        spread = torch.einsum("yi,xj,ocij->coyx", reached, reached, kernel)
        self.register_buffer("kernel", spread.to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x, self.kernel, self.bias, stride=2, padding=1).relu_()


class ToImage(nn.Module):
    """The last convolution, of three channels, for blocks of 2×2 pixels: processors compute 16 channels at once."""

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        shifted = [F.pad(kernel, (q, 1 - q, p, 1 - p)) for p in range(2) for q in range(2)]
        blocks = torch.stack(shifted, dim=1).flatten(0, 1)
        self.register_buffer("kernel", blocks.to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", bias.repeat_interleave(4).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reach = self.kernel.shape[-1] // 2 - 1
        return F.pixel_shuffle(F.conv2d(x, self.kernel, self.bias, stride=2, padding=reach), 2)


class FourierConv(nn.Module):
    """Convolution with a wide kernel and ReLU, as products of spectra of overlapping tiles; float32 inside."""

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.kernel, self.bias = kernel.float(), bias.float()
        self.spectra: dict[tuple[int, int], torch.Tensor] = {}
        self.finding = Lock()

    def _spectrum(self, height: int, width: int) -> torch.Tensor:
        """(height · (width // 2 + 1), in, out) spectrum of the kernel for tiles of this size, found once."""
        with self.finding:  # by whichever thread comes first
            if (height, width) not in self.spectra:
                outputs, inputs = self.kernel.shape[:2]
                spectrum = torch.empty(height * (width // 2 + 1), inputs, outputs, dtype=torch.complex64)
                # part by part: all at once would take several times its memory
                for part, kernel in zip(spectrum.split(16, dim=2), self.kernel.split(16), strict=True):
                    found = torch.fft.rfft2(kernel, (height, width)).conj()
                    part.copy_(found.permute(2, 3, 1, 0).flatten(0, 1))
                self.spectra[height, width] = spectrum
            return self.spectra[height, width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        (rows, valid_h, tile_h), (columns, valid_w, tile_w) = (self._tiling(size) for size in (height, width))
        reach = self.kernel.shape[-1] // 2
        bottom = (rows - 1) * valid_h + tile_h - reach - height
        right = (columns - 1) * valid_w + tile_w - reach - width
        padded = F.pad(x.float().contiguous(), (reach, right, reach, bottom))
        tiles = padded.unfold(2, tile_h, valid_h).unfold(3, tile_w, valid_w)
        spectra = torch.fft.rfft2(tiles).permute(4, 5, 0, 2, 3, 1).reshape(-1, batch * rows * columns, channels)
        product = torch.bmm(spectra, self._spectrum(tile_h, tile_w))
        product = product.reshape(tile_h, -1, batch, rows, columns, len(self.bias)).permute(2, 5, 3, 4, 0, 1)
        valid = torch.fft.irfft2(product, (tile_h, tile_w))[..., :valid_h, :valid_w]
        joined = valid.transpose(3, 4).reshape(batch, -1, rows * valid_h, columns * valid_w)[..., :height, :width]
        return (joined + self.bias[:, None, None]).relu_()

    def _tiling(self, size: int) -> tuple[int, int, int]:
        """(number of tiles, results of each, samples read by each) along one side of a map."""
        count = -(-size // TILE)
        valid = -(-size // count)
        return count, valid, next_fast_len(valid + self.kernel.shape[-1] - 1, real=True)


class Residual(nn.Module):
    """`ResBlock` with its second batch norm folded."""

    def __init__(self, block: ResBlock, dtype: torch.dtype) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(block.norm1)
        self.register_buffer("scale", scale.to(dtype)[:, None, None])
        self.register_buffer("shift", shift.to(dtype)[:, None, None])
        conv = RowPairConv if scale.device.type == "cpu" else Conv
        self.conv1 = conv(*_folded(block.conv1, block.norm2), dtype)
        self.conv2 = conv(block.conv2.weight.detach(), block.conv2.bias.detach(), dtype, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.addcmul(self.shift, x, self.scale).relu_()
        return self.conv2(self.conv1(y)).add_(x)


def _fused(modules: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """The same layers, each with its batch norms folded."""
    return nn.Sequential(*(_fused_layer(module, dtype) for module in modules))


def _fused_layer(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(module, UpBlock):
        return UpConv(*_folded(module.conv, module.norm), dtype)
    if isinstance(module, ConvBlock):
        kernel, bias = _folded(module.conv, module.norm)
        wide = kernel.shape[-1] >= WIDE_KERNEL and kernel.shape[1] >= MANY_CHANNELS
        if wide and kernel.device.type == "cpu" and module.conv.stride == (1, 1):
            return FourierConv(kernel, bias)
        return Conv(kernel, bias, dtype, module.conv.stride[0])
    if isinstance(module, ResBlock):
        return Residual(module, dtype)
    if isinstance(module, nn.Conv2d):
        return ToImage(module.weight.detach(), module.bias.detach(), dtype)
    return module


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm in evaluation mode multiplies each channel by, and adds then."""
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias.detach() - norm.running_mean * scale


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel and bias of a convolution and the batch norm after it."""
    scale, shift = _scale_and_shift(norm)
    return conv.weight.detach() * scale[:, None, None, None], conv.bias.detach() * scale + shift
