"""The one exception that a user's mistake raises."""

import sys


class UserError(ValueError):
    """A mistake the person at the keyboard can mend: bad file, bad option, full disk.

    The message is one line that names the thing and the remedy. The command line prints it
    and exits with status 2; library callers catch it as a ``ValueError``.
    """


def warn(message: str) -> None:
    """Say something in one line on standard error."""
    print("fvae: warning: " + " ".join(message.split()), file=sys.stderr)
