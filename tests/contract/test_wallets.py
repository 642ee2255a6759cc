"""Signatures in all their forms: of keys, of wallets (ERC-1271), of wallets that are not deployed yet (ERC-6492)."""

from dataclasses import replace
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak
from x402.mechanisms.evm.constants import ERC6492_MAGIC_VALUE

from service.localchain.deploy import Deployer, LocalChain, artifact
from service.payment.authorization import Authorization
from service.payment.facilitator import Invalid, Rejected, Settled, Verified
from service.payment.local import LocalFacilitator
from service.pricing import Asset
from tests.payments import PRICE, authorize, offer

FACTORY = "0x4e59b44847b379578588920ca78fbf26c0b4956c"
"""Where the deterministic deployment proxy (Arachnid's) lives on public chains."""

FACTORY_CODE = (
    "0x7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe03601600081602082378035828234f58015156039578182"
    "fd5b8082525050506014600cf3"
)


@pytest.fixture
def owner(chain: LocalChain) -> Deployer:
    return Deployer(chain.rpc, Account.from_key(chain.owner_key))


def asset_of(chain: LocalChain) -> Asset:
    return Asset(f"eip155:{chain.chain_id}", chain.token, 6, "USDC", "2", "USDC")


def payment(chain: LocalChain, **deviations: Any) -> Authorization:
    return authorize(offer(asset_of(chain), pay_to=chain.pay_to), key=chain.buyer_key, **deviations)


def facilitator_of(chain: LocalChain, **options: Any) -> LocalFacilitator:
    return LocalFacilitator(rpc_url=chain.rpc, operator_key=chain.operator_key, assets=[asset_of(chain)], **options)


def mint(owner: Deployer, chain: LocalChain, holder: str) -> None:
    w3 = owner.w3
    token = w3.eth.contract(address=w3.to_checksum_address(chain.token), abi=artifact("UsdToken")["abi"])
    owner.send(token.functions.mint(w3.to_checksum_address(holder), PRICE))


def undeployed(owner: Deployer, chain: LocalChain) -> tuple[str, bytes]:
    """The address of the buyer's wallet that nobody has deployed yet, and what the factory has to be called with."""
    owner.anvil("anvil_setCode", FACTORY, FACTORY_CODE)
    code = bytes.fromhex(artifact("KeyWallet")["bytecode"][2:]) + encode(["address"], [chain.buyer])
    salt = bytes(32)
    address = keccak(b"\xff" + bytes.fromhex(FACTORY[2:]) + salt + keccak(code))[12:]
    return "0x" + address.hex(), salt + code


def wrapped(authorization: Authorization, calldata: bytes) -> Authorization:
    """The authorization with its signature in ERC-6492's form."""
    inner = bytes.fromhex(authorization.signature[2:])
    body = encode(["address", "bytes", "bytes"], [FACTORY, calldata, inner])
    return replace(authorization, signature="0x" + (body + ERC6492_MAGIC_VALUE).hex())


async def test_a_wallet_that_accepts_pays_and_one_that_does_not_is_refused(
    chain: LocalChain, owner: Deployer, stranger: LocalAccount
) -> None:
    wallet = owner.deploy("KeyWallet", chain.buyer).address
    mint(owner, chain, wallet)
    facilitator = facilitator_of(chain)
    forged = payment(chain, payer=wallet, signing_key="0x" + bytes(stranger.key).hex())
    refused = await facilitator.verify(forged)
    assert isinstance(refused, Invalid)
    assert "signature" in refused.reason
    assert isinstance(await facilitator.settle(forged), Rejected)
    good = payment(chain, payer=wallet)
    assert await facilitator.verify(good) == Verified(wallet.lower())
    assert isinstance(await facilitator.settle(good), Settled)
    broke = await facilitator.settle(payment(chain, payer=wallet))
    assert isinstance(broke, Rejected)
    assert "insufficient_balance" in broke.reason
    await facilitator.close()


async def test_a_wallet_that_is_not_deployed_is_refused_unless_its_factory_is_listed(
    chain: LocalChain, owner: Deployer
) -> None:
    wallet, calldata = undeployed(owner, chain)
    mint(owner, chain, wallet)
    authorization = wrapped(payment(chain, payer=wallet), calldata)
    for factories in ((), (chain.token,)):
        cautious = facilitator_of(chain, factories=factories)
        refused = await cautious.verify(authorization)
        assert isinstance(refused, Invalid)
        assert "factory" in refused.reason
        rejected = await cautious.settle(authorization)
        assert isinstance(rejected, Rejected)
        await cautious.close()
    assert owner.w3.eth.get_code(owner.w3.to_checksum_address(wallet)) == b""

    trusting = facilitator_of(chain, factories=(FACTORY.upper().replace("0X", "0x"),))
    assert await trusting.verify(authorization) == Verified(wallet)
    assert owner.w3.eth.get_code(owner.w3.to_checksum_address(wallet)) == b"", "verifying deploys nothing"
    assert isinstance(await trusting.settle(authorization), Settled)
    assert owner.w3.eth.get_code(owner.w3.to_checksum_address(wallet)) != b""
    mint(owner, chain, wallet)
    again = wrapped(payment(chain, payer=wallet), calldata)
    assert isinstance(await trusting.settle(again), Settled), "a wallet that is there need not be deployed"
    await trusting.close()


async def test_a_bare_signature_of_a_wallet_that_is_not_deployed_says_so(chain: LocalChain, owner: Deployer) -> None:
    wallet, _ = undeployed(owner, chain)
    mint(owner, chain, wallet)
    facilitator = facilitator_of(chain)
    long = replace(payment(chain, payer=wallet), signature="0x" + "11" * 97)
    refused = await facilitator.verify(long)
    assert isinstance(refused, Invalid)
    assert "undeployed" in refused.reason
    await facilitator.close()


@pytest.mark.parametrize("tail", [b"", b"\x00" * 32, b"\xff" * 96])
async def test_a_wrapper_that_cannot_be_read_is_an_invalid_signature(chain: LocalChain, tail: bytes) -> None:
    facilitator = facilitator_of(chain, factories=(FACTORY,))
    broken = replace(payment(chain), signature="0x" + (b"\x01" * 40 + tail + ERC6492_MAGIC_VALUE).hex())
    assert isinstance(await facilitator.verify(broken), Invalid)
    await facilitator.close()


@pytest.mark.parametrize("v", [0, 1, 27, 28])
async def test_both_spellings_of_v_are_taken_and_no_other(chain: LocalChain, v: int) -> None:
    facilitator = facilitator_of(chain)
    good = payment(chain)
    while int(good.signature[-2:], 16) % 27 != v % 27:
        good = payment(chain)
    spelled = replace(good, signature=good.signature[:-2] + f"{v:02x}")
    assert isinstance(await facilitator.settle(spelled), Settled)
    odd = payment(chain)
    refused = await facilitator.verify(replace(odd, signature=odd.signature[:-2] + "1d"))
    assert isinstance(refused, Invalid)
    await facilitator.close()


async def test_the_mirror_image_of_a_signature_is_refused(chain: LocalChain) -> None:
    """High s (EIP-2): the same key, the same message, another text."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    good = payment(chain)
    signature = bytes.fromhex(good.signature[2:])
    s, v = order - int.from_bytes(signature[32:64]), 55 - signature[64]
    mirrored = replace(good, signature="0x" + (signature[:32] + s.to_bytes(32) + bytes([v])).hex())
    facilitator = facilitator_of(chain)
    assert isinstance(await facilitator.verify(mirrored), Invalid)
    assert isinstance(await facilitator.settle(mirrored), Rejected)
    assert isinstance(await facilitator.settle(good), Settled)
    await facilitator.close()
