"""Archives turned into recordings: finding, verifying, parsing, keeping."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_archives import example_files, isolate, register_example, table, write_folder, write_zip

from harvis_utils.data import archive, dsads, kinds, mhealth, windowing
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


@pytest.mark.parametrize("packed", [True, False])
def test_digests_of_any_number_of_files_are_read_at_once(raw, packed):
    files = {f"people/{name}": content for name, content in example_files().items()} | {"README.txt": b"hello"}
    place = write_zip(raw / "mine.zip", files) if packed else write_folder(raw / "mine", files)
    found = archive.digests(place, ".csv")
    assert found == {
        f"people/{name}": digest for name, digest in sorted(kinds.registry()["example"].archive.member_digests.items())
    }
    described = kinds.Archive("mine.zip", "https://example.org", tuple(found), archive.members_digest(found), found)
    with archive.verified("mine", described, place) as open_member:
        assert open_member("people/subject1_walking.csv") == example_files()["subject1_walking.csv"]


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


NAMES = ("Müller/gehen.csv", "日本/gehen.csv")


@pytest.mark.parametrize("form", ["NFC", "NFD", "unmarked", "folder NFC", "folder NFD"])
def test_names_with_accents_are_found_however_they_were_packed(tmp_path, form):
    files = {name: name.encode() for name in NAMES}
    packed = {unicodedata.normalize(form[-3:] if "NF" in form else "NFC", name): of for name, of in files.items()}
    place = write_folder(tmp_path, packed) if "folder" in form else write_zip(tmp_path / "mine.zip", packed)
    if form == "unmarked":
        raw = place.read_bytes()
        for name in packed:  # the flag of UTF-8 stands before the name, in the file's own header and in the directory
            raw = re.sub(b"(PK\x03\x04..)..(?=.{22}%b)" % name.encode(), rb"\1\0\0", raw, flags=re.S)
            raw = re.sub(b"(PK\x01\x02....)..(?=.{36}%b)" % name.encode(), rb"\1\0\0", raw, flags=re.S)
        place.write_bytes(raw)
        assert NAMES[0] not in zipfile.ZipFile(place).namelist()
    for members in (NAMES, tuple(archive.digests(str(place)))):
        described = kinds.Archive("mine.zip", "https://example.org", members, "")
        assert archive._extracted(tmp_path, described) == (tmp_path if "folder" in form else None)
        with archive.opened(place, described) as open_member:
            assert [open_member(member) for member in sorted(members)] == [files[name] for name in NAMES]


def test_digests_of_what_is_no_archive_are_refused(tmp_path):
    (tmp_path / "page.zip").write_text("<html>")
    for place, said in {"page.zip": "is an HTML page", "none.zip": "is not there"}.items():
        with pytest.raises(kinds.DataError, match=f"{place}: {said}.*; name a zip file or a folder"):
            archive.digests(tmp_path / place)


def test_harvis_data_comes_before_data_raw_where_it_holds_the_archive(raw, tmp_path, monkeypatch):
    write_zip(raw / "example.zip", example_files())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("HARVIS_DATA", "elsewhere")  # relative: counts from the repository
    assert_example(archive.load_recordings("example", download=False))
    write_zip(raw / "example.zip", {"subject1_walking.csv": b"not looked at"})
    write_zip(tmp_path / "elsewhere" / "example.zip", example_files())
    monkeypatch.setenv("HARVIS_ARTIFACTS", str(tmp_path / "anew"))
    assert_example(archive.load_recordings("example", download=False))


def test_an_unverified_archive_may_lie_in_a_subfolder_of_its_name(raw):
    write_zip(raw / "example.zip", example_files())
    changed = example_files() | {"subject1_walking.csv": example_files()["subject2_sitting.csv"]}
    write_zip(raw / "example-approximate" / "example.zip", changed)
    assert_example(archive.load_recordings("example"))
    approximate = archive.load_recordings("example-approximate")
    np.testing.assert_array_equal(approximate.items[0].signal, approximate.items[3].signal)


# ------------------------------------------------------------------------------------------ verified or not


def test_approximate_data_keep_name_and_caveat_and_a_changed_archive_is_not_missed(raw):
    files = example_files(n_rows=50)
    write_zip(raw / "example.zip", files)
    before = archive.load_recordings("example-approximate")
    assert (before.name, before.verified) == ("example-approximate", False)
    assert before.caveat == "approximate data (archive not verified)"
    lines = sorted(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    assert before.digest == hashlib.sha256("".join(lines).encode()).hexdigest()
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


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.permutations(range(7)), st.integers(1, 7), st.booleans())
def test_parse_table_equals_its_naive_twin(seed, n_rows, columns, k, windows):
    content = table(np.random.default_rng(seed), n_rows, 7)
    lines = content.replace(b"\n", b"\r\n")[:-2] if windows else content
    parsed = archive.parse_table(lines, columns[:k], n_columns=7, n_rows=n_rows)
    np.testing.assert_array_equal(parsed, naive_table(content, columns[:k]))


def test_dsads_segments_are_joined_in_order_of_time(raw, monkeypatch):
    monkeypatch.setattr(dsads, "N_SEGMENTS", 3)
    monkeypatch.setattr(dsads, "SUBJECTS", (1, 7))
    monkeypatch.setattr(dsads, "ACTIVITIES", ("sitting", "standing"))
    rng = np.random.default_rng(0)
    files = {m: table(rng, 125, 45) for a in (0, 1) for s in (1, 7) for m in dsads.members(a, s)}
    small = dataclasses.replace(dsads.DATASET.archive, members=tuple(files))
    small = dataclasses.replace(dsads.DATASET, archive=small)
    monkeypatch.setattr(kinds, "registry", lambda *_: {"dsads": small})
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


# -------------------------------------------------------------------------------------------- the real archives


def load_real(name: str) -> kinds.Recordings:
    """A real archive's recordings, or skip with the reason."""
    base = kinds.check_name(name).archive
    if archive.locate(name, base) is None:
        pytest.skip(f"no {base.filename} in {', '.join(map(str, data_folders()))}")
    return archive.load_recordings(name, download=False)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "n_subjects", "n_samples", "counts", "threshold"),
    [
        # Paper: 1.37 G
        ("dsads", 8, 152 * 7500, {"train": 56_810, "val": 11_362, "test": 22_724}, 1.371),
        # Paper: 1.57 G with the original archive; this one is a copy that cannot be verified
        ("mhealth-approximate", 10, 343_195, {"train": 9_524}, 1.518),
    ],
)
def test_real_archives_and_their_windows(name, n_subjects, n_samples, counts, threshold):
    recordings = load_real(name)
    assert recordings.verified == (name == "dsads")
    assert {r.subject for r in recordings.items} == set(range(1, n_subjects + 1))
    assert {r.activity for r in recordings.items} == set(range(len(recordings.dataset.activities)))
    assert sum(len(r.signal) for r in recordings.items) == n_samples
    if name == "dsads":  # joined segments: a step across a boundary is as small as one inside a segment
        signal = np.stack([r.signal for r in recordings.items])
        steps = np.abs(np.diff(signal, axis=1)).mean(axis=(0, 2))
        assert steps[124::125].mean() < 1.2 * np.delete(steps, np.s_[124::125]).mean()
    windows = windowing.cut(recordings)
    assert windows.counts() | counts == windows.counts() and windows.train.x[-1].shape == (6, 30)
    assert windowing.amplitude_threshold(windows.train) == pytest.approx(threshold, abs=0.003)
    assert windows.caveat == ("" if name == "dsads" else "approximate data (archive not verified)")
    # no gravity is missing and no unit wrong: the median length of a sensor's acceleration is 1 G
    lengths = np.linalg.norm(windows.train.series.reshape(-1, 2, 3), axis=2)
    assert np.median(lengths) == pytest.approx(1, abs=0.05)
