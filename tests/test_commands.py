"""Flags, help, imports and the commands that the documents name."""

import argparse
import ast
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import common
import dcgan
import fid
import gan_mnist
import simclr
import vae
from plumbing.data import images
from plumbing.judge import lenet
from report import bench, measure, race, ship
from tests.helpers import (
    HERE,
    LONG,
    NEEDED,
    RUNS,
    SCRIPTS,
    NoJudge,
    error_line,
    image,
    picture,
    results_of,
    told,
    write_inputs,
)


def test_import_has_no_side_effect(tmp_path):
    names = ", ".join(script.__name__ for script in SCRIPTS)
    names += "".join(f", report.{module.__name__.split('.')[-1]}" for module in (bench, measure, race, ship))
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import {names}"
    done = subprocess.run([sys.executable, "-c", code, "--no-such-flag"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


def imported(node: ast.stmt) -> set[str]:
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return set()


def test_extras_are_imported_where_they_are_used():
    extras = {"tensorboard", "matplotlib", "sklearn", "tqdm", "pytest", "scipy", "pytorch_fid", "torch_fidelity"}
    sources = [*HERE.glob("*.py"), *HERE.glob("plumbing/*/*.py"), *HERE.glob("report/*.py")]
    assert len(sources) > 10
    for path in sources:
        if path.name == "test_all.py":
            continue
        for node in ast.parse(path.read_text()).body:
            assert not extras & imported(node), f"{path.name} line {node.lineno}"


class Parsed(Exception):
    """In place of the work that a command would go on with."""


def parse_only(module, flags: list[str], monkeypatch) -> None:
    """Its main, up to the flags, which end it with status 2 if one of them does not exist."""
    parse = argparse.ArgumentParser.parse_args

    def stop_there(*args):
        parse(*args)
        raise Parsed

    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", stop_there)
        module.main(flags)


def test_commands_and_pictures_of_the_documents(monkeypatch):
    """Every command parses, every measurement is described, every picture is shown."""
    documents = [HERE / "README.md", *HERE.glob("report/*.md"), HERE / "weights/README.md"]
    text = "".join(document.read_text() for document in documents)
    inline = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    scripts, commands = {script.__name__: script for script in SCRIPTS}, 0
    for name, flags in re.findall(r"`python\s+(\w+)\.py([^`]*)`", inline):
        if name in scripts:
            scripts[name].get_args(shlex.split(flags))  # ends with status 2 for a flag that there is not
            commands += 1
        else:
            assert (HERE / f"{name}.py").exists(), f"python {name}.py"
    assert commands > 30

    described = set()
    for name, flags in re.findall(r"`python\s+-m\s+report\.(\w+)([^`]*)`", inline):
        flags = shlex.split(flags)
        if name == "measure":
            described |= {*flags[:1]} - {"NAME"}
        if "NAME" not in flags:
            parse_only({"measure": measure, "bench": bench, "race": race, "ship": ship}[name], flags, monkeypatch)
    assert described == set(measure.NAMES), "every measurement is described, and the other way round"

    shown = set()
    for document in documents:
        for path in re.findall(r"[\w./-]*(?:assets|pictures)/[\w.-]+\.(?:png|webp|html)", document.read_text()):
            near = (document.parent / path).resolve()
            shown.add(near if near.exists() else HERE / path)
    pictures = {path for folder in ("assets", "report/pictures") for path in (HERE / folder).iterdir()}
    assert shown == pictures and sum(path.stat().st_size for path in pictures) < 4e6


def test_line_counts_of_the_readme():
    """Within a tenth."""
    counts = re.findall(r"^ *([\w./*]+\.(?:py|md)) +(\d+)  ", (HERE / "README.md").read_text(), re.MULTILINE)
    for name, count in counts:
        lines = sum(len(path.read_text().splitlines()) for path in (*HERE.glob(name), *HERE.glob(f"[pr]*/{name}")))
        assert 0.9 * lines <= int(count) <= 1.1 * lines, (name, count, lines)
    assert len(counts) > 15


def test_python_of_the_readme(monkeypatch, capsys):
    """The block for a notebook runs as it stands, on digits."""
    (block,) = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.DOTALL)
    monkeypatch.setattr(fid, "SAMPLES", 500)
    Path("weights").symlink_to(HERE / "weights")
    names = {}
    exec(block, names)
    assert names["digits"].shape == (64, 1, 32, 32) and names["run"].results["elbo"] > -500
    assert "torch.Size([4, 1, 32, 32])" in capsys.readouterr().out


def test_every_candidate_of_every_race_is_a_command():
    scripts, runs = {script.__name__: script for script in SCRIPTS}, set()
    for name, labels in race.RACES.items():
        for label in labels:
            (script, *flags), change = race.candidate(name, label)
            assert scripts[script].get_args(flags).training and callable(change)
            runs.add(race.folder(name, label, 0))
    assert len(runs) == sum(map(len, race.RACES.values())) > 50


def test_a_race_is_run_on_a_validation_part(monkeypatch, capsys):
    """The test set is out of sight, what has been run is not run again, and the table has mean and standard error."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setitem(race.RACES, "vae", {"tiny": f"{' '.join(['vae', *RUNS[vae]])} --steps 2"})
    monkeypatch.setattr(race, "start", lambda *run: race.run(*run))
    monkeypatch.setattr(images, "load_images", images.load_images)
    monkeypatch.setattr(lenet, "classifier", lenet.classifier)
    monkeypatch.setattr(fid, "Judge", NoJudge)
    race.main(["vae", "--seeds", "0", "--jobs", "1"])
    assert "| tiny | -" in capsys.readouterr().out
    results = results_of(race.folder("vae", "tiny", 0))
    assert results["test_images"] == 161 and "1457 + 161 images" in results["data"]  # of 1,618, not of the test's 179
    assert race.spread([1.0, 2.0, 3.0]) == "2 ± 0.58" and race.spread([]) == ""


def test_report_refuses_a_strange_variant(capsys):
    line = error_line(capsys, measure.main, ["ablation", "temperature=0.1"])
    assert "no variant temperature=0.1; there are all, " in line


def test_numbers(capsys):
    def parse(*argv):
        return common.parser("vae", "vae.pth", "doc", 1, 1, 1.0).parse_args(argv)

    assert parse("--steps", "7", "--lr", "1e-4").lr == 1e-4
    for flag in ("--steps", "--batch-size", "--log-every"):
        for value in ("0", "-1", "1.5", "nan", "9" * 30, "two"):
            assert flag in error_line(capsys, parse, flag, value)
    for value in ("0", "-1", "nan", "inf", "two"):
        assert "--lr" in error_line(capsys, parse, "--lr", value)


NUMBERS = "0 -1 nan inf -inf 1e999 1e-320 0.5 2147483646 2147483648 99999999999999999999 0x10 word".split()
NUMBERS += ["", " ", "١"]


def numeric_flags(script) -> list[str]:
    """The flags of a script that take a number."""
    parsers, parse = [], argparse.ArgumentParser.parse_args

    def record(parser, *args):
        parsers.append(parser)
        return parse(parser, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", record)
        script.get_args(NEEDED.get(script, []))
    takes_a_number = lambda action: getattr(action.type, "__name__", "") in ("int", "float")
    return [action.option_strings[-1] for action in parsers[-1]._actions if takes_a_number(action)]


def test_every_number_for_every_flag(capsys, monkeypatch):
    """One line and exit 2, or a run: of what is accepted 20 are tried, with --long all."""
    write_inputs()
    monkeypatch.setattr(fid, "Judge", NoJudge)
    monkeypatch.setattr(simclr, "evaluate_run", lambda *_: {})
    tried, accepted = 0, []
    for script in SCRIPTS:
        for flag in numeric_flags(script):
            for number in NUMBERS:
                tried, argv = tried + 1, [*NEEDED.get(script, []), f"{flag}={number}"]
                try:
                    script.get_args(argv)
                    accepted.append((script, argv))
                except SystemExit as end:
                    error = capsys.readouterr().err.splitlines()[-1]
                    assert end.code == 2 and (f"argument {flag}" in error or f"{flag} goes with" in error), error
    assert tried > 1000 and 100 < len(accepted) < tried / 2
    runs = [(script, argv) for script, argv in accepted if script in RUNS and "--steps" not in argv[0]]
    runs = runs if LONG else random.Random(0).sample(runs, 20)
    for i, (script, argv) in enumerate(runs):
        told(capsys, script.main, [*RUNS[script], "--steps", "1", "--out", f"run{i}", *argv])
        shutil.rmtree(f"run{i}", ignore_errors=True)


def test_works_with_the_four_packages_alone(tmp_path):
    """Without the extras a run trains, and says in one line what it leaves out."""
    for i in range(20):
        image(tmp_path / f"set/{i}.png", mode="L", seed=i)
    hide = "import sys; sys.modules.update(dict.fromkeys(['tqdm', 'tensorboard', 'matplotlib', 'sklearn']));"
    call = f"sys.path.insert(0, {str(HERE)!r}); import vae; vae.main(['--data', 'set', '--steps', '2', '--out', 'run'])"
    done = subprocess.run([sys.executable, "-c", hide + call], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Not installed: tqdm, tensorboard, matplotlib, sklearn." in done.stdout
    assert Path("run/vae.pth").exists() and not Path("run/curves.png").exists()


def test_the_newest_run_that_fits_every_flag_is_taken(capsys, monkeypatch):
    """Also those that only training heeds: a flag that is accepted does something."""
    monkeypatch.setattr(fid, "Judge", NoJudge)
    for lr in ("0.002", "0.001"):
        gan_mnist.main(
            ["--data", "digits", "--batch-size", "4", "--steps", "1", "--lr", lr, "--out", f"runs/gan_mnist-{lr}"]
        )
    for flags, run in (([], "0.001"), (["--lr", "0.002", "--seed", "7"], "0.002"), (["--lr", "0.001"], "0.001")):
        capsys.readouterr()
        gan_mnist.main(["--generate", "--n", "4", *flags])
        assert f"weights: runs/gan_mnist-{run}/generator.pth" in capsys.readouterr().err
    line = error_line(capsys, gan_mnist.main, ["--generate", "--lr", "0.5"])
    assert "No trained weights agree with these flags" in line and "has lr 0.00" in line
    line = error_line(capsys, vae.main, ["--generate", "--lr", "0.5"])  # with the file that ships is no config.json
    assert "vae.pth has lr unknown" in line


SHAPE = {"image_size": 32, "channels": 1, "latent_dim": 2, "hidden_dim": 2, "spectral_norm": False}
LIKELIHOOD = {"likelihood": "bernoulli", "x_sigma2": 0.1, "binarize": False}
GENERATORS = {
    vae: ("vae.pth", {**SHAPE, **LIKELIHOOD, "arch": "mlp", "width": 8}),
    gan_mnist: ("generator.pth", {"arch": "dense", "noise_dim": 2, "image_size": 28}),
    dcgan: ("generator.pth", SHAPE),
}


@pytest.mark.parametrize("script", GENERATORS)
def test_weights_of_one_folder_generate_into_another(script):
    name, config = GENERATORS[script]
    state = {"script": script.__name__, "step": 1, "data": "digits", "trained_on": "digits", **config}
    Path("trained").mkdir()
    common.save({**state, "state_dict": script.build(config).state_dict()}, Path("trained", name))
    for weights, out in (("trained", "one"), (f"trained/{name}", "two")):
        torch.manual_seed(0)
        script.main(["--generate", "--n", "4", "--weights", weights, "--out", out])
        picture(Path(out, "generated.png"))
    assert [path.name for path in Path("trained").iterdir()] == [name]
