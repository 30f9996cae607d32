"""Any text: by name, or from a file, a folder, a pattern or a URL; read, checked, downloaded, and made numbers of.

What looks at every character does so in numpy, a piece of the text at a time: a list of Python's numbers takes eight
bytes for each, and ten times as long.
"""

import argparse
import codecs
import glob
import hashlib
import importlib
import os
import re
import shlex
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plumbing.system import files, process, ranks
from plumbing.system.process import fail

PIECE = 1 << 20  # characters
SHOWN = 20  # characters in a message
MARKS = {  # byte order marks: UTF-32's first, because its little-endian one begins as UTF-16's does
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

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
    begins = data[:1000].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not sha1 and begins.startswith((b"<!doctype", b"<html")):
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
            files.download(urls, path, partial(check_text, sha1=sha1))
    except OSError as error:
        raise OSError(f"the download failed ({error}); copy the text to {path} or use a network") from None
    return path


def encoding_name(name: str) -> str:
    """An argparse type: the name of an encoding between text and bytes."""
    try:
        "a".encode(name)
    except (LookupError, ValueError):  # LookupError also for what is no text encoding, as base64
        raise argparse.ArgumentTypeError(f"{name!r} is not the name of a text encoding") from None
    return name


def _in_folder(source: str) -> list[Path]:
    """The .txt files below a folder. Raises FileNotFoundError, which names the other endings, where there are none."""
    paths = [Path(inside, name) for inside, names in files.below(Path(source)) for name in names]
    found = [path for path in paths if path.suffix.lower() == ".txt" and path.is_file()]  # a pipe would wait
    if found:
        return found
    endings = Counter(path.suffix for path in paths).most_common()
    if not endings:
        raise FileNotFoundError("there is no .txt file in it, nor any other")
    there = ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in endings[:10])
    if len(endings) > 10:
        there += f" and {len(endings) - 10:,} other endings"
    pattern = os.path.join(glob.escape(source), "**", f"*{glob.escape(endings[0][0])}")
    raise FileNotFoundError(f"there is no .txt file in it, but {there}; name a pattern such as {shlex.quote(pattern)}")


def _matching(pattern: str) -> list[Path]:
    """The files that a pattern matches, in which `**` is folders of any depth. Raises FileNotFoundError."""
    found = {}
    names = [name for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]
    for name in sorted(names, key=len):
        folder, last = os.path.split(name)
        # glob goes round a circle of links forty times: only the shortest way to a file counts.
        found.setdefault((os.path.realpath(folder), last), Path(name))
    if not found:
        raise FileNotFoundError("there is no such file")
    return list(found.values())


def _paths(source: str) -> list[Path]:
    """The files of a folder, a file's name, or a pattern, in order. Raises OSError."""
    if os.path.isdir(source):
        return sorted(_in_folder(source))
    if os.path.isfile(source):
        return [Path(source)]
    return sorted(_matching(source))


def _decoded(path: Path, encoding: str | None) -> str:
    """What a file holds in this encoding, by default that of its byte order mark, else UTF-8. Raises ValueError."""
    data = path.read_bytes()
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    encoding = marked or encoding
    if encoding is None:
        encoding = "UTF-8"
        if b"\0" in data:
            raise ValueError(f"{path} is a binary file, not a text; UTF-16 without a byte order mark needs --encoding")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        skipped = len(data) - len(error.object)  # by a codec that begins to count behind the byte order mark
        wrong = f"byte {error.object[error.start]:#04x} at position {skipped + error.start:,}"
    except UnicodeError as error:  # of a rare codec that says no position
        wrong = str(error)
    raise ValueError(f"{path} is not {encoding} text ({wrong}); name its encoding with --encoding")


def _read(path: Path, encoding: str | None) -> str:
    """A text file with Unix line ends and without a byte order mark. Raises OSError and ValueError."""
    return _decoded(path, encoding).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _contents(source: str, data_dir: str, encoding: str | None) -> list[str]:
    """What the files of `source` hold. Raises OSError and ValueError."""
    if source == "python":  # the language reference that help() shows; in every Python installation
        topics = importlib.import_module("pydoc_data.topics").topics
        return ["\n\n".join(topics[key] for key in sorted(topics))]
    works = Path(data_dir, "shakespeare-works")  # a file for each, where somebody has put them
    if source == "shakespeare" and works.is_dir() and not Path(data_dir, "shakespeare.txt").exists():
        return [_read(path, None) for path in _paths(str(works))]
    if source in GIT_FILES:
        return [_read(_downloaded(source, data_dir), None)]
    if source.startswith(("http://", "https://")):
        return [_read(_downloaded(source, data_dir), encoding)]
    return [_read(path, encoding) for path in _paths(source)]


def read_text(source: str, data_dir: str, encoding: str | None = None) -> str:
    """The text that --data means. Raises OSError when it is not to be had, ValueError when it is no text.

    encoding: of files other than those known by name; None is UTF-8, or what a file's byte order mark says.
    """
    return "\n".join(_contents(source, data_dir, encoding))


def _read_loudly(source: str, data_dir: str, encoding: str | None) -> str:
    """read_text, and a line that says how much it is."""
    contents = _contents(source, data_dir, encoding)
    text = "\n".join(contents)
    many = "1 file" if len(contents) == 1 else f"{len(contents):,} files"
    print(f"read {many}, {len(text):,} characters")
    return text


@ranks.one_per_machine()
def read_usual(source: str | None, data_dir: str, encoding: str | None = None) -> tuple[str, str, str]:
    """(the text, what it came from, a note): of --data; without it tiny Shakespeare or, loudly, Python's documentation.

    Ends the program with one line where the text is not to be had.
    """
    try:
        return _read_loudly(source or "tinyshakespeare", data_dir, encoding), source or "tinyshakespeare", ""
    except (OSError, ValueError, ImportError) as error:
        if source or not isinstance(error, OSError):
            fail(f"--data {source or 'tinyshakespeare'}: {error}")
        print(f"WARNING: tiny Shakespeare is not to be had: {error}.")
        print("WARNING: going on with the Python documentation that comes with Python instead.", flush=True)
    try:
        return _read_loudly("python", data_dir, None), "python", ", a substitute: tiny Shakespeare was not to be had"
    except ImportError as error:
        fail(f"--data python: {error}")


def _code_points(text: str) -> Iterator[np.ndarray]:
    """int32 (n,) of one piece of the text after the other."""
    for first in range(0, len(text), PIECE):
        yield np.frombuffer(text[first : first + PIECE].encode("utf-32-le", "surrogatepass"), "<i4")


def char_counts(text: str) -> dict[str, int]:
    """How often each character of the text occurs, in sorted order."""
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for codes in _code_points(text):
        here = np.bincount(codes)
        counts[: len(here)] += here
    return {chr(i): int(counts[i]) for i in np.flatnonzero(counts)}


def indices(text: str, char_to_idx: dict[str, int]) -> np.ndarray:
    """(N,) of the smallest of uint8, int16 and int32 that holds every index of the map. Raises KeyError."""
    table = np.full(sys.maxunicode + 1, -1, np.int32)
    for c, i in char_to_idx.items():
        table[ord(c)] = i
    dtype = next(kind for kind in (np.uint8, np.int16, np.int32) if table.max() <= np.iinfo(kind).max)
    idx, done = np.empty(len(text), dtype), 0
    for codes in _code_points(text):
        found = table[codes]
        lowest = found.argmin()
        if found[lowest] < 0:
            raise KeyError(chr(codes[lowest]))
        idx[done : done + len(codes)] = found
        done += len(codes)
    return idx


def crc(text: str) -> int:
    """The CRC-32 of the text as UTF-8."""
    value = 0
    for first in range(0, len(text), PIECE):
        value = zlib.crc32(text[first : first + PIECE].encode(errors="surrogatepass"), value)
    return value


def some(chars: str | list[str] | dict[str, int]) -> str:
    """The first twenty, as they are written in Python, and how many more there are: a message has to end."""
    if isinstance(chars, dict):
        shown = dict(islice(chars.items(), SHOWN))
    else:
        shown = chars[:SHOWN]
    if len(chars) <= SHOWN:
        return repr(shown)
    return f"{shown!r} and {len(chars) - SHOWN:,} more"


def without(text: str, chars: list[str]) -> str:
    """The text without these characters."""
    return text.translate(dict.fromkeys(map(ord, chars))) if chars else text


class Text(NamedTuple):
    """Indices of what is trained on and of what is held out, and the alphabet in the order of its indices."""

    name: str
    train: Tensor  # uint8, int16 or int32 (N,)
    test: Tensor
    chars: str
    crc: int
    note: str = ""

    def __str__(self) -> str:
        held_out = "" if self.test is self.train else f" + {len(self.test):,} held-out"
        return f"{self.name} ({len(self.train):,}{held_out} characters, {len(self.chars)} distinct, crc {self.crc:08x})"


def load_text(
    source: str | None,
    data_dir: str,
    min_count: int,
    held_out: float,
    encoding: str | None = None,
    alphabet: str | None = None,
) -> Text:
    """--data as indices; without it tiny Shakespeare, or loudly Python's documentation if that is not to be had.

    alphabet: characters, in the order of their indices, beside which all are removed; None are those of the text.
    """
    text, source, note = read_usual(source, data_dir, encoding)
    counts = char_counts(text)
    rare = {c: n for c, n in counts.items() if n < min_count or c not in (alphabet or counts)}
    text = without(text, list(rare))
    chars = "".join(char_counts(alphabet or text))
    if len(chars) < 2:
        fail(f"--data {source}: {len(text):,} characters, {len(chars)} of them distinct: nothing to learn")
    print(f"the text begins: {text[:200]!r}\nalphabet: {some(chars)}")
    print(f"removed: {some(rare) if rare else 'nothing'}")
    ids = torch.from_numpy(indices(text, {c: i for i, c in enumerate(chars)}))
    n = int(len(ids) * (1 - held_out))
    if n < len(ids) < n + 2:
        fail(f"--held-out {held_out} of {len(ids)} characters leaves too few to measure; 0 holds nothing out")
    train, test = ids[:n], ids[n:]
    if not len(test):
        test, note = train, f"{note}, measured on the training text"
    name = "-".join(re.findall(r"\w+", Path(source).stem)) or "text"
    return Text(name, train, test, chars, crc(text), note)


def start_of_writing(start: str | None, chars: str) -> str:
    """What --start means, by default a line break. Ends the program where the alphabet does not have all of it."""
    if start is None:
        return "\n" if "\n" in chars else chars[0]
    if not start:
        fail("--start is empty")
    if "\\" not in chars:  # a shell hands over \n as it is typed
        start = start.replace(r"\n", "\n")
    strange = "".join(sorted(set(start) - set(chars)))
    if strange:
        fail(f"--start: {some(strange)} is not in the alphabet {some(chars)}")
    return start


def print_as_it_comes(pieces: Iterable[str]) -> None:
    """To standard output, piece by piece; for a program one line where it is closed or full, and none on Ctrl-C."""
    if not process.is_program():
        for piece in pieces:
            print(piece, end="", flush=True)
        return
    if sys.stdout is None:
        fail("standard output is closed")
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except (BrokenPipeError, KeyboardInterrupt):  # the reader has enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        fail(f"standard output: {error.strerror}")
