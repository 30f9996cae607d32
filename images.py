"""Image sets as one uint8 tensor: mnist, cifar10, lfw, digits, or anybody's folder, archive or URL of images.

A folder is decoded once, in parallel, into a memory-mapped cache under --data-dir: the second start is instant, and a
set larger than memory still trains. Scaling to floats and augmenting happen per batch, in the scripts.
"""

import hashlib
import json
import os
import shutil
import tarfile
import zipfile
from importlib.util import find_spec
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps

from common import fail, permutation, progress


class ImageData(NamedTuple):
    """A data set in memory, or memory-mapped. `test` is the test split, or a seeded tenth where there is none."""

    name: str
    source: str  # what --data has to say to get it again
    train: torch.Tensor  # uint8 (N, C, H, W)
    train_labels: torch.Tensor  # int64 (N,), zeros where nothing is labelled
    test: torch.Tensor
    test_labels: torch.Tensor
    note: str = ""  # for the last line of output, when it is a substitute

    def __str__(self) -> str:
        return f"{self.name} ({len(self.train)} + {len(self.test)} images of {tuple(self.train.shape[1:])}){self.note}"


class DataError(Exception):
    """A data set cannot be had; the message says why and what to do."""


def load_images(source: str | None, usual: str, data_dir: str, size: int | None = None) -> ImageData:
    """The images of `source`; without a source the usual set, or else, loudly, the embedded digits.

    Args:
        source: mnist, cifar10, lfw, digits, a folder of images, an archive of one, or its URL.
        size: side in pixels; None takes 32 for images smaller than 64 pixels and 64 for others.
    """
    try:
        return _read(source or usual, Path(data_dir), size)
    except (DataError, OSError) as error:
        if source:
            fail(error)
        print(f"WARNING: {error}.\nWARNING: going on with scikit-learn's 1,797 handwritten digits instead.", flush=True)
    try:
        return _read("digits", Path(data_dir), size)._replace(note=f", a substitute: {usual} was not to be had")
    except DataError as error:
        fail(error)


def _read(source: str, root: Path, size: int | None) -> ImageData:
    if source in ("mnist", "cifar10"):
        splits = _torchvision({"mnist": "MNIST", "cifar10": "CIFAR10"}[source], root)
        images = [torch.as_tensor(s.data) for s in splits]
        images = [x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2) for x in images]  # (N, C, H, W)
        labels = [torch.as_tensor(s.targets) for s in splits]
    elif source == "digits":
        x, y = _sklearn().load_digits(return_X_y=True)
        order = permutation(len(x), 0, 0)
        x = torch.from_numpy(x * (255 / 16)).round().byte().view(-1, 1, 8, 8)[order]
        images, labels = _split(x), _split(torch.from_numpy(y)[order])
    else:
        folder = _lfw(root) if source == "lfw" else _unpacked(source, root)
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            images, labels = zip(*(_decoded(folder / split, root, size) for split in ("train", "test")), strict=True)
        else:
            images, labels = map(_split, _decoded(folder, root, size))
        if not len(images[0]) or images[0].shape[1:] != images[1].shape[1:]:
            raise DataError(f"{folder} holds too few images, or its train/ and test/ differ in colour")
        return ImageData(folder.name, source, images[0], labels[0], images[1], labels[1])
    images = [_resize(x, size or 32) for x in images]
    return ImageData(source, source, images[0], labels[0].long(), images[1], labels[1].long())


def _torchvision(name: str, root: Path) -> list:
    """[train, test] of a torchvision data set, from `root`, else by download, whose MD5 torchvision checks."""
    for download in (False, True):
        try:
            return [getattr(torchvision.datasets, name)(root, train, download=download) for train in (True, False)]
        except (OSError, RuntimeError, ValueError, AssertionError) as e:
            error = e
    raise DataError(
        f"{name} is not in {root}/ and its download failed ({error}); copy its files there or use a network"
    )


def _sklearn():
    if not find_spec("sklearn"):
        raise DataError("this data set comes through scikit-learn: pip install scikit-learn")
    from sklearn import datasets

    return datasets


def _lfw(root: Path) -> Path:
    try:
        _sklearn().fetch_lfw_people(data_home=str(root), min_faces_per_person=500)  # fetches all, decodes one person
    except OSError as error:
        raise DataError(f"LFW is not in {root}/lfw_home and its download failed ({error})") from None
    return root / "lfw_home" / "lfw_funneled"


def _split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(train, test): the last tenth is held out. Slices of what is in random order already, so that maps stay maps."""
    n = max(1, len(x) // 10)
    return x[:-n], x[-n:]


def _resize(images: torch.Tensor, size: int) -> torch.Tensor:
    margin = size - images.shape[-1]
    if 0 <= margin <= 4:  # MNIST to 32: a black margin, so that the digits keep their pixels
        return F.pad(images, (margin // 2, margin - margin // 2) * 2).contiguous()
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).contiguous()


def _unpacked(source: str, root: Path) -> Path:
    """The folder that `source` means: itself, or an archive, downloaded if it is a URL, extracted under `root`."""
    path = Path(source)
    if source.startswith(("http://", "https://")):
        path = root / "downloads" / (Path(source.split("?")[0]).name or "archive")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not path.exists():
                torch.hub.download_url_to_file(source, str(path))  # under a temporary name until it is whole
        except OSError as error:
            raise DataError(f"{source} could not be downloaded ({error})") from None
    if path.is_dir():
        return path
    if not path.exists():
        raise DataError(f"--data {source}: no such file or folder, and no name among mnist, cifar10, lfw, digits")
    if not (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        raise DataError(f"{path} is neither a folder of images nor a zip or tar archive of one")
    stat = path.stat()
    folder = root / "extracted" / f"{path.name.split('.')[0]}-{stat.st_size}-{stat.st_mtime_ns}"
    if not folder.exists():
        part = folder.with_name(folder.name + ".part")
        try:
            if zipfile.is_zipfile(path):
                zipfile.ZipFile(path).extractall(part)  # drops ".." and absolute paths itself
            else:
                tarfile.open(path).extractall(part, filter="data")  # refuses members that would leave the folder
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise DataError(f"{path} cannot be extracted: {error}") from None
        part.rename(folder)
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def _decoded(folder: Path, root: Path, size: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a folder, uint8 (N, C, size, size), memory-mapped, in seeded random order, and their labels (N,).

    The first sub-folder on a file's path is its class. The cache is keyed by the files' names, sizes and times.
    """
    names = sorted(os.path.relpath(os.path.join(d, f), folder) for d, _, files in os.walk(folder) for f in files)
    files = [f for f in names if f.lower().endswith(torchvision.datasets.folder.IMG_EXTENSIONS)]
    if not files:
        raise DataError(f"{folder} holds no image file ({len(names)} other files)")
    mode, side = _colour_and_side([folder / f for f in files[:: len(files) // 16 + 1]])
    size = size or (32 if mode == "L" or side < 64 else 64)
    files = [files[i] for i in permutation(len(files), 0, 0)]
    stats = [os.stat(folder / f) for f in files]
    key = repr((mode, size, [(f, s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]))
    cache = root / "cache" / f"{folder.resolve().name}-{size}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not cache.exists():
        _decode_all(folder, files, mode, size, cache)
    if broken := json.loads((cache / "broken.json").read_text()):
        named = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        print(f"{len(broken)} of {len(files)} image files in {folder} cannot be read and are left out: {named}")
    labels = torch.from_numpy(np.load(cache / "labels.npy"))
    return torch.from_numpy(np.load(cache / "images.npy", mmap_mode="c"))[: len(labels)], labels


def _colour_and_side(files: list[Path]) -> tuple[str, int]:
    """("L" or "RGB", the smallest side in pixels) of a few files; one colour image makes the whole set colour."""
    modes, sides = set(), [1 << 20]
    for file in files:
        try:
            with Image.open(file) as image:
                modes.add(image.mode)
                sides.append(min(image.size))
        except OSError:
            pass  # counted and named when all are decoded
    return ("L" if modes and modes <= {"1", "L", "LA", "I", "I;16", "F"} else "RGB"), min(sides)


def _decode_all(folder: Path, files: list[str], mode: str, size: int, cache: Path) -> None:
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    shape = (len(files), len(mode), size, size)
    array = np.lib.format.open_memmap(part / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    good, broken = [], []
    with ThreadPool() as pool:  # Pillow decodes outside the GIL
        images = pool.imap(lambda f: _decode(folder / f, mode, size), files, chunksize=16)
        for file, image in zip(files, progress(images, len(files), f"decoding {folder}"), strict=True):
            if image is None:
                broken.append(file)
            else:
                array[len(good)] = image.transpose(2, 0, 1)
                good.append(file)
    if not good:
        shutil.rmtree(part)
        raise DataError(f"none of the {len(files)} image files in {folder} can be read")
    array.flush()
    classes = [file.split(os.sep)[0] if os.sep in file else "" for file in good]
    np.save(part / "labels.npy", np.unique(classes, return_inverse=True)[1])
    (part / "broken.json").write_text(json.dumps(broken))
    part.rename(cache)


def _decode(path: Path, mode: str, size: int) -> np.ndarray | None:
    """One file as uint8 (size, size, C): turned upright, centre-cropped to a square, resized. None if it is broken."""
    try:
        with Image.open(path) as image:
            image.draft(mode, (size, size))  # a large JPEG is decoded at a fraction of its size
            if image.mode.startswith("I;16"):
                image = image.point(lambda v: v * (1 / 257))  # convert() alone would clip 16 bits at 255
            image = ImageOps.exif_transpose(image).convert(mode)
            return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
