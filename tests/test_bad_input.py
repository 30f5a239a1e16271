"""Archives that are not what they should be: each ends in one error naming archive, member and what to do."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_archives import example_files, isolate, left_over, register_example, table, write_folder, write_zip

from harvis_utils.data import archive, dsads, kinds, mhealth
from harvis_utils.data.kinds import DataError

MEMBER = "subject2_walking.csv"


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty ``data/raw``, with the example data set in the registry."""
    place = isolate(monkeypatch, tmp_path)
    register_example(monkeypatch, tmp_path)
    return place


def refused(raw: Path, *parts: str, name: str = "example") -> None:
    """Loading fails with an error that holds all ``parts``, and leaves nothing beside what was there."""
    before = left_over(raw.parents[1])
    with pytest.raises(DataError) as caught:
        archive.load_recordings(name, download=False)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_over(raw.parents[1]) == before


# --------------------------------------------------------------------------------------------- whole archives


@pytest.mark.parametrize("name", ["example", "example-approximate"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_or_truncated_zip(raw, name, compression):
    path = write_zip(raw / "example.zip", example_files(), compression=compression)
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:-200])
    refused(raw, f"{path}: is a truncated or damaged zip file; get the archive again from https://", name=name)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as packed:
        whole[packed.getinfo(MEMBER).header_offset + 30 + len(MEMBER) + 60] ^= 0xFF
    path.write_bytes(whole)
    refused(raw, f"{path}: {MEMBER}: damaged or unreadable (", "get the archive again", name=name)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html>\n<html><head><title>UCI</title></head></html>", "is an HTML page, not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a git-LFS pointer"),
        (b"", "is empty"),
        (b"\x1f\x8b\x08 something packed otherwise", "is not a zip file"),
    ],
)
def test_something_else_instead_of_the_archive(raw, content, what):
    raw.mkdir(parents=True)
    (raw / "example.zip").write_bytes(content)
    refused(raw, str(raw / "example.zip"), what, "get the archive again from https://example.org/example.zip")


@pytest.mark.parametrize("name", ["../out.csv", "a/../../out.csv", "/etc/out.csv", "..\\out.csv", "C:/out.csv"])
def test_a_path_that_leaves_the_folder(raw, name):
    path = write_zip(raw / "example.zip", example_files() | {name: b"1,2,3,4,5,6\n"})
    refused(raw, f"{path}: {name!r} is a path that leaves the folder; do not use this archive")
    refused(raw, "leaves the folder", name="example-approximate")


def test_a_description_whose_members_leave_the_folder(raw):
    described = kinds.Archive("x.zip", "https://example.org/x.zip", ("../secret.csv",), "")
    raw.mkdir(parents=True)
    leaves = "'../secret.csv' is a path that leaves the folder"
    with pytest.raises(DataError, match=leaves), archive.opened(raw, described):
        pytest.fail("was opened")


@pytest.mark.parametrize("packed", [True, False])
def test_missing_members(raw, packed):
    files = example_files()
    del files[MEMBER]
    place = write_zip(raw / "example.zip", files) if packed else write_folder(raw, files)
    refused(raw, f"{place}: {MEMBER} is missing; get the archive again")
    if packed:
        del files["subject3_sitting.csv"]
        write_zip(raw / "example.zip", files)
        refused(raw, f"{MEMBER} and 1 more are missing", name="example-approximate")


def test_a_member_found_twice(raw):
    path = write_zip(raw / "example.zip", example_files() | {f"copy/{MEMBER}": b""})
    refused(raw, f"{path}: {MEMBER}: found twice ({MEMBER}, copy/{MEMBER})")


def test_harvis_data_that_is_no_folder(raw, monkeypatch):
    monkeypatch.setenv("HARVIS_DATA", "nowhere")
    refused(raw, "HARVIS_DATA names", "nowhere, which is no folder; name the folder that holds example.zip")


# ---------------------------------------------------------------------------------------------------- members


@pytest.mark.parametrize("packed", [True, False])
def test_a_mismatch_names_the_member_and_the_way_out(raw, packed):
    files = example_files() | {MEMBER: b"1,2,3,4,5,6\n"}
    place = write_zip(raw / "example.zip", files) if packed else write_folder(raw, files)
    refused(raw, f"{place}: {MEMBER}: its SHA-256 starts with", "DATASET=example-approximate")


def test_a_pointer_instead_of_a_member(raw):
    write_folder(raw, example_files() | {MEMBER: b"version https://git-lfs.github.com/spec/v1\n"})
    refused(raw, f"{raw}: {MEMBER}: is a git-LFS pointer", "git lfs pull")


def test_members_that_only_differ_beyond_the_pinned_digits(raw):
    files = example_files()
    described = kinds.registry()["example"].archive
    blind = kinds.Archive(described.filename, described.url, described.members, described.digest)  # no culprit known
    path = write_zip(raw / "example.zip", files | {MEMBER: b"1,2,3,4,5,6\n"})
    together = r"members together: their digest is [0-9a-f]{64} instead of [0-9a-f]{64}"
    with pytest.raises(DataError, match=together), archive.verified("example", blind, path):
        pass


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (b"1,2,3,4,5", "row 3 has 5 columns instead of 6"),
        (b"1,2,3,4,5,6,7", "row 3 has 7 columns instead of 6"),
        (b"", "row 3 has 1 columns instead of 6"),
        (b"1,2,three,4,5,6", "row 3, column 3 is 'three', not a number"),
        (b"1,2,,4,5,6", "row 3, column 3 is '', not a number"),
        (b"1,2,3,4,\xff,6", "row 3, column 5 is '\N{REPLACEMENT CHARACTER}', not a number"),
        (b"1,2,1_0,4,5,6", "row 3, column 3 is '1_0', not a number"),
        (b"1,2,3,NaN,5,6", "row 3, column 4 is nan, not a finite float32 number"),
        (b"1,2,3,4,5,-inf", "row 3, column 6 is -inf, not a finite float32 number"),
        (b"1,2,3,4,5,1e40", "row 3, column 6 is 1e+40, not a finite float32 number"),
        (b"1,2,3,4,5\x0c6", "row 3 has 5 columns instead of 6"),  # a control character ends no line
        (b"1,2,3,4,5,1e999", "row 3, column 6 is inf, not a finite float32 number"),
    ],
)
def test_a_bad_row(raw, row, what):
    lines = example_files()[MEMBER].splitlines()
    lines[2] = row
    path = write_zip(raw / "example.zip", example_files() | {MEMBER: b"\n".join(lines) + b"\n"})
    refused(raw, f"{path}: {MEMBER}: {what}; correct that file or get", name="example-approximate")


def test_tables_with_a_wrong_number_of_rows():
    for content, rows, said in (
        (b"", None, "0 rows instead of at least one"),
        (b"1\n\n3\n", None, "row 2, column 1 is '', not a number"),
        (b"1\n2\n", 3, "2 rows instead of 3"),
    ):
        with pytest.raises(ValueError, match=said):
            archive.parse_table(content, (0,), n_columns=1, n_rows=rows)


def test_dsads_with_a_wrong_number_of_rows():
    content = table(np.random.default_rng(0), 124, 45)
    with pytest.raises(ValueError, match="124 rows instead of 125"):
        next(iter(dsads.read(lambda member: content)))


@pytest.mark.parametrize("label", [13, -1, 1.5])
def test_mhealth_with_an_unknown_label(label):
    row = "\t".join(["0.5"] * 23 + [str(label)]) + "\n"
    with pytest.raises(ValueError, match=f"label {re.escape(str(label))} is not one of 0 to 12"):
        next(iter(mhealth.read(lambda member: row.encode())))


def test_recordings_that_do_not_fit_their_description():
    good = np.zeros((5, 6), np.float32)
    for item, what in [
        (kinds.Recording(1, 0, good[:, :5]), r"shape \(5, 5\) instead of \(time, 6\)"),
        (kinds.Recording(1, 0, good.astype(float)), "not made of finite float32"),
        (kinds.Recording(1, 0, good + np.float32(np.nan)), "not made of finite float32"),
        (kinds.Recording(9, 0, good), r"subject 9 is not one of dsads's; its split names \[1, 2, 3, 4, 5, 6, 7, 8\]"),
        (kinds.Recording(1, 19, good), "activity 19 is not one of dsads's, which are counted from 0 to 18"),
        (kinds.Recording(1, "walking", good), "activity 'walking' is no whole number; activities count from 0"),
        (kinds.Recording("p1", 0, good), "subject 'p1' is no whole number"),
        (kinds.Recording(1, 0, good.tolist()), "a list instead of Recording"),
        ((1, 0, good), "a tuple instead of Recording"),
    ]:
        with pytest.raises(ValueError, match=what):
            archive._check(item, dsads.DATASET)


def test_a_read_that_yields_nothing_is_said(raw, monkeypatch):
    for archived in (None, dsads.DATASET.archive):
        wrong = dataclasses.replace(dsads.DATASET, name="wrong", read=lambda _: None, archive=archived)
        with pytest.raises(DataError, match="wrong: read returned NoneType; it should yield recordings"):
            list(archive._listed(wrong.read(None), wrong))
    with pytest.raises(DataError, match="wrong: read yields no recordings"):
        archive.generate(dataclasses.replace(wrong, read=lambda _: [], archive=None))
    with pytest.raises(DataError, match="wrong: recording 0: a list instead of Recording"):
        archive.generate(dataclasses.replace(wrong, read=lambda _: [[1]], archive=None))


def test_an_error_of_a_read_is_told_with_its_place_and_a_wrong_kind_stays_its_own(raw):
    described = kinds.registry()["example"]
    path = write_zip(raw / "example.zip", example_files())
    for mistake, kind, what in (
        (
            lambda content: int("eight"),
            DataError,
            r"csv: .*'eight'; correct that file .*, or correct test_bad_input.py, ",
        ),
        (lambda content: content.shape, AttributeError, "'bytes' object has no attribute 'shape'"),
    ):
        with (
            pytest.raises(kind, match=what),
            archive.verified("example", described.archive, path) as open_member,
        ):
            mistake(open_member(MEMBER))


# ------------------------------------------------------------------------------------------------ accidents


def test_members_too_large_are_refused_before_they_are_read(raw, monkeypatch):
    small = dataclasses.replace(kinds.registry()["example"].archive, most_bytes=2**20)
    for place in (
        write_zip(raw / "example.zip", example_files() | {MEMBER: b"\n" * 2**22}),
        write_folder(raw / "folder", example_files() | {MEMBER: b"\n" * 2**22}),
    ):
        with (
            archive.opened(place, small) as open_member,
            pytest.raises(DataError, match="holds 4 MiB, and at most 1 MiB"),
        ):
            open_member(MEMBER)


def test_an_archive_with_endless_names_or_backslashes_is_looked_through(raw):
    deep = {f"{'a/' * 30_000}{k}": b"" for k in range(3)}
    names = [*deep, *(f"folder\\{name}" for name in example_files())]
    started = time.process_time()
    index = archive._index("x", names, example_files())
    assert index[MEMBER] == f"folder\\{MEMBER}" and len(index) == 6 and time.process_time() - started < 1
    write_zip(raw / "example.zip", example_files(), prefix="folder\\")
    assert archive.load_recordings("example", download=False).verified


def test_a_folder_that_may_not_be_looked_into_is_named(raw, tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    monkeypatch.setenv("HARVIS_DATA", str(closed))

    def forbidden(path: Path) -> bool:
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))  # not for whoever may do everything
        return False

    monkeypatch.setattr(Path, "is_file", forbidden)
    refused(raw, f"{closed}/", "may not be looked into; give yourself the permission to")


def test_a_zip_that_may_not_be_read_is_named(raw, monkeypatch):
    path = write_zip(raw / "example.zip", example_files())

    def forbidden(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(zipfile, "ZipFile", forbidden)
    refused(raw, f"{path}: may not be read; give yourself the permission to")


def test_what_is_no_file_is_no_member(raw):
    write_folder(raw, example_files())
    (raw / MEMBER).unlink()
    os.mkfifo(raw / MEMBER)
    refused(raw, f"{MEMBER} is missing")


@pytest.mark.parametrize(
    ("mirror", "said"),
    [
        ("nowhere", "HARVIS_MIRROR=nowhere is no address, and there is no file"),
        ("not a url", "HARVIS_MIRROR=not a url is no address"),
        ("s3://bucket/x", "HARVIS_MIRROR=s3://bucket/x: only http://, https:// and folders are understood"),
        ("ftp://me:secret@host/x", "HARVIS_MIRROR=ftp://host/x: only http://"),
        ("http://me:secret@127.0.0.1:9/x", "from http://127.0.0.1:9/x/example.zip: no connection to the server"),
    ],
)
def test_odd_mirrors_are_refused_in_words_and_show_no_password(raw, monkeypatch, mirror, said):
    monkeypatch.setenv("HARVIS_MIRROR", mirror)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(archive, "RETRIES", 0)
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        archive.load_recordings("example")
    assert "secret" not in str(caught.value) and left_over(raw.parents[1]) == []


def test_a_mirror_may_be_a_folder(raw, tmp_path, monkeypatch):
    write_zip(tmp_path / "mirror" / "example.zip", example_files())
    monkeypatch.setenv("HARVIS_MIRROR", "mirror")  # relative: counts from the repository
    assert archive.load_recordings("example").verified and (raw / "example.zip").is_file()


def test_a_download_without_end_is_stopped(raw, monkeypatch):
    class Endless:
        headers: dict = {}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def raise_for_status(self):
            pass

        def iter_content(self, size):
            while True:
                yield b"\0" * size

    monkeypatch.setattr("requests.get", lambda *_, **__: Endless())
    described = dataclasses.replace(kinds.registry()["example"].archive, most_bytes=2**20)
    with pytest.raises(DataError, match=r"example\.zip: is larger than 4 MiB, which no archive is; not kept"):
        archive.fetch("example", described)
    assert left_over(raw.parents[1]) == []


def implausible(**changes) -> list[str]:
    """What is said of a minute of one resting sensor for each person, in G, after these changes of the signals."""
    rest = np.zeros((1500, 6), np.float32) + np.float32([0, 0, 1, 0, 1, 0])
    how = {"people": range(1, 9), "signal": rest} | changes
    items = tuple(kinds.Recording(person, 0, how["signal"]) for person in how["people"])
    return kinds.Recordings("dsads-approximate", dsads.DATASET, items, verified=False, digest="").implausible()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"signal": np.full((1500, 6), 577, np.float32)},
            "right arm has a median length of 999 G, .* as if it were in mg",
        ),
        ({"signal": np.full((1500, 6), 5.66, np.float32)}, "left leg has a median length of 9.8 G, .* in m/s"),
        (
            {"signal": np.full((1500, 6), 0.02, np.float32)},
            "0.0346 G, not about 1 G: gravity was taken out, or the unit",
        ),
        ({"signal": np.full((1500, 6), 1e30, np.float32)}, r"right arm reads up to 1e\+30 G"),
        ({"signal": np.full((25, 6), 0.577, np.float32)}, r"people with less than 10 s of recordings: 1 \(1 s\), 2"),
        ({"people": range(1, 8)}, r"people with less than 10 s of recordings: 8 \(0 s\)"),
    ],
)
def test_what_is_implausible_is_said(changes, said):
    assert implausible() == []
    assert any(re.search(said, of) for of in implausible(**changes)), implausible(**changes)


def test_only_unverified_recordings_are_doubted(raw):
    write_zip(raw / "example.zip", example_files(50))
    with pytest.warns(UserWarning, match="example-approximate: people with less than 10 s .* Thresholds in G may mean"):
        archive.load_recordings("example-approximate")
    write_zip(raw / "example.zip", example_files())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert archive.load_recordings("example").verified


def test_an_archive_without_any_activity(raw, monkeypatch):
    log = b"\t".join([b"0.5"] * 23 + [b"0"]) + b"\n"
    path = write_zip(raw / "mhealth+dataset.zip", {member: log for member in mhealth.DIGESTS})
    refused(raw, f"{path}: no recordings in it", name="mhealth-approximate")


# ------------------------------------------------------------------------------------------------- anything


@settings(max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255), keep=st.one_of(st.none(), st.floats(0, 1)))
def test_any_damage_is_an_error_or_harmless(position, mask, keep):
    """One changed byte, or a lost end, anywhere in a zip file: never another exception, never other content."""
    files = {name: content[:80] for name, content in example_files().items()}
    digests = {name: archive.hashlib.sha256(content).hexdigest() for name, content in files.items()}
    described = kinds.Archive("x.zip", "https://example.org/x.zip", tuple(files), archive.members_digest(digests))
    with tempfile.TemporaryDirectory() as folder:
        path = write_zip(Path(folder) / "x.zip", files)
        content = bytearray(path.read_bytes())
        if keep is None:
            content[int(position * len(content))] ^= mask
        else:
            del content[int(keep * len(content)) :]
        path.write_bytes(content)
        try:
            with archive.opened(path, described) as open_member:
                found = {member: open_member(member) for member in files}
            assert found == files
        except DataError as error:
            assert str(path) in str(error)
