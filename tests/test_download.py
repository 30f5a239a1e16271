"""Downloads against a local server: whole, broken, missing, wrong, interrupted, and no server at all."""

from __future__ import annotations

import gzip
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_archives import example_files, isolate, left_over, register_example, write_zip

from harvis_utils.data import archive
from harvis_utils.data.kinds import DataError
from harvis_utils.settings import REPOSITORY


def zipped(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return memory.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers ``/<behaviour>/example.zip``."""

    def do_GET(self):
        behaviour = self.path.split("/")[1]
        self.server.asked.append(behaviour)
        body = zipped(example_files())
        if behaviour == "missing" or (behaviour == "flaky" and len(self.server.asked) == 1):
            return self.send_error(404 if behaviour == "missing" else 503)
        if behaviour == "page":
            body = b"<!DOCTYPE html><html><body>Please log in</body></html>"
        if behaviour == "wrong":
            body = zipped(example_files() | {"subject2_walking.csv": b"1,2,3,4,5,6\n"})
        self.send_response(200)
        if behaviour == "packed":
            body = gzip.compress(b"\0" * 2**24)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if behaviour == "slow":
            self.wfile.write(body[:2000])
            self.wfile.flush()
            self.server.halfway.set()
            self.server.go_on.wait(60)
            return None
        self.wfile.write(body[: len(body) // 2] if behaviour == "short" else body)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    """A local server; the addresses of all requests are in ``asked``."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.halfway, running.go_on, running.asked = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.go_on.set()
    running.shutdown()
    running.server_close()


@pytest.fixture
def mirror(server, tmp_path, monkeypatch):
    """``mirror(behaviour)`` makes the local server the place that downloads come from; returns ``data/raw``."""
    raw = isolate(monkeypatch, tmp_path)
    register_example(monkeypatch, tmp_path)
    monkeypatch.setattr(archive, "RETRIES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server.asked.clear()

    def use(behaviour: str) -> Path:
        monkeypatch.setenv("HARVIS_MIRROR", f"http://127.0.0.1:{server.server_port}/{behaviour}/")
        return raw

    return use


def refused(pattern: str, root: Path) -> None:
    """Loading fails with a message like ``pattern`` and leaves no file behind."""
    with pytest.raises(DataError, match=pattern):
        archive.load_recordings("example")
    assert left_over(root) == []


def test_the_archive_is_downloaded_once(mirror, server, tmp_path, monkeypatch):
    raw = mirror("whole")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HARVIS_DATA", "empty")  # a folder without the archive
    recordings = archive.load_recordings("example")
    assert recordings.verified and len(recordings.items) == 6
    assert [p.name for p in raw.iterdir()] == ["example.zip"]
    archive.load_recordings("example")
    assert server.asked == ["whole"]


def test_a_failed_download_is_tried_again(mirror, server, monkeypatch):
    raw = mirror("flaky")
    monkeypatch.setattr(archive, "RETRIES", 1)
    archive.load_recordings("example")
    assert server.asked == ["flaky", "flaky"]
    assert [p.name for p in raw.iterdir()] == ["example.zip"]


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("short", r"example\.zip could not be downloaded from .*: the connection broke .*get it by hand, put it into"),
        ("missing", r"could not be downloaded from http.*missing/example\.zip: the server answered 404 Not Found"),
        ("page", r"page/example\.zip \(downloaded, refused, not kept\): is an HTML page"),
        ("packed", r"packed/example\.zip: comes packed by gzip, unasked; get it by hand or from elsewhere"),
        ("wrong", r"\(downloaded, refused, not kept\): subject2_walking\.csv: its SHA-256 starts with"),
    ],
)
def test_what_is_no_archive_is_refused_and_not_kept(mirror, tmp_path, behaviour, said):
    mirror(behaviour)
    refused(said, tmp_path)


def test_no_network(mirror, tmp_path, monkeypatch):
    mirror("whole")
    monkeypatch.setenv("HARVIS_MIRROR", "http://127.0.0.1:9")  # the discard port: nobody listens
    refused(r"from http://127\.0\.0\.1:9/example\.zip: no connection to the server; get it by hand", tmp_path)


def test_downloading_can_be_switched_off(mirror, server):
    mirror("whole")
    with pytest.raises(DataError, match=r"example\.zip is in none of the folders .*downloading is switched off"):
        archive.load_recordings("example", download=False)
    with pytest.raises(DataError, match="an unverified archive is never downloaded"):
        archive.load_recordings("example-approximate")
    assert server.asked == []


LOAD = """
import resource, sys
from pathlib import Path
from harvis_utils import data, settings
from harvis_utils.data.archive import load_recordings
root, limit = Path(sys.argv[1]), int(sys.argv[2])
settings.REPOSITORY = root
data.__path__.append(str(root / "more_datasets"))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
load_recordings("example")
"""


def start(root: Path, limit: int = 0) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LOAD, str(root), str(limit)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_download_leaves_nothing_that_is_used(mirror, server, tmp_path):
    raw = mirror("slow")
    process = start(tmp_path)
    assert server.halfway.wait(60)
    deadline = time.monotonic() + 60
    while not list(raw.glob(".*.part/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    server.go_on.set()
    assert list(raw.glob(".example.zip.*.part")) and not (raw / "example.zip").exists()
    mirror("whole")
    assert len(archive.load_recordings("example").items) == 6
    assert [p.name for p in raw.iterdir()] == ["example.zip"]


def test_a_full_disk_while_downloading(mirror, tmp_path):
    mirror("whole")
    _, errors = start(tmp_path, limit=8000).communicate()
    assert "DataError" in errors and "data/raw/example.zip could not be written: File too large; make room" in errors
    assert left_over(tmp_path) == []


def test_a_full_disk_while_keeping_the_recordings(mirror, tmp_path):
    write_zip(mirror("missing") / "example.zip", example_files())
    _, errors = start(tmp_path, limit=8000).communicate()
    assert "ArtifactError" in errors and re.search(
        r"could not be written \(.*File too large.*\); nothing was left", errors
    )
    assert left_over(tmp_path) == ["example.zip"]
