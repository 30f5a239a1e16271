"""Activation Maximization through a generator (notebook 18): what it is compared with, and what decides.

Signals of units through generators stand beside those of the paper's method and of the likeliest trigger, beside
controls that have no training, no ascent or no network, and beside real windows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.triggered import REFERENCES
from harvis_utils.maximization import latent, priors
from harvis_utils.maximization.latent import RANDOM, Prior
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import explanation, realism
from harvis_utils.metrics.intervals import listed, with_interval
from harvis_utils.metrics.signal_measures import REST_G
from harvis_utils.paper import climbing, explaining, generating
from harvis_utils.paper.generating import MAD, SPECTRAL, TAUGHT
from harvis_utils.paper.stages import Stages
from harvis_utils.paper.systems import Question, best_rival, judge
from harvis_utils.paper.variants import BY_NAME, LIKELIEST_TRIGGER
from harvis_utils.paper.verdicts import NO, UNDECIDED, UNTESTABLE, YES
from harvis_utils.parallel import side_by_side
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

DENOISER, UNTRAINED, HELD_OUT = "denoiser", "untrained generator", "strong window of others"
NEAREST = "nearest real window"
#: rows of notebook 17 whose generators are priors
GANS = (SPECTRAL, MAD, TAUGHT)

_NGUYEN, _TWO = "Nguyen et al. 2016", "above the better of likeliest trigger and random search of equal cost"
_CONTROLS = "random search through the same generator, an untrained one, a linear one"
#: what is judged; differences and margins were fixed before any run on recorded data
QUESTIONS = (
    Question("P1", _NGUYEN, "a learned prior gives inputs that excite the unit and look real",
             f"share of the threshold times nearness, through DCGAN + SN, {_TWO}", _CONTROLS, 0.02),
    Question("P2", _NGUYEN, "at equal activation they are nearer to real ones",
             f"nearness, of units that all three bring to their threshold, {_TWO}", _CONTROLS, 0.02),
    Question("P3", _NGUYEN, "they show in an interpretable way what a unit has learned",
             f"right answers to which of two new windows excites the unit more, {_TWO}", _CONTROLS, 0.01, "share"),
    Question("P4", "thesis on collaborative generators, Tab. 1", "generators that teach each other make better windows",
             "share of the threshold times nearness, through generators that teach each other, above the better of "
             "MAD-GAN and DCGAN + SN", "the same generators with no edge between them", 0.02),
)  # fmt: skip

VALUE, COPIED, SHOWN = "activation x nearness", "distance [octaves]", "shows its motif"
#: what is measured of signals, each with its null
MEASURES = {"activation": None, "nearness": None, VALUE: None, COPIED: None, **explanation.MEASURES}


def every_prior(run: Stages) -> dict[int, list[Prior]]:
    """All priors by the seed of their training: those of notebook 17, made where they are not there, and controls."""
    study, cfg = generating.Study(run), run.cfg
    base, windows, rows = study.own.gan, study.windows, study.rows
    jobs = list(product(cfg.latent.seeds, GANS))

    def one(job: tuple[int, str]) -> Prior:
        seed, name = job
        return latent.of_gan(name, windows, rows[name], seed, cfg.device)

    found = dict(zip(jobs, side_by_side(cfg, one, jobs, "generators"), strict=True))
    linear = latent.principal(windows, base.n_latent)
    return {
        seed: [*(found[seed, name] for name in GANS), latent.untrained(windows, base, seed), linear]
        for seed in cfg.latent.seeds
    }


def through_priors(run: Stages) -> xr.Dataset:
    """:func:`latent.signals_of` of all networks and priors, dims (seed, technique, layer, unit, ..).

    Networks take the trainings' seeds in turn, so that no result hangs on one training.
    """
    cfg, found = run.cfg.latent, every_prior(run)
    turn = {net.seed: cfg.seeds[i % len(cfg.seeds)] for i, net in enumerate(run.networks)}
    about = (len(run.data.axes), run.data.train.length, replace(cfg, seeds=()))  # which decide no signal

    def one(net: Network, th_eap: xr.DataArray) -> xr.Dataset:
        made = [latent.signals_of(net, th_eap, prior, *about) for prior in found[turn[net.seed]]]
        return xr.concat(made, "technique")

    return of_networks(run.networks, one, run.statistics["th_eap"], cfg=run.cfg, title="priors")


def compared(run: Stages, made: xr.Dataset) -> xr.DataArray:
    """Signals of all that is compared, (seed, technique, layer, unit, time): first those ``made`` through priors.

    Of real windows: one of the validation people that brings the unit to its threshold, and the training segment that
    is nearest to what comes through DCGAN + SN.
    """
    cfg, data, networks, th_eap = run.cfg, run.data, run.networks, run.statistics["th_eap"]
    about = (cfg, data, networks, run.statistics, [BY_NAME["learned prior"]], th_eap["unit"].values.tolist())
    denoised = climbing.signals(*about, priors.prior(cfg, data)).assign_coords(technique=[DENOISER])
    proposed = run.signals.sel(preset="calibrated", technique=[PROPOSED]).drop_vars("preset")

    def real(net: Network, th: xr.DataArray, own: xr.DataArray) -> xr.DataArray:
        strong = own.copy(data=realism.held_out_strong(net.trunk, th, data.val, net.seed))
        pair = xr.concat([strong, nearest_real(data, own)["signal"]], "technique")
        return pair.assign_coords(technique=[HELD_OUT, NEAREST])

    windows = of_networks(networks, real, th_eap, made["signal"].sel(technique=SPECTRAL, drop=True))
    every = [*(of["signal"] for of in (made, denoised, proposed, run.likeliest)), windows]
    together = xr.concat(every, "technique", join="inner")
    return together.assign_coords(technique=together["technique"].values.tolist())


@kept("latent")
def nearest_real(windows: Windows, signals: xr.DataArray) -> xr.Dataset:
    """The training segment nearest to each signal (.., time) in G, ``signal``, and its ``distance`` (..), RMS in G."""
    segments, x = windows.train.segments, signals.values.reshape(-1, signals.sizes["time"]).astype(np.float32)
    others = torch.as_tensor(np.ascontiguousarray(segments))
    near = segments[torch.cat([torch.cdist(of, others).argmin(1) for of in torch.as_tensor(x).split(64)]).numpy()]
    distance = np.sqrt(((x - near) ** 2).mean(1)).reshape(signals.shape[:-1])
    found = {"signal": signals.copy(data=near.reshape(signals.shape))}
    return xr.Dataset(found | {"distance": signals.isel(time=0, drop=True).copy(data=distance)})


def measured(run: Stages, signals: xr.DataArray) -> tuple[xr.Dataset, pd.DataFrame]:
    """``MEASURES`` of :func:`compared` signals and references, dims (seed, technique, layer, unit), and their table.

    With planted motifs also ``SHOWN``, whether they show what the unit prefers. ``COPIED`` is by how many octaves
    signals are farther from the nearest training segment than another person's strong window: below 0 they are nearer.
    """
    about, measures = (run.cfg, run.data, run.networks, run.statistics, signals), dict(MEASURES)
    real, every = explaining.beside_real(*about), explaining.with_references(*about[:3], signals)[0]
    far = of_networks(run.networks, lambda net, own: nearest_real(run.data, own), every)["distance"].clip(min=REST_G)
    found = {"activation": realism.activation(real), "nearness": realism.nearness(real)}
    found |= {VALUE: found["activation"] * found["nearness"]}
    found |= {COPIED: np.log2(far / far.sel(technique=HELD_OUT, drop=True))}
    if run.truth:
        shown = explaining.motif_identification(*about, run.truth)
        found |= {SHOWN: shown["identified"], "chance of motifs": shown["chance"]}
        measures |= {SHOWN: "chance of motifs"}
    together = explaining.explanations(*about).sel(technique=every["technique"]).assign(found)
    return together, explaining.table(together, measures)


def climbed(run: Stages, made: xr.Dataset, names: Sequence[str]) -> pd.DataFrame:
    """How high outputs had come, as a mean "share of the threshold", after so many "windows": a row each."""
    n_each = len(run.data.axes) * run.cfg.latent.n_starts
    share, rows = made["history"] / run.statistics["th_eap"], []
    for name, layer, step in product(names, share["layer"].values.tolist(), share["step"].values.tolist()):
        own = share.sel(technique=name, layer=layer, step=step).transpose("seed", "unit")
        row = {"technique": name, "layer": layer, "windows": n_each * (step + 1)}
        rows.append(row | with_interval("share of the threshold", own))
    return pd.DataFrame(rows)


def judged(found: xr.Dataset, missing: str = "") -> list[dict]:
    """Verdicts on ``QUESTIONS`` from :func:`measured`, network by network, means over all units of all layers.

    Units of which one side has no value are left out of both. With ``missing`` words nothing is judged.
    """

    def above(measure: str, name: str, *others: str) -> np.ndarray:
        each = found.sel(technique=[name, *others])
        there = each[measure].notnull()
        if measure == "nearness":  # of equal activation
            there &= each["activation"] >= 1
        mean = each[measure].where(there.all("technique")).mean(["layer", "unit"]).to_pandas()
        mean = mean.T if mean.index.name == "technique" else mean
        return mean[name] - best_rival(mean, others)

    best, every = SPECTRAL + RANDOM, found["technique"].values.tolist()
    linear = next(name for name in every if name.startswith("PCA"))
    entries = []
    for question, measure in zip(QUESTIONS, (VALUE, "nearness", "accuracy"), strict=False):
        controls = {f"above {other}": above(measure, SPECTRAL, other) for other in (LIKELIEST_TRIGGER, best)}
        both = {name: above(measure, name, LIKELIEST_TRIGGER, best) for name in (UNTRAINED, linear)}
        entries.append(
            judge(question, above(measure, SPECTRAL, LIKELIEST_TRIGGER, best), controls | both, missing=missing)
        )
    apart = {f"above {other}": above(VALUE, TAUGHT, other) for other in (MAD, SPECTRAL, TAUGHT + RANDOM)}
    return [*entries, judge(QUESTIONS[-1], above(VALUE, TAUGHT, MAD, SPECTRAL), apart, missing=missing)]


#: the first sentence, by the direction of the first question
_FIRST = {
    YES: "Yes: through a generator, signals are better than by the likeliest trigger and by random search.",
    NO: "No: the likeliest trigger, or the best of as many random windows, does as well as ascent through a generator.",
    UNDECIDED: "It is open whether ascent through a generator beats both the likeliest trigger and random search.",
    UNTESTABLE: "Nothing can be told here: generators are hardly trained, or networks too few.",
}


def answer(verdicts: Sequence[Mapping], found: xr.Dataset) -> str:
    """The answer to the notebook's title, with what controls reach."""
    mean = found[VALUE].mean(["seed", "layer", "unit"]).to_series()
    rivals = [n for n in mean.index if n not in GANS and n not in (NEAREST, HELD_OUT, *REFERENCES)]
    better = [f"{name} {mean[name]:.2f}" for name in rivals if mean[name] >= mean[SPECTRAL]]
    told = f"As good or better: {listed(better, '; ')}." if better else "No rival or control reaches that."
    return (
        f"**{_FIRST[verdicts[0]['direction']]}** Share of the threshold times nearness is {mean[SPECTRAL]:.2f} through "
        f"DCGAN + SN, {mean[SPECTRAL + RANDOM]:.2f} for the best of as many random windows of it, "
        f"{mean[LIKELIEST_TRIGGER]:.2f} for the likeliest trigger; real windows of other people have "
        f"{mean[HELD_OUT]:.2f}. **The generator's own training adds {mean[SPECTRAL] - mean[UNTRAINED]:+.2f}**: without "
        f"it the same ascent has {mean[UNTRAINED]:.2f}. {told}"
    )
