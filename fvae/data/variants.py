"""dSprites in colour, on noise and on a painting, made on demand from the rendered set."""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps

from fvae import philox
from fvae.data.image_files import FORMATS
from fvae.data.reading import reading
from fvae.data.store import Store
from fvae.errors import UserError
from fvae.philox import Stream

KINDS = ("color", "noisy", "scream")

#: Width and height that a background is shrunk to fit in, as Locatello et al. shrink the painting.
_FIT = (350, 274)


@dataclass(frozen=True, eq=False)
class VariantStore(Store):
    """A grid of binary images, each shown in colour, on noise, or on a piece of a picture.

    With u uniform random numbers in [0, 1) and m the sprite, the pixels are

    * color: m * c, a colour c = (1 + u) / 2 of each image;
    * noisy: max(m, u), u of each pixel and channel;
    * scream: |m - (p + u) / 2|, a random piece p of the picture and a colour u of each image.

    The random numbers of image i are those of Philox at counter i, so that image i is always the
    same; in Locatello et al. 2019, from whom the variants are, they are drawn anew each time.

    Attributes:
        data: uint8 ``[N, H * W / 8]``, the bit-packed binary images.
        image_shape: (3, H, W).
        kind: a name in :data:`KINDS`.
        background: uint8 ``[height, width, 3]`` on the data's device; of "scream" alone.
    """

    on_demand: ClassVar[bool] = True
    kind: str = "color"
    background: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        channels, height, width = self.image_shape
        if channels != 3 or self.data.shape[1:] != (height * width // 8,) or self.kind not in KINDS:
            raise UserError(
                f"store {self.name}: {self.kind} of bits {list(self.data.shape)} gives no images"
                f" {list(self.image_shape)}"
            )
        if prod(self.factor_sizes) != len(self.data):
            raise UserError(f"store {self.name}: factor sizes do not give {len(self.data)} images")

    def to(self, device: torch.device | str) -> "VariantStore":
        """The same store with its data on a device."""
        moved = super().to(device)
        assert isinstance(moved, VariantStore)
        object.__setattr__(moved, "background", self.background.to(device))
        return moved

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at the given indices as flattened CHW bytes.

        Args:
            indices: int64 ``[...]`` in 0..N-1, unchecked, on the store's device.

        Returns:
            uint8 ``[..., 3 * H * W]``. On a GPU nothing waits for the host.
        """
        index = indices.reshape(-1)
        # The table that Store looks bits up in lies on the host, which a CUDA graph cannot read.
        bits = self.data[index][:, :, None] >> torch.arange(8, device=index.device).to(torch.uint8)
        sprite = (bits & 1).reshape(len(index), 1, -1)
        images = getattr(self, f"_{self.kind}")(index, sprite)
        return images.reshape(*indices.shape, prod(self.image_shape))

    def _color(self, index: torch.Tensor, sprite: torch.Tensor) -> torch.Tensor:
        shade = (1 + philox.uniform(self._words(index, 1)[:, :3])) / 2
        return sprite * torch.round(255 * shade).to(torch.uint8)[:, :, None]

    def _noisy(self, index: torch.Tensor, sprite: torch.Tensor) -> torch.Tensor:
        word = self._words(index, prod(self.image_shape) // 16)  # a word holds four bytes
        shifts = torch.arange(0, 32, 8, device=index.device)
        noise = (word[:, :, None] >> shifts).to(torch.uint8)  # wraps to the low byte
        return torch.maximum(noise.reshape(len(index), 3, -1), sprite * 255)

    def _scream(self, index: torch.Tensor, sprite: torch.Tensor) -> torch.Tensor:
        word = self._words(index, 2)
        (_, height, width), (rows, columns) = self.image_shape, self.background.shape[:2]
        # Exclusive of the last place, as in the original.
        top = philox.bounded(word[:, 0], rows - height)[:, None, None]
        left = philox.bounded(word[:, 1], columns - width)[:, None, None]
        y = torch.arange(height, device=index.device)[:, None] + top
        x = torch.arange(width, device=index.device) + left
        piece = self.background[y, x].movedim(-1, 1).flatten(2)
        shade = philox.uniform(word[:, 2:5])[:, :, None]
        mixed = torch.round((piece + 255 * shade) / 2)
        return torch.where(sprite == 1, 255 - mixed, mixed).to(torch.uint8)

    def _made_of(self) -> bytes:
        background = self.background.cpu().numpy()
        return f"{self.kind} {background.shape}".encode() + background.tobytes()

    def _words(self, index: torch.Tensor, groups: int) -> torch.Tensor:
        """Words of each image, int64 ``[n, 4 * groups]``: of Philox at the counters i * groups.."""
        counter = index[:, None] * groups + torch.arange(groups, device=index.device)
        zero = torch.zeros((), dtype=torch.int64, device=index.device)  # key and step
        words = philox.words_at(zero, zero, Stream.SAMPLE.at(0), counter.flatten())
        return words.reshape(len(index), -1)


def variant(base: Store, kind: str, picture: str = "") -> VariantStore:
    """A variant of a set of binary images ``[1, H, W]``.

    Args:
        base: the set, such as dSprites.
        kind: a name in :data:`KINDS`.
        picture: of "scream", the path of the picture behind the sprites; where it is empty, one in
            the painting's manner, which is drawn here: no copy of the painting comes along.

    Raises:
        UserError: the picture is missing, is no picture, or is too small.
    """
    _, height, width = base.image_shape
    name = f"dsprites-{kind} (rendered)"
    more: dict[str, Any] = {}
    if kind == "scream":
        background = _picture(Path(picture).expanduser()) if picture else _drawn()
        if background.shape[0] <= height or background.shape[1] <= width:
            raise UserError(
                f"{picture}: is {background.shape[1]} x {background.shape[0]} pixels when it fits"
                f" in {_FIT[0]} x {_FIT[1]}; expected more than {width} x {height}"
            )
        more = {"background": torch.from_numpy(background)}
        if not picture:
            name = "dsprites-scream (rendered, on a drawn background)"
    return VariantStore(
        name,
        base.data,
        (3, height, width),
        False,
        base.factor_names,
        base.factor_sizes,
        kind=kind,
        **more,
    )


def _picture(path: Path) -> np.ndarray:
    with reading(path, "a picture, such as a photograph of Munch's The Scream"):
        with Image.open(path, formats=FORMATS) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
        upright.thumbnail(_FIT)
        return np.array(upright)


def _drawn() -> np.ndarray:
    """Waves of a red sky over a blue fjord and a brown bridge, uint8 ``[274, 221, 3]``."""
    y, x = np.mgrid[:274, :221] / 274
    wave = np.sin(40 * y + 6 * np.sin(7 * x + 3 * y)) + 0.5 * np.sin(25 * x - 9 * y)
    sky = [214, 110, 52] + wave[..., None] * [30, 38, 22]
    water = [52, 76, 104] + wave[..., None] * [26, 30, 24]
    bridge = [120, 78, 54] + np.sin(90 * (x + 0.7 * y))[..., None] * [34, 26, 20]
    land = np.where((y < 0.38 + 0.05 * np.sin(9 * x))[..., None], sky, water)
    image = np.where((y > 0.45 + 0.6 * x)[..., None], bridge, land)
    return np.rint(image.clip(0, 255)).astype(np.uint8)
