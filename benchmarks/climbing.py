"""Activation Maximization: ours beside one unit at a time, a batch over the whole network, and autograd.

All contenders climb the same units of the same trained network with the same method, step sizes and number of
steps, none stops early, and what they find is compared before they are timed.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from benchmarks import by_lucent, measure
from harvis_utils.fast import ascent, gradients
from harvis_utils.maximization import paper_methods
from harvis_utils.maximization.starting import starting_signal
from harvis_utils.networks.sfhf import SFHF, Trunk
from harvis_utils.parallel import threads_inside
from harvis_utils.settings import PRESETS, MaximizationSettings, Step
from harvis_utils.training.supervised import Network

#: what all contenders climb; the paper's own method has every kind of term but AAP
METHOD = "L2+TV+EAP+clip"
STEP = PRESETS["calibrated"]


# ------------------------------------------------------------------------------------- what others would write


def objective(x: Tensor, maps: Tensor, th: Tensor, weight: float) -> Tensor:
    """f - w R of the proposed method for signals (signal, time) and their unit's maps (signal, time), summed."""
    counted = gradients.clipped(maps, th).mean(-1)
    penalty = gradients.l2_norm(x) + gradients.total_variation(x) + gradients.eap(maps, th)
    return (counted - weight * penalty).sum()


def _climb(x: Tensor, maps_of, th: Tensor, n_steps: int, weight: float) -> Tensor:
    x = x.clone().requires_grad_()
    adam = torch.optim.Adam([x], STEP.step_size, maximize=True)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, STEP.decay)
    for _ in range(n_steps):
        adam.zero_grad(set_to_none=True)
        objective(x, maps_of(x), th, weight).backward()
        adam.step()
        schedule.step()
    return x.detach()


def whole_network(model: SFHF, layer: str, unit: Tensor, n_axes: int):
    """Maps of the wanted units by a hook while the whole network runs on all its axes, as a general library does."""
    caught: dict[str, Tensor] = {}

    def maps_of(x: Tensor) -> Tensor:
        layer_of = getattr(model, f"norm_{layer}")
        hook = layer_of.register_forward_hook(lambda module, given, out: caught.update(map=out))
        try:
            model(x[:, None].expand(-1, n_axes, -1))
        finally:
            hook.remove()
        every = torch.relu(caught["map"])  # (signal, unit, axis, time), equal on all axes
        return every[torch.arange(len(x)), unit].mean(1)

    return maps_of


def one_at_a_time(model, layer, units, start, th, n_steps, n_axes, weight) -> Tensor:
    """A loop over units with a hook, Adam and the whole network, as lucent, Captum and tf-keras-vis work."""
    return torch.cat(
        [
            _climb(start, whole_network(model, layer, units[i : i + 1], n_axes), th[i : i + 1], n_steps, weight)
            for i in range(len(units))
        ]
    )


def batch_of_whole_networks(model, layer, units, start, th, n_steps, n_axes, weight) -> Tensor:
    """All units in one batch through the whole network, as xplique works."""
    maps_of = whole_network(model, layer, units, n_axes)
    return _climb(start.expand(len(units), -1), maps_of, th, n_steps, weight)


def lucent_itself(model, layer, units, start, th, n_steps, n_axes, weight) -> Tensor:
    """The library lucent on the same network; ``ImportError`` where it does not install."""

    def climbed(x: Tensor, out: Tensor, number: int) -> Tensor:
        maps = torch.relu(out[:, units[number]]).mean(1)
        return objective(x, maps, th[number : number + 1], weight)

    layer = f"norm_{layer}"
    return by_lucent.climb(model, layer, units, start, n_steps, n_axes, climbed, STEP.step_size, STEP.decay)


def autograd_batch(trunk: Trunk, layer, units, start, th, n_steps, weight) -> Tensor:
    """One axis, stopped at the layer, own unit only, but with autograd and torch's Adam."""
    return _climb(
        start.expand(len(units), -1), lambda x: paper_methods.unit_maps(trunk, layer, units, x), th, n_steps, weight
    )


def full_layer_batch(trunk: Trunk, layer, units, start, th, n_steps, weight) -> Tensor:
    """The same with all units of the last layer computed for every signal."""
    row = torch.arange(len(units))
    return _climb(start.expand(len(units), -1), lambda x: trunk.feature_map(x, layer)[row, units], th, n_steps, weight)


def ours(trunk: Trunk, layer, units, th, n_steps, **options) -> xr.Dataset:
    """The engine, for the same units, never stopping early."""
    every = np.full(len(trunk.biases[trunk.depth(layer) - 1]), np.nan)
    every[units.numpy()] = th.cpu().numpy()
    settings = MaximizationSettings(n_steps=n_steps, tolerance_g=0)
    return paper_methods.maximize(
        trunk, layer, every, methods=[METHOD], units=units.tolist(), preset=STEP, settings=settings, **options
    )


# ---------------------------------------------------------------------------------------------------- compare


def agreement(network: Network, th: xr.DataArray, n_axes: int, n_units: int = 3) -> dict:
    """Largest differences between the engine and the loop over the whole network, before anything is timed."""
    worst = {"float64_200_steps_g": 0.0, "float32_one_step_g": 0.0}
    for layer in network.trunk.layers:
        values = th.sel(layer=layer).values
        units = torch.tensor(np.flatnonzero(np.isfinite(values))[:n_units])
        level = torch.tensor(values)[units]
        start = torch.tensor(starting_signal(MaximizationSettings(), 30))[None]
        for dtype, n_steps, name in (
            (torch.float64, 200, "float64_200_steps_g"),
            (torch.float32, 1, "float32_one_step_g"),
        ):
            # folding the batch norm rounds to float32; unfold nothing: both sides get the folded weights
            trunk = network.trunk.to("cpu", dtype)
            loop = torch.cat(
                [
                    _climb(
                        start.to(dtype),
                        lambda x, trunk=trunk, layer=layer, u=int(u): trunk.feature_map(x, layer)[:, u],
                        level[i : i + 1].to(dtype),
                        n_steps,
                        0.1,
                    )
                    for i, u in enumerate(units)
                ]
            )
            found = ours(network.trunk, layer, units, level, n_steps, dtype=dtype)["signal"].values[0]
            worst[name] = max(worst[name], float(np.abs(found - loop.numpy()).max()))
        engine_step = ours(network.trunk, layer, units[:1], level[:1], 1)["signal"].values[0]
        for name, loop in (("whole_network", one_at_a_time), ("lucent", lucent_itself)):
            try:
                step = loop(network.model, layer, units[:1], start, level[:1].float(), 1, n_axes, 0.1)
            except ImportError:
                continue  # the table of times says so
            difference = float(np.abs(step.numpy() - engine_step).max())
            worst[f"{name}_one_step_g"] = max(worst.get(f"{name}_one_step_g", 0.0), difference)
    return worst


def plain_steps(trunk: Trunk, layer, units, th, method: paper_methods.Method, step: Step, settings, along=None):
    """Any method and step size written out with autograd: yields the signals (signal, time) after every step.

    ``units`` and ``th`` are (signal,). With ``along``, signals (step, signal, time), every step begins where these
    stand, not where the one before ended; the optimizer's moments are still the loop's own.
    """
    start = torch.tensor(starting_signal(settings, 30), dtype=th.dtype)
    lowpass = torch.tensor(
        paper_methods.lowpass_matrix(30, settings.lowpass_hz, settings.lowpass_order, 30.0).copy(), dtype=th.dtype
    )

    def after(x: Tensor) -> Tensor:
        if method.after == "lowpass":
            return x @ lowpass.T
        return x / x.norm(dim=1, keepdim=True) if method.after == "unit-norm" else x

    def excess(values: Tensor, limit) -> Tensor:
        """Mean of what lies above the limit, over what lies above it."""
        above = values > limit
        return torch.where(above, values - limit, 0).sum(1) / above.sum(1).clamp(min=1)

    x = after(start.repeat(len(units), 1))
    first, second, eta = torch.zeros_like(x), torch.zeros_like(x), step.step_size
    for number in range(1, settings.n_steps + 1):
        x = (x if along is None else along[number - 1].clone()).requires_grad_()
        maps = trunk.feature_map(x, layer)[torch.arange(len(units)), units]
        value = (torch.minimum(maps, th[:, None]) if method.clip else maps).mean(1)
        penalty = torch.zeros_like(value)
        if method.l2:
            penalty = penalty + x.norm(dim=1)
        if method.tv:
            penalty = penalty + x.diff(dim=1).abs().sum(1)
        if method.aap:
            penalty = penalty + excess(x.abs(), settings.th_aap_g)
        if method.eap:
            penalty = penalty + excess(maps, th[:, None])
        (gradient,) = torch.autograd.grad((value - settings.weight * penalty).sum(), x)
        x = x.detach()
        if step.optimizer == "adam":
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            gradient = (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)
        x = after(x + eta * gradient)
        eta *= step.decay
        yield x


def plain_loop(*args) -> Tensor:
    """The signals (signal, time) with which :func:`plain_steps` ends."""
    *_, x = plain_steps(*args)
    return x


def engine_path(trunk: Trunk, layer, units, th, method: paper_methods.Method, step: Step, settings) -> Tensor:
    """The engine's signals at the start and after every step, (step, signal, time), for :func:`plain_steps`."""
    every = np.full(len(trunk.biases[trunk.depth(layer) - 1]), np.nan)
    every[units.numpy()] = th.numpy()
    rows = paper_methods.climbing_rows(
        [method], units.tolist(), every, paper_methods.penalty_weights(settings.weight, "sum", 30)
    )
    lowpass = torch.tensor(paper_methods.lowpass_matrix(30, settings.lowpass_hz, settings.lowpass_order, 30.0).copy())
    start = torch.tensor(starting_signal(settings, 30)).to(th.dtype).repeat(len(units), 1)
    chunk = ascent.Chunk(
        trunk, layer, rows.to("cpu", th.dtype), start, step, settings.th_aap_g, lowpass.to(th.dtype), len(units)
    )
    path = [chunk.x.clone()]
    for number in range(settings.n_steps):
        chunk.advance(number)
        path.append(chunk.x.clone())
    return torch.stack(path)


def reordered(trunk: Trunk, seed: int = 0) -> Trunk:
    """The same functions of the last layer, the units of the layers before it in another order."""
    generator = torch.Generator().manual_seed(seed)
    weights, biases = list(trunk.weights), list(trunk.biases)
    for i in range(len(weights) - 1):
        order = torch.randperm(len(biases[i]), generator=generator)
        weights[i], biases[i], weights[i + 1] = weights[i][order], biases[i][order], weights[i + 1][:, order]
    return Trunk(tuple(weights), tuple(biases))


def agreement_by_method(network: Network, th: xr.DataArray, n_units: int = 10, n_steps: int = 200) -> dict:
    """Largest differences in G after ``n_steps`` in float64, for every method, over layers, presets and units.

    ``engine`` is the engine against :func:`plain_loop`; ``reordered`` is that loop against itself with its additions
    in another order, so what rounding alone does; ``step`` is the largest difference after any single one of these
    steps, the loop taking each from where the engine stands, so that rounding has no time to grow.
    """
    settings, trunk = MaximizationSettings(n_steps=n_steps, tolerance_g=0), network.trunk.to("cpu", torch.float64)
    worst = {name: {"engine": 0.0, "reordered": 0.0, "step": 0.0} for name in paper_methods.METHODS}
    for layer in trunk.layers:
        values = th.sel(layer=layer).values
        units = np.flatnonzero(np.isfinite(values))[:n_units].tolist()
        level = torch.tensor(values, dtype=torch.float64)[units]
        same = Trunk(trunk.weights[: trunk.depth(layer)], trunk.biases[: trunk.depth(layer)])
        for name, step in PRESETS.items():
            found = paper_methods.maximize(
                trunk, layer, values, units=units, preset=name, settings=settings, dtype=torch.float64
            )["signal"]
            for method, recipe in paper_methods.METHODS.items():
                given = (layer, torch.tensor(units), level, recipe, step, settings)
                loop, other = (plain_loop(t, *given) for t in (same, reordered(same)))
                path = engine_path(trunk, *given)
                steps = torch.stack(list(plain_steps(same, *given, path)))
                climbed = torch.tensor(found.sel(technique=method).values)
                for key, a, b in (("engine", climbed, loop), ("reordered", other, loop), ("step", path[1:], steps)):
                    worst[method][key] = max(worst[method][key], float((a - b).abs().max()))
    return {"n_units": n_units, "n_steps": n_steps, "methods": worst}


def full_runs(network: Network, th: xr.DataArray, n_steps: int = 5000) -> dict:
    """Mean objective and failed signals after full float32 runs: the engine, and autograd's batch."""
    found: dict[str, dict] = {}
    for layer in network.trunk.layers:
        values = th.sel(layer=layer).values
        units = torch.tensor(np.flatnonzero(np.isfinite(values)))
        level = torch.tensor(values, dtype=torch.float32)[units]
        start = torch.tensor(starting_signal(MaximizationSettings(), 30))[None]
        both = {
            "engine": torch.tensor(ours(network.trunk, layer, units, level, n_steps)["signal"].values[0]),
            "autograd": autograd_batch(network.trunk, layer, units, start, level, n_steps, 0.1),
        }
        found[layer] = {
            name: {
                "mean_objective": float(
                    objective(x, paper_methods.unit_maps(network.trunk, layer, units, x), level, 0.1) / len(units)
                ),
                "failed": int((x.abs().amax(1) > 10).sum()),
            }
            for name, x in both.items()
        }
    return found


# -------------------------------------------------------------------------------------------------------- time


def contenders(network: Network, layer: str, values: np.ndarray, n_axes: int, device: str) -> dict:
    """Name -> (signals climbed at once, steps timed, function of the number of steps), for one layer.

    The function raises ``ImportError`` where the contender does not install.
    """
    # none of them is charged for gradients of weights, which nothing uses
    trunk, model = network.trunk.to(device), copy.deepcopy(network.model).requires_grad_(False).to(device)
    live = np.flatnonzero(np.isfinite(values)).tolist()
    level = torch.tensor(values, dtype=torch.float32, device=device)
    start = torch.tensor(starting_signal(MaximizationSettings(), 30), device=device)[None]
    # a batch of eight methods is what the engine is made for: every unit eight times
    eight = torch.tensor(live * 8, device=device)
    each, few = torch.tensor(live, device=device), torch.tensor(live[:3], device=device)
    batch, alone = (layer, eight, start, level[eight]), (few, start, level[few])
    made = {"methods": [METHOD] * 8, "preset": STEP, "units": live, "device": device}
    return {
        "ours": (len(eight), 100, lambda k: paper_methods.maximize(trunk, layer, values, settings=_fixed(k), **made)),
        **{
            name: (len(few), 50, lambda k, loop=loop: _on_one_thread(loop, model, layer, *alone, k, n_axes, 0.1))
            for name, loop in (("one unit at a time, whole network", one_at_a_time), ("lucent", lucent_itself))
        },
        "batch, whole network": (
            len(each),
            5,
            lambda k: batch_of_whole_networks(model, layer, each, start, level[each], k, n_axes, 0.1),
        ),
        "batch to the layer, all its units, autograd": (
            len(eight),
            10,
            lambda k: full_layer_batch(trunk, *batch, k, 0.1),
        ),
        "batch to the layer, own unit, autograd": (len(eight), 10, lambda k: autograd_batch(trunk, *batch, k, 0.1)),
    }


def _on_one_thread(run, *arguments):
    """Arrays as small as one signal's are computed faster on one thread than on several."""
    with threads_inside(1):
        return run(*arguments)


def compare(network: Network, th: xr.DataArray, n_axes: int, rounds: int, device: str) -> dict:
    """Microseconds per signal and step of every contender on every layer, and their peaks of memory."""
    table: dict[str, dict] = {}
    for layer in network.trunk.layers:
        runs = contenders(network, layer, th.sel(layer=layer).values, n_axes, device)
        for name, (_, n_steps, run) in list(runs.items()):
            try:
                run(max(2, n_steps // 5))  # first calls prepare kernels
            except ImportError as error:
                table[name] = {"left_out": f"does not install here: {error}"}
                del runs[name]
        timed = {name: lambda run=run, k=k: run(k) for name, (_, k, run) in runs.items()}
        seconds = measure.alternate(timed, rounds)
        for name, (n_signals, n_steps, run) in runs.items():
            entry = table.setdefault(name, {"us_per_signal_step": {}, "peak_mib": 0.0})
            entry["us_per_signal_step"][layer] = seconds[name] / n_signals / n_steps * 1e6
            entry["peak_mib"] = max(entry["peak_mib"], measure.peak_mib(lambda run=run: run(2)))
    measured = [entry for entry in table.values() if "left_out" not in entry]
    for entry in measured:
        entry["us_per_signal_step"]["mean"] = float(np.mean(list(entry["us_per_signal_step"].values())))
    base = table["one unit at a time, whole network"]["us_per_signal_step"]["mean"]
    for entry in measured:
        entry["times_faster_than_one_at_a_time"] = base / entry["us_per_signal_step"]["mean"]
    return table


def _fixed(n_steps: int) -> MaximizationSettings:
    return MaximizationSettings(n_steps=n_steps, tolerance_g=0)


def floors(table: dict, units: int, taps: int, machine: dict, length: int = 30) -> dict:
    """Operations and bytes that one signal and step need at least, over the measured rates; ours as a multiple.

    Operations: each convolution there and back, of the last layer one unit. Bytes: each hidden layer written and
    read once there and once back.
    """
    floor = {}
    for depth, layer in enumerate(("conv1", "conv2", "conv3"), 1):
        macs = length * taps * (units if depth > 1 else 1)  # the last layer, one unit
        if depth > 1:
            macs += length * taps * units + (depth - 2) * length * taps * units**2
        operations = 2 * 2 * macs
        n_bytes = 4 * 4 * length * units * (depth - 1) + 4 * 4 * length
        ours_us = table["ours"]["us_per_signal_step"][layer]
        floor[layer] = {
            "operations": operations,
            "us_by_products": operations / machine["product_gflops"] / 1e3,
            "us_by_convolutions": operations / machine["convolution_gflops"] / 1e3,
            "us_by_copies": n_bytes / machine["copy_gb_s"] / 1e3,
            "ours_over_products": ours_us / (operations / machine["product_gflops"] / 1e3),
            "ours_over_convolutions": ours_us / (operations / machine["convolution_gflops"] / 1e3),
        }
    return floor


def ideas(network: Network, th: xr.DataArray, rounds: int) -> dict:
    """Microseconds per signal and step at Conv3 with one idea changed at a time."""
    layer = network.trunk.layers[-1]
    every = th.sel(layer=layer).values
    methods = list(paper_methods.METHODS)

    def run(n_steps: int = 60, **options):
        return lambda: paper_methods.maximize(
            network.trunk, layer, every, methods=methods, settings=_fixed(n_steps), **options
        )

    n = len(methods) * len(every)
    threads = torch.get_num_threads()
    variants = {
        "as it is": run(),
        "one worker, products on all threads": run(workers=1),
        **{f"blocks of {size:g} MiB": run(block_bytes=int(size * 2**20)) for size in (0.5, 2, 32)},
    }
    for call in variants.values():
        call()
    seconds = measure.alternate(variants, rounds)
    found = {name: value / n / 60 * 1e6 for name, value in seconds.items()}
    stacked = stacked_convolution(network.trunk, rounds)
    settings = MaximizationSettings()
    taken = {}
    for name, step in PRESETS.items():
        weights = dict.fromkeys(paper_methods.PENALTIES, settings.weight)
        rows = paper_methods.climbing_rows(
            [paper_methods.METHODS[x] for x in methods], range(len(every)), every, weights
        )
        until = ascent.stopping_step(network.trunk, layer, rows, step, settings.n_steps, 30, settings.tolerance_g)
        taken[name] = float(until.mean() / settings.n_steps)
    return {"us_per_signal_step": found, "threads": threads, "five_networks": stacked, "share_of_steps_taken": taken}


def stacked_convolution(trunk: Trunk, rounds: int, n_networks: int = 5, rows: int = 64) -> dict:
    """Milliseconds of one convolution for several networks: one after the other, and as one grouped convolution."""
    w = trunk.weights[1][:, :, None, :].contiguous(memory_format=torch.channels_last)
    units, padding = w.shape[0], (0, w.shape[3] // 2)
    x = torch.randn(rows, units, 1, 30).to(memory_format=torch.channels_last)
    wide = x.repeat(1, n_networks, 1, 1).to(memory_format=torch.channels_last)
    grouped = w.repeat(n_networks, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    convolve = nn.functional.conv2d
    with torch.inference_mode():
        runs = {
            "one after the other": lambda: [convolve(x, w, padding=padding) for _ in range(n_networks)],
            "grouped": lambda: convolve(wide, grouped, padding=padding, groups=n_networks),
        }
        for run in runs.values():
            run()
        return {name: 1e3 * s for name, s in measure.alternate(runs, max(5, rounds)).items()}


def scaling(network: Network, th: xr.DataArray) -> dict:
    """Seconds over the number of units, of networks and of steps at Conv3, with the fitted exponents."""
    layer = network.trunk.layers[-1]
    every = th.sel(layer=layer).values

    def seconds(n_units: int, n_networks: int, n_steps: int) -> float:
        def run():
            for _ in range(n_networks):
                paper_methods.maximize(network.trunk, layer, every, units=range(n_units), settings=_fixed(n_steps))

        return measure.alternate({"": run}, 1)[""]

    seconds(8, 1, 10)
    most = len(every)
    curves = {
        "units": ([n for n in (8, 16, 32, 64) if n <= most], lambda n: seconds(n, 1, 60)),
        "networks": ([1, 2, 3, 5], lambda n: seconds(min(16, most), n, 60)),
        "steps": ([50, 100, 200, 400], lambda n: seconds(min(16, most), 1, n)),
    }
    found = {}
    for name, (sizes, run) in curves.items():
        times = [run(n) for n in sizes]
        found[name] = {"sizes": sizes, "seconds": times, "exponent": measure.exponent(sizes, times)}
    return found


def grid(networks: list[Network], th: xr.DataArray, settings: MaximizationSettings) -> dict:
    """The paper's whole grid for one data set, as `signals` computes it: every network, layer, method and preset."""

    def run():
        for net in networks:
            for layer in net.trunk.layers:
                values = th.sel(seed=net.seed, layer=layer).values
                for preset in PRESETS:
                    paper_methods.maximize(net.trunk, layer, values, preset=preset, settings=settings)

    n_units = th.sizes["unit"]
    n_signals = len(networks) * len(networks[0].trunk.layers) * n_units * len(paper_methods.METHODS) * len(PRESETS)
    seconds = measure.alternate({"": run}, 1)[""]
    return {
        "networks": len(networks),
        "signals": n_signals,
        "steps": settings.n_steps,
        "tolerance_g": settings.tolerance_g,
        "seconds": seconds,
        "us_per_signal_step": seconds / n_signals / settings.n_steps * 1e6,
    }
