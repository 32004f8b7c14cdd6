"""Spans for OpenTelemetry, with its own SDK and an exporter in memory."""

from __future__ import annotations

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from zrpc.clock import monotonic
from zrpc.telemetry import otel
from zrpc.telemetry.otel import OtelSink, find_sink
from zrpc.telemetry.trace import Tracer
from zrpc.wire.envelope import Envelope, Kind


class Api:
    """The module `opentelemetry.trace`, with a provider of the test's."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider

    def __getattr__(self, name: str) -> object:
        return getattr(api, name)

    def get_tracer(self, name: str) -> object:
        return self._provider.get_tracer(name)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def sink(exporter: InMemorySpanExporter) -> OtelSink:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OtelSink(Api(provider))


def traced(sink: OtelSink) -> Tracer:
    tracer = Tracer()
    tracer.sink = sink
    tracer.start("t")
    return tracer


def test_both_sides_of_a_call_are_one_trace(sink: OtelSink, exporter: InMemorySpanExporter) -> None:
    here, there = traced(sink), traced(sink)
    envelope = Envelope(Kind.CALL, 1)
    here.begin(envelope, "f", 2)
    arrived = Envelope(Kind.CALL, 1, 1, trace=envelope.trace)
    there.serve(arrived, "f", monotonic(), monotonic())
    assert envelope.span is not None
    assert arrived.span is not None
    there.end(arrived.span)
    here.end(envelope.span, "ValueError")
    served, made = exporter.get_finished_spans()
    assert (made.name, made.kind, served.kind) == ("f", api.SpanKind.CLIENT, api.SpanKind.SERVER)
    assert served.parent is not None
    assert (served.parent.span_id, served.context.trace_id) == (made.context.span_id, made.context.trace_id)
    assert (made.status.status_code, served.status.status_code) == (api.StatusCode.ERROR, api.StatusCode.UNSET)
    [span] = here.stop("t")[0]
    assert (int(span.trace_id, 16), int(span.span_id, 16)) == (made.context.trace_id, made.context.span_id)
    assert made.end_time is not None
    assert made.start_time is not None
    assert made.start_time <= made.end_time + 10_000_000


def test_a_call_in_a_span_of_the_program_is_its_child(sink: OtelSink, exporter: InMemorySpanExporter) -> None:
    tracer = traced(sink)
    provider = TracerProvider()
    with provider.get_tracer("program").start_as_current_span("mine") as mine, tracer.span("block"):
        pass
    [block] = exporter.get_finished_spans()
    assert block.parent is not None
    assert block.parent.span_id == mine.get_span_context().span_id


def test_a_place_that_is_none_does_no_harm(sink: OtelSink, exporter: InMemorySpanExporter) -> None:
    tracer = traced(sink)
    arrived = Envelope(Kind.CALL, 1, 1, trace=bytes(24))
    tracer.serve(arrived, "f", monotonic(), monotonic())
    assert arrived.span is not None
    tracer.end(arrived.span)
    assert [span.parent for span in exporter.get_finished_spans()] == [None]


def test_without_a_provider_nothing_is_sent() -> None:
    assert find_sink() is None


def test_without_opentelemetry_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel, "API", "opentelemetry.that_is_not_there")
    assert find_sink() is None
