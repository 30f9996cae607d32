"""SimCLR: learn image representations without labels, then measure what a frozen encoder knows.

Chen, Kornblith, Norouzi & Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations", arXiv
2002.05709. N images give 2N augmented views. The encoder f maps a view to its representation h, the projection head g
maps h to z. Each view has to find its partner among all other views, with sim the cosine and temperature τ:

    ℓ(i,j) = −log[ exp(sim(z_i,z_j)/τ) / Σ_{m≠i} exp(sim(z_i,z_m)/τ) ],  m = 1 ... 2N                   (eq. 1)
    L = 1/(2N) Σ_k [ℓ(k,k+N) + ℓ(k+N,k)],  k = 1 ... N (the paper's pairs are 2k − 1, 2k)      (algorithm 1)

Differs from the paper (its appendix B.9 has CIFAR-10): ResNet-18. The head of Stanford's CS231n, assignment 3, 512
wide. SGD with momentum instead of LARS, learning rate --lr · batch / 256 times warm-up and cosine, weight decay 5e-4 on
everything. τ 0.2 instead of 0.5.

    python simclr.py                                          # ResNet-18 on CIFAR-10; the same again continues
    python simclr.py --eval                                   # evaluate the newest run and its baselines again
    python simclr.py --features out.npz --data photos/        # use a trained encoder on your own images

Measured on CIFAR-10's test images with --batch-size 128 --warmup 200 --lr 0.12 --half-size 0.9, seed 0, on one thread
of an AMD EPYC. --steps 4500 gave linear 69.6%, kNN 61.2% in 81 minutes. Continued to --steps 5000, 12.8 epochs, it gave
70.1%, 61.7% in 112. --steps 1250 --warmup 100 gave 60.5%, 51.5% in 30. Raw pixels have 41.3%, 30.9%, an untrained
encoder 36.0%, 33.3%.
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
from plumbing.data.batches import permutation
from plumbing.run import plots
from plumbing.run.export import export
from plumbing.run.networks import fingerprint
from plumbing.run.run import Run
from plumbing.system import hardware, ranks
from plumbing.system.files import progress

# Augmentation (section 3) of whole batches x, (B, 3, S, S) in [0, 1]. Each image has random parameters of its own.
# As in appendix B.9 the strength is 0.5, and there is no blur.


def to_rgb(x):
    """Convert uint8 images (B, 1 or 3, S, S) to floats (B, 3, S, S) in [0, 1]."""
    return x.float().expand(-1, 3, -1, -1) / 255


def uniform(n, low, high, device):
    """Draw (n,) numbers between low and high."""
    return low + (high - low) * torch.rand(n, device=device)


def crop_boxes(n, size, device, scale, ratio=(3 / 4, 4 / 3)):
    """Draw (4, n): top, left, height, width. As torchvision does, take the first of ten tries that fits, else all."""
    area = size**2 * uniform(10 * n, *scale, device)
    log_aspect = uniform(10 * n, math.log(ratio[0]), math.log(ratio[1]), device)
    aspect = torch.exp(log_aspect)  # width / height
    sides = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()])
    tries = sides.round().view(2, n, 10)  # height, width
    fits = ((tries > 0) & (tries <= size)).all(0)  # (n, 10)
    first = fits.int().argmax(1).expand(2, n)
    sides = tries.gather(2, first[..., None])[..., 0]  # (2, n)
    sides = torch.where(fits.any(1), sides, float(size))
    corner = torch.rand(2, n, device=device) * (size - sides + 1)
    return torch.cat([corner.floor(), sides])


def resampling(start, length, size):
    """Return matrices (B, size, size) that stretch `length` pixels from `start`, each (B,), over `size`, bilinearly."""
    pixel = torch.arange(size, device=start.device)
    centre = (pixel + 0.5) * length[:, None] / size - 0.5  # (B, size), in pixels of the crop
    centre = centre.clamp(min=0).minimum(length[:, None] - 1)
    distance = (centre + start[:, None])[:, :, None] - pixel  # (B, size, size)
    return F.relu(1 - distance.abs())  # a row has the weights for one output pixel


def crop(x, scale=(0.08, 1.0)):
    """Crop random boxes with a share of the area in `scale`, and resize them to S, by two matrix products."""
    size = x.shape[-1]
    top, left, height, width = crop_boxes(len(x), size, x.device, scale)
    rows = resampling(top, height, size)  # (B, S, S)
    columns = resampling(left, width, size)
    return rows[:, None] @ x @ columns[:, None].mT


def flip(x):
    """Mirror half of the images."""
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def grey(x):
    """Return the luma (B, 1, S, S)."""
    return 0.2989 * x[:, 0:1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:3]


def turn_hue(x, turn):
    """Turn colours by `turn` (B,), -½ to ½ of the colour circle, at constant value and saturation (HSV)."""
    r, g, b = x.unbind(1)  # (B, S, S)
    high = torch.maximum(torch.maximum(r, g), b)
    chroma = high - torch.minimum(torch.minimum(r, g), b)
    # The hue in sixths of the circle: red is 0, green 2, blue 4.
    difference = torch.where(high == r, g - b, torch.where(high == g, b - r, r - g))
    nearest = torch.where(high == r, 0.0, torch.where(high == g, 2.0, 4.0))
    hue = difference / chroma.clamp(min=1e-12) + nearest + 6 * turn[:, None, None]
    # A channel is `high` within a sixth of its own hue, `high - chroma` from two sixths on, and linear in between.
    channel = torch.arange(5.0, 0.0, -2.0, device=x.device).view(1, 3, 1, 1)  # 5, 3, 1
    k = channel + hue[:, None]  # (B, 3, S, S)
    k = k - 6 * (k / 6).floor()
    return high[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def adjust(x, kind, amount):
    """Adjust images as torchvision does: turn_hue, or x blended with black or grey by a factor, amount (B,)."""
    factor = amount.view(-1, 1, 1, 1)
    if kind == "hue":
        return turn_hue(x, amount)
    if kind == "brightness":
        return (x * factor).clamp_(0, 1)
    y = grey(x)
    if kind == "contrast":
        y = y.mean((2, 3), keepdim=True)
    return torch.lerp(y, x, factor).clamp_(0, 1)


ADJUST = ("brightness", "contrast", "saturation", "hue")


def jitter(x, p=0.8):
    """Change brightness, contrast, saturation by up to 0.4 and hue by 0.1, in any order, in place, of a share p."""
    n, device = len(x), x.device
    factors = [uniform(n, 0.6, 1.4, device) for _ in range(3)]
    amounts = [*factors, uniform(n, -0.1, 0.1, device)]
    # The order is drawn on the CPU, which then knows how many images each adjustment gets. No wait for the GPU.
    order = torch.rand(n, 4).argsort(1)
    order[torch.rand(n) >= p] = -1  # no adjustment
    chosen = [(turn == k).nonzero()[:, 0] for turn in order.T for k in range(4)]
    counts = [len(i) for i in chosen]
    chosen = hardware.moved(torch.cat(chosen), device).split(counts)
    for k, i in enumerate(chosen):  # four turns of four adjustments
        x[i] = adjust(x[i], ADJUST[k % 4], amounts[k % 4][i])
    return x


def augment(x: Tensor) -> Tensor:
    """Return a view of each of uint8 images (B, 1 or 3, S, S): (B, 3, S, S) in [0, 1]."""
    x = jitter(flip(crop(to_rgb(x))))
    colourless = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.2
    return torch.where(colourless, grey(x), x)


class Model(nn.Module):
    """Encoder f and projection head g: normalised images (B, 3, S, S) -> (h, z), both of length 1.

    The representation h is (B, 512), or (B, 2048) with resnet50. The projection z is (B, feature_dim). f is
    torchvision's ResNet without its last layer and max pool. Its stem is 3 x 3 with stride 1. g is the course's head.
    mean, std: of the channels, for normalise(). The course normalises images itself.
    """

    def __init__(self, feature_dim=128, encoder="resnet50", mean=(0.0,) * 3, std=(1.0,) * 3):
        super().__init__()
        self.arguments = feature_dim, encoder, mean, std
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
        # Not in the state dict: a weights file has both in its config.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, x: Tensor) -> Tensor:
        """Scale images in [0, 1] so that the training set has mean 0 and variance 1 per channel."""
        x = (x - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.f(x)  # (B, width)
        z = self.g(h)  # (B, feature_dim)
        return F.normalize(h.float(), dim=1), F.normalize(z.float(), dim=1)


def sim(z_i: Tensor, z_j: Tensor) -> Tensor:
    """Return the cosine of two vectors, (D,) or (1, D)."""
    return F.normalize(z_i.flatten(), dim=0) @ F.normalize(z_j.flatten(), dim=0)


def simclr_loss_naive(out_left: Tensor, out_right: Tensor, tau: float) -> Tensor:
    """Return L in nats, pair by pair as it is written, to be read. out_left, out_right: z of both views, (N, D)."""
    N = len(out_left)
    z, total = torch.cat([out_left, out_right]), 0.0
    for k in range(N):
        for i, j in ((k, k + N), (k + N, k)):
            others = [sim(z[i], z[m]) / tau for m in range(2 * N) if m != i]
            # exp alone overflows for a small τ.
            total += torch.logsumexp(torch.stack(others), 0) - sim(z[i], z[j]) / tau
    return total / (2 * N)


def sim_positive_pairs(out_left: Tensor, out_right: Tensor) -> Tensor:
    """Return sim of each positive pair: (N, D), (N, D) -> (N, 1). CS231n's; not called here."""
    return (F.normalize(out_left, dim=1) * F.normalize(out_right, dim=1)).sum(1, keepdim=True)


def compute_sim_matrix(out: Tensor) -> Tensor:
    """Return sim of all pairs: (2N, D) -> (2N, 2N). Under torchrun the columns are those of all ranks."""
    out = F.normalize(out, dim=1)
    return out @ ranks.gathered(out).T


def simclr_loss_vectorized(out_left: Tensor, out_right: Tensor, tau: float, device="cpu") -> Tensor:
    """Return L as a cross-entropy. The logits of view i are its similarities over τ, and its class is its partner.

    Under torchrun this is the mean over the rank's own views. Their negatives are the views of all ranks.
    """
    N = len(out_left)
    out = torch.cat([out_left, out_right]).to(device)  # (2N, D)
    logits = compute_sim_matrix(out) / tau  # (2N, 2N of each rank)
    own = torch.arange(2 * N, device=out.device) + 2 * N * ranks.rank()
    logits = logits.scatter(1, own[:, None], -math.inf)  # without view i itself
    return F.cross_entropy(logits, own.roll(N))


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the learning rate of step 1 ... steps: linear warm-up times a cosine from `peak` to 0."""
    warm = min(1, step / warmup)
    return peak * warm * ((1 + math.cos(math.pi * (step - 1) / steps)) / 2)


def train(args: Namespace, device: torch.device) -> Run:
    data = images.load_images(args.data, "cifar10", args.data_dir, args.image_size)
    config = settings(args, data)
    # args.begin is the content of the file of --weights, or {}. build() loads its weights. common.run has set untyped
    # "model" flags from it, so they agree with config. The optimiser and the step start anew.
    model = build(args.begin | config).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    # last.pth holds model, optimizer and step. Each step seeds its own noise, so a resumed run is the same run.
    run = Run(args, data, {"model": model, "optimizer": optimizer}, {"simclr.pth": (model, config)})
    if run.finished():
        return run
    draw_views(data.train[:8], run.folder / "views.png")
    # An image that is twice in a batch would be its own negative.
    batch = common.batches(data.train, args, device, repeats=False)
    fast_model = common.for_training(model, args.compile)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    peak = args.lr * args.batch_size / 256

    for step in run.steps():
        lr = learning_rate(step, args.steps, args.warmup, peak)
        optimizer.param_groups[0]["lr"] = lr

        # two views of each image
        x = batch(step)  # (N, C, S, S)
        views = model.normalise(torch.cat([augment(x), augment(x)]))  # (2N, 3, S, S)
        if step <= args.half_size * args.steps:
            views = F.avg_pool2d(views, 2)  # (2N, 3, S/2, S/2); f takes any size

        # minimise L
        with autocast:
            _, z = fast_model(views)  # (2N, feature_dim)
        left, right = z.chunk(2)
        loss = simclr_loss_vectorized(left, right, args.tau, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        # log the loss, and at --sample-every what h knows of the labels
        run.add("train", loss=loss)
        if run.due(args.sample_every) and data.train_labels.max() > 0:
            run.add("test", knn=quick_knn(model, data, args.bf16))
    return run.finish(evaluate_run(model, data, run.folder, args), MEANING)


# ------------------------------------------------------------------------------------------------------ measurements

MEANING = {  # how each result is printed: its unit, and which way is better
    "linear": "linear accuracy {:.1%} on frozen features, the higher the better",
    "linear_few": "linear accuracy {:.1%} from few labels",
    "knn": "kNN accuracy {:.1%}, the higher the better",
    "untrained_linear": "linear accuracy {:.1%} before training",
}


def prepare(model, x) -> Tensor:
    """Convert uint8 images (B, C, S, S) to what the network takes, on its device, without augmentation."""
    return model.normalise(to_rgb(x.to(model.mean.device)))


@common.in_eval_mode
def represent(model, x, bf16) -> Tensor:
    """Return h = f(x) of uint8 images: float32 (N, width), not scaled to length 1."""
    autocast = torch.autocast(model.mean.device.type, torch.bfloat16, enabled=bf16)
    h, n = [], max(1, 250 * 32**2 // x.shape[-1] ** 2)
    for batch in progress(x.split(n), "features", math.ceil(len(x) / n)):
        with autocast:
            h.append(model.f(prepare(model, batch)).float())
    return torch.cat(h)


def knn_accuracy(bank, labels, h, truth, k=200, tau=0.1) -> float:
    """Return the share of h (M, D) for whose class, truth (M,), the k nearest by cosine of the bank (N, D) vote.

    Each votes for its label, labels (N,), with weight exp(sim/τ) (Wu et al. 2018, section 3.4).
    """
    bank = F.normalize(bank, dim=1)
    n_classes, right = int(labels.max()) + 1, 0
    for batch, y in zip(F.normalize(h, dim=1).split(500), truth.split(500), strict=True):
        similar, i = (batch @ bank.T).topk(min(k, len(bank)))  # (B, k)
        votes = similar.new_zeros(len(batch), n_classes)
        votes.scatter_add_(1, labels[i], (similar / tau).exp())
        right += (votes.argmax(1) == y).sum().item()
    return right / len(h)


def quick_knn(model, data, bf16) -> float:
    """Return the kNN accuracy of 2,000 held-out images with a bank of 10,000, for the curve during training."""
    bank = represent(model, data.train[:10000], bf16)
    h = represent(model, data.test[:2000], bf16)
    labels, truth = data.train_labels[:10000].to(h.device), data.test_labels[:2000].to(h.device)
    return knn_accuracy(bank, labels, h, truth)


def logistic_regression(h, labels, l2) -> nn.Linear:
    """Fit a linear classifier of h (N, D): least mean cross-entropy + l2/2 ‖W‖², by L-BFGS."""
    layer = nn.Linear(h.shape[1], int(labels.max()) + 1).to(h.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, history_size=10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(h), labels) + l2 / 2 * (layer.weight**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer.requires_grad_(False)


def linear_accuracy(h, labels, test_h, truth) -> float:
    """Return the accuracy of logistic regression on standardised features. l2 is chosen on a fifth of the labels."""
    mean, std = h.mean(0), h.std(0)
    std = torch.where(std > 1e-4, std, 1.0)
    h, test_h = (h - mean) / std, (test_h - mean) / std

    def accuracy(layer, h, labels):
        return (layer(h).argmax(1) == labels).float().mean().item()

    n, tried = len(h) - len(h) // 5, {}
    for l2 in progress((1e-3, 1e-2, 1e-1), "linear classifier", 3):
        tried[l2] = accuracy(logistic_regression(h[:n], labels[:n], l2), h[n:], labels[n:])
    best_l2 = max(tried, key=tried.get)
    return accuracy(logistic_regression(h, labels, best_l2), test_h, truth)


def accuracies(h, test_h, data, few) -> dict[str, float]:
    """Return held-out accuracies of features (N, D), (M, D). linear_few has the labels of h[few] only."""
    y, truth = data.train_labels.to(h.device), data.test_labels.to(h.device)
    return {
        "knn": knn_accuracy(h, y, test_h, truth),
        "linear": linear_accuracy(h, y, test_h, truth),
        "linear_few": linear_accuracy(h[few], y[few], test_h, truth),
    }


def draw_views(x, path):
    """Draw uint8 images in a row, and two views of each below it."""
    torch.manual_seed(0)
    common.save_grid(torch.cat([to_rgb(x), augment(x), augment(x)]), path, len(x))


def pixels_as_features(x, device) -> Tensor:
    """Return uint8 images (N, C, S, S) as features (N, D), at 32 x 32 pixels or less."""
    return F.adaptive_avg_pool2d(x.to(device).float() / 255, min(32, x.shape[-1])).flatten(1)


@torch.no_grad()
def untrained_twin(model, x, seed) -> Model:
    """Return the same network untrained, but with BatchNorm's statistics of uint8 images x: the harder baseline."""
    torch.manual_seed(seed + 1)
    twin = Model(*model.arguments)
    twin.to(model.mean.device, memory_format=torch.channels_last)
    for m in twin.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.momentum = None  # the mean over all batches
    for batch in x.split(250):
        twin(prepare(twin, batch))
    return twin


def evaluate_run(model, data, folder: Path, args) -> dict[str, object]:
    """Write pictures into the folder. Return held-out accuracies of frozen encoder, untrained encoder and pixels."""
    print("evaluating on held-out images: kNN, linear classifiers, baselines ...", flush=True)
    before = fingerprint(model.f)
    both = data.train, data.test
    h, test_h = [represent(model, x, args.bf16) for x in both]
    plots.neighbours(h, test_h, data, folder / "neighbours.png")
    points = F.normalize(test_h[:2000], dim=1).cpu().numpy()
    title = f"h of {len(points):,} test images"
    plots.codes(points, data.test_labels[:2000], data.classes, title, folder / "features.png")
    results = {"test_images": len(data.test), "encoder_sha256": before}
    if data.train_labels.max() > 0:
        few = permutation(len(h), 0, 0)[: max(2, round(args.labels * len(h)))]
        results |= {"train_images": len(h), "few_labels": len(few)}
        results |= accuracies(h, test_h, data, few)
        twin = untrained_twin(model, data.train[:2500], args.seed)
        baselines = {
            "untrained": [represent(twin, x, args.bf16) for x in both],
            "pixels": [pixels_as_features(x, h.device) for x in both],
        }
        for name, features in baselines.items():
            scores = accuracies(*features, data, few)
            results |= {f"{name}_{key}": value for key, value in scores.items()}
    else:
        print("there is one class only: no accuracy can be measured")
    after = fingerprint(model.f)
    print(f"frozen encoder: {before} before, {after} after evaluation")
    if after != before:
        raise AssertionError("evaluation has changed the encoder: its figures are void")
    return results


def settings(args: Namespace, data) -> dict:
    """Return the config: all that rebuilds the model, and τ. mean and std are those of the training images."""
    n, image_size = len(data.train), data.train.shape[-1]
    if not 2 <= args.batch_size <= n:
        common.fail(f"--batch-size {args.batch_size} does not suit {n} training images. Use at least 2, at most {n}.")
    if args.half_size and image_size < 16:  # maps of one pixel have no gradient but noise
        wrong = f"Half of {image_size} pixels is less than the 8 that the network needs"
        common.fail(f"{wrong}. Leave out --half-size, or use --image-size 16 or more.")
    every = max(1, image_size // 32)
    x = data.train[:5000, :, ::every, ::every].float() / 255
    mean = x.mean((0, 2, 3)).expand(3).tolist()
    std = x.std((0, 2, 3)).clamp(min=1e-3).expand(3).tolist()
    config = {"encoder": args.encoder, "feature_dim": args.feature_dim, "image_size": image_size, "tau": args.tau}
    config |= {"mean": mean, "std": std}
    # Weights that are trained further keep their mean and std.
    return config | {name: args.begin[name] for name in ("mean", "std") if name in args.begin}


@common.or_fail
def build(config: dict) -> Model:
    """Return the model of a config, or of a weights file, whose weights are loaded then."""
    return Model(*(config[key] for key in ("feature_dim", "encoder", "mean", "std")))


# -------------------------------------------------------------------------------------------- use of trained weights


class Encoder(nn.Module):
    """Exported encoder: images (B, 3, S, S) in [0, 1] -> h (B, width), of length 1."""

    def __init__(self, model: Model):
        super().__init__()
        self.f = model.f
        self.register_buffer("mean", model.mean)
        self.register_buffer("std", model.std)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.f((x - self.mean) / self.std), dim=1)


def export_encoder(model: Model, config: dict, folder: Path) -> None:
    """Write SimCLR_encoder.pth and .pt2, and the weights of f under the names of torchvision's ResNet."""
    encoder = Encoder(model).cpu().eval()
    x = torch.rand(3, 3, config["image_size"], config["image_size"])
    ranges = "images (B, 3, S, S) in [0, 1] -> h, of length 1"
    export(encoder, x, folder / "SimCLR_encoder.pth", ranges)

    name = config["encoder"]
    path = folder / f"{name}.pth"
    theirs = getattr(torchvision.models, name)().state_dict()
    names = [key for key in theirs if not key.startswith("fc.")]  # in the order of f's
    common.save(dict(zip(names, model.f.state_dict().values(), strict=True)), path)
    print(f"{path}: torchvision's names for {name}; conv1 is {model.f[0]}, there is no maxpool, fc")


def use(args: Namespace, device: torch.device) -> None:
    """Do what --features, --eval and --export ask for."""
    trained = common.Trained(args, any_data=True)
    model = build(trained.config).to(device)
    channels = 1 if len(model.mean.unique()) == 1 else 3  # a grey encoder has one mean
    if args.features is not None:
        describe = lambda x: {"features": represent(model, x, args.bf16)}
        trained.write_npz(args.features, describe, channels)
    if args.eval:
        data, folder = trained.data(others=True), trained.folder
        if images.is_other(data, trained.config):
            print(f"evaluated on {data}, where the encoder is from {trained.config['trained_on']}")
            folder = folder / f"eval-{data.name}"
            folder.mkdir(exist_ok=True)
            x, test_x = (pixels.with_channels(x, channels) for x in (data.train, data.test))
            data = data._replace(train=x, test=test_x)
        trained.finish(evaluate_run(model, data, folder, args), MEANING, folder, data)
    if args.export:
        export_encoder(model, trained.config, trained.folder)


# ------------------------------------------------------------------------------------------------- the command line


def get_args(argv: list[str] | None = None) -> Namespace:
    lr = "learning rate for a batch of 256, to which it is proportional"
    steps = 9800  # a hundred epochs of CIFAR-10
    p = common.parser("simclr", "simclr.pth", __doc__, steps, batch_size=512, lr=0.03, lr_help=lr)
    add = p.group("model")
    add("--encoder", choices=["resnet18", "resnet50"], default="resnet18", help="f, without its last layer")
    add("--feature-dim", type=common.count, default=128, help="dimensions of z")
    add("--image-size", type=common.number(int, 8, 1024), help="side in pixels (default: 32, or 64 for large ones)")
    add = p.group("optimisation")
    add("--tau", type=common.positive, default=0.2, help="temperature τ of the loss; CS231n: 0.5")
    half_size = "share of the steps, the first ones, with views of half the side: four times faster"
    add("--half-size", type=common.number(float, 0, 1), default=0.0, help=half_size)
    add("--warmup", type=common.count, default=200, help="steps in which --lr is reached")
    add = p.group("trained weights")
    labels = "share of the labels for linear_few"
    add("--labels", type=common.number(float, 0, 1, above=True), default=0.1, help=labels)
    add("--eval", action="store_true", help="do not train: evaluate a run")
    features = "do not train: write h of the images of --data, not normalised"
    add("--features", metavar="FILE.npz", help=features)
    add("--export", action="store_true", help="do not train: write f for other programs")
    return p.parse(argv, labels=("train", "eval"))


def main(argv: list[str] | None = None) -> Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    common.program(main)
