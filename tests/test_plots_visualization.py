"""Figures of feature visualization: the checks of every figure, and that they draw what they are given."""

import matplotlib
import numpy as np
import pytest
from test_plots import (  # noqa: F401 (its checks are run here on other figures)
    ACTIVITIES,
    CAVEAT,
    SIX,
    _r,
    rendered,
    signals,
    style,
    test_every_figure_is_readable_and_says_its_caveat,
    test_every_figure_names_its_axes,
    test_legends_and_titles_never_cover_data,
)

from harvis_utils.figures import plots, plots_visualization
from harvis_utils.lenses import dreams
from harvis_utils.paper import visual_judging, visual_recipes

RECIPES = ["the paper's method", *visual_recipes.BY_NAME]
RANDOM = [visual_judging.RANDOM_PREFIX + name for name in ("the paper's method", *visual_recipes.RANDOM)]


def points(names):
    values = np.sort(_r().random((len(names), 3)), axis=1)[:, [1, 0, 2]]
    return {name: (v, v[::1]) for name, v in zip(names, values, strict=True)}


def variants():
    return {
        name: signals(18).reshape(3, 6, 30) + 0.1 * k for k, name in enumerate(dreams.VARIANTS) if k in (0, 1, 3, 4)
    }


FIGURES = {
    "beside_windows": lambda: plots_visualization.plot_beside_windows(
        signals(12).reshape(6, 2, 30), signals(18).reshape(6, 3, 30), signals(18).reshape(6, 3, 30),
        [f"conv{i // 2 + 1} unit {i}" for i in range(6)], ["max", "min"], 30, "T", CAVEAT,
    ),
    "histories": lambda: plots_visualization.plot_histories(
        np.array([0, 1, 5, 50, 200]), {f"an objective {k}": _r().random((7, 5)).cumsum(1) for k in range(4)},
        "objective", "T", CAVEAT,
    ),
    "axes_of": lambda: plots_visualization.plot_axes_of(
        variants(), [f"{a} to {b}" for a, b in zip(ACTIVITIES[:3], ACTIVITIES[3:6], strict=True)], SIX, 30, "T", CAVEAT
    ),
    "variants": lambda: plots_visualization.plot_variants(
        {m: {n: v[0] for n, v in points(dreams.VARIANTS).items()} for m in ("size_g", "own", "others")},
        {"size_g": "size of the change [G]", "own": "own network", "others": "other networks"}, "T", CAVEAT,
    ),
    "placed": lambda: plots_visualization.plot_placed(
        {"recipes": points(RECIPES), "controls": points(visual_judging.CONTROLS), "random": points(RANDOM)}, "T", CAVEAT
    ),
}  # fmt: skip


@pytest.fixture(params=FIGURES, scope="module")
def drawn(request):
    with matplotlib.rc_context():
        plots.use_style()
        yield rendered(FIGURES[request.param]())


def test_every_figure_of_the_module_is_tried():
    assert {f"plot_{name}" for name in FIGURES} == {n for n in dir(plots_visualization) if n.startswith("plot_")}


def test_windows_stand_beside_the_signals_of_their_unit():
    made, strong, weak = (signals(n).reshape(2, -1, 30) + k for k, n in enumerate((2, 4, 6)))
    figure = plots_visualization.plot_beside_windows(made, strong, weak, ["a", "b"])
    drawn = np.array([ax.lines[0].get_ydata() for ax in figure.axes]).reshape(2, 6, 30)
    assert np.array_equal(drawn, np.concatenate([made, strong, weak], axis=1))


def test_a_variant_without_an_interval_is_left_out():
    values = {"size_g": {"a": np.array([1.0, 0.5, 2.0]), "b": np.full(3, np.nan)}}
    ax = plots_visualization.plot_variants(values, {"size_g": "size [G]"}).axes[0]
    assert ax.lines[0].get_xdata()[0] == 1 and np.isnan(ax.lines[0].get_xdata()[1])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]


def test_every_recipe_and_control_has_a_row_with_its_values():
    figure = plots_visualization.plot_placed({"a": points(["x", "y"]), "b": points(["z"])})
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["x", "y", "z"]
    assert left.lines[0].get_xdata().tolist() == [v[0] for _, v in points(["x", "y"]).values()]
    assert left.lines[0].get_ydata().tolist() == [2, 1]
    assert right.get_xlabel().startswith("nearness")
