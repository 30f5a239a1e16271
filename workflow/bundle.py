"""A run's heavy results computed on a bare CUDA machine: packed here, run there by one command, brought back.

    python -m workflow.bundle pack --profile paper --dataset dsads    here: one tar file (make gpu-bundle)
    tar xf FILE; sh harvis-bundle/run.sh --device cuda                    there: again while it exits with 75
    sh harvis-bundle/run.sh --collect OUT                                 there: the results as numbered parts
    python -m workflow.bundle unpack OUT                              here: now the notebooks find them

A bundle holds the packages, the recordings and ``keys.json``: the settings, and what the addresses of results are made
of on the machine that packs it (library versions, digests of code). There ``HARVIS_KEYS`` names that file, so that
results get the addresses that notebooks look for here; their provenance says what they were really computed with.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from harvis_utils.data import archive, kinds, windowing
from harvis_utils.parallel import threads
from harvis_utils.settings import (
    REPOSITORY,
    Settings,
    SettingsError,
    artifact_root,
    as_json,
    from_json,
    keys_file,
    load_settings,
)
from harvis_utils.store import stages
from harvis_utils.store.files import ArtifactError, replacing, write_json
from harvis_utils.training import supervised
from workflow import heavy

FOLDER, RECORDINGS, MANIFEST = "harvis-bundle", "recordings.npz", "parts.json"
MIB = 2**20

#: what the heavy stages need beside torch, and the names under which they import it
NEEDED = {name: name for name in ("h5netcdf", "h5py", "numpy", "pandas", "psutil", "safetensors", "scipy", "tqdm")}
NEEDED |= {"scikit-learn": "sklearn", "xarray": "xarray"}
#: where torch is, its own dependencies are
TORCHS = {"torch", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "setuptools", "sympy"}
TORCHS |= {"typing-extensions"}
#: pip takes each of these names as it is: a newer one does not include the older ones
PLATFORMS = [f"manylinux{n}_x86_64" for n in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "2010", "1")]

RUN = r"""#!/bin/sh
# Computes what is missing, as far as the seconds reach; exits with 75 while there is more to do.
#   sh run.sh [--seconds 480] [--device cuda] [--workers 5]
#   sh run.sh --collect OUT [--part-mib 16] [--parts 1-4]
# The environment variable PYTHON names the interpreter (python3); it needs torch.
began=$(date +%s)
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-python3}
if [ -d "$here/wheels" ] && [ ! -e "$here/site/.complete" ]; then
    for wheel in "$here"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$here/site" || exit 1; done
    : > "$here/site/.complete"
fi
# safe path: the package here, not one in the folder where this is called
export PYTHONPATH="$here:$here/site" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export HARVIS_KEYS=keys.json HARVIS_ARTIFACTS=data/derived
export OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
unset HARVIS_JOURNAL HARVIS_PROGRESS
"$python" -c '
import importlib.util, sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed; let PYTHON name one")
pairs = [word.split("=") for word in sys.argv[1:]]
gone = [package for package, module in pairs if not importlib.util.find_spec(module)]
if gone:
    sys.exit("not installed here: " + ", ".join(gone) + "; install them, or pack again with --wheels-for")
' MODULES || exit 1
exec "$python" -m workflow.bundle run --began "$began" "$@"
""".replace("MODULES", " ".join(f"{package}={module}" for package, module in {"torch": "torch", **NEEDED}.items()))


class BundleError(RuntimeError):
    """A bundle or its results cannot be used; the message names the file, what is wrong and what to do."""


def _modules() -> list[str]:
    return sorted({module for stage in heavy.STAGES.values() for module in stage.modules})


def _versions() -> dict[str, str]:
    """Library versions as keys hold them."""
    return dict(zip(stages.VERSIONED, stages.key_parts(())["versions"], strict=True))


def _code(module: str) -> str:
    """Digest of a module as keys hold it."""
    return stages.key_parts([module])["code"][0]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ------------------------------------------------------------------------------------------------------ here: packing


def pack(
    cfg: Settings, out: Path, limit_mib: float = 64, wheels_for: str | None = None, have: Iterable[str] = ()
) -> dict[str, int]:
    """Write the bundle of a run to the tar file ``out``, all or nothing; returns its members' sizes in bytes.

    ``wheels_for`` is the Python version ("3.12") of a machine that lacks packages other than torch and those in
    ``have``: their wheels travel too. Raises :class:`BundleError` beyond ``limit_mib``.
    """
    recordings = archive.load_recordings(cfg.dataset)
    known = {
        "settings": as_json(cfg) | {"device": None},
        "data": {"digest": recordings.digest, "verified": recordings.verified},
        "results": heavy.plan(cfg, recordings.digest),
        "versions": _versions(),
        "code": {_digest(stages.source_file(m).read_bytes()): _code(m) for m in _modules()},
        "python": platform.python_version(),
        "git": stages.git_revision(),
    }
    with tempfile.TemporaryDirectory() as made, replacing(out) as part:
        folder = Path(made)
        (folder / "run.sh").write_text(RUN, encoding="utf-8")
        write_json(folder / "keys.json", known)
        archive._save(folder / RECORDINGS, recordings.items)
        if wheels_for:
            fetch_wheels(wheels_for, have, folder / "wheels")
        members = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        code = [p for name in ("harvis_utils", "workflow") for p in sorted((REPOSITORY / name).rglob("*"))]
        sources = [p for p in code if p.suffix in (".py", ".json", ".txt")]
        members |= {p.relative_to(REPOSITORY).as_posix(): p for p in (*sources, REPOSITORY / "LICENSE")}
        _write_tar(part, {f"{FOLDER}/{name}": path for name, path in members.items()})
        sizes = {name: path.stat().st_size for name, path in members.items()}
        if (size := part.stat().st_size) > limit_mib * MIB:
            largest = sorted(sizes, key=sizes.get, reverse=True)[:3]
            raise BundleError(
                f"{out} would have {size / MIB:.1f} MiB, the limit is {limit_mib:g}; its largest members: "
                + ", ".join(f"{name} {sizes[name] / MIB:.1f}" for name in largest)
                + "; name with --have what the other machine has, or raise --limit-mib"
            )
    return sizes


def _write_tar(path: Path, members: dict[str, Path]) -> None:
    """A tar file that depends on its members' names, times and contents alone."""
    with tarfile.open(path, "w") as tar:
        for name, file in members.items():
            about = tarfile.TarInfo(name)
            about.size, about.mtime = file.stat().st_size, int(file.stat().st_mtime)
            with file.open("rb") as content:
                tar.addfile(about, content)


def fetch_wheels(python: str, have: Iterable[str], folder: Path) -> list[str]:
    """Wheels for Python ``python`` on Linux, x86-64, of what is needed beside torch and ``have``; names what it got."""
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    target += [word for name in PLATFORMS for word in ("--platform", name)]
    target += ["-c", REPOSITORY / "constraints.txt"]
    kept = TORCHS | {_normal(name) for name in have}
    wanted = [name for name in NEEDED if name not in kept]
    # pip says what these need in turn on that Python
    report = _pip("install", "--dry-run", "--ignore-installed", "--target", folder, "--report", "-", *target, *wanted)
    found = {_normal(r["metadata"]["name"]): r["metadata"]["version"] for r in json.loads(report)["install"]}
    fetched = [f"{name}=={release}" for name, release in sorted(found.items()) if name not in kept]
    if fetched:
        _pip("download", "--no-deps", "--dest", folder, *target, *fetched)
    return fetched


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(*words) -> str:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BundleError(f"pip {words[0]} failed: {done.stderr.strip()[-800:]}; nothing was packed")
    return done.stdout


# ------------------------------------------------------------------------------------- there: computing and collecting


def unpacked(device: str | None) -> tuple[Settings, windowing.Windows]:
    """Settings and windows of the bundle that this is."""
    known = stages.packed()
    if not known:
        raise BundleError("this is no unpacked bundle; start the run.sh of one")
    cfg = dataclasses.replace(from_json(known["settings"]), device=device)
    if heavy.plan(cfg, known["data"]["digest"]) != known["results"]:
        raise BundleError(f"{REPOSITORY}: this is not the code that was packed; unpack the bundle again")
    items = archive._read(keys_file().with_name(RECORDINGS))
    recordings = kinds.Recordings(cfg.dataset, kinds.check_name(cfg.dataset), items, **known["data"])
    return cfg, windowing.cut(recordings, cfg.windows)


def collect(out: Path, part_mib: float = 16, chosen: range | None = None) -> list[Path]:
    """Write the results that are there to the folder ``out``, as parts of at most ``part_mib`` and a manifest.

    With ``chosen`` only the parts of these numbers (from 1): some machines give back little at once. The manifest
    always names all parts, and they are the same in every call while no result is added.
    """
    known = stages.packed()
    there = [address for address in known.get("results", ()) if heavy.there(address)]
    if not there:
        raise BundleError("there are no results to collect yet; run.sh without --collect makes them")
    folders = {address: _stage(address).require(Path(address).name) for address in there}
    out.mkdir(parents=True, exist_ok=True)
    digests, written = {}, []
    with tempfile.TemporaryDirectory(dir=out) as made:
        whole = Path(made, "results.tar")
        _write_tar(whole, {f"{a}/{path.name}": path for a, f in folders.items() for path in sorted(f.iterdir())})
        with whole.open("rb") as content:
            while block := content.read(int(part_mib * MIB)):
                name = f"results.{len(digests) + 1:03d}"
                digests[name] = _digest(block)
                if chosen is None or len(digests) in chosen:
                    with replacing(out / name) as part:
                        part.write_bytes(block)
                    written.append(out / name)
    if not written:
        raise BundleError(f"there are parts 1 to {len(digests)}; choose among these")
    write_json(out / MANIFEST, {"parts": digests, "results": there, "keys": known})
    return written


def _stage(address: str) -> stages.Stage:
    return heavy.STAGES[address.partition("/")[0]]


# ------------------------------------------------------------------------------------------ here: what was brought back


def unpack(paths: Sequence[Path]) -> tuple[int, int]:
    """Put collected results into the store; ``paths`` are the parts and their manifest, or the folders they are in.

    Returns how many were put there, and how many were there already and stay as they are. Raises
    :class:`BundleError` for missing or damaged parts, and for results that no notebook here would look for.
    """
    if absent := [str(path) for path in paths if not path.exists()]:
        raise BundleError(f"{', '.join(absent)}: not there")
    files = [f for path in paths for f in (sorted(path.iterdir()) if path.is_dir() else [path])]
    files += sorted({f.with_name(MANIFEST) for f in files} - set(files))
    manifests = [f for f in files if f.name == MANIFEST and f.exists()]
    if not manifests:
        raise BundleError(f"{MANIFEST} is missing, which was written beside the parts; fetch it too")
    try:
        about, *others = (json.loads(f.read_text(encoding="utf-8")) for f in manifests)
    except ValueError as error:
        raise BundleError(f"one of {', '.join(map(str, manifests))} is damaged ({error}); fetch it again") from error
    if any(other != about for other in others):
        raise BundleError(f"{', '.join(map(str, manifests))} are of different collections; give the parts of one")
    _check_addresses(about["keys"])
    parts = {f.name: f for f in files if f.exists()}
    if missing := [name for name in about["parts"] if name not in parts]:
        raise BundleError(f"missing: {', '.join(missing)}, of {len(about['parts'])} parts; fetch them too")
    brought = [address for address in about["keys"]["results"] if address in about["results"]]
    new = [address for address in brought if not heavy.there(address)]
    with tempfile.TemporaryFile() as whole:
        for name, digest in about["parts"].items():
            content = parts[name].read_bytes()
            if _digest(content) != digest:
                raise BundleError(f"{parts[name]} is damaged: its SHA-256 is not the one noted; fetch it again")
            whole.write(content)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as tar:
            for address in new:
                _adopt(tar, address)
    return len(new), len(brought) - len(new)


def _check_addresses(known: dict) -> None:
    """Refuse results of another state of the project, and say in what it differs."""
    if heavy.plan(from_json(known["settings"]), known["data"]["digest"]) == known["results"]:
        return
    here, packed = _versions(), known["versions"]
    why = [f"{lib} is {here[lib]} here and was {packed.get(lib)}" for lib in here if here[lib] != packed.get(lib)]
    for module in _modules():
        if _code(module) not in known["code"].values():
            same = _digest(stages.source_file(module).read_bytes()) in known["code"]
            why.append(f"Python was {known['python']}" if same else f"harvis_utils.{module} differs")
    raise BundleError(
        f"no notebook here would look for these results: {'; '.join(dict.fromkeys(why)) or 'another plan of stages'}. "
        f"Use the project as it was when the bundle was packed (revision {known['git']}), or pack and run again"
    )


def _adopt(tar: tarfile.TarFile, address: str) -> None:
    """Store one result, with the provenance that it came with."""

    def read(name: str) -> bytes:
        return tar.extractfile(f"{address}/{name}").read()

    about = json.loads(read("manifest.json"))

    def build(folder: Path) -> float:
        for name in about["files"]:
            (folder / Path(name).name).write_bytes(read(name))
        return float(about["wall_s"])

    _stage(address).obtain(Path(address).name, build, about["provenance"])


# --------------------------------------------------------------------------------------------------- the command line


def _pack_command(words: argparse.Namespace) -> None:
    cfg = load_settings(words.profile, words.dataset)
    out = Path(words.out or REPOSITORY / "dist" / f"harvis-{cfg.profile}-{cfg.dataset}.tar")
    sizes = pack(cfg, out, words.limit_mib, words.wheels_for, words.have)
    wheels = sum(size for name, size in sizes.items() if name.startswith("wheels/"))
    print(f"{out}: {out.stat().st_size / MIB:.1f} MiB", end=", ")
    print(f"recordings {sizes[RECORDINGS] / MIB:.1f}, wheels {wheels / MIB:.1f}")
    print(f"there: tar xf {out.name} && sh {FOLDER}/run.sh --device cuda    (again while it exits with {heavy.MORE})")


def _run_command(words: argparse.Namespace) -> None:
    if words.collect:
        first, _, last = words.parts.partition("-")
        written = collect(
            Path(words.collect), words.part_mib, range(int(first), int(last or first) + 1) if first else None
        )
        print(f"{heavy.count(stages.packed()['results'])}; {len(written)} parts of them in {words.collect}")
        return
    cfg, data = unpacked(words.device)
    torch.set_num_threads(threads())
    print(f"{heavy.count(stages.packed()['results'])}; device {stages.provenance(cfg)['device']}", flush=True)
    heavy.run(cfg, data, words.began + words.seconds, words.workers or threads())
    print("all results are there; to bring them back: sh run.sh --collect OUT")


def _unpack_command(words: argparse.Namespace) -> None:
    new, old = unpack(words.parts)
    print(f"{new} results put into {artifact_root() / 'store'}; {old} were there already")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workflow.bundle", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="write the bundle")
    packing.set_defaults(command=_pack_command)
    packing.add_argument("--profile", default="quick")
    packing.add_argument("--dataset", default="synthetic")
    packing.add_argument("--out", metavar="FILE", help="default: dist/harvis-<profile>-<dataset>.tar")
    packing.add_argument("--limit-mib", type=float, default=64, help="refuse to write a larger one (%(default)s)")
    packing.add_argument("--wheels-for", metavar="3.12", help="carry packages, for this version of Python")
    packing.add_argument("--have", nargs="*", default=[], metavar="NAME", help="packages not to carry, beside torch's")
    running = commands.add_parser("run", help="in an unpacked bundle, by run.sh: compute or collect")
    running.set_defaults(command=_run_command)
    running.add_argument("--seconds", type=float, default=480, help="stop before (%(default)s)")
    running.add_argument("--began", type=float, default=time.time(), help="Unix seconds from which these count (now)")
    running.add_argument("--device", help="default: cuda where there is one")
    running.add_argument("--workers", type=int, help="networks trained at once; default: as many as threads")
    running.add_argument("--collect", metavar="OUT", help="write the results to this folder instead")
    running.add_argument("--part-mib", type=float, default=16, help="largest part (%(default)s)")
    running.add_argument("--parts", default="", metavar="1-4", help="write only these")
    unpacking = commands.add_parser("unpack", help="put collected results into the store")
    unpacking.set_defaults(command=_unpack_command)
    unpacking.add_argument("parts", nargs="+", type=Path, help="parts and their manifest, or folders of them")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """``pack``, ``run`` or ``unpack``; 0 when it worked, 75 when there is more to run, 1 with a message otherwise."""
    words = _parser().parse_args(arguments)
    try:
        words.command(words)
    except heavy.OutOfTime:
        print(f"{heavy.count(stages.packed()['results'])}; the time is up, the same command goes on")
        return heavy.MORE
    except (
        BundleError,
        ArtifactError,
        SettingsError,
        kinds.DataError,
        supervised.TrainingError,
    ) as e:
        print(f"\n{e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
