"""Image sets as one uint8 tensor: mnist, cifar10, lfw, digits, or anybody's folder, archive, URL or arrays of images.

A folder is decoded once, in parallel, into a memory-mapped cache under --data-dir: the second start is instant, and a
set larger than memory still trains. Scaling to floats and augmenting happen per batch, in the scripts.
"""

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

from plumbing.data import archives, pixels
from plumbing.data.batches import permutation
from plumbing.data.folders import HELD_OUT, TRAIN, DataError, Split, crop_line, read_folder, usual_size, writable
from plumbing.system import files, ranks
from plumbing.system.files import say
from plumbing.system.process import fail

NAMES = ("mnist", "cifar10", "lfw", "lfw-all", "digits")
ARRAYS = (".npz", ".npy")
LABELS = ("y", "label", "labels", "target", "targets", "class", "classes")  # words in names of arrays
TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10"}
BY_HAND = {  # where torchvision looks for what was fetched elsewhere
    "MNIST": "MNIST/raw/ with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz",
    "CIFAR10": "cifar-10-python.tar.gz",
}


class ImageData(NamedTuple):
    """A data set in memory, or memory-mapped. `test` is the test split, or a seeded tenth where there is none."""

    name: str
    source: str  # what --data has to say to get it again
    train: torch.Tensor  # uint8 (N, C, H, W)
    train_labels: torch.Tensor  # int64 (N,), zeros where nothing is labelled
    test: torch.Tensor
    test_labels: torch.Tensor
    note: str = ""  # says so when it is a substitute
    classes: tuple[str, ...] = ()  # their names, where they have any

    def __str__(self) -> str:
        return f"{self.name} ({len(self.train)} + {len(self.test)} images of {tuple(self.train.shape[1:])})"


@ranks.one_per_machine()
def load_images(source: str | None, usual: str, data_dir: str, size: int | None = None) -> ImageData:
    """The images of `source`; without a source the usual set, or else, loudly, the embedded digits.

    Args:
        source: mnist, cifar10, lfw (530 photographs of George W. Bush, as in the Technion course), lfw-all (everybody,
            without classes), digits, a folder of images, an archive of one, its URL, or arrays (.npz, .npy).
        size: side in pixels; None takes 32 for grey images and for those smaller than 64 pixels, 64 for others.
    """
    try:
        return _load(source or usual, Path(data_dir), size)
    except (DataError, OSError) as error:
        if source:
            fail(error)
        if not find_spec("sklearn"):
            fail(f"{error}; nor is scikit-learn installed, with digits to go on with")
        print(f"WARNING: {' '.join(str(error).split())}")
        print("WARNING: going on with scikit-learn's 1,797 handwritten digits instead.", flush=True)
    return _load("digits", Path(data_dir), size)._replace(note=f", a substitute: {usual} was not to be had")


def _load(source: str, root: Path, size: int | None) -> ImageData:
    name, splits, classes, note = _read(source, root, size)
    train, *others = splits
    if others:
        test = others[0]
    else:  # slices of what is in random order already, so that maps stay maps
        n = max(1, len(train.images) // 10)
        if n == len(train.images):
            raise DataError(f"{source} holds one image; two are needed, one of them to be held out")
        test = train._replace(images=train.images[-n:], labels=train.labels[-n:])
        train = train._replace(images=train.images[:-n], labels=train.labels[:-n])
    names = tuple(map(str, classes))
    return ImageData(name, source, train.images, train.labels, test.images, test.labels, note, names)


def is_other(data: ImageData, numbers: dict) -> bool:
    """Whether the weights that have these numbers were made from another set."""
    return not numbers["trained_on"].startswith(str(data))


def load_again(source: str | None, data_dir: str, numbers: dict, others: bool = False) -> ImageData:
    """The set that weights were made from: of another one, held-out images could be images that they have seen.

    others: take another one nevertheless.
    """
    data = load_images(source or numbers["data"], "", data_dir, numbers["image_size"])
    if is_other(data, numbers) and not others:
        fail(f"these weights were made from {numbers['trained_on']}, not from {data}; name it with --data")
    return data


def one_of_each(data: ImageData) -> torch.Tensor:
    """A held-out image of up to nine classes; or just nine images."""
    first = [int((data.test_labels == label).nonzero()[0]) for label in data.test_labels.unique()[:9]]
    return data.test[first] if len(first) > 1 else data.test[:9]


def from_files(paths: list[str], channels: int, size: int) -> torch.Tensor:
    """uint8 (N, channels, size, size) of image files. Ends the program with one line for a file that is none."""
    decoded = [pixels.decode(Path(path), "L" if channels == 1 else "RGB", size, pixels.White()) for path in paths]
    if None in decoded:
        bad = paths[decoded.index(None)]
        fail(f"{bad} cannot be read as an image" if Path(bad).exists() else f"there is no file {bad}")
    return torch.from_numpy(np.stack([one.pixels for one in decoded])).permute(0, 3, 1, 2)


def labelled(source: str, data_dir: str, size: int) -> Iterator[tuple[torch.Tensor, list, list[str]]]:
    """(uint8 images (n, C, size, size), their labels, their names) of `source`, split after split, by name.

    Labels are numbers or, of a folder, its classes; images are named by their files or as test/00017. Raises DataError.
    """
    _, splits, classes, _ = _read(source, Path(data_dir), size)
    for split in splits:
        order = sorted(range(len(split.names)), key=split.names.__getitem__)
        for some in torch.tensor(order).split(5000):
            labels = split.labels[some].tolist()
            if classes:
                labels = [classes[label] for label in labels]
            yield split.images[some], labels, [split.names[i] for i in some.tolist()]


def _read(source: str, root: Path, size: int | None) -> tuple[str, list[Split], list[str], str]:
    """(the set's name, one or two splits, names of its classes if they have any, a note)."""
    if source in TORCHVISION:
        splits, classes = [], []
        for split, found in _torchvision(TORCHVISION[source], root).items():
            x = torch.as_tensor(found.data)
            x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)  # (N, C, H, W)
            names = [f"{split}/{i:05d}" for i in range(len(x))]
            splits.append(Split(split, resize(x, size or 32), torch.as_tensor(found.targets).long(), names))
            classes = found.classes if source == "cifar10" else []  # a digit's name is its label
        return source, splits, classes, ""
    if source == "digits":
        x, y = _sklearn().load_digits(return_X_y=True)
        order = permutation(len(x), 0, 0)
        x = torch.from_numpy(x * (255 / 16)).round().byte().view(-1, 1, 8, 8)[order]
        names = [f"digits/{i:05d}" for i in order.tolist()]
        return source, [Split("", resize(x, size or 32), torch.from_numpy(y)[order].long(), names)], [], ""
    if source in ("lfw", "lfw-all"):
        folder = _lfw(root) / ("George_W_Bush" if source == "lfw" else "")
        _, splits, _, note = read_folder(folder, root, size, classes=False)
        return source, splits, [], note
    if source.lower().endswith(ARRAYS) and Path(source).is_file():
        return _read_arrays(Path(source), size)
    return read_folder(image_folder(source, root), root, size)


def _torchvision(name: str, root: Path) -> dict[str, torch.utils.data.Dataset]:
    """{"train": , "test": } of a torchvision data set, from `root`, else by download, whose MD5 torchvision checks."""
    errors = []
    for fetch in (False, True):
        try:
            with files.one_at_a_time(root / name) if fetch else contextlib.nullcontext():
                kind = getattr(torchvision.datasets, name)
                return {"train": kind(root, True, download=fetch), "test": kind(root, False, download=fetch)}
        except (OSError, RuntimeError, ValueError, AssertionError) as e:
            errors.append(e)
    there = f"{name} is not in {root}/"
    if "not found" not in str(errors[0]):
        there = f"{name} in {root}/ is damaged ({errors[0]}): delete it there"
    reason = re.search(r"<urlopen error (.*?)>", str(errors[1]))  # in the middle of a list of addresses
    raise DataError(
        f"{there}; its download failed ({reason[1] if reason else errors[1]}); get it where there is a network and put "
        f"it into {root}/: {BY_HAND[name]}"
    )


def _sklearn():
    if not find_spec("sklearn"):
        raise DataError("this data set comes through scikit-learn: pip install scikit-learn")
    from sklearn import datasets

    return datasets


def _lfw(root: Path) -> Path:
    folder = root / "lfw_home" / "lfw_funneled"
    try:
        with files.one_at_a_time(root / "lfw_home"):
            _sklearn().fetch_lfw_people(data_home=str(root), min_faces_per_person=500)  # all; decodes one person
    except OSError as error:
        raise DataError(f"LFW is not in {folder.parent} and its download failed ({error})") from None
    return folder


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, size, size): a black margin of up to 4 pixels, or else bilinear, antialiased."""
    margin = size - images.shape[-1]
    if 0 <= margin <= 4 and images.shape[-2] == images.shape[-1]:  # MNIST to 32: the digits keep their pixels
        return F.pad(images, (margin // 2, margin - margin // 2) * 2).contiguous()
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).contiguous()


def image_folder(source: str, root: Path) -> Path:
    """The folder that `source` means: itself, or an archive's, which may be a URL, extracted in `root`."""
    path = Path(source)
    if source.startswith(("http://", "https://")):
        key = hashlib.sha256(source.encode()).hexdigest()[:8]
        path = root / "downloads" / f"{key}-{Path(source.split('?')[0]).name}"
        try:
            if not path.exists():
                files.download([source], path, archives.check_archive)
        except OSError as error:
            raise DataError(f"it could not be downloaded ({error})") from None
    if path.is_dir():
        return path
    if not path.exists():
        raise DataError(f"--data {source}: no such file or folder, and no name among {', '.join(NAMES)}")
    try:
        return _innermost(archives.extracted(path, root / "extracted"))
    except ValueError as error:
        raise DataError(error) from None


def _innermost(folder: Path) -> Path:
    """Past folders that hold one folder and nothing else, as archives have them."""
    inside = [path for path in folder.iterdir() if not files.hidden(path.name)]
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name.lower() not in TRAIN:
        return _innermost(inside[0])
    return folder


def read_arrays(path: Path) -> dict[str, tuple[torch.Tensor, np.ndarray | None]]:
    """{"train", "test" ... or "": (uint8 images (N, C, H, W), labels (N,))} of an .npz or .npy file. Raises DataError.

    Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), with C of 1 (grey), 3, or one more for transparency. What
    belongs together, and what is a label, is told by words in the names, as in x_train and y_train.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {path.stem: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # a damaged or foreign file can raise anything
        raise DataError(f"{path} cannot be read: {error}") from None
    found = {}
    for name, array in arrays.items():
        split = _word(name, TRAIN + HELD_OUT) if len(arrays) > 1 else ""
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
            continue
        if split in found:
            say(f"{path}: {name} {array.shape} is left out", sys.stderr)
            continue
        same_split = [key for key in arrays if _word(key, TRAIN + HELD_OUT) == split]
        labels = [key for key in same_split if _can_label(key, arrays[key], array)]
        found[split] = channels_first(array, path), arrays[labels[0]].ravel() if labels else None
        say(f"{path}: images {name} {array.shape}, labels {labels[0] if labels else 'none'}", sys.stderr)
    if not found:
        held = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in list(arrays.items())[:10])
        wanted = "uint8 images (N, H, W), (N, H, W, C), (N, C, H, W) nor, for fid.py, mu and sigma"
        raise DataError(f"{path} holds neither {wanted}, but {held or 'nothing'}")
    return found


def _word(name: str, known: tuple[str, ...]) -> str:
    """The first of the known words in an array's name, or ""."""
    return next((word for word in re.split("[^a-z0-9]+", name.lower()) if word in known), "")


def _can_label(name: str, array: np.ndarray, x: np.ndarray) -> bool:
    is_label = _word(name, LABELS) or name == "arr_1"  # as samplers of diffusion models call it
    return bool(is_label) and array.dtype.kind in "iubUSf" and array.shape in ((len(x),), (len(x), 1))


def channels_first(array: np.ndarray, path: Path) -> torch.Tensor:
    """uint8 images (N, C, H, W), on white, of an array of images in any order of dimensions. Raises DataError."""
    x = array
    if x.ndim == 3 and x.shape[-1] > 4:
        x = x[..., None]
    if x.ndim == 4 and not 1 <= x.shape[-1] <= 4:
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or not 1 <= x.shape[-1] <= 4 or not x.size:
        raise DataError(f"{path}: an array of the shape {array.shape} is no set of images")
    if x.shape[-1] in (2, 4):
        alpha = x[..., -1:] / np.float32(255)
        x = (x[..., :-1] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def _squares(x: torch.Tensor, size: int | None) -> torch.Tensor:
    """uint8 images (N, C, H, W), centre-cropped and resized: (N, C, size, size)."""
    height, width = x.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    return torch.cat([resize(some, size or usual_size(x.shape[1] == 1, side)) for some in x.split(1000)])


def _read_arrays(path: Path, size: int | None) -> tuple[str, list[Split], list, str]:
    """As _read."""
    found = read_arrays(path)
    held_out = [name for name in HELD_OUT if name in found][:1]
    names = [name for name in (*TRAIN, *found) if name in found and name not in held_out][:1] + held_out
    left_out = sorted(found.keys() - set(names))
    if left_out:
        say(f"{path}: left out: {', '.join(name or 'what has no split in its name' for name in left_out)}", sys.stderr)
    channels = 1
    if any(pixels.is_coloured(found[name][0].movedim(1, -1).numpy()) for name in names):
        channels = 3
    labels_of = {name: found[name][1] for name in names}
    if any(labels is None for labels in labels_of.values()):
        if any(labels is not None for labels in labels_of.values()):
            say(f"WARNING: {path}: only one split has labels, so none are used", sys.stderr)
        labels_of = {name: np.zeros(len(found[name][0]), int) for name in names}
    classes = np.unique(np.concatenate(list(labels_of.values())))
    splits = []
    for name in names:
        x = found[name][0]
        order = permutation(len(x), 0, 0)
        for line in crop_line(path, min(x.shape[2:]) ** 2, x.shape[2] * x.shape[3]):
            say(line, sys.stderr)
        x = pixels.with_channels(x if channels == 3 else x[:, :1], channels)
        labels = torch.from_numpy(np.searchsorted(classes, labels_of[name])).long()[order]
        called = [f"{name or path.stem}/{i:05d}" for i in order.tolist()]
        splits.append(Split(name, _squares(x, size)[order], labels, called))
    return writable(path.stem), splits, classes.tolist(), ""
