"""Signals, kills, full disks, damaged files, two processes in one folder: what was good is kept."""

import io
import math
import os
import pickle
import random
import signal
import socket
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import char_rnn
import common
import dcgan
import fid
import vae
from plumbing.run import run as run_module
from tests.helpers import (
    LONG,
    RUNS,
    SMALL,
    NoJudge,
    as_files,
    error_line,
    last_of,
    letters,
    photos,
    picture,
    results_of,
    same,
    start,
    start_and_save,
    stop,
    stop_after,
    told,
    write_inputs,
)

TALE = "--data tale.txt --h-dim 16 --batch-size 4 --seq-len 10 --eval-every 4".split()


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
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main([*SMALL, "--steps", "1"])
    file, state = Path("run/last.pth"), last_of("run")
    good = file.read_bytes()
    for _, (_, damaged) in zip(range(500 if LONG else 240), damages(good, random.Random(0)), strict=False):
        file.write_bytes(damaged)
        try:
            assert same(common.load(file, ("vae",), "flags"), state)  # a bit that nothing reads
        except SystemExit:
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and "run/last.pth" in lines[0]
    line = told(capsys, vae.main, [*SMALL, "--steps", "2"])
    assert line and "Take it from a copy, or start again with --fresh" in line
    file.write_bytes(good)
    vae.main([*SMALL, "--steps", "2"])


def test_a_full_disk(capsys, monkeypatch):
    """Wherever writing fails: one line, the checkpoint before it is whole, and the same command goes on."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main([*SMALL, "--steps", "1"])
    largest, chance = Path("run/last.pth").stat().st_size, random.Random(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in range(1, 51 if LONG else 6):
        resource.setrlimit(resource.RLIMIT_FSIZE, (chance.randrange(largest), limits[1]))
        try:
            line = told(capsys, vae.main, [*SMALL, "--steps", str(step + 1)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert line and ("cannot be written" in line or "too large" in line)
        assert common.load(Path("run/last.pth"), ("vae",), "flags")["step"] == step
        assert not list(Path("run").glob("*.part"))
        vae.main([*SMALL, "--steps", str(step + 1)])


def test_a_full_disk_while_exporting(capsys):
    """torch.jit.save by a path would abort the process, with the old file gone."""
    resource = pytest.importorskip("resource")
    vae.main([*SMALL, "--steps", "1"])
    vae.main(["--export", "--weights", "run"])
    names = ("VAE_model.pth", "VAE_model.pt2")
    before = [Path("run", name).read_bytes() for name in names]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for n in (1000, len(before[0]) // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, limits[1]))
        try:
            line = told(capsys, vae.main, ["--export", "--weights", "run"])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert line and "too large" in line
        assert [Path("run", name).read_bytes() for name in names] == before


def test_two_processes_in_one_folder(capsys, monkeypatch):
    argv = ["vae.py", *SMALL, "--steps", "1000000"]
    first = start_and_save(*argv)
    assert f"run is in use by process {first.pid} on " in told(capsys, vae.main, [*SMALL, "--steps", "1000000"])
    assert f"in use by process {first.pid}" in told(capsys, vae.main, [*SMALL, "--steps", "1000001", "--fresh"])
    first.kill()
    first.wait()
    assert str(first.pid) in Path("run/lock.txt").read_text()  # nobody holds the lock any more
    step = last_of("run")["step"]
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main([*SMALL, "--steps", str(step + 1)])


def test_sigterm_while_evaluating(monkeypatch):
    argv = ["vae.py", *SMALL, "--steps", "1"]
    process = start(*argv)
    while not (line := process.stdout.readline()).startswith("evaluating"):
        assert line, "it has ended"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode and not Path("run/results.json").exists()
    monkeypatch.setattr(fid, "Judge", NoJudge)
    vae.main([*SMALL, "--steps", "1"])
    assert results_of("run")["step"] == 1


def test_sigterm_saves_and_kill_loses_nothing():
    """SIGTERM saves the step it was at; kill -9 at any moment leaves a folder that the same command continues."""
    argv = ["vae.py", *RUNS[vae], "--steps", "1000000", "--save-every", "1", "--log-every", "5", "--out", "run"]
    step = stop(start_and_save(*argv), signal.SIGTERM)

    chance = random.Random(0)
    for _ in range(50 if LONG else 2):
        process = start(*argv)
        said = 0  # a step that is logged is saved next, so those before it have been
        while said <= step + 1:
            line = process.stdout.readline()
            assert line and "error" not in line
            said = int(line.split()[1].partition("/")[0]) if line.startswith("step ") else said
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.wait()
        before, step = step, last_of("run")["step"]
        assert step >= said - 1 > before and torch.load("run/vae.pth", weights_only=True)["step"] in (step, step + 1)


def test_ctrl_c_saves_a_gan():
    as_files(photos(12)[:, :1], "photos")
    argv = "--data photos --batch-size 4 --steps 1000000 --save-every 5 --out run".split()
    assert stop(start_and_save("gan_mnist.py", *argv), signal.SIGINT) > 0


def test_sigterm_saves_a_dcgan():
    argv = "--data photos --hidden-dim 2 --steps 1000000 --save-every 5 --out run".split()
    as_files(photos(12), "photos")
    assert stop(start_and_save("dcgan.py", *argv), signal.SIGTERM) > 0


def test_killed_and_continued_char_rnn_ends_with_the_same_weights():
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--steps", "40"]
    process = start_and_save("char_rnn.py", *argv, "--save-every", "1", "--out", "run")
    process.kill()
    process.wait()
    killed_at = last_of("run")["step"]
    char_rnn.main([*argv, "--out", "run"])
    char_rnn.main([*argv, "--out", "whole"])
    assert 0 < killed_at < 40
    assert same(*(last_of(name) for name in ("run", "whole")))


def test_run_killed_before_its_first_measurement(monkeypatch):
    Path("tale.txt").write_text(letters(410))
    argv = [*TALE, "--eval-every", "9999999", "--save-every", "1", "--out", "run"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module.Run, "save", stop_after(2, run_module.Run.save))
        char_rnn.main([*argv, "--steps", "9999999"])
    assert last_of("run")["step"] == 2
    char_rnn.main([*argv, "--steps", "1"])
    assert results_of("run")["best_step"] > 0


@pytest.mark.skipif(not LONG, reason="200 kills take half an hour: --long")
@pytest.mark.parametrize("script", RUNS)
def test_forty_kills(script):
    """kill -9 at random moments, most of them while it saves: no checkpoint is lost, none is older than the last."""
    write_inputs()
    argv = [f"{script.__name__}.py", *RUNS[script], "--steps", "1000000", "--out", "run"]
    chance, step = random.Random(0), 0
    for _ in range(40):
        process = start(*argv, "--save-every", "1", "--log-every", "1")
        while not (line := process.stdout.readline()).startswith("step "):
            assert line and "error" not in line
        said = int(line.split()[1].partition("/")[0])
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.wait()
        before, last = step, Path("run/last.pth")
        if before or last.exists():  # step 1 is logged before it is saved, and can be killed in between
            step = common.load(last, (script.__name__,), "flags")["step"]
        assert step >= max(before, said - 1)  # a step that is logged is saved next
        for path in Path("run").glob("*.pth"):
            common.load(path, (script.__name__,), "script", network="D" * (path.stem == "discriminator"))


@pytest.mark.skipif(not LONG, reason="fifty kills take minutes: --long")
def test_kills_while_it_writes_what_people_open():
    """kill -9 in the midst of --eval and --encode: no half film, page, table or picture stands under its name."""
    vae.main([*SMALL, "--latent-dim", "2", "--steps", "4"])
    argv = ["vae.py", "--eval", "--encode", "codes.npz", "--weights", "run"]
    made = [Path("codes.npz"), *(Path("run", name) for name in ("samples.webp", "latent.html", "latent.png"))]
    chance, seconds = random.Random(0), 0.0
    for kills in range(51):
        for path in made:
            path.unlink(missing_ok=True)
        process = start(*argv)
        process.stdout.readline()
        began = time.monotonic()
        if kills:
            time.sleep(chance.uniform(0, seconds))
            process.kill()
        process.wait()
        if not kills:  # whole, to see how long it takes
            seconds = time.monotonic() - began
            assert all(path.exists() for path in made)
        if made[0].exists():
            assert np.load(made[0])["mu"].shape[1] == 2
        if made[1].exists():
            with Image.open(made[1]) as film:
                film.seek(film.n_frames - 1)
                film.load()
        if made[2].exists():
            assert made[2].read_text().rstrip().endswith("</html>")
        if made[3].exists():
            picture(made[3])


def test_a_run_that_diverges_stops_and_keeps_what_was_good(capsys):
    argv = [*RUNS[vae], "--steps", "9", "--lr", "2e9", "--out", "run"]
    assert "Try a lower --lr" in error_line(capsys, vae.main, argv) and not Path("run/last.pth").exists()


def test_weights_that_are_not_finite_are_never_saved(capsys, monkeypatch):
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main([*SMALL, "--steps", "2"])
    good, add = Path("run/last.pth").read_bytes(), run_module.Run.add

    def spoil(run, split, **terms):
        add(run, split, **terms)
        if run.step == 4:
            next(run.to_continue["model"].parameters()).data[0] = math.nan

    monkeypatch.setattr(run_module.Run, "add", spoil)
    line = told(capsys, vae.main, [*SMALL, "--steps", "5", "--save-every", "2", "--log-every", "9"])
    assert "step 4: weights of model are not finite. The checkpoint of step 2 is kept" in line
    assert Path("run/last.pth").read_bytes() == good


def test_weights_of_another_run_are_not_overwritten(capsys, monkeypatch):
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main([*SMALL, "--steps", "1"])
    Path("run/last.pth").unlink()
    assert "run/vae.pth belongs to another run" in told(capsys, vae.main, [*SMALL, "--seed", "1", "--steps", "1"])
    vae.main([*SMALL, "--steps", "1"])  # as if it had been killed before its first last.pth
    Path("run/config.json").unlink()
    Path("run/last.pth").unlink()
    assert "belongs to another run" in told(capsys, vae.main, [*SMALL, "--steps", "1"])


def test_a_clock_that_stands_still_and_a_disk_that_turns_read_only(capsys, monkeypatch):
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for _ in range(3):
        vae.main([*SMALL, "--steps", "1", "--fresh"])
    assert {p.name for p in Path().iterdir()} >= {"run", "run.now", "run.now-"}

    def refuse(_, path):
        raise OSError(30, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert "Read-only file system" in told(capsys, vae.main, [*SMALL, "--steps", "2"])
    assert common.load(Path("run/last.pth"), ("vae",), "flags")["step"] == 1


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
