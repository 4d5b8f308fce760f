"""Buckets of S3 and what speaks like it, as folders of containers, with Modal's names.

    CloudBucketMount("training-data", key_prefix="2026/", secret=Secret.from_name("aws"), read_only=True)

stands where a volume may stand: `volumes={"/data": CloudBucketMount(...)}`. In a cell's line: `volumes=/data:s3://training-data/2026?
secret=aws&ro`. `docs/volumes.md` says how a bucket differs from a folder.
"""

from __future__ import annotations

from cellburst_protocol.buckets import BucketSource, bucket_id, check_bucket
from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import VolumeMount

from .secret import Secret


class CloudBucketMount:
    """A bucket, or what lies below a prefix of its keys. Nothing is asked of it before a container has it.

    `bucket_endpoint_url` is for other services than Amazon's; `secret` has AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (perhaps
    AWS_SESSION_TOKEN and AWS_REGION), and is opened for the worker alone: code in the container does not get it. `requester_pays`
    needs a secret. `force_path_style` is taken and means nothing: other services than Amazon's always get paths.
    Raises RequestError (BAD_ARGUMENT).
    """

    def __init__(
        self, bucket_name: str, bucket_endpoint_url: str | None = None, key_prefix: str | None = None,
        secret: Secret | None = None, oidc_auth_role_arn: str | None = None, read_only: bool = False,
        requester_pays: bool = False, force_path_style: bool = False,
    ) -> None:  # fmt: skip
        if oidc_auth_role_arn:
            raise error(
                ErrorCode.BAD_ARGUMENT, "oidc_auth_role_arn is not there: a gateway of your own is no identity provider",
                next="secret=Secret.from_name(NAME) with the keys of a user who may use the bucket",
            )  # fmt: skip
        if key_prefix and not key_prefix.endswith("/"):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"key_prefix={key_prefix[:80]!r} does not end with '/'",
                next=f"key_prefix={key_prefix[:80] + '/'!r}",
            )  # fmt: skip
        if requester_pays and secret is None:
            raise error(
                ErrorCode.BAD_ARGUMENT, "requester_pays needs a secret: somebody must be billed",
                next="secret=Secret.from_name(NAME)",
            )  # fmt: skip
        self.bucket_name, self.read_only, self.secret = bucket_name, read_only, secret
        self._source = check_bucket(BucketSource(
            name=bucket_name, endpoint_url=bucket_endpoint_url or "", key_prefix=(key_prefix or "").rstrip("/"),
            requester_pays=requester_pays,
        ))  # fmt: skip

    def __repr__(self) -> str:
        return f"CloudBucketMount({self._source.text!r}{', read_only=True' if self.read_only else ''})"

    async def mount(self, path: str) -> VolumeMount:
        """As a container is told of it; a secret of values is sent first. Raises what `Secret.hydrate` does."""
        source = self._source
        if self.secret is not None:
            await self.secret.hydrate.aio()
            source = BucketSource(
                name=source.name, endpoint_url=source.endpoint_url, key_prefix=source.key_prefix, secret=self.secret.name,
                requester_pays=source.requester_pays,
            )  # fmt: skip
        return VolumeMount(
            volume=bucket_id(source, path),
            name=source.text,
            path=path,
            read_only=self.read_only,
            kind="bucket",
            bucket=source,
        )
