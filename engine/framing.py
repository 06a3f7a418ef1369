"""What every block of a stream has around it, and how it is known to be whole.

    anything | u32 CRC32C of it

Little-endian. This room knows nothing of what is in between.
"""

import struct
from collections.abc import Callable
from typing import Final, TypeVar

from crc32c import crc32c

from engine import limits

LENGTH: Final = struct.Struct("<I")  # of a CRC, and of the length before a header
CRC_BYTES: Final = LENGTH.size

_T = TypeVar("_T")


class BlockDamaged(ValueError):  # noqa: N818 - a condition of the bytes
    """The bytes are not a whole block of a known format; says what is wrong."""


def sealed(body: bytes) -> tuple[bytes, int]:
    """A block of a body: its bytes, and the CRC32C that they end with.

    ValueError when they are more than MAX_BLOCK_BYTES, which no one could read back.
    """
    if len(body) + CRC_BYTES > limits.MAX_BLOCK_BYTES:
        raise ValueError(f"a block is at most {limits.MAX_BLOCK_BYTES} bytes, not {len(body)}")
    crc = crc32c(body)
    return body + LENGTH.pack(crc), crc


def crc_of(payload: bytes) -> int:
    """The CRC32C that an encoded block ends with."""
    return int(LENGTH.unpack_from(payload, len(payload) - CRC_BYTES)[0])


def unsealed(payload: bytes, decode: Callable[[memoryview], _T], what: str) -> _T:
    """What `decode` makes of the body. Raises BlockDamaged unless every byte is as it was written.

    `what` it should be is told when the bytes are whole and `decode` can make nothing of them.
    """
    if len(payload) < LENGTH.size + CRC_BYTES or len(payload) > limits.MAX_BLOCK_BYTES:
        raise BlockDamaged(f"{len(payload)} bytes cannot be a block")
    body = memoryview(payload)[:-CRC_BYTES]
    if crc32c(body) != crc_of(payload):
        raise BlockDamaged("the CRC32C does not match")
    try:
        return decode(body)
    except BlockDamaged:
        raise
    except (KeyError, ValueError, TypeError, IndexError, struct.error) as error:
        # The CRC matched, so this was written so: a foreign or a future format.
        raise BlockDamaged(f"not {what}: {error}") from error
