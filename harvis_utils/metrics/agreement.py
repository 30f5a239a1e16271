"""Two networks' signals turned into their agreement, against chance: do independently trained networks show the same?

Real data have no known shapes. What is left is to match the units of two networks one to one and to ask how alike
they are, beside nulls of equally many units. That two networks agree is necessary for a signal to say something about
the data, not sufficient. The paper measures none of this; everything here is a Choice.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from scipy.optimize import linear_sum_assignment

from harvis_utils.metrics import signal_measures, similarity
from harvis_utils.metrics.intervals import interval
from harvis_utils.metrics.recovery import scrambled
from harvis_utils.settings import RecoverySettings, SimilaritySettings

#: why a unit is left out of a matching; the first that applies
LEFT_OUT = ("dead", "failed", "silent", "flat")

#: columns of :func:`agreement`
COLUMNS = [
    *("layer", "seed_a", "seed_b", "n_used_a", "n_used_b", "left_out_a", "left_out_b", "n_random"),
    *("random_agreement", "random_share_above", "scrambled_agreement", "scrambled_share_above"),
    *("n_matched", "agreement", "share_above", "threshold", "threshold_from"),
]


@dataclass(frozen=True)
class Units:
    """Units of one layer as the matching sees them: without mean and with a norm of 1, zero where constant."""

    piece: np.ndarray  # (unit, sample): the piece that is looked for
    every: np.ndarray  # (unit, shift, sample): all pieces of the signal

    def __len__(self) -> int:
        return len(self.piece)


def units_of(signals: np.ndarray, first: np.ndarray, length: int) -> Units:
    """The units with ``signals`` (unit[, axis], time) and pieces of ``length`` samples that begin at ``first`` (unit,).

    Choice: several axes shift together; each is without its own mean, and all together have a norm of 1.
    """
    pieces = np.lib.stride_tricks.sliding_window_view(np.asarray(signals, dtype=np.float64), length, axis=-1)
    every = similarity.unit_norm(np.moveaxis(pieces, -2, 1), mixed=pieces.ndim == 4)
    every = every.reshape(*every.shape[:2], math.prod(every.shape[2:]))
    return Units(every[np.arange(len(every)), first], every)


def unit_similarity(a: Units, b: Units) -> np.ndarray:
    """(unit of a, unit of b), in [-1, 1]: how well the piece of one unit is found in the signal of the other.

    The best Pearson correlation over all shifts, averaged over both directions.
    """

    def found(pieces: np.ndarray, every: np.ndarray) -> np.ndarray:
        products = every.reshape(-1, every.shape[2]) @ pieces.T
        return products.reshape(*every.shape[:2], -1).max(1)  # (unit with the signal, unit with the piece)

    return np.clip((found(a.piece, b.every).T + found(b.piece, a.every)) / 2, -1.0, 1.0)


def matched(a: Units, b: Units) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units matched one to one so that their similarities sum highest: units of a, units of b, similarities.

    With different numbers of units those of the larger side that fit least stay unmatched.
    """
    values = unit_similarity(a, b)
    mine, yours = linear_sum_assignment(values, maximize=True)
    return mine, yours, values[mine, yours]


def status(signals: xr.Dataset, settings: SimilaritySettings) -> xr.Dataset:
    """Which units can be matched: ``status`` ("used" or one of ``LEFT_OUT``) and ``first``, where the piece begins.

    ``signals`` has ``signal`` and ``map`` as :func:`similarity.score` takes them and ``dead`` (..., unit); returns dims
    (..., unit). Failed: an amplitude above ``fail_amplitude_g`` or not finite; silent: no output anywhere; flat: a
    signal that hardly moves (:func:`signal_measures.flat`), or whose piece is constant on every axis: a correlation
    sees neither level nor amplitude, and would match one such line with another.
    """
    dims = [d for d in signals["signal"].dims if d not in ("axis", "time", "unit")] + ["unit"]
    dead, x = signals["dead"].transpose(*dims), signal_measures.in_rows(signals["signal"], dims)
    maps = signal_measures.in_rows(signal_measures.in_time(signals["map"], x.shape[-1]), dims)
    first, pieces = similarity.best_piece(x, maps, settings.piece)
    why = {
        "dead": dead.values.reshape(-1),
        "failed": ~(np.abs(x).reshape(len(x), -1).max(1) <= settings.fail_amplitude_g),  # NaN too
        "silent": signal_measures.largest(signals["map"], dims) <= 0,
        "flat": signal_measures.flat(x) | (np.ptp(pieces, axis=-1) <= similarity.CONSTANT_G).reshape(len(x), -1).all(1),
    }
    named = np.select([why[name] for name in LEFT_OUT], LEFT_OUT, "used")
    found = {"status": named, "first": first}
    return xr.Dataset({name: dead.copy(data=of.reshape(dead.shape)) for name, of in found.items()})


def left_out(signals: xr.Dataset, settings: SimilaritySettings) -> pd.DataFrame:
    """Number of units per (seed, layer): "used" and each reason of ``LEFT_OUT``."""
    found = status(signals, settings)["status"].transpose("seed", "layer", "unit")
    return pd.DataFrame({name: (found == name).sum("unit").to_series() for name in ("used", *LEFT_OUT)})


def agreement(
    signals: xr.Dataset, random_signals: xr.Dataset, similarity_settings: SimilaritySettings, settings: RecoverySettings
) -> pd.DataFrame:
    """How much pairs of independently trained networks show the same: one row per layer and pair.

    ``signals`` and ``random_signals`` (networks without training, as :func:`random_weights` makes them) have
    ``signal``, ``map`` over (seed, layer, unit, time) and ``dead`` over (seed, layer, unit). The units of the two
    networks are :func:`matched`. ``agreement`` is the mean over the matched, ``share_above`` the share of them above
    ``threshold``. That is the larger of two nulls' 95 % points (``threshold_from``), over ``n_matchings`` draws in both
    directions: one network matched with equally many units of networks with random weights, and with the other
    network's phase-scrambled signals. Columns that begin with "random" and "scrambled" are theirs. Choice: units are
    drawn one by one from all networks with random weights, and scrambled one by one: the weights of each were drawn for
    itself, so these units are exchangeable. No window enters, so there is no recording to keep together.

    Units that are dead, failed, silent or flat are left out: ``n_used_a``, ``n_used_b`` and ``left_out_a``,
    ``left_out_b`` count them. A layer with none left has no agreement (NaN). Where fewer units with random weights are
    usable (``n_random``) than one network has, there is no such null (NaN) and the other one counts alone: on real data
    the penalties flatten most units that nobody trained. Raises ``ValueError`` for fewer than two networks.
    """
    seeds = [int(s) for s in signals["seed"].values]
    if len(seeds) < 2:
        raise ValueError(f"agreement needs two networks or more, not {len(seeds)}")
    rows, length = [], similarity_settings.piece
    for depth, layer in enumerate(signals["layer"].values):
        nets = {}
        rng = np.random.default_rng((settings.seed, 2, depth))
        for seed in seeds:
            _, x, first = usable(signals.sel(seed=seed, layer=layer), similarity_settings)
            scrambles = [units_of(scrambled(x, rng), first, length) for _ in range(settings.n_matchings)]
            nets[seed] = units_of(x, first, length), scrambles
        each = [usable(random_signals.sel(seed=s, layer=layer), similarity_settings) for s in random_signals["seed"]]
        _, x, first = (np.concatenate(of) for of in zip(*each, strict=True))
        pool = units_of(x, first, length)
        for a, b in combinations(seeds, 2):
            row = {"layer": str(layer), "seed_a": a, "seed_b": b, "n_random": len(pool)}
            for end, seed in (("a", a), ("b", b)):
                n_used = len(nets[seed][0])
                row |= {f"n_used_{end}": n_used, f"left_out_{end}": signals.sizes["unit"] - n_used}
            rows.append(row | _pair(*nets[a], *nets[b], pool, rng, settings))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def usable(network: xr.Dataset, settings: SimilaritySettings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of a layer's units can be matched, (used,), their signals (used[, axis], time), where pieces begin."""
    found = status(network, settings)
    used = np.flatnonzero(found["status"].values == "used")
    return used, signal_measures.in_rows(network["signal"], ["unit"])[used], found["first"].values[used]


def _pair(
    a: Units,
    scrambled_a: list[Units],
    b: Units,
    scrambled_b: list[Units],
    pool: Units,
    rng: np.random.Generator,
    settings: RecoverySettings,
) -> dict:
    """Agreement of two networks' units and its nulls, without those that there are too few units for."""
    if not len(a) or not len(b):
        return {"n_matched": 0, "threshold_from": ""}

    def drawn(n: int) -> Units:
        chosen = rng.choice(len(pool), n, replace=False)
        return Units(pool.piece[chosen], pool.every[chosen])

    pairs = {"scrambled_": [p for x, y in zip(scrambled_a, scrambled_b, strict=True) for p in ((a, y), (x, b))]}
    if len(pool) >= max(len(a), len(b)):
        pairs["random_"] = [p for _ in range(settings.n_matchings) for p in ((a, drawn(len(b))), (drawn(len(a)), b))]
    chance = {name: np.concatenate([matched(*p)[2] for p in of]) for name, of in pairs.items()}
    points = {name: np.quantile(of, settings.quantile) for name, of in chance.items()}
    source = max(points, key=points.get)
    values = matched(a, b)[2]
    found = {"n_matched": len(values), "threshold": points[source]}
    found["threshold_from"] = {"random_": "random weights", "scrambled_": "phase-scrambled"}[source]
    for name, of in ({"": values} | chance).items():
        found |= {f"{name}agreement": of.mean(), f"{name}share_above": (of > points[source]).mean()}
    return found


def summarize_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Means over pairs with 95 % intervals, one row per layer and measure; no interval for a single pair.

    ``measure`` is "agreement", "above null" (agreement minus the larger of the nulls' means) or "share above". The
    intervals draw pairs, and pairs share networks: they are too narrow.
    """
    rows = []
    higher = table[["random_agreement", "scrambled_agreement"]].max(axis=1)
    measured = table.assign(above=table["agreement"] - higher)
    names = {"agreement": "agreement", "above": "above null", "share_above": "share above"}
    for layer, part in measured.groupby("layer", sort=False):
        for column, measure in names.items():
            n_pairs = int(part[column].count())
            point, bounds = interval(part[column])
            low, high = bounds if n_pairs > 1 else (np.nan, np.nan)
            row = {"layer": layer, "measure": measure, "mean": point, "low": low, "high": high, "n_pairs": n_pairs}
            rows.append(row | {"n_networks": len({*part["seed_a"], *part["seed_b"]})})
    return pd.DataFrame(rows)
