"""Generators, what they teach each other, and how generated windows are scored."""

from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from harvis_utils.data import windowing
from harvis_utils.metrics import generative
from harvis_utils.settings import LONG_WINDOWS, GanSettings
from harvis_utils.training import adversarial, checkpoints
from harvis_utils.training.adversarial import Game

THREE = GanSettings(n_generators=3, n_units=4, n_latent=8, batch_size=16, n_steps=12, stages=(0.5, 1.0))
OPEN = tuple((*edge, "through") for edge in permutations(("G1", "G2", "G3"), 2))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def windows(make_recordings):
    lengths = {(s, a): 64 + 16 * 40 for s in (1, 2, 3, 4) for a in range(3)}
    return windowing.cut(make_recordings(lengths), replace(LONG_WINDOWS, step=16))


def weights(game: Game) -> dict[str, torch.Tensor]:
    return {f"{name} {k}": v.clone() for name, of in game.networks.items() for k, v in of.state_dict().items()}


def same(first: dict, other: dict) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first)


# ------------------------------------------------------------------------------------------- what is taught


def test_generators_and_discriminator_fit_together(windows):
    game = Game(windows.train, THREE, 0)
    x = game.generators[0](torch.randn(5, 8))
    assert x.shape == (5, 3, 64) and game.discriminator(x).shape == (5, 4)
    made = adversarial.generated(game.generators[0], 50, seed=1)
    assert np.abs(made.mean((0, 2)) - windows.train.series.mean(0)).max() < 3 * windows.train.series.std()
    with pytest.raises(ValueError, match="windows have 30 samples; generators make 64"):
        Game(replace(windows.train, length=30), THREE, 0)


def test_knowledge_is_where_in_time_stages_are_active(windows):
    first, other = Game(windows.train, THREE, 0).generators[:2]
    z = torch.randn(6, 8)
    with torch.no_grad():
        maps = [g.maps(z)[:-1] for g in (first, other)]
    assert float(adversarial.transfer(*maps)) > 1e-4
    assert torch.allclose(torch.linalg.vector_norm(adversarial.attention(maps[0][1]), dim=1), torch.ones(6))


def test_the_loss_is_that_of_a_loop(windows):
    first, other = Game(windows.train, THREE, 0).generators[:2]
    z = torch.randn(2, 8)
    total = []
    with torch.no_grad():
        teacher, student = (g.maps(z)[:-1] for g in (first, other))
        for t, s in zip(teacher, student, strict=True):
            for window in range(2):
                q = [(m[window] ** 2).mean(0).numpy() for m in (t, s)]
                q = [a / np.sqrt((a**2).sum()) for a in q]
                total.append(np.mean((q[0] - q[1]) ** 2))
        assert float(adversarial.transfer(teacher, student)) == pytest.approx(np.mean(total), rel=1e-5)


def test_only_the_student_learns(windows):
    teacher, student = Game(windows.train, THREE, 0).generators[:2]
    z = torch.randn(6, 8)
    adversarial.transfer(teacher.maps(z)[:-1], student.maps(z)[:-1]).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert sum(float(p.grad.abs().sum()) for p in student.parameters() if p.grad is not None) > 0


@pytest.mark.parametrize(
    ("name", "values"),
    [("through", (1, 1, 1)), ("cut off", (0, 0, 0)), ("positive", (0, 0.5, 1)), ("negative", (1, 0.5, 0))],
)
def test_gates_open_and_close_with_the_progress(name, values):
    seen = [adversarial.node_losses({("t", "s"): name}, lambda *edge: 1.0, done) for done in (0.0, 0.5, 1.0)]
    assert tuple(of.get("s", 0) for of in seen) == values


def test_generators_go_through_their_gates_with_the_steps(windows):
    game = Game(windows.train, replace(THREE, n_steps=11, alpha=2.0), 0)
    z = game.draws(0)[2]
    for (source, to), name in ((("D", "G2"), "positive"), (("G1", "G2"), "positive"), (("G1", "G3"), "negative")):
        first, middle, last = (game.generator_losses(z, step, {(source, to): name}) for step in (0, 5, 10))
        open_, shut = (last, first) if name == "positive" else (first, last)
        assert not shut and middle[to].item() == pytest.approx(open_[to].item() / 2, rel=1e-3)


def test_edges_that_cannot_be_are_refused():
    for gates in ((("G1", "G1", "through"),), (("D", "G4", "through"),)):
        with pytest.raises(ValueError, match="no edge leads from"):
            adversarial.edges(replace(THREE, gates=gates))
    with pytest.raises(ValueError, match="unknown gate 'ajar'"):
        adversarial.edges(replace(THREE, gates=(("G1", "G2", "ajar"),)))


def test_with_all_edges_between_generators_cut_it_is_mad_gan_bit_for_bit(windows):
    cut = tuple((t, s, "cut off") for t, s, _ in OPEN)
    found = []
    for settings in (THREE, replace(THREE, gates=cut, alpha=1000.0), replace(THREE, gates=OPEN, alpha=10.0)):
        game = Game(windows.train, settings, 0)
        for number in range(3):
            game.step(number)
        found.append(weights(game))
    assert same(*found[:2]) and not same(found[0], found[2])


def test_a_generator_that_nobody_teaches_stays_as_it_is(windows):
    game = Game(windows.train, replace(THREE, gates=(("D", "G2", "cut off"),)), 0)
    before = [p.clone() for p in game.generators[1].parameters()]
    game.step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, game.generators[1].parameters(), strict=True))


# --------------------------------------------------------------------------------------------------- training


def test_spectral_norms_hold(windows):
    game = Game(windows.train, replace(THREE, n_steps=50), 0)
    for number in range(50):
        game.step(number)
    own = game.discriminator
    layers = [*(getattr(own, name)[0] for name in own.stages), own.classes]
    norms = [float(torch.linalg.matrix_norm(of.weight.detach().flatten(1), 2)) for of in layers]
    assert max(norms) <= 1.05, norms
    free = Game(windows.train, replace(THREE, norm="batch"), 0)
    assert any(isinstance(m, nn.BatchNorm1d) for m in free.discriminator.modules())
    assert not any(isinstance(m, nn.BatchNorm1d) for m in game.discriminator.modules())


@pytest.mark.parametrize("norm", ["spectral", "batch"])
def test_interrupted_training_ends_with_the_same_bits(windows, monkeypatch, norm, own_folders):
    settings = replace(THREE, norm=norm, gates=OPEN, alpha=3.0)
    whole = adversarial.trained(windows, settings, 0)
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(own_folders / "other"))
    monkeypatch.setattr(adversarial, "STEPS_KEPT", 5)
    step, done = Game.step, []

    def interrupted(self, number):
        if number == 7 and not done:
            done.append(number)
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Game, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adversarial.trained(windows, settings, 0)
    seen = []
    monkeypatch.setattr(Game, "step", lambda self, number: seen.append(number) or step(self, number))
    assert same(adversarial.trained(windows, settings, 0), whole) and seen == [*range(5, 12)]


def test_networks_of_a_stage_are_read_again(windows):
    found = adversarial.trained(windows, THREE, 0)
    assert found["losses"].shape == (12, 4)
    early, late = (adversarial.read(windows, THREE, found, share) for share in THREE.stages)
    made = [adversarial.generated(game.generators[2], 4, seed=0) for game in (early, late)]
    assert not np.array_equal(*made)
    again = adversarial.read(windows, THREE, adversarial.trained(windows, THREE, 0))
    assert np.array_equal(made[1], adversarial.generated(again.generators[2], 4, seed=0))
    assert torch.isfinite(late.discriminator(torch.as_tensor(made[1]))).all()


def test_a_diverging_training_and_a_damaged_checkpoint_say_so(windows, tmp_path, monkeypatch):
    monkeypatch.setattr(Game, "step", lambda self, number: [float("nan")] * 4)
    with pytest.raises(checkpoints.TrainingError, match=r"losses are .* in step 1; lower generation.gan.learning_rate"):
        adversarial.trained(windows, THREE, 5)
    (tmp_path / checkpoints.CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(checkpoints.TrainingError, match="is damaged"):
        adversarial.trained.function(windows, THREE, 5, checkpoint=tmp_path)


def test_alpha_balances_both_pulls(windows):
    alpha = adversarial.balanced_alpha(windows, THREE, 0)
    game = Game(windows.train, replace(THREE, gates=OPEN, alpha=alpha), 0)
    untaught = Game(windows.train, THREE, 0).edges
    game.edges, taught = untaught, {edge: "through" for edge in untaught if edge[0] != "D"}
    game.step(0)
    of_d = {edge: "through" for edge in untaught if edge[0] == "D"}
    assert game.pull(1, of_d) == pytest.approx(game.pull(1, taught), rel=1e-3)


# ----------------------------------------------------------------------------------------------------- scores


def test_inception_score_has_its_bounds():
    assert generative.inception_score(np.eye(7)[np.arange(70) % 7]) == pytest.approx(7)
    assert generative.inception_score(np.full((50, 7), 1 / 7)) == pytest.approx(1)
    assert generative.inception_score(np.eye(7)[np.zeros(20, int)]) == pytest.approx(1)


def test_frechet_distance_is_the_closed_form():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200_000, 2))
    first, other = x @ np.diag([1.0, 2.0]), rng.standard_normal((200_000, 2)) @ np.diag([3.0, 2.0]) + [1, -2]
    assert generative.frechet(first, other) == pytest.approx(1 + 4 + (1 - 3) ** 2, abs=0.1)
    assert generative.frechet(x, x) < 1e-6
    with pytest.raises(generative.JudgeError, match="sets of 10 and 20 windows"):
        generative.frechet(x[:10], x[:20])


class Sees(nn.Module):
    """Features: mean of each axis and mean size of its steps; the classes do not matter."""

    def __init__(self):
        super().__init__()
        self.classes = nn.Linear(6, 3)

    def forward(self, x):
        return self.classes(torch.cat([x.mean(2), x.diff(dim=2).abs().mean(2)], 1))


def test_what_a_score_is_blind_to_is_seen_by_another(windows):
    n, rng = len(windows.val), np.random.default_rng(0)
    real = generative.reference(windows, n, rng)
    sets = {"copies": windows.train.x[:n], "noisy": windows.val.x + 0.1} | generative.controls(windows, n, rng)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = generative.by_judge(Sees(), sets, real).merge(generative.without_judge(windows, sets, real), on="set")
    found = found.set_index("set")
    assert list(found.index) == ["copies", "noisy", *generative.CONTROLS]
    assert found.loc["copies", "memorization"] < 0.01 and found.loc["noisy", "memorization"] > 0.9
    repeated, held_out = (found.loc[name] for name in ("one window a class, repeated", "held-out people"))
    assert repeated["covered"] < 0.5 * held_out["covered"] and repeated["memorization"] < 0.01
    assert found.loc["white noise", "FID"] > found.loc["half of training", "FID"]
    flat, scrambled = found.loc["flat, real means"], found.loc["scrambled phases"]
    assert flat["covered"] == 0, "windows that do not move are no neighbours of those that do"
    assert flat["spectral distance"] == 1 and scrambled["spectral distance"] < 0.05 and np.isnan(flat["peakedness"])
    assert found["classes"].between(0, 1).all() and found["covered"].between(0, 1).all()


def test_what_cannot_be_judged_is_refused(windows):
    bad = SimpleNamespace(predicted={"test": np.zeros_like(windows.test.activity)})
    with pytest.raises(generative.JudgeError, match=r"macro F1 is 0.17 on the test people; below 0.65"):
        generative.admitted(bad, windows, 0.65)
    good = SimpleNamespace(predicted={"test": windows.test.activity})
    assert generative.admitted(good, windows, 0.65) == 1
    with pytest.raises(generative.JudgeError, match="windows are there and 9999 are compared"):
        generative.drawn(windows.val.x, 9999, np.random.default_rng(0))
