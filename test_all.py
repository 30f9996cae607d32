"""Tests for a person who waits: `python test_all.py`, under a minute. What is slow or about faults is in tests/.

Formulas are held against independent oracles (torch.distributions, numpy, torchvision, closed forms), runs against
unbroken runs.
"""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence
from torchvision.transforms.v2 import functional as tv

import char_rnn
import dcgan
import fid
import gan_mnist
import simclr
import vae
from plumbing.data.batches import batch_indices
from plumbing.run import run as run_module
from plumbing.system.flags import EXTRA
from tests.conftest import elsewhere  # noqa: F401
from tests.float64 import small_resnet
from tests.helpers import (
    HERE,
    NEEDED,
    RUNS,
    SCRIPTS,
    NoJudge,
    Trap,
    as_files,
    batch,
    error_line,
    last_of,
    losses_agree,
    photos,
    picture,
    same,
    spd,
    stop_after,
    write_inputs,
)

# -------------------------------------------------------------------------------------------------------- every script


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_read(script):
    sources = [Path(script.__file__), HERE / "common.py", *HERE.glob("plumbing/*/*.py")]
    text = "".join(path.read_text() for path in sources)
    for flag in vars(script.get_args(NEEDED.get(script, []))).keys() - {*EXTRA}:
        assert re.search(rf"args\.{flag}\b", text), f"nothing reads --{flag.replace('_', '-')}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    shown = capsys.readouterr().out
    assert script.__doc__.splitlines()[0] in shown and "None" not in shown
    assert re.search(r"--seed N +.*\(default: 0\)", shown) and "auto, cuda, mps or cpu" in shown
    lines = shown.splitlines()  # a screen or so: equations and flags, a line each
    assert len(lines) <= 62 and max(map(len, lines)) <= 120


def test_batches_are_permuted_epochs():
    steps = [batch_indices(10, 4, step, seed=3) for step in range(1, 6)]
    first, second = torch.cat(steps).split(10)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10)) and not torch.equal(first, second)
    assert torch.equal(batch_indices(10, 4, 3, seed=3), steps[2])  # no memory of earlier calls
    assert not torch.equal(batch_indices(10, 10, 1, seed=4), first)
    assert len(batch_indices(3, 8, 1, seed=0)) == 8  # a batch larger than the data set


def test_load_runs_no_code(capsys):
    trap = {"script": "vae", "state_dict": Trap()}
    torch.save(trap, "saved.pth")
    Path("pickled.pth").write_bytes(pickle.dumps(trap))
    for name in ("saved.pth", "pickled.pth"):
        assert "refused" in error_line(capsys, vae.main, ["--generate", "--weights", name])
    assert not Path("executed").exists()


# -------------------------------------------------------------------------------------------------------------- vae.py


def test_bce_vae_loss():
    x, logits, mu, log_sigma2 = batch().round(), 3 * torch.randn(5, 1, 32, 32), torch.randn(5, 7), torch.randn(5, 7)
    x, logits, mu, log_sigma2 = (t.double() for t in (x, logits, mu, log_sigma2))  # rounding is not what is tested
    rec = -Bernoulli(logits=logits).log_prob(x).sum() / 5
    kl = kl_divergence(Normal(mu, (log_sigma2 / 2).exp()), Normal(0, 1)).sum() / 5
    for xr, how in ((logits, True), (logits.sigmoid(), False)):
        torch.testing.assert_close(vae.bce_vae_loss(x, xr, mu, log_sigma2, 0.3, how), (rec + 0.3 * kl, rec, kl))
    grey, xr = batch().double(), logits.sigmoid()
    rec = -(grey * xr.log() + (1 - grey) * (1 - xr).log()).sum() / 5
    torch.testing.assert_close(vae.bce_vae_loss(grey, xr, mu, log_sigma2)[1], rec)


def test_vae_loss_is_the_courses_formula():
    x, xr, mu, log_sigma2 = (a.numpy() for a in (batch(3, 16), batch(3, 16), torch.randn(5, 7), torch.randn(5, 7)))
    losses = []
    for n in range(5):
        sigma = np.diag(np.exp(log_sigma2[n].astype(np.float64)))
        data = np.sum((x[n] - xr[n]) ** 2.0) / (0.9 * x[n].size)
        kl = np.trace(sigma) + np.sum(mu[n] ** 2.0) - 7 - np.linalg.slogdet(sigma)[1]
        losses.append((data + kl, data, kl))
    ours = vae.vae_loss(*map(torch.from_numpy, (x, xr, mu, log_sigma2)), 0.9)
    np.testing.assert_allclose([t.item() for t in ours], np.mean(losses, 0), rtol=1e-5)


def test_log_px_of_a_linear_gaussian_model():
    """x = W z + noise has log p(x) in closed form: the estimate must meet it from a posterior that is roughly right."""
    torch.manual_seed(0)
    model = vae.VAE(nn.Flatten(), nn.Unflatten(1, (1, 2, 2)), (1, 2, 2), 2)  # both "networks" only reshape
    model.decoder = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2)))
    model.p_x.output, model.p_x.x_sigma2 = nn.Identity(), 0.1
    linear, variance = model.decoder[0], 0.1 * 4
    x = torch.randint(0, 256, (200, 1, 2, 2), dtype=torch.uint8)
    cov = linear.weight @ linear.weight.T + variance * torch.eye(4)
    exact = MultivariateNormal(linear.bias, cov).log_prob(vae.prepare(model, x).flatten(1)).mean().item()
    gain = linear.weight.T @ torch.linalg.inv(cov)  # E[z|x] = Wᵀ (W Wᵀ + s² I)⁻¹ (x − b)

    def roughly(v):
        return (v.flatten(1) - linear.bias) @ gain.T + 0.1, torch.full((len(v), 2), -0.5)

    model.posterior = roughly
    assert vae.log_px(model, x, 1) < exact - 0.01  # one sample is the ELBO, and this posterior is not exact
    assert vae.log_px(model, x, 2000) == pytest.approx(exact, abs=0.02)


def watched(*networks: nn.Module) -> list[tuple]:
    """When the networks run, a row for each layer: name, shape of its output; kernel, stride and both paddings."""
    rows = []

    def hook(m, _, y):
        row = [type(m).__name__, tuple(y.shape[1:])]
        if hasattr(m, "stride"):
            row += [m.kernel_size[0], m.stride[0], m.padding[0], m.output_padding[0]]
        rows.append(tuple(row))

    for network in networks:
        for m in network.modules():
            if not [*m.children()] and not isinstance(m, nn.Flatten | nn.Unflatten):
                m.register_forward_hook(hook)
    return rows


def test_tsinghua_table():
    latent = 6
    model = vae.build_vae("tsinghua", latent)
    seen = watched(model)
    model(batch(n=2))
    relu = lambda row: [row, ("ReLU", row[1])]
    table = [
        *relu(("Conv2d", (16, 32, 32), 3, 1, 1, 0)),
        *relu(("Conv2d", (32, 16, 16), 3, 2, 1, 0)),
        *relu(("Conv2d", (32, 16, 16), 3, 1, 1, 0)),
        *relu(("Conv2d", (16, 8, 8), 3, 2, 1, 0)),
        *relu(("Linear", (2 * latent,))),
        ("Linear", (2 * latent,)),
        *relu(("Linear", (latent,))),
        ("Linear", (16 * 8 * 8,)),
        *relu(("ConvTranspose2d", (32, 16, 16), 3, 2, 1, 1)),
        *relu(("ConvTranspose2d", (32, 16, 16), 3, 1, 1, 0)),
        *relu(("ConvTranspose2d", (16, 32, 32), 3, 2, 1, 1)),
        ("ConvTranspose2d", (1, 32, 32), 3, 1, 1, 0),
        ("Sigmoid", (1, 32, 32)),
    ]
    assert seen == table
    x = batch()
    mu, log_sigma = model.encoder(x).chunk(2, dim=1)  # the head means log σ
    torch.testing.assert_close(model.posterior(x), (mu, 2 * log_sigma))


@pytest.mark.parametrize(("arch", "channels", "size"), [("technion", 3, 64), ("technion", 1, 16), ("mlp", 3, 20)])
def test_shapes(arch, channels, size):
    model, x = vae.build_vae(arch, 9, channels, size), batch(channels, size, 3)
    x_rec, mu, log_sigma2 = model(x)
    assert x_rec.shape == x.shape and mu.shape == log_sigma2.shape == (3, 9)
    assert [t.shape for t in model.encode(x)] == [(3, 9)] * 3
    samples = model.sample(4)
    assert samples.shape == (4, channels, size, size) and not samples.requires_grad


# --------------------------------------------------------------------------------------------------------- char_rnn.py


def test_course_text_functions():
    to_idx, to_char = char_rnn.char_maps("hello world")
    assert to_idx == {" ": 0, "d": 1, "e": 2, "h": 3, "l": 4, "o": 5, "r": 6, "w": 7} and to_char[3] == "h"
    assert char_rnn.remove_chars("a-b.c-", ["-", "."]) == ("abc", 3)
    onehot = char_rnn.chars_to_onehot("hold", to_idx)
    assert onehot.dtype == torch.int8 and onehot.tolist() == np.eye(8)[[3, 5, 4, 1]].tolist()
    assert char_rnn.onehot_to_chars(onehot, to_char) == "hold"
    samples, labels = char_rnn.chars_to_labelled_samples("hello world", to_idx, 3)
    assert samples.shape == (3, 3, 8) and labels.shape == (3, 3)
    assert [char_rnn.onehot_to_chars(x, to_char) for x in samples] == ["hel", "lo ", "wor"]
    assert ["".join(to_char[int(i)] for i in y) for y in labels] == ["ell", "o w", "orl"]


def test_sequence_batches_continue_each_other():
    order = list(char_rnn.SequenceBatchSampler(range(32), 10))
    batches = np.reshape(order, (-1, 10))
    assert len(order) == len(char_rnn.SequenceBatchSampler(range(32), 10)) == 30 == len(set(order))
    assert (np.diff(batches, axis=0) == 1).all()


def small_gru(dtype=torch.float64, dropout=0.0, layers=2):
    torch.manual_seed(0)
    model = char_rnn.MultilayerGRU(7, 5, 6, layers, dropout).to(dtype)
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)  # biases too, and none alike
    return model, torch.randint(0, 7, (3, 11)), torch.randn(3, layers, 5, dtype=dtype)


def test_gru_is_the_equations():
    model, x, h0 = small_gru()
    assert len(list(model.parameters())) == 9 * 2 + 2
    sigma = lambda v: 1 / (1 + np.exp(-v))
    W = [{k: p.detach().numpy() for k, p in layer.named_parameters()} for layer in model.layers]
    h, out = h0.numpy().copy(), []
    for t in range(x.shape[1]):
        v = np.eye(7)[x[:, t]]
        for k, w in enumerate(W):
            z = sigma(v @ w["W_xz"] + h[:, k] @ w["W_hz"] + w["b_z"])
            r = sigma(v @ w["W_xr"] + h[:, k] @ w["W_hr"] + w["b_r"])
            g = np.tanh(v @ w["W_xg"] + (r * h[:, k]) @ w["W_hg"] + w["b_g"])
            v = h[:, k] = z * h[:, k] + (1 - z) * g
        out.append(v @ model.W_hy.detach().numpy() + model.b_y.detach().numpy())
    onehot = nn.functional.one_hot(x, 7)
    for given in (x, onehot.double(), onehot.to(torch.int8)):
        y, last = model(given, h0)
        np.testing.assert_allclose(y.detach().numpy(), np.stack(out, 1), atol=1e-10)
        np.testing.assert_allclose(last.detach().numpy(), h, atol=1e-10)
    assert not torch.allclose(model(x)[0], y)  # the hidden state changes the output


def test_gru_backward():
    """The gradient written by hand against finite differences, of the cell's sequence and of the whole model."""
    torch.manual_seed(0)
    a, h, U_zr, U_g = torch.randn(4, 2, 9), torch.randn(2, 3), torch.randn(3, 6), torch.randn(3, 3)
    inputs = [v.double().requires_grad_() for v in (a, h, U_zr, U_g)]
    assert torch.autograd.gradcheck(char_rnn.GRUSequence.apply, inputs)
    model, x, h0 = small_gru()
    names, values = zip(*model.named_parameters(), strict=True)

    def run(*v):
        return torch.func.functional_call(model, dict(zip(names, v, strict=True)), (x[:2, :3], h0[:2]))

    assert torch.autograd.gradcheck(run, [v.detach().requires_grad_() for v in values])


def test_gru_steps_and_causality():
    model, x, h0 = small_gru()
    y, last = model(x, h0)
    h, hh, step = h0, [*h0.unbind(1)], char_rnn.OneStep(model)
    for t in range(x.shape[1]):
        y_t, h = model(x[:, t : t + 1], h)
        scores, hh = step(x[:, t], hh)
        torch.testing.assert_close(y_t[:, 0], y[:, t])
        torch.testing.assert_close(scores, y[:, t])
    torch.testing.assert_close((h, torch.stack(hh, 1)), (last, last))
    future = x.clone()
    future[:, 6] = (x[:, 6] + 1) % 7
    assert torch.equal(model(future, h0)[0][:, :6], y[:, :6]) and not torch.equal(model(future, h0)[0][:, 6:], y[:, 6:])


def test_hot_softmax_and_likely_ones():
    y = torch.randn(3, 5)
    for T in (0.3, 1.0, 100.0):
        torch.testing.assert_close(char_rnn.hot_softmax(y, 1, T), torch.softmax(y / T, 1))
    for T in (0, 1e-320, 1e-30):
        assert torch.equal(char_rnn.hot_softmax(y, 1, T), nn.functional.one_hot(y.argmax(1), 5).float())
    with pytest.raises(ValueError, match="negative"):
        char_rnn.hot_softmax(y, 1, -1.0)
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    close = lambda x, values: torch.testing.assert_close(x, torch.tensor(values))
    close(char_rnn.keep_likely(p, top_k=2), [0, 0.4, 0, 0.3])
    close(char_rnn.keep_likely(p, top_k=9), [0.1, 0.4, 0.2, 0.3])
    close(char_rnn.keep_likely(p, top_p=0.5), [0, 0.4, 0, 0.3])
    close(char_rnn.keep_likely(p, top_p=0.1), [0, 0.4, 0, 0])
    close(char_rnn.keep_likely(p, top_k=2, top_p=0.6), [0, 0.4, 0, 0.3])
    two = torch.stack([p, p.flip(0)])  # each row for itself
    close(char_rnn.keep_likely(two, top_k=2), [[0, 0.4, 0, 0.3], [0.3, 0, 0.4, 0]])
    close(char_rnn.keep_likely(two, top_p=0.5), [[0, 0.4, 0, 0.3], [0.3, 0, 0.4, 0]])


# -------------------------------------------------------------------------------------------------------------- fid.py


def test_frechet_distance_in_closed_form():
    mu1, mu2, s1, s2 = torch.randn(4, 7, dtype=torch.float64).abs()
    exact = ((mu1 - mu2) ** 2).sum() + ((s1.sqrt() - s2.sqrt()) ** 2).sum()  # diagonal covariances
    assert fid.frechet_distance(mu1, s1.diag(), mu2, s2.diag()) == pytest.approx(exact.item(), rel=1e-9)
    cov = spd(7, 0)
    exact = ((mu1 - mu2) ** 2).sum().item()  # equal covariances
    assert fid.frechet_distance(mu1.numpy(), cov.numpy(), mu2.numpy(), cov.numpy()) == pytest.approx(exact, rel=1e-9)
    assert fid.frechet_distance(mu1, cov, mu1, cov) <= 1e-9
    zero = torch.zeros(7, 7)
    assert fid.frechet_distance(mu1, zero, mu2, cov) == pytest.approx(exact + cov.trace().item(), rel=1e-9)


@pytest.mark.parametrize("n", [2, 84, 85, 500])
def test_statistics_are_numpys(n):
    """Streamed, on both sides of the number of features; which changes the method."""
    h = torch.randn(n, 84, generator=torch.Generator().manual_seed(n)).relu() + 3
    s = fid.statistics(h.split(19), keep=True)
    np.testing.assert_allclose(s.mu, h.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(s.factor.T @ s.factor, np.cov(h.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    assert s.n == n and torch.equal(s.features, h) and len(s.factor) == min(n, 84)
    collapsed = fid.statistics(h[:1].expand(n, -1).split(19))
    assert (collapsed.factor.T @ collapsed.factor).abs().max() < 1e-9
    with pytest.raises(ValueError, match="two images"):
        fid.statistics([h[:1]])
    with pytest.raises(ValueError, match="not finite"):
        fid.statistics([h / 0])


def test_kid():
    """Against its double sum over pairs, torch-fidelity, and its own name: unbiased."""
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64) + 1

    def k(a, b) -> float:
        return (a @ b / 5 + 1).item() ** 3

    def pairs(a) -> float:
        return sum(k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j) / len(a) / (len(a) - 1)

    exact = pairs(x) + pairs(y) - 2 * sum(k(p, q) for p in x for q in y) / 24
    assert fid.kid(x, y) == pytest.approx(exact, rel=1e-9)

    x, y = torch.randn(2, 1100, 5)
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    exact = theirs.kid_features_to_metric(x.double(), y.double(), kid_subsets=1, kid_subset_size=1100, verbose=False)
    assert fid.kid(x, y) == pytest.approx(exact["kernel_inception_distance_mean"], rel=1e-6)
    many = torch.tensor([fid.kid(*torch.randn(2, 8, 5)) for _ in range(2000)])
    assert many.min() < 0 < many.max() and abs(many.mean()) < 4 * many.std() / 2000**0.5


# -------------------------------------------------------------------------------------------------------- gan_mnist.py


def test_networks_of_the_course():
    count = lambda model: sum(p.numel() for p in model.parameters())
    x, z = torch.rand(3, 784) * 2 - 1, gan_mnist.sample_noise(3, 4, seed=1)
    assert z.shape == (3, 4) and torch.equal(z, gan_mnist.sample_noise(3, 4, seed=1))
    assert not torch.equal(z, gan_mnist.sample_noise(3, 4, seed=2))
    noise = gan_mnist.sample_noise(1000, 50)
    assert -1 <= noise.min() < -0.99 and 0.99 < noise.max() <= 1 and abs(noise.var() - 1 / 3) < 0.01
    for build, n in ((gan_mnist.discriminator, 267009), (gan_mnist.build_dc_classifier, 1102721)):
        D = build(seed=0)
        assert isinstance(D, nn.Sequential) and count(D) == n and D(x).shape == (3, 1)
        assert torch.equal(D(x), D(x.view(3, 1, 28, 28)))
        assert same(D.state_dict(), build(seed=0).state_dict()) and not same(D.state_dict(), build(seed=1).state_dict())
    for build, n in ((gan_mnist.generator, 1858320), (gan_mnist.build_dc_generator, 6580801)):
        G = build(4, seed=0)
        assert isinstance(G, nn.Sequential) and count(G) == n and build()[0].in_features == 96
        assert same(build(seed=0).state_dict(), build(96, 0).state_dict())
        assert G(z).shape == (3, 784) and G(z).abs().max() <= 1
        assert build(noise_dim=7)(torch.rand(2, 7)).shape == (2, 784)
    kinds = lambda model, kind: [m for m in model.modules() if isinstance(m, kind)]
    assert {m.negative_slope for m in kinds(gan_mnist.build_dc_classifier(), nn.LeakyReLU)} == {0.01}
    assert [m.kernel_size for m in kinds(gan_mnist.build_dc_generator(), nn.ConvTranspose2d)] == [(4, 4), (4, 4)]
    adam = gan_mnist.get_optimizer(gan_mnist.discriminator()).param_groups[0]
    assert (adam["lr"], adam["betas"]) == (1e-3, (0.5, 0.999))


def test_gan_losses_are_the_formulas():
    real, fake = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(0)) * 3
    r, f = real.double().numpy(), fake.double().numpy()
    D = lambda s: 1 / (1 + np.exp(-s))
    for ours, exact in (
        (gan_mnist.discriminator_loss(real, fake), -np.log(D(r)).mean() - np.log(1 - D(f)).mean()),
        (gan_mnist.generator_loss(fake), -np.log(D(f)).mean()),
        (gan_mnist.ls_discriminator_loss(real, fake), ((r - 1) ** 2).mean() / 2 + (f**2).mean() / 2),
        (gan_mnist.ls_generator_loss(fake), ((f - 1) ** 2).mean() / 2),
        (gan_mnist.bce_loss(real, torch.full_like(real, 0.3)), -(0.3 * np.log(D(r)) + 0.7 * np.log(1 - D(r))).mean()),
    ):
        assert ours.item() == pytest.approx(exact, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ dcgan.py


def test_tsinghua_gan_table():
    """And its mirror."""
    shape = {"latent_dim": 7, "hidden_dim": 5, "channels": 1, "image_size": 32, "spectral_norm": False}
    G, D = dcgan.build_generator("tsinghua", 7, 5), dcgan.build(shape, dcgan.Discriminator)
    assert [p.shape for p in G.parameters()] == [p.shape for p in dcgan.build(shape).parameters()]
    seen = watched(G, D)
    x = G(torch.randn(2, 7, 1, 1))
    assert D(x).shape == (2, 1) and x.abs().max() <= 1
    assert dcgan.build_generator("tsinghua", 7).net[0][0].out_channels == 64
    table = [
        *[("ConvTranspose2d", (20, 4, 4), 4, 1, 0, 0), ("BatchNorm2d", (20, 4, 4)), ("ReLU", (20, 4, 4))],
        *[("ConvTranspose2d", (10, 8, 8), 4, 2, 1, 0), ("BatchNorm2d", (10, 8, 8)), ("ReLU", (10, 8, 8))],
        *[("ConvTranspose2d", (5, 16, 16), 4, 2, 1, 0), ("BatchNorm2d", (5, 16, 16)), ("ReLU", (5, 16, 16))],
        *[("ConvTranspose2d", (1, 32, 32), 4, 2, 1, 0), ("Tanh", (1, 32, 32))],
        *[("Conv2d", (5, 16, 16), 4, 2, 1, 0), ("LeakyReLU", (5, 16, 16))],
        *[("Conv2d", (10, 8, 8), 4, 2, 1, 0), ("BatchNorm2d", (10, 8, 8)), ("LeakyReLU", (10, 8, 8))],
        *[("Conv2d", (20, 4, 4), 4, 2, 1, 0), ("BatchNorm2d", (20, 4, 4)), ("LeakyReLU", (20, 4, 4))],
        ("Conv2d", (1, 1, 1), 4, 1, 0, 0),
    ]
    assert seen == table
    assert {m.negative_slope for m in D.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize("label", [0, 1])
def test_dcgan_losses_are_the_formulas(label):
    real, fake = torch.randn(2, 50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    r, f = real.numpy(), fake.numpy()
    sigma = lambda s: 1 / (1 + np.exp(-s))
    nll = lambda s, t: -(t * np.log(sigma(s)) + (1 - t) * np.log(sigma(-s))).mean()
    half_square = lambda s, t: ((s - t) ** 2).mean() / 2
    D_loss, G_loss, smooth = dcgan.discriminator_loss_fn, dcgan.generator_loss_fn, abs(label - 0.1)
    least_squares = {"data_label": label, "error": dcgan.squared_error}
    for ours, exact in (
        (D_loss(real, fake, label), nll(r, label) + nll(f, 1 - label)),
        (D_loss(real, fake, label, label_smoothing=0.1), nll(r, smooth) + nll(f, 1 - label)),
        (G_loss(fake, label), nll(f, label)),
        (D_loss(real, fake, **least_squares), half_square(r, label) + half_square(f, 1 - label)),
        (G_loss(fake, **least_squares), half_square(f, label)),
        (dcgan.hinge_discriminator_loss(real, fake), np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean()),
        (dcgan.hinge_generator_loss(fake), -f.mean()),
    ):
        assert ours.item() == pytest.approx(exact, rel=1e-12)
    assert D_loss(real, fake) == D_loss(real, fake, 0) and G_loss(fake) == G_loss(fake, 0)  # the course's default

    torch.manual_seed(0)
    noisy = D_loss(real, fake, label, 0.3)
    torch.manual_seed(0)
    t_real = label + 0.3 * (torch.rand_like(real).numpy() - 0.5)  # the data's first
    t_fake = 1 - label + 0.3 * (torch.rand_like(fake).numpy() - 0.5)
    assert noisy.item() == pytest.approx(nll(r, t_real) + nll(f, t_fake), rel=1e-12)
    y = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    D_loss(y, y, label, 0.3).backward()
    assert y.grad.isfinite().all()


def test_train_batch_is_the_games_two_steps():
    """Against the steps written out with the course's calls, in float64: D first, then G through the new D."""

    def players():
        torch.manual_seed(1)
        G, D = dcgan.Generator(6, 1, 3, (16, 8, 8, 4)).double(), dcgan.Discriminator((3, 16, 16), (4, 8)).double()
        G.noise = lambda n: torch.randn(n, 6, dtype=torch.float64)
        return D, G, *(torch.optim.Adam(m.parameters(), 1e-2, betas=(0.5, 0.999)) for m in (D, G))

    x = batch(3, 16, 5, -1.0).double()
    D, G, D_optimizer, G_optimizer = players()
    torch.manual_seed(2)
    D_optimizer.zero_grad()
    d_loss = dcgan.discriminator_loss_fn(D(x), D(G.sample(5)), 0, 0.0)
    d_loss.backward()
    D_optimizer.step()
    d_gradients = [p.grad.clone() for p in D.parameters()]
    G_optimizer.zero_grad()
    g_loss = dcgan.generator_loss_fn(D(G.sample(5, with_grad=True)), 0)
    g_loss.backward()
    G_optimizer.step()

    D2, G2, *optimizers = players()
    torch.manual_seed(2)
    losses = dcgan.train_batch(D2, G2, dcgan.discriminator_loss_fn, dcgan.generator_loss_fn, *optimizers, x)
    assert losses == pytest.approx((d_loss.item(), g_loss.item()), rel=1e-9) and all(type(v) is float for v in losses)
    torch.testing.assert_close(dict(G.named_parameters()), dict(G2.named_parameters()), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(dict(D.named_parameters()), dict(D2.named_parameters()), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close([p.grad for p in D2.parameters()], d_gradients)  # G's step leaves none in D


# ----------------------------------------------------------------------------------------------------------- simclr.py


@pytest.mark.parametrize("tau", [0.005, 0.05, 0.5, 5.0])
@pytest.mark.parametrize("n", [1, 2, 12])
def test_simclr_losses_agree(tau, n):
    losses_agree(n, tau)


def test_similarities():
    torch.manual_seed(0)
    left, right = torch.randn(2, 5, 8)
    cosine = lambda a, b: (a @ b / (a.norm() * b.norm())).item()
    pairs, matrix = simclr.sim_positive_pairs(left, right), simclr.compute_sim_matrix(torch.cat([left, right]))
    assert pairs.shape == (5, 1) and matrix.shape == (10, 10)
    for i in range(5):
        exact = pytest.approx(cosine(left[i], right[i]), abs=1e-6)
        assert [v.item() for v in (simclr.sim(left[i], right[i]), pairs[i], matrix[i, 5 + i])] == [exact] * 3
    assert matrix.diag().tolist() == pytest.approx([1.0] * 10) and torch.equal(matrix, matrix.T)


def test_simclr_model_of_the_course():
    model = simclr.Model()
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(model.f) == 23_508_032 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64  # ResNet-50 without fc, with another stem
    assert [tuple(p.shape) for p in model.g.parameters()] == [(512, 2048), (512,), (512,), (128, 512), (128,)]
    assert model.f[0].weight.shape == (64, 3, 3, 3) and model.f[0].stride == (1, 1)
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())
    h, z = simclr.Model(7, "resnet18").eval()(torch.randn(2, 3, 32, 32))
    assert h.shape == (2, 512) and z.shape == (2, 7)
    torch.testing.assert_close(torch.cat([h.norm(dim=1), z.norm(dim=1)]), torch.ones(4))


def test_each_adjustment_is_torchvisions():
    torch.manual_seed(0)
    x, amounts = torch.rand(6, 3, 9, 9), torch.tensor([0.6, 0.8, 1.0, 1.1, 1.25, 1.4])
    x[0], x[1, :, :4] = x[0, :1], 0.0  # without colour; with black
    exact = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for kind, theirs, a in zip(simclr.ADJUST, exact, [amounts] * 3 + [(amounts - 1) / 4], strict=True):
        one_by_one = torch.stack([theirs(image, float(amount)) for image, amount in zip(x, a, strict=True)])
        torch.testing.assert_close(simclr.adjust(x, kind, a), one_by_one, atol=2e-6, rtol=0)


def test_crops_are_torchvisions(monkeypatch):
    torch.manual_seed(0)
    x = torch.rand(5, 3, 32, 32)
    boxes = torch.tensor([[0, 0, 32, 32], [3, 5, 9, 20], [31, 0, 1, 32], [8, 9, 17, 4], [2, 2, 30, 30]])
    monkeypatch.setattr(simclr, "crop_boxes", lambda *_: boxes.T.float())
    torch.manual_seed(0)
    mirrored = torch.rand(5) < 0.5
    torch.manual_seed(0)
    ours = simclr.flip(simclr.crop(x))
    crops = [tv.resized_crop(v, *box, [32, 32], antialias=True) for v, box in zip(x, boxes.tolist(), strict=True)]
    exact = torch.where(mirrored[:, None, None, None], torch.stack(crops).flip(-1), torch.stack(crops))
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=0)
    assert 0 < mirrored.sum() < 5


def test_knn_is_sklearns():
    from sklearn.neighbors import KNeighborsClassifier

    rng = torch.Generator().manual_seed(0)
    bank, h = torch.randn(500, 6, generator=rng), torch.randn(300, 6, generator=rng)
    rule = lambda z: (2 * (z[:, 0] > 0) + (z[:, 1] > 0.3)).long()
    labels, truth = rule(bank), rule(h)
    vote = lambda distance: np.exp((1 - distance) / 0.1)
    oracle = KNeighborsClassifier(50, weights=vote, metric="cosine").fit(bank.numpy(), labels.numpy())
    exact = oracle.score(h.numpy(), truth.numpy())
    assert simclr.knn_accuracy(bank, labels, h, truth, k=50) == pytest.approx(exact, abs=1 / 300) and 0.5 < exact < 1
    assert 0 < simclr.knn_accuracy(bank, labels, h, truth) < 1  # k = 200
    assert simclr.knn_accuracy(bank[:9], labels[:9], h, truth) > 0  # fewer than k


# ---------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("script", RUNS)
def test_a_tiny_run(script, monkeypatch, capsys):
    """Killed half way and continued, it ends with the bytes of an unbroken run, whatever is shown in between."""
    write_inputs()
    monkeypatch.setattr(fid, "Judge", NoJudge)
    monkeypatch.setattr("torchvision.models.resnet18", small_resnet)
    for module in (vae, simclr):
        monkeypatch.setattr(module, "evaluate_run", lambda *_: {})
    argv = [*RUNS[script], "--steps", "4", "--save-every", "2", "--deterministic"]
    script.main([*argv, "--out", "whole"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Run, "save", stop_after(2, run_module.Run.save))
        script.main([*argv, "--out", "halves"])
    assert last_of("halves")["step"] == 2
    script.main([*argv, "--out", "halves", "--sample-every", "3", "--log-every", "1"])

    whole, halves = last_of("whole"), last_of("halves")
    learned = whole.keys() - {"seconds", "rows", "sums"}
    assert same({k: whole[k] for k in learned}, {k: halves[k] for k in learned}) and whole["step"] == 4
    weights = [path.name for path in Path("whole").glob("*.pth") if path.name != "last.pth"]
    assert weights and all(Path("whole", name).read_bytes() == Path("halves", name).read_bytes() for name in weights)
    left = {path.name for path in Path("halves").iterdir()}
    assert {"config.json", "metrics.csv", "curves.png", "results.json"} <= left

    capsys.readouterr()
    if script is char_rnn:
        script.main(["--generate", "--weights", "halves", "--n-chars", "20"])
        assert len(capsys.readouterr().out) == 21
    elif script is not simclr:
        script.main(["--generate", "--weights", "halves", "--n", "4"])
        picture(Path("halves/generated.png"))


def test_a_tiny_distance(capsys):
    """Digits are nearer to other digits than to photographs."""
    as_files(photos(20)[:, :1], "photos")
    values = []
    for generated in ("digits:train", "photos"):
        fid.main(["digits:test", generated, "--features", "lenet", "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["metric"] == "FD-LeNet" and found["n_real"] == 179 and found["split"] == "test"
        values.append(found["value"])
    assert 0 < 10 * values[0] < values[1]


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q", "--durations=5", *sys.argv[1:]]))
