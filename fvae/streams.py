"""What the shell gives a command: streams that may be closed, full or gone, and Ctrl-C."""

import codecs
import errno
import os
import signal
import sys
from typing import Any, cast


class OutputLost(OSError):
    """Standard output cannot be written: its reader has gone, or its device is full."""


class _Output:
    """Standard output whose errors say that they are its own; a lost terminal is none."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._terminal = stream, stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not (self._terminal and error.errno == errno.EIO):
            raise OutputLost(error.errno, error.strerror) from None
        abandon(1)


class _Errors(_Output):
    """Standard error that, once lost, is silent: what a command does goes on without it."""

    def _failed(self, error: OSError) -> None:
        abandon(2)


def guard() -> None:
    """Let the standard streams of this process be what a command can rely on.

    A closed one is opened to nowhere, so that no file of ours gets its number. A name need not be
    text: its bytes go out as they came, and what else cannot be encoded is escaped.
    """
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the least free number, which is this one
        name = ("stdin", "stdout", "stderr")[number]
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))
    codecs.register_error("fvae", _as_it_came)
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.reconfigure(errors="fvae")
    sys.stdout, sys.stderr = cast(Any, _Output(sys.stdout)), cast(Any, _Errors(sys.stderr))


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError):
        character = error.object[error.start]
        if "\udc80" <= character <= "\udcff":
            return bytes([ord(character) - 0xDC00]), error.start + 1
    return codecs.backslashreplace_errors(error)


def abandon(number: int) -> None:
    """Send what is left in a stream nowhere, so that the end of the process is quiet."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


_waiting = False


def end_at_once(already: bool = False) -> None:
    """Let Ctrl-C end the process without a word, while there is nothing yet to clean up.

    An exception in the middle of somebody's import would come out as another, or as a traceback.

    Args:
        already: it does, where it would have raised KeyboardInterrupt.
    """
    global _waiting
    if already or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _waiting = True


def end_in_order() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again: from here on there is something to clean up."""
    global _waiting
    if _waiting:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _waiting = False
