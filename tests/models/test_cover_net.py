"""The network that finds what covers a mouth: shapes, and the bundled weights."""

import pytest
import torch
from safetensors.torch import save_file

from models.cover_net import COVER_SIZE, NUM_VIEWS, SIDE, TOP, CoverNet, load_cover_net
from models.crop_layout import crop_size, mouth_box
from utils.bundled import BUNDLED_SYNCNET, COVER_NET
from utils.errors import CheckpointError


def test_it_sees_the_mouth_box_with_its_margin() -> None:
    height, width = crop_size(COVER_SIZE)
    rows, columns = mouth_box(COVER_SIZE)
    assert (height, width) == (TOP + SIDE, SIDE)
    assert rows.start - TOP == columns.start == height - rows.stop


def test_one_logit_for_each_pixel() -> None:
    network = CoverNet().eval()
    with torch.no_grad():
        logits = network(torch.rand(2, 3, SIDE, SIDE), torch.rand(2, 3 * NUM_VIEWS, SIDE, SIDE))
    assert logits.shape == (2, SIDE, SIDE)


def test_the_bundled_weights_are_all_of_it() -> None:
    network = load_cover_net(COVER_NET, torch.device("cpu"))
    assert not network.training
    fresh = CoverNet().state_dict()
    assert network.state_dict().keys() == fresh.keys()
    assert all(
        not torch.equal(fresh[name], tensor) for name, tensor in network.state_dict().items() if tensor.ndim > 1
    )


def test_files_that_are_not_such_a_network(tmp_path) -> None:
    save_file({"entry.conv.weight": torch.zeros(1)}, tmp_path / "part.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    for path, reason in [
        (tmp_path / "part.safetensors", "is not a network that finds covers"),
        (BUNDLED_SYNCNET, "is not a network that finds covers"),
        (tmp_path / "text.safetensors", "cannot be read"),
        (tmp_path / "missing.safetensors", "cannot be read"),
    ]:
        with pytest.raises(CheckpointError, match=f"{path.name}: {reason}"):
            load_cover_net(path, torch.device("cpu"))
