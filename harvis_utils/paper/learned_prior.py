"""Activation Maximization through a generator (notebook 18): what it is compared with, and what decides.

Signals of units through generators stand beside those of the paper's method and of the likeliest trigger, beside
controls that have no training, no ascent or no network, and beside real windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data import windowing
from harvis_utils.data.windowing import Windows
from harvis_utils.lenses.triggered import REFERENCES
from harvis_utils.maximization import latent, priors
from harvis_utils.maximization.latent import RANDOM, Prior
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import generative, realism
from harvis_utils.metrics.intervals import with_interval
from harvis_utils.metrics.signal_measures import ranges
from harvis_utils.paper import climbing, explaining
from harvis_utils.paper.stages import Stages
from harvis_utils.paper.systems import Question, judge
from harvis_utils.paper.variants import BY_NAME, LIKELIEST_TRIGGER
from harvis_utils.parallel import side_by_side
from harvis_utils.store.results import kept
from harvis_utils.training.supervised import Network, of_networks

DCGAN, MAD, TAUGHT, DENOISER = "DCGAN + SN", "MAD-GAN", "knowledge transfer", "denoiser"
UNTRAINED, HELD_OUT, NEAREST = "untrained generator", "strong window of others", "nearest real window"
#: trainings whose generators are priors, by what differs from the profile's (cfg.latent.gan). The last is the source's
#: best graph: its first generator is taught more and more, its second by nobody
GANS: dict[str, dict] = {
    DCGAN: {},
    MAD: {"n_generators": 3},
    TAUGHT: {
        "n_generators": 3,
        "alpha": 10.0,
        "gates": (("1", 0, "positive"), ("2", 0, "positive"), ("0", 2, "through"), ("1", 2, "through")),
    },
}

#: what is judged; ids, differences and margins were fixed before any run on recorded data
_SAYS = "a generator as learned prior gives inputs that look real and excite the unit"
_WHERE = "Nguyen et al. 2016; book on interpretability, learned features"
QUESTIONS = {
    "P1": Question(
        "P1",
        _WHERE,
        _SAYS,
        "share of the threshold times nearness, through DCGAN + SN, above the better of likeliest trigger and random "
        "search of equal cost",
        "random search through the same generator, an untrained one, a linear one",
        margin=0.02,
    ),
    "P2": Question(
        "P2",
        _WHERE,
        _SAYS,
        "nearness alone, of units that all three bring to their threshold, above the better of the same two",
        "random search through the same generator, an untrained one, a linear one",
        margin=0.02,
    ),
    "P3": Question(
        "P3",
        _WHERE,
        "what looks real is better understood",
        "right answers to which of two new windows excites the unit more, through DCGAN + SN, above the better of the "
        "same two",
        "random search through the same generator, the nearest real window",
        margin=0.01,
    ),
    "P4": Question(
        "P4",
        "thesis on collaborative generators, Tab. 1 and Fig. 4",
        "generators that teach each other make better windows",
        "share of the threshold times nearness, through generators that teach each other, above the better of MAD-GAN "
        "and DCGAN + SN",
        "the same three generators without edges between them",
        margin=0.02,
    ),
}
