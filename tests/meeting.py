"""What torchrun starts in tests/test_distributed.py: talk to each other, then train and evaluate, in one go.

The main process writes to talk.json what all of them heard.
"""

import json
import sys
from pathlib import Path

import torch
from processes import EVALUATE, TRAIN
from torch import nn

from petals import distributed, packed
from petals.errors import PetalsError
from stages import evaluate, train


def talk(group: distributed.Group) -> dict[str, object]:
    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(group.rank)
    group.average_statistics(norm)
    try:
        group.check(f"commit {group.rank}")
        refused = ""
    except PetalsError as error:
        refused = str(error)
    return {
        "agreed": group.agree(0.25 + group.rank, 15 * group.rank),
        "same": [group.broadcast(b"a" * length * (1 - group.rank)).decode() for length in (0, 5)],
        "mean": norm.running_mean.item(),
        "refused": refused,
    }


def main() -> None:
    packed.PIXELS_AT_ONCE = 2 * 32**2  # a split is more than one batch, so that each process computes some of it
    group = distributed.join(torch.device("cpu"))
    heard = talk(group)
    everybody = [None] * group.size
    torch.distributed.all_gather_object(everybody, heard)
    if group.main:
        Path("talk.json").write_text(json.dumps(everybody))
    train.main(TRAIN, standalone_mode=False)
    evaluate.main(EVALUATE, standalone_mode=False)


if __name__ == "__main__":
    sys.exit(main())
