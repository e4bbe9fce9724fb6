"""Pictures for people: grids of photographs with captions, small enough for git."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from petals.files import replacing

GAP, PAPER, INK = 4, (255, 255, 255), (40, 40, 40)


def grid(rows: list[list[np.ndarray]], captions: list[list[str]], path: str | Path, cell: int = 128) -> None:
    """Write a JPEG of `rows` of uint8 H × W × 3 images, each with its caption (lines split by newlines) below."""
    font = font_for("".join(text for row in captions for text in row))
    lines = max((text.count("\n") + 1 if text else 0 for row in captions for text in row), default=0)
    height, width = cell + 12 * lines + GAP, cell + GAP
    columns = max((len(row) for row in rows), default=1)
    page = Image.new("RGB", (GAP + columns * width, GAP + max(len(rows), 1) * height), PAPER)
    draw = ImageDraw.Draw(page)
    for y, (row, texts) in enumerate(zip(rows, captions, strict=True)):
        for x, (image, text) in enumerate(zip(row, texts, strict=True)):
            place = (GAP + x * width, GAP + y * height)
            page.paste(Image.fromarray(image).resize((cell, cell), Image.Resampling.BICUBIC), place)
            for number, line in enumerate(text.split("\n")):
                draw.text((place[0], place[1] + cell + 12 * number), fit(line, font, cell), INK, font)
    with replacing(path) as partial:
        page.save(partial, "JPEG", quality=85, optimize=True)


def font_for(text: str) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or where that lacks letters of `text` (it has hardly more than ASCII) matplotlib's."""
    matplotlib = None if text.isascii() else find_spec("matplotlib")
    if not matplotlib:
        return ImageFont.load_default(10)
    return ImageFont.truetype(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", 10)


def fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut `text` to `width` pixels, with an ellipsis where something is lost."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
