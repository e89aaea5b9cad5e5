"""The cache file: the last known lists, for when no replica can be reached.

Several processes may share a file. A reader sees either the old file or the new one, whole. An empty list never
replaces a known one, since an outage looks like an empty list.
"""

import json
import logging
import os
import tempfile
import threading
from typing import Any, Dict, Optional

from rollcall.values import State, ZnodeStat

log = logging.getLogger(__name__)

# Version of the file's format.
_VERSION = 1


class CacheFile:
    def __init__(self, file: str) -> None:
        self._file = file
        # States that are not written yet.
        self._news: Dict[str, State] = {}
        self._lock = threading.Lock()
        # Held while the file is written.
        self._writing = threading.Lock()

    def load(self, path: str) -> Optional[State]:
        """The state of a path, as the file knows it."""
        with self._lock:
            news = self._news.get(path)
        return news or self._read().get(path)

    def keep(self, path: str, state: State) -> None:
        """Has a state written soon, from another thread, so that a file system that hangs blocks no other thread."""
        if state.stat is None or (not state.children and not state.data):
            return
        with self._lock:
            is_first = not self._news
            self._news[path] = _over(self._news.get(path), state)
        if is_first:
            threading.Thread(target=self.flush, name="rollcall-cache", daemon=True).start()

    def flush(self) -> None:
        """Writes the states that are not written yet."""
        with self._writing:
            with self._lock:
                news, self._news = self._news, {}
            if not news:
                return
            try:
                known = self._read()
                for path, state in news.items():
                    known[path] = _over(known.get(path), state)
                self._replace(known)
            except OSError as error:
                log.warning("the cache file %s can't be written: %s", self._file, error)

    def _read(self) -> Dict[str, State]:
        """Reads the file. A file that is missing or can't be understood counts as empty."""
        try:
            with open(self._file, encoding="utf-8") as file:
                # In a directory for all users, somebody else may have created a file of that name, to send this program
                # to other servers.
                if os.fstat(file.fileno()).st_uid not in (os.getuid(), 0):
                    raise ValueError("it belongs to another user")
                content = json.load(file)
            if content["version"] != _VERSION:
                raise ValueError(f"it has version {content['version']!r}")
            return {path: _parse(entry) for path, entry in content["paths"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("the cache file %s can't be read: %s", self._file, error)
            return {}

    def _replace(self, known: Dict[str, State]) -> None:
        content = {"version": _VERSION, "paths": {path: _render(state) for path, state in known.items()}}
        directory, name = os.path.split(os.path.abspath(self._file))
        # Only its owner can read it.
        number, new = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._file)
        except BaseException:
            os.unlink(new)
            raise


def _over(known: Optional[State], new: State) -> State:
    """The state that is kept of a path: the new one, but with the known list if the new list is empty."""
    if known is None or new.children or not known.children:
        return new
    return new._replace(children=known.children) if new.data else known


def _render(state: State) -> Dict[str, Any]:
    children = {name: _pack(data) for name, data in state.children.items()}
    return {"data": _pack(state.data), "stat": state.stat, "children": children}


def _parse(entry: Dict[str, Any]) -> State:
    stat = None if entry["stat"] is None else ZnodeStat(*map(int, entry["stat"]))
    children = {str(name): _unpack(data) for name, data in entry["children"].items()}
    return State(_unpack(entry["data"]), stat, children)


def _pack(data: Any) -> Any:
    """Packs bytes, which JSON does not have, into a list of one string."""
    return [data.hex()] if isinstance(data, bytes) else data


def _unpack(data: Any) -> Any:
    return bytes.fromhex(data[0]) if isinstance(data, list) else data
