"""The command line as a whole."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from health_pipeline.cli import main


@pytest.mark.parametrize("command", sorted(set(main.commands) - {"dbt"}))
def test_every_command_says_what_it_is_and_that_is_no_error(command: str) -> None:
    told = CliRunner().invoke(main, [command, "--help"])
    assert told.exit_code == 0, told.output
    assert told.output.startswith(f"Usage: main {command}")
    assert "Error" not in told.output
