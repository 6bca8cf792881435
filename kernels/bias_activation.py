"""bias_activation: what is left of a layer when its product is done, in one launch, in place."""

from fvae.kernels.activation_backward import bias_activation as bias_activation
