"""The deterministic core: state, rules, codecs. No IO, no clock, no Ray, no gRPC."""
