"""What a unit stands for, asked again: beyond loudness, at its lowest outputs, after fine-tuning, in other networks.

Where a signal is large, a unit's output is large, whatever the unit looks for, and so is the overlap with concepts of
large signals (*impact*). Here a unit's concept is the one that it overlaps most beyond what is expected where only
stretches of the same energy trade places.

*Stretches of the same energy.* Windows, single axes of windows for units that see these by themselves, are put into
tenths by their energy, the variance over time. All of a recording that lies in one tenth is a stretch, in order of
time; a draw lets the stretches of one tenth trade places (:func:`intervals.traded`, with the tenths as groups). So
concepts keep their company, the energy of where they hold, and which windows of a recording go together within a
tenth; what a recording has in two tenths may go to different places. Whole recordings cannot trade within a tenth,
because none lies in one.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn

from harvis_utils.data.windowing import SPLITS, Split, Windows
from harvis_utils.lenses import concepts, dissection
from harvis_utils.lenses.concepts import Concepts
from harvis_utils.metrics.intervals import over_networks
from harvis_utils.metrics.recovery import chance_point
from harvis_utils.networks import recurrent, taps
from harvis_utils.parallel import side_by_side, torch_device
from harvis_utils.settings import PooledSettings, Settings, TrainingSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised
from harvis_utils.training.supervised import Network

#: Choice: parts of equal size into which windows are put by their energy
N_LEVELS = 10
#: which outputs make a unit's mask: its largest 0.5 %, or its smallest, those below zero too
SIDES = ("highest", "lowest")
#: what a unit stands for that overlaps no concept more than by chance
NOTHING = "none"
#: concepts of the signal turned over
_TURNED = {"rising edge": "falling edge", "peak": "valley", "gravity +": "gravity -"}
TURNED = _TURNED | {turned: name for name, turned in _TURNED.items()}
#: Choice: a GRU learns slower than SF-HF, so that it gets so many times the epochs and the learning rate
RECURRENT_EPOCHS, RECURRENT_RATE = 3, 4.0

# --------------------------------------------------------------------------------------------------- beyond loudness


def levels(x: np.ndarray) -> np.ndarray:
    """Tenth of the energy, 0 to ``N_LEVELS`` - 1, of each stretch of signals (stretch, axis, time): (stretch,)."""
    order = x.var(2).sum(1).argsort(kind="stable").argsort(kind="stable")
    return order * N_LEVELS // len(order)


def dissect(maps: Tensor, known: Concepts, split: Split, n_draws: int, positions=None) -> xr.Dataset:
    """One layer dissected beyond loudness: ``iou`` and ``excess`` (unit, concept), ``limit`` (unit,).

    ``maps`` (window, unit, axis, time) and ``known`` are of the windows of ``split``. ``excess`` is IoU minus its mean
    over draws in which stretches of the same energy trade places, in standard deviations of these draws, one for each
    concept: else concepts that hold about as often as a mask would win by their share alone. ``limit`` is the 95 %
    point of the largest excess among all concepts, each draw against the mean of the others.
    """
    x, masks, recording = split.x, known.masks, split.recording
    n_axes = maps.shape[2]
    if n_axes == x.shape[1]:  # each axis of a window is a window by itself
        maps = maps.transpose(1, 2).flatten(0, 1)[:, :, None]
        masks = masks.reshape(len(masks), -1, 1, masks.shape[-1])
        recording = (recording[:, None] * n_axes + np.arange(n_axes)).ravel()
        x = x.reshape(-1, 1, x.shape[-1])
    else:
        masks = masks.any(2, keepdims=True)
    units = dissection.unit_masks(maps, dissection.thresholds(maps), 1, masks.shape[-1], positions)
    iou = dissection.iou(units, masks)
    null = dissection.chances(units, masks, n_draws, np.random.default_rng(0), recording, levels(x))
    mean = null.mean(-1, keepdims=True)
    spread = np.sqrt(np.square(null - mean).mean((0, 2)) * n_draws / (n_draws - 1))
    unit_of = 1 / np.where(spread > 0, spread, np.inf)  # a concept that never overlaps by chance says nothing
    excess, others = (iou - mean[..., 0]) * unit_of, (null - mean) * unit_of[:, None] * n_draws / (n_draws - 1)
    both = ("unit", "concept")
    return xr.Dataset(
        {"iou": (both, iou), "excess": (both, excess), "limit": ("unit", chance_point(others.max(1)))},
        coords={"unit": np.arange(len(iou)), "concept": list(known.names)},
    )


@kept("unit_concepts", apart=("device",))
def read_network(
    network: Network,
    windows: Windows,
    thinning: int,
    first: int,
    known: Concepts,
    n_draws: int,
    side: str,
    carried: bool = False,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """:func:`dissect` of all layers of a network on every ``thinning``-th training window: (layer, unit, concept).

    ``first`` is the number of the first one. The ``lowest`` side takes the outputs before the rectifier, turned over.
    With ``carried`` a recurrent network reads whole recordings (:func:`recurrent.carried`).
    """
    split = windows.train.chosen(slice(first, None, thinning))
    model, parts = copy.deepcopy(network.model).to(torch_device(device)), []
    for layer in model.layers:
        before = f"norm_{layer}" if side == "lowest" and hasattr(model, f"norm_{layer}") else layer
        maps = recurrent.carried(model, split) if carried else taps.outputs(model, before, split.x)
        positions = None if carried else taps.positions(model, before, split.x[:2])
        parts.append(dissect(maps if side == "highest" else -maps, known, split, n_draws, positions))
    return xr.concat(parts, pd.Index(model.layers, name="layer"))


def meanings(found: xr.Dataset) -> pd.DataFrame:
    """One row per layer and unit of :func:`read_network`'s result: what it stands for.

    "loudest" is the concept with the largest IoU, as in the source; "concept" the one with the largest IoU above what
    loudness explains, that "excess", and ``NOTHING`` where it is within chance.
    """
    found = found.transpose("layer", "unit", "concept")
    excess, names = found["excess"], found["concept"].values
    best = excess.max("concept")
    clear = (best > found["limit"]).values
    columns = {
        "loudest": names[found["iou"].argmax("concept").values],
        "concept": np.where(clear, names[excess.argmax("concept").values], NOTHING),
        "excess": best.values,
        "IoU": found["iou"].max("concept").values,
    }
    index = pd.MultiIndex.from_product([map(str, best["layer"].values), best["unit"].values], names=best.dims)
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index).reset_index()


def readings(
    cfg: Settings,
    windows: Windows,
    networks: Sequence[Network],
    side: str = "highest",
    again: bool = False,
    carried: bool = False,
    kind: str | None = None,
) -> pd.DataFrame:
    """:func:`meanings` of all networks, with their "seed", on thinned training windows.

    Choice: twice as many as ``cfg.dissection`` says, because these networks' windows are thinned already. ``again``
    takes as many other windows, half-way between these; ``kind`` only concepts of that kind.
    """
    thinning = max(2, cfg.dissection.thinning // 2)
    first = thinning // 2 if again else 0
    known = concepts.of_windows(windows, windows.train.chosen(slice(first, None, thinning)))
    known = known.only(kind) if kind else known
    about = (windows, thinning, first, known, cfg.dissection.n_draws, side, carried)
    found = side_by_side(cfg, lambda net: meanings(read_network(net, *about, device=cfg.device)), networks)
    return pd.concat([part.assign(seed=net.seed) for part, net in zip(found, networks, strict=True)], ignore_index=True)


def weighed(cfg: Settings, windows: Windows, model, training: TrainingSettings, **how) -> pd.DataFrame:
    """:func:`readings` of networks of these settings, trained where they are missing, and of random weights."""
    both = {
        "trained": supervised.networks(cfg, windows, model, training),
        "random weights": supervised.untrained(cfg, windows, model, training),
    }
    return pd.concat([readings(cfg, windows, of, **how).assign(weights=name) for name, of in both.items()])


#: what is counted of a network's units
MEASURES = ("unique", "units with a concept", "impact, loudest", "impact")


def numbers(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """:func:`readings` with columns ``by`` as numbers: a row for each of ``by`` and each network.

    "unique" are different concepts that units stand for, "units with a concept" their share, "impact, loudest" and
    "impact" the shares of units whose concept that is, by the source's rule and beyond loudness.
    """
    own = table.assign(
        unique=table["concept"].where(table["concept"] != NOTHING),
        impact=table["concept"] == "impact",
        **{"units with a concept": table["concept"] != NOTHING, "impact, loudest": table["loudest"] == "impact"},
    ).groupby([*by, "seed"], sort=False)
    return pd.concat([own["unique"].nunique(), own[list(MEASURES[1:])].mean()], axis=1).reset_index()


def counted(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """:func:`numbers` with their intervals over networks, a row for each of ``by``."""
    return over_networks(numbers(table, by), by, MEASURES, least=3)


# ----------------------------------------------------------------------------------------------------- both sides


def both_sides(cfg: Settings, windows: Windows, model, training: TrainingSettings, carried: bool) -> list[pd.DataFrame]:
    """:func:`weighed` at each of ``SIDES``, with a column "side"."""
    return [weighed(cfg, windows, model, training, side=side, carried=carried).assign(side=side) for side in SIDES]


def sides(highest: pd.DataFrame, lowest: pd.DataFrame) -> pd.DataFrame:
    """What units stand for at their highest and at their lowest outputs, of :func:`weighed`: a row per layer, network.

    Shares of units with a concept at their "highest" and at their "lowest" outputs; of those whose largest IoU is
    "larger at the lowest"; and, of those with both, whose lower one is the upper one "turned over", beside the same of
    pairs of any two units.
    """
    both = highest.merge(lowest, on=["weights", "seed", "layer", "unit"], suffixes=(" high", " low"))
    rows = {}
    for who, own in both.groupby(["layer", "weights", "seed"], sort=False):
        high, low = own["concept high"], own["concept low"]
        clear = (high != NOTHING) & (low != NOTHING)
        wanted, there = high[clear].map(TURNED).to_numpy(), low[clear].to_numpy()
        rows[who] = {
            "highest": (high != NOTHING).mean(),
            "lowest": (low != NOTHING).mean(),
            "larger at the lowest": (own["IoU low"] > own["IoU high"]).mean(),
            "turned over": (wanted == there).mean() if clear.any() else np.nan,
            "turned over, any two": (wanted[:, None] == there).mean() if clear.any() else np.nan,
        }
    index = pd.MultiIndex.from_tuples(rows, names=["layer", "weights", "seed"])
    return pd.DataFrame(rows.values(), index).reset_index()


def beyond_random(found: pd.DataFrame, measure: str) -> pd.DataFrame:
    """A ``measure`` of :func:`sides`, with a column "network" (a kind), as means over layers: one row per kind.

    Means of networks that are "trained" and of "random weights", and how much "more" the first have, network by
    network, with the interval: what random weights have too is not learned.
    """
    own = found.groupby(["network", "seed", "weights"], sort=False)[measure].mean().unstack()
    own = own.assign(more=own["trained"] - own["random weights"])
    rows = {
        kind: dict(of.mean()) | dissection.over_networks("more", of["more"], least=3)
        for kind, of in own.groupby("network")
    }
    return pd.DataFrame(rows).T


def stretches(network: Network, split: Split, units: Sequence[int], n: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Where outputs of a recurrent network's units reach highest, and lowest, along recordings.

    For each of ``units`` the ``n`` windows of each kind, no two of a kind of one recording: signals (unit, 2 n, axis,
    time) in G and the unit's outputs (unit, 2 n, time), the highest first.
    """
    outputs = recurrent.carried(network.model, split)[:, list(units), 0].transpose(0, 1).numpy()
    chosen = []
    for own in outputs:
        found = []
        for tops in (own.max(1), -own.min(1)):
            order = np.argsort(-tops, kind="stable")
            _, first = np.unique(split.recording[order], return_index=True)
            found += order[np.sort(first)[:n]].tolist()
        chosen.append(found)
    return split.x[np.array(chosen)], np.stack([own[at] for own, at in zip(outputs, chosen, strict=True)])


def architectures(cfg: Settings) -> dict[str, tuple[object, TrainingSettings]]:
    """Name of each kind of network, as large as the profile's own -> its settings and how it is trained."""
    model, training = cfg.model, replace(cfg.training, seeds=cfg.units.seeds)
    longer = replace(
        training, epochs=RECURRENT_EPOCHS * training.epochs, learning_rate=RECURRENT_RATE * training.learning_rate
    )
    return {
        "SF-HF": (model, training),
        "no batch norm": (replace(model, batch_norm=False), training),
        "half as many units": (replace(model, n_units=model.n_units // 2), training),
        "max pooling": (PooledSettings(**asdict(model)), training),
        "GRU": (cfg.units.recurrent, longer),
    }


# ------------------------------------------------------------------------------------------------------ fine-tuning

#: what the two halves of the data differ in
HALVES = ("activities", "people")


def half(windows: Windows, by: str, which: int) -> Windows:
    """Every second activity, or all activities of every second training person, from the one of number ``which`` on."""
    if by == "people":
        people = np.unique(windows.train.subject)[which::2]
        return replace(windows, train=windows.train.chosen(np.isin(windows.train.subject, people)))
    splits = {}
    for name in SPLITS:
        split = getattr(windows, name)
        own = split.chosen(split.activity % 2 == which)
        splits[name] = replace(own, activity=own.activity // 2)
    return replace(windows, **splits, activities=windows.activities[which::2])


@kept("fine_tuned", apart=("device",))
def tuned(
    network: Network, windows: Windows, training: TrainingSettings, *, device: str | None = None
) -> dict[str, Tensor]:
    """A network trained further on other windows, its class layer anew: "weights.*", and classes of "test" windows."""
    model = copy.deepcopy(network.model)
    with supervised.drawing(network.seed):
        model.classes = nn.Linear(model.classes.in_features, len(windows.activities))
    model.to(torch_device(device))
    notes = supervised.fit_best(model, windows, training, network.seed)
    weights = {f"weights.{name}": values for name, values in model.state_dict().items()}
    return weights | {"test": torch.as_tensor(notes["best"]["test"])}


def fine_tuned(cfg: Settings, windows: Windows, by: str) -> tuple[list[Network], list[Network], list[Network]]:
    """Networks trained on the first half of ``windows``, and these trained further, all layers: on it, on the second.

    Both times with a new class layer.
    """
    training = replace(cfg.training, seeds=cfg.units.seeds)
    halves = [half(windows, by, which) for which in (0, 1)]
    before, training = supervised.networks(cfg, halves[0], training=training), replace(training, seeds=())

    def one(job: tuple[Network, Windows]) -> Network:
        network, own = job
        found = tuned(network, own, training, device=cfg.device)
        model = supervised.new_model(own, cfg.model, network.seed)
        model.load_state_dict(supervised.part_of(found, "weights."))
        key = tuned.key(network, own, training)
        return Network(network.seed, model.eval(), {}, -1, {"test": found["test"].numpy()}, {}, key, 0.0)

    after = side_by_side(cfg, one, [(net, own) for own in halves for net in before], "fine-tuning")
    return before, after[: len(before)], after[len(before) :]


def kept_concepts(before: pd.DataFrame, after: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Share of units with a concept that have the same one afterwards: a row per layer, network and comparison.

    All are :func:`readings`, ``after`` by its name. "another network" is any unit of that layer in a network of another
    seed, of the last ones of ``after``: the null.
    """
    rows = []
    for (layer, seed), own in before.groupby(["layer", "seed"], sort=False):
        there, found = own["concept"].to_numpy() != NOTHING, {}
        concept = own["concept"].to_numpy()[there]
        for name, of in after.items():
            of = of[of["layer"] == layer]
            found[name] = concept == of[of["seed"] == seed]["concept"].to_numpy()[there]
        found["another network"] = concept[:, None] == of[of["seed"] != seed]["concept"].to_numpy()
        rows += [
            {"layer": layer, "seed": seed, "compared with": name, "share": of.mean() if of.size else np.nan}
            for name, of in found.items()
        ]
    return pd.DataFrame(rows)


def kept_less(table: pd.DataFrame) -> dict[str, float]:
    """What share fine-tuned units keep, minus that of each comparison, of :func:`kept_concepts`: with intervals."""
    wide = table.pivot_table("share", "seed", "compared with")
    parts = (
        dissection.over_networks(of, wide["fine-tuned"] - wide[of], least=3) for of in wide.drop(columns="fine-tuned")
    )
    return {name: value for part in parts for name, value in part.items()}


def changes(cfg: Settings, windows: Windows, by: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, float]:
    """:func:`kept_concepts`, :func:`readings` before and after fine-tuning, and macro F1 on the second half's test.

    Beside fine-tuned networks stand the same ones read on other windows, which is the ceiling, and those trained
    further on what they knew, which tells further training from other data.
    """
    before, further, tuned_to = fine_tuned(cfg, windows, by)
    old, same, on, new = (
        readings(cfg, windows, of, again=more)
        for of, more in ((before, False), (before, True), (further, True), (tuned_to, True))
    )
    kept_ones = kept_concepts(old, {"not trained further": same, "trained further": on, "fine-tuned": new})
    test = half(windows, by, 1).test
    f1 = np.mean([supervised.macro_f1(test, network.predicted["test"]) for network in tuned_to])
    return kept_ones.assign(halves=f"other {by}"), old, new, float(f1)


def became(before: pd.DataFrame, after: pd.DataFrame, layer: str) -> pd.DataFrame:
    """How many units per network with the concept of a row have that of a column afterwards, of :func:`readings`."""
    both = before.merge(after, on=["seed", "layer", "unit"], suffixes=(" before", " after"))
    own = both[both["layer"] == layer]
    names = list(pd.concat([own["concept before"], own["concept after"]]).value_counts().index)
    table = pd.crosstab(own["concept before"], own["concept after"]).reindex(index=names, columns=names, fill_value=0)
    return (table / own["seed"].nunique()).rename_axis(index="before", columns="after fine-tuning")
