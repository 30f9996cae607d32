"""Grids of images, and films of grids."""

import io
import math
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
import torchvision
from PIL import Image, ImageDraw
from torch import Tensor

from plumbing.system import files, ranks

WIDTH = 500  # pixels that a grid has at least


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] as a grid's PNG has them: rounded to 0 ... 255."""
    return (images * 255 + 0.5).clamp(0, 255).byte()


def grid(x: Tensor, columns: int, set_off: tuple = (), pairs: bool = False, labels: tuple = ()) -> Image.Image:
    """Images (N, C, H, W) in [0, 1], row by row, one pixel apart, each pixel enlarged to a square until they are WIDTH.

    set_off: columns after which there is a gap. pairs: a gap after every second row. labels: of the columns.
    """
    N, C, H, W = x.shape
    pixels = to_uint8(x.detach().float().cpu()).expand(N, max(3, C), H, W)
    gap = max(3, W // 4)
    left = [1 + c * (W + 1) + gap * sum(c > edge for edge in set_off) for c in range(columns)]
    top = [1 + r * (H + 1) + gap * pairs * (r // 2) for r in range(math.ceil(N / columns))]
    whole = torch.full((3, top[-1] + H + 1, left[-1] + W + 1), 128, dtype=torch.uint8)
    for k in range(len(top) * columns):
        y0, x0 = top[k // columns], left[k % columns]
        whole[:, y0 - 1 : y0 + H + 1, x0 - 1 : x0 + W + 1] = 0
        if k < N:
            whole[:, y0 : y0 + H, x0 : x0 + W] = pixels[k]
    times = math.ceil(WIDTH / whole.shape[2])
    picture = Image.fromarray(whole.permute(1, 2, 0).numpy()).resize(
        (times * whole.shape[2], times * whole.shape[1]), Image.Resampling.NEAREST
    )
    if not labels:
        return picture
    titled = Image.new("RGB", (picture.width, picture.height + 16))
    titled.paste(picture, (0, 16))
    for x0, label in zip(left, labels, strict=True):
        ImageDraw.Draw(titled).text((times * (x0 + W / 2), 8), label, "white", anchor="mm", font_size=11)
    return titled


def save_grid(images: Tensor, path: Path, columns: int = 8, **layout) -> None:
    """PNG of images in [0, 1], (N, C, H, W), by rank 0, as grid lays them out: 500 pixels wide or more."""
    if not ranks.rank():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.show(path, partial(grid(images, columns, **layout).save, format="png"))


def _frames(paths: list[Path], n: int) -> list[Image.Image]:
    """n of these pictures, evenly chosen, as large as the last, but not more than 600 pixels wide."""
    with Image.open(paths[-1]) as last:
        width = min(600, last.width)
        size = width, round(width * last.height / last.width)
    frames = []
    for i in sorted({round(k * (len(paths) - 1) / (n - 1)) for k in range(n)}):
        with Image.open(paths[i]) as picture:
            frames.append(picture.convert("RGB").resize(size, Image.Resampling.BOX))
    return frames


def film(folder: Path, largest: int = 600_000) -> None:
    """folder/samples.webp of the grids in folder/samples, in at most 48 frames and `largest` bytes, the last held."""
    paths = sorted((folder / "samples").glob("step_*.png"))
    if len(paths) < 3:
        return
    for n in (48, 32, 20, 12, 6):
        try:
            frames = _frames(paths, n)
        except OSError as error:
            files.say(f"no film of the samples: {error}")
            return
        durations = [200] * (len(frames) - 1) + [3000]  # ms
        how = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "quality": 60}
        film = io.BytesIO()
        frames[0].save(film, "webp", **how)
        if film.tell() <= largest:
            break
    files.show(folder / "samples.webp", lambda file: file.write(film.getvalue()))


def export_images(batches: Iterable[Tensor], n: int, out: Path) -> None:
    """uint8 images (B, C, H, W), n in all, as out/000000.png ..., all or none; what is at `out` is moved aside."""
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        each = (x for batch in batches for x in batch)
        for i, x in enumerate(files.progress(each, "images", n)):
            torchvision.transforms.functional.to_pil_image(x.cpu()).save(part / f"{i:06d}.png")
        if out.exists():
            print(f"what was there is now {files.move_aside(out)}")
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{out}: {n:,} images")
