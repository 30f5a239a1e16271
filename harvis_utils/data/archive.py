"""A data set's archive turned into recordings: found or downloaded, verified, parsed once, kept as a derived file.

An archive is a zip file or an extracted folder, with or without prefix folders around its members. It is never
extracted: members are read as bytes, compared with their pinned SHA-256 and parsed. Whatever is wrong with it ends
in one :class:`~harvis_utils.data.kinds.DataError` that names the archive, the member and what to do.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np

from harvis_utils.data.kinds import Archive, DataError, Dataset, Recording, Recordings, check_name, registry
from harvis_utils.settings import APPROXIMATE, anchored, data_folders
from harvis_utils.store.files import composed, file_digest, member_file, scratch
from harvis_utils.store.results import kept

RETRIES = 3  # of a failed download


def parse_table(
    content: bytes, columns: Sequence[int], *, n_columns: int, delimiter: str = ",", n_rows: int | None = None
) -> np.ndarray:
    """The 0-based ``columns`` of a text table, in that order: float64 (row, len(columns)).

    Only these are parsed. Raises ``ValueError`` for a wrong number of rows or fields, for text, NaN, infinity and
    numbers beyond float32.
    """
    # as bytes: in text, control characters would end lines too
    lines = [line.decode("ascii", errors="replace") for line in content.splitlines()]
    if len(lines) != (n_rows or len(lines)) or not lines:
        raise ValueError(f"{len(lines)} rows instead of {n_rows or 'at least one'}")
    values = []
    for number, line in enumerate(lines, start=1):
        fields = line.split(delimiter)
        if len(fields) != n_columns:
            raise ValueError(f"row {number} has {len(fields)} columns instead of {n_columns}")
        for column in columns:
            field = fields[column]
            try:
                values.append(float("text" if "_" in field else field))  # Python alone takes 1_0 for 10
            except ValueError:
                raise ValueError(f"row {number}, column {column + 1} is {field[:40]!r}, not a number") from None
    table = np.array(values).reshape(len(lines), len(columns))
    for row, column in np.argwhere(~(np.abs(table) <= np.finfo(np.float32).max))[:1]:
        raise ValueError(
            f"row {row + 1}, column {columns[column] + 1} is {table[row, column]}, not a finite float32 number"
        )
    return table


def members_digest(digests: Mapping[str, str]) -> str:
    """SHA-256 over the sorted lines ``<sha256>  <member>``: pins an archive whichever way it was packed."""
    lines = sorted(f"{digest}  {member}\n" for member, digest in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digests(place: Path, ending: str = "") -> dict[str, str]:
    """SHA-256 of every file of a zip file or a folder whose name ends in ``ending``, by its path there, sorted.

    What a module of one's own pins: ``Archive(file, url, tuple(found), members_digest(found), found)``. Raises
    :class:`DataError` for what is neither.
    """
    place, found = Path(place), {}
    with _container(place, str(place), "name a zip file or a folder") as packed:
        if not packed:
            paths = {path.relative_to(place).as_posix(): path for path in place.rglob(f"*{ending}") if path.is_file()}
            return {member: file_digest(paths[member]) for member in sorted(paths)}
        for name in sorted(of.filename for of in packed.infolist() if not of.is_dir() and of.filename.endswith(ending)):
            with packed.open(name) as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# ------------------------------------------------------------------------------------------ finding the archive


def locate(name: str, archive: Archive) -> Path | None:
    """The zip file or extracted folder of data set ``name``, or None where there is none.

    Looked through in order: each of ``settings.data_folders()``, and before it its subfolder called ``name``.
    """
    first, *others = data_folders()
    try:
        if os.environ.get("HARVIS_DATA") and not first.is_dir():
            which = f"name the folder that holds {archive.filename}"
            raise DataError(f"HARVIS_DATA names {first}, which is no folder; {which}")
        for folder in (first, *others):
            for place in (folder / name, folder):
                if (place / archive.filename).is_file():
                    return place / archive.filename
                if place.is_dir() and (root := _extracted(place, archive)):
                    return root
    except PermissionError as error:
        raise DataError(f"{error.filename}: may not be looked into; give yourself the permission to") from error
    return None


def _extracted(folder: Path, archive: Archive) -> Path | None:
    """The folder that the members' paths count from, ``folder`` itself or up to two levels below it."""
    # a sample of the members, so that a folder where some are missing is still recognized, and its gaps reported
    sample = archive.members[:: max(1, len(archive.members) // 16)]
    below = (root for pattern in ("*/", "*/*/") for root in sorted(folder.glob(pattern)))
    return next((root for root in chain([folder], below) if any(member_file(root, member) for member in sample)), None)


def fetch(name: str, archive: Archive) -> Path:
    """Download the archive to ``data/raw``, verify it, and only then give it its name.

    It comes from its own address, or from the mirror that ``HARVIS_MIRROR`` names: an address or a folder.
    """
    import requests

    path, url = data_folders()[-1] / archive.filename, archive.url
    if mirror := os.environ.get("HARVIS_MIRROR"):
        url = f"{mirror.rstrip('/')}/{archive.filename}"
    local = anchored("HARVIS_MIRROR") / archive.filename if mirror and "://" not in mirror else None
    if local and not local.is_file():
        raise DataError(f"HARVIS_MIRROR={mirror} is no address, and there is no file {local}; name what holds it")
    if not local and not url.startswith(("http://", "https://")):
        raise DataError(f"HARVIS_MIRROR={_shown(mirror)}: only http://, https:// and folders are understood")
    title = str(local) if local else f"{_shown(url)} (downloaded, refused, not kept)"
    try:
        with scratch(path) as folder:
            found = Path(folder) / path.name
            shutil.copyfile(local, found) if local else _download(url, found, 4 * archive.most_bytes)
            with verified(name, archive, found, title=title):
                pass
            os.replace(found, path)
    except requests.RequestException as error:
        raise DataError(
            f"{path.name} could not be downloaded from {_shown(url)}: {_reason(error)}; get it by hand, put it into "
            f"{path.parent} or a folder named by HARVIS_DATA as {path.name}, and run again"
        ) from error
    except OSError as error:
        what = f"{path} could not be written"
        raise DataError(f"{what}: {error.strerror or error}; make room there; nothing half-written was kept") from error
    return path


def _shown(url: str) -> str:
    """An address without the name and password that it may hold."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


def _download(url: str, target: Path, most: int) -> None:
    """Write what an address gives to a file, tried again a few times; no more than ``most`` bytes."""
    import pooch
    import requests
    from tqdm.auto import tqdm

    shown, plain = sys.stderr.isatty() or "ipykernel" in sys.modules, {"Accept-Encoding": "identity"}

    def stream(url: str, output: str, _) -> None:
        with requests.get(url, headers=plain, stream=True, timeout=60) as answer, open(output, "wb") as file:
            answer.raise_for_status()
            if (packed := answer.headers.get("content-encoding", "identity")) != "identity":
                # a chunk could unpack to a thousand times its size
                raise DataError(f"{_shown(url)}: comes packed by {packed}, unasked; get it by hand or from elsewhere")
            size = int(answer.headers.get("content-length", 0)) or None
            with tqdm(total=size, unit="B", unit_scale=True, disable=not shown) as bar:
                for chunk in answer.iter_content(2**20):
                    if file.tell() + len(chunk) > most:
                        raise DataError(
                            f"{_shown(url)}: is larger than {most >> 20} MiB, which no archive is; not kept"
                        )
                    bar.update(file.write(chunk))

    source = pooch.create(
        target.parent, "", registry={target.name: None}, urls={target.name: url}, retry_if_failed=RETRIES
    )
    source.fetch(target.name, downloader=stream)


def _reason(error) -> str:
    """Why a download failed, in words; the library's own message is kept as the error's cause."""
    from requests import ConnectionError, HTTPError, Timeout
    from requests.exceptions import ChunkedEncodingError

    match error:
        case HTTPError():
            return f"the server answered {error.response.status_code} {error.response.reason}"
        case ChunkedEncodingError():
            return "the connection broke before the file was complete"
        case Timeout():
            return "the server did not answer in time"
        case ConnectionError():
            return "no connection to the server"
    return str(error)


# ------------------------------------------------------------------------------------------- reading members


@contextmanager
def opened(path: Path, archive: Archive, title: str | None = None) -> Iterator[Callable[[str], bytes]]:
    """Yield ``open_member(member) -> bytes`` for a zip file or an extracted folder.

    ``title`` is what errors call the archive. Raises :class:`DataError` for anything that is no whole zip file, for
    paths that leave the folder, and for missing or damaged members.
    """
    title, again = title or str(path), f"get the archive again from {archive.url}"
    with _container(path, title, again) as packed:
        names = packed.namelist() if packed else [m for m in archive.members if member_file(path, m)]
        for name in (*archive.members, *names):
            inside = PurePosixPath(name.replace("\\", "/"))
            if inside.is_absolute() or ".." in inside.parts or "".join(inside.parts[:1]).endswith(":"):
                raise DataError(f"{title}: {name!r} is a path that leaves the folder; do not use this archive")
        index = _index(title, names, archive.members)
        if missing := [member for member in archive.members if member not in index]:
            more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
            raise DataError(f"{title}: {missing[0]}{more} missing; {again}")

        def open_member(member: str) -> bytes:
            try:
                size = packed.getinfo(index[member]).file_size if packed else member_file(path, member).stat().st_size
                if size > archive.most_bytes:
                    most = f"at most {archive.most_bytes >> 20} MiB of a file are read"
                    raise DataError(f"{title}: {member}: holds {size >> 20} MiB, and {most}; {again}")
                return packed.read(index[member]) if packed else member_file(path, member).read_bytes()
            except DataError:
                raise
            except Exception as error:
                raise DataError(f"{title}: {member}: damaged or unreadable ({error}); {again}") from error

        yield open_member


def _container(path: Path, title: str, again: str):
    """A zip file, opened, or a context of None for a folder; :class:`DataError` for anything else, with what to do."""
    try:
        return nullcontext() if path.is_dir() else zipfile.ZipFile(path)
    except PermissionError as error:
        raise DataError(f"{title}: may not be read; give yourself the permission to") from error
    except Exception as error:  # zipfile raises many kinds for damaged files; each is the same news
        raise DataError(f"{title}: {_not_a_zip(path) if path.exists() else 'is not there'}; {again}") from error


def _foreign(head: bytes) -> str | None:
    """What a file is that should be data but plainly is not."""
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the file itself (git lfs pull fetches it)"
    page = head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))
    return "is an HTML page, not the file itself" if page else None


def _not_a_zip(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return "is a truncated or damaged zip file"
    return _foreign(head) or ("is not a zip file" if head else "is empty")


def _index(title: str, names: Iterable[str], members: Iterable[str]) -> dict[str, str]:
    """Members to the names they bear in a zip file, which may have put folders before them."""
    wanted, index = {composed(member): member for member in members}, {}
    deepest = max(member.count("/") for member in wanted)  # a name may have any number of folders before that
    for name in names:
        # some packers of Windows separate folders by backslashes
        parts = composed(name).replace("\\", "/").rsplit("/", deepest + 1)[-deepest - 1 :]
        for member in map(wanted.get, wanted.keys() & {"/".join(parts[start:]) for start in range(len(parts))}):
            if member in index:
                raise DataError(f"{title}: {member}: found twice ({index[member]}, {name}); keep one of them")
            index[member] = name
    return index


# -------------------------------------------------------------------------------------------------- verifying


@contextmanager
def verified(name: str, archive: Archive, path: Path, title: str | None = None) -> Iterator[Callable[[str], bytes]]:
    """Like :func:`opened`, with every member compared with its pinned digest, at the end those not asked for too.

    :class:`DataError` names the first culprit; a ``ValueError`` inside the block is about the member opened last.
    """
    title, digests = title or str(path), {}

    def refuse(member: str, what: str) -> None:
        raise DataError(
            f"{title}: {member}: {what}; get the original from {archive.url}, or use this archive knowingly, "
            f"marked as unverified, with DATASET={name.removesuffix(APPROXIMATE)}{APPROXIMATE}"
        )

    with opened(path, archive, title) as open_member:

        def checked(member: str) -> bytes:
            content = open_member(member)
            digests[member] = hashlib.sha256(content).hexdigest()
            pinned = archive.member_digests.get(member, "")
            if not digests[member].startswith(pinned):
                what = f"its SHA-256 starts with {digests[member][:8]} instead of {pinned[:8]}"
                refuse(member, _foreign(content[:512]) or what)
            return content

        try:
            yield checked
        except ValueError as error:
            last, place = next(reversed(digests), ""), traceback.extract_tb(error.__traceback__)[-1]
            own = f", or correct {Path(place.filename).name}, line {place.lineno}"
            if place.filename == __file__:
                own = "" if place.name == "parse_table" else ", or correct read"
            raise DataError(
                f"{title}: {last}: {error}; correct that file or get the archive again from {archive.url}{own}"
            ) from error
        for member in archive.members:
            if member not in digests:
                checked(member)
        found = members_digest(digests)
        if found != archive.digest:
            refuse("members together", f"their digest is {found} instead of {archive.digest}")


# ---------------------------------------------------------------------------------------------------- loading


@kept("recordings", apart=("dataset", "archive", "source"))
def parsed(
    name: str, read: Callable, digest: str, *, dataset: Dataset, archive: Archive, source: Callable[[], Path]
) -> dict:
    """Recordings of an archive end to end, ``signal`` (sample, axis) in G, and ``length``, ``subject``, ``activity``.

    All are tensors. The archive with this ``digest`` lies at ``source()``, which is asked for only where it has not
    been parsed before.
    """
    import torch
    from tqdm.auto import tqdm

    path, items = source(), []
    with verified(name, archive, path) as open_member:
        found = _listed(read(open_member), dataset)
        for item in tqdm(found, desc=f"reading {name}", unit=" recordings", disable=None):
            _check(item, dataset)
            items.append(item)
    if not items:
        raise DataError(f"{path}: no recordings in it; get the archive again from {archive.url}")
    return {
        "signal": torch.from_numpy(np.concatenate([item.signal for item in items])),
        "length": torch.tensor([len(item.signal) for item in items]),
        "subject": torch.tensor([item.subject for item in items]),
        "activity": torch.tensor([item.activity for item in items]),
    }


def generate(dataset: Dataset) -> Recordings:
    """Recordings of a data set without an archive, made up or somebody's own; the digest is over their content."""
    items, digest = tuple(_listed(dataset.read(None), dataset)), hashlib.sha256()
    for number, item in enumerate(items):
        try:
            _check(item, dataset)
        except ValueError as error:
            raise DataError(f"{dataset.name}: recording {number}: {error}") from error
        digest.update(f"{item.subject} {item.activity} {item.signal.shape}\n".encode())
        digest.update(np.ascontiguousarray(item.signal).tobytes())
    if not items:
        raise DataError(f"{dataset.name}: read yields no recordings")
    return Recordings(dataset.name, dataset, items, verified=dataset.made_up, digest=digest.hexdigest()).warned()


def _absent(archive: Archive, why: str) -> Path:
    folders = ", ".join(str(folder) for folder in data_folders())
    raise DataError(
        f"{archive.filename} is in none of the folders {folders}, and {why}; put it into one of them "
        f"(it comes from {archive.url}) or let HARVIS_DATA name the folder that holds it"
    )


def _listed(found, dataset: Dataset) -> Iterable:
    """What ``read`` returned, where that can be gone through."""
    if not isinstance(found, Iterable):
        raise DataError(f"{dataset.name}: read returned {type(found).__name__}; it should yield recordings")
    return found


def _check(item: Recording, dataset: Dataset) -> None:
    """Refuse recordings that do not fit their data set's description."""
    if not isinstance(item, Recording) or not isinstance(item.signal, np.ndarray):
        what = type(getattr(item, "signal", item)).__name__
        raise ValueError(f"a {what} instead of Recording(subject, activity, signal), whose signal is a NumPy array")
    for what in ("subject", "activity"):
        if not isinstance(getattr(item, what), int | np.integer):
            raise ValueError(f"{what} {getattr(item, what)!r} is no whole number; activities count from 0, in order")
    subjects = {subject for part in dataset.split.values() for subject in part}
    if item.signal.ndim != 2 or item.signal.shape[1] != len(dataset.axes) or not len(item.signal):
        raise ValueError(f"recording of shape {item.signal.shape} instead of (time, {len(dataset.axes)})")
    if item.signal.dtype != np.float32 or not np.isfinite(item.signal).all():
        raise ValueError("recording is not made of finite float32 numbers")
    if item.subject not in subjects:
        raise ValueError(f"subject {item.subject} is not one of {dataset.name}'s; its split names {sorted(subjects)}")
    if not 0 <= item.activity < len(dataset.activities):
        last = len(dataset.activities) - 1
        raise ValueError(f"activity {item.activity} is not one of {dataset.name}'s, which are counted from 0 to {last}")


def load_recordings(name: str, *, download: bool = True, dataset: Dataset | None = None) -> Recordings:
    """All recordings of the data set ``name``: float32 (time, axis) in G at the data set's own rate.

    The archive is looked for in the folders of ``settings.data_folders()``, else downloaded unless ``download`` is
    False; its members are verified, parsed once and kept as a small derived file. ``<name>-approximate`` reads an
    archive that cannot be verified, and never downloads. Made-up data are generated. A ``dataset`` reads something else
    out of the same archive than the registered one does.

    Raises :class:`SettingsError` for an unknown name and :class:`DataError` for a bad or missing archive.
    """
    dataset, approximate = dataset or check_name(name), name.endswith(APPROXIMATE)
    archive = dataset.archive
    if not archive:
        return generate(dataset)
    path = locate(name, archive)
    if approximate:
        # its digests are not known beforehand: computed each time, so that a changed archive is never missed
        path = path or _absent(archive, "an unverified archive is never downloaded")
        with opened(path, archive) as open_member:
            digests = {member: hashlib.sha256(open_member(member)).hexdigest() for member in archive.members}
        archive = replace(archive, digest=members_digest(digests), member_digests=digests)

    def source() -> Path:
        return path or (fetch(name, archive) if download else _absent(archive, "downloading is switched off"))

    found = parsed(name, dataset.read, archive.digest, dataset=dataset, archive=archive, source=source)
    found = {column: values.numpy() for column, values in found.items()}
    pieces = np.split(found["signal"], np.cumsum(found["length"])[:-1])
    items = map(Recording, found["subject"].tolist(), found["activity"].tolist(), pieces)
    return Recordings(name, dataset, tuple(items), verified=not approximate, digest=archive.digest).warned()


def here() -> list[str]:
    """Names of the data sets that can be read at once: made up, or with an archive, verified or not, in a folder.

    Somebody's own without an archive are left out: their axes may be others.
    """
    found = []
    for name, dataset in registry().items():
        places = [name, f"{name}{APPROXIMATE}"] if dataset.archive else [name] * dataset.made_up
        found += [of for of in places if not dataset.archive or locate(of, dataset.archive)][:1]
    return found
