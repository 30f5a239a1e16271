"""Units and concepts turned into IoU: network dissection (Bau, Zhou et al. 2017, section 2) for sensor windows.

A unit's *mask* are the samples where its output is among the largest 0.5 %. It stands for a concept as far as its mask
and the concept's overlap: intersection over union (IoU), counted over all windows, axes and times. A unit *detects* the
concept with the largest IoU where that exceeds 0.04, as in the source, or what the best of as many concepts reaches by
chance. A layer's *unique detectors* are the different concepts its units detect.

Units that see one axis at a time are compared axis by axis; where a layer has merged the axes, a concept holds at a
time where it holds on any axis. An IoU cannot exceed the share of the smaller mask in the larger one, so a concept that
holds at more than 12.5 % of the samples has no detector at 0.04 (:func:`ceiling`).

The baselines are the same networks with random weights, and rotated bases (section 3.2 of the source): a layer's
outputs, multiplied by an orthogonal matrix Q, hold all they held, and the next layer could undo it; only the single
units are others. If these mean less than the network's own, meaning is a matter of the basis.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy import linalg, sparse
from torch import Tensor

from harvis_utils.data.windowing import Split, Windows
from harvis_utils.lenses.concepts import Concepts
from harvis_utils.metrics.intervals import ENOUGH_SEEDS, traded, verdict, with_interval
from harvis_utils.metrics.recovery import chance_point
from harvis_utils.networks import taps
from harvis_utils.parallel import torch_device
from harvis_utils.settings import Settings
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

#: Paper (Bau, Zhou et al. 2017, section 2.3): share of outputs above T_k, and the IoU from which a unit is a detector
SHARE, DETECTOR_IOU = 0.005, 0.04

# -------------------------------------------------------------------------------------------------- thresholds


class Thresholds(NamedTuple):
    """``t_k`` of every unit, and ``rest``, its smallest output; (unit,) each."""

    t_k: np.ndarray
    rest: np.ndarray


def thresholds(maps: Tensor, share: float = SHARE) -> Thresholds:
    """T_k of every unit, the output that a ``share`` of all its outputs exceeds, and its output at rest.

    ``maps`` are (window, unit, axis, time). Of n outputs T_k is the (floor(share n) + 1)-th largest, so without ties
    exactly floor(share n) exceed it. Raises ``ValueError`` for a share outside (0, 1), no window, or outputs that are
    not finite.
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share} should be between 0 and 1")
    if not len(maps):
        raise ValueError("there are no windows to take thresholds from")
    if not torch.isfinite(maps).all():
        raise ValueError("a unit's output is NaN or infinite; a network that diverged has no thresholds")
    n_outputs = maps[:, 0].numel()
    at = max(n_outputs - int(np.floor(share * n_outputs + 1e-9)), 1)
    t_k = torch.stack([maps[:, unit].flatten().kthvalue(at).values for unit in range(maps.shape[1])])
    return Thresholds(t_k.cpu().numpy(), maps.amin((0, 2, 3)).cpu().numpy())


def unit_masks(
    maps: Tensor, limits: Thresholds, n_axes: int, n_time: int, positions: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Where each unit's output is T_k or more: (unit, sample), samples being (window, axis, time) in that order.

    ``positions`` (map sample,) are the samples of the window that those of the maps are about
    (:func:`networks.taps.positions`); maps as long as the windows need none. Between them maps are interpolated
    linearly (the source: bilinear), after T_k was taken; before the first and behind the last a unit sees no sample, so
    none is in its mask. Where T_k is the unit's output at rest, the mask are all outputs above that. Raises
    ``ValueError`` for maps that have neither the windows' axes nor one, and for shorter ones without positions.
    """
    n_windows, n_units, axes, time = maps.shape
    if axes not in (1, n_axes):
        raise ValueError(
            f"these maps have {axes} axes, the windows {n_axes}: units are compared with concepts on each axis, or "
            "over all axes where a layer has merged them; name a layer before or after the one that merges some"
        )
    if time == 1:  # interpolating a single value would round it
        maps = maps.expand(-1, -1, -1, n_time)
    elif positions is not None and not np.array_equal(positions, np.arange(n_time)):
        maps = _placed(maps, np.asarray(positions, float), n_time)
    elif time != n_time:
        raise ValueError(
            f"these maps have {time} samples, the windows {n_time}: say where in a window they are, "
            "positions=taps.positions(network, layer, windows)"
        )
    t_k, rest = (torch.as_tensor(of, device=maps.device)[:, None, None] for of in limits)
    on = (maps >= t_k) & ((t_k > rest) | (maps > rest))
    return sparse.csr_matrix(on.transpose(0, 1).flatten(1).cpu().numpy()).astype(np.float64)


def _placed(maps: Tensor, positions: np.ndarray, n_time: int) -> Tensor:
    """Maps (..., map sample) at the windows' samples; NaN, which is in no mask, where there are none."""
    if len(positions) != maps.shape[-1] or (np.diff(positions) <= 0).any():
        raise ValueError(f"maps of {maps.shape[-1]} samples need as many positions, each later than the one before")
    at = np.interp(np.arange(n_time), positions, np.arange(len(positions)), left=np.nan, right=np.nan)
    before = np.clip(np.nan_to_num(at).astype(int), 0, len(positions) - 2)
    share = torch.as_tensor(at - before, dtype=maps.dtype, device=maps.device)
    return torch.lerp(maps[..., before], maps[..., before + 1], share)


# --------------------------------------------------------------------------------------------------------- IoU


def iou(units: sparse.csr_matrix, concepts: np.ndarray) -> np.ndarray:
    """Intersection over union of every unit's mask and every concept's, (unit, concept); 0 where both are empty.

    ``units`` is (unit, sample), ``concepts`` (concept, window, axis, time) with as many samples.
    """
    flat = concepts.reshape(len(concepts), -1)
    return _ratio(units @ flat.T.astype(np.float64), units, flat.sum(1))


def _ratio(both: np.ndarray, units: sparse.csr_matrix, size: np.ndarray) -> np.ndarray:
    union = np.diff(units.indptr)[:, None] + size - both
    return both / np.maximum(union, 1)


def chances(
    units: sparse.csr_matrix,
    concepts: np.ndarray,
    n: int,
    rng: np.random.Generator,
    recording: np.ndarray,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """IoU with each concept when concepts belong to other recordings: (unit, concept, draw).

    In each draw all concepts trade whole recordings in the same way (:func:`intervals.traded`), within ``groups``
    (window,) where given: each keeps its shape and its course in time, its axes and its company, and among recordings
    of one length its share. Raises ``ValueError`` where ``recording`` (window,) is not of the same windows, or
    recordings are too few.
    """
    flat = np.ascontiguousarray(concepts.reshape(len(concepts), -1).T.astype(np.float64))
    n_windows = concepts.shape[1]
    if len(recording) != n_windows:
        raise ValueError(f"{len(recording)} windows have a recording, but there are masks of {n_windows}")
    block = len(flat) // n_windows
    window, within = np.divmod(units.indices, block)
    size = flat.reshape(n_windows, block, -1).sum(1)
    found = np.zeros((units.shape[0], len(concepts), n))
    for draw, other in enumerate(traded(recording, n, rng, groups)):
        # it is the units' masks that go to other windows, which counts the same and moves less
        both = sparse.csr_matrix((units.data, other[window] * block + within, units.indptr), units.shape) @ flat
        found[..., draw] = _ratio(both, units, size[other].sum(0))
    return found


def ceiling(concept_share: np.ndarray, share: float = SHARE) -> np.ndarray:
    """The largest IoU possible between a mask of ``share`` and concepts of theirs: the smaller in the larger."""
    return np.minimum(concept_share, share) / np.maximum(concept_share, share)


# --------------------------------------------------------------------------------------------------- rotated bases

#: entries this small are rounding errors of a Schur form
TOLERANCE = 1e-9


def random_rotation(n: int, rng: np.random.Generator) -> np.ndarray:
    """A rotation (n, n) drawn uniformly (Haar) from all with determinant 1, float64."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    q = q * np.sign(np.diag(r))  # without this the QR routine's own habits would decide the distribution
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q


def power(q: np.ndarray, alpha: float) -> np.ndarray:
    """``q`` to the power ``alpha``, real and orthogonal: each of its plane rotations by ``alpha`` times its angle.

    ``q`` is orthogonal (n, n). The power 0 is the identity, exactly. Raises ``ValueError`` for a matrix that is no
    rotation, or turns a plane by exactly half a turn, of which it cannot be told which plane it is.
    """
    q = np.asarray(q, dtype=np.float64)
    if q.shape != (len(q), len(q)) or not np.allclose(q @ q.T, np.eye(len(q)), atol=1e-8):
        raise ValueError(f"a rotation is a square orthogonal matrix, not one of shape {q.shape} with other columns")
    if alpha == 0:
        return np.eye(len(q))
    form, basis = linalg.schur(q, output="real")  # block-diagonal, because q is orthogonal
    planes = np.flatnonzero(np.abs(np.diag(form, -1)) > TOLERANCE)
    if (np.delete(np.diag(form), [*planes, *planes + 1]) < 0).any():
        raise ValueError("a reflection (determinant -1) or half a turn has no single real fractional power")
    turned = np.eye(len(q))
    for i in planes:
        angle = alpha * np.arctan2(form[i + 1, i], form[i, i])
        turned[i : i + 2, i : i + 2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return basis @ turned @ basis.T


# --------------------------------------------------------------------------------------------------- dissection


def dissect(
    maps: Tensor,
    masks: np.ndarray,
    names: Sequence[str],
    n_draws: int,
    groups: np.ndarray | None,
    recording: np.ndarray,
    share: float = SHARE,
    positions: np.ndarray | None = None,
) -> xr.Dataset:
    """One layer dissected: ``iou`` (unit, concept), its nulls (unit, draw), and ``t_k``, ``seldom``, ``on`` (unit).

    ``maps`` are the layer's (:func:`networks.taps.outputs`) at ``positions`` (:func:`networks.taps.positions`), not
    needed for maps as long as the windows; ``masks`` bool (concept, window, axis, time) for the same windows, ``names``
    the concepts', ``recording`` (window,) says which windows come from one. The nulls are ``chance``, and
    ``chance_within`` ``groups`` (window,), the windows' activities; without groups there is none such. ``on`` is the
    share of samples in a unit's mask; T_k of a ``seldom`` unit is its output at rest. Raises ``ValueError`` where maps,
    masks and recordings are not of the same windows, or recordings are too few to trade places.
    """
    limits = thresholds(maps, share)
    units = unit_masks(maps, limits, *masks.shape[2:], positions)
    own = masks if units.shape[1] == masks[0].size else masks.any(2, keepdims=True)
    if units.shape[1] != own[0].size:
        raise ValueError(f"maps of {units.shape[1]} samples and masks of {own[0].size} are not of the same windows")
    rng = np.random.default_rng(0)
    within = {"chance": None} if groups is None else {"chance": None, "chance_within": groups}
    # Choice: the maximum over concepts, because a unit's concept is the best of all of them too; a point per concept
    # would let most units detect something
    nulls = {name: chances(units, own, n_draws, rng, recording, of).max(1) for name, of in within.items()}
    return xr.Dataset(
        {
            "iou": (("unit", "concept"), iou(units, own)),
            **{name: (("unit", "draw"), null) for name, null in nulls.items()},
            "t_k": ("unit", limits.t_k.astype(np.float64)),
            "seldom": ("unit", limits.t_k <= limits.rest),
            "on": ("unit", np.diff(units.indptr) / units.shape[1]),
        },
        coords={"unit": np.arange(units.shape[0]), "concept": list(names)},
    )


def dissected_windows(cfg: Settings, windows: Windows) -> Split:
    """The training windows that are dissected."""
    return windows.train.every(cfg.dissection.thinning)


@kept("dissection", apart=("device",))
def dissect_network(
    network: Network,
    windows: Windows,
    thinning: int,
    concepts: Concepts,
    n_draws: int,
    alpha: float = 0.0,
    *,
    device: str | None = None,
) -> xr.Dataset:
    """All layers of one network dissected as by :func:`dissect`, on every ``thinning``-th training window.

    Dims (layer, unit, ...). ``concepts`` are those windows'; ``alpha`` is how far each layer's basis is rotated,
    towards a rotation that depends on the network's seed and the layer. Choice: the outputs *after* the rectifier are
    rotated, and not rectified again: a linear map that the next layer could undo. Before it, it were another network.
    """
    split, model = windows.train.every(thinning), copy.deepcopy(network.model).to(torch_device(device))
    parts = []
    for depth, layer in enumerate(model.layers):
        maps = taps.outputs(model, layer, split.x)
        if alpha:
            q = power(random_rotation(maps.shape[1], np.random.default_rng((network.seed, depth))), alpha)
            maps = torch.einsum("vu,wuat->wvat", torch.as_tensor(q, dtype=maps.dtype, device=maps.device), maps)
        parts.append(dissect(maps, concepts.masks, concepts.names, n_draws, split.activity, split.recording))
    return xr.concat(parts, pd.Index(model.layers, name="layer"))


def dissect_networks(
    cfg: Settings, windows: Windows, networks: Sequence[Network], concepts: Concepts, alpha: float = 0.0
) -> xr.Dataset:
    """:func:`dissect_network` of all networks, dims (seed, layer, unit, ...)."""
    about = (windows, cfg.dissection.thinning, concepts, cfg.dissection.n_draws, alpha)
    return of_networks(networks, lambda net: dissect_network(net, *about, device=cfg.device), cfg=cfg)


def kinds(
    cfg: Settings, windows: Windows, networks: Sequence[Network], untrained: Sequence[Network], concepts: Concepts
) -> xr.Dataset:
    """:func:`dissect_networks` of the trained networks, of the same with rotated bases, and with random weights.

    Dims (units, seed, layer, unit, ...), units being "trained", "rotated" and "random weights".
    """
    which = {"trained": (networks, 0.0), "rotated": (networks, 1.0), "random weights": (untrained, 0.0)}
    found = [dissect_networks(cfg, windows, of, concepts, alpha) for of, alpha in which.values()]
    return xr.concat(found, pd.Index(which, name="units"))


# ---------------------------------------------------------------------------------------------------- detectors

#: how a unit becomes a detector: its IoU exceeds the source's threshold, what it reaches when recordings trade places,
#: or when only those of one activity do. The last leaves nothing but waveforms to be detected
RULES = ("IoU > 0.04", "above chance", "above chance within an activity")


def detectors(found: xr.Dataset) -> xr.Dataset:
    """Each unit's best concept and whether it detects it, from :func:`dissect`'s result; other dims are kept.

    ``concept`` (name) and ``best`` (its IoU) over (..., unit), ``limit`` (the IoU to be exceeded) and ``detector`` over
    (..., unit, rule), rules as in ``RULES``; without groups the last is missing.
    """
    ordered = found["iou"].transpose(..., "concept")
    best = ordered.max("concept")
    nulls = [found[name] for name in ("chance", "chance_within") if name in found]
    of_chance = [xr.apply_ufunc(chance_point, null, input_core_dims=[["draw"]]) for null in nulls]
    limits = [xr.full_like(best, DETECTOR_IOU), *of_chance]
    limit = xr.concat(limits, "rule").assign_coords(rule=list(RULES[: len(limits)])).transpose(..., "rule")
    concept = found["concept"][ordered.argmax("concept")].drop_vars("concept")
    return xr.Dataset({"concept": concept, "best": best, "limit": limit, "detector": best > limit})


def unique(found: xr.Dataset) -> xr.DataArray:
    """How many different concepts the units detect: what :func:`detectors` has but units."""
    each = [(found["detector"] & (found["concept"] == name)).any("unit") for name in np.unique(found["concept"].values)]
    return sum(each)


def standing(measured: pd.DataFrame) -> pd.DataFrame:
    """Of :func:`summary`: in how many measures and layers trained networks are surely "ahead" or "behind"."""
    words = measured.apply(verdict, axis=1, name="trained minus this").drop("trained", level="units")
    counts = words.groupby(level="units").value_counts().unstack(fill_value=0)
    counts = counts.rename(columns={"higher": "ahead", "lower": "behind"}).reindex(
        columns=["ahead", "behind"], fill_value=0
    )
    return counts.assign(of=words.groupby(level="units").size())


def detected(labels: xr.Dataset) -> pd.DataFrame:
    """Units per network that detect each concept by the source's threshold: (layer, concept), a column per kind.

    ``labels`` are :func:`detectors`' over (units, seed, layer, unit): "units" says of which kind the networks are.
    """
    names = labels["concept"].where(labels["detector"].sel(rule=RULES[0])).to_series().dropna()
    counts = names.groupby(["units", "layer"]).value_counts().div(labels.sizes["seed"])
    return counts.unstack("units").reindex(columns=labels["units"].values).fillna(0.0).rename_axis(columns=None)


# ------------------------------------------------------------------------------------------ comparison, examples


def over_networks(name: str, values: Sequence[float], least: int = ENOUGH_SEEDS) -> dict[str, float]:
    """Mean of (network,) values as ``name``, "name low" and "name high": the ends of its 95 % interval over networks.

    The ends are NaN where networks are fewer than ``least``, because those say too little of others.
    """
    found = with_interval(name, values)
    return found if len(values) >= least else found | {f"{name} low": np.nan, f"{name} high": np.nan}


def compared(values: xr.DataArray, first: str = "trained") -> pd.DataFrame:
    """Values (units, seed, layer) of several kinds of networks beside each other: one row per layer and kind.

    "value" with its interval over networks, and "first minus this", paired network by network, with its own; see
    :func:`over_networks`.
    """
    rows = {}
    for layer in values["layer"].values:
        own = values.sel(layer=layer).transpose("units", "seed").to_pandas()
        for who, of in own.iterrows():
            row = over_networks("value", of.to_numpy())
            if who != first:
                row |= over_networks(f"{first} minus this", (own.loc[first] - of).to_numpy())
            rows[str(layer), who] = row | {"networks": len(of)}
    return pd.DataFrame(rows.values(), pd.MultiIndex.from_tuples(rows, names=["layer", "units"]))


def summary(labels: xr.Dataset) -> pd.DataFrame:
    """:func:`compared` of the unique detectors by each rule, and of the units' mean best IoU: measure, layer, units."""
    counts = unique(labels)
    measures = {str(rule): counts.sel(rule=rule) for rule in counts["rule"].values}
    measures["mean best IoU"] = labels["best"].mean("unit")
    return pd.concat({name: compared(values) for name, values in measures.items()}, names=["measure"])


def curve(
    cfg: Settings, windows: Windows, networks: Sequence[Network], untrained: Sequence[Network], concepts: Concepts
) -> pd.DataFrame:
    """What :func:`summary` says at every angle of ``cfg.dissection``: rows (alpha, layer, units).

    Columns are the unique detectors by the first two rules and the mean best IoU, each with its interval.
    """
    names = {rule: f"unique detectors, {rule}" for rule in RULES[:2]} | {"mean best IoU": "mean best IoU"}
    parts = {}
    for alpha in cfg.dissection.angles:
        found = [detectors(dissect_networks(cfg, windows, of, concepts, alpha)) for of in (networks, untrained)]
        table = summary(xr.concat(found, pd.Index(["trained", "random weights"], name="units")))
        ends = {
            f"{name}{end}": table.loc[m, f"value{end}"] for m, name in names.items() for end in ("", " low", " high")
        }
        parts[alpha] = pd.DataFrame(ends)
    return pd.concat(parts, names=["alpha"])


def examples(network: Network, labels: xr.Dataset, split: Split, concepts: Concepts, n: int) -> pd.DataFrame:
    """The ``n`` detectors of one network with the largest IoU, each concept at most once in a layer.

    ``labels`` are :func:`detectors`' over (layer, unit), ``split`` and ``concepts`` the windows they come from. One row
    each: layer, unit, concept, iou, and (time,) arrays from where the unit's output is largest: ``signal`` in G,
    ``unit_mask`` and ``concept_mask``.
    """
    table = labels[["best", "concept"]].to_dataframe(["layer", "unit"])[["best", "concept"]].reset_index()
    table = table.sort_values("best", ascending=False).drop_duplicates(["layer", "concept"]).head(n)
    outputs = {layer: taps.outputs(network.model, layer, split.x) for layer in table["layer"].unique()}
    rows = []
    for row in table.itertuples():
        maps = outputs[row.layer][:, [row.unit]]
        own = unit_masks(maps, thresholds(maps), *split.x.shape[1:]).toarray().reshape(split.x.shape) > 0
        at = np.unravel_index(int(maps.argmax()), maps[:, 0].shape)[:2]  # window and axis
        concept = concepts.masks[concepts.names.index(row.concept)]
        rows.append({"signal": split.x[at], "unit_mask": own[at], "concept_mask": concept[at]})
    return table.rename(columns={"best": "iou"}).reset_index(drop=True).join(pd.DataFrame(rows))
