"""What fid.py compares: folders, archives and arrays of images, data sets by split, generators of run folders."""

import argparse
import importlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plumbing.data import folders, images, pixels
from plumbing.run import checkpoints
from plumbing.system import files

GENERATORS = ("vae", "gan_mnist", "dcgan")  # scripts with build() and draw()
WEIGHTS = ("vae.pth", "generator.pth")  # what they leave in a run folder


class Source(NamedTuple):
    """One of the two sets of images."""

    name: str
    n: int | None  # images, broken ones among them; None where a file does not say
    pictures: Callable[[str], Tensor | Iterable] | None = None  # by mode, "L" or "RGB"
    size: int | None = None  # side of the images, where nearly all are squares of one size
    n_other_sizes: int = 0
    depth: str = ""  # how values of more than 8 bits are read
    split: str | None = None
    data: images.ImageData | None = None
    seed: int | None = None  # of samples
    known: Any = None  # the statistics of an .npz
    made_by: dict | None = None  # what an .npz of ours says of the features


class Encoder(nn.Module):
    """The frozen encoder of a weights file of simclr.py: floats in [0, 1], (N, C, H, W) -> (N, width) of length 1."""

    metric, mode = "FD-SimCLR", "RGB"

    def __init__(self, path: str) -> None:
        super().__init__()
        import simclr

        numbers = checkpoints.load(Path(path), ("simclr",), "trained_on")
        self.encoder = simclr.Encoder(simclr.build(numbers).f, numbers).eval().requires_grad_(False)
        self.side = numbers["image_size"]
        self.features = f"simclr.py's {numbers['encoder']}, trained on {numbers['trained_on']}"
        self.resized = f"black margin to {self.side} where that is up to 4 pixels, else antialiased bilinear"
        self.sha256 = files.sha256(Path(path))

    def resize(self, x: Tensor) -> Tensor:
        return images.resize(x, self.side)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.resize(x))


def is_data_set(text: str) -> bool:
    return text.endswith((":train", ":test")) and not Path(text).exists()


def _is_ours(weights: Path) -> bool:
    try:
        state = torch.load(weights, map_location="meta", weights_only=True)
        return state["script"] in GENERATORS
    except Exception:  # a foreign file can raise anything
        return False


def _generator(path: Path) -> Path | None:
    """The weights file that is meant; None for a folder that is not a run's, whatever files it holds besides images."""
    if path.suffix == ".pth" and path.is_file():
        return path
    is_run = files.read_json(path / "config.json").keys() >= {"command", "flags", "parameters", "ranks"}
    for name in WEIGHTS:
        file = path / name
        if file.is_file() and (is_run or _is_ours(file)):
            return file
    if is_run:
        raise ValueError(f"{path} is a run folder, but holds no {' or '.join(WEIGHTS)}")
    return None


def find(text: str, args: argparse.Namespace, device: torch.device, size: int | None, seed: int) -> Source:
    """The images that an argument means; a data set is read at `size`, where that is given.

    Raises ValueError, DataError and OSError.
    """
    path = Path(text)
    if is_data_set(text):
        name, _, split = text.rpartition(":")
        data = images.load_images(name, "", args.data_dir, size or {"mnist": 28}.get(name))
        x = data.train if split == "train" else data.test
        return Source(text, len(x), lambda _: x, x.shape[-1], split=split, data=data)
    weights = _generator(path)
    if weights:
        state = checkpoints.load(weights, GENERATORS, "trained_on")
        script = importlib.import_module(state["script"])
        model = script.build(state).to(device).eval()
        samples = lambda _: script.draw(model, args.n, seed)
        return Source(str(weights), args.n, samples, state["image_size"], seed=seed)
    if not path.exists() and not text.startswith(("http://", "https://")):
        raise ValueError(f"there is no {text}; a data set is named with its split, such as mnist:test")
    if path.suffix.lower() in images.ARRAYS:
        found = images.read_arrays(path)
        if len(found) > 1:
            raise ValueError(f"{text} has the splits {', '.join(found)}: name one of them, such as {text}:test")
        ((x, _),) = found.values()
        size = x.shape[2] if x.shape[2] == x.shape[3] else None
        return Source(text, len(x), lambda mode: pixels.with_channels(x, len(mode)), size)
    folder = images.image_folder(text, Path(args.data_dir))
    look = folders.look_at(folder)
    pictures = partial(folders.folder_images, folder, batch_size=args.batch_size, look=look)
    return Source(text, len(look.names), pictures, look.size, look.n_others, look.note)
