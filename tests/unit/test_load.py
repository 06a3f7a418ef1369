"""Files for `onhand load`: checked whole against the catalogue, and told by line and field."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.cli import fitting
from adapters.cli import load as cli_load
from adapters.cli.csvfile import CsvInvalid, read_csv
from adapters.cli.load import load
from adapters.cli.output import CommandFailed
from adapters.client import InvalidArgument, Location, Sku, Unavailable, messages
from adapters.client.errors import Violation
from engine import limits
from onhand.v1 import catalog_pb2

TEA, JAM = "4006381333931", "96385074"  # barcodes
SKUS = [
    Sku("TEA-500G", id=1, gtins=(TEA,), old_codes=("TEA", "TEA-500")),
    Sku("JAM", "G", id=2),
    Sku("BOX", id=3, components=((1, 2), (2, 250))),
    Sku("BIG-BOX", id=4, components=((1, 4),)),
    Sku("POT", id=5),
]
PLACES = [Location("S1", "EUR", id=1), Location("S2", "USD", id=2)]


class Answer:
    def __init__(self, *refused: int) -> None:
        self.refused = np.array(refused, np.int64)

    def message(self, line: int) -> str:
        return f"quantity: too much ({line})"


class Gateway:
    """Stands in for a client; remembers what it was sent."""

    def __init__(self, *refused: int, error: Exception | None = None) -> None:
        self.sent: list[Any] = []
        self.answer, self.error = Answer(*refused), error

    async def list_skus(self) -> AsyncIterator[Sku]:
        for sku in SKUS:
            yield sku

    async def list_locations(self) -> list[Location]:
        return PLACES

    async def add_skus(self, skus: Iterable[Sku]) -> None:
        self._take(list(skus))

    async def add_locations(self, locations: Iterable[Location]) -> None:
        self._take(list(locations))

    async def submit(self, batch: Any, *, op_id: bytes) -> Answer:
        self._take(batch)
        return self.answer

    def _take(self, what: Any) -> None:
        if self.error:
            raise self.error
        self.sent.append(what)


async def loaded(folder: Path, text: str, gateway: Gateway) -> str:
    file = folder / "file.csv"
    file.write_text(text)
    return await load(gateway, read_csv(file), b"d" * 32, lambda _: None)  # type: ignore[arg-type]


async def faults(folder: Path, text: str, gateway: Gateway | None = None) -> list[str]:
    """What is told of a file, without its name."""
    gateway = gateway or Gateway()
    with pytest.raises((CommandFailed, CsvInvalid)) as caught:
        await loaded(folder, text, gateway)
    assert gateway.sent == []
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{folder / 'file.csv'}:") for line in lines)
    return [line.removeprefix(f"{folder / 'file.csv'}:") for line in lines]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (f"A,EA,{JAM},\nB,EA,40063812 4006381333932,", ["3: gtins[1]: 4006381333932 has a wrong"]),
        ("A,EA,,\nB,EA,,\nA,EA,,", ["4: sku: 'A' stands in line 2 already"]),
        (f"A,EA,{JAM},\nB,EA,0{JAM},", [f"3: gtins[0]: 0{JAM} is a barcode of SKU 'A' already"]),
        (f"A,EA,{TEA},", [f"2: gtins[0]: {TEA} is a barcode of SKU 'TEA-500G' already"]),
        ("A,EA,,\nJAM,EA,,", ["3: unit: 'JAM' is counted in G, which never changes"]),
        ("TEA-500,G,,", ["2: unit: 'TEA-500' is counted in EA, which never changes"]),
        ("C,EA,,A:1 NO:2\nA,EA,,", ["2: components[1].sku: is not in the catalogue"]),
        ("C,EA,,BOX:1", ["2: components[0].sku: 'BOX' is a bundle itself"]),
        ("POT,EA,,JAM:1", ["2: components: 'POT' is no bundle"]),
        (
            f"C,EA,,NO:1\nJAM,EA,,\nB,EA,{JAM},\nA,EA,{JAM},",
            ["3: unit: 'JAM'", f"5: gtins[0]: {JAM} is a barcode of SKU 'B'", "2: components[0]"],
        ),
    ],
)
async def test_skus_that_do_not_fit_are_all_told_before_any_is_sent(
    tmp_path: Path, rows: str, told: list[str]
) -> None:
    found = await faults(tmp_path, f"sku,unit,gtins,components\n{rows}\n")
    assert len(found) == len(told)
    assert all(map(str.startswith, found, told)), found


async def test_a_barcode_that_is_wrong_in_a_later_part_stops_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "ROWS_AT_ONCE", 2)
    rows = "A,EA,\nB,EA,\nC,EA,\nD,EA,4006381333932\nE,EA,\nF,EA,"
    (told,) = await faults(tmp_path, f"sku,unit,gtins\n{rows}\n")
    assert told.startswith("5: gtins[0]: ")


async def test_no_request_is_longer_than_the_servers_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would refuse it when others are in the catalogue already, though the file was checked whole."""
    monkeypatch.setattr(limits, "MAX_CATALOG_BYTES", 5_000)
    codes = [f"{'ü' * 58}{number:06}" for number in range(16)]
    skus = [f"{code},EA,{'é' * 200},," for code in codes]
    skus[0] = skus[0].replace(",,", ",00000024 00000031 00000048,")
    boxes = [f"B{number},EA,,,{' '.join(f'{code}:9' for code in codes)}" for number in range(8)]
    gateway = Gateway()
    rows = "\n".join(["sku,unit,description,gtins,components", *skus, *boxes])
    assert await loaded(tmp_path, rows, gateway) == "loaded: 24 skus"
    places = [f"{code},EUR,{'é' * 200}" for code in codes]
    rows = "\n".join(["location,currency,description", *places])
    assert await loaded(tmp_path, rows, gateway) == "loaded: 16 locations"
    requests = [
        catalog_pb2.AddLocationsRequest(locations=map(messages.location_entry_of, part))
        if isinstance(part[0], Location)
        else catalog_pb2.AddSkusRequest(skus=map(messages.sku_entry_of, part))
        for part in gateway.sent
    ]
    sizes = [request.ByteSize() for request in requests]
    assert max(sizes) <= 5_000
    assert len(sizes) <= 3 + sum(sizes) // 3_000


async def test_locations_that_do_not_fit_are_told(tmp_path: Path) -> None:
    text = "location,currency\nS3,EUR\nS1,USD\nS3,EUR\n"
    assert await faults(tmp_path, text) == ["4: location: 'S3' stands in line 2 already"]
    assert await faults(tmp_path, text.replace("S3,EUR\nS1", "S4,XQQ\nS1")) == [
        "2: currency: 'XQQ' is not an alphabetic code of ISO 4217, like 'USD'",
        "3: currency: 'S1' has EUR, which never changes",
    ]


async def test_stock_of_what_nobody_knows_is_told_by_line(tmp_path: Path) -> None:
    rows = "NO,S1,1,\nJAM,S9,1,\nBOX,S1,0,5\nBOX,S1,1,5\n"
    assert await faults(tmp_path, f"sku,location,quantity,price_minor\n{rows}") == [
        "2: sku: not in the catalogue: 'NO'",
        "3: location: not in the catalogue: 'S9'",
        "5: quantity: 'BOX' is a bundle, which has no stock of its own",
    ]


async def test_codes_that_a_sku_had_before_mean_it(tmp_path: Path) -> None:
    gateway = Gateway()
    text = "sku,location,quantity,price_minor\nTEA,S1,5,199\nTEA-500,S2,0,\nTEA-500G,S2,7,\n"
    told = await loaded(tmp_path, text, gateway)
    assert told == "loaded: 3 cells, 2 with stock"
    (batch,) = gateway.sent
    assert [list(column) for column in (batch.sku, batch.location, batch.quantity)] == [
        [1, 1, 1],
        [1, 1, 2],
        [5, 0, 7],
    ]
    text = "sku,unit,gtins,components\nC,EA,,TEA:2 N:1\nN,EA,,\nTEA,EA,,\n"
    assert await loaded(tmp_path, text, gateway) == "loaded: 3 skus"
    assert [each.code for part in gateway.sent[1:] for each in part] == ["N", "TEA", "C"]
    assert await loaded(tmp_path, "location,currency\nS3,EUR\nS1,EUR\n", gateway)


async def test_what_the_servers_refuse_after_all_is_told_by_line(tmp_path: Path) -> None:
    text = "sku,location,quantity,price_minor\nTEA,S1,5,199\nTEA,S2,0,\nJAM,S2,7,5\n"
    with pytest.raises(CommandFailed, match=r":2: quantity: too much \(1\)\n.*:4: quantity"):
        await loaded(tmp_path, text, Gateway(1, 2))
    for field, told in (
        ("skus[1].gtins[0]", ":4: gtins[0]: taken"),
        ("skus", ".csv: skus: taken"),
    ):
        error = InvalidArgument("", (Violation(field, "taken"),))
        text = "sku,unit,components\nN,EA,\nC,EA,N:1\nM,EA,\n"
        with pytest.raises(CommandFailed) as caught:
            await loaded(tmp_path, text, Gateway(error=error))
        assert str(caught.value).endswith(told)


@pytest.mark.parametrize("separator", [";", "\t"])
async def test_that_fields_are_separated_by_commas_is_told(tmp_path: Path, separator: str) -> None:
    (told,) = await faults(tmp_path, "sku,unit\nTEA,EA\n".replace(",", separator))
    assert told.startswith("1: the header must have the fields sku,unit; or ")
    assert told.endswith(f", separated by commas, not by {separator!r}")


async def test_that_no_server_is_there_is_told_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_load, "TIMEOUT_S", 0.2, raising=False)
    path = tmp_path / "file.csv"
    path.write_text("sku,unit\nTEA,EA\n")
    with socket.socket() as nobodys:
        nobodys.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobodys.getsockname()[1]}"
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable):
                await cli_load._load(address, read_csv(path), b"d" * 32, lambda _: None)
