"""Files of a revision, read from git's object store: no checkout, no DVC, no network."""

from dataclasses import dataclass

from petals.errors import PetalsError
from petals.git import git, git_bytes

LARGEST_FILE = 20_000_000  # bytes; what git keeps of a run is far smaller


class Unreadable(PetalsError):
    """A file of a revision that is missing or damaged; `reason` completes the sentence "this file …"."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path} {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True)
class Revision:
    """A commit, under the name by which it was asked for."""

    name: str
    commit: str

    def text(self, path: str) -> str:
        """The UTF-8 text of `path` (from the root of the repository) at this commit; raises Unreadable."""
        try:
            return self.content(path).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Unreadable(path, "is not UTF-8 text") from None

    def content(self, path: str) -> bytes:
        """The bytes of `path`; raises Unreadable."""
        blob = f"{self.commit}:{path}"
        size = _git("cat-file", "-s", blob)
        if size is None:
            raise Unreadable(path, "is missing")
        if int(size) > LARGEST_FILE:
            raise Unreadable(path, f"is larger than {LARGEST_FILE // 1_000_000} MB")
        content = _git("cat-file", "blob", blob)
        if content is None:
            raise Unreadable(path, "is not a file")
        return content

    def files(self, folder: str) -> list[str]:
        """Paths of all files below `folder`, sorted."""
        listing = _git("ls-tree", "-r", "-z", "--full-tree", "--name-only", self.commit, f"{folder}/") or b""
        return sorted(entry.decode("utf-8", "replace") for entry in listing.split(b"\0") if entry)


def resolve(name: str) -> Revision:
    """Find the commit that `name` (a branch, a tag, HEAD~2, an experiment of DVC …) stands for; raises PetalsError."""
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}") or experiment(name)
    if commit is None:
        git("rev-parse", "--git-dir")  # where no repository can be read, git alone knows why: it is another user's, say
        raise PetalsError(
            f"{name!r} is not a revision of this repository; name a branch, a tag, an experiment or a commit that is "
            "here (a shallow clone may lack it: git fetch --unshallow)."
        )
    return Revision(name, commit.decode().strip())


def experiment(name: str) -> bytes | None:
    """The commit of the newest experiment of this name; None where there is none."""
    listed = _git("for-each-ref", "--sort=-committerdate", "--format=%(objectname) %(refname)", "refs/exps") or b""
    named = (line.split(b" ") for line in listed.splitlines())  # refs/exps/ and the commit it began with, in two parts
    return next((commit for commit, ref in named if ref.split(b"/")[4:] == [name.encode()]), None)


def commits_missing(base: Revision, head: Revision) -> int:
    """How many commits of `base` are not in `head`; 0 where their common history is not known."""
    if _git("merge-base", base.commit, head.commit) is None:
        return 0
    return int(_git("rev-list", "--count", f"{head.commit}..{base.commit}") or 0)


def _git(*arguments: str) -> bytes | None:
    """Output of a git command, or None where it fails."""
    try:
        return git_bytes(*arguments)
    except PetalsError:
        return None
