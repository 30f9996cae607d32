"""The small classifier behind FD-LeNet: LeNet-5, shipped for MNIST, trained once for any other labelled images."""

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plumbing.data import images
from plumbing.data.batches import batch_indices
from plumbing.run import checkpoints
from plumbing.system import files, ranks


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
def classifier(data: images.ImageData, data_dir: str, device: torch.device | str) -> LeNet:
    """The classifier of these images: shipped in weights/, or trained once on data.train and kept under `data_dir`.

    In eval mode, with the hash of its file as `sha256` and its `accuracy` on data.test. Other images get another one:
    its name carries a hash of them. Raises ValueError where nothing is labelled, OSError where it cannot be kept.
    """
    n_classes = int(data.train_labels.max()) + 1
    if n_classes < 2:
        raise ValueError(f"{data} has no classes, so no classifier can be trained on it")
    some = images.resize(data.train[:: len(data.train) // 1000 + 1], 32)
    key = hashlib.sha256(some.numpy().tobytes() + data.train_labels.numpy().tobytes()).hexdigest()[:8]
    name = f"lenet-{data.name}-{key}.pth"
    path = checkpoints.SHIPPED / name
    if not path.exists():
        path = Path(data_dir, "cache", name)
    if not path.exists():
        with files.one_at_a_time(path):
            if not path.exists():  # nor has another process trained it meanwhile
                files.say(f"training a LeNet-5 on {data}, once, for {path}", sys.stderr)
                torch.manual_seed(0)
                net = _trained(LeNet(data.train.shape[1], n_classes).to(device), data).cpu()
                checkpoints.save({"script": "fid", "state_dict": net.state_dict()}, path)
    net = LeNet(data.train.shape[1], n_classes)
    net.load_state_dict(checkpoints.load(path, ("fid",), "state_dict")["state_dict"])
    net.sha256 = files.sha256(path)
    net = net.to(device).eval().requires_grad_(False)
    net.accuracy = _accuracy(net, data.test, data.test_labels)
    files.say(f"classifier: {path}, accuracy {net.accuracy:.2%} on {len(data.test)} test images", sys.stderr)
    return net


@torch.enable_grad()
def _trained(net: LeNet, data: images.ImageData, epochs: int = 8, batch_size: int = 64) -> LeNet:
    device = next(net.parameters()).device
    n = len(data.train)
    steps = max(200, epochs * n // batch_size)
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1)
    for step in files.progress(range(1, steps + 1), "LeNet-5", steps):
        i = batch_indices(n, batch_size, step, seed=0)
        logits = net.classifier(net(data.train[i].to(device).float() / 255))
        optimizer.zero_grad()
        F.cross_entropy(logits, data.train_labels[i].to(device)).backward()
        optimizer.step()
        schedule.step()
    return net


def _accuracy(net: LeNet, x: Tensor, labels: Tensor) -> float:
    """Share of uint8 images (N, C, H, W) whose label (N,) the classifier names."""
    device = next(net.parameters()).device
    right = 0
    for part, truth in zip(x.split(500), labels.split(500), strict=True):
        logits = net.classifier(net(part.to(device).float() / 255))
        right += (logits.argmax(1).cpu() == truth).sum().item()
    return right / len(x)


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


def spread(x: Tensor) -> float:
    """Mean of ‖x_i − x_j‖ / √(C H W) over pairs of images (N, C, H, W), uint8, in grey levels."""
    return torch.pdist(x.flatten(1).float().cpu()).mean().item() / x[0].numel() ** 0.5


def spread_of(data: images.ImageData) -> float:
    """Of 500 of the data's images."""
    return spread(torch.cat([data.test[:250], data.train[:250]])) or 1.0  # 0: all are the same


def warn_if_collapsed(run: Any, seen: dict[str, object]) -> None:
    """A line for samples of few classes, or all alike, unless G is untrained: in its first tenth, and never better."""
    best = {"spread": (1.0, "samples differ by {:.0%} of what images do")}
    if "class_histogram" in seen:
        best["class_entropy"] = (math.log(len(seen["class_histogram"])), "class entropy {:.2f} nats of {:.2f}")
    for key, (value, words) in best.items():
        low = min(1, value / 2)
        been_better = any(row.get(key, 0) >= low for row in run.rows)
        if seen.get(key, low) < low and (been_better or run.step >= run.args.steps / 10):
            files.say(f"WARNING: step {run.step}: mode collapse, {words.format(seen[key], value)}")
