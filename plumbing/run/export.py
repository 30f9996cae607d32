"""Files for other programs: a model as TorchScript and torch.export, an .npz of what a model computes for images."""

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from plumbing.data import images, pixels
from plumbing.system import files
from plumbing.system.process import fail

TOLERANCE = 1e-4  # largest difference between the model and an exported file


def export(model: nn.Module, x: Tensor, path: Path, ranges: str) -> None:
    """Write the model to `path` (TorchScript) and to its neighbour .pt2 (torch.export), and print both.

    The model is in eval mode. It maps x, an example batch (B, ...) with B >= 3, to a tensor or a tuple of tensors. The
    exported models take any batch size. `ranges` describes inputs and outputs, such as
    "z ~ N(0, I) -> images in [-1, 1]". The model's memory format becomes contiguous.

    Both files are read back and compared with the model. A difference of 1e-4 or more ends the program.
    """
    # torch.export warns of other memory formats.
    model = model.to(memory_format=torch.contiguous_format)
    # PyTorch calls TorchScript deprecated, and courses ask for it.
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
    example = x[:2]  # x itself has another batch size
    traced = torch.jit.trace(model, example, check_trace=False)
    # With a path instead of a file, torch.jit.save aborts the process when the disk is full.
    files.write_whole(path, partial(torch.jit.save, traced))

    archive = path.with_suffix(".pt2")
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (example,), dynamic_shapes=shapes)
    files.write_whole(archive, partial(torch.export.save, exported))

    print(f"{path.stem}: {ranges}")
    _compare(path, torch.jit.load(path), model, x)
    _compare(archive, torch.export.load(archive).module(), model, x)


def _compare(path: Path, exported: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Print the largest difference between both modules' outputs, or end the program because of it."""
    pairs = zip(_outputs(model, x), _outputs(exported, x), strict=True)
    error = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    if not error < TOLERANCE:  # also for nan
        wrong = f"{path} differs from the model by {error:.1e}"
        advice = "Delete it and export with another version of PyTorch"
        fail(f"{wrong}, more than {TOLERANCE:.0e}. {advice}.")
    shape = ", ".join(["B", *map(str, x.shape[1:])])
    print(f"{path}: ({shape}) in, within {error:.0e} of the model")


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Return model(x) as a tuple."""
    outputs = model(x)
    return outputs if isinstance(outputs, tuple) else (outputs,)


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
