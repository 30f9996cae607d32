"""Generative adversarial networks on MNIST: GAN and LSGAN, dense and convolutional.

Goodfellow et al. 2014, "Generative Adversarial Networks", arXiv 1406.2661. Mao et al. 2016, "Least Squares Generative
Adversarial Networks", arXiv 1611.04076. The discriminator D tells data x from samples G(z). The generator G makes
samples that D takes for data. In turns each makes its own loss small (algorithm 1, one step of D for each of G):

    gan      D: −E[log D(x)] − E[log(1 − D(G(z)))]   (eq. 1)     G: −E[log D(G(z))]   (section 3, non-saturating)
    lsgan    D: ½ E[(D(x) − 1)²] + ½ E[D(G(z))²]                 G: ½ E[(D(G(z)) − 1)²]   (Mao's eq. 9; D is a score)

Differs from the papers: the networks and the optimiser are those of Stanford's CS231n, assignment 3, initialised by
PyTorch. Adam's β₁ is 0 for --loss gan (the course's is --beta1 0.5). z is uniform in (−1, 1). The convolutional G is
InfoGAN's (Chen et al. 2016, arXiv 1606.03657, appendix C.1) without its codes. What is shown, measured and saved is an
average of G's weights over its last steps.

    python gan_mnist.py                            # dense networks; the same again continues
    python gan_mnist.py --loss lsgan --arch conv
    python gan_mnist.py --generate --n 100         # a grid of new digits from the newest run

Measured: FD-LeNet of 10,000 samples to MNIST's test digits, three seeds, one thread of an AMD EPYC: 15.4 ± 0.8 (gan;
with the course's β₁ 39.8) in 1 minute, 13.5 ± 2.0 (gan, conv, 2,000 steps) in 4. Seed 0, two cores of a Zen 5, bf16:
34.9 (lsgan) and 26.8 (lsgan, conv) after 4,690 steps, in 0.6 and 5.8 minutes.
"""

import copy
import math
from argparse import Namespace
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from plumbing.data import images
from plumbing.judge import lenet
from plumbing.run.run import Run
from plumbing.system import files, ranks


def set_seed(seed: int | None) -> None:
    if seed is not None:
        torch.manual_seed(seed)


def sample_noise(batch_size: int, dim: int, seed: int | None = None, device="cpu") -> Tensor:
    """Return z (batch_size, dim), uniform in (−1, 1)."""
    set_seed(seed)
    return 2 * torch.rand(batch_size, dim, device=device) - 1


def discriminator(seed: int | None = None) -> nn.Sequential:
    """Dense D: images (B, 784) or (B, 1, 28, 28) in [−1, 1] -> scores (B, 1)."""
    set_seed(seed)
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
    set_seed(seed)
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
    set_seed(seed)
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
    set_seed(seed)

    def stage(layer, norm):
        return layer, nn.ReLU(), norm

    return nn.Sequential(
        *stage(nn.Linear(noise_dim, 1024), nn.BatchNorm1d(1024)),
        *stage(nn.Linear(1024, 7 * 7 * 128), nn.BatchNorm1d(7 * 7 * 128)),
        nn.Unflatten(1, (128, 7, 7)),
        *stage(nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.BatchNorm2d(64)),  # (B, 64, 14, 14)
        nn.ConvTranspose2d(64, 1, 4, 2, 1),  # (B, 1, 28, 28)
        nn.Tanh(),
        nn.Flatten(),
    )


def bce_loss(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean of −t log σ(s) − (1 − t) log(1 − σ(s)), in nats, of logits s and targets t, both (B, 1)."""
    return (F.softplus(input) - input * target).mean()  # log(1 + e^s) − s t has no log 0


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Return −E[log D(x)] − E[log(1 − D(G(z)))], D = σ(logits), for logits (B, 1)."""
    real = bce_loss(logits_real, torch.ones_like(logits_real))
    return real + bce_loss(logits_fake, torch.zeros_like(logits_fake))


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Return −E[log D(G(z))] for logits (B, 1). Its gradient does not vanish where D is sure, unlike eq. 1's."""
    return bce_loss(logits_fake, torch.ones_like(logits_fake))


def ls_discriminator_loss(scores_real: Tensor, scores_fake: Tensor) -> Tensor:
    """Return ½ E[(D(x) − 1)²] + ½ E[D(G(z))²] for scores (B, 1)."""
    return 0.5 * ((scores_real - 1) ** 2).mean() + 0.5 * (scores_fake**2).mean()


def ls_generator_loss(scores_fake: Tensor) -> Tensor:
    """Return ½ E[(D(G(z)) − 1)²] for scores (B, 1)."""
    return 0.5 * ((scores_fake - 1) ** 2).mean()


GAMES = {  # by --loss: D's loss, G's loss, and the function from scores to D(x) in the curves
    "gan": (discriminator_loss, generator_loss, torch.sigmoid),
    "lsgan": (ls_discriminator_loss, ls_generator_loss, nn.Identity()),
}
EQUILIBRIUM = {  # by --loss: the curves' values where G(z) is distributed as x. The best D then is ½ everywhere.
    "gan": {"d_loss": 2 * math.log(2), "g_loss": math.log(2), "d_x": 0.5, "d_g_z": 0.5},
    "lsgan": {"d_loss": 0.25, "g_loss": 0.125, "d_x": 0.5, "d_g_z": 0.5},
}


def get_optimizer(model: nn.Module, lr: float = 1e-3, beta1: float = 0.5) -> torch.optim.Adam:
    """Return Adam, by default with the course's β = (0.5, 0.999)."""
    fused = next(model.parameters()).device.type != "mps"
    return torch.optim.Adam(model.parameters(), lr, betas=(beta1, 0.999), fused=fused)


def train(args: Namespace, device: torch.device) -> Run:
    import fid

    data = images.load_images(args.data, "mnist", args.data_dir, 28)
    config = settings(args, data)
    # args.begin and load_discriminator() are the contents of the files of --weights, or {}. build() loads the weights.
    # Untyped "model" flags are set from them. The optimisers and the step start anew.
    G = build(args.begin | config).to(device)
    D = build(common.load_discriminator(args) | config, "D").to(device)
    averaged_G = copy.deepcopy(G)  # for samples, scores and generator.pth
    d_loss_fn, g_loss_fn, probability = GAMES[args.loss]
    G_optimizer, D_optimizer = (get_optimizer(model, args.lr, config["beta1"]) for model in (G, D))
    # last.pth holds these five and the step. A step's noise is seeded by (seed, step): a resumed run is the same run.
    to_continue = {"G": G, "D": D, "averaged": averaged_G, "G_optimizer": G_optimizer, "D_optimizer": D_optimizer}
    weights = {"generator.pth": (averaged_G, config), "discriminator.pth": (D, config | {"network": "D"})}
    run = Run(args, data, to_continue, weights, EQUILIBRIUM[args.loss])
    if run.finished():
        return run
    batch = common.batches(data.train, args, device)
    fast_G, fast_D = common.for_training(G, args.compile), common.for_training(D, args.compile)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    judge, scores = fid.Judge(data, args.data_dir, device), {}

    for step in run.steps():
        x = batch(step).flatten(1).float() / 127.5 - 1  # (B, 784) in [-1, 1]

        # (1) update D: on data and on samples that no gradient goes through
        z = sample_noise(len(x), args.noise_dim, device=device)
        with autocast:
            with torch.no_grad():
                x_fake = fast_G(z)
            logits_real, logits_fake = fast_D(torch.cat([x, x_fake])).float().chunk(2)  # each (B, 1)
        d_loss = d_loss_fn(logits_real, logits_fake)
        D_optimizer.zero_grad()
        d_loss.backward()
        D_optimizer.step()

        # (2) update G: through the new D, whose weights need no gradient now
        z = sample_noise(len(x), args.noise_dim, device=device)
        with ranks.frozen(fast_D), autocast:
            new_logits_fake = fast_D(fast_G(z)).float()
        g_loss = g_loss_fn(new_logits_fake)
        G_optimizer.zero_grad()
        g_loss.backward()
        G_optimizer.step()
        common.average(averaged_G, G, args.ema, step)

        # D(G(z)) is logged twice, as each step saw it: before D's update and after it
        run.add("train", d_loss=d_loss, g_loss=g_loss, d_x=probability(logits_real).mean())
        run.add("D's step", d_g_z=probability(logits_fake).mean())
        run.add("G's step", d_g_z=probability(new_logits_fake).mean())
        if run.due(args.log_every) and 500 <= won_by_D(run) < 500 + args.log_every:
            files.say(f"WARNING: step {step}: D's loss was below 0.01 for 500 steps. D tells all samples from data.")
        if run.due(args.sample_every, early=True):
            run.save_grid("samples", sample(averaged_G, sample_noise(64, args.noise_dim, seed=0)))
        if run.due(args.sample_every):
            scores = judge(partial(draw_samples, averaged_G), inception=step == args.steps)  # FID takes long
            run.add("samples", **{name: scores[name] for name in ("fd_lenet", "class_entropy") if name in scores})
            lenet.warn_if_collapsed(run, scores)
    return run.finish(scores or judge(partial(draw_samples, averaged_G)), common.SCORES)


# ------------------------------------------------------------------------------------------------------ measurements


@common.in_eval_mode
def sample(G: nn.Sequential, z: Tensor) -> Tensor:
    """Return images (B, 1, 28, 28) in [0, 1] of z (B, noise_dim). BatchNorm uses its running statistics."""
    x = G(z.to(next(G.parameters()).device)).float()
    return (x.view(-1, 1, 28, 28) + 1) / 2


def draw_samples(G: nn.Sequential, n: int, seed: int) -> Iterator[Tensor]:
    """Yield n samples as uint8 batches (B, 1, 28, 28)."""
    return common.sample_batches(lambda k: sample(G, sample_noise(k, G[0].in_features)), n, seed)


def won_by_D(run: Run) -> int:
    """Return the number of steps, up to the last row of metrics.csv, for which D's loss has been below 0.01."""
    d_loss = {row["step"]: row["d_loss"] for row in run.rows if row["split"] == "train"}
    undecided = [step for step, loss in d_loss.items() if loss >= 0.01]
    return max(d_loss, default=0) - max(undecided, default=0)


def settings(args: Namespace, data) -> dict:
    """Return the config: all that rebuilds the networks, the loss, and β₁, which may be left to the loss."""
    if data.train.shape[1] != 1:
        common.fail(f"{data} is in colour, and gan_mnist.py takes grey images. Use dcgan.py.")
    if args.arch == "conv" and args.batch_size == 1:
        common.fail("BatchNorm in --arch conv needs at least 2 images. Use --batch-size 2 or more.")
    beta1 = args.beta1
    if beta1 is None:  # momentum overshoots in the logarithmic game, and holds the other one together
        beta1 = 0.0 if args.loss == "gan" else 0.5
    return {"loss": args.loss, "arch": args.arch, "noise_dim": args.noise_dim, "beta1": beta1, "image_size": 28}


GENERATORS = {"dense": generator, "conv": build_dc_generator}  # by --arch
DISCRIMINATORS = {"dense": discriminator, "conv": build_dc_classifier}


@common.or_fail
def build(config: dict, network: str = "G") -> nn.Sequential:
    """Return G, or D, of a config, or of a weights file, whose weights are loaded then."""
    if network == "D":
        return DISCRIMINATORS[config["arch"]]()
    return GENERATORS[config["arch"]](config["noise_dim"])


def use(args: Namespace, device: torch.device) -> None:
    """Do what --generate and --eval ask for."""
    trained = common.Trained(args)
    G = build(trained.config).to(device)
    if args.generate:
        common.save_generated(draw_samples(G, args.n, args.seed), args.n, trained.folder)
    if args.eval:
        import fid

        judge = fid.Judge(trained.data(), args.data_dir, device)
        trained.finish(judge(partial(draw_samples, G)), common.SCORES)


def get_args(argv: list[str] | None = None) -> Namespace:
    often = {"log_every": 67, "sample_every": 938}  # of 469 steps an epoch
    p = common.parser("gan_mnist", "generator.pth", __doc__, 4690, batch_size=128, lr=1e-3, makes="images", **often)
    add = p.group("model")
    add("--loss", choices=["gan", "lsgan"], default="gan", help="both losses, of D and of G")
    add("--arch", choices=["dense", "conv"], default="dense", help="both networks")
    add("--noise-dim", type=common.count, default=96, help="dimensions of z")
    add = p.group("optimisation")
    add("--beta1", type=common.share, help="Adam's β₁ (default: 0 for gan, 0.5 for lsgan; the course: 0.5)")
    average = "decay of G's averaged weights, over at most a tenth of the steps so far; 0 is none"
    add("--ema", type=common.share, default=0.999, help=average)
    add = p.group("trained weights")
    add("--eval", action="store_true", help="do not train: measure the samples of a run")
    return p.parse(argv)


def main(argv: list[str] | None = None) -> Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    common.program(main)
