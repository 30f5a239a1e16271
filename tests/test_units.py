"""Units of a recurrent network, units beyond loudness, at their lowest outputs and fine-tuned, and sparse codes."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import made_recordings
from other_networks import np_gru
from sklearn.metrics import roc_auc_score

from harvis_utils.data import archive, synthetic, windowing
from harvis_utils.lenses import concepts, dissection, sparse_codes, unit_concepts
from harvis_utils.lenses.concepts import Concepts
from harvis_utils.lenses.unit_concepts import NOTHING
from harvis_utils.maximization import paper_methods
from harvis_utils.metrics.intervals import traded
from harvis_utils.networks import builders, recurrent, taps
from harvis_utils.paper.stages import Stages
from harvis_utils.settings import (
    DissectionSettings,
    MaximizationSettings,
    PooledSettings,
    RecurrentSettings,
    UnitSettings,
    WindowSettings,
    load_settings,
)
from harvis_utils.training import supervised

SMALL = RecurrentSettings(n_units=5, dropout=0.0)


@pytest.fixture(scope="module")
def windows():
    """Windows of 32 recordings, 4 activities by 8 people, on 3 axes."""
    lengths = {(s, a): 30 + 15 * (5 + (s + a) % 3) for s in range(1, 9) for a in range(4)}
    split = {"train": (1, 2, 3, 4, 5, 6), "val": (7,), "test": (8,)}
    return windowing.cut(made_recordings(lengths, split=split), WindowSettings())


@pytest.fixture(scope="module")
def run(cfg, windows):
    """Settings, windows and two networks of six units."""
    units = UnitSettings(seeds=(0, 1), per_unit=2, n_active=2, n_steps=60)
    own = dataclasses.replace(cfg, units=units, dissection=DissectionSettings(thinning=2, n_draws=19))
    return own, windows, supervised.networks(own, windows)


# -------------------------------------------------------------------------------------------------- a recurrent network


@pytest.mark.parametrize("pool", recurrent.POOLS)
def test_a_recurrent_network_returns_one_tensor_of_what_a_gru_by_hand_gives(windows, pool):
    with supervised.drawing(0):
        network = builders.build(3, 30, 4, dataclasses.replace(SMALL, pool=pool)).eval()
    x = windows.train.x[:5]
    weights = {name: of.detach().double().numpy() for name, of in network.state_dict().items()}
    steps = np_gru(x.transpose(0, 2, 1).astype(float), weights, "gru")
    pooled = steps[:, -1] if pool == "last" else steps.mean(1)
    scores = network(torch.as_tensor(x))
    assert isinstance(scores, torch.Tensor)
    assert np.allclose(scores.detach(), pooled @ weights["classes.weight"].T + weights["classes.bias"], atol=1e-5)
    with pytest.raises(ValueError, match="unknown pool 'most'"):
        builders.build(3, 30, 4, RecurrentSettings(pool="most"))


def test_the_state_is_carried_along_recordings_and_not_from_one_to_the_next(windows, monkeypatch):
    network, split = supervised.new_model(windows, SMALL, 0).eval(), windows.train.every(3)
    monkeypatch.setattr(recurrent, "CHUNK", 4)
    found = recurrent.carried(network, split)
    plain = taps.outputs(network, "gru", split.x)
    assert found.shape == plain.shape
    for i in range(len(split)):
        begin, at = split.start[i] - split.offset[i], split.offset[i]
        with torch.no_grad():
            whole, _ = network.gru(torch.as_tensor(split.series[begin : begin + at + 30])[None])
        assert torch.allclose(found[i, :, 0], whole[0, at:].T, atol=1e-6)
        assert torch.allclose(found[i], plain[i], atol=1e-6) == (at == 0)


def test_every_lens_works_on_a_recurrent_and_on_a_pooled_network_or_says_why_not(windows):
    x = windows.train.x[:3]
    lenses = ["climb", "backward", "ablation", "occlusion", "dissection"]
    for settings in (SMALL, PooledSettings(n_units=4, n_dense=8)):
        network = supervised.new_model(windows, settings, 0).eval()
        can = taps.places(network, x).set_index("layer").loc[list(network.layers), lenses]
        if settings is SMALL:
            assert "no rectifier" in can.pop("backward").item()
        assert (can == "yes").all(axis=None)
    network, how = supervised.new_model(windows, SMALL, 0).eval(), MaximizationSettings(n_steps=10)
    made = paper_methods.maximize(network, "gru", np.full(5, 0.1), units=[2], n_axes=3, length=30, settings=how)
    assert made["signal"].shape == (len(paper_methods.METHODS), 1, 3, 30) and np.isfinite(made["signal"]).all()


def test_stretches_are_the_highest_and_the_lowest_of_different_recordings(windows):
    model = supervised.new_model(windows, SMALL, 0).eval()
    network = supervised.Network(0, model, {}, -1, {}, {}, "key", 0.0)
    signals, outputs = unit_concepts.stretches(network, windows.train, [3, 1], n=2)
    every = recurrent.carried(model, windows.train)[:, [3, 1], 0].numpy()
    assert signals.shape == (2, 4, 3, 30) and outputs.shape == (2, 4, 30)
    for unit in range(2):
        tops = pd.Series(every[:, unit].max(1)).groupby(windows.train.recording).max().nlargest(2)
        lows = pd.Series(every[:, unit].min(1)).groupby(windows.train.recording).min().nsmallest(2)
        assert np.array_equal(outputs[unit, :2].max(1), tops) and np.array_equal(outputs[unit, 2:].min(1), lows)


# ----------------------------------------------------------------------------------------------------- beyond loudness


def made_up(n=400, seed=0):
    """A split's windows, maps of two units and two concepts: one unit is a concept, the other one is the energy."""
    rng = np.random.default_rng(seed)
    loud = rng.choice([0.2, 2.0], (n, 1, 1))
    x = (loud * rng.normal(size=(n, 3, 30))).astype(np.float32)
    masks = np.stack([rng.random(x.shape) < 0.005, (rng.random(x.shape) < 0.04) & (loud > 1)])
    energy = np.broadcast_to(x.var(2, keepdims=True), x.shape) + 1e-6 * rng.random(x.shape)
    maps = torch.tensor(np.stack([masks[1] + 0.1 * rng.random(x.shape), energy], 1), dtype=torch.float32)
    split = dataclasses.make_dataclass("Made", ["x", "recording"])(x, np.arange(n) // 20)
    return split, maps, Concepts(("anywhere", "where it is loud"), ("waveform",) * 2, masks, {})


def test_a_unit_that_is_a_concept_has_it_and_one_that_is_the_energy_has_none():
    split, maps, known = made_up()
    found = unit_concepts.dissect(maps, known, split, 39).expand_dims(layer=["one"])
    assert (found["iou"].sel(concept="where it is loud") > found["iou"].sel(concept="anywhere")).all()
    table = unit_concepts.meanings(found)
    assert table["loudest"].tolist() == ["where it is loud"] * 2
    assert table["concept"].tolist() == ["where it is loud", NOTHING]


@pytest.mark.parametrize("merged", [False, True])
def test_excess_is_counted_as_the_module_says(merged):
    split, maps, known = made_up(60, 1)
    maps = maps[:, :, :1] if merged else maps
    found = unit_concepts.dissect(maps, known, split, 19)
    n, axes = len(split.x), maps.shape[2]
    pieces = [(w, slice(None) if merged else a) for w in range(n) for a in range(axes)]
    energy = np.array([np.sum(split.x[piece].var(-1)) for piece in pieces])
    tenth = np.argsort(np.argsort(energy, kind="stable")) * 10 // len(pieces)
    assert np.array_equal(np.bincount(tenth), [len(pieces) // 10] * 10)
    own = [split.recording[w] * axes + (0 if merged else a) for w, a in pieces]
    masks = known.masks.any(2) if merged else known.masks.reshape(2, -1, 30)
    outputs = maps.transpose(0, 1).reshape(2, -1, 30).numpy()
    on = outputs >= dissection.thresholds(maps).t_k[:, None, None]

    def iou(order):
        return np.array([[(u & c).sum() / (u | c).sum() for c in masks[:, order]] for u in on])

    null = np.stack([iou(other) for other in traded(own, 19, np.random.default_rng(0), tenth)], -1)
    spread = np.sqrt(null.var(-1, ddof=1).mean(0))
    assert np.allclose(found["iou"], iou(slice(None)))
    assert np.allclose(found["excess"], (iou(slice(None)) - null.mean(-1)) / spread)
    others = [(null[..., d] - np.delete(null, d, -1).mean(-1)) / spread for d in range(19)]
    assert np.allclose(found["limit"], np.max(np.max(others, axis=2), axis=0))


def test_what_random_weights_have_too_is_taken_off_network_by_network():
    found = pd.DataFrame(
        [
            {
                "network": "GRU",
                "weights": weights,
                "seed": seed,
                "layer": layer,
                "lowest": seed / 10 + more + (layer == "b"),
            }
            for weights, more in (("trained", 0.2), ("random weights", 0.1))
            for seed in range(3)
            for layer in "ab"
        ]
    )
    row = unit_concepts.beyond_random(found, "lowest").loc["GRU"]
    expected = {"trained": 0.8, "random weights": 0.7, "more": 0.1, "more low": 0.1, "more high": 0.1}
    assert row.to_dict() == pytest.approx(expected)


def test_both_sides_of_units(run):
    cfg, windows, networks = run
    high, low = (
        unit_concepts.readings(cfg, windows, networks, side).assign(weights="trained") for side in unit_concepts.SIDES
    )
    model, split = networks[0].model, windows.train.every(2)
    known = concepts.of_windows(windows, split)
    turned = -taps.outputs(model, "norm_conv2", split.x)
    assert turned.max() > 0 and turned.min() < 0
    by_hand = unit_concepts.meanings(unit_concepts.dissect(turned, known, split, 19).expand_dims(layer=["conv2"]))
    own = low[(low["seed"] == 0) & (low["layer"] == "conv2")].reset_index(drop=True)
    pd.testing.assert_frame_equal(own.drop(columns=["seed", "weights"]), by_hand)
    names = ["peak", "rising edge", NOTHING, "peak"], ["valley", "peak", "peak", "impact"]
    index = {"seed": 0, "weights": "trained", "layer": "conv1", "unit": range(4), "IoU": 0.1}
    tables = [pd.DataFrame(index | {"concept": of}) for of in names]
    tables[1].loc[2, "IoU"] = 0.2
    row = unit_concepts.sides(*tables).iloc[0]
    assert row[["highest", "lowest", "larger at the lowest"]].tolist() == [0.75, 1.0, 0.25]
    assert row["turned over"] == pytest.approx(1 / 3) and row["turned over, any two"] == pytest.approx(2 / 9)
    assert len(unit_concepts.sides(high, low)) == 6


def test_numbers_of_networks(run):
    cfg, windows, _ = run
    training = dataclasses.replace(cfg.training, seeds=(0, 1))
    table = unit_concepts.weighed(cfg, windows, SMALL, training, carried=True, kind="waveform")
    assert set(table["weights"]) == {"trained", "random weights"} and set(table["layer"]) == {"gru"}
    found = unit_concepts.counted(table, ["weights", "layer"])
    found, own = found.loc["trained", "gru"], table[table["weights"] == "trained"]
    unique = [of[of != NOTHING].nunique() for _, of in own.groupby("seed")["concept"]]
    assert found["unique"] == np.mean(unique) and np.isnan(found["unique low"]) and found["networks"] == 2
    assert found["impact, loudest"] == pytest.approx((own["loudest"] == "impact").mean())
    assert found["units with a concept"] == pytest.approx((own["concept"] != NOTHING).mean())


# --------------------------------------------------------------------------------------------------------- fine-tuning


def test_halves_have_no_activity_or_person_in_common(windows):
    first, second = (unit_concepts.half(windows, "activities", which) for which in (0, 1))
    assert first.activities == windows.activities[::2] and second.activities == windows.activities[1::2]
    assert len(first.train) + len(second.train) == len(windows.train) and len(first.test) and len(second.val)
    assert not set(first.train.start) & set(second.train.start)
    assert set(second.train.activity) == {0, 1}
    people = [set(unit_concepts.half(windows, "people", which).train.subject) for which in (0, 1)]
    assert people == [{1, 3, 5}, {2, 4, 6}]


def test_fine_tuning_changes_all_layers_and_only_the_second_half_is_learned(run):
    cfg, windows, _ = run
    before, further, after = unit_concepts.fine_tuned(cfg, windows, "activities")
    assert [net.seed for net in after] == [0, 1] and before[0].key not in (after[0].key, further[0].key)
    for which, nets in enumerate((further, after)):
        test = unit_concepts.half(windows, "activities", which).test
        for old, new in zip(before, nets, strict=True):
            weights = ((getattr(of.model, la).weight for of in (old, new)) for la in old.model.layers)
            assert new.model.classes.out_features == 2 and not any(torch.equal(*of) for of in weights)
            assert np.array_equal(supervised.predict(new.model, test), new.predicted["test"])
    kept, old, new, f1 = unit_concepts.changes(cfg, windows, "people")
    assert 0 <= f1 <= 1 and len(kept) == 2 * 3 * 4 and len(old) == len(new) == 2 * 3 * 6
    assert unit_concepts.became(old, new, "conv3").to_numpy().sum() == 6


def test_shares_of_units_that_keep_their_concept():
    def table(*of):
        index = {"layer": "conv1", "unit": [0, 1, 2] * 2, "seed": [0] * 3 + [1] * 3}
        return pd.DataFrame(index | {"concept": list(of)})

    old = table("peak", "valley", NOTHING, "peak", "peak", "peak")
    new = table("peak", "peak", "peak", "valley", "peak", NOTHING)
    found = unit_concepts.kept_concepts(old, {"the same": old, "fine-tuned": new})
    found = found.set_index(["seed", "compared with"])["share"]
    assert found[0, "the same"] == 1 and found[0, "fine-tuned"] == 0.5
    assert found[0, "another network"] == pytest.approx(2 / 6)  # peak and valley against valley, peak, none
    assert found[1, "fine-tuned"] == pytest.approx(1 / 3) and found[1, "another network"] == 1


# --------------------------------------------------------------------------------------------------------- sparse codes


def sparse_vectors(n=4000, n_units=8, n_directions=16):
    """Vectors that are sums of two of some directions, and these."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(n_directions, n_units))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    z = np.zeros((n, n_directions))
    for row in z:
        row[rng.choice(n_directions, 2, replace=False)] = rng.uniform(1, 2, 2)
    return torch.tensor(z @ directions, dtype=torch.float32), directions


def test_a_code_is_sparse_and_reconstructs_better_than_random_directions():
    h, _ = sparse_vectors()
    settings = UnitSettings(per_unit=2, n_active=3, n_steps=400)
    code, random = sparse_codes.learned(h, settings, 0), sparse_codes.begun(h, settings, 0)
    z = code.latents(h)
    assert z.shape == (4000, 16) and (z >= 0).all() and (z > 0).sum(1).max() <= 3
    top = code.all_latents(h).sort(1, descending=True).values[:, :3]
    assert torch.equal(z.sort(1, descending=True).values[:, :3], top)
    assert torch.allclose(code.decoder.norm(dim=1), torch.ones(16), atol=1e-5)
    again = code.mean + code.scale * z @ code.decoder
    assert torch.allclose(code.vectors(z), again, atol=1e-5)
    errors = [float((h - of.vectors(of.latents(h))).square().mean()) for of in (code, random)]
    assert errors[0] < 0.5 * errors[1] and errors[0] < 0.3 * float(h.var(0).mean())
    assert torch.equal(sparse_codes.learned(h, settings, 0).decoder, code.decoder)
    maps = torch.rand(2, 8, 3, 5)
    assert torch.allclose(code.maps(maps)[1, :, 2, 4], code.latents(maps[1, :, 2, 4]))
    with pytest.raises(ValueError, match="20 of 16 latents"):
        sparse_codes.learned(h, UnitSettings(per_unit=2, n_active=20), 0)


def test_signed_auc_is_that_of_a_library():
    rng = np.random.default_rng(0)
    outputs, inside = rng.integers(0, 5, 200).astype(float), rng.random((3, 200)) < 0.2
    wanted = [2 * roc_auc_score(of, outputs) - 1 for of in inside]
    assert np.allclose(sparse_codes.signed_auc(outputs, inside), wanted)
    assert sparse_codes.signed_auc(outputs, np.zeros((1, 200), bool)) == 0


def test_a_direction_that_is_a_motif_finds_it_and_noise_does_not():
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 160, 3, 30), bool)
    for window in range(160):  # each in two of 16 recordings, on an axis of its own
        if (motif := window // 10 % 8) < 2:
            masks[motif, window, motif, 5:12] = True
    noise = torch.tensor(rng.random((160, 4, 3, 30)), dtype=torch.float32)
    maps = noise.clone()
    maps[:, 2] += 2 * torch.tensor(masks[0])
    maps[:, 1] += 2 * torch.tensor(masks[1])
    recording = np.arange(160) // 10
    found = sparse_codes.motif_scores((maps, maps), (masks, masks), recording, 39)
    assert found["direction"].tolist() == [2, 1] and found["recall"].tolist() == [1, 1]
    assert found["hits"].tolist() == [1, 1] and (found["signed AUC"] == 1).all() and (found["chance"] < 0.9).all()
    none = sparse_codes.motif_scores((noise, noise.flip(0)), (masks, masks), recording, 39)
    assert (none["signed AUC"].abs() < 0.4).all() and not none["recall"].any()


def test_filters_that_are_the_motifs_find_the_planted_ones():
    found = sparse_codes.matched(Stages(load_settings("quick")).data, synthetic.motifs(), 6, 19)
    assert (found["signed AUC"] > 0.8).all() and found["recall"].all()
    assert found["motif"].tolist() == list(synthetic.MOTIFS) and found["direction"].tolist() == list(range(9))


def test_codes_of_networks_are_read_beside_units(run):
    cfg, windows, networks = run
    found = sparse_codes.checked(networks[0], windows, "conv3", cfg.units)
    assert found["R2"] > found["R2, random directions"] and 0 <= found["dead"] <= 1
    test = windows.test
    assert found["F1"] == supervised.macro_f1(test, networks[0].predicted["test"])
    assert not networks[0].model.norm_conv3._forward_hooks
    table = sparse_codes.detectors(cfg, windows, networks, supervised.untrained(cfg, windows))
    assert list(table["kind"].unique()) == list(sparse_codes.KINDS) and len(table) == 2 * len(sparse_codes.KINDS)
    units = table[table["kind"] == "units"]
    assert np.array_equal(units["best of all"], units[sparse_codes.MEASURE]), "there are no more than there are"
    against = sparse_codes.against(table, [sparse_codes.MEASURE])["latents minus this"]
    means = table.groupby("kind", observed=True)[sparse_codes.MEASURE].mean()
    assert against[sparse_codes.MEASURE, "units"] == pytest.approx(means["latents"] - means["units"])
    assert sparse_codes.carriers(table) == "not testable", "two networks are too few"


def test_directions_are_chosen_on_training_people_and_judged_on_test_people(run):
    cfg, windows, (network, _) = run
    found = sparse_codes.read(network, windows, "conv3", cfg.units, "units", 2, 19)
    train, test = windows.train.every(2), windows.test.every(2)
    maps = [taps.outputs(network.model, "conv3", of.x) for of in (train, test)]
    limits = dissection.thresholds(maps[0])
    for name, split, of in zip(("chosen", "judged"), (train, test), maps, strict=True):
        on = (of.numpy() >= limits.t_k[:, None, None]) & ((limits.t_k > limits.rest)[:, None, None] | (of.numpy() > 0))
        peak = concepts.peak(split.x)[:, None]
        wanted = (on & peak).sum((0, 2, 3)) / (on | peak).sum((0, 2, 3))
        assert np.allclose(found[name].sel(concept="peak"), wanted)
    assert float(found["chance"].mean()) < float(found["judged"].max())


def test_the_best_of_a_few_directions_is_that_of_all_draws():
    rng = np.random.default_rng(0)
    chosen, judged = rng.random((2, 6, 3))
    draws = [list(some) for some in itertools.combinations(range(6), 2)]
    wanted = np.mean([[judged[some, k][chosen[some, k].argmax()] for k in range(3)] for some in draws], axis=0)
    assert np.allclose(sparse_codes.best_of(chosen, judged, 2), wanted)
    assert np.array_equal(sparse_codes.best_of(chosen, judged, 9), judged[chosen.argmax(0), range(3)])


def test_what_carries_concepts_is_so_against_every_rival_and_by_the_margin():
    level = dict.fromkeys(sparse_codes.KINDS, 0.1)

    def found(**more):
        rows = [
            {"kind": k, "seed": seed, sparse_codes.MEASURE: v + seed / 1e4}
            for k, v in (level | more).items()
            for seed in range(3)
        ]
        return sparse_codes.carriers(pd.DataFrame(rows))

    assert found() == "not told apart" and found(latents=0.105) == "not told apart"
    assert found(latents=0.2) == "directions" and found(units=0.2) == "units"
    assert found(**{"latents": 0.2, "random directions": 0.2}) == "not told apart", "number and coding do it"
    assert found(**{"units": 0.2, "rotated units": 0.2}) == "not told apart", "any basis does it"
    assert found(**{"latents": 0.2, "latents, random weights": 0.2}) == "not told apart", "training has no part in it"


# -------------------------------------------------------------------------------------------------------- data beside


def test_made_up_data_are_seen_beside_a_noisier_version_and_real_ones_beside_all_that_are_here(tmp_path, monkeypatch):
    monkeypatch.setenv("HARVIS_DATA", str(tmp_path))
    assert "synthetic" in archive.here()
    (tmp_path / "mhealth-approximate").mkdir()
    (tmp_path / "mhealth-approximate" / "mhealth+dataset.zip").touch()
    assert "mhealth-approximate" in archive.here() and "mhealth" not in archive.here()
    (beside,) = Stages(load_settings("quick")).beside
    assert beside.recordings.name == synthetic.variant(0.2).name == beside.cfg.dataset
