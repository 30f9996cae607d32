"""Folders, archives, arrays and data sets, the sets of images that fid.py compares."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from plumbing.data import folders, images, pixels
from plumbing.system import files

GENERATORS = ("vae", "gan_mnist", "dcgan")  # scripts whose samples fid.py can draw
WEIGHTS = ("vae.pth", "generator.pth")  # weights files that they leave in a run folder
FEW = 2048  # with fewer images the bias of the distance is too large to compare


class Source(NamedTuple):
    """Set of images, or the statistics of one."""

    name: str
    n: int | None  # images, broken ones included; None where a file of statistics does not say
    pictures: Callable[[str], Tensor | Iterable] | None = None  # by mode, "L" or "RGB", for fid.features
    size: int | None = None  # side of the images in pixels, where nearly all are squares of one size
    n_other_sizes: int = 0
    depth: str = ""  # how values of more than 8 bits are scaled
    split: str | None = None  # of a data set, "train" or "test"
    data: images.ImageData | None = None
    seed: int | None = None  # of a generator's samples
    statistics: Any = None  # fid.Statistics of an .npz
    provenance: dict | None = None  # network that computes the features; None where an .npz does not say

    def facts(self, role: str, n: int | None) -> dict[str, object]:
        """Return the entries of fid.py's result about n images. role: "real" or "generated"."""
        facts = {role: self.name, f"n_{role}": n, f"size_{role}": self.size}
        if self.seed is not None:
            facts["seed"] = self.seed
        if self.n_other_sizes:
            facts[f"n_other_sizes_{role}"] = self.n_other_sizes
        if self.depth:
            facts[f"depth_{role}"] = self.depth
        return facts


class Encoder(nn.Module):
    """Frozen encoder as a network for fid.features, from floats in [0, 1], (N, C, H, W), to (N, D).

    side: pixels to which images are resized. name: what the encoder is. sha256: hash of its weights file.
    """

    metric, mode = "FD-SimCLR", "RGB"

    def __init__(self, encoder: nn.Module, side: int, name: str, sha256: str) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.side = side
        self.features = name
        self.resized = f"black margin to {side} where that is up to 4 pixels, else antialiased bilinear"
        self.sha256 = sha256

    def resize(self, x: Tensor) -> Tensor:
        return images.resize(x, self.side)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.resize(x))


def batches(pictures: Tensor | Iterable, batch_size: int) -> Iterator[Tensor | list[Tensor]]:
    """Yield tensors of at most batch_size images. Lists come as they are."""
    if isinstance(pictures, Tensor):
        pictures = [pictures]
    for x in pictures:
        if isinstance(x, list):
            yield x
        else:
            yield from x.split(batch_size)


def is_data_set(text: str) -> bool:
    """Return True for a name such as mnist:test that is no file."""
    return text.endswith((":train", ":test")) and not Path(text).exists()


def _is_a_generator(weights: Path) -> bool:
    try:
        state = torch.load(weights, map_location="meta", weights_only=True)
        return state["script"] in GENERATORS
    except Exception:  # a foreign file can raise anything
        return False


def weights_file(path: Path) -> Path | None:
    """Return the weights file that a .pth file or a run folder means.

    None is for every other folder, also for one that holds somebody else's files of the same names. Raise ValueError
    for a run folder without weights.
    """
    if path.suffix == ".pth" and path.is_file():
        return path
    fields = {"command", "flags", "parameters", "ranks"}
    is_run = files.read_json(path / "config.json").keys() >= fields
    for name in WEIGHTS:
        file = path / name
        if file.is_file() and (is_run or _is_a_generator(file)):
            return file
    if is_run:
        names = " or ".join(WEIGHTS)
        raise ValueError(f"{path} is a run folder, but holds no {names}. Name a run that has saved its weights")
    return None


def find(text: str, data_dir: str, batch_size: int, size: int | None = None) -> Source:
    """Return the data set, array, archive or folder of images that `text` names.

    size: side in pixels at which a data set is read. Raise ValueError, DataError and OSError.
    """
    path = Path(text)
    if is_data_set(text):
        return _data_set(text, data_dir, size)
    if not path.exists() and not text.startswith(("http://", "https://")):
        raise ValueError(f"there is no {text}. Name a data set with its split, such as mnist:test")
    if path.suffix.lower() in images.ARRAYS:
        return _array(text)
    folder = images.image_folder(text, Path(data_dir))
    look = folders.look_at(folder)
    pictures = partial(folders.folder_images, folder, batch_size=batch_size, look=look)
    return Source(text, len(look.names), pictures, look.size, look.n_others, look.note)


def _data_set(text: str, data_dir: str, size: int | None) -> Source:
    name, _, split = text.rpartition(":")
    if not size and name == "mnist":
        size = 28  # without the margin that load_images adds
    data = images.load_images(name, "", data_dir, size)
    x = data.train if split == "train" else data.test
    return Source(text, len(x), lambda _mode: x, x.shape[-1], split=split, data=data)


def _array(text: str) -> Source:
    splits = images.read_arrays(Path(text))
    if len(splits) > 1:
        names = ", ".join(splits)
        raise ValueError(f"{text} has the splits {names}. Name one of them, such as {text}:test")
    ((x, _),) = splits.values()  # uint8 (N, C, H, W)
    size = x.shape[2] if x.shape[2] == x.shape[3] else None
    return Source(text, len(x), lambda mode: pixels.with_channels(x, len(mode)), size)


def warn_if_unlike(sources: Iterable[Source]) -> None:
    """Print a warning for sets of different sizes, and for sets of more than 8 bits that are scaled differently."""
    with_images = [source for source in sources if not source.statistics]
    sizes = {source.size for source in with_images}
    for source in with_images:
        if source.data and len(sizes) > 1:
            side = f"{source.size} x {source.size}"
            warning = f"WARNING: {source.name}, read at {side}, is compared with images of other sizes"
            files.say(warning, sys.stderr)
    ranges = {source.depth.partition(": ")[2] for source in with_images if source.depth}
    if len(ranges) > 1:
        reason = "the largest value of each decides"
        warning = f"WARNING: the two sets have more than 8 bits and are not scaled alike: {reason}"
        files.say(warning, sys.stderr)


def warn_if_few(name: str, n: int | None) -> None:
    if n and n < FEW:
        bias = f"With less than {FEW:,} the distance is biased upwards, and KID (fid.py --kid) is not"
        files.say(f"WARNING: {name}: {n} images. {bias}", sys.stderr)


def holds_statistics(path: str | Path) -> bool:
    """Return True for an .npz of mu and sigma, False for one of images."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {"mu", "sigma"} <= set(file.files)
    except Exception:  # missing, damaged or an .npy: its reader reports what is wrong
        return False


def new_npz(text: str) -> Path:
    """Return the path of an .npz file that does not exist yet. An argparse type."""
    path = Path(text)
    if path.suffix != ".npz" or path.exists() or not path.parent.is_dir():
        wanted = "Name a new file.npz in a folder that exists"
        raise argparse.ArgumentTypeError(f"{text} cannot be written. {wanted}")
    return path


def read_about(file: Any) -> tuple[int | None, dict | None]:
    """Return the number of images and the provenance that fid.write_stats has put into an opened .npz."""
    try:
        about = json.loads(str(file["about"]))
        return about["n"], about["made_by"]
    except (KeyError, TypeError, ValueError):  # somebody else's file
        return None, None


def provenance(net: nn.Module) -> dict[str, str]:
    """Describe the features of a network. Two sets of features are comparable where all of this is equal."""
    about = {"metric": net.metric, "features": net.features, "resize": net.resized}
    return about | {"dtype": "float32", "weights_sha256": net.sha256}


def common_provenance(opened: dict[str, Source], net: nn.Module | None) -> dict[str, str]:
    """Describe the features of "real" and "generated". Images get theirs from `net`.

    Where a file of statistics does not say, the entries of the other set end in "_real" or "_generated". Raise
    ValueError for features that are known to differ.
    """
    known, silent = {}, []
    for role, source in opened.items():
        if not source.statistics:
            known[role] = provenance(net)
        elif source.provenance:
            known[role] = source.provenance
        else:
            silent.append(source.name)
    abouts = list(known.values())
    if abouts[1:] and abouts[0] != abouts[1]:
        both = f"{abouts[0]} and {abouts[1]}"
        raise ValueError(f"these features are not comparable: {both}. Measure both sets with the same network")
    if not silent:
        return abouts[0]
    names = " and ".join(silent)
    about = {"metric": "Fréchet distance", "features": f"unknown: {names} does not say what it is of"}
    for role, facts in known.items():
        about |= {f"{key}_{role}": value for key, value in facts.items()}
    return about
