"""What Prometheus reads. The names are used by serving/monitoring; docs/serving.md lists them."""

from functools import partial

import prometheus_client
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32)
DRIFT = {
    "psi_classes": "Population stability index of the predicted classes against validation",
    "psi_confidence": "Population stability index of the confidence against validation",
    "ks_distance": "Kolmogorov-Smirnov statistic of the features' distance against validation",
}
prometheus_client.disable_created_metrics()  # the times at which counters were made; nobody asks for them


class Metrics:
    """All metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        counter = partial(prometheus_client.Counter, registry=registry)
        gauge = partial(prometheus_client.Gauge, registry=registry)
        histogram = partial(prometheus_client.Histogram, registry=registry)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)

        self.requests = counter("petals_requests", "Requests answered, by route and status", ["route", "status"])
        self.seconds = histogram(
            "petals_request_seconds", "From a request to its answer, the upload included", ["route"], buckets=SECONDS
        )
        self.answer_seconds = histogram(
            "petals_answer_seconds", "From the end of an upload until it is answered or nobody waits", buckets=SECONDS
        )
        self.refused = counter("petals_refused", "Requests refused, by reason", ["reason"])
        for reason in ("busy", "late"):
            self.refused.labels(reason)  # 0 from the start, so that the first one is seen as an increase
        self.predictions = counter("petals_predictions", "Images answered, by likeliest class", ["name"])
        self.batch_images = histogram("petals_batch_images", "Images in a batch", buckets=IMAGES)
        self.batch_seconds = histogram(
            "petals_batch_seconds", "Time to decode a batch and run the model on it", buckets=SECONDS
        )
        self.queue = gauge("petals_queue_images", "Images admitted and not answered yet")
        self.queue_limit = gauge("petals_queue_limit", "Images admitted at most")
        self.loads = counter("petals_model_loads", "Model files looked at while serving, by outcome", ["outcome"])
        for outcome in ("loaded", "refused"):
            self.loads.labels(outcome)  # 0 from the start, too
        self.model = gauge("petals_model_info", "1 for the model that serves", ["version", "revision", "sha256"])
        self.drift_images = gauge("petals_drift_images", "Images in the window that is compared with validation")
        self.drift = {key: gauge(f"petals_drift_{key}", text) for key, text in DRIFT.items()}
        self.drift_limits = {
            key: gauge(f"petals_drift_{key}_limit", f"{text}: chance alone stays below") for key, text in DRIFT.items()
        }

    def observe_batch(self, images: int, seconds: float) -> None:
        self.batch_images.observe(images)
        self.batch_seconds.observe(seconds)

    def set_model(self, version: str | None, revision: str | None, sha256: str) -> None:
        """Set which model serves from now on."""
        self.model.clear()
        self.model.labels(version or "unknown", revision or "unknown", sha256[:12]).set(1)

    def text(self, comparison: dict[str, float]) -> bytes:
        """Give Prometheus' text format, with `comparison`: what petals.drift says of the window."""
        self.drift_images.set(comparison["images"])
        for key in DRIFT:
            self.drift[key].set(comparison[key])
            self.drift_limits[key].set(comparison[f"{key}_limit"])
        return generate_latest(self.registry)
