"""Makes the demo's buckets and uploads the example pictures; what is there already stays as it is.

``examples/subjects/<subject>/*.png`` becomes ``s3://pictures/<subject>/*.png``. Keys come from AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY in the environment.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import boto3
import stamina
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

BUCKETS = ("pictures", "models")
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


@stamina.retry(on=(ConnectionError, HTTPClientError), attempts=20, wait_initial=0.5, wait_max=2.0)
def make_bucket(s3: BaseClient, bucket: str) -> None:
    """Waits out the first seconds in which the node's port is not yet forwarded to the server."""
    try:
        s3.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
            raise


def upload_pictures(s3: BaseClient, subjects: Path) -> int:
    """Number of files that lie in the bucket afterwards, pictures and captions."""
    there = {item["Key"]: item["Size"] for item in s3.list_objects_v2(Bucket="pictures").get("Contents", [])}
    files = [file for file in sorted(subjects.glob("*/*")) if file.suffix in PICTURES | {".txt"}]
    for file in files:
        key = file.relative_to(subjects).as_posix()
        if there.get(key) != file.stat().st_size:
            s3.upload_file(str(file), "pictures", key)
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True, help="URL of the S3 server")
    parser.add_argument("--subjects", type=Path, required=True, help="folder with one folder for each subject")
    arguments = parser.parse_args()
    s3 = boto3.client(
        "s3",
        endpoint_url=arguments.endpoint,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, connect_timeout=3, retries={"max_attempts": 1}),
    )
    for bucket in BUCKETS:
        make_bucket(s3, bucket)
    print(f"    {upload_pictures(s3, arguments.subjects)} files in s3://pictures")


if __name__ == "__main__":
    main()
