"""Judging one validation request: fetch what it is about, run the verifier under a policy, and score it.

100: the verdict is VERIFIED. 0: what was asked about is wrong, and will stay wrong. Neither: it could not be decided
now (a host that does not answer, a check that could not run), which is no reason to call a key bad.
A simulated enclave scores 0, or, where that was allowed and the chain carries nothing of value, 100 under the tag
`simulated`: the tag names the TEE whose evidence was genuine, so no reader can take it for hardware.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx

from attestation import purchase as purchases
from attestation import report
from attestation.bundle import exchange_json, parse_bundle
from attestation.checker import ChainSource, ServiceChecker, unix_now
from attestation.digest import jcs
from attestation.errors import MalformedError, ServiceError, TollsealError
from attestation.fetch import FetchError, FetchLimits, GuardedTransport, Resolve, fetch, resolve_host
from attestation.http_signature import Exchange
from attestation.keyset import ALGO_PAYMENT, parse_keyset
from attestation.onchain import AgentReference
from attestation.payment_proof import address_of
from attestation.policy import Policy
from attestation.publishing import content_hash
from attestation.registry.canonical import is_valueless
from attestation.registry.validation import MAX_RESPONSE, Request
from attestation.tls import unauthenticated_context
from attestation.validation import MAX_REQUEST_BYTES, KeyInQuestion, parse_request
from attestation.verdict import Result, Status, Verdict
from attestation.verifier import Verifier

RESPONSE_FORMAT: Final = "tollseal.validation-response/1"
NO_TEE: Final = "unproven"
"""The tag of an answer about something whose evidence is not genuine, whatever it calls itself."""

_MAX_ANSWER_BYTES: Final = 4 << 20
_SERVICE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a request. `response` is None when it could not be decided."""

    response: int | None
    tag: str
    reason: str
    document: dict[str, Any]
    """The evidence for the response, to be published: a JSON object without the exchanges it rests on."""
    exchanges: dict[str, Any]
    """Those exchanges, as bundles write them; empty when there are none."""


class Judge:
    """Judges requests under one policy.

    Args:
        policy: what is demanded. The agent must be the one of the request, and the chain must confirm.
        chain: reads the chain through a node of the validator's own choice.
        chain_id: of that chain.
        allow_private: also ask private addresses, for a chain on this machine.
        clock: unix seconds.
        resolve: looks up host names.
    """

    def __init__(
        self,
        policy: Policy,
        chain: ChainSource,
        chain_id: int,
        *,
        allow_private: bool = False,
        clock: Callable[[], int] = unix_now,
        resolve: Resolve = resolve_host,
    ) -> None:
        self._policy = policy.requiring_chain()
        self._chain = chain
        self._valueless = is_valueless(chain_id)
        self._clock = clock
        self._resolve = resolve
        self._limits = FetchLimits(max_bytes=MAX_REQUEST_BYTES, allow_private=allow_private)

    async def judge(self, request: Request, registry_id: str) -> Judgement:
        """The judgement of a request about an agent of the registry ``eip155:<chainId>:<address>``."""
        agent = AgentReference.parse(f"{registry_id}:{request.agent_id}")
        try:
            content = await fetch(request.uri, self._limits, resolve=self._resolve)
        except FetchError as error:
            return self._undecided(request, agent, str(error))
        if content_hash(content) != request.request_hash:
            return self._refused(request, agent, "what the request's URI holds does not have the request's hash")
        try:
            key = parse_request(content)
        except MalformedError as error:
            return self._refused(request, agent, str(error))
        if key.agent != agent:
            return self._refused(request, agent, f"the request is about {key.agent}")
        try:
            return await (self._service(request, key) if key.bundle is None else self._purchase(request, key))
        except (FetchError, ServiceError, httpx.HTTPError, TimeoutError) as error:
            return self._undecided(request, agent, str(error) or "the service did not answer in time")
        except TollsealError as error:
            return self._refused(request, agent, str(error))
        except Exception as error:
            # What strangers send must not end a validator that others rely on, nor be scored by our mistake.
            return self._undecided(request, agent, f"it could not be judged ({type(error).__name__})")

    async def _service(self, request: Request, key: KeyInQuestion) -> Judgement:
        """Has the service prove itself now, with a nonce drawn here."""
        # Asking reveals nothing and believes nothing, so any certificate will do: the evidence says who answers.
        transport = GuardedTransport(
            replace(self._limits, max_bytes=_MAX_ANSWER_BYTES), tls=unauthenticated_context(), resolve=self._resolve
        )
        policy = replace(self._policy, agent=key.agent)
        async with ServiceChecker(policy=policy, chain=self._chain, transport=transport, clock=self._clock) as checker:
            async with asyncio.timeout(_SERVICE_SECONDS):
                found = await checker.attest(_origin(key.endpoint))
        if found.keyset_digest != key.keyset_digest:
            # Another replica, or new keys: that this one was not seen says nothing about it.
            reason = f"the service answers under keyset {found.keyset_digest}, the request is about {key.keyset_digest}"
            return self._undecided(request, key.agent, reason)
        exchanges = {"attestation": exchange_json(found.attestation), "manifest": exchange_json(found.manifest)}
        return self._scored(request, key, found.verdict, found.attestation, {**exchanges, "nonce": found.nonce})

    async def _purchase(self, request: Request, key: KeyInQuestion) -> Judgement:
        bundle = parse_bundle(jcs(dict(key.bundle or {})))
        digest = report.report_of(bundle.attestation)["workload_keyset_digest"]
        if digest != key.keyset_digest:
            return self._refused(request, key.agent, f"the bundle is under keyset {digest}, not {key.keyset_digest}")
        view = await self._chain.view(
            key.agent,
            report.key_slot_of(bundle.attestation),
            purchases.parse_payment(bundle.answer),
            purchases.parse_settlement(bundle.answer).transaction,
        )
        verifier = Verifier(replace(self._policy, agent=key.agent), now=self._clock(), chain=view)
        return self._scored(request, key, verifier.verify_bundle(bundle), bundle.attestation, {})

    def _scored(
        self, request: Request, key: KeyInQuestion, verdict: Verdict, attestation: Exchange, exchanges: dict[str, Any]
    ) -> Judgement:
        failed = [check for check in verdict.checks if check.status is Status.FAIL]
        missing = [check for check in verdict.checks if check.status is Status.NOT_VERIFIED]
        if verdict.result is Result.INCOMPLETE:
            return self._undecided(request, key.agent, "; ".join(f"{one.id}: {one.detail}" for one in missing))
        tag = _tag(verdict, attestation)
        keyset = parse_keyset(report.attestation_of(attestation)["workload_keyset"])
        proven = address_of(keyset.key(ALGO_PAYMENT).public_key), report.key_slot_of(attestation)
        if proven != (key.payment_key, key.key_slot):
            return self._refused(request, key.agent, f"the request's keyset has payment key and slot {proven}")
        if verdict.result is Result.SIMULATED:
            passed = verdict.acceptable and self._valueless
            reason = "the enclave is simulated: no hardware stands behind this key"
        else:
            passed = verdict.result is Result.VERIFIED
            reason = "; ".join(f"{one.id}: {one.detail}" for one in failed) or "every required check passed"
        document = {
            **self._document(request, key.agent, MAX_RESPONSE if passed else 0, tag, reason),
            "keyset_digest": key.keyset_digest,
            "verdict": verdict.result.value,
            "checks": {check.id: check.status.value for check in verdict.checks},
        }
        return Judgement(MAX_RESPONSE if passed else 0, tag, reason, document, exchanges)

    def _refused(self, request: Request, agent: AgentReference, reason: str) -> Judgement:
        return Judgement(0, NO_TEE, reason, self._document(request, agent, 0, NO_TEE, reason), {})

    def _undecided(self, request: Request, agent: AgentReference, reason: str) -> Judgement:
        return Judgement(None, NO_TEE, reason, self._document(request, agent, None, NO_TEE, reason), {})

    def _document(
        self, request: Request, agent: AgentReference, response: int | None, tag: str, reason: str
    ) -> dict[str, Any]:
        policy = self._policy
        return {
            "format": RESPONSE_FORMAT,
            "request_hash": request.request_hash,
            "agent": str(agent),
            "validator": request.validator,
            "response": response,
            "tag": tag,
            "reason": reason[:500],
            "judged_at": self._clock(),
            "policy": {
                "allow_simulated": policy.allow_simulated,
                "tee_types": None if policy.tee_types is None else sorted(policy.tee_types),
                "manifest_digests": None if policy.manifest_digests is None else sorted(policy.manifest_digests),
            },
        }


def _origin(endpoint: str | None) -> httpx.URL:
    try:
        return httpx.URL(endpoint or "")
    except httpx.InvalidURL as error:
        raise MalformedError("request.endpoint", "must be a URL") from error


def _tag(verdict: Verdict, attestation: Exchange) -> str:
    if verdict.check("evidence.genuine").status is not Status.PASS:
        return NO_TEE
    return str(report.attestation_of(attestation)["tee_type"])
