"""Files that are whole or not there: writing, hashing, locking, downloading."""

import hashlib
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

SLOWEST = 1e4  # bytes per second that a server has to send, after its first minute


def progress(items, title: str, total: int | None, first: int = 0):
    """tqdm over `items` where it is installed and standard error is a terminal."""
    if not find_spec("tqdm"):
        return items
    from tqdm import tqdm

    return tqdm(items, title, total, leave=False, initial=first, disable=None)


def write_whole(path: Path, write: Callable[[BinaryIO], None], check: Callable[[Path], None] | None = None) -> None:
    """Write under a temporary name, flush to disk, check, rename: the old file or the new is there, never a half."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)  # a full disk needs the room
        raise


def sha256(path: Path) -> str:
    """The file's SHA-256, 64 hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class InUse(OSError):
    """Another process holds the folder; the message says which."""


def lock(folder: Path) -> Any:
    """Hold folder/lock as long as what is returned lives: the file says who does. A process that died holds nothing.

    Raises InUse. Returns None where this process holds it already and where the file system has no locks.
    """
    if not find_spec("fcntl"):  # Windows
        return None
    import fcntl

    file = open(folder / "lock", "a+")
    me = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read()
        if isinstance(error, BlockingIOError) and holder != me:
            raise InUse(f"{folder} is in use by {holder}") from None
        return None
    file.truncate(0)
    file.write(me)
    file.flush()
    return file


def _fetch(url: str, part: Path, title: str) -> None:
    """Raises OSError and whatever urllib and http.client raise."""
    with urllib.request.urlopen(url) as response, open(part, "wb") as file:
        size = response.headers.get("Content-Length")
        began, done = time.monotonic(), 0
        for piece in progress(iter(lambda: response.read1(1 << 16), b""), title, None):
            file.write(piece)
            done += len(piece)
            if done < SLOWEST * (time.monotonic() - began - 60):
                raise OSError("it sends less than 10 kB a second")
    if size and done != int(size):
        raise OSError(f"it was cut off after {done:,} of {int(size):,} bytes")


def download(urls: Iterable[str], path: Path, check: Callable[[Path], object]) -> None:
    """`path` from the first address that gives what `check` accepts (it raises ValueError), whole or not at all.

    Raises OSError that says of every address what was wrong. A server may be silent for half a minute (common.setup).
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        print(f"fetching {url}", file=sys.stderr)
        try:
            _fetch(url, part, path.name)
            check(part)
            os.replace(part, path)
            return
        except Exception as error:  # urllib, http.client and `check` have no common one
            reasons.append(f"{url}: {str(error) or type(error).__name__}")
        finally:
            part.unlink(missing_ok=True)
    raise OSError("; ".join(reasons))
