"""What a client is told where it gets no answer."""


class Refusal(Exception):
    """A request that is not answered: an HTTP status, and one line that says what is wrong and what would be right.

    `reason` is one word for metrics and logs. Where the service is busy, the client is asked to come again; not where
    an answer was late, as the same work would be done anew.
    """

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail = status, reason, detail

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"} if self.reason == "busy" else {}


def busy() -> Refusal:
    """More work than the queue holds."""
    return Refusal(503, "busy", "the service has all the work that it can hold; try again in a second")
