"""Rows of training data, side by side with other formats: `python -m benchmarks.rows`."""
