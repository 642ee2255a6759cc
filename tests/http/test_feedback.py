"""Ratings of a service that really sells: only those with a payment of their own are paid, and the others say why."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from web3 import Web3

from attestation.bundle import Bundle
from attestation.client import PURCHASE, Buyer, PayingTransport
from attestation.digest import jcs
from attestation.enclave.keyring import KeyRing
from attestation.feedback import MAX_FEEDBACK_BYTES, Score, build_feedback
from attestation.feedback_check import CheckedRating, FeedbackChecker, summarize
from attestation.fetch import FetchLimits, data_uri, fetch
from attestation.payment_proof import Offer, PaymentReceipt, sign_offer, sign_payment_receipt
from attestation.policy import Policy
from attestation.publishing import content_hash
from attestation.purchase import parse_settlement
from attestation.registry import view
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.payments import PaymentReader
from attestation.registry.records import KeyRecord, encode_key
from attestation.registry.reputation import ReputationReader, ReputationWriter
from attestation.registry.sender import Sender
from attestation.registry.writer import IdentityWriter, agent_wallet_typed_data
from attestation.spending import Asset, SpendingLimit
from service.localchain.deploy import Deployer, artifact
from tests.chain import authorize
from tests.http.conftest import Stack, running
from tests.http.world import DOCUMENT, SUMMARIZE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

TOLLSEAL = str(Path(sys.executable).with_name("tollseal"))
NO_HASH = "0x" + "00" * 32
NOW = 1_790_000_000


@dataclass
class Market:
    """A service of its own with agent 0, and everybody who rates it."""

    stack: Stack
    identity: IdentityReader
    reputation: ReputationReader
    payments: PaymentReader
    owner: Deployer

    async def customer(self) -> LocalAccount:
        """Somebody new with dollars and gas."""
        account: LocalAccount = Account.create()
        await asyncio.to_thread(self._fund, account)
        return account

    def _fund(self, account: LocalAccount) -> None:
        self.owner.fund(account.address)
        self.owner.send(self.token.functions.mint(account.address, 10**6))

    @property
    def token(self) -> Any:
        address = Web3.to_checksum_address(self.stack.chain.token)
        return self.owner.w3.eth.contract(address=address, abi=artifact("UsdToken")["abi"])

    async def buy(self, account: LocalAccount) -> Bundle:
        chain = self.stack.chain
        buyer = Buyer(
            account=account,
            limit=SpendingLimit("0.05", (Asset(f"eip155:{chain.chain_id}", chain.token.lower()),)),
            policy=Policy(allow_simulated=True).requiring_chain(),
            chain=view.ChainReader(chain.rpc),
        )
        async with httpx.AsyncClient(transport=PayingTransport(buyer), timeout=60) as http:
            response = await http.post(self.stack.url + SUMMARIZE, json={"document": f"{DOCUMENT} {account.address}"})
        bundle: Bundle = response.extensions[PURCHASE].bundle
        return bundle

    async def pay(self, payer: LocalAccount, pay_to: str, token: Any = None) -> str:
        """A payment without a service: an EIP-3009 transfer of 5 units; gives its transaction."""
        chain = self.stack.chain if token is None else replace(self.stack.chain, token=token.address)
        signed = authorize(chain, "0x" + bytes(payer.key).hex(), payer=payer.address, pay_to=pay_to, amount=5)
        contract = self.token if token is None else token
        call = contract.get_function_by_signature(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
        )(*signed.arguments())
        receipt = await asyncio.to_thread(self.owner.send, call)
        return str(receipt["transactionHash"].to_0x_hex())

    async def rate(
        self, account: LocalAccount, document: bytes | None, *, value: int = 90, decimals: int = 0, tag: str = "",
        uri: str | None = None, content: str | None = None, agent_id: int = 0,
    ) -> None:  # fmt: skip
        held = document or b""
        await ReputationWriter(self.reputation, Sender(self.identity.chain, account)).give(
            agent_id,
            value,
            decimals,
            tags=(tag, ""),
            endpoint="",
            uri=uri if uri is not None else (data_uri(held) if document is not None else ""),
            content_hash=content or (content_hash(held) if document is not None else NO_HASH),
        )

    def proof(self, account: LocalAccount, transaction: str, pay_to: str, **changes: Any) -> bytes:
        """A feedback file as other tools write it: ERC-8004's fields and no more."""
        chain = self.stack.chain
        return jcs(
            {
                "agentRegistry": f"eip155:{chain.chain_id}:{chain.identity_registry.lower()}",
                "agentId": 0,
                "clientAddress": f"eip155:{chain.chain_id}:{account.address}",
                "createdAt": "2026-09-21T00:00:00Z",
                "value": 90,
                "valueDecimals": 0,
                "proofOfPayment": {
                    "fromAddress": account.address,
                    "toAddress": pay_to,
                    "chainId": str(chain.chain_id),
                    "txHash": transaction,
                },
                **changes,
            }
        )

    async def checked(self, account: LocalAccount, *, agent_id: int = 0, **how: Any) -> list[CheckedRating]:
        chain = self.stack.chain
        limits = FetchLimits(max_bytes=MAX_FEEDBACK_BYTES)
        checker = FeedbackChecker(
            self.reputation,
            how.pop("payments", {chain.chain_id: self.payments}),
            how.pop("assets", {(chain.chain_id, chain.token.lower())}),
            lambda uri: fetch(uri, limits),
            **how,
        )
        found = await checker.check(agent_id)
        return [one for one in found if one.rating.client == account.address.lower()]

    async def only(self, account: LocalAccount, **how: Any) -> tuple[bool, str]:
        (one,) = await self.checked(account, **how)
        return one.paid, one.reason

    async def set_wallet(self, wallet: LocalAccount) -> None:
        """Makes it the agent's wallet, with its consent."""
        chain = self.stack.chain
        block = await asyncio.to_thread(self.owner.w3.eth.get_block, "latest")
        deadline = int(block["timestamp"]) + 200
        document = agent_wallet_typed_data(
            chain_id=chain.chain_id,
            registry=chain.identity_registry,
            agent_id=0,
            wallet=wallet.address,
            owner=chain.owner,
            deadline=deadline,
        )
        signature = bytes(wallet.sign_message(encode_typed_data(full_message=document)).signature)
        writer = IdentityWriter(self.identity, Account.from_key(chain.owner_key))
        await writer.set_agent_wallet(0, wallet.address, deadline, signature)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def market(anvil: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Market]:
    async with running(anvil, tmp_path_factory.mktemp("market")) as stack:
        chain = stack.chain
        owner = await asyncio.to_thread(Deployer, chain.rpc, Account.from_key(chain.owner_key))
        async with (
            IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as identity,
            PaymentReader(chain.rpc, chain.chain_id) as payments,
        ):
            reputation = ReputationReader(identity, chain.reputation_registry)
            yield Market(stack, identity, reputation, payments, owner)


def feedback_of(bundle: Bundle, value: int = 90, **changes: Any) -> bytes:
    document = json.loads(build_feedback(bundle, Score(value, 0), tags=("", ""), now=NOW))
    return jcs({**document, **changes})


async def test_a_customers_rating_is_paid_and_a_second_one_for_the_same_payment_is_not(market: Market) -> None:
    customer = await market.customer()
    bundle = await market.buy(customer)
    await market.rate(customer, feedback_of(bundle))
    await market.rate(customer, feedback_of(bundle))

    first, second = await market.checked(customer)

    assert first.paid, first.reason
    assert first.payment is not None
    assert (first.payment.amount, first.payment.pay_to) == (10_000, market.stack.chain.pay_to.lower())
    assert first.transaction == parse_settlement(bundle.answer).transaction
    assert not second.paid
    assert second.reason == f"the same payment was used for rating 1 of {customer.address.lower()}"


async def test_two_payments_are_two_paid_ratings(market: Market) -> None:
    customer = await market.customer()
    for value in (90, 40):
        await market.rate(customer, feedback_of(await market.buy(customer), value), value=value)
    assert [one.paid for one in await market.checked(customer)] == [True, True]


async def test_a_revoked_rating_counts_nowhere_and_sets_its_payment_free(market: Market) -> None:
    customer = await market.customer()
    bundle = await market.buy(customer)
    await market.rate(customer, feedback_of(bundle, 10), value=10)
    await ReputationWriter(market.reputation, Sender(market.identity.chain, customer)).revoke(0, 1)
    await market.rate(customer, feedback_of(bundle, 80), value=80)

    first, second = await market.checked(customer)

    assert (first.paid, first.reason) == (False, "revoked by the client")
    assert second.paid, second.reason
    assert summarize([first, second]).all.count == 1


async def test_a_rating_without_a_proof_is_unpaid(market: Market) -> None:
    customer = await market.customer()
    await market.rate(customer, None)
    assert await market.only(customer) == (False, "it names no feedback file, so no payment")
    other = await market.customer()
    document = json.loads(market.proof(other, "0x" + "11" * 32, market.stack.chain.pay_to))
    del document["proofOfPayment"]
    await market.rate(other, jcs(document))
    assert await market.only(other) == (False, "its feedback file holds no proof of payment")


async def test_somebody_elses_payment_does_not_count(market: Market) -> None:
    customer, thief = await market.customer(), await market.customer()
    bundle = await market.buy(customer)
    await market.rate(customer, feedback_of(bundle))
    stolen = json.loads(feedback_of(bundle))
    await market.rate(thief, jcs(stolen))
    mine = {**stolen, "clientAddress": f"eip155:84532:{thief.address.lower()}"}
    mine["proofOfPayment"] = {**mine["proofOfPayment"], "fromAddress": thief.address.lower()}
    await market.rate(thief, jcs(mine))

    copied, adapted = await market.checked(thief)

    assert (copied.paid, copied.reason) == (False, f"its feedback file is by {customer.address.lower()}")
    assert not adapted.paid
    assert adapted.reason == f"the client paid nothing in its transaction; {customer.address.lower()} did"
    assert (await market.only(customer))[0]


async def test_a_payment_to_somebody_else_does_not_count(market: Market) -> None:
    customer, friend = await market.customer(), await market.customer()
    transaction = await market.pay(customer, friend.address)
    await market.rate(customer, market.proof(customer, transaction, friend.address))
    paid, reason = await market.only(customer)
    assert not paid
    assert "was neither the agent's wallet nor where the agent had itself paid" in reason
    other = await market.customer()
    transaction = await market.pay(other, friend.address)
    await market.rate(other, market.proof(other, transaction, market.stack.chain.pay_to))
    assert "does not pay" in (await market.only(other))[1]


async def test_paying_the_service_past_its_terms_does_not_count(market: Market) -> None:
    # pay_to alone is not on the chain: without the agent's signature nobody can tell whose it is.
    customer = await market.customer()
    pay_to = market.stack.chain.pay_to
    await market.rate(customer, market.proof(customer, await market.pay(customer, pay_to), pay_to))
    assert not (await market.only(customer))[0]


async def test_a_self_made_receipt_does_not_count(market: Market) -> None:
    customer = await market.customer()
    bundle = await market.buy(customer)
    document = json.loads(feedback_of(bundle))
    payload = document["x402"]["receipt"]["payload"]
    forged = sign_payment_receipt(
        PaymentReceipt(
            payload["network"], payload["resourceUrl"], payload["payer"], payload["issuedAt"], payload["transaction"]
        ),
        KeyRing.generate(),
    )
    await market.rate(customer, jcs({**document, "x402": {**document["x402"], "receipt": forged}}))
    assert not (await market.only(customer))[0]


async def test_a_token_that_anybody_can_print_does_not_count(market: Market) -> None:
    customer = await market.customer()
    owner = market.owner
    play = await asyncio.to_thread(owner.deploy, "UsdToken")
    await asyncio.to_thread(owner.send, play.functions.mint(customer.address, 1_000))
    wallet = await market.customer()
    await market.set_wallet(wallet)
    transaction = await market.pay(customer, wallet.address, play)
    await market.rate(customer, market.proof(customer, transaction, wallet.address))
    assert "which is not an accepted one" in (await market.only(customer))[1]


async def test_a_payment_to_the_agents_wallet_counts_while_it_is_the_wallet(market: Market) -> None:
    old, new, before, after = [await market.customer() for _ in range(4)]
    await market.set_wallet(old)
    first = await market.pay(before, old.address)
    await market.set_wallet(new)
    late = await market.pay(after, old.address)
    await market.rate(before, market.proof(before, first, old.address))
    await market.rate(after, market.proof(after, late, old.address))

    assert (await market.only(before))[0]
    assert not (await market.only(after))[0]


async def test_a_rating_that_came_before_its_payment_does_not_count(market: Market) -> None:
    customer = await market.customer()
    bundle = await market.buy(customer)
    document = feedback_of(bundle)
    await market.rate(customer, document)
    (one,) = await market.checked(customer)
    early = replace(one.rating, position=replace(one.rating.position, block=1))

    class Earlier(ReputationReader):
        async def ratings(self, agent_id: int, *, client: str | None = None) -> Any:
            return (early,)

    reader = Earlier(market.identity, market.reputation.address)
    (found,) = await replace(market, reputation=reader).checked(customer)
    assert (found.paid, found.reason) == (False, "it was given before it was paid for")


async def test_the_agents_own_accounts_do_not_count(market: Market) -> None:
    wallet, operator = await market.customer(), await market.customer()
    await market.set_wallet(wallet)
    await market.rate(wallet, feedback_of(await market.buy(wallet)))
    paid, reason = await market.only(wallet)
    assert not paid
    assert "an account of the agent itself" in reason
    # The wallet that was one once, too.
    await market.set_wallet(await market.customer())
    assert not (await market.only(wallet))[0]
    # Who was an operator until just before rating.
    approving = IdentityWriter(market.identity, Account.from_key(market.stack.chain.owner_key))
    await approving.set_operator(operator.address, approved=True)
    await approving.set_operator(operator.address, approved=False)
    await market.rate(operator, feedback_of(await market.buy(operator)))
    assert "allowed to act for the agent" in (await market.only(operator))[1]


async def test_the_agent_cannot_unmake_a_rating_by_approving_its_author_afterwards(market: Market) -> None:
    critic = await market.customer()
    await market.rate(critic, feedback_of(await market.buy(critic), 1), value=1)
    approving = IdentityWriter(market.identity, Account.from_key(market.stack.chain.owner_key))
    await approving.set_operator(critic.address, approved=True)
    assert (await market.only(critic))[0]
    await approving.set_operator(critic.address, approved=False)


async def test_paying_oneself_does_not_count(market: Market) -> None:
    customer = await market.customer()
    transaction = await market.pay(customer, customer.address)
    await market.rate(customer, market.proof(customer, transaction, customer.address))
    assert await market.only(customer) == (False, "the client paid themselves")
    assert not (await market.only(customer, own={customer.address.lower()}))[0]


async def test_the_file_must_be_the_one_that_was_rated_with_and_say_the_same(market: Market) -> None:
    bundle = await market.buy(await market.customer())
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"content": "0x" + "12" * 32}, "does not have the hash"),
        ({"agentId": 1}, {}, "is about agent"),
        ({"agentRegistry": "eip155:1:0x" + "12" * 20}, {}, "is about agent"),
        ({"clientAddress": 7}, {}, "feedback.clientAddress"),
        ({"proofOfPayment": {"txHash": "0x12"}}, {}, "feedback.proofOfPayment"),
        ({}, {"uri": "https://127.0.0.1/x"}, "not on the public internet"),
        ({}, {"uri": "ipfs://bafy"}, "only https and data URIs"),
    ]
    for changes, how, words in cases:
        customer = await market.customer()
        await market.rate(customer, feedback_of(bundle, **changes), **how)
        paid, reason = await market.only(customer)
        assert not paid
        assert words in reason, reason
    customer = await market.customer()
    await market.rate(customer, feedback_of(await market.buy(customer), 91), value=90)
    assert "says 91, the rating 90" in (await market.only(customer))[1]


async def test_a_file_that_is_too_large_is_not_read(market: Market) -> None:
    customer = await market.customer()
    await market.rate(customer, b"{}")

    async def large(_: str) -> bytes:
        return b" " * (MAX_FEEDBACK_BYTES + 1)

    chain = market.stack.chain
    checker = FeedbackChecker(market.reputation, {chain.chain_id: market.payments}, (), large)
    mine = [one for one in await checker.check(0) if one.rating.client == customer.address.lower()]
    assert [one.reason for one in mine] == ["its feedback file is larger than 65536 bytes"]


async def test_an_unknown_transaction_and_a_chain_that_was_not_asked_are_said(market: Market) -> None:
    customer, other = await market.customer(), await market.customer()
    pay_to = market.stack.chain.pay_to
    await market.rate(customer, market.proof(customer, "0x" + "ab" * 32, pay_to))
    assert "has no successful transaction" in (await market.only(customer))[1]
    proof = json.loads(market.proof(other, "0x" + "ab" * 32, pay_to))
    proof["proofOfPayment"]["chainId"] = "8453"
    await market.rate(other, jcs(proof))
    assert "no node of that chain was named" in (await market.only(other))[1]


async def test_both_numbers_stand_side_by_side_and_are_exact(market: Market) -> None:
    stack = market.stack
    registrar = await market.customer()
    agent_id = (await IdentityWriter(market.identity, registrar).register("https://two.example/")).agent_id
    wallet = registrar.address  # whoever registers is the wallet
    payer, shill = await market.customer(), await market.customer()
    for value, decimals in ((9_977, 2), (-5, 1)):
        proof = json.loads(market.proof(payer, await market.pay(payer, wallet), wallet))
        proof |= {"agentId": agent_id, "value": value, "valueDecimals": decimals}
        await market.rate(payer, jcs(proof), value=value, decimals=decimals, tag="quality", agent_id=agent_id)
    for _ in range(3):
        await market.rate(shill, None, value=100, agent_id=agent_id)
    ratings = [
        *await market.checked(payer, agent_id=agent_id),
        *await market.checked(shill, agent_id=agent_id),
    ]

    found = summarize(ratings)

    assert (found.all.count, found.all.total, found.all.mean) == (5, "399.27", "79.854")
    assert (found.paid.count, found.paid.total, found.paid.mean) == (2, "99.27", "49.635")
    assert summarize(ratings, tag="quality").all.count == 2
    assert summarize([]).paid.mean is None
    assert stack.chain.chain_id == 84532


async def test_rating_from_the_command_line(market: Market, tmp_path: Path) -> None:
    chain = market.stack.chain
    customer, thief = await market.customer(), await market.customer()
    bundle = tmp_path / "bundle.json"
    bundle.write_text((await market.buy(customer)).dumps())
    agent = f"{chain.chain_id}:{chain.identity_registry}:0"
    where = ("--rpc", chain.rpc, "--reputation-registry", chain.reputation_registry)

    async def tollseal(*arguments: str, key: LocalAccount = customer) -> tuple[int, Any]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLSEAL_")}
        done = await asyncio.create_subprocess_exec(
            TOLLSEAL, "feedback", *arguments, *where, "--json",
            env={**clean, "TOLLSEAL_BUYER_KEY": "0x" + bytes(key.key).hex()}, cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(done.communicate(), 60)
        assert b"Traceback" not in err
        return done.returncode or 0, json.loads(out)

    give = ("give", str(bundle), "--score", "87.5", "--tag", "quality")
    code, refused = await tollseal(*give, key=thief)
    assert code == 1
    assert "the rating would not count" in refused["error"]
    assert (await tollseal(*give, "--dry-run"))[1]["transaction"] is None
    code, given = await tollseal(*give)
    assert code == 0
    assert (given["score"], given["dry_run"]) == ("87.5", False)
    code, again = await tollseal(*give)
    assert code == 1
    assert "was used for rating 1 already (87.5)" in again["error"]
    money = ("--asset", f"eip155:{chain.chain_id}:{chain.token}")
    _, listed = await tollseal("list", agent, *money)
    mine = [one for one in listed["ratings"] if one["client"] == customer.address.lower()]
    assert [(one["value"], one["tag1"], one["paid"], one["amount"]) for one in mine] == [
        ("87.5", "quality", True, "10000")
    ]
    _, shown = await tollseal("summary", agent, *money, "--tag", "quality")
    assert (shown["all"]["count"], shown["paid"]["mean"]) == (1, "87.5")
    assert (await tollseal("revoke", agent, "1"))[0] == 0
    _, shown = await tollseal("summary", agent, *money, "--tag", "quality")
    assert shown["all"]["count"] == 0


async def test_a_sold_agents_old_key_vouches_for_nothing_that_came_after_the_sale(market: Market) -> None:
    seller, heir, before, after = [await market.customer() for _ in range(4)]
    keys, shop = KeyRing.generate(), Account.create().address
    writing = IdentityWriter(market.identity, seller)
    agent_id = (await writing.register("https://sold.example/")).agent_id
    record = KeyRecord(keys.payment_address, "sha256:" + "11" * 32, NOW + 10**6)
    await writing.set_metadata(agent_id, "tee.key.main", encode_key(record))

    async def buy_and_rate(customer: LocalAccount, signer: KeyRing = keys) -> None:
        chain = market.stack.chain
        transaction = await market.pay(customer, shop)
        (payment,) = await market.payments.transfers(transaction) or ()
        network, url = f"eip155:{chain.chain_id}", "https://sold.example/v1/summarize"
        offer = Offer(url, "exact", network, chain.token, shop, "5", NOW)
        receipt = PaymentReceipt(network, url, customer.address, NOW, transaction)
        x402 = {
            "nonce": payment.nonce,
            "offer": sign_offer(offer, signer, accept_index=0),
            "receipt": sign_payment_receipt(receipt, signer),
            "keySlot": "tee.key.main",
        }
        await market.rate(
            customer, market.proof(customer, transaction, shop, agentId=agent_id, x402=x402), agent_id=agent_id
        )

    await buy_and_rate(before)
    await writing.transfer(agent_id, heir.address)
    await buy_and_rate(after)
    stranger = await market.customer()
    await buy_and_rate(stranger, KeyRing.generate())

    assert (await market.only(before, agent_id=agent_id))[0]
    assert not (await market.only(after, agent_id=agent_id))[0]
    assert not (await market.only(stranger, agent_id=agent_id))[0]
