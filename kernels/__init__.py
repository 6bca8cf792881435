"""Triton kernels of the ops, imported as ``fvae.kernels``: the backend "triton".

One file for each op, of the op's name: kernel and launcher. Importing this package imports Triton;
``fvae.ops`` does so when an op first needs it.
"""

from fvae.kernels import (
    activation_backward,
    bernoulli_nll,
    bias_activation,
    fused_adam,
    gather_batch,
    gaussian_nll,
    linear_adam,
    linear_backward,
    logit_ratio,
    pairwise_tc,
    permute_dims,
    reparameterize,
)

#: Registered op name -> launcher.
IMPLEMENTATIONS = {
    "gather_batch": gather_batch.gather_batch,
    "reparameterize": reparameterize.reparameterize,
    "reparameterize_backward": reparameterize.reparameterize_backward,
    "reparameterize_both": reparameterize.reparameterize_both,
    "reparameterize_both_backward": reparameterize.reparameterize_both_backward,
    "permute_dims": permute_dims.permute_dims,
    "permute_dims_backward": permute_dims.permute_dims_backward,
    "logit_ratio": logit_ratio.logit_ratio,
    "bernoulli_nll": bernoulli_nll.bernoulli_nll,
    "gaussian_nll": gaussian_nll.gaussian_nll,
    "pairwise_tc": pairwise_tc.pairwise_tc,
    "pairwise_tc_backward": pairwise_tc.pairwise_tc_backward,
    "activation_backward": activation_backward.activation_backward,
    "bias_activation": bias_activation.bias_activation,
    "linear_backward": linear_backward.linear_backward,
    "linear_adam": linear_adam.linear_adam,
    "fused_adam": fused_adam.fused_adam,
}
