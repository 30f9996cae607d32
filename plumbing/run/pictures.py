"""Grids of images, and films of grids."""

import io
import math
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from plumbing.system import files, ranks

MIN_WIDTH = 500  # pixels of a grid
TITLE_HEIGHT = 16  # pixels above a grid with column labels
FILM_WIDTH = 600  # pixels, at most


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1], of any shape, to uint8 in 0 ... 255."""
    return (images * 255 + 0.5).clamp(0, 255).byte()


def grid(
    x: Tensor,
    columns: int,
    set_off: tuple[int, ...] = (),
    pairs: bool = False,
    labels: tuple[str, ...] = (),
) -> Image.Image:
    """Draw images x (N, C, H, W) in [0, 1] row by row, with black lines of one pixel between them.

    All pixels are enlarged by the smallest whole number that makes the grid 500 pixels wide. Missing images of the last
    row are black.

    There is a gap behind the columns whose indices are in set_off and, with `pairs`, below every second row. `labels`
    has a title for each column. Another number of titles raises ValueError.
    """
    N, C, H, W = x.shape
    rows = math.ceil(N / columns)
    pixels = to_uint8(x.detach().float().cpu())
    pixels = pixels.expand(N, max(3, C), H, W)  # grey as RGB
    gap = max(3, W // 4)
    left, top = [], []  # of the columns and of the rows
    for column in range(columns):
        gaps = sum(column > edge for edge in set_off)
        left.append(1 + column * (W + 1) + gap * gaps)
    for row in range(rows):
        gaps = row // 2 if pairs else 0
        top.append(1 + row * (H + 1) + gap * gaps)

    height, width = top[-1] + H + 1, left[-1] + W + 1
    canvas = torch.full((3, height, width), 128, dtype=torch.uint8)
    for k in range(rows * columns):
        y, x0 = top[k // columns], left[k % columns]
        canvas[:, y - 1 : y + H + 1, x0 - 1 : x0 + W + 1] = 0
        if k < N:
            canvas[:, y : y + H, x0 : x0 + W] = pixels[k]
    zoom = math.ceil(MIN_WIDTH / width)
    picture = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    picture = picture.resize((zoom * width, zoom * height), Image.Resampling.NEAREST)
    if labels:
        centres = [zoom * (x0 + W / 2) for x0 in left]
        picture = _with_titles(picture, centres, labels)
    return picture


def _with_titles(picture: Image.Image, centres: list[float], titles: tuple[str, ...]) -> Image.Image:
    """Return the picture below a black strip with a title at each of the centres, in pixels from the left."""
    titled = Image.new("RGB", (picture.width, picture.height + TITLE_HEIGHT))
    titled.paste(picture, (0, TITLE_HEIGHT))
    draw = ImageDraw.Draw(titled)
    for centre, title in zip(centres, titles, strict=True):
        draw.text((centre, TITLE_HEIGHT / 2), title, "white", anchor="mm", font_size=11)
    return titled


def save_grid(images: Tensor, path: Path, columns: int = 8, **layout) -> None:
    """Write a PNG of images (N, C, H, W) in [0, 1], on rank 0. `layout` is passed on to grid()."""
    if ranks.rank():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = grid(images, columns, **layout)
    files.show(path, partial(picture.save, format="png"))


def _frames(paths: list[Path], n: int) -> list[Image.Image]:
    """Read at most n of these pictures, at equal distances, in the size of the last one.

    The size is reduced to FILM_WIDTH. Raises OSError for a file that is no picture.
    """
    with Image.open(paths[-1]) as last:
        width = min(FILM_WIDTH, last.width)
        size = width, round(width * last.height / last.width)
    step = (len(paths) - 1) / (n - 1)
    frames = []
    for i in sorted({round(k * step) for k in range(n)}):
        with Image.open(paths[i]) as picture:
            frame = picture.convert("RGB")
        frames.append(frame.resize(size, Image.Resampling.BOX))
    return frames


def _webp(frames: list[Image.Image]) -> bytes:
    """Encode a film that repeats for ever, with 0.2 seconds a frame and 3 seconds for the last one."""
    file = io.BytesIO()
    frames[0].save(
        file,
        "webp",
        save_all=True,
        append_images=frames[1:],
        duration=[200] * (len(frames) - 1) + [3000],  # ms
        loop=0,
        quality=60,
    )
    return file.getvalue()


def film(folder: Path, max_bytes: int = 600_000) -> None:
    """Write folder/samples.webp from the grids in folder/samples, where there are three or more.

    The film has 48, 32, 20, 12 or 6 frames, the most that keep it within max_bytes. Six frames may exceed it.
    """
    paths = sorted((folder / "samples").glob("step_*.png"))
    if len(paths) < 3:
        return
    for n in (48, 32, 20, 12, 6):
        try:
            frames = _frames(paths, n)
        except OSError as error:
            files.say(f"There is no film of the samples ({error}). Delete that file and try --eval.")
            return
        content = _webp(frames)
        if len(content) <= max_bytes:
            break
    files.show(folder / "samples.webp", lambda file: file.write(content))


def export_images(batches: Iterable[Tensor], n: int, out: Path) -> None:
    """Write n uint8 images, in batches (B, C, H, W), as out/000000.png, out/000001.png and so on.

    Either all files are written or none. An older folder `out` is renamed.
    """
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    images = (x for batch in batches for x in batch)
    try:
        part.mkdir()
        for i, x in enumerate(files.progress(images, "images", n)):
            to_pil_image(x.cpu()).save(part / f"{i:06d}.png")
        if out.exists():
            print(f"the older images are now in {files.move_aside(out)}")
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{out}: {n:,} images")
