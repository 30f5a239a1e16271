"""Run all benchmarks and write them as JSON: ``make bench``, or

    python -m benchmarks --profile desk --dataset dsads

The networks of that run are needed; missing ones are made first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from benchmarks import climbing, measure, tables, training
from harvis_utils.chain import execution
from harvis_utils.data import archive, windowing
from harvis_utils.maximization import unit_statistics
from harvis_utils.parallel import threads, torch_device
from harvis_utils.settings import REPOSITORY, MaximizationSettings, Settings, load_settings, report_root
from harvis_utils.store.files import read_json, write_json
from harvis_utils.training import supervised


def collect(cfg: Settings, device: str, rounds: int, only: list[str], save: Callable[[dict], object]) -> dict:
    """All measurements of one machine; ``save`` is called after each part, so that none is lost to a later one."""
    data = windowing.cut(archive.load_recordings(cfg.dataset), cfg.windows)
    networks = supervised.networks(cfg, data)
    statistics = unit_statistics.statistics(cfg, data, networks)
    first, th = networks[0], statistics["th_eap"]
    mine = th.sel(seed=first.seed)
    n_axes = len(data.axes)
    result = {
        "dataset": cfg.dataset,
        "profile": cfg.profile,
        "caveat": data.caveat,
        "date": date.today().isoformat(),
        "rounds": rounds,
        "machine": {"kind": device} | measure.machine(device),
    }

    def note(name: str, run) -> None:
        if only and name not in only:
            return
        begun = time.perf_counter()
        print(f"{name} ...", flush=True)
        result[name] = run()
        save(result)
        print(f"{name} {time.perf_counter() - begun:.0f} s", flush=True)

    note("agreement", lambda: climbing.agreement(first, mine, n_axes))
    note("agreement_by_method", lambda: climbing.agreement_by_method(first, mine))
    note("maximization", lambda: climbing.compare(first, mine, n_axes, rounds, device))
    if "maximization" in result:
        result["floors"] = climbing.floors(
            result["maximization"], cfg.model.n_units, cfg.model.kernel, result["machine"]
        )
    note("training", lambda: training.compare(cfg, data, rounds, result["machine"]))
    if device == "cpu":
        note("ideas", lambda: climbing.ideas(first, mine, rounds))
        note("scaling", lambda: climbing.scaling(first, mine))
    note("full_runs", lambda: climbing.full_runs(first, mine))
    note("grid", lambda: climbing.grid(networks, th, MaximizationSettings()))
    return result


#: parts that are stated as shares of the machine's rates, which therefore stay those that were measured with them
RATED = {"maximization", "training"}


def merged(before: dict, found: dict, only: list[str]) -> dict:
    """Earlier measurements with the new ones in their place; ``only`` names the parts that were to be measured."""
    parts = before | found | {"rounds": min(before.get("rounds", found["rounds"]), found["rounds"])}
    if before and only and not RATED & set(only):
        parts["machine"] = before["machine"]
    return parts


def target(result: dict, device: str) -> Path:
    """Published when the data are real; beside the other reports when they are made up."""
    real = not result["caveat"]
    root = REPOSITORY / "reports" / "published" if real else report_root()
    return root / "benchmarks" / ("cpu.json" if device == "cpu" else "gpu.json")


def main() -> int:
    """Measure, write, and show the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--device", default=None, help="cpu or cuda; by default CUDA where there is one")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender; the median counts")
    parser.add_argument("--only", nargs="*", default=[], help="parts to measure; the others keep their last values")
    given = parser.parse_args()
    device = torch_device(given.device).type
    torch.set_num_threads(threads())
    cfg = load_settings(given.profile, given.dataset, device)
    parts, path = {}, None

    def save(found: dict) -> None:
        nonlocal parts, path
        path = target(found, device)
        before = read_json(path) if path.exists() and (given.only or parts) else {}
        parts = merged(before, found, given.only)
        write_json(path, parts)

    save(collect(cfg, device, given.rounds, given.only, save))
    result = parts
    print(f"\n{tables.page(result)}\n\nwritten to {path}")
    return 0


def as_notebooks_run() -> None:
    """Start again in the environment that the chain gives to notebooks, where this process has another one."""
    if missing := {name: value for name, value in execution.BEFORE_STARTING.items() if name not in os.environ}:
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], os.environ | missing)


if __name__ == "__main__":
    as_notebooks_run()
    raise SystemExit(main())
