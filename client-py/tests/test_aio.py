"""The verbs for asyncio."""

import asyncio

import pytest
from conftest import SOON, Seen

import rollcall
from rollcall import aio, v1
from rollcall.stream import Stream
from rollcall.transport_aio import AioConnection


async def until(what, probe):
    async def look():
        while not probe():
            await asyncio.sleep(0.02)

    try:
        await asyncio.wait_for(look(), SOON)
    except asyncio.TimeoutError:
        raise AssertionError(f"not within {SOON} s: {what}") from None


def test_the_verbs(two, path):
    async def main():
        seen, lost, awaited = Seen(), Seen(), Seen()

        async def callback(node):
            await asyncio.sleep(0)
            awaited(node)

        async with aio.ServiceRegistry(two.server, timeout=SOON, on_lost=lost) as ours:
            assert ours.get_state() is True
            async with aio.ServiceRegistry(two.server, timeout=SOON) as other:
                assert (await ours.get(path, callback=seen))["children"] == {} and len(seen.all) == 1
                await ours.add_callback(path, callback)
                assert await other.set_node(f"{path}/one", {"n": 1}) is True
                node = await ours.get(path, wait=SOON)
                assert node["children"]["one"]["n"] == 1
                await until("told", lambda: awaited.all and seen.last == node == awaited.last)
                assert await ours.set_node(f"{path}/one", {"n": 2}) is True
                await other.set_node(f"{path}/one", {"n": 3})
                await until("told", lambda: lost.all == [(f"{path}/one", "TAKEN_OVER")])
                assert await ours.set_data(f"{path}/data", "text") and await ours.unset(f"{path}/data")
                with pytest.raises(rollcall.Refused):
                    await ours.set_node("no path")

                async with ours.get_lock(f"{path}-lock") as held:
                    assert held
                    assert await other.acquire_lock(f"{path}-lock", wait=0) is False
                    waiting = asyncio.ensure_future(other.acquire_lock(f"{path}-lock", wait=60))
                assert await waiting is True
                assert await other.release_lock(f"{path}-lock") is True
            await until("gone", lambda: seen.last["children"] == {})
            lists = [node["children"] for node in awaited.all]
            assert lists[0] == {} and all(one != two for one, two in zip(lists[1:], lists[2:])), "once for each change"

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))


def test_start_and_stop(fleet, path):
    async def main():
        seen, states = Seen(), Seen()
        ours = aio.ServiceRegistry(fleet.server, timeout=SOON)
        ours.get_state(states)
        await ours.start()
        await ours.get(path, callback=seen)
        await ours.set_node(f"{path}/one")
        await until("told", lambda: seen.last["children"])
        await ours.stop()
        async with aio.ServiceRegistry(fleet.server, timeout=SOON) as other:
            node = await other.get(path)
            assert node["children"] == {}
            await other.set_node(f"{path}/two")
            await ours.rebuild()
            await until("told", lambda: sorted(seen.last["children"]) == ["one", "two"])
            await other.unset(f"{path}/two")
            await until("told", lambda: sorted(seen.last["children"]) == ["one"])
        await until("told", lambda: states.all[:4] == [False, True, False, True])
        await ours.stop()

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))


def test_a_killed_replica_is_not_missed(two, path):
    async def main():
        seen = Seen()
        async with aio.ServiceRegistry(two.server, timeout=SOON) as ours:
            await ours.set_node(f"{path}/one", {"n": 1})
            await ours.get(path, callback=seen)
            lock = ours.get_lock(f"{path}-lock")
            assert await lock.acquire()
            token = lock.fencing_token
            two.replicas[ours._core.session._held.replica.index].kill()
            await ours.set_node(f"{path}/two")
            await until("told", lambda: len(seen.last["children"]) == 2)
            assert all("one" in node["children"] for node in seen.all)
            assert lock.status() and lock.fencing_token == token

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))


def test_a_cancelled_wait_leaves_nothing(fleet, zk, path):
    async def main():
        async with aio.ServiceRegistry(fleet.server, timeout=SOON) as ours:
            first, second, third = (ours.get_lock(path) for _ in range(3))
            assert await first.acquire()
            waiting = asyncio.ensure_future(second.acquire())
            queue = f"{path}-__lock__"
            await until("it waits", lambda: zk.exists(queue) and zk.get_children(queue))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await first.release()
            assert await third.acquire()

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))


def test_no_server(path):
    async def main():
        with pytest.raises(rollcall.NoConnection):
            await aio.ServiceRegistry("127.0.0.1:1", timeout=0.5).start()
        ours = aio.ServiceRegistry("127.0.0.1:1", timeout=0.5)
        with pytest.raises(rollcall.NoConnection):
            await ours.set_node(path)
        seen = Seen()
        async with aio.ServiceRegistry("127.0.0.1:1", timeout=0.5, lazy=True) as lazy:
            assert await lazy.set_node(path) is False and await lazy.unset(path) is False
            await lazy.add_callback(path, seen)
            with pytest.raises(rollcall.NoConnection):
                await lazy.get(path)
            assert seen.all == []

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))


def test_what_a_cancelled_call_was_to_end_or_begin_is_ended(fleet, path, monkeypatch):
    async def cancelled(call):
        task = asyncio.ensure_future(call)
        # The request has been sent, and the call waits for the answer.
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main():
        async with aio.ServiceRegistry(fleet.server, timeout=SOON) as other:
            ours = aio.ServiceRegistry(fleet.server, timeout=SOON, lock_ttl=600)
            await ours.start()
            lock = ours.get_lock(f"{path}-lock")
            assert await lock.acquire()
            gate, real = asyncio.Event(), AioConnection.unary

            async def unary(*arguments):
                await gate.wait()
                return await real(*arguments)

            monkeypatch.setattr(AioConnection, "unary", unary)
            await cancelled(lock.release())
            gate.set()
            assert await other.acquire_lock(f"{path}-lock", wait=SOON)
            await cancelled(ours.set_node(f"{path}/one"))
            await ours.set_node(f"{path}/two")
            names = lambda node: sorted(node["children"])  # noqa: E731
            seen = Seen()
            await other.get(path, callback=seen)
            await until("only the other is there", lambda: names(seen.last) == ["two"])
            core = ours._core
            await cancelled(ours.stop())
            await until("it is gone", lambda: names(seen.last) == [] and all(task.done() for task in core._tasks))

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))


def test_acquire_lock_is_of_the_registry_whichever_task_asks(fleet, path):
    async def main():
        async with aio.ServiceRegistry(fleet.server, timeout=SOON) as ours:
            assert await asyncio.gather(*(ours.acquire_lock(path, wait=SOON) for _ in range(3))) == [True] * 3
            assert len(ours._held) == 1 and await ours.get_lock(path, wait=0).acquire() is False
            assert await ours.release_lock(path) is True
            lock = ours.get_lock(path, wait=SOON)
            assert await lock.acquire() and await ours.release_lock(path) and lock.status()

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))


def test_a_lock_that_is_granted_while_its_call_is_cancelled_is_given_back(fleet, path, monkeypatch):
    """The messages with its id are on the way when no caller waits for them any more."""
    on_the_way, real = [], Stream._take

    def hold_back(self, message):
        if isinstance(message, v1.AcquireLockResponse):
            on_the_way.append((self, message))
        else:
            real(self, message)

    async def main():
        async with aio.ServiceRegistry(fleet.server, timeout=SOON, lock_ttl=600) as ours:
            monkeypatch.setattr(Stream, "_take", hold_back)
            taking = asyncio.ensure_future(ours.acquire_lock(path))
            await until("granted", lambda: any(message.HasField("queued") for _, message in on_the_way))
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            monkeypatch.undo()
            for stream, message in on_the_way:
                real(stream, message)
            async with aio.ServiceRegistry(fleet.server, timeout=SOON) as other:
                assert await other.acquire_lock(path, wait=SOON) is True

    asyncio.run(asyncio.wait_for(main(), 3 * SOON))
