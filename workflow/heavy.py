"""All heavy results of a run without its notebooks, piece by piece, within a given time.

What notebooks 02 to 04, 07 and 09 compute and keep that takes long: networks, statistics, signals, scores, and the
signals of all readings and recipes. A piece is an epoch of training or one stored result of the other stages; what is
there is not made again, so a run can be cut anywhere and goes on later.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from safetensors import SafetensorError, safe_open

from harvis_utils.data.windowing import Windows
from harvis_utils.fast import ascent
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import chosen_units
from harvis_utils.metrics import similarity
from harvis_utils.paper import readings, recipes
from harvis_utils.parallel import torch_device
from harvis_utils.settings import PRESETS, Settings, artifact_root, for_choosing
from harvis_utils.store import stages
from harvis_utils.training import supervised

_MODULES = (supervised, unit_statistics, paper_methods, similarity, readings, recipes)
STAGES = {module.STAGE.name: module.STAGE for module in _MODULES}
(PROPOSED,) = paper_methods.CONTROL_METHODS
#: exit code for "the time is up, call again": EX_TEMPFAIL of sysexits.h
MORE = 75
#: how often training says how far it is
EVERY_S = 15


class OutOfTime(Exception):
    """The next piece would not end in time."""


# --------------------------------------------------------------------------------------- which results there will be


def plan(cfg: Settings, digest: str) -> dict[str, str]:
    """Address ("stage/key") of every heavy result, in the order of making, and what it is, in words.

    ``digest`` is that of the windows. Nothing is computed: addresses follow from settings, code and inputs.
    """
    data, seeds = SimpleNamespace(digest=digest), cfg.training.seeds
    trained = {s: SimpleNamespace(key=supervised._key(cfg, data, s)) for s in seeds}
    others = for_choosing(cfg)
    choosing = {s: SimpleNamespace(key=supervised._key(others, data, s), seed=s) for s in cfg.readings.seeds}
    keys = {s: supervised.STAGE.key([cfg.windows, cfg.model, "untrained", s], digest) for s in seeds}
    random = {s: SimpleNamespace(key=key) for s, key in keys.items()}
    found = {f"networks/{net.key}": f"network {s}" for s, net in (trained | choosing).items()}
    for kind, nets in (("network", trained | choosing), ("untrained network", random)):
        found |= {f"statistics/{unit_statistics.key(data, n)}": f"statistics, {kind} {s}" for s, n in nets.items()}
    for kind, nets, methods, presets in (
        ("network", trained, tuple(paper_methods.METHODS), tuple(PRESETS)),
        ("untrained network", random, (PROPOSED,), ("calibrated",)),
    ):
        places = [(s, f"conv{i + 1}", p) for s in seeds for i in range(cfg.model.n_layers) for p in presets]
        for s, layer, preset in places:
            key = paper_methods.key(cfg, data, nets[s], layer, preset, methods)
            found[f"signals/{key}"] = f"signals {layer} {preset}, {kind} {s}"
    for kind in ("methods", "controls"):
        found |= {
            f"scores/{similarity.key(cfg, data, n, kind)}": f"scores {kind}, network {s}" for s, n in trained.items()
        }
    for s, net in choosing.items():
        for step, alike in readings.by_step(readings.grid()).items():
            what = f"readings {step.optimizer} {step.step_size:g} decay {step.decay:g}, network {s}"
            found[f"readings/{readings.key(cfg, data, net, alike)}"] = what
    units = chosen_units(cfg.model.n_units, cfg.readings.n_units)
    for s, net in (choosing | trained).items() if choosing else ():
        for recipe in recipes.RECIPES:
            found[f"recipes/{recipes.key(cfg, data, net, recipe, units)}"] = f"recipe {recipe.name}, network {s}"
    return found


def there(address: str) -> bool:
    """Whether a result is stored."""
    return (artifact_root() / "store" / address / "manifest.json").exists()


def count(addresses: Iterable[str]) -> str:
    """How many of the results are stored, in words."""
    present = [there(address) for address in addresses]
    return f"{sum(present)} of {len(present)} results are there"


# --------------------------------------------------------------------------------------------------------- the clock


class Clock:
    """Lets a piece begin while the longest one of its kind would end before ``end`` (Unix seconds).

    A kind not seen yet is taken to last twice as long as the longest of all in ``took``. With ``must`` the first
    piece always begins, so that every call gets on, however short its time.
    """

    def __init__(self, end: float, must: bool, took: dict[str, float] | None = None):
        self.end, self.must, self.took, self.begun = end, must, dict(took or {}), 0.0

    def begin(self, kind: str) -> None:
        """Raise :class:`OutOfTime` where no piece of this kind may begin any more."""
        expected = self.took.get(kind, 2 * max(self.took.values(), default=0.0))
        if not self.must and time.time() + expected > self.end:
            raise OutOfTime
        self.must, self.begun = False, time.time()

    def done(self, kind: str) -> float:
        """Seconds of the piece that began last."""
        seconds = time.time() - self.begun
        self.took[kind] = max(seconds, self.took.get(kind, 0.0))
        return seconds


def _kind(what: str) -> str:
    return what.rpartition(" ")[0]  # without the network's number


def _known(pieces: dict[str, str]) -> Iterator[tuple[str, float]]:
    """Kinds of the results that are there and the seconds they took; a network is no piece, its epochs are."""
    for address, what in pieces.items():
        stage, _, key = address.partition("/")
        if stage != supervised.STAGE.name and there(address):
            yield _kind(what), STAGES[stage].manifest(key)["wall_s"]


# ----------------------------------------------------------------------------------------------------------- training


class _Epochs(supervised._Turns):
    """The turns of one network: the first one only evaluates, the others are epochs, for the clock to allow.

    ``at_once`` networks share the time, each in its own process and with its own turns.
    """

    def __init__(self, clock: Clock, name: str, done: int, total: int, at_once: int):
        super().__init__(at_once)
        self.clock, self.name, self.done, self.total = clock, name, done, total
        self.turn, self.said = 0, 0.0

    def __enter__(self) -> None:
        if (parent := multiprocessing.parent_process()) and not parent.is_alive():
            raise OutOfTime  # killed: nobody waits for this network any more
        if self.turn:
            self.clock.begin("epoch")
        super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        if self.turn and not any(error):
            seconds = self.clock.done("epoch")
            self.done += 1
            if self.done == self.total or time.time() > self.said + EVERY_S:
                self.said = time.time()
                print(f"  {self.name}: {self.done} of {self.total} epochs, {seconds:.2f} s each", flush=True)
        self.turn += 1


def _train(cfg: Settings, data: Windows, seed: int, clock: Clock, at_once: int) -> None:
    checkpoint = supervised.STAGE.checkpoint(supervised._key(cfg, data, seed)) / "checkpoint.safetensors"
    epochs = _Epochs(clock, f"network {seed}", _epochs_in(checkpoint), cfg.training.epochs, at_once)
    with ascent._exact_products(torch_device(cfg.device)):
        supervised.train(cfg, data, seed, epochs)


def _epochs_in(checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return len(json.loads(file.metadata()["history"])["loss"])
    except SafetensorError:
        return 0  # training says what is wrong with it


def _train_apart(*words) -> None:
    try:
        _train(*words)
    except OutOfTime:
        sys.exit(MORE)


def _train_all(cfg: Settings, data: Windows, seeds: list[int], clock: Clock, workers: int) -> None:
    """Train ``workers`` networks at once, each in a process of its own: a small network leaves a GPU mostly idle."""
    if workers == 1:
        for seed in seeds:
            _train(cfg, data, seed, clock, 1)
        return
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork

    def one(place: int) -> int:
        own = Clock(clock.end, must=place < workers)
        child = spawn.Process(target=_train_apart, args=(cfg, data, seeds[place], own, workers))
        child.start()
        child.join()
        return child.exitcode

    clock.must = False
    with ThreadPoolExecutor(workers) as pool:
        codes = dict(zip(seeds, pool.map(one, range(len(seeds))), strict=True))
    if failed := [str(seed) for seed, code in codes.items() if code not in (0, MORE)]:
        raise supervised.TrainingError(f"training of networks {', '.join(failed)} failed; the reason stands above")
    if MORE in codes.values():
        raise OutOfTime


# ---------------------------------------------------------------------------------------------------------- all of it


def run(cfg: Settings, data: Windows, end: float, workers: int) -> None:
    """Compute the results that are missing, in order, on CUDA without TF32.

    ``workers`` networks are trained at once. Raises :class:`OutOfTime` where not all can be made until ``end`` (Unix
    seconds).
    """
    pieces = plan(cfg, data.digest)
    clock = Clock(end, must=True, took=dict(_known(pieces)))
    others = for_choosing(cfg)
    seeds = [
        s for s in (*cfg.training.seeds, *cfg.readings.seeds) if not there(f"networks/{supervised._key(cfg, data, s)}")
    ]
    if seeds:
        _train_all(cfg, data, seeds, clock, min(workers, len(seeds)))

    @contextmanager
    def piece(stage: stages.Stage, key: str) -> Iterator[None]:
        what = pieces[f"{stage.name}/{key}"]
        clock.begin(_kind(what))
        yield
        print(f"  {what}: {clock.done(_kind(what)):.1f} s", flush=True)

    with ascent._exact_products(torch_device(cfg.device)), stages.around_builds(piece):
        nets, random = supervised.load_networks(cfg, data), supervised.untrained(cfg, data)
        statistics, random_statistics = (unit_statistics.statistics(cfg, data, some) for some in (nets, random))
        signals = paper_methods.signals(cfg, nets, statistics)
        random_signals = paper_methods.signals(cfg, random, random_statistics, (PROPOSED,), ("calibrated",))
        similarity.scores(cfg, data, nets, statistics, signals)
        one = random_signals.sel(preset="calibrated", technique=PROPOSED, drop=True)
        similarity.controls(cfg, data, nets, statistics, random, random_statistics, one)
        if others.training.seeds:
            choosing = supervised.load_networks(others, data)
            own = unit_statistics.statistics(others, data, choosing)
            for net in choosing:
                readings.signals(cfg, data, net, own.sel(seed=net.seed), readings.grid())
            units = chosen_units(cfg.model.n_units, cfg.readings.n_units)
            recipes.signals(others, data, choosing, own, recipes.RECIPES, units)
            recipes.signals(cfg, data, nets, statistics, recipes.RECIPES, units)
