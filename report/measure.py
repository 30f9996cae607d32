"""The measurements of report/ that no script makes by itself: `python -m report.measure NAME`.

Each NAME is a function below. It uses the scripts as they are, replaces at most the one thing that it asks about,
prints its table as Markdown and writes its picture to report/pictures/. It runs in the repository's folder, where data/
and runs/ are; its pages say which runs it needs.
"""

import argparse
import copy
import csv
import io
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import mean, stdev

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
import simclr
import vae
from plumbing.data import images, texts
from plumbing.data.batches import batch_indices, permutation
from plumbing.judge import lenet
from plumbing.run import plots
from plumbing.system import files

CPU = torch.device("cpu")
SEEDS = 0, 1, 2
CHARACTERS = 200_000  # of the plays that are generated
PICTURES = Path(__file__).parent / "pictures"
CIFAR10 = "data/cifar10-jpeg" if Path("data/cifar10-jpeg").exists() else "cifar10"  # the same as a folder of JPEGs
FACES = "data/lfw-bush" if Path("data/lfw-bush").exists() else "lfw"


def cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Markdown, with four digits of every float."""
    print("|", " | ".join(head), "|")
    print("|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("|", " | ".join(map(cell, row)), "|")


def spread(values: Sequence[float]) -> str:
    """Mean ± standard error."""
    error = f" ± {stdev(values) / len(values) ** 0.5:.2g}" if len(values) > 1 else ""
    return f"{mean(values):.4g}{error}" if values else ""


def save(figure, name: str) -> None:
    """report/pictures/NAME.png, 64 colours: enough for curves and grey digits, and a third of the bytes."""
    path = PICTURES / f"{name}.png"
    figure.savefig(path, dpi=80)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    print(f"\n{path}")


def panels(rows: int, columns: int, size: tuple[float, float]):
    """(a figure, its axes (rows, columns))."""
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
def classifier() -> lenet.LeNet:
    return lenet.classifier(mnist(28), "data", CPU)


def judge_by(net: nn.Module, real: Tensor) -> Callable[[Tensor], dict]:
    """Return a function from uint8 images to their scores against real images under a network. See fid.score."""
    statistics = fid.image_statistics(real, net, "test images", len(real))
    return lambda pictures: fid.score(net, statistics, lambda *_: pictures)


def judge() -> Callable[[Tensor], dict]:
    """Return a function from uint8 images to FD-LeNet against MNIST's test digits, and the classifier's statistics."""
    return judge_by(classifier(), mnist(28).test)


def percent_grey(x: Tensor) -> float:
    """Return the percentage of grey pixels of images in [0, 1]."""
    return 100 * ((x > 0.1) & (x < 0.9)).float().mean().item()


# ------------------------------------------------------------------------------------------------------------- char-RNN


def shipped_text() -> tuple[nn.Module, tuple, Tensor]:
    """The model that ships, (character to number, number to character), and the plays' held-out tenth as numbers."""
    state = torch.load("weights/char_rnn.pth", weights_only=True)
    text = texts.load_text("data/shakespeare-works", "data", 1, 0.1, alphabet=state["chars"])
    return char_rnn.build(state).float().eval(), char_rnn.char_maps(state["chars"]), text.test.long()


@common.in_eval_mode
def loss_in_windows(model: nn.Module, ids: Tensor, length: int = 256) -> float:
    """Return the mean −log p, in nats, in windows of the text that the model reads without a hidden state before.

    Models with a context of fixed length are measured in this way. char_rnn.held_out_loss reads the text as a whole.
    """
    length = min(length, len(ids) - 1)
    n, device = (len(ids) - 1) // length, next(model.parameters()).device
    x, y = (part[: n * length].view(n, length).to(device).long() for part in (ids[:-1], ids[1:]))
    total, parts = 0.0, zip(x.split(64), y.split(64), strict=True)
    for part, truth in files.progress(parts, "windows", math.ceil(n / 64)):
        total += F.cross_entropy(model(part)[0].flatten(0, 1).float(), truth.flatten(), reduction="sum").item()
    return total / y.numel()


def windows() -> None:
    """Held-out loss of README's two runs of char_rnn.py: of the whole text, and in windows of 256 characters."""
    rows = []
    for run in ("char_rnn-tiny", "char_rnn-shakespeare-works-2x512"):
        state = torch.load(f"runs/{run}/char_rnn.pth", weights_only=True)
        text = texts.load_text(state["data"], "data", 1, 0.1, alphabet=state["chars"])
        model = char_rnn.build(state)
        rows.append((run, char_rnn.held_out_loss(model, text.test), loss_in_windows(model, text.test)))
    table(("run", "nats, the whole text", "nats in windows of 256"), rows)


@torch.no_grad()
def nats_given(model: nn.Module, ids: Tensor, at: Tensor, lengths: Iterable[int]) -> dict[int, Tensor]:
    """The error on the characters `at` (N,) of a text, given so many before each and an empty state before these."""
    nats = {}
    for length in lengths:
        before = ids[at[:, None] + torch.arange(-length, 0)]  # (N, length)
        scores = torch.cat([model(part)[0][:, -1] for part in before.split(500)])
        nats[length] = F.cross_entropy(scores, ids[at], reduction="none")
    return nats


def memory() -> None:
    """Loss by the number of characters that are given, and how far back an error's gradient reaches."""
    model, _, ids = shipped_text()
    at = torch.arange(1024, len(ids), 128)
    some = at[::20]
    x = F.one_hot(ids[some[:, None] + torch.arange(-600, 0)], model.in_dim).float().requires_grad_()  # (N, 600, V)
    loss = F.cross_entropy(model(x)[0][:, -1], ids[some])
    gradient = torch.autograd.grad(loss, x)[0]
    norms = gradient.norm(dim=-1).median(0).values.flip(0)  # (600,): by the last character first
    nats = nats_given(model, ids, at, (1, 4, 16, 64, 256, 512))
    rows = [(n, value.mean().item(), (norms[n - 1] / norms[0]).item()) for n, value in nats.items()]
    table((f"characters given, {len(at):,}", "nats", f"gradient by the one so far back, median of {len(some)}"), rows)
    gain = nats[64] - nats[256]
    print(f"\n256 instead of 64 gain {gain.mean():.3f} ± {gain.std() / len(gain) ** 0.5:.3f} nats")


def random_batch(ids: Tensor, batch_size: int, seq_len: int, step: int, seed: int, forget: bool):
    """char_rnn.stream_batch, but of sequences from anywhere; forget: each begins with an empty state."""
    rng = np.random.default_rng((seed, step))
    start = torch.from_numpy(rng.integers(len(ids) - seq_len, size=(batch_size, 1)))
    at = start + torch.arange(seq_len)  # (B, S)
    return ids[at].long(), ids[at + 1].long(), forget or step == 1


def shuffled() -> None:
    """Sequences of 16 in order, shuffled and forgetting, shuffled and not forgetting; then nats by what is given."""
    ways = {
        "in order, the state goes on": char_rnn.stream_batch,
        "shuffled, an empty state each time": partial(random_batch, forget=True),
        "shuffled, the state of another text": partial(random_batch, forget=False),
    }
    flags = ["--h-dim", "256", "--dropout", "0.2", "--seq-len", "16", "--steps", "3000", "--eval-every", "3000"]
    lengths = (4, 16, 32, 64, 256)
    ids = texts.load_text("tinyshakespeare", "data", 1, 0.1).test.long()
    at = torch.arange(1024, len(ids), 32)
    rows = []
    for i, (name, way) in enumerate(ways.items()):
        char_rnn.stream_batch = way
        found = []
        for seed in SEEDS:
            run = f"shuffled{i}-seed-{seed}"
            char_rnn.main([*flags, "--data", "tinyshakespeare", "--seed", str(seed), "--out", f"runs/{run}"])
            nats = nats_given(weights(char_rnn, f"runs/{run}/char_rnn.pth"), ids, at, lengths)
            means = [value.mean().item() for value in nats.values()]
            found.append((results(run)["nats"], *means, (nats[16] - nats[256]).mean().item()))
        rows.append((name, *map(spread, zip(*found, strict=True))))
    given = [f"given {length}" for length in lengths]
    table(("training", "the whole text", *given, "256 instead of 16 gain"), rows)


def words(text: str) -> list[str]:
    """In lower case, without punctuation but the apostrophe."""
    return "".join(c if c.isalpha() or c == "'" else " " for c in text.lower()).split()


def temperature() -> None:
    """Entropy, spelling and repetition of 20,000 characters by temperature."""
    model, maps, held_out = shipped_text()
    known = {word for path in Path("data/shakespeare-works").glob("*.txt") for word in words(path.read_text())}

    @torch.no_grad()
    def described(name: str, sample: str, T: float) -> tuple:
        ids = char_rnn.encode(sample, maps[0]).long()
        p = char_rnn.hot_softmax(model(ids[None])[0][0], 1, T)  # (N, V)
        entropy = torch.special.entr(p).sum(1).mean().item()
        said = words(sample)
        spelled = sum(word in known for word in said) / len(said)
        eights = [sample[i : i + 8] for i in range(len(sample) - 8)]
        return name, entropy, 100 * spelled, 100 * len(set(eights)) / len(eights)

    rows = []
    for T in (0.1, 0.2, 0.5, 0.8, 1.0, 1.5, 2.0, 5.0):
        torch.manual_seed(0)
        rows.append(described(f"T = {T}", char_rnn.generate_from_model(model, "\n", 20000, maps, T), T))
    last = "".join(maps[1][i] for i in held_out[-20000:].tolist())
    rows.append(described("T = 1.0, reading Shakespeare, held out", last, 1.0))
    table(("", "entropy, nats per character", "% of words that he uses", "% of runs of 8 that are distinct"), rows)


KINDS = {  # of a line of a play
    "headings": r"(ACT|SCENE|Scene|Act)\b",
    "stage directions": r"\[|(Re-)?[Ee]nter |Exit|Exeunt|Flourish|Alarum",
    "speakers": r"[A-Z0-9][\w' ]{0,24}\.(  ?\S|$)",
}


def kinds_of_lines(text: str) -> list[float]:
    """Percent of the lines that are not empty that are of each kind, and their mean length in characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    counts = dict.fromkeys(KINDS, 0)
    for line in lines:
        for kind, pattern in KINDS.items():
            if re.match(pattern, line):
                counts[kind] += 1
                break
    return [100 * count / len(lines) for count in counts.values()] + [len("".join(lines)) / len(lines)]


def plays() -> None:
    """Share of headings, stage directions and speakers among lines, of the shipped model's text and of the original."""
    model, maps, held_out = shipped_text()
    original = "".join(maps[1][i] for i in held_out.tolist())
    rows = [("Shakespeare, held out", *kinds_of_lines(original))]
    for T in (0.5, 0.8, 1.0):
        torch.manual_seed(0)
        drawn = itertools.islice(char_rnn.continuation(model, "\n", maps[0], T, n=20), CHARACTERS // 20)
        texts = ["".join(maps[1][i] for i in text) for text in zip(*drawn, strict=True)]
        rows.append((f"generated, T = {T}", *kinds_of_lines("\n".join(texts))))
    table(("% of lines", *KINDS, "characters a line"), rows)


# ------------------------------------------------------------------------------------------------------------------ VAE


@torch.no_grad()
def codes(run: str) -> tuple[vae.VAE, Tensor, Tensor, Tensor]:
    """A run's model; μ and log σ² of 2,000 test digits, and these digits' labels."""
    model = weights(vae, f"runs/{run}/vae.pth")
    return model, *vae.posteriors(model, mnist(32).test[:2000]), mnist(32).test_labels[:2000]


def n_active(mu: Tensor) -> int:
    """Latents that say something: Burda et al. 2015, section 5.2."""
    return int((mu.var(0) > 0.01).sum())


def show_samples(ax, model: vae.VAE, n: int, columns: int) -> None:
    torch.manual_seed(0)
    ax.imshow(make_grid(model.sample(n), columns, padding=0)[0], cmap="gray", vmin=0, vmax=1)
    ax.axis("off")


def seeds_of(candidate: str) -> list[str]:
    """The runs of a candidate of report/race.py, by RACE/CANDIDATE."""
    return [f"race/{candidate}/seed-{seed}" for seed in SEEDS]


def beta() -> None:
    """The race `beta`: the two terms, latent space, samples."""
    rows = []
    figure, axes = panels(3, 5, (15, 9))
    for (terms, plane, samples), b in zip(axes.T, ("0", "0.1", "1", "4", "10"), strict=True):
        runs, found = seeds_of(f"beta/β-{b}"), []
        for run in runs:
            model, mu, log_sigma2, _ = codes(run)
            r = results(run)
            x = mnist(32).test[: r["log_px_images"]]
            loss = vae.mean_losses(model, x, 1.0)["loss"]  # minus these images' ELBO
            inside = n_active(mu), log_sigma2.exp().sqrt().mean().item(), mu.std(0).mean().item()
            terms_of_loss = r["rec"], r["kl"], r["elbo"]
            found.append((*terms_of_loss, r["fd_lenet"], 100 * r["confident"], *inside, r["log_px"] + loss))
        rows.append((f"β = {b}", *map(spread, zip(*found, strict=True))))

        terms.plot(*column(runs[0], "test", "rec"), label="reconstruction")
        terms.plot(*column(runs[0], "test", "kl"), label="KL")
        terms.set(title=f"β = {b}", xlabel="step", ylim=(0, 260))
        terms.legend(title="nats, held out")
        model, mu, _, labels = codes(runs[0])
        plots.scatter(plane, plots.tsne(mu.numpy()), labels)
        plane.set_title("codes, t-SNE")
        show_samples(samples, model, 48, 8)
        samples.set_title("samples")
    head = ("", "reconstruction", "KL", "ELBO", "FD-LeNet", "% sure of", "active latents", "σ", "spread of μ")
    table((*head, "log p(x) - ELBO, the first 1,000 digits"), rows)
    save(figure, "beta")


@torch.no_grad()
def latents() -> None:
    """The race `latents` and β = 1 of `beta`: latent dimensions and networks, samples, how far σ ranges."""
    candidates = {
        "3 latents, tsinghua": "latents/3-tsinghua",
        "10 latents, tsinghua": "latents/10-tsinghua",
        "100 latents, tsinghua": "latents/100-tsinghua",
        "10 latents, technion": "beta/β-1",
        "10 latents, mlp": "latents/10-mlp",
    }
    rows = []
    figure, axes = panels(2, 3, (15, 5))
    for ax, (name, candidate) in zip(axes.flat, candidates.items(), strict=False):
        runs, found = seeds_of(candidate), []
        looked = [codes(run) for run in runs]
        for run, (model, mu, _, _) in zip(runs, looked, strict=True):
            r = results(run)
            measured = [r[key] for key in ("elbo", "rec", "kl", "log_px", "fd_lenet", "class_entropy")]
            before_z = model.encoder[:-1](vae.prepare(model, mnist(32).test[:2000]))  # (N, units), after a ReLU
            alive = (before_z > 0).any(0).float().mean().item()
            found.append((*measured, 100 * r["confident"], n_active(mu), 100 * alive))
        model, _, log_sigma2, _ = looked[0]
        n_parameters = sum(p.numel() for p in model.parameters())
        low, high = log_sigma2.quantile(0.01).item(), log_sigma2.quantile(0.99).item()
        rows.append((name, f"{n_parameters:,}", *map(spread, zip(*found, strict=True)), f"{low:.1f} to {high:.1f}"))
        show_samples(ax, model, 40, 10)
        ax.set_title(name)
    axes[-1, -1].axis("off")
    head = ("", "parameters", "ELBO", "reconstruction", "KL", "log p(x)", "FD-LeNet", "class entropy", "% sure of")
    table((*head, "active", "% of units before z ever above 0", "log σ², 98% of all, seed 0"), rows)
    save(figure, "latents")


def homework() -> None:
    """The homework's networks of the race `latents`: the six curves of each, and the grids that the run left."""
    figure, axes = panels(6, 3, (13, 22))
    for column_of_axes, z in zip(axes.T, (3, 10, 100), strict=True):
        run = f"race/latents/{z}-tsinghua/seed-0"
        folder = Path("runs", run)
        flags = json.loads((folder / "config.json").read_text())["flags"]
        titles = {"rec": "reconstruction", "kl": "KL"}
        titles["loss"] = f"loss, z = {flags['latent_dim']}, batch {flags['batch_size']}, {flags['steps']:,} steps"
        for ax, key in zip(column_of_axes, ("loss", "rec", "kl"), strict=False):
            for split in ("train", "test"):
                ax.plot(*column(run, split, key), label=split)
            ax.set(title=titles[key], xlabel="step", ylabel="nats", ylim=(0, 25) if key == "kl" else (60, 220))
            ax.legend()
        grids = max(folder.glob("samples/*.png")), folder / "reconstructions.png", folder / "interpolation.png"
        for ax, grid in zip(column_of_axes[3:], grids, strict=True):
            ax.imshow(Image.open(grid).convert("RGB"), interpolation="antialiased")
            ax.set_title(grid.stem if grid.parent == folder else "samples")
            ax.axis("off")
    save(figure, "homework")


@torch.no_grad()
def prior() -> None:
    """Why samples are worse than reconstructions: codes drawn where there are some, and from p(z)."""
    model, data = weights(vae, "weights/vae.pth"), mnist(32)
    seen_in = judge()
    mu, log_sigma2 = vae.posteriors(model, data.test)
    torch.manual_seed(0)
    own = model.reparameterize(mu, log_sigma2)  # (10000, Z): a draw from the aggregate posterior, Σ q(z|x) / N
    normal = torch.distributions.MultivariateNormal(own.mean(0), own.T.cov())
    bank = model.reparameterize(*vae.posteriors(model, data.train[:10000]))
    codes = {
        "μ of test digits (reconstructions)": mu,
        r"q(z\|x) of test digits, drawn": own,
        "N(m, S), m and S of these": normal.sample((10000,)),
        "p(z) = N(0, I) (samples)": torch.randn(10000, model.z_dim),
    }
    rows = []
    for name, z in codes.items():
        seen = seen_in(common.to_uint8(torch.cat([model.decode(part) for part in z.split(500)])))
        nearest = torch.cat([torch.cdist(part, bank).min(1).values for part in z.split(500)])
        rows.append((name, seen["fd_lenet"], 100 * seen["confident"], nearest.mean().item()))
    table(("codes", "FD-LeNet", "% sure of", "distance to the nearest of 10,000 training codes"), rows)


@torch.no_grad()
def draws() -> None:
    """500 draws of z for one digit of each class: its code's image, their mean, where they differ."""
    model, data = weights(vae, "weights/vae.pth"), mnist(32)
    x = data.test[[int((data.test_labels == k).nonzero()[0]) for k in range(10)]]
    mu, log_sigma2 = vae.posteriors(model, x)
    torch.manual_seed(0)
    z = model.reparameterize(mu.expand(500, *mu.shape), log_sigma2.expand(500, *mu.shape))  # (500, 10, Z)
    made = torch.stack([model.decode(part) for part in z])  # (500, 10, 1, 32, 32)
    rows = torch.cat([x / 255, model.decode(mu), made[0], made[1], made.mean(0), 2 * made.std(0)])
    common.save_grid(rows, PICTURES / "draws.png", len(x))
    seen = classifier()(common.to_uint8(made.flatten(0, 1)).float() / 255)
    guesses = classifier().classifier(seen).argmax(1).view(500, len(x))
    same = (guesses == guesses.mode(0).values).float().mean(0)
    sigma = log_sigma2.exp().sqrt().mean(1)
    table(
        ("digit", "mean σ", "mean deviation of a pixel", "% of draws read as the same digit"),
        [(str(k), sigma[k].item(), made.std(0)[k].mean().item(), 100 * same[k].item()) for k in range(len(x))],
    )


def subset() -> None:
    """24 images of each of three training sets, drawn at random."""
    for picture, name, size in (("mnist", "mnist", 32), ("cifar10", CIFAR10, 32), ("faces", FACES, 64)):
        x = images.load_images(name, "", "data", size).train
        some = permutation(len(x), 0, 0)[:24]
        common.save_grid(x[some].float() / 255, PICTURES / f"subset-{picture}.png", 12)


# ------------------------------------------------------------------------------------------------------------------ GAN


def flat_gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def two_gradients(x: Tensor, cut: bool) -> tuple[Tensor, Tensor | None, Tensor, float]:
    """(∂L_D/∂D, ∂L_D/∂G, ∂L_G/∂G, ms for D's loss and its gradients), at the start of the dense networks."""
    torch.manual_seed(0)
    G, D = gan_mnist.generator(96), gan_mnist.discriminator()
    z = gan_mnist.sample_noise(len(x), 96)
    times = []
    for _ in range(60):
        G.zero_grad()
        D.zero_grad()
        began = time.perf_counter()
        x_fake = G(z)
        if cut:
            x_fake = x_fake.detach()
        gan_mnist.discriminator_loss(D(x), D(x_fake)).backward()
        times.append(1e3 * (time.perf_counter() - began))
    of_D = flat_gradient(D)
    by_D = None if cut else flat_gradient(G)
    G.zero_grad()
    gan_mnist.generator_loss(D(G(z))).backward()
    return of_D, by_D, flat_gradient(G), sorted(times)[30]


def gradients() -> None:
    """D's and G's gradients with samples cut off from G, and not."""
    x = 2 * mnist(28).train[:128].flatten(1).float() / 255 - 1  # (128, 784)
    cut_D, _, _, cut_ms = two_gradients(x, cut=True)
    kept_D, by_D, by_G, kept_ms = two_gradients(x, cut=False)
    cosine = F.cosine_similarity(by_D, by_G, 0).item()
    rows = [
        ("cut", cut_D.norm().item(), "none", "none", cut_ms),
        ("kept", kept_D.norm().item(), by_D.norm().item(), cosine, kept_ms),
    ]
    table(("samples in D's step", "‖∂L_D/∂D‖", "‖∂L_D/∂G‖", "its cosine with ∂L_G/∂G", "ms for D's step"), rows)
    print(f"\nD's gradients differ by {(cut_D - kept_D).abs().max():.1e}")

    G, D = gan_mnist.generator(96), gan_mnist.discriminator()
    gan_mnist.generator_loss(D(G(gan_mnist.sample_noise(128, 96)).detach())).backward()
    print(f"G's gradient in its own step, samples cut: {G[0].weight.grad}")


def draw_game(axes, run: str, title: str) -> None:
    """One column of the figure: losses, what D says, what the samples are, samples."""
    losses, says, measured, samples = axes
    for key in ("d_loss", "g_loss"):
        losses.plot(*column(run, "train", key), label=key)
    losses.axhline(0.25 if "lsgan" in run else 2 * math.log(2), color="grey", ls=":")  # D's loss at equilibrium
    losses.set(title=title, ylim=(0, 30), yscale="symlog")
    says.plot(*column(run, "train", "d_x"), label="D(x)")
    for split in ("D's step", "G's step"):
        says.plot(*column(run, split, "d_g_z"), label=f"D(G(z)) in {split}")
    says.set(ylim=(-0.4, 1.1))
    for key, unit in (("fd_lenet", 1000), ("class_entropy", math.log(10))):
        steps, values = column(run, "samples", key)
        measured.plot(steps, np.array(values) / unit, "o-", label=key)
    measured.set(ylim=(0, 1.1), xlabel="step")
    for ax in (losses, says, measured):
        ax.set_xlim(0, 4690)
        ax.legend(fontsize="small")
    last_grid = Image.open(max(Path(f"runs/{run}/samples").glob("*.png")))
    samples.imshow(last_grid.crop((0, 0, last_grid.width, last_grid.height // 2)), cmap="gray")
    samples.axis("off")


def mean_between(curve: tuple[list[int], list[float]], first: int, last: int) -> float:
    """Return the mean of the values after step `first`, up to `last`."""
    steps, values = np.array(curve)
    return float(values[(first < steps) & (steps <= last)].mean())


def games() -> None:
    """Runs runs/gan-default, gan-collapsed, lsgan-collapsed, conv-cured: losses, what D says, what the samples are."""
    runs = {
        "gan-default": "--lr 0.001",
        "gan-collapsed": "--lr 0.003",
        "lsgan-collapsed": "--lr 0.003 --loss lsgan",
        "conv-cured": "--lr 0.003 --arch conv",
    }
    figure, axes = panels(4, 4, (15, 11))
    for ax, (run, title) in zip(axes.T, runs.items(), strict=True):
        draw_game(ax, run, title)
    save(figure, "games")

    curves = [column("gan-default", "train", key) for key in ("d_loss", "g_loss", "d_x")]
    curves += [column("gan-default", split, "d_g_z") for split in ("D's step", "G's step")]
    steps, fd_lenet = column("gan-default", "samples", "fd_lenet")
    _, class_entropy = column("gan-default", "samples", "class_entropy")
    rows = []
    for i, last in enumerate(steps):
        means = [mean_between(curve, last - 469, last) for curve in curves]
        rows.append((last, *means, fd_lenet[i], class_entropy[i]))
    head = ("step", "D's loss", "G's loss", "D(x)", "D(G(z)) in D's step", "in G's step", "FD-LeNet", "class entropy")
    table(head, rows)


def adam(beta2: float = 0.999, G: float = 1, D: float = 1, first: str = "G") -> None:
    """Replace Adam by one with another β₂, or with learning rates of G and D that are multiples of --lr.

    first: the network whose optimiser the script makes first, "G" in gan_mnist.py, "D" in dcgan.py.
    """
    Adam, times = torch.optim.Adam, iter((G, D) if first == "G" else (D, G))

    def other(parameters, lr=None, betas=(0.9, 0.999), **rest):
        if lr is None:  # that of a classifier
            return Adam(parameters, betas=betas, **rest)
        return Adam(parameters, lr * next(times, 1), (betas[0], beta2), **rest)

    torch.optim.Adam = other


def blind() -> None:
    """CS231n's question: D's loss constant and high while G's falls. A D that cannot learn, beside the default."""
    Adam, rows = torch.optim.Adam, []
    for name, times in (("D learns", 1), ("D's learning rate is 0", 0)):
        torch.optim.Adam = Adam
        adam(D=times)
        run = Path(f"runs/blind-{times}")
        gan_mnist.main(f"--data mnist --steps 938 --sample-every 469 --log-every 67 --out {run} --fresh".split())
        for first, last in ((0, 67), (402, 469), (871, 938)):
            curves = [column(run.name, "train", key) for key in ("d_loss", "g_loss", "d_x")]
            means = [mean_between(curve, first, last) for curve in curves]
            measured = dict(zip(*column(run.name, "samples", "fd_lenet"), strict=True))
            rows.append((f"{name}, step {last}", *means, measured.get(last, "")))
    torch.optim.Adam = Adam
    table(("", "D's loss", "G's loss", "D(x)", "FD-LeNet"), rows)


# ---------------------------------------------------------------------------------------------------------- VAE and GAN


def generators() -> dict[str, tuple]:
    """(script, model) by name."""
    return {
        "VAE, 10 latents": (vae, weights(vae, "weights/vae.pth")),
        "VAE, 100 latents": (vae, weights(vae, "runs/race/latents/100-tsinghua/seed-0/vae.pth")),
        "DCGAN": (dcgan, weights(dcgan, "weights/dcgan-mnist.pth")),
    }


@torch.no_grad()
def reconstructed(model: vae.VAE, x: Tensor) -> Tensor:
    """uint8 images -> uint8 images, decoded from μ."""
    parts = [vae.to_unit_range(model, model.decode(mu)) for mu in vae.posteriors(model, x)[0].split(500)]
    return common.to_uint8(torch.cat(parts))


def spectrum(x: Tensor) -> Tensor:
    """Share of the power of images (N, S, S) in [0, 1] at 1 ... S/2 cycles per image: (S/2,)."""
    size = x.shape[-1]
    f = size * torch.fft.fftfreq(size)
    ring = (f[:, None] ** 2 + f**2).sqrt().round().long().flatten()  # cycles per image, in any direction
    power = torch.fft.fft2(x - x.mean(0)).abs().square().mean(0).flatten()
    mean = torch.zeros(size).index_add_(0, ring, power)[: size // 2 + 1] / ring.bincount()[: size // 2 + 1]
    return mean[1:] / mean[1:].sum()


def mean_slope(x: Tensor) -> float:
    """Mean length of the gradient of images (N, H, W)."""
    down, right = x[:, 1:, :-1] - x[:, :-1, :-1], x[:, :-1, 1:] - x[:, :-1, :-1]
    return (down.square() + right.square()).sqrt().mean().item()


def sharpness() -> None:
    """Spectrum, gradient, grey pixels of digits, of what the VAEs reconstruct and draw, of what the GAN draws."""
    seen_in = judge()
    sets = {"test digits": mnist(32).test}
    for name, (script, model) in generators().items():
        if script is vae:
            sets[f"{name}, reconstructions"] = reconstructed(model, mnist(32).test)
        sets[f"{name}, samples"] = torch.cat(list(script.draw_samples(model, 10000, 0)))
    figure, [[ax]] = panels(1, 1, (6, 4))
    rows = []
    for name, pictures in sets.items():
        x = pictures[:, 0].float() / 255
        shares = spectrum(x)
        ax.semilogy(range(1, 17), shares, label=name)
        seen = seen_in(pictures)
        high = 100 * shares[8:].sum().item()
        rows.append((name, mean_slope(x), percent_grey(x), high, seen["fd_lenet"], 100 * seen["confident"]))
    ax.set(xlabel="cycles per image", ylabel="share of power")
    ax.legend(fontsize="small")
    table(("", "mean slope", "% grey", "% of power above 8 cycles", "FD-LeNet", "% sure of"), rows)
    save(figure, "spectrum")


def faces() -> None:
    """Run runs/faces-vae and the race `faces`, 530 photographs: how sharp, how varied, learned by heart?"""
    data = images.load_images(FACES, "", "data", 64)
    model = weights(vae, "runs/faces-vae/vae.pth")
    G = weights(dcgan, "runs/race/faces/lr-1e-3/seed-0/generator.pth")
    sets = {
        "training faces": data.train,
        "held-out faces": data.test,
        "VAE, held-out faces reconstructed": reconstructed(model, data.test),
        "VAE, samples": next(vae.draw_samples(model, 250, 0)),
        "GAN, samples": next(dcgan.draw_samples(G, 250, 0)),
    }
    known, rows = data.train.flatten(1).float() / 255, []
    for name, pictures in sets.items():
        x = pictures.float() / 255
        apart, grey = torch.cdist(x.flatten(1), known) / known.shape[1] ** 0.5, x.mean(1)
        if pictures is data.train:
            apart.fill_diagonal_(math.inf)
        high = 100 * spectrum(grey)[16:].sum().item()
        varied = lenet.relative_spread(pictures, data)
        rows.append((name, mean_slope(grey), high, varied, apart.min(1).values.mean().item()))
    head = ("", "mean slope", "% of power above 16 cycles", "spread", "distance to the nearest training face")
    table(head, rows)
    for name, file in (("VAE, samples", "faces-vae"), ("GAN, samples", "faces-gan")):
        common.save_grid(sets[name][:24].float() / 255, PICTURES / f"{file}.png", 8)


def ends(script, model: nn.Module) -> Tensor:
    """(2, 2000, Z): for the VAEs codes of pairs of test digits of different classes, for the GAN random z."""
    data = mnist(32)
    differ = data.test_labels[:4000] != data.test_labels[4000:8000]
    first = differ.nonzero()[:2000, 0]
    if script is vae:
        return torch.stack([vae.posteriors(model, data.test[i])[0] for i in (first, first + 4000)])
    return torch.randn(2, 2000, model.z_dim, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def interpolation() -> None:
    """From one digit to another of another class, and beyond: what the classifier and the distance say on the way."""
    ways = {vae: ("line",), dcgan: ("line", "sphere")}
    seen_in, rows = judge(), []
    for name, (script, model) in generators().items():
        pairs = list(zip(*ends(script, model), strict=True))
        for kind in ways[script]:
            path = torch.stack([dcgan.between(z1, z2, 4, kind == "sphere") for z1, z2 in pairs], 1)  # (9, N, Z)
            for i in (0, 2, 3, 4, 5, 6, 8):
                if script is vae:
                    x = vae.to_unit_range(model, model.decode(path[i]))
                else:
                    x = dcgan.show(model, path[i])
                seen = seen_in(common.to_uint8(x))
                t = (i - 2) / 4
                rows.append((f"{name}, {kind}", t, seen["fd_lenet"], 100 * seen["confident"], percent_grey(x)))
    table(("", "t", "FD-LeNet of 2,000", "% sure of", "% grey"), rows)


# --------------------------------------------------------------------------------------------------------------- SimCLR


def unchanged(x: Tensor) -> Tensor:
    return x


def in_colour(x: Tensor) -> Tensor:
    """augment, without grey images."""
    return simclr.jitter(simclr.flip(simclr.crop(simclr.to_rgb(x))))


class WithoutHead(simclr.Model):
    """z is h."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.g = nn.Identity()


REPLACED = {  # by variant: a name in simclr.py, and what takes its place
    "no-crop": ("crop", unchanged),
    "no-flip": ("flip", unchanged),
    "no-jitter": ("jitter", unchanged),
    "no-grey": ("augment", in_colour),
    "no-head": ("Model", WithoutHead),
}


def extended(model: simclr.Model, head: nn.Module) -> simclr.Model:
    """Return a copy of the model with the head on top of f, so that represent() returns the output of the head."""
    longer = copy.deepcopy(model)
    longer.f = nn.Sequential(longer.f, head)
    return longer


def accuracies(model: simclr.Model, data: images.ImageData, bf16: bool) -> dict[str, float]:
    """Return accuracies of h and of z, on which the loss is computed, from 10,000 labels."""
    y, truth = data.train_labels[:10000], data.test_labels
    found = {}
    for name, net in (("h", model), ("z", extended(model, model.g))):
        h = simclr.represent(net, data.train[:10000], bf16)
        test_h = simclr.represent(net, data.test, bf16)
        found[f"{name}_knn"] = simclr.knn_accuracy(h, y, test_h, truth)
        found[f"{name}_linear"] = simclr.linear_accuracy(h, y, test_h, truth)
    return found


def ablation(variant: str) -> None:
    """SimCLR at 16 x 16 with one thing changed, then kNN and linear accuracy of h and z from 10,000 labels."""
    flag, _, value = variant.partition("=")
    changed = {"batch-size": "128", "tau": "0.5", "seed": "0"}
    if flag in changed and value:
        changed[flag] = value
    elif variant in REPLACED:
        setattr(simclr, *REPLACED[variant])
    elif variant not in ("all", "untrained"):
        known = f"all, untrained, {', '.join(REPLACED)}, tau=, batch-size= and seed="
        common.fail(f"no variant {variant}; there are {known}")

    def evaluate_run(model, data, _, args) -> dict[str, float]:
        if variant == "untrained":
            model = simclr.untrained_twin(model, data.train[:2500], args.seed)
        return accuracies(model, data, args.bf16)

    simclr.evaluate_run = evaluate_run
    n_steps = 300 * 128 // int(changed["batch-size"])  # as many images for all
    if variant == "untrained":
        n_steps = 1
    flags = ["--data", CIFAR10, "--image-size", "16", "--lr", "0.12", "--warmup", "30"]
    flags += ["--steps", str(n_steps), "--sample-every", "10000", "--out", f"runs/simclr-{variant}"]
    for name, setting in changed.items():
        flags += [f"--{name}", setting]
    simclr.main(flags)


def fit(model: simclr.Model, data: images.ImageData, some: Tensor, n_steps: int) -> float:
    """Train a model whose f returns logits on `some` labelled images. Return its accuracy on the test images."""
    net = model.f.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.03, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for step in files.progress(range(1, n_steps + 1), "few labels", n_steps):
        optimizer.param_groups[0]["lr"] = simclr.learning_rate(step, n_steps, warmup=1, peak=0.03)
        i = some[batch_indices(len(some), 128, step, seed=0)]
        x = simclr.flip(simclr.crop(simclr.to_rgb(data.train[i]), scale=(0.5, 1.0)))  # (B, 3, S, S)
        optimizer.zero_grad()
        F.cross_entropy(net(model.normalise(x)), data.train_labels[i]).backward()
        optimizer.step()
    guesses = simclr.represent(model, data.test, False).argmax(1)
    return (guesses == data.test_labels).float().mean().item()


def few_labels() -> None:
    """Few labels: a linear layer on the frozen encoder, the encoder trained along, the same network from nothing."""
    config = torch.load("runs/simclr-2h/simclr.pth", weights_only=True)
    model, data = simclr.build(config), images.load_images(CIFAR10, "", "data", 32)
    some = permutation(len(data.train), 0, 0)[:5000]
    h, test_h = (simclr.represent(model, x, False) for x in (data.train[some], data.test))
    linear = simclr.linear_accuracy(h, data.train_labels[some], test_h, data.test_labels)
    found = {"a linear layer on the frozen encoder": linear}
    torch.manual_seed(1)
    fresh = simclr.Model(*model.arguments).to(memory_format=torch.channels_last)
    for name, m in (("the encoder trained along", model), ("the same network from nothing", fresh)):
        with_logits = extended(m, nn.Linear(m.width, len(data.classes)))
        found[f"{name}, 400 steps"] = fit(with_logits, data, some, 400)
    table(("from 5,000 labels", "% right of 10,000"), [(name, 100 * right) for name, right in found.items()])


# ------------------------------------------------------------------------------------------------------------------ FID


def lenet_features(x: Tensor) -> Tensor:
    """(N, 84) of uint8 images."""
    return torch.cat(list(fid.features(x, classifier())))


def blurred_and_noisy(x: Tensor, blurs: Sequence[float], noises: Sequence[float]) -> dict[str, Tensor]:
    """uint8 images by what was done to them, σ in pixels and in units of the largest value."""
    from torchvision.transforms.functional import gaussian_blur

    torch.manual_seed(0)
    noise = torch.randn(x.shape)
    sets = {f"test, blurred with σ = {sigma}": gaussian_blur(x, int(8 * sigma) | 1, sigma) for sigma in blurs}
    for sigma in noises:
        sets[f"test, noise of σ = {sigma}"] = common.to_uint8((x / 255 + sigma * noise).clamp(0, 1))
    return sets


def damaged_digits() -> dict[str, Tensor]:
    """Sets of MNIST's digits by what is wrong with them."""
    train, labels, test = mnist(28).train, mnist(28).train_labels, mnist(28).test
    sets = {"training digits, 10,000": train[:10000], "the test digits themselves": test}
    sets |= blurred_and_noisy(test, (0.5, 1.0, 2.0), (0.1, 0.2, 0.4))
    for shift in (1, 2, 4):
        sets[f"test, {shift} pixels to the right"] = test.roll(shift, 3)
    top, bottom_of_another = test[:, :, :14], test.roll(1, 0)[:, :, 14:]
    sets["test, top and bottom halves of two digits"] = torch.cat([top, bottom_of_another], 2)
    for times in (2, 10, 100):
        n = 10000 // times
        sets[f"{n:,} training digits, {times:,} times"] = train[:n].repeat(times, 1, 1, 1)
    sets["training digits without 7"] = train[labels != 7][:10000]
    sets["training digits, only 7"] = train[labels == 7]
    return sets


def distance() -> None:
    """Fréchet distance of damaged digits, of those that it misses too, and by the number of samples."""
    seen_in, real, rows = judge(), lenet_features(mnist(28).test), []
    for name, x in damaged_digits().items():
        seen = seen_in(x)
        kid = fid.kid(real, lenet_features(x))
        rows.append((name, seen["fd_lenet"], kid, seen["class_entropy"], 100 * seen["confident"]))
    table(("against MNIST's 10,000 test digits", "FD-LeNet", "KID", "class entropy", "% sure of"), rows)
    print()

    drawn = torch.cat(list(dcgan.draw_samples(weights(dcgan, "weights/dcgan-mnist.pth"), 20000, 0)))
    rows = []
    for n in (100, 300, 1000, 3000, 10000):
        row = [f"{n:,}"]
        for x in (mnist(28).train, drawn):
            parts = [part for part in x.split(n)[:3] if len(part) == n]
            row.append(float(np.mean([seen_in(part)["fd_lenet"] for part in parts])))
            row.append(float(np.mean([fid.kid(real, lenet_features(part)) for part in parts])))
        rows.append(row)
    table(("samples", "training digits: FD-LeNet", "KID", "DCGAN: FD-LeNet", "KID"), rows)


def jpeg(x: Tensor, quality: int) -> Tensor:
    """uint8 images (N, 3, H, W), written as JPEG and read again."""
    out = []
    for image in x:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        out.append(torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1))
    return torch.stack(out)


def halved_and_back(x: Tensor, mode: str, antialias: bool) -> Tensor:
    small = F.interpolate(x.float(), scale_factor=0.5, mode=mode, antialias=antialias)
    return common.to_uint8(F.interpolate(small, scale_factor=2, mode="bilinear") / 255)


def damaged_photographs(data: images.ImageData) -> dict[str, Tensor]:
    """Sets of CIFAR-10's images by what is wrong with them."""
    train, labels, test = data.train, data.train_labels, data.test
    sets = {"training images, 10,000": train[:10000], "training images without horses": train[labels != 7][:10000]}
    sets |= blurred_and_noisy(test, (0.5, 1.0), (0.05, 0.1))
    for quality in (75, 50):  # CIFAR10 as a folder is of quality 75 already
        sets[f"test, as JPEG of quality {quality}"] = jpeg(test, quality)
    sets["test, halved and back, nearest"] = halved_and_back(test, "nearest", False)
    sets["test, halved and back, antialiased"] = halved_and_back(test, "bilinear", True)
    drawn = torch.cat(list(dcgan.draw_samples(weights(dcgan, "weights/dcgan-cifar10.pth"), 10000, 0)))
    return sets | {"dcgan.py's samples": drawn, "dcgan.py's samples, as JPEG of quality 75": jpeg(drawn, 75)}


def photographs() -> None:
    """FD-LeNet of CIFAR-10 and FD-SimCLR of photographs with noise, blur, JPEG, resizing, or a class missing."""
    data = images.load_images(CIFAR10, "", "data", 32)
    networks = lenet.classifier(data, "data", CPU), fid.encoder(Path("runs/simclr-2h/simclr.pth"))
    judges = [judge_by(net, data.test) for net in networks]
    rows = []
    for name, x in damaged_photographs(data).items():
        seen = [scores_of(x) for scores_of in judges]
        rows.append((name, seen[0]["fd_lenet"], 1000 * seen[1]["fd_simclr"], seen[0]["class_entropy"]))
        print(*rows[-1], file=sys.stderr)
    table(("against CIFAR-10's 10,000 test images", "FD-LeNet", "FD-SimCLR x 1,000", "class entropy"), rows)


TEXT = (windows, memory, shuffled, temperature, plays)
VAE = (beta, latents, homework, prior, draws, subset)
GAN = (gradients, games, blind, sharpness, faces, interpolation)
MEASUREMENTS = (*TEXT, *VAE, *GAN, ablation, few_labels, distance, photographs)
NAMES = {function.__name__: function for function in MEASUREMENTS}


def get_args(argv: list[str] | None = None) -> argparse.Namespace:
    described = "\n".join(f"  {name:14} {function.__doc__}" for name, function in NAMES.items())
    p = common.Parser(f"{__doc__}\n{described}", "%(prog)s NAME [variant]")
    p.add_argument("name", choices=NAMES, metavar="NAME", help="one of these")
    p.add_argument("variant", nargs="?", default="all", help="of ablation: no-crop, no-head, tau=0.1, ...")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    with common.running(argparse.Namespace(device="cpu", seed=0)):
        if args.name == "ablation":
            ablation(args.variant)
        else:
            NAMES[args.name]()


if __name__ == "__main__":
    common.program(main)
