"""Views that depend on (seed, id, view) alone, and what happens to a batch."""

import colorsys

import kornia.augmentation as K
import numpy as np
import pytest
import torch
import yaml
from conftest import ORIGINAL
from torch import nn

from petals.augmentation import (
    POLICY_KNOBS,
    DrawsPerImage,
    render_views,
    to_bytes,
    to_floats,
    view_policy,
)
from petals.errors import PetalsError

SIZE = 24
KNOBS = yaml.safe_load(ORIGINAL) | {"crop_min": 0.5, "blur": 0.5}
NOTHING = dict.fromkeys(POLICY_KNOBS, 0) | {"crop_min": 1}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
IDS = list("abcde")


@pytest.fixture(autouse=True)
def one_thread():
    """As stages/augment.py has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def views(images=IMAGES, ids=IDS, view=0, seed=1, **knobs) -> np.ndarray:
    return render_views(images, ids, view, seed, view_policy(KNOBS | knobs, SIZE))


# --- views ---


def test_a_view_is_the_same_alone_and_in_any_batch():
    together = views()
    assert together.shape == IMAGES.shape and together.dtype == np.uint8
    for row in range(5):
        assert np.array_equal(views(IMAGES[[row]], [IDS[row]])[0], together[row])
    order = [3, 0, 4]
    assert np.array_equal(views(IMAGES[order], [IDS[row] for row in order]), together[order])


def test_what_ran_before_does_not_matter():
    before = views()
    policy = view_policy(KNOBS, SIZE)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    render_views(IMAGES[::-1].copy(), IDS, 9, 9, policy)
    assert np.array_equal(render_views(IMAGES, IDS, 0, 1, policy), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("other", [{"seed": 2}, {"view": 1}, {"ids": list("ABCDE")}])
def test_another_seed_view_or_id_is_another_view(other: dict):
    assert (views() != views(**other)).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("knob", POLICY_KNOBS)
def test_each_knob_does_something_and_can_be_switched_off(knob: str):
    assert np.array_equal(render_views(IMAGES, IDS, 0, 1, view_policy(NOTHING, SIZE)), IMAGES)
    alone = render_views(IMAGES, IDS, 0, 1, view_policy(NOTHING | {knob: KNOBS[knob]}, SIZE))
    assert (alone != IMAGES).any(axis=(1, 2, 3)).sum() >= (1 if knob == "blur" else 5)


def test_blur_takes_its_share_of_the_views():
    policy = view_policy(NOTHING | {"blur": 0.25}, SIZE)
    plain = np.repeat(IMAGES[:1], 400, axis=0)
    blurred = render_views(plain, [str(n) for n in range(400)], 0, 1, policy)
    assert 70 < (blurred != plain).any(axis=(1, 2, 3)).sum() < 130  # 100 are expected, give or take 9


def test_hue_moves_little_and_in_turns_of_the_wheel():
    colour = np.full((200, SIZE, SIZE, 3), (200, 60, 90), np.uint8)
    ids = [str(n) for n in range(200)]
    moved = render_views(colour, ids, 0, 1, view_policy(NOTHING | {"hue": 0.05}, SIZE))[:, 0, 0]
    hues = np.array([colorsys.rgb_to_hsv(*pixel / 255)[0] for pixel in moved])
    turns = (hues - colorsys.rgb_to_hsv(200 / 255, 60 / 255, 90 / 255)[0] + 0.5) % 1 - 0.5
    assert 0.04 < turns.max() < 0.052 and -0.052 < turns.min() < -0.04
    assert abs(turns.mean()) < 0.01


def test_brightness_moves_by_its_share_at_most():
    grey = np.full((200, 4, 4, 3), 100, np.uint8)
    moved = render_views(grey, [str(n) for n in range(200)], 0, 1, view_policy(NOTHING | {"brightness": 0.2}, 4))
    levels = moved[:, 0, 0, 0].astype(int) - 100
    assert -52 <= levels.min() < -40 and 40 < levels.max() <= 52  # kornia adds up to 0.2 of the whole range


def test_contrast_moves_grey_by_its_share_and_saturation_does_not():
    grey, ids = np.full((200, 4, 4, 3), 100, np.uint8), [str(n) for n in range(200)]
    flat = render_views(grey, ids, 0, 1, view_policy(NOTHING | {"saturation": 0.2}, 4))
    assert np.array_equal(flat, grey)
    moved = render_views(grey, ids, 0, 1, view_policy(NOTHING | {"contrast": 0.2}, 4))[:, 0, 0, 0].astype(int) - 100
    assert -21 <= moved.min() < -16 and 16 < moved.max() <= 21


def test_a_crop_keeps_its_share_of_the_area_and_a_turn_its_degrees():
    ramp = np.arange(64) * 4
    x = np.broadcast_to(ramp.astype(np.uint8)[None, :, None], (64, 64, 3))
    y = x.transpose(1, 0, 2)
    ids = [str(n) for n in range(200)]

    def slopes(**knobs: float) -> np.ndarray:
        """How the views' level changes in the middle by a pixel to the right: of x and of y, in pixels of before."""
        policy = view_policy(NOTHING | knobs, 64)
        sides = [render_views(np.stack([each] * 200), ids, 0, 1, policy)[:, 31, 22:42, 0] for each in (x, y)]
        return np.stack([(each[:, -1].astype(float) - each[:, 0]) / 19 / 4 for each in sides])

    across, _ = slopes(crop_min=0.1)
    assert across.min() < 0.45 and 0.8 < across.max() < 1.2
    across, down = slopes(rotation=20)
    turns = np.degrees(np.arctan2(down, across))
    assert 17 < turns.max() < 21 and -21 < turns.min() < -17


def test_a_turn_leaves_no_black_corner():
    white = np.full((50, 24, 24, 3), 255, np.uint8)
    turned = render_views(white, [str(n) for n in range(50)], 0, 1, view_policy(NOTHING | {"rotation": 20}, 24))
    assert (turned == 255).all()


# --- draws ---


def test_each_image_draws_from_its_own_row():
    table = torch.arange(24.0).view(2, 12)
    with DrawsPerImage(table):
        assert torch.rand(2).tolist() == [0, 12]
        assert torch.rand((2, 3)).tolist() == [[1, 2, 3], [13, 14, 15]]
        assert torch.rand(torch.Size([2, 1])).tolist() == [[4], [16]]
        assert torch.distributions.Uniform(0.0, 2.0).sample((2,)).tolist() == [10, 34]


def test_the_policy_draws_nothing_while_it_computes():
    images, nothing_left = to_floats(torch.from_numpy(IMAGES)), torch.zeros(len(IMAGES), 0)
    for operation in view_policy(KNOBS, SIZE):
        params = operation.forward_parameters(images.shape)
        with DrawsPerImage(nothing_left):
            operation(images, params=params)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (4, 12), (2, 13), (24, 2)])
def test_a_draw_that_is_not_one_an_image_is_refused(shape: tuple[int, ...]):
    with DrawsPerImage(torch.zeros(2, 12)), pytest.raises(RuntimeError, match="invalid for input of size"):
        torch.rand(shape)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(2),
        lambda: torch.randperm(2),
        lambda: torch.randint(5, (2,)),
        lambda: torch.bernoulli(torch.ones(2)),
        lambda: torch.rand_like(torch.ones(2)),
        lambda: torch.ones(2).uniform_(),
        lambda: torch.ones(2).normal_(),
        lambda: torch.distributions.Normal(0.0, 1.0).sample((2,)),
    ],
)
def test_other_sources_of_chance_are_refused(draw):
    with DrawsPerImage(torch.zeros(2, 12)), pytest.raises(RuntimeError, match="knows nothing of single images"):
        draw()
    draw()


def test_a_perspective_is_drawn_for_each_image_by_itself():
    """As docs/extend.md has it for an operation to add."""
    policy = nn.Sequential(K.RandomPerspective(0.3, p=1.0))
    together = render_views(IMAGES, IDS, 0, 1, policy)
    assert (together != IMAGES).any(axis=(1, 2, 3)).all()
    assert np.array_equal(render_views(IMAGES[2:3], IDS[2:3], 0, 1, policy), together[2:3])


@pytest.mark.parametrize(
    "operation",
    [
        lambda: K.ColorJitter(0.1, 0.1, 0.1, 0.1, p=1.0),
        lambda: K.RandomMotionBlur(3, 35.0, 0.5, p=1.0),
        lambda: K.RandomGaussianNoise(p=1.0),
        lambda: K.RandomElasticTransform(p=1.0),
    ],
)
def test_an_operation_that_draws_otherwise_is_refused(operation):
    reasons = "knows nothing of single images|invalid for input of size"
    with pytest.raises(PetalsError, match=rf"^{type(operation()).__name__} draws otherwise .*({reasons})"):
        render_views(IMAGES, IDS, 0, 1, nn.Sequential(operation()))


def test_bytes_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    floats = to_floats(torch.from_numpy(levels))
    assert floats.shape == (1, 3, 16, 16) and floats.dtype == torch.float32 and (floats.min(), floats.max()) == (0, 1)
    assert np.array_equal(to_bytes(floats), levels)
    beyond = torch.tensor([-0.2, 0.4999 / 255, 0.5001 / 255, 1.2]).view(1, 1, 2, 2)
    assert to_bytes(beyond.clone()).flatten().tolist() == [0, 0, 1, 255]
