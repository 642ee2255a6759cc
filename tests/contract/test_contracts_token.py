"""The local dollar token takes what USDC takes, refuses what USDC refuses, and says so in USDC's words."""

from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import ContractLogicError

from service.localchain.deploy import MULTICALL3, Deployer, LocalChain, artifact
from tests.chain import FAR_FUTURE, Authorization, authorize

PRICE = 10_000


@pytest.fixture
def sender(chain: LocalChain) -> Deployer:
    """The facilitator: sends what others signed."""
    return Deployer(chain.rpc, Account.from_key(chain.operator_key))


@pytest.fixture
def token(chain: LocalChain, sender: Deployer) -> Contract:
    contract: Contract = sender.w3.eth.contract(address=_c(chain.token), abi=artifact("UsdToken")["abi"])
    return contract


@pytest.fixture
def wallet(chain: LocalChain, sender: Deployer) -> str:
    """A contract wallet (ERC-1271) of the buyer's key, with dollars in it."""
    address = sender.deploy("KeyWallet", chain.buyer).address
    owner = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    owner.send(
        owner.w3.eth.contract(address=_c(chain.token), abi=artifact("UsdToken")["abi"]).functions.mint(address, PRICE)
    )
    return str(address)


def _c(address: str) -> Any:
    return Web3.to_checksum_address(address)


def buyers(chain: LocalChain, **changes: Any) -> Authorization:
    """The buyer's authorization of the price, signed with the buyer's key."""
    terms: dict[str, Any] = {"payer": chain.buyer, "pay_to": chain.pay_to, "amount": PRICE} | changes
    return authorize(chain, terms.pop("key", chain.buyer_key), **terms)


def bytes_form(token: Contract, signed: Authorization) -> Any:
    name = signed.kind[0].lower() + signed.kind[1:]
    return token.get_function_by_signature(f"{name}(address,address,uint256,uint256,uint256,bytes32,bytes)")(
        *signed.arguments()
    )


def vrs_form(token: Contract, signed: Authorization) -> Any:
    name = signed.kind[0].lower() + signed.kind[1:]
    return token.get_function_by_signature(
        f"{name}(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
    )(*signed.vrs_arguments())


FORMS = pytest.mark.parametrize("form", [bytes_form, vrs_form])


def test_the_token_presents_itself_as_usdc_does(chain: LocalChain, token: Contract, sender: Deployer) -> None:
    call = token.functions
    assert (call.name().call(), call.symbol().call(), call.decimals().call(), call.version().call()) == (
        "USDC",
        "USDC",
        6,
        "2",
    )
    domain = {"name": "USDC", "version": "2", "chainId": chain.chain_id, "verifyingContract": chain.token}
    expected = encode_typed_data(domain, {"Nothing": [{"name": "x", "type": "bool"}]}, {"x": True}).header
    assert call.DOMAIN_SEPARATOR().call() == expected
    assert sender.chain_id == 84532


@FORMS
def test_an_authorization_moves_exactly_its_amount_and_costs_the_payer_no_gas(
    chain: LocalChain, token: Contract, sender: Deployer, form: Any
) -> None:
    signed = buyers(chain)
    before = token.functions.balanceOf(chain.buyer).call()
    assert sender.w3.eth.get_balance(_c(chain.buyer)) == 0

    receipt = sender.send(form(token, signed))

    assert token.functions.balanceOf(chain.pay_to).call() == PRICE
    assert token.functions.balanceOf(chain.buyer).call() == before - PRICE
    assert token.functions.authorizationState(chain.buyer, signed.message["nonce"]).call() is True
    assert len(receipt["logs"]) == 2


@FORMS
def test_a_replay_is_refused(chain: LocalChain, token: Contract, sender: Deployer, form: Any) -> None:
    signed = buyers(chain)
    sender.send(form(token, signed))

    with pytest.raises(ContractLogicError, match="authorization is used or canceled"):
        sender.send(bytes_form(token, signed))
    with pytest.raises(ContractLogicError, match="authorization is used or canceled"):
        sender.send(vrs_form(token, signed))


@FORMS
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valid_before": 1_000_000_000}, "authorization is expired"),
        ({"valid_after": FAR_FUTURE - 1}, "authorization is not yet valid"),
        ({"key": "0x" + "42" * 32}, "invalid signature"),
        ({"version": "1"}, "invalid signature"),
        ({"amount": 10**15}, "transfer amount exceeds balance"),
    ],
)
def test_a_bad_authorization_is_refused_in_the_words_facilitators_match_on(
    chain: LocalChain, token: Contract, sender: Deployer, form: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ContractLogicError, match=words):
        sender.send(form(token, buyers(chain, **changes)))
    assert token.functions.balanceOf(chain.pay_to).call() == 0


@pytest.mark.parametrize("field", ["to", "value", "validAfter", "validBefore", "nonce"])
def test_every_signed_field_counts(chain: LocalChain, token: Contract, sender: Deployer, field: str) -> None:
    signed = buyers(chain)
    other: dict[str, Any] = {
        "to": chain.operator,
        "value": PRICE + 1,
        "validAfter": 1,
        "validBefore": FAR_FUTURE - 1,
        "nonce": b"\x01" * 32,
    }
    tampered = Authorization(signed.kind, signed.message | {field: other[field]}, signed.signature)

    with pytest.raises(ContractLogicError, match="invalid signature"):
        sender.send(bytes_form(token, tampered))


def test_the_block_number_clock_of_the_library_is_off(chain: LocalChain, token: Contract, sender: Deployer) -> None:
    flag = 1 << 47  # both bounds carry it: the library would read them as block numbers
    with pytest.raises(ContractLogicError, match="not yet valid"):
        sender.send(bytes_form(token, buyers(chain, valid_after=flag, valid_before=flag | 10**6)))


def test_only_the_payee_may_send_a_receive_authorization(chain: LocalChain, token: Contract, sender: Deployer) -> None:
    kind = "ReceiveWithAuthorization"
    with pytest.raises(ContractLogicError, match="caller must be the payee"):
        sender.send(vrs_form(token, buyers(chain, kind=kind)))
    for form in (bytes_form, vrs_form):
        sender.send(form(token, buyers(chain, kind=kind, pay_to=chain.operator)))
    assert token.functions.balanceOf(chain.operator).call() == 2 * PRICE


def test_a_transfer_signature_is_not_a_receive_signature(chain: LocalChain, token: Contract, sender: Deployer) -> None:
    signed = buyers(chain, pay_to=chain.operator)
    with pytest.raises(ContractLogicError, match="invalid signature"):
        sender.send(bytes_form(token, Authorization("ReceiveWithAuthorization", signed.message, signed.signature)))


@pytest.mark.parametrize("form", ["bytes", "vrs"])
def test_a_canceled_authorization_is_dead(chain: LocalChain, token: Contract, sender: Deployer, form: str) -> None:
    signed = buyers(chain)
    nonce = signed.message["nonce"]
    domain = {"name": "USDC", "version": "2", "chainId": chain.chain_id, "verifyingContract": chain.token}
    types = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
    consent = Account.sign_typed_data(chain.buyer_key, domain, types, {"authorizer": chain.buyer, "nonce": nonce})
    raw = bytes(consent.signature)
    if form == "bytes":
        cancel = token.get_function_by_signature("cancelAuthorization(address,bytes32,bytes)")(chain.buyer, nonce, raw)
    else:
        cancel = token.get_function_by_signature("cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)")(
            chain.buyer, nonce, raw[64], raw[:32], raw[32:64]
        )

    sender.send(cancel)

    with pytest.raises(ContractLogicError, match="authorization is used or canceled"):
        sender.send(bytes_form(token, signed))
    with pytest.raises(ContractLogicError, match="authorization is used or canceled"):
        sender.send(cancel)


def test_a_contract_wallet_pays_with_its_own_idea_of_a_signature(
    chain: LocalChain, token: Contract, sender: Deployer, wallet: str
) -> None:
    sender.send(bytes_form(token, buyers(chain, payer=wallet)))

    assert token.functions.balanceOf(chain.pay_to).call() == PRICE
    assert token.functions.balanceOf(wallet).call() == 0


def test_a_contract_wallet_refuses_a_strangers_signature(
    chain: LocalChain, token: Contract, sender: Deployer, wallet: str, stranger: LocalAccount
) -> None:
    with pytest.raises(ContractLogicError, match="invalid signature"):
        sender.send(bytes_form(token, buyers(chain, payer=wallet, key=stranger.key)))


def test_only_the_deployer_makes_dollars(chain: LocalChain, token: Contract, sender: Deployer) -> None:
    with pytest.raises(ContractLogicError, match="caller is not a minter"):
        sender.send(token.functions.mint(chain.operator, 1))


def test_multicall_at_its_canonical_address_reports_each_call(
    chain: LocalChain, token: Contract, sender: Deployer
) -> None:
    multicall = sender.w3.eth.contract(address=MULTICALL3, abi=artifact("Multicall3")["abi"])
    good = token.functions.balanceOf(chain.buyer)._encode_transaction_data()
    bad = bytes_form(token, buyers(chain, valid_before=1))._encode_transaction_data()

    results = multicall.functions.tryAggregate(False, [(chain.token, good), (chain.token, bad)]).call()
    same = multicall.functions.aggregate3([(chain.token, True, good), (chain.token, True, bad)]).call()

    assert [success for success, _ in results] == [True, False]
    assert int.from_bytes(results[0][1], "big") == token.functions.balanceOf(chain.buyer).call()
    assert b"authorization is expired" in results[1][1]
    assert same == results
    with pytest.raises(ContractLogicError, match="call failed"):
        multicall.functions.tryAggregate(True, [(chain.token, bad)]).call()
