"""The run folder: checkpoints, metrics, curves, events, and going on where a run stopped.

runs/vae-mnist-tsinghua-z10/
    last.pth                   everything that training needs to go on
    lock                       held while a process trains here; a dead one's is free
    vae.pth                    the weights, and the numbers that rebuild the model
    metrics.csv  curves.png    averages since the last row, per split; TensorBoard events hold the same
    config.json  results.json  what was asked for, and what was measured at the end
"""

import argparse
import csv
import io
import json
import math
import os
import pickle
import signal
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
import torchvision

import ranks
from common import FREE, fail, progress


def write_whole(path: Path, write: Callable[[BinaryIO], None], check: Callable[[Path], None] | None = None) -> None:
    """Write under a temporary name, flush to disk, check, rename: the old file or the new is there, never a half."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)  # a full disk needs the room
        raise


def intact(path: Path) -> None:
    """Hold a .pth against the checksums inside: torch.load does not, and takes a flipped bit for a weight."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise OSError(f"it is damaged, {damaged} in it is not what was written")


def save(state: dict[str, Any], path: Path) -> None:
    """torch.save, whole and read back, or not at all. Raises OSError."""
    try:
        write_whole(path, lambda file: torch.save(state, file), intact)
    except RuntimeError as error:  # what a full disk raises somewhere inside torch.save
        raise OSError(f"{path} cannot be written: {error}") from None


def load(path: Path, scripts: tuple[str, ...], key: str, hint: str = "") -> dict[str, Any]:
    """The dictionary with `key` that one of `scripts` saved, on the CPU. Tensors and plain values: no code runs."""
    try:
        if zipfile.is_zipfile(path):
            intact(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        fail(f"{path} was refused: it is no weights file, or one that runs code when it is loaded{hint}")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}{hint}")
    except Exception as error:  # a foreign or damaged file can raise anything
        fail(f"{path} cannot be read as a checkpoint: {str(error)[:200] or error!r}{hint}")
    script = state.get("script") if isinstance(state, dict) else type(state)
    if script not in scripts:
        fail(f"{path} was not saved by {' or '.join(scripts)}.py: {script}{hint}")
    if key not in state:
        fail(f"{path} is another kind of file of {script}.py: it holds no {key}{hint}")
    return state


def lock(folder: Path) -> Any:
    """Hold folder/lock as long as what is returned lives: the file says who does. A process that died holds nothing."""
    if not find_spec("fcntl"):  # Windows
        return None
    import fcntl

    file, me = open(folder / "lock", "a+"), f"process {os.getpid()} on {socket.gethostname()}"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        if isinstance(error, BlockingIOError) and (holder := file.read()) != me:
            fail(f"{folder} is in use by {holder}: let it end, stop it, or name another folder with --out")
        return None  # this process's own, or a file system without locks
    file.truncate(0)
    file.write(me)
    file.flush()
    return file


def find_weights(script: str, name: str, args: argparse.Namespace, write: bool = True) -> tuple[dict[str, Any], Path]:
    """The weights file `name` that the flags mean, and the folder for what is made of them.

    From --weights or the run folder --out; else the newest of runs/SCRIPT-*, then the file shipped in weights/, whose
    numbers do not contradict the flags given. The folder is made if it is to be written to. One rank does all this.
    """
    ranks.leave()
    shipped = Path(__file__).parent / f"weights/{script}.pth"
    paths = sorted(Path("runs").glob(f"{script}-*/{name}"), key=os.path.getmtime, reverse=True)
    paths += [shipped] if shipped.exists() else []
    named, given = Path(args.weights or args.out or ""), dict(args.given)
    if args.weights or args.out:
        paths = [named if named.is_file() else named / name]
        given.pop("data", None)  # a data set may have moved since
    for path in paths:
        state = load(path, (script,), "trained_on")
        differ = [f"{k} {state[k]}" for k, v in given.items() if state.get(k, v) != v]
        if not differ:
            print(
                f"weights: {path}{' (shipped)' * (path == shipped)}, made from {state['trained_on']}", file=sys.stderr
            )
            folder = Path("runs", f"{script}-shipped") if path == shipped else path.parent
            try:
                if write:
                    folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                fail(f"{folder} cannot be made: {error.strerror}")
            if write and not os.access(folder, os.W_OK):
                fail(f"{folder} cannot be written to")
            return state, folder
    best = f" fit these flags: {path} has {', '.join(differ)}" if paths else f" in runs/{script}-*"
    fail(f"no trained weights{best}; train first, or name some with --weights")


def read_json(path: Path) -> dict[str, Any]:
    """What a file of ours holds; nothing where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


class State(dict):
    """What a run needs to go on besides weights; last.pth keeps it."""

    state_dict, load_state_dict = dict.copy, dict.update

    def plan(self, steps: int) -> None:
        """Keep the steps that a schedule is drawn for, and say so when a continued run changes them."""
        if self["steps"] != steps:
            print(f"the cosine was drawn for {self['steps']} steps and goes on as one for {steps}")
        self["steps"] = steps


class Run:
    """The folder of one training: continues it, logs, saves, and stops it well.

    Args:
        name: the folder under runs/, unless --out names another; begins with the script's name.
        data: printed, recorded, and compared when the run is continued.
        objects: models and optimisers, by the name under which last.pth keeps their state.
        weights: file name -> (model, the plain numbers that rebuild it).
    """

    KEPT = ("script", "flags", "step", "seconds", "rows", "sums")  # last.pth holds these beside the objects' states

    def __init__(self, args: argparse.Namespace, name: str, data: object, objects: dict, weights: dict) -> None:
        self.args, self.objects, self.weights = args, objects, weights
        self.script, self.folder = name.split("-")[0], Path(args.out or f"runs/{name}")
        self.flags = {k: v for k, v in vars(args).items() if k not in FREE} | {"data": str(data)}
        self.step, self.seconds, self.rows, self.sums, self.saved = 0, 0.0, [], {}, None
        sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in objects.items() if hasattr(m, "parameters")}
        config = {"command": sys.argv, "flags": vars(args), "data": f"{data}{data.note}", "parameters": sizes}
        config |= {"python": sys.version, "versions": {m.__name__: m.__version__ for m in (torch, torchvision, np)}}
        config |= {"ranks": ranks.size()}
        if args.batch_size % ranks.size():
            fail(f"--batch-size {args.batch_size}, of all ranks together, cannot be divided by {ranks.size()} ranks")
        own = {k: v for k, v in vars(args).items() if k not in ("out", "data_dir", "data", "device", "given")}
        own |= {"data": str(data)}  # the rest decides what ranks do together
        for r, flags in enumerate(ranks.objects(own)):
            if differ := [f"{k} {flags[k]} there, {v} here" for k, v in own.items() if flags[k] != v]:
                fail(f"rank {r} was started otherwise than rank {ranks.rank()}: {'; '.join(differ)}")
        try:
            last, self.evaluated = ranks.from_first(None if ranks.rank() else self._open())
            if last:
                self._continue(last)
            if not ranks.rank():
                write_json(self.folder / "config.json", config)
        except (OSError, ValueError) as error:  # ValueError: --fresh cannot rename "."
            fail(f"the run folder cannot be written: {error}; name another with --out")
        print(f"data: {data}{data.note}\nparameters: {sizes}")
        print(f"run folder: {self.folder}, {self.step} of {args.steps} steps done")
        if args.device == "cuda" and not args.deterministic:
            print(
                "on a GPU gradients of convolutions, embeddings and indexing are added in any order, so runs differ by"
            )
            print("rounding; --deterministic takes slower kernels, with which they do not")
        if missing := [m for m in ("tqdm", "tensorboard", "matplotlib", "sklearn") if not find_spec(m)]:
            print(f"not installed, so what they show is left out: {', '.join(missing)}")

    def _open(self) -> tuple[dict[str, Any] | None, bool]:
        """Make the folder, for --fresh a new one; (last.pth if there is one, whether a finished run was evaluated)."""
        if self.args.fresh and self.folder.exists() and not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
            self.lock = lock(self.folder)
            names = (f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}{'-' * k}" for k in range(99))
            aside = next(path for path in map(self.folder.with_name, names) if not path.exists())
            print(f"--fresh: the old run is now {self.folder.rename(aside)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder)
        if (self.folder / "last.pth").exists():
            hint = "; take it from a copy, or start again with --fresh, which keeps this folder under another name"
            last = load(self.folder / "last.pth", (self.script,), "flags", hint)
            return last, read_json(self.folder / "results.json").get("step") == last["step"]
        there = read_json(self.folder / "config.json").get("flags", {})  # of a run that was killed before it saved?
        foreign = any(there.get(k) != v for k, v in self.flags.items() if k != "data")
        if foreign and (found := sorted(self.folder.glob("*.pth"))):
            fail(f"{found[0]} is of another run and could be lost here: name another --out, or use --fresh")
        return None, False

    def _continue(self, last: dict[str, Any]) -> None:
        there = last["flags"]
        differ = [f"{k} {there.get(k)} there, {v} here" for k, v in self.flags.items() if there.get(k) != v]
        if differ:
            fail(f"{self.folder} was made with other flags ({'; '.join(differ)}): use those, another --out, or --fresh")
        try:
            for key, thing in self.objects.items():
                thing.load_state_dict(last[key])
        except (KeyError, RuntimeError, ValueError) as error:
            fail(f"{self.folder}/last.pth does not fit this version of the model: {error}; use --fresh")
        vars(self).update({key: last[key] for key in self.KEPT})
        self.saved = self.step

    def save_weights(self, name: str, model: Any, numbers: dict[str, Any]) -> None:
        """Write the file `name`: the model, and the plain numbers that rebuild it. Rank 0 does."""
        if ranks.rank():
            return
        weights = {key: value.cpu() for key, value in model.state_dict().items()}
        save({"script": self.script, "step": self.step, **numbers, "state_dict": weights}, self.folder / name)

    def save(self) -> None:
        """Write the weights files, then last.pth (whose step they have even after a kill), and draw curves.png."""
        self.check()
        for name, thing in self.objects.items():
            values = thing.state_dict().values() if isinstance(thing, torch.nn.Module) else ()
            if not all([value.isfinite().all() for value in values]):
                self.diverged(f"weights of {name} are not finite")
        self.saved = self.step
        if ranks.rank():
            return
        for name, (model, numbers) in self.weights.items():
            self.save_weights(name, model, numbers)
        state = {key: getattr(self, key) for key in self.KEPT}
        save(state | {key: thing.state_dict() for key, thing in self.objects.items()}, self.folder / "last.pth")
        if self.rows and find_spec("matplotlib"):
            self._draw_curves()

    def finished(self) -> bool:
        """Whether training and evaluation are done, said in one line."""
        if self.step < self.args.steps or not self.evaluated:
            return False
        print(f"{self.folder} is finished at step {self.step}: --steps for more, --fresh to start again")
        ranks.leave()
        return True

    def steps(self) -> Iterator[int]:
        """The steps still to do. Saves at --save-every, at the end, and on Ctrl-C or SIGTERM before it stops.

        Step t draws its noise from a generator seeded by (seed, t): what is evaluated in between does not matter, and a
        continued run needs no random state.
        """
        self.events = None
        if find_spec("tensorboard") and not ranks.rank():
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(self.folder, purge_step=self.step + 1)
        caught, told = [0], ranks.Latest()

        def stop(number: int, _) -> None:
            caught.append(number)
            # A second Ctrl-C does not wait for the step to end. Under torchrun a rank can get the same signal twice.
            signal.signal(number, signal.SIG_DFL if ranks.size() == 1 else signal.SIG_IGN)

        handlers = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        self.bar = progress(range(self.step + 1, self.args.steps + 1), self.folder.name, self.args.steps, self.step)
        try:
            for step in self.bar:
                began, self.step = time.perf_counter(), step
                noise = int(np.random.SeedSequence((self.args.seed, step)).generate_state(1)[0])
                torch.default_generator.manual_seed(
                    noise
                )  # torch.manual_seed takes 1 ms where CUDA has not been started
                if self.args.device in ("cuda", "mps"):
                    getattr(torch, self.args.device).manual_seed(noise)
                yield step
                self.seconds += time.perf_counter() - began
                stopped = told.tell(caught[-1]) or (step == self.args.steps and told.settle())
                if stopped or step % self.args.save_every == 0 or step == self.args.steps:
                    self.save()
                if stopped:
                    print(f"stopped at step {step} and saved; the same command continues")
                    ranks.leave()
                    raise SystemExit(128 + stopped)
        except GeneratorExit:  # the script has left its loop
            told.settle()
            raise
        finally:
            for s, handler in handlers.items():
                signal.signal(s, handler)
            if self.events:
                self.events.close()

    def add(self, split: str, **terms: torch.Tensor | float) -> None:
        """Add one step's values to the averages of the next row; tensors stay on their device until then."""
        sums = self.sums.setdefault(split, {})
        for name, value in ({"n": 1} | terms).items():
            sums[name] = sums.get(name, 0) + (value.detach() if isinstance(value, torch.Tensor) else value)

    def check(self) -> dict[str, dict[str, float]]:
        """Averages since the last row. What is not finite ends the run before it is saved over something good."""
        if ranks.size() > 1:
            floats = {split: {name: float(value) for name, value in sums.items()} for split, sums in self.sums.items()}
            parts = ranks.objects(floats)
            mean = lambda split, name: sum(part[split][name] for part in parts) / len(parts)
            self.sums = {split: {name: mean(split, name) for name in sums} for split, sums in floats.items()}
        means = {
            split: {name: float(value) / sums["n"] for name, value in sums.items() if name != "n"}
            for split, sums in self.sums.items()
        }
        bad = [f"{split} {k} {v}" for split, terms in means.items() for k, v in terms.items() if not math.isfinite(v)]
        if bad:
            self.diverged(", ".join(bad))
        return means

    def diverged(self, what: str) -> NoReturn:
        kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "nothing was saved"
        fail(f"step {self.step}: {what}; {kept} in {self.folder}. Try a lower --lr")

    def log(self) -> None:
        """Write the averages since the last row: metrics.csv, TensorBoard, and the bar or a line."""
        text = []
        for split, means in self.check().items():
            self.rows.append({"step": self.step, "split": split} | means)
            text.append(f"{split} " + " ".join(f"{name} {mean:.4g}" for name, mean in means.items()))
            for name, mean in means.items() if self.events else ():
                self.events.add_scalar(f"{name}/{split}", mean, self.step)
        self.sums = {}
        if ranks.rank():
            return
        table = io.StringIO(newline="")  # all of it: a continued run leaves no row twice
        writer = csv.DictWriter(table, dict.fromkeys(key for row in self.rows for key in row))
        writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.folder / "metrics.csv", lambda file: file.write(table.getvalue().encode()))
        rate = self.step / max(self.seconds, 1e-9)
        if getattr(self.bar, "disable", True):
            left = f"{(self.args.steps - self.step) / rate / 60:.1f} min left"
            print(f"step {self.step}/{self.args.steps}", *text, f"{rate:.1f} steps/s", left, sep=" | ", flush=True)
        else:
            self.bar.set_postfix_str(text[0])  # the bar itself shows speed and time left

    def _draw_curves(self) -> None:
        """curves.png: a panel per term, a line per split."""
        from matplotlib.figure import Figure

        terms = dict.fromkeys(key for row in self.rows for key in row if key not in ("step", "split"))
        figure = Figure((4 * len(terms), 3), layout="constrained")
        for i, term in enumerate(terms, 1):
            axes = figure.add_subplot(1, len(terms), i, title=term, xlabel="step")
            for split in dict.fromkeys(row["split"] for row in self.rows if term in row):
                points = [(row["step"], row[term]) for row in self.rows if row["split"] == split and term in row]
                axes.plot(*zip(*points, strict=True), label=split)
            axes.legend()
        write_whole(self.folder / "curves.png", partial(figure.savefig, format="png"))


def finish(folder: Path, step: int, data: str, results: dict[str, Any]) -> None:
    """Write results.json (over what it held of this step), print it, and say last on which data it was measured."""
    before = read_json(folder / "results.json")
    results = (before if before.get("step") == step else {}) | {"step": step, **results, "data": data}
    write_json(folder / "results.json", results)
    print(*(f"  {k}: {v:.4f}" if isinstance(v, float) else f"  {k}: {v}" for k, v in results.items()), sep="\n")
    print(f"{folder}: trained and measured on {data}")
