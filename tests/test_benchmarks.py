"""Every contender of the benchmarks finds what ours finds; what is compared is the same work."""

import importlib.util
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from benchmarks import agreement, climbing, generators, networks, search, tables, training
from harvis_utils.data.windowing import Split
from harvis_utils.maximization import paper_methods
from harvis_utils.networks.sfhf import SFHF, folded_trunk
from harvis_utils.paper import generating, style_transfer
from harvis_utils.settings import REPOSITORY, ModelSettings, SimilaritySettings, load_settings
from harvis_utils.store.files import read_json

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
    monkeypatch.setattr(torch, "compile", lambda function: function)  # minutes on two cores
    if not importlib.util.find_spec("lucent"):
        monkeypatch.setattr(climbing, "lucent_render", lambda: SimpleNamespace(render_vis=render_vis))
    units, th = torch.tensor([0, 2, 5]), torch.tensor([0.2, np.nan, 0.3, 0.2, 0.2, 0.1])
    for dtype, n_steps, within in ((torch.float64, 20, 1e-9), (torch.float32, 1, 1e-5)):
        model = made_model(batch_norm=dtype == torch.float32).to(dtype)
        trunk, whole = folded_trunk(model).to("cpu", dtype), climbing.OnAllAxes(model, N_AXES)
        task = climbing.Task(layer, th.to(dtype), units, n_steps)
        found = climbing.engine(trunk, task)
        others = {
            "one": climbing.one_at_a_time(whole, task),
            "batch": climbing.batch_of_whole_networks(whole, task),
            "layer": climbing.layer_by_autograd(trunk, task),
            "autograd": climbing.own_units_by_autograd(trunk, task),
            "lucent": climbing.lucent_itself(whole, task),
            **{
                gradient.__name__: climbing.compiled(gradient(trunk, task), task.preset)(task)
                for gradient in (climbing.gradient_of_batch, climbing.gradient_of_each)
            },
        }
        for name, signals in others.items():
            assert signals.dtype == found.dtype and (signals - found).abs().max() < within, name
        assert ((found - task.start).abs().amax(1) > 0.05).all(), "something was climbed"
        assert not any(module._forward_hooks for module in model.modules()), "no hook is left behind"


def test_units_in_another_order_compute_the_same_maps():
    trunk = folded_trunk(made_model(batch_norm=False)).to("cpu", torch.float64)
    other, x = agreement.reordered(trunk, "conv3"), torch.randn(5, 30, dtype=torch.float64)
    assert not torch.equal(other.weights[0], trunk.weights[0])
    assert torch.allclose(other.feature_map(x, "conv3"), trunk.feature_map(x, "conv3"), atol=1e-12)


def test_the_plain_loop_climbs_every_method_under_both_presets_as_the_engine_does():
    trunk = folded_trunk(made_model(batch_norm=False))
    network = SimpleNamespace(trunk=trunk)
    th = xr.DataArray(np.full((3, 6), 0.2), dims=("layer", "unit"), coords={"layer": list(trunk.layers)})
    found = agreement.by_method(network, th, n_units=2, n_steps=20)
    assert list(found["methods"]) == list(paper_methods.METHODS)
    for name, worst in found["methods"].items():
        assert max(worst.values()) < 1e-9, name
    th[2, 0] = np.nan  # a dead unit is not climbed
    assert agreement.by_method(network, th, n_units=2, n_steps=1)["methods"]["naive"]["engine"] < 1e-9


def test_the_engine_is_followed_step_by_step():
    trunk = folded_trunk(made_model(batch_norm=False)).to("cpu", torch.float64)
    th = torch.full((6,), 0.2, dtype=torch.float64)
    task = climbing.Task("conv2", th, torch.tensor([1, 4]), 5, "unit-norm")
    path, maps_of = agreement.engine_path(trunk, task), climbing.layer_maps(trunk, task)
    assert torch.equal(path[-1], climbing.engine(trunk, task))
    moved = path.clone()
    # only the step that begins there ends elsewhere, and what its moments touch
    moved[2] += 0.1 * torch.arange(30) / 30
    ends, others = (torch.stack([x.clone() for x in climbing.plain_steps(task, maps_of, p)]) for p in (path, moved))
    assert torch.allclose(ends, path[1:], atol=1e-12) and torch.equal(ends[:2], others[:2])
    assert (ends[2] - others[2]).abs().max() > 1e-3


def test_operations_of_one_window():
    """Counted by hand for a small network: three convolutions, two dense layers, there and twice back."""
    model = SFHF(2, 10, 4, ModelSettings(n_units=2, n_dense=3, kernel=5))
    macs = 2 * 10 * 5 * 2 + 2 * (2 * 10 * 5 * 2 * 2) + (2 * 10 * 2) * 3 + 3 * 4
    assert training.operations_per_window(model, 2, 10) == 2 * 3 * macs
    assert all(p.grad is None for p in model.parameters()), "nothing is left behind"


def test_who_does_not_install_is_left_out_and_says_so(monkeypatch):
    def missing():
        raise ImportError("no module named lucent")

    monkeypatch.setattr(climbing, "lucent_render", missing)
    monkeypatch.setattr(torch, "compile", lambda function: function)  # minutes on two cores
    monkeypatch.setattr(climbing.measure, "peak_mib", lambda run: 0.0)
    whole = climbing.contenders

    def shortened(*about) -> dict:
        return {name: (run, replace(task, n_steps=4)) for name, (run, task) in whole(*about).items()}

    monkeypatch.setattr(climbing, "contenders", shortened)
    model = made_model(batch_norm=False)
    network = SimpleNamespace(model=model, trunk=folded_trunk(model))
    th = xr.DataArray(np.full((3, 6), 0.2), dims=("layer", "unit"), coords={"layer": list(network.trunk.layers)})
    table = climbing.compare(network, th, N_AXES, 1, "cpu")
    assert table.pop("lucent") == {"left_out": "does not install here: no module named lucent"}
    assert len(table) == 7 and all("times_faster_than_one_at_a_time" in entry for entry in table.values())
    assert all(min(entry["us_per_signal_step"].values()) > 0 for entry in table.values())
    assert all(p.requires_grad for p in model.parameters()), "the network itself stays as it was"
    assert "lucent_one_step_g" not in agreement.one_step(network, th, N_AXES, n_units=1)


def test_floors_count_what_a_step_needs_at_least():
    table = {"ours": {"us_per_signal_step": dict.fromkeys(("conv1", "conv2", "conv3"), 10.0)}}
    machine = {"product_gflops": 100.0, "copy_gb_s": 10.0}
    floor = climbing.floors(table, units=64, taps=5, machine=machine)
    # one unit of conv3, all of conv2 and conv1, there and back
    assert floor["conv3"]["operations"] == 4 * (30 * 5 * 64 + 30 * 5 * 64 * 64 + 30 * 5 * 64)
    assert floor["conv1"]["operations"] == 4 * 30 * 5
    assert floor["conv3"]["ours_over_products"] == pytest.approx(10 / (floor["conv3"]["operations"] / 1e5))
    # two hidden layers and the signal, written and read there and back
    assert floor["conv3"]["us_by_copies"] == pytest.approx(4 * 4 * 30 * (2 * 64 + 1) / 1e4)


def test_other_networks_are_climbed_as_by_a_loop_that_stops_at_the_place():
    for name, place in networks.places().items():
        n_axes = 1 if place.by_axis else networks.N_AXES
        task = climbing.Task(place.module, torch.ones(place.n_units), torch.tensor([0, 5]), 3, "naive", axes=n_axes)
        found = networks.ours(place, task)
        assert (found - networks.one_at_a_time(place, task)).abs().max() < 1e-4, name
        assert (found - task.start).abs().max() > 0.05, name
        assert not any(module._forward_hooks for module in place.network.modules()), name


def test_the_search_finds_what_brute_force_finds():
    rng = np.random.default_rng(0)
    start = np.arange(0, 900, 15)
    split = Split(rng.normal(size=(930, 3)).astype(np.float32), start, *[np.zeros_like(start)] * 4, length=30)
    found = search.compare(split, split, SimilaritySettings(piece=10, n_similar=4), 1, n_pieces=20)
    assert found["segments"] == 180 and found["pieces"] == 3 * (start[-1] + 21)
    assert found["largest_difference_g2"] < 1e-6
    assert "| brute force |" in tables.PARTS["search"](found)


def test_operations_to_a_place_are_counted_there_and_back():
    convolutions = networks.places()["DeepConvLSTM, fourth convolution"]
    # no padding: 26, 22, 18 and 14 samples of one axis; the gradient of the first goes to one channel
    macs = 5 * (26 * 64 + (22 + 18 + 14) * 64 * 64)
    task = climbing.Task(convolutions.module, torch.ones(64), torch.arange(1), 1, "naive")
    assert networks.operations(convolutions, task) == 2 * 2 * macs


def test_every_part_of_the_published_benchmarks_has_its_table():
    result = read_json(REPOSITORY / "reports/published/benchmarks/cpu.json")
    assert set(tables.PARTS) == set(result) - {"dataset", "profile", "caveat", "date", "rounds", "machine"}
    assert tables.page(result).count("|---|") >= len(tables.PARTS) - 1  # the grid is a sentence
    for contender in result["maximization"]:
        shown = contender not in tables.NOT_IN_SUMMARY
        assert f"| {contender} |" in tables.page(result) and (f": {contender} |" in tables.summary(result)) == shown
    result["maximization"]["lucent"] = {"left_out": "does not install here"}
    assert "does not install here |" in tables.page(result) and "lucent" not in tables.summary(result)
    del result["maximization"]["ours"]["peak_mib"], result["maximization"]["lucent"]
    result |= {"maximization": {"ours": result["maximization"]["ours"]}, "caveat": "made-up data"}
    run = "PROFILE=desk DATASET=dsads"
    for table in (tables.page, tables.summary):
        with pytest.raises(ValueError, match=f"have no 'peak_mib'.*run `make bench {run}`"):
            table(result)
    del result["maximization"]
    assert "**made-up data**" in tables.page(result)


def test_the_cost_of_generators_is_a_projection_from_their_trainings():
    cfg = load_settings("paper")
    table = pd.DataFrame(generators.trainings(cfg), columns=["notebook", "kind", "trainings", "steps"])
    by = table.groupby("notebook")["trainings"].sum()
    assert by["17"] == 45 and by["17b"] == 5 * 300 + 6 * 5 + 10 + 2 * 5 and by["18b"] == 2 * 5 * 2 + 5
    assert set(table["kind"]) == {*generating.ROWS, *style_transfer.settings_of(cfg.styles)}
    told = generators.told(table.assign(**{"core hours": 2.0}))
    assert told.startswith("Projected") and "18 for notebook 17, 12 for notebook 17b, 14 for notebook 18b" in told
    assert generators.seconds_a_step(lambda number: time.sleep(0.02 if number > 7 else 1e-3), 7, 2) >= 0.02


def test_signals_of_two_devices_are_compared_unit_by_unit_and_as_a_whole():
    trunk, rng = folded_trunk(made_model(batch_norm=False)), np.random.default_rng(0)
    one = xr.DataArray(
        rng.normal(size=(2, 6, 30)), dims=("technique", "unit", "time"), coords={"technique": ["a", "b"]}
    )
    other = one.copy()
    other[0, 1, 3] += 1.0
    other[1, 2:4] = 0.0
    table = agreement.by_device(trunk, "conv1", one, other, np.array([True] * 5 + [False])).set_index("technique")
    assert table["units"].tolist() == [5, 5] and table["differ"].tolist() == [0.2, 0.4]
    assert table.loc["a", "largest"] == pytest.approx(1.0, abs=1e-6)
    assert table["flat, first"].tolist() == [0, 0] and table["flat, second"].tolist() == [0, 0.4]
    same = agreement.by_device(trunk, "conv1", one, one, np.ones(6, bool))
    assert (same[["p of movement", "p of output"]].to_numpy() == 1).all()
