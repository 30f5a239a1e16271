"""Figures of network dissection, held to what every figure is held to, and what each of them draws."""

import matplotlib
import numpy as np
import pytest
import test_plots
from test_plots import (  # noqa: F401 (tests and fixtures that run here on other figures)
    CAVEAT,
    LAYERS,
    rendered,
    style,
    test_every_figure_is_readable_and_says_its_caveat,
    test_every_figure_names_its_axes,
    test_legends_and_titles_never_cover_data,
    texts,
)

from harvis_utils.figures import plots, plots_dissection

WHO = list(plots_dissection.WHO_COLOURS)
RULES = ["IoU > 0.04", "above chance", "above chance within an activity"]
LEVELS = ["16 units, batch norm, labels", "4 units", "no batch norm", "no labels"]
NAMES = [f"oscillation {i}-{i + 1} Hz" for i in range(13)]
ANGLES = [0.0, 0.5, 1.0]


def random(*shape):
    return np.random.default_rng(0).random(shape)


def points(n):
    return random(n, 1) + np.array([0.3, 0.1, 0.5])


FIGURES = {
    "concepts": lambda: plots_dissection.plot_concepts(
        random(3, 30), random(3, 13, 30) < 0.3, NAMES, ["walking, right arm x"] * 3, 30, "T", CAVEAT
    ),
    "detections": lambda: plots_dissection.plot_detections(
        random(7, 30),
        random(7, 30) < 0.2,
        random(7, 30) < 0.3,
        ["conv1 unit 3: rising edge\nIoU 0.14"] * 7,
        30,
        4,
        "T",
        CAVEAT,
    ),
    "best_iou": lambda: plots_dissection.plot_best_iou(
        {who: {la: random(40) * 0.2 for la in LAYERS} for who in WHO}, 0.04, 0.01, "T", CAVEAT
    ),
    "unique": lambda: plots_dissection.plot_unique(
        {rule: {who: points(3) for who in WHO} for rule in RULES}, LAYERS, "unique detectors", "T", CAVEAT
    ),
    "rotation": lambda: plots_dissection.plot_rotation(
        ANGLES,
        {
            m: {la: {who: points(3) for who in WHO[::2]} for la in LAYERS}
            for m in ("unique detectors, IoU > 0.04", "mean IoU")
        },
        "T",
        CAVEAT,
    ),
    "factors": lambda: plots_dissection.plot_factors(
        {la: {le: {who: random(5) * 9 for who in WHO[::2]} for le in LEVELS} for la in LAYERS},
        "unique detectors",
        "T",
        CAVEAT,
    ),
    "ablation": lambda: plots_dissection.plot_ablation(
        {la: random(50) * 0.1 for la in LAYERS},
        {la: random(50) - 0.2 for la in LAYERS},
        "drop in probability",
        "T",
        CAVEAT,
    ),
    "motif_iou": lambda: plots_dissection.plot_motif_iou(
        {la: {who: random(9, 2) for who in WHO} for la in LAYERS}, [f"short {i}" for i in range(9)], "T", CAVEAT
    ),
}


@pytest.fixture(params=FIGURES, scope="module")
def drawn(request):
    with matplotlib.rc_context():
        plots.use_style()
        yield rendered(FIGURES[request.param]())


def test_every_figure_has_its_data_here():
    made = {name.removeprefix("plot_") for name in vars(plots_dissection) if name.startswith("plot_")}
    assert made == set(FIGURES) and not made & set(test_plots.FIGURES)


def test_bands_are_where_masks_are():
    unit, concept = np.arange(30) == 4, np.arange(30) >= 25
    figure = plots_dissection.plot_detections(random(1, 30), [unit], [concept], ["a"], 30)
    bars = [(round((bar.get_x() + bar.get_width() / 2) * 30), bar.get_y()) for bar in figure.axes[0].patches]
    assert bars == [(4, 0.9), *((t, 0.0) for t in range(25, 30))]


def test_every_unit_network_and_interval_is_drawn():
    best = {who: {la: random(40) * 0.2 for la in LAYERS} for who in WHO}
    axes = plots_dissection.plot_best_iou(best, 0.04, 0.01).axes[1]
    assert [sorted(line.get_ydata()) for line in axes.lines[:3]] == [sorted(best[who]["conv2"]) for who in WHO]
    assert [line.get_ydata()[0] for line in axes.lines[3:]] == [0.04, 0.01]
    counts = {rule: {who: points(3) + k for who in WHO} for k, rule in enumerate(RULES)}
    axes = plots_dissection.plot_unique(counts, LAYERS).axes[2]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(
        np.ravel([v[:, 0] for v in counts[RULES[2]].values()])
    )
    ends = np.concatenate([[s[:, 1] for s in c.get_segments()] for c in axes.collections])
    assert ends == pytest.approx(np.concatenate([v[:, 1:] for v in counts[RULES[2]].values()]))
    curves = {"m": {la: {"trained": points(3)} for la in LAYERS}}
    line = plots_dissection.plot_rotation(ANGLES, curves).axes[1].lines[0]
    assert np.array_equal(line.get_ydata(), curves["m"]["conv2"]["trained"][:, 0])
    rising = {"m": {la: {"trained": points(3) * (1 + k)} for k, la in enumerate(LAYERS)}}
    for ax in plots_dissection.plot_rotation(ANGLES, rising).axes:
        assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] >= max(v["trained"].max() for v in rising["m"].values())
    best["trained"]["conv3"] = np.array([0.9])
    assert all(ax.get_ylim()[1] > 0.9 for ax in plots_dissection.plot_best_iou(best, 0.04, 0.01).axes)
    own = {la: {le: {who: random(5) for who in WHO[::2]} for le in LEVELS} for la in LAYERS}
    lines = plots_dissection.plot_factors(own, "x").axes[0].lines
    assert np.array_equal(lines[3].get_xdata(), own["conv1"]["4 units"]["random weights"])
    mask = random(1, 13, 30) < 0.3
    assert np.array_equal(
        plots_dissection.plot_concepts(random(1, 30), mask, NAMES, ["a"]).axes[1].images[0].get_array(), mask[0]
    )
    overlap, drop = {la: random(5) for la in LAYERS}, {la: random(5) - 1 for la in LAYERS}
    line = plots_dissection.plot_ablation(overlap, drop, "drop").axes[2].lines[1]
    assert np.array_equal(line.get_xydata(), np.stack([overlap["conv3"], drop["conv3"]], 1))
    motifs = {la: {who: random(2, 3) for who in WHO} for la in LAYERS}
    lines = plots_dissection.plot_motif_iou(motifs, ["a", "b"]).axes[0].lines
    shown = np.concatenate([line.get_xdata() for line in lines if len(line.get_xdata())])
    assert sorted(shown) == sorted(np.concatenate([v.ravel() for v in motifs["conv1"].values()]))
    assert CAVEAT not in [t.get_text() for t in texts(rendered(plots_dissection.plot_motif_iou(motifs, ["a", "b"])))]
