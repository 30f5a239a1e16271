"""Dissection: every rule, threshold and overlap against a naive twin, on SF-HF and on networks of other shapes."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from conftest import made_recordings
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import linalg
from scipy.stats import spearmanr
from test_lens_taps import CLASSES, LENGTH, MODELS, N_AXES, hooks_of

from harvis_utils.data import synthetic, windowing
from harvis_utils.data.archive import load_recordings
from harvis_utils.lenses import ablation, concepts, dissection, dissection_factors
from harvis_utils.metrics import intervals
from harvis_utils.networks import taps
from harvis_utils.settings import PROFILES, DissectionSettings, ModelSettings, artifact_root, load_settings
from harvis_utils.training import supervised

RATE = 30.0
AXES = [f"{sensor} {component}" for sensor in ("arm", "leg") for component in "xyz"]
#: readings in 1/64 G are exact in binary, so that a twin that adds in another order cannot round to another answer
READINGS = hnp.arrays(np.float32, (2, 3, 30), elements=st.integers(-160, 160).map(lambda v: v / 64))
SMOOTH = READINGS.map(lambda x: np.round(np.cumsum(x / 8, axis=-1) * 64).astype(np.float32) / 64)
SIGNALS = st.one_of(READINGS, SMOOTH)
some = settings(max_examples=12)


def windows_like(n=40, axes=N_AXES):
    return (np.round(np.random.default_rng(0).normal(size=(n, axes, LENGTH)).cumsum(-1) * 16) / 64).astype(np.float32)


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


@given(x=SIGNALS)
@some
def test_every_rule_equals_its_naive_twin(x):
    for name, twin in TWINS.items():
        by_hand = [[twin(row, t) for t in range(len(row))] for row in x.reshape(-1, x.shape[-1]).tolist()]
        assert np.array_equal(concepts.RULES[name](x), np.reshape(by_hand, x.shape)), name


def test_every_rule_has_a_twin_and_holds_somewhere_but_not_everywhere():
    assert set(TWINS) == set(concepts.RULES)
    x = windows_like(200)
    found, left_out = concepts.waveforms(x, RATE, AXES[:3])
    assert not left_out and len(found) == len(concepts.RULES) + len(concepts.BANDS_HZ) + 1
    assert all(0 < mask.mean() < 1 and mask.shape == x.shape and mask.dtype == bool for mask in found.values())


@given(x=SIGNALS)
@some
def test_bands_are_parts_of_the_fourier_sum_and_the_strongest_oscillates_where_it_is_strong_enough(x):
    time, envelope = np.arange(LENGTH), concepts.band_envelopes(x, RATE)
    for k, (low, high) in enumerate(concepts.BANDS_HZ.values()):
        total = np.zeros(x.shape, complex)
        for hertz in range(1, 15):  # a window of one second: 1 Hz apart; 15 Hz is the Nyquist frequency
            if low <= hertz < high:
                wave = np.exp(2j * np.pi * hertz * time / RATE)
                total += 2 * (x @ wave.conj())[..., None] / LENGTH * wave
        assert np.allclose(envelope[k], np.abs(total), atol=1e-9)
    found, _ = concepts.waveforms(x, RATE, AXES[:3])
    masks = np.stack([found[f"oscillation {name}"] for name in concepts.BANDS_HZ])
    assert masks.sum(0).max() <= 1
    for k, mask in enumerate(masks):
        others = np.delete(envelope, k, 0).max(0)
        assert (envelope[k][mask] >= concepts.OSCILLATION_G).all() and (envelope[k] >= others)[mask].all()
        assert mask[(envelope[k] > concepts.OSCILLATION_G) & (envelope[k] > others + 1e-9)].all()


@pytest.mark.parametrize(("hertz", "name"), [(2, "1-2 Hz"), (4, "3-5 Hz"), (7, "6-9 Hz"), (12, "10-14 Hz")])
def test_a_sine_oscillates_in_its_band(hertz, name):
    x = 1 + 0.4 * np.sin(2 * np.pi * hertz * np.arange(30) / RATE)[None, None]
    found, _ = concepts.waveforms(x, RATE, ["wrist x"])
    assert found[f"oscillation {name}"].all() and sum(found[f"oscillation {n}"].any() for n in concepts.BANDS_HZ) == 1


@given(
    x=hnp.arrays(np.float32, (2, 6, 30), elements=st.integers(-40, 40).map(lambda v: v / 64)),
    axes=st.permutations(AXES) | st.permutations(["arm x", "leg x", "leg y", "leg z", "hip x", "hip y"]),
)
@some
def test_free_fall_is_a_matter_of_whole_sensors_wherever_their_axes_stand(x, axes):
    twin = np.zeros(x.shape, bool)
    for window, at, sensor in itertools.product(range(2), range(30), {name.split()[0] for name in axes}):
        own = [k for k, name in enumerate(axes) if name.split()[0] == sensor]
        if len(own) == 3:
            twin[window, own, at] = sum(float(x[window, k, at]) ** 2 for k in own) ** 0.5 <= concepts.FREE_FALL_G
    assert np.array_equal(concepts.waveforms(x, RATE, axes)[0]["near free fall"], twin)


def test_what_cannot_be_had_is_left_out_with_a_reason():
    for axes in (["arm x"], ["arm x", "arm y"], ["arm x", "arm y", "leg x"], [f"arm {k}" for k in range(4)]):
        found, left_out = concepts.waveforms(windows_like(axes=len(axes)), RATE, axes)
        why = "no sensor has 3 axes, over which the magnitude would be taken: " + ", ".join(axes)
        assert "near free fall" not in found and left_out == {"near free fall": why}
    with pytest.raises(ValueError, match="NaN"):
        concepts.waveforms(np.full((1, 3, 30), np.nan), RATE, AXES[:3])
    for shape in ((3, 30), (2, 3, 6), (2, 4, 30)):
        with pytest.raises(ValueError, match="7 samples or more"):
            concepts.waveforms(np.zeros(shape), RATE, AXES[:3])


def test_planted_motifs_lie_where_they_were_planted_and_activities_hold_in_whole_windows():
    made_up, truth = windowing.cut(load_recordings("synthetic")), synthetic.motifs()
    split = made_up.train.every(97)
    found, twin = concepts.of_motifs(truth, split), np.zeros((len(truth.names), *split.x.shape), bool)
    length = dict(zip(truth.names, map(len, truth.shapes), strict=True))
    for w in range(len(split)):
        places = truth.occurrences
        for row in places[
            (places["subject"] == split.subject[w]) & (places["activity"] == split.activity[w])
        ].itertuples():
            for sample in range(row.start, row.start + length[row.motif]):
                if 0 <= sample - split.offset[w] < split.length:
                    twin[truth.names.index(row.motif), w, row.axis, sample - split.offset[w]] = True
    assert found.names == truth.names and np.array_equal(found.masks, twin) and twin.any(axis=(1, 2, 3)).all()
    known = concepts.of_windows(made_up, split)
    assert known.only(concepts.ACTIVITY).names == made_up.activities and not known.left_out
    assert known.share == pytest.approx([mask.mean() for mask in known.masks])
    for k, name in enumerate(made_up.activities):
        mask = known.masks[known.names.index(name)]
        assert np.array_equal(mask, np.broadcast_to((split.activity == k)[:, None, None], split.x.shape))


# ---------------------------------------------------------------------------------------- thresholds and overlap

MAPS = hnp.arrays(np.float32, (7, 2, 3, 5), elements=st.integers(-3, 12).map(float))


@given(maps=MAPS, share=st.sampled_from([0.005, 0.05, 0.3, 0.9]))
@some
def test_thresholds_are_order_statistics_of_all_outputs(maps, share):
    t_k, rest = dissection.thresholds(torch.as_tensor(maps), share)
    for unit in range(2):
        values = sorted(maps[:, unit].ravel().tolist(), reverse=True)
        assert t_k[unit] == values[int(np.floor(share * len(values) + 1e-9))] and rest[unit] == values[-1]
        assert sum(v > t_k[unit] for v in values) <= share * len(values) + 1e-9


@given(maps=MAPS, masks=hnp.arrays(bool, (4, 7, 3, 5)), share=st.sampled_from([0.05, 0.3]))
@some
def test_iou_and_its_null_equal_naive_twins(maps, masks, share):
    t_k, rest = limits = dissection.thresholds(torch.as_tensor(maps), share)
    units = dissection.unit_masks(torch.as_tensor(maps), limits, 3, 5)
    recording = np.array([0, 0, 1, 2, 2, 2, 3])
    found, draws = (
        dissection.iou(units, masks),
        dissection.chances(units, masks, 3, np.random.default_rng(1), recording).max(1),
    )
    others = list(intervals.traded(recording, 3, np.random.default_rng(1)))
    for unit in range(2):
        on = maps[:, unit] > rest[unit].item() if t_k[unit] == rest[unit] else maps[:, unit] >= t_k[unit].item()
        assert np.array_equal(units.toarray()[unit].reshape(7, 3, 5), on)
        assert found[unit] == pytest.approx([overlap(on, mask) for mask in masks])
        # not one window for one: a window of the units may stand in for several of the concepts
        assert draws[unit] == pytest.approx([max(overlap(on, mask[o], False) for mask in masks) for o in others])


def overlap(a, b, by_sets=True):
    """IoU by counting: of sets, or of the sizes of two masks."""
    if by_sets:
        a, b = ({at for at in np.ndindex(*mask.shape) if mask[at]} for mask in (a, b))
        return len(a & b) / max(len(a | b), 1)
    both = (a & b).sum()
    return both / max(a.sum() + b.sum() - both, 1)


def test_windows_of_a_recording_are_no_independent_witnesses():
    """A unit with a level for each recording, and concepts that hold in whole recordings and know nothing of it."""
    above, recording = {"recordings": 0, "windows": 0}, np.repeat(np.arange(40), 20)
    for repetition in range(80):
        rng = np.random.default_rng(repetition)
        maps = (rng.normal(size=(40, 1, 1, 1))[recording] + rng.normal(size=(800, 1, 1, 2))).astype(np.float32)
        masks = np.broadcast_to((rng.permutation(40) < 10)[recording][None, :, None, None], (1, 800, 1, 2))
        limits = dissection.thresholds(torch.as_tensor(maps), 0.1)
        units = dissection.unit_masks(torch.as_tensor(maps), limits, 1, 2)
        for name, whose in (("recordings", recording), ("windows", np.arange(800))):
            null = dissection.chances(units, masks, 19, np.random.default_rng(0), whose).max(1)
            above[name] += int(dissection.iou(units, masks)[0, 0] > dissection.chance_point(null[0]))
    # 5 % of 80 is 4, with a standard deviation of 2; if windows trade one by one it is 30 %
    assert 0 < above["recordings"] <= 9 and above["windows"] > 16


def test_a_unit_at_rest_has_only_what_exceeds_rest():
    maps = torch.zeros(20, 2, 1, 5)
    maps[3, 0, 0, 2] = 1
    units = dissection.unit_masks(maps, dissection.thresholds(maps, 0.05), 1, 5)
    assert units.indices.tolist() == [3 * 5 + 2] and np.diff(units.indptr).tolist() == [1, 0]
    assert np.array_equal(dissection.iou(units, np.zeros((1, 20, 1, 5), bool)), [[0.0], [0.0]])
    masks, recording = np.zeros((1, 20, 1, 5), bool), np.arange(20)
    assert dissection.dissect(maps, masks, "a", 19, None, recording, 0.05)["seldom"].all()


@given(share=st.floats(0.001, 0.999), concept=st.floats(0.0, 1.0))
def test_no_overlap_exceeds_the_ceiling(share, concept):
    a, b = round(share * 1000), round(concept * 1000)
    best = min(a, b) / max(a, b, 1) if a else 0.0  # one inside the other
    assert dissection.ceiling(np.array([b / 1000]), a / 1000)[0] == pytest.approx(best)


def detectors(maps, masks, names, groups, recording, share=dissection.SHARE):
    maps = torch.as_tensor(np.asarray(maps, np.float32))
    return dissection.detectors(dissection.dissect(maps, masks, names, 39, groups, recording, share))


def test_a_unit_that_is_a_concept_detects_it_and_others_do_not():
    rng = np.random.default_rng(0)
    masks, maps = rng.random((3, 300, 3, 5)) < 0.005, rng.random((300, 2, 3, 5))
    maps[:, 0] += masks[1]
    label = detectors(maps, masks, "abc", rng.integers(3, size=300), np.arange(300) // 5)
    assert label["concept"].values[0] == "b" and label["best"].values[0] > 0.7
    assert label["detector"].values.tolist() == [[True] * 3, [False] * 3]
    assert dissection.unique(label).values.tolist() == [1, 1, 1]
    assert label["limit"].values[0, 0] == dissection.DETECTOR_IOU


def test_an_activity_is_no_detection_within_activities():
    rng, recording = np.random.default_rng(0), np.arange(400) // 20
    group = recording % 4
    whole = np.broadcast_to((group == 1)[None, :, None, None], (1, 400, 1, 30))
    shape = whole & (rng.random((1, 400, 1, 30)) < 0.02)
    noise = rng.random((400, 1, 1, 30))
    label = detectors(noise + (group == 1)[:, None, None, None], whole, ["activity"], group, recording, 0.1)
    assert label["detector"].values.tolist() == [[True, True, False]]
    label = detectors(noise + shape[0][:, None], shape, ["shape"], group, recording)
    assert label["detector"].values.tolist() == [[True, True, True]]


def test_unique_and_counted_detectors_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    dims, names = ("units", "seed", "layer", "unit"), np.array(["a", "b", "c"])
    concept, detector = names[rng.integers(3, size=(2, 3, 2, 6))], rng.random((2, 3, 2, 6, 2)) < 0.3
    coords = {"units": ["u", "v"], "layer": ["k", "l"], "rule": list(dissection.RULES[:2])}
    found = xr.Dataset({"concept": (dims, concept), "detector": ((*dims, "rule"), detector)}, coords)
    counts, table = dissection.unique(found), dissection.detected(found)
    for at in np.ndindex(2, 3, 2, 2):
        twin = {concept[(*at[:3], u)] for u in range(6) if detector[(*at[:3], u, at[3])]}
        assert counts.transpose(*dims[:3], "rule").values[at] == len(twin)
    for w, la, name in np.ndindex(2, 2, 3):
        number = (detector[w, :, la, :, 0] & (concept[w, :, la] == names[name])).sum() / 3
        assert table.iloc[:, w].get((coords["layer"][la], names[name]), 0.0) == pytest.approx(number)


# --------------------------------------------------------------------------------------- networks of any shape


def test_shorter_maps_are_put_where_they_look_and_dense_layers_hold_for_whole_windows():
    model, x = MODELS["one"]().eval(), windows_like(60)
    pooled = taps.maps_of(model, "pool", torch.as_tensor(x)).detach()
    limits = dissection.thresholds(pooled, 0.05)
    positions = taps.positions(model, "pool", x)
    assert np.array_equal(positions, np.arange(15) * 2 + 0.5)
    units = dissection.unit_masks(pooled, limits, N_AXES, LENGTH, positions).toarray().reshape(-1, 60, LENGTH) > 0
    stretched = torch.nn.functional.interpolate(pooled[:, :, 0], LENGTH, mode="linear")
    on = (stretched.numpy() >= limits.t_k[:, None]).swapaxes(0, 1)
    assert np.array_equal(units[..., 1:-1], on[..., 1:-1]) and not units[..., [0, -1]].any()
    with pytest.raises(ValueError, match="maps have 15 samples, the windows 30: say where"):
        dissection.unit_masks(pooled, limits, N_AXES, LENGTH)
    scores = taps.outputs(model, "out", x)
    dense = dissection.unit_masks(scores, dissection.thresholds(scores, 0.05), N_AXES, LENGTH)
    whole = dense.toarray().reshape(CLASSES, 60, LENGTH)
    assert np.array_equal(whole.any(2), whole.all(2)) and whole.any(2).sum(1).tolist() == [4] * CLASSES


def test_errors_say_what_is_wrong():
    maps = torch.rand(10, 4, 2, 30)
    with pytest.raises(ValueError, match="these maps have 2 axes, the windows 3"):
        dissection.unit_masks(maps, dissection.thresholds(maps), N_AXES, LENGTH)
    alone = maps[:, :, :1], np.zeros((1, 10, 1, 30), bool), ["a"], 19
    with pytest.raises(ValueError, match="not of the same windows"):
        dissection.dissect(alone[0], np.zeros((1, 9, 1, 30), bool), ["a"], 19, None, range(9))
    with pytest.raises(ValueError, match="9 windows have a recording, but there are masks of 10"):
        dissection.dissect(*alone, None, range(9))
    with pytest.raises(ValueError, match="2 recordings can trade places in 2 ways only"):
        dissection.dissect(*alone, None, np.arange(10) // 5)
    with pytest.raises(ValueError, match="4 recordings can trade places within 2 groups in 4 ways only"):
        dissection.dissect(*alone, np.arange(10) // 6, np.arange(10) // 3)
    for bad, share, why in ((maps[:0], 0.1, "no windows"), (maps * torch.nan, 0.1, "NaN")):
        with pytest.raises(ValueError, match=why):
            dissection.thresholds(bad, share)
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match="between 0 and 1"):
            dissection.thresholds(maps, share)


# ----------------------------------------------------------------------------------------------------- rotation


@given(n=st.integers(1, 9), seed=st.integers(0, 99), alpha=st.floats(0, 1), beta=st.floats(0, 1))
@some
def test_powers_of_a_rotation(n, seed, alpha, beta):
    q = dissection.random_rotation(n, np.random.default_rng(seed))
    assert np.allclose(q @ q.T, np.eye(n)) and np.linalg.det(q) == pytest.approx(1)
    part = dissection.power(q, alpha)
    assert np.allclose(part @ part.T, np.eye(n)) and np.allclose(dissection.power(q, 1), q)
    assert np.allclose(part @ dissection.power(q, beta), dissection.power(q, alpha + beta))
    assert np.array_equal(dissection.power(q, 0), np.eye(n))
    assert np.allclose(part, linalg.expm(alpha * linalg.logm(q)).real)


@pytest.mark.parametrize("bad", [np.diag([-1.0, 1, 1]), np.diag([-1.0, -1, 1]), np.ones((2, 2)), np.eye(3)[:2]])
def test_what_is_no_rotation_or_turns_a_plane_by_half_is_refused(bad):
    with pytest.raises(ValueError, match=r"determinant -1\) or half a turn|square orthogonal"):
        dissection.power(bad, 0.5)


def test_random_rotations_have_no_direction_of_their_own():
    rng = np.random.default_rng(0)
    many = np.stack([dissection.random_rotation(4, rng) for _ in range(4000)])
    assert np.abs(many.mean(0)).max() < 0.04 and np.allclose((many**2).mean(0), 0.25, atol=0.02)


# ----------------------------------------------------------------------------------------- pretext and ablation


@given(which=hnp.arrays(np.int64, 6, elements=st.integers(0, 3)), seed=st.integers(0, 20))
@some
def test_transformations_do_what_they_say(which, seed):
    x = windows_like(6)
    found = dissection_factors.transformed(x, which, np.random.default_rng(seed))
    for own, before, k in zip(found, x, which, strict=True):
        if k < 3:
            assert np.array_equal(own, [before, -before, before[:, ::-1]][k])
        else:
            old, new = (np.split(of, 5, axis=1) for of in (before, own))
            order = [next(i for i, piece in enumerate(old) if np.array_equal(piece, p)) for p in new]
            assert sorted(order) == [0, 1, 2, 3, 4] != order


def test_the_task_without_labels_is_windows_like_any_other():
    data = windowing.cut(made_recordings({(s, a): 200 for s in (1, 2, 3, 4) for a in (0, 1)}))
    made = dissection_factors.without_labels(data)
    assert made.activities == dissection_factors.TRANSFORMATIONS and made.digest != data.digest
    for name in windowing.SPLITS:
        own, before = getattr(made, name), getattr(data, name)
        assert own.x.shape == before.x.shape and np.array_equal(own.subject, before.subject)
        assert np.array_equal(own.x[own.activity == 0], before.x[own.activity == 0])
        assert np.array_equal(own.x[own.activity == 1], -before.x[own.activity == 1])
    assert dissection_factors.without_labels(data, seed=1).digest != made.digest
    with pytest.raises(ValueError, match="0 to 3"):
        dissection_factors.transformed(data.train.x[:1], np.array([4]), np.random.default_rng(0))


def test_ablation_says_nothing_of_a_class_without_windows():
    data = windowing.cut(made_recordings({(s, a): 60 for s in (1, 2, 3, 4) for a in (0, 1, 2)}))
    model = supervised.new_model(data, ModelSettings(n_units=3, n_dense=8), 0)
    found = ablation.drops(model, ["conv1", "conv3"], data.test, 4)
    assert dict(found.sizes) == {"layer": 2, "unit": 3, "class": 4}
    lacking = found["f1"].isel({"class": 3}), found["probability"].isel({"class": 3}), found["f1_whole"][3]
    assert all(of.isnull().all() for of in lacking) and found.isel({"class": [0, 1, 2]}).notnull().all()["f1"]


@given(both=hnp.arrays(float, (2, 8, 3), elements=st.integers(0, 5)))
@some
def test_explanation_is_spearmans_correlation_class_by_class(both):
    iou, drop = both
    found, rng = ablation.explained(iou, drop, 9, np.random.default_rng(0)), np.random.default_rng(0)
    known = [c for c in range(3) if np.ptp(iou[:, c]) and np.ptp(drop[:, c])]
    if not known:
        assert np.isnan(found).all() and np.isnan(ablation.p_value(found))
        return
    for k, value in enumerate(found):
        order = rng.permutation(8) if k else np.arange(8)
        assert value == pytest.approx(np.mean([spearmanr(iou[:, c], drop[order, c]).statistic for c in known]))
    assert ablation.p_value(found) == sum(v >= found[0] - 1e-12 for v in found) / 10


def test_explanations_tell_a_link_from_none():
    rng = np.random.default_rng(0)
    iou = rng.random((40, 3))
    assert ablation.p_value(ablation.explained(iou, iou + 0.3 * rng.random((40, 3)), 199, rng)) == 1 / 200
    none = ablation.explained(iou, rng.random((40, 3)), 199, rng)
    assert ablation.p_value(none) > 0.05 and abs(none[0]) < 0.3
    with pytest.raises(ValueError, match="alike"):
        ablation.explained(iou, iou[:, :2], 19, rng)


# --------------------------------------------------------------------------------------------- stored results


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run of two untrained networks, all that notebook 11 makes of them, and how many results were stored."""
    data = windowing.cut(made_recordings({(s, a): 150 for s in (1, 2, 3, 4) for a in range(5)}))
    few = {"thinning": 1, "n_draws": 19, "angles": (0.0, 1.0), "ablation_thinning": 1, "n_permutations": 19}
    few = DissectionSettings(**few, factor_thinning=2, factor_seeds=(0,), widths=(3,))
    model = ModelSettings(n_units=4, n_dense=8)
    cfg = dataclasses.replace(load_settings("quick", "synthetic", "cpu"), model=model, dissection=few)
    training = dataclasses.replace(PROFILES["quick"]["training"], epochs=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("dissection")))
        patched.setitem(PROFILES, "quick", PROFILES["quick"] | {"training": training, "model": model})
        split, nets = dissection.dissected_windows(cfg, data), supervised.untrained(cfg, data)
        known = concepts.of_windows(data, split)
        kinds, curve = (of(cfg, data, nets, nets, known) for of in (dissection.kinds, dissection.curve))
        lost = ablation.ablate(cfg, data, nets)
        n_stored = len(list(artifact_root().glob("store/*/*/manifest.json")))
        again = dissection.curve(cfg, data, nets, nets, known)
        small = dissection_factors.kinds(cfg, data)
        factors = dissection_factors.factors(cfg, data, known)
        three = supervised.networks(*small["3 units"])
        own = dissection.dissect_networks(cfg, data, three, known)
    return SimpleNamespace(**{k: v for k, v in locals().items() if k != "patched"})


def test_a_run_is_stored_and_its_first_angle_is_the_network_itself(tiny):
    assert tiny.n_stored == 2 * 2 + 2 and tiny.again.equals(tiny.curve)
    assert list(tiny.curve.index.unique("alpha")) == [0.0, 1.0] and len(tiny.curve) == 2 * 3 * 2
    best = dissection.summary(dissection.detectors(tiny.kinds)).loc["mean best IoU", "value"].unstack("units")
    turned = tiny.curve["mean best IoU"].xs("trained", level="units").unstack("alpha")
    assert np.array_equal(turned, best[["trained", "rotated"]]) and (turned[0.0] != turned[1.0]).all()
    maps, about = taps.outputs(tiny.nets[1].model, "conv2", tiny.split.x), (tiny.split.activity, tiny.split.recording)
    q = torch.tensor(dissection.random_rotation(4, np.random.default_rng((1, 1))), dtype=torch.float32)
    for who, seen in {"trained": maps, "rotated": torch.einsum("vu,wuat->wvat", q, maps)}.items():
        twin = dissection.dissect(seen, tiny.known.masks, tiny.known.names, 19, *about)
        found = tiny.kinds.sel(units=who, seed=1, layer="conv2")
        assert np.allclose(found["iou"], twin["iou"], atol=1e-3) and np.allclose(found["on"], twin["on"], atol=1e-3)
    table = ablation.explanations(tiny.kinds.sel(units="trained"), tiny.lost, tiny.data.activities, 19)
    assert len(table) == 9 and table["networks"].eq(2).all() and table["p"].dropna().between(0, 1).all()
    costs = ablation.costs(tiny.kinds.sel(units="trained"), tiny.lost, tiny.data.activities)
    iou, drop = costs.columns[-2:]
    each, means = costs.loc["a unit and an activity"], costs.loc["mean of a fifth of them"]
    row = each[(each["seed"] == 1) & (each["layer"] == "conv2") & (each["unit"] == 3)].iloc[0]
    at = {"seed": 1, "layer": "conv2", "unit": 3}
    assert row[iou] == tiny.kinds["iou"].sel(at | {"units": "trained", "concept": row["concept"]})
    assert row[drop] == tiny.lost["probability"].sel(at)[list(tiny.data.activities).index(row["concept"])]
    assert (means.groupby("layer")[iou].diff().dropna() > 0).all() and means.groupby("layer").size().max() <= 5
    assert not any(hooks_of(net.model) for net in tiny.nets)


def test_examples_come_from_the_results(tiny):
    labels = dissection.detectors(tiny.kinds.sel(units="trained", seed=0))
    shown = list(dissection.examples(tiny.nets[0], labels, tiny.split, tiny.known, 5).itertuples())
    assert len(shown) == len({(e.layer, e.concept) for e in shown}) == 5
    assert [e.iou for e in shown] == sorted([e.iou for e in shown], reverse=True)
    assert shown[0].iou == labels["best"].max()
    for e in shown:
        own = labels.sel(layer=e.layer, unit=e.unit)
        assert (own["best"], own["concept"]) == (e.iou, e.concept) and e.unit_mask.any()
        outputs = taps.maps_of(tiny.nets[0].model, e.layer, torch.as_tensor(tiny.split.x))[:, e.unit]
        window, axis = np.unravel_index(int(outputs.argmax()), outputs.shape)[:2]
        assert np.array_equal(e.signal, tiny.split.x[window, axis])
        assert np.array_equal(e.concept_mask, tiny.known.masks[tiny.known.names.index(e.concept), window, axis])


def test_kinds_of_networks_are_compared_over_networks(tiny):
    two = dissection.summary(dissection.detectors(tiny.kinds)).loc["mean best IoU"]
    best = dissection.detectors(tiny.kinds)["best"].mean("unit")
    assert two.loc[("conv1", "rotated"), "value"] == pytest.approx(
        float(best.sel(layer="conv1", units="rotated").mean())
    )
    assert two["networks"].eq(2).all() and two["value low"].isna().all(), "two networks are too few for an interval"
    one = best.sel(units="trained").isel(seed=0, drop=True)
    five = xr.concat([one * k for k in (1, 2, 3, 4, 5)], "seed")
    table = dissection.compared(xr.concat([five, five / 2], "units").assign_coords(units=["trained", "half"]))
    row = table.loc[("conv3", "half")]
    assert 0 < row["trained minus this low"] < row["trained minus this"] < row["trained minus this high"]
    mean, (low, high) = intervals.interval(five.sel(layer="conv3").values)
    own = table.loc[("conv3", "trained"), ["value", "value low", "value high"]].tolist()
    assert own == pytest.approx([mean, low, high])


def test_factors_compare_small_networks(tiny):
    table, three = tiny.factors, tiny.three[0].model
    assert list(table["level"].values) == list(tiny.small) and set(table["weights"].values) == {
        "trained",
        "random weights",
    }
    assert table["unique"].min() >= 0 and table["unique"].max() <= len(tiny.known.names)
    assert three.settings.n_units == 3 and three.settings.dropout == 0
    assert not tiny.small["no batch norm"][0].model.batch_norm and np.isfinite(table["f1"]).all()
    assert tiny.small["no labels"][1].activities == dissection_factors.TRANSFORMATIONS
    assert len(tiny.small["3 units"][1].test) == -(-len(tiny.data.test) // 2), "every second window"
    counted = dissection.unique(dissection.detectors(tiny.own)).transpose("seed", "layer", "rule")
    stored = table["unique"].sel(level="3 units", weights="trained").transpose("seed", "layer", "rule")
    assert np.array_equal(stored, counted)
    rows = dissection_factors.factor_table(table)
    mean = table["unique"].sel(weights="trained", rule="IoU > 0.04").mean(("layer", "seed"))
    assert rows["unique detectors"].tolist() == pytest.approx(mean.values) and list(rows.index) == list(tiny.small)
    untrained = table["iou"].sel(weights="random weights").mean(("layer", "seed"))
    assert rows["mean best IoU, random weights"].tolist() == pytest.approx(untrained.values)
    gap = rows["unique detectors, base minus this"]
    assert gap["3 units"] == pytest.approx(rows["unique detectors"].iloc[0] - rows.loc["3 units", "unique detectors"])


def test_measures_in_which_trained_networks_are_surely_ahead_or_behind_are_counted():
    ends = [(0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1), (0.1, 0.2)]
    at = pd.MultiIndex.from_product([["rule"], ["conv1", "conv2"], ["rotated", "random weights"]])
    rows = pd.DataFrame(
        ends, at.set_names(["measure", "layer", "units"]), ["trained minus this low", "trained minus this high"]
    )
    rows.loc[("rule", "conv1", "trained"), :] = np.nan
    found = dissection.standing(rows.assign(**{"trained minus this": rows.mean(axis=1)}))
    assert found.loc["rotated"].to_dict() == {"ahead": 1, "behind": 0, "of": 2}
    assert found.loc["random weights"].to_dict() == {"ahead": 1, "behind": 1, "of": 2}


def test_correlations_beyond_chance_are_named_by_their_side():
    rows = pd.DataFrame({"correlation": [0.3, -0.3, 0.1], "chance low": -0.2, "chance high": 0.2})
    rows.index = pd.MultiIndex.from_product([["F1"], ["conv1", "conv2", "conv3"]], names=["question", "layer"])
    assert ablation.beyond_chance(rows) == ("F1 in conv1", "F1 in conv2")
