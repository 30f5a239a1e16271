"""Every contender of the benchmarks finds what ours finds; what is compared is the same work."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from naive_search import naive_search

from benchmarks import climbing, measure, searching, training
from benchmarks.__main__ import merged
from harvis_utils.data.windowing import Split
from harvis_utils.networks.sfhf import SFHF, folded_trunk
from harvis_utils.settings import MaximizationSettings, ModelSettings, Settings
from workflow import readme

N_AXES = 3


def made_model(batch_norm: bool) -> SFHF:
    torch.manual_seed(0)
    model = SFHF(N_AXES, 30, 4, ModelSettings(n_units=6, n_dense=8, batch_norm=batch_norm))
    for _ in range(3):  # batch norms with something to fold
        model(torch.randn(32, N_AXES, 30))
    return model.eval()


def render_vis(model, objective_f, param_f, optimizer, *, thresholds, fixed_image_size, **switched_off):
    """What lucent's function of this name does with these arguments, where lucent itself is not installed."""
    assert fixed_image_size == 0 and not any(switched_off.values())
    parameters, image = param_f()
    stepping, seen = optimizer(parameters), {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, given, out, name=name: seen.update({name.replace(".", "_"): out}))

    def closure():
        stepping.zero_grad()
        model(image())
        loss = objective_f(seen.__getitem__)
        loss.backward()
        return loss

    for _ in range(max(thresholds)):
        stepping.step(closure)
    return [image().detach().numpy().transpose(0, 2, 3, 1)]


@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3"])
def test_all_climbers_find_the_same_signals(layer, monkeypatch):
    """In float64, where nothing is folded and so nothing rounded, after some steps; in float32 after one."""
    if not importlib.util.find_spec("lucent"):
        monkeypatch.setattr(climbing.by_lucent, "render", lambda: SimpleNamespace(render_vis=render_vis))
    units = torch.tensor([0, 2, 5])
    start = torch.tensor(climbing.m.starting_signal(MaximizationSettings(), 30))[None]
    for dtype, n_steps, within in ((torch.float64, 20, 1e-9), (torch.float32, 1, 1e-5)):
        model = made_model(batch_norm=dtype == torch.float32).to(dtype)
        trunk, first, th = (
            folded_trunk(model).to("cpu", dtype),
            start.to(dtype),
            torch.tensor([0.2, 0.3, 0.1]).to(dtype),
        )
        found = climbing.ours(trunk, layer, units, th, n_steps, dtype=dtype)["signal"].values[0]
        others = {
            "one": climbing.one_at_a_time(model, layer, units, first, th, n_steps, N_AXES, 0.1),
            "batch": climbing.batch_of_whole_networks(model, layer, units, first, th, n_steps, N_AXES, 0.1),
            "layer": climbing.full_layer_batch(trunk, layer, units, first, th, n_steps, 0.1),
            "autograd": climbing.autograd_batch(trunk, layer, units, first, th, n_steps, 0.1),
        }
        others["lucent"] = climbing.lucent_itself(model, layer, units, first, th, n_steps, N_AXES, 0.1)
        for name, signals in others.items():
            assert np.abs(signals.numpy() - found).max() < within, name
        assert (np.abs(found - start.numpy()).max(1) > 0.05).all(), "something was climbed"
        assert not any(module._forward_hooks for module in model.modules()), "no hook is left behind"


@pytest.mark.parametrize("preset", climbing.m.PRESETS)
def test_the_plain_loop_climbs_every_method_as_the_engine_does(preset):
    trunk, th = folded_trunk(made_model(batch_norm=False)).to("cpu", torch.float64), np.full(6, 0.2)
    few, units = MaximizationSettings(n_steps=20, tolerance_g=0), [1, 3]
    found = climbing.m.maximize(
        trunk, "conv3", th, units=units, preset=preset, settings=few, dtype=torch.float64
    )["signal"]  # fmt: skip
    for name, method in climbing.m.METHODS.items():
        level = torch.tensor(th, dtype=torch.float64)[units]
        loop = climbing.plain_loop(trunk, "conv3", torch.tensor(units), level, method, climbing.m.PRESETS[preset], few)
        assert np.abs(found.sel(technique=name).values - loop.numpy()).max() < 1e-9, name


def test_units_in_another_order_compute_the_same_maps():
    trunk = folded_trunk(made_model(batch_norm=False)).to("cpu", torch.float64)
    other, x = climbing.reordered(trunk), torch.randn(5, 30, dtype=torch.float64)
    assert not torch.equal(other.weights[0], trunk.weights[0])
    assert torch.allclose(other.feature_map(x, "conv3"), trunk.feature_map(x, "conv3"), atol=1e-12)


def test_agreement_is_told_for_every_method():
    trunk = folded_trunk(made_model(batch_norm=False))
    network = SimpleNamespace(trunk=trunk)
    th = xr.DataArray(np.full((3, 6), 0.2), dims=("layer", "unit"), coords={"layer": list(trunk.layers)})
    found = climbing.agreement_by_method(network, th, n_units=2, n_steps=5)
    assert list(found["methods"]) == list(climbing.m.METHODS)
    for name, worst in found["methods"].items():
        assert max(worst.values()) < 1e-9, name
    th[2, 0] = np.nan  # a dead unit is not climbed
    assert climbing.agreement_by_method(network, th, n_units=2, n_steps=1)["methods"]["naive"]["engine"] < 1e-9


def test_the_engine_is_followed_step_by_step():
    trunk = folded_trunk(made_model(batch_norm=False)).to("cpu", torch.float64)
    few = climbing.MaximizationSettings(n_steps=5, tolerance_g=0)
    units, level = torch.tensor([1, 4]), torch.full((2,), 0.2, dtype=torch.float64)
    given = ("conv2", units, level, climbing.m.METHODS["unit-norm"], climbing.m.PRESETS["calibrated"], few)
    path = climbing.engine_path(trunk, *given)
    every = np.full(6, 0.2)
    options = {"methods": ["unit-norm"], "preset": "calibrated", "settings": few, "dtype": torch.float64}
    found = climbing.m.maximize(trunk, "conv2", every, units=[1, 4], **options)
    assert np.array_equal(path[-1].numpy(), found["signal"].values[0])
    moved = path.clone()
    moved[2] += (
        0.1 * torch.arange(30) / 30
    )  # only the step that begins there ends elsewhere, and what its moments touch
    ends, others = (torch.stack(list(climbing.plain_steps(trunk, *given, p))) for p in (path, moved))
    assert torch.allclose(ends, path[1:], atol=1e-12) and torch.equal(ends[:2], others[:2])
    assert (ends[2] - others[2]).abs().max() > 1e-3


def test_all_searches_find_the_same_distances():
    rng = np.random.default_rng(0)
    series = rng.normal(size=(700, 2)).cumsum(0).astype(np.float32) / 5
    start = np.arange(0, 660, 15)
    split = Split(series, *(start,) * 5, length=30)
    pieces = np.concatenate([split.segments[:3, 4:14], rng.normal(size=(3, 10)) * 3]).astype(np.float32)
    truth = next(naive_search(pieces, split.segments, 7))
    for search in (
        searching.brute_force(split.segments, 10, "cpu"),
        *(searching.scikit_learn(split.segments, 10, kind) for kind in ("brute", "kd_tree", "ball_tree")),
    ):
        assert np.allclose(search(pieces, 7), truth, atol=1e-4)
    table = searching.compare(split, pieces, 7, 1, "cpu")
    assert all("left_out" in entry or entry["largest_relative_difference"] < 1e-5 for entry in table.values())
    assert table["ours"]["times_slower_than_ours"] == 1


def test_operations_of_one_window():
    """Counted by hand for a small network: three convolutions, two dense layers, there and twice back."""
    cfg = Settings("quick", "synthetic", model=ModelSettings(n_units=2, n_dense=3, kernel=5))

    class Windows:
        axes, activities = ("a", "b"), ("x", "y", "z", "w")

        class train:  # noqa: N801
            length = 10

    macs = 2 * 10 * 5 * 2 + 2 * (2 * 10 * 5 * 2 * 2) + (2 * 10 * 2) * 3 + 3 * 4
    assert training.operations_per_window(cfg, Windows) == 2 * 3 * macs


def test_the_account_of_training_names_the_products(tiny_windows):
    cfg = Settings("quick", "synthetic", model=ModelSettings(n_units=8, n_dense=8))
    found = training.account(cfg, tiny_windows, n_batches=2)
    shares = found["shares"]
    assert sum(shares.values()) == pytest.approx(1) and all(v >= 0 for v in shares.values())
    assert min(shares[k] for k in ("convolutions", "dense products", "ReLU", "Adam")) > 0
    products = shares["convolutions"] + shares["dense products"]
    assert found["products_alone_are_faster_by"] == pytest.approx(1 / products)


def test_who_does_not_install_is_left_out_and_says_so(monkeypatch):
    def missing():
        raise ImportError("no module named lucent")

    monkeypatch.setattr(climbing.by_lucent, "render", missing)
    monkeypatch.setattr(climbing.measure, "peak_mib", lambda run: 0.0)
    model = made_model(batch_norm=False)
    network = SimpleNamespace(model=model, trunk=folded_trunk(model))
    th = xr.DataArray(np.full((3, 6), 0.2), dims=("layer", "unit"), coords={"layer": list(network.trunk.layers)})
    table = climbing.compare(network, th, N_AXES, 1, "cpu")
    assert table.pop("lucent") == {"left_out": "does not install here: no module named lucent"}
    assert len(table) == 5 and all("times_faster_than_one_at_a_time" in entry for entry in table.values())
    assert all(min(entry["us_per_signal_step"].values()) > 0 for entry in table.values())
    assert all(p.requires_grad for p in model.parameters()), "the network itself stays as it was"
    assert "lucent_one_step_g" not in climbing.agreement(network, th, N_AXES, n_units=1)


def test_floors_and_exponents():
    assert measure.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    table = {"ours": {"us_per_signal_step": dict.fromkeys(("conv1", "conv2", "conv3"), 10.0)}}
    machine = {"product_gflops": 100.0, "convolution_gflops": 50.0, "copy_gb_s": 10.0}
    floor = climbing.floors(table, units=64, taps=5, machine=machine)
    # one unit of conv3, all of conv2 and conv1, there and back
    assert floor["conv3"]["operations"] == 4 * (30 * 5 * 64 + 30 * 5 * 64 * 64 + 30 * 5 * 64)
    assert floor["conv1"]["operations"] == 4 * 30 * 5
    assert floor["conv3"]["ours_over_products"] == pytest.approx(10 / (floor["conv3"]["operations"] / 1e5))
    assert floor["conv3"]["us_by_convolutions"] == pytest.approx(2 * floor["conv3"]["us_by_products"])


def test_tables_name_everybody():
    entry = {"us_per_signal_step": dict.fromkeys(("conv1", "conv2", "conv3"), 1.5)}
    entry |= {"times_faster_than_one_at_a_time": 70.25, "peak_mib": 12.0}
    found = {"prepare_s": 1.0, "ms_per_piece": 2.0, "all_pieces_s": 30.0, "times_slower_than_ours": 4.0, "peak_mib": 5}
    timed = {"ms_per_batch": 20.0, "gflops": 50.0, "share_of_convolution_rate": 0.5}
    entry["us_per_signal_step"]["mean"] = 1.5
    result = {
        "machine": {
            "device": "a processor",
            "threads": 2,
            "product_gflops": 100,
            "convolution_gflops": 90,
            "copy_gb_s": 9,
        },
        "caveat": "made-up data",
        "rounds": 3,
        "dataset": "synthetic",
        "profile": "quick",
        "maximization": {"ours": entry, "others": entry, "lucent": {"left_out": "no lucent here"}},
        "floors": {la: {"us_by_products": 1.0} for la in ("conv1", "conv2", "conv3")},
        "grid": {"networks": 5, "signals": 15360, "steps": 5000, "tolerance_g": 1e-6, "seconds": 360.0},
        "search": {"ours": found | {"pieces": 77}, "absent": {"left_out": "does not install here"}},
        "training": {"networks": 5, "contenders": {"side by side": timed}},
    }
    result["floors"]["conv3"] |= {"ours_over_products": 1.25, "us_by_copies": 1.5}
    result["training"] |= {"side_by_side_is_faster_by": 1.05, "ceiling_is_faster_by": 1.88}
    text = readme.benchmark_tables(result)
    for part in ("a processor", "made-up data", "| others | 1.5 | 1.5 | 1.5 | 70.2 | 12 |", "6.0 minutes", "15,360"):
        assert part in text, part
    assert "| lucent | - | - | - | - | no lucent here |" in text
    assert "all 77 pieces" in text and "does not install here" in text and "| side by side | 20.0 | 50 | 50 % |" in text
    result["agreement"] = {"float64_200_steps_g": 9e-16, "float32_one_step_g": 3e-8, "lucent_one_step_g": 2e-8}
    result["agreement_by_method"] = {"n_units": 10, "n_steps": 200}
    result["agreement_by_method"]["methods"] = {"unit-norm": {"engine": 4e-7, "reordered": 2e-7, "step": 3e-15}}
    result["full_runs"] = {"conv1": {k: {"mean_objective": 0.6246, "failed": 2} for k in ("engine", "autograd")}}
    result["scaling"] = {"steps": {"exponent": 0.85}}
    shares = {"convolutions": 0.5, "dense products": 0.25, "the rest": 0.25}
    result["training"]["account"] = {"shares": shares, "products_alone_are_faster_by": 4 / 3}
    text = readme.benchmark_tables(result)
    for part in (
        "9e-16 G after 200",
        "in float32: lucent 2e-08 G.",
        "unit-norm 4e-07 (2e-07)",
        "at most 3e-15 G apart",
        "0.6246 (autograd)",
        "1.25 times the floor",
        "steps to the power 0.85",
        "1.88 times",
        "convolutions 50 %, dense products 25 %, the rest 25 %",
        "1.33 times as fast",
    ):
        assert part in text, part
    summary = readme.benchmark_summary(result)
    assert "| Activation Maximization: others | 1.5 µs a signal and step | 1.0 | 12 |" in summary
    assert "| Ssim search: ours | 30 s for 77 pieces | 4.0 | 5 |" in summary and "absent" not in summary
    for table, part in ((readme.benchmark_tables, "step"), (readme.benchmark_summary, "us_per_signal_step")):
        older = result | {
            "agreement_by_method": {"n_units": 1, "n_steps": 1, "methods": {"naive": {"engine": 0.0, "reordered": 0.0}}}
        }
        older |= {"maximization": {"ours": {}}} if part != "step" else {}
        with pytest.raises(ValueError, match=f"have no '{part}'.*run `make bench PROFILE=quick DATASET=synthetic`"):
            table(older)


def test_parts_measured_again_leave_the_others_and_the_rates_these_are_shares_of():
    before = {"rounds": 5, "machine": "fast", "training": 1, "search": 2}
    found = {"rounds": 3, "machine": "slow", "search": 3}
    assert merged(before, found, ["search"]) == {"rounds": 3, "machine": "fast", "training": 1, "search": 3}
    assert merged(before, found | {"training": 4}, ["search", "training"])["machine"] == "slow"
    assert merged({}, found, ["search"]) == found and merged(before, found, [])["machine"] == "slow"
