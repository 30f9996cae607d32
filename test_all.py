"""Tests of every script: `python test_all.py`, or pytest. No network; the real data sets are used where data/ has them.

Formulas are held against independent oracles (torch.distributions, numpy, closed forms), runs against unbroken runs.
"""

import argparse
import ast
import hashlib
import http.server
import io
import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

import char_rnn
import common
import dcgan
import fid
import gan_mnist
import images
import report
import run_folder
import simclr
import vae

torch.set_num_threads(1)  # on networks this small, threads only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
HERE = Path(__file__).parent
LONG = os.environ.get("TEST_LONG") == "1"  # set by `python test_all.py --long`
SCRIPTS = [vae, char_rnn, gan_mnist, dcgan, simclr, fid]
NEEDED = {fid: ["real", "generated"]}  # arguments without which a script does nothing


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in an empty folder, so that no run of yours is touched and no data set is found by chance."""
    monkeypatch.chdir(tmp_path)


def error_line(capsys, call, *args) -> str:
    """The one line that a call leaves on standard error when it ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        call(*args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and ": error: " in lines[-1]
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def start(*argv: str) -> subprocess.Popen:
    """A script in a process of its own, in the current folder."""
    command = [sys.executable, str(HERE / argv[0]), *argv[1:]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_and_save(*argv: str) -> subprocess.Popen:
    """The same, once it has written run/last.pth."""
    process = start(*argv)
    while not Path("run/last.pth").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    return process


def stop(process: subprocess.Popen, number: int) -> int:
    """The step at which a signal stops it, which it has to say and to have saved."""
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    step = torch.load("run/last.pth", weights_only=True)["step"]
    assert process.returncode == 128 + number and f"stopped at step {step} and saved" in said
    return step


def picture(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path))
    assert pixels.std() > 1, f"{path} shows nothing"
    return pixels


# ------------------------------------------------------------------------------------------------- every script at once


def test_import_has_no_side_effect(tmp_path):
    names = ", ".join(script.__name__ for script in SCRIPTS)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(HERE)!r}); import {names}", "--no-such-flag"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


def test_extras_are_imported_where_they_are_used():
    extras = {"tensorboard", "matplotlib", "sklearn", "tqdm", "pytest", "scipy", "pytorch_fid", "torch_fidelity"}
    for path in HERE.glob("*.py"):
        for node in ast.parse(path.read_text()).body if path.name != "test_all.py" else ():
            modules = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not extras & {m.split(".")[0] for m in modules}, f"{path.name} line {node.lineno}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_read(script):
    plumbing = "".join(Path(m.__file__).read_text() for m in (common, images, run_folder))
    source = Path(script.__file__).read_text() + plumbing
    for flag in vars(script.get_args(NEEDED.get(script, []))):
        assert re.search(rf"args\.{flag}\b", source) or flag == "given", f"nothing reads --{flag.replace('_', '-')}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    shown = capsys.readouterr().out
    assert script.__doc__.splitlines()[0] in shown and "None" not in shown and "--seed" in shown


def test_commands_and_pictures_of_the_documents():
    text = "".join((HERE / name).read_text() for name in ("README.md", "REPORT.md"))
    scripts, seen = {script.__name__: script for script in SCRIPTS}, set()
    for name, flags in re.findall(r"`python (\w+)\.py([^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if name in scripts:
            scripts[name].get_args(shlex.split(flags))  # ends with status 2 for a flag that there is not
        elif name == "report":
            seen |= {*flags.split()[:1]}
    assert seen - {"NAME"} == set(report.NAMES), (
        "every measurement of report.py is in REPORT.md, and the other way round"
    )
    pictures = {path.name: path.stat().st_size for path in (HERE / "assets").iterdir()}
    assert {*re.findall(r"assets/([\w.-]+)", text)} == set(pictures) and sum(pictures.values()) < 3e6


def test_report_refuses_a_strange_variant(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report.py", "ablation", "temperature=0.1"])
    assert "no variant temperature=0.1; there are all, " in error_line(capsys, report.main)


# ---------------------------------------------------------------------------------------------------- common plumbing


def test_batches_are_permuted_epochs():
    steps = [common.batch_indices(10, 4, step, seed=3) for step in range(1, 6)]
    first, second = torch.cat(steps).split(10)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10)) and not torch.equal(first, second)
    assert torch.equal(common.batch_indices(10, 4, 3, seed=3), steps[2])  # no memory of earlier calls
    assert not torch.equal(common.batch_indices(10, 10, 1, seed=4), first)
    assert len(common.batch_indices(3, 8, 1, seed=0)) == 8  # a batch larger than the data set


def test_numbers(capsys):
    parse = lambda *argv: common.parser("doc", 1, 1, 1.0).parse_args(argv)
    assert parse("--steps", "7", "--lr", "1e-4").lr == 1e-4
    for flag in ("--steps", "--batch-size", "--log-every"):
        for value in ("0", "-1", "1.5", "nan", "9" * 30, "two"):
            assert flag in error_line(capsys, parse, flag, value)
    for value in ("0", "-1", "nan", "inf", "two"):
        assert "--lr" in error_line(capsys, parse, "--lr", value)


def test_load_runs_no_code(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    for write in (lambda x, f: torch.save(x, f), lambda x, f: Path(f).write_bytes(pickle.dumps(x))):
        write({"script": "vae", "state_dict": Trap()}, tmp_path / "trap.pth")
        assert "refused" in error_line(capsys, vae.main, ["--generate", "--weights", str(tmp_path / "trap.pth")])
    assert not (tmp_path / "executed").exists()


# ---------------------------------------------------------------------------------------------------------------- data


def image(path: Path, size=(40, 30), mode="RGB", seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], bands), dtype=np.uint8)
    made = (
        Image.fromarray(noise.squeeze())
        if mode in ("L", "RGB", "RGBA")
        else Image.new("RGB", size, "red").convert(mode)
    )
    made.save(path)
    return path


def test_folder_of_odd_images(tmp_path, capsys, monkeypatch):
    for i, mode in enumerate(["RGB", "RGBA", "L", "P", "LA", "1"]):
        image(tmp_path / f"set/cat/{i}.png", mode=mode, size=(40 + 300 * i, 30))
        image(tmp_path / f"set/dog/{i}.jpg", size=(50, 90), seed=i)
    (tmp_path / "set/cat/notes.txt").write_text("not an image")
    (tmp_path / "set/cat/broken.png").write_bytes((tmp_path / "set/cat/0.png").read_bytes()[:200])
    (tmp_path / "set/cat/empty.png").touch()

    data = images.load_images(str(tmp_path / "set"), "mnist", "data", 16)
    assert "2 of 14 image files" in (said := capsys.readouterr().err) and "broken.png" in said and "empty.png" in said
    assert data.train.shape == (11, 3, 16, 16) and data.test.shape == (1, 3, 16, 16) and data.train.dtype == torch.uint8
    assert sorted(torch.cat([data.train_labels, data.test_labels]).tolist()) == [0] * 6 + [1] * 6

    monkeypatch.setattr(images, "decode", None)  # the second start decodes nothing
    again = images.load_images(str(tmp_path / "set"), "mnist", "data", 16)
    assert torch.equal(again.train, data.train) and "2 of 14" in capsys.readouterr().err


def test_crop_is_centred_and_channels_kept(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (255, 128, 0)
    for i in range(2):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    data = images.load_images(str(tmp_path), "mnist", "data", 8)
    assert (data.train.float().mean((0, 2, 3)) - torch.tensor([255.0, 128, 0])).abs().max() < 1


def test_sixteen_bits_keep_their_range(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((9, 9), 257 * 60 * i, np.uint16)).save(tmp_path / f"{i}.png")
    data = images.load_images(str(tmp_path), "mnist", "data", 8)
    assert sorted({*data.train.flatten().tolist(), *data.test.flatten().tolist()}) == [0, 60, 120, 180]


def test_archives(tmp_path, capsys):
    for split in ("train", "test"):
        for i in range(3):
            image(tmp_path / f"set/{split}/{i}.png", mode="L", seed=i)
    with zipfile.ZipFile("set.zip", "w") as z:
        for file in sorted(tmp_path.glob("set/*/*")):
            z.write(file, file.relative_to(tmp_path))
    with tarfile.open("set.tar.xz", "w:xz") as t:
        t.add("set")
    for name in ("set.zip", "set.tar.xz"):
        data = images.load_images(name, "mnist", "data", None)
        assert data.train.shape == data.test.shape == (3, 1, 32, 32)

    with tarfile.open("evil.tar", "w") as t:
        t.addfile(tarfile.TarInfo("../escaped.png"), io.BytesIO())
    assert "extracted" in error_line(capsys, images.load_images, "evil.tar", "mnist", "data", None)
    with zipfile.ZipFile("evil.zip", "w") as z:
        z.writestr("../escaped.png", "")
    assert "none of the 1 image files" in error_line(capsys, images.load_images, "evil.zip", "mnist", "data", None)
    assert not list(tmp_path.parent.rglob("escaped.png")) or list((tmp_path / "data").rglob("escaped.png"))


def test_classes_and_splits_of_a_mac_zip(tmp_path):
    """Class numbers are those of the whole set, even if a split lacks a class; the archiver's own files are skipped."""
    for i in range(2):
        image(tmp_path / f"set/train/cat/{i}.png", size=(70, 70), seed=i)
        image(tmp_path / f"set/test/dog/{i}.png", size=(40, 40), seed=i)
    with zipfile.ZipFile("set.zip", "w") as z:
        for file in sorted(tmp_path.glob("set/*/*/*")):
            z.write(file, file.relative_to(tmp_path))
            z.writestr(f"__MACOSX/{file.relative_to(tmp_path)}", b"no image")
    data = images.load_images("set.zip", "mnist", "data", None)
    assert data.name == "set" and data.train_labels.tolist() == [0, 0] and data.test_labels.tolist() == [1, 1]
    assert data.train.shape == data.test.shape == (2, 3, 32, 32)


def test_damaged_images_never_end_a_run(tmp_path):
    good = image(tmp_path / "set/a.jpg").read_bytes()
    image(tmp_path / "set/b.jpg")
    chance = random.Random(0)
    for i in range(60):
        damaged = bytearray(good)
        for _ in range(4):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / f"set/{i}.jpg").write_bytes(damaged[: chance.randrange(len(damaged))])
    (tmp_path / "set/nowhere.png").symlink_to("nothing")
    (tmp_path / "set/bomb.ppm").write_bytes(b"P6 60000 60000 255 ")
    data = images.load_images("set", "mnist", "data", 16)
    assert 2 <= len(data.train) + len(data.test) <= 62 and not list(Path("data/cache").glob("tmp*"))


def test_fallback_is_loud(capsys, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    data = images.load_images(None, "mnist", "data", None)
    assert data.train.shape == (1618, 1, 32, 32) and len(data.test) == 179 and "substitute" in data.note
    assert "WARNING: MNIST is not in data/" in capsys.readouterr().out
    assert "MNIST is not in data/" in error_line(capsys, images.load_images, "mnist", "mnist", "data", None)


def test_digits_fill_their_range():
    data = images.load_images("digits", "mnist", "data", 32)
    assert data.train.min() == 0 and data.train.max() == 255 and sorted(data.test_labels.unique()) == list(range(10))


@pytest.mark.skipif(not (HERE / "data/MNIST/raw/train-images-idx3-ubyte").exists(), reason="no real MNIST in data/")
def test_real_mnist():
    data = images.load_images("mnist", "mnist", str(HERE / "data"), None)
    assert data.train.shape == (60000, 1, 32, 32) and data.test.shape == (10000, 1, 32, 32)
    assert data.train_labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert not data.train[:, :, :2].any() and data.train[0, 0, 7, 14] == 3  # a margin of two pixels, no interpolation


# -------------------------------------------------------------------------------------------------------------- vae.py


def batch(channels=1, size=32, n=5, low=0.0):
    return torch.rand(n, channels, size, size) * (1 - low) + low


def test_bce_vae_loss():
    x, logits, mu, log_sigma2 = batch().round(), 3 * torch.randn(5, 1, 32, 32), torch.randn(5, 7), torch.randn(5, 7)
    rec = -Bernoulli(logits=logits).log_prob(x).sum() / 5
    kl = kl_divergence(Normal(mu, (log_sigma2 / 2).exp()), Normal(0, 1)).sum() / 5
    for xr, how in ((logits, True), (logits.sigmoid(), False)):
        torch.testing.assert_close(vae.bce_vae_loss(x, xr, mu, log_sigma2, 0.3, how), (rec + 0.3 * kl, rec, kl))
    grey, xr = batch(), logits.sigmoid()
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


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_elbo(likelihood):
    """The two loss terms, turned into nats, are E log p(x|z) − KL as torch.distributions has it."""
    torch.manual_seed(0)
    model = vae.build_vae("mlp", 4, 1, 8)
    model.set_likelihood(likelihood, 0.02)
    x = batch(size=8).round() if likelihood == "bernoulli" else batch(size=8, low=-1)
    torch.manual_seed(1)
    _, rec, kl = vae.objective(model, x, likelihood, 0.02, 1.0)
    torch.manual_seed(1)
    x_hat, mu, log_sigma2 = model(x)
    p = Bernoulli(x_hat) if likelihood == "bernoulli" else Normal(x_hat, math.sqrt(0.02 * 64))
    exact = p.log_prob(x).sum() - kl_divergence(Normal(mu, (log_sigma2 / 2).exp()), Normal(0, 1)).sum()
    assert vae.elbo(model, rec.item(), kl.item(), 64) == pytest.approx(exact.item() / 5, rel=1e-4)


def test_log_px_of_a_linear_gaussian_model():
    """x = W z + noise has log p(x) in closed form: the estimate must meet it from a posterior that is roughly right."""
    torch.manual_seed(0)
    model = vae.VAE(nn.Flatten(), nn.Unflatten(1, (1, 2, 2)), (1, 2, 2), 2)  # both "networks" only reshape
    model.decoder, model.output, model.x_sigma2 = (
        nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (1, 2, 2))),
        nn.Identity(),
        0.1,
    )
    linear, variance = model.decoder[0], 0.1 * 4
    x = torch.randint(0, 256, (200, 1, 2, 2), dtype=torch.uint8)
    cov = linear.weight @ linear.weight.T + variance * torch.eye(4)
    exact = MultivariateNormal(linear.bias, cov).log_prob(vae.scale(model, x).flatten(1)).mean().item()
    gain = linear.weight.T @ torch.linalg.inv(cov)  # E[z|x] = Wᵀ (W Wᵀ + s² I)⁻¹ (x − b)
    model.posterior = lambda v: ((v.flatten(1) - linear.bias) @ gain.T + 0.1, torch.full((len(v), 2), -0.5))
    assert vae.log_px(model, x, 1) < exact - 0.01  # one sample is the ELBO, and this posterior is not exact
    assert vae.log_px(model, x, 2000) == pytest.approx(exact, abs=0.02)


def test_tsinghua_table():
    """Every row of the course's table, seen by forward hooks."""
    latent, rows = 6, []
    model = vae.build_vae("tsinghua", latent)
    leaves = [
        m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.ReLU | nn.Sigmoid)
    ]
    for leaf in leaves:
        leaf.register_forward_hook(lambda m, _, y: rows.append((m, tuple(y.shape[1:]))))
    model(batch(n=2))
    geometry = lambda m: (m.kernel_size[0], m.stride[0], m.padding[0], *getattr(m, "output_padding", ())[:1])
    seen = [(type(m).__name__, shape, *(geometry(m) if hasattr(m, "stride") else ())) for m, shape in rows]
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


@pytest.mark.parametrize("stride, training", [(1, True), (2, True), (2, False)])
def test_transposed_convolution_is_pytorchs(stride, training):
    torch.manual_seed(0)
    ours = vae.ConvTranspose2d(3, 5, 3, stride, 1, stride - 1).double().train(training)
    theirs = nn.ConvTranspose2d(3, 5, 3, stride, 1, stride - 1).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in (ours, theirs):
        y = nn.ReLU(inplace=True)(layer(x))
        found.append([y, *torch.autograd.grad((y**2).sum(), [x, layer.weight, layer.bias])])
    assert all(map(torch.allclose, *found)), "values, and gradients by input, weight and bias"


def test_technion_course_classes():
    encoder, decoder = (
        vae.EncoderCNN(in_channels=3, out_channels=1024),
        vae.DecoderCNN(in_channels=1024, out_channels=3),
    )
    x = batch(3, 64, 2)
    assert encoder(x).shape == (2, 1024, 4, 4) and decoder(encoder(x)).shape == x.shape
    model = vae.VAE(encoder, decoder, x[0].size(), 2)
    x_rec, _, _ = model(x)
    assert x_rec.shape == x.shape and model.training and x_rec.min() >= -1


def test_reparameterize():
    torch.manual_seed(0)
    mu, log_sigma2 = torch.full((100_000, 1), 2.0, requires_grad=True), torch.full((100_000, 1), math.log(0.25))
    z = vae.TsinghuaVAE(1).reparameterize(mu, log_sigma2)
    assert z.mean().item() == pytest.approx(2, abs=0.01) and z.std().item() == pytest.approx(0.5, abs=0.01)
    z.sum().backward()
    assert (mu.grad == 1).all()


def test_bad_architectures():
    for arch, channels, size in (("tsinghua", 3, 32), ("tsinghua", 1, 28), ("technion", 3, 40), ("resnet", 1, 32)):
        with pytest.raises(ValueError, match=arch):
            vae.build_vae(arch, 2, channels, size)


# --------------------------------------------------------------------------------------------------------- char_rnn.py

WORDS = "the quick brown fox jumps over a lazy dog\nwhile nobody sees it ".split(" ")


def letters(n: int) -> str:
    chance = random.Random(0)
    return " ".join(chance.choice(WORDS) for _ in range(n))[:n]


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


@pytest.mark.parametrize("n", [61, 64, 80])
def test_batches_of_streams_are_the_samplers(n):
    ids, B, S = torch.arange(n), 4, 5
    samples, labels = ids[: (n - 1) // S * S].view(-1, S), ids[1 : (n - 1) // S * S + 1].view(-1, S)
    order = torch.tensor(list(char_rnn.SequenceBatchSampler(samples, B))).view(-1, B)
    starts = set()
    for step in range(1, 601):
        x, y, first = char_rnn.stream_batch(ids, B, S, step, seed=0)
        j, start = (step - 1) % 3, int(x[0, 0]) - 5 * ((step - 1) % 3)
        assert torch.equal(x, samples[order[j]] + start) and torch.equal(y, labels[order[j]] + start)
        assert first == (j == 0) and y.max() < n
        starts.add(start)
    assert starts == set(range(n - 60))  # what fills no batch is left out before or after


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
    run = lambda *v: torch.func.functional_call(model, dict(zip(names, v, strict=True)), (x[:2, :3], h0[:2]))
    assert torch.autograd.gradcheck(run, [v.detach().requires_grad_() for v in values])


def test_bf16_gradient_points_the_same_way():
    torch.manual_seed(0)
    model, x = char_rnn.MultilayerGRU(30, 64, 30, 2), torch.randint(0, 30, (8, 33))
    gradients = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y, h = model(x[:, :-1])
        assert h.dtype == torch.float32  # the running state is not rounded
        model.zero_grad()
        nn.functional.cross_entropy(y.float().flatten(0, 1), x[:, 1:].flatten()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_gru_steps_and_causality():
    model, x, h0 = small_gru()
    y, last = model(x, h0)
    h, hh, step = h0, h0, char_rnn.OneStep(model)
    for t in range(x.shape[1]):
        y_t, h = model(x[:, t : t + 1], h)
        scores, hh = step(x[:, t], hh)
        torch.testing.assert_close(y_t[:, 0], y[:, t])
        torch.testing.assert_close(scores, y[:, t])
    torch.testing.assert_close((h, hh), (last, last))
    future = x.clone()
    future[:, 6] = (x[:, 6] + 1) % 7
    assert torch.equal(model(future, h0)[0][:, :6], y[:, :6]) and not torch.equal(model(future, h0)[0][:, 6:], y[:, 6:])


def test_dropout_on_every_layer():
    torch.manual_seed(0)
    model, x = char_rnn.MultilayerGRU(7, 400, 400, 2, dropout=0.3), torch.randint(0, 7, (8, 20))
    with torch.no_grad():
        model.W_hy.copy_(torch.eye(400))  # shows the last layer's output
        y, h = model.eval()(x)
        dropped, h_train = model.train()(x)
        assert torch.equal(h[:, 0], h_train[:, 0]) and not torch.allclose(h[:, 1], h_train[:, 1])
        for w in (model.layers[1].W_xz, model.layers[1].W_xr, model.layers[1].W_xg):
            w.zero_()  # now the last layer's state is the same in both modes
        model.layers[1].b_g.fill_(1.0)
        y, dropped = model.eval()(x)[0], model.train()(x)[0]
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.01)
    torch.testing.assert_close(dropped[kept], y[kept] / 0.7)


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


def test_generate_from_model(monkeypatch):
    maps = char_rnn.char_maps("abcdefg")
    torch.manual_seed(0)
    model = char_rnn.MultilayerGRU(7, 5, 7, 2, 0.5).train()
    write = lambda T, seed=0: (torch.manual_seed(seed), char_rnn.generate_from_model(model, "fab", 40, maps, T))[1]
    assert len(write(1.0)) == 40 and write(1.0).startswith("fab") and model.training
    assert write(1.0) == write(1.0) != write(1.0, seed=1) and write(0.0) == write(0.0, seed=1)
    step, graphs = char_rnn.gru_step, []
    monkeypatch.setattr(char_rnn, "gru_step", lambda *a: (graphs.append(torch.is_grad_enabled()), step(*a))[1])
    write(1.0)
    assert graphs and not any(graphs)
    with pytest.raises(ValueError, match="empty"):
        char_rnn.generate_from_model(model, "", 5, maps, 1.0)
    x = torch.tensor([[maps[0][c] for c in write(0.0)]])
    assert torch.equal(model.eval()(x)[0].argmax(2)[0, 2:-1], x[0, 3:])  # T = 0 is argmax


@pytest.mark.parametrize("n", [3, 150, 2500])
def test_evaluation_scores_every_character_once(n):
    torch.manual_seed(0)
    model, ids = char_rnn.MultilayerGRU(30, 16, 30, 2, 0.5), torch.randint(0, 30, (n,))
    y, _ = model.eval()(ids[None, :-1])
    exact = nn.functional.cross_entropy(y[0], ids[1:]).item()
    model.train()
    assert char_rnn.evaluate(model, ids) == pytest.approx(exact, abs=1e-6)
    assert char_rnn.evaluate(model, ids, warm=30) == pytest.approx(exact, abs=1e-5)  # in up to 20 streams
    assert model.training


def test_text_is_cleaned_and_split(capsys):
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r")
    Path("b.txt").write_bytes("one tw\u00f6 ".encode() * 10)
    text = char_rnn.load_text("*.txt", "data", min_count=5, held_out=0.25)
    assert "removed: {'\\n': 3}" in (said := capsys.readouterr().out) and "alphabet: ' enotwö'" in said
    assert text.chars == " enotwö" and len(text.train) == 64 and len(text.test) == 22
    decoded = "".join(text.chars[i] for i in torch.cat([text.train, text.test]))
    assert decoded == "onetwo" + "one twö " * 10
    assert str(char_rnn.load_text(".", "data", 5, 0.25)) == str(text) and text.name == "text"


TINY = ["--data", "digits", "--batch-size", "8", "--latent-dim", "2", "--arch", "mlp", "--image-size", "16"]


def test_a_run_from_start_to_export(capsys):
    vae.main([*TINY, "--steps", "30", "--log-every", "10", "--sample-every", "20"])
    folder = Path("runs/vae-digits-mlp-z2")
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"{folder}: trained and measured on digits (1618 + 179 images of (1, 16, 16))"
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,split,loss,rec,kl" and len(rows) == 7 and rows[-1].startswith("30,test,")
    losses = [float(row.split(",")[2]) for row in rows[1:] if ",test," in row]
    assert losses[-1] < losses[0]
    results = json.loads((folder / "results.json").read_text())
    assert results["elbo"] < results["log_px"] < 0 and results["test_images"] == 179
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["flags"]["latent_dim"] == 2 and config["data"].startswith("digits") and config["parameters"]["model"] > 0
    )
    assert list(folder.glob("events.out.tfevents.*")) and picture(folder / "samples/step_0000030.png").shape == (
        137,
        137,
        3,
    )
    for name in ("curves", "latent", "interpolation", "reconstructions", "reconstructions/step_0000020"):
        picture(folder / f"{name}.png")

    vae.main([*TINY, "--steps", "30"])
    assert "is finished at step 30" in capsys.readouterr().out
    vae.main(["--eval", "--latent-dim", "2"])  # the same model and noise: the same numbers
    assert json.loads((folder / "results.json").read_text())["elbo"] == pytest.approx(results["elbo"], abs=1e-3)
    vae.main(["--generate", "--n", "9", "--interpolate", "--export"])
    assert picture(folder / "generated.png").shape == (52, 52, 3)
    assert "within" in capsys.readouterr().out and (folder / "VAE_model.pth").exists()

    assert "latent_dim 10" in error_line(capsys, vae.main, ["--generate", "--latent-dim", "3"])
    assert "another kind" in error_line(capsys, vae.main, ["--generate", "--weights", str(folder / "last.pth")])
    assert "seed 0 there, 1 here" in error_line(capsys, vae.main, [*TINY, "--seed", "1"])
    vae.main([*TINY, "--seed", "1", "--steps", "1", "--fresh"])
    assert len(list(Path("runs").glob("vae-digits-mlp-z2.*/last.pth"))) == 1  # the old run was moved aside


def test_eval_never_measures_on_other_data(tmp_path, capsys):
    for i in range(20):
        image(tmp_path / f"set/{i}.png", seed=i)
    vae.main(["--data", "set", "--steps", "1", "--arch", "mlp", "--latent-dim", "1"])
    image(tmp_path / "set/another.png", seed=99)  # splits anew: what was trained on could be held out now
    assert "not from set (19 + 2" in error_line(capsys, vae.main, ["--eval"])


def test_a_run_that_diverges_stops_and_keeps_what_was_good(capsys):
    argv = [*TINY, "--steps", "9", "--lr", "2e9", "--out", "run"]
    assert "Try a lower --lr" in error_line(capsys, vae.main, argv) and not Path("run/last.pth").exists()


def same(a, b) -> bool:
    """Equality of nested checkpoints, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


@pytest.mark.parametrize("arch", ["tsinghua", "technion"])
def test_resume_is_exact(arch, monkeypatch):
    monkeypatch.setattr(vae, "look_inside", lambda *_: {})
    argv = ["--data", "digits", "--batch-size", "8", "--arch", arch, "--log-every", "4", "--save-every", "3"]
    vae.main([*argv, "--steps", "12", "--out", "whole"])
    vae.main([*argv, "--steps", "6", "--out", "halves"])
    vae.main([*argv, "--steps", "12", "--out", "halves", "--sample-every", "2"])
    whole, halves = (torch.load(f"{name}/last.pth", weights_only=True) for name in ("whole", "halves"))
    assert same(whole, halves) and whole["step"] == 12 and len(whole["rows"]) == 6
    assert Path("whole/metrics.csv").read_bytes() == Path("halves/metrics.csv").read_bytes()
    vae.main([*argv, "--steps", "12", "--out", "seed1", "--seed", "1"])
    assert not same(whole["model"], torch.load("seed1/last.pth", weights_only=True)["model"])  # the check can fail


def test_sigterm_saves_and_kill_loses_nothing():
    """SIGTERM saves the step it was at; kill -9 at any moment leaves a folder that the same command continues."""
    argv = ["vae.py", *TINY, "--steps", "1000000", "--save-every", "1", "--log-every", "5", "--out", "run"]
    step = stop(start_and_save(*argv), signal.SIGTERM)

    chance = random.Random(0)
    for _ in range(50 if LONG else 3):
        process = start(*argv)
        while (line := process.stdout.readline()) and not line.startswith("step "):
            assert "error" not in line
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.wait()
        before, step = step, torch.load("run/last.pth", weights_only=True)["step"]
        assert step > before and torch.load("run/vae.pth", weights_only=True)["step"] in (step, step + 1)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--latent-dim", "0"], "--latent-dim"),
        (["--steps", "-5"], "--steps"),
        (["--beta", "-1"], "--beta"),
        (["--x-sigma2", "0"], "--x-sigma2"),
        (["--data", "digits", "--arch", "technion", "--batch-size", "1"], "BatchNorm"),
        (["--image-size", "5000"], "--image-size"),
        (["--data", "nowhere/"], "no such file or folder"),
        (["--data", "empty"], "no image file (0 other files)"),
        (["--data", "texts"], "no image file (2 other files)"),
        (["--data", "lies"], "none of the 1 image files"),
        (["--data", "one"], "two are needed"),
        (["--data", "texts/a.txt"], "neither a folder"),
        (["--data", "http://127.0.0.1:9/faces.zip"], "could not be downloaded"),
        (["--data", "digits", "--arch", "technion", "--image-size", "20"], "multiple of 16"),
        (["--data", "digits", "--arch", "tsinghua", "--image-size", "28"], "1x32x32"),
        (["--data", "digits", "--out", "/dev/null/run"], "cannot be written"),
        (["--data", "digits", "--out", "texts/a.txt"], "cannot be written"),
        (["--data", "digits", "--out", "foreign"], "not saved by vae.py"),
        (["--generate", "--weights", "foreign/last.pth"], "not saved by vae.py"),
        (["--generate", "--weights", "texts/a.txt"], "cannot be read"),
        (["--generate", "--weights", "nowhere.pth"], "No such file"),
        (["--device", "cuda"], "has none"),
    ],
)
def test_bad_input_gets_one_line(argv, says, tmp_path, capsys):
    if argv[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in ("empty", "texts", "lies", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts/a.txt").write_text("hello")
    (tmp_path / "texts/b.md").write_text("hello")
    (tmp_path / "lies/a.png").write_text("hello")
    image(tmp_path / "one/a.png")
    torch.save({"script": "dcgan", "state_dict": {}}, tmp_path / "foreign/last.pth")
    assert says in error_line(capsys, vae.main, argv)


def test_texts_are_downloaded_whole_or_not_at_all(tmp_path, capsys, monkeypatch):
    (tmp_path / "origin.txt").write_text(letters(500))
    good, wrong = hashlib.sha1(b"blob 500\0" + letters(500).encode()).hexdigest(), "0" * 40
    for sha1 in (wrong, good):
        monkeypatch.setitem(char_rnn.GIT_FILES, "tinyshakespeare", (sha1, (tmp_path / "origin.txt").as_uri()))
        text = char_rnn.load_text(None, "data", 1, 0.1)
        if sha1 == wrong:  # without --data: loudly something else
            assert "WARNING: tiny Shakespeare is not to be had" in (said := capsys.readouterr().out)
            assert "not the expected text" in said and text.name == "python" and "substitute" in text.note
            assert not list(Path("data").iterdir())
            assert "expected" in error_line(capsys, char_rnn.load_text, "tinyshakespeare", "data", 1, 0.1)
    assert text.name == "tinyshakespeare" and len(text.train) == 450 and Path("data/tinyshakespeare.txt").exists()
    monkeypatch.setattr("urllib.request.urlopen", None)  # the second start needs no network
    assert str(char_rnn.load_text(None, "data", 1, 0.1)) == str(text)


@pytest.mark.skipif(not (HERE / "data/tinyshakespeare.txt").exists(), reason="no tiny Shakespeare in data/")
def test_real_tiny_shakespeare():
    text = char_rnn.load_text(None, str(HERE / "data"), 1, 0.1)
    assert (len(text.train), len(text.test), len(text.chars)) == (1003854, 111540, 65)


def test_it_memorises():
    Path("poem.txt").write_text(letters(200))
    argv = ["--data", "poem.txt", "--held-out", "0", "--batch-size", "1", "--seq-len", "199", "--h-dim", "64"]
    char_rnn.main([*argv, "--n-layers", "1", "--dropout", "0", "--lr", "0.01", "--steps", "300", "--out", "run"])
    said = start(
        "char_rnn.py", "--generate", "--weights", "run", "--start", letters(1), "--temperature", "0", "--n-chars", "200"
    )
    assert letters(200) in said.communicate()[0]


TALE = ["--data", "tale.txt", "--h-dim", "16", "--batch-size", "4", "--seq-len", "10", "--eval-every", "4"]


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_char_rnn_resumes_exactly(schedule, monkeypatch):
    """Nine batches are an epoch: the hidden state is carried over the interruption at step 8, and reset after it."""
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--lr-schedule", schedule, "--log-every", "3", "--save-every", "3", "--steps", "14"]
    char_rnn.main([*argv, "--out", "whole"])
    with monkeypatch.context() as patch:
        once = iter([char_rnn.evaluate])
        patch.setattr(char_rnn, "evaluate", lambda *given: next(once)(*given))  # the second call, at step 8, raises
        with pytest.raises(StopIteration):
            char_rnn.main([*argv, "--out", "halves"])
    assert torch.load("halves/last.pth", weights_only=True)["step"] == 6
    char_rnn.main([*argv, "--out", "halves"])
    whole, halves = (torch.load(f"{name}/last.pth", weights_only=True) for name in ("whole", "halves"))
    assert same(whole, halves) and whole["step"] == 14
    assert Path("whole/metrics.csv").read_bytes() == Path("halves/metrics.csv").read_bytes()


def test_killed_and_continued_char_rnn_ends_with_the_same_weights():
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--steps", "60", "--save-every", "1"]
    process = start_and_save("char_rnn.py", *argv, "--out", "run")
    process.kill()
    process.wait()
    killed_at = torch.load("run/last.pth", weights_only=True)["step"]
    char_rnn.main([*argv, "--out", "run"])
    char_rnn.main([*argv, "--out", "whole"])
    assert 0 < killed_at < 60
    assert same(*(torch.load(f"{name}/last.pth", weights_only=True) for name in ("run", "whole")))


def test_the_hidden_state_is_carried_and_reset(monkeypatch):
    Path("tale.txt").write_text(letters(410))  # nine batches are an epoch
    forward, calls = char_rnn.MultilayerGRU.forward, []

    def spy(model, x, hidden=None):
        y, last = forward(model, x, hidden)
        if model.training:
            calls.append((hidden, last))
        return y, last

    monkeypatch.setattr(char_rnn.MultilayerGRU, "forward", spy)
    char_rnn.main([*TALE, "--steps", "11", "--out", "run"])
    given, returned = zip(*calls, strict=True)
    assert [k for k, h in enumerate(given) if h is None] == [0, 9]
    assert all(torch.equal(given[k], returned[k - 1]) and not given[k].requires_grad for k in range(1, 9))


def test_averages_best_weights_plateaus_and_early_stopping(capsys):
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--lr", "0.05", "--dropout", "0", "--lr-schedule", "plateau", "--log-every", "4", "--no-bf16"]
    char_rnn.main([*argv, "--steps", "4", "--out", "short"])
    rate = lambda last: last["optimizer"]["param_groups"][0]["lr"]
    assert rate(torch.load("short/last.pth", weights_only=True)) == 0.05
    argv += ["--early-stopping", "9", "--steps", "2000", "--out", "run"]
    char_rnn.main(argv)
    assert "stopped early" in capsys.readouterr().out
    last, best = (torch.load(f"run/{name}.pth", weights_only=True) for name in ("last", "char_rnn"))
    assert rate(last) < 0.05  # halved, and only on a plateau

    averaged = {k.removeprefix("module."): v for k, v in last["averaged"].items() if k != "n_averaged"}
    assert not same(averaged, last["model"]) and not same(averaged, best["state_dict"])
    measured = {row["step"]: row["nats"] for row in last["rows"] if row["split"] == "test"}
    assert best["step"] == min(measured, key=measured.get) == last["step"] - 36
    model = char_rnn.build(best)
    nats = char_rnn.evaluate(model, char_rnn.load_text("tale.txt", "data", 1, 0.1).test)
    results = json.loads(Path("run/results.json").read_text())
    assert nats == pytest.approx(min(measured.values()), abs=1e-5) == results["nats"]
    assert results["best_step"] == best["step"] and max(measured.values()) > nats + 0.05  # the check can fail
    assert list(Path("short/samples").glob("*4.txt"))[0].read_text()

    char_rnn.main(argv)
    assert "was stopped early" in capsys.readouterr().out
    Path("run/results.json").unlink()  # killed while it measured
    char_rnn.main(argv)
    assert json.loads(Path("run/results.json").read_text())["nats"] == results["nats"]


def test_another_number_of_steps_is_another_cosine(capsys):
    Path("tale.txt").write_text(letters(410))
    for steps in ("4", "8"):
        char_rnn.main([*TALE, "--steps", steps, "--out", "run"])
    assert "the cosine was drawn for 4 steps" in capsys.readouterr().out
    char_rnn.main([*TALE, "--steps", "2", "--out", "run"])  # nothing left to do
    assert "is finished" in capsys.readouterr().out


def test_run_killed_before_its_first_measurement():
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--eval-every", "9999999", "--save-every", "1", "--out", "run"]
    process = start_and_save("char_rnn.py", *argv, "--steps", "9999999")
    process.send_signal(signal.SIGINT)
    process.communicate()
    char_rnn.main([*argv, "--steps", "1"])
    assert json.loads(Path("run/results.json").read_text())["best_step"] > 0


def test_generated_text_alone_is_on_standard_output(capsys):
    command = [sys.executable, str(HERE / "char_rnn.py"), "--generate", "--n-chars", "50"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout) == 51 and "(shipped)" in done.stderr
    two = subprocess.run([*command, "--n-samples", "2"], capture_output=True, text=True).stdout
    assert two.startswith(done.stdout) and len(two) == 103  # seeded; a blank line in between
    process = subprocess.Popen([*command, "--n-chars", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()  # as `| head` does
    assert b"Traceback" not in process.stderr.read()
    for nowhere in (">&-", ">/dev/full"):
        done = subprocess.run(["sh", "-c", f"{' '.join(command)} {nowhere}"], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and "error: standard output" in done.stderr and "Traceback" not in done.stderr

    Path("some.txt").write_text("To be, or not to be: that is the question. 5")
    char_rnn.main(["--score", "some.txt"])
    out, err = capsys.readouterr()
    nats, bits = map(float, re.findall(r"([\d.]+) (?:nats|bits)", out))
    assert bits == pytest.approx(nats / math.log(2), abs=1e-3) and "left out: 1 characters, ['5']" in err and nats < 3
    char_rnn.main(["--export"])
    assert "within" in capsys.readouterr().out and Path("runs/char_rnn-shipped/char_rnn_model.pt2").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "empty.txt"], "0 characters, 0 of them distinct"),
        (["--data", "same.txt"], "100 characters, 1 of them distinct"),
        (["--data", "short.txt"], "one batch of 32 sequences needs 2,049"),
        (["--data", "short.txt", "--held-out", "0.01"], "leaves too few to measure"),
        (["--data", "short.txt", "--min-count", "99"], "0 characters, 0 of them distinct"),
        (["--data", "binary.txt"], "is a binary file"),
        (["--data", "latin1.txt"], "not UTF-8 text (byte 0xe9 at position 3)"),
        (["--data", "nowhere.txt"], "no such file"),
        (["--data", ""], "--data is empty"),
        (["--data", "folder"], "there is no .txt file in it"),
        (["--data", "http://127.0.0.1:9/a.txt"], "failed"),
        (["--generate", "--start", "caf\u00e9"], "'\u00e9' is not in the alphabet"),
        (["--generate", "--start", ""], "--start is empty"),
        (["--generate", "--temperature", "-1"], "--temperature"),
        (["--generate", "--temperature", "nan"], "--temperature"),
        (["--generate", "--top-k", "0"], "--top-k"),
        (["--generate", "--top-p", "0"], "--top-p"),
        (["--generate", "--top-p", "1.5"], "--top-p"),
        (["--score", "nowhere.txt"], "no such file"),
        (["--score", "strange.txt"], "0 characters of the alphabet"),
        (["--dropout", "1"], "--dropout"),
        (["--clip", "0"], "--clip"),
        (["--ema", "1"], "--ema"),
    ],
)
def test_bad_text_input_gets_one_line(argv, says, tmp_path, capsys):
    for name, content in {
        "empty": b"",
        "same": b"a" * 100,
        "short": letters(100).encode(),
        "binary": b"a\0b",
        "latin1": "caf\u00e9".encode("latin-1"),
        "strange": "\u00e9\u00e8".encode(),
    }.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "folder").mkdir()
    assert says in error_line(capsys, char_rnn.main, argv)


# -------------------------------------------------------------------------------------------------------------- fid.py


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Weights in the layout of FID's file: random, BatchNorm's statistics measured, so that features vary."""
    torch.manual_seed(0)
    net = fid.Inception()
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    with torch.no_grad():
        net.train()(batch(3, n=4))
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


def photos(n: int, size=32) -> torch.Tensor:
    """uint8 images (n, 3, size, size): CIFAR-10's where data/ has them, else smooth noise."""
    files = sorted((HERE / "data/cifar10-jpeg/test").glob("*/*"))[::97][:n]
    if len(files) == n:
        return images.resize(torch.stack([fid._read(f, "RGB") for f in files]), size)
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return common.to_uint8(images.resize(noise, size).clamp(0, 1))


def as_files(pixels: torch.Tensor, folder: str) -> str:
    Path(folder).mkdir(parents=True)
    for i, x in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(x.squeeze()).save(f"{folder}/{i:05d}.png")
    return folder


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_inception_is_pytorch_fids(inception_file, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    weights = torch.load(inception_file, weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: weights)
    x, ours = photos(64 if LONG else 8), fid.inception(inception_file)
    with torch.no_grad():
        reference = theirs.InceptionV3().eval()(x / 255)[0].flatten(1)
        assert reference.shape == (len(x), 2048) and reference.std(0).median() > 0.01
        assert apart(ours(x / 255), reference) < 1e-6
        assert apart(torch.cat(list(fid.features(x, ours, 5))), reference) < 1e-4  # BatchNorm folded, channels_last
        large = torch.rand(1, 3, 700, 500)
        assert apart(ours(large), theirs.InceptionV3().eval()(large)[0].flatten(1)) < 1e-6
    assert ours.state_dict().keys() == weights.keys() and not ours.training
    assert ours.sha256 == hashlib.sha256(inception_file.read_bytes()).hexdigest()


def test_inception_is_torch_fidelitys(inception_file):
    """On images of 299 x 299, because it resizes as TensorFlow 1 does; it scales by 128, so that 256 means our 1."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    x = photos(4, 299)
    with torch.no_grad():
        reference = theirs("", ["2048"], feature_extractor_weights_path=inception_file)(x)[0]
        assert apart(fid.inception(inception_file)(x / 256), reference) < 1e-6


def spd(d: int, seed: int, rank: int | None = None) -> torch.Tensor:
    a = torch.randn(rank or 2 * d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a.T @ a / len(a)


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


def test_frechet_distance_of_random_pairs_is_scipys():
    linalg, seen = pytest.importorskip("scipy.linalg"), 0
    for seed in range(200):
        d = 2 + seed % 23
        mu1, mu2 = torch.randn(2, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        sigma1, sigma2 = spd(d, 2 * seed), spd(d, 2 * seed + 1)
        root = linalg.sqrtm((sigma1 @ sigma2).numpy())
        exact = ((mu1 - mu2) ** 2).sum() + sigma1.trace() + sigma2.trace() - 2 * np.trace(root).real
        ours = fid.frechet_distance(mu1, sigma1, mu2, sigma2)
        assert isinstance(ours, float) and ours == pytest.approx(exact.item(), rel=1e-6)
        assert ours == pytest.approx(fid.frechet_distance(mu2, sigma2, mu1, sigma1), rel=1e-9)
        seen += 1
    assert seen == 200


def test_frechet_distance_of_singular_covariances():
    """100 images of 2048 features: from the covariances (by eigenvectors) as from the features themselves."""
    x, y = torch.randn(2, 100, 2048, generator=torch.Generator().manual_seed(0)).relu()
    a, b = (fid.statistics(h.split(30)) for h in (x, y))
    sigma = [np.cov(h.double().numpy(), rowvar=False) for h in (x, y)]
    value = fid.distance(a.mu, a.factor, b.mu, b.factor)
    assert a.factor.shape == (100, 2048) and 0 < value < math.inf
    assert fid.factor(torch.from_numpy(sigma[0])).shape == (99, 2048)
    assert fid.frechet_distance(a.mu, sigma[0], b.mu, sigma[1]) == pytest.approx(value, rel=1e-6)
    assert fid.frechet_distance(a.mu, sigma[0], a.mu, sigma[0]) <= 1e-6
    assert fid.distance(a.mu, a.factor, a.mu, a.factor) <= 1e-6


def test_frechet_distance_refuses_what_is_none():
    mu, sigma, nan = torch.zeros(3), torch.eye(3), torch.full((3, 3), math.nan)
    for wrong, says in (
        ((mu, nan, mu, sigma), "not finite"),
        ((mu, sigma, mu * math.nan, sigma), "not finite"),
        ((mu, sigma, torch.zeros(4), torch.eye(4)), "different features: 3 and 4"),
        ((mu, torch.eye(4), mu, sigma), r"not \(3,\) .*, \(4, 4\)"),
        ((mu, -sigma, mu, sigma), "no covariance"),
        ((mu, sigma + 0j, mu, sigma), "real mean"),
    ):
        with pytest.raises(ValueError, match=says):
            fid.frechet_distance(*wrong)


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


def test_a_folder_is_read_ahead_by_one_batch(monkeypatch):
    seen, read = [], fid._read
    monkeypatch.setattr(fid, "_read", lambda *args: (seen.append(args), read(*args))[1])
    batches = fid.folder_images(Path(as_files(photos(40), "set")), "RGB", 4)
    seen.clear()
    assert sum(len(next(batches)) for _ in range(3)) == 12 and len(seen) <= 16
    batches.close()


def test_order_batches_and_files_change_nothing(inception_file):
    x, other = photos(24).split(12)
    net, values = fid.inception(inception_file), []
    real = fid.statistics(fid.features(other, net))
    files = fid.folder_images(Path(as_files(x, "set")), "RGB", 7)
    for pictures, size in ((x, 50), (x[torch.randperm(12)], 5), ((one[None] for one in x), 1), (files, 7)):
        s = fid.statistics(fid.features(pictures, net, size))
        values.append(fid.distance(real.mu, real.factor, s.mu, s.factor))
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        fid.activation_statistics(x / 255, net)


def test_folder_of_any_sizes_and_modes(inception_file, capsys):
    """The oracle is ToTensor and the network, image by image. Sub-folders count, broken files are named."""
    for i, (mode, size) in enumerate([("RGB", (40, 30)), ("L", (299, 299)), ("P", (64, 200)), ("RGBA", (9, 9))]):
        image(Path(f"set/sub{i % 2}/{i}.png"), size, mode, seed=i)
    Image.fromarray(np.full((9, 9), 257 * 60, np.uint16)).save("set/deep.png")
    Path("set/broken.png").write_bytes(Path("set/sub0/0.png").read_bytes()[:99])
    Path("set/empty.jpg").touch()
    net, h = fid.inception(inception_file), []
    for file in sorted(Path("set/").glob("sub*/*")):
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        h.append(net(pixels[None] / 255))
    h.append(net(torch.full((1, 3, 9, 9), 60 / 255)))
    h = torch.cat(h)
    for size in (3, 50):
        mu, sigma = fid.activation_statistics(fid.folder_images(Path("set"), "RGB", size), net, size)
        assert apart(mu, h.double().mean(0)) < 1e-4
        assert apart(sigma, torch.cov(h.double().T)) < 1e-3
    assert "2 of 7 image files in set" in (said := capsys.readouterr().err) and "broken.png" in said


def test_a_data_set_is_read_at_the_size_of_what_it_is_compared_with(capsys):
    as_files(photos(3, 20), "set")
    fid.main(["digits:test", "set", "--features", "lenet", "--json"])
    assert json.loads(capsys.readouterr().out)["size_real"] == 20
    fid.main(["digits:test", as_files(photos(3, 70), "large"), "--features", "lenet", "--json"])
    found = capsys.readouterr()
    assert json.loads(found.out)["size_real"] == 32 and "images of other sizes" in found.err


def test_kid():
    """Against its double sum over pairs, torch-fidelity, and its own name: unbiased."""
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64) + 1
    k = lambda a, b: (a @ b / 5 + 1).item() ** 3
    pairs = lambda a: sum(k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j) / len(a) / (len(a) - 1)
    exact = pairs(x) + pairs(y) - 2 * sum(k(p, q) for p in x for q in y) / 24
    assert fid.kid(x, y) == pytest.approx(exact, rel=1e-9)

    x, y = torch.randn(2, 1100, 5)
    theirs = pytest.importorskip("torch_fidelity.metric_kid")
    exact = theirs.kid_features_to_metric(x.double(), y.double(), kid_subsets=1, kid_subset_size=1100, verbose=False)
    assert fid.kid(x, y) == pytest.approx(exact["kernel_inception_distance_mean"], rel=1e-6)
    many = torch.tensor([fid.kid(*torch.randn(2, 8, 5)) for _ in range(2000)])
    assert many.min() < 0 < many.max() and abs(many.mean()) < 4 * many.std() / 2000**0.5


def test_lenet_is_trained_once(capsys, monkeypatch):
    data = images.load_images("digits", "mnist", "data", 28)
    net = fid.lenet(data, "data", torch.device("cpu"))
    assert net.accuracy > 0.9 and f"accuracy {net.accuracy:.2%}" in capsys.readouterr().err
    file = next(Path("data/cache").glob("lenet-digits-*.pth"))
    assert net.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(fid, "_trained", None)  # the second start trains nothing
    again = fid.lenet(data, "data", torch.device("cpu"))
    assert again.accuracy == net.accuracy and again.sha256 == net.sha256
    seen = fid.classes(net(data.test[data.test_labels == 3] / 255), net)
    assert seen["class_histogram"][3] / sum(seen["class_histogram"]) > 0.8 and seen["class_entropy"] < 1 < math.log(10)
    p = torch.softmax(net.classifier(net(data.test / 255)), 1).numpy()
    share = np.bincount(p.argmax(1), minlength=10) / 179
    seen = fid.classes(net(data.test / 255), net)
    assert seen["class_entropy"] == pytest.approx(-sum(q * math.log(q) for q in share), rel=1e-5)
    assert seen["confident"] == pytest.approx((p.max(1) > 0.9).mean(), rel=1e-5)
    assert net(torch.rand(2, 1, 60, 30)).shape == (2, 84)  # not squares
    with pytest.raises(ValueError, match="no classes"):
        fid.lenet(data._replace(train_labels=data.train_labels * 0), "data", torch.device("cpu"))


def test_a_run_reports_what_the_command_measures(capsys, inception_file):
    vae.main([*TINY, "--steps", "20", "--out", "run"])
    said, results = capsys.readouterr(), json.loads(Path("run/results.json").read_text())
    assert "python fid.py digits:test run" in said.out and "WARNING: held-out: 179 images" in said.err
    about = results["fd_lenet_about"]
    for argv in (["digits:test", "run"], ["digits:test", "run/vae.pth", "--batch-size", "7"]):
        fid.main([*argv, "--features", "lenet", "--json"])
        found = capsys.readouterr()
        measured = json.loads(found.out)
        assert measured["metric"] == "FD-LeNet" and "WARNING: digits:test: 179 images" in found.err
        assert measured["value"] == pytest.approx(results["fd_lenet"], rel=1e-6)
        assert about.items() <= measured.items() and measured["seed"] == 0 and about["n_real"] == 179
        assert measured["class_histogram"] == results["class_histogram"] and measured["n_generated"] == 10000
        assert sum(measured["class_histogram"]) == 10000 and measured["size_real"] == 16
        assert measured["split"] == "test"
    values = {results["fd_lenet"]}
    for seed in ("0", "1"):
        fid.main(["digits:test", "run", "--features", "lenet", "--json", "--n", "501", "--seed", seed])
        measured = json.loads(capsys.readouterr().out)
        assert measured["seed"] == int(seed) and measured["n_generated"] == 501
        values.add(measured["value"])
    assert len(values) == 3
    fid.main(["run", "run", "--json", "--save-stats", "x.npz", "--n", "4", "--weights", str(inception_file)])
    assert json.loads(capsys.readouterr().out)["seed"] == 0  # GENERATED's; REAL draws from the next one
    fid.main(["run", "x.npz", "--json", "--n", "4", "--weights", str(inception_file)])
    again = json.loads(capsys.readouterr().out)
    assert again["seed"] == 1 and again["value"] <= 1e-6


def test_the_end_of_a_run_survives_samples_that_cannot_be_measured(tmp_path, capsys):
    """A generator that makes one image only is measured; a single held-out image is left out with a line."""
    data = images.load_images("digits", "mnist", "data", 28)
    constant = lambda *_: [torch.full((500, 1, 28, 28), 77, dtype=torch.uint8)]
    results = fid.measured(constant, fid.judges(data, "data", torch.device("cpu")))
    assert results["fd_lenet"] > 1 and results["class_entropy"] == 0

    for i in range(12):
        image(tmp_path / f"twelve/{i % 2}/{i}.png", mode="L", seed=i)
    vae.main(["--data", "twelve", "--steps", "1", "--arch", "mlp", "--latent-dim", "1", "--out", "run"])
    assert "left out: a covariance needs at least two images" in capsys.readouterr().err
    assert "fd_lenet" not in json.loads(Path("run/results.json").read_text())


def test_command_and_statistics(inception_file, capsys):
    """The value from images, from our .npz of one side, from pytorch-fid's of both; and what the result says."""
    x, y = photos(20).split(10)
    a, b, weights = as_files(x, "a"), as_files(y, "b"), ["--weights", str(inception_file)]
    fid.main([a, b, *weights, "--json", "--kid", "--save-stats", "a.npz"])
    found = capsys.readouterr()
    result = json.loads(found.out)
    net = fid.inception(inception_file)
    assert result["kid"] == pytest.approx(fid.kid(*(torch.cat(list(fid.features(p, net))) for p in (x, y))), rel=1e-4)
    assert "WARNING: a: 10 images; with less than 2,048" in found.err and "no published FID compares" in found.err
    expected = {"metric": "FID", "n_real": 10, "n_generated": 10, "real": a, "generated": b, "dtype": "float32"}
    assert expected.items() <= result.items() and result["weights_sha256"] == net.sha256 and "299" in result["resize"]
    assert {"features", "split", "seed"} < result.keys() and result["split"] is result["seed"] is None

    fid.main(["a.npz", b, *weights])
    assert capsys.readouterr().out.startswith(f"FID: {result['value']:.6g} | ")
    with np.load("a.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (2048,) and file["sigma"].shape == (2048, 2048) and file["mu"].dtype == np.float64
        np.savez("theirs.npz", mu=file["mu"], sigma=file["sigma"])
    fid.main(["a.npz", "theirs.npz", "--json"])  # needs no network at all
    again = json.loads(capsys.readouterr().out)
    assert again["value"] <= 1e-6 and again["weights_sha256"] == net.sha256 and again["n_real"] == 10
    fid.main(["theirs.npz", "theirs.npz"])
    said = re.match(r"Fréchet distance: (\S+) \| features of .npz files that do not say which", capsys.readouterr().out)
    assert float(said[1]) <= 1e-6
    fid.main(["digits:test", "--features", "lenet", "--save-stats", "lenet.npz"])
    fid.main(["lenet.npz", "lenet.npz"])
    found = capsys.readouterr()
    assert float(re.match(r"FD-LeNet: (\S+) \| features LeNet-5", found.out)[1]) <= 1e-6
    assert "WARNING: lenet.npz: 179 images" in found.err

    fid.main([a, b, *weights, "--bf16", "--json"])
    found = capsys.readouterr()
    assert re.search(r"bfloat16 features, [\d.]+% off", found.err) and json.loads(found.out)["dtype"] == "bfloat16"


def test_missing_weights_are_named_with_address_and_place(capsys, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    monkeypatch.setattr(fid, "URLS", ["http://127.0.0.1:9/a.pth", "http://127.0.0.1:9/b.pth"])
    as_files(photos(2), "set")
    line = error_line(capsys, fid.main, ["set", "set"])
    assert "hub/checkpoints" in line and "http://127.0.0.1:9/a.pth" in line and "--weights" in line

    Path("hub/checkpoints", fid.NAME).write_bytes(b"half a file")
    assert "is damaged" in error_line(capsys, fid.main, ["set", "set"])


def test_download_takes_the_mirror_and_checks_the_hash(inception_file, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    Path("wrong.pth").write_bytes(b"<html>")
    monkeypatch.setattr(fid, "URLS", [Path("wrong.pth").absolute().as_uri()])
    with pytest.raises(OSError, match="its sha256 begins"):
        fid.inception()
    assert not list(Path("hub/checkpoints").iterdir())
    monkeypatch.setattr(fid, "URLS", [*fid.URLS, inception_file.as_uri()])
    monkeypatch.setattr(fid, "SHA256", hashlib.sha256(inception_file.read_bytes()).hexdigest()[:8])
    assert fid.inception().sha256.startswith(fid.SHA256) and Path("hub/checkpoints", fid.NAME).exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["set", "nowhere"], "there is no nowhere"),
        (["set", "nowhere.npz"], "no file nowhere.npz"),
        (["set", "empty"], "empty holds no image file"),
        (["set", "broken"], "at least two images; there are 0"),
        (["mnist", "set"], "there is no mnist; a data set is named with its split"),
        (["set"], "--save-stats"),
        (["", "set"], "a name is empty"),
        (["set", "--kid", "--save-stats", "x.npz"], "name the generated images too"),
        (["good.npz", "--save-stats", "x.npz"], "images as REAL"),
        (["set", "--save-stats", "nowhere/x.npz"], "a folder that exists"),
        (["set", "odd.npz"], "odd.npz does not hold"),
        (["set", "unsaved"], "is a run folder, but holds no vae.pth"),
        (["set", "notes.txt"], "neither a folder"),
        (["set", "pickle.npz"], "pickle.npz does not hold the statistics"),
        (["set", "cut.npz"], "cut.npz does not hold the statistics"),
        (["set", "text.npz"], "text.npz does not hold the statistics"),
        (["set", "nan.npz"], "not finite"),
        (["set", "other.npz"], "other.npz does not hold"),
        (["good.npz", "small.npz"], "different features: 5 and 3"),
        (["ours.npz", "set"], "not comparable"),
        (["good.npz", "set", "--kid"], "--kid needs images"),
        (["set", "set", "--save-stats", "good.npz"], "a new file.npz"),
        (["set", "set", "--save-stats", "stats"], "a new file.npz"),
        (["set", "set", "--weights", "nowhere.pth"], "No such file"),
        (["set", "set", "--weights", "notes.txt"], "does not hold the weights"),
        (["set", "set", "--weights", "trap.pth"], "does not hold the weights"),
        (["set", "set", "--features", "lenet"], "data set with classes as REAL"),
        (["set:test", "set", "--features", "lenet"], "has no classes"),
        (["digits:test", "set", "--features", "lenet", "--bf16"], "not for --features lenet"),
        (["set", "set", "--n", "1"], "--n"),
        (["set", "set", "--batch-size", "0"], "--batch-size"),
        (["digits:test", "folder-run"], "another kind of file"),
    ],
)
def test_bad_input_of_fid_gets_one_line(argv, says, tmp_path, capsys, inception_file):
    as_files(photos(4), "set")
    for name in ("empty", "broken", "folder-run", "unsaved"):
        Path(name).mkdir()
    Path("unsaved/config.json").touch()
    Path("broken/a.png").write_bytes(b"no image")
    Path("notes.txt").write_text("no image")
    good = {"mu": np.zeros(5), "sigma": np.eye(5)}
    np.savez("good.npz", **good)
    np.savez("small.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez("ours.npz", **good, about=json.dumps({"n": 9, "made_by": {"weights_sha256": "0" * 64}}))
    np.savez("odd.npz", **good, about="[1]")
    np.savez("pickle.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    np.savez("nan.npz", mu=np.zeros(2), sigma=np.full((2, 2), np.nan))
    np.savez("other.npz", x=np.zeros(2))
    Path("cut.npz").write_bytes(Path("good.npz").read_bytes()[:200])
    Path("text.npz").write_text("text")

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"fc.weight": Trap()}, "trap.pth")
    torch.save({"script": "vae", "flags": {}}, "folder-run/vae.pth")
    if "--weights" not in argv and "lenet" not in argv:
        argv = [*argv, "--weights", str(inception_file)]
    assert says in error_line(capsys, fid.main, argv) and not Path("executed").exists()


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
        assert same(D.state_dict(), build(seed=0).state_dict()) and not same(D.state_dict(), build(seed=1).state_dict())
    for build, n in ((gan_mnist.generator, 1858320), (gan_mnist.build_dc_generator, 6580801)):
        G = build(seed=0)
        assert isinstance(G, nn.Sequential) and count(G) == n and same(G.state_dict(), build(4, 0).state_dict())
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


def test_gan_losses_are_stable():
    s = torch.tensor([[1000.0], [-1000.0], [0.0]], requires_grad=True)
    assert gan_mnist.bce_loss(s, torch.ones_like(s)).item() == pytest.approx((1000 + math.log(2)) / 3)
    assert gan_mnist.bce_loss(s, torch.zeros_like(s)).item() == pytest.approx((1000 + math.log(2)) / 3)
    (gan_mnist.discriminator_loss(s, -s) + gan_mnist.generator_loss(s)).backward()
    oracle = s.detach().clone().requires_grad_()
    bce = nn.functional.binary_cross_entropy_with_logits
    one, zero = torch.ones_like(s), torch.zeros_like(s)
    (bce(oracle, one) + bce(-oracle, zero) + bce(oracle, one)).backward()
    torch.testing.assert_close(s.grad, oracle.grad)


TINY_GAN = ["--data", "digits", "--batch-size", "8", "--noise-dim", "3", "--save-every", "3", "--log-every", "4"]


@pytest.mark.parametrize("arch", ["dense", "conv"])
def test_each_step_changes_its_own_network(arch, monkeypatch):
    """D's step leaves G and its gradients alone; G's step changes G, and no gradient reaches D's weights."""
    networks, seen, get_optimizer = [], [], gan_mnist.get_optimizer
    weights = lambda: [[p.detach().clone() for p in m.parameters()] for m in networks]
    gradients = lambda m: [None if p.grad is None else p.grad.clone() for p in m.parameters()]

    def spied(model, lr):
        optimizer, number = get_optimizer(model, lr), len(networks)
        networks.append(model)
        step = optimizer.step

        def stepped():
            before = weights()
            step()
            changed = [not same(a, b) for a, b in zip(before, weights(), strict=True)]
            seen.append((number, changed, [gradients(m) for m in networks]))

        optimizer.step = stepped
        return optimizer

    monkeypatch.setattr(gan_mnist, "get_optimizer", spied)
    monkeypatch.setattr(fid, "report", lambda *_: {})
    monkeypatch.setattr(fid, "SAMPLES", 500)
    gan_mnist.main([*TINY_GAN, "--arch", arch, "--steps", "2"])
    G, D = 0, 1
    assert [number for number, _, _ in seen] == [D, G, D, G]
    assert [changed for _, changed, _ in seen] == [[False, True], [True, False]] * 2
    assert seen[0][2][G] == [None] * len(seen[0][2][G])
    for first, second in zip(seen, seen[1:], strict=False):
        other = 1 - second[0]
        assert same(first[2][other], second[2][other])  # what one network learns from, the other's step has not touched


@pytest.mark.parametrize(("arch", "loss", "ema"), [("dense", "gan", "0"), ("conv", "lsgan", "0.9")])
def test_gan_resume_is_exact(arch, loss, ema, monkeypatch):
    monkeypatch.setattr(fid, "report", lambda *_: {})
    monkeypatch.setattr(fid, "SAMPLES", 500)
    argv = [*TINY_GAN, "--arch", arch, "--loss", loss, "--ema", ema]
    gan_mnist.main([*argv, "--steps", "8", "--out", "whole"])
    gan_mnist.main([*argv, "--steps", "5", "--out", "halves"])
    gan_mnist.main([*argv, "--steps", "8", "--out", "halves", "--sample-every", "2"])
    whole, halves = (torch.load(f"{name}/last.pth", weights_only=True) for name in ("whole", "halves"))
    networks = {k: v for k, v in whole.items() if k not in run_folder.Run.KEPT}
    assert same(networks, {k: halves[k] for k in networks}) and len(networks) == (4 if ema == "0" else 5)
    gan_mnist.main([*argv, "--steps", "8", "--out", "seed1", "--seed", "1"])
    assert not same(whole["G"], torch.load("seed1/last.pth", weights_only=True)["G"])  # the check can fail
    saved = torch.load("whole/generator.pth", weights_only=True)["state_dict"]
    assert same(saved, whole["G"]) == (ema == "0")
    if ema != "0":
        gan_mnist.main([*argv[:-1], "0", "--steps", "8", "--out", "plain", "--log-every", "3"])
        plain = torch.load("plain/last.pth", weights_only=True)
        assert same(plain["G"], whole["G"]) and same(plain["D"], whole["D"])  # averaging and logging change no training
        averaged = {k.removeprefix("module."): v for k, v in whole["averaged"].items()}
        assert all(torch.equal(saved[k], averaged[k]) for k in saved)


def test_a_gan_from_start_to_samples(capsys):
    gan_mnist.main([*TINY_GAN, "--steps", "8", "--sample-every", "8"])
    folder, found = Path("runs/gan_mnist-digits-gan-dense"), capsys.readouterr()
    assert found.out.splitlines()[-1].startswith(
        f"{folder}: trained and measured on digits (1618 + 179 images of (1, 28"
    )
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,split,d_loss,g_loss,d_x,d_g_z,fd_lenet,class_entropy"
    splits = ["train", "before G's step", "after G's step"]
    expected = [["4", split] for split in splits] + [["8", split] for split in [*splits, "samples"]]
    assert [row.split(",")[:2] for row in rows[1:]] == expected
    results = json.loads((folder / "results.json").read_text())
    assert results["class_entropy"] < 1 and "step 8: mode collapse, class entropy" in found.out
    assert picture(folder / "samples/step_0000008.png").shape == (8 * 29 + 1, 8 * 29 + 1, 3)
    D = gan_mnist.discriminator()
    D.load_state_dict(torch.load(folder / "discriminator.pth", weights_only=True)["state_dict"])

    fid.main(["digits:test", str(folder), "--features", "lenet", "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["value"] == pytest.approx(results["fd_lenet"], rel=1e-6) and measured["size_real"] == 28
    grids = []
    for seed in ("0", "0", "1"):
        gan_mnist.main(["--generate", "--n", "9", "--seed", seed])
        grids.append(picture(folder / "generated.png"))
    assert np.array_equal(grids[0], grids[1]) and not np.array_equal(grids[0], grids[2])


def test_a_discriminator_that_wins_is_noticed():
    row = lambda i, loss, split: {"step": 100 * (i + 1), "split": split, "d_loss": loss}
    rows = lambda losses: [row(i, loss, split) for i, loss in enumerate(losses) for split in ("train", "other")]
    run = lambda *losses: Namespace(step=100 * len(losses), rows=rows(losses))
    assert [gan_mnist.won_by_D(run(*losses)) for losses in ((), (0.001,), (0.5,), (0.5, 0.009, 0.001))] == [
        0,
        100,
        0,
        200,
    ]


def test_averaged_weights():
    """Behind a ramp the mean lags by its mean age, 1 / (1 − decay) − 1 steps in the end; counters are left alone."""
    mean, counter = torch.zeros(3, dtype=torch.float64), torch.tensor([7])
    for step in range(1, 10001):
        common.average(0.99, [mean], [torch.full_like(mean, step)], torch.tensor(step))
    assert mean.tolist() == pytest.approx([10000 - 99] * 3)
    common.average(0.99, [counter], [torch.tensor([9])], torch.tensor(5))
    assert counter.item() == 7


def test_ctrl_c_saves_a_gan():
    assert stop(start_and_save("gan_mnist.py", *TINY_GAN, "--steps", "1000000", "--out", "run"), signal.SIGINT) > 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "colour"], "in colour"),
        (["--data", "digits", "--arch", "conv", "--batch-size", "1"], "at least 2"),
        (["--noise-dim", "0"], "--noise-dim"),
        (["--ema", "1"], "--ema"),
        (["--loss", "wgan"], "--loss"),
        (["--generate"], "no trained weights in runs/gan_mnist-*"),
        (["--generate", "--weights", "nowhere"], "nowhere/generator.pth cannot be read"),
    ],
)
def test_bad_gan_input_gets_one_line(argv, says, capsys):
    as_files(photos(4), "colour")
    assert says in error_line(capsys, gan_mnist.main, argv)


# ------------------------------------------------------------------------------------------------------------ dcgan.py


def test_tsinghua_gan_table():
    """Every row of the course's table, seen by forward hooks, and its mirror."""
    shape = {"latent_dim": 7, "hidden_dim": 5, "channels": 1, "image_size": 32, "spectral_norm": False}
    G, D, rows = dcgan.build_generator("tsinghua", 7, 5), dcgan.build(shape, dcgan.Discriminator), []
    assert [p.shape for p in G.parameters()] == [p.shape for p in dcgan.build(shape).parameters()]
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.ReLU | nn.LeakyReLU | nn.Tanh
    for leaf in [m for m in [*G.modules(), *D.modules()] if isinstance(m, kinds)]:
        leaf.register_forward_hook(lambda m, _, y: rows.append((m, tuple(y.shape[1:]))))
    x = G(torch.randn(2, 7, 1, 1))
    assert (
        D(x).shape == (2, 1)
        and x.abs().max() <= 1
        and dcgan.build_generator("tsinghua", 7).net[0][0].out_channels == 64
    )
    geometry = lambda m: (m.kernel_size[0], m.stride[0], m.padding[0]) if hasattr(m, "stride") else ()
    seen = [(type(m).__name__, shape, *geometry(m)) for m, shape in rows]
    up = lambda shape, *how: [("ConvTranspose2d", shape, *how), ("BatchNorm2d", shape), ("ReLU", shape)]
    down = lambda shape: [("Conv2d", shape, 4, 2, 1), ("BatchNorm2d", shape), ("LeakyReLU", shape)]
    table = up((20, 4, 4), 4, 1, 0) + up((10, 8, 8), 4, 2, 1) + up((5, 16, 16), 4, 2, 1)
    table += [("ConvTranspose2d", (1, 32, 32), 4, 2, 1), ("Tanh", (1, 32, 32))]
    first = down((5, 16, 16))
    assert seen == table + [first[0], first[2]] + down((10, 8, 8)) + down((20, 4, 4)) + [("Conv2d", (1, 1, 1), 4, 1, 0)]
    assert {m.negative_slope for m in D.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize(("featuremap", "channels"), [(4, 3), (2, 3), (2, 1), (1, 3)])
def test_dcgan_networks_of_the_course(featuremap, channels):
    torch.manual_seed(0)
    side = 16 * featuremap
    G, D = dcgan.Generator(100, featuremap, channels), dcgan.Discriminator((channels, side, side))
    assert sum(p.numel() for m in (G, D) for p in m.parameters()) < 25e6
    x = G.sample(3)
    assert x.shape == (3, channels, side, side) and not x.requires_grad and D(x).shape == (3, 1)
    logits = D(torch.randn(64, channels, side, side))
    assert logits.min() < 0 < logits.max()  # no probabilities
    for model in (G, D):
        for m in model.modules():
            if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.weight.numel() > 10000:
                assert abs(m.weight.mean()) < 1e-3 and m.weight.std().item() == pytest.approx(0.02, rel=0.05)
            elif isinstance(m, nn.BatchNorm2d):
                assert m.weight.mean().item() == pytest.approx(1, abs=0.01) and 0.01 < m.weight.std() < 0.03
                assert not m.bias.any()
    G(torch.randn(2, 100)).sum().backward()
    gradients = lambda: [p.grad.clone() for p in G.parameters()]
    before = gradients()
    D(G.sample(3)).sum().backward()
    assert same(gradients(), before)  # the gradient flows into G only when it is asked for
    D(G.sample(3, with_grad=True)).sum().backward()
    assert not any(torch.equal(a, b) for a, b in zip(gradients(), before, strict=True))


def test_spectral_norm():
    torch.manual_seed(0)
    D = dcgan.Discriminator((3, 32, 32), (8, 16), spectral_norm=True)
    for _ in range(200):
        D(batch(3))  # each pass is a step of the power iteration
    D.eval()
    for m in D.modules():
        assert not isinstance(m, nn.BatchNorm2d)
        if isinstance(m, nn.Conv2d):
            assert torch.linalg.svdvals(m.weight.flatten(1))[0].item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("label", [0, 1])
def test_dcgan_losses_are_the_formulas(label):
    real, fake = torch.randn(2, 50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    r, f = real.numpy(), fake.numpy()
    nll = lambda s, t: -(t * np.log(1 / (1 + np.exp(-s))) + (1 - t) * np.log(1 / (1 + np.exp(s)))).mean()
    half_square = lambda s, t: ((s - t) ** 2).mean() / 2
    D_loss, G_loss, smooth = dcgan.discriminator_loss_fn, dcgan.generator_loss_fn, abs(label - 0.1)
    least_squares = {"data_label": label, "error": dcgan.squared_error}
    for ours, exact in (
        (D_loss(real, fake, label), nll(r, label) + nll(f, 1 - label)),
        (D_loss(real, fake, label, label_smoothing=0.1), nll(r, smooth) + nll(f, 1 - label)),
        (G_loss(fake, label), nll(f, label)),
        (D_loss(real, fake, **least_squares), half_square(r, label) + half_square(f, 1 - label)),
        (G_loss(fake, **least_squares), half_square(f, label)),
        (
            dcgan.hinge_discriminator_loss(real, fake),
            np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean(),
        ),
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


def test_fuzzy_labels_are_in_range():
    labels = []
    remember = lambda y, t: labels.append(t) or y.sum()
    y = torch.zeros(5000, 1)
    dcgan.discriminator_loss_fn(y, y, 0, 0.4, error=remember)
    for t, middle in zip(labels, (0, 1), strict=True):
        assert middle - 0.2 <= t.min() < middle - 0.19 and middle + 0.19 < t.max() <= middle + 0.2
        assert t.mean() == pytest.approx(middle, abs=0.01) and t.std() == pytest.approx(0.4 / 12**0.5, rel=0.05)
    assert not torch.equal(labels[0], labels[1] - 1)


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


def test_between():
    z1, z2 = torch.randn(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    line, arc = dcgan.between(z1, z2, 4, False), dcgan.between(z1, z2, 4, True)
    assert line.shape == arc.shape == (9, 100)  # two before, z1, three between, z2, two beyond
    for path in (line, arc):
        torch.testing.assert_close(path[2], z1)
        torch.testing.assert_close(path[6], z2)
    torch.testing.assert_close(line.diff(dim=0), ((z2 - z1) / 4).expand(8, -1))
    arc = dcgan.between(z1, z2 * z1.norm() / z2.norm(), 4, True)  # on one sphere: equal radii and equal angles
    torch.testing.assert_close(arc.norm(dim=1), z1.norm().expand(9))
    cosines = nn.functional.cosine_similarity(arc[1:], arc[:-1])
    torch.testing.assert_close(cosines, cosines[:1].expand(8))
    assert dcgan.between(torch.ones(1), torch.ones(1), 2, True).isfinite().all()


def test_spread():
    x = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    a = x.flatten(1).numpy().astype(float)
    exact = np.mean([np.sqrt(((a[i] - a[j]) ** 2).mean()) for i in range(7) for j in range(i)])
    assert dcgan.spread(x) == pytest.approx(exact, rel=1e-5) and dcgan.spread(x[:1].expand(7, -1, -1, -1)) == 0


TINY_DCGAN = ["--data", "digits", "--batch-size", "8", "--latent-dim", "3", "--hidden-dim", "2", "--log-every", "4"]
TRICKS = "--image-size 48 --loss lsgan --label-noise 0.2 --label-smoothing 0.1 --instance-noise 0.1 --flip".split()
TRICKS = [[], [*TRICKS, "--noise-steps", "6", "--ema", "0.9"], ["--loss", "hinge", "--spectral-norm", "--ema", "0"]]


@pytest.mark.parametrize("tricks", TRICKS)
def test_dcgan_resume_is_exact(tricks, monkeypatch):
    monkeypatch.setattr(fid, "judges", lambda *_: {})
    argv = [*TINY_DCGAN, *tricks]
    dcgan.main([*argv, "--steps", "8", "--out", "whole"])
    dcgan.main([*argv, "--steps", "5", "--out", "halves"])
    dcgan.main([*argv, "--steps", "8", "--out", "halves", "--sample-every", "2", "--log-every", "3"])
    whole, halves = (torch.load(f"{name}/last.pth", weights_only=True) for name in ("whole", "halves"))
    networks = {k: v for k, v in whole.items() if k not in run_folder.Run.KEPT}
    assert same(networks, {k: halves[k] for k in networks}) and len(networks) == (4 if "hinge" in tricks else 5)
    dcgan.main([*argv, "--steps", "8", "--out", "seed1", "--seed", "1"])
    assert not same(whole["G"], torch.load("seed1/last.pth", weights_only=True)["G"])  # the check can fail


def test_a_dcgan_from_start_to_export(capsys):
    argv = [*TINY_DCGAN, "--steps", "9", "--sample-every", "3", "--lr", "0.05"]
    dcgan.main(argv)
    folder, found = Path("runs/dcgan-digits32-gan"), capsys.readouterr()
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    assert rows[0] == "step,split,d_loss,g_loss,d_x,fd_lenet,class_entropy,spread,d_g_z".split(",")
    rows = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert {r["step"] for r in rows if r["split"].endswith("G's step") and float(r["d_g_z"]) > 0} == {"4", "8"}
    distances = {int(r["step"]): float(r["fd_lenet"]) for r in rows if r["split"] == "samples"}
    assert sorted(distances) == [3, 6, 9] and "step 3: mode collapse, samples differ by" in found.out
    results = json.loads((folder / "results.json").read_text())
    best = min(distances, key=distances.get)
    assert results["best_step"] == best and results["best_fd_lenet"] == pytest.approx(distances[best])
    assert results["fd_lenet"] == pytest.approx(distances[9], rel=1e-6) and results["spread"] < 0.5
    assert len({picture(folder / f"samples/step_{i:07d}.png").tobytes() for i in (3, 6, 9)}) == 3
    assert (folder / "curves.png").exists()

    for name, distance in (("best_fd_lenet.pth", distances[best]), ("generator.pth", distances[9])):
        fid.main(["digits:test", str(folder / name), "--features", "lenet", "--json"])
        assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(distance, rel=1e-5)
    grids = []
    for seed in ("0", "0", "1"):
        dcgan.main(["--generate", "--n", "9", "--seed", seed])
        grids.append(picture(folder / "generated.png"))
    assert np.array_equal(grids[0], grids[1]) and not np.array_equal(grids[0], grids[2])
    dcgan.main(["--interpolate", "3", "--weights", str(folder / "best_fd_lenet.pth"), "--export"])
    assert picture(folder / "interpolation.png").shape == (8 * 33 + 1, 8 * 33 + 1, 3)
    said = capsys.readouterr().out
    assert "DCGAN_model_G.pth: (B, 3) in" in said and "DCGAN_model_D.pt2: (B, 1, 32, 32) in" in said
    (folder / "discriminator.pth").unlink()
    assert "only the generator" in error_line(capsys, dcgan.main, ["--export"])


def test_the_best_generator_outlives_worse_ones(monkeypatch):
    """Kept over a continuation, replaced by a better one only, and not taken from another training or measure."""
    distances = iter([5.0, 3.0, 4.0, 3.5, 2.0, 9.0, 8.0, 8.5])
    judge = lambda _: {"fd_lenet": next(distances), "class_entropy": 2.3, "class_histogram": [1, 1]}
    monkeypatch.setattr(fid, "judges", lambda *_: {"fd_lenet": judge})
    monkeypatch.setattr(fid, "report", lambda *_: {})
    best = lambda: [torch.load("run/best_fd_lenet.pth", weights_only=True)[k] for k in ("step", "fd_lenet")]
    results = lambda: json.loads(Path("run/results.json").read_text())
    argv = [*TINY_DCGAN, "--sample-every", "1", "--out", "run"]
    for steps, expected in (("1", [1, 5.0]), ("3", [2, 3.0]), ("4", [2, 3.0]), ("5", [5, 2.0]), ("6", [5, 2.0])):
        dcgan.main([*argv, "--steps", steps])
        assert best() == expected == [results()["best_step"], results()["best_fd_lenet"]]
    monkeypatch.setattr(fid, "judges", lambda *_: {})
    dcgan.main([*argv, "--steps", "7"])  # what cannot be measured changes nothing
    assert best() == [5, 2.0] and results()["best_step"] == 5
    monkeypatch.setattr(fid, "judges", lambda *_: {"fid": lambda _: {"fid": 99.0}})
    dcgan.main([*argv, "--steps", "8"])
    assert best() == [5, 2.0] and results()["best_fid"] == 99.0 and Path("run/best_fid.pth").exists()

    monkeypatch.setattr(fid, "judges", lambda *_: {"fd_lenet": judge})
    dcgan.main([*argv, "--steps", "1", "--seed", "1", "--sample-every", "9", "--save-every", "1", "--fresh"])
    assert best() == [1, 8.0]
    run = torch.load("run/best_fd_lenet.pth", weights_only=True)
    torch.save(run | {"fd_lenet": 0.5, "flags": {}}, "run/best_fd_lenet.pth")
    dcgan.main([*argv, "--steps", "2", "--seed", "1"])
    assert best() == [2, 8.5]


def test_a_dcgan_stopped_between_samples_and_asked_for_less():
    """Its end is measured, not taken from the last row."""
    as_files(photos(12), "photos")
    argv = "--data photos --hidden-dim 2 --batch-size 1 --image-size 8 --out run --steps".split()
    dcgan.main([*argv, "3"])
    Path("run/results.json").unlink()
    state = torch.load("run/last.pth", weights_only=True)
    torch.save(state | {"rows": []}, "run/last.pth")
    dcgan.main([*argv, "2"])
    assert json.loads(Path("run/results.json").read_text())["step"] == 3


def test_dcgan_takes_any_folder(tmp_path, capsys):
    """Twenty images, few for the batch, of mixed modes, one of them a line; nothing is labelled."""
    for i, mode in enumerate(["RGB", "L", "RGBA", "LA"] * 5):
        image(tmp_path / f"set/{i}.png", mode=mode, size=(70, 80), seed=i)
    image(tmp_path / "set/3.png", size=(3, 2000))
    dcgan.main("--data set --batch-size 30 --hidden-dim 2 --steps 2 --out run --sample-every 1".split())
    found = capsys.readouterr()
    assert "fd_lenet is left out" in found.err and "set (18 + 2 images of (3, 64, 64))" in found.out
    results = json.loads(Path("run/results.json").read_text())
    assert "spread" in results and not any("fd" in key or "best" in key for key in results)
    assert picture(Path("run/samples/step_0000002.png")).shape == (8 * 65 + 1, 8 * 65 + 1, 3)
    config = json.loads(Path("run/config.json").read_text())
    assert config["flags"]["flip"] is True and config["parameters"]["G"] == 28447


def test_flips_and_instance_noise_of_dcgan(monkeypatch):
    """Half of the images are mirrored where that is asked for, and D's noise falls to nothing."""
    seen, update = [], dcgan.update
    monkeypatch.setattr(fid, "judges", lambda *_: {})
    monkeypatch.setattr(dcgan, "update", lambda *args: seen.append(args[6:8]) or update(*args))
    argv = [*TINY_DCGAN, "--steps", "8", "--batch-size", "32"]
    dcgan.main([*argv, "--out", "plain", "--instance-noise", "0"])
    dcgan.main([*argv, "--out", "mirrored", "--flip", "--instance-noise", "0.5", "--noise-steps", "4"])
    assert [sigma for _, sigma in seen] == pytest.approx([0.0] * 8 + [0.375, 0.25, 0.125] + [0.0] * 5)
    flipped = torch.cat([(a.flip(-1) == b).all(3).all(2)[:, 0] for (a, _), (b, _) in zip(seen, seen[8:], strict=False)])
    kept = torch.cat([(a == b).all(3).all(2)[:, 0] for (a, _), (b, _) in zip(seen, seen[8:], strict=False)])
    assert (flipped | kept).all() and 90 < flipped.sum() < 166  # of 256


def test_sigterm_saves_a_dcgan():
    argv = "--data photos --hidden-dim 2 --steps 1000000 --save-every 5 --out run".split()
    as_files(photos(12), "photos")
    assert stop(start_and_save("dcgan.py", *argv), signal.SIGTERM) > 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "digits", "--image-size", "36"], "images of 36 pixels cannot be made"),
        (["--data", "digits", "--image-size", "7"], "--image-size"),
        (["--data", "digits", "--loss", "hinge", "--label-noise", "0.1"], "hinge has no labels"),
        (["--label-noise", "nan"], "--label-noise"),
        (["--label-smoothing", "1"], "--label-smoothing"),
        (["--instance-noise", "-1"], "--instance-noise"),
        (["--interpolate", "0", "--weights", "x"], "--interpolate"),
        (["--generate", "--loss", "lsgan"], "no trained weights"),
        (["--generate", "--weights", "nowhere"], "nowhere/generator.pth cannot be read"),
    ],
)
def test_bad_dcgan_input_gets_one_line(argv, says, capsys):
    as_files(photos(4), "colour")
    assert says in error_line(capsys, dcgan.main, argv)


# ----------------------------------------------------------------------------------------------------------- simclr.py


def simclr_loss(left: np.ndarray, right: np.ndarray, tau: float) -> float:
    """Equation 1 and algorithm 1 in float64, with all pairs at once."""
    z = np.concatenate([left, right]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    s, N = z @ z.T / tau, len(left)
    total = 0.0
    for i, j in [(k, k + N) for k in range(N)] + [(k + N, k) for k in range(N)]:
        others = np.delete(s[i], i)
        total += others.max() + np.log(np.exp(others - others.max()).sum()) - s[i, j]
    return total / (2 * N)


@pytest.mark.parametrize("tau", [0.005, 0.05, 0.5, 5.0])
@pytest.mark.parametrize("n", [1, 2, 64 if LONG else 20])
def test_simclr_losses_agree(tau, n):
    torch.manual_seed(0)
    left, right = torch.randn(2, n, 16, dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e3):
        for pair in ((scale * left, right), (left, scale * left), (left[:1].expand(n, -1), scale * right)):
            exact = simclr_loss(*(z.numpy() for z in pair), tau)
            for ours in (simclr.simclr_loss_naive, simclr.simclr_loss_vectorized):
                assert ours(*pair, tau).item() == pytest.approx(exact, rel=1e-6, abs=1e-6)
                assert ours(*(z.float() for z in pair), tau).item() == pytest.approx(exact, rel=1e-3, abs=1e-4)


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


def test_simclr_gradient_is_finite_for_a_small_tau():
    z = nn.functional.normalize(torch.randn(8, 4), dim=1).requires_grad_()
    simclr.simclr_loss_vectorized(*z.chunk(2), 0.005).backward()
    assert z.grad.isfinite().all() and z.grad.any()


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
    for ours, theirs, a in zip(simclr.ADJUST, exact, [amounts] * 3 + [(amounts - 1) / 4], strict=True):
        one_by_one = torch.stack([theirs(image, float(amount)) for image, amount in zip(x, a, strict=True)])
        torch.testing.assert_close(ours(x, a), one_by_one, atol=2e-6, rtol=0)


def test_crops_are_torchvisions(monkeypatch):
    torch.manual_seed(0)
    x, boxes = (
        torch.rand(5, 3, 32, 32),
        torch.tensor([[0, 0, 32, 32], [3, 5, 9, 20], [31, 0, 1, 32], [8, 9, 17, 4], [2, 2, 30, 30]]),
    )
    monkeypatch.setattr(simclr, "crop_boxes", lambda *_: boxes.T.float())
    torch.manual_seed(0)
    mirrored = torch.rand(5) < 0.5
    torch.manual_seed(0)
    ours = simclr.crop_and_flip(x)
    exact = [
        tv.resized_crop(image, *box, [32, 32], antialias=True) for image, box in zip(x, boxes.tolist(), strict=True)
    ]
    exact = torch.stack([e.flip(-1) if m else e for e, m in zip(exact, mirrored, strict=True)])
    torch.testing.assert_close(ours, exact, atol=1e-5, rtol=0)
    assert 0 < mirrored.sum() < 5


def test_crop_boxes_are_distributed_as_torchvisions():
    """Two-sample Kolmogorov-Smirnov on area, aspect and place; at this size 0.02 is beyond chance."""
    torch.manual_seed(0)
    n = 20000
    params = lambda: transforms.RandomResizedCrop.get_params(torch.empty(3, 32, 32), (0.08, 1.0), (3 / 4, 4 / 3))
    theirs = torch.tensor([params() for _ in range(n)]).T.double()
    ours = simclr.crop_boxes(n, 32, torch.device("cpu"), (0.08, 1.0)).double()
    measures = lambda box: (box[2] * box[3], box[2] / box[3], box[0], box[1] + box[3])  # area, aspect, top, right
    for a, b in zip(measures(ours), measures(theirs), strict=True):
        a, b = a.sort().values, b.sort().values
        at = torch.cat([a, b]).unique()
        distance = (torch.searchsorted(a, at, right=True) - torch.searchsorted(b, at, right=True)).abs().max() / n
        assert distance < 0.02
    assert (ours[:2] >= 0).all() and (ours[0] + ours[2] <= 32).all() and (ours[1] + ours[3] <= 32).all()


def test_views_are_distributed_as_torchvisions():
    """Per-channel moments of one image's views, ours and torchvision's per-image transforms."""
    torch.manual_seed(0)
    n = 20000 if LONG else 3000
    x = photos(1, 32)
    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(32),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
        ]
    )
    one = Image.fromarray(x[0].permute(1, 2, 0).numpy())
    a, b = simclr.augment(x.expand(n, -1, -1, -1)), torch.stack([theirs(one) for _ in range(n)])
    statistics = lambda v: torch.cat([v.mean((2, 3)), v.std((2, 3)), v.std(1).mean((1, 2))[:, None]], 1)  # (n, 7)
    a, b = statistics(a), statistics(b)
    for moment in (lambda s: s, lambda s: (s - s.mean(0)) ** 2):
        p, q = moment(a), moment(b)
        error = ((p.var(0) + q.var(0)) / n).sqrt()
        assert ((p.mean(0) - q.mean(0)).abs() < 5 * error + 1e-3).all()
    colourless = lambda s: (s[:, 6] < 1e-3).float().mean().item()
    assert colourless(a) == pytest.approx(0.2, abs=0.03)


def test_every_view_has_parameters_of_its_own():
    torch.manual_seed(0)
    x = photos(1, 32).expand(50, -1, -1, -1)
    views = simclr.augment(x)
    assert views.shape == (50, 3, 32, 32) and views.min() >= 0 and views.max() <= 1
    assert len({v.numpy().tobytes() for v in views}) == 50
    orders = []
    spied = [lambda x, _, i=i: orders.append((i, len(x))) or x for i in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simclr, "ADJUST", spied)
        simclr.jitter(torch.rand(4000, 3, 2, 2))
    assert len(orders) == 16 and all(700 < n < 900 for _, n in orders)  # each operation at each place, 0.8 · 4000 / 4
    grey = simclr.augment(torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8))
    assert grey.shape == (4, 3, 16, 16)


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


def test_linear_classifier_is_sklearns():
    from sklearn.linear_model import LogisticRegression

    rng = torch.Generator().manual_seed(0)
    h, test_h = torch.randn(400, 5, generator=rng), torch.randn(300, 5, generator=rng)
    rule = lambda z: (z @ torch.tensor([[1.0, -1, 0], [0, 2, -1], [0, 0, 1], [1, 1, 1], [0, 1, 2]])).argmax(1)
    noisy = torch.where(torch.rand(400, generator=rng) < 0.2, torch.randint(0, 3, (400,), generator=rng), rule(h))
    for l2 in (1e-3, 1e-1):
        ours = torch.softmax(simclr.logistic_regression(h, noisy, l2)(test_h), 1)
        oracle = LogisticRegression(C=1 / (400 * l2), max_iter=1000, tol=1e-8).fit(h.numpy(), noisy.numpy())
        assert np.abs(ours.numpy() - oracle.predict_proba(test_h.numpy())).max() < 2e-3
    scaled = [torch.cat([3 * z + 1, torch.ones(len(z), 1)], 1) for z in (h, test_h)]  # and a feature that is constant
    accuracy = simclr.linear_accuracy(scaled[0], noisy, scaled[1], rule(test_h))
    assert accuracy == pytest.approx(oracle.score(test_h.numpy(), rule(test_h).numpy()), abs=0.05) and accuracy > 0.8


TINY_SIMCLR = "--data digits --image-size 8 --batch-size 8 --fit-steps 1 --log-every 2 --save-every 2".split()


def test_simclr_resume_is_exact(monkeypatch):
    monkeypatch.setattr(simclr, "look_inside", lambda *_: {})
    argv = [*TINY_SIMCLR, "--warmup", "2"]
    simclr.main([*argv, "--steps", "4", "--out", "whole"])
    simclr.main([*argv, "--steps", "4", "--out", "again"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder.Run, "save", stop_after(2, run_folder.Run.save))
        simclr.main([*argv, "--steps", "4", "--out", "halves"])
    simclr.main([*argv, "--steps", "4", "--out", "halves", "--sample-every", "3", "--log-every", "1"])
    last = [torch.load(f"{name}/last.pth", weights_only=True) for name in ("whole", "again", "halves")]
    assert same(last[0]["model"], last[1]["model"]) and same(last[0]["model"], last[2]["model"])
    assert same(last[0]["optimizer"], last[2]["optimizer"]) and [x["step"] for x in last] == [4, 4, 4]


def stop_after(step: int, save):
    """Run.save, after which the process is as good as killed."""

    def saved(run):
        save(run)
        if run.step == step:
            raise KeyboardInterrupt

    return saved


def test_a_simclr_from_start_to_features(capsys, tmp_path):
    simclr.main([*TINY_SIMCLR, "--steps", "2"])
    folder, found = Path("runs/simclr-digits-resnet18-tau0.5-batch8"), capsys.readouterr()
    results = json.loads((folder / "results.json").read_text())
    expected = {f"{f}{kind}" for f in ("", "untrained_", "pixels_") for kind in ("knn", "linear", "linear_few")}
    assert expected | {"labels_alone_few"} <= results.keys() and results["finetuned_few"] is None
    assert all(0 <= results[k] <= 1 for k in expected) and results["few_labels"] == 162
    weights = torch.load(folder / "simclr.pth", weights_only=True)
    model = simclr.build(weights)
    sha = simclr.fingerprint(model.f)
    assert results["encoder_sha256"] == sha and f"frozen encoder: {sha} before, {sha} after" in found.out
    model.f[1].running_mean[3] += 1e-3
    assert simclr.fingerprint(model.f) != sha  # buffers count
    assert {p.name for p in folder.glob("*.png")} == {"views.png", "neighbours.png", "features.png", "curves.png"}
    assert picture(folder / "views.png").shape == (3 * 9 + 1, 8 * 9 + 1, 3)

    simclr.main(["--eval", "--finetune", "--fit-steps", "2"])
    again = json.loads((folder / "results.json").read_text())
    assert again["finetuned_few"] is not None and all(again[k] == results[k] for k in expected if "untrained" not in k)

    for i in range(5):
        image(tmp_path / f"mine/{'cat' if i % 2 else 'dog'}/{i}.png", size=(20 + i, 30), seed=i)
    (tmp_path / "mine/broken.png").write_text("no image")
    simclr.main(["--features", "x.npz", "--data", "mine"])
    with np.load("x.npz") as file:
        h, names = file["features"], file["names"].tolist()
        assert h.shape == (5, 512) and h.dtype == np.float32 and file["labels"].tolist() == ["cat"] * 2 + ["dog"] * 3
    x = torch.tensor(images.decode(tmp_path / "mine" / names[3], "RGB", 8)).permute(2, 0, 1)[None]
    numbers = {k: weights[k] for k in ("mean", "std")}
    alone = simclr.represent(simclr.build(weights).f, x, numbers, torch.device("cpu"), True)
    assert np.abs(alone.numpy() - h[3]).max() < 0.05 * np.abs(h[3]).max()
    for path in ("train/cat/1.png", "test/dog/2.png", "test/dog/1.png"):
        image(tmp_path / "split" / path)
    with zipfile.ZipFile("split.zip", "w") as z:
        for file in sorted(tmp_path.glob("split/*/*/*")):
            z.write(file, file.relative_to(tmp_path))
    simclr.main(["--features", "y.npz", "--data", "split.zip"])
    with np.load("y.npz") as file:
        assert file["names"].tolist() == ["test/dog/1.png", "test/dog/2.png", "train/cat/1.png"]
        assert file["labels"].tolist() == ["dog", "dog", "cat"] and file["features"].shape == (3, 512)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/1.png").write_text("no image")
    torch.save({k: v for k, v in weights.items() if k != "mean"}, "part.pth")
    for argv, says in (
        (["--features", "x.npz", "--data", "mine"], "a new file.npz"),
        (["--features", "", "--data", "mine"], "a new file.npz"),
        (["--features", "nowhere/x.npz"], "a new file.npz"),
        (["--features", "z.npz", "--data", "empty"], "holds no image file"),
        (["--features", "z.npz", "--data", "broken"], "none of the 1 image files"),
        (["--features", "z.npz", "--weights", "part.pth"], "lack mean"),
        (["--eval", "--weights", str(folder), "--data", "mine"], "made from digits"),
    ):
        assert says in error_line(capsys, simclr.main, argv)


def test_simclr_of_one_class(tmp_path, capsys):
    for i in range(12):
        image(tmp_path / f"set/{i}.png", size=(20, 20), seed=i)
    simclr.main("--data set --image-size 8 --batch-size 4 --steps 1 --out run".split())
    assert "one class only: no accuracy" in capsys.readouterr().out
    torch.manual_seed(0)  # as the run does
    begun, ended = simclr.Model(128, "resnet18"), torch.load("run/simclr.pth", weights_only=True)["state_dict"]
    assert not same(begun.f[0].weight, ended["f.0.weight"])  # the one step has changed it
    assert "linear" not in json.loads(Path("run/results.json").read_text())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "digits", "--batch-size", "1"], "at least 2, and not more than the 1618"),
        (["--data", "digits", "--batch-size", "1619"], "at least 2, and not more than the 1618"),
        (["--labels", "0"], "--labels"),
        (["--labels", "1.5"], "--labels"),
        (["--tau", "0"], "--tau"),
        (["--encoder", "vgg"], "--encoder"),
        (["--eval"], "no trained weights in runs/simclr-*"),
        (["--features", "x.npz"], "no trained weights in runs/simclr-*"),
        (["--generate"], "unrecognized arguments"),
    ],
)
def test_bad_simclr_input_gets_one_line(argv, says, capsys):
    assert says in error_line(capsys, simclr.main, argv)


# --------------------------------------------------------------------------------------------------------- hard knocks


def told(capsys, call, *args) -> str | None:
    """The one line with which a script in a process of its own would end; None if it ends well."""
    capsys.readouterr()
    try:
        call(*args)
        return None
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        with pytest.raises(SystemExit) as end:
            common.last_words(type(error), error, error.__traceback__)
        code = end.value.code
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert code == 2 and len(lines) == 1, (code, lines)
    return lines[0]


SMALL = "--data digits --arch mlp --latent-dim 1 --batch-size 4 --out run --log-every 1 --save-every 1".split()


def damages(good: bytes, chance: random.Random):
    """Without end: (what was done, the damaged bytes)."""
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("a.txt", "a")
    while True:
        at = chance.randrange(len(good))
        flipped = bytearray(good)
        flipped[at] ^= 1 << chance.randrange(8)
        yield "bit", bytes(flipped)
        yield "truncated", good[:at]
        yield "zeros", good[:at] + bytes(min(512, len(good) - at)) + good[at + 512 :]
        yield "noise", chance.randbytes(at)
        yield "swapped", good[at:] + good[:at]
        yield "empty", b""
        yield "zip", foreign.getvalue()
        yield "pickle", pickle.dumps({"script": "vae", "flags": {}})


def test_damaged_checkpoints_are_noticed(capsys, monkeypatch):
    """torch.load itself takes most flipped bits for weights."""
    monkeypatch.setattr(vae, "look_inside", lambda *_: {})
    vae.main([*SMALL, "--steps", "1"])
    file, state = Path("run/last.pth"), torch.load("run/last.pth", weights_only=True)
    good = file.read_bytes()
    for _, (_, damaged) in zip(range(500), damages(good, random.Random(0)), strict=False):
        file.write_bytes(damaged)
        try:
            assert same(run_folder.load(file, ("vae",), "flags"), state)  # a bit that nothing reads
        except SystemExit:
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and "run/last.pth" in lines[0]
    assert "take it from a copy, or start again with --fresh" in (
        told(capsys, vae.main, [*SMALL, "--steps", "2"]) or ""
    )
    file.write_bytes(good)
    vae.main([*SMALL, "--steps", "2"])


def test_a_full_disk(capsys, monkeypatch):
    """Wherever writing fails: one line, the checkpoint before it is whole, and the same command goes on."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(vae, "look_inside", lambda *_: {})
    vae.main([*SMALL, "--steps", "1"])
    largest, step, chance = Path("run/last.pth").stat().st_size, 1, random.Random(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(50 if LONG else 8):
        resource.setrlimit(resource.RLIMIT_FSIZE, (chance.randrange(largest), limits[1]))
        try:
            line = told(capsys, vae.main, [*SMALL, "--steps", str(step + 1)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert line and ("cannot be written" in line or "too large" in line)
        assert run_folder.load(Path("run/last.pth"), ("vae",), "flags")["step"] == step and not list(
            Path("run").glob("*.part")
        )
        vae.main([*SMALL, "--steps", str(step := step + 1)])


def test_two_processes_in_one_folder(capsys, monkeypatch):
    argv = ["vae.py", *SMALL, "--steps", "1000000"]
    first = start_and_save(*argv)
    second = start(*argv)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 2 and f"run is in use by process {first.pid} on " in said
    assert f"in use by process {first.pid}" in told(capsys, vae.main, [*SMALL, "--steps", "1000001", "--fresh"])
    first.kill()
    first.wait()
    assert str(first.pid) in Path("run/lock").read_text()  # a lock that nobody holds any more
    step = torch.load("run/last.pth", weights_only=True)["step"]
    monkeypatch.setattr(vae, "look_inside", lambda *_: {})
    vae.main([*SMALL, "--steps", str(step + 1)])


def test_sigterm_while_evaluating():
    argv = ["vae.py", *SMALL, "--steps", "1"]
    process = start(*argv)
    while not (line := process.stdout.readline()).startswith("evaluating"):
        assert line, "it has ended"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode and not Path("run/results.json").exists()
    vae.main([*SMALL, "--steps", "1"])
    assert json.loads(Path("run/results.json").read_text())["step"] == 1


def test_weights_that_are_not_finite_are_never_saved(capsys, monkeypatch):
    monkeypatch.setattr(vae, "look_inside", lambda *_: {})
    vae.main([*SMALL, "--steps", "2"])
    good, add = Path("run/last.pth").read_bytes(), run_folder.Run.add

    def spoil(run, split, **terms):
        add(run, split, **terms)
        if run.step == 4:
            next(run.objects["model"].parameters()).data[0] = math.nan

    monkeypatch.setattr(run_folder.Run, "add", spoil)
    line = told(capsys, vae.main, [*SMALL, "--steps", "5", "--save-every", "2", "--log-every", "9"])
    assert "step 4: weights of model are not finite; the checkpoint of step 2 is kept" in line
    assert Path("run/last.pth").read_bytes() == good


def test_weights_of_another_run_are_not_overwritten(capsys, monkeypatch):
    monkeypatch.setattr(vae, "look_inside", lambda *_: {})
    vae.main([*SMALL, "--steps", "1"])
    Path("run/last.pth").unlink()
    assert "run/vae.pth is of another run" in told(capsys, vae.main, [*SMALL, "--seed", "1", "--steps", "1"])
    vae.main([*SMALL, "--steps", "1"])  # as if it had been killed before its first last.pth
    Path("run/config.json").unlink()
    Path("run/last.pth").unlink()
    assert "of another run" in told(capsys, vae.main, [*SMALL, "--steps", "1"])


def test_a_clock_that_stands_still_and_a_disk_that_turns_read_only(capsys, monkeypatch):
    monkeypatch.setattr(vae, "look_inside", lambda *_: {})
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for _ in range(3):
        vae.main([*SMALL, "--steps", "1", "--fresh"])
    assert {p.name for p in Path().iterdir()} >= {"run", "run.now", "run.now-"}

    def refuse(_, path):
        raise OSError(30, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert "Read-only file system" in told(capsys, vae.main, [*SMALL, "--steps", "2"])
    assert run_folder.load(Path("run/last.pth"), ("vae",), "flags")["step"] == 1


class Server(http.server.BaseHTTPRequestHandler):
    """Behaves as the first part of the path says."""

    content = letters(70_000).encode()

    def log_message(self, *_) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        kind, good = self.path.strip("/"), self.content
        if kind in ("403", "404", "500", "503"):
            self.answer(b"<html>sorry</html>", int(kind))
        elif kind == "cut":
            self.answer(good[:40_000], Content_Length=str(len(good)))
        elif kind == "chunk":
            self.answer(b"ffff\r\n" + good[:100], Transfer_Encoding="chunked")
        elif kind == "page":
            self.answer(b" <!DOCTYPE html><html>please log in</html>")
        elif kind == "other":
            self.answer(good[::-1])
        elif kind == "empty":
            self.answer(b"")
        elif kind == "circle":
            self.answer(b"", 302, Location="/circle")
        elif kind == "local":
            self.answer(b"", 302, Location="file:///etc/hostname")
        elif kind == "moved":
            self.answer(b"", 301, Location="/good")
        elif kind == "nothing":
            self.close_connection = True
        elif kind == "babble":
            self.wfile.write(b"\0\1\2 no HTTP\r\n\r\n")
        elif kind == "silent":
            time.sleep(1)
        elif kind == "drip":
            self.answer(good[:1], Content_Length=str(len(good)))
            for byte in good[1:6]:
                time.sleep(0.05)
                self.wfile.write(bytes([byte]))
        else:
            self.answer(good, Content_Length=str(len(good)))


BAD_SERVERS = "403 404 500 503 cut chunk page other empty circle local nothing babble silent drip".split()


@pytest.mark.parametrize("kind", BAD_SERVERS)
def test_bad_servers(kind, capsys, monkeypatch):
    """Each is named with what is wrong and leaves no file; a second address is taken, and a redirection followed."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    socket.setdefaulttimeout(0.3)
    clock, begun = time.monotonic, time.monotonic()
    monkeypatch.setattr(common.time, "monotonic", lambda: begun + 1000 * (clock() - begun))
    sha1 = hashlib.sha1(b"blob 70000\0" + Server.content).hexdigest()
    try:
        monkeypatch.setitem(char_rnn.GIT_FILES, "tinyshakespeare", (sha1, f"{address}/{kind}"))
        line = told(capsys, char_rnn.main, ["--data", "tinyshakespeare"])
        assert f"{address}/{kind}: " in line and "copy the text to data/tinyshakespeare.txt" in line
        assert not list(Path("data").iterdir())
        if kind not in ("other", "empty"):  # a text without a checksum can be anything
            assert f"{address}/{kind}: " in told(capsys, char_rnn.main, ["--data", f"{address}/{kind}"])
        assert "could not be downloaded" in told(capsys, vae.main, ["--data", f"{address}/{kind}"])
        assert not [path for path in Path("data").rglob("*") if path.is_file()]
        monkeypatch.setitem(char_rnn.GIT_FILES, "tinyshakespeare", (sha1, f"{address}/{kind}", f"{address}/moved"))
        monkeypatch.setattr(common.time, "monotonic", clock)
        assert char_rnn.read_text("tinyshakespeare", "data") == letters(70_000)
    finally:
        socket.setdefaulttimeout(None)
        server.shutdown()


def bad_archives():
    """(name, bytes): hostile or broken archives, most with two good pictures in them."""
    pictures = [Path(f"{i}.png") for i in range(2)]
    good = [image(path, seed=i).read_bytes() for i, path in enumerate(pictures)]

    def zipped(*more) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
            for i, content in enumerate(good):
                z.writestr(f"a/{i}.png", content)
            for name, content in more:
                z.writestr(name, content)
        return file.getvalue()

    def tarred(*more, mode: str = "w") -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as t:
            for name, content, kind, link in [
                *((f"a/{i}.png", x, tarfile.REGTYPE, "") for i, x in enumerate(good)),
                *more,
            ]:
                info = tarfile.TarInfo(name)
                info.size, info.type, info.linkname = len(content), kind, link
                t.addfile(info, io.BytesIO(content))
        return file.getvalue()

    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    bomb = bytearray(zipped(("b/bomb.png", bytes(10**6))))
    at = bomb.rindex((10**6).to_bytes(4, "little"))  # in the central directory
    bomb[at : at + 4] = (0xF0000000).to_bytes(4, "little")
    encrypted = bytearray(zipped())
    encrypted[encrypted.index(b"PK\1\2") + 8] |= 1
    strange, plain = bytearray(zipped(("a/abcdefgh.png", good[0]))), zipped()
    while (at := strange.find(b"abcdefgh")) >= 0:
        strange[at : at + 8] = bytes(range(0xF0, 0xF8))
    yield "up.zip", zipped(("../../up.png", good[0]))
    yield "absolute.zip", zipped(("/absolute.png", good[0]))
    yield "backslash.zip", zipped(("..\\..\\up.png", good[0]))
    yield "link.zip", zipped((link, b"/etc/passwd"))
    yield "bomb.zip", bytes(bomb)
    yield "encrypted.zip", bytes(encrypted)
    yield "names.zip", bytes(strange)
    yield "twice.zip", zipped(("a/0.png", good[1]))
    yield "half.zip", plain[: len(plain) // 2]
    yield "flipped.zip", plain[:60] + bytes([plain[60] ^ 255]) + plain[61:]
    yield "up.tar", tarred(("../../up.png", good[0], tarfile.REGTYPE, ""))
    yield "absolute.tar", tarred(("/absolute.png", good[0], tarfile.REGTYPE, ""))
    yield "link.tar", tarred(("a/link.png", b"", tarfile.SYMTYPE, "/etc/passwd"))
    yield "through.tar", tarred(("b", b"", tarfile.SYMTYPE, "../.."), ("b/through.png", good[0], tarfile.REGTYPE, ""))
    yield "hard.tar", tarred(("a/hard.png", b"", tarfile.LNKTYPE, "../../../etc/passwd"))
    yield "device.tar", tarred(("a/device.png", b"", tarfile.CHRTYPE, ""))
    yield "pipe.tar", tarred(("a/pipe.png", b"", tarfile.FIFOTYPE, ""))
    yield "names.tar", tarred(("a/\udcff\udcfe.png", good[0], tarfile.REGTYPE, ""))
    yield "half.tar.gz", tarred(mode="w:gz")[:300]
    yield "noise.tar.xz", tarred(mode="w:xz")[:-200] + bytes(200)
    yield "empty.tar", tarred()[:0] + bytes(10240)


def test_bad_archives(capsys):
    """Nothing is written outside, nothing but regular files inside; the two good pictures, or one line."""
    archives, before = list(bad_archives()), {path.name for path in Path("..").iterdir()}
    assert len(archives) >= 20
    for name, content in archives:
        Path(name).write_bytes(content)
        line = told(capsys, images.load_images, name, "", "data", 8)
        inside = [path for path in Path("data").rglob("*") if not path.is_dir()]
        assert all(path.is_file() and not path.is_symlink() for path in inside), name
        if line is None:
            assert len(images.load_images(name, "", "data", 8).train) >= 1
        else:
            assert name.split(".")[0] in line, (name, line)
        capsys.readouterr()
        shutil.rmtree("data", ignore_errors=True)
    assert {path.name for path in Path("..").iterdir()} == before and not Path("/absolute.png").exists()
    assert not [path for path in Path().rglob("*up.png")] and not list(Path("..").glob("*.png"))


def test_bad_images(capsys):
    """Odd ones are read, broken ones counted and named; a pipe is no file to wait for."""
    folder = Path("set")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image(folder / f"{mode.replace(';', '')}.png", mode=mode)
    for mode in ("CMYK", "YCbCr"):
        image(folder / f"{mode}.jpg", mode=mode)
    image(folder / "F.tif", mode="F")
    image(folder / "LAB.tif", mode="LAB")
    image(folder / "thin.png", size=(1, 900))
    image(folder / "dot.png", size=(1, 1))
    frames = [Image.new("RGB", (9, 9), color) for color in ("red", "green", "blue")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    image(folder / "turned.jpg")
    Image.open(folder / "turned.jpg").save(folder / "turned.jpg", exif=exif)
    n_good = len(list(folder.iterdir()))

    png = bytearray((folder / "RGB.png").read_bytes())
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    broken = {
        "bomb.png": bytes(png),
        "zero.png": b"",
        "text.png": b"no image",
        "half.png": (folder / "RGB.png").read_bytes()[:500],
        "page.jpg": b"<html></html>",
        "head.jpg": (folder / "CMYK.jpg").read_bytes()[:20],
        "noise.webp": random.Random(0).randbytes(999),
        "noise.tif": b"II*\0" + random.Random(0).randbytes(999),
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    (folder / "nowhere.png").symlink_to("nothing")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    data = images.load_images("set", "", "data", 8)
    assert len(data.train) + len(data.test) == n_good and data.train.shape[1:] == (3, 8, 8)
    assert (
        f"{len(broken) + 2} of {n_good + len(broken) + 2} image files in set cannot be read" in capsys.readouterr().err
    )


def test_other_loaders_run_no_code(capsys):
    """A CIFAR batch, which is a pickle, is not opened unless its checksum is right; .npz files hold no objects."""
    folder = Path("data/cifar-10-batches-py")
    folder.mkdir(parents=True)
    trap = b"cos\nmkdir\n(S'executed'\ntR."
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(trap)
    socket.setdefaulttimeout(0.1)
    assert "CIFAR10 is not in data/" in told(capsys, dcgan.main, ["--data", "cifar10"])
    np.savez("a.npz", mu=np.array([{}], dtype=object), sigma=np.zeros((1, 1)))
    assert "does not hold the statistics" in told(capsys, fid.main, ["a.npz", "a.npz"])
    assert not Path("executed").exists()
    socket.setdefaulttimeout(None)


NUMBERS = "0 -1 nan inf -inf 1e999 1e-320 0.5 2147483646 2147483648 99999999999999999999 0x10 word".split() + [
    "",
    " ",
    "١",
]
RUNS = {
    vae: "--data digits --arch mlp --latent-dim 1 --batch-size 4",
    char_rnn: "--data tale.txt --h-dim 4 --n-layers 1 --seq-len 4 --batch-size 2",
    gan_mnist: "--data digits --batch-size 4",
    dcgan: "--data digits --hidden-dim 1 --batch-size 4",
    simclr: "--data digits --image-size 8 --batch-size 4 --fit-steps 1",
}


def test_every_number_for_every_flag(capsys, monkeypatch):
    """One line and exit 2, or a run: of what is accepted 25 are tried, with --long all."""
    Path("tale.txt").write_text(letters(300))
    monkeypatch.setattr(fid, "judges", lambda *_: {})
    monkeypatch.setattr(simclr, "look_inside", lambda *_: {})
    parsers, parse = [], argparse.ArgumentParser.parse_args
    record = lambda p, *args: parsers.append(p) or parse(p, *args)
    tried, accepted = 0, []
    for script in SCRIPTS:
        needed = NEEDED.get(script, [])
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", record)
            script.get_args(needed)
        for action in parsers[-1]._actions:
            if getattr(action.type, "__name__", "") not in ("int", "float"):
                continue
            for number in NUMBERS:
                tried, argv = tried + 1, [*needed, f"{action.option_strings[-1]}={number}"]
                try:
                    script.get_args(argv)
                    accepted.append((script, argv))
                except SystemExit as end:
                    error = capsys.readouterr().err.splitlines()[-1]
                    assert end.code == 2 and f"argument {action.option_strings[-1]}" in error, (argv, error)
    assert tried > 1000 and 100 < len(accepted) < tried / 2
    runs = [(script, argv) for script, argv in accepted if script in RUNS and "--steps" not in argv[0]]
    runs = runs if LONG else random.Random(0).sample(runs, 25)
    for i, (script, argv) in enumerate(runs):
        told(capsys, script.main, [*RUNS[script].split(), "--steps", "1", "--out", f"run{i}", *argv])
        shutil.rmtree(f"run{i}", ignore_errors=True)


@pytest.mark.skipif(not LONG, reason="200 kills take half an hour: --long")
@pytest.mark.parametrize("script", RUNS)
def test_forty_kills(script):
    """kill -9 at random moments, most of them while it saves: no checkpoint is lost, none is older than the last."""
    Path("tale.txt").write_text(letters(300))
    argv = [f"{script.__name__}.py", *RUNS[script].split(), "--steps", "1000000", "--out", "run"]
    chance, step = random.Random(0), 0
    for _ in range(40):  # a step is logged before it is saved, so the first one can be killed in between
        process = start(*argv, "--save-every", "1", "--log-every", "1")
        while (line := process.stdout.readline()) and not line.startswith("step "):
            assert "error" not in line
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.wait()
        before, step = step, run_folder.load(Path("run/last.pth"), (script.__name__,), "flags")["step"]
        assert step >= before
        for path in Path("run").glob("*.pth"):
            run_folder.load(path, (script.__name__,), "script")


@pytest.mark.parametrize("script", RUNS)
def test_the_same_command_gives_the_same_bytes(script, monkeypatch):
    Path("tale.txt").write_text(letters(300))
    monkeypatch.setattr(fid, "judges", lambda *_: {})
    monkeypatch.setattr(simclr, "look_inside", lambda *_: {})
    for out in ("a", "b"):
        script.main([*RUNS[script].split(), "--steps", "2", "--out", out, "--deterministic"])
    files = sorted(path.name for path in Path("a").glob("*.pth") if path.name != "last.pth")
    assert files and all(Path("a", name).read_bytes() == Path("b", name).read_bytes() for name in files)


# -------------------------------------------------------------------------------------------------------------- ranks


def torchrun(n: int, *argv: str, restarts: int = 0) -> subprocess.Popen:
    """A script on n gloo ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    command += [f"--max-restarts={restarts}", str(HERE / argv[0]), *argv[1:]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen, seconds: float = 120) -> str:
    """What it has said, once it has ended."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.terminate()  # torchrun takes its ranks with it


IN_FLOAT64 = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
import torch
import ranks
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
ranks.leave = sys.exit  # no evaluation at the end
for name, *argv in json.loads(sys.argv[2]):
    sys.argv, module = [f"{name}.py"], importlib.import_module(name)
    if name == "fid":
        args = module.get_args(argv[1:])
        result = module.compare(args, module.common.setup(args))
        if ranks.rank() == 0:
            open(argv[0], "w").write(json.dumps(result))
    else:
        try:
            module.main(argv)
        except SystemExit as end:
            assert not end.code
    ranks.join = lambda device: None  # one process group for all
"""


def test_ranks_are_one_process_but_for_rounding(inception_file):
    """Every script, with all of its noise and BatchNorm; and one process goes on where two have stopped."""
    Path("float64.py").write_text(IN_FLOAT64)
    Path("tale.txt").write_text(letters(3000))
    as_files(photos(7), "a")
    as_files(photos(6).flip(3), "b")
    runs = {
        "vae": ["--data", "digits", "--arch", "technion", "--image-size", "16"],
        "gan_mnist": ["--data", "digits", "--arch", "conv"],
        "dcgan": ["--data", "digits", "--hidden-dim", "2", "--flip", "--label-noise", "0.2"],
        "simclr": ["--data", "digits", "--image-size", "8", "--batch-size", "4"],
        "char_rnn": ["--data", "tale.txt", "--h-dim", "8", "--seq-len", "8", "--eval-every", "10"],
    }
    usual = ["--steps", "20", "--batch-size", "16", "--no-bf16", "--log-every", "10", "--device", "cpu"]
    lenet = ["digits:test", "digits:train", "--features", "lenet"]
    inception = ["a", "b", "--weights", str(inception_file), "--kid", "--batch-size", "4"]

    def todo(out: str, *others: str) -> str:
        trained = [[name, *usual, *flags, "--out", f"{out}/{name}", *others] for name, flags in runs.items()]
        fids = [["fid", f"{out}/lenet.json", *lenet], ["fid", f"{out}/inception.json", *inception]]
        return json.dumps(trained if others else trained + fids)

    def check(tolerance: float) -> None:
        for name in runs:
            one, two = (torch.load(f"{out}/{name}/last.pth", weights_only=True) for out in ("one", "two"))
            apart = {key: largest_difference(one[key], two[key]) for key in one.keys() - {"flags", "seconds"}}
            assert max(apart.values()) < tolerance, (name, apart)
            assert one["step"] == two["step"] and len(one["rows"]) == len(two["rows"]) > 1

    two = torchrun(4 if LONG else 2, str(Path("float64.py").resolve()), str(HERE), todo("two"))
    one = subprocess.run([sys.executable, "float64.py", str(HERE), todo("one")], capture_output=True, text=True)
    said = ended(two, 300)
    assert one.returncode == 0 and two.returncode == 0, one.stderr + said
    assert said.count("run folder: two/simclr, 0 of 20 steps done") == 1  # rank 0 alone speaks
    check(1e-7)
    for features in ("lenet", "inception"):
        results = [json.loads(Path(f"{out}/{features}.json").read_text()) for out in ("one", "two")]
        assert all(abs(b - a) <= 1e-9 * abs(a) for a, b in numbers_in(*results)), results
    for out in ("one", "two"):
        subprocess.run([sys.executable, "float64.py", str(HERE), todo(out, "--steps", "24")], check=True)
    check(1e-5)  # rounding grows: this game is chaotic


def numbers_in(a, b) -> list[tuple[float, float]]:
    """Pairs of the numbers at the same place of two nested structures."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [pair for key in a for pair in numbers_in(a[key], b[key])]
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return [pair for pair_of in zip(a, b, strict=True) for pair in numbers_in(*pair_of)]
    return [(a, b)] if isinstance(a, int | float) else []


def largest_difference(a, b) -> float:
    """Of two checkpoints' tensors and numbers."""
    if isinstance(a, dict | list | tuple):
        assert len(a) == len(b)
        pairs = [(a[k], b[k]) for k in a] if isinstance(a, dict) else zip(a, b, strict=True)
        return max((largest_difference(*pair) for pair in pairs), default=0.0)
    if isinstance(a, torch.Tensor):
        return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    return abs(a - b) if isinstance(a, int | float) else 0.0 if a == b else math.inf


def rank_pids(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through Linux's /proc")
def test_a_rank_that_is_killed():
    """It takes the job down; torchrun's restart goes on from last.pth; SIGTERM saves once; bad input is one line."""
    Path("tale.txt").write_text(letters(3000))
    argv = [
        "char_rnn.py",
        "--data",
        "tale.txt",
        "--h-dim",
        "16",
        "--seq-len",
        "8",
        "--batch-size",
        "4",
        "--device",
        "cpu",
    ]
    argv += ["--save-every", "5", "--log-every", "5", "--no-bf16"]

    def saved(*flags: str, restarts: int = 0) -> subprocess.Popen:
        process = torchrun(2, *argv, *flags, "--out", "run", restarts=restarts)
        while not Path("run/last.pth").exists():
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        return process

    process = saved("--steps", "1000000")
    os.kill(rank_pids(process)[1], signal.SIGKILL)
    began, said = time.time(), ended(process)
    assert process.returncode and time.time() - began < 30 and "rank      : 1 (local_rank: 1)" in said, said
    assert said.count("error: rank 0 has lost the others (Connection closed by peer") == 1, said

    Path("run/last.pth").unlink()
    process = saved("--steps", "1000000")
    for pid in [*rank_pids(process), process.pid]:  # as systemd and Slurm do; torchrun tells its ranks once more
        os.kill(pid, signal.SIGTERM)
    said, step = ended(process), torch.load("run/last.pth", weights_only=True)["step"]
    assert process.returncode and said.count(f"stopped at step {step} and saved") == 1, said

    Path("run").rename("stopped")
    process = saved("--steps", "400", restarts=1)
    os.kill(rank_pids(process)[0], signal.SIGKILL)
    said = ended(process)
    assert process.returncode == 0 and "0 of 400 steps done" in said and "\nstep 400/400" in said, said
    whole = torchrun(2, *argv, "--steps", "400", "--out", "whole")
    said = ended(whole)
    assert same(*(torch.load(f"{name}/last.pth", weights_only=True) for name in ("run", "whole"))), said

    said = ended(wrong := torchrun(2, *argv[:-1], "--no-bf16", "--batch-size", "5", "--out", "wrong"))
    assert wrong.returncode and said.count("char_rnn.py: error: --batch-size 5") == 1 and not Path("wrong").exists(), (
        said
    )


def test_works_with_the_four_packages_alone(tmp_path):
    """Without the extras a run trains, and says in one line what it leaves out."""
    for i in range(20):
        image(tmp_path / f"set/{i}.png", mode="L", seed=i)
    hide = "import sys; sys.modules.update(dict.fromkeys(['tqdm', 'tensorboard', 'matplotlib', 'sklearn']));"
    call = f"sys.path.insert(0, {str(HERE)!r}); import vae; vae.main(['--data', 'set', '--steps', '2', '--out', 'run'])"
    done = subprocess.run([sys.executable, "-c", hide + call], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "left out: tqdm, tensorboard, matplotlib, sklearn" in done.stdout
    assert Path("run/vae.pth").exists() and not Path("run/curves.png").exists()


if __name__ == "__main__":
    if "--long" in sys.argv:
        sys.argv.remove("--long")
        os.environ["TEST_LONG"] = "1"
    raise SystemExit(pytest.main([__file__, "-q", "--durations=5", *sys.argv[1:]]))
