"""plumbing/run/pictures.py: grids and films, and the steps at which they are made."""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageSequence

from plumbing.run import pictures
from plumbing.run import run as run_module


def test_grid_is_the_images_enlarged():
    torch.manual_seed(0)
    x = torch.rand(7, 1, 6, 5)
    grid = np.asarray(pictures.grid(x, 3))
    zoom = 500 // 19 + 1
    assert grid.shape == (zoom * 22, zoom * 19, 3)
    pixels = grid[::zoom, ::zoom]
    assert (np.repeat(np.repeat(pixels, zoom, 0), zoom, 1) == grid).all()
    for k in range(9):
        row, column = divmod(k, 3)
        tile = pixels[1 + 7 * row : 7 + 7 * row, 1 + 6 * column : 6 + 6 * column, 1]
        expected = (x[k, 0] * 255).round().byte().numpy() if k < 7 else np.zeros((6, 5))
        assert (tile == expected).all()
    assert not pixels[0].any() and not pixels[:, 0].any() and not pixels[7].any()


def test_grid_sets_off_columns_and_pairs():
    x = torch.ones(8, 3, 4, 300)
    grid = np.asarray(pictures.grid(x, 2, set_off=(0,), pairs=True, labels=("a", "b")))
    assert grid.shape == (16 + 4 * 5 + 1 + 75, 2 * 301 + 1 + 75, 3) and grid[:16].any()
    below = grid[16:]
    assert (below[1:5, 302:376] == 128).all()  # the gap beside column 0
    assert (below[11:85, :] == 128).all()  # the gap under the first pair
    assert (below[1:5, 1:301] == 255).all() and (below[86:90, 377:677] == 255).all()


def test_film_is_small_and_holds_its_last_frame():
    rng = np.random.default_rng(0)
    Path("run/samples").mkdir(parents=True)
    pictures.film(Path("run"))
    assert not Path("run/samples.webp").exists()  # there are no grids
    for step in range(1, 61):
        noise = rng.integers(0, 256, (120, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"run/samples/step_{step:07d}.png")
    pictures.film(Path("run"))
    with Image.open("run/samples.webp") as film:
        durations = [frame.convert("L").info["duration"] for frame in ImageSequence.Iterator(film)]
    assert len(durations) == 48 and durations[-1] > 10 * durations[0]
    size = Path("run/samples.webp").stat().st_size
    pictures.film(Path("run"), size // 2)
    with Image.open("run/samples.webp") as film:
        assert film.n_frames < 48 and Path("run/samples.webp").stat().st_size <= size // 2


def test_film_of_damaged_and_of_older_grids(capsys):
    Path("run/samples").mkdir(parents=True)
    for step, size in enumerate((60, 60, 120)):
        Image.new("RGB", (size, size), (80 * step, 0, 0)).save(f"run/samples/step_{step:07d}.png")
    pictures.film(Path("run"))
    with Image.open("run/samples.webp") as film:
        assert film.n_frames == 3 and film.size == (120, 120)
    Path("run/samples/step_0000001.png").write_bytes(b"no picture")
    pictures.film(Path("run"))
    line = capsys.readouterr().out
    assert line.startswith("There is no film of the samples (") and "step_0000001.png" in line


def test_pictures_come_early():
    run = object.__new__(run_module.Run)
    run.args = argparse.Namespace(steps=45)
    shown = []
    for run.step in range(1, 46):
        if run.due(10, early=True):
            shown.append(run.step)
    assert shown == [1, 2, 4, 8, 10, 20, 30, 40, 45]
