"""Inception-v3 as FID defines it, from torchvision's with three differences, and pytorch-fid's weights file."""

import copy
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as tv

from plumbing.system import files

NAME = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"  # first digits of the file's hash
URLS = [  # the same file, twice
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}",
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME.replace('pt_', 'weights-')}",
]


def average_pool(x: Tensor) -> Tensor:
    """Average 3 x 3 pixels without counting the padding. torchvision counts it."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class InceptionA(tv.InceptionA):
    """torchvision's InceptionA with average_pool."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch1x1 = self.branch1x1(x)
        branch5x5 = self.branch5x5_2(self.branch5x5_1(x))
        branch3x3dbl = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3dbl = self.branch3x3dbl_3(branch3x3dbl)
        branch_pool = self.branch_pool(average_pool(x))
        return [branch1x1, branch5x5, branch3x3dbl, branch_pool]


class InceptionC(tv.InceptionC):
    """torchvision's InceptionC with average_pool."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch1x1 = self.branch1x1(x)
        branch7x7 = self.branch7x7_2(self.branch7x7_1(x))
        branch7x7 = self.branch7x7_3(branch7x7)
        branch7x7dbl = self.branch7x7dbl_2(self.branch7x7dbl_1(x))
        branch7x7dbl = self.branch7x7dbl_4(self.branch7x7dbl_3(branch7x7dbl))
        branch7x7dbl = self.branch7x7dbl_5(branch7x7dbl)
        branch_pool = self.branch_pool(average_pool(x))
        return [branch1x1, branch7x7, branch7x7dbl, branch_pool]


class InceptionE(tv.InceptionE):
    """torchvision's InceptionE with average_pool or, in the network's last block, a max pool."""

    def __init__(self, in_channels: int, max_pool: bool = False) -> None:
        super().__init__(in_channels)
        self.max_pool = max_pool

    def _forward(self, x: Tensor) -> list[Tensor]:
        branch1x1 = self.branch1x1(x)
        h = self.branch3x3_1(x)
        branch3x3 = torch.cat([self.branch3x3_2a(h), self.branch3x3_2b(h)], 1)
        h = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branch3x3dbl = torch.cat([self.branch3x3dbl_3a(h), self.branch3x3dbl_3b(h)], 1)
        if self.max_pool:
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = average_pool(x)
        return [branch1x1, branch3x3, branch3x3dbl, self.branch_pool(pooled)]


class Inception(tv.Inception3):
    """Inception-v3 as FID defines it: floats in [0, 1], (N, 3, H, W) of any size -> (N, 2048), the pool3 features."""

    metric, features = "FID", "Inception-v3 pool3, 2048"
    resized = "bilinear to 299, align_corners=False, no antialiasing"
    mode = "RGB"
    sha256 = ""  # of the weights file

    def __init__(self) -> None:
        super().__init__(num_classes=1008, aux_logits=False, init_weights=False)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7b = InceptionE(1280)
        self.Mixed_7c = InceptionE(2048, max_pool=True)

    def resize(self, x: Tensor) -> Tensor:
        return F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * self.resize(x) - 1  # (N, 3, 299, 299) in [-1, 1]
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))
        x = self.Conv2d_2b_3x3(x)  # (N, 64, 147, 147)
        x = self.Conv2d_3b_1x1(self.maxpool1(x))
        x = self.Conv2d_4a_3x3(x)  # (N, 192, 71, 71)
        x = self.Mixed_5b(self.maxpool2(x))
        x = self.Mixed_5d(self.Mixed_5c(x))  # (N, 288, 35, 35)
        x = self.Mixed_6b(self.Mixed_6a(x))
        x = self.Mixed_6d(self.Mixed_6c(x))
        x = self.Mixed_6e(x)  # (N, 768, 17, 17)
        x = self.Mixed_7b(self.Mixed_7a(x))
        x = self.Mixed_7c(x)  # (N, 2048, 8, 8)
        return x.mean((2, 3))


def load(weights: str | Path | None = None, download: bool = True) -> Inception:
    """Return the network in eval mode, its parameters named as in pytorch-fid's file, with the file's hash.

    Args:
        weights: a state dict of that layout, whatever its hash. None means torch.hub's cache and then the download,
            whose hash must be right.
        download: False reads the cache only.
    Raise OSError where there is no such file, ValueError where it holds something else. No code in a file is run.
    """
    path = Path(weights or f"{torch.hub.get_dir()}/checkpoints/{NAME}")
    if not weights and not path.exists():
        if not download:
            raise _missing(path)
        _download(path)
    net = Inception()
    net.sha256 = files.sha256(path)
    start = net.sha256[:8]
    if start != SHA256 and not weights:
        damage = f"its sha256 begins with {start} instead of {SHA256}"
        raise ValueError(f"{path} is damaged: {damage}. Delete it and repeat the command")
    if start != SHA256:
        warning = f"WARNING: {path} ({start}) is not {NAME}. No published FID can be compared with the result"
        files.say(warning, sys.stderr)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict(state)
    except Exception as error:  # a foreign file can raise anything
        reason = f"{path} does not hold the weights of FID's Inception-v3: {error}"
        raise ValueError(reason[:300]) from None
    return net.eval().requires_grad_(False)


def _missing(path: Path, reason: str = "") -> OSError:
    return OSError(
        f"the Inception weights are not in {path.parent}{reason}. "
        f"Download {URLS[0]} to that folder, or name the file with fid.py --weights FILE. "
        "For digits, fid.py --features lenet needs no such weights"
    )


def _download(path: Path) -> None:
    def check(part: Path) -> None:
        start = files.sha256(part)[:8]
        if start != SHA256:
            raise ValueError(f"its sha256 begins with {start} instead of {SHA256}")

    try:
        files.download(URLS, path, check)
    except OSError as error:
        raise _missing(path, f" and cannot be downloaded ({error})") from None


def network_input(x: Tensor | list[Tensor], net: nn.Module) -> Tensor:
    """Convert uint8 images to the input of any judging network, floats (N, C, H, W) in [0, 1] on its device.

    x is a batch (N, C, H, W) or a list of images (C, H, W) of several sizes, which are resized here. Grey images get
    the network's channels. Raise ValueError for images of another type or number of channels.
    """
    if isinstance(x, list):
        return torch.cat([net.resize(network_input(one[None], net)) for one in x])
    if x.dtype != torch.uint8 or x.ndim != 4:
        kind = f"{x.dtype} of shape {tuple(x.shape)}"
        raise ValueError(f"images must be uint8 of shape (N, C, H, W), not {kind}")
    channels = len(net.mode)
    if x.shape[1] not in (1, channels):
        raise ValueError(f"{net.metric} takes images of {channels} channel(s) here, not of {x.shape[1]}")
    x = x.to(next(net.parameters()).device).float() / 255
    x = x.expand(-1, channels, -1, -1)
    return x.contiguous(memory_format=torch.channels_last)


def folded(net: nn.Module) -> nn.Module:
    """Return a faster copy of any network, channels_last. Inception's BatchNorm is folded into the convolutions."""
    net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for m in net.modules():
        if isinstance(m, tv.BasicConv2d):
            m.conv = nn.utils.fuse_conv_bn_eval(m.conv, m.bn)
            m.bn = nn.Identity()
    return net
