"""What fuzzing found before, and where it begins, is still as it has to be."""

import os
from pathlib import Path

import pytest
import targets

CORPUS = Path(__file__).parent / "corpus"
FOUND = [path for path in sorted(CORPUS.rglob("*")) if path.is_file()]


@pytest.fixture(scope="module")
def question(small_run):
    """The target `query`, which looks at the present folder as well."""
    before = Path.cwd()
    yield targets.Question(small_run.folder)
    os.chdir(before)


@pytest.mark.parametrize("path", [path for path in FOUND if path.parent.name != "query"],
                         ids=lambda path: f"{path.parent.name}/{path.name[:8]}")
def test_what_was_found_is_read(path):
    targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", targets.TARGETS)
def test_where_fuzzing_begins_is_read(target):
    for data in targets.seeds()[target]:
        targets.TARGETS[target](data)


def test_questions_end_in_answers_or_one_kind_of_error_and_write_nothing(question):
    for path in FOUND:
        if path.parent.name == "query":
            question(path.read_bytes())
    for data in targets.seeds()["query"]:
        question(data)


def test_the_corpus_is_small():
    assert len(FOUND) <= 200
    assert sum(path.stat().st_size for path in FOUND) <= 300_000
