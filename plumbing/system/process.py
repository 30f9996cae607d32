"""What a script does to its whole process: how it begins, what it changes and changes back, how it ends."""

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

from plumbing.system import files, hardware, ranks

KEPT = "; what was saved is kept, and the same command continues from it"


def is_program() -> bool:
    """Whether one of this repository's scripts was started; else its functions are called in somebody's process."""
    main, root = Path(getattr(sys.modules["__main__"], "__file__", None) or "/"), Path(__file__).resolve().parents[2]
    return main.resolve().parent in (root, root / "report") and not main.name.startswith("test")


def any_terminal() -> None:
    """A terminal, or a file, without UTF-8 is no reason to stop."""
    if is_program() and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def fail(message: object) -> NoReturn:
    """End the program as argparse does: one line on standard error, exit status 2."""
    ranks.hold_back()
    files.say(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", sys.stderr)
    raise SystemExit(2)


def last_words(error: BaseException, largest: str = "--batch-size", training: bool = True) -> None:
    """What ends a script and is no defect of it gets one line: a full disk, too little memory, another rank's death.

    largest: the flag to blame for too little memory. training: whether there is something to go on with.
    """
    kept = KEPT if training else ""
    text = (str(error) or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, KeyboardInterrupt):
        files.say(f"{Path(sys.argv[0]).name}: stopped{kept}", sys.stderr)
        raise SystemExit(130)
    if ranks.lost(error):
        fail(f"rank {ranks.rank()} has lost the others ({text.split('] ', 1)[-1].split('. ')[0]}){kept}")
    if isinstance(error, OSError):
        fail(f"{text}{kept}")
    if hardware.out_of_memory(error):
        fail(f"not enough memory: try a smaller {largest}{kept} ({text})")


def setup(args: argparse.Namespace) -> torch.device:
    """Join the other ranks, seed torch, and hand back the device that the flags mean."""
    device = torch.device(args.device)
    try:
        ranks.join(device)
    except (ValueError, RuntimeError) as error:  # RuntimeError: the others cannot be reached
        fail(error)
    if device.type == "mps":
        said = "device mps: nobody has run these scripts on a Mac yet; --device cpu takes what is tested"
        files.say(said, sys.stderr)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what the next line needs
    deterministic = getattr(args, "deterministic", False)
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # names those that stay
    torch.backends.cudnn.benchmark = not deterministic  # the fastest kernels are found by trying
    if is_program():
        hardware.keep_freed_memory()
    socket.setdefaulttimeout(30)  # seconds, so that no download hangs
    torch.manual_seed(args.seed)
    return device


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """What `setup` and a run change for the whole process is as it was before, however this ends."""
    timeout, benchmark = socket.getdefaulttimeout(), torch.backends.cudnn.benchmark
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(strict, warn_only=warns)


@contextlib.contextmanager
def running(args: argparse.Namespace) -> Iterator[torch.device]:
    """`setup` for what is done within, undone behind it. A program ends with last_words, callers get the exception."""
    with restored(), ranks.failing():
        try:
            yield setup(args)
        except BaseException as error:
            if is_program():
                last_words(error, getattr(args, "largest", "--batch-size"), getattr(args, "training", False))
                sys.stderr = sys.__stderr__  # ranks beyond 0 are silent but for what makes them end
            raise


def run(args: argparse.Namespace, train: Callable, use: Callable) -> Any:
    """A script's train(args, device), which hands back the run, or what it does with trained weights instead."""
    with running(args) as device:
        return (train if args.training else use)(args, device)
