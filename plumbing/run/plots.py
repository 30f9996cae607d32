"""Plot training curves, points in the plane and nearest neighbours."""

import math
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plumbing.data import images
from plumbing.run.pictures import save_grid
from plumbing.system import files

LEGEND = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}  # to the right of the axes


def tsne(points: np.ndarray) -> np.ndarray:
    """Map points (N, D), N >= 5, to the plane (N, 2) by t-SNE (van der Maaten & Hinton 2008)."""
    from sklearn.manifold import TSNE

    N, D = points.shape
    init = "pca" if D > 1 else "random"
    perplexity = min(30, (N - 1) / 3)
    return TSNE(init=init, perplexity=perplexity, random_state=0).fit_transform(points)


def scatter(axes, points: np.ndarray, labels: Tensor, classes: Sequence[str] = ()) -> None:
    """Plot points (N, 2) on matplotlib's axes, coloured by their labels (N,) from 0.

    There is a legend for 2 to 20 classes. Without `classes` it shows the labels' numbers.
    """
    highest = int(labels.max())
    cmap = "tab10" if highest < 10 else "viridis"
    dots = axes.scatter(points[:, 0], points[:, 1], c=labels.numpy(), s=5, cmap=cmap)
    if 0 < highest < 20:
        handles, names = dots.legend_elements(num=None)
        if classes:
            names = [classes[k] for k in labels.unique().tolist()]
        axes.legend(handles, names, title="class", fontsize="small", **LEGEND)


def codes(
    points: np.ndarray,
    labels: Tensor,
    classes: Sequence[str],
    title: str,
    path: Path,
    manifold: Tensor | None = None,
) -> None:
    """Write a PNG of points (N, D) coloured by class, labels (N,).

    The PNG shows the t-SNE of the points. With `manifold`, an image (3, H, W) in [0, 1], it shows the points themselves
    (D = 2) and the image beside them. Nothing is written without matplotlib and scikit-learn, or for N < 5.
    """
    if len(points) < 5 or not find_spec("matplotlib") or not find_spec("sklearn"):
        return
    from matplotlib.figure import Figure

    if manifold is None:
        axes = Figure((7.5, 6), layout="constrained").subplots()
        files.say(f"t-SNE of {len(points):,} points ...")
        points, title = tsne(points), f"{title}, t-SNE"
    else:
        figure = Figure((12, 6), layout="constrained")
        axes, right = figure.subplots(1, 2)
        right.imshow(manifold.cpu().permute(1, 2, 0).numpy())
        right.set_title("decoded manifold")
        right.axis("off")
    scatter(axes, points, labels, classes)
    axes.set_title(title)
    files.show(path, partial(axes.figure.savefig, format="png"))


def curves(rows: list[dict], path: Path, levels: dict[str, float]) -> None:
    """Write a PNG of training curves, a panel for each term and a line for each split.

    rows are such as {"step": 1, "split": "train", "loss": 0.5}. levels are the values of terms at the equilibrium of a
    GAN, drawn as dotted lines. From 20 points on, the first twentieth of a line may be outside its panel.
    """
    from matplotlib.figure import Figure

    terms = dict.fromkeys(key for row in rows for key in row)
    terms = [term for term in terms if term not in ("step", "split")]
    n_columns = min(3, len(terms))
    n_rows = math.ceil(len(terms) / n_columns)
    width, height = 5 * n_columns, 3 * n_rows  # inches
    figure = Figure((width, height))
    # By hand, because layout="constrained" draws everything twice. Beside each panel, 2.8 x 2.2 inches, there is room
    # for its legend.
    figure.subplots_adjust(
        left=0.7 / width,
        bottom=0.5 / height,
        right=1 - 1.5 / width,
        top=1 - 0.3 / height,
        wspace=2.2 / 2.8,
        hspace=0.8 / 2.2,
    )
    for i, term in enumerate(terms, 1):
        axes = figure.add_subplot(n_rows, n_columns, i, title=term, xlabel="step")
        _panel(axes, term, rows, levels.get(term))
    files.show(path, partial(figure.savefig, format="png"))


def _panel(axes, term: str, rows: list[dict], level: float | None) -> None:
    """Plot one term of the rows, a line for each split, and its level at the equilibrium."""
    rows = [row for row in rows if term in row]
    late = []  # values that the panel has to show
    for split in dict.fromkeys(row["split"] for row in rows):
        steps = [row["step"] for row in rows if row["split"] == split]
        values = [row[term] for row in rows if row["split"] == split]
        marker = "." if len(values) < 20 else None  # a single point is no line
        axes.plot(steps, values, marker=marker, label=split)
        late += values[len(values) // 20 :]
    if level is not None:
        axes.axhline(level, color="grey", ls=":", label="equilibrium")
        late.append(level)
    margin = (max(late) - min(late)) / 20
    if margin:
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.locator_params(axis="x", nbins=5)
    axes.legend(fontsize="small", **LEGEND)


def neighbours(h: Tensor, test_h: Tensor, data: images.ImageData, path: Path) -> None:
    """Write a grid of ten test images, each followed by the nine training images nearest to it by cosine.

    h (N, D) and test_h (M, D) are features of data.train and data.test. The test images are of different classes as
    far as there are ten.
    """
    firsts = [int((data.test_labels == c).nonzero()[0]) for c in data.test_labels.unique()]
    ten = list(dict.fromkeys([*firsts, *range(len(test_h))]))[:10]
    cosines = F.normalize(test_h[ten], dim=1) @ F.normalize(h, dim=1).T  # (10, N)
    nearest = cosines.topk(min(9, len(h))).indices.cpu()  # (10, 9)
    rows = []
    for i, near in zip(ten, nearest, strict=True):
        rows += [data.test[i : i + 1], data.train[near]]
    x = torch.cat(rows) / 255
    save_grid(x, path, 1 + nearest.shape[1], set_off=(0,))
