"""The table of sources; the ``source`` of a data section selects the class that reads it."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter, ValidationInfo

from sahfl.data.sources.datalist import SiteScansDatalist, StudyScansDatalist
from sahfl.data.sources.folders import SiteScansFolder, StudyScansFolders
from sahfl.data.sources.phantom import SiteScansPhantom, StudyScansPhantom
from sahfl.data.sources.scans import SiteScans, StudyScans, StudyScansAtSites
from sahfl.section import Section, SectionOf


@dataclass(frozen=True)
class Source:
    """The data sections of one source in a study file and in a site file (None if a site cannot have it)."""

    study: type[StudyScans]
    site: type[SiteScans] | None


SOURCES = (
    Source(StudyScansPhantom, SiteScansPhantom),
    Source(StudyScansDatalist, SiteScansDatalist),
    Source(StudyScansFolders, SiteScansFolder),
    Source(StudyScansAtSites, None),
)


def site_sections() -> tuple[type[SiteScans], ...]:
    """The classes for the data section of a site file."""
    return tuple(source.site for source in SOURCES if source.site is not None)


def one_of(sections: Sequence[type[Section]], value: Any, info: ValidationInfo) -> Any:
    """Read ``value`` as the section that its ``source`` names.

    Raises:
        ValidationError: its source is unknown, or it has other problems; the error lists all of them.
    """
    form = _union(tuple(sections))
    if info.mode == "json":  # as JSON, because strict mode accepts a list for a tuple only there
        return form.validate_json(json.dumps(value), context=info.context)
    return form.validate_python(value, context=info.context)


@cache
def _union(sections: tuple[type[Section], ...]) -> TypeAdapter[Any]:
    union: Any = Annotated[reduce(operator.or_, sections), Field(discriminator="source")]
    return TypeAdapter(union)


def _read_study_scans(value: Any, info: ValidationInfo) -> Any:
    return one_of(study_sections(), value, info)


def _read_site_scans(value: Any, info: ValidationInfo) -> Any:
    return one_of(site_sections(), value, info)


def study_sections() -> tuple[type[StudyScans], ...]:
    """The classes for the data section of a study file."""
    return tuple(source.study for source in SOURCES)


AnyStudyScans = Annotated[SerializeAsAny[StudyScans], BeforeValidator(_read_study_scans), SectionOf(study_sections)]
"""The data section of a study file, of any source."""
AnySiteScans = Annotated[SerializeAsAny[SiteScans], BeforeValidator(_read_site_scans), SectionOf(site_sections)]
"""The data section of a site file, of any source."""
