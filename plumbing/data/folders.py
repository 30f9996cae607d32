"""A folder of image files: what is in it, its splits and classes, and its pixels, decoded once into a cache."""

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
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev")  # the first that is there is taken


class DataError(Exception):
    """A data set cannot be had; the message says why and what to do."""


class Split(NamedTuple):
    """A part of a data set: train or held out by name, or "" where the set has no parts."""

    name: str
    images: torch.Tensor  # uint8 (N, C, H, W)
    labels: torch.Tensor  # int64 (N,)
    names: list[str]  # of the images


def image_files(folder: Path) -> list[str]:
    """Paths below `folder` of what is called an image, in seeded random order; says what is left out.

    Raises DataError if there is none, OSError for a folder that cannot be read.
    """
    known, found, others = pixels.suffixes(), [], Counter()
    for inside, names in files.below(folder):
        for name in names:
            path, suffix = os.path.join(inside, name), os.path.splitext(name)[1].lower()
            if not os.path.isfile(path) and os.path.exists(path):  # a pipe is no file to wait for; a broken link is one
                continue
            if suffix in known:
                found.append(os.path.relpath(path, folder))
            else:
                others[suffix or "without an ending"] += 1
    counted = ", ".join(f"{n} {suffix}" for suffix, n in others.most_common(10))
    if not found:
        raise DataError(f"{folder} holds no image file" + f", but {counted}" * bool(others))
    if others:
        say(f"{folder}: no images and left out: {counted}", sys.stderr)
    found.sort()
    return [found[i] for i in permutation(len(found), 0, 0)]


def _below(paths: list[tuple[str, ...]], depth: int) -> Counter[str]:
    """The folders at this depth, and how many files are in each."""
    return Counter(path[depth] for path in paths if len(path) > depth + 1)


def _is_training(name: str) -> bool:
    return name.lower() in TRAIN


def _depth(paths: list[tuple[str, ...]]) -> int:
    """How many folders there are around everything: each holds folders, or the splits and some stray files."""
    depth = 0
    while True:
        tops, inside = _below(paths, depth), _below(paths, depth + 1)
        if len(tops) != 1 or not inside or any(map(_is_training, tops)):
            return depth
        all_deeper = inside.total() == len(paths)
        if not all_deeper and not any(map(_is_training, inside)):
            return depth
        depth += 1


def layout(listed: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """({split: {file: class}}, {what is left out: number of its files}) of paths below a folder.

    Splits are train (training) and test (or another name of HELD_OUT), in any case, or "" where there is no training
    folder; classes are the folders below, "" where there are none. Raises DataError.
    """
    paths = [Path(file).parts for file in listed]
    depth = _depth(paths)
    tops = _below(paths, depth)
    train = sorted(filter(_is_training, tops))
    held_out = [name for known in HELD_OUT for name in sorted(tops) if name.lower() == known]
    if len(held_out) > 1 and len(held_out) == len(tops):
        raise DataError(f"there are {' and '.join(held_out)}, but there is no folder train: name one of them")
    has_classes = [path for path in paths if len(path) > depth + 2 and path[depth] in train]
    chosen = [""]
    if train and (held_out or len(tops) == 1 or has_classes):  # else it is a class of trains
        chosen = [train[0], *held_out[:1]]
        depth += 1
    splits, left_out = {name: {} for name in chosen}, Counter()
    for file, path in zip(listed, paths, strict=True):
        if len(path) <= depth:
            left_out["beside them"] += 1
            continue
        split = "" if chosen == [""] else path[depth - 1]
        if split in splits:
            splits[split][file] = path[depth] if len(path) > depth + 1 else ""
        else:
            left_out[split] += 1
    return splits, left_out


def _tell(folder: Path, splits: dict[str, dict[str, str]], left_out: dict[str, int]) -> None:
    """What was made of a folder: its splits and its classes."""
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
        shown = ", ".join(f"{name} {counts[name]:,}" for name in sorted(counts)[:10])
        say(f"{len(counts)} classes: {shown}" + ", ..." * (len(counts) > 10), sys.stderr)
    strange = sorted(set().union(*others) - set(train))
    if strange:
        say(f"WARNING: held out but not in training: {', '.join(strange[:10])}", sys.stderr)


def read_folder(
    folder: Path, root: Path, size: int | None, classes: bool = True
) -> tuple[str, list[Split], list[str], str]:
    """(the folder's name, one or two splits, names of their classes if these are asked for, a note on the values).

    Images are memory-mapped and in seeded random order; a class number means the same in both splits. Raises DataError.
    """
    splits, left_out = layout(image_files(folder))
    if not classes:
        splits = {name: dict.fromkeys(listed, "") for name, listed in splits.items()}
    _tell(folder, splits, left_out)
    cache = _decoded(folder, [list(split) for split in splits.values()], root, size)
    about = json.loads((cache / "about.json").read_text())
    for line in about["lines"]:
        say(line, sys.stderr)
    names_of_classes = sorted({name for split in splits.values() for name in split.values()})
    read = []
    for k, (name, class_of) in enumerate(splits.items()):
        broken = set(about["broken"][k])
        names = [file for file in class_of if file not in broken]
        images = torch.from_numpy(np.load(cache / f"{k}.npy", mmap_mode="c"))[: len(names)]
        read.append(
            Split(name, images, torch.tensor([names_of_classes.index(class_of[file]) for file in names]), names)
        )
    name_broken(sum(about["broken"], []), sum(map(len, splits.values())), folder)
    return writable(folder.resolve().name), read, names_of_classes, about["note"]


def name_broken(broken: list[str], n: int, folder: Path) -> None:
    if broken:
        named = ", ".join(broken[:5]) + (", ..." if len(broken) > 5 else "")
        say(f"{len(broken)} of {n} image files in {folder} cannot be read and are left out: {named}", sys.stderr)


def writable(name: str) -> str:
    """A file's name as every program can write it: some are no UTF-8."""
    return name.encode(errors="replace").decode()


def _state(path: Path) -> tuple[int, int]:
    """(bytes, time) of a file, or of a link that leads nowhere."""
    try:
        stat = path.stat()
    except OSError:
        stat = path.lstat()
    return stat.st_size, stat.st_mtime_ns


def _decoded(folder: Path, splits: list[list[str]], root: Path, size: int | None) -> Path:
    """The cache: uint8 (N, C, size, size) of the files of each split that can be read, and what is to be said of them.

    Its name has a hash of the place, names, sizes and times of all files, which decide what is found out about the set.
    """
    place = str(folder.resolve())
    key = repr((3, place, size, [[(file, *_state(folder / file)) for file in split] for split in splits]))  # 3: layout
    name = f"{writable(folder.resolve().name)}-{size or 'auto'}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    cache = root / "cache" / name
    if not cache.exists():
        files.make_folder(cache, partial(_decode_all, folder, splits, size))
    return cache


def headers(folder: Path, listed: list[str]) -> dict[str, pixels.Header]:
    """Of the files below `folder` that are not broken."""
    with ThreadPool() as pool:
        found = pool.imap(lambda file: pixels.header(folder / file), listed, chunksize=64)
        found = dict(zip(listed, progress(found, f"looking at {folder}", len(listed)), strict=True))
    return {file: header for file, header in found.items() if header}


def values_of(folder: Path, found: dict[str, pixels.Header]) -> pixels.Range:
    """The range of the files of a set that have more than 8 bits."""
    wide, values = [file for file, header in found.items() if header.wide], pixels.Range()
    with ThreadPool() as pool:
        each = pool.imap_unordered(lambda file: pixels.value_range(folder / file), wide, chunksize=16)
        for one in progress(each, f"largest value in {folder}", len(wide)):
            values |= one
    return values


def _any_colour(folder: Path, found: dict[str, pixels.Header]) -> bool:
    stored_in_colour = [file for file, header in found.items() if not header.grey]
    with ThreadPool() as pool:  # ends with the first one in colour
        return any(pool.imap_unordered(lambda file: pixels.has_colour(folder / file), stored_in_colour))


class Look(NamedTuple):
    """What is true of a set of files as a whole."""

    mode: str  # L where every pixel is grey, else RGB
    size: int  # side in pixels to which they are resized
    white: pixels.White  # of what has more than 8 bits a channel


def usual_size(grey: bool, side: int) -> int:
    """--image-size where it is not given."""
    return 32 if grey or side < 64 else 64


def _look(found: Counter[pixels.Header], coloured: bool, white: pixels.White, size: int | None) -> Look:
    mode = "RGB" if coloured else "L"
    side = statistics.median_low([min(header.width, header.height) for header in found.elements()] or [0])
    return Look(mode, size or usual_size(mode == "L", side), white)


def _guess(folder: Path, listed: list[str], size: int | None) -> Look:
    """From 256 files."""
    found = headers(folder, listed[:: len(listed) // 256 + 1])
    return _look(Counter(found.values()), _any_colour(folder, found), values_of(folder, found).white(), size)


def describe(found: Counter[pixels.Header], values: pixels.Range) -> str:
    """How values of more than 8 bits become 8; nothing where there are none."""
    said, white = [], values.white()
    for floats, level in ((False, white.integers), (True, white.floats)):
        n = sum(n for header, n in found.items() if header.wide and (header.mode == "F") == floats)
        if n:
            said.append(f"{n:,} of more than 8 bits: 0 ... {level:,.0f} is black ... white")
    if values.lowest < 0:
        said.append(f"what is below 0, down to {values.lowest:,.4g}, is black")
    return "".join(f", {one}" for one in said)


def _lines(folder: Path, found: Counter[pixels.Header], look: Look) -> list[str]:
    """What else is to be said of a set."""
    n_stored_in_colour = sum(n for header, n in found.items() if not header.grey)
    n_transparent = sum(n for header, n in found.items() if header.transparent)
    n_deep = sum(n for header, n in found.items() if header.deep_colour)
    lines = []
    if look.mode == "L" and n_stored_in_colour:
        lines.append(f"{folder}: {n_stored_in_colour:,} files are stored in colour, but every pixel is grey")
    if n_transparent:
        lines.append(f"{folder}: {n_transparent:,} images have transparency, and are shown on white")
    if n_deep:
        lines.append(f"{folder}: {n_deep:,} images have more than 8 bits a colour, of which the upper 8 are read")
    kept = sum(n * min(header.width, header.height) ** 2 for header, n in found.items())
    area = sum(n * header.width * header.height for header, n in found.items())
    return lines + crop_line(folder, kept, area)


def crop_line(source: Path, kept: int, area: int) -> list[str]:
    """One line where the crop to squares leaves less than nine tenths of the pixels."""
    return [f"{source}: the crop to squares cuts off {1 - kept / area:.0%} of the pixels"] if kept < 0.9 * area else []


def _decode_all(folder: Path, splits: list[list[str]], size: int | None, out: Path) -> None:
    """Fill the cache `out`: decoded as the set looks from some files, and again if from all it looks otherwise."""
    look, seen = None, _guess(folder, sum(splits, []), size)
    while look != seen:
        look = seen
        found, broken, values, coloured = Counter(), [], pixels.Range(), look.mode == "RGB"
        for k, listed in enumerate(splits):
            broken.append([])
            for file, decoded in _decode_split(folder, listed, look, out / f"{k}.npy"):
                if decoded:
                    found[decoded.header] += 1
                    values |= decoded.values
                    coloured |= decoded.coloured
                else:
                    broken[k].append(file)
            if len(broken[k]) == len(listed):
                raise DataError(f"none of the {len(listed)} image files in {folder} can be read")
        seen = _look(found, coloured, values.white(), size)
    about = {"note": describe(found, values), "lines": _lines(folder, found, look), "broken": broken}
    (out / "about.json").write_text(json.dumps(about))


def _decode_split(
    folder: Path, listed: list[str], look: Look, out: Path
) -> Iterator[tuple[str, pixels.Decoded | None]]:
    """Write uint8 (N, C, size, size), broken files leaving room at the end; yields each file and what became of it."""
    mode, size, white = look
    array = np.lib.format.open_memmap(out, "w+", np.uint8, (len(listed), len(mode), size, size))
    n = 0
    with ThreadPool() as pool:  # Pillow decodes outside the GIL
        results = pool.imap(lambda file: pixels.decode(folder / file, mode, size, white), listed, chunksize=16)
        for file, decoded in zip(listed, progress(results, f"decoding {folder}", len(listed)), strict=True):
            if decoded:
                array[n] = decoded.pixels.transpose(2, 0, 1)
                n += 1
            yield file, decoded
    array.flush()


class Folder(NamedTuple):
    """Image files as fid.py reads them: whole."""

    names: list[str]  # in seeded random order
    size: int | None  # side in pixels, where nearly all are squares of one size
    n_others: int  # how many are not
    white: pixels.White
    note: str  # how values of more than 8 bits are read


def look_at(folder: Path) -> Folder:
    """Raises DataError if there is no image file."""
    names = image_files(folder)
    found = headers(folder, names)
    ((usual, n),) = Counter((header.width, header.height) for header in found.values()).most_common(1) or [((0, 0), 0)]
    size = usual[0] if usual[0] == usual[1] and n >= 0.9 * len(found) > 0 else None
    n_others = len(found) - n if size else 0
    if n_others:
        say(f"{folder}: {n_others:,} of {len(found):,} images are not of {size} x {size} pixels", sys.stderr)
    values = values_of(folder, found)
    note = describe(Counter(found.values()), values)
    if note:
        say(f"{folder}{note}", sys.stderr)
    return Folder(names, size, n_others, values.white(), note.removeprefix(", "))


def folder_images(
    folder: Path, mode: str, batch_size: int, look: Folder | None = None
) -> Iterator[torch.Tensor | list[torch.Tensor]]:
    """uint8 images, batch after batch, decoded in threads while the one before is used; broken ones are named.

    Yields (n, C, H, W) or, where sizes differ, lists of (C, H, W): whole, and not turned by EXIF, as in pytorch-fid.
    """
    look = look or look_at(folder)
    names, white, broken = look.names, look.white, []
    chunks = [names[i : i + batch_size] for i in range(0, len(names), batch_size)]
    with ThreadPool() as pool:
        begin = partial(pool.map_async, lambda name: pixels.read_whole(folder / name, mode, white))
        following = begin(chunks[0])
        for chunk, next_chunk in zip(chunks, [*chunks[1:], []], strict=True):
            read = following.get()
            following = begin(next_chunk)
            good = [x for x in read if x is not None]
            broken += [name for name, x in zip(chunk, read, strict=True) if x is None]
            if good:
                one_size = len({x.shape for x in good}) == 1
                yield torch.stack(good) if one_size else good
    name_broken(broken, len(names), folder)
