"""The address of an S3 server that is not AWS: which setting gives it, and whether it is one.

botocore finds it, so that a profile's ``endpoint_url`` and a ``[services]`` section count as for the AWS tools. obstore
reads variables of its own beside, and its Rust code panics at an address without a scheme.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from mrmfast.errors import UserError
from mrmfast.redact import redact

# In the order in which they count; obstore reads all of them.
VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def aws_endpoint(session: Any) -> str | None:
    """Return the endpoint of S3 in the environment or the AWS configuration files; None where AWS itself is meant.

    An empty variable counts as unset, as for boto3.

    Parameters
    ----------
    session : boto3.Session

    Raises
    ------
    UserError
        An endpoint is no URL; names the setting and a value that works.
    """
    from botocore.configprovider import ConfiguredEndpointProvider

    for name in VARIABLES:
        if not os.environ.get(name, "-").strip():
            del os.environ[name]  # obstore would take the empty text for an address
    for name in VARIABLES:
        if name in os.environ:
            require_endpoint(os.environ[name], name)
    inner = session._session
    provider = ConfiguredEndpointProvider(
        full_config=inner.full_config, scoped_config=inner.get_scoped_config(), client_name="s3", environ=os.environ
    )
    endpoint: str | None = provider.provide() or os.environ.get(VARIABLES[-1])
    if endpoint:
        profile = inner.get_config_variable("profile") or "default"
        require_endpoint(endpoint, f"endpoint_url of the profile {profile} in the AWS configuration file")
    return endpoint or None


def require_endpoint(text: str, setting: str) -> None:
    """Refuse an endpoint that is no URL, and name the setting and a value that works."""
    problem = _problem(text)
    if problem is not None:
        raise UserError(f"{setting}={redact(text)!r}: {problem}")


def _problem(text: str) -> str | None:
    """Say what is wrong with an endpoint, and the remedy; None where it is an http or https URL."""
    bare = text.strip()
    if any(character.isspace() or not character.isprintable() for character in text):
        return f"holds a blank; write {redact(''.join(bare.split()))}"
    scheme, separator, rest = text.partition("://")
    if not separator:
        rest = (re.sub(r"https?[:/]", "", text, count=1) if text.startswith("http") else text).lstrip(":/")
        return f"has no scheme; write http://{rest or 'HOST:PORT'} or https://{rest or 'HOST:PORT'}"
    if scheme.lower() not in ("http", "https"):
        return f"the scheme {scheme} is none of http and https; write https://{redact('x://' + rest)[4:]}"
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is no URL ({error}); write it as http://HOST:PORT"
    if not host:
        return "has no host; write it as http://HOST:PORT"
    # The client panics at other characters of a host.
    usable = text.isascii() and ("[" in text or re.fullmatch(r"[\w.-]+", host))
    return (
        None if usable else "has a host of other characters than a-z, 0-9, dot and dash; write it as http://HOST:PORT"
    )
