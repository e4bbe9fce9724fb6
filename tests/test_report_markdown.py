"""The report's markdown: hostile names stay text, and a page that is too long loses its end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from petals.report.markdown import Section, code, counted, listing, signed, table
from petals.report.page import fit

HOSTILE = [
    "@team", "#123", "GH-12", "owner/repo#5", "https://example.com", "www.example.com", "a@example.com",
    "[x](https://example.com)", "![x](y.png)", "<script>alert(1)</script>", "<!-- x -->", "</details>",
    "a|b", "**b** _i_ ~~s~~", "`code`", "``` \n# head", "a\nb\r\nc", "\u202eevil", "\u200b@team", "&#64;team",
    "0123456789abcdef0123456789abcdef01234567", "$x$", "\\", "\\|", "`", "", "   ", "x" * 500, "\ud800",
    ":tada:", '"]\n```\nline', "| --- |", "\x00", "\u2028", "<details><summary>", "```mermaid",
]  # fmt: skip


def inlines(markdown: str) -> list:
    """All inline tokens of a page, by the rules of CommonMark with GitHub's tables."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    return [child for token in tokens for child in token.children or ()]


def holds_as_text(name: str) -> None:
    page = table(["", "b"], [[code(name), "end"]]) + f"\n\nIn {code(name)}, all is well.\n"
    assert len(page.splitlines()) == 5
    tokens = inlines(page)
    assert [token.content for token in tokens if token.type == "text"] == [
        "b",
        "end",
        "In ",
        ", all is well.",
    ]
    assert {token.type for token in tokens} == {"text", "code_inline"}
    assert all(len(token.content) <= 60 for token in tokens)
    page.encode()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name):
    holds_as_text(name)


@settings(max_examples=200)
@given(st.text(st.characters()) | st.text("`|\\<>[]()!@#*_~$&:\n\r\t \u202e-=+\"'", max_size=12))
def test_any_name_stays_text(name):
    holds_as_text(name)


def test_sections_are_left_out_from_the_last_up():
    sections = [Section(name, "x" * 100) for name in ("first", "second", "third")]
    whole = fit("top\n", sections)
    assert fit("top\n", sections, len(whole)) == whole
    for most in range(80, len(whole)):
        page = fit("top\n", sections, most)
        assert len(page) <= most
        kept = [section.title for section in sections if str(section) in page]
        assert kept == ["first", "second", "third"][: len(kept)]
        assert page.endswith(f"{'; '.join(['first', 'second', 'third'][len(kept) :])}._\n")


def test_small_pieces_of_markdown():
    assert signed(0.0139, 3) == "+0.014"
    assert signed(-0.5, 1) == "−0.5"
    assert signed(-0.00001, 3) == "0.000"
    assert [counted(1, "class"), counted(1200, "class"), counted(2, "image")] == [
        "1 class",
        "1,200 classes",
        "2 images",
    ]
    assert listing(["a"], [["1"], ["2"], ["3"]], 2) == "| a |\n| :-- |\n| 1 |\n| 2 |\n\n… and 1 more."
