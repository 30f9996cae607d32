"""latent.html: a plane of a latent space, to be walked through in a browser; one file, without a network."""

import base64
import html
import io
import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from plumbing.data import images
from plumbing.run import plots
from plumbing.run.pictures import to_uint8
from plumbing.system import files

N, SIDE, SHOWN = 32, 32, 256  # decodings a side, the pixels of each, held-out images


def _sheet(x: Tensor, columns: int) -> str:
    """Images (N, C, H, W) in [0, 1], side by side without a margin, as a data URL."""
    x = torch.nn.functional.interpolate(x.float().cpu(), (SIDE, SIDE), mode="bilinear", antialias=True)
    rows = -(-len(x) // columns)
    x = torch.cat([x, x.new_zeros(rows * columns - len(x), *x.shape[1:])]).expand(-1, max(3, x.shape[1]), -1, -1)
    whole = x.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (H, W, 3)
    file = io.BytesIO()
    Image.fromarray(to_uint8(whole).numpy()).save(file, "webp", quality=75)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


class Plane:
    """Points (u, v) of the unit square to codes z and back: for two latents through the Gaussian's distribution
    function (figure 4 of the paper); for more the plane through three codes.
    """

    def __init__(self, mu: Tensor, labels: Tensor) -> None:
        kinds = [int((labels == label).nonzero()[0]) for label in labels.unique()]
        self.corners = mu[[*kinds, *range(len(mu))][:3]]  # (3, Z)
        self.gaussian = mu.shape[1] == 2

    def codes(self, u: Tensor, v: Tensor) -> Tensor:
        if self.gaussian:
            return torch.special.ndtri(torch.stack([u, 1 - v], 1).clamp(0.005, 0.995))
        a, b, c = self.corners
        return a + (1.5 * u - 0.25)[:, None] * (b - a) + (1.5 * v - 0.25)[:, None] * (c - a)

    def grid(self, at: Tensor) -> Tensor:
        """Codes (n², Z), row by row, of the points whose u and v are among `at` (n,)."""
        v, u = torch.meshgrid(at, at, indexing="ij")
        return self.codes(u.flatten(), v.flatten())

    def places(self, z: Tensor) -> Tensor:
        """(N, 2), of the nearest point of the plane."""
        if self.gaussian:
            u, v = torch.special.ndtr(z).unbind(1)
            return torch.stack([u, 1 - v], 1)
        a, b, c = self.corners
        return (torch.linalg.lstsq(torch.stack([b - a, c - a], 1), (z - a).T).solution.T + 0.25) / 1.5


@torch.no_grad()
def draw(decode: Callable, mu: Tensor, data: images.ImageData, folder: Path) -> None:
    """The codes μ (N, Z) of the first N test images by class, latent.png: their t-SNE, or, in two dimensions,
    themselves beside what the plane of z decodes to; and latent.html, the same to walk through.

    decode: (M, Z) -> images in [0, 1].
    """
    x, labels = data.test[: len(mu)], data.test_labels[: len(mu)]
    plane, manifold = Plane(mu, labels), None
    if plane.gaussian:
        manifold = make_grid(decode(plane.grid(torch.linspace(0.02, 0.98, 20))), 20, padding=0)
    title = f"codes of {len(mu):,} test images"
    plots.codes(mu.numpy(), labels, data.classes, title, folder / "latent.png", manifold)
    write(folder / "latent.html", decode, mu, x / 255, labels, data.classes, f"Latent space of {data.name}")


@torch.no_grad()
def write(
    path: Path, decode: Callable, mu: Tensor, x: Tensor, labels: Tensor, classes: Sequence[str], title: str
) -> None:
    """A map of the latent space with the codes of held-out images on it.

    decode: (N, Z) -> images in [0, 1]. mu (M, Z), x (M, C, H, W) in [0, 1], labels (M,): of held-out images.
    """
    if len(mu) < 3:
        files.say(f"{path.name} is left out: a plane takes three held-out images, and there are {len(mu)}")
        return
    mu, x, labels = mu.cpu()[:SHOWN], x[:SHOWN], labels[:SHOWN]
    classes = classes or [str(k) for k in range(int(labels.max()) + 1)]
    plane = Plane(mu, labels)
    decoded = torch.cat([decode(z).cpu() for z in plane.grid((torch.arange(N) + 0.5) / N).split(256)])
    points = []
    for i, (place, label) in enumerate(zip(plane.places(mu).tolist(), labels.tolist(), strict=True)):
        if 0 <= min(place) and max(place) <= 1:
            points.append([*(round(value, 4) for value in place), label, i])
    caption = (
        "N(0, I), its two latents stretched to a square."
        if plane.gaussian
        else "The plane through the codes of three held-out images; dots: where other codes fall on it."
    )
    data = {"n": N, "side": SIDE, "decoded": _sheet(decoded, N), "images": _sheet(x, 16)}
    text = json.dumps(data | {"points": points, "classes": list(classes)}).replace("<", "\\u003c")
    page = string.Template(Path(__file__).with_suffix(".html").read_text())
    whole = page.substitute(title=html.escape(title), caption=html.escape(caption), data=text)
    files.show(path, lambda file: file.write(whole.encode()))
