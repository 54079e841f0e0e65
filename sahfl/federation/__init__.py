"""The federation: messages, the site's and the server's app, rounds, and the grid that runs them on one machine.

Flower reads its telemetry switch when it is first imported, and nothing outside this package imports it.
"""

import os
import sys

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def start_quickly() -> None:
    """Let this process, which is ours alone, start in half the time: MONAI imports transformers where it is installed.

    Nothing here uses it. A program that uses sahfl as a library must not call this.
    """
    sys.modules.setdefault("transformers", None)  # type: ignore[arg-type] # None: as if it were not installed
