"""Archives turned into recordings: finding, verifying, parsing, keeping."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_archives import example_files, isolate, register_example, table, write_folder, write_zip

from harvis_utils.data import archive, dsads, kinds, mhealth
from harvis_utils.settings import SettingsError, data_folders, load_settings

G = kinds.STANDARD_GRAVITY


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """An empty ``data/raw``, with the example data set in the registry."""
    place = isolate(monkeypatch, tmp_path)
    register_example(monkeypatch, tmp_path)
    return place


def naive_table(content: bytes, columns) -> np.ndarray:
    """Twin of parse_table: one field at a time."""
    return np.array([[float(line.split(",")[c]) for c in columns] for line in content.decode().splitlines()])


def assert_example(recordings: kinds.Recordings) -> None:
    """The recordings are those of the example's files."""
    assert [(r.subject, r.activity) for r in recordings.items] == [(s, a) for s in (1, 2, 3) for a in (0, 1)]
    for recording, content in zip(recordings.items, example_files().values(), strict=True):
        assert recording.signal.dtype == np.float32
        np.testing.assert_array_equal(recording.signal, (naive_table(content, range(6)) / G).astype(np.float32))


# ----------------------------------------------------------------------------------------------- the example


def test_a_new_data_set_is_one_short_file(raw):
    from made_archives import EXAMPLE

    assert len(EXAMPLE.read_text().splitlines()) <= 60
    write_zip(raw / "example.zip", example_files())
    recordings = archive.load_recordings("example")
    assert_example(recordings)
    assert (recordings.name, recordings.verified, recordings.caveat) == ("example", True, "")
    assert load_settings("quick", "example").dataset == "example"


def test_members_digest_is_over_sorted_lines():
    lines = sorted(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in example_files().items())
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert kinds.registry().keys() >= {"dsads", "mhealth"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in reversed(example_files().items())}
    assert archive.members_digest(digests) == expected


# --------------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize("prefix", ["", "example/", "a/b/"])
@pytest.mark.parametrize("packed", [True, False])
def test_archives_with_or_without_prefix_zipped_or_extracted(raw, prefix, packed):
    files = {prefix + name: content for name, content in example_files().items()}
    if packed:
        write_zip(raw / "example.zip", files | {"README.txt": b"hello"})
    else:
        write_folder(raw, files)
    assert_example(archive.load_recordings("example", download=False))


def test_harvis_data_comes_before_data_raw(raw, tmp_path, monkeypatch):
    write_zip(raw / "example.zip", {"subject1_walking.csv": b"not looked at"})
    write_zip(tmp_path / "elsewhere" / "example.zip", example_files())
    monkeypatch.setenv("HARVIS_DATA", "elsewhere")  # relative: counts from the repository
    assert_example(archive.load_recordings("example", download=False))


def test_harvis_data_without_the_archive_falls_back_to_data_raw(raw, tmp_path, monkeypatch):
    write_zip(raw / "example.zip", example_files())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HARVIS_DATA", "elsewhere")
    assert_example(archive.load_recordings("example", download=False))


def test_an_unverified_archive_may_lie_in_a_subfolder_of_its_name(raw):
    write_zip(raw / "example.zip", example_files())
    changed = example_files() | {"subject1_walking.csv": example_files()["subject2_sitting.csv"]}
    write_zip(raw / "example-approximate" / "example.zip", changed)
    assert_example(archive.load_recordings("example"))
    approximate = archive.load_recordings("example-approximate")
    np.testing.assert_array_equal(approximate.items[0].signal, approximate.items[3].signal)


# ------------------------------------------------------------------------------------------ verified or not


def test_approximate_data_keep_their_name_and_caveat(raw):
    files = example_files(n_rows=50)
    write_zip(raw / "example.zip", files)
    recordings = archive.load_recordings("example-approximate")
    assert (recordings.name, recordings.verified) == ("example-approximate", False)
    assert recordings.caveat == "approximate data (archive not verified)"
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert recordings.digest == archive.members_digest(digests)


def test_a_changed_approximate_archive_is_not_missed(raw):
    write_zip(raw / "example.zip", example_files(50))
    before = archive.load_recordings("example-approximate")
    write_zip(raw / "example.zip", example_files(60))
    after = archive.load_recordings("example-approximate")
    assert (len(before.items[0].signal), len(after.items[0].signal)) == (50, 60)
    assert before.digest != after.digest


def test_a_second_start_does_not_open_the_verified_archive(raw):
    path = write_zip(raw / "example.zip", example_files())
    first = archive.load_recordings("example")
    path.unlink()
    second = archive.load_recordings("example", download=False)
    assert_example(second)
    assert second.digest == first.digest


def test_made_up_data_are_generated_and_their_digest_follows_their_content(raw):
    def made(scale):
        def read(_):
            yield kinds.Recording(1, 0, np.full((10, 6), scale, np.float32))

        return dataclasses.replace(dsads.DATASET, name="made", read=read, archive=None, made_up=True)

    one, again, two = (archive.generate(made(scale)) for scale in (1, 1, 2))
    assert one.digest == again.digest != two.digest
    assert one.caveat == "made-up data"


def test_unknown_names_list_the_valid_ones():
    message = r"unknown data set 'dsad'; valid data sets: .*dsads.*mhealth-approximate"
    with pytest.raises(SettingsError, match=message):
        archive.load_recordings("dsad")


# --------------------------------------------------------------------------------------------------- parsing


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.permutations(range(7)), st.integers(1, 7))
def test_parse_table_equals_its_naive_twin(seed, n_rows, columns, k):
    content = table(np.random.default_rng(seed), n_rows, 7)
    parsed = archive.parse_table(content, columns[:k], n_columns=7, n_rows=n_rows)
    np.testing.assert_array_equal(parsed, naive_table(content, columns[:k]))


def test_parse_table_accepts_crlf_and_a_missing_last_newline():
    np.testing.assert_array_equal(archive.parse_table(b"1,2\r\n3,4", (1,), n_columns=2), [[2], [4]])


def test_dsads_segments_are_joined_in_order_of_time(raw, monkeypatch):
    monkeypatch.setattr(dsads, "N_SEGMENTS", 3)
    monkeypatch.setattr(dsads, "SUBJECTS", (1, 7))
    monkeypatch.setattr(dsads, "ACTIVITIES", ("sitting", "standing"))
    rng = np.random.default_rng(0)
    files = {m: table(rng, 125, 45) for a in (0, 1) for s in (1, 7) for m in dsads.members(a, s)}
    small = dataclasses.replace(dsads.DATASET.archive, members=tuple(files))
    small = dataclasses.replace(dsads.DATASET, archive=small)
    monkeypatch.setattr(kinds, "registry", lambda: {"dsads": small})
    write_zip(raw / "daily+and+sports+activities.zip", files)

    items = archive.load_recordings("dsads-approximate").items
    assert [(r.subject, r.activity, r.signal.shape) for r in items] == [
        (s, a, (375, 6)) for a in (0, 1) for s in (1, 7)
    ]
    second = naive_table(files["data/a01/p7/s02.txt"], [9, 10, 11, 36, 37, 38]) / G
    np.testing.assert_array_equal(items[1].signal[125:250], second.astype(np.float32))


def mhealth_log(labels, seed: int) -> bytes:
    """A log in MHEALTH's format: 23 columns of numbers and one label, separated by tabs."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 10, (len(labels), 23))
    rows = ("\t".join([*(f"{v:.5g}" for v in row), str(label)]) for row, label in zip(values, labels, strict=True))
    return ("\n".join(rows) + "\n").encode()


def naive_runs(labels) -> list[tuple[int, int, int]]:
    """Twin of mhealth's cutting: (label, start, stop) of each unbroken run of a label other than 0."""
    runs, start = [], 0
    for i in range(1, len(labels) + 1):
        if i == len(labels) or labels[i] != labels[start]:
            if labels[start]:
                runs.append((labels[start], start, i))
            start = i
    return runs


@given(labels=st.lists(st.sampled_from([0, 0, 1, 1, 2, 12]), min_size=1, max_size=40), seed=st.integers(0, 1000))
def test_mhealth_cuts_unbroken_runs_and_drops_the_null_label(labels, seed):
    log = mhealth_log(labels, seed)
    items = list(mhealth.read(lambda member: log))
    expected = naive_runs(labels)
    assert len(items) == 10 * len(expected)
    rows = [line.split("\t") for line in log.decode().splitlines()]
    arm_then_ankle = [[float(row[c]) / G for c in (14, 15, 16, 5, 6, 7)] for row in rows]
    for item, (label, start, stop) in zip(items, expected * 10, strict=True):
        assert item.activity == label - 1
        np.testing.assert_array_equal(item.signal, np.array(arm_then_ankle[start:stop], np.float32))
    assert [r.subject for r in items] == [s for s in range(1, 11) for _ in expected]


def test_mhealth_in_its_own_layout_loads_only_as_approximate(raw):
    logs = {f"mHealth_subject{s}.log": mhealth_log([0, 1, 1, 0, 1, 2, 2], s) for s in range(1, 11)}
    write_zip(raw / "mhealth+dataset.zip", logs, prefix="MHEALTHDATASET/")
    with pytest.raises(kinds.DataError, match=r"subject1\.log: its SHA-256 starts with .*DATASET=mhealth-approximate"):
        archive.load_recordings("mhealth")
    recordings = archive.load_recordings("mhealth-approximate")
    assert [(r.subject, r.activity, len(r.signal)) for r in recordings.items[:3]] == [(1, 0, 2), (1, 0, 1), (1, 1, 2)]
    assert len(recordings.items) == 30


@pytest.mark.parametrize("name", ["dsads", "mhealth"])
def test_descriptions_are_complete(name):
    dataset = kinds.registry()[name]
    subjects = [s for part in dataset.split.values() for s in part]
    assert len(set(subjects)) == len(subjects) == {"dsads": 8, "mhealth": 10}[name]
    assert len(set(dataset.activities)) == len(dataset.activities) == {"dsads": 19, "mhealth": 12}[name]
    assert len(set(dataset.axes)) == 6
    assert len(dataset.archive.members) == {"dsads": 9120, "mhealth": 10}[name]
    assert set(map(len, dataset.archive.member_digests.values())) == {{"dsads": 8, "mhealth": 64}[name]}
    assert dataset.licence == "CC BY 4.0"


# -------------------------------------------------------------------------------------------- the real archives


def require_real(name: str):
    """Path of a real archive, or skip with the reason; artifacts still go to the test's own folder."""
    base = kinds.check_name(name)
    path = archive.locate(name, base.archive)
    if path is None:
        pytest.skip(f"no {base.archive.filename} in {', '.join(map(str, data_folders()))}")
    return path


@pytest.mark.real_data
def test_real_dsads(tmp_path, monkeypatch):
    path = require_real("dsads")
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    recordings = archive.load_recordings("dsads", download=False)
    assert recordings.verified
    assert len(recordings.items) == 152
    assert {r.signal.shape for r in recordings.items} == {(7500, 6)}
    assert sum(f.stat().st_size for f in tmp_path.rglob("*.npz")) < 40e6
    if path.is_file():  # one segment, read without the package
        with zipfile.ZipFile(path) as packed:
            (name,) = [n for n in packed.namelist() if n.endswith("data/a19/p8/s60.txt")]
            last = naive_table(packed.read(name), [9, 10, 11, 36, 37, 38]) / G
        np.testing.assert_array_equal(recordings.items[-1].signal[-125:], last.astype(np.float32))
    # joined segments: a step across a boundary is as small as one inside a segment
    signal = np.stack([r.signal for r in recordings.items])
    steps = np.abs(np.diff(signal, axis=1)).mean(axis=(0, 2))
    assert steps[124::125].mean() < 1.2 * np.delete(steps, np.s_[124::125]).mean()


@pytest.mark.real_data
def test_real_mhealth_approximate(tmp_path, monkeypatch):
    require_real("mhealth-approximate")
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path))
    recordings = archive.load_recordings("mhealth-approximate")
    assert not recordings.verified
    assert {r.subject for r in recordings.items} == set(range(1, 11))
    assert {r.activity for r in recordings.items} == set(range(12))
    assert sum(len(r.signal) for r in recordings.items) == 343195
