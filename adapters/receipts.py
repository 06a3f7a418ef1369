"""The id of what a till sold: made of the receipt, so that whoever has that knows it.

The contract states it (`ReceiptLine`); servers and the client go by this.
"""

import hashlib
import struct
from typing import Final

from engine import limits

_HEAD: Final = struct.Struct("<IHHI")


def sale_id(location: int, terminal: str, receipt: str, line: int) -> bytes:
    """The id of a line of a receipt, 16 bytes, as the contract states it.

    `location` is the dense id, `line` the line's number on the receipt.
    """
    till, number = terminal.encode(), receipt.encode()
    head = _HEAD.pack(location, len(till), len(number), line)
    return hashlib.blake2b(head + till + number, digest_size=limits.OP_ID_BYTES).digest()
