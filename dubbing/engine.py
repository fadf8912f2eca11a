"""The generator as inference runs it: the same function as `DINet`, with less arithmetic.

- What depends on the reference frames only is computed once per shot.
- Batch norms are folded into the convolutions beside them.
- Upsampling and the convolution after it are one transposed convolution of the small map.
- Rows outside the paste margin (`mouth_margin_top`) are not computed.
- On CPUs, each worker generates few frames at a time, wide kernels are multiplied in the frequency domain, and the
  convolutions of residual blocks compute two rows at a time.

In float32 the output equals that of `DINet` up to rounding (tests/dubbing/test_engine.py). Shapes are as in
models/dinet.py: B frames, (H, W) = (13S/8, 5S/4), D audio dimensions, N reference frames.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import count, pairwise
from threading import Barrier, Lock
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from models.blocks import ConvBlock, ResBlock, UpBlock
from models.crop_layout import mouth_margin_top, mouth_size_of
from models.dinet import DINet

# Kernel width and number of input channels from which on `FourierConv` is faster than `Conv` on CPUs.
WIDE_KERNEL, MANY_CHANNELS = 9, 64
BLOCK_REACH, DECODER_REACH = 2, 4  # feature rows above its output that a residual block and the decoder read
# Size of one layer's feature maps on CPUs. malloc requests larger blocks from the system every time, which clears
# each page first; that took a sixth of the time.
MAX_MAP_BYTES = 20_000_000
MAX_WORKERS = 8  # threads that generate frames; equals the batch size of a dub, more would be idle
TILE = 20  # maximum side of a tile's output: larger tiles need more memory, smaller ones overlap more
_POOL_LOCK = Lock()


class EncodedReferences(NamedTuple):
    """What the engine needs of the reference frames of one shot.

    pose: (1, 128, H/4, W/4) float32, their summand in the alignment encoder's first convolution.
    appearance: (1, 256, H/4, W/4) float32, the features to be deformed.
    """

    pose: torch.Tensor
    appearance: torch.Tensor


class Engine(nn.Module):
    """A `DINet` rewritten for inference; the given model is not changed.

    Args:
        model: in evaluation mode, on its device.
        dtype: type of kernels and features. The transforms of AdaAT are always computed and applied in float32.
    """

    def __init__(self, model: DINet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = model.config, dtype
        self.source_encoder = _fuse(model.source_encoder, dtype)
        self.reference_encoder = _fuse(model.reference_encoder, dtype)
        self.appearance_before = _fuse(model.appearance_before, dtype)
        # The first convolution of [F_s, F_ref] is the sum of a convolution of each.
        kernel, bias = _fold(model.alignment_encoder[0].conv, model.alignment_encoder[0].norm)
        source_kernel, reference_kernel = kernel.split(kernel.shape[1] // 2, dim=1)
        self.source_pose = Conv(source_kernel, None, dtype, relu=False)
        self.reference_pose = Conv(reference_kernel, bias, dtype, relu=False)
        self.alignment_encoder = _fuse(model.alignment_encoder[1:], dtype)
        self.audio_encoder, self.deformation = model.audio_encoder, model.deformation
        self.appearance_after = _fuse(model.appearance_after, dtype)
        self.decoder = _fuse(model.decoder, dtype)

    mask = staticmethod(DINet.mask)

    def encode_references(self, references: torch.Tensor) -> EncodedReferences:
        """Encode the reference frames of a shot.

        Args:
            references: (1, 3N, H, W) RGB in [0, 1], the N frames stacked in the channels.
        """
        encoded = self.reference_encoder(references.to(self.dtype))
        return EncodedReferences(self.reference_pose(encoded).float(), self.appearance_before(encoded).float())

    def generate(
        self, masked_source: torch.Tensor, references: EncodedReferences, audio_window: torch.Tensor
    ) -> torch.Tensor:
        """Generate face crops like `DINet.generate`, for B frames of one shot.

        Args:
            masked_source: (B, 3, H, W) RGB in [0, 1], the mouth box set to 0 (`mask`).
            references: from `encode_references`.
            audio_window: (B, D, 5), audio features around each frame.

        Returns:
            (B, 3, H, W) float32 in [0, 1], NaN where `dtype` overflows. Rows above `mouth_margin_top` are those of
            `masked_source`.
        """
        if masked_source.device.type != "cpu":
            return self._generate(masked_source, references, audio_window)
        height, width = masked_source.shape[-2:]
        largest_map = height * width * self.decoder[-1].kernel.shape[1] * self.dtype.itemsize  # bytes per frame
        workers, num_workers = _worker_pool()
        chunk_size = min(max(1, MAX_MAP_BYTES // largest_map), -(-len(masked_source) // num_workers))
        chunks = zip(masked_source.split(chunk_size), audio_window.split(chunk_size), strict=True)
        return torch.cat(list(workers.map(lambda chunk: self._generate(chunk[0], references, chunk[1]), chunks)))

    @torch.inference_mode()  # the mode of the calling thread does not apply to the workers
    def _generate(
        self, masked_source: torch.Tensor, references: EncodedReferences, audio_window: torch.Tensor
    ) -> torch.Tensor:
        """`generate` in this thread."""
        source = self.source_encoder(masked_source.to(self.dtype))
        pose = F.relu(self.source_pose(source).float().add_(references.pose))
        code = torch.cat([self.alignment_encoder(pose).float(), self.audio_encoder(audio_window)], dim=1)
        appearance = references.appearance.expand(len(source), -1, -1, -1)
        deformed = self.deformation(appearance, code, source.float())
        # Pasting uses no row above `first_row`. The remaining layers compute the feature rows below it, and those
        # that the layers after them read above their own output.
        first_row = mouth_margin_top(mouth_size_of(masked_source.shape[-2]))
        decoder_start = max(0, first_row // 4 - DECODER_REACH)
        num_blocks = len(self.appearance_after)
        starts = [max(0, decoder_start - BLOCK_REACH * remaining) for remaining in range(num_blocks, -1, -1)]
        refined = deformed[:, :, starts[0] :].to(self.dtype, memory_format=torch.channels_last)
        for block, (start, next_start) in zip(self.appearance_after, pairwise(starts), strict=True):
            refined = block(refined)[:, :, next_start - start :]
        if self.config.inpainting:
            refined = torch.cat([source[:, :, decoder_start:], refined], dim=1)
        output = self.decoder(refined).float()
        # an overflow of fp16 must not pass for black or white, which the sigmoid would make of it
        output = output.masked_fill_(output.isinf(), torch.nan).sigmoid_()
        return torch.cat([masked_source[:, :, :first_row], output[:, :, first_row - 4 * decoder_start :]], dim=2)


def _worker_pool() -> tuple[ThreadPoolExecutor, int]:
    """The threads that generate frames, and their number.

    The cores available at the first call are divided among them. A core that computes a frame alone never waits;
    cores that share one frame wait for each other after every layer.
    """
    with _POOL_LOCK:
        return _start_workers()


@cache
def _start_workers() -> tuple[ThreadPoolExecutor, int]:
    num_cores = torch.get_num_threads()
    num_workers = min(num_cores, MAX_WORKERS)
    ready = Barrier(num_workers + 1)

    def initialize() -> None:
        # A thread's number of cores is set by its first call; without this one, computing would set it later and
        # overwrite the value below.
        torch.get_num_threads()
        torch.set_num_threads(num_cores // num_workers)
        ready.wait()

    workers = ThreadPoolExecutor(num_workers, "generator", initialize)
    try:
        for _ in range(num_workers):
            workers.submit(int)  # starts one thread
        ready.wait()
    except BaseException:  # threads that have started must not wait for the others
        ready.abort()
        workers.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(num_cores)  # the last value set is also the default of threads that start later
    return workers, num_workers


class Conv(nn.Module):
    """Convolution with "same" padding and optional ReLU; its kernel is stored in the type and layout of use.

    Args:
        kernel: (C_out, C_in, K, K).
        bias: (C_out,) or None.
        dtype: type of the kernel and the output.
        stride: 1 or 2.
        relu: whether ReLU follows.
    """

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
        """(B, C_in, H, W) -> (B, C_out, ⌈H / stride⌉, ⌈W / stride⌉)."""
        x = x.to(self.kernel.dtype, memory_format=torch.channels_last)
        y = F.conv2d(x, self.kernel, self.bias, self.stride, padding=self.kernel.shape[-1] // 2)
        return y.relu_() if self.relu else y


class RowPairConv(nn.Module):
    """3 × 3 convolution with "same" padding and optional ReLU that computes two rows at a time.

    A pair of output rows depends on four input rows. Four sums of these are convolved with kernels one row high;
    direct computation needs six such convolutions (Winograd's F(2, 3) along the columns. Applied in both directions
    it would lose too much precision in bfloat16).

    Args:
        kernel: (C_out, C_in, 3, 3).
        bias: (C_out,).
        dtype: type of kernels and features.
        relu: whether ReLU follows.
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
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        batch, _, height, width = x.shape
        x = F.pad(x, (0, 0, 1, 1 + height % 2))
        x0, x1, x2, x3 = x[:, :, :-2:2], x[:, :, 1:-1:2], x[:, :, 2::2], x[:, :, 3::2]
        padding = (0, self.row0.shape[3] // 2)
        y0 = F.conv2d(x0 - x2, self.row0, padding=padding)
        y1 = F.conv2d(x1 + x2, self.row1, self.bias, padding=padding)  # a summand of both rows, like the bias
        y2 = F.conv2d(x2 - x1, self.row2, padding=padding)
        y3 = F.conv2d(x1 - x3, self.row3, padding=padding)
        size = (batch, len(self.bias), height + height % 2, width)
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        torch.add(y0, y1, out=y[:, :, ::2]).add_(y2)
        torch.sub(y1, y2, out=y[:, :, 1::2]).sub_(y3)
        return (y.relu_() if self.relu else y)[:, :, :height]


class UpConv(nn.Module):
    """Nearest-neighbour upsampling by 2, 3 × 3 convolution and ReLU, as one transposed convolution.

    A pixel of the small map becomes 2 × 2 pixels of the large one; with the convolution it contributes to 4 × 4.

    Args:
        kernel: (C_out, C_in, 3, 3).
        bias: (C_out,).
        dtype: type of the kernel and of the features.
    """

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        # contributes[y, i]: whether row i of the 3 × 3 kernel contributes to row y of the 4 × 4 pixels.
        contributes = torch.tensor(
            [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=kernel.dtype, device=kernel.device
        )
        spread = torch.einsum("yi,xj,ocij->coyx", contributes, contributes, kernel)
        self.register_buffer("kernel", spread.to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H, 2W)."""
        return F.conv_transpose2d(x, self.kernel, self.bias, stride=2, padding=1).relu_()


class ToImage(nn.Module):
    """The last convolution, to three channels, computed for blocks of 2 × 2 pixels.

    CPUs compute 16 output channels at once; the blocks use 12 of them instead of 3.

    Args:
        kernel: (3, C_in, 7, 7).
        bias: (3,).
        dtype: type of the kernel and of the features.
    """

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        shifted = [F.pad(kernel, (q, 1 - q, p, 1 - p)) for p in range(2) for q in range(2)]
        blocks = torch.stack(shifted, dim=1).flatten(0, 1)
        self.register_buffer("kernel", blocks.to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", bias.repeat_interleave(4).to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) -> (B, 3, H, W), H and W even; before the sigmoid."""
        padding = self.kernel.shape[-1] // 2 - 1
        return F.pixel_shuffle(F.conv2d(x, self.kernel, self.bias, stride=2, padding=padding), 2)


class FourierConv(nn.Module):
    """Convolution with a wide kernel, "same" padding and ReLU, as a product of spectra of overlapping tiles.

    Args:
        kernel: (C_out, C_in, K, K); used in float32.
        bias: (C_out,).
    """

    def __init__(self, kernel: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.kernel, self.bias = kernel.float(), bias.float()
        self.spectra: dict[tuple[int, int], torch.Tensor] = {}
        self._lock = Lock()

    def _spectrum(self, height: int, width: int) -> torch.Tensor:
        """Spectrum of the kernel for tiles of this size, (height · (width // 2 + 1), C_in, C_out) complex64.

        It is computed once per size, by the first thread that needs it.
        """
        with self._lock:
            if (height, width) not in self.spectra:
                outputs, inputs = self.kernel.shape[:2]
                spectrum = torch.empty(height * (width // 2 + 1), inputs, outputs, dtype=torch.complex64)
                # in parts: computing it at once would take several times its memory
                for part, kernel in zip(spectrum.split(16, dim=2), self.kernel.split(16), strict=True):
                    transformed = torch.fft.rfft2(kernel, (height, width)).conj()
                    part.copy_(transformed.permute(2, 3, 1, 0).flatten(0, 1))
                self.spectra[height, width] = spectrum
            return self.spectra[height, width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C_in, H, W) of any type -> (B, C_out, H, W) float32."""
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
        """Number of tiles along a side of `size` pixels, output pixels per tile, and input pixels per tile."""
        num_tiles = -(-size // TILE)
        valid = -(-size // num_tiles)
        # sizes without prime factors above 5 are fast to transform
        transformed = next(one for one in count(valid + self.kernel.shape[-1] - 1) if 30**9 % one == 0)
        return num_tiles, valid, transformed


class Residual(nn.Module):
    """`ResBlock` with its second batch norm folded."""

    def __init__(self, block: ResBlock, dtype: torch.dtype) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(block.norm1)
        self.register_buffer("scale", scale.to(dtype)[:, None, None])
        self.register_buffer("shift", shift.to(dtype)[:, None, None])
        conv = RowPairConv if scale.device.type == "cpu" else Conv
        self.conv1 = conv(*_fold(block.conv1, block.norm2), dtype)
        self.conv2 = conv(block.conv2.weight.detach(), block.conv2.bias.detach(), dtype, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        y = torch.addcmul(self.shift, x, self.scale).relu_()
        return self.conv2(self.conv1(y)).add_(x)


def _fuse(modules: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """The same layers, each with its batch norms folded."""
    return nn.Sequential(*(_fuse_layer(module, dtype) for module in modules))


def _fuse_layer(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The fastest equivalent of a layer on its device."""
    if isinstance(module, UpBlock):
        return UpConv(*_fold(module.conv, module.norm), dtype)
    if isinstance(module, ConvBlock):
        kernel, bias = _fold(module.conv, module.norm)
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
    """A batch norm in evaluation mode as x · scale + shift, (C,) each."""
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias.detach() - norm.running_mean * scale


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel (C_out, C_in, K, K) and bias (C_out,) of a convolution followed by a batch norm."""
    scale, shift = _scale_and_shift(norm)
    return conv.weight.detach() * scale[:, None, None, None], conv.bias.detach() * scale + shift
