"""Pages and pictures of a run."""

from fvae.report.run import traversal_png, write_report, write_traversals
from fvae.report.scores import scores_of

__all__ = ["scores_of", "traversal_png", "write_report", "write_traversals"]
