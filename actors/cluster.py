"""Ray, and the only room that speaks to it: actors that host services, and handles to call them.

A service is a plain object, a shard or a gateway; a factory that the caller names builds it from a
config, inside an actor's process. The actor starts it unasked, after each restart too, so it serves
again when nobody calls. This room must not know what a service does: no gRPC, no Redis, no engine.

Ray's own facts that the code below stands on (2.60, measured on two cores):
- `__init__` of a class with async methods runs on the actor's one event loop, and may create tasks.
  The loop is uvloop when that is installed, which gives gRPC 15 to 20 % more calls than asyncio.
- A killed actor serves again after 0.6 to 0.8 s (1 to 1.4 s when both cores are busy), nearly all
  of it a new process and its imports; after 0.1 s when a process that never held an actor, and has
  imported the same, stands idle. Only a local Ray keeps such spares, those that it started with.
- A call in flight when its actor dies is not run again (`max_task_retries=0`), and no one can say
  whether it ran. A call while the actor restarts fails at once; before it first stands, it waits.
- A stopped (SIGSTOP) actor is never missed by Ray: calls hang. Killing it by Ray takes 5 s.
- Actors outlive a killed driver by up to 3 s, and serve: fencing must not rely on their death.
- Actor ids repeat from one local Ray to the next in one process: a handle that outlives its Ray can
  kill a stranger when it is collected. So handles of Ray never leave this module.
"""

import asyncio
import gc
import importlib
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorAlreadyExistsError,
    ActorDiedError,
    PendingCallsLimitExceeded,
    RayError,
    RayTaskError,
)

from actors.brake import NOTE_PREFIX, brake_s, forget_old_notes
from actors.environment import RAY_ENVIRONMENT, THREADS_ENVIRONMENT, usual_auth_mode, variables
from actors.service import (
    ActorBusy,
    ActorGone,
    ActorTimeout,
    CallFailed,
    ClusterError,
    ClusterUnavailable,
    ConfigMismatch,
    Description,
    NotServing,
    Service,
    StartFailed,
    UnknownActor,
    path_of,
)

NAMESPACE: Final = "onhand"
ACTOR_CPUS: Final = 0.1  # what Ray books for an actor, which is no limit: 2 cores hold 20 of them
OBJECT_STORE_BYTES: Final = 100 << 20  # of a local Ray; it refuses less than 75 MB

CONNECT_TIMEOUT_S: Final = 5.0  # to reach a cluster's head at all; joining takes longer
CALL_TIMEOUT_S: Final = 10.0
READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0
MAX_CONCURRENCY: Final = 1_000  # calls that one actor works on at once; more wait their turn
MAX_PENDING_CALLS: Final = 4_096  # unanswered calls of one process to one actor, then `ActorBusy`

RETRY_MIN_S: Final = 0.5  # between failed starts within a process, doubling
RETRY_MAX_S: Final = 10.0
EXIT_CODE: Final = 70  # of a process that ended itself (EX_SOFTWARE)

_POLL_S: Final = 0.05
_log = logging.getLogger(__name__)


class Host:
    """What a service is given of the actor it lives in. A fake needs these three members."""

    def __init__(self, name: str, *, restarted: bool) -> None:
        self.name = name
        self.restarted = restarted  # another process held this actor before
        self._directory = _Directory(ray.get_runtime_context().namespace)

    def exit(self, reason: str) -> NoReturn:
        """End this process here and now, answering nobody; Ray starts the actor anew.

        For an owner that is fenced off or whose append is in doubt: it must not go on.
        """
        _log.critical("%s ends itself: %s", self.name, reason)
        logging.shutdown()
        os._exit(EXIT_CODE)

    def actor(self, name: str) -> "Handle":
        """Give a handle to another actor of this cluster."""
        return Handle(name, self._directory)


ServiceFactory = Callable[[Any, Host], Service]
"""A top-level function of an installed module, which goes to the actor by its name, and is given a
config that pickles and compares by value (a dataclass, a pydantic model)."""


# ------------------------------------------------------------------------------------ actors ----


class _Actor:
    """The process of an actor: it starts its service by itself, and answers `Handle`."""

    def __init__(self, name: str, factory: ServiceFactory, config: Any) -> None:
        context = ray.get_runtime_context()
        with warnings.catch_warnings(action="ignore"):  # it uses what Ray itself deprecates
            restarted = bool(context.was_current_actor_reconstructed)
        self._host = Host(name, restarted=restarted)
        self._description = Description(type(self).__name__, path_of(factory), config)
        self._factory = factory
        self._service: Service | None = None
        self._failure = ""
        self._settled = asyncio.Event()  # an attempt to start has ended, well or not
        folder = Path(tempfile.gettempdir())
        self._note = folder / f"{NOTE_PREFIX}{context.get_actor_id()}"
        if not restarted:
            self._note.unlink(missing_ok=True)
            forget_old_notes(folder, time.time())
        self._serving = asyncio.create_task(self._serve(brake_s(self._note, time.time())))

    async def _serve(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        pause_s = RETRY_MIN_S
        # Trying again in this process is cheaper than a new one, and keeps `ready` answerable.
        while not await self._start():
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _start(self) -> bool:
        self._settled.clear()
        service = None
        try:
            service = self._factory(self._description.config, self._host)
            await service.start()
        except asyncio.CancelledError:
            await self._discard(service)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, `ready` tells it
            _log.error("%s could not start", self._host.name, exc_info=error)
            self._failure = f"{type(error).__name__}: {error}"
            await self._discard(service)
        else:
            self._service, self._failure = service, ""
            # What a process has become by now stays. Otherwise each full collection goes through all
            # of it, the imported packages above all, and the event loop stands still for 60 ms.
            gc.collect()
            gc.freeze()
        self._settled.set()
        return self._service is not None

    async def _discard(self, service: Service | None) -> None:
        """Free what a failed start holds, its ports above all, so that the next one can succeed."""
        if service is None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await service.stop()
        except Exception as error:  # noqa: BLE001 - the next attempt shows whether it matters
            _log.error("%s: a failed start was not undone", self._host.name, exc_info=error)

    async def ready(self) -> Description:
        """Wait for the attempt to start that is under way. StartFailed says why it failed."""
        await self._settled.wait()
        if self._service is None:
            raise StartFailed(f"{self._host.name} could not start: {self._failure}")
        return self._description

    async def call(self, method: str, *args: Any) -> Any:
        """Pass a call on to the service; NotServing when there is none."""
        if self._service is None:
            why = self._failure or "it is starting"
            raise NotServing(f"{self._host.name} does not serve: {why}")
        return await self._service.call(method, *args)

    async def pid(self) -> int:
        """Give the process id, whether the service has started or not."""
        return os.getpid()

    async def stop(self) -> None:
        """End the service gracefully; the process stays, for Ray to end."""
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        service, self._service = self._service, None
        self._failure = "it was stopped"
        self._note.unlink(missing_ok=True)
        if service is not None:
            await service.stop()


class ShardActor(_Actor):
    """Hosts a shard. The class is what `ps` and Ray's logs call the process."""


class GatewayActor(_Actor):
    """Hosts a gateway."""


# ----------------------------------------------------------------------------------- handles ----


class _Directory:
    """Ray's own handles by actor name: looked up once, forgotten when found dead."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._known: dict[str, ActorHandle[Any]] | None = {}

    def known(self, name: str) -> ActorHandle[Any] | None:
        if self._known is None:
            # Ray would start a new local cluster by itself for the next call.
            raise ClusterError("the connection to the cluster was shut down")
        return self._known.get(name)

    def find(self, name: str) -> ActorHandle[Any]:
        """Ask Ray, which blocks for a millisecond, or for a minute when Ray's head is away."""
        actor = self.known(name)
        if actor is None:
            try:
                actor = ray.get_actor(name, namespace=self._namespace)
            except ValueError:
                raise UnknownActor(f"no actor named {name!r} in {self._namespace!r}") from None
            self.keep(name, actor)
        return actor

    def has(self, name: str) -> bool:
        try:
            self.find(name)
        except UnknownActor:
            return False
        return True

    def keep(self, name: str, actor: ActorHandle[Any]) -> None:
        if self._known is not None:
            self._known[name] = actor

    def forget(self, name: str) -> None:
        if self._known is not None:
            self._known.pop(name, None)

    def close(self) -> None:
        self._known = None


class Handle:
    """An actor by its name: whichever process holds that name when a call is made.

    Costs nothing to make and may be kept for as long as one likes. A call takes about 1 ms.
    """

    def __init__(
        self, name: str, directory: _Directory, expected: Description | None = None
    ) -> None:
        self.name = name
        self._directory = directory
        self._expected = expected

    async def call(self, method: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call a method of the service, by name, with arguments that pickle.

        Large `bytes` are cheap up to `INLINE_BYTES`. Nothing is retried. When the caller is
        cancelled, the call goes on in the actor all the same.
        Raises what the method raised (CallFailed when that does not pickle); ActorGone and
        ActorTimeout, after which it may have run; UnknownActor, NotServing and ActorBusy, after
        which it has not.
        """
        return await self._ask("call", method, *args, timeout_s=timeout_s)

    async def ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the service serves, through restarts if need be.

        Raises StartFailed as soon as an attempt to start has failed (the actor keeps trying: ask
        again to wait for the next), ConfigMismatch when it runs on another config than the one it
        was started with here, ActorGone when it died for good, UnknownActor, and ActorTimeout.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = max(deadline_s - time.monotonic(), 0)
            try:
                found: Description = await self._ask("ready", timeout_s=left_s)
            except ActorGone as gone:
                if gone.for_good or left_s == 0:
                    raise
                await asyncio.sleep(_POLL_S)
            except ActorTimeout:
                message = f"{self.name} was not ready within {timeout_s:g} s ({_free_cpus()})"
                raise ActorTimeout(message) from None
            else:
                return self._check(found)

    def _check(self, found: Description) -> None:
        differences = self._expected.differences(found) if self._expected else []
        if differences:
            different = ", ".join(differences)
            raise ConfigMismatch(f"{self.name} already runs with a different {different}")

    async def pid(self, timeout_s: float = CALL_TIMEOUT_S) -> int:
        """Give the id of the actor's process, on its own machine; it need not serve for that."""
        found: int = await self._ask("pid", timeout_s=timeout_s)
        return found

    # For callers that have no event loop, the CLI say. Inside one they raise RuntimeError.

    def call_sync(self, method: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """`call`, blocking."""
        return asyncio.run(self.call(method, *args, timeout_s=timeout_s))

    def ready_sync(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """`ready`, blocking."""
        asyncio.run(self.ready(timeout_s))

    def pid_sync(self, timeout_s: float = CALL_TIMEOUT_S) -> int:
        """`pid`, blocking."""
        return asyncio.run(self.pid(timeout_s))

    async def _ask(self, remote: str, *args: Any, timeout_s: float) -> Any:
        with self._own_errors(args[0] if remote == "call" else remote, timeout_s):
            async with asyncio.timeout(timeout_s):
                actor = self._directory.known(self.name)
                if actor is None:
                    actor = await asyncio.to_thread(self._directory.find, self.name)
                return await getattr(actor, remote).remote(*args)

    @contextmanager
    def _own_errors(self, method: str, timeout_s: float) -> Iterator[None]:
        """Turn Ray's errors into this room's. The order matters: Ray's classes overlap."""
        told = f"{self.name}.{method}"
        try:
            yield
        except RayTaskError as error:  # also an instance of what the method raised
            cause = error.cause
            if not isinstance(cause, Exception) or isinstance(cause, RayError):
                raise CallFailed(f"{told}: {error}") from None
            cause.add_note(f"raised by {told}: {error}")
            raise cause from None
        except PendingCallsLimitExceeded:
            raise ActorBusy(f"{told}: {MAX_PENDING_CALLS} calls wait already") from None
        except ActorDiedError as error:
            self._directory.forget(self.name)
            raise ActorGone(f"{told}: the actor is dead: {error}", for_good=True) from error
        except TimeoutError:  # asyncio's
            raise ActorTimeout(f"{told}: no answer within {timeout_s:g} s") from None
        except RayError as error:
            raise ActorGone(f"{told}: the actor died or restarts: {error}") from error


def _free_cpus() -> str:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{free.get('CPU', 0.0):g} CPUs are free in the cluster"


# ----------------------------------------------------------------------------------- cluster ----


class Cluster:
    """A connection to Ray, of which a process has one at a time; starts, ends and finds actors.

    Its methods block, for as long as their timeouts say. A context manager: leaving it shuts down.
    """

    def __init__(self, address: str, *, local: bool, log_dir: Path, env: Mapping[str, str]) -> None:
        """Use `connect`."""
        self.address = address  # `host:port`; another process may connect to it
        self.local = local  # started here, ends with this process
        self.log_dir = log_dir  # of every Ray process on this machine; actors: worker-*.err
        self._env = env
        self._directory = _Directory(NAMESPACE)
        self._own: dict[str, ActorHandle[Any]] = {}  # not detached: they live while these are held

    @classmethod
    def connect(
        cls,
        address: str | None = None,
        *,
        workers: int = 2,
        preload: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        lean: bool = True,
        auth_mode: Literal["token", "disabled"] | None = None,
    ) -> Self:
        """Start a local Ray (`address` None), or join a cluster ("auto", or "host:port").

        A local Ray ends with this process, also when that is killed: actors within 3 s, the last
        helpers after a minute. Its tokens are Ray's: `~/.ray/auth_token`, made when missing. It
        starts with `workers` processes, which have imported the modules in `preload`: one for each
        actor, and one more for each death that should cost 0.1 s instead of 0.8. A process with
        numba, gRPC and Ray takes 120 MB (PSS; 200 MB RSS). Ray takes `workers` for its number of
        CPUs too, so there is room for `workers / ACTOR_CPUS` actors.

        On a cluster, every machine needs the package installed, in the same version, and
        `RAY_ENVIRONMENT` given to `ray start`. No runtime environment of Ray is used, other than
        for variables. `workers`, `preload` and `lean` say nothing there.

        `env` is added to the environment of the actors' processes (NUMBA_CACHE_DIR, say).
        `lean` leaves out helpers of a local Ray: 143 of 467 MB, 0.7 s or more of the 2.4 s that it
        takes to start, and 1 s of its end.
        `auth_mode` decides what RAY_AUTH_MODE does otherwise, and what neither of them says is
        "token" for a local Ray, and for a cluster when this user has a token.

        Raises ClusterUnavailable, and RuntimeError when this process is connected already.
        """
        if address is not None and "://" in address:
            raise ValueError(f"Ray Client is not supported: give host:port instead of {address!r}")
        if ray.is_initialized():
            raise RuntimeError("this process is connected to Ray already")
        actors_env = {**THREADS_ENVIRONMENT, **(env or {})}
        found = auth_mode or os.environ.get("RAY_AUTH_MODE") or usual_auth_mode(address)
        forced = {
            "RAY_AUTH_MODE": found,
            "RAY_preload_python_modules": ",".join(preload),
            # No more than this are started at once; the rest would not be started at all.
            "RAY_worker_maximum_startup_concurrency": str(workers),
            **(env or {}),
        }
        with variables({**RAY_ENVIRONMENT, **THREADS_ENVIRONMENT}, forced), _own_sigterm():
            try:
                _read_environment()
                context = _start_local(workers, lean=lean) if address is None else _join(address)
                _print_no_deaths()
            except Exception as error:
                where = "a local Ray" if address is None else f"the Ray cluster at {address}"
                how = f"RAY_AUTH_MODE={found}"
                raise ClusterUnavailable(f"cannot reach {where} ({how}): {error}") from error
        return cls(
            context.address_info["gcs_address"],
            local=address is None,
            log_dir=Path(context.address_info["session_dir"]) / "logs",
            env=actors_env,
        )

    def start_shard(self, name: str, factory: ServiceFactory, config: Any, **how: Any) -> Handle:
        """Start a `ShardActor`, or find the one of that name; `start` says the rest."""
        return self.start(ShardActor, name, factory, config, **how)

    def start_gateway(self, name: str, factory: ServiceFactory, config: Any, **how: Any) -> Handle:
        """Start a `GatewayActor`, or find the one of that name; `start` says the rest."""
        return self.start(GatewayActor, name, factory, config, **how)

    def start(
        self,
        kind: type[_Actor],
        name: str,
        factory: ServiceFactory,
        config: Any,
        *,
        num_cpus: float = ACTOR_CPUS,
        resources: Mapping[str, float] | None = None,
        detached: bool = False,
    ) -> Handle:
        """Start an actor of this name, or find the one that has it; does not wait: see `ready`.

        `ready` of the handle that is returned also checks that the actor runs on this very config.
        `resources` places it (`{"node:10.0.0.7": 0.001}`). A `detached` actor outlives this process,
        until `stop`; it makes no sense on a local Ray, which does not.
        Raises ValueError when the factory cannot be found by its name from another process.
        """
        expected = Description(kind.__name__, path_of(factory), config)
        # A local Ray gave its workers this environment already; and a spare is nobody's who wants
        # an environment of its own.
        runtime_env = None if self.local else {"env_vars": {**RAY_ENVIRONMENT, **self._env}}
        remote_kind: Any = ray.remote(kind)
        creation = remote_kind.options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached" if detached else None,
            num_cpus=num_cpus,
            resources=dict(resources or {}),
            runtime_env=runtime_env,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=MAX_CONCURRENCY,
            max_pending_calls=MAX_PENDING_CALLS,
        )
        # Ray's own `get_if_exists` does not tell whether it found or made the actor; but one that
        # was made here lives as long as its first handle, and ends with this process.
        self._directory.forget(name)
        with suppress(UnknownActor):
            self._directory.find(name)
            return Handle(name, self._directory, expected)
        with suppress(ActorAlreadyExistsError):  # another process was quicker just now
            actor = creation.remote(name, factory, config)
            self._directory.keep(name, actor)
            if not detached:
                self._own[name] = actor
        return Handle(name, self._directory, expected)

    def actor(self, name: str) -> Handle:
        """Give a handle to an actor, whoever started it. It is looked for when it is called."""
        return Handle(name, self._directory)

    def pid(self, name: str) -> int:
        """Give the process id of an actor, on its own machine."""
        return self.actor(name).pid_sync()

    def kill(self, name: str, *, restart: bool = True) -> None:
        """Kill an actor's process at once, as a crash would; without `restart`, also its name.

        UnknownActor when there is none.
        """
        ray.kill(self._directory.find(name), no_restart=not restart)
        if not restart:
            self._directory.forget(name)
            self._own.pop(name, None)

    def stop(self, *names: str, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop actors gracefully, all at once, and then for good; UnknownActor when one is not.

        One that has not stopped in time is killed. The names are free afterwards.
        """
        actors = [self._directory.find(name) for name in names]
        stopping: list[Any] = [actor.stop.remote() for actor in actors]
        if stopping:
            ray.wait(stopping, num_returns=len(stopping), timeout=timeout_s)
        for name in names:
            self.kill(name, restart=False)

    def shutdown(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop the actors started here that are not detached, and let go of Ray. May be repeated."""
        self.stop(*filter(self._directory.has, list(self._own)), timeout_s=timeout_s)
        self._own.clear()
        self._directory.close()
        ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


# -------------------------------------------------------------------- Ray's start, and its knobs --


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process itself does on SIGTERM; Ray's way prints a paragraph of addresses."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        yield
    finally:
        if callable(before):  # who has none is better off with Ray's, which cleans up
            signal.signal(signal.SIGTERM, before)


def _read_environment() -> None:
    """Have Ray read the environment again, which it does on import, and here with a private call.

    Without it this process, alone, would not know the tokens that the others insist on.
    """
    importlib.import_module("ray._raylet").Config.initialize("")


def _start_local(workers: int, *, lean: bool) -> Any:
    with _lean_head() if lean else nullcontext():
        return ray.init(
            address="local",  # never one that happens to run
            namespace=NAMESPACE,
            num_cpus=workers,  # starts as many processes
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )


def _join(address: str) -> Any:
    # Ray itself goes on knocking at a closed door for minutes.
    known = address
    if address == "auto":
        utils: Any = importlib.import_module("ray._private.utils")
        known = os.environ.get("RAY_ADDRESS") or utils.read_ray_address() or ""
    host, _, port = known.rpartition(":")
    if not (host and port.isdigit()):
        raise ConnectionError(f"{known!r} is no host:port" if known else "none runs here")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    return ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


@contextmanager
def _lean_head() -> Iterator[None]:
    """Start a head node without autoscaler, dashboard process and log monitor.

    `ray start` has flags for the first and the last of them (`--no-monitor`,
    `--include-log-monitor`); `ray.init` has not, so its parameters are completed on their way.
    Should a later Ray have other insides, it starts whole.
    """
    try:
        node: Any = importlib.import_module("ray._private.node").Node
        parameter: Any = importlib.import_module("ray._private.parameter")
        whole_params, whole_start = parameter.RayParams, node.start_api_server
    except (ImportError, AttributeError):
        _log.warning("this version of Ray is unknown: starting it with all its helpers")
        yield
        return

    def lean_params(**given: Any) -> Any:
        return whole_params(**given, no_monitor=True, include_log_monitor=False)

    parameter.RayParams = lean_params
    node.start_api_server = lambda _node, **_given: None
    try:
        yield
    finally:
        parameter.RayParams = whole_params
        node.start_api_server = whole_start


def _print_no_deaths() -> None:
    """Keep Ray from printing a paragraph on this process's stdout whenever a worker dies.

    `log_to_driver=False` does not; our exceptions and the logs tell of it.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    worker._worker_logs_enabled = False  # noqa: SLF001 - there is no public switch
