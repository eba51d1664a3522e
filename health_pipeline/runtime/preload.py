"""What a run needs before it does anything: brought in once, by the process that runs are forked from.

Nothing here may connect to anything: forks would share the connection.
"""

import gc
import importlib

from health_pipeline.definitions import defs
from health_pipeline.warehouse.dbt_thread import parsed_project

#: What steps import as late as they need it, for the sake of those that do not.
LATE = (
    "adbc_driver_postgresql.dbapi",
    "dagster._cli.api",
    "dagster_postgres",
    "dbt.adapters.postgres",
    "dlt.destinations.impl.postgres.factory",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.linear_model",
)

for _name in LATE:
    importlib.import_module(_name)
parsed_project()
defs.get_repository_def().get_all_jobs()
# A fork that collected what lies here would copy all of its pages.
gc.freeze()
