"""Ours against the common way, side by side: `python -m report.bench`, or `--quick` in under two minutes.

Each row is a process of its own, because allocators remember; rows alternate, and the table gives medians and the ratio
to the first. Timings drift from run to run: only the ratios of one run count.
"""

import argparse
import contextlib
import io
import json
import math
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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import char_rnn
import common
import dcgan
import fid
import gan_mnist
import simclr
import vae
from plumbing.data import folders, images, texts
from plumbing.data.batches import batch_indices
from plumbing.judge import inception
from plumbing.run import latent
from plumbing.run import run as run_module
from plumbing.system import files, hardware, process, ranks
from report import measure, peers, race
from report.peers import BY_PIL, BY_V2, GAN_BATCH, MEAN, SIMCLR_BATCH, STD, VAE_BATCH, CourseGRU, TorchGRU, n_untimed

BF16 = hardware.bf16("cpu", None)  # what scripts do without --no-bf16


def set_up_as_script(seed: int) -> None:
    """Prepare this process as a script does. A peer's row does without, so bench.py is no common.program itself."""
    hardware.keep_freed_memory()
    process.setup(Namespace(device="cpu", seed=seed))


def pixels_of(args: Namespace, source: str | None, size: int) -> Tensor:
    """Training images, uint8 (N, C, size, size)."""
    return images.load_images(source, "mnist", args.data_dir, size).train


def photographs(args: Namespace) -> str:
    folder = Path(args.data_dir, "cifar10-jpeg")
    return str(folder) if folder.exists() else "digits"


class NoJudge:
    """Stand-in for fid.Judge that measures nothing."""

    distance = None

    def __init__(self, *_, **__) -> None:
        """Take fid.Judge's arguments."""

    def __call__(self, *_, **__) -> dict:
        return {}


def watch_steps(watch: Callable) -> None:
    """Call watch(run, step) as each training step begins."""
    all_steps = run_module.Run.steps

    def watched_steps(run: run_module.Run):
        for step in all_steps(run):
            watch(run, step)
            yield step

    run_module.Run.steps = watched_steps


def timed(script, args: Namespace, *flags: str) -> tuple[float, dict]:
    """Return (steps/s, results.json) of a script with its logging, without Fréchet distances and evaluation."""
    hardware.keep_freed_memory()  # as common.program does
    vae.log_px = latent.draw = lambda *_, **__: 0.0
    fid.Judge = NoJudge
    clock = {}

    def note_the_time(_, step: int) -> None:
        clock[step] = time.perf_counter()

    watch_steps(note_the_time)
    with tempfile.TemporaryDirectory() as out:
        argv = ["--steps", str(args.steps), "--data-dir", args.data_dir, "--seed", str(args.seed), "--out", out]
        script.main([*argv, *flags])
        results = json.loads(Path(out, "results.json").read_text())
    slow = n_untimed(args.steps)
    seconds = 60 * results["train_minutes"] - (clock[slow + 1] - clock[1])
    return (args.steps - slow) / seconds, results


# ------------------------------------------------------------------------------------------------------------------ VAE


def textbook_vae(args: Namespace, workers: int = 0) -> dict[str, float]:
    model, rate = peers.textbook_vae(pixels_of(args, None, 28), args.steps, args.seed, workers)
    test = images.load_images(None, "mnist", args.data_dir, 32).test
    return {"images/s": VAE_BATCH * rate, "test ELBO": -vae.mean_losses(model, test, 1.0)["loss"]}


def our_vae(args: Namespace, *flags: str) -> dict[str, float]:
    rate, results = timed(vae, args, "--arch", "tsinghua", "--batch-size", str(VAE_BATCH), *flags)
    return {"images/s": VAE_BATCH * rate, "test ELBO": results["elbo"]}


# ----------------------------------------------------------------------------------------------------------------- GANs


def course_gan(args: Namespace, arch: str) -> dict[str, float]:
    return {"images/s": GAN_BATCH * peers.course_gan(pixels_of(args, None, 28), args.steps, args.seed, arch)[1]}


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


def fewer(args: Namespace) -> Namespace:
    """A 25th of the steps, where each takes so much longer."""
    return Namespace(**vars(args) | {"steps": max(5, args.steps // 25)})


def examples_dcgan(args: Namespace, size: int) -> dict[str, float]:
    pixels = pixels_of(args, photographs(args), size)
    return {"images/s": GAN_BATCH * peers.examples_dcgan(pixels, fewer(args).steps, args.seed)[1]}


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


def views(args: Namespace, augment: Callable) -> dict[str, float]:
    """Measure the views of a batch of images at once, or image by image."""
    x = simclr_pixels(args)[: 4 * args.steps]
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
    return pixels_of(args, photographs(args), 32).expand(-1, 3, -1, -1)


def loader_simclr(args: Namespace) -> dict[str, float]:
    torch.manual_seed(args.seed)
    batches = iter(peers.simclr_loader(simclr_pixels(args)))

    def two_views(_) -> Tensor:
        return (torch.cat(next(batches)) - 0.5) / 0.25

    return simclr_steps(args, simclr.Model(128, "resnet18"), two_views, bf16=False)


def our_simclr(args: Namespace, bf16: bool) -> dict[str, float]:
    set_up_as_script(args.seed)
    pixels = simclr_pixels(args)
    model = simclr.Model(128, "resnet18", MEAN, STD).to(memory_format=torch.channels_last)

    def two_views(step: int) -> Tensor:
        x = pixels[batch_indices(len(pixels), SIMCLR_BATCH, step + 1, args.seed)]
        return model.normalise(torch.cat([simclr.augment(x), simclr.augment(x)]))

    return simclr_steps(args, model, two_views, bf16)


# ------------------------------------------------------------------------------------------------------------------ GRU


def gru_training(args: Namespace, kind: type, h_dim: int, n_layers: int, batch: int, bf16=False, compile=False) -> dict:
    """Forward, backward and fused Adam on sequences of 64 of 65 characters."""
    V, S, steps = 65, 64, max(4, args.steps // 50)
    ours = kind is char_rnn.MultilayerGRU
    if ours:
        set_up_as_script(args.seed)
    torch.manual_seed(args.seed)
    model, x = kind(V, h_dim, V, n_layers), torch.randint(0, V, (batch, S + 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    given = x[:, :-1] if ours else F.one_hot(x[:, :-1], V).float()
    forward = common.for_training(model, compile)
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
    model, n = char_rnn.MultilayerGRU(65, 256, 65, 2), 4 * args.steps
    char_to_idx = {chr(i): i for i in range(65)}
    drawn = char_rnn.continuation(model, chr(0), char_to_idx, 0.5, n=texts)
    began = time.perf_counter()
    for _ in range(n // texts):
        next(drawn)
    return {"chars/s": n / (time.perf_counter() - began)}


# ------------------------------------------------------------------------------------------------------------------ FID


def write_pictures(args: Namespace, folder: str, first: int = 0) -> int:
    """PNG files of steps / 2 test digits, from the first on, into the folder, which is made; how many."""
    pixels = images.load_images(None, "mnist", args.data_dir, 32).test[first:][: args.steps // 2]
    Path(folder).mkdir(exist_ok=True)
    for i, x in enumerate(pixels):
        Image.fromarray(x[0].numpy()).save(f"{folder}/{i}.png")
    return len(pixels)


def pytorch_fid_with(weights: dict) -> tuple:
    """pytorch-fid's modules fid_score and inception; these weights are what it downloads."""
    import pytorch_fid.inception
    from pytorch_fid import fid_score

    pytorch_fid.inception.load_state_dict_from_url, fid_score.tqdm = lambda *_, **__: weights, iter
    return fid_score, pytorch_fid.inception


def pytorch_fid_features(args: Namespace) -> dict[str, float]:
    """Mean and covariance of PNG files' features, with random weights: reading, resizing and network are timed."""
    torch.manual_seed(args.seed)
    fid_score, theirs = pytorch_fid_with(inception.Inception().state_dict())
    with tempfile.TemporaryDirectory() as folder:
        n, net = write_pictures(args, folder), theirs.InceptionV3()
        files = sorted(Path(folder).glob("*.png"))
        began = time.perf_counter()
        fid_score.calculate_activation_statistics(files, net, num_workers=os.cpu_count())
        return {"images/s": n / (time.perf_counter() - began)}


def our_features(args: Namespace) -> dict[str, float]:
    """Measure fid.py as pytorch_fid_features measures pytorch-fid."""
    set_up_as_script(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        n = write_pictures(args, folder)
        torch.save(inception.Inception().state_dict(), f"{folder}/weights.pth")
        net = inception.load(f"{folder}/weights.pth")
        began = time.perf_counter()
        fid.activation_statistics(folders.folder_images(Path(folder), "RGB", 50), net)
        return {"images/s": n / (time.perf_counter() - began)}


def feature_sets(args: Namespace, n: int) -> list[fid.Statistics]:
    """Draw 2048 features of two sets of n images. The eigenvalues of their covariance fall, as with real images."""
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
    """Train for so many steps, without evaluation. Call watch(run, step) as each begins."""
    watch_steps(watch)
    fid.Judge, ranks.leave = NoJudge, sys.exit  # where evaluation would begin, the script ends
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


def one_step(script, args: Namespace, *flags: str) -> tuple[run_module.Run, int, int]:
    """(a run, how many operations its second step takes, and how many floating-point operations)."""
    operations, flop_counter, runs = Calls(), FlopCounterMode(display=False), []

    def watch(run: run_module.Run, step: int) -> None:
        if step == 2:
            runs.append(run)
            operations.__enter__()
            flop_counter.__enter__()
        if step == 3:
            flop_counter.__exit__(None, None, None)
            operations.__exit__(None, None, None)

    watched(script, args, flags, 3, watch)
    return runs[0], operations.n, flop_counter.get_total_flops()


def reductions(script, run: run_module.Run) -> tuple[int, int]:
    """(bytes that a step reduces over the ranks, in how many calls), by hand."""
    n_bytes = calls = 0
    for key, passes in {"model": 2, "G": 3, "D": 6}.items():  # forward and backward; G also makes what D learns from
        if key in run.to_continue:
            net = run.to_continue[key]
            channels = [m.num_features for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            n_bytes += 4 * sum(p.numel() for p in net.parameters()) + 4 * 2 * passes * sum(channels)  # two sums each
            calls += 1 + passes * len(channels)
    if script is simclr:  # z forward and its gradient
        n_bytes += 2 * 4 * 2 * run.args.batch_size * run.args.feature_dim
        calls += 2
    if script is char_rnn:  # the hidden state
        n_bytes += 4 * run.to_continue["hidden"].h.numel()
        calls += 1
    return n_bytes, calls


def all_reduce(calls: int, n_bytes: int, latency: float, bandwidth: float) -> float:
    """Seconds on paper, among 8."""
    return calls * latency + 2 * 7 / 8 * n_bytes / bandwidth


def communication(args: Namespace, script, *flags: str) -> dict[str, float]:
    """Measure a step on two gloo ranks: bytes to be reduced, by hand and by the loopback device, efficiency on paper.

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


# ------------------------------------------------------------------------------------------- time to the peer's quality


def part_of(args: Namespace, steps: int) -> int:
    """--steps 1000 is the whole of a race, less of them a part."""
    return max(5, steps * args.steps // 1000)


def raced(seconds: float, **quality: float) -> dict[str, float]:
    return {"per hour": 3600 / seconds, "minutes": seconds / 60, **quality}


def ours_in(script, args: Namespace, steps: int, flags: str, **named: str) -> dict[str, float]:
    """A script as it stands: the time of its loop, and figures of results.json by other names."""
    hardware.keep_freed_memory()  # as common.program does
    vae.log_px = latent.draw = lambda *_, **__: 0.0
    race.knn_only()
    with tempfile.TemporaryDirectory() as out:
        usual = f"--steps {part_of(args, steps)} --data-dir {args.data_dir} --seed {args.seed} --out {out}/run"
        script.main([*flags.split(), *usual.split()])
        results = files.read_json(Path(out, "run", "results.json"))
    return raced(60 * results["train_minutes"], **{name: results[key] for key, name in named.items()})


def race_text(args: Namespace, train: Callable, steps: int) -> dict[str, float]:
    """A peer's nats on tiny Shakespeare's last tenth, in windows of 64: it cannot read on."""
    text = texts.load_text("tinyshakespeare", args.data_dir, 1, 0.1)
    n = part_of(args, steps)
    model, rate = train(text.train, len(text.chars), n, args.seed)
    return raced(n / rate, nats=measure.loss_in_windows(model, text.test, 64), read_on=math.nan)


def our_race_text(args: Namespace, steps: int, dropout: float) -> dict[str, float]:
    """A network of the peers' size: two layers of 256."""
    evaluate_run = char_rnn.evaluate_run

    def evaluate_in_windows(run, model, held_out):
        results = evaluate_run(run, model, held_out)
        return results | {"in_windows": measure.loss_in_windows(model, held_out, 64)}

    char_rnn.evaluate_run = evaluate_in_windows
    flags = f"--data tinyshakespeare --eval-every 100000 --h-dim 256 --dropout {dropout} --lr 5e-3"
    return ours_in(char_rnn, args, steps, flags, in_windows="nats", nats="read_on")


def race_vae(args: Namespace, train: Callable, size: int, steps: int) -> dict[str, float]:
    """A peer's ELBO on the 10,000 test digits; size: 28, or 32 with a margin."""
    n = part_of(args, steps)
    model, rate = train(pixels_of(args, None, 28), n, args.seed)
    test = images.load_images(None, "mnist", args.data_dir, size).test
    return raced(n / rate, ELBO=-vae.mean_losses(model, test, 1.0)["loss"])


def race_gan(args: Namespace, script, train: Callable, size: int, steps: int) -> dict[str, float]:
    """FD-LeNet of 10,000 samples of a peer's generator."""
    data, n = images.load_images(None, "mnist", args.data_dir, size), part_of(args, steps)
    G, rate = train(data.train, n, args.seed)
    judge = fid.Judge(data, args.data_dir, torch.device("cpu"))
    return raced(n / rate, FD=judge(partial(script.draw_samples, G))["fd_lenet"])


def race_simclr(args: Namespace) -> dict[str, float]:
    """kNN accuracy of held-out photographs by a peer's encoder."""
    n = part_of(args, 100)
    model, rate = peers.loader_simclr(simclr_pixels(args), n, args.seed)
    data = images.load_images(photographs(args), "", args.data_dir, 32)
    race.knn_only()
    seen = simclr.evaluate_run(model, data, Path(), args)
    return raced(n / rate, kNN=100 * seen["knn"])


def our_race_simclr(args: Namespace) -> dict[str, float]:
    flags = "--batch-size 128 --warmup 10 --lr 0.12 --tau 0.2 --half-size 1 --data"
    figures = ours_in(simclr, args, 200, f"{flags} {photographs(args)}", knn="kNN")
    return figures | {"kNN": 100 * figures["kNN"]}


def race_fid(args: Namespace, measure: Callable) -> dict[str, float]:
    """The distance of two folders of digits, 500 each, with random weights, from start to value."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(args.seed)
        weights = inception.Inception().state_dict()
        n = write_pictures(args, f"{folder}/a")
        write_pictures(args, f"{folder}/b", first=n)
        began = time.perf_counter()
        value = measure(weights, Path(folder))
        return raced(time.perf_counter() - began, distance=value)


def pytorch_fid_distance(weights: dict, folder: Path) -> float:
    fid_score, _ = pytorch_fid_with(weights)
    return fid_score.calculate_fid_given_paths([str(folder / "a"), str(folder / "b")], 50, "cpu", 2048, os.cpu_count())


def our_fid_distance(weights: dict, folder: Path) -> float:
    torch.save(weights, folder / "weights.pth")
    hardware.keep_freed_memory()  # as common.program does
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        fid.main([str(folder / "a"), str(folder / "b"), "--weights", str(folder / "weights.pth"), "--json"])
    return json.loads(out.getvalue().splitlines()[-1])["value"]


SMALL_VAE = "--latent-dim 20 --width 128 --lr 5e-3"
RACES = {
    "race, char_rnn.py": {
        "a transformer, nanoGPT's for CPUs": lambda args: race_text(args, peers.train_transformer, 2000),
        "a Linear per gate, 3,000 steps": lambda args: race_text(args, peers.train_course_gru, 3000),
        "char_rnn.py, 500 steps": lambda args: our_race_text(args, 500, 0),
        "char_rnn.py, 1,500 steps": lambda args: our_race_text(args, 1500, 0.1),
    },
    "race, vae.py": {
        "textbook loop, 10 epochs": lambda args: race_vae(args, peers.textbook_vae, 32, 9380),
        "pytorch/examples, 10 epochs": lambda args: race_vae(args, peers.examples_vae, 28, 4690),
        "vae.py, 500 steps": lambda args: ours_in(vae, args, 500, SMALL_VAE, elbo="ELBO"),
        "vae.py, 1,100 steps": lambda args: ours_in(vae, args, 1100, SMALL_VAE, elbo="ELBO"),
    },
    "race, gan_mnist.py": {
        "the course's loop, 10 epochs": lambda args: race_gan(
            args, gan_mnist, partial(peers.course_gan, arch="dense"), 28, 4690
        ),
        "gan_mnist.py, 1,650 steps": lambda args: ours_in(gan_mnist, args, 1650, "", fd_lenet="FD"),
    },
    "race, dcgan.py": {
        "pytorch/examples, 5 epochs": lambda args: race_gan(args, dcgan, peers.examples_dcgan, 32, 2340),
        "dcgan.py, 1,000 steps": lambda args: ours_in(dcgan, args, 1000, "--data mnist", fd_lenet="FD"),
    },
    "race, simclr.py": {
        "torchvision's loader, 100 steps": race_simclr,
        "simclr.py, 200 steps": our_race_simclr,
    },
    "race, fid.py": {
        "pytorch-fid": lambda args: race_fid(args, pytorch_fid_distance),
        "fid.py": lambda args: race_fid(args, our_fid_distance),
    },
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
} | RACES  # which take hours
NOT_QUICK = "race|conv|dcgan|SimCLR training|Two ranks|v2|--compile|--no-bf16|workers|3 layers|Fréchet|generation"


def get_args(argv: list[str] | None = None) -> Namespace:
    p = common.Parser(__doc__)
    p.add_argument("--quick", action="store_true", help="one round, less steps and rows")
    steps_help = (
        "of vae.py and gan_mnist.py; dcgan.py: a 25th, GRU: a 50th, generation: 4 times, Inception: half, in images; "
        "of a race so many thousandths"
    )
    p.add_argument("--steps", type=common.number(int, 5), default=1000, help=steps_help)
    p.add_argument("--rounds", type=common.count, default=3, help="times that each row is run")
    p.add_argument("--seed", type=common.natural, default=0, help="of every row")
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
        cells = " | ".join(f"{median:10.1f}" if median >= 100 else f"{median:10.3f}" for median in medians)
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
            chosen = [row for row in chosen if not re.search(NOT_QUICK, table + row)]
        if chosen:
            run_table(table, chosen, args, steps, rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
