"""The README's Python runs as it stands, for what needs no files of the reader's own."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if ".pth" not in code]


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.strip().splitlines()[0])
def test_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_examples_and_pictures():
    assert len(EXAMPLES) >= 2
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text())
    assert pictures
    assert all((README.parent / picture).is_file() for picture in pictures)
