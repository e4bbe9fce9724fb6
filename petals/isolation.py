"""Repositories that share nothing with the one they came from: no cache, no settings of a user, no other Python."""

import os
import subprocess
import sys
from pathlib import Path

FOREIGN = ("DVC_", "GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")  # what ties a process to another repository


def isolate(root: Path) -> dict[str, str]:
    """Keep all that DVC stores for the repository `root` inside it; gives the environment to run it in."""
    own = root.resolve() / ".dvc"
    # Also where .dvc/config in git, or the user's, names a cache that many share.
    (own / "config.local").write_text("[cache]\n    dir = cache\n", encoding="utf-8")
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_SITE_CACHE_DIR": str(own / "tmp" / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(own / "tmp" / "none"),
        "DVC_SYSTEM_CONFIG_DIR": str(own / "tmp" / "none"),
        "DVC_NO_ANALYTICS": "1",
    }


def dvc(root: Path, environment: dict[str, str], *arguments: str, **options: object) -> subprocess.CompletedProcess:
    """Run DVC in `root` with the Python of this process; `options` are those of subprocess.run."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, env=environment, check=False, text=True, **options)
