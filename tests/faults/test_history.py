"""The checker finds what it is for: a history without fault, then one broken in each way."""
import copy
import json
import subprocess
import sys

import pytest

import totals
from history import TRANSITIONS, History


def event(sequence, epoch, start=None, to=None, kind="state_changed"):
    found = {"sequence": sequence, "epoch": epoch, "kind": kind}
    return {**found, "from": start, "to": to} if kind == "state_changed" else found


EVENTS = [event(1, 0, "UNSPECIFIED", "QUEUED"), event(2, 1, "QUEUED", "RUNNING"), event(3, 1, kind="checkpoint"),
          event(4, 1, "RUNNING", "QUEUED"), event(5, 2, "QUEUED", "RUNNING"), event(6, 2, "RUNNING", "SUCCEEDED")]


def good():
    """One job: its first worker stalls and comes back too late, the second one succeeds. And one cancelled job."""
    records = [
        {"call": "submit", "job": "a", "request_id": "r1", "uid": "u", "began": 0, "ended": 1},
        {"call": "submit", "job": "a", "request_id": "r1", "uid": "u", "began": 1, "ended": 2},
        {"call": "submit", "job": "never", "request_id": "r9", "error": "", "began": 1, "ended": 2},
        {"call": "acquire", "job": "a", "worker": "w1", "epoch": 1, "began": 2, "ended": 3},
        {"call": "get", "job": "a", "sequence": 2, "epoch": 1, "state": "RUNNING", "began": 3, "ended": 4},
        {"call": "acquire", "job": "a", "worker": "w2", "epoch": 2, "began": 10, "ended": 11},
        {"call": "write", "job": "a", "what": "complete", "worker": "w1", "epoch": 1, "error": "LEASE_LOST", "began": 12,
         "ended": 13},
        {"call": "write", "job": "a", "what": "complete", "worker": "w2", "epoch": 2, "began": 12, "ended": 14},
        {"call": "get", "job": "a", "sequence": 6, "epoch": 2, "state": "SUCCEEDED", "began": 15, "ended": 16},
        {"call": "snapshot", "job": "a", "stream": "s", "uid": "u", "sequence": 1},
        *({"call": "event", "job": "a", "stream": "s", "event": e} for e in EVENTS[1:]),
        {"call": "end", "job": "a", "stream": "s", "sequence": 6, "state": "SUCCEEDED"},
        {"call": "snapshot", "job": "a", "stream": "cut", "uid": "u", "sequence": 2},  # its end was never asked for
        *({"call": "event", "job": "a", "stream": "cut", "event": e} for e in EVENTS[2:4]),
        {"call": "final", "job": "a", "uid": "u", "state": "SUCCEEDED", "epoch": 2, "events": EVENTS,
         "artifacts": [{"uid": "u", "epoch": 2}]},
        {"call": "file", "job": "a", "path": "model.safetensors", "wanted": "abc", "got": "abc"},
        {"call": "submit", "job": "b", "request_id": "r2", "uid": "v", "began": 0, "ended": 1},
        {"call": "cancel", "job": "b", "state": "CANCELLED", "began": 5, "ended": 6},
        {"call": "retry", "job": "b", "request_id": "t1", "began": 7, "ended": 8},
        {"call": "retry", "job": "b", "request_id": "t1", "began": 8, "ended": 9},
        {"call": "cancel", "job": "b", "state": "CANCELLED", "began": 10, "ended": 11},
        # One watch ended before the retry, one came after everything, one saw an earlier job of the name that was deleted.
        {"call": "snapshot", "job": "b", "stream": "before", "uid": "v", "sequence": 1},
        {"call": "event", "job": "b", "stream": "before", "event": event(2, 0, "QUEUED", "CANCELLED")},
        {"call": "end", "job": "b", "stream": "before", "sequence": 2, "state": "CANCELLED"},
        {"call": "snapshot", "job": "b", "stream": "after", "uid": "v", "sequence": 4},
        {"call": "end", "job": "b", "stream": "after", "sequence": 4, "state": "CANCELLED"},
        {"call": "snapshot", "job": "b", "stream": "earlier", "uid": "deleted", "sequence": 8},
        {"call": "event", "job": "b", "stream": "earlier", "event": event(9, 3, "RUNNING", "FAILED")},
        {"call": "end", "job": "b", "stream": "earlier", "sequence": 9, "state": "FAILED"},
        {"call": "final", "job": "b", "uid": "v", "state": "CANCELLED", "epoch": 0, "artifacts": [],
         "events": [event(1, 0, "UNSPECIFIED", "QUEUED"), event(2, 0, "QUEUED", "CANCELLED"),
                    event(3, 0, "CANCELLED", "QUEUED"), event(4, 0, "QUEUED", "CANCELLED")]},
    ]
    return json.loads(json.dumps(records))  # no two records share an event


def pick(records, call, job="a", number=0):
    return [r for r in records if r["call"] == call and r["job"] == job][number]


def test_a_good_history_has_no_violation():
    history = History(good())
    assert history.check() == []
    assert history.counts()["jobs"] == 2


def lose_job(records):
    records.remove(pick(records, "final"))


def lose_job_whose_deletion_was_refused(records):
    lose_job(records)
    records.append({"call": "delete", "job": "a", "error": "JOB_NOT_ENDED", "began": 20, "ended": 21})


def deleted_job_is_there(records):
    records.append({"call": "delete", "job": "a", "began": 20, "ended": 21})


def another_uid(records):
    pick(records, "final")["uid"] = "other"
    pick(records, "final")["artifacts"][0]["uid"] = "other"


def never_ends(records):
    final = pick(records, "final")
    final.update(state="RUNNING", artifacts=[], events=EVENTS[:5])
    records[:] = [r for r in records if not (r["call"] == "event" and r["event"]["sequence"] == 6)]


def two_jobs_of_one_request(records):
    pick(records, "submit", number=1)["uid"] = "second"


def event_gap(records):
    del pick(records, "final")["events"][2]


def event_twice(records):
    final = pick(records, "final")
    final["events"].insert(3, final["events"][2])


def watch_skips(records):
    records.remove(pick(records, "event", number=2))


def watch_misses_the_first_event(records):
    records.remove(pick(records, "event"))


def watch_misses_the_last_two_events(records):
    for _ in range(2):
        records.remove(pick(records, "event", number=3))


def watch_is_told_an_end_that_was_none(records):
    """The server itself takes an earlier event for the last one."""
    watch_misses_the_last_two_events(records)
    pick(records, "end")["sequence"] = 4


def watch_ends_before_the_last_event(records):
    """Behind the job's end comes something that is no retry."""
    pick(records, "final")["events"].append(event(7, 2, kind="log"))


def watch_ends_with_another_state(records):
    pick(records, "end")["state"] = "FAILED"


def watch_of_a_deleted_job_misses_the_last_event(records):
    records.remove(pick(records, "event", "b", number=1))


def watch_has_no_snapshot(records):
    records.remove(pick(records, "snapshot"))


def watch_repeats(records):
    records.insert(records.index(pick(records, "event", number=2)), copy.deepcopy(pick(records, "event", number=2)))


def watch_saw_another_event(records):
    pick(records, "event", number=1)["event"]["kind"] = "log"


def state_jumps(records):
    pick(records, "final")["events"][4]["from"] = "FAILED"
    pick(records, "event", number=3)["event"]["from"] = "FAILED"


def state_not_in_the_table(records):
    final = pick(records, "final", "b")
    final["events"][1]["to"] = final["events"][2]["from"] = "SUCCEEDED"


def state_of_another_end(records):
    pick(records, "final")["events"][5]["to"] = "FAILED"
    pick(records, "event", number=4)["event"]["to"] = "FAILED"


def read_goes_back(records):
    pick(records, "get", number=1).update(sequence=1, state="QUEUED", epoch=0)


def end_is_taken_back(records):
    pick(records, "get", number=0)["state"] = "FAILED"


def told_more_than_there_is(records):
    pick(records, "get", number=1)["sequence"] = 7


def cancelled_job_succeeds(records):
    records.append({"call": "cancel", "job": "a", "state": "CANCELLING", "began": 4, "ended": 5})


def epoch_reset(records):
    for e in [pick(records, "final")["events"][4], pick(records, "event", number=3)["event"]]:
        e["epoch"] = 1


def old_attempt_writes_an_event(records):
    for e in [pick(records, "final")["events"][5], pick(records, "event", number=4)["event"]]:
        e["epoch"] = 1


def one_attempt_two_workers(records):
    pick(records, "acquire", number=1)["epoch"] = 1


def stale_write_accepted(records):
    del pick(records, "write", number=0)["error"]


def stale_release_accepted(records):
    records.append({"call": "write", "job": "a", "what": "release", "worker": "w1", "epoch": 1, "began": 12, "ended": 13})


def commit_was_refused_and_is_visible(records):
    pick(records, "write", number=1)["error"] = "LEASE_LOST"


def commit_was_acknowledged_and_is_not_visible(records):
    pick(records, "final")["artifacts"][0]["epoch"] = 1
    pick(records, "write", number=0)["error"] = ""


def retried_twice(records):
    final = pick(records, "final", "b")
    final["events"] += [event(5, 0, "CANCELLED", "QUEUED"), event(6, 0, "QUEUED", "CANCELLED")]


def two_artifacts(records):
    pick(records, "final")["artifacts"].append({"uid": "u", "epoch": 1})


def no_artifact(records):
    pick(records, "final")["artifacts"].clear()
    pick(records, "write", number=1)["error"] = ""


def artifact_of_a_cancelled_job(records):
    pick(records, "final", "b")["artifacts"].append({"uid": "v", "epoch": 0})


def wrong_bytes(records):
    pick(records, "file")["got"] = "abd"


def missing_file(records):
    pick(records, "file")["got"] = ""


def unread_artifact(records):
    records.remove(pick(records, "file"))


BROKEN = [
    (lose_job, "lost"), (lose_job_whose_deletion_was_refused, "lost"), (deleted_job_is_there, "deleted"),
    (another_uid, "lost"), (never_ends, "lost"), (two_jobs_of_one_request, "submit"),
    (event_gap, "events"), (event_twice, "events"), (watch_skips, "events"), (watch_repeats, "events"),
    (watch_misses_the_first_event, "events"), (watch_misses_the_last_two_events, "events"),
    (watch_is_told_an_end_that_was_none, "events"), (watch_ends_before_the_last_event, "events"),
    (watch_ends_with_another_state, "events"), (watch_of_a_deleted_job_misses_the_last_event, "events"),
    (watch_has_no_snapshot, "events"),
    (watch_saw_another_event, "events"), (state_jumps, "states"), (state_not_in_the_table, "states"),
    (state_of_another_end, "states"), (read_goes_back, "back"), (end_is_taken_back, "back"),
    (told_more_than_there_is, "back"), (cancelled_job_succeeds, "cancel"), (epoch_reset, "epochs"),
    (old_attempt_writes_an_event, "epochs"), (one_attempt_two_workers, "epochs"), (stale_write_accepted, "stale"),
    (stale_release_accepted, "stale"), (commit_was_refused_and_is_visible, "stale"),
    (commit_was_acknowledged_and_is_not_visible, "stale"), (retried_twice, "retries"), (two_artifacts, "artifact"),
    (no_artifact, "artifact"), (artifact_of_a_cancelled_job, "artifact"), (wrong_bytes, "artifact"),
    (missing_file, "artifact"), (unread_artifact, "artifact"),
]


@pytest.mark.parametrize("damage, rule", [pytest.param(d, r, id=d.__name__) for d, r in BROKEN])
def test_a_broken_history_is_found(damage, rule):
    records = good()
    damage(records)
    assert rule in {violation.rule for violation in History(records).check()}


@pytest.mark.parametrize("answer", [{}, {"error": ""}, {"error": "STORE_UNAVAILABLE"}])
def test_a_deleted_job_is_not_lost(answer):
    """Nor one whose deletion may have happened."""
    records = good()
    lose_job(records)
    assert History(records + [{"call": "delete", "job": "a", "began": 20, "ended": 21, **answer}]).check() == []


def test_a_history_survives_its_file(tmp_path):
    history = History(good())
    history.write(tmp_path / "h.jsonl")
    assert History.read(tmp_path / "h.jsonl").records == history.records


def sum_of(path):
    done = subprocess.run([sys.executable, totals.__file__, path], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout and json.loads(done.stdout)


def test_totals(tmp_path, monkeypatch):
    """Of two histories, one of them checked twice: the sum, and the exit status once something was lost."""
    path = tmp_path / "totals.jsonl"
    monkeypatch.delenv("QUANTRY_FAULT_TOTALS", raising=False)
    totals.note(History(good()))  # nobody asked for totals
    monkeypatch.setenv("QUANTRY_FAULT_TOTALS", str(path))
    history = History(good())
    totals.note(history)
    totals.note(history)
    totals.note(History(good()), seed=7)
    status, figures = sum_of(path)
    assert (status, figures) == (0, {"runs": 2, "tests": 1, "seeds": [7], "jobs": 4, "acknowledged": 20,
                                     **dict.fromkeys(totals.FORBIDDEN, 0)})
    for damage in (lose_job, stale_write_accepted, event_gap):
        records = good()
        damage(records)
        totals.note(History(records), seed=8)
    doubled = good()
    two_artifacts(doubled)
    totals.note(History(doubled), seed=9)
    status, figures = sum_of(path)
    assert status == 1 and figures["runs"] == 6 and figures["seeds"] == [7, 8, 9]
    assert figures["jobs_lost"] == figures["double_artifacts"] == 1 and set(totals.broken(figures)) == set(totals.FORBIDDEN), figures
    path.write_text("")
    assert sum_of(path)[0] == 1, "no history was checked"


def test_every_rule_has_a_broken_history():
    assert {rule for _, rule in BROKEN} == {"lost", "deleted", "submit", "events", "states", "back", "cancel", "epochs", "stale",
                                            "retries", "artifact"}
    assert len(TRANSITIONS) == 11
