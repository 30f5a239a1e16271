"""ST-ABN: what attention does inside the network, what its edits and measures mean, and every lens on it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import made_recordings
from torch.nn import functional as F

from harvis_utils.data import windowing
from harvis_utils.lenses import attention, deconvnet, occlusion
from harvis_utils.lenses.attention import BOTH, EDITS, INVERTED, INVERTED_OTHER, ITSELF, MEAN, OTHER, SCALED, SHUFFLED
from harvis_utils.maximization.paper_methods import maximize
from harvis_utils.networks import builders, taps, trunks
from harvis_utils.networks.attention_branch import SPATIAL, TEMPORAL, Edited
from harvis_utils.paper import attention_branches
from harvis_utils.paper.attention_branches import ATTENDING, BASELINE, BRANCH, HARDER, OWN, WIDER
from harvis_utils.settings import BranchSettings, MaximizationSettings, TrainingSettings, WindowSettings
from harvis_utils.training import supervised

SMALL = BranchSettings(n_units=4)
TRAINING = TrainingSettings(seeds=(0, 1), epochs=2, learning_rate=1e-2, batch_size=8)


def made(seed: int = 0, n_axes: int = 3, length: int = 30, **changes):
    with supervised.drawing(seed):
        network = builders.build(n_axes, length, 4, dataclasses.replace(SMALL, **changes))
    for module in network.modules():  # batch norms that do something
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return network.eval()


def windows(n: int = 6, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, 3, 30, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def level():
    """Windows of 30 samples, not overlapping, of three activities, and networks of four units."""
    lengths = {(s, a): 30 * 8 for s in (1, 2, 3, 4) for a in range(3)}
    data = windowing.cut(made_recordings(lengths), WindowSettings(30, 30, 30))
    return attention_branches.Level(data, None, SMALL, TRAINING)


@pytest.fixture
def network(level, cfg):
    return supervised.train(cfg, level.windows, 0, model=SMALL, training=TRAINING)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [({}, 110_756), ({"spatial": False, "temporal": "none", "branch": "none"}, 67_603), ({"n_units": 16}, 19_796)],
)
def test_weights_are_as_many_as_counted_by_hand(changes, wanted):
    network = builders.build(6, 64, 19, BranchSettings(**changes))
    assert sum(of.numel() for of in network.parameters()) == wanted


@pytest.mark.parametrize("temporal", ["absolute", "conv"])
def test_maps_lie_between_0_and_1_and_can_turn_samples_off(temporal):
    network = made(temporal=temporal)
    plain = network.attend(windows())
    assert plain[SPATIAL].shape == (6, 1, 3, 30) and plain[TEMPORAL].shape == (6, 1, 1, 30)
    assert all((of > 0).all() and (of < 1).all() for of in plain.values())
    network.branch.weigh[-1].bias.data -= 3
    assert network.attend(windows())[TEMPORAL].min() < 0.4, "a sigmoid of a ReLU would be 0.5 at least"


def test_features_under_maps_of_zero_are_those_of_the_residual_alone():
    network, x = made(), windows()
    f, nothing = network.features(x), {SPATIAL: torch.zeros(6, 1, 3, 30), TEMPORAL: torch.zeros(6, 1, 1, 30)}
    expected = F.relu(network.norm_fuse(network.fuse(torch.cat([f, torch.zeros_like(f)], 1))))
    assert torch.equal(network.weighed(f, nothing), expected)
    ones = {name: torch.ones_like(of) for name, of in nothing.items()}
    expected = F.relu(network.norm_fuse(network.fuse(torch.cat([2 * f, f], 1))))
    assert torch.equal(network.weighed(f, ones), expected)


@pytest.mark.parametrize("changes", [*attention_branches.COMPARED.values(), *attention_branches.ABLATIONS.values()])
def test_a_pass_returns_one_tensor_and_learning_gets_what_there_is(changes):
    network, x = made(**changes), windows()
    scores = network(x)
    assert scores.shape == (6, 4) and torch.equal(network.heads(x)[0], scores)
    assert len(network.heads(x)) == (1 if changes.get("branch") == "none" else 2)
    assert torch.equal(taps.scores_of(network, x), scores)


def test_a_branch_that_is_switched_off_is_the_baseline_bit_for_bit():
    baseline, x = made(3, spatial=False, temporal="none", branch="none"), windows()
    for other in (made(4, spatial=False, temporal="none"), made(5, fusion="residual")):
        missing, unexpected = other.load_state_dict(baseline.state_dict(), strict=False)
        assert not unexpected and all(name.startswith("branch.") for name in missing)
        off = other(x, change=lambda maps: {name: torch.zeros_like(of) for name, of in maps.items()})
        assert torch.equal(off, baseline(x))
    assert not torch.allclose(other(x), baseline(x))


def test_the_control_learns_from_the_label_of_another_window():
    own, other = made(2), made(2, branch="other labels")
    first, second = own.heads(windows()), other.heads(windows())
    assert torch.equal(first[0], second[0]) and torch.equal(first[1].roll(1, 0), second[1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"branch": "none"}, "attention needs a branch"),
        ({"temporal": "frames"}, "unknown temporal attention 'frames'; valid .*: absolute, conv, none"),
        ({"fusion": "sum"}, "unknown fusion 'sum'"),
        ({"branch": "yes"}, "unknown branch 'yes'"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        made(**changes)


def test_convolutional_attention_goes_along_with_the_window_and_dense_does_not():
    x, found = torch.zeros(1, 3, 60), {}
    x[:, :, 20:30] = windows(1)[:, :, :10]
    for temporal in ("conv", "absolute"):
        network = made(length=60, temporal=temporal)
        before, after = (network.attend(of)[TEMPORAL].flatten() for of in (x, x.roll(8, 2)))
        found[temporal] = (after[18:46] - before[10:38]).abs().max() / before.std()
    assert found["conv"] < 1e-3 < 0.5 < found["absolute"]


# ------------------------------------------------------------------------------------------------------- the lens


def test_edits_do_what_they_are_called():
    rng = np.random.default_rng(0)
    maps = rng.random((8, 3, 30)).astype(np.float32)
    other = occlusion.elsewhere(np.repeat([0, 1], 4))
    edited = {name: edit(maps, other, np.random.default_rng(1)) for name, edit in EDITS.items()}
    assert all(of.shape == maps.shape for of in edited.values())
    assert np.allclose(EDITS[INVERTED](edited[INVERTED], other, rng), maps, atol=1e-7)
    for name, scale in {MEAN: maps, SCALED: edited[INVERTED], SHUFFLED: maps}.items():
        assert np.allclose(edited[name].mean((1, 2)), scale.mean((1, 2)), atol=1e-6)
    assert np.ptp(edited[SCALED], axis=(1, 2)).max() == 0
    assert np.allclose(np.sort(edited[SHUFFLED], 2), np.sort(maps, 2)) and not np.allclose(edited[SHUFFLED], maps)
    assert np.array_equal(edited[OTHER], np.roll(maps, 4, 0))


def test_given_maps_take_the_place_of_the_networks_own(level, network):
    x = level.windows.test.x
    maps, plain = attention.maps_of(network.model, x), attention.scores_of(network.model, x)
    assert np.allclose(attention.scores_of(network.model, x, maps), plain, atol=1e-6)
    for kind, of in maps.items():
        changed = {kind: np.zeros_like(of)}
        expected = network.model(torch.tensor(x), change=lambda own, kind=kind: dict(own) | {kind: own[kind] * 0})
        assert np.allclose(attention.scores_of(network.model, x, changed), expected.detach().numpy(), atol=1e-6)
        assert not np.allclose(expected.detach().numpy(), plain, atol=1e-3)


def test_edits_of_a_network_are_scored_by_map_and_kept(level, network):
    found = attention.edits(network, level.windows)
    assert found.groupby("edited", sort=False).size().to_dict() == dict.fromkeys((SPATIAL, TEMPORAL, BOTH), len(EDITS))
    own = supervised.macro_f1(level.windows.test, network.predicted["test"])
    assert np.allclose(found.loc[found["edit"] == ITSELF, "macro F1"], own)
    pd.testing.assert_frame_equal(attention.edits(network, level.windows), found)


def test_moved_windows_are_the_same_recording_later(level):
    here, later = attention.moved(level.windows.test, 8)
    assert len(here) == 3 * 7 and np.array_equal(here.recording, later.recording)
    assert np.array_equal(here.x[..., 8:], later.x[..., :-8])


def test_maps_that_are_one_curve_stay_where_they_are(level, network):
    model = network.model
    torch.nn.init.zeros_(model.branch.weigh[2].weight)
    fixed = dataclasses.replace(network, model=model, key="a curve of its own")
    found = attention.shifts(fixed, level.windows).set_index("attention").loc[TEMPORAL]
    assert found["stays"] == pytest.approx(1) and found["another window"] == pytest.approx(1)
    assert found["goes along"] < 0.9


def test_lenses_are_compared_with_one_another(level, network):
    found = attention.agreement(network, level.windows, 12).set_index(["attention", "lens", "beside"])
    own = found["own"]
    for kind in (SPATIAL, TEMPORAL):
        lenses = own.loc[kind].index.get_level_values("lens").unique()
        assert {"attention", "untrained branch", "occlusion", "local energy"} < set(lenses)
        pairs = [(one, other) for one in lenses for other in lenses if one != other]
        assert own.loc[kind].index.tolist() == pairs, "in one order, whatever the process"
        both = [own[(kind, *pair)] for pair in (("attention", "occlusion"), ("occlusion", "attention"))]
        assert both[0] == pytest.approx(both[1])
    assert own.abs().max() <= 1


# -------------------------------------------------------------------------------------------- all other lenses on it


def test_every_lens_sees_it_or_says_why_not(level, network):
    model, x = network.model, level.windows.test.x[:8]
    listed = taps.places(model, x).set_index("layer")
    assert (listed.loc[["norm_conv1", "norm_conv2", "norm_fuse", "branch.norm_k1"], "climb"] == "yes").all()
    assert listed.loc["norm_conv2", "backward"] == "yes"
    assert "Sigmoid" in listed.loc["norm_fuse", "backward"]
    assert listed.loc["norm_mix", ["climb", "ablation", "occlusion"]].eq("yes").all()
    with pytest.raises(ValueError, match="Sigmoid"):
        deconvnet.project(model, "classes", x, deconvnet.classes([0] * 8), "deconvnet")
    with taps.silenced(model, "norm_fuse", range(SMALL.n_units)), torch.no_grad():
        assert np.ptp(model(torch.tensor(x)).numpy(), axis=0).max() < 1e-5


def test_its_first_two_convolutions_are_a_trunk_and_what_follows_is_not(level, network):
    model, x = network.model, level.windows.train.x
    trunk = trunks.trunk_of(model, taps.find(model, "norm_conv2", rectified=True), x[:8])
    assert trunk.layers == ("conv1", "conv2") and trunk.receptive_field("conv2") == 9
    made = maximize(trunk, "conv2", np.full(SMALL.n_units, np.nan), settings=MaximizationSettings(n_steps=5))
    assert np.isfinite(made["signal"]).all() and made.sizes["unit"] == SMALL.n_units
    with pytest.raises(ValueError, match="not the end of a per-axis trunk"):
        trunks.trunk_of(model, taps.find(model, "norm_conv3", rectified=True), x[:8])


def test_units_behind_the_fusion_are_climbed_with_maps_free_and_frozen(level, network):
    found = attention_branches.climbed(network, level.windows, MaximizationSettings(n_steps=15))
    assert set(found["climbed"]) == {"free", "frozen"} and {SPATIAL, TEMPORAL} < set(found)
    outputs = found[["output, maps free", "output, maps frozen"]]
    assert outputs.ge(0).all(axis=None) and outputs.max().gt(0).all()
    assert not np.allclose(*outputs.T.to_numpy()), "the maps decide something"
    held = Edited(network.model, lambda maps: {name: torch.full_like(of, 0.5) for name, of in maps.items()})
    x = torch.tensor(level.windows.test.x[:4])
    assert torch.equal(held(x), network.model(x, change=held.change))


# ------------------------------------------------------------------------------------------------ the experiments


def test_the_wider_baseline_has_as_many_weights(level):
    counts = {name: attention_branches.n_weights(level, attention_branches.settings_of(name, level)) for name in
              (BASELINE, WIDER, ATTENDING)}  # fmt: skip
    assert abs(counts[WIDER] - counts[ATTENDING]) < 0.1 * counts[ATTENDING] and counts[BASELINE] < counts[WIDER]


def test_two_clips_share_no_sample_and_no_recording(level, network):
    split = level.windows.test
    first, second = attention_branches.following(split)
    assert len(first) == 3 * 7 and np.array_equal(split.recording[first], split.recording[second])
    assert (split.offset[second] - split.offset[first] == split.length).all()
    found = attention_branches.accuracies(network, level.windows).set_index("clips")
    predicted = network.predicted["test"]
    assert found.loc[1, "top-1"] == pytest.approx((predicted == split.activity).mean())
    assert found.loc[1, "macro F1"] == pytest.approx(supervised.macro_f1(split, predicted))
    assert (found["top-5"] == 1).all(), "there are three classes"


def test_the_branch_learns_and_the_networks_differ_by_seed_alone(level, cfg):
    cfg = dataclasses.replace(cfg, branches=dataclasses.replace(cfg.branches, n_networks=1))
    assert len(attention_branches.networks(cfg, level, BRANCH)) == 2
    assert len(attention_branches.networks(cfg, level, "residual fusion")) == 1
    net = attention_branches.networks(cfg, level, BRANCH)[0]
    fresh = supervised.new_model(level.windows, net.model.settings, net.seed)
    assert not torch.equal(net.model.branch.k2.weight, fresh.branch.k2.weight)
    assert torch.equal(attention.without_training(net, level.windows).branch.k2.weight, fresh.branch.k2.weight)


def told(lower: float, other: float = 0.1, same_scale: str = SCALED) -> tuple:
    """Tables as measures give them, in which inversion costs ``lower`` more than what has its ``same_scale``.

    Maps correlate with local energy at 0.2, those of another window at ``other``.
    """
    seeds, names = range(3), attention_branches.COMPARED
    gain = dict(zip(names, (0.0, 0.03, 0.0, 0.0, 0.0, 0.02), strict=True))
    accuracy = [
        {"network": name, "seed": s, "clips": clips, "top-1": 0.7 + gain[name] + 0.001 * s}
        for name in names for s in seeds for clips in (1, 2)
    ]  # fmt: skip
    score = dict.fromkeys(EDITS, 0.7) | {SCALED: 0.5, same_scale: 0.4, INVERTED: 0.4 - lower}
    edited = [
        {"edited": kind, "edit": name, "seed": s, "macro F1": score[name] + 0.001 * s * (name == same_scale)}
        for kind in (SPATIAL, TEMPORAL, BOTH) for name in EDITS for s in seeds
    ]  # fmt: skip
    alike, located = [], []
    for kind in (SPATIAL, TEMPORAL):
        for lens in ("attention", "untrained branch", attention.NO_NETWORK):
            for s in seeds:
                row = {"attention": kind, "lens": lens, "seed": s}
                alike.append(row | {"beside": "local energy", "own": 0.2, "other": other})
                located.append(row | {"AUC": 0.3 + 0.01 * s, "AUC of another window": 0.2})
    edited = pd.DataFrame(edited)
    return pd.DataFrame(accuracy), {OWN: edited, HARDER: edited}, pd.DataFrame(alike), pd.DataFrame(located)


def by_id(*about, **more) -> dict[str, dict]:
    return {of["id"]: of for of in attention_branches.judged(*told(*about, **more))}


def test_a_drop_that_maps_without_knowledge_cost_too_is_no_evidence():
    same = by_id(0.0)
    assert same.keys() == attention_branches.QUESTIONS.keys()
    assert same["D3 both"]["direction"] == "no" and same["D3 both"]["controls"]["drop, inverted"]["value"] > 0.2
    assert by_id(0.1)["D3 both"]["direction"] == "yes"
    assert by_id(0.0, same_scale=INVERTED_OTHER)["D3 both"]["direction"] == "no", "a constant alone costs less"
    assert same["D1"]["direction"] == "yes" and same["D1 equal weights"]["direction"] == "no"
    said = attention_branches.answer(same)
    assert "costs 0.300 of macro F1, a constant of that scale, without any map, 0.29" in said
    assert "gains +0.020 by attention, +0.030 by a wider network" in said
    assert (
        "wider network: no. Maps that point as well as attention, within the margin: D2 spatial: untrained branch"
        in said
    )


def test_a_map_that_every_window_has_or_that_points_away_points_nowhere():
    own, fixed = by_id(0.0), by_id(0.0, other=0.2)
    assert own["D2 spatial"]["direction"] == "yes" and fixed["D2 spatial"]["direction"] == "no"
    assert own["D2 temporal, motifs"]["direction"] == "no", "0.3 is above another window's 0.2, and below 0.5"
    assert own["D2 temporal, motifs"]["value"] == pytest.approx(-0.19)
