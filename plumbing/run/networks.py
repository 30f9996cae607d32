"""Build a network from its config, or evaluate a network and leave it unchanged."""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import NoReturn

import torch
from torch import nn

from plumbing.system import hardware
from plumbing.system.process import fail

# Raised by constructors and load_state_dict for a config or for weights that make no model.
BUILD_ERRORS = (KeyError, RuntimeError, ValueError, TypeError, AttributeError, OverflowError)


def or_fail(build: Callable) -> Callable:
    """Decorate a script's build(config) -> model, which may take more arguments.

    The decorated function also loads config["state_dict"], where there is one, and sets the channels-last memory
    format. It ends the program with one line if the config makes no model or the weights do not fit.
    """

    @wraps(build)
    def build_or_fail(config: dict, *args) -> nn.Module:
        try:
            model = build(config, *args)
            if "state_dict" in config:
                model.load_state_dict(config["state_dict"])
        except BUILD_ERRORS as error:
            _fail(error)
        return model.to(memory_format=torch.channels_last)

    return build_or_fail


def _fail(error: Exception) -> NoReturn:
    """End the program with what is wrong with a config or with weights. Lack of memory is raised again."""
    if hardware.out_of_memory(error):
        raise error
    if isinstance(error, KeyError):
        fail(f"The weights file has no {error}. Use weights of this version, or train again.")
    misfit = first_misfit(error)
    if misfit:
        advice = "Leave out the flags that change the network, or use weights of this version"
        fail(f"The weights do not fit this network ({misfit}). {advice}.")
    fail(error)


def first_misfit(error: Exception) -> str:
    """Return the first entry of the list that load_state_dict raises, "" for another error."""
    entry = r'(Missing|Unexpected) key\(s\) in state_dict: "[^"]+"|size mismatch for [^:]+'
    match = re.search(entry, str(error))
    return match[0].replace("(s) in state_dict:", "") if match else ""


def in_eval_mode(function: Callable) -> Callable:
    """Decorate function(net, ...), which only evaluates the net.

    The decorated function runs without gradients and with the net in eval mode. Afterwards each module of the net is
    in the mode it was in before.
    """

    @wraps(function)
    def evaluate(net: nn.Module, *args, **kwargs):
        modes = [(module, module.training) for module in net.modules()]
        net.eval()
        with torch.no_grad():
            result = function(net, *args, **kwargs)
        for module, training in modes:  # not net.train(): a part can be frozen in eval mode
            module.training = training
        return result

    return evaluate


def device_and_dtype(net: nn.Module) -> dict:
    """Return {"device": ..., "dtype": ...} of the net's first parameter, PyTorch's defaults where it has none."""
    parameter = next(net.parameters(), torch.empty(0))
    return {"device": parameter.device, "dtype": parameter.dtype}


@in_eval_mode
def output_shape(net: nn.Module, in_size: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of net(x) for one x of shape in_size, both without the batch."""
    x = torch.zeros(1, *in_size, **device_and_dtype(net))
    return tuple(net(x).shape[1:])


def fingerprint(net: nn.Module) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
