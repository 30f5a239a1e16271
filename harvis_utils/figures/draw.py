"""Tidy tables turned into figures: points, bars, dots, curves, heat maps and planes.

``table`` is a DataFrame with one row for every observation. Names on an axis, groups (``colour``) and panels are
columns or levels of its index, shown in the order in which they occur; a group has one colour in all figures. What is
measured is a column, with its interval in "<column> low" and "<column> high" where the table has these, and ``label``
for its axis. Several measures are a list of columns, or a mapping of columns to the texts at their axes: then each has
panels with an axis of its own. ``references`` maps names to levels to compare with, or to a mapping of columns to
levels where these differ. Figures compute nothing but the middles of what they draw. All raise ``KeyError`` for a
column that is not there.
"""

import itertools
import textwrap
from collections.abc import Iterable, Mapping
from numbers import Number

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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

#: a log axis shows at most this share of its largest value; what is smaller is written or hollow at its edge
LOG_SPAN = 1e-6
#: columns of a table that is drawn: where on the axis of names a row stands, and the only group or panel
AT, ONLY = "place on the axis", "the only one"


def _text(value, counted: str = "") -> str:
    """A name as it is written; a number says what it counts, where that is not written anyway."""
    return f"{counted} {value:g}".strip() if isinstance(value, Number) else str(value)


def _ends(rows: pd.DataFrame, column: str) -> np.ndarray | None:
    """How far the interval of a column reaches down and up, (2, row); ``None`` without one."""
    if f"{column} low" not in rows:
        return None
    return np.abs(rows[[f"{column} low", f"{column} high"]].sub(rows[column], axis=0).to_numpy(float)).T


def _log_limits(values: pd.Series) -> tuple[float, float]:
    """Limits of a log axis for these values: a value that is all but zero would stretch it over ten empty decades."""
    positive = values[values > 0]
    if positive.empty:
        return 0.1, 10.0
    return max(positive.min() / 2, positive.max() * LOG_SPAN), positive.max() * 2


class _Drawing:
    """A table being drawn: its ``rows``, names on an axis (``order``), ``groups`` and their looks, figure and cells.

    A cell is (axes, column, rows) of one measure and panel. Values go ``across`` and names downwards, or upright.
    """

    def __init__(self, table, measured, label, names, colour, panel, across=False):
        self.rows, self.across = table.reset_index().assign(**{ONLY: ""}), across
        self.names, self.colour, self.panel = names, colour or ONLY, panel or ONLY
        for column in {self.names, self.colour, self.panel} - {None}:
            counted = "" if column == names else column
            self.rows[column] = [_text(value, counted) for value in self.rows[column].tolist()]
        self.order = list(self.rows[names].unique()) if names else []
        self.groups = list(self.rows[self.colour].unique())
        self.colours, self.markers = colours_of(self.groups), dict(zip(self.groups, MARKERS * 9, strict=False))
        if isinstance(measured, str):
            measured = {measured: label or measured}
        self.measures = dict(measured if isinstance(measured, Mapping) else zip(measured, measured, strict=True))

    def spread(self, width: float) -> float:
        """Place rows on the axis of names, groups with a name in common beside each other; returns their distance."""
        beside = self.rows.groupby([self.panel, self.names])[self.colour].nunique().max() > 1
        step = width / len(self.groups) if beside else 0.0
        shift = step * (self.rows[self.colour].map(self.groups.index) - (len(self.groups) - 1) / 2)
        self.rows[AT] = self.rows[self.names].map(self.order.index) + shift
        return step or width

    def panels(self, height: float, columns: int = 99, alone: float = 1.0, xlabel: str = "", **shared) -> list:
        """Make axes for every measure and panel, each row of them ``height`` high; returns the cells.

        Panels of one measure share its axis. A single panel has the share ``alone`` of the page's width.
        """
        parts = list(self.rows.groupby(self.panel, sort=False))
        cells = list(itertools.product(self.measures.items(), parts))
        matrix = len(self.measures) > 1 and len(parts) > 1  # one row of panels for each measure
        columns = len(parts) if matrix else min(columns, len(cells))
        shared = {"sharex" if self.across else "sharey": "row" if matrix else len(parts) > 1} | shared
        self.figure, axes = wrapped(len(cells), columns, WIDTH * (1 if len(cells) > 1 else alone), height, **shared)
        self.cells, self.labels = [], []
        ticks = [textwrap.fill(name, 44 if self.across else 12, break_long_words=False) for name in self.order]
        letters = 100 - max([0, *(len(name) - 20 for name in ticks)]) * self.across  # long names leave panels less
        for i, (ax, ((column, said), (panel, rows))) in enumerate(zip(axes.flat, cells, strict=False)):
            first, last = i % columns == 0, i + columns >= len(cells)
            said = textwrap.fill(said, letters // columns if self.across else 32)
            if self.across:
                labels = {"xlabel": said, "ylabel": self.names if first else ""}
                ax.set_yticks(range(len(ticks)), ticks)
                ax.set_ylim(len(ticks) - 0.4, -0.6)
            else:
                labels = {"xlabel": xlabel if last else "", "ylabel": said if first or len(parts) == 1 else ""}
                if ticks:
                    ax.set_xticks(range(len(ticks)), ticks)
                    ax.set_xlim(-0.6, len(ticks) - 0.4)
            ax.grid(axis="y" if self.across else "x", visible=not ticks)
            ax.set_title("" if matrix and i >= columns else textwrap.fill(panel, letters // columns))
            self.cells.append((ax, column, rows.copy()))
            self.labels.append(labels)
        return self.cells

    def xy(self, along, value) -> tuple:
        """What is x and what is y, of what lies along the axis of names and what is a value."""
        return (value, along) if self.across else (along, value)

    def colours_at(self, rows: pd.DataFrame) -> list[str]:
        """The colour of each row."""
        return list(rows[self.colour].map(self.colours))

    def marks(self, ax: Axes, rows: pd.DataFrame, column: str, **style) -> None:
        """Rows as markers in the looks of their groups."""
        if rows.empty:  # seaborn warns of looks that nothing has
            return
        x, y = self.xy(AT, column)
        looks = {"hue": self.colour, "style": self.colour, "palette": self.colours, "markers": self.markers}
        sns.scatterplot(rows, x=x, y=y, **looks, **style, legend=False, ax=ax)

    def intervals(self, ax: Axes, rows: pd.DataFrame, column: str, **style) -> None:
        """Intervals of a column where the table has them, in the colours of the groups unless said otherwise."""
        x, y = self.xy(AT, column)
        ends = {"xerr" if self.across else "yerr": _ends(rows, column)}
        style = {"fmt": "none", "elinewidth": 1.2, "ecolor": self.colours_at(rows), "zorder": 1.5} | style
        ax.errorbar(rows[x], rows[y], **ends, **style)

    def missing(self, ax: Axes, places: Iterable[float]) -> None:
        """Write "n/a" at places on the axis of names."""
        for place in places:
            at, frames = self.xy(place, 0.02), self.xy("data", "axes fraction")
            ha, va = ("left", "center") if self.across else ("center", "bottom")  # inside the axes
            ax.annotate("n/a", at, xycoords=frames, ha=ha, va=va, fontsize=9)

    def done(self, title: str, columns: int, references, across: bool, line: str | None = None, **more) -> Figure:
        """Draw levels to compare with, write labels, and legend and title outside.

        Groups are in the legend as markers on a ``line`` or none; without it, as what was drawn of them.
        """
        for (ax, column, _), labels in zip(self.cells, self.labels, strict=True):
            ax.set(**labels)  # seaborn's functions write names of columns where there is no label
            for (name, level), style in zip((references or {}).items(), (":", "--", "-."), strict=False):
                draw = ax.axvline if across else ax.axhline
                at = level.get(column) if isinstance(level, Mapping) else level
                if at is not None:
                    draw(at, color="black", linestyle=style, linewidth=1, label=name, zorder=1)
        told = self.groups if line is not None and self.colour != ONLY else ()
        looks = {g: {"color": self.colours[g], "marker": self.markers[g], "linestyle": line} for g in told}
        legend = {group: Line2D([], [], **look) for group, look in looks.items()}
        return finish(self.figure, legend | entries([ax for ax, _, _ in self.cells]) | more, columns, title)


def points(table, y, x, colour=None, panel=None, label=None, references=None, log=False, columns=4, title="") -> Figure:
    """Values ``x`` with their intervals, the names ``y`` downwards; the legend has at most so many ``columns``.

    A value that is missing is "n/a"; on a ``log`` axis one that is zero or far below all others is a hollow marker at
    the edge.
    """
    drawing = _Drawing(table, x, label, y, colour, panel, across=True)
    row = 0.33 if drawing.spread(0.66) < 0.66 else 0.25
    lost = {}
    for ax, column, rows in drawing.panels(0.7 + row * len(drawing.order), alone=0.85, sharey=True):
        floor, top = _log_limits(drawing.rows[column]) if log else (-np.inf, np.inf)
        shown, hidden = rows[rows[column] >= floor], rows[rows[column] < floor]
        drawing.marks(ax, shown, column, s=36)
        drawing.intervals(ax, shown, column)
        drawing.missing(ax, rows.loc[rows[column].isna(), AT])
        if not log:
            continue
        ax.set(xscale="log", xlim=(floor, top))
        style = {"marker": "<", "facecolor": "none", "clip_on": False}
        ax.scatter([floor] * len(hidden), hidden[AT], 25, edgecolor=drawing.colours_at(hidden), **style)
        if len(hidden):
            hollow = {"color": "#555555", "marker": "<", "markerfacecolor": "none", "linestyle": ""}
            lost = {"0, or far below the axis": Line2D([], [], **hollow)}
    return drawing.done(title, columns, references, across=True, line="", **lost)


def bars(table, x, y, colour=None, panel=None, label=None, references=None, stacked=False, title="") -> Figure:
    """Bars of ``y`` with intervals at the names ``x``; groups without a colour of their own are hatched greys.

    A value that is missing is "n/a". With ``stacked`` a bar lies for each name, made of its groups. Raises
    ``ValueError`` for a group that is twice in a stack.
    """
    drawing = _Drawing(table, y, label, x, colour, panel, across=stacked)
    if stacked:
        for ax, column, rows in drawing.panels(0.3 + 0.27 * len(drawing.order), alone=0.8, sharey=True):
            wide = rows.pivot(index=x, columns=drawing.colour, values=column).fillna(0.0)
            wide = wide.reindex(index=drawing.order, columns=drawing.groups, fill_value=0.0)
            for group, begin in (wide.cumsum(axis=1) - wide).items():
                ax.barh(range(len(wide)), wide[group], 0.75, begin, color=drawing.colours[group], label=group)
        return drawing.done(title, 5, references, across=True)
    step = drawing.spread(0.86)
    greys = itertools.cycle(zip(CONTROL_GREYS, CONTROL_HATCHES, strict=True))
    known = COLOURS | ({"": SIGNAL} if colour is None else {})
    looks = {group: (known[group], None) if group in known else next(greys) for group in drawing.groups}
    for ax, column, rows in drawing.panels(3.5 if len(looks) > 4 else 2.7, xlabel=x):
        for group, own in rows.groupby(drawing.colour, sort=False):
            style = {"color": looks[group][0], "hatch": looks[group][1], "edgecolor": "white", "linewidth": 0.4}
            ax.bar(own[AT], own[column], 0.92 * step, label=group or None, **style)
        drawing.intervals(ax, rows, column, ecolor="black", capsize=2, zorder=2)
        style = {"textcoords": "offset points", "fontsize": 9, "rotation": 90, "ha": "center", "va": "bottom"}
        for at in rows.loc[rows[column].isna(), AT]:
            ax.annotate("n/a", (at, 0.0), (0, 3), **style)
    return drawing.done(title, 5, references, across=False)


def dots(
    table, x, y, colour=None, panel=None, label=None, references=None, horizontal=False, middle="mean", title=""
) -> Figure:
    """Every row a dot, sorted, at the names ``x``, and a line at the ``middle`` ("mean" or "median") of each group.

    Names stand downwards if ``horizontal``. What has rows but no value is "n/a".
    """
    drawing = _Drawing(table, y, label, x, colour, panel, across=horizontal)
    reach = 0.4 * drawing.spread(0.75)
    n_beside = len(drawing.groups) if reach < 0.3 else 1
    n_panels = len(drawing.measures) * drawing.rows[drawing.panel].nunique()
    height = 0.6 + (0.2 + 0.06 * n_beside) * len(drawing.order) if horizontal else 2.8
    for ax, column, rows in drawing.panels(height, alone=0.8, xlabel=x, **({"sharey": True} if horizontal else {})):
        by = rows.groupby(AT)[column]
        many, rank = by.transform("count"), by.rank("first") - 1
        moved = rows.assign(**{AT: rows[AT] + reach * (many > 1) * (2 * rank / (many - 1).clip(lower=1) - 1)})
        drawing.marks(ax, moved, column, s=26 if many.max() < 12 else 9, alpha=0.7, linewidth=0)
        middles = rows.drop_duplicates(AT).set_index(AT)[[drawing.colour]].assign(value=by.agg(middle)).dropna()
        line, zero = (ax.vlines, ax.axvline) if horizontal else (ax.hlines, ax.axhline)
        ends = middles.index - 1.2 * reach, middles.index + 1.2 * reach
        line(middles["value"], *ends, color=drawing.colours_at(middles), linewidth=2)
        zero(0, color="black", linewidth=0.8)  # differences look as large as they are
        if horizontal and n_panels > 2:
            ax.locator_params("x", nbins=4)
        drawing.missing(ax, set(rows[AT]) - set(middles.index))
    legend = {middle: Line2D([], [], color=SIGNAL, linewidth=2)}
    return drawing.done(title, 6, references, horizontal, line="", **legend)


def curves(
    table, x, y, colour=None, panel=None, each=None, label=None, scale="linear", references=None, ringed=None,
    columns=4, title="",
) -> Figure:  # fmt: skip
    """Curves of ``y`` over ``x`` with their intervals as bands, in at most so many ``columns`` of panels.

    Every value of ``each`` is a pale curve under their mean. ``scale`` is that of x as matplotlib names it, or
    "levels": values at equal distances, intervals as bars. Rows true in the column ``ringed`` are ringed.
    """
    drawing = _Drawing(table, y, label, None, colour, panel)
    step = 0.24 / len(drawing.groups)  # bars stay apart, and curves do not look shifted
    shift = step * (drawing.rows[drawing.colour].map(drawing.groups.index) - (len(drawing.groups) - 1) / 2)
    n_panels = len(drawing.measures) * drawing.rows[drawing.panel].nunique()
    for ax, column, rows in drawing.panels(2.9 if n_panels < 5 else 2.4, columns, 0.7, xlabel=x):
        rows = rows.dropna(subset=[column])
        if rows.empty:
            ax.annotate("n/a", (0.5, 0.5), xycoords="axes fraction", ha="center", fontsize=9)
            continue
        ticks, levels = list(rows[x].unique()), scale == "levels"
        rows[AT] = rows[x].map(ticks.index) + shift[rows.index] if levels else rows[x]
        looks = {"hue": drawing.colour, "palette": drawing.colours, "legend": False, "ax": ax}
        if each:
            sns.lineplot(rows, x=AT, y=column, units=each, estimator=None, linewidth=0.8, alpha=0.4, **looks)
        if len(ticks) > 15:
            drawing.markers = dict.fromkeys(drawing.groups)  # a marker at each of many values would hide the curve
        else:
            looks |= {"style": drawing.colour, "markers": drawing.markers, "dashes": False, "markersize": 5}
        sns.lineplot(rows, x=AT, y=column, estimator="mean" if each else None, errorbar=None, **looks)
        if levels:
            drawing.intervals(ax, rows, column)
        elif f"{column} low" in rows:
            for group, own in rows.sort_values(x).groupby(drawing.colour):
                ends = own[f"{column} low"].astype(float), own[f"{column} high"].astype(float)
                ax.fill_between(own[x], *ends, color=drawing.colours[group], alpha=0.15, linewidth=0)
        if ringed:
            at = rows[rows[ringed].eq(True)]
            ax.scatter(at[AT], at[column], 80, facecolor="none", edgecolor=drawing.colours_at(at))
        if not levels:
            ax.set_xscale(scale, **({"linthresh": 1} if scale == "symlog" else {}))
        if levels or (scale == "log" and len(ticks) < 8):
            ax.set_xticks(range(len(ticks)) if levels else ticks, map(_text, ticks))
            ax.minorticks_off()
        if levels:  # a single level would stretch the distance of its groups over the panel
            ax.set_xlim(-0.5, len(ticks) - 0.5)
        elif scale == "symlog":
            ax.set_xlim(0, max(ticks))
    return drawing.done(title, 6, references, across=False, line="-")


def plane(table, x, y, colour=None, panel=None, looks=None, across=None, title="") -> Figure:
    """Rows as points at ``x`` and ``y``, with the intervals of both; each is a column or maps it to the axis' text.

    ``looks`` gives groups a colour and a marker of their own; ``across`` are levels of x to compare with.
    """
    drawing = _Drawing(table, y, None, None, colour, panel)
    ((x, xlabel),) = x.items() if isinstance(x, Mapping) else [(x, x)]
    looks = {g: CONTROL_LOOKS.get(g, (c, "o")) for g, c in drawing.colours.items()} | dict(looks or {})
    height = 4.3 if len(drawing.groups) > 3 else 2.7
    for ax, column, rows in drawing.panels(height, xlabel=xlabel, sharex=True, sharey=True):
        for group, own in rows.groupby(drawing.colour, sort=False):
            face, marker = looks[group]
            ends = {"xerr": _ends(own, x), "yerr": _ends(own, column), "elinewidth": 1}
            style = {"markersize": 3, "alpha": 0.5, "markeredgewidth": 0}
            if len(own) < 20:  # a star's points are thin
                style = {"markersize": 14 if marker == "*" else 7, "markeredgecolor": "white", "markeredgewidth": 0.6}
            ax.errorbar(own[x], own[column], **ends, fmt=marker, color=face, label=group or None, **style)
    return drawing.done(title, 5, across, across=True)


def heat(table, label, panel=None, written="", least=-np.inf, limits=None, title="") -> Figure:
    """A wide table as colours, rows downwards: blue from zero up, or from blue to red with numbers on both sides of it.

    The names of index and columns label the axes; ``panel`` is a level of the index. ``written`` is a format for the
    numbers, such as ".0%"; those below ``least`` are left out. ``label`` names the colours, whose ``limits`` are those
    of the numbers unless given.
    """
    parts = {"": table}
    if panel is not None:
        parts = {name: part.droplevel(panel) for name, part in table.groupby(level=panel, sort=False)}
    numbers = table.to_numpy(float)
    top, signed = float(np.nanmax(np.abs(numbers))), (numbers < 0).any()
    low, high = limits or (-top if signed else 0.0, top)
    style = {"cmap": "RdBu_r" if signed else "Blues", "vmin": low, "vmax": high, "cbar": False, "fmt": ""}
    names, xlabel = [_text(name) for name in table.columns], table.columns.name or ""
    turned = max(map(len, names)) * len(names) > 100 / len(parts)
    width = WIDTH if len(parts) > 1 else min(WIDTH, 3.6 + 0.42 * max(len(names), 14))
    height = min(9.2, 1.9 + 0.3 * max(map(len, parts.values())))
    figure, axes = grid(1, len(parts), width, height, sharey=True)
    for ax, (name, part) in zip(axes[0], parts.items(), strict=True):
        rows = [", ".join(map(_text, of)) if isinstance(of, tuple) else _text(of) for of in part.index]
        texts = part.map(lambda v: f"{v:{written}}" if v >= least else "") if written else None
        sns.heatmap(part, ax=ax, annot=texts, annot_kws={"fontsize": 9}, yticklabels=rows, xticklabels=names, **style)
        ax.tick_params(axis="y", labelrotation=0)
        ax.set_xticklabels(names, rotation=45 if turned else 0, ha="right" if turned else "center")
        ax.grid(visible=False)
        ax.set(title=_text(name, panel or ""), xlabel=xlabel, ylabel="")
    axes[0, 0].set_ylabel(", ".join(filter(None, part.index.names)))
    figure.colorbar(axes[0, 0].collections[0], ax=list(axes[0]), label=label)
    return finish(figure, title=title)
