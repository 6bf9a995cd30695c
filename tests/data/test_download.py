import hashlib
import http.server
import re
import threading

import pytest

from data import download
from data.download import FILES, Source
from data.io import InputError, run_cli

CONTENT = bytes(range(256)) * 500


class Server(http.server.BaseHTTPRequestHandler):
    cut = None  # close the connection after this many bytes
    ranges = True
    asked: list = []

    def do_GET(self):
        asked = self.headers.get("Range")
        Server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        if self.path != "/repo/name/commit/at/the/file.bin":
            self.send_error(404)
            return
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: Server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Server, "cut", None)
    monkeypatch.setattr(Server, "ranges", True)
    monkeypatch.setattr(Server, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{running.server_port}/repo/name/commit/at/the/file.bin"
        monkeypatch.setitem(
            FILES, "set", {"mine.bin": Source(url, hashlib.sha256(CONTENT).hexdigest())}
        )
        yield url
        running.shutdown()


def test_downloads_checks_and_keeps(server, tmp_path):
    assert download.download("set", tmp_path) == [tmp_path / "mine.bin"]
    assert (tmp_path / "mine.bin").read_bytes() == CONTENT
    download.download("set", tmp_path)
    assert Server.asked == [None]  # the second call downloads nothing
    (tmp_path / "mine.bin").write_bytes(b"damaged")
    download.download("set", tmp_path)
    assert (tmp_path / "mine.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["mine.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(server, tmp_path, monkeypatch, ranges):
    monkeypatch.setattr(Server, "ranges", ranges)
    monkeypatch.setattr(Server, "cut", 1000)
    with pytest.raises(
        InputError, match=f"closed {len(CONTENT) - 1000} bytes early; run the same command again"
    ):
        download.download("set", tmp_path)
    assert not (tmp_path / "mine.bin").exists()
    monkeypatch.setattr(Server, "cut", None)
    download.download("set", tmp_path)
    assert Server.asked == [None, "bytes=1000-"]
    assert (tmp_path / "mine.bin").read_bytes() == CONTENT


def test_a_whole_partial_file_is_taken(server, tmp_path):
    (tmp_path / ".mine.bin.part").write_bytes(CONTENT)
    download.download("set", tmp_path)
    assert (tmp_path / "mine.bin").read_bytes() == CONTENT


def test_wrong_checksum(server, tmp_path, monkeypatch):
    monkeypatch.setitem(FILES, "set", {"mine.bin": Source(server, "0" * 64)})
    with pytest.raises(InputError, match="sha256 .* expected 000000000000"):
        download.download("set", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_server_and_network_errors(server, tmp_path, monkeypatch):
    monkeypatch.setitem(FILES, "set", {"mine.bin": Source(server + "x", "0" * 64)})
    with pytest.raises(InputError, match="answered 404"):
        download.download("set", tmp_path)
    monkeypatch.setitem(FILES, "set", {"mine.bin": Source("http://127.0.0.1:9/x", "0" * 64)})
    with pytest.raises(
        InputError, match="http://127.0.0.1:9/x: cannot be reached .*check the network"
    ):
        download.download("set", tmp_path)


@pytest.mark.parametrize("place", ["mine.bin", "at/the/file.bin"])
def test_from_a_folder(server, tmp_path, place):
    source = tmp_path / "local" / place
    source.parent.mkdir(parents=True)
    source.write_bytes(CONTENT)
    download.download("set", tmp_path / "to", tmp_path / "local")
    assert (tmp_path / "to" / "mine.bin").read_bytes() == CONTENT and Server.asked == []
    source.write_bytes(b"other")
    with pytest.raises(InputError, match=f"{place}: sha256"):
        download.download("set", tmp_path / "again", tmp_path / "local")
    with pytest.raises(InputError, match="mine.bin: no such file"):
        download.download("set", tmp_path / "again", tmp_path)


def test_command_errors(tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        run_cli(lambda: download.main(["nothing", "--to", str(tmp_path)]))
    assert raised.value.code == 2
    assert capsys.readouterr().err == (
        "error: 'nothing': unknown data set; use gsm8k, word-problems, deepseek-math-eval, agieval, mgsm, bbh, "
        "humaneval, mbpp\n"
    )
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make this folder"):
        download.download("gsm8k", tmp_path / "file")


@pytest.mark.parametrize("name", ["agieval", "mgsm", "humaneval", "mbpp", "bbh"])
def test_the_sums_are_those_of_the_real_files(real, tmp_path, name):
    written = download.download(name, tmp_path, real(name))
    assert {str(path.relative_to(tmp_path)) for path in written} == set(FILES[name])
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


def test_every_source_is_one_file_at_one_commit():
    for files in FILES.values():
        for name, source in files.items():
            assert re.fullmatch(
                r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/.+", source.url
            )
            assert re.fullmatch(r"[0-9a-f]{64}", source.sha256) and not name.startswith("/")
