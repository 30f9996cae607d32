"""Variational autoencoder: train it, draw samples, evaluate it, encode images.

Kingma & Welling 2013, "Auto-Encoding Variational Bayes", arXiv 1312.6114. Training maximises the evidence lower bound

    ELBO(x) = E_{q(z|x)}[log p(x|z)] − KL(q(z|x) ‖ p(z))                                              (eq. 3)

with q(z|x) = N(μ, diag σ²) from the encoder, p(z) = N(0, I), and z = μ + σ ⊙ ε, ε ~ N(0, I) (section 2.4).
p(x|z) is Bernoulli per pixel, grey values taken as probabilities, or Gaussian with one fixed variance.

Differs from the paper: convolutional networks (mlp has two ReLU layers a side). Adam with warm-up, not Adagrad. β on
the KL term, which --arch mlp warms up (kl_warmup). Initial weights that keep ReLUs alive (init_near_prior).

    python vae.py --latent-dim 10 --steps 20000    # MNIST; the same again continues. Made weights/vae.pth, with seed 0
    python vae.py --data photos/ --steps 5000      # your own images, 64 x 64, in colour
    python vae.py --generate                       # a grid of new samples from the newest run

Measured with the first command on MNIST's 10,000 test digits at 32 x 32, three seeds: ELBO -95.43 ± 0.09 nats, log p(x)
at least -91.74 ± 0.09 (128 importance samples, the first 1,000 digits; grey values have no density: compare with papers
by --binarize), FD-LeNet 59.3 ± 0.3, in 9 minutes on one thread of an AMD EPYC. Tsinghua's homework, --arch
tsinghua --lr 1e-3 --lr-schedule constant: ELBO -105.1, log p(x) -99.6, FD-LeNet 108 (one seed).
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
from plumbing.run import latent
from plumbing.run.export import export
from plumbing.run.networks import output_shape
from plumbing.run.run import Run
from plumbing.system.files import progress

WARMUP = 500  # steps in which the learning rate rises to --lr


def stage(convolution):
    """Return the convolution with BatchNorm and ReLU behind it."""
    norm = nn.BatchNorm2d(convolution.out_channels)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True))


class EncoderCNN(nn.Module):
    """Four strided convolutions: (B, in_channels, H, W), H and W multiples of 16 -> (B, out_channels, H/16, W/16)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        eighth, quarter, half = (max(1, out_channels // k) for k in (8, 4, 2))
        self.cnn = nn.Sequential(
            stage(nn.Conv2d(in_channels, eighth, 4, 2, 1, bias=False)),  # (B, o/8, H/2, W/2)
            stage(nn.Conv2d(eighth, quarter, 4, 2, 1, bias=False)),
            stage(nn.Conv2d(quarter, half, 4, 2, 1, bias=False)),
            stage(nn.Conv2d(half, out_channels, 4, 2, 1, bias=False)),  # (B, o, H/16, W/16)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cnn(x)


class DecoderCNN(nn.Module):
    """Mirror of EncoderCNN: (B, in_channels, H/16, W/16) -> (B, out_channels, H, W). The last layer has no ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half, quarter, eighth = (max(1, in_channels // k) for k in (2, 4, 8))
        self.cnn = nn.Sequential(
            stage(nn.ConvTranspose2d(in_channels, half, 4, 2, 1)),  # (B, i/2, H/8, W/8)
            stage(nn.ConvTranspose2d(half, quarter, 4, 2, 1)),
            stage(nn.ConvTranspose2d(quarter, eighth, 4, 2, 1)),
            nn.ConvTranspose2d(eighth, out_channels, 4, 2, 1),  # (B, o, H, W)
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.cnn(h)


def to_float32(x: Tensor) -> Tensor:
    """Return a bfloat16 result of autocast as float32, since sums and exponentials follow. Others stay."""
    return x.float() if x.dtype == torch.bfloat16 else x


class VAE(nn.Module):
    """VAE of a features encoder and a features decoder, with linear layers to and from z between them.

    Args:
        features_encoder: (B, *in_size) -> features of any shape.
        features_decoder: features of that shape -> (B, *in_size), before the output activation.
        in_size: (C, H, W).
    Raises ValueError for a decoder that returns another shape.
    """

    def __init__(self, features_encoder, features_decoder, in_size, z_dim: int):
        super().__init__()
        shape = output_shape(features_encoder, in_size)
        x_hat_shape = output_shape(features_decoder, shape)
        if x_hat_shape != tuple(in_size):
            raise ValueError(f"the decoder returns {x_hat_shape} instead of {tuple(in_size)}")
        n = math.prod(shape)
        like = next(features_encoder.parameters(), torch.empty(0))  # in device and dtype
        to_z, from_z = nn.Linear(n, 2 * z_dim).to(like), nn.Linear(z_dim, n).to(like)
        self.encoder = nn.Sequential(features_encoder, nn.Flatten(), to_z)
        self.decoder = nn.Sequential(from_z, nn.Unflatten(1, shape), features_decoder)
        self.z_dim = z_dim
        self.set_likelihood("gaussian")

    def set_likelihood(self, likelihood: str, x_sigma2=0.001, binarize=False):
        """Choose p(x|z), "bernoulli" or "gaussian". Raises ValueError for another name.

        x_sigma2: see Gaussian. binarize: prepare() draws each pixel, 0 or 1, from its grey value.
        A new likelihood is a class like Bernoulli, a row here, and a choice of --likelihood. Its low is 0 or -1.
        """
        likelihoods = {"bernoulli": Bernoulli(), "gaussian": Gaussian(x_sigma2)}
        if likelihood not in likelihoods:
            raise ValueError(f"no likelihood {likelihood}; there are bernoulli and gaussian")
        self.likelihood, self.p_x = likelihood, likelihoods[likelihood]
        self.output = self.p_x.output
        self.binarize = binarize

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and log σ² of q(z|x), each (B, z_dim), for images (B, C, H, W) in the likelihood's range."""
        mu, log_sigma2 = to_float32(self.encoder(x)).chunk(2, dim=1)
        return mu, log_sigma2

    def reparameterize(self, mu: Tensor, log_sigma2: Tensor) -> Tensor:
        """Return z = μ + σ ⊙ ε, all (B, z_dim). ε has no parameters, so the gradient reaches μ and σ."""
        return mu + torch.exp(0.5 * log_sigma2) * torch.randn_like(mu)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (z, μ, log σ²), each (B, z_dim), z drawn from q(z|x)."""
        mu, log_sigma2 = self.posterior(x)
        return self.reparameterize(mu, log_sigma2), mu, log_sigma2

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z), (B, C, H, W) in the range of the images."""
        return self.output(to_float32(self.decoder(z)))

    @common.in_eval_mode
    def sample(self, n: int, seed: int | None = None) -> Tensor:
        """Return (n, C, H, W) decoded from z ~ N(0, I), on the CPU. A seed gives the same z each time."""
        if seed is not None:
            torch.manual_seed(seed)
        z = next(self.parameters()).new_empty(n, self.z_dim).normal_()
        return self.decode(z).cpu()

    def forward(self, x: Tensor, logits: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return (x̂ (B, C, H, W), μ, log σ²) of images. With logits, x̂ is before the output activation."""
        z, mu, log_sigma2 = self.encode(x)
        out = to_float32(self.decoder(z))
        return out if logits else self.output(out), mu, log_sigma2


class TsinghuaVAE(VAE):
    """Layer table of the Tsinghua homework, for 1 x 32 x 32 images in [0, 1]. Its head gives log σ, not log σ²."""

    def __init__(self, latent_dim: int):
        nn.Module.__init__(self)

        def conv(i, o, stride):
            return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.ReLU(inplace=True))

        def up(i, o, stride):
            convolution = nn.ConvTranspose2d(i, o, 3, stride, padding=1, output_padding=stride - 1)
            return nn.Sequential(convolution, nn.ReLU(inplace=True))

        self.encoder = nn.Sequential(
            conv(1, 16, 1),  # (B, 16, 32, 32)
            conv(16, 32, 2),  # (B, 32, 16, 16)
            conv(32, 32, 1),  # (B, 32, 16, 16)
            conv(32, 16, 2),  # (B, 16, 8, 8)
            nn.Flatten(),
            nn.Sequential(nn.Linear(16 * 8 * 8, 2 * latent_dim), nn.ReLU(inplace=True)),
            nn.Linear(2 * latent_dim, 2 * latent_dim),  # μ and log σ
        )
        self.decoder = nn.Sequential(
            nn.Sequential(nn.Linear(latent_dim, latent_dim), nn.ReLU(inplace=True)),
            nn.Linear(latent_dim, 16 * 8 * 8),
            nn.Unflatten(1, (16, 8, 8)),
            up(16, 32, 2),  # (B, 32, 16, 16)
            up(32, 32, 1),  # (B, 32, 16, 16)
            up(32, 16, 2),  # (B, 16, 32, 32)
            nn.ConvTranspose2d(16, 1, 3, 1, 1),  # (B, 1, 32, 32)
        )
        self.z_dim = latent_dim
        self.set_likelihood("bernoulli")
        # The layers next to z have 2·latent_dim and latent_dim ReLUs only. With these initial values almost all their
        # inputs are positive. With PyTorch's the ReLUs would die.
        before_z, after_z = self.encoder[5][0], self.decoder[0][0]
        nn.init.ones_(before_z.bias)
        nn.init.eye_(after_z.weight)
        nn.init.constant_(after_z.bias, 2)  # z ~ N(0, I) is seldom below -2

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_sigma = to_float32(self.encoder(x)).chunk(2, dim=1)
        return mu, 2 * log_sigma

    # The homework calls reparameterize(μ, log σ). posterior() returns log σ², so encode() calls VAE's own.
    def reparameterize(self, mu: Tensor, log_sigma: Tensor) -> Tensor:
        """Return z = μ + σ ⊙ ε from the output of the table's head, log σ."""
        return super().reparameterize(mu, 2 * log_sigma)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_sigma2 = self.posterior(x)
        return super().reparameterize(mu, log_sigma2), mu, log_sigma2


def build_vae(arch: str, latent_dim: int, channels=1, image_size=32, width=192) -> VAE:
    """Return a VAE by name. width: channels next to z, or units of mlp; tsinghua has its own.

    Raises ValueError for images that the architecture cannot take.
    """
    in_size = (channels, image_size, image_size)
    if arch == "tsinghua":
        if in_size != (1, 32, 32):
            raise ValueError(f"tsinghua takes 1x32x32 images, not {in_size}")
        return TsinghuaVAE(latent_dim)
    if arch == "technion":
        encoder, decoder = EncoderCNN(channels, width), DecoderCNN(width, channels)
        missing = -image_size % 16  # 28 pixels become 32, and 28 again
        if missing:
            near, far = missing // 2, missing - missing // 2
            encoder = nn.Sequential(nn.ZeroPad2d([near, far, near, far]), encoder)
            decoder = nn.Sequential(decoder, nn.ZeroPad2d([-near, -far, -near, -far]))
        return VAE(encoder, decoder, in_size, latent_dim)
    if arch != "mlp":
        raise ValueError(f"no architecture {arch}; there are technion, tsinghua and mlp")

    def dense(i, o):
        return nn.Sequential(nn.Linear(i, o), nn.ReLU(inplace=True))

    d_x = math.prod(in_size)
    encoder = nn.Sequential(nn.Flatten(), dense(d_x, width), dense(width, width))
    # VAE puts the layer from z to `width` before the decoder. The decoder's first ReLU belongs to that layer.
    to_x = [dense(width, width), nn.Linear(width, d_x), nn.Unflatten(1, in_size)]
    decoder = nn.Sequential(nn.ReLU(), *to_x)
    return VAE(encoder, decoder, in_size, latent_dim)


def vae_loss(x, xr, z_mu, z_log_sigma2, x_sigma2, beta=1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ℓ, data term, KL term), ℓ = ‖x − x̂‖² / (s d_x) + β Σ(μ² + σ² − log σ² − 1), batch means (Technion).

    x, xr: (B, C, H, W) in [-1, 1]. z_mu, z_log_sigma2: (B, z_dim). s is x_sigma2, d_x = C H W. With β = 1, ℓ is
    twice the negative ELBO of p(x|z) = N(x̂, s d_x I), up to a constant, and the KL term is 2 KL.
    """
    data_loss = F.mse_loss(xr, x) / x_sigma2
    kldiv_loss = (z_log_sigma2.exp() + z_mu**2 - 1 - z_log_sigma2).sum(1).mean()
    # For β = 1: −2 ELBO (eq. 3), up to a constant.
    return data_loss + beta * kldiv_loss, data_loss, kldiv_loss


def bce_vae_loss(x, xr, mu, log_sigma2, beta=1.0, logits=False) -> tuple[Tensor, Tensor, Tensor]:
    """Return (rec + β KL, rec, KL) in nats, batch means. rec is the cross-entropy summed over pixels.

    KL = ½ Σ(μ² + σ² − log σ² − 1) (appendix B). x: (B, C, H, W) in [0, 1]. xr: probabilities, or logits.
    """
    cross_entropy = F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy
    rec = cross_entropy(xr, x, reduction="sum") / len(x)
    kl = 0.5 * (mu**2 + log_sigma2.exp() - log_sigma2 - 1).sum(1).mean()
    return rec + beta * kl, rec, kl  # for β = 1: −ELBO (eq. 3)


class Bernoulli:
    """p(x|z) = Π x̂ˣ (1 − x̂)¹⁻ˣ over pixels x in [0, 1]. x̂ = sigmoid(out), out (B, C, H, W) the decoder's logits."""

    low = 0  # images lie in [low, 1]
    output = nn.Sigmoid()

    def loss(self, x, out, mu, log_sigma2, beta):
        return bce_vae_loss(x, out, mu, log_sigma2, beta, logits=True)

    def log_density(self, x, out):
        log_p = x * out - F.softplus(out)  # (K, B, C, H, W) from x (B, ...) and out (K, B, ...)
        return log_p.flatten(2).sum(-1)

    def elbo(self, rec, kl, _):  # in nats per image, from the loss's terms
        return -rec - kl


class Gaussian:
    """p(x|z) = N(x̂, s d_x I) for values in [-1, 1]. x̂ = tanh(out), d_x = C H W, s = x_sigma2 (Technion)."""

    low = -1
    output = nn.Tanh()

    def __init__(self, x_sigma2: float):
        self.x_sigma2 = x_sigma2

    def loss(self, x, out, mu, log_sigma2, beta):
        return vae_loss(x, self.output(out), mu, log_sigma2, self.x_sigma2, beta)

    def log_density(self, x, out):
        variance = self.x_sigma2 * x[0].numel()
        error = (x - self.output(out)).flatten(2)
        return -0.5 * (error**2 / variance + math.log(2 * math.pi * variance)).sum(-1)

    def elbo(self, rec, kl, d_x):
        return -(rec + kl) / 2 - d_x / 2 * math.log(2 * math.pi * self.x_sigma2 * d_x)


def objective(model: nn.Module, x: Tensor, p_x, beta: float) -> tuple[Tensor, ...]:
    """Return (loss, reconstruction term, KL term) of a batch. p_x: the model's Bernoulli or Gaussian."""
    out, mu, log_sigma2 = model(x, logits=True)
    return p_x.loss(x, out, mu, log_sigma2, beta)


def prepare(model: VAE, x: Tensor) -> Tensor:
    """Convert uint8 images to floats in the likelihood's range, on the model's device. --binarize draws pixels."""
    x = x.to(next(model.parameters()).device).float()
    x = x / 255 if model.p_x.low == 0 else x / 127.5 - 1
    if model.binarize:
        x = torch.bernoulli(x)
    return x.contiguous(memory_format=torch.channels_last)


def to_unit_range(model: VAE, x: Tensor) -> Tensor:
    """Convert decoded images from the likelihood's range to [0, 1]."""
    return x if model.p_x.low == 0 else (x + 1) / 2


def schedule(step: int, steps: int, kind: str) -> float:
    """Return the factor of --lr in step 1 ... steps: linear warm-up, then a cosine to 0, or constant."""
    fall = (1 + math.cos(math.pi * (step - 1) / steps)) / 2 if kind == "cosine" else 1
    return min(1, step / WARMUP) * fall


def kl_warmup(step: int, steps: int, arch: str) -> float:
    """Return β's factor in step 1 ... steps. A small β at first keeps q(z|x) from staying at p(z) (1602.02282)."""
    return min(1, 4 * step / steps) if arch == "mlp" else 1.0


def train(args: Namespace, device: torch.device) -> Run:
    data = images.load_images(args.data, "mnist", args.data_dir, args.image_size)
    config = settings(args, data)
    # args.begin is the content of the file of --weights, or {}. build() loads its weights. common.run has set untyped
    # "model" flags from it, so they agree with config. The optimiser and the step start anew.
    model = build(args.begin | config).to(device)
    if not args.begin:
        init_near_prior(model, data.train)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, fused=device.type != "mps")
    # vae.pth holds the weights and the config, last.pth also the optimizer, the step and the rows of metrics.csv.
    # Each step seeds its noise by (seed, step), so a resumed run is the same run.
    run = Run(args, data, {"model": model, "optimizer": optimizer}, {"vae.pth": (model, config)})
    if run.finished():
        return run
    batch = common.batches(data.train, args, device)  # depends on --seed and the step alone
    fast_model = common.for_training(model, args.compile)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)

    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * schedule(step, args.steps, args.lr_schedule)
        beta = args.beta * kl_warmup(step, args.steps, args.arch)
        x = prepare(model, batch(step))  # (B, C, H, W)
        with autocast:
            loss, rec, kl = objective(fast_model, x, model.p_x, beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        run.add("train", loss=loss, rec=rec, kl=kl)
        if run.due(args.log_every):
            with autocast:
                run.add("test", **mean_losses(model, data.test[:500], beta))
        if run.due(args.sample_every, early=True):
            run.save_grid("samples", to_unit_range(model, model.sample(64, seed=0)))
            run.save_grid("reconstructions", *reconstructions(model, data.test), pairs=True)
    return run.finish(evaluate_run(model, data, run.folder, args), MEANING)


@torch.no_grad()
def init_near_prior(model: VAE, x: Tensor) -> None:
    """Initialise so that q(z|x) is near p(z), and Bernoulli outputs near the mean of uint8 images x (N, C, H, W).

    With PyTorch's initialisation the first steps make all images darker. Most ReLUs next to z then stay at 0 for the
    rest of the training. On MNIST 4 of 10 latents were used, and the ELBO after 20,000 steps was -129.2 instead of
    -105.1 nats (tsinghua, seed 0).
    """
    model.encoder[-1].weight *= 0.1
    if model.likelihood == "bernoulli":
        last = [m for m in model.decoder.modules() if getattr(m, "bias", None) is not None][-1]
        last.bias.fill_(torch.logit(x[:5000].float().mean() / 255, eps=0.01))


# Measurements

MEANING = {  # how each result is printed: its unit, and which way is better
    "elbo": "ELBO {:.2f} nats an image, the higher the better",
    "log_px": "log p(x) at least {:.2f} nats, the higher the better",
} | common.SCORES


def draw_samples(model: VAE, n: int, seed: int) -> Iterator[Tensor]:
    """Yield n samples as uint8 batches (B, C, H, W)."""
    return common.sample_batches(lambda k: to_unit_range(model, model.sample(k)), n, seed)


@common.in_eval_mode
def mean_losses(model: VAE, x: Tensor, beta: float) -> dict[str, float]:
    """Return the means of objective() over uint8 images (N, C, H, W), with the same noise each time."""
    torch.manual_seed(0)  # the next training step seeds its own noise, in Run.steps
    sums = 0
    for batch in progress(x.split(500), "ELBO", math.ceil(len(x) / 500)):
        terms = objective(model, prepare(model, batch), model.p_x, beta)
        sums += len(batch) * torch.stack(terms)
    return dict(zip(("loss", "rec", "kl"), (sums / len(x)).tolist(), strict=True))


@common.in_eval_mode
def posteriors(model: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return μ and log σ² of uint8 images (N, C, H, W), each (N, z_dim)."""
    parts = [model.posterior(prepare(model, batch)) for batch in x.split(500)]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


@common.in_eval_mode
def log_importance_weights(model: VAE, x: Tensor, n_samples: int) -> Tensor:
    """Return log[p(x|z_k) p(z_k) / q(z_k|x)], z_k ~ q, in nats, (K, B), of images. Their mean over k is the ELBO."""
    x = prepare(model, x)  # (B, C, H, W)
    mu, log_sigma2 = model.posterior(x)
    eps = torch.randn(n_samples, *mu.shape, device=mu.device)  # (K, B, Z)
    z = mu + torch.exp(0.5 * log_sigma2) * eps
    log_pz_over_qz = 0.5 * (eps**2 + log_sigma2 - z**2).sum(-1)  # (K, B); the 2π cancel
    out = to_float32(model.decoder(z.flatten(0, 1)))  # (K·B, C, H, W)
    log_px_z = model.p_x.log_density(x, out.unflatten(0, z.shape[:2]))  # (K, B)
    return log_px_z + log_pz_over_qz


def log_px(model: VAE, x: Tensor, n_samples: int) -> float:
    """Return the mean over images of log[1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x)], in nats (Burda et al., eq. 8).

    This is a lower bound on log p(x). It is tighter with more samples, and on average not below the ELBO.
    x: uint8 (N, C, H, W). n_samples: K.
    """
    total, n = 0.0, max(1, 2048 // n_samples)
    for batch in progress(x.split(n), "log p(x)", math.ceil(len(x) / n)):
        parts = []
        for start in range(0, n_samples, 2048):  # so that memory does not grow with n_samples
            log_w = log_importance_weights(model, batch, min(2048, n_samples - start))
            parts.append(torch.logsumexp(log_w, 0))  # (B,)
        total += (torch.logsumexp(torch.stack(parts), 0) - math.log(n_samples)).sum().item()
    return total / len(x)


def active_units(model: VAE, x: Tensor) -> int:
    """Return the number of dimensions of z whose mean KL(q(z_i|x) ‖ p(z_i)) over uint8 images is above 0.01 nats.

    Burda et al. 2015, section 5.2, ask for Var μ_i > 0.01 instead. Both count the same where all latents are used.
    """
    mu, log_sigma2 = posteriors(model, x)
    kl = 0.5 * (mu**2 + log_sigma2.exp() - log_sigma2 - 1).mean(0)
    return int((kl > 0.01).sum())


@common.in_eval_mode
def reconstructions(model: VAE, x: Tensor) -> tuple[Tensor, int]:
    """Return images in [0, 1] for a grid and its columns: rows of originals, each above its reconstructions from μ."""
    columns = min(8, len(x))
    n = min(32, len(x)) // columns * columns
    x = prepare(model, x[:n])
    x_hat = model.decode(model.posterior(x)[0])
    grid = []
    for originals, decoded in zip(x.split(columns), x_hat.split(columns), strict=True):
        grid += [originals, decoded]
    return to_unit_range(model, torch.cat(grid)), columns


@common.in_eval_mode
def draw_interpolation(model: VAE, x: Tensor, path: Path, k: int = 8) -> None:
    """Draw a row from each of uint8 images (N, C, H, W) to the next: x₁, decode(z₁ + i/K (z₂ − z₁)), x₂.

    i goes from −2 to K + 2, so that the row shows what lies beyond both.
    """
    x = prepare(model, x)
    mu = model.posterior(x)[0]
    t = torch.arange(-2, k + 3, device=mu.device)[:, None] / k
    rows = []
    for x1, x2, z1, z2 in zip(x, x[1:], mu, mu[1:], strict=False):
        rows += [x1[None], model.decode(z1 + t * (z2 - z1)), x2[None]]
    if rows:
        labels = ("x1", *(f"{value:.4g}" for value in t[:, 0].tolist()), "x2")
        grid = to_unit_range(model, torch.cat(rows))
        common.save_grid(grid, path, k + 7, set_off=(0, 2, k + 3, k + 5), labels=labels)


def codes(model: VAE, x: Tensor) -> dict[str, Tensor]:
    """Return mu and log_sigma2 (N, z_dim), and elbo (N,) in nats, a mean over 16 z, of uint8 images (N, C, H, W)."""
    mu, log_sigma2 = posteriors(model, x)
    bounds = [log_importance_weights(model, batch, 16).mean(0) for batch in x.split(100)]
    return {"mu": mu, "log_sigma2": log_sigma2, "elbo": torch.cat(bounds)}


def evaluate_run(model: VAE, data, folder: Path, args: Namespace) -> dict[str, object]:
    """Evaluate on held-out images, in float32. Write pictures into the folder and return the results."""
    import fid

    print("evaluating on held-out images: ELBO, log p(x), pictures, FD-LeNet ...", flush=True)
    model.eval()
    device = torch.device(args.device)
    terms = mean_losses(model, data.test, beta=1.0)
    results = {"elbo": model.p_x.elbo(terms["rec"], terms["kl"], data.test[0].numel())}
    results |= {"rec": terms["rec"], "kl": terms["kl"], "test_images": len(data.test)}

    # The bound on log p(x) costs 128 passes per image, so it is computed for the first 1,000. --samples: for all.
    x, n_samples = (data.test, args.samples) if args.samples else (data.test[:1000], 128)
    results["log_px"] = log_px(model, x, n_samples)
    results |= {"log_px_images": len(x), "log_px_samples": n_samples}
    grid, columns = reconstructions(model, data.test)
    common.save_grid(grid, folder / "reconstructions.png", columns, pairs=True)
    results["active_units"] = active_units(model, data.test)
    if not results["active_units"]:
        print("WARNING: posterior collapse: no dimension of z is used. Try a smaller --beta.")
    draw_interpolation(model, images.one_of_each(data), folder / "interpolation.png")

    def decode(z: Tensor) -> Tensor:
        return to_unit_range(model, model.decode(z.to(device)))

    mu = posteriors(model, data.test[:2000])[0].cpu()
    latent.draw(decode, mu, data, folder)
    # FD-LeNet compares 10,000 samples with the test images, on features of a LeNet-5 trained on data.train. FID, on
    # Inception's features, needs a GPU and Inception's weights.
    judge = fid.Judge(data, args.data_dir, device)
    return results | judge(partial(draw_samples, model))


def settings(args: Namespace, data) -> dict:
    """Return the config: all that rebuilds the model, and β. Flags that were left open are decided by the images."""
    channels, image_size = data.train.shape[1:3]
    convolutional_width = 192 if image_size <= 32 else 256
    width = args.width or {"mlp": 500}.get(args.arch, convolutional_width)
    likelihood = args.likelihood or ("bernoulli" if channels == 1 else "gaussian")
    if args.arch == "tsinghua" and "width" in args.typed:
        common.fail("--arch tsinghua has the layers of its table. Leave out --width.")
    if args.arch == "technion" and args.batch_size == 1 and image_size <= 16:
        common.fail("BatchNorm over maps of one pixel needs 2 images. Use a larger --batch-size.")
    if "x_sigma2" in args.typed and likelihood == "bernoulli":
        common.fail("--x-sigma2 belongs to the Gaussian. Add --likelihood gaussian.")
    if args.binarize and likelihood != "bernoulli":
        common.fail("--binarize makes pixels of 0 and 1. Add --likelihood bernoulli.")
    config = {"arch": args.arch, "latent_dim": args.latent_dim, "channels": channels}
    config |= {"image_size": image_size, "width": width, "likelihood": likelihood}
    return config | {"x_sigma2": args.x_sigma2, "beta": args.beta, "binarize": args.binarize}


@common.or_fail
def build(config: dict) -> VAE:
    """Return the model of a config, or of a weights file, whose weights are loaded then."""
    names = ("arch", "latent_dim", "channels", "image_size", "width")
    model = build_vae(*(config[name] for name in names))
    model.set_likelihood(config["likelihood"], config["x_sigma2"], config["binarize"])
    return model


# Use of trained weights


class AtTheMean(nn.Module):
    """Images -> (reconstruction from z = μ, μ, log σ²). Without noise, so that an exported file can be tested."""

    def __init__(self, model: VAE):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, log_sigma2 = self.model.posterior(x)
        return self.model.decode(mu), mu, log_sigma2


def use(args: Namespace, device: torch.device) -> None:
    """Do what --generate, --interpolate, --encode, --eval and --export ask for."""
    if len(args.interpolate or []) not in (0, 2):
        common.fail(f"--interpolate takes two image files or none, not {len(args.interpolate)}")
    trained = common.Trained(args, any_data=args.encode is not None)
    config = trained.config
    model = build(config).to(device).eval()
    if args.encode is not None:
        trained.write_npz(args.encode, partial(codes, model), config["channels"])
    if args.generate:
        common.save_generated(draw_samples(model, args.n, args.seed), args.n, trained.folder)
    if args.interpolate is not None:
        if args.interpolate:
            x = trained.read(args.interpolate)
        else:
            x = images.one_of_each(trained.data())
        if len(x) < 2:
            common.fail("there is one held-out image only. Name two image files: --interpolate A B")
        path = trained.folder / "interpolation.png"
        draw_interpolation(model, x, path)
        print(path)
    if args.eval:
        trained.finish(evaluate_run(model, trained.data(), trained.folder, args), MEANING)
    if args.export:
        x = torch.rand(3, config["channels"], config["image_size"], config["image_size"])
        low = model.p_x.low
        ranges = f"images in [{low}, 1] -> (reconstructions in [{low}, 1], mu, log sigma^2)"
        export(AtTheMean(model.cpu()), x, trained.folder / "VAE_model.pth", ranges)


# Command line


def get_args(argv: list[str] | None = None) -> Namespace:
    p = common.parser("vae", "vae.pth", __doc__, steps=20000, batch_size=64, lr=3e-3, makes="images")
    add = p.group("model")
    add("--latent-dim", type=common.count, default=10, help="dimensions of z")
    add("--arch", choices=["technion", "tsinghua", "mlp"], default="technion", help="network")
    add("--width", type=common.between(8, 2048), help="channels next to z, or units of mlp")
    add("--image-size", type=common.between(1, 4096), help="side in pixels (default: 32, or 64)")
    add("--likelihood", choices=["bernoulli", "gaussian"], help="p(x|z) (default: by colour)")
    add("--binarize", action="store_true", help="draw pixels, 0 or 1, from grey values in each step")
    add("--x-sigma2", type=common.positive, default=0.001, help="gaussian: variance over C·H·W")
    add("--beta", type=common.amount, default=1.0, help="weight of the KL term (beta-VAE)")
    add = p.group("optimisation")
    add("--lr-schedule", choices=["cosine", "constant"], default="cosine", help="after warm-up")
    add = p.group("run")
    samples = "importance samples for log p(x) of all test images (default: 128, of the first 1,000)"
    add("--samples", type=common.between(1, 1_000_000), help=samples)
    add = p.group("trained weights")
    add("--eval", action="store_true", help="do not train: evaluate a run, draw its pictures again")
    interpolate = "do not train: draw from one image file, or test image, to another"
    add("--interpolate", nargs="*", metavar="FILE", help=interpolate)
    encode = "do not train: write mu, log_sigma2 and the ELBO of each image of --data"
    add("--encode", metavar="FILE.npz", help=encode)
    add("--export", action="store_true", help="do not train: write TorchScript and torch.export files")
    return p.parse(argv, samples=("train", "eval"))


def main(argv: list[str] | None = None) -> Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    common.program(main)
