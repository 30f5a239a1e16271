"""What the generators of the ``paper`` profile would take: a few steps are measured, the hours projected.

python -m benchmarks.generators            # some minutes; writes reports/published/benchmarks/generators.csv

On CUDA that is ``generators-gpu.csv``, with hours of the card, one training at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import pandas as pd

from benchmarks import measure
from harvis_utils.data import archive, windowing
from harvis_utils.paper import gate_search, generating, style_transfer
from harvis_utils.parallel import threads_inside, torch_device
from harvis_utils.settings import REPOSITORY, Settings, load_settings
from harvis_utils.store.files import write_text
from harvis_utils.training.adversarial import Game
from harvis_utils.training.translating import Translation

PLACE = REPOSITORY / "reports" / "published" / "benchmarks" / "generators.csv"
ON_GPU = PLACE.with_name("generators-gpu.csv")
#: steps that are measured after a first one, which prepares kernels
N_STEPS, N_ON_GPU = 3, 50
#: targets of style transfer: the test people of a data set
N_TARGETS = 2


def seconds_a_step(step: Callable[[int], object], first: int = 0, n: int = N_STEPS) -> float:
    """Median seconds of ``n`` steps of a training after its ``first`` one, on one thread."""
    times = []
    with threads_inside(1):
        for number in range(first, first + n + 1):
            times.append(measure.seconds(lambda number=number: step(number)))
    return median(times[1:])


def trainings(cfg: Settings) -> Iterator[tuple[str, str, float, int]]:
    """All trainings of notebooks 17, 17b and 18b: notebook, kind, how many, and steps of each; no trial is stopped."""
    own, search, styles = cfg.generation, cfg.search, cfg.styles
    yield from (("17", name, len(own.seeds), own.gan.n_steps) for name in generating.ROWS)
    taught, seeds = generating.TAUGHT, len(search.seeds)
    for name, many in ((taught, len(gate_search.LARGEST) + 1), *((name, 1) for name in gate_search.PLAIN)):
        yield "17b", name, many * search.n_trials, search.n_steps
    n_graphs = len(gate_search.LARGEST) + len(gate_search.CHOSEN) + 2  # and the source's, and all gates open
    for name, many in ((taught, n_graphs * seeds + search.n_shuffled), *((name, seeds) for name in gate_search.PLAIN)):
        yield "17b", name, many, search.n_retrained
    for name in style_transfer.settings_of(styles):
        whole = name not in style_transfer.ABLATIONS
        yield "18b", name, len(styles.seeds) * N_TARGETS if whole else 1, styles.n_steps


def projected(cfg: Settings) -> pd.DataFrame:
    """A row for each of :func:`trainings` with the measured "ms a step", and "core hours", or "hours" of a card."""
    recordings, device = archive.load_recordings("synthetic"), torch_device(cfg.device)  # a step asks for shapes alone
    windows = windowing.cut(recordings, cfg.generation.windows)
    games = generating.settings_of(cfg.generation.gan, windows.train, 1.0)
    about, variants = ((windows.train, windows.test), len(windows.activities)), style_transfer.settings_of(cfg.styles)
    n = N_STEPS if device.type == "cpu" else N_ON_GPU
    measured = {name: seconds_a_step(Game(windows.train, own, 0, device).step, n=n) for name, own in games.items()}
    for name, own in variants.items():  # at its half a training has all of its losses
        measured[name] = seconds_a_step(Translation(*about, own, 0, device).step, own.n_steps // 2, n)
    columns, spent = ["notebook", "kind", "trainings", "steps"], "core hours" if device.type == "cpu" else "hours"
    table = pd.DataFrame(trainings(cfg), columns=columns)
    seconds = table["kind"].map(measured)
    hours = seconds * table["trainings"] * table["steps"] / 3600
    return table.assign(**{"ms a step": seconds * 1e3, spent: hours})


def told(table: pd.DataFrame) -> str:
    """The projection in a sentence."""
    hours = table.groupby("notebook", sort=False)["core hours"].sum()
    said = ", ".join(f"{hour:.0f} for notebook {name}" for name, hour in hours.items())
    return (
        "Projected as well: to train the generators of `paper` on one data set, from a few steps measured at its size "
        f"on one core each, would take core-hours: {said}."
    )


if __name__ == "__main__":
    table = projected(load_settings("paper")).round(4)
    print(table.to_string())
    write_text(PLACE if "core hours" in table else ON_GPU, table.to_csv(index=False))
