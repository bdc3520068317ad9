"""Object stores of a test's own: moto (in memory, quick) and SeaweedFS (a real one)."""
import contextlib
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import urllib.parse
import urllib.request

import pytest

from service import wait_for

# READER: SeaweedFS lets it read and list, no more.
READER = "reader"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


def program(name):
    path = pathlib.Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"no {path}: run scripts/bootstrap")
    return path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def client(address, **credentials):
    """boto3's, with the credentials above."""
    import boto3  # takes its time, and not every test needs it
    from botocore.config import Config
    return boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1", config=Config(retries={"max_attempts": 1}),
                        **{"aws_access_key_id": "test", "aws_secret_access_key": "test", **credentials})


@contextlib.contextmanager
def running(command, log):
    with open(log, "wb") as out:
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def moto_process(folder):
    """Its address and its process; it has one bucket, "bucket"."""
    log = folder / "moto.log"
    with running([program("moto_server"), "-H", "127.0.0.1", "-p", "0"], log) as process:
        found = wait_for(lambda: re.search(r"Running on http://(127\.0\.0\.1:\d+)", log.read_text()), 60, "moto")
        urllib.request.urlopen(urllib.request.Request(f"http://{found.group(1)}/bucket", method="PUT"), timeout=60)
        yield found.group(1), process


@contextlib.contextmanager
def moto(folder):
    """Its address."""
    with moto_process(folder) as (address, _):
        yield address


@contextlib.contextmanager
def seaweedfs(folder):
    """The same of SeaweedFS: master, volume, filer and S3 gateway in one process."""
    ports = [free_port() for _ in range(4)]
    address = f"127.0.0.1:{ports[3]}"
    data = folder / "seaweedfs"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [
        {"name": key, "actions": actions, "credentials": [{"accessKey": key, "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}]}
        for key, actions in ((CREDENTIALS["AWS_ACCESS_KEY_ID"], ["Admin", "Read", "Write", "List", "Tagging"]),
                             (READER, ["Read", "List"]))]}))
    command = [program("weed"), "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
               f"-master.port={ports[0]}", f"-volume.port={ports[1]}", "-filer", f"-filer.port={ports[2]}", "-s3",
               f"-s3.port={ports[3]}", f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=20"]

    def answers():
        try:
            return client(address).create_bucket(Bucket="bucket")
        except Exception:  # several kinds while it starts
            return None

    with running(command, folder / "seaweedfs.log"):
        wait_for(answers, 60, "SeaweedFS")
        yield address


def artifact_root(address, prefix="quantry"):
    return f"s3://bucket/{prefix}?scheme=http&region=us-east-1&endpoint_override={address}"


def _object(folder_uri, name):
    """("s3://bucket/a?region=x", "b") as boto3 names it."""
    parts = urllib.parse.urlsplit(folder_uri)
    return {"Bucket": parts.netloc, "Key": f"{parts.path[1:]}/{name}"}


def read_object(found, folder_uri, name):
    """Its bytes, by a `client`; None: there is no such object."""
    try:
        return found.get_object(**_object(folder_uri, name))["Body"].read()
    except found.exceptions.NoSuchKey:
        return None


def write_object(found, folder_uri, name, data):
    found.put_object(**_object(folder_uri, name), Body=data)


def keys(address):
    """Of moto, which looks at no signature."""
    with urllib.request.urlopen(f"http://{address}/bucket?list-type=2", timeout=10) as answer:
        return re.findall(r"<Key>([^<]+)</Key>", answer.read().decode())
