"""Imports run one way, and each room knows only what it may."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "health_pipeline"

#: What each room may import of the others; the order is from the bottom up.
MAY_IMPORT: dict[str, set[str]] = {
    "settings": set(),
    "engine": set(),
    "sandbox": set(),
    "providers": set(),
    "raw": {"warehouse"},
    "warehouse": {"settings"},
    "connections": {"providers", "settings", "warehouse"},
    "outgoing": {"engine", "settings", "warehouse"},
    "staging": {"providers", "raw", "warehouse"},
    "ingestion": {"connections", "providers", "raw", "settings", "staging", "warehouse"},
    "receiver": {"connections", "ingestion", "providers", "raw", "settings", "warehouse"},
    "defs": {
        "connections",
        "engine",
        "ingestion",
        "outgoing",
        "providers",
        "raw",
        "settings",
        "staging",
        "warehouse",
    },
    "definitions": {"defs"},
    "runtime": {
        "connections",
        "definitions",
        "defs",
        "ingestion",
        "outgoing",
        "providers",
        "raw",
        "receiver",
        "sandbox",
        "settings",
        "staging",
        "warehouse",
    },
    "cli_connections": {"cli_progress", "cli_warehouse", "providers", "runtime"},
    "cli_load": {"cli_progress", "providers", "runtime", "sandbox", "settings", "warehouse"},
    "cli_personal": {"runtime", "warehouse"},
    "cli_progress": set(),
    "cli_tokens": {"connections", "runtime", "warehouse"},
    "cli_warehouse": {"cli_progress", "settings", "warehouse"},
    "cli_webhooks": {"runtime", "settings", "warehouse"},
    "cli": {
        *("cli_connections", "cli_load", "cli_personal", "cli_progress", "cli_tokens", "cli_warehouse"),
        "cli_webhooks",
        *("providers", "runtime", "sandbox", "settings", "warehouse"),
    },
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module)
            if node.module == "health_pipeline":
                names.update(f"health_pipeline.{alias.name}" for alias in node.names)
    return names


MODULES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    here = room(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("health_pipeline.")} - {here}
    assert others <= MAY_IMPORT[here]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dagster_stays_in_its_room(path: Path) -> None:
    uses = any(name.split(".")[0].startswith("dagster") for name in imported(path))
    assert not uses or room(path) in ("defs", "definitions", "runtime")


def test_the_engine_does_no_input_or_output() -> None:
    for path in (PACKAGE / "engine").glob("*.py"):
        roots = {name.split(".")[0] for name in imported(path)}
        assert roots.isdisjoint({"sqlalchemy", "psycopg2", "boto3", "pathlib", "os", "httpx"}), path


def test_the_sandbox_shares_nothing_with_our_parsers() -> None:
    for path in (PACKAGE / "sandbox").rglob("*.py"):
        others = {name for name in imported(path) if name.startswith("health_pipeline.")}
        assert all(name.startswith("health_pipeline.sandbox") for name in others), path
