"""The 402: what one request costs, computed from what, and how it can be paid; the same document in header and body."""

from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from attestation.payment_proof import EXTENSION, Offer, sign_offer
from attestation.pricing import EXTENSION as PRICE_BASIS
from attestation.pricing import PriceBasis
from service.answer import Request
from service.build import offered_prices
from service.credentials import Credentials
from service.payment import identifier
from service.payment.terms import PAYMENT_REQUIRED_HEADER, Resource, encoded, payment_required, requirements_for

if TYPE_CHECKING:
    from service.app import Service

_IDENTIFIER: Final = identifier.declaration()


class Terms:
    """The terms of one request.

    Args:
        service: whose prices they are.
        resource: what is sold.
        request: the request; its digest is what the price is bound to.
        input_tokens: counted in the request.
        max_output_tokens: the longest answer that may come.
    """

    def __init__(
        self, service: "Service", resource: Resource, request: Request, *, input_tokens: int, max_output_tokens: int
    ) -> None:
        self._service = service
        self._resource = resource
        self._request = request
        self._tokens = input_tokens, max_output_tokens
        prices = offered_prices(
            service.settings,
            endpoint=request.endpoint,
            input_tokens=input_tokens,
            max_output_tokens=max_output_tokens,
        )
        self.accepts = [requirements_for(price) for price in prices]

    def response(self, error: str, credentials: Credentials) -> Response:
        """A 402 with offers signed under these credentials.

        Args:
            error: one sentence for the buyer: why this is a 402.
        """
        until = self._service.clock() + self._service.settings.payment_timeout_seconds
        offers = [
            sign_offer(
                Offer(
                    resource_url=self._resource.url,
                    scheme=accept.scheme,
                    network=accept.network,
                    asset=accept.asset,
                    pay_to=accept.pay_to,
                    amount=accept.amount,
                    valid_until=until,
                ),
                credentials.keys,
                accept_index=index,
            )
            for index, accept in enumerate(self.accepts)
        ]
        extensions = {EXTENSION: {"info": {"offers": offers}}, PRICE_BASIS: self._basis().to_json(), **_IDENTIFIER}
        document = payment_required(self.accepts, resource=self._resource, error=error, extensions=extensions)
        header, body = encoded(document)
        return Response(
            body,
            status_code=402,
            media_type="application/json",
            headers={PAYMENT_REQUIRED_HEADER: header, "cache-control": "no-store"},
        )

    def _basis(self) -> PriceBasis:
        rule = self._service.settings.price_rule(self._request.endpoint)
        return PriceBasis(rule, self._request.digest, *self._tokens)
