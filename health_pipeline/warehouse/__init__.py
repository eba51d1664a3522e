"""The warehouse: an embedded or external Postgres, its operational tables, migrations and roles.

It knows nothing of providers or formulas.
"""
