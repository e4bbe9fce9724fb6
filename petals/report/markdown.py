"""Markdown as GitHub reads it, in which text from a branch cannot do anything but be read."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LONGEST = 60  # characters of a name that are shown
FEW = 6  # names that are shown


@dataclass(frozen=True)
class Section:
    """A part of the page; `body` is markdown. A folded one shows its title alone until it is opened."""

    title: str
    body: str
    folded: bool = True

    def __str__(self) -> str:
        if self.folded:
            return f"<details>\n<summary>{self.title}</summary>\n\n{self.body}\n\n</details>\n"
        return f"### {self.title}\n\n{self.body}\n"


def code(text: object) -> str:
    """Untrusted `text` as a code span, which is the one place where GitHub makes nothing of it.

    Inside a code span there are no mentions, links, issue numbers, commit hashes, emphasis, HTML or entities.
    What could end the span, the table cell or the line is replaced by a look-alike, and so is what
    cannot be seen: control, bidirectional and other formatting characters.
    """
    text = str(text)
    if len(text) > LONGEST:  # what tells two long ones apart is at either end
        text = f"{text[: LONGEST // 2]}…{text[1 - LONGEST // 2 :]}"
    shown = "".join(map(_plain, text))
    # A span loses a space at both ends, and one of nothing but spaces is no span.
    return f"`{shown}`" if shown.strip(" ") else "`(blank)`"


def _plain(character: str) -> str:
    if character == "`":
        return "ˋ"
    if character == "|":
        return "¦"
    category = unicodedata.category(character)
    if category in ("Zs", "Zl", "Zp"):
        return " "
    return "\N{REPLACEMENT CHARACTER}" if category.startswith("C") else character


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str | None = None) -> str:
    """A table of cells that are markdown already; `align` has one of l, c, r for each column."""
    rules = {"l": ":--", "c": ":-:", "r": "--:"}
    lines = [header, [rules[letter] for letter in align or "l" * len(header)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def listing(header: Sequence[str], rows: Sequence[Sequence[str]], most: int, align: str | None = None) -> str:
    """A table of the first `most` rows, which says how many more there are."""
    more = f"\n\n… and {len(rows) - most:,} more." if len(rows) > most else ""
    return table(header, rows[:most], align) + more


def few(names: Sequence[str]) -> str:
    """The first of some untrusted `names`, and how many more there are."""
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return f"{', '.join(map(code, names[:FEW]))}{more}"


def signed(value: float, digits: int) -> str:
    """`value` with its sign, a true minus included; a zero has none."""
    text = f"{value:+,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return text[1:]
    return text.replace("-", "−")


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`, `2 classes`, `2 settings`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
