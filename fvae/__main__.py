"""``python -m fvae`` is the ``fvae`` command."""

from fvae.cli import main

main()
