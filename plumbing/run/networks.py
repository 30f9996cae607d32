"""What every script does with its network: build it from plain numbers, look at it without a trace."""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import NoReturn

import torch
from torch import nn

from plumbing.system import hardware
from plumbing.system.process import fail


def no_model(error: Exception) -> NoReturn:
    """End the program where flags, or what a weights file holds, make no model: one line, what to do in front."""
    if hardware.out_of_memory(error):
        raise error
    other_code = "these weights are of another version of the code: take that version, or train again"
    if isinstance(error, KeyError):
        fail(f"{other_code} (there is no {error})")
    misfit = first_misfit(error)
    fail(f"{other_code} ({misfit})" if misfit else error)


def or_fail(make: Callable) -> Callable:
    """Decorates a script's build(numbers): loads weights that numbers hold; what makes no model ends the program."""

    @wraps(make)
    def build(numbers: dict, *kind) -> nn.Module:
        try:
            model = make(numbers, *kind)
            if "state_dict" in numbers:
                model.load_state_dict(numbers["state_dict"])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError) as error:
            no_model(error)
        return model.to(memory_format=torch.channels_last)

    return build


def in_eval_mode(function: Callable) -> Callable:
    """Decorates what only looks at its first argument, a network: without gradients, in eval mode; then as it was."""

    @wraps(function)
    def looking(net: nn.Module, *args, **kwargs):
        modes = [(module, module.training) for module in net.modules()]
        net.eval()
        with torch.no_grad():
            seen = function(net, *args, **kwargs)
        for module, training in modes:  # each its own: a part can be frozen in eval mode
            module.training = training
        return seen

    return looking


def device_and_dtype(net: nn.Module) -> dict:
    """Device and dtype of its parameters."""
    parameter = next(net.parameters(), torch.empty(0))
    return {"device": parameter.device, "dtype": parameter.dtype}


@in_eval_mode
def output_shape(net: nn.Module, in_size: Sequence[int]) -> tuple[int, ...]:
    """Of one input of this shape, without the batch; the net stays as it is, BatchNorm's statistics included."""
    return tuple(net(torch.zeros(1, *in_size, **device_and_dtype(net))).shape[1:])


def fingerprint(f: nn.Module) -> str:
    """SHA-256 of every parameter and buffer, its first 16 digits."""
    digest = hashlib.sha256()
    for name, value in f.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def first_misfit(error: Exception) -> str:
    """Of the list that load_state_dict raises, the first entry; nothing where the error is another one."""
    found = re.search(r'(Missing|Unexpected) key\(s\) in state_dict: "[^"]+"|size mismatch for [^:]+', str(error))
    return found[0].replace("(s) in state_dict:", "") if found else ""
