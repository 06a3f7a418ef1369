"""Benches: load from a process of its own against real actors, gRPC and fsync, and against a peer.

    python -m bench.submit    batches on the direct path; the peer is a Lua script in Valkey
    python -m bench.unary     single calls on the direct path; the peer is a gRPC echo
    python -m bench.storm     a million holds that run out together, over ten million cells

Each runs its peer in the same run (the storm: the calm before it), ends on conservation and the state hash, prints a table, writes
JSON with `--json`, and takes `--seconds 2` as a smoke test. Nothing imports this package.
"""
