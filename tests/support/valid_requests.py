"""For each rpc the messages of a call that one running server answers with OK, made afresh for every call.

    requests = ValidRequests(api.Tenant(server.address), api.PuppetWorker(server.worker_address, "w"))
    requests.of("QuantizationService/GetQuantizationJob")    # [GetQuantizationJobRequest(name=a job there is)]

A job, lease or upload that a call used up is replaced by another one at the next call.
"""
import hashlib
import itertools
import json
import pathlib
import uuid

import google_crc32c

from api import PARENT, name_of
from quantry.v1 import admin_service_pb2 as admin
from quantry.v1 import artifact_service_pb2 as artifact
from quantry.v1 import job_pb2
from quantry.v1 import quantization_service_pb2 as quantization
from quantry.v1 import worker_service_pb2 as worker
from service import EXAMPLES


class ValidRequests:
    """`tenant`, `worker`: who makes the calls that prepare. The worker is registered here."""

    def __init__(self, tenant, worker_calls):
        self.tenant, self.worker = tenant, worker_calls
        self.worker.info.slots = 1024
        self.worker.register()
        self.numbers = itertools.count()
        self.done = None  # the ended job and its manifest
        self.lease = None

    def of(self, name):
        """Of "Service/Rpc"; KeyError: nobody has written one down yet."""
        messages = self.TABLE[name](self)
        return messages if isinstance(messages, list) else [messages]

    def answered(self, name):
        """One of these calls was answered with OK: an attempt that it ended is no good for the next one."""
        if name in ("WorkerService/CompleteJob", "WorkerService/FailJob", "WorkerService/ReleaseJob"):
            self.lease = None

    # What the requests are about ------------------------------------------------

    @staticmethod
    def spec():
        spec = job_pb2.JobSpec(seed=1)
        spec.model.local_path = str(EXAMPLES / "stories260k")
        spec.method.awq.grid.bits = 4
        spec.calibration.source.local_path = str(EXAMPLES / "text/calibration.txt")
        spec.calibration.samples, spec.calibration.sequence_length = 8, 64
        spec.evaluation.source.local_path = str(EXAMPLES / "text/evaluation.txt")
        spec.evaluation.sequence_length, spec.evaluation.windows = 64, 8
        spec.outputs.add(format=job_pb2.OUTPUT_FORMAT_COMPRESSED_TENSORS)
        spec.quality_gate.max_perplexity_ratio = 2
        spec.resources.device, spec.resources.threads = "cpu", 1
        spec.stop_limits.max_run.seconds = 3600
        spec.retry_policy.max_attempts = 3
        return spec

    def submit(self):
        """The id of a new job that waits."""
        job = f"valid-{next(self.numbers)}"
        self.tenant.submit(job, self.spec())
        return job

    def cancelled(self):
        job = self.submit()
        self.tenant.cancel(job)
        return name_of(job)

    def leased(self):
        """The lease of a job that runs; another one once a call ended its attempt."""
        if self.lease is None:
            self.tenant.call(self.tenant.admin.ResumeQueue, admin.ResumeQueueRequest())
            self.lease = self.worker.acquire()
        if self.lease is None:
            self.submit()
            self.lease = self.worker.acquire(wait_s=5)
        return self.lease

    def finished(self):
        """The lease and manifest digest of a job that SUCCEEDED."""
        if self.done is None:
            lease, self.lease = self.leased(), None
            digest = self.put_artifact(lease)
            self.worker.complete(lease, digest)
            self.done = lease, digest
        return self.done

    @staticmethod
    def put_artifact(lease):
        """What an engine would have left below the lease's prefix; the manifest's digest."""
        folder = pathlib.Path(lease.output_uri.removeprefix("file://"))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")
        files = [{"path": "model.safetensors", "sizeBytes": "7", "sha256": hashlib.sha256(b"weights").hexdigest()}]
        manifest = json.dumps({"schema": "quantry.manifest.v1", "job": lease.job, "files": files}).encode()
        (folder / "manifest.json").write_bytes(manifest)
        return hashlib.sha256(manifest).hexdigest()

    # Requests -------------------------------------------------------------------

    def create(self):
        job = job_pb2.QuantizationJob(display_name="a job", labels={"team": "a"}, spec=self.spec(), priority=1)
        return quantization.CreateQuantizationJobRequest(parent=PARENT, quantization_job=job)

    def update(self):
        request = quantization.UpdateQuantizationJobRequest()
        request.quantization_job.name, request.quantization_job.priority = self.finished()[0].job, 2
        request.quantization_job.labels["team"] = "b"
        request.quantization_job.expire_time.seconds = 4_000_000_000
        request.update_mask.paths[:] = ["labels", "priority", "expire_time"]
        return request

    def retry(self):
        return quantization.RetryQuantizationJobRequest(name=self.cancelled(), request_id=str(uuid.uuid4()))

    def events_page(self):
        first = quantization.ListJobEventsRequest(parent=self.finished()[0].job, page_size=1)
        first.page_token = self.tenant.call(self.tenant.jobs.ListJobEvents, first).next_page_token
        return first

    def jobs_page(self):
        first = quantization.ListQuantizationJobsRequest(parent=PARENT, page_size=1, filter='method = awq AND labels.team = "a"')
        for _ in range(2):
            self.tenant.call(self.tenant.jobs.CreateQuantizationJob, self.create())
        first.page_token = self.tenant.call(self.tenant.jobs.ListQuantizationJobs, first).next_page_token
        return first

    def artifact_name(self):
        return f"{PARENT}/artifacts/{self.finished()[0].job_uid}"

    def upload(self):
        data = str(next(self.numbers)).encode()
        header = artifact.UploadBlobRequest()
        header.header.parent = PARENT
        header.header.blob.sha256, header.header.blob.size_bytes = hashlib.sha256(data).hexdigest(), len(data)
        chunk = artifact.UploadBlobRequest()
        chunk.chunk.data, chunk.chunk.crc32c = data, google_crc32c.value(data)
        return [header, chunk]

    def missing_blobs(self):
        request = artifact.FindMissingBlobsRequest(parent=PARENT)
        request.blobs.add(sha256="a" * 64, size_bytes=1)
        return request

    def register(self):
        request = worker.RegisterWorkerRequest()
        request.worker.CopyFrom(self.worker.info)
        request.worker.worker_id, request.worker.incarnation = "another", str(uuid.uuid4())
        return request

    def acquire(self):
        """Again for a lease that was given, which is answered at once."""
        self.leased()
        request = worker.AcquireJobRequest(session=self.worker.session, acquire_id=str(uuid.uuid4()))
        self.submit()
        self.worker.acquire(acquire_id=request.acquire_id)
        request.wait.seconds = 1
        return request

    def report(self, make, **fields):
        """With one event, of the attempt there is."""
        lease = self.leased()
        request = make(session=self.worker.session, job=lease.job, epoch=lease.epoch, **fields)
        request.events.add().log.message = "said"
        return request

    def beat(self):
        lease = self.leased()
        request = worker.HeartbeatRequest(session=self.worker.session)
        beat = request.jobs.add(job=lease.job, epoch=lease.epoch)
        beat.progress.stage, beat.progress.blocks_total, beat.progress.ratio = job_pb2.STAGE_QUANTIZING, 5, 0.5
        beat.events.add().log.message = "said"
        return request

    def checkpoint(self):
        request = self.report(worker.CommitCheckpointRequest)
        request.checkpoint.uri, request.checkpoint.blocks_done = self.leased().checkpoint_uri, 1
        request.checkpoint.files.add(path="state", size_bytes=1, sha256="a" * 64)
        return request

    def complete(self):
        return self.report(worker.CompleteJobRequest, manifest_sha256=self.put_artifact(self.leased()), total_bytes=7, file_count=1)

    def fail(self):
        request = self.report(worker.FailJobRequest, exit_code=1, log_tail="said")
        request.error.reason, request.error.message = "ENGINE_CRASHED", "said"
        return request

    def release(self):
        lease = self.leased()
        return worker.ReleaseJobRequest(session=self.worker.session, job=lease.job, epoch=lease.epoch, reason="draining")

    def idle_worker(self):
        """The id of a worker that nobody needs."""
        self.tenant.call(self.worker.stub.RegisterWorker, self.register())
        return "another"

    TABLE = {
        "AdminService/CollectGarbage": lambda self: admin.CollectGarbageRequest(dry_run=True),
        "AdminService/DrainWorker": lambda self: admin.DrainWorkerRequest(worker_id=self.idle_worker()),
        "AdminService/GetQueueStats": lambda self: admin.GetQueueStatsRequest(),
        "AdminService/GetQuota": lambda self: admin.GetQuotaRequest(parent=PARENT),
        "AdminService/ListWorkers": lambda self: admin.ListWorkersRequest(),
        "AdminService/PauseQueue": lambda self: admin.PauseQueueRequest(reason="a test"),
        "AdminService/ResumeQueue": lambda self: admin.ResumeQueueRequest(),
        "AdminService/SetQuota": lambda self: admin.SetQuotaRequest(parent=PARENT, max_queued=1 << 20),
        "ArtifactService/FindMissingBlobs": missing_blobs,
        "ArtifactService/GetArtifact": lambda self: artifact.GetArtifactRequest(name=self.artifact_name()),
        "ArtifactService/ListArtifacts": lambda self: artifact.ListArtifactsRequest(parent=PARENT, page_size=1),
        "ArtifactService/ReadArtifact": lambda self: artifact.ReadArtifactRequest(name=self.artifact_name(), path="manifest.json"),
        "ArtifactService/UploadBlob": upload,
        "QuantizationService/CancelQuantizationJob": lambda self: quantization.CancelQuantizationJobRequest(name=name_of(self.submit())),
        "QuantizationService/CreateQuantizationJob": create,
        "QuantizationService/DeleteQuantizationJob": lambda self: quantization.DeleteQuantizationJobRequest(name=self.cancelled()),
        "QuantizationService/GetQuantizationJob": lambda self: quantization.GetQuantizationJobRequest(name=self.finished()[0].job),
        "QuantizationService/GetServerInfo": lambda self: quantization.GetServerInfoRequest(),
        "QuantizationService/ListJobEvents": events_page,
        "QuantizationService/ListMethods": lambda self: quantization.ListMethodsRequest(),
        "QuantizationService/ListQuantizationJobs": jobs_page,
        "QuantizationService/RetryQuantizationJob": retry,
        "QuantizationService/UpdateQuantizationJob": update,
        "QuantizationService/WatchQuantizationJob": lambda self: quantization.WatchQuantizationJobRequest(name=self.finished()[0].job),
        "WorkerService/AcquireJob": acquire,
        "WorkerService/CommitCheckpoint": checkpoint,
        "WorkerService/CompleteJob": complete,
        "WorkerService/FailJob": fail,
        "WorkerService/Heartbeat": beat,
        "WorkerService/RegisterWorker": register,
        "WorkerService/ReleaseJob": release,
    }


