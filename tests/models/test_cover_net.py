"""The network that finds what covers a mouth: shapes, and the bundled weights."""

import torch

from models.cover_net import COVER_SIZE, NUM_VIEWS, SIDE, TOP, CoverNet, load_cover_net
from models.crop_layout import crop_size, mouth_box
from utils.bundled import COVER_NET


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
