"""The made-up data set: its truth is true, only its motifs carry the class, and it never changes."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest

from harvis_utils.data import synthetic
from harvis_utils.data.archive import load_recordings
from harvis_utils.data.kinds import check_name
from harvis_utils.metrics import motifs
from harvis_utils.settings import SettingsError

# frozen: if a number here has to change, every result on these data has to be made again
SIGNALS_SHA256 = "3d5e4dbebbd298a7f5ceabeb2e0e6d7dbed3d2957ae73024b4d2103e76981c40"
SHAPES_SHA256 = "173381a146700d14a6fa02603d0f1e6f656f8cb54d684b2d81f7a8cca916e396"
RECEPTIVE_FIELD = {"conv1": 5, "conv2": 9, "conv3": 13}  # of stacked convolutions of kernel 5
LENGTH = {name: len(shape) for name, (_, shape) in synthetic.MOTIFS.items()}


@pytest.fixture(scope="module")
def recordings():
    return list(synthetic.read(None))


@pytest.fixture(scope="module")
def truth():
    return synthetic.motifs()


def sha256(values, resolution=1e-4):
    """Digest of values rounded to the resolution, the same on every machine."""
    steps = np.rint(np.asarray(values, dtype=np.float64) / resolution).astype("<i4")
    return hashlib.sha256(steps.tobytes()).hexdigest()


def same(one: synthetic.Body, other: synthetic.Body, *fields: str) -> None:
    for field in fields or ("background", "centres", "scales"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


# ------------------------------------------------------------------------------------------------ the data set


def test_the_generator_is_frozen(recordings, truth):
    assert sha256(np.stack([r.signal for r in recordings])) == SIGNALS_SHA256
    assert sha256(np.concatenate(truth.shapes)) == SHAPES_SHA256


def test_it_is_registered_as_made_up_and_complete(recordings):
    dataset = check_name("synthetic")
    assert dataset is synthetic.DATASET and dataset.made_up and dataset.archive is None
    assert all("made-up" in activity for activity in dataset.activities)
    subjects = [s for part in dataset.split.values() for s in part]
    assert len(set(subjects)) == len(subjects) == 10 and (len(dataset.activities), len(dataset.axes)) == (8, 6)
    found = sorted((r.subject, r.activity) for r in recordings)
    assert found == sorted(itertools.product(subjects, range(8))), "each once"
    for r in recordings:
        assert r.signal.shape == (synthetic.N_SAMPLES, 6) and r.signal.dtype == np.float32
        assert np.isfinite(r.signal).all() and np.abs(r.signal).max() < 4


# ------------------------------------------------------------------------------------------------- the motifs


def test_motifs_fit_receptive_fields_and_carry_neither_level_nor_energy(truth):
    assert len(truth.names) == len(truth.shapes) == len(truth.layers) == 9
    for shape, layer in zip(truth.shapes, truth.layers, strict=True):
        assert len(shape) == RECEPTIVE_FIELD[layer]
        assert abs(shape.sum()) < 1e-9 and (shape**2).sum() == pytest.approx(1.5, rel=0.02)
        assert 0.5 < np.abs(shape).max() < 1.2


def test_motifs_resemble_neither_one_another_nor_the_starting_sine(truth):
    """Also beyond full overlap: each is sought in the other one between two rests, as it stands in a recording."""
    phases = np.linspace(0, 2 * np.pi, 721)[:, None]
    sine = 0.3 * np.sin(phases + 2 * np.pi * np.arange(13) / 30)
    for i, shape in enumerate(truth.shapes):
        others = [np.pad(other, len(shape) - 1) for j, other in enumerate(truth.shapes) if j != i]
        assert max(motifs.best_match([shape], other[None])[0, 0] for other in others) < 0.7
        assert motifs.best_match([shape], sine[:, : len(shape)]).max() < 0.7


def test_every_activity_has_motifs_of_its_own(truth):
    shapes = [synthetic.activity_motifs(a) for a in range(len(synthetic.ACTIVITIES))]
    for a, own in enumerate(shapes):
        assert len(own) == 6 and len(set(own)) == 3 and {LENGTH[name] for name in own} == {5, 9, 13}
        assert all(len(set(own) & set(other)) <= 1 for other in shapes[:a])
    assert set(itertools.chain(*shapes)) == set(truth.names)
    counted = truth.counts(synthetic.ACTIVITIES)
    assert (counted["samples"] == [LENGTH[name] for name in counted.index]).all()
    for activity, own in zip(synthetic.ACTIVITIES, shapes, strict=True):
        assert set(counted.index[counted[activity] > 0]) == set(own)


# ---------------------------------------------------------------------------------------------- the ground truth


def test_recordings_are_background_plus_the_recorded_occurrences(recordings, truth):
    """Taking the recorded occurrences away, one by one, leaves the background and nothing else."""
    shape_of = dict(zip(truth.names, truth.shapes, strict=True))
    groups = dict(list(truth.occurrences.groupby(["subject", "activity"])))
    assert len(groups) == len(recordings)
    for r in recordings[::7]:
        rest = r.signal.astype(np.float64)
        for row in groups[r.subject, r.activity].itertuples():
            shape = shape_of[row.motif]
            rest[row.start : row.start + len(shape), row.axis] -= row.scale * shape
        places = truth.within(r.subject, r.activity, 0, len(rest))
        assert [p[0] for p in places] == groups[r.subject, r.activity]["axis"].tolist(), "all lie whole in it"
        assert truth.within(r.subject, r.activity, places[0][1] + 1, 100)[:1] != places[:1]
        session = list(synthetic.order(r.subject)).index(r.activity)
        np.testing.assert_allclose(rest, synthetic.body(r.subject, session).background, atol=1e-4)


def test_occurrences_do_not_overlap_on_an_axis(truth):
    for _, group in truth.occurrences.groupby(["subject", "activity", "axis"]):
        start, length = group["start"].to_numpy(), group["motif"].map(LENGTH).to_numpy()
        assert start[0] >= 0 and start[-1] + length[-1] <= synthetic.N_SAMPLES
        assert (start[1:] >= start[:-1] + length[:-1]).all()


def test_nearly_every_window_holds_a_whole_motif(truth):
    window = np.arange(0, synthetic.N_SAMPLES - 29, 15)[:, None]
    share = []
    for _, group in truth.occurrences.groupby(["subject", "activity"]):
        start = group["start"].to_numpy()
        end = start + group["motif"].map(LENGTH).to_numpy()
        share.append(((start >= window) & (end <= window + 30)).any(axis=1).mean())
    assert np.mean(share) > 0.95 and min(share) > 0.9


# --------------------------------------------------------------------------------- only the motifs carry the class


def test_nothing_but_motifs_depends_on_the_activity(monkeypatch):
    """With other activities in each session, everything but the motifs stays bit-equal."""
    first = [synthetic.body(10, session) for session in range(8)]
    other = synthetic.order(10)[::-1].copy()
    monkeypatch.setattr(synthetic, "SUBJECTS", (10,))
    monkeypatch.setattr(synthetic, "order", lambda _: other)
    made = {r.activity: r.signal for r in synthetic.read()}
    for session, own in enumerate(first):
        same(synthetic.body(10, session), own)
        np.testing.assert_array_equal(made[other[session]], synthetic.plant(own, other[session]))
    free = np.ones((synthetic.N_SAMPLES, 6), dtype=bool)
    for axis, centres in enumerate(own.centres.T):
        for centre in centres:
            free[centre - 6 : centre + 7, axis] = False
    assert (free.sum(axis=0) > 400).all()
    for activity in range(1, 8):  # samples without a motif are equal whatever the activity
        np.testing.assert_array_equal(synthetic.plant(own, activity)[free], synthetic.plant(own, 0)[free])


def test_backgrounds_are_one_g_and_calm():
    """Without its noise a background is 1 G at each sensor and never jumps, so that it holds no edges to learn."""
    for subject in synthetic.SUBJECTS:
        background = synthetic.body(subject, 0).background
        smooth = np.lib.stride_tricks.sliding_window_view(background, 15, axis=0).mean(axis=2)
        assert np.abs(np.diff(smooth, axis=0)).max() < 0.08
        for sensor in (slice(0, 3), slice(3, 6)):
            assert np.linalg.norm(smooth[:, sensor], axis=1).mean() == pytest.approx(1.0, abs=0.05)


def test_level_spread_and_tempo_do_not_tell_the_activities_but_shapes_do(recordings, truth):
    """One classifier, on other people: near chance with level, spread or tempo, good with the motifs' matches."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import f1_score

    gap = truth.occurrences.groupby(["subject", "activity", "axis"])["start"].agg(lambda s: s.diff().median())
    tables = {"level": [], "spread": [], "tempo": [], "shape": []}
    activity, subject = [], []
    for r in recordings:
        window = np.lib.stride_tricks.sliding_window_view(r.signal, 30, axis=0)[::120]  # (window, axis, time)
        tables["level"].append(window.mean(axis=2))
        tables["spread"].append(window.std(axis=2))
        tables["tempo"].append(np.tile(gap.loc[r.subject, r.activity].to_numpy(), (len(window), 1)))
        match = motifs.best_match(truth.shapes, window.reshape(-1, 30))
        tables["shape"].append(match.reshape(len(truth.shapes), len(window), 6).max(axis=2).T)
        activity += [r.activity] * len(window)
        subject += [r.subject] * len(window)
    activity, train = np.array(activity), np.isin(subject, synthetic.SPLIT["train"])
    score = {}
    for name, table in tables.items():
        features = np.vstack(table)
        forest = RandomForestClassifier(40, min_samples_leaf=3, random_state=0).fit(features[train], activity[train])
        score[name] = f1_score(activity[~train], forest.predict(features[~train]), average="macro")
    chance = 1 / len(synthetic.ACTIVITIES)
    assert max(score["level"], score["spread"], score["tempo"]) < 2 * chance, score
    assert score["shape"] > 4 * chance, score


# ------------------------------------------------------------------------------------------------- harder versions


def test_no_variant_can_pass_for_the_plain_data_or_another_variant():
    plain, loaded = synthetic.variant(), load_recordings("synthetic")
    assert (plain.name, plain.digest, plain.dataset) == (loaded.name, loaded.digest, synthetic.DATASET)
    changes = [{"noise_g": 1e-12}, {"noise_g": 0.1}, {"prevalence": 0.5}, {"noise_g": 0.1, "prevalence": 0.5}]
    made = [plain, *(synthetic.variant(**c) for c in changes)]
    assert made[-1].name == "synthetic-noise+0.1G-prevalence0.5"
    for field in ("name", "digest"):
        assert len({getattr(m, field) for m in made}) == len(made)
    assert len({m.dataset.title for m in made}) == len(made)
    for m in made[1:]:
        assert m.caveat == "made-up data" and m.dataset.name == m.name
        with pytest.raises(SettingsError, match="unknown data set"):
            check_name(m.name)
    for r, other in zip(made[1].items, plain.items, strict=True):  # noise below the resolution changes no reading
        np.testing.assert_array_equal(r.signal, other.signal)


def test_thinning_leaves_everything_but_the_dropped_events_bit_equal():
    own, activity = synthetic.body(10, 7), 3
    for prevalence in (0.5, 0.1):
        thinned = synthetic.body(10, 7, prevalence=prevalence)
        same(thinned, own, "background", "centres")
        dropped = (own.scales > 0) & (thinned.scales == 0)
        np.testing.assert_array_equal(thinned.scales[~dropped], own.scales[~dropped])
        assert dropped.sum() / (own.scales > 0).sum() == pytest.approx(1 - prevalence, abs=0.1)
        # in the recording: equal outside the dropped events, and inside them without their shape
        full, rest = synthetic.plant(own, activity), synthetic.plant(thinned, activity)
        touched = np.zeros(full.shape, dtype=bool)
        for axis, name in enumerate(synthetic.activity_motifs(activity)):
            there = dropped[:, axis]
            for centre, scale in zip(own.centres[there, axis], own.scales[there, axis], strict=True):
                at = slice(centre - LENGTH[name] // 2, centre - LENGTH[name] // 2 + LENGTH[name])
                touched[at, axis] = True
                shape = scale * np.array(synthetic.MOTIFS[name][1])
                np.testing.assert_allclose(full[at, axis] - rest[at, axis], shape, atol=2e-4)
        np.testing.assert_array_equal(full[~touched], rest[~touched])


def test_what_one_prevalence_drops_every_lower_one_drops_too():
    kept = [synthetic.body(4, 2, prevalence=p).scales > 0 for p in (0.1, 0.5, 0.9, 1.0)]
    for fewer, more in itertools.pairwise(kept):
        assert (fewer <= more).all() and fewer.sum() < more.sum()


def test_noise_is_added_to_the_background_alone_and_grows_with_its_level():
    own, one, two = (synthetic.body(2, 1, noise_g=g) for g in (0.0, 0.1, 0.2))
    for other in (one, two):
        same(other, own, "scales", "centres")
    added = one.background - own.background
    assert added.std() == pytest.approx(0.1, rel=0.03) and abs(added.mean()) < 0.005
    np.testing.assert_allclose(two.background - own.background, 2 * added, atol=1e-12)
    elsewhere = synthetic.body(2, 3, noise_g=0.1).background - synthetic.body(2, 3).background
    assert abs(np.corrcoef(added.ravel(), elsewhere.ravel())[0, 1]) < 0.05


def test_a_variants_truth_is_its_own(truth):
    thin = synthetic.variant(prevalence=0.25).dataset.motifs()
    assert thin.names == truth.names and thin.layers == truth.layers
    keys = ["subject", "activity", "axis", "start", "motif", "scale"]
    assert len(thin.occurrences.merge(truth.occurrences, on=keys)) == len(thin.occurrences)
    assert len(thin.occurrences) / len(truth.occurrences) == pytest.approx(0.25, abs=0.02)
    assert synthetic.variant(noise_g=0.1).dataset.motifs().occurrences.equals(truth.occurrences)
    assert synthetic.motifs() is truth


@pytest.mark.parametrize(
    "changes", [{"noise_g": -0.1}, {"noise_g": np.nan}, {"prevalence": 0.0}, {"prevalence": 1.1}, {"noise_g": np.inf}]
)
def test_impossible_changes_are_named(changes):
    with pytest.raises(ValueError, match="should be 0 or more, and prevalence"):
        synthetic.variant(**changes)
