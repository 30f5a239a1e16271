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
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from harvis_utils.paper.stages import Stages
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
    from_json,
    load_settings,
)
from harvis_utils.store import results
from harvis_utils.store.files import read_json, write_json
from harvis_utils.training import supervised
from workflow import gpu

pytestmark = pytest.mark.usefixtures("one_thread")

CFG = dataclasses.replace(
    load_settings("quick", "synthetic", "cpu"),
    windows=WindowSettings(step=150),
    model=ModelSettings(n_units=4, n_dense=8),
    training=TrainingSettings(seeds=(0,), epochs=2, learning_rate=1e-2, batch_size=64),
    maximization=MaximizationSettings(n_steps=4),
    similarity=SimilaritySettings(n_similar=5),
    readings=ReadingSettings(seeds=(100,), n_units=1),
)


@contextmanager
def another_machine():
    """One that has other versions, and a Python with other syntax trees, than the bare one that computes."""
    real = results.code_digest

    def other(module: str, name: str) -> str:
        return hashlib.sha256(real(module, name).encode()).hexdigest()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(results, "version", lambda lib: f"99.{len(lib)}+cpu")
        for module in (results, gpu):
            patched.setattr(module, "code_digest", other)
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
    for name in needed_by(gpu.NEEDED) - {"h5netcdf"}:
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
        said = gpu.pack(CFG, out)
    assert re.match(rf"{out.stat().st_size / gpu.MIB:.1f} MiB, its largest files: recordings.npz \d", said)
    with tarfile.open(out) as tar:
        assert not [name for name in tar.getnames() if "pycache" in name]
    return out


@pytest.fixture(scope="module")
def computed(packed, bare, tmp_path_factory):
    """The bundle after all calls that it takes, with what they printed."""
    folder = tmp_path_factory.mktemp("there")
    with tarfile.open(packed) as tar:
        tar.extractall(folder, filter="data")
    made, said = Bundle(folder / gpu.FOLDER, bare), []
    distribution = importlib.metadata.distribution("h5netcdf")
    (made.folder / "wheels").mkdir()
    with zipfile.ZipFile(made.folder / "wheels" / "h5netcdf-py3-none-any.whl", "w") as wheel:
        for file in distribution.files:
            if ".." not in file.parts:
                wheel.write(distribution.locate_file(file), file)
    said.append(made.run("--seconds", 0, code=75))
    # a kill in the middle of the signals
    running = subprocess.Popen(**made.command("--seconds", 600), env=made.env, stdout=subprocess.PIPE)
    for line in running.stdout:
        if line.startswith("  signals/") and made.stored("signals"):
            running.send_signal(signal.SIGKILL)  # sh has become python
    running.wait()
    assert running.returncode == -signal.SIGKILL and 1 <= made.stored("signals") < 9
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
    """The same run without a bundle, all of it read, and the addresses of its results."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HARVIS_ARTIFACTS", str(tmp_path_factory.mktemp("direct")))
        patched.setenv("HARVIS_THREADS", "1")
        torch.set_num_threads(1)
        run = Stages(CFG)
        return run, all_of(run), gpu.stored()


def all_of(run: Stages) -> list:
    """What notebooks 02 to 04 and 07 ask for."""
    return [
        run.statistics,
        run.signals,
        run.random_signals,
        run.scores,
        run.controls,
        run.readings,
        run.choosing.controls,
    ]


# ------------------------------------------------------------------------------------------------- the whole way


def test_interrupted_calls_go_on_and_end_with_what_a_direct_run_stores(computed, collected, direct):
    _, (first, last) = computed
    assert "0 results are there; the time is up, the same command goes on" in first
    assert f"all {len(direct[-1])} results are there" in last
    assert last.count("networks/") == 1 and "statistics/" in last, "only those for choosing were not there yet"
    there = read_json(collected / gpu.MANIFEST)["results"]
    assert [a.partition("/")[0] for a in there] == [a.partition("/")[0] for a in direct[-1]], "as many of each stage"


def test_brought_back_results_are_those_of_a_direct_run(collected, direct, packing_machine):
    run, wanted, stored = direct
    assert len(list(collected.glob("results.*"))) > 3
    assert all(p.stat().st_size <= 0.1 * gpu.MIB for p in collected.glob("results.*"))
    assert gpu.unpack([collected]) == (len(stored), 0)
    assert not [p for p in (artifact_root() / "store").rglob(".*")]

    def refuse(stage, key):
        raise AssertionError(f"{stage} was not brought back")

    here = Stages(CFG)
    with results.around_builds(refuse):
        for mine, other in zip(all_of(here), wanted, strict=True):
            assert mine.identical(other)
        for mine, net in zip(here.networks, run.networks, strict=True):
            assert all(torch.equal(v, net.model.state_dict()[k]) for k, v in mine.model.state_dict().items())
            assert (mine.history["val_f1"] == net.history["val_f1"]).all() and mine.best_epoch == net.best_epoch

    real = {lib: importlib.metadata.version(lib) for lib in results.VERSIONED}  # of the machine that computed
    for manifest in map(read_json, artifact_root().rglob("manifest.json")):
        about = manifest["provenance"]
        assert {lib: about["versions"][lib] for lib in real} == real and about["device"].startswith("cpu")
        assert about["git"] == results.git_revision() and manifest["wall_s"] > 0

    one = next(artifact_root().glob("store/scores/*/manifest.json"))
    other = next(artifact_root().glob("store/statistics/*"))
    before = one.stat().st_ino
    shutil.rmtree(other)
    assert gpu.unpack(sorted(collected.iterdir())) == (1, len(stored) - 1), "a result that is there is kept"
    assert one.stat().st_ino == before and other.exists()


def test_parts_can_be_fetched_in_turns(computed, collected, tmp_path, capsys):
    made, _ = computed
    n = len(list(collected.glob("results.*")))
    with pytest.MonkeyPatch.context() as there:
        there.setenv("HARVIS_KEYS", str(made.folder / "keys.json"))
        there.setenv("HARVIS_ARTIFACTS", str(made.folder / "data" / "derived"))
        for name, some in (("a", "1-3"), ("b", f"4-{n}")):
            words = ["run", "--collect", str(tmp_path / name), "--part-mib", "0.1", "--parts", some]
            assert gpu.main(words) == 0
        assert f"results are there; {n - 3} parts of them" in capsys.readouterr().out
        assert gpu.main(["run", "--collect", str(tmp_path / "c"), "--parts", "900"]) == 1
        assert "there are parts 1 to 1; choose among these" in capsys.readouterr().err
    assert len(list((tmp_path / "a").iterdir())) == 3 + 1
    with another_machine():
        assert gpu.main(["unpack", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "results put into" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- what can be wrong


def nothing_stored() -> bool:
    return not list(artifact_root().rglob("manifest.json"))


def test_the_command_says_what_it_packed_and_refuses_what_is_too_large(tmp_path, capsys):
    out = tmp_path / "x.tar"
    assert gpu.main(["pack", "--out", str(out)]) == 0
    size, said = f"{out.stat().st_size / gpu.MIB:.1f} MiB", capsys.readouterr().out
    assert re.search(rf"{re.escape(str(out))}: {size}, .* recordings.npz \d.*\nthere: tar xf x.tar && sh ", said)
    with pytest.raises(gpu.BundleError, match=r"the limit is 0.1; its largest files: recordings.npz \d"):
        gpu.pack(CFG, tmp_path / "y.tar", limit_mib=0.1)
    assert list(tmp_path.iterdir()) == [out]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def change(manifest: Path, **changes) -> None:
    write_json(manifest, read_json(manifest) | changes)


SPOILED = {
    "are damaged": (lambda parts: damage(parts / "results.002"), "results.002 is damaged.*; fetch it again"),
    "are gone": (
        lambda parts: [(parts / f"results.00{i}").unlink() for i in (2, 3)],
        "missing: results.002, results.003, of",
    ),
    "have no manifest": (lambda parts: (parts / gpu.MANIFEST).unlink(), "parts.json is missing"),
    "have half a manifest": (lambda parts: (parts / gpu.MANIFEST).write_text("{"), "parts.json is damaged"),
    "are nowhere": (shutil.rmtree, "parts: not there"),
    "are of two collections": (
        lambda parts: change(Path(shutil.copytree(parts, parts / "b")) / gpu.MANIFEST, results=[]),
        "are of different collections",
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_parts_are_refused_that(what, parts, packing_machine):
    spoil, said = SPOILED[what]
    spoil(parts)
    given = [parts, parts / "b"] if (parts / "b").exists() else [parts]
    with pytest.raises(gpu.BundleError, match=said):
        gpu.unpack(given)
    assert nothing_stored()


def test_foreign_results_are_refused_saying_why(parts):
    torchs = importlib.metadata.version("torch").split("+")[0]
    with pytest.raises(gpu.BundleError, match="no notebook here would look for these results") as error:
        gpu.unpack([parts])
    assert f"torch is {torchs} here and was 99.5" in str(error.value) and "Python was 3." in str(error.value)
    change(parts / gpu.MANIFEST, keys=read_json(parts / gpu.MANIFEST)["keys"] | {"package": "another"})
    with pytest.raises(gpu.BundleError, match=r"unit_statistics.statistics_of differs"):
        gpu.unpack([parts])
    assert nothing_stored()


def test_a_changed_package_is_not_run(computed, tmp_path, monkeypatch):
    made, _ = computed
    copy = Bundle(Path(shutil.copytree(made.folder, tmp_path / "copy")), Path(made.env["PYTHON"]))
    with open(copy.folder / "harvis_utils" / "parallel.py", "a") as file:
        file.write("\nCHANGED = True\n")
    assert "this is not the code that was packed; unpack the bundle again" in copy.run(code=1)
    monkeypatch.setenv("HARVIS_KEYS", str(copy.folder / "keys.json"))
    with pytest.raises(gpu.BundleError, match="there are no results to collect yet"):
        gpu.collect(tmp_path / "out")


def test_missing_packages_are_named_and_outside_a_bundle_nothing_runs(computed, tmp_path, capsys):
    made, _ = computed
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    empty = dict(made.env, PYTHON=str(tmp_path / "empty" / "bin" / "python"))
    done = subprocess.run(**made.command(), env=empty, capture_output=True)
    assert done.returncode == 1 and "not installed here: torch, h5py, numpy" in done.stderr
    assert "scikit-learn" in done.stderr and "--wheels-for" in done.stderr
    assert gpu.main(["run"]) == 1
    assert "this is no unpacked bundle" in capsys.readouterr().err


def test_networks_trained_at_once_in_processes_are_those_of_one_and_say_what_failed(direct, monkeypatch):
    """As on CUDA, where each has a process of its own; here these compute on the CPU."""
    run, *_ = direct
    monkeypatch.setattr(gpu, "torch_device", lambda _: SimpleNamespace(type="cuda"))
    fails = dataclasses.replace(CFG, training=TrainingSettings(seeds=(7,), epochs=1, learning_rate=1e30, batch_size=8))
    both = SimpleNamespace(cfg=CFG, data=run.data, choosing=SimpleNamespace(cfg=fails, data=run.data))
    with pytest.raises(supervised.TrainingError, match="network 7: the loss is"):
        gpu.compute(both, workers=2)
    (address,) = gpu.stored()
    assert address.startswith("networks/") and address in direct[-1]
    ((mine,), (net,)) = Stages(CFG).networks, run.networks
    assert all(torch.equal(v, net.model.state_dict()[k]) for k, v in mine.model.state_dict().items())


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
    wanted = {*gpu.NEEDED, "python-dateutil"} - {"torch"}
    for name in {*wanted, "six"}:
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
    gpu.fetch_wheels("3.12", ["numpy", "SciPy", "pandas", "six"], tmp_path / "out")
    fetched = sorted(wheel.name.split("-")[0].replace("_", "-") for wheel in (tmp_path / "out").iterdir())
    assert fetched == sorted(wanted - {"numpy", "scipy", "pandas"})
    with pytest.raises(gpu.BundleError, match=r"pip download failed: .*numpy"):
        gpu.fetch_wheels("3.11", [], tmp_path / "none")
