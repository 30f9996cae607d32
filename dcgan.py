"""Deep convolutional GAN at 32 and 64 pixels: CIFAR-10, faces, digits, or your own images.

Radford, Metz & Chintala 2015, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks", arXiv 1511.06434. The game of Goodfellow et al. 2014 (arXiv 1406.2661), played in turns: D makes

    −E[log D(x)] − E[log(1 − D(G(z)))],  z ~ N(0, I)

small (its eq. 1), then G makes −E[log D(G(z))] small (its section 3). Both are all-convolutional with BatchNorm, start
from N(0, 0.02²), and use Adam (sections 3 and 4 of the DCGAN paper).

Differs from the paper: half as many channels, or less for small images; kernels of 4, not 5; z Gaussian; Adam without
momentum at five to twenty times the learning rate, for grey images spectral norm instead of BatchNorm in D (paper:
--lr 2e-4 --beta1 0.5 --no-spectral-norm); noise on D's inputs, smoothed labels, flips; what is shown, measured and
saved is an average of G's weights over its last steps.

    python dcgan.py                                         # CIFAR-10, 32 x 32; the same again continues
    python dcgan.py --data photos/ --image-size 64          # your own images
    python dcgan.py --data mnist                            # digits, with the small networks of Tsinghua's homework
    python dcgan.py --generate --n 100                      # a grid of new images from the newest run

Measured: FD-LeNet of 10,000 samples to MNIST's test digits 2.95 after 20,000 steps, in 20 minutes, 3.0 ± 0.2 after
8,000 (three seeds); the paper's flags with --noise-steps 10000: 10.2; vae.py: 59. To CIFAR-10's test images 3.7 after
2,000 and 1.5 after 5,000 steps (the paper's flags: 6.5 after 2,000; training images: 0.04; another classifier's
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
from plumbing.run import plots
from plumbing.run import run as run_module
from plumbing.system import ranks

SHAPE = ("latent_dim", "hidden_dim", "channels", "image_size", "spectral_norm")  # what rebuilds both networks


def get_args(argv: list[str] | None = None) -> Namespace:
    lr_help = "of both networks (default: 0.004 for grey images, 0.001 for colour; the paper: 0.0002)"
    p = common.parser(__doc__, steps=20000, batch_size=128, lr=None, lr_help=lr_help, makes="images")
    add = p.group("model")
    add("--latent-dim", type=common.number(int, 1), default=100, help="dimensions of z")
    width_help = "channels next to the image, doubled at each halving up to 8 times (default: 64, for grey 16)"
    add("--hidden-dim", type=common.number(int, 1, below=1025), help=width_help)
    size_help = "side in pixels, such as 32, 48, 64, 128 (default: 32, or 64 for colour images that large)"
    add("--image-size", type=common.number(int, 8, below=257), help=size_help)
    norm_help = "D's weights over their largest singular value, no BatchNorm (1802.05957; default: for grey)"
    add("--spectral-norm", action=BooleanOptionalAction, help=norm_help)
    add = p.group("game")
    loss_help = "arXiv 1406.2661 (non-saturating), 1611.04076, 1705.02894"
    add("--loss", choices=["gan", "lsgan", "hinge"], default="gan", help=loss_help)
    real = common.number(float, 0, below=1)
    smoothing_help = "D's target for data is 1 minus this (1606.03498, 3.4; default: 0.1 for --loss gan, else 0)"
    add("--label-smoothing", type=real, help=smoothing_help)
    add("--label-noise", type=real, default=0.0, help="width of the uniform noise on D's labels (Chintala's ganhacks)")
    noise_help = "σ of the Gaussian noise on D's inputs at the start (1610.04490)"
    add("--instance-noise", type=common.number(float, 0, below=10), default=0.2, help=noise_help)
    fall_help = "step at which that noise has fallen to 0 (default: 10000 for colour; for grey it stays)"
    add("--noise-steps", type=common.number(int, 1), help=fall_help)
    average_help = "decay of G's average, of at most a tenth of the steps; 0 is none (1806.04498)"
    add("--ema", type=real, default=0.999, help=average_help)
    add("--flip", action=BooleanOptionalAction, help="mirror half of the training images (default: those in colour)")
    add("--beta1", type=real, default=0.0, help="Adam's β₁; in the paper 0.5")
    add = p.group("trained weights")
    k_help = "do not train: draw K steps (8) from z to z, straight and along the sphere, and beyond"
    add("--interpolate", type=common.number(int, 1, below=1001), nargs="?", const=8, metavar="K", help=k_help)
    add("--eval", action="store_true", help="do not train: measure the samples of a run")
    add("--export", action="store_true", help="do not train: write TorchScript and torch.export files")
    return common.parse_args(p, argv)


def start_small(m: nn.Module) -> None:
    """Weights N(0, 0.02²) (section 4 of the paper), scales of BatchNorm N(1, 0.02²) (its authors' code), biases 0."""
    if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(m.weight, float(isinstance(m, nn.BatchNorm2d)), 0.02)
        if m.bias is not None:
            nn.init.zeros_(m.bias)


class Generator(nn.Module):
    """z (B, z_dim) or (B, z_dim, 1, 1) -> images (B, out_channels, S, S) in [-1, 1], S = featuremap_size 2^len(widths).

    widths: channels from stage to stage. With the four of the paper's figure 1, here halved, S = 16 featuremap_size.
    """

    def __init__(self, z_dim: int, featuremap_size: int = 4, out_channels: int = 3, widths=(512, 256, 128, 64)) -> None:
        super().__init__()

        def stage(i: int, o: int, kernel: int, stride: int, padding: int) -> nn.Module:
            up = nn.ConvTranspose2d(i, o, kernel, stride, padding, bias=False)
            return nn.Sequential(up, nn.BatchNorm2d(o), nn.ReLU(inplace=True))

        self.z_dim = z_dim
        self.net = nn.Sequential(
            stage(z_dim, widths[0], featuremap_size, 1, 0),  # (B, 512, 4, 4)
            *(stage(i, o, 4, 2, 1) for i, o in pairwise(widths)),  # (B, 256, 8, 8) ... (B, 64, 32, 32)
            nn.ConvTranspose2d(widths[-1], out_channels, 4, 2, 1),  # (B, 3, 64, 64)
            nn.Tanh(),
        )
        self.apply(start_small)

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z.flatten(1)[..., None, None])

    def noise(self, n: int) -> Tensor:
        """z (n, z_dim) ~ N(0, I)."""
        return torch.randn(n, self.z_dim, device=next(self.parameters()).device)

    def sample(self, n: int, with_grad: bool = False) -> Tensor:
        """n images (n, C, S, S) from z ~ N(0, I). The gradient flows into the weights only where it is asked for."""
        with torch.set_grad_enabled(with_grad):
            return self(self.noise(n))


class Discriminator(nn.Module):
    """Images (B, *in_size) -> logits (B, 1), above 0 for what is taken for data: the generator's mirror.

    Args:
        in_size: (C, H, W); H and W halve len(widths) times. Raises ValueError where they cannot.
        spectral_norm: every weight divided by its largest singular value, and no BatchNorm (Miyato et al. 2018).
    """

    def __init__(self, in_size, widths=(64, 128, 256, 512), spectral_norm: bool = False) -> None:
        super().__init__()
        channels, *sides = in_size
        parts = 2 ** len(widths)
        if any(side % parts or not side for side in sides):
            raise ValueError(f"images are halved {len(widths)} times: {parts} must divide their sides {tuple(sides)}")

        def stage(i: int, o: int, norm: bool = True) -> nn.Module:
            down = nn.Conv2d(i, o, 4, 2, 1, bias=not norm)
            return nn.Sequential(down, nn.BatchNorm2d(o) if norm else nn.Identity(), nn.LeakyReLU(0.2, inplace=True))

        self.net = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)),  # (B, 64, 32, 32)
            *(stage(i, o, not spectral_norm) for i, o in pairwise(widths)),  # (B, 128, 16, 16) ... (B, 512, 4, 4)
            nn.Conv2d(widths[-1], 1, [side // parts for side in sides]),  # (B, 1, 1, 1)
        )
        self.apply(start_small)
        if spectral_norm:
            convolutions = [m for m in self.modules() if isinstance(m, nn.Conv2d)]
            for conv in convolutions:
                parametrizations.spectral_norm(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flatten(1)


def stages(image_size: int, hidden_dim: int) -> list[int]:
    """Channels of G's maps, from the smallest, 4 to 7 pixels, to half of image_size: 8h, 4h, 2h, h for 64 pixels.

    Raises ValueError for other sizes than 4 to 7 times a power of 2.
    """
    n = int(math.log2(max(image_size, 8) / 4))
    if image_size < 8 or image_size % 2**n:
        raise ValueError(f"images of {image_size} pixels cannot be made from 4 to 7 by doubling; 32, 48 and 64 can")
    return [hidden_dim * 2 ** min(i, 3) for i in reversed(range(n))]  # at most 25 million weights up to 256 pixels


def build_generator(arch: str, latent_dim: int, hidden_dim: int = 16) -> Generator:
    """Tsinghua's table: 4h x 4 x 4, 2h x 8 x 8, h x 16 x 16, 1 x 32 x 32; train() builds the same by build().

    Raises ValueError for another arch.
    """
    if arch != "tsinghua":
        raise ValueError(f"no architecture {arch}; there is tsinghua")
    return Generator(latent_dim, 4, 1, stages(32, hidden_dim))


cross_entropy = F.binary_cross_entropy_with_logits


def squared_error(scores: Tensor, labels: Tensor) -> Tensor:
    """½ E[(s − label)²] of scores and labels (B, 1) (1611.04076, eq. 9)."""
    return 0.5 * F.mse_loss(scores, labels)


def discriminator_loss_fn(
    y_data, y_generated, data_label=0, label_noise=0.0, label_smoothing=0.0, error=cross_entropy
) -> Tensor:
    """Error of y_data (B, 1) against data_label + that of y_generated against 1 − data_label, each a batch mean.

    data_label: 0 is the homework's default, a D below 0 for data; this script's game has 1. label_noise: width of the
    uniform noise on every label. label_smoothing: how far the data's labels stand back, not those of the generated
    (one-sided). error: cross_entropy of logits, or squared_error for LSGAN.
    """
    smooth_label = data_label + label_smoothing * (1 - 2 * data_label)
    loss = error(y_data, smooth_label + label_noise * (torch.rand_like(y_data) - 0.5))
    return loss + error(y_generated, 1.0 - data_label + label_noise * (torch.rand_like(y_generated) - 0.5))


def generator_loss_fn(y_generated, data_label=0, error=cross_entropy) -> Tensor:
    """Error of y_generated (B, 1) against data_label: what G makes is to be taken for data."""
    return error(y_generated, torch.full_like(y_generated, data_label))


def hinge_discriminator_loss(y_data: Tensor, y_generated: Tensor) -> Tensor:
    """E[max(0, 1 − D(x))] + E[max(0, 1 + D(G(z)))] of scores (B, 1) (Lim & Ye 2017, 1705.02894)."""
    return F.relu(1 - y_data).mean() + F.relu(1 + y_generated).mean()


def hinge_generator_loss(y_generated: Tensor) -> Tensor:
    """−E[D(G(z))] of scores (B, 1) (Lim & Ye 2017)."""
    return -y_generated.mean()


def game(loss: str, label_noise: float, label_smoothing: float) -> tuple[Callable, Callable]:
    """The losses of D, (B, 1), (B, 1) -> (), and of G, (B, 1) -> (). Raises KeyError for other names."""
    if loss == "hinge":
        return hinge_discriminator_loss, hinge_generator_loss
    error = {"gan": cross_entropy, "lsgan": squared_error}[loss]
    tricks = {"label_noise": label_noise, "label_smoothing": label_smoothing}
    d_loss_fn = partial(discriminator_loss_fn, data_label=1, error=error, **tricks)
    return d_loss_fn, partial(generator_loss_fn, data_label=1, error=error)


def noisy(x: Tensor, sigma: float) -> Tensor:
    """x + σ ε, ε ~ N(0, I)."""
    return x + sigma * torch.randn_like(x) if sigma else x


def update(
    D, G, d_loss_fn, g_loss_fn, D_optimizer, G_optimizer, x, draw_z, sigma=0.0, bf16=False
) -> tuple[Tensor, ...]:
    """One step of D on x (B, C, H, W) in [-1, 1] and as many samples, then one of G on new samples through the new D.

    draw_z: n -> z (n, z_dim). sigma: of the Gaussian noise on D's inputs.
    Returns (D's loss, G's loss, logits of x, those of the second samples, their z).
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

    # (2) update G: through D, whose weights need no gradient now
    z = draw_z(len(x))
    with ranks.frozen(D), autocast:
        logits_fake = D(noisy(G(z), sigma)).to(x.dtype)
    g_loss = g_loss_fn(logits_fake)
    G_optimizer.zero_grad()
    g_loss.backward()
    G_optimizer.step()
    return d_loss, g_loss, logits_real, logits_fake, z


def train_batch(dsc_model, gen_model, dsc_loss_fn, gen_loss_fn, dsc_optimizer, gen_optimizer, x_data):
    """update() as the Technion homework calls it, of any G with sample(n, with_grad): (D's loss, G's loss), floats.

    x_data: (B, C, H, W) in the range of G's samples.
    """

    def G(n: int) -> Tensor:
        return gen_model.sample(n, with_grad=torch.is_grad_enabled())

    how = dsc_loss_fn, gen_loss_fn, dsc_optimizer, gen_optimizer
    dsc_loss, gen_loss, *_ = update(dsc_model, G, *how, x_data, draw_z=lambda n: n)  # G draws its own z
    return dsc_loss.item(), gen_loss.item()


def save_checkpoint(gen_model, dsc_losses, gen_losses, checkpoint_file) -> bool:  # noqa: ARG001
    """Technion: keep G, whole, in checkpoint_file.pt if its last loss is the lowest so far; returns whether it was.

    G's loss is lowest where D takes most samples for data. It is no measure of quality: train() goes by the FD.
    """
    if gen_losses[-1] > min(gen_losses):
        return False
    torch.save(gen_model, f"{checkpoint_file}.pt")
    return True


@common.builder
def build(numbers: dict, kind: type = Generator) -> Generator | Discriminator:
    """The network that the flags describe, or that a weights file describes and holds."""
    latent_dim, h, channels, size, spectral_norm = (numbers[k] for k in SHAPE)
    widths = stages(size, h)
    if kind is Discriminator:
        return Discriminator((channels, size, size), widths[::-1], spectral_norm)
    return Generator(latent_dim, size >> len(widths), channels, widths)


@common.in_eval_mode
def show(G: Generator, z: Tensor) -> Tensor:
    """Images (B, C, S, S) in [0, 1], with the statistics that BatchNorm has gathered."""
    return (torch.cat([G(part) for part in z.to(next(G.parameters()).device).split(64)]) + 1) / 2


def draw(G: Generator, n: int, seed: int) -> Iterator[Tensor]:
    """n samples as uint8 batches (B, C, S, S)."""
    return common.drawn(lambda k: show(G, G.noise(k)), n, seed)


def between(z1: Tensor, z2: Tensor, k: int, spherical: bool) -> Tensor:
    """K >= 1 steps from z₁ to z₂ (z_dim,), two before and two beyond: (K + 5, z_dim), on a line or a circle (slerp).

    Most of N(0, I) is near a sphere of radius √z_dim; a line passes inside it (White 2016, arXiv 1609.04468).
    """
    t = torch.arange(-2, k + 3, dtype=z1.dtype)[:, None] / k
    if not spherical:
        return z1 + t * (z2 - z1)
    omega = torch.acos(F.cosine_similarity(z1, z2, dim=0).clamp(-0.9999, 0.9999))
    return (torch.sin((1 - t) * omega) * z1 + torch.sin(t * omega) * z2) / torch.sin(omega)


@torch.no_grad()
def by_a_copy(net: nn.Module, x: Tensor, bf16: bool) -> Tensor:
    """net(x) in train mode, by a copy, so that this look does not change BatchNorm's running statistics."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        return copy.deepcopy(ranks.inside(net))(x)


def measure(G: Generator, judges: dict, spread_of_data: float) -> dict[str, object]:
    """What judges say of 10,000 samples; the mean distance of two of them, by that of two images."""
    import fid

    return fid.measured(partial(draw, G), judges) | {"spread": lenet.spread(next(draw(G, 500, 0))) / spread_of_data}


def train(args: Namespace, device: torch.device) -> run_module.Run:
    import fid

    args, begun = common.begin_with("dcgan", "generator.pth", args, [k for k in SHAPE if k != "channels"])
    data = images.load_images(args.data, "cifar10", args.data_dir, args.image_size)
    if args.loss not in ("gan", "lsgan") and {"label_noise", "label_smoothing"} & args.given.keys():
        common.fail(f"--loss {args.loss} has no labels: leave out --label-noise and --label-smoothing")
    channels, image_size = data.train.shape[1:3]
    if begun.get("channels", channels) != channels:
        common.fail(f"--weights {args.weights} are for images of {begun['channels']} channel(s), not for {data}")
    latent_dim, hidden_dim = args.latent_dim, args.hidden_dim or (16 if channels == 1 else 64)
    spectral_norm = channels == 1 if args.spectral_norm is None else args.spectral_norm
    flip = channels == 3 if args.flip is None else args.flip
    label_smoothing = args.label_smoothing
    if label_smoothing is None:  # least squares have no probabilities to soften
        label_smoothing = 0.1 if args.loss == "gan" else 0.0
    numbers = {"latent_dim": latent_dim, "hidden_dim": hidden_dim, "channels": channels}
    numbers |= {"image_size": image_size, "spectral_norm": spectral_norm, "loss": args.loss, "flip": flip}
    lr = args.lr or (0.004 if channels == 1 else 0.001)
    noise_steps = args.noise_steps or (None if channels == 1 else 10000)
    numbers |= {"label_smoothing": label_smoothing, "lr": lr, "noise_steps": noise_steps}
    numbers |= {"data": data.source, "trained_on": f"{data}{data.note}"}

    G, D = build(begun | numbers).to(device), build(numbers, Discriminator).to(device)
    if begun:
        common.load_beside(D, "dcgan", args)
    d_loss_fn, g_loss_fn = game(args.loss, args.label_noise, label_smoothing)
    probability = torch.sigmoid if args.loss == "gan" else nn.Identity()
    adam = partial(torch.optim.Adam, lr=lr, betas=(args.beta1, 0.999), fused=device.type != "mps")
    G_optimizer, D_optimizer = adam(G.parameters()), adam(D.parameters())
    shown_G = copy.deepcopy(G)  # averaged over steps: what is shown, measured and saved
    objects = {"G": G, "D": D, "averaged": shown_G, "G_optimizer": G_optimizer, "D_optimizer": D_optimizer}

    variant = f"dcgan-{data.name}{image_size}-{args.loss}" + ("-sn" if spectral_norm else "")
    weights = {"generator.pth": (shown_G, numbers), "discriminator.pth": (D, numbers | {"network": "D"})}
    run = run_module.Run(args, variant, data, objects, weights)
    if run.finished():
        return run
    run.levels = plots.equilibrium(*game(args.loss, 0, label_smoothing), probability)
    judges = fid.judges(data, args.data_dir, device, "train")  # training images choose, held-out ones report
    distance = "fid" if "fid" in judges else "fd_lenet"
    best_file = run.folder / f"best_{distance}.pth"
    pixels = common.to_device(data.train, device)
    spread_of_data = lenet.spread_of(data)
    fast_G, fast_D = common.for_training(G, args.compile), common.for_training(D, args.compile)
    seen = {}

    for step in run.steps():
        logged, sampled = run.due(args.log_every), run.due(args.sample_every)
        i = common.batch_indices(len(pixels), args.batch_size, step, args.seed)
        x = common.rows(pixels, i, device).float() / 127.5 - 1
        if flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
        x = x.contiguous(memory_format=torch.channels_last)  # (B, C, H, W) in [-1, 1]
        sigma = args.instance_noise * (max(0, 1 - step / noise_steps) if noise_steps else 1)
        d_loss, g_loss, logits_real, logits_fake, z = update(
            fast_D, fast_G, d_loss_fn, g_loss_fn, D_optimizer, G_optimizer, x, G.noise, sigma, args.bf16
        )
        common.average(shown_G, G, args.ema, step)

        run.add("train", d_loss=d_loss, g_loss=g_loss, d_x=probability(logits_real).mean())
        if logged:
            x_fake = noisy(by_a_copy(fast_G, z, args.bf16), sigma)
            logits_after = by_a_copy(fast_D, x_fake, args.bf16).float()
            run.add("before G's step", d_g_z=probability(logits_fake).mean())
            run.add("after G's step", d_g_z=probability(logits_after).mean())
        if run.pictured(args.sample_every):
            z = torch.randn(64, latent_dim, generator=torch.Generator().manual_seed(0))
            run.save_grid("samples", show(shown_G, z))
        if sampled:
            run.check()
            seen = measure(shown_G, judges, spread_of_data)
            run.add("samples", **{k: seen[k] for k in ("fid", "fd_lenet", "class_entropy", "spread") if k in seen})
            lenet.warn_if_collapsed(run, seen)
            least = min((row[distance] for row in run.rows if distance in row), default=math.inf)
            if seen.get(distance, math.inf) < least:
                run.save_weights(best_file.name, shown_G, numbers | {f"train_{distance}": seen[distance]})
        if logged or sampled:
            run.log()
    judges = fid.judges(data, args.data_dir, device)
    seen = measure(shown_G, judges, spread_of_data)
    report = fid.report(seen, data, args, run.folder / "generator.pth")
    results = {"train_minutes": run.seconds / 60, **report}
    if best_file.exists():
        best = common.load(best_file, ("dcgan",), "trained_on")
        best_G, results["best_step"] = build(best).to(device), best["step"]
        results |= {f"best_{k}": v for k, v in fid.measured(partial(draw, best_G), judges).items() if k == distance}
    run_module.finish(run.folder, run.step, numbers["trained_on"], results)
    return run


def draw_interpolation(G: Generator, k: int, seed: int, path: Path) -> None:
    """Four pairs of z, each on a line and, below it, on the sphere."""
    z = torch.randn(8, G.z_dim, generator=torch.Generator().manual_seed(seed))
    rows = []
    for z1, z2 in z.split(2):
        rows += [between(z1, z2, k, spherical=False), between(z1, z2, k, spherical=True)]
    labels = tuple(f"{i / k:.4g}" for i in range(-2, k + 3))
    common.save_grid(show(G, torch.cat(rows)), path, k + 5, set_off=(1, k + 2), pairs=True, labels=labels)
    print(f"{path}: each pair of z on a line and, below it, on the sphere")


def use(args: Namespace, device: torch.device) -> None:
    """What is done with trained weights."""
    numbers, path = common.find_weights("dcgan", "generator.pth", args)
    folder = common.output_folder(args, path)
    G = build(numbers).to(device).eval()
    if args.generate:
        common.save_generated(draw(G, args.n, args.seed), args.n, folder)
    if args.eval:
        import fid

        data = images.load_again(args.data, args.data_dir, numbers)
        seen = measure(G, fid.judges(data, args.data_dir, device), lenet.spread_of(data))
        results = fid.report(seen, data, args, path)
        run_module.finish(folder, numbers["step"], numbers["trained_on"], results, of=path)
    if args.interpolate:
        draw_interpolation(G, args.interpolate, args.seed, folder / "interpolation.png")
    if args.export:
        from plumbing.run.export import export_discriminator, export_generator

        export_generator(G.cpu(), folder / "DCGAN_model_G.pth")
        path = path.with_name("discriminator.pth")
        if not path.exists():
            common.fail(f"{path.parent} holds no discriminator.pth: only the generator was exported")
        numbers = common.load(path, ("dcgan",), "trained_on", network="D")
        export_discriminator(build(numbers, Discriminator).eval(), numbers, folder / "DCGAN_model_D.pth")


def main(argv: list[str] | None = None) -> run_module.Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    main()
