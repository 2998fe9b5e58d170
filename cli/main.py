"""The command `hf-clip`. Each verb reads its arguments in a module of its own, and imports what it needs as it runs.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 stopped by a signal after saving.
"""

import sys
from collections.abc import Sequence

DONE, FAILED = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code. Errors are one line, unless `--debug` asks for the traceback."""
    try:
        from .running import run

        return run(arguments)
    except KeyboardInterrupt:
        print("hf-clip: interrupted.", file=sys.stderr)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
