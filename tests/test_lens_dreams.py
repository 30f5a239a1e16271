"""The learned prior, the smallest change that flips a class, and dreams beside it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lens_taps import LENGTH, MODELS, N_AXES, hooks_of, windows
from torch import nn

from harvis_utils.lenses import dreams
from harvis_utils.maximization import objectives, priors, visualization
from harvis_utils.metrics import intervals
from harvis_utils.networks import taps
from harvis_utils.settings import DreamSettings, ModelSettings, PriorSettings, TrainingSettings, load_settings
from harvis_utils.training import supervised

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = PriorSettings(n_hidden=64, n_code=32, n_steps=400, learning_rate=5e-3, batch_size=128)


# --------------------------------------------------------------------------------------------------------- the prior


def waves(n, seed):
    rng = np.random.default_rng(seed)
    phase, size = rng.uniform(0, 2 * np.pi, (n, 1)), rng.uniform(0.5, 1.5, (n, 1))
    return (size * np.sin(2 * np.pi * 2 * np.arange(LENGTH) / LENGTH + phase)).astype(np.float32)


def test_a_prior_removes_noise_from_held_out_segments():
    model, losses = priors.fit(waves(500, 0), SMALL)
    found = priors.errors(model, waves(500, 0), waves(200, 1), (0.1, 0.3)).loc["0.3 G of noise"]
    assert found["nothing"] == pytest.approx(0.3, rel=0.05)
    assert found["learned prior"] < 0.7 * found["nothing"] and found["best linear map"] < 0.6 * found["nothing"]
    assert losses[-50:].mean() < losses[:50].mean() / 2
    x = torch.tensor(waves(6, 2)).view(2, 3, LENGTH)
    assert torch.allclose(model(x)[1, 2], model(x[1, 2][None])[0], atol=1e-6), "each axis by itself"
    same = PriorSettings(**vars(SMALL) | {"n_steps": 5})
    (once, _), (again, _) = (priors.fit(waves(500, 0), same) for _ in range(2))
    assert torch.equal(again(x), once(x)), "all draws come from the seed"


def test_noise_has_a_size_of_its_own_for_every_segment():
    noise = priors.corrupted(torch.zeros(3000, 30), 0.4, torch.Generator().manual_seed(0))
    std = noise.std(1)
    assert std.min() < 0.02 and 0.35 < std.quantile(0.95) < 0.45 and std.mean() == pytest.approx(0.2, abs=0.01)


def test_the_linear_yardstick_is_the_least_squares_fit():
    clean = np.random.default_rng(0).normal(size=(200_000, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]]) + [1.0, -2.0]
    noisy = clean + 0.5 * np.random.default_rng(1).normal(size=clean.shape)
    fitted, *_ = np.linalg.lstsq(np.c_[noisy, np.ones(len(noisy))], clean, rcond=None)
    mean, matrix = priors.linear_denoiser(clean, 0.5)
    assert np.allclose(matrix, fitted[:2].T, atol=0.01) and np.allclose(mean - matrix @ mean, fitted[2], atol=0.02)


def test_a_prior_is_learned_once(tiny_windows, monkeypatch):
    cfg = dataclasses.replace(load_settings("quick", "synthetic", "cpu"), prior=SMALL)
    first = priors.prior(cfg, tiny_windows)
    monkeypatch.setattr(priors, "fit", None)
    again = priors.prior(cfg, tiny_windows)
    assert first.key == again.key
    x = torch.tensor(np.ascontiguousarray(tiny_windows.test.x))
    assert torch.equal(first(x), again(x)) and not any(p.requires_grad for p in again.parameters())


# --------------------------------------------------------------------------------------------------------- the flips


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_on_a_linear_network_the_smallest_change_is_the_distance_to_the_nearest_border(seed, n_classes):
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(N_AXES * LENGTH, n_classes)), windows(4, seed)
    found = dreams.smallest_change(model, x)
    weight, scores = model[1].weight.detach(), model(x)
    for i, score in enumerate(scores.detach()):
        own = int(score.argmax())
        lead = score[own] - score + dreams.MARGIN * score.abs().max()
        far = [lead[k] / (weight[own] - weight[k]).norm() for k in range(n_classes) if k != own]
        expected = float(min(far)) / (N_AXES * LENGTH) ** 0.5
        assert found.rms_g[i] == pytest.approx(expected, rel=2e-3, abs=1e-6)
        assert found.before[i] == own != found.after[i]


@pytest.mark.parametrize("name", MODELS)
def test_a_flip_lies_just_beyond_the_border(name):
    torch.manual_seed(3)
    model, x = MODELS[name](), windows(8, 4)
    found = dreams.smallest_change(model, x)
    flipped = ~np.isnan(found.rms_g)
    assert flipped.mean() >= 0.5 and model.training == MODELS[name]().training and not hooks_of(model)
    assert np.array_equal(dreams.predicted(model, found.signal), found.after)
    assert (found.before != found.after).tolist() == flipped.tolist()
    change = found.signal - x.numpy()
    assert np.allclose(dreams.rms(change)[flipped], found.rms_g[flipped], rtol=1e-5)
    rounded = found.signal * np.random.default_rng(0).choice([1 - 1e-6, 1, 1 + 1e-6], (20, *found.signal.shape))
    for signal in rounded.astype(np.float32):
        assert np.array_equal(dreams.predicted(model, signal), found.after), "clear of rounding"
    less = (x.numpy() + 0.99 * change).astype(np.float32)
    assert np.array_equal(dreams.predicted(model, less)[flipped], found.before[flipped])
    only_deepfool = dreams.smallest_change(model, x, n_along=0)
    assert (found.rms_g[flipped] <= only_deepfool.rms_g[flipped] * 1.0001).all()


def test_a_network_that_cannot_be_flipped_is_not():
    model = nn.Sequential(nn.Flatten(), nn.Linear(N_AXES * LENGTH, 3))
    nn.init.zeros_(model[1].weight)
    found = dreams.smallest_change(model, windows())
    assert np.isnan(found.rms_g).all() and np.array_equal(found.signal, windows().numpy())


def test_where_there_is_no_slope_the_way_to_other_windows_is_taken():
    class Steps(nn.Module):
        def forward(self, x):  # class 1 above a mean of 0.5 G, no slope anywhere
            high = (x.mean((1, 2)) > 0.5).float()
            return torch.stack([1 - high, high], 1) + 0 * x.sum((1, 2))[:, None]

    x = torch.zeros(3, N_AXES, LENGTH) + torch.tensor([0.0, 0.4, 2.0])[:, None, None]
    found = dreams.smallest_change(Steps(), x)
    assert found.rms_g == pytest.approx([0.5, 0.1, 1.5], abs=1e-4) and found.after.tolist() == [1, 1, 0]


def test_random_changes_have_the_size_that_is_asked_for():
    size = np.array([0.1, 0.5, 0.0, 2.0, 1.0])
    assert np.allclose(dreams.rms(dreams.random_change((5, 3, 30), size, 0)), size, rtol=1e-5)


# -------------------------------------------------------------------------------------------------------- the dreams


@pytest.fixture(scope="module")
def made(tiny_windows, tmp_path_factory):
    cfg = dataclasses.replace(
        load_settings("quick", "synthetic", "cpu"),
        model=ModelSettings(n_units=6, n_dense=8),
        training=TrainingSettings(seeds=(0, 1), epochs=12, learning_rate=1e-2, batch_size=8),
        dreams=DreamSettings(n_windows=4, n_steps=60),
        prior=PriorSettings(n_hidden=16, n_code=8, n_steps=20),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("dreams")))
        nets = supervised.networks(cfg, tiny_windows)
        denoiser = priors.prior(cfg, tiny_windows)
        chosen = dreams.choose(nets, tiny_windows.test, 4)
        found = dreams.dreams(cfg, tiny_windows, nets, chosen, denoiser)
        sizes = np.stack([dreams.flips(net, tiny_windows, chosen)["rms_g"] for net in nets])
        patched.setattr(dreams, "smallest_change", None)
        assert np.array_equal(dreams.flips(nets[0], tiny_windows, chosen)["rms_g"], sizes[0]), "stored"
        again = dreams.dreams(cfg, tiny_windows, nets, chosen, denoiser)
        measured = dreams.measures(nets, found, denoiser)
        flipped = dreams.sizes(measured, tiny_windows, nets, chosen)
    return SimpleNamespace(**{k: v for k, v in locals().items() if k != "patched"})


def test_chosen_windows_are_classified_correctly_by_all(made, tiny_windows):
    split, chosen = tiny_windows.test, made.chosen
    for net in made.nets:
        assert np.array_equal(dreams.predicted(net.model, split.x[chosen]), split.activity[chosen])
    assert len(np.unique(chosen)) == 4 and len(np.unique(split.activity[chosen])) == 3, "classes in turn"
    with pytest.raises(ValueError, match="1000 windows that all networks classify correctly"):
        dreams.choose(made.nets, split, 1000)


def test_dreams_are_stored_and_start_from_the_windows(made, tiny_windows):
    assert made.again.identical(made.found)
    for net in made.nets:
        of, every = made.found.sel(seed=net.seed), range(4)
        assert np.array_equal(of["signal"].sel(variant="window"), tiny_windows.test.x[made.chosen])
        scores = {
            v: net.model(torch.tensor(of["signal"].sel(variant=v).values)).detach().numpy() for v in dreams.VARIANTS
        }
        toward = {v: values[every, of["after"]] for v, values in scores.items()}
        lead = {v: toward[v] - values[every, of["before"]] for v, values in scores.items()}
        assert (toward["dream"] > toward["window"]).all()
        assert (lead["smallest change"] > 0).all() and (lead["window"] < 0).all()


def test_measures_are_what_one_computes_by_hand(made):
    found, measured = made.found, made.measured
    x = found["signal"]
    for i, net in enumerate(made.nets):
        other = made.nets[1 - i]
        for v in dreams.VARIANTS:
            for w in range(4):
                one, real = (x.sel(seed=net.seed, variant=n).values[w] for n in (v, "window"))
                small = x.sel(seed=net.seed, variant="smallest change").values[w] - real
                row = measured.sel(seed=net.seed, variant=v).isel(window=w)
                assert float(row["size_g"]) == pytest.approx(np.sqrt(((one - real) ** 2).mean()), abs=1e-6)
                after = int(found["after"].sel(seed=net.seed)[w])
                seen = [int(n.model(torch.tensor(one)[None]).argmax()) for n in (net, other)]
                assert [row["own"], row["others"]] == [seen[0] == after, seen[1] == after]
                cleaned = made.denoiser(torch.tensor(one)[None])[0].numpy()
                assert float(row["unreal_g"]) == pytest.approx(np.sqrt(((cleaned - one) ** 2).mean()), rel=1e-4)
                if v != "window":
                    cosine = ((one - real) * small).sum() / np.linalg.norm(one - real) / np.linalg.norm(small)
                    assert float(row["along"]) == pytest.approx(cosine, abs=1e-4)
    assert np.allclose(made.sizes, measured["size_g"].sel(variant="smallest change"), rtol=1e-4)
    assert (measured["own"].sel(variant="smallest change") == 1).all()
    assert (measured["own"].sel(variant="window") == 0).all()
    sizes = measured["size_g"]
    assert np.allclose(sizes.sel(variant="noise of that size"), sizes.sel(variant="smallest change"), rtol=1e-4)


def test_the_tables_have_a_row_for_every_variant_and_for_whose_change_it_is(made, tiny_windows):
    table = intervals.tabulated(made.measured, "variant")
    assert list(table.index) == list(dreams.VARIANTS)
    mean = made.measured["size_g"].mean(("seed", "window")).values
    assert table["size_g"].to_numpy() == pytest.approx(mean, rel=1e-5)
    assert (table["size_g low"] <= table["size_g"] + 1e-9).all() and np.isnan(table.loc["window", "along"])
    real = tiny_windows.test.x[made.chosen]
    moving = [(w - w.mean(1, keepdims=True)).std() for w in real]
    assert made.flipped["G RMS"].tolist() == pytest.approx([made.sizes.mean()] * 2 + [np.mean(moving)], rel=1e-4)


def test_windows_that_were_not_flipped_do_not_count_and_one_network_has_no_others(made):
    stuck = made.found.copy(deep=True)
    stuck["after"].loc[{"seed": 0}] = stuck["before"].sel(seed=0)
    size = dreams.measures(made.nets, stuck, made.denoiser)["size_g"]
    assert size.sel(seed=0).isnull().all() and size.sel(seed=1).notnull().all()
    alone = dreams.measures(made.nets[:1], made.found.isel(seed=[0]), made.denoiser)
    assert alone["others"].isnull().all() and alone["own"].notnull().all()


def test_a_unit_has_what_is_made_for_it_beside_the_real_windows_that_excite_it_most_and_least(made, tiny_windows):
    split, net, start = tiny_windows.train, made.nets[0], windows(4)[:, :1]
    largest = xr.DataArray([[1.0]], {"layer": ["conv2"], "unit": [3]})
    several = dreams.of_units(net, [("conv2", 3)] * 2, largest, start, split, n_steps=12)
    assert all(np.array_equal(*of) for of in several.values()), "each unit by itself"
    found = {kind: of[0] for kind, of in several.items()}
    view = visualization.PerAxis(net.model, "conv2")

    def middle(x):
        maps = taps.maps_of(
            view, view.tap("conv2", before_relu=True), torch.as_tensor(np.ascontiguousarray(x))[:, None]
        )
        return maps[:, 3, 0, maps.shape[3] // 2]

    with torch.no_grad():
        begin, made_for, most, least = map(middle, (start[:, 0], *found.values()))
        every = middle(split.segments)
    assert made_for[0] > begin[0] and made_for[3] < begin[3]
    assert (
        most[0] == every.max() and least[0] == every.min() and (most >= most[-1]).all() and (least <= least[-1]).all()
    )


def test_a_class_has_its_strongest_real_window_beside_what_each_way_makes_for_it(made, tiny_windows):
    model, real = made.nets[0].model, tiny_windows.train.x
    found = dreams.of_classes(model, [2, 0], real[:2], real, {"short": {"n_steps": 0}, "long": {"n_steps": 12}})
    scores = {
        n: model(torch.tensor(x.swapaxes(0, 1).copy())).detach().numpy()[[0, 1], [2, 0]] for n, x in found.items()
    }
    assert np.array_equal(found["short"].swapaxes(0, 1), real[:2]) and (scores["long"] > scores["short"]).all()
    every = visualization.scores(model, objectives.class_score(2), real)
    assert scores["strongest real window"][0] == pytest.approx(every.max(), abs=1e-5)


def test_bisecting_stays_on_the_windows_device(monkeypatch):
    """On "meta", which computes no number and refuses tensors of other devices, as CUDA does."""
    monkeypatch.setattr(dreams, "_beyond", lambda network, x, before: (x.sum((1, 2)) > 0).long() != before)
    x, before = torch.zeros(3, 2, 5, device="meta"), torch.zeros(3, dtype=torch.int64, device="meta")
    assert dreams._bisected(None, x, x + 1, before).device == x.device
