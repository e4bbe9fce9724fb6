"""Fetch the report that the workflow run $RUN_ID left as an artifact, and write it as harmless markdown.

A pull request can put whatever it likes into that artifact. So its size is limited before and after unpacking, it
must be one file of UTF-8 text, and what could act in a comment is taken apart: mentions, links, images, HTML, math,
and every diagram but the report's own charts.
Usage: python3 .github/scripts/fetch_report.py OUTPUT
"""

import io
import json
import os
import re
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

MOST_BYTES = 250_000  # of the file and of the archive; 60,000 characters are never more in UTF-8
MOST_CHARACTERS = 60_000  # what the report keeps to; GitHub takes 65,536
TAGS = r"/?(?:details|summary)>"  # all the HTML that the report has
GAP = "\N{ZERO WIDTH SPACE}"
STARTS = (  # each is taken apart by a gap behind it
    r"@",  # @team, user@host
    r"#(?=\d+\b)",  # issues; a colour such as #0969da stays
    r"(?<![a-z0-9])(?:GH|CVE|GHSA)(?=\\?-)",  # issues and advisories; \- is a hyphen too
    r"\](?=[(\[:])",  # [text](link), [text][label], [label]: link
    r":(?=//)|www(?=\.)",  # bare links
    r"&(?=[#a-z])",  # &#64;team
)
HASH = r"(?<![a-z0-9])[0-9a-f]{7,}(?![a-z0-9])"  # of a commit
FENCE = re.compile(r"([\s>*+\-\d.)]*(?:`{3,}|~{3,})).*")  # also in a list or a quotation
SPAN = r"(?<!\\)`[^`|]+`"  # code, as the report writes it: on one line, in one cell
NUMBER = r"-?\d{1,20}(?:\.\d{1,20})?"
CHART = re.compile(  # as petals/report/curves.py writes it, with a blank line before and after
    r"(?:(?<=\n\n)|\A)"
    r"```mermaid\n"
    r'%%\{init: \{"themeVariables": \{"xyChart": \{"plotColorPalette": "#[0-9a-f]{6}(?:, #[0-9a-f]{6})?"\}\}\}\}%%\n'
    r"xychart-beta\n"
    r' {4}title "[A-Za-z0-9 _./?-]*"\n'
    rf' {{4}}x-axis "(?:epoch|share of the run in %, as the runs differ in length)" {NUMBER} --> {NUMBER}\n'
    rf" {{4}}y-axis {NUMBER} --> {NUMBER}\n"
    rf'(?: {{4}}line "(?:base|head)" \[{NUMBER}(?:, {NUMBER})*\]\n){{1,2}}'
    r"```(?=\n\n|\n?\Z)",
    re.ASCII,
)


class Refused(Exception):
    """The artifact is not a report."""


def fetch(repository: str, run: str) -> bytes:
    """The zipped artifact named `report` of a workflow run; the newest where the run was run again."""
    listing = json.loads(gh(f"repos/{repository}/actions/runs/{int(run)}/artifacts?name=report", MOST_BYTES))
    if not listing["artifacts"]:
        raise Refused("the run has no artifact named report")
    artifact = max(listing["artifacts"], key=lambda artifact: int(artifact["id"]))
    if artifact["size_in_bytes"] > MOST_BYTES:
        raise Refused(f"the artifact has more than {MOST_BYTES:,} bytes")
    return gh(f"repos/{repository}/actions/artifacts/{int(artifact['id'])}/zip", MOST_BYTES)


def gh(path: str, most: int) -> bytes:
    """What GitHub's API answers, `most` bytes at most."""
    with subprocess.Popen(["gh", "api", path], stdout=subprocess.PIPE) as process:
        content = process.stdout.read(most + 1)
        if len(content) > most:
            process.kill()
            raise Refused(f"GitHub sent more than {most:,} bytes")
    if process.returncode:
        raise Refused(f"gh api failed with exit code {process.returncode}")
    return content


def unpack(archive: bytes) -> str:
    """The text of report.md, which must be all there is in the archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            names = zipped.namelist()
            content = zipped.open(names[0]).read(MOST_BYTES + 1) if names == ["report.md"] else b""
    except Exception as error:  # a damaged archive can raise almost anything
        raise Refused(f"the archive cannot be read ({error})") from None
    if names != ["report.md"]:
        raise Refused("the archive should hold report.md and nothing else")
    if len(content) > MOST_BYTES:
        raise Refused(f"the report has more than {MOST_BYTES:,} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("the report is not UTF-8 text") from None
    if len(text) > MOST_CHARACTERS:
        raise Refused(f"the report has more than {MOST_CHARACTERS:,} characters")
    return text


def harmless(text: str) -> str:
    """`text` with control and invisible characters replaced, and nothing in it that pings, links, loads or embeds.

    A report that `petals.report` wrote stays as it is: it keeps names to code spans, where GitHub makes nothing of
    them, and its charts to one form.
    """
    text = "".join("\N{REPLACEMENT CHARACTER}" if hidden(character) else character for character in text)
    parts, end = [], 0
    for chart in CHART.finditer(text):
        parts += [prose(text[end : chart.start()]), chart[0]]
        end = chart.end()
    return "".join([*parts, prose(text[end:])])


def hidden(character: str) -> bool:
    return character != "\n" and unicodedata.category(character).startswith("C")


def prose(text: str) -> str:
    """Whatever is no chart, line by line."""
    lines, html = [], False
    for line in text.split("\n"):
        # From a tag to the next blank line, markdown is off, and so are code spans. Other spaces make no blank line.
        html = bool(line.strip(" ")) and (html or re.search(f"<{TAGS}", line) is not None)
        if fence := FENCE.fullmatch(line):
            lines.append(fence[1])  # without a language: those that GitHub draws can link and load
        elif html or not has_plain_spans(line):
            lines.append(apart(line.replace("`", "ˋ")))
        else:
            pieces = re.split(f"({SPAN})", line)
            lines.append("".join(piece if index % 2 else apart(piece) for index, piece in enumerate(pieces)))
    return "\n".join(lines)


def has_plain_spans(line: str) -> bool:
    """Whether GitHub sees the same code spans in `line` as we do."""
    return not set(re.sub(SPAN, "", line)) & set("`[")  # [ may start a footnote, which ends in the midst of a span


def apart(text: str) -> str:
    """`text`, which is outside code, with all that GitHub acts on taken apart."""
    text = re.sub(rf"<(?!{TAGS})", "‹", text).replace("$", "＄")
    for start in STARTS:
        text = re.sub(rf"({start})", rf"\1{GAP}", text, flags=re.IGNORECASE)
    return re.sub(HASH, lambda match: GAP.join(re.findall(".{1,6}", match[0])), text, flags=re.IGNORECASE)


if __name__ == "__main__":
    try:
        report = harmless(unpack(fetch(os.environ["GITHUB_REPOSITORY"], os.environ["RUN_ID"])))
    except Refused as refusal:
        sys.exit(f"Error: {refusal}; nothing is posted")
    Path(sys.argv[1]).write_text(report, encoding="utf-8")
