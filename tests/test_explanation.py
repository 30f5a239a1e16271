"""How well signals explain their units: against plain loops, and on units of which it is known what they look for."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import rankdata, spearmanr

from harvis_utils.data import synthetic
from harvis_utils.data.windowing import Split
from harvis_utils.lenses.triggered import REFERENCES, STRONGEST, references, triggered
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.metrics import explanation, motifs, realism, similarity
from harvis_utils.metrics.explanation import Seen, drawn_pairs, explained, to_threshold
from harvis_utils.networks.sfhf import SFHF, Trunk, folded_trunk
from harvis_utils.paper import explaining
from harvis_utils.settings import ExplanationSettings, ModelSettings
from harvis_utils.training import supervised
from tests.made_trunks import made_trunk

SETTINGS = ExplanationSettings(n_segments=400, n_groups=(2, 2), n_pairs=160, n_train=2000)
LENGTH = 30


def noise_split(n: int = 400, n_axes: int = 2, seed: int = 0, smooth: int = 1) -> Split:
    """Windows of noise on their own levels, of several amplitudes; moving averages of ``smooth`` samples."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n * LENGTH + smooth - 1, n_axes))
    x = np.lib.stride_tricks.sliding_window_view(x, smooth, axis=0).mean(-1)
    window = np.arange(n).repeat(LENGTH)
    x = x * rng.uniform(0.2, 1.5, (n, n_axes))[window] + rng.normal(0, 0.3, (n, n_axes))[window]
    each = np.arange(n)
    return Split(x.astype(np.float32), LENGTH * each, each % 3, each % 2, each // 20, each, LENGTH)


def linear_trunk(n_units: int = 4, width: int = 5, seed: int = 0) -> Trunk:
    """One layer without bias; filters have a sum of zero and a norm of one."""
    filters = similarity.unit_norm(np.random.default_rng(seed).normal(size=(n_units, width)))
    return Trunk((torch.tensor(filters, dtype=torch.float32)[:, None],), (torch.zeros(n_units),))


def thresholds(trunk: Trunk, split: Split) -> xr.DataArray:
    return unit_statistics.collect(trunk, split.segments, n_top=1)["th_eap"]


def as_signals(values: np.ndarray, units=None) -> xr.DataArray:
    """(technique, unit, ..., time) arrays with the names that they need."""
    middle = ("example",) if values.ndim == 4 else ()
    units = np.arange(values.shape[1]) if units is None else units
    return xr.DataArray(values, dims=("technique", "unit", *middle, "time"), coords={"unit": units})


def plain(trunk, layer, signals, segments, th, settings):
    """The measures of one method's signals (unit, time), one number after the other."""
    width, n = trunk.receptive_field(layer), len(signals)
    places = range(LENGTH - width + 1)

    def outputs(x):
        maps = trunk.feature_map(torch.as_tensor(np.asarray(x, np.float32))[None], layer)[0].numpy()
        return maps[:, width // 2 : LENGTH - width // 2]

    pieces = []
    for u, signal in enumerate(signals):
        flat, factor = np.ptp(signal) < 0.05, 1.0
        for amplitude in explanation.AMPLITUDES_G if not flat else ():
            high = amplitude / np.abs(signal).max()
            if outputs(signal * high)[u].max() >= th[u]:
                low = high / 2**0.5 if amplitude > explanation.AMPLITUDES_G[0] else 0.0
                for _ in range(explanation.N_HALVINGS):
                    middle = (low + high) / 2
                    reached = outputs(signal * middle)[u].max() >= th[u]
                    low, high = (low, middle) if reached else (middle, high)
                factor = high
                break
        at = outputs(signal * factor)[u].argmax()
        pieces.append((signal[at : at + width] * factor, flat))
    active = np.stack([outputs(x).max(1) for x in segments], 1).astype(float)
    error, shape, cross = np.zeros((3, n, len(segments)))
    for u, (piece, flat) in enumerate(pieces):
        for i, x in enumerate(segments):
            cuts = [x[p : p + width].astype(float) for p in places]
            error[u, i] = min(np.mean((piece - cut) ** 2) for cut in cuts)
            if not flat:
                cross[u, i] = max(piece @ cut for cut in cuts)
                moving = [0.0 if np.ptp(cut) <= 0.05 else np.corrcoef(piece, cut)[0, 1] for cut in cuts]
                shape[u, i] = max(moving)
    about = np.stack([segments.astype(float).var(1), segments.mean(1, dtype=float), np.abs(segments).max(1)])
    pairs = drawn_pairs(active, about[0], about[1], settings)
    known = np.vstack([np.ones(len(segments)), rankdata(about, axis=1)]).T

    def rest(values):
        ranks = rankdata(values)
        return ranks - known @ np.linalg.lstsq(known, ranks, rcond=None)[0]

    accuracy, fits = np.zeros((2, n, n)), np.zeros((n, n))
    for v in range(n):
        for u in range(n):
            right = [[], []]
            for strong, weak in pairs[:, u].T:
                if strong >= 0:
                    right[0].append((np.sign(error[v, weak] - error[v, strong]) + 1) / 2)
                    right[1].append((np.sign(shape[v, strong] - shape[v, weak]) + 1) / 2)
            accuracy[:, v, u] = [np.mean(of) for of in right]
            if not pieces[v][1]:
                fits[v, u] = np.corrcoef(rest(cross[v]), rest(active[u]))[0, 1]
    own, others = np.eye(n, dtype=bool), ~np.eye(n, dtype=bool)
    other_fits = np.array([fits[others[:, u], u].mean() for u in range(n)])
    # no two are equal here
    identified = [1 / n if pieces[u][1] else float(fits[u, u] >= fits[:, u].max()) for u in range(n)]
    return {
        "accuracy by error": accuracy[0][own],
        "accuracy by shape": accuracy[1][own],
        "fidelity": fits[own],
        "specificity": fits[own] - other_fits,
        "identified": np.array(identified),
    }


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_measures_are_those_of_plain_loops(layer):
    trunk, split = made_trunk(n_units=3), noise_split(n=60)
    settings = dataclasses.replace(SETTINGS, n_segments=120)
    th = thresholds(trunk, split).sel(layer=layer)
    signals = np.random.default_rng(1).normal(size=(2, 3, LENGTH)) * [[[0.4], [2.0], [0.01]]]  # the last one is flat
    found = explained(trunk, layer, as_signals(signals), split, th, settings)
    for k in range(2):
        for name, values in plain(trunk, layer, signals[k], split.segments, th.values, settings).items():
            np.testing.assert_allclose(found[name][k], values, atol=1e-6, err_msg=name)
    assert found["flat"].values.tolist() == [[False, False, True]] * 2
    flat = found.isel(unit=2)
    assert (flat["accuracy by shape"] == 0.5).all() and (flat["fidelity"] == 0).all()
    assert (flat["identified"] == flat["chance"]).all() and (flat["factor"] == 1).all()


def test_the_filter_explains_a_linear_unit_and_a_shared_sine_does_not():
    trunk, split = linear_trunk(), noise_split()
    filters = np.zeros((4, LENGTH))
    filters[:, 12:17] = trunk.weights[0][:, 0].numpy()
    sine = np.broadcast_to(np.sin(2 * np.pi * np.arange(LENGTH) / LENGTH), filters.shape)
    th = thresholds(trunk, split).sel(layer="conv1")
    found = explained(trunk, "conv1", as_signals(np.stack([filters, sine, np.zeros_like(sine)])), split, th, SETTINGS)
    assert (found["fidelity"][0] > 0.999).all() and (found["identified"][0] == 1).all()
    assert (found["accuracy by shape"][0] > 0.5).all() and found["accuracy by shape"][0].mean() > 0.55
    assert (found["specificity"][0] > 0.6).all() and (np.abs(found["specificity"][1]) < 0.4).all()
    assert found["identified"][1].mean() < 1 and (found["identified"][2] == 0.25).all()


def test_amplitude_decides_nothing_and_shorter_signals_stand_among_zeros():
    trunk, split = made_trunk(), noise_split()
    th = thresholds(trunk, split).sel(layer="conv2")
    piece = np.random.default_rng(2).normal(size=(4, 9))
    whole = np.pad(piece, ((0, 0), (10, 11)))
    found = explained(trunk, "conv2", as_signals(np.stack([whole, whole * 0.3])), split, th, SETTINGS)
    short = explained(trunk, "conv2", as_signals(piece[None]), split, th, SETTINGS)
    for name in ("accuracy", "fidelity", "specificity", "identified"):
        assert np.allclose(found[name][0], found[name][1], atol=0.02)
        assert np.array_equal(found[name][0], short[name][0])


def test_signals_are_scaled_to_the_threshold_or_left():
    trunk = linear_trunk(n_units=2)
    seen = Seen.by(trunk, "conv1", LENGTH)
    filters = np.zeros((2, 1, LENGTH))
    filters[:, 0, 12:17] = trunk.weights[0][:, 0].numpy()
    rows = np.concatenate([filters, 5 * filters, np.ones((1, 1, LENGTH)), np.zeros((1, 1, LENGTH))])
    unit, th = np.array([0, 1, 0, 1, 0, 1]), np.array([0.7, 2.0, 0.7, np.nan, 0.7, 0.7])
    factor = to_threshold(seen, unit, rows, th)
    assert np.allclose(factor[:3], [0.7, 2.0, 0.14], rtol=3e-3) and np.isnan(factor[3:]).all()
    assert (seen.own(unit[:3], rows[:3] * factor[:3, None, None]).max(1) >= th[:3]).all()


def test_pairs_are_matched_in_level_and_energy_and_differ_in_output():
    rng = np.random.default_rng(0)
    (energy, level), outputs = rng.exponential(size=(2, 400)), rng.normal(size=(3, 400)).clip(min=0)
    outputs[2] = 0
    pairs = drawn_pairs(outputs, energy, level, SETTINGS)
    assert pairs.shape == (2, 3, 160) and (pairs[:, 2] == -1).all()
    high = level > np.median(level)
    lively = np.where(high, energy > np.median(energy[high]), energy > np.median(energy[~high]))
    for unit in range(2):
        strong, weak = pairs[:, unit]
        assert (high[strong] == high[weak]).all() and (lively[strong] == lively[weak]).all()
        assert (outputs[unit, strong] > outputs[unit, weak]).all()
    assert np.array_equal(pairs, drawn_pairs(outputs, energy, level, SETTINGS))


def test_partial_correlation_takes_away_what_is_known():
    rng = np.random.default_rng(0)
    known = rng.normal(size=(1, 3000))
    first, second = known + 0.3 * rng.normal(size=(2, 3000)), known + 0.3 * rng.normal(size=(1, 3000))
    found = explanation.partial_spearman(first, second, known)
    assert spearmanr(first[0], second[0])[0] > 0.8 and (np.abs(found) < 0.1).all()
    same = explanation.partial_spearman(np.stack([second[0], np.ones(3000)]), second, known)
    assert np.allclose(same[:, 0], [1, 0])


def test_any_place_is_explained_as_a_trunk_is():
    torch.manual_seed(0)
    model = SFHF(2, LENGTH, 3, ModelSettings(n_units=4, n_layers=2, n_dense=8)).eval()
    split = noise_split()
    trunk, place = folded_trunk(model), paper_methods.target_of(model, "conv2", 2, LENGTH)
    th, signals = thresholds(trunk, split).sel(layer="conv2"), as_signals(noise_split(n=2, seed=3).segments[None])
    found = [explained(of, "conv2", signals, split, th, SETTINGS, width=9) for of in (trunk, place)]
    xr.testing.assert_allclose(*found, atol=2e-3)
    ours = [triggered(of, "conv2", split, SETTINGS, width=9) for of in (trunk, place)]
    xr.testing.assert_allclose(*ours, atol=1e-4)


def test_units_that_mix_axes_are_explained_by_whole_windows(monkeypatch):
    torch.manual_seed(0)
    model = SFHF(2, LENGTH, 3, ModelSettings(n_units=4, n_layers=1, n_dense=8)).eval()
    place, split = paper_methods.target_of(model, "dense", 2, LENGTH), noise_split()
    th = xr.DataArray(np.full(8, 0.5), dims="unit", coords={"unit": np.arange(8)})
    made = references(place, "dense", split, np.zeros((2, LENGTH)), SETTINGS)
    assert made["signal"].dims == ("reference", "unit", "axis", "time")
    with monkeypatch.context() as patched:
        patched.setattr("harvis_utils.lenses.triggered.MOST_INPUTS", 2 * LENGTH - 1)
        patched.setattr("harvis_utils.lenses.triggered.MOST_NUMBERS", 100 * LENGTH)
        fewer = references(place, "dense", split, np.zeros((2, LENGTH)), SETTINGS)
    assert fewer["reference"].values.tolist() == [name for name in REFERENCES if name != "linear filter"]
    xr.testing.assert_allclose(fewer, made.sel(reference=fewer["reference"]), atol=1e-5)
    found = explained(place, "dense", made["signal"], split, th, SETTINGS)
    assert found["identified"].sel(reference="linear filter").mean() > 0.8


def test_several_examples_of_a_unit_count_together_and_one_alone_as_itself():
    trunk, split = made_trunk(), noise_split()
    th = thresholds(trunk, split).sel(layer="conv2")
    signals = noise_split(n=6, seed=4).segments.reshape(1, 4, 3, LENGTH)
    alone = explained(trunk, "conv2", as_signals(signals[:, :, 0]), split, th, SETTINGS)
    same = explained(trunk, "conv2", as_signals(signals[:, :, [0, 0]]), split, th, SETTINGS)
    for name in explanation.MEASURES:
        np.testing.assert_allclose(alone[name], same[name], atol=1e-9)


def test_what_cannot_be_explained_is_refused_or_missing():
    trunk, split = made_trunk(), noise_split()
    th = thresholds(trunk, split).sel(layer="conv1")
    one = as_signals(np.zeros((1, 1, LENGTH)), [2])
    with pytest.raises(ValueError, match="one unit only"):
        explained(trunk, "conv1", one, split, th, SETTINGS)
    with pytest.raises(ValueError, match="longer than windows"):
        explained(trunk, "conv1", as_signals(np.zeros((1, 4, 31))), split, th, SETTINGS)
    silent = Trunk(trunk.weights, (torch.tensor([-99.0, 0, 0, 0]), *trunk.biases[1:]))
    found = explained(silent, "conv1", as_signals(split.segments[:4][None]), split, th, SETTINGS)
    for name in ("accuracy", "fidelity", "specificity", "identified", "chance"):
        assert np.isnan(found[name][0, 0]) and not np.isnan(found[name][0, 1:]).any()


# ------------------------------------------------------------------------------------------------ triggered averages


def test_the_filter_is_the_units_own_and_the_average_its_pattern():
    trunk, split = linear_trunk(width=5), noise_split(n=1500, smooth=3)
    found = triggered(trunk, "conv1", split, dataclasses.replace(SETTINGS, n_train=3000))
    own = trunk.weights[0][:, 0].numpy()
    pieces = np.lib.stride_tricks.sliding_window_view(split.segments, 5, axis=1).reshape(-1, 5)
    pattern = own @ np.cov(pieces.T)  # of a linear unit (Haufe et al. 2014)

    def likeness(a, b):
        return (similarity.unit_norm(a) * similarity.unit_norm(b)).sum(1)

    assert (likeness(found["filter"].values, own) > 0.97).all()
    assert (likeness(found["average"].values, pattern) > 0.97).all()
    assert likeness(found["average"].values, own).min() < 0.9
    weighted = np.maximum(pieces @ own.T, 0)
    plain = weighted.T @ pieces / weighted.sum(0)[:, None] - pieces.mean(0)
    np.testing.assert_allclose(found["average"], plain, atol=1e-5)


def test_strongest_windows_are_of_different_recordings_and_in_order():
    trunk, split = made_trunk(), noise_split()
    seen = Seen.by(trunk, "conv3", LENGTH)
    found = triggered(trunk, "conv3", split, SETTINGS)["strongest"]
    output = seen.outputs(split.segments[:, None].astype(float))
    top = np.stack([seen.outputs(found.values[unit][:, None])[unit] for unit in range(4)])
    assert found.shape == (4, 9, LENGTH) and np.allclose(top[:, 0], output.max(1)) and (np.diff(top) <= 0).all()
    recording = split.recording.repeat(2)
    best = np.stack([[of[recording == r].max() for r in np.unique(recording)] for of in output])
    assert np.allclose(top, -np.sort(-best)[:, :9])


def test_references_stand_beside_signals_of_all_units():
    trunk, split = made_trunk(), noise_split()
    made = references(trunk, "conv1", split, np.ones(LENGTH), SETTINGS)
    assert made["reference"].values.tolist() == list(REFERENCES)
    assert made["signal"].shape == (len(REFERENCES), 4, LENGTH)
    average = made["signal"].sel(reference="triggered average")
    assert np.allclose(np.abs(average).max("time"), 1) and (average[:, :12] == 0).all()
    assert (made["signal"].sel(reference="starting sine") == 1).all()


# -------------------------------------------------------------------------------------------- motifs that units prefer


def test_units_whose_filter_is_a_motif_prefer_it_and_their_own_motif_shows_it():
    truth = synthetic.motifs()
    shapes = truth.shapes[6:]
    filters = torch.tensor(similarity.unit_norm(np.stack(shapes)), dtype=torch.float32)[:, None]
    trunk = Trunk((filters,), (torch.zeros(3),))
    own = np.zeros((3, LENGTH))
    own[:, 8:21] = shapes
    wrong = own[[1, 2, 0]]
    th = xr.DataArray(np.ones(3), dims="unit", coords={"unit": np.arange(3)})
    signals = as_signals(np.stack([own, wrong, np.zeros_like(own)]))
    found = motifs.identification(trunk, "conv1", signals, truth, th)
    assert (found["preferred"] == [6, 7, 8]).all()
    assert found["shown"].values.tolist() == [[6, 7, 8], [7, 8, 6], [-1, -1, -1]]
    assert found["identified"].values.tolist() == [[1, 1, 1], [0, 0, 0], [1 / 9] * 3]
    assert np.allclose(found["match"][0], 1) and (found["lead"] > 0).all() and np.allclose(found["chance"], 1 / 9)


def test_a_layer_is_asked_for_the_motifs_that_it_holds():
    trunk, truth = made_trunk(), synthetic.motifs()
    th = xr.DataArray(np.ones(4), dims="unit", coords={"unit": np.arange(4)})
    signals = as_signals(noise_split(n=2).segments[None])
    for layer, n in (("conv1", 3), ("conv2", 6), ("conv3", 9)):
        found = motifs.identification(trunk, layer, signals, truth, th)
        assert np.allclose(found["chance"].dropna("unit"), 1 / n) and found["shown"].max() < n
    quiet = Trunk(tuple(-w.abs() * 0 for w in trunk.weights), trunk.biases)
    assert motifs.identification(quiet, "conv1", signals, truth, th)["identified"].isnull().all()


# ------------------------------------------------------------------------------------------------- of several networks


@pytest.fixture(scope="module")
def explained_networks(cfg, tiny_windows, tmp_path_factory):
    """Settings, windows, two tiny networks, their statistics and made signals of one method."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("explained")))
        networks = supervised.networks(cfg, tiny_windows)
        statistics = unit_statistics.statistics(cfg, tiny_windows, networks)
    own = dataclasses.replace(cfg, explanation=dataclasses.replace(SETTINGS, n_segments=60, n_groups=(1, 1)))
    values = np.random.default_rng(0).normal(size=(2, 1, 3, 6, LENGTH)).astype(np.float32)
    dims = ("seed", "technique", "layer", "unit", "time")
    coords = {"seed": [0, 1], "technique": ["made"], "layer": ["conv1", "conv2", "conv3"], "unit": np.arange(6)}
    return own, tiny_windows, networks, statistics, xr.DataArray(values, dims=dims, coords=coords)


def test_methods_and_references_stand_in_one_table_with_intervals(explained_networks):
    found = explaining.explanations(*explained_networks)
    assert found["technique"].values.tolist() == ["made", *REFERENCES, STRONGEST]
    again = explaining.explanations(*explained_networks)
    xr.testing.assert_identical(found, again)  # names are not cut off in files
    table = explaining.table(found).set_index(["technique", "layer"])
    assert len(table) == 3 * (len(REFERENCES) + 2) and (table["networks"] == 2).all()
    specific = table["specificity"]
    assert specific["made"].between(table["specificity low"]["made"], table["specificity high"]["made"]).all()
    assert specific["linear filter"].mean() > specific["starting sine"].mean()
    against = explaining.against(found, ["linear filter"]).set_index(["technique", "layer", "measure"])
    expected = found["fidelity"].sel(layer="conv1")
    expected = (expected.sel(technique="made") - expected.sel(technique="linear filter")).mean()
    assert np.isclose(against.loc[("made", "conv1", "fidelity"), "difference"], expected)
    some = explaining.against(found, ["starting sine", "made"], ["made", "linear filter"], ["accuracy"])
    pairs = some.drop_duplicates(["technique", "against"])[["technique", "against"]].values.tolist()
    assert pairs == [["made", "starting sine"], ["linear filter", "starting sine"], ["linear filter", "made"]]


def test_nearness_is_told_of_methods_and_references(explained_networks):
    near = realism.nearness(explaining.beside_real(*explained_networks))
    assert near.dims == ("seed", "technique", "layer", "unit") and near["technique"].values.tolist()[0] == "made"
    assert (
        near.dropna("unit").max() <= 1
        and near.sel(technique="strongest real window").mean() > near.sel(technique="made").mean()
    )


def test_motifs_are_identified_for_methods_references_and_detecting_units(explained_networks):
    found = explaining.motif_identification(*explained_networks, synthetic.motifs())
    table = explaining.motif_table(found)
    assert set(table["technique"]) == {"made", *REFERENCES} and set(table["layer"]) == {"conv1", "conv2", "conv3"}
    own, windows = explained_networks[:2]
    units = explaining.detector_units(own, windows, synthetic.motifs(), ["L2+TV"])
    assert units["motif"].nunique() == 9 and set(units["technique"]) == {"L2+TV", *REFERENCES}
    linear = units[units["technique"] == "linear filter"]
    assert linear["match"].mean() > 0.9 and linear["identified"].mean() > 0.8
