"""An S3 server on loopback that checks keys (moto's, in a process of its own), and a client that sees what is in it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import botocore.session

BUCKET = "training-data"
READY_SECONDS = 60.0
_SERVER = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"
_ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


class S3:
    """`keys` open `BUCKET` and everything else. Close it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        self._reader: threading.Thread | None = None
        try:
            port = 0
            for line in self._process.stderr:  # it says which port it got
                if "Running on http://127.0.0.1:" in line:
                    port = int(line.rpartition(":")[2].split()[0])
                    break
            assert port, "the S3 server did not come up"
            self._reader = threading.Thread(target=self._process.stderr.read)  # a full pipe would stop it
            self._reader.start()
            self.url = f"http://127.0.0.1:{port}"
            self.keys = self._make_keys(port)
            self._client = self._connect("s3", self.keys)
            self._client.create_bucket(Bucket=BUCKET)
        except BaseException:
            self.close()
            raise

    def put(self, key: str, data: bytes) -> None:
        """Have an object."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def all(self) -> dict[str, bytes]:
        """Every object."""
        found = self._client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return {one["Key"]: self._client.get_object(Bucket=BUCKET, Key=one["Key"])["Body"].read() for one in found}

    def stop(self) -> None:
        """Answer nobody any more, as a server does whose machine hangs."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stop`."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it. Idempotent."""
        if (client := getattr(self, "_client", None)) is not None:
            client.close()
        assert self._process.stderr is not None
        if self._process.stderr.closed:
            return
        self._process.kill()
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        self._process.stderr.close()

    def _make_keys(self, port: int) -> dict[str, str]:
        """A user who may do all; from then on nobody else may do anything."""
        iam = self._connect("iam", {"AWS_ACCESS_KEY_ID": "first", "AWS_SECRET_ACCESS_KEY": "first"})
        iam.create_user(UserName="somebody")
        iam.put_user_policy(UserName="somebody", PolicyName="all", PolicyDocument=json.dumps(_ALL))
        made = iam.create_access_key(UserName="somebody")["AccessKey"]
        iam.close()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
        connection.request("POST", "/moto-api/reset-auth", body=b"0")
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        answer.read()
        connection.close()
        return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}

    def _connect(self, service: str, keys: dict[str, str]) -> Any:
        session = botocore.session.get_session()
        if "AWS_CA_BUNDLE" in os.environ:
            session.set_config_variable("ca_bundle", None)
        return session.create_client(
            service, endpoint_url=self.url, region_name="us-east-1", aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
