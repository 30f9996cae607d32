"""README's and report/'s figures are those of report/results/, which the runs of report/runs.sh have left."""

import json
import re
import shlex
from pathlib import Path

import pytest

import char_rnn
import dcgan
import gan_mnist
import simclr
import vae
from report.race import spread
from tests.helpers import HERE

SCRIPTS = {script.__name__: script for script in (char_rnn, vae, gan_mnist, dcgan, simclr)}
USUAL = {"char_rnn": "tinyshakespeare", "vae": "mnist", "gan_mnist": "mnist", "dcgan": "cifar10", "simclr": "cifar10"}
FIGURES = {  # what README calls it: its name in results.json, and a factor
    "ELBO": ("elbo", 1),
    "log p(x)": ("log_px", 1),
    "FD-LeNet": ("fd_lenet", 1),
    "class entropy": ("class_entropy", 1),
    "nats": ("nats", 1),
    "linear": ("linear", 100),
    "kNN": ("knn", 100),
    "minutes": ("train_minutes", 1),
}
FREE = ("seed", "out", "data_dir", "device", "bf16", "fresh", "log_every", "sample_every", "save_every")
RESULTS = [json.loads(path.read_text()) for path in sorted(HERE.glob("report/results/*.json"))]


def rows() -> list[tuple[str, str, str]]:
    """(command, result, minutes) of README's table, of the commands that train."""
    row = r"^\|[^|]*\| `python (\w+\.py[^`]*)`[^|]*\| ([^|]*) \| ([^|]*) \|$"
    table = re.findall(row, (HERE / "README.md").read_text(), re.MULTILINE)
    return [row for row in table if not row[0].startswith("fid.py")]


def runs_of(command: str) -> list[dict]:
    """The results of a command, one a seed."""
    name, *flags = shlex.split(command.replace(".py", "", 1))
    wanted = {k: v for k, v in vars(SCRIPTS[name].get_args(flags)).items() if k not in FREE and v is not None}
    data = wanted.pop("data", USUAL[name]).removeprefix("data/")
    found = []
    for result in RESULTS:
        if result["script"] == name and result["flags"]["data"].removeprefix("data/").startswith(data):
            there = result["flags"]
            if all(there[k] == v for k, v in wanted.items() if k in there):
                found.append(result)
    return found


@pytest.mark.parametrize(("command", "said", "minutes"), rows())
def test_figures_of_the_readme(command, said, minutes):
    """Each figure that a row of the table begins with is the mean of its runs, ± their standard error."""
    runs = runs_of(command)
    assert runs, f"no results of {command}"
    shown = re.split(r"[;(]", said)[0]
    found = re.findall(rf"({'|'.join(map(re.escape, FIGURES))}) (-?[\d.]+)(?: ± ([\d.]+))?", shown)
    found += [(name, value, error) for value, error, name in re.findall(r"^(-?[\d.]+)(?: ± ([\d.]+))? (nats)", shown)]
    assert found, f"no figures in {said}"
    timed = [run for run in runs if run["flags"]["bf16"]]  # what README's minutes are of, unless a † says float32
    assert bool(timed) == ("†" not in minutes)
    for name, value, error in [*found, ("minutes", minutes.rstrip(" †"), "")]:
        key, factor = FIGURES[name]
        values = [run[key] * factor for run in (timed or runs if name == "minutes" else runs)]
        digits = len(value.partition(".")[2])
        assert f"{sum(values) / len(values):.{digits}f}" == value, (name, values)
        if error:
            exact = float(spread(values).partition("± ")[2])
            assert len(values) > 1 and float(error) == pytest.approx(
                exact, abs=0.6 * 10.0 ** -len(error.partition(".")[2])
            )


def test_tables_of_the_report():
    """Every row that a measurement printed stands in a page as it was printed."""
    pages = "".join(path.read_text() for path in HERE.glob("report/*.md"))
    tables = list(HERE.glob("report/results/*.md"))
    for path in tables:
        for line in path.read_text().splitlines():
            assert not line.startswith("|") or line in pages, f"{path.name}: {line}"


def test_commands_of_the_results():
    """Every line of runs.sh is a command whose flags exist."""
    lines = [line for line in (HERE / "report/runs.sh").read_text().splitlines() if line.startswith("python")]
    for line in lines:
        name, *flags = shlex.split(line)[1:]
        if name.removesuffix(".py") in SCRIPTS:
            SCRIPTS[name.removesuffix(".py")].get_args(flags)
        else:
            assert name == "-m" and (HERE / Path(*flags[0].split("."))).with_suffix(".py").exists()
    assert len(lines) > 5
