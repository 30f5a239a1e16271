"""The yardstick finds what changed, names it, and lets through what its rules allow and nothing else."""

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from safetensors.numpy import save_file

from workflow import yardstick
from workflow.yardstick import Rule, Rules

CHANGED = Rule("changed", ("*.json: provenance*", "tables/words.csv"))
MONTE_CARLO = (
    Rule("Monte Carlo", ("tables/*: * low", "tables/*: * high", "*: */interval/*", "*: */[12]"), width=0.1),
    Rule("Monte Carlo", ("tables/*: p @ plain",), absolute=0.2),
    Rule("Monte Carlo", ("tables/*: p",), absolute=0.05),
    Rule("Monte Carlo", ("tables/*: p-value",), draws=1000),
    Rule("Monte Carlo", ("tables/*: beats",), beyond=0.5),
    Rule("Monte Carlo", ("store/chance: *",), beyond=1.0),
)
RULES = Rules((CHANGED, *MONTE_CARLO), {"method": "way", "naive": "plain"})


def made_run(folder, **changes):
    """A run of one table and one JSON file; ``changes`` are cells of the table's second row."""
    row = {
        "method": "L2+TV",
        "ssim": 0.25,
        "ssim low": 0.2,
        "ssim high": 0.3,
        "p": 0.5,
        "p-value": 0.04,
        "units": 3,
    } | changes
    table = pd.DataFrame([{**row, "method": "naive", "ssim": 0.125}, row])
    (folder / "tables").mkdir(parents=True)
    table.to_csv(folder / "tables" / "scores.csv", index=False)
    content = {"provenance": {"git": str(folder)}, "claims": [{"id": "C1", "interval": [1.0, 2.0]}], "gain": [0, -1, 1]}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def runs(tmp_path):
    return made_run(tmp_path / "a"), made_run(tmp_path / "b")


def edit(run, change):
    """Change the table of a run in place."""
    path = run / "tables" / "scores.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)


def wrong(reference, current, rules=RULES):
    """The lines of the verdicts that are differences, by file."""
    return {v.file: str(v) for v in yardstick.compare_reports(rules, reference, current) if v.differences}


def test_equal_runs_pass_and_every_value_is_counted(runs):
    verdicts = yardstick.compare_reports(RULES, *runs)
    assert not any(v.differences for v in verdicts)
    said = sorted(map(str, verdicts))
    assert said == [
        "ok       results.json: 2 exact, 4 Monte Carlo, 1 changed",
        "ok       tables/scores.csv: 6 exact, 8 Monte Carlo",
    ]


def test_the_last_digit_of_an_exact_cell_and_an_exact_text_are_found_and_named(tmp_path, runs):
    found = wrong(runs[0], made_run(tmp_path / "c", ssim=float(np.nextafter(0.25, 1))))
    assert list(found) == ["tables/scores.csv"] and "1 differ" in found["tables/scores.csv"]
    assert "row 2 (L2+TV, 3), column 'ssim': '0.25', now '0.25000000000000006' (exact)" in found["tables/scores.csv"]
    found = wrong(made_run(tmp_path / "d", verdict="yes"), made_run(tmp_path / "e", verdict="no"))
    assert "'yes', now 'no'" in found["tables/scores.csv"]


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({"ssim low": 0.209}, True),  # a tenth of the width of 0.1 is 0.01
        ({"ssim low": 0.211}, False),
        ({"ssim high": 0.2901}, True),
        ({"p": 0.54}, True),
        ({"p": 0.56}, False),
        ({"p": ""}, False),
        ({"p": float("inf")}, False),
        ({"p-value": 0.04 + 0.039}, True),  # 4.5 * sqrt(2 * 0.04 * 0.96 / 1000)
        ({"p-value": 0.04 + 0.040}, False),
    ],
)
def test_a_monte_carlo_value_may_move_within_its_tolerance(tmp_path, runs, changes, passes):
    found = wrong(runs[0], made_run(tmp_path / "c", **changes))
    assert bool(found) != passes
    assert passes or f"column {next(iter(changes))!r}" in found["tables/scores.csv"]


@pytest.mark.parametrize(("at", "value", "passes"), [(0, 1.09, True), (0, 1.11, False), (1, 2.11, False)])
def test_the_ends_of_intervals_in_json_find_each_other(runs, at, value, passes):
    content = json.loads((runs[1] / "results.json").read_text())
    content["claims"][0]["interval"][at] = value
    content["gain"][2] = 1.2 if passes else 1.21  # a point with its two ends
    (runs[1] / "results.json").write_text(json.dumps(content))
    assert bool(wrong(*runs)) != passes


def test_a_rule_may_name_a_row(runs):
    edit(runs[1], lambda table: table.assign(p=[0.65, 0.5]))
    assert not wrong(*runs)
    edit(runs[1], lambda table: table.assign(p=[0.5, 0.65]))
    assert "row 2" in wrong(*runs)["tables/scores.csv"]


@pytest.mark.parametrize(("flips", "passes"), [(1, True), (2, False)])
def test_a_share_of_the_values_under_a_rule_may_lie_outside(tmp_path, runs, flips, passes):
    for run, beats in zip(runs, (["yes", "yes"], ["no"] * flips + ["yes"] * (2 - flips)), strict=True):
        edit(run, lambda table, beats=beats: table.assign(beats=beats))
    assert bool(wrong(*runs)) != passes
    said = {v.file: str(v) for v in yardstick.compare_reports(RULES, *runs)}["tables/scores.csv"]
    assert ("; 1 beyond tolerance, which is few" in said) == passes


def test_intervals_that_all_move_a_little_are_no_chance(tmp_path):
    ends = pd.DataFrame({"method": [f"m{i}" for i in range(20)], "x low": 0.0, "x high": 1.0})
    for name, by in (("a", 0.0), ("b", 0.02), ("c", 0.04)):
        (tmp_path / name / "tables").mkdir(parents=True)
        moved = ends.assign(**{"x low": by, "x high": 1 - by})
        moved.to_csv(tmp_path / name / "tables" / "many.csv", index=False)
    assert not wrong(tmp_path / "a", tmp_path / "b")
    assert "typically by 40% of their tolerance" in wrong(tmp_path / "a", tmp_path / "c")["tables/many.csv"]


def test_missing_and_new_files_columns_rows_and_paths_are_differences(tmp_path, runs):
    edit(runs[1], lambda table: table.rename(columns={"ssim": "other"}).head(1))
    (runs[1] / "results.json").unlink()
    (runs[1] / "more.json").write_text("{}")
    assert set(wrong(*runs)) == {"tables/scores.csv", "results.json", "more.json"}
    verdict = next(v for v in yardstick.compare_reports(RULES, *runs) if v.file == "tables/scores.csv")
    assert len(verdict.differences) == 3


def test_a_named_change_is_let_through(tmp_path, runs):
    (runs[0] / "tables" / "words.csv").write_text("a\n1\n")
    assert not wrong(*runs)  # the whole file is gone
    assert "tables/words.csv" in wrong(*runs, rules=Rules(MONTE_CARLO))
    assert "results.json" in wrong(*runs, rules=Rules(MONTE_CARLO))


def test_renamed_columns_and_texts_are_followed_in_any_order_of_columns_and_rows(runs):
    edit(runs[1], lambda table: table.iloc[::-1, ::-1])
    assert not wrong(*runs)
    edit(runs[1], lambda table: table.rename(columns={"method": "way"}).replace("naive", "plain"))
    assert not wrong(*runs)
    assert wrong(*runs, rules=Rules(RULES.rules))


def made_result(store, stage, key, name="signals.nc", **arrays):
    """A stored result of xarray or, by its name, safetensors arrays."""
    folder = store / stage / key
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"provenance": {"seed": 0, "layer": "conv1"}}))
    if name.endswith(".nc"):
        kept = {k: ([f"{k}{i}" for i in range(v.ndim)], v) for k, v in arrays.items()}
        xr.Dataset(kept).to_netcdf(folder / name, engine="h5netcdf")
    else:
        save_file(arrays, folder / name)
    return folder


def test_renamed_and_regrouped_arrays_are_found_by_content(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 8, 4, 30), np.float32)
    weights = rng.random((4, 1, 5, 1), np.float32)
    a, b, c = (tmp_path / name for name in "abc")
    made_result(a, "signals", "k1", signal=first)
    made_result(a, "signals", "k2", signal=second)
    made_result(a, "networks", "k", "weights.safetensors", **{"c.weight": weights})
    made_result(a, "chance", "k", draws=rng.random(5))
    made_result(b, "ascents", "x", waves=np.stack([second, first]), labels=np.array(["a", "bc"]))
    made_result(b, "training", "y", "trained.safetensors", conv=weights.squeeze())
    assert not any(v.differences for v in yardstick.compare_arrays(RULES, a, b))

    first[3, 2, 7] = np.nextafter(first[3, 2, 7], np.float32(2))
    made_result(c, "ascents", "x", waves=np.stack([second, first]))
    found = {v.file: v for v in yardstick.compare_arrays(RULES, a, c)}
    assert [len(found[f"store/{stage}"].differences) for stage in ("signals", "networks", "chance")] == [1, 1, 0]
    said = str(found["store/signals"])
    assert "k1/signals.nc, signal (8, 4, 30): 1 of 32 rows not found, {'seed': 0, 'layer': 'conv1'}" in said
    with pytest.raises(ValueError, match="no arrays"):
        yardstick.compare_arrays(RULES, tmp_path / "nowhere", a)


def test_the_command_line_says_so_and_ends_with_one(runs, capsys):
    assert yardstick.main([str(runs[0]), str(runs[0])]) == 0
    (runs[1] / "results.json").unlink()
    assert yardstick.main([str(path) for path in runs]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("DIFFERS  results.json") and said[-1].endswith("1 differ beyond their class")


@pytest.mark.parametrize(
    "rule",
    [
        '[[monte_carlo]]\nwhere = ["a"]\nabsolute = 1',
        '[[monte_carlo]]\nwhere = ["a"]\nreason = "b"',
        '[[changed]]\nwhere = ["a"]\nreason = "b"\nabsolute = 1',
    ],
)
def test_a_rule_needs_a_reason_and_a_tolerance_where_it_is_of_monte_carlo(tmp_path, rule):
    (tmp_path / "classes.toml").write_text(rule)
    with pytest.raises(ValueError, match="needs a reason"):
        yardstick.load_rules(tmp_path / "classes.toml")
