"""The site builds without a warning, and loads nothing from other hosts."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "docs" / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert "WARNING" not in built.stdout + built.stderr
    return folder


def test_nothing_is_loaded_from_other_hosts(site):
    assert script("outside").outside(site) == []


def test_every_page_and_block_is_in_the_site(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    reference = (site / "reference" / "nn.html").read_text()
    assert all(name in reference for name in ("PAT_ch", "PAT_sp", "PAT_sf", "PConv", "partial_ratio"))


def test_equations_are_mathml(site):
    text = (site / "network.html").read_text()
    assert text.count("<math") > 20
    assert "arithmatex" not in text
    assert re.search(r"\$[^<$]*\\[a-z]+", text) is None


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/a.css">',
        '<link rel="preconnect" href="https://fonts.example.org">',
        "<style>@import url(https://example.org/a.css)</style>",
        '<img src="https://example.org/a.png">',
        '<pre class="mermaid">',
    ],
)
def test_requests_to_other_hosts_are_found(tmp_path, text):
    (tmp_path / "a.html").write_text(f'<a href="https://example.org">fine</a>{text}')
    assert len(script("outside").outside(tmp_path)) == 1


def test_drawings_are_up_to_date(tmp_path):
    drawings = script("drawings")
    drawings.main(tmp_path)
    for name in drawings.DRAWINGS:
        file = f"{name}.svg"
        assert (tmp_path / file).read_text() == (ROOT / "docs" / "images" / file).read_text()
        assert file in (ROOT / "docs" / "network.md").read_text()


def test_the_menu_has_every_page(tmp_path):
    for name in ("index.md", "other.md", "reports/a.md", "guides/first.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    config = {"docs_dir": str(tmp_path), "nav": ["index.md", {"Guides": ["guides/first.md"]}]}
    menu = ["index.md", {"Guides": ["guides/first.md"]}, {"More": ["other.md", "reports/a.md"]}]
    assert script("menu").on_config(config)["nav"] == menu
