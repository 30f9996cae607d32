"""Inception-v3 as FID defines it: torchvision's network with three differences, and pytorch-fid's file of weights."""

import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as tv

from plumbing.system import files

NAME, SHA256 = "pt_inception-2015-12-05-6726825d.pth", "6726825d"  # of the file; the hash's first digits
URLS = [
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}",
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME.replace('pt_', 'weights-')}",  # the same
]


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
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (N, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))  # (N, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))  # (N, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (N, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (N, 2048, 8, 8)
        return x.mean((2, 3))


def load(weights: str | Path | None = None, download: bool = True) -> Inception:
    """The network in eval mode, its parameters named as in pytorch-fid's file, the file's hash in `sha256`.

    Args:
        weights: a state dict of that layout, used whatever its hash. None: torch hub's cache, else the download, whose
            hash must be right.
    Raises OSError where there is no such file, ValueError where it holds something else. No code in a file is run.
    """
    path = Path(weights or f"{torch.hub.get_dir()}/checkpoints/{NAME}")
    if not weights and download and not path.exists():
        _download(path)
    net = Inception()
    net.sha256 = files.sha256(path)
    if not net.sha256.startswith(SHA256):
        if not weights:
            raise ValueError(f"{path} is damaged: its sha256 begins {net.sha256[:8]}, not {SHA256}; delete it")
        warning = f"WARNING: {path} ({net.sha256[:8]}) is not {NAME}: no published FID compares"
        print(warning, file=sys.stderr, flush=True)
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a foreign file can raise anything
        raise ValueError(f"{path} does not hold the weights of FID's Inception-v3: {error}"[:300]) from None
    return net.eval().requires_grad_(False)


def _download(path: Path) -> None:
    def check(part: Path) -> None:
        found = files.sha256(part)
        if not found.startswith(SHA256):
            raise ValueError(f"its sha256 begins {found[:8]}, not {SHA256}")

    try:
        files.download(URLS, path, check)
    except OSError as error:
        raise OSError(
            f"the Inception weights are not in {path.parent} and cannot be fetched ({error}). "
            f"Get {URLS[0]} where there is a network and put it there, or name the file with --weights. "
            "For digits, --features lenet needs none"
        ) from None


def folded(net: nn.Module) -> nn.Module:
    """A faster copy of any network: BatchNorm of Inception folded into the convolutions, channels_last."""
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for m in net.modules():
        if isinstance(m, tv.BasicConv2d):
            m.conv, m.bn = nn.utils.fuse_conv_bn_eval(m.conv, m.bn), nn.Identity()
    return net
