"""Read any set of images as one uint8 tensor.

A source is a name (mnist, cifar10, lfw, lfw-all, digits), a folder, an archive, the URL of an archive, or a file of
arrays. The images of a folder are decoded once, in parallel, into a memory-mapped cache under --data-dir. The second
start is therefore fast, and a set may be larger than memory. Each script scales and augments its own batches.
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
from plumbing.data.folders import HELD_OUT, TRAIN, DataError, Split, crop_line, default_size, read_folder, writable
from plumbing.system import files, ranks
from plumbing.system.files import say
from plumbing.system.process import fail

NAMES = ("mnist", "cifar10", "lfw", "lfw-all", "digits")
ARRAYS = (".npz", ".npy")
# words in the names of arrays
LABELS = ("y", "label", "labels", "target", "targets", "class", "classes")
TORCHVISION = {"mnist": "MNIST", "cifar10": "CIFAR10"}
BY_HAND = {  # the files that torchvision reads, and its folder for them
    "MNIST": "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into {root}/MNIST/raw/",
    "CIFAR10": "cifar-10-python.tar.gz into {root}/",
}
SHAPES = "(N, H, W), (N, H, W, C) or (N, C, H, W)"


class ImageData(NamedTuple):
    """A data set, in memory or memory-mapped.

    `test` is the set's test split. A set without one has a seeded tenth held out instead.
    """

    name: str
    source: str  # the value of --data that loads this set again
    train: torch.Tensor  # uint8 (N, C, H, W)
    train_labels: torch.Tensor  # int64 (N,), zeros in a set without labels
    test: torch.Tensor
    test_labels: torch.Tensor
    note: str = ""  # names a substitute, or how values of more than 8 bits are read
    classes: tuple[str, ...] = ()  # names of the classes, if the set has any

    def __str__(self) -> str:
        shape = tuple(self.train.shape[1:])
        return f"{self.name} ({len(self.train)} + {len(self.test)} images of {shape})"


@ranks.one_per_machine()
def load_images(source: str | None, default: str, data_dir: str, size: int | None = None) -> ImageData:
    """Return the images of `source`, or of the set `default` if source is None.

    If the default set cannot be loaded, print a warning and return scikit-learn's digits. Any other set that cannot be
    loaded ends the program with one line.

    Args:
        source: mnist, cifar10, lfw (530 photographs of George W. Bush, as in the Technion course), lfw-all (everybody,
            without classes), digits, a folder of images, an archive of one, its URL, or arrays (.npz, .npy).
        size: side in pixels. None means 32 for grey images and for images smaller than 64 pixels, and 64 for others.
    """
    try:
        return _load(source or default, Path(data_dir), size)
    except (DataError, OSError) as error:
        if source:
            fail(error)
        if not find_spec("sklearn"):
            problem = str(error).removesuffix(".")
            fail(f"{problem}. To use scikit-learn's digits instead, type: pip install scikit-learn")
        print(f"WARNING: {' '.join(str(error).split())}")
        print("WARNING: scikit-learn's 1,797 handwritten digits are used instead.", flush=True)
    data = _load("digits", Path(data_dir), size)
    return data._replace(note=f", a substitute because {default} could not be loaded")


def _load(source: str, root: Path, size: int | None) -> ImageData:
    name, splits, classes, note = _read(source, root, size)
    train, *others = splits
    if others:
        test = others[0]
    else:  # The images are in random order already. Slices keep memory maps as they are.
        n = max(1, len(train.images) // 10)
        if n == len(train.images):
            raise DataError(f"{source} holds one image, but two are needed, because one is held out. Add an image.")
        test = train._replace(images=train.images[-n:], labels=train.labels[-n:])
        train = train._replace(images=train.images[:-n], labels=train.labels[:-n])
    names = tuple(map(str, classes))
    return ImageData(name, source, train.images, train.labels, test.images, test.labels, note, names)


def is_other(data: ImageData, config: dict) -> bool:
    """Return True if the weights with this config were trained on another set than `data`."""
    return not config["trained_on"].startswith(str(data))


def load_again(source: str | None, data_dir: str, config: dict, others: bool = False) -> ImageData:
    """Return the set on which the weights with this config were trained.

    Another set ends the program with one line, because its held-out images could be images of the training set.

    Args:
        source: the value of --data. None means the source in the config.
        others: accept another set.
    """
    data = load_images(source or config["data"], "", data_dir, config["image_size"])
    if is_other(data, config) and not others:
        fail(
            f"the weights were trained on {config['trained_on']}, not on {data}. "
            "Name the data set of the weights with --data."
        )
    return data


def one_of_each(data: ImageData) -> torch.Tensor:
    """Return one held-out image of each class, for up to nine classes. A set with one class gives nine images."""
    labels = data.test_labels
    first = [int((labels == label).nonzero()[0]) for label in labels.unique()[:9]]
    return data.test[first] if len(first) > 1 else data.test[:9]


def from_files(paths: list[str], channels: int, size: int) -> torch.Tensor:
    """Return image files as uint8 (N, channels, size, size).

    A file that is no image ends the program with one line.
    """
    mode = "L" if channels == 1 else "RGB"
    pictures = [pixels.decode(Path(path), mode, size, pixels.White()) for path in paths]
    if None in pictures:
        path = paths[pictures.index(None)]
        if Path(path).exists():
            fail(f"{path} cannot be read as an image. Use another file, such as a PNG or a JPEG.")
        fail(f"there is no file {path}. Check the path.")
    x = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return x.permute(0, 3, 1, 2)  # (N, C, H, W)


def labelled(source: str, data_dir: str, size: int) -> Iterator[tuple[torch.Tensor, list, list[str]]]:
    """Yield uint8 images (n, C, size, size) of `source`, their labels and their names.

    The splits come one after the other, each sorted by name. A label is a number, or the name of a folder's class. A
    name is the path of a file, or of the form test/00017. Raises DataError.
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
    """Return the set's name, one or two splits, the names of its classes (if it has any) and a note."""
    if source in TORCHVISION:
        return _read_torchvision(source, root, size)
    if source == "digits":
        return _read_digits(size)
    if source in ("lfw", "lfw-all"):
        folder = _lfw(root)
        if source == "lfw":
            folder = folder / "George_W_Bush"
        _, splits, _, note = read_folder(folder, root, size, classes=False)
        return source, splits, [], note
    if source.lower().endswith(ARRAYS) and Path(source).is_file():
        return _read_arrays(Path(source), size)
    return read_folder(image_folder(source, root), root, size)


def _read_torchvision(source: str, root: Path, size: int | None):
    """Return MNIST or CIFAR-10 in the form of `_read`."""
    splits, classes = [], []
    for split, dataset in _torchvision(TORCHVISION[source], root).items():
        x = torch.as_tensor(dataset.data)
        x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)  # (N, C, H, W)
        labels = torch.as_tensor(dataset.targets).long()
        names = [f"{split}/{i:05d}" for i in range(len(x))]
        splits.append(Split(split, resize(x, size or 32), labels, names))
        if source == "cifar10":  # MNIST's label is its name
            classes = dataset.classes
    return source, splits, classes, ""


def _read_digits(size: int | None):
    """Return scikit-learn's digits in the form of `_read`."""
    x, y = _sklearn().load_digits(return_X_y=True)
    order = permutation(len(x), 0, 0)
    x = torch.from_numpy(x * (255 / 16)).round().byte()
    x = x.view(-1, 1, 8, 8)[order]  # (N, 1, 8, 8)
    labels = torch.from_numpy(y)[order].long()
    names = [f"digits/{i:05d}" for i in order.tolist()]
    return "digits", [Split("", resize(x, size or 32), labels, names)], [], ""


def _torchvision(name: str, root: Path) -> dict[str, torch.utils.data.Dataset]:
    """Return both splits of a torchvision data set, as {"train": ..., "test": ...}.

    The files are taken from `root`. If they are not there, torchvision downloads them and checks their MD5.
    """
    dataset = getattr(torchvision.datasets, name)
    errors = []
    for download in (False, True):
        try:
            lock = files.one_at_a_time(root / name) if download else contextlib.nullcontext()
            with lock:
                train = dataset(root, True, download=download)
                test = dataset(root, False, download=download)
                return {"train": train, "test": test}
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            errors.append(error)
    absent, failed = map(str, errors)
    by_hand = BY_HAND[name].format(root=root)
    remedy = f"Without a network, copy {by_hand}."
    if "not found" in absent:
        problem = f"{name} is not in {root}/"
    else:
        problem = f"{name} in {root}/ is damaged ({absent})"
        remedy = f"Delete the damaged files. {remedy}"
    match = re.search(r"<urlopen error (.*?)>", failed)  # stands in a list of addresses
    reason = match[1] if match else failed
    raise DataError(f"{problem}, and its download failed ({reason}). {remedy}")


def _sklearn():
    if not find_spec("sklearn"):
        raise DataError("this data set is loaded by scikit-learn. To install it, type: pip install scikit-learn")
    from sklearn import datasets

    return datasets


def _lfw(root: Path) -> Path:
    home = root / "lfw_home"
    try:
        with files.one_at_a_time(home):
            # This fetches all persons, and decodes the only one with 500 photographs.
            _sklearn().fetch_lfw_people(data_home=str(root), min_faces_per_person=500)
    except OSError as error:
        raise DataError(
            f"LFW is not in {home}, and its download failed ({error}). "
            f"Type the command on a computer with a network, and copy its {home} here."
        ) from None
    return home / "lfw_funneled"


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images (N, C, H, W) to (N, C, size, size).

    Squares that are up to 4 pixels too small get a black margin, so that MNIST's digits keep their pixels at 32 x 32.
    Other images are resized bilinearly, with antialiasing.
    """
    margin = size - images.shape[-1]
    if 0 <= margin <= 4 and images.shape[-2] == images.shape[-1]:
        before = margin // 2
        after = margin - before
        return F.pad(images, (before, after, before, after)).contiguous()
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).contiguous()


def image_folder(source: str, root: Path) -> Path:
    """Return the folder of images that `source` means.

    The source is the folder, an archive, or an archive's URL. Archives are extracted below `root`.
    """
    path = Path(source)
    if source.startswith(("http://", "https://")):
        path = _download(source, root / "downloads")
    if path.is_dir():
        return path
    if not path.exists():
        names = ", ".join(NAMES)
        raise DataError(f"--data {source}: no such file or folder. Use a path, or one of the names {names}.")
    try:
        return _innermost(archives.extracted(path, root / "extracted"))
    except ValueError as error:
        raise DataError(error) from None


def _download(url: str, folder: Path) -> Path:
    """Return the archive of a URL. It is downloaded into `folder` if it is not there. Raises DataError."""
    key = hashlib.sha256(url.encode()).hexdigest()[:8]
    path = folder / f"{key}-{Path(url.split('?')[0]).name}"
    try:
        if not path.exists():
            files.download([url], path, archives.check_archive)
    except OSError as error:
        raise DataError(
            f"the archive could not be downloaded ({error}). Download it by hand, and name the file instead of the URL."
        ) from None
    return path


def _innermost(folder: Path) -> Path:
    """Go down through folders that hold one folder and nothing else, and return the last one.

    Archives often wrap their files in such folders. A folder of training images is not entered.
    """
    inside = [path for path in folder.iterdir() if not files.hidden(path.name)]
    if len(inside) == 1 and inside[0].is_dir() and inside[0].name.lower() not in TRAIN:
        return _innermost(inside[0])
    return folder


def read_arrays(path: Path) -> dict[str, tuple[torch.Tensor, np.ndarray | None]]:
    """Return the uint8 images (N, C, H, W) and the labels (N,) of each split in an .npz or .npy file.

    The keys are the names of the splits ("train", "test" and the like), or "" for arrays without a split. Images are
    uint8 (N, H, W), (N, H, W, C) or (N, C, H, W). C is 1 (grey) or 3, or one more with transparency. Words in the names
    of the arrays tell splits and labels, as in x_train and y_train. Raises DataError.
    """
    try:
        content = np.load(path, allow_pickle=False)
        arrays = {path.stem: content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # a damaged file, or another program's, can raise any exception
        raise DataError(f"{path} cannot be read ({error}). Write it again with numpy.save or numpy.savez.") from None
    splits = {}
    for name, array in arrays.items():
        split = _word(name, TRAIN + HELD_OUT) if len(arrays) > 1 else ""
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
            continue
        if split in splits:
            say(f"{path}: {name} {array.shape} is left out, because its split has images already", sys.stderr)
            continue
        same_split = [key for key in arrays if _word(key, TRAIN + HELD_OUT) == split]
        labels = [key for key in same_split if _can_label(key, arrays[key], array)]
        splits[split] = channels_first(array, path), arrays[labels[0]].ravel() if labels else None
        say(f"{path}: images {name} {array.shape}, labels {labels[0] if labels else 'none'}", sys.stderr)
    if not splits:
        some = list(arrays.items())[:10]
        content = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in some)
        raise DataError(
            f"{path} holds no uint8 images (it holds {content or 'nothing'}). "
            f"Save images as uint8 {SHAPES}, or statistics for fid.py as mu and sigma."
        )
    return splits


def _word(name: str, known: tuple[str, ...]) -> str:
    """Return the first of the known words in an array's name, or ""."""
    words = re.split("[^a-z0-9]+", name.lower())
    return next((word for word in words if word in known), "")


def _can_label(name: str, array: np.ndarray, x: np.ndarray) -> bool:
    """Return True if the array's name, type and shape are those of labels for the images x."""
    if not _word(name, LABELS) and name != "arr_1":  # samplers of diffusion models write arr_1
        return False
    return array.dtype.kind in "iubUSf" and array.shape in ((len(x),), (len(x), 1))


def channels_first(array: np.ndarray, path: Path) -> torch.Tensor:
    """Return an array of images as uint8 (N, C, H, W), with transparency laid on white.

    The array has any of the shapes that `read_arrays` takes. Raises DataError for another shape, which names `path`.
    """
    x = array
    if x.ndim == 3 and x.shape[-1] > 4:
        x = x[..., None]
    if x.ndim == 4 and not 1 <= x.shape[-1] <= 4:
        x = x.transpose(0, 2, 3, 1)  # (N, H, W, C)
    if x.ndim != 4 or not 1 <= x.shape[-1] <= 4 or not x.size:
        raise DataError(f"{path}: an array of shape {array.shape} is not a set of images. Save uint8 {SHAPES}.")
    if x.shape[-1] in (2, 4):
        alpha = x[..., -1:] / np.float32(255)
        on_white = x[..., :-1] * alpha + 255 * (1 - alpha)
        x = on_white.round().astype(np.uint8)
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return torch.from_numpy(x)


def _squares(x: torch.Tensor, size: int | None) -> torch.Tensor:
    """Crop uint8 images (N, C, H, W) to their centres and resize them to (N, C, size, size)."""
    height, width = x.shape[2:]
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    size = size or default_size(x.shape[1] == 1, side)
    return torch.cat([resize(some, size) for some in x.split(1000)])


def _choose_splits(path: Path, names: list[str]) -> list[str]:
    """Return the names of the training split and of at most one held-out split. Name the others on standard error."""
    held_out = [name for name in HELD_OUT if name in names][:1]
    train = [name for name in (*TRAIN, *names) if name in names and name not in held_out][:1]
    left_out = sorted(set(names) - {*train, *held_out})
    if left_out:
        text = ", ".join(name or "arrays without a split" for name in left_out)
        say(f"{path}: left out: {text}", sys.stderr)
    return train + held_out


def _labels(path: Path, arrays: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Return the labels of each split. All are zeros if a split has none."""
    unlabelled = [name for name, (_, labels) in arrays.items() if labels is None]
    if not unlabelled:
        return {name: labels for name, (_, labels) in arrays.items()}
    if len(unlabelled) < len(arrays):
        say(f"WARNING: {path}: only one split has labels, so none are used", sys.stderr)
    return {name: np.zeros(len(x), int) for name, (x, _) in arrays.items()}


def _read_arrays(path: Path, size: int | None):
    """Return the arrays of a file in the form of `_read`."""
    arrays = read_arrays(path)
    arrays = {name: arrays[name] for name in _choose_splits(path, list(arrays))}
    coloured = any(pixels.is_coloured(x.movedim(1, -1).numpy()) for x, _ in arrays.values())
    labels = _labels(path, arrays)
    classes = np.unique(np.concatenate(list(labels.values())))
    splits = []
    for split, (x, _) in arrays.items():
        height, width = x.shape[2:]
        for line in crop_line(path, min(height, width) ** 2, height * width):
            say(line, sys.stderr)
        x = pixels.with_channels(x, 3) if coloured else x[:, :1]
        order = permutation(len(x), 0, 0)
        numbers = torch.from_numpy(np.searchsorted(classes, labels[split])).long()
        names = [f"{split or path.stem}/{i:05d}" for i in order.tolist()]
        splits.append(Split(split, _squares(x, size)[order], numbers[order], names))
    return writable(path.stem), splits, classes.tolist(), ""
