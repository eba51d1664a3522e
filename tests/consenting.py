"""A person on their way through a provider's page, as `health-pipeline connect` waits for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue

import httpx

from health_pipeline.connections.flow import Completed
from health_pipeline.runtime.connect import Connecting
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


class Waiting:
    """A `connect` under way in a thread: the address it printed, and how it ends."""

    def __init__(self, connecting: Connecting) -> None:
        self._shown: Queue[str] = Queue()
        self._ended: Queue[Completed | BaseException] = Queue()
        self._connecting = connecting
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.address = self._shown.get(timeout=20)
        query = httpx.URL(self.address).params
        self.back = query.get("redirect_uri", "")

    def _run(self) -> None:
        try:
            self._ended.put(
                self._connecting.with_browser(0, lambda url, _: self._shown.put(url), browser=False)
            )
        except BaseException as error:
            self._ended.put(error)

    def decide(self, **choice: str) -> httpx.Response:
        """What the person does on the provider's page; gives the page they end at."""
        address = httpx.URL(self.address).copy_merge_params(choice)
        return httpx.get(address, follow_redirects=True, timeout=30)

    def end(self) -> Completed:
        found = self._ended.get(timeout=20)
        self._thread.join()
        if isinstance(found, BaseException):
            raise found
        return found

    @property
    def goes_on(self) -> bool:
        self._thread.join(0.2)
        return self._thread.is_alive()


@contextmanager
def waiting(
    settings: Settings, warehouse: Warehouse, name: str = "oura", handle: str = "ada"
) -> Iterator[Waiting]:
    found = Waiting(Connecting(settings, warehouse, name, handle, time_zone="Europe/Berlin"))
    yield found
    if found.goes_on and found.back:  # let the thread end
        found.decide(decision="deny")
