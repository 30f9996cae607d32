"""Generative adversarial networks on MNIST: GAN and LSGAN, dense and convolutional.

Goodfellow et al. 2014, "Generative Adversarial Networks", arXiv 1406.2661. Mao et al. 2016, "Least Squares Generative
Adversarial Networks", arXiv 1611.04076. The discriminator D tells data x from samples G(z), the generator G learns to
be taken for data. Each makes its own loss small, in turns (algorithm 1, one step of D for each of G):

    gan      D: −E[log D(x)] − E[log(1 − D(G(z)))]   (eq. 1)     G: −E[log D(G(z))]   (section 3, non-saturating)
    lsgan    D: ½ E[(D(x) − 1)²] + ½ E[D(G(z))²]                 G: ½ E[(D(G(z)) − 1)²]   (Mao's eq. 9; D is a score)

Differs from the papers: the networks and optimiser of Stanford's CS231n, assignment 3 (initialised as PyTorch does),
but for Adam's β₁, which for --loss gan is 0 (the course's is --beta1 0.5); z uniform in (−1, 1); the convolutional
generator is that of InfoGAN (Chen et al. 2016, arXiv 1606.03657, appendix C.1) without its codes; what is shown,
measured and saved is an average of G's weights over its last steps.

    python gan_mnist.py                            # dense networks; the same again continues
    python gan_mnist.py --loss lsgan --arch conv
    python gan_mnist.py --generate --n 100         # a grid of new digits from the newest run

Measured: FD-LeNet of 10,000 samples to MNIST's test digits, three seeds, one thread of an AMD EPYC: 15.4 ± 0.8 (gan;
with the course's β₁ 39.8) in 1 minute, 13.5 ± 2.0 (gan, conv, 2,000 steps) in 4; seed 0, two cores of a Zen 5, bf16:
34.9 (lsgan) and 26.8 (lsgan, conv) after 4,690 steps, in 0.6 and 5.8 minutes.
"""

import copy
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from plumbing.data import images
from plumbing.judge import lenet
from plumbing.run import plots
from plumbing.run import run as run_module
from plumbing.system import files, ranks


def get_args(argv: list[str] | None = None) -> Namespace:
    # Ten epochs of MNIST, logged every seventh of one, sampled every second one.
    p = common.parser(__doc__, steps=4690, batch_size=128, lr=1e-3, log_every=67, sample_every=938, makes="images")
    add = p.group("model")
    add("--loss", choices=["gan", "lsgan"], default="gan", help="both losses, of D and of G")
    add("--arch", choices=["dense", "conv"], default="dense", help="both networks")
    add("--noise-dim", type=common.number(int, 1), default=96, help="dimensions of z")
    beta1_help = "Adam's β₁ (default: 0 for --loss gan, 0.5 for lsgan; in the course 0.5)"
    add("--beta1", type=common.number(float, 0, below=1), help=beta1_help)
    average_help = "decay of G's averaged weights, which hold at most a tenth of the steps so far; 0 is none"
    add("--ema", type=common.number(float, 0, below=1), default=0.999, help=average_help)
    add = p.group("trained weights")
    add("--eval", action="store_true", help="do not train: measure the samples of a run")
    return common.parse_args(p, argv)


def _seed(seed: int | None) -> None:
    if seed is not None:
        torch.manual_seed(seed)


def sample_noise(batch_size: int, dim: int, seed: int | None = None, device="cpu") -> Tensor:
    """z (batch_size, dim), uniform in (−1, 1)."""
    _seed(seed)
    return 2 * torch.rand(batch_size, dim, device=device) - 1


def discriminator(seed: int | None = None) -> nn.Sequential:
    """Dense D: images (B, 784) or (B, 1, 28, 28) in [−1, 1] -> scores (B, 1)."""
    _seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.LeakyReLU(0.01),
        nn.Linear(256, 256),
        nn.LeakyReLU(0.01),
        nn.Linear(256, 1),
    )


def generator(noise_dim: int = 96, seed: int | None = None) -> nn.Sequential:
    """Dense G: z (B, noise_dim) -> images (B, 784) in [−1, 1]."""
    _seed(seed)
    return nn.Sequential(
        nn.Linear(noise_dim, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, 784),
        nn.Tanh(),
    )


def build_dc_classifier(batch_size: int = 128, seed: int | None = None) -> nn.Sequential:  # noqa: ARG001
    """Convolutional D: images (B, 784) or (B, 1, 28, 28) in [−1, 1] -> scores (B, 1). Any batch size will do."""
    _seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 5),  # (B, 32, 24, 24)
        nn.LeakyReLU(0.01),
        nn.MaxPool2d(2),  # (B, 32, 12, 12)
        nn.Conv2d(32, 64, 5),  # (B, 64, 8, 8)
        nn.LeakyReLU(0.01),
        nn.MaxPool2d(2),  # (B, 64, 4, 4)
        nn.Flatten(),
        nn.Linear(4 * 4 * 64, 4 * 4 * 64),
        nn.LeakyReLU(0.01),
        nn.Linear(4 * 4 * 64, 1),
    )


def build_dc_generator(noise_dim: int = 96, seed: int | None = None) -> nn.Sequential:
    """Convolutional G: z (B, noise_dim) -> images (B, 784) in [−1, 1]."""
    _seed(seed)
    return nn.Sequential(
        nn.Linear(noise_dim, 1024),
        nn.ReLU(),
        nn.BatchNorm1d(1024),
        nn.Linear(1024, 7 * 7 * 128),
        nn.ReLU(),
        nn.BatchNorm1d(7 * 7 * 128),
        nn.Unflatten(1, (128, 7, 7)),
        nn.ConvTranspose2d(128, 64, 4, 2, 1),  # (B, 64, 14, 14)
        nn.ReLU(),
        nn.BatchNorm2d(64),
        nn.ConvTranspose2d(64, 1, 4, 2, 1),  # (B, 1, 28, 28)
        nn.Tanh(),
        nn.Flatten(),
    )


def bce_loss(input: Tensor, target: Tensor) -> Tensor:
    """Mean of −t log σ(s) − (1 − t) log(1 − σ(s)) = log(1 + e^s) − s t over logits s and targets t, both (B, 1), in
    nats: no sigmoid, so no log 0."""
    return (F.softplus(input) - input * target).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """−E[log D(x)] − E[log(1 − D(G(z)))], D = σ(logits), logits (B, 1)."""
    return bce_loss(logits_real, torch.ones_like(logits_real)) + bce_loss(logits_fake, torch.zeros_like(logits_fake))


def generator_loss(logits_fake: Tensor) -> Tensor:
    """−E[log D(G(z))] of logits (B, 1): where D is sure, its gradient stays, that of E[log(1 − D(G(z)))] vanishes."""
    return bce_loss(logits_fake, torch.ones_like(logits_fake))


def ls_discriminator_loss(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """½ E[(D(x) − 1)²] + ½ E[D(G(z))²] of scores (B, 1)."""
    return 0.5 * ((scores_real - 1) ** 2).mean() + 0.5 * (scores_fake**2).mean()


def ls_generator_loss(scores_fake: Tensor) -> Tensor:
    """½ E[(D(G(z)) − 1)²] of scores (B, 1)."""
    return 0.5 * ((scores_fake - 1) ** 2).mean()


GAMES = {  # by --loss: D's loss, G's loss, and what stands for D(x) in the curves
    "gan": (discriminator_loss, generator_loss, torch.sigmoid),
    "lsgan": (ls_discriminator_loss, ls_generator_loss, nn.Identity()),
}


def get_optimizer(model: nn.Module, lr: float = 1e-3, beta1: float = 0.5) -> torch.optim.Adam:
    """Adam, by default with the course's β = (0.5, 0.999)."""
    fused = next(model.parameters()).device.type != "mps"
    return torch.optim.Adam(model.parameters(), lr, betas=(beta1, 0.999), fused=fused)


GENERATORS = {"dense": generator, "conv": build_dc_generator}  # by --arch
DISCRIMINATORS = {"dense": discriminator, "conv": build_dc_classifier}


@common.builder
def build(numbers: dict) -> nn.Sequential:
    """The generator that the flags describe, or that a weights file describes and holds."""
    return GENERATORS[numbers["arch"]](numbers["noise_dim"])


@common.in_eval_mode
def sample(G: nn.Sequential, z: Tensor) -> Tensor:
    """Images (B, 1, 28, 28) in [0, 1] of z (B, noise_dim), with the statistics that BatchNorm has gathered."""
    return (G(z.to(next(G.parameters()).device)).float().view(-1, 1, 28, 28) + 1) / 2


def draw(G: nn.Sequential, n: int, seed: int) -> Iterator[Tensor]:
    """n samples as uint8 batches (B, 1, 28, 28)."""
    return common.drawn(lambda k: sample(G, sample_noise(k, G[0].in_features)), n, seed)


def won_by_D(run: run_module.Run) -> int:
    """Steps for which D's logged loss has been below 0.01 by now."""
    undecided = [row["step"] for row in run.rows if row["split"] == "train" and row["d_loss"] >= 0.01]
    return run.step - max(undecided, default=0)


@torch.no_grad()
def mean_d_g_z(D: nn.Module, G: nn.Module, z: Tensor, probability: Callable) -> Tensor:
    """D(G(z)) with G in eval mode: the networks stay as they are."""
    x_fake = 2 * sample(G, z).flatten(1) - 1  # (B, 784) in [-1, 1]
    return probability(D(x_fake)).mean()


def measure(G: nn.Module, run: run_module.Run, judges: dict) -> dict[str, object]:
    """The distance of G's samples to held-out images, and a line if they are all of one kind."""
    import fid

    run.check()
    seen = fid.measured(partial(draw, G), judges)
    if "fd_lenet" in seen:
        run.add("samples", fd_lenet=seen["fd_lenet"], class_entropy=seen["class_entropy"])
        lenet.warn_if_collapsed(run, seen)
    return seen


def train(args: Namespace, device: torch.device) -> run_module.Run:
    import fid

    args, begun = common.begin_with("gan_mnist", "generator.pth", args, ("arch", "noise_dim"))
    data = images.load_images(args.data, "mnist", args.data_dir, 28)
    if data.train.shape[1] != 1:
        common.fail(f"{data} is in colour; gan_mnist.py is made for grey images, dcgan.py for colour")
    arch, noise_dim = args.arch, args.noise_dim
    if arch == "conv" and args.batch_size == 1:
        common.fail("--batch-size 1: BatchNorm in --arch conv needs at least 2 images")
    beta1 = args.beta1
    if beta1 is None:  # momentum overshoots in the logarithmic game, and holds the other one together
        beta1 = 0.0 if args.loss == "gan" else 0.5
    numbers = {"loss": args.loss, "arch": arch, "noise_dim": noise_dim, "beta1": beta1, "image_size": 28}
    numbers |= {"data": data.source, "trained_on": f"{data}{data.note}"}

    G = build(begun | numbers).to(device)
    D = DISCRIMINATORS[arch]().to(device, memory_format=torch.channels_last)
    if begun:
        common.load_beside(D, "gan_mnist", args)
    d_loss_fn, g_loss_fn, probability = GAMES[args.loss]
    G_optimizer, D_optimizer = get_optimizer(G, args.lr, beta1), get_optimizer(D, args.lr, beta1)
    shown_G = copy.deepcopy(G)  # averaged over steps: what is shown, measured and saved
    objects = {"G": G, "D": D, "averaged": shown_G, "G_optimizer": G_optimizer, "D_optimizer": D_optimizer}

    variant = f"gan_mnist-{data.name}-{args.loss}-{arch}"
    weights = {"generator.pth": (shown_G, numbers), "discriminator.pth": (D, numbers | {"network": "D"})}
    run = run_module.Run(args, variant, data, objects, weights)
    if run.finished():
        return run
    run.levels = plots.equilibrium(d_loss_fn, g_loss_fn, probability)
    judges = fid.judges(data, args.data_dir, device)
    on_the_way = {key: judge for key, judge in judges.items() if key == "fd_lenet"}
    pixels = common.to_device(data.train, device)
    fast_G, fast_D = common.for_training(G, args.compile), common.for_training(D, args.compile)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    seen = {}

    for step in run.steps():
        logged, sampled = run.due(args.log_every), run.due(args.sample_every)
        i = common.batch_indices(len(pixels), args.batch_size, step, args.seed)
        x = common.rows(pixels, i, device).flatten(1).float() / 127.5 - 1  # (B, 784) in [-1, 1]

        # (1) update D: on data and on samples that no gradient goes through
        z = sample_noise(len(x), noise_dim, device=device)
        with autocast:
            with torch.no_grad():
                x_fake = fast_G(z)
            logits_real, logits_fake = fast_D(torch.cat([x, x_fake])).float().chunk(2)  # each (B, 1)
        d_loss = d_loss_fn(logits_real, logits_fake)
        D_optimizer.zero_grad()
        d_loss.backward()
        D_optimizer.step()

        # (2) update G: through D, whose weights need no gradient now
        z = sample_noise(len(x), noise_dim, device=device)
        if logged:
            run.add("before G's step", d_g_z=mean_d_g_z(D, G, z, probability))
        with ranks.frozen(fast_D), autocast:
            logits_fake = fast_D(fast_G(z)).float()
        g_loss = g_loss_fn(logits_fake)
        G_optimizer.zero_grad()
        g_loss.backward()
        G_optimizer.step()
        if logged:
            run.add("after G's step", d_g_z=mean_d_g_z(D, G, z, probability))
        common.average(shown_G, G, args.ema, step)

        run.add("train", d_loss=d_loss, g_loss=g_loss, d_x=probability(logits_real).mean())
        if run.pictured(args.sample_every):
            run.save_grid("samples", sample(shown_G, sample_noise(64, noise_dim, seed=0)))
        if sampled:
            seen = measure(shown_G, run, judges if step == args.steps else on_the_way)
        if logged or sampled:
            run.log()
        if logged and 500 <= won_by_D(run) < 500 + args.log_every:
            won = "D's loss has been below 0.01 for 500 steps: D tells all samples from data"
            files.say(f"WARNING: step {step}: {won}")
    seen = seen or fid.measured(partial(draw, shown_G), judges)  # the last step has been measured, if there was one
    results = {"train_minutes": run.seconds / 60, **fid.report(seen, data, args, run.folder / "generator.pth")}
    run_module.finish(run.folder, run.step, numbers["trained_on"], results)
    return run


def use(args: Namespace, device: torch.device) -> None:
    """What is done with trained weights."""
    numbers, path = common.find_weights("gan_mnist", "generator.pth", args)
    folder = common.output_folder(args, path)
    G = build(numbers).to(device)
    if args.generate:
        common.save_generated(draw(G, args.n, args.seed), args.n, folder)
    if args.eval:
        import fid

        data = images.load_again(args.data, args.data_dir, numbers)
        seen = fid.measured(partial(draw, G), fid.judges(data, args.data_dir, device))
        results = fid.report(seen, data, args, path)
        run_module.finish(folder, numbers["step"], numbers["trained_on"], results, of=path)


def main(argv: list[str] | None = None) -> run_module.Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    main()
