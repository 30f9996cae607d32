"""Files of trained weights: written whole, read without running code."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from plumbing.system import files
from plumbing.system.process import fail

SHIPPED = Path(__file__).resolve().parents[2] / "weights"  # trained weights that come with the repository


def save(state: dict[str, Any], path: Path) -> None:
    """torch.save, whole and read back, or not at all. Raises OSError."""
    try:
        files.write_whole(path, lambda file: torch.save(state, file), files.intact)
    except RuntimeError as error:  # what a full disk raises somewhere inside torch.save
        raise OSError(f"{path} cannot be written: {error}") from None


def load(path: Path, scripts: tuple[str, ...], key: str, hint: str = "", network: str = "") -> dict[str, Any]:
    """The dictionary with `key` that one of `scripts` saved, on the CPU. Tensors and plain values: no code runs.
    network: "D" where a discriminator is meant, which elsewhere is refused."""
    try:
        if zipfile.is_zipfile(path):
            files.intact(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        fail(f"{path} was refused: it is no weights file, or one that runs code when it is loaded{hint}")
    except OSError as error:
        fail(f"{path} cannot be read: {error.strerror or error}{hint}")
    except Exception as error:  # a foreign or damaged file can raise anything
        fail(f"{path} cannot be read as a checkpoint: {str(error)[:200] or error!r}{hint}")
    script = state.get("script") if isinstance(state, dict) else type(state)
    if script not in scripts:
        fail(f"{path} was not saved by {' or '.join(scripts)}.py: {script}{hint}")
    for needed in (key,) if key != "trained_on" else (key, "state_dict", "step", "data"):
        if needed not in state:
            fail(f"{path} is another kind of file of {script}.py: it holds no {needed}{hint}")
    if state.get("network", network) != network:
        fail(f"{path} is the discriminator: name the generator, or the run folder")
    return state
