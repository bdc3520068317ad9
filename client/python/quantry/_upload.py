"""Local files onto the server by content hash: hash, ask what is missing, send it from where an earlier try stopped."""
from __future__ import annotations

import hashlib
from typing import Iterator, Optional, Sequence

import google_crc32c

from quantry import errors
from quantry._files import LocalFile
from quantry._retry import MAX_HELD_TRIES, MAX_TRIES, Backoff, may_go_on, stream_deadline
from quantry._progress import Meter, MeterFactory
from quantry._transport import Transport
from quantry.v1 import artifact_service_pb2 as service_pb2, job_pb2

READ_BYTES = 1 << 20
CHUNK_BYTES = 512 << 10  # artifact_service.proto's limit


def crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def _changed(file: LocalFile) -> errors.QuantryError:
    return errors.make_error("DATA_LOSS", f"\"{file.path}\" changed while it was uploaded: wanted {file.size} bytes as "
                                          "hashed, got others", reason="BLOB_MISMATCH",
                             metadata={"path": str(file.path)})


def _unreadable(file: LocalFile, error: OSError) -> errors.QuantryError:
    return errors.LocalDiskError(f"cannot read \"{file.path}\": {error.strerror}", errno=error.errno)


def hash_file(file: LocalFile) -> str:
    digest, total = hashlib.sha256(), 0
    try:
        with open(file.path, "rb") as data:
            while block := data.read(READ_BYTES):
                digest.update(block)
                total += len(block)
    except OSError as error:
        raise _unreadable(file, error) from None
    if total != file.size:
        raise _changed(file)
    return digest.hexdigest()


class BlobSource:
    """The messages of one UploadBlob call: a header, then the file's bytes from `offset` on."""

    def __init__(self, parent: str, file: LocalFile, blob: job_pb2.BlobFile, offset: int, meter: Meter) -> None:
        self.error: Optional[Exception] = None
        self.sent = 0
        self._parent, self._file, self._blob, self._offset, self._meter = parent, file, blob, offset, meter

    def messages(self) -> Iterator[service_pb2.UploadBlobRequest]:
        request = service_pb2.UploadBlobRequest()
        request.header.parent = self._parent
        request.header.blob.sha256 = self._blob.sha256
        request.header.blob.size_bytes = self._blob.size_bytes
        request.header.write_offset = self._offset
        yield request
        try:
            yield from self._chunks()
        except Exception as error:  # the caller's progress function may raise anything; gRPC would only say that reading the messages failed
            self.error = error
            raise

    def _chunks(self) -> Iterator[service_pb2.UploadBlobRequest]:
        at = self._offset
        try:
            with open(self._file.path, "rb") as data:
                data.seek(at)
                while at < self._file.size:
                    block = data.read(min(CHUNK_BYTES, self._file.size - at))
                    if not block:
                        raise _changed(self._file)
                    at += len(block)
                    request = service_pb2.UploadBlobRequest()
                    request.chunk.data = block
                    request.chunk.crc32c = crc32c(block)
                    yield request
                    self.sent += len(block)
                    self._meter.add(len(block))
        except OSError as error:
            raise _unreadable(self._file, error) from None


class Uploader:
    def __init__(self, transport: Transport, parent: str, meters: MeterFactory) -> None:
        self._transport, self._parent, self._meters = transport, parent, meters

    async def upload(self, files: Sequence[LocalFile]) -> list[job_pb2.BlobFile]:
        """One BlobFile a file, in order, all of them on the server on return."""
        blobs = []
        with self._meters("hashing", sum(file.size for file in files)) as meter:
            for file in files:
                sha256 = await self._transport.run(hash_file, file)
                blobs.append(job_pb2.BlobFile(path=file.name, sha256=sha256, size_bytes=file.size))
                meter.add(file.size)
        missing = {entry.blob.sha256: entry for entry in await self._missing(blobs)}
        total = sum(entry.blob.size_bytes - entry.committed_bytes for entry in missing.values())
        with self._meters("uploading", total) as meter:
            for file, blob in zip(files, blobs):
                entry = missing.pop(blob.sha256, None)
                if entry is not None:
                    await self._send(file, blob, int(entry.committed_bytes), meter)
        return blobs

    async def _missing(self, blobs: Sequence[job_pb2.BlobFile],
                       most_tries: int = MAX_TRIES) -> list[service_pb2.FindMissingBlobsResponse.Missing]:
        request = service_pb2.FindMissingBlobsRequest(parent=self._parent)
        for blob in blobs:
            request.blobs.add(sha256=blob.sha256, size_bytes=blob.size_bytes)
        backoff, tries = Backoff(), 1
        while True:
            try:
                return list((await self._transport.call("artifacts", "FindMissingBlobs", request)).missing)
            except errors.QuantryError as error:
                if error.reason != "RESOURCE_LIMIT" or tries >= most_tries:  # others with the same credential ask, too
                    raise
            tries += 1
            await self._transport.sleep(backoff.next())

    async def _send(self, file: LocalFile, blob: job_pb2.BlobFile, offset: int, meter: Meter) -> None:
        """One blob, however often the connection breaks on the way."""
        backoff, tries = Backoff(), 1
        while True:
            source = BlobSource(self._parent, file, blob, offset, meter)
            try:
                # Of the whole file: whatever is left to send, the server hashes and stores all of it.
                await self._transport.upload(source, stream_deadline(file.size))
                return
            except errors.QuantryError as error:
                broken = may_go_on(error) or error.reason in ("UPLOAD_OFFSET", "CHUNK_CORRUPT")
                # What the other call sends is advance too, so a long upload is waited for.
                if not broken or tries >= (MAX_HELD_TRIES if error.reason == "RESOURCE_LIMIT" else MAX_TRIES):
                    raise
            await self._transport.sleep(backoff.next())
            await self._transport.refresh()
            tries += 1
            try:
                missing = await self._missing([blob], most_tries=1)  # this loop waits and counts
            except errors.QuantryError as error:
                if not may_go_on(error):
                    raise
                meter.add(-source.sent)
                continue
            if not missing:
                return
            committed = int(missing[0].committed_bytes)
            meter.add(committed - offset - source.sent)
            if committed > offset:
                tries = 1
            offset = committed
