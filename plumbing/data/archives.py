"""Zip and tar archives, extracted whole or not at all, and nowhere else."""

import hashlib
import shutil
import tarfile
import zipfile
from functools import partial
from pathlib import Path

from plumbing.system import files


def check_archive(path: Path) -> None:
    """Raise ValueError for a file that is neither a zip nor a tar archive."""
    if not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        raise ValueError("it is neither a folder of images nor a zip or tar archive of one")


def _check_size(path: Path, size: int) -> None:
    """Raise ValueError if `size` bytes fill the disk, or exceed both 1 GB and 100 times the archive."""
    packed, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    if size > max(1 << 30, 100 * packed):
        raise ValueError(f"its {packed:,} bytes would become {size:,}: 100 times as many is the limit")
    if size > free:
        raise ValueError(f"it needs {size:,} bytes, {free:,} are free")


def _safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Refuse devices and what would leave the folder. The umask gives the file's mode, not the archive."""
    return tarfile.data_filter(member, folder).replace(mode=None)


def _extract(path: Path, folder: Path) -> None:
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)  # drops ".." and absolute paths itself
        _check_size(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            # Some Windows programs write backslashes, which shutil.unpack_archive leaves in the name.
            member.filename = member.filename.replace("\\", "/")
            archive.extract(member, folder)
        return
    archive, size = tarfile.open(path), 0
    for member in archive:
        size += member.size
        _check_size(path, size)
    archive.extractall(folder, filter=_safe)


def extracted(path: Path, root: Path) -> Path:
    """Return the folder in `root` with the archive's content. Extract the archive the first time. Raises ValueError."""
    stat = path.stat()
    identity = repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns))
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = root / key / path.name.split(".")[0]
    if folder.exists():
        return folder
    try:
        check_archive(path)
        files.make_folder(folder, partial(_extract, path))
    except Exception as error:  # each compression has its own
        raise ValueError(f"{path} cannot be extracted: {error}") from None
    return folder
