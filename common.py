"""What every script calls: flags, device, batches, checkpoints (save, load, find), image grids.

No model, loss, optimiser or loop lives here. What a reader of the science never needs is in plumbing/.
"""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plumbing.data.batches import batch_indices, permutation, rows, to_device  # noqa: F401
from plumbing.run.checkpoints import SHIPPED, load, save  # noqa: F401
from plumbing.run.networks import builder, first_misfit, in_eval_mode, no_model  # noqa: F401
from plumbing.run.pictures import export_images, save_grid, to_uint8
from plumbing.run.run import BESIDE  # noqa: F401
from plumbing.system import files, flags, hardware, ranks
from plumbing.system.flags import Parser, largest, number
from plumbing.system.process import fail, run, running  # noqa: F401

GRID = 400  # generated images beyond which each gets a file of its own
FREE = ("run", "trained weights")  # groups of flags that say when things happen and what is shown, not what is learned
NOT_OF_RUNS = ("seed", "bf16", "encoding")  # what --generate and the like heed themselves: it chooses no run


def parser(
    doc: str,
    steps: int,
    batch_size: int,
    lr: float | None,
    log_every: int = 100,
    sample_every: int = 1000,
    names: str = "mnist, cifar10, digits, lfw, lfw-all",
    lr_help: str = "learning rate",
    makes: str = "",
) -> Parser:
    """A parser with the flags that every script spells the same way; the numbers are their defaults.

    names: of data sets. makes: what --generate makes, "images" or "text", where there is that flag.
    """
    p = Parser(doc)
    for title in ("data", "model", "optimisation"):  # the order in which --help shows them
        p.group(title)
    add = p.group("data")
    add("--data", help=f"{names}, or your own path or URL (default: the script's)")
    add = p.group("optimisation")
    add("--batch-size", type=number(int, 1, below=100_001), default=batch_size, help="samples per step")
    add("--lr", type=number(float, 0, above=True), default=lr, help=lr_help)
    add("--seed", type=number(int, 0), default=0, help="seed of weights, batches and noise")
    add("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 autocast (default: where the hardware has it)")
    add = p.group("run")
    add("--steps", type=number(int, 1), default=steps, help="in all; with more a run goes on, its schedule drawn anew")
    add("--data-dir", default="data", help="where data sets, downloads and decoded images are kept")
    add("--out", help="run folder (default: runs/SCRIPT-DATA-VARIANT); the same command continues what it holds")
    add("--fresh", action="store_true", help="start again; an existing run folder is moved aside, not deleted")
    add("--device", type=hardware.device_name, default="auto", metavar="NAME", help="auto, cuda, mps or cpu")
    add("--deterministic", action="store_true", help="on a GPU: only kernels that give the same bits each time, slower")
    add("--compile", action="store_true", help="torch.compile: a slow first step, faster ones after it")
    add("--log-every", type=number(int, 1), default=log_every, help="steps between rows of metrics.csv")
    add("--save-every", type=number(int, 1), default=1000, help="steps between checkpoints")
    add("--sample-every", type=number(int, 1), default=sample_every, help="steps between samples and long measurements")
    add = p.group("trained weights")
    weights_help = "file or run folder to use (default: the newest run that fits) or to begin a training with"
    add("--weights", help=weights_help)
    if makes:
        add("--generate", action="store_true", help=f"do not train: make {makes} with trained weights")
    if makes == "images":
        add("--n", type=number(int, 1), default=64, help="images that --generate makes")
    return p


def parse_args(p: Parser, argv: list[str] | None, **used_in: tuple[str, ...]) -> argparse.Namespace:
    """p.parse_args, with --bf16 resolved for this machine.

    used_in: by flag where alone it does something, "train" or verbs such as "generate"; elsewhere it is refused.
    Besides the flags the result holds `given`, those that really stand on the command line, `science`, the names of
    those that decide what is learned, `largest`, the one to blame when memory does not suffice, and `training`.
    """
    args = p.parse_args(argv)
    if args.data == "":
        p.error("--data is empty")
    free = {action.dest for group in p._action_groups if group.title in FREE for action in group._group_actions}
    science = [name for name in vars(args) if name not in free]
    to_blame = largest(p, vars(args))
    for action in p._actions:
        action.default = argparse.SUPPRESS
    given = vars(p.parse_args(argv))
    training = flags.modes(p, given, used_in | {"n": ("generate",)}) == {"train"}
    args.bf16 = hardware.bf16(args.device, args.bf16)
    return argparse.Namespace(**vars(args), given=given, science=science, largest=to_blame, training=training)


def compiled(function: Callable, wanted: bool) -> Callable:
    """torch.compile(function), or itself: when not wanted or, with a line that says so, when there is no compiler."""
    if not wanted:
        return function
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("--compile needs a C++ compiler (g++, or what CXX names) and finds none: going on without")
        return function
    files.say("compiling: the first steps take up to a minute")
    return torch.compile(function, dynamic=False)


def for_training(model: nn.Module, compile: bool) -> nn.Module:
    """The model as the training step calls it: gradients are averaged over the ranks; compiled where that is wanted."""
    return compiled(ranks.distributed(model), compile)


def cosine(step: int, steps: int, warmup: int, peak: float = 1.0) -> float:
    """The learning rate of step t = 1, 2, ...: peak · min(1, t/warmup) · (1 + cos(π (t − 1)/steps))/2."""
    return peak * min(1, step / max(1, warmup)) * ((1 + math.cos(math.pi * (step - 1) / steps)) / 2)


@torch.no_grad()
def average(mean: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """mean ← mean + w (model − mean) in step t = 1, 2, ..., of weights and buffers, w = max(10/(t + 9), 1 − decay).

    10/(t + 9), polynomial decay (Shamir & Zhang 2013, arXiv 1212.1824), averages about a tenth of the steps so far.
    """
    pairs = zip((*mean.parameters(), *mean.buffers()), (*model.parameters(), *model.buffers()), strict=True)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]  # else BatchNorm's counter, which nothing reads
    torch._foreach_lerp_(*zip(*floats, strict=True), max(10 / (step + 9), 1 - decay))


def find_weights(script: str, name: str, args: argparse.Namespace, any_data: bool = False) -> tuple[dict, Path]:
    """What the weights file `name` holds that the flags mean, and its path.

    From --weights or the run folder --out; else the newest of runs/SCRIPT-*, then those shipped in weights/, whose
    numbers do not contradict the flags given. any_data: --data says what to do now, not what was trained on.
    """
    ranks.leave()
    given = {k: v for k, v in args.given.items() if k in args.science and k not in NOT_OF_RUNS}
    if args.weights or args.out:
        named = Path(args.weights or args.out)
        paths = [named if named.is_file() else named / name]
    else:
        paths = sorted(Path("runs").glob(f"{script}-*/{name}"), key=os.path.getmtime, reverse=True)
        paths += sorted(SHIPPED.glob(f"{script}*.pth"))
    if any_data or args.weights or args.out:  # or a data set that has moved since
        given.pop("data", None)
    best = f" in runs/{script}-*"
    for path in paths:
        state = load(path, (script,), "trained_on")
        known = files.read_json(path.parent / "config.json").get("flags", {}) | state  # a shipped file has no config
        differ = [f"{k} {known.get(k, 'unknown')}" for k, v in given.items() if known.get(k) != v]
        if not differ:
            shipped = " (shipped)" if path.resolve().parent == SHIPPED else ""
            print(f"weights: {path}{shipped}, made from {state['trained_on']}", file=sys.stderr)
            if "a substitute" in state["trained_on"] and not (args.weights or args.out):
                others = "".join(f", or --weights {path}" for path in SHIPPED.glob(f"{script}*.pth"))
                said = f"WARNING: so they know that substitute only. For others train again with --fresh{others}"
                print(said, file=sys.stderr)
            return state, path
        best = f" fit these flags: {path} has {', '.join(differ)}"
    fail(f"no trained weights{best}; train first, or name some with --weights")


def begin_with(
    script: str, name: str, args: argparse.Namespace, shape: tuple[str, ...]
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """For a training that begins with the weights file that --weights names: args with its network, and what it holds.

    shape: the numbers that decide the network, which flags may not contradict. Without the flag: (args, {}).
    """
    if not args.weights:
        return args, {}
    path = Path(args.weights)
    state = load(path if path.is_file() else path / name, (script,), "trained_on")
    differ = [f"--{k.replace('_', '-')} {v}" for k, v in args.given.items() if k in shape and v != state.get(k)]
    if differ:
        fail(f"{', '.join(differ)}: other than in --weights {path}, whose network this training takes over")
    files.say(f"begins with the weights of {path}, step {state['step']}, made from {state['trained_on']}")
    network = {k: state[k] for k in shape if k in state}
    return argparse.Namespace(**vars(args) | network), state


def load_beside(D: nn.Module, script: str, args: argparse.Namespace) -> None:
    """Into D the discriminator.pth beside the generator that --weights names; a line where there is none."""
    named = Path(args.weights)
    path = (named.parent if named.is_file() else named) / "discriminator.pth"
    if not path.exists():
        files.say(f"there is no {path}: D begins untrained")
        return
    try:
        D.load_state_dict(load(path, (script,), "trained_on", network="D")["state_dict"])
    except (KeyError, RuntimeError) as error:
        no_model(error)


def output_folder(args: argparse.Namespace, weights: Path) -> Path:
    """Where what is made of trained weights goes: --out, else beside them, or into runs/ for those that ship."""
    folder = Path("runs", f"{weights.stem}-shipped") if weights.resolve().parent == SHIPPED else weights.parent
    if args.weights and args.out:  # else --out is where the weights were found
        folder = Path(args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{folder} cannot be made: {error.strerror}")
    if not os.access(folder, os.W_OK):
        fail(f"{folder} cannot be written to")
    return folder


def save_generated(batches: Iterable[Tensor], n: int, folder: Path) -> None:
    """n uint8 images, (B, C, H, W) batch after batch: as a grid, or more than GRID of them as files in generated/."""
    if n > GRID:
        export_images(batches, n, folder / "generated")
        return
    save_grid(torch.cat(list(batches)) / 255, folder / "generated.png", math.ceil(n**0.5))
    print(folder / "generated.png")


@torch.no_grad()
def drawn(sample: Callable[[int], Tensor], n: int, seed: int) -> Iterator[Tensor]:
    """n images of sample(k), (k, C, H, W) in [0, 1], as uint8, k up to 500 at a time: the same for the same seed."""
    torch.manual_seed(seed)
    for done in range(0, n, 500):
        yield to_uint8(sample(min(500, n - done)))
