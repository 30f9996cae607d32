"""Helpers that every script calls: flags, batches, averages, checkpoints, trained weights, image grids.

Models, losses, optimisers and loops stand in the scripts. A reader of the science may want two files
of plumbing/: run/run.py (files of a run, seeds) and judge/lenet.py (FD-LeNet).
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

from plumbing.data import images
from plumbing.data.batches import batches  # noqa: F401
from plumbing.run.checkpoints import SHIPPED, load, save  # noqa: F401
from plumbing.run.export import write_npz
from plumbing.run.networks import in_eval_mode, or_fail  # noqa: F401
from plumbing.run.pictures import export_images, save_grid, to_uint8
from plumbing.run.run import write_results
from plumbing.system import files, hardware, ranks
from plumbing.system.flags import Parser, amount, between, count, natural, number, positive, share  # noqa: F401
from plumbing.system.process import RESUME, fail, program, running  # noqa: F401

GRID = 400  # generated images above which each image gets a file
SCORES = {  # how the scores of fid.Judge are printed
    "fid": "FID {:.3g}, the lower the better",
    "fd_lenet": "FD-LeNet {:.3g}, the lower the better: Fréchet distance on a small classifier's features, not FID",
    "class_entropy": "class entropy {:.3f} nats of the samples; of ten classes that come alike 2.303",
}
NOT_OF_RUNS = ("seed", "bf16", "encoding")  # flags that --generate and the like read; they select no run


def parser(
    script: str,
    weights_name: str,
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
    """Return a parser with the flags that every script spells the same way. The numbers are their defaults.

    script: name of the script. weights_name: its weights file in a run folder, such as vae.pth. names: of data sets.
    makes: "images" or "text" for a script that has --generate.
    """
    p = Parser(doc)
    p.script, p.weights_name = script, weights_name
    for title in ("data", "model", "optimisation"):  # the order in --help
        p.group(title)
    add = p.group("data")
    add("--data", help=f"{names}, or your own path or URL (default: the script's)")
    add = p.group("optimisation")
    add("--batch-size", type=between(1, 100_000), default=batch_size, help="samples per step")
    add("--lr", type=positive, default=lr, help=lr_help)
    add("--seed", type=natural, default=0, help="seed of weights, batches and noise")
    add("--bf16", action=argparse.BooleanOptionalAction, help="bfloat16 autocast (default: if the hardware has it)")
    add = p.group("run")
    add("--steps", type=count, default=steps, help="total number of training steps; a larger number continues a run")
    add("--data-dir", default="data", help="folder of data sets, downloads and decoded images")
    add("--out", help="run folder (default: runs/SCRIPT-DATA-FLAGS)")
    add("--fresh", action="store_true", help="train again; an existing run folder is moved aside")
    add("--device", type=hardware.device_name, default="auto", metavar="NAME", help="auto, cuda, mps or cpu")
    add("--deterministic", action="store_true", help="on a GPU: slower kernels that give the same bits each time")
    add("--compile", action="store_true", help="torch.compile: a slow first step, then faster ones")
    add("--log-every", type=count, default=log_every, help="steps between rows of metrics.csv")
    add("--save-every", type=count, default=1000, help="steps between checkpoints")
    add("--sample-every", type=count, default=sample_every, help="steps between samples and long measurements")
    add = p.group("trained weights")
    add("--weights", help="file or run folder to use (default: the newest run that fits), or to start a training from")
    if makes:
        add("--generate", action="store_true", help=f"do not train: make {makes} with trained weights")
    if makes == "images":
        add("--n", type=count, default=64, help="images that --generate makes")
    return p


def run(args: argparse.Namespace, train: Callable, use: Callable) -> Any:
    """Return train(args, device), which is the run, or do what use(args, device) does with trained weights."""
    with running(args) as device:
        if not args.training:
            return use(args, device)
        try:
            return train(adopt_weights(args), device)
        except BaseException as error:
            error.add_note(RESUME)
            raise


def for_training(model: nn.Module, compile: bool) -> nn.Module:
    """Return the model for the training step: gradients are averaged over ranks, and it is compiled if asked for."""
    model = ranks.distributed(model)
    if not compile:
        return model
    if not shutil.which(os.environ.get("CXX", "g++")):
        print("WARNING: --compile is left out. It needs a C++ compiler (g++, or the one that CXX names).")
        return model
    files.say("compiling: the first steps take up to a minute")
    return torch.compile(model, dynamic=False)


@torch.no_grad()
def average(mean: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """mean ← mean + w (model − mean) in step t = 1, 2, ..., of weights and buffers, w = max(10/(t + 9), 1 − decay).

    10/(t + 9) averages about the last tenth of the steps (polynomial decay, Shamir & Zhang 2013, arXiv 1212.1824).
    """
    pairs = zip((*mean.parameters(), *mean.buffers()), (*model.parameters(), *model.buffers()), strict=True)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]  # not BatchNorm's counter
    torch._foreach_lerp_(*zip(*floats, strict=True), max(10 / (step + 9), 1 - decay))


def weights_file(named: str, name: str) -> Path:
    """Return the weights file that a flag names: a file, or `name` in a run folder."""
    return Path(named) if Path(named).is_file() else Path(named, name)


def adopt_weights(args: argparse.Namespace) -> argparse.Namespace:
    """Return the flags of a training that starts from the weights file of --weights, with its contents as `begin`.

    Flags of the group "model" that were not typed are those of the file. Without --weights return args.
    """
    if not args.weights:
        return args
    path = weights_file(args.weights, args.weights_name)
    begin = load(path, (args.script,))
    model_flags = [name for name, title in args.science.items() if title == "model"]
    adopted = {name: begin[name] for name in model_flags if name in begin and name not in args.typed}
    files.say(f"starts from the weights {path}, step {begin['step']}, trained on {begin['trained_on']}")
    files.say(f"model flags of these weights: {', '.join(f'{k} {v}' for k, v in adopted.items())}")
    return argparse.Namespace(**vars(args) | adopted | {"begin": begin})


def load_discriminator(args: argparse.Namespace) -> dict[str, Any]:
    """Return the contents of discriminator.pth beside the generator of --weights. Without that file return {}."""
    if not args.weights:
        return {}
    path = weights_file(args.weights, args.weights_name).with_name("discriminator.pth")
    if path.exists():
        return load(path, (args.script,), network="D")
    files.say(f"WARNING: there is no {path}. The discriminator starts untrained.")
    return {}


def find_weights(args: argparse.Namespace, any_data: bool = False) -> tuple[dict[str, Any], Path]:
    """Find the weights that --generate and the like use. Return the file's contents and its path.

    With --weights or --out that is the named file. Otherwise it is the newest run of this script, or a file in
    weights/, that agrees with all typed flags.

    any_data: --data names the images to work on, not the training set.
    """
    typed = {k: v for k, v in args.typed.items() if k in args.science and k not in NOT_OF_RUNS}
    named = args.weights or args.out
    if named:
        paths = [weights_file(named, args.weights_name)]
    else:
        paths = sorted(Path("runs").glob(f"{args.script}-*/{args.weights_name}"), key=os.path.getmtime, reverse=True)
        paths += sorted(SHIPPED.glob(f"{args.script}*.pth"))
    if any_data or named:  # a named run may have been trained on a data set that has moved since
        typed.pop("data", None)
    reason = f"There are no trained weights in runs/{args.script}-*."
    for path in paths:
        config = load(path, (args.script,))
        known = files.read_json(path.parent / "config.json").get("flags", {}) | config  # a shipped file has no json
        differ = [f"{k} {known.get(k, 'unknown')}, not {v}" for k, v in typed.items() if known.get(k) != v]
        if not differ:
            announce_weights(path, config, bool(named))
            return config, path
        reason = f"No trained weights agree with these flags: {path} has {', '.join(differ)}."
    fail(f"{reason} Train first, or name weights with --weights.")


def announce_weights(path: Path, config: dict[str, Any], named: bool) -> None:
    """Print which weights are used, and a warning where they were trained on a substitute."""
    shipped = " (shipped)" if path.resolve().parent == SHIPPED else ""
    print(f"weights: {path}{shipped}, trained on {config['trained_on']}", file=sys.stderr)
    if "a substitute" in config["trained_on"] and not named:
        others = "".join(f", or use --weights {path}" for path in SHIPPED.glob(f"{config['script']}*.pth"))
        print(f"WARNING: these weights know the substitute only. Train again with --fresh{others}.", file=sys.stderr)


class Trained:
    """Trained weights in use: config (the file's contents), path, and the folder for what is made with them."""

    def __init__(self, args: argparse.Namespace, any_data: bool = False) -> None:
        ranks.leave()  # one process is enough
        self.args = args
        self.config, self.path = find_weights(args, any_data)

    @property
    def folder(self) -> Path:
        """--out, else the folder of the weights, or a folder in runs/ for shipped weights. It is made here."""
        shipped = self.path.resolve().parent == SHIPPED
        folder = Path("runs", f"{self.path.stem}-shipped") if shipped else self.path.parent
        if self.args.weights and self.args.out:  # else --out names the weights
            folder = Path(self.args.out)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"{folder} cannot be made: {error.strerror}. Name another folder with --out.")
        if not os.access(folder, os.W_OK):
            fail(f"{folder} cannot be written to. Name another folder with --weights and --out.")
        return folder

    def data(self, others: bool = False) -> images.ImageData:
        """Return the data set of the training. others: also another one that --data names."""
        return images.load_again(self.args.data, self.args.data_dir, self.config, others)

    def read(self, paths: list[str]) -> Tensor:
        """Return image files as the training images were: uint8 (N, C, S, S)."""
        return images.from_files(paths, self.config["channels"], self.config["image_size"])

    def write_npz(self, name: str, describe: Callable[[Tensor], dict[str, Tensor]], channels: int) -> None:
        """Write describe(images) for all images of --data, or of the training, as an .npz file. See write_npz."""
        path = Path(name)
        if self.args.out and len(path.parts) == 1:
            path = self.folder / path
        source = self.args.data or self.config["data"]
        write_npz(path, describe, source, self.args.data_dir, self.config["image_size"], channels)

    def finish(self, results: dict, meaning: dict[str, str], folder: Path | None = None, data: Any = "") -> None:
        """Write and print the results of an evaluation. See write_results.

        folder: where the results go, unless it is self.folder. data: what was measured on, if not the training's.
        """
        own = self.path.name == self.args.weights_name
        name = "results.json" if own else f"results-{self.path.stem}.json"
        path = (folder or self.folder) / name
        write_results(path, self.path, self.config, results, meaning, self.args.data_dir, str(data))


def save_generated(samples: Iterable[Tensor], n: int, folder: Path) -> None:
    """Write n uint8 images, in batches (B, C, H, W), as the grid generated.png, or more than GRID as single files."""
    if n > GRID:
        export_images(samples, n, folder / "generated")
        return
    save_grid(torch.cat(list(samples)) / 255, folder / "generated.png", math.ceil(n**0.5))
    print(folder / "generated.png")


@torch.no_grad()
def sample_batches(sample: Callable[[int], Tensor], n: int, seed: int) -> Iterator[Tensor]:
    """Yield n images of sample(k), (k, C, H, W) in [0, 1], as uint8 batches of at most 500. A seed fixes them."""
    torch.manual_seed(seed)
    for done in range(0, n, 500):
        yield to_uint8(sample(min(500, n - done)))
