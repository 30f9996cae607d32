"""Any text: by name, or from a file, a folder, a pattern or a URL; read, checked, downloaded."""

import glob
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from common import fail
from plumbing import ranks
from plumbing.files import download

GIT_FILES = {  # name: the SHA-1 by which git knows the file's content, and where to get it
    "tinyshakespeare": (
        "7dcb3a2d4cc3b48b6283dd46870bfeb78f88aac9",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "https://raw.githubusercontent.com/karpathy/ng-video-lecture/master/input.txt",
    ),
    "shakespeare": (
        "8dc7d27dcfb2514eb9a535b398c873d4beca818b",
        "https://raw.githubusercontent.com/cedricdeboom/character-level-rnn-datasets/master/datasets/shakespeare.txt",
    ),
}


def check_text(path: Path, sha1: str | None) -> None:
    """Raises ValueError for another file than the one with this SHA-1, or, where there is none, for a web page."""
    data = path.read_bytes()
    if sha1 and hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != sha1:
        raise ValueError(f"{len(data):,} bytes that are not the expected text")
    if not sha1 and data.lstrip()[:9].lower() in (b"<!doctype", b"<html>"):
        raise ValueError("a web page, not a text")


def _downloaded(source: str, data_dir: str) -> Path:
    """The file of a name or URL, which is fetched if it is not there. Raises OSError."""
    if source in GIT_FILES:
        sha1, *urls = GIT_FILES[source]
        path = Path(data_dir, f"{source}.txt")
    else:
        sha1, urls = None, [source]
        path = Path(data_dir, "downloads", f"{hashlib.sha256(source.encode()).hexdigest()[:8]}.txt")
    try:
        if not path.exists():
            download(urls, path, partial(check_text, sha1=sha1))
    except OSError as error:
        raise OSError(f"the download failed ({error}); copy the text to {path} or use a network") from None
    return path


def _files(source: str) -> list[Path]:
    """Those of a folder, a file's name, or a pattern. Raises FileNotFoundError."""
    path = Path(source)
    if path.is_dir():
        found = sorted(path.rglob("*.txt"))
        missing = "there is no .txt file in it"
    else:
        found = [path] if path.is_file() else sorted(map(Path, glob.glob(source)))
        missing = "there is no such file"
    if not found:
        raise FileNotFoundError(missing)
    return found


def _decoded(path: Path) -> str:
    """A UTF-8 file with Unix line ends. Raises ValueError."""
    data = path.read_bytes()
    if b"\0" in data:
        raise ValueError(f"{path} is a binary file, not a text")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        wrong = f"byte {data[error.start]:#04x} at position {error.start:,}"
        raise ValueError(f"{path} is not UTF-8 text ({wrong}); convert it, for example with iconv") from None


def read_text(source: str, data_dir: str) -> str:
    """The text that --data means. Raises OSError when it is not to be had, ValueError when it is no text."""
    if source == "python":  # the language reference that help() shows; in every Python installation
        topics = importlib.import_module("pydoc_data.topics").topics
        return "\n\n".join(topics[key] for key in sorted(topics))
    if source in GIT_FILES or source.startswith(("http://", "https://")):
        return _decoded(_downloaded(source, data_dir))
    return "\n".join(map(_decoded, _files(source)))


@ranks.one_per_machine()
def read_usual(source: str | None, data_dir: str) -> tuple[str, str, str]:
    """(the text, what it came from, a note): of --data; without it tiny Shakespeare or, loudly, Python's documentation.

    Ends the program with one line where the text is not to be had.
    """
    try:
        return read_text(source or "tinyshakespeare", data_dir), source or "tinyshakespeare", ""
    except (OSError, ValueError, ImportError) as error:
        if source or not isinstance(error, OSError):
            fail(f"--data {source or 'tinyshakespeare'}: {error}")
        print(f"WARNING: tiny Shakespeare is not to be had: {error}.")
        print("WARNING: going on with the Python documentation that comes with Python instead.", flush=True)
    try:
        return read_text("python", data_dir), "python", ", a substitute: tiny Shakespeare was not to be had"
    except ImportError as error:
        fail(f"--data python: {error}")


def print_as_it_comes(pieces: Iterable[str]) -> None:
    """To standard output, piece by piece; one line where it is closed or full."""
    if sys.stdout is None:
        fail("standard output is closed")
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except (BrokenPipeError, KeyboardInterrupt):  # the reader has enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        fail(f"standard output: {error.strerror}")
