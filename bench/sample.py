"""Answers bought under load, verified completely: by the verifier that every buyer uses, and nothing less."""

from collections.abc import Mapping, Sequence

import httpx

from attestation import purchase
from attestation.bundle import PAYMENT_HEADER, Bundle
from attestation.checker import ServiceChecker
from attestation.encoding import as_object, b64url_bytes, parse_json
from attestation.http_signature import Exchange
from attestation.policy import Policy
from attestation.verdict import Verdict
from bench.orders import Order
from bench.sellers import PATH


async def verify_sample(url: str, orders: Sequence[Order], answers: Mapping[int, bytes]) -> list[Verdict]:
    """The verdicts on some answers of a running service: evidence, offer, signature, receipt, payment proof.

    What only a chain could say is not asked, because there is none.

    Args:
        orders: what was sent.
        answers: raw HTTP answers, by the index of their order.
    """
    verdicts = []
    async with ServiceChecker(policy=Policy(allow_simulated=True)) as checker:
        service = await checker.attest(httpx.URL(url))
        for index, raw in sorted(answers.items()):
            order = orders[index]
            request = httpx.Request(
                "POST", url + PATH, content=order.body, headers={"content-type": "application/json"}
            )
            terms = await checker.send(request, service.transport)
            answer = _exchange(url + PATH, order, raw)
            receipt = parse_json(b64url_bytes(answer.headers["x-receipt"], "x-receipt"), "x-receipt")
            bundle = Bundle(
                attestation=service.attestation,
                manifest=service.manifest,
                terms=terms,
                answer=answer,
                receipt=as_object(receipt, "x-receipt"),
                offer=purchase.parse_terms(terms).offers[0],
                payment_receipt=purchase.parse_settlement(answer).receipt,
            )
            verifier = await checker.verifier(service.attestation, service.channel)
            verdicts.append(verifier.verify_bundle(bundle, nonce=service.nonce))
    return verdicts


def _exchange(url: str, order: Order, raw: bytes) -> Exchange:
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return Exchange(
        method="POST",
        url=url,
        status=int(status.split(" ")[1]),
        headers=headers,
        body=body,
        request_headers={} if order.payment is None else {PAYMENT_HEADER: order.payment},
        request_body=order.body,
    )
