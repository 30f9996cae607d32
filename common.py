"""Plumbing that the scripts share: run flags, device, batches, image grids.

No model, loss, optimiser or loop lives here: a script reads without this file.
"""

import argparse
import ctypes
import os
import re
import shutil
import socket
import sys
import time
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torchvision

import ranks


def fail(message: object) -> NoReturn:
    """End the program as argparse does: one line on standard error, exit status 2."""
    ranks.hold_back()
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(2)


def number(kind: type, low: float, above: bool = False, below: float = 2**31) -> Callable[[str], Any]:
    """An argparse type: an int or float that is at least `low`, or above it, and less than `below`."""

    def parse(text: str):
        value = kind(text)  # its ValueError becomes argparse's "invalid int value"
        if low <= value < below and not (above and value == low):
            return value
        raise argparse.ArgumentTypeError(f"{text} is not {'above' if above else 'at least'} {low} and below {below}")

    parse.__name__ = kind.__name__
    return parse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows a script's docstring as it is written, and the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        ranks.hold_back()
        super().error(message)


def parser(doc: str, steps: int, batch_size: int, lr: float, generates: bool = True) -> Parser:
    """A parser with the flags that every script spells the same way; steps, batch_size and lr are their defaults."""
    p = Parser(description=doc, formatter_class=HelpFormatter)
    add = p.add_argument_group("run").add_argument
    add("--steps", type=number(int, 1), default=steps, help="training steps in all; more of them continue a run")
    add("--batch-size", type=number(int, 1, below=100_001), default=batch_size, help="samples per step")
    add("--lr", type=number(float, 0, above=True), default=lr, help="learning rate")
    add("--seed", type=number(int, 0), default=0, help="seed of weights, batches and noise")
    add("--data", help="a data set's name, or the path or URL of your own (default: the script's usual set)")
    add("--data-dir", default="data", help="where data sets, downloads and decoded images are kept")
    add("--out", help="run folder (default: runs/SCRIPT-DATA-VARIANT); the same command continues what it holds")
    add("--fresh", action="store_true", help="start again; an existing run folder is moved aside, not deleted")
    add("--device", choices=["auto", "cuda", "mps", "cpu"], default="auto", help="where to compute")
    add("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 autocast (default: where the hardware has it)")
    add("--deterministic", action="store_true", help="on a GPU: only kernels that give the same bits each time, slower")
    add("--compile", action="store_true", help="torch.compile: a slow first step, faster ones after it")
    add("--log-every", type=number(int, 1), default=100, help="steps between rows of metrics.csv")
    add("--save-every", type=number(int, 1), default=1000, help="steps between checkpoints")
    add("--sample-every", type=number(int, 1), default=1000, help="steps between samples and long measurements")
    if generates:
        add("--generate", action="store_true", help="do not train: generate from trained weights")
    add("--weights", help="weights file or run folder to use (default: the newest run that fits the flags given)")
    return p


# Flags that a continued run may change: they say when things happen and what is shown, never what is learned.
FREE = set("steps data data_dir out fresh device deterministic compile log_every save_every sample_every".split())
FREE |= set("generate weights eval interpolate export n given".split())
FREE |= set("early_stopping start n_chars n_samples temperature top_k top_p score".split())
FREE |= set("labels fit_steps finetune features".split())


def parse_args(p: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """p.parse_args, and in `given` the flags that really stand on the command line."""
    args = p.parse_args(argv)
    if args.data == "":
        p.error("--data is empty")
    blank = argparse.Namespace(**dict.fromkeys(vars(args)))  # argparse sets no default over an attribute
    args.given = {k: v for k, v in vars(p.parse_args(argv, blank)).items() if v is not None}
    return args


def setup(args: argparse.Namespace) -> torch.device:
    """Choose the device, resolve --device and --bf16 (written back to args), seed torch."""
    found = (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")).type
    device = torch.device(found if args.device == "auto" else args.device)
    if device.type not in (found, "cpu"):
        fail(f"--device {device}: this machine, or this build of torch, has none; --device auto takes what there is")
    try:
        ranks.join(device)
    except (ValueError, RuntimeError) as error:  # RuntimeError: the others cannot be reached
        fail(error)
    sys.excepthook = last_words
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to stop
    args.device = device.type
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what the next line needs
    torch.use_deterministic_algorithms(getattr(args, "deterministic", False), warn_only=True)  # names those that stay
    if args.bf16 is None:
        args.bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        args.bf16 |= device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    # glibc hands every large temporary back to the kernel and faults it in again at the next step. Let it keep them.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    socket.setdefaulttimeout(30)  # seconds, so that no download hangs
    torch.manual_seed(args.seed)
    return device


def last_words(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """What ends a script and is no defect of it gets one line: a full disk, too little memory, another rank's death."""
    kept = "what was saved is kept, and the same command continues from it"
    text = (str(error) or kind.__name__).splitlines()[0][:200]
    if kind is KeyboardInterrupt:
        raise SystemExit(130)
    if ranks.lost(error):
        fail(f"rank {ranks.rank()} has lost the others ({text.split('] ', 1)[-1].split('. ')[0]}); {kept}")
    if isinstance(error, OSError):
        fail(f"{text}; {kept}")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or re.search("allocate memory|size calculation", text):
        fail(f"not enough memory ({text}): try a smaller --batch-size or model; {kept}")
    traceback.print_exception(kind, error, trace, file=sys.__stderr__)


def compiled(function: Callable, wanted: bool) -> Callable:
    """torch.compile(function), or itself: when not wanted or, with a line that says so, when there is no compiler."""
    if wanted and not shutil.which(os.environ.get("CXX", "g++")):
        print("--compile needs a C++ compiler (g++, or what CXX names) and finds none: going on without")
        wanted = False
    return torch.compile(function, dynamic=False) if wanted else function


def download(urls: Iterable[str], path: Path, check: Callable[[Path], object]) -> None:
    """`path` from the first address that gives what `check` accepts (it raises ValueError), whole or not at all.

    Raises OSError that says of every address what was wrong. A server may be silent for half a minute (`setup`) and
    has to send 10 kB a second, but for the first minute.
    """
    part, reasons = path.with_name(f"{path.name}.{os.getpid()}.part"), []
    path.parent.mkdir(parents=True, exist_ok=True)
    for url in urls:
        print(f"fetching {url}", file=sys.stderr)
        try:
            with urllib.request.urlopen(url) as response, open(part, "wb") as file:
                done, began, size = 0, time.monotonic(), response.headers.get("Content-Length")
                for piece in progress(iter(lambda: response.read1(1 << 16), b""), path.name, None):  # noqa: B023
                    file.write(piece)
                    done += len(piece)
                    if done < 1e4 * (time.monotonic() - began - 60):
                        raise OSError("it sends less than 10 kB a second")
                if size and done != int(size):
                    raise OSError(f"it was cut off after {done:,} of {int(size):,} bytes")
            check(part)
            return os.replace(part, path)
        except Exception as error:  # urllib, http.client and `check` have no common one
            reasons.append(f"{url}: {str(error) or type(error).__name__}")
        finally:
            part.unlink(missing_ok=True)
    raise OSError("; ".join(reasons))


def progress(items, title: str, total: int | None, first: int = 0):
    """tqdm over `items` where it is installed and standard error is a terminal."""
    if not find_spec("tqdm"):
        return items
    from tqdm import tqdm

    return tqdm(items, title, total, leave=False, initial=first, disable=None)


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of one epoch: int64 (n,)."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(n))


def batch_indices(n: int, batch_size: int, step: int, seed: int) -> torch.Tensor:
    """Indices (batch_size,) for step 1, 2, ...: the next slice of one endless row of permuted epochs.

    Stateless: step t needs no sampler to be resumed. Every batch has one size: it may end an epoch and begin the next.
    """
    first, slices = (step - 1) * batch_size, []
    while batch_size:
        epoch, start = divmod(first, n)
        slices.append(permutation(n, seed, epoch)[start : start + batch_size])
        first, batch_size = first + len(slices[-1]), batch_size - len(slices[-1])
    return torch.cat(slices)


def save_grid(images: torch.Tensor, path: Path, columns: int = 8) -> None:
    """PNG of images in [0, 1], (N, C, H, W), with torchvision's make_grid; rank 0 writes it."""
    if ranks.rank():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torchvision.utils.save_image(images.detach().float(), path, nrow=columns, padding=1)


def scatter(axes, points: np.ndarray, labels: torch.Tensor) -> None:
    """Points (N, 2) coloured by class (N,), with a legend where it is short, on matplotlib's axes."""
    cmap = "tab10" if labels.max() < 10 else "viridis"
    dots = axes.scatter(points[:, 0], points[:, 1], c=labels.numpy(), s=5, cmap=cmap)
    if 0 < labels.max() < 20:
        axes.legend(*dots.legend_elements(num=None), title="class", fontsize="small")


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] as save_grid's PNG has them: rounded to 0 ... 255."""
    return (images * 255 + 0.5).clamp(0, 255).byte()


def drawn(sample: Callable[[int], torch.Tensor], n: int, seed: int) -> Iterator[torch.Tensor]:
    """n images of sample(k), in [0, 1], as uint8, 500 at a time: the same for the same seed."""
    torch.manual_seed(seed)
    for done in range(0, n, 500):
        yield to_uint8(sample(min(500, n - done)))


def average(decay: float, means: list[torch.Tensor], weights: list[torch.Tensor], n: torch.Tensor) -> None:
    """AveragedModel's moving average; early on over about a tenth of the steps so far, so that it forgets the start."""
    weight = (10 / (n + 10)).clamp(min=1 - decay)
    for mean, new in zip(means, weights, strict=True):
        if mean.is_floating_point():  # else BatchNorm's counter, which nothing reads
            mean.lerp_(new, weight.to(mean.dtype))


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The whole set on the GPU when it takes less than half of what is free there; else where it is."""
    fits = device.type == "cuda" and x.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    return x.to(device) if fits else x


def export(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    """Write `path` (TorchScript) and its .pt2 (torch.export), read both back and hold them against the model.

    inputs: an example batch of at least 3 for a model in eval mode; the exported ones take any batch size.
    """
    warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # TorchScript is what the courses hand in
    model = model.to(memory_format=torch.contiguous_format)  # torch.export warns of others
    archive, batch = path.with_suffix(".pt2"), torch.export.Dim("batch")
    two, outputs = tuple(x[:2] for x in inputs), lambda y: y if isinstance(y, tuple) else (y,)
    torch.jit.save(torch.jit.trace(model, two), path)
    torch.export.save(torch.export.export(model, two, dynamic_shapes=({0: batch},) * len(two)), archive)
    shapes = " and ".join(f"({', '.join(['B', *map(str, x.shape[1:])])})" for x in inputs)
    for file, again in ((path, torch.jit.load(path)), (archive, torch.export.load(archive).module())):
        with torch.no_grad():
            pairs = zip(outputs(again(*inputs)), outputs(model(*inputs)), strict=True)
            error = max((a - b).abs().max().item() for a, b in pairs)
        if not error < 1e-4:
            fail(f"{file} differs from the model by {error:.1e}")
        print(f"{file}: {shapes} in, within {error:.0e} of the model")
