"""dstack: a TDX guest whose guest agent makes quotes, over a Unix socket.

Source: Dstack-TEE/dstack, guest-agent/rpc/proto/agent_rpc.proto (service DstackGuest). The evidence follows aci/1
section 4.2. `LocalDaemon` is also how other providers reach the daemon of their TEE.
"""

import asyncio
import re
import socket
import ssl
from typing import Any, Final

import httpx

from attestation import encoding
from attestation.enclave.tsm import tdx_report_data
from attestation.errors import EnclaveError, MalformedError
from attestation.keyset import REPORT_DATA_BYTES

TIMEOUT_SECONDS: Final = 30.0
"""A quote takes a second or two; a busy host takes longer."""


class LocalDaemon:
    """HTTP to a daemon on this machine, over its Unix socket. It opens a connection per call and keeps none.

    Args:
        uri: ``<scheme>://`` and the absolute path of the socket; nothing else.
        scheme: the provider's scheme.
        name: the daemon, in messages.
        timeout_seconds: for one call, from connecting to the last byte.

    Raises:
        EnclaveError: not such a URI, or nothing listens there.
    """

    def __init__(self, uri: str, *, scheme: str, name: str, timeout_seconds: float) -> None:
        match = re.fullmatch(rf"{re.escape(scheme)}://((?:/[A-Za-z0-9._-]+)+)", uri)
        if match is None or {".", ".."} & set(match[1].split("/")):
            raise EnclaveError(
                f"{uri!r} does not name the socket of {name}",
                hint=f"Use {scheme}:// and its absolute path, such as {scheme}:///run/{name}.sock",
            )
        self._path = match[1]
        self._name = name
        self._timeout = timeout_seconds
        # Plain HTTP over a socket of this machine: a context that trusts nobody spares the loading of certificates.
        self._no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(timeout_seconds)
            try:
                probe.connect(self._path)
            except OSError as error:
                raise EnclaveError(
                    f"{name} is not there: {self._path}: {error.strerror or error}",
                    hint="The socket exists only inside the TEE, and must be mounted into the container",
                ) from error

    async def call(self, method: str, path: str, payload: Any = None) -> bytes:
        """The body of a 200.

        Raises:
            EnclaveError: no answer in time, or another status. It never quotes the daemon's answer.
        """
        # The environment's proxies and certificates have no say between a TEE and its own daemon.
        transport = httpx.AsyncHTTPTransport(uds=self._path, verify=self._no_tls, trust_env=False)
        try:
            async with (
                asyncio.timeout(self._timeout),
                httpx.AsyncClient(transport=transport, timeout=self._timeout, trust_env=False) as client,
            ):
                response = await client.request(method, f"http://{self._name}{path}", json=payload)
        except (httpx.HTTPError, TimeoutError) as error:
            raise EnclaveError(f"{self._name} did not answer {path} ({type(error).__name__})") from error
        if response.status_code != httpx.codes.OK:
            raise EnclaveError(f"{self._name} answered {path} with status {response.status_code}")
        return response.content

    async def ask(self, method: str, path: str, payload: Any = None) -> Any:
        """The JSON value in the body of a 200. Raises like `call`."""
        try:
            return encoding.parse_json(await self.call(method, path, payload), path)
        except MalformedError as error:
            raise EnclaveError(f"{self._name} answered {path} with something that is not JSON") from error


class DstackEnclave:
    """Asks the dstack guest agent for TDX quotes. Chosen by a URI such as ``dstack:///var/run/dstack.sock``.

    Every call makes a quote, so two calls over the same report data may differ. The compose text is asked for once:
    the agent measured it before this process began.
    """

    tee_type = "tdx"
    is_hardware = True

    def __init__(self, uri: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._agent = LocalDaemon(uri, scheme="dstack", name="dstack", timeout_seconds=timeout_seconds)
        self.uri = uri
        self.app_id: str | None = None
        """The dstack app id (lower-case hex), known from the first evidence on."""
        self._app_compose: str | None = None

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:  # noqa: ARG002 - the TEE has no clock
        """``{"quote", "quote_report_data": hex, "event_log": JSON text, "vm_config": text, "app_compose"?: text}``."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise EnclaveError(f"report data must be {REPORT_DATA_BYTES} bytes, is {len(report_data)}")
        answer = await self._agent.ask("POST", "/GetQuote", {"report_data": report_data.hex()})
        try:
            evidence = _quoted(answer, report_data)
            if self.app_id is None:
                self._app_compose, self.app_id = _described(await self._agent.ask("POST", "/Info", {}))
        except MalformedError as error:
            raise EnclaveError(f"dstack's answer has another shape than published: {error}") from error
        if self._app_compose is not None:
            evidence["app_compose"] = self._app_compose
        return evidence


def _quoted(answer: Any, report_data: bytes) -> dict[str, Any]:
    answer = encoding.as_object(answer, "GetQuote")
    quote = encoding.hex_bytes(answer.get("quote"), "GetQuote.quote")
    # Agents before 0.5 leave the report data out; the quote always has it.
    said = encoding.hex_bytes(answer.get("report_data", report_data.hex()), "GetQuote.report_data")
    if said != report_data or tdx_report_data(quote) != report_data:
        raise EnclaveError("dstack's quote is over other report data than was asked for")
    event_log = encoding.text(answer.get("event_log"), "GetQuote.event_log")
    if not isinstance(encoding.parse_json(event_log, "GetQuote.event_log"), list):
        raise MalformedError("GetQuote.event_log", "must be a JSON list")
    return {
        "quote": quote.hex(),
        "quote_report_data": report_data.hex(),
        "event_log": event_log,
        "vm_config": encoding.text(answer.get("vm_config", ""), "GetQuote.vm_config"),
    }


def _described(answer: Any) -> tuple[str | None, str]:
    answer = encoding.as_object(answer, "Info")
    app_id = encoding.hex_bytes(answer.get("app_id"), "Info.app_id").hex()
    tcb_info = encoding.text(answer.get("tcb_info"), "Info.tcb_info")
    if not tcb_info:
        return None, app_id
    compose = encoding.as_object(encoding.parse_json(tcb_info, "Info.tcb_info"), "Info.tcb_info").get("app_compose")
    return encoding.text(compose, "Info.tcb_info.app_compose"), app_id
