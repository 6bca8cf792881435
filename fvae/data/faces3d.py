"""3D Faces as published: basel_face_renders.pth."""

import warnings
from math import prod
from pathlib import Path

import torch

from fvae.data.reading import reading
from fvae.data.store import Store
from fvae.errors import UserError

NAMES = ("identity", "azimuth", "elevation", "lighting")
SHAPE = (1, 64, 64)
_EXPECTED = "3D Faces' basel_face_renders.pth as it was published"


def load_faces3d_pth(path: Path) -> Store:
    """3D Faces from its published torch file.

    The file is a pickle. It is read by torch's restricted loader, which makes tensors and runs no
    code.

    Args:
        path: the file: one uint8 tensor ``[identity, azimuth, elevation, lighting, 64, 64]``,
            50 x 21 x 11 x 11 images as published.

    Returns:
        A store of gray images ``[1, 64, 64]`` with four factors; the sizes come from the file.

    Raises:
        UserError: the file is missing, damaged, or holds anything but such a tensor.

    Source:
        Paysan et al., "A 3D Face Model for Pose and Illumination Invariant Face Recognition",
        2009, rendered for Chen et al., "Isolating Sources of Disentanglement in VAEs", 2018.
    """
    with reading(path, _EXPECTED), open(path, "rb") as file:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it remarks on old formats
                images = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception:  # torch's message would advise to unpickle the file after all
            raise UserError(
                f"{path}: not a torch file of one plain tensor (anything else in it, code above"
                f" all, is never loaded); expected {_EXPECTED}"
            ) from None
        if not isinstance(images, torch.Tensor):
            found = type(images).__name__
            raise UserError(f"{path}: holds a {found}, not a tensor; expected {_EXPECTED}")
        sizes = tuple(images.shape[:-2])
        right_shape = len(sizes) == len(NAMES) and tuple(images.shape[-2:]) == SHAPE[1:]
        if not right_shape or images.dtype != torch.uint8 or not images.numel():
            raise UserError(
                f"{path}: the tensor is {list(images.shape)} {images.dtype}, expected"
                f" [{', '.join(NAMES)}, 64, 64] torch.uint8; use the file as it was published"
            )
        return Store("3dfaces", images.reshape(-1, prod(SHAPE)), SHAPE, False, NAMES, sizes)
