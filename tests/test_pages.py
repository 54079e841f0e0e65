"""The pages of the documents: links, length, snippets of studies and of Python."""

import ast
import importlib
import re
import runpy
from pathlib import Path

import pytest
import yaml
from harness.documents import PAGES, ROOT, TASKS, anchors, blocks, links
from harness.finished_run import write_run
from harness.tiny_study import TINY, changed

from sahfl.config import Study, load_study, parse
from sahfl.model import MultiViewUNet

SITES = {"bern": "bern", "graz": "graz", "linz": "linz", "sah_b": "sah_b"}
PRETRAIN = {"sites": ["tbi_a"], "rounds": 1, "local": {"steps": 1}}
YAML = [(name, code) for name, text in PAGES.items() for code in blocks(text, "yaml")]
PYTHON = [(name, code) for name, text in PAGES.items() for code in blocks(text, "python")]


@pytest.mark.parametrize("name", PAGES)
def test_each_link_leads_to_a_file_and_a_heading(name):
    for link in links(PAGES[name]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        page = target.relative_to(ROOT).as_posix()
        assert target.exists(), f"{name}: {link}: no such file"
        if anchor:
            assert anchor in anchors(PAGES[page]), f"{name}: {link}: no such heading"


def test_links_and_anchors_are_found_as_github_makes_them():
    text = (
        "# A `b_c`, d & e\n## Twice\n[x\ny](a.md#b) ![p](p.png) `[no](no.md)`\n```\n[no](no.md)\n# no\n```\n## Twice\n"
    )
    assert links(text + "[out](https://example.org)") == ["a.md#b", "p.png"]
    assert anchors(text) == {"a-b_c-d--e", "twice", "twice-1"}


def test_the_readme_has_at_most_900_words():
    assert len(PAGES["README.md"].split()) <= 900


def test_every_page_is_reachable_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        if (name := waiting.pop()) not in reached:
            reached.add(name)
            targets = [((ROOT / name).parent / link.partition("#")[0]).resolve() for link in links(PAGES[name])]
            waiting += [page for page in PAGES if ROOT / page in targets]
    assert reached == set(PAGES)


def test_the_site_of_the_documents_has_every_page_to_which_one_of_its_pages_links():
    built = set(runpy.run_path(str(ROOT / "docs" / "conf.py"))["include_patterns"])
    for page in built:
        text = (ROOT / page).read_text(encoding="utf-8")
        targets = [((ROOT / page).parent / link.partition("#")[0]).resolve() for link in links(text)]
        linked = {path.relative_to(ROOT).as_posix() for path in targets if path.suffix == ".md"}
        assert linked <= built, page


def test_the_readme_leads_to_every_page_by_task():
    assert set(TASKS) <= set(links(PAGES["README.md"]))


@pytest.mark.parametrize("name", TASKS)
def test_a_page_by_task_opens_with_what_its_reader_wants(name):
    title, first, _ = PAGES[name].split("\n\n", 2)
    assert title.startswith("# ")
    assert re.match(r"You (want|have|answer|coordinate)\b", first)
    assert re.search(r"\bwant (to|a)\b", first)


def test_pictures_of_the_documents_are_small():
    pictures = list((ROOT / "docs" / "pictures").glob("*"))
    assert pictures
    assert all(picture.stat().st_size < 200_000 for picture in pictures)


@pytest.mark.parametrize(("name", "code"), YAML, ids=[f"{name}-{n}" for n, (name, _) in enumerate(YAML)])
def test_each_block_of_yaml_is_a_study_or_a_part_of_one(name, code, tmp_path):
    settings = yaml.safe_load(code)
    if {"name", "finetune"} <= set(settings):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
        assert load_study(tmp_path / "study.yaml").name == settings["name"]
    else:
        assert parse(Study, _whole(settings), where=name)


def _whole(part):
    """A study with this part; settings of ``finetune`` that the part leaves out are added."""
    sites = part.get("data", {}).get("sites", SITES)
    data = part.get("data", {"source": "folder", "sites": {**sites, "tbi_a": "tbi_a"}})
    start = {"base": "phantom"} if "data" in part else {"pretrain": PRETRAIN}
    finetune = {"sites": list(sites), "rounds": 1, "local": {"steps": 1}, "methods": [{"method": "zero_shot"}]}
    return {"name": "example", **part, "data": data, **start, "finetune": finetune | part.get("finetune", {})}


def test_the_readme_shows_a_whole_study_in_twelve_lines():
    (study,) = [code for name, code in YAML if name == "README.md"]
    assert len(study.splitlines()) == 12


@pytest.mark.parametrize(("name", "code"), PYTHON, ids=[f"{name}-{n}" for n, (name, _) in enumerate(PYTHON)])
def test_each_block_of_python_compiles_and_imports_what_is_there(name, code):
    for node in ast.walk(ast.parse(code, filename=name)):
        if isinstance(node, ast.Import):
            assert all(importlib.import_module(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sahfl":
            assert hasattr(importlib.import_module("sahfl"), node.attr)


def test_the_lines_on_switching_and_averaging_adapters_run(tmp_path, monkeypatch):
    methods = [{"method": "zero_shot"}, {"method": "cp_lora", "rank": 8}]
    write_run(tmp_path / "runs" / "a", changed(TINY, finetune__methods=methods, finetune__folds=3))
    monkeypatch.chdir(tmp_path)
    (code,) = [code for name, code in PYTHON if name == "docs/methods.md"]
    names = {}
    exec(code, names)
    assert isinstance(names["net"], MultiViewUNet)
    assert Path("runs/a") == names["run"]
