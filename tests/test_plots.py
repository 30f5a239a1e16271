"""Figures: axes named with units, legends and titles off the data, the caveat on every figure, nothing lost."""

import ast
import inspect
import io

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from harvis_utils.figures import plots, plots_evidence

ACTIVITIES = [f"activity number {i}" for i in range(19)]
LAYERS = ["conv1", "conv2", "conv3"]
METHODS = list(plots.METHOD_COLOURS)
CAVEAT = "made-up data"
UNITS = 24


def _r():
    return np.random.default_rng(0)


def signals(n=UNITS):
    return _r().normal(size=(n, 30)).cumsum(1) / 4


def bars(*names):
    mean = _r().lognormal(size=(len(names), 3))
    return {name: np.stack([m, m * 0.8, m * 1.3], 1) for name, m in zip(names, mean, strict=True)}


def by_method():
    return dict(zip(METHODS, signals(len(METHODS)), strict=True))


SIX = [f"{sensor} {axis}" for sensor in ("right arm", "left leg") for axis in "xyz"]
CURVES = {split: _r().random((2, 6)) for split in ("train", "val", "test")}
STEPS = np.unique(np.geomspace(1, 5000, 20).astype(int))
COUNTS, EDGES = np.histogram(np.abs(_r().normal(size=500)), 20)

FIGURES = {
    "recordings": lambda: plots.plot_recordings([_r().normal(size=(90, 6))] * 7, ACTIVITIES[:7], SIX, 30, CAVEAT),
    "class_balance": lambda: plots.plot_class_balance({"train": [9] * 19, "val": [2] * 19}, ACTIVITIES, CAVEAT),
    "subject_split": lambda: plots.plot_subject_split(
        np.ones((4, 19)), [1, 2, 3, 4], {"train": (1, 2), "val": (3,), "test": (4,)}, ACTIVITIES, CAVEAT
    ),
    "amplitude_histogram": lambda: plots.plot_amplitude_histogram(COUNTS, EDGES, 1.2, 1.37, CAVEAT),
    "training_curves": lambda: plots.plot_training_curves(CURVES, CURVES, [3, 6], 0.737, CAVEAT),
    "confusion": lambda: plots.plot_confusion(_r().dirichlet(np.ones(19), 19), ACTIVITIES, CAVEAT),
    "f1_bars": lambda: plots.plot_f1_bars(_r().random((2, 19)), ACTIVITIES, caveat=CAVEAT),
    "unit_methods": lambda: plots.plot_unit_methods(by_method(), by_method(), 0.4, 0.5, title="T", caveat=CAVEAT),
    "signal_gallery": lambda: plots.plot_signal_gallery(
        signals(), [f"unit {i}" for i in range(UNITS)], np.abs(signals()), title="T", caveat=CAVEAT
    ),
    "history": lambda: plots.plot_history(
        STEPS, {"objective": {m: STEPS for m in METHODS}, "amplitude [G]": {"naive": STEPS}}, "T", CAVEAT
    ),
    "scores": lambda: plots.plot_scores(
        bars(*METHODS), LAYERS, bars("starting sine", "noise"), {"naive": [3, 0, 0]}, log=True, title="T", caveat=CAVEAT
    ),
    "ratio": lambda: plots.plot_ratio(bars(*METHODS), LAYERS, bars("noise"), title="T", caveat=CAVEAT),
    "nearest_pairs": lambda: plots.plot_nearest_pairs(
        signals(3),
        signals(3),
        [0, 5, 20],
        [1, 2, 3],
        10,
        signals(3),
        signals(3),
        "abc",
        "def",
        title="T",
        caveat=CAVEAT,
    ),
    "atlas": lambda: plots.plot_atlas(
        _r().normal(size=(UNITS, 2)), signals(), np.arange(UNITS) % 20 - 1, ACTIVITIES, "T", CAVEAT
    ),
    "sensitivity": lambda: plots.plot_sensitivity(
        _r().normal(size=(2, 3, UNITS, 2)),
        [5, 15],
        [0, 1, 2],
        np.arange(UNITS) % 19,
        ACTIVITIES,
        np.ones((2, 3)),
        "T",
        CAVEAT,
    ),
    "distributions": lambda: plots.plot_distributions(
        {layer: _r().random(UNITS) for layer in LAYERS}, "complexity [frequencies]", {"sine": 1.0}, "T", CAVEAT
    ),
    "sweep": lambda: plots.plot_sweep(
        np.arange(1, 6), {"lowpass": np.ones(5)}, "cut-off [Hz]", "share", True, False, "T", CAVEAT
    ),
}


def points(n):
    """(n, 3): a value between 0.1 and 0.5, and the ends of its interval."""
    value = _r().uniform(0.1, 0.5, (n, 1))
    return value + np.array([0.0, -0.05, 0.05])


READINGS = 40
CONTROLS = list(plots_evidence.CONTROL_COLOURS)
RECIPES = [f"prior per unit 0.03, best of 5, number {i}" for i in range(23)]
FIGURES |= {
    "readings": lambda: plots_evidence.plot_readings(
        _r().choice([-1.0, 0.0, 1.0, np.nan], (17, READINGS)),
        [f"C{3 + i // 3} a fact of some length, number {i}" for i in range(17)],
        pd.Series(np.linspace(1, 0, READINGS), index=[f"reading {i}" for i in range(READINGS)]),
        np.arange(READINGS) < 5,
        {
            "optimizer": list(_r().choice(["adam", "ascent"], READINGS)),
            "step size": list(_r().choice([1e-4, 0.1], READINGS)),
        },
        3,
        "T",
        CAVEAT,
    ),
    "reading_factors": lambda: plots_evidence.plot_reading_factors(
        {
            "optimizer": {"adam": (0.4, 0.1, 0.7), "ascent": (0.3, 0.0, 0.6), "momentum": (0.3, 0.0, 0.6)},
            "step size": {f"{v:g}": (0.4, 0.1, 0.7) for v in (1e-4, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)},
            "L2 and TV": {"sum": (0.4, 0.1, 0.7), "mean": (0.3, 0.0, 0.6)},
        },
        "T",
        CAVEAT,
    ),
    "two_axes": lambda: plots_evidence.plot_two_axes(
        {m: [(v, w) for v, w in zip(points(3), points(3), strict=True)] for m in METHODS},
        {c: [(v, w) for v, w in zip(points(3), points(3), strict=True)] for c in CONTROLS},
        LAYERS,
        "T",
        CAVEAT,
    ),
    "recall": lambda: plots_evidence.plot_recall(
        {m: points(4) for m in [*METHODS, "random weights", "phase-scrambled", "real windows"]},
        ["all motifs", "5 samples", "9 samples", "13 samples"],
        0.05,
        "T",
        CAVEAT,
    ),
    "dependence": lambda: plots_evidence.plot_dependence(
        {
            name: {"level": np.arange(4), **{k: _r().random((4, 3)) for k in ("recall", "random weights", "macro F1")}}
            for name in ("noise_g", "prevalence", "n_units", "epochs")
        },
        {"noise_g": "noise added [G]", "prevalence": "share planted", "n_units": "units", "epochs": "epochs"},
        0.05,
        "T",
        CAVEAT,
    ),
    "agreement": lambda: plots_evidence.plot_agreement(
        {la: _r().random(10) for la in LAYERS},
        {n: {la: _r().random(10) for la in LAYERS} for n in ("random weights", "phase-scrambled")},
        "T",
        CAVEAT,
    ),
    "recipes": lambda: plots_evidence.plot_recipes(
        {n: (v - 0.3, w - 0.3) for n, v, w in zip(RECIPES, points(23), points(23)[::-1], strict=True)},
        RECIPES[4],
        [f"family {i // 4}" for i in range(23)],
        "T",
        CAVEAT,
    ),
}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def rendered(figure):
    """The figure drawn once; closing it for pyplot has left it without a renderer."""
    FigureCanvasAgg(figure).draw()
    return figure


def texts(figure):
    return [t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]


@pytest.fixture(params=FIGURES, scope="module")
def drawn(request):
    with matplotlib.rc_context():
        plots.use_style()
        yield rendered(FIGURES[request.param]())


def test_every_figure_is_readable_and_says_its_caveat(drawn):
    said = [t.get_text() for t in texts(drawn)]
    assert CAVEAT in said
    sizes = [t.get_fontsize() for t in texts(drawn) if not t.get_text().startswith("$")]
    assert min(sizes) >= 9
    assert drawn.get_figwidth() <= plots.WIDTH
    assert plt.get_fignums() == []  # closed: a notebook shows it once


def test_every_figure_names_its_axes(drawn):
    labels = {ax.get_xlabel() for ax in drawn.axes} | {drawn.get_supxlabel()}
    assert {label for label in labels if label and label != CAVEAT}
    assert any(ax.get_ylabel() for ax in drawn.axes) or drawn.get_supylabel()


def test_legends_and_titles_never_cover_data(drawn):
    renderer = drawn.canvas.get_renderer()
    frames = [ax.get_window_extent(renderer) for ax in drawn.axes if ax.get_visible()]
    outside = [legend.get_window_extent(renderer) for legend in drawn.legends]
    outside += [t.get_window_extent(renderer) for t in drawn.texts if t.get_text().strip()]
    for box in outside:
        assert not any(box.overlaps(frame) for frame in frames)
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= drawn.bbox.x1 + 1 and box.y1 <= drawn.bbox.y1 + 1
    assert not any(a.overlaps(b) for i, a in enumerate(outside) for b in outside[:i])


def test_without_a_caveat_nothing_is_said():
    figure = plots.plot_sweep(np.arange(3), {"a": np.arange(3)}, "x", "y")
    assert figure.get_supxlabel() == ""
    assert not [t for t in texts(figure) if "data" in t.get_text()]


def test_nineteen_classes_are_told_apart():
    colours, markers = plots.class_colours(ACTIVITIES), plots.class_markers(ACTIVITIES)
    assert list(colours) == ACTIVITIES
    looks = {(colours[a], markers[a]) for a in ACTIVITIES}
    assert len({colour for colour, _ in looks}) == len(looks) == 19
    rgb = np.array([matplotlib.colors.to_rgb(colours[a]) for a in ACTIVITIES])
    apart = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + np.eye(19)
    assert apart.min() > 0.08


def test_methods_have_colours_and_controls_greys():
    colours = plots.method_colours(["sine", "noise"])
    assert len(colours) == len(set(colours.values())) == len(plots.METHOD_COLOURS) + 2
    assert all(len(set(matplotlib.colors.to_rgb(colours[name]))) == 1 for name in ("sine", "noise"))


def test_signal_is_the_line_and_map_the_bars():
    figure, axes = plt.subplots()
    plt.close(figure)
    signal, unit_map = signals(2)
    unit_map = np.abs(unit_map)
    twin = plots.plot_signal_with_map(axes, signal, unit_map, 30, th=0.4, p95=0.5)
    assert any(np.array_equal(line.get_ydata(), signal) for line in axes.lines)
    assert [bar.get_height() for bar in twin.patches] == pytest.approx(unit_map)
    assert {line.get_label(): line.get_ydata()[0] for line in twin.lines} == {"95 % point": 0.5, "th": 0.4}
    assert axes.get_xlabel() == "time [s]" and axes.get_ylabel() == "signal [G]"
    assert plots.plot_signal_with_map(axes, signal) is None


def test_scores_show_means_ranges_failures_and_what_is_missing():
    values = bars("naive", "L2+TV")
    values["naive"][1] = np.nan
    controls = {"flat zero": np.zeros((3, 3))}
    figure = plots.plot_scores(values, LAYERS, controls, {"naive": [0, 16, 0], "L2+TV": [2, 0, 0]}, log=True)
    said = [t.get_text() for t in texts(figure)]
    assert "n/a 16 failed" in said and "2 failed" in said and said.count("0") == 3
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights[3:6] == pytest.approx(values["L2+TV"][:, 0])
    plain = plots.plot_scores(values, LAYERS, controls)
    segments = plain.axes[0].collections[1].get_segments()
    assert [s[:, 1].tolist() for s in segments] == [pytest.approx(row[1:]) for row in values["L2+TV"]]


def test_ratio_has_the_line_at_one():
    axes = plots.plot_ratio(bars("naive"), LAYERS).axes[0]
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [1.0]


def test_gallery_says_the_peak_of_a_signal_it_cuts():
    many = signals()
    many[3] *= 50
    figure = plots.plot_signal_gallery(many, [f"unit {i}" for i in range(UNITS)])
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[3] == f"unit 3 (to {np.abs(many[3]).max():.1f} G)"
    assert titles[4] == "unit 4"


def test_atlas_lines_end_at_their_units():
    positions = _r().normal(size=(UNITS, 2))
    activities = np.zeros(UNITS, int)
    figure = rendered(plots.plot_atlas(positions, signals(), activities, ACTIVITIES[:1], n_thumbnails=8))
    places = figure.axes[0].transData.transform(positions)
    ends = np.array([figure.transFigure.transform(line.get_xydata()[1]) for line in figure.artists])
    assert len(ends) == 8 == len(figure.axes) - 1
    gap = np.linalg.norm(ends[:, None] - places, axis=-1).min(1)
    assert gap == pytest.approx(np.zeros(8), abs=0.5)


def test_atlas_counts_units_without_a_place():
    positions = _r().normal(size=(UNITS, 2))
    positions[[0, 5]] = np.nan
    figure = plots.plot_atlas(positions, signals(), np.zeros(UNITS, int), ACTIVITIES[:1], n_thumbnails=UNITS)
    assert any("2 units without a place" in t.get_text() for t in texts(figure))
    numbers = {ax.get_title(loc="left").split(" ")[0] for ax in figure.axes[1:]}
    assert numbers <= {str(u) for u in range(UNITS)} - {"0", "5"} and len(numbers) == len(figure.axes) - 1


def test_plots_imports_nothing_of_the_package():
    tree = ast.parse(inspect.getsource(plots))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in imported if name.startswith("harvis_utils")]


def test_beside_null_draws_every_network_and_its_null_and_says_what_is_missing():
    values = {"Hopkins": {"conv1": [0.9, 0.8], "conv2": [None, None]}}
    values["spread"] = {"conv1": [0.2, 0.3], "conv2": [0.5, 0.4]}
    nulls = {name: {layer: [0.6, 0.6] for layer in by} for name, by in values.items()}
    figure = rendered(plots.plot_beside_null(values, nulls, title="T", caveat=CAVEAT))
    first, second = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == ["Hopkins", "spread"]
    assert first.lines[0].get_ydata().tolist() == [0.9, 0.8] and second.lines[1].get_ydata().tolist() == [0.5, 0.4]
    assert "n/a" in [t.get_text() for t in first.texts] and not second.texts
    assert CAVEAT in [t.get_text() for t in texts(figure)]


def test_score_panels_have_a_row_for_every_method_and_control():
    panels = {preset: bars(*METHODS) for preset in ("literal", "calibrated")}
    panels["literal"]["naive"] = np.full((3, 3), np.nan)
    figure = rendered(
        plots.plot_score_panels(panels, LAYERS, bars("noise", "zero"), line=1.0, title="T", caveat=CAVEAT)
    )
    assert [ax.get_title() for ax in figure.axes] == list(panels)
    left = figure.axes[0]
    assert [t.get_text() for t in left.get_yticklabels()] == [*METHODS, "noise", "zero"]
    assert sum(line.get_marker() == "<" for line in left.lines) == 3  # naive has no value in any layer
    drawn = {round(float(line.get_xdata()[0]), 9) for line in left.lines if line.get_marker() in plots.MARKERS}
    assert drawn >= {round(float(v), 9) for v in panels["literal"]["L2+TV"][:, 0]}


def test_the_atlas_is_shown_twice_without_a_warning(recwarn):
    plots.use_style()
    figure = plots.plot_atlas(_r().normal(size=(UNITS, 2)), signals(), np.zeros(UNITS, int), ACTIVITIES[:1])
    for _ in range(2):
        figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
    assert not [str(w.message) for w in recwarn if "layout" in str(w.message)]
