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
import copy
import hashlib
import importlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.models import inception as tv

import common
import images
import ranks
import run_folder

NAME, SHA256 = "pt_inception-2015-12-05-6726825d.pth", "6726825d"  # of the file; the hash's first digits
URLS = [
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}",
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME.replace('pt_', 'weights-')}",  # the same
]
GENERATORS = ("vae", "gan_mnist", "dcgan")  # scripts with build() and draw()
WEIGHTS = ("vae.pth", "generator.pth")  # what they leave in a run folder
FEW = 2048  # images below which the distance is too biased to compare
SAMPLES = 10000  # drawn from a generator, unless --n says otherwise
say = lambda text: print(text, file=sys.stderr, flush=True)  # standard output is for the result


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
    add(
        "--kid", action="store_true", help="also the kernel distance (KID), unbiased for few images; keeps all features"
    )
    add("--save-stats", metavar="FILE.npz", help="write mu and sigma of REAL")
    add("--json", action="store_true", help="print the result as JSON")
    add("--batch-size", type=common.number(int, 1), default=50, help="images at a time")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help="where to compute")
    add("--bf16", action="store_true", help="bfloat16 features: twice as fast, not comparable with others' figures")
    add("--data-dir", default="data", help="where data sets and trained classifiers are kept")
    args = p.parse_args(argv)
    if "" in (args.real, args.generated):
        p.error("a name is empty")
    if not args.generated and (args.kid or not args.save_stats):
        p.error("name the generated images too" + ", or a file with --save-stats" * (not args.kid))
    return args


class InceptionA(tv.InceptionA):
    """torchvision's, with an average pool that does not count the padding."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branch_pool = self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        return [branch1x1, branch5x5, branch3x3dbl, branch_pool]


class InceptionC(tv.InceptionC):
    """The same difference."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch1x1 = self.branch1x1(x)
        branch7x7 = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        branch7x7dbl = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branch7x7dbl = self.branch7x7dbl_5(self.branch7x7dbl_4(branch7x7dbl))
        branch_pool = self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
        return [branch1x1, branch7x7, branch7x7dbl, branch_pool]


class InceptionE(tv.InceptionE):
    """The same difference; the network's last block has a max pool instead."""

    def __init__(self, in_channels: int, max_pool: bool = False) -> None:
        super().__init__(in_channels)
        self.max_pool = max_pool

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch1x1 = self.branch1x1(x)
        h = self.branch3x3_1(x)
        branch3x3 = torch.cat([self.branch3x3_2a(h), self.branch3x3_2b(h)], 1)
        h = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3dbl = torch.cat([self.branch3x3dbl_3a(h), self.branch3x3dbl_3b(h)], 1)
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return [branch1x1, branch3x3, branch3x3dbl, self.branch_pool(pooled)]


class Inception(tv.Inception3):
    """Inception-v3 as FID defines it: floats in [0, 1], (N, 3, H, W) of any size -> (N, 2048), the pool3 features."""

    metric, features = "FID", "Inception-v3 pool3, 2048"
    resized = "bilinear to 299, align_corners=False, no antialiasing"
    mode, sha256 = "RGB", ""

    def __init__(self) -> None:
        super().__init__(num_classes=1008, aux_logits=False, init_weights=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = InceptionA(192, 32), InceptionA(256, 64), InceptionA(288, 64)
        self.Mixed_6b, self.Mixed_6c = InceptionC(768, 128), InceptionC(768, 160)
        self.Mixed_6d, self.Mixed_6e = InceptionC(768, 160), InceptionC(768, 192)
        self.Mixed_7b, self.Mixed_7c = InceptionE(1280), InceptionE(2048, max_pool=True)

    def resize(self, x: Tensor) -> Tensor:
        return F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * self.resize(x) - 1  # (N, 3, 299, 299) in [-1, 1]
        x = x.to(self.Conv2d_1a_3x3.conv.weight.dtype)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (N, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))  # (N, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))  # (N, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N, 2048, 8, 8)
        return x.float().mean((2, 3))


@ranks.one_per_machine()
def inception(weights: str | Path | None = None, download: bool = True) -> Inception:
    """The network in eval mode, its parameters named as in pytorch-fid's file, the file's hash in `sha256`.

    Args:
        weights: a state dict of that layout, used whatever its hash. None: torch hub's cache, else the download, whose
            hash must be right.
    Raises OSError where there is no such file, ValueError where it holds something else. No code in a file is run.
    """
    path = Path(weights) if weights else Path(torch.hub.get_dir(), "checkpoints", NAME)
    if not weights and download and not path.exists():
        _download(path)
    net = Inception()
    net.sha256 = _sha256(path)
    if not net.sha256.startswith(SHA256):
        if not weights:
            raise ValueError(f"{path} is damaged: its sha256 begins {net.sha256[:8]}, not {SHA256}; delete it")
        say(f"WARNING: {path} ({net.sha256[:8]}) is not {NAME}: no published FID compares")
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a foreign file can raise anything
        raise ValueError(f"{path} does not hold the weights of FID's Inception-v3: {error}"[:300]) from None
    return net.eval().requires_grad_(False)


def _download(path: Path) -> None:
    def check(part: Path) -> None:
        if not _sha256(part).startswith(SHA256):
            raise ValueError(f"its sha256 begins {_sha256(part)[:8]}, not {SHA256}")

    try:
        common.download(URLS, path, check)
    except OSError as error:
        raise OSError(
            f"the Inception weights are not in {path.parent} and cannot be fetched ({error}). "
            f"Get {URLS[0]} where there is a network and put it there, or name the file with --weights. "
            "For digits, --features lenet needs none"
        ) from None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling: floats in [0, 1], (N, C, H, W) -> (N, 84) features."""

    metric, features = "FD-LeNet", "LeNet-5 last hidden layer, 84"
    resized = "black margin to 32 where that is up to 4 pixels, else antialiased bilinear to 32"
    sha256, accuracy = "", 0.0

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.mode = "L" if channels == 1 else "RGB"
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),  # (N, 6, 14, 14)
            nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),  # (N, 16, 5, 5)
            nn.Flatten(),
            nn.Sequential(nn.Linear(400, 120), nn.ReLU()),
            nn.Sequential(nn.Linear(120, 84), nn.ReLU()),
        )
        self.classifier = nn.Linear(84, classes)

    def resize(self, x: Tensor) -> Tensor:
        return images.resize(x, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.resize(x))


@ranks.one_per_machine()
def lenet(data: images.ImageData, data_dir: str, device: torch.device) -> LeNet:
    """The classifier of these images: shipped in weights/, or trained once on data.train and kept under `data_dir`.

    Other images get another one: its name carries a hash of them. Raises ValueError where nothing is labelled.
    """
    n_classes = int(data.train_labels.max()) + 1
    if n_classes < 2:
        raise ValueError(f"{data} has no classes, so no classifier can be trained on it")
    some = images.resize(data.train[:: len(data.train) // 1000 + 1], 32)
    key = hashlib.sha256(some.numpy().tobytes() + data.train_labels.numpy().tobytes()).hexdigest()[:8]
    name = f"lenet-{data.name}-{key}.pth"
    path = Path(__file__).parent / "weights" / name
    path = path if path.exists() else Path(data_dir, "cache", name)
    if path.exists():
        net = LeNet(data.train.shape[1], n_classes)
    else:
        say(f"training a LeNet-5 on {data}, once, for {path}")
        torch.manual_seed(0)
        net = _trained(LeNet(data.train.shape[1], n_classes).to(device), data)
        path.parent.mkdir(parents=True, exist_ok=True)
        run_folder.save({"script": "fid", "state_dict": net.cpu().state_dict()}, path)
    net.load_state_dict(run_folder.load(path, ("fid",), "state_dict")["state_dict"])
    net.sha256 = _sha256(path)
    net = net.to(device).eval().requires_grad_(False)
    logits = torch.cat([net.classifier(x) for x in features(data.test, net)])
    net.accuracy = (logits.argmax(1).cpu() == data.test_labels).float().mean().item()
    say(f"classifier: {path}, accuracy {net.accuracy:.2%} on {len(data.test)} test images")
    return net


def _trained(net: LeNet, data: images.ImageData, epochs: int = 8, batch_size: int = 64) -> LeNet:
    device, n = next(net.parameters()).device, len(data.train)
    steps = max(200, epochs * n // batch_size)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for step in common.progress(range(1, steps + 1), "LeNet-5", steps):
        i = common.batch_indices(n, batch_size, step, seed=0)
        logits = net.classifier(net(data.train[i].to(device).float() / 255))
        optimizer.zero_grad()
        F.cross_entropy(logits, data.train_labels[i].to(device)).backward()
        optimizer.step()
        schedule.step()
    return net


def prepared(net: nn.Module, bf16: bool = False) -> nn.Module:
    """A faster copy: BatchNorm folded into the convolutions, channels_last."""
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for m in net.modules():
        if isinstance(m, tv.BasicConv2d):
            m.conv, m.bn = nn.utils.fuse_conv_bn_eval(m.conv, m.bn), nn.Identity()
    return net.bfloat16() if bf16 else net


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


@torch.no_grad()
def features(pictures: Tensor | Iterable, net: nn.Module, batch_size: int = 50, bf16: bool = False) -> Iterator[Tensor]:
    """Features (n, D) of batch after batch, float32, on the network's device.

    Args:
        pictures: uint8 (N, C, H, W); or an iterator of such batches or of lists of (C, H, W), sizes free.
        net: inception(...) or lenet(...).
    """
    fast = prepared(net, bf16)
    for x in [pictures] if isinstance(pictures, Tensor) else pictures:
        for part in [x] if isinstance(x, list) else x.split(batch_size):
            part = _scaled(part, net)
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 keeps 3 digits
                h = fast(part)
                if bf16:
                    exact, bf16 = net(part), False
                    error = ((h - exact).norm() / exact.norm()).item()
                    say(f"bfloat16 features, {error:.1%} off float32's in the first batch")
            yield h


def share(pictures: Tensor | list | Iterable) -> Tensor | list | Iterable:
    """This rank's part of a tensor of images, of a list of files, or of each batch that an iterator gives."""
    part = lambda x: x[ranks.rank() :: ranks.size()]
    return part(pictures) if isinstance(pictures, Tensor | list) else map(part, pictures)


class Statistics(NamedTuple):
    """The Gaussian of a set of images, in float64 on the CPU."""

    mu: Tensor  # (D,)
    factor: Tensor  # (K, D): its Gram matrix, factorᵀ factor, is Σ
    n: int | None  # images; None where a file does not say
    features: Tensor | None = None  # (N, D) float32, where they are kept


def statistics(batches: Iterable[Tensor], keep: bool = False) -> Statistics:
    """Mean and covariance of features (n, D) of all ranks, streamed: up to D of them, and a D x D sum, are in memory.

    keep: the features too, in memory that does grow with their number.
    """
    n, total, outer, waiting, kept = 0, 0, 0, [], []
    for h in batches:
        kept += [h.cpu()] if keep else []
        h = (h.cpu() if h.device.type == "mps" else h).double()  # MPS has no float64
        n += len(h)
        waiting.append(h)
        if sum(map(len, waiting)) > h.shape[1]:
            h, waiting = torch.cat(waiting), [h[:0]]
            total, outer = total + h.sum(0), outer + h.T @ h
    counts = ranks.objects((n, h.shape[1] if n else 0))  # a rank may have had none
    n, D = sum(n for n, _ in counts), max(D for _, D in counts)
    if n < 2:
        raise ValueError(f"a covariance needs at least two images; there are {n}")
    h = torch.cat(waiting).cpu() if waiting else torch.zeros(0, D, dtype=torch.float64)
    if n <= D:
        h = torch.cat(ranks.objects(h))
        mu = h.sum(0) / n
    else:
        mu = ranks.total(torch.as_tensor(total).cpu() + h.sum(0)) / n
        outer = ranks.total(torch.as_tensor(outer).cpu() + h.T @ h)
    if not mu.isfinite().all():
        raise ValueError("there are features that are not finite: are these the right weights?")
    if n <= D:  # no more images than features: these, centred, are the factor, and no D x D matrix is needed
        a = (h - mu) / (n - 1) ** 0.5
    else:
        a = factor((outer - n * mu.outer(mu)) / (n - 1))
    every = ranks.objects(torch.cat(kept) if kept else torch.zeros(0, D)) if keep else None
    return Statistics(mu, a, n, torch.cat(every) if keep else None)


def activation_statistics(
    pictures: Tensor | Iterable, net: nn.Module | None = None, batch_size: int = 50, bf16: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of images' features, float64. Arguments as of features(); net: inception()."""
    s = statistics(features(pictures, net or inception(), batch_size, bf16))
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


def kid(features1: Tensor, features2: Tensor) -> float:
    """Squared MMD of two sets of features, (N, D) and (M, D), under k(x, y) = (xᵀy / D + 1)³: unbiased, also below 0.

    Bińkowski et al. 2018, arXiv 1801.01401. All pairs, where the paper and others average over random subsets.
    """
    x, y = torch.as_tensor(features1).cpu().double(), torch.as_tensor(features2).cpu().double()
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features must be (N, D) and (M, D), N and M at least 2: {tuple(x.shape)}, {tuple(y.shape)}")
    total = lambda a, b: sum(((rows @ b.T / b.shape[1] + 1) ** 3).sum().item() for rows in a.split(1000))
    self_similar = lambda a: ((a**2).sum(1) / a.shape[1] + 1).pow(3).sum().item()
    within = lambda a: (total(a, a) - self_similar(a)) / (len(a) * (len(a) - 1))
    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


def classes(h: Tensor, net: LeNet) -> dict[str, object]:
    """What the classifier sees in features (N, 84): a mode collapse shows as a low entropy, mush as low confidence."""
    p = torch.softmax(net.classifier(h.to(next(net.parameters()).device)), 1)  # (N, K)
    counts = p.argmax(1).bincount(minlength=p.shape[1]).cpu()
    return {
        "class_histogram": counts.tolist(),
        "class_entropy": torch.special.entr(counts / len(p)).sum().item(),  # nats
        "confident": (p.max(1).values > 0.9).float().mean().item(),
        "classifier_accuracy": net.accuracy,
    }


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
        return Source(text, len(x), lambda _: share(x), x.shape[-1], split, data)
    candidates = [path] if path.suffix == ".pth" else [path / name for name in WEIGHTS]
    if file := next(filter(Path.is_file, candidates), None):
        state = run_folder.load(file, GENERATORS, "trained_on")
        module = importlib.import_module(state["script"])
        model = module.build(state).to(device).eval()
        draw = lambda _: share(module.draw(model, args.n, seed))
        return Source(str(file), args.n, draw, state["image_size"], seed=seed)
    if (path / "config.json").exists():
        raise ValueError(f"{text} is a run folder, but holds no {' or '.join(WEIGHTS)}")
    if path.is_dir():
        files = images.image_files(path)
        return Source(text, len(files), lambda mode: folder_images(path, mode, args.batch_size), _side(path / files[0]))
    if path.exists():
        raise ValueError(f"{text} is neither a folder of images nor an .npz of statistics")
    raise ValueError(f"there is no {text}; a data set is named with its split, such as mnist:test")


def folder_images(folder: Path, mode: str, batch_size: int) -> Iterator[Tensor | list[Tensor]]:
    """uint8 images, batch after batch, decoded in threads while the one before is used; broken ones are named.

    As pytorch-fid reads them: whole, and not turned by EXIF. Of several ranks each has its share.
    """
    files, broken = images.image_files(folder), []
    if len({*ranks.objects(len(files))}) > 1:
        raise ValueError(f"{folder} is not the same on all machines")
    mine = share(files)
    chunks = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    with ThreadPool() as pool:
        decode = lambda chunk: pool.map_async(lambda file: _read(folder / file, mode), chunk)
        following = decode(chunks[0]) if chunks else None
        for i, chunk in enumerate(chunks):
            pixels, following = following.get(), decode(chunks[i + 1]) if i + 1 < len(chunks) else None
            broken += [file for file, x in zip(chunk, pixels, strict=True) if x is None]
            if good := [x for x in pixels if x is not None]:
                yield torch.stack(good) if len({x.shape for x in good}) == 1 else good
    images.name_broken(sum(ranks.objects(broken), []), len(files), folder)


def _read(path: Path, mode: str) -> Tensor | None:
    """(C, H, W), or None if the file is broken."""
    try:
        with Image.open(path) as image:
            pixels = np.array(images.convert(image, mode))
            return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    except Exception:  # damaged files raise anything
        return None


def _side(path: Path) -> int | None:
    """Side of an image, when it is one of the small squares that generators make."""
    try:
        with Image.open(path) as image:
            return image.width if image.width == image.height <= 64 else None
    except Exception:  # broken: named when all are read
        return None


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
    if not ranks.rank():
        run_folder.write_whole(path, lambda file: np.savez(file, **arrays))
    say(f"statistics of {about['real']} ({s.n} images) written to {path}")


def made_by(net: nn.Module, bf16: bool = False) -> dict[str, str]:
    """What has to be equal for two sets of features to be compared, and has to stand beside every distance."""
    about = {"metric": net.metric, "features": net.features, "resize": net.resized}
    return about | {"dtype": "bfloat16" if bf16 else "float32", "weights_sha256": net.sha256}


def warn_if_few(name: str, n: int | None, hint: str = "") -> None:
    if n and n < FEW:
        say(f"WARNING: {name}: {n} images; with less than {FEW:,} the distance is biased upwards{hint}")


def compare(args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """The result of the command, as --json prints it."""
    if args.features == "lenet" and (args.bf16 or args.weights):
        raise ValueError("--bf16 and --weights are for Inception features, not for --features lenet")
    if args.features == "lenet" and not is_data_set(args.real):
        raise ValueError("--features lenet needs a data set with classes as REAL, such as mnist:test")
    out = Path(args.save_stats) if args.save_stats else None
    if out and (out.suffix != ".npz" or out.exists() or not out.parent.is_dir() or args.real.endswith(".npz")):
        raise ValueError(f"--save-stats {out}: a new file.npz in a folder that exists is needed, and images as REAL")

    named = {"real": args.real} | ({"generated": args.generated} if args.generated else {})
    sources, size = {}, None
    for role in sorted(named, key=lambda role: is_data_set(named[role])):  # data sets last, at the size of the others
        sources[role] = find(named[role], args, device, size, args.seed + (role == "real"))
        size = size or (None if sources[role].data else sources[role].size)
    if args.kid and any(source.known for source in sources.values()):
        raise ValueError("--kid needs images, not statistics")
    sizes = {source.size for source in sources.values() if not source.known}
    for source in sources.values():
        if source.data and len(sizes) > 1:
            say(
                f"WARNING: {source.name}, read at {source.size} x {source.size}, is compared with images of other sizes"
            )

    net = None
    if args.features == "lenet":
        net = lenet(sources["real"].data, args.data_dir, device)
    elif not all(source.known for source in sources.values()):
        net = inception(args.weights).to(device)
    origins = [source.made_by for source in sources.values() if source.made_by]
    origins += [made_by(net, args.bf16)] if net else []
    if any(origin != origins[0] for origin in origins):
        raise ValueError(f"these features are not comparable: {' and '.join(map(str, origins))}")
    unknown = {"metric": "Fréchet distance", "features": "of .npz files that do not say which"}
    result = {"value": None} | (origins[0] if origins else unknown)
    result |= {"split": sources["real"].split}
    result |= {"seed": next((sources[r].seed for r in reversed(named) if sources[r].seed is not None), None)}
    both, keep = [], args.kid or args.features == "lenet"
    for role in named:  # REAL first
        source = sources[role]
        if not (s := source.known):
            batches = features(source.pictures(net.mode), net, args.batch_size, args.bf16)
            s = statistics(
                common.progress(batches, source.name, math.ceil(source.n / args.batch_size / ranks.size())), keep
            )
        warn_if_few(source.name, s.n, "" if args.kid or source.known else "; --kid adds a measure without bias")
        result |= {role: source.name, f"n_{role}": s.n, f"size_{role}": source.size}
        if out and role == "real":
            write_stats(out, s, {"n": s.n, "real": source.name, "made_by": origins[0]})
        both.append(s)
    if args.generated:
        real, fake = both
        result["value"] = distance(real.mu, real.factor, fake.mu, fake.factor)
        result |= {"kid": kid(real.features, fake.features)} if args.kid else {}
        result |= classes(fake.features, net) if args.features == "lenet" and fake.features is not None else {}
    return result


Draw = Callable[[int, int], Iterable]  # (n, seed) -> uint8 batches of n samples


def judge(net: nn.Module, real: Tensor) -> Callable[[Draw], dict[str, object]]:
    """A function that measures a generator's samples against held-out images, whose statistics are taken once."""
    keep, key = isinstance(net, LeNet), net.metric.lower().replace("-", "_")
    target = statistics(features(share(real), net))

    def measure(draw: Draw) -> dict[str, object]:
        s = statistics(features(share(draw(SAMPLES, 0)), net), keep)
        about = made_by(net) | {"n_real": target.n, "n_generated": s.n, "split": "test", "seed": 0}
        value = distance(target.mu, target.factor, s.mu, s.factor)
        return {key: value, f"{key}_about": about} | (classes(s.features, net) if keep else {})

    return measure


def left_out(key: str, error: Exception) -> None:
    if ranks.size() > 1 and isinstance(error, RuntimeError):
        raise error  # of this rank alone, perhaps: the others would wait for it
    say(f"{key} is left out: {error}")


def judges(data: images.ImageData, data_dir: str, device: torch.device) -> dict[str, Callable[[Draw], dict]]:
    """What can measure samples against data.test here: "fd_lenet" where the data have classes, "fid" where the
    Inception weights are in torch hub's cache and the device is no CPU, which would take minutes. Never ends a run.
    """
    makers = {"fd_lenet": lambda: lenet(data, data_dir, device)}
    makers |= {"fid": lambda: inception(download=False).to(device)} if device.type != "cpu" else {}
    found = {}
    for key, make in makers.items():
        net = why = None
        try:
            net = make()
        except (OSError, ValueError, RuntimeError) as error:  # no labels; no weights; a classifier that cannot be kept
            why = str(error)
        try:
            if why := next(filter(None, ranks.objects(why)), None):  # one rank's trouble is everybody's
                raise ValueError(why)
            found[key] = judge(net, data.test)
        except (ValueError, RuntimeError) as error:
            left_out(key, error)
    if found:
        warn_if_few("held-out", len(data.test))
    return found


def measured(draw: Draw, by: dict[str, Callable]) -> dict[str, object]:
    """What judges(...) say of a generator's samples."""
    results = {}
    for key, measure in by.items():
        try:
            results |= measure(draw)
        except (ValueError, RuntimeError) as error:  # a run that is being trained, or is trained, must not end here
            left_out(key, error)
    return results


def warn_if_collapsed(step: int, seen: dict[str, object]) -> None:
    if "class_entropy" in seen:
        entropy, most = seen["class_entropy"], math.log(len(seen["class_histogram"]))
        if entropy < min(1, most / 2):
            print(f"WARNING: step {step}: mode collapse, class entropy {entropy:.2f} nats of {most:.2f}")


def report(results: dict, data: images.ImageData, data_dir: str, run: Path) -> dict[str, object]:
    """What was measured of a trained generator; where the FID is not in it, a line says how to get it."""
    if "fid" not in results:
        hint = f"python fid.py {shlex.quote(data.source)}:test {shlex.quote(str(run))}"
        print(f"FID is measured by: {hint}" + (f" --data-dir {shlex.quote(data_dir)}" if data_dir != "data" else ""))
    return results


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    device = common.setup(args)
    try:
        result = compare(args, device)
    except (ValueError, OSError, images.DataError) as error:
        common.fail(error)
    ranks.leave()
    if args.json:
        print(json.dumps(result))
    elif args.generated:
        facts = (f"{k} {v}" for k, v in result.items() if k not in ("metric", "value") and v is not None)
        print(f"{result['metric']}: {result['value']:.6g}", *facts, sep=" | ")


if __name__ == "__main__":
    main()
