"""Batches of a data set that is one tensor. A batch depends on the step alone, so resuming needs no sampler state."""

from argparse import Namespace
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from plumbing.system import hardware, ranks


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of one epoch: int64 (n,)."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Return the indices (batch_size,) of step 1, 2, ...: the next slice of an endless row of permuted epochs.

    All batches have the same size. A batch may end one epoch and begin the next.
    """
    first, slices = (step - 1) * batch_size, []
    while batch_size:
        epoch, start = divmod(first, n)
        slices.append(permutation(n, seed, epoch)[start : start + batch_size])
        first += len(slices[-1])
        batch_size -= len(slices[-1])
    return torch.cat(slices)


def indices_without_repeats(n: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Return the indices (batch_size,) of step 1, 2, ..., no sample twice in a batch.

    Each epoch leaves out the samples that do not fill its last batch.
    """
    epoch, k = divmod(step - 1, n // batch_size)
    return permutation(n, seed, epoch)[k * batch_size : (k + 1) * batch_size]


def batches(x: Tensor, args: Namespace, device: torch.device, repeats: bool = True) -> Callable[[int], Tensor]:
    """Return a function from the step to this rank's part of the batch, uint8 (B, C, H, W) on the device.

    The whole set x (N, C, H, W) moves to a GPU if it takes less than half of the free memory there. repeats: whether
    a batch may hold a sample twice, at the border of two epochs.
    """
    if device.type == "cuda" and x.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        x = x.to(device)
    choose = batch_indices if repeats else indices_without_repeats

    def batch(step: int) -> Tensor:
        i = ranks.share(choose(len(x), args.batch_size, step, args.seed))
        return hardware.moved(x[hardware.moved(i, x.device)], device)  # no wait for the GPU

    return batch
