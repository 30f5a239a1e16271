"""Figures of the evidence notebooks, drawn as :mod:`harvis_utils.plots` draws: nothing is computed here."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from harvis_utils import plots
from harvis_utils.plots import SIGNAL, WIDTH, _finish, _legend_above

#: below the range, in it, above it, not measured
STANDING_COLOURS = ("#edae49", "#1b4965", "#d1495b", "#e6e6e6")
STANDING_NAMES = ("below what the paper reports", "as the paper reports", "above it", "not measurable")
BEST, REST = "#2f6f4e", "#b4b4b4"
#: levels of a factor, from the smallest to the largest
LEVEL_COLOURS = ("#f1eef6", "#d0d1e6", "#a6bddb", "#74a9cf", "#2b8cbe", "#045a8d")


def plot_readings(
    standing: np.ndarray,
    facts: Sequence[str],
    score: Sequence[float],
    admissible: Sequence[bool],
    factors: Mapping[str, Sequence],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """All readings at a glance, one per column: what each is, which facts it meets, and its score.

    ``standing`` is (fact, reading): -1 below the fact's range, 0 in it, 1 above, NaN not measurable. ``score`` is in
    [0, 1], ``admissible`` marks the readings that cannot be told apart from the best; ``factors`` maps each open
    parameter to its value in every reading.
    """
    n_facts, n = standing.shape
    heights = (1.1, 0.3 * n_facts, 0.26 * len(factors))
    figure, axes = plots._grid(
        3, 1, WIDTH, 1.7 + sum(heights), sharex=True, gridspec_kw={"height_ratios": heights, "hspace": 0.03}
    )
    top, middle, bottom = axes[:, 0]
    chosen = np.asarray(admissible, bool)
    places = np.arange(n)
    top.bar(places[~chosen], np.asarray(score)[~chosen], width=1.0, color=REST)
    top.bar(places[chosen], np.asarray(score)[chosen], width=1.0, color=BEST)
    top.set_ylim(0, 1)
    top.set_ylabel("score")
    code = np.where(np.isnan(standing), 3, np.nan_to_num(standing) + 1)
    norm = BoundaryNorm(np.arange(-0.5, 4), 4)
    middle.imshow(code, aspect="auto", cmap=ListedColormap(STANDING_COLOURS), norm=norm, interpolation="nearest")
    middle.set_yticks(np.arange(n_facts), [textwrap.fill(fact, 52) for fact in facts], fontsize=8)
    # each factor on its own scale of levels
    levels = {name: sorted(set(values)) for name, values in factors.items()}
    shade = np.array(
        [[levels[name].index(v) / max(1, len(levels[name]) - 1) for v in values] for name, values in factors.items()]
    )
    bottom.imshow(shade, aspect="auto", cmap=ListedColormap(LEVEL_COLOURS), vmin=0, vmax=1, interpolation="nearest")
    bottom.set_yticks(np.arange(len(factors)), [f"{k}: {_levels(v)}" for k, v in levels.items()], fontsize=8)
    bottom.set_xlabel(f"{n} readings, best first")
    for ax in (middle, bottom):
        ax.grid(visible=False)
        for y in range(len(ax.get_yticks()) - 1):
            ax.axhline(y + 0.5, color="white", linewidth=1)
    handles = [Patch(color=c) for c in (*STANDING_COLOURS, BEST)]
    _legend_above(
        figure, handles, [*STANDING_NAMES, "score: cannot be told apart from the best"], columns=3, title=title
    )
    return _finish(figure, caveat)


def _levels(values: Sequence) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def plot_reading_factors(
    means: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str = "", caveat: str = ""
) -> Figure:
    """Score of the readings by each open parameter: (mean, smallest, largest) per level, one panel per parameter."""
    figure, axes = plots._grid(1, len(means), WIDTH, 3.0, sharey=True)
    for ax, (name, levels) in zip(axes[0], means.items(), strict=True):
        values = np.array(list(levels.values()))
        spread = np.abs(values[:, 1:].T - values[:, 0])
        ax.errorbar(np.arange(len(levels)), values[:, 0], yerr=spread, fmt="o", color=SIGNAL, capsize=3, elinewidth=1)
        ax.set_xticks(np.arange(len(levels)), list(levels), rotation=90)
        ax.set_xlim(-0.5, len(levels) - 0.5)
        ax.set_title(name)
    axes[0, 0].set_ylabel("score: mean and range")
    axes[0, 0].set_ylim(0, 1)
    return _finish(figure, caveat, title)
