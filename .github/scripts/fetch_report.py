"""Fetch the report that the workflow run $RUN_ID left as an artifact, and write it as harmless markdown.

A pull request can put whatever it likes into that artifact. So its size is limited before and after unpacking, it
must be one file of UTF-8 text, and what could act in a comment is taken apart: mentions, links, images, HTML.
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
    r"#(?=\d+\b)|\bGH-(?=\d)",  # issues; a colour such as #0969da stays
    r"\](?=[(\[:])",  # [text](link), [text][label], [label]: link
    r":(?=//)|\bwww(?=\.)",  # bare links
    r"&(?=[#a-z])",  # &#64;team
)


class Refused(Exception):
    """The artifact is not a report."""


def fetch(repository: str, run: str) -> bytes:
    """The zipped artifact named `report` of a workflow run."""
    listing = json.loads(gh(f"repos/{repository}/actions/runs/{int(run)}/artifacts?name=report", MOST_BYTES))
    if len(listing["artifacts"]) != 1:
        raise Refused(f"the run has {len(listing['artifacts'])} artifacts named report, not 1")
    artifact = listing["artifacts"][0]
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

    A report that `petals.report` wrote has none of that, and stays as it is.
    """
    text = "".join("\N{REPLACEMENT CHARACTER}" if hidden(character) else character for character in text)
    text = re.sub(rf"<(?!{TAGS})", "‹", text)
    for start in STARTS:
        text = re.sub(rf"({start})", rf"\1{GAP}", text, flags=re.IGNORECASE)
    return text


def hidden(character: str) -> bool:
    return character != "\n" and unicodedata.category(character).startswith("C")


if __name__ == "__main__":
    try:
        report = harmless(unpack(fetch(os.environ["GITHUB_REPOSITORY"], os.environ["RUN_ID"])))
    except Refused as refusal:
        sys.exit(f"Error: {refusal}; nothing is posted")
    Path(sys.argv[1]).write_text(report, encoding="utf-8")
