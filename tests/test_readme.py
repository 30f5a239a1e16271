"""README.md says what the published files say."""

import copy
import re

import pytest

from harvis_utils.paper.variants import LIKELIEST_TRIGGER
from harvis_utils.settings import REPOSITORY
from harvis_utils.store.files import write_json, write_text
from workflow import readme

README = REPOSITORY / "README.md"


def test_readme_and_the_page_of_benchmarks_say_what_is_published():
    text = README.read_text(encoding="utf-8")
    assert readme.rewritten(text) == text, "run: python -m workflow.readme"
    page = REPOSITORY / "reports/published/benchmarks/README.md"
    assert page.read_text(encoding="utf-8") == readme.benchmarks_page(), "run: python -m workflow.readme"


def test_the_card_of_the_networks_says_what_their_files_and_results_say():
    folder = REPOSITORY / "reports/published"
    text = (folder / "NETWORKS.md").read_text(encoding="utf-8")
    assert text == readme.networks_page(), "run: python -m workflow.readme"
    carrying = [name for name in readme.published() if (folder / name / "networks").exists()]
    assert {"desk/dsads", "desk/mhealth-approximate"} <= set(carrying)
    for name in carrying:
        of = readme.published()[name]
        for seed, f1 in enumerate(of["results"]["training"]["macro_f1"]["per_seed"]):
            chosen = f"{of['results']['training']['best_epoch'][seed]} of {of['results']['training']['epochs']}"
            assert re.search(rf"^\| {name} \| {seed} \| [\d.e-]+ \| {chosen} \| {f1:.3f} \|", text, re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:]+)[)#]", text):
        assert (folder / target).exists(), target


def test_what_longer_training_changes_is_told_claim_by_claim():
    runs = {name: run for name, run in readme.published().items() if name in ("desk/dsads", "desk/synthetic")}
    assert "not published yet" in readme.longer(runs)
    runs["paper/dsads"] = copy.deepcopy(runs["desk/dsads"])
    same = readme.longer(runs)
    assert "| what changes with training | desk/dsads | paper/dsads |" in same
    assert not re.search(r"^\| C\d", same, re.MULTILINE)
    first = runs["paper/dsads"]["results"]["claims"][0]
    first |= {"direction": "yes", "size": "smaller", "robust": None}
    found = re.findall(r"^\| C\d.*$", readme.longer(runs), re.MULTILINE)
    assert found == ["| C1 | not testable | yes, smaller |"]


def test_readme_is_short_names_every_notebook_and_module_and_its_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 195
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (REPOSITORY / target).exists(), f"README links to {target}, which is not there"
    for path in [*REPOSITORY.glob("notebooks/*.ipynb"), *REPOSITORY.glob("harvis_utils/*.py")]:
        if path.name != "__init__.py":
            assert path.stem in text, f"README does not name {path.name}"


def test_a_block_is_replaced_between_its_markers():
    begin = "<!-- results: made by workflow.readme from reports/published -->"
    marked = f"a\n{begin}\nold\n<!-- end of results -->\nb"
    assert readme.updated(marked, "results", "new") == marked.replace("old", "new")
    with pytest.raises(ValueError, match="lacks the lines"):
        readme.updated("nothing here", "results", "new")


def test_titles_and_runtimes_come_from_the_notebooks(tmp_path):
    for name, took in (("01_data", 12.4), ("02_model", 1234.0)):
        write_json(tmp_path / f"desk/aaa/{name}.ipynb", {"metadata": {"papermill": {"duration": took}}})
    text = readme.notebooks(["desk/aaa"], tmp_path)
    n_notebooks = len(list((REPOSITORY / "notebooks").glob("*.ipynb")))
    assert "| desk/aaa |" in text and text.count("| - |") == n_notebooks - 2
    assert "| 12 s |" in text and "| 21 min |" in text


def made_run(verified: bool) -> dict:
    scores = {la: {"ssim": {"mean": 0.5}, "activation_ratio": {"mean": None}} for la in ("conv1", "conv2", "conv3")}
    return {
        "caveat": "" if verified else "approximate data",
        "verified_data": verified,
        "n_seeds": 2,
        "timings_s": {"networks": 90.0, "signals": 60.0},
        "training": {"epochs": 7, "macro_f1": {"mean": 0.71234, "std": None if verified else 0.01}},
        "data": {"amplitude_threshold_g": 1.37132},
        "methods": {"calibrated": {m: copy.deepcopy(scores) for m in ("L2+TV", "L2+TV+EAP+clip")}},
        "controls": {"starting-sine": {"conv3": {"ssim": {"mean": 0.00049}}}},
        "claims": [
            {
                "id": "C1",
                "paper": "something",
                "where": "section 1",
                "direction": "yes",
                "size": "larger",
                "robust": 0.25,
                "why": "Yes: so it is.",
            }
        ],
    }


def write_evidence(folder, more_recall=None):
    """What notebooks 07 to 09 leave of a run, as far as README quotes it."""
    axes = {
        "method/L2+TV+EAP+clip": (0.9, 0.3),
        f"method/{LIKELIEST_TRIGGER}": (0.95, 0.4),
        "control/held-out-strong": (1.0, 0.5),
    }
    axes |= {"control/starting-sine": (0.1, 0.2), "control/flat-zero": (0.0, 0.1)}
    recall = {
        "L2+TV+EAP+clip": 0.2,
        "naive": 0.1,
        "L2+TV": 0.15,
        LIKELIEST_TRIGGER: 0.25,
        "random weights": 0.05,
        "phase-scrambled": 0.3,
        **(more_recall or {}),
    }
    files = {
        "readings": {"admissible": ["b", "c"], "readings": 150, "winner": "b"},
        "evidence": {
            "measures": {k: dict(zip(("activation", "nearness"), v, strict=True)) for k, v in axes.items()},
            "recall": {k: {"recall": v, "low": v - 0.05, "high": v + 0.05} for k, v in recall.items()},
        },
        "likeliest": {
            "means": {
                name: {"accuracy": of}
                for name, of in (
                    *(("L2+TV+EAP+clip", 0.6), (LIKELIEST_TRIGGER, 0.7), ("strongest real window", 0.8)),
                    ("starting sine", 0.55),
                )
            },
            "more than": {
                name: {"accuracy": dict(zip(("conv1", "conv2"), ([of, 0.0, 0.2], [0.0, -0.1, 0.1]), strict=True))}
                for name, of in (("L2+TV+EAP+clip", 0.1), ("strongest real window", -0.05))
            },
        },
    }
    for name, content in files.items():
        write_json(folder / f"{name}.json", content)


def test_findings_are_counted_in_the_published_files(tmp_path):
    counts = {"n_flat": [1, 2], "n_excluded": [3, 1], "n_units": [7, 9]}  # two networks of ten units
    run = made_run(True)
    run["atlas"] = {"conv1": counts, "conv2": counts | {"n_flat": [0, 0], "n_excluded": [0, 1], "n_units": [10, 9]}}
    lost = {"conv1": (0.0, 1.0), "conv2": (0.5, 0.0)}  # means over the networks: 2 dead units in all, 1 failed
    for layer, (failed, dead) in lost.items():
        run["methods"]["calibrated"]["L2+TV+EAP+clip"][layer] |= {"failed_units": failed, "dead_units": dead}
    write_json(tmp_path / "desk/aaa/results.json", run)

    def findings() -> str:
        return readme.findings(readme.published(tmp_path), tmp_path)

    alone, claims = findings().split("\n")
    assert alone.endswith("Of the proposed method's signals 12% on desk/aaa range over less than 0.05 G.")
    assert "on desk/aaa**, so in direction: C1; in size as well: none; not so: none; undecided: none." in claims

    head = "first,second,layer,measure,difference,low,high\n"
    rows = [
        f"L2+TV+EAP+clip,{second},{layer},{measure},{d},{d - 0.01},{d + 0.01}\n"
        for second, sign in (("naive", -1), ("spectrum-noise", 1))
        for layer, nearness in (("conv1", -0.2), ("conv2", 0.005))
        for measure, d in (("nearness", sign * nearness), ("activation", 0.5), ("realism p", 9))
    ]
    for name in ("aaa", "bbb"):
        write_text(tmp_path / f"desk/{name}/tables/08_differences.csv", head + "".join(rows))
    write_json(tmp_path / "desk/bbb/results.json", run)
    write_evidence(tmp_path / "desk/aaa", {"real windows": 0.9, "phase-scrambled": 0.31})
    _, noise, planted, explains, _ = findings().split("\n")
    assert noise.startswith("- **Noise is nearer to real windows in Conv1.**")
    assert noise.endswith("noise on desk/aaa: Conv1 -0.200, Conv2 +0.005; the same layers on desk/bbb.")
    assert "recover more planted motifs than the method" in planted
    assert planted.endswith(
        "recovers 0.20 of the motifs, the same signals with scrambled phases 0.31, real windows 0.90."
    )
    assert f"right in 60% of pairs by the proposed method, 70% by the {LIKELIEST_TRIGGER}" in explains
    write_evidence(tmp_path / "desk/aaa", {"real windows": 0.9, "phase-scrambled": 0.29})
    assert "recover as many planted motifs as" in findings(), "intervals overlap"


def test_tables_of_a_made_run(tmp_path):
    for name, verified in (("desk/aaa", False), ("desk/bbb", True)):
        write_json(tmp_path / name / "results.json", made_run(verified))
    assert list(readme.published(tmp_path)) == ["desk/bbb", "desk/aaa"]  # verified data first
    write_evidence(tmp_path / "desk/aaa")
    text = readme.results(readme.published(tmp_path))
    assert "as the best | - | - | 2 of 150; winner: b |" in text  # the run without evidence has a dash
    assert "sine, flat zero | - | - | 0.90 / 0.30, 0.95 / 0.40, 1.00 / 0.50, 0.10 / 0.20, 0.00 / 0.10 |" in text
    recalled = ", ".join(f"{v:.2f} ({v - 0.05:.2f} to {v + 0.05:.2f})" for v in (0.2, 0.1, 0.15, 0.25, 0.05, 0.3))
    assert f"scrambled phases | - | - | {recalled} |" in text
    assert "strongest real window, Conv1, 2, 3 | - | - | +0.10, +0.00; -0.05, +0.00 |" in text
    (tmp_path / "desk/aaa/likeliest.json").unlink()  # what was not run has a dash, and only that
    fewer = readme.results(readme.published(tmp_path))
    assert "strongest real window, Conv1, 2, 3 | - | - | - |" in fewer and f"{recalled} |" in fewer
    assert "| macro F1, test subjects | 0.737, 0.955 | 0.712 (one network) | 0.712 ± 0.010 |" in text
    assert "| networks x epochs, computing of all stages | 5 x 200 | 2 x 7, 2 min | 2 x 7, 2 min |" in text
    assert "| 2-sigma amplitude [G] | 1.37, 1.57 | 1.371 | 1.371 |" in text
    assert "| Ssim, L2+TV / proposed, Conv1, 2, 3 [G²] | (bars) | 0.5 / 0.5, 0.5 / 0.5, 0.5 / 0.5 |" in text
    assert "- / -" in text
    verdict = "yes, larger (25% of readings)"
    assert f"| C1 | something (section 1) | {verdict} | {verdict} | Yes: so it is. |" in text
