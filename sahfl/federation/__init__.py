"""The federation: messages, the site's app, the server's app and its rounds, and the connection between them.

Flower reads its telemetry switch at its first import, which is always inside this package, so the switch is set here.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
