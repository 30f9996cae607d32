"""LeNet-5, the small classifier behind FD-LeNet. It ships for MNIST and is trained once for other labelled images."""

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
    sha256 = ""  # of the weights file
    accuracy = 0.0  # share of test images whose class is right

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
    """Return the classifier of these images in eval mode.

    It ships in weights/ or is trained once on data.train and kept in data_dir/cache. Its file's name has a hash of the
    images, so that other images get a classifier of their own. It carries the file's hash, `sha256`, and `accuracy`
    on data.test. Raise ValueError for images without classes, OSError where the file cannot be written.
    """
    n_classes = int(data.train_labels.max()) + 1
    if n_classes < 2:
        raise ValueError(f"{data} has no classes, and a classifier needs them. Use images in a folder for each class")
    path = _weights_file(data, data_dir)
    if not path.exists():
        with files.one_at_a_time(path):
            if not path.exists():  # no other process has trained it meanwhile
                files.say(f"training a LeNet-5 on {data}, once, for {path}", sys.stderr)
                torch.manual_seed(0)
                net = LeNet(data.train.shape[1], n_classes).to(device)
                net = _train(net, data).cpu()
                checkpoints.save({"script": "fid", "state_dict": net.state_dict()}, path)
    net = LeNet(data.train.shape[1], n_classes)
    state = checkpoints.load(path, ("fid",), "state_dict")
    net.load_state_dict(state["state_dict"])
    net.sha256 = files.sha256(path)
    net = net.to(device).eval().requires_grad_(False)
    net.accuracy = _accuracy(net, data.test, data.test_labels)
    accuracy = f"accuracy {net.accuracy:.2%} on {len(data.test)} test images"
    files.say(f"classifier: {path}, {accuracy}", sys.stderr)
    return net


def _weights_file(data: images.ImageData, data_dir: str) -> Path:
    """Return the path of the classifier of these images, shipped or in the cache."""
    sample = images.resize(data.train[:: len(data.train) // 1000 + 1], 32)
    content = sample.numpy().tobytes() + data.train_labels.numpy().tobytes()
    key = hashlib.sha256(content).hexdigest()[:8]
    name = f"lenet-{data.name}-{key}.pth"
    shipped = checkpoints.SHIPPED / name
    if shipped.exists():
        return shipped
    return Path(data_dir, "cache", name)


@torch.enable_grad()
def _train(net: LeNet, data: images.ImageData, epochs: int = 8, batch_size: int = 64) -> LeNet:
    device = next(net.parameters()).device
    n = len(data.train)
    steps = max(200, epochs * n // batch_size)
    optimizer = torch.optim.Adam(net.parameters())
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    schedule = one_cycle(optimizer, 2e-3, total_steps=steps + 1)
    for step in files.progress(range(1, steps + 1), "LeNet-5", steps):
        i = batch_indices(n, batch_size, step, seed=0)
        x = data.train[i].to(device).float() / 255  # (B, C, H, W)
        logits = net.classifier(net(x))  # (B, K)
        loss = F.cross_entropy(logits, data.train_labels[i].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def _accuracy(net: LeNet, x: Tensor, labels: Tensor) -> float:
    """Return the share of uint8 images (N, C, H, W) whose label (N,) the classifier finds."""
    device = next(net.parameters()).device
    right = 0
    for part, truth in zip(x.split(500), labels.split(500), strict=True):
        logits = net.classifier(net(part.to(device).float() / 255))
        right += (logits.argmax(1).cpu() == truth).sum().item()
    return right / len(x)


def classes(h: Tensor, net: LeNet) -> dict[str, object]:
    """Classify features (N, 84). A mode collapse has a low class entropy, unclear images have a low confidence.

    Return "class_histogram" (K counts), "class_entropy" (nats), "confident" (share with a probability over 0.9) and
    "classifier_accuracy" (share of test images).
    """
    h = h.to(next(net.parameters()).device)
    p = torch.softmax(net.classifier(h), 1)  # (N, K)
    counts = p.argmax(1).bincount(minlength=p.shape[1]).cpu()
    return {
        "class_histogram": counts.tolist(),
        "class_entropy": torch.special.entr(counts / len(p)).sum().item(),
        "confident": (p.max(1).values > 0.9).float().mean().item(),
        "classifier_accuracy": net.accuracy,
    }


def spread(x: Tensor) -> float:
    """Average ‖x_i − x_j‖ / √(C H W) over pairs of uint8 images (N, C, H, W), in grey levels (0 to 255)."""
    distances = torch.pdist(x.flatten(1).float().cpu())
    return distances.mean().item() / x[0].numel() ** 0.5


def relative_spread(x: Tensor, data: images.ImageData) -> float:
    """Return the spread of uint8 images (N, C, H, W) over that of 500 of the data's images."""
    return spread(x) / (spread(torch.cat([data.test[:250], data.train[:250]])) or 1.0)  # 0: all are the same


def warn_if_collapsed(run: Any, scores: dict[str, object]) -> None:
    """Print a warning for samples of few classes or of nearly the same pixels.

    An untrained generator gets none: in the first tenth of the steps samples must have been better before.
    """
    best = {"spread": (1.0, "samples differ by {:.0%} of what images do")}
    if "class_histogram" in scores:
        largest = math.log(len(scores["class_histogram"]))
        best["class_entropy"] = (largest, "class entropy {:.2f} nats instead of up to {:.2f}")
    for name, (value, words) in best.items():
        low = min(1, value / 2)
        was_better = any(row.get(name, 0) >= low for row in run.rows)
        untrained = run.step < run.args.steps / 10 and not was_better
        if scores.get(name, low) < low and not untrained:
            collapse = words.format(scores[name], value)
            files.say(f"WARNING: step {run.step}: mode collapse, {collapse}")
