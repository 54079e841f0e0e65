"""Servers on loopback for tests of what a site meets at the server's port: TLS, plain HTTP, silence."""

import json
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def http_server(tls=None, *, status=200, date=None, on_post=(404, {}), port=0, headers=None):
    """An HTTP server that answers every GET, and every POST with a status and JSON; over TLS if it is given a context.

    Yields its port.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(status, b"")

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(on_post[0], json.dumps(on_post[1]).encode())

        def _answer(self, code, body):
            self.send_response_only(code)
            said = date if date is not None else format_datetime(datetime.now(UTC), usegmt=True)
            for name, value in [("Date", said), ("Content-Length", str(len(body))), *(headers or {}).items()]:
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self):
            connection, address = super().get_request()
            connection.settimeout(5)
            if tls is not None:
                connection = tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return connection, address

        def handle_error(self, *_):
            pass  # a refused certificate is what the test is about

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def byte_server(answer, tls=None):
    """A server that says the same bytes to everyone who connects, and hangs up. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.02)
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(1)
                with suppress(OSError), _wrapped(connection, tls) as connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def _wrapped(connection, tls):
    return connection if tls is None else tls.wrap_socket(connection, server_side=True)


def tls_of(certificate, key, *, authority=None):
    """A server's context that asks for no certificate, or for one of an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if authority is not None:
        context.load_verify_locations(authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
