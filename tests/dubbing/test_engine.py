"""The engine gives the output of the generator."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from dubbing import engine
from dubbing.engine import Conv, Engine, FourierConv, Residual, RowPairConv, ToImage, UpConv, _fold
from models.blocks import ConvBlock, ResBlock, UpBlock
from models.crop_layout import crop_size, mouth_margin_top
from models.dinet import DINet, DINetConfig


def randomized(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, with random batch norms, and kernels that keep activations in range."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        elif hasattr(part, "weight") and part.weight.ndim > 1:
            nn.init.normal_(part.weight, 0, part.weight[0].numel() ** -0.5)
            if getattr(part, "bias", None) is not None:  # its first values were sampled before the seed was set
                nn.init.uniform_(part.bias, -0.1, 0.1)
    return module.eval()


def assert_equivalent(rewritten: nn.Module, original: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(rewritten(x.clone()), original(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 10), (26, 20), (31, 64)])
def test_layers_equal_those_they_replace(size: tuple[int, int]) -> None:
    x = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1))
    for stride in (1, 2):
        block = randomized(ConvBlock(8, 16, 3, stride=stride))
        assert_equivalent(Conv(*_fold(block.conv, block.norm), torch.float32, stride), block, x)
        if stride == 1:
            assert_equivalent(RowPairConv(*_fold(block.conv, block.norm), torch.float32), block, x)
    up = randomized(UpBlock(8, 16, 3))
    assert_equivalent(UpConv(*_fold(up.conv, up.norm), torch.float32), up, x)
    residual = randomized(ResBlock(8))
    assert_equivalent(Residual(residual, torch.float32), residual, x)
    wide = randomized(ConvBlock(8, 12, 11))
    assert_equivalent(FourierConv(*_fold(wide.conv, wide.norm)), wide, x)
    if size[0] % 2 == size[1] % 2 == 0:
        last = randomized(nn.Conv2d(8, 3, 7, padding=3))
        assert_equivalent(ToImage(last.weight.detach(), last.bias.detach(), torch.float32), last, x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"official_grid": True},
        {"inpainting": False},
        {"deformation": "flow"},
        {"deformation": "adain"},
        {"audio_encoder": "whitened"},
    ],
)
@pytest.mark.slow
def test_engine_equals_the_generator(options: dict) -> None:
    size = 96 if options == {} else 32  # large enough for rows above the mouth to be skipped
    model = randomized(DINet(DINetConfig(29, **options)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.Generator().manual_seed(2)
    masked = model.mask(torch.rand(3, 3, *crop_size(size), generator=random))
    references = torch.rand(1, 15, *crop_size(size), generator=random)
    audio = torch.randn(3, 29, 5, generator=random)
    with torch.no_grad():
        expected_frames = model(masked, references, audio)
        for dtype, tolerance, num_frames in (
            (torch.float32, 1e-4, 3),
            (torch.bfloat16, 0.02, 3),
            (torch.float16, 0.005, 1),  # slow on CPUs
        ):
            engine = Engine(model, dtype)
            source, windows, expected = masked[:num_frames], audio[:num_frames], expected_frames[:num_frames]
            output = engine.generate(source, engine.encode_references(references), windows)
            assert output.dtype == torch.float32
            first_row = mouth_margin_top(size)
            error = (output - expected)[:, :, first_row:]
            assert error.abs().max() < tolerance
            assert error.square().mean().sqrt() < tolerance / 6
            assert torch.equal(output[:, :, :first_row], source[:, :, :first_row])
            # AdaIN uses the references only through a code
            if dtype == torch.float32 and options.get("deformation") != "adain":
                other = engine.generate(source, engine.encode_references(references.flip(1)), windows)
                assert (other - expected).abs().max() > 2 * 0.02  # more than any of these tolerances
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture
def three_cores() -> Iterator[None]:
    cores = torch.get_num_threads()
    torch.set_num_threads(3)
    engine._start_workers.cache_clear()
    yield
    torch.set_num_threads(cores)
    engine._start_workers.cache_clear()


def test_each_worker_uses_one_core(three_cores) -> None:
    engine_of_model = Engine(randomized(DINet(DINetConfig(29))))
    with torch.no_grad():
        references = engine_of_model.encode_references(torch.zeros(1, 15, *crop_size(32)))
        inputs = (torch.zeros(4, 3, *crop_size(32)), references, torch.zeros(4, 29, 5))
        output = engine_of_model.generate(*inputs)
    assert output.shape == (4, 3, *crop_size(32)) and not output.requires_grad
    workers, num_workers = engine._worker_pool()
    assert num_workers == 3 and workers.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as another:
        assert another.submit(torch.get_num_threads).result() == 3


def test_concurrent_first_calls_share_the_workers(three_cores) -> None:
    with ThreadPoolExecutor(8) as callers:
        pools = list(callers.map(lambda _: engine._worker_pool(), range(8)))
    assert all(workers is pools[0][0] and num_workers == 3 for workers, num_workers in pools)


def test_spectra_are_computed_once_per_size() -> None:
    block = randomized(ConvBlock(4, 4, 11))
    conv = FourierConv(*_fold(block.conv, block.norm))
    for _ in range(2):
        conv(torch.zeros(1, 4, 20, 20))
    conv(torch.zeros(1, 4, 50, 20))
    assert len(conv.spectra) == 2


def test_engine_rejects_invalid_shapes() -> None:
    model = Engine(DINet(DINetConfig(29)).eval())
    with pytest.raises((ValueError, RuntimeError)):
        model.encode_references(torch.zeros(1, 3, 52, 40))
