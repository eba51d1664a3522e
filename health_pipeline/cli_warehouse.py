"""The warehouse, as commands open it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from health_pipeline.cli_progress import say

if TYPE_CHECKING:
    from health_pipeline.settings import Settings
    from health_pipeline.warehouse.connection import Warehouse


def open_configured() -> tuple[Settings, Warehouse]:
    """The settings and their warehouse; says so where it has to be made first."""
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    settings = load_settings()
    if settings.database_url is None and not (settings.home_path / "postgres").exists():
        say(f"setting up a database in {settings.home} (once)")
    return settings, open_warehouse(settings)
