"""What /metrics tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from luthier.serve.engines import Engine
from luthier.serve.gate import Gate

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine, gate: Gate):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._engine, self._gate = engine, gate
        self.requests = Counter("luthier_requests", "Requests", ("path", "status"), registry=self._registry)
        self.tokens = Counter("luthier_tokens", "Tokens", ("kind",), registry=self._registry)
        self.first = Histogram(
            "luthier_first_token_seconds", "Until the first token", buckets=_SECONDS, registry=self._registry
        )
        self.seconds = Histogram(
            "luthier_request_seconds", "Until the last token", buckets=_SECONDS, registry=self._registry
        )
        self._running = Gauge("luthier_running", "Answers under way", registry=self._registry)
        self._waiting = Gauge("luthier_waiting", "Requests without a slot", registry=self._registry)
        self._refused = Gauge("luthier_refused", "Requests turned away since the start", registry=self._registry)

    def page(self) -> bytes:
        """All of them, in Prometheus' text format."""
        load = self._engine.load()
        self._running.set(load.running)
        self._waiting.set(max(0, self._gate.inside - load.running))
        self._refused.set(self._gate.refused)
        return generate_latest(self._registry)
