"""Images of several requests through decoder and model together."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import perf_counter

from serving.metrics import Metrics
from serving.refusals import busy
from serving.served import Item, Prediction, Served

JOIN = 1.0  # seconds, for the threads to end; they are daemons and end with the process in any case


@dataclass(eq=False)
class Waiting:
    """An item in the queue, the model that it is for, and where the prediction goes."""

    served: Served
    item: Item
    answer: asyncio.Future[Prediction]
    since: float = field(default_factory=perf_counter)


class Batcher:
    """A bounded queue, from which `threads` threads each take up to `batch` images at a time.

    Threads that are idle share what waits. One waits for more images only while requests are `arriving`, and for
    `wait` seconds at most: a request that is alone is answered at once. All methods but those of the threads (`_work`
    and `_take`) are for the event loop.
    """

    def __init__(
        self, threads: int, batch: int, wait: float, limit: int, arriving: Callable[[], bool], metrics: Metrics
    ) -> None:
        self.batch, self.wait, self.limit, self.arriving, self.metrics = batch, wait, limit, arriving, metrics
        self.admitted = 0  # images between admission and answer
        self.changed = Condition()  # for what follows
        self.queue: deque[Waiting] = deque()
        self.idle = 0
        self.closed = False
        self.threads = [Thread(target=self._work, name="model", daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

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

    async def ask(self, served: Served, item: Item) -> Prediction:
        """Give what the model says of an image; raises what Served.run found wrong with it.

        Where the caller is cancelled, the image leaves the queue.
        """
        waiting = Waiting(served, item, asyncio.get_running_loop().create_future())
        with self.changed:
            self.queue.append(waiting)
            self.changed.notify()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            with self.changed, suppress(ValueError):  # a thread has it already
                self.queue.remove(waiting)
            raise
        finally:
            del waiting  # an error holds this frame, which would hold it, and with it the image

    def close(self) -> None:
        """End the threads; what still waits is not answered, and one that is at work is not waited for for long."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        until = perf_counter() + JOIN
        for thread in self.threads:
            thread.join(max(0.0, until - perf_counter()))

    def _count(self, images: int) -> None:
        self.admitted += images
        self.metrics.queue.set(self.admitted)

    def _work(self) -> None:
        while batch := self._take():
            started = perf_counter()
            try:
                results = batch[0].served.run([each.item for each in batch])
            except Exception as error:
                results = [error] * len(batch)
            self.metrics.batch(len(batch), perf_counter() - started)
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                batch[0].answer.get_loop().call_soon_threadsafe(answer, batch, results)
            del batch, results  # which the thread would hold until there is another batch

    def _take(self) -> list[Waiting]:
        """Wait for images that somebody still waits for, all of them for one model; nothing when all is over."""
        batch: list[Waiting] = []
        with self.changed:
            self.idle += 1
            while not batch and not self.closed:
                if not self.queue:
                    self.changed.wait()
                    continue
                left = self.queue[0].since + self.wait - perf_counter()
                if len(self.queue) < self.batch and left > 0 and self.arriving():
                    self.changed.wait(left)
                    continue
                share = min(self.batch, -(-len(self.queue) // self.idle))
                while self.queue and len(batch) < share:
                    if batch and self.queue[0].served is not batch[0].served:
                        break
                    first = self.queue.popleft()
                    if not first.answer.done():
                        batch.append(first)
            self.idle -= 1
            if self.queue:
                self.changed.notify()
        return batch


def answer(batch: Sequence[Waiting], results: Sequence[Prediction | Exception]) -> None:
    """Hand out the results of a batch, except to those who have gone."""
    for each, result in zip(batch, results, strict=True):
        if each.answer.done():
            continue
        if isinstance(result, Exception):
            each.answer.set_exception(result)
        else:
            each.answer.set_result(result)
