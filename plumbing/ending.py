"""How a script ends that cannot go on: with one line."""

import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from plumbing import files, hardware, ranks


def fail(message: object) -> NoReturn:
    """End the program as argparse does: one line on standard error, exit status 2."""
    ranks.hold_back()
    files.say(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", sys.stderr)
    raise SystemExit(2)


def last_words(kind: type[BaseException], error: BaseException, trace: Any, largest: str = "--batch-size") -> None:
    """What ends a script and is no defect of it gets one line: a full disk, too little memory, another rank's death."""
    kept = "what was saved is kept, and the same command continues from it"
    text = (str(error) or kind.__name__).splitlines()[0][:200]
    if kind is KeyboardInterrupt:
        files.say(f"{Path(sys.argv[0]).name}: stopped; {kept}", sys.stderr)
        raise SystemExit(130)
    if ranks.lost(error):
        fail(f"rank {ranks.rank()} has lost the others ({text.split('] ', 1)[-1].split('. ')[0]}); {kept}")
    if isinstance(error, OSError):
        fail(f"{text}; {kept}")
    if hardware.out_of_memory(error):
        fail(f"not enough memory: try a smaller {largest}; {kept} ({text})")
    traceback.print_exception(kind, error, trace, file=sys.__stderr__)
