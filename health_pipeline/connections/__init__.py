"""Accounts, OAuth, token vault, consent ledger. It knows nothing of Dagster or of parsers."""
