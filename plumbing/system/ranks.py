"""Several processes under torchrun, on one machine or many: NCCL between GPUs, gloo between CPUs.

Every rank runs the whole script. A rank takes its slice of the global batch and draws its own noise.
DistributedDataParallel averages the gradients, and BatchNorm sees the global batch. Rank 0 alone writes files and
prints. torchrun reports the rank and the exit status of a process that fails. In a single process, started with
python, every function here returns its argument.
"""

import contextlib
import copy
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = timedelta(hours=2)  # the other ranks wait while one decodes a data set or measures samples


def launched() -> bool:
    """Return True if torchrun started this process and others."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """Return this process's number, 0 ... size - 1. It is known before `join`."""
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """Return the number of ranks that work together: 1 before `join` and after `leave`."""
    return dist.get_world_size() if launched() and dist.is_initialized() else 1


def join(device: torch.device) -> None:
    """Connect this rank to the others. Ranks beyond 0 print nothing from here on."""
    if not launched():
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"torchrun needs CPUs or CUDA, not {device}. Add --device cpu.")
    if rank():
        sys.stdout = sys.stderr = open(os.devnull, "w")
    if device.type == "cuda":
        local, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= n_gpus:
            message = f"torchrun started more processes than this machine has GPUs ({n_gpus})."
            raise ValueError(f"{message} Give it --nproc-per-node={n_gpus}.")
        torch.cuda.set_device(local)
    store, _, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    # torchrun keeps the store when it restarts a job. The addresses of the dead processes are still in it.
    store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT, store=store, rank=rank(), world_size=world_size)
    print(f"{size()} ranks: {dist.get_backend()}", file=sys.stderr)


def leave() -> None:
    """End the common work: ranks beyond 0 exit, and rank 0 goes on as a single process."""
    if size() > 1:
        dist.destroy_process_group()
        if rank():
            raise SystemExit(0)


@contextlib.contextmanager
def one_per_machine() -> Iterator[None]:
    """Let rank 0 go first, then one rank of every other machine, then the rest.

    Rank 0 downloads, decodes or trains something, and the others find it on disk. Another machine may share the disk
    or not.
    """
    if rank() == 0:
        turn = 0
    else:
        turn = 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for _ in range(turn):
        objects(None)
    try:
        yield
    finally:
        for _ in range(turn, 2):
            objects(None)


def from_first(value: Any) -> Any:
    """Return rank 0's value on every rank, so that all ranks decide alike."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def objects(value: Any) -> list:
    """Return the list of all ranks' values on every rank. Tensors have to be on the CPU."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def largest(number: int) -> int:
    """Return the largest of all ranks' numbers on every rank."""
    if size() == 1:
        return number
    x = torch.tensor(number)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return int(x)


def share(x: Tensor) -> Tensor:
    """Return this rank's slice of a tensor of the global batch, (B, ...) -> (B / ranks, ...)."""
    return x.chunk(size())[rank()] if size() > 1 else x


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(_, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(_, grad: Tensor) -> Tensor:  # every rank's loss depends on every rank's x
        return _Total.apply(grad)


def total(x: Tensor) -> Tensor:
    """Return the sum of x over the ranks. Its gradient is the sum of the ranks' gradients."""
    return _Total.apply(x) if size() > 1 else x


def gathered(x: Tensor) -> Tensor:
    """Concatenate x of all ranks, with gradients: (B, ...) -> (ranks · B, ...)."""
    if size() == 1:
        return x
    parts = [torch.zeros_like(x)] * size()
    parts[rank()] = x  # total() adds the zeros of the other ranks
    return total(torch.cat(parts))


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the equally large batches of all ranks, for CPUs. torch's own needs GPUs."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        shape = (-1, *[1] * (x.ndim - 2))  # against (B, C, ...)
        n = size() * x.numel() // x.shape[1]
        h = x.float()
        mean = total(h.sum(dims)) / n  # (C,)
        h = h - mean.view(shape)
        var = total((h**2).sum(dims)) / n
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        h = h * (self.weight * torch.rsqrt(var + self.eps)).view(shape) + self.bias.view(shape)
        return h.to(x.dtype)


def distributed(model: nn.Module) -> nn.Module:
    """Return a model for the training step that averages gradients and lets BatchNorm see the global batch.

    The model is a twin with the same parameters and buffers. `model` itself does not change, and serves for what one
    rank does alone.
    """
    if size() == 1:
        return model
    twin = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    if next(model.parameters()).is_cuda:
        twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
    else:
        for m in twin.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.__class__ = SyncBatchNorm
    # Older versions of torch have no other name for it.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    return DistributedDataParallel(twin, broadcast_buffers=False)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Compute no gradients for the model's weights. Gradients still flow through the model to its input."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    with model.no_sync() if size() > 1 else contextlib.nullcontext():
        yield
    for p in trained:
        p.requires_grad_(True)
