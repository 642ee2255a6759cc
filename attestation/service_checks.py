"""The first half of a verification: evidence -> keyset -> build -> agent, and the terms.

Only `attestation.verifier` builds on this.
"""

from typing import Final, TypeVar
from urllib.parse import urlsplit

from attestation import encoding, payment_proof, report
from attestation import manifest as manifests
from attestation.bundle import Bundle
from attestation.digest import digest
from attestation.errors import EvidenceError
from attestation.evidence import appraise
from attestation.evidence.appraisal import NotVerified
from attestation.http_signature import Exchange, verify_response
from attestation.keyset import ALGO_HTTP, ALGO_PAYMENT, parse_keyset, report_data, report_data_slot
from attestation.onchain import AgentOnChain, AgentReference, Unreadable
from attestation.pricing import basis_of, check_price, request_digest
from attestation.purchase import Terms, check_offer, parse_terms
from attestation.registry.records import KeyRecord, encode_key, parse_key, parse_manifest
from attestation.transcript import Transcript

NO_TLS: Final = "none"
"""In place of a key's hash, for a connection without TLS."""

_T = TypeVar("_T")


class ServiceChecks(Transcript):
    """Checks of a service and of its terms."""

    def _service(self, attestation: Exchange, manifest: Exchange, nonce: str | None) -> None:
        self._run("evidence.genuine", lambda: self._evidence(attestation))
        self._run("keyset.binding", lambda: self._keyset(attestation, nonce))
        self._run("keyset.lifetime", self._lifetime)
        self._run("evidence.policy", self._evidence_policy)
        self._run("build.manifest", lambda: self._manifest(attestation, manifest))
        self._run("registry.agent", self._agent)
        self._run("registry.key", lambda: self._registry_key(attestation))
        self._run("registry.manifest", self._registry_manifest)
        self._run("channel.tls", self._channel)

    def _evidence(self, exchange: Exchange) -> str:
        attestation = report.attestation_of(exchange)
        tee_type = encoding.text(attestation["tee_type"], "report.attestation.tee_type")
        claims = appraise(tee_type, attestation["evidence"], self._inputs)
        if (failure := claims.failure(of_policy=False)) is not None:
            raise EvidenceError(failure)
        if (missing := claims.missing(of_policy=False)) is not None:
            raise NotVerified(missing)
        self._have.claims = claims
        return f"{claims.tee_type} evidence is signed and complete"

    def _keyset(self, exchange: Exchange, nonce: str | None) -> str:
        claims = self._need(self._have.claims, "evidence.genuine")
        document, attestation = report.report_of(exchange), report.attestation_of(exchange)
        keyset = parse_keyset(attestation["workload_keyset"])
        if document["workload_keyset_digest"] != keyset.digest:
            raise EvidenceError(f"the report names {document['workload_keyset_digest']}, its keyset is {keyset.digest}")
        if keyset.digest in self._policy.denied:
            raise EvidenceError(f"keyset {keyset.digest} is on the deny-list")
        asked = report.nonce_of(exchange)
        if nonce is not None and asked != nonce:
            raise EvidenceError("the report answers another nonce than ours")
        expected = report_data(keyset.digest, asked)
        if attestation["report_data"] != expected.hex():
            raise EvidenceError("the report_data beside the evidence does not bind this keyset and nonce")
        if claims.report_data != report_data_slot(expected):
            raise EvidenceError("the evidence does not bind this keyset and nonce")
        self._have.reported_at = verify_response(exchange, keyset.key(ALGO_HTTP), now=self._now)
        self._have.keyset = keyset
        return f"{keyset.digest} is bound by the evidence, with the nonce that was asked for"

    def _lifetime(self) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        reported_at = self._need(self._have.reported_at, "keyset.binding")
        if self._now >= keyset.not_after:
            raise EvidenceError(
                f"the keyset expired at {keyset.not_after} (now {self._now}); --at checks a bundle as of its own time"
            )
        lifetime = keyset.not_after - reported_at
        if lifetime > self._policy.max_keyset_lifetime_seconds:
            limit = self._policy.max_keyset_lifetime_seconds
            raise EvidenceError(f"the keyset lives {lifetime} s after its report, at most {limit} s are plausible")
        return f"valid for {keyset.not_after - self._now} s more"

    def _evidence_policy(self) -> str:
        claims = self._need(self._have.claims, "evidence.genuine")
        if not claims.is_hardware:
            raise NotVerified("SIMULATED: no hardware stands behind these keys, nothing shows where they live")
        accepted = self._policy.tee_types
        if accepted is not None and claims.tee_type not in accepted:
            raise EvidenceError(f"{claims.tee_type} is not accepted, only {', '.join(sorted(accepted))}")
        if (failure := claims.failure(of_policy=True)) is not None:
            raise EvidenceError(failure)
        if (missing := claims.missing(of_policy=True)) is not None:
            raise NotVerified(missing)
        return f"{claims.tee_type} hardware, measured and up to date as the policy demands"

    def _manifest(self, attestation: Exchange, exchange: Exchange) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        claims = self._need(self._have.claims, "evidence.genuine")
        if exchange.status != 200 or exchange.request_body or urlsplit(exchange.url).path != manifests.PATH:
            raise EvidenceError(f"this is not a 200 of {manifests.PATH}, asked for without a body")
        verify_response(exchange, keyset.key(ALGO_HTTP), now=self._now)
        manifest = manifests.parse_manifest(encoding.parse_json(exchange.body, "manifest"))
        if manifest["tee"] != claims.tee_type:
            raise EvidenceError(f"the manifest is of a {manifest['tee']} service, the evidence of {claims.tee_type}")
        provenance = encoding.as_object(
            report.attestation_of(attestation)["source_provenance"], "report.source_provenance"
        )
        for field, said in (("repo_commit", manifest["source"]["commit"]), ("image_digest", manifest["image_digest"])):
            if provenance.get(field) != said:
                raise EvidenceError(f"the report's {field} is {provenance.get(field)}, the manifest says {said}")
        found = manifests.manifest_digest(manifest)
        if found in self._policy.denied:
            raise EvidenceError(f"build {found} is on the deny-list")
        allowed = self._policy.manifest_digests
        if allowed is not None and found not in allowed:
            raise EvidenceError(f"build {found} is not on the allow-list")
        self._have.manifest, self._have.manifest_digest = manifest, found
        return f"{found}, {'on the allow-list' if allowed is not None else 'no allow-list given'}"

    def _agent(self) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        agent = AgentReference.parse(keyset.subject)
        if self._policy.agent not in (None, agent):
            raise EvidenceError(
                f"the attested keyset names agent {agent}, the policy accepts {self._policy.agent} only"
            )
        self._have.agent = agent
        return f"the attested keyset names agent {self._have.agent}"

    def _registry_key(self, exchange: Exchange) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        agent = self._on_chain()
        slot = report.key_slot_of(exchange)
        if self._policy.owner not in (None, agent.owner):
            raise EvidenceError(f"the agent belongs to {agent.owner}, the policy accepts {self._policy.owner} only")
        expected = KeyRecord(
            payment_key=payment_proof.address_of(keyset.key(ALGO_PAYMENT).public_key),
            keyset_digest=keyset.digest,
            expires_at=keyset.not_after,
        )
        # A slot that was emptied or taken over later says nothing against a purchase from before: of such a one, the
        # records of its block and later are all here. Of a service that is looked at now, only the present one is.
        wanted = encode_key(expected)
        found = next((record for record in agent.keys if record.value == wanted), None)
        if found is None:
            newest = next((record.value for record in agent.keys if record.value), None)
            if newest is None:
                raise EvidenceError(f"the registry holds no {slot} for this agent")
            raise EvidenceError(f"{slot} on chain is {_differences(expected, parse_key(newest))}")
        if not found.by_owner:
            raise EvidenceError(f"the agent was sold after {slot} was written; its new owner has not confirmed the key")
        ended = agent.keys[0].block_number if agent.keys[0].value == b"" else None
        later = "" if ended is None else f", emptied in block {ended}, after the payment"
        return f"{slot} on chain is {expected.payment_key} (written in block {found.block_number}{later})"

    def _registry_manifest(self) -> str:
        agent = self._on_chain()
        served = self._need(self._have.manifest_digest, "build.manifest")
        listed = {parse_manifest(record.value): record for record in reversed(agent.manifests) if record.value}
        if served not in listed:
            said = ", ".join(listed) or "not set"
            raise EvidenceError(f"tee.manifest on chain is {said}, the service runs {served}")
        if not listed[served].by_owner:
            raise EvidenceError("the agent was sold after tee.manifest was written; its new owner has not confirmed it")
        return f"tee.manifest on chain is the build that is served (written in block {listed[served].block_number})"

    def _on_chain(self) -> AgentOnChain:
        self._need(self._have.agent, "registry.agent")
        return readable(self._chain.agent)

    def _channel(self) -> str:
        keyset = self._need(self._have.keyset, "keyset.binding")
        seen = self._channel_key
        if not keyset.tls_spki_sha256:
            raise NotVerified("the service does not end TLS inside the enclave: whoever does can read the document")
        if seen is None:
            raise NotVerified("only the buyer saw the connection")
        if seen == NO_TLS:
            raise EvidenceError("the attested keyset lists a TLS key, and this connection is not encrypted")
        if seen not in keyset.tls_spki_sha256:
            raise EvidenceError(f"the server's TLS key is {seen}, which the attested keyset does not list")
        return f"TLS ends inside the enclave, with key {seen}"

    def _check_terms(self, exchange: Exchange) -> tuple[Terms, str]:
        keyset = self._need(self._have.keyset, "keyset.binding")
        manifest = self._need(self._have.manifest, "build.manifest")
        made = verify_response(exchange, keyset.key(ALGO_HTTP), now=self._now)
        terms = parse_terms(exchange)
        if terms.resource_url != exchange.url:
            raise EvidenceError(f"the terms are for {terms.resource_url}, the request went to {exchange.url}")
        endpoint = urlsplit(exchange.url).path
        asked = request_digest(endpoint=endpoint, method=exchange.method, body_hash=digest(exchange.request_body))
        basis = basis_of(terms.document, request=asked)
        for accept in terms.accepts:
            check_price(manifest["payment"], accept, endpoint=endpoint, basis=basis)
        self._have.terms = terms
        return terms, f"signed at {made}"

    def _offers(self, exchange: Exchange) -> str:
        terms, when = self._check_terms(exchange)
        key = self._need(self._have.keyset, "keyset.binding").key(ALGO_PAYMENT).public_key
        covered = set()
        for document in terms.offers:
            offer = check_offer(terms, document, public_key=key)
            self._unexpired(offer)
            covered.add(document["acceptIndex"])
        if covered != set(range(len(terms.accepts))):
            raise EvidenceError("some of the terms have no signed offer")
        return f"{len(covered)} offer(s) by the attested key, {when}"

    def _accepted_offer(self, bundle: Bundle) -> str:
        terms, when = self._check_terms(bundle.terms)
        key = self._need(self._have.keyset, "keyset.binding").key(ALGO_PAYMENT).public_key
        offer = check_offer(terms, bundle.offer, public_key=key)
        self._have.offer = offer
        return f"{offer.amount} atomic units to {offer.pay_to}, {when}"

    def _unexpired(self, offer: payment_proof.Offer) -> None:
        if offer.valid_until and offer.valid_until <= self._now:
            raise EvidenceError(f"the offer ended at {offer.valid_until} (now {self._now})")


def _differences(expected: KeyRecord, found: KeyRecord) -> str:
    """What a record says that it should not say."""
    fields = ("payment_key", "keyset_digest", "expires_at")
    pairs = [(name, getattr(found, name), getattr(expected, name)) for name in fields]
    return ", ".join(f"{name} {said}, attested is {attested}" for name, said, attested in pairs if said != attested)


def readable(view: _T | Unreadable | None) -> _T:
    if view is None:
        raise NotVerified("the chain was not asked; --rpc URL adds it")
    if isinstance(view, Unreadable):
        raise NotVerified(f"the chain could not be asked: {view.reason}")
    return view
