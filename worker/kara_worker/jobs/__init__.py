"""Load jobs on the worker: a board that knows them, a coordinator that runs one, owners that fetch."""
