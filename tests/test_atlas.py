"""The atlas: every fast routine against a readable naive twin, and what each measure says of known structure."""

import html.parser
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from harvis_utils.figures import page, style
from harvis_utils.metrics import clustering, embedding, similarity
from harvis_utils.settings import load_settings

TIME = np.arange(30) / 30
FEW = settings(max_examples=25)


def random_signals():
    """Arrays (unit, time) of coarse values, so that constants and equal rows happen but nearly equal ones do not."""
    shapes = st.tuples(st.integers(6, 12), st.integers(8, 14))
    return shapes.flatmap(lambda s: arrays(np.float64, s, elements=st.integers(-8, 8).map(lambda v: v / 4)))


def sines(n, frequency=1.0, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([np.sin(2 * np.pi * frequency * TIME + p) for p in generator.uniform(0, 2 * np.pi, n)])


def three_clusters(per=12, noise=0.02, seed=0):
    """Three shapes with a little noise: (signals, the shape of each)."""
    generator = np.random.default_rng(seed)
    shapes = np.stack([np.tanh(8 * (TIME - 0.5)), -np.tanh(8 * (TIME - 0.5)), np.exp(-((TIME - 0.5) ** 2) / 0.01)])
    kind = np.repeat(np.arange(3), per)
    return shapes[kind] + noise * generator.standard_normal((3 * per, 30)), kind


def naive_correlation(a, b, max_shift):
    best = -1.0
    for shift in range(-max_shift, max_shift + 1):
        one, two = (a[shift:], b[: len(b) - shift]) if shift >= 0 else (a[: len(a) + shift], b[-shift:])
        flat = one.max() == one.min() or two.max() == two.min()
        best = max(best, 0.0 if flat else np.corrcoef(one, two)[0, 1])
    return best


def naive_complexity(signal):
    n, powers = len(signal), []
    for k in range(1, n // 2 + 1):
        real = sum(x * np.cos(2 * np.pi * k * t / n) for t, x in enumerate(signal))
        imaginary = sum(x * np.sin(2 * np.pi * k * t / n) for t, x in enumerate(signal))
        powers.append(real**2 + imaginary**2)
    shares = [p / sum(powers) for p in powers]
    return np.exp(-sum(p * np.log(p) for p in shares if p > 0))


def naive_spread(signals):
    n = len(signals)
    distance = [[np.sqrt(((signals[i] - signals[j]) ** 2).sum()) for j in range(n)] for i in range(n)]
    nearest = [min(distance[i][j] for j in range(n) if j != i) for i in range(n)]
    every = [distance[i][j] for i in range(n) for j in range(i)]
    return np.mean(nearest) / np.mean(every)


def naive_common(a, b, k):
    shares = []
    for i in range(len(a)):
        near = []
        for points in (a, b):
            order = sorted((np.linalg.norm(points[j] - points[i]), j) for j in range(len(points)) if j != i)
            near.append({j for _, j in order[:k]})
        shares.append(len(near[0] & near[1]) / k)
    return np.mean(shares)


def naive_hopkins(points, seed, repeats):
    generator, values = np.random.default_rng(seed), []
    for _ in range(repeats):
        places = generator.uniform(points.min(0), points.max(0), points.shape)
        outside = sum(min(np.linalg.norm(q - p) for p in points) for q in places)
        between = sum(
            min(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i) for i in range(len(points))
        )
        values.append(outside / (outside + between) if outside + between else 0.5)
    return np.mean(values)


@FEW
@given(random_signals(), st.integers(0, 4))
def test_best_correlation_agrees_with_twin(signals, max_shift):
    got, keep = clustering.best_correlation(signals, max_shift), np.ptp(signals, axis=1) > 0
    assert np.isnan(got[~keep]).all() and np.isnan(got[:, ~keep]).all()
    for i in np.flatnonzero(keep):
        for j in np.flatnonzero(keep):
            assert got[i, j] == pytest.approx(naive_correlation(signals[i], signals[j], max_shift), abs=1e-9)


@FEW
@given(random_signals())
def test_effective_frequencies_agree_with_twin(signals):
    got = similarity.effective_frequencies(signals)
    for value, signal in zip(got, signals, strict=True):
        if np.ptp(signal) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(naive_complexity(signal), rel=1e-6)


@FEW
@given(random_signals())
def test_spread_effective_rank_and_groups_agree_with_twins(signals):
    used = signals[np.ptp(signals, axis=1) > 0]
    if len(used) < 2:
        with pytest.raises(clustering.AtlasError, match="finite and not constant"):
            clustering.spread(signals)
        return
    duplicates = clustering.near_duplicates(signals, 0.9, 2)
    linked = np.array(
        [[i != j and naive_correlation(a, b, 2) > 0.9 for j, b in enumerate(used)] for i, a in enumerate(used)]
    )
    together = np.linalg.matrix_power(linked + np.eye(len(used), dtype=int), len(used)) > 0
    assert (
        duplicates["n_groups"]
        == len(np.unique(together, axis=0))
        == len(set(duplicates["groups"][duplicates["groups"] >= 0]))
    )
    assert duplicates["near_duplicates"] == pytest.approx(linked.any(1).mean())
    assert ((duplicates["groups"] < 0) == (np.ptp(signals, axis=1) == 0)).all()
    if np.ptp(used, axis=0).max() == 0:
        assert clustering.spread(signals) == clustering.effective_rank(signals) == 0
        return
    assert clustering.spread(signals) == pytest.approx(naive_spread(used))
    centred = used - used.mean(0)
    values = np.sqrt(np.linalg.eigvalsh(centred @ centred.T).clip(0))
    shares = values[values > 1e-6 * values.max()] / values[values > 1e-6 * values.max()].sum()
    assert clustering.effective_rank(signals) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


@FEW
@given(arrays(np.float64, (9, 2), elements=st.floats(-5, 5), unique=True), st.integers(1, 8), st.integers(0, 99))
def test_common_neighbours_agree_with_twin(points, k, seed):
    other = points + np.random.default_rng(seed).normal(size=points.shape)
    assert embedding.common_neighbours(points, other, k) == pytest.approx(naive_common(points, other, k))
    assert embedding.common_neighbours(points, points, k) == 1


@FEW
@given(random_signals(), st.integers(0, 9))
def test_hopkins_agrees_with_twin(points, seed):
    assert clustering.hopkins(points, seed, repeats=2) == pytest.approx(naive_hopkins(points, seed, 2))


@FEW
@given(st.lists(st.integers(0, 3), min_size=12, max_size=20), st.integers(0, 9))
def test_contingency_and_p_value_agree_with_counting(activities, seed):
    activities = np.array(activities)
    points = np.random.default_rng(seed).normal(size=(len(activities), 2))
    got = clustering.clusters_and_activities(points, activities, 3, seed, n_permutations=40)

    def counts(order):
        labels = range(got["labels"].max() + 1)
        members = [[activities[order[u]] for u in range(len(order)) if got["labels"][u] == c] for c in labels]
        return [[of.count(a) for a in range(4)] for of in members]

    def pure(order):
        return sum(map(max, counts(order)))

    def all_different(order):
        majority = [of.index(max(of)) for of in counts(order)]
        return len(set(majority)) == len(majority)

    generator, n = np.random.default_rng(seed), len(activities)
    orders = [generator.permutation(n) for _ in range(40)]
    chance = [pure(order) for order in orders]
    assert got["clusters_all_different_chance"] == pytest.approx(np.mean([all_different(order) for order in orders]))
    assert got["contingency"].sum() == n
    assert got["purity"] == pytest.approx(pure(range(n)) / n)
    assert got["purity_chance"] == pytest.approx(np.mean(chance) / n)
    assert got["clusters_p"] == pytest.approx((1 + sum(c >= pure(range(n)) for c in chance)) / 41)


@FEW
@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_superiority_agrees_with_counting(shallow, deep):
    wins = [1.0 if d > s else 0.5 if d == s else 0.0 for d in deep for s in shallow]
    value, low, high = clustering.superiority(np.array([*shallow, np.nan]), np.array(deep), n=50)
    assert value == pytest.approx(np.mean(wins))
    assert 0 <= low <= high <= 1
    assert np.isnan(clustering.superiority([np.nan], deep)).all()


def test_shifted_and_scaled_copies_are_duplicates_but_mirrored_ones_are_not():
    edge = np.tanh(12 * (TIME - 0.5))
    signals = np.stack([edge, 3 * np.roll(edge, 0) + 1, np.tanh(12 * (TIME - 0.6)), -edge, sines(1, 4)[0]])
    found = clustering.near_duplicates(signals)
    assert found["near_duplicates"] == pytest.approx(3 / 5)
    assert found["n_groups"] == 3
    assert found["groups"].tolist()[:3] == [0, 0, 0]


def test_as_many_units_of_each_layer_are_compared():
    """Two shapes in many copies vary less than as few units that all differ, however many there are."""
    edge, bump = np.tanh(12 * (TIME - 0.5)), np.cos(np.pi * (TIME - 0.5)) ** 2
    noise = 0.02 * np.random.default_rng(0).normal(size=(60, 30))
    alike = np.concatenate([np.repeat([edge, bump], 30, axis=0) + noise, np.ones((5, 30))])
    differing = np.random.default_rng(1).normal(size=(10, 30))
    few, many = clustering.variety(differing, 10), clustering.variety(alike, 10)
    assert few["variety"] == pytest.approx(clustering.effective_rank(differing)) and few["distinct"] == 1
    assert many["variety"] < few["variety"] - 2 and many["distinct"] <= 0.4
    with pytest.raises(clustering.AtlasError, match="at least 11"):
        clustering.variety(differing, 11)


def test_copies_stand_out_from_noise_as_smooth_as_they_are():
    generator = np.random.default_rng(2)
    rough = generator.normal(size=(10, 30))
    found = clustering.near_duplicates(np.vstack([rough, rough + 0.02 * generator.normal(size=rough.shape)]))
    assert found["near_duplicates"] == 1 and found["n_groups"] == 10
    assert max(found["near_duplicates_null"]) < 0.5
    smooth = np.stack([sines(1, f, seed)[0] for f in (1, 1.2) for seed in range(10)])
    assert (
        np.mean(clustering.near_duplicates(smooth)["near_duplicates_null"]) > 0.9
    )  # a high share alone proves nothing


def test_clusters_stand_out_from_noise_with_the_same_covariance():
    signals, kind = three_clusters()
    tendency = clustering.cluster_tendency(signals, n_null=5)
    assert tendency["best_k"] == 3
    assert tendency["silhouette"] > 0.8 > max(tendency["silhouette_null"])
    assert tendency["hopkins"] > max(tendency["hopkins_null"])
    assert tendency["spread"] < min(tendency["spread_null"])
    matched = clustering.clusters_and_activities(signals, kind, n_permutations=200)
    assert (
        matched["clusters_all_different"] and matched["purity"] == 1 and matched["clusters_p"] == pytest.approx(1 / 201)
    )
    shuffled = np.random.default_rng(1).permutation(kind)
    assert clustering.clusters_and_activities(signals, shuffled, n_permutations=200)["clusters_p"] > 0.05


def test_bunching_counts_as_more_in_the_same_direction_for_every_measure():
    own = {"hopkins_moving": 0.9, "spread_moving": 0.1, "silhouette": 0.2}
    null = {"hopkins_moving_null": 0.8, "spread_moving_null": 0.4, "silhouette_null": 0.5}
    column = pd.Series(own | null)
    numbers = pd.concat({("conv1", 0): column, ("conv1", 1): column, ("conv2", 0): column + 1}, axis=1)
    beyond = embedding.beyond_noise(numbers, "conv1")
    assert beyond["beyond noise"].to_dict() == pytest.approx(
        {"Hopkins statistic": 0.1, "spread": 0.3, "silhouette": -0.3}
    )
    assert (beyond["beyond noise low"] > 0).tolist() == [True, True, False]


def test_deeper_is_the_difference_within_each_network_over_moving_units_alone():
    columns = pd.MultiIndex.from_product([["conv1", "conv3"], [0, 1]], names=["layer", "seed"])
    numbers = pd.DataFrame([[1, 2, 4, 7], [0.5, 0.5, 0.4, 0.6]], ["variety", "distinct"], columns)
    shares = np.array([[[0.1, 0.3], [0.8, np.nan]], [[0.2, np.nan], [0.5, 0.7]]])
    unexplained = xr.DataArray(shares, {"seed": [0, 1], "layer": ["conv1", "conv3"]}, ("seed", "layer", "unit"))
    found = embedding.deeper(numbers, unexplained, ["conv1", "conv3"])
    assert found["conv3"].tolist() == pytest.approx([5.5, 0.5, 0.7])
    assert found["deeper"].tolist() == pytest.approx([4, 0, 0.5])
    assert found.loc["variety", ["deeper low", "deeper high"]].tolist() == pytest.approx([3, 5])
    assert found.loc["distinct", "deeper low"] < 0 < found.loc["distinct", "deeper high"]


def test_gaussian_null_has_the_covariance_of_the_points():
    points = np.random.default_rng(0).normal(size=(40, 3)) @ np.array([[1, 0.8, 0], [0, 0.5, 0], [0, 0, 2]])
    draws = np.stack([np.cov(clustering.gaussian_null(points, seed).T, bias=False) for seed in range(300)])
    assert draws.mean(0) == pytest.approx(np.cov(points.T), abs=0.15)


def test_the_map_keeps_clusters_together_and_leaves_units_without_shape_out():
    signals, kind = three_clusters()
    signals[4], signals[20, 3] = 0.7, np.nan
    positions = embedding.embed(signals, perplexity=8)
    lost = np.isnan(positions).all(1)
    assert np.flatnonzero(lost).tolist() == [4, 20]
    assert np.array_equal(positions, embedding.embed(signals, perplexity=8), equal_nan=True)
    assert embedding.effective_perplexity(15, 64) == 15 and embedding.effective_perplexity(15, 16) == 5
    near = embedding.neighbours(positions[~lost], 5)
    assert (kind[~lost][near] == kind[~lost][:, None]).mean() > 0.95


def test_sensitivity_compares_other_maps_with_the_shown_one():
    signals, _ = three_clusters(per=6)
    reference = embedding.embed(signals, 5)
    found = embedding.sensitivity(signals, (3, 5, 5), (0, 1), reference)
    assert dict(found.sizes) == {"perplexity": 2, "seed": 2, "unit": 18, "coordinate": 2}
    other = found["positions"].sel(perplexity=5, seed=0).values
    assert np.array_equal(other, embedding.embed(signals, 5, 0, "random"))
    assert found["kept"].sel(perplexity=5, seed=0) == embedding.common_neighbours(reference, other, 4)
    assert found.chance == 4 / 17 and (found["kept"] > found.chance).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: embedding.embed(np.ones((8, 30))), "0 of 8 units"),
        (lambda: embedding.embed(np.repeat(sines(1), 8, 0)), "all 8 signals are the same"),
        (lambda: embedding.embed(np.zeros(30)), r"should be \(unit, time\)"),
        (lambda: embedding.neighbours(np.zeros((3, 2)), 3), "k = 3 neighbours"),
        (lambda: clustering.clusters_and_activities(sines(8), np.zeros(7, int)), "do not belong"),
        (lambda: clustering.clusters_and_activities(sines(8), np.full(8, -1)), "only 0 units"),
        (lambda: clustering.best_correlation(sines(3), 29), "max_shift = 29"),
    ],
)
def test_input_that_cannot_be_measured_says_so(call, message):
    with pytest.raises(clustering.AtlasError, match=message):
        call()


def a_layer(name="conv1", n=7, **more):
    signals = sines(n)
    values = {
        "positions": np.random.default_rng(0).normal(size=(n, 2)),
        "signals": signals,
        "activities": np.arange(n) % 3 - 1,
        "windows": signals / 2,
        "starts": np.arange(n),
        "offsets": np.arange(n)[::-1],
        "distances": np.full(n, 0.01),
    }
    return embedding.AtlasLayer(name=name, **(values | more))


NAMES = ("walking", "running </script><b>")
COLOURS = {NAMES[0]: "#112233", NAMES[1]: "#445566"}


class Page(html.parser.HTMLParser):
    """Collects what a page loads and its embedded content."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.stack, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "data")]
        self.stack.append(tag)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            self.scripts.append(data)


def test_the_page_holds_everything_and_loads_nothing():
    lost = a_layer(
        "conv3", positions=np.vstack([np.full((1, 2), np.nan), np.random.default_rng(1).normal(size=(6, 2))])
    )
    text = page.atlas([a_layer(), lost], NAMES, COLOURS, title="A & B", caveat="made-up data")
    seen = Page(text)
    assert seen.addresses == []
    assert not re.search(r"@import|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "A &amp; B" in text and "made-up data" in text and "{{" not in text
    content = json.loads(seen.scripts[0])
    assert content["names"] == list(NAMES) and content["colours"] == list(COLOURS.values())
    assert [len(layer["units"]) for layer in content["layers"]] == [7, 6]
    assert [layer["left_out"] for layer in content["layers"]] == [[], [0]]
    third = content["layers"][0]["units"][2]
    assert (third["unit"], third["activity"], third["start"], third["offset"]) == (2, 1, 2, 4)
    assert third["signal"] == pytest.approx(sines(7)[2], abs=1e-4)
    assert len(text) < 500_000


def test_the_page_holds_all_axes_of_units_that_mix_them():
    both = np.stack([sines(7), -sines(7)], axis=1)
    lost = both.copy()
    lost[2, 1, 5] = np.nan
    windows = np.where(np.arange(7)[:, None, None] == 4, np.nan, both / 2)
    layers = [a_layer(), a_layer("lstm", signals=lost, windows=windows)]
    text = page.atlas(layers, NAMES, COLOURS, axis_names=("arm x", "<i>"))
    content = json.loads(Page(text).scripts[0])
    assert content["axes"] == list(style.COMPONENT_COLOURS[:2])
    assert f'<b style="color: {content["axes"][1]}">&lt;i&gt;</b>' in text and "<i>" not in text
    alone, mixed = content["layers"]
    assert np.shape(alone["units"][0]["signal"]) == (30,) and mixed["left_out"] == [2]
    for unit in mixed["units"]:
        assert unit["signal"] == [pytest.approx(axis, abs=1e-4) for axis in both[unit["unit"]]]
        expected = None if unit["unit"] == 4 else pytest.approx(both[unit["unit"], 1, 3] / 2, abs=1e-4)
        assert unit["window"][1][3] == expected
    assert '"axes":[]' in page.atlas([a_layer()], NAMES, COLOURS) and 'id="axes"' not in page.atlas([], NAMES, COLOURS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": sines(6)}, "layer conv1: windows has 6 units, positions has 7"),
        ({"activities": np.full(7, 5)}, "activity 5 has no name"),
    ],
)
def test_a_layer_that_does_not_fit_together_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        page.atlas([a_layer(**change)], NAMES, COLOURS)


LAYERS = ("conv1", "conv2", "conv3")


def a_run(tmp_path, monkeypatch, units=12):
    """Two made-up networks: conv1 in three clusters, conv2 with two usable units, conv3 noise."""
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    rng = np.random.default_rng(0)
    seeds, time = (3, 7), 30
    dims = ("seed", "layer", "preset", "technique", "unit")
    shape = (2, 3, 1, 1, units)
    coords = {"seed": list(seeds), "layer": list(LAYERS), "preset": [embedding.PRESET], "technique": [embedding.METHOD]}
    values, kind = np.empty((*shape, time)), three_clusters(units // 3)[1]
    for s in range(2):
        values[s, 0, 0, 0] = three_clusters(units // 3, seed=s)[0]
        values[s, 1:, 0, 0] = rng.normal(size=(2, units, time))
    signals = xr.Dataset({"signal": ((*dims, "time"), values)}, coords=coords)
    failed, dead = np.zeros(shape, bool), np.zeros(shape, bool)
    failed[:, 1, ..., : units - 3] = True
    dead[:, 1, ..., units - 3] = True
    segment = np.broadcast_to(kind * 2 + 1, shape)[..., None].copy()  # window = kind, axis 1
    segment[failed | dead] = -1
    scores = xr.Dataset(
        {
            "failed": (dims, failed),
            "dead": (dims, dead),
            "piece_start": (dims, np.full(shape, 5)),
            "n_frequencies": (dims, np.broadcast_to(np.arange(units), shape).astype(float)),
            "segment": ((*dims, "neighbour"), segment),
            "offset": ((*dims, "neighbour"), np.full_like(segment, 2)),
            "distance": ((*dims, "neighbour"), np.full(segment.shape, 0.1)),
        },
        coords=coords,
    )
    train = SimpleNamespace(
        series=np.zeros((90, 2)), x=rng.normal(size=(3, 2, time)).astype(np.float32), activity=np.array([4, 5, 6])
    )
    windows = SimpleNamespace(train=train, digest="abc", caveat="made-up data")
    return load_settings("quick", "synthetic"), windows, scores, signals


def test_measures_are_stored_and_hold_null_and_a_reason_where_too_few_units_are_left(tmp_path, monkeypatch):
    cfg, windows, scores, signals = a_run(tmp_path, monkeypatch)
    found = embedding.measures(windows, scores, signals)
    monkeypatch.setattr(clustering, "cluster_tendency", lambda *_: pytest.fail("computed again"))
    assert list(found) == list(LAYERS) and embedding.measures(windows, scores, signals) == found
    assert all(len(values) == 2 for layer in found.values() for values in layer.values())
    one = found["conv1"]
    assert all(h > n + 0.1 for h, n in zip(one["hopkins"], one["hopkins_null"], strict=True))
    assert one["best_k"] == [3, 3] and one["purity"] == [1, 1] and one["clusters_all_different"] == [1, 1]
    assert max(one["clusters_p"]) < 0.01 and one["n_units"] == [12, 12] and one["reason"] == [None, None]
    assert one["n_frequencies"] == [5.5, 5.5]
    few = found["conv2"]
    assert few["hopkins"] == few["clusters_p"] == [None, None] and "at least 5 are needed" in few["reason"][0]
    assert few["n_units"] == [2, 2] and few["n_excluded"] == [10, 10] and few["effective_rank"][0] is not None
    assert found["conv3"]["hopkins"][0] < one["hopkins"][0] and found["conv3"]["spread"][0] > one["spread"][0]


def test_maps_are_stored_for_every_network_and_views_carry_the_nearest_windows(tmp_path, monkeypatch):
    cfg, windows, scores, signals = a_run(tmp_path, monkeypatch)
    positions = embedding.positions(cfg, scores, signals)
    assert positions.dims == ("seed", "layer", "unit", "coordinate") and positions.shape == (2, 3, 12, 2)
    placed = np.isfinite(positions).all("coordinate").sum("unit")
    assert placed.sel(layer="conv1").values.tolist() == [12, 12] and (placed.sel(layer="conv2") == 0).all()
    again = embedding.embed(
        signals["signal"].sel(seed=7, layer="conv1").values[0, 0], cfg.atlas.perplexity, cfg.atlas.seed
    )
    assert np.array_equal(positions.sel(seed=7, layer="conv1").values, again)
    seen = embedding.view(signals, scores, positions, windows.train, 7, "conv1")
    assert set(seen.activities) == {4, 5, 6}
    assert np.array_equal(seen.windows, windows.train.x[seen.activities - 4, 1])
    gone = embedding.view(signals, scores, positions, windows.train, 7, "conv2")
    assert (
        (gone.activities[:10] == -1).all() and np.isnan(gone.signals[:10]).all() and np.isnan(gone.windows[:10]).all()
    )
    assert np.isfinite(gone.signals[10:]).all()


def test_flat_units_are_counted_and_measured_apart():
    moving = three_clusters(4)[0]
    flat = 1 + 1e-3 * np.random.default_rng(0).normal(size=(6, 30))
    signals = np.concatenate([moving, flat, np.full((1, 30), np.nan)])
    found = clustering.measure(signals, np.zeros(19, int), np.ones(19), 12)
    assert (found["n_units"], found["n_flat"], found["n_excluded"]) == (18, 6, 1)
    assert found["hopkins_moving"] == clustering.cluster_tendency(moving)["hopkins"] != found["hopkins"]
    json.dumps(found, allow_nan=False)
    counted = embedding.counted({"conv1": a_layer(n=19, signals=signals)}).loc["conv1"]
    assert counted["failed or dead"] == 1 and counted["flat"] == counted["of these flat"] == 6
    assert counted["on the map"] == 18 and counted["of these at zero"] == 0
