"""Tests of every script: `python test_all.py`, or pytest. No network; the real data sets are used where data/ has them.

Formulas are held against independent oracles (torch.distributions, numpy, closed forms), runs against unbroken runs.
"""

import ast
import io
import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

import common
import images
import run_folder
import vae

torch.set_num_threads(1)  # on networks this small, threads only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
HERE = Path(__file__).parent
LONG = os.environ.get("TEST_LONG") == "1"  # set by `python test_all.py --long`
SCRIPTS = [vae]


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
    extras = {"tensorboard", "matplotlib", "sklearn", "tqdm", "pytest", "scipy"}
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
    for flag in vars(script.get_args([])):
        assert re.search(rf"args\.{flag}\b", source) or flag == "given", f"nothing reads --{flag.replace('_', '-')}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    shown = capsys.readouterr().out
    assert script.__doc__.splitlines()[0] in shown and "None" not in shown and "--steps" in shown


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
    assert "2 of 14 image files" in (said := capsys.readouterr().out) and "broken.png" in said and "empty.png" in said
    assert data.train.shape == (11, 3, 16, 16) and data.test.shape == (1, 3, 16, 16) and data.train.dtype == torch.uint8
    assert sorted(torch.cat([data.train_labels, data.test_labels]).tolist()) == [0] * 6 + [1] * 6

    monkeypatch.setattr(images, "_decode", None)  # the second start decodes nothing
    again = images.load_images(str(tmp_path / "set"), "mnist", "data", 16)
    assert torch.equal(again.train, data.train) and "2 of 14" in capsys.readouterr().out


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
    z = vae.VAE.reparameterize(None, mu, log_sigma2)
    assert z.mean().item() == pytest.approx(2, abs=0.01) and z.std().item() == pytest.approx(0.5, abs=0.01)
    z.sum().backward()
    assert (mu.grad == 1).all()


def test_bad_architectures():
    for arch, channels, size in (("tsinghua", 3, 32), ("tsinghua", 1, 28), ("technion", 3, 40), ("resnet", 1, 32)):
        with pytest.raises(ValueError, match=arch):
            vae.build_vae(arch, 2, channels, size)


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
    process = start(*argv)
    while not Path("run/last.pth").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    step = torch.load("run/last.pth", weights_only=True)["step"]
    assert process.returncode == 128 + signal.SIGTERM and f"stopped at step {step} and saved" in said

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
