"""For Django: one registry for the whole program, made when it is first used. See `utils`."""

from rollcall.contrib.django.utils import get, get_service_registry

__all__ = ["get", "get_service_registry"]
