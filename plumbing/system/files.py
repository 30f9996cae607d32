"""Files that are whole or not there: write, hash, lock and download. Also lines and bars on a terminal."""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from filelock import FileLock, Timeout

_unwritable: set[Path] = set()  # files that `show` has warned of


def progress(items, title: str, total: int | None, first: int = 0):
    """Return `items` with a tqdm bar. It shows after a second, on a terminal, where tqdm is installed."""
    if not find_spec("tqdm"):
        return items
    from tqdm import tqdm

    return tqdm(items, title, total, leave=False, initial=first, disable=None, delay=1)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line to `file` or standard output, above a progress bar."""
    file = file or sys.stdout
    if file is None:  # closed
        return
    tqdm = sys.modules.get("tqdm")  # without the module there is no bar
    if tqdm:
        tqdm.tqdm.write(text, file)
    else:
        print(text, file=file)
    file.flush()


def hidden(name: str) -> bool:
    """Return True for the name of a hidden file, and for a Mac's folder in a zip archive."""
    return name.startswith((".", "__MACOSX"))


def _raise(error: OSError) -> NoReturn:
    raise error


def below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) for `folder` and all folders below it, without hidden ones.

    Links to folders come last. A folder that two paths lead to comes once, so a circle of links ends.
    Raises OSError for a folder that cannot be read.
    """
    visited, queue = set(), [str(folder)]
    while queue:
        for path, folders, names in os.walk(queue.pop(0), onerror=_raise):
            real = os.path.realpath(path)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not hidden(name))
            paths = [os.path.join(path, name) for name in folders]
            queue += filter(os.path.islink, paths)
            yield path, sorted(name for name in names if not hidden(name))


def write_whole(path: Path, write: Callable[[BinaryIO], None], check: Callable[[Path], None] | None = None) -> None:
    """Write a temporary file, flush it to disk, check it and rename it to `path`. A failure keeps the old file."""
    part = path.with_name(f"{path.name}.part")
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


def intact(path: Path) -> None:
    """Compare a .pth file with its checksums. torch.load does not, and loads a flipped bit as a weight."""
    with zipfile.ZipFile(path) as archive:
        name = archive.testzip()
    if name:
        raise OSError(f"it is damaged: the checksum of {name} in it is wrong")


def sha256(path: Path) -> str:
    """Return the file's SHA-256, 64 hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def show(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file that people look at. On Windows an open viewer forbids this: warn once and keep the old file."""
    try:
        write_whole(path, write)
    except PermissionError as error:
        if path not in _unwritable:
            say(f"WARNING: {path} cannot be written now ({error.strerror}). The program goes on.", sys.stderr)
        _unwritable.add(path)


class InUse(OSError):
    """Error for a lock that another process holds. The message names that process."""


def lock(path: Path) -> FileLock | None:
    """Lock `path` until the returned object is deleted. The system releases the lock when the process ends.

    Raises InUse. Returns None if this process holds the lock already.
    """
    mutex = FileLock(path, timeout=0, thread_local=False)
    note = path.with_suffix(".txt")  # Windows lets nobody read a locked file
    me = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        mutex.acquire()
    except Timeout:
        holder = note.read_text() if note.exists() else "another process"
        if holder == me:
            return None
        raise InUse(f"in use by {holder}") from None
    note.write_text(me)
    return mutex


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time make `path`. The next one waits, and then finds what the first has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mutex = FileLock(f"{path}.lock")
    try:
        mutex.acquire(timeout=0)
    except Timeout:
        say(f"waiting: another process is making {path}", sys.stderr)
        mutex.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps an open file, and filelock then deletes it
            os.unlink(mutex.lock_file)
        mutex.release()


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make `folder` with what `fill` puts into it, whole or not at all. Wait if another process is making it."""
    part = folder.with_name(f"{folder.name}.part")
    with one_at_a_time(folder):
        if folder.exists():
            return
        shutil.rmtree(part, ignore_errors=True)  # a killed process leaves one
        try:
            part.mkdir()
            fill(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def move_aside(path: Path) -> Path:
    """Add date and time to the name of `path`, so that the name is free. Return the new path."""
    aside = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-")
    return path.rename(aside)


def _fetch(url: str, file: BinaryIO) -> None:
    """Download `url` into `file`. Unlike torch.hub, notice a connection that is cut where no SHA-256 is known."""
    with urllib.request.urlopen(url) as response:
        pieces = iter(partial(response.read1, 1 << 16), b"")
        for piece in progress(pieces, url, None):
            file.write(piece)
        size = response.headers["Content-Length"]
    if size and file.tell() != int(size):
        raise OSError(f"the connection was cut after {file.tell():,} of {int(size):,} bytes")


def download(urls: Iterable[str], path: Path, check: Callable[[Path], object]) -> None:
    """Download `path`, whole or not at all, from the first address whose file passes `check`.

    `check` raises ValueError. If every address fails, raises OSError with the reason for each one.
    """
    reasons = []
    with one_at_a_time(path):
        if path.exists():
            return
        for url in urls:
            say(f"fetching {url}", sys.stderr)
            try:
                write_whole(path, partial(_fetch, url), check)
                return
            except Exception as error:  # urllib, http.client and `check` have no common one
                reasons.append(f"{url}: {str(error) or type(error).__name__}")
    raise OSError("; ".join(reasons))


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's dictionary, or {} for a missing or damaged file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any], write: Callable = write_whole) -> None:
    """Write a dictionary as indented JSON with `write`, which is write_whole or show."""
    text = json.dumps(content, indent=1)
    write(path, lambda file: file.write(text.encode()))
