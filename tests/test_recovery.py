"""Recall of planted motifs: against plain loops, known answers and its own nulls."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_motifs import naive_ncc

from harvis_utils.data import synthetic
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import motifs, recovery
from harvis_utils.networks.sfhf import folded_trunk
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import (
    PROFILES,
    MaximizationSettings,
    ModelSettings,
    RecoverySettings,
    Settings,
    TrainingSettings,
    artifact_root,
    load_settings,
)
from harvis_utils.store.files import ArtifactError
from harvis_utils.training import supervised

LAYERS = ("conv1", "conv2", "conv3")
TRUTH = synthetic.motifs()
START = starting_signal(MaximizationSettings(), 30)
FEW = RecoverySettings(n_noise=60, n_control=2, n_matchings=5)
METHODS = ("naive", "L2+TV", "L2+TV+EAP+clip")


def signals_of(values, **coords):
    """DataArray (..., layer, unit, time) with the layers' names; ``coords`` name the leading dims."""
    each = {name: list(values_) for name, values_ in coords.items()} | {"layer": list(LAYERS)}
    return xr.DataArray(values, dims=(*coords, "layer", "unit", "time"), coords=each)


def noise_of(key, n_units=6, scale=1.0, **coords):
    shape = (*map(len, coords.values()), 3, n_units, 30)
    return signals_of(scale * np.random.default_rng(key).normal(size=shape), **coords)


def windows_of(seed, n=200):
    """What recall asks of windows: real segments."""
    segments = np.random.default_rng(seed).normal(size=(n, 30)).astype(np.float32)
    return SimpleNamespace(train=SimpleNamespace(segments=segments, length=30))


def made_table(signals=None, random=None, settings=FEW):
    signals = noise_of(0, seed=[0, 1], technique=METHODS) if signals is None else signals
    random = noise_of(1, seed=list(range(1000, 1020))) if random is None else random
    return recovery.recall(Settings("quick", "synthetic"), windows_of(2), TRUTH, signals, random, settings)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), n=st.integers(19, 60), quantile=st.sampled_from([0.5, 0.8, 0.95]))
def test_chance_point_is_the_smallest_value_that_enough_draws_do_not_exceed(seed, n, quantile):
    draws = np.random.default_rng(seed).normal(size=(3, n))
    found = recovery.chance_point(draws, quantile)
    for row, point in zip(draws, found, strict=True):
        # the share of ranks above it, were one more draw to come, is 1 - quantile at most; one value lower it is not
        def share_above(value, row=row):
            return (1 + sum(v > value for v in row)) / (len(row) + 1)

        lower = max((v for v in row if v < point), default=None)
        assert share_above(point) <= 1 - quantile + 1e-9
        assert lower is None or share_above(lower) > 1 - quantile + 1e-9


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), n_time=st.integers(2, 31))
def test_scrambled_signals_keep_mean_and_spectrum(seed, n_time):
    rng = np.random.default_rng(seed)
    signals = rng.normal(size=(2, 3, n_time))
    found = recovery.scrambled(signals, rng)
    assert found.shape == signals.shape
    power, same = (np.abs(np.fft.fft(v, axis=-1)) ** 2 for v in (signals, found))
    np.testing.assert_allclose(same, power, atol=1e-9)
    np.testing.assert_allclose(found.mean(-1), signals.mean(-1), atol=1e-12)
    if n_time > 3:
        assert not np.allclose(found, signals)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), n_units=st.integers(1, 4), n_seeds=st.integers(1, 2))
def test_matches_equal_a_search_by_hand(seed, n_units, n_seeds):
    signals = noise_of(seed, n_units, seed=list(range(n_seeds)))
    found = motifs.matches(TRUTH, signals)
    for motif, shape, first_layer in zip(TRUTH.names, TRUTH.shapes, TRUTH.layers, strict=True):
        for net in range(n_seeds):
            of_layer = {}
            for depth, layer in enumerate(LAYERS):
                one = found.sel(motif=motif, seed=net, layer=layer)
                if depth < LAYERS.index(first_layer):
                    assert np.isnan(one["best"]) and one["unit"] == one["first"] == -1 and one["found_in"] == ""
                    continue
                each = [naive_ncc(shape, x) for x in signals.sel(seed=net, layer=layer).values]
                unit, at = int(np.argmax(each)), int(one["first"])
                assert one["best"] == pytest.approx(max(each)) and one["unit"] == unit and one["found_in"] == layer
                piece = signals.sel(seed=net, layer=layer).values[unit, at : at + len(shape)]
                assert np.corrcoef(piece, shape)[0, 1] == pytest.approx(max(each))
                of_layer[layer] = max(each)
            best = found.sel(motif=motif, seed=net, layer=motifs.ANY)
            assert best["best"] == pytest.approx(max(of_layer.values()))
            assert best["found_in"] == max(of_layer, key=of_layer.get)
            inside = found.sel(motif=motif, seed=net, layer=str(best["found_in"].values))
            assert (best["unit"], best["first"]) == (inside["unit"], inside["first"])


def test_matches_need_the_layers_that_hold_the_motifs():
    with pytest.raises(ValueError, match="motifs are held from conv3 on, but the signals are of conv1, conv2"):
        motifs.matches(TRUTH, noise_of(0, seed=[0]).sel(layer=["conv1", "conv2"]))


def test_nulls_choose_among_equally_many_signals_and_the_largest_point_counts():
    random, baseline = noise_of(3, 4, seed=list(range(1000, 1019))), noise_of(4, 4, seed=[0, 1])
    chance = recovery.null(TRUTH, random, baseline, START, FEW)
    assert chance["L2+TV noise"].sizes["draw"] == FEW.n_noise and chance["random weights"].sizes["seed"] == 19
    for k, motif in enumerate(TRUTH.names):
        shape = TRUTH.shapes[k]
        holding = LAYERS[LAYERS.index(TRUTH.layers[k]) :]
        for net in (1000, 1018):
            each = {la: max(naive_ncc(shape, x) for x in random.sel(seed=net, layer=la).values) for la in holding}
            own = chance["random weights"].sel(motif=motif, seed=net)
            assert [float(own.sel(layer=la)) for la in holding] == pytest.approx(list(each.values()))
            assert float(own.sel(layer=motifs.ANY)) == pytest.approx(max(each.values()))
        assert float(chance["starting sine"].sel(motif=motif, layer="conv3")) == pytest.approx(naive_ncc(shape, START))
    limit = recovery.thresholds(chance)
    for motif, layer in (("short A", "conv1"), ("long B", "conv3"), ("middle C", motifs.ANY)):
        at = {"motif": motif, "layer": layer}
        points = {
            name: float(recovery.chance_point(chance[name].sel(at).values))
            for name in ("random weights", "L2+TV noise")
        } | {"starting sine": float(chance["starting sine"].sel(at))}
        assert float(limit["threshold"].sel(at)) == max(points.values())
        assert str(limit["threshold_from"].sel(at).values) == max(points, key=points.get)


def test_leaving_one_out_uses_all_the_others():
    random, baseline = noise_of(7, 3, seed=list(range(1000, 1020))), noise_of(8, 3, seed=[0])
    chance = recovery.null(TRUTH, random, baseline, START, FEW)
    found = recovery.thresholds_without(chance)
    rest = random.sel(seed=[s for s in range(1000, 1020) if s != 1007])
    alone = chance.drop_vars("random weights").drop_dims("seed", errors="ignore")
    alone["random weights"] = motifs.matches(TRUTH, rest)["best"]
    assert found.sel(seed=1007, drop=True).identical(recovery.thresholds(alone))
    with pytest.raises(ValueError, match="18 draws have no 95% point"):
        recovery.thresholds_without(chance.isel(seed=slice(19)))


def test_signals_with_the_motif_are_recovered_where_they_have_it_and_inverted_ones_are_not():
    signals = noise_of(0, scale=0.02, seed=[0, 1], technique=METHODS)
    shape = TRUTH.shapes[TRUTH.names.index("long B")]
    other = TRUTH.shapes[TRUTH.names.index("middle A")]
    signals.loc[{"seed": 1, "technique": "L2+TV+EAP+clip", "layer": "conv3"}][4, 11:24] += 0.7 + 3 * shape
    signals.loc[{"technique": "naive", "layer": "conv3"}][:, 2, 11:24] = -shape
    signals.loc[{"seed": 0, "technique": "naive", "layer": "conv2"}][0, 3:12] = other
    table = made_table(signals).set_index(["technique", "motif", "seed", "draw", "layer"]).sort_index()
    row = table.loc["L2+TV+EAP+clip", "long B", 1, 0, "conv3"]
    assert row["recovered"] and row["unit"] == 4 and row["first"] == 11 and row["best"] > 0.99
    assert row["length"] == 13 and row["found_in"] == "conv3"
    assert not table.loc["naive", "long B", :, 0, "conv3"]["recovered"].any()
    row = table.loc["naive", "middle A", 0, 0, "conv2"]
    assert row["recovered"] and (row["unit"], row["first"]) == (0, 3) and row["best"] == pytest.approx(1)
    row = table.loc["naive", "middle A", 0, 0, motifs.ANY]
    assert row["recovered"] and row["found_in"] == "conv2" and (row["unit"], row["first"]) == (0, 3)


def test_the_table_has_every_column_motif_network_and_layer_with_the_numbers_it_chose_among():
    table = made_table()
    pd.testing.assert_frame_equal(table, made_table())
    assert list(table.columns) == recovery.COLUMNS
    n_rows = 3 + 6 + 9 + 9  # motifs that conv1, conv2, conv3 and any layer hold
    assert table.groupby("technique", sort=False).size().to_dict() == {
        **dict.fromkeys(METHODS, 2 * n_rows),
        "random weights": 20 * n_rows,
        "phase-scrambled": 2 * FEW.n_control * n_rows,
        "real windows": 2 * FEW.n_control * n_rows,
    }
    assert set(table.loc[table["control"], "technique"]) == set(recovery.CONTROLS)
    chosen = table[table["technique"] == "naive"].set_index(["motif", "layer"])["n_signals"]
    assert set(chosen.loc["short A", "conv2"]) == {6} and set(chosen.loc["short A", motifs.ANY]) == {18}
    assert set(chosen.loc["middle A", motifs.ANY]) == {12} and set(chosen.loc["long A", motifs.ANY]) == {6}
    layers = table.groupby("length")["layer"].unique()
    assert set(layers[5]) == {*LAYERS, motifs.ANY} and set(layers[13]) == {"conv3", motifs.ANY}
    limits = table[table["technique"] != "random weights"].groupby(["motif", "layer"])["threshold"].nunique()
    assert (limits == 1).all()


def test_noise_follows_l2_tv_and_the_controls_the_proposed_method_alone():
    def limits(table):
        return table[table["technique"] == "naive"].drop(columns=["best", "unit", "first", "found_in", "recovered"])

    signals = noise_of(17, seed=[0, 1], technique=METHODS)
    base = made_table(signals)
    # one slow wave, so that noise of its spectrum is another one
    slow = np.sin(2 * np.pi * (np.arange(30) / 30 + np.arange(6)[:, None] / 6))
    for method, moves in (("naive", ()), ("L2+TV", ("limits",)), ("L2+TV+EAP+clip", ("scrambled",))):
        other = signals.copy(deep=True)
        other.loc[{"technique": method}] = slow
        table = made_table(other)
        assert limits(table).equals(limits(base)) == ("limits" not in moves)
        each = [t[t["technique"] == "phase-scrambled"]["best"].tolist() for t in (table, base)]
        assert (each[0] == each[1]) == ("scrambled" not in moves)
        each = [t[t["technique"] == "real windows"]["best"].tolist() for t in (table, base)]
        assert each[0] == each[1]


def test_signals_as_random_as_the_null_are_recovered_about_one_time_in_twenty():
    """Exchangeable with the null by construction, so the share is known; with other thresholds it would not be."""
    settings_ = dataclasses.replace(FEW, n_noise=100, n_random=59)
    signals = noise_of(10, 4, seed=list(range(80)), technique=("L2+TV", "L2+TV+EAP+clip"))
    random = noise_of(11, 4, seed=list(range(1000, 1059)))
    shares = []
    for quantile in (0.95, 0.8):
        table = made_table(signals, random, dataclasses.replace(settings_, quantile=quantile))
        table = table[(table["layer"] != motifs.ANY)]
        shares.append(table[table["technique"] == "L2+TV+EAP+clip"]["recovered"].mean())
        own = table[table["technique"] == "random weights"]["recovered"].mean()
        assert own <= 1 - quantile + 1e-9
    # 1 / 20 for each null alone; the largest of two such points lies higher
    assert 0.02 < shares[0] < 0.055 and 0.08 < shares[1] < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random": noise_of(0, 5, seed=list(range(1000, 1020)))}, "6 units a layer against 5 of networks with random"),
        ({"random": noise_of(0, 6, seed=list(range(20)))}, r"seeds of their own, but share \[.*0.*1.*\]"),
        ({"signals": noise_of(0, seed=[0], technique=("naive", "L2+TV"))}, r"needs signals of L2\+TV\+EAP\+clip"),
        ({"random": noise_of(0, 6, seed=list(range(1000, 1019)))}, "18 draws have no 95% point"),
        ({"signals": noise_of(0, seed=[0], technique=METHODS) * np.nan}, "hold NaN"),
    ],
)
def test_unusable_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        made_table(**changes)


def test_summary_counts_every_motif_the_same():
    table = pd.DataFrame(
        [("ours", "a", 5, 0, 0, layer, True) for layer in LAYERS]
        + [("ours", "a", 5, 0, 0, motifs.ANY, True)]
        + [("ours", "b", 13, 0, 0, layer, False) for layer in ("conv3", motifs.ANY)],
        columns=["technique", "motif", "length", "seed", "draw", "layer", "recovered"],
    )
    found = recovery.summarize(table).set_index(["view", "technique", "length"])
    assert list(found["recall"]) == [0.5, 1.0, 0.0] * 2
    row = found.loc["each layer", "ours", 0]
    assert row["n_recovered"] == 3 and row["n_rows"] == 4 and row["n_motifs"] == 2 and row["n_networks"] == 1
    assert (row["low"], row["high"]) == (0.0, 1.0)
    assert found.loc["any layer", "ours", 5]["n_rows"] == 1
    each = recovery.by_length(found.reset_index())
    assert each["planted motifs"].tolist() == ["all", "5 samples", "13 samples"]
    assert each["recall high"].iloc[0] == 1.0


def test_places_are_means_over_networks_and_nothing_planted_is_an_empty_table():
    table = made_table()
    own = table[(table["technique"] == "naive") & (table["motif"] == "middle A") & (table["layer"] == "conv3")]
    row = recovery.places(table, "naive").loc[("middle A", "conv3")]
    assert row["best"] == pytest.approx(own["best"].mean()) and row["recovered"] == own["recovered"].mean()
    assert row["threshold"] == own["threshold"].iloc[0] and row["null"] == own["threshold_from"].iloc[0]
    assert row["first sample (median)"] == own["first"].median()
    nothing = recovery.recall(None, None, None, None, None, FEW)
    assert list(nothing) == recovery.COLUMNS and recovery.places(nothing, "naive").empty
    assert recovery.by_length(recovery.summarize(nothing)).empty
    assert recovery.detectors(None, None, None, METHODS, FEW).empty


@pytest.fixture
def tiny(tiny_windows):
    cfg = dataclasses.replace(
        load_settings("quick", "synthetic"),
        model=ModelSettings(n_units=3, n_dense=4),
        training=TrainingSettings(seeds=(0,), epochs=1, learning_rate=2e-3),
        maximization=MaximizationSettings(n_steps=3),
    )
    return cfg, tiny_windows


def test_random_weights_are_networks_nobody_trained_each_kept_on_its_own(tiny, one_thread, monkeypatch):
    cfg, windows = tiny
    settings_ = dataclasses.replace(FEW, n_random=2, thinning=3)
    found = recovery.random_weights(cfg, windows, settings_)
    assert found["signal"].dims == ("seed", "layer", "unit", "time") and list(found["seed"]) == [1000, 1001]
    trunk = folded_trunk(supervised.new_model(windows, cfg.model, 1001).eval())
    statistics = unit_statistics.collect(trunk, windows.train.every(3).segments)
    th_eap, how = statistics["th_eap"].sel(layer="conv2").values, {"settings": cfg.maximization}
    alone = paper_methods.maximize(trunk, "conv2", th_eap, methods=("L2+TV+EAP+clip",), **how)
    np.testing.assert_array_equal(found["signal"].sel(seed=1001, layer="conv2"), alone["signal"][0])
    assert found["dead"].sel(seed=1001).equals(statistics["dead"].assign_coords(seed=1001))
    monkeypatch.setattr(recovery, "maximized", lambda *_: pytest.fail("computed again"))
    assert recovery.random_weights(cfg, windows, settings_).equals(found)
    with pytest.raises(pytest.fail.Exception):
        recovery.random_weights(cfg, windows, dataclasses.replace(settings_, n_random=3))


def test_one_factor_moves_at_a_time_and_the_base_is_a_level_of_each():
    cfg = load_settings("quick", "synthetic")
    settings_ = dataclasses.replace(FEW, noise_g=(0.1,), prevalence=(0.5, 1.0), n_units=(4,), epochs=())
    found = recovery.levels(cfg, settings_)
    base = recovery.Level(0.0, 1.0, 16, 6)
    for factor, level in found:
        assert dataclasses.replace(level, **{factor: getattr(base, factor)}) == base
    values = {f: [getattr(level, f) for factor, level in found if factor == f] for f in recovery.FACTORS}
    assert values == {"noise_g": [0.0, 0.1], "prevalence": [0.5, 1.0], "n_units": [4, 16], "epochs": [6]}


def test_settings_of_every_profile_allow_their_nulls():
    for chosen in (load_settings(profile).recovery for profile in PROFILES):
        recovery.chance_point(np.arange(chosen.n_random - 1.0), chosen.quantile)
        recovery.chance_point(np.arange(float(chosen.n_noise)), chosen.quantile)


def test_dependence_trains_each_setting_once_and_reads_it_back(tiny, one_thread, monkeypatch, tiny_windows):
    cfg, _ = tiny
    seen = []

    def variant(cfg, noise_g, prevalence):
        seen.append((noise_g, prevalence))
        name = f"{noise_g} {prevalence}"
        return dataclasses.replace(cfg, dataset=name), dataclasses.replace(tiny_windows, rate_hz=30 + noise_g)

    monkeypatch.setattr(recovery, "_variant", variant)
    settings_ = dataclasses.replace(
        FEW, n_random=6, n_noise=6, quantile=0.8, seeds=(0, 1), noise_g=(0.1,), prevalence=(), n_units=(2,), epochs=()
    )
    table = recovery.dependence(cfg, settings_)
    assert seen == [(0.0, 1.0), (0.1, 1.0)]
    assert list(zip(table["factor"], table["level"], strict=True)) == [
        *[("noise_g", level) for level in (0.0, 0.0, 0.1, 0.1)],
        *[("prevalence", 1.0)] * 2,
        *[("n_units", level) for level in (2, 2, 3, 3)],
        *[("epochs", 1.0)] * 2,
    ]
    base = table[(table["factor"] == "epochs")].drop(columns=["factor", "level"]).reset_index(drop=True)
    same = table[(table["factor"] == "noise_g") & (table["level"] == 0)].drop(columns=["factor", "level"])
    pd.testing.assert_frame_equal(base, same.reset_index(drop=True))
    shares = ["recall", "recall_any", "random_recall", "random_recall_any", "macro_f1"]
    assert table[shares].apply(lambda c: c.between(0, 1).all()).all()
    assert (table["random_recall"] <= 0.2 + 1e-9).all() and (table["expected"] - 0.2).abs().max() < 1e-9
    store = artifact_root() / "store"
    assert len(list((store / "networks").iterdir())) == 3 * 2  # base, one noise, one width; two seeds
    monkeypatch.setattr(recovery, "maximized", lambda *_: pytest.fail("computed again"))
    pd.testing.assert_frame_equal(recovery.dependence(cfg, settings_), table)


def test_one_setting_is_measured_as_the_table_of_one_network_is(tiny, one_thread):
    cfg, windows = tiny
    random = noise_of(16, 3, seed=list(range(1000, 1020)))
    net = supervised.train(cfg, windows, 0)
    found = recovery.recalled_of(net, windows, random, cfg.maximization, FEW)
    both = recovery.maximized(net.trunk, windows, ("L2+TV+EAP+clip", "L2+TV"), cfg.maximization, FEW.thinning)["signal"]
    made = both.expand_dims(seed=[0]).reset_coords(drop=True)
    table = recovery.recall(cfg, windows_of(0), TRUTH, made, random, FEW)
    means = recovery.summarize(table).set_index(["view", "technique", "length"])["recall"]
    assert found == {
        "macro_f1": supervised.macro_f1(windows.test, net.predicted["test"]),
        "recall": pytest.approx(means["each layer", "L2+TV+EAP+clip", 0]),
        "recall_any": pytest.approx(means["any layer", "L2+TV+EAP+clip", 0]),
        "random_recall": pytest.approx(means["each layer", "random weights", 0]),
        "random_recall_any": pytest.approx(means["any layer", "random weights", 0]),
    }


def test_an_error_in_one_job_stops_the_others(one_thread):
    done = []

    def job(k):
        if k == 0:
            raise ArtifactError("no space")
        done.append(k)

    with pytest.raises(ArtifactError, match="no space"):
        side_by_side(load_settings("quick", "synthetic", "cpu"), job, range(2000))
    assert len(done) < 2000
    assert side_by_side(load_settings("quick", "synthetic", "cpu"), lambda k: k + 1, [3, 1, 2]) == [4, 2, 3]


def test_a_unit_that_looks_for_the_shape_writes_it(tiny_windows, one_thread):
    cfg = Settings("quick", "synthetic", maximization=MaximizationSettings(n_steps=400))
    found = recovery.detectors(cfg, tiny_windows, TRUTH, ("unit-norm", "L2+TV+EAP+clip"), FEW)
    assert len(found) == 2 * len(TRUTH.names) and set(found["motif"]) == set(TRUTH.names)
    assert set(found["length"]) == {5, 9, 13}
    each = found.set_index(["technique", "motif"])
    assert each["match"].between(-1, 1).all() and (each["reached"] > 0).all()
    # no exact copies: the mean over the map rewards a shape that fits again and again
    assert each.loc["unit-norm", "match"].between(0.6, 0.99).all()
    # the same by hand for one of them
    name, shape = TRUTH.names[0], TRUTH.shapes[0]
    taps = (shape - shape.mean()) / np.linalg.norm(shape - shape.mean())
    x = tiny_windows.train.every(FEW.thinning).segments.astype(float)
    padded = np.pad(x, ((0, 0), (len(taps) // 2, len(taps) // 2)))
    output = np.maximum(np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=1) @ taps, 0)
    th = output.mean() + 2 * output.std()
    from harvis_utils.networks.sfhf import Trunk

    trunk = Trunk((torch.tensor(taps, dtype=torch.float32)[None, None],), (torch.zeros(1),))
    one = paper_methods.maximize(trunk, "conv1", np.array([th]), methods=("unit-norm",), settings=cfg.maximization)
    signal = one["signal"].sel(technique="unit-norm").values[0]
    assert each.loc[("unit-norm", name), "match"] == pytest.approx(
        max(naive_ncc(shape, signal[k : k + len(shape)]) for k in range(30 - len(shape) + 1)), abs=1e-3
    )
