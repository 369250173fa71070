"""Events that are much alike become one, and nobody says too much of one object.

The numbers are client-go's (tools/record/events_cache.go): ten messages in ten minutes; 25 events
at once, then one in five minutes.
"""

from __future__ import annotations

from emulator.kubeclient.event_correlator import EventCorrelator, Said

WEB = Said(
    *("kubelet", "node-0", "default", "Pod", "web", "uid-1", ""),
    *("Warning", "FailedCreatePodSandBox", ""),
)


def messages(correlator: EventCorrelator, count: int, now: float = 0.0) -> list[str]:
    said = (WEB._replace(message=f"sandbox {n}") for n in range(count))
    return [correlator.aggregate(each, now).message for each in said]


def test_the_tenth_different_message_and_all_after_it_are_one_event() -> None:
    correlator = EventCorrelator()
    assert messages(correlator, 12) == [
        *(f"sandbox {n}" for n in range(9)),
        *(f"(combined from similar events): sandbox {n}" for n in range(9, 12)),
    ]
    keys = {correlator.aggregate(WEB._replace(message=f"more {n}"), 1.0).key for n in range(3)}
    assert keys == {WEB}


def test_the_same_message_is_no_further_one() -> None:
    correlator = EventCorrelator()
    for _ in range(50):
        assert correlator.aggregate(WEB._replace(message="again"), 0.0).message == "again"


def test_other_objects_reasons_and_hosts_count_for_themselves() -> None:
    correlator = EventCorrelator()
    messages(correlator, 9)
    for other in ({"uid": "uid-2"}, {"reason": "Failed"}, {"type": "Normal"}, {"host": "node-1"}):
        said = WEB._replace(message="sandbox 9", **other)
        assert correlator.aggregate(said, 0.0).message == "sandbox 9"
    said = WEB._replace(message="sandbox 9", field_path="spec.containers{c}")
    assert correlator.aggregate(said, 0.0).message.startswith("(combined")


def test_after_ten_minutes_of_silence_messages_are_told_apart_again() -> None:
    correlator = EventCorrelator()
    messages(correlator, 20)
    assert correlator.aggregate(WEB._replace(message="x"), 600.0).message.startswith("(combined")
    assert correlator.aggregate(WEB._replace(message="y"), 1201.0).message == "y"


def test_a_source_says_25_things_of_an_object_and_then_one_in_five_minutes() -> None:
    correlator = EventCorrelator()
    said = [correlator.may_say(WEB._replace(reason=f"R{n}"), 0.0) for n in range(30)]
    assert said == [True] * 25 + [False] * 5
    assert correlator.may_say(WEB._replace(uid="uid-2"), 0.0)
    assert not correlator.may_say(WEB, 299.0)
    assert [correlator.may_say(WEB, 300.0) for _ in range(2)] == [True, False]
    # However long it was silent, it is not owed more than the burst.
    assert sum(correlator.may_say(WEB, 1e6) for _ in range(40)) == 25
