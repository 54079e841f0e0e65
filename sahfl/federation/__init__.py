"""The federation: messages, the site's app, the server's app and its rounds, and the connection between them.

Flower reads its telemetry switch at its first import, which is always inside this package, so the switch is set here.
"""

import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def start_quickly() -> None:
    """Keep MONAI from importing transformers, which nothing here uses; this halves the start time of the process.

    Programs that use sahfl as a library must not call this function.
    """
    sys.modules.setdefault("transformers", None)  # type: ignore[arg-type] # None: as if it were not installed
