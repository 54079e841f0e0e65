"""Versions of sahfl that mix: a request, or a site's folder, of another version than this site's program."""

from harness import asking
from harness.asking import training

from sahfl.federation import protocol

hospital = asking.hospital
TRAIN = protocol.TRAIN


def test_a_request_of_another_version_is_refused_by_name_and_audited_with_both_versions(hospital):
    error, line = hospital.refuses(TRAIN, hospital.request(training(), hospital.start, sahfl="9.9.9"))
    assert (error, line["event"]) == ("VersionsDiffer", "refused")
    assert line["details"]["reason"].startswith("versions differ: the request is of sahfl '9.9.9', payload 1; this")
