"""The site's app, which answers every kind of message in the table, both in a simulation and in a hospital.

Every request passes ``guard``: signature, policy, leak check, audit log. The file of each kind of message (``kinds``)
lists what leaves. An error leaves as the name of its class; its text, which may name files, stays in the site's log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from sahfl.config import SiteConfig, load_site
from sahfl.errors import ConfigError, SahflError
from sahfl.events import Warned, emit
from sahfl.federation import protocol
from sahfl.federation.site.guard import guarded
from sahfl.federation.site.kinds.kind import Answer
from sahfl.federation.site.kinds.table import KINDS
from sahfl.federation.site.site import Site
from sahfl.log_lines import LogLine, log_on_stderr

log = logging.getLogger(__name__)


class SiteFailure(Exception):
    """An error as the server receives it: the name of its class."""


def make_app(open_site: Callable[[SiteConfig], Site] = Site) -> ClientApp:
    """Make the app that answers every kind of message in the table, with the site that ``open_site`` returns."""
    made = ClientApp()
    categories = {"query": made.query, "train": made.train, "evaluate": made.evaluate}
    for kind in KINDS.values():
        category, _, action = kind.type.partition(".")
        register = categories[category](action) if action else categories[category]()
        register(answering(kind.answer, open_site))
    return made


def answering(answer: Answer, open_site: Callable[[SiteConfig], Site]) -> Callable[[Message, Context], Message]:
    """Turn an ``Answer`` into a Flower handler, which logs each request and keeps error texts at the site."""

    def handler(message: Message, context: Context) -> Message:
        began, config = time.monotonic(), None
        try:
            config = _config(context)
            site = open_site(config)
            kind = message.metadata.message_type
            content = guarded(site.config, kind, message.content, lambda: answer(site, message.content))
        except Exception as error:
            log.exception(LogLine("failed", what=answer.__name__, error=type(error).__name__))
            if config is not None and config.simulated and isinstance(error, SahflError):
                emit(Warned(f"{config.name}: {error}"))  # all its scans are the reader's own
            raise SiteFailure(type(error).__name__) from None
        n_bytes, seconds = protocol.n_bytes(content), round(time.monotonic() - began, 2)
        log.info(LogLine("answered", what=answer.__name__, bytes_out=n_bytes, seconds=seconds))
        return Message(content, reply_to=message)

    return handler


def _config(context: Context) -> SiteConfig:
    """Read the site's configuration from ``site`` (JSON, from our worker) or ``site-file`` (from a stock SuperNode)."""
    settings = context.node_config
    if "site" in settings:
        return SiteConfig.model_validate_json(str(settings["site"]))
    if "site-file" not in settings:
        raise ConfigError("""flower-supernode: no site is named; add --node-config 'site-file="/path/to/site.yaml"'""")
    log_on_stderr()
    return load_site(Path(str(settings["site-file"])))


app = make_app()
