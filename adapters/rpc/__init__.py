"""The gRPC servicers: they translate between the public contract and the actors."""
