"""For Django: one registry for the whole program, created on first use. See `utils`."""

from rollcall.contrib.django.utils import get, get_service_registry

__all__ = ["get", "get_service_registry"]
