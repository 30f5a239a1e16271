"""Recovery of planted motifs: the fast routine against a plain one, and what the measure must and must not see."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import motifs, similarity
from harvis_utils.settings import load_settings


def naive_ncc(shape, signal):
    """The definition, one shift at a time."""
    best = -np.inf
    for start in range(len(signal) - len(shape) + 1):
        piece = signal[start : start + len(shape)]
        constant = max(piece) - min(piece) <= similarity.CONSTANT_G
        best = max(best, 0.0 if constant else np.corrcoef(shape, piece)[0, 1])
    return best


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_signals=st.integers(1, 5),
    n_time=st.integers(2, 30),
    flat=st.booleans(),
    single=st.booleans(),
    data=st.data(),
)
def test_best_match_equals_the_definition(seed, n_signals, n_time, flat, single, data):
    rng = np.random.default_rng(seed)
    signals = rng.normal(scale=data.draw(st.sampled_from([0.01, 1.0, 50.0])), size=(n_signals, n_time))
    if flat:  # some constant pieces, at a level of their own
        signals[:, : n_time // 2] = 1.0
        signals[0] = 0.7
    if single:
        signals = signals.astype(np.float32)
    shapes = [rng.normal(size=data.draw(st.integers(2, n_time))) for _ in range(3)]
    expected = [[naive_ncc(shape, signal) for signal in signals.astype(np.float64)] for shape in shapes]
    np.testing.assert_allclose(motifs.best_match(shapes, signals), expected, atol=1e-9)
    match, start = motifs.best_places(shapes, signals)
    np.testing.assert_array_equal(match, motifs.best_match(shapes, signals))
    for k, shape in enumerate(shapes):
        for row, at in enumerate(start[k]):
            piece = signals[row, at : at + len(shape)].astype(np.float64)
            assert len(piece) == len(shape) and naive_ncc(shape, piece) == pytest.approx(match[k, row], abs=1e-9)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), length=st.integers(3, 13), gain=st.floats(0.05, 20.0), level=st.floats(-5.0, 5.0)
)
def test_a_planted_shape_is_found_whatever_its_strength_and_level(seed, length, gain, level):
    rng = np.random.default_rng(seed)
    shape, signal = rng.normal(size=length), rng.normal(size=30)
    start = rng.integers(0, 30 - length + 1)
    signal[start : start + length] = level + gain * shape
    assert motifs.best_match([shape], signal[None])[0, 0] == pytest.approx(1.0, abs=1e-6)


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    shapes, signals = [rng.normal(size=5), rng.normal(size=9)], rng.normal(size=(23, 30))
    whole = motifs.best_match(shapes, signals)
    monkeypatch.setattr(motifs, "CHUNK", 4)
    np.testing.assert_array_equal(motifs.best_match(shapes, signals), whole)


@pytest.mark.parametrize(
    ("shapes", "signals", "message"),
    [
        ([np.ones(5)], np.zeros((2, 30)), "not constant"),
        ([np.array([0.0, np.nan, 1.0])], np.zeros((2, 30)), "finite"),
        ([np.arange(31.0)], np.zeros((2, 30)), "2 to 30 samples"),
        ([np.arange(5.0)], np.full((2, 30), np.nan), "2 of 2 signals hold NaN or infinity"),
        ([np.arange(5.0)], np.zeros(30), r"\(signal, time\)"),
    ],
)
def test_unusable_input_is_named(shapes, signals, message):
    with pytest.raises(ValueError, match=message):
        motifs.best_match(shapes, signals)


LAYERS = ("conv1", "conv2", "conv3")


def made_signals(
    seeds=(0, 1), units=4, methods=("naive", "L2+TV", "L2+TV+EAP+clip"), presets=("literal", "calibrated")
):
    dims = {
        "seed": len(seeds),
        "layer": 3,
        "preset": len(presets),
        "technique": len(methods),
        "unit": units,
        "time": 30,
    }
    values = 0.01 * np.random.default_rng(3).normal(size=tuple(dims.values()))
    coords = {"seed": list(seeds), "layer": list(LAYERS), "preset": list(presets), "technique": list(methods)}
    return xr.Dataset({"signal": (tuple(dims), values)}, coords=coords)


def recovery(signals, random_signals):
    rng = np.random.default_rng(4)
    shapes = (rng.normal(size=5), rng.normal(size=9), rng.normal(size=13))
    truth = SimpleNamespace(names=("short", "middle", "long"), shapes=shapes, layers=LAYERS)
    cfg = load_settings("quick", "synthetic")
    data = SimpleNamespace(train=SimpleNamespace(length=30))
    dataset = SimpleNamespace(motifs=lambda: truth)
    return shapes, lambda: motifs.motif_recovery(cfg, data, signals, random_signals, dataset)


def test_motif_recovery_finds_what_one_unit_shows_in_a_layer_that_can_hold_it():
    signals = made_signals()
    control = made_signals(methods=("L2+TV+EAP+clip",), presets=("calibrated",))
    shapes, call = recovery(signals, control)
    ours = {"preset": "calibrated", "technique": "L2+TV+EAP+clip"}
    signals["signal"].loc[{**ours, "layer": "conv3", "unit": 2}][:, 4:13] = shapes[1]  # both networks, deeper
    signals["signal"].loc[{**ours, "layer": "conv2", "unit": 1}][:, 4:17] = shapes[2]  # too shallow: must not count
    signals["signal"].loc[{**ours, "layer": "conv1", "unit": 0, "seed": 1}][4:9] = shapes[0]  # one network only
    signals["signal"].loc[{"preset": "literal", "technique": "naive", "layer": "conv3"}][..., 4:13] = shapes[1]
    table = call()
    assert table.loc["middle", "proposed"] == pytest.approx(1) and table.loc["middle", "proposed layer"] == "conv3"
    assert table.loc["middle", "naive"] < 0.999  # the literal preset is not what is asked for
    assert table.loc["long", "proposed"] < 0.999
    assert table.loc["short", "proposed max"] == pytest.approx(1)
    assert table.loc["short", "proposed min"] < 0.9999
    low, high = table.loc["short", ["proposed min", "proposed max"]]
    assert table.loc["short", "proposed"] == pytest.approx((low + high) / 2)
    assert list(table["n_signals"]) == [12, 8, 4] and list(table["first layer"]) == list(LAYERS)
    assert table["proposed min"].le(table["proposed"]).all()


def test_motif_recovery_agrees_with_a_plain_search():
    signals, control = made_signals(), made_signals(methods=("L2+TV+EAP+clip",), presets=("calibrated",))
    shapes, call = recovery(signals, control.isel(preset=0, technique=0, drop=True))
    table = call()
    columns = {
        "naive": signals["signal"].sel(preset="calibrated", technique="naive"),
        "random weights": control["signal"].isel(preset=0, technique=0),
    }
    start = starting_signal(load_settings("quick", "synthetic").maximization, 30)
    for k, motif in enumerate(table.index):
        for name, of in columns.items():
            each = [
                max(naive_ncc(shapes[k], x) for layer in LAYERS[k:] for x in of.sel(seed=s, layer=layer).values)
                for s in (0, 1)
            ]
            assert table.loc[motif, name] == pytest.approx(np.mean(each))
            assert tuple(table.loc[motif, [f"{name} min", f"{name} max"]]) == pytest.approx((min(each), max(each)))
        assert table.loc[motif, "starting sine"] == pytest.approx(naive_ncc(shapes[k], start))


def test_data_without_planted_motifs_have_no_recovery():
    none = SimpleNamespace(motifs=None)
    assert motifs.motif_recovery(load_settings(), None, None, None, none) is None
