"""The data sets that are made here; to add one, add an entry."""

from collections.abc import Callable

from fvae.data.cache import cached
from fvae.data.dsprites import rendered_store
from fvae.data.shapes3d_scene import scene_store
from fvae.data.store import Store
from fvae.data.variants import variant
from fvae.registry import DATA, DataSet

# The number in a key changes with the drawing, so that an older drawing is not served.
_DSPRITES = "dsprites-rendered-1"


def _variant(kind: str) -> Callable[..., Store]:
    def build(progress: Callable[[float], None], picture: str = "") -> Store:
        return variant(cached(_DSPRITES, lambda: rendered_store(progress)), kind, picture)

    return build


DATA.add(DataSet("dsprites", "dSprites, drawn here", rendered_store, key=_DSPRITES))
DATA.add(DataSet("shapes3d", "3D Shapes' look-alike, drawn here", lambda progress: scene_store()))
DATA.add(DataSet("dsprites-color", "each sprite in a random colour", _variant("color")))
DATA.add(DataSet("dsprites-noisy", "sprites on noise", _variant("noisy")))
DATA.add(
    DataSet(
        "dsprites-scream",
        "sprites on pieces of a picture; dsprites-scream:PATH takes yours, such as Munch's The"
        " Scream, and without it one is drawn here",
        _variant("scream"),
        takes="the path of a picture",
    )
)
