"""An HTTP server for the demonstration, in a process of its own: `python demo/origin.py FILE...`

Prints its url. For each line on stdin it prints its request counts as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kara_worker.testing.rude_http_server import RudeHttpServer


def main(paths: list[str]) -> None:
    server = RudeHttpServer({f"data/{Path(path).name}": Path(path).read_bytes() for path in paths})
    print(server.url, flush=True)
    for _ in sys.stdin:
        gets = [request for request in server.requests if request.method == "GET"]
        counts = {
            "requests": len(server.requests),
            "gets": len(gets),
            "bytes": sum(r.sent_bytes for r in gets),
        }
        print(json.dumps(counts), flush=True)
    server.close()


if __name__ == "__main__":
    main(sys.argv[1:])
