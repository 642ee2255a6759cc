"""Somebody between buyer and service: passes everything on, remembers it, and changes answers when told to."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

PAYMENT = "payment-signature"


@dataclass
class Answer:
    """What goes back to the buyer; `dropped` closes the connection instead."""

    status: int
    headers: dict[str, str]
    body: bytes
    dropped: bool = False


@dataclass(frozen=True)
class Passed:
    """What the buyer sent, and what the service answered."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    answer: Answer


Meddle = Callable[[Passed], None]
"""Changes `answer` in place."""


@dataclass
class Middleman:
    """Where it listens, and all that passed, in order."""

    url: str
    passed: list[Passed] = field(default_factory=list)

    @property
    def payments(self) -> list[str]:
        return [one.headers[PAYMENT] for one in self.passed if PAYMENT in one.headers]


@contextmanager
def between(service: str, meddle: Meddle = lambda _: None) -> Iterator[Middleman]:
    """A middleman in front of `service`. The service sees the middleman's own address as its name."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            sent = {name: value for name, value in headers.items() if name not in ("connection", "content-length")}
            got = client.request(self.command, service + self.path, headers=sent, content=body)
            answer = Answer(got.status_code, dict(got.headers), got.content)
            one = Passed(self.command, self.path, headers, body, answer)
            with lock:
                meddle(one)
                middleman.passed.append(one)
            if answer.dropped:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                if name not in ("content-length", "transfer-encoding"):  # the body goes on in one piece
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        do_GET = do_POST = pass_on  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, httpx.Client(timeout=120, trust_env=False) as client:
        server.daemon_threads = True
        middleman = Middleman(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield middleman
        finally:
            server.shutdown()
            thread.join()


def change_terms(answer: Answer, change: Callable[[Any], None]) -> None:
    """Change a 402's document, in header and body alike."""
    document = json.loads(answer.body)
    change(document)
    answer.body = json.dumps(document, separators=(",", ":")).encode()
    answer.headers["payment-required"] = base64.b64encode(answer.body).decode()
