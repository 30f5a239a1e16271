"""Figures of the backward slopes, drawn as :mod:`harvis_utils.figures.plots` draws: nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from harvis_utils.figures import plots
from harvis_utils.figures.plots import ACCENT, SIGNAL, WIDTH, _finish, _legend_above

#: from plain ascent to a rectifier that is not there on the way back
SLOPE_COLOURS = ("#111111", "#5fa8d3", "#7fb069", "#e09f3e", "#d1495b", "#9d6fbf")
GROUP_COLOURS = (SIGNAL, "#8a8a8a", "#e09f3e", ACCENT)


def plot_landscapes(
    surfaces: Mapping[str, tuple[np.ndarray, np.ndarray]],
    paths: Mapping[str, Mapping[str, np.ndarray]],
    tops: Mapping[str, Sequence[float]],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Functions (columns) and the ascents on them, one row for each way to climb.

    ``surfaces`` maps a function to its coordinates (n,) and values, (n,) or (n, n) with rows for the second input;
    ``paths`` maps a way to climb to each function's paths, (step, point, dimension); ``tops`` says where the highest
    value is (star). A circle is where an ascent starts, a dot where it ends.
    """
    names = list(surfaces)
    figure, axes = plots._grid(len(paths), len(names), WIDTH, 0.4 + 2.5 * len(paths), sharex=True, sharey="col")
    for row, (way, by_name) in zip(axes, paths.items(), strict=True):
        for ax, name in zip(row, names, strict=True):
            ticks, values = surfaces[name]
            path, top = by_name[name], tops[name]
            if values.ndim == 1:
                _curve(ax, ticks, values, path, top)
            else:
                span = (ticks[0], ticks[-1], ticks[0], ticks[-1])
                ax.imshow(
                    values, cmap="Greys", origin="lower", extent=span, aspect="auto", interpolation="bilinear",
                    vmax=values.max() + 0.6 * np.ptp(values),
                )  # fmt: skip
                ax.plot(path[:, :, 0], path[:, :, 1], color=SIGNAL, linewidth=1)
                ax.plot(path[0, :, 0], path[0, :, 1], "o", color=SIGNAL, markerfacecolor="white", markersize=4)
                ax.plot(path[-1, :, 0], path[-1, :, 1], "o", color=ACCENT, markersize=6, clip_on=False)
                ax.plot(*top, "*", color="#e09f3e", markersize=12, markeredgecolor="black", clip_on=False)
                ax.set_ylabel("second input")
            ax.set_title(f"{name}: {way}")
    for ax in axes[-1]:
        ax.set_xlabel("first input")
    return _finish(figure, caveat, title)


def _curve(ax, ticks: np.ndarray, values: np.ndarray, path: np.ndarray, top: Sequence[float]) -> None:
    ax.plot(ticks, values, color="black", linewidth=1)
    height = [np.interp(path[k, :, 0], ticks, values) for k in (0, -1)]
    for begin, end, low, high in zip(path[0, :, 0], path[-1, :, 0], *height, strict=True):
        ax.annotate("", (end, high), (begin, low), arrowprops={"arrowstyle": "->", "color": SIGNAL, "alpha": 0.6})
    ax.plot(path[0, :, 0], height[0], "o", color=SIGNAL, markerfacecolor="white", markersize=4)
    ax.plot(path[-1, :, 0], height[1], "o", color=ACCENT, markersize=6)
    ax.plot(top[0], values.max(), "*", color="#e09f3e", markersize=12, markeredgecolor="black", clip_on=False)
    ax.set_ylabel("value")


def plot_successes(
    share: np.ndarray, functions: Sequence[str], levels: Sequence[float], title: str = "", caveat: str = ""
) -> Figure:
    """Share of starting points from which the highest value is found: (function, slope), as numbers on a colour."""
    figure, axes = plots._grid(1, 1, WIDTH * 0.85, 0.9 + 0.36 * len(functions))
    ax = axes[0, 0]
    ax.imshow(share, cmap="YlGn", vmin=0, vmax=1.7, aspect="auto")
    for (i, k), value in np.ndenumerate(share):
        ax.text(k, i, f"{value:.0%}", ha="center", va="center", fontsize=9)
    ax.set_yticks(range(len(functions)), functions)
    ax.set_xticks(range(len(levels)), [f"{v:g}" for v in levels])
    ax.set_xlabel("backward slope (0: plain ascent)")
    ax.set_ylabel("function, optimizer")
    ax.grid(visible=False)
    return _finish(figure, caveat, title)


def plot_step_sizes(
    scores: Mapping[str, tuple[Sequence[float], np.ndarray]],
    levels: Sequence[float],
    chosen: Sequence[tuple[str, float]],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Score of each step size, one panel per optimizer, one line per slope.

    ``scores`` maps an optimizer to its step sizes and scores, (size, slope); ``chosen`` is each slope's (optimizer,
    step size), ringed.
    """
    figure, axes = plots._grid(1, len(scores), WIDTH, 3.4, sharey=True)
    for ax, (optimizer, (sizes, values)) in zip(axes[0], scores.items(), strict=True):
        for k, level in enumerate(levels):
            ax.plot(sizes, values[:, k], "o-", color=SLOPE_COLOURS[k], markersize=4, label=f"{level:g}")
            if chosen[k][0] == optimizer:
                at = list(sizes).index(chosen[k][1])
                ax.plot(sizes[at], values[at, k], "o", color=SLOPE_COLOURS[k], markerfacecolor="none", markersize=11)
        ax.set_xscale("log")
        ax.set_xlabel(f"step size, {optimizer}")
    axes[0, 0].set_ylabel("share of the highest known")
    handles, names = axes[0, 0].get_legend_handles_labels()
    _legend_above(figure, handles, [f"slope {n}" for n in names], columns=6, title=title)
    return _finish(figure, caveat)


def plot_progress(
    steps: Sequence[int],
    curves: Mapping[str, np.ndarray],
    levels: Sequence[float],
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Highest value so far over the steps, as a share: ``curves`` maps a panel's name to (slope, step)."""
    figure, axes = plots._grid(1, len(curves), WIDTH, 3.4, sharey=True)
    for ax, (name, values) in zip(axes[0], curves.items(), strict=True):
        for k, level in enumerate(levels):
            ax.plot(steps, values[k], color=SLOPE_COLOURS[k], label=f"{level:g}")
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, max(steps))
        ax.set_title(name)
        ax.set_xlabel("step")
    axes[0, 0].set_ylabel("share of the unit's highest known")
    handles, names = axes[0, 0].get_legend_handles_labels()
    _legend_above(figure, handles, [f"slope {n}" for n in names], columns=6, title=title)
    return _finish(figure, caveat)


def plot_by_slope(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    levels: Sequence[float],
    ylabel: str,
    zero: bool = False,
    sharey: bool = True,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """A number with its interval over the slopes: ``panels`` maps a panel to groups of (slope, 3), value, low, high.

    ``zero`` draws the line of no difference.
    """
    figure, axes = plots._grid(1, len(panels), WIDTH, 3.6, sharey=sharey)
    places = np.arange(len(levels))
    for ax, (name, groups) in zip(axes[0], panels.items(), strict=True):
        if zero:
            ax.axhline(0, color="black", linewidth=0.8)
        for k, (group, values) in enumerate(groups.items()):
            spread = np.abs(values[:, 1:].T - values[:, 0])
            at = places + 0.12 * (k - (len(groups) - 1) / 2)
            ax.errorbar(
                at, values[:, 0], yerr=spread, fmt=plots.MARKERS[k] + "-", color=GROUP_COLOURS[k], markersize=5,
                capsize=2, elinewidth=1, label=group,
            )  # fmt: skip
        ax.set_xticks(places, [f"{v:g}" for v in levels])
        ax.set_title(name)
        ax.set_xlabel("backward slope")
    axes[0, 0].set_ylabel(ylabel)
    handles, names = axes[0, 0].get_legend_handles_labels()
    _legend_above(figure, handles, names, columns=4, title=title)
    return _finish(figure, caveat)
