"""`health-pipeline accounts` and `health-pipeline vault rotate`, as the command line finds them."""

from health_pipeline.connections.health import account_health
from health_pipeline.connections.rotation import rotate

__all__ = ["account_health", "rotate"]
