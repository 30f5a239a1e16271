"""What doing nothing cannot win: measures against a readable twin, on planted cases, and their stored results."""

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk
from scipy.spatial.distance import jensenshannon

from harvis_utils.data.windowing import Split
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.metrics import realism, signal_measures, similarity
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.settings import MaximizationSettings, ModelSettings, Settings, TrainingSettings, load_settings
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

CFG = Settings("quick", "synthetic")
LENGTH, WIDTH = 30, CFG.similarity.piece
SINE = starting_signal(CFG.maximization, LENGTH)


def made_split(x, subject) -> Split:
    """Windows (window, axis, time) end to end, none overlapping."""
    x, subject = np.asarray(x, np.float32), np.asarray(subject)
    nothing = np.zeros(len(x), int)
    series = x.transpose(0, 2, 1).reshape(-1, x.shape[1])
    return Split(series, np.arange(len(x)) * x.shape[2], nothing, subject, nothing, nothing, x.shape[2])


def maps_of(trunk, layer, unit, x):
    return paper_methods.unit_maps(trunk, layer, torch.full((len(x),), unit), torch.tensor(x)).numpy()


def made_signals(trunk, layer, x) -> xr.Dataset:
    """Signals (signal, unit, time) with their units' maps."""
    maps = np.stack([maps_of(trunk, layer, u, x[:, u]) for u in range(x.shape[1])], 1)
    dims = ("number", "layer", "unit", "time")
    coords = {"layer": [layer], "unit": np.arange(x.shape[1])}
    return xr.Dataset({"signal": (dims, x[:, None]), "map": (dims, maps[:, None])}, coords=coords)


def test_flat_is_what_ranges_over_less_than_one_constant_at_any_level():
    ramp = np.linspace(0, 1, 30)
    high, at, constant = 5 + 0.049 * ramp, 0.0501 * ramp, np.full(30, 3.0)
    assert signal_measures.flat(np.stack([high, at, constant, ramp * np.nan])).tolist() == [True, False, True, False]
    several = np.stack([[high, constant], [high, at]])
    assert signal_measures.flat(several).tolist() == [True, False], "the axis that moves most counts"


def naive_mean_nearest(values):
    return np.mean(sorted(values)[: signal_measures.N_NEAREST])


def naive_d(piece, segment):
    errors = [np.mean((segment[j : j + len(piece)] - piece) ** 2) for j in range(len(segment) - len(piece) + 1)]
    return min(errors)


def naive_scaled(piece, other):
    return np.mean((piece - other) ** 2) / max((np.var(piece) + np.var(other)) / 2, signal_measures.REST_G**2)


def naive_spectrum(x):
    power = np.abs(np.fft.rfft(x))[1:] ** 2
    return power / power.sum()


def naive_best(x, outputs):
    sums = [float(sum(outputs[j : j + WIDTH].astype(float))) for j in range(len(x) - WIDTH + 1)]
    return x[sums.index(max(sums)) :][:WIDTH].astype(float)


def naive_unit(trunk, layer, unit, th_eap, split, x, outputs):
    """All measures of one signal of one unit; every strong segment is a reference window."""
    segments, subject = split.segments, np.repeat(split.subject, split.series.shape[1])
    answers = [maps_of(trunk, layer, unit, s[None])[0] for s in segments]
    strong = [i for i, a in enumerate(answers) if a.max() >= th_eap]
    if len(strong) < realism.N_STRONGEST:
        strong = sorted(range(len(segments)), key=lambda i: -answers[i].max())[: realism.N_STRONGEST]
    everyone = {int(s) for s in subject}
    most = max(sorted(everyone), key=lambda s: sum(subject[i] == s for i in strong))
    left = sorted((i for i in range(len(segments)) if subject[i] != most), key=lambda i: -answers[i].max())
    while sum(subject[i] != most for i in strong) < signal_measures.N_NEAREST:
        strong.append(next(i for i in left if i not in strong))
    real = {i: segments[i].astype(float) for i in strong}
    pieces = {i: naive_best(segments[i], answers[i]) for i in strong}
    piece, x = naive_best(x, outputs), x.astype(float)

    def to_windows(one, leave_out=None):
        return naive_mean_nearest([naive_scaled(one, pieces[i]) for i in strong if subject[i] != leave_out])

    own = {i: to_windows(pieces[i], subject[i]) for i in strong}
    against = {i: to_windows(piece, subject[i]) for i in strong}
    as_far = sum(own[i] >= against[i] or np.isclose(own[i], against[i], rtol=1e-9, atol=1e-12) for i in strong)
    spectrum = np.mean([naive_spectrum(real[i]) for i in strong], 0)
    return {
        "reached": outputs.max() / th_eap,
        "matched_ssim": naive_mean_nearest([naive_d(piece, real[i]) for i in strong]),
        "scaled_distance": to_windows(piece),
        "distance_ratio": np.mean(list(against.values())) / np.median(list(own.values())),
        "realism_p": (1 + as_far) / (1 + len(strong)),
        "spectral_distance": jensenshannon(naive_spectrum(x), spectrum, base=2),
    }


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    n_subjects=st.integers(2, 4),
    n_axes=st.integers(1, 2),
    n_strongest=st.sampled_from([1, 8]),
    layer=st.sampled_from(["conv1", "conv2"]),
)
def test_measures_equal_a_readable_twin(seed, n_subjects, n_axes, n_strongest, layer):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(24, n_axes, LENGTH)).cumsum(-1) * 0.2
    split = made_split(x, np.r_[np.arange(n_subjects), rng.integers(n_subjects, size=24 - n_subjects)])
    trunk = made_trunk(2, seed, n_layers=2)
    statistics = unit_statistics.collect(trunk, split.segments)
    some = rng.normal(size=(3, 2, LENGTH)).astype(np.float32)
    some[0] = split.segments[:2]  # its own reference window among others: ties
    signals = made_signals(trunk, layer, some)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(realism, "N_STRONGEST", n_strongest)
        patched.setattr(signal_measures, "N_NEAREST", 2)
        found = realism.measure(signals, statistics, trunk, split, CFG.similarity, SINE)
        for unit in range(2):
            if statistics["dead"].sel(layer=layer, unit=unit):
                assert np.isnan(found["realism_p"].sel(unit=unit)).all()
                continue
            th = float(statistics["th_eap"].sel(layer=layer, unit=unit))
            for number in range(3):
                outputs = signals["map"].values[number, 0, unit]
                expected = naive_unit(trunk, layer, unit, th, split, some[number, unit], outputs)
                one = found.sel(layer=layer, unit=unit).isel(number=number)
                for name, value in expected.items():
                    assert np.isclose(one[name], value, rtol=1e-6, atol=1e-9), (name, float(one[name]), value)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 12))
def test_distances_equal_loops(seed, width):
    rng = np.random.default_rng(seed)
    pieces, segments = rng.normal(size=(3, width)), rng.normal(size=(4, 12))
    pieces[0] = segments[0, :width]  # an exact match is no negative number
    found = signal_measures.distances(pieces, segments)
    assert (found >= 0).all() and found[0, 0] < 1e-12
    assert np.allclose(found, [[naive_d(p, s) for s in segments] for p in pieces])
    others = segments[:, :width]
    assert np.allclose(
        signal_measures.scaled_distance(pieces, others), [[naive_scaled(p, o) for o in others] for p in pieces]
    )


BUMP = np.cos(np.linspace(-np.pi / 2, np.pi / 2, 9)) ** 2
BUMP_TRUNK = Trunk((torch.tensor(BUMP - BUMP.mean(), dtype=torch.float32)[None, None],), (torch.zeros(1),))


def bumps(rng, n):
    """A bump of about 0.5 G somewhere in calm, noisy windows: (n, 1, time)."""
    x = 0.03 * rng.normal(size=(n, 1, LENGTH))
    for i, at in enumerate(rng.integers(3, LENGTH - 12, size=n)):
        x[i, 0, at : at + 9] += rng.normal(0.5, 0.1) * BUMP
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def planted():
    """References of a unit that looks for bumps, in the windows of four people, and what measures a signal by them."""
    rng = np.random.default_rng(0)
    quiet = 0.03 * rng.normal(size=(400, 1, LENGTH))
    split = made_split(np.concatenate([bumps(rng, 320), quiet]), np.arange(720) % 4)
    statistics = xr.Dataset(
        {"th_eap": (("layer", "unit"), [[0.3]]), "dead": (("layer", "unit"), [[False]])},
        {"layer": ["conv1"], "unit": [0]},
    )
    found = realism.references(BUMP_TRUNK, statistics["th_eap"], split, CFG.similarity)

    def measured(x, **changed):
        signals = made_signals(BUMP_TRUNK, "conv1", np.asarray(x, np.float32).reshape(-1, 1, LENGTH))
        one = realism.measure(signals, statistics.assign(changed), BUMP_TRUNK, split, CFG.similarity, SINE, found)
        return one.isel(layer=0, unit=0)

    return found, measured


def test_reference_windows_excite_the_unit(planted):
    found, _ = planted
    n = int(found["n_reference"][0, 0])
    assert 250 < n <= 320
    segment = found["segment"].values[0, 0]
    assert (segment[:n] < 320).all() and (segment[n:] == -1).all()  # the quiet windows come after the bumps


def test_doing_nothing_loses_and_a_real_window_does_not(planted):
    _, measured = planted
    sine = SINE
    zero, still, blank, real, loud = (
        measured(v).isel(number=0)
        for v in (
            np.zeros(LENGTH),
            sine,
            np.full(LENGTH, 0.1),
            bumps(np.random.default_rng(5), 1),
            50 * sine / np.abs(sine).max() * 0.19,
        )
    )
    for idle in (zero, still, blank, loud):
        assert idle["realism_p"] < 0.02 and idle["distance_ratio"] > 3
    assert real["realism_p"] > 0.2 and real["distance_ratio"] < 2 and real["reached"] >= 1
    assert zero["reached"] == 0 and np.isclose(still["displacement_g"], 0)
    # why the distance in G^2 is not enough: beside the calm half of a real window, zero is as near as can be
    assert zero["matched_ssim"] < real["matched_ssim"] / 2
    assert np.isclose(zero["spectral_distance"], 1) and np.isclose(blank["spectral_distance"], 1)
    assert real["spectral_distance"] < still["spectral_distance"] < 1


def test_p_of_real_windows_of_somebody_else_is_about_uniform(planted):
    _, measured = planted
    found = measured(bumps(np.random.default_rng(1), 300))
    p = found["realism_p"].where(found["reached"] >= 1, drop=True).values
    assert len(p) > 200 and scipy.stats.kstest(p, "uniform").statistic < 0.15
    assert 0.8 < float(found["distance_ratio"].median()) < 1.25


def test_failed_signals_get_the_smallest_p_and_dead_units_none(planted):
    references, measured = planted
    x = bumps(np.random.default_rng(2), 3)
    x[1, 0, 4] = 10.5
    found, smallest = measured(x), 1 / (1 + int(references["n_reference"][0, 0]))
    assert list(found["failed"].values) == [False, True, False]
    for name in ("matched_ssim", "scaled_distance", "distance_ratio", "spectral_distance"):
        assert list(np.isnan(found[name].values)) == [False, True, False], name
    assert found["realism_p"][1] == smallest
    assert np.array_equal(found["realism_p"][[0, 2]], measured(x[[0, 2]])["realism_p"])
    dead = measured(x, dead=(("layer", "unit"), [[True]]))
    for name in ("reached", "matched_ssim", "realism_p", "distance_ratio", "spectral_distance"):
        assert np.isnan(dead[name]).all(), name
    assert dead["dead"].all() and dead["failed"].sum() == 1


def one_unit(x, subject, threshold):
    """References of a unit whose output is the input itself: its largest output is a window's largest sample."""
    trunk = Trunk((torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]),), (torch.zeros(1),))
    th_eap = xr.DataArray([[threshold]], dims=("layer", "unit"), coords={"layer": ["conv1"], "unit": [0]})
    return realism.references(trunk, th_eap, made_split(x, subject), CFG.similarity).isel(layer=0, unit=0)


def test_copies_in_the_same_subject_change_nothing_for_it():
    x, subject = bumps(np.random.default_rng(3), 120), np.arange(120) % 2
    copied = np.arange(0, 40, 2)  # windows of subject 0
    before = one_unit(x, subject, 0.1)
    again = one_unit(np.concatenate([x, x[copied]]), np.r_[subject, subject[copied]], 0.1)
    assert again["n_reference"] == before["n_reference"] + 20 == 140
    first, second = before["distance"].values[:120], again["distance"].values[:120]
    assert np.allclose(first[subject == 0], second[subject == 0], rtol=1e-12) and (first > 0).all()
    assert np.allclose(again["distance"].values[120:140], second[copied], rtol=1e-12)
    assert not np.allclose(first[subject == 1], second[subject == 1], rtol=1e-6)  # others see the copies


def test_a_sample_is_spread_over_subjects_and_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(realism, "N_REFERENCES", 60)
    x, subject = bumps(np.random.default_rng(4), 300), np.r_[np.full(10, 7), np.full(90, 8), np.full(200, 9)]
    first, second = one_unit(x, subject, 0.1), one_unit(x, subject, 0.1)
    assert first.equals(second)
    chosen = first["segment"].values[: int(first["n_reference"])]
    assert len(set(chosen)) == 60 and list(np.unique(subject[chosen], return_counts=True)[1]) == [10, 25, 25]
    monkeypatch.setattr(realism, "SEED", 1)
    assert not one_unit(x, subject, 0.1)["segment"].equals(first["segment"])


def test_where_few_windows_are_strong_the_strongest_are_taken():
    x, subject = bumps(np.random.default_rng(4), 100), np.arange(100) % 3
    top = x.max((1, 2))
    found = one_unit(x, subject, float(np.sort(top)[-7]))
    assert found["n_reference"] == realism.N_STRONGEST
    assert set(found["segment"].values[: realism.N_STRONGEST]) == set(np.argsort(-top)[: realism.N_STRONGEST])


def test_where_one_subject_has_all_strong_windows_the_strongest_of_others_are_added():
    x, subject = bumps(np.random.default_rng(4), 160), np.repeat([0, 1, 2, 3], 40)
    subject[:100] = 0
    x[:100] *= 9
    top = x.max((1, 2))
    found = one_unit(x, subject, float(top[:100].min()))
    assert (top >= top[:100].min()).sum() == 100 and found["n_reference"] == 100 + signal_measures.N_NEAREST
    others = [i for i in found["segment"].values if subject[i] != 0 and i >= 0]
    assert others == sorted(100 + np.argsort(-top[100:])[: signal_measures.N_NEAREST])
    assert np.isfinite(found["distance"].values[: int(found["n_reference"])]).all()


def test_windows_of_one_person_and_pieces_longer_than_windows_are_one_clear_error():
    with pytest.raises(ValueError, match="are of subject.s. 4; it needs a split with at least two training subjects"):
        one_unit(bumps(np.random.default_rng(0), 60), np.full(60, 4), 0.1)
    with pytest.raises(ValueError, match="a piece of 10 samples does not fit windows of 8"):
        one_unit(np.zeros((4, 1, 8)), np.arange(4), 0.1)


def test_largest_outputs_equal_the_maps(monkeypatch):
    trunk, x = made_trunk(3, 1), np.random.default_rng(0).normal(size=(23, LENGTH)).astype(np.float32)
    monkeypatch.setattr(realism, "CHUNK", 7)
    found = realism.largest_outputs(trunk, x)
    assert list(found) == list(trunk.layers)
    for layer, output in found.items():
        assert np.allclose(output, trunk.feature_map(torch.tensor(x), layer).amax(2).T, atol=1e-6)
    assert list(realism.largest_outputs(trunk, x, ["conv2"])) == ["conv2"]


def test_spread_of_what_stays_converges_and_shrinks():
    starts = np.random.default_rng(0).normal(size=(4, LENGTH))
    still = np.broadcast_to(starts[:, None, None], (4, 2, 3, LENGTH))
    assert np.allclose(signal_measures.spread(still, starts), np.ones((2, 3)))
    assert np.allclose(signal_measures.spread(still * np.array([0, 0.5])[:, None, None], starts), [[0] * 3, [0.5] * 3])
    assert np.allclose(signal_measures.spread(still + 5, starts), 1)  # moving all alike keeps them apart
    pairs = [(i, j) for i in range(4) for j in range(i)]
    rms = [[np.sqrt(np.mean((v[i] - v[j]) ** 2)) for i, j in pairs] for v in (starts**3, starts)]
    assert np.isclose(signal_measures.spread(starts[:, None] ** 3, starts)[0], np.mean(rms[0]) / np.mean(rms[1]))


def test_a_spread_without_different_starts_is_an_error():
    for same in (np.zeros((1, 30)), np.ones((2, 30))):
        with pytest.raises(ValueError, match="at least two different starting points"):
            signal_measures.spread(np.zeros((len(same), 5, 30)), same)
    with pytest.raises(ValueError, match="3 signals per unit do not match 2 starting points"):
        signal_measures.spread(np.zeros((3, 5, 30)), np.eye(2, 30))


@pytest.fixture(scope="module")
def cfg():
    return dataclasses.replace(
        load_settings("quick", "synthetic", "cpu"),
        model=ModelSettings(n_units=5, n_dense=8),
        training=TrainingSettings(seeds=(0, 1), epochs=2, learning_rate=1e-2, batch_size=8),
        maximization=MaximizationSettings(n_steps=20),
    )


@pytest.fixture(scope="module")
def run(cfg, tiny_windows, tmp_path_factory):
    """Everything up to the measures of two tiny networks."""
    folder = tmp_path_factory.mktemp("realism")
    methods = ("naive", "L2+TV+EAP+clip")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(folder))
        nets, random = supervised.networks(cfg, tiny_windows), supervised.untrained(cfg, tiny_windows)
        stats, of_random = (unit_statistics.statistics(cfg, tiny_windows, n) for n in (nets, random))
        signals = paper_methods.signals(cfg, nets, stats, methods)
        made = paper_methods.signals(cfg, random, of_random, paper_methods.CONTROL_METHODS, ("calibrated",))
        proposed = made.isel(preset=0, technique=0, drop=True)
        found = realism.realism(cfg, tiny_windows, nets, stats, signals)
        controls = realism.controls(cfg, tiny_windows, nets, stats, proposed)
    return {
        "folder": folder,
        "methods": methods,
        "nets": nets,
        "stats": stats,
        "signals": signals,
        "random_signals": proposed,
        "found": found,
        "controls": controls,
    }


MEASURED = ("reached", "matched_ssim", "scaled_distance", "distance_ratio", "realism_p", "spectral_distance", "failed")


def test_stored_measures_are_those_of_a_direct_call(run, cfg, tiny_windows):
    sizes = {"seed": 2, "preset": 2, "technique": 2, "layer": 3, "unit": 5}
    assert run["found"]["realism_p"].dims == tuple(sizes) and dict(run["found"]["realism_p"].sizes) == sizes
    net, own, start = run["nets"][1], run["stats"].sel(seed=1), starting_signal(cfg.maximization, LENGTH)
    direct = realism.measure(run["signals"].sel(seed=1), own, net.trunk, tiny_windows.train, cfg.similarity, start)
    for name in (*MEASURED, "displacement_g"):
        kept = run["found"][name].sel(seed=1)
        assert np.allclose(direct[name].transpose(*kept.dims), kept, equal_nan=True), name


def test_controls_are_judged_by_the_trained_unit(run, cfg, tiny_windows):
    found = run["controls"]
    assert list(found["control"].values) == [*similarity.CONTROLS, "held-out-strong"]
    net = run["nets"][0]
    x = run["random_signals"]["signal"].sel(seed=0, layer="conv2").values
    top = np.array([maps_of(net.trunk, "conv2", u, x[[u]]).max() for u in range(5)])
    th_eap = run["stats"]["th_eap"].sel(seed=0, layer="conv2").values
    of_random = found["reached"].sel(seed=0, layer="conv2", control="random-weights")
    assert np.allclose(of_random, top / th_eap, equal_nan=True, atol=1e-6)
    strong, alive = found.sel(control="held-out-strong"), ~found["dead"]
    outputs = np.stack(list(realism.largest_outputs(net.trunk, tiny_windows.test.segments).values()))
    there_is_one = outputs.max(-1) >= run["stats"]["th_eap"].sel(seed=0).values
    assert np.array_equal(strong["reached"].sel(seed=0) >= 1 - 1e-6, there_is_one) and there_is_one.any()
    own = (run[name].sel(seed=0, drop=True) for name in ("stats", "random_signals"))
    about = (next(own)["th_eap"], next(own)[["signal", "map"]], starting_signal(cfg.maximization, LENGTH))
    made = realism.control_signals.function(net, tiny_windows, *about)["signal"].sel(control="held-out-strong")
    of_test = {segment.tobytes() for segment in tiny_windows.test.segments}
    assert {segment.tobytes() for segment in made.values.reshape(-1, LENGTH).astype(np.float32)} <= of_test
    assert (found.sel(control="flat-zero")["spectral_distance"].where(alive, 1) == 1).all()
    assert np.allclose(found.sel(control="starting-sine")["displacement_g"], 0)


def test_measures_are_read_back_and_other_methods_are_another_question(run, cfg, tiny_windows, monkeypatch):
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(run["folder"]))
    monkeypatch.setattr(realism, "measure", lambda *_: pytest.fail("computed again"))
    asked = (cfg, tiny_windows, run["nets"], run["stats"])
    assert realism.realism(*asked, run["signals"]).equals(run["found"])
    assert realism.controls(*asked, run["random_signals"]).equals(run["controls"])
    with pytest.raises(pytest.fail.Exception):
        realism.realism(*asked, run["signals"].isel(technique=[0]))


def test_lines_at_zero_are_told_from_lines_at_a_level():
    ramp, dims = np.linspace(0, 1, 30), ("unit", "time")
    found = signal_measures.movement(xr.DataArray(np.stack([ramp, 0 * ramp, 0 * ramp + 1, 0.04 * ramp]), dims=dims))
    assert found["range"].values == pytest.approx([1, 0, 0, 0.04])
    assert found["peak"].values == pytest.approx([1, 0, 1, 0.04])
    assert found["flat"].values.tolist() == [False, True, True, True]
    assert found["at zero"].values.tolist() == [False, True, False, True]
