"""Uploads and pulls against a server that tears, damages and lies, and a disk that is full."""
import asyncio
import errno
import fcntl
import hashlib
import json
import os
import resource

import grpc
import pytest

import quantry
from fake_server import ARTIFACT, Fake, abort, serving
from quantry import _part_file, _pull, _retry
from quantry._files import LocalFile
from quantry._progress import Meter
from quantry._options import Options
from quantry._transport import AsyncTransport, BlockingTransport, drive
from quantry._upload import Uploader

BIG = bytes(range(256)) * 40  # 10240 bytes, 11 chunks


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(_retry, "FIRST_WAIT", 0.01)


@pytest.fixture
def fake():
    fake = Fake()
    fake.add_file("quantry/model.bin", BIG)
    fake.add_file("config.json", b"{}")
    fake.manifest.outputs.add(format="quantry", path="quantry")
    fake.manifest.outputs.add(format="dense", path="")
    return fake


def pull(fake, folder, kind="blocking", **options):
    with serving(fake) as target:
        if kind == "blocking":
            with quantry.Client(target) as client:
                return client.pull("fake", folder, **options)

        async def run():
            async with quantry.AsyncClient(target) as client:
                return await client.pull("fake", folder, **options)

        return asyncio.run(run())


def once(condition, change):
    """Damages one chunk, once."""
    done = []

    def damage(path, offset, data):
        if not done and condition(path, offset):
            done.append(path)
            return change(data)
        return data

    return damage


KINDS = pytest.mark.parametrize("kind", ["blocking", "asyncio"])


@KINDS
def test_pull_and_pull_again(fake, tmp_path, kind):
    seen = []
    first = pull(fake, tmp_path / "out", kind, progress=lambda what, done, total: seen.append((what, done, total)))
    assert (first.files, first.downloaded, first.bytes) == (2, 2, len(BIG) + 2)
    assert seen[-1] == ("downloading", len(BIG) + 2, len(BIG) + 2)
    assert (tmp_path / "out/quantry/model.bin").read_bytes() == BIG
    assert first.artifact.verify() == 2
    again = pull(fake, tmp_path / "out", kind)
    assert (again.files, again.downloaded) == (2, 0)
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == ["config.json", "manifest.json",
                                                                                   "model.bin"]


@KINDS
def test_a_torn_stream_goes_on_where_it_stopped(fake, tmp_path, kind):
    fake.damage = once(lambda path, offset: offset == 4000, lambda data: None)
    pull(fake, tmp_path, kind)
    assert [at for path, at in fake.reads if path.endswith("model.bin")] == [0, 4000]
    assert (tmp_path / "quantry/model.bin").read_bytes() == BIG


@KINDS
@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL])
def test_a_torn_stream_may_show_as_another_code(fake, tmp_path, kind, code):
    fake.tears_with = code
    fake.damage = once(lambda path, offset: offset == 4000, lambda data: None)
    pull(fake, tmp_path, kind)
    assert [at for path, at in fake.reads if path.endswith("model.bin")] == [0, 4000]


@KINDS
def test_the_manifest_is_waited_for(fake, tmp_path, kind):
    left = [None] * 5

    def damage(path, offset, data):
        return left.pop() if path == "manifest.json" and left else data

    fake.damage = damage
    assert pull(fake, tmp_path, kind).files == 2


def test_a_bar_shows_the_bytes(fake, tmp_path, capsys):
    pull(fake, tmp_path, progress=True)
    assert "downloading: 100%" in capsys.readouterr().err


def test_a_part_file_of_an_earlier_try_is_used(fake, tmp_path):
    digest = hashlib.sha256(BIG).hexdigest()
    (tmp_path / "quantry").mkdir()
    (tmp_path / f"quantry/model.bin.{digest[:16]}.part").write_bytes(BIG[:5000])
    pull(fake, tmp_path)
    assert ("quantry/model.bin", 5000) in fake.reads and ("quantry/model.bin", 0) not in fake.reads
    assert not list(tmp_path.rglob("*.part"))


def test_parts_of_other_contents_go(fake, tmp_path):
    (tmp_path / "quantry").mkdir()
    (tmp_path / f"quantry/model.bin.{'0' * 16}.part").write_bytes(BIG[:5000])
    (tmp_path / "quantry/model.bin.notes.part").write_bytes(b"the user's own")
    pull(fake, tmp_path)
    assert [path.name for path in tmp_path.rglob("*.part")] == ["model.bin.notes.part"]


def test_a_bad_part_file_is_fetched_anew(fake, tmp_path):
    digest = hashlib.sha256(BIG).hexdigest()
    (tmp_path / "quantry").mkdir()
    (tmp_path / f"quantry/model.bin.{digest[:16]}.part").write_bytes(b"\0" * 5000)
    pull(fake, tmp_path)
    assert (tmp_path / "quantry/model.bin").read_bytes() == BIG


@KINDS
def test_damaged_once_is_fetched_once_more(fake, tmp_path, kind):
    fake.damage = once(lambda path, offset: offset == 2000, lambda data: b"\0" * len(data))
    pull(fake, tmp_path, kind)
    assert (tmp_path / "quantry/model.bin").read_bytes() == BIG


@KINDS
def test_a_tampered_artifact(fake, tmp_path, kind):
    """The stored bytes differ from the manifest: nothing of the file is left, and the manifest is not written."""
    fake.files["quantry/model.bin"] = BIG[:100] + b"X" + BIG[101:]
    with pytest.raises(quantry.CorruptData, match="another sha256 than the manifest's") as caught:
        pull(fake, tmp_path, kind)
    assert caught.value.reason == "ARTIFACT_CORRUPT" and "tell the operator" in caught.value.hint
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_tampered_manifest(fake, tmp_path, monkeypatch):
    fake.damage = lambda path, offset, data: data.replace(b"rtn", b"awq") if path == "manifest.json" else data
    with pytest.raises(quantry.CorruptData, match="another sha256 than the server's record"):
        pull(fake, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a//b", "a\\b", "a\nb", "", ".", "x" * 300])
def test_names_that_leave_the_folder(tmp_path, name):
    fake = Fake()
    fake.add_file(name, b"evil")
    with pytest.raises(quantry.CorruptData, match="stays below the target folder"):
        pull(fake, tmp_path / "out")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "out").exists()


def test_bad_manifest_entries(tmp_path):
    for change in (lambda f: f.manifest.files.add().CopyFrom(f.manifest.files[0]),
                   lambda f: setattr(f.manifest.files[0], "sha256", "AB" * 32),
                   lambda f: setattr(f.manifest.files[0], "size_bytes", -1),
                   lambda f: setattr(f.manifest.files[0], "path", "manifest.json")):
        fake = Fake()
        fake.add_file("a", b"1")
        change(fake)
        with pytest.raises(quantry.CorruptData, match="bad entry"):
            pull(fake, tmp_path / "out")


@pytest.mark.parametrize("options, files", [
    ({"format": "quantry"}, {"quantry/model.bin"}), ({"format": "dense"}, {"config.json"}),
    ({"path": "quantry"}, {"quantry/model.bin"}), ({"path": "config.json"}, {"config.json"})])
def test_only_some_files(fake, tmp_path, options, files):
    pulled = pull(fake, tmp_path, **options)
    assert pulled.files == 1
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == files | {"manifest.json"}


@pytest.mark.parametrize("options, message", [({"format": "gptq"}, "holds quantry, dense, got \"gptq\""),
                                              ({"path": "nothing"}, "no file or folder \"nothing\"")])
def test_files_that_are_not_in_it(fake, tmp_path, options, message):
    with pytest.raises(quantry.InvalidRequest, match=message):
        pull(fake, tmp_path, **options)


def test_what_is_not_ours_is_kept(fake, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(quantry.Conflict, match="nothing was overwritten"):
        pull(fake, tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"
    pull(fake, tmp_path, force=True)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_folder_of_another_artifact(fake, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(quantry.Conflict, match="another artifact's manifest"):
        pull(fake, tmp_path)


def test_another_artifact_by_force(fake, tmp_path):
    """The old one's manifest goes first, then what it alone has; what was changed or is the user's stays."""
    for name in ("old/shard", "old/edited"):
        fake.add_file(name, b"old")
    pull(fake, tmp_path)
    (tmp_path / "old/edited").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    other = Fake()
    other.add_file("config.json", b"{ }")
    other.add_file("quantry/model.bin", BIG + b"!")
    other.files["quantry/model.bin"] = BIG + b"?"
    with pytest.raises(quantry.CorruptData):
        pull(other, tmp_path, force=True)
    assert not (tmp_path / "manifest.json").exists()
    other.files["quantry/model.bin"] = BIG + b"!"
    assert pull(other, tmp_path, force=True).artifact.verify() == 2
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"config.json", "quantry/model.bin", "manifest.json", "old/edited", "notes.txt"}


def test_room_that_was_made_by_half(fake, tmp_path, monkeypatch):
    """Ctrl-C while old files are compared: the next pull takes them away, asked to or not."""
    for name in ("old/shard", "old/edited"):
        fake.add_file(name, b"old")
    pull(fake, tmp_path)
    other = Fake()
    other.add_file("config.json", b"{}")
    compared = _pull.holds_exactly

    def interrupted(path, size, sha256):
        if path.name == "shard":
            raise KeyboardInterrupt
        return compared(path, size, sha256)

    monkeypatch.setattr(_pull, "holds_exactly", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pull(other, tmp_path, force=True)
    monkeypatch.undo()
    assert not (tmp_path / "manifest.json").exists() and (tmp_path / "old/shard").exists()
    (tmp_path / "old/edited").write_text("mine")
    pull(other, tmp_path)
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"config.json", "manifest.json", "old/edited"}


def test_two_pulls_into_one_folder(tmp_path):
    target, digest = tmp_path / "weights", hashlib.sha256(BIG).hexdigest()
    first, second, third = (_part_file.PartFile(target, digest) for _ in range(3))
    for part in (first, second, third):
        part.append(BIG)
    first.commit()
    second.commit()
    assert target.read_bytes() == BIG and list(tmp_path.iterdir()) == [target]
    target.write_bytes(b"something else")
    with pytest.raises(quantry.LocalDiskError, match="cannot write"):
        third.commit()


@KINDS
def test_another_pull_holds_the_folder(fake, tmp_path, kind):
    descriptor = os.open(tmp_path, os.O_RDONLY)  # as `quantry pull` holds it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(quantry.Conflict, match="another pull into .* is at work"):
            pull(fake, tmp_path, kind)
        assert not list(tmp_path.iterdir())
    finally:
        os.close(descriptor)
    pull(fake, tmp_path, kind)
    assert pull(fake, tmp_path, kind).downloaded == 0


def test_a_manifest_that_points_elsewhere(tmp_path):
    """A folder of somebody else's making."""
    for manifest in ({"files": [{"path": "../secret", "sha256": "0" * 64}]},
                     {"files": [], "outputs": [{"format": "quantry", "path": "/etc"}]}):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        artifact = quantry.LocalArtifact(tmp_path)
        with pytest.raises(quantry.CorruptData, match="stays below the target folder"):
            artifact.verify()
            artifact.output("quantry")


def test_verify_finds_what_was_changed_later(fake, tmp_path):
    artifact = pull(fake, tmp_path).artifact
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(quantry.CorruptData, match="config.json.*wanted sha256") as caught:
        artifact.verify()
    assert "pull again" in caught.value.hint
    assert pull(fake, tmp_path).downloaded == 1
    assert artifact.verify() == 2
    (tmp_path / "config.json").unlink()
    with pytest.raises(quantry.CorruptData, match="no such file"):
        quantry.LocalArtifact(tmp_path).verify()
    with pytest.raises(quantry.NotFound, match="pulled artifact"):
        quantry.LocalArtifact(tmp_path / "quantry")


@KINDS
def test_the_disk_is_full(fake, tmp_path, kind):
    """The kernel refuses to write beyond 4000 bytes; afterwards the pull goes on from there."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        with pytest.raises(quantry.LocalDiskError, match="cannot write") as caught:
            pull(fake, tmp_path, kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and isinstance(caught.value, OSError)
    assert caught.value.reason == "DISK_FULL" and "goes on where it stopped" in caught.value.hint
    assert not (tmp_path / "quantry/model.bin").exists() and not (tmp_path / "manifest.json").exists()
    fake.reads.clear()
    pull(fake, tmp_path, kind)
    assert ("quantry/model.bin", 4000) in fake.reads
    assert (tmp_path / "quantry/model.bin").read_bytes() == BIG


def test_no_space_left(fake, tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_part_file.os, "fsync", fsync)
    with pytest.raises(quantry.LocalDiskError, match="No space left on device") as caught:
        pull(fake, tmp_path)
    assert caught.value.code == "RESOURCE_EXHAUSTED" and caught.value.errno == errno.ENOSPC


def test_a_target_that_cannot_be_a_folder(fake, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(quantry.LocalDiskError, match="cannot write"):
        pull(fake, tmp_path / "file" / "out")


def test_a_job_without_an_artifact(fake, tmp_path):
    from quantry.v1 import job_pb2
    fake.GetQuantizationJob = lambda request, context: job_pb2.QuantizationJob(name=request.name, state=2)
    with pytest.raises(quantry.Conflict, match="has no artifact: its state is running"):
        pull(fake, tmp_path)


def test_by_the_artifact_s_own_name(fake, tmp_path):
    with serving(fake) as target, quantry.Client(target) as client:
        assert client.pull(ARTIFACT, tmp_path).files == 2
        assert client.pull(ARTIFACT.rsplit("/", 1)[1], tmp_path).downloaded == 0


@KINDS
@pytest.mark.parametrize("breaks, sent", [([], 3), ([grpc.StatusCode.UNAVAILABLE], 3),
                                          ([grpc.StatusCode.UNAVAILABLE] * 2, 3),
                                          ([grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL], 3)])
def test_a_torn_upload_goes_on_where_it_stopped(tmp_path, kind, breaks, sent):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom((1 << 20) + 77))  # three chunks
    fake, meters = Fake(), {}

    def meter(what, total):
        return meters.setdefault(what, Meter(what, total))

    fake.breaks = list(breaks)
    with serving(fake) as target:
        if kind == "blocking":
            transport = BlockingTransport(Options(target))
            upload = Uploader(transport, "tenants/default", meter)
            blobs = drive(upload.upload([LocalFile("weights", path, path.stat().st_size)]))
            drive(transport.close())
        else:
            async def run():
                transport = AsyncTransport(Options(target))
                upload = Uploader(transport, "tenants/default", meter)
                done = await upload.upload([LocalFile("weights", path, path.stat().st_size)])
                await transport.close()
                return done

            blobs = asyncio.run(run())
    assert len(fake.uploads) == sent and b"".join(fake.uploads) == path.read_bytes()
    assert blobs[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and meters["uploading"].done == blobs[0].size_bytes


@KINDS
def test_what_progress_raises_while_a_file_is_sent(tmp_path, kind):
    path = tmp_path / "weights"
    path.write_bytes(os.urandom((1 << 20) + 77))
    file = LocalFile("weights", path, path.stat().st_size)

    class Stop(Meter):
        def add(self, count):
            if self.what == "uploading":
                raise RuntimeError("user stopped it")

    with serving(Fake()) as target, pytest.raises(RuntimeError, match="user stopped it"):
        if kind == "blocking":
            drive(Uploader(BlockingTransport(Options(target)), "tenants/default", Stop).upload([file]))
        else:
            asyncio.run(Uploader(AsyncTransport(Options(target)), "tenants/default", Stop).upload([file]))


@KINDS
def test_a_file_that_changes_while_it_is_sent(tmp_path, kind, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 2000)
    from quantry import _upload
    monkeypatch.setattr(_upload, "hash_file", lambda file: path.write_bytes(b"x" * 1000) and "0" * 64)
    file = LocalFile("weights", path, 2000)
    with serving(Fake()) as target, pytest.raises(quantry.CorruptData, match="changed while it was uploaded"):
        if kind == "blocking":
            drive(Uploader(BlockingTransport(Options(target)), "tenants/default", Meter).upload([file]))
        else:
            asyncio.run(Uploader(AsyncTransport(Options(target)), "tenants/default", Meter).upload([file]))


def test_a_search_for_blobs_that_is_one_too_many_is_made_again(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("once upon a time")
    fake, asked = Fake(), []
    find = fake.FindMissingBlobs

    def busy(request, context):
        asked.append(request)
        if len(asked) == 1:
            abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "8 in work", "RESOURCE_LIMIT")
        return find(request, context)

    fake.FindMissingBlobs = busy
    with serving(fake) as target:
        transport = BlockingTransport(Options(target))
        drive(Uploader(transport, "tenants/default", Meter).upload([LocalFile("train.txt", path, path.stat().st_size)]))
        drive(transport.close())
    assert len(asked) == 2 and fake.uploads == [b"once upon a time"]


def test_a_blob_that_another_call_holds_is_waited_for_by_one_count(tmp_path):
    """A server that is busy with both, the upload and the search after it: 60 tries in all, not 20 of each of them."""
    path = tmp_path / "train.txt"
    path.write_text("once upon a time")
    fake, asked, sent = Fake(), [], []
    find = fake.FindMissingBlobs

    def busy(calls):
        def answer(request, context):
            calls.append(request)
            if calls is asked and len(asked) == 1:
                return find(request, context)
            return abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "held by another call", "RESOURCE_LIMIT")
        return answer

    async def at_once(seconds):
        pass

    fake.FindMissingBlobs, fake.UploadBlob = busy(asked), busy(sent)
    with serving(fake) as target:
        transport = BlockingTransport(Options(target))
        transport.sleep = at_once
        with pytest.raises(quantry.QuotaExceeded, match="held by another call"):
            drive(Uploader(transport, "tenants/default", Meter).upload([LocalFile("train.txt", path, path.stat().st_size)]))
        drive(transport.close())
    assert len(sent) == len(asked) == _retry.MAX_HELD_TRIES
