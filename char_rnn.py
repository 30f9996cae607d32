"""Character-level GRU: learn a text, and continue it one character at a time.

Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder", arXiv 1406.1078. Each layer computes

    z = σ(x W_xz + h W_hz + b_z)    r = σ(x W_xr + h W_hr + b_r)                                    (eq. 6, 5)
    g = tanh(x W_xg + (r ⊙ h) W_hg + b_g)    h' = z ⊙ h + (1 − z) ⊙ g                              (eq. 8, 7)

and the last one predicts the next character, p(c) = softmax(dropout(h') W_hy + b_y). The loss is −log p of the
character that came, in nats. (nn.GRU is another cell: it multiplies r after the product with W_hg.)

Differs from the paper: only its hidden unit (section 2.3), no encoder and decoder. It adds biases, several layers,
dropout on each layer's output, Adam, and weights averaged over steps.

    python char_rnn.py                                          # tiny Shakespeare; the same again continues
    python char_rnn.py --generate --temperature 0.5             # works at once, with the weights that ship
    python char_rnn.py --data my.txt --h-dim 256 --steps 2000   # your own text
    python char_rnn.py --data texts/ --dropout 0.2 --steps 8000 # a folder; of Shakespeare's works: weights/char_rnn.pth

Measured on tiny Shakespeare's last tenth, read from its beginning, in nats per character (best averaged weights, seed
0, two cores of an AMD EPYC (Zen 5), bf16): the first command 1.548 after 106 seconds (1,000 steps), 1.436 after 9
minutes (5,000).
"""

import copy
import itertools
import math
import sys
from argparse import Namespace
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
from plumbing.data import texts
from plumbing.run.run import Run
from plumbing.system import ranks
from plumbing.system.flags import number

WARMUP = 100  # steps in which the learning rate rises to --lr


def gru_step(a, h, U_zr, U_g):
    """Return (h', [z r], r ⊙ h, g) of one step, from the input's share a = x [W_xz W_xr W_xg] + [b_z b_r b_g].

    a: (B, 3H). h, h': (B, H). U_zr = [W_hz W_hr]: (H, 2H). U_g = W_hg: (H, H). If a is bfloat16, h stays float32,
    since every step adds to it and its rounding errors would add up.
    """
    H = h.shape[1]
    h_low = h.to(a.dtype)
    zr = torch.addmm(a[:, : 2 * H], h_low, U_zr).sigmoid_()  # (B, 2H)
    z, r = zr.chunk(2, 1)  # (B, H)
    rh = r * h_low
    g = torch.addmm(a[:, 2 * H :], rh, U_g).tanh_()
    h = torch.addcmul(g, z, h - g)  # z ⊙ h + (1 − z) ⊙ g
    return h, zr, rh, g


class GRUSequence(torch.autograd.Function):
    """The cell over S steps: a (S, B, 3H), h (B, H) -> states (S, B, H), last state (B, H).

    Autograd could go backward through the loop of forward. This backward, written by hand, makes a training step 1.11
    to 1.15 times as fast: a weight's gradient is one product over all steps instead of a sum of S small ones, and all
    that does not depend on later steps is computed for all steps at once.
    """

    @staticmethod
    def forward(ctx, a, h, U_zr, U_g):
        hs, gates = [h], []
        for a_t in a:
            h, *gates_t = gru_step(a_t, h, U_zr, U_g)
            hs.append(h)
            gates.append(gates_t)
        hs = torch.stack(hs).to(a.dtype)  # (S + 1, B, H)
        zr, rh, g = map(torch.stack, zip(*gates, strict=True))  # (S, B, 2H), (S, B, H), (S, B, H)
        ctx.save_for_backward(hs, zr, rh, g, U_zr, U_g)
        return hs[1:], h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_states, dh):
        hs, zr, rh, g, U_zr, U_g = ctx.saved_tensors
        h, H = hs[:-1], g.shape[-1]
        z, r = zr.chunk(2, -1)
        slope_g = (1 - z) * (1 - g * g)  # of h' = z ⊙ h + (1 − z) ⊙ g, through tanh
        slope_zr = torch.cat([h - g, h], -1) * zr * (1 - zr)  # dh'/dz = h − g, d(r ⊙ h)/dr = h, through σ
        da = g.new_empty(*g.shape[:2], 3 * H)  # (S, B, 3H)
        for t in reversed(range(len(g))):
            dh = dh + d_states[t]
            dh_low = dh.to(g.dtype)
            da_g = torch.mul(dh_low, slope_g[t], out=da[t, :, 2 * H :])
            d_rh = da_g @ U_g.t()
            d_zr = torch.cat([dh_low, d_rh], 1)
            da_zr = torch.mul(d_zr, slope_zr[t], out=da[t, :, : 2 * H])
            # Through [z r], through r ⊙ h, and through z ⊙ h.
            dh = torch.addcmul(da_zr @ U_zr.t(), d_rh, r[t]) + dh * z[t]
        h, rh, d = h.flatten(0, 1), rh.flatten(0, 1), da.flatten(0, 1)  # (S·B, ...)
        return da, dh, h.t() @ d[:, : 2 * H], rh.t() @ d[:, 2 * H :]


class GRULayer(nn.Module):
    """One layer. Its nine parameters are those of the equations."""

    def __init__(self, in_dim: int, h_dim: int):
        super().__init__()

        def uniform():
            return nn.Parameter(torch.empty(in_dim, h_dim).uniform_(-1, 1) / in_dim**0.5)

        def orthogonal():
            return nn.Parameter(nn.init.orthogonal_(torch.empty(h_dim, h_dim)))

        def bias(value):
            return nn.Parameter(torch.full((h_dim,), value))

        self.W_xz, self.W_xr, self.W_xg = uniform(), uniform(), uniform()
        self.W_hz, self.W_hr, self.W_hg = orthogonal(), orthogonal(), orthogonal()
        # z starts at σ(1) = 0.73, so that the layer remembers.
        self.b_z, self.b_r, self.b_g = bias(1.0), bias(0.0), bias(0.0)

    def fused(self, dtype):
        """Return [W_xz W_xr W_xg] (in_dim, 3H), [b_z b_r b_g] (3H,), [W_hz W_hr] (H, 2H) and W_hg (H, H)."""
        W_x = torch.cat([self.W_xz, self.W_xr, self.W_xg], 1)
        b = torch.cat([self.b_z, self.b_r, self.b_g])
        U_zr = torch.cat([self.W_hz, self.W_hr], 1)
        return W_x.to(dtype), b.to(dtype), U_zr.to(dtype), self.W_hg.to(dtype)

    def forward(self, x, h):
        """Return the states (S, B, H) and the last one (B, H). x: (S, B, in_dim), or indices (S, B). h: (B, H)."""
        device, dtype = x.device.type, self.W_xz.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        W_x, b, U_zr, U_g = self.fused(dtype)
        # The inputs' share of all steps is one product. A one-hot row times a matrix is a row of the matrix.
        if x.ndim == 3:
            a = F.linear(x.to(dtype), W_x.t(), b)  # (S, B, 3H)
        else:
            a = F.embedding(x, W_x + b)  # (S, B, 3H)
        return GRUSequence.apply(a, h, U_zr, U_g)


class MultilayerGRU(nn.Module):
    """n_layers GRU layers and a linear layer on top, with dropout on every layer's output."""

    def __init__(self, in_dim: int, h_dim: int, out_dim: int, n_layers: int, dropout: float = 0):
        super().__init__()
        self.in_dim, self.h_dim, self.out_dim = in_dim, h_dim, out_dim
        self.n_layers, self.dropout = n_layers, dropout
        in_dims = [in_dim] + [h_dim] * (n_layers - 1)
        self.layers = nn.ModuleList(GRULayer(d, h_dim) for d in in_dims)
        self.W_hy = nn.Parameter(torch.empty(h_dim, out_dim).uniform_(-1, 1) / h_dim**0.5)
        self.b_y = nn.Parameter(torch.zeros(out_dim))

    def forward(self, input: Tensor, hidden_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (B, S, O) of the next characters, and the last hidden state (B, L, H).

        input: (B, S, V), one-hot, or indices (B, S). hidden_state: (B, L, H). None is zeros.
        """
        if hidden_state is None:
            hidden_state = self.W_hy.new_zeros(len(input), self.n_layers, self.h_dim)
        x = input.transpose(0, 1)  # (S, B) or (S, B, V)
        last = []
        for layer, h in zip(self.layers, hidden_state.unbind(1), strict=True):
            x, h = layer(x, h)  # (S, B, H), (B, H)
            last.append(h)
            if self.training and self.dropout:  # F.dropout draws its mask 1.4 to 4 times as slowly on a CPU
                kept = torch.rand(x.shape, device=x.device) >= self.dropout
                x = x * (kept.to(x.dtype) / (1 - self.dropout))
        scores = F.linear(x, self.W_hy.t(), self.b_y)  # (S, B, O)
        return scores.transpose(0, 1).contiguous(), torch.stack(last, 1)


def stream_batch(ids: Tensor, batch_size: int, seq_len: int, step: int, seed: int):
    """Return (x, y, first) for step 1, 2, ...: int64 characters (B, S), the next ones, and whether an epoch begins.

    The text is cut into B streams, and row k of a batch continues row k of the batch before. The characters that fill
    no last batch are left out, partly before and partly after the streams. Epochs differ in how many are before.
    """
    batches = (len(ids) - 1) // seq_len // batch_size
    epoch, j = divmod(step - 1, batches)
    length = batches * seq_len  # of a stream
    used = batch_size * length
    start = int(np.random.default_rng((seed, epoch)).integers(len(ids) - used))
    x = ids[start : start + used].view(batch_size, length)
    y = ids[start + 1 : start + 1 + used].view(batch_size, length)
    now = slice(j * seq_len, (j + 1) * seq_len)
    return x[:, now].long(), y[:, now].long(), j == 0


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of step 1 ... steps: linear warm-up to the peak, then a cosine to 0."""
    return peak * min(1, step / WARMUP) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


def train(args: Namespace, device: torch.device) -> Run:
    alphabet = args.begin.get("chars")  # args.begin: the weights of --weights, if it was typed
    text = texts.load_text(args.data, args.data_dir, args.min_count, args.held_out, args.encoding, alphabet)
    config = settings(args, text)
    model = build(args.begin | config).to(device)
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), args.lr, betas=(0.9, 0.99), fused=device.type != "mps")
    # hidden.h (B, L, H) is the state that one step hands to the next. A module's buffer can be saved and loaded.
    hidden = nn.Module()
    hidden.register_buffer("h", model.W_hy.new_zeros(args.batch_size, model.n_layers, model.h_dim))
    # last.pth holds these four. Each step seeds its own noise, so a resumed run is the same run.
    to_continue = {"model": model, "averaged": averaged, "optimizer": optimizer, "hidden": hidden}
    run = Run(args, text, to_continue, {"char_rnn.pth": (averaged, config)})
    if run.finished():
        return run
    ids = text.train.to(device)
    forward = common.for_training(model, args.compile)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=args.bf16)

    for step in run.steps():
        optimizer.param_groups[0]["lr"] = learning_rate(step, args.steps, args.lr)
        x, y, first = stream_batch(ids, args.batch_size, args.seq_len, step, args.seed)
        x, y = ranks.share(x), ranks.share(y)  # (B, S)

        # Truncated backpropagation through time: the state goes on to the next step, the gradient does not.
        h = None if first else ranks.share(hidden.h)
        with autocast:
            logits, h = forward(x, h)  # (B, S, V), (B, L, H)
        hidden.h = ranks.gathered(h.detach())

        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        common.average(averaged, model, args.ema, step)
        run.add("train", nats=loss)

        # char_rnn.pth keeps the averaged weights with the lowest held-out loss.
        if run.due(args.eval_every):
            with autocast:
                nats = ranks.from_first(held_out_loss(averaged, text.test))
            run.add("test", nats=nats)
            if run.is_best("test", "nats"):
                run.save_weights("char_rnn.pth", averaged, config | {"nats": nats})
        if run.due(args.sample_every, early=True):
            maps = char_maps(text.chars)
            run.save_text("samples", generate_from_model(averaged, text.chars[0], 500, maps, T=0.8))
    return run.finish(evaluate_run(run, averaged, text.test), MEANING)


# Measurements

MEANING = {  # how each result is printed: its unit, and which way is better
    "nats": "{:.4f} nats per held-out character, the lower the better",
    "bits": "{:.4f} bits per held-out character, the lower the better",
}


@common.in_eval_mode
def held_out_loss(model: MultilayerGRU, ids: Tensor, warm: int = 256) -> float:
    """Return the mean −log p, in nats, of each of ids[1:] given all characters before it, without dropout.

    A long text is cut into at most 64 streams that run side by side. Each begins `warm` characters early, so that it
    has a hidden state when its part comes. On tiny Shakespeare the result is that of one long stream to 2e-7 nats.
    """
    device = next(model.parameters()).device
    n = len(ids) - 1
    n_streams = max(1, min(64, n // (4 * warm)))
    length = math.ceil(n / n_streams)
    own = torch.arange(n_streams)[:, None] * length  # (K, 1): position of each stream's first target
    end = (own + length).clamp(max=n)
    start = (own - warm).clamp(min=0)
    total, hidden = 0.0, None
    for done in range(0, int((end - start).max()), 128):
        position = start + done + torch.arange(128)  # (K, 128)
        scored = ((own <= position) & (position < end)).to(device)
        position = position.clamp(max=n - 1)
        logits, hidden = model(ids[position].to(device).long(), hidden)
        targets = ids[position + 1].to(device).long()
        losses = F.cross_entropy(logits.float()[scored], targets[scored], reduction="sum")
        total += losses.item()
    return total / n


def evaluate_run(run: Run, model, held_out: Tensor) -> dict[str, float]:
    """Load the best weights of the run into the model, evaluate them in float32, and return the results."""
    best = run.load_weights("char_rnn.pth")
    model.load_state_dict(best["state_dict"])
    nats = held_out_loss(model, held_out)
    return {"nats": nats, "bits": nats / math.log(2), "best_step": best["step"]}


def settings(args: Namespace, text) -> dict:
    """Return the config: all that rebuilds the model. The alphabet is the text's, or that of --weights."""
    n, needed = len(text.train), args.batch_size * args.seq_len + 1
    if n < needed:
        batch = f"one batch of {args.batch_size} sequences needs {needed:,} characters, not {n:,}"
        common.fail(f"{batch}. Use a smaller --batch-size or --seq-len.")
    return {"h_dim": args.h_dim, "n_layers": args.n_layers, "dropout": args.dropout, "chars": text.chars}


@common.or_fail
def build(config: dict) -> MultilayerGRU:
    """Return the model of a config, or of a weights file, whose weights are loaded then."""
    V = len(config["chars"])
    return MultilayerGRU(V, config["h_dim"], V, config["n_layers"], config["dropout"])


# Characters and their indices


def char_maps(text: str) -> tuple[dict[str, int], dict[int, str]]:
    """Return (char_to_idx, idx_to_char) of the text's characters, in sorted order."""
    chars = sorted(set(text))
    return {c: i for i, c in enumerate(chars)}, dict(enumerate(chars))


def remove_chars(text: str, chars_to_remove: list[str]) -> tuple[str, int]:
    """Return the text without these characters, and how many were removed."""
    clean = texts.without(text, chars_to_remove)
    return clean, len(text) - len(clean)


def encode(text: str, char_to_idx: dict[str, int]) -> Tensor:
    """Return the indices (N,) as uint8, int16 or int32. Raises KeyError for a character that has no index."""
    return torch.from_numpy(texts.indices(text, char_to_idx))


def chars_to_onehot(text: str, char_to_idx: dict[str, int]) -> Tensor:
    """Return int8 (N, V). Row n is 1 at the index of character n (Technion; training takes the indices)."""
    idx = encode(text, char_to_idx).long()
    zeros = torch.zeros(len(idx), len(char_to_idx), dtype=torch.int8)
    return zeros.scatter_(1, idx[:, None], 1)


def onehot_to_chars(embedded: Tensor, idx_to_char: dict[int, str]) -> str:
    """Return the text of one-hot rows (N, V) (Technion; not called here)."""
    return "".join(idx_to_char[i] for i in embedded.argmax(1).tolist())


def chars_to_labelled_samples(text: str, char_to_idx: dict[str, int], seq_len: int, device="cpu"):
    """Return samples (N, S, V), one-hot int8, and labels (N, S), int64, one character ahead (Technion).

    N = ⌊(len − 1) / S⌋. Training takes stream_batch.
    """
    n = (len(text) - 1) // seq_len
    samples = chars_to_onehot(text[: n * seq_len], char_to_idx).to(device)
    labels = encode(text[1 : n * seq_len + 1], char_to_idx).long().to(device)
    return samples.view(n, seq_len, len(char_to_idx)), labels.view(n, seq_len)


class SequenceBatchSampler(torch.utils.data.Sampler):
    """Indices such that sample k of batch j + 1 continues sample k of batch j, as the hidden state does (Technion).

    Samples that fill no last batch are left out.
    """

    def __init__(self, dataset, batch_size: int):
        self.batches, self.batch_size = len(dataset) // batch_size, batch_size

    def __iter__(self) -> Iterator[int]:
        return iter([k * self.batches + j for j in range(self.batches) for k in range(self.batch_size)])

    def __len__(self) -> int:
        return self.batches * self.batch_size


# Generation


class OneStep:
    """A trained model for one character at a time, 2.4 times as fast as MultilayerGRU for each."""

    def __init__(self, model: MultilayerGRU):
        layers = [layer.fused(model.W_hy.dtype) for layer in model.layers]
        self.layers = [[w.detach() for w in layer] for layer in layers]
        W_x, b, *_ = self.layers[0]
        self.table = W_x + b  # (V, 3H)
        self.W_hy, self.b_y = model.W_hy.detach(), model.b_y.detach()

    def __call__(self, x, hidden):
        """Return scores (B, O) and the hidden state of indices (B,). hidden: one (B, H) a layer. None is zeros."""
        if hidden is None:
            zeros = self.W_hy.new_zeros(len(x), len(self.W_hy))
            hidden = [zeros] * len(self.layers)
        last = []
        for k, (W_x, b, U_zr, U_g) in enumerate(self.layers):
            a = torch.addmm(b, last[-1], W_x) if k else self.table[x]  # (B, 3H)
            last.append(gru_step(a, hidden[k], U_zr, U_g)[0])
        return torch.addmm(self.b_y, last[-1], self.W_hy), last


def one_step(model: nn.Module, n_chars: int):
    """Return OneStep(model). For a model of one-hot floats, such as a student's, return a function with its call."""
    if isinstance(model, MultilayerGRU):
        return OneStep(model)

    def step(x, hidden):
        onehot = F.one_hot(x, n_chars).float()
        scores, hidden = model(onehot[:, None], hidden)  # (B, 1, O)
        return scores[:, -1], hidden

    return step


def hot_softmax(y: Tensor, dim: int = 0, temperature: float = 1.0) -> Tensor:
    """Return softmax(y / T) along dim of scores y of any shape, or for T = 0 its limit, 1 at the largest score.

    Raises ValueError for a negative T.
    """
    if temperature < 0:
        raise ValueError(f"temperature {temperature} is negative")
    if temperature < torch.finfo(y.dtype).tiny:
        return torch.zeros_like(y).scatter_(dim, y.argmax(dim, keepdim=True), 1.0)
    return torch.softmax((y - y.amax(dim, keepdim=True)) / temperature, dim)


def keep_likely(p: Tensor, top_k=None, top_p=None) -> Tensor:
    """Return probabilities (..., V) with 0 for all but the likeliest. The rest need not sum to 1.

    top_k: how many are kept. top_p: the fewest that reach this sum are kept. This is nucleus sampling, Holtzman et
    al. 2019, arXiv 1904.09751.
    """
    if top_k:
        least = p.topk(min(top_k, p.shape[-1])).values[..., -1:]
        p = p.where(p >= least, 0)
    if top_p:
        values, order = p.sort(descending=True)
        before = values.cumsum(-1) - values
        kept = before < top_p * values.sum(-1, keepdim=True)
        p = p.scatter(-1, order, values.where(kept, 0))
    return p


@torch.inference_mode()
def continuation(model, start: str, char_to_idx, T: float, top_k=None, top_p=None, n=1) -> Iterator[list[int]]:
    """Draw n texts that follow `start`. Yield the index of the next character of each text, without end.

    Reading the weights limits the speed. The n texts share each reading.
    """
    step = one_step(model, len(char_to_idx))
    device, hidden = next(model.parameters()).device, None
    for c in start:
        scores, hidden = step(torch.full((n,), char_to_idx[c], device=device), hidden)  # (n, V)
    while True:
        p = keep_likely(hot_softmax(scores, 1, T), top_k, top_p)
        # The largest p / ε, ε ~ Exp(1), is at x with probability p(x). torch.multinomial draws in this way.
        x = (p / torch.empty_like(p).exponential_()).argmax(1)
        yield x.tolist()
        scores, hidden = step(x, hidden)


@common.in_eval_mode
def generate_from_model(model: nn.Module, start_sequence: str, n_chars: int, char_maps, T: float) -> str:
    """Return start_sequence and the model's continuation, n_chars in all.

    model: MultilayerGRU, or any with forward((1, S, V) one-hot floats, hidden or None) -> ((1, S, V) scores, hidden).
    char_maps: (char_to_idx, idx_to_char). Raises ValueError for an empty start, and AssertionError, as the course
    does, for a start that leaves nothing to generate.
    """
    char_to_idx, idx_to_char = char_maps
    if not start_sequence:
        raise ValueError("start_sequence is empty: the first character is given, not drawn")
    n = n_chars - len(start_sequence)
    if n <= 0:
        raise AssertionError(f"start_sequence has {len(start_sequence)} characters: n_chars {n_chars} must be larger")
    drawn = itertools.islice(continuation(model, start_sequence, char_to_idx, T), n)
    return start_sequence + "".join(idx_to_char[i] for (i,) in drawn)


# Use of trained weights


def generate(args: Namespace, model, chars: str) -> Iterator[str]:
    """Yield the pieces that --generate prints: one text as it is drawn, or several when all are drawn."""
    char_to_idx, idx_to_char = char_maps(chars)
    start = texts.start_of_writing(args.start, chars)
    how = args.temperature, args.top_k, args.top_p, args.n_samples
    n = max(0, args.n_chars - len(start))
    drawn = itertools.islice(continuation(model, start, char_to_idx, *how), n)
    if args.n_samples > 1:
        rows = list(drawn)  # (N, n_samples)
        written = ["".join(idx_to_char[row[k]] for row in rows) for k in range(args.n_samples)]
        yield "\n".join(start + text + "\n" for text in written)
        return
    yield start
    for (i,) in drawn:
        yield idx_to_char[i]
    yield "\n"


def score(args: Namespace, model, chars: str):
    """Print nats and bits per character of the text of --score."""
    try:
        text = texts.read_text(args.score, args.data_dir, args.encoding)
    except (OSError, ValueError) as error:
        common.fail(f"--score {args.score}: {error}")
    strange = sorted(set(text) - set(chars))
    text, n_removed = remove_chars(text, strange)
    if n_removed:
        removed = f"{n_removed:,} characters, {texts.some(strange)}"
        print(f"not in the alphabet and left out: {removed}", file=sys.stderr)
    if len(text) < 2:
        common.fail(f"--score {args.score} has {len(text)} characters of the alphabet. Name a longer text.")
    nats = held_out_loss(model, encode(text, char_maps(chars)[0]))
    scored = f"{len(text) - 1:,} characters scored, the first is given"
    print(f"{args.score}: {nats:.4f} nats, {nats / math.log(2):.4f} bits per character ({scored})")


def use(args: Namespace, device: torch.device):
    """Do what --generate and --score ask for."""
    config = common.Trained(args).config
    model = build(config).to(device).eval()
    if args.generate:
        texts.print_as_it_comes(generate(args, model, config["chars"]))
    if args.score is not None:
        score(args, model, config["chars"])


# Flags


def get_args(argv: list[str] | None = None):
    names = "tinyshakespeare, shakespeare, python"
    p = common.parser(
        "char_rnn", "char_rnn.pth", __doc__, steps=6000, batch_size=32, lr=3e-3, names=names, makes="text"
    )
    add = p.group("data")
    encoding = "of texts, such as cp1252 (default: as a byte order mark says, else UTF-8)"
    add("--encoding", type=texts.encoding_name, metavar="NAME", help=encoding)
    add("--min-count", type=common.count, default=1, help="remove characters that occur less often")
    add("--held-out", type=common.share, default=0.1, help="part of the text, its end, not trained on")
    add = p.group("model")
    add("--h-dim", type=common.count, default=512, help="hidden units per layer")
    add("--n-layers", type=common.between(1, 100), default=2, help="layers")
    add("--dropout", type=common.share, default=0.4, help="on every layer's output")
    add = p.group("optimisation")
    add("--seq-len", type=common.count, default=64, help="steps of backpropagation through time")
    add("--clip", type=common.positive, default=1.0, help="largest norm of the gradient")
    add("--ema", type=common.share, default=0.998, help="decay of the averaged weights; 0 is none")
    add("--eval-every", type=common.count, default=500, help="steps between held-out losses")
    add = p.group("trained weights")
    start = r"text to continue; \n is a line break (the default) where no \ is known"
    add("--start", help=start)
    add("--n-chars", type=common.count, default=1000, help="characters of a text, with the start")
    add("--n-samples", type=common.count, default=1, help="texts, drawn side by side")
    add("--temperature", type=common.amount, default=1.0, help="below 1: more careful")
    add("--top-k", type=common.count, help="draw from the k likeliest characters only")
    top_p = "draw from the likeliest that make up this probability"
    add("--top-p", type=number(float, 0, 1, above=True, below=True), help=top_p)
    add("--score", metavar="FILE", help="do not train: print nats and bits per character")
    of_generate = ("start", "n_chars", "n_samples", "temperature", "top_k", "top_p")
    return p.parse(argv, **dict.fromkeys(of_generate, ("generate",)))


def main(argv: list[str] | None = None):
    return common.run(get_args(argv), train, use)


if __name__ == "__main__":
    common.program(main)
