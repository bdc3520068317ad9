"""A scripted server of the tenant API, for what a healthy one does not do."""
import contextlib
import hashlib
from concurrent import futures

import google_crc32c
import grpc
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.json_format import MessageToJson
from google.rpc import error_details_pb2, status_pb2

from quantry.v1 import artifact_pb2, artifact_service_pb2 as files_pb2, artifact_service_pb2_grpc, job_pb2
from quantry.v1 import quantization_service_pb2 as jobs_pb2, quantization_service_pb2_grpc

JOB = "tenants/default/quantizationJobs/fake"
ARTIFACT = "tenants/default/artifacts/00000000-0000-4000-8000-000000000000"


def rich_status(code, message, *details):
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def abort(context, code, message, reason="", *details):
    if reason:
        details = (error_details_pb2.ErrorInfo(reason=reason, domain="quantry"), *details)
        status = rich_status(code, message, *details)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def snapshot(sequence=0, state=job_pb2.JOB_STATE_RUNNING):
    return jobs_pb2.WatchQuantizationJobResponse(
        snapshot=job_pb2.QuantizationJob(name=JOB, state=state, last_sequence=sequence))


def event(sequence):
    message = jobs_pb2.WatchQuantizationJobResponse()
    message.event.sequence = sequence
    message.event.stage_changed.stage = job_pb2.STAGE_QUANTIZING
    return message


def end(state=job_pb2.JOB_STATE_SUCCEEDED):
    return jobs_pb2.WatchQuantizationJobResponse(
        end=jobs_pb2.WatchEnd(job=job_pb2.QuantizationJob(name=JOB, state=state)))


class Fake(quantization_service_pb2_grpc.QuantizationServiceServicer,
           artifact_service_pb2_grpc.ArtifactServiceServicer):
    """watches   one script a call: messages, or a function of the context that aborts
    remaining seconds until the deadline of each call of methods(), quote() and submit()
    list      of the request and context: what aborts a list of jobs; those asked for are in `lists`
    quote     of the context: what a create that only validates answers; those are in `quotes`, others in `creates`
    files     {path: bytes} of the artifact; `damage` is called with (path, offset, data) for each chunk sent
    """

    def __init__(self):
        self.watches = []
        self.pages = []
        self.deletes = []
        self.watch_requests = []
        self.peers = []
        self.tokens = []
        self.traces = []
        self.files = {}
        self.manifest = artifact_pb2.Manifest(schema="quantry.manifest.v1", job=JOB, method="rtn")
        self.damage = lambda path, offset, data: data
        self.tears_with = grpc.StatusCode.UNAVAILABLE  # where damage() gives None
        self.reads = []
        self.info = lambda context: None
        self.remaining = []
        self.lists = []
        self.list = lambda request, context: None
        self.creates = []
        self.quotes = []
        self.quote = lambda context: jobs_pb2.Quote()
        self.uploads = []
        self.breaks = []

    # jobs
    def GetServerInfo(self, request, context):
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        self.traces.append(dict(context.invocation_metadata()).get("traceparent"))
        self.peers.append(context.peer())
        self.info(context)
        return jobs_pb2.ServerInfo(version="fake")

    def ListMethods(self, request, context):
        self.remaining.append(context.time_remaining())
        return jobs_pb2.ListMethodsResponse()

    def GetQuantizationJob(self, request, context):
        return job_pb2.QuantizationJob(name=request.name, state=job_pb2.JOB_STATE_SUCCEEDED, artifact=ARTIFACT)

    def ListQuantizationJobs(self, request, context):
        self.lists.append(request)
        self.list(request, context)
        return jobs_pb2.ListQuantizationJobsResponse()

    def CreateQuantizationJob(self, request, context):
        self.remaining.append(context.time_remaining())
        if request.validate_only:
            self.quotes.append(request)
            return jobs_pb2.CreateQuantizationJobResponse(quote=self.quote(context))
        self.creates.append(request)
        self.info(context)
        return jobs_pb2.CreateQuantizationJobResponse(quantization_job=job_pb2.QuantizationJob(name=JOB))

    def DeleteQuantizationJob(self, request, context):
        self.deletes.pop(0)(context)
        return empty_pb2.Empty()

    def ListJobEvents(self, request, context):
        """A script's next page: events, a token for another, or what breaks it."""
        page = self.pages.pop(0)
        if callable(page):
            page(context)
        events, token = page
        return jobs_pb2.ListJobEventsResponse(next_page_token=token, events=[
            found for found in events if found.sequence > request.after_sequence])

    def WatchQuantizationJob(self, request, context):
        self.watch_requests.append(request)
        for step in self.watches.pop(0):
            if callable(step):
                step(context)
            else:
                yield step

    # artifacts
    def add_file(self, path, data):
        self.files[path] = data
        self.manifest.files.add(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _manifest_bytes(self):
        return MessageToJson(self.manifest, preserving_proto_field_name=True).encode()

    def GetArtifact(self, request, context):
        return artifact_pb2.Artifact(name=ARTIFACT, manifest_sha256=hashlib.sha256(self._manifest_bytes()).hexdigest())

    def ReadArtifact(self, request, context):
        data = self._manifest_bytes() if request.path == "manifest.json" else self.files[request.path]
        self.reads.append((request.path, request.read_offset))
        for at in range(request.read_offset, len(data), 1000):
            chunk = data[at:at + 1000]
            sent = self.damage(request.path, at, chunk)
            if sent is None:
                abort(context, self.tears_with, "torn")
            yield files_pb2.ReadArtifactResponse(data=sent, crc32c=google_crc32c.value(sent), offset=at)

    def FindMissingBlobs(self, request, context):
        response = files_pb2.FindMissingBlobsResponse()
        for blob in request.blobs:
            response.missing.add(blob=blob, committed_bytes=sum(map(len, self.uploads)))
        return response

    def UploadBlob(self, requests, context):
        header = next(requests).header
        assert header.write_offset == sum(map(len, self.uploads))
        for request in requests:
            assert google_crc32c.value(request.chunk.data) == request.chunk.crc32c
            self.uploads.append(request.chunk.data)
            if self.breaks:
                abort(context, self.breaks.pop(0), "torn")
        data = b"".join(self.uploads)
        assert hashlib.sha256(data).hexdigest() == header.blob.sha256
        return files_pb2.UploadBlobResponse(committed_bytes=len(data))


@contextlib.contextmanager
def serving(fake, credentials=None):
    """The fake on a free loopback port: its "HOST:PORT"."""
    server = grpc.server(futures.ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
    quantization_service_pb2_grpc.add_QuantizationServiceServicer_to_server(fake, server)
    artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server(fake, server)
    address = "127.0.0.1:0"  # not localhost: with two addresses gRPC tells the error of either
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(5)
