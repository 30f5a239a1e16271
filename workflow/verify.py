"""Published runs checked without training: every file, and every number that published weights and signals give again.

    python -m workflow.verify [--profile desk] [--dataset dsads] [--full]
    python -m workflow.verify --write-digests       # after published files were changed on purpose

Of each run in ``reports/published``:

* files are compared with their digests;
* tables are written again from ``results.json``; scores are computed again from the weights, signals and statistics in
  ``networks/``, and verdicts from these scores; where the data are at hand, with the distances to their windows, and
  predictions and statistics too;
* eight units of each layer of every network are climbed again by the paper's method, all units with ``--full``.

A row for each check, then what differs, by name, and what was not checked, and why. The exit status is 1 where anything
differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
import xarray as xr

from harvis_utils.data import archive, kinds, windowing
from harvis_utils.data.kinds import DataError
from harvis_utils.data.windowing import Windows
from harvis_utils.fast.gradients import UnitMaps, terms
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import METHODS, PROPOSED
from harvis_utils.maximization.starting import chosen_units, starting_signal
from harvis_utils.metrics import signal_measures, similarity
from harvis_utils.metrics.intervals import listed
from harvis_utils.networks.sfhf import Trunk
from harvis_utils.paper import claims, report, verdicts
from harvis_utils.paper.evidence import Evidence
from harvis_utils.parallel import command_line, threads
from harvis_utils.settings import (
    APPROXIMATE,
    PROFILES,
    HarvisError,
    Settings,
    from_json,
    load_settings,
    report_root,
)
from harvis_utils.store.files import file_digest, read_json, write_json
from harvis_utils.training import published, supervised
from harvis_utils.training.published import Published
from workflow import publish, yardstick

#: signals and weights are published in the float32 they were computed in, so that only the order of sums differs
RELATIVE = 1e-5
#: a signal climbed anew may reach so much more or less, as a share of the published one's objective, or of so much of
#: its unit's threshold where that is more: a unit that stays silent has an objective of about 0. Choice
OBJECTIVE, REST = 0.01, 0.01
#: what is said of a signal: whether it is flat, and whether it brings its unit more than 1 % above the threshold
VERDICTS = ["flat", "above th"]
#: share of windows whose two likeliest activities rounding may exchange. Choice
MOST_OTHERS = 1e-3
#: units of each layer that are climbed again. Choice
N_UNITS = 8
#: what is decided by rounding is found by so many draws of starts, and of weights, moved by such a share of themselves;
#: and by so many of outputs moved by such a share. Choice
N_NUDGES, ROUNDED, N_SEARCHED, ROUNDING = 16, 1e-7, 8, 1e-6
#: claims judged by weights, signals and statistics alone; with windows, and with those of the test people searched too
OF_SIGNALS, OF_WINDOWS, OF_CONTROLS = ("C4", "C6", "C7", "C8"), ("C1", "C2", "C5"), ("C3", "C9")
OF_DISTANCES, DECIDED = ("C5", "C9"), "rounding decides"
SETTINGS = ("windows", "maximization", "similarity")
ORDER = ("layer", "preset", "technique", "unit", "time")
MOST_SHOWN, AGAIN = 12, "scores, verdicts, ascents"


class VerifyError(HarvisError, RuntimeError):
    """Published runs that differ from what was found, or none where one was asked for."""


@dataclass
class Check:
    """A row: how many values were compared, which differ, by how much (relative) at most, and what is to be said."""

    what: str
    n: int = 0
    largest: float = 0.0
    differing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def compare(self, place: str, published, found) -> None:
        """Count two values, the numbers among them equal where they differ by no more than :data:`RELATIVE`."""
        self.n += 1
        size = apart(published, found)
        self.largest = max(self.largest, size)
        if size > RELATIVE:
            self.differing.append(f"{place}: {published!r} is published, {found!r} found")

    def compare_all(self, place: str, published, found) -> None:
        """The same of all values inside two nested ones."""
        before, now = (dict(yardstick.leaves(value)) for value in (published, found))
        for path in before | now:
            self.compare(f"{place}/{path}", *(of.get(path, "nothing") for of in (before, now)))


def apart(published, found) -> float:
    """How far apart two numbers are, as a share of the larger; of anything else 0 where equal, else infinity."""
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (published, found))
    if published == found or (numbers and np.isnan(published) and np.isnan(found)):
        return 0.0
    size = abs(published - found) / max(abs(published), abs(found)) if numbers else np.inf
    return np.inf if np.isnan(size) else size


class PublishedRun:
    """A folder of ``reports/published``, with the settings that it was made by."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, f"{folder.parent.name}/{folder.name}"

    @cached_property
    def results(self) -> dict | None:
        """Its ``results.json``; None where only networks are published."""
        path = self.folder / "results.json"
        return read_json(path) if path.exists() else None

    @cached_property
    def cfg(self) -> Settings:
        """Settings of its profile, those of windows, ascent and Ssim as ``results.json`` has them."""
        cfg = kinds.fitted(load_settings(self.folder.parent.name, self.folder.name, "cpu"))
        used = self.results["provenance"]["settings"] if self.results else {}
        return replace(cfg, **{name: from_json(used[name], type(getattr(cfg, name))) for name in SETTINGS if used})

    @cached_property
    def networks(self) -> list[Published]:
        """The networks that judge."""
        return published.judging(self.folder / "networks")

    @cached_property
    def start(self) -> np.ndarray:
        """Where all ascents began."""
        return starting_signal(self.cfg.maximization, self.cfg.windows.length)

    @cached_property
    def at_hand(self) -> Windows | str:
        """Windows of the data set as it is here; where it is not, why."""
        try:
            return windowing.cut(archive.load_recordings(self.cfg.dataset, download=False), self.cfg.windows)
        except DataError as error:
            return str(error)

    @cached_property
    def windows(self) -> Windows | str:
        """Its windows; where these are not at hand, why."""
        if isinstance(self.at_hand, str) or self.at_hand.digest == self.digest:
            return self.at_hand
        return f"the data of {self.cfg.dataset} that are at hand give other windows than those of this run"

    @property
    def digest(self) -> str:
        """That of its windows."""
        if self.results:
            return self.results["provenance"]["data"]
        return self.networks[0].provenance["arguments"]["windows"]

    def table(self, name: str) -> pd.DataFrame | None:
        """One of its tables, with its first column as index; None where it is not published."""
        path = self.folder / "tables" / f"{name}.csv"
        return pd.read_csv(path, index_col=0) if path.exists() else None


# ------------------------------------------------------------------------------------------------------- the checks


def files(run: PublishedRun) -> Check:
    """Every file against its digest; files that are missing or new differ."""
    check, path = Check("files, by digest"), run.folder / publish.DIGESTS
    known = read_json(path)["files"] if path.exists() else {}
    about = run.folder / "networks" / "networks.json"
    found = publish.digests(run.folder)
    if about.exists():
        known |= {f"networks/{name}": digest for name, digest in read_json(about)["files"].items()}
        found |= {
            f"networks/{name}": file_digest(about.parent / name)
            for name in published.FILES
            if (about.parent / name).exists()
        }
    for place in sorted(known | found):
        check.n += 1
        if known.get(place) != found.get(place):
            wrong = "is missing" if place not in found else "is new" if place not in known else "has changed"
            check.differing.append(f"{place} {wrong}")
    return check


def tables(run: PublishedRun) -> Check:
    """The tables of notebook 06 against those that ``results.json`` gives."""
    check, results = Check("tables of results.json"), run.results
    scores = {preset: report.scores_table(results, preset) for preset in results["methods"]}
    scores = pd.concat(scores, names=["preset"])
    made = {"claims": report.claims_table(results), "criteria": report.criteria_table(results), "scores": scores}
    with tempfile.TemporaryDirectory() as folder:
        for name, table in made.items():
            known, again = (Path(of) / f"{name}.csv" for of in (run.folder / "tables", folder))
            if not known.exists():  # its digest tells
                continue
            table.to_csv(again)
            verdict = yardstick.Verdict(f"tables/{name}.csv", yardstick.Rules())
            yardstick.compare_table(verdict, known, again)
            check.n += sum(map(len, verdict.values.values()))
            check.differing += [f"{verdict.file}: {said}" for _, said in verdict.differences]
    return check


def data(run: PublishedRun) -> Check:
    """Windows cut again; those of an archive that is not verified may be others than the run's."""
    check = Check("windows of the data")
    if isinstance(run.windows, str) and (isinstance(run.at_hand, str) or run.cfg.dataset.endswith(APPROXIMATE)):
        check.notes.append(f"not checked: {run.windows}")
    else:
        check.compare("digest of the windows", run.digest, run.at_hand.digest)
        if run.results:
            found = {"n_windows": run.at_hand.counts()}
            found |= {"amplitude_threshold_g": windowing.amplitude_threshold(run.at_hand.train)}
            check.compare_all("results.json: data", run.results["data"], found)
    return check


def training(run: PublishedRun) -> Check:
    """F1 and chosen epochs against the networks' learning curves, and with windows against their predictions."""
    check, networks = Check("training: F1, epochs"), [one.network for one in run.networks]
    chosen = [int(np.nanargmax(net.history["val_f1"])) for net in networks]
    for net, epoch in zip(networks, chosen, strict=True):
        check.compare(f"network {net.seed}, chosen epoch", net.best_epoch + 1, epoch + 1)
    f1 = {
        split: [float(net.history[f"{split}_f1"][e]) for net, e in zip(networks, chosen, strict=True)]
        for split in ("val", "test")
    }
    last = [float(net.history["test_f1"][-1]) for net in networks]
    if run.results:
        found = {"macro_f1": report.over_seeds(f1["test"]), "macro_f1_last_epoch": report.over_seeds(last)}
        found |= {"epochs": len(networks[0].history["loss"]), "best_epoch": [epoch + 1 for epoch in chosen]}
        check.compare_all("results.json: training", run.results["training"], found)
    if (table := run.table("02_f1")) is not None:
        columns = {"chosen epoch": [e + 1 for e in chosen], "val F1": f1["val"], "test F1": f1["test"]}
        for name, values in (columns | {"test F1, last epoch": last}).items():
            check.compare_all(f"tables/02_f1.csv: {name}", table[name].tolist(), values)
    if isinstance(windows := run.windows, str):
        check.notes.append(f"predictions: {windows}")
        return check
    for net, epoch in zip(networks, chosen, strict=True):
        for split in ("val", "test"):
            for at, predicted in ((epoch, net.predicted), (-1, net.predicted_last)):
                again = supervised.macro_f1(getattr(windows, split), predicted[split])
                check.compare(f"network {net.seed}, {split} F1", float(net.history[f"{split}_f1"][at]), again)
    if not isinstance(networks[0].model, published.NotPublished):
        others = supervised.predict(networks[0].model, windows.test) != networks[0].predicted["test"]
        if others.mean() <= MOST_OTHERS:
            check.notes.append(f"{others.sum()} of {len(others)} test windows are taken for another activity")
        else:
            check.compare("test windows that the first network takes for another activity", 0, int(others.sum()))
    return check


def statistics(run: PublishedRun, full: bool) -> Check:
    """What units do in training, of the first network, of all with ``full``; needs windows."""
    which = run.networks if full else run.networks[:1]
    check = Check(f"statistics of {len(which)} of {len(run.networks)} networks")
    if isinstance(run.windows, str):
        check.notes.append(f"not checked: {run.windows}")
        return check
    for one in which:
        found = unit_statistics.collect(one.network.trunk, run.windows.train.segments)
        for name in ("mean", "std", "nonzero", "th_eap", "p95", "maximum", "dead", "top_output"):
            values = [of[name].transpose("layer", "unit", ...).values.tolist() for of in (one.statistics, found)]
            check.compare_all(f"network {one.network.seed}, {name}", *values)
    return check


def outputs(trunk: Trunk, signals: xr.DataArray) -> np.ndarray:
    """Each unit's map for its signals (layer, ..., unit, time), by the code that made it at the end of the ascent."""
    found = []
    for layer, of in zip(signals["layer"].values.tolist(), signals.values, strict=True):
        rows = torch.as_tensor(of.reshape(-1, of.shape[-1]))
        unit = torch.arange(of.shape[-2]).repeat(len(rows) // of.shape[-2])
        with torch.inference_mode():
            found.append(UnitMaps(trunk, layer, unit).forward(rows).numpy().reshape(of.shape))
    return np.stack(found)


def scored(
    run: PublishedRun, one: Published, maps: np.ndarray | None = None, among: xr.DataArray | None = None
) -> xr.Dataset:
    """Scores of a network's published signals (:func:`similarity.score`), without distances where windows are missing.

    ``maps`` are by default their own ``outputs``; distances of signals that are not ``among`` are not searched.
    """
    signals = one.signals.transpose(*ORDER)
    maps = outputs(one.network.trunk, signals) if maps is None else maps
    both = xr.Dataset({"signal": signals, "map": signals.copy(data=maps)})
    levels, windows = one.statistics[["th_eap", "p95", "dead"]], run.windows
    if isinstance(windows, str):
        windows, among = (
            SimpleNamespace(train=None, activities=(), rate_hz=run.cfg.windows.rate_hz),
            xr.DataArray(False),
        )
    # what is not to be searched is passed over as dead units are
    passed = levels["dead"] if among is None else levels["dead"] | ~among
    about = (windows, both, levels.assign(dead=passed), run.start, run.cfg.similarity)
    found = similarity.scores_of.function(one.network, *about)
    return found.assign(dead=levels["dead"].broadcast_like(found["dead"]))


def of_all(run: PublishedRun, parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """What was found of each network, under the dimension seed, with the names of activities where they are known."""
    found = xr.concat(parts, pd.Index([one.network.seed for one in run.networks], name="seed"))
    return found if isinstance(run.windows, str) else similarity.with_activities(found, run.windows)


def distances_by_rounding(run: PublishedRun, found: xr.Dataset) -> list[xr.Dataset]:
    """The smallest and the largest distance of each signal where rounding decides which of its pieces excites most.

    Outputs are changed by a share of :data:`ROUNDING` in some draws; what then has another piece is searched again.
    """
    rng, parts = np.random.default_rng(0), []
    for one in run.networks:
        signals, own = one.signals.transpose(*ORDER), found.sel(seed=one.network.seed, drop=True)
        maps, start = outputs(one.network.trunk, signals), own["piece_start"].transpose(*ORDER[:-1])
        lowest = highest = own["s_u"]
        for _ in range(N_SEARCHED):
            moved = (maps * (1 + ROUNDING * rng.standard_normal(maps.shape))).astype(np.float32)
            rows = (of.reshape(-1, of.shape[-1]) for of in (signals.values, moved))
            begin, _ = similarity.best_piece(*rows, run.cfg.similarity.piece)
            drawn = scored(run, one, moved, among=start != begin.reshape(start.shape))["s_u"]
            lowest, highest = np.fmin(lowest, drawn), np.fmax(highest, drawn)
        parts.append([own.assign(s_u=end) for end in (lowest, highest)])
    return [of_all(run, ends) for ends in zip(*parts, strict=True)]


def scored_controls(run: PublishedRun) -> xr.Dataset:
    """Scores of all controls but the networks without training, which are not published."""
    levels = {one.network.seed: one.statistics[["th_eap", "p95", "dead"]] for one in run.networks}

    def one(net: supervised.Network) -> xr.Dataset:
        shape = [len(net.trunk.layers), len(net.trunk.biases[0]), run.windows.train.length]
        empty = xr.DataArray(np.zeros(shape, np.float32), dims=("layer", "unit", "time"))
        empty = xr.Dataset({"signal": empty, "map": empty}, {"layer": list(net.trunk.layers)})
        made = similarity.controls_at(net.trunk, run.windows, empty, run.start, net.seed)
        about = (made.drop_sel(control="random-weights"), levels[net.seed], run.start, run.cfg.similarity)
        return similarity.scores_of.function(net, run.windows, *about)

    return of_all(run, [one(of.network) for of in run.networks])


def methods(found: xr.Dataset) -> dict[str, object]:
    """The numbers of ``methods`` in ``results.json`` by their places there."""
    by_preset = {str(name): report.summaries(found.sel(preset=name), "technique") for name in found["preset"].values}
    return dict(yardstick.leaves(by_preset))


def scores(run: PublishedRun, found: xr.Dataset, controls: xr.Dataset | None) -> Check:
    """``results.json`` and tables of signals against scores computed again."""
    check, blind = Check("scores of signals"), isinstance(run.windows, str)
    known, again, unsure = dict(yardstick.leaves(run.results["methods"])), methods(found), []
    if blind:
        check.notes.append(f"Ssim: {run.windows}")
    for place, value in known.items():
        distance = "/ssim" in place
        if distance and not blind and apart(value, again.get(place, "nothing")) > RELATIVE:
            unsure.append(place)
        elif not (distance and blind):
            check.compare(f"results.json: methods/{place}", value, again.get(place, "nothing"))
    if unsure:
        low, high = map(methods, distances_by_rounding(run, found))
        for place in unsure:
            nearest = (
                np.clip(known[place], low[place], high[place]) if isinstance(known[place], float) else again[place]
            )
            check.compare(f"results.json: methods/{place}", known[place], nearest)
        check.notes.append(f"Ssim: in {len(unsure)} numbers {DECIDED} which pieces are compared")
    if controls is not None:
        again = report.summaries(controls, "control")
        known = {name: of for name, of in run.results["controls"].items() if name in again}
        check.compare_all("results.json: controls", known, again)
    flat = (found["range_g"].sel(preset="calibrated") < signal_measures.FLAT_G).mean(("seed", "unit"))
    if (table := run.table("03_flat")) is not None:
        check.compare_all("tables/03_flat.csv", table.T.to_dict(), flat.to_pandas().T.to_dict())
    if (table := run.table("14_cards")) is not None:
        own = found["activation_ratio"].sel(preset="calibrated", technique=PROPOSED).isel(seed=0).clip(max=1)
        again = {f"{layer}-{unit}": value for (layer, unit), value in own.to_series().items()}
        check.compare_all("tables/14_cards.csv: activation", table["activation"].to_dict(), again)
    return check


def judged(run: PublishedRun, found: xr.Dataset, controls: xr.Dataset | None, sure: bool) -> Check:
    """Verdicts and their numbers against those that scores computed again give; the table of people is as published.

    Where distances are not ``sure``, because of rounding, of claims about them only what is concluded is compared.
    """
    check, results, blind = Check("verdicts"), run.results, isinstance(run.windows, str)
    can = OF_SIGNALS + (() if blind else OF_WINDOWS) + (() if controls is None else OF_CONTROLS)
    evidence = Evidence(
        dataset=results["dataset"],
        epochs=results["training"]["epochs"],
        macro_f1=np.array(results["training"]["macro_f1"]["per_seed"]),
        amplitude_threshold_g=results["data"]["amplitude_threshold_g"],
        scores=found.sel(preset="calibrated", drop=True),
        controls=controls,
        atlas=results["atlas"],
        people=run.table("06b_people"),
    )
    drawn = evidence.resampled()
    of_claim = {claim.id: claim for claim in claims.CLAIMS}
    for entry in results["claims"]:
        if entry["id"] in can:
            robust = {} if entry["robust"] is None else {entry["direction"]: entry["robust"]}
            about = (of_claim[entry["id"]], claims.criteria_of(entry["id"]), evidence, drawn, robust)
            again = verdicts.judge(*about)
            names = ("value", "interval", "criteria") if sure or entry["id"] not in OF_DISTANCES else ()
            both = [{name: of[name] for name in ("direction", "size", *names)} for of in (entry, again)]
            check.compare_all(f"results.json: claims/{entry['id']}", *both)
    others = [entry["id"] for entry in results["claims"] if entry["id"] not in can]
    check.notes.append(f"not judged again: {', '.join(others)}")
    return check


# ------------------------------------------------------------------------------------------------ climbed again


def reached(run: PublishedRun, one: Published, layer: str, units: Sequence[int], signals: np.ndarray) -> pd.DataFrame:
    """What signals (unit, time) of the proposed method come to: "objective", "th", and the ``VERDICTS``."""
    settings, trunk = run.cfg.maximization, one.network.trunk
    th = one.statistics["th_eap"].sel(layer=layer).values
    weights = paper_methods.penalty_weights(settings.weight, settings.reduction, signals.shape[1])
    rows = paper_methods.climbing_rows([METHODS[PROPOSED]], units, th, weights).to("cpu", torch.float32)
    x = torch.as_tensor(signals)
    maps = paper_methods.unit_maps(trunk, layer, torch.as_tensor(units), x)
    objective = terms(x[:, None], maps, rows, settings.th_aap_g)["objective"].numpy()
    above = maps.numpy().max(1) > (1 + OBJECTIVE) * th[units]  # clipping leaves many at th, on either side
    values = {"objective": objective, "th": th[units], "flat": signal_measures.flat(signals), "above th": above}
    return pd.DataFrame(values, units)


def climbed(run: PublishedRun, one: Published, layer: str, units: Sequence[int], start=None) -> np.ndarray:
    """The proposed method's signals of units, by the settings of the run: ([start,] unit, time)."""
    about = {"methods": (PROPOSED,), "units": units, "settings": run.cfg.maximization, "start": start}
    about |= {"length": run.cfg.windows.length, "rate_hz": run.cfg.windows.rate_hz}
    th = one.statistics["th_eap"].sel(layer=layer).values
    made = paper_methods.maximize(one.network.trunk, layer, th, preset="calibrated", **about)
    return made["signal"].sel(technique=PROPOSED).values


def otherwise(run: PublishedRun, one: Published, layer: str, units: Sequence[int]) -> Iterator[pd.DataFrame]:
    """What units come to where rounding is another: from starts that are moved a little, then with weights that are."""
    rng = np.random.default_rng(0)
    # as shares: where the start is zero it stays so, else penalties would push it to a side
    starts = run.start * (1 + ROUNDED * rng.standard_normal((N_NUDGES, 1, 1, len(run.start))))
    for x in climbed(run, one, layer, units, starts.astype(np.float32)):
        yield reached(run, one, layer, units, x)
    trunk = one.network.trunk
    for draw in range(N_NUDGES):
        chance = torch.Generator().manual_seed(draw)
        parts = [[w * (1 + ROUNDED * torch.randn(w.shape, generator=chance)) for w in of] for of in astuple(trunk)]
        other = replace(one, network=replace(one.network, folded=Trunk(*map(tuple, parts))))
        yield reached(run, one, layer, units, climbed(run, other, layer, units))


def ascents(run: PublishedRun, full: bool) -> Check:
    """Units climbed again from published weights: their objective and verdicts against those of the published signals.

    Where one differs, it is climbed :func:`otherwise`: if what is published lies among what it comes to then, rounding
    decides where that unit ends. It is counted and told then, and does not differ.
    """
    check, decided = Check("units climbed again"), []
    for one, layer in product(run.networks, run.networks[0].network.trunk.layers):
        known = one.signals.sel(layer=layer, preset="calibrated", technique=PROPOSED)
        units = chosen_units(known.sizes["unit"], known.sizes["unit"] if full else N_UNITS)
        before = reached(run, one, layer, units, known.sel(unit=units).values)
        now = reached(run, one, layer, units, climbed(run, one, layer, units))
        slack = OBJECTIVE * np.maximum(before["objective"].abs(), REST * before["th"].fillna(0))
        wrong = (now["objective"] - before["objective"]).abs() > slack
        wrong |= (now[VERDICTS] != before[VERDICTS]).any(axis=1)
        check.n += len(units)
        doubted = before.index[wrong].tolist()
        draws, waiting = [now.loc[doubted]], list(doubted)
        for draw in otherwise(run, one, layer, doubted) if doubted else ():
            draws.append(draw)
            waiting = [u for u in waiting if not _among(before.loc[u], [d.loc[u] for d in draws], slack[u])]
            if not waiting:
                break
        for unit in doubted:
            place = f"network {one.network.seed}, {layer} unit {unit}"
            if unit not in waiting:
                decided.append(place)
                continue
            said = (f"{of['objective']:.6g}, {of[VERDICTS].to_dict()}" for of in (before.loc[unit], now.loc[unit]))
            check.differing.append("{}: {} is published, {} found".format(place, *said))
    if decided:
        check.notes.append(f"in {len(decided)} units {DECIDED} where they end: {listed(decided)}")
    return check


def _among(own: pd.Series, draws: Sequence[pd.Series], slack: float) -> bool:
    """Whether a published unit's objective lies among those of some draws, and its verdicts are some draws' too."""
    drawn = pd.DataFrame(draws)
    inside = drawn["objective"].min() - slack <= own["objective"] <= drawn["objective"].max() + slack
    return bool(inside and all((drawn[name] == own[name]).any() for name in VERDICTS))


# ------------------------------------------------------------------------------------------------ the command line


def checks(run: PublishedRun, full: bool = False) -> Iterator[Check]:
    """All checks of a run, in turn."""
    yield (of_files := files(run))
    if run.results:
        yield tables(run)
        yield data(run)
    if not (run.folder / "networks" / "networks.json").exists():
        yield Check(AGAIN, notes=["not checked: no networks are published"])
        return
    if damaged := [said for said in of_files.differing if said.startswith("networks/")]:
        yield Check(AGAIN, notes=[f"not checked: {listed(damaged)}"])
        return
    if not run.results:
        yield data(run)
    yield training(run)
    yield statistics(run, full)
    if run.results:
        found = of_all(run, [scored(run, one) for one in run.networks])
        controls = scored_controls(run) if full and not isinstance(run.windows, str) else None
        yield (check := scores(run, found, controls))
        yield judged(run, found, controls, sure=not any(DECIDED in note for note in check.notes))
    yield ascents(run, full)


def runs(profile: str | None = None, dataset: str | None = None) -> list[PublishedRun]:
    """Published runs, all or those asked for; raises :class:`VerifyError` where there is none."""
    root = report_root() / "published"
    folders = [folder for name in PROFILES for folder in sorted((root / name).glob("*")) if folder.is_dir()]
    chosen = [f for f in folders if profile in (None, f.parent.name) and dataset in (None, f.name)]
    if not chosen:
        listed = ", ".join(f"{f.parent.name}/{f.name}" for f in folders) or "none"
        raise VerifyError(f"no run {profile or '*'}/{dataset or '*'} is published; published are: {listed}")
    return [PublishedRun(folder) for folder in chosen]


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Print the table; 1 where anything differs."""
    parser = argparse.ArgumentParser(prog="python -m workflow.verify", description=__doc__.split("\n")[0])
    parser.add_argument("--profile", help="by default all")
    parser.add_argument("--dataset", help="by default all")
    parser.add_argument("--full", action="store_true", help="all units, networks and controls, not some")
    parser.add_argument("--write-digests", action="store_true", help="after published files were changed on purpose")
    words = parser.parse_args(arguments)
    asked = runs(words.profile, words.dataset)
    if words.write_digests:
        for run in asked:
            write_json(run.folder / publish.DIGESTS, {"files": publish.digests(run.folder)})
        return
    torch.set_num_threads(threads())
    wrong, said = 0, []
    print(f"{'run':<26} {'check':<34} {'compared':>9} {'differing':>9} {'largest':>9}")
    for run in asked:
        for check in checks(run, words.full):
            row = f"{len(check.differing):>9} {check.largest:>9.1e}"
            print(f"{run.name:<26} {check.what:<34} {check.n:>9} {row}", flush=True)
            wrong += len(check.differing)
            lines = check.differing[:MOST_SHOWN]
            if more := len(check.differing) - len(lines):
                lines.append(f"and {more} more")
            said += [f"{run.name}, {check.what}: {line}" for line in (*lines, *check.notes)]
    print("\n" + "\n".join(said))
    if wrong:
        raise VerifyError(f"{wrong} values or files differ")


if __name__ == "__main__":
    sys.exit(main())
