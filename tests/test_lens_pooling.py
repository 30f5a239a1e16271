"""A network with pooling: its switches, and the deconvnet with others in their place."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harvis_utils.lenses import deconvnet
from harvis_utils.networks import backward, builders, taps
from harvis_utils.settings import ModelSettings, PooledSettings
from harvis_utils.store.results import described

SMALL = ModelSettings(n_units=4, n_dense=8)


def pooled(pooling: str = "max", length: int = 30) -> nn.Module:
    torch.manual_seed(0)
    return builders.build(3, length, 5, PooledSettings(**vars(SMALL), pooling=pooling)).eval()


X = torch.randn(12, 3, 30, generator=torch.Generator().manual_seed(1))


def test_pooling_halves_behind_every_convolution_and_addresses_tell_it_from_sfhf():
    for pooling in ("max", "mean"):
        model = pooled(pooling)
        assert [taps.outputs(model, la, X).shape for la in model.layers] == [(12, 4, 3, n) for n in (30, 15, 7)]
        assert model(X).shape == (12, 5) and all(taps.outputs(model, la, X).min() == 0 for la in model.layers)
    assert described(PooledSettings()) == described(ModelSettings()) | {"pooling": "max"}
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        pooled("median")
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        pooled(length=7)


def unpooled_by_hand(model: nn.Module, x: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """The deconvnet of Zeiler and Fergus written down: unpool, rectify, filter, from conv2 on."""
    conv, norm, _ = model.conv1
    _, switches = F.max_pool2d(model.conv1(x[:, None]), (1, 2), return_indices=True)
    for i, layer in enumerate((model.conv2, model.conv1)):
        conv, norm, _ = layer
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        back = F.conv_transpose2d(F.relu(back), conv.weight * scale[:, None, None, None], padding=conv.padding)
        if i == 0:
            back = F.max_unpool2d(back, switches, (1, 2))
    return back[:, 0]


def test_projections_unpool_by_the_switches_of_the_window():
    model = pooled()
    keep = deconvnet.strongest()
    found = deconvnet.project(model, "conv2", X, keep)
    kept = keep(taps.outputs(model, "conv2", X), torch.ones(12, dtype=torch.bool))
    assert torch.allclose(found, unpooled_by_hand(model, X, kept).detach(), atol=1e-6) and found.abs().max() > 0


@pytest.mark.parametrize("call", [
    lambda x: F.max_pool2d(x, (1, 2)), nn.MaxPool2d(2, ceil_mode=True), lambda x: torch.max_pool2d(x, (1, 3), (1, 1)),
    lambda x: F.max_pool2d(x, (1, 3), 1, (0, 1), return_indices=True)[0], nn.AdaptiveMaxPool2d((2, 3)),
    lambda x: F.max_pool1d(x[:, 0], 2)[:, None],
])  # fmt: skip
def test_other_switches_change_the_way_back_alone(call):
    x = X.view(12, 1, 6, 15).clone().requires_grad_(True)
    above = torch.rand_like(plain := call(x))
    with backward.switches(lambda h: h):
        same = call(x)
    with backward.switches(lambda h: -h):
        other = call(x)
    assert torch.equal(same, plain) and torch.equal(other, plain)
    own, twin, moved = (torch.autograd.grad(of, x, above)[0] for of in (plain, same, other))
    assert torch.allclose(own, twin) and not torch.allclose(own, moved) and torch.isclose(own.sum(), moved.sum())


def test_switches_of_another_window_are_those_of_the_window_that_is_said():
    model, score = pooled(), deconvnet.classes([0] * 12)
    own, drawn, lent = (deconvnet.project(model, "classes", X, score, rule) for rule in deconvnet.SWITCHED)
    assert torch.allclose(lent, own.roll(4, 0), atol=1e-6), "nothing else of a window has a part in a class' projection"
    assert torch.equal(drawn, deconvnet.project(model, "classes", X, score, deconvnet.SWITCHED[1]))
    assert not torch.allclose(drawn, own) and not torch.allclose(lent, own)
    with pytest.raises(ValueError, match="unknown set of switches 'none'; valid"):
        deconvnet.project(model, "classes", X, score, "deconvnet, none")


def test_mean_pooling_has_nothing_to_keep():
    model, one = pooled("mean"), deconvnet.classes([0] * 12)
    rules = [deconvnet.project(model, "classes", X, one, rule) for rule in deconvnet.SWITCHED]
    assert all(torch.equal(of, rules[0]) and torch.allclose(of, of[:1]) for of in rules)
    moving = deconvnet.project(pooled(), "classes", X, one)
    assert not torch.allclose(moving, moving[:1])
