"""Fréchet Inception distance, and KID, between two sets of images.

Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv
1706.08500. Inception-v3 gives 2048 features per image, a Gaussian N(μ, Σ) is fitted to those of each set, and

    d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)                                                       (eq. 6)

is their distance. With factors Σ = AᵀA the last trace is the sum of the singular values of A₁A₂ᵀ: real by
construction, exact for singular covariances. A is Cholesky's factor or, for few images, the centred features.

Differs from the paper: no matrix square root. The weights are its own (TensorFlow, 2015-12-05), in pytorch-fid's file.

    python fid.py photos/ generated/               # folders of images, of any sizes and modes
    python fid.py mnist:test runs/vae-mnist-tsinghua-z10         # a data set and 10,000 samples of a run's generator
    python fid.py mnist:test weights/vae.pth --features lenet    # digits: a classifier's features, called FD-LeNet
    python fid.py photos/ --save-stats photos.npz  # mu and sigma, in pytorch-fid's format; later: fid.py photos.npz ...
"""

import argparse
import importlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import common
from plumbing import files, hardware, images, inception, lenet, ranks

GENERATORS = ("vae", "gan_mnist", "dcgan")  # scripts with build() and draw()
WEIGHTS = ("vae.pth", "generator.pth")  # what they leave in a run folder
FEW = 2048  # images below which the distance is too biased to compare
SAMPLES = 10000  # drawn from a generator, unless --n says otherwise


def say(text: str) -> None:
    """Standard output is for the result."""
    print(text, file=sys.stderr, flush=True)


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = common.Parser(description=__doc__, formatter_class=common.HelpFormatter)
    what = "folder of images, .npz of statistics, data set such as mnist:test, or run folder (or its weights file)"
    p.add_argument("real", metavar="REAL", help=what)
    p.add_argument("generated", metavar="GENERATED", nargs="?", help="the same; only --save-stats does without")
    add = p.add_argument
    add("--features", choices=["inception", "lenet"], default="inception", help="lenet: a classifier of REAL's classes")
    add("--weights", help="Inception weights (default: torch hub's cache, else the download)")
    add("--n", type=common.number(int, 2), default=SAMPLES, help="samples that are drawn from a run's generator")
    add("--seed", type=common.number(int, 0), default=0, help="seed of these samples")
    kid_help = "also the kernel distance (KID), unbiased for few images; keeps all features"
    add("--kid", action="store_true", help=kid_help)
    add("--save-stats", metavar="FILE.npz", help="write mu and sigma of REAL")
    add("--json", action="store_true", help="print the result as JSON")
    add("--batch-size", type=common.number(int, 1), default=50, help="images at a time")
    add("--device", type=hardware.device_name, default="auto", metavar=hardware.DEVICES, help="where to compute")
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
    """Mean (D,) and covariance (D, D) of images' features, float64. Arguments as of features()."""
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
    """d² = ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of N(μ₁, Σ₁) and N(μ₂, Σ₂): means (D,), covariances (D, D).

    Arrays or tensors. Raises ValueError for shapes that do not match, values that are not finite, no covariance.
    """
    return distance(*gaussian(mu1, sigma1), *gaussian(mu2, sigma2))


def distance(mu1: Tensor, a1: Tensor, mu2: Tensor, a2: Tensor) -> float:
    """The same from factors, Σ = AᵀA, of any number of rows.

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

    Bińkowski et al. 2018, arXiv 1801.01401. All pairs, where the paper and others average over random subsets.
    """
    x, y = torch.as_tensor(features1).cpu().double(), torch.as_tensor(features2).cpu().double()
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D), N and M at least 2: {tuple(x.shape)}, {tuple(y.shape)}")
    return _kernel_mean(x) + _kernel_mean(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


class Source(NamedTuple):
    """One of the two sets of images."""

    name: str
    n: int | None  # images, broken ones among them; None where a file does not say
    pictures: Callable[[str], Tensor | Iterable] | None = None  # by mode, "L" or "RGB"
    size: int | None = None  # side of the images, where they are squares of one size
    split: str | None = None
    data: images.ImageData | None = None
    seed: int | None = None  # of samples
    known: Statistics | None = None  # from an .npz
    made_by: dict | None = None  # what an .npz of ours says of the features


def is_data_set(text: str) -> bool:
    return text.endswith((":train", ":test")) and not Path(text).exists()


def find(text: str, args: argparse.Namespace, device: torch.device, size: int | None, seed: int) -> Source:
    """The images that an argument means; a data set is read at `size`, where that is given."""
    path = Path(text)
    if path.suffix == ".npz":
        return read_stats(path)
    if is_data_set(text):
        name, _, split = text.rpartition(":")
        data = images.load_images(name, "", args.data_dir, size or {"mnist": 28}.get(name))
        x = data.train if split == "train" else data.test
        return Source(text, len(x), lambda _: x, x.shape[-1], split, data)
    candidates = [path] if path.suffix == ".pth" else [path / name for name in WEIGHTS]
    weights = [file for file in candidates if file.is_file()]
    if weights:
        state = common.load(weights[0], GENERATORS, "trained_on")
        script = importlib.import_module(state["script"])
        model = script.build(state).to(device).eval()
        return Source(
            str(weights[0]), args.n, lambda _: script.draw(model, args.n, seed), state["image_size"], seed=seed
        )
    if (path / "config.json").exists():
        raise ValueError(f"{text} is a run folder, but holds no {' or '.join(WEIGHTS)}")
    if path.is_dir():
        names = images.image_files(path)
        pictures = partial(images.folder_images, path, batch_size=args.batch_size)
        return Source(text, len(names), pictures, images.small_side(path / names[0]))
    if path.exists():
        raise ValueError(f"{text} is neither a folder of images nor an .npz of statistics")
    raise ValueError(f"there is no {text}; a data set is named with its split, such as mnist:test")


def read_stats(path: Path) -> Source:
    """mu and sigma of an .npz, pytorch-fid's or ours."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, a = gaussian(file["mu"], file["sigma"])
            about = json.loads(str(file["about"])) if "about" in file else {"n": None, "made_by": None}
            n, made_by = about["n"], about["made_by"]
    except Exception as error:  # a damaged or foreign file can raise anything
        raise ValueError(f"{path} does not hold the statistics mu and sigma: {error}") from None
    return Source(str(path), n, known=Statistics(mu, a, n), made_by=made_by)


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
    if args.features == "lenet" and args.weights:
        raise ValueError("--weights are for Inception features, not for --features lenet")
    if args.features == "lenet" and not is_data_set(args.real):
        raise ValueError("--features lenet needs a data set with classes as REAL, such as mnist:test")
    if args.save_stats:
        out = Path(args.save_stats)
        if out.suffix != ".npz" or out.exists() or not out.parent.is_dir() or args.real.endswith(".npz"):
            raise ValueError(
                f"--save-stats {out}: a new file.npz in a folder that exists is needed, and images as REAL"
            )


def find_both(args: argparse.Namespace, device: torch.device) -> dict[str, Source]:
    """Who is compared, "real" first: a data set at the size of the other images, where these are small squares."""
    named = {"real": args.real, "generated": args.generated}
    if not args.generated:
        del named["generated"]
    seeds = {"real": args.seed + 1, "generated": args.seed}  # two runs, or one twice, draw different samples
    found, size = {}, None
    for role in sorted(named, key=lambda role: is_data_set(named[role])):  # data sets last
        found[role] = find(named[role], args, device, size, seeds[role])
        if not found[role].data:
            size = found[role].size or size
    sources = [source for source in found.values() if not source.known]
    if args.kid and len(sources) < len(found):
        raise ValueError("--kid needs images, not statistics")
    for source in sources:
        if source.data and any(other.size != source.size for other in sources):
            read_at = f"read at {source.size} x {source.size}"
            say(f"WARNING: {source.name}, {read_at}, is compared with images of other sizes")
    return {role: found[role] for role in named}


def network(args: argparse.Namespace, sources: dict[str, Source], device: torch.device) -> nn.Module | None:
    """What makes the features; nothing where both sets come as statistics."""
    if args.features == "lenet":
        return lenet.classifier(sources["real"].data, args.data_dir, device)
    if all(source.known for source in sources.values()):
        return None
    return inception.load(args.weights).to(device)


def compare(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """The result of the command, as --json prints it."""
    check(args)
    sources = find_both(args, device)
    net = network(args, sources, device)
    origins = [source.made_by for source in sources.values() if source.made_by]
    if net:
        origins.append(made_by(net))
    if any(origin != origins[0] for origin in origins):
        raise ValueError(f"these features are not comparable: {' and '.join(map(str, origins))}")
    unknown = {"metric": "Fréchet distance", "features": "of .npz files that do not say which"}
    seeds = [source.seed for source in reversed(sources.values()) if source.seed is not None]  # GENERATED's first
    result = {"value": None} | (origins[0] if origins else unknown)
    result |= {"split": sources["real"].split, "seed": seeds[0] if seeds else None}

    gaussians = {}
    for role, source in sources.items():
        s = source.known
        if not s:
            batches = features(source.pictures(net.mode), net, args.batch_size)
            batches = files.progress(batches, source.name, math.ceil(source.n / args.batch_size))
            s = statistics(batches, keep=args.kid or args.features == "lenet")
        warn_if_few(source.name, s.n, "" if args.kid or source.known else "; --kid adds a measure without bias")
        result |= {role: source.name, f"n_{role}": s.n, f"size_{role}": source.size}
        gaussians[role] = s
        if args.save_stats and role == "real":  # before anything can go wrong with GENERATED
            write_stats(Path(args.save_stats), s, {"n": s.n, "real": source.name, "made_by": origins[0]})
    if args.generated:
        real, fake = gaussians["real"], gaussians["generated"]
        result["value"] = distance(real.mu, real.factor, fake.mu, fake.factor)
        if args.kid:
            result["kid"] = kid(real.features, fake.features)
        if args.features == "lenet" and fake.features is not None:
            result |= lenet.classes(fake.features, net)
    return result


Draw = Callable[[int, int], Iterable]  # (n, seed) -> uint8 batches of n samples


def judge(net: nn.Module, real: Tensor) -> Callable[[Draw], dict[str, object]]:
    """A function that measures a generator's samples against held-out images, whose statistics are taken once."""
    classifies = isinstance(net, lenet.LeNet)
    key = net.metric.lower().replace("-", "_")
    target = statistics(features(real, net))

    def measure(draw: Draw) -> dict[str, object]:
        s = statistics(features(draw(SAMPLES, 0), net), keep=classifies)
        about = made_by(net) | {"n_real": target.n, "n_generated": s.n, "split": "test", "seed": 0}
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


def judges(data: images.ImageData, data_dir: str, device: torch.device) -> dict[str, Callable[[Draw], dict]]:
    """What can measure samples against data.test here: "fd_lenet" where the data have classes, "fid" where the
    Inception weights are in torch hub's cache and the device is no CPU, which would take minutes.
    """
    makers = {"fd_lenet": lambda: judge(lenet.classifier(data, data_dir, device), data.test)}
    if device.type != "cpu":
        makers["fid"] = lambda: judge(inception.load(download=False).to(device), data.test)
    made = {key: _tried(key, make) for key, make in makers.items()}
    found = {key: measure for key, measure in made.items() if measure}
    if found:
        warn_if_few("held-out", len(data.test))
    return found


def measured(draw: Draw, by: dict[str, Callable]) -> dict[str, object]:
    """What judges(...) say of a generator's samples."""
    results = {}
    for key, measure in by.items():
        results |= _tried(key, measure, draw) or {}
    return results


def warn_if_collapsed(step: int, seen: dict[str, object]) -> None:
    if "class_entropy" in seen:
        entropy, most = seen["class_entropy"], math.log(len(seen["class_histogram"]))
        if entropy < min(1, most / 2):
            print(f"WARNING: step {step}: mode collapse, class entropy {entropy:.2f} nats of {most:.2f}")


def report(results: dict, data: images.ImageData, data_dir: str, run: Path) -> dict[str, object]:
    """What was measured of a trained generator; where the FID is not in it, a line says how to get it."""
    if "fid" not in results:
        elsewhere = f" --data-dir {shlex.quote(data_dir)}" if data_dir != "data" else ""
        print(f"FID is measured by: python fid.py {shlex.quote(data.source)}:test {shlex.quote(str(run))}{elsewhere}")
    return results


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    device = common.setup(args)
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
