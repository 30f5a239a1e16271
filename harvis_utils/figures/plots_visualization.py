"""Figures of feature visualization, drawn as :mod:`harvis_utils.figures.plots` draws: nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harvis_utils.figures import plots
from harvis_utils.figures.plots import ACCENT, SIGNAL, WIDTH, _finish, _legend_above

STRONGEST, WEAKEST = "#2f6f4e", "#c08a2b"


def plot_beside_windows(
    made: np.ndarray,
    strongest: np.ndarray,
    weakest: np.ndarray,
    names: Sequence[str],
    made_names: Sequence[str] = (),
    rate_hz: float = 30.0,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """One row per unit: the signals made for it, then the real windows that excite it most, then least.

    All are (unit, signal, time) in G, ``made_names`` head the columns of the first; each row has one scale, so that
    shapes and sizes can be compared within it.
    """
    counts = [group.shape[1] for group in (made, strongest, weakest)]
    figure, axes = plots._grid(len(made), sum(counts), WIDTH, 1.1 + 0.95 * len(made), sharex=True, sharey="row")
    seconds = np.arange(made.shape[2]) / rate_hz
    groups = ((made, ACCENT, "made"), (strongest, STRONGEST, "real, strongest"), (weakest, WEAKEST, "real, weakest"))
    for ax, name in zip(axes[0], made_names, strict=False):
        ax.set_title(name, fontsize=9)
    for row, name in enumerate(names):
        column = 0
        for group, colour, _ in groups:
            for signal in group[row]:
                axes[row, column].plot(seconds, signal, color=colour)
                column += 1
        axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    axes[-1, 0].set_xlabel("time [s]")
    figure.supylabel("signal [G], each row on one scale", fontsize=10)
    _legend_above(figure, [Line2D([], [], color=c) for _, c, _ in groups], [n for *_, n in groups], 3, title)
    return _finish(figure, caveat)


def plot_histories(
    steps: np.ndarray, histories: Mapping[str, np.ndarray], ylabel: str, title: str = "", caveat: str = ""
) -> Figure:
    """Objective over the steps, one panel per objective: ``histories`` maps a name to (signal, step)."""
    figure, axes = plots._grid(1, len(histories), WIDTH, 3.0)
    for ax, (name, values) in zip(axes[0], histories.items(), strict=True):
        ax.plot(steps, values.T, color=SIGNAL, linewidth=1, alpha=0.7)
        ax.set_title(name, fontsize=9)
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, steps[-1])
        ax.set_xlabel("step")
    axes[0, 0].set_ylabel(ylabel)
    return _finish(figure, caveat, title)


def plot_axes_of(
    variants: Mapping[str, np.ndarray],
    columns: Sequence[str],
    axis_names: Sequence[str],
    rate_hz: float = 30.0,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Whole windows over each other: ``variants`` maps a name to (column, axis, time) in G, the first drawn in grey.

    One row per sensor axis, one column per example.
    """
    figure, axes = plots._grid(
        len(axis_names), len(columns), WIDTH, 1.4 + 0.95 * len(axis_names), sharex=True, sharey="row"
    )
    colours = ("#9a9a9a", *plots.COMPONENT_COLOURS)
    styles = {
        name: {"color": c, "linewidth": 3 if k == 0 else 1.4}
        for k, (name, c) in enumerate(zip(variants, colours, strict=False))
    }
    for i, name in enumerate(columns):
        axes[0, i].set_title(name, fontsize=9)
        for j, axis in enumerate(axis_names):
            for variant, values in variants.items():
                axes[j, i].plot(np.arange(values.shape[2]) / rate_hz, values[i, j], **styles[variant])
            if i == 0:
                axes[j, 0].set_ylabel(axis, rotation=0, ha="right", va="center")
    axes[-1, 0].set_xlabel("time [s]")
    figure.supylabel("signal [G]", fontsize=10)
    handles = [Line2D([], [], **style) for style in styles.values()]
    _legend_above(figure, handles, list(styles), len(styles), title)
    return _finish(figure, caveat)


def plot_variants(
    measures: Mapping[str, Mapping[str, np.ndarray]], labels: Mapping[str, str], title: str = "", caveat: str = ""
) -> Figure:
    """Mean and interval of several measures, one panel each, one row per variant.

    ``measures`` maps a measure to {variant: (3,)}, mean and the ends of its interval, NaN where there is none;
    ``labels`` are the panels' axis labels.
    """
    names = list(next(iter(measures.values())))
    figure, axes = plots._grid(1, len(measures), WIDTH, 1.3 + 0.33 * len(names), sharey=True)
    places = np.arange(len(names))[::-1]
    for ax, (measure, values) in zip(axes[0], measures.items(), strict=True):
        rows = np.array([values[name] for name in names], dtype=float)
        ends = np.abs(rows[:, 1:].T - rows[:, 0])
        ax.errorbar(rows[:, 0], places, xerr=np.nan_to_num(ends), fmt="o", color=SIGNAL, elinewidth=1, capsize=2)
        ax.set_xlabel(labels[measure])
        ax.set_xlim(left=min(0, float(np.nanmin(rows))) * 1.05)
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(places, names)
    axes[0, 0].set_ylabel("what the window became")
    return _finish(figure, caveat, title)


def plot_placed(
    groups: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], title: str = "", caveat: str = ""
) -> Figure:
    """Activation reached and nearness to real windows, one row per recipe or control: right is good in both.

    ``groups`` maps a group ("recipes", "controls", ...) to {name: (nearness, activation)}, each (3,): mean and the
    ends of its interval. The dotted line is where real windows are to one another.
    """
    names = [name for points in groups.values() for name in points]
    figure, axes = plots._grid(1, 2, WIDTH, 1.4 + 0.23 * len(names), sharey=True)
    looks = tuple(zip((ACCENT, SIGNAL, "#8a8a8a", "#c08a2b"), ("s", "o", "v", "D"), strict=True))
    row = len(names)
    for (group, points), (colour, marker) in zip(groups.items(), looks, strict=False):
        rows = np.arange(row - 1, row - 1 - len(points), -1)
        row -= len(points)
        for ax, which in zip(axes[0], (1, 0), strict=True):
            values = np.array([at[which] for at in points.values()], dtype=float)
            ends = np.abs(values[:, 1:].T - values[:, 0])
            ax.errorbar(values[:, 0], rows, xerr=ends, fmt=marker, color=colour, elinewidth=1, capsize=2, label=group)
    axes[0, 0].set_yticks(np.arange(len(names))[::-1], names)
    axes[0, 0].set_ylabel("how the signal was made")
    axes[0, 0].set_xlabel("activation: share of th reached (at most 1)")
    axes[0, 1].set_xlabel("nearness to real strong windows")
    axes[0, 1].axvline(0.5, color="black", linestyle=":", linewidth=1)
    _legend_above(figure, *axes[0, 0].get_legend_handles_labels(), columns=len(groups), title=title)
    return _finish(figure, caveat)
