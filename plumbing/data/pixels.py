"""One image file as pixels: every format that Pillow reads, any mode, any depth, with or without transparency."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow knows them, and leaves them to other programs
GREY = ("1", "L", "LA", "I", "F")  # modes without colour, I;16 and its like besides
TINT = 2  # levels of 255 by which the channels of a grey pixel may differ, as JPEG leaves them


def suffixes() -> set[str]:
    """Endings, in lower case, of the files that this Pillow reads."""
    Image.init()
    return {suffix for suffix, form in Image.EXTENSION.items() if form in Image.OPEN and form not in NO_PIXELS}


class Header(NamedTuple):
    """What an image file says before it is decoded."""

    mode: str
    width: int
    height: int
    transparent: bool
    deep_colour: bool  # more than 8 bits a channel, of which Pillow hands over 8

    @property
    def wide(self) -> bool:
        """Whether a grey value has more than 8 bits."""
        return is_wide(self.mode)

    @property
    def grey(self) -> bool:
        """Whether there can be no colour in it."""
        return self.wide or self.mode in GREY


def is_wide(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;16")


def _header(image: Image.Image) -> Header:
    deep = not is_wide(image.mode) and ";16" in str(image.tile)
    return Header(image.mode, *image.size, image.has_transparency_data, deep)


def header(path: Path) -> Header | None:
    """None if the file is broken."""
    try:
        with Image.open(path) as image:
            return _header(image)
    except Exception:  # damaged files raise anything, and none of them may end the run
        return None


class Range(NamedTuple):
    """Of the values of files with more than 8 bits: integers and floats apart."""

    integers: float = 0.0  # the largest
    floats: float = 0.0
    lowest: float = 0.0

    def __or__(self, other: "Range") -> "Range":
        largest = max(self.integers, other.integers), max(self.floats, other.floats)
        return Range(*largest, min(self.lowest, other.lowest))

    def white(self) -> "White":
        """The least of 255, 4,095 (12 bits) and 65,535 that holds the largest value, else that value; 1 for floats
        that are hardly above it, as resampling leaves them.
        """

        def level(largest: float) -> float:
            return min(top for top in (255.0, 4095.0, 65535.0, max(largest, 65536.0)) if top >= largest)

        return White(level(self.integers), 1.0 if self.floats <= 1.1 else level(self.floats))


class White(NamedTuple):
    """The value that is white in a set of files with more than 8 bits."""

    integers: float = 255.0
    floats: float = 1.0


def _range(image: Image.Image) -> Range:
    values = np.nan_to_num(np.asarray(image), posinf=0.0, neginf=0.0)
    largest, lowest = float(values.max()), min(0.0, float(values.min()))
    return Range(floats=largest, lowest=lowest) if image.mode == "F" else Range(largest, lowest=lowest)


def value_range(path: Path) -> Range:
    """Of a file with more than 8 bits; nothing if it is broken."""
    try:
        with Image.open(path) as image:
            return _range(image)
    except Exception:
        return Range()


def narrow(image: Image.Image, white: White) -> Image.Image:
    """Mode L from a mode with more than 8 bits: 0 ... white become 0 ... 255, a transparent value white."""
    values = np.nan_to_num(np.asarray(image, np.float64))
    level = white.floats if image.mode == "F" else white.integers
    grey = (values * 255 / level).clip(0, 255).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def over_white(image: Image.Image) -> Image.Image:
    """RGB of an image with transparency: what a page shows."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def flat(image: Image.Image, white: White) -> Image.Image:
    """Without transparency, and with 8 bits a channel."""
    if is_wide(image.mode):
        return narrow(image, white)
    return over_white(image) if image.has_transparency_data else image


def is_coloured(pixels: np.ndarray) -> bool:
    """Whether a pixel of uint8 (..., 3) is not grey."""
    return bool((pixels.max(-1) - pixels.min(-1)).max() > TINT)


def luma(x: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W) -> (N, 1, H, W): Pillow's mode L."""
    weights = torch.tensor([19595, 38470, 7471], device=x.device).view(1, 3, 1, 1)
    return ((x.int() * weights).sum(1, keepdim=True) + 0x8000 >> 16).byte()


def with_channels(x: torch.Tensor, channels: int) -> torch.Tensor:
    """uint8 (N, 1 or 3, H, W) -> (N, channels, H, W)."""
    if channels == 1 and x.shape[1] == 3:
        return luma(x)
    return x.expand(-1, channels, -1, -1)


def has_colour(path: Path) -> bool:
    """Of the file's pixels, not its mode; False if it is broken."""
    try:
        with Image.open(path) as image:
            return is_coloured(np.asarray(flat(image, White()).convert("RGB")))
    except Exception:
        return False


class Decoded(NamedTuple):
    """An image file, and what it says of its set."""

    pixels: np.ndarray  # uint8 (size, size, C)
    header: Header
    values: Range  # where there are more than 8 bits
    coloured: bool  # whether there is colour that mode L drops


def decode(path: Path, mode: str, size: int, white: White) -> Decoded | None:
    """One file in mode L or RGB: turned upright, on white, centre-cropped to a square, resized. None if it is broken.

    white: what is white where there are more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            about = _header(image)
            image.draft("L" if about.grey else "RGB", (size, size))  # a large JPEG is decoded at a fraction of its size
            values = _range(image) if about.wide else Range()
            image = flat(ImageOps.exif_transpose(image), white)
            coloured = mode == "L" and not about.grey and is_coloured(np.asarray(image.convert("RGB")))
            square = ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR)
            return Decoded(np.asarray(square).reshape(size, size, -1), about, values, coloured)
    except Exception:
        return None


def read_whole(path: Path, mode: str, white: White) -> torch.Tensor | None:
    """uint8 (C, H, W) as pytorch-fid reads a file: not turned, transparency dropped; but more than 8 bits scaled.

    None if it is broken.
    """
    try:
        with Image.open(path) as image:
            if is_wide(image.mode):
                image = narrow(image, white)
            pixels = np.array(image.convert(mode))
            return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)
    except Exception:
        return None
