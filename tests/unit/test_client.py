"""The client against small servers that answer what a test orders."""

import asyncio
import sys
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from adapters.client import (
    Batch,
    Bucket,
    Channel,
    Client,
    DatedIncoming,
    Disposition,
    Endangered,
    FailedPrecondition,
    Flag,
    FrameKind,
    InspectLine,
    InvalidArgument,
    Kind,
    Overloaded,
    ReceiptLine,
    ReturnLine,
    ServerFailed,
    Sku,
    Status,
    TimedOut,
    Unavailable,
    calls,
    catalog,
    messages,
    new_batch_id,
    new_op_id,
    op_id_of,
    peers,
    subscription,
)
from adapters.client.tills import RETURN_ATTEMPTS
from adapters.receipts import sale_id
from onhand.v1 import (
    availability_pb2,
    catalog_pb2,
    common_pb2,
    deltas_pb2,
    directory_pb2,
    price_pb2,
    stock_pb2,
    transfer_pb2,
)

REQUESTS: dict[str, Any] = {
    "Extend": stock_pb2.ExtendRequest,
    "Move": stock_pb2.MoveRequest,
    "Fulfil": stock_pb2.HoldRequest,
    "Unfulfil": stock_pb2.HoldRequest,
    "Return": stock_pb2.ReturnRequest,
    "Exchange": stock_pb2.ExchangeRequest,
    "Receive": stock_pb2.ReceiveRequest,
    "Adjust": stock_pb2.AdjustRequest,
    "Count": stock_pb2.CountRequest,
    "Inspect": stock_pb2.InspectRequest,
    "WriteOff": stock_pb2.WriteOffRequest,
    "Expect": stock_pb2.ExpectRequest,
    "CancelIncoming": stock_pb2.CancelIncomingRequest,
    "GetIncoming": stock_pb2.GetIncomingRequest,
    "ListIncoming": stock_pb2.ListIncomingRequest,
    "Request": transfer_pb2.TransferRequest,
    "Ship": transfer_pb2.ShipRequest,
    "ReceiveTransfer": transfer_pb2.ReceiveTransferRequest,
    "CancelTransfer": transfer_pb2.CancelTransferRequest,
    "Lose": transfer_pb2.LoseTransferRequest,
    "Get": transfer_pb2.GetTransferRequest,
    "Reserve": stock_pb2.ReserveRequest,
    "Commit": stock_pb2.HoldRequest,
    "Release": stock_pb2.HoldRequest,
    "Cancel": stock_pb2.HoldRequest,
    "GetHold": stock_pb2.GetHoldRequest,
    "Sale": stock_pb2.SaleRequest,
    "Submit": stock_pb2.SubmitRequest,
    "GetCells": availability_pb2.GetCellsRequest,
    "ListCells": availability_pb2.ListCellsRequest,
    "GetPrices": price_pb2.GetPricesRequest,
    "GetShardMap": directory_pb2.GetShardMapRequest,
    "ListLocations": catalog_pb2.ListLocationsRequest,
    "AddSkus": catalog_pb2.AddSkusRequest,
    "RenameSku": catalog_pb2.RenameSkuRequest,
    "SetChannel": catalog_pb2.SetChannelRequest,
    "Subscribe": deltas_pb2.SubscribeRequest,
}
STREAMS = {"ListCells", "Subscribe"}

Fate = Callable[[Any, Any], Awaitable[Any]]


class Node(grpc.GenericRpcHandler):
    """A server. `fates` are for the next calls of a method, in order; then `usual` answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.usual: dict[str, Callable[[Any], Any]] = {}
        self.fates: dict[str, deque[Fate]] = defaultdict(deque)
        self.got: list[tuple[str, Any]] = []
        self.address = ""
        self.server: grpc.aio.Server | None = None

    async def start(self) -> None:
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 1 << 20))
        self.server = grpc.aio.server(options=options)
        self.server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port(self.address or '127.0.0.1:0')}"
        await self.server.start()

    async def stop(self) -> None:
        assert self.server is not None
        await self.server.stop(0)

    def service(self, details: Any) -> Any:
        service, _, method = details.method.rpartition("/")
        if service.endswith("Transfers") and method + "Transfer" in REQUESTS:
            method += "Transfer"  # of another service's name

        async def unary(request: Any, context: Any) -> Any:
            self.got.append((method, request))
            if self.fates[method]:
                return await self.fates[method].popleft()(request, context)
            return self.usual[method](request)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            self.got.append((method, request))
            for message in self.usual[method](request):
                if callable(message):
                    await message(request, context)
                else:
                    yield message

        shape: Any = (
            grpc.unary_stream_rpc_method_handler
            if method in STREAMS
            else grpc.unary_unary_rpc_method_handler
        )
        decode = REQUESTS[method].FromString
        return shape(
            stream if method in STREAMS else unary, decode, lambda m: m.SerializeToString()
        )

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.got if name == method]


def fail(code: grpc.StatusCode, details: str = "ordered") -> Fate:
    async def fate(_request: Any, context: Any) -> Any:
        await context.abort(code, details)

    return fate


def answer(reply: Any) -> Fate:
    async def fate(_request: Any, _context: Any) -> Any:
        return reply

    return fate


async def hang(_request: Any, _context: Any) -> Any:
    await asyncio.sleep(60)


class Store:
    """A gateway and two shards: odd locations on shard 0, even ones on shard 1."""

    def __init__(self) -> None:
        self.gateway, self.first, self.second = Node("gateway"), Node("first"), Node("second")
        self.nodes = (self.gateway, self.first, self.second)
        self.map = directory_pb2.ShardMap(version=1)

    async def start(self) -> None:
        for number, node in enumerate(self.nodes, -1):
            await node.start()
            node.usual = dict.fromkeys(REQUESTS, self.done(number))
            node.usual["Submit"] = lambda request: stock_pb2.SubmitReply(now_ns=request.lines)
            if node is not self.gateway:
                self.map.shards.add(number=number, address=node.address, epoch=1)
        self.gateway.usual["GetShardMap"] = lambda _: self.map

    @staticmethod
    def done(number: int) -> Callable[[Any], Any]:
        return lambda request: common_pb2.OperationReply(
            lines=[common_pb2.LineResult() for _ in getattr(request, "lines", ())],
            hold_id=request.op_id,
            shard=max(number, 0),
        )


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = Store()
    await made.start()
    yield made
    for node in made.nodes:
        await node.stop()


@pytest.fixture
async def client(store: Store) -> AsyncIterator[Client]:
    async with Client.connect(store.gateway.address, timeout_s=5.0) as made:
        yield made


# ---------------------------------------------------------------------------------- the way -------


async def test_an_operation_goes_straight_to_the_owner_of_its_location(
    store: Store, client: Client
) -> None:
    held = await client.reserve([(7, 2, 1), (8, 4, 2)], ttl_ms=500)
    assert held.ok
    assert held.shard == 1
    [request] = store.second.requests("Reserve")
    assert (request.op_id, request.ttl_ms) == (held.op_id, 500)
    assert [(line.sku.id, line.location.id, line.quantity) for line in request.lines] == [
        (7, 2, 1),
        (8, 4, 2),
    ]
    assert not store.gateway.requests("Reserve")


async def test_an_order_over_two_shards_goes_by_the_gateway(store: Store, client: Client) -> None:
    await client.reserve([(7, 1, 1), (7, 2, 1)])
    assert len(store.gateway.requests("Reserve")) == 1


async def test_a_shard_that_is_down_is_reached_by_the_gateway(store: Store) -> None:
    store.map.shards[1].address = ""
    async with Client.connect(store.gateway.address) as client:
        await client.sale([(7, 2, 1)])
    assert len(store.gateway.requests("Sale")) == 1


async def test_without_direct_everything_goes_by_the_gateway(store: Store) -> None:
    async with Client.connect(store.gateway.address, direct=False) as client:
        await client.sale([(7, 2, 1)])
        await client.submit(Batch(kind=Kind.SALE, sku=1, location=[1, 2], quantity=1))
    assert [name for name, _ in store.gateway.got] == ["GetShardMap", "Sale", "Submit", "Submit"]
    assert not store.first.got
    assert not store.second.got


async def test_without_direct_a_shards_own_server_may_be_called(store: Store) -> None:
    """It has no shard map to tell, so batches go to it as they are."""
    refused = grpc.StatusCode.FAILED_PRECONDITION
    store.first.fates["GetShardMap"].append(fail(refused))
    async with Client.connect(store.first.address, direct=False) as client:
        await client.submit(Batch(kind=Kind.SALE, sku=1, location=[1, 2], quantity=1))
    assert [name for name, _ in store.first.got] == ["GetShardMap", "Submit"]
    store.gateway.fates["GetShardMap"].append(fail(refused))
    with pytest.raises(FailedPrecondition):
        async with Client.connect(store.gateway.address):
            pass


async def test_a_commit_follows_its_reserve(store: Store, client: Client) -> None:
    held = await client.reserve([(7, 2, 1)])
    await client.commit(held)
    [request] = store.second.requests("Commit")
    assert (request.hold_id, request.location.id) == (held.hold_id, 2)
    await client.commit(held.hold_id)
    assert len(store.gateway.requests("Commit")) == 1


async def test_codes_of_locations_are_fetched_once(store: Store, client: Client) -> None:
    store.gateway.usual["ListLocations"] = lambda _: catalog_pb2.ListLocationsReply(
        locations=[catalog_pb2.LocationEntry(id=2, code="S2", currency="USD")]
    )
    await asyncio.gather(client.sale([("A", "S2", 1)]), client.sale([("A", "S2", 1)]))
    await client.sale([("A", "nowhere", 1)])
    assert len(store.second.requests("Sale")) == 2
    assert len(store.gateway.requests("Sale")) == 1
    assert len(store.gateway.requests("ListLocations")) == 1


async def test_codes_that_others_have_added_are_fetched_later(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "LOAD_AGAIN_S", 0.0)
    known = [catalog_pb2.LocationEntry(id=1, code="S1", currency="USD")]
    asked: list[int] = []

    def listed(request: catalog_pb2.ListLocationsRequest) -> catalog_pb2.ListLocationsReply:
        asked.append(request.from_id)
        page = [each for each in known if each.id >= request.from_id][:1]
        more = page and page[0].id < len(known)
        return catalog_pb2.ListLocationsReply(locations=page, next_id=page[0].id + 1 if more else 0)

    store.gateway.usual["ListLocations"] = listed
    await client.sale([("A", "S1", 1)])
    known.append(catalog_pb2.LocationEntry(id=2, code="S2", currency="USD"))
    known.append(catalog_pb2.LocationEntry(id=3, code="S3", currency="USD"))
    for code in ("S2", "S3"):
        await client.sale([("A", code, 1)])
    assert asked == [1, 2, 3], "what is known is not fetched again"
    assert not store.gateway.requests("Sale")


async def test_a_split_location_is_cut_by_sku(store: Store) -> None:
    store.map.placements.add(location_id=1, shards=[0, 1])
    async with Client.connect(store.gateway.address) as client:
        for sku in range(1, 9):
            await client.receive([(sku, 1, 1)])
        await client.receive([("code", 1, 1)])
    assert {len(store.first.got), len(store.second.got)} <= set(range(1, 8))
    assert len(store.first.got) + len(store.second.got) == 8
    assert len(store.gateway.requests("Receive")) == 1


async def test_what_may_be_a_bundle_at_a_split_location_goes_by_the_gateway(store: Store) -> None:
    """Its components may be on other shards than its own id."""
    store.map.placements.add(location_id=1, shards=[0, 1])
    line = (7, 1, 1)
    async with Client.connect(store.gateway.address) as client:
        await client.sale([line])
        held = await client.reserve([line])
        for call in (client.commit, client.fulfil, client.unfulfil, client.cancel, client.release):
            await call(held, [line])
        await client.return_([ReturnLine(*line, against=held.hold_id, sold_at=1)])
        await client.exchange([ReturnLine(*line)], [line])
    assert held.location == 1
    assert not store.first.got
    assert not store.second.got


async def test_an_order_in_place_of_another_that_is_paid_goes_by_the_gateway_alone(
    store: Store,
) -> None:
    """It is one step for a shard and several for a gateway: neither may go on with the other's."""
    async with Client.connect(store.gateway.address, timeout_s=0.3) as client:
        cart = await client.reserve([(7, 2, 1)])
        paid = await client.reserve([(7, 2, 1), (8, 2, 1)], supersedes=cart, commit_now=True)
        assert paid.location == 2
        store.gateway.fates["Reserve"].extend([fail(grpc.StatusCode.UNAVAILABLE)] * 100)
        with pytest.raises(Unavailable):
            await client.reserve([(7, 2, 1)], supersedes=cart, commit_now=True)
    assert len(store.second.requests("Reserve")) == 1


# --------------------------------------------------------------------------------- retries --------


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    ],
    ids=lambda code: code.name,
)
async def test_a_passing_failure_is_retried_with_the_same_op_id(
    store: Store, client: Client, code: grpc.StatusCode
) -> None:
    for node in (store.first, store.gateway):
        node.fates["Sale"].extend([fail(code)])
    op_id = new_op_id()
    sold = await client.sale([(7, 1, 1)], op_id=op_id)
    assert sold.ok
    sent = store.first.requests("Sale") + store.gateway.requests("Sale")
    assert [request.op_id for request in sent] == [op_id] * 3


async def test_a_shard_that_restarts_elsewhere_is_found_again(store: Store, client: Client) -> None:
    moved = Node("moved")
    await moved.start()
    moved.usual["Sale"] = Store.done(0)
    await store.first.stop()
    store.map.version = 2
    store.map.shards[0].address = moved.address
    assert (await client.sale([(7, 1, 1)])).ok  # by the gateway, which learns the new map
    async with asyncio.timeout(5):
        while not moved.got:
            assert (await client.sale([(7, 1, 1)])).ok
            await asyncio.sleep(0.02)
    await client.close()
    await moved.stop()


async def test_a_call_whose_channel_is_closed_under_it_is_sent_again(
    store: Store, client: Client
) -> None:
    """The shard's address goes out of the map, and its channel with it; the caller sees nothing."""
    store.first.fates["Sale"].append(hang)
    waiting = asyncio.create_task(client.sale([(7, 1, 1)]))
    while not store.first.got:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    store.map.version = 2
    store.map.shards[0].address = ""
    await client._caller.refresh()
    async with asyncio.timeout(2):
        assert (await waiting).ok
    assert len(store.gateway.requests("Sale")) == 1


async def test_calls_under_way_end_when_the_client_is_closed(store: Store, client: Client) -> None:
    store.first.fates["Sale"].append(hang)
    waiting = asyncio.create_task(client.sale([(7, 1, 1)]))
    while not store.first.got:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await client.sale([(7, 1, 1)])


async def test_a_shard_is_used_while_the_gateway_is_down(store: Store, client: Client) -> None:
    await store.gateway.stop()
    store.first.fates["Sale"].append(fail(grpc.StatusCode.UNAVAILABLE))
    assert (await client.sale([(7, 1, 1)])).ok


async def test_a_silent_server_is_given_up_and_another_asked(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "ATTEMPT_TIMEOUT_S", 0.2)
    store.first.fates["Sale"].append(hang)
    sold = await client.sale([(7, 1, 1)])
    assert sold.ok
    assert store.gateway.requests("Sale")[0].op_id == sold.op_id


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TimedOut),
    ],
    ids=["unavailable", "overloaded", "timed-out"],
)
async def test_retries_end_with_the_deadline_and_leave_the_op_id(
    store: Store, code: grpc.StatusCode, error: type[Unavailable]
) -> None:
    for node in store.nodes:
        node.fates["Sale"].extend([fail(code)] * 100)
    async with Client.connect(store.gateway.address, timeout_s=0.4) as client:
        op_id = new_op_id()
        with pytest.raises(error) as raised:
            await client.sale([(7, 1, 1)], op_id=op_id)
    assert raised.value.op_id == op_id
    assert len(store.first.got) > 1


async def test_changes_of_the_catalogue_are_repeated_with_their_op_id(store: Store) -> None:
    renamed, set_ = new_op_id(), new_op_id()
    gateway = store.gateway
    gateway.usual["RenameSku"] = lambda _: catalog_pb2.RenameSkuReply(id=7, changed=True)
    gateway.usual["SetChannel"] = lambda _: catalog_pb2.SetChannelReply(number=3)
    for method in ("RenameSku", "SetChannel"):
        gateway.fates[method].append(fail(grpc.StatusCode.UNAVAILABLE))
    async with Client.connect(gateway.address, timeout_s=0.4) as client:
        assert await client.rename_sku(7, "TEA", op_id=renamed)
        assert await client.set_channel(Channel("web"), op_id=set_) == 3
        for method, op_id in (("RenameSku", renamed), ("SetChannel", set_)):
            assert [request.op_id for request in gateway.requests(method)] == [op_id] * 2
        await client.rename_sku(7, "TEA")
        assert gateway.requests("RenameSku")[-1].op_id not in (b"", renamed)
        gateway.fates["RenameSku"].extend([fail(grpc.StatusCode.UNAVAILABLE)] * 100)
        with pytest.raises(Unavailable) as raised:
            await client.rename_sku(7, "TEA", op_id=renamed)
    assert raised.value.op_id == renamed


async def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        async with Client.connect("127.0.0.1:1", timeout_s=0.2):
            pass


async def test_cancelling_a_call_is_not_retried(store: Store, client: Client) -> None:
    begun = asyncio.Event()

    async def begin(request: Any, context: Any) -> None:
        begun.set()
        await hang(request, context)

    store.first.fates["Sale"].append(begin)
    task = asyncio.create_task(client.sale([(7, 1, 1)]))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(store.first.got) == 1


async def test_a_malformed_request_names_its_field(store: Store, client: Client) -> None:
    async def refuse(_request: Any, context: Any) -> None:
        details = any_pb2.Any()
        violation = error_details_pb2.BadRequest.FieldViolation(
            field="lines[0].sku", description="neither id nor code"
        )
        details.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status = status_pb2.Status(
            code=code_pb2.INVALID_ARGUMENT, message="lines[0].sku: wrong", details=[details]
        )
        await context.abort_with_status(rpc_status.to_status(status))

    store.first.fates["Sale"].append(refuse)
    with pytest.raises(InvalidArgument) as raised:
        await client.sale([(0, 1, 1)])
    assert raised.value.field == "lines[0].sku"
    assert raised.value.description == "neither id nor code"
    assert str(raised.value) == "lines[0].sku: wrong"
    assert len(store.first.got) == 1


@pytest.mark.parametrize("units", [1 << 63, -(1 << 63) - 1])
def test_a_number_that_no_message_can_carry_is_named(units: int) -> None:
    with pytest.raises(ValueError, match=f"quantity: {units}, must fit 64 bits"):
        messages.line_of("TEA", "BERLIN", units)
    with pytest.raises(ValueError, match=f"quantity: {units}, must fit 64 bits"):
        messages.transfer_lines_of([("TEA", units)])
    with pytest.raises(ValueError, match=f"price_minor: {units}, must fit 64 bits"):
        messages.price_line_of("TEA", "BERLIN", units)
    assert messages.line_of("TEA", "BERLIN", (1 << 63) - 1).quantity == (1 << 63) - 1


async def test_a_message_that_is_too_large_is_not_sent_again(store: Store, client: Client) -> None:
    with pytest.raises(InvalidArgument):
        await client.add_skus([Sku("A", description="x" * (2 << 20))])


async def test_any_other_error_tells_its_code(store: Store, client: Client) -> None:
    store.first.fates["Sale"].append(fail(grpc.StatusCode.INTERNAL))
    with pytest.raises(ServerFailed) as raised:
        await client.sale([(7, 1, 1)])
    assert raised.value.code == "INTERNAL"


async def test_what_cannot_be_as_things_are_is_no_fault_of_the_server(
    store: Store, client: Client
) -> None:
    full = grpc.StatusCode.FAILED_PRECONDITION
    store.gateway.fates["AddSkus"].append(fail(full))
    with pytest.raises(FailedPrecondition, match="FAILED_PRECONDITION"):
        await client.add_skus([Sku("A")])
    assert len(store.gateway.requests("AddSkus")) == 1


async def test_a_refusal_is_a_value(store: Store, client: Client) -> None:
    refused = common_pb2.OperationReply(
        status=common_pb2.STATUS_INSUFFICIENT_STOCK,
        message="quantity: more than is available",
        lines=[common_pb2.LineResult(status=common_pb2.STATUS_INSUFFICIENT_STOCK, available=2)],
    )
    store.first.fates["Reserve"].append(answer(refused))
    held = await client.reserve([(7, 1, 3)])
    assert not held.ok
    assert held.status is Status.INSUFFICIENT_STOCK
    assert held.lines[0].available == 2
    assert held.message == "quantity: more than is available"


async def test_a_moved_location_is_followed_with_the_same_op_id(
    store: Store, client: Client
) -> None:
    store.first.fates["Sale"].append(
        answer(common_pb2.OperationReply(status=common_pb2.STATUS_WRONG_SHARD))
    )
    store.map.version = 2
    store.map.placements.add(location_id=1, shards=[1])
    sold = await client.sale([(7, 1, 1)])
    assert sold.ok
    assert sold.shard == 1
    assert store.second.requests("Sale")[0].op_id == sold.op_id


async def test_who_is_refused_by_the_owner_the_map_names_asks_the_gateway(
    store: Store, client: Client
) -> None:
    wrong = common_pb2.OperationReply(status=common_pb2.STATUS_WRONG_SHARD)
    store.first.fates["Sale"].append(answer(wrong))
    assert (await client.sale([(7, 1, 1)])).ok
    assert len(store.gateway.requests("Sale")) == 1


# ----------------------------------------------------------------------------------- batches ------


def column(data: bytes, dtype: str = "<u4") -> list[int]:
    values: list[int] = np.frombuffer(data, dtype).tolist()
    return values


async def test_a_batch_of_one_shard_keeps_its_id(store: Store, client: Client) -> None:
    op_id = new_batch_id()
    result = await client.submit(
        Batch(kind=Kind.RESERVE, sku=[5, 6], location=[1, 3], quantity=1, value=2_000), op_id=op_id
    )
    assert result.ok
    assert [bytes(each) for each in result.hold_ids] == [op_id, op_id[:-1] + b"\x01"]
    [request] = store.first.requests("Submit")
    assert (request.op_id, request.lines) == (op_id, 2)
    assert column(request.sku) == [5, 6]
    assert column(request.quantity, "<i8") == [1]
    assert column(request.value, "<i8") == [2_000]
    assert not request.flags
    assert not request.hold


async def test_a_batch_is_cut_by_shard_and_joined_in_order(store: Store, client: Client) -> None:
    def judge(request: Any) -> Any:
        odd = [sku % 2 for sku in column(request.sku)]
        return stock_pb2.SubmitReply(
            status=bytes(Status.INSUFFICIENT_STOCK * each for each in odd),
            available=np.array(column(request.sku), "<i8").tobytes(),
            now_ns=column(request.location)[0],
        )

    store.first.usual["Submit"] = store.second.usual["Submit"] = judge
    sku, location = np.arange(10, 20, dtype=np.uint32), np.array([1, 2, 2, 1, 2] * 2)
    batch = Batch(kind=Kind.RESERVE, sku=sku, location=location, quantity=1, value=1)
    result = await client.submit(batch, want_available=True)
    assert result.status.tolist() == [0, Status.INSUFFICIENT_STOCK] * 5
    assert result.refused.tolist() == [1, 3, 5, 7, 9]
    assert result.message(1) == "quantity: more than is available"
    assert result.available is not None
    assert result.available.tolist() == sku.tolist()
    assert result.now_ns.tolist() == location.tolist()
    parts = {
        column(each.location)[0]: each
        for node in (store.first, store.second)
        for each in node.requests("Submit")
    }
    assert len(parts) == 2
    assert len({part.op_id for part in parts.values()}) == 2
    for place, (at, hold_id) in enumerate(zip(location.tolist(), result.hold_ids, strict=True)):
        part = parts[at]
        assert part.op_id[-2:] == b"\0\0"
        nth = column(part.sku).index(int(sku[place]))
        assert bytes(hold_id) == part.op_id[:-2] + nth.to_bytes(2, "big")


async def test_a_repeated_batch_repeats_the_ids_of_its_parts(store: Store, client: Client) -> None:
    op_id = new_batch_id()
    batch = Batch(kind=Kind.SALE, sku=1, location=[1, 2], quantity=1)
    await client.submit(batch, op_id=op_id)
    await client.submit(batch, op_id=op_id)
    for node in (store.first, store.second):
        once, again = node.requests("Submit")
        assert once == again


async def test_a_batch_that_is_repeated_by_the_gateway_has_the_same_parts(
    store: Store, client: Client
) -> None:
    """Else each of them would be done twice: whoever could not reach the shards tries the other way."""
    op_id = new_batch_id()
    batch = Batch(kind=Kind.SALE, sku=1, location=[1, 2, 1], quantity=1)
    await client.submit(batch, op_id=op_id)
    async with Client.connect(store.gateway.address, direct=False) as other:
        await other.submit(batch, op_id=op_id)
    parts = [*store.first.requests("Submit"), *store.second.requests("Submit")]
    assert store.gateway.requests("Submit") == parts


async def test_linked_lines_stay_together(store: Store, client: Client) -> None:
    flags = np.array([Flag.LINKED, 0, 0])
    await client.submit(
        Batch(kind=Kind.RESERVE, sku=1, location=[1, 2, 2], quantity=1, value=1, flags=flags)
    )
    assert store.first.requests("Submit")[0].lines == 2
    assert store.second.requests("Submit")[0].lines == 1


async def test_a_line_that_links_nothing_takes_no_other_along(store: Store, client: Client) -> None:
    """It would take what is reserved behind it to a shard that does not have the cell."""
    flags = np.array([Flag.LINKED, 0])
    kind = np.array([Kind.SALE, Kind.RESERVE])
    await client.submit(Batch(kind=kind, sku=1, location=[1, 2], quantity=1, value=1, flags=flags))
    for node, sent in ((store.first, Kind.SALE), (store.second, Kind.RESERVE)):
        assert [list(each.kind) for each in node.requests("Submit")] == [[sent]]


async def test_lines_on_holds_carry_their_holds(store: Store, client: Client) -> None:
    holds = np.arange(32, dtype=np.uint8).reshape(2, 16)
    await client.submit(Batch(kind=Kind.COMMIT, location=2, hold=holds))
    [request] = store.second.requests("Submit")
    assert (request.hold, request.lines) == (holds.tobytes(), 2)


async def test_lines_that_have_moved_are_sent_after(store: Store, client: Client) -> None:
    wrong, rest = int(Status.WRONG_SHARD), int(Status.LINKED_LINE_REFUSED)
    store.first.fates["Submit"].append(
        answer(stock_pb2.SubmitReply(status=bytes([0, rest, wrong])))
    )
    store.map.version = 2
    store.map.placements.add(location_id=3, shards=[1])
    result = await client.submit(
        Batch(kind=Kind.RESERVE, sku=1, location=[1, 3, 3], quantity=1, value=1, flags=[0, 1, 0])
    )
    assert result.ok
    [after] = store.second.requests("Submit")
    assert (after.lines, column(after.location)) == (2, [3])
    assert bytes(result.hold_ids[1]) == after.op_id
    assert after.op_id != store.first.requests("Submit")[0].op_id


async def test_a_batch_in_doubt_tells_its_id(store: Store) -> None:
    for node in (store.gateway, store.second):
        node.fates["Submit"].extend([fail(grpc.StatusCode.UNAVAILABLE)] * 100)
    async with Client.connect(store.gateway.address, timeout_s=0.3) as client:
        op_id = new_batch_id()
        with pytest.raises(Unavailable) as raised:
            await client.submit(
                Batch(kind=Kind.SALE, sku=1, location=[1, 2], quantity=1), op_id=op_id
            )
    assert raised.value.op_id == op_id
    assert len(store.first.requests("Submit")) == 1


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"sku": [1, 2], "location": [1, 2, 3]}, "sku"),
        ({"sku": -1}, "sku"),
        ({"sku": 1.5}, "sku"),
        ({"quantity": np.zeros(8_191, np.int64)}, "lines"),
        ({"hold": np.zeros((2, 8), np.uint8)}, "hold"),
        ({"kind": np.zeros(0, np.int64), "sku": np.zeros(0, np.int64)}, "kind"),
    ],
    ids=["lengths", "range", "type", "too-many", "hold", "empty"],
)
async def test_a_batch_that_cannot_be_is_told_by_column(
    client: Client, columns: dict[str, Any], names: str
) -> None:
    with pytest.raises(ValueError, match=names):
        await client.submit(Batch(**{"kind": Kind.SALE, **columns}))


# ------------------------------------------------------------------------------------- reads ------


async def test_cells_of_several_shards_come_back_in_order(store: Store, client: Client) -> None:
    def cells(request: Any) -> Any:
        return availability_pb2.GetCellsReply(
            cells=[
                availability_pb2.Cell(
                    sku=name.sku, location=name.location, found=True, on_hand=name.sku.id
                )
                for name in request.cells
            ]
        )

    store.first.usual["GetCells"] = store.second.usual["GetCells"] = cells
    names = [(10, 2), (11, 1), (12, 2)]
    found = await client.get_cells(names)
    assert [(cell.sku, cell.location, cell.on_hand) for cell in found] == [
        (10, 2, 10),
        (11, 1, 11),
        (12, 2, 12),
    ]


async def test_listed_cells_are_columns(store: Store, client: Client) -> None:
    page = availability_pb2.CellPage(
        cells=2,
        sku=np.array([1, 2], "<u4").tobytes(),
        location=np.array([3, 3], "<u4").tobytes(),
        on_hand=np.array([9, 5], "<i8").tobytes(),
        reserved=np.array([4, 0], "<i8").tobytes(),
        at=[availability_pb2.StreamPosition(shard=0, epoch=1, seq=7)],
    )
    store.first.usual["ListCells"] = lambda _: [page, page]
    pages = [each async for each in client.list_cells([3])]
    assert [len(each) for each in pages] == [2, 2]
    assert pages[0].available.tolist() == [5, 5]
    assert pages[0].at == ((0, 1, 7),)


async def test_an_unknown_hold_is_none(store: Store, client: Client) -> None:
    store.gateway.usual["GetHold"] = lambda _: stock_pb2.Hold()
    store.second.usual["GetHold"] = lambda request: stock_pb2.Hold(
        hold_id=request.hold_id,
        state=stock_pb2.HOLD_STATE_COMMITTED,
        lines=[stock_pb2.HoldLine(committed=3)],
    )
    assert await client.get_hold(new_op_id()) is None
    hold = await client.get_hold(new_op_id(), location=2)
    assert hold is not None
    assert hold.state.name == "COMMITTED"
    assert hold.lines[0].committed == 3


async def test_prices_tell_their_currency(store: Store, client: Client) -> None:
    store.first.usual["GetPrices"] = lambda _: price_pb2.GetPricesReply(
        currency="EUR",
        prices=[
            price_pb2.PriceOf(found=True, price_minor=199, price_version=2),
            price_pb2.PriceOf(),
        ],
    )
    first, second = await client.get_prices(1, [5, 6])
    assert (first.price_minor, first.price_version, first.currency) == (199, 2, "EUR")
    assert second.price_minor is None


# ------------------------------------------------------------------------------ subscriptions -----


def frame(kind: FrameKind, token: bytes = b"", *skus: int) -> Any:
    return deltas_pb2.Frame(
        kind=deltas_pb2.FrameKind.ValueType(kind),
        resume_token=token,
        cells=len(skus),
        sku=np.array(skus, "<u4").tobytes(),
    )


async def test_a_stream_that_breaks_is_resumed_from_its_last_token(
    store: Store, client: Client
) -> None:
    streams = iter(
        [
            [frame(FrameKind.SNAPSHOT, b"", 1), fail(grpc.StatusCode.UNAVAILABLE)],
            [frame(FrameKind.SNAPSHOT, b"", 1), frame(FrameKind.SNAPSHOT_END, b"t1")],
            [frame(FrameKind.DELTA, b"t2", 5), fail(grpc.StatusCode.CANCELLED)],
            [frame(FrameKind.COMPACTED), frame(FrameKind.SNAPSHOT, b"", 1), hang],
        ]
    )
    store.gateway.usual["Subscribe"] = lambda _: next(streams)
    seen = []
    async with aclosing(client.subscribe(locations=[1], resume_token=b"t0")) as frames:
        async for each in frames:
            seen.append((each.kind.name, each.sku.tolist()))
            if len(seen) == 6:
                break
    assert seen == [
        ("SNAPSHOT", [1]),
        ("SNAPSHOT", [1]),
        ("SNAPSHOT_END", []),
        ("DELTA", [5]),
        ("COMPACTED", []),
        ("SNAPSHOT", [1]),
    ]
    tokens = [each.resume_token for each in store.gateway.requests("Subscribe")]
    assert tokens == [b"t0", b"t0", b"t1", b"t2"]


async def test_a_silent_stream_is_taken_up_again(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "SILENCE_MIN_S", 0.1)
    streams = iter([[frame(FrameKind.HEARTBEAT, b"t1"), hang], [frame(FrameKind.DELTA, b"t2", 1)]])
    store.gateway.usual["Subscribe"] = lambda _: next(streams)
    async with aclosing(client.subscribe(heartbeat_ms=100)) as frames:
        kinds = [(await anext(frames)).kind, (await anext(frames)).kind]
    assert kinds == [FrameKind.HEARTBEAT, FrameKind.DELTA]
    assert store.gateway.requests("Subscribe")[1].resume_token == b"t1"


async def test_a_silence_longer_than_the_timeout_is_no_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "SILENCE_MIN_S", 0.5)
    streams = iter([[frame(FrameKind.HEARTBEAT, b"t1"), hang], [frame(FrameKind.DELTA, b"t2", 1)]])
    store.gateway.usual["Subscribe"] = lambda _: next(streams)
    async with (
        Client.connect(store.gateway.address, timeout_s=0.4) as client,
        aclosing(client.subscribe(heartbeat_ms=100)) as frames,
    ):
        kinds = [(await anext(frames)).kind, (await anext(frames)).kind]
    assert kinds == [FrameKind.HEARTBEAT, FrameKind.DELTA]


async def test_codes_that_could_not_be_fetched_are_fetched_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "LOAD_AGAIN_S", 0.0)
    listed = catalog_pb2.ListLocationsReply(
        locations=[catalog_pb2.LocationEntry(id=2, code="S2", currency="EUR")]
    )
    store.gateway.usual["ListLocations"] = lambda _: listed
    store.gateway.fates["ListLocations"].append(fail(grpc.StatusCode.INTERNAL))
    async with Client.connect(store.gateway.address) as client:
        for _ in range(3):
            await client.reserve([(7, "S2", 1)])
    assert len(store.gateway.requests("Reserve")) == 1
    assert len(store.second.requests("Reserve")) == 2
    assert len(store.gateway.requests("ListLocations")) == 2


async def test_a_unit_that_is_none_is_named(client: Client) -> None:
    with pytest.raises(ValueError, match="unit: 'KG' of 'A', must be one of EA, G, ML"):
        await client.add_skus([Sku("A", "KG")])


async def test_closing_an_iterator_ends_its_call(store: Store, client: Client) -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    def hanging(first: Any) -> Any:
        async def wait(_request: Any, _context: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.put_nowait(type(first).__name__)

        return lambda _: [first, wait]

    store.gateway.usual["Subscribe"] = hanging(frame(FrameKind.HEARTBEAT, b"t1"))
    store.gateway.usual["ListCells"] = hanging(availability_pb2.CellPage())
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=lambda _: None)  # nobody closes what was left open
    try:
        for frames in (client.subscribe(), client.list_cells()):
            await anext(frames)
            await frames.aclose()
        async with asyncio.timeout(5):
            assert {await ended.get(), await ended.get()} == {"Frame", "CellPage"}
    finally:
        sys.set_asyncgen_hooks(*hooks)


async def test_a_subscription_ends_when_there_is_no_gateway(store: Store) -> None:
    async with Client.connect(store.gateway.address, timeout_s=0.2) as client:
        await store.gateway.stop()
        with pytest.raises(Unavailable):
            await anext(client.subscribe())


# --------------------------------------------------------------------------------------- ids ------


def test_op_ids_are_uuids_and_batch_ids_leave_room_for_lines() -> None:
    ids = {new_op_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(len(each) == 16 and each[6] >> 4 == 7 and each[8] >> 6 == 2 for each in ids)
    batches = {new_batch_id() for _ in range(1_000)}
    assert len(batches) == 1_000
    assert all(len(each) == 16 and each[-2:] == b"\0\0" for each in batches)


async def test_an_op_id_of_the_wrong_length_is_told_at_once(client: Client) -> None:
    with pytest.raises(ValueError, match="op_id"):
        await client.sale([(1, 1, 1)], op_id=b"short")
    with pytest.raises(ValueError, match="op_id"):
        await client.submit(Batch(kind=Kind.SALE), op_id=b"x" * 16)


def test_pings_are_no_more_frequent_than_the_servers_allow() -> None:
    from adapters.rpc import server

    assert peers.KEEPALIVE_TIME_MS >= 2 * server.MIN_PING_INTERVAL_MS


# ------------------------------------------------------------------------ the whole life of stock --


def of(message: Any) -> dict[str, Any]:
    """A message's fields by name, without its op_id and its lines."""
    given = {field.name: value for field, value in message.ListFields()}
    return {name: value for name, value in given.items() if name not in ("op_id", "lines")}


async def test_for_which_channel_stock_is_taken_goes_along(store: Store, client: Client) -> None:
    hold = await client.reserve([(7, 2, 1)])
    await client.move(hold, 2, channel="web")
    assert of(store.second.requests("Move")[0])["channel"] == "web"
    await client.commit(hold, re_reserve_if_expired=True, channel="web")
    request = of(store.second.requests("Commit")[0])
    assert (request["re_reserve_if_expired"], request["channel"]) == (True, "web")


async def test_what_an_order_may_ask_for_goes_along(store: Store, client: Client) -> None:
    older = await client.reserve([(7, 2, 1)])
    await client.reserve(
        [(7, 2, 1)], channel="web", allow_partial=True, supersedes=older, ttl_ms=500
    )
    await client.reserve([(7, 2, 1)], channel="web", allow_partial=True, commit_now=True)
    told = {"channel": "web", "allow_partial": True}
    _, *requests = store.second.requests("Reserve")
    assert [of(each) for each in requests] == [
        {**told, "supersedes": older.hold_id, "ttl_ms": 500},
        {**told, "commit_now": True},
    ]
    await client.reserve([(7, 2, 1)], supersedes=older.hold_id)
    assert store.gateway.requests("Reserve")[0].supersedes == older.hold_id
    elsewhere = await client.reserve([(7, 1, 1)])
    await client.reserve([(7, 2, 1)], supersedes=elsewhere)
    assert len(store.gateway.requests("Reserve")) == 2


async def test_calls_on_a_hold_go_where_all_of_it_is(store: Store, client: Client) -> None:
    held = await client.reserve([(7, 2, 1), (8, 4, 1)])
    await client.extend(held, ttl_ms=500)
    await client.unfulfil(held, occurred_at_ns=13)
    await client.fulfil(held, occurred_at_ns=14)
    await client.commit(held, re_reserve_if_expired=True)
    (extend,), (unfulfil,) = store.second.requests("Extend"), store.second.requests("Unfulfil")
    assert (extend.hold_id, extend.ttl_ms, extend.location.id) == (held.hold_id, 500, 2)
    assert (unfulfil.hold_id, unfulfil.occurred_at_ns) == (held.hold_id, 13)
    assert store.second.requests("Fulfil")[0].occurred_at_ns == 14
    assert store.second.requests("Commit")[0].re_reserve_if_expired
    spread = await client.reserve([(7, 1, 1), (7, 2, 1)])
    assert spread.location is None
    await client.extend(spread)
    await client.commit(spread)
    await client.commit(spread.hold_id, [(7, 1, 1)], release_rest=True)
    assert store.gateway.requests("Extend")[0].location.id == 0
    assert [each.location.id for each in store.gateway.requests("Commit")] == [0, 0]


async def test_a_hold_is_where_it_was_moved(store: Store, client: Client) -> None:
    held = await client.reserve([(7, 2, 1)])
    near = await client.move(held, 4)
    assert store.second.requests("Move")[0].to.id == 4
    far = await client.move(near, 1, [(7, 4, 0)])
    assert (near.hold_id, near.location) == (held.hold_id, 4)
    assert (far.hold_id, far.location) == (held.hold_id, None)
    [request] = store.gateway.requests("Move")
    assert [(line.sku.id, line.location.id) for line in request.lines] == [(7, 4)]
    all_of_it = await client.move(held.hold_id, 2)
    assert all_of_it.location == 2


async def test_a_hold_whose_move_was_refused_is_where_it_was(store: Store, client: Client) -> None:
    held = await client.reserve([(7, 2, 1)])
    refused = common_pb2.OperationReply(status=common_pb2.STATUS_INSUFFICIENT_STOCK)
    store.second.usual["Move"] = store.gateway.usual["Move"] = lambda _: refused
    near = await client.move(held, 4)
    assert (near.ok, near.hold_id, near.location) == (False, held.hold_id, 2)
    # Parts of what is on several shards may have gone, so nobody knows where all of it is.
    far = await client.move(held, 1)
    assert (far.ok, far.hold_id, far.location) == (False, held.hold_id, None)


async def test_facts_say_when_and_what_of(store: Store, client: Client) -> None:
    receipts = [ReceiptLine("T1", "4711", 1)]
    await client.sale([(7, 1, 2)], receipt_lines=receipts, occurred_at_ns=5)
    [sale] = store.first.requests("Sale")
    assert (sale.occurred_at_ns, sale.receipt_lines[0].receipt) == (5, "4711")
    await client.return_(
        [ReturnLine(7, 1, 1, against=receipts[0]), ReturnLine(7, 3, 1, against=b"x", sold_at=1)],
        occurred_at_ns=6,
    )
    [back] = store.first.requests("Return")
    assert back.occurred_at_ns == 6
    assert back.lines[0].receipt_line.terminal == "T1"
    assert (back.lines[1].against, back.lines[1].sold_at.id) == (b"x", 1)
    await client.return_([ReturnLine(7, 1, 1, against=b"x")])
    await client.return_([ReturnLine(7, 1, 1, against=receipts[0], sold_at=2)])
    assert len(store.gateway.requests("Return")) == 2
    await client.exchange([ReturnLine(7, 1, 1)], [(8, 3, 1)], commit_now=True, channel="pos")
    [exchange] = store.first.requests("Exchange")
    assert [len(exchange.returns), len(exchange.lines)] == [1, 1]
    assert exchange.channel == "pos"
    await client.receive([(7, 1, 1)], incoming_id=b"i", occurred_at_ns=7)
    assert of(store.first.requests("Receive")[0]) == {"incoming_id": b"i", "occurred_at_ns": 7}
    await client.adjust([(7, 1, -1)], reason=3, occurred_at_ns=8)
    assert of(store.first.requests("Adjust")[0]) == {"reason": 3, "occurred_at_ns": 8}
    await client.count([(7, 1, 1)], occurred_at_ns=9)
    assert of(store.first.requests("Count")[0]) == {"occurred_at_ns": 9}
    await client.inspect([InspectLine(7, 1, 1, Disposition.DAMAGED)])
    assert store.first.requests("Inspect")[0].lines[0].disposition == Disposition.DAMAGED
    await client.write_off([(7, 1, 1)], reason=4, bucket=Bucket.DAMAGED, occurred_at_ns=10)
    told = {"reason": 4, "bucket": Bucket.DAMAGED, "occurred_at_ns": 10}
    assert of(store.first.requests("WriteOff")[0]) == told


async def test_what_is_on_its_way(store: Store, client: Client) -> None:
    await client.expect([(7, 1, 5)], incoming_id=b"i", expected_at_ms=11)
    assert of(store.first.requests("Expect")[0]) == {"incoming_id": b"i", "expected_at_ms": 11}
    await client.cancel_incoming(b"i", location=1)
    await client.cancel_incoming(b"i", [(7, 1, 2)])
    assert len(store.first.requests("CancelIncoming")) == 2
    sku, at = common_pb2.Sku(id=7), common_pb2.Location(id=1)
    line = stock_pb2.IncomingLine(sku=sku, location=at, outstanding=3, received=1, expected=5)
    store.gateway.usual["GetIncoming"] = lambda request: stock_pb2.Incoming(
        incoming_id=request.incoming_id, state=7, expected_at_ms=11, lines=[line]
    )
    found = await client.get_incoming(b"i")
    assert found is not None
    assert (found.expected_at_ms, found.lines[0].outstanding, found.lines[0].expected) == (11, 3, 5)
    store.gateway.usual["GetIncoming"] = lambda _: stock_pb2.Incoming()
    assert await client.get_incoming(b"i") is None
    dated = stock_pb2.DatedIncoming(sku=sku, location=at, expected_at_ms=11, quantity=3)
    store.first.usual["ListIncoming"] = lambda _: stock_pb2.ListIncomingReply(incoming=[dated])
    assert await client.list_incoming([(7, 1)]) == [DatedIncoming(7, 1, 11, 3)]


async def test_transfers_go_by_the_gateway(store: Store, client: Client) -> None:
    asked = await client.request_transfer(1, 2, [(7, 5)])
    await client.ship_transfer(asked.hold_id, 1, 2, [(7, 5)], expected_at_ms=11, occurred_at_ns=10)
    await client.receive_transfer(asked.hold_id, 2, [(7, 4)], occurred_at_ns=12)
    await client.lose_transfer(asked.hold_id, 2, [(7, 1)])
    await client.cancel_transfer(asked.hold_id, 1)
    for name in ("Request", "Ship", "ReceiveTransfer", "Lose", "CancelTransfer"):
        [request] = store.gateway.requests(name)
        assert name == "Request" or request.transfer_id == asked.hold_id
    (ship,) = store.gateway.requests("Ship")
    assert (ship.source.id, ship.destination.id, ship.expected_at_ms) == (1, 2, 11)
    assert ship.occurred_at_ns == 10
    line = transfer_pb2.TransferLineState(requested=5, shipped=5, received=4, difference=-1)
    store.gateway.usual["Get"] = lambda request: transfer_pb2.Transfer(
        transfer_id=request.transfer_id, found=True, lines=[line]
    )
    found = await client.get_transfer(asked.hold_id, source=1, destination=2)
    assert found is not None
    assert (found.lines[0].received, found.lines[0].difference) == (4, -1)
    store.gateway.usual["Get"] = lambda _: transfer_pb2.Transfer()
    assert await client.get_transfer(asked.hold_id) is None


async def test_lines_tell_what_was_granted_and_whom_they_endanger(
    store: Store, client: Client
) -> None:
    endangered = common_pb2.Endangered(hold_id=b"h", pending=1, committed=2)
    line = common_pb2.LineResult(granted=4, endangered=[endangered], sale_id=b"s", status=18)
    reply = common_pb2.OperationReply(lines=[line], status=18)
    store.first.usual["Sale"] = lambda _: reply
    sold = await client.sale([(7, 1, 1)])
    assert sold.ok
    assert (sold.lines[0].granted, sold.lines[0].sale_id) == (4, b"s")
    assert sold.lines[0].endangered == (Endangered(b"h", 1, 2),)


async def test_a_batch_has_channels_moments_and_tells_what_became_of_it(
    store: Store, client: Client
) -> None:
    endangered = common_pb2.Endangered(hold_id=b"h", pending=1)
    store.second.usual["Submit"] = lambda request: stock_pb2.SubmitReply(
        granted=np.arange(request.lines, dtype="<i8").tobytes(),
        endangered=[stock_pb2.BatchEndangered(line=1, endangered=endangered)],
    )
    batch = Batch(
        kind=Kind.RESERVE, sku=7, location=[1, 2, 2], quantity=1, flags=Flag.PARTIAL,
        channel=[1, 2, 3], occurred_at_ns=[4, 5, 6],
    )  # fmt: skip
    told = await client.submit(batch)
    [request] = store.second.requests("Submit")
    assert np.frombuffer(request.channel, "<u2").tolist() == [2, 3]
    assert np.frombuffer(request.occurred_at_ns, "<i8").tolist() == [5, 6]
    assert told.granted.tolist() == [0, 0, 1]
    assert told.endangered == ((2, Endangered(b"h", 1, 0)),)


def test_an_id_of_names_is_of_these_names_alone() -> None:
    named = op_id_of("return", "S0001", "T1", "4712", 1)
    assert named == op_id_of("return", "S0001", "T1", "4712", 1)
    assert len(named) == 16
    assert named.hex() == "370717387061353d198ae971d082e7d7", (
        "what a till has told has this id for good"
    )
    others = [
        ("return", "S0001", "T1", "4712", 2),
        ("return", "S0001", "T14", "712", 1),
        ("return", "S0001", "T1", "47121"),
        ("sale", "S0001", "T1", "4712", 1),
        ("return", "S0001", "T1", "4712", 1, 1),
    ]
    attempts = [op_id_of("return", "S0001", "T1", "4712", 1, attempt=n) for n in range(3)]
    assert attempts[0] == named
    assert len({*attempts, *(op_id_of(*each) for each in others)}) == 8


# ------------------------------------------------------------------------- a till's returns -------

SOLD, BACK = ReceiptLine("T1", "4711", 1), ReceiptLine("T1", "4712", 1)
UNKNOWN = common_pb2.OperationReply(status=common_pb2.STATUS_UNKNOWN_HOLD)


def attempts_of(node: Node) -> list[bytes]:
    return [request.op_id for request in node.requests("Return")]


def attempt_ids(count: int, location: int = 3) -> list[bytes]:
    return [op_id_of("return", location, *BACK, attempt=number) for number in range(count)]


def knows(node: Node, *, sale: bool) -> None:
    state = stock_pb2.HOLD_STATE_FULFILLED if sale else stock_pb2.HOLD_STATE_UNKNOWN
    node.usual["GetHold"] = lambda request: stock_pb2.Hold(hold_id=request.hold_id, state=state)


async def test_a_tills_return_is_tried_again_when_its_sale_has_come(
    store: Store, client: Client
) -> None:
    line = ReturnLine(7, 3, 1, against=SOLD, sold_at=1)
    shard = store.first
    knows(shard, sale=False)
    shard.fates["Return"].append(answer(UNKNOWN))
    told = await client.till_return(line, receipt=BACK, occurred_at_ns=5)
    assert told.status is Status.UNKNOWN_HOLD
    assert attempts_of(shard) == attempt_ids(1), "while its sale is not there"
    [asked] = shard.requests("GetHold")
    assert (asked.hold_id, asked.location.id) == (sale_id(1, *SOLD), 1)
    knows(shard, sale=True)
    for _ in range(2):  # the day is told again, and again
        shard.got.clear()
        shard.fates["Return"].extend([answer(UNKNOWN), answer(UNKNOWN)])
        assert (await client.till_return(line, receipt=BACK, occurred_at_ns=5)).ok
        assert attempts_of(shard) == attempt_ids(3)
        sent = [each for _, each in shard.got if isinstance(each, stock_pb2.ReturnRequest)]
        assert {each.occurred_at_ns for each in sent} == {5}


async def test_a_tills_return_that_is_refused_otherwise_is_not_tried_again(
    store: Store, client: Client
) -> None:
    exceeds = common_pb2.OperationReply(status=common_pb2.STATUS_EXCEEDS_HOLD)
    store.first.fates["Return"].append(answer(exceeds))
    told = await client.till_return(ReturnLine(7, 1, 1, against=SOLD), receipt=BACK)
    assert told.status is Status.EXCEEDS_HOLD
    assert attempts_of(store.first) == attempt_ids(1, 1)
    assert not store.first.requests("GetHold")


async def test_attempts_at_a_tills_return_have_an_end(store: Store, client: Client) -> None:
    """Each of them is of a sale that was there a moment later, which only one can be."""
    store.first.usual["Return"] = lambda _: UNKNOWN
    knows(store.first, sale=True)
    told = await client.till_return(ReturnLine(7, 1, 1, against=SOLD), receipt=BACK)
    assert told.status is Status.UNKNOWN_HOLD
    assert attempts_of(store.first) == attempt_ids(RETURN_ATTEMPTS, 1)
    assert store.first.requests("GetHold")[0].hold_id == sale_id(1, *SOLD)


async def test_what_a_tills_return_names_by_its_id_is_looked_for_everywhere(
    store: Store, client: Client
) -> None:
    order = new_op_id()
    store.gateway.fates["Return"].append(answer(UNKNOWN))
    knows(store.gateway, sale=True)
    assert (await client.till_return(ReturnLine(7, 3, 1, against=order), receipt=BACK)).ok
    assert attempts_of(store.gateway) == attempt_ids(2)
    [asked] = store.gateway.requests("GetHold")
    assert (asked.hold_id, asked.location.id) == (order, 0)
