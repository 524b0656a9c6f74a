"""A range of a file, or many, into the caller's memory, from wherever it can be had."""
