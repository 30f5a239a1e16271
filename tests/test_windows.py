"""Recordings turned into windows: against readable loops."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.data import dsads, windowing
from harvis_utils.data.kinds import DataError
from harvis_utils.data.windowing import SPLITS
from harvis_utils.settings import WindowSettings

COLUMNS = ("activity", "subject", "recording", "offset")


def naive_resample(signal: np.ndarray, rate_hz: float, to_hz: float) -> np.ndarray:
    """One value at a time, on the straight line between its two neighbours."""
    rows, k = [], 0
    while k * rate_hz / to_hz <= len(signal) - 1 + 1e-9:
        at = k * rate_hz / to_hz
        left = min(int(at), len(signal) - 1)
        right = min(left + 1, len(signal) - 1)
        rows.append([(1 - (at - left)) * axis[left] + (at - left) * axis[right] for axis in signal.T.astype(float)])
        k += 1
    return np.array(rows)


def naive_cut(recordings, split: str, own: WindowSettings) -> list[tuple]:
    """Every window of a split with its labels: each recording by itself, one start after the other."""
    found = []
    for index, item in enumerate(recordings.items):
        if item.subject in recordings.dataset.split[split]:
            signal = naive_resample(item.signal, recordings.dataset.rate_hz, own.rate_hz)
            for start in range(0, len(signal) - own.length + 1, own.step):
                found.append((signal[start : start + own.length].T, item.activity, item.subject, index, start))
    return found


rates = st.sampled_from([20.0, 25.0, 30.0, 50.0, 64.0, 33.3])


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 200), axes=st.integers(1, 4), rate=rates, to=rates)
def test_resample_against_its_twin(seed, n, axes, rate, to):
    signal = np.random.default_rng(seed).normal(size=(n, axes)).astype(np.float32)
    found, twin = windowing.resample(signal, rate, to), naive_resample(signal, rate, to)
    assert found.dtype == np.float32 and found.shape == twin.shape
    np.testing.assert_allclose(found, twin, atol=1e-5)


def test_five_minutes_at_25_hz_give_598_windows(make_recordings):
    recordings = make_recordings({(s, 0): 7500 for s in (1, 3, 4)}, rate_hz=25.0)
    assert windowing.resample(recordings.items[0].signal, 25.0, 30.0).shape == (8999, 3)
    assert windowing.cut(recordings).counts() == {"train": 598, "val": 598, "test": 598}


@settings(max_examples=30)
@given(data=st.data())
def test_cut_against_its_twin(make_recordings, data):
    """Recordings of all lengths, also shorter than a window: no window mixes two, none is lost."""
    own = WindowSettings(
        rate_hz=data.draw(st.sampled_from([25.0, 30.0, 40.0])),
        length=data.draw(st.integers(2, 12)),
        step=data.draw(st.integers(1, 14)),
    )
    lengths = {(s, a): data.draw(st.integers(1, 60)) for s in (1, 2, 3, 4) for a in range(2)}
    lengths |= {(s, 2): 60 for s in (1, 3, 4)}  # so that no split is empty
    recordings = make_recordings(lengths, rate_hz=data.draw(st.sampled_from([25.0, 30.0, 50.0])), n_axes=2)
    found = windowing.cut(recordings, own)
    table = found.labels().set_index("split")
    for name in SPLITS:
        split, twin = getattr(found, name), naive_cut(recordings, name, own)
        assert len(split) == len(twin) == found.counts()[name]
        x, *labels = zip(*twin, strict=True)
        np.testing.assert_allclose(split.x, x, atol=1e-5)
        for column, expected in zip(COLUMNS, labels, strict=True):
            assert getattr(split, column).tolist() == list(expected)
            names = [f"activity {i}" for i in expected] if column == "activity" else list(expected)
            assert table.loc[[name], column].tolist() == names


def test_x_and_segments_share_the_samples_of_one_series(tiny_windows):
    split = tiny_windows.train
    assert split.x.shape == (48, 3, 30) and split.x.dtype == np.float32
    assert split.series.shape == (6 * 135, 3) and split.segments.shape == (48 * 3, 30)
    for i in (0, 1, 2, 3, 50, 143):
        start = split.start[i // 3]
        np.testing.assert_array_equal(split.segments[i], split.x[i // 3, i % 3])
        np.testing.assert_array_equal(split.segments[i], split.series[start : start + 30, i % 3])


def test_what_windows_say_about_themselves(make_recordings, tiny_windows):
    assert (tiny_windows.caveat, tiny_windows.rate_hz) == ("made-up data", 30)
    assert tiny_windows.axes == ("axis 0", "axis 1", "axis 2") and len(tiny_windows.activities) == 3
    assert [sorted(set(getattr(tiny_windows, name).subject)) for name in SPLITS] == [[1, 2], [3], [4]]
    own = replace(make_recordings({(s, 0): 40 for s in (1, 3, 4)}, made_up=False), verified=False)
    assert windowing.cut(own).caveat == "own data, not verified"
    archived = replace(own, dataset=replace(own.dataset, archive=dsads.DATASET.archive))
    assert windowing.cut(archived).caveat == "approximate data (archive not verified)"
    assert windowing.cut(replace(archived, verified=True)).caveat == ""


def test_a_subject_in_two_splits_is_refused(make_recordings):
    recordings = make_recordings({(s, 0): 40 for s in (1, 2, 3)}, split={"train": (1, 2), "val": (3,), "test": (2,)})
    with pytest.raises(DataError, match="made: a subject stands in two splits: .*'test': \\(2,\\)"):
        windowing.cut(recordings)


@pytest.mark.parametrize("empty", SPLITS)
@pytest.mark.parametrize("how", ["absent", "too short"])
def test_an_empty_split_is_refused(make_recordings, empty, how):
    of = {"train": (1, 2), "val": (3,), "test": (4,)}
    lengths = {(s, 0): 29 if s in of[empty] else 60 for s in (1, 2, 3, 4) if how == "too short" or s not in of[empty]}
    with pytest.raises(DataError, match=f"made: no window for the {empty} subjects "):
        windowing.cut(make_recordings(lengths))


def test_threshold_against_its_twin(make_recordings):
    split = windowing.cut(make_recordings({(s, 0): 77 for s in (1, 3, 4)}, n_axes=4)).train
    values = [abs(float(v)) for row in split.series for v in row]
    mean = sum(values) / len(values)
    std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    assert windowing.amplitude_threshold(split) == pytest.approx(mean + 2 * std, rel=1e-9)


def test_the_digest_follows_all_that_the_windows_are_and_nothing_else(make_recordings, tiny_windows):
    """Each array of each split, the names and the rate; not the caveat, nor where the windows came from."""
    changed = [replace(tiny_windows, rate_hz=31.0), tiny_windows.every(2), tiny_windows.every(3)]
    for names in ("activities", "axes"):
        changed.append(replace(tiny_windows, **{names: ("x", *getattr(tiny_windows, names)[1:])}))
    for name in SPLITS:
        split = getattr(tiny_windows, name)
        for field in fields(split):
            value = copy.copy(getattr(split, field.name))
            if field.name == "length":
                value += 1
            else:
                value.flat[-1] += 1
            changed.append(replace(tiny_windows, **{name: replace(split, **{field.name: value})}))
    assert len({w.digest for w in changed} | {tiny_windows.digest}) == len(changed) + 1
    assert replace(tiny_windows, caveat="other").digest == tiny_windows.digest
    lengths = {(s, a): 30 + 15 * 7 for s in (1, 2, 3, 4) for a in range(3)}
    again = replace(make_recordings(lengths), digest="another archive")
    assert windowing.cut(again).digest == tiny_windows.digest == tiny_windows.every(1).digest


def test_every_third_window(tiny_windows):
    split, third = tiny_windows.train, tiny_windows.every(3)
    assert third.counts() == {"train": 16, "val": 8, "test": 8}
    assert tiny_windows.thinned(16).digest == third.digest and tiny_windows.thinned(10**6).counts()["train"] == 48
    np.testing.assert_array_equal(third.train.x, split.x[::3])
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(third.train, column), getattr(split, column)[::3])
