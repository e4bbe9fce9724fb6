"""Which settings no model can be trained with: said without loading torch."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

from petals.architectures import ARCHITECTURES, check
from petals.errors import PetalsError
from petals.params import PrepareParams, load_params


def test_an_unknown_model_is_given_its_nearest_name():
    with pytest.raises(PetalsError, match=r"^model: there is no 'tinyvit_5m'; did you mean tiny_vit_5m\? There"):
        check("tinyvit_5m", 96, False)


@pytest.mark.parametrize(
    ("name", "size", "near"),
    [
        ("vit_ti_16", 100, "96 or 112"),
        ("vit_s_32", 32, "64"),
        ("vit_s_conv", 90, "80 or 96"),
        ("tiny_vit_5m", 331, "320 or 352"),
        ("mobilevit_s", 96, "64 or 128"),
        ("mobilevit_s", 30, "64"),
        ("efficientnet_lite0", 20, "32"),
    ],
)
def test_an_image_size_that_does_not_fit_is_given_the_nearest(name, size, near):
    with pytest.raises(PetalsError, match=f"^image_size: {name} cannot take {size}, .* nearest: {near}$"):
        check(name, size, False)
    for fitting in near.split(" or "):
        check(name, int(fitting), False)


@pytest.mark.parametrize("name", [name for name, each in ARCHITECTURES.items() if not each.published])
def test_weights_that_nobody_published(name):
    check(name, 128, False)
    with pytest.raises(PetalsError, match=f"^pretrained: .* no published weights of {name}; set pretrained=false"):
        check(name, 128, True)


def test_the_default_image_size_suits_every_model_but_those_of_64_px(params):
    size = load_params(PrepareParams, params).image_size
    for name, architecture in ARCHITECTURES.items():
        if size % architecture.size_multiple == 0:
            check(name, size, False)
        else:
            with pytest.raises(PetalsError, match=r"multiples of 64 from 64; nearest: 192 or 256$"):
                check(name, size, False)


def test_settings_are_checked_without_torch():
    code = "import sys, petals.params; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
