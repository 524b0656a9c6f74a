"""The way to one worker: sockets, requests, answers that are believed only when their sums are right."""
