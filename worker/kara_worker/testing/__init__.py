"""Servers and clusters for tests and demonstrations: real sockets, real processes, told to misbehave."""
