"""Zip and tar archives, extracted whole or not at all, and nowhere else."""

import hashlib
import itertools
import shutil
import tarfile
import zipfile
from functools import partial
from pathlib import Path

from plumbing.system import files


def check_archive(path: Path) -> None:
    """Raises ValueError."""
    if not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        raise ValueError("it is neither a folder of images nor a zip or tar archive of one")


def check_size(path: Path, extracted: int) -> None:
    """Raises ValueError for an archive that would become 100 times as large and over a gigabyte, or fill the disk."""
    if extracted > max(1 << 30, 100 * path.stat().st_size):
        raise ValueError(
            f"its {path.stat().st_size:,} bytes would become {extracted:,}: 100 times as many is the limit"
        )
    free = shutil.disk_usage(path.parent).free
    if extracted > free:
        raise ValueError(f"it needs {extracted:,} bytes, {free:,} are free")


def _safe(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Refuses what would leave the folder, and devices; a file's mode is the umask's, not its maker's."""
    return tarfile.data_filter(member, folder).replace(mode=None)


def _extract(path: Path, folder: Path) -> None:
    if zipfile.is_zipfile(path):
        archive = zipfile.ZipFile(path)  # drops ".." and absolute paths itself
        check_size(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            member.filename = member.filename.replace("\\", "/")  # as some programs of Windows write paths
            archive.extract(member, folder)
        return
    archive = tarfile.open(path)
    for total in itertools.accumulate(member.size for member in archive):
        check_size(path, total)
    archive.extractall(folder, filter=_safe)


def extracted(path: Path, root: Path) -> Path:
    """The folder in `root` that holds what is in the archive. Raises ValueError."""
    try:
        check_archive(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    stat = path.stat()
    key = hashlib.sha256(repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns)).encode()).hexdigest()[:16]
    folder = root / key / path.name.split(".")[0]
    if not folder.exists():
        try:
            files.make_folder(folder, partial(_extract, path))
        except Exception as error:  # each compression has its own
            raise ValueError(f"{path} cannot be extracted: {error}") from None
    return folder
