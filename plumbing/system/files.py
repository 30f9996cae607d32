"""Files that are whole or not there: finding, writing, hashing, locking, downloading; lines beside a progress bar."""

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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

SLOWEST = 1e4  # bytes per second that a server has to send, after its first minute
_held_elsewhere: set[Path] = set()  # files of which `show` has said so


def progress(items, title: str, total: int | None, first: int = 0):
    """tqdm over `items`, from the second second on, where it is installed and standard error is a terminal."""
    if not find_spec("tqdm"):
        return items
    from tqdm import tqdm

    return tqdm(items, title, total, leave=False, initial=first, disable=None, delay=1)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line on `file`, or on standard output, past a progress bar instead of into it."""
    if sys.stdout is None and file is None:  # closed
        return
    tqdm = sys.modules.get("tqdm")  # where it was not imported there is no bar
    if tqdm:
        tqdm.tqdm.write(text, file or sys.stdout)
    else:
        print(text, file=file)
    (file or sys.stdout).flush()


def _raise(error: OSError) -> NoReturn:
    raise error


def hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def below(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(a folder, the names of its files) for `folder` and all folders below it, without hidden ones.

    Links to folders are followed, after what is really there; each folder comes once, so that a circle ends. Raises
    OSError for a folder that cannot be read.
    """
    seen, waiting = set(), deque([str(folder)])
    while waiting:
        for inside, folders, names in os.walk(waiting.popleft(), onerror=_raise):
            real = os.path.realpath(inside)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not hidden(name))
            paths = [os.path.join(inside, name) for name in folders]
            waiting += filter(os.path.islink, paths)
            yield inside, sorted(name for name in names if not hidden(name))


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


def new_npz(text: str, folder: Path | None = None) -> Path:
    """The .npz file that a flag names, in `folder` unless it says where. Raises ValueError if it cannot be made."""
    path = Path(text)
    if folder and len(path.parts) == 1:
        path = folder / path
    if path.suffix != ".npz" or path.exists() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path}: a new file.npz in a folder that can be written to is needed")
    return path


def intact(path: Path) -> None:
    """Hold a .pth against the checksums inside: torch.load does not, and takes a flipped bit for a weight."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise OSError(f"it is damaged, {damaged} in it is not what was written")


def sha256(path: Path) -> str:
    """The file's SHA-256, 64 hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def show(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """write_whole, for what people look at: where another program holds the file, as viewers do on Windows, a line
    says so, once, and the old file stays."""
    try:
        write_whole(path, write)
    except PermissionError as error:
        if path not in _held_elsewhere:
            say(f"WARNING: {path} cannot be written now ({error.strerror}): going on without", sys.stderr)
        _held_elsewhere.add(path)


class InUse(OSError):
    """Another process holds the lock; the message says which."""


def _take(file: BinaryIO) -> None:
    """Lock the file until it is closed. Raises BlockingIOError if another has, OSError where there are no locks."""
    if find_spec("fcntl"):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt  # Windows

    file.seek(1 << 30)  # what is locked there cannot be read: a byte far behind the holder's name
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError:
        raise BlockingIOError from None


def lock(path: Path) -> BinaryIO | None:
    """Hold the lock `path` as long as what is returned is open: the file says who does. A dead process holds nothing.

    Raises InUse. Returns None where this process holds it already and where the file system has no locks.
    """
    file = open(path, "a+b")
    me = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        _take(file)
    except OSError as error:
        file.seek(0)
        holder = file.read(200).decode(errors="replace")
        file.close()
        if isinstance(error, BlockingIOError) and holder != me:
            raise InUse(f"in use by {holder}") from None
        return None
    file.truncate(0)
    file.write(me.encode())
    file.flush()
    return file


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """For making what will stand at `path`: who comes second waits here, and then finds what the first has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name, told = path.with_name(f"{path.name}.lock"), False
    while True:
        try:
            held = lock(name)
            if held is None or _is_at(held, name):  # else the one before has removed it meanwhile
                break
            held.close()
        except InUse as error:
            if not told:
                say(f"waiting: {path} is {error}", sys.stderr)
            told = True
            time.sleep(0.1)
    try:
        yield
    finally:
        if held:
            with contextlib.suppress(OSError):  # Windows keeps what is open
                name.unlink()
            held.close()


def make_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """The folder with what `fill` puts into it, whole or not at all; if another process is at it, by that process."""
    part = folder.with_name(f"{folder.name}.part")
    with one_at_a_time(folder):
        if folder.exists():
            return
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        try:
            part.mkdir()
            fill(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def move_aside(path: Path) -> Path:
    """Rename it, by the clock, to a name that nothing has: the new path."""
    aside = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
    while aside.exists():
        aside = aside.with_name(f"{aside.name}-")
    return path.rename(aside)


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
    part = path.with_name(f"{path.name}.part")
    reasons = []
    with one_at_a_time(path):
        if path.exists():
            return
        for url in urls:
            say(f"fetching {url}", sys.stderr)
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


def read_json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; nothing where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: dict[str, Any], write: Callable = write_whole) -> None:
    write(path, lambda file: file.write(json.dumps(content, indent=1).encode()))
