"""Common training loops, written from scratch, with which bench.py compares the scripts.

The loops of courses and of pytorch/examples (images one by one through a DataLoader, float32), and a character
transformer. Each trains for `steps` steps and hands back (what it has trained, its steps per second).
"""

import itertools
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

import dcgan
import gan_mnist
import simclr
import vae

VAE_BATCH = 64
GAN_BATCH = 128
SIMCLR_BATCH = 256
MEAN, STD = (0.5,) * 3, (0.25,) * 3  # of the channels, for simclr.Model


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
    """Return the speed of a textbook loop, epoch after epoch. The first steps are not timed."""
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, x in zip(range(1, steps + 1), epochs, strict=False):
        update(x)
        if step == n_untimed(steps):
            began = time.perf_counter()
    return (steps - n_untimed(steps)) / (time.perf_counter() - began)


def vae_loop(model: nn.Module, loader: DataLoader, steps: int) -> tuple[nn.Module, float]:
    """Adam at 1e-3 on the sigmoid's BCE and the KL term."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def update(x: Tensor) -> None:
        x_rec, mu, log_sigma2 = model(x)
        loss, _, _ = vae.bce_vae_loss(x, x_rec, mu, log_sigma2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return model, steps_per_second(loader, steps, update)


def textbook_vae(pixels: Tensor, steps: int, seed: int, workers: int = 0) -> tuple[nn.Module, float]:
    """The homework's network with PyTorch's layers, on digits of 28 pixels with a margin of 2."""
    torch.manual_seed(seed)
    loader = DataLoader(PerImage(pixels, 2), VAE_BATCH, shuffle=True, num_workers=workers)
    return vae_loop(vae.build_vae("tsinghua", 10), loader, steps)


def examples_vae(pixels: Tensor, steps: int, seed: int) -> tuple[nn.Module, float]:
    """pytorch/examples: 784, 400, 20 and back, batch 128, one worker; 10 epochs are its own end."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU())
    decoder = nn.Sequential(nn.ReLU(), nn.Linear(400, 784), nn.Unflatten(1, (1, 28, 28)))
    model = vae.VAE(encoder, decoder, (1, 28, 28), 20)
    model.set_likelihood("bernoulli")
    return vae_loop(model, DataLoader(PerImage(pixels, 0), 128, shuffle=True, num_workers=1), steps)


def gan_loop(
    D: nn.Module, G: nn.Module, loader: DataLoader, steps: int, lr: float, noise: Callable, fresh: bool
) -> tuple[nn.Module, float]:
    """D on data and on samples that are detached, then G through all of D; fresh: on samples of its own."""
    D_solver, G_solver = (torch.optim.Adam(net.parameters(), lr, betas=(0.5, 0.999)) for net in (D, G))

    def update(x: Tensor) -> None:
        D_solver.zero_grad()
        x_fake = G(noise())
        gan_mnist.discriminator_loss(D(2 * x - 1), D(x_fake.detach())).backward()
        D_solver.step()
        G_solver.zero_grad()
        gan_mnist.generator_loss(D(G(noise()) if fresh else x_fake)).backward()
        G_solver.step()

    return G, steps_per_second(loader, steps, update)


def course_gan(pixels: Tensor, steps: int, seed: int, arch: str) -> tuple[nn.Module, float]:
    """CS231n's loop; 10 epochs are its own end."""
    torch.manual_seed(seed)
    loader = DataLoader(PerImage(pixels, 0), GAN_BATCH, shuffle=True, drop_last=True)
    D, G = gan_mnist.DISCRIMINATORS[arch](), gan_mnist.GENERATORS[arch](96)
    return gan_loop(D, G, loader, steps, 1e-3, lambda: gan_mnist.sample_noise(GAN_BATCH, 96), fresh=True)


def examples_dcgan(pixels: Tensor, steps: int, seed: int) -> tuple[nn.Module, float]:
    """pytorch/examples' loop, two workers, on our networks at their width; 5 epochs are its own end on MNIST."""
    torch.manual_seed(seed)
    _, channels, size, _ = pixels.shape
    loader = DataLoader(PerImage(pixels, 0), GAN_BATCH, shuffle=True, drop_last=True, num_workers=2)
    shape = {"latent_dim": 100, "hidden_dim": 64, "channels": channels, "image_size": size, "spectral_norm": False}
    G, D = (dcgan.build(shape, kind) for kind in (dcgan.Generator, dcgan.Discriminator))
    G, D = (net.to(memory_format=torch.contiguous_format) for net in (G, D))
    return gan_loop(D, G, loader, steps, 2e-4, lambda: torch.randn(GAN_BATCH, 100), fresh=False)


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


def simclr_loader(pixels: Tensor) -> DataLoader:
    """Batches of pairs of views by torchvision, image by image, in two workers."""
    return DataLoader(TwoViews(pixels, BY_PIL), SIMCLR_BATCH, shuffle=True, drop_last=True, num_workers=2)


def loader_simclr(pixels: Tensor, steps: int, seed: int) -> tuple[nn.Module, float]:
    """SGD at 0.06."""
    torch.manual_seed(seed)
    model = simclr.Model(128, "resnet18", MEAN, STD)
    optimizer = torch.optim.SGD(model.parameters(), 0.06, 0.9, weight_decay=5e-4)

    def update(two_views: list[Tensor]) -> None:
        _, z = model((torch.cat(two_views) - 0.5) / 0.25)
        optimizer.zero_grad()
        simclr.simclr_loss_vectorized(*z.chunk(2), 0.5).backward()
        optimizer.step()

    return model, steps_per_second(simclr_loader(pixels), steps, update)


def text_loop(
    model: nn.Module, ids: Tensor, batch: int, optimizer: torch.optim.Optimizer, steps: int, lr: Callable[[int], float]
) -> tuple[nn.Module, float]:
    """Steps 0, 1, ... on `batch` random sequences of 64 of the text ids (N,), with gradients clipped to norm 1."""
    ids, began = ids.long(), time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        x = ids[torch.randint(len(ids) - 64, (batch, 1)) + torch.arange(65)]  # (B, S + 1)
        logits, _ = model(x[:, :-1])
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, steps / (time.perf_counter() - began)


class Block(nn.Module):
    """Transformer block: causal attention of four heads, then a layer of 4C units, each on normalised input."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(C, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in self.qkv(self.norms[0](x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Indices (B, S) of V characters, S at most 64 -> scores (B, S, V), and nothing where a GRU has its state."""

    def __init__(self, V: int, C: int = 128, n_layers: int = 4) -> None:
        super().__init__()
        self.places, self.W_hy = nn.Embedding(64, C), nn.Parameter(torch.empty(V, C))
        self.blocks = nn.Sequential(*(Block(C) for _ in range(n_layers)), nn.LayerNorm(C, bias=False))
        for weights in self.parameters():
            if weights.ndim == 2:
                nn.init.normal_(weights, std=0.02)
        for block in self.blocks[:-1]:
            for layer in (block.out, block.down):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * n_layers))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = self.W_hy[x] + self.places.weight[: x.shape[1]]
        return self.blocks(h) @ self.W_hy.T, None


def train_transformer(ids: Tensor, V: int, steps: int, seed: int) -> tuple[nn.Module, float]:
    """nanoGPT's recipe for a CPU: context 64, batch 12, AdamW, a cosine from 1e-3 to 1e-4; 2,000 steps are its end."""
    torch.manual_seed(seed)
    model = Transformer(V)
    matrices, rest = ([p for p in model.parameters() if (p.ndim == 2) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]

    def lr(step: int) -> float:
        fall = (1 + math.cos(math.pi * max(0, step - 100) / max(1, steps - 100))) / 2
        return min(1, (step + 1) / 101) * (1e-4 + 9e-4 * fall)

    return text_loop(model, ids, 12, torch.optim.AdamW(groups, betas=(0.9, 0.99)), steps, lr)


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
        self.W_hy = self.output.weight

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if x.ndim == 2:  # indices
            x = F.one_hot(x, len(self.W_hy)).float()
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


def train_course_gru(ids: Tensor, V: int, steps: int, seed: int) -> tuple[nn.Module, float]:
    """Two layers of 256, 64 random sequences of 64 a step, Adam at 1e-3."""
    torch.manual_seed(seed)
    model = CourseGRU(V, 256, V, 2)
    return text_loop(model, ids, 64, torch.optim.Adam(model.parameters()), steps, lambda _: 1e-3)
