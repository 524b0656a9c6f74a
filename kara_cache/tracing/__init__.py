"""OpenTelemetry: spans of reads in clients, of requests in workers. Needs kara-cache[otel]."""
