"""SimCLR: contrastive learning of visual representations, judged by what a frozen encoder knows.

Chen, Kornblith, Norouzi & Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv
2002.05709. N images give 2N augmented views; the encoder f makes representations h, the projection head g makes z.
Each view has to find its partner among all others, with sim the cosine and temperature τ:

    ℓ(i,j) = −log[ exp(sim(z_i,z_j)/τ) / Σ_{m≠i} exp(sim(z_i,z_m)/τ) ],  m = 1 ... 2N                   (eq. 1)
    L = 1/(2N) Σ_k [ℓ(k,k+N) + ℓ(k+N,k)],  k = 1 ... N (the paper's pairs are 2k − 1, 2k)      (algorithm 1)

Differs from the paper (its appendix B.9 has CIFAR-10): the head of Stanford's CS231n, assignment 3, 512 wide; SGD with
momentum instead of LARS, learning rate --lr · batch / 256 times warm-up and cosine, weight decay 5e-4 on everything;
τ 0.2 instead of 0.5; ResNet-18.

    python simclr.py                                          # ResNet-18 on CIFAR-10; the same again continues
    python simclr.py --eval                                   # frozen evaluation of the newest run, and its baselines
    python simclr.py --features out.npz --data photos/        # a trained encoder put to use

Measured on CIFAR-10's test images, seed 0: linear 70.1%, kNN 61.7% (raw pixels 41.3%, 30.9%; untrained 36.0%, 33.3%)
after --batch-size 128 --warmup 200 --lr 0.12 --half-size 0.9 --steps 4500 (69.6%, 61.2%, 81 minutes on one thread of an
AMD EPYC), then --steps 5000, 12.8 epochs, 112 minutes; 60.5%, 51.5% after --steps 1250 --warmup 100, 30 minutes.
"""

import math
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import common
from plumbing.data import images, pixels
from plumbing.run import described, plots
from plumbing.run import run as run_module
from plumbing.run.networks import fingerprint
from plumbing.system import files, hardware, ranks


def get_args(argv: list[str] | None = None) -> Namespace:
    lr_help = "learning rate for a batch of 256, to which it is proportional"
    p = common.parser(__doc__, steps=9800, batch_size=512, lr=0.03, lr_help=lr_help)  # a hundred epochs of CIFAR-10
    add = p.group("model")
    add("--encoder", choices=["resnet18", "resnet50"], default="resnet18", help="f, without its last layer")
    add("--feature-dim", type=common.number(int, 1), default=128, help="dimensions of z")
    add("--image-size", type=common.number(int, 8, below=1025), help="side in pixels (default: 32, or 64 for larger)")
    add = p.group("optimisation")
    add("--tau", type=common.number(float, 0, above=True), default=0.2, help="temperature τ of the loss; CS231n: 0.5")
    half_help = "views have half the side, and take a quarter of the time, in this first part of the steps"
    add("--half-size", type=common.number(float, 0, below=1.0001), default=0.0, help=half_help)
    add("--warmup", type=common.number(int, 0), default=200, help="steps in which the learning rate rises")
    add = p.group("trained weights")
    add("--labels", type=common.number(float, 0, above=True, below=1.0001), default=0.1, help="share for linear_few")
    add("--eval", action="store_true", help="do not train: evaluate a run")
    add("--features", metavar="FILE.npz", help="do not train: write h of the images of --data, not normalised")
    add("--export", action="store_true", help="do not train: write f as TorchScript and under torchvision's names")
    return common.parse_args(p, argv, labels=("train", "eval"))


# Augmentation (section 3, strength 0.5 and no blur as in appendix B.9), on whole batches, with parameters of its own
# for each image; x is (B, 3, S, S) in [0, 1].


def floats(x: Tensor) -> Tensor:
    """uint8 images (B, 1 or 3, S, S) -> (B, 3, S, S) in [0, 1]."""
    return x.float().expand(-1, 3, -1, -1) / 255


def uniform(n: int, low: float, high: float, device: torch.device) -> Tensor:
    """(n,) numbers between low and high."""
    return low + (high - low) * torch.rand(n, device=device)


def crop_boxes(n: int, size: int, device: torch.device, scale: tuple, ratio=(3 / 4, 4 / 3)) -> Tensor:
    """(4, n): top, left, height, width as torchvision's RandomResizedCrop draws them: of ten tries the first to fit."""
    area = size**2 * uniform(10 * n, *scale, device)
    aspect = torch.exp(uniform(10 * n, *map(math.log, ratio), device))
    tries = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()]).round().view(2, n, 10)  # height, width
    fits = ((tries > 0) & (tries <= size)).all(0)  # (n, 10)
    first = fits.int().argmax(1)
    sides = tries.gather(2, first.expand(2, n)[..., None])[..., 0]  # (2, n)
    sides = torch.where(fits.any(1), sides, float(size))
    corner = torch.rand(2, n, device=device) * (size - sides + 1)
    return torch.cat([corner.floor(), sides])


def resampling(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(B, size, size): matrices that stretch `length` pixels from `start` on, each (B,), over `size`, bilinearly.

    Row i has the weights of the pixels that output pixel i is made from: 1 − their distance to its place among them.
    """
    pixel = torch.arange(size, device=start.device)
    place = (pixel + 0.5) * length[:, None] / size - 0.5  # (B, size), within the crop
    place = place.clamp(min=0).minimum(length[:, None] - 1)
    distance = (place + start[:, None])[:, :, None] - pixel  # (B, size, size)
    return F.relu(1 - distance.abs())


def crop(x: Tensor, scale=(0.08, 1.0)) -> Tensor:
    """Random resized crop: two small matrix products per channel."""
    size = x.shape[-1]
    top, left, height, width = crop_boxes(len(x), size, x.device, scale)
    rows, columns = resampling(top, height, size), resampling(left, width, size)  # (B, S, S)
    return rows[:, None] @ x @ columns[:, None].mT


def flip(x: Tensor) -> Tensor:
    """Half of the images mirrored."""
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def grey(x: Tensor) -> Tensor:
    """Luma (B, 1, S, S)."""
    return 0.2989 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


def blend(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """y + factor (x − y), a factor (B,) for each image, cut to [0, 1]."""
    return torch.lerp(y, x, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """x in [0, 1] by `turn` (B,), in [-½, ½], of the colour circle, through HSV."""
    r, g, b = x.unbind(1)  # (B, S, S)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = high - low
    sixths = torch.where(high == r, g - b, torch.where(high == g, b - r, r - g)) / chroma.clamp(min=1e-12)
    sixths = sixths + torch.where(high == r, 0.0, torch.where(high == g, 2.0, 4.0)) + 6 * turn[:, None, None]
    k = torch.arange(5.0, 0.0, -2.0, device=x.device).view(1, 3, 1, 1) + sixths[:, None]  # 5, 3, 1: (B, 3, S, S)
    k = k - 6 * (k / 6).floor()
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """As torchvision's, with a factor (B,) for each image; so the other three."""
    return (x * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, grey(x).mean((2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    return blend(x, grey(x), factor)


ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, turn_hue)  # each (B, 3, S, S), (B,) -> (B, 3, S, S)


def jitter(x: Tensor, p: float = 0.8) -> Tensor:
    """Brightness, contrast, saturation by 0.4 and hue by 0.1, in an order of its own for every image; x is changed."""
    n, device = len(x), x.device
    factors = [uniform(n, 0.6, 1.4, device) for _ in range(3)]
    amounts = [*factors, uniform(n, -0.1, 0.1, device)]
    order = torch.rand(n, 4).argsort(1)  # on the host, which so knows how many images each adjustment has
    order[torch.rand(n) >= p] = -1  # these are left alone
    parts = [(turn == k).nonzero()[:, 0] for turn in order.T for k in range(4)]
    parts = hardware.moved(torch.cat(parts), device).split([len(i) for i in parts])
    for k, i in enumerate(parts):  # of each of four turns the images that each adjustment has
        adjust, amount = ADJUST[k % 4], amounts[k % 4]
        x[i] = adjust(x[i], amount[i])
    return x


def augment(x: Tensor) -> Tensor:
    """uint8 images (B, 1 or 3, S, S) -> one view of each, (B, 3, S, S) in [0, 1]."""
    x = jitter(flip(crop(floats(x))))
    colourless = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.2
    return torch.where(colourless, grey(x), x)


class Model(nn.Module):
    """Normalised images (B, 3, S, S) -> (h, z), both of length 1: representation (B, 2048 or 512), projection
    (B, feature_dim).

    f: torchvision's ResNet without its last layer, with a 3 x 3 stem of stride 1 and no max pool. g: the course's head.
    """

    def __init__(self, feature_dim: int = 128, encoder: str = "resnet50") -> None:
        super().__init__()
        resnet = getattr(torchvision.models, encoder)()
        self.width = resnet.fc.in_features
        layers = {k: m for k, m in resnet.named_children() if k not in ("maxpool", "fc")}
        layers["conv1"] = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.f = nn.Sequential(*layers.values(), nn.Flatten())
        self.g = nn.Sequential(
            nn.Linear(self.width, 512, bias=False),
            nn.BatchNorm1d(512),
            nn.ReLU(inplace=True),
            nn.Linear(512, feature_dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.f(x)  # (B, width)
        return F.normalize(h.float(), dim=1), F.normalize(self.g(h).float(), dim=1)


@common.builder
def build(numbers: dict) -> Model:
    """The model that the flags describe, or that a weights file describes and holds."""
    return Model(numbers["feature_dim"], numbers["encoder"])


def sim(z_i: Tensor, z_j: Tensor) -> Tensor:
    """Cosine of two vectors, (D,) or (1, D)."""
    return F.normalize(z_i.flatten(), dim=0) @ F.normalize(z_j.flatten(), dim=0)


def simclr_loss_naive(out_left: Tensor, out_right: Tensor, tau: float) -> Tensor:
    """L, in nats, as it is written, pair by pair: out_left and out_right (N, D) are the z of both views. To read."""
    N = len(out_left)
    z, total = torch.cat([out_left, out_right]), 0.0
    for k in range(N):
        for i, j in ((k, k + N), (k + N, k)):
            others = torch.stack([sim(z[i], z[m]) / tau for m in range(2 * N) if m != i])
            total += torch.logsumexp(others, 0) - sim(z[i], z[j]) / tau  # no exp alone, which overflows for small τ
    return total / (2 * N)


def sim_positive_pairs(out_left: Tensor, out_right: Tensor) -> Tensor:
    """sim of each positive pair: (N, D), (N, D) -> (N, 1). CS231n's; not called here."""
    return (F.normalize(out_left, dim=1) * F.normalize(out_right, dim=1)).sum(1, keepdim=True)


def compute_sim_matrix(out: Tensor) -> Tensor:
    """sim of all pairs: (2N, D) -> (2N, 2N). CS231n's; not called here."""
    out = F.normalize(out, dim=1)
    return out @ out.T


def simclr_loss_vectorized(out_left: Tensor, out_right: Tensor, tau: float, device: str = "cpu") -> Tensor:
    """L as a cross-entropy: row i of the similarities over τ, without itself, has to point at i's partner.

    Under torchrun the mean of a rank's own rows, whose negatives are those of all ranks.
    """
    N, z = len(out_left), F.normalize(torch.cat([out_left, out_right]).to(device), dim=1)  # (2N, D)
    own = torch.arange(2 * N, device=z.device) + 2 * N * ranks.rank()
    logits = z @ ranks.gathered(z).T / tau  # (2N, 2N of each rank)
    logits = logits.scatter(1, own[:, None], -math.inf)
    return F.cross_entropy(logits, own.roll(N))


def normalise(x: Tensor, numbers: dict) -> Tensor:
    """Views in [0, 1] -> mean 0 and variance 1 per channel of the training set."""
    mean, std = (torch.as_tensor(numbers[k], device=x.device).view(1, 3, 1, 1) for k in ("mean", "std"))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def whole(x: Tensor, numbers: dict, device: torch.device) -> Tensor:
    """uint8 images as they are, not augmented, as the network takes them."""
    return normalise(floats(x.to(device)), numbers)


@common.in_eval_mode
def represent(f: nn.Module, x: Tensor, numbers: dict, device: torch.device, bf16: bool) -> Tensor:
    """h = f(x) (N, width) of uint8 images, float32, not normalised (Model and Encoder do that), in eval mode."""
    out = []
    n = max(1, 250 * 32**2 // x.shape[-1] ** 2)
    for part in files.progress(x.split(n), "features", math.ceil(len(x) / n)):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out.append(f(whole(part, numbers, device)).float())
    return torch.cat(out)


def knn_accuracy(bank: Tensor, labels: Tensor, h: Tensor, truth: Tensor, k: int = 200, tau: float = 0.1) -> float:
    """Share of h (M, D) whose class (M,) the k nearest of the bank (N, D) vote for, by their `labels` (N,): nearest by
    cosine, each with weight exp(sim/τ) (Wu et al. 2018, 3.4).
    """
    bank, n_classes = F.normalize(bank, dim=1), int(labels.max()) + 1
    right = 0
    parts = zip(F.normalize(h, dim=1).split(500), truth.split(500), strict=True)
    for part, y in files.progress(parts, "kNN", math.ceil(len(h) / 500)):
        similar, i = (part @ bank.T).topk(min(k, len(bank)))  # (B, k)
        votes = similar.new_zeros(len(part), n_classes).scatter_add_(1, labels[i], (similar / tau).exp())
        right += (votes.argmax(1) == y).sum().item()
    return right / len(h)


def logistic_regression(h: Tensor, labels: Tensor, l2: float) -> nn.Linear:
    """The linear classifier of features (N, D) with the least mean cross-entropy + l2/2 ‖W‖², by L-BFGS."""
    layer = nn.Linear(h.shape[1], int(labels.max()) + 1).to(h.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(h), labels) + l2 / 2 * (layer.weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer.requires_grad_(False)


def accuracy(layer: nn.Linear, h: Tensor, labels: Tensor) -> float:
    """Share of features (N, D) whose label (N,) has the largest score."""
    return (layer(h).argmax(1) == labels).float().mean().item()


def linear_accuracy(h: Tensor, labels: Tensor, test_h: Tensor, truth: Tensor) -> float:
    """Of logistic regression on standardised features (N, D), l2 chosen on a fifth of the training labels."""
    mean, std = h.mean(0), h.std(0)
    std = torch.where(std > 1e-4, std, 1.0)
    h, test_h = (h - mean) / std, (test_h - mean) / std
    n = len(h) - len(h) // 5
    tried = {}
    for l2 in files.progress((1e-3, 1e-2, 1e-1), "linear classifier", 3):
        tried[l2] = accuracy(logistic_regression(h[:n], labels[:n], l2), h[n:], labels[n:])
    best_l2 = max(tried, key=tried.get)
    return accuracy(logistic_regression(h, labels, best_l2), test_h, truth)


def judged(h: Tensor, test_h: Tensor, data: images.ImageData, some: Tensor) -> dict[str, float]:
    """What features tell of the held-out labels: kNN, linear from all labels, linear from `some` of them."""
    y, truth = data.train_labels.to(h.device), data.test_labels.to(h.device)
    return {
        "knn": knn_accuracy(h, y, test_h, truth),
        "linear": linear_accuracy(h, y, test_h, truth),
        "linear_few": linear_accuracy(h[some], y[some], test_h, truth),
    }


def draw_views(x: Tensor, path: Path) -> None:
    """Each image over two views of it."""
    torch.manual_seed(0)
    common.save_grid(torch.cat([floats(x), augment(x), augment(x)]), path, len(x))


def pixels_as_features(x: Tensor, device: torch.device) -> Tensor:
    """uint8 images (N, C, S, S) -> (N, D), at no more than 32 x 32."""
    return F.adaptive_avg_pool2d(x.to(device).float() / 255, min(32, x.shape[-1])).flatten(1)


@torch.no_grad()
def measure_batchnorm(net: nn.Module, x: Tensor, numbers: dict, device: torch.device) -> None:
    """Its BatchNorm layers' statistics of uint8 images (N, C, S, S): the means over batches of 250."""
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.momentum = None  # a mean, not a moving one
    for batch in x.split(250):
        net(whole(batch, numbers, device))


def untrained_encoder(data: images.ImageData, numbers: dict, seed: int, device: torch.device) -> nn.Module:
    """The same network as it begins, but with BatchNorm's statistics of 2,500 images: the harder baseline."""
    torch.manual_seed(seed + 1)
    f = Model(numbers["feature_dim"], numbers["encoder"]).to(device, memory_format=torch.channels_last).f
    measure_batchnorm(f, data.train[:2500], numbers, device)
    return f


def look_inside(model: Model, data: images.ImageData, numbers: dict, folder: Path, args: Namespace) -> dict:
    """Frozen evaluation beside its baselines: pictures into the folder, accuracies on held-out images back."""
    device = torch.device(args.device)
    files.say("evaluating on held-out images: kNN and linear classifiers, untrained and pixels beside them ...")
    before = fingerprint(model.f)
    h, test_h = (represent(model.f, x, numbers, device, args.bf16) for x in (data.train, data.test))
    plots.neighbours(h, test_h, data, folder / "neighbours.png")
    shown = F.normalize(test_h[:2000], dim=1).cpu().numpy()
    title = f"h of {len(shown):,} test images"
    plots.codes(shown, data.test_labels[:2000], data.classes, title, folder / "features.png")
    results = {"test_images": len(data.test), "encoder_sha256": before}
    if data.train_labels.max() < 1:
        print("there is one class only: no accuracy can be measured")
    else:
        some = common.permutation(len(h), 0, 0)[: max(2, round(args.labels * len(h)))]
        results |= {"train_images": len(h), "few_labels": len(some), **judged(h, test_h, data, some)}
        untrained = untrained_encoder(data, numbers, args.seed, device)
        random_h = [represent(untrained, x, numbers, device, args.bf16) for x in (data.train, data.test)]
        results |= {f"untrained_{k}": v for k, v in judged(*random_h, data, some).items()}
        flat = [pixels_as_features(x, device) for x in (data.train, data.test)]
        results |= {f"pixels_{k}": v for k, v in judged(*flat, data, some).items()}
    after = fingerprint(model.f)
    print(f"frozen encoder: {before} before, {after} after evaluation")
    if after != before:
        raise AssertionError("evaluation has changed the encoder: its figures are void")
    return results


def channels_seen(numbers: dict) -> int:
    """1 for an encoder that was trained on grey images, whose channels have one mean."""
    return 1 if len(set(numbers["mean"])) == 1 else 3


class Encoder(nn.Module):
    """Images (B, 3, S, S) in [0, 1] -> h (B, width), of length 1: what --export writes."""

    def __init__(self, f: nn.Module, numbers: dict) -> None:
        super().__init__()
        self.f = f
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(numbers[name]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.f((x - self.mean) / self.std), dim=1)


def train(args: Namespace, device: torch.device) -> run_module.Run:
    args, begun = common.begin_with("simclr", "simclr.pth", args, ("encoder", "feature_dim", "image_size"))
    data = images.load_images(args.data, "cifar10", args.data_dir, args.image_size)
    if not 2 <= args.batch_size <= len(data.train):
        few = f"at least 2, and not more than the {len(data.train)} training images"
        common.fail(f"--batch-size {args.batch_size}: {few}")
    image_size = data.train.shape[-1]
    if args.half_size and image_size < 16:  # a stride on maps of one pixel: its gradient on a CPU was noise, 1e33
        common.fail(f"--half-size: half of {image_size} pixels is less than the 8 that the network needs")
    every = max(1, image_size // 32)
    some = data.train[:5000, :, ::every, ::every].float() / 255
    numbers = {"encoder": args.encoder, "feature_dim": args.feature_dim, "image_size": image_size, "tau": args.tau}
    numbers["mean"] = begun.get("mean", some.mean((0, 2, 3)).expand(3).tolist())
    numbers["std"] = begun.get("std", some.std((0, 2, 3)).clamp(min=1e-3).expand(3).tolist())
    numbers |= {"data": data.source, "trained_on": f"{data}{data.note}"}

    model = build(begun | numbers).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    state = run_module.State(steps=args.steps)
    objects = {"model": model, "optimizer": optimizer, "state": state}
    variant = f"simclr-{data.name}-{args.encoder}-tau{args.tau:g}-batch{args.batch_size}"
    run = run_module.Run(args, variant, data, objects, {"simclr.pth": (model, numbers)})
    if run.finished():
        return run
    state.plan(args.steps)
    draw_views(data.train[:8], run.folder / "views.png")
    pixels = common.to_device(data.train, device)
    bank, bank_labels = data.train[:10000], data.train_labels[:10000].to(device)
    held_out, truth = data.test[:2000], data.test_labels[:2000].to(device)
    fast_model = common.for_training(model, args.compile)
    peak = args.lr * args.batch_size / 256
    colours = {k: torch.tensor(numbers[k], device=device) for k in ("mean", "std")}  # not copied at each step

    for step in run.steps():
        optimizer.param_groups[0]["lr"] = common.cosine(step, args.steps, args.warmup, peak)
        epoch, k = divmod(step - 1, len(pixels) // args.batch_size)  # no image twice: it would be its own negative
        order = common.permutation(len(pixels), args.seed, epoch)
        i = order[k * args.batch_size : (k + 1) * args.batch_size]
        x = common.rows(pixels, i, device)  # (N, C, S, S)
        views = normalise(torch.cat([augment(x), augment(x)]), colours)  # (2N, 3, S, S)
        if step <= args.half_size * args.steps:
            views = F.avg_pool2d(views, 2)  # (2N, 3, S/2, S/2): f takes any size
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            _, z = fast_model(views)  # (2N, feature_dim)
        loss = simclr_loss_vectorized(*z.chunk(2), args.tau, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        run.add("train", loss=loss)
        sampled = run.due(args.sample_every)
        if sampled and data.train_labels.max() > 0:
            run.check()
            h, test_h = (represent(model.f, part, numbers, device, args.bf16) for part in (bank, held_out))
            run.add("test", knn=knn_accuracy(h, bank_labels, test_h, truth))
        if sampled or run.due(args.log_every):
            run.log()
    results = {"train_minutes": run.seconds / 60, **look_inside(model, data, numbers, run.folder, args)}
    run_module.finish(run.folder, run.step, numbers["trained_on"], results)
    return run


def use(args: Namespace, device: torch.device) -> None:
    """What is done with trained weights."""
    numbers, path = common.find_weights("simclr", "simclr.pth", args, any_data=True)
    missing = {"mean", "std", "image_size"} - numbers.keys()
    if missing:
        common.fail(f"these weights lack {', '.join(sorted(missing))}")
    model, channels = build(numbers).to(device), channels_seen(numbers)
    if args.features is not None:
        h = lambda x: {"features": represent(model.f, x, numbers, device, args.bf16)}
        described.write(args.features, args, path, numbers, channels, h)
    if args.eval:
        data = images.load_again(args.data, args.data_dir, numbers, others=True)
        folder = common.output_folder(args, path)
        if images.is_other(data, numbers):
            files.say(f"evaluated on {data}, where the encoder is from {numbers['trained_on']}")
            folder = folder / f"eval-{data.name}"
            folder.mkdir(exist_ok=True)
            train, test = (pixels.with_channels(x, channels) for x in (data.train, data.test))
            data = data._replace(train=train, test=test)
        results = look_inside(model, data, numbers, folder, args)
        run_module.finish(folder, numbers["step"], numbers["trained_on"], results, str(data), path)
    if args.export:
        from plumbing.run.export import export_encoder

        encoder = Encoder(model.f, numbers).cpu().eval()
        export_encoder(encoder, numbers, common.output_folder(args, path))


def main(argv: list[str] | None = None) -> run_module.Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    main()
