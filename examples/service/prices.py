"""A service that tells prices over HTTP, in two versions: what an integration suite runs against."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CENTS = {"tea": 412, "cake": 388}
STEP = int(os.environ.get("ROUND_TO", "1"))
"""Cents that prices are rounded to, such as 5 where there are no smaller coins."""


class Prices(BaseHTTPRequestHandler):
    """Answers `/health` and `/price?item=tea`."""

    version = "1"

    def do_GET(self) -> None:
        """Answer a request."""
        url = urlsplit(self.path)
        item = parse_qs(url.query).get("item", [""])[0]
        if url.path == "/health":
            self._answer(200, {"version": self.version})
        elif url.path == "/price" and item in CENTS:
            self._answer(200, {"item": item, "cents": self.price(CENTS[item]), "currency": os.environ["CURRENCY"]})
        else:
            self._answer(404, {"error": f"no {url.path} {item}"})

    def price(self, cents: int) -> int:
        """Return a price in the steps of the currency."""
        return round(cents / STEP) * STEP

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


class NewPrices(Prices):
    """Version 2, with a mistake: it cuts where version 1 rounds."""

    version = "2"

    def price(self, cents: int) -> int:
        """Return a price in the steps of the currency."""
        return cents // STEP * STEP


if __name__ == "__main__":
    handler = {"1": Prices, "2": NewPrices}[sys.argv[1]]
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), handler).serve_forever()
