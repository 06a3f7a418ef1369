"""The outside world: gRPC, Redis, settings, metrics, the command line, the Python client."""
