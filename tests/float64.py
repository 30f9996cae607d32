"""Scripts in float64, with one noise for all ranks: what is left between N ranks and one process is rounding.

`python tests/float64.py '[["vae", "--steps", "20"], ...]'`, alone or under torchrun, for test_ranks.py; no run is
evaluated at its end.
"""

import contextlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import fid  # noqa: E402
from plumbing.judge import lenet  # noqa: E402
from plumbing.run import run as run_module  # noqa: E402
from plumbing.system import ranks  # noqa: E402


def alone(how: dict) -> bool:
    """Whether a draw is for this rank only: in one process, in a measurement, from a generator of its own."""
    return ranks.size() == 1 or not torch.is_grad_enabled() or "generator" in how


def for_all(draw: Callable, script: str) -> Callable:
    """torch.rand or torch.randn; this rank's share of what is drawn for the global batch."""

    def drawn(*size, **how) -> Tensor:
        if alone(how):
            return draw(*size, **how)
        if not isinstance(size[0], int):
            size = size[0]  # a shape
        corners = script == "simclr" and len(size) == 2 and size[0] == 2  # (2, B)
        dim = 1 if corners or script == "char_rnn" else 0  # dropout: (S, B, H)
        whole = list(size)
        whole[dim] *= ranks.size()
        return draw(*whole, **how).chunk(ranks.size(), dim)[ranks.rank()]

    return drawn


def for_all_like(draw: Callable) -> Callable:
    """torch.rand_like or torch.randn_like, likewise; the order of the numbers is that of the memory."""

    def drawn(x: Tensor, **how) -> Tensor:
        if alone(how):
            return draw(x, **how)
        shape = (len(x) * ranks.size(), *x.shape[1:])
        whole = torch.empty_strided(shape, x.stride(), dtype=x.dtype, device=x.device)
        return ranks.share(draw(whole, **how))

    return drawn


def noise_seed_of_rank_0(seed: int, step: int, rank: int, of=run_module.noise_seed) -> int:  # noqa: ARG001
    return of(seed, step, 0)


def small_resnet() -> torchvision.models.ResNet:
    """A ResNet of two stages with a block each, 128 features: 3% of ResNet-18."""
    resnet = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    resnet.layer3, resnet.layer4, resnet.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 1)
    return resnet


def run(name: str, *argv: str) -> None:
    """One script, as far as the ranks work together."""
    script = importlib.import_module(name)
    with contextlib.ExitStack() as stack:
        for place, attribute, value in (
            (torch, "rand", for_all(torch.rand, name)),
            (torch, "randn", for_all(torch.randn, name)),
            (torch, "rand_like", for_all_like(torch.rand_like)),
            (torch, "randn_like", for_all_like(torch.randn_like)),
            (torch.Tensor, "float", torch.Tensor.double),
            (run_module, "noise_seed", noise_seed_of_rank_0),
            (torchvision.models, "resnet18", small_resnet),
            (lenet, "_train", lambda net, *_: net),
            (fid, "SAMPLES", 500),
            (ranks, "leave", sys.exit),
        ):
            stack.enter_context(mock.patch.object(place, attribute, value))
        torch.set_default_dtype(torch.float64)
        stack.callback(torch.set_default_dtype, torch.float32)
        try:
            script.main(list(argv))
        except SystemExit as end:
            assert not end.code


if __name__ == "__main__":
    torch.set_num_threads(1)
    for argv in json.loads(sys.argv[1]):
        run(*argv)
        ranks.join = lambda *_: None  # one process group for all
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # or gloo's threads may outlive what they use, and abort
