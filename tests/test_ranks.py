"""Several processes under torchrun: the same training but for rounding, and what a rank's death does."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from plumbing.run import run as run_module
from tests import float64
from tests.helpers import HERE, LONG, last_of, letters, once_saved, same, write_inputs


def test_every_rank_has_noise_of_its_own():
    """The first, which a single process is, has that of the step alone."""
    seeds = {(seed, step, rank) for seed in (0, 1) for step in (1, 2, 10**6) for rank in range(3)}
    assert len({run_module.noise_seed(*s) for s in seeds}) == len(seeds)
    for seed, step, _ in seeds:
        exact = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])
        assert run_module.noise_seed(seed, step, 0) == exact


def torchrun(n: int, *argv: str, restarts: int = 0) -> subprocess.Popen:
    """A script on n gloo ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    command += [f"--max-restarts={restarts}", str(HERE / argv[0]), *argv[1:]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen, seconds: float = 120) -> str:
    """What it has said, once it has ended."""
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.terminate()  # torchrun takes its ranks with it


def largest_difference(a, b) -> float:
    """Of two checkpoints' tensors and numbers."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        a, b = list(a.values()), [b[key] for key in a]
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        return max(map(largest_difference, a, b), default=0.0)
    if isinstance(a, torch.Tensor):
        return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0
    if isinstance(a, int | float):
        return abs(a - b)
    return 0.0 if a == b else math.inf


TRAINED = {  # β₁ 0.5: without momentum the games' first steps are all but signs, and rounding grows a hundredfold
    "vae": "--data digits --arch technion --image-size 16",
    "gan_mnist": "--data digits --arch conv --ema 0 --beta1 0.5",
    "dcgan": "--data digits --hidden-dim 2 --flip --label-noise 0.2 --beta1 0.5 --lr 2e-4",
    "simclr": "--data pictures --image-size 8",
    "char_rnn": "--data tale.txt --h-dim 8 --seq-len 8 --eval-every 10",
}


def commands(out: str, steps: int) -> list[list[str]]:
    usual = f"--steps {steps} --batch-size 16 --no-bf16 --log-every 10 --device cpu"
    return [[name, *usual.split(), *flags.split(), "--out", f"{out}/{name}"] for name, flags in TRAINED.items()]


def check_against_each_other(tolerance: float) -> None:
    for name in TRAINED:
        one, two = last_of(f"one/{name}"), last_of(f"two/{name}")
        apart = {key: largest_difference(one[key], two[key]) for key in one.keys() - {"flags", "seconds"}}
        assert max(apart.values()) < tolerance, (name, apart)
        assert one["step"] == two["step"] and len(one["rows"]) == len(two["rows"]) > 1


def test_ranks_are_one_process_but_for_rounding():
    """Every script, with all of its noise and BatchNorm; and one process goes on where two have stopped."""
    write_inputs()
    Path("tale.txt").write_text(letters(3000))
    two = torchrun(4 if LONG else 2, "tests/float64.py", json.dumps(commands("two", steps=20)))
    for argv in commands("one", steps=20):
        float64.run(*argv)
    said = ended(two, 300)
    assert two.returncode == 0, said
    assert said.count("run folder: two/simclr, 0 of 20 steps done") == 1  # rank 0 alone speaks
    check_against_each_other(1e-7)
    for argv in commands("one", steps=24) + commands("two", steps=24):
        float64.run(*argv)
    check_against_each_other(1e-5)  # rounding grows: this game is chaotic


def rank_pids(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(condition, process: subprocess.Popen, seconds: float = 60) -> None:
    began = time.monotonic()
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - began < seconds, "nothing has happened"
        time.sleep(0.02)


def kill_and_wait(process: subprocess.Popen, rank: int) -> None:
    """Kill a rank of those that torchrun has started, and wait for their successors to have saved."""
    old = rank_pids(process)
    os.kill(old[rank], signal.SIGKILL)
    wait_for(lambda: not {*old} & {*rank_pids(process)}, process, seconds=30)
    step = last_of("run")["step"]
    wait_for(lambda: last_of("run")["step"] > step, process)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks through Linux's /proc")
def test_a_rank_that_is_killed():
    """It takes all ranks down; torchrun's restart goes on from last.pth; SIGTERM saves once; bad input is one line."""
    Path("tale.txt").write_text(letters(3000))
    argv = (
        "char_rnn.py --data tale.txt --h-dim 16 --n-layers 1 --seq-len 8 --batch-size 4 --device cpu --no-bf16 "
        "--log-every 1000 --eval-every 1000000 --steps 1000000"
    ).split()
    process = once_saved(torchrun(2, *argv, "--save-every", "5", "--out", "run", restarts=2))
    try:
        kill_and_wait(process, rank=1)
        kill_and_wait(process, rank=0)
    finally:
        for pid in [*rank_pids(process), process.pid]:  # as systemd and Slurm do; torchrun tells its ranks once more
            os.kill(pid, signal.SIGTERM)
    said, step = ended(process), last_of("run")["step"]
    assert process.returncode and said.count(f"stopped at step {step} and saved") == 1, said
    dead = re.findall(r"failed \(exitcode: (\S+)\) local_rank: (\d)", said)  # by torchrun
    assert dead == [("-9", "1"), ("-9", "0")], said
    first, second, third = map(int, re.findall(r"(\d+) of 1000000 steps done", said))
    assert first == 0 < second < third < step

    # The learning rate depends on --steps, so the unbroken run has as many, and ends when it has saved that step.
    whole = torchrun(2, *argv, "--save-every", str(step), "--out", "whole")
    wrong = torchrun(2, *argv, "--batch-size", "5", "--out", "wrong")
    wait_for(Path("whole/last.pth").exists, whole)
    broken, unbroken = last_of("run"), last_of("whole")
    whole.terminate()
    said = ended(whole)
    assert broken["step"] == unbroken["step"] == step, said
    assert all(same(broken[key], unbroken[key]) for key in ("model", "averaged", "optimizer", "hidden")), said
    said = ended(wrong)
    assert wrong.returncode and said.count("char_rnn.py: error: --batch-size 5") == 2, said  # each rank says it
    assert not Path("wrong").exists()
