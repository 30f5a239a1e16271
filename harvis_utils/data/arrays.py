"""Arrays, a table or a folder of arrays turned into windows: anyone's data, through the same door as all others.

    windows = from_arrays(x, y, subject, rate_hz=50, axes={"back": "xyz", "thigh": "xyz"}, unit="m/s^2")

and, for the chain, a module in the folder that ``HARVIS_DATASETS`` names, which says

    DATASET = dataset("mine", "/data/mine", rate_hz=50, axes={"back": "xyz", "thigh": "xyz"}, unit="m/s^2")

Nothing is cut, resampled or left out unasked, and nobody stands in two splits. What comes of it is marked as own data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from harvis_utils.data.archive import generate
from harvis_utils.data.kinds import STANDARD_GRAVITY, DataError, Dataset, Recording
from harvis_utils.data.windowing import SPLITS, Windows, checked, cut
from harvis_utils.settings import WindowSettings

#: units of acceleration, which become G; a value in any other unit stays as it is, and pages say so
TO_G = {"g": 1.0, "mg": 1e-3, "m/s^2": 1 / STANDARD_GRAVITY, "m/s2": 1 / STANDARD_GRAVITY, "m/s²": 1 / STANDARD_GRAVITY}
#: units of what else is worn; a warning follows any that is in neither list, which may be a misspelt acceleration
OTHERS = ("deg/s", "°/s", "dps", "rad/s", "ut", "µt", "gauss", "pa", "hpa", "°c", "v", "mv", "%", "bpm", "as trained")
#: of people, without a split of one's own: so many validate and so many test
SHARE = 0.2
#: Choice: seconds from sample to sample below which an index was not in seconds
SHORTEST_STEP = 1e-4
#: Choice: samples of a recording from which on it has a rate of its own
FEWEST = 20
AS_IT_SHOULD_BE = "resample the table before to one rate, in seconds or dates, sorted by person and time"
#: files of a folder: windows, their activities, their people
FILES = ("X.npy", "Y.npy", "pid.npy")


def from_arrays(x, y=None, subject=None, *, name: str = "own", **about) -> Windows:
    """Windows of anyone's arrays, kept as they are, or cut as ``windows`` says. ``about`` are the arguments of
    :func:`dataset`, which takes the same forms of data: ``rate_hz`` and ``axes``, and where they differ from what is
    usual ``unit`` (of each sensor), ``split``, ``activities``, ``windows``.

    Accelerations become G, other units stay. A network that is to be explained must have been trained on such windows:
    if it was trained on m/s^2 or on standardized windows, hand these over with ``unit="as trained"``: they stay.

    Raises :class:`DataError` for what does not fit together.
    """
    described = dataset(name, x, y, subject, **about)
    return cut(generate(described), described.windows)


def of_sessions(
    activities: pd.DataFrame, about: pd.DataFrame, sessions: Mapping[int, pd.DataFrame], channels: Sequence[str] = ()
) -> pd.DataFrame:
    """The common format of whar-datasets (Burzer et al. 2025) as a table for :func:`from_arrays`.

    That is what the ``parse`` of its configurations returns: ``activities`` with ``activity_id`` and
    ``activity_name``, ``about`` with ``session_id``, ``subject_id`` and ``activity_id``, and for each session a table
    of a ``timestamp`` and a column for each channel, named as "lankle_acc_x"; ``channels`` are some of these. *Tried
    against objects of this form, not against the library itself, which no package index has.* ::

        table = of_sessions(*cfg.parse(folder, cfg.activity_id_col), ["lankle_acc_x", "lankle_acc_y", "lankle_acc_z"])
        windows = from_arrays(table, "activity", "person", unit="m/s^2", windows=WindowSettings(50, 128, 64))

    The tables of actipy need no more than labels: ``data.dropna()[["x", "y", "z"]]`` of each person, which are in g at
    times, with columns for what was done and who did it, one below the other, and ``axes={"wrist": "xyz"}``.

    Raises :class:`DataError` for a session, an activity, a person or a column that is named and not there.
    """
    if not isinstance(sessions, Mapping):
        raise DataError(f"sessions should map each session_id to a table, not {type(sessions).__name__}")
    activities = _columns(activities, ["activity_id", "activity_name"], "activities")
    names, found = dict(activities.dropna().itertuples(index=False)), []
    about = _columns(about, ["session_id", "subject_id", "activity_id"], "about")
    for session, who, what in about.itertuples(index=False):
        if session not in sessions or what not in names or pd.isna(who):
            raise DataError(f"session {session}, its activity {what} or its person {who} is named and not there")
        table = _columns(sessions[session], ["timestamp", *channels], f"session {session}", more=not channels)
        found.append(table.set_index("timestamp").assign(activity=str(names[what]), person=who))
    if not found:
        raise DataError("about names no session; it should have a row for each")
    return pd.concat(found).rename(columns={name: " ".join(name.rsplit("_", 1)) for name in found[0].columns})


def _columns(table: pd.DataFrame, needed: Sequence[str], what: str, more: bool = False) -> pd.DataFrame:
    """These columns of a table, or with ``more`` all; DataError where it lacks one."""
    there = list(getattr(table, "columns", []))
    if missing := [name for name in needed if name not in there]:
        raise DataError(f"{what} has no column {missing[0]!r}; its columns: {', '.join(map(str, there))}")
    return table if more else table[list(needed)]


def dataset(
    name: str,
    x,
    y=None,
    subject=None,
    *,
    rate_hz: float | None = None,
    axes: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    unit: str | Mapping[str, str] = "G",
    activities: Mapping | Sequence[str] | None = None,
    split: Mapping[str, Sequence] | None = None,
    seed: int = 0,
    windows: WindowSettings | None = None,
    title: str = "own data",
    source: str = "own data",
    licence: str = "not stated",
) -> Dataset:
    """A data set of arrays. ``x`` is one of these:

    - windows (window, channel, time), with an activity ``y`` and a person ``subject`` for each. They are kept; with
      ``windows`` each is resampled and cut by itself. Neighbours of one person and activity count as one recording;
    - a list of recordings (time, channel), with an activity for each, or for each sample, and a person for each;
      ``windows`` must say how they are cut;
    - a table with a column for each channel, ``y`` and ``subject`` naming two more, and time as its index, in seconds
      or as dates; with ``rate_hz`` the index may count samples, or be none. It is cut into recordings where activity or
      person change, or samples are missing. Columns called as ``axes`` are taken by name, else all in their order, of
      tables in a list too;
    - a folder that holds ``FILES``, or the three arrays as a tuple.

    ``axes`` names the channels, as {sensor: components}, or "<sensor> <component>" each; ``unit`` is that of all, or of
    each sensor: accelerations become G. ``activities`` maps ``y`` to names, in their order; ``split`` maps "train",
    "val" and "test" to people. Without it, people are drawn by ``seed``: a fifth, at least one, tests, as many
    validate. People that are no whole numbers of 64 bits are numbered from 1, sorted.

    Raises :class:`DataError` for what does not fit together.
    """
    if not isinstance(name, str):
        raise DataError(f'a data set begins with its name: dataset("mine", x, ...), not {type(name).__name__}')
    try:
        if isinstance(x, str | Path):
            x = _of_folder(Path(x))
        if isinstance(x, tuple) and len(x) == 3 and y is None and subject is None:
            x, y, subject = x
        rate_hz, of_table = _rate(rate_hz), isinstance(x, pd.DataFrame)
        if of_table:
            _one_column_each(x, y, subject)
            axes = axes if axes is not None else [str(c) for c in x.columns if c not in (y, subject)]
        axes, factors, units = _axes(axes, unit)
        if of_table:
            x, y, subject, rate_hz = _of_table(x, y, subject, rate_hz, axes)
        needed = {"y, an activity each": y, "subject, a person each": subject, "rate_hz, samples a second": rate_hz}
        if lacking := [what for what, of in needed.items() if of is None]:
            raise ValueError(f"it needs {'; '.join(lacking)}")
        parts, label, person, pieces = _parts(x, y, subject, axes)
        known, activity = _activities(label, activities)
        numbered, number, split = _people(person, split, seed)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    if windows is not None:
        windows = replace(checked(windows, name), rate_hz=float(windows.rate_hz))  # 50 and 50.0 are the same windows
    elif pieces:
        windows = WindowSettings(float(rate_hz), pieces, pieces)
    else:
        raise DataError(f"{name}: recordings need windows=WindowSettings(rate_hz, length, step): how they are cut")

    def read(_=None) -> Iterator[Recording]:
        for k, (of, first, last) in enumerate(parts):
            with np.errstate(over="ignore"):
                signal = (of(first, last) * factors).astype(np.float32)
            if (bad := ~np.isfinite(signal).all(1)).any():
                what = f"window {first + bad.argmax() // pieces}" if pieces else f"recording {k}, row {bad.argmax()}"
                raise DataError(f"{name}: {what} holds NaN, infinity or more than float32 can; leave it out or fill it")
            yield Recording(int(number[k]), int(activity[k]), signal)

    if numbered:
        source += f"; people in turn: {', '.join(map(str, numbered))}"
    return Dataset(
        *(name, title, source, licence, float(rate_hz), known, axes, split, read),
        windows=windows,
        pieces=pieces,
        units=units,
    )


def _rate(rate_hz) -> float | None:
    """Samples a second, where they are given."""
    try:
        rate = float(rate_hz or 0)
    except (TypeError, ValueError):
        rate = np.nan
    if not 0 <= rate < np.inf:
        raise ValueError(f"rate_hz should be a number above 0, not {rate_hz!r:.60}")
    return rate or None


def _of_folder(folder: Path) -> tuple[np.ndarray, ...]:
    """The arrays of a folder; large ones are read when they are needed."""
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ValueError(f"there is no {missing[0]} in {folder}, which should hold {', '.join(FILES)}")
    found = []
    for file in FILES:
        try:
            found.append(np.load(folder / file, mmap_mode="r"))
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{folder / file} is no array of numbers or text ({error}); save it as one") from error
    return tuple(found)


def _one_column_each(frame: pd.DataFrame, *names) -> None:
    """Raise ValueError where activities and people are not named as one column each."""
    for name in names:
        if np.ndim(name) and not isinstance(name, tuple):
            raise ValueError(f"of a table, y and subject name two columns, and are no {type(name).__name__}; assign it")
        if (n := list(frame.columns).count(name)) != 1:
            what = f"{n or 'no'} column{'s' * (n > 1)} {name!r}"
            raise ValueError(f"the table has {what}; y and subject name two of {list(frame.columns)}, each there once")


def _array(values, axes: Sequence[str] = ()) -> np.ndarray:
    """An array of whatever holds numbers: what is masked or NA becomes NaN; a table's columns are those called as
    ``axes``, else all in their order.

    Raises ValueError for what is no array, and where a column is called as an axis at another place.
    """
    try:
        if isinstance(values, pd.DataFrame):
            names = {str(column): column for column in values.columns}
            if set(axes) <= set(names):
                values = values[[names[axis] for axis in axes]]
            elif moved := [a for a, name in zip(axes, names, strict=False) if name in axes and name != a]:
                raise ValueError(f"axes say {moved[0]!r} where the table has another of them; its columns: {[*names]}")
            of_pandas = any(isinstance(of, pd.api.extensions.ExtensionDtype) for of in values.dtypes)
            if of_pandas and all(of.kind in "fiu" for of in values.dtypes):
                return values.to_numpy(float, na_value=np.nan)
            return values.to_numpy()
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.float() if "bfloat16" in str(values.dtype) else values
        if np.ma.is_masked(values) and values.dtype.kind in "fiu":
            values = values.astype(float).filled(np.nan)
        return np.asarray(values)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"x is no array of numbers ({error}); make it one") from error


def _steps(index: pd.Index, rate_hz: float | None, same: np.ndarray) -> np.ndarray:
    """Seconds between samples, ``same`` where they are of one recording; whole numbers count samples where ``rate_hz``
    is given. Raises ValueError for an index that is no time, or in no seconds.
    """
    if isinstance(index, pd.RangeIndex) or index.dtype.kind not in "mMif":
        if not rate_hz:
            raise ValueError("the table's index is no time; give rate_hz, or seconds or dates as its index")
        return np.full(max(0, len(index) - 1), 1 / rate_hz)
    dates = index.dtype.kind in "mM"
    steps = (np.diff(index.to_numpy()) / (np.timedelta64(1, "s") if dates else 1.0)).astype(float)
    median = np.median(steps[same]) if same.any() else np.nan
    if rate_hz and median == 1:
        return steps if dates else steps / rate_hz
    if not rate_hz and (0 < median < SHORTEST_STEP or (median >= 1 and not dates)):
        raise ValueError(
            f"the index says {median:.4g} s from sample to sample, as if it were sample numbers or no seconds; give "
            "rate_hz for sample numbers, x.index / 1000 as index for milliseconds, or dates"
        )
    return steps


def _of_table(frame: pd.DataFrame, label: str, subject: str, rate_hz: float | None, axes: Sequence[str]) -> tuple:
    """A table's recordings, their activities and people, and its rate; rows without an activity belong to none."""
    keys, codes = frame[[subject, label]], _codes(frame[subject], frame[label])
    other = np.append(True, (np.diff(codes, axis=0) != 0).any(axis=1))[: len(frame)]
    same, recording = ~other[1:], np.cumsum(other)
    steps = _steps(frame.index, rate_hz, same)
    step = 1 / rate_hz if rate_hz else float(np.median(steps[same])) if same.any() else np.nan
    if not step > 0:
        raise ValueError(f"samples are not evenly spaced by {step:.4g} s; {AS_IT_SHOULD_BE}")
    found = pd.Series(steps[same]).groupby(recording[1:][same]).agg(["median", "size"])
    for k, of in found[(found["size"] >= FEWEST) & ~((found["median"] - step).abs() <= step / 20)].iterrows():
        where = ", ".join(f"{column} {value}" for column, value in keys.iloc[np.searchsorted(recording, k)].items())
        usual = f"{step:.4g} s {'as rate_hz says' if rate_hz else 'apart as most are'}"
        raise ValueError(f"{where}: its samples are {of['median']:.4g} s apart, not {usual}; {AS_IT_SHOULD_BE}")
    other[1:] |= ~(np.abs(steps - step) < step / 2)
    uneven = (np.abs(steps - step) > step / 10) & ~other[1:]
    if uneven.sum() > 0.05 * len(frame):
        raise ValueError(f"samples are not evenly spaced by {step:.4g} s; {AS_IT_SHOULD_BE}")
    starts = np.flatnonzero(other)
    rows = [(a, b) for a, b in zip(starts, [*starts[1:], len(frame)], strict=True) if (codes[a] >= 0).all()]
    values = _array(frame.drop(columns=[label, subject]), axes)
    about = [keys.iloc[[a for a, _ in rows]][column].tolist() for column in (label, subject)]
    return [values[a:b] for a, b in rows], *about, rate_hz or float(f"{1 / step:.6g}")


def _axes(axes, unit) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
    """Names of the axes, what each is multiplied by, and the units of sensors that stay as they are."""
    if isinstance(axes, Mapping) and all(isinstance(of, Iterable) for of in axes.values()):
        axes = [f"{sensor} {component}" for sensor, components in axes.items() for component in components]
    axes = [] if axes is None or isinstance(axes, str) else [str(axis) for axis in axes]
    if not axes or not all(" " in axis.strip() for axis in axes):
        raise ValueError("axes should be {sensor: components}, as {'wrist': 'xyz'}, or '<sensor> <component>' each")
    sensors = [axis.rpartition(" ")[0] for axis in axes]
    of = dict(unit) if isinstance(unit, Mapping) else dict.fromkeys(sensors, unit)
    if strange := [one for one in of.values() if not isinstance(one, str)]:
        raise ValueError(f"unit should be text, or {{sensor: text}}, not {strange[0]!r:.60}")
    if set(of) != set(sensors):
        raise ValueError(
            f"unit names {', '.join(of) or 'nothing'}; the sensors are {', '.join(dict.fromkeys(sensors))}"
        )
    if strange := [f"{of[s]!r} of {s}" for s in of if of[s].lower() not in (*TO_G, *OTHERS)]:
        known = f"accelerations are in {', '.join(TO_G)}, other units are {', '.join(OTHERS)}"
        warnings.warn(f"unknown unit {', '.join(strange)}: its values stay as they are ({known})", stacklevel=4)
    factors = np.array([TO_G.get(of[sensor].lower(), 1.0) for sensor in sensors])
    return tuple(axes), factors, {sensor: one for sensor, one in of.items() if one.lower() not in TO_G}


def _parts(x, y, subject, axes: Sequence[str]) -> tuple[list[tuple[Callable, int, int]], list, list, int | None]:
    """Recordings as (function of rows, first, last), what they show, who, and the length of windows in them."""
    whole, n_axes = isinstance(x, np.ndarray) or hasattr(x, "detach"), len(axes)
    if not whole and not isinstance(x, Iterable):
        raise ValueError(f"x should be an array, a list of recordings, a table or a folder, not {type(x).__name__}")
    x = [x] if whole else list(x)
    orders = {tuple(map(str, one.columns)) for one in x if isinstance(one, pd.DataFrame)}
    if len(orders) > 1 and not all(set(axes) <= set(order) for order in orders):
        raise ValueError("tables of recordings have other columns, or in another order; call their columns as the axes")
    given = [_array(one, axes) for one in x]
    shape = f"(window, {n_axes}, time)" if whole else f"(time, {n_axes}), each recording,"
    for one in given:
        if one.dtype.kind not in "fiu" or one.ndim != 2 + whole or one.shape[1] != n_axes or not one.size:
            turned = one.ndim == 2 + whole and one.shape[-1 if whole else 0] == n_axes
            hint = "x.transpose(0, 2, 1) puts channels in the middle" if whole else "x.T of each puts channels last"
            hint = f"; {hint}" if turned else ""
            raise ValueError(f"x should be numbers {shape} for {n_axes} axes, not {one.dtype} {one.shape}{hint}")
    n = len(given[0]) if whole else len(given)
    several = not whole and isinstance(y, Iterable) and not isinstance(y, str | Mapping | Set)
    y = list(y) if several else _labels(y, "activity")
    subject = _labels(subject, "person")
    if len(y) != n or len(subject) != n:
        raise ValueError(f"{n} windows or recordings have {len(y)} activities and {len(subject)} people; give one each")
    if not whole:
        parts, label, person = [], [], []
        for one, what, who in zip(given, y, subject, strict=True):
            what = _labels([what] if np.ndim(what) == 0 else what, "activity")
            if len(what) not in (1, len(one)):
                raise ValueError(f"a recording of {len(one)} samples has {len(what)} activities; give one, or one each")
            for a, b in _runs(what) if len(what) > 1 else [(0, len(one))]:
                parts.append((lambda first, last, one=one: one[first:last], a, b))
                label.append(what[a]), person.append(who)
        return parts, label, person, None
    runs = _runs(y, subject)
    if len(runs) > n / 2 > 1:
        warnings.warn(
            "windows of one person and activity do not stand together; in the order in which they were recorded, "
            "overlapping ones are not taken for independent",
            stacklevel=4,
        )
    rows = given[0]
    parts = [(lambda a, b: rows[a:b].transpose(0, 2, 1).reshape(-1, n_axes), a, b) for a, b in runs]
    return parts, [y[a] for a, _ in runs], [subject[a] for a, _ in runs], rows.shape[2]


def _codes(*columns) -> np.ndarray:
    """Columns of labels as numbers (row, column): 1 and "1" are two, all that is missing is -1."""
    return np.stack([pd.factorize(np.asarray(of, dtype=object))[0] for of in columns], axis=1)


def _runs(*columns) -> list[tuple[int, int]]:
    """First and last of each stretch in which nothing changes."""
    change = (np.diff(_codes(*columns), axis=0) != 0).any(axis=1)
    starts = [0, *np.flatnonzero(change) + 1]
    return list(zip(map(int, starts), [*map(int, starts[1:]), len(columns[0])], strict=True))


def _labels(values, what: str) -> list:
    """Labels as whole numbers or text, one each, of whatever list, array or column they came in; raises ValueError."""
    if isinstance(values, str | Mapping | Set) or not isinstance(values, Iterable):
        raise ValueError(f"{what}: give one label each, in a list or an array, not {type(values).__name__}")
    values = values.detach().cpu() if hasattr(values, "detach") else values
    values = values.tolist() if isinstance(values, np.ma.MaskedArray) else values  # what is masked becomes None
    found = np.asarray(values if hasattr(values, "__len__") else list(values), dtype=object)
    if found.ndim != 1 and found.shape[1:] != (1,):
        raise ValueError(f"{what}: an array {found.shape}; give one label each, as y.argmax(1) of one-hot rows")
    plain = [v.item() if getattr(v, "ndim", None) == 0 and v is not np.ma.masked else v for v in found.ravel()]
    plain = [int(v) if isinstance(v, float) and v.is_integer() else v for v in plain]
    if strange := [v for v in plain if not isinstance(v, int | str) or v == ""]:
        raise ValueError(f"{what} {strange[0]!r:.60} is neither text nor a whole number; leave those rows out")
    return plain


def _activities(label: Sequence, names) -> tuple[tuple[str, ...], list[int]]:
    """Names of the activities and the index of each label."""
    there = sorted(set(label), key=lambda v: (isinstance(v, str), v))
    if names is None:
        names = {v: str(v) for v in there}
    elif not isinstance(names, Mapping):
        if isinstance(names, str | Set) or not isinstance(names, Iterable):
            raise ValueError(f"activities should be names in order, or {{label: name}}, not {type(names).__name__}")
        names = list(names)
        by_place = there == [*range(len(names))] and not set(there) & set(names)  # names may be the labels themselves
        names = dict(zip(range(len(names)) if by_place else names, names, strict=True))
    if unknown := [v for v in there if v not in names]:
        raise ValueError(f"activity {unknown[0]!r} has no name; activities={{{unknown[0]!r}: name, ...}} gives one")
    index = {value: k for k, value in enumerate(names)}
    return tuple(str(name) for name in names.values()), [index[value] for value in label]


def _people(person: Sequence, split, seed: int) -> tuple[list, list[int], dict[str, tuple[int, ...]]]:
    """People where they are numbered, the number of each recording's, and who trains, validates and tests."""
    people = sorted(set(person), key=lambda v: (isinstance(v, str), v))
    whole = all(isinstance(v, int) and -(2**63) <= v < 2**63 for v in people)  # what windows can hold
    numbers = {v: v if whole else k for k, v in enumerate(people, 1)}
    if split is None:
        if len(people) < 3:
            raise ValueError(f"{len(people)} people cannot train, validate and test; at least three are needed")
        drawn, n = [people[k] for k in np.random.default_rng(seed).permutation(len(people))], len(people)
        each = max(1, round(SHARE * n))
        split = {"train": drawn[2 * each :], "val": drawn[each : 2 * each], "test": drawn[:each]}
    if not isinstance(split, Mapping) or set(split) != set(SPLITS):
        others = ", ".join(map(str, split)) if isinstance(split, Mapping) else type(split).__name__
        raise ValueError(f"split should map {', '.join(SPLITS)} to people, not {others}")
    parts = {part: _labels(_of_part(split[part], people), f"{part}: person") for part in SPLITS}
    named = [v for part in SPLITS for v in parts[part]]
    if twice := sorted({str(v) for v in named if named.count(v) > 1}):
        raise ValueError(f"person {twice[0]} stands in two splits, so that a network would be tested on who it knows")
    if strange := [*(set(named) - set(people)), *(set(people) - set(named))]:
        where = "in the split and not in the data" if strange[0] in named else "in the data and not in the split"
        raise ValueError(f"person {strange[0]!r} is {where}; the data have {', '.join(map(repr, people[:6]))} ...")
    parts = {part: tuple(sorted(numbers[v] for v in parts[part])) for part in SPLITS}
    return [] if whole else people, [numbers[v] for v in person], parts


def _of_part(named, people: Sequence):
    """The people of one split: a single one may be named without a list, and text of one letter each may be a list."""
    letters = isinstance(named, str) and named not in people and set(named) <= set(people)
    if letters or isinstance(named, Set):
        return list(named)
    return [named] if isinstance(named, str | int | float | np.number) else named
