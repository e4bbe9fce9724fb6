"""Grids of photographs with captions."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from petals.pictures import GAP, PAPER, fit, font_for, grid

COLOURS = [(250, 0, 0), (0, 200, 0), (0, 0, 250), (250, 250, 0), (120, 60, 30)]


def plain(number: int, size: int = 20) -> np.ndarray:
    return np.full((size, size, 3), COLOURS[number], np.uint8)


def test_each_picture_has_its_place(tmp_path: Path):
    path = tmp_path / "new" / "grid.jpg"
    grid([[plain(0), plain(1), plain(2)], [plain(3), plain(4, 300)]], [["", "", ""], ["", ""]], path, cell=30)
    with Image.open(path) as page:
        page = np.asarray(page.convert("RGB"))
    step = 30 + GAP
    assert page.shape == (GAP + 2 * step, GAP + 3 * step, 3)
    for number, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        cell = page[GAP + row * step :, GAP + column * step :][:30, :30]
        assert np.abs(cell[8:-8, 8:-8].astype(int) - COLOURS[number]).max() < 12, "but for what JPEG does to the edges"
    assert (page[GAP + step + 16 :, GAP + 2 * step + 16 :] == PAPER).all()


def test_a_line_of_a_caption_makes_a_row_higher(tmp_path: Path):
    heights = []
    for caption in ("", "one", "one\ntwo", "one\ntwo\nthree"):
        grid([[plain(0), plain(1)]], [["", caption]], tmp_path / "grid.jpg", cell=40)
        with Image.open(tmp_path / "grid.jpg") as page:
            heights.append(page.height)
            below = np.asarray(page.convert("RGB"))[GAP + 40 :, GAP + 40 + GAP :]
        assert (below.min() < 128) == bool(caption)
    assert np.diff(heights).tolist() == [12, 12, 12]


def test_no_pictures_are_a_page_too(tmp_path: Path):
    grid([], [], tmp_path / "grid.jpg")
    with Image.open(tmp_path / "grid.jpg") as page:
        assert (np.asarray(page.convert("RGB")) == PAPER).all()


def test_the_same_pictures_are_the_same_bytes(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 50, 50, 3), dtype=np.uint8)
    for name in ("one.jpg", "two.jpg"):
        grid([list(noise)], [["a", "bellflower 花", "c\nd", ""]], tmp_path / name)
    assert (tmp_path / "one.jpg").read_bytes() == (tmp_path / "two.jpg").read_bytes()


def test_an_uneven_grid_is_refused_and_the_former_one_stays(tmp_path: Path):
    grid([[plain(0)]], [["a"]], tmp_path / "grid.jpg")
    before = (tmp_path / "grid.jpg").read_bytes()
    with pytest.raises(ValueError, match="zip"):
        grid([[plain(0), plain(1)]], [["a"]], tmp_path / "grid.jpg")
    assert (tmp_path / "grid.jpg").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text", ["", "iris", "globe thistle and others", "w" * 500, "花" * 100])
@pytest.mark.parametrize("width", [20, 96])
def test_captions_are_cut_to_the_width_and_no_more(text: str, width: int):
    font = ImageFont.load_default(10)
    found = fit(text, font, width)
    assert font.getlength(found) <= width
    if found != text:
        assert font.getlength(text) > width
        assert found.endswith("…") and text.startswith(found[:-1])
        assert font.getlength(text[: len(found)] + "…") > width  # one more letter would not fit


@pytest.mark.parametrize("name", ["Gänseblümchen", "роза", "fiołek", "τριαντάφυλλο"])
def test_letters_of_other_languages_are_drawn(name: str):
    font = font_for(name)
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in name)
