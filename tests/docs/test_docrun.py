"""The helper that runs documents: it can fail."""

from __future__ import annotations

import re

import pytest
from docrun import blocks, matches, run_document, unmarked

DOCUMENT = """
# Title

<!-- run -->
```console
$ echo one \\
    two
one two
$ printf 'a\\nb\\nc\\n'
a
...
$ touch made
```

<!-- run exit=3 -->
```sh
test -f made
exit 3
```

<!-- run -->
```python
import quantkit
assert quantkit.__version__
```

<!-- not run: needs a GPU -->
```console
$ false
```

```console
$ nobody said whether
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


def test_marked_blocks_are_run_in_one_folder(write, tmp_path):
    document = write(DOCUMENT)
    assert [(b.language, b.mark, b.exit) for b in blocks(document)] == [
        *(("console", "run", 0), ("sh", "run", 3), ("python", "run", 0)),
        *(("console", "not run", 0), ("console", "", 0), ("json", "", 0)),
    ]
    assert run_document(document, tmp_path) == 3
    assert unmarked(document) == ["doc.md:32"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("one two\n$", "one three\n$", "doc.md:5"),
        ("exit=3", "exit=0", "ends with 3, not 0"),
        ("assert quantkit.__version__", "raise SystemExit(1)", "doc.md:22"),
        ("touch made", "false", "ends with 1, not 0"),
    ],
)
def test_it_can_fail(write, tmp_path, old, new, words):
    assert old in DOCUMENT
    with pytest.raises(AssertionError, match=re.escape(words)):
        run_document(write(DOCUMENT.replace(old, new, 1)), tmp_path)


def test_a_block_without_a_command_is_an_error(write, tmp_path):
    with pytest.raises(AssertionError, match=r"doc\.md:2: there is no command in it"):
        run_document(write("<!-- run -->\n```console\nno prompt\n```\n"), tmp_path)


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
