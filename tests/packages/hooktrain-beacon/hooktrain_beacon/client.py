"""A client of the server: JSON over HTTP, with the standard library."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from hooktrain import HooktrainError

__all__ = ["BeaconError", "Client"]


class BeaconError(HooktrainError):
    """The server cannot be reached, or does not take what it is sent."""


class Client:
    """Sends JSON to the server.

    Args:
        url: its address, without a path.
        timeout: seconds to wait for it.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout

    def post(self, path: str, body: Any) -> dict[str, Any]:
        """Send a value to a path of the server; returns its response.

        Raises:
            BeaconError: when it cannot be reached, or responds with an error or without JSON.
        """
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return dict(json.loads(response.read() or b"{}"))
        except (OSError, ValueError) as problem:  # of which urllib's own errors are some
            reason = getattr(problem, "reason", None) or problem
            raise BeaconError(f"beacon.url: {self.url} does not take it ({reason}); see whether it is up") from problem
