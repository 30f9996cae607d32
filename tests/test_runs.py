"""report/runs.sh, every line in its order, at tiny sizes: what is said to make the figures again still runs."""

import importlib
import shlex
import shutil
from functools import cache, partial
from pathlib import Path

import pytest
import torch

import char_rnn
import dcgan
import fid
import gan_mnist
import simclr
import vae
from plumbing.data import images, texts
from plumbing.judge import lenet
from plumbing.run import plots
from report import bench, measure, race
from tests.helpers import HERE, LONG

TINY = {
    char_rnn: "--steps 2 --eval-every 2 --batch-size 2",
    vae: "--steps 2 --sample-every 2 --samples 2 --batch-size 4",
    gan_mnist: "--steps 2 --sample-every 1 --batch-size 4",
    dcgan: "--steps 2 --sample-every 1 --batch-size 4",
    simclr: "--steps 2 --warmup 1 --sample-every 2 --batch-size 4 --image-size 16",
}
CHANGED = (  # by the candidates of races and by measurements
    (dcgan, "update"),
    (dcgan.Discriminator, "__init__"),
    (vae, "kl_warmup"),
    (vae.VAE, "posterior"),
    (torch.optim, "Adam"),
    (simclr, "evaluate_run"),
    (images, "load_images"),
    (lenet, "classifier"),
    (char_rnn, "stream_batch"),
)


def undone(patch) -> None:
    """Restore, when `patch` ends, what the line changes."""
    for owner, name in CHANGED:
        patch.setattr(owner, name, getattr(owner, name))


def few_characters(generate, model, start_sequence, n_chars, *given, **named) -> str:
    return generate(model, start_sequence, min(n_chars, 200), *given, **named)


def make_tiny(patch) -> list[tuple[str, str, str]]:
    """Few images, few samples, two steps; races run here, one seed each. What fails there is in the list."""
    failed = []
    load_images, load_text = images.load_images, texts.load_text

    def few(data: images.ImageData, n: int, m: int) -> images.ImageData:
        train, labels = data.train[:n], data.train_labels[:n]
        return data._replace(train=train, train_labels=labels, test=data.test[:m], test_labels=data.test_labels[:m])

    def few_images(*given) -> images.ImageData:
        return few(load_images(*given), 300, 500)

    def few_images_again(source, data_dir, config, *_) -> images.ImageData:
        """Return few images of any set. The weights that ship say that they were made from all of it."""
        return few_images(source or config["data"], "", data_dir, config["image_size"])

    @cache
    def digits(size: int) -> images.ImageData:  # pairs of them are chosen by their numbers
        return few(load_images("mnist", "", "data", size), 10000, 8000)

    def short_text(*given, **how):
        text = load_text(*given, **how)
        return text._replace(train=text.train[:5000], test=text.test[-3000:])

    def start(name: str, label: str, seed: int) -> None:  # in a thread, where nobody sees an error
        with patch.context() as change:
            undone(change)
            try:
                race.run(name, label, seed)
            except BaseException as error:  # noqa: BLE001
                failed.append((name, label, repr(error)))

    def shorter(script):
        main, tiny = script.main, TINY[script].split()
        return lambda argv: main([*argv, *tiny] if script.get_args(argv).training else argv)

    for script in TINY:
        patch.setattr(script, "main", shorter(script))
    patch.setattr(images, "load_images", few_images)
    patch.setattr(images, "load_again", few_images_again)
    patch.setattr(texts, "load_text", short_text)
    patch.setattr(char_rnn, "generate_from_model", partial(few_characters, char_rnn.generate_from_model))
    patch.setattr(fid, "SAMPLES", 100)
    patch.setattr(plots, "tsne", lambda h: h[:, :2])
    patch.setattr(race, "start", start)
    patch.setattr(measure, "SEEDS", (0,))
    patch.setattr(measure, "CHARACTERS", 2000)
    patch.setattr(measure, "mnist", digits)
    patch.setattr(measure, "PICTURES", Path("pictures"))
    patch.setattr(measure, "fit", lambda *given, fit=measure.fit: fit(*given[:-1], 1))
    return failed


@pytest.mark.skipif(not LONG, reason="a hundred runs of two steps take a quarter of an hour: --long")
@pytest.mark.skipif(not (HERE / "data/MNIST").exists(), reason="needs the real data")
def test_every_line_of_runs_sh_runs(monkeypatch, capsys):
    for name in ("data/cache", "pictures"):
        Path(name).mkdir(parents=True)
    decoded = (path for path in HERE.glob("data/cache/*") if not path.name.startswith("lenet"))
    for path in (HERE / "weights", *HERE.glob("data/[!c]*"), HERE / "data/cifar10-jpeg", *decoded):
        Path(path.relative_to(HERE)).symlink_to(path)
    failed = make_tiny(monkeypatch)
    lines = [line for line in (HERE / "report/runs.sh").read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        command, *words = shlex.split(line, comments=True)
        if command == "cp":
            shutil.copytree(*words[1:])
            continue
        name, *flags = words[1:] if words[0] == "-m" else words
        with monkeypatch.context() as change, capsys.disabled():
            undone(change)
            print(line)
            if name == "report.race":
                race.main([*flags, "--jobs", "1", "--seeds", "0"])
                assert not failed
            elif name == "report.bench":
                bench.get_args(flags)
            else:
                importlib.import_module(name.removesuffix(".py")).main(flags)
    assert len(lines) > 50
