"""The verbs of the pipeline, one small script each: prepare, augment, train, evaluate, export."""

import os

# Before torch is loaded: threads that wait by spinning make two runs on one machine twenty times slower, not two. A
# thousand turns before they sleep cost two runs a tenth at most, and save one alone about as much.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
