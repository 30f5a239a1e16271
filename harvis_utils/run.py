"""The settings of a notebook, and what belongs to them: made where it is missing, read where it is there."""

from __future__ import annotations

import types
import typing
from functools import cached_property

import pandas as pd
import torch
import xarray as xr
from IPython.display import Image
from matplotlib.figure import Figure

from harvis_utils.data import archive, kinds, windowing
from harvis_utils.data.kinds import Recordings
from harvis_utils.data.windowing import Windows
from harvis_utils.figures import style
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import embedding, motifs, similarity
from harvis_utils.paper import report
from harvis_utils.parallel import threads
from harvis_utils.settings import Settings, SettingsError, for_choosing, load_settings
from harvis_utils.store.files import replacing, write_json, write_text
from harvis_utils.training import published, supervised
from harvis_utils.training.supervised import Network


class Run:
    """Windows, networks and signals that belong to settings, each read once.

    What an earlier notebook made is read from the store; what is missing is computed, which may take long.
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
    def motifs(self) -> pd.DataFrame | None:
        """How well planted motifs come back (:func:`motifs.motif_recovery`); None where none were planted."""
        about = (self.cfg, self.data, self.signals, self.random_signals, self.recordings.dataset)
        return motifs.motif_recovery(*about)

    @cached_property
    def results(self) -> dict:
        """What ``results.json`` holds: the verdicts on the paper's claims and what they stand on."""
        found = None if self.motifs is None else self.motifs.reset_index().to_dict("records")
        atlas = embedding.measures(self.data, self.scores, self.signals)
        return report.assemble(self.cfg, self.data, self.networks, self.scores, self.controls, atlas, found)

    @property
    def layers(self) -> list[str]:
        """Names of the convolutions, the first one first."""
        return list(self.networks[0].trunk.layers)

    @cached_property
    def choosing(self) -> Run:
        """The same data with the networks that are kept for choosing, which take no part in judging."""
        other = Run(for_choosing(self.cfg))
        other.recordings, other.data = self.recordings, self.data
        return other

    def headline(self, what: str | None = None) -> str:
        """One line of Markdown: data set, profile, ``what`` (by default how many networks) and the data's caveat."""
        what = what or f"{len(self.networks)} networks"
        return f"**{self.cfg.dataset}**, profile {self.cfg.profile}, {what}. {self.data.caveat.capitalize()}".strip()

    # --------------------------------------------------------------------------- what a notebook shows and leaves

    def figure(self, name: str, figure: Figure) -> Image:
        """Write a figure, with what is to be known of the data below it, to ``figures/NAME.png`` of the reports.

        Returns that picture, for the cell to show.
        """
        path = self.cfg.reports / "figures" / f"{name}.png"
        style.add_caveat(figure, self.recordings.caveat)
        with replacing(path) as part:
            part.write_bytes(style.picture(figure))
        return Image(path.read_bytes(), width=round(100 * figure.get_figwidth()), alt=figure.get_label())

    def table(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Write a table to ``tables/NAME.csv`` of the reports, and return it."""
        write_text(self.cfg.reports / "tables" / f"{name}.csv", table.to_csv(index=True))
        return table

    def findings(self, name: str, found: dict) -> dict:
        """Write what was found, with the data and the profile before it, to ``NAME.json`` of the reports.

        NaN, which JSON has not, becomes null. Returns what was written.
        """
        cfg = self.cfg
        about = {"dataset": cfg.dataset, "profile": cfg.profile, "caveat": self.recordings.caveat} | found
        write_json(cfg.reports / f"{name}.json", about, nan_as_null=True)
        return about


#: the name by which a namespace says that its parameters have been checked once
PASSED = "_harvis_parameters_passed"


def check_parameters(namespace: dict, **declared) -> None:
    """Refuse unknown names and wrong types among a notebook's parameters.

    ``namespace`` is the notebook's ``globals()``; ``declared`` maps each parameter to its type (``str``, ``int``,
    ``str | None``). Call it before anything else is assigned: any other plain value was injected by mistake, which
    papermill only warns about, unless IPython's startup files set it. Once a namespace has passed, its notebook assigns
    names of its own; when the cells are run again in the same kernel, only the declared ones are looked at.
    """
    plain = (str, int, float, bool, list, dict, tuple, types.NoneType)
    ipython = {"In", "Out", "PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"}
    shell = namespace.get("get_ipython", lambda: None)()
    at_startup = getattr(shell, "user_ns_hidden", {})
    for name, value in namespace.items() if PASSED not in namespace else ():
        if name.startswith("_") or name in ipython or name in declared or not isinstance(value, plain):
            continue
        if name in at_startup and at_startup[name] is value:
            continue
        raise SettingsError(f"unknown notebook parameter {name!r}; valid parameters: {', '.join(sorted(declared))}")
    for name, kind in declared.items():
        if name not in namespace:
            raise SettingsError(f"notebook parameter {name!r} is not set")
        allowed = typing.get_args(kind) or (kind,)
        value = namespace[name]
        if float in allowed and type(value) is int:  # as a person or papermill writes it
            value = namespace[name] = float(value)
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            wanted = " or ".join("None" if k is types.NoneType else k.__name__ for k in allowed)
            raise SettingsError(f"notebook parameter {name} = {value!r} should be {wanted}")
    namespace[PASSED] = True


#: parameters of every notebook
STANDARD = {"PROFILE": str, "DATASET": str, "DEVICE": str | None, "WEIGHTS": str}


def begin(namespace: dict, **declared) -> Run:
    """Check a notebook's parameters, ``STANDARD`` and those ``declared``, set threads and style, and return its run."""
    check_parameters(namespace, **STANDARD, **declared)
    torch.set_num_threads(threads())
    style.use_style()
    kinds.check_name(namespace["DATASET"])
    return Run(load_settings(*(namespace[name] for name in STANDARD)))
