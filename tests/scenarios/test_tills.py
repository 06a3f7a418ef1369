"""Scenario 19 as tills live it: the client of Python, gateways of gRPC, and two shards behind them."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

import pytest

from adapters.client import Client, ReceiptLine, Result, ReturnLine, Status, op_id_of, tills
from adapters.rpc.directory import DirectoryServicer
from adapters.rpc.server import open_server
from adapters.rpc.stock import StockServicer
from engine.catalogue import Catalogue
from engine.catalogue_block import CatalogueBlock
from engine.entries import Location, Sku
from engine.operations import Disposition
from engine.reference import Key
from onhand.v1 import directory_pb2_grpc, stock_pb2_grpc
from tests.property.shop import FAR, JAM, TEA
from tests.scenarios.market import LOCATIONS, MAP, SKUS, Market

SECOND = 10**9
OPENED_NS = 10**18 - 100_000 * SECOND  # long before all that the market's clock tells
CELLS = (TEA, JAM, FAR, (2, FAR[1]))
STOCK = 100


class Told(NamedTuple):
    """What a till tells: when it happened, in whole seconds, and how it is sent."""

    second: int
    is_count: bool
    send: Callable[[Client], Awaitable[Result]]


def a_day(draw: random.Random) -> list[Told]:
    """Sales, returns of them at either shop, exchanges of units, and counts of each shelf.

    An exchange is a receipt by which something comes back and something else goes. Seconds are few,
    so that much has the moment of a count.
    """
    day: list[Told] = []
    for number, cell in enumerate(CELLS):
        day.append(counted(number, cell, draw.randint(20, 60), draw.randint(0, 20)))
    for number in range(12):
        receipt, cell, second = f"S{number}", draw.choice(CELLS), draw.randint(0, 15)
        units = draw.randint(1, 4)
        day.append(sold(ReceiptLine("T1", receipt, 1), cell, units, second))
        for back in range(draw.randint(0, units)):
            later, to = second + draw.randint(0, 5), draw.choice([TEA[1], FAR[1]])
            line = ReturnLine(
                cell[0], to, 1, draw.choice(list(Disposition)), ReceiptLine("T1", receipt, 1),
                sold_at=draw.choice([cell[1], cell[1] if to != cell[1] else None]),
            )  # fmt: skip
            own = f"R{number}-{back}"
            day.append(returned(ReceiptLine("T2", own, 1), line, later))
            if draw.random() < 0.4:
                other = draw.choice([each for each in CELLS if each[1] == to])
                day.append(sold(ReceiptLine("T2", own, 2), other, 1, later))
    return day


def sold(receipt: ReceiptLine, cell: Key, units: int, second: int) -> Told:
    lines = [(*cell, units)]
    at_ns = OPENED_NS + second * SECOND

    def send(client: Client) -> Awaitable[Result]:
        return client.sale(lines, receipt_lines=[receipt], occurred_at_ns=at_ns)

    return Told(second, False, send)


def returned(receipt: ReceiptLine, line: ReturnLine, second: int) -> Told:
    at_ns = OPENED_NS + second * SECOND
    return Told(
        second,
        False,
        lambda client: client.till_return(line, receipt=receipt, occurred_at_ns=at_ns),
    )


def counted(number: int, cell: Key, units: int, second: int) -> Told:
    at_ns, op_id = OPENED_NS + second * SECOND, op_id_of("count", number)
    return Told(
        second,
        True,
        lambda client: client.count([(*cell, units)], occurred_at_ns=at_ns, op_id=op_id),
    )


@asynccontextmanager
async def shops(market: Market) -> AsyncIterator[list[Client]]:
    """A client of each of the market's gateways."""
    catalogue = Catalogue()
    catalogue.apply(
        CatalogueBlock(
            1, 1,
            skus=[Sku(f"sku-{number}") for number in range(1, SKUS + 1)],
            locations=[Location(f"shop-{number}", "USD") for number in range(1, LOCATIONS + 1)],
        )
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        clients = []
        for router in market.routers:
            stock, directory = (
                StockServicer(router, catalogue),
                DirectoryServicer(lambda: MAP, nowhere),
            )
            server = await open_server(
                [
                    partial(stock_pb2_grpc.add_StockServicer_to_server, stock),
                    partial(directory_pb2_grpc.add_DirectoryServicer_to_server, directory),
                ]
            )
            stack.push_async_callback(server.stop, 0)
            client = Client.connect(f"127.0.0.1:{server.port}", direct=False)
            clients.append(await stack.enter_async_context(client))
        yield clients


async def nowhere() -> dict[int, tuple[str, int]]:
    """The shards have no servers of their own here."""
    return {}


async def uploaded(clients: Sequence[Client], day: Sequence[Told], at_once: int) -> list[Status]:
    """Tell a day, by any gateway, so many calls at once."""
    statuses: list[Status] = []
    for first in range(0, len(day), at_once):
        calls = [
            told.send(clients[number % len(clients)])
            for number, told in enumerate(day[first : first + at_once], first)
        ]
        statuses += [result.status for result in await asyncio.gather(*calls)]
    return statuses


async def books(market: Market) -> list[tuple[int, int, int]]:
    """(on_hand, damaged, quality_control) of each cell."""
    cells = [await market.cell(each) for each in CELLS]
    return [(each.on_hand, each.damaged, each.quality_control) for each in cells]


async def in_order(day: Sequence[Told]) -> list[tuple[int, int, int]]:
    """The books when each thing is told as it happens; a count before all else of its moment."""
    async with Market.open(0) as market, shops(market) as clients:
        await market.stock(dict.fromkeys(CELLS, STOCK))
        happened = sorted(day, key=lambda told: (told.second, not told.is_count))
        assert set(await uploaded(clients, happened, 1)) == {Status.OK}
        return await books(market)


DONE = {Status.OK, Status.ALREADY_RECORDED}


@pytest.mark.parametrize("seed", range(6))
async def test_scenario_19_a_day_with_returns_that_is_told_twice_shuffled_has_one_effect(
    seed: int,
) -> None:
    """Returns are heard of before their sales and are lost by no upload, nor done by each."""
    draw = random.Random(seed)
    day = a_day(draw)
    expected = await in_order(day)
    async with Market.open(seed, lossy=0.02) as market, shops(market) as clients:
        await market.stock(dict.fromkeys(CELLS, STOCK))
        first = await uploaded(clients, draw.sample(day, len(day)), 4)
        assert {*first} - DONE == {Status.UNKNOWN_HOLD}, "some are told before their sale"
        assert {*await uploaded(clients, draw.sample(day, len(day)), 4)} <= DONE
        assert await books(market) == expected
        for at_once in (1, 8):
            assert {*await uploaded(clients, draw.sample(day, len(day)), at_once)} <= DONE
            assert await books(market) == expected


@pytest.mark.parametrize("seed", range(3))
async def test_scenario_19_a_day_is_told_again_when_all_else_of_it_is_long_forgotten(
    seed: int,
) -> None:
    """Shards at full load forget within minutes what they were asked, but not what came back."""
    draw = random.Random(seed)
    day = a_day(draw)
    expected = await in_order(day)
    async with Market.open(seed, remembered=500) as market, shops(market) as clients:
        await market.stock(dict.fromkeys(CELLS, STOCK))
        for _ in range(2):
            await uploaded(clients, draw.sample(day, len(day)), 4)
        assert await books(market) == expected
        for _ in range(2):
            await market.forget()
            assert {*await uploaded(clients, draw.sample(day, len(day)), 4)} <= DONE
            assert await books(market) == expected


async def test_scenario_19_without_further_attempts_a_return_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the days above do ask for them."""
    monkeypatch.setattr(tills, "RETURN_ATTEMPTS", 1)
    draw = random.Random(0)
    day = a_day(draw)
    async with Market.open(0) as market, shops(market) as clients:
        await market.stock(dict.fromkeys(CELLS, STOCK))
        await uploaded(clients, draw.sample(day, len(day)), 4)
        again = await uploaded(clients, draw.sample(day, len(day)), 4)
        assert {*again} - DONE == {Status.UNKNOWN_HOLD}
