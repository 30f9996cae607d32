"""A trained model as files that run without this repository: TorchScript, as courses hand it in, and torch.export."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from common import fail


def export(model: nn.Module, x: Tensor, path: Path) -> None:
    """Write `path` (TorchScript) and its .pt2 (torch.export), read both back and hold them against the model.

    x: an example batch (B, ...), B of at least 3, for a model in eval mode; the exported ones take any batch size.
    """
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # TorchScript is what the courses hand in
    model = model.to(memory_format=torch.contiguous_format)  # torch.export warns of others
    torch.jit.save(torch.jit.trace(model, x[:2]), path)
    archive = path.with_suffix(".pt2")
    any_size = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(model, (x[:2],), dynamic_shapes=any_size), archive)

    shape = ", ".join(["B", *map(str, x.shape[1:])])
    for file, again in ((path, torch.jit.load(path)), (archive, torch.export.load(archive).module())):
        with torch.no_grad():
            error = (model(x) - again(x)).abs().max().item()
        if not error < 1e-4:
            fail(f"{file} differs from the model by {error:.1e}")
        print(f"{file}: ({shape}) in, within {error:.0e} of the model")
