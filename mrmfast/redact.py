"""Remove credentials from URLs before they are shown or stored."""

from __future__ import annotations

import re

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<rest>\S*)")
# A password may hold spaces. Without a slash before the "@", "name:text" is no host with a port.
_SPACED = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/:@]*:(?=[^/@\n]*\s)[^/@\n]*@")
_PORT = re.compile(r"\d*")
_CLOSING = re.compile(r"[:;,.)\]'\"]*\Z")  # of the sentence around the URL


def redact(text: str) -> str:
    """Return `text` without the user information and the query of each URL in it.

    ``https://name:password@host/ds?X-Amz-Signature=...`` becomes ``https://host/ds``. Where a password holds a slash,
    everything up to the last ``@`` is removed.
    """
    return _URL.sub(_without_secrets, _SPACED.sub(r"\g<scheme>", text)) if "://" in text else text


def _without_secrets(url: re.Match[str]) -> str:
    rest = url["rest"]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    _, colon, port = authority.rpartition(":")
    # "name:password" with a slash in the password: the text after the colon is no port.
    split_password = colon and "@" not in authority and not _PORT.fullmatch(_CLOSING.sub("", port)) and "]" not in port
    if "@" in authority:
        rest = rest[authority.rindex("@") + 1 :]
    elif split_password and "@" in rest:
        rest = rest[rest.rindex("@") + 1 :]
    before, question, _ = rest.partition("?")
    closing = _CLOSING.search(rest) if question else None
    return url["scheme"] + before + (closing[0] if closing else "")
