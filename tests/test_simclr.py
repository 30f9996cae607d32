"""simclr.py: how views are distributed, the linear classifier, runs and their ends."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

import simclr
from plumbing.data import pixels
from tests.helpers import LONG, RUNS, error_line, image, losses_agree, photos, picture, results_of, same, write_inputs


def test_simclr_gradient_is_finite_for_a_small_tau():
    z = nn.functional.normalize(torch.randn(8, 4), dim=1).requires_grad_()
    simclr.simclr_loss_vectorized(*z.chunk(2), 0.005).backward()
    assert z.grad.isfinite().all() and z.grad.any()


def test_crop_boxes_are_distributed_as_torchvisions():
    """Two-sample Kolmogorov-Smirnov on area, aspect and place; at this size 0.02 is beyond chance."""
    torch.manual_seed(0)
    n = 20000
    draw, x = transforms.RandomResizedCrop.get_params, torch.empty(3, 32, 32)
    theirs = torch.tensor([draw(x, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]).T.double()
    ours = simclr.crop_boxes(n, 32, torch.device("cpu"), (0.08, 1.0)).double()

    def measures(box):  # area, aspect, top, right
        return box[2] * box[3], box[2] / box[3], box[0], box[1] + box[3]

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

    def statistics(v):  # (n, 7): means and deviations per channel, and how much the channels differ
        return torch.cat([v.mean((2, 3)), v.std((2, 3)), v.std(1).mean((1, 2))[:, None]], 1)

    a, b = statistics(a), statistics(b)
    for p, q in ((a, b), ((a - a.mean(0)) ** 2, (b - b.mean(0)) ** 2)):
        error = ((p.var(0) + q.var(0)) / n).sqrt()
        assert ((p.mean(0) - q.mean(0)).abs() < 5 * error + 1e-3).all()
    colourless = (a[:, 6] < 1e-3).float().mean().item()
    assert colourless == pytest.approx(0.2, abs=0.03)


def test_every_view_has_parameters_of_its_own():
    torch.manual_seed(0)
    x = photos(1, 32).expand(50, -1, -1, -1)
    views = simclr.augment(x)
    assert views.shape == (50, 3, 32, 32) and views.min() >= 0 and views.max() <= 1
    assert len({v.numpy().tobytes() for v in views}) == 50
    orders = []

    def spy(x, kind, _):
        orders.append((kind, len(x)))
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simclr, "adjust", spy)
        simclr.jitter(torch.rand(4000, 3, 2, 2))
    assert [kind for kind, _ in orders] == 4 * list(simclr.ADJUST)
    assert all(700 < n < 900 for _, n in orders)  # each adjustment at each place, 0.8 · 4000 / 4
    grey = simclr.augment(torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8))
    assert grey.shape == (4, 3, 16, 16)


def test_linear_classifier_is_sklearns():
    from sklearn.linear_model import LogisticRegression

    rng = torch.Generator().manual_seed(0)
    h, test_h = torch.randn(400, 5, generator=rng), torch.randn(300, 5, generator=rng)
    W = torch.tensor([[1.0, -1, 0], [0, 2, -1], [0, 0, 1], [1, 1, 1], [0, 1, 2]])
    rule = lambda z: (z @ W).argmax(1)
    noisy = torch.where(torch.rand(400, generator=rng) < 0.2, torch.randint(0, 3, (400,), generator=rng), rule(h))
    for l2 in (1e-3, 1e-1):
        ours = torch.softmax(simclr.logistic_regression(h, noisy, l2)(test_h), 1)
        oracle = LogisticRegression(C=1 / (400 * l2), max_iter=1000, tol=1e-8).fit(h.numpy(), noisy.numpy())
        assert np.abs(ours.numpy() - oracle.predict_proba(test_h.numpy())).max() < 2e-3
    scaled = [torch.cat([3 * z + 1, torch.ones(len(z), 1)], 1) for z in (h, test_h)]  # and a feature that is constant
    accuracy = simclr.linear_accuracy(scaled[0], noisy, scaled[1], rule(test_h))
    assert accuracy == pytest.approx(oracle.score(test_h.numpy(), rule(test_h).numpy()), abs=0.05) and accuracy > 0.8


@pytest.mark.skipif(not LONG, reason="128 x 128 similarities, pair by pair: --long")
@pytest.mark.parametrize("tau", [0.005, 0.05, 0.5, 5.0])
def test_simclr_losses_agree_on_a_large_batch(tau):
    losses_agree(64, tau)


def test_batchnorm_is_measured_over_all_batches():
    """Nothing of (0, 1), where its statistics begin, is left."""
    model = simclr.Model(8, "resnet18", [0.4] * 3, [0.2] * 3)
    x = torch.randint(0, 256, (750, 3, 8, 8), dtype=torch.uint8)
    twin = simclr.untrained_twin(model, x, seed=0)
    assert same(twin.mean, model.mean) and same(twin.std, model.std)
    assert not same(twin.f[0].weight, model.f[0].weight)
    with torch.no_grad():
        expected = twin.f[0](simclr.prepare(model, x)).mean((0, 2, 3))  # the convolution before the first BatchNorm
    torch.testing.assert_close(twin.f[1].running_mean, expected, rtol=0, atol=1e-4)


def test_features_need_no_right_to_write_beside_the_weights(monkeypatch):
    write_inputs()
    simclr.main([*TINY_SIMCLR, "--data", "pictures", "--steps", "1", "--out", "locked"])
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    simclr.main(["--features", "h.npz", "--weights", "locked"])
    assert np.load("h.npz")["features"].shape == (40, 512)


TINY_SIMCLR = "--image-size 8 --batch-size 8 --log-every 2".split()


def test_a_simclr_from_start_to_features(capsys, tmp_path):
    for i in range(40):
        image(tmp_path / f"set/{'ab'[i % 2]}/{i}.png", size=(8, 8), seed=i)
    simclr.main(["--data", "set", *TINY_SIMCLR, "--steps", "2"])
    folder, found = Path("runs/simclr-set-batch-size-8-image-size-8"), capsys.readouterr()
    results = results_of(folder)
    expected = {f"{f}{kind}" for f in ("", "untrained_", "pixels_") for kind in ("knn", "linear", "linear_few")}
    assert expected <= results.keys()
    assert all(0 <= results[k] <= 1 for k in expected) and results["few_labels"] == 4
    weights = torch.load(folder / "simclr.pth", weights_only=True)
    model = simclr.build(weights)
    sha = simclr.fingerprint(model.f)
    assert results["encoder_sha256"] == sha and f"frozen encoder: {sha} before, {sha} after" in found.out
    model.f[1].running_mean[3] += 1e-3
    assert simclr.fingerprint(model.f) != sha  # buffers count
    assert {p.name for p in folder.glob("*.png")} == {"views.png", "neighbours.png", "curves.png"}
    assert picture(folder / "views.png").shape == (7 * (3 * 9 + 1), 7 * (8 * 9 + 1), 3)

    simclr.main(["--eval"])
    again = results_of(folder)
    assert all(again[k] == results[k] for k in expected if "untrained" not in k)

    for i in range(5):
        image(tmp_path / f"mine/{'cat' if i % 2 else 'dog'}/{i}.png", size=(20 + i, 30), seed=i)
    (tmp_path / "mine/broken.png").write_text("no image")
    simclr.main(["--features", "x.npz", "--data", "mine"])
    with np.load("x.npz") as file:
        h, names = file["features"], file["names"].tolist()
        assert h.shape == (5, 512) and h.dtype == np.float32 and file["labels"].tolist() == ["cat"] * 2 + ["dog"] * 3
    x = torch.tensor(pixels.decode(tmp_path / "mine" / names[3], "RGB", 8, pixels.White()).pixels).permute(2, 0, 1)[
        None
    ]
    alone = simclr.represent(simclr.build(weights), x, bf16=True)
    assert np.abs(alone.numpy() - h[3]).max() < 0.05 * np.abs(h[3]).max()
    for path in ("train/cat/1.png", "test/dog/2.png", "test/dog/1.png"):
        image(tmp_path / "split" / path)
    with zipfile.ZipFile("split.zip", "w") as z:
        for file in sorted(tmp_path.glob("split/*/*/*")):
            z.write(file, file.relative_to(tmp_path))
    simclr.main(["--features", "y.npz", "--data", "split.zip"])
    with np.load("y.npz") as file:
        assert file["names"].tolist() == ["train/cat/1.png", "test/dog/1.png", "test/dog/2.png"]
        assert file["labels"].tolist() == ["cat", "dog", "dog"] and file["features"].shape == (3, 512)
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
        (["--features", "z.npz", "--weights", "part.pth"], "has no 'mean'"),
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
    assert "linear" not in results_of("run")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data", "digits", "--batch-size", "1"], "1618 training images. Use at least 2, at most 1618"),
        (["--data", "digits", "--batch-size", "1619"], "1618 training images. Use at least 2, at most 1618"),
        (["--labels", "0"], "--labels"),
        (["--labels", "1.5"], "--labels"),
        (["--tau", "0"], "--tau"),
        (["--encoder", "vgg"], "--encoder"),
        (["--eval"], "There are no trained weights in runs/simclr-*"),
        (["--features", "x.npz"], "There are no trained weights in runs/simclr-*"),
        (["--generate"], "unrecognized arguments"),
    ],
)
def test_bad_simclr_input_gets_one_line(argv, says, capsys):
    assert says in error_line(capsys, simclr.main, argv)


def test_the_first_views_are_half_as_large(monkeypatch, capsys):
    write_inputs()
    monkeypatch.setattr(simclr, "evaluate_run", lambda *_: {})
    seen, forward = [], simclr.Model.forward

    def spied(self, x):
        seen.append(x.shape)
        return forward(self, x)

    monkeypatch.setattr(simclr.Model, "forward", spied)
    half = [*RUNS[simclr], "--steps", "4", "--half-size", "0.5", "--out", "run"]
    assert "Half of 8 pixels is less than the 8" in error_line(capsys, simclr.main, half)
    simclr.main([*half, "--image-size", "16"])
    assert seen == [(8, 3, 8, 8)] * 2 + [(8, 3, 16, 16)] * 2
