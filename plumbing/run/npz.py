"""An .npz file with what a network computes for each image of a set."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plumbing.data import images, pixels
from plumbing.system import files
from plumbing.system.process import fail


@torch.no_grad()
def write_npz(
    path: Path,
    describe: Callable[[Tensor], dict[str, Tensor]],
    source: str,
    data_dir: str,
    image_size: int,
    channels: int,
) -> None:
    """Write what describe(uint8 images (n, C, S, S)) returns for all images of `source`, with `labels` and `names`.

    describe: returns tensors (n, ...) by name. channels: C, 1 or 3. names: the files, or such as test/00017. End the
    program where an image set cannot be read or the file cannot be written.
    """
    if path.suffix != ".npz" or path.exists() or not os.access(path.parent, os.W_OK):
        fail(f"{path} cannot be written. Name a new file.npz in a folder that can be written to.")
    parts: dict[str, list[np.ndarray]] = {}
    labels, names, in_colour = [], [], False
    try:
        for x, some_labels, some_names in images.labelled(source, data_dir, image_size):
            in_colour |= x.shape[1] > channels
            for name, value in describe(pixels.with_channels(x, channels)).items():
                parts.setdefault(name, []).append(value.cpu().numpy())
            labels += some_labels
            names += some_names
        arrays = {name: np.concatenate(values) for name, values in parts.items()}
        everything = arrays | {"labels": np.array(labels), "names": np.array(names)}
        files.write_whole(path, lambda file: np.savez(file, **everything))
    except (images.DataError, OSError, ValueError) as error:
        fail(error)
    shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    print(f"{path}: {shapes} of {source}" + ", in grey, as the network was trained on" * in_colour)
