"""Scripts as modules of somebody's process: what they change they change back. And flags that go with others."""

import signal
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import char_rnn
import common
import dcgan
import fid
import gan_mnist
import simclr
import vae
from plumbing.data.batches import permutation
from plumbing.run import run as run_module
from plumbing.system import flags
from tests.helpers import (
    RUNS,
    SMALL,
    NoJudge,
    as_files,
    error_line,
    image,
    last_of,
    photos,
    results_of,
    same,
    write_inputs,
)


def of_the_process() -> tuple:
    """What a script could change for everybody."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    state = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    torch_wide = strict, torch.backends.cudnn.benchmark
    return sys.excepthook, handlers, socket.getdefaulttimeout(), torch_wide, state, sys.stdout, sys.stderr


def interrupted(run: run_module.Run, *_, **__) -> None:
    """In the body of the loop, whose generator still waits to be closed."""
    if run.step == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("script", RUNS)
def test_main_leaves_the_process_as_it_was(script, capfd, monkeypatch):
    """Twice, with --deterministic, after an interrupt, after bad input, and after --generate."""
    write_inputs()
    monkeypatch.setattr(fid, "Judge", NoJudge)
    for module in (vae, simclr):
        monkeypatch.setattr(module, "evaluate_run", lambda *_: {})
    torch.manual_seed(5)
    before = of_the_process()
    argv = [*RUNS[script], "--out", "run", "--save-every", "1", "--deterministic"]
    script.main([*argv, "--steps", "1"])
    assert of_the_process() == before
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Run, "add", interrupted)
        with pytest.raises(KeyboardInterrupt) as held:  # whose traceback keeps the frames of the loop alive
            script.main([*argv, "--steps", "3"])
    assert of_the_process() == before and held
    script.main([*argv, "--steps", "3"])
    with pytest.raises(SystemExit):
        script.main([*argv, "--steps", "4", "--seed", "1"])
    script.main(["--eval" if script is simclr else "--generate", "--weights", "run", "--data-dir", "data"])
    assert of_the_process() == before and last_of("run")["step"] == 3
    capfd.readouterr()
    print("still heard", flush=True)
    assert "still heard" in capfd.readouterr().out


def test_ctrl_c_while_generating_is_the_callers(capfd, monkeypatch):
    """Descriptor 1 stays where it was; the reader who goes away is the caller's affair, too."""
    write_inputs()
    char_rnn.main([*RUNS[char_rnn], "--steps", "1", "--out", "run"])

    def stopping(*_):
        yield "once"
        raise KeyboardInterrupt

    monkeypatch.setattr(char_rnn, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        char_rnn.main(["--generate", "--weights", "run"])
    capfd.readouterr()
    print("still heard", flush=True)
    assert capfd.readouterr().out == "still heard\n"


def test_training_in_a_thread(monkeypatch):
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    failed = []

    def train():
        try:
            vae.main([*SMALL, "--steps", "2"])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failed and last_of("run")["step"] == 2


# ------------------------------------------------------------------------------------------------ flags and their verbs

VERBS = {  # script: verb and its value
    vae: {"generate": [], "eval": [], "interpolate": [], "export": [], "encode": ["x.npz"]},
    char_rnn: {"generate": [], "score": ["tale.txt"]},
    gan_mnist: {"generate": [], "eval": []},
    dcgan: {"generate": [], "interpolate": [], "eval": [], "export": []},
    simclr: {"eval": [], "features": ["x.npz"], "export": []},
}
USED = {  # flag: its value, and where it is used
    "n": ("4", {"generate"}),
    "start": ("a", {"generate"}),
    "n-chars": ("9", {"generate"}),
    "n-samples": ("2", {"generate"}),
    "temperature": ("0.5", {"generate"}),
    "top-k": ("3", {"generate"}),
    "top-p": ("0.5", {"generate"}),
    "labels": ("0.5", {"train", "eval"}),
    "samples": ("9", {"train", "eval"}),
    "weights": ("run", {"train", *flags.VERBS}),
    "steps": ("1", {"train"}),
    "fresh": (None, {"train"}),
    "compile": (None, {"train"}),
    "log-every": ("1", {"train"}),
    "save-every": ("1", {"train"}),
    "sample-every": ("1", {"train"}),
}


@pytest.mark.parametrize("script", RUNS)
def test_every_flag_in_every_mode_is_used_or_refused(script, capsys):
    parser_flags, tried = set(vars(script.get_args([]))), 0
    shared = set(vars(common.parser("x", "x.pth", "", 1, 1, 1.0).parse([])))
    group = parser_flags - shared - set(script.get_args([]).science)
    verbs = VERBS[script]
    assert {flag.replace("-", "_") for flag in USED} | set(verbs) >= group, "a flag that no line of the table knows"
    for mode in ("train", *verbs):
        mode_flags = [] if mode == "train" else [f"--{mode}", *verbs[mode]]
        for flag, (value, places) in USED.items():
            if flag.replace("-", "_") not in parser_flags:
                continue
            argv, tried = [*mode_flags, f"--{flag}", *([value] if value else [])], tried + 1
            if mode in places:
                args = script.get_args(argv)
                assert args.training == (mode == "train")
            else:
                line = error_line(capsys, script.get_args, argv)
                assert f"--{flag} goes with " in line and all(p in line or p == "train" for p in places)
    assert tried > 15


# ----------------------------------------------------------------------------------------------- training from weights


@pytest.mark.parametrize("script", RUNS)
def test_training_begins_with_the_weights_that_are_named(script, capsys, monkeypatch):
    """On other data, with another learning rate and a fresh optimiser; of a network that is not fitting, one line."""
    write_inputs()
    monkeypatch.setattr(fid, "Judge", NoJudge)
    for module in (vae, simclr):
        monkeypatch.setattr(module, "evaluate_run", lambda *_: {})
    script.main([*RUNS[script], "--steps", "2", "--out", "run"])
    name = "generator.pth" if script in (gan_mnist, dcgan) else f"{script.__name__}.pth"
    saved = torch.load(f"run/{name}", weights_only=True)

    seen, steps = {}, run_module.Run.steps

    def first(run):
        parts = run.to_continue
        weights = parts["G" if "G" in parts else "model"].state_dict()
        seen.update({key: value.clone() for key, value in weights.items()})
        seen["optimizer"] = [len(o.state) for o in parts.values() if isinstance(o, torch.optim.Optimizer)]
        return steps(run)

    monkeypatch.setattr(run_module.Run, "steps", first)
    data = {char_rnn: "other.txt", simclr: "more"}.get(script, "digits")
    Path("other.txt").write_text("the quick Brown fox? " * 40)
    for i in range(20):
        image(Path(f"more/{'cd'[i % 2]}/{i}.png"), size=(8, 8), seed=100 + i)
    argv = ["--data", data, "--batch-size", "4", "--lr", "1e-5", "--weights", "run", "--steps", "1", "--out", "tuned"]
    if script is char_rnn:
        argv = ["--seq-len", "4", *argv]
    capsys.readouterr()
    script.main(argv)
    said = capsys.readouterr().out
    assert "starts from the weights run/" in said and seen.pop("optimizer") and same(seen, saved["state_dict"])
    assert '"weights": "run"' in Path("tuned/config.json").read_text()
    if script is char_rnn:
        assert (
            "removed: {'?': 40, 'B': 40}" in said
            and torch.load(f"tuned/{name}", weights_only=True)["chars"] == saved["chars"]
        )
    script.main([*argv[:-3], "2", "--out", "tuned"])  # goes on
    assert last_of("tuned")["step"] == 2
    line = error_line(capsys, script.main, [*RUNS[script], "--steps", "3", "--out", "run", "--lr", "0.5"])
    assert "not --lr 0.5" in line and "To start from its weights, add --weights run." in line
    line = error_line(capsys, script.main, [*RUNS[script], "--lr", "1e-5", "--out", "tuned"])
    assert "tuned was trained with " in line and "--weights run, not " in line and "no --weights" in line
    wrong = {
        vae: ["--latent-dim", "3"],
        char_rnn: ["--h-dim", "5"],
        gan_mnist: ["--arch", "conv"],
        dcgan: ["--hidden-dim", "2"],
        simclr: ["--feature-dim", "7"],
    }[script]
    line = error_line(capsys, script.main, [*argv[:-2], "--out", "else", *wrong])
    assert "The weights do not fit this network (" in line and "Leave out the flags" in line
    script.main([*RUNS[script], "--weights", "run", "--steps", "1"])  # without --out: a folder of its own
    assert [path.name for path in Path("runs").iterdir()][0].endswith("-from-weights")


def test_images_that_do_not_fit_the_weights(capsys, monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    as_files(photos(8, 8), "colour")
    vae.main([*RUNS[vae], "--steps", "1", "--out", "run", "--image-size", "8"])
    line = error_line(capsys, vae.main, ["--data", "colour", "--weights", "run", "--steps", "1"])
    assert "The weights do not fit this network (size mismatch" in line
    vae.main(["--data", "digits", "--weights", "run", "--steps", "1", "--out", "next"])  # read at the weights' size
    assert torch.load("next/vae.pth", weights_only=True)["image_size"] == 8


def test_a_generator_alone_begins_with_an_untrained_discriminator(capsys, monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    gan_mnist.main([*RUNS[gan_mnist], "--steps", "1", "--out", "run"])
    Path("run/discriminator.pth").unlink()
    gan_mnist.main([*RUNS[gan_mnist], "--steps", "1", "--out", "next", "--weights", "run/generator.pth"])
    assert "there is no run/discriminator.pth. The discriminator starts untrained." in capsys.readouterr().out
    line = error_line(
        capsys, gan_mnist.main, [*RUNS[gan_mnist], "--out", "second", "--weights", "next/discriminator.pth"]
    )
    assert "next/discriminator.pth is the discriminator. Name the generator" in line
    D = gan_mnist.discriminator().state_dict()
    old = {f"{int(key.split('.')[0]) - 1}.{key.split('.')[1]}": value for key, value in D.items()}  # before nn.Flatten
    state = {"script": "gan_mnist", "trained_on": "x", "step": 1, "data": "digits", "network": "D", "state_dict": old}
    common.save(state, Path("run/discriminator.pth"))
    line = error_line(capsys, gan_mnist.main, [*RUNS[gan_mnist], "--out", "third", "--weights", "run"])
    assert "The weights do not fit this network (" in line and len(line) < 250


# ---------------------------------------------------------------------------------------------------------- asked for


def test_codes_and_anomaly_scores_of_own_images(capsys, monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    vae.main(
        [*RUNS[vae], "--steps", "300", "--out", "run", "--image-size", "8", "--batch-size", "32", "--latent-dim", "4"]
    )
    assert results_of("run")["active_units"] >= 1
    for i in range(5):
        image(Path(f"noise/{i}.png"), size=(8, 8), seed=i)  # in colour: taken as grey, as the network was trained
    for source, name in (("digits", "digits"), ("noise", "noise")):
        vae.main(["--encode", f"{name}.npz", "--data", source, "--weights", "run"])
    said = capsys.readouterr().out
    assert "noise.npz: mu (5, 4), log_sigma2 (5, 4), elbo (5,) of noise, in grey" in said
    digits, noise = (dict(np.load(f"{name}.npz")) for name in ("digits", "noise"))
    assert digits["mu"].shape == (1797, 4) and noise["names"].tolist() == [f"{i}.png" for i in range(5)]
    assert digits["elbo"].mean() > noise["elbo"].max()  # what is strange has a low bound
    model = vae.build(torch.load("run/vae.pth", weights_only=True)).eval()
    data = vae.images.load_images("digits", "", "data", 8)
    order = np.argsort(permutation(1797, 0, 0).numpy())
    mu, log_sigma2 = model.posterior(torch.cat([data.train, data.test])[order] / 255)
    np.testing.assert_allclose(digits["mu"], mu.detach(), atol=1e-5)
    np.testing.assert_allclose(digits["log_sigma2"], log_sigma2.detach(), atol=1e-5)
    terms = vae.mean_losses(model, torch.cat([data.train, data.test]), 1.0)
    assert digits["elbo"].mean() == pytest.approx(-terms["loss"], rel=0.01)
    assert "Name a new file.npz" in error_line(capsys, vae.main, ["--encode", "digits.npz", "--weights", "run"])


def test_interpolation_between_two_chosen_files(capsys, monkeypatch):
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {})
    vae.main([*RUNS[vae], "--steps", "1", "--out", "run", "--image-size", "8"])
    a, b = (str(image(Path(f"{name}.png"), mode="L", size=(8, 8), seed=i)) for i, name in enumerate("ab"))
    vae.main(["--interpolate", a, b, "--weights", "run", "--out", "drawn"])
    from PIL import Image

    drawn = np.asarray(Image.open("drawn/interpolation.png"))[16:, :, 0]  # under its labels
    times = drawn.shape[0] // 10
    drawn = drawn[::times, ::times]  # of each enlarged pixel one
    assert drawn.shape == (10, 15 * 9 + 1 + 4 * 3) and times == 4
    assert np.array_equal(drawn[1:9, 1:9], np.asarray(Image.open(a)))
    assert np.array_equal(drawn[1:9, -9:-1], np.asarray(Image.open(b)))
    assert "there is no file c.png" in error_line(capsys, vae.main, ["--interpolate", a, "c.png", "--weights", "run"])
    Path("c.png").write_text("no image")
    assert "c.png cannot be read as an image" in error_line(
        capsys, vae.main, ["--interpolate", a, "c.png", "--weights", "run"]
    )
    assert "takes two image files or none, not 1" in error_line(
        capsys, vae.main, ["--interpolate", a, "--weights", "run"]
    )


def test_a_collapsed_posterior_is_said(capsys, monkeypatch):
    monkeypatch.setattr(fid, "Judge", NoJudge)
    vae.main([*RUNS[vae], "--steps", "60", "--lr", "0.01", "--beta", "10000", "--image-size", "8", "--out", "run"])
    assert "WARNING: posterior collapse: no dimension of z is used" in capsys.readouterr().out
    assert results_of("run")["active_units"] == 0


def test_active_units_are_those_with_information():
    """Of a posterior with a known KL in each dimension."""
    mu = torch.zeros(1000, 4)
    mu[:, 0] = torch.randn(1000)
    mu[:, 1] = 0.1  # KL 0.005
    mu[:, 2] = 0.2  # KL 0.02
    model = vae.build_vae("mlp", 4, 1, 8)
    model.posterior = lambda x: (mu[: len(x)], torch.zeros(len(x), 4))
    assert vae.active_units(model, torch.zeros(500, 1, 8, 8, dtype=torch.uint8)) == 2


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50"])
def test_simclrs_encoder_for_others(encoder, capsys, monkeypatch):
    """Its weights under torchvision's names, and TorchScript of images in [0, 1]: the same h."""
    import torchvision

    monkeypatch.setattr(simclr, "evaluate_run", lambda *_: {})
    write_inputs()
    simclr.main([*RUNS[simclr], "--encoder", encoder, "--steps", "1", "--out", "run"])
    simclr.main(["--export", "--weights", "run"])
    said = capsys.readouterr().out
    assert (
        "SimCLR_encoder: images (B, 3, S, S) in [0, 1] -> h, of length 1" in said and "there is no maxpool, fc" in said
    )
    theirs = getattr(torchvision.models, encoder)()
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    missing = theirs.load_state_dict(torch.load(f"run/{encoder}.pth", weights_only=True), strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys
    theirs.fc = nn.Identity()
    numbers = torch.load("run/simclr.pth", weights_only=True)
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    model = simclr.build(numbers)
    h = simclr.represent(model, x, bf16=False)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(simclr.prepare(model, x)), h, rtol=1e-4, atol=1e-5)
        traced = torch.jit.load("run/SimCLR_encoder.pth")(x / 255)
    torch.testing.assert_close(traced, nn.functional.normalize(h, dim=1), rtol=1e-4, atol=1e-5)


def test_a_set_in_colour_is_another_than_the_grey_one_of_the_same_name():
    """Also after it has been made grey: what is measured on it goes into a folder of its own."""
    x = photos(12, 8)
    as_files(x, "colour/pictures")
    as_files(x[:, :1], "grey/pictures")
    argv = "--image-size 8 --batch-size 4 --steps 1 --out run".split()
    simclr.main(["--data", "grey/pictures", *argv])
    before = results_of("run")
    simclr.main(["--eval", "--data", "colour/pictures", "--weights", "run"])
    assert results_of("run") == before and Path("run/eval-pictures/results.json").exists()


def test_simclr_is_evaluated_on_another_set(capsys):
    write_inputs()
    simclr.main([*RUNS[simclr], "--steps", "1", "--out", "run"])
    before = results_of("run")
    for i in range(30):
        image(Path(f"more/{'cde'[i % 3]}/{i}.png"), size=(12, 9), mode="L", seed=i)
    capsys.readouterr()
    simclr.main(["--eval", "--data", "more", "--weights", "run"])
    said = capsys.readouterr().out
    assert "evaluated on more (27 + 3 images of (1, 8, 8)), where the encoder is from pictures" in said
    last = said.splitlines()[-1]
    assert last.startswith("run/eval-more: step 1, trained on pictures (") and ", measured on more (27" in last
    assert results_of("run") == before and results_of("run/eval-more")["test_images"] == 3


def test_main_hands_back_the_run(monkeypatch):
    """A notebook goes on with the model and the results; a finished run comes back as it was."""
    monkeypatch.setattr(vae, "evaluate_run", lambda *_: {"elbo": -1.0})
    argv = [*RUNS[vae], "--steps", "2", "--out", "run"]
    for run in (vae.main(argv), vae.main(argv)):
        assert run.folder == Path("run") and run.step == 2 and run.results["elbo"] == -1
        assert run.model.sample(3).shape[0] == 3
    assert vae.main(["--generate", "--weights", "run"]) is None
    assert isinstance(gan_mnist.main([*RUNS[gan_mnist], "--steps", "1"]).model, torch.nn.Module)


def test_flags_in_a_notebook(monkeypatch):
    """main() without arguments is a training with the defaults, whatever the kernel's command line is."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    assert vae.get_args().steps == 20000 and vae.get_args(["--steps", "3"]).steps == 3
