"""The ``fvae`` command, and ``python -m fvae``."""


def main() -> None:
    """Run the command line on the streams of this process."""
    from fvae import streams

    streams.end_at_once()
    streams.guard()
    from fvae import cli

    cli.main()


if __name__ == "__main__":
    main()
