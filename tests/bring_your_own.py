"""``python tests/bring_your_own.py``: what people bring, what is right, and what they get.

Ends with 1 where something is wrong. Names of kinds (codes, images, data, loops) run those alone.
"""

import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from own import KINDS, cases
from rich.console import Console
from rich.table import Table


def main(kinds: list[str]) -> int:
    """Run the cases of some kinds and print the table; return the exit status."""
    unknown = set(kinds) - set(KINDS)
    if unknown:
        sys.exit(f"got {' '.join(sorted(unknown))}, expected some of {' '.join(KINDS)}")
    table = Table("kind", "input", "right", "got", "", show_lines=True)
    wrong = 0
    for one in cases():
        if kinds and one.kind not in kinds:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                got, fine = one.run(Path(folder))
            except Exception as error:
                traceback.print_exc()
                got, fine = repr(error), False
        wrong += not fine
        table.add_row(one.kind, one.given, one.right, str(got), "right" if fine else "WRONG")
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)
    print(f"{table.row_count} inputs, {wrong} wrong")
    return min(wrong, 1)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when the first kernel is loaded
    sys.exit(main(sys.argv[1:]))
