"""Tables of measures: what each row says, and who is better."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from made_trunks import made_trunk

from harvis_utils.maximization.paper_methods import METHODS, PROPOSED
from harvis_utils.metrics import realism
from harvis_utils.metrics.intervals import interval, paired
from harvis_utils.paper import comparing, variants
from harvis_utils.settings import REPOSITORY, MaximizationSettings, Settings
from harvis_utils.store.files import read_json

LAYERS, SEEDS, UNITS = ["conv1", "conv2"], 5, 8


def made_measures(names=("a", "b"), dimension="technique", seed=0) -> xr.Dataset:
    """Measures of made signals: the first name is stronger in every unit by 0.1, and farther from real windows."""
    rng = np.random.default_rng(seed)
    shape = (SEEDS, len(LAYERS), UNITS)
    base = {
        "reached": rng.uniform(0.2, 0.6, shape),
        "distance_ratio": rng.uniform(1, 2, shape),
        "realism_p": rng.uniform(0.1, 0.5, shape),
        "spectral_distance": rng.uniform(0.2, 0.4, shape),
        "matched_ssim": rng.uniform(0.01, 0.02, shape),
        "displacement_g": rng.uniform(0.5, 1.0, shape),
    }
    shift = {"reached": 0.1, "distance_ratio": 1.0, "realism_p": 0.0, "matched_ssim": 0.0}
    dims = ("seed", dimension, "layer", "unit")
    values = {
        name: (dims, np.stack([v + shift.get(name, 0) * (k == 0) for k in range(len(names))], 1))
        for name, v in base.items()
    }
    values["failed"] = (dims, np.zeros((SEEDS, len(names), *shape[1:]), bool))
    values["dead"] = (("seed", "layer", "unit"), np.zeros(shape, bool))
    coords = {"seed": np.arange(SEEDS), dimension: list(names), "layer": LAYERS, "unit": np.arange(UNITS)}
    return xr.Dataset(values, coords=coords)


def test_table_has_means_and_intervals_of_every_measure():
    made = made_measures()
    made["failed"][{"technique": 1, "layer": 0, "unit": 0, "seed": 0}] = True
    found = comparing.table(made, "technique")
    assert list(found.index) == [(m, la) for m in "ab" for la in LAYERS]
    assert found.loc[("b", "conv1"), "failed"] == pytest.approx(1 / (SEEDS * UNITS))
    assert (found["networks"] == SEEDS).all()
    values = made["realism_p"].sel(technique="b", layer="conv2").values
    point, (low, high) = interval(values)
    row = found.loc[("b", "conv2")]
    assert (row["realism p"], row["realism p low"], row["realism p high"]) == (point, low, high)
    for column in comparing.MEASURES:
        assert (found[f"{column} low"] <= found[column]).all() and (found[column] <= found[f"{column} high"]).all()


def test_differences_say_who_is_better_on_measures_that_have_a_better_side():
    made = made_measures()
    found = comparing.differences(made, "technique", [("a", "b"), ("b", "a")]).set_index(["first", "layer", "measure"])
    a, b = (made["reached"].sel(technique=m, layer="conv1").values for m in "ab")
    row, twin = found.loc[("a", "conv1", "activation")], paired(a, b)
    assert (row["difference"], row["low"], row["high"]) == (twin.mean, *twin.interval)
    assert row["difference"] == pytest.approx(0.1) and row["dominance"] == 1 and row["better"] == "a"
    assert (row["networks"], row["units"]) == (SEEDS, SEEDS * UNITS)
    for first in "ab":  # whoever comes first, the better one is the same
        assert set(found.loc[(first, slice(None), "activation"), "better"]) == {"a"}
        assert set(found.loc[(first, slice(None), "nearness"), "better"]) == {"b"}
        assert set(found.loc[(first, slice(None), "realism p"), "better"]) == {""}, "equal"
    moved = made.copy(deep=True)
    moved["displacement_g"][{"technique": 0}] += 1
    moved["spectral_distance"][{"technique": 0}] += 1
    found = comparing.differences(moved, "technique", [("a", "b")]).set_index(["layer", "measure"])
    assert set(found.loc[(slice(None), "moved by [G]"), "better"]) == {""}, "moving is neither good nor bad"
    assert set(found.loc[(slice(None), "spectral distance"), "better"]) == {"b"}, "nearer is better"


def test_two_groups_are_joined_by_what_both_have():
    first, second = made_measures(("p",), "control"), made_measures(("q", "r"), "control", seed=1)
    first["extra"] = first["reached"]
    both = comparing.joined(first, second, "control")
    assert list(both["control"].values) == ["p", "q", "r"] and "extra" not in both
    assert both["dead"].dims == ("seed", "layer", "unit")
    xr.testing.assert_equal(both["reached"].sel(control="q"), second["reached"].sel(control="q"))


def test_the_proposed_method_is_compared_with_all_others_and_with_controls():
    methods = made_measures((*METHODS, variants.LIKELIEST_TRIGGER))
    controls = made_measures(("flat-zero", "random-weights"), "control", seed=1)
    found = comparing.against(methods, controls).drop_duplicates(["first", "second"])
    others = [m for m in METHODS if m != PROPOSED]
    assert found["second"].tolist() == [*others, PROPOSED, "flat-zero"]
    assert found["first"].tolist() == [*[PROPOSED] * len(others), variants.LIKELIEST_TRIGGER, PROPOSED]


def test_what_recall_depends_on_is_said_in_words():
    row = {"factor": "noise_g", "level": 0.1, "seed": 3, "recall": 0.2, "random_recall": 0.1, "macro_f1": 0.9}
    found = comparing.by_factor(pd.DataFrame([row, row | {"factor": "epochs", "level": 6.0}]))
    assert found.set_index(["factor", "of"])["recall, macro F1"].to_dict() == {
        (factor, name): share
        for factor in ("noise added [G]", "epochs")
        for name, share in (("recall", 0.2), ("random weights", 0.1), ("macro F1", 0.9))
    }


def test_a_method_that_does_nothing_keeps_its_starts_apart(tiny_windows):
    cfg = Settings("quick", "synthetic", device="cpu", maximization=MaximizationSettings(n_steps=0))
    trunk = made_trunk(4, 0)
    layers = list(trunk.layers)
    th_eap = xr.DataArray(np.ones((len(layers), 4)), {"layer": layers}, ("layer", "unit"))
    found = comparing.spreads(cfg, tiny_windows, SimpleNamespace(trunk=trunk), th_eap, ["naive", "L2+TV"], [0, 3])
    assert found.index.tolist() == [(layer, name) for layer in layers for name in ("naive", "L2+TV")]
    assert np.allclose(found, 1)


def test_activation_beyond_the_threshold_is_no_merit_and_failure_is_no_gap():
    made = made_measures()
    made["reached"][:, 1, 0] = 7.0
    made["failed"][:, 1, 1] = True
    made["distance_ratio"][:, 1, 1] = np.nan
    assert float(realism.activation(made).max()) == 1
    near = realism.nearness(made)
    assert float(near.isel(technique=1, layer=1).max()) == 0 and near.notnull().all()
    made["dead"][:, 0, 0] = True
    made["reached"][:, :, 0, 0] = np.nan
    made["distance_ratio"][:, :, 0, 0] = np.nan
    assert realism.nearness(made).isel(layer=0, unit=0).isnull().all()


def test_what_a_measure_lacks_is_left_out_and_all_of_it_is_nan():
    made = made_measures()
    made["matched_ssim"][{"technique": 0}] = np.nan
    found = comparing.table(made, "technique")
    missing = [f"matched Ssim, log10 G²{end}" for end in ("", " low", " high")]
    assert found.loc["a", missing].isna().all(axis=None) and found.loc["b", missing].notna().all(axis=None)


def test_protocols_are_judged_by_their_published_networks():
    table = comparing.protocols("dsads")
    assert table.index.tolist() == ["desk", "paper"] and table["epochs"].tolist() == [10, 200]
    published = read_json(REPOSITORY / "reports/published/desk/dsads/results.json")["training"]["macro_f1"]
    desk, paper = table.loc["desk"], table.loc["paper"]
    assert desk["macro F1"] == pytest.approx(published["mean"], rel=1e-12) and desk["networks"] == 5
    assert desk["is it so"] == "not testable" and "these were trained for 10" in desk["why"]
    assert paper["macro F1 low"] < paper["macro F1"] < paper["macro F1 high"] and paper["the paper's"] == 0.737
    assert paper["is it so"] == "yes" and f"minus the paper's is {paper['macro F1'] - 0.737:+.2g} (" in paper["why"]


def test_layers_in_which_a_control_is_nearer_are_named():
    rows = [("conv1", PROPOSED), ("conv2", "sine"), ("conv3", ""), ("conv4", "sine")]
    table = pd.DataFrame(rows, columns=["layer", "better"]).assign(first=PROPOSED, second="sine", measure="nearness")
    others = table.assign(better=PROPOSED, second="noise"), table.assign(better=PROPOSED, measure="activation")
    found = comparing.nearer(pd.concat([table, *others]), "sine")
    assert found == ("conv1", "conv2, conv4") and comparing.nearer(others[0][:0], "sine") == ("no layer",) * 2
