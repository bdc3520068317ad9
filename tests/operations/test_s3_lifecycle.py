"""deploy/object-store: what the documentation has operators give to their buckets is taken by an S3 server."""
import json

from object_store import client, moto
from service import ROOT


def test_the_lifecycle_rule_is_taken(tmp_path):
    rules = json.loads((ROOT / "deploy/object-store/s3-lifecycle.json").read_text())
    with moto(tmp_path) as address:
        s3 = client(address)
        s3.put_bucket_lifecycle_configuration(Bucket="bucket", LifecycleConfiguration=rules)
        (rule,) = s3.get_bucket_lifecycle_configuration(Bucket="bucket")["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1} and rule["Status"] == "Enabled"
