"""Environment variables that would make a program trust, or talk to, somebody else than its kit names."""

from __future__ import annotations

import os

REDIRECTING = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("OPENSSL_CONF", "OPENSSL_CONF_INCLUDE", "OPENSSL_MODULES", "OPENSSL_ENGINES"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"),
)
"""Other authorities, a copy of the session keys, another configuration of OpenSSL, proxies; also in small letters."""
_found: list[str] = []


def ignore_redirections() -> None:
    """Remove these variables from this process, and so from those that it starts, before a library reads them."""
    for name in [name for name in os.environ if name.upper() in REDIRECTING]:
        del os.environ[name]
        _found.append(name)


def ignored_variables() -> tuple[str, ...]:
    """Names of the variables that this process was started with and does not use; their values may be secrets."""
    return tuple(sorted(_found))
