"""The replayer: sends a journey plan through the public gRPC surface, and proves the outcome.

`ledger` keeps books of its own from what was acknowledged, `driver` sends and retries, `watchers`
follow the deltas of every store, `proof` compares the three with the engine, `report` tells people
and machines. Nothing here looks inside the engine; all it knows came over the wire.
"""
