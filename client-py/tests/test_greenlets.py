"""Under gevent and eventlet, calls that can't work fail at once, and say which call to use instead."""

import json

import pytest


@pytest.mark.parametrize(
    "kind, unpatched",
    [
        ("gevent", {"thread": False, "select": False, "queue": False}),
        ("eventlet", {"thread": False, "select": False}),
    ],
)
def test_patched_threads_are_refused_at_once_and_the_advice_works(kind, unpatched, fleet, run):
    program = run("greenlet_program.py", fleet.server, kind, "{}")
    said, said_by_aio = program.answer()
    assert f"{kind}.monkey" in said and "gunicorn -k gthread" in said
    assert ", ".join(f"{name}=False" for name in unpatched) in said
    assert said_by_aio == said
    program = run("greenlet_program.py", fleet.server, kind, json.dumps(unpatched))
    assert program.answer() == [True, None]
