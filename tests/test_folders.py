"""Test folders and arrays of images as people have them, with every transparency, depth, layout, link and shape."""

import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fid
import gan_mnist
import simclr
from plumbing.data import folders, images, pixels
from plumbing.judge import lenet
from tests.helpers import NoJudge, as_files, error_line, image, photos

RAMP = np.arange(64).repeat(4).reshape(16, 16)  # 64 levels


def read(source: str, size: int | None = 16) -> images.ImageData:
    return images.load_images(source, "", "data", size)


def everything(data: images.ImageData) -> np.ndarray:
    """Return both splits as one array (N, C, S, S)."""
    return torch.cat([data.train, data.test]).numpy()


def drawing(mode: str, path: Path, hidden=(0, 0, 0)) -> None:
    """Save a black square on a transparent ground. The transparent pixels have the colour `hidden`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[..., :3] = hidden
    rgba[4:12, 4:12] = (0, 0, 0, 255)
    made = Image.fromarray(rgba)
    if mode == "P":
        index = Image.fromarray((rgba[..., 3] > 0).astype(np.uint8)).convert("P")
        index.putpalette([*hidden, 0, 0, 0])
        index.save(path, transparency=0)
    elif mode == "L":  # one grey value stands for transparent
        made = Image.fromarray(np.where(rgba[..., 3] > 0, 0, 200).astype(np.uint8))
        made.save(path, transparency=200)
    elif mode == "I;16":
        Image.fromarray(np.where(rgba[..., 3] > 0, 0, 30000).astype(np.uint16)).save(path, transparency=30000)
    else:
        made.convert(mode).save(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
@pytest.mark.parametrize("hidden", [(0, 0, 0), (90, 200, 30)])
def test_transparency_is_white(mode, hidden, capsys):
    expected = np.full((16, 16), 255)
    expected[4:12, 4:12] = 0
    for i in range(3):
        drawing(mode, Path(f"set/{i}.png"), hidden)
    data = read("set")
    assert data.train.shape[1] == 1 and all((x == expected).all() for x in everything(data))
    assert capsys.readouterr().err.count("set: 3 images have transparency, and are shown on white") == 1


def test_fid_drops_transparency_as_pytorch_fid_does():
    drawing("RGBA", Path("set/0.png"), (90, 200, 30))
    (x,) = next(folders.folder_images(Path("set"), "RGB", 5))
    assert (x[:, 0, 0] == torch.tensor([90, 200, 30])).all()


DEPTHS = {  # format: the dtype that Pillow reads it as
    "I;16.png": np.uint16,
    "I;16.tif": np.uint16,
    "I;16B.tif": ">u2",
    "I.tif": np.int32,
    "I.pgm": np.uint16,
    "F.tif": np.float32,
}
LEVELS = {"dark": (63, 255), "12 bits": (63 * 65, 4095), "full": (63 * 1040, 65535), "beyond": (63 * 4000, 63 * 4000)}


@pytest.mark.parametrize("form", DEPTHS)
@pytest.mark.parametrize("level", LEVELS)
def test_more_than_8_bits(form, level):
    """A ramp of 64 levels keeps them at any depth. All images of a set share one range."""
    top, white = LEVELS[level]
    if level == "beyond" and form[0] == "I" and form != "I.tif":
        pytest.skip("16 bits hold no more")
    ramp = RAMP * (top // 63)
    Path("set").mkdir()
    for i, values in enumerate((ramp, ramp // 2)):
        path = f"set/{i}.{form.split('.')[1]}"
        if form == "I.pgm":
            Path(path).write_bytes(b"P5 16 16 65535\n" + values.astype(">u2").tobytes())
        else:
            Image.fromarray(values.astype(DEPTHS[form])).save(path)
    data = read("set")
    found = sorted(everything(data)[:, 0], key=lambda x: x.sum())
    for x, values in zip(found, (ramp // 2, ramp), strict=True):
        assert np.abs(x - (values * 255 / white).round()).max() == 0
    assert len(np.unique(found[1])) == 64 and found[1].max() == round(top * 255 / white)
    assert f"2 images with more than 8 bits: 0 is black, {white:,} is white" in data.note
    whole = {x.numpy().tobytes() for x in next(folders.folder_images(Path("set"), "L", 5))}
    assert whole == {x.tobytes() for x in found}


@pytest.mark.parametrize(("top", "white"), [(1.0, 1), (0.25, 1), (1.02, 1), (200.0, 255), (3e-39, 1)])
def test_floats(top, white):
    Path("set").mkdir()
    for i in range(2):
        Image.fromarray((RAMP / 63 * top).astype(np.float32)).save(f"set/{i}.tif")
    (x, _), expected = everything(read("set"))[:, 0], (RAMP / 63 * top * 255 / white).clip(0, 255).round()
    assert np.abs(x - expected).max() <= 1


def test_floats_that_are_none():
    Path("set").mkdir()
    for i, value in enumerate((np.nan, np.inf, -1.0, 1.0)):
        Image.fromarray(np.full((9, 9), value, np.float32)).save(f"set/{i}.tif")
    assert sorted(everything(read("set", 8))[:, 0, 0, 0].tolist()) == [0, 0, 255, 255]


def test_floats_and_integers_have_each_their_white():
    Path("set").mkdir()
    for i in range(2):
        Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(f"set/{i}.tif")
        Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(f"set/{i}.png")
    Image.fromarray(np.full((9, 9), -0.5, np.float32)).save("set/n.tif")
    data = read("set", 8)
    assert sorted(everything(data)[:, 0, 0, 0].tolist()) == [0, 128, 128, 156, 156]
    assert "2 images with more than 8 bits: 0 is black, 65,535 is" in data.note
    assert "3 images with more than 8 bits: 0 is black, 1 is" in data.note
    assert "values below 0 (down to -0.5) are black" in data.note


def test_fid_says_how_it_scales(monkeypatch, capsys):
    monkeypatch.setattr(lenet, "_train", lambda net, *_: net)
    for name, top in (("a", 4000), ("b", 4200)):
        Path(name).mkdir()
        for i in range(3):
            Image.fromarray((RAMP * (top // 63) + i).astype(np.uint16)).save(f"{name}/{i}.png")
    fid.main(["digits:test", "a", "--features", "lenet", "--json"])
    found = capsys.readouterr()
    assert json.loads(found.out)["depth_generated"] == "3 images with more than 8 bits: 0 is black, 4,095 is white"
    assert "a, 3 images with more than 8 bits: 0 is black, 4,095" in found.err
    monkeypatch.setattr(fid, "network", lambda *_: fid.inception.folded(lenet.LeNet(1, 10).eval()))
    fid.main(["a", "b", "--json"])
    assert "WARNING: the two sets have more than 8 bits and are not scaled alike" in capsys.readouterr().err


def test_a_cache_is_of_one_place():
    """Two folders have one name, and files of equal names, sizes and times."""
    for place, level in (("a", 10), ("b", 240)):
        Path(place, "photos").mkdir(parents=True)
        for i in range(3):
            Image.new("L", (9, 9), level).save(f"{place}/photos/{i}.bmp")
            os.utime(f"{place}/photos/{i}.bmp", (10**9, 10**9))
        shutil.make_archive(f"{place}/x.{place}", "zip", place, "photos")
        os.utime(f"{place}/x.{place}.zip", (10**9, 10**9))
    for place, level in (("a", 10), ("b", 240)):
        for source in (f"{place}/photos", f"{place}/x.{place}.zip"):
            assert set(everything(read(source, 8)).ravel()) == {level} and read(source, 8).name == "photos"


def test_a_zip_with_backslashes():
    with zipfile.ZipFile("x.zip", "w") as z:
        for split in ("train", "test"):
            for i in range(2):
                content = image(Path(f"{split}{i}.png"), size=(9, 9), seed=i).read_bytes()
                z.writestr(zipfile.ZipInfo(f"x\\{split}\\a\\{i}.png"), content)
    data = read("x.zip", 8)
    assert (len(data.train), len(data.test)) == (2, 2)


def test_a_folder_that_is_no_utf8(monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    folder = os.fsencode("set") + b"\xff"
    os.mkdir(folder)
    for i in range(12):
        image(Path(f"{i}.png"), mode="L", size=(9, 9), seed=i).rename(os.path.join(os.fsdecode(folder), f"{i}.png"))
    gan_mnist.main(["--data", os.fsdecode(folder), "--steps", "1", "--batch-size", "4"])
    assert Path("runs/gan_mnist-set?-batch-size-4/generator.pth").exists()


def test_a_bright_file_more_changes_the_range():
    """The cache of the old files is not used for the new set of files."""
    Path("set").mkdir()
    for i in range(3):
        Image.fromarray(np.full((9, 9), 1000, np.uint16)).save(f"set/{i}.png")
    assert set(everything(read("set", 8)).ravel()) == {round(1000 / 4095 * 255)}
    Image.fromarray(np.full((9, 9), 65535, np.uint16)).save("set/3.png")
    assert set(everything(read("set", 8)).ravel()) == {round(1000 / 65535 * 255), 255}


def test_colour_of_more_than_8_bits_is_named(capsys):
    """Pillow reads the upper 8 of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes([200, 0, 100, 0, 50, 0]) * 9 for _ in range(9))
    head = struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    Path("set").mkdir()
    for i in range(2):
        Path(f"set/{i}.png").write_bytes(png)
    assert everything(read("set", 8))[0, :, 0, 0].tolist() == [200, 100, 50]
    assert "2 images have more than 8 bits a colour, and the upper 8 are read" in capsys.readouterr().err


def make(listed: str) -> None:
    """Save two pictures in each folder of a list."""
    for folder in listed.split():
        for i in range(2):
            image(Path("set", folder, f"{i}.png"), size=(9, 9), seed=hash(folder) % 1000 + i)


LAYOUTS = [  # folders, images in training and held out, classes in both, what is said
    ("train/a train/b val/a val/b", 4, 4, "ab", "set: train 4, val 4"),
    ("Training/a Training/b VALIDATION/b", 4, 2, "ab", "set: Training 4, VALIDATION 2"),
    ("train/a test/a val/a", 2, 2, "a", "set: train 2, test 2, left out: val 2"),
    ("train/a valid/a extra", 2, 2, "a", "set: train 2, valid 2, left out: extra 2"),
    ("train/a train/b", 3, 1, "ab", "set: train 4, a tenth of it held out"),
    ("wrap/train/a wrap/train/b wrap/test/a", 4, 2, "ab", "set: train 4, test 2"),
    ("wrap/deep/a wrap/deep/b", 3, 1, "ab", "set: all 4, a tenth of it held out"),
    ("test/a test/b", 3, 1, "ab", "set: all 4, a tenth of it held out"),
    ("bicycle train bus", 5, 1, ["bicycle", "bus", "train"], "set: all 6, a tenth of it held out"),
    ("cat", 1, 1, ["cat"], "set: all 2, a tenth of it held out"),
    ("a/x a/y b/x", 5, 1, "ab", "set: all 6, a tenth of it held out"),
    ("training/a training/b testing/a", 4, 2, "ab", "set: training 4, testing 2"),
    ("train/a dev/a", 2, 2, "a", "set: train 2, dev 2"),
    ("train/a train/b .", 3, 1, "ab", "set: train 4, a tenth of it held out, left out: beside these folders 2"),
    ("train/a train/b extra", 3, 1, "ab", "set: train 4, a tenth of it held out, left out: extra 2"),
    ("wrap/train/a wrap/test/a .", 2, 2, "a", "set: train 2, test 2, left out: beside these folders 2"),
    ("one/a .", 3, 1, ["", "one"], "set: all 4, a tenth of it held out"),
]


@pytest.mark.parametrize(("listed", "n_train", "n_test", "classes", "says"), LAYOUTS)
def test_layouts(listed, n_train, n_test, classes, says, capsys):
    make(listed)
    data = read("set", 8)
    said = capsys.readouterr().err
    assert (len(data.train), len(data.test)) == (n_train, n_test) and says in said.splitlines()
    assert set(torch.cat([data.train_labels, data.test_labels]).tolist()) == set(range(len(classes)))
    assert (f"{len(classes)} classes: " in said) == (len(classes) > 1)
    labels, names = [], []
    for _, some_labels, some_names in images.labelled("set", "data", 8):
        labels += some_labels
        names += some_names
    assert set(labels) == set(classes) and all(
        not label or label in name.split("/") for label, name in zip(labels, names, strict=True)
    )


def test_splits_without_training_are_no_classes(capsys):
    make("val/a test/a")
    assert "there are test and val, but there is no folder train" in error_line(capsys, read, "set")


def test_classes_are_named_with_counts(capsys):
    make(" ".join(f"train/{i:02d}" for i in range(12)) + " test/05 test/new")
    read("set", 8)
    said = capsys.readouterr().err
    assert "13 classes: 00 2, 01 2, 02 2, 03 2, 04 2, 05 4, 06 2, 07 2, 08 2, 09 2, ..." in said
    assert "WARNING: classes that the training set lacks: new" in said


def test_links_are_followed_each_once(capsys):
    make("real elsewhere")
    Path("far").mkdir()
    for i in range(3):
        image(Path(f"far/{i}.png"), size=(9, 9), seed=100 + i)
    Path("set/linked").symlink_to(Path("far").absolute())
    Path("set/again").symlink_to("real")  # what is there already, by another name
    Path("set/real/circle").symlink_to(Path("set").absolute())
    data = read("set", 8)
    assert len(everything(data)) == 7 and "3 classes: elsewhere 2, linked 3, real 2" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_an_error(capsys, monkeypatch):
    make("a b")
    walk = folders.files.os.walk

    def refuse(top, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/b"))
        return walk(top)

    monkeypatch.setattr(folders.files.os, "walk", refuse)
    assert "Permission denied: 'set/b'" in error_line(capsys, read, "set")


def test_what_pillow_reads_is_read_and_the_rest_counted(capsys):
    written = [".gif", ".jfif", ".bmp", ".webp", ".tga", ".PNG", ".jp2"] + [".avif"] * (".avif" in pixels.suffixes())
    for i, suffix in enumerate(written):
        image(Path(f"set/{i}{suffix}"), size=(9, 9), seed=i)
    frames = [Image.new("L", (9, 9), level) for level in (40, 200)]
    frames[0].save("set/moving.gif", save_all=True, append_images=frames[1:])
    for name in ("notes.txt", "more.txt", "film.mp4", "page.eps", "LICENSE"):
        Path("set", name).touch()
    data = read("set", 8)
    assert len(everything(data)) == len(written) + 1
    assert any((x == 40).all() for x in everything(data))  # the first frame
    said = capsys.readouterr().err
    assert "set: files that are not images are left out: 2 .txt, 1 without an ending, 1 .mp4, 1 .eps" in said


SHAPES = {
    "NHW": (5, 20, 30),
    "NHWC": (5, 20, 30, 3),
    "NCHW": (5, 3, 20, 30),
    "NHW1": (5, 20, 30, 1),
    "NHWA": (5, 20, 30, 4),
}


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_arrays(form, suffix, capsys):
    x = np.random.default_rng(0).integers(0, 256, SHAPES[form], dtype=np.uint8)
    labels = np.array([[7], [3], [7], [3], [7]])
    np.save("set.npy", x) if suffix == ".npy" else np.savez("set.npz", images=x, labels=labels)
    data, channels = read(f"set{suffix}", 20), 1 if form in ("NHW", "NHW1") else 3
    assert (len(data.train), len(data.test), data.name) == (4, 1, "set") and data.train.shape[1:] == (channels, 20, 20)
    by_label = torch.cat([data.train_labels, data.test_labels]).bincount().tolist()
    assert by_label == ([2, 3] if suffix == ".npz" else [5])
    rows = x if form in ("NHWC", "NHWA") else x.reshape(5, channels, 20, 30).transpose(0, 2, 3, 1)
    rows = rows[:, :, 5:25].astype(float)  # the square in the middle
    if form == "NHWA":
        rows = rows[..., :3] * rows[..., 3:] / 255 + 255 - rows[..., 3:]
    found, seen = list(images.labelled(f"set{suffix}", "data", 20))[0], {}
    for pixels_of, label, name in zip(*found, strict=True):
        i = int(name.split("/")[1])
        assert np.abs(pixels_of.permute(1, 2, 0).numpy() - rows[i]).max() < 1
        seen[i] = label
    assert seen == (dict(enumerate(labels.ravel().tolist())) if suffix == ".npz" else dict.fromkeys(range(5), 0))
    assert "set" + suffix + ": the crop to squares cuts off 33% of the pixels" in capsys.readouterr().err


def test_arrays_of_a_train_and_a_test_split(capsys):
    x = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    splits = {"x_train": x, "y_train": np.arange(4), "x_val": x[:1], "x_test": x[:3], "y_test": np.arange(3)}
    np.savez("set.npz", **splits, masks_train=x)
    data = read("set.npz", 8)
    assert (len(data.train), len(data.test)) == (4, 3) and sorted(data.test_labels.tolist()) == [0, 1, 2]
    for pixels_of, label in zip(data.train[:, 0].numpy(), data.train_labels, strict=True):
        assert (pixels_of == x[label]).all()
    said = capsys.readouterr().err
    assert "set.npz: left out: val" in said and "masks_train (4, 8, 8) is left out" in said


def test_labels_are_told_by_their_names(capsys):
    """An index has the shape of labels and is not taken. Labels need both splits. A single class keeps its name."""
    x, y = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8), np.array([3, 4] * 3)
    np.savez("set.npz", index=np.arange(6), images=x, labels=y)
    data = read("set.npz", 8)
    assert torch.cat([data.train_labels, data.test_labels]).bincount().tolist() == [3, 3]
    np.savez("half.npz", x_train=x, y_train=y, x_test=x)
    data = read("half.npz", 8)
    assert not data.train_labels.any() and not data.test_labels.any()
    assert "WARNING: half.npz: only one split has labels, so none are used" in capsys.readouterr().err
    np.savez("one.npz", images=x, labels=np.full(6, 7))
    ((_, labels, _),) = images.labelled("one.npz", "data", 8)
    assert labels == [7] * 6
    np.savez("ONE.NPZ", images=x)
    Path("ONE.NPZ.npz").rename("UP.NPZ")
    assert len(read("UP.NPZ", 8).train) == 5


def test_arrays_in_grey_and_in_colour_together():
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    np.savez("set.npz", x_train=x[..., 0], x_test=x)
    data = read("set.npz", 8)
    assert data.train.shape == data.test.shape == (4, 3, 8, 8) and (data.train[:, 0] == data.train[:, 2]).all()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((4, 8, 8), np.float32)}, "holds no uint8 images"),
        ({"x": np.zeros((28, 28, 3), np.uint8)}, "is not a set of images"),
        ({"x": np.zeros((4, 8, 8, 7), np.uint8)}, "is not a set of images"),
        ({"x": np.zeros((1, 8, 8), np.uint8)}, "holds one image"),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, "holds no uint8 images"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "holds no uint8 images"),
        ({"x": np.array([{}], dtype=object)}, "cannot be read"),
        ({}, "(it holds nothing)"),
    ],
)
def test_arrays_that_are_no_images(arrays, says, capsys):
    np.savez("set.npz", **arrays)
    assert says in error_line(capsys, read, "set.npz")


def test_fid_takes_arrays_and_archives(capsys, inception_file):
    """The same images give one FID as a folder, an archive and a sampler's arrays."""
    x, weights = photos(12), ["--weights", str(inception_file), "--json"]
    real, other = x.split(6)
    np.savez("other.npz", arr_0=other.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(6))
    shutil.make_archive("real", "zip", as_files(real, "real"))
    shutil.make_archive("real", "gztar", "real")
    values = []
    for argv in (["real", as_files(other, "other")], ["real.zip", "other.npz"], ["real.tar.gz", "other.npz"]):
        fid.main([*argv, *weights])
        found = json.loads(capsys.readouterr().out)
        values.append(found["value"])
        assert found["n_real"] == found["n_generated"] == 6 and found["size_real"] == found["size_generated"] == 32
    assert values == pytest.approx([values[0]] * 3, rel=1e-6) and values[0] > 1
    fid.main(["other.npz", "--save-stats", "s.npz", *weights])
    fid.main(["real", "s.npz", *weights])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["value"] == pytest.approx(values[0], rel=1e-6)
    np.savez("two.npz", x_train=other[:, 0].numpy(), x_test=other[:, 0].numpy())
    assert "Name one of them, such as two.npz:test" in error_line(capsys, fid.main, ["two.npz", "real", *weights])


def test_the_size_that_nearly_all_have_decides(monkeypatch, capsys):
    monkeypatch.setattr(lenet, "_train", lambda net, *_: net)
    seen = []
    classifier = lenet.classifier
    monkeypatch.setattr(lenet, "classifier", lambda data, *rest: seen.append(data) or classifier(data, *rest))
    as_files(photos(20, 28)[:, :1], "set")
    for n_odd, size in ((1, 28), (5, None)):
        for i in range(n_odd):
            image(Path(f"set/!{i}.png"), mode="L", size=(40, 40), seed=i)
        fid.main(["digits:test", "set", "--features", "lenet", "--json"])
        found = capsys.readouterr()
        result = json.loads(found.out)
        assert result["size_generated"] == size and result["size_real"] == (size or 32)
        assert (result.get("n_other_sizes_generated") == 1) == (
            f"1 of {20 + n_odd} images are not of 28 x 28" in found.err
        )
    assert [data.train.shape[-1] for data in seen] == [28, 32]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_grey_in_three_channels_is_grey(suffix, capsys, monkeypatch):
    x = images.load_images("digits", "", "data", 28).train[:30]
    for i, grey in enumerate(x):
        Path("set").mkdir(exist_ok=True)
        rgb = Image.fromarray(grey[0].numpy()).convert("RGB")
        rgb.save(f"set/{i}{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    monkeypatch.setattr(fid, "Judge", NoJudge)
    gan_mnist.main("--data set --steps 1 --batch-size 4 --out run".split())
    said = capsys.readouterr()
    assert "data: set (27 + 3 images of (1, 28, 28))" in said.out
    assert "set: 30 files are stored in colour, but every pixel is grey" in said.err
    image(Path("set/red.png"), size=(9, 9), mode="CMYK" if suffix == ".tif" else "P")
    assert read("set", 28).train.shape[1] == 3


def test_an_encoder_of_grey_images_converts_colour(capsys):
    model = simclr.Model(8, "resnet18").eval()
    state = {"script": "simclr", "step": 1, "data": "digits", "trained_on": "digits", "encoder": "resnet18"}
    state |= {"feature_dim": 8, "image_size": 8, "mean": [0.3] * 3, "std": [0.2] * 3, "state_dict": model.state_dict()}
    torch.save(state, "simclr.pth")
    x = photos(4, 8)
    as_files(x, "colour")
    as_files(pixels.luma(x), "grey")
    features = []
    for name in ("colour", "grey"):
        simclr.main(["--features", f"{name}.npz", "--data", name, "--weights", "simclr.pth", "--no-bf16"])
        said = capsys.readouterr().out
        assert ("in grey, as the network was trained on" in said) == (name == "colour")
        features.append(np.load(f"{name}.npz")["features"])
    assert np.array_equal(*features)
    assert (
        pixels.luma(x)[:, 0].numpy() == [np.asarray(Image.open(f"colour/{i:05d}.png").convert("L")) for i in range(4)]
    ).all()


@pytest.mark.parametrize(("size", "said"), [((40, 30), True), ((31, 30), False), ((30, 60), True)])
def test_a_large_crop_is_said(size, said, capsys):
    for i in range(3):
        image(Path(f"set/{i}.png"), size=size, seed=i)
    read("set", 8)
    lost = 1 - min(size) ** 2 / (size[0] * size[1])
    assert (f"set: the crop to squares cuts off {lost:.0%} of the pixels" in capsys.readouterr().err) == said
    read("set", 8)  # from the cache
    assert ("the crop to squares" in capsys.readouterr().err) == said
