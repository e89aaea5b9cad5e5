"""KazooServiceRegistry: one registry for a whole program, under nd_service_registry's name."""

from typing import Any, Optional

from rollcall.registry import ServiceRegistry


class KazooServiceRegistry(ServiceRegistry):
    """The one ServiceRegistry of a program. Creating another returns the first, whatever the arguments.

    As in nd_service_registry 1.x, `children` is a list of names, unless `names_only=False` is given, and `get` returns
    False for a path of which nothing is known while no replica can be reached.
    """

    _instance: "Optional[KazooServiceRegistry]" = None
    _is_initialized = False
    _answers_false = True

    def __new__(cls, *_arguments: Any, **_options: Any) -> "KazooServiceRegistry":
        if KazooServiceRegistry._instance is None:
            KazooServiceRegistry._instance = super().__new__(cls)
        return KazooServiceRegistry._instance

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if self._is_initialized:
            return
        super().__init__(*arguments, **{"names_only": True, **options})
        self._is_initialized = True
