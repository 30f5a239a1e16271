"""Every lens works on a user's network, by a layer's name; README shows how, with the code that is run here."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from example_network import OneD, TwoD, through_every_lens

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.networks import taps
from harvis_utils.settings import REPOSITORY

N_AXES, LENGTH, CLASSES = 6, 30, ("still", "slow", "fast")


def made_windows() -> Windows:
    """Sines of the classes' frequencies with some noise."""
    rng = np.random.default_rng(0)
    activity = np.repeat(np.arange(3), 8)
    time = np.arange(LENGTH) / 30
    one = np.sin(2 * np.pi * activity[:, None, None] * 2 * time + rng.uniform(0, 6, (24, N_AXES, 1)))
    series = (one * (activity > 0)[:, None, None] + 0.05 * rng.normal(size=one.shape)).transpose(0, 2, 1)
    number = np.arange(24)
    split = Split(
        series.reshape(-1, N_AXES).astype(np.float32),
        number * LENGTH,
        activity,
        number % 3,
        number,
        number * 0,
        length=LENGTH,
    )
    axes = tuple(f"{place} {axis}" for place in ("arm", "leg") for axis in "xyz")
    return Windows(split, split, split, activities=CLASSES, axes=axes, rate_hz=30.0, caveat="made-up data")


NETWORKS = {
    "channels x time": (lambda: OneD(N_AXES, 3), "body.1", 8),
    "sensors x time": (lambda: taps.WithChannel(TwoD(N_AXES, 3)), "network.second", 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_lens_sees_a_layer_of_another_network_and_leaves_it_as_it_was(name):
    torch.manual_seed(0)
    make, layer, n_units = NETWORKS[name]
    network, data = make().train(), made_windows()
    before = copy.deepcopy(network.state_dict())
    found = through_every_lens(network, layer, data, data.train)
    shape = (N_AXES, LENGTH)
    seen = found["visualization"]
    assert seen.signal.shape == (2, *shape) and (seen.score > seen.history[:, 0]).all()
    assert found["dissection"]["iou"].shape[0] == n_units and float(found["dissection"]["iou"].max()) > 0
    assert found["ablation"]["f1"].shape == (1, n_units, 3)
    assert found["deconvnet"].shape == (9, *shape) and found["deconvnet"].abs().amax((1, 2)).min() > 0
    assert found["occlusion"]["log_odds"].shape == (9, *shape)
    climbed = found["slopes"]
    assert (climbed.maximum >= climbed.curve[:, 0]).all() and (climbed.maximum > climbed.curve[:, 0]).any()
    assert network.training and all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks]
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_an_unknown_layer_is_refused_with_the_valid_names(name):
    make, layer, _ = NETWORKS[name]
    data = made_windows()
    with pytest.raises(ValueError, match=f"unknown layer 'conv9'; valid layers: .*{re.escape(layer)}"):
        through_every_lens(make(), "conv9", data, data.train)


def test_readme_shows_this_code():
    source = Path(__file__).with_name("example_network.py").read_text(encoding="utf-8")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"## Your own network.*?```python\n(.*?)```", readme, re.S)
    lines = [line.strip() for line in source.splitlines()]
    for line in shown.splitlines():
        if line.strip() and not line.startswith("#"):
            assert line.strip() in lines, f"README shows {line!r}, which is not in example_network.py"
