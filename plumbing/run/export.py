"""Files for other programs: a trained model as TorchScript (courses) and torch.export."""

import warnings
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from plumbing.run.checkpoints import save
from plumbing.system import files
from plumbing.system.process import fail


def _tensors(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def export(model: nn.Module, x: Tensor, path: Path, ranges: str) -> None:
    """Write `path` (TorchScript) and its .pt2 (torch.export), read both back and hold them against the model.

    x: an example batch (B, ...), B of at least 3, for a model in eval mode; the exported ones take any batch size.
    ranges: what it takes and gives, in words.
    """
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # TorchScript is what the courses hand in
    model = model.to(memory_format=torch.contiguous_format)  # torch.export warns of others
    traced = torch.jit.trace(model, x[:2], check_trace=False)
    files.write_whole(path, lambda file: torch.jit.save(traced, file))  # by a path, a full disk would abort the process
    archive = path.with_suffix(".pt2")
    exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    files.write_whole(archive, lambda file: torch.export.save(exported, file))

    shape = ", ".join(["B", *map(str, x.shape[1:])])
    print(f"{path.stem}: {ranges}")
    for file, again in ((path, torch.jit.load(path)), (archive, torch.export.load(archive).module())):
        with torch.no_grad():
            pairs = zip(_tensors(model(x)), _tensors(again(x)), strict=True)
            error = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
        if not error < 1e-4:
            fail(f"{file} differs from the model by {error:.1e}")
        print(f"{file}: ({shape}) in, within {error:.0e} of the model")


class AtTheMean(nn.Module):
    """Images -> (reconstruction from z = μ, μ, log σ²) of a VAE: without noise, so the same each time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_sigma2 = self.model.posterior(x)
        return self.model.decode(mu), mu, log_sigma2


def some_images(numbers: dict) -> Tensor:
    """Three of random pixels in [0, 1], of the channels and size that a weights file names."""
    return torch.rand(3, numbers["channels"], numbers["image_size"], numbers["image_size"])


def export_vae(model: nn.Module, numbers: dict, path: Path) -> None:
    """export() of vae.py's model at z = μ."""
    low = 0 if model.likelihood == "bernoulli" else -1
    ranges = f"images in [{low}, 1] -> (reconstructions in [{low}, 1], mu, log sigma^2)"
    export(AtTheMean(model), some_images(numbers), path, ranges)


def export_generator(G: nn.Module, path: Path) -> None:
    """export() of dcgan.py's G."""
    export(G, torch.randn(3, G.z_dim), path, "z ~ N(0, I) -> images in [-1, 1]")


def export_discriminator(D: nn.Module, numbers: dict, path: Path) -> None:
    """export() of dcgan.py's D."""
    export(D, 2 * some_images(numbers) - 1, path, "images in [-1, 1] -> logits, above 0 for data")


def export_encoder(encoder: nn.Module, numbers: dict, folder: Path) -> None:
    """export() of simclr.py's Encoder, and the weights of its f under torchvision's names."""
    ranges = "images (B, 3, S, S) in [0, 1] -> h, of length 1"
    export(encoder, some_images(numbers | {"channels": 3}), folder / "SimCLR_encoder.pth", ranges)
    export_resnet(encoder.f, numbers["encoder"], ("maxpool",), folder / f"{numbers['encoder']}.pth")


def export_resnet(f: nn.Sequential, name: str, without: tuple[str, ...], path: Path) -> None:
    """Write the weights of f, torchvision's resnet18 or resnet50 as a Sequential without some layers and without fc, as
    a state dict with torchvision's names."""
    places = [place for place, _ in getattr(torchvision.models, name)().named_children() if place not in without]
    renamed = {}
    for key, value in f.state_dict().items():
        place, rest = key.split(".", 1)
        renamed[f"{places[int(place)]}.{rest}"] = value
    save(renamed, path)
    conv1 = f[places.index("conv1")]
    there_is_no = ", ".join([*without, "fc"])
    print(f"{path}: torchvision's names for {name}; conv1 is {conv1}, there is no {there_is_no}")
