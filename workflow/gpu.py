"""A run's heavy results computed on a bare CUDA machine: packed here, run there by one command, brought back.

    python -m workflow.gpu pack --profile paper --dataset dsads    here: one tar file (make gpu-bundle)
    tar xf FILE; sh harvis-bundle/run.sh --device cuda             there: again while it exits with 75
    sh harvis-bundle/run.sh --collect OUT                          there: the results as numbered parts
    python -m workflow.gpu unpack OUT                              here: now the notebooks find them

A bundle holds the packages, the recordings and ``keys.json``: the settings, and what the addresses of results are made
of on the machine that packs it (library versions, digests of code). There ``HARVIS_KEYS`` names that file, so that
results get the addresses that notebooks look for here; their provenance says what they were really computed with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from harvis_utils.data import archive, kinds
from harvis_utils.data.windowing import Windows
from harvis_utils.paper.stages import Stages
from harvis_utils.parallel import command_line, threads, torch_device
from harvis_utils.settings import Settings, artifact_root, as_json, from_json, load_settings
from harvis_utils.store import results
from harvis_utils.store.code import code_digest
from harvis_utils.store.files import ArtifactError, replacing, write_json
from harvis_utils.training import supervised

#: the repository, there the unpacked bundle
ROOT = Path(__file__).resolve().parents[1]
FOLDER, RECORDINGS, MANIFEST = "harvis-bundle", "recordings.npz", "parts.json"
MIB = 2**20
#: exit code for "the time is up, call again": EX_TEMPFAIL of sysexits.h
MORE = 75

#: what a bundle needs, and the names under which it imports that
NEEDED = {name: name for name in ("torch", "h5netcdf", "h5py", "numpy", "pandas", "psutil", "safetensors", "scipy")}
NEEDED |= {"scikit-learn": "sklearn", "tqdm": "tqdm", "xarray": "xarray"}
#: pip takes each of these names as it is: a newer one does not include the older ones
PLATFORMS = [f"manylinux{n}_x86_64" for n in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "2010", "1")]


class BundleError(ArtifactError):
    """A bundle that cannot be made, run or brought back; the message says what to do."""


def stored() -> list[str]:
    """Addresses ("stage/key") of all results that are there."""
    store = artifact_root() / "store"
    return sorted(path.parent.relative_to(store).as_posix() for path in store.glob("*/*/manifest.json"))


def _state() -> dict:
    """What of this project's state addresses are made of, see :mod:`harvis_utils.store.results`."""
    return {
        "versions": results.versions(),
        "code": {_named(kept): code_digest(*_named(kept).rsplit(".", 1)) for kept in results.KEPT},
        "package": results.package_digest(),
        "python": platform.python_version(),
        "git": results.git_revision(),
    }


def _named(kept: results.Kept) -> str:
    return f"{kept.function.__module__}.{kept.function.__name__}"


# ------------------------------------------------------------------------------------------------------ here: packing


def pack(
    cfg: Settings, out: Path, limit_mib: float = 64, wheels_for: str | None = None, have: Iterable[str] = ()
) -> str:
    """Write the bundle of a run to the tar file ``out``, all or nothing; returns its size and largest files in words.

    ``wheels_for`` is the Python version ("3.12") of a machine that lacks packages other than torch and those in
    ``have``: their wheels travel too. Raises :class:`BundleError` beyond ``limit_mib``.
    """
    recordings = archive.load_recordings(cfg.dataset)
    data = {"digest": recordings.digest, "verified": recordings.verified}
    with tempfile.TemporaryDirectory() as made, replacing(out) as part:
        folder = Path(made, FOLDER)
        for package in ("harvis_utils", "workflow"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
        shutil.copyfile(Path(__file__).with_suffix(".sh"), folder / "run.sh")
        write_json(folder / "keys.json", {"settings": as_json(cfg), "data": data, "needs": NEEDED, **_state()})
        signals = {f"{i} {r.subject} {r.activity}": r.signal for i, r in enumerate(recordings.items)}
        np.savez(folder / RECORDINGS, **signals)
        if wheels_for:
            fetch_wheels(wheels_for, have, folder / "wheels")
        with tarfile.open(part, "w") as tar:
            tar.add(folder, FOLDER)
            largest = sorted(tar.getmembers(), key=lambda member: -member.size)[:3]
        size = part.stat().st_size / MIB
        said = ", ".join(f"{member.name.removeprefix(FOLDER + '/')} {member.size / MIB:.1f}" for member in largest)
        if size > limit_mib:
            raise BundleError(
                f"{out} would have {size:.1f} MiB, the limit is {limit_mib:g}; its largest files: {said}; "
                "name with --have what the other machine has, or raise --limit-mib"
            )
    return f"{size:.1f} MiB, its largest files: {said}"


def fetch_wheels(python: str, have: Iterable[str], folder: Path) -> None:
    """Download wheels for Python ``python`` on Linux, x86-64, of what is needed beside torch and ``have``."""
    there = {"torch", *map(_normal, have)}
    words = ["download", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--dest={folder}"]
    words += [f"--platform={name}" for name in PLATFORMS] + [f"--constraint={ROOT / 'constraints.txt'}"]
    words += [name for name in NEEDED if name not in there]
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BundleError(f"pip download failed: {done.stderr.strip()[-800:]}; nothing was packed")
    for wheel in folder.glob("*.whl"):
        if _normal(wheel.name.split("-")[0]) in there:  # what others of them need in turn
            wheel.unlink()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------------- there: computing and collecting


def unpacked(device: str | None) -> Stages:
    """Settings and recordings of the bundle that this is."""
    known = results.packed()
    if not known:
        raise BundleError("this is no unpacked bundle; start the run.sh of one")
    if results.package_digest() != known["package"]:
        raise BundleError(f"{ROOT}: this is not the code that was packed; unpack the bundle again")
    cfg = from_json(known["settings"] | {"device": device})
    run = Stages(cfg)
    with np.load(ROOT / RECORDINGS) as signals:
        items = tuple(kinds.Recording(*map(int, name.split()[1:]), signal) for name, signal in signals.items())
    run.recordings = kinds.Recordings(cfg.dataset, kinds.check_name(cfg.dataset), items, **known["data"])
    return run


def compute(run: Stages, workers: int = 1) -> None:
    """Compute what is missing of the results of notebooks 02 to 04, 07 and 09 that take long.

    What is there is not made again, and training goes on after its last epoch, so this can be killed anywhere. On CUDA
    ``workers`` networks are trained at once: a small network leaves a GPU mostly idle.
    """
    cfg, choosing = run.cfg, run.choosing
    if workers > 1 and torch_device(cfg.device).type == "cuda":
        train(run, workers)
    with results.around_builds(_said):
        # which ask for networks, statistics and signals
        for some, name in ((run, "scores"), (run, "controls"), (run, "readings"), (choosing, "controls")):
            getattr(some, name)


def train(run: Stages, workers: int) -> None:
    """Train the networks of a run and those for choosing, ``workers`` at once, each in a process of its own."""
    pairs = [(some, seed) for some in (run, run.choosing) for seed in some.cfg.training.seeds]
    each = [replace(some.cfg, training=replace(some.cfg.training, seeds=(seed,))) for some, seed in pairs]
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) as pool:
        list(pool.map(_train, each, [some.data for some, _ in pairs]))


def _train(cfg: Settings, data: Windows) -> None:
    supervised.networks(cfg, data)  # returned, they would be sent to the parent


def _end_with_parent() -> None:
    """In a worker: end when the process that waits for it was killed, and use one thread and no TF32."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _exactly(1)


def _exactly(threads: int) -> None:
    torch.set_num_threads(threads)
    # no TF32 on CUDA: its 10 bits of mantissa would be seen in every signal
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@contextmanager
def _said(stage: str, key: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    print(f"  {stage}/{key}: {time.perf_counter() - begun:.1f} s", flush=True)


def _stop() -> None:
    """The end of the time: what is stored is whole, so nothing has to be tidied up."""
    print(f"{len(stored())} results are there; the time is up, the same command goes on", flush=True)
    os._exit(MORE)


def collect(out: Path, part_mib: float = 16, chosen: range | None = None) -> list[Path]:
    """Write the results that are there to the folder ``out``, as parts of at most ``part_mib`` and a manifest.

    With ``chosen`` only the parts of these numbers (from 1): some machines give back little at once. The manifest
    always names all parts, and they are the same in every call while no result is added.
    """
    there = stored()
    if not there:
        raise BundleError("there are no results to collect yet; run.sh without --collect makes them")
    out.mkdir(parents=True, exist_ok=True)
    digests, written = {}, []
    with tempfile.TemporaryFile(dir=out) as whole:
        with tarfile.open(fileobj=whole, mode="w") as tar:
            for address in there:
                tar.add(artifact_root() / "store" / address, address)
        whole.seek(0)
        while block := whole.read(int(part_mib * MIB)):
            name = f"results.{len(digests) + 1:03d}"
            digests[name] = hashlib.sha256(block).hexdigest()
            if chosen is None or len(digests) in chosen:
                with replacing(out / name) as part:
                    part.write_bytes(block)
                written.append(out / name)
    if not written:
        raise BundleError(f"there are parts 1 to {len(digests)}; choose among these")
    write_json(out / MANIFEST, {"parts": digests, "results": there, "keys": results.packed()})
    return written


# ------------------------------------------------------------------------------------------ here: what was brought back


def unpack(paths: Sequence[Path]) -> tuple[int, int]:
    """Put collected results into the store; ``paths`` are folders with parts and their manifest, or files in these.

    Returns how many were put there, and how many were there already and stay as they are. Raises
    :class:`BundleError` for missing or damaged parts, and for results that no notebook here would look for.
    """
    if absent := [str(path) for path in paths if not path.exists()]:
        raise BundleError(f"{', '.join(absent)}: not there")
    folders = sorted({path if path.is_dir() else path.parent for path in paths})
    parts = {file.name: file for folder in folders for file in folder.iterdir()}
    manifests = [folder / MANIFEST for folder in folders if (folder / MANIFEST).exists()]
    if not manifests:
        raise BundleError(f"{MANIFEST} is missing, which was written beside the parts; fetch it too")
    try:
        about, *others = (json.loads(file.read_text(encoding="utf-8")) for file in manifests)
    except ValueError as error:
        raise BundleError(f"one of {', '.join(map(str, manifests))} is damaged ({error}); fetch it again") from error
    if any(other != about for other in others):
        raise BundleError(f"{', '.join(map(str, manifests))} are of different collections; give the parts of one")
    _check_state(about["keys"], {address.partition("/")[0] for address in about["results"]})
    if missing := [name for name in about["parts"] if name not in parts]:
        raise BundleError(f"missing: {', '.join(missing)}, of {len(about['parts'])} parts; fetch them too")
    store = artifact_root() / "store"
    store.mkdir(parents=True, exist_ok=True)
    new = set(about["results"]) - set(stored())
    with tempfile.TemporaryFile() as whole, tempfile.TemporaryDirectory(dir=store, prefix=".unpacking.") as folder:
        for name, digest in about["parts"].items():
            content = parts[name].read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise BundleError(f"{parts[name]} is damaged: its SHA-256 is not the one noted; fetch it again")
            whole.write(content)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as tar:
            tar.extractall(folder, filter="data")
        for address in new:
            (store / address).parent.mkdir(exist_ok=True)
            os.replace(Path(folder, address), store / address)
    return len(new), len(about["results"]) - len(new)


def _check_state(packed: dict, stages: set[str]) -> None:
    """Refuse results of these stages that were computed in another state of the project, and say what differs."""
    here = _state()
    why = [
        f"{library} is {version} here and was {packed['versions'].get(library)}"
        for library, version in here["versions"].items()
        if version != packed["versions"].get(library)
    ]
    for name in (_named(kept) for kept in results.KEPT if kept.stage in stages and not kept.version):
        if here["code"][name] != packed["code"].get(name):
            same = here["package"] == packed["package"]
            why.append(f"Python was {packed['python']}" if same else f"{name} differs")
    if why:
        raise BundleError(
            f"no notebook here would look for these results: {'; '.join(dict.fromkeys(why))}. Use the project as it "
            f"was when the bundle was packed (revision {packed['git']}), or pack and run again"
        )


# --------------------------------------------------------------------------------------------------- the command line


def _pack_command(words: argparse.Namespace) -> None:
    cfg = kinds.fitted(load_settings(words.profile, words.dataset))
    out = words.out or ROOT / "dist" / f"harvis-{cfg.profile}-{cfg.dataset}.tar"
    print(f"{out}: {pack(cfg, out, words.limit_mib, words.wheels_for, words.have)}")
    print(f"there: tar xf {out.name} && sh {FOLDER}/run.sh --device cuda    (again while it exits with {MORE})")


def _run_command(words: argparse.Namespace) -> None:
    if words.collect:
        written = collect(words.collect, words.part_mib, words.parts)
        print(f"{len(stored())} results are there; {len(written)} parts of them in {words.collect}")
        return
    run = unpacked(words.device)
    stopping = threading.Timer(max(0.0, words.began + words.seconds - time.time()), _stop)
    stopping.daemon = True
    stopping.start()
    _exactly(threads())
    print(f"{len(stored())} results are there; device {results.provenance(words.device)['device']}", flush=True)
    compute(run, words.workers or threads())
    print(f"all {len(stored())} results are there; to bring them back: sh run.sh --collect OUT")


def _unpack_command(words: argparse.Namespace) -> None:
    new, old = unpack(words.parts)
    print(f"{new} results put into {artifact_root() / 'store'}; {old} were there already")


def _numbers(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


@command_line
def main(arguments: list[str] | None = None) -> None:
    """``pack``, ``run`` or ``unpack``; 0 when it worked, 75 when there is more to run, 1 with a message otherwise."""
    parser = argparse.ArgumentParser(prog="python -m workflow.gpu", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="write the bundle")
    packing.set_defaults(command=_pack_command)
    packing.add_argument("--profile", default="quick")
    packing.add_argument("--dataset", default="synthetic")
    packing.add_argument("--out", type=Path, metavar="FILE", help="default: dist/harvis-<profile>-<dataset>.tar")
    packing.add_argument("--limit-mib", type=float, default=64, help="refuse to write a larger one (%(default)s)")
    packing.add_argument("--wheels-for", metavar="3.12", help="carry packages, for this version of Python")
    packing.add_argument("--have", nargs="*", default=[], metavar="NAME", help="packages not to carry, beside torch")
    running = commands.add_parser("run", help="in an unpacked bundle, by run.sh: compute or collect")
    running.set_defaults(command=_run_command)
    running.add_argument("--seconds", type=float, default=480, help="stop then; a result takes less (%(default)s)")
    running.add_argument("--began", type=float, default=time.time(), help="Unix seconds from which these count (now)")
    running.add_argument("--device", help="default: cuda where there is one")
    running.add_argument("--workers", type=int, help="networks trained at once on CUDA; default: as many as threads")
    running.add_argument("--collect", type=Path, metavar="OUT", help="write the results to this folder instead")
    running.add_argument("--part-mib", type=float, default=16, help="largest part (%(default)s)")
    running.add_argument("--parts", type=_numbers, metavar="1-4", help="write only these")
    unpacking = commands.add_parser("unpack", help="put collected results into the store")
    unpacking.set_defaults(command=_unpack_command)
    unpacking.add_argument("parts", nargs="+", type=Path, help="folders with parts and their manifest, or files there")
    words = parser.parse_args(arguments)
    words.command(words)


if __name__ == "__main__":
    sys.exit(main())
