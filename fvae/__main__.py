"""The ``fvae`` command, and ``python -m fvae``."""


def main() -> None:
    """Run the command line on the streams of this process."""
    # The module in C: until `signal` is imported, Ctrl-C would come out as a traceback.
    signals = __import__("_signal")
    at_once = signals.getsignal(signals.SIGINT) is signals.default_int_handler
    if at_once:
        signals.signal(signals.SIGINT, signals.SIG_DFL)
    from fvae import streams

    streams.end_at_once(at_once)
    streams.guard()
    from fvae import cli

    cli.main()


if __name__ == "__main__":
    main()
