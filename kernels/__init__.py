"""Triton kernels of the ops, imported as ``fvae.kernels``."""
