"""Dissection: every rule, threshold and overlap against a naive twin, on SF-HF and on networks of other shapes."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import made_recordings
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import linalg
from test_lens_taps import CLASSES, LAYERS, LENGTH, MODELS, N_AXES, hooks_of

from harvis_utils.data import synthetic, windowing
from harvis_utils.data.archive import load_recordings
from harvis_utils.lenses import ablation, concepts, dissection, dissection_factors
from harvis_utils.metrics import intervals
from harvis_utils.metrics.intervals import interval
from harvis_utils.networks import taps
from harvis_utils.settings import PROFILES, DissectionSettings, ModelSettings, artifact_root, load_settings
from harvis_utils.training import supervised

RATE = 30.0
#: readings in 1/64 G are exact in binary, so that a twin that adds in another order cannot round to another answer
READINGS = hnp.arrays(np.float32, (2, 3, 30), elements=st.integers(-160, 160).map(lambda v: v / 64))
SMOOTH = READINGS.map(lambda x: np.round(np.cumsum(x / 8, axis=-1) * 64).astype(np.float32) / 64)
SIGNALS = st.one_of(READINGS, SMOOTH)


def windows_like(n=40, seed=0, axes=N_AXES):
    rng = np.random.default_rng(seed)
    return (np.round(rng.normal(size=(n, axes, LENGTH)).cumsum(-1) * 16) / 64).astype(np.float32)


# ----------------------------------------------------------------------------------------------- rules, written out


def around(x, t, reach):
    return x[t - reach : t + reach + 1] if reach <= t < len(x) - reach else None


def is_top(x, t):
    near = around(x, t, 3)
    if near is None or near[3] < max(near):
        return False
    return near[3] - min(near[:3]) >= concepts.PEAK_G and near[3] - min(near[4:]) >= concepts.PEAK_G


def slow_mean(x, t):
    near = x[max(0, t - 7) : t + 8]
    return sum(near) / len(near)


TWINS = {
    "rising edge": lambda x, t: around(x, t, 2) is not None and x[t + 2] - x[t - 2] >= concepts.EDGE_G,
    "falling edge": lambda x, t: around(x, t, 2) is not None and x[t - 2] - x[t + 2] >= concepts.EDGE_G,
    "peak": lambda x, t: any(is_top(x, s) for s in (t - 1, t, t + 1) if 0 <= s < len(x)),
    "valley": lambda x, t: any(is_top([-v for v in x], s) for s in (t - 1, t, t + 1) if 0 <= s < len(x)),
    "plateau": lambda x, t: (
        around(x, t, 3) is not None and max(around(x, t, 3)) - min(around(x, t, 3)) <= concepts.PLATEAU_G
    ),
    "impact": lambda x, t: any(
        abs(x[s + 1] - x[s]) >= concepts.IMPACT_G for s in (t - 1, t) if s >= 0 and s + 1 < len(x)
    ),
    "gravity +": lambda x, t: slow_mean(x, t) >= concepts.GRAVITY_G,
    "gravity -": lambda x, t: -slow_mean(x, t) >= concepts.GRAVITY_G,
}


def by_hand(rule, x):
    flat = x.reshape(-1, x.shape[-1]).tolist()
    return np.array([[rule(row, t) for t in range(len(row))] for row in flat]).reshape(x.shape)


@pytest.mark.parametrize("name", TWINS)
@given(x=SIGNALS)
@settings(max_examples=25, deadline=None)
def test_every_rule_equals_its_naive_twin(name, x):
    assert np.array_equal(concepts.RULES[name](x), by_hand(TWINS[name], x))


def test_every_rule_has_a_twin_and_holds_somewhere_but_not_everywhere():
    assert set(TWINS) == set(concepts.RULES)
    x = windows_like(200)
    found, left_out = concepts.waveforms(x, RATE)
    assert not left_out and len(found) == len(concepts.RULES) + len(concepts.BANDS_HZ) + 1
    assert all(0 < mask.mean() < 1 and mask.shape == x.shape and mask.dtype == bool for mask in found.values())


@given(x=SIGNALS)
@settings(max_examples=25, deadline=None)
def test_band_envelopes_are_those_of_the_fourier_sum(x):
    time = np.arange(LENGTH)
    found = concepts.band_envelopes(x, RATE)
    for k, (low, high) in enumerate(concepts.BANDS_HZ.values()):
        total = np.zeros(x.shape, complex)
        for hertz in range(1, 15):  # a window of one second: 1 Hz apart; 15 Hz is the Nyquist frequency
            if low <= hertz < high:
                wave = np.exp(2j * np.pi * hertz * time / RATE)
                total += 2 * (x @ wave.conj())[..., None] / LENGTH * wave
        assert np.allclose(found[k], np.abs(total), atol=1e-9)


@given(x=SIGNALS)
@settings(max_examples=25, deadline=None)
def test_oscillation_is_the_strongest_band_where_it_is_strong_enough(x):
    found, envelope = concepts.oscillations(x, RATE), concepts.band_envelopes(x, RATE)
    masks = np.stack(list(found.values()))
    assert masks.sum(0).max() <= 1
    for k, mask in enumerate(masks):
        others = np.delete(envelope, k, 0).max(0)
        assert (envelope[k][mask] >= concepts.OSCILLATION_G).all() and (envelope[k] >= others)[mask].all()
        clear = (envelope[k] > concepts.OSCILLATION_G) & (envelope[k] > others + 1e-9)
        assert mask[clear].all()


@pytest.mark.parametrize(("hertz", "name"), [(2, "1-2 Hz"), (4, "3-5 Hz"), (7, "6-9 Hz"), (12, "10-14 Hz")])
def test_a_sine_oscillates_in_its_band(hertz, name):
    x = 1 + 0.4 * np.sin(2 * np.pi * hertz * np.arange(30) / RATE)[None, None]
    assert {n for n, mask in concepts.oscillations(x, RATE).items() if mask.any()} == {f"oscillation {name}"}
    assert concepts.oscillations(x, RATE)[f"oscillation {name}"].all()


@given(x=hnp.arrays(np.float32, (2, 6, 30), elements=st.integers(-40, 40).map(lambda v: v / 64)))
@settings(max_examples=25, deadline=None)
def test_free_fall_is_a_matter_of_whole_sensors(x):
    twin = np.zeros(x.shape, bool)
    for window, at, sensor in np.ndindex(2, 30, 2):
        axes = x[window, 3 * sensor : 3 * sensor + 3, at].astype(float)
        twin[window, 3 * sensor : 3 * sensor + 3, at] = sum(v * v for v in axes) ** 0.5 <= concepts.FREE_FALL_G
    assert np.array_equal(concepts.free_fall(x), twin)


def test_what_cannot_be_had_is_left_out_with_a_reason():
    found, left_out = concepts.waveforms(windows_like(axes=4), RATE)
    assert "near free fall" not in found and "4 axes do not make sensors of 3" in left_out["near free fall"]
    with pytest.raises(ValueError, match="4 axes"):
        concepts.free_fall(windows_like(axes=4))
    with pytest.raises(ValueError, match="NaN"):
        concepts.waveforms(np.full((1, 3, 30), np.nan), RATE)
    for shape in ((3, 30), (2, 3, 6)):
        with pytest.raises(ValueError, match="7 samples or more"):
            concepts.waveforms(np.zeros(shape), RATE)


def test_turning_a_signal_over_swaps_rising_and_falling():
    x = windows_like()
    up, down = concepts.waveforms(x, RATE)[0], concepts.waveforms(-x, RATE)[0]
    for a, b in (("rising edge", "falling edge"), ("peak", "valley"), ("gravity +", "gravity -")):
        assert np.array_equal(up[a], down[b]) and up[a].any()


@pytest.fixture(scope="module")
def made_up():
    return windowing.cut(load_recordings("synthetic"))


def test_planted_motifs_lie_where_they_were_planted(made_up):
    split, truth = made_up.train.every(97), synthetic.motifs()
    found = concepts.of_motifs(truth, split)
    assert found.names == truth.names and set(found.kinds) == {concepts.MOTIF}
    twin = np.zeros_like(found.masks)
    length = dict(zip(truth.names, map(len, truth.shapes), strict=True))
    table = truth.occurrences
    for w in range(len(split)):
        own = table[(table["subject"] == split.subject[w]) & (table["activity"] == split.activity[w])]
        for row in own.itertuples():
            for sample in range(row.start, row.start + length[row.motif]):
                if 0 <= sample - split.offset[w] < split.length:
                    twin[truth.names.index(row.motif), w, row.axis, sample - split.offset[w]] = True
    assert np.array_equal(found.masks, twin) and twin.any(axis=(1, 2, 3)).all()


def test_concepts_of_windows_are_activities_and_waveforms(made_up):
    split = made_up.train.every(50)
    found = concepts.of_windows(made_up, split)
    assert found.of_kind(concepts.ACTIVITY) == list(made_up.activities) and not found.left_out
    assert found.masks.shape == (len(found.names), len(split), 6, 30) and found.share == pytest.approx(
        [mask.mean() for mask in found.masks]
    )
    for k, name in enumerate(made_up.activities):
        mask = found.masks[found.names.index(name)]
        assert np.array_equal(mask.all((1, 2)), split.activity == k) and np.array_equal(
            mask.any((1, 2)), mask.all((1, 2))
        )


# ---------------------------------------------------------------------------------------- thresholds and overlap


def numbers(*shape):
    return hnp.arrays(np.float32, shape, elements=st.integers(-3, 12).map(float))


@given(maps=numbers(7, 2, 3, 5), share=st.sampled_from([0.005, 0.05, 0.3, 0.9]))
@settings(max_examples=60, deadline=None)
def test_thresholds_are_order_statistics_of_all_outputs(maps, share):
    found = dissection.thresholds(torch.as_tensor(maps), share)
    for unit in range(2):
        values = sorted(maps[:, unit].ravel().tolist(), reverse=True)
        assert found.t_k[unit] == values[int(np.floor(share * len(values) + 1e-9))]
        assert found.rest[unit] == values[-1]
        assert sum(v > found.t_k[unit] for v in values) <= share * len(values) + 1e-9
    assert np.array_equal(found.seldom, [found.t_k[u] == maps[:, u].min() for u in range(2)])


def test_half_a_percent_of_a_networks_outputs_exceed_t_k(monkeypatch):
    monkeypatch.setattr(taps, "CHUNK", 16)
    model, x = MODELS["sfhf"](), windows_like(100)
    outputs = taps.maps_of(model, "conv2", torch.as_tensor(x)).detach().numpy()
    found = dissection.thresholds(taps.outputs(model, "conv2", x))
    n = outputs[:, 0].size
    for unit in range(outputs.shape[1]):
        each = np.sort(outputs[:, unit].ravel())
        assert found.t_k[unit] == pytest.approx(np.quantile(each, 1 - int(0.005 * n) / (n - 1), method="nearest"))
        assert (each > found.t_k[unit]).sum() == (0 if found.seldom[unit] else int(0.005 * n))
    assert not found.seldom.all()


@given(maps=numbers(7, 2, 3, 5), masks=hnp.arrays(bool, (4, 7, 3, 5)), share=st.sampled_from([0.05, 0.3]))
@settings(max_examples=60, deadline=None)
def test_iou_and_its_null_equal_naive_twins(maps, masks, share):
    limits = dissection.thresholds(torch.as_tensor(maps), share)
    units = dissection.unit_masks(torch.as_tensor(maps), limits, 3, 5)
    own = [{at for at in np.ndindex(7, 3, 5) if is_on(maps, limits, unit, at)} for unit in range(2)]
    assert np.array_equal(units.toarray().reshape(2, 7, 3, 5), [as_mask(o) for o in own])
    recording = np.array([0, 0, 1, 2, 2, 2, 3])
    found, draws = dissection.iou(units, masks), dissection.chance(units, masks, 3, np.random.default_rng(1), recording)
    others = list(intervals.traded(recording, 3, np.random.default_rng(1)))
    for unit in range(2):
        assert found[unit] == pytest.approx([naive_iou(own[unit], mask) for mask in masks])
        # not one window for one: a window of the units may stand in for several of the concepts
        null = [max(iou_between(units.toarray()[unit].reshape(7, 3, 5), mask[o]) for mask in masks) for o in others]
        assert draws[unit] == pytest.approx(null)


def is_on(maps, limits, unit, at):
    value = maps[at[0], unit, at[1], at[2]]
    return value > limits.rest[unit] if limits.seldom[unit] else value >= limits.t_k[unit]


def as_mask(places):
    mask = np.zeros((7, 3, 5))
    for at in places:
        mask[at] = 1
    return mask


def iou_between(a, b):
    both = (a * b).sum()
    return both / max(a.sum() + b.sum() - both, 1)


def naive_iou(places, mask):
    others = {at for at in np.ndindex(*mask.shape) if mask[at]}
    return len(places & others) / len(places | others) if places | others else 0.0


def test_windows_of_a_recording_are_no_independent_witnesses():
    """A unit with a level for each recording, and concepts that hold in whole recordings and know nothing of it."""
    above, recording = {"recordings": 0, "windows": 0}, np.repeat(np.arange(40), 20)
    for repetition in range(200):
        rng = np.random.default_rng(repetition)
        maps = (rng.normal(size=(40, 1, 1, 1))[recording] + rng.normal(size=(800, 1, 1, 2))).astype(np.float32)
        masks = np.broadcast_to((rng.permutation(40) < 10)[recording][None, :, None, None], (1, 800, 1, 2))
        for name, whose in (("recordings", recording), ("windows", np.arange(800))):
            found = dissection.dissect(torch.as_tensor(maps), masks, "a", 19, None, whose, share=0.1)
            above[name] += int(dissection.detectors(found)["detector"].sel(rule="above chance").sum())
    # 5 % of 200 is 10, with a standard deviation of 3; if windows trade one by one it is 30 %
    assert 2 <= above["recordings"] <= 18 and above["windows"] > 40


def test_a_unit_at_rest_has_only_what_exceeds_rest():
    maps = torch.zeros(20, 2, 1, 5)
    maps[3, 0, 0, 2] = 1
    limits = dissection.thresholds(maps, 0.05)
    units = dissection.unit_masks(maps, limits, 1, 5)
    assert limits.seldom.all() and units.indices.tolist() == [3 * 5 + 2] and np.diff(units.indptr).tolist() == [1, 0]
    nothing = np.zeros((1, 20, 1, 5), bool)
    assert np.array_equal(dissection.iou(units, nothing), [[0.0], [0.0]])


@given(share=st.floats(0.001, 0.999), concept=st.floats(0.0, 1.0))
def test_no_overlap_exceeds_the_ceiling(share, concept):
    n = 1000
    a, b = round(share * n), round(concept * n)
    best = min(a, b) / max(a, b, 1)  # one inside the other
    assert dissection.ceiling(np.array([b / n]), a / n)[0] == pytest.approx(best if a else 0.0)


def test_a_unit_that_is_a_concept_detects_it_and_others_do_not():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 300, 3, 5)) < 0.005
    maps = rng.random((300, 2, 3, 5)).astype(np.float32)
    maps[:, 0] += masks[1]
    found = dissection.dissect(torch.as_tensor(maps), masks, "abc", 19, rng.integers(3, size=300), np.arange(300) // 5)
    label = dissection.detectors(found)
    assert label["concept"].values[0] == "b" and label["best"].values[0] > 0.7
    assert label["detector"].values.tolist() == [[True] * 3, [False] * 3]
    assert dissection.unique(label).values.tolist() == [1, 1, 1]
    assert label["limit"].values[0, 0] == dissection.DETECTOR_IOU


def test_an_activity_is_no_detection_within_activities():
    rng = np.random.default_rng(0)
    recording = np.arange(400) // 20
    group = recording % 4
    masks = np.broadcast_to((group == 1)[None, :, None, None], (1, 400, 1, 30)) & (rng.random((1, 400, 1, 30)) < 0.02)
    whole = np.broadcast_to((group == 1)[None, :, None, None], (1, 400, 1, 30))
    maps = rng.random((400, 1, 1, 30)).astype(np.float32) + 1.0 * (group == 1)[:, None, None, None]
    label = dissection.detectors(
        dissection.dissect(torch.as_tensor(maps), whole, ["activity"], 39, group, recording, 0.1)
    )
    assert label["detector"].values.tolist() == [[True, True, False]]
    maps = (rng.random((400, 1, 1, 30)) + masks[0][:, None]).astype(np.float32)
    label = dissection.detectors(dissection.dissect(torch.as_tensor(maps), masks, ["shape"], 39, group, recording))
    assert label["detector"].values.tolist() == [[True, True, True]]


@given(
    concept=hnp.arrays(np.int64, (3, 6), elements=st.integers(0, 3)), detector=hnp.arrays(bool, (3, 6, 2)),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_unique_detectors_are_a_set(concept, detector):
    found = xr.Dataset({"concept": (("seed", "unit"), concept), "detector": (("seed", "unit", "rule"), detector)})
    counts = dissection.unique(found)
    for seed, rule in np.ndindex(3, 2):
        twin = {concept[seed, u] for u in range(6) if detector[seed, u, rule]}
        assert counts.isel(seed=seed, rule=rule) == len(twin)


def test_values_get_intervals_over_enough_networks():
    counts = np.arange(5.0)
    found = dissection.over_networks("x", counts)
    mean, (low, high) = interval(counts)
    assert found == {"x": mean, "x low": low, "x high": high} and low < mean < high
    few = dissection.over_networks("x", counts[:4])
    assert few["x"] == 1.5 and np.isnan([few["x low"], few["x high"]]).all()


# --------------------------------------------------------------------------------------- networks of any shape


@pytest.mark.parametrize("name", MODELS)
def test_any_network_is_dissected_and_left_as_it_was(name, monkeypatch):
    monkeypatch.setattr(taps, "CHUNK", 16)
    model, x = MODELS[name](), windows_like(50)
    model.train()
    before = copy.deepcopy(model.state_dict())
    shapes, _ = concepts.waveforms(x, RATE)
    masks = np.stack(list(shapes.values()))
    found = dissection.dissect(
        taps.outputs(model, LAYERS[name], x), masks, list(shapes), 19, np.arange(50) % 4, np.arange(50), share=0.05
    )
    with taps.evaluating(model), torch.no_grad():
        outputs = taps.maps_of(model, LAYERS[name], torch.as_tensor(x)).numpy()
    axes = outputs.shape[2]
    own = masks if axes == N_AXES else masks.any(2, keepdims=True)
    for unit, (t_k, seldom) in enumerate(zip(found["t_k"].values, found["seldom"].values, strict=True)):
        on = outputs[:, unit] > t_k if seldom else outputs[:, unit] >= np.float32(t_k)
        twin = [(on & mask).sum() / max((on | mask).sum(), 1) for mask in own]
        assert found["iou"].values[unit] == pytest.approx(twin)
    assert not hooks_of(model) and all(m.training for m in model.modules())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert all(p.requires_grad for p in model.parameters())


def test_nothing_is_left_behind_when_chunks_are_given_up():
    model, x = MODELS["sfhf"](), windows_like(5)
    model.train()
    next(taps.chunks(model, ["conv1"], x))
    assert torch.is_grad_enabled() and not hooks_of(model) and model.training
    with pytest.raises(ValueError, match="unknown layer"):
        taps.outputs(model, "conv9", x)
    x[2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        dissection.thresholds(taps.outputs(model, "conv1", x))
    assert not hooks_of(model) and model.training and all(p.requires_grad for p in model.parameters())


def test_shorter_maps_are_put_where_they_look_and_dense_layers_hold_for_whole_windows():
    model, x = MODELS["one"]().eval(), windows_like(60)
    pooled = taps.maps_of(model, "pool", torch.as_tensor(x)).detach()
    limits = dissection.thresholds(pooled, 0.05)
    positions = taps.positions(model, "pool", x)
    assert np.array_equal(positions, np.arange(15) * 2 + 0.5)
    units = dissection.unit_masks(pooled, limits, N_AXES, LENGTH, positions).toarray().reshape(-1, 60, LENGTH) > 0
    stretched = torch.nn.functional.interpolate(pooled[:, :, 0], LENGTH, mode="linear").numpy()
    on = (stretched >= limits.t_k[:, None]).swapaxes(0, 1)
    assert np.array_equal(units[..., 1:-1], on[..., 1:-1]) and not units[..., [0, -1]].any()
    with pytest.raises(ValueError, match="maps have 15 samples, the windows 30: say where"):
        dissection.unit_masks(pooled, limits, N_AXES, LENGTH)
    scores = taps.outputs(model, "out", x)
    dense = dissection.unit_masks(scores, dissection.thresholds(scores, 0.05), N_AXES, LENGTH)
    whole = dense.toarray().reshape(CLASSES, 60, LENGTH)
    assert np.array_equal(whole.any(2), whole.all(2)) and whole.any(2).sum(1).tolist() == [4] * CLASSES


def test_errors_say_what_is_wrong():
    model, x = MODELS["two"](), windows_like(10)
    merged = taps.outputs(model, "network.body.2", x)
    with pytest.raises(ValueError, match="these maps have 2 axes, the windows 3"):
        dissection.unit_masks(merged, dissection.thresholds(merged), N_AXES, LENGTH)
    with pytest.raises(ValueError, match="not of the same windows"):
        dissection.dissect(
            taps.outputs(model, "network.body.0", x), np.zeros((1, 9, 3, 30), bool), ["a"], 19, np.zeros(9), range(9)
        )
    alone = merged[:, :, :1], np.zeros((1, 10, 1, merged.shape[3]), bool), ["a"], 19
    with pytest.raises(ValueError, match="9 windows have a recording, but there are masks of 10"):
        dissection.dissect(*alone, None, range(9))
    with pytest.raises(ValueError, match="2 recordings can trade places in 2 ways only"):
        dissection.dissect(*alone, None, np.arange(10) // 5)
    with pytest.raises(ValueError, match="4 recordings can trade places within 2 groups in 4 ways only"):
        dissection.dissect(*alone, np.arange(10) // 6, np.arange(10) // 3)
    with pytest.raises(ValueError, match="no windows"):
        dissection.thresholds(taps.outputs(model, "network.body.0", x[:0]))
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            dissection.thresholds(merged, share)


# ----------------------------------------------------------------------------------------------------- rotation


@given(n=st.integers(1, 9), seed=st.integers(0, 99), alpha=st.floats(0, 1), beta=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_powers_of_a_rotation(n, seed, alpha, beta):
    q = dissection.random_rotation(n, np.random.default_rng(seed))
    assert np.allclose(q @ q.T, np.eye(n)) and np.linalg.det(q) == pytest.approx(1)
    part = dissection.power(q, alpha)
    assert np.allclose(part @ part.T, np.eye(n)) and np.allclose(dissection.power(q, 1), q)
    assert np.allclose(part @ dissection.power(q, beta), dissection.power(q, alpha + beta))
    assert np.array_equal(dissection.power(q, 0), np.eye(n))


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_powers_are_those_of_the_matrix_logarithm(alpha):
    q = dissection.random_rotation(7, np.random.default_rng(4))
    assert np.allclose(dissection.power(q, alpha), linalg.expm(alpha * linalg.logm(q)).real)


def test_half_turns_are_turned_and_reflections_refused():
    half = np.diag([-1.0, -1, 1, -1, -1])
    quarter = dissection.power(half, 0.5)
    assert np.isrealobj(quarter) and np.allclose(quarter @ quarter, half)
    for bad in (np.diag([-1.0, 1, 1]), np.ones((2, 2)), np.eye(3)[:2]):
        with pytest.raises(ValueError, match=r"determinant -1|square orthogonal"):
            dissection.power(bad, 0.5)


def test_random_rotations_have_no_direction_of_their_own():
    rng = np.random.default_rng(0)
    many = np.stack([dissection.random_rotation(4, rng) for _ in range(4000)])
    assert np.abs(many.mean(0)).max() < 0.04 and np.allclose((many**2).mean(0), 0.25, atol=0.02)


def test_rotating_by_the_identity_changes_nothing_and_a_rotation_can_be_undone():
    model, x = MODELS["sfhf"](), windows_like(60)
    shapes, _ = concepts.waveforms(x, RATE)
    masks, names, groups = np.stack(list(shapes.values())), list(shapes), np.arange(60) % 4
    plain = taps.outputs(model, "conv2", x)
    same = dissection.rotated(plain, dissection.power(dissection.random_rotation(6, np.random.default_rng(0)), 0.0))
    assert torch.equal(plain, same)
    xr.testing.assert_identical(
        dissection.dissect(plain, masks, names, 19, groups, np.arange(60)),
        dissection.dissect(same, masks, names, 19, groups, np.arange(60)),
    )
    q = dissection.random_rotation(6, np.random.default_rng(0))
    turned = dissection.rotated(plain, q)
    back = dissection.rotated(turned, q.T)
    assert torch.allclose(plain, back, atol=1e-5)
    twin = np.einsum("vu,wuat->wvat", q, plain.numpy())
    assert np.allclose(turned.numpy(), twin, atol=1e-5) and not torch.allclose(plain, turned, atol=0.01)


# ----------------------------------------------------------------------------------------- pretext and ablation


@given(which=hnp.arrays(np.int64, 6, elements=st.integers(0, 3)), seed=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_transformations_do_what_they_say(which, seed):
    x = windows_like(6)
    found = dissection_factors.transformed(x, which, np.random.default_rng(seed))
    for own, before, k in zip(found, x, which, strict=True):
        if k < 3:
            assert np.array_equal(own, [before, -before, before[:, ::-1]][k])
        else:
            pieces = [before[:, 6 * i : 6 * i + 6] for i in range(5)]
            order = [
                next(i for i in range(5) if np.array_equal(own[:, 6 * j : 6 * j + 6], pieces[i])) for j in range(5)
            ]
            assert sorted(order) == [0, 1, 2, 3, 4] != order


def test_the_task_is_windows_like_any_other():
    data = windowing.cut(made_recordings({(s, a): 200 for s in (1, 2, 3, 4) for a in (0, 1)}))
    made = dissection_factors.without_labels(data)
    assert made.activities == dissection_factors.TRANSFORMATIONS and made.digest != data.digest
    for name in windowing.SPLITS:
        own, before = getattr(made, name), getattr(data, name)
        assert own.x.shape == before.x.shape and np.array_equal(own.subject, before.subject)
        same = own.activity == 0
        assert np.array_equal(own.x[same], before.x[same]) and set(own.activity) <= {0, 1, 2, 3}
        assert np.array_equal(own.x[own.activity == 1], -before.x[own.activity == 1])
    assert dissection_factors.without_labels(data, seed=1).digest != made.digest
    with pytest.raises(ValueError, match="0 to 3"):
        dissection_factors.transformed(data.train.x[:1], np.array([4]), np.random.default_rng(0))


def test_ablation_is_one_f1_minus_another_and_leaves_no_hook():
    data = windowing.cut(made_recordings({(s, a): 200 for s in (1, 2, 3, 4) for a in (0, 1, 2)}))
    split = dataclasses.replace(data.test)
    torch.manual_seed(0)
    model = supervised.new_model(data, ModelSettings(n_units=4, n_dense=8), 0)
    found = ablation.drops(model, ["conv1", "conv3"], split, 4)
    assert dict(found.sizes) == {"layer": 2, "unit": 4, "class": 4} and np.isnan(found["f1"].values[..., 3]).all()
    model.eval()
    x = torch.as_tensor(split.x)

    def measured():
        with torch.no_grad():
            scores = model(x)
        f1 = supervised.class_f1(split, scores.argmax(1).numpy(), 4)[:3]
        own = scores.softmax(1).numpy()[np.arange(len(split)), split.activity]
        return f1, [own[split.activity == c].mean() for c in range(3)]

    whole = measured()
    assert found["f1_whole"].values[:3] == pytest.approx(whole[0])
    for layer in ("conv1", "conv3"):
        for unit in range(4):
            with taps.silenced(model, layer, [unit]):
                without = measured()
            row = found.sel(layer=layer, unit=unit)
            assert row["f1"].values[:3] == pytest.approx(whole[0] - without[0])
            assert row["probability"].values[:3] == pytest.approx(np.subtract(whole[1], without[1]), abs=1e-6)
    assert np.abs(found["probability"].values[..., :3]).max() > 0 and not hooks_of(model)
    some = ablation.drops(model, ["conv3"], split, 4, units=[2])
    assert some["f1"].values[0, 0, :3] == pytest.approx(found["f1"].sel(layer="conv3", unit=2).values[:3])
    with pytest.raises(ValueError, match="has units 0 to 3"):
        ablation.drops(model, ["conv1"], split, 4, units=[9])
    assert not hooks_of(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["one", "two"])
def test_any_network_can_be_ablated(name):
    data = windowing.cut(made_recordings({(s, a): 90 for s in (1, 2, 3, 4) for a in range(CLASSES)}))
    found = ablation.drops(MODELS[name](), [LAYERS[name]], data.test, CLASSES)
    assert found.sizes["unit"] == {"one": 6, "two": 4}[name] and np.isfinite(found["f1"]).all()


@given(
    iou=hnp.arrays(float, (8, 3), elements=st.integers(0, 5)),
    drop=hnp.arrays(float, (8, 3), elements=st.integers(0, 5)),
)
@settings(max_examples=60, deadline=None)
def test_explanation_is_spearmans_correlation_class_by_class(iou, drop):
    from scipy.stats import spearmanr

    found = ablation.explained(iou, drop, 19, np.random.default_rng(0))
    known = [c for c in range(3) if np.ptp(iou[:, c]) and np.ptp(drop[:, c])]
    if not known:
        assert np.isnan(found.value) and np.isnan(found.p)
        return
    assert found.value == pytest.approx(np.mean([spearmanr(iou[:, c], drop[:, c]).statistic for c in known]))
    rng = np.random.default_rng(0)
    for null in found.null:
        order = rng.permutation(8)
        assert null == pytest.approx(np.mean([spearmanr(iou[:, c], drop[order, c]).statistic for c in known]))
    assert found.p == pytest.approx((1 + sum(v >= found.value - 1e-12 for v in found.null)) / 20)


def test_explanations_tell_a_link_from_none_and_are_pooled():
    rng = np.random.default_rng(0)
    iou = rng.random((40, 3))
    linked = [ablation.explained(iou, iou + 0.3 * rng.random((40, 3)), 199, rng) for _ in range(2)]
    assert all(part.p == 1 / 200 for part in linked) and ablation.pooled(linked).p == 1 / 200
    none = ablation.explained(iou, rng.random((40, 3)), 199, rng)
    assert none.p > 0.05 and abs(none.value) < 0.3
    constant = ablation.explained(iou, np.ones((40, 3)), 19, rng)
    assert np.isnan(constant.value) and ablation.pooled([constant, linked[0]]).value == linked[0].value
    with pytest.raises(ValueError, match="alike"):
        ablation.explained(iou, iou[:, :2], 19, rng)


# --------------------------------------------------------------------------------------------- stored results


@pytest.fixture
def tiny(one_thread):
    data = windowing.cut(made_recordings({(s, a): 300 for s in (1, 2, 3, 4) for a in range(5)}))
    few = DissectionSettings(
        thinning=1, n_draws=19, angles=(0.0, 1.0), ablation_thinning=1, factor_thinning=1, factor_seeds=(0,),
        widths=(3,), n_permutations=19,
    )  # fmt: skip
    model = ModelSettings(n_units=4, n_dense=8)
    return dataclasses.replace(load_settings("quick", "synthetic"), model=model, dissection=few), data


def test_a_run_is_stored_and_its_first_angle_is_the_network_itself(tiny):
    cfg, data = tiny
    nets = supervised.untrained(cfg, data)
    found = concepts.of_windows(data, dissection.dissected_windows(cfg, data))
    curve = dissection.curve(cfg, data, nets, found)
    assert dict(curve["best"].sizes) == {"alpha": 2, "seed": 2, "layer": 3, "unit": 4}
    split = dissection.dissected_windows(cfg, data)
    by_hand = dissection.dissect(
        taps.outputs(nets[1].model, "conv2", split.x), found.masks, found.names, 19, split.activity, split.recording
    )
    plain = dissection.dissect_networks(cfg, data, nets, found)
    assert np.array_equal(plain["iou"].sel(seed=1, layer="conv2"), by_hand["iou"])
    assert np.array_equal(plain["chance"].sel(seed=1, layer="conv2"), by_hand["chance"])
    assert np.array_equal(curve["best"].sel(alpha=0.0), plain["iou"].max("concept"))
    assert not np.array_equal(curve["best"].sel(alpha=1.0), curve["best"].sel(alpha=0.0))
    lost = ablation.ablate(cfg, data, nets)
    table = ablation.explanations(plain, lost, data.activities, 19)
    assert len(table) == 9 and table["networks"].eq(2).all() and table["p"].dropna().between(0, 1).all()
    kept = sorted(p.parent.name for p in artifact_root().glob("store/*/*/manifest.json"))
    assert len(kept) == 2 * 2 + 2
    again = dissection.curve(cfg, data, nets, found)
    xr.testing.assert_identical(again, curve)
    assert not any(hooks_of(net.model) for net in nets)


def test_examples_and_comparisons_come_from_the_results(tiny):
    cfg, data = tiny
    nets, split = supervised.untrained(cfg, data), dissection.dissected_windows(cfg, data)
    found = concepts.of_windows(data, split)
    labels = dissection.detectors(dissection.dissect_networks(cfg, data, nets, found))
    shown = list(dissection.examples(nets[0], labels.sel(seed=0), split, found, 5).itertuples())
    assert len(shown) == len({(e.layer, e.concept) for e in shown}) == 5
    assert [e.iou for e in shown] == sorted([e.iou for e in shown], reverse=True)
    assert shown[0].iou == labels["best"].sel(seed=0).max()
    for e in shown:
        own = labels.sel(seed=0, layer=e.layer, unit=e.unit)
        assert (own["best"], own["concept"]) == (e.iou, e.concept) and e.unit_mask.any()
        outputs = taps.maps_of(nets[0].model, e.layer, torch.as_tensor(split.x))[:, e.unit]
        window, axis = np.unravel_index(int(outputs.argmax()), outputs.shape)[:2]
        assert np.array_equal(e.signal, split.x[window, axis])
        assert np.array_equal(e.concept_mask, found.masks[found.names.index(e.concept), window, axis])
    best = labels["best"].mean("unit")
    table = dissection.compared({"trained": best, "half": best / 2})
    assert np.allclose(table.loc[("conv2", "half"), "trained minus this"], best.sel(layer="conv2").mean() / 2)
    assert table.loc[("conv1", "trained"), "value"] == pytest.approx(float(best.sel(layer="conv1").mean()))
    assert table["networks"].eq(2).all() and table["value low"].isna().all(), "two networks are too few for an interval"
    five = xr.concat([best.isel(seed=0, drop=True) * k for k in (1, 2, 3, 4, 5)], "seed")
    table = dissection.compared({"trained": five, "half": five / 2})
    row = table.loc[("conv3", "half")]
    assert 0 < row["trained minus this low"] < row["trained minus this"] < row["trained minus this high"]
    mean, (low, high) = interval(five.sel(layer="conv3").values)
    assert table.loc[("conv3", "trained"), ["value", "value low", "value high"]].tolist() == pytest.approx(
        [mean, low, high]
    )


def test_factors_compare_small_networks(tiny, monkeypatch):
    cfg, data = tiny
    quick = dict(PROFILES["quick"])
    quick["training"] = dataclasses.replace(quick["training"], epochs=1)
    monkeypatch.setitem(PROFILES, "quick", quick)
    found = concepts.of_windows(data, dissection.dissected_windows(cfg, data))
    table = dissection_factors.factors(cfg, data, found)
    levels = dissection_factors.levels(cfg.dissection)
    assert list(table["level"].values) == list(levels) and set(table["weights"].values) == {"trained", "random"}
    assert table["unique"].min() >= 0 and table["unique"].max() <= len(found.names) and np.isfinite(table["f1"]).all()
    networks = dissection_factors.small_networks(cfg, data)
    assert (
        networks["3 units"][0].model.settings.n_units == 3
        and not networks["no batch norm"][0].model.settings.batch_norm
    )
    assert networks["no labels"][0].model.classes.out_features == len(dissection_factors.TRANSFORMATIONS)
    own = dissection.dissect_networks(cfg, data, networks["3 units"], found)
    counted = dissection.unique(dissection.detectors(own)).transpose("seed", "layer", "rule")
    assert np.array_equal(
        table["unique"].sel(level="3 units", weights="trained").transpose("seed", "layer", "rule"), counted
    )
    rows = dissection_factors.factor_table(table)
    mean = table["unique"].sel(weights="trained", rule="IoU > 0.04").mean(("layer", "seed"))
    assert rows["unique detectors"].tolist() == pytest.approx(mean.values) and list(rows.index) == list(levels)
    untrained = table["iou"].sel(weights="random").mean(("layer", "seed"))
    assert rows["mean best IoU, random weights"].tolist() == pytest.approx(untrained.values)
    gap = rows["unique detectors, base minus this"]
    assert gap["3 units"] == pytest.approx(rows["unique detectors"].iloc[0] - rows.loc["3 units", "unique detectors"])
    thinner = dataclasses.replace(cfg, dissection=dataclasses.replace(cfg.dissection, factor_thinning=3))
    assert len(dissection_factors.tasks(thinner, data)["labels"].test) == -(-len(data.test) // 3)
