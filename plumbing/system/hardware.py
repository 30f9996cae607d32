"""The device, its number format, its name and its memory, where torch needs more than one call for it."""

import argparse
import ctypes
import platform
import re
import sys
from pathlib import Path

import torch

DEVICES = ("auto", "cuda", "mps", "cpu")


def device_name(text: str) -> str:
    """Return cpu, cuda or mps for an argparse flag. For auto it is what this machine has."""
    if text not in DEVICES:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(DEVICES)})")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    best = accelerator.type if accelerator else "cpu"
    if text not in ("auto", "cpu", best):
        message = f"this machine, or this build of torch, has no {text}"
        raise argparse.ArgumentTypeError(f"{message}. Use --device auto.")
    return best if text == "auto" else text


def bf16(device: str, wanted: bool | None) -> bool:
    """Return `wanted`, or for None, True if the hardware itself computes in bfloat16."""
    native = False
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if wanted and not native:
        print(f"--bf16: this {device} only emulates bfloat16. Use --no-bf16, which is faster.", file=sys.stderr)
    return native if wanted is None else wanted


def machine(device: str) -> str:
    """Return the name of the machine, such as "AMD EPYC, AVX2, 2 threads", to print beside a time."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"model name\s*: (.+)", text)
    name = match[1] if match else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return x on the device. A GPU copies from page-locked memory, so the host need not wait for the copy."""
    if x.is_cpu and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large temporaries. By default each step takes it from the kernel anew."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def out_of_memory(error: BaseException) -> bool:
    """Return True for an error that means too little memory. On a CPU torch raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    line = str(error).partition("\n")[0]
    return bool(re.search("out of memory|allocate memory|size calculation|ALLOC_FAILED", line))
