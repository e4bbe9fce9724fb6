"""The real service in a process of its own, for tests to ask."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from conftest import REPOSITORY
from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 60  # seconds, of a machine that is busy


class Service:
    """`python -m serving` on a free port, and the log that it has written so far."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "serving", "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self.log: list[dict] = []
        self.news = threading.Condition()
        self.session = requests.Session()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        started = self.logged(lambda line: line["message"].startswith("Uvicorn running on"))
        self.url = started["message"].split()[3]
        self.port = int(self.url.rsplit(":", 1)[1])

    def _read(self) -> None:
        for line in self.process.stdout:
            with self.news:
                self.log.append(json.loads(line))
                self.news.notify_all()
        self.process.stdout.close()

    def logged(self, wanted: Callable[[dict], bool]) -> dict:
        """Wait for a line of the log."""
        with self.news:
            found = self.news.wait_for(lambda: any(map(wanted, self.log)), PATIENCE)
            assert found, [line for line in self.log if line["message"] != "request"][-20:]
            return next(filter(wanted, self.log))

    def post(self, *files: bytes, address: str = "/predict", name: str = "picture") -> requests.Response:
        return self.session.post(
            self.url + address, files=[("files", (name, file)) for file in files], timeout=PATIENCE
        )

    def get(self, address: str) -> requests.Response:
        return self.session.get(self.url + address, timeout=PATIENCE)

    def metrics(self) -> dict[str, float]:
        """All samples by name, with the values of their labels: petals_requests_total{/predict,200}."""
        return {
            f"{sample.name}{{{','.join(sample.labels.values())}}}" if sample.labels else sample.name: sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
        }

    def end(self) -> int:
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
        self.session.close()
        return code


@contextmanager
def serving(model: Path, *arguments: object) -> Iterator[Service]:
    service = Service("--model", model, *arguments)
    try:
        yield service
    finally:
        service.end()
