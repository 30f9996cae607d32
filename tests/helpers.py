"""What tests of several files need."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import char_rnn
import common
import dcgan
import fid
import gan_mnist
import simclr
import vae
from plumbing.data import images, pixels
from plumbing.system import process

HERE = Path(__file__).parent.parent
LONG = "--long" in sys.argv
SCRIPTS = [vae, char_rnn, gan_mnist, dcgan, simclr, fid]
NEEDED = {fid: ["real", "generated"]}  # arguments without which a script does nothing
RUNS = {  # the smallest models; write_inputs() makes tale.txt and pictures
    vae: "--data digits --arch mlp --latent-dim 1 --batch-size 4".split(),
    char_rnn: "--data tale.txt --h-dim 4 --n-layers 1 --seq-len 4 --batch-size 2".split(),
    gan_mnist: "--data digits --batch-size 4".split(),
    dcgan: "--data digits --hidden-dim 1 --batch-size 4".split(),
    simclr: "--data pictures --image-size 8 --batch-size 4".split(),
}
SMALL = [*RUNS[vae], *"--out run --log-every 1 --save-every 1".split()]
WORDS = "the quick brown fox jumps over a lazy dog\nwhile nobody sees it ".split(" ")


class Trap:
    """Whoever unpickles it makes the folder `executed`."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


# ---------------------------------------------------------------------------------------------------------- made inputs


def letters(n: int) -> str:
    chance = random.Random(0)
    return " ".join(chance.choice(WORDS) for _ in range(n))[:n]


def batch(channels=1, size=32, n=5, low=0.0) -> torch.Tensor:
    return torch.rand(n, channels, size, size) * (1 - low) + low


def image(path: Path, size=(40, 30), mode="RGB", seed=0) -> Path:
    """A file of noise, or of plain red in the rarer modes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode in ("L", "RGB", "RGBA"):
        bands = len(Image.new(mode, (1, 1)).getbands())
        noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], bands), dtype=np.uint8)
        made = Image.fromarray(noise.squeeze())
    else:
        made = Image.new("RGB", size, "red").convert(mode)
    made.save(path)
    return path


def write_inputs() -> None:
    """tale.txt, and pictures of two classes."""
    Path("tale.txt").write_text(letters(300))
    for i in range(40):
        image(Path(f"pictures/{'ab'[i % 2]}/{i}.png"), size=(8, 8), seed=i)


def photos(n: int, size=32) -> torch.Tensor:
    """uint8 images (n, 3, size, size): CIFAR-10's where data/ has them, else smooth noise."""
    files = sorted((HERE / "data/cifar10-jpeg/test").glob("*/*"))[::97][:n]
    if len(files) == n:
        return images.resize(torch.stack([pixels.read_whole(f, "RGB", pixels.White()) for f in files]), size)
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return common.to_uint8(images.resize(noise, size).clamp(0, 1))


def as_files(pixels: torch.Tensor, folder: str) -> str:
    Path(folder).mkdir(parents=True)
    for i, x in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(x.squeeze()).save(f"{folder}/{i:05d}.png")
    return folder


def spd(d: int, seed: int, rank: int | None = None) -> torch.Tensor:
    """A covariance (d, d), in float64."""
    a = torch.randn(rank or 2 * d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a.T @ a / len(a)


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


def losses_agree(n: int, tau: float) -> None:
    """simclr.py's two losses with the oracle, for z of several lengths and for z that are all alike."""
    torch.manual_seed(0)
    left, right = torch.randn(2, n, 16, dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e3):
        for pair in ((scale * left, right), (left, scale * left), (left[:1].expand(n, -1), scale * right)):
            exact = simclr_loss(*(z.numpy() for z in pair), tau)
            for ours in (simclr.simclr_loss_naive, simclr.simclr_loss_vectorized):
                assert ours(*pair, tau).item() == pytest.approx(exact, rel=1e-6, abs=1e-6)
                assert ours(*(z.float() for z in pair), tau).item() == pytest.approx(exact, rel=1e-3, abs=1e-4)


# ---------------------------------------------------------------------------------------------------- calls and runs


class NoJudge:
    """fid.Judge that measures nothing."""

    distance = None

    def __init__(self, *_, **__) -> None:
        """Take fid.Judge's arguments."""

    def __call__(self, *_, **__) -> dict:
        return {}


def error_line(capsys, call, *args) -> str:
    """The one line that a call leaves on standard error when it ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        call(*args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and ": error: " in lines[-1]
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


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
            process.last_words(error)
        code = end.value.code
    lines = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert code == 2 and len(lines) == 1, (code, lines)
    return lines[0]


def start(*argv: str) -> subprocess.Popen:
    """A script in a process of its own, in the current folder."""
    command = [sys.executable, str(HERE / argv[0]), *argv[1:]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def once_saved(process: subprocess.Popen) -> subprocess.Popen:
    """The process, as soon as it has written run/last.pth."""
    while not Path("run/last.pth").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    return process


def start_and_save(*argv: str) -> subprocess.Popen:
    return once_saved(start(*argv))


def stop(process: subprocess.Popen, number: int) -> int:
    """The step at which a signal stops it, which it has to say and to have saved."""
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    step = last_of("run")["step"]
    assert process.returncode == 128 + number and f"stopped at step {step} and saved" in said
    return step


def stop_after(step: int, save):
    """Run.save, after which the process is as good as killed."""

    def saved(run):
        save(run)
        if run.step == step:
            raise KeyboardInterrupt

    return saved


# ---------------------------------------------------------------------------------------------------- what they left


def last_of(folder: str | Path) -> dict:
    return torch.load(f"{folder}/last.pth", weights_only=True)


def results_of(folder: str | Path) -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def picture(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path))
    assert pixels.std() > 1, f"{path} shows nothing"
    return pixels


def same(a, b) -> bool:
    """Equality of nested checkpoints, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The relative distance from b."""
    return ((a - b).norm() / b.norm()).item()
