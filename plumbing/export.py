"""A trained model as files that run without this repository: TorchScript, as courses hand it in, and torch.export."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from common import fail


def _largest_error(ours, theirs) -> float:
    """Of two outputs, each a tensor or a tuple of tensors."""
    if isinstance(ours, Tensor):
        return (ours - theirs).abs().max().item()
    return max(_largest_error(a, b) for a, b in zip(ours, theirs, strict=True))


def export(model: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> None:
    """Write `path` (TorchScript) and its .pt2 (torch.export), read both back and hold them against the model.

    inputs: an example batch of at least 3 for a model in eval mode; the exported ones take any batch size.
    """
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # TorchScript is what the courses hand in
    model = model.to(memory_format=torch.contiguous_format)  # torch.export warns of others
    two = tuple(x[:2] for x in inputs)
    torch.jit.save(torch.jit.trace(model, two), path)
    archive = path.with_suffix(".pt2")
    batch_size = torch.export.Dim("batch")
    torch.export.save(torch.export.export(model, two, dynamic_shapes=({0: batch_size},) * len(two)), archive)

    shapes = " and ".join("(" + ", ".join(["B", *map(str, x.shape[1:])]) + ")" for x in inputs)
    for file, again in ((path, torch.jit.load(path)), (archive, torch.export.load(archive).module())):
        with torch.no_grad():
            error = _largest_error(model(*inputs), again(*inputs))
        if not error < 1e-4:
            fail(f"{file} differs from the model by {error:.1e}")
        print(f"{file}: {shapes} in, within {error:.0e} of the model")
