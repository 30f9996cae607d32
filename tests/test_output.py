"""What is printed, where, and when: help, bars, warnings, errors, the end of a run, what --generate leaves."""

import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import char_rnn
import common
import dcgan
import fid
import gan_mnist
import simclr
import vae
from plumbing.judge import lenet
from plumbing.run import plots
from plumbing.system import process
from report import bench, measure
from tests.helpers import HERE, RUNS, SCRIPTS, SMALL, NoJudge, error_line, results_of, write_inputs


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_help_in_any_encoding(encoding, monkeypatch):
    for script in [*SCRIPTS, bench, measure]:
        out = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "argv", ["x.py", "--help"])
        with pytest.raises(SystemExit) as end:
            process.program(script.main)
        out.flush()
        assert not end.value.code and b"usage: x.py" in out.buffer.getvalue()


def in_a_terminal(columns: int, *argv: str) -> str:
    """What a script writes to one, this wide."""
    terminal, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, str(HERE / argv[0]), *argv[1:]], stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    pieces = []
    while True:
        try:
            pieces.append(os.read(terminal, 1 << 16))
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    return b"".join(pieces).decode()


def test_the_bar_at_100_columns():
    """It shows its losses whole and is more than a character long; warnings have lines of their own."""
    said = in_a_terminal(
        100, "gan_mnist.py", *"--data digits --lr 0.02 --steps 150 --log-every 5".split(), "--sample-every", "75"
    )
    shown = [line for line in re.split("[\r\n]", said) if "it/s, " in line]
    assert shown and all(len(line) < 100 for line in shown)
    for line in shown:
        assert re.search(r"^gan_mnist: +\d+%\|.{8,}\| \d+/150 \[.*it/s, d_loss \S+ g_loss \S+ d_x \S+\]$", line), line
    warnings = [line for line in re.split("[\r\n]", said) if "WARNING: step" in line]
    assert warnings and all(line.startswith("WARNING: step ") and line.count("%|") == 0 for line in warnings)


def test_the_end_of_a_run(capsys, monkeypatch):
    """Pictures that are there, numbers and what they mean, where the rest is, the data; 3 steps have a row."""
    monkeypatch.setattr(fid, "SAMPLES", 500)
    for script in (vae, dcgan, gan_mnist):
        script.main([*RUNS[script], "--steps", "3", "--out", f"{script.__name__}-run"])
        lines = capsys.readouterr().out.splitlines()
        assert all(0 < float(rate) < 1e5 for rate in re.findall(r"([\d.e+]+) steps/s", "".join(lines)))
        end = lines[min(i for i, line in enumerate(lines) if line.startswith("picture: ")) :]
        last = f"{script.__name__}-run: step 3, trained and measured on digits ("
        kinds = ("picture: ", "  ", "FID is measured by: ", "all results: ", last)
        order = [next(k for k, kind in enumerate(kinds) if line.startswith(kind)) for line in end]
        assert order == sorted(order) and [order.count(k) for k in (2, 3, 4)] == [1, 1, 1] and order.count(0) >= 2
        assert 2 <= order.count(1) <= 4 and any("FD-LeNet " in line and "lower" in line for line in end)
        assert not any("{" in line for line in end)
        pictures = [Path(line.removeprefix("picture: ")) for line in end if line.startswith("picture: ")]
        assert all(path.exists() for path in pictures)
        assert {f"{script.__name__}-run/curves.png", f"{script.__name__}-run/samples/step_0000003.png"} <= set(
            map(str, pictures)
        )
        assert isinstance(results_of(f"{script.__name__}-run")["fd_lenet_about"], dict)
        assert Path(f"{script.__name__}-run/metrics.csv").read_text().splitlines()[1].startswith("3,train,")


def test_a_single_row_is_to_be_seen(monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    for n in (1, 30):
        plots.curves([{"step": i, "split": "train", "loss": 1.0} for i in range(n)], Path("curves.png"), {})
    assert [figure.axes[0].lines[0].get_marker() for figure in figures] == [".", "None"]


def test_curves_show_what_comes_late_and_the_equilibrium(monkeypatch):
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: figures.append(figure))
    rows = [{"step": i, "split": "train", "d_loss": 100.0 if i == 0 else 1 + i / 100} for i in range(40)]
    plots.curves(rows, Path("curves.png"), {"d_loss": 1.5, "elsewhere": 3.0})
    (axes,) = figures[0].axes
    assert 1 > axes.get_ylim()[0] > 0.9 and 1.5 < axes.get_ylim()[1] < 1.6
    assert list(axes.lines[1].get_ydata()) == [1.5, 1.5]


@pytest.mark.parametrize(
    ("loss", "smoothing", "expected"),
    [
        ("gan", 0, {"d_loss": 2 * math.log(2), "g_loss": math.log(2), "d_x": 0.5, "d_g_z": 0.5}),
        (
            "gan",
            0.1,
            {
                "d_loss": -0.9 * math.log(0.45) - 1.1 * math.log(0.55),
                "g_loss": -math.log(0.45),
                "d_x": 0.45,
                "d_g_z": 0.45,
            },
        ),
        ("lsgan", 0, {"d_loss": 0.25, "g_loss": 0.125, "d_x": 0.5, "d_g_z": 0.5}),
        ("hinge", 0, {"d_loss": 2}),  # any score from -1 to 1 is the best for both
    ],
)
def test_equilibrium(loss, smoothing, expected):
    """Goodfellow et al. 2014, proposition 1; with labels smoothed by s the best D is (1 − s) / 2 where p_g = p_data."""
    found = dcgan.equilibrium(loss, smoothing)
    assert found == pytest.approx(expected, rel=1e-9)
    if smoothing == 0 and loss in gan_mnist.GAMES:
        assert gan_mnist.EQUILIBRIUM[loss] == found
    # No score for both is better for D than the one that makes the curves' values.
    scores = torch.linspace(-2, 2, 4001, dtype=torch.float64)[:, None]
    probability = torch.sigmoid if loss == "gan" else torch.nn.Identity()
    d_loss_fn, g_loss_fn = dcgan.game(loss, 0, smoothing)
    losses = torch.stack([d_loss_fn(score, score) for score in scores])
    assert losses.min().item() == pytest.approx(found["d_loss"], abs=1e-6)
    if loss != "hinge":
        best = scores[losses.argmin()]
        assert probability(best).item() == pytest.approx(found["d_x"], abs=1e-3) and found["d_x"] == found["d_g_z"]
        assert g_loss_fn(best).item() == pytest.approx(found["g_loss"], abs=2e-3)


@pytest.mark.parametrize(
    ("step", "entropies", "now", "warned"),
    [(5, [], 0.1, False), (10, [], 0.1, True), (5, [2.0], 0.1, True), (5, [0.2], 0.1, False), (90, [0.1], 2.0, False)],
)
def test_an_untrained_generator_has_not_collapsed(step, entropies, now, warned, capsys):
    """Mode collapse is what has been better before, or is still so after a tenth of the steps."""
    rows = [{"step": 1, "split": "samples", "class_entropy": h, "spread": h / 2} for h in entropies]
    run = SimpleNamespace(step=step, args=SimpleNamespace(steps=100), rows=rows)
    lenet.warn_if_collapsed(run, {"class_entropy": now, "class_histogram": [1] * 10})
    assert ("mode collapse, class entropy" in capsys.readouterr().out) == warned
    lenet.warn_if_collapsed(run, {"spread": now / 2})
    assert ("mode collapse, samples differ by 5% of what images do" in capsys.readouterr().out) == warned


def test_weights_of_a_substitute_are_named_loudly(capsys, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main(["--steps", "1"])
    capsys.readouterr()
    vae.main(["--generate", "--n", "1"])
    said = capsys.readouterr().err
    assert "trained on digits (1618 + 179 images of (1, 32, 32)), a substitute" in said
    warning = "WARNING: these weights know the substitute only. Train again with --fresh, or use --weights"
    assert f"{warning} {HERE}" in said
    weights = re.search(r"--weights (.*)\.", said)[1]
    vae.main(["--generate", "--n", "1", "--weights", weights, "--out", "other"])
    assert "WARNING" not in capsys.readouterr().err and Path("other/generated.png").exists()


@pytest.mark.parametrize("script", [vae, gan_mnist, dcgan])
def test_many_images_become_files(script, capsys, monkeypatch):
    """Which are those of draw_samples(), and of the grid of few; a second time the first ones are moved aside."""
    monkeypatch.setattr(fid, "Judge", NoJudge)
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    monkeypatch.setattr(common, "GRID", 20)
    script.main([*RUNS[script], "--steps", "1", "--out", "run"])
    script.main(["--generate", "--weights", "run", "--n", "530", "--seed", "3"])
    found = sorted(Path("run/generated").iterdir())
    assert [path.name for path in found] == [f"{i:06d}.png" for i in range(530)]
    state = torch.load(
        next(path for path in Path("run").glob("*.pth") if path.name in fid.sources.WEIGHTS), weights_only=True
    )
    drawn = torch.cat(list(script.draw_samples(script.build(state).eval(), 530, 3)))
    read = np.stack([np.asarray(Image.open(path)) for path in found])
    assert np.array_equal(read, drawn[:, 0].numpy()) and not Path("run/generated.png").exists()
    script.main(["--generate", "--weights", "run", "--n", "21"])
    assert (
        len(list(Path("run/generated").iterdir())) == 21
        and "the older images are now in run/generated." in capsys.readouterr().out
    )
    assert [len(list(path.iterdir())) for path in Path("run").glob("generated.*")] == [530]
    script.main(["--generate", "--weights", "run", "--n", "20"])
    assert Path("run/generated.png").exists()


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        (vae, "--data digits --latent-dim 2000000000"),
        (gan_mnist, "--data digits --noise-dim 2000000000 --batch-size 256"),
        (char_rnn, "--data tale.txt --h-dim 2000000 --n-layers 1 --seq-len 4 --batch-size 2"),
        (simclr, "--data pictures --feature-dim 2000000000 --batch-size 8"),
    ],
)
def test_too_little_memory_is_one_line(script, argv, capsys, monkeypatch):
    write_inputs()
    monkeypatch.setattr(sys, "argv", ["x.py", *argv.split()])
    line = error_line(capsys, process.program, script.main)
    assert "not enough memory" in line and "Try a smaller --batch-size" in line and process.RESUME in line


def test_without_standard_output_a_run_ends_well():
    command = f"exec {sys.executable} {HERE / 'vae.py'} {' '.join(SMALL)} --steps 1 >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and results_of("run")["step"] == 1, done.stderr[-500:]


def test_what_is_measured_of_another_file_does_not_replace_the_runs(monkeypatch, capsys):
    monkeypatch.setattr(fid, "SAMPLES", 500)
    dcgan.main([*RUNS[dcgan], "--steps", "4", "--sample-every", "2", "--out", "run"])
    before = results_of("run")
    dcgan.main(["--eval", "--weights", "run/best_fd_lenet.pth"])
    assert results_of("run") == before and Path("run/results-best_fd_lenet.json").exists()
    for script, name in ((dcgan, "run/discriminator.pth"), (fid, None)):
        argv = (
            ["--generate", "--weights", name]
            if name
            else ["digits:test", "run/discriminator.pth", "--features", "lenet"]
        )
        assert "discriminator" in error_line(capsys, script.main, argv)


@pytest.mark.parametrize("script", [vae, gan_mnist, dcgan, char_rnn])
def test_a_file_without_weights_generates_nothing(script, capsys):
    Path("run").mkdir()
    name = "generator.pth" if script in (gan_mnist, dcgan) else f"{script.__name__}.pth"
    torch.save({"script": script.__name__, "trained_on": "x", "step": 1, "data": "x", "arch": "mlp"}, f"run/{name}")
    assert "it has no 'state_dict'" in error_line(capsys, script.main, ["--generate", "--weights", "run"])


def test_two_processes_generate_each_their_own():
    """The folder of a second one is not taken for that of the first."""
    vae.main([*RUNS[vae], "--steps", "1", "--out", "run"])
    first = subprocess.Popen(
        [sys.executable, str(HERE / "vae.py"), *"--weights run --generate --n 3000 --seed 1".split()]
    )
    while not list(Path("run").glob("generated.*.part")) and first.poll() is None:
        pass
    vae.main("--weights run --generate --n 401 --seed 2".split())
    assert first.wait() == 0
    counts = sorted(len(list(path.iterdir())) for path in Path("run").glob("generated*") if path.is_dir())
    assert counts == [401, 3000]


def test_ctrl_c_after_training_says_what_is_kept():
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import vae\ndef stop(*_): raise KeyboardInterrupt\n"
    code += "vae.evaluate_run = stop; vae.common.program(vae.main)"
    done = subprocess.run([sys.executable, "-c", code, *SMALL, "--steps", "2"], capture_output=True, text=True)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert f"stopped. {process.RESUME}" in done.stderr
    assert common.load(Path("run/last.pth"), ("vae",), "flags")["step"] == 2


@pytest.mark.parametrize("script", RUNS)
@pytest.mark.parametrize("edit", ["renamed", "wider", "more"])
def test_weights_of_another_version_of_a_layer(script, edit, capsys, monkeypatch):
    """First what to do, then the first thing that does not fit."""
    write_inputs()
    monkeypatch.setattr(fid, "Judge", NoJudge)
    for module in (vae, simclr):
        monkeypatch.setattr(module, "evaluate_run", lambda *_: {})
    argv = [*RUNS[script], "--steps", "1", "--out", "run"]
    script.main(argv)
    name = "generator.pth" if script in (gan_mnist, dcgan) else f"{script.__name__}.pth"
    state = torch.load(f"run/{name}", weights_only=True)
    weights = state["state_dict"]
    key = next(key for key, value in weights.items() if value.ndim > 1)
    if edit == "renamed":
        weights["other"] = weights.pop(key)
    elif edit == "wider":
        weights[key] = torch.cat([weights[key]] * 2)
    else:
        weights |= {f"new.{i}.weight": torch.zeros(1) for i in range(50)}
    torch.save(state, f"run/{name}")
    line = error_line(capsys, script.main, ["--eval" if script is simclr else "--generate", "--weights", "run"])
    assert "The weights do not fit this network (" in line
    assert len(line) < 250 and line.count("new.") <= 1

    last = torch.load("run/last.pth", weights_only=True)
    model = next(key for key in ("model", "G") if key in last)
    last[model]["other"] = last[model].pop(next(iter(last[model])))
    torch.save(last, "run/last.pth")
    line = error_line(capsys, script.main, [*argv, "--steps", "2"])
    assert "run/last.pth was saved by another version (Missing key" in line
    assert len(line) < 250
