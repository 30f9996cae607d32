"""What a trained network says of every image of a set, as one .npz file."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common import fail, output_folder
from plumbing.data import images, pixels
from plumbing.system import files


@torch.no_grad()
def write(out: str, args: Namespace, weights: Path, numbers: dict, channels: int, describe: Callable) -> None:
    """Write what describe(uint8 images (n, channels, S, S)) says of --data's, or those that the network was trained on,
    a dictionary of tensors (n, ...) for each batch, with `labels` and the files' `names`.

    out: a new file.npz; with --out in that folder, unless it names another. numbers: of the weights file. Ends the
    program where something cannot be had or written.
    """
    source = args.data or numbers["data"]
    try:
        path = files.new_npz(out, output_folder(args, weights) if args.out else None)
        found, labels, names, in_colour = {}, [], [], False
        for x, some_labels, some_names in images.labelled(source, args.data_dir, numbers["image_size"]):
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
