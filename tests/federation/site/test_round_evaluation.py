"""A site's side of evaluations after earlier rounds of a training (``finetune.evaluated_rounds``)."""

import pytest
from harness import asking
from harness.asking import METHOD, evaluating

from sahfl.config import Masking
from sahfl.federation import protocol
from sahfl.federation.site.ledger import Ledger

hospital = asking.hospital


@pytest.mark.parametrize(("round_", "masking"), [(2, None), (3, None), (1, {"clip": 1.0})])
def test_a_site_evaluates_earlier_rounds_alone_and_none_under_masks(hospital, round_, masking):
    task = evaluating(METHOD, round=round_, rounds=2, masking=masking and Masking(**masking))
    kind = protocol.EVALUATE_MASKED if masking else protocol.EVALUATE
    error, line = hospital.refuses(kind, hospital.request(task, hospital.start))
    assert error == "PayloadError"
    if masking is None:
        assert f"got an evaluation after round {round_}, expected an earlier round than the last, 2" in str(line)


def test_the_audit_log_and_the_ledger_have_each_of_them(hospital):
    hospital.config = hospital.config.model_copy(update={"simulated": False})
    for round_ in (1, 0):
        task = evaluating(METHOD, round=round_, rounds=2)
        hospital.send(protocol.EVALUATE, hospital.request(task, hospital.start))
    (_, first), (_, second) = [(line, line["words"]) for line in hospital.audit() if line["event"] == "answered"]
    assert "(cp_lora-r2, fold 0, after round 1)" in first
    assert "(cp_lora-r2, fold 0)" in second
    assert {use.evaluations for use in Ledger(hospital.config).usage().values()} == {2}
