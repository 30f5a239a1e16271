"""Generated windows turned into scores by a judge, a network trained on real windows, and by distances.

No score here can be read alone. The inception score is won by repeating one real window a class; the Frechet distance
to the training windows is smaller for these with scrambled phases than for real windows of other people, and it falls
with the number of windows. So all sets have one size, each table has the rows of :func:`controls`, and coverage,
memorization and measures of time stand beside. Sets are (window, axis, time) in G.
"""

import copy
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.stats import kurtosis
from torch import Tensor, nn

from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.metrics import motifs, recovery, signal_measures, similarity
from harvis_utils.settings import HarvisError
from harvis_utils.training import supervised
from harvis_utils.training.supervised import EVALUATION_BATCH, Network

#: Choice: a class is reached that a hundredth of the windows is taken for
REACHED = 0.01
#: Choice: neighbours within which a real window counts as covered (Naeem et al. 2020)
N_NEIGHBOURS = 5
#: Choice: axes of a window that show the motifs of one activity; an event leaves out a tenth of them
AXES_AGREE = 5 / 6
#: sets that show what a score is blind to, and all rows of :func:`controls`
NO_MOVEMENT = ("one window a class, repeated", "scrambled phases", "flat, real means", "white noise")
CONTROLS = ("held-out people", "half of training", *NO_MOVEMENT)


class JudgeError(HarvisError, ValueError):
    """A judge that knows too little to judge, or sets that cannot be compared; the message says which."""


@torch.no_grad()
def seen(judge: nn.Module, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a judge makes of windows: features (window, feature), which its last layer ``classes`` reads, and the
    probabilities of the classes (window, class); float64.
    """
    features, judge = [], copy.deepcopy(judge)  # others may listen to the same one at the same time
    hook = judge.classes.register_forward_pre_hook(lambda module, given: features.append(given[0].cpu()))
    device = next(judge.parameters()).device
    try:
        batches = torch.as_tensor(np.ascontiguousarray(x, dtype=np.float32)).split(EVALUATION_BATCH)
        scores = torch.cat([judge.eval()(batch.to(device)).cpu() for batch in batches])
    finally:
        hook.remove()
    return torch.cat(features).double().numpy(), scores.double().softmax(1).numpy()


def admitted(judge: Network, windows: Windows, least_f1: float) -> float:
    """The judge's macro F1 on the test people; raises :class:`JudgeError` where it is below ``least_f1``."""
    f1 = supervised.macro_f1(windows.test, judge.predicted["test"])
    if f1 < least_f1:
        raise JudgeError(f"the judge's macro F1 is {f1:.2f} on the test people; below {least_f1:g} it judges nothing")
    return f1


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean Kullback-Leibler divergence of (window, class) probabilities from their mean: 1 to the number
    of classes (Salimans et al. 2016).
    """
    p = np.asarray(probabilities, dtype=float)
    ratio = np.log(np.where(p > 0, p, 1)) - np.log(np.where(p > 0, p.mean(0), 1))
    return float(np.exp((p * ratio).sum(1).mean()))


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets of features (window, feature), each taken for a Gaussian (Heusel et al. 2017).

    Raises :class:`JudgeError` for sets of different sizes: the distance falls with the number of windows.
    """
    if len(first) != len(second):
        raise JudgeError(f"sets of {len(first)} and {len(second)} windows; Frechet distances need equal numbers")
    (mean, spread), (other, wide) = ((f.mean(0), np.cov(f, rowvar=False)) for f in (first, second))
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ wide @ root).clip(0)).sum()  # the trace of the root of their product
    return float(max(0.0, ((mean - other) ** 2).sum() + np.trace(spread) + np.trace(wide) - 2 * both))


def distances(x: np.ndarray, others: np.ndarray) -> Tensor:
    """Root mean square difference of everything in one of two sets from everything in the other: (first, other)."""
    first, second = (torch.as_tensor(np.ascontiguousarray(of, dtype=np.float32)).flatten(1) for of in (x, others))
    return torch.cat([torch.cdist(part, second) for part in first.split(EVALUATION_BATCH)]) / first.shape[1] ** 0.5


def nearest(x: np.ndarray, train: np.ndarray) -> float:
    """Median distance in G to the nearest training window."""
    return float(distances(x, train).min(1).values.median())


def covered(x: np.ndarray, real: np.ndarray) -> float:
    """Share of real features with one of ``x`` within the distance of their ``N_NEIGHBOURS``-th nearest real ones.

    Both are a judge's (window, feature), as Naeem et al. have it: between windows themselves, flat ones can be
    nearer to most real ones than other real ones are.
    """
    reach = distances(real, real).kthvalue(N_NEIGHBOURS + 1, dim=1).values  # each is its own nearest
    return float((distances(real, x).min(1).values <= reach).float().mean())


def of_time(x: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """How far windows are from real ones in what changes: "spectral distance" of the mean spectra, and
    "peakedness": the excess kurtosis of increments minus that of real ones. Scrambled phases keep the first only.
    """
    spectrum, usual = (signal_measures.mean_spectrum(similarity.power_spectrum(of, True)) for of in (x, real))
    steps, others = (kurtosis(np.diff(of, axis=2), axis=(0, 2)).mean() for of in (x, real))
    distance = signal_measures.spectral_distance(spectrum, usual)
    return {"spectral distance": float(distance), "peakedness": float(steps - others)}


def drawn(x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """``n`` windows without replacement. Raises :class:`JudgeError` where there are fewer."""
    if len(x) < n:
        raise JudgeError(f"{len(x)} windows are there and {n} are compared; set fewer (generation.n_scored)")
    return x[np.sort(rng.choice(len(x), n, replace=False))]


def controls(windows: Windows, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Sets of ``n`` windows that any score has to be read beside, by the names of ``CONTROLS``.

    "half of training" are training windows that no other set is compared with (:func:`reference`), the best that can be
    had; the last four show what a score is blind to.
    """
    train, own = windows.train, drawn(windows.train.x[1::2], n, rng)
    each = [train.x[rng.choice(np.flatnonzero(train.activity == a))] for a in np.unique(train.activity)]
    noise = rng.standard_normal((n, *train.x.shape[1:]))
    sets = (
        *(drawn(windows.test.x, n, rng), own, np.resize(np.stack(each), (n, *train.x.shape[1:]))),
        *(recovery.scrambled(own, rng), np.broadcast_to(own.mean(2, keepdims=True), own.shape)),
        noise * train.series.std(0)[:, None] + train.series.mean(0)[:, None],
    )
    return {name: np.asarray(of, dtype=np.float32) for name, of in zip(CONTROLS, sets, strict=True)}


def reference(windows: Windows, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What sets are compared with: ``n`` windows of the "training" people, of every second window, and of "held out"
    ones, the validation people's (the test people's are a row of :func:`controls`).
    """
    return {"training": drawn(windows.train.x[::2], n, rng), "held out": drawn(windows.val.x, n, rng)}


def by_judge(judge: nn.Module, sets: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """What a judge says of sets beside :func:`reference` ones, a row per ``set``.

    "IS", "FID" to training windows, "FID, held out" to other people's, which share of these is "covered", and
    "classes", the share of them reached.
    Raises :class:`JudgeError` for sets of different sizes.
    """
    sizes = {name: len(of) for name, of in {**sets, **real}.items()}
    if len(set(sizes.values())) > 1:
        raise JudgeError(f"sets need one size: {', '.join(f'{name} {n}' for name, n in sizes.items())}")
    features, rows = {name: seen(judge, of)[0] for name, of in real.items()}, []
    for name, x in sets.items():
        own, p = seen(judge, x)
        taken = np.bincount(p.argmax(1), minlength=p.shape[1]) / len(x)
        row = {"set": name, "IS": inception_score(p), "FID": frechet(own, features["training"])}
        others = features["held out"]
        row |= {"FID, held out": frechet(own, others), "covered": covered(own, others)}
        row |= {"classes": float((taken >= REACHED).mean())}
        rows.append(row)
    return pd.DataFrame(rows)


def without_judge(
    windows: Windows, sets: Mapping[str, np.ndarray], real: Mapping[str, np.ndarray], truth: PlantedMotifs | None = None
) -> pd.DataFrame:
    """What needs no judge, a row per ``set``: "memorization", :func:`of_time` and, with a ``truth``,
    :func:`motif_content`.

    "memorization" is :func:`nearest` over that of windows of other people: below 1 is copied.
    """
    rows, usual = [], nearest(real["held out"], windows.train.x)
    for name, x in sets.items():
        row = {"set": name, "memorization": nearest(x, windows.train.x) / usual} | of_time(x, real["training"])
        rows.append(row | (motif_content(x, truth) if truth else {}))
    return pd.DataFrame(rows)


def motif_content(x: np.ndarray, truth: PlantedMotifs, seed: int = 0) -> dict[str, float]:
    """Do the axes of a window show the motifs of one activity together? Ground truth for the joint distribution.

    Each axis shows the motif that some piece of it correlates with best. "joint motifs" is the share of windows in
    which ``AXES_AGREE`` of the axes show those of one activity, "joint motifs, chance" that after the axes traded
    windows, each by itself; "activities" is the share of activities so shown in ``REACHED`` of the windows, and "motif
    match" the mean correlation.
    """
    first = truth.occurrences.drop_duplicates(["activity", "axis"])
    wanted = first.pivot(index="activity", columns="axis", values="motif").map(truth.names.index).to_numpy()
    match = motifs.best_match(truth.shapes, x.reshape(-1, x.shape[2])).reshape(len(truth.shapes), *x.shape[:2])
    shown, rng = match.argmax(0), np.random.default_rng(seed)
    traded = np.stack([rng.permutation(axis) for axis in shown.T], axis=1)

    def agreeing(axes: np.ndarray) -> np.ndarray:  # (window, activity)
        return (axes[:, None] == wanted).mean(2) >= AXES_AGREE - 1e-9

    found = agreeing(shown)
    return {
        "joint motifs": float(found.any(1).mean()),
        "joint motifs, chance": float(agreeing(traded).any(1).mean()),
        "activities": float((found.mean(0) >= REACHED).mean()),
        "motif match": float(match.max(0).mean()),
    }


def alike(sets: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Do generators make the same of the same latent vector? Mean over pairs of sets, window by window the same vector.

    "alike" is the correlation of what is left of windows without their set's mean window, "alike, other vectors" that
    with windows of other vectors, the null; NaN for a single set.
    """
    left = [x - x.mean(0) for x in sets.values()]
    left = [x / max(float(np.linalg.norm(x)), 1e-12) for x in left]
    found = [(np.vdot(a, b), np.vdot(a, np.roll(b, 1, axis=0))) for a, b in combinations(left, 2)]
    return dict(zip(("alike", "alike, other vectors"), np.mean(found, 0) if found else (np.nan, np.nan), strict=True))


def apart(judge: nn.Module, sets: Mapping[str, np.ndarray]) -> float:
    """Mean Frechet distance between the sets of every pair; NaN for a single set."""
    features = [seen(judge, x)[0] for x in sets.values()]
    return float(np.mean([frechet(*pair) for pair in combinations(features, 2)])) if len(features) > 1 else np.nan
