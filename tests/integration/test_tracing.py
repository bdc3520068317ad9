"""A client's W3C trace goes with its job through server, agent and engine."""
import base64
import json
import pathlib

from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

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


def with_base64_ids(value):
    """OTLP writes ids in hex where proto JSON has base64: the one way in which its JSON differs."""
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: base64.b64encode(bytes.fromhex(item)).decode() if key in ("traceId", "spanId", "parentSpanId") else with_base64_ids(item)
            for key, item in value.items()}


def test_the_protocols_own_messages_read_a_trace(make_server, stories):
    """No unknown key, every value of its type: OpenTelemetry's messages take the file whole."""
    server = make_server().start()
    job = server.json(*submit_args(stories, "--id", "traced", "--trace", "--wait", method="rtn"))
    text = (pathlib.Path(job["artifact"]["uri"].removeprefix("file://")) / "report/trace.json").read_text()
    data = json_format.ParseDict(with_base64_ids(json.loads(text)), TracesData())
    (resource,) = data.resource_spans
    assert {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}["service.name"] == "quantry-engine"
    (scope,) = resource.scope_spans
    ids = {span.span_id for span in scope.spans}
    assert len(ids) == len(scope.spans) > 10
    for span in scope.spans:
        assert len(span.trace_id) == 16 and len(span.span_id) == 8
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    assert [span.name for span in scope.spans if span.parent_span_id not in ids] == [scope.spans[0].name]


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
