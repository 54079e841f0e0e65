"""The federation: messages, the site's and the server's app, rounds, and the grid that runs them on one machine.

Flower reads its telemetry switch when it is first imported, and nothing outside this package imports it.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
