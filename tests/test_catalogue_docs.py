"""The committed pages of metrics and tables are what the project says now."""

from __future__ import annotations

from pathlib import Path

import pytest

from health_pipeline.runtime.catalogue_docs import DOCS_DIR, PAGES, data_model_page, metrics_page, write


@pytest.mark.parametrize("name", PAGES)
def test_page_is_up_to_date(name: str) -> None:
    assert (DOCS_DIR / name).read_text(encoding="utf-8") == PAGES[name](), (
        f"run make docs: docs/{name} is old"
    )


def test_metrics_have_their_units() -> None:
    page = metrics_page()
    assert "| `glucose` | `mg/dL` | `mmol/L` | 20 to 600 |" in page
    assert "| `weight` | `kg` | `g`, `[lb_av]`, `[stone_av]` |" in page


def test_tables_have_keys_and_columns_with_units() -> None:
    page = data_model_page()
    assert "        timestamptz recorded_at PK" in page
    assert "    raw_objects ||--o{ health_metrics : raw_object_id" in page
    assert "    ops_provider_accounts --> connection_status" in page
    assert "| `glucose_mg_dl` | `double precision` |  | Glucose in mg/dL" in page
    for table in ("health_metrics", "recovery_scores", "day_timeline"):
        assert f"### health.{table}\n" in page


def test_pages_are_written(tmp_path: Path) -> None:
    written = write(tmp_path / "docs")
    assert [path.name for path in written] == ["metrics.md", "data-model.md"]
    assert all(path.read_text(encoding="utf-8").endswith("|\n") for path in written)
