"""Fréchet Inception distance, and KID, between two sets of images.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv
1706.08500. Inception-v3 gives 2048 features per image, a Gaussian N(μ, Σ) is fitted to those of each set, and

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)                                                       (eq. 6)

is their distance. With factors Σ = AᵀA, tr (Σ₁Σ₂)^½ is the sum of the singular values of A₁A₂ᵀ: real by
construction, exact for singular covariances. A is Cholesky's factor or, for few images, the centred features.

Differs from the paper: no matrix square root. The weights are its own (TensorFlow, 2015-12-05), in pytorch-fid's file.

    python fid.py photos/ generated/               # folders of images, of any sizes and modes
    python fid.py mnist:test runs/vae-mnist-technion-z10         # a data set and 10,000 samples of a run's generator
    python fid.py mnist:test weights/vae.pth --features lenet    # digits: a classifier's features, called FD-LeNet
    python fid.py photos/ --save-stats photos.npz  # mu and sigma, in pytorch-fid's format; later: fid.py photos.npz ...
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import common
from plumbing.data import images
from plumbing.judge import inception, lenet, sources
from plumbing.system import files, hardware, ranks

FEW = 2048  # images below which the distance is too biased to compare
SAMPLES = 10000  # drawn from a generator, unless --n says otherwise


def say(text: str) -> None:
    """Standard output is for the result."""
    files.say(text, sys.stderr)


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = common.Parser(__doc__, "%(prog)s REAL [GENERATED] [flags]")
    what = "images (folder, zip, .npz), .npz of statistics, data set such as mnist:test, run folder or its weights file"
    p.add_argument("real", metavar="REAL", help=what)
    p.add_argument("generated", metavar="GENERATED", nargs="?", help="the same; only --save-stats does without")
    add = p.add_argument
    features_help = "inception; lenet, a classifier of REAL's classes; or a weights file of simclr.py"
    add("--features", metavar="NETWORK", default="inception", help=features_help)
    add("--weights", help="Inception weights (default: torch hub's cache, else the download)")
    add("--n", type=common.number(int, 2), default=SAMPLES, help="samples that are drawn from a run's generator")
    add("--seed", type=common.number(int, 0), default=0, help="seed of these samples")
    kid_help = "also the kernel distance (KID), unbiased for few images; keeps all features"
    add("--kid", action="store_true", help=kid_help)
    add("--save-stats", metavar="FILE.npz", help="write mu and sigma of REAL")
    add("--json", action="store_true", help="print the result as JSON")
    add("--batch-size", type=common.number(int, 1), default=50, help="images at a time")
    add("--device", type=hardware.device_name, default="auto", metavar="NAME", help="auto, cuda, mps or cpu")
    add("--data-dir", default="data", help="where data sets and trained classifiers are kept")
    args = p.parse_args(argv)
    if "" in (args.real, args.generated):
        p.error("a name is empty")
    if not args.generated and (args.kid or not args.save_stats):
        p.error("name the generated images too" + ", or a file with --save-stats" * (not args.kid))
    return args


def _scaled(x: Tensor | list[Tensor], net: nn.Module) -> Tensor:
    """A uint8 batch, or a list of images of several sizes, as floats in [0, 1] on the network's device."""
    if isinstance(x, list):
        return torch.cat([net.resize(_scaled(one[None], net)) for one in x])
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise ValueError(f"images must be uint8 of shape (N, C, H, W), not {x.dtype} of shape {tuple(x.shape)}")
    channels = len(net.mode)
    if x.shape[1] not in (1, channels):
        raise ValueError(f"{net.metric} takes images of {channels} channel(s) here, not of {x.shape[1]}")
    x = x.to(next(net.parameters()).device).float() / 255
    return x.expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last)


def _parts(pictures: Tensor | Iterable, batch_size: int) -> Iterator[Tensor | list[Tensor]]:
    """Tensors of at most batch_size images, and lists as they come."""
    if isinstance(pictures, Tensor):
        pictures = [pictures]
    for x in pictures:
        if isinstance(x, list):
            yield x
        else:
            yield from x.split(batch_size)


@torch.no_grad()
def features(pictures: Tensor | Iterable, net: nn.Module, batch_size: int = 50) -> Iterator[Tensor]:
    """Features (n, D) of batch after batch, float32, on the network's device.

    Args:
        pictures: uint8 (N, C, H, W); or an iterator of such batches or of lists of (C, H, W), sizes free.
        net: inception.load(...) or lenet.classifier(...).
    """
    fast = inception.folded(net)
    for part in _parts(pictures, batch_size):
        x = _scaled(part, net)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 keeps 3 digits
            h = fast(x)
        yield h


class Statistics(NamedTuple):
    """The Gaussian of a set of images, in float64 on the CPU."""

    mu: Tensor  # (D,)
    factor: Tensor  # (K, D): its Gram matrix, factorᵀ factor, is Σ
    n: int | None  # images; None where a file does not say
    features: Tensor | None = None  # (N, D) float32, where they are kept


def statistics(batches: Iterable[Tensor], keep: bool = False) -> Statistics:
    """Mean and covariance of features (n, D), streamed: up to D of them, and a D x D sum, are in memory.

    keep: the features too, in memory that does grow with their number. Raises ValueError for less than two images and
    for features that are not finite.
    """
    n, total, outer = 0, 0, 0
    waiting, kept = [], []
    for h in batches:
        if keep:
            kept.append(h.cpu())
        if h.device.type == "mps":  # which has no float64
            h = h.cpu()
        waiting.append(h.double())
        n += len(h)
        if sum(map(len, waiting)) > h.shape[1]:
            h = torch.cat(waiting)
            total, outer = total + h.sum(0), outer + h.T @ h
            waiting = [h[:0]]
    if n < 2:
        raise ValueError(f"a covariance needs at least two images; there are {n}")
    h = torch.cat(waiting).cpu()
    few = n <= h.shape[1]  # no more images than features: these, centred, are the factor
    mu = h.sum(0) / n if few else (torch.as_tensor(total).cpu() + h.sum(0)) / n
    if not mu.isfinite().all():
        raise ValueError("there are features that are not finite: are these the right weights?")
    if few:
        a = (h - mu) / (n - 1) ** 0.5
    else:
        outer = torch.as_tensor(outer).cpu() + h.T @ h
        a = factor((outer - n * mu.outer(mu)) / (n - 1))
    return Statistics(mu, a, n, torch.cat(kept) if keep else None)


def activation_statistics(
    pictures: Tensor | Iterable, net: nn.Module | None = None, batch_size: int = 50
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of images' features, float64. Arguments and errors as of features() and
    statistics()."""
    s = statistics(features(pictures, net or inception.load(), batch_size))
    return s.mu, s.factor.T @ s.factor


def factor(sigma: Tensor, tolerance: float = math.inf) -> Tensor:
    """A (K, D) with AᵀA = Σ: Cholesky's, or, where Σ is singular, its eigenvectors of eigenvalues that are not zero.

    Negative eigenvalues are taken for rounding; below -tolerance they raise ValueError.
    """
    L, singular = torch.linalg.cholesky_ex(sigma)
    if not singular:
        return L.T
    eigenvalues, V = torch.linalg.eigh(sigma)
    if eigenvalues[0] < -tolerance:
        raise ValueError(f"this is no covariance: it has the eigenvalue {eigenvalues[0]:.3g}")
    keep = eigenvalues > eigenvalues[-1] * len(sigma) * torch.finfo(sigma.dtype).eps  # the others are rounding, too
    return (V[:, keep] * eigenvalues[keep].sqrt()).T


def gaussian(mu, sigma) -> tuple[Tensor, Tensor]:
    """(μ, A) in float64 of a mean (D,) and a covariance (D, D), arrays or tensors, once they are known to be that."""
    mu, sigma = torch.as_tensor(mu).cpu(), torch.as_tensor(sigma).cpu()
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or mu.is_complex() or sigma.is_complex():
        shapes = f"{tuple(mu.shape)} {mu.dtype}, {tuple(sigma.shape)} {sigma.dtype}"
        raise ValueError(f"a real mean (D,) and covariance (D, D) are needed, not {shapes}")
    mu, sigma = mu.double(), sigma.double()
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError("the mean or the covariance holds values that are not finite")
    return mu, factor((sigma + sigma.T) / 2, 1e-3 * sigma.diag().max() + 1e-9 * mu @ mu)


def frechet_distance(mu1, sigma1, mu2, sigma2) -> float:
    """d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) (eq. 6) of N(μ₁, Σ₁) and N(μ₂, Σ₂): means (D,), covariances (D, D).

    Arrays or tensors. Raises ValueError for shapes that do not match, values that are not finite, no covariance.
    """
    return distance(*gaussian(mu1, sigma1), *gaussian(mu2, sigma2))


def distance(mu1: Tensor, a1: Tensor, mu2: Tensor, a2: Tensor) -> float:
    """The same from means (D,) and factors (K, D), Σ = AᵀA. Raises ValueError for features of another number.

    Σ₁Σ₂ has the eigenvalues, but for zeros, of A₁Σ₂A₁ᵀ = MMᵀ with M = A₁A₂ᵀ: their roots are the singular values of M.
    """
    if mu1.shape != mu2.shape:
        raise ValueError(f"these are different features: {len(mu1)} and {len(mu2)} of them")
    trace = (a1**2).sum() + (a2**2).sum() - 2 * torch.linalg.svdvals(a1 @ a2.T).sum()
    return max(0.0, (((mu1 - mu2) ** 2).sum() + trace).item())


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """Σ k(xᵢ, yⱼ) over all pairs of (N, D) and (M, D), a thousand rows at a time; k(x, y) = (xᵀy / D + 1)³."""
    return sum(((rows @ y.T / y.shape[1] + 1) ** 3).sum().item() for rows in x.split(1000))


def _kernel_mean(x: Tensor) -> float:
    """Mean of k over all pairs of two different rows of (N, D)."""
    with_itself = ((x**2).sum(1) / x.shape[1] + 1).pow(3).sum().item()
    return (_kernel_sum(x, x) - with_itself) / (len(x) * (len(x) - 1))


def kid(features1: Tensor, features2: Tensor) -> float:
    """Squared MMD of two sets of features, (N, D) and (M, D), under k(x, y) = (xᵀy / D + 1)³: unbiased, also below 0.

    Bińkowski et al. 2018, arXiv 1801.01401. All pairs, where the paper and others average over random subsets. Raises
    ValueError for less than two of either.
    """
    x, y = torch.as_tensor(features1).cpu().double(), torch.as_tensor(features2).cpu().double()
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D), N and M at least 2: {tuple(x.shape)}, {tuple(y.shape)}")
    return _kernel_mean(x) + _kernel_mean(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def holds_statistics(path: Path) -> bool:
    """Whether it is an .npz of mu and sigma, and not of images."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {"mu", "sigma"} <= set(file.files)
    except Exception:  # no such file, an .npy, a damaged one: whoever reads it says what is wrong
        return False


def _about(file: Any) -> tuple[int | None, dict | None]:
    """(number of images, what made their features) where we have written it into an .npz."""
    try:
        about = json.loads(str(file["about"]))
        return about["n"], about["made_by"]
    except (KeyError, TypeError, ValueError):  # somebody else's file
        return None, None


def read_stats(path: Path) -> sources.Source:
    """mu and sigma of an .npz, pytorch-fid's or ours."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, a = gaussian(file["mu"], file["sigma"])
            n, made_by = _about(file)
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"{path} does not hold the statistics mu and sigma: {error}") from None
    return sources.Source(str(path), n, known=Statistics(mu, a, n), made_by=made_by)


def write_stats(path: Path, s: Statistics, about: dict) -> None:
    """In pytorch-fid's format; `about` is for read_stats."""
    arrays = {"mu": s.mu.numpy(), "sigma": (s.factor.T @ s.factor).numpy(), "about": json.dumps(about)}
    files.write_whole(path, lambda file: np.savez(file, **arrays))
    say(f"statistics of {about['real']} ({s.n} images) written to {path}")


def made_by(net: nn.Module) -> dict[str, str]:
    """What has to be equal for two sets of features to be compared, and has to stand beside every distance."""
    about = {"metric": net.metric, "features": net.features, "resize": net.resized}
    return about | {"dtype": "float32", "weights_sha256": net.sha256}


def warn_if_few(name: str, n: int | None, hint: str = "") -> None:
    if n and n < FEW:
        say(f"WARNING: {name}: {n} images; with less than {FEW:,} the distance is biased upwards{hint}")


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that do not go together."""
    if args.features not in ("inception", "lenet") and not Path(args.features).is_file():
        raise ValueError(f"--features {args.features}: inception, lenet, or a weights file of simclr.py is needed")
    if args.features != "inception" and args.weights:
        raise ValueError(f"--weights are for Inception features, not for --features {args.features}")
    if args.features == "lenet" and not sources.is_data_set(args.real):
        raise ValueError("--features lenet needs a data set with classes as REAL, such as mnist:test")
    if args.save_stats:
        out = Path(args.save_stats)
        if out.suffix != ".npz" or out.exists() or not out.parent.is_dir() or holds_statistics(Path(args.real)):
            raise ValueError(
                f"--save-stats {out}: a new file.npz in a folder that exists is needed, and images as REAL"
            )


def find_both(args: argparse.Namespace, device: torch.device) -> dict[str, sources.Source]:
    """Who is compared, "real" first: a data set at the size of the other images, where these are small squares."""
    named = {"real": args.real, "generated": args.generated}
    if not args.generated:
        del named["generated"]
    seeds = {"real": args.seed + 1, "generated": args.seed}  # two runs, or one twice, draw different samples
    found, size = {}, None
    for role in sorted(named, key=lambda role: sources.is_data_set(named[role])):  # data sets last
        if holds_statistics(Path(named[role])):
            found[role] = read_stats(Path(named[role]))
            continue
        found[role] = sources.find(named[role], args, device, size, seeds[role])
        if (found[role].size or math.inf) <= 64:
            size = found[role].size
    with_images = [source for source in found.values() if not source.known]
    if args.kid and len(with_images) < len(found):
        raise ValueError("--kid needs images, not statistics")
    for source in with_images:
        if source.data and any(other.size != source.size for other in with_images):
            read_at = f"read at {source.size} x {source.size}"
            say(f"WARNING: {source.name}, {read_at}, is compared with images of other sizes")
    if len({source.depth.partition(": ")[2] for source in with_images if source.depth}) > 1:
        say("WARNING: the two sets have more than 8 bits and are not scaled alike: the largest value of each decides")
    return {role: found[role] for role in named}


def network(args: argparse.Namespace, found: dict[str, sources.Source], device: torch.device) -> nn.Module | None:
    """What makes the features; nothing where both sets come as statistics."""
    if args.features == "lenet":
        return lenet.classifier(found["real"].data, args.data_dir, device)
    if args.features != "inception":
        return sources.Encoder(args.features).to(device)
    if all(source.known for source in found.values()):
        return None
    return inception.load(args.weights).to(device)


def origin(found: dict[str, sources.Source], net: nn.Module | None) -> dict[str, str]:
    """What the features are of: one answer for both sets or, where a file does not say, one for each that is known.

    Raises ValueError for features that are known to differ.
    """
    origins = {role: source.made_by if source.known else made_by(net) for role, source in found.items()}
    known = {role: about for role, about in origins.items() if about}
    abouts = list(known.values())
    if any(about != abouts[0] for about in abouts):
        raise ValueError(f"these features are not comparable: {' and '.join(map(str, abouts))}")
    if len(known) == len(found):
        return origins["real"]
    silent = [source.name for role, source in found.items() if role not in known]
    about = {"metric": "Fréchet distance", "features": f"unknown: {' and '.join(silent)} does not say what it is of"}
    for role, facts in known.items():
        about |= {f"{key}_{role}": value for key, value in facts.items()}
    return about


def compare(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """The result of the command, as --json prints it."""
    check(args)
    found = find_both(args, device)
    net = network(args, found, device)
    seeds = [source.seed for source in reversed(found.values()) if source.seed is not None]  # GENERATED's first
    result = {"value": None, **origin(found, net)}
    result |= {"split": found["real"].split, "seed": seeds[0] if seeds else None}

    gaussians = {}
    for role, source in found.items():
        s = source.known
        if not s:
            batches = features(source.pictures(net.mode), net, args.batch_size)
            s = statistics(
                _shown(batches, net, source.name, source.n, args.batch_size), keep=args.kid or args.features == "lenet"
            )
        warn_if_few(source.name, s.n, "" if args.kid or source.known else "; --kid adds a measure without bias")
        result |= {role: source.name, f"n_{role}": s.n, f"size_{role}": source.size}
        if source.n_other_sizes:
            result[f"n_other_sizes_{role}"] = source.n_other_sizes
        if source.depth:
            result[f"depth_{role}"] = source.depth
        gaussians[role] = s
        if args.save_stats and role == "real":  # before anything can go wrong with GENERATED
            write_stats(Path(args.save_stats), s, {"n": s.n, "real": source.name, "made_by": made_by(net)})
    if args.generated:
        real, fake = gaussians["real"], gaussians["generated"]
        result["value"] = distance(real.mu, real.factor, fake.mu, fake.factor)
        if args.kid:
            result["kid"] = kid(real.features, fake.features)
        if args.features == "lenet" and fake.features is not None:
            result |= lenet.classes(fake.features, net)
    return result


Draw = Callable[[int, int], Iterable]  # (n, seed) -> uint8 batches of n samples


def _shown(batches: Iterable[Tensor], net: nn.Module, what: str, n: int, batch_size: int = 50) -> Iterable[Tensor]:
    return files.progress(batches, f"{net.metric}, {what}", math.ceil(n / batch_size))


def judge(net: nn.Module, real: Tensor, split: str = "test") -> Callable[[Draw], dict[str, object]]:
    """A function that measures a generator's samples against uint8 images (N, C, H, W), whose statistics are taken
    once."""
    classifies = isinstance(net, lenet.LeNet)
    key = net.metric.lower().replace("-", "_")
    target = statistics(_shown(features(real, net), net, f"{split} images", len(real)))

    def measure(draw: Draw) -> dict[str, object]:
        h = _shown(features(draw(SAMPLES, 0), net), net, "samples", SAMPLES)
        s = statistics(h, keep=classifies)
        about = made_by(net) | {"n_real": target.n, "n_generated": s.n, "split": split, "seed": 0}
        value = distance(target.mu, target.factor, s.mu, s.factor)
        return {key: value, f"{key}_about": about} | (lenet.classes(s.features, net) if classifies else {})

    return measure


def _tried(key: str, function: Callable, *given):
    """function(*given); or None and a line that says why: no labels, no weights, a classifier that cannot be kept,
    samples that are not finite or have no eigenvalues, too little memory. What else is raised is a defect.
    """
    try:
        return function(*given)
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        meant = hardware.out_of_memory(error) or isinstance(error, torch.linalg.LinAlgError)
        if isinstance(error, RuntimeError) and not meant:
            raise
        say(f"{key} is left out: {error}")
        return None


def judges(data: images.ImageData, data_dir: str, device: torch.device, split="test") -> dict[str, Callable]:
    """What can measure samples here: "fd_lenet" where the data have classes, "fid" where the Inception weights are in
    torch hub's cache and the device is no CPU, on which 20,000 images take minutes. Against data.test; with split
    "train", to choose by, against every tenth image of data.train.
    """
    real = data.test if split == "test" else data.train[::10]
    makers = {"fd_lenet": lambda: judge(lenet.classifier(data, data_dir, device), real, split)}
    if device.type != "cpu":
        makers["fid"] = lambda: judge(inception.load(download=False).to(device), real, split)
    made = {key: _tried(key, make) for key, make in makers.items()}
    found = {key: measure for key, measure in made.items() if measure}
    if found and split == "test":
        warn_if_few("held-out", len(data.test))
    return found


def measured(draw: Draw, by: dict[str, Callable]) -> dict[str, object]:
    """What judges(...) say of a generator's samples."""
    results = {}
    for key, measure in by.items():
        results |= _tried(key, measure, draw) or {}
    return results


def report(results: dict, data: images.ImageData, args: argparse.Namespace, run: Path) -> dict[str, object]:
    """What was measured of a trained generator, and a line that says how to measure its FID where it was not."""
    if "fid" not in results:
        command = ["fid.py", f"{data.source}:test", str(run)]
        if args.data_dir != "data":
            command += ["--data-dir", args.data_dir]
        files.say(f"FID is measured by: python {shlex.join(command)}")
    return results


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    with common.running(args) as device:
        ranks.leave()  # one process is enough
        try:
            result = compare(args, device)
        except (ValueError, OSError, images.DataError) as error:
            common.fail(error)
    if args.json:
        print(json.dumps(result))
    elif args.generated:
        facts = [f"{k} {v}" for k, v in result.items() if k not in ("metric", "value") and v is not None]
        print(f"{result['metric']}: {result['value']:.6g}", *facts, sep=" | ")


if __name__ == "__main__":
    main()
