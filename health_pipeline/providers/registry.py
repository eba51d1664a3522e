"""All providers there are: every module of this package that defines `PROVIDER`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType

import health_pipeline.providers
from health_pipeline.providers._delimited import binary_kind
from health_pipeline.providers._not_taken import why_not
from health_pipeline.providers.base import Provider, UnreadableFileError

_NO_PROVIDERS = {"base", "http", "registry"}


@functools.cache
def all_providers() -> Mapping[str, Provider]:
    """Every provider by its name, in alphabetical order."""
    found: dict[str, Provider] = {}
    for module_info in pkgutil.iter_modules(health_pipeline.providers.__path__):
        if module_info.name.startswith("_") or module_info.name in _NO_PROVIDERS:
            continue
        module = importlib.import_module(f"{health_pipeline.providers.__name__}.{module_info.name}")
        provider = getattr(module, "PROVIDER", None)
        if isinstance(provider, Provider):
            if provider.name in found:
                raise RuntimeError(f"two providers are named {provider.name!r}")
            found[provider.name] = provider
    return MappingProxyType(dict(sorted(found.items())))


def get(name: str) -> Provider:
    """The provider of this name; KeyError, naming those there are, if there is none."""
    try:
        return all_providers()[name]
    except KeyError:
        raise KeyError(f"there is no provider {name!r}; there are {', '.join(all_providers())}") from None


def connectable() -> list[Provider]:
    """The providers that a person can connect today: those that are fetched and not shut down."""
    return [
        provider
        for provider in all_providers().values()
        if provider.door == "fetch" and provider.successor is None
    ]


def recognise(head: bytes) -> Provider:
    """The provider that is surest that a file which starts with these bytes (up to 64 KiB) is its own.

    UnreadableFileError: the file is empty, binary, of a kind that is not taken, or of none that we know.
    """
    if not head.strip():
        raise UnreadableFileError("the file is empty; export it again")
    uploads = [provider for provider in all_providers().values() if provider.sniff is not None]
    sureness = {provider.name: provider.sniff(head) for provider in uploads if provider.sniff}
    best = max(uploads, key=lambda provider: sureness[provider.name], default=None)
    if best is not None and sureness[best.name] > 0:
        return best
    if words := why_not(head):
        raise UnreadableFileError(f"the file is {words}")
    known = ", ".join(f"{provider.name} ({provider.title})" for provider in uploads)
    if kind := binary_kind(head):
        raise UnreadableFileError(f"the file is {kind}, which cannot be read; known kinds are {known}")
    raise UnreadableFileError(
        f"the file is of no known kind; known are {known}. If it is one of these, name it with the upload"
    )
