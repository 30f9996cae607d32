"""Start and end of a script: device, settings of the process, one line for what ends it."""

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

RESUME = "What was saved is kept. The same command continues from it."


def fail(message: object) -> NoReturn:
    """End the program as argparse does: one line on standard error, exit status 2."""
    stream = sys.__stderr__ if ranks.rank() else sys.stderr  # ranks beyond 0 are silent otherwise
    files.say(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", stream)
    raise SystemExit(2)


def last_words(error: BaseException) -> None:
    """Raise SystemExit with one line for an error that is no defect of the script. Return for any other error.

    Such errors are Ctrl-C, a full disk and too little memory.
    """
    text = (str(error) or type(error).__name__).splitlines()[0][:200]
    resume = " ".join(getattr(error, "__notes__", []))
    if isinstance(error, KeyboardInterrupt):
        files.say(f"{Path(sys.argv[0]).name}: stopped. {resume}".strip(), sys.stderr)
        raise SystemExit(130)
    if isinstance(error, OSError):
        fail(f"{text}. {resume}")
    if hardware.out_of_memory(error):
        smaller = "Try a smaller --batch-size, smaller images or a smaller network."
        fail(f"there is not enough memory ({text}). {smaller} {resume}")


def program(main: Callable[[list[str]], Any]) -> None:
    """Call main(sys.argv[1:]) as a program.

    All that is done to a whole process is done here, so that main() in a notebook or a test does none of it. A
    terminal without UTF-8 shows escapes. Freed memory is kept. Errors that are no defects end with one line.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    hardware.keep_freed_memory()
    try:
        main(sys.argv[1:])
    except BaseException as error:
        if ranks.rank():
            sys.stderr = sys.__stderr__  # beyond rank 0 it was closed
        try:
            last_words(error)
            raise
        except SystemExit as end:
            if ranks.size() == 1 or not end.code:
                raise
            sys.stderr.flush()
            os._exit(end.code)  # gloo's threads would wait for the other ranks


def setup(args: argparse.Namespace) -> torch.device:
    """Join the other ranks, seed torch, and return the device of --device."""
    device = torch.device(args.device)
    try:
        ranks.join(device)
    except (ValueError, RuntimeError) as error:  # RuntimeError: the others cannot be reached
        fail(error)
    if device.type == "mps":
        warning = "--device mps: nobody has tested these scripts on a Mac. --device cpu is tested."
        files.say(warning, sys.stderr)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms need it
    deterministic = "deterministic" in args and args.deterministic  # fid.py has no such flag
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # warns of operations that have none
    torch.backends.cudnn.benchmark = not deterministic  # tries kernels and keeps the fastest
    socket.setdefaulttimeout(30)  # seconds, so that no download hangs
    torch.manual_seed(args.seed)
    return device


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore, at the end, the settings of the process that `setup` and a run change."""
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
    """Yield the device, after `setup`. The settings of the process are restored at the end."""
    with restored():
        yield setup(args)
