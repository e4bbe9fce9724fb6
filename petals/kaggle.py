"""`python -m petals.kaggle download|submit`: the competition's data, and answers to it.

Credentials are found where Kaggle documents them: KAGGLE_API_TOKEN or ~/.kaggle/access_token, else KAGGLE_USERNAME
with KAGGLE_KEY, or ~/.kaggle/kaggle.json.
"""

import csv
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import click
import kagglehub
import requests
from kagglehub.clients import build_kaggle_client
from kagglehub.config import get_kaggle_credentials
from kagglehub.exceptions import CredentialError, DataCorruptionError, UnauthenticatedError
from kagglesdk.competitions.types.competition_api_service import (
    ApiCreateSubmissionRequest,
    ApiListDataFilesRequest,
    ApiStartSubmissionUploadRequest,
)

from petals.commands import Command
from petals.errors import PetalsError
from petals.files import remove, replacing
from petals.flowers import CLASS_NAMES, SPLIT_SIZES
from petals.listing import shown
from petals.packed import PackedSplit
from petals.tfrecord import read_records

COMPETITION = "tpu-getting-started"
PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}"
FOLDER = "data/petals"
SAMPLE_SUBMISSION = "sample_submission.csv"

_RECORDS = re.compile(r"tfrecords-jpeg-(\d+)x\1/(train|val|test)/\d+-\1x\1-(\d+)\.tfrec")
_TOKEN = "make a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN to it"
_REFUSALS = {
    401: f"Kaggle does not know these credentials; {_TOKEN}",
    403: f"Kaggle refuses: accept the competition's rules with this account at {PAGE}/rules, then try again",
    404: f"Kaggle does not find it; is {PAGE} still there?",
    429: "Kaggle limits requests for now; run the same command again later: it goes on where it stopped",
}


def download(
    out: str | Path,
    size: int | None = None,
    say: Callable[[str], object] = lambda line: None,
    counts: Mapping[str, int] = SPLIT_SIZES,
) -> list[int]:
    """Bring the competition's record files of `size` pixels, or of every size, into `out`; the sizes.

    Files wait beside `out`, or in it where it is a disk of its own, until all of their size are there and have been
    read through, checksums and all, so that a connection that is cut leaves `out` as it was, and the next call goes on
    from there. Raises PetalsError if Kaggle does not give them, or if they are not as many images a split as `counts`
    says.
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise PetalsError(f"{shown(out)}: not a folder; name another by --out")
    out = Path(out).resolve()  # where it is a link, files wait on the same disk as what it leads to
    beside = out if os.path.ismount(out) else out.parent
    waiting = beside / f".{out.name}.partial"
    listed = _listed()
    records = {name: tuple(map(int, match.group(1, 3))) for name in listed if (match := _RECORDS.fullmatch(name))}
    sizes = sorted({pixels for pixels, _ in records.values()})
    wanted = [name for name, (pixels, _) in sorted(records.items()) if size in (None, pixels)]
    if not wanted:
        has = ", ".join(map(str, sizes)) or "none"
        raise PetalsError(f"Kaggle lists no images of {size or 'any'} px (it has {has}); see {PAGE}/data")
    _check_counts(wanted, counts)
    for number, name in enumerate(wanted, start=1):
        if not _is_whole(waiting / name, records[name][1]):
            say(f"{number} of {len(wanted)}: {name}")
            _fetch(name, waiting)
            if not _is_whole(waiting / name, records[name][1]):
                raise PetalsError(f"{name}: came damaged, or with more or fewer images than its name says; try again")
    if SAMPLE_SUBMISSION in listed:
        _fetch(SAMPLE_SUBMISSION, waiting)
    remove(waiting / ".complete")  # kagglehub's notes
    out.mkdir(parents=True, exist_ok=True)
    brought = {name.partition("/")[0] for name in wanted} | {SAMPLE_SUBMISSION}
    for entry in [each for each in waiting.iterdir() if each.name in brought]:
        with replacing(out / entry.name) as partial:
            entry.replace(partial)
    if not any(waiting.iterdir()):  # else a part of another size is there, to go on from
        waiting.rmdir()
    return sizes if size is None else [size]


def _listed() -> list[str]:
    names, token = [], None
    with _asking(), build_kaggle_client() as kaggle:
        while token != "":
            request = ApiListDataFilesRequest()
            request.competition_name, request.page_size, request.page_token = COMPETITION, 200, token
            answer = kaggle.competitions.competition_api_client.list_data_files(request)
            names += [file.name for file in answer.files]
            token = answer.next_page_token or ""
    return names


def _fetch(name: str, folder: Path) -> None:
    with _asking():
        kagglehub.competition_download(COMPETITION, path=name, output_dir=str(folder), force_download=True)


def _check_counts(names: Collection[str], counts: Mapping[str, int]) -> None:
    found: Counter[tuple[str, str]] = Counter()
    for match in map(_RECORDS.fullmatch, names):
        found[match[1], match[2]] += int(match[3])
    for pixels in sorted({pixels for pixels, _ in found}, key=int):
        for split, count in counts.items():
            if found[pixels, split] != count:
                raise PetalsError(
                    f"Kaggle lists {found[pixels, split]} {split} images of {pixels} px, not the {count} of the "
                    f"competition; try again, or unpack {PAGE}/data into the folder by hand"
                )


def _is_whole(path: Path, count: int) -> bool:
    """Whether the file is there and holds `count` records with right checksums."""
    try:
        return sum(1 for _ in read_records(path)) == count
    except PetalsError:
        return False


@contextmanager
def _asking() -> Iterator[None]:
    """Say in one line why Kaggle could not be asked or did not answer."""
    try:
        if not get_kaggle_credentials():
            raise PetalsError(f"Kaggle needs credentials: {_TOKEN}")
        yield
    except (CredentialError, UnauthenticatedError):
        raise PetalsError(_REFUSALS[401]) from None
    except requests.HTTPError as error:
        status = error.response.status_code
        raise PetalsError(_REFUSALS.get(status, f"Kaggle answers HTTP {status}; try again later")) from None
    except (requests.RequestException, DataCorruptionError) as error:
        kind = type(error).__name__
        raise PetalsError(f"the connection to Kaggle broke ({kind}); try again: it goes on from there") from None
    except ValueError as error:  # a kaggle.json that is none
        if "header" in str(error):  # which would show the token
            raise PetalsError(f"the token holds a line break; {_TOKEN}") from None
        raise PetalsError(f"{' '.join(str(error).split())}; {_TOKEN}") from None


def wanted_ids(data: str | Path, prepared: str | Path, count: int = SPLIT_SIZES["test"]) -> list[str]:
    """The ids that Kaggle wants an answer for: of its sample submission in `data`, else of the split `prepared`."""
    sample, ids = Path(data) / SAMPLE_SUBMISSION, Path(prepared) / "ids.json"
    if sample.is_file():
        found = [name for _, name, _ in _answers(sample)]
    elif ids.is_file():
        sample, found = ids, PackedSplit(prepared).ids
    else:
        raise PetalsError(f"{shown(ids)}: not found; run dvc exp run -S data={shown(data)} first")
    if len(found) != count:
        raise PetalsError(
            f"{shown(sample)}: {len(found)} test images, the competition has {count}; "
            f"run dvc exp run -S data={shown(data)} first"
        )
    return found


def check_submission(path: str | Path, ids: Collection[str], classes: int = len(CLASS_NAMES)) -> None:
    """Raise PetalsError unless the CSV at `path` gives each of `ids` one label of 0 … `classes` − 1, and no other."""
    path, left = Path(path), set(ids)
    if not path.is_file():
        raise PetalsError(f"{shown(path)}: not found; dvc repro evaluate writes it")
    for where, name, label in _answers(path):
        if name not in left:
            known = "occurs twice" if name in ids else "is no test image of the competition"
            raise PetalsError(f"{where}: the id {_short(name)} {known}; run dvc repro evaluate")
        if not (re.fullmatch("[0-9]{1,9}", label) and int(label) < classes):
            raise PetalsError(f"{where}: the label {_short(label)} is no number of 0 … {classes - 1}")
        left.remove(name)
    if left:
        raise PetalsError(
            f"{shown(path)}: no answer for {len(left)} test images, {min(left)!r} first; run dvc repro evaluate"
        )


def _answers(path: Path) -> Iterator[tuple[str, str, str]]:
    """Place (for messages), id and label of each line of a CSV like Kaggle's sample submission."""
    rows = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        if next(rows, None) != ["id", "label"]:
            raise PetalsError(f"{shown(path)}: line 1 must be id,label")
        for row in rows:
            where = f"{shown(path)}: line {rows.line_num}"
            if len(row) != 2:
                raise PetalsError(f"{where}: {len(row)} values; it must be an id and a label")
            yield where, *row
    except csv.Error as error:
        raise PetalsError(
            f"{shown(path)}: line {rows.line_num}: damaged ({error}); make or download it again"
        ) from None


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PetalsError(f"{shown(path)}: line {line}: not UTF-8; make or download it again") from None


def _short(value: str) -> str:
    return repr(value if len(value) <= 40 else f"{value[:39]}…")


def submit(path: str | Path, message: str) -> str:
    """Send the CSV at `path` to the competition as Kaggle's own client does; what Kaggle says to it."""
    data = Path(path).read_bytes()
    with _asking(), build_kaggle_client() as kaggle:
        start = ApiStartSubmissionUploadRequest()
        start.competition_name, start.file_name = COMPETITION, Path(path).name
        start.content_length, start.last_modified_epoch_seconds = len(data), int(Path(path).stat().st_mtime)
        place = kaggle.competitions.competition_api_client.start_submission_upload(start)
        sent = requests.put(place.create_url, data=data, timeout=60)
        if not sent.ok:  # not Kaggle's own word, but its storage's
            raise PetalsError(f"Kaggle's storage refuses the file (HTTP {sent.status_code}); run submit again")
        send = ApiCreateSubmissionRequest()
        send.competition_name, send.blob_file_tokens, send.submission_description = COMPETITION, place.token, message
        return kaggle.competitions.competition_api_client.create_submission(send).message


@click.group(help=__doc__)
def main() -> None:
    logging.getLogger("kagglehub").setLevel(logging.WARNING)


@main.command("download", cls=Command)
@click.option("--size", type=int, help="Width of the images: 192, 224, 331 or 512.  [default: all]")
@click.option("--out", default=FOLDER, show_default=True, type=click.Path(path_type=Path))
def download_command(size: int | None, out: Path) -> None:
    """Bring the competition's data and check that it is complete."""
    sizes = download(out, size, click.echo)
    click.echo(f"{out} has {', '.join(f'{count:,} {split}' for split, count in SPLIT_SIZES.items())} images", nl=False)
    click.echo(f" at {', '.join(map(str, sizes))} px. Next:")
    click.echo(f"  dvc add {quote(str(out))}\n  set data: {out} in params.yaml")
    click.echo("  make repro record\n  git add --all && git commit")


@main.command("submit", cls=Command)
@click.option("--message", default="petals", show_default=True, help="What Kaggle shows beside the score.")
@click.option(
    "--data", default=FOLDER, show_default=True, type=click.Path(path_type=Path), help="Folder given to download --out."
)
def submit_command(message: str, data: Path) -> None:
    """Check data/submission.csv against the test ids and send it."""
    path = Path("data/submission.csv")
    check_submission(path, wanted_ids(data, "data/prepared/test"))
    click.echo(submit(path, message) or "sent")
    click.echo(f"Scores appear at {PAGE}/submissions")


if __name__ == "__main__":
    main(prog_name="python -m petals.kaggle")
