"""Test folders, archives and data sets as tensors, with many kinds of damage."""

import io
import os
import random
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plumbing.data import images, pixels
from tests.helpers import HERE, error_line, image, told


def test_folder_of_odd_images(tmp_path, capsys, monkeypatch):
    for i, mode in enumerate(["RGB", "RGBA", "L", "P", "LA", "1"]):
        image(tmp_path / f"set/cat/{i}.png", mode=mode, size=(40 + 300 * i, 30))
        image(tmp_path / f"set/dog/{i}.jpg", size=(50, 90), seed=i)
    (tmp_path / "set/cat/notes.txt").write_text("not an image")
    (tmp_path / "set/cat/broken.png").write_bytes((tmp_path / "set/cat/0.png").read_bytes()[:200])
    (tmp_path / "set/cat/empty.png").touch()

    data = images.load_images(str(tmp_path / "set"), "mnist", "data", 16)
    said = capsys.readouterr().err
    assert "2 of 14 image files" in said and "broken.png" in said and "empty.png" in said
    assert data.train.shape == (11, 3, 16, 16) and data.test.shape == (1, 3, 16, 16) and data.train.dtype == torch.uint8
    assert sorted(torch.cat([data.train_labels, data.test_labels]).tolist()) == [0] * 6 + [1] * 6

    monkeypatch.setattr(pixels, "decode", None)  # the second start decodes nothing
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
    """Class numbers are those of the whole set, even if a split lacks a class. The archiver's own files are skipped."""
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


def bad_archives():
    """Yield the names and bytes of hostile or broken archives. Most hold two good pictures."""
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
    """Only regular files are written, and only below data/. The good pictures are read, or one line says why not."""
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
    """Odd images are read. Broken ones are counted and named. A pipe is skipped."""
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
