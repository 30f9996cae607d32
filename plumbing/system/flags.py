"""argparse as every script here uses it."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from plumbing.system import process, ranks

VERBS = ("generate", "eval", "interpolate", "export", "encode", "score", "features")  # flags instead of training
ONLY_TRAINING = ("steps", "fresh", "compile", "log_every", "save_every", "sample_every")
SIZES = ("batch_size", "_dim", "image_size", "n_layers", "seq_len")  # how flags end that say how large something is


def number(kind: type, low: float, above: bool = False, below: float = 2**31) -> Callable[[str], Any]:
    """An argparse type: an int or float that is at least `low`, or above it, and less than `below`."""

    def parse(text: str):
        value = kind(text)  # its ValueError becomes argparse's "invalid int value"
        if low <= value < below and not (above and value == low):
            return value
        raise argparse.ArgumentTypeError(f"{text} is not {'above' if above else 'at least'} {low} and below {below}")

    parse.__name__ = kind.__name__
    return parse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows a script's docstring as it is written, and the defaults that say something; a flag a line, of up to 118."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=118)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        return {"int": "N", "float": "X"}.get(kind, action.dest.upper())

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable:
        """NAME where there are choices, which the help string lists."""
        name = action.metavar or ("NAME" if action.choices else default_metavar)
        return lambda n: (name,) * n

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0].removeprefix('--')}"
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        said = action.help if silent else super()._get_help_string(action)
        return f"{', '.join(action.choices)}: {said}" if action.choices else said


class Parser(argparse.ArgumentParser):
    """argparse's, of which rank 0 speaks first, and which a terminal without UTF-8 does not stop."""

    def __init__(self, doc: str, usage: str = "%(prog)s [flags]") -> None:
        title, *rest = doc.strip().split("\n\n")
        commands = [part for part in rest if part.startswith("    python ")]  # are shown first
        text = [part for part in rest if part not in commands and not part.startswith(("Differs", "Measured"))]
        described = "\n\n".join([title, *commands, *text])
        super().__init__(usage=usage, description=described, formatter_class=HelpFormatter, add_help=False)
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)  # whoever reads it knows
        process.any_terminal()

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        if args is None and "ipykernel" in sys.modules:
            args = []  # a notebook's command line is its kernel's
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        ranks.hold_back()
        super().error(message)

    def group(self, title: str) -> Callable:
        """add_argument of the group with this title, which is made where there is none."""
        for group in self._action_groups:
            if group.title == title:
                return group.add_argument
        return self.add_argument_group(title).add_argument


def largest(parser: argparse.ArgumentParser, flags: dict[str, Any]) -> str:
    """The flag to blame for too little memory: of those that say how large something is the greatest multiple of its
    default."""
    times = {"--batch-size": 1.0}
    for action in parser._actions:
        value = flags.get(action.dest)
        if type(value) is int and action.dest.endswith(SIZES):
            times[action.option_strings[-1]] = value / (action.default or 64)  # 64: where the default depends
    return max(times, key=times.get)


def modes(parser: argparse.ArgumentParser, given: dict[str, Any], used_in: dict[str, tuple[str, ...]]) -> set[str]:
    """The verbs that are given, or "train"; an error for a flag that does nothing there.

    used_in: where alone a flag does something, "train" or verbs.
    """
    found = {verb for verb in VERBS if verb in given} or {"train"}
    for name, places in (dict.fromkeys(ONLY_TRAINING, ("train",)) | used_in).items():
        if name in given and not found & set(places):
            with_what = " or ".join("training" if place == "train" else f"--{place}" for place in places)
            parser.error(f"--{name.replace('_', '-')} goes with {with_what}")
    return found
