"""Servers and the worker's protocol as plain calls from Python, over the stubs of the Python package.

Errors are quantry.errors.QuantryError, with .reason and .code.
"""
import fcntl
import importlib.util
import sys
import uuid

from service import ROOT


def _load_package():
    """The package in place; its messages are generated when they are missing or old."""
    folder = ROOT / "client/python"
    spec = importlib.util.spec_from_file_location("build_protos", folder / "build_protos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with open(folder / "pyproject.toml", encoding="utf-8") as lock:  # one of the processes that run tests generates
        fcntl.flock(lock, fcntl.LOCK_EX)
        module.main([])
    sys.path.insert(0, str(folder))


_load_package()

from quantry import errors  # noqa: E402  before grpc: it sets what grpc reads when it is imported
from quantry.v1 import (admin_service_pb2, admin_service_pb2_grpc, artifact_service_pb2_grpc, job_pb2, quantization_service_pb2,  # noqa: E402
                        quantization_service_pb2_grpc, worker_service_pb2, worker_service_pb2_grpc)

import grpc  # noqa: E402

PARENT = "tenants/default"
OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500),
           ("grpc.use_local_subchannel_pool", 1)]


def name_of(job_id):
    return f"{PARENT}/quantizationJobs/{job_id}"


def token_credentials(ca_file, token_file):
    """TLS, and the token that is in the file when a call is made."""
    def add_token(context, callback):
        callback((("authorization", "Bearer " + token_file.read_text().strip()),), None)

    return grpc.composite_channel_credentials(grpc.ssl_channel_credentials(ca_file.read_bytes()),
                                              grpc.metadata_call_credentials(add_token))


def state_name(state):
    return job_pb2.JobState.Name(state).removeprefix("JOB_STATE_")


class _Calls:
    """`credentials`: of the channel; None: plain."""

    def __init__(self, address, timeout, credentials=None):
        self.address, self.timeout = address, timeout
        self.channel = (grpc.secure_channel(address, credentials, options=OPTIONS) if credentials else
                        grpc.insecure_channel(address, options=OPTIONS))

    def close(self):
        self.channel.close()

    def explain(self, error):
        return errors.from_rpc(error, self.address, "test", False, self.timeout)

    def call(self, method, request, timeout=None):
        try:
            return method(request, timeout=timeout or self.timeout)
        except grpc.RpcError as error:
            raise self.explain(error) from None


class Tenant(_Calls):
    """The tenant API of one server."""

    def __init__(self, address, timeout=10, credentials=None):
        super().__init__(address, timeout, credentials)
        self.jobs = quantization_service_pb2_grpc.QuantizationServiceStub(self.channel)
        self.artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self.channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(self.channel)

    def submit(self, job_id, spec, request_id="", timeout=None, **fields):
        request = quantization_service_pb2.CreateQuantizationJobRequest(
            parent=PARENT, quantization_job_id=job_id, request_id=request_id,
            quantization_job=job_pb2.QuantizationJob(spec=spec, **fields))
        return self.call(self.jobs.CreateQuantizationJob, request, timeout).quantization_job

    def get(self, job_id):
        return self.call(self.jobs.GetQuantizationJob,
                         quantization_service_pb2.GetQuantizationJobRequest(name=name_of(job_id)))

    def cancel(self, job_id, reason="asked by the test"):
        return self.call(self.jobs.CancelQuantizationJob,
                         quantization_service_pb2.CancelQuantizationJobRequest(name=name_of(job_id), reason=reason))

    def delete(self, job_id):
        return self.call(self.jobs.DeleteQuantizationJob,
                         quantization_service_pb2.DeleteQuantizationJobRequest(name=name_of(job_id)))

    def retry(self, job_id, request_id=""):
        return self.call(self.jobs.RetryQuantizationJob,
                         quantization_service_pb2.RetryQuantizationJobRequest(name=name_of(job_id), request_id=request_id))

    def events(self, job_id, after=0):
        found = []
        request = quantization_service_pb2.ListJobEventsRequest(parent=name_of(job_id), page_size=1000, after_sequence=after)
        while True:
            page = self.call(self.jobs.ListJobEvents, request)
            found += page.events
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def watch(self, job_id, after=0, timeout=60):
        """The stream's messages; raises QuantryError when it breaks."""
        request = quantization_service_pb2.WatchQuantizationJobRequest(name=name_of(job_id), after_sequence=after)
        try:
            yield from self.jobs.WatchQuantizationJob(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self.explain(error) from None


class PuppetWorker(_Calls):
    """Says what a test wants said on the worker's port."""

    def __init__(self, address, name, timeout=10):
        super().__init__(address, timeout)
        self.name = name
        self.stub = worker_service_pb2_grpc.WorkerServiceStub(self.channel)
        self.info = worker_service_pb2.WorkerInfo(worker_id=name, incarnation=str(uuid.uuid4()), version="puppet",
                                                  methods=["rtn", "awq"], slots=1, cores=1)
        self.session = ""

    def register(self, new_incarnation=False):
        if new_incarnation:
            self.info.incarnation = str(uuid.uuid4())
        request = worker_service_pb2.RegisterWorkerRequest(worker=self.info)
        self.session = self.call(self.stub.RegisterWorker, request).session
        return self

    def acquire(self, wait_s=0, acquire_id=None, timeout=None):
        """The lease, or None."""
        request = worker_service_pb2.AcquireJobRequest(session=self.session, acquire_id=acquire_id or str(uuid.uuid4()))
        request.wait.FromMilliseconds(int(wait_s * 1000))
        answer = self.call(self.stub.AcquireJob, request, timeout or self.timeout + wait_s)
        return answer.lease if answer.HasField("lease") else None

    def beat(self, lease, events=(), offset=0, progress=None):
        """The directive's name."""
        beat = worker_service_pb2.JobBeat(job=lease.job, epoch=lease.epoch, event_offset=offset, events=events, progress=progress)
        answer = self.call(self.stub.Heartbeat, worker_service_pb2.HeartbeatRequest(session=self.session, jobs=[beat]))
        return worker_service_pb2.Directive.Name(answer.jobs[0].directive).removeprefix("DIRECTIVE_")

    def checkpoint(self, lease, blocks=1):
        checkpoint = worker_service_pb2.CheckpointRef(uri=lease.checkpoint_uri, blocks_done=blocks)
        self.call(self.stub.CommitCheckpoint, worker_service_pb2.CommitCheckpointRequest(
            session=self.session, job=lease.job, epoch=lease.epoch, checkpoint=checkpoint))

    def complete(self, lease, manifest_sha256, total_bytes=1, file_count=1, timeout=None):
        self.call(self.stub.CompleteJob, worker_service_pb2.CompleteJobRequest(
            session=self.session, job=lease.job, epoch=lease.epoch, manifest_sha256=manifest_sha256,
            total_bytes=total_bytes, file_count=file_count), timeout)

    def fail(self, lease, reason="ENGINE_CRASHED", retryable=True, cancelled=False):
        request = worker_service_pb2.FailJobRequest(session=self.session, job=lease.job, epoch=lease.epoch,
                                                    retryable=retryable, cancelled=cancelled)
        request.error.reason, request.error.message = reason, "said by a puppet"
        return state_name(self.call(self.stub.FailJob, request).state)

    def release(self, lease):
        self.call(self.stub.ReleaseJob, worker_service_pb2.ReleaseJobRequest(
            session=self.session, job=lease.job, epoch=lease.epoch, reason="puppet"))
