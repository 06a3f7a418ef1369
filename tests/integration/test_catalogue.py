"""The catalogue's stream, on the fake journal and on a real Valkey; then its gRPC service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from actors.catalogue import CatalogueReader, CatalogueWriter, ShardCountMismatch
from actors.ports import (
    GENESIS,
    AppendInDoubt,
    Entry,
    Fenced,
    Journal,
    JournalLost,
    JournalUnavailable,
    Position,
    Unavailable,
)
from adapters.client import new_op_id
from adapters.journal import RedisJournal
from adapters.rpc import catalog
from adapters.rpc.server import OPTIONS
from engine import limits
from engine.block import Place
from engine.catalogue_block import CatalogueBlock, encode
from engine.entries import Channel, InvalidEntry, Location, Rename, Sku, Unit
from engine.framing import BlockDamaged
from engine.shard_map import ShardMap
from onhand.v1 import catalog_pb2, catalog_pb2_grpc, common_pb2
from tests.fakes.journal import FakeJournal, MemoryStream

COLA, HAM, MILK = Sku("COLA", Unit.EA), Sku("HAM", Unit.G), Sku("MILK", Unit.ML)
OSLO, ROME = Location("OSL-1", "NOK"), Location("ROM-1", "EUR")

Opener = Callable[[], Journal]


def op(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.fixture(params=["fake", "real"])
async def open_journal(request: pytest.FixtureRequest, url: str, key: str) -> AsyncIterator[Opener]:
    stream = MemoryStream()
    opened: list[Journal] = []

    def make() -> Journal:
        real = request.param == "real"
        opened.append(RedisJournal(url, key) if real else FakeJournal(stream))
        return opened[-1]

    yield make
    for journal in opened:
        await journal.close()


async def start(journal: Journal, shards: int = 2) -> CatalogueWriter:
    writer = CatalogueWriter(CatalogueReader(journal), shards=shards)
    await writer.start()
    return writer


# --------------------------------------------------------------------- on the fake and the real --


async def test_a_new_stream_gets_a_shard_map_first(open_journal: Opener) -> None:
    reader = CatalogueReader(open_journal())
    assert await reader.refresh() == GENESIS
    assert not reader.has_shard_map
    with pytest.raises(Unavailable):
        _ = reader.shard_map
    await start(open_journal(), shards=3)
    assert await reader.refresh() == Position(1, 1)
    assert reader.shard_map == ShardMap(1, 3)


async def test_additions_reach_every_reader_and_survive_a_restart(open_journal: Opener) -> None:
    early = CatalogueReader(open_journal())
    writer = await start(open_journal())
    assert await writer.add_skus([COLA, HAM, COLA]) == ([1, 2, 1], 2)
    assert await writer.add_locations([OSLO]) == ([1], 1)
    assert await early.refresh() == Position(1, 3)

    restarted = await start(open_journal())
    assert await restarted.add_skus([HAM, MILK]) == ([2, 3], 1)
    assert await restarted.add_locations([ROME, OSLO]) == ([2, 1], 1)
    late = CatalogueReader(open_journal())
    assert await early.refresh() == await late.refresh() == Position(2, 2)
    for reader in (early, late):
        assert [reader.catalogue.sku(i) for i in (1, 2, 3)] == [COLA, HAM, MILK]
        assert [reader.catalogue.location(i) for i in (1, 2)] == [OSLO, ROME]
        assert list(reader.places(0)) == [Place(1, True, 578), Place(2, False, 978)]
        assert list(reader.places(1, after=1)) == [Place(2, True, 978)]


async def test_a_new_code_reaches_every_reader_and_survives_a_restart(open_journal: Opener) -> None:
    early = CatalogueReader(open_journal())
    writer = await start(open_journal())
    await writer.add_skus([COLA, HAM])
    assert await writer.rename_sku(op(1), Rename(1, "COLA-33"))
    assert not await writer.rename_sku(op(2), Rename(1, "COLA-33"))
    assert await early.refresh() == Position(1, 4)
    restarted = await start(open_journal())
    with pytest.raises(InvalidEntry, match="an old code"):
        await restarted.rename_sku(op(3), Rename(2, "COLA"))
    assert await restarted.add_skus([COLA, MILK]) == ([1, 3], 1)
    late = CatalogueReader(open_journal())
    assert await early.refresh() == await late.refresh() == Position(2, 1)
    for reader in (early, late, restarted._reader):
        assert reader.catalogue.sku(1) == COLA._replace(code="COLA-33")
        assert [reader.catalogue.sku_id(code) for code in ("COLA", "COLA-33", "HAM")] == [1, 1, 2]


async def test_another_number_of_shards_is_refused_and_shuts_nobody_out(
    open_journal: Opener,
) -> None:
    writer = await start(open_journal(), shards=2)
    with pytest.raises(ShardCountMismatch, match="of 2 shards and cannot be opened with 3"):
        await start(open_journal(), shards=3)
    assert await writer.add_skus([COLA]) == ([1], 1)


async def test_a_successor_shuts_the_old_owner_out(open_journal: Opener) -> None:
    old = await start(open_journal())
    new = await start(open_journal())
    ended = asyncio.create_task(old.ended())
    with pytest.raises(Fenced):
        await old.add_skus([COLA])
    assert isinstance(await ended, Fenced)
    with pytest.raises(Fenced):
        await old.add_locations([OSLO])
    assert await new.add_skus([HAM]) == ([1], 1)


async def test_an_owner_that_reads_its_successors_blocks_knows_that_it_is_out(
    open_journal: Opener,
) -> None:
    journal = open_journal()
    reader = CatalogueReader(journal)
    old = CatalogueWriter(reader, shards=2)
    await old.start()
    new = await start(open_journal())
    await new.add_skus([COLA])
    await reader.refresh()
    assert await old.add_skus([COLA]) == ([1], 0)  # which stays true
    with pytest.raises(Fenced):
        await old.add_skus([HAM])
    assert isinstance(await old.ended(), Fenced)


async def test_concurrent_additions_of_one_code_give_one_id(open_journal: Opener) -> None:
    writer = await start(open_journal())
    answers = await asyncio.gather(*(writer.add_skus([COLA, HAM]) for _ in range(20)))
    assert all(ids == [1, 2] for ids, _ in answers)
    assert sum(added for _, added in answers) == 2
    many = await asyncio.gather(*(writer.add_skus([Sku(f"S{n}")]) for n in range(20)))
    assert sorted(ids[0] for ids, _ in many) == list(range(3, 23))


async def test_readers_of_one_process_may_overtake_the_writer(open_journal: Opener) -> None:
    writer = await start(open_journal())
    reader = writer._reader
    going = True

    async def keep_reading() -> None:
        while going:
            await reader.refresh()
            await asyncio.sleep(0)  # the fake one never waits

    reading = [asyncio.create_task(keep_reading()) for _ in range(3)]
    for n in range(1, 30):
        assert await writer.add_skus([Sku(f"S{n}")]) == ([n], 1)
    going = False
    await asyncio.gather(*reading)
    assert reader.catalogue.skus == 29


# ----------------------------------------------------------------------------------- on the fake --


async def test_a_reader_is_asked_the_end_of_the_stream_while_its_writer_moves_it() -> None:
    """What the journal says may be older than what was taken in meanwhile; nothing is lost then."""

    class Slow(FakeJournal):
        asked: asyncio.Event | None = None
        answer = asyncio.Event()

        async def last(self) -> Position | None:
            seen = self.stream.last
            if self.asked is not None:
                self.asked.set()
                await self.answer.wait()
            return seen

    journal = Slow(MemoryStream())
    writer = await start(journal)
    journal.asked = asyncio.Event()
    refreshing = asyncio.create_task(writer._reader.refresh())
    await journal.asked.wait()
    await writer.add_skus([COLA])
    journal.answer.set()
    assert await refreshing == journal.stream.last


class CountingJournal(FakeJournal):
    """Counts its reads, and how many of them were under way at once."""

    reads = lasts = under_way = most = 0
    failure: Exception | None = None

    async def last(self) -> Position | None:
        self.lasts += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.001)
        self.under_way -= 1
        if self.failure is not None:
            raise self.failure
        return await super().last()

    async def read(
        self, after: Position | None, upto: Position | None = None
    ) -> AsyncIterator[Entry]:
        self.reads += 1
        async for entry in super().read(after, upto):
            yield entry


async def test_refreshes_share_a_read_and_a_quiet_stream_is_not_read() -> None:
    stream = MemoryStream()
    writer = await start(FakeJournal(stream))
    journal = CountingJournal(stream)
    reader = CatalogueReader(journal)
    await reader.refresh()
    assert (journal.reads, journal.lasts) == (1, 1)
    await asyncio.gather(*(reader.refresh() for _ in range(100)))
    assert (journal.reads, journal.lasts, journal.most) == (1, 3, 1)  # the first, and all others

    under_way = asyncio.create_task(reader.refresh())
    await asyncio.sleep(0)
    await writer.add_skus([COLA])
    joined = [asyncio.create_task(reader.refresh()) for _ in range(50)]
    await asyncio.gather(under_way, *joined)
    assert reader.catalogue.skus == 1
    assert (journal.lasts, journal.most) == (5, 1)


async def test_a_refresh_sees_what_was_durable_before_it_was_called() -> None:
    """A read that is under way may have looked too early, so it must not answer."""
    stream = MemoryStream()
    writer = await start(FakeJournal(stream))
    reader = CatalogueReader(CountingJournal(stream))

    async def check(n: int) -> None:
        await asyncio.sleep(n * 0.0003)
        await writer.add_skus([Sku(f"S{n}")])
        await reader.refresh()
        assert reader.catalogue.sku_id(f"S{n}")

    await asyncio.gather(*(check(n) for n in range(50)))


async def test_a_refresh_that_fails_or_is_cancelled_is_not_the_last() -> None:
    stream = MemoryStream()
    await start(FakeJournal(stream))
    journal = CountingJournal(stream)
    reader = CatalogueReader(journal)
    journal.failure = JournalUnavailable("gone")
    results = await asyncio.gather(*(reader.refresh() for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, JournalUnavailable) for result in results)
    assert journal.lasts == 2  # the first, and all others
    journal.failure = None
    leader, follower = (asyncio.create_task(reader.refresh()) for _ in range(2))
    await asyncio.sleep(0)
    leader.cancel()
    assert await follower == Position(1, 1)
    assert leader.cancelled()


async def test_a_stream_that_went_back_is_lost() -> None:
    stream = MemoryStream()
    writer = await start(FakeJournal(stream))
    await writer.add_skus([COLA])
    del stream.entries[-1]
    stream.last = stream.entries[-1][0]
    with pytest.raises(JournalLost):
        await writer._reader.refresh()


async def test_a_read_may_see_a_block_before_its_append_returns() -> None:
    class Quick(FakeJournal):
        async def append(self, position: Position, payload: bytes) -> None:
            await super().append(position, payload)
            await reader.refresh()

    reader = CatalogueReader(Quick(MemoryStream()))
    writer = CatalogueWriter(reader, shards=1)
    await writer.start()
    assert await writer.add_skus([COLA]) == ([1], 1)
    assert await writer.add_skus([HAM]) == ([2], 1)


async def test_readers_are_told_before_the_answer() -> None:
    stream = MemoryStream()
    shard = CatalogueReader(FakeJournal(stream))
    told: list[Position] = []

    async def tell(at: Position) -> None:
        told.append(at)
        assert await shard.refresh() >= at

    writer = CatalogueWriter(CatalogueReader(FakeJournal(stream)), shards=1, on_change=tell)
    await writer.start()
    await writer.add_skus([COLA])
    assert shard.catalogue.skus == 1
    await writer.add_skus([COLA])
    await writer.add_locations([OSLO])
    assert told == [Position(1, 2), Position(1, 3)]  # nothing new, nothing to tell


async def test_a_repeated_addition_tells_whom_the_first_could_not_reach() -> None:
    reachable = False
    told: list[Position] = []

    async def tell(at: Position) -> None:
        if not reachable:
            raise Unavailable("shard 0")
        told.append(at)

    writer = CatalogueWriter(CatalogueReader(FakeJournal(MemoryStream())), shards=1, on_change=tell)
    await writer.start()
    with pytest.raises(Unavailable):
        await writer.add_skus([COLA])
    reachable = True
    assert await writer.add_skus([COLA]) == ([1], 0)
    assert told == [Position(1, 2)]


async def test_an_addition_whose_caller_gives_up_is_carried_out() -> None:
    stream = MemoryStream()
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    journal = FakeJournal(stream, wait)
    gate.set()
    writer = await start(journal)
    gate.clear()
    call = asyncio.create_task(writer.add_skus([COLA]))
    await asyncio.sleep(0.001)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert call.cancelled()
    gate.set()
    await writer.close()
    assert writer._reader.catalogue.skus == 1
    with pytest.raises(Unavailable):
        await writer.add_skus([HAM])


@pytest.mark.parametrize("fault", ["lose_request", "lose_reply"])
async def test_a_doubt_ends_the_owner_and_its_successor_settles_it(fault: str) -> None:
    stream = MemoryStream()
    journal = FakeJournal(stream)
    writer = await start(journal)
    journal.faults.append(fault)
    with pytest.raises(AppendInDoubt):
        await writer.add_skus([COLA])
    assert isinstance(await writer.ended(), AppendInDoubt)
    assert writer._reader.catalogue.skus == 0  # memory is never ahead of the journal
    with pytest.raises(AppendInDoubt):
        await writer.add_skus([HAM])
    successor = await start(FakeJournal(stream))
    assert await successor.add_skus([HAM]) == ([2] if fault == "lose_reply" else [1], 1)


async def test_a_journal_that_refused_may_be_tried_again() -> None:
    journal = FakeJournal(MemoryStream())
    writer = await start(journal)
    journal.faults.append("refuse")
    with pytest.raises(JournalUnavailable):
        await writer.add_skus([COLA, HAM])
    assert writer._reader.catalogue.skus == 0
    assert await writer.add_skus([HAM]) == ([1], 1)


async def test_a_writer_that_was_not_started_owns_nothing() -> None:
    writer = CatalogueWriter(CatalogueReader(FakeJournal(MemoryStream())), shards=1)
    with pytest.raises(Unavailable):
        await writer.add_skus([COLA])


async def test_a_malformed_entry_adds_nothing_and_ends_nothing() -> None:
    writer = await start(FakeJournal(MemoryStream()))
    with pytest.raises(InvalidEntry):
        await writer.add_skus([COLA, Sku("")])
    assert await writer.add_skus([HAM]) == ([1], 1)


async def written() -> MemoryStream:
    stream = MemoryStream()
    writer = await start(FakeJournal(stream))  # 1-0 opens, 1-1 is the shard map
    for entry in (COLA, HAM, MILK):
        await writer.add_skus([entry])
    return stream


async def test_a_stream_with_a_hole_is_refused() -> None:
    stream = await written()
    del stream.entries[3]  # between COLA and MILK
    reader = CatalogueReader(FakeJournal(stream))
    with pytest.raises(BlockDamaged, match="1-4: it does not follow 1-2"):
        await reader.refresh()
    assert (reader.at, reader.catalogue.skus) == (Position(1, 2), 1)


async def test_a_flipped_bit_is_refused_and_named() -> None:
    stream = await written()
    position, payload = stream.entries[3]
    stream.entries[3] = (position, payload[:-9] + bytes([payload[-9] ^ 1]) + payload[-8:])
    with pytest.raises(BlockDamaged, match="catalogue block 1-3: the CRC32C"):
        await CatalogueReader(FakeJournal(stream)).refresh()


@pytest.mark.parametrize(
    "block",
    [
        CatalogueBlock(1, 9, 0, 3, 0, [Sku("X")]),  # says that it is another block
        CatalogueBlock(1, 5, 0, 3, 0, [Sku("X")]),  # follows another block 1-4
        CatalogueBlock(1, 5, 0, 3, 0, shard_map=ShardMap(2, 2).encode()),
        CatalogueBlock(3, 0, nonce=b"n"),  # an epoch is missing
    ],
)
async def test_a_block_of_another_history_is_refused(block: CatalogueBlock) -> None:
    stream = await written()
    position = Position(3, 0) if block.opens_epoch else Position(1, 5)
    stream.add(position, encode(block))
    with pytest.raises(BlockDamaged, match=f"catalogue block {position}: it "):
        await CatalogueReader(FakeJournal(stream)).refresh()


async def test_a_start_that_loses_the_stream_at_once_is_fenced() -> None:
    stream = MemoryStream()
    await start(FakeJournal(stream))

    class Overtaken(FakeJournal):
        async def take_over(
            self, opening: Callable[[Position], bytes], *, known: Position | None = None
        ) -> Position:
            opened = await super().take_over(opening, known=known)
            await start(FakeJournal(stream))
            return opened

    with pytest.raises(Fenced):
        await start(Overtaken(stream))


async def test_a_shard_map_that_is_none_is_refused() -> None:
    reader = (await start(FakeJournal(MemoryStream())))._reader
    block = CatalogueBlock(1, 2, reader._crc, shard_map=b"?")
    with pytest.raises(BlockDamaged, match="not a shard map"):
        reader.absorb(Position(1, 2), encode(block))
    assert (reader.at, reader.shard_map.version) == (Position(1, 1), 1)


async def test_a_newer_shard_map_is_taken_and_an_older_one_refused() -> None:
    reader = (await start(FakeJournal(MemoryStream())))._reader
    reader.absorb(*reader.following(shard_map=ShardMap(2, 2, {1: (1,)})))
    assert reader.shard_map.owners(1) == (1,)
    with pytest.raises(BlockDamaged, match="version 2 again"):
        reader.absorb(*reader.following(shard_map=ShardMap(2, 2)))


# ----------------------------------------------------------------------------------- the service --


class Service:
    def __init__(self, channel: grpc.aio.Channel, writer: CatalogueWriter | None) -> None:
        self.stub = catalog_pb2_grpc.CatalogStub(channel)
        self.writer = writer


@pytest.fixture
async def stream() -> MemoryStream:
    return MemoryStream()


Serve = Callable[[CatalogueReader, CatalogueWriter | None], Awaitable[Service]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    servers: list[grpc.aio.Server] = []
    channels: list[grpc.aio.Channel] = []

    async def begin(reader: CatalogueReader, writer: CatalogueWriter | None) -> Service:
        server = grpc.aio.server(options=OPTIONS)
        servicer = catalog.CatalogServicer(reader, writer)
        catalog_pb2_grpc.add_CatalogServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        return Service(channels[-1], writer)

    yield begin
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(None)


@pytest.fixture
async def gateway(serve: Serve, stream: MemoryStream) -> Service:
    writer = await start(FakeJournal(stream), shards=2)
    return await serve(writer._reader, writer)


def entry(code: str, **fields: object) -> catalog_pb2.SkuEntry:
    return catalog_pb2.SkuEntry(code=code, **fields)  # type: ignore[arg-type]


async def violation(call: Awaitable[object]) -> tuple[str, str]:
    """The field and the description that a call was refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]  # AioRpcError does
    bad_request = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(bad_request)
    (found,) = bad_request.field_violations
    assert refused.value.details() == f"{found.field}: {found.description}"
    return found.field, found.description


async def test_what_was_added_is_listed(gateway: Service) -> None:
    cola = entry("COLA", unit=1, description="Weißglas", gtins=["96385074", "036000291452"])
    reply = await gateway.stub.AddSkus(catalog_pb2.AddSkusRequest(skus=[cola, entry("B"), cola]))
    assert (list(reply.ids), reply.added) == ([1, 2, 1], 2)
    again = await gateway.stub.AddSkus(catalog_pb2.AddSkusRequest(skus=[entry("B")]))
    assert (list(again.ids), again.added) == ([2], 0)
    listed = await gateway.stub.ListSkus(catalog_pb2.ListSkusRequest())
    cola.id = 1
    assert list(listed.skus) == [cola, entry("B", id=2)]
    assert listed.next_id == 0

    rows = [catalog_pb2.LocationEntry(code=f"L{n}", currency="CHF") for n in range(3)]
    added = await gateway.stub.AddLocations(catalog_pb2.AddLocationsRequest(locations=rows))
    assert (list(added.ids), added.added) == ([1, 2, 3], 3)
    known = (await gateway.stub.ListLocations(catalog_pb2.ListLocationsRequest())).locations
    assert [(row.id, row.code, row.currency, row.shard) for row in known] == [
        (1, "L0", "CHF", 0),
        (2, "L1", "CHF", 1),
        (3, "L2", "CHF", 0),
    ]


async def test_a_bundle_is_added_and_listed_by_its_components(gateway: Service) -> None:
    add = gateway.stub.AddSkus
    parts = [
        catalog_pb2.Component(sku=common_pb2.Sku(code="COLA"), quantity=6),
        catalog_pb2.Component(sku=common_pb2.Sku(id=2), quantity=250),
    ]
    box = entry("BOX", components=parts)
    call = add(catalog_pb2.AddSkusRequest(skus=[entry("COLA"), box]))
    reason = "is not in the catalogue; add components before what is made of them"
    assert await violation(call) == ("skus[1].components[0].sku", reason)
    await add(catalog_pb2.AddSkusRequest(skus=[entry("COLA"), entry("HAM", unit=1)]))
    for _ in range(2):
        assert list((await add(catalog_pb2.AddSkusRequest(skus=[box]))).ids) == [3]
    listed = await gateway.stub.ListSkus(catalog_pb2.ListSkusRequest(from_id=3))
    assert [(part.sku.id, part.sku.code, part.quantity) for part in listed.skus[0].components] == [
        (1, "COLA", 6),
        (2, "HAM", 250),
    ]


async def test_a_renamed_sku_is_listed_with_its_old_codes(gateway: Service) -> None:
    await gateway.stub.AddSkus(catalog_pb2.AddSkusRequest(skus=[entry("COLA"), entry("HAM")]))

    def rename(old: str, new: str) -> Awaitable[Any]:
        named = common_pb2.Sku(code=old)
        return gateway.stub.RenameSku(
            catalog_pb2.RenameSkuRequest(op_id=new_op_id(), sku=named, code=new)
        )

    for old, new, changed in (
        ("COLA", "COLA-33", True),
        ("COLA", "COLA-33", False),
        ("COLA-33", "COLA-330", True),
    ):
        reply = await rename(old, new)
        assert (reply.id, reply.changed) == (1, changed)
    listed = await gateway.stub.ListSkus(catalog_pb2.ListSkusRequest())
    assert list(listed.skus) == [
        entry("COLA-330", id=1, old_codes=["COLA", "COLA-33"]),
        entry("HAM", id=2),
    ]
    assert await violation(rename("HAM", "COLA")) == (
        "code",
        "'COLA' is an old code, which stays known, of SKU 1: 'COLA-330'",
    )
    assert await violation(rename("TEA", "TEE")) == ("sku", "is not in the catalogue")
    assert (await violation(rename("HAM", "x" * 65)))[0] == "code"


async def test_a_change_that_is_sent_again_undoes_nothing_that_has_changed_since(
    open_journal: Opener,
) -> None:
    """Also when another owner is asked, and when the first attempt found nothing to change."""
    early = CatalogueReader(open_journal())
    writer = await start(open_journal())
    await writer.add_skus([COLA, HAM])
    assert await writer.rename_sku(op(1), Rename(1, "COLA-33"))
    assert not await writer.rename_sku(op(2), Rename(1, "COLA-33"))
    assert await writer.rename_sku(op(3), Rename(1, "COLA-330"))
    assert await writer.set_channel(op(4), Channel("app")) == (1, True)
    assert await writer.set_channel(op(5), Channel("web", 1)) == (2, True)
    assert await writer.set_channel(op(6), Channel("web", 2)) == (2, True)
    for owner in (writer, await start(open_journal())):
        assert await owner.rename_sku(op(1), Rename(1, "COLA-33"))
        assert not await owner.rename_sku(op(2), Rename(1, "COLA-33"))
        assert await owner.set_channel(op(5), Channel("web", 1)) == (2, True)
        for other in (Rename(1, "COLA"), Rename(2, "COLA-33")):
            with pytest.raises(InvalidEntry, match="op_id: was used by a request with other"):
                await owner.rename_sku(op(1), other)
        for number, channel in ((5, Channel("web", 3)), (1, Channel("web", 1))):
            with pytest.raises(InvalidEntry, match="op_id: was used by a request with other"):
                await owner.set_channel(op(number), channel)
    await early.refresh()
    assert early.catalogue.sku(1).code == "COLA-330"
    assert early.catalogue.channels.channel(2) == Channel("web", 2)


async def test_an_id_is_of_one_change_whichever_call_it_came_with(gateway: Service) -> None:
    await gateway.stub.AddSkus(catalog_pb2.AddSkusRequest(skus=[entry("COLA")]))
    web = catalog_pb2.SetChannelRequest(op_id=op(7), channel=catalog_pb2.Channel(code="web"))
    replies = [await gateway.stub.SetChannel(web) for _ in range(2)]
    assert replies == [catalog_pb2.SetChannelReply(number=1, changed=True)] * 2
    cola = common_pb2.Sku(code="COLA")
    renaming = catalog_pb2.RenameSkuRequest(op_id=op(7), sku=cola, code="COLA-33")
    told = ("op_id", "was used by a request with other content")
    assert await violation(gateway.stub.RenameSku(renaming)) == told
    listed = await gateway.stub.ListSkus(catalog_pb2.ListSkusRequest())
    assert [sku.code for sku in listed.skus] == ["COLA"]


async def test_a_channel_is_set_and_listed(
    gateway: Service, serve: Serve, stream: MemoryStream
) -> None:
    rows = [catalog_pb2.LocationEntry(code=f"L{n}", currency="CHF") for n in range(3)]
    await gateway.stub.AddLocations(catalog_pb2.AddLocationsRequest(locations=rows))
    web = catalog_pb2.Channel(code="web", buffer=2)
    web.locations.add(location=common_pb2.Location(code="L2"), buffer=0)
    web.locations.add(location=common_pb2.Location(id=1))
    app = catalog_pb2.Channel(code="app", only_listed=True)
    for channel, answer in ((web, (1, True)), (app, (2, True)), (web, (1, False))):
        reply = await gateway.stub.SetChannel(
            catalog_pb2.SetChannelRequest(op_id=new_op_id(), channel=channel)
        )
        assert (reply.number, reply.changed) == answer
    reader = CatalogueReader(FakeJournal(stream))
    await reader.refresh()
    shard = await serve(reader, None)
    for service in (gateway, shard):
        listed = await service.stub.ListChannels(catalog_pb2.ListChannelsRequest())
        assert (listed.next_number, len(listed.channels)) == (0, 2)
        found, other = listed.channels
        assert (found.number, found.code, found.buffer, found.only_listed) == (1, "web", 2, False)
        assert [
            (at.location.id, at.location.code, at.HasField("buffer"), at.buffer)
            for at in found.locations
        ] == [(1, "L0", False, 0), (3, "L2", True, 0)]
        assert (other.number, other.code, other.only_listed) == (2, "app", True)
    assert [place.buffers for place in reader.places(0)] == [(0, 2, -1), (), (0, 0, -1)]
    code, details = await code_of(shard.stub.SetChannel(catalog_pb2.SetChannelRequest()))
    assert (code, "gateway" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)


async def test_channels_that_make_no_sense_are_told_what_is_wrong(gateway: Service) -> None:
    async def told(**fields: Any) -> tuple[str, str]:
        channel = catalog_pb2.Channel(**fields)
        request = catalog_pb2.SetChannelRequest(op_id=new_op_id(), channel=channel)
        return await violation(gateway.stub.SetChannel(request))

    assert (await told())[0] == "channel.code"
    assert (await told(code="web", buffer=-1))[0] == "channel.buffer"
    at = catalog_pb2.ChannelLocation(location=common_pb2.Location(code="nowhere"))
    assert await told(code="web", locations=[at]) == (
        "channel.locations[0].location",
        "is not in the catalogue",
    )
    listed = await gateway.stub.ListChannels(catalog_pb2.ListChannelsRequest())
    assert len(listed.channels) == 0


async def test_channels_come_in_pages(gateway: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gateway.writer is not None
    for n in range(5):
        await gateway.writer.set_channel(op(n), Channel(f"c{n}"))
    monkeypatch.setattr(catalog, "PAGE_BYTES", 12)  # two channels of six bytes
    numbers, at = [], 1
    while at:
        page = await gateway.stub.ListChannels(catalog_pb2.ListChannelsRequest(from_number=at))
        numbers.append([channel.number for channel in page.channels])
        at = page.next_number
    assert numbers == [[1, 2], [3, 4], [5]]


async def test_rules_of_channels_are_read_by_every_shard_before_they_are_answered() -> None:
    stream = MemoryStream()
    shard = CatalogueReader(FakeJournal(stream))
    told = []

    async def tell(at: Position) -> None:
        told.append((at, await shard.refresh()))

    writer = CatalogueWriter(CatalogueReader(FakeJournal(stream)), shards=1, on_change=tell)
    await writer.start()
    await writer.add_locations([OSLO])
    assert await writer.set_channel(op(1), Channel("web", 4)) == (1, True)
    assert [place.buffers for place in shard.places(0)] == [(0, 4)]
    assert await writer.set_channel(op(2), Channel("web", 4)) == (1, False)
    assert told[-1][0] == told[-1][1] == stream.last
    assert len(told) == 3


async def test_a_request_that_is_too_long_says_so(gateway: Service) -> None:
    """Before gRPC refuses it by its own limit; entries are fewer when they are long."""
    most, notes = limits.MAX_CATALOG_BYTES, "\U0001f9c0" * limits.MAX_DESCRIPTION
    rows = [entry(f"S{n}", description=notes) for n in range(9_000)]
    request = catalog_pb2.AddSkusRequest(skus=rows)
    field, description = await violation(gateway.stub.AddSkus(request))
    assert field == "skus"
    limit = f"must be at most {most}; send fewer at a time"
    assert description == f"{request.ByteSize()} bytes, {limit}"
    del rows[7_500:]
    reply = await gateway.stub.AddSkus(catalog_pb2.AddSkusRequest(skus=rows))
    assert reply.added == 7_500


async def pages(service: Service, page_size: int) -> list[list[int]]:
    found, next_id = [], 0
    while True:
        request = catalog_pb2.ListSkusRequest(from_id=next_id, page_size=page_size)
        reply = await service.stub.ListSkus(request)
        found.append([row.id for row in reply.skus])
        next_id = reply.next_id
        if not next_id:
            return found


async def test_lists_come_in_pages(gateway: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await pages(gateway, 0) == [[]]
    assert gateway.writer is not None
    await gateway.writer.add_skus([Sku(f"S{n}") for n in range(7)])
    assert await pages(gateway, 3) == [[1, 2, 3], [4, 5, 6], [7]]
    assert await pages(gateway, 7) == [[1, 2, 3, 4, 5, 6, 7]]
    monkeypatch.setattr(catalog, "PAGE_BYTES", 12)  # two entries of six bytes
    assert await pages(gateway, 0) == [[1, 2], [3, 4], [5, 6], [7]]
    beyond = await gateway.stub.ListSkus(catalog_pb2.ListSkusRequest(from_id=8))
    assert (len(beyond.skus), beyond.next_id) == (0, 0)
    request = catalog_pb2.ListSkusRequest(page_size=limits.MAX_CATALOG_ENTRIES + 1)
    assert await violation(gateway.stub.ListSkus(request)) == (
        "page_size",
        "10001, must be at most 10000",
    )


async def test_locations_come_in_pages(gateway: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(from_id: int) -> tuple[list[int], int]:
        request = catalog_pb2.ListLocationsRequest(from_id=from_id)
        reply = await gateway.stub.ListLocations(request)
        return [each.id for each in reply.locations], reply.next_id

    assert await page(0) == ([], 0)
    assert gateway.writer is not None
    await gateway.writer.add_locations([Location(f"L{n}", "USD") for n in range(5)])
    assert await page(0) == ([1, 2, 3, 4, 5], 0)
    assert await page(4) == ([4, 5], 0)
    assert await page(6) == ([], 0)
    monkeypatch.setattr(catalog, "PAGE_BYTES", 12)
    assert [await page(first) for first in (1, 3, 5)] == [([1, 2], 3), ([3, 4], 5), ([5], 0)]


async def test_the_largest_entries_can_be_listed(gateway: Service) -> None:
    assert gateway.writer is not None
    wide = "\U0001f9c0" * limits.MAX_DESCRIPTION
    await gateway.writer.add_skus([Sku(f"S{n}", 0, wide) for n in range(10_000)])
    assert [i for page in await pages(gateway, 0) for i in page] == list(range(1, 10_001))


async def test_malformed_requests_are_told_what_is_wrong(gateway: Service) -> None:
    add = gateway.stub.AddSkus
    request = catalog_pb2.AddSkusRequest
    assert await violation(add(request(skus=[entry("a"), entry("b"), entry("c"), entry("")]))) == (
        "skus[3].code",
        "0 characters, must be 1 to 64",
    )
    assert await violation(add(request())) == ("skus", "0 entries, must be 1 to 10000")
    many = [entry("a")] * (limits.MAX_CATALOG_ENTRIES + 1)
    assert (await violation(add(request(skus=many))))[0] == "skus"
    assert (await violation(add(request(skus=[entry("a", unit=7)]))))[0] == "skus[0].unit"
    location = catalog_pb2.LocationEntry(code="L", currency="Euro")
    call = gateway.stub.AddLocations(catalog_pb2.AddLocationsRequest(locations=[location]))
    assert (await violation(call))[0] == "locations[0].currency"
    call = gateway.stub.AddLocations(catalog_pb2.AddLocationsRequest())
    assert (await violation(call))[0] == "locations"
    assert await pages(gateway, 0) == [[]]


async def code_of(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details() or ""


async def test_a_shard_lists_and_sends_additions_to_a_gateway(
    gateway: Service, serve: Serve, stream: MemoryStream
) -> None:
    assert gateway.writer is not None
    await gateway.writer.add_skus([COLA])
    reader = CatalogueReader(FakeJournal(stream))
    await reader.refresh()
    shard = await serve(reader, None)
    assert await pages(shard, 0) == [[1]]
    for call in (
        shard.stub.AddSkus(catalog_pb2.AddSkusRequest(skus=[entry("a")])),
        shard.stub.AddLocations(catalog_pb2.AddLocationsRequest()),
        shard.stub.RenameSku(catalog_pb2.RenameSkuRequest()),
    ):
        code, details = await code_of(call)
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert "gateway" in details


async def test_journal_faults_and_a_full_catalogue_have_codes_of_their_own(
    gateway: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add() -> Awaitable[object]:
        return gateway.stub.AddSkus(catalog_pb2.AddSkusRequest(skus=[entry("a")]))

    assert gateway.writer is not None
    journal = gateway.writer._journal
    assert isinstance(journal, FakeJournal)
    with monkeypatch.context() as patch:
        patch.setattr(limits, "MAX_SKUS", 0)
        # Not RESOURCE_EXHAUSTED: that says that the servers are busy, and to try again.
        code, details = await code_of(add())
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert details == "0 SKUs is the most, there are 0"
    journal.faults.append("refuse")
    code, details = await code_of(add())
    assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "nothing was added: refused")
    journal.faults.append("lose_reply")
    code, details = await code_of(add())
    assert code == grpc.StatusCode.UNAVAILABLE
    assert "not known" in details
    assert isinstance(await gateway.writer.ended(), AppendInDoubt)
