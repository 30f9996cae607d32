"""argparse as every script here uses it: types of numbers, groups of flags, flags that were typed."""

import argparse
from collections.abc import Callable
from typing import Any

from plumbing.system import hardware

VERBS = ("generate", "eval", "interpolate", "export", "encode", "score", "features")  # flags that replace training
ONLY_TRAINING = ("steps", "fresh", "compile", "log_every", "save_every", "sample_every")
USED_IN = dict.fromkeys(ONLY_TRAINING, ("train",)) | {"n": ("generate",)}  # by flag where alone it does something
EXTRA = ("script", "weights_name", "typed", "science", "training", "begin")  # of parse(), beside the flags
NOT_LEARNED = ("run", "trained weights")  # groups of flags that do not change what is learned
METAVARS = {"int": "N", "float": "X"}


def number(kind: type, low: float, high: float = 2**31 - 1, above: bool = False, below: bool = False) -> Callable:
    """Return an argparse type: an int or float from `low` to `high`.

    above: `low` itself is not allowed. below: `high` itself is not allowed.
    """

    def parse(text: str) -> Any:
        value = kind(text)  # argparse turns a ValueError into "invalid int value"
        if low <= value <= high and not (above and value == low) and not (below and value == high):
            return value
        lower = "above" if above else "at least"
        upper = "below" if below else "at most"
        raise argparse.ArgumentTypeError(f"{text} is not {lower} {low} and {upper} {high}")

    parse.__name__ = kind.__name__
    return parse


def between(low: int, high: int) -> Callable[[str], int]:
    """Return an argparse type: an int from `low` to `high`, both included."""
    return number(int, low, high)


count = number(int, 1)
natural = number(int, 0)
positive = number(float, 0, above=True)
amount = number(float, 0)
share = number(float, 0, 1, below=True)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Show a script's docstring as it is written, and most flags in one line of up to 118 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=118)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that writes defaults into --help and remembers which flags were typed.

    doc: a script's docstring. --help shows its title, then its commands, then the rest without "Differs" and
    "Measured".
    """

    def __init__(self, doc: str, usage: str = "%(prog)s [flags]") -> None:
        title, *rest = doc.strip().split("\n\n")
        commands = [part for part in rest if part.startswith("    python ")]
        text = [part for part in rest if part not in commands and not part.startswith(("Differs", "Measured"))]
        description = "\n\n".join([title, *commands, *text])
        super().__init__(usage=usage, description=description, formatter_class=HelpFormatter, add_help=False)
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.script = self.weights_name = ""
        self.groups: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}  # by flag
        self.group_of: dict[str, str] = {}  # title, by flag

    def group(self, title: str) -> Callable:
        """Return add_argument of the group with this title. The group is made where there is none."""
        if title not in self.groups:
            self.groups[title] = self.add_argument_group(title)
        group = self.groups[title]

        def add(name: str, default: Any = None, help: str = "", **how) -> None:
            if "choices" in how:
                help = f"{', '.join(how['choices'])}: {help}"
                how.setdefault("metavar", "NAME")
            elif getattr(how.get("type"), "__name__", "") in METAVARS:
                how.setdefault("metavar", METAVARS[how["type"].__name__])
            if default is not None and default is not False:
                help += f" (default: {default})"
            if isinstance(default, str) and "type" in how:
                default = how["type"](default)  # as argparse does
            # Without a default argparse returns the typed flags alone; parse_args adds the defaults.
            action = group.add_argument(name, default=argparse.SUPPRESS, help=help, **how)
            self.defaults[action.dest] = False if how.get("action") == "store_true" else default
            self.group_of[action.dest] = title

        return add

    def parse_args(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Return all flags, and as `typed` a dictionary of those that stand on the command line.

        argv: None is no flags, as for main() in a notebook. A script passes sys.argv.
        """
        typed = vars(super().parse_args(argv or []))
        return argparse.Namespace(**self.defaults | typed, typed=typed)

    def parse(self, argv: list[str] | None, **used_in: tuple[str, ...]) -> argparse.Namespace:
        """Return the flags of a training script, with --bf16 resolved for this machine.

        used_in: by flag the places, "train" or verbs such as "generate", where alone it does something.

        Besides the flags the namespace holds `script`, `weights_name`, `typed`, `science` (by flag that decides what
        is learned its group), `training` (no verb was typed) and `begin` (see common.adopt_weights).
        """
        args = self.parse_args(argv)
        if args.data == "":
            self.error("--data is empty")
        verbs = {verb for verb in VERBS if verb in args.typed} or {"train"}
        for name, places in (USED_IN | used_in).items():
            if name in args.typed and not verbs & set(places):
                where = " or ".join("training" if place == "train" else f"--{place}" for place in places)
                self.error(f"--{name.replace('_', '-')} goes with {where}")
        args.bf16 = hardware.bf16(args.device, args.bf16)
        args.science = {name: title for name, title in self.group_of.items() if title not in NOT_LEARNED}
        args.script, args.weights_name = self.script, self.weights_name
        args.training, args.begin = verbs == {"train"}, {}
        return args
