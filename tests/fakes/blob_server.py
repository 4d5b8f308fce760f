"""PUT and GET /blobs/HASH over HTTP in a thread, as a gateway serves them, for tests of whoever is the client."""

from __future__ import annotations

import http.server
import threading


class BlobServer:
    """`blobs` is what was put, by hash; `refusals` says how many requests are answered 503 first."""

    def __init__(self, token: str) -> None:
        self.blobs: dict[str, bytes] = {}
        self.refusals = 0
        blobs = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self, status: int, body: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def _refused(self) -> bool:
                if self.headers.get("Authorization") != f"Bearer {token}":
                    self._answer(401)
                    return True
                if blobs.refusals:
                    blobs.refusals -= 1
                    self._answer(503)
                    return True
                return False

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not self._refused():
                    blobs.blobs[self.path.removeprefix("/blobs/")] = body
                    self._answer(204)

            def do_GET(self) -> None:
                if not self._refused():
                    found = blobs.blobs.get(self.path.removeprefix("/blobs/"))
                    self._answer(404) if found is None else self._answer(200, found)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
