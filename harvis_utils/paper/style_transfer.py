"""Windows of other people in the style of those that a classifier knows (notebook 18b): what is asked and what judges.

A classifier is trained on the source people. A window of a target person is translated into their style N times, and
the classifier's probabilities are averaged: test-time augmentation.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd

from harvis_utils.data import archive, dsads, synthetic, windowing
from harvis_utils.data.kinds import Recordings
from harvis_utils.metrics import embedding, generative
from harvis_utils.metrics.intervals import listed, number
from harvis_utils.networks.sfhf import known
from harvis_utils.paper import style_scores
from harvis_utils.paper.stages import Stages
from harvis_utils.paper.style_scores import (
    ADABN,
    ALONE,
    CORAL,
    NONE,
    ONE_Z,
    ORACLE,
    OWN_STYLE,
    STANDARD,
    TRANSLATED,
    WITH_ITSELF,
    WRONG,
    N,
    Pair,
    halves,
)
from harvis_utils.paper.systems import Question, judge
from harvis_utils.paper.verdicts import NO, UNDECIDED, UNTESTABLE, YES
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import SelfAttentionSettings, SettingsError, StyleSettings
from harvis_utils.training import supervised, translating
from harvis_utils.training.supervised import Network
from harvis_utils.training.translating import unlabelled

AWARE, STARGAN = "class-aware", "StarGAN v2"
#: trained with the first seed alone, of the first target, where there are enough seeds to judge anything
ABLATIONS = {
    "without L_sem": {"semantic_weight": 0.0},
    "L_sem without L_task": {"task_weight": 0.0},
    "no diversity": {"diversity_weight": 0.0},
    "content by instance norm": {"content_norm": "instance"},
    "content, none first": {"content_norm": "none first"},
}
STRONG, WEAK = "SF-HF", "CNN"
#: Choice: five layers, twice as wide as the strong one's: about 24,000 weights, as the source's small network
TIMES_AS_WIDE = 2
#: Choice: seeds of classifiers are this one and the next ones; no other notebook uses them
FIRST_SEED = 600
#: Choice: epochs of the oracle, which has a tenth of the windows
ORACLE_EPOCHS = 30
TARGETS = ("people", "other side")
#: Choice: with fewer steps the study says whether the code runs, not what translators are
FEWEST_STEPS, FEWEST_SEEDS = 500, 3
#: Paper: windows a class in the map of features
N_MAPPED = 25


def settings_of(base: StyleSettings) -> dict[str, StyleSettings]:
    """Settings by variant: class-aware, StarGAN v2 as it was, and what lacks a part."""
    base = replace(base, seeds=())
    found = {AWARE: base, STARGAN: replace(base, task_weight=0.0, semantic_weight=0.0)}
    return found | {name: replace(base, **changes) for name, changes in ABLATIONS.items()}


class Study:
    """Pairs of domains, classifiers, translators and their scores, each made where it is missing.

    ``target`` is one of ``TARGETS``: each test person by itself, or the test people's other side of the body, which
    DSADS has recorded. Made-up data have other bodies of the test people instead. Raises :class:`SettingsError` where
    there is no other side.
    """

    def __init__(self, run: Stages, target: str = "people"):
        self.cfg, self.base, self.recordings = run.cfg, run.cfg.styles, run.recordings
        self.bodies = run.recordings.name == synthetic.DATASET.name
        self.target = known("target", target, TARGETS)
        self.source = windowing.cut(run.recordings, self.base.windows)
        others = self._others()
        whole = windowing.cut(others, self.base.windows).test if others else self.source.test
        parts = {f"person {s}": whole.chosen(whole.subject == s) for s in np.unique(whole.subject)}
        if others:
            parts = {"another body" if self.bodies else target: whole}
        self._halves = {name: halves(of) for name, of in parts.items()}
        about = self.source.train, len(self.source.activities)
        self.pairs = [Pair(n, unlabelled(first), test, *about) for n, (first, test) in self._halves.items()]
        self.windows = replace(self.source, test=halves(whole)[1])  # what classifiers learn from and are tested on
        self.variants, seeds = settings_of(self.base), self.base.seeds
        self.jobs = [(name, pair, seed) for seed in seeds for pair in self.pairs for name in (AWARE, STARGAN)]
        if len(seeds) >= FEWEST_SEEDS:
            self.jobs += [(name, self.pairs[0], seeds[0]) for name in ABLATIONS]

    def _others(self) -> Recordings | None:
        """Recordings of the target where they are others than the data set's own test people."""
        if self.target == "other side":
            if self.recordings.dataset.name != dsads.DATASET.name:
                raise SettingsError("TARGET = 'other side' of the body was recorded in dsads only; use 'people'")
            return archive.load_recordings(self.recordings.name, dataset=dsads.OTHER_SIDE)
        return synthetic.shifted() if self.bodies else None

    @cached_property
    def _trained(self) -> dict[tuple, Network]:
        """Classifiers by kind, seed, and "" or ``STANDARD``; oracles by kind, seed and the name of their pair."""
        own = self.cfg.generation
        weak = SelfAttentionSettings(kind="convolution", n_units=TIMES_AS_WIDE * own.judge.n_units)
        made = {STRONG: own.judge, WEAK: weak}
        splits = {name: style_scores.standardized(getattr(self.windows, name)) for name in windowing.SPLITS}
        data = {"": (self.windows, own.judging), STANDARD: (replace(self.windows, **splits), own.judging)}
        long = replace(own.judging, epochs=ORACLE_EPOCHS)
        for name, (first, test) in self._halves.items():  # the second half is only scored
            data[name] = (replace(self.windows, train=first, val=first, test=test), long)
        jobs = [(kind, seed, name) for seed in self.base.seeds for kind in made for name in data]

        def one(job: tuple[str, int, str]) -> Network:
            kind, seed, name = job
            windows, training = data[name]
            return supervised.train(self.cfg, windows, FIRST_SEED + seed, None, made[kind], training)

        return dict(zip(jobs, side_by_side(self.cfg, one, jobs, "classifiers"), strict=True))

    def classifiers(self, seed: int) -> dict[str, Network]:
        """Both classifiers of a seed, which know the source alone."""
        return {kind: self._trained[kind, seed, ""] for kind in (STRONG, WEAK)}

    def _over_jobs(self, one, jobs: Sequence[tuple], title: str) -> pd.DataFrame:
        found = side_by_side(self.cfg, one, jobs, title)
        named = [
            of.assign(variant=name, target=pair.name, seed=seed)
            for (name, pair, seed), of in zip(jobs, found, strict=True)
        ]
        return pd.concat(named, ignore_index=True)

    @cached_property
    def table(self) -> pd.DataFrame:
        """``MEASURES`` by variant, target, seed, classifier, kind, "n" and "share" of the training.

        What needs no translator has the variant "none" and the share 1.
        """
        nets, device, axes = self._trained, self.cfg.device, self.source.axes

        def beside(job: tuple[str, Pair, int]) -> pd.DataFrame:
            kind, pair, seed = job
            three = (nets[kind, seed, name] for name in ("", STANDARD, pair.name))
            return style_scores.without_translator(*three, pair, axes, device=device)

        def translated(job: tuple[str, Pair, int]) -> pd.DataFrame:
            name, pair, seed = job
            about = self.classifiers(seed), pair, self.variants[name], seed
            return style_scores.with_translator(*about, device=device)

        jobs = [(kind, pair, seed) for seed in self.base.seeds for pair in self.pairs for kind in (STRONG, WEAK)]
        plain = self._over_jobs(beside, jobs, "controls").rename(columns={"variant": "classifier"})
        plain = plain.assign(variant="none", n=plain["kind"].isin(style_scores.AUGMENTED) * (N - 1) + 1, share=1.0)
        return pd.concat([plain, self._over_jobs(translated, self.jobs, "translators")], ignore_index=True)

    @cached_property
    def kept(self) -> pd.DataFrame:
        """:func:`style_scores.classes_kept` of every translator, judged by the oracle of its target and seed."""

        def one(job: tuple[str, Pair, int]) -> pd.DataFrame:
            name, pair, seed = job
            about = self._trained[STRONG, seed, pair.name], pair, self.variants[name], seed
            return style_scores.classes_kept(*about, device=self.cfg.device)

        return self._over_jobs(one, self.jobs, "classes")

    @cached_property
    def mixed(self) -> pd.DataFrame:
        """:func:`style_scores.domains_mixed` of every translator, by features of the weak classifier."""

        def one(job: tuple[str, Pair, int]) -> pd.DataFrame:
            name, pair, seed = job
            about = self._trained[WEAK, seed, ""], pair, self.variants[name], seed
            return style_scores.domains_mixed(*about, device=self.cfg.device)

        return self._over_jobs(one, self.jobs, "domains")

    @cached_property
    def moved(self) -> pd.DataFrame | None:
        """:func:`style_scores.body_moved` of every translator; None where nobody knows what is in a window."""
        if not self.bodies:
            return None
        twin = halves(self.source.test)[1]
        about = {"device": self.cfg.device}
        return self._over_jobs(
            lambda job: style_scores.body_moved(job[1], twin, self.variants[job[0]], job[2], **about),
            self.jobs,
            "bodies",
        )

    def losses(self, n_bins: int = 40) -> pd.DataFrame:
        """Losses along training, means over ``n_bins`` stretches, seeds and targets: column "loss" by name."""
        parts = []
        for name in (AWARE, STARGAN):
            some = [(pair, seed) for one, pair, seed in self.jobs if one == name]
            found = [
                translating.trained(p.source, p.target, p.n_classes, self.variants[name], seed)["losses"].numpy()
                for p, seed in some
            ]
            stretches = np.array_split(np.mean(found, 0), min(n_bins, self.base.n_steps))
            steps = np.cumsum([len(of) for of in stretches])
            values = pd.DataFrame([of.mean(0) for of in stretches], columns=list(translating.LOSSES))
            parts.append(values.replace(0.0, np.nan).assign(step=steps, variant=name))  # exactly 0: not computed
        return pd.concat(parts, ignore_index=True)

    def translator(self, name: str, seed: int | None = None) -> translating.Translator:
        """A trained translator of the first target, by default of the first seed."""
        return style_scores.translator(self.pairs[0], self.variants[name], self.base.seeds[0] if seed is None else seed)

    def mapped(self, name: str = AWARE) -> pd.DataFrame:
        """A t-SNE map of the weak classifier's features: "x", "y", "activity" and whose "windows", by domain.

        Of at most ``N_MAPPED`` windows of each class of the source, of the first target, and of these translated.
        """
        pair, seed = self.pairs[0], self.base.seeds[0]
        source, target = (_each_class(of) for of in (pair.source, pair.test))
        model = self.classifiers(seed)[WEAK].model
        made = self.translator(name).translated(target.x, 0)
        features = [generative.seen(model, x)[0] for x in (source.x, target.x, made)]
        place = embedding.embed(np.concatenate(features), perplexity=30.0)
        whose = np.repeat(["source", "target as it is", "target translated"], [len(of) for of in features])
        activity = np.concatenate([of.activity for of in (source, target, target)])
        named = pd.Categorical.from_codes(activity, self.source.activities)
        return pd.DataFrame({"x": place[:, 0], "y": place[:, 1], "activity": named, "windows": whose})


def _each_class(split: windowing.Split) -> windowing.Split:
    """At most ``N_MAPPED`` windows of each class, spread evenly."""
    own = (np.flatnonzero(split.activity == k) for k in np.unique(split.activity))
    chosen = [at[np.unique(np.linspace(0, len(at) - 1, min(N_MAPPED, len(at))).astype(int))] for at in own]
    return split.chosen(np.concatenate(chosen))


# ---------------------------------------------------------------------------------------------------- the questions

_TABLE, _PICTURES, _MAPS = "class-aware style transfer, Tab. 1", "the same, Fig. 2", "the same, Fig. 3"
_BESIDE = "statistics of the target (AdaBN, CORAL), changes that need no translator, a window in its own style, C alone"
#: Choice: margins, fixed before any translator was trained on recordings of people
_ASKED = (
    Question("S-1", _TABLE, "over 10 translations the class-aware method leads StarGAN v2 (89.2 against 79.9, 87.9 "
             "against 79.5)", "macro F1 by 10 translations, class-aware minus StarGAN v2",
             "a window in its own style; one z ten times", 0.02, "share"),
    Question("S-1 one", _TABLE, "so it does with one translation (87.7 against 77.5 and 85.8 against 76.4)",
             "macro F1 by one translation, class-aware minus StarGAN v2", "the same wrong direction", 0.02, "share"),
    Question("S-1 ten", _TABLE, "10 translations are better than one (89.2 against 87.7 and 87.9 against 85.8)",
             "macro F1, 10 translations minus one, class-aware", "one z ten times; windows changed ten times without "
             "any translator", 0.02, "share"),
    Question("S-1 any", _TABLE, "any translation is better than none (74.9 and 66.5)",
             "macro F1 by 10 translations minus windows as they are, class-aware", _BESIDE, 0.02, "share"),
    Question("S-1 plain", _TABLE, "so is StarGAN v2 (79.9 against 74.9 and 79.5 against 66.5)",
             "macro F1 by 10 translations minus windows as they are, StarGAN v2", _BESIDE, 0.02, "share"),
    Question("S-2", _TABLE, "the weak network gains more (21.4 against 14.3 points)",
             "what 10 translations add to the CNN's macro F1 minus what they add to SF-HF's",
             "the same of AdaBN and of the oracle: who is worse may gain more by anything", 0.02, "share"),
    Question("S-3", _PICTURES, "the class-aware method keeps the class where others lose it, in poor inputs too",
             "share of windows that the oracle still recognizes, class-aware minus StarGAN v2",
             "the same of windows in their own style; of windows of little energy alone", 0.02, "share"),
    Question("S-4", _MAPS, "features of both domains mix after translation",
             "area under the curve of telling domains apart, before minus after translation",
             "the same after translation into the wrong direction, and into their own style", 0.02),
    Question("S-4 classes", _MAPS, "and they do so class by class",
             "discrepancy of the domains within classes (MMD), before minus after, as a share of that before",
             "the same after translation into the wrong direction, and into their own style", 0.1, "relative"),
    Question("S-4 purity", _MAPS, "windows come to lie among source windows of their own class",
             "share of the nearest source windows with a window's own class, after minus before",
             "the same after translation into the wrong direction, and into their own style", 0.02, "share"),
)  # fmt: skip
QUESTIONS = {of.id: of for of in _ASKED}
#: questions that compare translations with each other
AMONG_THEMSELVES = ("S-1", "S-1 one", "S-1 ten", "S-2", "S-3")


def too_short(settings: StyleSettings) -> str:
    """Why nothing is judged, where translators have hardly been trained."""
    few = settings.n_steps < FEWEST_STEPS
    return f"{settings.n_steps} steps are a smoke test, {FEWEST_STEPS} or more would be training" if few else ""


def not_learned(study: Study) -> str:
    """Why nothing is told of differences between translations; empty where these are better than guessing.

    Guessing reaches a macro F1 of one over the number of classes.
    """
    own = final(study.table)
    own = own[own["variant"].isin((AWARE, STARGAN)) & (own["kind"] == TRANSLATED) & (own["n"] == N)]
    best, guessing = own.groupby("variant")["macro F1"].mean().max(), 1 / len(study.source.activities)
    if best > guessing:
        return ""
    return f"translated windows are recognized no better ({best:.3f}) than by guessing ({guessing:.3f})"


def final(table: pd.DataFrame) -> pd.DataFrame:
    """Scores at the end of the training."""
    return table[table["share"] == 1.0]


def judged(study: Study) -> list[dict]:
    """The verdicts; differences are taken seed by seed, and in a seed target by target and classifier by classifier.

    Translations are compared with each other only where they are better than guessing (:func:`not_learned`).
    """
    scores, missing, found = final(study.table), too_short(study.base), {}
    among_themselves = missing or not_learned(study)

    def f1(variant: str, kind: str, n: int = 1, by: Sequence[str] = ("target", "classifier")) -> pd.DataFrame:
        own = scores[(scores["variant"] == variant) & (scores["kind"] == kind) & (scores["n"] == n)]
        return own.pivot_table("macro F1", "seed", list(by), sort=False)

    def ask(name: str, values: pd.DataFrame, controls: dict) -> None:
        void = among_themselves if name in AMONG_THEMSELVES else missing
        found[name] = judge(QUESTIONS[name], values, controls, missing=void)

    def two(variant: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        return f1(variant, TRANSLATED), f1(variant, TRANSLATED, N)

    (one, ten), (plain, plain_ten), none = two(AWARE), two(STARGAN), f1("none", NONE)
    aids = [name for name in style_scores.AUGMENTED if (scores["kind"] == name).any()]
    own, wrong = ({v: f1(v, kind, n) for v in (AWARE, STARGAN)} for kind, n in ((OWN_STYLE, 1), (WRONG, N)))
    same = {v: f1(v, ONE_Z, N) for v in (AWARE, STARGAN)}
    ask("S-1", ten - plain_ten, {OWN_STYLE: own[AWARE] - own[STARGAN], ONE_Z: same[AWARE] - same[STARGAN]})
    ask("S-1 one", one - plain, {f"{WRONG}, {N} translations": wrong[AWARE] - wrong[STARGAN]})
    ask("S-1 ten", ten - one, {ONE_Z: same[AWARE] - one} | {name: f1("none", name, N) - none for name in aids})
    beside = {name: f1("none", name) - none for name in (ADABN, CORAL, STANDARD, ORACLE)}
    beside |= {name: f1("none", name, N) - none for name in aids}
    for name, variant, of in (("S-1 any", AWARE, ten), ("S-1 plain", STARGAN, plain_ten)):
        more = {WITH_ITSELF: f1(variant, WITH_ITSELF, N), OWN_STYLE: own[variant], WRONG: wrong[variant]}
        more |= {ALONE: f1(variant, ALONE)} if variant == AWARE else {}
        ask(name, of - none, beside | {kind: values - none for kind, values in more.items()})

    def weak_more(gain: pd.DataFrame) -> pd.DataFrame:
        return gain.xs(WEAK, axis=1, level="classifier") - gain.xs(STRONG, axis=1, level="classifier")

    controls = {name: weak_more(beside[name]) for name in (ADABN, ORACLE)}
    ask("S-2", weak_more(ten - none), controls | {STARGAN: weak_more(plain_ten - none)})
    still = study.kept[study.kept["variant"].isin((AWARE, STARGAN))]

    def keeps(kind: str, energy: str) -> pd.DataFrame:
        some = still[(still["kind"] == kind) & (still["energy"] == energy)]
        by = some.pivot_table("kept", "seed", ["variant", "target"], sort=False)
        return by[AWARE] - by[STARGAN]

    ask(
        "S-3", keeps(TRANSLATED, "all"), {OWN_STYLE: keeps(OWN_STYLE, "all"), "little energy": keeps(TRANSLATED, "low")}
    )
    mixed = study.mixed[study.mixed["variant"] == AWARE]
    for name, column in (("S-4", "AUC"), ("S-4 classes", "MMD"), ("S-4 purity", "purity")):
        by = mixed.pivot_table(column, "seed", ["kind", "target"], sort=False)
        change = {kind: by[NONE] - by[kind] for kind in (TRANSLATED, OWN_STYLE, WRONG)}
        change = {kind: of / by[NONE] if column == "MMD" else of for kind, of in change.items()}
        change = {kind: -of if column == "purity" else of for kind, of in change.items()}
        ask(name, change.pop(TRANSLATED), change)
    return list(found.values())


def ways(study: Study) -> pd.DataFrame:
    """``MEASURES`` at the end of the training by "way", "classifier", "target" and "seed": all that is compared."""
    own = final(study.table)
    own = own[(own["kind"] != TRANSLATED) | own["n"].isin((1, N))]
    counted = own["kind"].where(own["kind"] != TRANSLATED, "N = " + own["n"].astype(str))
    return own.assign(way=counted.where(own["variant"] == "none", own["variant"] + ": " + counted))


def settled(study: Study) -> pd.Series:
    """By variant, the change of macro F1 by 10 translations from half of the training to its end."""
    own = study.table[(study.table["kind"] == TRANSLATED) & (study.table["n"] == N)]
    by = own.pivot_table("macro F1", "variant", "share", sort=False)
    return by.iloc[:, -1] - by.iloc[:, 0]


#: the first sentence, by the direction of "S-1 any"
_FIRST = {
    YES: "Yes: a classifier knows other people better after their windows were translated.",
    NO: "No: translated windows of other people are not recognized better than as they are.",
    UNDECIDED: "It is open whether a classifier knows other people better after their windows were translated.",
    UNTESTABLE: "Nothing can be told here: there are too few steps of training, or too few seeds.",
}


def answer(study: Study, verdicts: Sequence[dict]) -> str:
    """The answer to the notebook's title, with what does as well without any translation."""
    told = {of["id"]: of["direction"] for of in verdicts}
    table = ways(study)
    mean = table.groupby(["variant", "kind", "way"], sort=False)["macro F1"].mean()
    own = mean[AWARE, TRANSLATED, f"{AWARE}: N = {N}"]
    free = [NONE, ADABN, CORAL, STANDARD, *style_scores.AUGMENTED]
    better = [kind for (v, kind, _), of in mean.items() if v == "none" and kind in free and of >= own]
    alone = mean[AWARE, ALONE].iloc[0]
    reach = f"{AWARE} {own:.3f}, {STARGAN} {mean[STARGAN, TRANSLATED, f'{STARGAN}: N = {N}']:.3f}"
    lost = not_learned(study)
    lost = f"**These translators have not learned to keep what a window is: {lost}.** " if lost else ""
    return (
        f"{lost}**{_FIRST[told['S-1 any']]}** "
        f"Macro F1 of both classifiers on all targets, by {N} translations: {reach}; "
        f"windows as they are {mean['none', NONE].iloc[0]:.3f}, the oracle {mean['none', ORACLE].iloc[0]:.3f}. "
        f"As good or better without any translator: {listed(better)}. The translator's own "
        f"classifier, which needs no translation, has {number(alone, '.3f')}."
    )
