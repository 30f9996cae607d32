"""Read any text and encode it as indices. A source is a name, a file, a folder, a pattern or a URL.

Functions that look at every character use numpy and one piece of the text at a time. A Python list of numbers needs
eight bytes for each character, and takes ten times as long.
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

from plumbing.system import files, ranks
from plumbing.system.process import fail

PIECE = 1 << 20  # characters
SHOWN = 20  # characters in a message
# byte order marks. UTF-32 comes first, because its little-endian mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

GIT_FILES = {  # name: the SHA-1 of the file as a git blob, and its addresses
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
    """Raise ValueError if a file's git SHA-1 is another one. Without a SHA-1, raise ValueError for a web page."""
    data = path.read_bytes()
    blob = b"blob %d\0" % len(data) + data
    if sha1 and hashlib.sha1(blob).hexdigest() != sha1:
        raise ValueError(f"{len(data):,} bytes that are not the expected text")
    begins = data[:1000].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not sha1 and begins.startswith((b"<!doctype", b"<html")):
        raise ValueError("a web page, not a text")


def _download(source: str, data_dir: str) -> Path:
    """Return the file of a name or URL. It is downloaded if it is not there. Raises OSError."""
    if source in GIT_FILES:
        sha1, *urls = GIT_FILES[source]
        path = Path(data_dir, f"{source}.txt")
    else:
        sha1, urls = None, [source]
        key = hashlib.sha256(source.encode()).hexdigest()[:8]
        path = Path(data_dir, "downloads", f"{key}.txt")
    try:
        if not path.exists():
            files.download(urls, path, partial(check_text, sha1=sha1))
    except OSError as error:
        raise OSError(f"the download failed ({error}). Copy the text to {path}, or use a network.") from None
    return path


def encoding_name(name: str) -> str:
    """Return the name of a text encoding, as an argparse type."""
    try:
        "a".encode(name)
    except (LookupError, ValueError):  # LookupError also for codecs that are not for text, such as base64
        message = f"{name!r} is not the name of a text encoding. Use a name such as utf-8 or latin-1."
        raise argparse.ArgumentTypeError(message) from None
    return name


def _txt_files(source: str) -> list[Path]:
    """Return the .txt files below a folder.

    If there are none, raise FileNotFoundError with the endings of the other files.
    """
    paths = [Path(inside, name) for inside, names in files.below(Path(source)) for name in names]
    # is_file, because reading a pipe would wait for ever
    texts = [path for path in paths if path.suffix.lower() == ".txt" and path.is_file()]
    if texts:
        return texts
    endings = Counter(path.suffix for path in paths).most_common()
    if not endings:
        raise FileNotFoundError("there is no .txt file in it, nor any other file. Use a folder of .txt files.")
    counts = ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in endings[:10])
    if len(endings) > 10:
        counts += f" and {len(endings) - 10:,} other endings"
    pattern = os.path.join(glob.escape(source), "**", f"*{glob.escape(endings[0][0])}")
    example = shlex.quote(pattern)
    raise FileNotFoundError(f"there is no .txt file in it, but {counts}. Use a pattern such as {example}")


def _matching_files(pattern: str) -> list[Path]:
    """Return the files that match a pattern, in which `**` means folders of any depth. Raises FileNotFoundError."""
    paths = {}
    names = [name for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]
    for name in sorted(names, key=len):
        folder, last = os.path.split(name)
        # glob follows a circle of links forty times. Only the shortest path of a file is kept.
        paths.setdefault((os.path.realpath(folder), last), Path(name))
    if not paths:
        raise FileNotFoundError("there is no such file. Check the path.")
    return list(paths.values())


def _paths(source: str) -> list[Path]:
    """Return the files that a folder, a path or a pattern means, in order. Raises OSError."""
    if os.path.isdir(source):
        return sorted(_txt_files(source))
    if os.path.isfile(source):
        return [Path(source)]
    return sorted(_matching_files(source))


def _decode(path: Path, encoding: str | None) -> str:
    """Decode a text file.

    Its byte order mark decides the encoding. Without a mark it is `encoding`, and without that UTF-8. Raises
    ValueError.
    """
    data = path.read_bytes()
    marked = next((name for mark, name in MARKS.items() if data.startswith(mark)), None)
    encoding = marked or encoding
    if encoding is None:
        encoding = "UTF-8"
        if b"\0" in data:
            raise ValueError(
                f"{path} is a binary file, not a text. "
                "For UTF-16 without a byte order mark, add --encoding utf-16-le or utf-16-be."
            )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        skipped = len(data) - len(error.object)  # by a codec that counts from behind the byte order mark
        position = skipped + error.start
        problem = f"byte {error.object[error.start]:#04x} at position {position:,}"
    except UnicodeError as error:  # Some codecs give no position.
        problem = str(error)
    raise ValueError(f"{path} is not {encoding} text ({problem}). Name its encoding, as in --encoding latin-1.")


def _read(path: Path, encoding: str | None) -> str:
    """Return a text file with Unix line ends and without a byte order mark. Raises OSError and ValueError."""
    text = _decode(path, encoding).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _contents(source: str, data_dir: str, encoding: str | None) -> list[str]:
    """Return the text of each file of `source`. Raises OSError and ValueError."""
    if source == "python":  # the language reference that help() shows, a part of every Python installation
        topics = importlib.import_module("pydoc_data.topics").topics
        return ["\n\n".join(topics[key] for key in sorted(topics))]
    # a folder with one file for each work, if somebody has made it
    works = Path(data_dir, "shakespeare-works")
    if source == "shakespeare" and works.is_dir() and not Path(data_dir, "shakespeare.txt").exists():
        return [_read(path, None) for path in _paths(str(works))]
    if source in GIT_FILES:
        return [_read(_download(source, data_dir), None)]
    if source.startswith(("http://", "https://")):
        return [_read(_download(source, data_dir), encoding)]
    return [_read(path, encoding) for path in _paths(source)]


def read_text(source: str, data_dir: str, encoding: str | None = None) -> str:
    """Return the text that --data means.

    Raises OSError if the text cannot be found or downloaded, and ValueError if it cannot be decoded.

    Args:
        encoding: the encoding of files without a byte order mark. None means UTF-8. Texts known by name do not use it.
    """
    return "\n".join(_contents(source, data_dir, encoding))


def _read_and_count(source: str, data_dir: str, encoding: str | None) -> str:
    """Return the text like `read_text`, and print its numbers of files and characters."""
    contents = _contents(source, data_dir, encoding)
    text = "\n".join(contents)
    many = "1 file" if len(contents) == 1 else f"{len(contents):,} files"
    print(f"read {many}, {len(text):,} characters")
    return text


@ranks.one_per_machine()
def _read_or_substitute(source: str | None, data_dir: str, encoding: str | None) -> tuple[str, str, str]:
    """Return the text of --data, its source, and a note.

    Without --data the text is tiny Shakespeare. If that cannot be downloaded, print a warning and return Python's
    documentation. Any other text that cannot be read ends the program with one line.
    """
    default = "tinyshakespeare"
    try:
        return _read_and_count(source or default, data_dir, encoding), source or default, ""
    except (OSError, ValueError, ImportError) as error:
        if source or not isinstance(error, OSError):
            fail(f"--data {source or default}: {error}")
        print(f"WARNING: tiny Shakespeare cannot be read: {error}")
        print("WARNING: the documentation that comes with Python is used instead.", flush=True)
    try:
        text = _read_and_count("python", data_dir, None)
    except ImportError as error:
        fail(f"--data python: {error}")
    return text, "python", ", a substitute because tiny Shakespeare could not be read"


def _code_points(text: str) -> Iterator[np.ndarray]:
    """Yield the code points of the text, as int32 (n,) for one piece after the other."""
    for first in range(0, len(text), PIECE):
        piece = text[first : first + PIECE]
        yield np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), "<i4")


def char_counts(text: str) -> dict[str, int]:
    """Return how often each character of the text occurs, with the characters sorted."""
    counts = np.zeros(sys.maxunicode + 1, np.int64)
    for codes in _code_points(text):
        here = np.bincount(codes)
        counts[: len(here)] += here
    return {chr(i): int(counts[i]) for i in np.flatnonzero(counts)}


def indices(text: str, char_to_idx: dict[str, int]) -> np.ndarray:
    """Return the index of each character, (N,).

    The type is the smallest of uint8, int16 and int32 that holds every index of the map. Raises KeyError with the first
    character that is not in the map.
    """
    table = np.full(sys.maxunicode + 1, -1, np.int32)
    for c, i in char_to_idx.items():
        table[ord(c)] = i
    dtypes = (np.uint8, np.int16, np.int32)
    dtype = next(dtype for dtype in dtypes if table.max() <= np.iinfo(dtype).max)
    idx = np.empty(len(text), dtype)
    done = 0
    for codes in _code_points(text):
        piece = table[codes]
        lowest = piece.argmin()
        if piece[lowest] < 0:
            raise KeyError(chr(codes[lowest]))
        idx[done : done + len(codes)] = piece
        done += len(codes)
    return idx


def crc(text: str) -> int:
    """Return the CRC-32 of the text in UTF-8."""
    value = 0
    for first in range(0, len(text), PIECE):
        piece = text[first : first + PIECE]
        value = zlib.crc32(piece.encode(errors="surrogatepass"), value)
    return value


def some(chars: str | list[str] | dict[str, int]) -> str:
    """Return the first twenty as Python writes them, and how many more there are. This keeps a message short."""
    if isinstance(chars, dict):
        shown = dict(islice(chars.items(), SHOWN))
    else:
        shown = chars[:SHOWN]
    if len(chars) <= SHOWN:
        return repr(shown)
    return f"{shown!r} and {len(chars) - SHOWN:,} more"


def without(text: str, chars: list[str]) -> str:
    """Return the text without these characters."""
    if not chars:
        return text
    return text.translate(dict.fromkeys(map(ord, chars)))


class Text(NamedTuple):
    """A text as indices, split into training and held-out text, and its alphabet in the order of the indices.

    `test` is `train` if nothing is held out.
    """

    name: str
    source: str  # the value of --data that loads this text again
    train: Tensor  # uint8, int16 or int32 (N,)
    test: Tensor
    chars: str
    crc: int
    note: str = ""

    def __str__(self) -> str:
        held_out = "" if self.test is self.train else f" + {len(self.test):,} held-out"
        characters = f"{len(self.train):,}{held_out} characters"
        return f"{self.name} ({characters}, {len(self.chars)} distinct, crc {self.crc:08x})"


def load_text(
    source: str | None,
    data_dir: str,
    min_count: int,
    held_out: float,
    encoding: str | None = None,
    alphabet: str | None = None,
) -> Text:
    """Return the text of --data as indices. Print its beginning, its alphabet and the removed characters.

    Args:
        source: the value of --data. None means tiny Shakespeare. If that cannot be downloaded, it means Python's
            documentation, with a warning.
        min_count: characters that occur less often are removed.
        held_out: share of the text, at its end, that becomes the held-out text.
        encoding: like `read_text`.
        alphabet: characters in the order of their indices. All others are removed. None means those of the text.
    """
    text, source, note = _read_or_substitute(source, data_dir, encoding)
    counts = char_counts(text)
    kept = alphabet or counts
    rare = {c: n for c, n in counts.items() if n < min_count or c not in kept}
    text = without(text, list(rare))
    chars = "".join(char_counts(alphabet or text))
    if len(chars) < 2:
        fail(
            f"--data {source}: {len(text):,} characters, {len(chars)} of them distinct. "
            "Use a longer text or a smaller --min-count."
        )
    print(f"the text begins: {text[:200]!r}\nalphabet: {some(chars)}")
    print(f"removed: {some(rare) if rare else 'nothing'}")
    ids = torch.from_numpy(indices(text, {c: i for i, c in enumerate(chars)}))
    n = int(len(ids) * (1 - held_out))
    if n < len(ids) < n + 2:
        fail(
            f"--held-out {held_out} of {len(ids)} characters leaves too few to measure. "
            "Use a larger --held-out, or --held-out 0 to hold nothing out."
        )
    train, test = ids[:n], ids[n:]
    if not len(test):
        test = train
        note += ", measured on the training text"
    name = "-".join(re.findall(r"\w+", Path(source).stem)) or "text"
    return Text(name, source, train, test, chars, crc(text), note)


def start_of_writing(start: str | None, chars: str) -> str:
    """Return the text that --start means, by default a line break.

    A character that is not in the alphabet ends the program with one line.
    """
    if start is None:
        return "\n" if "\n" in chars else chars[0]
    if not start:
        fail("--start is empty. Give it at least one character.")
    if "\\" not in chars:  # A shell passes a typed \n as two characters.
        start = start.replace(r"\n", "\n")
    strange = "".join(sorted(set(start) - set(chars)))
    if strange:
        fail(f"--start: {some(strange)} is not in the alphabet. Use characters of {some(chars)}.")
    return start


def print_as_it_comes(pieces: Iterable[str]) -> None:
    """Print the pieces on standard output, each as soon as it is there.

    If standard output is the process's own, Ctrl-C and a reader that has gone (as in `| head`) end the printing
    quietly. A closed or full standard output then ends the program with one line. If a caller has replaced
    standard output, every exception is the caller's.
    """
    if sys.stdout is None:
        fail("standard output is closed. Write to a file with > FILE.")
    is_own = sys.stdout is sys.__stdout__
    if is_own and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except (BrokenPipeError, KeyboardInterrupt):
        if not is_own:
            raise
        # Otherwise the rest of the buffer would raise BrokenPipeError again at exit.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except OSError as error:
        if not is_own:
            raise
        fail(f"standard output cannot be written to ({error.strerror}). Write to another file with > FILE.")
