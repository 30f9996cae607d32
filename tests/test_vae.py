"""vae.py: the bound, runs and their ends."""

import copy
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Normal, kl_divergence

import fid
import vae
from plumbing.run import run as run_module
from tests.helpers import NoJudge, batch, error_line, image, last_of, picture, results_of, same, stop_after

TINY = "--data digits --batch-size 8 --latent-dim 2 --arch mlp --image-size 16".split()


@pytest.mark.parametrize(("model", "spread"), [(vae.TsinghuaVAE(1), 0.5), (vae.build_vae("mlp", 1), 0.25)])
def test_reparameterize(model, spread):
    """From what the head gives: log sigma in Tsinghua's table, log sigma squared in Technion's."""
    torch.manual_seed(0)
    mu = torch.full((100_000, 1), 2.0, requires_grad=True)
    z = model.reparameterize(mu, torch.full((100_000, 1), math.log(spread)))
    assert z.mean().item() == pytest.approx(2, abs=0.01) and z.std().item() == pytest.approx(0.5, abs=0.01)
    z.sum().backward()
    assert (mu.grad == 1).all()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_elbo(likelihood):
    """The two loss terms, turned into nats, are E log p(x|z) − KL as torch.distributions has it."""
    torch.manual_seed(0)
    model = vae.build_vae("mlp", 4, 1, 8)
    model.set_likelihood(likelihood, 0.02)
    x = batch(size=8).round() if likelihood == "bernoulli" else batch(size=8, low=-1)
    torch.manual_seed(1)
    _, rec, kl = vae.objective(model, x, model.p_x, 1.0)
    torch.manual_seed(1)
    x_hat, mu, log_sigma2 = model(x)
    p = Bernoulli(x_hat) if likelihood == "bernoulli" else Normal(x_hat, math.sqrt(0.02 * 64))
    exact = p.log_prob(x).sum() - kl_divergence(Normal(mu, (log_sigma2 / 2).exp()), Normal(0, 1)).sum()
    assert model.p_x.elbo(rec.item(), kl.item(), 64) == pytest.approx(exact.item() / 5, rel=1e-4)


def test_technion_course_classes():
    encoder = vae.EncoderCNN(in_channels=3, out_channels=1024)
    decoder = vae.DecoderCNN(in_channels=1024, out_channels=3)
    x = batch(3, 64, 2)
    assert encoder(x).shape == (2, 1024, 4, 4) and decoder(encoder(x)).shape == x.shape
    model = vae.VAE(encoder, decoder, x[0].size(), 2)
    x_rec, _, _ = model(x)
    assert x_rec.shape == x.shape and model.training and x_rec.min() >= -1


def test_batches_of_one_where_maps_are_larger(monkeypatch):
    """At 32 pixels BatchNorm has the four pixels of a map."""
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    argv = "--data digits --latent-dim 2 --width 8 --batch-size 1 --steps 2 --out run"
    vae.main(argv.split())
    assert last_of("run")["step"] == 2


def test_looking_at_a_model_in_training_leaves_it_as_it_is():
    torch.manual_seed(0)
    model = vae.build_vae("technion", 2, 1, 32, 16)
    before = copy.deepcopy(model.state_dict())
    x = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    vae.codes(model, x)
    vae.mean_losses(model, x, 1.0)
    vae.log_px(model, x, 3)
    vae.draw_interpolation(model, x[:2], Path("x.png"))
    after = model.state_dict()
    assert model.training and all(torch.equal(before[k], after[k]) for k in before)


def test_codes_need_no_right_to_write_beside_the_weights(monkeypatch):
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main([*TINY, "--steps", "1", "--out", "locked"])
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    vae.main(["--encode", "codes.npz", "--weights", "locked"])
    with np.load("codes.npz") as file:
        assert file["mu"].shape == (1797, 2)


def test_many_importance_samples_take_no_more_memory(monkeypatch):
    """5,000 at once were 2.5 times the memory of 2,048; with as many as the flag took the machine ended the process."""
    model, x = vae.build_vae("mlp", 2, 1, 8), torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    seen, weigh = [], vae.log_importance_weights

    def spied(*given):
        seen.append(weigh(*given))
        return seen[-1]

    monkeypatch.setattr(vae, "log_importance_weights", spied)
    found = vae.log_px(model, x, 5000)
    assert [w.shape for w in seen] == [(k, 1) for k in (2048, 2048, 904)] * 3
    each = torch.cat([torch.cat(seen[i : i + 3]) for i in (0, 3, 6)], 1)  # (5000, 3)
    assert found == pytest.approx((each.logsumexp(0) - math.log(5000)).mean().item(), rel=1e-6)


def test_bad_architectures():
    for arch, channels, size in (("tsinghua", 3, 32), ("tsinghua", 1, 28), ("resnet", 1, 32)):
        with pytest.raises(ValueError, match=arch):
            vae.build_vae(arch, 2, channels, size)
    with pytest.raises(ValueError, match="no likelihood poisson"):
        vae.build_vae("mlp", 2).set_likelihood("poisson")


@pytest.mark.parametrize("size", [8, 20, 28, 45])
def test_technion_takes_any_size_and_its_margin_is_nobodys(size):
    """Images are laid on black up to a multiple of 16; of what is made of them the margin is cut off again."""
    model, x = vae.build_vae("technion", 2, 3, size, width=8).eval(), batch(3, size, 2)
    wide = F.pad(x, (-size % 16 // 2, (-size % 16 + 1) // 2) * 2)
    features = model.encoder[0][-1](wide)
    assert wide.shape[-1] % 16 == 0 and torch.equal(model.encoder[0](x), features)
    assert model(x)[0].shape == x.shape


def test_binarize_draws_pixels_with_the_probability_of_their_grey():
    """Anew each time; evaluation draws the same ones each time. Burda et al. 2015, section 5."""
    model = vae.build_vae("mlp", 2, 1, 8)
    model.set_likelihood("bernoulli", binarize=True)
    x = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).mul(4).expand(4000, -1, -1, -1)
    drawn = vae.prepare(model, x)
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and not torch.equal(drawn, vae.prepare(model, x))
    assert (drawn.mean(0) - x[0] / 255).abs().max() < 5 * 0.5 / 4000**0.5
    some = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    assert vae.mean_losses(model, some, 1.0) == vae.mean_losses(model, some, 1.0)


def test_the_schedule_rises_and_falls():
    rate = [vae.schedule(step, 10000, "cosine") for step in (1, 500, 5001, 10000)]
    assert rate == pytest.approx([1 / 500, 0.994, 0.5, 0], abs=1e-3)
    assert [vae.schedule(step, 10, "constant") for step in (1, 500, 900)] == [1 / 500, 1, 1]


def test_the_curves_share_one_objective(monkeypatch):
    """While the KL term of a dense VAE warms up, it does so in the test loss, too."""
    mean_losses, betas = vae.mean_losses, []
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    monkeypatch.setattr(vae, "mean_losses", lambda model, x, beta: betas.append(beta) or mean_losses(model, x, beta))
    vae.main([*TINY, "--steps", "40", "--log-every", "5", "--beta", "2"])
    assert betas == [1.0] + 7 * [2.0]


def test_a_run_from_start_to_export(capsys, monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    vae.main([*TINY, "--steps", "30", "--log-every", "10", "--sample-every", "20"])
    folder = Path("runs/vae-digits-batch-size-8-latent-dim-2-arch-mlp-image-size-16")
    said = capsys.readouterr().out
    data = "digits (1618 + 179 images of (1, 16, 16))"
    assert said.splitlines()[-1] == f"{folder}: step 30, trained and measured on {data}"
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,split,loss,rec,kl" and len(rows) == 7 and rows[-1].startswith("30,test,")
    losses = [float(row.split(",")[2]) for row in rows[1:] if ",test," in row]
    assert losses[-1] < losses[0]
    results = results_of(folder)
    assert results["elbo"] < results["log_px"] < 0 and results["test_images"] == 179
    config = json.loads((folder / "config.json").read_text())
    assert re.fullmatch(r"\S.*, \d+ threads", config["machine"])
    assert config["flags"]["latent_dim"] == 2 and config["parameters"]["model"] > 0
    assert config["data"].startswith("digits") and list(folder.glob("events.out.tfevents.*"))
    assert picture(folder / "samples/step_0000030.png").shape == (4 * 137, 4 * 137, 3)
    for name in ("curves", "latent", "interpolation", "reconstructions", "reconstructions/step_0000020"):
        picture(folder / f"{name}.png")

    vae.main([*TINY, "--steps", "30"])
    assert "is finished at step 30" in capsys.readouterr().out
    vae.main(["--eval", "--latent-dim", "2"])  # the same model and noise: the same numbers
    assert results_of(folder)["elbo"] == pytest.approx(results["elbo"], abs=1e-3)
    vae.main(["--generate", "--n", "9", "--interpolate", "--export"])
    assert picture(folder / "generated.png").shape == (10 * 52, 10 * 52, 3)
    assert "within" in capsys.readouterr().out and (folder / "VAE_model.pth").exists()

    assert "latent_dim 10" in error_line(capsys, vae.main, ["--generate", "--latent-dim", "3"])
    checkpoint = ["--generate", "--weights", str(folder / "last.pth")]
    assert f"is a checkpoint, not a weights file. Use the folder {folder}." in error_line(capsys, vae.main, checkpoint)
    other = [*TINY, "--out", str(folder), "--seed", "1"]
    says = "was trained with --seed 0, not --seed 1. To continue it, use --seed 0."
    assert says in error_line(capsys, vae.main, other)
    vae.main([*TINY, "--seed", "1", "--steps", "1"])  # another folder
    assert last_of(f"runs/vae-digits-batch-size-8-seed-1-{folder.name.split('8-', 1)[1]}")["step"] == 1
    vae.main([*TINY, "--steps", "1", "--fresh"])
    assert len(list(Path("runs").glob(f"{folder.name}.*/last.pth"))) == 1  # the old run was moved aside


def test_eval_never_measures_on_other_data(tmp_path, capsys):
    for i in range(20):
        image(tmp_path / f"set/{i}.png", seed=i)
    vae.main(["--data", "set", "--steps", "1", "--arch", "mlp", "--latent-dim", "1"])
    image(tmp_path / "set/another.png", seed=99)  # splits anew: what was trained on could be held out now
    assert "not on set (19 + 2" in error_line(capsys, vae.main, ["--eval"])


@pytest.mark.parametrize(("arch", "factors"), [("mlp", [0.5, 1, 1, 1, 1, 1, 1, 1]), ("technion", [1] * 8)])
def test_kl_warmup(arch, factors, monkeypatch):
    """A dense VAE's β rises to --beta in a quarter of the steps; other networks have all of it from the first."""
    betas, objective = [], vae.objective
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    monkeypatch.setattr(vae, "objective", lambda *given: betas.append(given[-1]) or objective(*given))
    vae.main([*TINY, "--arch", arch, "--steps", "8", "--beta", "3", "--log-every", "99"])
    assert betas[:8] == [3 * factor for factor in factors]


@pytest.mark.parametrize(("arch", "schedule"), [("tsinghua", "constant"), ("technion", "cosine"), ("mlp", "constant")])
def test_resume_is_exact(arch, schedule, monkeypatch, capsys):
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    argv = ["--data", "digits", "--batch-size", "8", "--arch", arch, "--log-every", "4", "--lr-schedule", schedule]
    vae.main([*argv, "--steps", "8", "--out", "whole"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Run, "save", stop_after(5, run_module.Run.save))
        vae.main([*argv, "--steps", "8", "--out", "halves", "--save-every", "5"])
    vae.main([*argv, "--steps", "8", "--out", "halves", "--sample-every", "2"])
    whole, halves = (last_of(name) for name in ("whole", "halves"))
    assert same(whole, halves) and whole["step"] == 8 and len(whole["rows"]) == 4
    assert Path("whole/metrics.csv").read_bytes() == Path("halves/metrics.csv").read_bytes()
    vae.main([*argv, "--steps", "5", "--out", "more"])
    assert Path("more/metrics.csv").read_text().splitlines()[-1].startswith("5,")  # the last step has a row
    vae.main([*argv, "--steps", "8", "--out", "more"])
    learned = whole.keys() - {"seconds", "rows", "sums", "planned_steps"}
    if arch == "tsinghua":
        assert all(same(whole[key], last_of("more")[key]) for key in learned)
    assert "The run was planned for 5 steps, now for 8." in capsys.readouterr().out
    vae.main([*argv, "--steps", "8", "--out", "seed1", "--seed", "1"])
    assert not same(whole["model"], last_of("seed1")["model"])  # the check can fail


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--latent-dim", "0"], "--latent-dim"),
        (["--steps", "-5"], "--steps"),
        (["--beta", "-1"], "--beta"),
        (["--x-sigma2", "0"], "--x-sigma2"),
        (["--samples", "2147483646"], "--samples"),
        (["--data", "digits", "--image-size", "16", "--batch-size", "1"], "BatchNorm"),
        (["--image-size", "5000"], "--image-size"),
        (["--data", "nowhere/"], "no such file or folder"),
        (["--data", "empty"], "holds no image file"),
        (["--data", "texts"], "holds no image file, but 1 .txt, 1 .md"),
        (["--data", "lies"], "none of the 1 image files"),
        (["--data", "one"], "two are needed"),
        (["--data", "texts/a.txt"], "neither a folder"),
        (["--data", "http://127.0.0.1:9/faces.zip"], "could not be downloaded"),
        (["--data", "digits", "--arch", "tsinghua", "--width", "64"], "--width"),
        (["--data", "digits", "--binarize", "--likelihood", "gaussian"], "--binarize"),
        (["--data", "digits", "--x-sigma2", "0.1"], "Add --likelihood gaussian"),
        (["--data", "digits", "--arch", "tsinghua", "--image-size", "28"], "1x32x32"),
        (["--data", "digits", "--out", "/dev/null/run"], "cannot be written"),
        (["--data", "digits", "--out", "texts/a.txt"], "cannot be written"),
        (["--data", "digits", "--out", "foreign"], "was saved by dcgan, not by vae.py"),
        (["--generate", "--weights", "foreign/last.pth"], "was saved by dcgan, not by vae.py"),
        (["--generate", "--weights", "texts/a.txt"], "cannot be read"),
        (["--generate", "--weights", "nowhere.pth"], "No such file"),
        (["--device", "gpu"], "choose from auto, cuda, mps, cpu"),
        (["--device", "cuda"], "has no cuda"),
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
