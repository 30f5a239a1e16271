"""The search for a graph by which generators teach each other (notebook 17b), and what it is worth.

A graph gives each of nine edges one of four gates: from the discriminator to each of three generators, and between
these. A trial trains three generators by one graph, from a seed of its own, and counts by the best of them. The n-th
trials of all searches, graphs drawn by chance and plain generators have one seed, so that luck with seeds is the same.
Graphs by chance and plain seeds are never stopped early; they train more steps than a search.

Nothing of a search is stored but scores of trainings, by graph and seed: an interrupted one is begun anew, asks for the
same trials again, as its sampler has a seed, and finds their scores. Trials are asked for, reported and stopped in one
order, whoever is faster, and however many are trained side by side. A kill costs at most the way from one look at
trials to the next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from harvis_utils.data.windowing import Windows
from harvis_utils.metrics import generative
from harvis_utils.paper import generating
from harvis_utils.paper.generating import ALL, BESIDE, GRAPH, HALF, JUDGE, MAD, SPECTRAL, THROUGH
from harvis_utils.parallel import progress, side_by_side
from harvis_utils.settings import GanSettings, HarvisError, SearchSettings
from harvis_utils.store.results import kept
from harvis_utils.training import adversarial
from harvis_utils.training.adversarial import Training
from harvis_utils.training.supervised import Network

GENERATORS = ("G1", "G2", "G3")
BETWEEN = tuple(permutations(GENERATORS, 2))
EDGES = (*(("D", to) for to in GENERATORS), *BETWEEN)
#: names of edges: columns of tables of trials, with a gate each
LABELS = {edge: f"{edge[0]} to {edge[1]}" for edge in EDGES}
GATES = tuple(adversarial.GATES)
#: the gates of all ``EDGES``, in their order
Graph = tuple[str, ...]
#: what is searched for: True for the largest
LARGEST = {"IS": True, "FID": False}
BY = {measure: f"searched by {measure}" for measure in LARGEST}
CHANCE, SOURCE, SHUFFLED = "graphs by chance", "graph of the source", "gates shuffled"
CHOSEN = {measure: f"by chance, best {measure}" for measure in LARGEST}
PLAIN = (MAD, SPECTRAL)
#: Choice: of trial 0 of every kind; trial i has the i-th seed from here
FIRST_SEED = 10_000
SAMPLER_SEED = 0
#: Choice: trials before those that a sampler chooses, as Optuna has it; they are the first graphs by chance
N_STARTUP = 10
#: Choice: from so many trials on Hyperband stops them: each of its brackets needs ``N_STARTUP`` (Optuna's manual)
MANY_TRIALS = 40
COMPLETE, STOPPED, NOBODY_LEARNS = "complete", "stopped", "nobody learns"

# ------------------------------------------------------------------------------------------------------- graphs


def graph_of(gates: Sequence[tuple[str, str, str]]) -> Graph:
    """A graph, the gates of all ``EDGES``, of the edges (from, to, gate) that are not as in MAD-GAN."""
    found = adversarial.edges(GanSettings(n_generators=len(GENERATORS), gates=tuple(gates)))
    return tuple(found[edge] for edge in EDGES)


def gates_of(graph: Graph) -> tuple[tuple[str, str, str], ...]:
    """A graph as :class:`GanSettings` take it: (from, to, gate) of all edges."""
    return tuple((*edge, gate) for edge, gate in zip(EDGES, graph, strict=True))


def nobody_learns(graph: Graph) -> bool:
    """Whether the discriminator teaches no generator."""
    return all(gate == "cut off" for (source, _), gate in zip(EDGES, graph, strict=True) if source == "D")


def canonical(graph: Graph) -> Graph:
    """The same for all graphs that become equal when generators change their names."""
    gates, same = dict(zip(EDGES, graph, strict=True)), []
    for order in permutations(GENERATORS):
        name = {"D": "D"} | dict(zip(GENERATORS, order, strict=True))
        same.append(tuple(gates[name[source], name[to]] for source, to in EDGES))
    return min(same)


def shuffled(graph: Graph, n: int, seed: int = 0) -> list[Graph]:
    """At most ``n`` graphs with the same gates at other edges, none equal to another or to ``graph`` but for names.

    Gates of the discriminator stay its own, so that it teaches as much. There may be fewer, or none.
    """
    rng, many = np.random.default_rng(seed), len(GENERATORS)
    first, rest = (sorted(set(permutations(part))) for part in (graph[:many], graph[many:]))
    found, known = [], {canonical(graph)}
    for i in rng.permutation(len(first) * len(rest)):
        other = first[i // len(rest)] + rest[i % len(rest)]
        if len(found) < n and canonical(other) not in known:
            known.add(canonical(other))
            found.append(other)
    return found


# ------------------------------------------------------------------------------------------------------- trials


@kept("search", apart=("device", "training", "real"))  # training is of the settings and seed, real features of windows
def reached(
    windows: Windows,
    settings: GanSettings,
    seed: int,
    step: int,
    judges: Mapping[str, Network],
    n: int,
    training: Training,
    real: Mapping[str, np.ndarray],
    *,
    device: str | None = None,
    checkpoint: Path | None = None,
) -> pd.DataFrame:
    """Columns "IS" and "FID": of ``n`` windows of each generator ("set") after ``step`` steps by each "judge".

    ``training`` goes there from where it is. Of a training that diverged scores are NaN.
    """
    training.reach(step, checkpoint)
    rows = []
    for name, x in {} if training.diverged else training.generated(n, generating.LATENT_SEED).items():
        for who, own in judges.items():
            features, p = generative.seen(own.model, x)
            scores = {"IS": generative.inception_score(p), "FID": generative.frechet(features, real[who])}
            rows.append({"judge": who, "set": name} | scores)
    return pd.DataFrame(rows or [{"judge": who, "set": "G1", "IS": np.nan, "FID": np.nan} for who in judges])


def of_best(scores: pd.DataFrame, measure: str) -> dict[str, float]:
    """The ``measure``, by judge, of the generator that is the best one for the judge that decides."""
    by = scores.pivot(index="set", columns="judge", values=measure)
    best = by[JUDGE].fillna(-np.inf if LARGEST[measure] else np.inf)
    return by.loc[best.idxmax() if LARGEST[measure] else best.idxmin()].to_dict()


@dataclass(eq=False)
class _Kind:
    """A kind of trials: what proposes them, what they are told by, and which edges are open to choice."""

    study: optuna.Study
    measure: str
    edges: dict[str, CategoricalDistribution]


@dataclass(eq=False)
class _Going:
    """A trial on its way, and its row of the table."""

    kind: _Kind
    asked: optuna.Trial
    training: Training
    row: dict


class Study:
    """Searches, what stands beside them, and the winners trained again; each made where it is missing."""

    def __init__(self, study: generating.Study):
        self.study, self.cfg, self.windows = study, study.cfg, study.windows
        self.own: SearchSettings = study.cfg.search
        self.n = min(self.own.n_scored, study.n)
        self.base = replace(study.own.gan, n_steps=self.own.n_steps, stages=(1.0,))
        self.three = replace(self.base, n_generators=len(GENERATORS))
        inside = [max(1, round(share * self.own.n_steps)) for share in self.own.rungs]
        #: steps at which trials are looked at; the last is their end
        self.steps = sorted({*inside, self.own.n_steps})

    @cached_property
    def real(self) -> dict[str, np.ndarray]:
        """Each judge's features of the training windows that sets are compared with."""
        real = generative.reference(self.windows, self.n, np.random.default_rng(0))["training"]
        return {who: generative.seen(own.model, real)[0] for who, own in self.study.judges.items()}

    def by_graph(self, graph: Graph) -> GanSettings:
        """Settings of three generators that teach each other by a graph, with the alpha of notebook 17."""
        return replace(self.three, gates=gates_of(graph), alpha=self.study.alpha)

    def scores(self, training: Training, step: int) -> pd.DataFrame:
        """:func:`reached` of a training."""
        about = (self.windows, training.settings, training.seed, step, self.study.judges, self.n, training, self.real)
        return reached(*about, device=self.cfg.device)

    def _kinds(self) -> dict[str, _Kind]:
        # begun anew whenever trials are: a sampler that was interrupted is in the middle of its random numbers
        few, some = self.own.n_trials < MANY_TRIALS, optuna.pruners
        pruner = some.MedianPruner() if few else some.HyperbandPruner(1, len(self.steps), 3)
        found = {}
        for measure, largest in LARGEST.items():
            sampler = optuna.samplers.TPESampler(multivariate=True, n_startup_trials=N_STARTUP, seed=SAMPLER_SEED)
            found[BY[measure]] = _Kind(new_study(largest, sampler, pruner, measure), measure, CHOICES)
        for kind, choices in ((CHANCE, CHOICES), *((name, {}) for name in PLAIN)):
            sampler = optuna.samplers.RandomSampler(seed=SAMPLER_SEED)
            found[kind] = _Kind(new_study(True, sampler, some.NopPruner()), "IS", choices)
        return found

    @cached_property
    def trials(self) -> pd.DataFrame:
        """All trials: kind, trial, state, steps done, the gate of each edge, and :func:`of_best` IS and FID.

        Searches are by tree-structured Parzen estimators over all edges at once (Bergstra et al. 2011).
        "IS, second judge" are those of the same generators; "IS at <step>" what trials scored on their way.
        """
        _ = self.study.judges, self.study.alpha, self.real  # before many want them at once
        numbers, kinds, rows = range(self.own.n_trials), self._kinds(), []
        for first in progress(numbers[:: self.own.n_at_once], desc="trials", leave=False):
            live: dict[tuple[GanSettings, int], Training] = {}
            going = []
            for name, kind in kinds.items():
                for asked in [kind.study.ask(kind.edges) for _ in numbers[first : first + self.own.n_at_once]]:
                    graph = tuple(asked.params.values())
                    row = {"kind": name, "trial": asked.number, "state": NOBODY_LEARNS, "steps": 0} | asked.params
                    rows.append(row)
                    if graph and nobody_learns(graph):
                        kind.study.tell(asked, state=TrialState.PRUNED)
                        continue
                    settings = self.by_graph(graph) if graph else {MAD: self.three, SPECTRAL: self.base}[name]
                    training = Training(self.windows, settings, FIRST_SEED + asked.number, self.cfg.device)
                    going.append(_Going(kind, asked, live.setdefault((settings, training.seed), training), row))
            for rung, step in enumerate(self.steps, start=1):
                going = self._looked_at(going, rung, step)
        return pd.DataFrame(rows)

    def _looked_at(self, going: list[_Going], rung: int, step: int) -> list[_Going]:
        """The trials that go on after a step: all are brought there, then reported, then stopped, in one order."""
        apart = list(dict.fromkeys(one.training for one in going))  # searches begin with the same graphs
        found = side_by_side(self.cfg, lambda training: self.scores(training, step), apart)
        scores = dict(zip(apart, found, strict=True))
        for one in going:
            best = {measure: of_best(scores[one.training], measure) for measure in LARGEST}
            one.row |= {"steps": step} | {f"{measure} at {step}": of[JUDGE] for measure, of in best.items()}
            one.row |= {measure: of[JUDGE] for measure, of in best.items()}
            one.row |= {f"{measure}, second judge": of[BESIDE] for measure, of in best.items()}
            one.asked.report(one.row[one.kind.measure], rung)
        left, last = [], step == self.own.n_steps
        for one in going:
            value = one.row[one.kind.measure]
            if np.isnan(value) or (not last and one.asked.should_prune()):
                one.row["state"] = STOPPED
                one.kind.study.tell(one.asked, state=TrialState.PRUNED)
            elif last:
                one.row["state"] = COMPLETE
                one.kind.study.tell(one.asked, value)
            else:
                left.append(one)
        return left

    def winner(self, kind: str, measure: str) -> pd.Series:
        """The best trial of a kind by the judge that decides, of those trained to their end.

        Raises :class:`HarvisError` where there is none.
        """
        own = self.trials[self.trials["kind"].eq(kind) & self.trials["state"].eq(COMPLETE)]
        if own.empty:
            raise HarvisError(f"no trial of {kind!r} was trained to its end; set more (search.n_trials)")
        return own.loc[own[measure].idxmax() if LARGEST[measure] else own[measure].idxmin()]

    def graph(self, kind: str, measure: str) -> Graph:
        """The graph of a :meth:`winner`."""
        return tuple(self.winner(kind, measure)[list(LABELS.values())])

    @cached_property
    def rows(self) -> dict[str, list[GanSettings]]:
        """Settings of all that is trained again, by row; of shuffled gates one for each graph."""
        graphs = {BY[measure]: self.graph(BY[measure], measure) for measure in LARGEST}
        graphs |= {CHOSEN[measure]: self.graph(CHANCE, measure) for measure in LARGEST}
        graphs |= {SOURCE: graph_of(GRAPH), THROUGH: graph_of([(*edge, "through") for edge in BETWEEN])}
        found = {name: [self.by_graph(graph)] for name, graph in graphs.items()}
        found |= {MAD: [self.three], SPECTRAL: [self.base]}
        others = shuffled(graphs[BY["IS"]], self.own.n_shuffled)
        found |= {SHUFFLED: [self.by_graph(graph) for graph in others]} if others else {}
        return {name: [replace(of, n_steps=self.own.n_retrained) for of in own] for name, own in found.items()}

    @cached_property
    def retrained(self) -> pd.DataFrame:
        """All rows trained again with new seeds: row, seed and :func:`of_best` "IS", "FID" by the second judge.

        "..., first judge" are those by the judge that decided; "IS, all" and "FID, held out, all" are of all generators
        together, the latter's distance to other people. Of shuffled gates each graph has one seed, the seeds in turn.
        """
        seeds, jobs = self.own.seeds, []
        for name, every in self.rows.items():
            each = [(name, every[0], seed) for seed in seeds]
            turns = [(name, of, seeds[i % len(seeds)]) for i, of in enumerate(every)]
            jobs += turns if name == SHUFFLED else each
        _ = self.study.judges  # before many want them at once

        def one(job: tuple) -> dict:
            name, settings, seed = job
            about = (self.windows, settings, seed, self.study.n)
            parts = [
                generating.judged_windows(own, *about, device=self.cfg.device).assign(judge=who)
                for who, own in self.study.judges.items()
            ]
            scores, row = pd.concat(parts), {"row": name, "seed": seed}
            together = scores[scores["set"].eq(ALL) & scores["judge"].eq(BESIDE)].iloc[0]
            single = scores[scores["set"].ne(ALL)] if settings.n_generators > 1 else scores
            for measure in LARGEST:
                found = of_best(single, measure)
                row |= {measure: found[BESIDE], f"{measure}, first judge": found[JUDGE]}
            return row | {"IS, all": together["IS"], "FID, held out, all": together["FID, held out"]}

        return pd.DataFrame(side_by_side(self.cfg, one, jobs, "trained again"))

    @cached_property
    def halves(self) -> dict[str, float]:
        """By judge the FID between two halves of the training windows."""
        judges, about = self.study.judges, (self.windows, None, 0, self.study.n)
        found = {who: generating.judged_windows(own, *about, device=self.cfg.device) for who, own in judges.items()}
        return {who: float(of.set_index("set").loc[HALF, "FID"]) for who, of in found.items()}


#: which gates an edge may have, by the name of its parameter
CHOICES = {name: CategoricalDistribution(GATES) for name in LABELS.values()}


def new_study(largest: bool, sampler=None, pruner=None, name: str = "trials") -> optuna.Study:
    """A study in memory that looks for the largest value, or the smallest; it says nothing while it runs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line for every trial
    # Hyperband gives trials their brackets by the study's name
    about = {"direction": "maximize" if largest else "minimize", "study_name": name}
    return optuna.create_study(sampler=sampler, pruner=pruner, **about)
