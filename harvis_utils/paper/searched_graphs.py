"""What graphs of a search have in common, and the verdicts on it (notebook 17b)."""

from collections.abc import Sequence

import numpy as np
import optuna
import pandas as pd
from scipy.stats import spearmanr

from harvis_utils.metrics.intervals import listed, number
from harvis_utils.paper import gate_search, generating
from harvis_utils.paper.gate_search import BETWEEN, BY, CHANCE, CHOSEN, COMPLETE, LABELS, LARGEST, PLAIN, Study
from harvis_utils.paper.generating import BESIDE, JUDGE, MAD, THROUGH
from harvis_utils.paper.systems import Question, best_rival, judge
from harvis_utils.paper.verdicts import NO, UNDECIDED, UNTESTABLE, YES
from harvis_utils.settings import GanSettings

LATE = "positive"
#: Choice: the best of the trials: a tenth, at least so many
BEST, FEWEST_BEST = 0.1, 4
#: Choice: a quarter counts as good for the importance of edges, which needs five such trials or more (Optuna's manual)
GOOD = 0.25
N_NULL = 39
#: Choice: with fewer the study says whether the code runs, not what a search finds
FEWEST_STEPS, FEWEST_TRIALS = 300, 20
#: Choice: of a permutation
LEVEL = 0.05


def courses(trials: pd.DataFrame) -> pd.DataFrame:
    """The best "IS" and "FID" so far of completed trials, by "search" and number of "trials"; that is NaN before."""
    parts = []
    for name in ("searched", CHANCE, *PLAIN):
        columns = {}
        for measure, largest in LARGEST.items():
            own = trials[trials["kind"] == (BY[measure] if name == "searched" else name)].sort_values("trial")
            values = own[measure].where(own["state"] == COMPLETE).to_numpy()
            columns[measure] = (np.fmax if largest else np.fmin).accumulate(values)
        parts.append(pd.DataFrame({"search": name, "trials": np.arange(1, len(values) + 1)} | columns))
    return pd.concat(parts, ignore_index=True)


def ranked(trials: pd.DataFrame, kind: str, measure: str = "IS") -> tuple[pd.DataFrame, int]:
    """Completed trials of a kind, the best first, and how many of them count as the best."""
    own = trials[trials["kind"].eq(kind) & trials["state"].eq(COMPLETE)]
    own = own.sort_values(measure, ascending=not LARGEST[measure], kind="stable")
    return own, min(len(own), max(FEWEST_BEST, round(BEST * len(own))))


def frequencies(own: pd.DataFrame, n_best: int) -> pd.DataFrame:
    """By edge and gate the share among the ``n_best`` first trials minus that among all."""
    gates = own[list(LABELS.values())]
    shares = [part.apply(lambda column: column.value_counts(normalize=True)) for part in (gates[:n_best], gates)]
    best, every = (of.reindex(gate_search.GATES).fillna(0.0) for of in shares)
    return (best - every).T.rename_axis(index="edge", columns="gate")


def overrepresented(
    own: pd.DataFrame, n_best: int, edges: Sequence[tuple[str, str]], gate: str, n_draws: int, seed: int = 0
) -> dict:
    """Is a gate more frequent at ``edges`` of the ``n_best`` first trials than at those of all? By permutation.

    "excess" is the difference of the shares; "p" the share of draws of as many trials from all, this one counted, that
    have as much or more, "p, less" as little or less; "each" (trial,) is the excess of each of the best.
    """
    share = own[[LABELS[edge] for edge in edges]].eq(gate).mean(axis=1).to_numpy()
    rng, found = np.random.default_rng(seed), share[:n_best].mean()
    null = np.array([rng.permutation(share)[:n_best].mean() for _ in range(n_draws)])
    more, less = (int((of >= -1e-12).sum()) for of in (null - found, found - null))
    p = {"p": (more + 1) / (n_draws + 1), "p, less": (less + 1) / (n_draws + 1)}
    return p | {"excess": float(found - share.mean()), "each": share[:n_best] - share.mean()}


def importance(own: pd.DataFrame, measure: str = "IS", n_null: int = N_NULL, seed: int = 0) -> pd.DataFrame:
    """How much the choice at each edge decides whether a trial is good: PED-ANOVA (Watanabe et al. 2023).

    That is the Pearson divergence of the gates of good trials from those of all, as a share of the sum over edges.
    "by chance" is the 95 % point of the same where scores trade trials. Columns edge, importance, by chance.
    """
    names, rng = list(LABELS.values()), np.random.default_rng(seed)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=GOOD)

    def of(values: np.ndarray) -> list[float]:
        study = gate_search.new_study(LARGEST[measure])
        for value, params in zip(values, own[names].to_dict("records"), strict=True):
            about = {"params": params, "distributions": gate_search.CHOICES, "value": float(value)}
            study.add_trial(optuna.trial.create_trial(**about))
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return [found.get(name, 0.0) for name in names]

    values = own[measure].to_numpy()
    null = np.array([of(rng.permutation(values)) for _ in range(n_null)])
    return pd.DataFrame({"edge": names, "importance": of(values), "by chance": np.quantile(null, 0.95, axis=0)})


def foretold(trials: pd.DataFrame) -> dict[str, float]:
    """Rank correlation of what trials by chance score where a search may stop them with their scores at the end."""
    own, _ = ranked(trials, CHANCE)
    early = [column for column in own if " at " in column and not column.endswith(f" {own['steps'].max()}")]
    return {name: float(spearmanr(own[name], own[name.partition(" at ")[0]]).statistic) for name in early}


# ---------------------------------------------------------------------------------------------------- the questions

_FIGURE, _TEXT = "collaborative GANs, Fig. 4", "collaborative GANs, sec. 4.3"
_AGAIN = "trained again with new seeds, the best generator chosen by the first judge and scored by the second"
#: Choice: margins, fixed before any graph was searched on recordings of people
_ASKED = (
    Question("K4", _FIGURE, "the best graph of many that were tried is better than generators without one",
             "inception score of the searched graph over the best of as many graphs by chance, MAD-GAN, DCGAN + SN, "
             f"minus 1, {_AGAIN}",
             "gates shuffled; the source's graph; all gates open; as found, over the best plain seed as found",
             0.05, "relative"),
    Question("K4 late", _FIGURE, "in the best graph what a generator learns from others comes late",
             "share of gates that open with training, between generators, in the best graphs by chance minus in all, "
             "direction by permutation",
             "the same of the search, which prefers what it tried; edges from the discriminator; FID", 0.0, "share"),
    Question("K6 FID", _TEXT, "a search by FID would have the lower FID",
             "FID of the graph searched by IS minus that of the graph searched by FID, in distances of two halves of "
             f"the training windows, {_AGAIN}",
             "the same of graphs by chance; FID of MAD-GAN; to people held out; the first judge", 2.0),
    Question("K6 IS", _TEXT, "a search by FID would have the lower inception score",
             f"inception score of the graph searched by IS over that of the graph searched by FID, minus 1, {_AGAIN}",
             "the same of graphs by chance; the first judge", 0.05, "relative"),
)  # fmt: skip
QUESTIONS = {of.id: of for of in _ASKED}


def wide(search: Study, column: str) -> pd.DataFrame:
    """A column of what was trained again by seed and row; of shuffled gates the mean of their graphs."""
    return search.retrained.pivot_table(column, "seed", "row", sort=False)


def too_small(search: Study) -> str:
    """Why nothing is judged, where judges know too little, or little was trained or tried."""
    own = search.own
    if search.study.unfit:
        return search.study.unfit
    if own.n_steps < FEWEST_STEPS or own.n_trials < FEWEST_TRIALS:
        tried = f"{own.n_trials} trials of {own.n_steps} steps"
        return f"{tried} are a smoke test, {FEWEST_TRIALS} of {FEWEST_STEPS} or more would be a search"
    return generating.too_short(GanSettings(n_steps=own.n_retrained))


def late(search: Study, kind: str = CHANCE, measure: str = "IS", edges: Sequence = BETWEEN) -> dict:
    """:func:`overrepresented` for gates that open with training, among the best trials of a kind."""
    return overrepresented(*ranked(search.trials, kind, measure), edges, LATE, search.own.n_draws)


def lateness(search: Study) -> dict[str, dict]:
    """:func:`late` of graphs by chance, which judges, as they are drawn evenly, and of what stands beside it."""
    from_d = [edge for edge in gate_search.EDGES if edge[0] == "D"]
    found = {CHANCE: late(search), BY["IS"]: late(search, BY["IS"]), "by chance, by FID": late(search, measure="FID")}
    return found | {"from the discriminator": late(search, edges=from_d)}


def judged(search: Study) -> list[dict]:
    """The verdicts."""
    missing = too_small(search)
    score, distance = wide(search, "IS"), wide(search, "FID")
    first = {measure: wide(search, f"{measure}, first judge") for measure in LARGEST}
    won, other, rivals = BY["IS"], BY["FID"], [CHOSEN["IS"], *PLAIN]

    def over(table: pd.DataFrame, row: str, beaten: Sequence[str]) -> pd.Series:
        return table[row] / best_rival(table, beaten) - 1

    controls = {f"over {name}": over(score, won, [name]) for name in rivals}
    beside = [name for name in (gate_search.SHUFFLED, gate_search.SOURCE, THROUGH) if name in score]
    controls |= {name: over(score, name, rivals) for name in beside}
    controls |= {"first judge": over(first["IS"], won, rivals)}
    lucky = max(search.winner(name, "IS")["IS, second judge"] for name in PLAIN)
    as_found = search.winner(won, "IS")["IS, second judge"]
    controls |= {"best trial as found, over the best plain seed as found": as_found / lucky - 1}
    found = [judge(QUESTIONS["K4"], over(score, won, rivals), controls, missing)]

    own, *others = lateness(search).items()
    controls = {f"{name} (p = {of['p']:.2g})": of["excess"] for name, of in others}
    found.append(by_permutation(QUESTIONS["K4 late"], own[1], controls, missing))

    def farther(table: pd.DataFrame, row: str, than: str, who: str) -> pd.Series:
        return (table[row] - table[than]) / search.halves[who]

    pair, chance, held = (won, other), (CHOSEN["IS"], CHOSEN["FID"]), wide(search, "FID, held out, all")
    controls = {CHANCE: farther(distance, *chance, BESIDE), MAD: farther(distance, MAD, other, BESIDE)}
    controls |= {"to people held out, all generators together": farther(held, *pair, BESIDE)}
    controls |= {"first judge": farther(first["FID"], *pair, JUDGE)}
    found.append(judge(QUESTIONS["K6 FID"], farther(distance, *pair, BESIDE), controls, missing))
    controls = {CHANCE: over(score, chance[0], chance[1:]), "first judge": over(first["IS"], won, [other])}
    found.append(judge(QUESTIONS["K6 IS"], over(score, won, [other]), controls, missing))
    return found


def by_permutation(question: Question, found: dict, controls: dict, missing: str) -> dict:
    """A verdict on what :func:`overrepresented` found, with the direction of the permutation, not of the interval."""
    entry = judge(question, found["each"], controls, missing)
    p = {"p": found["p"], "why": f"{entry['why'].rstrip('.')}; p = {found['p']:.2g}."}
    if entry["direction"] == UNTESTABLE:
        return entry | p
    told = YES if found["p"] < LEVEL else NO if found["p, less"] < LEVEL else UNDECIDED
    return entry | p | {"direction": told, "why": f"{told.capitalize()}. {p['why'].partition('. ')[2]}"}


#: the first sentence, by the direction of K4
_FIRST = {
    YES: "Yes: the searched graph, trained again, has a higher inception score than anything as dear without a search.",
    NO: "No: a search for a graph finds nothing that as many graphs by chance, or plain generators, do not have.",
    UNDECIDED: "It is open whether a search finds a graph that is better than chance and plain generators.",
    UNTESTABLE: "Nothing can be told here: too little was trained or tried, or the judge knows too little.",
}


def answer(search: Study, verdicts: Sequence[dict]) -> str:
    """The answer to the notebook's title, with what wins as much without a search."""
    told = {of["id"]: of["direction"] for of in verdicts}
    mean = search.retrained.groupby("row", sort=False)[["IS", "FID"]].mean()
    said = {name: f"{name} {number(of['IS'])} ({number(of['FID'])})" for name, of in mean.iterrows()}
    won = BY["IS"]
    better = [said[name] for name in mean.index if name != won and mean["IS"][name] >= mean["IS"][won]]
    same = search.graph(won, "IS") == search.graph(CHANCE, "IS")
    shared = (
        " The best graph of the search is that of chance: one of the first, which both have in common." if same else ""
    )
    best, lucky = search.winner(won, "IS"), max((search.winner(n, "IS") for n in PLAIN), key=lambda of: of["IS"])
    return (
        f"**{_FIRST[told['K4']]}** Inception score (and FID) trained again is {said[won]}; as high or higher: "
        f"{listed(better, '; ')}.{shared} While it was searched, in {search.own.n_steps} steps, the best trial had "
        f"{number(best['IS'])} by the judge that chose it; the best of as many plain seeds, {lucky['kind']}, had "
        f"{number(lucky['IS'])}. Do gates that open late belong to good graphs: {told['K4 late']}."
    )
