"""Data sets of every make over one grid of images, for drop_in.score."""

import collections
import dataclasses
import math

import numpy as np
import torch
from PIL import Image

SIZES = (3, 4, 5)
N = math.prod(SIZES)

#: The factors as three pixels, 0..1 in steps of 1/5, exact in a byte too.
IMAGES = torch.from_numpy(np.stack(np.unravel_index(np.arange(N), SIZES), axis=1) / 5).float()
IMAGES = IMAGES.view(N, 1, 1, 3)


def encode(images):
    """The factors, out of images of 0..1 or bytes."""
    rows = images.flatten(1).to(torch.float32)
    return rows / 255 if images.dtype == torch.uint8 else rows


def picture(i):
    return Image.fromarray((IMAGES[i, 0] * 255).round().byte().numpy())


Pair = collections.namedtuple("Pair", "label image")


@dataclasses.dataclass
class Sample:
    pixel_values: object
    label: int


class Items(torch.utils.data.Dataset):
    """Items that a function makes."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.make(i)


#: What an item looks like -> (how it is made, key= that it needs).
MAKES = {
    "a tensor": (lambda i: IMAGES[i], None),
    "an array": (lambda i: IMAGES[i].numpy(), None),
    "a read-only array": (lambda i: np.broadcast_to(IMAGES[i].numpy(), (1, 1, 3)), None),
    "(image, label)": (lambda i: (IMAGES[i], i), None),
    "[image, label]": (lambda i: [IMAGES[i], i], None),
    "a named tuple": (lambda i: Pair(i, IMAGES[i]), "image"),
    "a tuple, by number": (lambda i: (i, IMAGES[i]), 1),
    "a dataclass": (lambda i: Sample(IMAGES[i], i), None),
    "disent's {'x_targ': (x,)}": (lambda i: {"x_targ": (IMAGES[i],)}, None),
    "Hugging Face's {'image': PIL}": (lambda i: {"label": i, "image": picture(i)}, None),
    "{'pixel_values': x}": (lambda i: {"pixel_values": IMAGES[i], "y": i}, None),
    "{'mine': x}": (lambda i: {"mine": IMAGES[i], "theirs": i}, "mine"),
    "one key alone": (lambda i: {"frame": IMAGES[i]}, None),
    "a PIL image": (picture, None),
    "(PIL image, label)": (lambda i: (picture(i), i), None),
}
