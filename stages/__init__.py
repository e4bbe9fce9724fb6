"""The verbs of the pipeline, one small script each: prepare, augment, train, evaluate, export."""

import os
import signal
import sys

# Before torch is loaded. Where two runs share a machine, OpenMP threads that wait by spinning slow each of them twenty
# times instead of two. Asleep after a thousand turns, they cost two runs a tenth at most; a run alone gains as much.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# Before numpy is: its products here are small, and take longer by several threads than by one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def stop(signum: int, frame: object) -> None:
    os.write(sys.stderr.fileno(), b"stopped by SIGINT; dvc repro goes on from here\n")
    os._exit(130)


# To import torch takes seconds, in which Ctrl-C would end in a traceback; stages.cli takes over from here.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, stop)
