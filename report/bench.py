"""Ours against the common way, side by side: `python -m report.bench`, or `--quick` in under two minutes.

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
import simclr
import vae
from plumbing import folders, hardware, images, inception, process, ranks, run_folder

VAE_BATCH = 64
GAN_BATCH = 128
SIMCLR_BATCH = 256
BF16 = hardware.bf16("cpu", None)  # what scripts do without --no-bf16


class PerImage(Dataset):
    """Like torchvision's MNIST and CIFAR10: a PIL image per item, then a margin and ToTensor."""

    def __init__(self, pixels: Tensor, margin: int) -> None:
        pad = transforms.Pad(margin) if margin else nn.Identity()
        self.pixels, self.transform = pixels, transforms.Compose([pad, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return self.transform(Image.fromarray(self.pixels[i].permute(1, 2, 0).squeeze(2).numpy()))


def n_untimed(steps: int) -> int:
    """The first steps, slow everywhere and minutes long with --compile."""
    return steps // 5


def steps_per_second(loader: DataLoader, steps: int, update: Callable[[Tensor], None]) -> float:
    """Of a textbook loop, epoch after epoch, the first steps not timed."""
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, x in zip(range(1, steps + 1), epochs, strict=False):
        update(x)
        if step == n_untimed(steps):
            began = time.perf_counter()
    return (steps - n_untimed(steps)) / (time.perf_counter() - began)


def timed(script, args: Namespace, *flags: str) -> tuple[float, dict]:
    """(steps/s, results.json) of a script as it stands, with logging; Fréchet distances and its end are not timed."""
    vae.log_px = vae.draw_latent = lambda *_, **__: 0.0
    fid.judges, fid.report = lambda *_: {}, lambda *_: {}
    clock, indices = {}, common.batch_indices

    def noting_the_time(n: int, size: int, step: int, seed: int) -> Tensor:
        clock[step] = time.perf_counter()
        return indices(n, size, step, seed)

    common.batch_indices = noting_the_time
    with tempfile.TemporaryDirectory() as out:
        argv = ["--steps", str(args.steps), "--data-dir", args.data_dir, "--seed", str(args.seed), "--out", out]
        script.main([*argv, *flags])
        results = json.loads(Path(out, "results.json").read_text())
    slow = n_untimed(args.steps)
    seconds = 60 * results["train_minutes"] - (clock[slow + 1] - clock[1])
    return (args.steps - slow) / seconds, results


# ------------------------------------------------------------------------------------------------------------------ VAE


def textbook_vae(args: Namespace, workers: int = 0) -> dict[str, float]:
    """What courses and tutorials do: a DataLoader of single images, float32, PyTorch's layers, sigmoid, then BCE."""
    data = images.load_images(None, "mnist", args.data_dir, 32)
    pixels = images.load_images(None, "mnist", args.data_dir, 28).train
    loader = DataLoader(PerImage(pixels, 2), VAE_BATCH, shuffle=True, num_workers=workers)
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
    return {"images/s": VAE_BATCH * rate, "test ELBO": -vae.evaluate(model, data.test, 1.0)["loss"]}


def our_vae(args: Namespace, *flags: str) -> dict[str, float]:
    rate, results = timed(vae, args, "--arch", "tsinghua", "--batch-size", str(VAE_BATCH), *flags)
    return {"images/s": VAE_BATCH * rate, "test ELBO": results["elbo"]}


# ----------------------------------------------------------------------------------------------------------------- GANs


def course_gan(args: Namespace, arch: str) -> dict[str, float]:
    """The course's loop: a DataLoader, float32, samples detached for D, all of D differentiated for G."""
    pixels = images.load_images(None, "mnist", args.data_dir, 28).train
    loader = DataLoader(PerImage(pixels, 0), GAN_BATCH, shuffle=True, drop_last=True)
    torch.manual_seed(args.seed)
    if arch == "dense":
        D, G = gan_mnist.discriminator(), gan_mnist.generator(96)
    else:
        D, G = gan_mnist.build_dc_classifier(), gan_mnist.build_dc_generator(96)
    D_solver = torch.optim.Adam(D.parameters(), 1e-3, betas=(0.5, 0.999))
    G_solver = torch.optim.Adam(G.parameters(), 1e-3, betas=(0.5, 0.999))

    def update(x: Tensor) -> None:
        D_solver.zero_grad()
        logits_real = D(2 * (x.view(-1, 784) - 0.5))
        logits_fake = D(G(gan_mnist.sample_noise(GAN_BATCH, 96)).detach())
        gan_mnist.discriminator_loss(logits_real, logits_fake).backward()
        D_solver.step()
        G_solver.zero_grad()
        gan_mnist.generator_loss(D(G(gan_mnist.sample_noise(GAN_BATCH, 96)))).backward()
        G_solver.step()

    return {"images/s": GAN_BATCH * steps_per_second(loader, args.steps, update)}


def our_gan(args: Namespace, arch: str, *flags: str) -> dict[str, float]:
    rate, _ = timed(gan_mnist, args, "--arch", arch, "--batch-size", str(GAN_BATCH), *flags)
    return {"images/s": GAN_BATCH * rate}


def gan_rows(arch: str) -> dict[str, Callable]:
    return {
        "the course's loop": lambda args: course_gan(args, arch),
        "gan_mnist.py --no-bf16": lambda args: our_gan(args, arch, "--no-bf16"),
        "gan_mnist.py": lambda args: our_gan(args, arch),
        "gan_mnist.py --compile": lambda args: our_gan(args, arch, "--compile"),
    }


def photographs(args: Namespace) -> str:
    folder = Path(args.data_dir, "cifar10-jpeg")
    return str(folder) if folder.exists() else "digits"


def fewer(args: Namespace) -> Namespace:
    """A 25th of the steps, where each takes so much longer."""
    return Namespace(**vars(args) | {"steps": max(5, args.steps // 25)})


def examples_dcgan(args: Namespace, size: int) -> dict[str, float]:
    """The loop of pytorch/examples: 2 workers, float32, one sample for both steps, all of D differentiated for G."""
    data = images.load_images(photographs(args), "", args.data_dir, size)
    loader = DataLoader(PerImage(data.train, 0), GAN_BATCH, shuffle=True, drop_last=True, num_workers=2)
    torch.manual_seed(args.seed)
    channels, bce = data.train.shape[1], F.binary_cross_entropy_with_logits
    shape = {"latent_dim": 100, "hidden_dim": 64, "channels": channels, "image_size": size, "spectral_norm": False}
    G = dcgan.build(shape).to(memory_format=torch.contiguous_format)
    D = dcgan.build(shape, dcgan.Discriminator).to(memory_format=torch.contiguous_format)
    G_solver = torch.optim.Adam(G.parameters(), 2e-4, betas=(0.5, 0.999))
    D_solver = torch.optim.Adam(D.parameters(), 2e-4, betas=(0.5, 0.999))
    one, zero = torch.ones(GAN_BATCH, 1), torch.zeros(GAN_BATCH, 1)

    def update(x: Tensor) -> None:
        D_solver.zero_grad()
        bce(D(2 * x - 1), one).backward()
        x_fake = G(torch.randn(GAN_BATCH, 100))
        bce(D(x_fake.detach()), zero).backward()
        D_solver.step()
        G_solver.zero_grad()
        bce(D(x_fake), one).backward()
        G_solver.step()

    return {"images/s": GAN_BATCH * steps_per_second(loader, fewer(args).steps, update)}


def our_dcgan(args: Namespace, size: int, *flags: str) -> dict[str, float]:
    shape = ("--hidden-dim", "64", "--image-size", str(size), "--batch-size", str(GAN_BATCH))
    rate, _ = timed(dcgan, fewer(args), *shape, "--data", photographs(args), *flags)
    return {"images/s": GAN_BATCH * rate}


def dcgan_rows(size: int) -> dict[str, Callable]:
    return {
        "pytorch/examples' loop": lambda args: examples_dcgan(args, size),
        "dcgan.py --no-bf16": lambda args: our_dcgan(args, size, "--no-bf16"),
        "dcgan.py": lambda args: our_dcgan(args, size),
        "dcgan.py --compile": lambda args: our_dcgan(args, size, "--compile"),
    }


# --------------------------------------------------------------------------------------------------------------- SimCLR


def per_image(t) -> list[Callable]:
    """SimCLR's augmentation, one image at a time: t is torchvision.transforms or its v2."""
    jitter = t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return [t.RandomResizedCrop(32), t.RandomHorizontalFlip(), jitter, t.RandomGrayscale(0.2)]


def as_pil(x: Tensor) -> Image.Image:
    """uint8 (3, H, W)."""
    return Image.fromarray(x.permute(1, 2, 0).numpy())


BY_PIL = transforms.Compose([transforms.Lambda(as_pil), *per_image(transforms), transforms.ToTensor()])
BY_V2 = v2.Compose([*per_image(v2), v2.ToDtype(torch.float32, scale=True)])


class TwoViews(Dataset):
    """A pair of views of each image."""

    def __init__(self, pixels: Tensor, transform: Callable) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        x = self.pixels[i]
        return self.transform(x), self.transform(x)


def views(args: Namespace, augment: Callable) -> dict[str, float]:
    """Of a batch of images at once, or image by image."""
    x = images.load_images(photographs(args), "", args.data_dir, 32).train[: 4 * args.steps].expand(-1, 3, -1, -1)
    torch.manual_seed(args.seed)
    augment(x[:512])
    began = time.perf_counter()
    for part in x.split(512):
        augment(part)
    return {"views/s": len(x) / (time.perf_counter() - began)}


def simclr_steps(args: Namespace, model: nn.Module, two_views: Callable[[int], Tensor], bf16: bool) -> dict[str, float]:
    """Steps of ResNet-18, and the share of their time that goes into, or waits for, the views of a step's images."""
    n = max(3, args.steps // 250)
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4)
    making = training = 0.0
    for step in range(n + 1):
        began = time.perf_counter()
        x = two_views(step)  # (2 * SIMCLR_BATCH, 3, 32, 32)
        ready = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _, z = model(x)
        optimizer.zero_grad()
        simclr.simclr_loss_vectorized(*z.chunk(2), 0.5).backward()
        optimizer.step()
        if step:  # the first is slow everywhere
            making += ready - began
            training += time.perf_counter() - ready
    seconds = making + training
    return {"images/s": SIMCLR_BATCH * n / seconds, "views, % of time": 100 * making / seconds}


def simclr_pixels(args: Namespace) -> Tensor:
    """uint8 (N, 3, 32, 32)."""
    return images.load_images(photographs(args), "", args.data_dir, 32).train.expand(-1, 3, -1, -1)


def loader_simclr(args: Namespace) -> dict[str, float]:
    """Views by torchvision, image by image, in two workers; float32."""
    torch.manual_seed(args.seed)
    model = simclr.Model(128, "resnet18")
    loader = DataLoader(TwoViews(simclr_pixels(args), BY_PIL), SIMCLR_BATCH, shuffle=True, num_workers=2)
    batches = iter(loader)

    def two_views(_) -> Tensor:
        return (torch.cat(next(batches)) - 0.5) / 0.25

    return simclr_steps(args, model, two_views, bf16=False)


def our_simclr(args: Namespace, bf16: bool) -> dict[str, float]:
    process.setup(Namespace(device="cpu", seed=args.seed))
    pixels = simclr_pixels(args)
    model = simclr.Model(128, "resnet18").to(memory_format=torch.channels_last)
    numbers = {"mean": [0.5] * 3, "std": [0.25] * 3}

    def two_views(step: int) -> Tensor:
        x = pixels[common.batch_indices(len(pixels), SIMCLR_BATCH, step + 1, args.seed)]
        return simclr.normalise(torch.cat([simclr.augment(x), simclr.augment(x)]), numbers)

    return simclr_steps(args, model, two_views, bf16)


# ------------------------------------------------------------------------------------------------------------------ GRU


class CourseGRU(nn.Module):
    """The course's module as students write it: a Linear per gate, one-hot input, a loop over time, then layers."""

    def __init__(self, in_dim: int, h_dim: int, out_dim: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for k in range(n_layers):
            of_x = [nn.Linear(h_dim if k else in_dim, h_dim, bias=False) for _ in range(3)]
            of_h = [nn.Linear(h_dim, h_dim) for _ in range(3)]
            self.layers.append(nn.ModuleList([*of_x, *of_h]))
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
    V, S, steps = 65, 64, max(4, args.steps // 50)
    ours = kind is char_rnn.MultilayerGRU
    if ours:
        process.setup(char_rnn.get_args([]))  # what char_rnn.py does, which holds on to freed memory
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


def gru_rows(h_dim: int, n_layers: int, batch: int) -> dict[str, Callable]:
    ours, shape = char_rnn.MultilayerGRU, (h_dim, n_layers, batch)
    return {
        "a Linear per gate": lambda args: gru_training(args, CourseGRU, *shape),
        "nn.GRU": lambda args: gru_training(args, TorchGRU, *shape),
        "char_rnn.py --no-bf16": lambda args: gru_training(args, ours, *shape),
        "char_rnn.py": lambda args: gru_training(args, ours, *shape, bf16=BF16),
        "char_rnn.py --compile": lambda args: gru_training(args, ours, *shape, bf16=BF16, compile=True),
    }


@torch.no_grad()
def torch_gru_generation(args: Namespace) -> dict[str, float]:
    model, hidden, x, n = TorchGRU(65, 256, 65, 2).eval(), None, torch.tensor([0]), 4 * args.steps
    began = time.perf_counter()
    for _ in range(n):
        scores, hidden = model(F.one_hot(x, 65).float()[None], hidden)
        x = torch.multinomial(torch.softmax(scores[0, 0] / 0.5, 0), 1)
        x.item()
    return {"chars/s": n / (time.perf_counter() - began)}


def our_generation(args: Namespace, texts: int = 1) -> dict[str, float]:
    step, n = char_rnn.OneStep(char_rnn.MultilayerGRU(65, 256, 65, 2)), 4 * args.steps
    drawn = char_rnn.continuation(step, [0], torch.device("cpu"), temperature=0.5, n=texts)
    began = time.perf_counter()
    for _ in range(n // texts):
        next(drawn)
    return {"chars/s": n / (time.perf_counter() - began)}


# ------------------------------------------------------------------------------------------------------------------ FID


def write_pictures(args: Namespace, folder: str) -> int:
    """PNG files of test digits into the folder; how many."""
    pixels = images.load_images(None, "mnist", args.data_dir, 32).test[: args.steps // 2]
    for i, x in enumerate(pixels):
        Image.fromarray(x[0].numpy()).save(f"{folder}/{i}.png")
    return len(pixels)


def pytorch_fid_features(args: Namespace) -> dict[str, float]:
    """Mean and covariance of PNG files' features, with random weights: reading, resizing and network are timed."""
    import pytorch_fid.inception
    from pytorch_fid import fid_score

    torch.manual_seed(args.seed)
    weights = inception.Inception().state_dict()
    pytorch_fid.inception.load_state_dict_from_url, fid_score.tqdm = lambda *_, **__: weights, iter
    with tempfile.TemporaryDirectory() as folder:
        n, net = write_pictures(args, folder), pytorch_fid.inception.InceptionV3()
        files = sorted(Path(folder).glob("*.png"))
        began = time.perf_counter()
        fid_score.calculate_activation_statistics(files, net, num_workers=os.cpu_count())
        return {"images/s": n / (time.perf_counter() - began)}


def our_features(args: Namespace) -> dict[str, float]:
    """The same."""
    process.setup(Namespace(device="cpu", seed=args.seed))  # what fid.py does
    with tempfile.TemporaryDirectory() as folder:
        n = write_pictures(args, folder)
        torch.save(inception.Inception().state_dict(), f"{folder}/weights.pth")
        net = inception.load(f"{folder}/weights.pth")
        began = time.perf_counter()
        fid.activation_statistics(folders.folder_images(Path(folder), "RGB", 50), net)
        return {"images/s": n / (time.perf_counter() - began)}


def feature_sets(args: Namespace, n: int) -> list[fid.Statistics]:
    """Of two sets of n images: 2048 features, whose covariance has eigenvalues that fall, as those of real ones do."""
    mixing = torch.randn(2048, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(args.seed)) / 45
    scales = torch.logspace(0, -4, 2048, dtype=torch.float64)
    torch.manual_seed(args.seed)
    sets = [(torch.randn(n, 2048, dtype=torch.float64) * scales) @ mixing for _ in range(2)]
    return [fid.statistics([x]) for x in sets]


def scipy_distance(args: Namespace, n: int) -> dict[str, float]:
    """From covariances, by the square root of their product."""
    from scipy.linalg import sqrtm

    real, fake = feature_sets(args, n)
    sigma1, sigma2 = real.factor.T @ real.factor, fake.factor.T @ fake.factor
    began = time.perf_counter()
    root = sqrtm((sigma1 @ sigma2).numpy()).trace().real
    value = ((real.mu - fake.mu) ** 2).sum() + sigma1.trace() + sigma2.trace() - 2 * root
    return {"per minute": 60 / (time.perf_counter() - began), "distance": float(value)}


def our_distance(args: Namespace, n: int) -> dict[str, float]:
    """From covariances, or with few images from features."""
    real, fake = feature_sets(args, n)
    sigma1, sigma2 = real.factor.T @ real.factor, fake.factor.T @ fake.factor
    began = time.perf_counter()
    if n < 2048:
        value = fid.distance(real.mu, real.factor, fake.mu, fake.factor)
    else:
        value = fid.frechet_distance(real.mu, sigma1, fake.mu, sigma2)
    return {"per minute": 60 / (time.perf_counter() - began), "distance": value}


def distance_rows(n: int) -> dict[str, Callable]:
    return {
        "scipy.linalg.sqrtm": lambda args: scipy_distance(args, n),
        "fid.py": lambda args: our_distance(args, n),
    }


# -------------------------------------------------------------------------------------------------------- several ranks


def watched(script, args: Namespace, flags: tuple[str, ...], steps: int, watch: Callable) -> None:
    """Train for so many steps, without evaluation; watch(run, step) is called as each begins."""
    all_steps = run_folder.Run.steps

    def seen(run: run_folder.Run):
        for step in all_steps(run):
            watch(run, step)
            yield step

    run_folder.Run.steps = seen
    fid.judges, ranks.leave = lambda *_: {}, sys.exit  # where evaluation would begin, the script ends
    with tempfile.TemporaryDirectory() as out:
        usual = ["--device", "cpu", "--data-dir", args.data_dir, "--seed", str(args.seed), "--out", f"{out}/run"]
        try:
            script.main([*flags, *usual, "--steps", str(steps), "--log-every", "1000", "--sample-every", "1000"])
        except SystemExit as end:
            assert not end.code, end.code


def bytes_on_loopback() -> int:
    """That this machine's processes have sent one another so far."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def sent_per_step(args: Namespace, script, *flags: str) -> float:
    """Bytes that a step of one of two ranks sends; two ranks send as much as they reduce. This is one of them."""
    sent = {}

    def watch(_, step: int) -> None:
        sent[step] = bytes_on_loopback()

    watched(script, args, flags, 6, watch)
    return (sent[6] - sent[2]) / 4 / 2


class Calls(TorchDispatchMode):
    """Counts operations: on a GPU each is a kernel or two, or a view, which is none."""

    n = 0

    def __torch_dispatch__(self, operation, _, args=(), kwargs=None):
        self.n += not operation.is_view
        return operation(*args, **(kwargs or {}))


def one_step(script, args: Namespace, *flags: str) -> tuple[run_folder.Run, int, int]:
    """(a run, how many operations its second step takes, and how many floating-point operations)."""
    operations, flop_counter, runs = Calls(), FlopCounterMode(display=False), []

    def watch(run: run_folder.Run, step: int) -> None:
        if step == 2:
            runs.append(run)
            operations.__enter__()
            flop_counter.__enter__()
        if step == 3:
            flop_counter.__exit__(None, None, None)
            operations.__exit__(None, None, None)

    watched(script, args, flags, 3, watch)
    return runs[0], operations.n, flop_counter.get_total_flops()


def reductions(script, run: run_folder.Run) -> tuple[int, int]:
    """(bytes that a step reduces over the ranks, in how many calls), by hand."""
    n_bytes = calls = 0
    for key, passes in {"model": 2, "G": 3, "D": 6}.items():  # forward and backward; G also makes what D learns from
        if key in run.objects:
            net = run.objects[key]
            channels = [m.num_features for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            n_bytes += 4 * sum(p.numel() for p in net.parameters()) + 4 * 2 * passes * sum(channels)  # two sums each
            calls += 1 + passes * len(channels)
    if script is simclr:  # z forward and its gradient
        n_bytes += 2 * 4 * 2 * run.args.batch_size * run.args.feature_dim
        calls += 2
    if script is char_rnn:  # the hidden state
        n_bytes += 4 * run.objects["state"]["hidden"].numel()
        calls += 1
    return n_bytes, calls


def all_reduce(calls: int, n_bytes: int, latency: float, bandwidth: float) -> float:
    """Seconds on paper, among 8."""
    return calls * latency + 2 * 7 / 8 * n_bytes / bandwidth


def communication(args: Namespace, script, *flags: str) -> dict[str, float]:
    """Of a step on two gloo ranks: bytes to be reduced, by hand and by the loopback device; efficiency on paper.

    On paper a GPU computes at 200 TFLOP/s or starts an operation every 5 µs, whichever takes longer; nothing overlaps;
    an all-reduce of S bytes by R ranks takes 2 (R − 1) / R · S / bandwidth and 20 µs among 8 (300 GB/s), and once more,
    with 40 µs, among 8 such machines (400 Gb/s each). Every GPU has the script's usual batch. With less than `batch` on
    a GPU its step gets no shorter.
    """
    if ranks.launched():
        return {"bytes": sent_per_step(args, script, *flags)}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    measured = json_line([*torchrun, "-m", "report.bench", *sys.argv[1:]])["bytes"]

    run, n_operations, flops = one_step(script, args, *flags)
    n_bytes, calls = reductions(script, run)
    starting, per_sample = 5e-6 * n_operations, flops / run.args.batch_size
    one_gpu = max(starting, flops / 200e12)
    node = all_reduce(calls, n_bytes, 20e-6, 300e9)
    cluster = node + all_reduce(calls, n_bytes, 40e-6, 50e9)
    return {
        "KB reduced": n_bytes / 1e3,
        "measured": measured / 1e3,
        "reductions": calls,
        "operations": n_operations,
        "MFLOP/sample": per_sample / 1e6,
        "8 GPUs, %": 100 * one_gpu / (one_gpu + node),
        "64 GPUs, %": 100 * one_gpu / (one_gpu + cluster),
        "batch": max(starting, node) * 200e12 / per_sample,
    }


# ------------------------------------------------------------------------------------------------------- all the tables


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
    "GRU generation, 2 layers of 256": {
        "nn.GRU": torch_gru_generation,
        "char_rnn.py": our_generation,
        "char_rnn.py, 16 texts": lambda args: our_generation(args, texts=16),
    },
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
        "torchvision's loader, 2 workers": loader_simclr,
        "simclr.py --no-bf16": lambda args: our_simclr(args, bf16=False),
        "simclr.py": lambda args: our_simclr(args, bf16=BF16),
    },
    "Inception features and their covariance, float32": {"pytorch-fid": pytorch_fid_features, "fid.py": our_features},
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
SLOW = "conv|dcgan|SimCLR training|Two ranks|v2|--compile|--no-bf16|workers|3 layers|Fréchet|generation"  # not --quick


def get_args(argv: list[str] | None = None) -> Namespace:
    p = common.Parser(__doc__)
    p.add_argument("--quick", action="store_true", help="one round, less steps and rows")
    steps_help = (
        "of vae.py and gan_mnist.py; dcgan.py: a 25th, GRU: a 50th, generation: 4 times, Inception: half, in images"
    )
    p.add_argument("--steps", type=common.number(int, 5), default=1000, help=steps_help)
    p.add_argument("--rounds", type=common.number(int, 1), default=3, help="times that each row is run")
    p.add_argument("--seed", type=common.number(int, 0), default=0, help="of every row")
    p.add_argument("--data-dir", default="data", help="where MNIST is; without it, the embedded digits")
    p.add_argument("--only", default="", help="run the rows whose table and name contain this")
    p.add_argument("--row", nargs=2, metavar=("TABLE", "ROW"), help=argparse.SUPPRESS)
    return p.parse_args(argv)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return (names or [platform.processor() or platform.machine()])[0]


def json_line(command: list[str]) -> dict[str, float]:
    """The last line that python prints, given these arguments."""
    out = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.splitlines()[-1])


def run_row(args: Namespace) -> None:
    """In a process of its own: one row's figures, as a line of JSON."""
    table, row = args.row
    figures = TABLES[table][row](args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KB, on macOS in bytes
    print(json.dumps(figures | {"peak MB": peak / (1 << (20 if sys.platform == "darwin" else 10))}))


def run_table(table: str, rows: list[str], args: Namespace, steps: int, rounds: int) -> None:
    measured = {row: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            command = ["-m", "report.bench", "--row", table, row, "--steps", str(steps)]
            measured[row].append(json_line([*command, "--seed", str(args.seed), "--data-dir", args.data_dir]))
    print(f"\n{table}, --steps {steps}, median of {rounds}\n")
    names = list(measured[rows[0]][0])
    print(f"| {'':31} | {' | '.join(f'{name:>10}' for name in names)} | ratio |")
    print(f"|{'-' * 33}|{'-----------:|' * len(names)}------:|")
    base = statistics.median(m[names[0]] for m in measured[rows[0]])
    for row in rows:
        medians = [statistics.median(m[name] for m in measured[row]) for name in names]
        cells = " | ".join(f"{median:10.1f}" for median in medians)
        print(f"| {row:31} | {cells} | {medians[0] / base:5.2f} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    if args.row:
        return run_row(args)
    steps = min(args.steps, 150) if args.quick else args.steps
    rounds = 1 if args.quick else args.rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor()}")
    for table, rows in TABLES.items():
        chosen = [row for row in rows if args.only in f"{table}: {row}"]
        if args.quick:
            chosen = [row for row in chosen if not re.search(SLOW, table + row)]
        if chosen:
            run_table(table, chosen, args, steps, rounds)


if __name__ == "__main__":
    main()
