"""What Prometheus sees. Labels take values that we choose, never what a client sends: their number stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from musespark.engine.request import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one server, in a registry of their own, so that two servers in one process don't mix."""

    def __init__(self, engine: Callable[[], Mapping[str, float]]) -> None:
        """`engine` gives the engine's numbers at the moment of a scrape, by name; `…_total` only grow."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "musespark_http_requests", "Finished HTTP requests", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "musespark_http_request_seconds",
            "From the request's head to the answer's end",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._first_token = Histogram(
            "musespark_time_to_first_token_seconds",
            "From the request's head to the first token of the answer, reasoning included",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "musespark_tokens",
            "Tokens of answered requests; cached and image are part of prompt, reasoning of completion",
            ("kind",),
            registry=self._registry,
        )
        self._registry.register(_Engine(engine))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the template of the path, such as /v1/models/{model_id}, or "unmatched"."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def usage(self, usage: Usage) -> None:
        for kind in ("prompt", "cached", "image", "completion", "reasoning"):
            self._tokens.labels(kind).inc(getattr(usage, f"{kind}_tokens"))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Engine(Collector):
    def __init__(self, numbers: Callable[[], Mapping[str, float]]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        for name, value in self._numbers().items():
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"musespark_{name}", name.replace("_", " "), value=value)
