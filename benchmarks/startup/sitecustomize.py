"""Put on PYTHONPATH, this notes in $FIRST_STEP when the train stage has done its first step.

The file holds two numbers: seconds since the epoch, and seconds that the import of torch took.
"""

import os
import sys
import time

if "stages.train" in sys.orig_argv and "FIRST_STEP" in os.environ:
    began = time.perf_counter()
    from torch.optim.optimizer import register_optimizer_step_post_hook

    imported = time.perf_counter() - began

    def note(*_: object) -> None:
        now = time.time()
        handle.remove()
        partial = os.environ["FIRST_STEP"] + ".partial"
        with open(partial, "w") as file:
            file.write(f"{now} {imported}")
        os.replace(partial, os.environ["FIRST_STEP"])

    handle = register_optimizer_step_post_hook(note)
