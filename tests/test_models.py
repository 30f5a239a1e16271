"""SF-HF: its shapes, its shared trunk, and the trunk's bare weights."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harvis_utils.networks.sfhf import MIXINGS, POOLS, SFHF, folded_trunk
from harvis_utils.settings import ModelSettings
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ModelSettings(n_units=4, n_dense=5)
LAYERS = ("conv1", "conv2", "conv3")


def made(n_axes: int = 3, length: int = 30, n_classes: int = 7, seed: int = 0, **changes) -> SFHF:
    torch.manual_seed(seed)
    return SFHF(n_axes, length, n_classes, dataclasses.replace(SMALL, **changes))


def lived_in(model: SFHF, seed: int = 1) -> SFHF:
    """The network in evaluation mode, its batch norms as after a long training: no statistic is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.1, 3.0),
                (module.weight.data, -1.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                values.copy_(low + (high - low) * torch.rand(values.shape, generator=generator))
    return model.eval()


# ------------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize("bad", [{"pool": "max"}, {"mixing": "sum"}])
def test_an_invalid_setting_lists_the_valid_ones(bad):
    (word,) = bad.values()
    with pytest.raises(ValueError, match=re.escape(repr(word))) as error:
        made(**bad)
    assert all(repr(valid) in str(error.value) for valid in (*POOLS, *MIXINGS))


# ------------------------------------------------------------------------------------------------- the trunk


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    batch_norm=st.booleans(),
    n_layers=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5, 7]),
    n_units=st.integers(1, 9),
)
def test_the_folded_trunk_gives_the_networks_maps(seed, batch_norm, n_layers, kernel, n_units):
    changes = {"batch_norm": batch_norm, "n_layers": n_layers, "kernel": kernel, "n_units": n_units}
    model = lived_in(made(seed=seed, **changes), seed)
    trunk = folded_trunk(model)
    assert trunk.layers == model.layers
    x = torch.randn(5, 3, 30, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for layer, maps in model.feature_maps(x).items():
            found = trunk.feature_map(x.reshape(15, 30), layer)
            assert found.shape == (15, n_units, 30)
            expected = maps.permute(0, 2, 1, 3).reshape(15, n_units, 30)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_folding_leaves_the_network_alone_and_the_trunk_moves():
    model = lived_in(made())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trunk = folded_trunk(model)
    assert not any(w.requires_grad for w in (*trunk.weights, *trunk.biases))
    wide = trunk.to(torch.float64)
    assert {t.dtype for t in (*wide.weights, *wide.biases)} == {torch.float64}
    assert {t.dtype for t in (*trunk.weights, *trunk.biases)} == {torch.float32}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(("layer", "samples"), [("conv1", 5), ("conv2", 9), ("conv3", 13)])
def test_receptive_fields_against_gradients(layer, samples):
    trunk = folded_trunk(lived_in(made(n_units=8)))
    assert trunk.receptive_field(layer) == samples
    x = torch.randn(64, 30, generator=torch.Generator().manual_seed(3), requires_grad=True)
    trunk.feature_map(x, layer)[:, :, 15].sum().backward()
    (seen,) = torch.nonzero(x.grad.abs().sum(0), as_tuple=True)
    half = samples // 2
    assert seen.tolist() == list(range(15 - half, 15 + half + 1))


@pytest.mark.parametrize("call", ["depth", "receptive_field", "feature_map"])
def test_an_unknown_layer_lists_the_valid_ones(call):
    trunk = folded_trunk(made())
    arguments = (torch.zeros(1, 30), "conv4") if call == "feature_map" else ("conv4",)
    with pytest.raises(ValueError, match="unknown layer 'conv4'; valid layers: conv1, conv2, conv3$"):
        getattr(trunk, call)(*arguments)


# ----------------------------------------------------------------------------------------------- new networks


def test_weights_depend_on_the_seed_alone(tiny_windows):
    state = torch.random.get_rng_state()
    first = supervised.new_model(tiny_windows, SMALL, seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator is left as it was"
    torch.rand(5)
    again = supervised.new_model(tiny_windows, SMALL, seed=3).state_dict()
    other = supervised.new_model(tiny_windows, SMALL, seed=4).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in first.items())
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_unknown_layer_and_even_kernel_are_refused():
    model = SFHF(2, 30, 3, ModelSettings(n_units=4))
    with pytest.raises(ValueError, match="unknown layer 'conv9'; valid layers: conv1, conv2, conv3"):
        model.feature_maps(torch.zeros(1, 2, 30), upto="conv9")
    assert tuple(model.feature_maps(torch.zeros(1, 2, 30), "conv2")) == ("conv1", "conv2")
    with pytest.raises(ValueError, match="kernel 4 must be odd"):
        SFHF(2, 30, 3, ModelSettings(kernel=4))
