"""Image sets as one uint8 tensor: mnist, cifar10, lfw, digits, or anybody's folder, archive or URL of images.

A folder is decoded once, in parallel, into a memory-mapped cache under --data-dir: the second start is instant, and a
set larger than memory still trains. Scaling to floats and augmenting happen per batch, in the scripts.
"""

import hashlib
import itertools
import json
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image, ImageOps

from common import fail, permutation
from plumbing import ranks
from plumbing.files import download, progress


class ImageData(NamedTuple):
    """A data set in memory, or memory-mapped. `test` is the test split, or a seeded tenth where there is none."""

    name: str
    source: str  # what --data has to say to get it again
    train: torch.Tensor  # uint8 (N, C, H, W)
    train_labels: torch.Tensor  # int64 (N,), zeros where nothing is labelled
    test: torch.Tensor
    test_labels: torch.Tensor
    note: str = ""  # says so when it is a substitute

    def __str__(self) -> str:
        return f"{self.name} ({len(self.train)} + {len(self.test)} images of {tuple(self.train.shape[1:])})"


class DataError(Exception):
    """A data set cannot be had; the message says why and what to do."""


@ranks.one_per_machine()
def load_images(source: str | None, usual: str, data_dir: str, size: int | None = None) -> ImageData:
    """The images of `source`; without a source the usual set, or else, loudly, the embedded digits.

    Args:
        source: mnist, cifar10, lfw, digits, a folder of images, an archive of one, or its URL.
        size: side in pixels; None takes 32 for grey images and for those smaller than 64 pixels, 64 for others.
    """
    try:
        return _read(source or usual, Path(data_dir), size)
    except (DataError, OSError) as error:
        if source:
            fail(error)
        print(f"WARNING: {' '.join(str(error).split())}")
        print("WARNING: going on with scikit-learn's 1,797 handwritten digits instead.", flush=True)
    try:
        return _read("digits", Path(data_dir), size)._replace(note=f", a substitute: {usual} was not to be had")
    except DataError as error:
        fail(error)


def load_again(source: str | None, data_dir: str, numbers: dict) -> ImageData:
    """The set that weights were made from: of another one, held-out images could be images that they have seen."""
    data = load_images(source or numbers["data"], "", data_dir, numbers["image_size"])
    if not numbers["trained_on"].startswith(str(data)):
        fail(f"these weights were made from {numbers['trained_on']}, not from {data}; name it with --data")
    return data


def _read(source: str, root: Path, size: int | None) -> ImageData:
    if source in ("mnist", "cifar10"):
        splits = _torchvision({"mnist": "MNIST", "cifar10": "CIFAR10"}[source], root)
        images = [torch.as_tensor(s.data) for s in splits]
        if images[0].ndim == 3:
            images = [x[:, None] for x in images]  # (N, 1, H, W)
        else:
            images = [x.permute(0, 3, 1, 2) for x in images]  # (N, C, H, W)
        labels = [torch.as_tensor(s.targets) for s in splits]
    elif source == "digits":
        x, y = _sklearn().load_digits(return_X_y=True)
        order = permutation(len(x), 0, 0)
        x = torch.from_numpy(x * (255 / 16)).round().byte().view(-1, 1, 8, 8)[order]
        images, labels = _split(x), _split(torch.from_numpy(y)[order])
    else:
        folder = image_folder(source, root)
        images, labels = _read_folder(folder, root, size)
        return ImageData(folder.resolve().name, source, images[0], labels[0], images[1], labels[1])
    images = [resize(x, size or 32) for x in images]
    return ImageData(source, source, images[0], labels[0].long(), images[1], labels[1].long())


def _torchvision(name: str, root: Path) -> list:
    """[train, test] of a torchvision data set, from `root`, else by download, whose MD5 torchvision checks."""
    for fetch in (False, True):
        try:
            return [getattr(torchvision.datasets, name)(root, train, download=fetch) for train in (True, False)]
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


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, size, size): a black margin of up to 4 pixels, or else bilinear, antialiased."""
    margin = size - images.shape[-1]
    if 0 <= margin <= 4 and images.shape[-2] == images.shape[-1]:  # MNIST to 32: the digits keep their pixels
        return F.pad(images, (margin // 2, margin - margin // 2) * 2).contiguous()
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).contiguous()


def image_folder(source: str, root: Path) -> Path:
    """The folder that `source` means: itself, lfw's, or an archive's, downloaded if it is a URL, unpacked in `root`."""
    if source == "lfw":
        return _lfw(root)
    path = Path(source)
    if source.startswith(("http://", "https://")):
        key = hashlib.sha256(source.encode()).hexdigest()[:8]
        path = root / "downloads" / f"{key}-{Path(source.split('?')[0]).name}"
        try:
            if not path.exists():
                download([source], path, check_archive)
        except OSError as error:
            raise DataError(f"it could not be downloaded ({error})") from None
    if path.is_dir():
        return path
    if not path.exists():
        raise DataError(f"--data {source}: no such file or folder, and no name among mnist, cifar10, lfw, digits")
    return _innermost(_extracted(path, root))


def _extracted(path: Path, root: Path) -> Path:
    """The folder in `root` that holds what is in the archive; unpacked whole or not at all. Raises DataError."""
    try:
        check_archive(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    stat = path.stat()
    folder = root / "extracted" / f"{path.name.split('.')[0]}-{stat.st_size}-{stat.st_mtime_ns}"
    if folder.exists():
        return folder
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(path)  # drops ".." and absolute paths itself
            check_size(path, sum(member.file_size for member in archive.infolist()))
            archive.extractall(part)
        else:
            archive = tarfile.open(path)
            for total in itertools.accumulate(member.size for member in archive):
                check_size(path, total)
            archive.extractall(part, filter="data")  # refuses members that would leave the folder, and devices
    except Exception as error:  # each compression has its own
        shutil.rmtree(part, ignore_errors=True)
        raise DataError(f"{path} cannot be extracted: {error}") from None
    return part.rename(folder)


def _innermost(folder: Path) -> Path:
    """Past folders that hold one folder and nothing else, as archives have them."""
    inside = [path for path in folder.iterdir() if not _hidden(path.name)]
    if len(inside) == 1 and inside[0].is_dir():
        return _innermost(inside[0])
    return folder


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


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _read_folder(folder: Path, root: Path, size: int | None) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """([train, test] images, [train, test] labels) of a folder: by train/ and test/, else with a seeded tenth held out.

    The first sub-folder on a file's path is its class. Images are memory-mapped and in seeded random order.
    """
    splits = [folder / "train", folder / "test"]
    if not all(split.is_dir() for split in splits):
        splits = [folder]
    listed = [image_files(split) for split in splits]
    everything = [split / file for split, files in zip(splits, listed, strict=True) for file in files]
    mode, side = _colour_and_side(everything[:: len(everything) // 256 + 1])
    if size is None:
        size = 32 if mode == "L" or side < 64 else 64
    classes = {name: i for i, name in enumerate(sorted({_class(file) for files in listed for file in files}))}
    images, labels = [], []
    for split, files in zip(splits, listed, strict=True):
        pixels, good = _decoded(split, files, root, mode, size)
        images.append(pixels)
        labels.append(torch.tensor([classes[_class(file)] for file in good]))
    if len(splits) == 1:
        images, labels = _split(images[0]), _split(labels[0])
    if not len(images[0]):
        raise DataError(f"{folder} holds one image; two are needed, one of them to be held out")
    return images, labels


def _class(file: str) -> str:
    return file.split(os.sep)[0] if os.sep in file else ""


def image_files(folder: Path) -> list[str]:
    """Paths below `folder` of what is called an image, in seeded random order."""
    names = []
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _hidden(name)]
        paths = [os.path.join(inside, name) for name in files if not _hidden(name)]
        names += [os.path.relpath(path, folder) for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    found = sorted(name for name in names if name.lower().endswith(torchvision.datasets.folder.IMG_EXTENSIONS))
    if not found:
        raise DataError(f"{folder} holds no image file ({len(names)} other files)")
    return [found[i] for i in permutation(len(found), 0, 0)]


def _decoded(folder: Path, files: list[str], root: Path, mode: str, size: int) -> tuple[torch.Tensor, list[str]]:
    """uint8 (N, C, size, size) of the files that can be read, cached by names, sizes and times; and those files."""
    stats = [os.lstat(folder / f) for f in files]
    key = repr((mode, size, [(f, s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]))
    cache = root / "cache" / f"{folder.resolve().name}-{size}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent, ignore_cleanup_errors=True) as part:
            _decode_all(folder, files, mode, size, Path(part))
            os.rename(part, cache)
    broken = json.loads((cache / "broken.json").read_text())
    name_broken(broken, len(files), folder)
    lost = set(broken)
    good = [file for file in files if file not in lost]
    return torch.from_numpy(np.load(cache / "images.npy", mmap_mode="c"))[: len(good)], good


def name_broken(broken: list[str], n: int, folder: Path) -> None:
    if broken:
        named = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        print(f"{len(broken)} of {n} image files in {folder} cannot be read and are left out: {named}", file=sys.stderr)


def _colour_and_side(files: list[Path]) -> tuple[str, int]:
    """("L" or "RGB", the usual smaller side in pixels) of some files; one in colour makes the whole set colour."""
    modes, sides = set(), []
    for file in files:
        try:
            with Image.open(file) as image:
                modes.add(image.mode)
                sides.append(min(image.size))
        except Exception:  # counted and named when all are decoded
            continue
    mode = "L" if modes and modes <= {"1", "L", "LA", "I", "I;16", "F"} else "RGB"
    return mode, statistics.median_low(sides or [0])


def _decode_all(folder: Path, files: list[str], mode: str, size: int, out: Path) -> None:
    shape = (len(files), len(mode), size, size)
    array = np.lib.format.open_memmap(out / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    n, broken = 0, []
    with ThreadPool() as pool:  # Pillow decodes outside the GIL
        images = pool.imap(lambda f: decode(folder / f, mode, size), files, chunksize=16)
        for file, image in zip(files, progress(images, f"decoding {folder}", len(files)), strict=True):
            if image is None:
                broken.append(file)
            else:
                array[n] = image.transpose(2, 0, 1)
                n += 1
    if not n:
        raise DataError(f"none of the {len(files)} image files in {folder} can be read")
    array.flush()
    (out / "broken.json").write_text(json.dumps(broken))


def decode(path: Path, mode: str, size: int) -> np.ndarray | None:
    """One file as uint8 (size, size, C): turned upright, centre-cropped to a square, resized. None if it is broken."""
    try:
        with Image.open(path) as image:
            image.draft(mode, (size, size))  # a large JPEG is decoded at a fraction of its size
            image = convert(ImageOps.exif_transpose(image), mode)
            return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)).reshape(size, size, -1)
    except Exception:  # damaged files raise anything, and none of them may end the run
        return None


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Pillow's, but for 16 bits, which it clips at 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert(mode)


def labelled(source: str, data_dir: str, size: int) -> Iterator[tuple[torch.Tensor, list, list[str]]]:
    """(uint8 images (n, C, size, size), their labels, their names) of every image of `source`, batch after batch.

    Of a data set labels are numbers, names such as test/17; of a folder its sub-folders and files. Raises DataError.
    """
    if source in ("mnist", "cifar10", "digits"):
        data = load_images(source, "", data_dir, size)
        for split, x, y in (("train", data.train, data.train_labels), ("test", data.test, data.test_labels)):
            yield x, y.tolist(), [f"{split}/{i}" for i in range(len(x))]
        return
    folder = image_folder(source, Path(data_dir))
    files, broken = sorted(image_files(folder)), []
    depth = 1 if all((folder / split).is_dir() for split in ("train", "test")) else 0  # of the classes' folders
    with ThreadPool() as pool:
        for some in (files[i : i + 250] for i in range(0, len(files), 250)):
            decoded = dict(zip(some, pool.map(lambda file: decode(folder / file, "RGB", size), some), strict=True))
            good = [file for file in some if decoded[file] is not None]
            broken += [file for file in some if decoded[file] is None]
            labels = [_class(os.sep.join(Path(file).parts[depth:])) for file in good]
            if good:
                x = torch.from_numpy(np.stack([decoded[file] for file in good])).permute(0, 3, 1, 2)
                yield x, labels, good
    name_broken(broken, len(files), folder)
    if len(broken) == len(files):
        raise DataError(f"none of the {len(files)} image files in {folder} can be read")


def folder_images(folder: Path, mode: str, batch_size: int) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """uint8 images, batch after batch, decoded in threads while the one before is used; broken ones are named.

    As pytorch-fid reads them: whole, and not turned by EXIF.
    """
    names, broken = image_files(folder), []
    chunks = [names[i : i + batch_size] for i in range(0, len(names), batch_size)]
    with ThreadPool() as pool:
        begin = partial(pool.map_async, lambda name: read_pixels(folder / name, mode))
        following = begin(chunks[0])
        for chunk, next_chunk in zip(chunks, [*chunks[1:], []], strict=True):
            pixels = following.get()
            following = begin(next_chunk)
            good = [x for x in pixels if x is not None]
            broken += [name for name, x in zip(chunk, pixels, strict=True) if x is None]
            if good:
                one_size = len({x.shape for x in good}) == 1
                yield torch.stack(good) if one_size else good
    name_broken(broken, len(names), folder)


def read_pixels(path: Path, mode: str) -> torch.Tensor | None:
    """(C, H, W), or None if the file is broken."""
    try:
        with Image.open(path) as image:
            pixels = np.array(convert(image, mode))
            return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    except Exception:  # damaged files raise anything
        return None


def small_side(path: Path) -> int | None:
    """Side of an image, when it is one of the small squares that generators make."""
    try:
        with Image.open(path) as image:
            return image.width if image.width == image.height <= 64 else None
    except Exception:  # broken: named when all are read
        return None
