"""What earlier notebooks made of one data set and profile, opened when it is first asked for."""

from __future__ import annotations

from functools import cached_property

import xarray as xr

from harvis_utils import activations, config, datasets, maximization, similarity, training, windows
from harvis_utils.config import Settings
from harvis_utils.datasets import Recordings
from harvis_utils.training import Network
from harvis_utils.windows import Windows


class Run:
    """Windows, networks and signals that belong to settings, each read once.

    Nothing is computed but windows and untrained networks, which take seconds. What no notebook has made yet raises
    :class:`harvis_utils.artifacts.ArtifactError`, which names the notebook to run.
    """

    def __init__(self, cfg: Settings):
        self.cfg = cfg

    @cached_property
    def recordings(self) -> Recordings:
        """The data set as it was recorded."""
        return datasets.load_recordings(self.cfg.dataset)

    @cached_property
    def data(self) -> Windows:
        """Its windows."""
        return windows.cut(self.recordings, self.cfg.windows)

    @cached_property
    def networks(self) -> list[Network]:
        """The trained networks, one per seed."""
        return training.load_networks(self.cfg, self.data)

    @cached_property
    def untrained(self) -> list[Network]:
        """As many networks with random weights."""
        return training.untrained(self.cfg, self.data)

    @cached_property
    def statistics(self) -> xr.Dataset:
        """What the trained networks' units do on the training windows (:func:`activations.statistics`)."""
        return activations.load_statistics(self.cfg, self.data, self.networks)

    @cached_property
    def random_statistics(self) -> xr.Dataset:
        """The same of the untrained networks."""
        return activations.load_statistics(self.cfg, self.data, self.untrained)

    @cached_property
    def signals(self) -> xr.Dataset:
        """Signals of all methods and presets (:func:`maximization.signals`)."""
        return maximization.load_signals(self.cfg, self.data, self.networks)

    @cached_property
    def random_signals(self) -> xr.Dataset:
        """Signals of the proposed method for the untrained networks, a control."""
        return maximization.load_signals(
            self.cfg, self.data, self.untrained, maximization.CONTROL_METHODS, ("calibrated",)
        )

    @cached_property
    def scores(self) -> xr.Dataset:
        """Ssim and the other measures of all signals (:func:`similarity.load_scores`)."""
        return similarity.load_scores(self.cfg, self.data, self.networks, "methods")

    @cached_property
    def controls(self) -> xr.Dataset:
        """The same measures of the controls."""
        return similarity.load_scores(self.cfg, self.data, self.networks, "controls")

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions, the first one first."""
        return list(self.networks[0].trunk.layers)

    @cached_property
    def choosing(self) -> Run:
        """The same data with the networks that are kept for choosing, which take no part in judging."""
        other = Run(config.for_choosing(self.cfg))
        other.recordings, other.data = self.recordings, self.data
        return other

    def headline(self, what: str | None = None) -> str:
        """One line of Markdown: data set, profile, ``what`` (by default how many networks) and the data's caveat."""
        what = what or f"{len(self.networks)} networks"
        return f"**{self.cfg.dataset}**, profile {self.cfg.profile}, {what}. {self.data.caveat.capitalize()}".strip()

    def summary(self) -> dict:
        """What every JSON file of findings begins with."""
        cfg = self.cfg
        return {"dataset": cfg.dataset, "profile": cfg.profile, "caveat": self.data.caveat}
