"""Ours against the common way, side by side: `python bench.py`, or `--quick` in under two minutes.

Each row is a process of its own, because allocators remember; rows alternate, and the table gives medians and the ratio
to the first. Timings drift from run to run: only the ratios of one run count.
"""

import argparse
import itertools
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from torchvision.transforms import v2

import char_rnn
import common
import dcgan
import fid
import gan_mnist
import images
import ranks
import run_folder
import simclr
import vae

BATCH = 64
warm = lambda steps: steps // 5  # the first steps, slow everywhere and minutes long with --compile, are not timed


class PerImage(Dataset):
    """Like torchvision's MNIST and CIFAR10: a PIL image per item, then a margin and ToTensor."""

    def __init__(self, pixels: torch.Tensor, margin: int) -> None:
        pad = [transforms.Pad(margin)] if margin else []
        self.pixels, self.transform = pixels, transforms.Compose([*pad, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.pixels[i].permute(1, 2, 0).squeeze(2).numpy()))


def steps_per_second(loader: DataLoader, steps: int, update: Callable[[Tensor], None]) -> float:
    """Of a textbook loop, epoch after epoch, the first steps not timed."""
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, x in zip(range(1, steps + 1), epochs, strict=False):
        update(x)
        if step == warm(steps):
            began = time.perf_counter()
    return (steps - warm(steps)) / (time.perf_counter() - began)


def textbook_vae(args: Namespace, workers: int = 0) -> dict[str, float]:
    """What courses and tutorials do: a DataLoader of single images, float32, PyTorch's layers, sigmoid, then BCE."""
    data = images.load_images(None, "mnist", args.data_dir, 32)
    pixels = images.load_images(None, "mnist", args.data_dir, 28).train
    loader = DataLoader(PerImage(pixels, 2), BATCH, shuffle=True, num_workers=workers)
    torch.manual_seed(args.seed)
    vae.ConvTranspose2d = nn.ConvTranspose2d
    model = vae.build_vae("tsinghua", 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def update(x: Tensor) -> None:
        x_rec, mu, log_sigma2 = model(x)
        loss, _, _ = vae.bce_vae_loss(x, x_rec, mu, log_sigma2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    rate = steps_per_second(loader, args.steps, update)
    return {"images/s": BATCH * rate, "test ELBO": -vae.evaluate(model, data.test, 1.0)["loss"]}


def timed(script, args: Namespace, *flags: str) -> tuple[float, dict]:
    """(steps/s, results.json) of a script as it stands, with logging; Fréchet distances and its end are not timed."""
    vae.log_px = vae.draw_latent = lambda *_, **__: 0.0
    fid.judges, fid.report = lambda *_: {}, lambda *_: {}
    clock, indices = {}, common.batch_indices

    def noting_the_time(n: int, size: int, step: int, seed: int) -> torch.Tensor:
        clock[step] = time.perf_counter()
        return indices(n, size, step, seed)

    common.batch_indices = noting_the_time
    with tempfile.TemporaryDirectory() as out:
        argv = ["--steps", str(args.steps), "--data-dir", args.data_dir, "--seed", str(args.seed), "--out", out]
        script.main([*argv, *flags])
        results = json.load(open(f"{out}/results.json"))
    slow = warm(args.steps)
    return (args.steps - slow) / (60 * results["train_minutes"] - (clock[slow + 1] - clock[1])), results


def our_vae(args: Namespace, *flags: str) -> dict[str, float]:
    rate, results = timed(vae, args, "--latent-dim", "10", "--batch-size", str(BATCH), *flags)
    return {"images/s": BATCH * rate, "test ELBO": results["elbo"]}


def course_gan(args: Namespace, arch: str) -> dict[str, float]:
    """The course's loop: a DataLoader, float32, samples detached for D, all of D differentiated for G."""
    pixels = images.load_images(None, "mnist", args.data_dir, 28).train
    loader = DataLoader(PerImage(pixels, 0), 128, shuffle=True, drop_last=True)
    torch.manual_seed(args.seed)
    dense = arch == "dense"
    D = gan_mnist.discriminator() if dense else gan_mnist.build_dc_classifier()
    G = gan_mnist.generator(96) if dense else gan_mnist.build_dc_generator(96)
    D_solver, G_solver = (torch.optim.Adam(m.parameters(), 1e-3, betas=(0.5, 0.999)) for m in (D, G))

    def update(x: Tensor) -> None:
        D_solver.zero_grad()
        logits_real = D(2 * (x.view(-1, 784) - 0.5))
        logits_fake = D(G(gan_mnist.sample_noise(128, 96)).detach())
        gan_mnist.discriminator_loss(logits_real, logits_fake).backward()
        D_solver.step()
        G_solver.zero_grad()
        gan_mnist.generator_loss(D(G(gan_mnist.sample_noise(128, 96)))).backward()
        G_solver.step()

    return {"images/s": 128 * steps_per_second(loader, args.steps, update)}


def gan_rows(arch: str) -> dict:
    row = lambda *flags: lambda args: {"images/s": 128 * timed(gan_mnist, args, "--arch", arch, *flags)[0]}
    return {
        "the course's loop": lambda args: course_gan(args, arch),
        "gan_mnist.py --no-bf16": row("--no-bf16"),
        "gan_mnist.py": row(),
        "gan_mnist.py --compile": row("--compile"),
    }


def photographs(args: Namespace) -> str:
    folder = Path(args.data_dir, "cifar10-jpeg")
    return str(folder) if folder.exists() else "digits"


def examples_dcgan(args: Namespace, size: int) -> dict[str, float]:
    """The loop of pytorch/examples: 2 workers, float32, one sample for both steps, all of D differentiated for G."""
    data = images.load_images(photographs(args), "", args.data_dir, size)
    loader = DataLoader(PerImage(data.train, 0), 128, shuffle=True, drop_last=True, num_workers=2)
    torch.manual_seed(args.seed)
    channels, bce = data.train.shape[1], F.binary_cross_entropy_with_logits
    shape = {"latent_dim": 100, "hidden_dim": 64, "channels": channels, "image_size": size, "spectral_norm": False}
    G, D = (
        dcgan.build(shape, kind).to(memory_format=torch.contiguous_format)
        for kind in (dcgan.Generator, dcgan.Discriminator)
    )
    G_solver, D_solver = (torch.optim.Adam(m.parameters(), 2e-4, betas=(0.5, 0.999)) for m in (G, D))
    one, zero = torch.ones(128, 1), torch.zeros(128, 1)

    def update(x: Tensor) -> None:
        D_solver.zero_grad()
        bce(D(2 * x - 1), one).backward()
        x_fake = G(torch.randn(128, 100))
        bce(D(x_fake.detach()), zero).backward()
        D_solver.step()
        G_solver.zero_grad()
        bce(D(x_fake), one).backward()
        G_solver.step()

    return {"images/s": 128 * steps_per_second(loader, fewer(args).steps, update)}


def fewer(args: Namespace) -> Namespace:
    """A 25th of the steps, where each takes so much longer."""
    return Namespace(**vars(args) | {"steps": max(5, args.steps // 25)})


def dcgan_rows(size: int) -> dict:
    flags = ("--hidden-dim", "64", "--image-size", str(size))
    run = lambda args, *more: timed(dcgan, fewer(args), *flags, "--data", photographs(args), *more)
    row = lambda *more: lambda args: {"images/s": 128 * run(args, *more)[0]}
    return {
        "pytorch/examples' loop": lambda args: examples_dcgan(args, size),
        "dcgan.py --no-bf16": row("--no-bf16"),
        "dcgan.py": row(),
        "dcgan.py --compile": row("--compile"),
    }


def per_image(t) -> list:
    """SimCLR's augmentation, one image at a time: t is torchvision.transforms or its v2."""
    jitter = t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return [t.RandomResizedCrop(32), t.RandomHorizontalFlip(), jitter, t.RandomGrayscale(0.2)]


class TwoViews(Dataset):
    """A pair of views of each image."""

    def __init__(self, pixels: Tensor, transform: Callable) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.pixels[i]
        return self.transform(x), self.transform(x)


as_pil = transforms.Lambda(lambda x: Image.fromarray(x.permute(1, 2, 0).numpy()))
BY_PIL = transforms.Compose([as_pil, *per_image(transforms), transforms.ToTensor()])
BY_V2 = v2.Compose([*per_image(v2), v2.ToDtype(torch.float32, scale=True)])


def views(args: Namespace, augment: Callable) -> dict[str, float]:
    """Of a batch of images at once, or image by image."""
    x = images.load_images(photographs(args), "", args.data_dir, 32).train[: 4 * args.steps].expand(-1, 3, -1, -1)
    torch.manual_seed(args.seed)
    augment(x[:512])
    began = time.perf_counter()
    for part in x.split(512):
        augment(part)
    return {"views/s": len(x) / (time.perf_counter() - began)}


def simclr_step(args: Namespace, ours: bool, bf16: bool = False) -> dict[str, float]:
    """Steps of ResNet-18 on batches of 256, and the share of their time that goes into, or waits for, views."""
    pixels = images.load_images(photographs(args), "", args.data_dir, 32).train.expand(-1, 3, -1, -1)
    common.setup(Namespace(device="cpu", bf16=bf16, seed=args.seed)) if ours else torch.manual_seed(args.seed)
    model, n, spent = simclr.Model(128, "resnet18"), max(3, args.steps // 250), [0.0, 0.0]
    model = model.to(memory_format=torch.channels_last) if ours else model
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4)
    loader = None if ours else iter(DataLoader(TwoViews(pixels, BY_PIL), 256, shuffle=True, num_workers=2))
    unscaled = {"mean": [0.5] * 3, "std": [0.25] * 3}
    for step in range(n + 1):
        began = time.perf_counter()
        if ours:
            x = pixels[common.batch_indices(len(pixels), 256, step + 1, args.seed)]
            x = simclr.normalise(torch.cat([simclr.augment(x), simclr.augment(x)]), unscaled)
        else:
            x = (torch.cat(next(loader)) - 0.5) / 0.25
        ready = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _, z = model(x)
        optimizer.zero_grad()
        simclr.simclr_loss_vectorized(*z.chunk(2), 0.5).backward()
        optimizer.step()
        if step:  # the first is slow everywhere
            spent = [spent[0] + ready - began, spent[1] + time.perf_counter() - ready]
    return {"images/s": 256 * n / sum(spent), "views, % of time": 100 * spent[0] / sum(spent)}


class CourseGRU(nn.Module):
    """The course's module as students write it: a Linear per gate, one-hot input, a loop over time, then layers."""

    def __init__(self, in_dim: int, h_dim: int, out_dim: int, n_layers: int) -> None:
        super().__init__()
        three = lambda d, bias: [nn.Linear(d, h_dim, bias) for _ in range(3)]
        gates = lambda i: nn.ModuleList(three(i, False) + three(h_dim, True))
        self.layers = nn.ModuleList(gates(h_dim if k else in_dim) for k in range(n_layers))
        self.h_dim, self.output = h_dim, nn.Linear(h_dim, out_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        hs, ys = [x.new_zeros(len(x), self.h_dim) for _ in self.layers], []
        for t in range(x.shape[1]):
            v = x[:, t]
            for k, (xz, xr, xg, hz, hr, hg) in enumerate(self.layers):
                z, r = torch.sigmoid(xz(v) + hz(hs[k])), torch.sigmoid(xr(v) + hr(hs[k]))
                g = torch.tanh(xg(v) + hg(r * hs[k]))
                v = hs[k] = z * hs[k] + (1 - z) * g
            ys.append(self.output(v))
        return torch.stack(ys, 1), None


class TorchGRU(nn.Module):
    """nn.GRU on one-hot input and a linear layer."""

    def __init__(self, in_dim: int, h_dim: int, out_dim: int, n_layers: int) -> None:
        super().__init__()
        self.gru, self.output = nn.GRU(in_dim, h_dim, n_layers, batch_first=True), nn.Linear(h_dim, out_dim)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states, hidden = self.gru(x, hidden)
        return self.output(states), hidden


def gru_training(args: Namespace, kind: type, h_dim: int, n_layers: int, batch: int, bf16=False, compile=False) -> dict:
    """Forward, backward and fused Adam on sequences of 64 of 65 characters."""
    V, S, steps, ours = 65, 64, max(4, args.steps // 50), kind is char_rnn.MultilayerGRU
    if ours:
        common.setup(char_rnn.get_args([]))  # what char_rnn.py does, which holds on to freed memory
    torch.manual_seed(args.seed)
    model, x = kind(V, h_dim, V, n_layers), torch.randint(0, V, (batch, S + 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    given = x[:, :-1] if ours else F.one_hot(x[:, :-1], V).float()
    forward = common.compiled(model, compile)
    for step in range(steps + 2):
        if step == 2:
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, _ = forward(given)
        optimizer.zero_grad()
        F.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten()).backward()
        optimizer.step()
    return {"chars/s": batch * S * steps / (time.perf_counter() - began)}


@torch.no_grad()
def torch_gru_generation(args: Namespace) -> dict[str, float]:
    model, hidden, x, n = TorchGRU(65, 256, 65, 2).eval(), None, torch.tensor([0]), 4 * args.steps
    began = time.perf_counter()
    for _ in range(n):
        scores, hidden = model(F.one_hot(x, 65).float()[None], hidden)
        x = torch.multinomial(torch.softmax(scores[0, 0] / 0.5, 0), 1)
        x.item()
    return {"chars/s": n / (time.perf_counter() - began)}


def our_generation(args: Namespace) -> dict[str, float]:
    model, maps, n = char_rnn.MultilayerGRU(65, 256, 65, 2), char_rnn.char_maps(map(chr, range(65))), 4 * args.steps
    began = time.perf_counter()
    char_rnn.generate_from_model(model, "\0", n, maps, T=0.5)
    return {"chars/s": n / (time.perf_counter() - began)}


def gru_rows(h_dim: int, n_layers: int, batch: int) -> dict:
    row = lambda kind, *how: lambda args: gru_training(args, kind, h_dim, n_layers, batch, *how)
    return {
        "a Linear per gate": row(CourseGRU),
        "nn.GRU": row(TorchGRU),
        "char_rnn.py --no-bf16": row(char_rnn.MultilayerGRU),
        "char_rnn.py": row(char_rnn.MultilayerGRU, True),
        "char_rnn.py --compile": row(char_rnn.MultilayerGRU, True, True),
    }


def feature_extraction(args: Namespace, ours: bool, bf16: bool = False) -> dict[str, float]:
    """Mean and covariance of PNG files' features, with random weights: reading, resizing and network are timed."""
    pixels = images.load_images(None, "mnist", args.data_dir, 32).test[: args.steps // 2]
    torch.manual_seed(args.seed)
    if ours:
        common.setup(Namespace(device="cpu", bf16=bf16, seed=args.seed))  # what fid.py does
    weights = fid.Inception().state_dict()
    with tempfile.TemporaryDirectory() as folder:
        for i, x in enumerate(pixels):
            Image.fromarray(x[0].numpy()).save(f"{folder}/{i}.png")
        if ours:
            torch.save(weights, f"{folder}/weights.pth")
            net = fid.inception(f"{folder}/weights.pth")
            began = time.perf_counter()
            fid.activation_statistics(fid.folder_images(Path(folder), "RGB", 50), net, 50, bf16)
        else:
            from pytorch_fid import fid_score, inception

            inception.load_state_dict_from_url, fid_score.tqdm = lambda *_, **__: weights, iter
            net, files = inception.InceptionV3(), sorted(Path(folder).glob("*.png"))
            began = time.perf_counter()
            fid_score.calculate_activation_statistics(files, net, num_workers=os.cpu_count())
        return {"images/s": len(pixels) / (time.perf_counter() - began)}


def trace_of_the_root(args: Namespace, n: int, ours: bool) -> dict[str, float]:
    """The distance of two Gaussians of 2048 features: from covariances, or, in ours with few images, from features."""
    mixing = torch.randn(2048, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(args.seed)) / 45
    scales = torch.logspace(0, -4, 2048, dtype=torch.float64)  # eigenvalues that fall, as those of real features do
    torch.manual_seed(args.seed)
    sets = [(torch.randn(n, 2048, dtype=torch.float64) * scales) @ mixing for _ in range(2)]
    given = [fid.statistics([x]) for x in sets]
    mu, sigma = [s.mu for s in given], [s.factor.T @ s.factor for s in given]
    began = time.perf_counter()
    if not ours:
        from scipy.linalg import sqrtm

        root = sqrtm((sigma[0] @ sigma[1]).numpy()).trace().real
        value = ((mu[0] - mu[1]) ** 2).sum() + sigma[0].trace() + sigma[1].trace() - 2 * root
    elif n < 2048:
        value = fid.distance(mu[0], given[0].factor, mu[1], given[1].factor)
    else:
        value = fid.frechet_distance(mu[0], sigma[0], mu[1], sigma[1])
    return {"per minute": 60 / (time.perf_counter() - began), "distance": float(value)}


def distance_rows(n: int) -> dict:
    row = lambda ours: lambda args: trace_of_the_root(args, n, ours)
    return {"scipy.linalg.sqrtm": row(False), "fid.py": row(True)}


def watched(
    script, args: Namespace, flags: list[str], steps: int, watch: Callable[[run_folder.Run, int], None]
) -> None:
    """Train for so many steps, without evaluation; watch(run, step) is called as each begins."""
    fid.judges, all_steps = lambda *_: {}, run_folder.Run.steps

    def seen(run):
        for step in all_steps(run):
            watch(run, step)
            yield step

    run_folder.Run.steps, ranks.leave = seen, sys.exit
    with tempfile.TemporaryDirectory() as out:
        usual = ["--device", "cpu", "--data-dir", args.data_dir, "--seed", str(args.seed), "--out", f"{out}/run"]
        try:
            script.main([*flags, *usual, "--steps", str(steps), "--log-every", "1000", "--sample-every", "1000"])
        except SystemExit as end:
            assert not end.code, end.code


class Calls(TorchDispatchMode):
    """Counts operations: on a GPU each is a kernel or two, or a view, which is none."""

    n = 0

    def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
        self.n += not operation.is_view
        return operation(*args, **(kwargs or {}))


def communication(args: Namespace, script, *flags: str) -> dict[str, float]:
    """Of a step on two gloo ranks: bytes to be reduced, by hand and by the loopback device; efficiency on paper.

    On paper a GPU computes at 200 TFLOP/s or starts an operation every 5 µs, whichever takes longer; nothing overlaps;
    an all-reduce of S bytes by R ranks takes 2 (R − 1) / R · S / bandwidth and 20 µs among 8 (300 GB/s), and once more,
    with 40 µs, among 8 such machines (400 Gb/s each). Every GPU has the script's usual batch. With less than `batch` on
    a GPU its step gets no shorter.
    """
    sent, begun = lambda: int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text()), {}
    if ranks.launched():
        watched(script, args, list(flags), 6, lambda _, step: begun.setdefault(step, sent()))
        return {"bytes": (begun[6] - begun[2]) / 4 / 2}  # each of two ranks sends as much as it reduces
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *sys.argv]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured = json.loads(out.splitlines()[-1])["bytes"]

    operations, flop_counter, runs = Calls(), FlopCounterMode(display=False), []

    def count(run: run_folder.Run, step: int) -> None:
        if step == 2:
            runs.append(run)
            operations.__enter__()
            flop_counter.__enter__()
        if step == 3:
            flop_counter.__exit__(None, None, None)
            operations.__exit__(None, None, None)

    watched(script, args, list(flags), 3, count)
    run, batch = runs[0], runs[0].args.batch_size
    reduced = calls = 0
    for key, passes in {"model": 2, "G": 3, "D": 6}.items():  # forward and backward; G also makes what D learns from
        net = run.objects.get(key, nn.Module())
        norms = [m.num_features for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        reduced += 4 * sum(p.numel() for p in net.parameters()) + 4 * 2 * passes * sum(norms)  # two sums per channel
        calls += (key in run.objects) + passes * len(norms)
    if script is simclr:
        reduced, calls = reduced + 2 * 4 * 2 * batch * run.args.feature_dim, calls + 2  # z forward and its gradient
    if script is char_rnn:
        reduced, calls = reduced + 4 * run.objects["state"]["hidden"].numel(), calls + 1
    flops, starting = flop_counter.get_total_flops() / batch, 5e-6 * operations.n
    one_gpu = max(starting, flops * batch / 200e12)
    on = lambda n, latency, bandwidth: calls * latency + 2 * (n - 1) / n * reduced / bandwidth
    node, cluster = on(8, 20e-6, 300e9), on(8, 20e-6, 300e9) + on(8, 40e-6, 50e9)
    return {
        "KB reduced": reduced / 1e3,
        "measured": measured / 1e3,
        "reductions": calls,
        "operations": operations.n,
        "MFLOP/sample": flops / 1e6,
        "8 GPUs, %": 100 * one_gpu / (one_gpu + node),
        "64 GPUs, %": 100 * one_gpu / (one_gpu + cluster),
        "batch": max(starting, node) * 200e12 / flops,
    }


TABLES = {
    "vae.py, MNIST at 32 pixels, 10 latents, batch 64": {
        "textbook loop": textbook_vae,
        "textbook loop, 2 workers": lambda args: textbook_vae(args, workers=2),
        "vae.py --no-bf16": lambda args: our_vae(args, "--no-bf16"),
        "vae.py": our_vae,
        "vae.py --compile": lambda args: our_vae(args, "--compile"),
    },
    "GRU training, 2 layers of 256, batch 64, sequences of 64": gru_rows(256, 2, 64),
    "GRU training, 3 layers of 512, batch 128, sequences of 64": gru_rows(512, 3, 128),
    "GRU generation, 2 layers of 256, batch 1": {"nn.GRU": torch_gru_generation, "char_rnn.py": our_generation},
    "gan_mnist.py, dense, batch 128": gan_rows("dense"),
    "gan_mnist.py, conv, batch 128": gan_rows("conv"),
    "dcgan.py at 32 pixels, batch 128": dcgan_rows(32),
    "dcgan.py at 64 pixels, batch 128": dcgan_rows(64),
    "SimCLR's views at 32 pixels": {
        "torchvision, PIL": lambda args: views(args, lambda x: [BY_PIL(image) for image in x]),
        "torchvision v2, tensors": lambda args: views(args, lambda x: [BY_V2(image) for image in x]),
        "simclr.py": lambda args: views(args, simclr.augment),
    },
    "SimCLR training, ResNet-18, batch 256": {
        "torchvision's loader, 2 workers": lambda args: simclr_step(args, False),
        "simclr.py --no-bf16": lambda args: simclr_step(args, True),
        "simclr.py": lambda args: simclr_step(args, True, True),
    },
    "Inception features and their covariance, float32": {
        "pytorch-fid": lambda args: feature_extraction(args, False),
        "fid.py": lambda args: feature_extraction(args, True),
        "fid.py --bf16": lambda args: feature_extraction(args, True, True),
    },
    "Fréchet distance, 3,000 images": distance_rows(3000),
    "Fréchet distance, 1,000 images": distance_rows(1000),
    "Two ranks, per step": {
        "vae.py": lambda args: communication(args, vae),
        "char_rnn.py": lambda args: communication(args, char_rnn),
        "gan_mnist.py": lambda args: communication(args, gan_mnist),
        "gan_mnist.py --arch conv": lambda args: communication(args, gan_mnist, "--arch", "conv"),
        "dcgan.py": lambda args: communication(args, dcgan, "--data", photographs(args)),
        "simclr.py": lambda args: communication(args, simclr, "--batch-size", "256", "--data", photographs(args)),
    },
}


SLOW = re.compile(
    "conv|dcgan|SimCLR training|Two ranks|v2|fid.py --bf16|--compile|--no-bf16|workers|3 layers|Fréchet|generation"
).search  # what --quick leaves out


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return (names or [platform.processor() or platform.machine()])[0]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    p.add_argument("--quick", action="store_true", help="one round, less steps and rows")
    p.add_argument(
        "--steps",
        type=common.number(int, 5),
        default=1000,
        help="vae.py and gan_mnist.py; dcgan.py: a 25th, GRU: a 50th, generation: 4 times, Inception: half, in images",
    )
    p.add_argument("--rounds", type=common.number(int, 1), default=3, help="times that each row is run")
    p.add_argument("--seed", type=common.number(int, 0), default=0, help="of every row")
    p.add_argument("--data-dir", default="data", help="where MNIST is; without it, the embedded digits")
    p.add_argument("--only", default="", help="run the rows whose table and name contain this")
    p.add_argument("--row", nargs=2, metavar=("TABLE", "ROW"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.row:
        figures = TABLES[args.row[0]][args.row[1]](args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
        print(json.dumps(figures | {"peak MB": peak}))
        return
    if args.quick:
        args.steps, args.rounds = min(args.steps, 150), 1

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}")
    for table, rows in TABLES.items():
        rows = [row for row in rows if args.only in f"{table}: {row}" and not (args.quick and SLOW(table + row))]
        if not rows:
            continue
        measured = {row: [] for row in rows}
        for _ in range(args.rounds):
            for row in rows:
                command = [sys.executable, __file__, "--row", table, row, "--steps", str(args.steps)]
                command += ["--seed", str(args.seed), "--data-dir", args.data_dir]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                measured[row].append(json.loads(out.splitlines()[-1]))
        print(f"\n{table}, --steps {args.steps}, median of {args.rounds}\n")
        names = list(measured[rows[0]][0])
        print(f"| {'':26} | {' | '.join(f'{name:>10}' for name in names)} | ratio |")
        print(f"|{'-' * 28}|{'-----------:|' * len(names)}------:|")
        for row in rows:
            medians = {name: statistics.median(m[name] for m in measured[row]) for name in names}
            base = statistics.median(m[names[0]] for m in measured[rows[0]])
            cells = " | ".join(f"{medians[name]:10.1f}" for name in names)
            print(f"| {row:26} | {cells} | {medians[names[0]] / base:5.2f} |")


if __name__ == "__main__":
    main()
