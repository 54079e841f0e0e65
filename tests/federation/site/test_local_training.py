"""FedProx over whole rounds."""

import pytest
from harness.tiny_study import TINY, changed


@pytest.mark.slow
def test_with_a_proximal_term_every_site_s_change_is_shorter(federate):
    lengths = []
    for index, proximal in enumerate((0.0, 100.0)):
        local = {"steps": 4, "batch_size": 2, "proximal": proximal}
        settings = changed(TINY, finetune__rounds=1, finetune__local=local)
        folder, _ = federate(settings, name=f"run-{index}")
        (line,) = [n for n in folder.journal() if n["event"] == "round" and n.get("fold") == 0]
        lengths.append(line["norms"])
    free, pulled = lengths
    assert free.keys() == pulled.keys() == {"sah_a", "sah_b", "sah_c"}
    assert all(pulled[site] < free[site] for site in free)
