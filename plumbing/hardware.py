"""What torch does not say in one word of the machine below it."""

import argparse
import ctypes
import re
import sys

import torch

DEVICES = "{auto,cuda,mps,cpu}"


def device_name(text: str) -> str:
    """An argparse type: cpu, cuda or mps, and what this machine has for auto."""
    if text not in DEVICES.strip("{}").split(","):
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {DEVICES})")
    found = (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type
    device = found if text == "auto" else text
    if device not in (found, "cpu"):
        raise argparse.ArgumentTypeError(f"this machine, or this build of torch, has no {text}; auto takes what it has")
    return device


def has_bf16(device: str) -> bool:
    """Whether the hardware itself computes in bfloat16."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def keep_freed_memory() -> None:
    """glibc gives large temporaries back to the kernel, which faults them in again at every step: let it keep them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises for too little memory; on a CPU that is a RuntimeError like any other."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return bool(re.search("out of memory|allocate memory|size calculation|ALLOC_FAILED", str(error).partition("\n")[0]))
