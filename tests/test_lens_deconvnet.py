"""Projections: equal to an explicit unpool, rectify and filter; the gradient without non-linearities; nothing left.

That they go back stage by stage is tested for every network in ``test_matrix.py``.
"""

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

seeds = st.integers(0, 10_000)
few = settings(max_examples=8)
#: which windows are seen: for what does not depend on it
EVERY = torch.ones(0, dtype=torch.bool)


# ------------------------------------------------------------------------------------------------- identities


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
def test_without_non_linearities_every_rule_is_the_gradient(seed, layer):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(N_AXES, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 * (LENGTH - 2), 5))
    model(windows(9, seed + 1))  # batch norm has seen something
    x = windows(3, seed)
    by_rule = [deconvnet.project(model, layer, x, deconvnet.strongest(3), rule) for rule in deconvnet.RULES]
    x.requires_grad_(True)
    maps = taps.maps_of(model.eval(), layer, x)
    (expected,) = torch.autograd.grad(maps, x, deconvnet.strongest(3)(maps.detach(), EVERY))
    assert all(torch.equal(found, expected) for found in by_rule)


@few
@given(seeds, st.integers(1, 5))
def test_a_shifted_window_has_the_shifted_projection(seed, shift):
    x = torch.zeros(1, N_AXES, LENGTH)
    x[:, :, 12:15] = windows(1, seed)[:, :, 12:15] * 3
    keep = [deconvnet.places([2], [1], [t]) for t in (14, 14 + shift)]
    plain = deconvnet.project(sfhf(), "conv2", x, keep[0])
    moved = deconvnet.project(sfhf(), "conv2", torch.roll(x, shift, 2), keep[1])
    assert torch.allclose(torch.roll(plain, shift, 2), moved, atol=1e-5)


def test_without_pooling_a_class_score_has_one_projection_for_all_windows():
    x, score = windows(4), deconvnet.classes([1] * 4)
    alike = deconvnet.project(sfhf(), "classes", x, score)
    assert torch.allclose(alike, alike[:1].expand_as(alike)) and alike.abs().max() > 0
    for model, layer, rule in ((sfhf(), "classes", "gradient"), (Pooled(), "out", "deconvnet")):
        other = deconvnet.project(model, layer, x, score, rule)
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rule": "deconv"}, "unknown rule 'deconv'; valid rules: deconvnet, guided, gradient"),
        ({"tap": "conv7"}, "unknown layer"),
        ({"keep": lambda maps, seen: maps[:, :, 0, 0]}, r"keep returned \(4, 6\), but conv1 has maps \(4, 6, 3, 30\)"),
        *[({"keep": deconvnet.places([0] * n)}, f"said for {n} windows, but 11 are projected") for n in (1, 4, 12)],
        ({"tap": "classes", "keep": deconvnet.classes([0])}, "said for 1 windows, but 11 are projected"),
    ],
)
def test_bad_requests_are_named(changed, message, monkeypatch):
    monkeypatch.setattr(deconvnet, "CHUNK", 4)
    with pytest.raises(ValueError, match=message):
        deconvnet.project(sfhf(), **{"tap": "conv1", "x": windows(11), "keep": deconvnet.strongest()} | changed)


# ------------------------------------------------------------------------------------------------ what is kept


@few
@given(seeds, st.integers(1, 12))
def test_strongest_keeps_the_largest_values_and_classes_one_whatever_the_score(seed, n):
    maps = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(seed))
    for one, of in zip(deconvnet.strongest(n)(maps, EVERY), maps, strict=True):
        assert sorted(one[one != 0].tolist(), reverse=True) == sorted(of.flatten().tolist(), reverse=True)[:n]
        assert torch.equal(one[one != 0], of[one != 0])
    kept = deconvnet.classes([1, 0, 1])(maps[:, :, :1, :1], torch.ones(3, dtype=torch.bool))
    assert kept[:, :, 0, 0].tolist() == [[0, 1], [1, 0], [0, 1]]


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


def test_strongest_activations_are_those_of_a_plain_search_over_recordings(tiny_windows):
    model, split = sfhf(), tiny_windows.train
    found = deconvnet.top_of_layers(model, ["conv3"], split, n=4)["conv3"]
    maps = model.feature_maps(torch.as_tensor(split.x))["conv3"].detach().numpy()
    for unit in range(6):
        own = [np.where(split.recording[:, None, None] == r, maps[:, unit], -1) for r in np.unique(split.recording)]
        best = sorted(own, key=lambda of: -of.max())[:4]
        for rank, of in enumerate(best):
            here = found.isel(unit=unit, rank=rank)
            assert np.isclose(here["value"], of.max())
            if of.max() > 0:
                assert (int(here["window"]), int(here["axis"]), int(here["time"])) == np.unravel_index(
                    of.argmax(), of.shape
                )
    own = split.recording[found["window"].values]
    assert all(len(set(row)) == len(row) for row in own), "one window of a recording at most"


def test_projections_of_strongest_activations_lie_on_their_axis_around_them(tiny_windows):
    model, split = sfhf(), tiny_windows.train
    top = deconvnet.top_of_layers(model, ["conv2"], split, n=3)["conv2"]
    found = deconvnet.project_top(model, "conv2", split, top)
    assert np.array_equal(found["signal"], split.x[top["window"].values])
    projection = found["projection"].sel(rule="deconvnet")
    moved = deconvnet.around(projection.values, top)
    for unit, rank in np.ndindex(6, 3):
        own, at = projection.values[unit, rank], top.isel(unit=unit, rank=rank)
        axis, time = int(at["axis"]), int(at["time"])
        assert np.abs(np.delete(own, axis, 0)).max() == 0
        assert np.array_equal(moved[unit, rank, LENGTH - 1 - time :][:LENGTH], own[axis])
        assert not moved[unit, rank, : LENGTH - 1 - 4].any() and not moved[unit, rank, LENGTH + 4 :].any(), "reach"
    middle = deconvnet.middling(found.expand_dims(layer=["conv2"]))
    unit = int(middle["unit"].values[0])
    assert (top["value"][:, 0] < top["value"][unit, 0]).sum() == 3
    for rank, axis in enumerate(top["axis"].values[unit]):
        signal = found["signal"].values[unit, rank, axis]
        assert np.allclose(middle["signal"].values[0, rank], signal - signal.mean(), atol=1e-6)
        own = middle["projection"].isel(layer=0, rank=rank).sel(rule="deconvnet")
        assert np.array_equal(own, projection.values[unit, rank, axis])
    table = deconvnet.likeness_table({"made": 2 * [found.expand_dims(layer=["conv2"])]})
    assert table.loc[("made", "conv2"), "projections, deconvnet"] == pytest.approx(
        np.nanmean(deconvnet.likeness(moved))
    )


def test_likeness_is_the_mean_correlation_of_pairs():
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 20))
    values[1, 1, 1:] = 0.5
    found = deconvnet.likeness(values)
    for at in np.ndindex(2, 3):
        useful = [v for v in values[at] if np.ptp(v) > 0]
        pairs = [np.corrcoef(u, v)[0, 1] for i, u in enumerate(useful) for v in useful[:i]]
        assert np.isnan(found[at]) if not pairs else np.isclose(found[at], np.mean(pairs))
