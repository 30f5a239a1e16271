"""Signals over time: alone, over each other, with the unit's outputs, beside real windows, with what lenses say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from harvis_utils.figures.style import (
    ACCENT,
    COMPONENT_COLOURS,
    MAP,
    METHOD_COLOURS,
    SIGNAL,
    WIDTH,
    axis_entries,
    class_colours,
    entries,
    finish,
    grid,
    plot_axes,
    wrapped,
)

#: what of a signal is compared with data; bands above and below a signal: where they begin in its frame, their colour
COMPARED = "#f6c177"
BANDS = ((0.9, ACCENT), (0.0, "#7fb069"))


def recordings(
    signals: Sequence[np.ndarray],
    titles: Sequence[str],
    axis_names: Sequence[str],
    rate_hz: float,
    columns: int = 5,
    places: Sequence[tuple[int, int, int, str]] = (),
    first_sample: int = 0,
    title: str = "",
) -> Figure:
    """Examples, (time, axis) in G each: sensors stacked, their components in colour.

    ``axis_names`` end in the component ("right arm x"); what stands before it names the sensor. With ``places`` of
    planted motifs, (axis, first sample, length, motif), each axis has a row and the motifs are in colour instead.
    ``first_sample`` is where signals begin in their recordings, for the time scale.
    """
    named = [(name, "") if places else name.rpartition(" ")[::2] for name in axis_names]
    sensors, components = (list(dict.fromkeys(names)) for names in zip(*named, strict=True))
    colours = dict(zip(components, ["#888888"] if places else COMPONENT_COLOURS * 9, strict=False))
    motifs = class_colours(sorted({motif for *_, motif in places}))
    columns, per = min(columns, len(signals)), len(sensors)
    rows = -(-len(signals) // columns)
    figure, axes = grid(rows * per, columns, WIDTH, 0.5 + rows * (0.35 + 0.85 * per), sharex=True)
    stacks = axes.reshape(rows, per, columns).swapaxes(1, 2).reshape(-1, per)  # one of sensors for each example
    for ax in stacks[len(signals) :].flat:
        ax.set_visible(False)
    for i, (stack, signal, name) in enumerate(zip(stacks, signals, titles, strict=False)):
        seconds = (first_sample + np.arange(len(signal))) / rate_hz
        for values, (sensor, component) in zip(signal.T, named, strict=True):
            ax = stack[sensors.index(sensor)]
            ax.plot(seconds, values, color=colours[component], linewidth=0.9, label=component or None)
            ax.margins(x=0)
            ax.yaxis.set_major_locator(MaxNLocator(3))
            ax.set_ylabel("" if i % columns else f"{sensor}\n[G]", fontsize=9)
        for axis, begin, length, motif in places:
            part, look = slice(begin, begin + length), {"color": motifs[motif], "label": motif}
            stack[axis].axvspan(*seconds[part][[0, -1]], color=motifs[motif], alpha=0.2, linewidth=0)
            stack[axis].plot(seconds[part], signal[part, axis], linewidth=1.8, **look)
        stack[0].set_title(name, fontsize=9)
        if i + columns >= len(signals):
            stack[-1].set_xlabel("time [s]")
            stack[-1].tick_params(labelbottom=True)
    return finish(figure, entries(axes.flat), 6, title)


def signal_with_map(
    ax: Axes,
    signal: np.ndarray,
    unit_map: np.ndarray | None = None,
    rate_hz: float = 30.0,
    th: float | None = None,
    p95: float | None = None,
    colour: str = SIGNAL,
    at: np.ndarray | None = None,
) -> Axes | None:
    """One signal as the paper's Figs. 1, 6 and 7 draw it: line in G (left), the unit's output as bars (right).

    ``signal`` is (time,) in ``colour``, or (axis, time), each axis in its own. ``unit_map`` (time,) is about each
    sample of the signal, or about the samples ``at``; the dotted line is the 95 % point of the unit's training outputs,
    the dashed one its threshold. Returns the right axes, or ``None`` without a map. Raises ``ValueError`` for a map of
    another length without ``at``.
    """
    length = np.shape(signal)[-1]
    ax.axhline(0, color="#bbbbbb", linewidth=0.7)
    plot_axes(ax, np.arange(length) / rate_hz, signal, colour)
    ax.set_xlim(-0.6 / rate_hz, (length - 0.4) / rate_hz)
    if unit_map is None:
        return None
    if at is None and len(unit_map) != length:
        raise ValueError(f"a map of {len(unit_map)} samples does not say which of the signal's {length} they are")
    at = np.arange(length) if at is None else at
    twin = ax.twinx()
    width = 0.9 * (at[1] - at[0] if len(at) > 1 else 1) / rate_hz
    twin.bar(at / rate_hz, unit_map, width, color=MAP, label="unit's output")
    levels = [(level, *look) for level, *look in ((p95, ":", "95 % point"), (th, "--", "th")) if level is not None]
    for level, style, name in levels:
        twin.axhline(level, color="black", linestyle=style, linewidth=1.0, label=name)
    ends = [0, 1e-9, *unit_map, *(level for level, *_ in levels if np.isfinite(level))]
    twin.set_ylim(1.08 * min(ends), 1.08 * max(ends))
    twin.spines["right"].set_visible(True)
    twin.set_zorder(0)
    ax.set_zorder(1)  # the line stands in front of the bars
    ax.patch.set_visible(False)
    for own in (ax, twin):
        own.grid(visible=False)
    return twin


def unit_methods(
    made: xr.Dataset,
    levels: xr.Dataset | None = None,
    rate_hz: float = 30.0,
    columns: int = 4,
    compared: tuple[Sequence[int], int] | None = None,
    title: str = "",
) -> Figure:
    """Signals with a unit's outputs (Figs. 1, 5, 6, 7), a panel for each ``technique`` of ``made``, which names it.

    ``made`` holds the ``signal`` and maybe the ``map`` as :func:`harvis_utils.maximization.paper_methods.maximize`
    gives them, (technique, [axis,] time), maps at their ``map_time`` where they have it; of several axes of a map the
    largest output is drawn. ``levels`` are the unit's statistics: ``th_eap`` and ``p95``. ``compared`` shades samples:
    where they begin in each panel, and how many; panels below each other then share their scale, as what is compared
    are values, not shapes. Raises ``ValueError`` for more than one unit.
    """
    if others := set(made["signal"].dims) - {"technique", "axis", "time"}:
        raise ValueError(f"one unit's signals are drawn; select one of each {', '.join(sorted(others))}")
    signals, maps = made["signal"].transpose("technique", ..., "time"), made.get("map")
    if maps is not None and "map_axis" in maps.dims:
        maps = maps.max("map_axis")
    at = made["map_time"].values if "map_time" in made.coords else None
    th, p95 = (None if levels is None else float(levels[name]) for name in ("th_eap", "p95"))
    names = [str(name) for name in signals["technique"].values]
    n, columns = len(names), min(columns, len(names))
    shared = {"sharey": "col"} if compared else {}
    label = f"signal [{signals.attrs.get('units', 'G')}]"
    figure, axes = wrapped(n, columns, max(4.0, WIDTH * columns / 4), 2.3, ylabel=label, **shared)
    legend = axis_entries(signals.values[0]) or {"signal": Line2D([], [], color=SIGNAL)}
    for i, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        seen = None if maps is None else maps.isel(technique=i).values
        twin = signal_with_map(ax, signals.values[i], seen, rate_hz, th, p95, METHOD_COLOURS.get(name, SIGNAL), at)
        ax.set(title=name, xlabel="time [s]" if i + columns >= n else "")
        if twin is not None:
            twin.set_ylabel("output" if i % columns == columns - 1 or i == n - 1 else "")
            legend |= entries([twin])
        if compared:
            ends = compared[0][i] + np.array([-0.5, compared[1] - 0.5])
            ax.axvspan(*ends / rate_hz, color=COMPARED, alpha=0.45, linewidth=0)
            legend["samples compared"] = Patch(color=COMPARED, alpha=0.45)
    return finish(figure, legend, title=title)


def gallery(
    signals: Sequence[np.ndarray],
    titles: Sequence[str],
    maps: np.ndarray | None = None,
    rate_hz: float = 30.0,
    title: str = "",
    columns: int = 8,
    colours: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Figure:
    """Small pictures of many signals, (time,) in G each, on one common scale, with ``maps`` as shaded background.

    A signal beyond the common scale (the largest 95 % point over units of max |signal|) is cut and says its peak.
    ``bands`` are at most two masks, bool (time,) for each signal: the first above it, the second below it.
    """
    signals = np.stack(list(signals))
    peaks = np.nanmax(np.abs(signals), axis=1)
    limit = float(np.nanquantile(peaks, 0.95)) * 1.1 or 1.0
    reach = limit * (1.25 if bands else 1.0)
    figure, axes = wrapped(len(signals), columns, WIDTH, 1.75 if bands else 1.0, sharex=True, sharey=True)
    seconds = np.arange(signals.shape[1]) / rate_hz
    for i, (ax, signal, name) in enumerate(zip(axes.flat, signals, titles, strict=False)):
        if maps is not None:
            top = float(np.max(maps[i])) or 1.0
            ax.fill_between(seconds, -limit, -limit + 2 * limit * maps[i] / top, color=MAP, linewidth=0)
        for (bottom, colour), masks in zip(BANDS, (bands or {}).values(), strict=False):
            ax.bar(seconds[masks[i]], 0.1, 1 / rate_hz, bottom, color=colour, transform=ax.get_xaxis_transform())
        ax.plot(seconds, signal, color=SIGNAL if colours is None else colours[i])
        ax.set_title(name if peaks[i] <= limit else f"{name} (to {peaks[i]:.1f} G)", fontsize=9, pad=2)
        ax.set_ylim(-reach, reach)
        if i + axes.shape[1] >= len(signals):
            ax.tick_params(labelbottom=True)
    axes[-1, 0].set_xlabel("time [s]")
    figure.supylabel("signal [G]", fontsize=10)
    note = "shaded: the unit's output, each on its own scale" if maps is not None else ""
    legend = {name: Patch(color=colour) for name, (_, colour) in zip(bands or {}, BANDS, strict=False)}
    return finish(figure, legend, title="\n".join(part for part in (title, note) if part))


def waves(
    signals: Mapping[str, np.ndarray],
    rows: Sequence[str],
    titles: Sequence[str] | np.ndarray,
    rate_hz: float = 30.0,
    own_scale: bool = False,
    beside: bool = False,
    label: str = "signal [G]",
    title: str = "",
) -> Figure:
    """A grid of signals: each kind is (row, column, time), drawn over the others or ``beside`` them, in its colour.

    ``titles`` head the columns, or are one for each (row, column). Rows share their scale; with ``own_scale`` every
    curve is divided by its largest absolute value. Curves that are all NaN are not drawn.
    """
    n_columns = sum(v.shape[1] for v in signals.values()) if beside else max(v.shape[1] for v in signals.values())
    figure, axes = grid(len(rows), n_columns, WIDTH, 1.2 + 0.85 * len(rows), sharex=True, sharey="row")
    legend, first = {}, 0
    for (kind, values), colour in zip(signals.items(), (SIGNAL, ACCENT, *COMPONENT_COLOURS[2:]), strict=False):
        for (r, c), ax in np.ndenumerate(axes[:, first : first + values.shape[1]]):
            curve = values[r, c] / (np.abs(values[r, c]).max() or 1.0) if own_scale else values[r, c]
            ax.plot(np.arange(len(curve)) / rate_hz, curve, color=colour, linewidth=1.2)
        legend[kind] = Line2D([], [], color=colour)
        first += values.shape[1] if beside else 0
    for place, name in np.ndenumerate(np.asarray(titles, dtype=str)):
        axes[place if len(place) == 2 else (0, *place)].set_title(name, fontsize=9, pad=2)
    for ax, name in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        if own_scale:
            ax.set(ylim=(-1.15, 1.15), yticks=[])
    axes[-1, n_columns // 2].set_xlabel("time [s]")
    figure.supylabel(label + (", own scales" if own_scale else ""), fontsize=10)
    return finish(figure, legend, title=title)


def windows(
    signals: np.ndarray,
    maps: Mapping[str, np.ndarray],
    names: Sequence[str],
    axis_names: Sequence[str],
    rate_hz: float,
    spans: np.ndarray | None = None,
    peaks: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    rows: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Windows, and beside each what every lens says of it: one row per window.

    ``signals`` (window, axis, time) in G, of several axes with their means taken off by the caller, of a single one on
    its own scale; ``maps`` by lens (window, axis, time), each on its own scale, zero in the middle; what they say is
    about axes, or about ``rows`` of these names. ``spans`` (window, axis, time, bool) outlines what is known to be
    there; ``peaks`` marks (axis, time) per lens and window.
    """
    n, n_axes, length = signals.shape
    height = 0.9 + max(1.75, 0.17 * len(rows)) * n
    figure, axes = grid(n, 1 + len(maps), WIDTH, height, "time [s]", sharex=True)
    time = np.arange(length) / rate_hz
    step = 1.6 * max(1e-9, float(np.quantile(np.abs(signals), 0.995))) if n_axes > 1 else 1.0
    for i, (own, *others) in enumerate(axes):
        for a in range(n_axes):
            own.plot(time, signals[i, a] / step - a, color=SIGNAL, linewidth=1)
            if spans is not None:
                own.fill_between(time, -a - 0.5, -a + 0.5, where=spans[i, a], color=MAP, linewidth=0, step="mid")
        own.set_ylabel(names[i])
        if n_axes > 1:
            own.set_ylim(-n_axes + 0.3, 0.7)
            own.set_yticks(-np.arange(n_axes), axis_names)
        for ax, (lens, values) in zip(others, maps.items(), strict=True):
            top = float(np.abs(values[i]).max()) or 1.0
            extent = (-0.5 / rate_hz, (length - 0.5) / rate_hz, len(values[i]) - 0.5, -0.5)
            ax.imshow(
                values[i], aspect="auto", cmap="RdBu_r", vmin=-top, vmax=top, extent=extent, interpolation="nearest"
            )
            for a, span in enumerate(spans[i] if spans is not None else ()):
                edges = np.flatnonzero(np.diff(np.r_[0, span, 0])).reshape(-1, 2)
                boxes = [((begin - 0.5) / rate_hz, (end - begin) / rate_hz) for begin, end in edges]
                ax.broken_barh(boxes, (a - 0.42, 0.84), facecolor="none", edgecolor="black", linewidth=0.9)
            if peaks is not None:
                axis, sample = peaks[lens][i]
                ax.plot(sample / rate_hz, axis, "k+", markersize=10, markeredgewidth=2)
            ax.set_yticks(range(len(rows)), rows)
            ax.grid(visible=False)
    for ax, name in zip(axes[0], ("window", *maps), strict=True):
        ax.set_title(name)
    return finish(figure, title=title)


# ------------------------------------ to be deleted: replaced by unit_methods, gallery, recordings and windows


def nearest_pairs(
    signals: np.ndarray,
    windows: np.ndarray,
    starts: Sequence[int],
    offsets: Sequence[int],
    piece: int = 10,
    maps: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    titles: tuple[Sequence[str], Sequence[str]] = ((), ()),
    rate_hz: float = 30.0,
    **said: str,
) -> Figure:
    """Signals (above) and their nearest training windows (below), the compared samples shaded (Fig. 5).

    ``signals`` and ``windows`` are (pair, time) in G; ``starts`` and ``offsets`` say where the ``piece`` begins in
    each; ``maps`` are the unit's outputs on both, (pair, time), and ``titles`` theirs. The two of a pair share their
    scale, because d(u, i) is a difference of values, not of shapes.
    """
    n = len(signals)
    figure, axes = grid(2, n, min(WIDTH, 1.2 + 2.2 * n), 4.8, "time [s]", sharex=True, sharey="col")
    legend = {"acceleration": Line2D([], [], color=SIGNAL), "samples compared": Patch(color=COMPARED, alpha=0.45)}
    sides = zip(axes, (signals, windows), (starts, offsets), maps, titles, strict=True)
    for row, curves, begins, outputs, names in sides:
        for i, ax in enumerate(row):
            twin = signal_with_map(ax, curves[i], None if outputs is None else outputs[i], rate_hz)
            ends = ((begins[i] - 0.5) / rate_hz, (begins[i] + piece - 0.5) / rate_hz)
            ax.axvspan(*ends, color=COMPARED, alpha=0.45, linewidth=0)
            ax.set_title(names[i] if len(names) else "", fontsize=9)
            if twin is not None:
                legend |= entries([twin])
                twin.set_ylabel("output" if i == n - 1 else "")
    axes[0, 0].set_ylabel("generated signal [G]")
    axes[1, 0].set_ylabel("training window [G]")
    return finish(figure, legend, **said)


def concepts(
    signals: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    names: Sequence[str],
    titles: Sequence[str],
    rate_hz: float = 30.0,
    **said: str,
) -> Figure:
    """Examples beside each other: a signal (time,) in G, and below it when which concept holds, (concept, time)."""
    size, heights = (WIDTH, 3.1 + 0.22 * len(names)), {"height_ratios": (1.5, 0.26 * len(names))}
    figure, axes = grid(2, len(signals), *size, "time [s]", sharex=True, sharey="row", gridspec_kw=heights)
    for (top, bottom), signal, mask, name in zip(axes.T, signals, masks, titles, strict=True):
        top.plot(np.arange(len(signal)) / rate_hz, signal, color=SIGNAL)
        top.set_title(name)
        extent = (-0.5 / rate_hz, (len(signal) - 0.5) / rate_hz, len(names) - 0.5, -0.5)
        bottom.imshow(mask, aspect="auto", cmap="Greens", vmin=0, vmax=1.4, extent=extent, interpolation="nearest")
        bottom.set_yticks(np.arange(len(names)), names)
        bottom.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
        bottom.grid(visible=False)
        bottom.grid(axis="y", which="minor")
    axes[0, 0].set_ylabel("signal [G]")
    return finish(figure, **said)


def detections(
    signals: Sequence[np.ndarray],
    units: Sequence[np.ndarray],
    held: Sequence[np.ndarray],
    titles: Sequence[str],
    rate_hz: float = 30.0,
    **said: str,
) -> Figure:
    """Signals (time,) in G, a unit's mask as a band above and a concept's below, bool (time,) both."""
    figure, axes = wrapped(len(signals), 4, WIDTH, 1.75, xlabel="time [s]", ylabel="signal [G]", sharex=True)
    bands = {"among the unit's strongest 0.5 %": (0.9, ACCENT), "the concept holds": BANDS[1]}
    for ax, signal, *masks, name in zip(axes.flat, signals, units, held, titles, strict=False):
        seconds = np.arange(len(signal)) / rate_hz
        for mask, (bottom, colour) in zip(masks, bands.values(), strict=True):
            where = seconds[mask]
            ax.bar(where, 0.1, 1 / rate_hz, bottom=bottom, color=colour, transform=ax.get_xaxis_transform())
        ax.plot(seconds, signal, color=SIGNAL)
        ax.margins(y=0.22)
        ax.set_xlim(-0.6 / rate_hz, (len(signal) - 0.4) / rate_hz)
        ax.set_title(name, fontsize=9)
        ax.grid(visible=False)
    return finish(figure, {name: Patch(color=colour) for name, (_, colour) in bands.items()}, **said)


def planted(
    signal: np.ndarray,
    axis_names: Sequence[str],
    places: Sequence[tuple[int, int, int, str]],
    rate_hz: float,
    first_sample: int = 0,
    **said: str,
) -> Figure:
    """A recording with its planted motifs shaded: ``signal`` (time, axis) in G, one row per axis.

    ``places`` are (axis, first sample, length, motif) with samples counted as in ``signal``; ``first_sample`` is
    where ``signal`` begins in its recording, for the time scale.
    """
    figure, axes = grid(len(axis_names), 1, WIDTH, 0.9 + 0.95 * len(axis_names), "time [s]", sharex=True)
    colours = class_colours(sorted({motif for *_, motif in places}))
    seconds = (first_sample + np.arange(len(signal))) / rate_hz
    for values, ax, name in zip(signal.T, axes[:, 0], axis_names, strict=True):
        ax.plot(seconds, values, color="#888888", linewidth=1.0)
        ax.margins(x=0)
        ax.set_ylabel(f"{name}\n[G]", fontsize=9)
    for axis, begin, length, motif in places:
        part, ax = slice(begin, begin + length), axes[axis, 0]
        ax.axvspan(*seconds[part][[0, -1]], color=colours[motif], alpha=0.2, linewidth=0)
        ax.plot(seconds[part], signal[part, axis], color=colours[motif], linewidth=1.8)
    legend = {motif: Line2D([], [], color=c, linewidth=4, alpha=0.8) for motif, c in colours.items()}
    return finish(figure, legend, 6, **said)
