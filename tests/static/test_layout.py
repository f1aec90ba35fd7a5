"""What holds for the tree itself: names of files, what git ignores, links between pages."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("data", "train")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def pages(root: Path) -> list[Path]:
    """All pages that people read."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]


def test_no_module_bears_a_name_of_the_standard_library(root: Path) -> None:
    # A script started by path has its folder first on sys.path, where such a file would hide the library's.
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    assert len(files) > 50
    names = {path: path.parent.name if path.name == "__init__.py" else path.stem for path in files}
    assert [str(path) for path, name in names.items() if name in sys.stdlib_module_names - {"__main__"}] == []


def test_git_ignores_what_is_made_and_nothing_of_the_packages(root: Path) -> None:
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    kept = ["data/new.py", "data/sample/new.py", "train/model/new.py", "docs/data/new.md", "launch/hosts.example"]
    made = ["shards/manifest.json", "runs/a/status.json", "launch/hosts", ".deepspeed_env", ".venv/x", "wandb/x"]
    found = subprocess.run(
        ["git", "check-ignore", "--no-index", *kept, *made], cwd=root, capture_output=True, text=True, check=False
    )
    assert found.stdout.split() == made


def test_links_between_pages_lead_somewhere(root: Path) -> None:
    broken = []
    for page in pages(root):
        for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
            path = target.partition("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(root)}: {target}")
    assert broken == []
