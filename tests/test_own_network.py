"""Every lens works on a user's network, by a layer's name, and README's code draws the paper's figure of one."""

import ast
import copy
import re

import numpy as np
import pytest
import torch
from example_network import OneD, TwoD, through_every_lens
from other_networks import DeepConvLSTM, np_deep_conv_lstm, weights_of
from torch.nn import functional as F

from harvis_utils.data import archive, windowing
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.networks import taps
from harvis_utils.settings import REPOSITORY, load_settings

README = REPOSITORY / "README.md"
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


def trained_deep_conv_lstm(windows: Windows) -> DeepConvLSTM:
    """As its owner has it: for windows (window, 1, time, axis), convolutions without padding."""
    torch.manual_seed(0)
    network = DeepConvLSTM(folded=False, n_axes=len(windows.axes), n_classes=len(windows.activities))
    x, y = torch.tensor(windows.train.x).transpose(1, 2)[:, None], torch.as_tensor(windows.train.activity)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


def test_readme_draws_the_papers_figure_for_a_deep_conv_lstm():
    windows = windowing.cut(archive.load_recordings("synthetic"), load_settings("quick", "synthetic").windows)
    windows = windows.thinned(300)
    x, network = windows.train.x, trained_deep_conv_lstm(windows)
    (shown,) = re.findall(r"## Your own network.*?```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(shown.splitlines()) <= 10
    *before, drawn = ast.parse(shown).body  # a notebook shows what the last line gives
    names = {"network": network, "x": x}
    exec(compile(ast.Module(before, []), "README.md", "exec"), names)
    figure = eval(compile(ast.Expression(drawn.value), "README.md", "eval"), names)

    def outputs(signals: np.ndarray) -> np.ndarray:
        """Maps of unit 3 (window, axis, time), computed in NumPy."""
        return np_deep_conv_lstm(weights_of(network), signals.astype(np.float64), 0)[0][:, 3]

    seen = outputs(x)
    th = seen[seen > 0].mean() + 2 * seen[seen > 0].std()
    found = {}
    for ax, twin in zip(figure.axes[:2], figure.axes[2:], strict=True):
        signal = ax.lines[1].get_ydata()  # behind the line at zero
        bars = np.array([bar.get_height() for bar in twin.patches])
        expected = outputs(np.tile(signal, (1, len(windows.axes), 1)))[0, 0]
        assert bars == pytest.approx(expected, rel=1e-3, abs=1e-3 * th)
        # four convolutions of five samples without padding: the first output is about sample 8
        middles = [bar.get_x() + bar.get_width() / 2 for bar in twin.patches]
        assert middles == pytest.approx(np.arange(8, 22) / 30)
        levels = {line.get_label(): line.get_ydata()[0] for line in twin.lines}
        assert levels == pytest.approx({"95 % point": np.quantile(seen, 0.95), "th": th}, rel=1e-3)
        found[ax.get_title()] = np.abs(signal).max(), bars.max() / th
    naive, proposed = found["naive"], found["L2+TV+EAP+clip"]
    assert naive[0] > 10 and naive[1] > 5, "naive ascent explodes, as in the paper's Fig. 1"
    assert proposed[0] < 3 and 0.5 < proposed[1] < 1.5
