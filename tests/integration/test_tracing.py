"""A client's W3C trace goes with its job through server, agent and engine."""
import json
import pathlib

from conftest import submit_args

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def lines_of_trace(server, trace):
    found = []
    for line in server.log_text().splitlines():
        if line.startswith("{") and json.loads(line).get("trace_id") == trace:
            found.append(json.loads(line)["message"])
    return found


def spans_of(job):
    folder = pathlib.Path(job["artifact"]["uri"].removeprefix("file://"))
    trace = folder / "report/trace.json"
    if not trace.exists():
        return None
    assert "report/trace.json" in {file["path"] for file in json.loads((folder / "manifest.json").read_text())["files"]}
    resource, = json.loads(trace.read_text())["resourceSpans"]
    scope, = resource["scopeSpans"]
    return scope["spans"]


def test_logs_and_spans_carry_the_trace(make_server, stories):
    server = make_server("--log-format=json", "--log-level=debug").start()
    job = server.json(*submit_args(stories, "--id", "traced", "--wait", method="rtn"),
                      env={"TRACEPARENT": f"00-{TRACE}-{PARENT}-01"})
    assert job["traceparent"] == f"00-{TRACE}-{PARENT}-01"
    logged = lines_of_trace(server, TRACE)
    for message in ("call", "job started", "engine started", "block done", "job committed"):
        assert message in logged, logged
    spans = spans_of(job)
    run = spans[0]
    assert {span["traceId"] for span in spans} == {TRACE} and run["parentSpanId"] == PARENT
    stages = [span for span in spans if span["parentSpanId"] == run["spanId"]]
    assert [stage["name"] for stage in stages] == ["loading", "calibrating", "quantizing", "packing", "evaluating"]
    quantizing = stages[2]
    blocks = [span for span in spans if span["parentSpanId"] == quantizing["spanId"]]
    assert [block["name"] for block in blocks] == [f"block {i}" for i in range(5)]
    for block in blocks:
        assert int(quantizing["startTimeUnixNano"]) <= int(block["startTimeUnixNano"])
        assert int(block["endTimeUnixNano"]) <= int(quantizing["endTimeUnixNano"])

    # Without a sampled trace: an id for the logs, and the bytes of every other run.
    other = server.json(*submit_args(stories, "--id", "plain", "--wait", method="rtn"))
    version, trace, _, flags = other["traceparent"].split("-")
    assert (version, flags) == ("00", "00") and trace != TRACE
    assert "job committed" in lines_of_trace(server, trace)
    assert spans_of(other) is None
