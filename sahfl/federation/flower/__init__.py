"""The only package that uses private parts of flwr 1.42; ``tests/federation/flower/test_flower.py`` is its contract.

Outside a Flower runtime, Flower's public ``Message`` reads the identity of the running task from a private class, and
the SuperLink gives it its id. Our own grids have to set both.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "Run",
    "empty_run",
    "enter_run",
    "error_class",
    "error_reply",
    "give_id",
    "is_crash",
    "is_unreachable",
    "new_message",
    "new_run_id",
    "reason",
    "send_and_wait",
    "silence",
]
SERVER_NODE_ID = 1
CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,59}")
WRAPPED = re.compile(r"<class '[\w.]+'>:<'(.*)'>", re.DOTALL)
"""The text into which a stock SuperNode turns an exception of a ClientApp."""


def silence() -> None:
    """End Flower's own log in this process: its lines have colours, and its handler writes each of them once more."""
    logger = logging.getLogger("flwr")
    logger.handlers.clear()
    logger.setLevel(logging.CRITICAL)  # gate, grid and workers log what matters


def enter_run(run_id: int, node_id: int = SERVER_NODE_ID) -> None:
    """Set the run and the node of all messages made in this process, and silence Flower's log."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, node_id, 1
    silence()


def new_run_id() -> int:
    """A random run id that fits Flower's signed 64 bits."""
    return uuid.uuid4().int >> 65


def empty_run(run_id: int) -> Run:
    """A run object without an app, for ``Grid.run``."""
    return Run.create_empty(run_id)


def new_message(content: RecordDict, node_id: int, message_type: str, group_id: str, ttl: float | None) -> Message:
    """Make a message to a node."""
    return Message(content, node_id, message_type, ttl=ttl, group_id=group_id)


def give_id(message: Message) -> str:
    """Give a message an id, as the SuperLink does, and return it."""
    message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
    return message.metadata.message_id


def error_reply(request: Message, reason: str, *, crash: bool = False, unreachable: bool = False) -> Message:
    """Make the error reply to a request that a site could not answer.

    Args:
        request: the message without an answer.
        reason: text of the error.
        crash: the site's process is lost, so that a second request may succeed.
        unreachable: the site is not connected, or no longer registered.
    """
    code = ErrorCode.CLIENT_APP_CRASHED if crash else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return Message(Error(ErrorCode.NODE_UNAVAILABLE if unreachable else code, reason), reply_to=request)


def reason(reply: Message) -> str:
    """The text of an error reply, without the wrapping that a stock SuperNode adds."""
    text = str(reply.error.reason)
    wrapped = WRAPPED.fullmatch(text)
    return wrapped[1] if wrapped else text


def error_class(reply: Message) -> str:
    """The class of an error reply's error; a text of the site that is no name of a class leaves nothing of itself."""
    text = reason(reply)
    return text if CLASS_NAME.fullmatch(text) else "ProcessLost" if is_crash(reply) else "OtherError"


def is_crash(reply: Message) -> bool:
    """Whether a reply reports that the site's process is lost, so that a second request may succeed."""
    return reply.has_error() and reply.error.code == ErrorCode.CLIENT_APP_CRASHED


def is_unreachable(reply: Message) -> bool:
    """Whether a reply reports that the site is not connected, or that the message or its reply is lost."""
    unreached = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
    return reply.has_error() and reply.error.code in unreached


def send_and_wait(grid: Grid, messages: Iterable[Message], timeout: float | None) -> list[Message]:
    """Push messages, and wait for all replies or ``timeout`` seconds; for grids whose ``pull_messages`` waits."""
    waiting, replies = set(grid.push_messages(messages)), []
    end = None if timeout is None else time.monotonic() + timeout
    while waiting and (end is None or time.monotonic() < end):
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(reply)
    return replies
