"""Scenario 18 from end to end: each operation is told, by a real journal, to a real client."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import aclosing

from adapters.client import Client, Event, EventKind, ReturnLine
from adapters.client.frames import EventFrame
from tests.e2e.conftest import Shop
from tests.e2e.test_kill import dies

K = EventKind


class Reader:
    """Reads events of a location until it has as many as it wants."""

    def __init__(self, client: Client, location: str, **how: object) -> None:
        self.frames = client.events(locations=[location], heartbeat_ms=200, **how)  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.last: EventFrame | None = None

    async def until(self, count: int) -> list[Event]:
        async with asyncio.timeout(30):
            while len(self.events) < count or self.last is None:
                self.last = await anext(self.frames)
                self.events += self.last
        return self.events


async def test_scenario_18_sold_one_and_restocked_one_are_two_events(shop: Shop) -> None:
    """And so is every step of an order, one that runs out, and what is done while a shard dies."""
    goods = await shop.goods(skus=2, stock=10)
    tea, jam = goods.sku_codes
    (at,) = goods.location_codes
    gateway = await asyncio.to_thread(lambda: shop.stack.gateway_address)
    async with Client.connect(gateway) as client:
        reader = Reader(client, at)
        async with aclosing(reader.frames):
            await reader.until(0)
            assert reader.last is not None
            began = reader.last.resume_token
            first = await client.sale([(tea, at, 1)])
            await client.return_([ReturnLine(tea, at, 1)])
            order = await client.reserve([(tea, at, 2), (jam, at, 3)])
            await client.commit(order)
            await client.fulfil(order)
            lost = await client.reserve([(jam, at, 4)], ttl_ms=1)
            told = [(each.kind, each.sku, each.quantity) for each in await reader.until(10)]
            ids = dict(zip((tea, jam), goods.skus, strict=True))
            assert told == [
                (K.SALE, ids[tea], 1),
                (K.RETURN, ids[tea], 1),
                *((kind, ids[sku], units) for kind in (K.RESERVE, K.COMMIT, K.FULFIL)
                  for sku, units in ((tea, 2), (jam, 3))),
                (K.RESERVE, ids[jam], 4),
                (K.EXPIRED, ids[jam], 4),
            ][:10]  # fmt: skip
            assert (await reader.until(10))[9].kind is K.EXPIRED
            assert {each.hold for each in reader.events[2:8]} == {order.hold_id}
            assert reader.events[8].hold == lost.hold_id
            assert reader.events[0].op_id == first.op_id
            assert (reader.events[0].epoch, reader.events[0].seq) == (first.epoch, first.seq)

            await dies(shop.stack, "shard-0")
            await client.sale([(tea, at, 1)])
            await client.return_([ReturnLine(tea, at, 1)])
            after_death = await reader.until(12)
            assert [each.kind for each in after_death[10:]] == [K.SALE, K.RETURN]
        # From the first token, from a reply's block, and from the oldest, by way of the journal.
        place = (first.shard, first.epoch, first.seq)
        for how, skipped in (
            ({"resume_token": began}, 0),
            ({"after": [place]}, 1),
            ({"oldest": True}, -2),
        ):
            again = Reader(client, at, **how)
            async with aclosing(again.frames):
                events = await again.until(12 - skipped)
            assert events[max(0, -skipped) :] == reader.events[max(0, skipped) :]


async def test_the_command_line_shows_events(shop: Shop) -> None:
    goods = await shop.goods(stock=3)
    (tea,), (at,) = goods.sku_codes, goods.location_codes
    gateway = await asyncio.to_thread(lambda: shop.stack.gateway_address)
    command = [sys.executable, "-m", "adapters.cli.main", "watch", at, "--events", "--oldest"]
    process = await asyncio.create_subprocess_exec(
        *command, "--json", "--gateway", gateway, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    async with Client.connect(gateway) as client:
        await client.rename_sku(tea, f"{tea}-new")
        async with asyncio.timeout(60):
            shown = [json.loads(await process.stdout.readline())]
            sold = await client.sale([(tea, at, 1)])
            shown.append(json.loads(await process.stdout.readline()))
    process.terminate()
    await process.wait()
    assert [(each["event"], each["quantity"]) for each in shown] == [("RECEIVE", 3), ("SALE", 1)]
    assert shown[1]["sku"] == f"{tea}-new"
    assert shown[1]["op_id"] == sold.op_id.hex()
    assert shown[1]["at"].startswith(f"{sold.shard}/{sold.epoch}-{sold.seq}/")
