"""The words of subscriptions, by the numbers of the contract."""

from enum import IntEnum


class FrameKind(IntEnum):
    """What a frame of a subscription to deltas is."""

    SNAPSHOT = 1
    SNAPSHOT_END = 2
    DELTA = 3
    HEARTBEAT = 4
    COMPACTED = 5  # forget the replica; a snapshot follows


class Fields(IntEnum):
    """Which changes a subscriber wants; the other columns are all zero."""

    ALL = 0
    STOCK = 1
    PRICE = 2
