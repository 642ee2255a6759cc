"""The facilitator that settings describe: one for each network, ours in this process or others behind HTTP."""

from service.payment.facilitator import Facilitator
from service.payment.local import LocalFacilitator
from service.payment.options import LOCAL, PaymentOption
from service.payment.remote import RemoteFacilitator
from service.payment.routing import Router
from service.settings import Settings


def open_facilitator(settings: Settings) -> Router:
    """Whoever checks and executes payments on all networks of these settings; `close` it."""
    by_network: dict[str, list[PaymentOption]] = {}
    for option in settings.payment_options:
        by_network.setdefault(option.network, []).append(option)
    return Router({network: _of_network(settings, options) for network, options in by_network.items()})


def _of_network(settings: Settings, options: list[PaymentOption]) -> Facilitator:
    # The settings have seen to it that all tokens of a network have the same node and facilitator.
    first, assets = options[0], [option.payee.asset for option in options]
    if first.facilitator == (LOCAL,):
        key = settings.operator_key.get_secret_value()
        return LocalFacilitator(
            rpc_url=first.rpc_url,
            operator_key=key,
            assets=assets,
            depth=settings.settlement_depth,
            max_fee_wei=settings.max_fee_wei,
            max_head_age_seconds=settings.max_head_age_seconds,
            factories=settings.wallet_factories,
        )
    secrets = settings.facilitator_auth.items()
    return RemoteFacilitator(
        url=first.facilitator,
        rpc_url=first.rpc_url,
        assets=assets,
        authorizations={url.rstrip("/"): value.get_secret_value() for url, value in secrets},
        timeout_seconds=settings.facilitator_timeout_seconds,
        settlement_depth=settings.settlement_depth,
    )
