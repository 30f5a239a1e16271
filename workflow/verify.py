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
from dataclasses import dataclass, field, replace
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
from harvis_utils.fast.gradients import terms
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.paper_methods import METHODS, PROPOSED
from harvis_utils.maximization.starting import chosen_units, starting_signal
from harvis_utils.metrics import signal_measures, similarity
from harvis_utils.metrics.intervals import listed
from harvis_utils.paper import claims, report, verdicts
from harvis_utils.paper.evidence import Evidence
from harvis_utils.parallel import command_line, threads
from harvis_utils.settings import PROFILES, HarvisError, Settings, from_json, load_settings, report_root
from harvis_utils.store.files import file_digest, read_json, write_json
from harvis_utils.training import published, supervised
from harvis_utils.training.published import Published
from harvis_utils.training.supervised import of_networks
from workflow import publish, yardstick

#: signals and weights are published in the float32 they were computed in, so that only the order of sums differs
RELATIVE = 1e-5
#: a signal climbed anew may reach so much more or less, as a share of the published one's objective, or of so much of
#: its unit's threshold where that is more: a unit that stays silent has an objective of about 0. Choice
OBJECTIVE, REST = 0.01, 0.01
#: what is said of a signal: whether it is flat, and whether it brings its unit more than 1 % above the threshold
VERDICTS = ["flat", "above th"]
#: units of each layer that are climbed again. Choice
N_UNITS = 8
#: a start moved by so much, G, in so many draws, tells a signal that rounding decides from a wrong one. Choice
NUDGE_G, N_NUDGES = 1e-7, 8
#: claims judged by weights, signals and statistics alone; with windows, and with those of the test people searched too
OF_SIGNALS, OF_WINDOWS, OF_CONTROLS = ("C4", "C6", "C7", "C8"), ("C1", "C2", "C5"), ("C3", "C9")
SETTINGS = ("windows", "maximization", "similarity")
MOST_SHOWN = 12


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

    def compare(self, place: str, published, found, relative: float = RELATIVE) -> None:
        """Count two values, the numbers among them equal where they differ by no more than ``relative``."""
        self.n += 1
        size = 0.0 if published == found else np.inf
        a, b = map(_number, (published, found))
        if size and a is not None and b is not None:
            size = 0.0 if np.isnan(a) and np.isnan(b) else abs(a - b) / max(abs(a), abs(b))
        self.largest = max(self.largest, size)
        if not size <= relative:  # NaN differs from every number
            self.differing.append(f"{place}: {published!r} is published, {found!r} found")

    def compare_all(self, place: str, published, found, relative: float = RELATIVE) -> None:
        """The same of all values inside two nested ones."""
        before, now = (dict(yardstick.leaves(value)) for value in (published, found))
        for path in before | now:
            self.compare(f"{place}/{path}", *(of.get(path, "nothing") for of in (before, now)), relative)


def _number(value) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else None


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
    def windows(self) -> Windows | str:
        """Its windows; where these are not at hand, why."""
        try:
            found = windowing.cut(archive.load_recordings(self.cfg.dataset, download=False), self.cfg.windows)
        except DataError as error:
            return str(error)
        about = read_json(self.folder / "networks" / "networks.json")["provenance"]
        if about[0]["arguments"]["windows"] != found.digest:
            return f"the data of {self.cfg.dataset} that are at hand give other windows than those of this run"
        return found

    def table(self, name: str) -> pd.DataFrame | None:
        """One of its tables, with its first column as index; None where it is not published."""
        path = self.folder / "tables" / f"{name}.csv"
        return pd.read_csv(path, index_col=0, float_precision="round_trip") if path.exists() else None


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
            again = Path(folder) / f"{name}.csv"
            table.to_csv(again)
            verdict = yardstick.Verdict(f"tables/{name}.csv", yardstick.Rules())
            yardstick.compare_table(verdict, run.folder / "tables" / again.name, again)
            check.n += sum(map(len, verdict.values.values()))
            check.differing += [f"{verdict.file}: {said}" for _, said in verdict.differences]
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
        same = supervised.predict(networks[0].model, windows.test) == networks[0].predicted["test"]
        check.compare("test windows that the whole first network takes for another activity", 0, int((~same).sum()))
    if run.results:
        found = {"n_windows": windows.counts(), "amplitude_threshold_g": windowing.amplitude_threshold(windows.train)}
        check.compare_all("results.json: data", run.results["data"], found)
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


def scored(run: PublishedRun) -> xr.Dataset:
    """Scores of all published signals (:func:`similarity.scores`), without the distances where windows are missing."""
    blind = isinstance(run.windows, str)
    nothing = SimpleNamespace(train=None, activities=(), rate_hz=run.cfg.windows.rate_hz)
    parts = []
    for one in run.networks:
        signals, trunk = one.signals.transpose("preset", "technique", "layer", "unit", "time"), one.network.trunk
        maps = [[similarity.own_maps(trunk, x).values for x in of.values] for of in signals]
        both = xr.Dataset({"signal": signals, "map": signals.copy(data=np.array(maps))})
        levels = one.statistics[["th_eap", "p95", "dead"]]
        # where there is nothing to search, all units are passed over as dead ones are
        judged_by = levels.assign(dead=xr.ones_like(levels["dead"])) if blind else levels
        about = (nothing if blind else run.windows, both, judged_by, run.start, run.cfg.similarity)
        found = similarity.scores_of.function(one.network, *about)
        parts.append(found.assign(dead=levels["dead"].broadcast_like(found["dead"])))
    found = xr.concat(parts, pd.Index([one.network.seed for one in run.networks], name="seed"))
    return found if blind else similarity.with_activities(found, run.windows)


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

    found = of_networks([of.network for of in run.networks], one)
    return similarity.with_activities(found, run.windows)


def scores(run: PublishedRun, found: xr.Dataset, controls: xr.Dataset | None) -> Check:
    """``results.json`` and tables of signals against scores computed again."""
    check, blind = Check("scores of signals"), isinstance(run.windows, str)
    again = {str(preset): report.summaries(found.sel(preset=preset), "technique") for preset in found["preset"].values}
    for preset, techniques in run.results["methods"].items():
        for technique, layers in techniques.items():
            for layer, of in layers.items():
                kept = {name: value for name, value in of.items() if not (blind and name.startswith("ssim"))}
                other = {name: again[preset][technique][layer][name] for name in kept}
                check.compare_all(f"results.json: methods/{preset}/{technique}/{layer}", kept, other)
    if blind:
        check.notes.append(f"Ssim: {run.windows}")
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


def judged(run: PublishedRun, found: xr.Dataset, controls: xr.Dataset | None) -> Check:
    """Verdicts and their numbers against those that scores computed again give; the table of people is as published."""
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
    drawn, names = evidence.resampled(), ("direction", "size", "value", "interval", "criteria")
    of_claim = {claim.id: claim for claim in claims.CLAIMS}
    for entry in results["claims"]:
        if entry["id"] in can:
            robust = {} if entry["robust"] is None else {entry["direction"]: entry["robust"]}
            about = (of_claim[entry["id"]], claims.criteria_of(entry["id"]), evidence, drawn, robust)
            again = verdicts.judge(*about)
            place = f"results.json: claims/{entry['id']}"
            check.compare_all(place, *({name: of[name] for name in names} for of in (entry, again)))
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


def ascents(run: PublishedRun, full: bool) -> Check:
    """Units climbed again from published weights: their objective and verdicts against those of the published signals.

    Where one differs, it is climbed from starts that were moved by :data:`NUDGE_G`: if what is published lies among
    what these come to, rounding decides where that unit ends. It is counted and told then, and does not differ.
    """
    check, decided, rng = Check("units climbed again"), [], np.random.default_rng(0)
    nudges = NUDGE_G * rng.standard_normal((N_NUDGES, 1, 1, len(run.start))).astype(np.float32)
    for one, layer in product(run.networks, run.networks[0].network.trunk.layers):
        known = one.signals.sel(layer=layer, preset="calibrated", technique=PROPOSED)
        units = chosen_units(known.sizes["unit"], known.sizes["unit"] if full else N_UNITS)
        before = reached(run, one, layer, units, known.sel(unit=units).values)
        now = reached(run, one, layer, units, climbed(run, one, layer, units))
        slack = OBJECTIVE * np.maximum(before["objective"].abs(), REST * before["th"].fillna(0))
        wrong = (now["objective"] - before["objective"]).abs() > slack
        wrong |= (now[VERDICTS] != before[VERDICTS]).any(axis=1)
        check.n += len(units)
        if not wrong.any():
            continue
        doubted = before.index[wrong].tolist()
        signals = climbed(run, one, layer, doubted, run.start + nudges)
        draws = [now.loc[doubted], *(reached(run, one, layer, doubted, x) for x in signals)]
        for unit in doubted:
            drawn, own = pd.DataFrame([draw.loc[unit] for draw in draws]), before.loc[unit]
            among = drawn["objective"].min() - slack[unit] <= own["objective"] <= drawn["objective"].max() + slack[unit]
            place = f"network {one.network.seed}, {layer} unit {unit}"
            if among and all((drawn[name] == own[name]).any() for name in VERDICTS):
                decided.append(place)
            else:
                said = (f"{of['objective']:.6g}, {of[VERDICTS].to_dict()}" for of in (own, now.loc[unit]))
                check.differing.append("{}: {} is published, {} found".format(place, *said))
    if decided:
        check.notes.append(f"in {len(decided)} units rounding decides where they end: {listed(decided)}")
    return check


# ------------------------------------------------------------------------------------------------ the command line


def checks(run: PublishedRun, full: bool = False) -> Iterator[Check]:
    """All checks of a run, in turn."""
    yield files(run)
    if run.results:
        yield tables(run)
    if not (run.folder / "networks" / "networks.json").exists():
        yield Check("scores, verdicts, ascents", notes=["not checked: no networks are published"])
        return
    yield training(run)
    yield statistics(run, full)
    if run.results:
        found = scored(run)
        controls = scored_controls(run) if full and not isinstance(run.windows, str) else None
        yield scores(run, found, controls)
        yield judged(run, found, controls)
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
