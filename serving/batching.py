"""Images of several requests through the model together."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from serving.metrics import Metrics
from serving.refusals import busy
from serving.served import Served


@dataclass(eq=False)
class Waiting:
    """An image in the queue, the model that it was made ready for, and where its probabilities go."""

    served: Served
    image: np.ndarray
    answer: asyncio.Future
    since: float = field(default_factory=perf_counter)


class Batcher:
    """A bounded queue of images, taken by `threads` threads, each up to `batch` of them at a time.

    A batch waits for more images only while admitted ones are still on their way (being decoded), and for `wait`
    seconds at most: a request that is alone is answered at once.
    """

    def __init__(self, threads: int, batch: int, wait: float, limit: int, metrics: Metrics) -> None:
        self.batch, self.wait, self.limit, self.metrics = batch, wait, limit, metrics
        self.admitted = 0  # images between admission and answer
        self.running = 0  # images inside the model
        self.free = threads
        self.queue: deque[Waiting] = deque()
        self.pool = ThreadPoolExecutor(threads, "model")

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold room for so many images; raises Refusal where there is none."""
        if self.admitted + images > self.limit:
            raise busy()
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)
            self._dispatch()

    async def ask(self, served: Served, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Give the probabilities (float32, one a class) of each image. Cancelled, it takes its images back."""
        loop = asyncio.get_running_loop()
        waiting = [Waiting(served, image, loop.create_future()) for image in images]
        self.queue.extend(waiting)
        self._dispatch()
        try:
            return await asyncio.gather(*(each.answer for each in waiting))
        finally:
            for each in waiting:
                each.answer.cancel()  # nothing to one that is answered

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        """Give batches to free threads, or set a time to look again."""
        while self.free and self.queue:
            waited = perf_counter() - self.queue[0].since
            on_their_way = self.admitted - self.running - len(self.queue)
            if len(self.queue) < self.batch and on_their_way > 0 and waited < self.wait:
                asyncio.get_running_loop().call_later(self.wait - waited, self._dispatch)
                return
            batch = self._take()
            if batch:
                self._run(batch)

    def _take(self) -> list[Waiting]:
        """The next images that somebody still waits for, all of them for one model."""
        batch: list[Waiting] = []
        while self.queue and len(batch) < self.batch:
            if self.queue[0].answer.done():
                self.queue.popleft()
            elif not batch or self.queue[0].served is batch[0].served:
                batch.append(self.queue.popleft())
            else:
                break
        return batch

    def _run(self, batch: list[Waiting]) -> None:
        started = perf_counter()
        self.free -= 1
        self.running += len(batch)
        run = asyncio.get_running_loop().run_in_executor(self.pool, batch[0].served.run, [each.image for each in batch])

        def finish(done: asyncio.Future) -> None:
            self.free += 1
            self.running -= len(batch)
            self.metrics.batch(len(batch), perf_counter() - started)
            error = done.exception()
            for row, each in enumerate(batch):
                if each.answer.done():
                    continue
                if error:
                    each.answer.set_exception(error)
                else:
                    each.answer.set_result(done.result()[row])
            self._dispatch()

        run.add_done_callback(finish)

    def _count(self, images: int) -> None:
        self.admitted += images
        self.metrics.queue.set(self.admitted)
