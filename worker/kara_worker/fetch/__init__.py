"""Bytes from stores for load jobs, in a process beside the worker, so that readers keep the interpreter."""
