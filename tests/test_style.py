"""Windows in another style: what is learned, what is not to be learned from, and what stands beside it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harvis_utils.data import synthetic, windowing
from harvis_utils.maximization import transforms
from harvis_utils.metrics import generative
from harvis_utils.networks import style
from harvis_utils.networks.style import AdaIN
from harvis_utils.paper import style_scores, style_transfer
from harvis_utils.paper.stages import Stages
from harvis_utils.paper.style_scores import Pair
from harvis_utils.paper.style_transfer import Study
from harvis_utils.settings import LONG_WINDOWS, SettingsError, StyleSettings, load_settings
from harvis_utils.training import checkpoints, translating
from harvis_utils.training.translating import SOURCE, TARGET, Translation, Translator, unlabelled

TINY = StyleSettings((), n_units=4, batch_size=8, n_steps=10)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def windows(make_recordings):
    lengths = {(s, a): 64 * 9 for s in (1, 2, 3, 4) for a in range(3)}
    return windowing.cut(make_recordings(lengths), replace(LONG_WINDOWS, step=16))


@pytest.fixture(scope="module")
def found(windows):
    return translating.trained.function(windows.train, unlabelled(windows.test), 3, TINY, 0, device="cpu")


@pytest.fixture
def translator(windows, found):
    return Translator(windows.train, 3, TINY, found, device="cpu")


def game(windows, **changes) -> Translation:
    return Translation((windows.train, windows.test), 3, replace(TINY, **changes), 0, "cpu")


def same(first: dict, other: dict) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[k], other[k]) for k in first)


# ------------------------------------------------------------------------------------------------------- networks


def test_a_style_sets_means_and_standard_deviations_and_plain_units_stay_as_they_are():
    own, h = AdaIN(3, 4, plain=1), torch.randn(5, 3, 32) * 3 + 7
    with torch.no_grad():
        own.gains.weight.zero_()
        own.gains.bias.copy_(torch.tensor([1.0, -0.5, 0.0, 4.0, -2.0, 0.0]))  # gamma, then beta
        made = own(h, torch.randn(5, 4))
    torch.testing.assert_close(made[:, :2].mean(2), torch.tensor([4.0, -2.0]).expand(5, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        made[:, :2].std(2, correction=0), torch.tensor([2.0, 0.5]).expand(5, 2), atol=1e-3, rtol=0
    )
    assert torch.equal(made[:, 2], h[:, 2])


@pytest.mark.parametrize(("norm", "seen"), [("instance", False), ("none first", True), ("moments", True)])
def test_instance_norm_makes_posture_invisible_and_moments_bring_it_back(norm, seen):
    x = torch.randn(6, 3, 64)
    own = style.Generator(3, replace(TINY, content_norm=norm)).eval()
    with torch.no_grad():
        change = (own.encode(x + torch.tensor([0.5, -1.0, 2.0])[:, None]) - own.encode(x)).abs().max()
    assert (float(change) > 1e-2) == seen and (seen or float(change) < 1e-4)


def test_what_cannot_be_is_refused_in_words():
    with pytest.raises(ValueError, match="unknown content_norm 'batch'; valid content_norms: instance"):
        style.Generator(3, replace(TINY, content_norm="batch"))
    with pytest.raises(ValueError, match="windows have 30 samples; styles are learned of 64"):
        style.networks(3, 30, 4, 2, TINY)


def test_every_domain_has_its_own_branch():
    mapping, critic = style.Mapping(3), style.Critic(2, 3, 5, TINY)
    z, x = torch.randn(4, style.N_LATENT), torch.randn(4, 2, 64)
    domain = torch.tensor([0, 2, 1, 2])
    with torch.no_grad():
        for one in range(4):
            expected = mapping.branches[domain[one]](mapping.shared(z[one : one + 1]))[0]
            torch.testing.assert_close(mapping(z, domain)[one], expected)
        every = torch.stack([critic(x, torch.full((4,), d)) for d in range(3)], 1)
        torch.testing.assert_close(critic(x, domain), every[torch.arange(4), domain])


# --------------------------------------------------------------------------------------------------------- losses


def test_the_penalty_of_a_linear_discriminator_is_half_its_squared_norm():
    weight = torch.randn(6, 64)
    x = torch.randn(5, 6, 64, requires_grad=True)
    found = translating.penalty((x * weight).sum((1, 2)), x)
    assert float(found) == pytest.approx(float(weight.square().sum()) / 2, rel=1e-5)


def test_answers_before_translation_learn_nothing_and_the_loss_is_a_cross_entropy():
    before, after = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = translating.semantic_loss(after, before)
    loss.backward()
    assert before.grad is None and float(after.grad.abs().sum()) > 0
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(after, before.softmax(1)).detach()), rel=1e-5)


def test_the_semantic_loss_begins_late_and_diversity_ends_at_zero(windows):
    own = game(windows, n_steps=101)
    weights = [own.weights(number) for number in range(101)]
    assert [w["semantic"] for w in weights] == [0.0] * 15 + [1.0] * 86
    assert weights[0]["diversity"] == -1 and weights[50]["diversity"] == -0.5 and weights[100]["diversity"] == 0
    assert dict(zip(translating.LOSSES, own.step(14), strict=True))["semantic"] == 0
    assert dict(zip(translating.LOSSES, own.step(15), strict=True))["semantic"] > 0


def test_stargan_trains_no_classifier_and_what_learns_in_which_pass(windows):
    own = game(windows, task_weight=0.0, semantic_weight=0.0, alternate=True)
    before = {name: [p.clone() for p in of.parameters()] for name, of in own.networks.items()}

    def moved() -> set[str]:
        same = {n: all(map(torch.equal, before[n], of.parameters())) for n, of in own.networks.items()}
        return {name for name, stayed in same.items() if not stayed}

    own.step(1)  # styles of other windows
    assert moved() == {"D", "G"}
    own.step(2)
    assert moved() == {"D", "G", "F", "E"}


def test_each_step_sees_both_domains_and_references_of_those_wanted(windows):
    own = game(windows, batch_size=16)
    seen = own.draws(3)
    assert seen["domain"].tolist() == [0] * 8 + [1] * 8 and {0, 1} == set(seen["wanted"].tolist())
    for references in seen["references"]:
        for x, domain in zip(references, seen["wanted"], strict=True):
            assert bool((own.x[domain] == x).all((1, 2)).any())
    assert all(torch.equal(of, own.draws(3)[name]) for name, of in seen.items())


# ------------------------------------------------------------------------------------------------------- training


GOLDEN = {"discriminator": 1.04009, "R1": 0.34206, "adversarial": 0.54119, "style": 0.43075, "diversity": 0.0}
GOLDEN |= {"cycle": 0.84416, "task": 1.10878, "semantic": 1.11471}


def test_numbers_of_a_short_training_stay_as_they_were(found):
    """Else ``translating.trained`` is to have another version."""
    last = dict(zip(translating.LOSSES, found["losses"][-1].tolist(), strict=True))
    assert last == pytest.approx(GOLDEN, rel=1e-2)


def test_interrupted_training_ends_with_the_same_bits(windows, found, monkeypatch):
    monkeypatch.setattr(translating, "STEPS_KEPT", 4)
    step, done = Translation.step, []

    def interrupted(self, number):
        if number == 6 and not done:
            done.append(number)
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Translation, "step", interrupted)
    about = (windows.train, unlabelled(windows.test), 3, TINY, 0)
    with pytest.raises(KeyboardInterrupt):
        translating.trained(*about, device="cpu")
    assert same(translating.trained(*about, device="cpu"), found)


def test_no_label_of_the_target_changes_anything(windows, found):
    strange = replace(windows.test, activity=np.full(len(windows.test), np.nan))
    assert same(translating.trained.function(windows.train, strange, 3, TINY, 0, device="cpu"), found)
    keys = {translating.trained.key(windows.train, unlabelled(of), 3, TINY, 0) for of in (windows.test, strange)}
    assert len(keys) == 1, "nor its address"


def test_losses_that_diverge_say_what_to_lower(windows, monkeypatch):
    monkeypatch.setattr(Translation, "step", lambda self, number: [float("nan")] * len(translating.LOSSES))
    with pytest.raises(checkpoints.TrainingError, match="lower styles.learning_rate"):
        translating.trained.function(windows.train, unlabelled(windows.test), 3, TINY, 0, device="cpu")


# ---------------------------------------------------------------------------------------------------- translation


def test_windows_are_translated_by_the_branch_of_the_source_and_by_the_draw(translator, windows):
    x = windows.test.x[:20]
    first = translator.translated(x, 0)
    assert first.shape == x.shape and np.array_equal(first, translator.translated(x, 0))
    assert not np.allclose(first, translator.translated(x, 1), atol=1e-6)
    branches = translator.networks["F"].branches
    with torch.no_grad():
        branches[TARGET][-1].bias += 1.0
    assert np.array_equal(first, translator.translated(x, 0)), "the target's branch has no part in it"
    branches[SOURCE], branches[TARGET] = branches[TARGET], branches[SOURCE]
    assert not np.allclose(first, translator.translated(x, 0), atol=1e-4)


def test_scores_of_translations(translator, windows, found, monkeypatch):
    class Known:
        key = "a classifier"
        model = nn.Sequential()

    torch.manual_seed(0)
    Known.model.add_module("mean", nn.AdaptiveAvgPool1d(1))
    Known.model.add_module("flat", nn.Flatten())
    Known.model.add_module("classes", nn.Linear(3, 3))
    monkeypatch.setattr(translating.trained, "function", lambda **about: found)
    pair = Pair("p", unlabelled(windows.test), windows.test, windows.train, 3)
    table = style_scores.with_translator({"CNN": Known}, pair, TINY, 0, device="cpu")
    end = table[table["share"] == 1].set_index(["kind", "n"])["macro F1"]
    assert end[style_scores.ONE_Z, 10] == pytest.approx(end[style_scores.TRANSLATED, 1]), "one z is one translation"
    assert (table[["wrong to right", "right to wrong"]] >= 0).all(axis=None)
    gained = table["wrong to right"] - table["right to wrong"]
    before = generative.seen(Known.model, windows.test.x)[1].argmax(1) == windows.test.activity
    np.testing.assert_allclose(table["accuracy"], before.mean() + gained, atol=1e-9)
    p = np.mean([generative.seen(Known.model, translator.translated(windows.test.x, d))[1] for d in range(10)], 0)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)
    expected = style_scores.score(windows.test, p, before)["macro F1"]
    assert end[style_scores.TRANSLATED, 10] == pytest.approx(expected)


# ----------------------------------------------------------------------------------------- domains and controls


def test_halves_share_no_sample_and_lie_a_window_apart(windows):
    first, second = style_scores.halves(windows.test)
    for recording in np.unique(windows.test.recording):
        early, late = (of.offset[of.recording == recording] for of in (first, second))
        assert late.min() - (early.max() + 64) >= 64
    short = windows.test.chosen(windows.test.offset < 32)
    with pytest.raises(ValueError, match="no two halves with windows of 64"):
        style_scores.halves(short)


@pytest.fixture(scope="module")
def study():
    return Study(Stages(load_settings("quick", "synthetic", "cpu")))


def test_an_oracle_learns_from_first_halves_and_translators_from_no_label(study, monkeypatch):
    asked = []

    def noted(cfg, windows, seed, turns, settings, training):
        asked.append(windows)
        return "a network"

    monkeypatch.setattr(style_transfer.supervised, "train", noted)
    assert len(study._trained) == len(asked) == 6
    (pair,) = study.pairs
    last = {(r, o) for r, o in zip(pair.test.recording, pair.test.offset, strict=True)}
    for of in asked:
        for part in (of.train, of.val):
            if part.series is pair.test.series:
                assert not last & set(zip(part.recording, part.offset, strict=True))
    assert (pair.target.activity == -1).all() and (pair.source.activity >= 0).all()
    assert sum(len(of.train) == len(pair.target) for of in asked) == 2


def test_other_sides_are_of_dsads_alone():
    with pytest.raises(SettingsError, match="recorded in dsads only"):
        Study(Stages(load_settings("quick", "synthetic", "cpu")), "other side")


def test_another_body_makes_the_same_movements():
    plain, shift = synthetic.body(9, 2), synthetic.Shift()
    other = synthetic.body(9, 2, shift=shift)
    n = len(other.centres)
    assert n < len(plain.centres), "slower events are fewer"
    np.testing.assert_allclose(other.scales, plain.scales[:n] * shift.strength)
    gaps = [np.diff(of.centres[:n].mean(1)) for of in (plain, other)]
    jitter = gaps[1] - gaps[0]
    assert jitter.std() < 1 and jitter.mean() == pytest.approx(gaps[0].mean() * 0.25, rel=0.1)
    turned = [np.linalg.norm(of.background[:, :3], axis=1) for of in (plain, other)]
    assert np.corrcoef(*turned)[0, 1] > 0.2 and np.abs(turned[0] - turned[1]).max() < 0.5
    back = synthetic.plant(synthetic.body(9, 2, shift=synthetic.Shift(1.0, 1.0, 1.0, 0.0)), 3)
    np.testing.assert_allclose(back, synthetic.plant(plain, 3), atol=1e-4)
    for _, shape in synthetic.MOTIFS.values():
        longer = synthetic.stretched(shape, 1.2)
        assert len(longer) > len(shape) and abs(longer.sum()) < 1e-9
        assert np.abs(longer).max() == pytest.approx(np.abs(shape).max())


def test_shifted_data_change_the_test_people_alone_and_have_their_own_digest():
    moved = synthetic.shifted()
    plain = list(synthetic.read())
    assert moved.name == "synthetic-shifted"
    for own, of in zip(moved.items, plain, strict=True):
        assert np.array_equal(own.signal, of.signal) == (of.subject not in synthetic.SPLIT["test"])


def test_what_is_planted_is_measured(study):
    source = study.source.test.every(3)
    own = style_scores.planted(source.x, source.activity)
    assert own["right"].mean() > 0.9 and 0.8 < own["strength"].mean() < 1.2
    assert 20 < own["spacing"].median() < 30
    moved = style_scores.planted(study.pairs[0].test.x, study.pairs[0].test.activity)
    assert moved["strength"].mean() < 0.7 and moved["spacing"].median() > own["spacing"].median()


def test_controls_do_what_they_are_called(windows):
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    model.add_module("classes", nn.Linear(4, 3))
    x = windows.test.x
    own = style_scores.with_statistics_of(model, x)
    with torch.no_grad():
        h = own[1](own[0](torch.as_tensor(np.ascontiguousarray(x))))
    torch.testing.assert_close(h.mean((0, 2)), torch.zeros(4), atol=1e-3, rtol=0)
    assert float(model[1].running_mean.abs().sum()) == 0, "the classifier itself stays as it was"
    plain = generative.seen(model.eval(), x)[1]
    np.testing.assert_allclose(style_scores.coral(model, x, x, x), plain, atol=1e-6)
    flat = style_scores.standardized(windows.test)
    np.testing.assert_allclose(flat.x.mean(2), 0, atol=1e-5)
    assert flat.x.shape == x.shape and np.array_equal(flat.activity, windows.test.activity)
    aids = style_scores.augmentations(windows.axes)
    assert tuple(aids) == style_scores.AUGMENTED[:3]
    some = torch.as_tensor(np.ascontiguousarray(x[:4]))
    bent = transforms.warp(0.1)(some, torch.Generator().manual_seed(0))
    torch.testing.assert_close(bent[..., [0, -1]], some[..., [0, -1]])
    line = torch.linspace(0, 63, 64).expand(4, 3, 64)
    away = transforms.warp(0.1)(line, torch.Generator().manual_seed(0)) - line
    assert 0.5 < float(away.abs().max()) <= 6.3 + 1e-4


def test_domains_that_are_one_cannot_be_told_and_those_apart_can(windows):
    rng, split = np.random.default_rng(0), windows.train
    s, t = rng.standard_normal((2, len(split), 4))
    alike, apart = (style_scores.mixing(s, of, split, split) for of in (t, t + 5))
    assert abs(alike["AUC"] - 0.5) < 0.2 and apart["AUC"] > 0.95
    assert apart["MMD"] > 10 * alike["MMD"]
    own = style_scores.mixing(s + 20 * split.activity[:, None], t + 20 * split.activity[:, None], split, split)
    assert own["purity"] == 1 and abs(alike["purity"] - 1 / 3) < 0.1


def scored(of_aware: float) -> SimpleNamespace:
    """Three seeds whose class-aware translations are recognized with ``of_aware``, those of StarGAN v2 half as well."""
    aware, stargan, scores = style_transfer.AWARE, style_transfer.STARGAN, style_scores
    free = [(kind, 1) for kind in (scores.NONE, scores.ADABN, scores.CORAL, scores.STANDARD, scores.ORACLE)]
    free += [(kind, scores.N) for kind in scores.AUGMENTED]
    made = [(kind, 1) for kind in (scores.TRANSLATED, scores.OWN_STYLE, scores.ALONE)]
    made += [(kind, scores.N) for kind in (scores.TRANSLATED, scores.WRONG, scores.ONE_Z, scores.WITH_ITSELF)]
    each = [("none", *of, 0.6) for of in free]
    each += [(name, *of, of_aware * by) for name, by in ((aware, 1), (stargan, 0.5)) for of in made]
    classifiers = (style_transfer.WEAK, style_transfer.STRONG)
    rows = [(*of, seed, by) for of in each for seed in range(3) for by in classifiers]
    table = pd.DataFrame(rows, columns=["variant", "kind", "n", "macro F1", "seed", "classifier"])
    kinds = (scores.NONE, scores.TRANSLATED, scores.OWN_STYLE, scores.WRONG)
    parts = pd.MultiIndex.from_product([(aware, stargan), kinds, ("all", "low"), range(3)])
    parts = parts.to_frame(index=False, name=["variant", "kind", "energy", "seed"]).assign(target="person 1")
    measured = parts.assign(kept=0.5, AUC=0.9, MMD=0.1, purity=0.5)
    return SimpleNamespace(
        base=replace(TINY, n_steps=style_transfer.FEWEST_STEPS),
        table=table.assign(target="person 1", share=1.0),
        kept=measured,
        mixed=measured,
        source=SimpleNamespace(activities=range(10)),
    )


@pytest.mark.parametrize(("of_aware", "lost"), [(0.09, True), (0.11, False)])
def test_translations_no_better_than_guessing_are_not_compared_with_each_other(of_aware, lost):
    study = scored(of_aware)
    verdicts = {of["id"]: of for of in style_transfer.judged(study)}
    void = {name for name, of in verdicts.items() if of["direction"] == "not testable"}
    assert void == (set(style_transfer.AMONG_THEMSELVES) if lost else set())
    assert verdicts["S-1 any"]["direction"] == verdicts["S-1 plain"]["direction"] == "no"
    assert ("no better (0.090) than by guessing (0.100)" in verdicts["S-1"]["why"]) is lost
