"""The address of a server: the parts that a client needs, and the part that may be shown."""

from __future__ import annotations

import base64
import logging
import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from dgpo.redaction import HIDDEN, redacted

API_KEY_ENV = "OPENAI_API_KEY"
LOGGERS = ("openai", "httpx", "httpcore")
"""Prefixes of the loggers of the client and its transport, which can log addresses."""


_PARAMETER = re.compile(r";[^/]*")
"""Parameters of a path segment."""


@dataclass(frozen=True, eq=False)  # each is a log filter of its own, although two may be of one address
class Endpoint:
    """A parsed address. Its `repr` shows neither password nor parameters nor key.

    Attributes:
        shown: for records, logs and errors: without user and password, the values of parameters as `***`.
        url: for the client: without user, password and parameters.
        query: the parameters, sent with every request.
        headers: user and password as HTTP basic authorization, in place of the key.
        key: API key; `none` without one, because the client requires a value.
        secrets: all texts that must not be shown.
    """

    shown: str
    url: str = field(repr=False)
    query: dict[str, str] = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    key: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, base_url: str, api_key_env: str | None) -> Endpoint:
        """Raises ValueError for an address without http(s) or host, or an environment variable that is not set."""
        # from the last @: a password may hold one, and this text is shown in errors
        given = repr(redacted(HIDDEN + "@" + base_url.rpartition("@")[2] if "@" in base_url else base_url))
        expected = "expected an address such as http://127.0.0.1:8000/v1"
        try:
            parts = urlsplit(base_url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"base_url = {given}; {expected}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url = {given}; {expected}")
        if api_key_env is not None and api_key_env not in os.environ:
            raise ValueError(f"api_key_env = {api_key_env!r} is not set; expected an environment variable with the key")
        key = os.environ.get(api_key_env or API_KEY_ENV, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"the key in {api_key_env or API_KEY_ENV} contains characters that an HTTP header cannot have"
            )
        # urlsplit drops the brackets of an IPv6 address
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        netloc = host if port is None else f"{host}:{port}"
        url = urlunsplit((parts.scheme, netloc, parts.path, "", ""))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        headers = {}
        secrets = [key, user, password, parts.password or "", *query.values()]
        if user or password:
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {basic}"
            secrets.append(basic)
        secrets += [name for name, value in query.items() if not value]  # a key alone, as in ?KEY
        shown = _PARAMETER.sub(f";{HIDDEN}", url)
        if query:
            shown += "?" + "&".join(f"{name}={HIDDEN}" if value else HIDDEN for name, value in query.items())
        # not short ones: replacing a version or a user "me" would garble every text
        # the longest first: a secret may contain another one
        hidden = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)
        return cls(shown, url, query, headers, key or "none", tuple(hidden))

    def hide(self, text: str) -> str:
        """The text without the secrets."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return redacted(text)

    def watch_logs(self) -> None:
        """Hide the secrets from the logs of the client's libraries until `unwatch_logs`."""
        for logger in _loggers():
            logger.addFilter(self)

    def unwatch_logs(self) -> None:
        for logger in _loggers():
            logger.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Hide the secrets in a log record, and let it pass."""
        # getMessage has put the arguments in already
        record.msg, record.args = self.hide(record.getMessage()), None
        return True


def _loggers() -> list[logging.Logger]:
    # every existing one: a filter does not apply to child loggers
    return [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(LOGGERS)]
