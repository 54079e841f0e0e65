"""Answers of the server to a site's requests, of bounded size and never packed: a server could send without an end."""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from sahfl.federation.flower.uploads import CHUNK

MOST_ANSWER = CHUNK + 2**20
"""Most bytes of an answer: a piece of an array, or the tree of a message of 10 000 parts, with what Flower adds."""


class BoundedTransport(httpx.HTTPTransport):
    """Ends the connection when an answer is packed, or has more than ``MOST_ANSWER`` bytes."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its answer, of which the body is still to be read.

        Raises:
            DecodingError: the body is packed; while it is read, that it is too large.
        """
        request.headers["accept-encoding"] = "identity"
        response = super().handle_request(request)
        if "content-encoding" in response.headers:
            response.close()
            raise httpx.DecodingError("a packed answer", request=request)
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Bounded(response.stream, request)
        return response


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, request: httpx.Request) -> None:
        self._stream, self._request = stream, request

    def __iter__(self) -> Iterator[bytes]:
        left = MOST_ANSWER
        for part in self._stream:
            if (left := left - len(part)) < 0:
                raise httpx.DecodingError("an answer that is too large", request=self._request)
            yield part

    def close(self) -> None:
        self._stream.close()
