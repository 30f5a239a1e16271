"""Scores of translated windows, and of what stands beside them (notebook 18b).

A :class:`Pair` is a labelled source and a target whose recordings are halved in time: of the first half, unlabelled, a
translator learns, the second half, a window later, is tested. No label of a target chooses anything; an oracle alone
learns from those of the first half, a ceiling.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from scipy.special import softmax
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from harvis_utils.data import synthetic
from harvis_utils.data.windowing import Split
from harvis_utils.maximization import transforms
from harvis_utils.metrics import generative, motifs
from harvis_utils.parallel import torch_device
from harvis_utils.settings import StyleSettings
from harvis_utils.store.results import kept
from harvis_utils.training import supervised, translating
from harvis_utils.training.supervised import Network
from harvis_utils.training.translating import TARGET, Translator

NONE, ORACLE = "as they are", "oracle"
TRANSLATED, WITH_ITSELF, ONE_Z = "translated", "translated, and as they are", "one z, ten times"
OWN_STYLE, WRONG, ALONE = "own style", "wrong direction", "C alone"
ADABN, CORAL, STANDARD = "AdaBN", "CORAL", "each window standardized"
TWIN = "the same movements in the usual body"
#: what a window may also have looked like, without any translator
AUGMENTED = ("jitter", "scaling", "time warp", "rotation")
#: Paper: translations that are averaged
N = 10
#: Choice: translations of a window for whether its class is kept, and for the spread of styles
N_KEPT = 3
#: Choice: windows of each domain whose features are compared, and neighbours among them
N_MIXED, N_NEIGHBOURS = 600, 10
MEASURES = ("macro F1", "accuracy", "wrong to right", "right to wrong")


# ---------------------------------------------------------------------------------------------------- the domains


@dataclass(frozen=True)
class Pair:
    """Windows of a target, the first half of its recordings without labels and the second to ``test``, and a source."""

    name: str
    target: Split
    test: Split
    source: Split
    n_classes: int


def halves(split: Split) -> tuple[Split, Split]:
    """Windows of the first and of the second half of each recording; a window's length between both belongs to none.

    Raises ``ValueError`` where a half has no window.
    """
    end = pd.Series(split.offset).groupby(split.recording).transform("max").to_numpy() + split.length
    parts = split.offset + split.length <= end / 2, split.offset >= end / 2 + split.length
    if not all(part.any() for part in parts):
        raise ValueError(f"recordings of {end.max()} samples have no two halves with windows of {split.length}")
    return tuple(split.chosen(part) for part in parts)


# ----------------------------------------------------------------------------------------- what stands beside it


@torch.no_grad()
def with_statistics_of(model: nn.Module, x: np.ndarray) -> nn.Module:
    """AdaBN (Li et al. 2017): a copy whose batch norms have the means and variances of these windows."""
    own = copy.deepcopy(model).eval()
    for module in own.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    own(torch.as_tensor(np.ascontiguousarray(x)).to(next(own.parameters()).device))
    return own.eval()


def coral(model: nn.Module, source: np.ndarray, target: np.ndarray, x: np.ndarray) -> np.ndarray:
    """CORAL (Sun et al. 2016): probabilities of ``x`` after its features got mean and covariance of the source's.

    Paper: the identity is added to covariances; Choice: of features in standard deviations of the source's.
    """
    s, t, f = (generative.seen(model, of)[0] for of in (source, target, x))
    scale = s.std(0) + 1e-6
    s, t, f = s / scale, t / scale, f / scale

    def power(of: np.ndarray, exponent: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(np.cov(of, rowvar=False) + np.eye(of.shape[1]))
        return vectors * values**exponent @ vectors.T

    moved = (f - t.mean(0)) @ power(t, -0.5) @ power(s, 0.5) + s.mean(0)
    weight, bias = (of.detach().cpu().double().numpy() for of in (model.classes.weight, model.classes.bias))
    return softmax((moved * scale) @ weight.T + bias, axis=1)


def standardized(split: Split) -> Split:
    """Each axis of each window with mean 0 and standard deviation 1, laid end to end; an axis at rest stays at 0."""
    x = split.x - split.x.mean(2, keepdims=True)
    x = x / np.maximum(x.std(2, keepdims=True), 1e-3)
    series = np.ascontiguousarray(x.transpose(0, 2, 1)).reshape(-1, x.shape[1])
    return replace(split, series=series, start=np.arange(len(split)) * split.length)


def augmentations(axes: Sequence[str]) -> dict[str, transforms.Transform]:
    """Those of ``AUGMENTED``; rotations by 10 degrees where sensors have three axes."""
    aids = [transforms.noise(0.05), transforms.scale(0.1), transforms.warp(0.1)]
    sensors = transforms.sensors_of(axes)
    return dict(zip(AUGMENTED, aids + ([transforms.rotate(10.0, sensors)] if sensors else []), strict=False))


def score(split: Split, p: np.ndarray, before: np.ndarray) -> dict[str, float]:
    """``MEASURES`` of probabilities (window, class); ``before`` are the classes predicted for windows as they are."""
    predicted = p.argmax(1)
    right, was = predicted == split.activity, before == split.activity
    values = supervised.macro_f1(split, predicted), right.mean(), (right & ~was).mean(), (~right & was).mean()
    return dict(zip(MEASURES, map(float, values), strict=True))


@kept("styles", apart=("device",))
def without_translator(
    own: Network, scaled: Network, oracle: Network, pair: Pair, axes: Sequence[str], *, device: str | None = None
) -> pd.DataFrame:
    """``MEASURES`` of a classifier by what is done instead of translating ("kind")."""
    model, test = copy.deepcopy(own.model).to(torch_device(device)), pair.test
    p = {NONE: generative.seen(model, test.x)[1]}
    p[ADABN] = generative.seen(with_statistics_of(model, pair.target.x), test.x)[1]
    p[CORAL] = coral(model, pair.source.x, pair.target.x, test.x)
    p[STANDARD] = generative.seen(scaled.model, standardized(test).x)[1]
    x = torch.as_tensor(np.ascontiguousarray(test.x))
    for name, aid in augmentations(axes).items():
        drawn = (aid(x, torch.Generator().manual_seed(draw)).numpy() for draw in range(N))
        p[name] = np.mean([generative.seen(model, of)[1] for of in drawn], 0)
    p[ORACLE] = generative.seen(oracle.model, test.x)[1]
    before = p[NONE].argmax(1)
    return pd.DataFrame([{"kind": name} | score(test, of, before) for name, of in p.items()])


# ----------------------------------------------------------------------------------------- what translators are worth


def translator(pair: Pair, settings: StyleSettings, seed: int, share: float = 1.0, device: str | None = None):
    """The trained :class:`Translator` of a pair, at a stage of its training."""
    found = translating.trained(pair.source, pair.target, pair.n_classes, settings, seed, device=device)
    return Translator(pair.source, pair.n_classes, settings, found, share, device)


@kept("styles", apart=("device",))
def with_translator(
    classifiers: Mapping[str, Network], pair: Pair, settings: StyleSettings, seed: int, *, device: str | None = None
) -> pd.DataFrame:
    """``MEASURES`` by "classifier", "kind", number of translations "n" and "share" of the training.

    One translation is scored for each of ``N`` draws and the scores are averaged; so is one z taken ten times.
    """
    models = {name: copy.deepcopy(of.model).to(torch_device(device)) for name, of in classifiers.items()}
    test, rows = pair.test, []
    before = {name: generative.seen(of, test.x)[1] for name, of in models.items()}

    def add(name: str, kind: str, n: int, share: float, *averaged: np.ndarray) -> None:
        each = [score(test, p, before[name].argmax(1)) for p in averaged]
        rows.append({"classifier": name, "kind": kind, "n": n, "share": share} | dict(pd.DataFrame(each).mean()))

    def seen(of: nn.Module, made: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([generative.seen(of, x)[1] for x in made])

    for share in translating.STAGES:
        own, last = translator(pair, settings, seed, share, device), share == translating.STAGES[-1]
        made = [own.translated(test.x, draw) for draw in range(N)]
        wrong = [own.translated(test.x, draw, TARGET) for draw in range(N)] if last else []
        for name, of in models.items():
            p = seen(of, made)
            add(name, TRANSLATED, 1, share, *p)
            for n in range(2, N + 1) if last else (N,):
                add(name, TRANSLATED, n, share, p[:n].mean(0))
            if last:
                add(name, WITH_ITSELF, N, share, np.concatenate([p, before[name][None]]).mean(0))
                add(name, ONE_Z, N, share, *(np.mean([of_draw] * N, 0) for of_draw in p))
                add(name, OWN_STYLE, 1, share, seen(of, [own.reconstructed(test.x)])[0])
                add(name, WRONG, N, share, seen(of, wrong).mean(0))
                if settings.task_weight or settings.semantic_weight:  # else nobody has taught it
                    add(name, ALONE, 1, share, own.classes(test.x))
    return pd.DataFrame(rows)


@kept("styles", apart=("device",))
def classes_kept(
    oracle: Network, pair: Pair, settings: StyleSettings, seed: int, *, device: str | None = None
) -> pd.DataFrame:
    """Share of windows that an oracle still recognizes after translation ("kept"), by tercile of their energy.

    Of windows that it recognizes as they are; by "energy", the mean variance over axes, and "kind" of translation.
    """
    own, x, true = translator(pair, settings, seed, device=device), pair.test.x, pair.test.activity
    judging = copy.deepcopy(oracle.model).to(torch_device(device))
    there = generative.seen(judging, x)[1].argmax(1) == true
    tercile = pd.qcut(x.var(2).mean(1), 3, labels=["low", "middle", "high"])
    sets = {TRANSLATED: [own.translated(x, draw) for draw in range(N_KEPT)], OWN_STYLE: [own.reconstructed(x)]}
    rows = []
    for kind, made in sets.items():
        still = np.mean([generative.seen(judging, of)[1].argmax(1) == true for of in made], 0)
        for name in ("all", *tercile.categories):
            which = there & ((tercile == name) | (name == "all"))
            rows.append({"kind": kind, "energy": name, "kept": float(still[which].mean()) if which.any() else np.nan})
    return pd.DataFrame(rows)


def _evenly(split: Split, n: int) -> Split:
    return split.chosen(np.unique(np.linspace(0, len(split) - 1, min(n, len(split))).astype(int)))


def mixing(s: np.ndarray, t: np.ndarray, source: Split, target: Split) -> dict[str, float]:
    """How mixed features (window, feature) of two domains are.

    "AUC" of telling the domain by logistic regression, over recordings held out; "MMD", of each class the squared
    maximum mean discrepancy with a Gaussian kernel as wide as the median distance, averaged; "purity", the share of
    the ``N_NEIGHBOURS`` nearest source windows of a target window that have its class.
    """
    both, domain = np.concatenate([s, t]), np.repeat([0, 1], [len(s), len(t)])
    groups = np.concatenate([source.recording, source.recording.max() + 1 + target.recording])
    telling = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    said = cross_val_predict(telling, both, domain, groups=groups, cv=GroupKFold(4), method="decision_function")
    gaps = [cdist(a, b, "sqeuclidean") for a, b in ((s, s), (s, t), (t, t))]
    ss, st, tt = (np.exp(-gap / np.median(gaps[0])) for gap in gaps)
    apart = []
    for k in np.intersect1d(source.activity, target.activity):
        a, b = source.activity == k, target.activity == k
        apart.append(ss[np.ix_(a, a)].mean() + tt[np.ix_(b, b)].mean() - 2 * st[np.ix_(a, b)].mean())
    near = np.argsort(gaps[1], axis=0)[:N_NEIGHBOURS]
    purity = (source.activity[near] == target.activity).mean()
    return {"AUC": float(roc_auc_score(domain, said)), "MMD": float(np.mean(apart)), "purity": float(purity)}


@kept("styles", apart=("device",))
def domains_mixed(
    own: Network, pair: Pair, settings: StyleSettings, seed: int, *, device: str | None = None
) -> pd.DataFrame:
    """:func:`mixing` of a classifier's features of the source and of the target, by "kind" of translation."""
    made, model = translator(pair, settings, seed, device=device), copy.deepcopy(own.model).to(torch_device(device))
    source, target = _evenly(pair.source, N_MIXED), _evenly(pair.test, N_MIXED)
    x, s = target.x, generative.seen(model, source.x)[0]
    sets = {NONE: x, TRANSLATED: made.translated(x, 0), OWN_STYLE: made.reconstructed(x)}
    sets |= {WRONG: made.translated(x, 0, TARGET)}
    return pd.DataFrame(
        [{"kind": kind} | mixing(s, generative.seen(model, of)[0], source, target) for kind, of in sets.items()]
    )


# --------------------------------------------------------------------------------------------- where the truth is known


def planted(x: np.ndarray, activity: np.ndarray) -> pd.DataFrame:
    """Of each made-up window: "right", the share of its axes on which its activity's motif matches best; "strength" of
    that motif, 1 as written; "spacing" between events in samples, by the largest correlation with itself.
    """
    names, shapes = list(synthetic.MOTIFS), [np.array(shape) for _, shape in synthetic.MOTIFS.values()]
    n, n_axes, length = x.shape
    wanted = np.array([[names.index(name) for name in synthetic.activity_motifs(a)] for a in activity]).ravel()
    flat = x.reshape(-1, length).astype(float)
    match, place = motifs.best_places(shapes, flat)
    strength = np.empty(len(flat))
    for k, shape in enumerate(shapes):
        own = np.flatnonzero(wanted == k)
        pieces = np.stack([flat[i, place[k, i] : place[k, i] + len(shape)] for i in own] or [shape])
        strength[own] = ((pieces @ shape) / (shape @ shape))[: len(own)]
    left = np.diff(flat, axis=1)  # without slow sway and gravity
    power = np.abs(np.fft.rfft(left, 2 * length)) ** 2
    alike = np.fft.irfft(power)[:, :length].reshape(n, n_axes, length).mean(1)
    lags = np.arange(15, 46)
    found = {"right": (match.argmax(0) == wanted).reshape(n, n_axes).mean(1)}
    found |= {"strength": strength.reshape(n, n_axes).mean(1)}
    return pd.DataFrame(found | {"spacing": lags[alike[:, lags].argmax(1)]})


@kept("styles", apart=("device",))
def body_moved(
    pair: Pair, twin: Split, settings: StyleSettings, seed: int, *, device: str | None = None
) -> pd.DataFrame:
    """What translation does to made-up windows, by "kind"; ``twin`` are the same people in the body of all others.

    "right motif" (chance is 1 in 9); KS distances of strength, spacing and gravity from those of the source windows, 0
    where they are alike; "spread" of the strength over translations of a window, of people where nothing is translated.
    """
    made, source, target = translator(pair, settings, seed, device=device), _evenly(pair.source, N_MIXED), pair.test
    usual = planted(source.x, source.activity)
    people = usual.groupby(source.subject)["strength"].mean().std(ddof=0)
    drawn = [made.translated(target.x, draw) for draw in range(N_KEPT)]
    spread = np.std([planted(x, target.activity)["strength"] for x in drawn], 0).mean()
    sets = {NONE: target.x, TRANSLATED: drawn[0], OWN_STYLE: made.reconstructed(target.x), TWIN: twin.x}
    rows = []
    for kind, x in sets.items():
        own = planted(x, (twin if kind == TWIN else target).activity)
        row = {"kind": kind, "right motif": own["right"].mean()}
        row |= {name: ks_2samp(own[name], usual[name]).statistic for name in ("strength", "spacing")}
        level = zip(x.mean(2).T, source.x.mean(2).T, strict=True)
        row |= {"gravity": np.mean([ks_2samp(a, b).statistic for a, b in level])}
        rows.append(row | {"spread": {TRANSLATED: spread, TWIN: people}.get(kind, np.nan)})
    return pd.DataFrame(rows)
