"""Images of several requests, decoded and run through the model in batches."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import perf_counter

from serving.loading import Decoder, LoadedModel, Prediction
from serving.metrics import Metrics
from serving.refusals import busy

JOIN = 1.0  # seconds, for the threads to end; they are daemons and end with the process in any case


@dataclass(eq=False)
class QueuedImage:
    """An image in the queue, the model that it is for, and the future that its prediction is for."""

    model: LoadedModel
    decoder: Decoder
    future: asyncio.Future[Prediction]
    since: float = field(default_factory=perf_counter)


class Batcher:
    """A bounded queue, from which `threads` threads each take up to `batch` images at a time.

    Idle threads share the queue evenly. One waits for a fuller batch only while requests are `arriving`, and for `wait`
    seconds at most: a request that is alone is answered at once. All methods but those of the threads (`_work` and
    `_next_batch`) are for the event loop.
    """

    def __init__(
        self, threads: int, batch: int, wait: float, limit: int, arriving: Callable[[], bool], metrics: Metrics
    ) -> None:
        self.batch, self.wait, self.limit, self.arriving, self.metrics = batch, wait, limit, arriving, metrics
        self.admitted = 0  # images between admission and answer
        self.changed = Condition()  # for what follows
        self.queue: deque[QueuedImage] = deque()
        self.idle = 0
        self.closed = False
        self.threads = [Thread(target=self._work, name="model", daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Reserve room for so many images while the block runs; raises Refusal where there is none."""
        if self.admitted + images > self.limit:
            raise busy()
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    async def submit(self, model: LoadedModel, decoder: Decoder) -> Prediction:
        """Queue an image and wait for its prediction; raises what LoadedModel.run gives in place of one.

        If the caller is cancelled, the image leaves the queue.
        """
        queued = QueuedImage(model, decoder, asyncio.get_running_loop().create_future())
        with self.changed:
            self.queue.append(queued)
            self.changed.notify()
        try:
            return await queued.future
        except asyncio.CancelledError:
            with self.changed, suppress(ValueError):  # a thread has it already
                self.queue.remove(queued)
            raise
        finally:
            del queued  # an error holds this frame, which would hold it, and with it the image

    def close(self) -> None:
        """End the threads, waiting JOIN seconds at most for those at work; images still queued get no answer."""
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
        while batch := self._next_batch():
            started = perf_counter()
            try:
                results = batch[0].model.run([each.decoder for each in batch])
            except Exception as error:
                results = [error] * len(batch)
            self.metrics.observe_batch(len(batch), perf_counter() - started)
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                batch[0].future.get_loop().call_soon_threadsafe(deliver, batch, results)
            del batch, results  # which the thread would hold until there is another batch

    def _next_batch(self) -> list[QueuedImage]:
        """Wait for queued images and take those of one model, without any whose caller has gone; none once closed."""
        batch: list[QueuedImage] = []
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
                    if batch and self.queue[0].model is not batch[0].model:
                        break
                    first = self.queue.popleft()
                    if not first.future.done():
                        batch.append(first)
            self.idle -= 1
            if self.queue:
                self.changed.notify()
        return batch


def deliver(batch: Sequence[QueuedImage], results: Sequence[Prediction | Exception]) -> None:
    """Set the results of a batch on the futures of those who still wait."""
    for each, result in zip(batch, results, strict=True):
        if each.future.done():
            continue
        if isinstance(result, Exception):
            each.future.set_exception(result)
        else:
            each.future.set_result(result)
