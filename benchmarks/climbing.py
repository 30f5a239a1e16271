"""Activation Maximization: ours beside one unit at a time, a batch over the whole network, and autograd.

All contenders climb the same units of the same trained network with the same method, step sizes and number of
steps, none stops early, and what they find is compared before they are timed.
"""

from __future__ import annotations

import copy
import importlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from types import ModuleType

import pandas as pd
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import grad, vmap

from benchmarks import measure
from harvis_utils.fast import gradients
from harvis_utils.fast.ascent import BETA1, BETA2, EPSILON
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.networks.sfhf import SFHF, Trunk
from harvis_utils.parallel import threads_inside
from harvis_utils.settings import PRESETS, MaximizationSettings
from harvis_utils.training.supervised import Network

LENGTH = 30  # samples of a signal, at 30 Hz
SETTINGS = MaximizationSettings(tolerance_g=0)  # nobody stops early
START = torch.tensor(starting_signal(SETTINGS, LENGTH))
LOWPASS = torch.tensor(
    paper_methods.lowpass_matrix(LENGTH, SETTINGS.lowpass_hz, SETTINGS.lowpass_order, rate_hz=30.0).copy()
)


@dataclass(frozen=True)
class Task:
    """What a contender climbs: ``units`` (signal,) of a layer, whose thresholds are ``th`` (all units,), and how.

    The type and the device of ``th`` are those to compute in. The paper's own method has every kind of term but AAP.
    """

    layer: str
    th: Tensor
    units: Tensor
    n_steps: int
    technique: str = paper_methods.PROPOSED
    preset: str = "calibrated"
    axes: int = 1

    @property
    def start(self) -> Tensor:
        """The paper's sine for every unit, (signal, time) in G, or (signal, axis, time) of several axes."""
        return START.to(self.th).repeat(len(self.units), *([self.axes] if self.axes > 1 else []), 1)

    def alone(self) -> list[Task]:
        """One task for each unit."""
        return [replace(self, units=unit) for unit in self.units.split(1)]


def live_units(layer: str, th: xr.DataArray, n_steps: int, n_units: int | None = None, **kind) -> Task:
    """The first units of ``layer`` that are not dead; ``th`` is (layer, unit), ``kind`` a type and a device."""
    level = torch.tensor(th.sel(layer=layer).values, **kind)
    return Task(layer, level, level.isfinite().nonzero()[:n_units, 0], n_steps)


def engine(network: Trunk | nn.Module, task: Task, **windows: int) -> Tensor:
    """Signals (signal, time), or (signal, axis, time) of units that mix the axes, by our engine.

    ``windows`` are ``n_axes`` and ``length`` of those that a module takes which is no trunk. Units that repeat as a
    whole are climbed from as many starts.
    """
    units = list(dict.fromkeys(task.units.tolist()))
    found = paper_methods.maximize(
        network,
        task.layer,
        task.th.cpu().numpy(),
        methods=[task.technique],
        units=units,
        start=task.start.cpu().numpy().reshape(-1, 1, len(units), *task.start.shape[1:]),
        preset=task.preset,
        settings=replace(SETTINGS, n_steps=task.n_steps),
        device=task.th.device,
        dtype=task.th.dtype,
        **windows,
    )
    return torch.tensor(found["signal"].values).view(task.start.shape)


# ------------------------------------------------------------------------------------- what others would write


def objective(x: Tensor, maps: Tensor, task: Task) -> Tensor:
    """f - w R, (signal,), for signals (signal, time) and their unit's maps (signal, time)."""
    method, th = paper_methods.METHODS[task.technique], task.th[task.units]
    penalties = {
        "l2": lambda: gradients.l2_norm(x),
        "tv": lambda: gradients.total_variation(x),
        "aap": lambda: gradients.aap(x, SETTINGS.th_aap_g),
        "eap": lambda: gradients.eap(maps, th),
    }
    counted = gradients.clipped(maps, th) if method.clip else maps
    penalty = sum(penalty() for name, penalty in penalties.items() if getattr(method, name))
    return counted.mean(1) - SETTINGS.weight * penalty


def optimizer(parameters: list[Tensor], preset: str) -> torch.optim.Optimizer:
    """Adam or plain ascent, its step size falling after every step."""
    step = PRESETS[preset]
    kind = torch.optim.Adam if step.optimizer == "adam" else torch.optim.SGD
    made = kind(parameters, step.step_size, maximize=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(made, step.decay)
    made.register_step_post_hook(lambda *_: schedule.step())
    return made


def projected(x: Tensor, task: Task) -> Tensor:
    """What the method makes of the signals after every step."""
    after = paper_methods.METHODS[task.technique].after
    if after == "lowpass":
        return x @ LOWPASS.to(x).T
    return x / x.norm(dim=1, keepdim=True) if after == "unit-norm" else x


def plain_steps(task: Task, maps_of: Callable[[Tensor], Tensor], along: Tensor | None = None) -> Iterator[Tensor]:
    """Autograd and torch's optimizers: yields the signals (signal, time) after every step.

    ``maps_of`` gives the maps (signal, time) of the signals' units. With ``along``, signals (step, signal, time),
    every step begins where these stand, not where the one before ended; the moments are still the loop's own.
    """
    x = projected(task.start, task).requires_grad_()
    moving = optimizer([x], task.preset)
    for number in range(task.n_steps):
        if along is not None:
            x.data = along[number].clone()
        moving.zero_grad()
        objective(x, maps_of(x), task).sum().backward()
        moving.step()
        x.data = projected(x.data, task)
        yield x.detach()


def climb(task: Task, maps_of: Callable[[Tensor], Tensor]) -> Tensor:
    """The signals (signal, time) with which :func:`plain_steps` ends."""
    *_, x = plain_steps(task, maps_of)
    return x


class OnAllAxes(nn.Module):
    """A network that is given the same signal on every axis: (signal, ..., time) -> (signal, class)."""

    def __init__(self, model: SFHF, n_axes: int):
        super().__init__()
        self.model, self.n_axes = model, n_axes

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flatten(1)[:, None].expand(-1, self.n_axes, -1))


def maps_of_units(out: Tensor, units: Tensor) -> Tensor:
    """What a layer's norm gives, (signal, unit, axis, time), as maps of one unit a signal; the axes are equal."""
    return torch.relu(out[torch.arange(len(out)), units]).mean(1)


def batch_of_whole_networks(whole: OnAllAxes, task: Task) -> Tensor:
    """All units in one batch through the whole network and a hook, as xplique works."""
    caught: dict[str, Tensor] = {}

    def maps_of(x: Tensor) -> Tensor:
        whole(x)
        return maps_of_units(caught["out"], task.units)

    layer = getattr(whole.model, f"norm_{task.layer}")
    with layer.register_forward_hook(lambda module, given, out: caught.update(out=out)):
        return climb(task, maps_of)


def one_at_a_time(whole: OnAllAxes, task: Task) -> Tensor:
    """A loop over units with the whole network and a hook, as lucent, Captum and tf-keras-vis work."""
    return torch.cat([batch_of_whole_networks(whole, one) for one in task.alone()])


@cache
def lucent_render() -> ModuleType:
    """``lucent.optvis.render``; ``ImportError`` where it does not install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hundreds, of functions for images that are not used here
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            # lucent imports torchvision, whose builds on PyPI are for CUDA: beside a CPU build of torch its operators
            # do not load, and it fails where it needs these two. They belong to object detection; lucent has no use
            # for them
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return importlib.import_module("lucent.optvis.render")


def lucent_itself(whole: OnAllAxes, task: Task) -> Tensor:
    """The library lucent on the same network; ``ImportError`` where it does not install."""

    def climbed(one: Task) -> Tensor:
        image = one.start[None, None].requires_grad_()  # (1, 1, 1, time)

        def loss(hooked: Callable[[str], Tensor]) -> Tensor:
            return objective(image[0, 0], maps_of_units(hooked(f"model_norm_{one.layer}"), one.units), one)

        (found,) = lucent_render().render_vis(
            copy.deepcopy(whole),  # its hooks stay on the modules
            loss,
            lambda: ([image], lambda: image),
            partial(optimizer, preset=one.preset),
            transforms=[],
            thresholds=(one.n_steps,),
            preprocess=False,
            progress=False,
            show_image=False,
            fixed_image_size=0,  # what is smaller than 224 would be enlarged
        )
        return torch.as_tensor(found).reshape(1, -1)

    return torch.cat([climbed(one) for one in task.alone()])


def own_units_by_autograd(trunk: Trunk, task: Task) -> Tensor:
    """One axis, stopped at the layer, own unit only, but with autograd and torch's Adam."""
    return climb(task, partial(paper_methods.unit_maps, trunk, task.layer, task.units))


def layer_maps(trunk: Trunk, task: Task) -> Callable[[Tensor], Tensor]:
    """Maps of the signals' units, with all units of the layer computed for every signal."""
    return lambda x: trunk.feature_map(x, task.layer)[torch.arange(len(x)), task.units]


def layer_by_autograd(trunk: Trunk, task: Task) -> Tensor:
    """The same with all units of the layer computed for every signal."""
    return climb(task, layer_maps(trunk, task))


def gradient_of_batch(trunk: Trunk, task: Task) -> Callable[[Tensor], Tensor]:
    """The objective's gradient at signals (signal, time), all in one backward pass."""
    return grad(lambda x: objective(x, paper_methods.unit_maps(trunk, task.layer, task.units, x), task).sum())


def gradient_of_each(trunk: Trunk, task: Task) -> Callable[[Tensor], Tensor]:
    """The same written for one signal and one unit."""

    def one(x: Tensor, unit: Tensor) -> Tensor:
        own = replace(task, units=unit[None])
        return objective(x[None], paper_methods.unit_maps(trunk, task.layer, own.units, x[None]), own)[0]

    return lambda x: vmap(grad(one))(x, task.units)


def compiled(gradient: Callable[[Tensor], Tensor], preset: str) -> Callable[[Task], Tensor]:
    """Adam along ``gradient``, each step one compiled function; for tasks with the units of that gradient.

    Raises ``ImportError`` where there is no C++ compiler.
    """
    compiler, step = os.environ.get("CXX", "g++"), PRESETS[preset]

    @torch.compile
    def moved(x: Tensor, first: Tensor, second: Tensor, eta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g = gradient(x)
        first, second = first.lerp(g, 1 - BETA1), second.lerp(g * g, 1 - BETA2)
        return x + eta * first / (second.sqrt() * scale + EPSILON), first, second

    def run(task: Task) -> Tensor:
        if shutil.which(compiler) is None:
            raise ImportError(f"there is no C++ compiler {compiler}")
        x = projected(task.start, task)
        moments = torch.zeros_like(x), torch.zeros_like(x)
        for number in range(task.n_steps):
            eta = step.step_size * step.decay**number / (1 - BETA1 ** (number + 1))
            scale = (1 - BETA2 ** (number + 1)) ** -0.5
            x, *moments = moved(x, *moments, x.new_tensor(eta), x.new_tensor(scale))
            x = projected(x, task)
        return x

    return run


def contenders(network: Network, layer: str, th: xr.DataArray, n_axes: int, device: str) -> dict:
    """Name -> (function of a task, task to be timed) for one layer.

    The function raises ``ImportError`` where the contender does not install.
    """
    # none of them is charged for gradients of weights, which nothing uses
    model = copy.deepcopy(network.model).requires_grad_(False).to(device)
    trunk, whole = network.trunk.to(device), OnAllAxes(model, n_axes)
    live = live_units(layer, th, 5, dtype=torch.float32, device=device)
    few = replace(live, units=live.units[:3], n_steps=50)
    # a batch of eight methods is what the engine is made for: every unit eight times
    eight = replace(live, units=live.units.repeat(8), n_steps=10)
    # arrays as small as one signal's are computed faster on one thread than on several
    on_one_thread = threads_inside(1)
    return {
        # some sixty steps are recorded, however many there are: in a whole run, of thousands, they cost next to nothing
        "ours": (partial(engine, trunk), replace(eight, n_steps=500)),
        "one unit at a time, whole network": (on_one_thread(partial(one_at_a_time, whole)), few),
        "lucent": (on_one_thread(partial(lucent_itself, whole)), few),
        "batch, whole network": (partial(batch_of_whole_networks, whole), live),
        "batch to the layer, all its units, autograd": (partial(layer_by_autograd, trunk), eight),
        "batch to the layer, own unit, autograd": (partial(own_units_by_autograd, trunk), eight),
        "batch to the layer, own unit, compiled": (compiled(gradient_of_batch(trunk, eight), eight.preset), eight),
        "vmap of a gradient to the layer, compiled": (compiled(gradient_of_each(trunk, eight), eight.preset), eight),
    }


def compare(network: Network, th: xr.DataArray, n_axes: int, rounds: int, device: str) -> dict:
    """Microseconds per signal and step of every contender on every layer, peaks of memory, seconds of first calls.

    These compile, where a contender compiles.
    """
    us, peaks, first_s, left_out = {}, {}, {}, {}
    for layer in network.trunk.layers:
        runs, first_s[layer] = contenders(network, layer, th, n_axes, device), {}
        for name, (run, task) in list(runs.items()):
            few = replace(task, n_steps=max(2, task.n_steps // 5))
            try:
                first_s[layer][name] = measure.seconds(partial(run, few))  # prepares kernels too
            except ImportError as error:
                left_out[name] = {"left_out": f"does not install here: {error}"}
                del runs[name]
        seconds = measure.alternate({name: partial(run, task) for name, (run, task) in runs.items()}, rounds)
        us[layer] = {name: seconds[name] / len(x.units) / x.n_steps * 1e6 for name, (_, x) in runs.items()}
        peaks[layer] = {n: measure.peak_mib(partial(run, replace(x, n_steps=2))) for n, (run, x) in runs.items()}
    table, peak, first = pd.DataFrame(us), pd.DataFrame(peaks).max(axis=1), pd.DataFrame(first_s).mean(axis=1)
    table["mean"] = table.mean(axis=1)
    faster = table.loc["one unit at a time, whole network", "mean"] / table["mean"]
    return left_out | {
        name: {
            "us_per_signal_step": row.to_dict(),
            "peak_mib": peak[name],
            "first_call_s": first[name],
            "times_faster_than_one_at_a_time": faster[name],
        }
        for name, row in table.iterrows()
    }


def floors(table: dict, units: int, taps: int, machine: dict) -> dict:
    """Operations and bytes that one signal and step need at least, over the measured rates; ours as a multiple.

    Operations: each convolution there and back, of the last layer one unit. Bytes: each hidden layer written and
    read once there and once back.
    """
    floor = {}
    for hidden, layer in enumerate(("conv1", "conv2", "conv3")):
        # between hidden layers; into the first of them and out of the last
        pairs = (hidden - 1) * units**2 + 2 * units if hidden else 1
        operations = 2 * 2 * LENGTH * taps * pairs
        us_by_products = operations / machine["product_gflops"] / 1e3
        floor[layer] = {
            "operations": operations,
            "us_by_products": us_by_products,
            "us_by_copies": 4 * 4 * LENGTH * (units * hidden + 1) / machine["copy_gb_s"] / 1e3,
            "ours_over_products": table["ours"]["us_per_signal_step"][layer] / us_by_products,
        }
    return floor


def ideas(network: Network, th: xr.DataArray, rounds: int) -> dict:
    """Microseconds per signal and step at Conv3 with one idea changed at a time, and shares of steps taken."""
    layer, n_steps = network.trunk.layers[-1], 60
    every = th.sel(layer=layer).values
    climbed = partial(paper_methods.maximize, network.trunk, layer, every)
    run = partial(climbed, settings=replace(SETTINGS, n_steps=n_steps))
    variants = {
        "as it is": run,
        "one worker, products on all threads": partial(run, workers=1),
        **{f"blocks of {mib:g} MiB": partial(run, block_bytes=int(mib * 2**20)) for mib in (0.5, 2, 32)},
    }
    for variant in variants.values():
        variant()
    n = len(paper_methods.METHODS) * len(every) * n_steps
    steps = {name: float(climbed(preset=name)["steps"].mean()) for name in PRESETS}
    return {
        "us_per_signal_step": {name: s / n * 1e6 for name, s in measure.alternate(variants, rounds).items()},
        "share_of_steps_taken": {name: taken / SETTINGS.n_steps for name, taken in steps.items()},
    }


def grid(networks: list[Network], th: xr.DataArray, device: str = "cpu") -> dict:
    """The paper's whole grid for one data set, as `signals` computes it: every network, layer, method and preset."""
    layers, settings = networks[0].trunk.layers, MaximizationSettings()

    def run():
        for net, layer, preset in product(networks, layers, PRESETS):
            values = th.sel(seed=net.seed, layer=layer).values
            paper_methods.maximize(net.trunk, layer, values, preset=preset, settings=settings, device=device)

    return {
        "networks": len(networks),
        "signals": len(networks) * len(layers) * th.sizes["unit"] * len(paper_methods.METHODS) * len(PRESETS),
        "steps": settings.n_steps,
        "tolerance_g": settings.tolerance_g,
        "seconds": measure.seconds(run),
    }
