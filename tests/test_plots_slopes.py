"""Figures of the backward slopes: the checks of every figure, and that they draw what they are given."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import test_plots
from test_plots import (  # noqa: F401 (checks and fixtures, collected here too)
    CAVEAT,
    rendered,
    style,
    test_every_figure_is_readable_and_says_its_caveat,
    test_every_figure_names_its_axes,
    test_legends_and_titles_never_cover_data,
    texts,
)

from harvis_utils.figures import plots, plots_slopes

LEVELS = (0.0, 0.01, 0.1, 0.3, 0.5, 1.0)
TICKS = np.linspace(-1, 1, 21)


def _r():
    return np.random.default_rng(0)


def by_slope(n=6):
    value = _r().random((n, 1))
    return value + np.array([0.0, -0.05, 0.1])


def landscape():
    surfaces = {"flat": (TICKS, np.maximum(TICKS, 0)), "gate": (TICKS, np.maximum(TICKS[:, None] + TICKS, 0))}
    paths = {"flat": _r().uniform(-1, 1, (9, 4, 1)), "gate": _r().uniform(-1, 1, (9, 4, 2))}
    tops = {"flat": (1.0,), "gate": (1.0, 1.0)}
    return plots_slopes.plot_landscapes(surfaces, {"plain": paths, "slope 0.3": paths}, tops, "T", CAVEAT)


FIGURES = {
    "landscapes": landscape,
    "successes": lambda: plots_slopes.plot_successes(
        _r().random((12, 6)), [f"tent on a plain, adam {i}" for i in range(12)], LEVELS, "T", CAVEAT
    ),
    "step_sizes": lambda: plots_slopes.plot_step_sizes(
        {"ascent": ((0.1, 1.0, 10.0), _r().random((3, 6))), "adam": ((0.01, 0.1), _r().random((2, 6)))},
        LEVELS,
        [("adam", 0.1)] * 6,
        "T",
        CAVEAT,
    ),
    "progress": lambda: plots_slopes.plot_progress(
        [0, 1, 3, 10, 60], {la: np.sort(_r().random((6, 5))) for la in test_plots.LAYERS}, LEVELS, "T", CAVEAT
    ),
    "by_slope": lambda: plots_slopes.plot_by_slope(
        {la: {g: by_slope() for g in ("trained", "random weights", "unbounded")} for la in test_plots.LAYERS},
        LEVELS,
        "gain over plain ascent",
        True,
        title="T",
        caveat=CAVEAT,
    ),
}


@pytest.fixture(params=FIGURES, scope="module")
def drawn(request):
    with matplotlib.rc_context():
        plots.use_style()
        yield rendered(FIGURES[request.param]())


def test_successes_are_written_as_numbers():
    share = np.array([[0.25, 1.0]])
    said = [t.get_text() for t in texts(plots_slopes.plot_successes(share, ["flat"], [0, 0.1]))]
    assert "25%" in said and "100%" in said


def test_values_and_intervals_are_drawn_at_their_slopes():
    values = by_slope(2)
    axes = plots_slopes.plot_by_slope({"conv1": {"trained": values}}, [0, 1], "gain", zero=True).axes[0]
    line = next(line for line in axes.lines if line.get_marker() == "o")
    assert line.get_ydata() == pytest.approx(values[:, 0]) and line.get_xdata() == pytest.approx([0, 1])


def test_the_chosen_step_size_is_ringed():
    scores = {"adam": ((0.01, 0.1), np.array([[0.2], [0.4]]))}
    axes = plots_slopes.plot_step_sizes(scores, [0.0], [("adam", 0.1)]).axes[0]
    ring = next(line for line in axes.lines if line.get_markersize() == 11)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.1, 0.4)
