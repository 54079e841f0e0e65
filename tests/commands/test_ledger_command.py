"""``sahfl ledger``."""

import json

import yaml

from sahfl.config import load_site
from sahfl.federation.site.ledger import FILE, Ledger
from sahfl.payload import Header


def test_the_scans_are_listed_by_use_with_what_is_left(sahfl, tmp_path):
    settings = {"name": "sah_a", "folder": "work", "data": {"source": "datalist", "path": "d.json"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(settings | {"policy": {"budget": {"rounds": 9}}}))
    code, out, _ = sahfl("ledger", tmp_path / "site.yaml")
    assert (code, out.strip()) == (
        0, "0 scans used; left to the one used most: 9 of 9 rounds, 500 of 500 evaluations",
    )  # fmt: skip
    (tmp_path / "work").mkdir()
    book = Ledger(load_site(tmp_path / "site.yaml"))
    for study, scans in (("1" * 64, ("a" * 64, "b" * 64)), ("2" * 64, ("b" * 64,))):
        header = Header(study, stage="finetune", method="cp_lora-r2", fold=0, round=1, base="")
        book.reserve("round", header, study, scans)
    code, out, _ = sahfl("ledger", tmp_path / "site.yaml")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[1:3] == [["b" * 12, "2", "0", "2"], ["a" * 12, "1", "0", "1"]]
    assert out.splitlines()[-1].startswith("2 scans used; left to the one used most: 7 of 9 rounds")
    found = json.loads(sahfl("ledger", tmp_path / "site.yaml", "--json")[1])
    assert (found["left"], found["scans"][0]["studies"]) == ({"rounds": 7, "evaluations": 500}, ["1" * 64, "2" * 64])
    (tmp_path / "work" / FILE).write_text("")
    code, _, err = sahfl("ledger", tmp_path / "site.yaml")
    assert code == 3
    assert "it was cut, changed or put back" in err
