"""Outputs of a layer turned into a sparse code: do single units carry what a network knows, or directions among them?

A TopK sparse autoencoder (Makhzani and Frey 2014; Gao et al. 2024) writes the vector h of all units' outputs at one
place as a sum of few of many directions:

    z = TopK(ReLU(E (h - m) + b)),    h' = m + D z,

with the mean m, unit-length columns of D, and all but the ``n_active`` largest entries of z zero. It learns to make the
squared error small. Each entry of z, a *latent*, gives out a map like a unit's, so that everything asked of units can
be asked of latents. Beside them stand random directions, as many and coded alike (the code before training).

The best of many directions is better than the best of few, and the best on the windows it was chosen on is better than
on others. So for each concept a direction is chosen on training people and judged on test people, and what counts is
what is expected where only as many directions are there to choose from as there are units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import hypergeom, rankdata
from torch import Tensor
from torch.nn import functional as F

from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses import concepts, dissection
from harvis_utils.lenses.dissection import over_networks
from harvis_utils.metrics.intervals import traded
from harvis_utils.metrics.recovery import chance_point
from harvis_utils.networks import taps
from harvis_utils.parallel import side_by_side
from harvis_utils.settings import Settings, UnitSettings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, macro_f1, predict

#: about so many windows' outputs does a code learn from, and is it checked on, which bounds the memory
N_LEARNED = 8000
#: vectors coded at once, which bounds it too
CHUNK = 1 << 16
#: vectors in a step, and the learning rate, which falls to 0 along a line
BATCH, RATE = 2048, 2e-3
#: a latent that was silent for so many steps is dead, and learns what the others leave (Gao et al. 2024, A.2)
SILENT_STEPS, DEAD_WEIGHT = 50, 1 / 32
#: share of stretches, single axes of windows, that are those with a direction's largest outputs
STRONGEST = 0.02
#: Choice: fewer networks have no interval
FEWEST_NETWORKS = 3
#: what is read: directions by how they come about, those of networks with random weights too
TRAINED = ("latents", "units", "rotated units", "random directions")
KINDS = (*TRAINED, "latents, random weights", "units, random weights")
#: Choice: the rule by which it is judged what carries concepts, fixed before any network of recordings was read:
#: the interval of the difference to *each* rival lies above zero, and the difference reaches the margin, a quarter of
#: the IoU from which a unit is a detector. Rivals tell apart number and coding, the basis, and the network's training
MEASURE, MARGIN = "IoU of concepts", 0.01
RIVALS = {
    "latents": ("directions", ("units", "rotated units", "random directions", "latents, random weights")),
    "units": ("units", ("rotated units", "latents", "units, random weights")),
}


@dataclass(frozen=True)
class Code:
    """A sparse code: ``encoder`` and ``decoder`` are (latent, unit), ``bias`` (latent,), ``mean`` (unit,).

    Vectors are divided by ``scale``, their root mean square, before anything else.
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    mean: Tensor
    scale: Tensor
    n_active: int

    def latents(self, h: Tensor) -> Tensor:
        """Codes of vectors (..., unit): (..., latent), all but the largest ``n_active`` zero."""
        every = self.all_latents(h)
        top = every.topk(self.n_active, dim=-1)
        return torch.zeros_like(every).scatter(-1, top.indices, top.values)

    def all_latents(self, h: Tensor) -> Tensor:
        """The same before any is left out."""
        return ((h - self.mean) / self.scale @ self.encoder.T + self.bias).relu()

    def vectors(self, z: Tensor) -> Tensor:
        """What codes (..., latent) stand for: (..., unit)."""
        return z @ self.decoder * self.scale + self.mean

    def maps(self, of: Tensor) -> Tensor:
        """Maps of latents instead of units: (window, unit, axis, time) -> (window, latent, axis, time)."""
        return torch.cat([self.latents(some.movedim(1, -1)).movedim(-1, 1) for some in of.split(taps.CHUNK)])

    def again(self, of: Tensor) -> Tensor:
        """Maps of units, written down by the code and read again."""
        return self.vectors(self.latents(of.movedim(1, -1))).movedim(-1, 1)


def begun(h: Tensor, settings: UnitSettings, seed: int) -> Code:
    """A code before training, for vectors (vector, unit): directions at random, the encoder as the decoder."""
    n_units, generator = h.shape[1], torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(settings.per_unit * n_units, n_units, generator=generator), dim=1)
    mean = h.mean(0)
    scale = (h - mean).square().mean().sqrt().clamp(min=1e-12)
    return Code(directions.clone(), torch.zeros(len(directions)), directions, mean, scale, settings.n_active)


def learned(h: Tensor, settings: UnitSettings, seed: int) -> Code:
    """A code trained on vectors (vector, unit); the same seed gives the same one.

    Raises ``ValueError`` where more latents should be active than there are.
    """
    code = begun(h, settings, seed)
    if code.n_active > len(code.decoder):
        raise ValueError(f"{code.n_active} of {len(code.decoder)} latents cannot be active at a time")
    weights = [of.requires_grad_() for of in (code.encoder, code.bias, code.decoder)]
    optimizer = torch.optim.Adam(weights, lr=RATE)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.n_steps)
    generator, silent = torch.Generator().manual_seed(seed), torch.zeros(len(code.decoder))
    for _ in range(settings.n_steps):
        some = h[torch.randint(len(h), (BATCH,), generator=generator)]
        every, z = code.all_latents(some), code.latents(some)
        left = (some - code.vectors(z)) / code.scale
        loss, dead = left.square().mean(), silent >= SILENT_STEPS
        if dead.any():
            best = (every * dead).topk(min(len(code.mean) // 2, len(dead)), dim=-1)
            of_dead = torch.zeros_like(every).scatter(-1, best.indices, best.values)
            loss = loss + DEAD_WEIGHT * (left.detach() - of_dead @ code.decoder).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        falling.step()
        with torch.no_grad():
            code.decoder.copy_(F.normalize(code.decoder, dim=1))
            silent = torch.where((z > 0).any(0), 0.0, silent + 1)
    for of in weights:
        of.requires_grad_(False)
    return code


def vectors(network: Network, layer: str, split: Split) -> Tensor:
    """Outputs of all units at every axis and time of thinned windows: (vector, unit)."""
    some = split.every(max(1, round(len(split) / N_LEARNED)))
    return taps.outputs(network.model, layer, some.x).movedim(1, -1).flatten(0, 2)


@kept("sparse_codes")
def weights_of(network: Network, windows: Windows, layer: str, settings: UnitSettings, steps: int) -> dict[str, Tensor]:
    """A code of a layer's outputs on training windows, after so many steps (0: before training), as its weights."""
    h = vectors(network, layer, windows.train)
    code = (learned if steps else begun)(h, settings, network.seed)
    return {name: getattr(code, name) for name in ("encoder", "bias", "decoder", "mean", "scale")}


def code_of(network: Network, windows: Windows, layer: str, settings: UnitSettings, trained: bool = True) -> Code:
    """The code of a layer of a network, or the one before training; made where it is missing."""
    steps = settings.n_steps if trained else 0
    return Code(**weights_of(network, windows, layer, settings, steps), n_active=settings.n_active)


# --------------------------------------------------------------------------------------------- is the code any good


@kept("sparse_codes")
def checked(network: Network, windows: Windows, layer: str, settings: UnitSettings) -> dict[str, float]:
    """What a code keeps of the network, on test windows: is it fit to be asked what the network knows?

    "R2" of the reconstruction and of as many random directions; macro "F1" of the network, with the reconstruction in
    place of the layer's outputs, with random directions' and with the mean in that place; the share of "dead" latents,
    silent on all training windows the code was made of.
    """
    test, norm = windows.test, network.model.get_submodule(f"norm_{layer}")
    codes = {"": code_of(network, windows, layer, settings)}
    codes[", random directions"] = code_of(network, windows, layer, settings, trained=False)
    h = vectors(network, layer, test)
    found = {"F1": macro_f1(test, predict(network.model, test))}

    def spliced(of: Callable[[Tensor], Tensor]) -> float:
        # what comes out of the norm is rectified next, and a reconstruction of rectified outputs is what it should be
        hook = norm.register_forward_hook(lambda module, args, output: of(output.relu()))
        try:
            return macro_f1(test, predict(network.model, test))
        finally:
            hook.remove()

    for name, code in codes.items():
        left = sum(float((of - code.vectors(code.latents(of))).square().sum()) for of in h.split(CHUNK))
        found |= {
            f"R2{name}": 1 - left / float((h - h.mean(0)).square().sum()),
            f"F1 spliced{name}": spliced(code.again),
        }
    mean = codes[""].mean[:, None, None]
    found["F1 spliced, mean"] = spliced(lambda maps: mean.expand_as(maps).clone())
    own = vectors(network, layer, windows.train)
    alive = torch.stack([(codes[""].latents(part) > 0).any(0) for part in own.split(CHUNK)]).any(0)
    return found | {"dead": float(1 - alive.double().mean())}


# ------------------------------------------------------------------------------------------------- what they stand for


def maps_of(network: Network, windows: Windows, layer: str, settings: UnitSettings, kind: str, split: Split) -> Tensor:
    """Maps (window, direction, axis, time) of one of ``TRAINED`` for the windows of ``split``."""
    maps = taps.outputs(network.model, layer, split.x)
    if kind == "units":
        return maps
    if kind == "rotated units":
        rng = np.random.default_rng((network.seed, network.model.layers.index(layer)))
        q = torch.as_tensor(dissection.random_rotation(maps.shape[1], rng), dtype=maps.dtype)
        return torch.einsum("vu,wuat->wvat", q, maps)
    return code_of(network, windows, layer, settings, kind == "latents").maps(maps)


def choosing_and_judging(windows: Windows, thinning: int) -> tuple[Split, Split]:
    """Windows of training people on which directions are chosen, and of test people; none shares samples with others.

    Choice: every ``thinning``-th and, because there are fewer, twice as many of test people.
    """
    return windows.train.every(thinning), windows.test.every(max(2, thinning // 2))


@kept("sparse_codes")
def read(
    network: Network, windows: Windows, layer: str, settings: UnitSettings, kind: str, thinning: int, n_draws: int
) -> xr.Dataset:
    """IoU with every concept, over (direction, concept): ``chosen``, ``judged`` and ``chance``.

    ``chosen`` is of :func:`choosing_and_judging`'s first windows, ``judged`` of the second ones with the thresholds T_k
    of the first, ``chance`` of these where recordings trade places (:func:`dissection.chances`), the mean over draws.
    """
    found, limits, dims = {}, None, ("direction", "concept")
    for name, split in zip(("chosen", "judged"), choosing_and_judging(windows, thinning), strict=True):
        maps, known = maps_of(network, windows, layer, settings, kind, split), concepts.of_windows(windows, split)
        limits = limits or dissection.thresholds(maps)
        masks = dissection.unit_masks(maps, limits, *split.x.shape[1:])
        found[name] = xr.DataArray(dissection.iou(masks, known.masks), {"concept": list(known.names)}, dims)
    null = dissection.chances(masks, known.masks, n_draws, np.random.default_rng(0), split.recording).mean(-1)
    found["chance"] = found["judged"].copy(data=null)
    return xr.merge([of.rename(name) for name, of in found.items()], join="inner")


def best_of(chosen: np.ndarray, judged: np.ndarray, n: int) -> np.ndarray:
    """What the best of ``n`` directions is expected to have, for each concept: (concept,).

    Both are (direction, concept): the best by ``chosen`` has its value of ``judged``. The ``n`` are any of all
    directions; where there are no more, the best of all.
    """
    better = np.arange(len(chosen) + 1)  # the r-th best is the best of n where it is drawn and none of the better ones
    share = -np.diff(hypergeom(len(chosen), better, min(n, len(chosen))).pmf(0))
    return share @ np.take_along_axis(judged, np.argsort(-chosen, axis=0, kind="stable"), 0)


def _of_kinds(
    cfg: Settings,
    networks: Sequence[Network],
    untrained: Sequence[Network],
    one: Callable[[Network, str], pd.DataFrame],
) -> pd.DataFrame:
    """``one`` of every network and kind, rows with "kind" and "seed" beside what it gives."""
    jobs = [(net, TRAINED) for net in networks] + [(net, KINDS[len(TRAINED) :]) for net in untrained]

    def of_network(job: tuple[Network, tuple[str, ...]]) -> pd.DataFrame:  # one thread listens to it
        net, kinds = job
        return pd.concat([one(net, kind.partition(",")[0]).assign(kind=kind, seed=net.seed) for kind in kinds])

    table = pd.concat(side_by_side(cfg, of_network, jobs, "directions"), ignore_index=True)
    return table.assign(kind=pd.Categorical(table["kind"], KINDS, ordered=True)).sort_values(["kind", "seed"])


def detectors(
    cfg: Settings, windows: Windows, networks: Sequence[Network], untrained: Sequence[Network]
) -> pd.DataFrame:
    """One row per kind of direction and network: what directions of the last convolution overlap with.

    "IoU of concepts" is the mean over concepts of :func:`best_of` as many directions as there are units, "chance" the
    same where recordings trade places, "best of all" that of all directions. "unique of as many" are different concepts
    detected by the source's rule on the first windows, expected among as many directions as there are units.
    """
    layer, how = networks[0].model.layers[-1], (cfg.dissection.thinning, cfg.dissection.n_draws)
    n_units = taps.outputs(networks[0].model, layer, windows.train.x[:2]).shape[1]

    def one(network: Network, kind: str) -> pd.DataFrame:
        found = read(network, windows, layer, cfg.units, kind, *how).transpose("direction", "concept")
        chosen, judged, chance = (found[name].values for name in ("chosen", "judged", "chance"))
        row = {MEASURE: best_of(chosen, judged, n_units).mean(), "chance": best_of(chosen, chance, n_units).mean()}
        row |= {"best of all": best_of(chosen, judged, len(chosen)).mean()}
        _, many = np.unique(chosen.argmax(1)[chosen.max(1) > dissection.DETECTOR_IOU], return_counts=True)
        # a concept is among those drawn unless none of its detectors is
        return pd.DataFrame([row | {"unique of as many": hypergeom(len(chosen), many, n_units).sf(0).sum()}])

    return _of_kinds(cfg, networks, untrained, one)


def against(table: pd.DataFrame, measures: Sequence[str], first: str = "latents") -> pd.DataFrame:
    """Means over networks of ``measures`` by kind, with intervals: "value" and "latents minus this", a row each.

    ``table`` has rows of "kind" and "seed", several of them, as for each motif, averaged; the difference is taken
    network by network.
    """
    rows = {}
    for measure in measures:
        wide = table.pivot_table(measure, "seed", "kind", observed=True)
        for kind in wide:
            rows[measure, kind] = over_networks("value", wide[kind].dropna().to_numpy(), FEWEST_NETWORKS)
            if kind != first:
                more = (wide[first] - wide[kind]).dropna().to_numpy()
                rows[measure, kind] |= over_networks(f"{first} minus this", more, FEWEST_NETWORKS)
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["measure", "kind"]))


def carriers(table: pd.DataFrame) -> str:
    """What carries concepts by the rule of ``RIVALS``: "directions", "units", or "not told apart".

    Of :func:`detectors`; "not testable" with less than three networks, which have no interval.
    """
    if table["seed"].nunique() < FEWEST_NETWORKS:
        return "not testable"
    for first, (name, rivals) in RIVALS.items():
        found = against(table, [MEASURE], first).loc[MEASURE].loc[list(rivals)]
        more, low = found[f"{first} minus this"], found[f"{first} minus this low"]
        if ((low > 0) & (more >= MARGIN)).all():
            return name
    return "not told apart"


# ------------------------------------------------------------------------------------------------- planted motifs


def signed_auc(outputs: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """2 AUC - 1 of outputs (stretch,) for stretches ``inside`` (set, stretch): (set,).

    1: larger in every stretch inside than in any outside; -1: smaller; 0: no difference, or an empty set. Equal outputs
    count half.
    """
    ranks, n = rankdata(outputs), inside.sum(1).astype(float)
    rest = inside.shape[1] - n
    larger = inside @ ranks - n * (n + 1) / 2
    return np.where((n > 0) & (rest > 0), 2 * larger / np.maximum(n * rest, 1) - 1, 0.0)


def motif_scores(
    maps: tuple[Tensor, Tensor], masks: tuple[np.ndarray, np.ndarray], recording: np.ndarray, n_draws: int
) -> pd.DataFrame:
    """How well the best direction for each motif, chosen on some windows, finds it in others; one row per motif.

    ``maps`` (window, direction, axis, time) and ``masks`` (motif, window, axis, time) are of the windows to choose on
    and of those to judge on, ``recording`` (window,) of the latter. "signed AUC" is that of the largest output in a
    stretch, one axis of a window, for stretches that hold some of the motif (:func:`signed_auc`), by which directions
    are chosen; "hits" the share of the ``STRONGEST`` stretches whose largest output lies inside the motif, "chance" the
    95 % point of that where recordings trade places; "recall" whether most of them do, and more than by chance.
    """
    (tops, _), (judged, at) = (of.max(3) for of in maps)  # (window, direction, axis)
    tops, judged, at = (of.transpose(0, 1).flatten(1).numpy() for of in (tops, judged, at))
    inside, there = (of.any(3).reshape(len(of), -1) for of in masks)
    chosen = np.stack([signed_auc(of, inside) for of in tops]).argmax(0)
    others = list(traded(recording, n_draws, np.random.default_rng(0)))
    rows = []
    for motif, direction in enumerate(chosen):
        strongest = np.argsort(-judged[direction], kind="stable")[: max(1, round(STRONGEST * judged.shape[1]))]
        window, axis = np.divmod(strongest, maps[1].shape[2])
        peak = at[direction, strongest]
        hits, *null = [masks[1][motif, of[window], axis, peak].mean() for of in (np.arange(len(recording)), *others)]
        chance = chance_point(np.array(null))
        row = {"motif": motif, "direction": int(direction), "hits": hits, "chance": chance}
        row |= {"signed AUC": signed_auc(judged[direction], there[[motif]])[0]}
        rows.append(row | {"recall": float(hits > max(chance, 0.5))})
    return pd.DataFrame(rows)


@kept("sparse_codes", apart=("truth",))
def motifs_of(
    network: Network,
    windows: Windows,
    truth: PlantedMotifs,
    layer: str,
    settings: UnitSettings,
    kind: str,
    thinning: int,
    n_draws: int,
) -> pd.DataFrame:
    """:func:`motif_scores` of one kind of direction of a network; ``truth`` belongs to the windows."""
    splits = choosing_and_judging(windows, thinning)
    maps = tuple(maps_of(network, windows, layer, settings, kind, split) for split in splits)
    masks = tuple(concepts.of_motifs(truth, split).masks for split in splits)
    return motif_scores(maps, masks, splits[1].recording, n_draws)


def motif_table(
    cfg: Settings, windows: Windows, networks: Sequence[Network], untrained: Sequence[Network], truth: PlantedMotifs
) -> pd.DataFrame:
    """:func:`motifs_of` for every kind of direction and network, rows with "kind", "seed" and the motif's name."""
    layer, how = networks[0].model.layers[-1], (cfg.dissection.thinning, cfg.dissection.n_draws)
    table = _of_kinds(
        cfg, networks, untrained, lambda net, kind: motifs_of(net, windows, truth, layer, cfg.units, kind, *how)
    )
    return table.assign(motif=np.array(truth.names)[table["motif"]])


def matched(windows: Windows, truth: PlantedMotifs, thinning: int, n_draws: int) -> pd.DataFrame:
    """:func:`motif_scores` of filters that are the motifs themselves: the most that a direction can know."""
    splits = choosing_and_judging(windows, thinning)
    maps = []
    for split in splits:
        x, own = torch.tensor(split.x).flatten(0, 1)[:, None], []
        for shape in truth.shapes:  # of odd length; what lies beyond a window's ends is as its last sample
            wide = F.pad(x, (len(shape) // 2,) * 2, mode="replicate")
            of = F.conv1d(wide, torch.tensor(shape - shape.mean(), dtype=x.dtype)[None, None])
            own.append(of.view(split.x.shape))
        maps.append(torch.stack(own, 1))
    masks = tuple(concepts.of_motifs(truth, split).masks for split in splits)
    table = motif_scores(tuple(maps), masks, splits[1].recording, n_draws)
    return table.assign(motif=np.array(truth.names)[table["motif"]])
