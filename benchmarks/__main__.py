"""Run all benchmarks and write them as JSON: ``make bench``, or

    python -m benchmarks --profile desk --dataset dsads

The networks of that run are needed; missing ones are made first.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from benchmarks import agreement, climbing, measure, networks, search, tables, training
from harvis_utils.chain import execution
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import command_line, threads, torch_device
from harvis_utils.settings import REPOSITORY, Settings, load_settings, report_root
from harvis_utils.store.files import write_json

#: parts that compute on the device; the others are measured on a CPU alone
ON_GPU = ("maximization", "floors", "training", "grid")


def target(caveat: str, device: str) -> Path:
    """Published when the data are real; beside the other reports when they are made up."""
    root = report_root() if caveat else REPOSITORY / "reports" / "published"
    return root / "benchmarks" / ("cpu.json" if device == "cpu" else "gpu.json")


def collect(cfg: Settings, device: str, rounds: int) -> tuple[dict, Path]:
    """All measurements of one machine, and where they are; written after each part, so that none is lost."""
    stages = Stages(cfg)
    data, trained, th = stages.data, stages.networks, stages.statistics["th_eap"]
    first, n_axes = trained[0], len(data.axes)
    mine, machine = th.sel(seed=first.seed), measure.machine(device)
    result = {
        "dataset": cfg.dataset,
        "profile": cfg.profile,
        "caveat": data.caveat,
        "date": date.today().isoformat(),
        "rounds": rounds,
        "machine": machine,
    }
    parts = {
        "agreement": lambda: agreement.one_step(first, mine, n_axes),
        "agreement_by_method": lambda: agreement.by_method(first, mine),
        "maximization": lambda: climbing.compare(first, mine, n_axes, rounds, device),
        "floors": lambda: climbing.floors(result["maximization"], cfg.model.n_units, cfg.model.kernel, machine),
        "networks": lambda: networks.compare(rounds, machine),
        "search": lambda: search.compare(data.train, data.test, cfg.similarity, rounds),
        "training": lambda: training.compare(cfg, data, rounds, machine),
        "ideas": lambda: climbing.ideas(first, mine, rounds),
        "full_runs": lambda: agreement.full_runs(first, mine),
        "grid": lambda: climbing.grid(trained if device == "cpu" else trained[:1], th, device),
    }
    path = target(data.caveat, device)
    for name in parts if device == "cpu" else ON_GPU:
        print(f"{name} ...", flush=True)
        result[name] = parts[name]()
        write_json(path, result)
    return result, path


@command_line
def main(arguments: list[str] | None = None) -> None:
    """Measure, write, and show the tables; 0 when it worked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--device", default=None, help="cpu or cuda; by default CUDA where there is one")
    parser.add_argument("--weights", default="trained", help="published: of the published run, not trained here")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender; the median counts")
    given = parser.parse_args(arguments)
    device = torch_device(given.device).type
    torch.set_num_threads(threads())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder  # so that first calls compile
        result, path = collect(load_settings(given.profile, given.dataset, device, given.weights), device, given.rounds)
    print(f"\n{tables.page(result)}\n\nwritten to {path}")


def as_notebooks_run() -> None:
    """Start again in the environment that the chain gives to notebooks, where this process has another one."""
    if missing := {name: value for name, value in execution.BEFORE_STARTING.items() if name not in os.environ}:
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], os.environ | missing)


if __name__ == "__main__":
    as_notebooks_run()
    raise SystemExit(main())
