"""A network with pooling: its switches and others in their place, the parts that it finds, and where labels change."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harvis_utils.data import archive, windowing
from harvis_utils.lenses import deconvnet, locating, occlusion, pooling
from harvis_utils.networks import backward, builders, taps, trunks
from harvis_utils.settings import ModelSettings, PooledSettings, load_settings
from harvis_utils.store.results import described
from harvis_utils.training import supervised

SMALL = ModelSettings(n_units=4, n_dense=8)


def pooled(pooling: str = "max", length: int = 30) -> nn.Module:
    torch.manual_seed(0)
    return builders.build(3, length, 5, PooledSettings(**vars(SMALL), pooling=pooling)).eval()


X = torch.randn(12, 3, 30, generator=torch.Generator().manual_seed(1))


def test_pooling_halves_behind_every_convolution_and_addresses_tell_it_from_sfhf():
    for kind in ("max", "mean"):
        model = pooled(kind)
        assert [taps.outputs(model, la, X).shape for la in model.layers] == [(12, 4, 3, n) for n in (30, 15, 7)]
        assert model(X).shape == (12, 5) and all(taps.outputs(model, la, X).min() == 0 for la in model.layers)
    assert described(PooledSettings()) == described(ModelSettings()) | {"pooling": "max"}
    with pytest.raises(ValueError, match="unknown pooling 'median'"):
        pooled("median")
    with pytest.raises(ValueError, match="cannot be halved 3 times"):
        pooled(length=7)


def unpooled_by_hand(model: nn.Module, x: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
    """The deconvnet of Zeiler and Fergus written down: unpool, rectify, filter, from conv2 on."""
    conv, norm, _ = model.conv1
    _, switches = F.max_pool2d(model.conv1(x[:, None]), (1, 2), return_indices=True)
    for i, layer in enumerate((model.conv2, model.conv1)):
        conv, norm, _ = layer
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        back = F.conv_transpose2d(F.relu(back), conv.weight * scale[:, None, None, None], padding=conv.padding)
        if i == 0:
            back = F.max_unpool2d(back, switches, (1, 2))
    return back[:, 0]


def test_projections_unpool_by_the_switches_of_the_window():
    model = pooled()
    keep = deconvnet.strongest()
    found = deconvnet.project(model, "conv2", X, keep)
    kept = keep(taps.outputs(model, "conv2", X), torch.ones(12, dtype=torch.bool))
    assert torch.allclose(found, unpooled_by_hand(model, X, kept).detach(), atol=1e-6) and found.abs().max() > 0


@pytest.mark.parametrize("call", [
    lambda x: F.max_pool2d(x, (1, 2)), nn.MaxPool2d(2, ceil_mode=True), lambda x: torch.max_pool2d(x, (1, 3), (1, 1)),
    lambda x: F.max_pool2d(x, (1, 3), 1, (0, 1), return_indices=True)[0], nn.AdaptiveMaxPool2d((2, 3)),
    lambda x: F.max_pool1d(x[:, 0], 2)[:, None],
])  # fmt: skip
def test_other_switches_change_the_way_back_alone(call):
    x = X.view(12, 1, 6, 15).clone().requires_grad_(True)
    above = torch.rand_like(plain := call(x))
    with backward.switches(lambda h: h):
        same = call(x)
    with backward.switches(lambda h: -h):
        other = call(x)
    assert torch.equal(same, plain) and torch.equal(other, plain)
    own, twin, moved = (torch.autograd.grad(of, x, above)[0] for of in (plain, same, other))
    assert torch.allclose(own, twin) and not torch.allclose(own, moved) and torch.isclose(own.sum(), moved.sum())


def test_switches_of_another_window_are_those_of_the_window_that_is_said():
    model, score = pooled(), deconvnet.classes([0] * 12)
    own, drawn, lent = (deconvnet.project(model, "classes", X, score, rule) for rule in deconvnet.SWITCHED)
    assert torch.allclose(lent, own.roll(4, 0), atol=1e-6), "nothing else of a window has a part in a class' projection"
    assert torch.equal(drawn, deconvnet.project(model, "classes", X, score, deconvnet.SWITCHED[1]))
    assert not torch.allclose(drawn, own) and not torch.allclose(lent, own)
    with pytest.raises(ValueError, match="unknown set of switches 'none'; valid"):
        deconvnet.project(model, "classes", X, score, "deconvnet, none")


def test_mean_pooling_has_nothing_to_keep():
    model, one = pooled("mean"), deconvnet.classes([0] * 12)
    rules = [deconvnet.project(model, "classes", X, one, rule) for rule in deconvnet.SWITCHED]
    assert all(torch.equal(of, rules[0]) and torch.allclose(of, of[:1]) for of in rules)
    moving = deconvnet.project(pooled(), "classes", X, one)
    assert not torch.allclose(moving, moving[:1])


def test_the_paper_s_method_refuses_a_pooled_trunk_with_the_reason():
    with pytest.raises(ValueError, match="pool1 is a MaxPool2d"):
        trunks.trunk_of(pooled(), "conv2", X)


# ------------------------------------------------------------------------------------------------------- measures


def test_auc_is_the_share_of_pairs_in_order_and_recall_that_of_the_largest():
    rng = np.random.default_rng(0)
    maps, parts = rng.integers(1, 7, (5, 2, 20)).astype(float), rng.random((5, 2, 20)) < 0.4
    among = rng.random((5, 2, 20)) < 0.8
    found, recalled = pooling.auc(maps, parts, among), pooling.recall(maps, parts)
    for i in range(5):
        a, b = maps[i][parts[i] & among[i]], maps[i][~parts[i] & among[i]]
        pairs = (a[:, None] > b) + 0.5 * (a[:, None] == b)
        assert found[i] == pytest.approx(pairs.mean())
        least = np.sort(maps[i].ravel())[-parts[i].sum()]
        assert (maps[i][parts[i]] > least).mean() <= recalled[i] <= (maps[i][parts[i]] >= least).mean()
    assert np.allclose(pooling.auc(-maps, parts, among), 1 - found)
    assert np.allclose(pooling.recall(1.0 * parts, parts), 1)
    assert np.allclose(pooling.auc(np.zeros(maps.shape), parts, among), 0.5), "a map of nothing says nothing"
    assert np.isnan(pooling.auc(maps[:1], parts[:1], parts[:1])).all(), "nothing to compare with"
    assert np.allclose(pooling.on_parts(np.ones((1, 2, 4)), np.arange(8).reshape(1, 2, 4) < 2), 0.25)
    assert np.isnan(pooling.on_parts(np.zeros((1, 2, 4)), np.ones((1, 2, 4)))).all()


@pytest.fixture(scope="module")
def made():
    """Few windows of the made-up data, networks of each kind that are hardly trained, and what is planted."""
    recordings = archive.load_recordings("synthetic")
    windows = windowing.cut(recordings).every(40)
    return windows, recordings.dataset.motifs()


@pytest.fixture
def cfg():
    training = dataclasses.replace(load_settings().training, seeds=(0, 1), epochs=1)
    return dataclasses.replace(load_settings(), model=SMALL, training=training)


def test_every_way_is_measured_of_every_kind_of_network(cfg, made, one_thread):
    windows, truth = made
    networks = pooling.kinds(cfg, windows)
    assert [net.key for net, _ in networks[pooling.NO_POOLING]] == [n.key for n in supervised.networks(cfg, windows)]
    assert {kind: len(of) for kind, of in networks.items()} == dict.fromkeys(networks, 2)
    structure = pooling.structure(windows, networks)
    assert structure["resemblance"].between(-1, 1).all() and len(structure) == 3 * 2 * len(pooling.WAYS)
    first = structure[structure["layer"] == "conv1"].pivot(index="seed", columns="way", values="resemblance")
    assert np.allclose(first[pooling.MAX], first[pooling.RANDOM_SWITCHES]), "nothing is pooled below"
    parts = pooling.parts_table(windows, truth, networks, 8)
    assert parts.loc[parts["lens"] == locating.NO_NETWORK, "exaggeration"].to_numpy() == pytest.approx(1)
    assert parts[["hits", "recall", "AUC against decoys"]].stack().between(0, 1).all()
    labels = pooling.labels_table(windows, truth, networks, 8, occlusion.Occluder(5))
    assert set(labels["place"]) == {"in motifs", "in decoys", "elsewhere", "everywhere"} and len(labels) == 4 * 4 * 2
    (pair, *_) = networks[pooling.MAX]  # as with real data, past the store, which knows the windows by their digest
    parts = pooling.parts_found.function(*pair, windows, None, 8, "deconvnet")
    assert "AUC against decoys" not in parts and np.allclose(parts["chance"], 0.1), "a tenth of the samples"
    labels = pooling.labels_changed.function(*pair, windows, None, 8, occlusion.Occluder(5))
    assert list(labels["place"]) == ["where most moves", "elsewhere", "everywhere"]


def test_windows_are_alike_without_their_gravity(cfg, made, one_thread, monkeypatch):
    (network, *_) = supervised.untrained(cfg, made[0])
    networks = dict.fromkeys((pooling.MAX, pooling.RANDOM, pooling.MEAN, pooling.NO_POOLING), [(network, network)])
    plain, found = pooling.structure(made[0], networks), deconvnet.projections
    heavy = lambda *about: (of := found(*about)).assign(signal=of["signal"] + 5)  # noqa: E731
    monkeypatch.setattr(deconvnet, "projections", heavy)
    assert np.allclose(plain["windows"], pooling.structure(made[0], networks)["windows"], atol=1e-4)


def test_labels_count_where_decoys_do_not_mislead(cfg, made, one_thread, monkeypatch):
    windows, truth = made
    (pair, *_) = pooling.kinds(cfg, windows)[pooling.MAX]
    monkeypatch.setattr(pooling.dreams, "predicted", lambda model, x: np.full(len(x), -1))
    found = pooling.labels_changed.function(*pair, windows, truth, 8, occlusion.Occluder(5))
    assert found["changed"].isna().all()


def test_labels_are_those_of_the_covered_windows(cfg, made):
    windows, _ = made
    model, x, occluder = supervised.new_model(windows, SMALL, 0).eval(), windows.test.x[:6], occlusion.Occluder(9)
    groups = occlusion.by_sensor(windows.axes)
    found = occlusion.labels(model, x, groups, occluder)
    for name, t in (("right arm", 0), ("left leg", 17)):
        scores = model(occlusion.covered(torch.as_tensor(x), groups[name], t, occluder)).softmax(1)
        assert np.array_equal(found["label"].sel(group=name)[:, t], scores.argmax(1))
        assert np.allclose(found["probability"].sel(group=name)[:, t], scores.max(1).values.detach())
    assert np.array_equal(found["before"], model(torch.as_tensor(x)).argmax(1))
