"""The helper that runs documents: it can fail."""

from __future__ import annotations

import re

import pytest
from docrun import blocks, faults, matches, plain_call, run_document, spans, steps, workplace

DOCUMENT = """
# Title

```console
$ echo one \\
    two
one two
$ printf 'a\\nb\\nc\\n'
a
...
$ touch made
```

A sentence with `quantkit table diff`, and `quantkit run demo
--json` over two lines.

<!-- exit 3 -->
```sh
# what is above made it
test -f made   # a remark
(exit 3)
```

```python
import quantkit
assert quantkit.__version__ and given == 1
```

```python
assert quantkit
```

```sh
false
```

```json
{}
```
"""


@pytest.fixture
def write(tmp_path):
    def make(text: str):
        path = tmp_path / "doc.md"
        path.write_text(text)
        return path

    return make


@pytest.fixture
def run(tmp_path):
    """Runs a document, `false` excepted, in a folder of its own."""
    folder = tmp_path / "place"
    folder.mkdir()
    looked_at = []

    def go(document):
        with workplace(folder):
            count = run_document(document, {"given": 1}, {"false": looked_at.append})
        assert looked_at == ["false"]
        return count

    return go


def test_all_commands_are_run_in_one_folder(write, run):
    document = write(DOCUMENT)
    languages = [(block.language, block.exit) for block in blocks(document)]
    assert languages == [("console", 0), ("sh", 3), ("python", 0), ("python", 0), ("sh", 0), ("json", 0)]
    assert [step.exit for step in steps(document)] == [0, 0, 0, 0, 3, 0, 0, 0]
    assert run(document) == 7
    assert faults(document) == []
    assert spans(document) == [["table", "diff"], ["run", "demo", "--json"]]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("one two\n$", "one three\n$", "doc.md:4"),
        ("exit 3 -->", "exit 0 -->", "ends with 3, not 0"),
        ("assert quantkit.__version__", "raise SystemExit(1)", "doc.md:24"),
        ("and given == 1", "and given == 2", "AssertionError"),
        ("touch made", "no_such_program", "ends with 127, not 0"),
        ("touch made", "quantkit tables", "ends with 2, not 0"),
    ],
)
def test_it_can_fail(write, run, old, new, words):
    assert old in DOCUMENT
    with pytest.raises(AssertionError, match=re.escape(words)):
        run(write(DOCUMENT.replace(old, new, 1)))


def test_a_block_without_a_command_is_an_error(write):
    with pytest.raises(ValueError, match=r"doc\.md:1: there is no command in it"):
        steps(write("```console\nno prompt\n```\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```\nmake demo\n```\n", "doc.md:1: a block of no language"),
        ("```shell\nmake demo\n```\n", "doc.md:1: a block of shell"),
        ("```text\n$ make demo\n```\n", "doc.md:1: a command in a block of text"),
        ("```text\nquantkit run demo\n```\n", "doc.md:1: a command in a block of text"),
        ("Do:\n\n    venv/bin/python x.py\n", "doc.md: a command in an indented block: venv/bin/python x.py"),
    ],
)
def test_a_command_that_would_not_be_run_is_found(write, text, words):
    assert faults(write(text)) == [words]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("quantkit run 'a b' \\\n  --json", ["quantkit", "run", "a b", "--json"]),
        ("quantkit table show '*|x*'", ["quantkit", "table", "show", "*|x*"]),
        ("quantkit doctor | head", None),
        ("quantkit doctor > file", None),
        ("echo quantkit", None),
    ],
)
def test_calls_that_need_no_shell(command, words):
    assert plain_call(command) == words


@pytest.mark.parametrize(
    ("shown", "actual", "same"),
    [
        ("a\nb", "a  \nb\n", True),
        ("a\n...\nd", "a\nb\nc\nd\n", True),
        ("a\n...\nd", "a\nd\n", True),
        ("took ... ms", "took 12.5 ms", True),
        ("a", "a\nb", False),
        ("...\nb", "a", False),
        ("a.c", "abc", False),
    ],
)
def test_output_is_compared_line_by_line(shown, actual, same):
    assert matches(shown, actual) == same
