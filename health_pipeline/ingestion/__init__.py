"""The doors: how bytes get from a provider's API, a person's disk or a watched folder into the raw store."""
