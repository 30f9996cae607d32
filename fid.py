"""Fréchet Inception distance (FID) and kernel distance (KID) between two sets of images.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv
1706.08500. Inception-v3 computes 2048 features of each image. A Gaussian N(μ, Σ) is fitted to the features of each
set. The FID is the distance of the two Gaussians,

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)                                                       (eq. 6)

With factors Σ = AᵀA, tr (Σ₁Σ₂)^½ is the sum of the singular values of A₁A₂ᵀ. That sum is real by construction and
exact for singular covariances. A is Cholesky's factor or, for few images, the matrix of centred features.

Differs from the paper: no matrix square root. The weights are the paper's, of 2015-12-05, in pytorch-fid's file.

    python fid.py photos/ generated/               # folders of images, of any sizes and modes
    python fid.py mnist:test runs/vae-mnist        # a data set and 10,000 samples of a run's generator
    python fid.py mnist:test weights/vae.pth --features lenet    # digits: a classifier's features, called FD-LeNet
    python fid.py photos/ --save-stats photos.npz  # mu and sigma, in pytorch-fid's format; later: fid.py photos.npz ...
"""

import contextlib
import importlib
import json
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import common
from plumbing.data.images import DataError, ImageData
from plumbing.judge import inception, lenet, sources
from plumbing.judge.sources import Source, holds_statistics
from plumbing.run import checkpoints
from plumbing.system import files, hardware, ranks

SAMPLES = 10000  # images that a generator draws, unless --n says otherwise


@torch.no_grad()
def features(pictures: Tensor | Iterable, net: nn.Module, batch_size: int = 50) -> Iterator[Tensor]:
    """Yield features (n, D) batch by batch, float32, on the network's device.

    Args:
        pictures: uint8 (N, C, H, W), or an iterable of such batches or of lists of (C, H, W) of any sizes.
        net: inception.load(...), lenet.classifier(...) or encoder(...).
    Raise ValueError for images of another type or number of channels.
    """
    fast = inception.folded(net)
    for part in sources.batches(pictures, batch_size):
        x = inception.network_input(part, net)
        # TF32 would keep only 3 digits.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            h = fast(x)  # (n, D)
        yield h


class Statistics(NamedTuple):
    """Gaussian N(μ, Σ) of the features of a set of images, in float64 on the CPU."""

    mu: Tensor  # (D,)
    factor: Tensor  # A (K, D) with AᵀA = Σ
    n: int | None  # images; None where a file does not say
    features: Tensor | None = None  # (N, D) float32, where they are kept


def statistics(batches: Iterable[Tensor], keep: bool = False) -> Statistics:
    """Compute mean and covariance of features (n, D), batch by batch, in float64.

    Memory holds up to D features and one D x D sum. keep: also all features, (N, D).
    Raise ValueError for fewer than two images and for features that are not finite.
    """
    n, total, outer = 0, 0, 0
    waiting, kept = [], []
    for h in batches:
        if keep:
            kept.append(h.cpu())
        if h.device.type == "mps":  # has no float64
            h = h.cpu()
        waiting.append(h.double())
        n += len(h)
        if sum(map(len, waiting)) > h.shape[1]:
            h = torch.cat(waiting)
            total = total + h.sum(0)  # (D,)
            outer = outer + h.T @ h  # (D, D)
            waiting = [h[:0]]
    if n < 2:
        raise ValueError(f"a covariance needs at least two images, not {n}. Add images")
    h = torch.cat(waiting).cpu()
    mu = (torch.as_tensor(total).cpu() + h.sum(0)) / n
    if not mu.isfinite().all():
        raise ValueError("some features are not finite. Check the network's weights file")
    if n <= h.shape[1]:  # at most as many images as features: all of them still wait in h
        a = (h - mu) / (n - 1) ** 0.5
    else:
        outer = outer.cpu() + h.T @ h
        a = factor((outer - n * mu.outer(mu)) / (n - 1))
    return Statistics(mu, a, n, torch.cat(kept) if keep else None)


def activation_statistics(
    pictures: Tensor | Iterable, net: nn.Module | None = None, batch_size: int = 50
) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and covariance (D, D) of images' features, float64.

    Arguments and errors are those of features() and statistics(). Without `net` it is FID's Inception-v3.
    """
    s = statistics(features(pictures, net or inception.load(), batch_size))
    return s.mu, s.factor.T @ s.factor


def factor(sigma: Tensor, tolerance: float = math.inf) -> Tensor:
    """Return A (K, D) with AᵀA = Σ (D, D).

    A is Cholesky's factor. For a singular Σ it has a row for each eigenvector whose eigenvalue is not zero.
    Negative eigenvalues count as rounding. Raise ValueError for one below -tolerance.
    """
    L, singular = torch.linalg.cholesky_ex(sigma)
    if not singular:
        return L.T
    eigenvalues, V = torch.linalg.eigh(sigma)  # in ascending order
    if eigenvalues[0] < -tolerance:
        raise ValueError(f"this is no covariance: it has the eigenvalue {eigenvalues[0]:.3g}")
    rounding = eigenvalues[-1] * len(sigma) * torch.finfo(sigma.dtype).eps
    keep = eigenvalues > rounding
    return (V[:, keep] * eigenvalues[keep].sqrt()).T


def gaussian(mu, sigma) -> tuple[Tensor, Tensor]:
    """Check a mean (D,) and a covariance (D, D), arrays or tensors. Return (μ, A) in float64, AᵀA = Σ.

    Raise ValueError for other shapes, complex or infinite values, and a Σ with clearly negative eigenvalues.
    """
    mu, sigma = torch.as_tensor(mu).cpu(), torch.as_tensor(sigma).cpu()
    fits = mu.ndim == 1 and sigma.shape == (len(mu), len(mu))
    if not fits or mu.is_complex() or sigma.is_complex():
        shapes = f"{tuple(mu.shape)} {mu.dtype}, {tuple(sigma.shape)} {sigma.dtype}"
        raise ValueError(f"a real mean (D,) and covariance (D, D) are needed, not {shapes}")
    mu, sigma = mu.double(), sigma.double()
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError("the mean or the covariance holds values that are not finite")
    tolerance = 1e-3 * sigma.diag().max() + 1e-9 * mu @ mu
    return mu, factor((sigma + sigma.T) / 2, tolerance)


def frechet_distance(mu1, sigma1, mu2, sigma2) -> float:
    """Compute d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (eq. 6) of N(μ₁, Σ₁) and N(μ₂, Σ₂).

    Means (D,) and covariances (D, D) are arrays or tensors. Raise ValueError as gaussian() and distance() do.
    """
    return distance(*gaussian(mu1, sigma1), *gaussian(mu2, sigma2))


def distance(mu1: Tensor, a1: Tensor, mu2: Tensor, a2: Tensor) -> float:
    """Compute d² (eq. 6) from means (D,) and factors (K, D), Σ = AᵀA.

    With M = A₁A₂ᵀ, the eigenvalues of Σ₁Σ₂ that are not 0 are those of A₁Σ₂A₁ᵀ = MMᵀ. Their roots are the singular
    values of M. Raise ValueError where the two have different numbers of features.
    """
    if mu1.shape != mu2.shape:
        raise ValueError(f"these are different features: {len(mu1)} and {len(mu2)} of them")
    root_trace = torch.linalg.svdvals(a1 @ a2.T).sum()
    trace = (a1**2).sum() + (a2**2).sum() - 2 * root_trace
    return max(0.0, (((mu1 - mu2) ** 2).sum() + trace).item())


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """Sum k(xᵢ, yⱼ) = (xᵢᵀyⱼ / D + 1)³ over all pairs of (N, D) and (M, D), a thousand rows at a time."""
    return sum(((rows @ y.T / y.shape[1] + 1) ** 3).sum().item() for rows in x.split(1000))


def _kernel_mean(x: Tensor) -> float:
    """Average k over all pairs of two different rows of (N, D)."""
    with_itself = ((x**2).sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (_kernel_sum(x, x) - with_itself) / (len(x) * (len(x) - 1))


def kid(features1: Tensor, features2: Tensor) -> float:
    """Compute the squared MMD of features (N, D) and (M, D) under k(x, y) = (xᵀy / D + 1)³.

    The estimate is unbiased and can be below 0. Bińkowski et al. 2018, arXiv 1801.01401. All pairs are used, where
    the paper averages over random subsets. Raise ValueError for fewer than two rows or different D.
    """
    x = torch.as_tensor(features1).cpu().double()
    y = torch.as_tensor(features2).cpu().double()
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        shapes = f"{tuple(x.shape)}, {tuple(y.shape)}"
        raise ValueError(f"features must be (N, D) and (M, D), N and M at least 2, not {shapes}")
    between = _kernel_sum(x, y) / (len(x) * len(y))
    return _kernel_mean(x) + _kernel_mean(y) - 2 * between


Draw = Callable[[int, int], Iterable]  # draw(n, seed) yields uint8 batches (B, C, H, W) of n samples


def image_statistics(
    pictures: Tensor | Iterable, net: nn.Module, name: str, n: int, batch_size: int = 50, keep: bool = False
) -> Statistics:
    """Compute the statistics of n images under a progress bar called `name`. A LeNet's features are kept."""
    batches = features(pictures, net, batch_size)
    steps = math.ceil(n / batch_size)
    batches = files.progress(batches, f"{net.metric}, {name}", steps)
    return statistics(batches, keep or isinstance(net, lenet.LeNet))


def score(net: nn.Module, real: Statistics, draw: Draw, split: str = "test") -> dict[str, object]:
    """Compare 10,000 samples of a generator with the statistics of real images under the same network.

    Return the distance, in an entry such as "fd_lenet", and how it was measured ("fd_lenet_about"). A LeNet adds what
    lenet.classes() returns. split: the part of the data that the real images are from.
    """
    s = image_statistics(draw(SAMPLES, 0), net, "samples", SAMPLES)
    name = net.metric.lower().replace("-", "_")
    about = {"n_real": real.n, "n_generated": s.n, "split": split, "seed": 0}
    scores = {name: distance(real.mu, real.factor, s.mu, s.factor)}
    scores[f"{name}_about"] = sources.provenance(net) | about
    if isinstance(net, lenet.LeNet):
        scores |= lenet.classes(s.features, net)
    return scores


@contextlib.contextmanager
def left_out(name: str) -> Iterator[None]:
    """Print one line instead of a score that cannot be measured here.

    Data may have no classes, samples may not be finite, weights or memory may be missing. Other errors are raised.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.linalg.LinAlgError) or hardware.out_of_memory(error)
        if isinstance(error, RuntimeError) and not known:
            raise
        files.say(f"{name} is left out: {error}", sys.stderr)


class Judge:
    """Judge of a generator: judge(draw) returns the scores of its samples.

    "fd_lenet" is measured where the data have classes. "fid" is measured where torch.hub's cache holds the Inception
    weights and the device is no CPU, on which 20,000 images take minutes. `distance` is the score to choose by, "fid"
    or else "fd_lenet" or else None.

    Args:
        split: "test" compares with data.test, "train" with every tenth image of data.train, to choose by.
    """

    def __init__(self, data: ImageData, data_dir: str, device: torch.device, split="test") -> None:
        self.split = split
        self.real = data.test if split == "test" else data.train[::10]  # uint8 (N, C, H, W)
        self.references = {}  # by score: the network, and the real images' statistics under it
        self.distance = None
        with left_out("fd_lenet"):
            self._add("fd_lenet", lenet.classifier(data, data_dir, device))
        if device.type != "cpu":
            with left_out("fid"):
                self._add("fid", _cached_inception(device))
        if self.references and split == "test":
            sources.warn_if_few("held-out", len(self.real))

    def _add(self, name: str, net: nn.Module) -> None:
        s = image_statistics(self.real, net, f"{self.split} images", len(self.real))
        self.references[name] = (net, s)
        self.distance = name

    def __call__(self, draw: Draw, inception: bool = True) -> dict[str, object]:
        """Return the scores of 10,000 samples. inception: False leaves "fid" out, which takes longer."""
        scores = {}
        for name, (net, real) in self.references.items():
            if inception or name != "fid":
                with left_out(name):
                    scores |= score(net, real, draw, self.split)
        return scores


def _cached_inception(device: torch.device) -> nn.Module:
    return inception.load(download=False).to(device)


# -------------------------------------------------------------------------------------------------------- the command


def read_stats(path: Path) -> Source:
    """Read mu and sigma of an .npz, pytorch-fid's or ours. Raise ValueError where it does not hold them."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, a = gaussian(file["mu"], file["sigma"])
            n, about = sources.read_about(file)
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"{path} does not hold the statistics mu and sigma: {error}") from None
    return Source(str(path), n, statistics=Statistics(mu, a, n), provenance=about)


def write_stats(path: Path, s: Statistics, about: dict) -> None:
    """Write mu and sigma in pytorch-fid's format. `about` is for read_stats. Raise OSError."""
    arrays = {"mu": s.mu.numpy(), "sigma": (s.factor.T @ s.factor).numpy()}
    files.write_whole(path, lambda file: np.savez(file, about=json.dumps(about), **arrays))
    files.say(f"statistics of {about['real']} ({s.n} images) written to {path}", sys.stderr)


def get_args(argv: list[str] | None = None) -> Namespace:
    p = common.Parser(__doc__, "%(prog)s REAL [GENERATED] [flags]")
    real_help = "folder, archive or .npz of images, .npz of statistics, data set, run folder or its weights"
    p.add_argument("real", metavar="REAL", help=real_help)
    generated_help = "as REAL; only --save-stats does without"
    p.add_argument("generated", metavar="GENERATED", nargs="?", help=generated_help)
    add = p.group("flags")
    features_help = "inception, lenet (a classifier of REAL's classes), or a weights file of simclr.py"
    add("--features", metavar="NETWORK", default="inception", help=features_help)
    add("--weights", help="Inception weights (default: torch hub's cache, else the download)")
    add("--n", type=common.number(int, 2), default=SAMPLES, help="samples of a run's generator")
    add("--seed", type=common.natural, default=0, help="seed of these samples")
    kid_help = "also the kernel distance (KID), unbiased for few images; keeps all features"
    add("--kid", action="store_true", help=kid_help)
    stats_help = "write mu and sigma of REAL"
    add("--save-stats", type=sources.new_npz, metavar="FILE.npz", help=stats_help)
    add("--json", action="store_true", help="print the result as JSON")
    add("--batch-size", type=common.count, default=50, help="images at a time")
    device_help = "auto, cuda, mps or cpu"
    add("--device", type=hardware.device_name, default="auto", metavar="NAME", help=device_help)
    add("--data-dir", default="data", help="where data sets and trained classifiers are kept")
    args = p.parse_args(argv)
    if "" in (args.real, args.generated):
        p.error("a name is empty. Name folders, files, data sets or runs")
    if not args.generated and (args.kid or not args.save_stats):
        p.error("GENERATED is missing. Name it too, or use --save-stats without --kid")
    names_file = args.features not in ("inception", "lenet")
    if names_file and not Path(args.features).is_file():
        choices = "Use inception, lenet, or a weights file of simclr.py"
        p.error(f"--features {args.features} is no file. {choices}")
    if args.features != "inception" and args.weights:
        p.error(f"--features {args.features} uses no Inception weights. Leave out --weights")
    if args.features == "lenet" and not sources.is_data_set(args.real):
        p.error("--features lenet needs classes. Name a data set such as mnist:test as REAL")
    if args.save_stats and holds_statistics(args.real):
        p.error(f"{args.real} holds statistics. --save-stats needs images as REAL")
    return args


def encoder(path: Path) -> sources.Encoder:
    """Open the frozen encoder of a weights file of simclr.py."""
    import simclr

    config = checkpoints.load(path, ("simclr",), "trained_on")
    net = simclr.Encoder(simclr.build(config))
    name = f"simclr.py's {config['encoder']}, trained on {config['trained_on']}"
    return sources.Encoder(net, config["image_size"], name, files.sha256(path))


def network(args: Namespace, opened: dict[str, Source], device: torch.device) -> nn.Module | None:
    """Return the network of --features, or None where both sets come as statistics."""
    if args.features == "lenet":
        return lenet.classifier(opened["real"].data, args.data_dir, device)
    if args.features != "inception":
        return encoder(Path(args.features)).to(device)
    if all(source.statistics for source in opened.values()):
        return None
    return inception.load(args.weights).to(device)


def open_source(text: str, args: Namespace, device: torch.device, size: int | None, seed: int) -> Source:
    """Open the statistics, trained generator, data set or images that `text` names.

    A data set is read at `size`. Raise ValueError, DataError and OSError.
    """
    path = Path(text)
    if holds_statistics(text):
        return read_stats(path)
    weights = sources.weights_file(path)
    if not weights:
        return sources.find(text, args.data_dir, args.batch_size, size)
    config = checkpoints.load(weights, sources.GENERATORS, "trained_on")
    script = importlib.import_module(config["script"])
    model = script.build(config).to(device).eval()
    samples = lambda _mode: script.draw_samples(model, args.n, seed)
    return Source(str(weights), args.n, samples, config["image_size"], seed=seed)


def open_both(args: Namespace, device: torch.device) -> dict[str, Source]:
    """Open REAL and GENERATED. A data set is read at the other images' size, up to 64."""
    names = {"real": args.real}
    if args.generated:
        names["generated"] = args.generated
    opened, size = dict.fromkeys(names), None
    for role in sorted(names, key=lambda role: sources.is_data_set(names[role])):  # data sets last
        seed = args.seed + (role == "real")  # one run twice draws different samples
        source = open_source(names[role], args, device, size, seed)
        if args.kid and source.statistics:
            raise ValueError(f"{source.name} holds statistics. Without --kid they can be used")
        if source.size and source.size <= 64:
            size = source.size
        opened[role] = source
    sources.warn_if_unlike(opened.values())
    return opened


def compare(args: Namespace, device: torch.device) -> dict[str, object]:
    """Measure the distance of REAL and GENERATED. Return the result as --json prints it."""
    opened = open_both(args, device)
    net = network(args, opened, device)
    result = {"value": None, **sources.common_provenance(opened, net)}
    result |= {"split": opened["real"].split, "seed": None}

    gaussians = {}
    for role, source in opened.items():
        s = source.statistics
        if not s:
            pictures = source.pictures(net.mode)
            s = image_statistics(pictures, net, source.name, source.n, args.batch_size, args.kid)
        sources.warn_if_few(source.name, s.n)
        result |= source.facts(role, s.n)
        gaussians[role] = s
        if args.save_stats and role == "real":  # before anything can go wrong with GENERATED
            about = {"n": s.n, "real": source.name, "made_by": sources.provenance(net)}
            write_stats(args.save_stats, s, about)
    if not args.generated:
        return result
    real, fake = gaussians["real"], gaussians["generated"]
    result["value"] = distance(real.mu, real.factor, fake.mu, fake.factor)
    if args.kid:
        result["kid"] = kid(real.features, fake.features)
    if args.features == "lenet" and fake.features is not None:
        result |= lenet.classes(fake.features, net)
    return result


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    with common.running(args) as device:
        ranks.leave()  # one process is enough
        try:
            result = compare(args, device)
        except (ValueError, OSError, DataError) as error:
            common.fail(error)
    if args.json:
        print(json.dumps(result))
    elif args.generated:
        print(f"{result.pop('metric')}: {result.pop('value'):.6g}", end="")
        for name, value in result.items():
            if value is not None:
                print(f" | {name} {value}", end="")
        print()


if __name__ == "__main__":
    common.program(main)
