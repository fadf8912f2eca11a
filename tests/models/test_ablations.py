"""The replacements of AdaAT in closed form."""

import torch

from models.ablations import AdaIN, Attention, DenseFlow
from tests.support.golden import assert_close


@torch.no_grad()
def test_adain_sets_mean_and_deviation_of_the_source() -> None:
    torch.manual_seed(0)
    adain, code = AdaIN(6, 4), torch.randn(2, 6)
    source, features = torch.randn(2, 4, 9, 7), torch.randn(2, 4, 9, 7)
    output = adain(features, code, source)
    assert_close(output, adain(2 * features, code, 3 * source + 1))  # independent of the moments of the source
    deviation, mean = adain.moments(adain.common(code).relu()).chunk(2, dim=1)
    assert_close(output.mean(dim=(2, 3)), mean)
    assert_close(output.std(dim=(2, 3), correction=0), (1 + deviation).abs())


@torch.no_grad()
def test_attention_averages_values_by_similarity() -> None:
    torch.manual_seed(0)
    attention, code = Attention(6, 8), torch.randn(2, 6)
    source, features = torch.randn(2, 8, 5, 4), torch.randn(2, 8, 5, 4)
    hidden = attention.common(code).relu()[..., None, None].expand(-1, -1, 5, 4)
    query = attention.query(torch.cat([source, hidden], dim=1)).flatten(2)
    similarity = torch.einsum("bcq,bck->bqk", query, attention.key(features).flatten(2)) / 2**0.5  # two channels
    expected = torch.einsum("bqk,bck->bcq", similarity.softmax(dim=2), attention.value(features).flatten(2))
    assert_close(attention(features, code, source).flatten(2), expected)


@torch.no_grad()
def test_dense_flow_warps_all_channels_equally() -> None:
    torch.manual_seed(0)
    flow, code = DenseFlow(6, 4).eval(), torch.randn(2, 6)
    source, features = torch.randn(2, 4, 10, 8), torch.randn(2, 4, 10, 8)
    assert_close(flow(features, code, source), features)  # initially the identity
    flow.flow[-2].bias.copy_(torch.tensor([2 / 8, 0]).atanh())  # one of eight positions that span [-1, 1]
    moved = flow(features, code, source)
    assert_close(moved[..., :-1], features[..., 1:])
    assert not moved[..., -1].any()
