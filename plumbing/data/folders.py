"""Read a folder of image files as splits, classes and pixels. The pixels are decoded once, into a cache."""

import hashlib
import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from plumbing.data import pixels
from plumbing.data.batches import permutation
from plumbing.system import files
from plumbing.system.files import progress, say

TRAIN = ("train", "training")  # names of splits, in any case
# The first of these names that exists is taken.
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev")


class DataError(Exception):
    """A data set cannot be loaded. The message says why and what to do."""


class Split(NamedTuple):
    """A part of a data set. A set without parts is one split with the name ""."""

    name: str
    images: torch.Tensor  # uint8 (N, C, H, W)
    labels: torch.Tensor  # int64 (N,)
    names: list[str]  # of the images


def image_files(folder: Path) -> list[str]:
    """Return the paths of all image files below `folder`, relative to it and in seeded random order.

    An image file has an ending of a format that Pillow reads. Other files are counted on standard error. Raises
    DataError for a folder without images, and OSError for a folder that cannot be read.
    """
    suffixes = pixels.suffixes()
    images, others = [], Counter()
    for inside, names in files.below(folder):
        for name in names:
            path = os.path.join(inside, name)
            suffix = os.path.splitext(name)[1].lower()
            # Reading a pipe would wait for ever. A broken link counts as a broken image.
            if not os.path.isfile(path) and os.path.exists(path):
                continue
            if suffix in suffixes:
                images.append(os.path.relpath(path, folder))
            else:
                others[suffix or "without an ending"] += 1
    counts = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(10))
    if not images:
        besides = f", but {counts}" if others else ""
        raise DataError(f"{folder} holds no image file{besides}. Use a folder of images, such as PNG or JPEG files.")
    if others:
        say(f"{folder}: files that are not images are left out: {counts}", sys.stderr)
    images.sort()
    return [images[i] for i in permutation(len(images), 0, 0)]


def _below(paths: list[tuple[str, ...]], depth: int) -> Counter[str]:
    """Count the files in each folder at this depth."""
    return Counter(path[depth] for path in paths if len(path) > depth + 1)


def _is_training(name: str) -> bool:
    return name.lower() in TRAIN


def _depth(paths: list[tuple[str, ...]]) -> int:
    """Count the folders that lie around all others.

    Such a folder holds nothing but folders, or it holds the splits and perhaps some other files.
    """
    depth = 0
    while True:
        tops = _below(paths, depth)
        inside = _below(paths, depth + 1)
        if len(tops) != 1 or not inside or any(map(_is_training, tops)):
            return depth
        all_deeper = inside.total() == len(paths)
        if not all_deeper and not any(map(_is_training, inside)):
            return depth
        depth += 1


def layout(listed: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """Return {split: {file: class}} of paths below a folder, and {name: number of files} of what is left out.

    A split is a folder named train (or training), or test (or another name of HELD_OUT), in any case. Without a
    training folder the only split is "". The folders below are the classes. A file outside them has the class "".
    Raises DataError.
    """
    paths = [Path(file).parts for file in listed]
    depth = _depth(paths)
    tops = _below(paths, depth)
    train = sorted(filter(_is_training, tops))
    held_out = [name for known in HELD_OUT for name in sorted(tops) if name.lower() == known]
    if len(held_out) > 1 and len(held_out) == len(tops):
        names = " and ".join(held_out)
        raise DataError(f"there are {names}, but there is no folder train. Name one of these folders with --data.")
    has_classes = [path for path in paths if len(path) > depth + 2 and path[depth] in train]
    names = [""]
    # Otherwise `train` is a class of pictures of trains.
    if train and (held_out or len(tops) == 1 or has_classes):
        names = [train[0], *held_out[:1]]
        depth += 1
    splits = {name: {} for name in names}
    left_out = Counter()
    for file, path in zip(listed, paths, strict=True):
        if len(path) <= depth:
            left_out["beside these folders"] += 1
            continue
        split = "" if names == [""] else path[depth - 1]
        if split in splits:
            splits[split][file] = path[depth] if len(path) > depth + 1 else ""
        else:
            left_out[split] += 1
    return splits, left_out


def _print_layout(folder: Path, splits: dict[str, dict[str, str]], left_out: dict[str, int]) -> None:
    """Print the splits and classes of a folder, with their numbers of files."""
    parts = [f"{name or 'all'} {len(classes):,}" for name, classes in splits.items()]
    if len(splits) == 1:
        parts.append("a tenth of it held out")
    if left_out:
        parts.append("left out: " + ", ".join(f"{name} {n:,}" for name, n in left_out.items()))
    say(f"{folder}: {', '.join(parts)}", sys.stderr)
    train, *others = ([name or "(no folder)" for name in classes.values()] for classes in splits.values())
    counts = Counter(train)
    for held_out in others:
        counts.update(held_out)
    if len(counts) > 1:
        text = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts)[:10])
        if len(counts) > 10:
            text += ", ..."
        say(f"{len(counts)} classes: {text}", sys.stderr)
    strange = sorted(set().union(*others) - set(train))
    if strange:
        say(f"WARNING: classes that the training set lacks: {', '.join(strange[:10])}", sys.stderr)


def read_folder(
    folder: Path, root: Path, size: int | None, classes: bool = True
) -> tuple[str, list[Split], list[str], str]:
    """Return the folder's name, one or two splits, the names of their classes, and a note on the values.

    Images are memory-mapped and in seeded random order. A class has the same number in both splits. The cache is below
    `root`. Raises DataError.

    Args:
        size: side in pixels, or None for the default.
        classes: take the folders for classes. If False, all images have the class "".
    """
    splits, left_out = layout(image_files(folder))
    if not classes:
        splits = {name: dict.fromkeys(names, "") for name, names in splits.items()}
    _print_layout(folder, splits, left_out)
    cache = _cache(folder, [list(split) for split in splits.values()], root, size)
    about = json.loads((cache / "about.json").read_text())
    for line in about["lines"]:
        say(line, sys.stderr)
    class_names = sorted({name for split in splits.values() for name in split.values()})
    read = []
    for k, (split, class_of) in enumerate(splits.items()):
        broken = set(about["broken"][k])
        names = [file for file in class_of if file not in broken]
        array = np.load(cache / f"{k}.npy", mmap_mode="c")
        labels = torch.tensor([class_names.index(class_of[file]) for file in names])
        read.append(Split(split, torch.from_numpy(array)[: len(names)], labels, names))
    name_broken(sum(about["broken"], []), sum(map(len, splits.values())), folder)
    return writable(folder.resolve().name), read, class_names, about["note"]


def name_broken(broken: list[str], n: int, folder: Path) -> None:
    """Print how many of n files are broken, and the names of the first five."""
    if broken:
        names = ", ".join(broken[:5])
        if len(broken) > 5:
            names += ", ..."
        say(f"{len(broken)} of {n} image files in {folder} cannot be read and are left out: {names}", sys.stderr)


def writable(name: str) -> str:
    """Return a file's name as valid UTF-8. Some names on a disk are not."""
    return name.encode(errors="replace").decode()


def _size_and_time(path: Path) -> tuple[int, int]:
    """Return the bytes and the modification time of a file, or of a link that leads nowhere."""
    try:
        stat = path.stat()
    except OSError:
        stat = path.lstat()
    return stat.st_size, stat.st_mtime_ns


def _cache(folder: Path, splits: list[list[str]], root: Path, size: int | None) -> Path:
    """Return the cache of a folder, which is made if it does not exist.

    The cache holds uint8 (N, C, size, size) of the readable files of each split, and about.json with the notices. Its
    name has a hash of the folder's path and of the names, sizes and times of all files.
    """
    place = folder.resolve()
    stats = [[(file, *_size_and_time(folder / file)) for file in split] for split in splits]
    key = repr((3, str(place), size, stats))  # 3 is the version of the cache's layout
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    cache = root / "cache" / f"{writable(place.name)}-{size or 'auto'}-{digest}"
    if not cache.exists():
        files.make_folder(cache, partial(_fill_cache, folder, splits, size))
    return cache


def _read_headers(folder: Path, names: list[str]) -> dict[str, pixels.Header]:
    """Return {file: header} of the files below `folder` that are not broken."""
    with ThreadPool() as pool:
        headers = pool.imap(lambda file: pixels.header(folder / file), names, chunksize=64)
        headers = progress(headers, f"looking at {folder}", len(names))
        pairs = list(zip(names, headers, strict=True))
    return {file: header for file, header in pairs if header}


def _value_range(folder: Path, headers: dict[str, pixels.Header]) -> pixels.Range:
    """Return the range of all values in the files with more than 8 bits."""
    wide = [file for file, header in headers.items() if header.wide]
    values = pixels.Range()
    with ThreadPool() as pool:
        ranges = pool.imap_unordered(lambda file: pixels.value_range(folder / file), wide, chunksize=16)
        for one in progress(ranges, f"largest value in {folder}", len(wide)):
            values |= one
    return values


def _any_colour(folder: Path, headers: dict[str, pixels.Header]) -> bool:
    """Return True if a pixel of any file has a colour. The first such file ends the search."""
    names = [file for file, header in headers.items() if not header.grey]
    with ThreadPool() as pool:
        return any(pool.imap_unordered(lambda file: pixels.has_colour(folder / file), names))


class Summary(NamedTuple):
    """The choices that all files of a set share."""

    mode: str  # L if every pixel of the set is grey, else RGB
    size: int  # side in pixels to which the images are resized
    white: pixels.White  # for files with more than 8 bits a channel


def default_size(grey: bool, side: int) -> int:
    """Return the image size for a set without --image-size."""
    return 32 if grey or side < 64 else 64


def _summary(counts: Counter[pixels.Header], coloured: bool, white: pixels.White, size: int | None) -> Summary:
    """Return the choices for a set, given how often each header occurs in it."""
    mode = "RGB" if coloured else "L"
    sides = [min(header.width, header.height) for header in counts.elements()]
    side = statistics.median_low(sides or [0])
    return Summary(mode, size or default_size(mode == "L", side), white)


def _first_summary(folder: Path, names: list[str], size: int | None) -> Summary:
    """Return the choices for a set as 256 of its files suggest them."""
    headers = _read_headers(folder, names[:: len(names) // 256 + 1])
    white = _value_range(folder, headers).white()
    return _summary(Counter(headers.values()), _any_colour(folder, headers), white, size)


def _depth_note(counts: Counter[pixels.Header], values: pixels.Range) -> str:
    """Return how values of more than 8 bits become 8 bits, or "" for a set without such files.

    fid.py compares the parts behind ": " of two sets.
    """
    white = values.white()
    parts = []
    for is_float, level in ((False, white.integers), (True, white.floats)):
        n = sum(n for header, n in counts.items() if header.wide and (header.mode == "F") == is_float)
        if n:
            parts.append(f"{n:,} images with more than 8 bits: 0 is black, {level:,.0f} is white")
    if values.lowest < 0:
        parts.append(f"values below 0 (down to {values.lowest:,.4g}) are black")
    return "".join(f", {part}" for part in parts)


def _notices(folder: Path, counts: Counter[pixels.Header], mode: str) -> list[str]:
    """Return lines on the files of a set that are not read as they are stored."""
    n_in_colour = sum(n for header, n in counts.items() if not header.grey)
    n_transparent = sum(n for header, n in counts.items() if header.transparent)
    n_deep = sum(n for header, n in counts.items() if header.deep_colour)
    lines = []
    if mode == "L" and n_in_colour:
        lines.append(f"{folder}: {n_in_colour:,} files are stored in colour, but every pixel is grey")
    if n_transparent:
        lines.append(f"{folder}: {n_transparent:,} images have transparency, and are shown on white")
    if n_deep:
        lines.append(f"{folder}: {n_deep:,} images have more than 8 bits a colour, and the upper 8 are read")
    kept = sum(n * min(header.width, header.height) ** 2 for header, n in counts.items())
    area = sum(n * header.width * header.height for header, n in counts.items())
    return lines + crop_line(folder, kept, area)


def crop_line(source: Path, kept: int, area: int) -> list[str]:
    """Return one line if the crop to squares keeps less than nine tenths of the pixels, else none."""
    if kept >= 0.9 * area:
        return []
    return [f"{source}: the crop to squares cuts off {1 - kept / area:.0%} of the pixels"]


def _fill_cache(folder: Path, splits: list[list[str]], size: int | None, out: Path) -> None:
    """Decode all files into the cache `out`.

    The first pass follows the summary of some files. If the summary of all files differs, a second pass follows that.
    """
    summary = None
    new_summary = _first_summary(folder, sum(splits, []), size)
    while summary != new_summary:
        summary = new_summary
        counts, broken, values = Counter(), [], pixels.Range()
        coloured = summary.mode == "RGB"
        for k, names in enumerate(splits):
            broken.append([])
            for file, picture in _decode_split(folder, names, summary, out / f"{k}.npy"):
                if picture:
                    counts[picture.header] += 1
                    values |= picture.values
                    coloured |= picture.coloured
                else:
                    broken[k].append(file)
            if len(broken[k]) == len(names):
                raise DataError(
                    f"none of the {len(names)} image files in {folder} can be read. Check that the files are whole."
                )
        new_summary = _summary(counts, coloured, values.white(), size)
    lines = _notices(folder, counts, summary.mode)
    about = {"note": _depth_note(counts, values), "lines": lines, "broken": broken}
    (out / "about.json").write_text(json.dumps(about))


def _decode_split(
    folder: Path, names: list[str], summary: Summary, out: Path
) -> Iterator[tuple[str, pixels.DecodedImage | None]]:
    """Write the images of a split to `out` as uint8 (N, C, size, size). Yield each file with its image, None if broken.

    The array has room for all files. Broken files leave rows at its end unused.
    """
    mode, size, white = summary
    shape = len(names), len(mode), size, size
    array = np.lib.format.open_memmap(out, "w+", np.uint8, shape)
    n = 0
    with ThreadPool() as pool:  # Pillow decodes outside the GIL
        results = pool.imap(lambda file: pixels.decode(folder / file, mode, size, white), names, chunksize=16)
        results = progress(results, f"decoding {folder}", len(names))
        for file, picture in zip(names, results, strict=True):
            if picture:
                array[n] = picture.pixels.transpose(2, 0, 1)
                n += 1
            yield file, picture
    array.flush()


class Folder(NamedTuple):
    """Image files as fid.py reads them, without a crop."""

    names: list[str]  # in seeded random order
    size: int | None  # side in pixels, if at least 9 in 10 images are squares of one size
    n_others: int  # number of images of other sizes
    white: pixels.White
    note: str  # how values of more than 8 bits are read


def look_at(folder: Path) -> Folder:
    """Return the image files below `folder` and their common size. Raises DataError for a folder without images."""
    names = image_files(folder)
    headers = _read_headers(folder, names)
    sizes = Counter((header.width, header.height) for header in headers.values())
    ((width, height), n) = sizes.most_common(1)[0] if sizes else ((0, 0), 0)
    size = width if width == height and n >= 0.9 * len(headers) > 0 else None
    n_others = len(headers) - n if size else 0
    if n_others:
        say(f"{folder}: {n_others:,} of {len(headers):,} images are not of {size} x {size} pixels", sys.stderr)
    values = _value_range(folder, headers)
    note = _depth_note(Counter(headers.values()), values)
    if note:
        say(f"{folder}{note}", sys.stderr)
    return Folder(names, size, n_others, values.white(), note.removeprefix(", "))


def folder_images(
    folder: Path, mode: str, batch_size: int, look: Folder | None = None
) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """Yield uint8 images (n, C, H, W) in batches, or lists of (C, H, W) for a batch of several sizes.

    The images are whole and not turned by EXIF, as in pytorch-fid. Threads decode the next batch while the current one
    is used. Broken files are left out and named at the end.
    """
    look = look or look_at(folder)
    names = look.names
    broken = []
    chunks = [names[i : i + batch_size] for i in range(0, len(names), batch_size)]
    with ThreadPool() as pool:
        begin = partial(pool.map_async, lambda name: pixels.read_whole(folder / name, mode, look.white))
        next_images = begin(chunks[0])
        for chunk, next_chunk in zip(chunks, [*chunks[1:], []], strict=True):
            images = next_images.get()
            next_images = begin(next_chunk)
            broken += [name for name, x in zip(chunk, images, strict=True) if x is None]
            images = [x for x in images if x is not None]
            if images:
                one_size = len({x.shape for x in images}) == 1
                yield torch.stack(images) if one_size else images
    name_broken(broken, len(names), folder)
