"""``sahfl doctor``: reports what would keep a site or a server from working, one line and one remedy each.

It contacts only the server that the kit names, changes nothing on disk, and reads of scans the headers only.
"""

from sahfl.doctor.findings import Finding, as_json, as_lines, healthy, naming_settings
from sahfl.doctor.server import examine_server
from sahfl.doctor.site import examine_site

__all__ = ["Finding", "as_json", "as_lines", "examine_server", "examine_site", "healthy", "naming_settings"]
