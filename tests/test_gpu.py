"""A training step on a GPU, as far as it can be told without one, where a simulated GPU is at hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plumbing import hardware

ROOT = Path(__file__).resolve().parents[1]
COUNTER = ROOT.parent / "shared/tools/gpu_waits.py"


@pytest.mark.skipif(not COUNTER.exists(), reason="no simulated GPU")
@pytest.mark.parametrize("name", ["vae", "gan_mnist", "dcgan", "simclr", "char_rnn"])
def test_a_step_waits_for_nothing(name):
    """The host runs ahead of the GPU: no .item(), blocking copy, nonzero, or index on the other device."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, COUNTER, name], cwd=ROOT, env=env, capture_output=True, text=True)
    waits = re.findall(r"launches and (\S+) waits a step", said.stdout)
    assert {*map(float, waits)} == {0}, said.stdout + said.stderr


def test_bf16_that_is_only_emulated(monkeypatch, capsys):
    """It is never the default, and a line says what it costs where it is asked for."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert [hardware.bf16("cuda", wanted) for wanted in (None, False)] == [False, False]
    assert capsys.readouterr().err == ""
    assert hardware.bf16("cuda", True)
    assert "--bf16: this cuda only emulates bfloat16" in capsys.readouterr().err
