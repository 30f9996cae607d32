"""The run folder: checkpoints, metrics, curves, events, and continuing where a run stopped.

runs/vae-mnist-latent-dim-10/
    last.pth                   checkpoint with everything that training needs to continue
    lock  lock.txt             locked while a process trains here, and the name of that process
    vae.pth                    the weights, and the config that rebuilds the model
    metrics.csv  curves.png    averages since the last row, per split; TensorBoard events hold the same
    config.json  results.json  flags and versions, and the results of the evaluation at the end
"""

import argparse
import csv
import io
import math
import os
import re
import shlex
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
from plumbing.system.flags import EXTRA
from plumbing.system.process import fail

OPTIONAL = ("tqdm", "tensorboard", "matplotlib", "sklearn")  # packages that only show something
SAVED_FIELDS = ("script", "flags", "step", "planned_steps", "seconds", "rows", "sums", "best")  # of a Run, in last.pth


def flag_text(name: str, value: Any) -> str:
    """Return a flag as it is typed, such as "--lr 0.003", or "no --binarize"."""
    flag = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return f"no {flag}"
    return flag if value is True else f"{flag} {value}"


def differences(there: dict[str, Any], here: dict[str, Any]) -> tuple[str, str]:
    """Return the flags of `here` that `there` has otherwise, as they are typed there and here."""
    names = [name for name, value in here.items() if there.get(name) != value]
    return tuple(", ".join(flag_text(name, flags.get(name)) for name in names) for flags in (there, here))


def folder_name(args: argparse.Namespace, data: Any) -> str:
    """Return a name made of script, data set and the typed flags that decide what is learned."""
    parts = [args.script, data.name]
    for name in args.science:
        if name in args.typed and name != "data":
            text = flag_text(name, args.typed[name]).replace("no --", "no-").removeprefix("--")
            parts.append(re.sub(r"[^\w.+-]+", "-", text))
    if args.weights:
        parts.append("from-weights")
    return "-".join(parts)


def noise_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's noise. SeedSequence pads with zeros, so rank 0 has the seed of (seed, step)."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


class Signals:
    """Context in which Ctrl-C and SIGTERM wait until the current step has ended. `caught` is the signal, or 0."""

    caught = 0

    def __enter__(self) -> "Signals":
        self.handlers = {}
        if threading.current_thread() is threading.main_thread():  # other threads get no signals
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
    """The folder of one training. A Run resumes, logs, saves and ends the training.

    Args:
        args: the flags, from a script's get_args.
        data: the data set. A Run prints it, records it, and refuses to continue with another one.
        to_continue: models and optimisers, by the name under which last.pth keeps their state.
        weights: by file name a model and the config that rebuilds it. Each checkpoint writes these files too.
        equilibrium: by term the value that curves.png marks.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        data: Any,
        to_continue: dict[str, Any],
        weights: dict[str, tuple[nn.Module, dict]],
        equilibrium: dict[str, float] | None = None,
    ) -> None:
        self.args, self.data, self.to_continue, self.weights = args, data, to_continue, weights
        self.equilibrium = equilibrium or {}
        self.script = args.script
        self.folder = Path(args.out or Path("runs", folder_name(args, data)))
        self.trained_on = f"{data}{data.note}"
        self.flags = self._resolved_flags()
        self.step, self.planned_steps, self.seconds = 0, args.steps, 0.0
        self.rows: list[dict[str, Any]] = []  # of metrics.csv
        self.sums: dict[str, dict[str, Any]] = {}  # by split and term, since the last row
        self.best: dict[str, int] = {}  # step of each weights file that save_weights wrote
        self.saved_step = 0  # of the last checkpoint
        self.plotted_rows = 0  # in curves.png
        self.row_due = False  # whether this step ends with a row
        self.bar = self.events = None
        if args.batch_size % ranks.size():
            fail(f"--batch-size {args.batch_size} cannot be divided by {ranks.size()} ranks. Use a multiple of it.")
        self._compare_ranks()
        try:
            last, self.evaluated = ranks.from_first(None if ranks.rank() else self._open())
            if last:
                self._continue(last)
            if not ranks.rank():
                files.write_json(self.folder / "config.json", self._config())
        except files.InUse as error:
            fail(f"{self.folder} is {error}. Let that process end, stop it, or name another folder with --out.")
        except (OSError, ValueError) as error:  # ValueError: --fresh cannot rename "."
            fail(f"the run folder cannot be written ({error}). Name another folder with --out.")
        self._announce()

    @property
    def model(self) -> nn.Module:
        """The network of the first weights file."""
        return next(iter(self.weights.values()))[0]

    @property
    def results(self) -> dict[str, Any]:
        """The results of the evaluation at the end."""
        return files.read_json(self.folder / "results.json")

    @property
    def _about(self) -> dict[str, Any]:
        """The entries of each weights file beside config and weights."""
        return {"script": self.script, "step": self.step, "data": self.data.source, "trained_on": self.trained_on}

    def _parameters(self) -> dict[str, int]:
        """Return the number of parameters of each network."""
        networks = {name: thing for name, thing in self.to_continue.items() if isinstance(thing, nn.Module)}
        return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}

    def _announce(self) -> None:
        """Print the data set, the networks, the folder and the missing packages."""
        print(f"data: {self.trained_on}\nparameters: {self._parameters()}")
        every = f"; a line every {self.args.log_every}" if self.step < self.args.steps else ""
        print(f"run folder: {self.folder}, {self.step} of {self.args.steps} steps done{every}")
        if self.planned_steps != self.args.steps:
            changed = "What depends on --steps, such as a learning rate schedule, is drawn anew."
            print(f"The run was planned for {self.planned_steps} steps, now for {self.args.steps}. {changed}")
            self.planned_steps = self.args.steps
        missing = [name for name in OPTIONAL if not find_spec(name)]
        if missing:
            print(f"Not installed: {', '.join(missing)}. What they show is left out.")

    def _resolved_flags(self) -> dict[str, Any]:
        """Return the flags that decide what is learned, with the values of the config where a flag was left open."""
        resolved = vars(self.args).copy()
        for _, config in self.weights.values():
            resolved |= config
        return {name: resolved[name] for name in self.args.science} | {
            "data": str(self.data),
            "weights": self.args.weights,
        }

    def _config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        versions = {module.__name__: module.__version__ for module in (torch, torchvision, np)}
        others = {k: v for k, v in vars(self.args).items() if k not in self.flags and k not in EXTRA}
        return {
            "command": sys.argv,
            "flags": self.flags | others | {"data": self.args.data},
            "data": self.trained_on,
            "parameters": self._parameters(),
            "python": sys.version,
            "versions": versions,
            "machine": hardware.machine(self.args.device),
            "ranks": ranks.size(),
        }

    def _compare_ranks(self) -> None:
        """End the program where ranks have different flags: all ranks must evaluate and save in the same steps."""
        may_differ = ("out", "data_dir", "data", "device", *EXTRA)
        ours = {k: v for k, v in vars(self.args).items() if k not in may_differ} | {"data": self.flags["data"]}
        for rank, theirs in enumerate(ranks.objects(ours)):
            there, here = differences(theirs, ours)
            if here:
                fail(f"rank {rank} was started with {there}, rank {ranks.rank()} with {here}. Use the same flags.")

    def _open(self) -> tuple[dict[str, Any] | None, bool]:
        """Make the folder, a new one for --fresh. Return last.pth, if any, and whether the run is evaluated."""
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        if self.args.fresh and self.folder.exists() and not restarted:
            self.lock = files.lock(self.folder / "lock")
            print(f"--fresh: the old run is now {files.move_aside(self.folder)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = files.lock(self.folder / "lock")
        if (self.folder / "last.pth").exists():
            hint = "Take it from a copy, or start again with --fresh (the old run is kept)."
            last = checkpoints.load(self.folder / "last.pth", (self.script,), "flags", hint)
            return last, files.read_json(self.folder / "results.json").get("step") == last["step"]
        # A run that was killed before its first checkpoint has left config.json, but no last.pth.
        there = files.read_json(self.folder / "config.json").get("flags", {})
        foreign = any(there.get(name) != value for name, value in self.flags.items() if name != "data")
        weights = sorted(self.folder.glob("*.pth"))
        if foreign and weights:
            fail(f"{weights[0]} belongs to another run and could be lost. Use another --out, or --fresh.")
        return None, False

    def _continue(self, last: dict[str, Any]) -> None:
        """Load the state of last.pth. End the program where flags or networks differ."""
        there, here = differences(last["flags"], self.flags)
        if here:
            fail(
                f"{self.folder} was trained with {there}, not {here}. To continue it, use {there}. To train again, add "
                f"--fresh (the old run is kept) or --out NEW. To start from its weights, add --weights {self.folder}."
            )
        try:
            for name, thing in self.to_continue.items():
                thing.load_state_dict(last[name])
        except (KeyError, RuntimeError, ValueError) as error:
            misfit = first_misfit(error) or str(error)[:200]
            fail(f"{self.folder}/last.pth was saved by another version ({misfit}). Use that version, or --fresh.")
        for name in SAVED_FIELDS:
            setattr(self, name, last.get(name, getattr(self, name)))
        self.saved_step = self.step

    def save_weights(self, name: str, model: nn.Module, config: dict[str, Any]) -> None:
        """Write the weights file `name` now, as the best so far. Later checkpoints keep it. Rank 0 writes."""
        self.best[name] = self.step
        self._write_weights(name, model, config)

    def _write_weights(self, name: str, model: nn.Module, config: dict[str, Any]) -> None:
        if ranks.rank():
            return
        weights = {key: value.cpu() for key, value in model.state_dict().items()}
        checkpoints.save(self._about | config | {"state_dict": weights}, self.folder / name)

    def load_weights(self, name: str) -> dict[str, Any]:
        """Return the contents of a weights file of this run, or {} where there is none."""
        path = self.folder / name
        return checkpoints.load(path, (self.script,)) if path.exists() else {}

    def save_text(self, name: str, text: str) -> None:
        """Write name/step_0000001.txt and a TensorBoard event. Rank 0 writes."""
        if ranks.rank():
            return
        path = self.folder / f"{name}/step_{self.step:07d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if self.events:
            verbatim = textwrap.indent(text, "    ", lambda _: True)
            self.events.add_text(name, verbatim, self.step)

    def save_grid(self, name: str, images: torch.Tensor, columns: int = 8, **layout) -> None:
        """Write name/step_0000001.png of images (N, C, H, W) in [0, 1], and a TensorBoard event."""
        path = self.folder / f"{name}/step_{self.step:07d}.png"
        pictures.save_grid(images, path, columns, **layout)
        if self.events and path.exists():
            self.events.add_image(name, np.asarray(Image.open(path)), self.step, dataformats="HWC")

    def save(self) -> None:
        """Write the weights files, then last.pth, then curves.png. A kill leaves no weights older than last.pth."""
        self._averages()
        for name, thing in self.to_continue.items():
            values = thing.state_dict().values() if isinstance(thing, nn.Module) else ()
            if not all([value.isfinite().all() for value in values]):
                self._diverged(f"weights of {name} are not finite")
        self.saved_step = self.step
        if ranks.rank():
            return
        for name, (model, config) in self.weights.items():
            if name not in self.best:
                self._write_weights(name, model, config)
        fields = {name: getattr(self, name) for name in SAVED_FIELDS}
        states = {name: thing.state_dict() for name, thing in self.to_continue.items()}
        checkpoints.save(fields | states, self.folder / "last.pth")
        if len(self.rows) > self.plotted_rows and find_spec("matplotlib"):
            plots.curves(self.rows, self.folder / "curves.png", self.equilibrium)
            self.plotted_rows = len(self.rows)

    def finished(self) -> bool:
        """Return whether training and evaluation are done, and then print how to continue."""
        if self.step < self.args.steps or not self.evaluated:
            return False
        print(f"{self.folder} is finished at step {self.step}. Use a larger --steps, or --fresh to train again.")
        ranks.leave()
        return True

    def steps(self) -> Iterator[int]:
        """Yield the steps still to do. After each step write the row that is due, and the checkpoint that is due.

        A checkpoint is due at --save-every, at the end, and on Ctrl-C or SIGTERM. The noise of a step comes from a
        generator seeded by (seed, step, rank), so a resumed run needs no random state and measurements change nothing.
        Ranks beyond 0 end with the training.
        """
        if find_spec("tensorboard") and not ranks.rank():
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(self.folder, purge_step=self.step + 1)
        steps = range(self.step + 1, self.args.steps + 1)
        self.bar = files.progress(steps, self.script, self.args.steps, self.step)
        try:
            with Signals() as signals:
                for step in self.bar:
                    began = time.perf_counter()
                    self.step, self.row_due = step, False
                    self.due(self.args.log_every)  # every script writes a row then
                    self._seed_noise()
                    yield step
                    self.seconds += time.perf_counter() - began
                    if self.row_due:
                        self._write_row()
                    stopped = ranks.largest(signals.caught)  # a signal to any rank stops all
                    if stopped or step == self.args.steps or step % self.args.save_every == 0:
                        self.save()
                    if stopped:
                        files.say(f"stopped at step {step} and saved. The same command continues.")
                        ranks.leave()
                        raise SystemExit(128 + stopped)
        finally:
            if self.events:
                self.events.close()
        ranks.leave()

    def _seed_noise(self) -> None:
        seed = noise_seed(self.args.seed, self.step, ranks.rank())
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 1 ms where CUDA has not been started
        if self.args.device in ("cuda", "mps"):
            getattr(torch, self.args.device).manual_seed(seed)

    def due(self, every: int, early: bool = False) -> bool:
        """Return whether this step is a multiple of `every`, or the last one. Then the step ends with a row.

        early: also at steps 1, 2, 4, 8 ..., so that there is soon something to see. Then there is no row.
        """
        due = self.step % every == 0 or self.step == self.args.steps
        if early:
            return due or (self.step < every and self.step.bit_count() == 1)
        self.row_due |= due
        return due

    def add(self, split: str, **terms: torch.Tensor | float) -> None:
        """Add one step's values to the averages of the next row. Tensors stay on their device until then."""
        sums = self.sums.setdefault(split, {})
        for name, value in ({"n": 1} | terms).items():
            sums[name] = sums.get(name, 0) + (value.detach() if isinstance(value, torch.Tensor) else value)

    def is_best(self, split: str, term: str) -> bool:
        """Return whether the average since the last row is lower than in all rows."""
        sums = self.sums.get(split, {})
        if term not in sums:
            return False
        before = [row[term] for row in self.rows if row["split"] == split and term in row]
        return float(sums[term]) / sums["n"] < min(before, default=math.inf)

    def _averages(self) -> dict[str, dict[str, float]]:
        """Return the averages since the last row. A value that is not finite ends the run before it is saved."""
        sums = {split: {name: float(value) for name, value in terms.items()} for split, terms in self.sums.items()}
        if ranks.size() > 1:
            sums = self.sums = _mean_over_ranks(ranks.objects(sums))
        averages, bad = {}, []
        for split, terms in sums.items():
            averages[split] = {name: value / terms["n"] for name, value in terms.items() if name != "n"}
            bad += [f"{split} {name} {value}" for name, value in averages[split].items() if not math.isfinite(value)]
        if bad:
            self._diverged(", ".join(bad))
        return averages

    def _diverged(self, what: str) -> NoReturn:
        kept = f"The checkpoint of step {self.saved_step} is kept" if self.saved_step else "Nothing was saved"
        fail(f"step {self.step}: {what}. {kept} in {self.folder}. Try a lower --lr.")

    def _write_row(self) -> None:
        """Write the averages since the last row to metrics.csv, to TensorBoard, and to the bar or a line."""
        averages_of = self._averages()
        for split, averages in averages_of.items():
            self.rows.append({"step": self.step, "split": split} | averages)
            for name, value in averages.items():
                if self.events:
                    self.events.add_scalar(f"{name}/{split}", value, self.step)
        self.sums = {}
        if ranks.rank():
            return
        table = io.StringIO(newline="")  # the whole table, so that a resumed run leaves no row twice
        writer = csv.DictWriter(table, dict.fromkeys(key for row in self.rows for key in row))
        writer.writeheader()
        writer.writerows(self.rows)
        files.show(self.folder / "metrics.csv", lambda file: file.write(table.getvalue().encode()))
        if not getattr(self.bar, "disable", True):
            train = averages_of.get("train", {})  # short enough for 100 columns with speed and time left
            self.bar.set_postfix_str(" ".join(f"{name} {value:.3g}" for name, value in train.items()))
            return
        rate = self.step / self.seconds
        text = []
        for split, averages in averages_of.items():
            text.append(f"{split} " + " ".join(f"{name} {value:.4g}" for name, value in averages.items()))
        left = f"{(self.args.steps - self.step) / rate / 60:.1f} min left"
        print(f"step {self.step}/{self.args.steps}", *text, f"{rate:.1f} steps/s", left, sep=" | ", flush=True)

    def finish(self, results: dict[str, Any], meaning: dict[str, str]) -> "Run":
        """Write results.json and print the results, as write_results does. Return the run."""
        results = {"train_minutes": self.seconds / 60, **results}
        weights = self.folder / next(iter(self.weights))
        write_results(self.folder / "results.json", weights, self._about, results, meaning, self.args.data_dir)
        return self


def _mean_over_ranks(parts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Average each term over the ranks that measured it. A rank without the term is left out."""
    values: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for split, terms in part.items():
            for name, value in terms.items():
                values.setdefault(split, {}).setdefault(name, []).append(value)
    return {split: {k: sum(each) / len(each) for k, each in terms.items()} for split, terms in values.items()}


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures of the run, and the last grid of each kind that was made during training."""
    grids = [sorted(inside.glob("*.png"))[-1:] for inside in (folder / "samples", folder / "reconstructions")]
    return sorted(path for kind in ("png", "webp", "html") for path in folder.glob(f"*.{kind}")) + sum(grids, [])


def write_results(
    path: Path,
    weights: Path,
    about: dict[str, Any],
    results: dict[str, Any],
    meaning: dict[str, str],
    data_dir: str,
    measured_on: str = "",
) -> None:
    """Write results.json, over its older values of this step, and print pictures and first results.

    Args:
        about: step, data and trained_on of the weights file.
        meaning: by result a text such as "ELBO {:.2f} nats an image, the higher the better", the first ones first.
        measured_on: the data set, where it is another one than trained_on.
    """
    folder, before = path.parent, files.read_json(path)
    if before.get("step") != about["step"]:
        before = {}
    results = before | {"step": about["step"], **results, "data": about["trained_on"]}
    summary = f"step {about['step']}, trained and measured on {about['trained_on']}"
    if not about["trained_on"].startswith(measured_on):
        results["measured_on"] = measured_on
        summary = f"step {about['step']}, trained on {about['trained_on']}, measured on {measured_on}"
    files.write_json(path, results, files.show)
    pictures.film(folder)
    for picture in _pictures(folder):
        print(f"picture: {picture}")
    for key in [key for key in meaning if key in results][:4]:
        print(f"  {meaning[key].format(results[key])}")
    if "fid" in meaning and "fid" not in results:
        command = ["fid.py", f"{about['data']}:test", str(weights)]
        if data_dir != "data":
            command += ["--data-dir", data_dir]
        print(f"FID is measured by: python {shlex.join(command)}")
    tensorboard = f"; curves: tensorboard --logdir {folder}" if any(folder.glob("events.*")) else ""
    print(f"all results: {path}{tensorboard}")
    print(f"{folder}: {summary}")
