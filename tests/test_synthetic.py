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


# ------------------------------------------------------------------------------------------------ the data set


def test_the_generator_is_frozen(recordings, truth):
    assert sha256(np.stack([r.signal for r in recordings])) == SIGNALS_SHA256
    assert sha256(np.concatenate(truth.shapes)) == SHAPES_SHA256


def test_two_runs_are_bit_equal(recordings):
    for again, first in zip(synthetic.read(), recordings, strict=True):
        assert (again.subject, again.activity) == (first.subject, first.activity)
        np.testing.assert_array_equal(again.signal, first.signal)


def test_it_is_registered_as_made_up_and_complete(recordings):
    dataset = check_name("synthetic")
    assert dataset is synthetic.DATASET and dataset.made_up and dataset.archive is None
    assert all("made-up" in activity for activity in dataset.activities)
    assert len(dataset.activities) >= 8 and len(dataset.axes) == 6
    parts = [set(dataset.split[part]) for part in ("train", "val", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) >= 8
    assert {(r.subject, r.activity) for r in recordings} == {
        (s, a) for s in set.union(*parts) for a in range(len(dataset.activities))
    }
    assert len(recordings) == len({(r.subject, r.activity) for r in recordings})
    for r in recordings:
        assert r.signal.shape == (synthetic.N_SAMPLES, 6) and r.signal.dtype == np.float32
        assert np.isfinite(r.signal).all() and np.abs(r.signal).max() < 4


# ------------------------------------------------------------------------------------------------- the motifs


def test_motifs_fit_receptive_fields_and_carry_neither_level_nor_energy(truth):
    assert len(truth.names) == len(truth.shapes) == len(truth.layers) == 9
    for shape, layer in zip(truth.shapes, truth.layers, strict=True):
        assert len(shape) == RECEPTIVE_FIELD[layer]
        assert abs(shape.sum()) < 1e-9
        assert (shape**2).sum() == pytest.approx(1.5, rel=0.02)
        assert 0.5 < np.abs(shape).max() < 1.2


def test_motifs_are_distinct_wherever_they_meet(truth):
    """Also beyond full overlap: each is sought in the other one between two rests, as it stands in a recording."""
    for i, shape in enumerate(truth.shapes):
        others = [np.pad(other, len(shape) - 1) for j, other in enumerate(truth.shapes) if j != i]
        assert max(motifs.ncc(shape, other) for other in others) < 0.7


def test_no_motif_resembles_the_starting_sine(truth):
    phases = np.linspace(0, 2 * np.pi, 721)[:, None]
    sine = 0.3 * np.sin(phases + 2 * np.pi * np.arange(13) / 30)
    for shape in truth.shapes:
        assert motifs.best_match([shape], sine[:, : len(shape)]).max() < 0.7


def test_every_activity_has_motifs_of_its_own(truth):
    pairs = [set(enumerate(synthetic.activity_motifs(a))) for a in range(len(synthetic.ACTIVITIES))]
    shapes = [set(synthetic.activity_motifs(a)) for a in range(len(synthetic.ACTIVITIES))]
    for a, own in enumerate(pairs):
        assert len(own) == 6 and len(shapes[a]) == 3
        assert {len(synthetic.MOTIFS[name][1]) for name in shapes[a]} == {5, 9, 13}
        for b in range(a):
            assert len(shapes[a] & shapes[b]) <= 1
    assert set.union(*shapes) == set(truth.names)


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
        session = list(synthetic.order(r.subject)).index(r.activity)
        np.testing.assert_allclose(rest, synthetic.body(r.subject, session).background, atol=1e-4)


def test_occurrences_are_found_where_they_are_said_to_be(recordings, truth):
    shape_of = dict(zip(truth.names, truth.shapes, strict=True))
    signal_of = {(r.subject, r.activity): r.signal for r in recordings}
    match = [
        motifs.ncc(shape, signal_of[row.subject, row.activity][row.start : row.start + len(shape), row.axis])
        for row in truth.occurrences.iloc[::97].itertuples()
        for shape in [shape_of[row.motif]]
    ]
    assert len(match) > 300
    assert np.median(match) > 0.97 and np.quantile(match, 0.01) > 0.85


def test_occurrences_do_not_overlap_on_an_axis(truth):
    length_of = {name: len(shape) for name, shape in zip(truth.names, truth.shapes, strict=True)}
    for _, group in truth.occurrences.groupby(["subject", "activity", "axis"]):
        start = group["start"].to_numpy()
        length = group["motif"].map(length_of).to_numpy()
        assert start[0] >= 0 and start[-1] + length[-1] <= synthetic.N_SAMPLES
        assert (start[1:] >= start[:-1] + length[:-1]).all()


def test_nearly_every_window_holds_a_whole_motif(truth):
    length_of = {name: len(shape) for name, shape in zip(truth.names, truth.shapes, strict=True)}
    window = np.arange(0, synthetic.N_SAMPLES - 29, 15)[:, None]
    share = []
    for _, group in truth.occurrences.groupby(["subject", "activity"]):
        start = group["start"].to_numpy()
        end = start + group["motif"].map(length_of).to_numpy()
        share.append(((start >= window) & (end <= window + 30)).any(axis=1).mean())
    assert np.mean(share) > 0.95 and min(share) > 0.9


# --------------------------------------------------------------------------------- only the motifs carry the class


def test_nothing_but_motifs_depends_on_the_activity(monkeypatch):
    """With other activities in each session, everything but the motifs stays bit-equal."""
    for subject in (1, 10):
        first = [synthetic.body(subject, session) for session in range(8)]
        was = synthetic.order(subject)
        monkeypatch.setattr(synthetic, "order", lambda _, was=was: was[::-1].copy())
        made = {r.activity: r.signal for r in synthetic.read() if r.subject == subject}
        for session, own in enumerate(first):
            activity = was[::-1][session]
            again = synthetic.body(subject, session)
            np.testing.assert_array_equal(again.background, own.background)
            np.testing.assert_array_equal(again.centres, own.centres)
            np.testing.assert_array_equal(again.scales, own.scales)
            np.testing.assert_array_equal(made[activity], synthetic.plant(own, activity))
        monkeypatch.undo()


def test_backgrounds_are_one_g_and_calm():
    """Without its noise a background is 1 G at each sensor and never jumps, so that it holds no edges to learn."""
    for subject in synthetic.SUBJECTS:
        background = synthetic.body(subject, 0).background
        smooth = np.lib.stride_tricks.sliding_window_view(background, 15, axis=0).mean(axis=2)
        assert np.abs(np.diff(smooth, axis=0)).max() < 0.08
        for sensor in (slice(0, 3), slice(3, 6)):
            assert np.linalg.norm(smooth[:, sensor], axis=1).mean() == pytest.approx(1.0, abs=0.05)


def test_samples_without_motif_are_equal_whatever_the_activity():
    own = synthetic.body(3, 0)
    made = [synthetic.plant(own, activity) for activity in range(8)]
    for axis in range(6):
        free = np.ones(synthetic.N_SAMPLES, dtype=bool)
        for centre in own.centres[:, axis]:
            free[centre - 6 : centre + 7] = False
        assert free.sum() > 400
        for other in made[1:]:
            np.testing.assert_array_equal(other[free, axis], made[0][free, axis])


def test_level_spread_and_tempo_do_not_tell_the_activities_but_shapes_do(recordings, truth):
    """One classifier, on other people: near chance with level, spread or tempo, good with the motifs' matches."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import f1_score

    gap = truth.occurrences.groupby(["subject", "activity", "axis"])["start"].agg(lambda s: s.diff().median())
    tables = {"level": [], "spread": [], "tempo": [], "shape": []}
    activity, subject = [], []
    for r in recordings:
        window = np.lib.stride_tricks.sliding_window_view(r.signal, 30, axis=0)[::60]  # (window, axis, time)
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
        forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0).fit(features[train], activity[train])
        score[name] = f1_score(activity[~train], forest.predict(features[~train]), average="macro")
    chance = 1 / len(synthetic.ACTIVITIES)
    assert max(score["level"], score["spread"], score["tempo"]) < 2 * chance, score
    assert score["shape"] > 4 * chance, score


# ------------------------------------------------------------------------------------------------- harder versions


def test_no_change_is_the_plain_data_set_itself():
    plain, loaded = synthetic.variant(), load_recordings("synthetic")
    assert (plain.name, plain.digest, plain.dataset) == (loaded.name, loaded.digest, synthetic.DATASET)
    assert sha256(np.stack([r.signal for r in plain.items])) == SIGNALS_SHA256


def test_no_variant_can_pass_for_the_plain_data_or_another_variant():
    changes = [{}, {"noise_g": 0.1}, {"noise_g": 0.2}, {"prevalence": 0.5}, {"noise_g": 0.1, "prevalence": 0.5}]
    made = [synthetic.variant(**c) for c in changes]
    again = synthetic.variant(**changes[-1])
    assert again.digest == made[-1].digest and again.name == made[-1].name == "synthetic-noise+0.1G-prevalence0.5"
    for field in ("name", "digest"):
        assert len({getattr(m, field) for m in made}) == len(made)
    assert len({m.dataset.title for m in made}) == len(made)
    for m in made:
        assert m.caveat == "made-up data" and m.dataset.name == m.name
    for m in made[1:]:
        with pytest.raises(SettingsError, match="unknown data set"):
            check_name(m.name)


def test_equal_recordings_under_another_name_have_another_digest():
    """Noise below the resolution changes no reading, and yet it is not the plain data set."""
    quiet = synthetic.variant(noise_g=1e-12)
    for r, plain in zip(quiet.items, synthetic.variant().items, strict=True):
        np.testing.assert_array_equal(r.signal, plain.signal)
    assert quiet.digest != synthetic.variant().digest


def test_thinning_leaves_everything_but_the_dropped_events_bit_equal():
    for subject, session in ((1, 0), (10, 7)):
        own = synthetic.body(subject, session)
        for prevalence in (0.5, 0.1):
            thinned = synthetic.changed_body(subject, session, prevalence=prevalence)
            np.testing.assert_array_equal(thinned.background, own.background)
            np.testing.assert_array_equal(thinned.centres, own.centres)
            dropped = (own.scales > 0) & (thinned.scales == 0)
            np.testing.assert_array_equal(thinned.scales[~dropped], own.scales[~dropped])
            assert dropped.sum() / (own.scales > 0).sum() == pytest.approx(1 - prevalence, abs=0.1)
            # in the recording: equal outside the dropped events, and inside them without their shape
            activity, length = 3, {name: len(shape) for name, (_, shape) in synthetic.MOTIFS.items()}
            full, rest = synthetic.plant(own, activity), synthetic.plant(thinned, activity)
            touched = np.zeros(full.shape, dtype=bool)
            for axis, name in enumerate(synthetic.activity_motifs(activity)):
                there = dropped[:, axis]
                for centre, scale in zip(own.centres[there, axis], own.scales[there, axis], strict=True):
                    at = slice(centre - length[name] // 2, centre - length[name] // 2 + length[name])
                    touched[at, axis] = True
                    shape = scale * np.array(synthetic.MOTIFS[name][1])
                    np.testing.assert_allclose(full[at, axis] - rest[at, axis], shape, atol=2e-4)
            np.testing.assert_array_equal(full[~touched], rest[~touched])


def test_what_one_prevalence_drops_every_lower_one_drops_too():
    kept = [synthetic.changed_body(4, 2, prevalence=p).scales > 0 for p in (0.1, 0.5, 0.9, 1.0)]
    for fewer, more in itertools.pairwise(kept):
        assert (fewer <= more).all() and fewer.sum() < more.sum()


def test_noise_is_added_to_the_background_alone_and_grows_with_its_level():
    own, one, two = (synthetic.changed_body(2, 1, noise_g=g) for g in (0.0, 0.1, 0.2))
    np.testing.assert_array_equal(own.background, synthetic.body(2, 1).background)
    for other in (one, two):
        np.testing.assert_array_equal(other.scales, own.scales)
        np.testing.assert_array_equal(other.centres, own.centres)
    added = one.background - own.background
    assert added.std() == pytest.approx(0.1, rel=0.03) and abs(added.mean()) < 0.005
    np.testing.assert_allclose(two.background - own.background, 2 * added, atol=1e-12)
    elsewhere = synthetic.changed_body(2, 3, noise_g=0.1).background - synthetic.body(2, 3).background
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
