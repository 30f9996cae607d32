"""The run folder: checkpoints, metrics, curves, events, and going on where a run stopped.

runs/vae-mnist-technion-z10/
    last.pth                   everything that training needs to go on
    lock                       held while a process trains here; a dead one's is free
    vae.pth                    the weights, and the numbers that rebuild the model
    metrics.csv  curves.png    averages since the last row, per split; TensorBoard events hold the same
    config.json  results.json  what was asked for, and what was measured at the end
"""

import argparse
import csv
import io
import math
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn

from plumbing.run import checkpoints, pictures, plots
from plumbing.run.networks import first_misfit
from plumbing.system import files, hardware, ranks
from plumbing.system.process import fail

MEANING = {  # of results, the first ones first: unit, and which way is better
    "elbo": "ELBO {:.2f} nats an image, the higher the better",
    "log_px": "log p(x) at least {:.2f} nats, the higher the better",
    "fid": "FID {:.3g}, the lower the better",
    "fd_lenet": "FD-LeNet {:.3g}, the lower the better: Fréchet distance on a small classifier's features, not FID",
    "class_entropy": "class entropy {:.3f} nats of the samples; of ten classes that come alike 2.303",
    "spread": "spread {:.2f}: how much samples differ, 1 as much as images do",
    "nats": "{:.4f} nats a character, the lower the better",
    "bits": "{:.4f} bits a character",
    "linear": "linear accuracy {:.1%} on frozen features, the higher the better",
    "linear_few": "linear accuracy {:.1%} from few labels",
    "knn": "kNN accuracy {:.1%}, the higher the better",
    "untrained_linear": "linear accuracy {:.1%} before training",
}
BESIDE = ("given", "science", "largest", "training")  # what parse_args adds to the flags
EXTRAS = ("tqdm", "tensorboard", "matplotlib", "sklearn")


class State(dict):
    """What a run needs to go on besides weights; last.pth keeps it."""

    state_dict, load_state_dict = dict.copy, dict.update

    def plan(self, steps: int) -> None:
        """Keep the steps that a schedule is drawn for, and say so when a continued run changes them."""
        if self["steps"] != steps:
            print(f"the schedule was drawn for {self['steps']} steps and goes on as one for {steps}")
        self["steps"] = steps


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """In words, of the flags that are here."""
    return [f"{k} {there.get(k, 'not known')} there, {v} here" for k, v in here.items() if there.get(k) != v]


def noise_seed(seed: int, step: int, rank: int) -> int:
    """Of the generator that a step's noise comes from. A single process is rank 0: SeedSequence pads with zeros."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


class Signals:
    """Within `with`, Ctrl-C and SIGTERM are remembered until the step in which they came has ended."""

    caught = 0

    def __enter__(self) -> "Signals":
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._catch)
        return self

    def _catch(self, number: int, _) -> None:
        self.caught = number
        # A second Ctrl-C does not wait for the step to end. Under torchrun a rank can get the same signal twice.
        signal.signal(number, signal.SIG_DFL if ranks.size() == 1 else signal.SIG_IGN)

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


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
        self.script = name.split("-")[0]
        self.folder = Path(args.out or f"runs/{name}{'-from-weights' * bool(args.weights)}")
        self.flags = self._resolved_flags(str(data))
        self.step, self.seconds, self.rows, self.sums = 0, 0.0, [], {}
        self.saved = None  # the step of the last checkpoint
        self.drawn = 0  # rows of metrics in curves.png
        self.ending = False  # whether no step follows
        self.bar = self.events = None
        self.levels: dict[str, float] = {}  # of terms, for curves.png
        self.cards: dict[str, list[str]] = {}  # TensorBoard's: of a term the curves of all splits
        parameters = {}
        for key, thing in objects.items():
            if isinstance(thing, nn.Module):
                parameters[key] = sum(p.numel() for p in thing.parameters())
        if args.batch_size % ranks.size():
            fail(f"--batch-size {args.batch_size}, of all ranks together, cannot be divided by {ranks.size()} ranks")
        self._compare_ranks()
        try:
            last, self.evaluated = ranks.from_first(None if ranks.rank() else self._open())
            if last:
                self._continue(last)
            if not ranks.rank():
                files.write_json(self.folder / "config.json", self._config(f"{data}{data.note}", parameters))
        except files.InUse as error:
            fail(f"{self.folder} is {error}: let it end, stop it, or name another folder with --out")
        except (OSError, ValueError) as error:  # ValueError: --fresh cannot rename "."
            fail(f"the run folder cannot be written: {error}; name another with --out")
        print(f"data: {data}{data.note}\nparameters: {parameters}")
        every = f"; a line every {args.log_every}" if self.step < args.steps else ""
        print(f"run folder: {self.folder}, {self.step} of {args.steps} steps done{every}")
        if args.device == "cuda" and not args.deterministic:
            print("on a GPU gradients are added in any order, so that runs differ by rounding; --deterministic takes")
            print("slower kernels, with which they do not")
        missing = [name for name in EXTRAS if not find_spec(name)]
        if missing:
            print(f"not installed, so what they show is left out: {', '.join(missing)}")

    @property
    def model(self) -> nn.Module:
        """The network of the first weights file."""
        return next(iter(self.weights.values()))[0]

    @property
    def results(self) -> dict[str, Any]:
        """What was measured at the end."""
        return files.read_json(self.folder / "results.json")

    def _resolved_flags(self, data: str) -> dict[str, Any]:
        """The flags that decide what is learned, with what the script made of those that were left open."""
        resolved = vars(self.args).copy()
        for _, numbers in self.weights.values():
            resolved |= numbers
        return {name: resolved[name] for name in self.args.science} | {"data": data, "weights": self.args.weights}

    def _config(self, data: str, parameters: dict[str, int]) -> dict[str, Any]:
        versions = {module.__name__: module.__version__ for module in (torch, torchvision, np)}
        free = {k: v for k, v in vars(self.args).items() if k not in self.flags and k not in BESIDE}
        return {
            "command": sys.argv,
            "flags": self.flags | free | {"data": self.args.data},
            "data": data,
            "parameters": parameters,
            "python": sys.version,
            "versions": versions,
            "machine": hardware.machine(self.args.device),
            "ranks": ranks.size(),
        }

    def _compare_ranks(self) -> None:
        """Ranks do together what these flags decide, so they have to be the same everywhere."""
        free = ("out", "data_dir", "data", "device", *BESIDE)
        ours = {k: v for k, v in vars(self.args).items() if k not in free}
        ours |= {"data": self.flags["data"]}
        for rank, theirs in enumerate(ranks.objects(ours)):
            differ = _differences(theirs, ours)
            if differ:
                fail(f"rank {rank} was started otherwise than rank {ranks.rank()}: {'; '.join(differ)}")

    def _open(self) -> tuple[dict[str, Any] | None, bool]:
        """Make the folder, for --fresh a new one; (last.pth if there is one, whether a finished run was evaluated)."""
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        if self.args.fresh and self.folder.exists() and not restarted:
            self.lock = files.lock(self.folder / "lock")
            print(f"--fresh: the old run is now {files.move_aside(self.folder)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = files.lock(self.folder / "lock")
        if (self.folder / "last.pth").exists():
            hint = "; take it from a copy, or start again with --fresh, which keeps this folder under another name"
            last = checkpoints.load(self.folder / "last.pth", (self.script,), "flags", hint)
            return last, files.read_json(self.folder / "results.json").get("step") == last["step"]
        # A run that was killed before its first save has left config.json, but no last.pth.
        there = files.read_json(self.folder / "config.json").get("flags", {})
        foreign = any(there.get(k) != v for k, v in self.flags.items() if k != "data")
        weights = sorted(self.folder.glob("*.pth"))
        if foreign and weights:
            fail(f"{weights[0]} is of another run and could be lost here: name another --out, or use --fresh")
        return None, False

    def _continue(self, last: dict[str, Any]) -> None:
        differ = _differences(last["flags"], self.flags)
        if differ:
            ways = f"use those, another --out, or --fresh; --weights {self.folder} begins a new run with its weights"
            fail(f"{self.folder} was made with other flags ({'; '.join(differ)}): {ways}")
        try:
            for key, thing in self.objects.items():
                thing.load_state_dict(last[key])
        except (KeyError, RuntimeError, ValueError) as error:
            misfit = first_misfit(error) or str(error)[:200]
            fail(f"{self.folder}/last.pth is of another version of the model: use --fresh, or that version ({misfit})")
        for key in self.KEPT:
            setattr(self, key, last[key])
        self.saved = self.step

    def save_weights(self, name: str, model: Any, numbers: dict[str, Any]) -> None:
        """Write the file `name`: the model, and the plain numbers that rebuild it. Rank 0 does."""
        if ranks.rank():
            return
        weights = {key: value.cpu() for key, value in model.state_dict().items()}
        checkpoints.save(
            {"script": self.script, "step": self.step, **numbers, "state_dict": weights}, self.folder / name
        )

    def save_text(self, name: str, text: str) -> None:
        """name/step_0000001.txt, and the same among TensorBoard's events. Rank 0 does."""
        if ranks.rank():
            return
        path = self.folder / f"{name}/step_{self.step:07d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if self.events:
            verbatim = textwrap.indent(text, "    ", lambda _: True)
            self.events.add_text(name, verbatim, self.step)

    def save(self) -> None:
        """Write the weights files, then last.pth (whose step they have even after a kill), and draw curves.png."""
        self.check()
        for name, thing in self.objects.items():
            values = thing.state_dict().values() if isinstance(thing, nn.Module) else ()
            if not all([value.isfinite().all() for value in values]):
                self.diverged(f"weights of {name} are not finite")
        self.saved = self.step
        if ranks.rank():
            return
        for name, (model, numbers) in self.weights.items():
            self.save_weights(name, model, numbers)
        state = {key: getattr(self, key) for key in self.KEPT}
        states = {key: thing.state_dict() for key, thing in self.objects.items()}
        checkpoints.save(state | states, self.folder / "last.pth")
        if len(self.rows) > self.drawn and find_spec("matplotlib"):
            plots.curves(self.rows, self.folder / "curves.png", self.levels)
            self.drawn = len(self.rows)

    def finished(self) -> bool:
        """Whether training and evaluation are done, said in one line."""
        if self.step < self.args.steps or not self.evaluated:
            return False
        print(f"{self.folder} is finished at step {self.step}: --steps for more, --fresh to start again")
        ranks.leave()
        return True

    def steps(self) -> Iterator[int]:
        """The steps still to do. Saves at --save-every, at the end, and on Ctrl-C or SIGTERM before it stops.

        A step draws its noise from a generator seeded by (seed, step, rank): what is evaluated in between does not
        matter, and a continued run needs no random state. When training is done, ranks beyond 0 end here.
        """
        if find_spec("tensorboard") and not ranks.rank():
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(self.folder, purge_step=self.step + 1)
        steps = () if self.ending else range(self.step + 1, self.args.steps + 1)
        self.bar = files.progress(steps, self.script, self.args.steps, self.step)
        try:
            with Signals() as signals:
                for step in self.bar:
                    self.step = step
                    self.began = time.perf_counter()
                    self._seed_noise()
                    yield step
                    self.seconds += time.perf_counter() - self.began
                    last = self.ending or step == self.args.steps
                    stopped = ranks.largest(signals.caught)  # a signal that any rank has caught stops all
                    if stopped or last or step % self.args.save_every == 0:
                        self.save()
                    if stopped:
                        files.say(f"stopped at step {step} and saved; the same command continues")
                        ranks.leave()
                        raise SystemExit(128 + stopped)
                    if self.ending:
                        break
        finally:
            if self.events:
                self.events.close()
        ranks.leave()

    def _seed_noise(self) -> None:
        seed = noise_seed(self.args.seed, self.step, ranks.rank())
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 1 ms where CUDA has not been started
        if self.args.device in ("cuda", "mps"):
            getattr(torch, self.args.device).manual_seed(seed)

    def due(self, every: int) -> bool:
        """Whether what is done every so many steps is done now: it is after the last step, too."""
        return self.step % every == 0 or self.step == self.args.steps

    def add(self, split: str, **terms: torch.Tensor | float) -> None:
        """Add one step's values to the averages of the next row; tensors stay on their device until then."""
        sums = self.sums.setdefault(split, {})
        for name, value in ({"n": 1} | terms).items():
            sums[name] = sums.get(name, 0) + (value.detach() if isinstance(value, torch.Tensor) else value)

    def pictured(self, every: int) -> bool:
        """Whether a grid is due: at steps 1, 2, 4, 8 ... too, so that there is soon something to see."""
        return self.due(every) or (self.step < every and self.step.bit_count() == 1)

    def save_grid(self, name: str, images: torch.Tensor, columns: int = 8, **layout) -> None:
        """name/step_0000001.png of images in [0, 1], (N, C, H, W), and the same among TensorBoard's events."""
        path = self.folder / f"{name}/step_{self.step:07d}.png"
        pictures.save_grid(images, path, columns, **layout)
        if self.events and path.exists():
            self.events.add_image(name, np.asarray(Image.open(path)), self.step, dataformats="HWC")

    def check(self) -> dict[str, dict[str, float]]:
        """Averages since the last row. What is not finite ends the run before it is saved over something good."""
        sums = {split: {name: float(value) for name, value in terms.items()} for split, terms in self.sums.items()}
        if ranks.size() > 1:
            sums = self.sums = _means(ranks.objects(sums))
        averages, bad = {}, []
        for split, terms in sums.items():
            averages[split] = {name: value / terms["n"] for name, value in terms.items() if name != "n"}
            bad += [f"{split} {name} {value}" for name, value in averages[split].items() if not math.isfinite(value)]
        if bad:
            self.diverged(", ".join(bad))
        return averages

    def diverged(self, what: str) -> NoReturn:
        kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "nothing was saved"
        fail(f"step {self.step}: {what}; {kept} in {self.folder}. Try a lower --lr")

    def log(self) -> None:
        """Write the averages since the last row: metrics.csv, TensorBoard, and the bar or a line."""
        text, averages_of = [], self.check()
        for split, averages in averages_of.items():
            self.rows.append({"step": self.step, "split": split} | averages)
            text.append(f"{split} " + " ".join(f"{name} {value:.4g}" for name, value in averages.items()))
            if self.events:
                for name, value in averages.items():
                    self.events.add_scalar(f"{name}/{split}", value, self.step)
                    if f"{name}/{split}" not in self.cards.setdefault(name, []):
                        self.cards[name].append(f"{name}/{split}")
                        self.events.add_custom_scalars({"curves": {n: ("Multiline", c) for n, c in self.cards.items()}})
        self.sums = {}
        if ranks.rank():
            return
        table = io.StringIO(newline="")  # all of it: a continued run leaves no row twice
        writer = csv.DictWriter(table, dict.fromkeys(key for row in self.rows for key in row))
        writer.writeheader()
        writer.writerows(self.rows)
        files.show(self.folder / "metrics.csv", lambda file: file.write(table.getvalue().encode()))
        rate = self.step / (self.seconds + time.perf_counter() - self.began)
        if getattr(self.bar, "disable", True):
            left = f"{(self.args.steps - self.step) / rate / 60:.1f} min left"
            print(f"step {self.step}/{self.args.steps}", *text, f"{rate:.1f} steps/s", left, sep=" | ", flush=True)
        else:
            shown = averages_of.get("train", {})  # short enough for 100 columns with speed and time left
            self.bar.set_postfix_str(" ".join(f"{name} {value:.3g}" for name, value in shown.items()))


def _means(parts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each term over the ranks that have it: what one of them could not measure, the others may have."""
    found = {}
    for part in parts:
        for split, terms in part.items():
            for name, value in terms.items():
                found.setdefault(split, {}).setdefault(name, []).append(value)
    return {split: {k: sum(values) / len(values) for k, values in terms.items()} for split, terms in found.items()}


def _pictures(folder: Path) -> list[Path]:
    """Those of the run, and of those that were made on the way the last."""
    on_the_way = [sorted(inside.glob("*.png"))[-1:] for inside in (folder / "samples", folder / "reconstructions")]
    return sorted(path for kind in ("png", "webp", "html") for path in folder.glob(f"*.{kind}")) + sum(on_the_way, [])


def finish(
    folder: Path, step: int, data: str, results: dict[str, Any], measured_on: str = "", of: Path | None = None
) -> None:
    """Write results.json (over what it held of this step), print pictures, first numbers, and of which data they are.

    data: trained and, unless measured_on names other ones, measured on. of: the weights file; another one than the
    run's own has a file of results of its own.
    """
    path = folder / "results.json"
    if of and of.name not in ("vae.pth", "generator.pth", "simclr.pth"):
        path = folder / f"results-{of.stem}.json"
    before = files.read_json(path)
    if before.get("step") != step:
        before = {}
    results = before | {"step": step, **results, "data": data}
    on = f"step {step}, trained and measured on {data}"
    if not data.startswith(measured_on):
        results["measured_on"] = measured_on
        on = f"step {step}, trained on {data}, measured on {measured_on}"
    files.write_json(path, results, files.show)
    pictures.film(folder)
    for picture in _pictures(folder):
        print(f"picture: {picture}")
    for key in [key for key in MEANING if key in results][:4]:
        print(f"  {MEANING[key].format(results[key])}")
    tensorboard = f"; curves: tensorboard --logdir {folder}" if any(folder.glob("events.*")) else ""
    print(f"all numbers: {path}{tensorboard}")
    print(f"{folder}: {on}")
