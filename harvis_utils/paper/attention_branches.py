"""Experiments on networks with an attention branch (notebook 16): what its source says, and what decides it.

Networks are trained on the run's own data and, whatever these are, on made-up recordings whose motifs are known: the
plain ones, which are easy, and harder ones, on which attention could matter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from harvis_utils.data import synthetic, windowing
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import attention
from harvis_utils.lenses.attention import (
    BOTH,
    EDITS,
    INVERTED,
    INVERTED_OTHER,
    INVERTED_SHUFFLED,
    ITSELF,
    SAME_SCALE,
    SCALED,
)
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import intervals
from harvis_utils.metrics.intervals import number
from harvis_utils.networks import builders, taps
from harvis_utils.networks.attention_branch import SPATIAL, TEMPORAL, Edited
from harvis_utils.paper import systems
from harvis_utils.paper.stages import Stages
from harvis_utils.paper.systems import Question, best_rival, judge
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import BranchSettings, MaximizationSettings, Settings, TrainingSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network, macro_f1

BASELINE, WIDER, BRANCH, ATTENDING = "baseline", "wider baseline", "branch without attention", "+ S and T"
SHUFFLED_LABELS = "branch learns other labels"
NOTHING = {"spatial": False, "temporal": "none"}
#: networks whose accuracies are compared (D1), by what differs from ST-ABN
COMPARED: dict[str, dict] = {
    BASELINE: NOTHING | {"branch": "none"},
    WIDER: NOTHING | {"branch": "none"},
    BRANCH: NOTHING,
    "+ S": {"temporal": "none"},
    "+ T": {"spatial": False},
    ATTENDING: {},
}
#: what might repair the maps, and a control; all are shown, none is chosen
ABLATIONS: dict[str, dict] = {
    "temporal by convolution": {"temporal": "conv"},
    "residual fusion": {"fusion": "residual"},
    SHUFFLED_LABELS: {"branch": "other labels"},
}
OWN, PLAIN, HARDER = "own data", "made-up data", "harder made-up data"
#: which claim is asked of what edits of which maps
ASKED = {(OWN, kind): f"D3 {kind}" for kind in (SPATIAL, TEMPORAL, BOTH)} | {(HARDER, BOTH): f"D3 {BOTH}, {HARDER}"}
BEYOND_SCALE = "inverted, beyond its scale"
#: Choice: units behind the fusion that are climbed, and most steps of each ascent
N_CLIMBED, N_STEPS = 6, 300


@dataclass(frozen=True)
class Level:
    """Windows to train on, with what was planted in them, and the networks for them."""

    windows: Windows
    truth: PlantedMotifs | None
    model: BranchSettings
    training: TrainingSettings


def levels(run: Stages) -> dict[str, Level]:
    """The run's own data and made-up ones, plain (where the run's own are not) and harder."""
    cfg, own = run.cfg.branches, run.recordings
    found = {OWN: Level(windowing.cut(own, cfg.windows), run.truth, cfg.model, cfg.training)}
    for name, changes in {PLAIN: {}, HARDER: {"noise_g": cfg.noise_g, "prevalence": cfg.prevalence}}.items():
        if changes or not own.dataset.made_up:
            made, about = synthetic.variant(**changes), (cfg.made_up_model, cfg.made_up_training)
            found[name] = Level(windowing.cut(made, cfg.made_up_windows), made.dataset.motifs(), *about)
    return found


def settings_of(name: str, level: Level) -> BranchSettings:
    """Settings of a network of ``COMPARED`` or ``ABLATIONS``; the wider baseline has as many weights as ST-ABN."""
    found = replace(level.model, **(COMPARED | ABLATIONS)[name])
    if name != WIDER:
        return found
    wanted, widths = n_weights(level, level.model), range(level.model.n_units, 9 * level.model.n_units)
    return min((replace(found, n_units=n) for n in widths), key=lambda of: abs(n_weights(level, of) - wanted))


def n_weights(level: Level, settings: BranchSettings) -> int:
    """How many numbers such a network learns."""
    windows = level.windows
    with torch.device("meta"):
        network = builders.build(len(windows.axes), windows.train.length, len(windows.activities), settings)
    return sum(of.numel() for of in network.parameters())


def networks(cfg: Settings, level: Level, name: str) -> list[Network]:
    """The trained networks of a name: of those that are compared all, of others ``cfg.branches.n_networks``."""
    seeds = level.training.seeds
    seeds = seeds if name in COMPARED else seeds[: cfg.branches.n_networks]
    return supervised.networks(cfg, level.windows, settings_of(name, level), replace(level.training, seeds=seeds))


def measured(
    cfg: Settings, level: Level, names: Sequence[str], measure: Callable[..., pd.DataFrame], *about
) -> pd.DataFrame:
    """What a kept ``measure`` of (network, windows, ...) says of the networks of each name."""
    wanted = [(name, net) for name in names for net in networks(cfg, level, name)]
    parts = side_by_side(cfg, lambda of: measure(of[1], level.windows, *about), wanted)
    named = [part.assign(network=name, seed=net.seed) for (name, net), part in zip(wanted, parts, strict=True)]
    return pd.concat(named, ignore_index=True)


def over_networks(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Means over networks with their intervals, one row per group, in the order in which groups occur."""
    return intervals.over_networks(table, by, columns, least=1).drop(columns="networks").reset_index()


@kept("attention")
def accuracies(network: Network, windows: Windows) -> pd.DataFrame:
    """``top-1``, ``top-5`` and ``macro F1`` of test windows, by how many ``clips`` are seen.

    Two clips: probabilities of a window and of the next one of its recording that shares no sample, averaged.
    """
    split = windows.test
    seen = torch.tensor(attention.scores_of(network.model, split.x)).softmax(1).numpy()
    first, second = following(split)
    cases = {1: (split, seen), 2: (split.chosen(first), (seen[first] + seen[second]) / 2)}
    rows = []
    for clips, (own, found) in cases.items():
        rank = (found > np.take_along_axis(found, own.activity[:, None], 1)).sum(1)
        row = {"clips": clips, "top-1": float((rank < 1).mean()), "top-5": float((rank < 5).mean())}
        rows.append(row | {"macro F1": macro_f1(own, found.argmax(1))})
    return pd.DataFrame(rows)


def following(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Windows, and for each the one of its recording that begins where it ends; those without one are left out."""
    place = {key: i for i, key in enumerate(zip(split.recording.tolist(), split.offset.tolist(), strict=True))}
    pairs = [(i, place.get((recording, offset + split.length))) for (recording, offset), i in place.items()]
    found = np.array([pair for pair in pairs if pair[1] is not None], int).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def of_attention(alike: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`attention.agreement` what maps agree with, beside maps of other windows and of an untrained branch.

    Columns ``attention``, ``beside``, ``whose`` and "rank correlation" with its interval over networks.
    """
    names = {"own": "this window's map", "other": "another window's map"}
    own = alike[alike["lens"] == "attention"].rename(columns=names)
    keys = ["attention", "beside"]
    long = own.melt(["seed", *keys], list(names.values()), "whose", "rank correlation")
    untrained = alike[alike["lens"] == "untrained branch"].rename(columns={"lens": "whose", "own": "rank correlation"})
    both = pd.concat([long, untrained[~untrained["beside"].eq("attention")]])
    return over_networks(both, [*keys, "whose"], ["rank correlation"])


@kept("attention")
def climbed(network: Network, windows: Windows, settings: MaximizationSettings) -> pd.DataFrame:
    """The paper's method on units behind the fusion, with the maps free and with them frozen at their training mean.

    One row per unit and ``climbed``: its largest output over its threshold, "output, maps free" and "output, maps
    frozen", whichever it was climbed with, and how far each map's mean is from its training mean.
    """
    model, x = network.model, windows.train.every(max(1, len(windows.train) // 1000)).x
    mean = {name: torch.tensor(of.mean(0)) for name, of in attention.maps_of(model, x).items()}
    whole = Edited(model, lambda maps: maps)
    held = Edited(model, lambda maps: {name: mean[name].expand_as(of) for name, of in maps.items()})
    tap = taps.find(whole, "network.norm_fuse", rectified=True)
    th_eap = unit_statistics.collect(whole, x, place=tap)["th_eap"].values
    units = np.flatnonzero(~np.isnan(th_eap))[:N_CLIMBED]
    about = {"methods": [PROPOSED], "n_axes": x.shape[1], "length": x.shape[2], "units": units}
    about |= {"settings": replace(settings, n_steps=min(settings.n_steps, N_STEPS)), "rate_hz": windows.rate_hz}
    rows = []
    for name, of in {"free": whole, "frozen": held}.items():
        made = paper_methods.maximize(of, tap, th_eap, **about)
        signals = made["signal"].isel(technique=0).values.astype(np.float32)
        maps = attention.maps_of(model, signals)
        row = {"climbed": name, "unit": units}
        for which, net in {"free": whole, "frozen": held}.items():
            outputs = taps.outputs(net, tap, signals).numpy()[np.arange(len(units)), units]
            row[f"output, maps {which}"] = outputs.max((1, 2)) / th_eap[units]
        row |= {kind: of.mean((1, 2)) - float(mean[kind].mean()) for kind, of in maps.items()}
        rows.append(pd.DataFrame(row))
    return pd.concat(rows, ignore_index=True)


# ---------------------------------------------------------------------------------------------------- the questions

_MORE = "the attention branch raises top-1 by 0.3 to 1.0 points"
_WITHOUT = "a wider baseline with as many weights; a branch whose loss alone is added; one kind of attention alone"
_MOVING = {
    SPATIAL: "spatial attention looks at the moving region",
    TEMPORAL: "temporal attention is high on moving frames",
}
_ABOVE = "(minus that of another window's map, where it is above 0)"
_LOWER = "turning over {} attention lowers accuracy, so its maps are useful"
_CLIPS = {"D1": ("32 frames", "one window"), "D1 two clips": ("32+32 frames", "the mean of two windows")}
#: Choice: margins, fixed before any network was trained on recordings of people. Each claim has one: without it no
#: number of networks could say that maps which know nothing know nothing
_ASKED = (
    *(Question(id, "ST-ABN, Tab. 1", f"{_MORE}, {frames}", f"top-1 with S and T minus the baseline's, {seen}",
               _WITHOUT, 0.01, "share") for id, (frames, seen) in _CLIPS.items()),
    Question("D1 equal weights", "ST-ABN, Tab. 1", "what is gained is gained by attention", "top-1 with S and T minus "
             "the wider baseline's", "the branch's loss without attention, against the same", 0.01, "share"),
    *(Question(f"D2 {kind}", "ST-ABN, Fig. 3", said, f"rank correlation of the map with local energy {_ABOVE}",
               "a branch without training", 0.05) for kind, said in _MOVING.items()),
    *(Question(f"D2 {kind}, motifs", "ST-ABN, Fig. 3", f"{said}, which is characteristic of the action", "AUC of the "
               f"map for planted motifs, harder made-up data, minus 0.5 {_ABOVE}", "a branch without training; the "
               "largest deviation, without any network", 0.05) for kind, said in _MOVING.items()),
    *(Question(id, "ST-ABN, Tab. 2", _LOWER.format(kind), "drop of macro F1 by inversion minus the largest by what "
               "has its scale and no map of the window", "a constant of the inverted map's mean; the inverted map "
               "of another window", 0.02, "share") for (_, kind), id in ASKED.items()),
)  # fmt: skip
QUESTIONS: dict[str, Question] = {of.id: of for of in _ASKED}


def beyond(table: pd.DataFrame, lens: str, own: str, other: str, nothing: float = 0.0) -> pd.Series:
    """What a lens' map says of its own window above ``nothing`` and above what another window's map says: (network,).

    ``own`` and ``other`` are columns of ``table``. The smaller of the two, because a map that is the same in all
    windows may lie well above nothing, and one that points away well above that of another window.
    """
    of = table[table["lens"] == lens]
    return of[own].sub(of[other].clip(lower=nothing))


def judged(
    accuracy: pd.DataFrame, edited: Mapping[str, pd.DataFrame], alike: pd.DataFrame, located: pd.DataFrame
) -> list[dict]:
    """The verdicts, from what ST-ABN and others are on the run's own data: :func:`accuracies`, ``alike``.

    ``edited`` are :func:`attention.edits` by level, ``located`` is :func:`attention.located` of harder made-up data.
    """
    found, top = [], {}
    for clips, own in accuracy.groupby("clips"):
        top[clips] = own.pivot(index="seed", columns="network", values="top-1")
    for name, clips, against in (("D1", 1, BASELINE), ("D1 two clips", 2, BASELINE), ("D1 equal weights", 1, WIDER)):
        gains = {of: top[clips][of] - top[clips][against] for of in COMPARED if of != against}
        found.append(judge(QUESTIONS[name], gains.pop(ATTENDING), gains))
    energy = alike[alike["beside"] == "local energy"]
    measures = {"": (energy, "own", "other", 0.0), ", motifs": (located, "AUC", "AUC of another window", 0.5)}
    for what, (table, *about) in measures.items():
        for kind, of in table.groupby("attention", sort=False):
            each = {lens: beyond(of, lens, *about) for lens in ("attention", "untrained branch", attention.NO_NETWORK)}
            if not what:  # deviation is what local energy is made of
                del each[attention.NO_NETWORK]
            found.append(judge(QUESTIONS[f"D2 {kind}{what}"], each.pop("attention"), each))
    for (level, kind), name in ASKED.items():
        table = edited[level]
        values = drops(table[table["edited"] == kind])
        controls = {f"drop, {of}": values[of] for of in EDITS if of != ITSELF}
        found.append(judge(QUESTIONS[name], values[BEYOND_SCALE], controls))
    return found


def answer(verdict: Mapping[str, Mapping]) -> str:
    """What the verdicts, by id, say in a few sentences, controls first and foremost."""
    turned, other = verdict["D3 both"]["controls"], verdict["D1"]["controls"]
    lost = [
        number(turned[f"drop, {of}"]["value"], ".3f") for of in (INVERTED, SCALED, INVERTED_OTHER, INVERTED_SHUFFLED)
    ]
    beyond = number(turned[f"drop, {INVERTED}"]["value"] - turned[f"drop, {INVERTED_SHUFFLED}"]["value"], "+.3f")
    gained = [number(of["value"], "+.3f") for of in (verdict["D1"], other[WIDER], other[BRANCH])]
    told = {name: verdict[name]["direction"] for name in ("D3 both", f"D3 both, {HARDER}", "D1 equal weights")}
    pointing = (of for name, of in verdict.items() if name.startswith("D2"))
    ahead = {of["id"]: ", ".join(systems.ahead(of)) for of in pointing}
    maps = "; ".join(f"{id}: {names}" for id, names in ahead.items() if names)
    return (
        f"**Turning both maps over costs {lost[0]} of macro F1, a constant of that scale, without any map, "
        f"{lost[1]}**, inverted maps of other windows {lost[2]}. Does it cost more than the costlier of both, by "
        f"{verdict['D3 both']['margin']:g} at least: {told['D3 both']}, on harder made-up data "
        f"{told[f'D3 both, {HARDER}']}. Shuffled in time, which keeps what maps say of axes, they cost {lost[3]}; a "
        f"first rule counted that as a control as well, and inversion costs {beyond} more than it. "
        f"**Top-1 gains {gained[0]} by attention, {gained[1]} by a wider network with as many weights and {gained[2]} "
        "by the branch's loss alone.** Is "
        f"attention better than the wider network: {told['D1 equal weights']}."
        + (f" Maps that point as well as attention, within the margin: {maps}." if maps else "")
    )


def drops(edited: pd.DataFrame, by: Sequence[str] = ("seed",)) -> pd.DataFrame:
    """What each edit costs in macro F1, (by, edit), from :func:`attention.edits`; "macro F1" is what it is without.

    :data:`BEYOND_SCALE` is what inversion costs more than the costlier edit of the same scale, one for all networks:
    a constant has not the spread of the inverted map, that of another window has it.
    """
    by_edit = edited.pivot(index=list(by), columns="edit", values="macro F1")
    cost = by_edit.rsub(by_edit[ITSELF], axis=0)
    among = [name for name in by if name != "seed"]
    every = [own for _, own in cost.groupby(among, sort=False)] if among else [cost]
    beyond_scale = pd.concat([own[INVERTED] - best_rival(own, SAME_SCALE) for own in every])
    return cost.assign(**{"macro F1": by_edit[ITSELF], BEYOND_SCALE: beyond_scale})
