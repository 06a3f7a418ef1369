"""One block of the catalogue's stream, and what it is as bytes.

    u32 header length | msgpack header | msgpack columns of the entries | u32 CRC32C of all before

This module knows nothing of what the catalogue makes of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgpack

from engine.changes import Asked
from engine.entries import Channel, Component, Location, Rename, Sku
from engine.framing import LENGTH, BlockDamaged, sealed, unsealed

FORMAT: Final = 4  # 1 knew neither channels nor bundles
READABLE: Final = (2, 3, FORMAT)  # 2 knew no new codes of SKUs, 3 no op_ids; the same otherwise


@dataclass(frozen=True, slots=True)
class CatalogueBlock:
    """One block of the catalogue's stream: its place there, and what it adds.

    `known_skus` and `known_locations` count what the catalogue held before, so the first new SKU
    has the id known_skus + 1. `channel` is one that is new or has new rules; it may name locations
    that were there before. `rename` gives a SKU that was there before a new code. `asked`
    is the request that either was made for; alone, one that found all as it asked for. `shard_map` is a
    new shard map as `engine.shard_map` encodes it.
    `nonce` is set in the opening block of an epoch, which adds nothing and whose writer does not yet
    know what came before: its counts and `previous_crc` are 0.
    """

    epoch: int
    seq: int
    previous_crc: int = 0
    known_skus: int = 0
    known_locations: int = 0
    skus: Sequence[Sku] = ()
    locations: Sequence[Location] = ()
    shard_map: bytes = b""
    nonce: bytes = b""
    channel: Channel | None = None
    rename: Rename | None = None
    asked: Asked | None = None

    @property
    def opens_epoch(self) -> bool:
        """Whether this is the first block of its epoch."""
        return self.seq == 0


def encode(block: CatalogueBlock) -> bytes:
    """The bytes of a block; `engine.framing.crc_of` tells the CRC that they end with.

    ValueError when they are more than MAX_BLOCK_BYTES, which no one could read back.
    """
    header = msgpack.packb(
        {
            "v": FORMAT,
            "epoch": block.epoch,
            "seq": block.seq,
            "prev": block.previous_crc,
            "known": [block.known_skus, block.known_locations],
            "added": [len(block.skus), len(block.locations)],
            "map": block.shard_map,
            "nonce": block.nonce,
            "channel": block.channel,
            "rename": block.rename,
            "asked": block.asked,
        }
    )
    parts = [entry.components for entry in block.skus]
    columns = msgpack.packb(
        [
            [entry.code for entry in block.skus],
            bytes(entry.unit for entry in block.skus),
            _column([entry.description for entry in block.skus]),
            _column([" ".join(entry.gtins) for entry in block.skus]),
            bytes(map(len, parts)) if any(parts) else b"",
            [number for components in parts for part in components for number in part],
            [entry.code for entry in block.locations],
            [entry.currency for entry in block.locations],
            _column([entry.description for entry in block.locations]),
        ]
    )
    body = b"".join((LENGTH.pack(len(header)), header, columns))
    return sealed(body)[0]


def decode(payload: bytes) -> CatalogueBlock:
    """Read a block back. Raises BlockDamaged unless every byte is as it was written."""
    return unsealed(payload, _decode, f"a catalogue block of format {FORMAT}")


def _decode(body: memoryview) -> CatalogueBlock:
    start = LENGTH.size + LENGTH.unpack_from(body)[0]
    header = msgpack.unpackb(body[LENGTH.size : start])
    if header["v"] not in READABLE:
        raise BlockDamaged(f"format {header['v']}, this is {FORMAT}")
    rename, asked = header.get("rename"), header.get("asked")
    known_skus, known_locations = header["known"]
    skus, locations = header["added"]
    columns = msgpack.unpackb(body[start:])
    (
        codes, units, descriptions, gtins, part_counts, parts,
        location_codes, location_currencies, notes,
    ) = columns  # fmt: skip
    return CatalogueBlock(
        header["epoch"],
        header["seq"],
        header["prev"],
        known_skus,
        known_locations,
        list(
            map(
                Sku._make,
                zip(
                    _full(codes, skus),
                    _full(units, skus),
                    _full(descriptions or [""] * skus, skus),
                    _split(gtins, skus),
                    _components(part_counts, parts, skus),
                    strict=True,
                ),
            )
        ),
        list(
            map(
                Location._make,
                zip(
                    _full(location_codes, locations),
                    _full(location_currencies, locations),
                    _full(notes or [""] * locations, locations),
                    strict=True,
                ),
            )
        ),
        header["map"],
        header["nonce"],
        _channel(header["channel"]),
        None if rename is None else Rename(*rename),
        None if asked is None else Asked(*asked),
    )


def _column(values: list[str]) -> list[str]:
    """A column of texts; none at all when every one is empty."""
    return values if any(values) else []


def _channel(row: list[Any] | None) -> Channel | None:
    if row is None:
        return None
    code, buffer, only_listed, locations = row
    return Channel(code, buffer, only_listed, tuple((at, own) for at, own in locations))


def _full(column: Any, count: int) -> Any:
    if len(column) != count:
        raise BlockDamaged(f"a column has {len(column)} values, should have {count}")
    return column


def _split(gtins: list[str], count: int) -> Iterator[tuple[str, ...]]:
    if not gtins:
        return iter([()] * count)
    return (tuple(joined.split()) for joined in _full(gtins, count))


def _components(counts: bytes, numbers: list[int], skus: int) -> Iterator[tuple[Component, ...]]:
    if len(numbers) != 2 * sum(counts):
        raise BlockDamaged(f"{len(numbers)} numbers are not {sum(counts)} components")
    if not counts:
        return iter([()] * skus)
    pairs = map(Component, numbers[::2], numbers[1::2])
    return (tuple(islice(pairs, count)) for count in _full(counts, skus))
