"""Server lists for a Django program, as nd_service_registry.contrib.django.utils has it.

    from rollcall.contrib.django import utils as ndsr

    def reconnect(node):
        ...

    ndsr.get("/services/production/memcache", callback=reconnect, wait=5)

Where the replicas are is said in Django's settings, or by setting this module's variables before the first use:

    ROLLCALL = {"SERVER": "rollcall1:7700,rollcall2:7700", "CACHEFILE": "/var/cache/app/rollcall.json"}

Workers that gunicorn or celery forks need no call of their own.
"""

import importlib
import logging
import os
import tempfile
import threading
from typing import Any, Callable, Dict, Optional

from rollcall.registry import ServiceRegistry

log = logging.getLogger(__name__)

# As the original has it: a host, and its port. SERVER may also be HOST:PORT, or several separated by commas.
SERVER = "127.0.0.1"
PORT = "7700"
# Seconds.
TIMEOUT = 15
# One for each user: what belongs to somebody else is not read.
CACHEFILE = os.path.join(tempfile.gettempdir(), f"rollcall.{os.getuid()}.json")

_service_registry: Optional[ServiceRegistry] = None
_making = threading.Lock()


class _Registry(ServiceRegistry):
    """A program is not to fail at its start because nothing can be reached: `get` returns False then, as the original."""

    _answers_false = True


def _settings() -> Dict[str, Any]:
    """What stands under ROLLCALL in Django's settings, if there are any."""
    try:
        conf = importlib.import_module("django.conf")
    except ImportError:
        return {}
    # Django raises where a program uses it without settings, which is fine with us.
    try:
        return dict(getattr(conf.settings, "ROLLCALL", {}))
    except Exception as error:
        log.debug("no settings of Django: %s", error)
        return {}


def get_service_registry() -> ServiceRegistry:
    """The registry of this program: read-only, lazy, with a cache file. Made when it is first asked for."""
    global _service_registry
    with _making:
        if _service_registry is None:
            settings = {"SERVER": SERVER, "PORT": PORT, "TIMEOUT": TIMEOUT, "CACHEFILE": CACHEFILE, **_settings()}
            server = str(settings["SERVER"])
            _service_registry = _Registry(
                server=server if ":" in server else f"{server}:{settings['PORT']}",
                lazy=True,
                readonly=True,
                timeout=settings["TIMEOUT"],
                cachefile=settings["CACHEFILE"],
            )
        return _service_registry


def get(path: str, callback: Optional[Callable[[Any], Any]] = None, wait: Optional[float] = None) -> Any:
    """A node and its children, as `ServiceRegistry.get` tells it.

    Args:
        path: the path to read, and to follow from now on.
        callback: called with the same now, and with each change.
        wait: seconds to wait for a child. The callback is not called before there is one, or the time is over.
    """
    return get_service_registry().get(path, callback=callback, wait=wait)
