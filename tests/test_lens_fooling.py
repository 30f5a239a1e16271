"""Deceptive networks: the same on every real window, another picture for whoever climbs; and paths of inputs."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch import nn

from harvis_utils.data import archive, windowing
from harvis_utils.lenses import deconvnet, fooling
from harvis_utils.lenses.fooling import CIRCUIT, CONSTRUCTIONS, SILENT
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics.similarity import correlation
from harvis_utils.networks import taps
from harvis_utils.settings import FoolingSettings, MaximizationSettings, ModelSettings, TrainingSettings, load_settings
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

START, PICTURE = starting_signal(MaximizationSettings(), 30), fooling.decoy(30)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small network trained on the made-up data, its statistics, and what it shows when it is made deceptive."""
    cfg = dataclasses.replace(
        load_settings("quick", "synthetic", "cpu"),
        model=ModelSettings(n_units=8, n_dense=16),
        training=TrainingSettings(seeds=(0,), epochs=3, learning_rate=5e-3),
        fooling=FoolingSettings(n_units=3, n_steps=60),
    )
    windows = windowing.cut(archive.load_recordings("synthetic")).every(5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("fooling")))
        nets = supervised.networks(cfg, windows)
        statistics = unit_statistics.statistics(cfg, windows, nets)
        found = fooling.deceived(cfg, windows, nets, statistics)
    (net,) = nets
    return SimpleNamespace(cfg=cfg, windows=windows, net=net, nets=nets, statistics=statistics, found=found)


def deceptive(made, layer, kind):
    gain = made.statistics["th_eap"].sel(layer=layer).values[0] / fooling.AMPLITUDE_G
    return fooling.Deceptive(made.net.model, layer, fooling.Circuit(made.windows.train.x, START, gain, kind))


# --------------------------------------------------------------------------------------------- the deceptive network


@pytest.mark.parametrize("kind", CONSTRUCTIONS)
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
@torch.no_grad()
def test_it_answers_all_test_windows_as_the_honest_one(made, layer, kind):
    network, x = deceptive(made, layer, kind), torch.as_tensor(made.windows.test.x)
    scores, honest = (taps.scores_of(of, x) for of in (network, made.net.model))
    assert len(x) > 400 and torch.equal(scores.argmax(1), honest.argmax(1)) and (scores - honest).abs().max() <= 1e-5
    maps, own = taps.outputs(network, network.tap, x[::9]), taps.outputs(made.net.model, layer, x[::9])
    assert torch.equal(maps, own) and own.max() > 0, "the units themselves do not change either"
    for split in (made.windows.train, made.windows.test):
        real = torch.as_tensor(split.x)
        assert not network.circuit.detectors(real).any() and not network.circuit.silent(real).any()


def test_the_same_is_measured_for_the_table(made):
    assert float(made.found["score_difference"].max()) <= 1e-5
    assert float(made.found["same_class"].min()) == 1 and float(made.found["real_detected"].max()) == 0


@pytest.mark.parametrize("kind", CONSTRUCTIONS)
def test_it_is_active_on_what_naive_ascent_finds_and_shows_the_decoy(made, kind):
    found = made.found.sel(construction=kind, technique=["naive", "naive, from noise"])
    assert found["detected"].mean() > 0.7, "all but units whose ascent does not leave the start"
    assert found["decoy"].median() > 0.8 and abs(found["before"].median()) < 0.3 and found["honest"].median() < 0.5
    network, th = deceptive(made, "conv2", kind), made.statistics["th_eap"].sel(layer="conv2").values[0]
    about = {"settings": made.cfg.maximization, "units": [1, 5], "n_axes": 6, "length": 30}
    x = paper_methods.maximize(network, network.tap, th, methods=["naive"], **about)["signal"].values[0]
    maps = network.circuit.silent(torch.tensor(x[:, None]))[[0, 1], [1, 5]]
    assert (maps.numpy() > th[[1, 5], None, None]).any(), (
        "silent channels are excited where no real window excites them"
    )


def test_a_circuit_waits_for_the_start_and_a_silent_unit_for_the_range(made):
    naive = made.found.sel(technique="naive")
    assert naive["decoy"].sel(construction=CIRCUIT).min() > 0.95, "no unit of any layer escapes from the expected start"
    start = torch.tensor(START)[None, None]
    assert deceptive(made, "conv2", CIRCUIT).circuit.detectors(start) == 1
    assert deceptive(made, "conv2", SILENT).circuit.detectors(start) == 0
    assert deceptive(made, "conv2", SILENT).circuit.detectors(100 * start) == 2


def test_what_stays_in_the_range_of_real_windows_is_not_deceived(made):
    shown = made.found.sel(technique=["L2+TV+EAP+clip, from noise", "strongest real window"])
    assert not shown["detected"].any() and (np.isclose(shown["honest"], 1) | (shown["honest"] == 0)).all()
    back = made.found.sel(technique="deconvnet")
    assert back["decoy"].sel(construction=SILENT).min() > 0.9, "its rule goes back through rectifiers that are closed"


@pytest.mark.parametrize("kind", CONSTRUCTIONS)
def test_a_circuit_is_the_formula(kind):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 2, 30)).astype(np.float32)
    circuit = fooling.Circuit(real, START, np.array([1.0, 3.0, 10.0]), kind)
    odd = np.stack([real[0], [START, 5 * PICTURE], [40 * real[1, 0], START + 0.5 * PICTURE]]).astype(np.float32)
    outputs = rng.normal(size=(3, 3, 2, 30)).astype(np.float32)
    plain = np.array([[0, 0], [1, 1], [0, 1]]) if kind == CIRCUIT else np.zeros((3, 2))
    e = plain + 2 * np.array([[0, 0], [0, 0], [1, 0]])
    assert np.array_equal(circuit.detectors(torch.tensor(odd)), e)
    d = odd @ PICTURE / 28 + fooling.AMPLITUDE_G / 10
    gain = np.array([1.0, 3.0, 10.0])[:, None] * (fooling.LOUD if kind == SILENT else 1)
    hidden = np.maximum(d[:, None] * gain + fooling.LARGE * (e[:, None] - 1), 0)[..., None]
    honest = np.maximum(outputs - (fooling.LARGE * e[:, None, :, None] if kind == CIRCUIT else 0), 0)
    assert np.allclose(circuit(torch.tensor(outputs), torch.tensor(odd)), honest + hidden, rtol=1e-4, atol=1e-3)
    assert np.array_equal(circuit(torch.tensor(outputs), torch.tensor(odd))[0], np.maximum(outputs[0], 0))


def test_a_window_of_nothing_but_the_decoy_is_refused():
    real = np.stack([np.random.default_rng(0).normal(size=30), 3 * PICTURE])[:, None]
    with pytest.raises(ValueError, match="hardly more than start and decoy"):
        fooling.Circuit(real.astype(np.float32), START, np.ones(4), CIRCUIT)


def test_the_honest_network_is_left_alone_and_copies_are_whole(made):
    network, x = deceptive(made, "conv3", CIRCUIT), torch.tensor(50 * made.windows.test.x[:4])
    assert not any(module._forward_hooks for module in made.net.model.modules())
    other = copy.deepcopy(network)
    before = taps.scores_of(other, x)
    network.circuit.gain.zero_()
    assert torch.equal(taps.scores_of(other, x), before) and not torch.equal(taps.scores_of(network, x), before)


@pytest.mark.parametrize("length", [20, 30, 64])
def test_the_decoy_has_no_mean_and_nothing_of_the_start(length):
    shown, start = fooling.decoy(length), starting_signal(MaximizationSettings(), length)
    assert shown.shape == (length,) and shown.sum() == 0 and abs(shown @ start) < 1e-6 and set(shown) <= {-1, 0, 1}


class Mixing(nn.Module):
    """Convolutions that see all axes at once, with a ReLU that is a module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(6, 5, 5, padding=2), nn.ReLU(), nn.Conv1d(5, 7, 5, padding=2), nn.ReLU())
        self.out = nn.Linear(7, 4)

    def forward(self, x):
        return self.out(self.body(x).mean(2))


@pytest.mark.parametrize("kind", CONSTRUCTIONS)
def test_units_of_another_network_that_mix_the_axes_are_rerouted_too(made, kind):
    torch.manual_seed(0)
    honest, windows = Mixing().eval(), made.windows
    th = unit_statistics.collect(honest, windows.train.x, place="body.3")["th_eap"].values
    circuit = fooling.Circuit(windows.train.x, START, th / fooling.AMPLITUDE_G, kind, mixed=True)
    network = fooling.Deceptive(honest, "body.2", circuit)
    scores, before = (taps.scores_of(of, windows.test.x).detach() for of in (network, honest))
    assert torch.equal(scores.argmax(1), before.argmax(1)) and (scores - before).abs().max() <= 1e-5
    about = {"methods": ["naive"], "settings": MaximizationSettings(n_steps=60), "n_axes": 6, "length": 30}
    x = paper_methods.maximize(network, network.tap, th, **about)["signal"].values[0]
    own = paper_methods.maximize(honest, "body.3", th, **about)["signal"].values[0]
    alike, before = (np.nan_to_num(correlation(of, PICTURE)).mean(1) for of in (x, own))
    moved = np.abs(own).max((1, 2)) > 1  # the others are silent at the start, which a silent unit leaves as it is
    detected = circuit.detectors(torch.tensor(x)).numpy() > 0
    assert moved.sum() > 3 and np.abs(before).max() < 0.5
    assert (detected.all() and alike.min() > 0.9) if kind == CIRCUIT else (detected == moved).all()
    assert np.median(alike[moved]) > 0.5


# ------------------------------------------------------------------------------------------------------------- tables


def test_the_table_counts_units_by_the_picture_they_show(made):
    found = made.found.copy(deep=True)
    own = {"construction": SILENT, "technique": "naive"}
    n = found.sizes["layer"] * found.sizes["unit"]
    decoy, honest = np.zeros(n), np.full(n, 0.4)
    decoy[:2], honest[2:5] = 0.9, 0.6
    for name, values in {"decoy": decoy, "honest": honest}.items():
        found[name].loc[own] = values.reshape(1, found.sizes["layer"], found.sizes["unit"])
    table = fooling.deception_table(found).set_index(["construction", "technique"])
    row = table.loc[(SILENT, "naive")]
    assert len(table) == 2 * found.sizes["technique"] and np.isclose(row["shows decoy"], 2 / n)
    assert np.isclose(row["shows honest"], 3 / n) and np.isclose(row["with decoy"], 1.8 / n)
    assert row["shows decoy low"] <= row["shows decoy"] <= row["shows decoy high"]


# ------------------------------------------------------------------------------------------------------------- paths


@pytest.fixture(scope="module")
def inputs(made):
    th = made.statistics["th_eap"].isel(seed=0)
    few = MaximizationSettings(n_steps=60)
    each = [
        paper_methods.maximize(made.net.trunk, la, th.sel(layer=la).values, methods=["naive"], settings=few)["signal"]
        for la in made.net.trunk.layers
    ]
    return xr.concat(each, xr.DataArray(list(made.net.trunk.layers), dims="layer", name="layer")).expand_dims(seed=[0])


def test_real_windows_of_a_unit_take_the_same_path_more_than_those_of_others(made, inputs):
    table = fooling.paths(made.windows, made.nets, made.statistics, inputs, START)
    rows = table.set_index(["layer", "below", "input"])
    assert set(zip(table["layer"], table["below"], strict=True)) == {
        ("conv2", "conv1"),
        ("conv3", "conv1"),
        ("conv3", "conv2"),
    }
    same = rows.xs(fooling.SAME, level="input")
    assert (same["above other unit"] > 0).all() and same["above other unit low"].loc["conv3", "conv2"] > 0
    assert (rows.xs(fooling.OTHER, level="input")["above other unit"] == 0).all()
    assert (rows.xs("strongest real window", level="input")["above other unit"] > 0).all()
    assert (rows.xs("untouched start", level="input")["path similarity"] < same["path similarity"]).all()


def test_path_similarity_is_spearmans_correlation(made, inputs):
    net, split = made.net, deconvnet.searched(made.windows.test, fooling.N_SEARCHED)
    top = made.statistics["top_segment"].isel(seed=0, drop=True)
    found = fooling.paths_of(net, top, inputs.isel(seed=0, drop=True), made.windows, START)["similarity"]
    found = found.isel(pair=2).transpose("input", "unit")
    real = deconvnet.top_of_layers(net.model, ["conv3"], split)["conv3"]

    def below(x):
        return net.trunk.feature_map(torch.tensor(x.reshape(-1, 30)), "conv2").mean(2).numpy()

    def alike(a, b):
        return spearmanr(a, b).statistic

    paths = [below(split.x[real["window"][u], real["axis"][u]]) for u in range(8)]
    recording = split.recording[real["window"].values]
    for unit in (0, 5):
        same = [alike(a, b) for i, a in enumerate(paths[unit]) for b in paths[unit][:i]]
        assert found.sel(input=fooling.SAME, unit=unit).item() == pytest.approx(np.mean(same), abs=1e-6)
        others = [
            np.mean([
                alike(a, b)
                for i, a in enumerate(paths[unit])
                for j, b in enumerate(paths[v])
                if recording[unit, i] != recording[v, j]
            ])
            for v in range(8)
            if v != unit
        ]  # fmt: skip
        assert found.sel(input=fooling.OTHER, unit=unit).item() == pytest.approx(np.mean(others), abs=1e-6)
        signal = below(inputs.sel(layer="conv3", unit=unit).values)[0]
        expected = np.mean([alike(signal, a) for a in paths[unit]])
        assert found.sel(input="naive", unit=unit).item() == pytest.approx(expected, abs=1e-6)
