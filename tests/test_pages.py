"""Pages of executed notebooks, their index, and what is published of a run."""

import dataclasses
import html
import json
import os
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import xarray as xr
from sample_notebooks import write

from harvis_utils.settings import REPOSITORY, load_settings, report_root
from harvis_utils.store.files import file_digest, read_json, write_json, write_text
from harvis_utils.training import published, supervised
from workflow import minutes, pages, publish

RESULTS = {"training": {"macro_f1": {"mean": 0.5, "std": 0.1}}, "claims": [{"direction": "yes"}]}


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished run of two notebooks, made by hand, and a report module that accepts it."""
    cfg = load_settings()
    books = [
        write(tmp_path / "books", name, "1 + 1", prose=r"Formula $x^2$, then [the end](06_report.ipynb)")
        for name in ("01_data", "06_report")
    ]
    for book in books:
        done = json.loads(book.read_text())
        done["metadata"]["papermill"] = {"duration": 150.0, "end_time": "2026-01-02T03:04:05", "exception": None}
        for cell in (c for c in done["cells"] if c["cell_type"] == "code"):
            cell |= {"execution_count": 1, "outputs": [{"output_type": "stream", "name": "stdout", "text": "ok\n"}]}
        write_text(cfg.reports / book.name, json.dumps(done))
        pictures = ["figures/f.png", "figures/shown.png"]
        files = ["tables/t.csv", *pictures, "found.json"] if book.stem == "01_data" else ["results.json"]
        write_json(cfg.reports / "stamps" / f"{book.stem}.json", {"files": files, "stored": []})
    write_text(cfg.reports / "tables" / "t.csv", "a,b\n1,2\n")
    write_text(cfg.reports / "tables" / "left_over.csv", "old\n")
    for name in ("f.png", "shown.png"):
        write_text(cfg.reports / "figures" / name, name)
    write_text(tmp_path / "README.md", "![a figure](reports/published/quick/synthetic/figures/shown.png)")
    monkeypatch.setattr(publish, "README", tmp_path / "README.md")
    write_json(cfg.reports / "found.json", {"recall": 0.5})
    write_json(cfg.reports / "results.json", RESULTS)

    def validate(results):
        if "training" not in results:
            raise ValueError("'training' is missing")

    monkeypatch.setattr(publish, "report", SimpleNamespace(validate=validate), raising=False)
    return SimpleNamespace(cfg=cfg, books=books, run=cfg.reports)


def test_pages_are_made_once_and_linked(finished, capsys):
    assert publish.main(["--notebooks", str(finished.books[0].parent)]) == 0
    assert "read reports/published: copy it there" in capsys.readouterr().out
    published = publish.publish(finished.cfg, finished.books)
    assert pages.main([]) == 0 and "index.html" in capsys.readouterr().out
    index = (report_root() / "index.html").read_text()
    for text in ("made-up data", "0.500 ± 0.100", "2026-01-02", "5 min", "yes 1", "Published results"):
        assert text in index
    for page in ("quick/synthetic/html/01_data.html", "html/quick/synthetic/06_report.html"):
        assert f'href="{page}"' in index and (report_root() / page).exists()
    assert not list(published.glob("**/*.html"))
    page = finished.run / "html" / "01_data.html"
    shown = page.read_text()
    for text in ("made-up data", "06_report →", '<a href="06_report.html">the end</a>', "<title>01 · data · quick"):
        assert text in shown
    assert "<msup>" in shown and "default-src 'none'" in shown and "https:" not in shown
    assert publish.machine_paths(finished.run / "01_data.ipynb") == []
    assert pages.main(["--profile", "quick"]) == 0 and pages.build_run(pages.describe(finished.run)) == []
    said = capsys.readouterr().out
    assert "index.html" in said and "macro F1 0.500 ± 0.100" in said and "made-up data" in said
    later = (finished.run / "html/06_report.html").stat().st_mtime + 1
    os.utime(finished.run / "06_report.ipynb", (later, later))
    (finished.run / "01_data.ipynb").unlink()
    made = pages.build_run(pages.describe(finished.run))
    assert [p.name for p in made] == ["06_report.html"] and not page.exists()


@pytest.mark.parametrize(("file", "content"), [("01_data.ipynb", {}), ("results.json", {"claims": []})])
def test_one_odd_run_does_not_stop_the_others(finished, capsys, file, content):
    odd = finished.run.with_name("dsads")
    write_json(odd / file, content)
    write_json(odd / "06_report.ipynb", {"cells": [], "metadata": {}})
    assert pages.main([]) == 0 and "quick · synthetic" in (report_root() / "index.html").read_text()
    assert f"{odd / file} does not hold what it should (KeyError: " in capsys.readouterr().err
    assert pages.main(["--profile", "quick", "--dataset", "dsads"]) == 1


def test_the_minutes_of_a_notebook_that_the_chain_did_not_execute_are_not_known(finished, capsys):
    assert minutes.main([]) == 1
    assert (
        f"{finished.run / '01_data.ipynb'} does not hold what it should (KeyError: 'papermill')"
        in capsys.readouterr().err
    )


def test_a_notebook_that_failed_has_a_page_that_says_why_and_how_far_it_came(finished):
    stopped = finished.run / "logs" / "01_data.ipynb"
    stopped.parent.mkdir()
    os.replace(finished.run / "01_data.ipynb", stopped)  # an output of a job that fails is removed
    why = "notebook 01_data.ipynb failed in cell 3: 1 / 0\n  ZeroDivisionError: <b>by zero</b>"
    write_text(stopped.with_suffix(".error.txt"), why)
    run = pages.describe(finished.run)
    assert [page.failed for page in run.pages] == [why, ""] and run.facts["failed"] == "01_data"
    assert len(pages.build_run(run)) == 2
    shown = (finished.run / "html/01_data.html").read_text()
    assert html.escape(why) in shown and "ok" in shown and "<b>by zero" not in shown
    assert "failed" not in (finished.run / "html/06_report.html").read_text().partition("<main")[2][:200]
    index = pages.build_index().read_text()
    assert (
        re.search(r'01_data\.html">quick · synthetic</a> failed', index) and "<dt>failed</dt><dd>01_data</dd>" in index
    )
    stopped.with_suffix(".error.txt").unlink()  # as where it is executed again
    assert [page.notebook.stem for page in pages.describe(finished.run).pages] == ["06_report"]


def test_links_of_notebooks_lead_to_pages_and_to_files(tmp_path):
    root = report_root()
    run = pages.Run(root / "published/quick/synthetic", "quick · synthetic", "", {}, (), ())
    names = ("01_data", "06b_more")
    made = tuple(pages.Page(n, run.folder / f"{n}.ipynb", root / f"html/quick/x/{n}.html", 0, "", ()) for n in names)
    run = dataclasses.replace(run, pages=made)
    write_text(run.folder / "results.json", "{}")
    for link, leads in {
        "06b_more.ipynb#A-part": "06b_more.html#A-part",
        "./01_data.ipynb": "01_data.html",
        "#here": "#here",
        "https://doi.org/10.1/x": "https://doi.org/10.1/x",
        "results.json": "../../../published/quick/synthetic/results.json",
        "../harvis_utils/metrics/similarity.py": "../../../api/metrics.html#harvis_utils.metrics.similarity",
        "gone.txt": "gone.txt",
    }.items():
        assert pages.leading(link, run, made[0]) == leads
    for link, file in {"../README.md": "README.md", "02_model.ipynb": "notebooks/02_model.ipynb"}.items():
        assert (made[0].path.parent / pages.leading(link, run, made[0])).resolve() == REPOSITORY / file
    assert pages.leading("../../../../notebooks/02_model.ipynb", run, made[0]).endswith("/notebooks/02_model.ipynb")


def test_every_formula_of_the_notebooks_becomes_mathml():
    for path in pages.NOTEBOOKS.glob("*.ipynb"):
        for cell in (cell for cell in read_json(path)["cells"] if cell["cell_type"] == "markdown"):
            made = pages.MarkdownWithMath(renderer=pages.Prose()).render("".join(cell["source"]))
            assert 'class="formula"' not in made, (path.name, made.split('class="formula"')[1][:200])
    assert pages.mathml(r"\nosuch{<x>}") == r'<code class="formula">\nosuch{&lt;x&gt;}</code>'
    assert "<mfrac>" in pages.mathml(r"\big(\frac{a}{b}\Big)", block=True)


def test_every_picture_of_a_page_is_described():
    new = nbformat.v4
    shown = [
        new.new_output("display_data", {"image/png": "x"}, metadata=about)
        for about in ({}, {"image/png": {"alt": "A"}})
    ]
    cells = [new.new_markdown_cell("# Title\n\n## What *it* is"), new.new_code_cell("", outputs=shown)]
    pages.describe_pictures(book := new.new_notebook(cells=cells), "made-up data")
    alts = [output.metadata["image/png"]["alt"] for output in book.cells[1].outputs]
    assert alts == ["What it is. made-up data", "A. made-up data"]


def test_pages_of_the_package_have_signatures_docstrings_and_links():
    rooms = pages.read_package()
    assert {"settings", "data", "metrics", "lenses", "run"} <= set(rooms) and "__init__" not in rooms
    items = {item["name"]: item for modules in rooms.values() for module in modules for item in module["items"]}
    kept = items["harvis_utils.run.Run.headline"]
    assert kept["signature"] == "Run.headline(self, what: str | None=None) -> str" and "Markdown" in kept["text"]
    assert not any(part.startswith("_") for name in items for part in name.split("."))
    pages.build_index()
    text = html.unescape((report_root() / "api/run.html").read_text())
    assert 'id="harvis_utils.run.begin"' in text and ":func:" not in text and "default-src 'none'" in text
    assert (
        '<a href="run.html#harvis_utils.run.Run"' in text
        or 'href="metrics.html#harvis_utils.metrics.motifs.motif_recovery"' in text
    )


def test_what_an_index_says_without_runs_and_of_data_sets():
    assert "make reproduce" in pages.build_index().read_text()
    assert pages.caveat("dsads") == "" and pages.caveat("synthetic") == "made-up data"
    assert pages.caveat("mhealth-approximate").startswith("approximate")
    assert "does not know" in pages.caveat("gone")


def test_publish_copies_what_the_notebooks_made_and_replaces_the_older(finished):
    older = report_root() / "published/quick/synthetic/older.txt"
    write_text(older, "x")
    write_text(older.parent / "networks/networks.json", "{}")  # no notebook trained any: these were made with them
    target = publish.publish(finished.cfg, finished.books)
    files = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    made = ["figures/shown.png", "found.json", "networks/networks.json", "results.json", "tables/t.csv"]
    assert files == ["01_data.ipynb", "06_report.ipynb", publish.DIGESTS, *made]
    assert read_json(target / publish.DIGESTS)["files"] == publish.digests(target)
    assert set(publish.digests(target)) == set(files) - {publish.DIGESTS}
    assert [p.name for p in target.parent.iterdir()] == ["synthetic"], "nothing half-copied beside it"


def test_signals_made_of_published_networks_replace_those_beside_them(finished, tmp_path, monkeypatch):
    for name in ("trunks.safetensors", "networks.json"):
        write_text(tmp_path / "run/networks" / name, "{}")
    asked, made = [], xr.Dataset({"signal": ("time", np.ones(3))})
    found = SimpleNamespace(statistics=xr.Dataset({"mean": 1.0}), signals=made)
    monkeypatch.setattr(publish, "Stages", lambda cfg: asked.append(cfg.weights) or found)
    places = publish._networks(finished.cfg, tmp_path / "run", tmp_path / "new/networks", {"signals"}, "again")
    assert asked == ["published"] and len(places) == 4
    about = read_json(tmp_path / "new/networks/networks.json")["files"]
    assert about == {name: file_digest(tmp_path / "new/networks" / name) for name in about} and len(about) == 3


def test_notebooks_published_alone_leave_what_others_have_published(finished):
    target = publish.publish(finished.cfg, finished.books)
    write_json(target / "06_left.json", {"judged": [2]})
    for left in ("01_gone.csv", "06_stays.csv"):
        write_text(target / "tables" / left, "a\n1\n")
    write_json(finished.run / "found.json", {"judged": [1]})
    (finished.run / "results.json").unlink()  # as where its notebook was not executed here
    assert publish.publish(finished.cfg, finished.books[:1]) == target
    assert {p.name for p in target.rglob("*.*")} == {
        "01_data.ipynb", "06_report.ipynb", "shown.png", "found.json", "results.json", "t.csv",
        "06_stays.csv", "06_left.json", publish.DIGESTS,
    }  # fmt: skip
    assert read_json(target / publish.DIGESTS)["files"] == publish.digests(target)
    assert read_json(target / "results.json") == RESULTS | {"systems": {"06_left": [2], "found": [1]}}


def test_a_table_too_long_to_be_read_is_not_published(finished, monkeypatch):
    monkeypatch.setattr(publish, "TABLE_BYTES", 10_000)
    for size, goes in ((10_000, True), (10_001, False)):
        (finished.run / "tables/t.csv").write_bytes(b"1" * size)
        assert (publish.publish(finished.cfg, finished.books) / "tables/t.csv").exists() == goes


def test_links_to_notebooks_that_are_not_published_lead_to_their_sources(finished, monkeypatch):
    monkeypatch.setattr(publish, "REPOSITORY", report_root().parent)
    executed = finished.run / "01_data.ipynb"
    book = json.loads(executed.read_text())
    said = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"text/markdown": "[a](06_report.ipynb#b) [c](01_data.ipynb)"},
    }
    next(c for c in book["cells"] if c["cell_type"] == "code")["outputs"] = [said]
    executed.write_text(json.dumps(book))
    for books, place in ((finished.books[:1], "../../../../notebooks/"), (finished.books, "")):
        target = publish.publish(finished.cfg, books)
        cells = json.loads((target / "01_data.ipynb").read_text())["cells"]
        assert f"[the end]({place}06_report.ipynb)" in "".join("".join(c["source"]) for c in cells)
        (output,) = next(c for c in cells if c["cell_type"] == "code")["outputs"]
        assert "".join(output["data"]["text/markdown"]) == f"[a]({place}06_report.ipynb#b) [c](01_data.ipynb)"
    nbformat.validate(nbformat.read(target / "01_data.ipynb", 4))


def _execution(run):
    book = run / "01_data.ipynb"
    book.write_text(book.read_text().replace('"execution_count": 1', '"execution_count": null', 1))


def _path(run):
    book = run / "01_data.ipynb"
    book.write_text(book.read_text().replace("ok\\n", f"{REPOSITORY}/x", 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "06_report.ipynb").unlink(), "06_report.ipynb has not been executed"),
        (_execution, "01_data.ipynb was not executed to its end"),
        (_path, "01_data.ipynb contains paths of this machine"),
        (
            lambda run: (run / "tables/t.csv").write_text("a\n/Users/someone/data\n"),
            "t.csv contains paths of this machine, as '/Users/someone/data'",
        ),
        (lambda run: write_json(run / "results.json", {}), "results.json is not valid: 'training' is missing"),
        (lambda run: (run / "results.json").unlink(), "results.json is missing"),
        (lambda run: (run / "tables/t.csv").unlink(), "t.csv is missing"),
        (lambda run: write_json(run / "found.json", {"a": "1" * publish.PUBLISHED_BYTES}), "at most 8 MB"),
    ],
)
def test_publish_refuses(finished, spoil, message):
    spoil(finished.run)
    with pytest.raises(publish.PublishError, match=re.escape(message)):
        publish.publish(finished.cfg, finished.books)
    assert not (report_root() / "published").exists() or not list((report_root() / "published").rglob("*.*"))


@pytest.mark.parametrize(
    ("file", "content", "by"),
    [
        ("results.json", json.dumps(RESULTS | {"macro_f1": 1.0}), "06_report"),
        ("tables/t.csv", "a,b\n1,3\n", "01_data"),
        ("06_report.ipynb", None, "06_report"),
    ],
)
def test_what_was_changed_after_it_was_made_is_not_published(finished, file, content, by):
    for stamp in finished.run.glob("stamps/*.json"):
        made = [*(about := read_json(stamp))["files"], f"{stamp.stem}.ipynb"]
        write_json(stamp, about | {"digests": {name: file_digest(finished.run / name) for name in made}})
    publish.publish(finished.cfg, finished.books)
    kept = (finished.run / file).read_text()
    write_text(finished.run / file, content or kept.replace("ok", "OK"))
    with pytest.raises(publish.PublishError, match=rf"{re.escape(file)} is no longer what {by}\.ipynb left; run `make"):
        publish.publish(finished.cfg, finished.books)
    write_text(finished.run / file, kept)
    publish.publish(finished.cfg, finished.books)


def test_what_is_published_already_counts_nothing(finished, monkeypatch):
    """Two renewals, each within the limit, may together be above it."""
    table = finished.run / "tables/t.csv"
    table.write_bytes(b"1" * 40_000)
    target = publish.publish(finished.cfg, finished.books)
    monkeypatch.setattr(publish, "PUBLISHED_BYTES", 30_000)
    assert (
        publish.publish(finished.cfg, finished.books) == target and (target / "tables/t.csv").stat().st_size == 40_000
    )
    table.write_bytes(b"2" * 40_000)
    with pytest.raises(publish.PublishError, match="0.0 MB of the run are new or changed"):
        publish.publish(finished.cfg, finished.books)
    assert (target / "tables/t.csv").read_bytes()[:1] == b"1"


def test_networks_that_the_run_made_are_published_with_it(finished, cfg, tiny_windows, monkeypatch):
    for stamp in finished.run.glob("stamps/*.json"):
        write_json(stamp, read_json(stamp) | {"stored": ["networks/x"]})
    with pytest.raises(publish.PublishError, match="its networks are stored no more; run `make reproduce"):
        publish.publish(finished.cfg, finished.books)
    networks, for_choosing = (
        supervised.networks(some, tiny_windows)
        for some in (cfg, dataclasses.replace(cfg, training=dataclasses.replace(cfg.training, seeds=(7,))))
    )
    signals = xr.Dataset({"signal": (("seed", "time"), np.ones((2, 30)))})
    made = {"data": tiny_windows, "networks": networks, "statistics": signals, "signals": signals}
    made["choosing"] = SimpleNamespace(networks=for_choosing)
    monkeypatch.setattr(publish, "Stages", lambda _: SimpleNamespace(**made))
    folder = publish.publish(finished.cfg, finished.books) / "networks"
    made_up = {"network.safetensors"}  # the whole network is published of recorded data alone
    assert {p.name for p in folder.iterdir()} == {*published.FILES, "networks.json"} - made_up
    found = published.load(folder, tiny_windows, cfg.model, (*cfg.training.seeds, 7))
    assert [net.best_epoch for net in found] == [net.best_epoch for net in (*networks, *for_choosing)]

    assert publish.publish(finished.cfg, finished.books[1:]) == folder.parent, "the same networks, half of the pages"
    made["networks"] = networks[:1]
    before = publish.digests(folder.parent)
    with pytest.raises(publish.PublishError, match="not those of .* with which 01 were made; execute these too"):
        publish.publish(finished.cfg, finished.books[1:])
    assert publish.digests(folder.parent) == before


def test_unknown_data_sets_are_said(capsys):
    for command in (pages.main, publish.main):
        assert command(["--profile", "quick", "--dataset", "none"]) == 1
        assert "unknown data set 'none'" in capsys.readouterr().err
