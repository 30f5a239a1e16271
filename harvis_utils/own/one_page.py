"""One page about what the units of a place in anyone's network respond to, with its tables.

    windows = arrays.from_arrays(x, y, subject, rate_hz=50, axes={"wrist": "xyz"}, unit="m/s^2")
    harvis_utils.explain(network, "last conv", windows)

What a lens refuses is on the page with its reason. The page is written anew with each part that is there: who
interrupts has a page of what is known so far, and the same call goes on.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from torch import nn

from harvis_utils.data.windowing import SPLITS, Windows
from harvis_utils.figures import page, style
from harvis_utils.lenses import cards, triggered
from harvis_utils.lenses.cards import Card
from harvis_utils.maximization.starting import chosen_units
from harvis_utils.metrics import embedding, intervals
from harvis_utils.networks import taps
from harvis_utils.own import looking, telling
from harvis_utils.own.looking import CLIMBING, FLAT, VISUAL, ExplainError
from harvis_utils.own.telling import AVERAGE, METHOD, NOISE, REAL, Found
from harvis_utils.paper.variants import LIKELIEST_TRIGGER
from harvis_utils.parallel import progress
from harvis_utils.settings import MaximizationSettings, VisualSettings, report_root
from harvis_utils.store import files
from harvis_utils.store.results import described, provenance

#: Choice: units that are looked at where none are named, spread evenly over the place
N_UNITS = 16
#: Choice: units that are climbed together: the first ones are the first look, and an interruption loses no more
N_AT_ONCE = 4
#: Choice: of more axes than this those are drawn on which made signals go farthest from zero, all are measured; a
#: picture that goes so many times as far as most of its row has a scale of its own
N_DRAWN, OWN_SCALE = 9, 3
#: Choice: half of what a picture spans at least, in G or s, so that what hardly moves is drawn as flat as it is
LEAST_SPAN = 0.25
#: Choice: the page is written anew after so many seconds, while it grows
SECONDS = 10
#: the page, what is known of it, and its tables
PAGE, ABOUT = "index.html", "explanation.json"
TABLES = ("thresholds", "signals", "measures", "waves", "concepts", "silenced", "covered", "cards")

#: what is drawn of every unit
SHOWN = (METHOD, LIKELIEST_TRIGGER, REAL, AVERAGE, NOISE, FLAT)


def explain(
    network: nn.Module,
    place: str | taps.Tap,
    windows: Windows,
    folder: str | Path | None = None,
    *,
    units: Sequence[int] | None = None,
    settings: MaximizationSettings = CLIMBING,
    visual: VisualSettings = VISUAL,
    even_untrained: bool = False,
) -> Path:
    """One page, with its tables, about what the units of a place in a trained network respond to; returns the page.

    ``network`` takes windows (window, axis, time), ``windows`` are those of :func:`arrays.from_arrays`. ``place`` is a
    name as :func:`taps.places` lists them, whose units are taken behind the rectifier that follows, a tap
    (:func:`taps.find`), which is taken as it is, or "last conv". ``units`` are looked at, by default 16 spread evenly;
    thresholds are of all. ``folder`` is by default ``explained/PLACE`` in the reports. The page is there when
    thresholds are, and grows; parts are stored, so that a call that was interrupted is gone on with by the same call.
    Other units or settings renew the page. Output k of the network counts as activity k, further outputs are wrong.

    Warns where training windows are told worse than a trained network tells them. Raises ``ValueError`` where network,
    place, windows and units do not fit together, where the network has fewer outputs than there are activities or tells
    these no better than guessing (unless ``even_untrained``), where all units of the place are silent, and for a folder
    with other files or the page of another network, place or windows; then nothing is written there.
    """
    of, judged = looking.looked(network, place, windows), looking.judged(network, windows, even_untrained)
    statistics = looking.thresholds(of)
    n_units = statistics.sizes["unit"]
    if bool(statistics["dead"].all()):
        raise ExplainError(
            f"{of.name}: all {n_units} units give the same for every training window, so there is nothing to explain; "
            "name another place, or look whether the network has been trained and its weights loaded"
        )
    units = chosen_units(n_units, N_UNITS) if units is None else taps.unit_numbers(units, n_units, of.name)
    folder = Path(folder).expanduser() if folder else report_root() / "explained" / re.sub(r"[^\w.-]+", "_", of.name)
    asked = {"key": of.key, "units": units, "settings": described(settings), "visual": described(visual)}
    _claim(folder, asked)
    found = Found(of, units, statistics, asked, judged)
    if not even_untrained and (doubt := telling.doubt(found)):
        warnings.warn(doubt, stacklevel=2)
    steps, written = list(_steps(found, settings, visual)), 0.0
    with progress(total=len(steps), desc=f"explaining {of.name}", leave=False) as bar:
        try:
            for number, (lens, make) in enumerate(steps):
                found.waiting = [lens for lens, _ in steps[number:]]
                if number < 2 or time.monotonic() - written > SECONDS:
                    _write(found, folder)
                    written = time.monotonic()
                if number == 0:
                    print(f"The page, which grows: {folder / PAGE}. If interrupted, the same call goes on.")
                bar.set_description(f"{of.name}: {lens}")
                try:
                    if lens not in found.refused and (made := make()) is not None:
                        found.parts.setdefault(lens, []).append(made)
                except ValueError as refusal:
                    found.refused[lens] = str(refusal)
                bar.update()
            found.waiting = []
        finally:
            _write(found, folder)
    return folder / PAGE


def _steps(found: Found, settings: MaximizationSettings, visual: VisualSettings) -> Iterator[tuple[str, Callable]]:
    """Lenses in their order, and what makes each part."""
    of, units, limits = found.of, found.units, found.statistics[["th_eap", "p95", "dead"]]
    th = limits["th_eap"].values
    parts = [units[i : i + N_AT_ONCE] for i in range(0, len(units), N_AT_ONCE)]
    for number, some in enumerate(parts):
        yield METHOD, lambda some=some: looking.climbed(of, some, th, settings)
        yield LIKELIEST_TRIGGER, lambda some=some: looking.likeliest(of, some, th, visual)
        if number == 0:
            yield "references", lambda: looking.references(of, units, th)
    given, nine = found.given, triggered.STRONGEST
    yield "nearness", lambda: looking.near(of, given("signals"), limits)
    yield "right answers", lambda: looking.told(of, given("signals")["signal"], th)
    yield nine, lambda: looking.told(of, given("references")["strongest"], th).expand_dims(technique=[nine])
    yield "nearest real windows", lambda: looking.nearest(of, given(METHOD), limits)
    yield "atlas", lambda: looking.placed(of, given(METHOD), given("nearest real windows"))
    yield "deconvnet", lambda: looking.projected(of, units, "deconvnet")
    yield "gradient", lambda: looking.projected(of, units, "gradient") if "deconvnet" in found.refused else None
    yield "concepts", lambda: looking.named(of, units)
    yield "silencing", lambda: looking.silenced(of, units)
    yield "occlusion", lambda: looking.covered(of)


def _claim(folder: Path, asked: dict) -> None:
    """Take a folder for this page: a new one, or one of the same network, place and windows, whose page is renewed."""
    if (folder / ABOUT).exists():
        try:
            there = files.read_json(folder / ABOUT)["asked"]
            key = there["key"]
        except (KeyError, TypeError):
            raise ExplainError(f"{folder / ABOUT} is that of no page; name a new folder, or remove it") from None
        if key != asked["key"]:
            another = f'name another folder, as folder="{folder}-{asked["key"][:6]}"'
            raise ExplainError(f"{folder} holds the page of another network, place or windows; {another}")
        if there != asked:
            for path in (folder / PAGE, folder / ABOUT, *(folder / "tables" / f"{name}.csv" for name in TABLES)):
                path.unlink(missing_ok=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExplainError(f"{folder} holds other files; name a new folder for the page")


# ------------------------------------------------------------------------------------------------------------- page


def _write(found: Found, folder: Path) -> None:
    """Write tables, page and what is known of it, as far as there is."""
    of, made = found.of, telling.tables(found)
    axes, deck = _drawn_axes(found), _cards(found)
    if deck:
        made["cards"] = cards.overview(deck).drop(columns=["layer", "match", "alike", "by chance"])
    told = telling.numbers(found, made)
    views = [] if not deck else [_view(found, axes)]
    names = [of.windows.axes[axis] for axis in axes] if of.target.axes > 1 else []
    mixed = style.axis_colours(np.zeros((len(axes), 1)), names) if names else {}
    colours = style.class_colours(of.windows.activities)
    text = page.atlas(
        views,
        of.windows.activities,
        colours,
        of.similarity.piece,
        of.windows.rate_hz,
        f"What the units of layer {of.name} respond to",
        of.caveat,
        [_as_drawn(card, found, axes) for card in deck],
        names,
        of.unit,
        "explanation.html",
        told=told,
        said={"method": METHOD, "noise": NOISE, "flat": FLAT, "readings": telling.READINGS, "of": of},
        facts=_facts(found, axes),
        waiting=[f"{x} of the other units" if x in found.parts else x for x in dict.fromkeys(found.waiting)],
        doubt=telling.doubt(found),
        worth=(cards.DETECTOR_IOU, cards.MATTERS),
        refused=found.refused | _left_out(found),
        tables=[_html(name, made[name]) for name in TABLES if name in made and name != "waves"],
        pictures=_pictures(found, made, axes),
        mixed=mixed,
        unit=of.unit,
        covered=_covered(found),
        files=[f"tables/{name}.csv" for name in TABLES if name in made],
    )
    about = {"asked": found.asked, "place": of.name, "caveat": of.caveat, "finished": not found.waiting}
    about |= {"refused": found.refused, "numbers": told, "made with": provenance()["versions"]}
    files.write_json(folder / ABOUT, about, nan_as_null=True)  # first, so that the folder is known as its own
    for name, table in made.items():
        files.write_text(folder / "tables" / f"{name}.csv", table.to_csv(float_format="%.6g"))
    files.write_text(folder / PAGE, text)


def _facts(found: Found, axes: Sequence[int]) -> dict[str, str]:
    """What was looked at, in words."""
    of, windows = found.of, found.of.windows
    n_axes, length = windows.train.x.shape[1:]
    people = {name: len(np.unique(getattr(windows, name).subject)) for name in SPLITS}
    counts = [f"{n:,} of {people[name]} people ({name})" for name, n in windows.counts().items()]
    inner = of.network.network if isinstance(of.network, taps.WithLayout) else of.network
    facts = {
        "network": type(inner).__name__,
        "place": f"{of.name}{', behind its rectifier' if of.tap.rectified else ''}; its output is {of.tap.layout}",
        "units see": f"{'each axis by itself' if of.by_axis else f'all {n_axes} axes'}, "
        f"{f'{of.width} samples' if of.width else 'compared as whole windows'} of {length} at {windows.rate_hz:g} Hz",
        "windows": f"{', '.join(counts)}; {telling.units_of(windows)}",
    }
    if (every := looking.every(windows.train, looking.MOST_NUMBERS)) > 1:
        facts["thinned"] = f"but for thresholds, every {every}th window is looked at, because all would fill the memory"
    if left := [name for axis, name in enumerate(windows.axes) if of.target.axes > 1 and axis not in axes]:
        facts["not drawn"] = f"{', '.join(left)}: made signals stay nearest to zero there; all axes are measured"
    if of.scale is not None:
        whose = "all axes together" if of.by_axis else "each axis"
        facts["scale"] = f"two standard deviations of {whose} stand for 1 G, their mean for 0 G"
    return facts


def _left_out(found: Found) -> dict[str, str]:
    """Concepts that these windows cannot have, with the reason."""
    named = found.part("concepts")
    return {} if named is None else json.loads(named.attrs["left_out"])


def _cards(found: Found) -> list[Card]:
    """A card for each unit, once all that they are made of has been asked."""
    of, made, scores = found.of, found.part(METHOD), found.part("nearest real windows")
    if found.waiting or made is None or scores is None:
        return []
    more = {"seed": [0], "layer": [of.name]}
    own = made.copy(data={"signal": of.in_s(made["signal"].values), "map": made["map"].values})
    own["dead"] = scores["dead"]
    near = found.part("nearness")
    missing = xr.full_like(own["dead"], np.nan, float)
    near = xr.Dataset({"activation": missing, "nearness": missing}) if near is None else near.sel(technique=METHOD)
    back = next((one for one in map(found.part, ("deconvnet", "gradient")) if one is not None), None)
    parts = {"dissected": found.part("concepts"), "ablated": found.part("silencing")}
    lenses = cards.Lenses(
        signals=own.expand_dims(more),
        measured=near.expand_dims(more),
        **{name: None if one is None else one.expand_dims(more) for name, one in parts.items()},
        projected=None if back is None else back.expand_dims(layer=[of.name]),
        searched=of.some.train,
        views={of.name: _view(found, range(of.target.axes))},
    )
    return cards.collect(lenses, 0, of.windows.activities, of.windows.axes, of.similarity)


def _view(found: Found, axes: Sequence[int]) -> embedding.AtlasLayer:
    """The atlas of the place, with these axes."""
    of, made, scores, more = found.of, found.part(METHOD), found.part("nearest real windows"), {}
    more = {"preset": [embedding.PRESET], "technique": [embedding.METHOD], "seed": [0], "layer": [of.name]}
    places = found.part("atlas")
    nowhere = xr.DataArray(np.full((made.sizes["unit"], 2), np.nan), {"unit": made["unit"]}, ("unit", "coordinate"))
    places = (nowhere if places is None else places["positions"]).expand_dims(seed=[0], layer=[of.name])
    view = embedding.view(made.expand_dims(more), scores.expand_dims(more), places, of.searched.train, 0, of.name)
    if of.target.axes == 1:
        return replace(view, signals=of.drawn(view.signals), windows=of.drawn(view.windows))
    some = list(axes)
    return replace(view, signals=of.drawn(view.signals)[:, some], windows=of.drawn(view.windows)[:, some])


def _as_drawn(card: Card, found: Found, axes: Sequence[int]) -> Card:
    """The card as it is drawn: in the unit of pictures, with these axes."""
    of = found.of

    def shown(signal: np.ndarray) -> np.ndarray:
        return signal[list(axes)] if of.target.axes > 1 else signal.reshape(-1)

    signal = of.drawn(found.part(METHOD)["signal"].sel(unit=card.unit).values)
    strong = [replace(w, signal=shown(of.drawn(w.signal)), projection=shown(w.projection)) for w in card.windows]
    return replace(card, seed=None, signal=shown(signal), windows=tuple(strong), units=of.unit)


def _drawn_axes(found: Found) -> list[int]:
    """The axes that are drawn: where there are many, those whose level or movement in made signals is largest, in s."""
    signals, n_axes = found.signals, found.of.target.axes
    if n_axes <= N_DRAWN or signals is None:
        return list(range(min(n_axes, N_DRAWN)))
    known = [name for name in (METHOD, LIKELIEST_TRIGGER) if name in signals["technique"]] or [AVERAGE]
    made = found.of.in_s(signals["signal"].sel(technique=known).transpose(..., "axis", "time").values)
    far = np.nanquantile(np.abs(made).max(-1), 0.75, (0, 1))  # of a quarter of the signals: no outlier decides
    return sorted(far.argsort(kind="stable")[-N_DRAWN:].tolist())


def _pictures(found: Found, made: Mapping[str, pd.DataFrame], axes: Sequence[int]) -> list[dict]:
    """For each unit its signals to be drawn, on one scale but for what goes much farther, and what is said of each."""
    of, signals, rows = found.of, found.signals, []
    if signals is None:
        return rows
    colours = {METHOD: style.ACCENT, LIKELIEST_TRIGGER: style.METHOD_COLOURS[LIKELIEST_TRIGGER], REAL: style.REAL}
    one = 1.0 if of.scale is None or of.unit == looking.IN_S else float(of.target.scale.one.max())
    for unit in signals["unit"].values.tolist():
        pictures = []
        for name in (name for name in SHOWN if name in signals["technique"]):
            x = of.drawn(signals["signal"].sel(technique=name, unit=unit).values)
            curve = x[list(axes)] if of.target.axes > 1 else x.reshape(-1)
            said = _said(made["signals"].loc[(name, unit)])
            about = {"curve": curve, "caption": f"{name}{said}", "colour": colours.get(name, style.GREY)}
            pictures.append(about | {"limit": float(np.nanmax(np.abs(curve), initial=LEAST_SPAN * one))})
        far = OWN_SCALE * np.median([own["limit"] for own in pictures])
        limit = max(own["limit"] for own in pictures if own["limit"] <= far)
        for own in pictures:
            own["caption"] += "; its own scale" if own["limit"] > far else ""
            own["limit"] = max(own["limit"], limit)
        th, dead = (found.statistics[name].sel(unit=unit).item() for name in ("th_eap", "dead"))
        about = "silent" if dead else f"threshold {th:.3g}"
        rows.append({"unit": unit, "about": about, "pictures": pictures})
    return rows


def _said(row: pd.Series) -> str:
    """What is known of a signal, for below its picture."""
    found = ["flat"] if row["flat"] else []
    names = {
        "reached": "reaches {:.2f} of the threshold",
        "nearness": "nearness {:.2f}",
        "right answers": "right {:.0%}",
    }
    found += [text.format(row[name]) for name, text in names.items() if name in row and not pd.isna(row[name])]
    return f": {', '.join(found)}" if found else ""


#: rows of a table that are on the page; all are in its file
MOST_ROWS = 200


def _html(name: str, table: pd.DataFrame) -> dict:
    """A table for the page: its columns, as many rows as are shown, how many there are, and what is drawn of a row."""
    rows = intervals.shown(table.head(MOST_ROWS if name != "covered" else 0).reset_index(), 2)
    shown = [[_cell(value) for value in row] for row in rows.to_numpy(object)]
    spans = []
    if name == "measures" and "right answers" in table:
        spans = table[[f"right answers{end}" for end in ("", " low", " high")]].fillna(-1).to_numpy().tolist()
    about = {"name": name, "columns": [str(c) for c in rows.columns], "rows": shown}
    return about | {"n": len(table), "spans": spans}


def _cell(value) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.3g}"
    return "" if value is None else str(value)


def _covered(found: Found) -> dict:
    """Windows to be drawn, each with what covering its parts costs: the groups of axes, and maps of (group, time)."""
    of, covered = found.of, found.part("occlusion")
    if covered is None:
        return {}
    test, names, pictures = of.some.test, of.windows.activities, []
    x = test.x[covered["window"].values].astype(float)
    x -= x.mean(-1, keepdims=True)
    x /= 2 * of.windows.train.series.std(0)[:, None] if of.unit == looking.IN_S else 1.0
    axes = sorted(np.median(np.ptp(x, axis=-1), 0).argsort(kind="stable")[-N_DRAWN:].tolist())
    for k, window in enumerate(covered["window"].values):
        predicted = int(covered["predicted"][k])
        said = f"{names[test.activity[window]]}, taken for {names[predicted] if predicted < len(names) else predicted}"
        one = covered.isel(window=k).transpose("group", "time")
        maps = {"log odds of that class": one["log_odds"], f"activity of unit {int(one['unit'])}": one["activity"]}
        maps = {name: page.heat(np.nan_to_num(values.values)) for name, values in maps.items()}
        about = {"caption": f"{said}; person {test.subject[window]}", "curve": x[k, axes], "maps": maps}
        pictures.append(about | {"limit": float(np.abs(x[k, axes]).max()) or 1.0})
    about = {"windows": pictures, "groups": covered["group"].values.tolist()}
    return about | {"axes": style.axis_colours(x[0, axes], [of.windows.axes[axis] for axis in axes])}
