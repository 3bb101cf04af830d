"""A bucket to try out: moto's S3, a process that speaks the protocol over HTTP."""

import subprocess
import sys

import boto3

from tests.integration.harness import answers, free_port

BUCKET = "sweeps"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hush-hush"}


class ObjectStore:
    """moto's S3, a process that speaks the protocol over HTTP; `uri` is a bucket's."""

    def __init__(self, folder):
        self.address = f"127.0.0.1:{(port := free_port())}"
        self.uri = f"s3://{BUCKET}/runs?scheme=http&endpoint_override={self.address}"
        self.env = {**KEYS, "MLFLOW_S3_ENDPOINT_URL": f"http://{self.address}"}
        self.process = serve("moto.server", "-H", "127.0.0.1", "-p", str(port), folder=folder)
        answers(f"http://{self.address}/moto-api/", folder / "moto.server.log")
        self.client().create_bucket(Bucket=BUCKET)

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.address}",
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def keys(self, under=""):
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=under)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


def serve(module, *options, folder):
    with (folder / f"{module}.log").open("w") as out:
        return subprocess.Popen([sys.executable, "-m", module, *options], stdout=out, stderr=out)
