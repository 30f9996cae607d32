"""What a trained network says of every image of a set, as one .npz file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common import fail
from plumbing import files, images, pixels


@torch.no_grad()
def write(
    out: str, folder: Path | None, source: str, data_dir: str, size: int, channels: int, describe: Callable
) -> None:
    """Write what describe(uint8 images (n, channels, size, size)) says, a dictionary of tensors (n, ...) for each
    batch, with `labels` and the files' `names`.

    out: a new file.npz, in `folder` unless it names another. Ends the program where something cannot be had or written.
    """
    try:
        path = files.new_npz(out, folder)
        found, labels, names, in_colour = {}, [], [], False
        for x, some_labels, some_names in images.labelled(source, data_dir, size):
            in_colour |= x.shape[1] > channels
            for key, value in describe(pixels.with_channels(x, channels)).items():
                found.setdefault(key, []).append(value.cpu().numpy())
            labels += some_labels
            names += some_names
        arrays = {key: np.concatenate(values) for key, values in found.items()}
        arrays |= {"labels": np.array(labels), "names": np.array(names)}
        files.write_whole(path, lambda file: np.savez(file, **arrays))
    except (images.DataError, OSError, ValueError) as error:
        fail(error)
    shapes = ", ".join(f"{key} {arrays[key].shape}" for key in found)
    print(f"{path}: {shapes} of {source}" + ", in grey, as the network was trained on" * in_colour)
