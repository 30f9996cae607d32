"""What torch does not say in one word of the machine below it."""

import argparse
import ctypes
import platform
import re
import sys
from pathlib import Path

import torch

DEVICES = ("auto", "cuda", "mps", "cpu")


def device_name(text: str) -> str:
    """An argparse type: cpu, cuda or mps, and what this machine has for auto."""
    if text not in DEVICES:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(DEVICES)})")
    found = (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type
    device = found if text == "auto" else text
    if device not in (found, "cpu"):
        raise argparse.ArgumentTypeError(f"this machine, or this build of torch, has no {text}; auto takes what it has")
    return device


def bf16(device: str, wanted: bool | None) -> bool:
    """Whether to compute in bfloat16: as wanted, or, for None, where the hardware itself does."""
    if device == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if wanted and not has:
        print(f"--bf16: this {device} only emulates bfloat16, slower than --no-bf16", file=sys.stderr)
    return has if wanted is None else wanted


def machine(device: str) -> str:
    """What a time was measured on, such as "AMD EPYC, AVX2, 2 threads"."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", about.read_text()) if about.exists() else None
    name = named[1] if named else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """x on the device; to a GPU from page-locked memory, so that the host need not wait for the copy."""
    if x.is_cpu and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


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
