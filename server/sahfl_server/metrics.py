"""The status as Prometheus text, served to this machine only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sahfl.errors import RunError

HOST = "127.0.0.1"


def prometheus(status: dict[str, Any]) -> str:
    """Gauges of a status, in Prometheus' text format; a gauge without a value is left out."""
    study = status["study"] or {}
    cells: dict[str, Any] = study.get("cells", {})
    awaited = {site for part in (study, *cells.values()) for site in part.get("waiting_for", [])}
    values: list[tuple[str, str, str, float | None]] = [
        ("sahfl_up", "1 while the server runs", "", 1),
        ("sahfl_queue", "studies that wait", "", len(status["queue"])),
        ("sahfl_loss", "mean loss of the last committed round", "", study.get("loss")),
        ("sahfl_waiting_for_sites", "sites that the study waits for", "", len(awaited)),
        ("sahfl_warnings", "warnings, such as certificates that end soon", "", len(status["warnings"])),
    ]
    for name, meaning in (("round", "round of a cell that is worked on"), ("rounds", "rounds of that cell in all")):
        values += [(f"sahfl_{name}", meaning, f'{{cell="{cell}"}}', at[name]) for cell, at in cells.items()]
    values += [(f"sahfl_held_{name}", "held in memory", "", n) for name, n in status["held"].items()]
    sites = {site: of for site, of in status["sites"].items() if of["state"] != "revoked"}
    for site, of in sites.items():
        there, works = of["state"] == "connected", (of["doing"] or {}).get("state") == "working"
        values.append(("sahfl_site_connected", "1 if the site is connected", f'{{site="{site}"}}', float(there)))
        values.append(("sahfl_site_working", "1 if the site works on a request", f'{{site="{site}"}}', float(works)))
        values += [
            (
                "sahfl_site_error_since_seconds",
                "since when the site's answers to requests of a kind are errors",
                f'{{site="{site}",what="{what}",error="{known["error"]}"}}',
                datetime.fromisoformat(known["since"]).timestamp(),
            )
            for what, known in of["errors"].items()
        ]
    lines = dict[str, None]()  # in order, each header once
    for name, meaning, labels, value in sorted(values, key=lambda row: row[0]):  # a metric's rows stand together
        if value is not None:
            header = (f"# HELP {name} {meaning}", f"# TYPE {name} gauge")
            lines |= dict.fromkeys((*header, f"{name}{labels} {float(value):.15g}"))
    return "\n".join(lines) + "\n"


@contextmanager
def showing_metrics(port: int | None, content: Callable[[], dict[str, Any]]) -> Iterator[int | None]:
    """Serve ``/metrics`` while the block runs, and yield the port; without a port, serve nothing.

    Raises:
        RunError: the port is taken.
    """
    if port is None:
        yield None
        return

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = prometheus(content()).encode() if self.path == "/metrics" else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log no request for the page."""

    try:
        server = ThreadingHTTPServer((HOST, port), Page)
    except OSError as error:
        raise RunError(f"metrics_port {port}: cannot be opened ({error.strerror}); set another one") from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
