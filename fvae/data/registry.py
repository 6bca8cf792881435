"""The data sets that are made here; to add one, add an entry."""

from fvae.data.dsprites import rendered_store
from fvae.data.shapes3d_scene import scene_store
from fvae.registry import DATA, DataSet

# The number in a key changes with the drawing, so that an older drawing is not served.
DATA.add(DataSet("dsprites", "dSprites, drawn here", rendered_store, key="dsprites-rendered-1"))
DATA.add(DataSet("shapes3d", "3D Shapes' look-alike, drawn here", lambda progress: scene_store()))
