"""How images of several requests come together, and what becomes of those that nobody waits for."""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from serving.batching import Batcher
from serving.metrics import Metrics
from serving.refusals import Refusal


class Slow:
    """A model that holds each batch until it is let go; numbers stand for decoders, and each is its own answer."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go, self.begun = threading.Event(), threading.Event()

    def run(self, numbers: list[int]) -> list[np.ndarray | Exception]:
        self.batches.append(numbers)
        self.begun.set()
        assert self.go.wait(60)
        return [Refusal(422, "damaged", "no") if number < 0 else np.array([number]) for number in numbers]


def run(test: Callable[..., Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        settings = {"threads": 1, "batch": 4, "wait": 0.001, "limit": 8, "arriving": lambda: False, **options}
        batcher = Batcher(**settings, metrics=Metrics())
        try:
            await test(batcher, Slow())
        finally:
            batcher.close()

    asyncio.run(main())


def submit(batcher: Batcher, model: Slow, numbers: list[int]) -> list[asyncio.Task]:
    return [asyncio.create_task(batcher.submit(model, number)) for number in numbers]


async def held(batcher: Batcher, model: Slow, number: int) -> asyncio.Task:
    """Submit one image, and wait until the model has it."""
    (task,) = submit(batcher, model, [number])
    await asyncio.to_thread(model.begun.wait, 60)
    return task


def test_what_waits_goes_together_and_each_gets_its_own_answer():
    async def test(batcher: Batcher, model: Slow) -> None:
        tasks = [await held(batcher, model, 1), *submit(batcher, model, [2, 3, -4, 5, 6])]
        await asyncio.sleep(0)
        model.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert model.batches == [[1], [2, 3, -4, 5], [6]]  # the first was not kept waiting
        assert isinstance(answers.pop(3), Refusal) and [int(each[0]) for each in answers] == [1, 2, 3, 5, 6]

    run(test)


def test_while_requests_arrive_a_batch_waits_for_them():
    async def test(batcher: Batcher, model: Slow) -> None:
        model.go.set()
        await asyncio.gather(*submit(batcher, model, [1, 2, 3, 4]))
        assert model.batches == [[1, 2, 3, 4]]

    run(test, arriving=lambda: True, wait=60)  # that is not waited for: the batch is full


def test_though_not_for_long():
    async def test(batcher: Batcher, model: Slow) -> None:
        model.go.set()
        await asyncio.gather(*submit(batcher, model, [1, 2, 3]))
        assert [number for batch in model.batches for number in batch] == [1, 2, 3]

    run(test, arriving=lambda: True)


def test_idle_threads_share_what_waits():
    async def test(batcher: Batcher, model: Slow) -> None:
        tasks = submit(batcher, model, [1, 2, 3, 4])
        await asyncio.to_thread(model.begun.wait, 60)
        model.go.set()
        await asyncio.gather(*tasks)
        assert len(model.batches) >= 2 and max(map(len, model.batches)) <= 2

    run(test, threads=2, arriving=lambda: True, wait=1)


def test_room_is_bounded_and_given_back():
    async def test(batcher: Batcher, model: Slow) -> None:
        with batcher.admit(6):
            with pytest.raises(Refusal) as refused, batcher.admit(3):
                pass
            with batcher.admit(2):
                pass
        assert refused.value.status == 503 and refused.value.headers == {"Retry-After": "1"}
        assert batcher.admitted == 0

    run(test)


def test_images_that_nobody_waits_for_do_not_reach_the_model():
    async def test(batcher: Batcher, model: Slow) -> None:
        first = await held(batcher, model, 1)
        given_up, last = submit(batcher, model, [2, 3])
        await asyncio.sleep(0)
        given_up.cancel()
        first.cancel()  # inside the model already
        await asyncio.sleep(0)
        assert [each.decoder for each in batcher.queue] == [3]
        model.go.set()
        assert int((await last)[0]) == 3
        assert model.batches == [[1], [3]] and given_up.cancelled() and first.cancelled()

    run(test)


def test_a_thread_that_is_idle_holds_no_image():
    class Sees(Slow):
        def run(self, decoders: list[Callable]) -> list[np.ndarray | Exception]:
            return [np.array([1])] * len(decoders)

    async def test(batcher: Batcher, _: Slow) -> None:
        def decoder() -> None: ...

        image = weakref.ref(decoder)
        await batcher.submit(Sees(), decoder)
        del decoder
        while not batcher.idle:
            await asyncio.sleep(0)
        assert image() is None

    run(test)


def test_images_for_different_models_do_not_mix():
    async def test(batcher: Batcher, model: Slow) -> None:
        other = Slow()
        other.go.set()
        first = await held(batcher, model, 1)
        tasks = [first, *submit(batcher, model, [2]), *submit(batcher, other, [3]), *submit(batcher, model, [4])]
        await asyncio.sleep(0)
        model.go.set()
        await asyncio.gather(*tasks)
        assert model.batches == [[1], [2], [4]] and other.batches == [[3]]

    run(test)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_batch_that_takes_for_ever_does_not_keep_the_service_from_its_end(monkeypatch):
    monkeypatch.setattr("serving.batching.JOIN", 0.01)
    model = Slow()

    async def main() -> threading.Thread:
        batcher = Batcher(1, 4, 0.001, 8, lambda: False, Metrics())
        await held(batcher, model, 1)
        batcher.close()
        return batcher.threads[0]

    thread = asyncio.run(main())
    assert thread.is_alive()
    model.go.set()  # when the service is over
    thread.join(60)
    assert not thread.is_alive()


def test_a_model_that_fails_fails_its_batch_alone():
    class Broken(Slow):
        def run(self, numbers: list[int]) -> list[np.ndarray | Exception]:
            raise RuntimeError("out of order")

    async def test(batcher: Batcher, model: Slow) -> None:
        model.go.set()
        failed, answered = submit(batcher, Broken(), [1]), submit(batcher, model, [2])
        results = await asyncio.gather(*failed, *answered, return_exceptions=True)
        assert isinstance(results[0], RuntimeError) and int(results[1][0]) == 2

    run(test)
