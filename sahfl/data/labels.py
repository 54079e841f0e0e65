"""Which names of labels mean blood: every label counts as hemorrhage, so none may be anything else."""

from __future__ import annotations

import re

_BLOOD = re.compile(
    r"ha?emorrh?ag|ha?ematom|ha?ematoma|bleed|blood|clot|contusion|subarachnoid|subdural|epidural|extradural"
    r"|intraventricular|intraparenchymal|intracerebral|\b(ich|iph|ivh|sah|sdh|edh|eah|cph)\b"
)
_OTHER = re.compile(r"o?edema|peri|hygroma|effusion|vessel|infarct|\b(no|non|without)\b")


def is_blood(name: str) -> bool:
    """The label's name says that it is blood, in a word or as IPH, IVH, SAH, SDH, EDH; unknown names are not."""
    words = re.sub(r"[^a-z]+", " ", name.lower())
    return bool(_BLOOD.search(words)) and not _OTHER.search(words)
