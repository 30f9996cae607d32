"""A training step on a GPU, as far as it can be told without one, where a simulated GPU is at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plumbing.system import hardware

ROOT = Path(__file__).resolve().parents[1]
COUNTER = ROOT.parent / "shared/tools/gpu_waits.py"


COUNT = """
import sys
sys.path[:0] = [".", sys.argv[1]]
import fid, gpu_waits
from tests.helpers import NoJudge
fid.Judge = NoJudge  # nor is a LeNet trained
gpu_waits.RUNS["simclr"] += ["--image-size", "8"]
gpu_waits.one(sys.argv[2])
"""
NAMES = ["vae", "vae-technion", "gan_mnist", "gan_mnist-conv", "dcgan", "simclr", "char_rnn"]


@pytest.mark.skipif(not COUNTER.exists(), reason="no simulated GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_step_waits_for_nothing(name):
    """The host runs ahead of the GPU: no .item(), blocking copy, nonzero, or index on the other device."""
    command = [sys.executable, "-c", COUNT, str(COUNTER.parent), name]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.stdout, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    assert found["launches"] > 50 and found["waits"] == 0, found


def test_bf16_that_is_only_emulated(monkeypatch, capsys):
    """It is never the default, and a line says what it costs where it is asked for."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert [hardware.bf16("cuda", wanted) for wanted in (None, False)] == [False, False]
    assert capsys.readouterr().err == ""
    assert hardware.bf16("cuda", True)
    assert "--bf16: this cuda only emulates bfloat16" in capsys.readouterr().err
