"""Several processes under torchrun, on one machine or many: NCCL between GPUs, gloo between CPUs.

Every rank runs the whole script. It takes its slice of the global batch and draws its own noise;
DistributedDataParallel averages the gradients, BatchNorm sees the global batch. Rank 0 alone writes and speaks. In one
process, started with python, every function here hands back what it is given.
"""

import contextlib
import copy
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

CONTROL = timedelta(hours=2)  # how long a rank waits for one that decodes a data set or measures samples


def launched() -> bool:
    """Whether torchrun has started this process, and others."""
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """0 ... size - 1; also before `join`."""
    return int(os.environ["RANK"]) if launched() else 0


def size() -> int:
    """How many ranks work together now: 1 before `join` and after `leave`."""
    return dist.get_world_size() if launched() and dist.is_initialized() else 1


def join(device: torch.device) -> None:
    """Meet the others. Ranks beyond 0 are silent from here on, but for what makes them end."""
    if not launched():
        return
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"several processes need CPUs or CUDA, not {device}: add --device cpu")
    if rank():
        sys.stdout = sys.stderr = open(os.devnull, "w")
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(f"torchrun started more processes here than the {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local)
    store, _, world_size = next(dist.rendezvous("env://", timeout=CONTROL))
    # A restarted job meets in the store of the one before, which still holds the addresses of the dead.
    store = dist.PrefixStore(f"restart {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=CONTROL, store=store, rank=rank(), world_size=world_size)
    print(f"{size()} ranks: {dist.get_backend()}", file=sys.stderr)


def hold_back() -> None:
    """Ranks beyond 0 wait before they print what ends them: where rank 0 failed alike, torchrun ends them meanwhile."""
    if rank():
        sys.stderr = sys.__stderr__
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(5)


def lost(error: BaseException) -> bool:
    """Whether this is another rank's death, which torchrun names."""
    return size() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """A rank that fails while others are at work ends at once: gloo's threads wait for them, and to unload them aborts.

    But a second late: torchrun looks ten times a second, and names the rank of the lowest number that it finds dead.
    """
    try:
        yield
    except SystemExit as end:
        if size() == 1 or not end.code:
            raise
        sys.stderr.flush()
        time.sleep(1)
        os._exit(end.code)


def leave() -> None:
    """The common work is done: ranks beyond 0 end here, and rank 0 goes on as a single process."""
    if size() > 1:
        dist.destroy_process_group()
        if rank():
            raise SystemExit(0)


@contextlib.contextmanager
def one_per_machine() -> Iterator[None]:
    """Rank 0 first, then one rank of every other machine, whose disk may be the same, then the others.

    Each finds what those before it have downloaded, decoded or trained.
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
    """Rank 0's value, on every rank: so that all decide alike."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def objects(value: Any) -> list:
    """Every rank's value, in their order, on every rank; tensors are on the CPU."""
    values = [value] * size()
    if size() > 1:
        dist.all_gather_object(values, value)
    return values


def largest(number: int) -> int:
    """The largest of all ranks' numbers, on every rank."""
    if size() == 1:
        return number
    x = torch.tensor(number)
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return int(x)


def share(x: Tensor) -> Tensor:
    """This rank's slice, along the first dimension, of what belongs to the global batch."""
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
    """The sum of all ranks' x; the gradient is the sum of theirs."""
    return _Total.apply(x) if size() > 1 else x


def gathered(x: Tensor) -> Tensor:
    """x (B, ...) of all ranks, one after the other, with gradients: (ranks · B, ...)."""
    if size() == 1:
        return x
    parts = [torch.zeros_like(x)] * size()
    parts[rank()] = x
    return total(torch.cat(parts))


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all ranks, which are equally large, on CPUs, where torch has none."""

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
    """The model for the training step: gradients are averaged over ranks, BatchNorm sees the global batch.

    A twin with the same parameters and buffers: `model` itself stays what it is, for all that one rank does alone.
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


def inside(model: nn.Module) -> nn.Module:
    """What `distributed` has wrapped."""
    return model.module if size() > 1 else model


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradients for its weights, and none to average: they only flow through it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    with model.no_sync() if size() > 1 else contextlib.nullcontext():
        yield
    for p in trained:
        p.requires_grad_(True)
