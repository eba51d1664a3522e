"""The one resource: warehouse, raw store, vault and settings of this process. It holds no secret itself."""

import dagster as dg

from health_pipeline.connections.vault import Vault, open_vault
from health_pipeline.raw.store import RawStore, open_store
from health_pipeline.settings import Settings, load_settings
from health_pipeline.warehouse.connection import Warehouse, open_warehouse


class Platform(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens each part on first use; configured by the environment alone (see `health_pipeline.settings`)."""

    @property
    def settings(self) -> Settings:
        return load_settings()

    def warehouse(self) -> Warehouse:
        return open_warehouse()

    def store(self) -> RawStore:
        return open_store(self.settings.raw_location)

    def vault(self) -> Vault:
        return open_vault()
