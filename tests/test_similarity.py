"""Ssim, its search, its controls and its summaries against readable twins."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_search import naive_search
from other_networks import case, made_windows

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.coordinates import Scale
from harvis_utils.maximization.starting import spectrum_noise
from harvis_utils.metrics import realism, signal_measures, similarity
from harvis_utils.settings import SimilaritySettings


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 12))
def test_best_piece_equals_a_loop(seed, length):
    rng = np.random.default_rng(seed)
    maps = np.maximum(rng.normal(size=(4, 12)), 0).round() / 4  # sums of quarters are exact, so ties are ties
    signals = rng.normal(size=(4, 12))
    start, pieces = similarity.best_piece(signals, maps, length)
    for row in range(4):
        sums = [sum(maps[row, j : j + length]) for j in range(12 - length + 1)]
        best = max(sums)
        first = sums.index(best)
        assert start[row] == first and np.array_equal(pieces[row], signals[row, first : first + length])


def test_spectral_measures_of_known_signals():
    time = np.arange(30) / 30
    slow, fast = np.sin(2 * np.pi * 2 * time), np.sin(2 * np.pi * 8 * time)
    found = similarity.effective_frequencies(np.stack([slow, slow + fast]))
    assert np.allclose(found, [1, 2], atol=1e-6)
    assert np.allclose(
        similarity.high_frequency_share(np.stack([slow, fast, slow + fast]), 30.0), [0, 1, 0.5], atol=1e-9
    )
    assert np.isnan(similarity.effective_frequencies(np.ones((1, 30)))).all()


def test_shapes_are_called_by_their_names():
    time = np.linspace(-1, 1, 10)
    bump = np.exp(-(time**2) / 0.2)
    pieces = np.stack([time, 5 - 3 * time, bump, 1 - bump, np.sin(12 * time), np.zeros(10)])
    names = ["rising edge", "falling edge", "peak", "valley", "other", "other"]
    assert list(similarity.shape_names(pieces)) == names


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_correlation_equals_numpy(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 3, 8))
    expected = [np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)]
    assert np.allclose(similarity.correlation(a, b), expected)
    assert np.isnan(similarity.correlation(a, np.ones((3, 8)))).all()


def test_spectrum_noise_has_the_mean_power_spectrum():
    rng = np.random.default_rng(0)
    segments = np.cumsum(rng.normal(size=(200, 30)), axis=1)
    noise = spectrum_noise(segments, 20_000, rng)
    wanted, found = ((np.abs(np.fft.rfft(v, axis=1)) ** 2).mean(0) for v in (segments, noise))
    assert np.allclose(found / wanted, 1, atol=0.05)


def made_scores(failed_unit=None, dead_unit=None):
    """Scores of three units of one layer on a made split of 60 single-axis windows."""
    rng = np.random.default_rng(0)
    series = rng.normal(size=(60 * 30, 1)).astype(np.float32)
    column = np.zeros(60, int)
    train = Split(series, np.arange(60) * 30, np.arange(60) % 3, column, column, column, 30)
    x = rng.normal(size=(1, 3, 30)).astype(np.float32)
    if failed_unit is not None:
        x[0, failed_unit, 3] = -10.5
    maps = np.abs(rng.normal(size=(1, 3, 30))).astype(np.float32)
    dims = ("layer", "unit", "time")
    signals = xr.Dataset(
        {"signal": (dims, x), "map": (dims, maps), "start_map": (dims, maps * np.array([1, 0, 1])[:, None])},
        coords={"layer": ["conv1"], "unit": [0, 1, 2]},
    )
    dead = np.array([[u == dead_unit for u in range(3)]])
    statistics = xr.Dataset(
        {
            "th_eap": (("layer", "unit"), np.where(dead, np.nan, [[1.0, 2.0, 4.0]])),
            "p95": (("layer", "unit"), [[0.5, 0.0, 2.0]]),
            "dead": (("layer", "unit"), dead),
        },
        coords={"layer": ["conv1"], "unit": [0, 1, 2]},
    )
    windows = Windows(train, train, train, ("a", "b", "c"), ("x",), 30.0, "")
    return similarity.score(signals, statistics, np.zeros(30), windows, SimilaritySettings(n_similar=5)), signals, train


def test_scores_of_a_unit_by_hand():
    found, signals, train = made_scores()
    x, a = signals["signal"].values[0, 2].astype(float), signals["map"].values[0, 2].astype(float)
    start = int(np.argmax([a[j : j + 10].sum() for j in range(21)]))
    distance, index, offset = naive_search(x[None, start : start + 10].astype(np.float32), train.segments, 5)
    one = found.sel(layer="conv1", unit=2)
    assert one["piece_start"] == start
    assert np.isclose(one["s_u"], distance.mean()) and list(one["segment"].values) == list(index[0])
    assert list(one["offset"].values) == list(offset[0])
    assert np.allclose(one["nearest_share"], [(train.activity[index[0]] == k).mean() for k in range(3)])
    assert np.isnan(found["activation_ratio_p95"].sel(unit=1)).all(), "no ratio to zero"
    assert np.isclose(one["activation_ratio"], a.max() / 4) and np.isclose(one["activation_ratio_p95"], a.max() / 2)
    assert np.isclose(one["peak_amplitude_g"], np.abs(x).max()) and np.isclose(one["range_g"], x.max() - x.min())
    assert np.isclose(one["displacement_g"], np.sqrt((x**2).mean()))
    assert np.isclose(one["total_variation_g"], np.abs(np.diff(x)).sum(), rtol=1e-5)
    near = train.segments[index[0, 0], offset[0, 0] : offset[0, 0] + 10]
    assert np.isclose(one["shape_match"], np.corrcoef(x[start : start + 10], near)[0, 1])


def test_failed_and_dead_units_are_counted_and_left_out():
    found, _, _ = made_scores(failed_unit=0, dead_unit=2)
    assert list(found["failed"].values[0]) == [True, False, False]
    assert list(np.isnan(found["s_u"].values[0])) == [True, False, True]
    assert (found["segment"].sel(unit=0) == -1).all()
    one = found.isel(layer=0).expand_dims(seed=[0])
    summary = similarity.summarize(one)
    assert summary["failed_units"] == 1 and summary["dead_units"] == 1
    assert summary["inactive_at_start"] == 1  # unit 1 answers nothing to the start
    assert np.isclose(summary["ssim"]["mean"], float(found["s_u"].sel(unit=1).values[0]))
    assert (
        summary["ssim_without_inactive"]["mean"] is None
        and "no unit is left" in summary["ssim_without_inactive"]["reason"]
    )


def test_a_table_of_methods_and_controls_averages_units_then_seeds():
    one = made_scores()[0]
    other = one.copy(deep=True)
    other["s_u"] = other["s_u"] * 3
    both, mean = xr.concat([one, other], "seed"), float(one["s_u"].mean())
    methods, controls = both.expand_dims(technique=["ours"]), both.expand_dims(control=["flat"])
    table = similarity.summaries(methods, controls)
    assert table.index.tolist() == [("ours", "conv1"), ("flat", "conv1")]
    assert np.allclose(table[["ssim", "ssim low", "ssim high"]], [[2 * mean, mean, 3 * mean]] * 2)
    assert (table["inactive_at_start"] == 1).all() and (table["failed_units"] == 0).all()


def test_best_examples_match_best():
    found, _, _ = made_scores()
    found["shape"] = (("layer", "unit"), np.array([["peak", "other", "peak"]]))
    match = found["shape_match"].values[0]
    expected = ("conv1", 0 if match[0] > match[2] else 2, "peak")
    assert similarity.best_examples(found, ("peak", "valley")) == [expected]


def test_maps_of_another_length_must_say_where_they_look():
    maps = xr.DataArray(np.ones((2, 3, 4)), dims=("unit", "map_axis", "map_time"))
    with pytest.raises(ValueError, match="the coordinate map_time"):
        signal_measures.in_time(maps, 9)
    found = signal_measures.in_time(maps.assign_coords(map_time=[1.5, 3.5, 5.5, 7.5]), 9)
    assert found.dims == ("unit", "time") and found.values.tolist() == [[0, 0, 3, 3, 3, 3, 3, 3, 0]] * 2


class Standardized(torch.nn.Module):
    """A network that takes windows in another unit: that of ``scale``."""

    def __init__(self, network: torch.nn.Module, scale: Scale):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the network says of windows (window, axis, time)."""
        return self.network(self.scale.signals(x))


SETTINGS = SimilaritySettings(n_similar=4)


def judged(of, network, tap, windows: Windows, scale: Scale | None) -> tuple[xr.Dataset, ...]:
    """Controls of one place, their scores and how real they are."""
    target = paper_methods.target_of(network, tap, 3, 30, scale)
    statistics = unit_statistics.collect(network, windows.train.x, place=tap).expand_dims("layer")
    rng = np.random.default_rng(4)
    random = windows.train.x[rng.integers(40, size=target.n_units)][None]
    made = {"signal": (("layer", "unit", "axis", "time"), random)}
    own = similarity.own_maps(target, random).drop_vars("map_time", errors="ignore")
    made["map"] = (own.dims, own.values)
    start = target.scale.windows(torch.linspace(-0.3, 0.3, 30).expand(3, 30)).numpy()
    controls = similarity.controls_at(target, windows, xr.Dataset(made, {"layer": statistics["layer"]}), start)
    scores = similarity.score(controls, statistics, start, windows, SETTINGS, scale)
    every = realism.with_held_out_strong(target, controls, statistics["th_eap"], windows.test)
    references = realism.references(target, statistics["th_eap"], windows.train, SETTINGS)
    measured = realism.measure(every, statistics, target, windows.train, SETTINGS, start, references)
    return controls, scores, every, measured, references


@pytest.mark.parametrize("name", ["InceptionTime block", "1-D CNN"])
def test_controls_scores_and_realism_of_units_that_mix_axes(name):
    of, windows = case(name), made_windows()
    controls, scores, every, measured, references = judged(of, of.network, of.tap, windows, None)
    hand, n_units = of.by_hand(windows.test.x.astype(np.float64))[0][:, :, 0], controls.sizes["unit"]
    where = of.first + of.stride * np.arange(hand.shape[-1])
    unit = int(np.flatnonzero(~scores["dead"].isel(control=0, layer=0))[0])
    strongest = controls["signal"].sel(control="held-out-strongest", unit=unit)[0].values
    assert np.array_equal(strongest, windows.test.x[hand[:, unit].mean(1).argmax()])
    assert not controls["signal"].sel(control="flat-zero").any()
    for control in ("spectrum-noise", "held-out-windows"):
        x = controls["signal"].sel(control=control)[0].values
        expected = of.by_hand(x.astype(np.float64))[0][np.arange(n_units), np.arange(n_units), 0]
        assert controls["map"].sel(control=control)[0].values == pytest.approx(expected, rel=1e-3, abs=1e-4)
    strong = every["map"].sel(control="held-out-strong", unit=unit).max()
    largest = hand[:, unit].max(1)
    th_eap = unit_statistics.collect(of.network, windows.train.x, place=of.tap)["th_eap"].values[unit]
    assert strong >= th_eap if (largest >= th_eap).any() else strong == pytest.approx(largest.max())
    # realism by hand: references of one unit, and what noise gets among them
    one = references.isel(layer=0).sel(unit=unit)
    chosen = one["segment"].values[: int(one["n_reference"])]
    begins = one["piece_start"].values[: len(chosen)].astype(int)
    by_hand = [sums(np.interp(np.arange(30), where, hand[w, unit], 0, 0)) for w in chosen]
    # the largest sums; of two as large, rounding decides
    found = [of_window[begin] for of_window, begin in zip(by_hand, begins, strict=True)]
    assert found == pytest.approx([max(of_window) for of_window in by_hand], rel=1e-5)
    real = np.stack([windows.train.x[w, :, b : b + 10] for w, b in zip(chosen, begins, strict=True)]).astype(float)
    x = controls["signal"].sel(control="spectrum-noise", unit=unit)[0].values.astype(float)
    own = controls["map"].sel(control="spectrum-noise", unit=unit)[0].values
    begin = int(np.argmax(sums(np.interp(np.arange(30), where, own, 0, 0))))
    piece = x[:, begin : begin + 10]
    moves = np.maximum((piece.var(1).mean() + real.var(2).mean(1)) / 2, signal_measures.REST_G**2)
    distance = ((piece - real) ** 2).mean((1, 2)) / moves
    got = measured.sel(control="spectrum-noise", unit=unit).isel(layer=0)
    assert float(got["scaled_distance"]) == pytest.approx(np.sort(distance)[: signal_measures.N_NEAREST].mean())
    offsets = [((piece - windows.train.x[chosen][:, :, j : j + 10]) ** 2).mean((1, 2)) for j in range(21)]
    nearest = np.sort(np.min(offsets, 0))[: signal_measures.N_NEAREST].mean()
    assert float(got["matched_ssim"]) == pytest.approx(nearest, rel=1e-5)
    assert scores["segment"].max() < len(windows.train)


def sums(placed: np.ndarray) -> list[float]:
    return [placed[j : j + 10].sum() for j in range(len(placed) - 9)]


@pytest.mark.parametrize("name", ["InceptionTime block", "1-D CNN"])
def test_another_unit_changes_nothing_that_is_measured_in_s(name):
    of, windows = case(name), made_windows()
    scale = Scale(*torch.tensor([[[300.0], [-70.0], [5.0]], [[40.0], [300.0], [0.2]]], dtype=torch.float64))
    series = scale.windows(torch.tensor(windows.train.series.T)).numpy().T
    other = replace(windows, **{s: replace(windows.train, series=series) for s in ("train", "val", "test")})
    tap = replace(of.tap, module=f"network.{of.tap.module}")
    _, scores, _, measured, _ = judged(of, of.network, of.tap, windows, None)
    _, again, _, measured_again, _ = judged(of, Standardized(of.network, scale), tap, other, scale)
    assert (
        int(scores["failed"].sum()) == int(again["failed"].sum()) and (scores["shape"] == again["shape"].values).all()
    )
    for found, expected in ((again, scores), (measured_again, measured)):
        for name in ("s_u", "peak_amplitude_g", "displacement_g", "realism_p", "distance_ratio", "matched_ssim"):
            if name in expected:
                close = pytest.approx(expected[name].values, rel=5e-3, abs=1e-4, nan_ok=True)
                assert found[name].values == close, name


def test_means_over_layers_are_of_all_layers():
    rows = {("a", "conv1"): 1.0, ("a", "conv2"): 3.0, ("b", "conv1"): np.nan, ("b", "conv2"): 3.0}
    table = pd.DataFrame({"ssim": rows}).rename_axis(["method", "layer"])
    found = similarity.over_layers(table)["ssim"]
    assert found["a"] == 2 and np.isnan(found["b"])


def test_activities_near_a_shape_are_those_of_moving_signals():
    dims, near = ("unit", "activity"), [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]
    scores = {
        "nearest_share": (dims, near),
        "activity_share": ("activity", [0.25, 0.75]),
        "range_g": ("unit", [1, 0.01, 1]),
    }
    scores = xr.Dataset(scores | {"shape": ("unit", ["peak", "peak", "valley"])})
    lift, n = similarity.near_activities(scores, ["sitting", "running"])
    assert lift["peak"].tolist() == [4, 0] and lift["valley"].tolist() == pytest.approx([2, 2 / 3])
    assert n == {"rising edge": 0, "falling edge": 0, "peak": 1, "valley": 1, "other": 0} and lift["other"].isna().all()
