"""Which label names mean blood: every label counts as hemorrhage, so a label for anything else is an error."""

from __future__ import annotations

import re

_BLOOD = re.compile(
    r"ha?emorrh?ag|ha?ematom|ha?ematoma|bleed|blood|clot|contusion|subarachnoid|subdural|epidural|extradural"
    r"|intraventricular|intraparenchymal|intracerebral|\b(ich|iph|ivh|sah|sdh|edh|eah|cph)\b"
)
_OTHER = re.compile(r"o?edema|peri|hygroma|effusion|vessel|infarct|\b(no|non|without)\b")


def is_blood(name: str) -> bool:
    """Test whether a label's name is a word for blood or one of IPH, IVH, SAH, SDH, EDH; False for unknown names."""
    words = re.sub(r"[^a-z]+", " ", name.lower())
    return bool(_BLOOD.search(words)) and not _OTHER.search(words)
