"""What was promised and what happened: a log of every acknowledged call, judged afterwards.

The promise (docs/reliability.md), one rule a function below:

    lost       an acknowledged submit is there at the end, and has ended; unless its deletion was asked for and not refused
    deleted    an acknowledged deletion lasts
    submit     one request id makes one job
    events     sequences 1, 2, 3, ...; every watch saw a piece of just that, whole and in order: from its snapshot on, and
               up to an end of the job if it ended by itself
    states     each change starts where the last one ended and is in the table of transitions
    back       what a later read tells is never older than what an earlier one told; an end is the end until a retry
    cancel     an acknowledged cancel is followed by CANCELLED or, by then, a retry; never by SUCCEEDED
    epochs     each claim's epoch is one more than the last claim's, and only the newest attempt's events are stored
    stale      a write of an old attempt is refused, and what was refused is not what became visible
    retries    one request id queues a job again at most once
    artifact   SUCCEEDED has exactly one artifact, another state none (a failed quality gate keeps one);
               each of its files has the bytes of its sha256

Records are dicts with "call", "job" and, where a call took time, "began" and "ended" (seconds, one clock). A call that
was answered with an error has "error": its reason; one that was never answered has "error": "". Kinds:

    submit    request_id, uid
    cancel    state                    the state the answer told
    retry     request_id
    delete
    get       sequence, epoch, state
    snapshot  stream, uid, sequence    the first message of a watch; not of one that goes on after a break
    event     stream, event            one message of a watch; `event` as below
    end       stream, sequence, state  the last message of a watch that ended by itself, and not by a break
    acquire   worker, epoch            a lease was given
    write     what, worker, epoch      complete, fail, release, checkpoint of a worker
    final     uid, state, epoch, events, artifacts, gate    read when everything had come to rest
    file      path, wanted, got        sha256 of an artifact's file; got = "" where there is none

An event is a dict: sequence, epoch, kind, and for kind "state_changed" from and to.
"""
import collections
import json
import threading
import time
import uuid

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
CHANGES = ("submit", "cancel", "retry", "delete", "acquire", "write")  # calls that promise something
# As server/jobs/transitions.cc; tests/model/test_model.py compares.
TRANSITIONS = {
    ("QUEUED", "RUNNING"), ("QUEUED", "SUCCEEDED"), ("QUEUED", "CANCELLED"), ("QUEUED", "FAILED"),
    ("RUNNING", "QUEUED"), ("RUNNING", "CANCELLING"), ("RUNNING", "SUCCEEDED"), ("RUNNING", "FAILED"),
    ("FAILED", "QUEUED"), ("CANCELLED", "QUEUED"), ("CANCELLING", "CANCELLED"),
}

Violation = collections.namedtuple("Violation", "rule job what")


class History:
    """Takes records from any thread."""

    def __init__(self, records=()):
        self.records = list(records)
        self.id = uuid.uuid4().hex
        self._lock = threading.Lock()

    def add(self, call, job, began=None, **fields):
        record = {"call": call, "job": job, **fields}
        if began is not None:
            record.update(began=began, ended=time.monotonic())
        with self._lock:
            self.records.append(record)

    def write(self, path):
        with open(path, "w") as out:
            for record in self.records:
                out.write(json.dumps(record) + "\n")

    @classmethod
    def read(cls, path):
        with open(path) as lines:
            return cls(json.loads(line) for line in lines)

    def check(self):
        """Every violation there is."""
        jobs = collections.defaultdict(lambda: collections.defaultdict(list))
        for record in self.records:
            jobs[record["job"]][record["call"]].append(record)
        found = list(_submits(self.records))
        for job, calls in jobs.items():
            finals = calls["final"]
            acknowledged = [c for c in calls["submit"] if "error" not in c]
            if acknowledged and not finals and not any(_may_have_happened(c) for c in calls["delete"]):
                found.append(Violation("lost", job, "acknowledged, and not there at the end"))
            for final in finals[-1:]:
                for rule in (_lost, _deleted, _events, _states, _back, _cancel, _epochs, _stale, _retries, _artifact):
                    found += [Violation(rule.__name__[1:], job, what) for what in rule(calls, final)]
        return found

    def counts(self):
        """The figures of a report."""
        found = collections.Counter(v.rule for v in self.check())
        calls = collections.Counter(r["call"] for r in self.records)
        finals = {r["job"]: r for r in self.records if r["call"] == "final"}  # the last one of each job
        doubles = sum(len(r["artifacts"]) > 1 for r in finals.values())
        return {"jobs": len({r["job"] for r in self.records if r["call"] == "submit" and "error" not in r}),
                "acknowledged": sum(r["call"] in CHANGES and "error" not in r for r in self.records),
                "jobs_lost": found["lost"], "double_artifacts": doubles, "stale_writes_accepted": found["stale"],
                "events_missed": found["events"], "violations": sum(found.values()), "records": dict(calls)}


def _may_have_happened(call):
    """Acknowledged, or nobody knows."""
    return call.get("error", "") in ("", "STORE_UNAVAILABLE", "DEADLINE_EXCEEDED")


def _submits(records):
    made = collections.defaultdict(set)
    for record in records:
        if record["call"] == "submit" and "error" not in record and record.get("request_id"):
            made[record["request_id"]].add((record["job"], record["uid"]))
    for request_id, jobs in made.items():
        if len(jobs) > 1:
            yield Violation("submit", sorted(jobs)[0][0], f"request id {request_id} made {sorted(jobs)}")


def _lost(calls, final):
    for submit in calls["submit"]:
        if "error" not in submit and submit["uid"] != final["uid"]:
            yield f"was acknowledged as {submit['uid']}, is {final['uid']}"
    if final["state"] not in ENDED:
        yield f"has not ended: {final['state']}"


def _deleted(calls, final):
    if any("error" not in call for call in calls["delete"]):
        yield f"is {final['state']}, its deletion was acknowledged"


def _events(calls, final):
    sequences = [event["sequence"] for event in final["events"]]
    if sequences != list(range(1, len(sequences) + 1)):
        yield f"sequences are {sequences}"
    streams = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in calls["snapshot"] + calls["event"] + calls["end"]:
        streams[record["stream"]][record["call"]].append(record)
    for stream, messages in streams.items():
        for what in _watch(messages, final):
            yield f"watch {stream} {what}"


def _watch(messages, final):
    """Of one watch, however often it was cut and went on with its last sequence."""
    snapshots, events = messages["snapshot"], [record["event"] for record in messages["event"]]
    if len(snapshots) != 1:
        yield f"saw {len(snapshots)} snapshots"
        return
    last = snapshots[0]["sequence"]
    # The watched job was deleted and another one has its name: nothing is known of it any more.
    stored = {e["sequence"]: e for e in final["events"]} if snapshots[0]["uid"] == final["uid"] else None
    for event in events:
        if event["sequence"] != last + 1:
            yield f"saw {event['sequence']} after {last}"
        if stored is not None and stored.get(event["sequence"]) != event:
            yield f"saw {event}, stored is {stored.get(event['sequence'])}"
        last = event["sequence"]
    for end in messages["end"]:
        if end["sequence"] != last:
            yield f"ended with the job at {end['sequence']}, its own last is {last}"
        if stored is not None and _end_at(final, last) != end["state"]:
            yield f"ended {end['state']} at {last}, which was no such end of the job"


def _end_at(final, sequence):
    """The state the job had ended with at that event: nothing comes behind it, or a retry does. None: it had not."""
    state = "".join([event["to"] for event in _changes(final) if event["sequence"] <= sequence][-1:])
    behind = [event for event in final["events"] if event["sequence"] > sequence][:1]
    retried = [event for event in behind if event["kind"] == "state_changed" and event["from"] in ENDED]
    return state if state in ENDED and behind == retried else None


def _changes(final):
    return [event for event in final["events"] if event["kind"] == "state_changed"]


def _states(calls, final):
    state = None
    for event in _changes(final):
        if state is None:
            if event["to"] != "QUEUED":
                yield f"begins as {event['to']}"
        elif event["from"] != state:
            yield f"event {event['sequence']} goes on from {event['from']}, but the job was {state}"
        elif (event["from"], event["to"]) not in TRANSITIONS:
            yield f"{event['from']} -> {event['to']} is not in the table"
        state = event["to"]
    if state != final["state"]:
        yield f"is {final['state']}, its events end with {state}"


def _back(calls, final):
    reads = sorted((r for r in calls["get"] if "error" not in r), key=lambda r: r["ended"])
    retries = [r["began"] for r in calls["retry"]]
    for i, later in enumerate(reads):
        for earlier in reads[max(0, i - 20):i]:
            if earlier["ended"] > later["began"]:
                continue
            for what in ("sequence", "epoch"):
                if later[what] < earlier[what]:
                    yield f"{what} {earlier[what]}, later {later[what]}"
            if earlier["state"] in ENDED and later["state"] != earlier["state"] and not any(
                    began < later["ended"] for began in retries):
                yield f"{earlier['state']}, later {later['state']}"
    for read in reads:
        if read["sequence"] > len(final["events"]) or read["epoch"] > final["epoch"]:
            yield f"told sequence {read['sequence']}, epoch {read['epoch']}; at the end it is less"


def _cancel(calls, final):
    for cancel in calls["cancel"]:
        if "error" in cancel or cancel["state"] not in ("CANCELLING", "CANCELLED"):
            continue
        if any(retry["ended"] > cancel["began"] for retry in calls["retry"]):
            continue
        if final["state"] != "CANCELLED":
            yield f"cancel was acknowledged ({cancel['state']}), the job is {final['state']}"


def _epochs(calls, final):
    epoch = 0
    for event in final["events"]:
        if event["kind"] == "state_changed" and event["to"] == "RUNNING":
            if event["epoch"] != epoch + 1:
                yield f"claim {event['epoch']} after claim {epoch}"
            epoch = event["epoch"]
        elif event["epoch"] not in (0, epoch):
            yield f"event {event['sequence']} is of attempt {event['epoch']}, the newest was {epoch}"
    if epoch != final["epoch"]:
        yield f"was claimed {epoch} times, its epoch is {final['epoch']}"
    given = collections.defaultdict(set)
    for lease in calls["acquire"]:
        given[lease["epoch"]].add(lease["worker"])
    for epoch, workers in given.items():
        if len(workers) > 1:
            yield f"attempt {epoch} was given to {sorted(workers)}"


def _stale(calls, final):
    committed = {artifact["epoch"] for artifact in final["artifacts"]}
    for write in calls["write"]:
        newer = [lease for lease in calls["acquire"]
                 if lease["epoch"] > write["epoch"] and lease["ended"] < write["began"]]
        repeated = write["what"] == "complete" and write["epoch"] in committed
        if "error" not in write and newer and not repeated:
            yield (f"{write['what']} of attempt {write['epoch']} by {write['worker']} was accepted after attempt "
                   f"{newer[0]['epoch']} had begun")
        if write["what"] != "complete":
            continue
        if "error" not in write and write["epoch"] not in committed:
            yield f"complete of attempt {write['epoch']} was acknowledged, visible is {sorted(committed)}"
        if write.get("error") == "LEASE_LOST" and write["epoch"] in committed:
            yield f"complete of attempt {write['epoch']} was refused, and is visible"


def _retries(calls, final):
    requeued = sum(event["from"] in ("FAILED", "CANCELLED") and event["to"] == "QUEUED" for event in _changes(final))
    asked = {retry["request_id"] for retry in calls["retry"]}
    if requeued > len(asked):
        yield f"{len(asked)} retries were asked for, {requeued} happened"


def _artifact(calls, final):
    artifacts = final["artifacts"]
    wanted = 1 if final["state"] == "SUCCEEDED" or final.get("gate") else 0
    if len(artifacts) != wanted:
        yield f"{final['state']} with {len(artifacts)} artifacts"
    for artifact in artifacts:
        if artifact["uid"] != final["uid"] or not 1 <= artifact["epoch"] <= final["epoch"]:
            yield f"artifact {artifact} of a job with uid {final['uid']}, epoch {final['epoch']}"
    for file in calls["file"]:
        if file["wanted"] != file["got"]:
            yield f"{file['path']} should have sha256 {file['wanted']}, has {file['got'] or 'no bytes'}"
    if artifacts and not calls["file"]:
        yield "none of its files was read"
