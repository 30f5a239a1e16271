"""What a notebook begins with, and how it shows and leaves what it found."""

from __future__ import annotations

import ast
import copy
import types
import typing
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager
from IPython.display import Image
from matplotlib.figure import Figure

from harvis_utils.data import kinds
from harvis_utils.figures import style
from harvis_utils.metrics import embedding, motifs
from harvis_utils.paper import people, report, widths
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import threads, torch_device
from harvis_utils.settings import HarvisError, SettingsError, load_settings
from harvis_utils.store.files import replacing, write_json, write_text


class Run(Stages):
    """A run with its verdicts, and what its notebooks show and leave in its reports."""

    @cached_property
    def motifs(self) -> pd.DataFrame | None:
        """How well planted motifs come back (:func:`motifs.motif_recovery`); None where none were planted."""
        about = (self.cfg, self.data, self.signals, self.random_signals, self.recordings.dataset)
        return motifs.motif_recovery(*about)

    @cached_property
    def people(self) -> pd.DataFrame:
        """Measures of networks trained with each person left out in turn (:func:`people.measured`)."""
        return people.measured(self)

    @cached_property
    def widths(self) -> dict[str, np.ndarray]:
        """What claim C12 is judged by: networks of several widths, and units merged (:func:`widths.evidence`)."""
        return widths.evidence(widths.measured(self), widths.merging_table(self))

    @cached_property
    def results(self) -> dict:
        """What ``results.json`` holds: the verdicts on the paper's claims and what they stand on.

        Of published networks without what takes others, which are not published: those left for choosing say how
        robust a verdict is, those of other widths C12, those without a person how claims vary from one to another.
        """
        found = None if self.motifs is None else self.motifs.reset_index().to_dict("records")
        atlas = embedding.measures(self.data, self.scores, self.signals)
        about = (self.cfg, self.data, self.networks, self.scores, self.controls, atlas, found)
        if self.cfg.weights == "published":
            return report.assemble(*about)
        robust = self.shares.rename(columns={"yes in": "yes", "no in": "no"})[["yes", "no"]].to_dict("index")
        return report.assemble(*about, robust=robust, widths=self.widths, people=self.people)

    def headline(self, what: str | None = None) -> str:
        """One line of Markdown: data set, profile, ``what`` (by default how many networks) and the data's caveat."""
        what = what or f"{len(self.networks)} networks"
        return f"**{self.cfg.dataset}**, profile {self.cfg.profile}, {what}. {self.data.caveat.capitalize()}".strip()

    # --------------------------------------------------------------------------- what a notebook shows and leaves

    def figure(self, name: str, figure: Figure, caveat: str | None = None) -> Image:
        """Write a figure, with what is to be known of the data below it, to ``figures/NAME.png`` of the reports.

        ``caveat`` says that of a figure of other data than the run's own. Returns that picture, for the cell to show.
        """
        path = self.cfg.reports / "figures" / f"{name}.png"
        style.add_caveat(figure, self.recordings.caveat if caveat is None else caveat)
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

    ``declared`` maps names to types. A parameter is what a cell up to this one assigned: the parameters cell, or
    papermill. Raises :class:`SettingsError`. Where the notebook is run again in the same kernel, only the declared
    ones are looked at.
    """
    unknown = _assigned(namespace.get("In", ())) & namespace.keys() - declared.keys()
    if unknown and PASSED not in namespace:
        name = sorted(unknown)[0]
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


def _assigned(cells: Sequence[str]) -> set[str]:
    """Names that the cells of a kernel assign, outside functions and blocks."""
    found = set()
    for cell in cells:
        with suppress(SyntaxError):  # a cell that was refused
            tree = ast.parse(TransformerManager().transform_cell(cell))  # magic lines as calls
            statements = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
            names = [node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Name)]
            found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return found


#: parameters of every notebook
STANDARD = {"PROFILE": str, "DATASET": str, "DEVICE": str | None, "WEIGHTS": str}


def told(shell, kind: type, error: HarvisError, trace: types.TracebackType, tb_offset: int | None = None) -> None:
    """Show an error that a person can put right by the cell's own line and the message alone."""
    while trace.tb_next and "IPython" in trace.tb_frame.f_code.co_filename:
        trace = trace.tb_next
    of_cell = types.TracebackType(None, trace.tb_frame, trace.tb_lasti, trace.tb_lineno)
    shell.showtraceback((kind, copy.copy(error), of_cell), tb_offset=0)  # a copy has no chain of causes


def begin(namespace: dict, **declared) -> Run:
    """Check a notebook's parameters, ``STANDARD`` and those ``declared``, set threads and looks, and return its run."""
    if shell := get_ipython():
        shell.set_custom_exc((HarvisError,), told)
    check_parameters(namespace, **STANDARD, **declared)
    torch_device(namespace["DEVICE"])
    torch.set_num_threads(threads())
    style.use_style()
    pd.set_option("display.max_colwidth", None, "display.max_rows", 200)
    return Run(kinds.fitted(load_settings(*(namespace[name] for name in STANDARD))))
