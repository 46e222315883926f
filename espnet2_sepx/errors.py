"""Errors that a user can act on, and how commands print them."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input that the user can mend.

    The message is one line: what (a file, an option), what was expected, how to fix it.
    """


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command; a ``UserError`` becomes one line on stderr and exit status 2."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away (e.g. `| head`)
        sys.stderr.close()
        sys.exit(1)
    sys.exit(status or 0)
