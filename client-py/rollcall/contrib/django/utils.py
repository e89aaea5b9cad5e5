"""Server lists for a Django program, as nd_service_registry.contrib.django.utils has it.

    from rollcall.contrib.django import utils as ndsr

    def reconnect(node):
        ...

    ndsr.get("/services/production/memcache", callback=reconnect, wait=5)

Name the replicas in Django's settings, or set this module's variables before the first use:

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

# A host and its port, as in nd_service_registry. SERVER may also be HOST:PORT, or several of these separated by commas.
SERVER = "127.0.0.1"
PORT = "7700"
# Seconds.
TIMEOUT = 15
# One file for each user, since a file that belongs to somebody else is not read.
CACHEFILE = os.path.join(tempfile.gettempdir(), f"rollcall.{os.getuid()}.json")

_service_registry: Optional[ServiceRegistry] = None
_making = threading.Lock()


class _Registry(ServiceRegistry):
    """A registry whose `get` returns False when nothing can be reached, as in nd_service_registry: a program should
    start then."""

    _answers_false = True


def _settings() -> Dict[str, Any]:
    """The value of ROLLCALL in Django's settings, if there are any."""
    try:
        conf = importlib.import_module("django.conf")
    except ImportError:
        return {}
    # Django raises when a program uses it without settings. That is fine here.
    try:
        return dict(getattr(conf.settings, "ROLLCALL", {}))
    except Exception as error:
        log.debug("no settings of Django: %s", error)
        return {}


def get_service_registry() -> ServiceRegistry:
    """The registry of this program: read-only, lazy, with a cache file. It is created on first use."""
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
    """A node and its children, as `ServiceRegistry.get` returns it.

    Args:
        path: the path to read, and to follow from now on.
        callback: called with the same value now, and with each change.
        wait: seconds to wait for a child. The callback is not called before there is one, or the time is over.
    """
    return get_service_registry().get(path, callback=callback, wait=wait)
