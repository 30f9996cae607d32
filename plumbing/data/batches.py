"""Batches of a data set that is one tensor: which samples, and where they lie."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from plumbing.system import hardware, ranks


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The whole set on the GPU when it takes less than half of what is free there; else where it is."""
    fits = device.type == "cuda" and x.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    return x.to(device) if fits else x


def rows(x: Tensor, i: Tensor, device: torch.device) -> Tensor:
    """This rank's share of x[i], x (N, ...), i (B,), on the device, wherever x is; the host waits for no GPU."""
    return hardware.moved(x[hardware.moved(ranks.share(i), x.device)], device)


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The order of one epoch: int64 (n,)."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices (batch_size,) for step 1, 2, ...: the next slice of one endless row of permuted epochs.

    Stateless: step t needs no sampler to be resumed. Every batch has one size: it may end an epoch and begin the next.
    """
    first, slices = (step - 1) * batch_size, []
    while batch_size:
        epoch, start = divmod(first, n)
        slices.append(permutation(n, seed, epoch)[start : start + batch_size])
        first += len(slices[-1])
        batch_size -= len(slices[-1])
    return torch.cat(slices)
