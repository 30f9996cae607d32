"""Pictures that need no model: training curves, points in the plane, nearest neighbours."""

import math
from collections.abc import Callable, Sequence
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


def tsne(points: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, 2) for N of at least 5 (van der Maaten & Hinton 2008)."""
    from sklearn.manifold import TSNE

    init = "pca" if points.shape[1] > 1 else "random"
    return TSNE(init=init, perplexity=min(30, (len(points) - 1) / 3), random_state=0).fit_transform(points)


def scatter(axes, points: np.ndarray, labels: Tensor, classes: Sequence[str] = ()) -> None:
    """Points (N, 2) coloured by class (N,), with a legend where it is short, on matplotlib's axes."""
    cmap = "tab10" if labels.max() < 10 else "viridis"
    dots = axes.scatter(points[:, 0], points[:, 1], c=labels.numpy(), s=5, cmap=cmap)
    if 0 < labels.max() < 20:
        handles, names = dots.legend_elements(num=None)
        shown = [classes[k] for k in labels.unique().tolist()] if classes else names
        place = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
        axes.legend(handles, shown, title="class", fontsize="small", **place)


def codes(
    points: np.ndarray, labels: Tensor, classes: Sequence[str], title: str, path: Path, manifold: Tensor | None = None
) -> None:
    """Points (N, D) by class (N,): their t-SNE or, beside `manifold` (C, H, W), themselves, D being 2.

    Nothing where a library is missing, or for less than five.
    """
    if not (find_spec("matplotlib") and find_spec("sklearn") and len(points) > 4):
        return
    from matplotlib.figure import Figure

    if manifold is None:
        axes = Figure((7.5, 6), layout="constrained").subplots()
        files.say(f"t-SNE of {len(points):,} points ...")
        points, title = tsne(points), f"{title}, t-SNE"
    else:
        axes, right = Figure((12, 6), layout="constrained").subplots(1, 2)
        right.imshow(manifold.cpu().permute(1, 2, 0).numpy())
        right.set_title("decoded manifold")
        right.axis("off")
    scatter(axes, points, labels, classes)
    axes.set_title(title)
    files.show(path, partial(axes.figure.savefig, format="png"))


def equilibrium(d_loss_fn: Callable, g_loss_fn: Callable, probability: Callable) -> dict[str, float]:
    """A GAN's curves where samples are as the data are: the best that D can do is one score for both. Where many are
    the best, as any in [-1, 1] is for the hinge loss, D's loss alone.
    """
    scores = torch.linspace(-2, 2, 401)[:, None]
    losses = torch.stack([d_loss_fn(score, score) for score in scores])
    best = scores[losses < losses.min() + 1e-6]
    levels = {"d_loss": losses.min().item()}
    if best.max() - best.min() > 0.1:
        return levels
    score = best.median()[None]
    d = probability(score).item()
    return levels | {"g_loss": g_loss_fn(score).item(), "d_x": d, "d_g_z": d}


def curves(rows: list[dict], path: Path, levels: dict[str, float]) -> None:
    """A PNG with a panel per term, three in a row, and a line per split, of rows such as {"step": 1, "split": "train",
    "loss": 0.5}. levels: values of terms to be marked. The first twentieth of many points may leave the panel.
    """
    from matplotlib.figure import Figure

    terms = dict.fromkeys(key for row in rows for key in row if key not in ("step", "split"))
    columns = min(3, len(terms))
    lines = math.ceil(len(terms) / columns)
    wide, high = 5 * columns, 3 * lines  # inches
    figure = Figure((wide, high))
    # By hand, as layout="constrained" draws all twice: beside each panel, 2.8 x 2.2, there is room for its legend.
    figure.subplots_adjust(0.7 / wide, 0.5 / high, 1 - 1.5 / wide, 1 - 0.3 / high, 2.2 / 2.8, 0.8 / 2.2)
    for i, term in enumerate(terms, 1):
        axes = figure.add_subplot(lines, columns, i, title=term, xlabel="step")
        shown = [row for row in rows if term in row]
        late = []
        for split in dict.fromkeys(row["split"] for row in shown):
            points = [(row["step"], row[term]) for row in shown if row["split"] == split]
            marker = "." if len(points) < 20 else None  # a single point is no line
            axes.plot(*zip(*points, strict=True), marker=marker, label=split)
            late += [value for _, value in points[len(points) // 20 :]]
        if term in levels:
            axes.axhline(levels[term], color="grey", ls=":", label="equilibrium")
            late.append(levels[term])
        margin = (max(late) - min(late)) / 20
        if margin:
            axes.set_ylim(min(late) - margin, max(late) + margin)
        axes.locator_params(axis="x", nbins=5)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
    files.show(path, partial(figure.savefig, format="png"))


def neighbours(h: Tensor, test_h: Tensor, data: images.ImageData, path: Path) -> None:
    """Ten test images, of different classes where they can be, each before its nine nearest training images."""
    one_per_class = [int((data.test_labels == c).nonzero()[0]) for c in data.test_labels.unique()]
    ten = list(dict.fromkeys([*one_per_class, *range(len(test_h))]))[:10]
    similar = F.normalize(test_h[ten], dim=1) @ F.normalize(h, dim=1).T
    nearest = similar.topk(min(9, len(h))).indices.cpu()
    rows = [torch.cat([data.test[i : i + 1], data.train[near]]) for i, near in zip(ten, nearest, strict=True)]
    save_grid(torch.cat(rows) / 255, path, 1 + nearest.shape[1], set_off=(0,))
