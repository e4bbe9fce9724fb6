"""Put on PYTHONPATH, this notes in $FIRST_STEP when the optimiser of the train stage is first at work.

The file holds two numbers: seconds since the epoch, and seconds that the import of torch took.
"""

import importlib
import os
import sys
import time

if "stages.train" in sys.orig_argv and "FIRST_STEP" in os.environ:
    began = time.perf_counter()
    kernel = importlib.import_module("torch.optim.adamw")

    imported = time.perf_counter() - began
    adamw = kernel.adamw

    def note(*tensors: object, **settings: object) -> None:
        adamw(*tensors, **settings)
        now = time.time()
        if name := os.environ.pop("FIRST_STEP", ""):
            with open(f"{name}.partial", "w") as file:
                file.write(f"{now} {imported}")
            os.replace(f"{name}.partial", name)

    kernel.adamw = note
