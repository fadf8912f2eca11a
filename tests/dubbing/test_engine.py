"""The generator rewritten for inference gives what the generator gives."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from dubbing import engine
from dubbing.engine import Conv, Engine, FourierConv, Residual, RowPairConv, ToImage, UpConv, _folded
from models.blocks import ConvBlock, ResBlock, UpBlock
from models.crop_layout import crop_size, mouth_margin_top
from models.dinet import DINet, DINetConfig


def shaken(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, with batch norms that do something and kernels that keep values in range."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
            nn.init.normal_(part.running_mean, 0, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
        elif hasattr(part, "weight") and part.weight.ndim > 1:
            nn.init.normal_(part.weight, 0, part.weight[0].numel() ** -0.5)
            if getattr(part, "bias", None) is not None:  # else that of before the seed
                nn.init.uniform_(part.bias, -0.1, 0.1)
    return module.eval()


def same(found: nn.Module, expected: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(found(x.clone()), expected(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 10), (26, 20), (31, 64)])
def test_layers_are_what_they_replace(size: tuple[int, int]) -> None:
    x = torch.randn(2, 8, *size, generator=torch.Generator().manual_seed(1))
    for stride in (1, 2):
        block = shaken(ConvBlock(8, 16, 3, stride=stride))
        same(Conv(*_folded(block.conv, block.norm), torch.float32, stride), block, x)
        if stride == 1:
            same(RowPairConv(*_folded(block.conv, block.norm), torch.float32), block, x)
    up = shaken(UpBlock(8, 16, 3))
    same(UpConv(*_folded(up.conv, up.norm), torch.float32), up, x)
    residual = shaken(ResBlock(8))
    same(Residual(residual, torch.float32), residual, x)
    wide = shaken(ConvBlock(8, 12, 11))
    same(FourierConv(*_folded(wide.conv, wide.norm)), wide, x)
    if size[0] % 2 == size[1] % 2 == 0:
        last = shaken(nn.Conv2d(8, 3, 7, padding=3))
        same(ToImage(last.weight.detach(), last.bias.detach(), torch.float32), last, x)


@pytest.mark.parametrize(
    "options",
    [{}, {"official_grid": True}, {"inpainting": False}, {"deformation": "flow"}, {"deformation": "adain"}],
)
def test_engine_draws_what_the_generator_draws(options: dict) -> None:
    size = 128 if options == {} else 32  # large enough that rows above the mouth are left out
    model = shaken(DINet(DINetConfig(29, **options)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.Generator().manual_seed(2)
    masked = model.mask(torch.rand(3, 3, *crop_size(size), generator=random))
    references = torch.rand(1, 15, *crop_size(size), generator=random)
    audio = torch.randn(3, 29, 5, generator=random)
    with torch.no_grad():
        expected = model(masked, references, audio)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.02), (torch.float16, 0.005)):
            engine = Engine(model, dtype)
            found = engine.generate(masked, engine.encode_references(references), audio)
            assert found.dtype == torch.float32
            first = mouth_margin_top(size)
            error = (found - expected)[:, :, first:]
            assert error.abs().max() < tolerance
            assert error.square().mean().sqrt() < tolerance / 6
            assert torch.equal(found[:, :, :first], masked[:, :, :first])
            if options.get("deformation") != "adain":  # which sees the references in a code only
                other = engine.generate(masked, engine.encode_references(references.flip(1)), audio)
                assert (other - expected).abs().max() > 2 * tolerance
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture
def three_cores() -> Iterator[None]:
    cores = torch.get_num_threads()
    torch.set_num_threads(3)
    engine._started_workers.cache_clear()
    yield
    torch.set_num_threads(cores)
    engine._started_workers.cache_clear()


def test_each_core_draws_frames_of_its_own(three_cores) -> None:
    engine = Engine(shaken(DINet(DINetConfig(29))))
    with torch.no_grad():
        references = engine.encode_references(torch.zeros(1, 15, *crop_size(32)))
        drawn = engine.generate(torch.zeros(4, 3, *crop_size(32)), references, torch.zeros(4, 29, 5))
    assert drawn.shape == (4, 3, *crop_size(32)) and not drawn.requires_grad
    drawers, count = engine._worker_pool()
    assert count == 3 and drawers.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as another:
        assert another.submit(torch.get_num_threads).result() == 3


def test_who_draws_first_at_once_shares_the_drawers(three_cores) -> None:
    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda _: engine._worker_pool(), range(8)))
    assert all(drawers is found[0][0] and count == 3 for drawers, count in found)


def test_spectra_are_made_once_for_a_size() -> None:
    block = shaken(ConvBlock(4, 4, 11))
    conv = FourierConv(*_folded(block.conv, block.norm))
    for _ in range(2):
        conv(torch.zeros(1, 4, 20, 20))
    conv(torch.zeros(1, 4, 50, 20))
    assert len(conv.spectra) == 2


def test_engine_refuses_what_the_generator_refuses() -> None:
    engine = Engine(DINet(DINetConfig(29)).eval())
    with pytest.raises((ValueError, RuntimeError)):
        engine.encode_references(torch.zeros(1, 3, 52, 40))
