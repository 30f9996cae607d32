"""Write latent.html, a page to walk through a plane of a latent space. It needs no network connection."""

import base64
import html
import io
import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from plumbing.data import images
from plumbing.run import plots
from plumbing.run.pictures import to_uint8
from plumbing.system import files

TILES = 32  # decoded images in a row and in a column of the page
TILE_SIZE = 32  # pixels
MAX_CODES = 256  # held-out images on the page
MARGIN = 0.25  # between the three codes and the edge of the plane


def _sheet(x: Tensor, columns: int) -> str:
    """Return images x (M, C, H, W) in [0, 1] as one WebP in a data URL, row by row, TILE_SIZE pixels each."""
    x = x.float().cpu()
    x = F.interpolate(x, (TILE_SIZE, TILE_SIZE), mode="bilinear", antialias=True)
    M, C = x.shape[:2]
    rows = -(-M // columns)
    missing = x.new_zeros(rows * columns - M, C, TILE_SIZE, TILE_SIZE)
    x = torch.cat([x, missing])
    x = x.expand(-1, max(3, C), -1, -1)  # grey as RGB
    x = x.unflatten(0, (rows, columns))  # (rows, columns, 3, S, S)
    x = x.permute(0, 3, 1, 4, 2)  # (rows, S, columns, S, 3)
    x = x.flatten(2, 3).flatten(0, 1)  # (rows S, columns S, 3)
    file = io.BytesIO()
    picture = Image.fromarray(to_uint8(x).numpy())
    picture.save(file, "webp", quality=75)
    text = base64.b64encode(file.getvalue()).decode()
    return f"data:image/webp;base64,{text}"


class Plane:
    """Plane of a latent space, with coordinates (u, v) in the unit square.

    With two latents it is the whole space, through the Gaussian's distribution function (figure 4 of the VAE's paper).
    With more it passes through the codes of three images, of different classes where there are three. mu (N, Z),
    N >= 3, are the codes of images, and labels (N,) the images' classes.
    """

    def __init__(self, mu: Tensor, labels: Tensor) -> None:
        firsts = [int((labels == label).nonzero()[0]) for label in labels.unique()]
        three = [*firsts, *range(len(mu))][:3]
        self.corners = mu[three]  # (3, Z)
        self.gaussian = mu.shape[1] == 2

    def codes(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the codes (M, Z) at u, v (M,)."""
        if self.gaussian:
            p = torch.stack([u, 1 - v], 1)
            return torch.special.ndtri(p.clamp(0.005, 0.995))
        a, b, c = self.corners
        s = (1 + 2 * MARGIN) * u - MARGIN
        t = (1 + 2 * MARGIN) * v - MARGIN
        return a + s[:, None] * (b - a) + t[:, None] * (c - a)

    def grid(self, ticks: Tensor) -> Tensor:
        """Return the codes (n², Z), row by row, of all points whose u and v are among the ticks (n,)."""
        v, u = torch.meshgrid(ticks, ticks, indexing="ij")
        return self.codes(u.flatten(), v.flatten())

    def coordinates(self, z: Tensor) -> Tensor:
        """Return (u, v), (M, 2), of the point of the plane that is nearest to each code z (M, Z)."""
        if self.gaussian:
            u, v = torch.special.ndtr(z).unbind(1)
            return torch.stack([u, 1 - v], 1)
        a, b, c = self.corners
        axes = torch.stack([b - a, c - a], 1)  # (Z, 2)
        s_and_t = torch.linalg.lstsq(axes, (z - a).T).solution.T  # (M, 2)
        return (s_and_t + MARGIN) / (1 + 2 * MARGIN)


@torch.no_grad()
def draw(decode: Callable, mu: Tensor, data: images.ImageData, folder: Path) -> None:
    """Write latent.png and latent.html of the latent space into the folder.

    latent.png shows the codes by class. With two latents it shows the decoded plane beside them, with more their t-SNE.

    decode maps codes (M, Z) to images (M, C, H, W) in [0, 1]. mu (N, Z), on the CPU, are the codes of the first N test
    images.
    """
    N = len(mu)
    x, labels = data.test[:N], data.test_labels[:N]
    plane, manifold = Plane(mu, labels), None
    if plane.gaussian:
        decoded = decode(plane.grid(torch.linspace(0.02, 0.98, 20)))
        manifold = make_grid(decoded, 20, padding=0)
    title = f"codes of {N:,} test images"
    plots.codes(mu.numpy(), labels, data.classes, title, folder / "latent.png", manifold)
    title = f"Latent space of {data.name}"
    write(folder / "latent.html", decode, mu, x / 255, labels, data.classes, title)


@torch.no_grad()
def write(
    path: Path,
    decode: Callable,
    mu: Tensor,
    x: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    title: str,
) -> None:
    """Write a page with a decoded plane of the latent space and the codes of held-out images on it.

    decode maps codes (M, Z) to images (M, C, H, W) in [0, 1]. mu (N, Z) are the codes of the held-out images
    x (N, C, H, W) in [0, 1], of which the page shows the first 256. labels (N,) count the classes from 0. `classes` are
    the names of the classes, or empty. For less than three images a line says that there is no page.
    """
    if len(mu) < 3:
        needs = f"Its plane needs 3 held-out images, and there are {len(mu)}"
        files.say(f"{path.name} is left out. {needs}.")
        return
    mu, x, labels = mu.cpu()[:MAX_CODES], x[:MAX_CODES], labels[:MAX_CODES]
    classes = classes or range(int(labels.max()) + 1)
    plane = Plane(mu, labels)
    ticks = (torch.arange(TILES) + 0.5) / TILES
    decoded = [decode(z).cpu() for z in plane.grid(ticks).split(256)]
    caption = "The plane through the codes of three held-out images; dots: where other codes fall on it."
    if plane.gaussian:
        caption = "N(0, I), its two latents stretched to a square."
    data = {
        "n": TILES,
        "side": TILE_SIZE,
        "decoded": _sheet(torch.cat(decoded), TILES),
        "images": _sheet(x, 16),
        "points": _points(plane.coordinates(mu), labels),
        "classes": [str(name) for name in classes],
    }
    text = json.dumps(data).replace("<", "\\u003c")  # no class name ends the script
    template = string.Template(Path(__file__).with_suffix(".html").read_text())
    page = template.substitute(title=html.escape(title), caption=html.escape(caption), data=text)
    files.show(path, lambda file: file.write(page.encode()))


def _points(coordinates: Tensor, labels: Tensor) -> list[list]:
    """Return [u, v, label, index] of each code within the plane, from coordinates (N, 2) and labels (N,)."""
    points = []
    pairs = zip(coordinates.tolist(), labels.tolist(), strict=True)
    for i, ((u, v), label) in enumerate(pairs):
        if 0 <= min(u, v) and max(u, v) <= 1:
            points.append([round(u, 4), round(v, 4), label, i])
    return points
