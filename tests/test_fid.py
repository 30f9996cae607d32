"""fid.py: networks and distances against others', folders and statistics, what a run says of its samples."""

import hashlib
import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fid
import simclr
import vae
from plumbing.data import folders, images, pixels
from plumbing.judge import inception, lenet
from tests.helpers import LONG, Trap, apart, as_files, error_line, image, photos, results_of, spd, write_inputs


def test_inception_is_pytorch_fids(inception_file, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    weights = torch.load(inception_file, weights_only=True)
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: weights)
    x, ours = photos(64 if LONG else 8), inception.load(inception_file)
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
        assert apart(inception.load(inception_file)(x / 256), reference) < 1e-6


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
    """100 images of 500 features: from the covariances (by eigenvectors) as from the features themselves."""
    x, y = torch.randn(2, 100, 500, generator=torch.Generator().manual_seed(0)).relu()
    a, b = (fid.statistics(h.split(30)) for h in (x, y))
    sigma = [np.cov(h.double().numpy(), rowvar=False) for h in (x, y)]
    value = fid.distance(a.mu, a.factor, b.mu, b.factor)
    assert a.factor.shape == (100, 500) and 0 < value < math.inf
    assert fid.factor(torch.from_numpy(sigma[0])).shape == (99, 500)
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


def test_a_folder_is_read_ahead_by_one_batch(monkeypatch):
    seen, read = [], pixels.read_whole

    def spy(*args):
        seen.append(args)
        return read(*args)

    monkeypatch.setattr(pixels, "read_whole", spy)
    batches = folders.folder_images(Path(as_files(photos(40), "set")), "RGB", 4)
    seen.clear()
    assert sum(len(next(batches)) for _ in range(3)) == 12 and len(seen) <= 16
    batches.close()


def test_order_batches_and_files_change_nothing(inception_file):
    x, other = photos(12).split(6)
    net, values = inception.load(inception_file), []
    real = fid.statistics(fid.features(other, net))
    files = folders.folder_images(Path(as_files(x, "set")), "RGB", 4)
    for pictures, size in ((x, 50), (x[torch.randperm(6)], 4), (x.split(1), 1), (files, 4)):
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
    net, h = inception.load(inception_file), []
    for file in sorted(Path("set/").glob("sub*/*")):
        pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        h.append(net(pixels[None] / 255))
    h.append(net(torch.full((1, 3, 9, 9), 60 / 255)))
    h = torch.cat(h)
    for size in (3, 50):
        mu, sigma = fid.activation_statistics(folders.folder_images(Path("set"), "RGB", size), net, size)
        assert apart(mu, h.double().mean(0)) < 1e-4
        assert apart(sigma, torch.cov(h.double().T)) < 1e-3
    said = capsys.readouterr().err
    assert "2 of 7 image files in set" in said and "broken.png" in said


def test_a_mixed_folder_has_pytorch_fids_distance(inception_file, capsys, monkeypatch):
    """Of transparent, palette, grey and CMYK images of several sizes and formats against photographs: to 1e-5."""
    theirs, score = pytest.importorskip("pytorch_fid.inception"), pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: torch.load(inception_file))
    monkeypatch.setattr(score, "tqdm", iter)
    forms = [("RGBA", "png"), ("LA", "png"), ("P", "gif"), ("L", "bmp"), ("1", "png"), ("CMYK", "jpg"), ("RGB", "webp")]
    for i, (mode, suffix) in enumerate(forms):
        image(Path(f"mixed/{i}.{suffix}"), (20 + 9 * i, 40), mode, seed=i)
    as_files(photos(len(forms)), "photos")
    net, h = theirs.InceptionV3([3]).eval(), []
    for folder in ("photos", "mixed"):
        h.append(score.get_activations(sorted(Path(folder).iterdir()), net, 1, 2048, "cpu", 0).astype(float))
    # scipy's square root fails for so few images; with centred features H the trace is that of |H₁H₂ᵀ|.
    (mu1, c1), (mu2, c2) = ((x.mean(0), (x - x.mean(0)) / (len(x) - 1) ** 0.5) for x in h)
    root = np.linalg.svd(c1 @ c2.T, compute_uv=False).sum()
    exact = ((mu1 - mu2) ** 2).sum() + (c1**2).sum() + (c2**2).sum() - 2 * root
    fid.main(["photos", "mixed", "--json", "--weights", str(inception_file)])
    assert json.loads(capsys.readouterr().out)["value"] == pytest.approx(exact, rel=1e-5) and exact > 1


def test_a_data_set_is_read_at_the_size_of_what_it_is_compared_with(capsys, monkeypatch):
    monkeypatch.setattr(lenet, "_train", lambda net, *_: net)
    as_files(photos(3, 20), "set")
    fid.main(["digits:test", "set", "--features", "lenet", "--json"])
    assert json.loads(capsys.readouterr().out)["size_real"] == 20
    fid.main(["digits:test", as_files(photos(3, 70), "large"), "--features", "lenet", "--json"])
    found = capsys.readouterr()
    assert json.loads(found.out)["size_real"] == 32 and "images of other sizes" in found.err


def test_lenet_is_trained_once(capsys, monkeypatch):
    data = images.load_images("digits", "mnist", "data", 28)
    with torch.no_grad():  # where whoever measures stands
        net = lenet.classifier(data, "data", torch.device("cpu"))
    assert net.accuracy > 0.9 and f"accuracy {net.accuracy:.2%}" in capsys.readouterr().err
    file = next(Path("data/cache").glob("lenet-digits-*.pth"))
    assert net.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setattr(lenet, "_train", None)  # the second start trains nothing
    again = lenet.classifier(data, "data", torch.device("cpu"))
    assert again.accuracy == net.accuracy and again.sha256 == net.sha256
    seen = lenet.classes(net(data.test[data.test_labels == 3] / 255), net)
    assert seen["class_histogram"][3] / sum(seen["class_histogram"]) > 0.8 and seen["class_entropy"] < 1 < math.log(10)
    p = torch.softmax(net.classifier(net(data.test / 255)), 1).numpy()
    share = np.bincount(p.argmax(1), minlength=10) / 179
    seen = lenet.classes(net(data.test / 255), net)
    assert seen["class_entropy"] == pytest.approx(-sum(q * math.log(q) for q in share), rel=1e-5)
    assert seen["confident"] == pytest.approx((p.max(1) > 0.9).mean(), rel=1e-5)
    assert net(torch.rand(2, 1, 60, 30)).shape == (2, 84)  # not squares
    with pytest.raises(ValueError, match="no classes"):
        lenet.classifier(data._replace(train_labels=data.train_labels * 0), "data", torch.device("cpu"))


def test_features_of_a_simclr_encoder(capsys):
    """FD-SimCLR is the distance of what simclr.py's encoder gives for whole images; its file is named beside it."""
    write_inputs()
    torch.manual_seed(0)
    numbers = {"feature_dim": 8, "encoder": "resnet18", "image_size": 16, "mean": [0.4, 0.5, 0.6], "std": [0.2] * 3}
    model = simclr.build(numbers)
    about = {"script": "simclr", "step": 3, "data": "x", "trained_on": "photos"}
    torch.save(numbers | about | {"state_dict": model.state_dict()}, "simclr.pth")
    real, fake = photos(40, 16), photos(40, 16) // 2
    as_files(real, "real")
    as_files(fake, "fake")
    fid.main(["real", "fake", "--features", "simclr.pth", "--json"])
    found = json.loads(capsys.readouterr().out)
    h = [simclr.represent(model, x, bf16=False) for x in (real, fake)]
    h = [torch.nn.functional.normalize(part, dim=1).double() for part in h]
    expected = fid.frechet_distance(*(value for part in h for value in (part.mean(0), part.T.cov())))
    assert found["metric"] == "FD-SimCLR" and found["value"] == pytest.approx(expected, rel=1e-4) and expected > 1e-3
    assert found["weights_sha256"] == hashlib.sha256(Path("simclr.pth").read_bytes()).hexdigest()
    assert "class_entropy" not in found and "resnet18, trained on photos" in found["features"]
    fid.main(["real", "real", "--features", "simclr.pth", "--json", "--kid"])
    assert json.loads(capsys.readouterr().out)["value"] < 1e-6


def test_a_run_reports_what_the_command_measures(capsys, inception_file, monkeypatch):
    monkeypatch.setattr(fid, "SAMPLES", 1000)
    vae.main("--data digits --arch mlp --latent-dim 2 --image-size 16 --steps 20 --out run".split())
    said, results = capsys.readouterr(), results_of("run")
    assert "python fid.py digits:test run" in said.out and "WARNING: held-out: 179 images" in said.err
    about = results["fd_lenet_about"]
    for argv in (["digits:test", "run"], ["digits:test", "run/vae.pth", "--batch-size", "7"]):
        fid.main([*argv, "--features", "lenet", "--json"])
        found = capsys.readouterr()
        measured = json.loads(found.out)
        assert measured["metric"] == "FD-LeNet" and "WARNING: digits:test: 179 images" in found.err
        assert measured["value"] == pytest.approx(results["fd_lenet"], rel=1e-6)
        assert about.items() <= measured.items() and measured["seed"] == 0 and about["n_real"] == 179
        assert measured["class_histogram"] == results["class_histogram"] and measured["n_generated"] == 1000
        assert sum(measured["class_histogram"]) == 1000 and measured["size_real"] == 16
        assert measured["split"] == "test"
    values = {results["fd_lenet"]}
    for seed in ("0", "1"):
        fid.main(["digits:test", "run", "--features", "lenet", "--json", "--n", "501", "--seed", seed])
        measured = json.loads(capsys.readouterr().out)
        assert measured["seed"] == int(seed) and measured["n_generated"] == 501
        values.add(measured["value"])
    assert len(values) == 3
    fid.main(["run", "run", "--json", "--save-stats", "x.npz", "--n", "2", "--weights", str(inception_file)])
    assert json.loads(capsys.readouterr().out)["seed"] == 0  # GENERATED's; REAL draws from the next one
    fid.main(["run", "x.npz", "--json", "--n", "2", "--weights", str(inception_file)])
    again = json.loads(capsys.readouterr().out)
    assert again["seed"] == 1 and again["value"] <= 1e-6


def test_the_end_of_a_run_survives_samples_that_cannot_be_measured(tmp_path, capsys):
    """A generator that makes one image only is measured; a single held-out image is left out with a line."""
    data = images.load_images("digits", "mnist", "data", 28)
    constant = lambda *_: [torch.full((500, 1, 28, 28), 77, dtype=torch.uint8)]
    judge = fid.Judge(data, "data", torch.device("cpu"))
    results = judge(constant)
    assert results["fd_lenet"] > 1 and results["class_entropy"] == 0

    for i in range(12):
        image(tmp_path / f"twelve/{i % 2}/{i}.png", mode="L", seed=i)
    vae.main(["--data", "twelve", "--steps", "1", "--arch", "mlp", "--latent-dim", "1", "--out", "run"])
    assert "left out: a covariance needs at least two images" in capsys.readouterr().err
    assert "fd_lenet" not in results_of("run")


def raising(error: Exception):
    def function(*_, **__):
        raise error

    return function


def a_judge(*names: str) -> fid.Judge:
    """A judge of digits that measures these scores, each with its name for a network."""
    data = images.load_images("digits", "mnist", "data", 28)
    judge = fid.Judge(data._replace(train_labels=data.train_labels * 0), "data", torch.device("cpu"))
    judge.references = {name: (name, None) for name in names}
    return judge


LEFT_OUT = [ValueError("not finite"), OSError("no weights"), MemoryError("little"), torch.OutOfMemoryError("full")]
LEFT_OUT += [torch.linalg.LinAlgError("no eigenvalues"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("error", LEFT_OUT)
def test_what_cannot_be_measured_is_left_out(error, capsys, monkeypatch):
    judge = a_judge("fid", "fd_lenet")
    capsys.readouterr()
    score = {"fid": raising(error), "fd_lenet": lambda *_: {"fd_lenet": 1.0}}
    monkeypatch.setattr(fid, "score", lambda net, *rest: score[net](*rest))
    assert judge(None) == {"fd_lenet": 1.0}
    assert capsys.readouterr().err == f"fid is left out: {error}\n"


def test_judges_that_cannot_be_had_are_left_out(capsys, monkeypatch):
    """No labels, no place for the classifier, features that are not finite, no Inception weights: a line each."""
    data, cpu = images.load_images("digits", "mnist", "data", 28), torch.device("cpu")
    no_labels = data._replace(train_labels=data.train_labels * 0)

    def error_of(data, data_dir="data", device=cpu) -> str:
        capsys.readouterr()
        judge = fid.Judge(data, data_dir, device)
        assert judge.distance is None and judge(None) == {}
        return capsys.readouterr().err

    assert "fd_lenet is left out: digits" in error_of(no_labels)
    monkeypatch.setattr(lenet, "_train", lambda net, *_: net)
    assert "fd_lenet is left out: " in error_of(data, "/dev/null/data")
    with monkeypatch.context() as patch:
        net = lenet.LeNet(1, 10).eval()
        net.body[4][0].bias.data[3] = math.nan
        patch.setattr(lenet, "classifier", lambda *_: net)
        patch.setattr(torch.hub, "get_dir", lambda: "hub")
        assert "fd_lenet is left out: some features are not finite" in error_of(data)
        patch.setattr(lenet, "classifier", raising(ValueError("no classes")))
        line = error_of(data, device=torch.device("cuda")).splitlines()[1]
        assert line.startswith("fid is left out: the Inception weights are not in hub/checkpoints. Download http")


def test_the_score_to_choose_by(inception_file, capsys, monkeypatch):
    """The FID where it can be measured; training images and held-out ones are two measures, one of which warns."""
    data = images.load_images("digits", "mnist", "data", 28)
    net = lenet.LeNet(1, 10).eval()
    monkeypatch.setattr(lenet, "classifier", lambda *_: net)
    judge = fid.Judge(data, "data", torch.device("cpu"))
    assert judge.distance == "fd_lenet" and "WARNING: held-out: 179 images" in capsys.readouterr().err
    choosing = fid.Judge(data, "data", torch.device("cpu"), split="train")
    assert choosing.distance == "fd_lenet" and "WARNING" not in capsys.readouterr().err

    draw = lambda *_: data.test
    about = choosing(draw)["fd_lenet_about"]
    assert about["split"] == "train" and about["n_real"] == len(data.train[::10]) and about["n_generated"] == 179
    assert judge(draw)["fd_lenet"] < 1e-6 < choosing(draw)["fd_lenet"]

    few = data._replace(test=data.test[:3])
    monkeypatch.setattr(fid, "_cached_inception", lambda _: inception.load(inception_file))
    no_cpu = torch.device("meta")
    assert fid.Judge(few, "data", no_cpu).distance == "fid"
    judge.references["fid"] = None, None  # to measure it would raise
    assert judge(draw, inception=False)["fd_lenet"] < 1e-6
    with pytest.raises(AttributeError):
        judge(draw)


@pytest.mark.parametrize("error", [RuntimeError("wrong device"), TypeError("no number"), KeyError("fid")])
def test_defects_in_measurements_are_raised(error, monkeypatch):
    judge = a_judge("fid")
    monkeypatch.setattr(fid, "score", raising(error))
    with pytest.raises(type(error)):
        judge(None)
    monkeypatch.setattr(lenet, "classifier", raising(error))
    data = images.load_images("digits", "mnist", "data", 28)
    with pytest.raises(type(error)):
        fid.Judge(data, "data", torch.device("cpu"))


def test_command_and_statistics(inception_file, capsys):
    """The value from images and from our .npz of one side; and what the result says."""
    x, y = photos(8).split(4)
    a, b, weights = as_files(x, "a"), as_files(y, "b"), ["--weights", str(inception_file)]
    fid.main([a, b, *weights, "--json", "--kid", "--save-stats", "a.npz"])
    found = capsys.readouterr()
    result = json.loads(found.out)
    net = inception.load(inception_file)
    assert result["kid"] == pytest.approx(fid.kid(*(torch.cat(list(fid.features(p, net))) for p in (x, y))), rel=1e-4)
    assert "WARNING: a: 4 images. With less than 2,048" in found.err and "No published FID" in found.err
    expected = {"metric": "FID", "n_real": 4, "n_generated": 4, "real": a, "generated": b, "dtype": "float32"}
    assert expected.items() <= result.items() and result["weights_sha256"] == net.sha256 and "299" in result["resize"]
    assert {"features", "split", "seed"} < result.keys() and result["split"] is result["seed"] is None

    with np.load("a.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (2048,) and file["sigma"].shape == (2048, 2048) and file["mu"].dtype == np.float64
    fid.main(["a.npz", b, *weights])
    assert capsys.readouterr().out.startswith(f"FID: {result['value']:.6g} | ")


def test_statistics_of_two_files(capsys, monkeypatch):
    """Ours and pytorch-fid's, which do not say what they are of: no network is needed."""
    monkeypatch.setattr(lenet, "_train", lambda net, *_: net)
    fid.main(["digits:test", "--features", "lenet", "--save-stats", "ours.npz"])
    with np.load("ours.npz", allow_pickle=False) as file:
        np.savez("theirs.npz", mu=file["mu"], sigma=file["sigma"])
    capsys.readouterr()
    monkeypatch.setattr(fid, "features", None)
    fid.main(["ours.npz", "theirs.npz", "--json"])
    result, file = json.loads(capsys.readouterr().out), next(Path("data/cache").glob("lenet-digits-*.pth"))
    assert result["value"] <= 1e-6 and result["n_real"] == 179 and result["metric"] == "Fréchet distance"
    assert result["features"] == "unknown: theirs.npz does not say what it is of" and "weights_sha256" not in result
    assert result["weights_sha256_real"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert result["metric_real"] == "FD-LeNet" and not {"resize", "dtype", "resize_generated"} & result.keys()
    for argv, silent in (
        (["theirs.npz", "theirs.npz"], "theirs.npz and theirs.npz"),
        (["theirs.npz", "ours.npz"], "theirs.npz"),
    ):
        fid.main(argv)
        said = re.match(r"Fréchet distance: (\S+) \| features unknown: (.*) does not say", capsys.readouterr().out)
        assert float(said[1]) <= 1e-6 and said[2] == silent
    fid.main(["ours.npz", "ours.npz"])
    found = capsys.readouterr()
    assert float(re.match(r"FD-LeNet: (\S+) \| features LeNet-5", found.out)[1]) <= 1e-6
    assert "WARNING: ours.npz: 179 images" in found.err


def test_a_folder_of_images_with_somebodys_files_is_one(inception_file, capsys):
    """A config.json or weights that are not ours change nothing; ours make it a run folder."""
    x, y = photos(8).split(4)
    as_files(x, "other")
    values = []
    for foreign in ({"a": 1}, [1], {"script": "train.py", "flags": {}}):
        folder = as_files(y, f"set{len(values)}")
        Path(folder, "config.json").write_text(json.dumps(foreign))
        torch.save(foreign, f"{folder}/generator.pth")
        Path(folder, "vae.pth").write_bytes(b"nothing that torch knows")
        fid.main(["other", folder, "--json", "--weights", str(inception_file)])
        values.append(json.loads(capsys.readouterr().out)["value"])
    assert values == pytest.approx([values[0]] * 3, rel=1e-6) and values[0] > 1
    torch.save({"script": "vae", "flags": {}}, "set0/vae.pth")
    argv = ["other", "set0", "--weights", str(inception_file)]
    assert "is a checkpoint, not a weights file" in error_line(capsys, fid.main, argv)


def test_a_run_on_a_cpu_ends_with_the_command_that_measures_fid(inception_file, capsys, monkeypatch):
    """And that command's value is what a run on a GPU measures by itself."""
    write_inputs()
    kept = Path("hub/checkpoints", inception.NAME)
    kept.parent.mkdir(parents=True)
    kept.symlink_to(inception_file)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "hub")
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(inception_file.read_bytes()).hexdigest()[:8])
    monkeypatch.setattr(fid, "SAMPLES", 20)
    argv = "--data pictures --image-size 16 --arch mlp --latent-dim 2 --batch-size 4 --steps 2 --out run".split()
    model = vae.main(argv).model
    assert "FID is measured by: python fid.py pictures:test run/vae.pth" in capsys.readouterr().out
    fid.main(["pictures:test", "run/vae.pth", "--n", "20", "--json"])
    value = json.loads(capsys.readouterr().out)["value"]
    data = images.load_images("pictures", "", "data", 16)
    net = inception.load(download=False)
    real = fid.image_statistics(data.test, net, "test images", len(data.test))
    scores = fid.score(net, real, partial(vae.draw_samples, model))
    assert scores["fid"] == pytest.approx(value, rel=1e-5) and scores["fid_about"]["n_generated"] == 20
    assert scores["fid_about"]["features"].startswith("Inception-v3")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["set", "nowhere"], "there is no nowhere"),
        (["set", "nowhere.npz"], "there is no nowhere.npz"),
        (["set", "empty"], "empty holds no image file"),
        (["set", "broken"], "at least two images, not 0"),
        (["mnist", "set"], "there is no mnist. Name a data set with its split"),
        (["set"], "--save-stats"),
        (["", "set"], "a name is empty"),
        (["set", "--kid", "--save-stats", "x.npz"], "GENERATED is missing. Name it too"),
        (["good.npz", "--save-stats", "x.npz"], "images as REAL"),
        (["set", "--save-stats", "nowhere/x.npz"], "a folder that exists"),
        (["set", "odd.npz"], "different features: 2048 and 5"),
        (["set", "unsaved"], "is a run folder, but holds no vae.pth"),
        (["set", "notes.txt"], "neither a folder"),
        (["set", "pickle.npz"], "pickle.npz does not hold the statistics"),
        (["set", "cut.npz"], "cut.npz cannot be read"),
        (["set", "text.npz"], "text.npz cannot be read"),
        (["set", "nan.npz"], "not finite"),
        (["set", "other.npz"], "other.npz holds no uint8 images"),
        (["good.npz", "small.npz"], "different features: 5 and 3"),
        (["ours.npz", "set"], "not comparable"),
        (["good.npz", "set", "--kid"], "good.npz holds statistics. Without --kid"),
        (["set", "set", "--save-stats", "good.npz"], "Name a new file.npz"),
        (["set", "set", "--save-stats", "stats"], "Name a new file.npz"),
        (["set", "set", "--weights", "nowhere.pth"], "No such file"),
        (["set", "set", "--weights", "notes.txt"], "does not hold the weights"),
        (["set", "set", "--weights", "trap.pth"], "does not hold the weights"),
        (["set", "set", "--features", "lenet"], "Name a data set such as mnist:test as REAL"),
        (["set:test", "set", "--features", "lenet"], "has no classes"),
        (
            ["digits:test", "set", "--features", "lenet", "--weights", "x.pth"],
            "--features lenet uses no Inception weights",
        ),
        (["set", "set", "--features", "nowhere.pth"], "no file. Use inception, lenet, or a weights file of simclr.py"),
        (["set", "set", "--features", "notes.txt"], "refused"),
        (["set", "set", "--n", "1"], "--n"),
        (["set", "set", "--batch-size", "0"], "--batch-size"),
        (["digits:test", "folder-run"], "is a checkpoint, not a weights file"),
    ],
)
def test_bad_input_of_fid_gets_one_line(argv, says, capsys, inception_file):
    as_files(photos(4), "set")
    for name in ("empty", "broken", "folder-run", "unsaved"):
        Path(name).mkdir()
    Path("unsaved/config.json").write_text(json.dumps({"command": [], "flags": {}, "parameters": {}, "ranks": 1}))
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
    torch.save({"fc.weight": Trap()}, "trap.pth")
    torch.save({"script": "vae", "flags": {}}, "folder-run/vae.pth")
    if "--weights" not in argv and "--features" not in argv:
        argv = [*argv, "--weights", str(inception_file)]
    assert says in error_line(capsys, fid.main, argv) and not Path("executed").exists()
