"""A server of streams, byte by byte: what Valkey answers to the commands of `adapters.journal`.

The real journal adapter talks to it through transports that lose, delay and break. The server itself
never dies and never forgets; it does one thing at a time, and a slow disk makes every append slow.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from actors.ports import Entry, Position
from adapters.resp import LATE, Reply, ReplyParser, RespConnection
from tests.sim.loop import Process, VirtualLoop, current_process
from tests.sim.weather import Weather

_LATE_AT_ONCE: Final = 0.3  # of the commands for which the loop stands still, also on a fair day
_LAST: Final = Position(1 << 62, 0)
_TOO_SMALL: Final = (
    b"-ERR The ID specified in XADD is equal or smaller than the target stream top item\r\n"
)
_REFUSALS: Final = (b"-OOM command not allowed\r\n", b"-LOADING the dataset\r\n")


@dataclass(slots=True)
class Stream:
    """`entries` are those not trimmed, `history` all that there ever were, with their times."""

    entries: list[Entry] = field(default_factory=list)
    history: list[Entry] = field(default_factory=list)
    written_at: list[float] = field(default_factory=list)

    @property
    def last(self) -> Position | None:
        return self.history[-1][0] if self.history else None


class StreamServer:
    """The server, and the network to it."""

    def __init__(
        self, loop: VirtualLoop, chance: Random, weather: Weather, log: Callable[[str], None]
    ) -> None:
        self.streams: dict[str, Stream] = {}
        self.cut_off: set[str] = set()  # names of processes that do not reach it now
        self.doomed: dict[str, str] = {}  # of processes: when their next append kills them
        self._loop = loop
        self._chance = chance
        self._log = log
        self.weather = weather
        self._busy_until = 0.0

    def way_s(self) -> float:
        return self.weather.way_s(self._chance)

    def stream(self, key: str) -> Stream:
        return self.streams.setdefault(key, Stream())

    def connect(self, _: type[RespConnection]) -> tuple["Transport", RespConnection]:
        """What `loop.create_connection` gives a process. Raises OSError."""
        process = current_process()
        if process.name in self.cut_off:
            raise OSError("no route to host")
        connection = Connection()
        transport = Transport(self, process, connection)
        connection.connection_made(transport)
        return transport, connection

    def receive(self, transport: "Transport", data: bytes) -> None:
        """Take a command off the wire, and do it when its turn has come."""
        commands = list(ReplyParser().feed(data))
        appends = any(command[0] == b"XADD" for command in commands)
        cost = self._chance.expovariate(1 / self.weather.disk_mean_s) if appends else 20e-6
        self._busy_until = max(self._busy_until, self._loop.now_s) + cost
        self._loop.outside(self._busy_until - self._loop.now_s, self._do, transport, commands)

    def _do(self, transport: "Transport", commands: list[list[bytes]]) -> None:
        if self._chance.random() < self.weather.refused:
            transport.reply(self._chance.choice(_REFUSALS) * len(commands))
        else:
            transport.reply(b"".join(self.execute(command) for command in commands))

    def execute(self, command: Sequence[bytes]) -> bytes:
        """Do a command and give the bytes of its reply."""
        name, arguments = command[0], list(command[1:])
        match name:
            case b"XADD":
                return self._add(*arguments)
            case b"XRANGE":
                return self._range(*arguments)
            case b"XINFO":
                return self._info(arguments[1])
            case b"EVAL":
                return self._trim(*arguments[2:])
        return b"-ERR unknown command\r\n"

    def _add(self, key: bytes, *arguments: bytes) -> bytes:
        *options, name, _, payload = arguments
        stream = self.streams.get(key.decode())
        if stream is None and b"NOMKSTREAM" in options:
            return b"$-1\r\n"
        stream = self.stream(key.decode())
        position = Position.parse(name.decode())
        if stream.last is not None and position <= stream.last:
            return _TOO_SMALL
        stream.entries.append((position, payload))
        stream.history.append((position, payload))
        stream.written_at.append(self._loop.now_s)
        self._log(f"{key.decode()} has {position}, CRC {payload[-4:].hex()}")
        return _bulk(name)

    def _range(self, key: bytes, start: bytes, end: bytes, *count: bytes) -> bytes:
        stream = self.streams.get(key.decode(), Stream())
        entries = stream.entries
        first = 0
        if start.startswith(b"("):
            first = bisect_right(entries, Position.parse(start[1:].decode()), key=_position)
        elif start != b"-":
            first = bisect_left(entries, Position.parse(start.decode()), key=_position)
        last = len(entries) if end == b"+" else bisect_right(entries, _end(end), key=_position)
        found = entries[first:last][: int(count[1]) if count else None]
        return _array([_entry(entry) for entry in found])

    def _info(self, key: bytes) -> bytes:
        stream = self.streams.get(key.decode())
        if stream is None or stream.last is None:
            return b"-ERR no such key\r\n"
        return _array([_bulk(b"last-generated-id"), _bulk(str(stream.last).encode())])

    def _trim(self, key: bytes, epoch: bytes, before: bytes) -> bytes:
        """Do what the only script does: it drops entries, for the owner alone."""
        stream = self.stream(key.decode())
        if stream.last is None or stream.last.epoch != int(epoch):
            return b"-FENCED\r\n"
        entries = stream.entries
        dropped = bisect_left(entries, Position.parse(before.decode()), key=_position)
        del entries[:dropped]
        return b":%d\r\n" % dropped


def _position(entry: Entry) -> Position:
    return entry[0]


def _end(name: bytes) -> Position:
    return Position.parse(name.decode())


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _array(items: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


def _entry(entry: Entry) -> bytes:
    position, payload = entry
    return _array([_bulk(str(position).encode()), _array([_bulk(b"b"), _bulk(payload)])])


class Transport(asyncio.Transport):
    """One connection of a process to the server, with what may befall it on the way."""

    def __init__(self, server: StreamServer, process: Process, connection: RespConnection) -> None:
        super().__init__()
        self._server = server
        self._process = process
        self._connection = connection
        self._closing = False
        self._dies_after = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._closing

    def writelines(self, list_of_data: Any) -> None:
        """Send a command. Its bytes may arrive although the connection breaks, and much later."""
        server, chance = self._server, self._server._chance
        weather = server.weather
        data = b"".join(list_of_data)
        doom = server.doomed.get(self._process.name) if b"XADD" in data[:20] else None
        if doom == "before":
            self._process.kill("before an append")
            return
        if doom == "during":
            self._process.kill("during an append")
        self._dies_after = doom == "after"
        if self._process.name in server.cut_off or chance.random() < weather.lost / 4:
            return  # silence
        breaks = chance.random() < weather.broken
        if breaks:
            self._process.call_later(server.way_s(), self._break)
        if not breaks or chance.random() < 0.5:
            server._loop.outside(server.way_s(), server.receive, self, data)

    def write_at_once(self, data: bytes) -> bytes:
        """Send a command, and give its reply if that comes in no time: on a fair day, mostly."""
        server, name = self._server, self._process.name
        is_fair = (
            server.weather == Weather()
            and name not in server.cut_off
            and name not in server.doomed
            and server._busy_until <= server._loop.now_s
        )
        if is_fair and server._chance.random() >= _LATE_AT_ONCE:
            server._log(f"{name} writes at once")
            return b"".join(server.execute(command) for command in ReplyParser().feed(data))
        self.writelines([data])
        return b""

    def reply(self, data: bytes) -> None:
        server = self._server
        if (
            self._process.name in server.cut_off
            or server._chance.random() < server.weather.lost / 4
        ):
            return
        if server._chance.random() < server.weather.broken:
            self._process.call_later(server.way_s(), self._break)
        else:
            self._process.call_later(server.way_s(), self._deliver, data)

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self._process.call_later(0, self._connection.connection_lost, None)

    def _deliver(self, data: bytes) -> None:
        if not self._closing:
            self._connection.data_received(data)
            if self._dies_after:
                self._process.kill("after an append")

    def _break(self) -> None:
        if not self._closing:
            self._closing = True
            self._connection.connection_lost(ConnectionResetError("reset by the simulation"))


class Connection(RespConnection):
    """One that needs no socket to send and wait while the event loop stands still."""

    def send_at_once(self, command: bytes) -> bool:
        transport = self._transport
        if self.closed or self._waiter is not None:
            return False
        assert isinstance(transport, Transport)
        self._awaited = 1
        self._replies += self._parser.feed(transport.write_at_once(command))
        return True

    def wait_at_once(self, patience_ms: int) -> Reply:
        if self._replies:
            return self._replies.pop()
        self._waiter = asyncio.get_running_loop().create_future()
        return LATE
