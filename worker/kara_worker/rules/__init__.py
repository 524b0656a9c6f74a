"""Rules for paths on the worker: where they are written down, and how they are kept."""
