"""Fixtures of both suites, and --long."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from plumbing.judge import inception
from tests.helpers import batch

torch.set_num_threads(1)  # on networks this small, threads only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="more kills, more samples, four ranks: about an hour")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test in an empty folder, so that no run of yours is touched and no data set is found by chance."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Path:
    """Weights in the layout of FID's file: random, BatchNorm's statistics measured, so that features vary."""
    torch.manual_seed(0)
    net = inception.Inception()
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
    with torch.no_grad():
        net.train()(batch(3, n=4))
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(net.state_dict(), path)
    return path
