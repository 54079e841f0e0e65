"""An archive over DICOMweb: searches, single instances and stored objects, all of bounded size and time.

dicomweb-client speaks the protocol, an optional dependency (``pip install 'sahfl[dicomweb]'``).
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from sahfl.errors import ConfigError, PacsError
from sahfl.pacs.login import Login

if TYPE_CHECKING:
    from dicomweb_client.api import DICOMwebClient

CONNECT_S, READ_S, WHOLE_S = 10.0, 60.0, 300.0
"""Longest time to connect, between two parts of an answer, and for a whole answer."""
TRIES, PAUSE_MS = 3, 250
"""Attempts of a request, and the first pause between two of them."""
INSTANCE_BYTES = 1 << 29
"""Largest answer: an enhanced CT of 1000 slices, or 1000 entries of a search."""
PAGE, MOST_INSTANCES, MOST_SERIES = 500, 4000, 500
"""Entries of one search; instances of a series, and series of a study. A head CT has up to 1000 slices."""


def require_dicomweb() -> None:
    """Check before the work that an archive can be asked.

    Raises:
        ConfigError: dicomweb-client is not installed.
    """
    if find_spec("dicomweb_client") is None:
        remedy = "pip install 'sahfl[dicomweb]'"
        raise ConfigError(f"an archive is asked with dicomweb-client, which is not installed; {remedy}")


class Archive:
    """The services of one archive."""

    def __init__(self, url: str, login: Login | None = None, *, authority: Path | None = None) -> None:
        """Prepare the connection; ``authority`` is a file of the certificates (PEM) that the archive's is checked with.

        Raises:
            ConfigError: dicomweb-client is not installed, or the file of certificates is missing.
        """
        require_dicomweb()
        if authority is not None and not authority.is_file():
            raise ConfigError(f"{authority}: got no file, expected certificates (PEM) of the archive's authority")
        self._client = _client(url, login, authority)

    def search(self, kind: str, *uids: str, **filters: str) -> list[Dataset]:
        """All ``studies``, ``series`` or ``instances`` that match, page by page.

        Args:
            kind: what to search.
            uids: the study, and the series, to search in.
            filters: keywords of elements and the values that they must have.

        Raises:
            PacsError: the archive does not answer, refuses, or has more than ``MOST_INSTANCES``.
        """
        found: dict[str, Dataset] = {}
        most = MOST_SERIES if kind == "series" else MOST_INSTANCES
        key = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}[kind]
        search = getattr(self._client, f"search_for_{kind}")
        while len(found) <= most:
            with _speaking():
                page = search(
                    *uids, search_filters=filters or None, limit=PAGE, offset=len(found), fields=_FIELDS[kind]
                )
                new = {str(item.get(key)): item for item in map(Dataset.from_json, page)}
            before = len(found)
            found |= new
            if len(found) == before:  # a server that knows no offset gives the same page again
                return list(found.values())
        raise PacsError(f"the archive: got more than {most} {kind}, expected a head CT")

    def retrieve(self, study: str, series: str, instance: str) -> Dataset:
        """One instance, compressed as the archive stores it.

        Raises:
            PacsError: the archive does not answer or refuses, or sends another instance.
        """
        with _speaking():
            found: Dataset = self._client.retrieve_instance(
                study, series, instance, media_types=(("application/dicom", "*"),)
            )
            got = tuple(str(found.get(name)) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
        if got != (study, series, instance):
            raise PacsError("the archive sent another instance than it was asked for")
        return found

    def store(self, dataset: Dataset) -> None:
        """Store an instance in its study.

        Raises:
            PacsError: the archive does not answer, or refuses it.
        """
        with _speaking():
            answer = self._client.store_instances([dataset], study_instance_uid=str(dataset.StudyInstanceUID))
            failed = answer.get("FailedSOPSequence")
            code = int(failed[0].get("FailureReason", 0)) if failed else None
        if code is not None:
            raise PacsError(f"the archive refused the object (failure reason {code:#06x}, DICOM PS3.18)")


_FIELDS: Mapping[str, list[str]] = {
    "studies": [
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
        *("AccessionNumber", "ReferringPhysicianName", "StudyInstanceUID"),
    ],
    "series": ["Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "NumberOfSeriesRelatedInstances"],
    "instances": ["SOPInstanceUID", "SOPClassUID", "InstanceNumber"],
}


@contextmanager
def _speaking() -> Iterator[None]:
    """Turn what libraries raise into a PacsError; their texts, which quote addresses with identifiers, are dropped."""
    import requests

    loggers = [logging.getLogger(name) for name in ("dicomweb_client", "pydicom", "urllib3", "retrying")]
    before = [log.disabled for log in loggers]
    for log in loggers:
        log.disabled = True
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        hints = {401: "check the login", 403: "the login may not do this", 404: "the archive has no such thing"}
        raise PacsError(f"the archive answered HTTP {code}; {hints.get(code, 'see its log')}") from None
    except requests.exceptions.SSLError:
        remedy = "name the file of its authority's certificates (authority)"
        raise PacsError(f"the archive's certificate cannot be checked; {remedy}") from None
    except requests.exceptions.ConnectionError:
        raise PacsError("the archive cannot be reached; check its address and the firewall") from None
    except requests.exceptions.Timeout:
        raise PacsError(f"the archive did not answer within {READ_S:g} s; try again later") from None
    except (requests.RequestException, json.JSONDecodeError, InvalidDicomError, *_ODD) as error:
        raise PacsError(f"the archive's answer cannot be read ({type(error).__name__})") from None
    finally:
        for log, was in zip(loggers, before, strict=True):
            log.disabled = was


_ODD = (ValueError, TypeError, KeyError, AttributeError, IndexError, OSError, EOFError, NotImplementedError)
"""What the libraries raise on answers that are no DICOMweb."""


def _client(url: str, login: Login | None, authority: Path | None) -> DICOMwebClient:
    import requests
    from dicomweb_client.api import DICOMwebClient

    class BoundedSession(requests.Session):
        """Reads whole answers of bounded size in bounded time, and follows no redirection."""

        def send(self, request: Any, **options: Any) -> Any:
            options |= {"stream": True, "allow_redirects": False}
            until = time.monotonic() + WHOLE_S
            response = super().send(request, **options)
            if response.is_redirect:
                raise PacsError("the archive redirects to another address; name that one")
            content = bytearray()
            for part in response.iter_content(1 << 20):
                content += part
                if len(content) > INSTANCE_BYTES:
                    raise PacsError(f"the archive's answer has more than {INSTANCE_BYTES >> 20} MiB")
                if time.monotonic() > until:
                    raise PacsError(f"the archive's answer took more than {WHOLE_S:g} s")
            response._content = bytes(content)  # as requests keeps it when it does not stream
            return response

    session = BoundedSession()
    session.trust_env = False  # neither logins of .netrc, nor proxies, nor other authorities
    session.verify = str(authority) if authority is not None else True
    if login is not None and login.token is not None:
        session.headers["Authorization"] = f"Bearer {login.token}"
    elif login is not None and login.user is not None:
        basic = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
        session.headers["Authorization"] = f"Basic {basic}"
    client = DICOMwebClient(url, session=session, timeout=(CONNECT_S, READ_S), permissive_uid=True)
    client.set_http_retry_params(retry=True, max_attempts=TRIES, wait_exponential_multiplier=PAUSE_MS)
    return client
