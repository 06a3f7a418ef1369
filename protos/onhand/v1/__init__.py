"""Version 1 of the public contract: messages and services, generated from the .proto files here."""
