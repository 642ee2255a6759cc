"""The local registries follow the rules of the ERC-8004 contracts v2.0.0, each refusal in its own words."""

import secrets
from dataclasses import dataclass
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.contract import Contract
from web3.exceptions import ContractCustomError, ContractLogicError
from web3.logs import DISCARD

from attestation.registry.writer import agent_wallet_typed_data
from service.localchain.deploy import Deployer, LocalChain, artifact

NO_AGENT = "0x7e273289"  # ERC721NonexistentToken
HASH = b"\x07" * 32
MANY = [Account.create().address for _ in range(3)]
"""Accounts that do nothing."""


@dataclass(frozen=True)
class Stage:
    """The three registries and the accounts that act on them. Agent 0 belongs to `owner`; `operator` may act for it."""

    chain: LocalChain
    identity: Contract
    reputation: Contract
    validation: Contract
    owner: Deployer
    operator: Deployer
    stranger: Deployer

    def now(self) -> int:
        return int(self.owner.w3.eth.get_block("latest")["timestamp"])

    def consent(self, wallet_key: Any, wallet: str, deadline: int, agent_id: int = 0) -> tuple[Any, ...]:
        """The arguments of setAgentWallet, signed by the wallet's key."""
        document = agent_wallet_typed_data(
            chain_id=self.chain.chain_id,
            registry=self.chain.identity_registry,
            agent_id=agent_id,
            wallet=wallet,
            owner=self.chain.owner,
            deadline=deadline,
        )
        signed = Account.sign_message(encode_typed_data(full_message=document), wallet_key)
        return agent_id, wallet, deadline, bytes(signed.signature)


@pytest.fixture
def stage(chain: LocalChain, stranger: LocalAccount) -> Stage:
    owner = Deployer(chain.rpc, Account.from_key(chain.owner_key))

    def bound(name: str, address: str) -> Contract:
        return owner.w3.eth.contract(address=Web3.to_checksum_address(address), abi=artifact(name)["abi"])

    stage = Stage(
        chain=chain,
        identity=bound("IdentityRegistry", chain.identity_registry),
        reputation=bound("ReputationRegistry", chain.reputation_registry),
        validation=bound("ValidationRegistry", chain.validation_registry),
        owner=owner,
        operator=Deployer(chain.rpc, Account.from_key(chain.operator_key)),
        stranger=Deployer(chain.rpc, stranger),
    )
    owner.send(stage.identity.functions.register("ipfs://agent"))
    return stage


def refused(who: Deployer, call: Any, words: str) -> None:
    with pytest.raises(ContractLogicError) as caught:
        who.send(call)
    assert str(caught.value.message) == f"execution reverted: {words}"


def unknown_agent(who: Deployer, call: Any) -> None:
    with pytest.raises(ContractCustomError) as caught:
        who.send(call)
    assert str(caught.value.data).startswith(NO_AGENT)


# Identity


def test_each_way_to_register_counts_from_0_and_makes_the_caller_the_wallet(stage: Stage) -> None:
    call = stage.identity.functions
    stage.stranger.send(call.register())
    stage.stranger.send(call.register("ipfs://two", [("colour", b"blue")]))

    assert [call.ownerOf(agent).call() for agent in range(3)] == [
        stage.chain.owner,
        *[stage.stranger.account.address] * 2,
    ]
    assert [call.tokenURI(agent).call() for agent in range(3)] == ["ipfs://agent", "", "ipfs://two"]
    assert call.getAgentWallet(2).call() == stage.stranger.account.address
    assert call.getMetadata(2, "colour").call() == b"blue"
    assert call.getMetadata(2, "agentWallet").call() == bytes.fromhex(stage.stranger.account.address[2:])


def test_registering_is_told_by_events(stage: Stage) -> None:
    receipt = stage.owner.send(stage.identity.functions.register("ipfs://x", [("colour", b"blue")]))

    (registered,) = stage.identity.events.Registered().process_receipt(receipt, errors=DISCARD)
    metadata = stage.identity.events.MetadataSet().process_receipt(receipt, errors=DISCARD)
    assert dict(registered["args"]) == {"agentId": 1, "agentURI": "ipfs://x", "owner": stage.chain.owner}
    assert [(entry["args"]["metadataKey"], entry["args"]["metadataValue"]) for entry in metadata] == [
        ("agentWallet", bytes.fromhex(stage.chain.owner[2:])),
        ("colour", b"blue"),
    ]
    assert metadata[1]["args"]["indexedMetadataKey"] == Web3.keccak(text="colour")


def test_names_and_version(stage: Stage) -> None:
    call = stage.identity.functions
    assert (call.name().call(), call.symbol().call(), call.getVersion().call()) == ("AgentIdentity", "AGENT", "2.0.0")
    domain = call.eip712Domain().call()
    assert domain[1:5] == ["ERC8004IdentityRegistry", "1", stage.chain.chain_id, stage.chain.identity_registry]


def test_owner_operator_and_approved_account_may_change_an_agent_and_nobody_else(stage: Stage) -> None:
    call = stage.identity.functions
    stranger = stage.stranger.account.address
    for change in (
        call.setMetadata(0, "k", b"v"),
        call.setAgentURI(0, "ipfs://new"),
        call.unsetAgentWallet(0),
        call.setAgentWallet(*stage.consent(stage.stranger.account.key, stranger, stage.now() + 200)),
    ):
        refused(stage.stranger, change, "Not authorized")
        stage.owner.send(change)
        stage.operator.send(change)
    assert call.isAuthorizedOrOwner(stranger, 0).call() is False
    stage.owner.send(call.approve(stranger, 0))
    assert call.isAuthorizedOrOwner(stranger, 0).call() is True
    stage.stranger.send(call.setMetadata(0, "k", b"w"))


def test_the_wallets_key_is_reserved(stage: Stage) -> None:
    call = stage.identity.functions
    refused(stage.owner, call.setMetadata(0, "agentWallet", b"\x01" * 20), "reserved key")
    refused(stage.owner, call.register("ipfs://x", [("agentWallet", b"\x01" * 20)]), "reserved key")


def test_an_unknown_agent_has_no_owner_no_uri_no_wallet_but_empty_metadata(stage: Stage) -> None:
    call = stage.identity.functions
    for change in (call.setMetadata(9, "k", b"v"), call.setAgentURI(9, "x"), call.unsetAgentWallet(9)):
        unknown_agent(stage.owner, change)
    for read in (call.ownerOf(9), call.tokenURI(9), call.getAgentWallet(9), call.isAuthorizedOrOwner(MANY[0], 9)):
        with pytest.raises(ContractCustomError, match=NO_AGENT):
            read.call()
    assert call.getMetadata(9, "anything").call() == b""
    assert call.getMetadata(0, "anything").call() == b""


def test_a_wallet_must_consent_in_time(stage: Stage, stranger: LocalAccount) -> None:
    call = stage.identity.functions
    wallet, now = stranger.address, stage.now()
    zero = "0x" + "0" * 40
    refused(stage.owner, call.setAgentWallet(0, zero, now + 60, b"\x01" * 65), "bad wallet")
    refused(stage.owner, call.setAgentWallet(*stage.consent(stranger.key, wallet, now - 1)), "expired")
    refused(stage.owner, call.setAgentWallet(*stage.consent(stranger.key, wallet, now + 3_600)), "deadline too far")
    by_another = stage.consent(stage.chain.buyer_key, wallet, now + 200)
    refused(stage.owner, call.setAgentWallet(*by_another), "invalid wallet sig")
    for_another = stage.consent(stranger.key, wallet, now + 200, agent_id=1)
    refused(stage.owner, call.setAgentWallet(0, *for_another[1:]), "invalid wallet sig")
    stage.owner.send(call.setAgentWallet(*stage.consent(stranger.key, wallet, now + 200)))
    assert call.getAgentWallet(0).call() == wallet
    stage.owner.send(call.unsetAgentWallet(0))
    assert call.getAgentWallet(0).call() == zero


def test_a_contract_wallet_consents_through_erc_1271(stage: Stage, stranger: LocalAccount) -> None:
    call = stage.identity.functions
    wallet = stage.owner.deploy("KeyWallet", stranger.address).address
    deadline = stage.now() + 200
    refused(
        stage.owner, call.setAgentWallet(*stage.consent(stage.chain.buyer_key, wallet, deadline)), "invalid wallet sig"
    )
    stage.owner.send(call.setAgentWallet(*stage.consent(stranger.key, wallet, deadline)))
    assert call.getAgentWallet(0).call() == wallet


def test_a_transfer_clears_the_wallet_and_keeps_the_rest(stage: Stage) -> None:
    call = stage.identity.functions
    stage.owner.send(call.setMetadata(0, "k", b"v"))
    stage.owner.send(call.transferFrom(stage.chain.owner, stage.chain.buyer, 0))

    assert int(call.getAgentWallet(0).call(), 16) == 0
    assert call.getMetadata(0, "agentWallet").call() == b""
    assert call.getMetadata(0, "k").call() == b"v"
    refused(stage.operator, call.setMetadata(0, "k", b"w"), "Not authorized")


# Reputation


def feedback(stage: Stage, value: int = 90, decimals: int = 0, tag1: str = "quality", tag2: str = "") -> Any:
    return stage.reputation.functions.giveFeedback(0, value, decimals, tag1, tag2, "https://x", "ipfs://f", HASH)


def test_feedback_is_read_back_summed_and_told(stage: Stage) -> None:
    call, client = stage.reputation.functions, stage.stranger.account.address
    receipt = stage.stranger.send(feedback(stage, 9_977, 2, tag1="uptime"))
    stage.stranger.send(feedback(stage, 9_979, 2, tag1="uptime"))
    stage.stranger.send(feedback(stage, -5, 0, tag2="slow"))

    assert (call.getClients(0).call(), call.getLastIndex(0, client).call()) == ([client], 3)
    assert call.readFeedback(0, client, 1).call() == [9_977, 2, "uptime", "", False]
    assert call.getSummary(0, [client], "uptime", "").call() == [2, 9_978, 2]
    assert call.getSummary(0, [client], "", "slow").call() == [1, -5, 0]
    assert call.getSummary(0, [client], "", "").call() == [3, 6_485, 2]
    assert call.getSummary(0, MANY, "", "").call() == [0, 0, 0]
    (event,) = stage.reputation.events.NewFeedback().process_receipt(receipt, errors=DISCARD)
    assert event["args"]["indexedTag1"] == Web3.keccak(text="uptime")
    assert (event["args"]["feedbackIndex"], event["args"]["value"]) == (1, 9_977)
    assert call.getIdentityRegistry().call() == stage.chain.identity_registry


def test_revoked_feedback_no_longer_counts(stage: Stage) -> None:
    call, client = stage.reputation.functions, stage.stranger.account.address
    for value in (10, 90):
        stage.stranger.send(feedback(stage, value))
    stage.stranger.send(call.revokeFeedback(0, 1))

    assert call.getSummary(0, [client], "", "").call() == [1, 90, 0]
    rows = call.readAllFeedback(0, [], "", "", False).call()
    assert rows == [[client], [2], [90], [0], ["quality"], [""], [False]]
    assert call.readAllFeedback(0, [client], "quality", "", True).call()[6] == [True, False]
    refused(stage.stranger, call.revokeFeedback(0, 1), "Already revoked")


def test_feedback_refusals(stage: Stage) -> None:
    call, client = stage.reputation.functions, stage.stranger.account.address
    refused(stage.owner, feedback(stage), "Self-feedback not allowed")
    refused(stage.operator, feedback(stage), "Self-feedback not allowed")
    refused(stage.stranger, feedback(stage, decimals=19), "too many decimals")
    refused(stage.stranger, feedback(stage, value=10**38 + 1), "value too large")
    refused(stage.stranger, feedback(stage, value=-(10**38) - 1), "value too large")
    unknown_agent(stage.stranger, call.giveFeedback(9, 1, 0, "", "", "", "", HASH))
    stage.stranger.send(feedback(stage))
    refused(stage.stranger, call.revokeFeedback(0, 0), "index must be > 0")
    refused(stage.stranger, call.revokeFeedback(0, 2), "index out of bounds")
    refused(stage.owner, call.appendResponse(0, client, 1, "", HASH), "Empty URI")
    refused(stage.owner, call.appendResponse(0, client, 0, "ipfs://r", HASH), "index must be > 0")
    refused(stage.owner, call.appendResponse(0, client, 2, "ipfs://r", HASH), "index out of bounds")
    with pytest.raises(ContractLogicError, match="clientAddresses required"):
        call.getSummary(0, [], "", "").call()
    with pytest.raises(ContractLogicError, match="index out of bounds"):
        call.readFeedback(0, client, 2).call()


def test_the_agents_wallet_can_still_rate_it(stage: Stage) -> None:
    # The published contracts allow it; who reads ratings must know.
    wallet = stage.stranger.account
    arguments = stage.consent(wallet.key, wallet.address, stage.now() + 200)
    stage.owner.send(stage.identity.functions.setAgentWallet(*arguments))
    stage.stranger.send(feedback(stage))


def test_responses_are_counted_by_rating_client_and_responder(stage: Stage) -> None:
    call, client, owner = stage.reputation.functions, stage.stranger.account.address, stage.chain.owner
    for _ in range(2):
        stage.stranger.send(feedback(stage))
    for index in (1, 1, 2):
        stage.owner.send(call.appendResponse(0, client, index, "ipfs://r", HASH))
    stage.operator.send(call.appendResponse(0, client, 2, "ipfs://r", HASH))

    zero = "0x" + "0" * 40
    assert call.getResponseCount(0, client, 1, []).call() == 2
    assert call.getResponseCount(0, client, 0, []).call() == 4
    assert call.getResponseCount(0, zero, 0, [owner]).call() == 3


# Validation


def test_a_validation_is_asked_answered_and_summed(stage: Stage) -> None:
    call, validator = stage.validation.functions, stage.stranger.account.address
    request, pending = secrets.token_bytes(32), secrets.token_bytes(32)
    stage.operator.send(call.validationRequest(validator, 0, "ipfs://q", request))
    stage.owner.send(call.validationRequest(validator, 0, "ipfs://q", pending))
    assert call.getValidationStatus(request).call()[:5] == [validator, 0, 0, b"\0" * 32, ""]

    stage.stranger.send(call.validationResponse(request, 40, "ipfs://a", HASH, "tee"))
    stage.stranger.send(call.validationResponse(request, 100, "ipfs://b", HASH, "tee"))

    assert call.getValidationStatus(request).call()[:5] == [validator, 0, 100, HASH, "tee"]
    assert call.getSummary(0, [], "").call() == [1, 100]  # the pending one does not drag it down
    assert call.getSummary(0, [validator], "tee").call() == [1, 100]
    assert call.getSummary(0, MANY, "").call() == [0, 0]
    assert call.getSummary(0, [], "other").call() == [0, 0]
    assert call.getAgentValidations(0).call() == [request, pending]
    assert call.getValidatorRequests(validator).call() == [request, pending]


def test_validation_refusals(stage: Stage) -> None:
    call, validator = stage.validation.functions, stage.stranger.account.address
    refused(stage.owner, call.validationRequest("0x" + "0" * 40, 0, "", HASH), "bad validator")
    refused(stage.stranger, call.validationRequest(validator, 0, "", HASH), "Not authorized")
    unknown_agent(stage.owner, call.validationRequest(validator, 9, "", HASH))
    refused(stage.stranger, call.validationResponse(HASH, 50, "", HASH, ""), "unknown")
    with pytest.raises(ContractLogicError, match="unknown"):
        call.getValidationStatus(HASH).call()
    stage.owner.send(call.validationRequest(validator, 0, "", HASH))
    refused(stage.owner, call.validationRequest(validator, 0, "", HASH), "exists")
    refused(stage.owner, call.validationResponse(HASH, 50, "", HASH, ""), "not validator")
    refused(stage.stranger, call.validationResponse(HASH, 101, "", HASH, ""), "resp>100")


def test_a_request_hash_is_one_key_for_everybody(stage: Stage) -> None:
    stage.stranger.send(stage.identity.functions.register())  # the stranger's own agent, 1
    call = stage.validation.functions
    stage.stranger.send(call.validationRequest(MANY[0], 1, "", HASH))
    refused(stage.owner, call.validationRequest(MANY[0], 0, "", HASH), "exists")
