"""Asking a service who it is: evidence over a fresh nonce, its build, what the chain says, and who ends its TLS."""

import contextlib
import secrets
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import httpx

from attestation import manifest as manifests
from attestation import report
from attestation.bundle import PAYMENT_HEADER
from attestation.closing import AsyncCloseable
from attestation.encoding import as_object, parse_json
from attestation.errors import ServiceError, TollsealError
from attestation.http_signature import Exchange
from attestation.keyset import parse_keyset
from attestation.onchain import AgentReference, AuthorizationOnChain, ChainView, Unreadable
from attestation.policy import Policy
from attestation.purchase import Payment
from attestation.tls import peer_certificate, pinned_context, spki_sha256, unauthenticated_context
from attestation.verdict import Verdict
from attestation.verifier import NO_TLS, Verifier

KEYSET_HEADER: Final = "x-aci-keyset-digest"
"""Names the keyset that a response is signed under (aci/1 section 5.2)."""
ANSWER_SECONDS: Final = 60
"""How long a service may be silent where the caller has named no time."""


class ChainSource(Protocol):
    """Reads what a verification asks of the chain."""

    async def view(
        self, agent: AgentReference, key_slot: str, payment: Payment | None = None, transaction: str | None = None
    ) -> ChainView: ...

    async def authorization(
        self, *, network: str, asset: str, payer: str, nonce: str
    ) -> AuthorizationOnChain | Unreadable: ...


@dataclass(frozen=True, slots=True)
class Attested:
    """A service and what was found of it."""

    attestation: Exchange
    manifest: Exchange
    nonce: str
    at: int
    """Unix seconds."""
    channel: str | None
    """SPKI hash of the server's certificate, NO_TLS, or None where somebody else carried the requests."""
    transport: httpx.AsyncBaseTransport
    """Connects to the service that was attested, and to no other."""
    verdict: Verdict

    @property
    def keyset_digest(self) -> str | None:
        """What the report names as its keyset; proven only when the verdict is good."""
        digest = report.report_of(self.attestation)["workload_keyset_digest"]
        return digest if isinstance(digest, str) else None


Connect = Callable[[ssl.SSLContext], httpx.AsyncBaseTransport]


def unix_now() -> int:
    return int(time.time())


def _anywhere(context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(verify=context)


class ServiceChecker(AsyncCloseable):
    """Attests services under a policy, without buying anything.

    Args:
        policy: what is demanded of them.
        chain: reads the chain through a node of the relying party's own choice; None leaves those checks not verified.
        transport: carries all requests, and answers for the channel; by default connections are made and pinned here.
        connect: makes a transport that judges certificates with a context; by default one that connects anywhere.
        clock: unix seconds.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        chain: ChainSource | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        connect: Connect | None = None,
        clock: Callable[[], int] = unix_now,
    ) -> None:
        self._policy = policy
        self._chain = chain
        self._given = transport
        self._connect = connect or _anywhere
        self._clock = clock
        self._opened: list[httpx.AsyncBaseTransport] = []

    async def aclose(self) -> None:
        """Closes the connections."""
        for transport in (self._given, *self._opened):
            if transport is not None:
                await transport.aclose()

    async def attest(self, url: httpx.URL) -> Attested:
        """Ask the service at a URL for its evidence, with a fresh nonce, and judge it.

        Raises:
            ServiceError: it does not answer as such a service must.
            httpx.TransportError: it cannot be reached.
        """
        nonce, at = secrets.token_hex(32), self._clock()
        # Asking reveals nothing and believes nothing, so any certificate will do: the keyset says which one is right.
        asking = self._given or self._open(unauthenticated_context())
        certificates: list[bytes | None] = []
        attestation = await self._get(url.join(f"{report.PATH}?nonce={nonce}"), asking, certificates)
        manifest = await self._get(url.join(manifests.PATH), asking, certificates)
        if manifest.headers.get(KEYSET_HEADER) != attestation.headers.get(KEYSET_HEADER):
            # The keys were replaced between the two answers.
            attestation = await self._get(url.join(f"{report.PATH}?nonce={nonce}"), asking, certificates)
        channel, transport = self._channel(url, attestation, certificates, asking)
        verifier = await self.verifier(attestation, channel)
        verdict = verifier.verify_service(attestation, manifest, nonce=nonce)
        return Attested(attestation, manifest, nonce, at, channel, transport, verdict)

    def _channel(
        self,
        url: httpx.URL,
        attestation: Exchange,
        certificates: list[bytes | None],
        asking: httpx.AsyncBaseTransport,
    ) -> tuple[str | None, httpx.AsyncBaseTransport]:
        """Which key the server has, and a transport that reaches nobody else."""
        if self._given is not None:
            return None, asking
        certificate = certificates[0]
        if url.scheme != "https" or certificate is None:
            return NO_TLS, asking
        if any(other != certificate for other in certificates):
            raise ServiceError(f"{url.host} answered with two different certificates")
        seen = spki_sha256(certificate)
        if seen in _listed_keys(attestation):
            return seen, self._open(pinned_context(certificate))
        # TLS ends outside the enclave: then at least a certificate authority must vouch for the host.
        return seen, self._open(ssl.create_default_context())

    def _open(self, context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
        transport = self._connect(context)
        self._opened.append(transport)
        return transport

    async def verifier(
        self,
        attestation: Exchange,
        channel: str | None,
        payment: Payment | None = None,
        transaction: str | None = None,
    ) -> Verifier:
        """A verifier that knows what the chain says about a service, and about a payment when one is named."""
        view: ChainView | None = None
        if self._chain is not None:
            # A report that names no agent is for the verifier to refuse, not for us to look up.
            with contextlib.suppress(TollsealError):
                agent, slot = report.agent_of(attestation), report.key_slot_of(attestation)
                view = await self._chain.view(agent, slot, payment, transaction)
        return Verifier(self._policy, now=self._clock(), chain=view, channel=channel)

    async def send(
        self,
        request: httpx.Request,
        transport: httpx.AsyncBaseTransport,
        certificates: list[bytes | None] | None = None,
    ) -> Exchange:
        """Send a request and read its whole answer; `certificates` gets the server's.

        Raises:
            httpx.TransportError: it could not be sent, or the answer broke off.
        """
        head, sent = await self.begin(request, transport)
        try:
            if certificates is not None:
                certificates.append(peer_certificate(sent))
            return replace(head, body=await sent.aread())
        finally:
            await sent.aclose()

    async def begin(
        self, request: httpx.Request, transport: httpx.AsyncBaseTransport
    ) -> tuple[Exchange, httpx.Response]:
        """Send a request and read the head of its answer only; the caller reads the response's body and closes it.

        Raises:
            httpx.TransportError: it could not be sent, or was not answered.
        """
        # A signature covers the bytes on the wire, so nothing may compress them on the way.
        request.headers["accept-encoding"] = "identity"
        request.extensions.setdefault("timeout", httpx.Timeout(ANSWER_SECONDS).as_dict())
        sent = await transport.handle_async_request(request)
        headers: dict[str, str] = {}
        for name, value in sent.headers.multi_items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        payment = request.headers.get(PAYMENT_HEADER)
        head = Exchange(
            method=request.method,
            url=str(request.url),
            status=sent.status_code,
            headers=headers,
            body=b"",
            request_headers={} if payment is None else {PAYMENT_HEADER: payment},
            request_body=request.content,
        )
        return head, sent

    async def _get(
        self, url: httpx.URL, transport: httpx.AsyncBaseTransport, certificates: list[bytes | None]
    ) -> Exchange:
        exchange = await self.send(httpx.Request("GET", url), transport, certificates)
        if exchange.status != 200:
            said = problem_text(exchange.status, exchange.body)
            raise ServiceError(f"{url.join('/')} is no service of this kind, or not ready: {said}")
        return exchange


def problem_text(status: int, content: bytes) -> str:
    """What a response says went wrong, in one line without control characters (RFC 9457; a 402 says it in `error`)."""
    try:
        body = as_object(parse_json(content, "problem"), "problem")
    except TollsealError:
        return f"status {status}"
    words = [body[name] for name in ("title", "detail", "error") if isinstance(body.get(name), str)]
    line = "".join(character if character.isprintable() else " " for character in ": ".join(words))
    return f"{line[:500] or 'no reason given'} (status {status})"


def _listed_keys(attestation: Exchange) -> tuple[str, ...]:
    """The TLS keys that a report lists; none when it is malformed, which is for the verifier to say."""
    try:
        return parse_keyset(report.attestation_of(attestation)["workload_keyset"]).tls_spki_sha256
    except TollsealError:
        return ()
