"""Verdicts: edges of standings, and claims that follow what is planted."""

import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import xarray as xr

from harvis_utils.maximization.paper_methods import METHODS, PROPOSED
from harvis_utils.metrics.similarity import CONTROLS
from harvis_utils.paper import claims
from harvis_utils.settings import REPOSITORY
from harvis_utils.store.files import read_json

LAYERS, UNITS = ("conv1", "conv2", "conv3"), 8
ACTIVITIES = ("sitting", "playing basketball", "running on a treadmill")
CLAIM = {c.id: c for c in claims.CLAIMS}


# -------------------------------------------------------------------------------------------- made-up evidence


def table(kind, names, n_seeds):
    """Scores that say nothing special: every unit within the paper's ordinary range, nothing failed or dead."""
    rng = np.random.default_rng(0)
    dims = {"seed": n_seeds, kind: len(names), "layer": len(LAYERS), "unit": UNITS}

    def about(value):
        return (tuple(dims), value * rng.uniform(0.98, 1.02, tuple(dims.values())))

    numbers = {"s_u": 0.1, "activation_ratio": 1.0, "activation_ratio_p95": 1.2, "peak_amplitude_g": 1.0}
    numbers |= {"high_frequency_share": 0.1, "total_variation_g": 1.0, "n_frequencies": 4.0, "shape_match": 0.95}
    off = (tuple(dims), np.zeros(tuple(dims.values()), bool))
    made = xr.Dataset(
        {name: about(value) for name, value in numbers.items()}
        | {"failed": off, "dead": off, "shape": (tuple(dims), np.full(tuple(dims.values()), "other", dtype="<U12"))},
        coords={"seed": np.arange(n_seeds), kind: list(names), "layer": list(LAYERS)},
    )
    return made.assign(nearest_share=made["s_u"].expand_dims(activity=list(ACTIVITIES)) * 0 + 1 / 3).copy(deep=True)


def evidence(n_seeds=2, dataset="dsads", epochs=200, **more):
    scores = table("technique", METHODS, n_seeds).expand_dims(preset=["literal", "calibrated"]).copy(deep=True)
    scores = scores.assign(activity_share=("activity", np.full(3, 1 / 3)))
    atlas = {"hopkins": [0.9] * n_seeds, "spread": [0.5] * n_seeds, "clusters_p": [0.01] * n_seeds}
    given = {
        "dataset": dataset,
        "epochs": epochs,
        "macro_f1": np.full(n_seeds, 0.737),
        "amplitude_threshold_g": 1.371,
        "scores": scores,
        "controls": table("control", CONTROLS, n_seeds),
        "atlas": {layer: dict(atlas) for layer in LAYERS},
    }
    return claims.Evidence(**given | more)


def put(made, method, variable, value, layer=slice(None), unit=slice(None)):
    """Plant a value for one method of the calibrated preset."""
    where = {"preset": "calibrated", "technique": method, "layer": layer}
    array = made.scores[variable].transpose("preset", "technique", "layer", "seed", "unit", ...)
    block = array.sel(where).copy()
    block[..., unit] = value
    array.loc[where] = block
    made.scores[variable] = array


def verdict(made, claim):
    return claims.judge(CLAIM[claim], made)["verdict"]


# --------------------------------------------------------------------------------------- standing


BOUNDS = {
    "met": ([1.0, 2.0], [1.2, 1.8]),  # both edges belong to the range
    "open": ([0.99, 1.5], [1.5, 2.01], [0.5, 2.5], [0.5, 1.0], None),
    "missed": ([0.5, 0.99], [2.01, 3.0]),
}


@pytest.mark.parametrize(("expected", "bounds"), [(name, one) for name, some in BOUNDS.items() for one in some])
def test_standing_at_the_edges(expected, bounds):
    assert claims.standing(bounds, 1.0, 2.0) == expected


# ---------------------------------------------------------------------------------------------- judging claims


def test_no_verdict_is_better_than_partly_below_five_networks():
    for n_seeds, expected in ((2, claims.PARTLY), (4, claims.PARTLY), (5, claims.HOLDS)):
        entry = claims.judge(CLAIM["C6"], evidence(n_seeds))
        assert entry["verdict"] == expected
        assert ("intervals over units only" in entry["why"]) == (n_seeds < 5)
        assert entry["why"].startswith("3 of 3 criteria met")


@pytest.mark.parametrize(
    ("claim", "n_seeds", "change", "expected"),
    [
        ("C1", 5, {"macro_f1": np.full(5, 0.73)}, claims.HOLDS),
        ("C1", 5, {"macro_f1": np.full(5, 0.70)}, claims.FAILS),
        ("C1", 5, {"macro_f1": np.full(5, 0.78)}, claims.FAILS),
        ("C2", 2, {}, claims.HOLDS),  # data alone: no networks are needed
        ("C2", 2, {"amplitude_threshold_g": 1.42}, claims.PARTLY),  # within 0.1, not to the rounding
        ("C2", 2, {"amplitude_threshold_g": 1.7}, claims.FAILS),
        ("C2", 2, {"dataset": "mhealth-approximate", "amplitude_threshold_g": 1.574}, claims.HOLDS),
        ("C12", 5, {"widths": {"near_duplicates": [0.5] * 5, "f1_change": [-0.005] * 5}}, claims.HOLDS),
        ("C12", 5, {"widths": {"near_duplicates": [0.5] * 5, "f1_change": [-0.1] * 5}}, claims.PARTLY),
    ],
)
def test_figures_of_the_paper_are_compared_within_their_range(claim, n_seeds, change, expected):
    assert verdict(evidence(n_seeds, **change), claim) == expected


@pytest.mark.parametrize(
    ("claim", "change", "reason"),
    [
        ("C1", {"epochs": 15}, "training was shortened to 15 of 200 epochs"),
        ("C1", {"dataset": "synthetic"}, "no figure for this data set"),
        ("C2", {"dataset": "synthetic"}, "no figure for this data set"),
        ("C9", {"dataset": "mhealth"}, "the paper tells this of DSADS only"),
        ("C10", {"dataset": "dsads"}, "the paper tells this of MHEALTH only"),
        ("C12", {}, "networks of several widths"),
    ],
)
def test_what_cannot_be_tested_says_why(claim, change, reason):
    entry = claims.judge(CLAIM[claim], evidence(**change))
    assert entry["verdict"] == claims.UNTESTABLE and reason in entry["why"]
    assert entry["ours"] is None and entry["interval"] is None and entry["criteria"] == []


EAP, EVERY = "L2+TV+EAP", slice(None)
#: claim, its verdict, and what is planted before that, beside what stands above: (method, variable, value, layer, unit)
PLANTED = [
    ("C3", claims.FAILS),
    ("C3", claims.PARTLY, ("naive", "activation_ratio_p95", 15.0), ("naive", "peak_amplitude_g", 8.0)),
    ("C3", claims.HOLDS, ("naive", "high_frequency_share", 0.6)),
    ("C3", claims.PARTLY, ("naive", "activation_ratio_p95", 60.0)),
    ("C4", claims.FAILS),
    ("C4", claims.HOLDS, ("lowpass", "failed", True)),
    ("C4", claims.PARTLY, ("lowpass", "failed", False, EVERY, slice(0, 4))),  # half: the interval crosses the edge
    ("C5", claims.HOLDS, (PROPOSED, "s_u", 0.02, "conv1"), (PROPOSED, "s_u", 0.002, ["conv2", "conv3"])),
    ("C5", claims.PARTLY, (PROPOSED, "s_u", 0.0002, "conv1")),  # now conv1 gains most
    ("C6", claims.PARTLY, (PROPOSED, "activation_ratio", 1.5, "conv2")),
    ("C6", claims.FAILS, (PROPOSED, "activation_ratio", 0.2)),
    ("C7", claims.HOLDS, *(("L2+TV+AAP", f"activation_ratio{which}", 2.0, "conv1") for which in ("", "_p95"))),
    ("C8", claims.HOLDS, (EAP, "activation_ratio", 5.0, EVERY, 0), (EAP, "total_variation_g", 3.0)),
    ("C8", claims.PARTLY, (EAP, "total_variation_g", 0.3)),
    ("C11", claims.HOLDS, (PROPOSED, "n_frequencies", 6.0, "conv3")),
    ("C11", claims.FAILS, (PROPOSED, "n_frequencies", 2.0, "conv3")),
]


@pytest.mark.parametrize("claim", sorted({name for name, *_ in PLANTED}))
def test_verdicts_follow_what_is_planted(claim):
    made = evidence(5)
    for _, expected, *planted in (one for one in PLANTED if one[0] == claim):
        for one in planted:
            put(made, *one)
        assert verdict(made, claim) == expected, planted


def test_failed_and_dead_units_are_left_out():
    made = evidence()
    put(made, PROPOSED, "s_u", 99.0, "conv1", slice(0, 2))
    put(made, PROPOSED, "failed", True, "conv1", 0)
    put(made, PROPOSED, "dead", True, "conv1", 1)
    values = made.of(PROPOSED, "s_u", "conv1")
    assert np.isnan(values[:, :2]).all() and (values[:, 2:] < 1).all()
    ratio = made.of(PROPOSED, "activation_ratio", "conv1")
    assert not np.isnan(ratio[:, 0]).any() and np.isnan(ratio[:, 1]).all()  # Ssim alone leaves failed units out


def test_shapes_have_to_lie_near_the_activities_that_the_paper_names():
    made = evidence(5)
    put(made, PROPOSED, "shape", "rising edge", unit=slice(0, 4))
    put(made, PROPOSED, "shape", "peak", unit=slice(4, 8))
    assert verdict(made, "C9") == claims.PARTLY  # the shapes match, the activities are at chance
    share = made.scores["nearest_share"]
    rising, peak = made.scores["shape"] == "rising edge", made.scores["shape"] == "peak"
    for activity, shape in ((ACTIVITIES[1], rising), (ACTIVITIES[2], peak)):
        share = xr.where((share["activity"] == activity) & shape, 0.9, share)
    made.scores["nearest_share"] = share
    assert verdict(made, "C9") == claims.HOLDS


def test_the_atlas_has_to_cluster_in_conv1_and_scatter_in_conv3():
    made = evidence(5, "mhealth")
    made.atlas["conv3"]["spread"] = [0.8] * 5
    assert verdict(made, "C10") == claims.HOLDS
    made.atlas["conv1"]["hopkins"] = [None] * 5  # too few units: no value, so not met and not missed
    entry = claims.judge(CLAIM["C10"], made)
    assert entry["verdict"] == claims.PARTLY and entry["ours"] is None
    assert [c["standing"] for c in entry["criteria"]] == ["open", "met", "met", "met"]
    for layer in made.atlas.values():
        layer |= {name: [None] * 5 for name in layer}
    entry = claims.judge(CLAIM["C10"], made)
    assert entry["verdict"] == claims.UNTESTABLE and entry["why"] == "no unit is left to measure it on"


@pytest.mark.filterwarnings("error")
def test_a_layer_without_a_unit_left_is_open():
    made = evidence(5)
    put(made, PROPOSED, "dead", True, "conv1")
    entry = claims.judge(CLAIM["C5"], made)
    assert [c["standing"] for c in entry["criteria"]] == ["open", "missed", "missed", "open", "open"]
    assert claims.judge(CLAIM["C11"], made)["verdict"] == claims.UNTESTABLE


def test_all_claims_are_judged_in_order_on_the_calibrated_preset():
    made = evidence()
    entries = claims.judge_all(made)
    assert [e["id"] for e in entries] == [f"C{i}" for i in range(1, 13)]
    put(made, "lowpass", "failed", True)
    assert claims.judge(CLAIM["C4"], made)["ours"] == 1.0
    assert claims.judge(CLAIM["C4"], dataclasses.replace(made, preset="literal"))["ours"] == 0.0


# ------------------------------------------------------------------------------------------------- what to believe


@pytest.mark.parametrize(
    ("verdict", "share", "said"),
    [
        (claims.HOLDS, 0.9, "believe it"),
        (claims.HOLDS, None, "believe it"),
        (claims.HOLDS, 0.2, "it holds, but the hyper-parameters decided it"),
        (claims.PARTLY, 0.9, "believe what the criteria meet"),
        (claims.PARTLY, 0.0, "believe little: it depends on the hyper-parameters"),
        (claims.FAILS, 0.0, "doubt it"),
        (claims.FAILS, float("nan"), "doubt it"),
        (claims.FAILS, 0.8, "doubt it here; other readings meet it"),
        (claims.UNTESTABLE, 0.8, "open: not tested here"),
    ],
)
def test_belief(verdict, share, said):
    assert claims.belief(verdict, share) == said


def test_beliefs_of_a_run():
    entries = [("C1", claims.UNTESTABLE), ("C4", claims.HOLDS)]
    results = {"claims": [{"id": name, "paper": "p", "verdict": verdict} for name, verdict in entries]}
    found = claims.beliefs(results, {"C4": {"all facts met in": 0.75}})
    assert found["what to believe"].to_dict() == {"C1": "open: not tested here", "C4": "believe it"}
    assert list(found["readings under which it is met"]) == ["", "75%"]


# ------------------------------------------------------------------------------------------------ published verdicts

PUBLISHED = sorted((REPOSITORY / "reports" / "published").glob("*/*/results.json"))


@pytest.mark.skipif(not PUBLISHED, reason="no results are published in this checkout")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_published_verdicts_follow_from_their_intervals_by_these_rules(path):
    results = read_json(path)
    for entry in results["claims"]:
        claim = CLAIM[entry["id"]]
        assert entry["paper"] == f"{claim.paper} ({claim.where})"
        if entry["criteria"]:
            for judged, c in zip(entry["criteria"], claim.criteria, strict=True):
                ends = [None if np.isinf(b) else b for b in (c.low, c.high)]
                assert (judged["what"], judged["range"]) == (c.what, ends)
                assert judged["standing"] == claims.standing(judged["interval"], c.low, c.high)
            found = claims.decide(claim, entry["criteria"], results["n_seeds"])
            assert found["verdict"] == entry["verdict"] and entry["why"].startswith(found["why"])


def git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def digest_in(folder) -> str:
    """The digest of the rules of the package in a folder, reckoned by this Python."""
    asked = "from harvis_utils.store.code import code_digest as of; print(of('harvis_utils.paper.claims', 'judge_all'))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    said = subprocess.run((sys.executable, "-c", asked), cwd=folder, env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a git checkout, so that no history can be asked")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_rules_were_committed_before_the_run_that_they_judge(path, tmp_path):
    """The commit of a published run holds the very rules that its verdicts were made by, and that stand here now."""
    about = read_json(path)["provenance"]
    if "rule" not in about:
        pytest.skip("this run was made before results held the digest of their rules")
    revision = about["git"].removesuffix("+")
    try:
        git("merge-base", "--is-ancestor", revision, "HEAD")
    except subprocess.CalledProcessError as error:
        if git("rev-parse", "--is-shallow-repository").strip() == "true":
            pytest.skip("this checkout has no history")
        raise AssertionError(f"{revision} is not among the commits that led here") from error
    git("archive", "--output", str(tmp_path / "package.tar"), revision, "harvis_utils")
    with tarfile.open(tmp_path / "package.tar") as packed:
        packed.extractall(tmp_path, filter="data")
    assert digest_in(tmp_path) == claims.rule(), "the rules were changed after the run"
    if about["versions"]["python"].split(".")[:2] == platform.python_version().split(".")[:2]:
        assert about["rule"] == claims.rule(), "the run was judged by rules that its commit does not hold"


def test_any_change_of_a_rule_changes_the_digest(tmp_path):
    shutil.copytree(REPOSITORY / "harvis_utils", tmp_path / "harvis_utils")
    before = digest_in(tmp_path)
    rules = tmp_path / "harvis_utils" / "paper" / "claims.py"
    text = rules.read_text(encoding="utf-8")
    for old, new, same in (("BELOW_ZERO = -1e-6", "BELOW_ZERO = 0.0", False), ("#: upper edge", "#: the edge", True)):
        assert old in text
        rules.write_text(text.replace(old, new), encoding="utf-8")
        assert (digest_in(tmp_path) == before) == same
