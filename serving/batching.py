"""Images of several requests through decoder and model together."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from serving.metrics import Metrics
from serving.refusals import busy
from serving.served import Item, Served


@dataclass(eq=False)
class Waiting:
    """An item in the queue, the model that it is for, and where its probabilities go."""

    served: Served
    item: Item
    answer: asyncio.Future[np.ndarray]
    since: float = field(default_factory=perf_counter)


class Batcher:
    """A bounded queue, from which `threads` threads each take up to `batch` images at a time.

    A thread that is free waits for more images only while requests are `arriving`, and for `wait` seconds at most:
    a request that is alone is answered at once.
    """

    def __init__(
        self, threads: int, batch: int, wait: float, limit: int, arriving: Callable[[], bool], metrics: Metrics
    ) -> None:
        self.batch, self.wait, self.limit, self.arriving, self.metrics = batch, wait, limit, arriving, metrics
        self.admitted = 0  # images between admission and answer
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

    async def ask(self, served: Served, item: Item) -> np.ndarray:
        """Give the probabilities of an image (float32, one a class); raises what Served.run found wrong with it.

        Where the caller is cancelled, the image is taken out of the queue.
        """
        waiting = Waiting(served, item, asyncio.get_running_loop().create_future())
        self.queue.append(waiting)
        self._dispatch()
        return await waiting.answer  # cancelled with the caller, and then skipped by _take

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _dispatch(self) -> None:
        """Give batches to free threads, or set a time to look again."""
        while self.free and self.queue:
            waited = perf_counter() - self.queue[0].since
            if len(self.queue) < self.batch and waited < self.wait and self.arriving():
                asyncio.get_running_loop().call_later(self.wait - waited, self._dispatch)
                return
            share = -(-len(self.queue) // self.free)  # no thread stays idle while another has it all
            if batch := self._take(min(self.batch, share)):
                self._run(batch)

    def _take(self, most: int) -> list[Waiting]:
        """The next images that somebody still waits for, all of them for one model."""
        batch: list[Waiting] = []
        while self.queue and len(batch) < most:
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
        run = asyncio.get_running_loop().run_in_executor(self.pool, batch[0].served.run, [each.item for each in batch])

        def finish(done: asyncio.Future) -> None:
            self.free += 1
            self.metrics.batch(len(batch), perf_counter() - started)
            results = [error] * len(batch) if (error := done.exception()) else done.result()
            for each, result in zip(batch, results, strict=True):
                if each.answer.done():
                    continue
                if isinstance(result, BaseException):
                    each.answer.set_exception(result)
                else:
                    each.answer.set_result(result)
            self._dispatch()

        run.add_done_callback(finish)

    def _count(self, images: int) -> None:
        self.admitted += images
        self.metrics.queue.set(self.admitted)
