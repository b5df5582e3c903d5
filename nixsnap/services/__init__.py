"""gRPC services: decode, call the domain, encode."""
