"""Numbers turned into figures: points, bars, dots and lines by panel and group, heat maps and planes.

Figures draw what they are given and compute nothing but means over what is drawn. ``panels`` maps the name of each
panel to its groups, and each group's name to its numbers; a group has one colour in all panels. Where numbers have an
interval they are (n, 3): value, low and high, NaN where there is none (:func:`three` takes them from a table).
``said`` is a title, for :func:`harvis_utils.figures.style.finish`.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from harvis_utils.figures.style import (
    COLOURS,
    CONTROL_GREYS,
    CONTROL_HATCHES,
    CONTROL_LOOKS,
    MARKERS,
    SIGNAL,
    WIDTH,
    colours_of,
    entries,
    finish,
    grid,
    wrapped,
)

#: panel to group to what is drawn of it, and the names of levels to compare with
Panels = Mapping[str, Mapping]
Levels = Mapping[str, float] | None

#: a log axis shows at most this share of its largest value; what is smaller is written or hollow at its edge
LOG_SPAN = 1e-6
REFERENCE_STYLES = (":", "--", "-.")


def three(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The column ``name`` of a table with its interval from "name low" and "name high", NaN without: (row, 3)."""
    return table.reindex(columns=[name, f"{name} low", f"{name} high"]).astype(float)


def intervals(ax: Axes, at: Sequence[float], values: np.ndarray, horizontal: bool = False, **style) -> None:
    """Points at ``at`` with their intervals, ``values`` (n, 3); a point without one is drawn without."""
    values = np.asarray(values, dtype=float)
    ends = np.abs(values[:, 1:].T - values[:, 0])
    style = {"fmt": "o", "elinewidth": 1, "capsize": 2, "markersize": 5} | style
    if horizontal:
        ax.errorbar(values[:, 0], at, xerr=ends, **style)
    else:
        ax.errorbar(at, values[:, 0], yerr=ends, **style)


def _references(ax: Axes, references: Levels, horizontal: bool = False) -> None:
    """Lines across for levels to compare with, each with its name for the legend."""
    for (name, level), style in zip((references or {}).items(), REFERENCE_STYLES, strict=False):
        line = ax.axvline if horizontal else ax.axhline
        line(level, color="black", linestyle=style, linewidth=1, label=name, zorder=1)


def _groups(panels: Panels) -> list[str]:
    return list(dict.fromkeys(group for groups in panels.values() for group in groups))


def _shifts(n: int, width: float) -> np.ndarray:
    """Where ``n`` groups stand beside each other around a place."""
    return width / n * (np.arange(n) - (n - 1) / 2)


def _flat(values: Sequence[np.ndarray]) -> np.ndarray:
    """All numbers of several arrays or tables."""
    return np.concatenate([np.ravel(v) for v in values]).astype(float)


def _log_limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Limits of a log axis for these values: a value that is all but zero would stretch it over ten empty decades."""
    flat = _flat(values)
    positive = flat[np.isfinite(flat) & (flat > 0)]
    if not positive.size:
        return 0.1, 10.0
    return max(positive.min() / 2, positive.max() * LOG_SPAN), positive.max() * 2


def points(
    panels: Panels, ylabel: str, references: Levels = None, log: bool = False, columns: int = 4, **said: str
) -> Figure:
    """Values with intervals, one row for every name: a panel's name is the label of its axis.

    Each group is a table (row, 3) of value, low and high by the rows' names. On a ``log`` axis a value that is zero,
    missing or far below all others is a hollow marker at the edge.
    """
    groups = _groups(panels)
    tables = [table for by in panels.values() for table in by.values()]
    rows = list(dict.fromkeys(name for table in tables for name in table.index))
    n_beside = max(sum(rows[0] in table.index for table in by.values()) for by in panels.values())
    colours = colours_of(groups)
    shifts = dict(zip(groups, _shifts(len(groups), 0.66), strict=True))
    size = (WIDTH if len(panels) > 1 else 0.85 * WIDTH, 1.6 + (0.33 if n_beside > 1 else 0.25) * len(rows))
    figure, axes = grid(1, len(panels), *size, ylabel=ylabel, sharey=True)
    floor, top = _log_limits(tables) if log else (-np.inf, np.inf)
    for ax, (label, by) in zip(axes[0], panels.items(), strict=True):
        for k, (group, table) in enumerate(by.items()):
            places = np.array([rows.index(name) for name in table.index]) + shifts[group] * (n_beside > 1)
            values = table.to_numpy(dtype=float)
            style = {"fmt": MARKERS[k % len(MARKERS)], "color": colours[group], "label": group or None}
            shown = values[:, 0] >= floor
            intervals(ax, places[shown], np.maximum(values[shown], floor), horizontal=True, **style)
            if not shown.all():
                hollow = {"color": colours[group], "markerfacecolor": "none", "clip_on": False}
                ax.plot(np.full((~shown).sum(), floor), places[~shown], "<", markersize=5, **hollow)
        _references(ax, references, horizontal=True)
        if log:
            ax.set_xscale("log")
            ax.set_xlim(floor, top)
        ax.set_xlabel(label)
        ax.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(rows)), rows)
    axes[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    legend = entries(axes[0])
    if log:
        legend["0 or none left"] = Line2D([], [], color="#555555", marker="<", markerfacecolor="none", linestyle="")
    return finish(figure, legend, columns, **said)


def points_and_shares(
    values: Mapping[str, pd.DataFrame],
    shares: Mapping[str, pd.DataFrame],
    colours: Sequence[str],
    labels: tuple[str, str, str],
    references: Levels = None,
    crosses: Mapping[str, pd.Series] | None = None,
    **said: str,
) -> Figure:
    """Left as :func:`points` in one panel; right what each row is made of, as bars of ``colours`` from 0 to 1.

    Both map groups to tables by the rows' names, ``shares`` (row, part); later groups' bars are paler. ``crosses`` maps
    the name of a mark to where it stands in the bars. ``labels`` are those of rows, values and shares.
    """
    rows = list(next(iter(values.values())).index)
    figure, ((left, right),) = grid(1, 2, WIDTH, 1.7 + 0.36 * len(rows), sharey=True)
    height, palette = 0.6 / len(values), colours_of(list(values))
    legend: dict = {}
    for k, (shift, (group, table)) in enumerate(zip(_shifts(len(values), 0.5), values.items(), strict=True)):
        places = np.arange(len(rows)) + shift
        intervals(left, places, table, horizontal=True, color=palette[group], label=group)
        before = np.zeros(len(rows))
        for (part, share), colour in zip(shares[group].loc[rows].items(), colours, strict=True):
            right.barh(places, share, height, left=before, color=colour, alpha=0.45 if k else 1.0)
            before = before + share.to_numpy()
            legend[part] = Patch(color=colour)
    _references(left, references, horizontal=True)
    for name, places in (crosses or {}).items():
        right.plot(places.loc[rows], range(len(rows)), "kx", markersize=7, markeredgewidth=2, label=name)
    left.set_yticks(range(len(rows)), rows)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set(ylabel=labels[0], xlabel=labels[1])
    right.set(xlim=(-0.02, 1.02), xlabel=labels[2])
    right.grid(visible=False)
    return finish(figure, entries([left]) | legend | entries([right]), 7, **said)


def bars(
    panels: Panels,
    names: Sequence[str],
    xlabel: str,
    ylabel: str,
    references: Levels = None,
    failed: Mapping[str, Sequence[int]] | None = None,
    log: bool = False,
    **said: str,
) -> Figure:
    """Bars with intervals, (name, 3) for each group; groups without a colour of their own are hatched greys.

    NaN draws no bar but "n/a". ``failed`` maps a group to numbers of failed units, written above the bars that have
    any.
    """
    groups = _groups(panels)
    greys = itertools.cycle(zip(CONTROL_GREYS, CONTROL_HATCHES, strict=True))
    looks = {group: (COLOURS[group], None) if group in COLOURS else next(greys) for group in groups}
    floor, top = _log_limits([v for by in panels.values() for v in by.values()]) if log else (0.0, None)
    height, width = 4.4 if len(groups) > 4 else 3.6, 0.92 * 0.86 / len(groups)
    figure, axes = grid(1, len(panels), WIDTH, height, xlabel, ylabel, sharey=True)
    for ax, (panel, by) in zip(axes[0], panels.items(), strict=True):
        if log:
            ax.set_yscale("log")
            ax.set_ylim(floor, top * 6)
        for shift, (group, numbers) in zip(_shifts(len(by), 0.86), by.items(), strict=True):
            places, numbers = np.arange(len(names)) + shift, np.asarray(numbers, dtype=float)
            heights, (colour, hatch) = np.fmax(numbers[:, 0], floor), looks[group]
            style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
            ax.bar(places, heights, width, label=group, **style)
            intervals(ax, places, numbers, fmt="none", ecolor="black")
            counts = (failed or {}).get(group, np.zeros(len(names)))
            for place, (value, _, high), count in zip(places, numbers, counts, strict=True):
                text = "n/a" if np.isnan(value) else ""
                if log and value < floor:
                    text = f"{value:.0e}" if value > 0 else "0"
                text = f"{text} {count:.3g} failed".strip() if count else text
                at, style = (place, np.nanmax([value, high, floor])), {"rotation": 90, "ha": "center", "va": "bottom"}
                ax.annotate(text, at, xytext=(0, 3), textcoords="offset points", fontsize=9, **style)
        _references(ax, references)
        ax.set_xticks(range(len(names)), names)
        ax.set_title(textwrap.fill(panel, 34))
        ax.grid(axis="x", visible=False)
    if not log:
        axes[0, 0].set_ylim(bottom=0)
    return finish(figure, entries(axes[0]), 5, **said)


def stacked(table: pd.DataFrame, xlabel: str, ylabel: str, **said: str) -> Figure:
    """One bar per row of a table, made of its columns."""
    figure, ((ax,),) = grid(1, 1, WIDTH * 0.8, 1.2 + 0.27 * len(table))
    table.plot.barh(stacked=True, ax=ax, color=colours_of(list(table)), width=0.75, legend=False)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return finish(figure, entries([ax]), **said)


def dots(
    panels: Panels,
    xlabel: str,
    ylabel: str | None = None,
    references: Levels = None,
    horizontal: bool = False,
    middle: str = "mean",
    **said: str,
) -> Figure:
    """Every number a dot, sorted, and a line at the ``middle`` ("mean" or "median"): panel, group, name to (n,).

    Names stand along one axis, groups beside each other in colour. Without ``ylabel`` panels are measures, each with
    an axis of its own, and named by it. A name without any number gets "n/a".
    """
    groups, by = _groups(panels), next(iter(panels.values()))
    names = list(next(iter(by.values())))
    height = 1.5 + (0.2 + 0.06 * len(groups)) * len(names) if horizontal else 3.7
    size = (WIDTH if len(panels) > 1 else 0.8 * WIDTH, height)
    shared = {"sharex": horizontal, "sharey": ylabel is not None}
    figure, axes = grid(1, len(panels), *size, xlabel, ylabel or "", **shared)
    shifts, colours = _shifts(len(groups), 0.75), colours_of(groups)
    for ax, (panel, by) in zip(axes[0], panels.items(), strict=True):
        for k, (group, values) in enumerate(by.items()):
            for i, name in enumerate(names):
                own = np.sort(np.asarray(values[name], dtype=float))
                own, at = own[np.isfinite(own)], i + shifts[k]
                if not len(own):
                    ax.annotate("n/a", (at, 0.5), xycoords=("data", "axes fraction"), ha="center")
                    continue
                reach = 0.3 / len(groups)
                across = at + (np.linspace(-reach, reach, len(own)) if len(own) > 1 else np.zeros(1))
                colour, label = colours[group], group if i == 0 and group else None
                style = {"color": colour, "markersize": 5 if len(own) < 12 else 3, "alpha": 0.7, "linestyle": ""}
                line, xy = (ax.vlines, (own, across)) if horizontal else (ax.hlines, (across, own))
                ax.plot(*xy, MARKERS[k % len(MARKERS)], label=label, **style)
                line(getattr(np, middle)(own), at - 1.2 * reach, at + 1.2 * reach, color=colour, linewidth=2)
        _references(ax, references, horizontal)
        zero = ax.axvline if horizontal else ax.axhline
        zero(0, color="black", linewidth=0.8)  # differences look as large as they are
        if horizontal:
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.4, -0.6)
            ax.grid(axis="y", visible=False)
        else:
            ax.set_xticks(range(len(names)), [textwrap.fill(str(name), 9, break_long_words=False) for name in names])
            ax.set_xlim(-0.6, len(names) - 0.4)
            ax.grid(axis="x", visible=False)
        if ylabel is None:
            ax.set_ylabel(panel)
        else:
            ax.set_title(panel)
    legend = entries(axes[0]) | {middle: Line2D([], [], color=SIGNAL, linewidth=2)}
    return finish(figure, legend, 6, **said)


def lines(
    panels: Panels,
    x: Sequence[float] | Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str | None = None,
    references: Levels = None,
    rings: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    each: bool = False,
    levels: bool = False,
    scale: str = "linear",
    sharey: bool | str | None = None,
    columns: int = 4,
    **said: str,
) -> Figure:
    """Curves: each group is (x,), or (x, 3) with an interval.

    With ``each`` a group is (x, n), n curves drawn pale under their mean. ``x`` is one for all panels or maps each to
    its own; with ``levels`` its values stand at equal distances and intervals are bars, else they are bands. ``rings``
    maps panel and group to the places on x that are ringed, one for each curve. ``scale`` is that of x, as matplotlib
    names it, ``sharey`` is as in ``plt.subplots``. Without ``ylabel`` panels are measures, each named by an axis of its
    own.
    """
    groups = _groups(panels)
    colours, shifts = colours_of(groups), _shifts(len(groups), 0.12 * len(groups))
    size = (WIDTH if len(panels) > 1 else 0.7 * WIDTH, 2.9 if len(panels) < 5 else 2.4)
    shared = ylabel is not None if sharey is None else sharey
    figure, axes = wrapped(len(panels), columns, *size, ylabel=ylabel or "", sharey=shared)
    for ax, (panel, by) in zip(axes.flat, panels.items(), strict=False):
        ticks = np.asarray(x[panel] if isinstance(x, Mapping) else x)
        places = np.arange(len(ticks)) if levels else ticks
        for k, group in enumerate(by):
            values, colour, marker = np.asarray(by[group], dtype=float), colours[group], MARKERS[k % len(MARKERS)]
            curve = values if values.ndim == 1 else values.mean(1) if each else values[:, 0]
            if values.ndim == 2 and levels and not each:
                intervals(ax, places + shifts[groups.index(group)], values, fmt=marker + "-", color=colour, label=group)
            else:
                marked = marker if len(ticks) < 16 else None
                ax.plot(places, curve, label=group or None, color=colour, marker=marked, markersize=4)
            if each:
                ax.plot(places, values, color=colour, linewidth=0.8, alpha=0.4)
            elif values.ndim == 2 and not levels:
                ax.fill_between(places, values[:, 1], values[:, 2], color=colour, alpha=0.15, linewidth=0)
            for i, at in enumerate((rings or {}).get(panel, {}).get(group, ())):
                where = list(ticks).index(at)
                height_at = values[where, i] if each else curve[where]
                ax.plot(places[where], height_at, "o", color=colour, markersize=9, markerfacecolor="none")
        _references(ax, references)
        ax.set_xscale(scale, **({"linthresh": 1} if scale == "symlog" else {}))
        if levels or (scale == "log" and len(ticks) < 8):
            ax.set_xticks(places, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        elif scale == "symlog":
            ax.set_xlim(0, max(ticks))
        ax.set_xlabel(xlabel)
        if ylabel is None:
            ax.set_ylabel(textwrap.fill(panel, 24))
        else:
            ax.set_title(panel)
    return finish(figure, entries(axes.flat), 6, **said)


def plane(
    panels: Panels,
    xlabel: str,
    ylabel: str,
    looks: Mapping[str, tuple[str, str]] | None = None,
    across: Levels = None,
    zero: bool = False,
    numbered: bool = False,
    title: str = "",
    **said: str,
) -> Figure:
    """Points in a plane: each group is its (x, y), (n,) each, or (n, 3) each with both intervals.

    ``looks`` gives groups a colour and a marker of their own; ``across`` are levels of x to compare with, ``zero``
    draws both axes' zero. With ``numbered`` points carry the number before their name in the legend at the right.
    """
    groups = _groups(panels)
    looks = {g: CONTROL_LOOKS.get(g, (colour, "o")) for g, colour in colours_of(groups).items()} | dict(looks or {})
    height = 5.2 if len(groups) > 3 else 3.6
    figure, axes = grid(1, len(panels), WIDTH, height, xlabel, ylabel, sharex=True, sharey=True)
    for ax, (panel, by) in zip(axes[0], panels.items(), strict=True):
        _references(ax, across, horizontal=True)
        for level in (ax.axhline, ax.axvline) if zero else ():
            level(0, color="black", linewidth=0.8)
        for k, (group, (x, y)) in enumerate(by.items(), start=1):
            colour, marker = looks[group]
            x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            if x.ndim == 1:
                ax.plot(x, y, ".", color=colour, markersize=4, alpha=0.5, label=group or None)
                continue
            ends = [np.abs(v[:, 1:].T - v[:, 0]) for v in (x, y)]
            size = 14 if marker == "*" else 7  # a star's points are thin
            style = {"markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.6, "elinewidth": 1}
            label = f"{k} {group}" if numbered else group
            ax.errorbar(x[:, 0], y[:, 0], xerr=ends[0], yerr=ends[1], fmt=marker, color=colour, label=label, **style)
            if numbered:
                ax.annotate(str(k), (x[0, 0], y[0, 0]), xytext=(5, 4), textcoords="offset points", fontsize=9)
        ax.set_title(panel)
    legend = entries(axes[0])
    if not numbered:
        return finish(figure, legend, 5, title, **said)
    figure.legend(legend.values(), legend.keys(), loc="outside right upper")
    axes[0, 0].set_title(textwrap.fill(title, 56))
    return finish(figure, **said)


def heat(
    panels: Mapping[str, pd.DataFrame],
    xlabel: str,
    ylabel: str,
    label: str,
    written: str = "",
    least: float = -np.inf,
    limits: tuple[float, float] | None = None,
    **said: str,
) -> Figure:
    """Tables as colours, rows downwards: blue from zero up, or with numbers on both sides of zero from blue to red.

    ``written`` is a format for the numbers, such as ".0%"; those below ``least`` are left out. ``label`` names the
    colours, whose ``limits`` are those of the numbers unless given.
    """
    tables = list(panels.values())
    every = _flat(tables)
    top, signed = float(np.nanmax(np.abs(every))), (every < 0).any()
    low, high = limits or (-top if signed else 0.0, top)
    n_rows, n_columns = tables[0].shape
    width = WIDTH if len(panels) > 1 else min(WIDTH, 3.6 + 0.42 * max(n_columns, 14))
    figure, axes = grid(1, len(panels), width, min(9.2, 1.9 + 0.3 * n_rows), sharey=True)
    for ax, (panel, table) in zip(axes[0], panels.items(), strict=True):
        texts = table.map(lambda v: f"{v:{written}}" if v >= least else "") if written else None
        style = {"cmap": "RdBu_r" if signed else "Blues", "vmin": low, "vmax": high, "cbar": False}
        sns.heatmap(table, ax=ax, annot=texts, fmt="", annot_kws={"fontsize": 9}, **style)
        turned = max(len(str(name)) for name in table.columns) * n_columns > 100 / len(panels)
        ax.set_xticklabels(ax.get_xticklabels(), rotation=45 if turned else 0, ha="right" if turned else "center")
        ax.grid(visible=False)
        ax.set(title=panel, xlabel=xlabel, ylabel="")
    axes[0, 0].set_ylabel(ylabel)
    axes[0, 0].tick_params(axis="y", labelrotation=0)
    figure.colorbar(axes[0, 0].collections[0], ax=list(axes[0]), label=label)
    return finish(figure, **said)
