"""A run packed, computed in a bare environment in interrupted calls, brought back, and read as notebooks do."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from harvis_utils.data import archive, windowing
from harvis_utils.maximization import paper_methods, unit_statistics
from harvis_utils.maximization.starting import chosen_units
from harvis_utils.metrics import similarity
from harvis_utils.paper import readings, recipes
from harvis_utils.settings import (
    PROFILES,
    REPOSITORY,
    MaximizationSettings,
    ModelSettings,
    ReadingSettings,
    SettingsError,
    SimilaritySettings,
    TrainingSettings,
    WindowSettings,
    artifact_root,
    as_json,
    for_choosing,
    from_json,
    load_settings,
)
from harvis_utils.store import stages
from harvis_utils.store.files import ArtifactError, read_json, write_json
from harvis_utils.training import supervised
from workflow import bundle, heavy

pytestmark = pytest.mark.usefixtures("one_thread")

CFG = dataclasses.replace(
    load_settings("quick", "synthetic", "cpu"),
    windows=WindowSettings(step=150),
    model=ModelSettings(n_units=4, n_dense=8),
    training=TrainingSettings(seeds=(0, 1), epochs=2, learning_rate=1e-2, batch_size=64),
    maximization=MaximizationSettings(n_steps=10),
    similarity=SimilaritySettings(n_similar=5),
    readings=ReadingSettings(seeds=(100,), n_units=1),
)
N_NETWORKS = 2 + 1
N_RESULTS = N_NETWORKS + (N_NETWORKS + 2) + 2 * 3 * (2 + 1) + 4
N_RESULTS += len(readings.by_step(readings.grid())) + N_NETWORKS * len(recipes.RECIPES)


@contextmanager
def another_machine():
    """One that has other versions, and a Python with other syntax trees, than the bare one that computes."""
    real = stages.code_digest
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stages, "version", lambda lib: f"99.{len(lib)}+cpu")
        patched.setattr(stages, "code_digest", lambda module: hashlib.sha256(real(module).encode()).hexdigest())
        yield patched


@pytest.fixture
def packing_machine():
    """The test runs on the machine that packed."""
    with another_machine():
        yield


def needed_by(names) -> set[str]:
    """Names of installed packages and of all that they need."""
    left, found = set(names), set()
    while left:
        found.add(name := left.pop())
        lines = map(Requirement, importlib.metadata.requires(name) or [])
        left |= {r.name for r in lines if not r.marker or r.marker.evaluate({"extra": ""})} - found
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python that has torch, what a bundle says it needs, what these need in turn, and nothing else.

    Without h5netcdf: that one travels as a wheel.
    """
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in needed_by(["torch", *bundle.NEEDED]) - {"h5netcdf"}:
        distribution = importlib.metadata.distribution(name)
        for top in {f.parts[0] for f in distribution.files} - {"..", "__pycache__"}:
            if not (site / top).exists() and not top.endswith(".pth"):
                (site / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return folder / "bin" / "python"


class Bundle:
    """An unpacked bundle and the bare Python that runs it, called from a folder of its own."""

    def __init__(self, folder: Path, python: Path):
        self.folder, self.elsewhere = folder, folder.parent / "elsewhere"
        self.elsewhere.mkdir()
        self.env = {"PATH": os.environ["PATH"], "PYTHON": str(python), "HARVIS_THREADS": "1", "OMP_NUM_THREADS": "1"}

    def command(self, *words) -> dict:
        return {"args": ["sh", str(self.folder / "run.sh"), *map(str, words)], "cwd": self.elsewhere, "text": True}

    def run(self, *words, code: int) -> str:
        done = subprocess.run(**self.command(*words), env=self.env, capture_output=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def stored(self, stage: str) -> int:
        return len(list(self.folder.glob(f"data/derived/store/{stage}/*/manifest.json")))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The bundle of a tiny run, a tar file."""
    with another_machine() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("here")))
        out = tmp_path_factory.mktemp("packed") / "bundle.tar"
        sizes = bundle.pack(CFG, out)
    assert 0 < sum(sizes.values()) <= out.stat().st_size and not [n for n in sizes if "pycache" in n]
    return out


@pytest.fixture(scope="module")
def computed(packed, bare, tmp_path_factory):
    """The bundle after all calls that it takes, with what they printed."""
    folder = tmp_path_factory.mktemp("there")
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    made, said = Bundle(folder / bundle.FOLDER, bare), []
    distribution = importlib.metadata.distribution("h5netcdf")
    (made.folder / "wheels").mkdir()
    with zipfile.ZipFile(made.folder / "wheels" / "h5netcdf-py3-none-any.whl", "w") as wheel:
        for file in distribution.files:
            if ".." not in file.parts:
                wheel.write(distribution.locate_file(file), file)
    # without any time a call still does one piece, in each process: an epoch
    said.append(made.run("--seconds", 0, "--workers", 2, code=75))
    assert made.stored("networks") == 0
    said.append(made.run("--seconds", 0, "--workers", 1, code=75))
    assert made.stored("networks") == 1
    # a kill in the middle of the signals
    running = subprocess.Popen(**made.command("--seconds", 600), env=made.env, stdout=subprocess.PIPE)
    for line in running.stdout:
        if line.startswith("  signals conv2"):
            running.send_signal(signal.SIGKILL)  # sh has become python
    running.wait()
    assert running.returncode == -signal.SIGKILL and 2 <= made.stored("signals") < 18
    said.append(made.run("--seconds", 600, code=0))
    return made, said


@pytest.fixture(scope="module")
def collected(computed, tmp_path_factory):
    """The results as parts, as they come back."""
    made, _ = computed
    out = tmp_path_factory.mktemp("parts")
    made.run("--collect", out, "--part-mib", 0.1, code=0)
    return out


@pytest.fixture
def parts(collected, tmp_path):
    """A copy of the parts to do harm to."""
    return Path(shutil.copytree(collected, tmp_path / "parts"))


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """The same run without a bundle: the calls of the notebooks."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("direct")))
        patched.setenv("HARVIS_THREADS", "1")
        torch.set_num_threads(1)
        data = windowing.cut(archive.load_recordings("synthetic"), CFG.windows)
        nets, random = supervised.networks(CFG, data), supervised.untrained(CFG, data)
        statistics, random_statistics = (unit_statistics.statistics(CFG, data, n) for n in (nets, random))
        signals = paper_methods.signals(CFG, nets, statistics)
        control = paper_methods.CONTROL_METHODS, ("calibrated",)
        random_signals = paper_methods.signals(CFG, random, random_statistics, *control)
        one = random_signals.isel(preset=0, technique=0, drop=True)
        scores = similarity.scores(CFG, data, nets, statistics, signals)
        controls = similarity.controls(CFG, data, nets, statistics, random, random_statistics, one)
        others = for_choosing(CFG)
        choosing = supervised.networks(others, data)
        own = unit_statistics.statistics(others, data, choosing)
        tried = [readings.signals(CFG, data, net, own.sel(seed=net.seed), readings.grid()) for net in choosing]
        units = chosen_units(CFG.model.n_units, CFG.readings.n_units)
        each = ((others, choosing, own), (CFG, nets, statistics))
        made = [recipes.signals(c, data, some, of, recipes.RECIPES, units) for c, some, of in each]
        stored = {p.parent.relative_to(p.parents[2]).as_posix() for p in artifact_root().rglob("manifest.json")}
        planned = heavy.plan(CFG, data.digest)
    return (
        data,
        nets,
        statistics,
        signals,
        random_signals,
        {"methods": scores, "controls": controls},
        (tried, made),
        stored,
        planned,
    )


# ------------------------------------------------------------------------------------------------- the whole way


def test_the_plan_names_what_a_direct_run_stores(direct):
    *_, stored, planned = direct
    assert set(planned) == stored and len(set(planned.values())) == len(planned) == N_RESULTS


def test_interrupted_calls_say_how_to_go_on(computed):
    _, said = computed
    first, second, last = said
    assert "network 0: 1 of 2 epochs" in first and "network 1: 1 of 2 epochs" in first
    assert "network 0: 2 of 2 epochs" in second and "network 1" not in second
    assert f"1 of {N_RESULTS} results are there; the time is up, the same command goes on" in second
    assert "all results are there" in last and "statistics, network 0" not in last, "what was there is not made again"


def test_brought_back_results_are_those_of_a_direct_run(collected, direct, packing_machine, tmp_path):
    data, nets, statistics, signals, random_signals, scores, (tried, made), *_ = direct
    assert len(list(collected.glob("results.*"))) > 3
    assert all(p.stat().st_size <= 0.1 * bundle.MIB for p in collected.glob("results.*"))
    assert bundle.unpack([collected]) == (N_RESULTS, 0)
    store = artifact_root() / "store"
    assert not list(store.rglob("*.part")) and not list(store.rglob("*.checkpoint"))
    found = supervised.load_networks(CFG, data)
    for mine, net in zip(found, nets, strict=True):
        assert all(torch.equal(v, net.model.state_dict()[k]) for k, v in mine.model.state_dict().items())
        assert (mine.history["val_f1"] == net.history["val_f1"]).all() and mine.best_epoch == net.best_epoch
    untrained, control = supervised.untrained(CFG, data), (paper_methods.CONTROL_METHODS, ("calibrated",))
    assert unit_statistics.load_statistics(CFG, data, found).identical(statistics)
    assert paper_methods.load_signals(CFG, found).identical(signals)
    assert paper_methods.load_signals(CFG, untrained, *control).identical(random_signals)
    for kind, table in scores.items():
        assert similarity.load_scores(CFG, data, found, kind).identical(table)
    # readings and recipes are found, not made: nothing may be computed here
    others = for_choosing(CFG)
    choosing = supervised.load_networks(others, data)
    own = unit_statistics.load_statistics(others, data, choosing)
    units = chosen_units(CFG.model.n_units, CFG.readings.n_units)

    def refuse(stage, key):
        raise AssertionError(f"{stage.name} was not brought back")

    with stages.around_builds(refuse):
        for net, wanted in zip(choosing, tried, strict=True):
            assert readings.signals(CFG, data, net, own.sel(seed=net.seed), readings.grid()).identical(wanted)
        for (c, some, of), wanted in zip(((others, choosing, own), (CFG, found, statistics)), made, strict=True):
            assert recipes.signals(c, data, some, of, recipes.RECIPES, units).identical(wanted)


def test_provenance_is_that_of_the_machine_that_computed(collected, packing_machine):
    bundle.unpack([collected])
    manifests = [read_json(p) for p in artifact_root().rglob("manifest.json")]
    real = {lib: importlib.metadata.version(lib) for lib in stages.VERSIONED}
    for manifest in manifests:
        about = manifest["provenance"]
        assert {lib: about["versions"][lib] for lib in real} == real and about["device"].startswith("cpu")
        assert about["git"] == stages.git_revision() and manifest["wall_s"] > 0


def test_a_result_that_is_there_is_kept(collected, packing_machine):
    bundle.unpack([collected])
    one = next(artifact_root().glob("store/scores/*/manifest.json"))
    other = next(artifact_root().glob("store/statistics/*"))
    before = one.stat().st_ino
    shutil.rmtree(other)
    assert bundle.unpack(sorted(collected.iterdir())) == (1, N_RESULTS - 1)
    assert one.stat().st_ino == before and other.exists()


def test_parts_can_be_fetched_in_turns(computed, collected, tmp_path, capsys):
    made, _ = computed
    n = len(list(collected.glob("results.*")))
    with pytest.MonkeyPatch.context() as there:
        there.setenv("HARVIS_KEYS", str(made.folder / "keys.json"))
        there.setenv("HARVIS_ARTIFACTS", str(made.folder / "data" / "derived"))
        for name, some in (("a", "1-3"), ("b", f"4-{n}")):
            words = ["run", "--collect", str(tmp_path / name), "--part-mib", "0.1", "--parts", some]
            assert bundle.main(words) == 0
        assert f"{N_RESULTS} of {N_RESULTS} results are there; {n - 3} parts of them" in capsys.readouterr().out
        assert bundle.main(["run", "--collect", str(tmp_path / "c"), "--parts", "900"]) == 1
        assert "there are parts 1 to 1; choose among these" in capsys.readouterr().err
    assert len(list((tmp_path / "a").iterdir())) == 3 + 1
    with another_machine():
        assert bundle.main(["unpack", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert f"{N_RESULTS} results put into" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- what can be wrong


def nothing_stored() -> bool:
    return not list(artifact_root().rglob("manifest.json"))


def test_too_large_names_the_largest(packing_machine, tmp_path):
    with pytest.raises(bundle.BundleError, match=r"the limit is 0.1; its largest members: recordings.npz \d"):
        bundle.pack(CFG, tmp_path / "x.tar", limit_mib=0.1)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_it_packed(tmp_path, capsys):
    out = tmp_path / "x.tar"
    assert bundle.main(["pack", "--out", str(out)]) == 0
    size = f"{out.stat().st_size / bundle.MIB:.1f} MiB"
    assert re.search(
        rf"{re.escape(str(out))}: {size}, recordings \d.*\nthere: tar xf x.tar && sh ", capsys.readouterr().out
    )


def test_a_damaged_part_is_named(parts, packing_machine):
    part = parts / "results.002"
    content = bytearray(part.read_bytes())
    content[1000] ^= 1
    part.write_bytes(content)
    with pytest.raises(bundle.BundleError, match=rf"{re.escape(str(part))} is damaged.*; fetch it again"):
        bundle.unpack([parts])
    assert nothing_stored()


def test_missing_parts_are_named(parts, packing_machine):
    for name in ("results.002", "results.003"):
        (parts / name).unlink()
    with pytest.raises(bundle.BundleError, match=r"missing: results.002, results.003, of \d+ parts"):
        bundle.unpack([parts])
    (parts / bundle.MANIFEST).unlink()
    with pytest.raises(bundle.BundleError, match="parts.json is missing"):
        bundle.unpack([parts])
    with pytest.raises(bundle.BundleError, match="nowhere: not there"):
        bundle.unpack([parts / "nowhere"])
    assert nothing_stored()


def test_a_damaged_manifest_and_mixed_collections_are_refused(parts, packing_machine, tmp_path):
    other = Path(shutil.copytree(parts, tmp_path / "other"))
    about = json.loads((other / bundle.MANIFEST).read_text())
    (other / bundle.MANIFEST).write_text(json.dumps(about | {"results": about["results"][:1]}))
    with pytest.raises(bundle.BundleError, match="are of different collections"):
        bundle.unpack([parts, other])
    (other / bundle.MANIFEST).write_text("{")
    with pytest.raises(bundle.BundleError, match=r"parts.json is damaged"):
        bundle.unpack([other])


def test_foreign_results_are_refused_saying_why(parts):
    with pytest.raises(bundle.BundleError, match="no notebook here would look for these results") as error:
        bundle.unpack([parts])
    torchs = importlib.metadata.version("torch").split("+")[0]
    assert f"torch is {torchs} here and was 99.5" in str(error.value) and "Python was 3." in str(error.value)
    about = json.loads((parts / bundle.MANIFEST).read_text())
    engine = hashlib.sha256(stages.source_file("engine").read_bytes()).hexdigest()
    del about["keys"]["code"][engine]
    (parts / bundle.MANIFEST).write_text(json.dumps(about))
    with pytest.raises(bundle.BundleError, match=r"harvis_utils.fast.ascent differs"):
        bundle.unpack([parts])
    assert nothing_stored()


def test_a_changed_package_is_not_run(computed, tmp_path, monkeypatch):
    made, _ = computed
    copy = Bundle(Path(shutil.copytree(made.folder, tmp_path / "copy")), Path(made.env["PYTHON"]))
    with open(copy.folder / "harvis_utils" / "fast" / "ascent.py", "a") as file:
        file.write("\nCHANGED = True\n")
    assert "this is not the code that was packed; unpack the bundle again" in copy.run(code=1)
    monkeypatch.setenv("HARVIS_KEYS", str(copy.folder / "keys.json"))
    with pytest.raises(bundle.BundleError, match="there are no results to collect yet"):
        bundle.collect(tmp_path / "out")


def test_missing_packages_are_named(computed, tmp_path):
    made, _ = computed
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    empty = dict(made.env, PYTHON=str(tmp_path / "empty" / "bin" / "python"))
    done = subprocess.run(**made.command(), env=empty, capture_output=True)
    assert done.returncode == 1 and "not installed here: torch, h5py, numpy" in done.stderr
    assert "scikit-learn" in done.stderr and "--wheels-for" in done.stderr


def test_outside_a_bundle_nothing_runs(capsys):
    assert bundle.main(["run"]) == 1
    assert "this is no unpacked bundle" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- the pieces


def test_every_call_gets_on_and_stops_in_time(tiny_windows, capsys):
    one_network = dataclasses.replace(CFG.training, batch_size=8, seeds=(0,))
    cfg = dataclasses.replace(CFG, model=ModelSettings(n_layers=2, n_units=4, n_dense=8), training=one_network)
    cfg = dataclasses.replace(cfg, readings=ReadingSettings(seeds=()))
    pieces, before = heavy.plan(cfg, tiny_windows.digest), -1
    for _ in range(2 + len(pieces)):
        try:
            heavy.run(cfg, tiny_windows, 0, workers=1)
            break
        except heavy.OutOfTime:
            present = sum(map(heavy.there, pieces))
            assert present <= max(before, 0) + 1, "one piece at most where there is no time"
            before = present
    assert all(map(heavy.there, pieces))
    heavy.run(cfg, tiny_windows, 0, workers=1)  # nothing to do needs no time
    assert capsys.readouterr().out.count("signals conv2 literal, network 0: ") == 1


def test_the_clock_knows_how_long_pieces_take(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    clock = heavy.Clock(1100.0, must=False, took={"short": 10.0})
    clock.begin("short")
    now[0] += 30
    assert clock.done("short") == 30
    clock.begin("unknown")  # taken for 60 s: until 1090
    now[0] += 45
    clock.done("unknown")
    with pytest.raises(heavy.OutOfTime):
        clock.begin("short")  # would end at 1105
    heavy.Clock(0.0, must=True).begin("short")


def test_a_network_that_fails_in_its_process_is_named(tiny_windows, capfd):
    cfg = dataclasses.replace(CFG, training=dataclasses.replace(CFG.training, learning_rate=1e30, batch_size=8))
    with pytest.raises(supervised.TrainingError, match="training of networks 1 failed; the reason stands above"):
        heavy._train_all(cfg, tiny_windows, [1], heavy.Clock(0.0, must=True), workers=2)
    assert "network 1: the loss is" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------- addresses and settings


def test_keys_take_versions_and_code_from_the_file_that_the_environment_names(monkeypatch, tmp_path):
    here = supervised.STAGE.key("x")
    source = {m: hashlib.sha256(stages.source_file(m).read_bytes()).hexdigest() for m in supervised.STAGE.modules}
    versions = {lib: importlib.metadata.version(lib).split("+")[0] for lib in stages.VERSIONED}
    same = {"versions": versions, "code": {source[m]: stages.code_digest(m) for m in source}}
    changes = {
        "same": same,
        "torch": {"versions": versions | {"torch": "9"}},
        "code": {"code": dict.fromkeys(source.values(), "0")},
    }
    found = {}
    for name, change in changes.items():
        write_json(tmp_path / f"{name}.json", same | change)
        monkeypatch.setenv("HARVIS_KEYS", str(tmp_path / f"{name}.json"))
        found[name] = supervised.STAGE.key("x")
    assert found["same"] == here and len({here, found["torch"], found["code"]}) == 3
    monkeypatch.setenv("HARVIS_KEYS", "nowhere.json")
    with pytest.raises(ArtifactError, match=re.escape(str(REPOSITORY / "nowhere.json"))):
        supervised.STAGE.key("x")


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_survive_json(profile):
    cfg = load_settings(profile, "dsads")
    assert from_json(json.loads(json.dumps(as_json(cfg)))) == cfg
    with pytest.raises(SettingsError, match="unknown settings colour; valid for ModelSettings: n_units"):
        from_json(as_json(cfg) | {"model": {"colour": "red"}})


# ------------------------------------------------------------------------------------------------------- wheels


def test_wheels_are_fetched_for_the_other_python_without_what_is_there(monkeypatch, tmp_path):
    """pip itself, on made-up wheels in a folder that stands for the package index."""
    pins = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text()))
    for name in {*bundle.NEEDED, "python-dateutil", "six"}:
        stem = f"{name.replace('-', '_')}-{pins[name]}"
        binary = "cp312-cp312-manylinux_2_27_x86_64" if name in ("numpy", "scipy") else "py3-none-any"
        needs = {"pandas": "python-dateutil", "python-dateutil": "six", "xarray": "pandas"}.get(name)
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {pins[name]}\n" + (
            f"Requires-Dist: {needs}\n" if needs else ""
        )
        with zipfile.ZipFile(tmp_path / f"{stem}-{binary}.whl", "w") as wheel:
            wheel.writestr(f"{stem}.dist-info/METADATA", about)
            wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    fetched = bundle.fetch_wheels("3.12", ["numpy", "SciPy", "pandas", "six"], tmp_path / "out")
    names = {name.partition("==")[0] for name in fetched}
    assert names == {*bundle.NEEDED, "python-dateutil"} - {"numpy", "scipy", "pandas"}
    assert len(list((tmp_path / "out").glob("*.whl"))) == len(names)
    with pytest.raises(bundle.BundleError, match=r"pip install failed: .*numpy"):
        bundle.fetch_wheels("3.11", [], tmp_path / "none")


def test_the_makefile_has_it():
    listed = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    assert "make gpu-bundle" in listed
