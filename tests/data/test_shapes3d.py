from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared import DEVICE
from small import SMALL

from fvae import Philox, data, ops
from fvae.data import LayeredStore, render_shapes3d
from fvae.errors import UserError
from fvae.evaluate import pixels
from fvae.training.trainer import Trainer

SIZES = (10, 10, 10, 8, 4, 15)
FLOOR, WALL, OBJECT, SCALE, SHAPE, ORIENTATION = range(6)
FRAMES = np.load(Path(__file__).parent / "shapes3d_real_frames.npz")["images"]


@cache
def store():
    return data.load("shapes3d")


def hues_of(frame: np.ndarray) -> tuple[int, int, int]:
    """Floor, wall and object hue of a real frame: the commonest hue where each is sure to be."""

    def commonest(*regions: np.ndarray) -> int:
        pixels = np.concatenate([region.reshape(-1, 3) for region in regions]).astype(float)
        # The hue of a colour by the hexagon model, in tenths of a turn.
        red, green, blue = pixels.T
        turn = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)
        return int(np.bincount(np.rint(turn * 10).astype(int) % 10, minlength=10).argmax())

    return (
        commonest(frame[50:62, 2:6], frame[50:62, 60:]),
        commonest(frame[24:34, 2:10], frame[24:34, 56:]),
        commonest(frame[44:54, 29:35]),
    )


def errors_against(frame: np.ndarray) -> np.ndarray:
    """Mean absolute error of the frame against all 480 drawings with its hues, [8, 4, 15]."""
    geometries = np.stack(np.unravel_index(np.arange(480), SIZES[3:]), axis=1)
    classes = np.concatenate([np.tile(hues_of(frame), (480, 1)), geometries], axis=1)
    difference = np.abs(render_shapes3d(classes).astype(np.int16) - frame)
    return difference.mean(axis=(1, 2, 3)).reshape(SIZES[3:])


def test_each_real_frame_is_nearly_one_of_the_drawings():
    best = [errors_against(frame).min() for frame in FRAMES]
    assert len(best) == 25
    assert max(best) < 5
    assert np.mean(best) < 4


def test_the_drawing_nearest_to_a_real_frame_has_its_shape():
    # As one sees them: 0 cube, 1 cylinder, 2 sphere, 3 capsule.
    seen = [2, 1, 0, 0, 2, 1, 0, 0, 2, 3, 1, 1, 1, 1, 0, 2, 0, 1, 1, 3, 0, 0, 0, 1, 3]
    nearest = [errors_against(frame).min(axis=(0, 2)).argmin() for frame in FRAMES]
    assert nearest == seen


def test_the_grid_is_described():
    grid = store()
    assert grid.name == "3dshapes (rendered)"
    assert grid.factor_names == (
        "floor_hue", "wall_hue", "object_hue", "scale", "shape", "orientation",
    )  # fmt: skip
    assert grid.factor_sizes == SIZES
    assert (len(grid), grid.image_shape, grid.binary) == (480_000, (3, 64, 64), False)
    assert grid.nbytes < 200e6


@given(st.lists(st.integers(0, 479_999), min_size=1, max_size=20))
def test_an_index_and_its_classes_have_the_same_image(indices):
    classes = store().factors(indices)
    assert store().index(classes).tolist() == indices
    drawn = torch.from_numpy(render_shapes3d(classes))
    assert drawn.dtype == torch.uint8 and drawn.shape == (len(indices), 64, 64, 3)
    assert torch.equal(drawn.permute(0, 3, 1, 2), store().images(indices))


def test_orientation_varies_fastest_and_floor_hue_slowest():
    assert store().factors([1, 48_000]).tolist() == [[0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]]


def regions(geometry: tuple[int, int, int]) -> list[np.ndarray]:
    """For floor, wall and object, the pixels that change with its hue."""
    base = render_shapes3d([(0, 0, 0, *geometry)])[0]
    changed = []
    for part in range(3):
        classes = np.tile((0, 0, 0, *geometry), (10, 1))
        classes[:, part] = np.arange(10)
        changed.append((render_shapes3d(classes) != base).any(axis=(0, 3)))
    return changed


@given(st.integers(0, 7), st.integers(0, 3), st.integers(0, 14))
def test_a_hue_colours_its_part_alone(scale, shape, orientation):
    floor, wall, thing = regions((scale, shape, orientation))
    assert floor[60, 3] and wall[25, 3] and thing[45, 32]
    # Parts share the pixels of their common outlines and no others.
    assert ((floor & wall).sum() < 140) and ((floor & thing).sum() < 80)
    assert (wall & thing).sum() < 90
    # What no hue changes is sky: full rows at the top, one colour.
    nobody = ~(floor | wall | thing)
    assert nobody[:12].sum() > 12 * 50
    image = render_shapes3d([(3, 5, 7, scale, shape, orientation)])[0]
    assert (image[nobody] == (153, 226, 249)).all()


@pytest.mark.parametrize("hue", range(10))
def test_hues_go_round_the_colour_circle(hue):
    # The wall's middle, left of the object, is neither saturated by light nor by gloss.
    red, green, blue = render_shapes3d([(0, hue, 0, 0, 0, 7)])[0, 25, 60].astype(float)
    turn = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * np.pi)
    # arctan2 and the six-sided hue differ by at most 1.1 degrees, rounding by another.
    assert abs((turn - hue / 10 + 0.5) % 1 - 0.5) * 360 < 2.5


@pytest.mark.parametrize("shape", range(4))
def test_scale_grows_the_object(shape):
    areas = [regions((scale, shape, 7))[OBJECT].sum() for scale in range(8)]
    assert (np.diff(areas) > 0).all()
    assert 2.2 < areas[-1] / areas[0] < 3.3  # (1.25 / 0.75) ** 2 = 2.8, and perspective


def test_opposite_orientations_mirror_the_outlines():
    for shape in range(4):
        for orientation in range(7):
            left = regions((4, shape, orientation))
            right = regions((4, shape, 14 - orientation))
            for one, other in zip(left, right, strict=True):
                assert (one != other[:, ::-1]).mean() < 0.005


def test_orientation_turns_the_room_one_way():
    # The corner where the back wall meets the darker side wall moves from right to left.
    images = render_shapes3d([(0, 0, 5, 0, 2, k) for k in range(15)])
    row = images[:, 24, :, 0].astype(int)
    corner = np.argmax(-np.diff(row, axis=1), axis=1)
    assert (np.diff(corner[:5]) > 0).all()  # classes 0..4 show the right side wall
    corner = np.argmax(np.diff(row, axis=1), axis=1)
    assert (np.diff(corner[10:]) > 0).all()  # classes 10..14 the left one


def test_the_light_does_not_turn_with_the_room():
    # Only the cube has sides to turn; the others, and their shadows, keep their places.
    for shape, differs in enumerate((True, False, False, False)):
        images = render_shapes3d([(0, 0, 5, 4, shape, k) for k in range(15)])
        near_the_object = images[:, 45:58, 22:42]
        assert (near_the_object != near_the_object[0]).any() == differs


def test_no_layers_overflow_when_added():
    layers = store().data.view(480, 3, 10, -1)
    brightest = sum(layers[:, part].amax(1).int() for part in range(3))
    assert brightest.max() <= 255


@pytest.mark.parametrize("backend", [None, "reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_is_the_images_at_its_indices(dtype, backend):
    grid, rng = store().to(DEVICE), Philox(3, device=DEVICE)
    x, indices = ops.gather_batch(grid, 65, rng, backend, dtype=dtype, return_indices=True)
    assert (x.dtype, x.shape) == (dtype, (65, 3, 64, 64))
    assert torch.equal(x, grid.images(indices).to(dtype) * (1 / 255))


def test_the_networks_see_the_images_divided_by_255():
    indices = torch.arange(0, 480_000, 9973)
    assert torch.equal(pixels(store(), indices), store().images(indices) * (1 / 255))


def test_the_indices_are_those_of_any_store_of_this_length():
    class Packed:
        data, binary, image_shape = torch.zeros(480_000, 4, dtype=torch.uint8), False, (1, 2, 2)

    rngs = Philox([1, 2])
    x, indices = ops.gather_batch(store(), 9, rngs, return_indices=True)
    assert torch.equal(indices, ops.gather_batch(Packed, 9, rngs, return_indices=True)[1])
    assert x.shape == (2, 9, 3, 64, 64)
    assert torch.equal(x[1], ops.gather_batch(store(), 9, Philox(2)))


def test_a_backend_that_does_not_exist_is_refused_here_too():
    with pytest.raises(ValueError, match="backend: got 'magic'"):
        ops.gather_batch(store(), 9, Philox(0), "magic")


def test_to_moves_the_layers():
    moved = store().to("meta")
    assert isinstance(moved, LayeredStore)
    assert moved.rows(torch.zeros(5, dtype=torch.int64, device="meta")).shape == (5, 12_288)


def test_layers_that_do_not_fit_the_factors_are_refused():
    layers = torch.zeros(11, 4, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"bad: 11 layers of 2 parts.*need 12"):
        LayeredStore("bad", layers, (1, 2, 2), False, ("a", "b", "c"), (3, 3, 2), parts=2)


def test_rows_add_one_layer_of_each_part():
    layers = torch.arange(12, dtype=torch.uint8)[:, None]
    small = LayeredStore("small", layers, (1, 1, 1), False, ("a", "b", "c"), (3, 3, 2), parts=2)
    got = small.images(range(18)).flatten().tolist()
    assert got == [(6 * g + a) + (6 * g + 3 + b) for a in range(3) for b in range(3)
                   for g in range(2)]  # fmt: skip


def test_no_classes_give_no_images():
    assert render_shapes3d(np.empty((0, 6), int)).shape == (0, 64, 64, 3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 0, 0, 0, 0, 0], r"shape \[6\], expected \[n, 6\]"),
        ([[0, 0, 0, 0, 0]], r"shape \[1, 5\], expected \[n, 6\]"),
        ([[10, 0, 0, 0, 0, 0]], "floor_hue 10 is out of range 0..9"),
        ([[0, 0, 0, 0, 4, 0]], "shape 4 is out of range 0..3"),
        ([[0, 0, 0, 0, 0, -1]], "orientation -1 is out of range 0..14"),
        ([[0.0, 0, 0, 0, 0, 0]], "float64, expected whole numbers"),
    ],
)
def test_wrong_classes_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        render_shapes3d(classes)


def test_a_run_trains_on_it():
    trainer = Trainer(SMALL, store())
    before = trainer.state()["vae.encoder.0.weight"].clone()
    losses = [float(trainer.step()["loss"]) for _ in range(2)]
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert not torch.equal(before, trainer.state()["vae.encoder.0.weight"])
