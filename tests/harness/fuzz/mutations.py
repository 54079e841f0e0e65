"""Changes of a valid input, which a seed decides: of its bytes, and of the structure that the input's format gives."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from random import Random
from typing import Any

import yaml

MOST_BYTES = 1_000_000
"""A changed input is cut to this length."""
EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)
"""Values for a length field of at most 8 bytes."""
DEPTHS = (3, 60, 1200, 100_000)
TOKENS = (
    b"\0",
    b"'",
    b'"',
    b"{",
    b"}",
    b"[[",
    b"]",
    b"- ",
    b": ",
    b"\n",
    b"\t",
    b"%20",
    b"\r\n",
    b"\xff\xfe",
    b"\\u0000",
)
TOKENS += (b"null", b"true", b"-1", b"NaN", b"Infinity", b"1e999", b"9" * 5000, b"&a *a", b"<<: ", b"!!python/name:os")
TOKENS += (b"../../", b"/dev/zero", b"\\ud800", b"=cmd()", b"\x1b[31m", "\u202e".encode())
DEEP, DIGITS, LARGE = "@deep@", "@digits@", "@large@"
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    0.0,
    -0.5,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
)
VALUES += ("", " ", "x", "0", "..", "/", "a/b", "\0", "\ud800", "x" * 10_000, "9" * 64, [], {}, [[]], [0] * 1000)
VALUES += ({"": ""}, DEEP, DIGITS, LARGE)
"""Values of another kind or size than the one that stood there."""
Change = Callable[[bytes, Random], bytes]


def mutated(name: str, content: bytes, rng: Random, others: tuple[bytes, ...] = ()) -> bytes:
    """A changed copy of a valid input; the ending of ``name`` gives the format, ``others`` are spliced in."""
    change = FORMATS.get(name.rpartition(".")[2])
    if change is not None and rng.random() < 0.6:
        return change(content, rng)[:MOST_BYTES]
    return damaged(content, rng, others)


def damaged(content: bytes, rng: Random, others: tuple[bytes, ...] = ()) -> bytes:
    """A copy with one to four changes of its bytes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(WAYS)(content or b" ", rng)
        if others and rng.random() < 0.05:
            content = _splice(content, rng.choice(others), rng)
    return content[:MOST_BYTES]


def changed_values(value: Any, rng: Random) -> Any:
    """A copy of JSON values with one to three parts replaced, removed, renamed, doubled or moved."""
    top = [value]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not top:  # an earlier change took the whole value
            break
        holder, key = rng.choice(
            [place for place in _places(top) if place[0] is not top or rng.random() < 0.05] or [(top, 0)]
        )
        _change_at(holder, key, top, rng)
    return top[0] if top else None


# ---------------------------------------------------------------------------------------------- bytes


def _flip(content: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def _set(content: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.choice((1, 1, 4))) + content[at + 1 :]


def _cut(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _remove(content: bytes, rng: Random) -> bytes:
    start, end = _range(content, rng)
    return content[:start] + content[end:]


def _repeat(content: bytes, rng: Random) -> bytes:
    start, end = _range(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 2, 1000)) + content[end:]


def _move(content: bytes, rng: Random) -> bytes:
    start, end = _range(content, rng)
    rest = content[:start] + content[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + content[start:end] + rest[at:]


def _insert(content: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(TOKENS) + content[at:]


def _nest(content: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice((b"[", b"{", b'{"a":', b"- ", b"(")) * rng.choice(DEPTHS) + content[at:]


def _length(content: bytes, rng: Random) -> bytes:
    """Another number in the place of what may be a length: binary of 2, 4 or 8 bytes."""
    size = rng.choice((2, 4, 8))
    at = rng.choice((0, rng.randrange(len(content))))
    number = (rng.choice(EXTREMES) % 256**size).to_bytes(size, rng.choice(("little", "big")))
    return content[:at] + number + content[at + size :]


def _splice(content: bytes, other: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _range(content: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice((1, 4, 20, 200)))


WAYS: tuple[Change, ...] = (_flip, _flip, _set, _cut, _remove, _repeat, _move, _insert, _nest, _length)


# ---------------------------------------------------------------------------------------------- values


def _places(top: list[Any]) -> list[tuple[Any, Any]]:
    """Every place of a value: its holder, and its key there."""
    found, waiting = [], [top]
    while waiting:
        holder: Any = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                waiting.append(holder[key])
    return found


def _change_at(holder: Any, key: Any, top: list[Any], rng: Random) -> None:
    match rng.randrange(8):
        case 0 if isinstance(holder, dict):
            holder[rng.choice(("", "x", f"{key}2", str(key).upper(), "__class__"))] = holder.pop(key)
        case 1:
            del holder[key]
        case 2 if isinstance(holder, list):
            holder[key:key] = [holder[key]] * rng.choice((1, 5, 1000))
        case 3:
            other, place = rng.choice(_places(top))
            holder[key] = json.loads(json.dumps(other[place]))  # a copy, so that nothing contains itself
        case 4 if isinstance(holder[key], str) and holder[key]:
            text = damaged(holder[key].encode("utf-8", "replace"), rng)
            holder[key] = text.decode("utf-8", "replace")
        case 5 if type(holder[key]) in (int, float):
            holder[key] = rng.choice((-holder[key], holder[key] + 1, holder[key] * 10**6, str(holder[key])))
        case _:
            holder[key] = deepcopy(rng.choice(VALUES))  # a later change may go on inside it


def as_json(value: Any) -> bytes:
    """JSON of values; the marks among them become what no JSON writer writes: deep nesting, and numbers without end."""
    text = json.dumps(value)
    text = text.replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000).replace(f'"{DIGITS}"', "9" * 5000)
    return text.replace(f'"{LARGE}"', "1e999").encode()


# ---------------------------------------------------------------------------------------------- formats


def _json(content: bytes, rng: Random) -> bytes:
    return as_json(changed_values(json.loads(content), rng))


def _json_lines(content: bytes, rng: Random) -> bytes:
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def _yaml(content: bytes, rng: Random) -> bytes:
    """Changed values, as the JSON that YAML contains; now and then aliases of aliases, each ten times the last."""
    if rng.random() < 0.02:
        lines = [
            f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, rng.choice((3, 9)))
        ]
        return content + "\n".join(["", "a0: &a0 [x, x]", *lines, ""]).encode()
    return as_json(changed_values(json.loads(_yaml_as_json(content)), rng))


@cache
def _yaml_as_json(content: bytes) -> str:
    return json.dumps(yaml.safe_load(content))


def _gzip(content: bytes, rng: Random) -> bytes:
    return gzip.compress(damaged(gzip.decompress(content), rng), 1, mtime=0)


def _safetensors(content: bytes, rng: Random) -> bytes:
    """Another header, with its length."""
    length = int.from_bytes(content[:8], "little")
    header = _json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


FORMATS: dict[str, Change] = {
    "json": _json,
    "jsonl": _json_lines,
    "yaml": _yaml,
    "gz": _gzip,
    "safetensors": _safetensors,
}
"""What changes the structure of a format, by the ending of its files' names."""
