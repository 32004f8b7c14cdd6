"""Spans for OpenTelemetry, where it is installed (`pip install torch-zrpc[otel]`).

One rule: only the API is used. Whoever runs the program decides where spans go, by setting up a tracer provider; without
one none are made.

A span's ids are OpenTelemetry's then, so that a call has the same place in both traces, and calls made inside of a span of
the program's own become its children.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

from zrpc.clock import monotonic_ns, wall_ns
from zrpc.telemetry.trace import BLOCK, CALL, MADE, REMOTE, SERVED, SPAN_ID, Span

API: Final = "opentelemetry.trace"
SCOPE: Final = "zrpc"


class OtelSink:
    """Tells OpenTelemetry of spans. `api` is the module `opentelemetry.trace`."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self._tracer = api.get_tracer(SCOPE)
        self._kinds = {
            CALL: api.SpanKind.CLIENT,
            REMOTE: api.SpanKind.PRODUCER,
            SERVED: api.SpanKind.SERVER,
            MADE: api.SpanKind.CONSUMER,
            BLOCK: api.SpanKind.INTERNAL,
        }
        self._wall_ns = wall_ns() - monotonic_ns()

    def begin(self, kind: str, name: str, peer: int, parent: bytes | None) -> tuple[Any, bytes]:
        """Start a span; without a parent, in the one that is current in this thread, if any."""
        span = self._tracer.start_span(
            name, self._context_of(parent), self._kinds[kind], {"rpc.system": "zrpc", "zrpc.peer": peer}
        )
        ids = span.get_span_context()
        return span, ids.trace_id.to_bytes(SPAN_ID, "big") + ids.span_id.to_bytes(8, "big")

    def _context_of(self, parent: bytes | None) -> Any:
        if parent is None:
            return None
        api = self._api
        trace_id, span_id = int.from_bytes(parent[:SPAN_ID], "big"), int.from_bytes(parent[SPAN_ID:], "big")
        place = api.SpanContext(trace_id, span_id, True, api.TraceFlags(api.TraceFlags.SAMPLED))
        return api.set_span_in_context(api.NonRecordingSpan(place))

    def end(self, handle: Any, span: Span) -> None:
        """End it, at the time of its last point."""
        if span.note:
            handle.set_status(self._api.StatusCode.ERROR, span.note)
        handle.end(max(span.times) + self._wall_ns)


def find_sink() -> OtelSink | None:
    """A sink, if OpenTelemetry is installed and a program has set up where its spans go."""
    try:
        api = importlib.import_module(API)
    except ImportError:
        return None
    if isinstance(api.get_tracer_provider(), (api.ProxyTracerProvider, api.NoOpTracerProvider)):
        return None
    return OtelSink(api)
