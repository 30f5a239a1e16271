"""Settings, and what belongs to them: made where it is missing, read where it is there."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import pandas as pd
import xarray as xr

from harvis_utils.data import archive, kinds, synthetic, windowing
from harvis_utils.data.kinds import Recordings
from harvis_utils.data.synthetic import PlantedMotifs
from harvis_utils.data.windowing import Windows
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import similarity
from harvis_utils.paper import choosing, climbing, variants
from harvis_utils.settings import Settings, for_choosing
from harvis_utils.training import published, supervised
from harvis_utils.training.supervised import Network

#: Choice: standard deviation of the noise added to made-up data, to be seen beside them
NOISE_G = 0.2


class Stages:
    """Windows, networks and signals that belong to settings, each read once.

    What is stored is read; what is missing is computed, which may take long.
    """

    def __init__(self, cfg: Settings):
        self.cfg = cfg

    @cached_property
    def recordings(self) -> Recordings:
        """The data set as it was recorded."""
        return archive.load_recordings(self.cfg.dataset)

    @cached_property
    def data(self) -> Windows:
        """Its windows."""
        return windowing.cut(self.recordings, self.cfg.windows)

    @cached_property
    def truth(self) -> PlantedMotifs | None:
        """The motifs that were planted; ``None`` for data of which nobody knows any."""
        motifs = self.recordings.dataset.motifs
        return motifs and motifs()

    @cached_property
    def networks(self) -> list[Network]:
        """The trained networks, one per seed; published ones where the settings say so."""
        if self.cfg.weights == "published":
            folder = published.folder_of(self.cfg.profile, self.cfg.dataset)
            return published.load(folder, self.data, self.cfg.model, self.cfg.training.seeds)
        return supervised.networks(self.cfg, self.data)

    @property
    def whole(self) -> list[Network]:
        """Those networks of which all weights are there: all that were trained here, of published ones the first."""
        return [net for net in self.networks if not isinstance(net.model, published.NotPublished)]

    @cached_property
    def untrained(self) -> list[Network]:
        """As many networks with random weights."""
        return supervised.untrained(self.cfg, self.data)

    @cached_property
    def statistics(self) -> xr.Dataset:
        """What the trained networks' units do on the training windows (:func:`unit_statistics.statistics`)."""
        return unit_statistics.statistics(self.cfg, self.data, self.networks)

    @cached_property
    def random_statistics(self) -> xr.Dataset:
        """The same of the untrained networks."""
        return unit_statistics.statistics(self.cfg, self.data, self.untrained)

    @cached_property
    def signals(self) -> xr.Dataset:
        """Signals of all methods and presets (:func:`paper_methods.signals`)."""
        return paper_methods.signals(self.cfg, self.networks, self.statistics)

    @cached_property
    def likeliest(self) -> xr.Dataset:
        """Signals of the likeliest trigger, one more technique (:func:`climbing.likeliest_triggers`)."""
        return climbing.likeliest_triggers(self.cfg, self.data, self.networks, self.statistics)

    @cached_property
    def random_signals(self) -> xr.Dataset:
        """Signals of the proposed method for the untrained networks, a control."""
        return paper_methods.signals(
            self.cfg, self.untrained, self.random_statistics, paper_methods.CONTROL_METHODS, ("calibrated",)
        )

    @cached_property
    def scores(self) -> xr.Dataset:
        """Ssim and the other measures of all signals (:func:`similarity.scores`)."""
        return similarity.scores(self.cfg, self.data, self.networks, self.statistics, self.signals)

    @cached_property
    def controls(self) -> xr.Dataset:
        """The same measures of the controls."""
        proposed = self.random_signals.sel(preset="calibrated", technique=PROPOSED, drop=True)
        return similarity.controls(
            self.cfg, self.data, self.networks, self.statistics, self.untrained, self.random_statistics, proposed
        )

    @cached_property
    def readings(self) -> xr.Dataset:
        """Scores of all readings of the hyper-parameters, from the networks that are kept for choosing."""
        own, tried = self.choosing, variants.readings(self.cfg.readings)
        return climbing.reading_scores(own.cfg, own.data, own.networks, own.statistics, tried)

    @cached_property
    def shares(self) -> pd.DataFrame:
        """Under which readings each claim is so, those that the other claims admit (:func:`choosing.every_share`)."""
        tried = variants.readings(self.cfg.readings)
        return choosing.every_share(self.readings, self.choosing.controls, tried, self.cfg.dataset)

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions, the first one first."""
        return list(self.networks[0].trunk.layers)

    @cached_property
    def choosing(self) -> Stages:
        """Other networks, trained on other people, on which readings and variants are chosen; they judge nothing.

        Choice: they are trained on the test people; the validation people choose their epoch and are held out too. So
        no person on whom a judging network was trained has a part in a choice.
        """
        other = Stages(for_choosing(self.cfg))
        other.recordings = self.recordings
        other.data = replace(self.data, train=self.data.test, test=self.data.val)
        return other

    @cached_property
    def beside(self) -> list[Stages]:
        """Other data sets with the same settings: all that are here; beside made-up data alone a noisier version."""
        if self.recordings.dataset.made_up:
            others = [synthetic.variant(NOISE_G)]
        else:
            base = self.recordings.dataset.name
            others = [archive.load_recordings(name) for name in archive.here() if kinds.check_name(name).name != base]
        found = []
        for recordings in others:
            other = Stages(replace(self.cfg, dataset=recordings.name))
            other.recordings = recordings
            found.append(other)
        return found
