"""Decode one image file. Any format, mode and depth that Pillow reads is allowed, with or without transparency."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

# formats that Pillow recognises, and leaves to other programs
NO_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
GREY = ("1", "L", "LA", "I", "F")  # modes without colour, besides I;16 and its variants
# JPEG lets the channels of a grey pixel differ by a few levels of 255.
TINT = 2


def suffixes() -> set[str]:
    """Return the endings, in lower case, of the files that the installed Pillow reads."""
    Image.init()
    formats = set(Image.OPEN) - set(NO_PIXELS)
    return {suffix for suffix, form in Image.EXTENSION.items() if form in formats}


class Header(NamedTuple):
    """The header of an image file, which is read without decoding the pixels."""

    mode: str
    width: int
    height: int
    transparent: bool
    deep_colour: bool  # colour with more than 8 bits a channel, of which Pillow reads 8

    @property
    def wide(self) -> bool:
        """True if grey values have more than 8 bits."""
        return is_wide(self.mode)

    @property
    def grey(self) -> bool:
        """True if the mode has no colour."""
        return self.wide or self.mode in GREY


def is_wide(mode: str) -> bool:
    """Return True for a grey mode with more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;16")


def _header(image: Image.Image) -> Header:
    deep = not is_wide(image.mode) and ";16" in str(image.tile)
    return Header(image.mode, *image.size, image.has_transparency_data, deep)


def header(path: Path) -> Header | None:
    """Return the header of a file, or None if the file is broken."""
    try:
        with Image.open(path) as image:
            return _header(image)
    except Exception:  # A damaged file can raise any exception, and may not end the run.
        return None


class Range(NamedTuple):
    """The range of the values in files with more than 8 bits. Integers and floats are kept apart."""

    integers: float = 0.0  # the largest integer
    floats: float = 0.0  # the largest float
    lowest: float = 0.0

    def __or__(self, other: "Range") -> "Range":
        """Return the range that holds both ranges."""
        return Range(
            max(self.integers, other.integers),
            max(self.floats, other.floats),
            min(self.lowest, other.lowest),
        )

    def white(self) -> "White":
        """Return the values that are white.

        For integers that is the least of 255, 4,095 (12 bits) and 65,535 that is no less than the largest value. For
        floats up to 1.1 it is 1, because resampling can exceed 1 slightly. Larger floats are treated like integers.
        Above 65,535 the largest value is white.
        """

        def level(largest: float) -> float:
            tops = (255.0, 4095.0, 65535.0, max(largest, 65536.0))
            return min(top for top in tops if top >= largest)

        floats = 1.0 if self.floats <= 1.1 else level(self.floats)
        return White(level(self.integers), floats)


class White(NamedTuple):
    """The values that are white in a set of files with more than 8 bits."""

    integers: float = 255.0
    floats: float = 1.0


def _range(image: Image.Image) -> Range:
    values = np.nan_to_num(np.asarray(image), posinf=0.0, neginf=0.0)
    largest = float(values.max())
    lowest = min(0.0, float(values.min()))
    if image.mode == "F":
        return Range(floats=largest, lowest=lowest)
    return Range(integers=largest, lowest=lowest)


def value_range(path: Path) -> Range:
    """Return the range of a file with more than 8 bits, or the empty range if the file is broken."""
    try:
        with Image.open(path) as image:
            return _range(image)
    except Exception:
        return Range()


def narrow(image: Image.Image, white: White) -> Image.Image:
    """Convert an image with more than 8 bits to mode L.

    Values from 0 to white become 0 to 255. The value that the file marks as transparent becomes 255.
    """
    values = np.nan_to_num(np.asarray(image, np.float64))
    level = white.floats if image.mode == "F" else white.integers
    grey = (values * 255 / level).clip(0, 255).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def over_white(image: Image.Image) -> Image.Image:
    """Lay an image with transparency on white, as a web page shows it. Return mode RGB."""
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def flat(image: Image.Image, white: White) -> Image.Image:
    """Return an image without transparency and with 8 bits a channel."""
    if is_wide(image.mode):
        return narrow(image, white)
    return over_white(image) if image.has_transparency_data else image


def is_coloured(pixels: np.ndarray) -> bool:
    """Return True if any pixel of uint8 (..., 3) has a colour."""
    spread = pixels.max(-1) - pixels.min(-1)
    return bool(spread.max() > TINT)


def luma(x: torch.Tensor) -> torch.Tensor:
    """Convert uint8 (N, 3, H, W) to grey (N, 1, H, W), with the formula of Pillow's mode L."""
    weights = torch.tensor([19595, 38470, 7471], device=x.device).view(1, 3, 1, 1)
    weighted = (x.int() * weights).sum(1, keepdim=True)
    return (weighted + 0x8000 >> 16).byte()


def with_channels(x: torch.Tensor, channels: int) -> torch.Tensor:
    """Convert uint8 (N, 1 or 3, H, W) to (N, channels, H, W)."""
    if channels == 1 and x.shape[1] == 3:
        return luma(x)
    return x.expand(-1, channels, -1, -1)


def has_colour(path: Path) -> bool:
    """Return True if any pixel of a file has a colour, whatever the mode. A broken file gives False."""
    try:
        with Image.open(path) as image:
            image = flat(image, White()).convert("RGB")
            return is_coloured(np.asarray(image))
    except Exception:
        return False


class DecodedImage(NamedTuple):
    """The pixels of an image file, and what decides how its set is read."""

    pixels: np.ndarray  # uint8 (size, size, C)
    header: Header
    values: Range  # empty for a file with 8 bits
    coloured: bool  # True if mode L drops a colour


def decode(path: Path, mode: str, size: int, white: White) -> DecodedImage | None:
    """Decode a file in mode L or RGB, or return None if the file is broken.

    The image is turned upright, laid on white, cropped to the square at its centre, and resized.

    Args:
        white: the white of files with more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            about = _header(image)
            # Pillow can decode a large JPEG at a fraction of its size.
            image.draft("L" if about.grey else "RGB", (size, size))
            values = _range(image) if about.wide else Range()
            image = flat(ImageOps.exif_transpose(image), white)
            coloured = False
            if mode == "L" and not about.grey:
                coloured = is_coloured(np.asarray(image.convert("RGB")))
            image = image.convert(mode)
            square = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            pixels = np.asarray(square).reshape(size, size, -1)
            return DecodedImage(pixels, about, values, coloured)
    except Exception:
        return None


def read_whole(path: Path, mode: str, white: White) -> torch.Tensor | None:
    """Return a file as uint8 (C, H, W), or None if the file is broken.

    Like pytorch-fid, do not turn the image and drop its transparency. Values of more than 8 bits are scaled to 8 bits.
    """
    try:
        with Image.open(path) as image:
            if is_wide(image.mode):
                image = narrow(image, white)
            pixels = np.array(image.convert(mode))
            pixels = pixels.reshape(*pixels.shape[:2], -1)  # (H, W, C)
            return torch.from_numpy(pixels).permute(2, 0, 1)
    except Exception:
        return None
