"""The rules of stock and price in plain dicts: obvious rather than fast. Read this first.

`engine.kernels` states the same rules over columns. Both give the same answers, the same cells and
holds and the same state hash on every history; the property tests hold them to it.

The way through the rooms: `machine` takes a block and gives each line to its rule; `reserving`,
`holds`, `moves`, `facts`, `returns`, `exchanges`, `settings` and `incoming` are the rules; `life` is
what becomes of holds under them, `shortages` what is told afterwards. All of them change the `book`
and nothing else; `lines` and `places` are the checks that they share, `hashes` is for comparing.
"""

from engine.reference.book import Trace
from engine.reference.lines import Key, Line
from engine.reference.machine import Answered, Outcome, ReferenceMachine

__all__ = ["Answered", "Key", "Line", "Outcome", "ReferenceMachine", "Trace"]
