"""An artifact into a folder, and proof of it: the manifest by the server's digest of it, every file by the manifest's.

manifest.json is written last, so a folder that has it has what was asked for. Running it again verifies what is there
and fetches the rest; files are replaced whole or not at all. Another artifact makes room first, when it must.
"""
from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import time
from dataclasses import dataclass
from typing import Any, Optional

from google.protobuf.json_format import Parse, ParseError

from quantry import errors
from quantry._files import check_name
from quantry._part_file import PartFile, disk, held, holds_exactly, remove_old_parts
from quantry._progress import Meter, MeterFactory
from quantry._retry import MAX_TRIES, Backoff, may_go_on, stream_deadline
from quantry._transport import Transport
from quantry._upload import crc32c
from quantry.artifact import MANIFEST, LocalArtifact
from quantry.v1 import artifact_pb2, artifact_service_pb2 as service_pb2

FORMER_MANIFEST = MANIFEST + ".former"  # of an artifact that makes room, until its files are gone; the command line's too
MAX_MANIFEST_BYTES = 64 << 20

log = logging.getLogger("quantry")


@dataclass(frozen=True)
class Pulled:
    """What pull() left in the folder: everything verified."""

    artifact: LocalArtifact
    files: int  # in the folder now
    downloaded: int  # of them, fetched by this call
    bytes: int
    downloaded_bytes: int
    seconds: float

    @property
    def folder(self) -> pathlib.Path:
        return self.artifact.folder


@dataclass(frozen=True)
class Wanted:
    """Which files, and what may be replaced."""

    folder: pathlib.Path
    format: str = ""
    path: str = ""
    force: bool = False


def _corrupt(message: str, path: str) -> errors.QuantryError:
    return errors.make_error("DATA_LOSS", message, reason="ARTIFACT_CORRUPT", metadata={"path": path})


def parse_manifest(data: bytes) -> artifact_pb2.Manifest:
    try:
        return Parse(data.decode(), artifact_pb2.Manifest(), ignore_unknown_fields=True)
    except (ParseError, UnicodeDecodeError):
        raise _corrupt(f"{MANIFEST} is not the JSON of a manifest", MANIFEST) from None


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _check_entries(manifest: artifact_pb2.Manifest) -> None:
    seen: set[str] = set()
    for file in manifest.files:
        check_name(file.path)
        hexadecimal = len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef")
        if file.path in seen or file.path == MANIFEST or file.size_bytes < 0 or not hexadecimal:
            raise _corrupt(f"the artifact's manifest has a bad entry for \"{file.path}\"", file.path)
        seen.add(file.path)


def choose_files(manifest: artifact_pb2.Manifest, wanted: Wanted) -> list[artifact_pb2.ArtifactFile]:
    """The files a pull wants, in manifest order."""
    _check_entries(manifest)
    files = list(manifest.files)
    if wanted.format:
        folders = {output.format: output.path for output in manifest.outputs}
        if wanted.format not in folders:
            raise errors.make_error("INVALID_ARGUMENT", f"format: the artifact holds {', '.join(folders) or 'no outputs'}"
                                                        f", got \"{wanted.format}\"")
        folder = folders[wanted.format]
        others = [path for path in folders.values() if path]
        files = [file for file in files if (_is_below(file.path, folder) if folder else
                                            not any(_is_below(file.path, other) for other in others))]
    if wanted.path:
        files = [file for file in files if _is_below(file.path, wanted.path)]
        if not files:
            raise errors.make_error("INVALID_ARGUMENT", f"path: the artifact has no file or folder \"{wanted.path}\"")
    return files


def _occupied(path: pathlib.Path, what: str) -> errors.QuantryError:
    return errors.make_error("FAILED_PRECONDITION", f"\"{path}\" is already there and is {what}: nothing was overwritten",
                             hint="pull into another folder, or with force=True (quantry.step --pull-force, Airflow's pull_force) "
                                  "to replace it")


def _former_files(manifest: pathlib.Path) -> list[artifact_pb2.ArtifactFile]:
    """What lies beside a manifest; nothing when it is of something else."""
    try:
        listed = parse_manifest(manifest.read_bytes())
        _check_entries(listed)
    except (errors.QuantryError, OSError):
        return []
    return list(listed.files)


def _make_room(folder: pathlib.Path, coming: set[str]) -> None:
    """Takes another artifact's manifest away and, of the files it lists, those still as listed that nothing replaces.

    Otherwise a pull that breaks off would leave a manifest over files of two artifacts, and one that does not old
    shards beside the new ones. It is only renamed at first, so that the next pull ends what breaks off here.
    """
    target, aside = folder / MANIFEST, folder / FORMER_MANIFEST
    former = _former_files(target) + _former_files(aside)
    with disk(target):
        if os.path.lexists(target):
            target.replace(aside)
    for file in former:
        path = folder / file.path
        if file.path not in coming and holds_exactly(path, int(file.size_bytes), file.sha256):
            with disk(path):
                path.unlink()
    with disk(aside):
        aside.unlink()


class Puller:
    def __init__(self, transport: Transport, meters: MeterFactory) -> None:
        self._transport, self._meters = transport, meters

    async def pull(self, artifact: artifact_pb2.Artifact, wanted: Wanted) -> Pulled:
        start = time.monotonic()
        data = await self._manifest(artifact)
        files = choose_files(parse_manifest(data), wanted)
        with held(wanted.folder):
            fetched = await self._fill_folder(artifact, data, files, wanted)
        total = sum(int(file.size_bytes) for file in files)
        return Pulled(LocalArtifact(wanted.folder), len(files), len(fetched), total, sum(fetched),
                      time.monotonic() - start)

    async def _fill_folder(self, artifact: artifact_pb2.Artifact, data: bytes, files: list[artifact_pb2.ArtifactFile],
                           wanted: Wanted) -> list[int]:
        """The bytes of each file it had to fetch."""
        run = self._transport.run
        target = wanted.folder / MANIFEST
        ours = await run(holds_exactly, target, len(data), artifact.manifest_sha256)
        if not ours and os.path.lexists(target) and not wanted.force:
            raise _occupied(target, "another artifact's manifest")
        if not ours and (os.path.lexists(target) or os.path.lexists(wanted.folder / FORMER_MANIFEST)):
            await run(_make_room, wanted.folder, {file.path for file in files})
        total = sum(int(file.size_bytes) for file in files)
        fetched: list[int] = []
        with self._meters("downloading", total) as meter:
            for file in files:
                if await self._pull_file(artifact.name, file, wanted, ours, meter):
                    fetched.append(int(file.size_bytes))
        if not ours:
            await run(_write_whole, target, artifact.manifest_sha256, data)
        for file in files:
            await run(remove_old_parts, wanted.folder / file.path)
        return fetched

    async def _manifest(self, artifact: artifact_pb2.Artifact) -> bytes:
        backoff, tries, wrong = Backoff(), 0, 0
        while wrong < 2:
            try:
                data = await self._manifest_once(artifact.name)
            except errors.QuantryError as error:
                tries += 1
                if tries >= MAX_TRIES or not may_go_on(error):
                    raise
                await self._transport.sleep(backoff.next())
                await self._transport.refresh()
                continue
            if hashlib.sha256(data).hexdigest() == artifact.manifest_sha256:
                return data
            wrong += 1
        raise _corrupt(f"{MANIFEST} of {artifact.name} has another sha256 than the server's record "
                       f"{artifact.manifest_sha256}", MANIFEST)

    async def _manifest_once(self, artifact: str) -> bytes:
        request = service_pb2.ReadArtifactRequest(name=artifact, path=MANIFEST)
        data = b""
        stream = self._transport.stream("artifacts", "ReadArtifact", request, 60.0)
        try:
            async for chunk in stream:
                data += chunk.data
                if len(data) > MAX_MANIFEST_BYTES:
                    break
        finally:
            await stream.aclose()
        return data

    async def _pull_file(self, artifact: str, file: artifact_pb2.ArtifactFile, wanted: Wanted, ours: bool,
                         meter: Meter) -> bool:
        """Whether it had to be fetched."""
        target = wanted.folder / check_name(file.path)
        if os.path.lexists(target):
            if await self._transport.run(holds_exactly, target, int(file.size_bytes), file.sha256):
                meter.add(int(file.size_bytes))
                return False
            if not ours and not wanted.force:
                raise _occupied(target, "not the artifact's file")
            log.warning("\"%s\" differs from the manifest; fetching it again", target)
        await self._download(artifact, file, target, meter)
        return True

    async def _download(self, artifact: str, file: artifact_pb2.ArtifactFile, target: pathlib.Path,
                        meter: Meter) -> None:
        run = self._transport.run
        part = await run(PartFile, target, file.sha256)
        try:
            meter.add(min(part.size, int(file.size_bytes)))
            for last in (False, True):
                problem = await self._fill(artifact, file, part, meter)
                if problem is None:
                    await run(part.commit)
                    return
                if last:
                    await run(part.discard)
                    raise problem
                log.warning("%s; fetching it once more", problem.message)
                meter.add(-min(part.size, int(file.size_bytes)))
                await run(part.reset)
        finally:
            part.close()

    async def _fill(self, artifact: str, file: artifact_pb2.ArtifactFile, part: PartFile,
                    meter: Meter) -> Optional[errors.QuantryError]:
        """Fills `part` up to the file's size, over broken connections; returns why its bytes are wrong, if they are."""
        if part.size > file.size_bytes:
            return _corrupt(f"\"{file.path}\" has too many bytes", file.path)
        backoff, tries = Backoff(), 0
        while part.size < file.size_bytes:
            before, failure = part.size, None
            try:
                await self._fill_once(artifact, file, part, meter)
            except errors.CorruptData as error:
                return error
            except errors.QuantryError as error:
                if not may_go_on(error):
                    raise
                failure = error
            tries = 1 if part.size > before else tries + 1
            if part.size >= file.size_bytes:
                break
            if tries >= MAX_TRIES:
                if failure is not None:
                    raise failure
                return _corrupt(f"\"{file.path}\" ends after {part.size} bytes: wanted {file.size_bytes}", file.path)
            await self._transport.sleep(backoff.next())
            await self._transport.refresh()
        if part.matches(int(file.size_bytes)):
            return None
        return _corrupt(f"\"{file.path}\" arrived with another sha256 than the manifest's {file.sha256}", file.path)

    async def _fill_once(self, artifact: str, file: artifact_pb2.ArtifactFile, part: PartFile, meter: Meter) -> None:
        request = service_pb2.ReadArtifactRequest(name=artifact, path=file.path, read_offset=part.size)
        stream = self._transport.stream("artifacts", "ReadArtifact", request,
                                        stream_deadline(int(file.size_bytes) - part.size))
        try:
            async for chunk in stream:
                _check_chunk(chunk, file, part.size)
                await self._transport.run(part.append, chunk.data)
                meter.add(len(chunk.data))
        finally:
            await stream.aclose()


def _check_chunk(chunk: Any, file: artifact_pb2.ArtifactFile, at: int) -> None:
    if chunk.offset != at or crc32c(chunk.data) != chunk.crc32c or len(chunk.data) > file.size_bytes - at:
        raise _corrupt(f"bytes of \"{file.path}\" from offset {at} arrived damaged", file.path)


def _write_whole(target: pathlib.Path, sha256: str, data: bytes) -> None:
    part = PartFile(target, sha256)
    try:
        part.reset()
        part.append(data)
        part.commit()
    finally:
        part.close()
