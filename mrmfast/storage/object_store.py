"""One object store: a URL and a path in, bytes or one line of explanation out. One request per call, no retries.

The client is obstore (Rust); ``python -m benchmarks.object_store`` compares it with s3fs. Credentials come from the
standard chain of the store's own library and are never read, kept or logged here.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import obstore
from obstore import exceptions
from obstore.store import from_url

from mrmfast.errors import ClosedError, MissingError, UserError
from mrmfast.storage import endpoints, retry

if TYPE_CHECKING:
    from obstore import OffsetRange, SuffixRange

    ByteRange = tuple[int, int] | OffsetRange | SuffixRange  # (start, stop), {"offset": start}, {"suffix": length}

CHUNK = 1 << 20  # bytes handed over at once: with 16 requests on two cores, smaller ones cost a tenth of the speed
FORBIDDEN = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
LONGEST = timedelta(days=1)  # a request may take as long as bytes come; `stall` ends one without bytes


class ObjectEntry(NamedTuple):
    """An object of a listing or HEAD request.

    Attributes
    ----------
    name : str
        The part of the key after the last slash.
    size : int
        Bytes.
    mark : str
        Changes with the content: the ETag, or the time of the last change where the store has none.
    """

    name: str
    size: int
    mark: str

    @classmethod
    def of(cls, meta: Any) -> ObjectEntry:
        """Take what is needed from obstore's description."""
        return cls(meta["path"].rsplit("/", 1)[-1], int(meta["size"]), meta["e_tag"] or str(meta["last_modified"]))


class ObjectStore:
    """Objects below a URL.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``https://host/prefix`` or another scheme of obstore.
    options : dict
        obstore's settings of that store (``endpoint``, ``region``, ...); ``anon``: read without credentials.
    stall : float
        Seconds without a byte after which a request counts as failed.

    Raises
    ------
    UserError
        A scheme that obstore doesn't know, or no credentials.
    """

    def __init__(self, url: str, options: dict[str, Any], stall: float) -> None:
        self.url = url
        scheme = url.split("://")[0]
        config: Any = dict(options)
        anonymous = config.pop("anon", False)
        client = {
            "timeout": LONGEST,
            "read_timeout": timedelta(seconds=stall),
            "connect_timeout": timedelta(seconds=min(stall, 5.0)),
            "allow_http": True,  # an explicit http:// in a URL or endpoint is intended
        }
        arguments: dict[str, Any] = {"client_options": client, "retry_config": {"max_retries": 0}}
        if scheme in ("s3", "gs") and anonymous:
            config["skip_signature"] = True
        if scheme == "s3":
            chain, defaults = _aws(url, anonymous)
            arguments |= chain
            config = {**defaults, **config}
        for name in ("endpoint", "aws_endpoint", "endpoint_url"):
            if name in config:
                endpoints.require_endpoint(str(config[name]), f"{url}: {name}")
        try:
            self._store: Any = from_url(url, config=config or None, **arguments)
        except (exceptions.BaseError, ValueError) as error:
            raise UserError(
                f"{url}: {str(error).splitlines()[0]}; data.path is a folder, or a URL such as s3://BUCKET/PREFIX"
            ) from error

    def read(self, path: str, part: ByteRange | None = None) -> bytes:
        """Return an object, or a part of it."""
        answer = obstore.get(self._store, path, options=None if part is None else {"range": part})
        data, (start, stop) = answer.bytes(), answer.range
        if len(data) != stop - start:
            raise retry.MismatchError(f"{self.url}/{path}: {len(data)} bytes came instead of {stop - start}")
        return data.to_bytes()

    def stream(self, path: str, start: int, stop: int, size: int) -> Generator[bytes]:
        """Yield the bytes from `start` up to `stop` of an object of `size` bytes, in one request.

        Raises
        ------
        MismatchError
            The object has another size, or fewer or more bytes came: clients take a truncated answer for success.
        """
        whole = (start, stop) == (0, size)  # then a server without ranges does as well
        answer = obstore.get(self._store, path, options=None if whole else {"range": (start, stop)})
        if answer.meta["size"] != size or answer.range != (start, stop):
            raise retry.MismatchError(
                f"{self.url}/{path}: has {answer.meta['size']} bytes, the manifest says {size}; upload it again"
            )
        for chunk in answer.stream(min_chunk_size=CHUNK):
            start += len(chunk)
            if start > stop:
                raise retry.MismatchError(f"{self.url}/{path}: more bytes came than were asked for")
            yield chunk
        if start != stop:
            raise retry.MismatchError(f"{self.url}/{path}: {stop - start} bytes of a range did not come")

    def names(self, path: str) -> list[str]:
        """Return the names directly below `path`."""
        listing = obstore.list_with_delimiter(self._store, path)
        paths = [*listing["common_prefixes"], *(entry["path"] for entry in listing["objects"])]
        return [child.rstrip("/").rsplit("/", 1)[-1] for child in paths]

    def entry(self, path: str) -> ObjectEntry:
        """Describe an object."""
        return ObjectEntry.of(obstore.head(self._store, path))

    def entries(self, path: str) -> list[ObjectEntry]:
        """Describe the objects directly below `path`."""
        return [ObjectEntry.of(meta) for meta in obstore.list_with_delimiter(self._store, path or None)["objects"]]

    def put(self, path: str, source: Path) -> None:
        """Upload a local file; in parts, where it is large."""
        obstore.put(self._store, path, source)

    def close(self) -> None:
        """Release the connections."""
        self._store = None


def _aws(url: str, anonymous: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ask botocore for the standard chain (environment, profile, SSO, role): obstore's own knows no profiles."""
    import boto3
    import botocore.exceptions
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session()
        settings = {"region": session.region_name or "us-east-1"}
        endpoint = endpoints.aws_endpoint(session)
        if endpoint is not None:
            settings["endpoint"] = endpoint
        if anonymous:
            return {}, settings
        if session.get_credentials() is None:
            raise UserError(_no_credentials(url))
        return {"credential_provider": Boto3CredentialProvider(session)}, settings
    except botocore.exceptions.BotoCoreError as error:
        raise UserError(f"{url}: {error}; check AWS_PROFILE and the AWS configuration files") from error


def _no_credentials(where: str) -> str:
    return (
        f"{where}: no credentials for this bucket; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
        "(or AWS_PROFILE, or a role), or make the bucket public and set data.anonymous=true"
    )


def is_panic(error: BaseException) -> bool:
    """Tell whether the client's Rust code gave up: its exception is no Exception and cannot be imported."""
    return type(error).__name__ == "PanicException"


def explain(error: BaseException, where: str) -> BaseException:
    """Turn an exception of the client into one line with a remedy; any other exception is returned unchanged.

    The client's own message is not shown: it quotes the server's answer, and S3 puts key ids and signed strings in it.
    """
    if isinstance(error, (UserError, ClosedError)):
        return error
    if isinstance(error, retry.MismatchError):
        return UserError(f"{error}, {retry.MISMATCHES} times")
    if isinstance(error, FileNotFoundError):
        return MissingError(f"{where}: not there; upload the dataset, or fix data.path")
    if is_panic(error):
        return UserError(
            f"{where}: the object store's client cannot use this address or its settings ({str(error)[:100]}); check "
            "the URL, AWS_ENDPOINT_URL, AWS_REGION and the proxy variables"
        )
    if not isinstance(error, exceptions.BaseError):
        return error
    code, text = retry.status(error), str(error)
    if isinstance(error, exceptions.UnauthenticatedError) or "metadata.google" in text:
        return UserError(
            f"{where}: no valid credentials; "
            + (
                "set GOOGLE_APPLICATION_CREDENTIALS, or data.anonymous=true for a public bucket"
                if where.startswith("gs:")
                else "renew them, or set data.anonymous=true for a public bucket"
            )
        )
    if isinstance(error, exceptions.PermissionDeniedError) or code == 403:
        return UserError(
            f"{where}: access denied; the credentials lack s3:GetObject, s3:ListBucket or (to write) s3:PutObject "
            "on this bucket"
        )
    if code in (301, 307) or "redirect" in text:
        return UserError(f"{where}: the bucket is in another region; set AWS_REGION")
    if code is not None:
        return UserError(f"{where}: the object store answers with status {code}; ask who runs it, then start again")
    if "connect" in text.lower() or "dns" in text.lower():
        return UserError(f"{where}: cannot connect to the object store; check the network and AWS_ENDPOINT_URL")
    if "timed out" in text.lower() or "TimedOut" in text:
        return UserError(f"{where}: the object store stalls; check the network, or raise data.fetch.stall")
    return UserError(f"{where}: the object store breaks off its answers; check the network, then start again")


def secretive(error: BaseException) -> bool:
    """Tell whether an error may quote key ids and signed strings, so that no traceback may show it."""
    return isinstance(error, FORBIDDEN) or is_panic(error) or retry.status(error) in (400, 401, 403)
