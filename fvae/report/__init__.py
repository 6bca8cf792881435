"""Pages and pictures of a run."""

from fvae.report.run import write_report, write_traversals

__all__ = ["write_report", "write_traversals"]
