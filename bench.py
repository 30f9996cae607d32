"""Ours against the common way, side by side: `python bench.py`, or `--quick` in under two minutes.

Each row is a process of its own, because allocators remember; rows alternate, and the table gives medians and the ratio
to the first. Timings drift from run to run: only the ratios of one run count.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import common
import images
import vae

BATCH, WARM = 64, 200  # the first steps, slow everywhere and minutes long with --compile, are not timed


class PerImage(Dataset):
    """Like torchvision's MNIST: a PIL image per item, then the margin to 32 pixels and ToTensor."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels, self.transform = pixels, transforms.Compose([transforms.Pad(2), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.pixels[i, 0].numpy()))


def textbook_vae(args: Namespace, workers: int = 0) -> dict[str, float]:
    """What courses and tutorials do: image by image through a DataLoader, float32, sigmoid and then BCE."""
    data = images.load_images(None, "mnist", args.data_dir, 32)
    pixels = images.load_images(None, "mnist", args.data_dir, 28).train
    loader = DataLoader(PerImage(pixels), BATCH, shuffle=True, num_workers=workers)
    torch.manual_seed(args.seed)
    model = vae.build_vae("tsinghua", 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    step = 0
    while step < args.steps:
        for x in loader:
            x_rec, mu, log_sigma2 = model(x)
            loss, _, _ = vae.bce_vae_loss(x, x_rec, mu, log_sigma2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            step += 1
            if step == WARM:
                began = time.perf_counter()
            if step == args.steps:
                break
    seconds = time.perf_counter() - began
    return {"images/s": BATCH * (step - WARM) / seconds, "test ELBO": -vae.evaluate(model, data.test, 1.0)["loss"]}


def our_vae(args: Namespace, *flags: str) -> dict[str, float]:
    """vae.py as it stands, with its logging and sampling; the evaluation at the end is not timed."""
    vae.log_px = vae.draw_latent = lambda *_, **__: 0.0
    clock, indices = {}, common.batch_indices

    def noting_the_time(n: int, size: int, step: int, seed: int) -> torch.Tensor:
        clock[step] = time.perf_counter()
        return indices(n, size, step, seed)

    common.batch_indices = noting_the_time
    with tempfile.TemporaryDirectory() as out:
        argv = ["--steps", str(args.steps), "--data-dir", args.data_dir, "--seed", str(args.seed), "--out", out, *flags]
        vae.main([*argv, "--latent-dim", "10", "--batch-size", str(BATCH)])
        results = json.load(open(f"{out}/results.json"))
    seconds = 60 * results["train_minutes"] - (clock[WARM + 1] - clock[1])
    return {"images/s": BATCH * (args.steps - WARM) / seconds, "test ELBO": results["elbo"]}


TABLES = {
    "vae.py, MNIST at 32 pixels, 10 latents, batch 64": {
        "textbook loop": textbook_vae,
        "textbook loop, 2 workers": lambda args: textbook_vae(args, workers=2),
        "vae.py --no-bf16": lambda args: our_vae(args, "--no-bf16"),
        "vae.py": our_vae,
        "vae.py --compile": lambda args: our_vae(args, "--compile"),
    },
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    p.add_argument("--quick", action="store_true", help="fewer steps and rounds, without --compile")
    p.add_argument("--steps", type=common.number(int, WARM + 1), default=1000, help="training steps per row")
    p.add_argument("--rounds", type=common.number(int, 1), default=3, help="times that each row is run")
    p.add_argument("--seed", type=common.number(int, 0), default=0, help="of every row")
    p.add_argument("--data-dir", default="data", help="where MNIST is; without it, the embedded digits")
    p.add_argument("--only", default="", help="run the rows whose name contains this")
    p.add_argument("--row", nargs=2, metavar=("TABLE", "ROW"), help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.row:
        figures = TABLES[args.row[0]][args.row[1]](args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
        print(json.dumps(figures | {"peak MB": peak}))
        return
    if args.quick:
        args.steps, args.rounds = min(args.steps, 500), 1

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    for table, rows in TABLES.items():
        rows = [row for row in rows if args.only in row and not (args.quick and "--compile" in row)]
        if not rows:
            continue
        measured = {row: [] for row in rows}
        for _ in range(args.rounds):
            for row in rows:
                command = [sys.executable, __file__, "--row", table, row, "--steps", str(args.steps)]
                command += ["--seed", str(args.seed), "--data-dir", args.data_dir]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                measured[row].append(json.loads(out.splitlines()[-1]))
        print(f"\n{table}, {args.steps} steps, median of {args.rounds}\n")
        names = list(measured[rows[0]][0])
        print(f"| {'':26} | {' | '.join(f'{name:>10}' for name in names)} | ratio |")
        print(f"|{'-' * 28}|{'-----------:|' * len(names)}------:|")
        for row in rows:
            medians = {name: statistics.median(m[name] for m in measured[row]) for name in names}
            base = statistics.median(m[names[0]] for m in measured[rows[0]])
            cells = " | ".join(f"{medians[name]:10.1f}" for name in names)
            print(f"| {row:26} | {cells} | {medians[names[0]] / base:5.2f} |")


if __name__ == "__main__":
    main()
