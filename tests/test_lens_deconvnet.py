"""Projections: equal to an explicit unpool, rectify and filter; the gradient without non-linearities; nothing left."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lens_taps import LAYERS, LENGTH, MODELS, N_AXES, hooks_of, sfhf, windows
from torch import nn
from torch.nn import functional as F

from harvis_utils.lenses import deconvnet
from harvis_utils.networks import taps
from harvis_utils.networks.sfhf import folded_trunk

seeds = st.integers(0, 10_000)
few = settings(max_examples=15, deadline=None)
#: which windows are seen: for what does not depend on it
EVERY = torch.ones(0, dtype=torch.bool)


# ------------------------------------------------------------------------------------------------- identities


def transposed(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A 'same' convolution backwards, tap by tap: values (unit, time), weight (unit, input, tap) -> (input, time)."""
    n_time, half = values.shape[1], weight.shape[2] // 2
    found = np.zeros((weight.shape[1], n_time))
    for unit in range(weight.shape[0]):
        for t in range(n_time):
            for k in range(weight.shape[2]):
                if 0 <= t + k - half < n_time:
                    found[:, t + k - half] += values[unit, t] * weight[unit, :, k]
    return found


@few
@given(seeds, st.sampled_from(["conv1", "conv2", "conv3"]))
def test_sfhf_is_projected_as_by_explicit_rectifying_and_transposed_filters(seed, layer):
    model, x = sfhf(), windows(2, seed)
    trunk, rng = folded_trunk(model), np.random.default_rng(seed)
    unit, axis, time = rng.integers(6, size=2), rng.integers(N_AXES, size=2), rng.integers(LENGTH, size=2)
    found = deconvnet.project(model, layer, x, deconvnet.places(unit, axis, time))
    maps = model.feature_maps(x)[layer].detach().numpy()
    for i in range(2):
        back = np.zeros((6, LENGTH))
        back[unit[i], time[i]] = maps[i, unit[i], axis[i], time[i]]
        for w in trunk.weights[: trunk.depth(layer)][::-1]:
            back = transposed(np.maximum(back, 0), w.numpy())
        expected = np.zeros((N_AXES, LENGTH))
        expected[axis[i]] = back[0]
        assert np.allclose(found[i], expected, atol=1e-4)


class Pooled(nn.Module):
    """Channels x time with max pooling between two convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(N_AXES, 4, 3, padding=1), nn.Conv1d(4, 5, 3, padding=1)
        self.pool, self.out = nn.MaxPool1d(2), nn.Linear(5 * (LENGTH // 2), 3)

    def forward(self, x):
        return self.out(F.relu(self.second(self.pool(F.relu(self.first(x))))).flatten(1))


@few
@given(seeds)
def test_pooling_is_undone_by_its_switches(seed):
    torch.manual_seed(seed)
    model, x = Pooled(), windows(3, seed)
    tap = taps.find(model, "second", rectified=True)
    found = deconvnet.project(model, tap, x, deconvnet.strongest(2))
    with torch.no_grad():
        pooled, switches = F.max_pool1d(F.relu(model.first(x)), 2, return_indices=True)
        maps = F.relu(model.second(pooled))
        kept = deconvnet.strongest(2)(maps[:, :, None], EVERY)[:, :, 0]
        back = F.conv_transpose1d(kept, model.second.weight, padding=1)
        back = F.relu(F.max_unpool1d(back, switches, 2))
        expected = F.conv_transpose1d(back, model.first.weight, padding=1)
    assert torch.allclose(found, expected, atol=1e-5)


@few
@given(seeds, st.sampled_from(["0", "1", "3"]))
def test_without_non_linearities_deconvnet_is_the_gradient(seed, layer):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(N_AXES, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 * (LENGTH - 2), 5))
    model(windows(9, seed + 1))  # batch norm has seen something
    x = windows(3, seed)
    by_rule = [deconvnet.project(model, layer, x, deconvnet.strongest(3), rule) for rule in deconvnet.RULES]
    assert torch.equal(by_rule[0], by_rule[2]) and torch.equal(by_rule[1], by_rule[2])
    x.requires_grad_(True)
    maps = taps.maps_of(model.eval(), layer, x)
    (expected,) = torch.autograd.grad(maps, x, deconvnet.strongest(3)(maps.detach(), EVERY))
    assert torch.equal(by_rule[0], expected)


@few
@given(seeds, st.integers(1, 5))
def test_a_shifted_window_has_the_shifted_projection_and_a_shift_by_zero_changes_nothing(seed, shift):
    model = sfhf()
    x = torch.zeros(1, N_AXES, LENGTH)
    x[:, :, 12:15] = windows(1, seed)[:, :, 12:15] * 3
    keep = [deconvnet.places([2], [1], [t]) for t in (14, 14 + shift)]
    plain = deconvnet.project(model, "conv2", x, keep[0])
    moved = deconvnet.project(model, "conv2", torch.roll(x, shift, 2), keep[1])
    assert torch.allclose(torch.roll(plain, shift, 2), moved, atol=1e-5)
    assert torch.equal(deconvnet.project(model, "conv2", torch.roll(x, 0, 2), keep[0]), plain)


def test_without_pooling_a_class_score_has_one_projection_for_all_windows():
    torch.manual_seed(0)
    x = windows(4)
    score = deconvnet.classes([1] * 4)
    alike = deconvnet.project(sfhf(), "classes", x, score)
    assert torch.allclose(alike, alike[:1].expand_as(alike)) and alike.abs().max() > 0
    for other in (
        deconvnet.project(sfhf(), "classes", x, score, "gradient"),
        deconvnet.project(Pooled(), "out", x, score),
    ):
        assert not torch.allclose(other, other[:1].expand_as(other))


# ------------------------------------------------------------------------------------------ any network, bad input


@pytest.mark.parametrize("name", MODELS)
def test_any_network_is_projected_and_left_as_it_was(name):
    model, x = MODELS[name]().train(), windows()
    before = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    for rule in deconvnet.RULES:
        found = deconvnet.project(model, LAYERS[name], x, deconvnet.strongest(), rule)
        assert found.shape == x.shape and found.abs().max() > 0

    def broken(maps, seen):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        deconvnet.project(model, LAYERS[name], x, broken)
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == before
    assert not hooks_of(model) and all(p.grad is None for p in model.parameters())
    y = torch.tensor([-1.0], requires_grad=True)
    F.relu(y).backward(torch.tensor([5.0]))
    assert y.grad == 0


def test_bad_requests_are_named():
    model, x = sfhf(), windows()
    with pytest.raises(ValueError, match="unknown rule 'deconv'; valid rules: deconvnet, guided, gradient"):
        deconvnet.project(model, "conv1", x, deconvnet.strongest(), "deconv")
    with pytest.raises(ValueError, match="unknown layer"):
        deconvnet.project(model, "conv7", x, deconvnet.strongest())
    with pytest.raises(ValueError, match=r"keep returned \(5, 6\), but conv1 has maps \(5, 6, 3, 30\)"):
        deconvnet.project(model, "conv1", x, lambda maps, seen: maps[:, :, 0, 0])


# ------------------------------------------------------------------------------------------------ what is kept


@few
@given(seeds, st.integers(1, 12))
def test_strongest_keeps_the_largest_values(seed, n):
    maps = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    kept = deconvnet.strongest(n)(maps, EVERY)
    for one, of in zip(kept, maps, strict=True):
        largest = sorted(of.flatten().tolist(), reverse=True)[:n]
        assert sorted(one[one != 0].tolist(), reverse=True) == largest
        assert torch.equal(one[one != 0], of[one != 0])


def test_classes_keeps_one_whatever_the_score():
    kept = deconvnet.classes([2, 0])(torch.full((2, 3, 1, 1), -7.0), torch.tensor([True, True]))
    assert kept[:, :, 0, 0].tolist() == [[0, 0, 1], [1, 0, 0]]


KEPT = {
    "classes": ("classes", lambda n: deconvnet.classes(n % 3)),
    "whole maps": ("conv2", lambda n: deconvnet.places(n % 6)),
    "single activations": ("conv2", lambda n: deconvnet.places(n % 6, n % 3, 3 + n)),
    "a function of one's own": ("conv2", lambda n: lambda maps, seen: maps * torch.tensor(n)[seen, None, None, None]),
}


@pytest.mark.parametrize("kept", KEPT)
def test_what_is_kept_of_each_window_does_not_depend_on_how_many_are_seen_at_once(kept, monkeypatch):
    model, x, (layer, keep), number = sfhf(), windows(11), KEPT[kept], np.arange(11)
    at_once = deconvnet.project(model, layer, x, keep(number), "gradient")
    monkeypatch.setattr(deconvnet, "CHUNK", 4)
    assert torch.allclose(deconvnet.project(model, layer, x, keep(number), "gradient"), at_once, atol=1e-6)
    alone = [deconvnet.project(model, layer, x[i : i + 1], keep(number[i : i + 1]), "gradient") for i in number]
    assert torch.allclose(torch.cat(alone), at_once, atol=1e-6) and at_once.abs().max() > 0


@pytest.mark.parametrize("keep", [deconvnet.classes, deconvnet.places], ids=["classes", "places"])
@pytest.mark.parametrize("n", [1, 4, 12])
def test_values_for_other_windows_are_refused(keep, n, monkeypatch):
    monkeypatch.setattr(deconvnet, "CHUNK", 4)
    with pytest.raises(ValueError, match=f"said for {n} windows, but 11 are projected"):
        deconvnet.project(sfhf(), "classes", windows(11), keep([0] * n))


@pytest.mark.parametrize("layer", ["conv1", "conv3"])
def test_strongest_activations_are_those_of_a_plain_search_over_recordings(tiny_windows, layer):
    model, split = sfhf(), tiny_windows.train
    found = deconvnet.top_of_layers(model, [layer], split, n=4)[layer]
    maps = model.feature_maps(torch.as_tensor(split.x))[layer].detach().numpy()
    for unit in range(6):
        best = []
        for recording in np.unique(split.recording):
            places = [
                (maps[w, unit, a, t], w, a, t)
                for w in np.flatnonzero(split.recording == recording)
                for a in range(N_AXES)
                for t in range(LENGTH)
            ]
            best.append(max(places, key=lambda p: p[0]))
        best.sort(key=lambda p: -p[0])
        for rank, (value, w, a, t) in enumerate(best[:4]):
            here = found.isel(unit=unit, rank=rank)
            assert np.isclose(here["value"], value) and np.isclose(
                maps[here["window"], unit, here["axis"], here["time"]], value
            )
            if value > 0:
                assert (int(here["window"]), int(here["axis"]), int(here["time"])) == (w, a, t)
    own = split.recording[found["window"].values]
    assert all(len(set(row)) == len(row) for row in own), "one window of a recording at most"


def test_the_projections_of_strongest_activations_lie_on_their_axis_around_them(tiny_windows):
    model, split = sfhf(), tiny_windows.train
    top = deconvnet.top_of_layers(model, ["conv2"], split, n=3)["conv2"]
    found = deconvnet.project_top(model, "conv2", split, top)
    assert np.array_equal(found["signal"], split.x[top["window"].values])
    moved = deconvnet.around(found["projection"].sel(rule="deconvnet").values, top)
    for unit in range(6):
        for rank in range(3):
            at = top.isel(unit=unit, rank=rank)
            own = found["projection"].sel(rule="deconvnet").isel(unit=unit, rank=rank).values
            assert np.abs(np.delete(own, int(at["axis"]), 0)).max() == 0
            expected = np.zeros(2 * LENGTH - 1)
            for t in range(LENGTH):
                expected[LENGTH - 1 + t - int(at["time"])] = own[int(at["axis"]), t]
            assert np.array_equal(moved[unit, rank], expected.astype(np.float32))
            assert not expected[: LENGTH - 1 - 4].any() and not expected[LENGTH + 4 :].any(), "receptive field of conv2"


def test_likeness_is_the_mean_correlation_of_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, 20))
    b[1, 1:] = 0.5
    for values, found in ((v, deconvnet.likeness(v)) for v in (a, b)):
        for unit in range(3):
            useful = [v for v in values[unit] if np.ptp(v) > 0]
            pairs = [np.corrcoef(u, v)[0, 1] for i, u in enumerate(useful) for v in useful[:i]]
            assert np.isnan(found[unit]) if not pairs else np.isclose(found[unit], np.mean(pairs))
