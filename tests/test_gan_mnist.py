"""gan_mnist.py: which step changes what, runs and their ends, averaged weights."""

import copy
import json
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import common
import fid
import gan_mnist
from plumbing.run import run as run_module
from tests.helpers import NoJudge, as_files, error_line, last_of, photos, picture, results_of, same

TINY_GAN = "--data digits --batch-size 8 --noise-dim 3 --log-every 4".split()


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


@pytest.mark.parametrize("arch", ["dense", "conv"])
def test_each_step_changes_its_own_network(arch, monkeypatch):
    """D's step leaves G and its gradients alone; G's step changes G, and no gradient reaches D's weights."""
    networks, seen, get_optimizer = [], [], gan_mnist.get_optimizer

    def weights():
        return [[p.detach().clone() for p in m.parameters()] for m in networks]

    def gradients(m):
        return copy.deepcopy([p.grad for p in m.parameters()])

    def spied(model, *how):
        optimizer, number = get_optimizer(model, *how), len(networks)
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
    monkeypatch.setattr(fid, "Judge", NoJudge)
    gan_mnist.main([*TINY_GAN, "--arch", arch, "--steps", "2"])
    G, D = 0, 1
    assert [number for number, _, _ in seen] == [D, G, D, G]
    assert [changed for _, changed, _ in seen] == [[False, True], [True, False]] * 2
    assert seen[0][2][G] == [None] * len(seen[0][2][G])
    for first, second in zip(seen, seen[1:], strict=False):
        other = 1 - second[0]
        assert same(first[2][other], second[2][other])  # what one network learns from, the other's step has not touched


class BlindJudge(NoJudge):
    """A judge that draws samples and looks at none."""

    def __call__(self, draw, **_) -> dict:
        assert len(next(iter(draw(4, 0)))) == 4
        return {"fd_lenet": 1.0, "class_entropy": 2.3, "class_histogram": [1, 1]}


@pytest.mark.parametrize(("arch", "loss", "ema"), [("dense", "gan", "0"), ("conv", "lsgan", "0.9")])
def test_gan_resume_is_exact(arch, loss, ema, monkeypatch):
    """Averaging, logging and sampling change no training."""
    monkeypatch.setattr(fid, "Judge", BlindJudge)
    argv = [*TINY_GAN, "--arch", arch, "--loss", loss]
    gan_mnist.main([*argv, "--ema", ema, "--steps", "6", "--out", "whole"])
    gan_mnist.main([*argv, "--ema", ema, "--steps", "4", "--out", "halves"])
    gan_mnist.main([*argv, "--ema", ema, "--steps", "6", "--out", "halves", "--sample-every", "2"])
    whole, halves = (last_of(name) for name in ("whole", "halves"))
    networks = {k: v for k, v in whole.items() if k not in run_module.SAVED_FIELDS}
    assert same(networks, {k: halves[k] for k in networks})
    assert networks.keys() == {"G", "D", "averaged", "G_optimizer", "D_optimizer"}
    gan_mnist.main([*argv, "--ema", "0", "--steps", "6", "--out", "seed1", "--seed", "1"])
    assert not same(whole["G"], last_of("seed1")["G"])  # the check can fail
    saved = torch.load("whole/generator.pth", weights_only=True)["state_dict"]
    assert same(saved, whole["G"]) == (ema == "0")
    if ema != "0":
        gan_mnist.main([*argv, "--ema", "0", "--steps", "6", "--out", "plain", "--log-every", "3"])
        plain = last_of("plain")
        assert same(plain["G"], whole["G"]) and same(plain["D"], whole["D"])
        assert all(torch.equal(saved[k], whole["averaged"][k]) for k in saved)


def test_a_gan_from_start_to_samples(capsys, monkeypatch):
    monkeypatch.setattr(fid, "SAMPLES", 1000)
    gan_mnist.main([*TINY_GAN, "--steps", "8", "--sample-every", "8"])
    folder, found = Path("runs/gan_mnist-digits-batch-size-8-noise-dim-3"), capsys.readouterr()
    end = f"{folder}: step 8, trained and measured on digits (1618 + 179 images of (1, 28"
    assert found.out.splitlines()[-1].startswith(end)
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert rows[0] == "step,split,d_loss,g_loss,d_x,d_g_z,fd_lenet,class_entropy"
    splits = ["train", "D's step", "G's step"]
    expected = [["4", split] for split in splits] + [["8", split] for split in [*splits, "samples"]]
    assert [row.split(",")[:2] for row in rows[1:]] == expected
    results = results_of(folder)
    assert results["class_entropy"] < 1 and "step 8: mode collapse, class entropy" in found.out
    assert picture(folder / "samples/step_0000008.png").shape == (3 * 233, 3 * 233, 3)  # 8 x 8 digits and a margin
    D = gan_mnist.discriminator()
    D.load_state_dict(torch.load(folder / "discriminator.pth", weights_only=True)["state_dict"])

    fid.main(["digits:test", str(folder), "--features", "lenet", "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["value"] == pytest.approx(results["fd_lenet"], rel=1e-6) and measured["size_real"] == 28
    (folder / "results.json").unlink()
    gan_mnist.main(["--eval"])
    assert results_of(folder)["fd_lenet"] == results["fd_lenet"] and results_of(folder)["step"] == 8
    grids = []
    for seed in ("0", "0", "1"):
        gan_mnist.main(["--generate", "--n", "9", "--seed", seed])
        grids.append(picture(folder / "generated.png"))
    assert np.array_equal(grids[0], grids[1]) and not np.array_equal(grids[0], grids[2])


def test_a_discriminator_that_wins_is_noticed():
    def run(*losses: float) -> Namespace:
        rows = []
        for i, loss in enumerate(losses, 1):
            rows += [{"step": 100 * i, "split": split, "d_loss": loss} for split in ("train", "other")]
        return Namespace(step=100 * len(losses), rows=rows)

    won = [gan_mnist.won_by_D(run(*losses)) for losses in ((), (0.001,), (0.5,), (0.5, 0.009, 0.001))]
    assert won == [0, 100, 0, 200]


def test_averaged_weights():
    """Behind a ramp the mean lags by its mean age, 1 / (1 − decay) − 1 steps in the end; counters are left alone."""
    mean, model = (torch.nn.BatchNorm1d(3, dtype=torch.float64) for _ in range(2))
    mean.num_batches_tracked.fill_(7)
    for step in range(1, 10001):
        torch.nn.init.constant_(model.weight, step)
        model.running_mean.fill_(2 * step)
        common.average(mean, model, 0.99, step)
        assert step > 1 or mean.weight.tolist() == [1] * 3  # the first is the model itself
    assert mean.weight.tolist() == pytest.approx([10000 - 99] * 3)
    assert mean.running_mean.tolist() == pytest.approx([20000 - 198] * 3)
    assert mean.num_batches_tracked == 7


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "colour"], "in colour"),
        (["--data", "digits", "--arch", "conv", "--batch-size", "1"], "at least 2"),
        (["--noise-dim", "0"], "--noise-dim"),
        (["--ema", "1"], "--ema"),
        (["--loss", "no-such-game"], "--loss"),
        (["--generate"], "There are no trained weights in runs/gan_mnist-*"),
        (["--generate", "--weights", "nowhere"], "nowhere/generator.pth cannot be read"),
    ],
)
def test_bad_gan_input_gets_one_line(argv, says, capsys):
    as_files(photos(4), "colour")
    assert says in error_line(capsys, gan_mnist.main, argv)


@pytest.mark.parametrize(
    ("flags", "beta1"), [([], 0.0), (["--loss", "lsgan"], 0.5), (["--beta1", "0.5"], 0.5), (["--beta1", "0"], 0.0)]
)
def test_momentum_is_that_of_the_game(flags, beta1, monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    gan_mnist.main([*TINY_GAN, *flags, "--steps", "1", "--out", "run"])
    for optimizer in ("G_optimizer", "D_optimizer"):
        assert last_of("run")[optimizer]["param_groups"][0]["betas"] == (beta1, 0.999)
    assert last_of("run")["flags"]["beta1"] == beta1
