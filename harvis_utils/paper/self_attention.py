"""What the source says of 1D-SAN (claims B1 to B6, notebook 15), the networks that it is asked of, and their measures.

Networks: :data:`SYSTEMS`, on windows or on their spectra. They answer for segments of 5 s, in which shifted windows
vote (:mod:`harvis_utils.metrics.voting`); F1 is macro F1 of segments of test people. Differences are taken network by
network and, where there are enough people, person by person.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from harvis_utils.data import windowing
from harvis_utils.data.windowing import Spectra, Split, Windows
from harvis_utils.lenses import attention
from harvis_utils.metrics import voting
from harvis_utils.metrics.intervals import listed, with_interval
from harvis_utils.networks import self_attention
from harvis_utils.paper import systems
from harvis_utils.paper.stages import Stages
from harvis_utils.paper.systems import Question
from harvis_utils.paper.verdicts import YES
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import SelfAttentionSettings, TrainingSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

SAN, BLIND, EVEN, CNN355 = "SAN", "SAN without position", "equal weights", "CNN355"
CNN, LONGER, PROBE = "CNN", "CNN, equal time", "linear probe of spectra"
DILATED = "SAN 3, dilated 3, 5, 5"
RAW, SPECTRA = "windows", "spectra"

#: what each network has of its own
SYSTEMS: dict[str, dict] = {
    SAN: {},
    CNN355: {"kind": "convolution"},
    CNN: {"kind": "plain"},
    LONGER: {"kind": "plain"},
    BLIND: {"position": False},
    EVEN: {"kind": "uniform"},
    DILATED: {"footprints": (3, 3, 3), "dilations": (3, 5, 5)},
}
#: networks of these are as many as the settings say, of others fewer
COMPARED = (SAN, CNN355, CNN, LONGER)
#: Choice: people who are drawn for an interval beside networks; fewer are no sample, and their F1 is averaged
FEWEST_PEOPLE = 3
#: how the attention of a trained network is replaced
AS_TRAINED = "as trained"
EDITS = {AS_TRAINED: None, "made equal": self_attention.evened, "shuffled": self_attention.shuffled}

#: Choice: all margins, set before any network was trained on real data
_ASKED = (
    Question("B1", "Tab. 1", "the self-attention network recognizes better than a CNN, 91.2 % against 90.4 %",
             "F1 of SAN minus F1 of the CNN with as many parameters and epochs", "the same gain of a filter of "
             "the same footprint, of the CNN in the same time or on spectra, of equal weights, of a linear probe",
             0.02, "share"),
    Question("B2", "Tab. 1, confusions", "the two confuse other classes", "distance of SAN's errors from the CNN's, "
             "as shares of all errors, minus that of two networks of one kind", "a filter of the same footprint",
             0.05, "share"),  # of errors, not of answers
    Question("B3", "text to Tab. 1", "classes that change much over time gain, others lose", "rank correlation of a "
             "class's gain in F1 with its spectral flux, classes drawn", "the gain of a filter of the same footprint",
             0.1),  # without a margin no number of classes could say that there is no relation
    Question("B4", "Tab. 2", "spectra as input cost the self-attention network 11.2 points and the CNN none",
             "what spectra cost SAN, minus the larger of nothing and what they cost the CNN",
             "a filter of the same footprint in place of SAN", 0.02, "share"),
    Question("B5", "Fig. 3", "accumulating the answers of shifted windows helps", "F1 of all windows of a segment "
             "minus F1 of its first one, SAN", "the same of the CNN", 0.02, "share"),
    Question("B6", "text", "it relates instants that are far apart",
             "F1 of the widest footprint minus that of the source's footprints",
             "the dilated footprint; filters as wide; attention made equal or shuffled in the trained network",
             0.02, "share"),
)  # fmt: skip
QUESTIONS = {of.id: of for of in _ASKED}


def wide(name: str, footprint: int) -> str:
    """The name of a network all of whose blocks have this footprint."""
    return f"{name} {footprint}, {footprint}, {footprint}"


class Study(Stages):
    """The run with the windows and networks of notebook 15."""

    def __init__(self, run: Stages):
        self.own = run.cfg.self_attention
        super().__init__(replace(run.cfg, windows=self.own.windows, weights="trained"))
        self.recordings = run.recordings

    @cached_property
    def data(self) -> Windows:
        """Windows to train on, every n-th of all."""
        return windowing.cut(self.recordings, self.own.windows).thinned(self.own.n_train)

    @cached_property
    def spectra(self) -> Spectra:
        """How windows become spectra."""
        return Spectra.of(self.data.train)

    @cached_property
    def data_of(self) -> dict[str, Windows]:
        """The windows, and the same as spectra."""
        return {RAW: self.data, SPECTRA: self.spectra.windows(self.data)}

    @cached_property
    def voters(self) -> dict[str, Split]:
        """Windows of the test people that vote, and the same as spectra."""
        test = windowing.cut(self.recordings, replace(self.own.windows, step=self.own.vote_step)).test
        voters = test.chosen(voting.segments(test, self.own.vote_samples, test.length).ravel())
        return {RAW: voters, SPECTRA: self.spectra.split(voters)}

    @cached_property
    def together(self) -> np.ndarray:
        """Which of them vote together, (segment, window)."""
        return voting.segments(self.voters[RAW], self.own.vote_samples, self.own.windows.length)

    @cached_property
    def changes(self) -> dict[str, dict]:
        """What each network of this run has of its own, by name."""
        found = dict(SYSTEMS)
        for footprint, of in itertools.product(self.own.footprints, (SAN, CNN355)):
            found[wide(of, footprint)] = SYSTEMS[of] | {"footprints": (footprint,) * 3}
        return found

    def settings(self, name: str) -> tuple[SelfAttentionSettings, TrainingSettings]:
        """Settings and training of a network of ``changes``."""
        training, ratio = self.own.training, self.own.time_ratio if name == LONGER else 1
        seeds = training.seeds if name in COMPARED else training.seeds[: self.own.n_others]
        training = replace(training, seeds=seeds, epochs=round(ratio * training.epochs))
        return replace(self.own.model, **self.changes[name]), training

    def trained(self, name: str, given: str = RAW) -> list[Network]:
        """The networks of this name on windows or spectra, of which there are fewer of the latter."""
        model, training = self.settings(name)
        seeds = training.seeds if given == RAW else training.seeds[: self.own.n_others]
        return supervised.networks(self.cfg, self.data_of[given], model, replace(training, seeds=seeds))

    def fresh(self, name: str) -> list[Network]:
        """As many networks with random weights."""
        model, training = self.settings(name)
        return supervised.untrained(replace(self.cfg, model=model, training=training), self.data)

    def counts(self, name: str, given: str = RAW, edit: str = AS_TRAINED) -> xr.DataArray:
        """:func:`voting.tally` of each network, under the dimension seed; ``edit`` is one of :data:`EDITS`."""
        if name == PROBE:
            found = probed(self.data_of[given].train, self.voters[given], self.together)["counts"]
            return found.expand_dims(seed=list(self.own.training.seeds))
        networks, about = self.trained(name, given), (self.voters[given], self.together, edit)
        found = side_by_side(self.cfg, lambda network: voted(network, *about)["counts"], networks, name)
        return xr.concat(found, pd.Index([network.seed for network in networks], name="seed"))

    @cached_property
    def answers(self) -> dict[tuple[str, str], xr.DataArray]:
        """``counts`` of every network, by its name and input."""
        found = {(name, RAW): self.counts(name) for name in self.changes}
        found |= {(f"{SAN}, {edit}", RAW): self.counts(SAN, edit=edit) for edit in EDITS if edit != AS_TRAINED}
        return found | {(name, SPECTRA): self.counts(name, SPECTRA) for name in (SAN, CNN355, CNN, PROBE)}


# ------------------------------------------------------------------------------------------------------ answers


@kept("votes")
def voted(network: Network, split: Split, together: np.ndarray, edit: str) -> xr.Dataset:
    """The ``counts`` of :func:`voting.tally`, with the attention as ``edit`` of :data:`EDITS` says."""
    change = EDITS[edit]
    with self_attention.changing(network.model, change):
        scores = attention.scores_of(network.model, split.x)
    return voting.tally(scores, split, together).to_dataset(name="counts")


@kept("probe")
def probed(train: Split, split: Split, together: np.ndarray) -> xr.Dataset:
    """The same of multinomial logistic regression on the windows of ``train``."""
    flat = (of.x.reshape(len(of), -1).astype(float) for of in (train, split))
    x, other = flat
    scores = LogisticRegression(C=0.1, max_iter=3000).fit(x, train.activity).decision_function(other)
    return voting.tally(scores, split, together).to_dataset(name="counts")


def macro(counts: xr.DataArray, rule: str = "probabilities", windows: int | None = None) -> xr.DataArray:
    """Macro F1 of (seed, person) by so many windows of each segment, by default all; of few people their mean."""
    many = int(counts["windows"][-1]) if windows is None else windows
    found = voting.f1(counts.sel(rule=rule, windows=many)).mean("class")
    return found if found.sizes["person"] >= FEWEST_PEOPLE else found.mean("person")


def f1_table(study: Study) -> pd.DataFrame:
    """One row per network and input: "F1" of segments and "F1 of one window", and what the network is and costs."""
    rows = []
    for (name, given), counts in study.answers.items():
        row = {"network": name, "input": given, "networks": counts.sizes["seed"]}
        row |= with_interval("F1", macro(counts)) | with_interval("F1 of one window", macro(counts, windows=1))
        if name in study.changes:
            networks = study.trained(name, given)
            row["epochs"] = len(networks[0].history["loss"])
            row["parameters"] = self_attention.n_parameters(networks[0].model)
            row["training [s]"] = float(np.mean([network.wall_s for network in networks]))
        rows.append(row)
    return pd.DataFrame(rows)


def by_votes(study: Study, names: Sequence[str] = (SAN, CNN355, CNN)) -> pd.DataFrame:
    """F1 over the number of windows that vote, one row per network, rule and number."""
    rows = []
    for name in names:
        counts = study.answers[name, RAW]
        for rule in voting.RULES:
            for many in counts["windows"].values:
                row = {"network": name, "rule": rule, "windows": int(many)}
                rows.append(row | with_interval("F1", macro(counts, rule, int(many))))
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------- differences, as asked


def gain(counts: xr.DataArray, other: xr.DataArray, **about) -> xr.DataArray:
    """:func:`macro` of the first minus that of the other; seeds that both have."""
    return macro(counts, **about) - macro(other, **about)


def class_gains(study: Study, first: str = SAN, other: str = CNN) -> xr.DataArray:
    """F1 of segments of each class, the first network's minus the other's: (seed, class), the mean over people."""
    f1 = (voting.f1(study.answers[name, RAW].sel(rule="probabilities").isel(windows=-1)) for name in (first, other))
    return (next(f1) - next(f1)).mean("person").assign_coords({"class": list(study.data.activities)})


def class_table(study: Study) -> pd.DataFrame:
    """One row per class and network: its "spectral flux", and its "gain" in F1 over the CNN."""
    flux = spectral_flux(study.data.train, len(study.data.activities))
    rows = []
    for name in (SAN, CNN355):
        for activity, value in zip(study.data.activities, flux, strict=True):
            row = {"class": activity, "network": name, "spectral flux": value}
            rows.append(row | with_interval("gain", class_gains(study, name).sel({"class": activity})))
    return pd.DataFrame(rows)


def confusion_change(study: Study) -> pd.DataFrame:
    """Share of each true class (row) that SAN takes for a class (column) more often than the CNN does, all networks."""
    first, other = (confusion(study.answers[name, RAW]).mean("seed").values for name in (SAN, CNN))
    names = list(study.data.activities)
    return pd.DataFrame(first - other, pd.Index(names, name="true"), pd.Index(names, name="predicted"))


def answered(counts: xr.DataArray) -> xr.DataArray:
    """Answers of all windows of each segment, (seed, true, predicted), over all people."""
    return counts.sel(rule="probabilities").isel(windows=-1).sum("person")


def confusion(counts: xr.DataArray) -> xr.DataArray:
    """Share of each true class that is taken for each class, (seed, true, predicted)."""
    whole = answered(counts)
    return whole / whole.sum("predicted").clip(1)


def apart(first: xr.DataArray, other: xr.DataArray) -> np.ndarray:
    """How differently two kinds of networks err, beyond what networks of one kind do: (seed,).

    Half the absolute difference of their errors, each as a share of all errors, so that it does not matter who makes
    more of them; minus the mean of that between neighbouring seeds of either kind.
    """
    errors = [answered(counts).values * (1 - np.eye(counts.sizes["true"])) for counts in (first, other)]
    shares = [of / of.sum((1, 2), keepdims=True).clip(1) for of in errors]
    pairs = (shares, *((of, np.roll(of, 1, 0)) for of in shares))
    between, *within = (abs(one - two).sum((1, 2)) / 2 for one, two in pairs)
    return between - np.mean(within, axis=0)


def spectral_flux(split: Split, n_classes: int) -> np.ndarray:
    """How much the spectrum changes from one window of a recording to the next, the mean of each class: (class,).

    Spectra are magnitudes without the constant, of length 1 over all axes and frequencies of a window.
    """
    spectrum = np.abs(np.fft.rfft(split.x))[..., 1:].reshape(len(split), -1)
    spectrum /= np.linalg.norm(spectrum, axis=1, keepdims=True).clip(1e-12)
    same = split.recording[1:] == split.recording[:-1]
    change, activity = np.linalg.norm(np.diff(spectrum, axis=0), axis=1)[same], split.activity[1:][same]
    return np.array([change[activity == c].mean() if (activity == c).any() else np.nan for c in range(n_classes)])


def rank_products(gains: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Each class's part in the rank correlation of ``gains`` (seed, class) with ``flux`` (class,): (class, seed).

    Products of standardized ranks: their mean over classes is Spearman's coefficient of a network, 0 where all classes
    gain the same. Classes with a NaN are left out.
    """
    there = ~np.isnan(gains + flux).any(0)
    ranks = (rankdata(of[..., there], axis=-1) - (there.sum() + 1) / 2 for of in (gains, flux))
    own, change = (of / of.std(-1, keepdims=True).clip(1e-12) for of in ranks)
    return (own * change).T


def verdicts(study: Study, missing: str = "") -> list[dict]:
    """The claims judged; with ``missing`` words none is."""
    of, widest = study.answers, max(study.own.footprints)
    san, cnn, other = of[SAN, RAW], of[CNN, RAW], of[CNN355, RAW]
    cost = {name: gain(of[name, RAW], of[name, SPECTRA]) for name in (SAN, CNN, CNN355)}
    least = cost[CNN] if cost[CNN].mean() > 0 else 0 * cost[CNN]  # else "it costs" could be so where spectra help
    beside = {name: gain(of[name, RAW], cnn) for name in (BLIND, CNN355, LONGER, EVEN)}
    beside |= {PROBE: gain(of[PROBE, SPECTRA], cnn), f"{CNN} on spectra": gain(of[CNN, SPECTRA], cnn)}
    wider = {DILATED: gain(of[DILATED, RAW], san), f"{CNN355} as wide": gain(of[wide(CNN355, widest), RAW], other)}
    wider |= {f"{SAN}, {edit}": gain(of[f"{SAN}, {edit}", RAW], san) for edit in EDITS if edit != AS_TRAINED}
    accumulated = {name: macro(of[name, RAW]) - macro(of[name, RAW], windows=1) for name in (SAN, CNN)}
    # classes are drawn, and networks within each: the same few classes are what all networks share
    change = spectral_flux(study.data.train, len(study.data.activities))
    flux = {name: rank_products(class_gains(study, name).values, change) for name in (SAN, CNN355)}
    judged = {
        "B1": (gain(san, cnn), beside),
        "B2": (apart(san, cnn), {CNN355: apart(other, cnn)}),
        "B3": (flux[SAN].mean(0), {CNN355: flux[CNN355]}),
        "B4": (cost[SAN] - least, {CNN355: cost[CNN355] - least}),
        "B5": (accumulated[SAN], {CNN: accumulated[CNN]}),
        "B6": (gain(of[wide(SAN, widest), RAW], san), wider),
    }
    drawn = {"B3": flux[SAN]}
    return [systems.judge(QUESTIONS[id], *about, missing=missing, drawn=drawn.get(id)) for id, about in judged.items()]


def answer(verdicts: Sequence[Mapping]) -> str:
    """Whether attention is better, and the controls that reach as much; of other claims where they are so."""
    first, *rest = verdicts
    rivals = {of["id"]: systems.ahead(of) for of in rest if of["direction"] == YES}
    told = "; ".join(f"{id}: {listed(names)}" for id, names in rivals.items() if names)
    others = f" Controls reach as much where another claim is true: {told}." if told else ""
    return f"**B1, {first['source']}: {systems.finding(first)}{others}**"
