"""Deep convolutional GAN at 32 and 64 pixels: CIFAR-10, faces, digits, or your own images.

Radford, Metz & Chintala 2015, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", arXiv 1511.06434. Generator G and discriminator D play the game of Goodfellow et al. 2014 (arXiv 1406.2661)
in turns. D makes

    −E[log D(x)] − E[log(1 − D(G(z)))],  z ~ N(0, I)

small (its eq. 1), then G makes −E[log D(G(z))] small (its section 3). Both networks are all-convolutional with
BatchNorm, start from N(0, 0.02²), and use Adam (sections 3 and 4 of the DCGAN paper).

Differs from the paper: half as many channels, or less for small images. Kernels of 4, not 5. z is Gaussian. Adam has
no momentum and five to twenty times the learning rate. For grey images D has spectral norm instead of BatchNorm (the
paper: --lr 2e-4 --beta1 0.5 --no-spectral-norm). D's inputs get noise, labels are smoothed, images in colour flipped.
What is shown, measured and saved is an average of G's weights over its last steps.

    python dcgan.py                                         # CIFAR-10, 32 x 32; the same again continues
    python dcgan.py --data photos/ --image-size 64          # your own images
    python dcgan.py --data mnist                            # digits, with the small networks of Tsinghua's homework
    python dcgan.py --generate --n 100                      # a grid of new images from the newest run

Measured: FD-LeNet of 10,000 samples to MNIST's test digits 2.95 after 20,000 steps, in 20 minutes, 3.0 ± 0.2 after
8,000 (three seeds). The paper's flags with --noise-steps 10000: 10.2, vae.py: 59. To CIFAR-10's test images 3.7 after
2,000 and 1.5 after 5,000 steps (the paper's flags: 6.5 after 2,000, training images: 0.04, another classifier's
features), in 19 minutes. Seed 0 where nothing is said, one thread of an AMD EPYC.
"""

import copy
import math
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import common
from plumbing.data import images
from plumbing.judge import lenet
from plumbing.run.export import export
from plumbing.run.run import Run
from plumbing.system import ranks


def init_weights(m: nn.Module) -> None:
    """Draw weights from N(0, 0.02²) (section 4) and BatchNorm's scales from N(1, 0.02²) (the paper's code)."""
    if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        mean = 1.0 if isinstance(m, nn.BatchNorm2d) else 0.0
        nn.init.normal_(m.weight, mean, 0.02)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


class Generator(nn.Module):
    """z (B, z_dim) or (B, z_dim, 1, 1) -> images (B, out_channels, S, S) in [-1, 1].

    S = featuremap_size · 2^len(widths). widths: channels from stage to stage, by default half of the paper's figure 1.
    """

    def __init__(self, z_dim, featuremap_size=4, out_channels=3, widths=(512, 256, 128, 64)):
        super().__init__()

        def stage(i, o, kernel, stride, padding):
            up = nn.ConvTranspose2d(i, o, kernel, stride, padding, bias=False)
            return nn.Sequential(up, nn.BatchNorm2d(o), nn.ReLU(inplace=True))

        self.z_dim = z_dim
        self.net = nn.Sequential(
            stage(z_dim, widths[0], featuremap_size, 1, 0),  # (B, 512, 4, 4)
            *(stage(i, o, 4, 2, 1) for i, o in pairwise(widths)),  # (B, 256, 8, 8) ... (B, 64, 32, 32)
            nn.ConvTranspose2d(widths[-1], out_channels, 4, 2, 1),  # (B, 3, 64, 64)
            nn.Tanh(),
        )
        self.apply(init_weights)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z.flatten(1)[..., None, None])

    def noise(self, n: int) -> Tensor:
        """Return z (n, z_dim) ~ N(0, I)."""
        return torch.randn(n, self.z_dim, device=next(self.parameters()).device)

    def sample(self, n: int, with_grad: bool = False) -> Tensor:
        """Return n images (n, C, S, S) from z ~ N(0, I). with_grad: let the gradient flow into the weights."""
        with torch.set_grad_enabled(with_grad):
            return self(self.noise(n))


class Discriminator(nn.Module):
    """The generator's mirror: images (B, *in_size) -> logits (B, 1), above 0 for what is taken for data.

    in_size: (C, H, W). H and W are halved len(widths) times, else ValueError is raised. spectral_norm: divide each
    weight by its largest singular value, and leave out BatchNorm (Miyato et al. 2018).
    """

    def __init__(self, in_size, widths=(64, 128, 256, 512), spectral_norm=False):
        super().__init__()
        self.in_size = in_size
        channels, *sides = in_size
        parts = 2 ** len(widths)
        if any(side % parts or not side for side in sides):
            raise ValueError(f"{parts} must divide the sides {tuple(sides)} of images")

        def stage(i, o):
            down = nn.Conv2d(i, o, 4, 2, 1, bias=spectral_norm)
            norm = nn.Identity() if spectral_norm else nn.BatchNorm2d(o)
            return nn.Sequential(down, norm, nn.LeakyReLU(0.2, inplace=True))

        first = nn.Conv2d(channels, widths[0], 4, 2, 1)
        self.net = nn.Sequential(
            nn.Sequential(first, nn.LeakyReLU(0.2, inplace=True)),  # (B, 64, 32, 32)
            *(stage(i, o) for i, o in pairwise(widths)),  # (B, 128, 16, 16) ... (B, 512, 4, 4)
            nn.Conv2d(widths[-1], 1, [side // parts for side in sides]),  # (B, 1, 1, 1)
        )
        self.apply(init_weights)
        if spectral_norm:
            for conv in [m for m in self.modules() if isinstance(m, nn.Conv2d)]:
                parametrizations.spectral_norm(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flatten(1)


def stages(image_size: int, hidden_dim: int) -> list[int]:
    """Return the channels of G's maps, from the smallest of 4 to 7 pixels to half of image_size.

    For 64 pixels they are 8h, 4h, 2h, h. Raises ValueError for other sizes than 4 to 7 times a power of 2.
    """
    n = int(math.log2(max(image_size, 8) / 4))
    if image_size < 8 or image_size % 2**n:
        raise ValueError(f"images of {image_size} pixels cannot be made by doubling 4 to 7, as 32 and 48 can")
    # Without the limit of 3, networks for 256 pixels would have more than 25 million weights.
    return [hidden_dim * 2 ** min(i, 3) for i in reversed(range(n))]


def build_generator(arch: str, latent_dim: int, hidden_dim: int = 16) -> Generator:
    """Return G of Tsinghua's table: 4h x 4 x 4, 2h x 8 x 8, h x 16 x 16, 1 x 32 x 32.

    For the homework only. train() calls build(), with the same layers. Raises ValueError for another arch.
    """
    if arch != "tsinghua":
        raise ValueError(f"there is no architecture {arch}; there is tsinghua")
    return Generator(latent_dim, 4, 1, stages(32, hidden_dim))


cross_entropy = F.binary_cross_entropy_with_logits


def squared_error(scores: Tensor, labels: Tensor) -> Tensor:
    """Return ½ E[(s − label)²] of scores and labels (B, 1) (1611.04076, eq. 9)."""
    return 0.5 * F.mse_loss(scores, labels)


ERRORS = {"gan": cross_entropy, "lsgan": squared_error}  # by --loss


def discriminator_loss_fn(
    y_data, y_generated, data_label=0, label_noise=0.0, label_smoothing=0.0, error=cross_entropy
) -> Tensor:
    """Return the error of y_data against data_label plus that of y_generated against 1 − data_label, batch means.

    y_data, y_generated: (B, 1). data_label: the label of data. train() has 1, the homework's default is 0.
    label_noise: width of the uniform noise on every label. label_smoothing: distance of the data's labels from
    data_label, not of the others (one-sided). error: cross_entropy of logits, or squared_error for LSGAN.
    """
    smooth_label = data_label + label_smoothing * (1 - 2 * data_label)
    real_labels = smooth_label + label_noise * (torch.rand_like(y_data) - 0.5)
    fake_labels = 1.0 - data_label + label_noise * (torch.rand_like(y_generated) - 0.5)
    # With data_label 1 and neither noise nor smoothing: −E[log D(x)] − E[log(1 − D(G(z)))] (Goodfellow's eq. 1).
    return error(y_data, real_labels) + error(y_generated, fake_labels)


def generator_loss_fn(y_generated, data_label=0, error=cross_entropy) -> Tensor:
    """Return the error of y_generated (B, 1) against data_label, as G's images are to be taken for data."""
    return error(y_generated, torch.full_like(y_generated, data_label))  # with data_label 1: −E[log D(G(z))]


def hinge_discriminator_loss(y_data: Tensor, y_generated: Tensor) -> Tensor:
    """Return E[max(0, 1 − D(x))] + E[max(0, 1 + D(G(z)))] of scores (B, 1) (Lim & Ye 2017, 1705.02894)."""
    return F.relu(1 - y_data).mean() + F.relu(1 + y_generated).mean()


def hinge_generator_loss(y_generated: Tensor) -> Tensor:
    """Return −E[D(G(z))] of scores (B, 1) (Lim & Ye 2017)."""
    return -y_generated.mean()


def game(loss: str, label_noise: float, label_smoothing: float):
    """Return the losses of D, (B, 1), (B, 1) -> (), and of G, (B, 1) -> (). Raises KeyError for other names."""
    if loss == "hinge":
        return hinge_discriminator_loss, hinge_generator_loss
    how = {"data_label": 1, "error": ERRORS[loss]}
    g_loss_fn = partial(generator_loss_fn, **how)
    how |= {"label_noise": label_noise, "label_smoothing": label_smoothing}
    return partial(discriminator_loss_fn, **how), g_loss_fn


def equilibrium(loss: str, label_smoothing: float) -> dict[str, float]:
    """Return the curves' values where p_g = p_data and D is the best possible (Goodfellow et al., prop. 1)."""
    if loss == "hinge":
        return {"d_loss": 2.0}  # for all D in [-1, 1]
    d = (1 - label_smoothing) / 2  # D(x) and D(G(z))
    if loss == "lsgan":
        d_loss, g_loss = d**2, 0.5 * (1 - d) ** 2
    else:
        d_loss = -2 * (d * math.log(d) + (1 - d) * math.log(1 - d))
        g_loss = -math.log(d)
    return {"d_loss": d_loss, "g_loss": g_loss, "d_x": d, "d_g_z": d}


def noisy(x: Tensor, sigma: float) -> Tensor:
    """Return x + σ ε, ε ~ N(0, I)."""
    return x + sigma * torch.randn_like(x) if sigma else x


def update(
    D, G, d_loss_fn, g_loss_fn, D_optimizer, G_optimizer, x, draw_z, sigma=0.0, bf16=False
) -> tuple[Tensor, ...]:
    """Update D on x (B, C, H, W) in [-1, 1] and as many samples, then G on new samples through the new D.

    draw_z: n -> z (n, z_dim). sigma: standard deviation of the noise on D's inputs. Return D's loss, G's loss,
    and the logits (B, 1) of x, of the samples in D's step, and of those in G's step.
    """
    autocast = torch.autocast(x.device.type, torch.bfloat16, enabled=bf16)

    # (1) update D: on data, then on samples without gradient; in two calls, so that BatchNorm does not mix them
    z = draw_z(len(x))
    with autocast:
        with torch.no_grad():
            x_fake = G(z)  # (B, C, H, W)
        logits_real = D(noisy(x, sigma)).to(x.dtype)  # (B, 1)
        logits_fake = D(noisy(x_fake, sigma)).to(x.dtype)  # (B, 1)
    d_loss = d_loss_fn(logits_real, logits_fake)
    D_optimizer.zero_grad()
    d_loss.backward()
    D_optimizer.step()

    # (2) update G: through the new D, whose weights need no gradient now
    z = draw_z(len(x))
    with ranks.frozen(D), autocast:
        new_logits_fake = D(noisy(G(z), sigma)).to(x.dtype)
    g_loss = g_loss_fn(new_logits_fake)
    G_optimizer.zero_grad()
    g_loss.backward()
    G_optimizer.step()
    return d_loss, g_loss, logits_real, logits_fake, new_logits_fake


def noise_left(step: int, noise_steps: int | None) -> float:
    """Return the factor of --instance-noise, which falls to 0 at step noise_steps, or stays 1 where that is None."""
    return max(0, 1 - step / noise_steps) if noise_steps else 1


def train(args: Namespace, device: torch.device) -> Run:
    import fid

    data = images.load_images(args.data, "cifar10", args.data_dir, args.image_size)
    config = settings(args, data)
    # args.begin is the content of the file of --weights, or {}. build() loads its weights. common.run has set untyped
    # "model" flags from it, so they agree with config. The optimiser and the step start anew.
    # G starts from the averaged weights, D from discriminator.pth beside them. Without that file D starts untrained.
    G = build(args.begin | config).to(device)
    D = build(common.load_discriminator(args) | config, Discriminator).to(device)
    averaged_G = copy.deepcopy(G)  # what is shown, measured and saved
    d_loss_fn, g_loss_fn = game(args.loss, args.label_noise, config["label_smoothing"])
    probability = torch.sigmoid if args.loss == "gan" else nn.Identity()
    adam = partial(torch.optim.Adam, lr=config["lr"], betas=(args.beta1, 0.999), fused=device.type != "mps")
    D_optimizer, G_optimizer = adam(D.parameters()), adam(G.parameters())
    # last.pth holds these five, the step and the rows of metrics.csv. Each step seeds its noise by (seed, step), so a
    # resumed run is the same run.
    to_continue = {"G": G, "D": D, "averaged": averaged_G, "G_optimizer": G_optimizer, "D_optimizer": D_optimizer}
    weights = {"generator.pth": (averaged_G, config), "discriminator.pth": (D, config | {"network": "D"})}
    run = Run(args, data, to_continue, weights, equilibrium(args.loss, config["label_smoothing"]))
    if run.finished():
        return run
    batch = common.batches(data.train, args, device)  # depends on --seed and the step alone
    fast_G, fast_D = common.for_training(G, args.compile), common.for_training(D, args.compile)
    players = fast_D, fast_G, d_loss_fn, g_loss_fn, D_optimizer, G_optimizer
    # Every tenth training image chooses the best generator. The test images choose nothing: they measure at the end.
    judge = fid.Judge(data, args.data_dir, device, split="train")
    # --generate takes generator.pth, the last average. The best one is used with --weights FILE only.
    best_file = f"best_{judge.distance or 'fd_lenet'}.pth"

    for step in run.steps():
        x = batch(step).float() / 127.5 - 1  # (B, C, H, W) in [-1, 1]
        if config["flip"]:
            mirrored = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
            x = torch.where(mirrored, x.flip(-1), x)
        x = x.contiguous(memory_format=torch.channels_last)
        # Noise on D's inputs keeps D from telling samples from data too early
        sigma = args.instance_noise * noise_left(step, config["noise_steps"])
        d_loss, g_loss, *logits = update(*players, x, G.noise, sigma, args.bf16)
        common.average(averaged_G, G, args.ema, step)

        # D(G(z)) is logged as each step saw it, before D's update and after it
        d_x, d_g_z, new_d_g_z = (probability(each).mean() for each in logits)
        run.add("train", d_loss=d_loss, g_loss=g_loss, d_x=d_x)
        run.add("D's step", d_g_z=d_g_z)
        run.add("G's step", d_g_z=new_d_g_z)
        if run.due(args.sample_every, early=True):
            z = torch.randn(64, G.z_dim, generator=torch.Generator().manual_seed(0))
            run.save_grid("samples", show(averaged_G, z))
        if run.due(args.sample_every):
            scores = measure(averaged_G, judge, data)
            curves = ("fid", "fd_lenet", "class_entropy", "spread")
            run.add("samples", **{name: scores[name] for name in curves if name in scores})
            lenet.warn_if_collapsed(run, scores)
            if run.is_best("samples", judge.distance):
                score = {f"train_{judge.distance}": scores[judge.distance]}
                run.save_weights(best_file, averaged_G, config | score)
    return run.finish(evaluate_run(averaged_G, data, args, run.load_weights(best_file)), MEANING)


# ------------------------------------------------------------------------------------------------------ measurements

MEANING = common.SCORES | {"spread": "spread {:.2f}: how much samples differ, 1 as much as images do"}


@common.in_eval_mode
def show(G: Generator, z: Tensor) -> Tensor:
    """Return images (B, C, S, S) in [0, 1] of z (B, z_dim). BatchNorm uses its running statistics."""
    parts = z.to(next(G.parameters()).device).split(64)
    return (torch.cat([G(part) for part in parts]) + 1) / 2


def draw_samples(G: Generator, n: int, seed: int) -> Iterator[Tensor]:
    """Yield n samples as uint8 batches (B, C, S, S)."""
    return common.sample_batches(lambda k: show(G, G.noise(k)), n, seed)


def measure(G: Generator, judge: Callable, data) -> dict:
    """Return the judge's scores of samples, and as "spread" their mean distance, divided by that of the data's."""
    scores = judge(partial(draw_samples, G))
    return scores | {"spread": lenet.relative_spread(next(draw_samples(G, 500, seed=0)), data)}


def evaluate_run(G: Generator, data, args: Namespace, best: dict) -> dict:
    """Return the scores, on test images, of G and of the best generator's weights file, or {} for none."""
    import fid

    judge = fid.Judge(data, args.data_dir, torch.device(args.device))
    results = measure(G, judge, data)
    if best:
        results["best_step"] = best["step"]
        scores = judge(partial(draw_samples, build(best).to(args.device)))
        results |= {f"best_{k}": v for k, v in scores.items() if k == judge.distance}
    return results


def between(z1: Tensor, z2: Tensor, k: int, spherical: bool) -> Tensor:
    """Return K steps from z₁ to z₂ (z_dim,), two before and two beyond, (K + 5, z_dim), on a line or a circle.

    Most of N(0, I) is near a sphere of radius √z_dim. A line passes inside it, slerp does not (White 2016, 1609.04468).
    """
    t = torch.arange(-2, k + 3, dtype=z1.dtype)[:, None] / k
    if not spherical:
        return z1 + t * (z2 - z1)
    omega = torch.acos(F.cosine_similarity(z1, z2, dim=0).clamp(-0.9999, 0.9999))
    return (torch.sin((1 - t) * omega) * z1 + torch.sin(t * omega) * z2) / torch.sin(omega)


def draw_interpolation(G: Generator, k: int, seed: int, path: Path) -> None:
    """Draw four pairs of z, each on a line and, below it, on the sphere."""
    z = torch.randn(8, G.z_dim, generator=torch.Generator().manual_seed(seed))
    rows = []
    for z1, z2 in z.split(2):
        rows += [between(z1, z2, k, spherical=False), between(z1, z2, k, spherical=True)]
    labels = tuple(f"{i / k:.4g}" for i in range(-2, k + 3))
    layout = {"set_off": (1, k + 2), "pairs": True, "labels": labels}
    common.save_grid(show(G, torch.cat(rows)), path, k + 5, **layout)
    print(f"{path}: each pair of z on a line and, below it, on the sphere")


# ------------------------------------------------------------------------------------------------- use, command line


def settings(args: Namespace, data) -> dict:
    """Return the config: all that rebuilds both networks, and the flags that were left to data and loss."""
    channels, image_size = data.train.shape[1:3]
    grey = channels == 1
    if args.loss == "hinge" and {"label_noise", "label_smoothing"} & args.typed.keys():
        common.fail("--loss hinge has no labels. Leave out --label-noise and --label-smoothing.")
    label_smoothing = args.label_smoothing
    if label_smoothing is None:  # least squares have no probabilities to soften
        label_smoothing = 0.1 if args.loss == "gan" else 0.0
    return {
        "latent_dim": args.latent_dim,
        "hidden_dim": args.hidden_dim or (16 if grey else 64),
        "channels": channels,
        "image_size": image_size,
        "spectral_norm": grey if args.spectral_norm is None else args.spectral_norm,
        "loss": args.loss,
        "flip": not grey if args.flip is None else args.flip,
        "label_smoothing": label_smoothing,
        "lr": args.lr or (0.004 if grey else 0.001),
        "noise_steps": args.noise_steps or (None if grey else 10000),
    }


@common.or_fail
def build(config: dict, kind: type = Generator) -> Generator | Discriminator:
    """Return the network of a config, or of a weights file, whose weights are loaded then."""
    channels, size = config["channels"], config["image_size"]
    widths = stages(size, config["hidden_dim"])
    if kind is Discriminator:
        return Discriminator((channels, size, size), widths[::-1], config["spectral_norm"])
    return Generator(config["latent_dim"], size >> len(widths), channels, widths)


def train_batch(dsc_model, gen_model, dsc_loss_fn, gen_loss_fn, dsc_optimizer, gen_optimizer, x_data):
    """Do update() as the Technion homework calls it. Return D's loss and G's loss as floats.

    gen_model: any G with sample(n, with_grad). x_data: (B, C, H, W) in the range of G's samples.
    """

    def G(n):
        return gen_model.sample(n, with_grad=torch.is_grad_enabled())

    how = dsc_loss_fn, gen_loss_fn, dsc_optimizer, gen_optimizer
    # G draws its own z, so update() gives it their number.
    dsc_loss, gen_loss, *_ = update(dsc_model, G, *how, x_data, draw_z=lambda n: n)
    return dsc_loss.item(), gen_loss.item()


def save_checkpoint(gen_model, dsc_losses, gen_losses, checkpoint_file) -> bool:  # noqa: ARG001
    """Save G, whole, as checkpoint_file.pt if its last loss is the lowest so far (Technion). Return whether it was.

    G's loss is lowest where D takes most samples for data. It is no measure of quality, so train() goes by the FD.
    """
    if gen_losses[-1] > min(gen_losses):
        return False
    torch.save(gen_model, f"{checkpoint_file}.pt")
    return True


def use(args: Namespace, device: torch.device) -> None:
    """Do what --generate, --interpolate, --eval and --export ask for."""
    trained = common.Trained(args)
    G, folder = build(trained.config).to(device).eval(), trained.folder
    if args.generate:
        common.save_generated(draw_samples(G, args.n, args.seed), args.n, folder)
    if args.eval:
        trained.finish(evaluate_run(G, trained.data(), args, best={}), MEANING)
    if args.interpolate:
        draw_interpolation(G, args.interpolate, args.seed, folder / "interpolation.png")
    if args.export:
        z = torch.randn(3, G.z_dim)
        export(G.cpu(), z, folder / "DCGAN_model_G.pth", "z ~ N(0, I) -> images in [-1, 1]")
        path = trained.path.with_name("discriminator.pth")
        if not path.exists():
            common.fail(f"only the generator was exported. Its discriminator belongs to {path}.")
        D = build(common.load(path, ("dcgan",), network="D"), Discriminator).eval()
        x = 2 * torch.rand(3, *D.in_size) - 1
        ranges = "images in [-1, 1] -> logits, above 0 for data"
        export(D, x, folder / "DCGAN_model_D.pth", ranges)


def get_args(argv: list[str] | None = None) -> Namespace:
    lr = "of both networks (default: 0.004 for grey images, 0.001 for colour)"
    how = {"batch_size": 128, "lr": None, "lr_help": lr, "makes": "images"}
    p = common.parser("dcgan", "generator.pth", __doc__, steps=20000, **how)
    add = p.group("model")
    add("--latent-dim", type=common.count, default=100, help="dimensions of z")
    width = "channels next to the image; each halving doubles them (default: 64, grey 16)"
    add("--hidden-dim", type=common.between(1, 1024), help=width)
    size = "side in pixels, such as 32, 48, 64 (default: 32, or 64 for large images in colour)"
    add("--image-size", type=common.between(8, 256), help=size)
    norm = "in D, instead of BatchNorm (1802.05957; default: for grey images)"
    add("--spectral-norm", action=BooleanOptionalAction, help=norm)
    add = p.group("optimisation")
    loss = "arXiv 1406.2661 (non-saturating), 1611.04076, 1705.02894"
    add("--loss", choices=["gan", "lsgan", "hinge"], default="gan", help=loss)
    smoothing = "D's target for data is 1 minus this (1606.03498; default: gan 0.1, else 0)"
    add("--label-smoothing", type=common.share, help=smoothing)
    label_noise = "width of the uniform noise on D's labels (Chintala's ganhacks)"
    add("--label-noise", type=common.share, default=0.0, help=label_noise)
    noise = "σ of the Gaussian noise on D's inputs at the start (1610.04490)"
    add("--instance-noise", type=common.amount, default=0.2, help=noise)
    fall = "step at which the instance noise has fallen to 0 (default: 10000, grey never)"
    add("--noise-steps", type=common.count, help=fall)
    average = "decay of G's average; 0 is none (1806.04498)"
    add("--ema", type=common.share, default=0.999, help=average)
    flip = "mirror half of the training images (default: those in colour)"
    add("--flip", action=BooleanOptionalAction, help=flip)
    add("--beta1", type=common.share, default=0.0, help="Adam's β₁; in the paper 0.5")
    add = p.group("trained weights")
    k = "do not train: draw K steps (8) between pairs of z, and beyond"
    add("--interpolate", type=common.between(1, 1000), nargs="?", const=8, metavar="K", help=k)
    add("--eval", action="store_true", help="do not train: measure the samples of a run")
    add("--export", action="store_true", help="do not train: write TorchScript and .pt2 files")
    return p.parse(argv)


def main(argv: list[str] | None = None) -> Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    common.program(main)
