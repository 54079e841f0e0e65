"""Parts of a message as an attacker makes them: another content, with all ids made anew so that each fits."""

import hashlib
import json


def with_pieces(tree, contents, places):
    """Let the only array of a message name its pieces by these places."""
    (old,) = [id_ for id_, content in contents.items() if content.startswith(b"Array ")]
    head, _, body = contents[old].partition(b"\x00")
    body = json.dumps(json.loads(body) | {"arraychunk_ids": places}).encode()
    kind, parts, _ = head.split(b" ")
    _replace(tree, contents, old, b" ".join((kind, parts, str(len(body)).encode())) + b"\x00" + body)


def with_content(tree, contents, content):
    """Put another content in the place of the only array of a message."""
    (old,) = [id_ for id_, found in contents.items() if found.startswith(b"Array ")]
    _replace(tree, contents, old, content)


def _replace(tree, contents, old, content):
    new = hashlib.sha256(content).hexdigest()
    del contents[old]
    contents[new] = content
    _rename(tree, old, new)
    for id_, above in list(contents.items()):
        if id_ != new and old.encode() in above:
            _replace(tree, contents, id_, above.replace(old.encode(), new.encode()))


def _rename(tree, old, new):
    if tree.object_id == old:
        tree.object_id = new
    for child in tree.children:
        _rename(child, old, new)
