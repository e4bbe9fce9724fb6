"""A network that sees a part of a batch meets the chances that the whole batch would."""

from contextlib import nullcontext

import pytest
import torch
from kornia.models.common import DropPath
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention

from petals.draws import DrawsOfWholeBatch
from petals.models import create

COUNT = 6
PARTS = (slice(0, 1), slice(1, 4), slice(4, 6))


def in_parts(net: nn.Module, x: torch.Tensor, together: bool = True) -> torch.Tensor:
    found = []
    for rows in PARTS:
        torch.manual_seed(5)
        with DrawsOfWholeBatch(rows, COUNT) if together else nullcontext():
            found.append(net(x[rows]))
    return torch.cat(found)


@pytest.mark.parametrize("net", [nn.Dropout(0.4), DropPath(0.4)])
def test_dropout_and_stochastic_depth_hit_an_image_alike_in_any_part(net: nn.Module):
    x = torch.rand(COUNT, 5, 4)
    torch.manual_seed(5)
    whole = net(x)
    assert (whole == 0).any() and (whole != 0).any()
    assert torch.equal(in_parts(net, x), whole)
    assert not torch.equal(in_parts(net, x, together=False), whole)


def test_a_classifier_trains_on_parts_as_on_the_whole():
    torch.manual_seed(1)
    net = create("efficientnet_lite0", 4, 32, pretrained=False)
    net.freeze(0, stats=True)
    x = torch.rand(COUNT, 3, 32, 32)
    torch.manual_seed(5)
    whole = net(x)
    assert torch.allclose(in_parts(net, x), whole, atol=1e-6)
    assert not torch.allclose(in_parts(net, x, together=False), whole, atol=1e-4)


def test_outside_training_nothing_is_drawn():
    x = torch.rand(2, 3)
    with DrawsOfWholeBatch(slice(0, 2), COUNT):
        assert torch.equal(nn.Dropout(0.5).eval()(x), x) and torch.equal(nn.Dropout(0.0)(x), x)


def test_attention_that_drops_nothing_goes_through():
    q = torch.rand(2, 1, 4, 4)
    with DrawsOfWholeBatch(slice(0, 2), COUNT):
        assert torch.equal(attention(q, q, q), attention(q, q, q, None, 0.0))


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: torch.randn(2, 3), "drew from randn"),
        (lambda: nn.functional.dropout2d(torch.ones(2, 3, 4, 4)), "drew from dropout2d"),
        (lambda: torch.dropout(torch.ones(2, 3), 0.5, True), "drew from dropout"),
        (lambda: torch.ones(2, 3).geometric_(0.5), "drew from geometric_"),
        (lambda: attention(*[torch.ones(2, 1, 4, 4)] * 3, dropout_p=0.1), "drew from scaled_dot_product_attention"),
        (lambda: attention(*[torch.ones(2, 1, 4, 4)] * 3, None, 0.1), "drew from scaled_dot_product_attention"),
        (lambda: torch.rand(5, 3), r"shape \(5, 3\)"),
    ],
)
def test_a_draw_that_is_not_one_row_an_image_is_refused(draw, said: str):
    with DrawsOfWholeBatch(slice(0, 2), COUNT), pytest.raises(RuntimeError, match=said):
        draw()
