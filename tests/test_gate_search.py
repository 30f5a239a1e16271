"""The search for a graph of generators: trials that can be killed and replayed, and what is concluded from them."""

import multiprocessing
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import fastjsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from optuna.distributions import CategoricalDistribution

from harvis_utils.data import windowing
from harvis_utils.paper import gate_search, generating, report, searched_graphs
from harvis_utils.paper.gate_search import (
    BY,
    CHANCE,
    CHOSEN,
    COMPLETE,
    EDGES,
    GATES,
    LABELS,
    NOBODY_LEARNS,
    STOPPED,
    Study,
    canonical,
    graph_of,
)
from harvis_utils.paper.generating import BESIDE, JUDGE, MAD, SPECTRAL
from harvis_utils.settings import LONG_WINDOWS, GanSettings, HarvisError, ModelSettings, SearchSettings
from harvis_utils.store.files import read_json
from harvis_utils.training import adversarial, supervised
from harvis_utils.training.adversarial import Game, Training

BASE = GanSettings(n_units=2, n_latent=4, batch_size=8, n_steps=6, stages=(1.0,))
TINY = SearchSettings(3, 6, n_retrained=6, seeds=(300, 301), n_shuffled=2, n_draws=200)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def windows(make_recordings):
    lengths = {(s, a): 64 + 16 * 20 for s in (1, 2, 3, 4) for a in range(3)}
    return windowing.cut(make_recordings(lengths), replace(LONG_WINDOWS, step=16))


@pytest.fixture(scope="module")
def study(windows):
    """A function that gives a new study of these settings, with judges that know nothing."""
    about = ModelSettings(4, n_layers=1, pool="mean", n_dense=8)
    judges = {who: SimpleNamespace(key=who, model=supervised.new_model(windows, about, 0)) for who in (JUDGE, BESIDE)}

    def new(own: SearchSettings = TINY) -> Study:
        cfg = SimpleNamespace(search=own, device="cpu")
        base = SimpleNamespace(gan=replace(BASE, n_steps=own.n_steps))
        return Study(SimpleNamespace(cfg=cfg, own=base, windows=windows, n=24, judges=judges, alpha=2.0, unfit=""))

    return new


@pytest.fixture
def without_training(monkeypatch):
    """Scores that are made up: gates that open late are good, later ones count more, and seeds are lucky."""

    def scores(self, training, step):
        late = sum(gate == "positive" and source != "D" for source, _, gate in training.settings.gates)
        value = 2 + late * step / training.settings.n_steps + np.random.default_rng(training.seed).normal(0, 0.3)
        return pd.DataFrame([{"judge": who, "set": "G1", "IS": value, "FID": 20 - value} for who in (JUDGE, BESIDE)])

    monkeypatch.setattr(Study, "scores", scores)


def random_graphs(n: int) -> list[tuple[str, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.choice(GATES, len(EDGES)).tolist()) for _ in range(n)]


# ------------------------------------------------------------------------------------------------------- graphs


def test_lessons_of_the_sources_graph_go_along_its_arrows(windows):
    graph = dict(zip(EDGES, graph_of(generating.GRAPH), strict=True))
    assert {edge for edge, gate in graph.items() if gate == "positive"} == {("G2", "G1"), ("G3", "G1")}
    assert {edge[1] for edge, gate in graph.items() if gate == "through" and edge[0] != "D"} == {"G3"}
    made = []
    for gate in ("cut off", "through"):
        game = Game(windows.train, replace(BASE, n_generators=3, alpha=50.0, gates=(("G2", "G1", gate),)), 0)
        game.step(0)
        made.append(game.generators)
    changed = [not torch.equal(a.out.weight, b.out.weight) for a, b in zip(*made, strict=True)]
    inside = [not torch.equal(a.stage1[0].weight, b.stage1[0].weight) for a, b in zip(*made, strict=True)]
    assert not any(changed[1:]) and inside == [True, False, False]


def test_shuffled_gates_are_never_the_same_graph_by_other_names():
    for graph in random_graphs(25):
        others = gate_search.shuffled(graph, 10)
        assert len({canonical(of) for of in (graph, *others)}) == 1 + len(others)
        assert all(sorted(of[:3]) == sorted(graph[:3]) and sorted(of[3:]) == sorted(graph[3:]) for of in others)
    renamed = graph_of([("G3", "G2", "positive"), ("D", "G2", "negative")])
    assert canonical(renamed) == canonical(graph_of([("G2", "G1", "positive"), ("D", "G1", "negative")]))
    assert canonical(renamed) != canonical(graph_of([("G2", "G1", "positive"), ("D", "G2", "negative")]))
    assert len(gate_search.shuffled(graph_of(generating.GRAPH), 10)) == 10
    assert gate_search.shuffled(("through",) * 9, 10) == []  # there is none


# ------------------------------------------------------------------------------------------------------ trainings


def test_training_in_parts_equals_training_in_one_go(windows, monkeypatch, tmp_path):
    settings = replace(BASE, n_generators=3, gates=generating.GRAPH, alpha=3.0, n_steps=12)
    whole = adversarial.read(windows, settings, adversarial.trained(windows, settings, 0)).generators

    def equal(training: Training) -> bool:
        pairs = zip(whole, training.game.generators, strict=True)
        return all(torch.equal(v, b.state_dict()[k]) for a, b in pairs for k, v in a.state_dict().items())

    parts = Training(windows, settings, 0)
    for step in (4, 8, 12):
        assert not equal(parts)
        parts.reach(step)
        parts.generated(5, 0)  # a look changes nothing
    assert equal(parts)

    monkeypatch.setattr(adversarial, "STEPS_KEPT", 5)
    killed, again = Training(windows, settings, 0), Training(windows, settings, 0)
    killed.reach(6)
    killed.reach(7, tmp_path)  # began with what had led there
    again.reach(12, tmp_path)
    assert equal(again)


def test_a_training_that_diverges_is_a_trial_that_was_stopped(study, monkeypatch):
    step = Game.step
    monkeypatch.setattr(Game, "step", lambda self, n: [np.nan] if self.seed % 2 and n == 3 else step(self, n))
    trials = study(replace(TINY, n_trials=2)).trials
    assert (trials["state"] == np.where(trials["trial"] == 1, STOPPED, COMPLETE)).all()
    assert trials["IS"].isna().equals(trials["state"] == STOPPED)


def test_graphs_by_which_nobody_learns_are_trials_that_were_not_begun(study, monkeypatch):
    cut = {name: CategoricalDistribution(("cut off",)) for name in LABELS.values() if name.startswith("D")}
    monkeypatch.setattr(gate_search, "CHOICES", gate_search.CHOICES | cut)
    own = study(replace(TINY, n_trials=2))
    trials = own.trials.set_index("kind")
    assert (trials.loc[[*BY.values(), CHANCE], "state"] == NOBODY_LEARNS).all() and len(trials) == 10
    assert (trials.loc[[*BY.values(), CHANCE], "steps"] == 0).all() and (trials.loc[MAD, "state"] == COMPLETE).all()
    with pytest.raises(HarvisError, match="no trial of 'searched by IS' was trained to its end; set more"):
        own.winner(BY["IS"], "IS")


# --------------------------------------------------------------------------------------------------- the search


def killed_at(study, step: int) -> None:
    """In a process of its own: the search, killed in the middle of its n-th step of training."""
    count, taken = [], Game.step

    def counted(self, number):
        count.append(number)
        if len(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return taken(self, number)

    Game.step = counted
    _ = study().trials


def test_a_killed_search_ends_as_an_uninterrupted_one(study, monkeypatch, own_folders):
    whole = study()
    seen, taken = [], Game.step
    monkeypatch.setattr(Game, "step", lambda self, number: seen.append(number) or taken(self, number))
    expected, n_steps = whole.trials, len(seen)
    for step in (n_steps // 4, 3 * n_steps // 4):
        monkeypatch.setenv("HARVIS_ARTIFACTS", str(own_folders / f"killed {step}"))
        process = multiprocessing.get_context("fork").Process(target=killed_at, args=(study, step))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        seen.clear()
        again = study()
        pd.testing.assert_frame_equal(again.trials, expected)
        assert again.graph(BY["IS"], "IS") == whole.graph(BY["IS"], "IS")
        assert n_steps - step < len(seen) < n_steps  # what was scored is not trained again
    left = [path.name for path in (own_folders / f"killed {step}").rglob("*.checkpoint")]
    assert not left


def test_two_workers_find_what_one_does(study, monkeypatch, own_folders):
    alone = study().trials
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(own_folders / "two"))
    torch.set_num_threads(2)
    pd.testing.assert_frame_equal(study().trials, alone)


@pytest.mark.parametrize("n_trials", [28, gate_search.MANY_TRIALS + 4])
def test_every_kind_has_as_many_trials_and_searches_stop_the_worse_ones(study, without_training, n_trials):
    own = study(replace(TINY, n_trials=n_trials, n_steps=30))
    trials = own.trials
    assert (trials.groupby("kind")["trial"].nunique() == n_trials).all()
    for kind in (CHANCE, MAD, SPECTRAL):
        assert not (trials.loc[trials["kind"] == kind, "state"] == STOPPED).any()
    names, by = list(LABELS.values()), trials.set_index("kind")
    if n_trials < gate_search.MANY_TRIALS:  # else brackets of Hyperband have first graphs of their own
        assert (by.loc[BY["IS"], names].to_numpy() == by.loc[CHANCE, names].to_numpy())[:10].all()
    searched = by.loc[BY["IS"]]
    assert 0.1 < (searched["state"] == STOPPED).mean() < 0.9 and set(searched["steps"]) <= {0, 10, 20, 30}
    late = by[names[3:]].eq("positive").sum(axis=1)
    assert late[BY["IS"]][-10:].mean() > late[CHANCE].mean() + 0.5  # it learned what is good
    pd.testing.assert_frame_equal(study(own.own).trials, trials)
    course = searched_graphs.courses(trials).set_index("search")
    assert course.loc["searched", "IS"].max() == own.winner(BY["IS"], "IS")["IS"]
    assert (course.groupby("search")["FID"].diff().dropna() <= 0).all()
    assert searched_graphs.foretold(trials)["IS at 20"] > 0.5


def test_winners_are_trained_again_with_new_seeds(study, without_training):
    own = study()
    assert not {*own.own.seeds} & {gate_search.FIRST_SEED + i for i in range(own.own.n_trials)}
    rows = own.rows
    assert graph_of(rows[BY["IS"]][0].gates) == own.graph(BY["IS"], "IS") and rows[MAD][0].gates == ()
    assert [len(of) for of in rows.values()] == [1] * 8 + [2]
    again = own.retrained
    assert set(again.groupby("row")["seed"].apply(tuple)) == {(300, 301)}
    assert again["IS"].between(1 - 1e-5, 3 + 1e-5).all() and (again["FID"] >= 0).all()


# --------------------------------------------------------------------------------------------- what is concluded


def trials_of(n: int, planted: bool, seed: int) -> pd.DataFrame:
    graphs = np.random.default_rng(seed).choice(GATES, (n, len(EDGES)))
    table = pd.DataFrame(graphs, columns=list(LABELS.values())).assign(kind=CHANCE, state=COMPLETE, trial=range(n))
    value = np.random.default_rng(seed + 1000).normal(size=n) * 0.2
    return table.assign(IS=3 + value + planted * (graphs[:, 3:] == "positive").sum(1), FID=10 - value)


def test_the_permutation_finds_what_was_planted_and_no_more():
    def p(planted, seed, edges=gate_search.BETWEEN):
        own = searched_graphs.ranked(trials_of(60, planted, seed), CHANCE)
        return searched_graphs.overrepresented(*own, edges, "positive", 200)["p"]

    assert max(p(True, seed) for seed in range(10)) < 0.05
    null = [p(False, seed) for seed in range(60)]
    assert np.mean(np.array(null) < 0.05) < 0.12 and 0.35 < np.mean(null) < 0.7
    assert np.mean([p(True, seed, EDGES[:3]) for seed in range(10)]) > 0.2  # where nothing was planted
    best, n_best = searched_graphs.ranked(trials_of(60, True, 0), CHANCE)
    table = searched_graphs.frequencies(best, n_best)
    assert n_best == 6 and table.shape == (9, 4) and table["positive"][3:].mean() > 0.2
    assert np.allclose(table.sum(axis=1), 0)


def test_the_edge_that_decides_is_important_and_others_are_not():
    own = trials_of(60, False, 0)
    own["IS"] += 3 * own["G2 to G1"].eq("positive")
    found = searched_graphs.importance(own, n_null=19).set_index("edge")
    assert found["importance"].idxmax() == "G2 to G1" and found["importance"].sum() == pytest.approx(1)
    assert found.loc["G2 to G1", "importance"] > found.loc["G2 to G1", "by chance"]


def finished(scores: dict, planted: bool = False, n_steps: int = 300, n_retrained: int = 1000) -> SimpleNamespace:
    """A search whose rows, trained again, score alike but for what ``scores`` say of (row, column)."""
    rows = [*BY.values(), *CHOSEN.values(), MAD, SPECTRAL, generating.THROUGH, gate_search.SOURCE, gate_search.SHUFFLED]
    told = {"IS": 4.0, "FID": 9.0, "IS, first judge": 4.0, "FID, first judge": 9.0, "FID, held out, all": 12.0}
    table = [
        {"row": row, "seed": seed} | told | {c: of for (r, c), of in scores.items() if r == row}
        for row in rows
        for seed in range(3)
    ]
    trials = trials_of(60, planted, 0)
    trials = pd.concat([trials.assign(kind=kind) for kind in (*BY.values(), CHANCE, MAD, SPECTRAL)])
    trials["IS, second judge"] = 4.5
    own = SimpleNamespace(trials=trials.reset_index(drop=True), retrained=pd.DataFrame(table))
    own.study = SimpleNamespace(unfit="")
    own.own = replace(TINY, n_trials=60, n_steps=n_steps, n_retrained=n_retrained)
    own.halves = {JUDGE: 0.5, BESIDE: 0.5}
    own.winner = lambda kind, measure: Study.winner(own, kind, measure)
    own.graph = lambda kind, measure: Study.graph(own, kind, measure)
    return own


def directions(own) -> dict[str, str]:
    return {of["id"]: of["direction"] for of in searched_graphs.judged(own)}


def test_verdicts_follow_what_was_trained_again():
    equal = directions(finished({}))
    assert set(equal) == set(searched_graphs.QUESTIONS)
    assert equal == {"K4": "no", "K4 late": "undecided", "K6 FID": "no", "K6 IS": "no"}
    better = {(BY["IS"], "IS"): 4.4, (BY["FID"], "FID"): 7.5}
    assert set(directions(finished(better, planted=True)).values()) == {"yes"}
    by_luck = better | {(CHOSEN["IS"], "IS"): 4.5, (BY["FID"], "FID"): 8.5}
    assert directions(finished(by_luck)) == {"K4": "no", "K4 late": "undecided", "K6 FID": "no", "K6 IS": "yes"}
    smoke = searched_graphs.judged(finished(better, n_steps=24))
    assert {of["direction"] for of in smoke} == {"not testable"}
    assert smoke[1]["why"].startswith("Not testable: 60 trials of 24 steps are a smoke test")
    unfit = finished(better)
    unfit.study.unfit = "the judge's macro F1 is 0.62"
    assert all("macro F1 is 0.62" in of["why"] for of in searched_graphs.judged(unfit))


def test_the_answer_tells_what_wins_without_a_search():
    own = finished({(gate_search.SHUFFLED, "IS"): 4.6, (MAD, "IS"): 3.0})
    found = searched_graphs.judged(own)
    schema = {"definitions": read_json(report.SCHEMA)["definitions"], "$ref": "#/definitions/question"}
    for of in (*found, *searched_graphs.judged(finished({}, n_steps=8))):
        fastjsonschema.validate(schema, of)
    said = searched_graphs.answer(own, found)
    higher = said.split("as high or higher: ")[1].split(". The best graph of the search is that of chance")[0]
    assert said.startswith("**No: a search for a graph finds nothing") and "gates shuffled 4.60 (9.00)" in higher
    assert MAD not in higher and f"best of as many plain seeds, {MAD}" in said
    worst = own.trials["kind"].eq(CHANCE) & own.trials["IS"].eq(own.winner(CHANCE, "IS")["IS"])
    own.trials = own.trials[~worst]
    assert "is that of chance" not in searched_graphs.answer(own, found)
    late = next(of for of in found if of["id"] == "K4 late")
    assert late["why"].startswith("Undecided. ") and f"p = {late['p']:.2g}." in late["why"]
