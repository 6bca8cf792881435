"""MPI3D as published: mpi3d_toy.npz, mpi3d_realistic.npz, mpi3d_real.npz, real3d_complicated.

The files hold ``images`` alone, uint8 ``[N, 64, 64, 3]``, all combinations in row-major order, last
factor fastest; the number of images tells the factors' sizes.

Source:
    github.com/rr-learning/disentanglement_dataset; Gondal et al., "On the Transfer of Inductive
    Bias from Simulation to the Real World", 2019.
"""

from fvae.data.factors import KnownFactors

SHAPE = (64, 64, 3)
NAMES = (
    "object_color",
    "object_shape",
    "object_size",
    "camera_height",
    "background_color",
    "horizontal_axis",
    "vertical_axis",
)
#: By number of images: toy, realistic and real; and the real set of four everyday objects.
SIZES = {1_036_800: (6, 6, 2, 3, 3, 40, 40), 460_800: (4, 4, 2, 3, 3, 40, 40)}


def factors_by_count(shape: tuple[int, ...]) -> KnownFactors | None:
    """The factors of an array of that shape; None where it is not MPI3D's."""
    if shape[1:] != SHAPE or shape[0] not in SIZES:
        return None
    return KnownFactors(NAMES, SIZES[shape[0]])
