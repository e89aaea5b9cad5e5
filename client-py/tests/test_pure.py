"""Tests that need no server: choosing replicas, assembling watches, keeping registrations."""

import asyncio
import math
import os
import random
import types

import pytest

from rollcall import core, locks, scout, session, v1
from rollcall.assemble import Assembler, apply
from rollcall.cache import CacheFile
from rollcall.choice import PAUSES, Choice, Chosen
from rollcall.errors import Refused
from rollcall.follow import Watched
from rollcall.registrations import Lost, Registrations
from rollcall.replicas import addresses, clean
from rollcall.scout import Memory, Unease
from rollcall.seen import Seen
from rollcall.values import State, ZnodeStat, from_value, is_same, to_value

# --- the latest transaction


def test_the_largest_is_kept_until_zookeeper_has_lost_it():
    seen = Seen()
    for revision in (7, 5):
        seen.note_watch(v1.WatchResponse(revision=revision))
    assert seen.latest == 7
    stat = v1.Stat(czxid=8, mzxid=9)
    seen.note_registration(v1.RegisterResponse(registered=v1.Registered(generation=8, stat=stat)))
    seen.note_registration(v1.RegisterResponse(unregistered=v1.Unregistered(path="/a")))
    assert seen.latest == 9
    for revision, reset, latest in ((6, False, 9), (0, True, 9), (2, True, 2)):
        seen.note_watch(v1.WatchResponse(revision=revision, snapshot=v1.Snapshot(reset=reset)))
        assert seen.latest == latest
    seen.note(9)
    for known, revision, reset, latest in ((9, 3, False, 9), (8, 3, True, 9), (9, 3, True, 3)):
        seen.note_answer(known, v1.GetResponse(revision=revision, reset=reset))
        assert seen.latest == latest


def test_a_path_that_another_takes_at_once_is_waited_for_no_longer(monkeypatch):
    monkeypatch.setattr(core, "_SHOWN", 600.0)
    stat = ZnodeStat(*[0] * 11)
    ours, theirs = {"created": "2026-01-01 00:00:00"}, {"created": "2026-01-01 00:00:01"}

    def show(made, data):
        follows["/a/b"].show(State(data, data and stat._replace(czxid=made), {}), is_live=True)
        follows["/a"].show(State(None, stat, {"b": data} if data else {}), is_live=True)

    async def run(last_made, last):
        show(5, ours)
        made, marks = client._shown_of("/a/b")
        assert (made, marks) == (5, [ours["created"]])
        waits = asyncio.ensure_future(client._until_shown("/a/b", None, made, marks))
        show(5, {**ours, "n": 1})  # Our last write, a moment late.
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waits.done()
        show(last_made, last)
        await asyncio.wait_for(waits, 60)

    for last_made, last in ((0, None), (6, theirs), (6, {"by": "another program"})):
        client = core.Core.__new__(core.Core)
        follows = client._watched = {path: Watched(path) for path in ("/a", "/a/b")}
        asyncio.run(run(last_made, last))


# --- choosing


def test_another_replica_is_tried_at_once_and_the_same_after_a_growing_pause():
    choice = Choice(2, random.Random(1))
    first = choice.choose(0)
    assert choice.choose(0) == first
    assert choice.failed(first, 0, 0) and not choice.failed(first, 0, 0), "streams that break together count once"
    second = choice.choose(0)
    assert second.position != first.position and not choice.have_all_failed()
    choice.failed(second, 0, 0)
    assert choice.have_all_failed()
    now, longest = 0.0, 0.0
    for _ in range(40):
        until = choice.choose(now)
        assert not isinstance(until, Chosen)
        longest, now = max(longest, until - now), until
        choice.failed(choice.choose(now), 0, now)
    assert PAUSES[1] / 2 < longest <= PAUSES[1]


def test_one_that_drains_is_left_for_any_other_and_kept_without_one():
    two, one = Choice(2, random.Random(1)), Choice(1)
    first = two.choose(0)
    assert two.choose(0, first.position).position != first.position
    assert isinstance(one.choose(0, 0), Chosen)


def tried(choice, now, but=None, longest=math.inf):
    """The replica that is chosen once the pauses are over, and the time of that."""
    while True:
        chosen = choice.choose(now, but, longest)
        if isinstance(chosen, Chosen):
            return chosen, now
        now = chosen


def test_one_that_drains_is_tried_again_while_the_others_fail():
    for seed in range(50):
        choice, now, tries = Choice(3, random.Random(seed)), 0.0, [0, 0, 0]
        drained = choice.choose(now)
        choice.failed(drained, 0.5, now)
        while now < 20:
            chosen, now = tried(choice, now, drained.position)
            tries[chosen.position] += 1
            choice.failed(chosen, 0, now)
        assert min(tries) >= 4 and max(tries) <= 15, tries


def test_who_cannot_wait_for_long_tries_each_in_time():
    choice, now = Choice(2, random.Random(1)), 0.0
    for _ in range(20):
        chosen, now = tried(choice, now)
        choice.failed(chosen, 20, now)
    last = [now, now]
    for _ in range(40):
        chosen, now = tried(choice, now, 0, 1.0)
        assert now - last[chosen.position] <= 1.0
        last[chosen.position] = now
        choice.failed(chosen, 20, now)


def test_addresses():
    assert addresses("a:1, b:2,") == addresses(["a:1", "b:2"]) == ["a:1", "b:2"]
    for wrong in ("", "localhost", ":7700", "http://a:1", "a:ssh"):
        with pytest.raises(ValueError):
            addresses(wrong)


def test_paths_are_forgiven_what_kazoo_forgives():
    assert clean("/a//b/") == "/a/b" and clean("/") == "/" and clean("a/b") == "a/b"


# --- watches


def snapshot(names, revision=0, more=False, reset=False):
    message = v1.WatchResponse(revision=revision)
    message.snapshot.more, message.snapshot.reset = more, reset
    message.snapshot.node.exists = True
    for name in names:
        message.snapshot.node.children[name].SetInParent()
    return message


def delta(name, kind, revision=0, more=False):
    changes = [v1.Change(kind=kind, name=name)]
    return v1.WatchResponse(revision=revision, delta=v1.Delta(changes=changes, more=more))


def test_parts_are_put_together_and_never_shown_before():
    watch = Assembler()
    assert watch.take(snapshot(["x"], more=True)) is None
    assert list(watch.take(snapshot(["y"], 7)).children) == ["x", "y"]
    assert watch.take(delta("p", v1.CHANGE_KIND_ADDED, more=True)) is None
    assert list(watch.take(delta("x", v1.CHANGE_KIND_REMOVED, 8)).children) == ["p", "y"]
    assert watch.revision == 8
    gone = watch.take(delta("", v1.CHANGE_KIND_DELETED, 9))
    assert gone.children == {} and gone.stat is None


def test_what_was_begun_on_a_stream_that_broke_is_forgotten():
    watch = Assembler()
    watch.take(snapshot(["old"], more=True))
    watch.broken()
    assert list(watch.take(snapshot(["new"], 9)).children) == ["new"]


def test_nothing_goes_back_but_by_a_reset():
    watch = Assembler()
    watch.take(snapshot([], 10))
    assert watch.take(delta("x", v1.CHANGE_KIND_ADDED, 10)) is None
    assert watch.take(snapshot(["x"], 9)) is None
    assert watch.take(v1.WatchResponse(revision=9, current=v1.Current())) is None and watch.revision == 10
    assert list(watch.take(snapshot(["x"], 3, reset=True)).children) == ["x"] and watch.revision == 3


class Name(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __lt__(self, other):
        Name.compared += 1
        return str(self) < str(other)

    __hash__ = str.__hash__


def test_a_change_of_one_child_does_not_sort_a_long_list():
    names = [Name(f"{number:05}") for number in range(10_000)]
    known = State(None, ZnodeStat(*range(11)), {name: {} for name in names})

    def after(*changes):
        Name.compared = 0
        return apply(known, [v1.Change(kind=kind, name=name) for name, kind in changes]).children

    assert list(after(("05000", v1.CHANGE_KIND_UPDATED))) == names and Name.compared == 0
    assert list(after(("05000", v1.CHANGE_KIND_REMOVED))) == names[:5000] + names[5001:] and Name.compared == 0
    some = [("09990x", v1.CHANGE_KIND_ADDED), ("05000", v1.CHANGE_KIND_REMOVED), ("09991x", v1.CHANGE_KIND_ADDED)]
    found = list(after(*some))
    assert Name.compared < 100, "only what stands behind it is looked at"
    assert found == sorted([*names[:5000], *names[5001:], "09990x", "09991x"])
    again = [("05000", v1.CHANGE_KIND_REMOVED), ("05000", v1.CHANGE_KIND_ADDED), ("x", v1.CHANGE_KIND_ADDED)]
    assert list(after(*again)) == [*names, "x"]
    gone = [("y", v1.CHANGE_KIND_ADDED), ("", v1.CHANGE_KIND_DELETED), ("x", v1.CHANGE_KIND_ADDED)]
    assert list(after(*gone)) == ["x"]


# --- registrations


class Answers(list):
    def __call__(self, error):
        self.append(error)


def asked(registrations):
    request = registrations.next_request()
    return request and getattr(request, request.WhichOneof("request"))


def registered(path, generation, **fields):
    return v1.RegisterResponse(registered=v1.Registered(path=path, generation=generation, **fields))


def wish(registrations, data, answers=None):
    registrations.set("/a", data, to_value(data, 1), Answers() if answers is None else answers)


def test_a_registration_is_resumed_with_its_generation():
    registrations, answers = Registrations(), Answers()
    wish(registrations, {"n": 1}, answers)
    assert not asked(registrations).HasField("generation") and asked(registrations) is None
    registrations.take(registered("/a", 5))
    assert answers == [None] and registrations.is_settled()
    registrations.begin()
    said = asked(registrations)
    assert said.generation == 5 and from_value(said.value) == {"n": 1}
    registrations.take(registered("/a", 6, adopted=True))
    registrations.take(registered("/a", 8, restored=True))
    registrations.begin()
    assert asked(registrations).generation == 8


def test_of_several_wishes_the_last_is_said():
    registrations, first, last = Registrations(), Answers(), Answers()
    wish(registrations, {"n": 1}, first)
    asked(registrations)
    wish(registrations, {"n": 2}, last)
    assert asked(registrations) is None, "one at a time for a path"
    registrations.take(registered("/a", 5))
    assert last == []
    assert from_value(asked(registrations).value) == {"n": 2}
    registrations.take(registered("/a", 5))
    assert first == last == [None]


def test_what_another_replica_may_hold_is_taken_before_it_is_taken_down():
    registrations, answers = Registrations(), Answers()
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 5))
    registrations.begin()
    registrations.unset("/a", answers)
    assert asked(registrations).generation == 5
    registrations.take(registered("/a", 5))
    assert isinstance(asked(registrations), v1.UnsetRegistration)
    registrations.take(v1.RegisterResponse(unregistered=v1.Unregistered(path="/a")))
    assert answers == [None] and registrations.is_empty()


def test_a_wish_after_an_unset_is_said_anew():
    registrations, answers = Registrations(), Answers()
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 5))
    registrations.unset("/a", Answers())
    assert isinstance(asked(registrations), v1.UnsetRegistration)
    wish(registrations, {"n": 2}, answers)
    registrations.take(v1.RegisterResponse(unregistered=v1.Unregistered(path="/a")))
    assert not asked(registrations).HasField("generation")
    registrations.take(registered("/a", 9))
    assert answers == [None]


def test_lost_and_expired():
    registrations = Registrations()
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 5))
    lost = v1.Lost(path="/a", generation=5, reason=v1.LOST_REASON_EXPIRED)
    assert registrations.take(v1.RegisterResponse(lost=lost)) is None
    assert asked(registrations).generation == 5
    registrations.take(registered("/a", 7))
    lost.reason = v1.LOST_REASON_TAKEN_OVER
    assert registrations.take(v1.RegisterResponse(lost=lost)) is None, "of an earlier one"
    lost.generation = 7
    assert registrations.take(v1.RegisterResponse(lost=lost)) == Lost("/a", "TAKEN_OVER")
    assert registrations.is_empty() and registrations.is_settled()


def test_what_is_evicted_is_lost_and_does_not_come_back_by_itself():
    registrations = Registrations()
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 5))
    lost = v1.Lost(path="/a", generation=5, reason=v1.LOST_REASON_EVICTED)
    assert registrations.take(v1.RegisterResponse(lost=lost)) == Lost("/a", "EVICTED")
    assert registrations.is_empty() and registrations.is_settled()
    # Evicted while its stream was broken: the request to resume it is refused.
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 7))
    registrations.begin()
    assert asked(registrations).generation == 7
    rejected = v1.Rejected(path="/a", code=9, reason="EVICTED")
    assert registrations.take(v1.RegisterResponse(rejected=rejected)) == Lost("/a", "EVICTED")
    assert registrations.is_empty() and registrations.is_settled()


def test_a_loss_for_a_reason_of_a_later_version_is_a_loss():
    registrations = Registrations()
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 5))
    lost = v1.Lost(path="/a", generation=5)
    lost.MergeFromString(b"\x18\x63")
    assert registrations.take(v1.RegisterResponse(lost=lost)) == Lost("/a", "REASON_99")


def test_what_an_earlier_stream_may_have_taken_over_late_is_asked_for_once():
    registrations = Registrations()
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 5))
    # A stream breaks before it has answered. The next one is answered at a replica where the first registration still
    # exists.
    for _ in range(2):
        registrations.begin()
        assert asked(registrations).generation == 5
    registrations.take(registered("/a", 5))
    lost = v1.Lost(path="/a", generation=5, reason=v1.LOST_REASON_TAKEN_OVER)
    assert registrations.take(v1.RegisterResponse(lost=lost)) is None
    assert asked(registrations).generation == 5
    registrations.take(registered("/a", 7))
    lost.generation = 7
    assert registrations.take(v1.RegisterResponse(lost=lost)) == Lost("/a", "TAKEN_OVER")


def test_each_earlier_stream_may_have_taken_over_late_once():
    registrations = Registrations()
    wish(registrations, {})
    asked(registrations)
    registrations.take(registered("/a", 5))
    for _ in range(3):
        registrations.begin()
        assert asked(registrations).generation == 5
    registrations.take(registered("/a", 5))
    lost = v1.Lost(path="/a", generation=5, reason=v1.LOST_REASON_TAKEN_OVER)
    for _ in range(2):
        assert registrations.take(v1.RegisterResponse(lost=lost)) is None
        assert asked(registrations).generation == lost.generation
        lost.generation += 1
        registrations.take(registered("/a", lost.generation))
    assert registrations.take(v1.RegisterResponse(lost=lost)) == Lost("/a", "TAKEN_OVER")


def test_who_asks_for_a_path_while_it_is_lost_takes_it_back():
    registrations, answers = Registrations(), Answers()
    wish(registrations, {"n": 1})
    asked(registrations)
    registrations.take(registered("/a", 5))
    wish(registrations, {"n": 2}, answers)
    assert asked(registrations).generation == 5
    lost = v1.Lost(path="/a", generation=5, reason=v1.LOST_REASON_TAKEN_OVER)
    assert registrations.take(v1.RegisterResponse(lost=lost)) is None
    assert not asked(registrations).HasField("generation")
    assert registrations.take(v1.RegisterResponse(lost=lost)) is None, "the answer to the first try"
    registrations.take(registered("/a", 9))
    assert answers == [None] and registrations.is_settled()


def test_data_that_are_refused_leave_those_that_stand():
    registrations, answers = Registrations(), Answers()
    wish(registrations, {"n": 1})
    asked(registrations)
    registrations.take(registered("/a", 5))
    wish(registrations, {"n": 2}, answers)
    asked(registrations)
    rejected = v1.Rejected(path="/a", code=3, reason="VALUE_TOO_LARGE", message="too large")
    assert registrations.take(v1.RegisterResponse(rejected=rejected)) is None
    assert answers[0].reason == "VALUE_TOO_LARGE"
    assert from_value(asked(registrations).value) == {"n": 1}


def test_a_set_that_is_refused_at_first_is_over():
    registrations, answers = Registrations(), Answers()
    wish(registrations, {}, answers)
    asked(registrations)
    rejected = v1.Rejected(path="/a", code=9, reason="NOT_EPHEMERAL", message="durable")
    registrations.take(v1.RegisterResponse(rejected=rejected))
    assert answers[0].reason == "NOT_EPHEMERAL" and registrations.is_empty()


def names_asked(registrations):
    names = []
    while (request := asked(registrations)) is not None:
        names.append(request.path)
    return names


def test_one_that_can_not_be_is_found_and_holds_up_no_other():
    registrations, answers = Registrations(), {}
    for name in ("/a", "/bad", "/c"):
        answers[name] = Answers()
        registrations.set(name, {}, to_value({}, 1), answers[name])
    assert names_asked(registrations) == ["/a", "/bad", "/c"]
    registrations.take(registered("/a", 5))
    # The replica ends the stream because of one of them, and does not say which.
    error = Refused("too large", "VALUE_TOO_LARGE")
    registrations.suspect(error)
    registrations.begin()
    assert names_asked(registrations) == ["/a"], "those that are beyond suspicion come first, and the others alone"
    registrations.take(registered("/a", 5, adopted=True))
    assert names_asked(registrations) == ["/bad"]
    registrations.suspect(error)
    assert answers["/bad"] == [error] and answers["/a"] == [None]
    registrations.begin()
    registrations.set("/d", {}, to_value({}, 1), Answers())
    assert names_asked(registrations) == ["/a"]
    registrations.take(registered("/a", 5, adopted=True))
    assert names_asked(registrations) == ["/c"]
    registrations.take(registered("/c", 6))
    assert answers["/c"] == [None] and names_asked(registrations) == ["/d"]


def test_an_exclusive_one_waits_for_its_name_and_takes_it_once_it_is_free():
    registrations = Registrations()
    registrations.set("/a", {}, to_value({}, 1), Answers(), is_exclusive=True)
    assert asked(registrations).exclusive
    taken = v1.Rejected(path="/a", code=6, reason="NAME_TAKEN", message="taken")
    assert registrations.take(v1.RegisterResponse(rejected=taken)) is None
    assert asked(registrations) is None
    registrations.try_again()
    assert asked(registrations).exclusive
    registrations.take(registered("/a", 5))
    registrations.begin()
    resumed = asked(registrations)
    assert resumed.generation == 5 and not resumed.exclusive


# --- values


def test_the_same_data_are_told_by_what_the_program_has_given():
    def same(held, given):
        return is_same(held, to_value({"pid": 1, "created": "now", **given}, 1), given)

    assert same({"pid": 2, "created": "then", "n": 1}, {"n": 1.0}) and same({"pid": 2}, {})
    assert not same({"n": True}, {"n": 1}) and not same({"n": 1, "m": 2}, {"n": 1})
    assert not same({"pid": 2, "n": 1}, {"pid": 3, "n": 1}) and same({"pid": 3, "n": 1}, {"pid": 3, "n": 1})
    assert not same(None, {}) and not same(b"x", {}) and same({"n": 2**60 + 1}, {"n": 2**60 + 1})


def test_numbers_that_doubles_change_are_written_as_text():
    assert to_value({"n": 2**53}, 1).WhichOneof("kind") == "data"
    assert from_value(to_value({"n": 2**53 + 1}, 7)) == {"pid": 7, "n": 2**53 + 1}
    assert from_value(v1.Value()) is None


# --- the cache file


def test_a_cache_file_is_kept_whole_and_told_from_what_is_none(tmp_path, monkeypatch):
    file = tmp_path / "cache.json"
    one, other = CacheFile(str(file)), CacheFile(str(file))
    stat = ZnodeStat(*range(11))
    state = State(b"\xff", stat, {"a": {"n": 1}, "b": None})
    one._news["/a"] = state
    one.flush()
    # Two programs share it.
    other._news["/b"] = State({"n": 2}, stat, {})
    other.flush()
    assert CacheFile(str(file)).load("/a") == state and CacheFile(str(file)).load("/b").data == {"n": 2}
    one.keep("/a", State(None, stat, {}))
    one.flush()
    assert CacheFile(str(file)).load("/a") == state, "an empty list never takes the place of a known one"
    assert file.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [file]

    # An empty list with data does not replace a known list either, whether or not the earlier state is written yet.
    for name in ("/c", "/d"):
        one._news[name] = State({"n": 1}, stat, {"a": {"n": 1}})
    one.flush()
    one._news["/d"] = State({"n": 1}, stat, {"b": {"n": 1}})
    for name in ("/c", "/d"):
        one.keep(name, State({"n": 2}, stat, {}))
    one.flush()
    assert CacheFile(str(file)).load("/c") == State({"n": 2}, stat, {"a": {"n": 1}})
    assert CacheFile(str(file)).load("/d") == State({"n": 2}, stat, {"b": {"n": 1}})

    monkeypatch.setattr(os, "getuid", lambda: 4711)
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda number: types.SimpleNamespace(st_uid=4712, st_mode=real(number).st_mode))
    assert CacheFile(str(file)).load("/a") is None, "it belongs to somebody else"
    monkeypatch.undo()
    for text in ("", "[]", "{}", '{"version": 2, "paths": {}}', '{"version": 1, "paths": {"/a": 1}}'):
        file.write_text(text)
        assert CacheFile(str(file)).load("/a") is None, text


def test_a_stream_looks_after_a_moment_and_then_less_and_less_often_wherever_it_is():
    unease, now, pauses = Unease(), 100.0, []
    for turn in range(8):
        unease.set(True, now)
        unease.set(True, now + scout.PAUSES[0] / 2)
        pauses.append(unease.look_at - now)
        now = unease.look_at
        unease.looks(now)
        if turn % 2 == 0:
            unease.moved()
    assert pauses == sorted(pauses) and (pauses[0], pauses[-1]) == scout.PAUSES
    unease.set(False, now)
    assert unease.look_at is None and unease.left(now, 3.0) == 3.0
    unease.set(True, now)
    assert unease.look_at == now + scout.PAUSES[0], "the next trouble begins anew"


def test_clients_do_not_look_in_the_same_moment_and_one_that_went_back_stays():
    for spread, pause in ((0.0, 1.0), (0.25, 1.25), (1.0, 2.0)):
        unease = Unease(spread)
        unease.set(False, 0.0)
        unease.set(True, 0.0)
        assert unease.look_at == pause
        unease.returned()
        unease.set(True, 0.0)
        assert unease.look_at is None
        unease.moved()
        unease.set(True, 0.0)
        assert unease.look_at == pause


def test_a_round_of_questions_serves_all_for_a_while_and_longer_when_it_was_in_vain():
    memory, now, kept = Memory(), 100.0, []
    assert memory.get(now) is None
    for _ in range(8):
        memory.put(False, now)
        begun = now
        while memory.get(now) is False:
            now += 0.1
        kept.append(now - begun)
    assert [round(each, 3) for each in kept] == sorted(round(each, 3) for each in kept) and kept[-1] <= scout.PAUSES[1]
    memory.put(True, now)
    assert memory.get(now) is True and memory.get(now + 1) is None
    memory.put(False, now + 1)
    assert memory.get(now + 2) is None, "the next trouble begins anew"


def test_a_replica_that_is_known_to_serve_is_used_next_though_it_has_failed():
    choice = Choice(3, random.Random(1))
    first = choice.choose(0.0)
    other = (first.position + 1) % 3
    choice.failed(Chosen(other, 0), 30.0, 0.0)
    choice.prefer(other)
    assert choice.choose(0.0, but=first.position).position == other == choice.current


def test_a_replica_is_given_up_after_its_horizon_and_one_without_as_before():
    def terms(ttl, horizon):
        opened = v1.Opened()
        opened.keep_alive_interval.FromMilliseconds(int(ttl * 1000 / 3))
        if horizon is not None:
            opened.horizon.FromMilliseconds(int(horizon * 1000))
        return session._terms(opened, ttl)

    assert terms(30, None) == (10, 20)
    keep_alive, silence = terms(30, 6)
    assert (keep_alive, silence) == (2, 6)
    assert terms(6, 60) == (2, 60)
    assert terms(1, 0.01) == (0.1, 1)

    def silence_of_lock(horizon):
        held = v1.Held(lock_id="id", fencing_token=7)
        if horizon is not None:
            held.horizon.FromMilliseconds(int(horizon * 1000))
        return locks._grant(None, None, held, 0.0).silence

    assert [silence_of_lock(horizon) for horizon in (None, 2.5, 400)] == [10, 2.5, 10]
