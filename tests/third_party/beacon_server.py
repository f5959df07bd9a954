"""A server that ``hooktrain-beacon`` sends metrics to."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Server"]


class Server(ThreadingHTTPServer):
    """A Beacon server that keeps the requests, may fail for a while, and may die.

    Args:
        refuses: numbers of the requests that it answers with 503, from 1.
        dies_after: lines of metrics after which it is gone; 0 is never.
    """

    daemon_threads = True

    def __init__(self, refuses: Collection[int] = (), dies_after: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, Any]] = []
        self.lines: list[dict[str, float]] = []
        self.refuses, self.dies_after = refuses, dies_after
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def die(self) -> None:
        self.shutdown()
        self.server_close()

    def end(self) -> None:
        """Die, if it has not."""
        if self.thread.is_alive():
            self.die()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.requests.append((self.path, body))
        refused = len(server.requests) in server.refuses
        if self.path.endswith("/metrics") and not refused:
            server.lines += body
            if len(server.lines) == server.dies_after:
                server.die()  # before it responds, so that the client's next request fails
        answer = json.dumps({"id": "run-7"}).encode()
        self.send_response(503 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass
