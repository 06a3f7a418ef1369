"""The gRPC server of a process: its services behind one gate, health, reflection, a graceful end.

The gate stands in front of every call. It bounds how many are under way and how many bytes they
brought (`maximum_concurrent_rpcs` cannot be trusted, grpc#41531), and turns what servicers raise
into gRPC statuses. Messages are decoded behind it, so that malformed bytes are the caller's fault
(INVALID_ARGUMENT) and not ours (INTERNAL). It is written for single calls: one coroutine more each,
where an interceptor of grpc.aio costs several.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from actors.ports import Overloaded, Unavailable
from adapters.rpc import errors
from adapters.rpc.requests import InvalidField
from engine import limits

LOOPBACK: Final = "127.0.0.1"
MAX_MESSAGE_BYTES: Final = 8 << 20  # of one request; gRPC's own limit is 4 MB
MAX_CALLS: Final = 4_096  # single calls under way in one server
MAX_STREAMS: Final = 5_120  # streams under way in one server; the hubs have limits of their own
MAX_CALL_BYTES: Final = 64 << 20  # that all calls under way brought
MIN_PING_INTERVAL_MS: Final = 5_000  # clients may ping an idle connection no more often than this
PING_INTERVAL_MS: Final = 30_000  # this server's own pings, which find dead clients
PING_TIMEOUT_MS: Final = 10_000

# A batch's widest line: 1 + 1 + 4 + 4 + 8 + 8 + 2 + 16 + 2 + 8 bytes.
assert limits.MAX_BATCH_LINES * 54 < MAX_MESSAGE_BYTES <= MAX_CALL_BYTES
assert limits.MAX_CATALOG_BYTES < MAX_MESSAGE_BYTES, "what is a little too long is told so"

OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # two servers would share a port silently
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
)

_log = structlog.get_logger()
Observe = Callable[[float], None]


class CallMetrics(Protocol):
    """What the gate tells; `adapters.metrics.Metrics` is one."""

    def call_observer(self, method: str) -> Observe:
        """Give a function that is told how many seconds each call of a method took."""

    def call_refused(self, method: str, code: str) -> None:
        """Count a call that ended with a gRPC error, by the name of its code."""


class NoMetrics:
    """Measures nothing."""

    def call_observer(self, method: str) -> Observe:
        """Give a function that does nothing."""
        return lambda _seconds: None

    def call_refused(self, method: str, code: str) -> None:
        """Count nothing."""


@dataclass(slots=True)
class Gate:
    """The budget of one server, and what is taken of it."""

    max_calls: int = MAX_CALLS
    max_streams: int = MAX_STREAMS
    max_bytes: int = MAX_CALL_BYTES
    calls: int = 0
    streams: int = 0
    nbytes: int = 0


class Server:
    """A server that serves, on `port`."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        healthy: _Health,
        end_streams: Sequence[Callable[[], Awaitable[None]]],
        gate: Gate,
    ) -> None:
        """Use `open_server`."""
        self.port = port
        self.gate = gate
        self._server = server
        self._health = healthy
        self._end_streams = end_streams

    async def stop(self, grace_s: float = 5.0) -> None:
        """Say NOT_SERVING, end the endless streams, let calls end, and stop. May be repeated.

        `grace_s` bounds the whole of it.
        """
        started = time.monotonic()
        await self._health.shut_down()
        try:
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(end() for end in self._end_streams))
        except TimeoutError:
            _log.warning("streams did not end in time", port=self.port)
        await self._server.stop(max(grace_s - (time.monotonic() - started), 0.0))


async def open_server(
    services: Sequence[Callable[[Any], None]],
    host: str = LOOPBACK,
    port: int = 0,
    *,
    end_streams: Sequence[Callable[[], Awaitable[None]]] = (),
    metrics: CallMetrics | None = None,
    gate: Gate | None = None,
) -> Server:
    """Serve.

    Each of `services` adds one to the server that it is called with:
    `partial(add_StockServicer_to_server, servicer)`, say, or a servicer's own `add_to`.
    `port` 0 chooses a free one. `end_streams` end endless streams when the server stops. OSError
    when the port is taken.
    """
    server = grpc.aio.server(options=OPTIONS)
    gate = gate or Gate()
    gated = _Gated(gate, metrics or NoMetrics())
    for add_to in services:
        add_to(gated)
    server.add_generic_rpc_handlers((gated,))
    healthy = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    for name in gated.names:
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    names = (*gated.names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    await server.start()
    return Server(server, bound, healthy, end_streams, gate)


class _Health(health.aio.HealthServicer):
    """Ends its watches once they have heard NOT_SERVING; a stop would wait for them otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Tell each change of a service's health."""
        watch = asyncio.create_task(super().Watch(request, context))
        ended = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait((watch, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watch, ended):
                task.cancel()
            await asyncio.gather(watch, ended, return_exceptions=True)

    async def shut_down(self) -> None:
        """Say NOT_SERVING of every service, from now on."""
        await self.enter_graceful_shutdown()
        await asyncio.sleep(0)  # the watches write it
        self._ended.set()


# --- the gate -------------------------------------------------------------------------------------


class _Gated(grpc.GenericRpcHandler):
    """Stands in for a server when services are added, and before their methods when they are called."""

    def __init__(self, gate: Gate, metrics: CallMetrics) -> None:
        self.names: list[str] = []
        self._gate = gate
        self._metrics = metrics
        self._services: list[grpc.ServiceRpcHandler] = []
        self._methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.ServiceRpcHandler]) -> None:
        """Add services, as a server does."""
        self._services += handlers
        self.names += [handler.service_name() for handler in handlers]

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Do nothing: generated code gives the same methods twice."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Find a method, behind the gate; None when there is none."""
        method = handler_call_details.method
        found = self._methods.get(method)
        if found is None:
            for service in self._services:
                handler = service.service(handler_call_details)
                if handler is not None:
                    found = self._methods[method] = self._behind_gate(method, handler)
                    break
        return found

    def _behind_gate(
        self, method: str, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        name = method.rpartition(".")[2]  # of service and method: several have a Receive
        decode, encode = handler.request_deserializer, handler.response_serializer
        assert not handler.request_streaming, "no method of the contract takes a stream"
        assert decode is not None
        if handler.unary_unary is not None:
            call = self._unary(name, handler.unary_unary, decode)
            return grpc.unary_unary_rpc_method_handler(call, None, encode)
        stream = self._stream(name, handler.unary_stream, decode)
        return grpc.unary_stream_rpc_method_handler(stream, None, encode)

    def _unary(self, name: str, method: Any, decode: Callable[[bytes], Any]) -> Any:
        gate, metrics = self._gate, self._metrics
        observe, clock = metrics.call_observer(name), time.perf_counter

        async def call(data: bytes, context: Any) -> Any:
            nbytes = len(data)
            if gate.calls >= gate.max_calls or gate.nbytes + nbytes > gate.max_bytes:
                await _end(context, metrics, name, _full(gate))
            gate.calls += 1
            gate.nbytes += nbytes
            started = clock()
            try:
                return await method(decode(data), context)
            except Exception as error:  # noqa: BLE001 - it is raised again, as a status or as it is
                await _end(context, metrics, name, error)
            finally:
                gate.calls -= 1
                gate.nbytes -= nbytes
                observe(clock() - started)

        return call

    def _stream(self, name: str, method: Any, decode: Callable[[bytes], Any]) -> Any:
        gate, metrics = self._gate, self._metrics

        is_generator = inspect.isasyncgenfunction(method)

        async def stream(data: bytes, context: Any) -> None:
            if gate.streams >= gate.max_streams:
                await _end(context, metrics, name, _full(gate))
            gate.streams += 1
            try:
                if not is_generator:
                    await method(decode(data), context)
                    return
                # Closed here and now when the call is cancelled, and not when the collector comes.
                async with aclosing(method(decode(data), context)) as messages:
                    async for message in messages:
                        await context.write(message)
            except Exception as error:  # noqa: BLE001 - it is raised again, as a status or as it is
                await _end(context, metrics, name, error)
            finally:
                gate.streams -= 1

        return stream


def _full(gate: Gate) -> Overloaded:
    return Overloaded(
        f"{gate.calls} calls of {gate.nbytes} bytes and {gate.streams} streams are under way; "
        f"the limits are {gate.max_calls}, {gate.max_bytes} and {gate.max_streams}"
    )


async def _end(context: Any, metrics: CallMetrics, name: str, error: Exception) -> None:
    """End a call with the gRPC status that an exception stands for, and count it; always raises.

    What servicers end themselves comes by here too, and so do bugs, of which gRPC makes UNKNOWN.
    """
    try:
        match error:
            case Overloaded():
                await errors.resource_exhausted(context, str(error))
            case Unavailable():
                await errors.unavailable(context, str(error))
            case InvalidField():
                await errors.invalid_argument(context, error.field, error.description)
            case DecodeError():
                await errors.invalid_argument(context, "request", "not a message of this method")
            case _:
                raise error
    finally:
        code = context.code()  # plain 0 while nobody has set it
        told = code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN
        metrics.call_refused(name, told.name)
