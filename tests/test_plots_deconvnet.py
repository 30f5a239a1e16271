"""Figures of notebook 12, by the checks of every figure."""

import matplotlib
import numpy as np
import pytest
from test_plots import (  # noqa: F401 (tests and fixtures)
    ACTIVITIES,
    CAVEAT,
    LAYERS,
    SIX,
    rendered,
    style,
    test_every_figure_is_readable_and_says_its_caveat,
    test_every_figure_names_its_axes,
    test_legends_and_titles_never_cover_data,
)

from harvis_utils.figures import plots, plots_deconvnet

VARIANTS = {"first layer": ["as the paper", "width 9, stride 4"], "layers": ["one convolution, no dense layer"]}
TARGETS = ("new people", "new people, new activities")
ARMS = ("frozen, new last layer", "from scratch", "random weights, new last layer")


def _r():
    return np.random.default_rng(0)


def spans():
    found = np.zeros((3, 6, 30), bool)
    found[:, ::2, 10:19] = True
    return found


def three(n):
    value = _r().uniform(0.3, 0.6, n)
    return np.stack([value, value - 0.1, value + 0.1])


FIGURES = {
    "projections": lambda: plots_deconvnet.plot_projections(
        _r().normal(size=(3, 9, 30)),
        _r().normal(size=(3, 9, 30)),
        ["conv1 2", "conv2 4", "conv3 7"],
        [[str(i) for i in range(9)]] * 3,
        30,
        "T",
        CAVEAT,
    ),
    "windows": lambda: plots_deconvnet.plot_windows(
        _r().normal(size=(3, 6, 30)),
        {name: _r().normal(size=(3, 6, 30)) for name in ("occlusion", "deconvnet, conv2", "random weights")},
        ACTIVITIES[:3],
        SIX,
        30,
        spans(),
        {name: [(1, 4)] * 3 for name in ("occlusion", "deconvnet, conv2", "random weights")},
        "T",
        CAVEAT,
    ),
    "locating": lambda: plots_deconvnet.plot_locating(
        {f"deconvnet, conv{i}, 9 strongest": {k: three(1)[:, 0] for k in ("trained", "random")} for i in range(8)},
        {f"deconvnet, conv{i}, 9 strongest": {k: (0.5, 0.2) for k in ("trained", "random")} for i in range(8)},
        0.3,
        0.9,
        "T",
        CAVEAT,
    ),
    "evolution": lambda: plots_deconvnet.plot_evolution(
        [0, 1, 2, 5],
        {m: {la: three(4) for la in LAYERS} for m in ("maps", "projections")},
        0.9,
        {m: dict.fromkeys(LAYERS, 2) for m in ("maps", "projections")},
        "T",
        CAVEAT,
    ),
    "units_over_epochs": lambda: plots_deconvnet.plot_units_over_epochs(
        _r().normal(size=(6, 8, 13)),
        [0, 1, 2, 5, 10, 20, 30, 64],
        [f"conv1 {i}" for i in range(6)],
        _r().random((6, 8)) < 0.5,
        "T",
        CAVEAT,
    ),
    "variants": lambda: plots_deconvnet.plot_variants(
        {q: {v: three(1)[:, 0] for v in names} for q, names in VARIANTS.items()},
        {v: {"low": 0.2, "middle": 0.3, "high": 0.5} for names in VARIANTS.values() for v in names},
        {v: 0.4 for names in VARIANTS.values() for v in names},
        "T",
        CAVEAT,
    ),
    "transfer": lambda: plots_deconvnet.plot_transfer(
        {t: {a: three(4) for a in ARMS} for t in TARGETS}, (1, 5, 20, 60), "T", CAVEAT
    ),
    "sensor_drops": lambda: plots_deconvnet.plot_sensor_drops(
        {k: _r().normal(size=(19, 2)) for k in ("trained", "random weights")},
        ACTIVITIES,
        ["right arm", "left leg"],
        "T",
        CAVEAT,
    ),
}


@pytest.fixture(params=FIGURES, scope="module")
def drawn(request):
    with matplotlib.rc_context():
        plots.use_style()
        yield rendered(FIGURES[request.param]())


def test_peaks_and_spans_are_drawn_where_they_are():
    figure = FIGURES["windows"]()
    shown = figure.axes[1]
    cross = [line for line in shown.lines if line.get_marker() == "+"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in cross] == [(4 / 30, 1)]
    boxes = [line for line in shown.lines if line.get_marker() != "+"]
    assert {(min(b.get_xdata()), max(b.get_xdata())) for b in boxes} == {(9.5 / 30, 18.5 / 30)} and len(boxes) == 3


def test_shares_with_decoys_fill_their_bars():
    right = FIGURES["locating"]().axes[1]
    widths = [bar.get_width() for bar in right.patches[:3]]
    assert widths == pytest.approx([0.5, 0.2, 0.3])


def test_one_network_has_no_interval():
    lonely = {"first layer": {"a": (0.5, np.nan, np.nan), "b": (0.6, 0.5, 0.7)}}
    bands = {v: {"low": 0.2, "middle": 0.3, "high": 0.5} for v in "ab"}
    left = plots_deconvnet.plot_variants(lonely, bands, dict.fromkeys("ab", 0.0), caveat=CAVEAT).axes[0]
    assert [bool(container.has_xerr) for container in left.containers] == [False, True]
