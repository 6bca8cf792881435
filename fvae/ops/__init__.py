"""The public ops: shape contract, argument checks, choice of backend.

Each op is registered once as ``torch.ops.fvae.<name>`` with a schema and a fake, so that
``torch.compile(fullgraph=True)`` takes it whole; the reference implementation serves every device,
and a faster backend registers itself for the devices it serves. ``backend=None`` lets the
dispatcher pick; a name in :data:`BACKENDS` forces that backend.

Random ops take ``rng``, a :class:`fvae.Philox`. Without it they draw a key from PyTorch's global
generator, so that ``torch.manual_seed`` governs them as it does ``torch.randn``.

Sign convention: logit 0 is "drawn from q(z)" (class 0), logit 1 is "permuted" (class 1), and the
total correlation estimate is ``mean(l0 - l1)``. The estimate can be negative.
"""

from fvae.ops import fakes as fakes  # registers them
from fvae.ops.adam import LinearGradients, fused_adam, linear_adam
from fvae.ops.alias import alias_table
from fvae.ops.both import reparameterize_both
from fvae.ops.convolution import conv4x4, has_matrix_units
from fvae.ops.ends import conv_from_bits, conv_to_pixels, packed_bits
from fvae.ops.index import RowIndex
from fvae.ops.layers import (
    activation_backward,
    bias_activation,
    few_products,
    linear_backward,
)
from fvae.ops.metric import grouped_variance, metric_votes, pair_features
from fvae.ops.registry import (
    BACKENDS,
    OPS,
    backend_of,
    build_extension,
    extension_error,
    implementation,
)
from fvae.ops.training import (
    bernoulli_nll,
    gather_batch,
    gaussian_nll,
    logit_ratio,
    pairwise_tc,
    permute_dims,
    reparameterize,
)
from fvae.ops.trees import boosted_trees

__all__ = [
    "BACKENDS",
    "CUDA_EXTENSION_ERROR",
    "EXTENSION_ERROR",
    "OPS",
    "LinearGradients",
    "RowIndex",
    "activation_backward",
    "alias_table",
    "backend_of",
    "bernoulli_nll",
    "bias_activation",
    "boosted_trees",
    "build_extension",
    "conv4x4",
    "conv_from_bits",
    "conv_to_pixels",
    "few_products",
    "fused_adam",
    "gather_batch",
    "gaussian_nll",
    "grouped_variance",
    "has_matrix_units",
    "implementation",
    "linear_adam",
    "linear_backward",
    "logit_ratio",
    "metric_votes",
    "pair_features",
    "packed_bits",
    "pairwise_tc",
    "permute_dims",
    "reparameterize",
    "reparameterize_both",
]

#: Why the C++ ops are not there; None where they are.
EXTENSION_ERROR: str | None
#: Why the CUDA ops are not there; None where they are, and where PyTorch is not a CUDA build.
CUDA_EXTENSION_ERROR: str | None


def __getattr__(name: str) -> str | None:
    # Both change in a process whose first use builds the extension.
    if name == "EXTENSION_ERROR":
        return extension_error("cpu")
    if name == "CUDA_EXTENSION_ERROR":
        return extension_error("cuda")
    raise AttributeError(f"module 'fvae.ops' has no attribute {name!r}")
