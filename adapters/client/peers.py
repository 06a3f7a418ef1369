"""One gRPC channel for each address, with the services that may be called there.

This room knows addresses, not shards: who is called for what is decided in `calls`.
"""

from typing import Any, Final

import grpc.aio

from onhand.v1 import (
    availability_pb2_grpc,
    catalog_pb2_grpc,
    deltas_pb2_grpc,
    directory_pb2_grpc,
    price_pb2_grpc,
    stock_pb2_grpc,
    transfer_pb2_grpc,
)

# The servers allow a ping each 5 s, also without calls (`adapters.rpc.server`), and answer GOAWAY
# (too_many_pings) to more. A peer that is gone, or stopped dead, is noticed by its silence.
KEEPALIVE_TIME_MS: Final = 20_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000
RECONNECT_MIN_MS: Final = 50  # gRPC's own 1 s to 2 min is far longer than a shard's restart
RECONNECT_MAX_MS: Final = 1_000

CHANNEL_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.max_send_message_length", -1),  # the servers' published limit rules
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # clients of one process do not share a connection
)


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel with the settings that suit the servers; nothing is sent before the first call."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


class Peer:
    """A server by its address, and the stubs of its services."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.down_until_s = 0.0  # not called before that, while there is another way
        self._channel = open_channel(address)
        self.stock = stock_pb2_grpc.StockStub(self._channel)
        self.price = price_pb2_grpc.PriceStub(self._channel)
        self.availability = availability_pb2_grpc.AvailabilityStub(self._channel)
        self.catalog = catalog_pb2_grpc.CatalogStub(self._channel)
        self.directory = directory_pb2_grpc.DirectoryStub(self._channel)
        self.transfers = transfer_pb2_grpc.TransfersStub(self._channel)
        self.deltas = deltas_pb2_grpc.DeltasStub(self._channel)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        await self._channel.close()


class Peers:
    """The peers by address, opened when first asked for."""

    def __init__(self) -> None:
        self._by_address: dict[str, Peer] = {}

    def at(self, address: str) -> Peer:
        """The peer at an address."""
        peer = self._by_address.get(address)
        if peer is None:
            peer = self._by_address[address] = Peer(address)
        return peer

    async def keep(self, addresses: set[str]) -> None:
        """Close the channels to all other addresses: shards move, and clients live long."""
        gone = [self._by_address.pop(each) for each in set(self._by_address) - addresses]
        for peer in gone:
            await peer.close()
