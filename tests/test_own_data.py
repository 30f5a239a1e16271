"""Anyone's arrays through the same door as all other data, and modules of one's own for the chain."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils import data
from harvis_utils.chain import stamps
from harvis_utils.data import archive, arrays, kinds, windowing
from harvis_utils.data.arrays import from_arrays
from harvis_utils.data.kinds import DataError
from harvis_utils.data.windowing import SPLITS
from harvis_utils.paper.stages import Stages
from harvis_utils.settings import REPOSITORY, SettingsError, WindowSettings, load_settings

AXES = {"back": "xyz", "thigh": "xyz"}
PEOPLE = ("a", "b", "c", "d", "e")
ABOUT = {"rate_hz": 50, "axes": AXES}


def made(length: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """60 windows of 5 people, 3 activities and 2 sensors that rest with some noise."""
    y, who = np.repeat(np.tile([0, 1, 2], 5), 4), np.repeat(PEOPLE, 12)
    gravity = np.array([0, 0, 1, 0, 0, 1])[:, None]
    slow = np.sin(np.arange(length) / 10 + np.arange(60)[:, None, None])
    return (0.1 * slow * (1 + y[:, None, None]) + gravity).astype(np.float32), y, who


X, Y, WHO = made()
RECORDINGS = [X[p == WHO].transpose(0, 2, 1).reshape(-1, 6) for p in PEOPLE]
CUT = WindowSettings(50, 80, 80)


@pytest.fixture(autouse=True)
def no_warning():
    """What is not asked for by a test is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ----------------------------------------------------------------------------------------- the same windows


def test_windows_are_those_of_the_ordinary_way(make_recordings):
    """Cut without overlap from recordings, and given as arrays, they have one digest: the same results."""
    lengths = {(s, a): 40 * (3 + s) for s in (1, 2, 3, 4) for a in range(3)}
    recordings = make_recordings(lengths)
    plain = windowing.cut(recordings, WindowSettings(30.0, 40, 40))
    x = np.concatenate([item.signal.reshape(-1, 40, 3).transpose(0, 2, 1) for item in recordings.items])
    n = [len(item.signal) // 40 for item in recordings.items]
    y, who = (np.repeat([getattr(item, of) for item in recordings.items], n) for of in ("activity", "subject"))
    about = {"rate_hz": 30, "axes": plain.axes, "unit": "deg/s", "split": recordings.dataset.split}
    found = from_arrays(x, y, who, activities=plain.activities, **about)
    assert found.digest == plain.digest
    assert found.caveat == "own data, not verified; axis in deg/s, not G"
    of_recordings = from_arrays(
        [item.signal for item in recordings.items], y[np.cumsum([0, *n[:-1]])], who[np.cumsum([0, *n[:-1]])],
        activities=plain.activities, windows=WindowSettings(30.0, 40, 40), **about,
    )  # fmt: skip
    assert of_recordings.digest == plain.digest


@settings(max_examples=30)
@given(channels=st.integers(1, 9), length=st.integers(2, 70), rate=st.floats(0.5, 500), seed=st.integers(0, 99))
def test_windows_of_any_shape_and_rate_are_kept_bit_for_bit(channels, length, rate, seed):
    rng = np.random.default_rng(seed)
    who, y = np.sort(rng.integers(10, 10 + rng.integers(3, 8), 40)), np.zeros(40, int)
    if len(set(who)) < 3:
        return
    x = rng.normal(size=(40, channels, length)).astype(np.float32)
    axes = [f"any {k}" for k in range(channels)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = from_arrays(x, y, who, rate_hz=rate, axes=axes, unit="V", seed=seed)
    parts = [getattr(found, name) for name in SPLITS]
    assert sum(map(len, parts)) == 40 and found.rate_hz == rate and found.train.length == length
    assert len(set(who)) == sum(len(set(part.subject)) for part in parts), "nobody stands in two splits"
    for part in parts:
        np.testing.assert_array_equal(part.x, x[np.isin(who, part.subject)])


def test_every_form_of_the_same_data_gives_the_same_windows(tmp_path):
    expected = from_arrays(X, Y, WHO, **ABOUT)
    assert expected.counts() == {"train": 36, "val": 12, "test": 12} and expected.caveat == "own data, not verified"
    for file, values in zip(arrays.FILES, (X, Y, WHO), strict=True):
        np.save(tmp_path / file, values)
    labels = [np.repeat(Y[p == WHO], 80) for p in PEOPLE]
    one = [
        pd.DataFrame(r, columns=expected.axes).assign(act=of, who=p)
        for r, of, p in zip(RECORDINGS, labels, PEOPLE, strict=True)
    ]
    dated = [t.set_index(pd.date_range("2026-01-01", periods=len(t), freq="20ms")) for t in one]
    timed = [t.set_index(np.arange(len(t)) / 50) for t in one]
    found = {
        "folder": from_arrays(tmp_path, **ABOUT),
        "tuple": from_arrays((X, Y, WHO), **ABOUT),
        "tensors": from_arrays(torch.tensor(X), torch.tensor(Y), list(WHO), **ABOUT),
        "series": from_arrays(X, pd.Series(Y, index=np.arange(60) + 7), pd.Series(WHO), **ABOUT),
        "text": from_arrays(X, Y.astype(str), WHO, **ABOUT),
        "recordings": from_arrays(RECORDINGS, labels, PEOPLE, windows=CUT, **ABOUT),
        "table": from_arrays(pd.concat(timed), "act", "who", windows=CUT),
        "dates": from_arrays(pd.concat(dated), "act", "who", windows=CUT, axes=AXES),
        "rows": from_arrays(pd.concat(one, ignore_index=True), "act", "who", windows=CUT, rate_hz=50),
    }
    assert {name: of.digest == expected.digest for name, of in found.items()} == dict.fromkeys(found, True)


def test_a_table_is_cut_where_samples_or_labels_are_missing():
    table = pd.DataFrame(np.tile(np.float32([0, 0, 1]), (3000, 1)), columns=["w x", "w y", "w z"])
    table["act"], table["who"] = "rest", np.repeat([3, 5, 8], 1000)
    table.loc[100:109, "act"] = None
    table.index = np.arange(3000) / 50 + (np.arange(3000) >= 500)  # a second is missing
    found = archive.generate(arrays.dataset("own", table, "act", "who", windows=CUT))
    assert [(item.subject, len(item.signal)) for item in found.items] == [
        (3, 100), (3, 390), (3, 500), (5, 1000), (8, 1000),
    ]  # fmt: skip


COLUMNS = [f"{sensor} {component}" for sensor in AXES for component in "xyz"]
TABLES = [pd.DataFrame(recording, columns=COLUMNS) for recording in RECORDINGS]


def tabled(rates: dict | None = None) -> pd.DataFrame:
    """The same as a table with seconds as its index, recorded at 50 Hz or as ``rates`` says of people."""
    return pd.concat(
        table.assign(act=np.repeat(Y[p == WHO], 80), who=p).set_index(np.arange(960) / (rates or {}).get(p, 50))
        for table, p in zip(TABLES, PEOPLE, strict=True)
    )


def test_labels_are_the_same_in_whatever_column_they_come():
    """Missing ones are missing in every type of column, and text is never taken for a number."""
    table = tabled()
    gaps = {"float": table.act.where(table.act != 1), "Int64": table.act.astype("Int64").where(table.act != 1)}
    gaps["string"] = table.act.astype("string").where(table.act != 1)
    found = [from_arrays(table.assign(act=of), "act", "who", windows=CUT) for of in gaps.values()]
    assert {(of.activities, len(of.train)) for of in found} == {(("0", "2"), 24)}
    assert len({of.digest for of in found}) == 1
    expected = from_arrays(X, Y, WHO, **ABOUT).digest
    assert from_arrays(X, Y[:, None], pd.DataFrame({"who": WHO}), **ABOUT).digest == expected
    assert from_arrays(X, torch.tensor(Y * 1.0, requires_grad=True), WHO, **ABOUT).digest == expected
    many = arrays.dataset("own", X, np.zeros(60, int), [1] * 12 + ["1"] * 12 + [2**70] * 36, **ABOUT)
    assert [(item.subject, len(item.signal)) for item in many.read()] == [(1, 960), (3, 960), (2, 2880)]


def test_whole_numbers_count_samples_where_the_rate_is_given():
    table = tabled().reset_index(drop=True)
    expected = from_arrays(table, "act", "who", windows=CUT, rate_hz=50)
    found = from_arrays(table.drop(index=range(80, 160)), "act", "who", windows=CUT, rate_hz=50)
    assert found.rate_hz == 50 and len(found.train) == len(expected.train) - 1


def test_columns_are_taken_by_their_names():
    expected, about = from_arrays(X, Y, WHO, **ABOUT).digest, {"axes": AXES, "windows": CUT}
    turned, labels = tabled()[["who", *COLUMNS[::-1], "act"]], [np.repeat(Y[p == WHO], 80) for p in PEOPLE]
    assert from_arrays(turned, "act", "who", **about).digest == expected
    assert from_arrays(turned.convert_dtypes().assign(extra="text"), "act", "who", **about).digest == expected
    mixed = [table[COLUMNS[:: (-1) ** k]] for k, table in enumerate(TABLES)]
    assert from_arrays(mixed, labels, PEOPLE, rate_hz=50, **about).digest == expected
    for names in ({"back x": "a"}, {name: name.replace(" ", "_") for name in COLUMNS}):
        with pytest.raises(DataError, match="axes say 'thigh z' where the|tables of recordings have other columns"):
            from_arrays([table.rename(columns=names) for table in mixed], labels, PEOPLE, rate_hz=50, **about)
    with pytest.raises(DataError, match="axes say 'back x' where the table has another of them; its columns: "):
        from_arrays(turned.rename(columns={"back x": "a"}), "act", "who", **about)


@pytest.mark.parametrize("kind", [lambda x: x.requires_grad_(), torch.Tensor.bfloat16], ids=["gradient", "bfloat16"])
def test_tensors_of_any_kind_are_arrays(kind):
    found = from_arrays(kind(torch.tensor(X)), Y, WHO, rate_hz=50, axes=np.array(COLUMNS))
    np.testing.assert_array_equal(found.test.x, kind(torch.tensor(X)).detach().float()[WHO == "c"])


def test_units_of_acceleration_become_g_and_others_are_labelled():
    expected = from_arrays(X, Y, WHO, **ABOUT).train.x
    for unit, factor in {"g": 1, "mg": 1000, "m/s^2": 9.80665, "m/s²": 9.80665}.items():
        np.testing.assert_allclose(from_arrays(X * factor, Y, WHO, unit=unit, **ABOUT).train.x, expected, rtol=1e-6)
    mixed = from_arrays(X * 1000, Y, WHO, unit={"back": "mg", "thigh": "deg/s"}, **ABOUT)
    assert mixed.caveat == "own data, not verified; thigh in deg/s, not G"
    np.testing.assert_allclose(mixed.train.x, expected * np.repeat([1, 1000], 3)[:, None], rtol=1e-6)


@pytest.mark.parametrize("axes", [[0], [2], [0, 1], [0, 1, 2, 3, 4, 5]])
def test_any_number_of_axes_in_g_is_plausible(axes):
    from_arrays(X[:, axes], Y, WHO, rate_hz=50, axes=[f"back {axis}" for axis in axes])
    from_arrays(NORMED, Y, WHO, rate_hz=50, axes={"back": "xyzn"})


def test_people_are_split_by_a_seeded_rule_or_as_asked_for():
    drawn = [arrays.dataset("own", X, Y, WHO, seed=seed, **ABOUT) for seed in (0, 0, 1, 2, 3)]
    splits = [of.split for of in drawn]
    assert splits[0] == splits[1] and len({str(of) for of in splits}) > 1
    assert {name: len(of) for name, of in splits[0].items()} == {"train": 3, "val": 1, "test": 1}
    assert drawn[0].source == "own data; people in turn: a, b, c, d, e"
    asked = arrays.dataset("own", X, Y, WHO, split={"train": "ace", "val": "b", "test": "d"}, **ABOUT)
    assert asked.split == {"train": (1, 3, 5), "val": (2,), "test": (4,)}
    assert arrays.dataset("own", X, Y, np.repeat([9, 7, 5, 3, 1], 12), **ABOUT).split.keys() == set(SPLITS)
    for who, part in [((1, 2, 3, 4, 5), 4), ((1, 2, 3, 4, 5), {4.0}), (("p1", "p2", "p3", "p4", "p5"), "p4")]:
        alone = {"train": who[:3], "val": part, "test": who[4]}
        assert arrays.dataset("own", X, Y, np.repeat(who, 12), split=alone, **ABOUT).split["val"] == (4,)


def test_activities_are_named_in_order_or_are_the_labels_themselves():
    found = arrays.dataset("own", X, Y, WHO, activities=[2, 0, 1], **ABOUT)
    assert found.activities == ("2", "0", "1") and [item.activity for item in found.read()][:3] == [1, 2, 0]
    found = arrays.dataset("own", X, Y, WHO, activities=np.array(["walk", "sit", "run"]), **ABOUT)
    assert found.activities == ("walk", "sit", "run") and [item.activity for item in found.read()][:3] == [0, 1, 2]


def test_windows_are_cut_each_by_itself_and_only_when_asked_for():
    """Against a loop: no window mixes two of the given ones."""
    own = WindowSettings(30.0, 20, 10)
    found = from_arrays(X, Y, WHO, windows=own, **ABOUT).test
    expected = []
    for window in X[PEOPLE[found.subject[0] - 1] == WHO]:
        signal = windowing.resample(window.T, 50, 30)
        expected += [signal[k : k + 20].T for k in range(0, len(signal) - 19, 10)]
    np.testing.assert_array_equal(found.x, expected)
    kept = archive.generate(arrays.dataset("own", X, Y, WHO, **ABOUT))
    with pytest.raises(DataError, match=r"a window lasts 2.13 s, the longest piece 1.6 s"):
        windowing.cut(kept, WindowSettings(30.0, 64, 32))


def test_windows_of_one_person_and_activity_are_one_recording():
    found = from_arrays(X, Y, WHO, **ABOUT).test
    assert found.recording.tolist() == np.repeat(found.recording[0] + np.arange(3), 4).tolist()
    assert found.offset.tolist() == [0, 80, 160, 240] * 3


# --------------------------------------------------------------------------------------- refused, or warned of


def changed(x=X, y=Y, who=WHO, **about):
    return lambda: from_arrays(x, y, who, **(ABOUT | about))


def timed(index=None, rate_hz=None, rates=None):
    """The table with another index of each person, or at other rates, read."""
    table = tabled(rates)
    table = table if index is None else table.set_index(np.tile(index, 5))
    return lambda: from_arrays(table, "act", "who", windows=CUT, rate_hz=rate_hz)


def holed() -> np.ndarray:
    x = X.copy()
    x[7, 2, 3] = np.nan
    return x


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (changed(X.transpose(0, 2, 1)), r"\(window, 6, time\) for 6 axes, not float32 \(60, 80, 6\); x.transpose"),
        (changed(X[:, :5]), r"for 6 axes, not float32 \(60, 5, 80\)"),
        (changed(X.astype(object)), "should be numbers .* not object"),
        (changed(X[:0], Y[:0], WHO[:0]), r"not float32 \(0, 6, 80\)"),
        (changed(RECORDINGS, list(range(5)), PEOPLE), "recordings need windows=WindowSettings"),
        (changed([r[:, :5] for r in RECORDINGS], range(5), PEOPLE, windows=CUT), r"\(time, 6\), each recording, for 6"),
        (changed([r.T for r in RECORDINGS], range(5), PEOPLE, windows=CUT), r"6 axes, not .*; x\.T of each puts"),
        (lambda: arrays.dataset(X, Y, WHO, **ABOUT), "a data set begins with its name: dataset"),
        (changed(RECORDINGS, [np.zeros(3)] * 5, PEOPLE, windows=CUT), "a recording of 960 samples has 3 activities"),
        (changed(y=Y[:5]), "60 windows or recordings have 5 activities and 60 people; give one each"),
        (changed(y=None), "it needs y, an activity each$"),
        (changed(who=None), "it needs subject, a person each$"),
        (changed(rate_hz=None), "it needs rate_hz, samples a second$"),
        (changed(y=np.where(Y == 2, np.nan, Y)), "activity nan is neither text nor a whole number; leave"),
        (changed(y=pd.array([None, *Y[1:]], dtype="Int64")), "activity <NA> is neither text nor a whole number; leave"),
        (changed(y=np.ma.masked_equal(Y, 2)), "activity None is neither text nor a whole number; leave"),
        (changed(y=list(np.ma.masked_equal(Y, 2))), "activity masked is neither text nor a whole number; leave"),
        (changed(y=np.eye(3)[Y]), r"activity: an array \(60, 3\); give one label each, as y.argmax\(1\) of"),
        (changed(y=3), "activity: give one label each, in a list or an array, not int"),
        (changed(RECORDINGS, 3, PEOPLE, windows=CUT), "activity: give one label each, in a list or an array, not int"),
        (changed(who=set(range(60))), "person: give one label each, in a list or an array, not set"),
        (changed(y=Y + 1, activities=("walk", "sit", "run")), r"activity 1 has no name; activities=\{1: name, ...\}"),
        (changed(activities={0: "walk", 1: "sit"}), "activity 2 has no name"),
        (changed(activities=[1, 2, 3]), "activity 0 has no name"),
        (changed(activities={"walk", "sit", "run"}), r"activities should be names in order, or \{label: .* not set"),
        (changed(activities=3), r"activities should be names in order, or \{label: name\}, not int"),
        (changed(activities="wsr"), r"activities should be names in order, or \{label: name\}, not str"),
        (changed(unit=None), r"unit should be text, or \{sensor: text\}, not None"),
        (changed(unit={"back": "g", "thigh": None}), r"unit should be text, or \{sensor: text\}, not None"),
        (changed(rate_hz=[50]), r"rate_hz should be a number above 0, not \[50\]"),
        (changed(windows=(50, 80, 80)), r"windows should be WindowSettings\(rate_hz, length, step\), not tuple"),
        (changed(windows=WindowSettings(50, 80, 0)), "step of windows should be a whole number above 0, not 0"),
        (changed(windows=WindowSettings(50, -80, 8)), "length of windows should be a whole number above 0, not -80"),
        (changed(windows=WindowSettings(50, 40.0, 8)), r"length of windows should be a whole number .* 40\.0"),
        (changed(windows=WindowSettings("50", 40, 8)), "rate_hz of windows should be a number above 0, not '50'"),
        (changed(windows=WindowSettings(50, 81, 8)), "no window for the train subjects .*; a window lasts 1.62 s"),
        (changed(axes={"back": 3, "thigh": 3}), r"axes should be \{sensor: components\}"),
        (changed(axes="xyzxyz"), r"axes should be \{sensor: components\}"),
        (changed(axes=None), r"axes should be \{sensor: components\}"),
        (changed(axes=("x", "y", "z") * 2), r"axes should be \{sensor: components\}"),
        (changed(axes=("arm x",) * 6), "axes should be names, each once"),
        (changed(unit={"back": "g"}), "unit names back; the sensors are back, thigh"),
        (changed(holed()), "window 7 holds NaN, infinity or more than float32 can; leave it out or fill it"),
        (changed(np.ma.masked_array(X, np.isnan(holed()))), "window 7 holds NaN"),
        (changed(np.ma.masked_array(X * 100, np.isnan(holed())).astype(int)), "window 7 holds NaN"),
        (
            changed(tabled().assign(**{"back x": pd.array([None] * 4800, "Float64")}), "act", "who", windows=CUT),
            "recording 0, row 0 holds NaN",
        ),
        (changed(torch.tensor(X, device="meta")), "x is no array of numbers .*; make it one"),
        (changed(None), "x should be an array, a list of recordings, a table or a folder, not NoneType"),
        (changed(tabled(), Y, "who"), "y and subject name two columns, and are no ndarray; assign it"),
        (changed(pd.concat([tabled(), tabled()["act"]], axis=1), "act", "who"), "the table has 2 columns 'act'"),
        (changed(X.astype(float) * 1e40), "window 0 holds NaN, infinity or more"),
        (changed(who=np.repeat([1, 2], 30)), "2 people cannot train, validate and test; at least three are needed"),
        (changed(split={"train": "abc", "val": "d", "test": "ae"}), "person a stands in two splits"),
        (changed(split={"train": "abc", "val": "d", "test": ""}), "'e' is in the data and not in"),
        (changed(split={"train": "abc", "val": "d", "test": [5]}), "5 is in the split and not in the data; .* 'a'"),
        (changed(split={"train": "abc", "val": "d", "test": None}), "test: person: give one label each, .* NoneType"),
        (changed(split={"train": "abc", "val": "d", "test": "p5"}), "person 'p5' is in the split and not in the data"),
        (changed(split=0.2), "split should map train, val, test to people, not float"),
        (changed(split={"train": "abcd", "test": "e"}), "split should map train, val, test to people, not train, test"),
        (lambda: from_arrays("nowhere", **ABOUT), "there is no X.npy in nowhere, which should hold"),
        (lambda: from_arrays(pd.DataFrame({"w x": [1.0]}), "act", "who"), "the table has no column 'act'"),
        (
            lambda: from_arrays(pd.DataFrame({"w x": [1.0], "act": 0, "who": 0}), "act", "who"),
            "the table's index is no time; give rate_hz, or seconds or dates",
        ),
        (
            lambda: from_arrays(pd.DataFrame({"w x": 1.0, "a": 0, "p": 0}, np.arange(99) ** 1.5 / 99), "a", "p"),
            "samples are not evenly spaced by .* s; resample the table before",
        ),
        (timed(np.arange(960)), "says 1 s from sample to sample, as if .*; give rate_hz for sample numbers"),
        (timed(np.arange(960) * 20), r"says 20 s from sample to sample, as if .* x\.index / 1000 as index for milli"),
        (timed(pd.to_datetime(np.arange(960) * 20)), "says 2e-08 s from sample to sample"),
        (timed(np.arange(960) * 20, 50), "who a, act 0: its samples are 20 s apart, not 0.02 s as rate_hz says; resam"),
        (timed(np.arange(960) / 50, 100), "who a, act 0: its samples are 0.02 s apart, not 0.01 s as rate_hz says"),
        (timed(rates={"a": 25, "b": 25}), "who a, act 0: its samples are 0.04 s apart, not 0.02 s apart as most are"),
        (timed(rates={"c": 100}), "who c, act 0: its samples are 0.01 s apart, not 0.02 s apart"),
        (timed(rates={"e": 54}), "who e, act 0: its samples are 0.01852 s apart, not 0.02 s apart"),
        (lambda: from_arrays(tabled()[:0], "act", "who"), "not evenly spaced by nan s"),
        (changed(title="<img src=x>"), "title: '<img src=x>' is no plain text of one line"),
        (changed(name="../x"), "its name becomes a folder's; use letters, digits, - and _"),
        (changed(name="x-approximate"), "its name becomes a folder's"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_one_clear_error(call, said):
    with pytest.raises((DataError, SettingsError), match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_lines_of_readme_make_windows_for_the_page():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"## Your own data.*?```python\n(.*?)```", text.partition("## Your own network")[0], re.S)
    names = {"x": X, "y": Y, "subject": WHO}
    *before, last = ast.parse(shown).body
    with pytest.warns(UserWarning):  # these are no accelerations in m/s^2
        exec(compile(ast.Module(before, []), "README.md", "exec"), names)
    assert names["windows"].axes[3] == "wrist turn x" and names["windows"].units == {"wrist turn": "rad/s"}
    called = [ast.unparse(argument) for argument in last.value.args]
    assert ast.unparse(last.value.func) == "harvis_utils.explain" and called == ["network", "'last conv'", "windows"]


def test_an_array_of_python_objects_is_not_unpickled_and_an_empty_file_is_none(tmp_path):
    for file, values in zip(arrays.FILES, (X, Y, WHO.astype(object)), strict=True):
        np.save(tmp_path / file, values, allow_pickle=True)
    with pytest.raises(DataError, match=r"pid\.npy is no array of numbers or text .*; save it as one"):
        from_arrays(tmp_path, **ABOUT)
    (tmp_path / "X.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"X\.npy is no array of numbers or text .*; save it as one"):
        from_arrays(tmp_path, **ABOUT)


def test_sessions_that_are_not_what_they_should_be_are_refused_and_people_stay_apart():
    activities = pd.DataFrame({"activity_id": [0, 1], "activity_name": ["walk", "sit"]})
    about = pd.DataFrame({"session_id": range(5), "subject_id": [*PEOPLE], "activity_id": [0, 1, 0, 1, 0]})
    sessions = dict(enumerate(table.assign(timestamp=np.arange(960) / 50) for table in TABLES))
    table = arrays.of_sessions(activities, about, sessions)
    assert dict.fromkeys(table.person) == dict.fromkeys(PEOPLE)
    for people, said in {
        (1, 1.2, 1.7, 3, 4): "person 1.2 is neither",
        (np.nan, 1, 2, 3, 4): "its person nan is",
    }.items():
        with pytest.raises(DataError, match=said):
            table = arrays.of_sessions(activities, about.assign(subject_id=people), sessions)
            from_arrays(table, "activity", "person", windows=CUT)
    for three, said in [
        ((activities.replace("sit", np.nan), about, sessions), "session 1, its activity 1 or its person b is n"),
        ((activities, about.drop(columns="subject_id"), sessions), "about has no column 'subject_id'; its columns"),
        ((activities, about[:0], sessions), "about names no session"),
        ((activities, about, list(sessions.values())), "sessions should map each session_id to a table, not list"),
        ((activities, about, sessions | {2: TABLES[2]}), "session 2 has no column 'timestamp'; its columns: back x"),
        ((activities, about, sessions | {2: TABLES[2].to_numpy()}), "session 2 has no column 'timestamp'"),
    ]:
        with pytest.raises(DataError, match=said):
            arrays.of_sessions(*three)


ORDER = np.random.default_rng(0).permutation(60)
NORMED = np.concatenate([X[:, :3], np.linalg.norm(X[:, :3], axis=1, keepdims=True)], 1)
LONG = WindowSettings(50, 800, 80)
LOUD = (X[:, :, :1] + np.where(np.arange(80) % 2, 0.3, -0.3)).astype(np.float32)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            changed(X * 1000),
            "own: back reads up to .* as if it were in mg; thigh .* Thresholds in G may mean nothing here",
        ),
        (changed(X * 9.80665), r"own: back has a median length of .* as if it were in m/s\^2"),
        (changed(X * 9.80665, axes=[f"back {c}" for c in "abcdef"]), r"own: back has .* as if it were in m/s\^2"),
        (changed(X[:, 2:3] * 9.80665, axes={"back": "z"}), r"own: back has .* as if it were in m/s\^2"),
        (changed(NORMED * 9.80665, axes={"back": "xyzn"}), r"own: back has .* as if it were in m/s\^2"),
        (changed(X - X.mean(2, keepdims=True)), r"the unit is another one: unit=\{'back': \.\.\.\}"),
        (changed(unit={"back": "g", "thigh": "ms2"}), "unknown unit 'ms2' of thigh: its values stay as they are"),
        (
            changed(y=np.where(WHO == "a", 2, 0), activities={0: "walk", 2: "run"}),
            "no (train|val|test) window of 'run'",
        ),
        (changed(LOUD, windows=WindowSettings(30.0, 20, 20)), "own: 100% of the power lies above 15 Hz and folds"),
        (changed(X[ORDER], Y[ORDER], WHO[ORDER]), "windows of one person and activity do not stand together"),
        (
            changed(rate_hz=20, windows=WindowSettings(50, 80, 80)),
            "from 20 to 50 Hz, most samples are made up by inter",
        ),
        (
            changed([RECORDINGS[0][:550], *RECORDINGS], ["r"] * 6, [*"fabcde"], windows=LONG),
            "1 of 6 recordings are too short for one window; with them 10% of .* lost, all of people 6",
        ),
        (
            changed([r[:550] for r in RECORDINGS] + RECORDINGS, ["r"] * 10, [*PEOPLE * 2], windows=LONG),
            "5 of 10 recordings are too short for one window; with them 36% of all samples are lost$",
        ),
        (changed(X[:, :, :10]), r"people with less than 10 s of recordings: 1 \(2.4 s\), 2"),
    ],
)
def test_what_is_implausible_is_warned_of(call, said):
    with pytest.warns(UserWarning, match=said):
        call()


# ------------------------------------------------------------------------------------------- modules of one's own

MODULE = """
from harvis_utils.data import arrays
DATASET = arrays.dataset("{name}", {folder!r}, rate_hz=50, axes={{"back": "xyz", "thigh": "xyz"}})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that puts modules into the folder of own data sets."""
    monkeypatch.setattr(data, "__path__", list(data.__path__))
    monkeypatch.setenv("HARVIS_DATASETS", str(tmp_path / "sets"))
    (tmp_path / "sets").mkdir()
    put = []

    def write(stem: str, source: str):
        put.append(stem)
        sys.modules.pop(f"harvis_utils.data.{stem}", None)
        path = tmp_path / "sets" / f"{stem}.py"
        path.write_text(source)
        return path

    yield write
    for stem in set(put) - {"archive"}:
        sys.modules.pop(f"harvis_utils.data.{stem}", None)


@pytest.fixture
def mine(own, tmp_path):
    """The data set "mine" of arrays in a folder; returns its module and that folder."""
    folder = tmp_path / "arrays"
    folder.mkdir()
    for file, values in zip(arrays.FILES, (X, Y, WHO), strict=True):
        np.save(folder / file, values)
    return own("mine", MODULE.format(name="mine", folder=str(folder))), folder


def test_a_module_of_a_few_lines_hands_arrays_to_the_chain(mine):
    cfg = kinds.fitted(load_settings("quick", "mine"))
    assert cfg.windows == CUT and kinds.fitted(load_settings()) == load_settings()
    run = Stages(cfg)
    assert run.data.digest == from_arrays(X, Y, WHO, **ABOUT).digest
    assert run.recordings.caveat == run.data.caveat == "own data, not verified" and not run.recordings.verified
    assert "mine" not in archive.here() and "synthetic" in archive.here(), "others' axes need not be these"
    with pytest.raises(SettingsError, match="unknown data set 'mine-approximate'"):
        kinds.check_name("mine-approximate")


def test_the_chain_depends_on_the_module_and_on_the_arrays(mine):
    module, folder = mine
    assert module in stamps.package_files()
    cfg = load_settings("quick", "mine")
    before = stamps.raw_data(cfg)
    assert before == stamps.raw_data(cfg) and stamps.raw_data(load_settings()) is None
    np.save(folder / "X.npy", X + np.float32(0.001))
    sys.modules.pop("harvis_utils.data.mine")  # as in the next process
    assert stamps.raw_data(cfg) != before


def test_a_module_that_cannot_be_used_stops_no_other_and_is_named_when_asked_for(own, mine, monkeypatch):
    own("broken", "import no_such_package")
    own("leaves", "import sys; sys.exit(1)")
    own("other", "DATASET = 3")
    own("archive", "DATASET = None")
    own("twin", MODULE.format(name="mine", folder=str(mine[1])))
    assert kinds.check_name("synthetic").made_up
    for name, said in {
        "broken": "data set 'broken' cannot be used: broken.py: ModuleNotFoundError: No module named 'no_such_package'",
        "leaves": "data set 'leaves' cannot be used: leaves.py: SystemExit: 1",
        "other": "other.py: DATASET is a int, not a kinds.Dataset",
        "archive": "archive.py has the name of a module of the package; call it otherwise",
        "mine": "twin.py defines 'mine' once more; call one of the two otherwise",
        "nothing": "unknown data set 'nothing'; .*; modules that cannot be used: .*broken.py: ModuleNotFoundError",
    }.items():
        with pytest.raises(SettingsError, match=said):
            kinds.check_name(name)
    monkeypatch.setenv("HARVIS_DATASETS", "nowhere")
    with pytest.raises(SettingsError, match="HARVIS_DATASETS names .*nowhere, which is no folder"):
        kinds.registry()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": {"train": (1,), "test": (2,)}}, "split should map train, val and test to people"),
        ({"activities": ("walk", "walk")}, "activities should be names, each once"),
        ({"activities": ("walk\n# x",)}, "is no plain text of one line"),
        ({"axes": ()}, "axes should be names"),
        ({"rate_hz": 0}, "rate_hz should be a number above 0, not 0"),
    ],
)
def test_a_description_that_could_not_be_used_is_refused(make_recordings, changes, said):
    with pytest.raises(SettingsError, match=said):
        dataclasses.replace(make_recordings({(1, 0): 30}).dataset, **changes)


@pytest.mark.usefixtures("one_thread")
def test_the_packages_functions_work_on_them(mine, cfg):
    """Training, statistics, maximization and scores, at the windows' own rate and length."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        run = Stages(kinds.fitted(dataclasses.replace(cfg, dataset="mine")))
        assert run.signals.sizes["time"] == 80 and np.isfinite(run.signals["signal"]).all()
        assert run.scores.sizes["unit"] == 6 and len(run.networks[0].predicted["test"]) == len(run.data.test)
