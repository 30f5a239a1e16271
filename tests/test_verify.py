"""Published runs are checked without training: what was changed is named, and what was not passes."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from harvis_utils.data import archive
from harvis_utils.data.kinds import DataError
from harvis_utils.maximization.paper_methods import PROPOSED
from harvis_utils.metrics import embedding
from harvis_utils.metrics.signal_measures import FLAT_G
from harvis_utils.paper import report
from harvis_utils.run import Run
from harvis_utils.settings import REPOSITORY, report_root
from harvis_utils.store.files import file_digest, read_json, write_json, write_text
from harvis_utils.training import published
from workflow import publish, verify

pytestmark = pytest.mark.usefixtures("one_thread")

MADE_UP = REPOSITORY / "reports/published/desk/synthetic"


@pytest.fixture(scope="module")
def recordings(make_recordings):
    return make_recordings({(s, a): 30 + 15 * 7 for s in (1, 2, 3, 4) for a in range(3)})


@pytest.fixture(scope="module")
def original(cfg, recordings, tmp_path_factory):
    """A published run of two tiny networks, as `make publish` leaves it."""
    folder = tmp_path_factory.mktemp("original") / "published" / cfg.profile / cfg.dataset
    atlas = read_json(MADE_UP / "results.json")["atlas"]
    atlas = {layer: {name: values[:2] for name, values in of.items()} for layer, of in atlas.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("derived")))
        patched.setattr(archive, "load_recordings", lambda name: recordings)
        patched.setattr(embedding, "measures", lambda *about: atlas)  # not computed again, and takes long
        run = Run(dataclasses.replace(cfg, training=dataclasses.replace(cfg.training, epochs=2)))
        run.motifs = run.widths = run.people = None  # none were planted, and others are not trained here
        run.shares = pd.DataFrame({"yes in": [0.25], "no in": [0.5]}, index=["C3"])
        results = run.results
        published.save(folder / "networks", run.data, run.networks, run.statistics, run.signals)
    write_json(folder / "results.json", results)
    signals = run.signals["signal"].sel(preset="calibrated")
    flat = ((signals.max("time") - signals.min("time")) < FLAT_G).mean(("seed", "unit")).to_series().unstack("layer")
    tables = {"claims": report.claims_table(results), "criteria": report.criteria_table(results), "03_flat": flat}
    scores = {preset: report.scores_table(results, preset) for preset in results["methods"]}
    for name, table in (tables | {"scores": pd.concat(scores, names=["preset"])}).items():
        write_text(folder / "tables" / f"{name}.csv", table.to_csv())
    write_json(folder / publish.DIGESTS, {"files": publish.digests(folder)})
    return folder


@pytest.fixture
def run(original, recordings, monkeypatch):
    """A copy of it where verify looks, with its data at hand."""
    monkeypatch.setattr(archive, "load_recordings", lambda name, download: recordings)
    place = report_root() / "published" / original.parent.name / original.name
    return shutil.copytree(original, place)


def renew(run) -> None:
    """Digests of the files as they are now, as somebody would write them who hides a change."""
    about = read_json(run / "networks" / "networks.json")
    about["files"] = {name: file_digest(run / "networks" / name) for name in about["files"]}
    write_json(run / "networks" / "networks.json", about)
    assert verify.main(["--write-digests"]) == 0


def change_weight(run) -> None:
    path = run / "networks" / "trunks.safetensors"
    tensors = load_file(path)
    tensors["0.weights.0"][2] *= -1
    save_file(tensors, path)


def change_number(run) -> None:
    results = read_json(run / "results.json")
    results["methods"]["calibrated"][PROPOSED]["conv2"]["ssim"]["mean"] *= 1 + 1e-4
    write_json(run / "results.json", results)


def change_byte(run) -> None:
    path = run / "tables" / "03_flat.csv"
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))


def said_by(capsys, *words: str) -> tuple[int, str]:
    code = verify.main(list(words))
    return code, "".join(capsys.readouterr())


def test_an_untouched_run_passes_and_says_what_it_did_not_look_at(run, capsys):
    code, said = said_by(capsys)
    assert code == 0, said
    for row in ("files, by digest", "tables of results.json", "scores of signals", "verdicts", "units climbed again"):
        assert row in said
    assert "not judged again: C3, C9, C10, C11, C12" in said


def test_all_of_an_untouched_run_passes(run):
    found = {check.what: check for check in verify.checks(verify.PublishedRun(run), full=True)}
    assert not [said for check in found.values() for said in check.differing]
    assert found["verdicts"].notes == ["not judged again: C10, C11, C12"]
    assert found["units climbed again"].n == 2 * 3 * 6 and "statistics of 2 of 2 networks" in found


def test_changed_files_are_found_by_their_digests_and_named(run, capsys):
    for change in (change_number, change_byte, change_weight):
        change(run)
    (run / "tables" / "claims.csv").rename(run / "gone.csv")
    code, said = said_by(capsys)
    assert code == 1
    for place in ("results.json", "tables/03_flat.csv", "networks/trunks.safetensors"):
        assert f"files, by digest: {place} has changed" in said
    assert "tables/claims.csv is missing" in said and "gone.csv is new" in said
    assert "not checked: networks/trunks.safetensors has changed" in said


def test_changes_that_new_digests_hide_are_found_by_computing_again(run):
    for change in (change_number, change_byte, change_weight):
        change(run)
    renew(run)
    found = {check.what: check.differing for check in verify.checks(verify.PublishedRun(run))}
    assert not found["files, by digest"]
    of_scores = "\n".join(found["scores of signals"])
    assert f"results.json: methods/calibrated/{PROPOSED}/conv2/ssim/mean: " in of_scores
    assert "conv1/activation_ratio/mean" in of_scores and "tables/03_flat.csv" in of_scores
    assert any("tables/scores.csv" in said for said in found["tables of results.json"])
    assert any(said.startswith("network 0, conv1 unit 2: ") for said in found["units climbed again"])


def test_without_data_what_needs_them_is_left_out_and_said(run, capsys, monkeypatch):
    def absent(name, download):
        raise DataError("no archive is here")

    monkeypatch.setattr(archive, "load_recordings", absent)
    code, said = said_by(capsys)
    assert code == 0 and "Ssim: no archive is here" in said
    assert said.count("no archive is here") == 4 and "not judged again: C1, C2, C3, C5, C9, C10, C11, C12" in said


def test_other_windows_than_those_of_the_run_differ_and_are_not_compared_with(run, make_recordings, monkeypatch):
    others = make_recordings({(s, a): 30 + 15 * 9 for s in (1, 2, 3, 4) for a in range(3)})
    monkeypatch.setattr(archive, "load_recordings", lambda name, download: others)
    of = verify.PublishedRun(run)
    assert verify.data(of).differing and not verify.training(of).differing
    (note,) = verify.statistics(of, full=False).notes
    assert note.endswith("give other windows than those of this run")


def test_a_unit_that_rounding_decides_is_told_and_one_that_it_does_not_differs(run, monkeypatch):
    of, climbed = verify.PublishedRun(run), verify.climbed

    def elsewhere(of, one, layer, units, start=None):
        signals = climbed(of, one, layer, units)
        signals = signals if start is None else np.stack([signals] * len(start))
        if one.network.seed == 1 and layer == "conv1" and 3 in units:
            at = list(units).index(3)
            signals[..., at, :] *= 2
            if start is not None and nudged_alike:
                signals[0, at] /= 2  # one of the nudged starts ends where the published signal does
        return signals

    monkeypatch.setattr(verify, "climbed", elsewhere)
    nudged_alike = True
    check = verify.ascents(of, full=True)
    assert not check.differing and check.notes == [
        "in 1 units rounding decides where they end: network 1, conv1 unit 3"
    ]
    nudged_alike = False
    check = verify.ascents(of, full=True)
    assert not check.notes and len(check.differing) == 1 and check.differing[0].startswith("network 1, conv1 unit 3: ")
    assert check.n == 2 * 3 * 6


def test_numbers_are_equal_within_a_share_and_all_else_exactly():
    check = verify.Check("numbers")
    check.compare_all("a", {"x": [1.0, 2.0], "y": None, "z": "yes"}, {"x": [1.0, 2.0 + 1e-5], "y": None, "z": "yes"})
    assert not check.differing and check.n == 4 and 0 < check.largest < verify.RELATIVE
    check.compare_all("a", {"x": 0.0, "y": None, "n": np.nan, "b": True}, {"x": 1e-9, "y": 0.0, "n": np.nan, "c": 1})
    assert [said.split(":")[0] for said in check.differing] == ["a/x", "a/y", "a/b", "a/c"]


def test_a_run_that_is_not_published_is_refused(run, capsys):
    code, said = said_by(capsys, "--dataset", "dsads")
    assert code == 1 and "no run */dsads is published; published are: quick/synthetic" in said


@pytest.mark.parametrize("folder", sorted((REPOSITORY / "reports/published").glob("*/*/networks/..")), ids=str)
def test_published_files_are_those_of_their_digests(folder):
    check = verify.files(verify.PublishedRun(folder.resolve()))
    assert not check.differing and check.n, "after a change on purpose: python -m workflow.verify --write-digests"


def test_the_published_run_on_made_up_data_is_computed_again_from_its_files():
    found = {check.what: check for check in verify.checks(verify.PublishedRun(MADE_UP))}
    assert not [said for check in found.values() for said in check.differing]
    assert found["units climbed again"].n and found["scores of signals"].n
