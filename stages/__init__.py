"""The verbs of the pipeline, one small script each: prepare, augment, train, evaluate, export."""

import os

# Before torch is loaded: threads that wait by spinning make two runs on one machine twenty times slower, not two.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
