"""Signals through a generator: the ascent on its latent vectors, what it is compared with, and the verdicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trunks import made_trunk
from torch import nn

from harvis_utils.data import windowing
from harvis_utils.maximization import latent
from harvis_utils.maximization.latent import RANDOM, Prior
from harvis_utils.paper import generating, learned_prior
from harvis_utils.paper.generating import MAD, SPECTRAL, TAUGHT
from harvis_utils.paper.learned_prior import COPIED, HELD_OUT, LIKELIEST_TRIGGER, NEAREST, VALUE
from harvis_utils.paper.stages import Stages
from harvis_utils.settings import (
    LONG_WINDOWS,
    ExplanationSettings,
    GanSettings,
    GenerationSettings,
    LatentSettings,
    PriorSettings,
)
from harvis_utils.training import adversarial

N_AXES, N_UNITS, N_LATENT = 3, 4, 6
GAN = GanSettings(n_units=2, n_latent=N_LATENT, batch_size=16, n_steps=4, stages=(0.5, 1.0))
FEW = LatentSettings(seeds=(0,), n_starts=3, n_steps=12)
pytestmark = pytest.mark.usefixtures("one_thread")


class Waves(nn.Module):
    """A smooth generator of (row, axis, time), different for each seed, that notes the vectors it was shown."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(N_LATENT, N_AXES * 64, generator=generator) / 2
        self.shown: list[torch.Tensor] = []

    def forward(self, z):
        self.shown.append(z.detach().clone())  # steps are made in place
        return torch.tanh(z @ self.weight).unflatten(1, (N_AXES, 64))


def made_prior(n: int = 1) -> Prior:
    return Prior("made", "made by the tests", [Waves(seed) for seed in range(n)], N_LATENT)


def noise(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def windows(make_recordings):
    lengths = {(s, a): 64 + 16 * 40 for s in (1, 2, 3, 4) for a in range(3)}
    return windowing.cut(make_recordings(lengths), replace(LONG_WINDOWS, step=16))


# ------------------------------------------------------------------------------------------------- the ascent


def naive_climb(prior, trunk, layer, unit, axis, th, z, about):
    """One row, the whole network, torch's own Adam, a plain loop: the specification of :func:`latent.climb_rows`."""
    z = z.clone().requires_grad_()
    adam = torch.optim.Adam([z], about.step_size)
    best, window = -np.inf, None
    for number in range(about.n_steps + 1):
        x = prior(z[None])[0, axis]
        value = trunk.feature_map(x[None], layer)[0, unit].clamp(max=float(th)).mean()
        if float(value.detach()) > best:
            best, window = float(value.detach()), x.detach()
        if number < about.n_steps:
            adam.zero_grad()
            (-value).backward()
            adam.step()
            with torch.no_grad():
                z *= N_LATENT**0.5 / z.norm()
    return window, best


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), layer=st.sampled_from(["conv1", "conv2", "conv3"]), th=st.sampled_from([0.2, np.inf]))
def test_all_rows_at_once_are_what_a_plain_loop_finds(seed, layer, th):
    prior, trunk, about = made_prior(), made_trunk(N_UNITS, seed), replace(FEW, n_steps=4)
    unit, axis = torch.tensor([0, 3, 1]), torch.tensor([2, 0, 1])
    limits, z = torch.full((3,), th), prior.drawn(3, noise(seed))
    found, history = latent.climb_rows(prior, trunk, layer, unit, axis, limits, z, about)
    for row in range(3):
        own = (int(unit[row]), int(axis[row]), th, z[row])
        window, best = naive_climb(prior, trunk, layer, *own, about)
        assert float(history[row, -1]) == pytest.approx(best, abs=1e-4)
        assert torch.allclose(found[row], window, atol=1e-2)


def test_points_stay_on_the_shell_and_rise():
    prior, trunk = made_prior(), made_trunk(N_UNITS, 1)
    unit = torch.arange(N_UNITS).repeat_interleave(8)
    axis, z, th = unit % N_AXES, prior.drawn(32, noise()), torch.full((32,), 50.0)
    window, history = latent.climb_rows(prior, trunk, "conv2", unit, axis, th, z, FEW)
    lengths = torch.linalg.vector_norm(torch.cat(prior.generators[0].shown), dim=1)
    assert torch.allclose(lengths, torch.full_like(lengths, N_LATENT**0.5), rtol=1e-5)
    assert (history.diff(dim=1) >= 0).all()
    begun = latent.mean_output(trunk, "conv2", unit, prior(z)[torch.arange(32), axis], th)
    assert torch.allclose(history[:, 0], begun)
    alive = begun > 0
    assert alive.sum() > 16 and (history[alive, -1] > begun[alive]).all()
    assert torch.allclose(latent.mean_output(trunk, "conv2", unit, window, th), history[:, -1], atol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_luck_sees_as_many_windows_as_an_ascent(k):
    trunk, th, n = made_trunk(N_UNITS, 2), torch.full((N_UNITS,), 50.0), N_AXES * FEW.n_starts * (FEW.n_steps + 1)
    shown = []
    for way in (latent.climb, latent.random_search):
        prior = made_prior(k)
        window, history = way(prior, trunk, "conv2", th, N_AXES, FEW, noise())
        assert window.shape == (N_UNITS, 64) and (history.diff(dim=1) >= 0).all()
        assert torch.allclose(latent.mean_output(trunk, "conv2", torch.arange(4), window, th), history[:, -1])
        shown.append(sum(len(z) for own in prior.generators for z in own.shown))
    rows = N_UNITS * N_AXES * FEW.n_starts
    assert shown == [N_UNITS * n + rows, n], "an ascent makes its best windows once more, in the end"


def test_luck_is_the_best_of_a_plain_loop():
    prior, trunk, th = made_prior(3), made_trunk(N_UNITS, 3), torch.tensor([0.1, 0.3, 50.0, torch.inf])
    window, history = latent.random_search(prior, trunk, "conv3", th, N_AXES, FEW, noise(5))
    draw, best = noise(5), [(-np.inf, None)] * N_UNITS
    for _ in range(FEW.n_steps + 1):
        for row in prior(prior.drawn(N_AXES * FEW.n_starts, draw)):
            for x in row:
                maps = trunk.feature_map(x[None], "conv3")[0]
                for unit in range(N_UNITS):
                    value = float(maps[unit].clamp(max=float(th[unit])).mean())
                    best[unit] = max(best[unit], (value, x), key=lambda of: of[0])
    assert history[:, -1].tolist() == pytest.approx([value for value, _ in best], abs=1e-5)
    free = th > 1  # at a threshold several are equally good
    assert torch.allclose(window[free], torch.stack([x for _, x in best])[free])


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), length=st.sampled_from([20, 30, 64]))
def test_a_cut_piece_scores_what_the_trunk_gives_it(seed, length):
    trunk, th = made_trunk(N_UNITS, seed), torch.tensor([0.05, 0.5, 2.0, torch.inf])
    x = torch.randn(N_UNITS, 64, generator=noise(seed))
    piece, score = latent.cut(trunk, "conv3", x, th, length)
    for unit in range(N_UNITS):
        every = torch.stack([x[unit, at : at + length] for at in range(64 - length + 1)])
        values = trunk.feature_map(every, "conv3")[:, unit].clamp(max=float(th[unit])).mean(1)
        assert float(score[unit]) == pytest.approx(float(values.max()), abs=1e-5)
        own = trunk.feature_map(piece[unit][None], "conv3")[0, unit].clamp(max=float(th[unit])).mean()
        assert float(own) == pytest.approx(float(score[unit]), abs=1e-5)
        assert any(torch.equal(piece[unit], one) for one in every)


# ------------------------------------------------------------------------------------------------- generators


def test_generators_take_turns():
    prior, z = made_prior(3), torch.randn(6, N_LATENT)
    x = prior(z)
    assert all(torch.allclose(x[j], Waves(j % 3)(z[j : j + 1])[0], atol=1e-6) for j in range(6))


def test_the_linear_generator_spans_what_it_should(windows):
    x = windows.train.x
    flat = x.reshape(len(x), -1).astype(float)
    whole = latent.principal(windows, flat.shape[1]).generators[0]
    directions = whole.directions.double().numpy()
    z = (flat[:5] - flat.mean(0)) @ np.linalg.pinv(directions)
    assert np.abs(whole(torch.as_tensor(z).float()).numpy() - x[:5]).max() < 1e-3
    few = latent.principal(windows, 10)
    own = few.generators[0].directions.double().numpy()
    power, basis = np.linalg.eigh(np.cov(flat.T))
    top = basis[:, -10:]
    assert np.abs(own.T @ own - top @ np.diag(power[-10:]) @ top.T).max() < 1e-4, "the covariance of what it makes"
    assert np.abs(few(torch.zeros(1, 10)).numpy()[0] - x.mean(0)).max() < 1e-5
    assert few.name == "PCA-10" and few(few.drawn(4, noise())).shape == (4, 3, 64)


def test_an_untrained_generator_has_the_scale_of_real_windows(windows):
    own, again, other = (latent.untrained(windows, GAN, seed) for seed in (0, 0, 1))
    z = own.drawn(300, noise())
    made = own(z)
    spread = torch.as_tensor(windows.train.series.std(0))
    assert torch.allclose(made.std((0, 2)), spread, rtol=0.25)
    assert torch.equal(made, again(z)) and own.key == again.key != other.key and not torch.equal(made, other(z))


# ------------------------------------------------------------------------------------------------- all together


@pytest.fixture
def run(cfg, make_recordings):
    about = {"explanation": ExplanationSettings(n_segments=200, n_groups=(2, 2), n_pairs=80, n_train=500)}
    about |= {"generation": GenerationSettings(gan=GAN, seeds=(0,), choosing_seeds=(100,))}
    about |= {"latent": FEW, "prior": PriorSettings(n_hidden=8, n_code=4, n_steps=10)}
    made = Stages(replace(cfg, **about, visual=replace(cfg.visual, n_steps=5)))
    made.recordings = make_recordings({(s, a): 64 + 15 * 20 for s in (1, 2, 3, 4) for a in range(3)})
    return made


def test_signals_repeat_bit_by_bit_and_are_pieces_of_what_is_made(run):
    net, th = run.networks[0], run.statistics["th_eap"].isel(seed=0, drop=True)
    prior = learned_prior.every_prior(run)[0][1]
    about = (net, th, prior, 3, 30, FEW)
    found, again = latent.signals_of(*about), latent.signals_of.function(*about)
    xr.testing.assert_identical(found.drop_vars("technique"), again.drop_vars("technique"))
    assert found["technique"].values.tolist() == [MAD, MAD + RANDOM]
    assert found["signal"].dims == ("technique", "layer", "unit", "time") and found.sizes["time"] == 30
    limit = np.nan_to_num(th.sel(layer="conv2").values, nan=np.inf)
    own = net.trunk.feature_map(torch.tensor(found["signal"].sel(layer="conv2").values[0]), "conv2")
    mean = np.minimum(own.numpy()[np.arange(6), np.arange(6)], limit[:, None]).mean(1)
    assert np.allclose(mean, found["of_piece"].sel(layer="conv2").values[0], atol=1e-6)
    with pytest.raises(ValueError, match="2 starts cannot be shared out to 3 generators equally"):
        latent.signals_of.function(*about[:-1], replace(FEW, n_starts=2))


def test_everything_compared_is_measured(run, monkeypatch):
    made = learned_prior.through_priors(run)
    monkeypatch.setattr(adversarial.Game, "step", lambda *of: pytest.fail("notebook 17 trains the same once more"))
    own = learned_prior.every_prior(run)[0][2].generators[0].state_dict()
    same = generating.Study(run).game(TAUGHT, 0).generators[0].state_dict()
    assert all(torch.equal(value, own[name]) for name, value in same.items())
    signals = learned_prior.compared(run, made)
    found, table = learned_prior.measured(run, signals)
    assert {SPECTRAL, TAUGHT + RANDOM, NEAREST, HELD_OUT, "denoiser", "linear filter"} <= {*found["technique"].values}
    segments = run.data.train.segments
    near = signals.sel(technique=NEAREST).values.reshape(-1, 30)
    assert all((segments == x).all(1).any() for x in near)
    own = signals.sel(technique=SPECTRAL).values.reshape(-1, 30)
    assert np.allclose(((own - near) ** 2).mean(1), [((x - segments) ** 2).mean(1).min() for x in own], atol=1e-6)
    dcgan = found[COPIED].sel(technique=SPECTRAL)
    assert (found[COPIED].sel(technique=NEAREST) <= dcgan).all() and (found[COPIED].sel(technique=HELD_OUT) == 0).all()
    assert np.allclose(found[VALUE], found["activation"] * found["nearness"], equal_nan=True)
    assert table[["activation", "nearness"]].stack().between(0, 1).all() and f"{COPIED} low" in table
    curve = learned_prior.climbed(run, made, [SPECTRAL, SPECTRAL + RANDOM])
    assert curve["windows"].max() == 3 * FEW.n_starts * (FEW.n_steps + 1)
    assert {of["direction"] for of in learned_prior.judged(found)} == {"not testable"}, "two networks"


@pytest.mark.parametrize(
    ("likeliest", "luck", "directions"),
    [
        (0.3, 0.4, ["yes", "yes", "yes"]),
        (0.3, 0.5, ["no", "no", "no"]),  # luck does as well
        (0.5, 0.3, ["no", "no", "no"]),
    ],
)
def test_a_prior_has_to_beat_the_better_of_both(likeliest, luck, directions):
    values = {SPECTRAL: 0.5, SPECTRAL + RANDOM: luck, LIKELIEST_TRIGGER: likeliest}
    values |= {learned_prior.UNTRAINED: 0.1, "PCA-6": 0.2, TAUGHT: 0.6, TAUGHT + RANDOM: 0.4, MAD: 0.5}
    each = xr.DataArray(list(values.values()), {"technique": list(values)}, "technique")
    each = each.expand_dims(seed=range(5), layer=["conv1"], unit=range(3)).transpose("seed", "technique", ...)
    found = xr.Dataset({VALUE: each, "nearness": each, "accuracy": each, "activation": xr.ones_like(each)})
    judged = learned_prior.judged(found)
    assert [of["direction"] for of in judged] == [*directions, "yes"]
    assert judged[0]["value"] == pytest.approx(0.5 - max(luck, likeliest))
    others, rest = found["technique"] != SPECTRAL, found["unit"] > 0
    gap = found.assign({VALUE: found[VALUE].where(rest, 0.0).where(others | rest)})  # one side has no value for a unit
    assert learned_prior.judged(gap)[0]["value"] == pytest.approx(judged[0]["value"])
    assert {of["direction"] for of in learned_prior.judged(found, "4 steps")} == {"not testable"}
    away = found["activation"].where(found["technique"] != SPECTRAL, 0.5)
    second = learned_prior.judged(found.assign(activation=away))[1]
    assert second["direction"] == "not testable", "no unit is brought to its threshold by all three"
