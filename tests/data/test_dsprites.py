from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvae.data import render_dsprites
from fvae.errors import UserError

SIZES = (3, 6, 40, 32, 32)
FRAMES = np.load(Path(__file__).parent / "dsprites_real_frames.npz")


def wrong_pixels() -> np.ndarray:
    """For each real frame, how many pixels the drawing has wrong."""
    return (render_dsprites(FRAMES["latents_classes"]) != FRAMES["imgs"]).sum(axis=(1, 2))


@pytest.mark.parametrize(("shape", "name"), [(0, "square"), (1, "ellipse")])
def test_squares_and_ellipses_are_exact_on_every_real_frame(shape, name):
    mine = FRAMES["latents_classes"][:, 0] == shape
    assert mine.sum() > 30
    assert not wrong_pixels()[mine].any()


def test_nearly_all_real_frames_are_exact_and_the_rest_nearly_so():
    wrong = wrong_pixels()
    assert (wrong == 0).mean() >= 0.97
    assert wrong.max() <= 3


def test_the_grid_is_described(dsprites):
    assert dsprites.name == "dsprites (rendered)"
    assert dsprites.factor_names == ("shape", "scale", "orientation", "posX", "posY")
    assert dsprites.factor_sizes == SIZES
    assert (len(dsprites), dsprites.image_shape, dsprites.binary) == (737_280, (1, 64, 64), True)
    assert dsprites.data.shape == (737_280, 512)


def test_the_grid_has_the_real_frames_images(dsprites):
    images = dsprites.images(dsprites.index(FRAMES["latents_classes"]))[:, 0].numpy()
    assert ((images != FRAMES["imgs"]).any(axis=(1, 2)).mean()) <= 0.03


@given(st.lists(st.integers(0, 737_279), min_size=1, max_size=40))
def test_a_drawn_image_is_the_grids_row(dsprites, indices):
    drawn = render_dsprites(dsprites.factors(indices))
    assert np.array_equal(drawn, dsprites.images(indices)[:, 0])


def test_every_kind_of_sprite_is_the_grids_row(dsprites):
    # One place each for all 720 combinations of shape, scale and orientation.
    place = np.random.default_rng(0).integers(0, 1024, 720)
    indices = np.arange(720) * 1024 + place
    drawn = render_dsprites(dsprites.factors(indices))
    assert np.array_equal(drawn, dsprites.images(indices)[:, 0])


def test_sprites_stay_inside_the_frame_and_grow_with_scale(dsprites):
    at_the_edges = np.array([(s, 5, o, x, y) for s in range(3) for o in (0, 5) for x in (0, 31)
                             for y in (0, 31)])  # fmt: skip
    images = render_dsprites(at_the_edges)
    assert not images[:, [0, -1]].any() and not images[:, :, [0, -1]].any()
    areas = render_dsprites([(2, scale, 7, 16, 16) for scale in range(6)]).sum(axis=(1, 2))
    assert (np.diff(areas.astype(int)) > 0).all()


def test_position_x_moves_right_and_y_moves_down():
    first, right, down = render_dsprites([(1, 2, 3, 0, 0), (1, 2, 3, 31, 0), (1, 2, 3, 0, 31)])
    assert np.array_equal(np.roll(first, 32, axis=1), right)
    assert np.array_equal(np.roll(first, 32, axis=0), down)


def test_no_classes_give_no_images():
    assert render_dsprites(np.empty((0, 5), int)).shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 0, 0, 0, 0], r"shape \[5\], expected \[n, 5\]"),
        ([[0, 0, 0, 0]], r"shape \[1, 4\], expected \[n, 5\]"),
        ([[3, 0, 0, 0, 0]], "shape 3 is out of range 0..2"),
        ([[0, 0, 40, 0, 0]], "orientation 40 is out of range 0..39"),
        ([[0, 0, 0, 0, -1]], "posY -1 is out of range 0..31"),
        ([[0.0, 0, 0, 0, 0]], "float64, expected whole numbers"),
    ],
)
def test_wrong_classes_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        render_dsprites(classes)
