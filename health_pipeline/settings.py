"""Settings, read from the environment. Nothing here opens a connection or a file."""

from __future__ import annotations

import datetime as dt
import os
from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

#: The first day there is a partition for; what is older comes as a file.
FIRST_DAY = dt.date(2020, 1, 1)


class Settings(BaseSettings):
    """Where things are. Every field is an environment variable with the prefix `HEALTH_PIPELINE_`.

    An empty environment gives the embedded default: a Postgres server and a raw folder below `home`, and the
    provider sandbox in place of the providers that have no client id.
    """

    model_config = SettingsConfigDict(env_prefix="HEALTH_PIPELINE_", extra="ignore")

    home: Path = Field(
        default=Path(".health"), description="Folder of the embedded default: database, raw objects, keys."
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="Warehouse, e.g. postgresql://user:secret@host/health. Unset: embedded Postgres.",
    )
    dagster_database_url: SecretStr | None = Field(
        default=None,
        description="Dagster's own storage. Unset: the database `dagster` on the warehouse's server.",
    )
    raw_url: str | None = Field(
        default=None, description="Raw store: s3://bucket/prefix or a folder. Unset: <home>/raw."
    )
    inbox_url: str | None = Field(
        default=None, description="Watched folder or s3://bucket/prefix. Unset: <home>/inbox."
    )
    vault_key: SecretStr | None = Field(
        default=None,
        description="Key(s) of the token vault, newest first, comma separated. Unset: a key file.",
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Secret(s) from which callback addresses and verify tokens are made, newest first, comma "
        "separated. Unset: a key file.",
    )
    receiver_url: str | None = Field(
        default=None,
        description="The receiver's public address, e.g. https://hooks.example.org, as providers call it.",
    )
    alert_webhook_url: SecretStr | None = Field(
        default=None, description="Where alerts are sent, https. Unset: nowhere."
    )
    alert_webhook_secret: SecretStr | None = Field(
        default=None,
        description="What they are signed with by Standard Webhooks: whsec_ and 24 to 64 bytes in base64.",
    )
    narrative_url: str | None = Field(
        default=None,
        description="Base URL of an OpenAI-compatible endpoint (…/v1) that words narratives. Unset: templates.",
    )
    narrative_model: str | None = Field(default=None, description="The model to ask there.")
    narrative_api_key: SecretStr | None = Field(default=None, description="Its key, where it wants one.")
    webhook_rate: float = Field(
        default=100.0,
        gt=0,
        description="Proved webhook calls a second that are taken of each provider, ten seconds' worth at once.",
    )
    metrics_listen: str | None = Field(
        default=None,
        description="Where /metrics is: `host:port` of its own, or `off`. Unset: on the receiver's address.",
    )
    upload_max_bytes: int = Field(
        default=4 * 1024**3, description="Longest file that the receiver takes, in bytes."
    )
    sandbox_url: str | None = Field(
        default=None,
        description="Base URL of the provider sandbox that stands in for unconfigured providers.",
    )

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def raw_location(self) -> str:
        return self.raw_url or str(self.home_path / "raw")

    @property
    def inbox_location(self) -> str:
        return self.inbox_url or str(self.home_path / "inbox")

    def client_credentials(self, provider: str) -> tuple[str, SecretStr] | None:
        """The OAuth client of a provider: `HEALTH_PIPELINE_<PROVIDER>_CLIENT_ID` and `…_CLIENT_SECRET`."""
        prefix = f"HEALTH_PIPELINE_{provider.upper()}"
        client_id = os.environ.get(f"{prefix}_CLIENT_ID")
        if not client_id:
            return None
        return client_id, SecretStr(os.environ.get(f"{prefix}_CLIENT_SECRET", ""))

    def webhook_secrets(self, provider: str) -> list[str]:
        """What a vendor signs its calls with: `HEALTH_PIPELINE_<PROVIDER>_WEBHOOK_SECRET`, newest first."""
        text = os.environ.get(f"HEALTH_PIPELINE_{provider.upper()}_WEBHOOK_SECRET", "")
        return [secret.strip() for secret in text.split(",") if secret.strip()]

    def service_account(self, provider: str) -> Path | None:
        """The key file of a provider's service account: `HEALTH_PIPELINE_<PROVIDER>_SERVICE_ACCOUNT`."""
        path = os.environ.get(f"HEALTH_PIPELINE_{provider.upper()}_SERVICE_ACCOUNT")
        return Path(path).expanduser() if path else None

    def provider_base_url(self, provider: str) -> str | None:
        """The server of a provider, where it is not the vendor's only one: `…_<PROVIDER>_BASE_URL`."""
        return os.environ.get(f"HEALTH_PIPELINE_{provider.upper()}_BASE_URL") or None

    def region(self, provider: str) -> str | None:
        """Which of a provider's regional hosts to ask: `HEALTH_PIPELINE_<PROVIDER>_REGION`."""
        return os.environ.get(f"HEALTH_PIPELINE_{provider.upper()}_REGION") or None

    def is_switched_on(self, provider: str) -> bool:
        """Whether `HEALTH_PIPELINE_<PROVIDER>_ENABLED` says so, for what is off by default."""
        value = os.environ.get(f"HEALTH_PIPELINE_{provider.upper()}_ENABLED", "")
        return value.strip().lower() in ("1", "true", "yes", "on")


@cache
def load_settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
