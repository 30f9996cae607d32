"""Servers that fail or lie; mirrors and checksums."""

import hashlib
import http.server
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

import char_rnn
import fid
import vae
from plumbing.data import texts
from plumbing.judge import inception
from tests.helpers import as_files, error_line, letters, photos, told


def test_missing_weights_are_named_with_address_and_place(capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    monkeypatch.setattr(inception, "URLS", ["http://127.0.0.1:9/a.pth", "http://127.0.0.1:9/b.pth"])
    as_files(photos(2), "set")
    line = error_line(capsys, fid.main, ["set", "set"])
    assert "hub/checkpoints" in line and "http://127.0.0.1:9/a.pth" in line and "--weights" in line

    Path("hub/checkpoints", inception.NAME).write_bytes(b"half a file")
    assert "is damaged" in error_line(capsys, fid.main, ["set", "set"])


def test_download_takes_the_mirror_and_checks_the_hash(inception_file, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    Path("wrong.pth").write_bytes(b"<html>")
    monkeypatch.setattr(inception, "URLS", [Path("wrong.pth").absolute().as_uri()])
    with pytest.raises(OSError, match="its sha256 begins"):
        inception.load()
    assert not list(Path("hub/checkpoints").iterdir())
    monkeypatch.setattr(inception, "URLS", [*inception.URLS, inception_file.as_uri()])
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(inception_file.read_bytes()).hexdigest()[:8])
    assert inception.load().sha256.startswith(inception.SHA256) and Path("hub/checkpoints", inception.NAME).exists()


class Server(http.server.BaseHTTPRequestHandler):
    """Behaves as the first part of the path says."""

    content = letters(70_000).encode()

    def log_message(self, *_) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        kind, good = self.path.strip("/"), self.content
        if kind in ("403", "404", "500", "503"):
            self.answer(b"<html>sorry</html>", int(kind))
        elif kind == "cut":
            self.answer(good[:40_000], Content_Length=str(len(good)))
        elif kind == "chunk":
            self.answer(b"ffff\r\n" + good[:100], Transfer_Encoding="chunked")
        elif kind == "page":
            self.answer(b" <!DOCTYPE html><html>please log in</html>")
        elif kind == "other":
            self.answer(good[::-1])
        elif kind == "empty":
            self.answer(b"")
        elif kind == "circle":
            self.answer(b"", 302, Location="/circle")
        elif kind == "local":
            self.answer(b"", 302, Location="file:///etc/hostname")
        elif kind == "moved":
            self.answer(b"", 301, Location="/good")
        elif kind == "nothing":
            self.close_connection = True
        elif kind == "babble":
            self.wfile.write(b"\0\1\2 no HTTP\r\n\r\n")
        elif kind == "silent":
            time.sleep(1)
        else:
            self.answer(good, Content_Length=str(len(good)))


BAD_SERVERS = "403 404 500 503 cut chunk page other empty circle local nothing babble silent".split()


@pytest.mark.parametrize("kind", BAD_SERVERS)
def test_bad_servers(kind, capsys, monkeypatch):
    """Each is named with what is wrong and leaves no file; a second address is taken, and a redirection followed."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    socket.setdefaulttimeout(0.3)
    sha1 = hashlib.sha1(b"blob 70000\0" + Server.content).hexdigest()
    try:
        monkeypatch.setitem(texts.GIT_FILES, "tinyshakespeare", (sha1, f"{address}/{kind}"))
        line = told(capsys, char_rnn.main, ["--data", "tinyshakespeare"])
        assert f"{address}/{kind}: " in line and "Copy the text to data/tinyshakespeare.txt" in line
        assert not list(Path("data").iterdir())
        if kind not in ("other", "empty"):  # a text without a checksum can be anything
            assert f"{address}/{kind}: " in told(capsys, char_rnn.main, ["--data", f"{address}/{kind}"])
        assert "could not be downloaded" in told(capsys, vae.main, ["--data", f"{address}/{kind}"])
        assert not [path for path in Path("data").rglob("*") if path.is_file()]
        monkeypatch.setitem(texts.GIT_FILES, "tinyshakespeare", (sha1, f"{address}/{kind}", f"{address}/moved"))
        assert texts.read_text("tinyshakespeare", "data") == letters(70_000)
    finally:
        socket.setdefaulttimeout(None)
        server.shutdown()
