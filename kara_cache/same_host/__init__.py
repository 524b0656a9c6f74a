"""Pages of workers on this host, read from their files."""
