"""Signals over time: alone, over each other, with the unit's outputs, beside real windows, with what lenses say."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
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
#: a signal's axis spans at least this much, so that what hardly moves is drawn as flat as it is. Choice
LEAST_SPAN_G = 0.5
#: and on a scale of its own. Choice
LEAST_OWN_G = 0.05
#: statistics of a unit that its outputs are compared with
LEVELS = (("p95", ":", "95 % point"), ("th_eap", "--", "th"))


def _span(ax) -> None:
    """Let an axis of signals in G span at least ``LEAST_SPAN_G``."""
    if np.ptp(ax.get_ylim()) < LEAST_SPAN_G:
        ax.set_ylim(np.mean(ax.get_ylim()) + LEAST_SPAN_G * np.array([-0.5, 0.5]))


def recordings(
    signals: Sequence[np.ndarray],
    titles: Sequence[str],
    axis_names: Sequence[str],
    rate_hz: float,
    columns: int = 5,
    places: Sequence[tuple[int, int, int, str]] = (),
    first_sample: int = 0,
    title: str = "",
    units: Mapping[str, str] | None = None,
) -> Figure:
    """Examples, (time, axis) in G each: sensors stacked, their components in colour.

    ``axis_names`` end in the component ("right arm x"); what stands before it names the sensor, and ``units`` those of
    sensors that are not in G. With ``places`` of
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
            ax.set_ylabel("" if i % columns else f"{sensor}\n[{(units or {}).get(sensor, 'G')}]", fontsize=9)
        for axis, begin, length, motif in places:
            part, look = slice(begin, begin + length), {"color": motifs[motif], "label": motif}
            stack[axis].axvspan(*seconds[part][[0, -1]], color=motifs[motif], alpha=0.2, linewidth=0)
            stack[axis].plot(seconds[part], signal[part, axis], linewidth=1.8, **look)
        stack[0].set_title(name, fontsize=9)
        if i + columns >= len(signals):
            stack[-1].set_xlabel("time [s]")
            stack[-1].tick_params(labelbottom=True)
    return finish(figure, entries(axes.flat), 6, title)


def unit_methods(
    made: xr.Dataset,
    levels: xr.Dataset | None = None,
    rate_hz: float = 30.0,
    columns: int = 4,
    compared: tuple[Sequence[int], int] | None = None,
    title: str = "",
) -> Figure:
    """Signals (lines, left) with a unit's outputs (bars, right), a panel for each ``technique`` (Figs. 1, 5, 6, 7).

    ``made`` holds the ``signal`` and maybe the ``map`` as :func:`harvis_utils.maximization.paper_methods.maximize`
    gives them, (technique, [axis,] time), maps at their ``map_time`` where they have it; of several axes of a map the
    largest output is drawn. An ``axis`` has its coordinate's name. ``levels`` are the unit's statistics: its threshold
    ``th_eap`` (dashed) and the 95 % point ``p95`` of its training outputs (dotted). ``compared`` shades samples: where
    they begin in each panel, and how many; panels below each other then share their scale, as what is compared are
    values, not shapes. Raises ``ValueError`` for more than one unit, levels of another one, a rate that is none,
    infinity, and for maps of another length that do not say their ``map_time``.
    """
    if "technique" not in made["signal"].dims:  # one was selected
        made = made.expand_dims(technique=[str(made["technique"].item()) if "technique" in made.coords else ""])
    if infinite := [of for of in ("signal", "map") if of in made and np.isinf(made[of]).any()]:
        raise ValueError(f"infinity in {' and '.join(infinite)} cannot be drawn; select others")
    if others := set(made["signal"].dims) - {"technique", "axis", "time"}:
        raise ValueError(f"one unit's signals are drawn; select one of each {', '.join(sorted(others))}")
    if levels is not None and (several := [str(dim) for dim in levels["th_eap"].dims]):
        raise ValueError(f"levels should be those of one unit; select one of each {', '.join(several)}")
    for of in ("layer", "unit") if levels is not None else ():
        if of in made.coords and of in levels.coords and made[of].item() != levels[of].item():
            raise ValueError(f"levels are those of {of} {levels[of].item()}, the signals those of {made[of].item()}")
    if not (rate_hz and 0 < rate_hz < math.inf) or columns < 1:
        raise ValueError(f"rate_hz should be above 0 Hz and columns at least 1, not {rate_hz} and {columns}")
    signals = made["signal"].transpose("technique", ..., "time")
    names, length = [str(name) for name in signals["technique"].values], signals.sizes["time"]
    looks = [(float(levels[of]), *look) for of, *look in LEVELS] if levels is not None else []
    n, columns = len(names), min(columns, len(names))
    label, shared = f"signal [{signals.attrs.get('units', 'G')}]", {"sharey": "col"} if compared else {}
    figure, axes = wrapped(n, columns, WIDTH * max(columns, 3) / 4, 2.3, ylabel=label, **shared)
    legend = axis_entries(signals.values[0], made["axis"].values if "axis" in made.coords else ()) or {
        "signal": Line2D([], [], color=SIGNAL)
    }
    for i, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        if "map" in made:
            twin = _outputs(ax, made["map"].isel(technique=i), looks, rate_hz)
            twin.set_ylabel("output" if i % columns == columns - 1 or i == n - 1 else "")
            legend |= entries([twin])
        ax.axhline(0, color="#bbbbbb", linewidth=0.7)
        plot_axes(ax, np.arange(length) / rate_hz, signals.values[i], METHOD_COLOURS.get(name, SIGNAL))
        ax.set(title=name, xlabel="time [s]" if i + columns >= n else "")
        if label == "signal [G]":
            _span(ax)
        ax.set_xlim(-0.6 / rate_hz, (length - 0.4) / rate_hz)
        if compared:
            ends = compared[0][i] + np.array([-0.5, compared[1] - 0.5])
            ax.axvspan(*ends / rate_hz, color=COMPARED, alpha=0.45, linewidth=0)
            legend["samples compared"] = Patch(color=COMPARED, alpha=0.45)
    return finish(figure, legend, title=title)


def nearest_pairs(
    signals: np.ndarray,
    windows: np.ndarray,
    starts: Sequence[int],
    offsets: Sequence[int],
    piece: int = 10,
    maps: tuple[np.ndarray, np.ndarray] | None = None,
    titles: tuple[Sequence[str], Sequence[str]] = ((), ()),
    rate_hz: float = 30.0,
    title: str = "",
) -> Figure:
    """As :func:`unit_methods`, signals (above) and their nearest training windows (below), (pair, time) in G each.

    ``starts`` and ``offsets`` say where the ``piece`` that is compared begins in each; ``maps`` are the unit's outputs
    on both, (pair, time), and ``titles`` theirs.
    """
    names, both = [*titles[0], *titles[1]] or [""] * 2 * len(signals), ("technique", "time")
    pairs = xr.Dataset({"signal": (both, np.concatenate([signals, windows]))}, {"technique": names})
    if maps is not None:
        pairs["map"] = (both, np.concatenate(maps))
    return unit_methods(pairs, None, rate_hz, len(signals), ([*starts, *offsets], piece), title)


def _outputs(ax: Axes, unit_map: xr.DataArray, levels: Sequence[tuple[float, str, str]], rate_hz: float) -> Axes:
    """A unit's outputs as bars behind a signal, with levels to compare with; returns their axes."""
    unit_map = unit_map.max("map_axis") if "map_axis" in unit_map.dims else unit_map
    if "map_time" in unit_map.dims and "map_time" not in unit_map.coords:
        raise ValueError(f"a map of {unit_map.size} samples does not say which of the signal's they are")
    at = unit_map["map_time"].values if "map_time" in unit_map.dims else np.arange(unit_map.size)
    twin = ax.twinx()
    width = 0.9 * (at[1] - at[0] if len(at) > 1 else 1) / rate_hz
    twin.bar(at / rate_hz, unit_map.values, width, color=MAP, label="unit's output")
    for level, style, name in levels:
        twin.axhline(level, color="black", linestyle=style, linewidth=1.0, label=name)
    ends = [0, 1e-9, *unit_map.values, *(level for level, *_ in levels if np.isfinite(level))]
    twin.set_ylim(1.08 * min(ends), 1.08 * max(ends))
    twin.spines["right"].set_visible(True)
    twin.set_zorder(0)
    ax.set_zorder(1)  # the line stands in front of the bars
    ax.patch.set_visible(False)
    ax.grid(visible=False)
    twin.grid(visible=False)
    return twin


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
    curve is divided by its largest absolute value, or by ``LEAST_OWN_G`` where a signal in G stays below. Curves that
    are all NaN are not drawn.
    """
    n_columns = sum(v.shape[1] for v in signals.values()) if beside else max(v.shape[1] for v in signals.values())
    figure, axes = grid(len(rows), n_columns, WIDTH, 1.2 + 0.85 * len(rows), sharex=True, sharey="row")
    legend, first, least = {}, 0, LEAST_OWN_G if label == "signal [G]" else np.finfo(float).tiny
    for (kind, values), colour in zip(signals.items(), (SIGNAL, ACCENT, *COMPONENT_COLOURS[2:]), strict=False):
        for (r, c), ax in np.ndenumerate(axes[:, first : first + values.shape[1]]):
            curve = values[r, c] / max(np.abs(values[r, c]).max(), least) if own_scale else values[r, c]
            ax.plot(np.arange(len(curve)) / rate_hz, curve, color=colour, linewidth=1.2)
        legend[kind] = Line2D([], [], color=colour)
        first += values.shape[1] if beside else 0
    for place, name in np.ndenumerate(np.asarray(titles, dtype=str)):
        axes[place if len(place) == 2 else (0, *place)].set_title(name, fontsize=9, pad=2)
    for ax, name in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        if own_scale:
            ax.set(ylim=(-1.15, 1.15), yticks=[])
        elif label == "signal [G]":
            _span(ax)
    axes[-1, n_columns // 2].set_xlabel("time [s]")
    figure.supylabel(label + (", own scales" if own_scale else ""), fontsize=10)
    return finish(figure, legend, title=title)


def coloured(
    signals: np.ndarray,
    outputs: np.ndarray,
    rows: Sequence[str],
    titles: Sequence[str],
    axis_names: Sequence[str],
    rate_hz: float,
    title: str = "",
) -> Figure:
    """Signals in the colours of a unit's outputs, as Karpathy et al. (2015) colour text: red is high, blue is low.

    ``signals`` (row, column, axis, time) in G, axes below each other without their means, all on one scale, and cut
    where they would reach another axis, which is said with the scale below the title; ``outputs`` (row, column, time),
    black where they are zero; ``titles`` head the columns.
    """
    moved = signals - signals.mean(-1, keepdims=True)
    n_rows, n_columns, n_axes, length = moved.shape
    figure, axes = grid(n_rows, n_columns, WIDTH, 0.8 + 1.6 * n_rows, "time [s]", sharex=True, sharey=True)
    time, step, top = np.arange(length) / rate_hz, 1.4 * np.quantile(np.abs(moved), 0.99), np.abs(outputs).max()
    for (r, c), ax in np.ndenumerate(axes):
        for a in range(n_axes):
            points = np.stack([time, np.clip(moved[r, c, a] / step, -0.7, 0.7) - a], axis=1)
            lines = LineCollection(np.stack([points[:-1], points[1:]], axis=1), cmap="berlin", linewidth=1.3)
            lines.set(array=outputs[r, c, 1:], clim=(-top, top))
            ax.add_collection(lines)
        ax.set(xlim=(0, time[-1]), ylim=(-n_axes + 0.2, 0.8), yticks=-np.arange(n_axes), yticklabels=axis_names)
        ax.grid(visible=False)
        if r == 0:
            ax.set_title(titles[c], fontsize=9)
        if c == 0:
            head = [textwrap.fill(line, 20) for line in rows[r].splitlines()]  # no longer than the row is high
            ax.set_ylabel("\n".join(head), fontsize=9)
    figure.colorbar(lines, ax=axes.ravel().tolist(), label="the unit's output")
    note = f"signals without their means, from row to row {step:.2g} G, cut beyond ±{0.7 * step:.2g} G"
    return finish(figure, title="\n".join(part for part in (title, note) if part))


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
