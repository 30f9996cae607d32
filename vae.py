"""Variational autoencoder: train, sample, look inside.

Kingma & Welling 2013, "Auto-Encoding Variational Bayes", arXiv 1312.6114. Training maximises the evidence lower bound

    ELBO(x) = E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z))                                              (eq. 3)

with q(z|x) = N(μ, diag σ²) from the encoder, p(z) = N(0, I), and z = μ + σ ⊙ ε, ε ~ N(0, I) (section 2.4).
p(x|z) is Bernoulli per pixel, grey values taken as probabilities, or Gaussian with one fixed variance.

Differs from the paper: convolutional networks (mlp: two ReLU layers a side), Adam with warm-up instead of Adagrad, β on
the KL term, which --arch mlp warms up (kl_warmup), a start that keeps ReLUs alive (start_well).

    python vae.py --latent-dim 10 --steps 20000    # MNIST; the same again continues. Made weights/vae.pth, with seed 0
    python vae.py --data photos/ --steps 5000      # your own images, 64 x 64, in colour
    python vae.py --generate                       # a grid of new samples from the newest run

Measured with the first command on MNIST's 10,000 test digits at 32 x 32, three seeds: ELBO -95.43 ± 0.09 nats, log p(x)
at least -91.74 ± 0.09 (128 importance samples, the first 1,000 digits; grey values have no density, so papers' numbers
are those of --binarize), FD-LeNet 59.3 ± 0.3, in 9 minutes on one thread of an AMD EPYC. The homework's --arch tsinghua
--lr 1e-3 --lr-schedule constant: -105.1, -99.6, 108 (one seed).
"""

import math
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from plumbing.data import images
from plumbing.run import described, latent
from plumbing.run import run as run_module
from plumbing.run.networks import output_shape, place
from plumbing.system import files

WARMUP = 500  # steps in which the learning rate rises to --lr
OLDER = {"width": 256, "binarize": False}  # weights files of older versions name neither
SHAPE = ("arch", "latent_dim", "image_size", "likelihood", "width")  # fixed by --weights in a training


def get_args(argv: list[str] | None = None) -> Namespace:
    p = common.parser(__doc__, steps=20000, batch_size=64, lr=3e-3, makes="images")
    add = p.group("model")
    add("--latent-dim", type=common.number(int, 1), default=10, help="dimensions of z")
    add("--arch", choices=["technion", "tsinghua", "mlp"], default="technion", help="network")
    width_help = "channels next to z, or units of mlp (default: 192, above 32 pixels 256; mlp: 500)"
    add("--width", type=common.number(int, 8, below=2049), help=width_help)
    size_help = "side in pixels (default: 32, or 64 for images that large)"
    add("--image-size", type=common.number(int, 1, below=4097), help=size_help)
    add("--likelihood", choices=["bernoulli", "gaussian"], help="p(x|z) (default: bernoulli for grey, else gaussian)")
    add("--binarize", action="store_true", help="draw each pixel, 0 or 1, from its grey value, anew each time")
    sigma_help = "gaussian: the variance of each value of x is this times their number, C·H·W (Technion)"
    add("--x-sigma2", type=common.number(float, 0, above=True), default=0.001, help=sigma_help)
    beta_help = "weight of the KL term (beta-VAE); mlp rises to it in a quarter of the steps"
    add("--beta", type=common.number(float, 0), default=1.0, help=beta_help)
    schedule_help = "warm-up, then to 0 at --steps, or constant"
    p.group("optimisation")("--lr-schedule", choices=["cosine", "constant"], default="cosine", help=schedule_help)
    samples_help = "importance samples for log p(x) of every held-out image (default: 128, of the first 1,000)"
    p.group("run")("--samples", type=common.number(int, 1, below=1_000_001), help=samples_help)
    add = p.group("trained weights")
    add("--eval", action="store_true", help="do not train: evaluate a run and draw its pictures again")
    between_help = "do not train: draw interpolation.png, between two image files or held-out images"
    add("--interpolate", nargs="*", metavar="FILE", help=between_help)
    codes_help = "do not train: write mu, log_sigma2 and the ELBO of each image of --data"
    add("--encode", metavar="FILE.npz", help=codes_help)
    add("--export", action="store_true", help="do not train: write TorchScript and torch.export files")
    return common.parse_args(p, argv, samples=("train", "eval"))


class ConvTranspose2d(nn.ConvTranspose2d):
    """PyTorch's, its bias added apart: the bias's gradient costs oneDNN, on a CPU, a fifth of a bfloat16 step."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, self.weight, None, self.stride, self.padding, self.output_padding)
        return y + self.bias.to(y.dtype).view(-1, 1, 1)


class EncoderCNN(nn.Module):
    """(B, in_channels, H, W), 16 dividing H and W -> (B, out_channels, H/16, W/16): four strided convolutions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()

        def stage(i: int, o: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(i, o, 4, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))

        eighth, quarter, half = (max(1, out_channels // k) for k in (8, 4, 2))
        self.cnn = nn.Sequential(
            stage(in_channels, eighth),  # (B, out_channels/8, H/2, W/2)
            stage(eighth, quarter),
            stage(quarter, half),
            stage(half, out_channels),  # (B, out_channels, H/16, W/16)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cnn(x)


class DecoderCNN(nn.Module):
    """(B, in_channels, H/16, W/16) -> (B, out_channels, H, W): the mirror, its last layer bare."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()

        def stage(i: int, o: int) -> nn.Module:
            return nn.Sequential(ConvTranspose2d(i, o, 4, 2, 1), nn.BatchNorm2d(o), nn.ReLU(inplace=True))

        half, quarter, eighth = (max(1, in_channels // k) for k in (2, 4, 8))
        self.cnn = nn.Sequential(
            stage(in_channels, half),  # (B, in_channels/2, H/8, W/8)
            stage(half, quarter),
            stage(quarter, eighth),
            ConvTranspose2d(eighth, out_channels, 4, 2, 1),  # (B, out_channels, H, W)
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.cnn(h)


def full(x: Tensor) -> Tensor:
    """x, where autocast has made it bfloat16 as float32: sums and exponentials follow."""
    return x.float() if x.dtype == torch.bfloat16 else x


class VAE(nn.Module):
    """Encoder and decoder of features, joined through z.

    Args:
        features_encoder: (B, *in_size) -> features of any shape.
        features_decoder: features of that shape -> (B, *in_size), before the output activation.
        in_size: (C, H, W).
    Raises ValueError for a decoder that gives back another shape.
    """

    def __init__(self, features_encoder: nn.Module, features_decoder: nn.Module, in_size, z_dim: int) -> None:
        super().__init__()
        shape = output_shape(features_encoder, in_size)
        made = output_shape(features_decoder, shape)
        if made != tuple(in_size):
            raise ValueError(f"of images {tuple(in_size)} encoder and decoder make {made}: the sizes have to be equal")
        n, at = math.prod(shape), place(features_encoder)
        self.encoder = nn.Sequential(features_encoder, nn.Flatten(), nn.Linear(n, 2 * z_dim, **at))
        self.decoder = nn.Sequential(nn.Linear(z_dim, n, **at), nn.Unflatten(1, shape), features_decoder)
        self.z_dim = z_dim
        self.set_likelihood("gaussian")

    def set_likelihood(self, likelihood: str, x_sigma2: float = 0.001, binarize: bool = False) -> None:
        """p(x|z): "bernoulli" for images in [0, 1], or "gaussian" for images in [-1, 1]; another raises ValueError.

        x_sigma2: the Gaussian's variance of each value, over C·H·W. binarize: pixels are drawn, 0 or 1.
        """
        if likelihood not in ("bernoulli", "gaussian"):
            raise ValueError(f"no likelihood {likelihood}; there are bernoulli and gaussian")
        self.likelihood, self.x_sigma2, self.binarize = likelihood, x_sigma2, binarize
        self.output = nn.Sigmoid() if likelihood == "bernoulli" else nn.Tanh()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² of q(z|x), each (B, z_dim), for images (B, C, H, W) in the likelihood's range."""
        mu, log_sigma2 = full(self.encoder(x)).chunk(2, dim=1)
        return mu, log_sigma2

    def reparameterize(self, mu: Tensor, log_sigma2: Tensor) -> Tensor:
        """z = μ + σ ⊙ ε, all (B, z_dim): noise without parameters, so that the gradient reaches μ and σ."""
        return mu + torch.exp(0.5 * log_sigma2) * torch.randn_like(mu)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(z, μ, log σ²), each (B, z_dim), z drawn from q(z|x)."""
        mu, log_sigma2 = self.posterior(x)
        return self.reparameterize(mu, log_sigma2), mu, log_sigma2

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z), (B, C, H, W) in the range of the images."""
        return self.output(full(self.decoder(z)))

    @common.in_eval_mode
    def sample(self, n: int) -> Tensor:
        """(n, C, H, W) decoded from z ~ N(0, I), on the CPU, with the statistics that BatchNorm has gathered."""
        return self.decode(torch.randn(n, self.z_dim, **place(self))).cpu()

    def forward(self, x: Tensor, logits: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(x̂ (B, C, H, W), μ, log σ²) of images of that shape; with logits x̂ is before the output activation."""
        z, mu, log_sigma2 = self.encode(x)
        return (full(self.decoder(z)) if logits else self.decode(z)), mu, log_sigma2


class TsinghuaVAE(VAE):
    """The layer table of the Tsinghua homework, for 1 x 32 x 32 images in [0, 1]. Its head gives log σ, not log σ²."""

    def __init__(self, latent_dim: int) -> None:
        nn.Module.__init__(self)

        def conv(i: int, o: int, stride: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.ReLU(inplace=True))

        def up(i: int, o: int, stride: int) -> nn.Module:
            return nn.Sequential(ConvTranspose2d(i, o, 3, stride, 1, stride - 1), nn.ReLU(inplace=True))

        features = [
            conv(1, 16, 1),  # (B, 16, 32, 32)
            conv(16, 32, 2),  # (B, 32, 16, 16)
            conv(32, 32, 1),  # (B, 32, 16, 16)
            conv(32, 16, 2),  # (B, 16, 8, 8)
            nn.Flatten(),
        ]
        before_z = nn.Linear(16 * 8 * 8, 2 * latent_dim)
        to_mu_and_log_sigma = nn.Linear(2 * latent_dim, 2 * latent_dim)
        self.encoder = nn.Sequential(*features, nn.Sequential(before_z, nn.ReLU(inplace=True)), to_mu_and_log_sigma)
        after_z = nn.Linear(latent_dim, latent_dim)
        self.decoder = nn.Sequential(
            nn.Sequential(after_z, nn.ReLU(inplace=True)),
            nn.Linear(latent_dim, 16 * 8 * 8),
            nn.Unflatten(1, (16, 8, 8)),
            up(16, 32, 2),  # (B, 32, 16, 16)
            up(32, 32, 1),  # (B, 32, 16, 16)
            up(32, 16, 2),  # (B, 16, 32, 32)
            ConvTranspose2d(16, 1, 3, 1, 1),  # (B, 1, 32, 32)
        )
        self.z_dim = latent_dim
        self.set_likelihood("bernoulli")
        # The ReLUs on both sides of z are as few as the latents: begin where they pass almost everything, or they die.
        nn.init.ones_(before_z.bias)
        nn.init.eye_(after_z.weight)
        nn.init.constant_(after_z.bias, 2)  # z ~ N(0, I) is seldom below -2

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_sigma = full(self.encoder(x)).chunk(2, dim=1)
        return mu, 2 * log_sigma

    def reparameterize(self, mu: Tensor, log_sigma: Tensor) -> Tensor:
        """z = μ + σ ⊙ ε from what the table's head gives: log σ."""
        return super().reparameterize(mu, 2 * log_sigma)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_sigma2 = self.posterior(x)
        return super().reparameterize(mu, log_sigma2), mu, log_sigma2


def build_vae(arch: str, latent_dim: int, channels: int = 1, image_size: int = 32, width: int = 192) -> VAE:
    """A VAE by name. width: channels next to z, or units of mlp; tsinghua has its own.

    Raises ValueError for images that the architecture cannot take.
    """
    in_size = (channels, image_size, image_size)
    if arch == "tsinghua":
        if in_size != (1, 32, 32):
            raise ValueError(f"tsinghua is made for 1x32x32 images, not {channels}x{image_size}x{image_size}")
        return TsinghuaVAE(latent_dim)
    if arch == "technion":
        encoder, decoder = EncoderCNN(channels, width), DecoderCNN(width, channels)
        missing = -image_size % 16  # 28 pixels become 32 and 28 again
        if missing:
            margins = (missing // 2, missing - missing // 2) * 2
            encoder = nn.Sequential(nn.ZeroPad2d(margins), encoder)
            decoder = nn.Sequential(decoder, nn.ZeroPad2d([-m for m in margins]))
        return VAE(encoder, decoder, in_size, latent_dim)
    if arch != "mlp":
        raise ValueError(f"no architecture {arch}; there are technion, tsinghua and mlp")

    def dense(i: int, o: int) -> nn.Module:
        return nn.Sequential(nn.Linear(i, o), nn.ReLU(inplace=True))

    d_x = math.prod(in_size)
    encoder = nn.Sequential(nn.Flatten(), dense(d_x, width), dense(width, width))
    # VAE puts the layer from z to `width` before the decoder, whose first ReLU is therefore that layer's.
    decoder = nn.Sequential(nn.ReLU(), dense(width, width), nn.Linear(width, d_x), nn.Unflatten(1, in_size))
    return VAE(encoder, decoder, in_size, latent_dim)


def vae_loss(x, xr, z_mu, z_log_sigma2, x_sigma2, beta=1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(ℓ, data term, KL term), ℓ = ‖x − x̂‖² / (s d_x) + β Σ(μ² + σ² − log σ² − 1), batch means (Technion).

    x, xr: (B, C, H, W) in [-1, 1]; d_x = C H W; z_mu, z_log_sigma2: (B, z_dim); s: x_sigma2. With β = 1 twice the
    negative ELBO of p(x|z) = N(x̂, s d_x I), up to a constant; the KL term is 2 KL.
    """
    data_loss = F.mse_loss(xr, x) / x_sigma2
    kldiv_loss = (z_log_sigma2.exp() + z_mu**2 - 1 - z_log_sigma2).sum(1).mean()
    return data_loss + beta * kldiv_loss, data_loss, kldiv_loss


def bce_vae_loss(x, xr, mu, log_sigma2, beta=1.0, logits=False) -> tuple[Tensor, Tensor, Tensor]:
    """(rec + β KL, rec, KL) in nats: cross-entropy summed over pixels, KL = ½ Σ(μ² + σ² − log σ² − 1), batch means.

    x: (B, C, H, W) in [0, 1]. xr: probabilities, or with `logits` what the sigmoid takes. KL: appendix B of the paper.
    """
    cross_entropy = F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy
    rec = cross_entropy(xr, x, reduction="sum") / len(x)
    kl = 0.5 * (mu**2 + log_sigma2.exp() - log_sigma2 - 1).sum(1).mean()
    return rec + beta * kl, rec, kl


def objective(model: nn.Module, x: Tensor, likelihood: str, x_sigma2: float, beta: float) -> tuple[Tensor, ...]:
    """(loss, reconstruction term, KL term) of a batch in the likelihood's range."""
    x_hat, mu, log_sigma2 = model(x, logits=likelihood == "bernoulli")
    if likelihood == "bernoulli":
        return bce_vae_loss(x, x_hat, mu, log_sigma2, beta, logits=True)
    return vae_loss(x, x_hat, mu, log_sigma2, x_sigma2, beta)


def scale(model: VAE, x: Tensor) -> Tensor:
    """uint8 images -> floats in the range of the model's likelihood, on its device; or drawn pixels, 0 or 1."""
    x = x.to(next(model.parameters()).device).float()
    x = x / 255 if model.likelihood == "bernoulli" else x / 127.5 - 1
    if model.binarize:
        x = torch.bernoulli(x)
    return x.contiguous(memory_format=torch.channels_last)


def visible(model: VAE, x: Tensor) -> Tensor:
    """Decoded images in [0, 1]."""
    return x if model.likelihood == "bernoulli" else (x + 1) / 2


def draw(model: VAE, n: int, seed: int) -> Iterator[Tensor]:
    """n samples as uint8 batches (B, C, H, W)."""
    return common.drawn(lambda k: visible(model, model.sample(k)), n, seed)


@common.in_eval_mode
def evaluate(model: VAE, x: Tensor, beta: float) -> dict[str, float]:
    """Means of objective(), in nats for Bernoulli, over uint8 images (N, C, H, W), with the same noise each time."""
    torch.manual_seed(0)  # the next training step seeds its own noise: Run.steps
    sums = 0
    for batch in files.progress(x.split(500), "ELBO", math.ceil(len(x) / 500)):
        sums += len(batch) * torch.stack(objective(model, scale(model, batch), model.likelihood, model.x_sigma2, beta))
    return dict(zip(("loss", "rec", "kl"), (sums / len(x)).tolist(), strict=True))


def elbo(model: VAE, rec: float, kl: float, d_x: int) -> float:
    """The evidence lower bound (eq. 3, β = 1) in nats per image, from the two terms of the model's loss."""
    if model.likelihood == "gaussian":  # vae_loss is twice the bound, but for a constant
        return -(rec + kl) / 2 - d_x / 2 * math.log(2 * math.pi * model.x_sigma2 * d_x)
    return -rec - kl


@common.in_eval_mode
def posteriors(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """μ and log σ² of uint8 images (N, C, H, W), each (N, z_dim)."""
    parts = [model.posterior(scale(model, batch)) for batch in x.split(500)]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


@common.in_eval_mode
def log_weights(model: VAE, x: Tensor, n_samples: int) -> Tensor:
    """log p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q, of uint8 images (B, C, H, W), in nats: (K, B). Expected: the ELBO."""
    x = scale(model, x)  # (B, C, H, W)
    mu, log_sigma2 = model.posterior(x)
    eps = torch.randn(n_samples, *mu.shape, device=mu.device)  # (K, B, Z)
    z = mu + torch.exp(0.5 * log_sigma2) * eps
    log_pz_over_qz = 0.5 * (eps**2 + log_sigma2 - z**2).sum(-1)  # (K, B); the 2π cancel
    out = full(model.decoder(z.flatten(0, 1))).unflatten(0, z.shape[:2])  # (K, B, C, H, W)
    if model.likelihood == "bernoulli":
        log_px_z = (x * out - F.softplus(out)).flatten(2).sum(-1)
    else:
        variance = model.x_sigma2 * x[0].numel()
        error = (x - model.output(out)).flatten(2)
        log_px_z = -0.5 * (error**2 / variance + math.log(2 * math.pi * variance)).sum(-1)
    return log_px_z + log_pz_over_qz


def log_px(model: VAE, x: Tensor, n_samples: int) -> float:
    """Mean over uint8 images (N, C, H, W) of log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x), in nats (Burda et al., eq. 8).

    A lower bound on log p(x), on average not below the ELBO, and tighter with more samples.
    """
    total, n = 0.0, max(1, 2048 // n_samples)
    for batch in files.progress(x.split(n), "log p(x)", math.ceil(len(x) / n)):
        parts = []
        for done in range(0, n_samples, 2048):  # so that memory does not grow with n_samples
            parts.append(torch.logsumexp(log_weights(model, batch, min(2048, n_samples - done)), 0))  # (B,)
        total += (torch.logsumexp(torch.stack(parts), 0) - math.log(n_samples)).sum().item()
    return total / len(x)


def active_units(model: VAE, x: Tensor) -> int:
    """Dimensions of z whose KL(q(z_i|x) ‖ p(z_i)), a mean over uint8 images (N, C, H, W), is above 0.01 nats.

    Burda et al. 2015, section 5.2, ask for Var μ_i > 0.01 instead; of latents that are all in use both count all.
    """
    mu, log_sigma2 = posteriors(model, x)
    kl = 0.5 * (mu**2 + log_sigma2.exp() - log_sigma2 - 1).mean(0)
    return int((kl > 0.01).sum())


@common.in_eval_mode
def reconstructions(model: VAE, x: Tensor) -> tuple[Tensor, int]:
    """(a grid's images in [0, 1], its columns): rows of originals, each over the row of what is decoded from its μ."""
    columns = min(8, len(x))
    x = scale(model, x[: min(32, len(x)) // columns * columns])
    rows = torch.stack([x, model.decode(model.posterior(x)[0])]).unflatten(1, (-1, columns))  # (2, R, 8, C, H, W)
    return visible(model, rows.transpose(0, 1).flatten(0, 2)), columns


@common.in_eval_mode
def draw_interpolation(model: VAE, x: Tensor, path: Path, k: int = 8) -> None:
    """From each of uint8 images (N, C, H, W) to the next: x₁, decode(z₁ + i/K (z₂ − z₁)) for i = −2 ... K+2, x₂."""
    x = scale(model, x)
    mu = model.posterior(x)[0]
    i = torch.arange(-2, k + 3, device=mu.device)[:, None] / k
    rows = []
    for x1, x2, z1, z2 in zip(x, x[1:], mu, mu[1:], strict=False):
        rows += [x1[None], model.decode(z1 + i * (z2 - z1)), x2[None]]
    if rows:
        labels = ("x1", *(f"{t:.4g}" for t in i[:, 0].tolist()), "x2")
        common.save_grid(visible(model, torch.cat(rows)), path, k + 7, set_off=(0, 2, k + 3, k + 5), labels=labels)


def codes(model: VAE, x: Tensor) -> dict[str, Tensor]:
    """Of uint8 images (N, C, H, W): mu, log_sigma2 (N, z_dim), and elbo (N,), in nats, the mean of 16 samples of z."""
    mu, log_sigma2 = posteriors(model, x)
    bounds = torch.cat([log_weights(model, batch, 16).mean(0) for batch in x.split(100)])
    return {"mu": mu, "log_sigma2": log_sigma2, "elbo": bounds}


def look_inside(model: VAE, data: images.ImageData, path: Path, folder: Path, args: Namespace) -> dict[str, object]:
    """End-of-run evaluation, in float32, of the weights file `path`: pictures into the folder, numbers back."""
    import fid

    files.say("evaluating on held-out images: ELBO, log p(x), pictures, FD-LeNet ...")
    model.eval()
    terms = evaluate(model, data.test, beta=1.0)
    some, k = (data.test, args.samples) if args.samples else (data.test[:1000], 128)
    results = {"elbo": elbo(model, terms["rec"], terms["kl"], data.test[0].numel())}
    results |= {"rec": terms["rec"], "kl": terms["kl"], "test_images": len(data.test)}
    results |= {"log_px": log_px(model, some, k), "log_px_images": len(some), "log_px_samples": k}
    grid, columns = reconstructions(model, data.test)
    common.save_grid(grid, folder / "reconstructions.png", columns, pairs=True)
    results["active_units"] = active_units(model, data.test)
    if not results["active_units"]:
        files.say("WARNING: posterior collapse: no dimension of z is used; a smaller --beta helps")
    draw_interpolation(model, images.one_of_each(data), folder / "interpolation.png")
    device, mu = torch.device(args.device), posteriors(model, data.test[:2000])[0].cpu()
    latent.draw(lambda z: visible(model, model.decode(z.to(device))), mu, data, folder)
    judges = fid.judges(data, args.data_dir, device)
    return results | fid.report(fid.measured(partial(draw, model), judges), data, args, path)


@common.builder
def build(numbers: dict) -> VAE:
    """The model that the flags describe, or that a weights file describes and holds. numbers: those of train()."""
    numbers = OLDER | numbers
    model = build_vae(*(numbers[k] for k in ("arch", "latent_dim", "channels", "image_size", "width")))
    model.set_likelihood(numbers["likelihood"], numbers["x_sigma2"], numbers["binarize"])
    return model


@torch.no_grad()
def start_well(model: VAE, x: Tensor) -> None:
    """Begin near q(z|x) = p(z) and, for Bernoulli, at the mean grey value of uint8 images x (N, C, H, W).

    From PyTorch's own start the first steps, which darken everything, kill most ReLUs around z for good: 4 of 10
    latents were used, the ELBO on MNIST after 20,000 steps was -129.2 instead of -105.1 (tsinghua, seed 0).
    """
    model.encoder[-1].weight *= 0.1
    if model.likelihood == "bernoulli":
        last = [m for m in model.decoder.modules() if getattr(m, "bias", None) is not None][-1]
        last.bias.fill_(torch.logit(x[:5000].float().mean() / 255, eps=0.01))


def default_width(arch: str, image_size: int) -> int:
    """--width where it is not given."""
    if arch == "mlp":
        return 500
    return 192 if image_size <= 32 else 256


def schedule(step: int, steps: int, kind: str) -> float:
    """The factor of the learning rate in step 1 ... steps: up in WARMUP of them; then along a cosine, or it stays."""
    return common.cosine(step, steps, WARMUP) if kind == "cosine" else min(1, step / WARMUP)


def kl_warmup(step: int, steps: int, arch: str) -> float:
    """β's factor in step 1 ... steps. Without it a dense encoder stays near p(z): Sønderby et al. 2016, 1602.02282."""
    return min(1, 4 * step / steps) if arch == "mlp" else 1.0


def train(args: Namespace, device: torch.device) -> run_module.Run:
    args, begun = common.begin_with("vae", "vae.pth", args, SHAPE)
    data = images.load_images(args.data, "mnist", args.data_dir, args.image_size)
    channels, image_size = data.train.shape[1:3]
    if begun.get("channels", channels) != channels:
        common.fail(f"--weights {args.weights} are for images of {begun['channels']} channel(s), not for {data}")
    arch, latent_dim = args.arch, args.latent_dim
    width = args.width or (OLDER["width"] if begun else default_width(arch, image_size))
    if arch == "tsinghua" and "width" in args.given:
        common.fail("--width: the layers of --arch tsinghua are those of its table")
    likelihood = args.likelihood or ("bernoulli" if channels == 1 else "gaussian")
    if arch == "technion" and args.batch_size == 1 and image_size <= 16:
        common.fail("--batch-size 1: BatchNorm over maps of one pixel needs at least 2 images")
    if "x_sigma2" in args.given and likelihood == "bernoulli":
        common.fail("--x-sigma2 is for --likelihood gaussian")
    if args.binarize and likelihood != "bernoulli":
        common.fail("--binarize makes pixels of 0 and 1, for --likelihood bernoulli")
    numbers = {"arch": arch, "latent_dim": latent_dim, "channels": channels, "image_size": image_size, "width": width}
    numbers |= {"likelihood": likelihood, "x_sigma2": args.x_sigma2, "beta": args.beta, "binarize": args.binarize}
    numbers |= {"data": data.source, "trained_on": f"{data}{data.note}"}

    model = build(begun | numbers).to(device)
    if not begun:
        start_well(model, data.train)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, fused=device.type != "mps")
    variant = f"vae-{data.name}-{arch}-z{latent_dim}" + f"-beta{args.beta:g}" * (args.beta != 1)
    variant += f"-sigma{args.x_sigma2:g}" * (likelihood == "gaussian") + "-binary" * args.binarize
    state = run_module.State(steps=args.steps)
    objects = {"model": model, "optimizer": optimizer, "state": state}
    run = run_module.Run(args, variant, data, objects, {"vae.pth": (model, numbers)})
    if run.finished():
        return run
    if args.lr_schedule == "cosine" or arch == "mlp":
        state.plan(args.steps)
    pixels = common.to_device(data.train, device)
    shared_model = common.for_training(model, compile=False)
    fast_objective = common.compiled(objective, args.compile)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)

    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * schedule(step, args.steps, args.lr_schedule)
        beta = args.beta * kl_warmup(step, args.steps, arch)
        i = common.batch_indices(len(pixels), args.batch_size, step, args.seed)
        x = scale(model, common.rows(pixels, i, device))  # (B, C, H, W)
        with autocast:
            loss, rec, kl = fast_objective(shared_model, x, likelihood, args.x_sigma2, beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        run.add("train", loss=loss, rec=rec, kl=kl)
        if run.due(args.log_every):
            with autocast:
                run.add("test", **evaluate(model, data.test[:500], beta))
            run.log()
        if run.pictured(args.sample_every):
            torch.manual_seed(0)  # the same z for each grid; the next step seeds its own noise
            run.save_grid("samples", visible(model, model.sample(64)))
            run.save_grid("reconstructions", *reconstructions(model, data.test), pairs=True)
    results = {"train_minutes": run.seconds / 60, **look_inside(model, data, run.folder / "vae.pth", run.folder, args)}
    run_module.finish(run.folder, run.step, numbers["trained_on"], results)
    return run


def use(args: Namespace, device: torch.device) -> None:
    """What is done with trained weights."""
    chosen = args.interpolate or []
    if len(chosen) not in (0, 2):
        common.fail(f"--interpolate takes two image files or none, not {len(chosen)}")
    numbers, path = common.find_weights("vae", "vae.pth", args, any_data=args.encode is not None)
    model = build(numbers).to(device).eval()
    if args.encode is not None:
        described.write(args.encode, args, path, numbers, numbers["channels"], partial(codes, model))
    if not (args.generate or args.eval or args.export or args.interpolate is not None):
        return
    folder = common.output_folder(args, path)
    if args.generate:
        common.save_generated(draw(model, args.n, args.seed), args.n, folder)
    if args.eval or args.interpolate == []:
        data = images.load_again(args.data, args.data_dir, numbers)
        if len(data.test) < 2:
            common.fail("there is only one held-out image")
    if args.interpolate is not None:
        if chosen:
            x = images.from_files(chosen, numbers["channels"], numbers["image_size"])
        else:
            x = images.one_of_each(data)
        draw_interpolation(model, x, folder / "interpolation.png")
        print(folder / "interpolation.png")
    if args.eval:
        results = look_inside(model, data, path, folder, args)
        run_module.finish(folder, numbers["step"], numbers["trained_on"], results, of=path)
    if args.export:
        from plumbing.run.export import export_vae

        export_vae(model.cpu(), numbers, folder / "VAE_model.pth")


def main(argv: list[str] | None = None) -> run_module.Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    main()
