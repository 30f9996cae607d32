"""Keep weights and results of runs/: `python -m report.ship` copies weights in float16 to weights/, writes their card,
and copies the results of the runs of runs.sh to report/results/.

A file of weights whose run is not in runs/ stays as it is, with its line of the card. `check` is a figure that takes
seconds, of the file itself; tests/test_weights.py measures it again. tests/test_results.py holds the documents against
report/results/.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

import torch

import char_rnn
import common
import dcgan
import fid
import vae
from plumbing.data import images, texts
from plumbing.system import files

RUNS = {  # file: the run it is of, and its command (gan_mnist.py, which takes a minute, has 4 to 14 MB)
    "vae.pth": ("race/confirmed/vae/seed-0", "vae.py --latent-dim 10 --steps 20000"),
    "dcgan-mnist.pth": ("race/confirmed/dcgan/seed-0", "dcgan.py --data mnist"),
    "dcgan-cifar10.pth": ("dcgan-cifar10-jpeg32-gan", "dcgan.py --data data/cifar10-jpeg --steps 5000"),
    "char_rnn.pth": (
        "char_rnn-shakespeare-works-2x512",
        "char_rnn.py --data data/shakespeare-works --dropout 0.2 --steps 8000",
    ),
}
SCRIPTS = "char_rnn", "vae", "gan_mnist", "dcgan", "simclr"
FILES = "vae.pth", "generator.pth", "char_rnn.pth"
HEAD = """# Weights that ship

Written by `python -m report.ship`. Floats are float16 in the files and float32 in the networks. Figures are those of
the run, of held-out data, by the float32 weights; `check` is one that takes seconds, of the file itself, which
`tests/test_weights.py` measures again: the ELBO of the first 500 test digits, the FD-LeNet of 2,000 samples, the nats
per character of a text's last 20,000.

`commit` is the code's when the file was made. Licences of the data: MNIST, CC BY-SA 3.0 (LeCun, Cortes & Burges);
CIFAR-10, free for research with a citation (Krizhevsky 2009); Shakespeare's works, public domain.
`lenet-mnist-0a20c348.pth` is the classifier behind FD-LeNet of MNIST, in float32 (plumbing/judge/lenet.py trained it).

| file | command | commit | step | trained on | figures | check | SHA-256 |
|---|---|---|---:|---|---|---:|---|
"""


def check(path: Path, root: Path = Path()) -> float:
    """A figure of a weights file that takes seconds; data/ is in `root`."""
    config = torch.load(path, weights_only=True)
    script = {"vae": vae, "dcgan": dcgan, "char_rnn": char_rnn}[config["script"]]
    model = script.build(config).eval()
    data, data_dir = config["data"], str(root / "data")
    if script is char_rnn:
        text = texts.load_text(str(root / data), data_dir, 1, 0.1, alphabet=config["chars"])
        return char_rnn.held_out_loss(model, text.test[-20000:])
    if data == "cifar10":
        data = str(root / "data/cifar10-jpeg")
    held_out = images.load_images(data, "", data_dir, config["image_size"])
    if script is vae:
        terms = vae.mean_losses(model, held_out.test[:500], 1.0)
        return -terms["rec"] - terms["kl"]
    judge = fid.Judge(held_out, data_dir, torch.device("cpu"))
    return judge(lambda *_: script.draw_samples(model, 2000, seed=0))["fd_lenet"]


def figures(results: dict) -> str:
    names = {
        "elbo": "ELBO",
        "log_px": "log p(x)",
        "fd_lenet": "FD-LeNet",
        "class_entropy": "class entropy",
        "nats": "nats",
    }
    return ", ".join(f"{name} {results[key]:.4g}" for key, name in names.items() if key in results)


def ship(name: str, run: Path, command: str, commit: str) -> str:
    """Write weights/NAME; hand back its line of the card."""
    results = files.read_json(run / "results.json")
    state = torch.load(next(filter(Path.exists, (run / file for file in FILES))), weights_only=True)
    half = {k: t.half() if t.is_floating_point() else t for k, t in state["state_dict"].items()}
    data = "cifar10" if state["data"] == "data/cifar10-jpeg" else state["data"]  # the same images as JPEGs
    path = common.SHIPPED / name
    common.save(state | {"state_dict": half, "data": data}, path)
    cells = f"`{name}`", f"`python {command}`", commit, str(state["step"]), state["trained_on"], figures(results)
    return f"| {' | '.join(cells)} | {check(path):.4f} | {files.sha256(path)} |"


def keep_results() -> int:
    """Flags and results of the README's runs, whose folders begin with a script's name, and of the races' winners."""
    named = re.findall(rf"--out (runs/(?:{'|'.join(SCRIPTS)})\S*)", Path("report/runs.sh").read_text())
    kept = 0
    for folder in (*map(Path, named), *Path("runs/race/confirmed").glob("*/seed-*")):
        results = files.read_json(folder / "results.json")
        if results:
            config = files.read_json(folder / "config.json")
            flags = {k: v for k, v in config["flags"].items() if k not in ("out", "data_dir", "fresh")}
            name = "-".join(folder.parts[1:]).removeprefix("race-").removeprefix("confirmed-")
            script = next(script for script in SCRIPTS if name.startswith(script))
            machine = {"machine": config["machine"]} if "machine" in config else {}  # older runs do not know it
            whole = {"script": script, "flags": flags, **machine, **results}
            Path(f"report/results/{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
            kept += 1
    return kept


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.parse_args(argv or [])
    card = common.SHIPPED / "README.md"
    old = card.read_text().splitlines() if card.exists() else []
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    lines = []
    for name, (run, command) in RUNS.items():
        folder = Path("runs", run)
        if files.read_json(folder / "results.json"):
            lines.append(ship(name, folder, command, commit.strip()))
        else:
            lines += [line for line in old if line.startswith(f"| `{name}`")]
    card.write_text(HEAD + "\n".join(lines) + "\n")
    print(f"{card}: {len(lines)} files; report/results: {keep_results()} runs")


if __name__ == "__main__":
    common.program(main)
