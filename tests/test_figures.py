"""Figures: axes named with units, legends and titles off the data, the caveat on every figure, nothing lost."""

import inspect
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from PIL import Image

from harvis_utils.figures import draw, special, style, waves

ACTIVITIES = [f"activity number {i}" for i in range(9)]
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


def signals(*shape):
    return np.random.default_rng(0).normal(size=(*shape, 30)).cumsum(-1) / 4


def tidy(*values, **names):
    """A row for every combination of names, with numbers and their intervals."""
    table = pd.MultiIndex.from_product(names.values(), names=names).to_frame(index=False)
    for k, value in enumerate(values):
        table[value] = random(k + 1, len(table))[k] + 0.3
        table[f"{value} low"], table[f"{value} high"] = table[value] - 0.1, table[value] + 0.2
    return table


def by_method(n_axes=None, at=None):
    """One unit under four methods, of a single axis, or of several with maps that look at the samples ``at``."""
    n, mixed = 4, () if n_axes is None else (n_axes,)
    time, coords = ("time", {}) if at is None else ("map_time", {"map_time": at})
    dims = ("technique", *(() if n_axes is None else ("axis",)), "time")
    made = {
        "signal": (dims, signals(n, *mixed)),
        "map": (("technique", time), random(n, 30 if at is None else len(at))),
    }
    return xr.Dataset(made, {"technique": METHODS[:4]} | coords)


LEVELS = xr.Dataset({"th_eap": 0.4, "p95": 0.5})
PLANTED = [(0, 5, 9, "short"), (3, 14, 13, "long")]


def spans():
    found = np.zeros((3, 6, 30), bool)
    found[:, ::2, 10:19] = True
    return found


def landscape():
    ticks = np.linspace(-1, 1, 21)
    surfaces = {"flat": (ticks, np.maximum(ticks, 0)), "gate": (ticks, np.maximum(ticks[:, None] + ticks, 0))}
    paths = {"flat": random(9, 4, 1), "gate": random(9, 4, 2)}
    return special.landscapes(surfaces, {"plain": paths, "slope": paths}, {"flat": (1.0,), "gate": (1.0, 1.0)}, **SAID)


FIGURES = {
    "points, log": lambda: draw.points(
        tidy("x", technique=[*METHODS, *CONTROLS], layer=LAYERS, preset=["literal", "calibrated"]),
        "technique", "x", "layer", "preset", "Ssim [G²]", {"as in training": 1.0}, log=True, **SAID,
    ),
    "bars": lambda: draw.bars(
        tidy("x", layer=LAYERS, technique=[*METHODS, *CONTROLS]),
        "layer", "x", "technique", None, "Ssim [G²]", {"as in training": 1.0}, **SAID,
    ),
    "bars, stacked": lambda: draw.bars(
        tidy("windows", activity=ACTIVITIES, split=["train", "val"]),
        "activity", "windows", "split", stacked=True, **SAID,
    ),
    "dots, horizontal": lambda: draw.dots(
        tidy("F1", activity=ACTIVITIES, who=WHO, layer=LAYERS, seed=range(4)),
        "activity", "F1", "who", "layer", references={"paper": 0.7}, horizontal=True, **SAID,
    ),
    "curves, levels": lambda: draw.curves(
        tidy("gain", "b", layer=LAYERS, who=WHO, slope=[0, 0.01, 0.1, 0.3, 0.5, 1]),
        "slope", {"gain": "median gain", "b": "share"}, "who", "layer", None, None, "levels", {"none": 0.0}, **SAID,
    ),
    "curves, each": lambda: draw.curves(
        tidy("cross entropy [nat]", "macro F1", "c", epoch=range(1, 20), split=["train", "val"], seed=range(2)),
        "epoch", ["cross entropy [nat]", "macro F1", "c"], "split", each="seed", scale="log", columns=2, **SAID,
    ),
    "plane": lambda: draw.plane(
        tidy("near", "up", technique=[*METHODS, *CONTROLS], layer=LAYERS), {"near": "nearness"}, {"up": "activation"},
        "technique", "layer", {m: (c, "o") for m, c in style.METHOD_COLOURS.items()}, {"real windows": 0.5}, **SAID,
    ),
    "heat": lambda: draw.heat(
        tidy("x", weights=WHO, activity=ACTIVITIES, sensor=["right arm", "left leg"])
        .pivot(index=["weights", "activity"], columns="sensor", values="x") - 0.5,
        "drop of the log odds", "weights", ".0%", **SAID,
    ),
    "recordings, planted": lambda: waves.recordings([signals(6).T], [""], SIX, 30, places=PLANTED, **SAID),
    "unit_methods": lambda: waves.unit_methods(by_method(6), LEVELS, **SAID),
    "nearest_pairs": lambda: waves.nearest_pairs(
        signals(3), signals(3), [0, 5, 20], [1, 2, 3], 10, (signals(3), signals(3)), ("abc", "def"), **SAID
    ),
    "gallery, bands": lambda: waves.gallery(
        list(signals(7)), ["conv1 unit 3: rising edge\nIoU 0.14"] * 7, np.abs(signals(7)), columns=4,
        bands={"among the strongest": random(7, 30) < 0.2, "the concept holds": random(7, 30) < 0.3}, **SAID,
    ),
    "waves, own scale": lambda: waves.waves(
        {k: signals(3, 5) for k in ("window", "projection")}, LAYERS, [list("abcde")] * 3, own_scale=True, **SAID
    ),
    "coloured": lambda: waves.coloured(
        random(2, 3, 6, 90), random(2, 3, 90) - 0.5, ["unit 3\nup: peak", "unit 5"], list("abc"), SIX, 30, **SAID
    ),
    "windows": lambda: waves.windows(
        signals(3, 6), {k: signals(3, 6) for k in ("occlusion", "random\nweights")}, ACTIVITIES[:3], SIX, 30, spans(),
        {k: [(1, 4)] * 3 for k in ("occlusion", "random\nweights")}, **SAID,
    ),
    "windows, concepts": lambda: waves.windows(
        signals(3, 1), {"where it holds": random(3, 13, 30) < 0.3}, ["walking, right arm x"] * 3, [], 30,
        rows=[f"oscillation {i} Hz" for i in range(13)], **SAID,
    ),
    "amplitude_histogram": lambda: special.amplitude_histogram(*np.histogram(signals(9), 20, (0, 2)), 1.2, 1.37),
    "atlas": lambda: special.atlas(
        signals(UNITS)[:, :2], signals(UNITS, 6), np.arange(UNITS) % 10 - 1, ACTIVITIES, axis_names=SIX, **SAID
    ),
    "readings": lambda: special.readings(
        np.random.default_rng(0).choice([-1.0, 0.0, 1.0, np.nan], (17, 40)),
        [f"C{3 + i // 3} a fact of some length, number {i}" for i in range(17)], np.linspace(1, 0, 40),
        np.arange(40) < 5, {"optimizer": ["adam", "ascent"] * 20, "step size": [1e-4, 0.1] * 20}, 3, **SAID,
    ),
    "landscapes": landscape,
}  # fmt: skip
#: drawn by test_cards, and without data
ELSEWHERE = {"card", "pipeline"}


@pytest.fixture(autouse=True)
def own_style():
    with matplotlib.rc_context():
        style.use_style()
        yield


def texts(figure):
    return [t for t in figure.findobj(matplotlib.text.Text) if t.get_visible() and t.get_text().strip()]


def test_every_function_that_draws_is_tried():
    made = {n for m in (draw, waves, special) for n, f in inspect.getmembers(m, inspect.isfunction)
            if f.__module__ == m.__name__ and inspect.signature(f).return_annotation is style.Figure}  # fmt: skip
    assert {name.partition(",")[0] for name in FIGURES} == made - ELSEWHERE


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_readable_names_its_axes_and_covers_no_data(name):
    figure = FIGURES[name]()
    style.add_caveat(figure, CAVEAT)
    figure.draw_without_rendering()
    assert plt.get_fignums() == []  # closed: a notebook shows it once
    said = texts(figure)
    assert CAVEAT in [t.get_text() for t in said]
    assert min(t.get_fontsize() for t in said if not t.get_text().startswith("$")) >= 9
    assert figure.get_figwidth() <= style.WIDTH

    labels = {ax.get_xlabel() for ax in figure.axes} | {figure.get_supxlabel()}
    assert {label for label in labels if label and label != CAVEAT}
    assert any(ax.get_ylabel() for ax in figure.axes) or figure.get_supylabel()
    assert not {draw.AT, draw.ONLY} & {t.get_text() for t in said}

    frames = [ax.get_window_extent() for ax in figure.axes if ax.get_visible()]
    outside = [legend.get_window_extent() for legend in figure.legends]
    outside += [t.get_window_extent() for t in figure.texts if t.get_text().strip()]
    for box in outside:
        assert not any(box.overlaps(frame) for frame in frames)
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    assert not any(a.overlaps(b) for i, a in enumerate(outside) for b in outside[:i])


def test_without_a_caveat_nothing_is_said():
    figure, _ = style.grid(1, 1, 2, 2)
    style.add_caveat(figure, "")
    assert figure.get_supxlabel() == ""


def test_names_have_colours_of_their_own():
    colours = style.class_colours([str(i) for i in range(19)])
    rgb = np.array([to_rgb(colour) for colour in colours.values()])
    assert (np.linalg.norm(rgb[:, None] - rgb, axis=-1) + np.eye(19)).min() > 0.08
    found = style.colours_of(["conv1", "mine", "naive", "another"])
    assert found["conv1"] == style.COLOURS["conv1"] and found["naive"] == style.METHOD_COLOURS["naive"]
    assert len(set(found.values())) == 4


# ------------------------------------------------------------------------------------- what is drawn is what is given


def drawn_at(ax, k=0):
    """The places of the k-th set of markers."""
    return ax.collections[k].get_offsets().data


def ends_of(collection, axis):
    return [np.reshape(segment, (-1, 2))[:, axis].tolist() for segment in collection.get_segments()]


def test_points_stand_in_their_rows_with_their_intervals():
    given = tidy("F1", lens=["x", "y"], who=["a"])
    lonely = pd.DataFrame({"lens": ["c", "d"], "who": "b", "F1": [0.5, np.nan]})
    ax = draw.points(pd.concat([given, lonely]).set_index("lens"), "lens", "F1", "who").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["x", "y", "c", "d"]
    assert drawn_at(ax).tolist() == [[given["F1"][0], 0], [given["F1"][1], 1], [0.5, 2]]
    assert ends_of(ax.collections[1], 0)[:2] == [pytest.approx(r) for r in given[["F1 low", "F1 high"]].to_numpy()]
    assert [(t.get_text(), t.xy[1]) for t in ax.texts] == [("n/a", 3)]


def test_groups_stand_beside_each_other_only_where_they_share_a_row():
    shared = draw.points(tidy("F1", lens=["x", "y"], who=["a", "b"]), "lens", "F1", "who").axes[0]
    assert np.ptp(drawn_at(shared)[:2, 1]) > 0.3
    with pytest.raises(KeyError, match="F2"):
        draw.points(tidy("F1", lens=["x", "y"]), "lens", "F2")


def test_on_a_log_axis_a_missing_value_is_said_and_zero_is_hollow_at_the_edge():
    given = tidy("Ssim", technique=METHODS, layer=["conv1"])
    given.loc[:1, "Ssim"] = [np.nan, 0]
    ax = draw.points(given, "technique", "Ssim", "layer", log=True).axes[0]
    assert len(drawn_at(ax)) == len(METHODS) - 2
    assert drawn_at(ax, 2).tolist() == [[ax.get_xlim()[0], 1]]
    assert [(t.get_text(), t.xy[1]) for t in ax.texts] == [("n/a", 0)]


def test_bars_show_values_intervals_and_what_is_missing():
    given = tidy("Ssim", layer=LAYERS, technique=["naive", "L2+TV", "flat zero"])
    given.loc[3, "Ssim"] = np.nan
    figure = draw.bars(given, "layer", "Ssim", "technique")
    assert [t.get_text() for t in texts(figure)].count("n/a") == 1
    of, ax = given[given["technique"] == "L2+TV"], figure.axes[0]
    assert [bar.get_height() for bar in ax.containers[1]] == pytest.approx(of["Ssim"].tolist())
    segments = ends_of(ax.collections[0], 1)
    assert [segments[i] for i in of.index] == [pytest.approx(r) for r in of[["Ssim low", "Ssim high"]].to_numpy()]


def test_stacked_bars_begin_where_the_last_ends_in_the_order_of_the_table():
    given = tidy("windows", activity=["b", "a"], split=["train", "val"])
    ax = draw.bars(given, "activity", "windows", "split", stacked=True).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
    train, val = ([(bar.get_x(), bar.get_width()) for bar in of] for of in ax.containers)
    assert [width for _, width in train] == given["windows"][::2].tolist()
    assert val == [pytest.approx((x, w)) for x, w in zip(given["windows"][::2], given["windows"][1::2], strict=True)]
    with pytest.raises(ValueError, match="duplicate"):
        draw.bars(pd.concat([given, given]), "activity", "windows", "split", stacked=True)


def test_every_number_is_a_dot_with_a_line_at_their_middle_and_missing_ones_are_said():
    given = pd.DataFrame({"layer": ["conv1"] * 3 + ["conv2"], "Hopkins": [0.9, 0.2, 0.4, np.nan]})
    ax = draw.dots(given, "layer", "Hopkins", middle="median").axes[0]
    assert ax.get_ylabel() == "Hopkins"
    places = drawn_at(ax)[:3]
    assert places[:, 1].tolist() == [0.9, 0.2, 0.4] and places[:, 0].argsort().tolist() == [1, 2, 0]
    assert ends_of(ax.collections[1], 1) == [[0.4, 0.4]]
    assert [(t.get_text(), t.xy[0]) for t in ax.texts] == [("n/a", 1)]


def test_curves_rings_and_intervals_are_at_their_places():
    given = tidy("y", x=[1, 10, 100], seed=[0, 1]).assign(chosen=[False, False, True, False, False, False])
    one = given[given["seed"] == 0]
    ax = draw.curves(one, "x", "y", ringed="chosen").axes[0]
    assert ax.lines[0].get_xydata().tolist() == one[["x", "y"]].to_numpy().tolist()
    assert drawn_at(ax, 1).tolist() == [[10, one["y"][2]]]
    band = ax.collections[0].get_paths()[0].vertices
    assert set(one["y low"]) | set(one["y high"]) == set(band[:, 1])
    levels = draw.curves(one, "x", "y", scale="levels").axes[0]
    assert levels.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert ends_of(levels.collections[0], 1) == [pytest.approx(r) for r in one[["y low", "y high"]].to_numpy()]
    each = draw.curves(given, "x", "y", each="seed").axes[0].lines
    assert len(each) == 3 and each[2].get_ydata() == pytest.approx(given.groupby("x")["y"].mean().tolist())


def test_measures_have_axes_of_their_own_and_panels_of_one_share_theirs():
    given = tidy("y", "z", x=[1, 2], layer=LAYERS)
    axes = np.reshape(draw.curves(given, "x", ["y", "z"], panel="layer").axes, (2, 3))
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["y", "z"] and [ax.get_title() for ax in axes[0]] == LAYERS
    joined = axes[0, 0].get_shared_y_axes()
    assert joined.joined(axes[0, 0], axes[0, 2]) and not joined.joined(axes[0, 0], axes[1, 0])


@pytest.mark.parametrize("verb", [draw.points, draw.bars, draw.dots, draw.curves])
def test_a_measure_without_any_value_is_said_to_be_missing(verb, recwarn):
    given = tidy("y", x=[1, 2], who=["a", "b"]).assign(nothing=np.nan)
    _, ax = verb(given, "x", ["y", "nothing"], "who").axes
    assert "n/a" in [t.get_text() for t in ax.texts] and not len(recwarn)


def test_numbers_of_a_heat_map_are_written():
    said = [t.get_text() for t in texts(draw.heat(pd.DataFrame([[0.25, 0.001]]), "share", written=".0%", least=0.01))]
    assert "25%" in said and "0%" not in said


@pytest.mark.parametrize(("amplitude", "spans"), [(1e-3, waves.LEAST_SPAN_G), (1.0, 2.2)])
def test_what_is_flat_is_drawn_flat(amplitude, spans):
    made = xr.Dataset({"signal": (("technique", "time"), amplitude * np.sin(np.arange(30) / 30 * 2 * np.pi)[None])})
    ends = waves.unit_methods(made.assign_coords(technique=["naive"])).axes[0].get_ylim()
    assert np.ptp(ends) == pytest.approx(spans, rel=0.02) and np.mean(ends) == pytest.approx(0, abs=1e-6)


def test_methods_are_drawn_with_all_axes_and_maps_where_they_look():
    at = 4.5 + 2 * np.arange(11)
    made = by_method(3, at).isel(technique=slice(2))
    figure = waves.unit_methods(made.assign(signal=made["signal"].assign_attrs(units="deg/s")), LEVELS, 15.0)
    said = {t.get_text() for t in figure.legends[0].get_texts()}
    assert said == {"axis 0", "axis 1", "axis 2", "unit's output", "95 % point", "th"}
    assert figure.axes[0].get_ylabel() == "signal [deg/s]"
    for i, (ax, twin) in enumerate(zip(figure.axes[:2], figure.axes[2:], strict=True)):
        curves = ax.lines[1:]  # behind the line at zero
        assert np.array_equal([line.get_ydata() for line in curves], made["signal"][i])
        assert [line.get_color() for line in curves] == list(style.COMPONENT_COLOURS[:3])
        assert [bar.get_x() + bar.get_width() / 2 for bar in twin.patches] == pytest.approx(at / 15)
        assert [bar.get_height() for bar in twin.patches] == pytest.approx(made["map"].values[i])
        assert {line.get_label(): line.get_ydata()[0] for line in twin.lines} == {"95 % point": 0.5, "th": 0.4}
        assert twin.get_ylim()[0] == 0
    single = waves.unit_methods(by_method().isel(technique=[0]), compared=([5], 10)).axes[0]
    assert single.lines[1].get_color() == style.METHOD_COLOURS["naive"] and single.get_ylabel() == "signal [G]"
    assert single.patches[0].get_x() == pytest.approx(4.5 / 30) and single.patches[0].get_width() == pytest.approx(
        1 / 3
    )
    with pytest.raises(ValueError, match="select one of each seed, unit"):
        waves.unit_methods(made.expand_dims(seed=[0, 1], unit=[3]))
    with pytest.raises(ValueError, match="levels are those of unit 2, the signals those of 3"):
        waves.unit_methods(made.assign_coords(unit=3), LEVELS.assign_coords(unit=2))
    with pytest.raises(ValueError, match="levels should be those of one unit; select one of each unit"):
        waves.unit_methods(made, LEVELS.expand_dims(unit=[2]))
    with pytest.raises(ValueError, match="rate_hz should be above 0 Hz and columns at least 1, not nan and 4"):
        waves.unit_methods(made, rate_hz=np.nan)
    for chosen in (made.sel(technique="naive"), made.sel(technique="naive", drop=True)):
        assert waves.unit_methods(chosen).axes[0].get_title() == ("naive" if "technique" in chosen.coords else "")
    with pytest.raises(ValueError, match="infinity in signal cannot be drawn"):
        waves.unit_methods(made.assign(signal=made["signal"].where(made["time"] != 4, np.inf)))
    with pytest.raises(ValueError, match="a map of 11 samples does not say which"):
        waves.unit_methods(made.drop_vars("map_time"))


def test_gallery_says_the_peak_of_a_signal_it_cuts_and_bands_are_where_they_are():
    many = signals(UNITS)
    many[3] *= 50
    titles = [ax.get_title() for ax in waves.gallery(many, [f"unit {i}" for i in range(UNITS)]).axes]
    assert titles[3] == f"unit 3 (to {np.abs(many[3]).max():.1f} G)" and titles[4] == "unit 4"
    bands = {"unit": [np.arange(30) == 4], "concept": [np.arange(30) >= 25]}
    patches = waves.gallery(many[:1], ["a"], bands=bands).axes[0].patches
    found = [(round((bar.get_x() + bar.get_width() / 2) * 30), bar.get_y()) for bar in patches]
    assert found == [(4, 0.9), *((t, 0.0) for t in range(25, 30))]


def test_waves_stand_beside_each_other_in_order():
    made, strong, weak = (signals(2, n) + n for n in (1, 2, 3))
    figure = waves.waves({"made": made, "strong": strong, "weak": weak}, "ab", (), beside=True)
    shown = np.array([ax.lines[0].get_ydata() for ax in figure.axes]).reshape(2, 6, 30)
    assert np.array_equal(shown, np.concatenate([made, strong, weak], axis=1))


def test_a_level_to_compare_with_may_stand_beside_one_measure_alone():
    table = pd.DataFrame({"who": list("ab"), "one": [0.0, 1.0], "two": [0.0, 1.0]})
    figure = draw.points(table, "who", ["one", "two"], references={"all": 0.1, "chance": {"two": 0.5}})
    assert [[line.get_xdata()[0] for line in ax.lines] for ax in figure.axes] == [[0.1], [0.1, 0.5]]


def test_signals_have_the_colours_of_a_units_outputs_at_the_end_of_each_piece():
    outputs = random(1, 2, 30) - 0.5
    figure = waves.coloured(random(1, 2, 3, 30), outputs, ["unit"], ["high", "low"], SIX[:3], 30)
    for ax, own in zip(figure.axes, outputs[0], strict=False):
        assert len(ax.collections) == 3
        for lines in ax.collections:
            assert np.array_equal(lines.get_array(), own[1:]) and lines.get_clim()[1] == np.abs(outputs).max()
            assert np.allclose([of[0, 0] for of in lines.get_segments()], np.arange(29) / 30)


def test_peaks_spans_masks_and_motifs_are_drawn_where_they_are():
    shown = FIGURES["windows"]().axes[1]
    cross = [line for line in shown.lines if line.get_marker() == "+"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in cross] == [(4 / 30, 1)]
    boxes = [path.vertices[:, 0] for c in shown.collections for path in c.get_paths()]
    assert {(x.min(), x.max()) for x in boxes} == {(9.5 / 30, 18.5 / 30)} and len(boxes) == 3
    mask = FIGURES["windows, concepts"]().axes[1].images[0].get_array()
    assert np.array_equal(mask, (random(3, 13, 30) < 0.3)[0])
    axes = waves.recordings([signals(6).T], [""], SIX, 30, places=PLANTED, first_sample=60).axes
    motif = axes[3].lines[1]
    assert np.array_equal(motif.get_ydata(), signals(6)[3, 14:27]) and motif.get_xdata()[0] == 74 / 30


def test_sensors_that_are_not_in_g_say_their_unit():
    axes = waves.recordings([signals(6).T], [""], SIX, 30, units={"left leg": "deg/s"}).axes
    assert [ax.get_ylabel() for ax in axes] == ["right arm\n[G]", "left leg\n[deg/s]"]


def test_atlas_lines_end_at_their_units_and_all_axes_are_drawn():
    positions, mixed = signals(UNITS)[:, :2].copy(), signals(UNITS, 6)
    positions[[0, 5]] = np.nan
    about = positions, mixed, np.zeros(UNITS, int), ACTIVITIES[:1]
    figure = special.atlas(*about, n_thumbnails=8, axis_names=SIX)
    assert len(figure.artists) == 8 == len(figure.axes) - 1
    assert any("2 units without a place" in t.get_text() for t in texts(figure))
    assert [t.get_text() for t in figure.legends[1].get_texts()] == SIX
    for small, line in zip(figure.axes[1:], figure.artists, strict=True):
        unit = int(small.get_title(loc="left").split()[0])
        assert line.coords1 is small.transAxes and line.xy2 == pytest.approx(positions[unit])
        curves = [line for line in small.lines if len(line.get_ydata()) == 30]
        assert unit not in (0, 5) and np.array_equal([line.get_ydata() for line in curves], mixed[unit])
        assert [line.get_color() for line in curves] == list(style.COMPONENT_COLOURS)
    with pytest.raises(ValueError, match="6 axes need 6 different names"):
        special.atlas(*about, axis_names=SIX[:5])


def test_pictures_are_small_and_keep_rare_colours():
    """Lines that are hidden but for their entry in the legend keep their own colours."""
    given = tidy(technique=style.METHOD_COLOURS, step=range(1, 400))
    given["a [G]"] = given["b"] = np.where(given["technique"] == "naive", np.sqrt(given["step"]), 0.0)
    figure = draw.curves(given, "step", ["a [G]", "b"], "technique", scale="log", columns=2)
    figure.savefig(drawn := io.BytesIO(), format="png")
    small = style.picture(figure)
    assert len(small) < 0.6 * drawn.tell()
    before, after = (np.asarray(Image.open(of).convert("RGB")).astype(int) for of in (drawn, io.BytesIO(small)))
    for name, colour in style.METHOD_COLOURS.items():
        here = (before == np.round(255 * np.array(to_rgb(colour)))).all(-1)
        assert here.any() and np.abs(after[here] - before[here]).max() <= 4, name


def test_what_hardly_moves_is_drawn_flat_in_a_grid_of_signals():
    loud, still = np.sin(np.arange(30.0)), 1e-4 * np.sin(np.arange(30.0))
    figure = waves.waves({"signal": np.stack([loud, still])[:, None]}, ["loud", "still"], ["unit 0"])
    spans = [np.ptp(ax.get_ylim()) for ax in figure.axes[:2]]
    assert spans[0] > 1.9 and spans[1] == pytest.approx(waves.LEAST_SPAN_G)
