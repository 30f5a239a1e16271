"""Arrays turned into figures: style and colours set once, every axis labelled with its unit, nothing computed.

Every function returns a matplotlib ``Figure`` that is closed for pyplot, so that a notebook cell ending in the
call shows it exactly once. What is drawn is what is handed over; the only arithmetic is the mean, smallest and
largest value over seeds of the bars. ``caveat`` is written into the lower right corner of a figure, for data that
are made up or not verified.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.lines import Line2D

#: widest figure in inches: a notebook page shows it unscaled, so that 9 pt stay 9 pt
WIDTH = 10.0

#: the paper's methods, the proposed one darkest, and ours
METHOD_COLOURS = {
    "naive": "#d1495b",
    "L2+TV": "#edae49",
    "L2+TV+AAP": "#b5838d",
    "L2+TV+EAP": "#7fb069",
    "L2+TV+clip": "#5fa8d3",
    "L2+TV+EAP+clip": "#1b4965",
    "lowpass": "#9d6fbf",
    "unit-norm": "#3fb8a5",
    "ours (means)": "#e0218a",
}
#: greys for what methods are compared with, told apart by hatching too
CONTROL_GREYS = ("#3d3d3d", "#6b6b6b", "#919191", "#b4b4b4", "#d5d5d5", "#7d7d7d")
CONTROL_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "|||")
SPLIT_COLOURS = {"train": "#1b4965", "val": "#edae49", "test": "#d1495b"}
COMPONENT_COLOURS = ("#1b4965", "#d1495b", "#e09f3e", "#5fa8d3", "#7fb069", "#9d6fbf")
#: a log axis shows at most this share of its largest value; what is smaller is written, not drawn
LOG_SPAN = 1e-6
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNAL, MAP, ACCENT = "#1b4965", "#c9d6df", "#d1495b"


# ----------------------------------------------------------------------------------------- style and colours


def use_style() -> None:
    """Set fonts, grid and layout for every figure of the companion."""
    mpl.rcParams.update(
        {
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "figure.titlesize": 11,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "savefig.dpi": 110,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.7,
            "lines.linewidth": 1.4,
            "hatch.linewidth": 0.6,
        }
    )


def class_colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per class: hues spread evenly, lightness alternating so that neighbouring hues differ twice."""
    import seaborn as sns

    shades = [sns.husl_palette(len(names), h=0.04, s=0.85, l=light) for light in (0.42, 0.70)]
    return {name: to_hex(shades[i % 2][i]) for i, name in enumerate(names)}


def class_markers(names: Sequence[str]) -> dict[str, str]:
    """One marker per class, repeating: shape and colour together tell many classes apart."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def method_colours(controls: Sequence[str] = ()) -> dict[str, str]:
    """Colours of the methods, and a grey for each control in the order given."""
    greys = {name: CONTROL_GREYS[i % len(CONTROL_GREYS)] for i, name in enumerate(controls)}
    return METHOD_COLOURS | greys


def _grid(n_rows: int, n_columns: int, width: float, height: float, **more) -> tuple[Figure, np.ndarray]:
    """A closed figure and its axes, always as a two-dimensional array."""
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(width, height), squeeze=False, layout="constrained", **more)
    plt.close(figure)
    return figure, axes


def _finish(figure: Figure, caveat: str, title: str = "") -> Figure:
    if title:
        figure.suptitle(title)
    if caveat:  # as supxlabel it gets room of its own and never covers data
        figure.supxlabel(caveat, x=0.995, ha="right", fontsize=9, color=ACCENT, style="italic")
    return figure


def _legend_above(figure: Figure, handles, labels, columns: int, title: str = "") -> None:
    """Legend above the axes, outside of them; the figure's title is its title, so that neither covers the other."""
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        handlelength=1.6,
        columnspacing=1.2,
        title=title or None,
    )
    legend.get_title().set_fontsize(11)


def _panels(n: int, columns: int) -> tuple[int, int]:
    columns = min(columns, n)
    return math.ceil(n / columns), columns


def _hide_rest(axes: np.ndarray, used: int) -> None:
    for ax in axes.flat[used:]:
        ax.set_visible(False)


# ----------------------------------------------------------------------------------------------------- data


def plot_recordings(
    signals: Sequence[np.ndarray],
    titles: Sequence[str],
    axis_names: Sequence[str],
    rate_hz: float,
    caveat: str = "",
    columns: int = 5,
) -> Figure:
    """One example per activity: ``signals`` are (time, axis) in G; sensors stacked, their components in colour.

    ``axis_names`` end in the component ("right arm x"); what stands before it names the sensor.
    """
    sensors = list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in axis_names))
    components = list(dict.fromkeys(name.rsplit(" ", 1)[-1] for name in axis_names))
    rows, columns = _panels(len(signals), columns)
    per = len(sensors)
    figure, axes = _grid(rows * per, columns, WIDTH, 0.5 + rows * (0.35 + 0.85 * per), sharex=True)
    for i, (signal, title) in enumerate(zip(signals, titles, strict=True)):
        row, column = divmod(i, columns)
        seconds = np.arange(len(signal)) / rate_hz
        for s, sensor in enumerate(sensors):
            ax = axes[row * per + s, column]
            for a, name in enumerate(axis_names):
                if name.rsplit(" ", 1)[0] == sensor:
                    colour = COMPONENT_COLOURS[components.index(name.rsplit(" ", 1)[-1]) % len(COMPONENT_COLOURS)]
                    ax.plot(seconds, signal[:, a], color=colour, linewidth=0.9)
            ax.margins(x=0)
            ax.yaxis.set_major_locator(mpl.ticker.MaxNLocator(3))
            if column == 0:
                ax.set_ylabel(f"{sensor}\n[G]", fontsize=9)
            if s == 0:
                ax.set_title(title, fontsize=9)
            if s == per - 1 and i + columns >= len(signals):
                ax.set_xlabel("time [s]")
                ax.tick_params(labelbottom=True)
    for i in range(len(signals), rows * columns):
        row, column = divmod(i, columns)
        for s in range(per):
            axes[row * per + s, column].set_visible(False)
    handles = [Line2D([], [], color=COMPONENT_COLOURS[c % len(COMPONENT_COLOURS)]) for c in range(len(components))]
    _legend_above(figure, handles, components, len(components))
    return _finish(figure, caveat)


def plot_class_balance(counts: Mapping[str, Sequence[int]], names: Sequence[str], caveat: str = "") -> Figure:
    """Windows per activity, one bar per split; ``counts`` maps a split to (activity,) numbers of windows."""
    figure, axes = _grid(1, 1, WIDTH * 0.8, 1.2 + 0.27 * len(names))
    ax, left = axes[0, 0], np.zeros(len(names))
    for split, n in counts.items():
        ax.barh(names, n, left=left, color=SPLIT_COLOURS.get(split, "#888888"), label=split, height=0.75)
        left = left + np.asarray(n)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("windows")
    ax.set_ylabel("activity")
    _legend_above(figure, *ax.get_legend_handles_labels(), columns=len(counts))
    return _finish(figure, caveat)


def plot_subject_split(
    counts: np.ndarray,
    subjects: Sequence[int],
    split: Mapping[str, Sequence[int]],
    names: Sequence[str],
    caveat: str = "",
) -> Figure:
    """Windows per (subject, activity) as a table of colours; the subjects' ticks show their split."""
    figure, axes = _grid(1, 1, min(WIDTH, 3.0 + 0.42 * len(names)), 2.6 + 0.3 * len(subjects))
    ax = axes[0, 0]
    image = ax.imshow(counts, aspect="auto", cmap="Blues", vmin=0)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(subjects)), [str(s) for s in subjects])
    of = {subject: name for name, members in split.items() for subject in members}
    for label, subject in zip(ax.get_yticklabels(), subjects, strict=True):
        label.set_color(SPLIT_COLOURS.get(of.get(subject, ""), "#888888"))
        label.set_fontweight("bold")
    ax.grid(visible=False)
    ax.set_xlabel("activity")
    ax.set_ylabel("subject")
    figure.colorbar(image, ax=ax, label="windows")
    handles = [Line2D([], [], marker="s", linestyle="", color=SPLIT_COLOURS.get(name, "#888888")) for name in split]
    _legend_above(figure, handles, list(split), len(split))
    return _finish(figure, caveat)


def plot_amplitude_histogram(
    counts: np.ndarray, edges_g: np.ndarray, threshold_g: float, paper_g: float | None = None, caveat: str = ""
) -> Figure:
    """Histogram of |acceleration| (``counts`` between ``edges_g``) with the line of mean + 2 std (claim C2)."""
    figure, axes = _grid(1, 1, WIDTH * 0.75, 3.6)
    ax = axes[0, 0]
    ax.stairs(counts, edges_g, fill=True, color=MAP, edgecolor=SIGNAL)
    ax.set_yscale("log")
    ax.axvline(threshold_g, color=ACCENT, label=f"mean + 2 std = {threshold_g:.3f} G")
    if paper_g is not None:
        ax.axvline(paper_g, color="black", linestyle=":", label=f"paper: {paper_g:.2f} G")
    ax.set_xlabel("|acceleration| [G]")
    ax.set_ylabel("samples")
    ax.margins(x=0)
    _legend_above(figure, *ax.get_legend_handles_labels(), columns=2)
    return _finish(figure, caveat)


# ------------------------------------------------------------------------------------------------- training


def plot_training_curves(
    loss: Mapping[str, np.ndarray],
    macro_f1: Mapping[str, np.ndarray],
    chosen: Sequence[int],
    paper_f1: float | None = None,
    caveat: str = "",
) -> Figure:
    """Loss and macro F1 over epochs, one line per seed; ``loss`` and ``macro_f1`` map a split to (seed, epoch).

    ``chosen`` is each seed's epoch (counted from 1) taken for the networks; it is marked on every F1 line.
    """
    figure, axes = _grid(1, 2, WIDTH, 3.8)
    for ax, curves, label in ((axes[0, 0], loss, "cross entropy [nat]"), (axes[0, 1], macro_f1, "macro F1")):
        for split, values in curves.items():
            values = np.atleast_2d(values)
            epochs = np.arange(1, values.shape[1] + 1)
            colour = SPLIT_COLOURS.get(split, "#888888")
            ax.plot(epochs, values.T, color=colour, linewidth=1.0, alpha=0.8)
            ax.plot([], [], color=colour, label=split)
            if curves is macro_f1:
                best = np.asarray(chosen) - 1
                ax.plot(epochs[best], values[np.arange(len(values)), best], "o", color=colour, markersize=5)
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axes[0, 1].plot([], [], "ok", markersize=5, label="chosen epoch")
    if paper_f1 is not None:
        axes[0, 1].axhline(paper_f1, color="black", linestyle=":", label=f"paper: {paper_f1:.3f}")
    entries = dict(zip(*(reversed(_all_entries(axes))), strict=True))
    _legend_above(figure, list(entries.values()), list(entries), len(entries))
    return _finish(figure, caveat)


def _all_entries(axes: np.ndarray) -> tuple[list, list]:
    """Legend handles and labels of several axes, each label once."""
    found: dict = {}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def plot_confusion(shares: np.ndarray, names: Sequence[str], caveat: str = "") -> Figure:
    """Confusion matrix; ``shares`` is (true, predicted), each row summing to 1. Shares below 0.5 % stay blank."""
    n = len(names)
    figure, axes = _grid(1, 1, min(WIDTH, 3.6 + 0.42 * n), min(9.2, 2.8 + 0.4 * n))
    ax = axes[0, 0]
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        if share >= 0.005:
            ax.text(
                j,
                i,
                f"{100 * share:.0f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if share > 0.5 else "black",
            )
    ax.set_xticks(range(n), names, rotation=50, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), names)
    ax.grid(visible=False)
    ax.set_xlabel("predicted activity (numbers: % of the true activity's windows)")
    ax.set_ylabel("true activity")
    figure.colorbar(image, ax=ax, label="share of the true activity's windows")
    return _finish(figure, caveat)


def plot_f1_bars(f1: np.ndarray, names: Sequence[str], label: str = "activity", caveat: str = "") -> Figure:
    """F1 per class or subject: bar = mean over seeds, dots = seeds; ``f1`` is (seed, group)."""
    f1 = np.atleast_2d(f1)
    figure, axes = _grid(1, 1, WIDTH * 0.8, 1.3 + 0.27 * len(names))
    ax, places = axes[0, 0], np.arange(len(names))
    ax.barh(places, f1.mean(0), color=MAP, height=0.75, label="mean over seeds")
    for s, row in enumerate(f1):
        ax.plot(row, places, "o", color=SIGNAL, markersize=4, label="one seed" if s == 0 else None)
    ax.set_yticks(places, [str(n) for n in names])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, 1.02)
    ax.set_xlabel("F1")
    ax.set_ylabel(label)
    _legend_above(figure, *ax.get_legend_handles_labels(), columns=2)
    return _finish(figure, caveat)


# -------------------------------------------------------------------------------------------------- signals


def plot_signal_with_map(
    ax,
    signal: np.ndarray,
    unit_map: np.ndarray | None = None,
    rate_hz: float = 30.0,
    th: float | None = None,
    p95: float | None = None,
    colour: str = SIGNAL,
    labels: bool = True,
):
    """One signal as the paper's Figs. 1, 6 and 7 draw it: line in G (left), the unit's output as bars (right).

    ``signal`` and ``unit_map`` are (time,); the dotted line is the 95 % point of the unit's training outputs, the
    dashed one its threshold. Returns the right axes, or ``None`` without a map.
    """
    seconds = np.arange(len(signal)) / rate_hz
    twin = None
    if unit_map is not None:
        twin = ax.twinx()
        twin.bar(seconds, unit_map, width=0.9 / rate_hz, color=MAP, label="unit's output")
        for level, style, name in ((p95, ":", "95 % point"), (th, "--", "th")):
            if level is not None:
                twin.axhline(level, color="black", linestyle=style, linewidth=1.0, label=name)
        levels = [v for v in (float(np.max(unit_map)), th, p95) if v is not None and np.isfinite(v)]
        twin.set_ylim(0, 1.08 * max([*levels, 1e-9]))
        twin.spines["right"].set_visible(True)
        twin.grid(visible=False)
        twin.set_zorder(0)
        ax.set_zorder(1)  # the line stands in front of the bars
        ax.patch.set_visible(False)
        ax.grid(visible=False)
        if labels:
            twin.set_ylabel("output")
    ax.axhline(0, color="#bbbbbb", linewidth=0.7)
    ax.plot(seconds, signal, color=colour, label="signal")
    ax.set_xlim(-0.6 / rate_hz, (len(signal) - 0.4) / rate_hz)
    if labels:
        ax.set_xlabel("time [s]")
        ax.set_ylabel("signal [G]")
    return twin


def plot_unit_methods(
    signals: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    th: float,
    p95: float,
    rate_hz: float = 30.0,
    title: str = "",
    caveat: str = "",
    columns: int = 4,
) -> Figure:
    """The same unit under several methods (Figs. 1, 6, 7): signal and output (time,) of each, th and 95 % point."""
    rows, columns = _panels(len(signals), columns)
    figure, axes = _grid(rows, columns, max(4.0, WIDTH * columns / 4), 0.9 + 2.3 * rows)
    entries: dict = {}
    for i, (ax, (name, signal)) in enumerate(zip(axes.flat, signals.items(), strict=False)):
        colour = METHOD_COLOURS.get(name, SIGNAL)
        twin = plot_signal_with_map(ax, signal, maps[name], rate_hz, th, p95, colour, labels=False)
        ax.set_title(name)
        if i % columns == 0:
            ax.set_ylabel("signal [G]")
        if i % columns == columns - 1 or i == len(signals) - 1:
            twin.set_ylabel("output")
        if i + columns >= len(signals):
            ax.set_xlabel("time [s]")
        entries |= dict(zip(*reversed(twin.get_legend_handles_labels()), strict=True))
    _hide_rest(axes, len(signals))
    line = Line2D([], [], color=SIGNAL)
    _legend_above(figure, [line, *entries.values()], ["signal", *entries], len(entries) + 1, title=title)
    return _finish(figure, caveat)


def plot_signal_gallery(
    signals: np.ndarray,
    titles: Sequence[str],
    maps: np.ndarray | None = None,
    rate_hz: float = 30.0,
    title: str = "",
    caveat: str = "",
    columns: int = 8,
    colours: Sequence[str] | None = None,
) -> Figure:
    """Small pictures of many units: ``signals`` (unit, time) in G on one common scale, ``maps`` as shaded background.

    A signal beyond the common scale (the largest 95 % point over units of max |signal|) is cut and says its peak.
    """
    rows, columns = _panels(len(signals), columns)
    peaks = np.abs(signals).max(1)
    limit = float(np.nanquantile(peaks, 0.95)) * 1.1 or 1.0
    figure, axes = _grid(rows, columns, WIDTH, 0.8 + 1.0 * rows, sharex=True, sharey=True)
    seconds = np.arange(signals.shape[1]) / rate_hz
    for i, (ax, signal, name) in enumerate(zip(axes.flat, signals, titles, strict=False)):
        if maps is not None:
            top = float(np.max(maps[i])) or 1.0
            ax.fill_between(seconds, -limit, -limit + 2 * limit * maps[i] / top, color=MAP, linewidth=0)
        ax.plot(seconds, signal, color=SIGNAL if colours is None else colours[i])
        ax.set_title(name if peaks[i] <= limit else f"{name} (to {peaks[i]:.1f} G)", fontsize=9, pad=2)
        ax.set_ylim(-limit, limit)
        if i + columns >= len(signals):
            ax.tick_params(labelbottom=True)
    _hide_rest(axes, len(signals))
    axes[-1, 0].set_xlabel("time [s]")
    figure.supylabel("signal [G]", fontsize=10)
    note = "shaded: the unit's output, each on its own scale" if maps is not None else ""
    return _finish(figure, caveat, "\n".join(part for part in (title, note) if part))


def plot_history(
    steps: np.ndarray,
    quantities: Mapping[str, Mapping[str, np.ndarray]],
    title: str = "",
    caveat: str = "",
    columns: int = 3,
) -> Figure:
    """What happened during maximization, steps on a log axis; one panel per quantity, one line per method.

    ``quantities`` maps an axis label with unit ("amplitude [G]") to {method: (step,)}; ``steps`` count from 1.
    """
    rows, columns = _panels(len(quantities), columns)
    figure, axes = _grid(rows, columns, max(4.5, WIDTH * columns / 3), 0.9 + 2.6 * rows)
    for ax, (label, lines) in zip(axes.flat, quantities.items(), strict=False):
        for i, (method, values) in enumerate(lines.items()):
            colour = METHOD_COLOURS.get(method, COMPONENT_COLOURS[i % len(COMPONENT_COLOURS)])
            ax.plot(steps, values, color=colour, label=method)
        ax.set_xscale("log")
        ax.set_xlabel("step")
        ax.set_ylabel(label)
    _hide_rest(axes, len(quantities))
    handles, labels = _all_entries(axes)
    _legend_above(figure, handles, labels, min(len(labels), 2 * columns), title=title)
    return _finish(figure, caveat)


# --------------------------------------------------------------------------------------------------- scores


def plot_scores(
    values: Mapping[str, np.ndarray],
    layers: Sequence[str],
    controls: Mapping[str, np.ndarray] | None = None,
    failed: Mapping[str, Sequence[int]] | None = None,
    ylabel: str = "Ssim [G²], lower is better",
    log: bool = False,
    line: float | None = None,
    line_label: str = "",
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Bars per layer and method with the range over seeds (Figs. 3 and 4); controls in grey in the same axes.

    ``values`` and ``controls`` map a name to (layer, 3): mean, smallest, largest; NaN draws no bar but "n/a".
    ``failed`` maps a name to (layer,) numbers of failed units, written above the bars that have any.
    """
    controls = controls or {}
    everything = dict(values) | dict(controls)
    colours = method_colours(list(controls))
    figure, axes = _grid(1, 1, WIDTH, 4.6)
    ax = axes[0, 0]
    n, width = len(everything), 0.86 / len(everything)
    numbers = np.array([np.asarray(v, float)[:, :3] for v in everything.values()])
    positive = numbers[np.isfinite(numbers) & (numbers > 0)]
    # a control that meets the data exactly would stretch a log axis over ten empty decades
    floor = max(positive.min() / 2, positive.max() * LOG_SPAN) if log and positive.size else 0.0
    if log:
        ax.set_yscale("log")
    for k, (name, rows) in enumerate(zip(everything, numbers, strict=True)):
        places = np.arange(len(layers)) + (k - (n - 1) / 2) * width
        hatch = CONTROL_HATCHES[list(controls).index(name) % len(CONTROL_HATCHES)] if name in controls else None
        mean = np.maximum(rows[:, 0], floor) if log else rows[:, 0]
        heights = np.where(np.isfinite(mean), mean, floor)
        ax.bar(
            places,
            heights,
            width * 0.92,
            color=colours.get(name, "#888888"),
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
            label=name,
        )
        spread = np.abs(np.stack([rows[:, 0] - rows[:, 1], rows[:, 2] - rows[:, 0]]))
        ax.errorbar(
            places,
            rows[:, 0],
            yerr=np.where(np.isfinite(spread), spread, 0),
            fmt="none",
            ecolor="black",
            elinewidth=1,
            capsize=2,
        )
        for j, place in enumerate(places):
            count = 0 if failed is None or name not in failed else failed[name][j]
            below = log and rows[j, 0] < floor
            text = "n/a" if not np.isfinite(rows[j, 0]) else f"{rows[j, 0]:.0e}" if below and rows[j, 0] > 0 else ""
            text = "0" if below and rows[j, 0] <= 0 else text
            text = f"{text} {count:.3g} failed".strip() if count else text
            top = np.nanmax([rows[j, 0], rows[j, 2], floor if log else 0.0])
            if text:
                ax.annotate(
                    text,
                    (place, top),
                    xytext=(0, 3),
                    textcoords="offset points",
                    rotation=90,
                    ha="center",
                    va="bottom",
                    fontsize=9,
                )
    if line is not None:
        ax.axhline(line, color="black", linestyle=":", linewidth=1.2, label=line_label or f"{line:g}")
    if log and positive.size:
        ax.set_ylim(floor, positive.max() * 12)
    else:
        ax.margins(y=0.18)
        ax.set_ylim(bottom=0)
    ax.set_xticks(range(len(layers)), [layer.capitalize() for layer in layers])
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("layer")
    ax.set_ylabel(ylabel)
    handles, labels = ax.get_legend_handles_labels()
    if line is not None:  # matplotlib lists lines before bars
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
    _legend_above(figure, handles, labels, 5, title=title)
    return _finish(figure, caveat)


def plot_ratio(
    values: Mapping[str, np.ndarray],
    layers: Sequence[str],
    controls: Mapping[str, np.ndarray] | None = None,
    ylabel: str = "max output / th",
    log: bool = False,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Largest output over the unit's threshold (Fig. 4) with a line at 1; arguments as in :func:`plot_scores`."""
    return plot_scores(
        values,
        layers,
        controls,
        ylabel=ylabel,
        log=log,
        line=1.0,
        line_label="1.0: as in training",
        title=title,
        caveat=caveat,
    )


def plot_nearest_pairs(
    signals: np.ndarray,
    windows: np.ndarray,
    starts: Sequence[int],
    offsets: Sequence[int],
    piece: int = 10,
    signal_maps: np.ndarray | None = None,
    window_maps: np.ndarray | None = None,
    signal_titles: Sequence[str] = (),
    window_titles: Sequence[str] = (),
    rate_hz: float = 30.0,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Signals (above) and their nearest training windows (below), the compared samples shaded (Fig. 5).

    ``signals`` and ``windows`` are (pair, time) in G; ``starts`` and ``offsets`` say where the ``piece`` begins in
    each; the maps (pair, time) are the unit's outputs. The two of a pair share their scale, because d(u, i) is a
    difference of values, not of shapes.
    """
    n = len(signals)
    figure, axes = _grid(2, n, min(WIDTH, 1.2 + 2.2 * n), 4.8, sharex=True, sharey="col")
    for i in range(n):
        for row, (data, maps, begin, titles) in enumerate(
            ((signals, signal_maps, starts, signal_titles), (windows, window_maps, offsets, window_titles))
        ):
            ax = axes[row, i]
            twin = plot_signal_with_map(ax, data[i], None if maps is None else maps[i], rate_hz, labels=False)
            ax.axvspan(
                (begin[i] - 0.5) / rate_hz, (begin[i] + piece - 0.5) / rate_hz, color="#f6c177", alpha=0.45, linewidth=0
            )
            if titles:
                ax.set_title(titles[i], fontsize=9)
            if i == 0:
                ax.set_ylabel("generated signal [G]" if row == 0 else "training window [G]")
            if i == n - 1 and twin is not None:
                twin.set_ylabel("output")
            if row == 1:
                ax.set_xlabel("time [s]")
    handles = [Line2D([], [], color=SIGNAL), mpl.patches.Patch(color="#f6c177", alpha=0.45)]
    names = ["acceleration", "samples compared"]
    if signal_maps is not None or window_maps is not None:
        handles, names = [*handles, mpl.patches.Patch(color=MAP)], [*names, "unit's output"]
    _legend_above(figure, handles, names, len(names), title=title)
    return _finish(figure, caveat)


# ---------------------------------------------------------------------------------------------------- atlas


def plot_atlas(
    positions: np.ndarray,
    signals: np.ndarray,
    activities: Sequence[int],
    names: Sequence[str],
    title: str = "",
    caveat: str = "",
    n_thumbnails: int = 20,
) -> Figure:
    """Map of the units (Fig. 8): colour = activity of the nearest real window, waveforms around it.

    ``positions`` (unit, 2) of a t-SNE map, ``signals`` (unit, time) in G, ``activities`` (unit,) indices into
    ``names`` (negative: none). Units with NaN positions are left out and counted. Thin lines lead from a waveform to
    its unit.
    """
    from scipy.optimize import linear_sum_assignment

    colours, markers = class_colours(names), class_markers(names)
    activities = np.asarray(activities)
    shown = np.flatnonzero(np.isfinite(positions).all(1))  # unit numbers of what has a place
    n_lost = len(positions) - len(shown)
    positions, signals, activities = positions[shown], signals[shown], activities[shown]
    # an engine that does nothing: without any, matplotlib falls back on the style's constrained layout
    figure = plt.figure(figsize=(WIDTH, 7.2), layout=PlaceHolderLayoutEngine(True, True))
    plt.close(figure)
    left, bottom, side, tall = 0.125, 0.175, 0.53, 0.62
    ax = figure.add_axes((left, bottom, side, tall))
    for a in sorted(set(activities.tolist())):
        at = positions[activities == a]
        name = names[a] if a >= 0 else "none"
        ax.scatter(
            *at.T,
            s=42,
            color=colours.get(name, "#999999"),
            marker=markers.get(name, "X"),
            edgecolor="white",
            linewidth=0.5,
            label=name,
        )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("t-SNE 1 (no unit)", labelpad=2, fontsize=9, loc="right")
    ax.set_ylabel("t-SNE 2 (no unit)", labelpad=1, fontsize=9, loc="top")
    low, high = positions.min(0), positions.max(0)
    room = 0.08 * (high - low)
    ax.set_xlim(low[0] - room[0], high[0] + room[0])
    ax.set_ylim(low[1] - room[1], high[1] + room[1])
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_color("#cccccc")
    # slots for the waveforms on the four sides, in figure coordinates
    per_side = max(1, min(n_thumbnails, len(positions)) // 4)
    along = (np.arange(per_side) + 0.5) / per_side
    slots = [(left + side * t, y) for y in (bottom - 0.095, bottom + tall + 0.075) for t in along]
    slots += [(x, bottom + tall * t) for x in (left - 0.072, left + side + 0.065) for t in along]
    chosen = _spread_choice(positions, min(len(slots), len(positions)))
    in_figure = figure.transFigure.inverted().transform(ax.transData.transform(positions[chosen]))
    ax.scatter(*positions[chosen].T, s=70, facecolor="none", edgecolor="#555555", linewidth=0.8)
    cost = ((np.array(slots)[:, None] - in_figure[None]) ** 2).sum(-1)
    width, height = min(0.1, side / per_side * 0.9), min(0.1, tall / per_side * 0.82)
    limit = float(np.quantile(np.abs(signals[chosen]).max(1), 0.9)) * 1.1 or 1.0
    for s, c in zip(*linear_sum_assignment(cost), strict=True):
        unit = chosen[c]
        x, y = slots[s]
        name = names[activities[unit]] if activities[unit] >= 0 else "none"
        small = figure.add_axes((x - width / 2, y - height / 2, width, height))
        small.plot(signals[unit], color=colours.get(name, "#999999"))
        small.axhline(0, color="#cccccc", linewidth=0.6, zorder=0)
        small.set_ylim(-limit, limit)
        small.set_xticks([])
        small.set_yticks([])
        small.grid(visible=False)
        peak = float(np.abs(signals[unit]).max())
        small.set_title(
            f"{shown[unit]}" if peak <= limit else f"{shown[unit]} (to {peak:.1f} G)",
            fontsize=9,
            pad=-8,
            loc="left",
            color="#555555",
        )
        small.spines[["top", "right"]].set_visible(True)
        plt.setp(small.spines.values(), color="#dddddd")
        edge = np.clip((x, y), (left, bottom), (left + side, bottom + tall))
        figure.add_artist(Line2D(*zip(edge, in_figure[c], strict=True), color="#bbbbbb", linewidth=0.5, zorder=-1))
    ax.patch.set_visible(False)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="center left",
        bbox_to_anchor=(0.785, 0.5),
        title="activity of the\nnearest real window",
        alignment="left",
    )
    note = f"small frames: signal over time, ±{limit:.2g} G, number = unit" + (
        f"; {n_lost} units without a place" if n_lost else ""
    )
    figure.text(0.01, 0.012, note, fontsize=9, color="#555555")
    figure.suptitle(title, y=0.985)
    if caveat:
        figure.text(0.995, 0.012, caveat, ha="right", fontsize=9, color=ACCENT, style="italic")
    return figure


def _spread_choice(positions: np.ndarray, n: int) -> np.ndarray:
    """Units far from each other on the map: each next one is the farthest from those already taken."""
    chosen = [int(((positions - positions.mean(0)) ** 2).sum(1).argmax())]
    distance = ((positions - positions[chosen[0]]) ** 2).sum(1)
    while len(chosen) < n:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((positions - positions[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def plot_sensitivity(
    positions: np.ndarray,
    perplexities: Sequence[float],
    seeds: Sequence[int],
    activities: Sequence[int],
    names: Sequence[str],
    agreement: np.ndarray | None = None,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Maps of the same units for several perplexities (rows) and seeds (columns): (perplexity, seed, unit, 2).

    ``agreement`` (perplexity, seed) is the share of neighbours each map has in common with the one shown.
    """
    colours, markers = class_colours(names), class_markers(names)
    activities = np.asarray(activities)
    n_rows, n_columns = len(perplexities), len(seeds)
    figure, axes = _grid(n_rows, n_columns, min(WIDTH, 1.6 + 2.4 * n_columns), 1.0 + 2.2 * n_rows)
    for i, j in np.ndindex(n_rows, n_columns):
        ax = axes[i, j]
        for a in sorted(set(activities.tolist())):
            name = names[a] if a >= 0 else "none"
            ax.scatter(
                *positions[i, j][activities == a].T,
                s=16,
                color=colours.get(name, "#999999"),
                marker=markers.get(name, "X"),
                linewidth=0.3,
                label=name,
            )
        share = "" if agreement is None else f": {100 * agreement[i, j]:.0f} % neighbours kept"
        ax.set_title(f"seed {seeds[j]}{share}", fontsize=9)
        ax.set_xticks([])
        ax.set_yticks([])
        if j == 0:
            ax.set_ylabel(f"perplexity {perplexities[i]:g}\nt-SNE 2 (no unit)", fontsize=9)
        if i == n_rows - 1:
            ax.set_xlabel("t-SNE 1 (no unit)", fontsize=9)
    figure.legend(*_all_entries(axes), loc="outside right center", title="activity")
    return _finish(figure, caveat, title)


def plot_distributions(
    values: Mapping[str, np.ndarray],
    ylabel: str,
    references: Mapping[str, float] | None = None,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """A number per unit, for several groups (layers): every unit a dot, the median a line.

    ``references`` draws dotted lines across, such as the value of the starting sine.
    """
    figure, axes = _grid(1, 1, max(4.5, 1.5 + 1.5 * len(values)), 3.8)
    ax = axes[0, 0]
    spread = np.random.default_rng(0)  # sideways only, so that dots do not hide each other
    for i, v in enumerate(values.values()):
        ax.plot(
            i + spread.uniform(-0.22, 0.22, len(v)), v, "o", color="#5fa8d3", markersize=4, alpha=0.7, markeredgewidth=0
        )
        ax.hlines(np.nanmedian(v), i - 0.3, i + 0.3, color=SIGNAL, linewidth=2.5, label="median" if i == 0 else None)
    for (name, level), style in zip((references or {}).items(), (":", "--", "-."), strict=False):
        ax.axhline(level, color="black", linestyle=style, linewidth=1, label=name)
    ax.set_xticks(range(len(values)), [str(name).capitalize() for name in values])
    ax.set_xlim(-0.6, len(values) - 0.4)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("layer")
    ax.set_ylabel(ylabel)
    _legend_above(figure, *ax.get_legend_handles_labels(), columns=4, title=title)
    return _finish(figure, caveat)


def plot_sweep(
    x: np.ndarray,
    lines: Mapping[str, np.ndarray],
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Lines over a swept setting, such as the cut-off of the low-pass method; ``lines`` maps a name to (setting,)."""
    figure, axes = _grid(1, 1, WIDTH * 0.7, 3.8)
    ax = axes[0, 0]
    for i, (name, values) in enumerate(lines.items()):
        ax.plot(
            x,
            values,
            "o-",
            color=METHOD_COLOURS.get(name, COMPONENT_COLOURS[i % len(COMPONENT_COLOURS)]),
            markersize=4,
            label=name,
        )
    ax.set_xscale("log" if log_x else "linear")
    ax.set_yscale("log" if log_y else "linear")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _legend_above(figure, *ax.get_legend_handles_labels(), columns=min(4, len(lines)), title=title)
    return _finish(figure, caveat)


def plot_beside_null(
    measures: Mapping[str, Mapping[str, Sequence[float | None]]],
    nulls: Mapping[str, Mapping[str, Sequence[float | None]]],
    null_name: str = "noise with the same covariance",
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Measures of each layer, one dot per seed, beside what they are without structure: a grey bar per seed.

    ``measures`` and ``nulls`` map a measure to {layer: one value per seed}, ``None`` where there is none.
    """
    figure, axes = _grid(1, len(measures), WIDTH, 3.6)
    for ax, (name, by_layer) in zip(axes.flat, measures.items(), strict=True):
        for i, (layer, values) in enumerate(by_layer.items()):
            y = np.array(values, dtype=float)
            x = i + (np.arange(len(y)) - (len(y) - 1) / 2) * 0.18
            null = np.array(nulls[name][layer], dtype=float)
            ax.hlines(null, x - 0.08, x + 0.08, color="#919191", linewidth=3, label=null_name if i == 0 else None)
            ax.plot(x, y, "o", color=SIGNAL, label="a network" if i == 0 else None)
            if not np.isfinite(y).any():
                ax.annotate("n/a", (i, 0.5), xycoords=("data", "axes fraction"), ha="center")
        ax.set_xticks(range(len(by_layer)), [layer.capitalize() for layer in by_layer])
        ax.set_xlim(-0.6, len(by_layer) - 0.4)
        ax.grid(axis="x", visible=False)
        ax.set_xlabel("layer")
        ax.set_ylabel(name)
    handles, labels = _all_entries(axes)
    _legend_above(figure, handles, labels, len(labels), title=title)
    return _finish(figure, caveat)


def plot_score_panels(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    layers: Sequence[str],
    controls: Mapping[str, np.ndarray] | None = None,
    xlabel: str = "Ssim [G²], lower is better",
    line: float | None = None,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Figs. 3 and 4 in small: one panel per preset, one row per method, one marker per layer, on one log axis.

    ``panels`` maps a preset to {method: (layer, 3)} of mean, smallest, largest over seeds; ``controls`` are drawn
    in every panel below a line. A value that is zero, missing or far below all others is an open marker at the edge.
    """
    controls = dict(controls or {})
    shades = ("#5fa8d3", "#e09f3e", "#1b4965", "#7fb069", "#9d6fbf")
    names = [*next(iter(panels.values())), *controls]
    everything = np.concatenate([np.asarray(v, float) for p in panels.values() for v in (p | controls).values()])
    positive = everything[np.isfinite(everything) & (everything > 0)]
    floor, top = (0.1, 10.0)
    if positive.size:
        floor, top = max(positive.min() / 2, positive.max() * LOG_SPAN), positive.max() * 2
    figure, axes = _grid(1, len(panels), WIDTH, 1.3 + 0.3 * len(names), sharey=True)
    for ax, (panel, methods) in zip(axes.flat, panels.items(), strict=True):
        for row, name in enumerate(names):
            values = np.asarray((methods | controls)[name], dtype=float)
            shift = (np.arange(len(layers)) - (len(layers) - 1) / 2) * 0.22
            for i, (mean, low, high) in enumerate(values):
                y, colour = row + shift[i], shades[i % len(shades)]
                if not mean >= floor:
                    ax.plot(floor, y, "<", color=colour, markersize=5, markerfacecolor="none", clip_on=False)
                    continue
                ax.plot([max(low, floor), high], [y, y], color=colour, linewidth=1)
                ax.plot(mean, y, MARKERS[i % len(MARKERS)], color=colour, markersize=5)
        if controls:
            ax.axhline(len(names) - len(controls) - 0.5, color="black", linewidth=0.8)
        if line is not None:
            ax.axvline(line, color="black", linestyle=":", linewidth=1.2)
        ax.set_xscale("log")
        ax.set_xlim(floor, top)
        ax.set_xlabel(xlabel)
        ax.set_title(panel)
        ax.set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    handles = [
        Line2D([], [], color=shades[i % len(shades)], marker=MARKERS[i % len(MARKERS)]) for i in range(len(layers))
    ]
    none = Line2D([], [], color="#555555", marker="<", markerfacecolor="none", linestyle="")
    _legend_above(
        figure, [*handles, none], [*(n.capitalize() for n in layers), "0 or no unit left"], len(layers) + 1, title=title
    )
    return _finish(figure, caveat)


# --------------------------------------------------------------------------- pipeline, motifs, the study of F1


def plot_pipeline(stages: Sequence[tuple[str, str]], title: str = "") -> Figure:
    """Stages as boxes joined by arrows; each stage is (what it makes, which notebook makes it)."""
    figure, axes = _grid(1, 1, WIDTH, 1.5)
    ax = axes[0, 0]
    for i, (name, notebook) in enumerate(stages):
        ax.text(
            i,
            0.6,
            name,
            ha="center",
            va="center",
            fontsize=9.5,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": "#eef3f7", "edgecolor": SIGNAL, "linewidth": 1.0},
        )
        ax.text(i, 0.12, notebook, ha="center", va="center", fontsize=9, color="#555555")
        if i:
            ax.annotate("", (i - 0.36, 0.6), (i - 0.64, 0.6), arrowprops={"arrowstyle": "->", "color": SIGNAL})
    ax.set_xlim(-0.5, len(stages) - 0.5)
    ax.set_ylim(0, 1)
    ax.set_axis_off()
    return _finish(figure, "", title)


def plot_motifs(names: Sequence[str], shapes: Sequence[np.ndarray], rate_hz: float = 30.0, caveat: str = "") -> Figure:
    """The planted shapes, each (time,) in G, on one common scale: the truth that maximization should find."""
    rows, columns = _panels(len(shapes), 9)
    figure, axes = _grid(rows, columns, WIDTH, 0.4 + 1.5 * rows, sharey=True)
    longest = max(len(shape) for shape in shapes)
    for ax, name, shape in zip(axes.flat, names, shapes, strict=False):
        seconds = (np.arange(len(shape)) - (len(shape) - 1) / 2) / rate_hz
        ax.axhline(0, color="#bbbbbb", linewidth=0.7)
        ax.plot(seconds, shape, "o-", color=SIGNAL, markersize=2.5)
        ax.set_xlim(-0.55 * longest / rate_hz, 0.55 * longest / rate_hz)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("time [s]", fontsize=9)
    axes[0, 0].set_ylabel("shape [G]")
    _hide_rest(axes, len(shapes))
    return _finish(figure, caveat)


def plot_planted(
    signal: np.ndarray,
    axis_names: Sequence[str],
    places: Sequence[tuple[int, int, int, str]],
    rate_hz: float,
    first_sample: int = 0,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """A recording with its planted motifs shaded: ``signal`` (time, axis) in G, one row per axis.

    ``places`` are (axis, first sample, length, motif) with samples counted as in ``signal``; ``first_sample`` is
    where ``signal`` begins in its recording, for the time scale.
    """
    figure, axes = _grid(len(axis_names), 1, WIDTH, 0.9 + 0.95 * len(axis_names), sharex=True)
    colours = class_colours(sorted({motif for *_, motif in places}))
    seconds = (first_sample + np.arange(len(signal))) / rate_hz
    for a, (ax, name) in enumerate(zip(axes[:, 0], axis_names, strict=True)):
        ax.plot(seconds, signal[:, a], color="#888888", linewidth=1.0)
        for _, begin, length, motif in (place for place in places if place[0] == a):
            part = slice(begin, begin + length)
            ax.axvspan(*seconds[part][[0, -1]], color=colours[motif], alpha=0.2, linewidth=0)
            ax.plot(seconds[part], signal[part, a], color=colours[motif], linewidth=1.8)
        ax.margins(x=0)
        ax.set_ylabel(f"{name}\n[G]", fontsize=9)
    axes[-1, 0].set_xlabel("time [s]")
    handles = [Line2D([], [], color=colour, linewidth=4, alpha=0.8) for colour in colours.values()]
    _legend_above(figure, handles, list(colours), min(len(colours), 6), title=title)
    return _finish(figure, caveat)


def plot_study(
    names: Sequence[str],
    val_f1: Sequence[float],
    test_f1: np.ndarray,
    chosen: str,
    tolerance: float,
    paper_f1: float | None = None,
    title: str = "",
    caveat: str = "",
) -> Figure:
    """Validation and test macro F1 of every setting; ``test_f1`` is (setting, 3): mean, smallest, largest.

    The band is what the rule of choice counts as equal to the best validation F1; the chosen setting is bold.
    """
    figure, axes = _grid(1, 1, WIDTH * 0.85, 1.5 + 0.27 * len(names))
    ax, places = axes[0, 0], np.arange(len(names))
    best = float(np.max(val_f1))
    ax.axvspan(best - tolerance, best, color=SPLIT_COLOURS["val"], alpha=0.2, linewidth=0, label="as good as the best")
    spread = np.abs(test_f1[:, 1:].T - test_f1[:, 0])
    style = {"fmt": "s", "color": SPLIT_COLOURS["test"], "markersize": 4, "elinewidth": 1, "capsize": 2}
    ax.errorbar(test_f1[:, 0], places + 0.12, xerr=spread, label="test: mean and range", **style)
    ax.plot(val_f1, places - 0.12, "o", color=SPLIT_COLOURS["val"], markersize=6, label="validation (decides)")
    if paper_f1 is not None:
        ax.axvline(paper_f1, color="black", linestyle=":", label=f"paper: {paper_f1:.3f}")
    ax.set_yticks(places, names)
    for label in ax.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == chosen else "normal")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("macro F1")
    ax.set_ylabel("setting")
    _legend_above(figure, *ax.get_legend_handles_labels(), columns=4, title=title)
    return _finish(figure, caveat)
