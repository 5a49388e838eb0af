"""Prometheus metrics at ``/metrics``. Their names are part of the interface.

| metric | what it counts |
|---|---|
| ``bitqwen_requests_total{path,status}`` | HTTP requests answered |
| ``bitqwen_request_seconds{path}`` | their times, to the last byte |
| ``bitqwen_prompt_tokens_total{model}`` | tokens of prompts |
| ``bitqwen_cached_prompt_tokens_total{model}`` | of those, taken from the prefix cache |
| ``bitqwen_generated_tokens_total{model}`` | tokens made |
| ``bitqwen_queued_seconds{model}`` | waiting in the queue |
| ``bitqwen_first_token_seconds{model}`` | from the queue's end to the first token |
| ``bitqwen_token_seconds{model}`` | between the tokens of a request, its mean |
| ``bitqwen_step_seconds{model}``, ``bitqwen_step_tokens{model}`` | steps of the engine |
| ``bitqwen_failed_generations_total{model}`` | generations that ended with an error |
| ``bitqwen_model_load_seconds{model}`` | loading a model |
| ``bitqwen_model_bytes{model}`` | that a model in memory takes, its KV cache when full |
| ``bitqwen_running_sequences{model}``, ``bitqwen_queued_requests{model}`` | at this moment |
| ``bitqwen_cache_positions{model}`` | tokens that the KV cache has room for |
| ``bitqwen_cache_free_positions{model}`` | tokens that it has room left for |
| ``bitqwen_prefix_cache_positions{model}`` | tokens in the prefix cache |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from bitqwen.server.sequence import Job
    from bitqwen.server.served_model import ServedModel
    from bitqwen.server.service import Service

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one server."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(service))
        of_path, of_model = ("path",), ("model",)

        def counter(name: str, what: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"bitqwen_{name}", what, labels, registry=self.registry)

        def histogram(
            name: str, what: str, labels: tuple[str, ...], buckets: tuple[float, ...] = _SECONDS
        ) -> Histogram:
            return Histogram(f"bitqwen_{name}", what, labels, registry=self.registry, buckets=buckets)

        self._requests = counter("requests", "HTTP requests answered", ("path", "status"))
        self._request_seconds = histogram("request_seconds", "Times of HTTP requests", of_path)
        self._prompt = counter("prompt_tokens", "Tokens of prompts", of_model)
        self._cached = counter("cached_prompt_tokens", "Of those, taken from the prefix cache", of_model)
        self._generated = counter("generated_tokens", "Tokens made", of_model)
        self._failed = counter("failed_generations", "Generations that ended with an error", of_model)
        self._queued = histogram("queued_seconds", "Waiting in the queue", of_model)
        self._first = histogram("first_token_seconds", "From the queue to the first token", of_model)
        self._token = histogram("token_seconds", "Between tokens, the mean of a request", of_model)
        self._step = histogram("step_seconds", "Steps of the engine", of_model)
        self._load = histogram("model_load_seconds", "Loading a model", of_model)
        self._step_tokens = histogram("step_tokens", "Tokens computed in a step", of_model, _TOKENS)

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """Counts an HTTP request; ``path`` is its route's, so that there are few of them."""
        self._requests.labels(path, status).inc()
        self._request_seconds.labels(path).observe(seconds)

    def note_load(self, served: ServedModel, seconds: float) -> None:
        """Counts a model that was loaded."""
        self._load.labels(served.name).observe(seconds)

    def note_step(self, model: str, seconds: float, tokens: int) -> None:
        """Counts a step of an engine."""
        self._step.labels(model).observe(seconds)
        self._step_tokens.labels(model).observe(tokens)

    def note_end(self, model: str, job: Job, error: BaseException | None) -> None:
        """Counts a generation that ended."""
        usage = job.usage
        if error is not None:
            self._failed.labels(model).inc()
        self._queued.labels(model).observe(usage.queued_seconds)
        if job.first_token is None:
            return
        self._prompt.labels(model).inc(usage.prompt_tokens)
        self._cached.labels(model).inc(usage.cached_tokens)
        self._generated.labels(model).inc(usage.completion_tokens)
        self._first.labels(model).observe(usage.prefill_seconds)
        tokens = usage.completion_tokens / job.request.choices
        if tokens > 1:
            self._token.labels(model).observe(usage.decode_seconds / (tokens - 1))


class _Gauges(Collector):
    """What holds at the moment of asking."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """One gauge for each number and model."""
        gauges = {
            name: GaugeMetricFamily(f"bitqwen_{name}", what, labels=["model"])
            for name, what in {
                "model_bytes": "Bytes that a model in memory takes, its KV cache when full",
                "running_sequences": "Sequences at work",
                "queued_requests": "Requests that wait",
                "cache_positions": "Tokens that the KV cache has room for",
                "cache_free_positions": "Tokens that it has room left for",
                "prefix_cache_positions": "Tokens in the prefix cache",
            }.items()
        }
        for served in self._service.models():
            scheduler, model = served.scheduler, served.language_model.model
            for name, value in {
                "model_bytes": sum(model.memory.values()),
                "running_sequences": scheduler.running,
                "queued_requests": scheduler.queued,
                "cache_positions": model.cache_positions,
                "cache_free_positions": model.free_positions,
                "prefix_cache_positions": scheduler.cached_positions,
            }.items():
                gauges[name].add_metric([served.name], value)
        return gauges.values()
