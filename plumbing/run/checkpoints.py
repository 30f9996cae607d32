"""Checkpoints and weights files: written whole, read without running code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from plumbing.system import files
from plumbing.system.process import fail

SHIPPED = Path(__file__).resolve().parents[2] / "weights"  # trained weights that come with the repository


def save(state: dict[str, Any], path: Path) -> None:
    """Write a file with torch.save and read it back. The old file stays if that fails. Raise OSError."""
    try:
        files.write_whole(path, lambda file: torch.save(state, file), files.intact)
    except RuntimeError as error:  # what a full disk raises inside torch.save
        raise OSError(f"{path} cannot be written: {error}") from None


def load(path: Path, scripts: tuple[str, ...], key: str = "trained_on", hint: str = "", network: str = "") -> dict:
    """Return the dictionary that one of `scripts` saved, on the CPU. End the program where that is impossible.

    The file holds tensors and plain values, so that no code runs.

    Args:
        key: an entry that the file must have: "trained_on" for weights, "flags" for a checkpoint.
        hint: what to type instead, for the error line.
        network: "D" for a discriminator. Without it a discriminator is refused.
    """
    try:
        if zipfile.is_zipfile(path):
            files.intact(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        fail(f"{path} was refused. It is no weights file, or it runs code when it is loaded. {hint}")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}. {hint}")
    except Exception as error:  # a foreign or damaged file can raise anything
        fail(f"{path} cannot be read as a checkpoint: {str(error)[:200] or error!r}. {hint}")
    script = state.get("script") if isinstance(state, dict) else type(state)
    if script not in scripts:
        fail(f"{path} was saved by {script}, not by {' or '.join(scripts)}.py. {hint}")
    if key == "trained_on" and "flags" in state:
        fail(f"{path} is a checkpoint, not a weights file. Use the folder {path.parent}.")
    needed = (key, "state_dict", "step", "data") if key == "trained_on" else (key,)
    for name in needed:
        if name not in state:
            fail(f"{path} is another kind of file of {script}.py: it has no {name!r}. {hint}")
    if state.get("network", network) != network:
        fail(f"{path} is the discriminator. Name the generator, or the run folder.")
    return state
