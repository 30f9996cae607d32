"""Character-level GRU: learn a text, and go on writing it one character at a time.

Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", arXiv 1406.1078. Each layer computes

    z = σ(x W_xz + h W_hz + b_z)    r = σ(x W_xr + h W_hr + b_r)                                    (eq. 6, 5)
    g = tanh(x W_xg + (r ⊙ h) W_hg + b_g)    h' = z ⊙ h + (1 − z) ⊙ g                              (eq. 8, 7)

and the last one predicts the next character: p(c) = softmax(dropout(h') W_hy + b_y). The loss is −log p of the
character that came, in nats. (nn.GRU is another cell: it multiplies r after the product with W_hg.)

Differs from the paper: its hidden unit alone (section 2.3), no encoder and decoder; biases, layers, dropout on each
layer's output, Adam, weights averaged over steps.

    python char_rnn.py                                          # tiny Shakespeare; the same again continues
    python char_rnn.py --generate --temperature 0.5             # works at once, with the weights that ship
    python char_rnn.py --data my.txt --h-dim 256 --steps 2000   # your own text
    python char_rnn.py --data texts/ --dropout 0.2 --steps 8000 # a folder; of Shakespeare's works: weights/char_rnn.pth

Measured on tiny Shakespeare's last tenth, statefully, in nats per character (best averaged weights, seed 0, two cores
of an AMD EPYC (Zen 5), bf16): the first command 1.548 after 106 seconds (1,000 steps), 1.436 after 9 minutes (5,000).
"""

import copy
import itertools
import math
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

import common
from plumbing.data import texts
from plumbing.run import run as run_module
from plumbing.system import files, ranks

WARMUP = 100  # steps in which the learning rate of the cosine schedule rises to --lr


def get_args(argv: list[str] | None = None) -> Namespace:
    names = "tinyshakespeare, shakespeare, python"
    p = common.parser(__doc__, steps=6000, batch_size=32, lr=3e-3, names=names, makes="text")
    add = p.group("data")
    encoding_help = "of texts that are read, such as cp1252 (default: what a byte order mark says, else UTF-8)"
    add("--encoding", type=texts.encoding_name, metavar="NAME", help=encoding_help)
    add("--min-count", type=common.number(int, 1), default=1, help="remove characters that occur less often")
    add("--held-out", type=common.number(float, 0, below=1), default=0.1, help="part of the text, its end, not trained")
    add = p.group("model")
    add("--h-dim", type=common.number(int, 1), default=512, help="hidden units per layer")
    add("--n-layers", type=common.number(int, 1, below=101), default=2, help="layers")
    add("--dropout", type=common.number(float, 0, below=1), default=0.4, help="on every layer's output")
    add = p.group("optimisation")
    add("--seq-len", type=common.number(int, 1), default=64, help="steps of truncated backpropagation through time")
    add("--clip", type=common.number(float, 0, above=True), default=1.0, help="largest norm of the gradient")
    add("--lr-schedule", choices=["cosine", "plateau"], default="cosine", help="to 0 at --steps, or halved on plateaus")
    add("--ema", type=common.number(float, 0, below=1), default=0.998, help="decay of the averaged weights; 0 is none")
    add("--eval-every", type=common.number(int, 1), default=500, help="steps between measurements of held-out loss")
    add = p.group("run")
    stopping_help = "stop after so many measurements without a new best; 0: never"
    add("--early-stopping", type=common.number(int, 0), default=0, help=stopping_help)
    add = p.group("trained weights")
    start_help = r"what --generate goes on from; \n is a line break (the default) where no \ is known"
    add("--start", help=start_help)
    add("--n-chars", type=common.number(int, 1), default=1000, help="characters that --generate prints, with the start")
    samples_help = "texts side by side; with another number, as with another seed, others"
    add("--n-samples", type=common.number(int, 1), default=1, help=samples_help)
    add("--temperature", type=common.number(float, 0), default=1.0, help="below 1 is more careful; 0: the likeliest")
    add("--top-k", type=common.number(int, 1), help="draw from the k likeliest characters only")
    top_p_help = "and from the likeliest that make up this probability"
    add("--top-p", type=common.number(float, 0, above=True, below=1), help=top_p_help)
    add("--score", metavar="FILE", help="do not train: print nats and bits per character of a text")
    for_generate = ("start", "n_chars", "n_samples", "temperature", "top_k", "top_p")
    return common.parse_args(p, argv, early_stopping=("train",), **dict.fromkeys(for_generate, ("generate",)))


def char_maps(text: str) -> tuple[dict[str, int], dict[int, str]]:
    """(char_to_idx, idx_to_char) of the text's characters, in sorted order."""
    chars = list(texts.char_counts(text))
    return {c: i for i, c in enumerate(chars)}, dict(enumerate(chars))


def remove_chars(text: str, chars_to_remove: list[str]) -> tuple[str, int]:
    """(text without these characters, how many were removed)."""
    clean = texts.without(text, chars_to_remove)
    return clean, len(text) - len(clean)


def encode(text: str, char_to_idx: dict[str, int]) -> Tensor:
    """Indices (N,), in as few bytes as hold them: uint8, int16 or int32. Raises KeyError for what is not in the map."""
    return torch.from_numpy(texts.indices(text, char_to_idx))


def chars_to_onehot(text: str, char_to_idx: dict[str, int]) -> Tensor:
    """int8 (N, V): row n is 1 at the index of character n. Technion's: training takes the indices."""
    idx = encode(text, char_to_idx).long()
    return torch.zeros(len(idx), len(char_to_idx), dtype=torch.int8).scatter_(1, idx[:, None], 1)


def onehot_to_chars(embedded: Tensor, idx_to_char: dict[int, str]) -> str:
    """The text of (N, V) one-hot rows. Technion's; not called here."""
    return "".join(idx_to_char[i] for i in embedded.argmax(1).tolist())


def chars_to_labelled_samples(text: str, char_to_idx: dict[str, int], seq_len: int, device="cpu"):
    """(samples (N, S, V) one-hot int8, labels (N, S) int64, one character ahead), N = floor((len − 1) / S).

    Technion's: training takes stream_batch.
    """
    n = (len(text) - 1) // seq_len
    samples = chars_to_onehot(text[: n * seq_len], char_to_idx).view(n, seq_len, len(char_to_idx))
    labels = encode(text[1 : n * seq_len + 1], char_to_idx).long().view(n, seq_len)
    return samples.to(device), labels.to(device)


class SequenceBatchSampler(torch.utils.data.Sampler):
    """Indices such that sample k of batch j + 1 continues sample k of batch j: batch_size streams, side by side.

    What does not fill a last batch is left out. That is why batches are not shuffled: the hidden state goes on.
    """

    def __init__(self, dataset, batch_size: int) -> None:
        self.batches, self.batch_size = len(dataset) // batch_size, batch_size

    def __iter__(self) -> Iterator[int]:
        return iter([k * self.batches + j for j in range(self.batches) for k in range(self.batch_size)])

    def __len__(self) -> int:
        return self.batches * self.batch_size


def stream_batch(ids: Tensor, batch_size: int, seq_len: int, step: int, seed: int) -> tuple[Tensor, Tensor, bool]:
    """(x, y, first) for step 1, 2, ...: int64 characters (B, S), those that come next, whether an epoch begins.

    The batches of SequenceBatchSampler without its memory. The characters that fill no last batch are left out, partly
    before and partly after the streams, where epochs differ: so their sequences end at different characters.
    """
    batches = (len(ids) - 1) // seq_len // batch_size
    epoch, j = divmod(step - 1, batches)
    length = batches * seq_len  # of a stream
    start = int(np.random.default_rng((seed, epoch)).integers(len(ids) - batch_size * length))
    x, y = (ids[i : i + batch_size * length].view(batch_size, length) for i in (start, start + 1))
    now = slice(j * seq_len, (j + 1) * seq_len)
    return x[:, now].long(), y[:, now].long(), j == 0


def gru_step(a: Tensor, h: Tensor, U_zr: Tensor, U_g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of the cell: (h', [z r], r ⊙ h, g) from the inputs' share a = x [W_xz W_xr W_xg] + [b_z b_r b_g].

    a: (B, 3H); h, h': (B, H); U_zr = [W_hz W_hr]: (H, 2H); U_g = W_hg. Where a is bfloat16, h stays float32: it is
    added to at every step, and rounding it would add up.
    """
    H, h_low = h.shape[1], h.to(a.dtype)
    zr = torch.addmm(a[:, : 2 * H], h_low, U_zr).sigmoid_()  # (B, 2H)
    z, r = zr.chunk(2, 1)
    rh = r * h_low
    g = torch.addmm(a[:, 2 * H :], rh, U_g).tanh_()
    return torch.addcmul(g, z, h - g), zr, rh, g  # z ⊙ h + (1 − z) ⊙ g


class GRUSequence(torch.autograd.Function):
    """The cell over S steps: a (S, B, 3H), h (B, H) -> states (S, B, H), last state (B, H).

    Autograd could go backward through the loop of forward. Written by hand, each weight's gradient is one product over
    all steps instead of a sum of S small ones, and what does not depend on later steps is computed for all at once.
    """

    @staticmethod
    def forward(ctx, a: Tensor, h: Tensor, U_zr: Tensor, U_g: Tensor) -> tuple[Tensor, Tensor]:
        hs, zrs, rhs, gs = [h], [], [], []
        for a_t in a:
            h, zr, rh, g = gru_step(a_t, h, U_zr, U_g)
            hs.append(h)
            zrs.append(zr)
            rhs.append(rh)
            gs.append(g)
        hs = torch.stack(hs).to(a.dtype)  # (S + 1, B, H)
        ctx.save_for_backward(hs, torch.stack(zrs), torch.stack(rhs), torch.stack(gs), U_zr, U_g)
        return hs[1:], h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_states: Tensor, dh: Tensor) -> tuple[Tensor, ...]:
        hs, zr, rh, g, U_zr, U_g = ctx.saved_tensors
        h, (z, r), H = hs[:-1], zr.chunk(2, -1), g.shape[-1]
        slope_g = (1 - z) * (1 - g * g)  # from h' = z ⊙ h + (1 − z) ⊙ g, through tanh
        slope_zr = torch.cat([h - g, h], -1) * zr * (1 - zr)  # dh'/dz = h − g, d(r ⊙ h)/dr = h, through σ
        da = torch.empty(*g.shape[:2], 3 * H, dtype=g.dtype, device=g.device)
        for t in reversed(range(len(g))):
            dh = dh + d_states[t]
            dh_low = dh.to(g.dtype)
            da_g = torch.mul(dh_low, slope_g[t], out=da[t, :, 2 * H :])
            d_rh = da_g @ U_g.t()
            da_zr = torch.mul(torch.cat([dh_low, d_rh], 1), slope_zr[t], out=da[t, :, : 2 * H])
            dh = torch.addcmul(da_zr @ U_zr.t(), d_rh, r[t]) + dh * z[t]  # through [z r], r ⊙ h, and z ⊙ h
        h, rh, d = h.flatten(0, 1), rh.flatten(0, 1), da.flatten(0, 1)  # (S·B, ...)
        return da, dh, h.t() @ d[:, : 2 * H], rh.t() @ d[:, 2 * H :]


class GRULayer(nn.Module):
    """One layer; its nine parameters are those of the equations.

    (S, B, in_dim) or indices (S, B), and h (B, H) -> states (S, B, H), the last of them (B, H).
    """

    def __init__(self, in_dim: int, h_dim: int) -> None:
        super().__init__()

        def uniform() -> nn.Parameter:
            return nn.Parameter(torch.empty(in_dim, h_dim).uniform_(-1, 1) / in_dim**0.5)

        def orthogonal() -> nn.Parameter:
            return nn.Parameter(nn.init.orthogonal_(torch.empty(h_dim, h_dim)))

        def bias(value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((h_dim,), value))

        self.W_xz, self.W_xr, self.W_xg = uniform(), uniform(), uniform()
        self.W_hz, self.W_hr, self.W_hg = orthogonal(), orthogonal(), orthogonal()
        self.b_z, self.b_r, self.b_g = bias(1.0), bias(0.0), bias(0.0)  # z begins at σ(1) = 0.73: it remembers

    def fused(self, dtype: torch.dtype) -> list[Tensor]:
        """[W_xz W_xr W_xg] (in_dim, 3H), [b_z b_r b_g] (3H,), [W_hz W_hr] (H, 2H), W_hg (H, H)."""
        W_x, b = torch.cat([self.W_xz, self.W_xr, self.W_xg], 1), torch.cat([self.b_z, self.b_r, self.b_g])
        return [w.to(dtype) for w in (W_x, b, torch.cat([self.W_hz, self.W_hr], 1), self.W_hg)]

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        device, dtype = x.device.type, self.W_xz.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        W_x, b, U_zr, U_g = self.fused(dtype)
        # The inputs' share of all steps in one product; a one-hot row times a matrix is a row of it.
        a = F.linear(x.to(dtype), W_x.t(), b) if x.ndim == 3 else F.embedding(x, W_x + b)  # (S, B, 3H)
        return GRUSequence.apply(a, h, U_zr, U_g)


class MultilayerGRU(nn.Module):
    """n_layers GRU layers and a linear layer on top; dropout on every layer's output."""

    def __init__(self, in_dim: int, h_dim: int, out_dim: int, n_layers: int, dropout: float = 0) -> None:
        super().__init__()
        self.in_dim, self.h_dim, self.out_dim, self.n_layers, self.dropout = in_dim, h_dim, out_dim, n_layers, dropout
        self.layers = nn.ModuleList(GRULayer(h_dim if k else in_dim, h_dim) for k in range(n_layers))
        self.W_hy = nn.Parameter(torch.empty(h_dim, out_dim).uniform_(-1, 1) / h_dim**0.5)
        self.b_y = nn.Parameter(torch.zeros(out_dim))

    def forward(self, input: Tensor, hidden_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (B, S, O) of the next characters, and the last hidden state (B, L, H).

        input: (B, S, V), one-hot, or indices (B, S). hidden_state: (B, L, H); None is zeros.
        """
        if hidden_state is None:
            hidden_state = self.W_hy.new_zeros(len(input), self.n_layers, self.h_dim)
        x = input.transpose(0, 1)  # (S, B) or (S, B, V)
        last = []
        for layer, h in zip(self.layers, hidden_state.unbind(1), strict=True):
            x, h = layer(x, h)  # (S, B, H), (B, H)
            last.append(h)
            if self.training and self.dropout:  # F.dropout draws its mask 1.4 to 4 times slower on a CPU
                u = torch.rand(x.shape, device=x.device)
                x = x * ((u >= self.dropout).to(x.dtype) / (1 - self.dropout))
        scores = F.linear(x, self.W_hy.t(), self.b_y)  # (S, B, O)
        return scores.transpose(0, 1).contiguous(), torch.stack(last, 1)


class OneStep:
    """A trained model for one character at a time: index (B,), hidden or None -> scores (B, O), hidden: L of (B, H)."""

    def __init__(self, model: MultilayerGRU) -> None:
        weights = [layer.fused(model.W_hy.dtype) for layer in model.layers]
        self.table = (weights[0][0] + weights[0][1]).detach()  # (V, 3H)
        self.layers = [[w.detach() for w in layer] for layer in weights]
        self.W_hy, self.b_y = model.W_hy.detach(), model.b_y.detach()

    def __call__(self, x: Tensor, hidden: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        last = []
        if hidden is None:
            hidden = [self.W_hy.new_zeros(len(x), len(self.W_hy))] * len(self.layers)
        for k, (W_x, b, U_zr, U_g) in enumerate(self.layers):
            a = torch.addmm(b, last[-1], W_x) if k else self.table[x]  # (B, 3H)
            last.append(gru_step(a, hidden[k], U_zr, U_g)[0])
        return torch.addmm(self.b_y, last[-1], self.W_hy), last


def one_step(model: nn.Module, n_chars: int) -> Callable:
    """The same of any model with forward((B, S, V) one-hot floats, hidden) -> ((B, S, O) scores, hidden)."""
    if isinstance(model, MultilayerGRU):
        return OneStep(model)

    def step(x: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        scores, hidden = model(F.one_hot(x, n_chars).float()[:, None], hidden)
        return scores[:, -1], hidden

    return step


def hot_softmax(y: Tensor, dim: int = 0, temperature: float = 1.0) -> Tensor:
    """softmax(y / T) along dim of scores y of any shape; for T = 0 its limit, 1 at the largest. Raises ValueError for a
    negative T."""
    if temperature < 0:
        raise ValueError(f"temperature {temperature} is negative")
    if temperature < torch.finfo(y.dtype).tiny:
        return torch.zeros_like(y).scatter_(dim, y.argmax(dim, keepdim=True), 1.0)
    return torch.softmax((y - y.amax(dim, keepdim=True)) / temperature, dim)


def keep_likely(p: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Probabilities (..., V) with 0 for all but the k likeliest, and but the fewest likeliest whose sum reaches top_p.

    The second is nucleus sampling: Holtzman et al. 2019, arXiv 1904.09751. What is left need not sum to 1.
    """
    if top_k:
        p = p.where(p >= p.topk(min(top_k, p.shape[-1])).values[..., -1:], 0)
    if top_p:
        values, order = p.sort(descending=True)
        before = values.cumsum(-1) - values
        p = p.scatter(-1, order, values.where(before < top_p * values.sum(-1, keepdim=True), 0))
    return p


@torch.inference_mode()
def continuation(
    step: Callable,
    start: list[int],
    device: torch.device,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    n: int = 1,
) -> Iterator[list[int]]:
    """Draw what follows the indices `start`, one index of each of n texts at a time, without end; step: of one_step().

    The n texts share each reading of the weights, which limits the speed of one.
    """
    hidden = None
    for i in start:
        scores, hidden = step(torch.full((n,), i, device=device), hidden)
    while True:
        p = keep_likely(hot_softmax(scores, 1, temperature), top_k, top_p)  # (n, V)
        x = (p / torch.empty_like(p).exponential_()).argmax(1)  # largest with probability p, as torch.multinomial draws
        yield x.tolist()
        scores, hidden = step(x, hidden)


@common.in_eval_mode
def generate_from_model(model: nn.Module, start_sequence: str, n_chars: int, char_maps, T: float) -> str:
    """start_sequence and what the model goes on with, n_chars in all; char_maps is (char_to_idx, idx_to_char).

    model: MultilayerGRU, or any with forward(one-hot floats (1, S, V), hidden or None) -> (scores (1, S, V), hidden).
    Raises ValueError for an empty start, AssertionError (the course's) for one that leaves nothing to generate.
    """
    char_to_idx, idx_to_char = char_maps
    if not start_sequence:
        raise ValueError("start_sequence is empty: the first character is given, not drawn")
    if len(start_sequence) >= n_chars:
        raise AssertionError(f"start_sequence has {len(start_sequence)} characters: n_chars {n_chars} must be larger")
    step, device = one_step(model, len(char_to_idx)), next(model.parameters()).device
    drawn = continuation(step, [char_to_idx[c] for c in start_sequence], device, T)
    return start_sequence + "".join(idx_to_char[i] for (i,) in itertools.islice(drawn, n_chars - len(start_sequence)))


@common.builder
def build(numbers: dict) -> MultilayerGRU:
    """The model that the flags describe, or that a weights file describes and holds."""
    V = len(numbers["chars"])
    return MultilayerGRU(V, numbers["h_dim"], V, numbers["n_layers"], numbers["dropout"])


@common.in_eval_mode
def evaluate(model: MultilayerGRU, ids: Tensor, warm: int = 256) -> float:
    """Mean −log p, in nats, of each of ids[1:] given all characters before it, without dropout.

    A long text is cut into at most 64 streams that run side by side. Each begins `warm` characters early, to have a
    hidden state when its part comes; on tiny Shakespeare the result is that of one long stream to 2e-7 nats.
    """
    n, device = len(ids) - 1, next(model.parameters()).device
    n_streams = max(1, min(64, n // (4 * warm)))
    length = math.ceil(n / n_streams)
    own = torch.arange(n_streams)[:, None] * length  # (K, 1): the position of the first target that is stream k's own
    end = (own + length).clamp(max=n)
    start = (own - warm).clamp(min=0)
    total, hidden = 0.0, None
    for done in range(0, int((end - start).max()), 128):
        position = start + done + torch.arange(128)  # (K, 128)
        scored = ((own <= position) & (position < end)).to(device)
        position = position.clamp(max=n - 1)
        logits, hidden = model(ids[position].to(device).long(), hidden)
        targets = ids[position + 1].to(device).long()
        total += F.cross_entropy(logits.float()[scored], targets[scored], reduction="sum").item()
    return total / n


@common.in_eval_mode
def evaluate_windows(model: MultilayerGRU, ids: Tensor, length: int = 256) -> float:
    """The same in windows that begin with nothing read, one after the other, as models with a context are measured."""
    length = min(length, len(ids) - 1)
    n, device = (len(ids) - 1) // length, next(model.parameters()).device
    x, y = (part[: n * length].view(n, length).to(device).long() for part in (ids[:-1], ids[1:]))
    total, parts = 0.0, zip(x.split(64), y.split(64), strict=True)
    for part, truth in files.progress(parts, "windows", math.ceil(n / 64)):
        total += F.cross_entropy(model(part)[0].flatten(0, 1).float(), truth.flatten(), reduction="sum").item()
    return total / y.numel()


def train(args: Namespace, device: torch.device) -> run_module.Run:
    args, begun = common.begin_with("char_rnn", "char_rnn.pth", args, ("h_dim", "n_layers"))
    text = texts.load_text(args.data, args.data_dir, args.min_count, args.held_out, args.encoding, begun.get("chars"))
    ids, need = text.train.to(device), args.batch_size * args.seq_len + 1
    if len(ids) < need:
        batch = f"one batch of {args.batch_size} sequences needs {need:,}: make --batch-size or --seq-len smaller"
        common.fail(f"{len(ids):,} characters to train on; {batch}")

    numbers = {"h_dim": args.h_dim, "n_layers": args.n_layers, "dropout": args.dropout, "chars": text.chars}
    numbers |= {"data": args.data or text.name, "trained_on": f"{text}{text.note}"}
    model = build(begun | numbers).to(device)
    averaged = copy.deepcopy(model)
    best = copy.deepcopy(model)  # the averaged weights with the lowest held-out loss so far
    optimizer = torch.optim.Adam(model.parameters(), args.lr, betas=(0.9, 0.99), fused=device.type != "mps")
    schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=2)  # for --lr-schedule plateau
    state = run_module.State(steps=args.steps, hidden=None, measured={}, waited=0)
    objects = {"model": model, "averaged": averaged, "best": best, "optimizer": optimizer, "schedule": schedule}
    variant = f"char_rnn-{text.name}-{args.n_layers}x{args.h_dim}"
    weights = {"char_rnn.pth": (averaged, numbers)}  # the latest, until there is a best
    run = run_module.Run(args, variant, text, objects | {"state": state}, weights)
    if state["measured"]:
        run.weights["char_rnn.pth"] = (best, numbers | state["measured"])
    if run.finished():
        return run
    patience = args.early_stopping or math.inf
    run.ending = state["waited"] >= patience
    if run.ending and run.evaluated:
        print(f"{run.folder} was stopped early at step {run.step}: a larger --early-stopping, or 0, goes on")
        return run
    if args.lr_schedule == "cosine":
        state.plan(args.steps)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)
    forward = common.for_training(model, args.compile)

    for step in run.steps():
        x, y, first = stream_batch(ids, args.batch_size, args.seq_len, step, args.seed)  # (B, S)
        x, y = ranks.share(x), ranks.share(y)
        if args.lr_schedule == "cosine":
            optimizer.param_groups[0]["lr"] = common.cosine(step, args.steps, WARMUP, args.lr)
        hidden = None if first else ranks.share(state["hidden"].to(device))
        with autocast:
            logits, hidden = forward(x, hidden)  # (B, S, V), (B, L, H)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        common.average(averaged, model, args.ema, step)
        state["hidden"] = ranks.gathered(hidden.detach())  # truncated: the next step's gradient ends here

        run.add("train", nats=loss)
        measure_now = run.due(args.eval_every)
        if measure_now:
            with autocast:
                nats = ranks.from_first(evaluate(averaged, text.test))
            run.add("test", nats=nats)
            if args.lr_schedule == "plateau":
                schedule.step(nats)
            state["waited"] += 1
            if nats < state["measured"].get("nats", math.inf):
                state["measured"], state["waited"] = {"step": step, "nats": nats}, 0
                best.load_state_dict(averaged.state_dict())
                run.weights["char_rnn.pth"] = (best, numbers | state["measured"])
        if measure_now or run.due(args.log_every):
            run.log()
        if run.due(args.sample_every):
            sample = generate_from_model(averaged, text.chars[0], 500, char_maps(text.chars), T=0.8)
            run.save_text("samples", sample)
        if state["waited"] >= patience:
            files.say(f"stopped early at step {step}: {state['waited']} measurements without a new best")
            run.ending = True
    shown, _ = run.weights["char_rnn.pth"]
    nats = evaluate(shown, text.test)  # in float32
    results = {"train_minutes": run.seconds / 60, "nats": nats, "bits": nats / math.log(2)}
    results["nats_in_windows_of_256"] = evaluate_windows(shown, text.test)
    results["best_step"] = state["measured"].get("step", run.step)
    run_module.finish(run.folder, run.step, numbers["trained_on"], results)
    return run


def written(args: Namespace, model: MultilayerGRU, chars: str) -> Iterator[str]:
    """--generate: the first text piece by piece, then those that were drawn beside it, at most 64 side by side."""
    char_to_idx, idx_to_char = char_maps(chars)
    start = texts.start_of_writing(args.start, chars)
    begun, to_draw = [char_to_idx[c] for c in start], max(0, args.n_chars - len(start))
    step, device = one_step(model, len(chars)), next(model.parameters()).device
    for k in range(0, args.n_samples, 64):
        n, others = min(64, args.n_samples - k), []
        how = args.temperature, args.top_k, args.top_p, n
        yield "\n" * (k > 0) + start
        for i, *rest in itertools.islice(continuation(step, begun, device, *how), to_draw):
            yield idx_to_char[i]
            others.append(rest)
        yield "\n"
        for j in range(n - 1):
            yield "\n" + start + "".join(idx_to_char[rest[j]] for rest in others) + "\n"


def score(args: Namespace, model: MultilayerGRU, chars: str) -> None:
    """--score: nats and bits per character of a text."""
    try:
        text = texts.read_text(args.score, args.data_dir, args.encoding)
    except (OSError, ValueError) as error:
        common.fail(f"--score {args.score}: {error}")
    strange = sorted(texts.char_counts(text).keys() - set(chars))
    text, n_removed = remove_chars(text, strange)
    if n_removed:
        files.say(f"not in the alphabet and left out: {n_removed:,} characters, {texts.some(strange)}", sys.stderr)
    if len(text) < 2:
        common.fail(f"--score {args.score}: {len(text)} characters of the alphabet; at least two are needed")
    nats = evaluate(model, encode(text, char_maps(chars)[0]))
    scored = f"{len(text) - 1:,} characters scored, the first is given"
    print(f"{args.score}: {nats:.4f} nats, {nats / math.log(2):.4f} bits per character ({scored})")


def use(args: Namespace, device: torch.device) -> None:
    """What is done with trained weights."""
    numbers, _ = common.find_weights("char_rnn", "char_rnn.pth", args)
    model = build(numbers).to(device).eval()
    if args.generate:
        texts.print_as_it_comes(written(args, model, numbers["chars"]))
    if args.score is not None:
        score(args, model, numbers["chars"])


def main(argv: list[str] | None = None) -> run_module.Run | None:
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    main()
