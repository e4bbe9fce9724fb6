"""Ask GitHub which open pull request a workflow run was for. Prints number=N for $GITHUB_OUTPUT, or nothing.

The run is told apart by $HEAD_REPOSITORY, $HEAD_BRANCH and $HEAD_SHA, which GitHub filled in; nothing that the run
itself wrote is read. Runs of forks name no pull request of their own, hence the search.
"""

import json
import os
import subprocess
import sys


def number(repository: str, head_repository: str, head_branch: str, head_sha: str) -> int | None:
    """The one open pull request whose head is that commit of that branch; None if it has moved on since."""
    owner = head_repository.split("/")[0]
    query = [f"head={owner}:{head_branch}", "state=open", "per_page=100"]
    fields = [part for field in query for part in ("--raw-field", field)]
    command = ["gh", "api", "--method", "GET", f"repos/{repository}/pulls", *fields]
    pulls = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = [
        int(pull["number"])
        for pull in pulls
        if pull["head"]["sha"] == head_sha and (pull["head"]["repo"] or {}).get("full_name") == head_repository
    ]
    return found[0] if len(found) == 1 else None


if __name__ == "__main__":
    asked = [os.environ[name] for name in ("GITHUB_REPOSITORY", "HEAD_REPOSITORY", "HEAD_BRANCH", "HEAD_SHA")]
    pull = number(*asked)
    if pull is None:
        print("No single open pull request has this commit as its head; nothing to comment on.", file=sys.stderr)
    else:
        print(f"number={pull}")
