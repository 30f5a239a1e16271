"""1D-SAN against loops, its blindness for the direction of time, its twins, and how windows vote."""

import dataclasses
from functools import cache

import fastjsonschema
import numpy as np
import pytest
import torch
import xarray as xr
from conftest import made_recordings
from other_networks import weights_of
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.metrics import f1_score

from harvis_utils.data import archive, windowing
from harvis_utils.data.windowing import Spectra
from harvis_utils.lenses import locating
from harvis_utils.metrics import voting
from harvis_utils.networks import self_attention
from harvis_utils.networks.self_attention import Attention, n_parameters
from harvis_utils.paper import attending, report, systems
from harvis_utils.paper.self_attention import (
    CNN,
    CNN355,
    PROBE,
    QUESTIONS,
    RAW,
    SAN,
    SPECTRA,
    Study,
    apart,
    f1_table,
    macro,
    rank_products,
    verdicts,
)
from harvis_utils.paper.stages import Stages
from harvis_utils.settings import (
    SelfAttentionSettings,
    SelfAttentionStudy,
    TrainingSettings,
    WindowSettings,
    load_settings,
)
from harvis_utils.store.files import read_json
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = SelfAttentionSettings(n_units=16)


def made(n_axes: int = 3, **changes) -> torch.nn.Module:
    with supervised.drawing(0):
        return self_attention.network(n_axes, 24, 4, dataclasses.replace(SETTINGS, **changes)).eval()


def windows_of(n: int, n_axes: int = 3, length: int = 24) -> torch.Tensor:
    return torch.randn(n, n_axes, length, generator=torch.Generator().manual_seed(1))


def looped(h: np.ndarray, w: dict[str, np.ndarray], layer: Attention) -> np.ndarray:
    """What an attention gives out, window by window, instant by instant, neighbour by neighbour."""

    def dense(x: np.ndarray, of: str) -> np.ndarray:
        return w[f"{of}.weight"][:, :, 0] @ x + w.get(f"{of}.bias", 0)

    def norm(x: np.ndarray, of: str) -> np.ndarray:
        spread = np.sqrt(w[f"{of}.running_var"] + 1e-5)
        return np.maximum((x - w[f"{of}.running_mean"]) / spread * w[f"{of}.weight"] + w[f"{of}.bias"], 0)

    about, last, found = layer.settings, h.shape[2] - 1, []
    for window in h:
        for t in range(last + 1):
            weights, values = [], []
            for step in range(-(layer.footprint // 2), layer.footprint // 2 + 1):
                j = abs(t + step * layer.dilation)
                j = 2 * last - j if j > last else j
                values.append(dense(window[:, j], "beta"))
                if about.kind == "attention":
                    pair = dense(window[:, t], "phi") - dense(window[:, j], "psi")
                    pair = np.append(pair, 2 * (t - j) / last) if about.position else pair
                    pair = dense(norm(dense(norm(pair, "gamma.0"), "gamma.2"), "gamma.3"), "gamma.5")
                    weights.append(pair)
            if about.kind == "uniform":
                weights = np.full((layer.footprint, 1), 1 / layer.footprint)
            else:
                weights = softmax(weights, axis=0)
            found.append((np.asarray(weights) * values).sum(0))
    return np.asarray(found).reshape(len(h), last + 1, -1).transpose(0, 2, 1)


@pytest.mark.parametrize("changes", [{}, {"position": False}, {"kind": "uniform"}])
@pytest.mark.parametrize(("footprint", "dilation"), [(3, 1), (5, 1), (3, 4)])
def test_attention_is_a_triple_loop(changes, footprint, dilation):
    settings = dataclasses.replace(SETTINGS, **changes)
    layer = Attention(8, footprint, dilation, settings).eval()
    for module in layer.modules():
        if isinstance(module, torch.nn.BatchNorm1d):  # no statistic is 0 or 1
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.2, 2)
    h = windows_of(2, 16, 12)
    found = layer(h).detach().numpy()
    assert found == pytest.approx(looped(h.numpy().astype(float), weights_of(layer), layer), abs=1e-5)


def test_without_position_time_has_no_direction_and_with_it_it_has():
    x, y = windows_of(16), torch.arange(16) % 4
    for position in (False, True):
        network = made(position=position)
        supervised.fit(network, x, y, TrainingSettings(epochs=8, batch_size=8, learning_rate=1e-2), 0)
        with torch.no_grad():
            apart = float((network.eval()(x) - network(x.flip(-1))).abs().max())
        assert apart > 1e-3 if position else apart < 1e-5


def test_spectra_have_no_direction_either():
    split = archived().train.every(20)
    spectra = Spectra.of(split)
    assert spectra(split.x[..., ::-1]) == pytest.approx(spectra(split.x), abs=1e-4)
    parts = Spectra.of(split, "real and imaginary")
    assert np.abs(parts(split.x[..., ::-1]) - parts(split.x)).max() > 1


@cache
def archived():
    return windowing.cut(archive.load_recordings("synthetic"), WindowSettings(length=64, step=64))


def test_spectra_are_standardized_by_training_and_keep_what_windows_know():
    data = archived().every(3)
    made_of = Spectra.of(data.train).windows(data)
    x, raw = made_of.train.x, np.log1p(np.abs(np.fft.rfft(data.train.x)))
    assert x.shape == (len(data.train), 6, 33) and x.dtype == np.float32
    assert x.mean((0, 2)) == pytest.approx(0, abs=1e-4) and x.std((0, 2)) == pytest.approx(1, abs=1e-4)
    assert x == pytest.approx((raw - raw.mean((0, 2))[:, None]) / raw.std((0, 2))[:, None], abs=1e-4)
    test = np.log1p(np.abs(np.fft.rfft(data.test.x)))
    assert made_of.test.x == pytest.approx((test - raw.mean((0, 2))[:, None]) / raw.std((0, 2))[:, None], abs=1e-4)
    assert (made_of.test.recording == data.test.recording).all() and (made_of.test.offset == data.test.offset).all()
    assert made_of.digest != data.digest


@pytest.mark.parametrize("n_units", [16, 32, 64])
@pytest.mark.parametrize("kind", ["convolution", "plain"])
def test_twins_have_as_many_parameters(kind, n_units):
    of = [
        self_attention.network(6, 64, 19, SelfAttentionSettings(kind=k, n_units=n_units)) for k in ("attention", kind)
    ]
    assert n_parameters(of[1]) == pytest.approx(n_parameters(of[0]), rel=0.05)
    assert of[1](windows_of(2, 6, 64)).shape == (2, 19)


def test_every_kind_answers_with_one_tensor_and_others_are_refused():
    for kind in self_attention.KINDS:
        found = made(kind=kind)(windows_of(3))
        assert isinstance(found, torch.Tensor) and found.shape == (3, 4)
    with pytest.raises(ValueError, match="unknown kind 'patch'; valid kinds: attention, uniform, convolution, plain"):
        made(kind="patch")
    with pytest.raises(ValueError, match="a footprint of 4"):
        made(footprints=(4, 5, 5))(windows_of(1))


def test_weights_sum_to_one_and_can_be_changed_for_a_while():
    network, x = made(), windows_of(5)
    weights = self_attention.attended(network, x)
    assert [of.shape for of in weights.values()] == [(5, 8, k, 24) for k in (3, 5, 5)]
    for of in weights.values():
        assert of.sum(2).numpy() == pytest.approx(1, abs=1e-6)
        mixed, even = self_attention.shuffled(of), self_attention.evened(of)
        assert torch.equal(mixed.sort(2).values, of.sort(2).values) and not torch.equal(mixed, of)
        assert (
            even.numpy() == pytest.approx(1 / of.shape[2]) and (self_attention.received(even, 1) - 1).abs().max() < 1e-6
        )
    before = network(x)
    with self_attention.changing(network, self_attention.evened):
        assert (network(x) - before).abs().max() > 1e-4
    assert torch.equal(network(x), before)


def test_what_an_instant_receives_is_counted():
    weights = torch.zeros(1, 1, 3, 8)
    weights[0, 0, 2, 3] = weights[0, 0, 0, 5] = 1.0  # samples 3 and 5 look at 4 alone, nobody else looks anywhere
    found = self_attention.received(weights, 1)[0].numpy()
    assert found[4] == pytest.approx(2) and (found[[0, 1, 2, 3, 5, 6, 7]] == 0).all()


# ---------------------------------------------------------------------------------------------------------- votes


def test_votes_never_cross_recordings_and_are_counted():
    lengths = {(4, 0): 170, (4, 1): 130, (4, 2): 65, (1, 0): 60, (3, 0): 60}
    split = windowing.cut(made_recordings(lengths), WindowSettings(length=20, step=5)).test
    together = voting.segments(split, 60, 20)
    assert together.shape == (2 + 2 + 1, 9)
    for own in together:
        assert len(set(split.recording[own])) == 1 and len(set(split.offset[own] // 60)) == 1
        assert (np.diff(split.offset[own]) == 5).all() and split.offset[own[-1]] % 60 + 20 <= 60
    order = np.random.default_rng(0).permutation(len(split))  # whatever the order of the windows
    assert (split.chosen(order).start[voting.segments(split.chosen(order), 60, 20)] == split.start[together]).all()

    scores = np.random.default_rng(1).normal(size=(len(split), 3))
    counts, y = voting.tally(scores, split, together), split.activity[together[:, 0]]
    for many in (1, 4, 9):
        by_hand = {
            "probabilities": [softmax(scores[own[:many]], 1).sum(0).argmax() for own in together],
            "scores": [scores[own[:many]].sum(0).argmax() for own in together],
            "majority": [np.bincount(scores[own[:many]].argmax(1), minlength=3).argmax() for own in together],
        }
        for rule, predicted in by_hand.items():
            found = counts.sel(rule=rule, windows=many, person=4)
            expected = f1_score(y, predicted, average=None, labels=range(3), zero_division=0)
            assert int(found.sum()) == len(together) and voting.f1(found).values == pytest.approx(expected)


def test_a_class_that_nobody_does_has_no_f1():
    counts = voting.tally(np.eye(3)[[0, 1]], made_split(), np.array([[0], [1]]))
    assert np.isnan(voting.f1(counts).sel({"class": 2})).all()


def made_split():
    lengths = {(4, 0): 20, (4, 1): 20, (1, 0): 20, (3, 0): 20}
    return windowing.cut(made_recordings(lengths), WindowSettings(length=20, step=5)).test


# ------------------------------------------------------------------------------------------ backwards, and places


def test_motifs_are_backwards_in_their_place_and_nothing_else_is_changed():
    recordings = archive.load_recordings("synthetic")
    test, truth = archived().test, recordings.dataset.motifs()
    found = locating.motifs_backwards(test, truth)
    assert (found.x[~locating.spans(test, truth)] == test.x[~locating.spans(test, truth)]).all()
    of = truth.occurrences.query("subject == 9 and activity == 3").iloc[5]
    begin = test.start[(test.subject == 9) & (test.activity == 3)][0] + of["start"]
    shape = truth.shapes[truth.names.index(of["motif"])]
    change = found.series[begin : begin + len(shape), of["axis"]] - test.series[begin : begin + len(shape), of["axis"]]
    assert change == pytest.approx(of["scale"] * (shape[::-1] - shape), abs=1e-5)


# ------------------------------------------------------------------------------------------------------ the study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("study")))
        own = SelfAttentionStudy(
            n_train=60,
            model=SETTINGS,
            training=TrainingSettings(seeds=(0, 1, 2), epochs=1, schedule="cosine"),
            time_ratio=2,
            vote_step=43,
            footprints=(3,),
            n_windows=20,
        )
        run = Stages(dataclasses.replace(load_settings("quick", "synthetic", "cpu"), self_attention=own))
        yield Study(run)


def test_every_claim_is_judged_with_its_controls(study):
    judged = verdicts(study)
    assert [of["id"] for of in judged] == [f"B{i}" for i in range(1, 7)]
    schema = {"definitions": read_json(report.SCHEMA)["definitions"], "$ref": "#/definitions/question"}
    for of in judged:
        fastjsonschema.validate(schema, of)
        assert of["networks"] == 3 and of["controls"] and of["direction"] != "not testable"
    f1 = {of: float(macro(counts).mean()) for of, counts in study.answers.items()}
    assert judged[0]["value"] == pytest.approx(f1[SAN, RAW] - f1[CNN, RAW])
    cost = {name: f1[name, RAW] - f1[name, SPECTRA] for name in (SAN, CNN)}  # costs of those seeds that saw spectra
    assert judged[3]["value"] == pytest.approx(cost[SAN] - max(cost[CNN], 0))
    assert judged[0]["controls"][PROBE]["value"] == pytest.approx(f1[PROBE, SPECTRA] - f1[CNN, RAW])
    assert verdicts(study, missing="too small")[0]["why"].startswith("Not testable: too small.")


def test_people_count_where_they_are_enough_and_are_averaged_where_not():
    counts = xr.DataArray(np.ones((1, 1, 4, 3, 3)), dims=("rule", "windows", "person", "true", "predicted"))
    counts = counts.assign_coords(rule=["probabilities"], windows=[1])
    assert macro(counts).dims == ("person",) and macro(counts.isel(person=slice(2))).dims == ()


def answers(wrong, many: int = 1):
    """Counts of three networks that take class 0 for the next one ``wrong`` times, and class 2 for class 1."""
    found = np.zeros((3, 1, 1, 1, 3, 3))
    found[..., [0, 1, 2], [0, 1, 2]] = 100
    found[..., 0, 1], found[..., 2, 1] = np.asarray(wrong)[:, None, None, None], 10 * many
    dims = ("seed", "rule", "windows", "person", "true", "predicted")
    return xr.DataArray(found, {"rule": ["probabilities"], "windows": [1]}, dims)


def test_who_errs_more_in_the_same_way_confuses_no_other_classes():
    few = answers([10, 10, 10])
    assert apart(few, answers([40, 40, 40], 4)) == pytest.approx(0)
    assert (apart(few, answers([40, 40, 40])) > 0.2).all()
    assert apart(answers([10, 20, 30]), answers([10, 20, 30])).mean() < 0, "no more than their own seeds"


def test_the_interval_of_a_correlation_over_classes_is_one_of_classes():
    gains, flux = np.random.default_rng(0).normal(size=(3, 12)), np.random.default_rng(1).normal(size=12)
    found = rank_products(gains, flux)
    assert found.mean(0) == pytest.approx([spearmanr(own, flux)[0] for own in gains])
    same = rank_products(np.tile(gains[0], (5, 1)), flux)  # five networks that agree are no more classes than one
    low, high = systems.judge(QUESTIONS["B3"], same.mean(0), drawn=same)["interval"]
    assert high - low > 0.3
    assert (rank_products(np.zeros((3, 12)), flux) == 0).all()
    with_nan = np.where(np.arange(12) == 3, np.nan, flux)
    assert len(rank_products(gains, with_nan)) == 11


def test_the_longer_network_has_more_epochs_and_inputs_their_own_networks(study):
    table = f1_table(study).set_index(["network", "input"])
    assert table.loc[("CNN, equal time", RAW), "epochs"] == 2 * table.loc[(CNN, RAW), "epochs"]
    assert set(table.xs(SPECTRA, level="input").index) == {SAN, CNN355, CNN, PROBE}
    assert table["F1"].between(0, 1).all()


def test_the_blind_network_prefers_no_direction(study):
    table = attending.directions(study).set_index(["network", "input", "turned"])
    for name, given in (("SAN without position", RAW), ("equal weights", RAW), (CNN, SPECTRA), (SAN, SPECTRA)):
        row = table.loc[(name, given, "windows backwards")]
        assert row["forwards preferred"] == 0.5 and row["largest difference"] < 1e-3
    assert table.loc[(CNN, RAW, "windows backwards"), "largest difference"] > 1e-3


def test_weights_and_maps_are_tables_with_controls(study):
    weights, maps = attending.attention_table(study), attending.pointing(study).set_index("map")
    mean = weights.groupby(["network", "block"])["weight"].mean()
    assert mean.to_numpy() == pytest.approx(1, abs=1e-5) and weights["entropy"].between(0, 1 + 1e-6).all()
    controls = {"shuffled", "random weights", "another window's", "occlusion of all axes", locating.NO_NETWORK}
    assert set(maps.index) == {"as trained"} | controls
    assert maps[["AUC", "hits", "recall", "AUC, motif against decoy"]].stack().between(0, 1).all()
