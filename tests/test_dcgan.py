"""dcgan.py: networks, labels, tricks, runs and their ends."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dcgan
import fid
from plumbing.data import images
from plumbing.judge import lenet
from plumbing.run import run as run_module
from tests.helpers import (
    NoJudge,
    as_files,
    batch,
    error_line,
    image,
    last_of,
    photos,
    picture,
    results_of,
    same,
    write_inputs,
)

TINY_DCGAN = "--data digits --batch-size 8 --latent-dim 3 --hidden-dim 2 --log-every 4".split()
TRICKS = {
    "plain": [],
    "noisy": "--image-size 48 --loss lsgan --label-noise 0.2 --label-smoothing 0.1 --instance-noise 0.1 --flip "
    "--noise-steps 6 --ema 0.9".split(),
    "hinge": "--loss hinge --spectral-norm --ema 0".split(),
}


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


def test_fuzzy_labels_are_in_range():
    labels = []

    def remember(y, t):
        labels.append(t)
        return y.sum()

    y = torch.zeros(5000, 1)
    dcgan.discriminator_loss_fn(y, y, 0, 0.4, error=remember)
    for t, middle in zip(labels, (0, 1), strict=True):
        assert middle - 0.2 <= t.min() < middle - 0.19 and middle + 0.19 < t.max() <= middle + 0.2
        assert t.mean() == pytest.approx(middle, abs=0.01) and t.std() == pytest.approx(0.4 / 12**0.5, rel=0.05)
    assert not torch.equal(labels[0], labels[1] - 1)


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
    assert lenet.spread(x) == pytest.approx(exact, rel=1e-5) and lenet.spread(x[:1].expand(7, -1, -1, -1)) == 0


@pytest.mark.parametrize("tricks", TRICKS.values(), ids=TRICKS)
def test_dcgan_resume_is_exact(tricks, monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    argv = [*TINY_DCGAN, *tricks]
    dcgan.main([*argv, "--steps", "8", "--out", "whole"])
    dcgan.main([*argv, "--steps", "5", "--out", "halves"])
    dcgan.main([*argv, "--steps", "8", "--out", "halves", "--sample-every", "2", "--log-every", "3"])
    whole, halves = (last_of(name) for name in ("whole", "halves"))
    networks = {k: v for k, v in whole.items() if k not in run_module.SAVED_FIELDS}
    assert same(networks, {k: halves[k] for k in networks})
    assert networks.keys() == {"G", "D", "averaged", "G_optimizer", "D_optimizer"}
    if "hinge" in tricks:  # --ema 0: the average is G, but for BatchNorm's counter
        assert all(same(v, networks["averaged"][k]) for k, v in networks["G"].items() if v.is_floating_point())
    dcgan.main([*argv, "--steps", "8", "--out", "seed1", "--seed", "1"])
    assert not same(whole["G"], last_of("seed1")["G"])  # the check can fail


@pytest.mark.parametrize(
    ("data", "flags", "lr", "beta1", "spectral_norm"),
    [
        ("digits", [], 0.004, 0.0, True),
        ("pictures", [], 0.001, 0.0, False),
        ("digits", "--lr 2e-4 --beta1 0.5 --no-spectral-norm".split(), 2e-4, 0.5, False),  # the paper's
    ],
)
def test_defaults(data, flags, lr, beta1, spectral_norm, monkeypatch):
    write_inputs()
    monkeypatch.setattr(fid, "Judge", NoJudge)
    dcgan.main([*TINY_DCGAN, *flags, "--data", data, "--image-size", "16", "--steps", "1", "--out", "run"])
    for optimizer in ("G_optimizer", "D_optimizer"):
        (group,) = last_of("run")[optimizer]["param_groups"]
        assert (group["lr"], group["betas"]) == (lr, (beta1, 0.999))
    assert torch.load("run/generator.pth", weights_only=True)["lr"] == lr
    norms = [k for k in torch.load("run/discriminator.pth", weights_only=True)["state_dict"] if "running_var" in k]
    assert not norms if spectral_norm else norms


def test_a_dcgan_from_start_to_export(capsys, monkeypatch):
    monkeypatch.setattr(fid, "SAMPLES", 1000)
    monkeypatch.setattr(lenet, "_train", lambda net, *_: net)
    argv = [*TINY_DCGAN, "--steps", "9", "--sample-every", "3", "--lr", "0.05"]
    dcgan.main(argv)
    folder, found = Path("runs/dcgan-digits-batch-size-8-lr-0.05-latent-dim-3-hidden-dim-2"), capsys.readouterr()
    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    assert rows[0] == "step,split,d_loss,g_loss,d_x,d_g_z,fd_lenet,class_entropy,spread".split(",")
    rows = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    for split in ("D's step", "G's step"):
        shown = {r["step"]: float(r["d_g_z"]) for r in rows if r["split"] == split}
        assert sorted(shown) == ["3", "4", "6", "8", "9"] and all(0 < d < 1 for d in shown.values())
    distances = {int(r["step"]): float(r["fd_lenet"]) for r in rows if r["split"] == "samples"}
    assert sorted(distances) == [3, 6, 9] and "step 3: mode collapse, samples differ by" in found.out
    results = results_of(folder)
    best = min(distances, key=distances.get)
    assert results["best_step"] == best and results["fd_lenet_about"]["split"] == "test" and results["spread"] < 0.5
    assert len({picture(folder / f"samples/step_{i:07d}.png").tobytes() for i in (3, 6, 9)}) == 3
    assert (folder / "curves.png").exists()

    for name, distance in (("best_fd_lenet.pth", "best_fd_lenet"), ("generator.pth", "fd_lenet")):
        fid.main(["digits:test", str(folder / name), "--features", "lenet", "--json"])
        assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(results[distance], rel=1e-5)
    data = images.load_images("digits", "", "data", 32)
    by_training_images = fid.Judge(data, "data", torch.device("cpu"), "train")
    G = dcgan.build(torch.load(folder / "generator.pth", weights_only=True))
    assert by_training_images(partial(dcgan.draw_samples, G))["fd_lenet"] == pytest.approx(distances[9], rel=1e-5)
    assert results["fd_lenet"] != pytest.approx(distances[9], rel=1e-3)  # they are two measures
    (folder / "results.json").unlink()
    dcgan.main(["--eval"])
    again = results_of(folder)
    assert all(again[key] == results[key] for key in ("fd_lenet", "spread", "step", "class_histogram"))
    grids = []
    for seed in ("0", "0", "1"):
        dcgan.main(["--generate", "--n", "9", "--seed", seed])
        grids.append(picture(folder / "generated.png"))
    assert np.array_equal(grids[0], grids[1]) and not np.array_equal(grids[0], grids[2])
    dcgan.main(["--interpolate", "3", "--weights", str(folder / "best_fd_lenet.pth"), "--export"])
    height, width = 8 * 33 + 1 + 3 * 8, 8 * 33 + 1 + 2 * 8  # gaps of 8 between the pairs and beside the ends
    assert picture(folder / "interpolation.png").shape == (2 * height + 16, 2 * width, 3)
    said = capsys.readouterr().out
    assert "DCGAN_model_G.pth: (B, 3) in" in said and "DCGAN_model_D.pt2: (B, 1, 32, 32) in" in said
    (folder / "discriminator.pth").unlink()
    assert "only the generator" in error_line(capsys, dcgan.main, ["--export"])


def test_the_best_generator_outlives_worse_ones(monkeypatch):
    """Kept over a continuation, replaced by a better one only, and not taken from another training or measure."""
    distances = iter([5.0, 3.0, 4.0, 3.5, 2.0, 9.0, 8.0, 8.5])

    def chosen_by(key: str, values) -> type:
        """fid.Judge whose distance to training images comes from `values`, and to test images is 77."""

        class Judge(NoJudge):
            distance = key

            def __init__(self, *_, split: str = "test") -> None:
                self.training = split == "train"

            def __call__(self, _) -> dict:
                if not self.training:
                    return {key: 77.0}
                return {key: next(values), "class_entropy": 2.3, "class_histogram": [1, 1]}

        return Judge

    def results() -> dict:
        return results_of("run")

    monkeypatch.setattr(fid, "Judge", chosen_by("fd_lenet", distances))
    best = lambda: [torch.load("run/best_fd_lenet.pth", weights_only=True)[k] for k in ("step", "train_fd_lenet")]
    argv = [*TINY_DCGAN, "--sample-every", "1", "--out", "run"]
    for steps, expected in (("1", [1, 5.0]), ("3", [2, 3.0]), ("4", [2, 3.0]), ("5", [5, 2.0]), ("6", [5, 2.0])):
        dcgan.main([*argv, "--steps", steps])
        assert best() == expected and (results()["best_step"], results()["best_fd_lenet"]) == (expected[0], 77)
    monkeypatch.setattr(fid, "Judge", NoJudge)
    dcgan.main([*argv, "--steps", "7"])  # what cannot be measured changes nothing
    assert best() == [5, 2.0] and results()["best_step"] == 5
    monkeypatch.setattr(fid, "Judge", chosen_by("fid", iter([99.0])))
    dcgan.main([*argv, "--steps", "8"])
    assert best() == [5, 2.0] and results()["best_fid"] == 77.0 and Path("run/best_fid.pth").exists()

    monkeypatch.setattr(fid, "Judge", chosen_by("fd_lenet", distances))
    dcgan.main([*argv, "--steps", "1", "--seed", "1", "--sample-every", "9", "--save-every", "1", "--fresh"])
    assert best() == [1, 8.0]
    run = torch.load("run/best_fd_lenet.pth", weights_only=True)
    torch.save(run | {"train_fd_lenet": 0.5}, "run/best_fd_lenet.pth")
    Path("run/last.pth").unlink()  # as if the run that it is of had been killed before its first save
    dcgan.main([*argv, "--steps", "2", "--seed", "1", "--sample-every", "9"])
    assert best() == [2, 8.5]


def test_a_dcgan_stopped_between_samples_and_asked_for_less():
    """Its end is measured, not taken from the last row."""
    as_files(photos(12), "photos")
    argv = "--data photos --hidden-dim 2 --batch-size 1 --image-size 8 --out run --steps".split()
    dcgan.main([*argv, "3"])
    Path("run/results.json").unlink()
    state = last_of("run")
    torch.save(state | {"rows": []}, "run/last.pth")
    dcgan.main([*argv, "2"])
    assert results_of("run")["step"] == 3


def test_dcgan_takes_any_folder(tmp_path, capsys):
    """Twenty images, few for the batch, of mixed modes, one of them a line; nothing is labelled."""
    for i, mode in enumerate(["RGB", "L", "RGBA", "LA"] * 5):
        image(tmp_path / f"set/{i}.png", mode=mode, size=(70, 80), seed=i)
    image(tmp_path / "set/3.png", size=(3, 2000))
    dcgan.main("--data set --batch-size 30 --hidden-dim 2 --steps 2 --out run --sample-every 1".split())
    found = capsys.readouterr()
    assert "fd_lenet is left out" in found.err and "set (18 + 2 images of (3, 64, 64))" in found.out
    results = results_of("run")
    assert "spread" in results and not any("fd" in key or "best" in key for key in results)
    assert picture(Path("run/samples/step_0000002.png")).shape == (8 * 65 + 1, 8 * 65 + 1, 3)
    config = json.loads(Path("run/config.json").read_text())
    assert config["flags"]["flip"] is True and config["parameters"]["G"] == 28447


def test_flips_and_instance_noise_of_dcgan(monkeypatch):
    """Half of the images are mirrored where that is asked for, and D's noise falls to nothing."""
    seen, update = [], dcgan.update
    monkeypatch.setattr(fid, "Judge", NoJudge)

    def spy(*args):
        x, _, sigma = args[6:9]
        seen.append((x, sigma))
        return update(*args)

    monkeypatch.setattr(dcgan, "update", spy)
    argv = [*TINY_DCGAN, "--steps", "8", "--batch-size", "32"]
    dcgan.main([*argv, "--out", "plain", "--instance-noise", "0"])
    dcgan.main([*argv, "--out", "mirrored", "--flip", "--instance-noise", "0.5", "--noise-steps", "4"])
    assert [sigma for _, sigma in seen] == pytest.approx([0.0] * 8 + [0.375, 0.25, 0.125] + [0.0] * 5)
    plain, mirrored = (torch.cat([x for x, _ in run]) for run in (seen[:8], seen[8:]))
    flipped, kept = ((x == mirrored).flatten(1).all(1) for x in (plain.flip(-1), plain))
    assert (flipped | kept).all() and 90 < flipped.sum() < 166  # of 256


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
        (["--generate", "--loss", "lsgan"], "o trained weights"),
        (["--generate", "--weights", "nowhere"], "nowhere/generator.pth cannot be read"),
    ],
)
def test_bad_dcgan_input_gets_one_line(argv, says, capsys):
    as_files(photos(4), "colour")
    assert says in error_line(capsys, dcgan.main, argv)
