"""What Prometheus reads at ``/metrics``. A registry of its own, so that two services in one process do not meet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from crossforge.runtime.microbatch import MicroBatcher
from crossforge.runtime.serving.connections import Connections
from crossforge.runtime.serving.errors import Kind
from crossforge.runtime.serving.facts import RequestFacts
from crossforge.runtime.serving.models import ServedModel
from crossforge.runtime.serving.scorers import PlainScorer
from crossforge.runtime.serving.watch import Batch

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
WASTE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
_REJECTED = {
    Kind.OVERLOADED,
    Kind.DEADLINE,
    Kind.TOO_LARGE,
    Kind.TOO_LONG,
    Kind.SLOW,
    Kind.UNAUTHORIZED,
    Kind.CROWDED,
    Kind.UNAVAILABLE,
}


class Metrics:
    """The metrics of a service.

    Args:
        models: Each by its name.
        connections: Those that are open.
    """

    def __init__(self, models: Mapping[str, ServedModel], connections: Connections) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests, by how they ended.", "model", "dialect", "status")
        self._seconds = self._histogram(
            "request_seconds", "Time of answered requests, by stage; total is all of it.", SECONDS, "model", "stage"
        )
        self._passages = self._histogram("request_passages", "Passages of answered requests.", PAIRS, "model")
        self._rejected = self._counter("rejected", "Requests that were turned away, by reason.", "reason")
        self._truncated = self._counter("truncated_pairs", "Pairs that were too long for the model and were cut.", "model")
        self._batch_pairs = self._histogram("batch_pairs", "Pairs of a batch.", PAIRS, "model")
        self._batch_tokens = self._histogram("batch_tokens", "Tokens of a batch, padding included.", TOKENS, "model")
        self._batch_waste = self._histogram("batch_padding_ratio", "Share of a batch that is padding.", WASTE, "model")
        self._tokens = self._counter("tokens", "Tokens that were computed, padding left out.", "model")
        self._padded_tokens = self._counter("padded_tokens", "Tokens that were computed, padding included.", "model")
        self._answered = cache(self._children)
        self._models: set[ServedModel] = set()
        self.registry.register(_QueueCollector(self._models))
        self.registry.register(_ConnectionCollector(connections))
        for model in models.values():
            self.watch(model)

    def count_request(self, facts: RequestFacts, *, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        if facts.problem in _REJECTED:
            self._rejected.labels(facts.problem).inc()
        if facts.model is None:
            self._requests.labels("", facts.dialect, status).inc()
            return
        self._requests.labels(facts.model, facts.dialect, status).inc()
        if status != 200 or facts.times is None:
            return
        times = facts.times
        stages, passages, truncated = self._answered(facts.model)
        for stage, value in zip(stages, (times.queue_s, times.tokenize_s, times.compute_s, seconds), strict=True):
            stage.observe(value)
        passages.observe(facts.passages)
        truncated.inc(facts.truncated)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _children(self, model: str) -> tuple[list[Histogram], Histogram, Counter]:
        """A model's own metrics of its answered requests; to find them takes longer than to add to them."""
        stages = [self._seconds.labels(model, stage) for stage in ("queue", "tokenize", "compute", "total")]
        return stages, self._passages.labels(model), self._truncated.labels(model)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, namespace="crossforge", registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, what, labels, buckets=buckets, namespace="crossforge", registry=self.registry)

    def watch(self, model: ServedModel) -> None:
        """Measure a model's queue and batches, from now on."""
        self._models.add(model)
        pairs, tokens = self._batch_pairs.labels(model.name), self._batch_tokens.labels(model.name)
        waste = self._batch_waste.labels(model.name)
        computed, padded = self._tokens.labels(model.name), self._padded_tokens.labels(model.name)

        def note(batch: Batch) -> None:
            pairs.observe(batch.pairs)
            tokens.observe(batch.padded_tokens)
            waste.observe(1 - batch.tokens / batch.padded_tokens)
            computed.inc(batch.tokens)
            padded.inc(batch.padded_tokens)

        model.session.on_batch = note


class _QueueCollector(Collector):
    """What the queues hold at the moment of reading."""

    def __init__(self, models: Set[ServedModel]) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        """Nothing: what it collects depends on the moment."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One sample for each model."""
        tokens = GaugeMetricFamily("crossforge_queue_tokens", "Tokens that wait to be computed.", labels=["model"])
        requests = GaugeMetricFamily("crossforge_queue_requests", "Requests that wait for their answer.", labels=["model"])
        restarts = CounterMetricFamily(
            "crossforge_worker_restarts", "Workers that died and were restarted.", labels=["model"]
        )
        for model in self._models:
            if isinstance(model.scorer, MicroBatcher):
                stats = model.scorer.stats()
                tokens.add_metric([model.name], stats.pending_tokens)
                requests.add_metric([model.name], stats.pending_requests)
                restarts.add_metric([model.name], stats.worker_restarts)
            elif isinstance(model.scorer, PlainScorer):
                requests.add_metric([model.name], model.scorer.pending_requests)
        return [tokens, requests, restarts]


class _ConnectionCollector(Collector):
    """The connections at the moment of reading."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def describe(self) -> Iterable[Metric]:
        """Nothing; see :class:`_QueueCollector`."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Those that are open, and those that were closed to keep the bound."""
        yield GaugeMetricFamily("crossforge_connections", "Open connections.", value=len(self._connections))
        closed = CounterMetricFamily(
            "crossforge_connections_closed", "Connections that were closed to keep the bound.", labels=["reason"]
        )
        for reason, count in self._connections.closed.items():
            closed.add_metric([reason], count)
        yield closed
