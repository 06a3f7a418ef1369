"""Thin shells around the engine: shard, router, gateway, and the one module that speaks to Ray."""
