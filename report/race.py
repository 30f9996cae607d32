"""Recipes raced on a validation part: `python -m report.race NAME [--jobs 2] [--seeds 0 1 2]`.

Each NAME is a list of candidates below: a script, its flags, and for what no flag does, a function that replaces one
thing. All train on the training set without its last tenth and are measured on that tenth; only those of REPORTED,
which choose nothing, look at the test set. Every candidate and seed is a process with one thread and a run folder in
runs/race/, so a race that was stopped goes on, and what has been run is not run again. Prints the table as Markdown.
"""

import argparse
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

import common
import dcgan
import simclr
import vae
from plumbing.data import images
from plumbing.judge import lenet
from plumbing.system import files
from report.measure import CIFAR10, FACES, adam, spread, table


def slow_down(steps: int) -> None:
    """DCGAN's learning rates fall to 0 over the second half of the steps."""
    update, count = dcgan.update, itertools.count()

    def slower(D, G, d_loss_fn, g_loss_fn, *optimizers_and_rest, **how):
        for optimizer in optimizers_and_rest[:2]:
            group = optimizer.param_groups[0]
            group["lr"] = group.setdefault("peak", group["lr"]) * min(1, 2 - next(count) / steps)
        return update(D, G, d_loss_fn, g_loss_fn, *optimizers_and_rest, **how)

    dcgan.update = slower


def by_turns(spectral_norm: bool = True) -> None:
    """D of 3 x 3 and 4 x 4 kernels by turns (Miyato et al. 2018, table 3), without BatchNorm."""
    start = dcgan.Discriminator.__init__

    def conv(*layer: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Conv2d(*layer), torch.nn.LeakyReLU(0.1))

    def other(D, in_size, widths=(64, 128, 256), *_, **__) -> None:
        start(D, in_size, widths)
        stages = [(conv(i, o, 3, 1, 1), conv(o, o, 4, 2, 1)) for i, o in itertools.pairwise((in_size[0], *widths))]
        D.net = torch.nn.Sequential(*itertools.chain(*stages), D.net[-1])
        for m in list(D.modules()):
            if isinstance(m, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(m.weight)
                if spectral_norm:
                    torch.nn.utils.parametrizations.spectral_norm(m)

    dcgan.Discriminator.__init__ = other


def slope(negative: float) -> None:
    """D's LeakyReLU has another slope below 0; 0 is a ReLU."""
    start = dcgan.Discriminator.__init__

    def other(D, *shape, **how) -> None:
        start(D, *shape, **how)
        for m in D.modules():
            if isinstance(m, torch.nn.LeakyReLU):
                m.negative_slope = negative

    dcgan.Discriminator.__init__ = other


def decay(weight_decay: float) -> None:
    torch.optim.Adam = partial(torch.optim.AdamW, weight_decay=weight_decay)


def encode_drawn_pixels() -> None:
    """In training the VAE's encoder sees pixels drawn from the grey values, its loss those values."""
    posterior = vae.VAE.posterior
    vae.VAE.posterior = lambda self, x: posterior(self, torch.bernoulli(x) if self.training else x)


def no_kl_warmup() -> None:
    """The dense VAE has its whole KL term from the first step."""
    vae.kl_warmup = lambda *_: 1.0


def knn_only() -> None:
    """SimCLR's evaluation is cut to the kNN accuracy of 5,000 held-out images, by 10,000."""

    def knn(model, data, folder, args):  # noqa: ARG001
        some = data.train[:10000], data.test
        h, test_h = (simclr.represent(model, x, False) for x in some)
        return {"knn": simclr.knn_accuracy(h, data.train_labels[:10000], test_h, data.test_labels)}

    simclr.evaluate_run = knn


GAN = "gan_mnist --data mnist --sample-every 100000"
DIGITS = "dcgan --data mnist --no-spectral-norm --noise-steps 10000 --sample-every 100000"
VIEWS = f"simclr --data {CIFAR10} --batch-size 128 --steps 300 --warmup 30 --lr 0.12 --half-size 1"
VAE = "vae --data mnist --latent-dim 10 --sample-every 100000 --log-every 500"
DIGITS_3000 = f"{DIGITS} --steps 3000 --lr 4e-3 --beta1 0"
DIGITS_8000 = "dcgan --data mnist --no-spectral-norm --noise-steps 10000 --steps 8000 --lr 2e-3"
CIFAR_1000 = f"dcgan --data {CIFAR10} --steps 1000 --sample-every 1000"
FACES_1000 = f"dcgan --data {FACES} --batch-size 64 --steps 1000 --sample-every 250 --noise-steps 500"
NORMED_8000 = f"{DIGITS_8000} --spectral-norm --lr 4e-3"
HINGE_8000 = f"{DIGITS_8000} --loss hinge --spectral-norm"
DENSE = f"{GAN} --steps 3000 --lr 1e-3 --beta1 0"
TSINGHUA = "vae --data mnist --arch tsinghua --steps 5000"
BINARY = "vae --data mnist --binarize --image-size 28 --sample-every 100000 --log-every 1000"
DENSE_BINARY = f"{BINARY} --arch mlp --latent-dim 50 --steps 20000 --lr 1e-3"
COLLAPSE = "gan_mnist --data mnist --lr 3e-3 --steps 938 --sample-every 469"
RACES = {
    "gan-dense-3000": {
        "lr 1e-3, β₁ 0": DENSE,
        "lr 7e-4, β₁ 0": f"{DENSE} --lr 7e-4",
        "lr 1.4e-3, β₁ 0": f"{DENSE} --lr 1.4e-3",
        "lr 1e-3, β 0 and 0.99": (DENSE, partial(adam, beta2=0.99)),
        "lr 7e-4, β 0 and 0.99": (f"{DENSE} --lr 7e-4", partial(adam, beta2=0.99)),
        "lr 1e-3, β 0 and 0.9": (DENSE, partial(adam, beta2=0.9)),
        "lr 1e-3, β 0 and 0.99, D's half of that": (DENSE, partial(adam, beta2=0.99, D=0.5)),
        "lr 1e-3, β₁ 0, D's half of that": (DENSE, partial(adam, D=0.5)),
        "lr 1.5e-3, β₁ 0, D's a third of that": (f"{DENSE} --lr 1.5e-3", partial(adam, D=1 / 3)),
        "lr 1e-3, β₁ 0, lsgan": f"{DENSE} --loss lsgan",
        "lr 1e-3, β₁ 0.5, lsgan": f"{DENSE} --loss lsgan --beta1 0.5",
        "lr 1e-3, β₁ 0, D's twice that": (DENSE, partial(adam, D=2)),
        "lr 1e-3, β₁ 0, G's half of that": (DENSE, partial(adam, G=0.5)),
    },
    "gan-dense": {
        f"lr {lr}, β₁ {b}": f"{GAN} --steps 1500 --lr {lr} --beta1 {b}"
        for lr in ("5e-4", "1e-3", "2e-3")
        for b in ("0", "0.5")
    },
    "gan-conv": {
        f"{loss}, lr {lr}, β₁ {b}": f"{GAN} --arch conv --steps 600 --loss {loss} --lr {lr} --beta1 {b}"
        for loss in ("gan", "lsgan")
        for lr in ("1e-3", "3e-3")
        for b in ("0", "0.5")
    },
    "collapse": {  # provoked by three times the learning rate
        f"{arch}, {loss}, β₁ {b}": f"{COLLAPSE} --arch {arch} --loss {loss} --beta1 {b}"
        for arch, loss, b in (
            ("dense", "gan", "0.5"),
            ("dense", "gan", "0"),
            ("dense", "lsgan", "0.5"),
            ("conv", "gan", "0.5"),
        )
    },
    "collapsed": {  # the same for as long as a usual run
        f"dense, {loss}": f"{COLLAPSE} --beta1 0.5 --steps 4690 --loss {loss}" for loss in ("gan", "lsgan")
    },
    "dcgan-mnist": {
        f"lr {lr}, β₁ {b}": f"{DIGITS} --steps 1000 --lr {lr} --beta1 {b}"
        for lr in ("1e-3", "2e-3", "4e-3")
        for b in ("0", "0.5")
    },
    "dcgan-mnist-3000": {
        "lr 2e-3, β₁ 0": f"{DIGITS} --steps 3000 --lr 2e-3 --beta1 0",
        "lr 4e-3, β₁ 0": DIGITS_3000,
        "lr 4e-3, β 0 and 0.99": (DIGITS_3000, partial(adam, beta2=0.99)),
        "lr 4e-3, β₁ 0, D's half of that": (DIGITS_3000, partial(adam, D=0.5, first="D")),
        "lr 4e-3, β₁ 0, no noise on D's inputs": f"{DIGITS_3000} --instance-noise 0",
        "lr 4e-3, β₁ 0, labels not smoothed": f"{DIGITS_3000} --label-smoothing 0",
        "lr 4e-3, β₁ 0, lsgan": f"{DIGITS_3000} --loss lsgan",
        "lr 4e-3, β₁ 0, hinge, spectral norm": f"{DIGITS_3000} --loss hinge --spectral-norm",
    },
    "dcgan-mnist-8000": {  # beyond 5,000 steps the distance stays
        "labels not smoothed": f"{DIGITS_8000} --label-smoothing 0",
        "hinge, spectral norm": HINGE_8000,
        "hinge, spectral norm, lr 4e-3": f"{HINGE_8000} --lr 4e-3",
        "hinge, spectral norm, lr 8e-3": f"{HINGE_8000} --lr 8e-3",
        "hinge, spectral norm, lr 4e-3, falling": (f"{HINGE_8000} --lr 4e-3", partial(slow_down, 8000)),
        "spectral norm, lr 4e-3": NORMED_8000,
        "spectral norm, lr 4e-3, falling": (NORMED_8000, partial(slow_down, 8000)),
        "spectral norm, lr 4e-3, D's inputs always noisy": f"{NORMED_8000} --noise-steps 1000000",
        "lr falls in the second half": (DIGITS_8000, partial(slow_down, 8000)),
    },
    "vae": {
        "tsinghua, constant 1e-3": f"{VAE} --steps 4000 --arch tsinghua --lr 1e-3 --lr-schedule constant",
        "tsinghua, cosine from 3e-3": f"{VAE} --steps 4000 --arch tsinghua",
        "technion, 64 wide": f"{VAE} --steps 4000 --width 64",
        "technion, 128 wide": f"{VAE} --steps 4000 --width 128",
        "technion, 128 wide, lr 2e-3": f"{VAE} --steps 4000 --width 128 --lr 2e-3",
        "technion, 128 wide, lr 5e-3": f"{VAE} --steps 4000 --width 128 --lr 5e-3",
    },
    "vae-10000": {
        "128 wide": f"{VAE} --steps 10000 --width 128",
        "weights decay, 0.05": (f"{VAE} --steps 10000 --width 128", partial(decay, 0.05)),
        "encoder sees drawn pixels": (f"{VAE} --steps 10000 --width 128", encode_drawn_pixels),
        "192 wide": f"{VAE} --steps 10000 --width 192",
    },
    "vae-20000": {
        "192 wide": f"{VAE} --steps 20000 --width 192",
        "192 wide, weights decay, 0.1": (f"{VAE} --steps 20000 --width 192", partial(decay, 0.1)),
    },
    "beta": {
        f"β = {beta}": f"vae --data mnist --width 64 --steps 5000 --beta {beta}"
        for beta in ("0", "0.1", "1", "4", "10")
    },
    "latents": {
        **{f"{z}, tsinghua": f"{TSINGHUA} --latent-dim {z} --lr 1e-3" for z in (3, 10, 100)},
        **{f"{z}, tsinghua, lr 3e-3": f"{TSINGHUA} --latent-dim {z}" for z in (3, 10, 100)},
        "10, mlp": "vae --data mnist --arch mlp --steps 5000 --lr 1e-3",
    },
    "binarized": {
        "mlp, lr 1e-3": DENSE_BINARY,
        "mlp, lr 2e-3": f"{DENSE_BINARY} --lr 2e-3",
        "mlp, lr 3e-3": f"{DENSE_BINARY} --lr 3e-3",
        "mlp, lr 1e-3, no KL warm-up": (DENSE_BINARY, no_kl_warmup),
    },
    "confirmed": {  # on the test set, the defaults
        "vae": "vae --data mnist --latent-dim 10",
        "gan_mnist": "gan_mnist --data mnist",
        "gan_mnist, lsgan": "gan_mnist --data mnist --loss lsgan",
        "gan_mnist, conv": "gan_mnist --data mnist --arch conv --steps 2000",
        "dcgan": "dcgan --data mnist",
        "dcgan, 8,000 steps": "dcgan --data mnist --steps 8000",
    },
    "simclr": {
        "16 pixels, τ 0.5": (f"{VIEWS} --tau 0.5", knn_only),
        "16 pixels, τ 0.2": (f"{VIEWS} --tau 0.2", knn_only),
        "16 pixels, τ 0.1": (f"{VIEWS} --tau 0.1", knn_only),
        "32 pixels, τ 0.2, 75 steps": (f"{VIEWS} --tau 0.2 --half-size 0 --steps 75 --warmup 10", knn_only),
    },
    "dcgan-cifar10-1000": {
        "lr 1e-3": CIFAR_1000,
        "hinge, spectral norm, lr 2e-3": f"{CIFAR_1000} --loss hinge --spectral-norm --lr 2e-3",
        "spectral norm, lr 2e-3": f"{CIFAR_1000} --spectral-norm --lr 2e-3",
        "3 x 3 and 4 x 4 kernels in D": (f"{CIFAR_1000} --loss hinge --spectral-norm", by_turns),
        "half as wide, 2,500 steps": f"{CIFAR_1000} --hidden-dim 32 --steps 2500",  # at equal cost, as the next two
        "twice as wide, 300 steps": f"{CIFAR_1000} --hidden-dim 128 --steps 300",
        "twice as deep in D, 350 steps": (f"{CIFAR_1000} --steps 350", partial(by_turns, spectral_norm=False)),
        "ReLU in D": (CIFAR_1000, partial(slope, 0.0)),
    },
    "faces": {
        "lr 1e-3": FACES_1000,
    },
    "dcgan-cifar10": {
        f"lr {lr}, β₁ {b}": f"dcgan --data {CIFAR10} --steps 300 --sample-every 100000 --lr {lr} --beta1 {b}"
        for lr, b in (("2e-4", "0.5"), ("5e-4", "0"), ("1e-3", "0"), ("2e-3", "0"))
    },
}
REPORTED = "confirmed", "beta", "latents", "collapsed"
NUMBERS = ("fd_lenet", "class_entropy", "elbo", "log_px", "knn")


def without_the_test_set(load):
    """load_images, the last tenth of the training set in place of the test set."""

    def loaded(*args):
        data = load(*args)
        n = len(data.train) // 10
        train, labels = data.train, data.train_labels
        part = data._replace(train=train[:-n], train_labels=labels[:-n], test=train[-n:], test_labels=labels[-n:])
        judge = lenet.classifier
        lenet.classifier = lambda _, *rest: judge(data._replace(test=part.test, test_labels=part.test_labels), *rest)
        return part

    return loaded


def candidate(name: str, label: str) -> tuple[list[str], Callable]:
    """(script and flags, what to change first)."""
    found = RACES[name][label]
    flags, change = found if isinstance(found, tuple) else (found, lambda: None)
    return shlex.split(flags), change


def run(name: str, label: str, seed: int) -> None:
    """One candidate, in a process of its own."""
    (script, *flags), change = candidate(name, label)
    if name not in REPORTED:
        images.load_images = without_the_test_set(images.load_images)
    change()
    importlib.import_module(script).main([*flags, "--seed", str(seed), "--out", str(folder(name, label, seed))])


def folder(name: str, label: str, seed: int) -> Path:
    return Path("runs/race", name, re.sub(r"[^\w.]+", "-", label), f"seed-{seed}")


def start(name: str, label: str, seed: int) -> None:
    """Run one candidate to its end, if that has not been done."""
    out = folder(name, label, seed)
    if files.read_json(out / "results.json"):
        return
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "report.race", name, "--one", label, "--seeds", str(seed)]
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True)
    said = done.stderr[-500:] if done.returncode else "done"
    print(f"{label}, seed {seed}: {said}", file=sys.stderr)


def show(name: str, labels: list[str], seeds: list[int]) -> None:
    """The table: each number that a candidate has, over its seeds, and the minutes of a run."""
    found = {}
    for label in labels:
        results = [files.read_json(folder(name, label, seed) / "results.json") for seed in seeds]
        found[label] = [r for r in results if r]
    keys = [key for key in NUMBERS if any(key in r for runs in found.values() for r in runs)]
    rows = []
    for label, runs in found.items():
        minutes = spread([r["train_minutes"] for r in runs])
        rows.append((label, *(spread([r[key] for r in runs if key in r]) for key in keys), len(runs), minutes))
    table(("candidate", *keys, "seeds", "minutes"), rows)


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", choices=RACES)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--only", nargs="+", help="candidates by their names (default: all)")
    p.add_argument("--jobs", type=int, default=2, help="processes side by side, a thread each (default: 2)")
    p.add_argument("--one", help=argparse.SUPPRESS)
    return p.parse_args(argv or [])


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    if args.one:
        run(args.name, args.one, *args.seeds)
        return
    labels = args.only or list(RACES[args.name])
    with ThreadPoolExecutor(args.jobs) as pool:
        for seed in args.seeds:
            for label in labels:
                pool.submit(start, args.name, label, seed)
    show(args.name, labels, args.seeds)


if __name__ == "__main__":
    common.program(main)
