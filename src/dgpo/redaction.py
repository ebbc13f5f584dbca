"""Redaction of secrets in files and output: tokens, keys and passwords become `***`."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"

_NAME = re.compile(r"(^|_)(token|secret|password|passwd|credentials?|api_key|access_key)$", re.IGNORECASE)
# options of tokenizers, which end in _token as well
_SPECIAL_TOKEN = re.compile(r"(eos|bos|pad|unk|sep|cls|mask|image|stop)_token$", re.IGNORECASE)
# up to the last @ before a space: a password may hold a slash
_LOOK = re.compile(
    r"(?<=://)[^\s\"'<>]*(?=@)"
    r"|(?<=[?&])(?P<parameter>[^\s=&?\"']*(?:key|token|secret|passw|auth|sig|credential)[^\s=&?\"']*=)[^\s&#\"']+"
    r"|\bhf_[A-Za-z0-9]{8,}|\bsk-[A-Za-z0-9_-]{16,}",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text with likely secrets redacted: user and password of an address, values of query parameters such as
    `api_key=`, and keys that start with `hf_` or `sk-`."""
    return _LOOK.sub(lambda match: (match["parameter"] or "") + HIDDEN, text)


def without_secrets(value: Any, name: str = "") -> Any:
    """A configuration with tokens, keys and passwords redacted, recognised by name of the option or by form."""
    if isinstance(value, dict):
        return {key: without_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner, name) for inner in value]
    if isinstance(value, str):
        if _NAME.search(name) and not _SPECIAL_TOKEN.match(name):
            return HIDDEN
        return redacted(value)
    return value
