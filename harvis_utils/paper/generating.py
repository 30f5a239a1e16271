"""Generators that teach each other (notebook 17): what their source says of them, and what decides it.

All rows have one base of settings. Scores are of equally many windows everywhere: of each generator for the same latent
vectors, and of all generators of a row together ("all"), an equal part from each.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from harvis_utils.data import windowing
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.lenses import gan_dissection
from harvis_utils.metrics import generative
from harvis_utils.metrics.intervals import listed, number
from harvis_utils.networks import generator
from harvis_utils.paper.stages import Stages
from harvis_utils.paper.systems import Question, best_rival, judge, told
from harvis_utils.paper.verdicts import NO, UNDECIDED, UNTESTABLE, YES
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import GanSettings, ModelSettings
from harvis_utils.store.results import kept
from harvis_utils.training import adversarial, supervised
from harvis_utils.training.adversarial import Game
from harvis_utils.training.supervised import Network

PLAIN, SPECTRAL, MAD, TAUGHT = "DCGAN", "DCGAN + SN", "MAD-GAN", "transfer"
THROUGH, OTHER_GRAPH, WIDE = "all through", "gates shuffled", "one wide generator"
#: Paper (source, section 4): alpha as printed, and what weighs as much in one dimension, where maps have fewer samples
LITERAL = {f"{TAUGHT}, alpha 177": 177.0, f"{TAUGHT}, alpha 1000": 1000.0}
#: rows of the source's first table
COMPARED = (PLAIN, SPECTRAL, MAD, TAUGHT)
ROWS = (*COMPARED, *LITERAL, THROUGH, OTHER_GRAPH, WIDE)
#: Paper (source, Fig. 4), as far as its text tells: late lessons for G1, from the others at once for G3, none for G2
GRAPH = (("G2", "G1", "positive"), ("G3", "G1", "positive"), ("G1", "G3", "through"), ("G2", "G3", "through"))
#: Choice: the same gates at other edges; no renaming of generators makes them the same graph
SHUFFLED = (("G3", "G1", "positive"), ("G1", "G2", "positive"), ("G2", "G1", "through"), ("G2", "G3", "through"))
OPEN = tuple((*edge, "through") for edge in permutations(("G1", "G2", "G3"), 2))
ALL, FIRST, SECOND = "all", "G1", "G2"
JUDGE, BESIDE = "judge", "second judge"
#: latent vectors of all windows that are scored
LATENT_SEED = 7
#: Choice: with fewer steps the study says whether the code runs, not what generators are
FEWEST_STEPS = 1000
#: rows of which curves are shown
SHOWN = (*COMPARED, WIDE)
REPEATED, HELD_OUT, HALF = "one window a class, repeated", "held-out people", "half of training"
FLAT = "flat, real means"


# ------------------------------------------------------------------------------------------------------ what is made


def settings_of(base: GanSettings, train: windowing.Split, alpha: float) -> dict[str, GanSettings]:
    """Settings by row; the wide generator and its discriminator have as many weights as those of MAD-GAN together."""
    three = replace(base, n_generators=3, alpha=alpha)
    widths = np.arange(base.n_units, 2 * base.n_units + 1)
    law = np.polyfit([1, 2, 3], [n_weights(train, replace(base, n_units=n)) for n in (1, 2, 3)], 2)  # it is exact
    wide = int(widths[np.abs(np.polyval(law, widths) - n_weights(train, three)).argmin()])
    graphs = {TAUGHT: GRAPH, THROUGH: OPEN, OTHER_GRAPH: SHUFFLED}
    found = {PLAIN: replace(base, norm="batch"), SPECTRAL: base, MAD: replace(three, alpha=1.0)}
    found |= {WIDE: replace(base, n_units=wide)} | {name: replace(three, gates=gates) for name, gates in graphs.items()}
    found |= {name: replace(three, gates=GRAPH, alpha=printed) for name, printed in LITERAL.items()}
    return {name: found[name] for name in ROWS}


def n_weights(train: windowing.Split, settings: GanSettings) -> int:
    """How many numbers all networks of a game learn."""
    with supervised.drawing(0):
        generators, discriminator = generator.networks(train, settings)
    return sum(of.numel() for network in (*generators, discriminator) for of in network.parameters())


def sets_of(game: Game, n: int) -> dict[str, np.ndarray]:
    """``n`` windows of each generator, of the same latent vectors, and of ``ALL``, of other ones each."""
    each = [adversarial.generated(own, n, LATENT_SEED) for own in game.generators]
    mixed = np.empty_like(each[0])
    for i, x in enumerate(each):
        mixed[i :: len(each)] = x[i :: len(each)]
    named = {f"G{i + 1}": x for i, x in enumerate(each)} if len(each) > 1 else {}
    return {ALL: mixed} | named


def _compared(windows: Windows, n: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return generative.reference(windows, n, rng), generative.controls(windows, n, rng)


@kept("gans", apart=("device",))
def judged_windows(
    own: Network, windows: Windows, settings: GanSettings | None, seed: int, n: int, *, device: str | None = None
) -> pd.DataFrame:
    """:func:`generative.by_judge` of a game at each of its stages ("share"), and "apart", generators from each other.

    Without ``settings`` of the controls.
    """
    real, controls = _compared(windows, n)
    if settings is None:
        return generative.by_judge(own.model, controls, real)
    found, parts = adversarial.trained(windows, settings, seed, device=device), []
    for share in settings.stages:
        sets = sets_of(adversarial.read(windows, settings, found, share), n)
        between = generative.apart(own.model, {name: x for name, x in sets.items() if name != ALL})
        parts.append(generative.by_judge(own.model, sets, real).assign(share=share, apart=between))
    return pd.concat(parts, ignore_index=True)


@kept("gans", apart=("device", "truth"))  # windows say which motifs are in them
def measured_windows(
    windows: Windows,
    settings: GanSettings | None,
    seed: int,
    n: int,
    truth: PlantedMotifs | None,
    *,
    device: str | None = None,
) -> pd.DataFrame:
    """:func:`generative.without_judge` of a trained game, and :func:`generative.alike`; else of the controls."""
    real, controls = _compared(windows, n)
    if settings is None:
        return generative.without_judge(windows, controls, real, truth)
    sets = sets_of(adversarial.read(windows, settings, adversarial.trained(windows, settings, seed, device=device)), n)
    same = generative.alike({name: x for name, x in sets.items() if name != ALL})
    return generative.without_judge(windows, sets, real, truth).assign(**same)


class Study:
    """Judges, generators and their scores, each made where it is missing."""

    def __init__(self, run: Stages):
        self.cfg, self.own, self.truth = run.cfg, run.cfg.generation, run.truth
        self.made_up = run.recordings.dataset.made_up
        self.windows = windowing.cut(run.recordings, self.own.windows)
        smallest = min(len(self.windows.train) // 2, len(self.windows.val), len(self.windows.test))
        self.n = min(self.own.n_scored, smallest)

    @cached_property
    def judges(self) -> dict[str, Network]:
        """The judge that decides, and the one beside it; see :attr:`unfit`."""
        jobs = list(zip(self.own.judge_seeds, (self.own.judge, self.own.second), strict=True))
        about = (self.cfg, self.windows)
        found = side_by_side(
            self.cfg, lambda job: supervised.train(*about, job[0], None, job[1], self.own.judging), jobs
        )
        return dict(zip((JUDGE, BESIDE), found, strict=True))

    @cached_property
    def unfit(self) -> str:
        """Why no score here may be believed: a judge that is not :func:`generative.admitted`; mostly nothing."""
        try:
            for one in self.judges.values():
                generative.admitted(one, self.windows, self.own.least_f1[self.made_up])
        except generative.JudgeError as error:
            return str(error)
        return ""

    @cached_property
    def alpha(self) -> float:
        """Geometric mean of what balances both pulls in generators of other seeds, to three digits."""
        three = replace(self.own.gan, n_generators=3)
        jobs = self.own.choosing_seeds
        found = side_by_side(
            self.cfg, lambda seed: adversarial.balanced_alpha(self.windows, three, seed), jobs, "alpha"
        )
        return float(f"{np.exp(np.mean(np.log(found))):.3g}")

    @cached_property
    def rows(self) -> dict[str, GanSettings]:
        """Settings of every row."""
        return settings_of(self.own.gan, self.windows.train, self.alpha)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        """By row, seed and set: "judged" (judge and stage too) and "measured"; of the controls "seed" is missing.

        "kind" is the row, and of controls the set.
        """
        jobs = [(name, settings, seed) for seed in self.own.seeds for name, settings in self.rows.items()]
        jobs.append(("control", None, 0))
        judges = self.judges  # made before many want them at once

        def one(job: tuple) -> tuple[pd.DataFrame, pd.DataFrame]:
            name, settings, seed = job
            about, device = (self.windows, settings, seed, self.n), self.cfg.device
            parts = {who: judged_windows(of, *about, device=device) for who, of in judges.items()}
            said = pd.concat(parts, names=["judge"]).reset_index("judge")
            other = measured_windows(*about, self.truth, device=device)
            about = {"row": name, "seed": seed if settings else np.nan}
            return tuple(of.assign(kind=name if settings else of["set"], **about) for of in (said, other))

        found = zip(*side_by_side(self.cfg, one, jobs, "generators"), strict=True)
        return dict(zip(("judged", "measured"), (pd.concat(parts, ignore_index=True) for parts in found), strict=True))

    def game(self, name: str, seed: int) -> Game:
        """The trained networks of a row."""
        settings = self.rows[name]
        return adversarial.read(self.windows, settings, adversarial.trained(self.windows, settings, seed))

    def units(self, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Units of a row's discriminators, with and without training, and of its first generators, by seed."""
        own, settings, split = self.own, self.rows[name], self.windows.train.every(self.own.thinning)
        known = gan_dissection.known_concepts(self.windows, split, self.truth)

        def one(job: tuple[int, str]) -> pd.DataFrame:
            seed, weights = job
            if weights == "generator":
                found = gan_dissection.of_generator(self.windows, settings, seed, own.n_silenced, own.n_draws)
            else:
                about = (own.thinning, known, own.n_draws, weights == "trained")
                found = gan_dissection.of_discriminator(self.windows, settings, seed, *about)
            return found.assign(seed=seed, weights=weights)

        jobs = [(seed, weights) for weights in ("trained", "random weights", "generator") for seed in own.seeds]
        table = pd.concat(side_by_side(self.cfg, one, jobs, "units"), ignore_index=True)
        table["p below 0.05"] = (table["p"] < 0.05).where(table["p"].notna()).astype(float)
        made = table["weights"] == "generator"
        return table[~made], table[made]

    def losses(self, n_bins: int = 40) -> pd.DataFrame:
        """Losses along training, of ``SHOWN`` rows, means over ``n_bins`` stretches and over seeds."""
        parts = []
        for name, settings in ((name, self.rows[name]) for name in SHOWN):
            every = [adversarial.trained(self.windows, settings, seed)["losses"] for seed in self.own.seeds]
            stretch = np.array_split(torch.stack(every).mean(0).numpy(), min(n_bins, settings.n_steps))
            steps = np.cumsum([len(of) for of in stretch])
            values = {"discriminator": [of[:, 0].mean() for of in stretch]}
            values |= {"generators, with what they are taught": [of[:, 1:].mean() for of in stretch]}
            parts.append(pd.DataFrame({"row": name, "step": steps} | values))
        return pd.concat(parts, ignore_index=True)


def by_generator(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """All measures of every trained row, seed and set at the end of training, by the judge that decides."""
    scores = final(tables["judged"]).drop(columns=["judge", "share", "kind"])
    return scores.merge(tables["measured"].drop(columns=["kind"]), on=["row", "seed", "set"])


def together(table: pd.DataFrame) -> pd.DataFrame:
    """Of scores those of all generators of a row together, and of the controls."""
    return table[table["set"].eq(ALL) | table["seed"].isna()]


# ------------------------------------------------------------------------------------------- the graph is general


@kept("gans")
def classifiers(
    windows: Windows, model: ModelSettings, graph: Sequence[tuple[str, str, str]], seed: int, n_steps: int = 150
) -> dict[str, float]:
    """Two classifiers "A" and "B" in the same kind of graph: macro F1 of each on the test people.

    ``graph`` are edges (from, to, gate). From "labels" leads cross entropy, from the other classifier the
    Kullback-Leibler divergence from its probabilities, of which only the one taught learns.
    """
    nodes = {name: supervised.new_model(windows, replace(model, dropout=0.0), seed + i) for i, name in enumerate("AB")}
    optimizers = {name: torch.optim.Adam(of.parameters(), 4e-3) for name, of in nodes.items()}
    x, y = torch.as_tensor(windows.train.x), torch.as_tensor(windows.train.activity)
    gates, noise = {(source, to): name for source, to, name in graph}, torch.Generator().manual_seed(seed)
    for step in range(n_steps):
        chosen = torch.randint(len(x), (128,), generator=noise)
        scores = {name: of.train()(x[chosen]) for name, of in nodes.items()}

        def loss(source: str, to: str, scores=scores, chosen=chosen) -> torch.Tensor:
            if source == "labels":
                return F.cross_entropy(scores[to], y[chosen])
            return F.kl_div(scores[to].log_softmax(1), scores[source].detach().softmax(1), reduction="batchmean")

        losses = adversarial.node_losses(gates, loss, step / max(1, n_steps - 1))
        for name, of in losses.items():
            optimizers[name].zero_grad(set_to_none=True)
            of.backward()
            optimizers[name].step()
    found = {name: supervised.predict(of, windows.test) for name, of in nodes.items()}
    return {name: supervised.macro_f1(windows.test, classes) for name, classes in found.items()}


LABELS = (("labels", "A", "through"), ("labels", "B", "through"))
#: graphs of two classifiers
TWO = {
    "each by itself": LABELS,
    "A teaches B, later more": (*LABELS, ("A", "B", "positive")),
    "both teach each other": (*LABELS, ("A", "B", "through"), ("B", "A", "through")),
}


def two_classifiers(study: Study) -> pd.DataFrame:
    """:func:`classifiers` of every graph of ``TWO`` and seed: columns graph, seed, node, "macro F1"."""
    windows = study.windows.thinned(2000)
    jobs = [(name, seed) for name in TWO for seed in study.own.seeds]

    def one(job: tuple[str, int]) -> dict[str, float]:
        return classifiers(windows, study.own.second, TWO[job[0]], 10 * job[1])

    found = side_by_side(study.cfg, one, jobs)
    rows = [
        {"graph": name, "seed": seed, "node": node, "macro F1": f1}
        for (name, seed), of in zip(jobs, found, strict=True)
        for node, f1 in of.items()
    ]
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------- the questions

_TABLE, _PICTURES, _TEXT = "collaborative GANs, Tab. 1", "collaborative GANs, Fig. 3", "collaborative GANs, sec. 4.3"
_HALVES = "in distances of two halves of the training windows"
#: Choice: margins, fixed before any generator was trained on recordings of people
_ASKED = (
    Question("K1", _TABLE, "the proposed method has the highest inception score (5.37 against 4.57, 4.77, 4.77)",
             "inception score of all generators together, over the best of the other three rows, minus 1",
             "one real window a class, repeated; one generator with as many weights; other graphs and alphas",
             0.05, "relative"),
    Question("K1 best generator", _TABLE, "the same, each method by its best generator",
             "inception score of the best generator over that of the best of the other three rows, minus 1",
             "MAD-GAN's best of three, DCGAN's best of all seeds", 0.05, "relative"),
    Question("K2", _TABLE, "DCGAN + SN has the lowest FID (21.17 against 23.77, 25.79, 28.76)",
             f"lowest FID of the other three rows minus that of DCGAN + SN, {_HALVES}",
             "FID to people held out; the second judge", 2.0),
    Question("K2 worst", _TABLE, "MAD-GAN has the highest FID (28.76)",
             f"FID of MAD-GAN minus the highest of the other three rows, {_HALVES}",
             "FID to people held out; the second judge", 2.0),
    Question("K3", _PICTURES, "taught generators make alike, better images of one latent vector",
             "correlation of generators' windows of one latent vector, with transfer minus without",
             "windows of different latent vectors", 0.05),
    Question("K3 variety", "collaborative GANs, sec. 2", "transfer takes away the bias of what each generator makes",
             "share of real windows of other people covered by single generators, with transfer minus without",
             "all generators together; half of the training windows", 0.02, "share"),
    Question("K5", _TEXT, "G1, which is taught, has a higher inception score than G2, which is not",
             "inception score of G1 over that of G2, minus 1",
             "the same of MAD-GAN, where nobody is taught, and where everybody is", 0.05, "relative"),
)  # fmt: skip
QUESTIONS = {of.id: of for of in _ASKED}


def final(judged: pd.DataFrame, who: str = JUDGE) -> pd.DataFrame:
    """Scores by one judge at the end of training."""
    return judged[(judged["judge"] == who) & (judged["share"] == 1.0)]


def wide(table: pd.DataFrame, column: str, own: str | None = ALL) -> pd.DataFrame:
    """A column by seed and row, of one set; with ``own`` None the mean over the sets of the table."""
    some = table[table["set"] == own] if own else table
    return some.pivot_table(column, "seed", "row", sort=False)


def too_short(settings: GanSettings) -> str:
    """Why nothing is judged, where generators have hardly been trained."""
    few = settings.n_steps < FEWEST_STEPS
    return f"{settings.n_steps} steps are a smoke test, {FEWEST_STEPS} or more would be training" if few else ""


def judged(study: Study) -> list[dict]:
    """The verdicts."""
    tables, cfg = study.tables, study.own
    scores, other = final(tables["judged"]), tables["measured"].dropna(subset=["seed"])
    control = tables["judged"][tables["judged"]["row"] == "control"].pivot(index="set", columns="judge")
    singles = scores[scores["set"] != ALL]
    found = {}

    def ask(name: str, values, controls: dict) -> None:
        found[name] = judge(QUESTIONS[name], values, controls, missing=study.unfit or too_short(cfg.gan))

    def above(table: pd.DataFrame, name: str, others: Sequence[str]) -> pd.Series:
        return table[name] / best_rival(table, others) - 1

    score, beaten = wide(scores, "IS"), [name for name in COMPARED if name != TAUGHT]
    controls = {name: above(score, name, beaten) for name in ROWS if name not in COMPARED}
    best = best_rival(score, beaten)
    controls |= {name: control.loc[name, ("IS", JUDGE)] / best - 1 for name in (REPEATED, HELD_OUT)}
    controls |= {BESIDE: above(wide(final(tables["judged"], BESIDE), "IS"), TAUGHT, beaten)}
    ask("K1", above(score, TAUGHT, beaten), controls)
    top = scores.groupby(["seed", "row"], sort=False)["IS"]
    top = singles.groupby(["seed", "row"], sort=False)["IS"].max().combine_first(top.max()).unstack("row")
    lucky = np.full(len(top), top[[PLAIN, SPECTRAL]].to_numpy().max())
    controls = {MAD: above(top, MAD, [PLAIN, SPECTRAL])}
    ask("K1 best generator", above(top, TAUGHT, beaten), controls | {"over DCGAN's best seed": top[TAUGHT] / lucky - 1})

    def leads(column: str, who: str, worst: bool) -> pd.Series:
        table, halves = wide(final(tables["judged"], who), column), control.loc[HALF, ("FID", who)]
        first = MAD if worst else SPECTRAL
        apart = table[first] - best_rival(table, [name for name in COMPARED if name != first], lowest=not worst)
        return (apart if worst else -apart) / halves

    for name, worst in (("K2", False), ("K2 worst", True)):
        controls = {"to people held out": leads("FID, held out", JUDGE, worst), BESIDE: leads("FID", BESIDE, worst)}
        ask(name, leads("FID", JUDGE, worst), controls)
    together, null = (wide(other, column) for column in ("alike", "alike, other vectors"))
    controls = {name: together[name] - together[MAD] for name in (THROUGH, OTHER_GRAPH, *LITERAL)}
    ask("K3", together[TAUGHT] - together[MAD], controls | {"other vectors": null[TAUGHT] - null[MAD]})
    cover, single = wide(scores, "covered"), wide(singles, "covered", None)
    controls = {"all generators together": cover[TAUGHT] - cover[MAD]}
    controls |= {f"{HALF}, minus MAD-GAN": control.loc[HALF, ("covered", JUDGE)] - single[MAD]}
    ask("K3 variety", single[TAUGHT] - single[MAD], controls)
    first, second = (wide(scores, "IS", who) for who in (FIRST, SECOND))
    ratio = first / second - 1
    ask("K5", ratio[TAUGHT], {name: ratio[name] for name in (MAD, THROUGH, OTHER_GRAPH, *LITERAL)})
    return list(found.values())


def trained_enough(table: pd.DataFrame) -> pd.Series:
    """By row, the change of FID from the last stage but one to the end, as a share: below 0 it still fell."""
    own = table[(table["judge"] == JUDGE) & (table["set"] == ALL)].dropna(subset=["share"])
    by = own.groupby(["row", "share"], sort=False)["FID"].mean().unstack("share")
    return by.iloc[:, -1] / by.iloc[:, -2] - 1


#: the first sentence, by the direction of "K1"
_FIRST = {
    YES: "Yes, by inception score: generators that teach each other beat all that do not.",
    NO: "No: generators that teach each other have no higher inception score than the best that do not.",
    UNDECIDED: "It is open whether generators that teach each other have a higher inception score than the rest.",
    UNTESTABLE: "Nothing can be told here: too few steps of training or seeds, or the judge knows too little.",
}


def answer(study: Study, verdicts: Sequence[dict]) -> str:
    """The answer to the notebook's title, with what wins the same score without any teaching or without moving."""
    table = study.tables["judged"]
    last = together(table[(table["judge"] == JUDGE) & (table["share"].eq(1) | table["row"].eq("control"))])
    mean = last.groupby("kind", sort=False)[["IS", "FID"]].mean()
    said = {name: f"{name} {number(own['IS'])} ({number(own['FID'])})" for name, own in mean.iterrows()}
    rows = mean.loc[[name for name in mean.index if name in ROWS]]
    better = [said[name] for name in rows.index if name != TAUGHT and mean["IS"][name] >= mean["IS"][TAUGHT]]
    false = [said[name] for name in generative.NO_MOVEMENT if mean["FID"][name] <= mean["FID"][HELD_OUT]]
    first = next(of for of in verdicts if of["id"] == "K1")
    unfit = f"**No score below may be believed: {study.unfit}.** " if study.unfit else ""
    if rows["IS"].max() < mean["IS"][FLAT] and rows["FID"].min() > mean["FID"][FLAT]:
        unfit += (
            f"**No generator comes as near to real windows as windows that do not move at all**, {said[FLAT]}; the "
            f"best row has {number(rows['IS'].max())} ({number(rows['FID'].min())}). What is compared here has hardly "
            "learned to move. "
        )
    by_other = told(first["controls"][BESIDE], "relative")
    return (
        f"{unfit}**{_FIRST[first['direction']]}** Inception score (and FID) is {said[TAUGHT]}; rows as high or higher: "
        f"{listed(better, '; ')}. By the second judge transfer has {by_other} against the best without it. By FID "
        f"these controls are no farther than other people: {listed(false, '; ')}."
    )
