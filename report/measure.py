"""The measurements of REPORT.md that no script makes by itself: `python report.py NAME`, from runs, weights and data.

Each function below is one NAME. It uses the scripts as they are, replaces at most the one thing that it asks about,
prints its table as Markdown and writes its picture to assets/. REPORT.md says which runs it needs.
"""

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

import char_rnn
import common
import dcgan
import fid
import gan_mnist
import images
import simclr
import vae

CPU = torch.device("cpu")


def table(*rows: Sequence) -> None:
    """Markdown: the first row is the header."""
    for i, row in enumerate(rows):
        print("|", " | ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row), "|")
        if not i:
            print("|---|" + "---:|" * (len(row) - 1))


def save(figure, name: str) -> None:
    """assets/NAME.png with 64 colours, which is enough for curves and grey digits, and a third of the bytes."""
    figure.savefig(f"assets/{name}.png", dpi=80)
    Image.open(f"assets/{name}.png").convert("RGB").quantize(64).save(f"assets/{name}.png", optimize=True)
    print(f"\nassets/{name}.png")


def axes(rows: int, columns: int, size: tuple[float, float]):
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def column(run: str, split: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one curve of a run's metrics.csv."""
    with open(f"runs/{run}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split and row[key]]
    return [int(row["step"]) for row in rows], [float(row[key]) for row in rows]


def results(run: str) -> dict:
    return json.loads(Path(f"runs/{run}/results.json").read_text())


def weights(script, path: str) -> nn.Module:
    return script.build(torch.load(path, weights_only=True)).eval()


@cache
def mnist(size: int) -> images.ImageData:
    return images.load_images("mnist", "", "data", size)


@cache
def lenet() -> fid.LeNet:
    return fid.lenet(mnist(28), "data", CPU)


def judge() -> Callable[[Tensor], dict]:
    """FD-LeNet to MNIST's test digits, and what the classifier sees, of uint8 images: fid.judge of pictures at hand."""
    measure = fid.judge(lenet(), mnist(28).test)
    return lambda pictures: measure(lambda *_: pictures)


grey = lambda x: 100 * ((x > 0.1) & (x < 0.9)).float().mean().item()  # % of pixels


# ------------------------------------------------------------------------------------------------------------- char-RNN


@torch.no_grad()
def nats_given(model: nn.Module, ids: Tensor, lengths: Iterable[int]) -> dict[int, Tensor]:
    """The error on the same 3,454 characters, given so many before each and an empty state before these."""
    at = torch.arange(1024, len(ids), 32)
    scores = lambda k: torch.cat([model(part)[0][:, -1] for part in ids[at[:, None] + torch.arange(-k, 0)].split(500)])
    return {k: F.cross_entropy(scores(k), ids[at], reduction="none") for k in lengths}


def memory() -> None:
    """What more characters to go on from are worth, and how far back an error's gradient reaches."""
    model = weights(char_rnn, "weights/char_rnn.pth")
    ids = char_rnn.load_text("tinyshakespeare", "data", 1, 0.1).test
    at = torch.arange(1024, len(ids), 256)
    x = F.one_hot(ids[at[:, None] + torch.arange(-512, 0)], model.in_dim).float().requires_grad_()
    loss = F.cross_entropy(model(x)[0][:, -1], ids[at])
    norms = torch.autograd.grad(loss, x)[0].norm(dim=-1).mean(0).flip(0)  # (512,): by the last character first
    nats = nats_given(model, ids, (1, 4, 16, 64, 256, 512))
    rows = [(k, v.mean().item(), (norms[k - 1] / norms[0]).item()) for k, v in nats.items()]
    table(("characters given", "nats", "gradient by the one so far back"), *rows)


def shuffled() -> None:
    """Sequences of 16 in order, shuffled and forgetting, shuffled and not forgetting; then nats by what is given."""
    in_order = char_rnn.stream_batch

    def at_random(ids: Tensor, batch_size: int, seq_len: int, step: int, seed: int, forget: bool):
        rng = np.random.default_rng((seed, step))
        at = torch.from_numpy(rng.integers(len(ids) - seq_len, size=(batch_size, 1))) + torch.arange(seq_len)
        return ids[at], ids[at + 1], forget or step == 1

    ways = {
        "in order, the state goes on": in_order,
        "shuffled, an empty state each time": partial(at_random, forget=True),
        "shuffled, the state of another text": partial(at_random, forget=False),
    }
    rows, lengths, ids = [], (4, 16, 32, 64, 256), char_rnn.load_text("tinyshakespeare", "data", 1, 0.1).test
    for i, (name, way) in enumerate(ways.items()):
        char_rnn.stream_batch, out = way, f"shuffled{i}"
        flags = ["--h-dim", "256", "--dropout", "0.2", "--seq-len", "16", "--steps", "6000"]
        char_rnn.main([*flags, "--eval-every", "6000", "--out", f"runs/{out}"])
        nats = nats_given(weights(char_rnn, f"runs/{out}/char_rnn.pth"), ids, lengths)
        gain = nats[16] - nats[256]
        gained = f"{gain.mean():.3f} ± {gain.std() / len(gain) ** 0.5:.3f}"
        rows.append((name, results(out)["nats"], *(v.mean().item() for v in nats.values()), gained))
    head = ("training", "the whole text", *(f"given {k}" for k in lengths), "256 instead of 16 gain")
    table(head, *rows)


def temperature() -> None:
    """What the temperature does to 20,000 characters: entropy, spelling, repetition."""
    state = torch.load("weights/char_rnn.pth", weights_only=True)
    model, maps = char_rnn.build(state).eval(), char_rnn.char_maps(state["chars"])
    text = Path("data/tinyshakespeare.txt").read_text()
    words = lambda text: "".join(c if c.isalpha() or c == "'" else " " for c in text.lower()).split()
    known, rows = {*words(text)}, []

    def row(name: str, sample: str, T: float) -> tuple:
        ids = char_rnn.encode(sample, maps[0])
        with torch.no_grad():
            p = char_rnn.hot_softmax(model(ids[None])[0][0], 1, T)
        said, eights = words(sample), [sample[i : i + 8] for i in range(len(sample) - 8)]
        spelled = 100 * sum(w in known for w in said) / len(said)
        return name, torch.special.entr(p).sum(1).mean().item(), spelled, 100 * len({*eights}) / len(eights)

    for T in (0.1, 0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 5.0):
        torch.manual_seed(0)
        rows.append(row(f"T = {T}", char_rnn.generate_from_model(model, "\n", 20000, maps, T), T))
    rows.append(row("T = 1.0, reading Shakespeare, held out", text[-20000:], 1.0))
    table(("", "entropy, nats per character", "% of words that he uses", "% of runs of 8 that are distinct"), *rows)


# ------------------------------------------------------------------------------------------------------------------ VAE


@torch.no_grad()
def codes(run: str) -> tuple[vae.VAE, Tensor, Tensor, Tensor]:
    """A run's model; μ and log σ² of 2,000 test digits, and these digits' labels."""
    model = weights(vae, f"runs/{run}/vae.pth")
    return model, *model.posterior(vae.scale(model, mnist(32).test[:2000])), mnist(32).test_labels[:2000]


active = lambda mu: int((mu.var(0) > 0.01).sum())  # latents that say something: Burda et al. 2015, section 5.2


def draw_samples(ax, model: vae.VAE, n: int, columns: int) -> None:
    torch.manual_seed(0)
    ax.imshow(make_grid(model.sample(n), columns, padding=0)[0], cmap="gray", vmin=0, vmax=1)
    ax.axis("off")


def beta() -> None:
    """Runs runs/beta0, 0.1, 1, 4, 10: the two terms, latent space, samples."""
    from sklearn.manifold import TSNE

    rows = []
    figure, panels = axes(3, 5, (15, 9))
    for ax, b in zip(panels.T, ("0", "0.1", "1", "4", "10"), strict=True):
        (model, mu, log_sigma2, labels), r = codes(f"beta{b}"), results(f"beta{b}")
        sigma, spread = log_sigma2.exp().sqrt().mean().item(), mu.std(0).mean().item()
        gap = r["log_px"] + vae.evaluate(model, mnist(32).test[: r["log_px_images"]], 1.0)["loss"]
        keys = ("rec", "kl", "elbo", "fd_lenet")
        values = (*(r[k] for k in keys), 100 * r["confident"], active(mu), sigma, spread, gap)
        rows.append((f"β = {b}", *values))
        for key, label in (("rec", "reconstruction"), ("kl", "KL")):
            ax[0].plot(*column(f"beta{b}", "test", key), label=label)
        ax[0].set(title=f"β = {b}", xlabel="step", ylim=(0, 260))
        ax[0].legend(title="nats, held out")
        common.scatter(ax[1], TSNE(init="pca", random_state=0).fit_transform(mu.numpy()), labels)
        ax[1].set_title("codes, t-SNE")
        draw_samples(ax[2], model, 48, 8)
        ax[2].set_title("samples")
    head = ("", "reconstruction", "KL", "ELBO", "FD-LeNet", "% sure of", "active latents", "σ", "spread of μ")
    table((*head, "log p(x) - ELBO, the first 1,000 digits"), *rows)
    save(figure, "report-beta")


def latents() -> None:
    """Latent dimensions and networks: results.json, samples, how far σ ranges."""
    runs = {"2 latents": "z2", "3 latents": "z3", "10 latents": "beta1", "100 latents": "z100"}
    runs |= {"10 latents, technion": "technion", "10 latents, mlp": "mlp"}
    rows = []
    figure, panels = axes(2, 3, (15, 5))
    for ax, (name, run) in zip(panels.flat, runs.items(), strict=True):
        (model, mu, log_sigma2, _), r = codes(run), results(run)
        low, high = (log_sigma2.quantile(q).item() for q in (0.01, 0.99))
        keys = ("elbo", "rec", "kl", "log_px", "fd_lenet", "class_entropy")
        values = (*(r[k] for k in keys), 100 * r["confident"], active(mu), f"{low:.1f} to {high:.1f}")
        rows.append((name, f"{sum(p.numel() for p in model.parameters()):,}", *values))
        draw_samples(ax, model, 40, 10)
        ax.set_title(name)
    head = ("", "parameters", "ELBO", "reconstruction", "KL", "log p(x)", "FD-LeNet", "class entropy", "% sure of")
    table((*head, "active", "log σ², 98% of all"), *rows)
    save(figure, "report-latents")


# ------------------------------------------------------------------------------------------------------------------ GAN


def gradients() -> None:
    """D's and G's gradients with samples cut off from G, and not."""
    x = 2 * mnist(28).train[:128].flatten(1).float() / 255 - 1
    flat = lambda net: None if net[0].weight.grad is None else torch.cat([p.grad.flatten() for p in net.parameters()])
    rows, of_D = [], {}
    for name, cut in (("cut", Tensor.detach), ("kept", lambda x: x)):
        torch.manual_seed(0)
        G, D = gan_mnist.generator(96), gan_mnist.discriminator()
        z, times = gan_mnist.sample_noise(128, 96), []
        for _ in range(60):
            G.zero_grad()
            D.zero_grad()
            began = time.perf_counter()
            gan_mnist.discriminator_loss(D(x), D(cut(G(z)))).backward()
            times.append(1e3 * (time.perf_counter() - began))
        of_D[name], by_D = flat(D), flat(G)
        G.zero_grad()
        gan_mnist.generator_loss(D(G(z))).backward()
        there = ("none", "none") if by_D is None else (by_D.norm().item(), F.cosine_similarity(by_D, flat(G), 0).item())
        rows.append((name, of_D[name].norm().item(), *there, sorted(times)[30]))
    table(("samples in D's step", "‖∂L_D/∂D‖", "‖∂L_D/∂G‖", "its cosine with ∂L_G/∂G", "ms for D's step"), *rows)
    print(f"\nD's gradients differ by {(of_D['cut'] - of_D['kept']).abs().max():.1e}")
    G.zero_grad()
    gan_mnist.generator_loss(D(G(z).detach())).backward()
    print(f"G's gradient in its own step, samples cut: {flat(G)}")


def games() -> None:
    """Runs runs/gan-default, gan-collapsed, lsgan-collapsed, conv-cured: losses, what D says, what the samples are."""
    runs = ("gan-default", "gan-collapsed", "lsgan-collapsed", "conv-cured")
    titles = ("--lr 0.001", "--lr 0.003", "--lr 0.003 --loss lsgan", "--lr 0.003 --arch conv")
    figure, panels = axes(4, 4, (15, 11))
    for ax, run, title in zip(panels.T, runs, titles, strict=True):
        for key in ("d_loss", "g_loss"):
            ax[0].plot(*column(run, "train", key), label=key)
        ax[0].set(title=title, ylim=(0, 30), yscale="symlog")
        ax[0].axhline(0.25 if "lsgan" in run else 2 * math.log(2), color="grey", ls=":")
        ax[1].plot(*column(run, "train", "d_x"), label="D(x)")
        for split in ("before G's step", "after G's step"):
            ax[1].plot(*column(run, split, "d_g_z"), label=f"D(G(z)) {split}")
        ax[1].set(ylim=(-0.4, 1.1))
        for key in ("fd_lenet", "class_entropy"):
            steps, values = column(run, "samples", key)
            ax[2].plot(steps, [v / (1000 if key == "fd_lenet" else math.log(10)) for v in values], "o-", label=key)
        ax[2].set(ylim=(0, 1.1), xlabel="step")
        for a in ax[:3]:
            a.set_xlim(0, 4690)
            a.legend(fontsize="small")
        grids = sorted(Path(f"runs/{run}/samples").glob("*.png"))
        ax[3].imshow(Image.open(grids[-1]).crop((0, 0, 234, 118)))
        ax[3].axis("off")
    save(figure, "report-games")

    shown = [("train", key) for key in ("d_loss", "g_loss", "d_x")]
    shown += [(split, "d_g_z") for split in ("before G's step", "after G's step")]
    curves = [np.array(column("gan-default", *which)) for which in shown]  # each (2, N)
    steps, fd = column("gan-default", "samples", "fd_lenet")
    _, entropy = column("gan-default", "samples", "class_entropy")
    head = ("step", "D's loss", "G's loss", "D(x)", "D(G(z)) before", "after G's step", "FD-LeNet", "class entropy")
    mean = lambda curve, step: float(curve[1, (step - 469 < curve[0]) & (curve[0] <= step)].mean())
    table(head, *((s, *(mean(c, s) for c in curves), a, b) for s, a, b in zip(steps, fd, entropy, strict=True)))


# ---------------------------------------------------------------------------------------------------------- VAE and GAN


def generators() -> dict[str, tuple]:
    """(script, model) by name."""
    found = {
        "VAE, 10 latents": (vae, "weights/vae.pth"),
        "VAE, 100 latents": (vae, "runs/z100/vae.pth"),
        "DCGAN": (dcgan, "weights/dcgan.pth"),
    }
    return {name: (script, weights(script, path)) for name, (script, path) in found.items()}


def sharpness() -> None:
    """Spectrum, gradient, grey pixels of digits, of what the VAEs reconstruct and draw, of what the GAN draws."""
    test, judged = mnist(32).test, judge()
    sets = {"test digits": test}
    for name, (script, model) in generators().items():
        if script is vae:
            with torch.no_grad():
                parts = [model.decode(model.posterior(vae.scale(model, x))[0]) for x in test.split(500)]
            sets[f"{name}, reconstructions"] = common.to_uint8(torch.cat(parts))
        sets[f"{name}, samples"] = torch.cat(list(script.draw(model, 10000, 0)))
    figure, panels = axes(1, 1, (6, 4))
    f = torch.fft.fftfreq(32) * 32
    ring = (f[:, None] ** 2 + f**2).sqrt().round().long().flatten()
    rows = []
    for name, pictures in sets.items():
        x = pictures[:, 0].float() / 255
        power = torch.fft.fft2(x - x.mean(0)).abs().square().mean(0).flatten()
        spectrum = torch.zeros(24).index_add_(0, ring, power) / ring.bincount(minlength=24)
        panels[0, 0].semilogy(range(1, 17), spectrum[1:17] / spectrum[1:17].sum(), label=name)
        slope = (x[:, 1:, :-1] - x[:, :-1, :-1]).square() + (x[:, :-1, 1:] - x[:, :-1, :-1]).square()
        seen, high = judged(pictures), 100 * (spectrum[9:17].sum() / spectrum[1:17].sum()).item()
        rows.append((name, slope.sqrt().mean().item(), grey(x), high, seen["fd_lenet"], 100 * seen["confident"]))
    panels[0, 0].set(xlabel="cycles per image", ylabel="share of power")
    panels[0, 0].legend(fontsize="small")
    table(("", "mean slope", "% grey", "% of power above 8 cycles", "FD-LeNet", "% sure of"), *rows)
    save(figure, "report-spectrum")


@torch.no_grad()
def interpolation() -> None:
    """From one digit to another of another class, and beyond: what the classifier and the distance say on the way."""
    data, judged = mnist(32), judge()
    first = torch.arange(4000)
    first = first[data.test_labels[:4000] != data.test_labels[4000:8000]][:2000]
    rows = []
    for name, (script, model) in generators().items():
        z = torch.randn(2, 2000, model.z_dim, generator=torch.Generator().manual_seed(0))
        if script is vae:
            z = torch.stack([model.posterior(vae.scale(model, data.test[first + i]))[0] for i in (0, 4000)])
        for kind in ("line", "sphere") if script is dcgan else ("line",):
            path = torch.stack(
                [dcgan.between(a, b, 4, kind == "sphere") for a, b in zip(*z, strict=True)], 1
            )  # (9, N, Z)
            for i in (0, 2, 3, 4, 5, 6, 8):
                x = script.visible(model, model.decode(path[i])) if script is vae else dcgan.show(model, path[i])
                seen = judged(common.to_uint8(x))
                rows.append((f"{name}, {kind}", (i - 2) / 4, seen["fd_lenet"], 100 * seen["confident"], grey(x)))
    table(("", "t", "FD-LeNet of 2,000", "% sure of", "% grey"), *rows)


# --------------------------------------------------------------------------------------------------------------- SimCLR


def ablation(variant: str) -> None:
    """SimCLR at 16 x 16 with one thing changed, then kNN and linear accuracy of h and z from 10,000 labels."""
    changed, _, value = variant.partition("=")
    flags = {"--batch-size": "128", "--tau": "0.5", "--seed": "0"}
    if f"--{changed}" in flags:
        flags[f"--{changed}"] = value
    crop_and_flip, resampling = simclr.crop_and_flip, simclr.resampling
    flip = lambda x: torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
    replacements = {  # of names in simclr.py
        "no-crop": ("crop_and_flip", flip),
        "no-flip": ("resampling", lambda start, length, size, _=None: resampling(start, length, size)),
        "no-jitter": ("jitter", lambda x: x),
        "no-grey": ("augment", lambda x: simclr.jitter(crop_and_flip(simclr.floats(x)))),
        "no-head": ("Model", WithoutHead),
    }
    if variant in replacements:
        setattr(simclr, *replacements[variant])
    elif variant not in ("all", "untrained") and not (value and f"--{changed}" in flags):
        common.fail(
            f"no variant {variant}; there are all, untrained, {', '.join(replacements)}, tau=, batch-size= and seed="
        )

    def look_inside(model, data, numbers, _, args) -> dict:
        if variant == "untrained":
            model = simclr.Model(128, "resnet18").to(memory_format=torch.channels_last)
            with torch.no_grad():
                for x in data.train[:2500].split(250):  # statistics for BatchNorm
                    model(simclr.whole(x, numbers, CPU))
        y, truth, found = data.train_labels[:10000], data.test_labels, {}
        for name, f in (("h", model.f), ("z", nn.Sequential(model.f, model.g))):
            h, test_h = (simclr.represent(f, x, numbers, CPU, args.bf16) for x in (data.train[:10000], data.test))
            found[f"{name}_knn"] = simclr.knn_accuracy(h, y, test_h, truth)
            found[f"{name}_linear"] = simclr.linear_accuracy(h, y, test_h, truth)
        return found

    simclr.look_inside = look_inside
    steps = "1" if variant == "untrained" else str(300 * 128 // int(flags["--batch-size"]))  # as many images for all
    usual = ["--data", "data/cifar10-jpeg", "--image-size", "16", "--lr", "0.12", "--warmup", "30"]
    usual += ["--steps", steps, "--sample-every", "10000"]
    simclr.main([*usual, *(x for pair in flags.items() for x in pair), "--out", f"runs/simclr-{variant}"])


class WithoutHead(simclr.Model):
    """z is h."""

    def __init__(self, feature_dim: int = 128, encoder: str = "resnet18") -> None:
        super().__init__(feature_dim, encoder)
        self.g = nn.Identity()


def few_labels() -> None:
    """A linear layer on the frozen encoder against the same network trained on the same few labels alone."""
    numbers = torch.load("runs/simclr-cifar10-jpeg-resnet18-tau0.5-batch256/simclr.pth", weights_only=True)
    model, data = simclr.build(numbers), images.load_images("data/cifar10-jpeg", "", "data", 32)
    args = argparse.Namespace(device="cpu", seed=0, bf16=True, fit_steps=200)
    some = common.permutation(len(data.train), 0, 0)[:500]
    h, test_h = (simclr.represent(model.f, x, numbers, CPU, True) for x in (data.train[some], data.test))
    y, truth, rows = data.train_labels[some], data.test_labels, []
    for n in (100, 500):
        torch.manual_seed(1)
        net = simclr.fit(simclr.Model(128, "resnet18"), data, some[:n], numbers, args, "labels alone")
        alone = (simclr.represent(net, data.test, numbers, CPU, True).argmax(1) == truth).float().mean().item()
        rows.append((n, 100 * simclr.linear_accuracy(h[:n], y[:n], test_h, truth), 100 * alone))
    table(("labels", "linear, frozen encoder, %", "the same network, 200 steps on these labels alone, %"), *rows)


# ------------------------------------------------------------------------------------------------------------------ FID


def distance() -> None:
    """What the Fréchet distance sees in damaged digits, what it misses, and what the number of samples does to it."""
    from torchvision.transforms.functional import gaussian_blur

    train, test, labels, judged = mnist(28).train, mnist(28).test, mnist(28).train_labels, judge()
    features = lambda x: torch.cat(list(fid.features(x, lenet())))
    real = features(test)
    torch.manual_seed(0)
    noise = torch.randn(test.shape)
    noisy = lambda sigma: common.to_uint8((test / 255 + sigma * noise).clamp(0, 1))
    sets = {"training digits, 10,000": train[:10000], "the test digits themselves": test}
    sets |= {f"test, blurred with σ = {s}": gaussian_blur(test, int(8 * s) | 1, s) for s in (0.5, 1.0, 2.0)}
    sets |= {f"test, noise of σ = {s}": noisy(s) for s in (0.1, 0.2, 0.4)}
    sets |= {f"test, {k} pixels to the right": test.roll(k, 3) for k in (1, 2, 4)}
    sets |= {"test, top and bottom halves of two digits": torch.cat([test[:, :, :14], test.roll(1, 0)[:, :, 14:]], 2)}
    sets |= {
        f"{10000 // k:,} training digits, {k:,} times": train[: 10000 // k].repeat(k, 1, 1, 1) for k in (2, 10, 100)
    }
    sets |= {"training digits without 7": train[labels != 7][:10000], "training digits, only 7": train[labels == 7]}
    rows = []
    for name, x in sets.items():
        seen = judged(x)
        kid = fid.kid(real, features(x))
        rows.append((name, seen["fd_lenet"], kid, seen["class_entropy"], 100 * seen["confident"]))
    table(("against MNIST's 10,000 test digits", "FD-LeNet", "KID", "class entropy", "% sure of"), *rows)
    print()
    rows, drawn = [], torch.cat(list(dcgan.draw(weights(dcgan, "weights/dcgan.pth"), 20000, 0)))
    for n in (100, 300, 1000, 3000, 10000):
        row = [f"{n:,}"]
        for x in (train, drawn):
            parts = [part for part in x.split(n)[:3] if len(part) == n]
            row += [float(np.mean([judged(part)["fd_lenet"] for part in parts]))]
            row += [float(np.mean([fid.kid(real, features(part)) for part in parts]))]
        rows.append(row)
    table(("samples", "training digits: FD-LeNet", "KID", "DCGAN: FD-LeNet", "KID"), *rows)


NAMES = {f.__name__: f for f in (memory, shuffled, temperature, beta, latents, gradients, games, sharpness)}
NAMES |= {f.__name__: f for f in (interpolation, ablation, few_labels, distance)}


def main() -> None:
    described = "\n".join(f"  {name:14} {f.__doc__}" for name, f in NAMES.items())
    p = argparse.ArgumentParser(description=f"{__doc__}\n{described}", formatter_class=common.HelpFormatter)
    p.add_argument("name", choices=NAMES, metavar="NAME", help="one of these")
    p.add_argument("variant", nargs="?", default="all", help="of ablation: no-crop, no-head, tau=0.1, ...")
    args = p.parse_args()
    common.setup(argparse.Namespace(device="cpu", bf16=False, seed=0))
    NAMES[args.name](*([args.variant] if args.name == "ablation" else []))


if __name__ == "__main__":
    main()
