"""Figures: axes named with units, legends and titles off the data, the caveat on every figure, nothing lost."""

import inspect
import io

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from PIL import Image

from harvis_utils.figures import draw_old, special, style, waves

ACTIVITIES = [f"activity number {i}" for i in range(19)]
LAYERS = ["conv1", "conv2", "conv3"]
METHODS = list(style.METHOD_COLOURS)
CONTROLS = ["starting-sine", "random-weights", "held-out-windows", "spectrum-noise"]
WHO = ["trained", "rotated", "random weights"]
SIX = [f"{sensor} {axis}" for sensor in ("right arm", "left leg") for axis in "xyz"]
ROWS = [f"deconvnet, conv{i}, 9 strongest" for i in range(8)]
UNITS = 24
SAID, CAVEAT = {"title": "T"}, "made-up data"


def random(*shape):
    return np.random.default_rng(0).random(shape)


def signals(n=UNITS):
    return np.random.default_rng(0).normal(size=(n, 30)).cumsum(1) / 4


def all_axes(n=UNITS):
    """Signals of units that mix six axes, (unit, axis, time)."""
    return signals(6 * n).reshape(n, 6, 30)


def ends(n):
    """(n, 3): values and the ends of their intervals."""
    return random(n, 1) + np.array([0.3, 0.1, 0.5])


def table(rows):
    return pd.DataFrame(ends(len(rows)), index=rows, columns=["x", "x low", "x high"])


def by_method(n_axes=None, at=None):
    """One unit under all methods, of a single axis, or of several with maps that look at the samples ``at``."""
    n, mixed = len(METHODS), () if n_axes is None else (n_axes,)
    signal = np.random.default_rng(0).normal(size=(n, *mixed, 30)).cumsum(-1) / 4
    time, coords = ("time", {}) if at is None else ("map_time", {"map_time": at})
    dims = ("technique", *(() if n_axes is None else ("axis",)), "time")
    made = {"signal": (dims, signal), "map": (("technique", time), random(n, 30 if at is None else len(at)))}
    return xr.Dataset(made, {"technique": METHODS} | coords)


LEVELS = xr.Dataset({"th_eap": 0.4, "p95": 0.5})


def shares(rows):
    return pd.DataFrame({"motif": 0.5, "decoy": 0.2, "elsewhere": 0.3}, index=rows)


def landscape():
    ticks = np.linspace(-1, 1, 21)
    surfaces = {"flat": (ticks, np.maximum(ticks, 0)), "gate": (ticks, np.maximum(ticks[:, None] + ticks, 0))}
    paths = {"flat": random(9, 4, 1), "gate": random(9, 4, 2)}
    return special.landscapes(surfaces, {"plain": paths, "slope": paths}, {"flat": (1.0,), "gate": (1.0, 1.0)}, **SAID)


FIGURES = {
    "points": lambda: draw_old.points(
        {"F1 of the layer": {k: table(ROWS) for k in WHO}, "b [G]": {k: table(ROWS) for k in WHO}}, "lens", **SAID
    ),
    "points, groups of rows": lambda: draw_old.points(
        {label: {"paper": table(["x"]), "recipes": table(ROWS)} for label in ("a", "b")}, "made how", {"c": 0.5}, **SAID
    ),
    "points, log": lambda: draw_old.points(
        {p: {la: table([*METHODS, *CONTROLS]) for la in LAYERS} for p in ("literal", "calibrated")},
        "x", log=True, **SAID,
    ),
    "points_and_shares": lambda: draw_old.points_and_shares(
        {k: table(ROWS) for k in WHO[::2]}, {k: shares(ROWS) for k in WHO[::2]}, ("g", "r", "y"),
        ("lens", "in a motif [share of windows]", "with decoys [share]"),
        {"chance": 0.3}, {"folded back": pd.Series(0.4, ROWS)}, **SAID,
    ),
    "bars": lambda: draw_old.bars(
        {"": {m: ends(3) for m in [*METHODS, *CONTROLS]}}, LAYERS, "layer", "Ssim [G²]", {"as in training": 1.0},
        {"naive": [3, 0, 0]}, log=True, **SAID,
    ),
    "bars, panels": lambda: draw_old.bars(
        {rule: {who: ends(3) for who in WHO} for rule in ("IoU > 0.04", "above chance within an activity, no others")},
        LAYERS, "layer", "unique detectors", **SAID,
    ),
    "stacked": lambda: draw_old.stacked(
        pd.DataFrame({"train": [9] * 19, "val": [2] * 19}, ACTIVITIES), "windows", "activity", **SAID
    ),
    "dots": lambda: draw_old.dots(
        {m: {who: {la: random(10) for la in LAYERS} for who in WHO} for m in ("Hopkins statistic", "spread")},
        "layer", **SAID,
    ),
    "dots, horizontal": lambda: draw_old.dots(
        {la: {who: dict.fromkeys(ACTIVITIES, random(4)) for who in WHO} for la in LAYERS}, "F1", "activity",
        {"paper": 0.7}, horizontal=True, **SAID,
    ),
    "dots, many": lambda: draw_old.dots(
        {la: {who: {"": random(200)} for who in WHO} for la in LAYERS}, "units, sorted", "IoU with the best concept",
        {"IoU 0.04": 0.04, "chance": 0.01}, middle="median", **SAID,
    ),
    "lines": lambda: draw_old.lines(
        {la: {who: ends(5) for who in WHO} for la in LAYERS}, [0, 1, 3, 10, 60], "step", "share of the highest known",
        scale="symlog", rings={"conv1": {"trained": [3]}}, **SAID,
    ),
    "lines, levels": lambda: draw_old.lines(
        {la: {who: ends(6) for who in WHO} for la in LAYERS}, [0, 0.01, 0.1, 0.3, 0.5, 1], "slope", "gain",
        {"none": 0.0}, levels=True, **SAID,
    ),
    "lines, each": lambda: draw_old.lines(
        {name: {s: random(6, 2) for s in ("train", "val")} for name in ("cross entropy [nat]", "macro F1", "c", "d")},
        range(1, 7), "epoch", each=True, columns=2, **SAID,
    ),
    "plane": lambda: draw_old.plane(
        {la: {m: (ends(1), ends(1)) for m in METHODS} for la in LAYERS}, "nearness", "activation",
        {m: (c, "o") for m, c in style.METHOD_COLOURS.items()}, {"real windows": 0.5}, **SAID,
    ),
    "plane, numbered": lambda: draw_old.plane(
        {"": {f"prior per unit 0.03, best of {i}": (ends(1), ends(1)) for i in range(23)}}, "near", "up", zero=True,
        numbered=True, **SAID,
    ),
    "plane, dots": lambda: draw_old.plane({la: {"": (random(50), random(50))} for la in LAYERS}, "IoU", "drop", **SAID),
    "heat": lambda: draw_old.heat(
        {"": pd.DataFrame(random(19, 19), ACTIVITIES, ACTIVITIES)}, "predicted", "true", "share", ".0%", 0.005, **SAID
    ),
    "heat, panels": lambda: draw_old.heat(
        {k: pd.DataFrame(random(19, 2) - 0.5, ACTIVITIES, ["right arm", "left leg"]) for k in WHO}, "sensor covered",
        "activity", "drop of the log odds", **SAID,
    ),
    "recordings": lambda: waves.recordings([random(90, 6)] * 7, ACTIVITIES[:7], SIX, 30),
    "unit_methods": lambda: waves.unit_methods(by_method(), LEVELS, **SAID),
    "unit_methods, all axes": lambda: waves.unit_methods(by_method(6, 4.5 + 2 * np.arange(11)), LEVELS, **SAID),
    "nearest_pairs": lambda: waves.nearest_pairs(
        signals(3), signals(3), [0, 5, 20], [1, 2, 3], 10, (signals(3), signals(3)), ("abc", "def"), **SAID
    ),
    "gallery": lambda: waves.gallery(signals(), [f"unit {i}" for i in range(UNITS)], np.abs(signals()), **SAID),
    "waves": lambda: waves.waves(
        {k: signals(18).reshape(6, 3, 30) for k in ("a real window", "after one draw")}, SIX, ACTIVITIES[:3], **SAID
    ),
    "waves, beside": lambda: waves.waves(
        {k: signals(18).reshape(6, 3, 30) for k in ("made", "strongest", "weakest")}, SIX, ["max", "min"], beside=True,
        **SAID,
    ),
    "waves, own scale": lambda: waves.waves(
        {k: signals(27).reshape(3, 9, 30) for k in ("window", "projection")}, LAYERS,
        [[str(i) for i in range(9)]] * 3, own_scale=True, **SAID,
    ),
    "windows": lambda: waves.windows(
        signals(18).reshape(3, 6, 30), {k: signals(18).reshape(3, 6, 30) for k in ("occlusion", "random\nweights")},
        ACTIVITIES[:3], SIX, 30, spans(), {k: [(1, 4)] * 3 for k in ("occlusion", "random\nweights")}, **SAID,
    ),
    "concepts": lambda: waves.concepts(
        signals(3), random(3, 13, 30) < 0.3, [f"oscillation {i} Hz" for i in range(13)], ["walking, right arm x"] * 3,
        **SAID,
    ),
    "detections": lambda: waves.detections(
        signals(7), random(7, 30) < 0.2, random(7, 30) < 0.3, ["conv1 unit 3: rising edge\nIoU 0.14"] * 7, **SAID
    ),
    "planted": lambda: waves.planted(random(90, 6), SIX, [(0, 5, 9, "short"), (3, 40, 13, "long")], 30, **SAID),
    "amplitude_histogram": lambda: special.amplitude_histogram(
        *np.histogram(signals(), 20, (0, 2)), 1.2, 1.37
    ),
    "atlas": lambda: special.atlas(signals()[:, :2], signals(), np.arange(UNITS) % 20 - 1, ACTIVITIES, **SAID),
    "atlas, all axes": lambda: special.atlas(
        signals()[:, :2], all_axes(), np.arange(UNITS) % 20 - 1, ACTIVITIES, axis_names=SIX, **SAID
    ),
    "sensitivity": lambda: special.sensitivity(
        random(2, 3, UNITS, 2), [5, 15], [0, 1, 2], np.arange(UNITS) % 19, ACTIVITIES, np.ones((2, 3)), **SAID
    ),
    "readings": lambda: special.readings(
        np.random.default_rng(0).choice([-1.0, 0.0, 1.0, np.nan], (17, 40)),
        [f"C{3 + i // 3} a fact of some length, number {i}" for i in range(17)],
        np.linspace(1, 0, 40), np.arange(40) < 5, {"optimizer": ["adam", "ascent"] * 20, "step size": [1e-4, 0.1] * 20},
        3, **SAID,
    ),
    "landscapes": landscape,
}  # fmt: skip
#: drawn by test_cards, and without data
ELSEWHERE = {"card", "pipeline", "signal_with_map"}


def spans():
    found = np.zeros((3, 6, 30), bool)
    found[:, ::2, 10:19] = True
    return found


@pytest.fixture(autouse=True)
def own_style():
    with matplotlib.rc_context():
        style.use_style()
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
        style.use_style()
        figure = FIGURES[request.param]()
        style.add_caveat(figure, CAVEAT)
        yield rendered(figure)


def test_every_function_that_draws_is_tried():
    made = {n for m in (draw_old, waves, special) for n, f in inspect.getmembers(m, inspect.isfunction)
            if f.__module__ == m.__name__ and inspect.signature(f).return_annotation == "Figure"}  # fmt: skip
    assert {name.partition(",")[0] for name in FIGURES} == made - ELSEWHERE


def test_every_figure_is_readable_and_says_its_caveat(drawn):
    said = [t.get_text() for t in texts(drawn)]
    assert CAVEAT in said
    sizes = [t.get_fontsize() for t in texts(drawn) if not t.get_text().startswith("$")]
    assert min(sizes) >= 9
    assert drawn.get_figwidth() <= style.WIDTH
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
    figure = draw_old.lines({"": {"a": np.arange(3)}}, range(3), "x", "y")
    style.add_caveat(figure, "")
    assert figure.get_supxlabel() == ""


def test_nineteen_classes_are_told_apart():
    colours = style.class_colours(ACTIVITIES)
    assert list(colours) == ACTIVITIES and len(set(colours.values())) == 19
    rgb = np.array([matplotlib.colors.to_rgb(colours[a]) for a in ACTIVITIES])
    apart = np.linalg.norm(rgb[:, None] - rgb, axis=-1) + np.eye(19)
    assert apart.min() > 0.08


def test_what_has_a_colour_keeps_it_and_others_differ():
    found = style.colours_of(["conv1", "mine", "naive", "another"])
    assert found["conv1"] == style.COLOURS["conv1"] and found["naive"] == style.METHOD_COLOURS["naive"]
    assert len(set(found.values())) == 4


# ------------------------------------------------------------------------------------- what is drawn is what is given


def test_three_takes_an_interval_where_there_is_one():
    given = pd.DataFrame({"a": [1, 2], "a low": [0.5, 1], "a high": [2, 3], "b": [4, 5]})
    assert draw_old.three(given, "a").to_numpy().tolist() == [[1, 0.5, 2], [2, 1, 3]]
    assert np.isnan(draw_old.three(given, "b").to_numpy()[:, 1:]).all()


def test_points_stand_in_their_rows_with_their_intervals():
    lonely = pd.DataFrame([[0.5, np.nan, np.nan]], index=["c"])
    axes = draw_old.points({"F1": {"a": table(["x", "y"]), "b": lonely}}, "row").axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["x", "y", "c"]
    assert [line.get_ydata().tolist() for line in axes.lines if line.get_marker() in "os"] == [[0, 1], [2]]
    segments = axes.collections[0].get_segments()
    assert [s[:, 0].tolist() for s in segments] == [pytest.approx(row) for row in ends(2)[:, 1:]]


def test_points_without_a_value_are_hollow_at_the_edge_of_a_log_axis():
    given = table(METHODS)
    given.iloc[:2] = [[np.nan] * 3, [0, 0, 0]]
    figure = rendered(draw_old.points({"Ssim [G²]": {"conv1": given}}, "technique", log=True))
    hollow = [line for line in figure.axes[0].lines if line.get_marker() == "<"]
    assert [line.get_ydata().tolist() for line in hollow] == [[0, 1]]


def test_shares_fill_their_bars():
    right = FIGURES["points_and_shares"]().axes[1]
    assert [bar.get_width() for bar in right.patches[:: len(ROWS)][:3]] == pytest.approx([0.5, 0.2, 0.3])


def test_bars_show_means_ranges_failures_and_what_is_missing():
    values = {"naive": ends(3), "L2+TV": ends(3) + 1}
    values["naive"][1] = np.nan
    given, failed = {"": values | {"flat zero": np.zeros((3, 3))}}, {"naive": [0, 16, 0], "L2+TV": [2, 0, 0]}
    figure = draw_old.bars(given, LAYERS, "layer", "Ssim", failed=failed, log=True)
    said = [t.get_text() for t in texts(figure)]
    assert "n/a 16 failed" in said and "2 failed" in said and said.count("0") == 3
    assert [bar.get_height() for bar in figure.axes[0].patches][3:6] == pytest.approx(values["L2+TV"][:, 0])
    segments = draw_old.bars(given, LAYERS, "layer", "Ssim").axes[0].collections[1].get_segments()
    assert [s[:, 1].tolist() for s in segments] == [pytest.approx(row[1:]) for row in values["L2+TV"]]


def test_every_number_is_a_dot_and_missing_ones_are_said():
    given = {"Hopkins": {"a network": {"conv1": [0.9, 0.8], "conv2": [None, None]}}}
    axes = draw_old.dots(given, "layer").axes[0]
    assert axes.get_ylabel() == "Hopkins" and axes.lines[0].get_ydata().tolist() == [0.8, 0.9]
    assert "n/a" in [t.get_text() for t in axes.texts]


def test_lines_rings_and_intervals_are_at_their_places():
    values = ends(3)
    axes = draw_old.lines({"a": {"trained": values}}, [1, 10, 100], "x", "y", rings={"a": {"trained": [10]}}).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx(values[:, 0])
    assert axes.lines[1].get_xydata().tolist() == [[10, values[1, 0]]]
    many = draw_old.lines({"a": {"val": values}}, [1, 10, 100], "x", "y", each=True).axes[0]
    assert many.lines[0].get_ydata() == pytest.approx(values.mean(1)) and len(many.lines) == 4


def test_numbers_of_a_heat_map_are_written():
    said = [
        t.get_text() for t in texts(draw_old.heat({"": pd.DataFrame([[0.25, 0.001]])}, "x", "y", "share", ".0%", 0.01))
    ]
    assert "25%" in said and "0%" not in said


def test_signal_is_the_line_and_map_the_bars():
    figure, ((axes,),) = style.grid(1, 1, 4, 3)
    signal, unit_map = signals(2)
    unit_map = np.abs(unit_map)
    twin = waves.signal_with_map(axes, signal, unit_map, 30, th=0.4, p95=0.5)
    assert any(np.array_equal(line.get_ydata(), signal) for line in axes.lines)
    assert [bar.get_height() for bar in twin.patches] == pytest.approx(unit_map)
    assert {line.get_label(): line.get_ydata()[0] for line in twin.lines} == {"95 % point": 0.5, "th": 0.4}
    assert waves.signal_with_map(axes, signal) is None
    assert twin.get_ylim()[0] == 0 and waves.signal_with_map(axes, signal, -unit_map).get_ylim()[0] < -unit_map.max()
    with pytest.raises(ValueError, match="a map of 9 samples does not say which of the signal's 30 they are"):
        waves.signal_with_map(axes, signal, unit_map[:9])


def test_methods_are_drawn_with_all_axes_and_maps_where_they_look():
    at = 4.5 + 2 * np.arange(11)
    made = by_method(3, at)
    figure = rendered(waves.unit_methods(made, LEVELS, 15.0))
    said = {t.get_text() for t in figure.legends[0].get_texts()}
    assert said == {"axis 0", "axis 1", "axis 2", "unit's output", "95 % point", "th"}
    left, right = figure.axes[: len(METHODS)], figure.axes[-len(METHODS) :]
    for i, (ax, twin) in enumerate(zip(left, right, strict=True)):
        curves = ax.lines[1:]  # behind the line at zero
        assert np.array_equal([line.get_ydata() for line in curves], made["signal"][i])
        assert [line.get_color() for line in curves] == list(style.COMPONENT_COLOURS[:3])
        assert [bar.get_x() + bar.get_width() / 2 for bar in twin.patches] == pytest.approx(at / 15)
        assert [bar.get_height() for bar in twin.patches] == pytest.approx(made["map"].values[i])
        assert {line.get_label(): line.get_ydata()[0] for line in twin.lines} == {"95 % point": 0.5, "th": 0.4}
    single = waves.unit_methods(by_method()).axes[METHODS.index("naive")]
    assert [line.get_color() for line in single.lines[1:]] == [style.METHOD_COLOURS["naive"]]
    for units, known in (("G", made), ("deg/s", made.assign(signal=made["signal"].assign_attrs(units="deg/s")))):
        labels = {ax.get_ylabel() for ax in waves.unit_methods(known).axes}
        assert f"signal [{units}]" in labels and len([label for label in labels if "signal" in label]) == 1
    with pytest.raises(ValueError, match="select one of each seed, unit"):
        waves.unit_methods(made.expand_dims(seed=[0, 1], unit=[3]))


def test_gallery_says_the_peak_of_a_signal_it_cuts():
    many = signals()
    many[3] *= 50
    titles = [ax.get_title() for ax in waves.gallery(many, [f"unit {i}" for i in range(UNITS)]).axes]
    assert titles[3] == f"unit 3 (to {np.abs(many[3]).max():.1f} G)" and titles[4] == "unit 4"


def test_waves_stand_beside_each_other_in_order():
    made, strong, weak = (signals(n).reshape(2, -1, 30) + k for k, n in enumerate((2, 4, 6)))
    figure = waves.waves({"made": made, "strong": strong, "weak": weak}, "ab", (), beside=True)
    shown = np.array([ax.lines[0].get_ydata() for ax in figure.axes]).reshape(2, 6, 30)
    assert np.array_equal(shown, np.concatenate([made, strong, weak], axis=1))


def test_peaks_and_spans_are_drawn_where_they_are():
    shown = FIGURES["windows"]().axes[1]
    cross = [line for line in shown.lines if line.get_marker() == "+"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in cross] == [(4 / 30, 1)]
    boxes = [path.vertices[:, 0] for c in shown.collections for path in c.get_paths()]
    assert {(x.min(), x.max()) for x in boxes} == {(9.5 / 30, 18.5 / 30)} and len(boxes) == 3


def test_bands_and_masks_are_where_they_are():
    unit, concept = np.arange(30) == 4, np.arange(30) >= 25
    figure = waves.detections(signals(1), [unit], [concept], ["a"], 30)
    bars = [(round((bar.get_x() + bar.get_width() / 2) * 30), bar.get_y()) for bar in figure.axes[0].patches]
    assert bars == [(4, 0.9), *((t, 0.0) for t in range(25, 30))]
    mask = random(1, 2, 30) < 0.3
    assert np.array_equal(waves.concepts(signals(1), mask, "ab", ["x"]).axes[1].images[0].get_array(), mask[0])


def test_atlas_lines_end_at_their_units():
    positions, activities = signals()[:, :2], np.zeros(UNITS, int)
    figure = rendered(special.atlas(positions, signals(), activities, ACTIVITIES[:1], n_thumbnails=8))
    places = figure.axes[0].transData.transform(positions)
    tips = np.array([figure.transFigure.transform(line.get_xydata()[1]) for line in figure.artists])
    assert len(tips) == 8 == len(figure.axes) - 1
    assert np.linalg.norm(tips[:, None] - places, axis=-1).min(1) == pytest.approx(np.zeros(8), abs=0.5)


def test_atlas_draws_all_axes_of_units_that_mix_them():
    positions = signals()[:, :2].copy()
    positions[3] = np.nan
    about = positions, all_axes(), np.zeros(UNITS, int), ACTIVITIES[:1]
    figure = special.atlas(*about, n_thumbnails=8, axis_names=SIX)
    assert [t.get_text() for t in figure.legends[1].get_texts()] == SIX
    colours = [line.get_color() for line in figure.legends[1].get_lines()]
    assert colours == list(style.COMPONENT_COLOURS)
    for small in figure.axes[1:]:
        unit = int(small.get_title(loc="left").split()[0])
        curves = [line for line in small.lines if len(line.get_ydata()) == 30]
        assert np.array_equal([line.get_ydata() for line in curves], all_axes()[unit])
        assert [line.get_color() for line in curves] == colours
    assert [t.get_text() for t in special.atlas(*about).legends[1].get_texts()] == [f"axis {i}" for i in range(6)]
    with pytest.raises(ValueError, match="6 axes need 6 different names"):
        special.atlas(*about, axis_names=SIX[:5])


def test_atlas_counts_units_without_a_place():
    positions = signals()[:, :2].copy()
    positions[[0, 5]] = np.nan
    figure = special.atlas(positions, signals(), np.zeros(UNITS, int), ACTIVITIES[:1], n_thumbnails=UNITS)
    assert any("2 units without a place" in t.get_text() for t in texts(figure))
    numbers = {ax.get_title(loc="left").split(" ")[0] for ax in figure.axes[1:]}
    assert numbers <= {str(u) for u in range(UNITS)} - {"0", "5"} and len(numbers) == len(figure.axes) - 1


def test_the_atlas_is_shown_twice_without_a_warning(recwarn):
    figure = special.atlas(signals()[:, :2], signals(), np.zeros(UNITS, int), ACTIVITIES[:1])
    for _ in range(2):
        figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")
    assert not [str(w.message) for w in recwarn if "layout" in str(w.message)]


def test_pictures_are_small_and_keep_rare_colours():
    """Lines that are hidden but for their entry in the legend keep their own colours."""
    steps = np.arange(1, 400)
    lines = {name: np.zeros(399) for name in style.METHOD_COLOURS} | {"naive": np.sqrt(steps)}
    panels = {label: lines for label in ("a [G]", "b", "c [G]", "d")}
    figure = draw_old.lines(panels, steps, "step", scale="log", columns=2)
    figure.savefig(drawn := io.BytesIO(), format="png")
    small = style.picture(figure)
    assert len(small) < 0.6 * drawn.tell()
    before, after = (np.asarray(Image.open(of).convert("RGB")).astype(int) for of in (drawn, io.BytesIO(small)))
    for name, colour in style.METHOD_COLOURS.items():
        here = (before == np.round(255 * np.array(to_rgb(colour)))).all(-1)
        assert here.any() and np.abs(after[here] - before[here]).max() <= 4, name
