"""Requests and answers as the chain has them: pending is not zero, the latest answer counts, nobody hides others."""

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.signers.local import LocalAccount

from attestation.fetch import data_content
from attestation.publishing import content_hash
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import NoContractError, RegistryError, RevertedError
from attestation.registry.rpc import checksum
from attestation.registry.sender import Sender
from attestation.registry.validation import ValidationReader, ValidationWriter
from attestation.registry.writer import IdentityWriter
from attestation.validation import (
    KeyInQuestion,
    Standing,
    build_request,
    inline_key,
    request_validation,
    standing,
)
from service.localchain.deploy import Deployer, LocalChain
from tests.chain import agent_of

HASH = "0x" + "07" * 32


@pytest_asyncio.fixture
async def identity(chain: LocalChain) -> AsyncIterator[IdentityReader]:
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as reader:
        yield reader


@pytest_asyncio.fixture
async def reader(chain: LocalChain, identity: IdentityReader) -> ValidationReader:
    """The registry, and agent 0 of the owner."""
    await IdentityWriter(identity, Account.from_key(chain.owner_key)).register("https://agent.example/")
    return ValidationReader(identity, chain.validation_registry)


@pytest.fixture
def asking(chain: LocalChain, reader: ValidationReader, identity: IdentityReader) -> ValidationWriter:
    return ValidationWriter(reader, Sender(identity.chain, Account.from_key(chain.operator_key)))


@pytest.fixture
def answering(reader: ValidationReader, identity: IdentityReader, stranger: LocalAccount) -> ValidationWriter:
    return ValidationWriter(reader, Sender(identity.chain, stranger))


def key_of(chain: LocalChain, keyset: str = "22") -> KeyInQuestion:
    return KeyInQuestion(
        agent=agent_of(chain),
        keyset_digest="sha256:" + keyset * 32,
        payment_key="0x" + "aa" * 20,
        key_slot="tee.key.main",
        endpoint="https://agent.example",
    )


async def test_pending_is_told_from_zero_and_the_latest_answer_counts(
    reader: ValidationReader, asking: ValidationWriter, answering: ValidationWriter
) -> None:
    us = answering.sender.address
    for uri, request_hash in (("data:,a", HASH), ("data:,b", "0x" + "08" * 32)):
        await asking.request(us, 0, uri, request_hash)
    first, second = await reader.of_agent(0)
    assert (first.request.uri, first.request.request_hash, first.request.validator) == ("data:,a", HASH, us)
    assert first.answer is None
    assert second.answer is None

    await answering.respond(HASH, 0, "data:,e", HASH, "tdx")
    first, second = await reader.of_agent(0)
    assert first.answer is not None
    assert (first.answer.response, first.answer.tag, first.answer.uri) == (0, "tdx", "data:,e")
    assert second.answer is None

    await answering.respond(HASH, 100, "data:,f", HASH, "tdx")
    first, _ = await reader.of_agent(0)
    assert first.answer is not None
    assert first.answer.response == 100
    assert standing([first, second], {us}) == Standing(passed=1, failed=0, pending=1, simulated=0)
    assert standing([first, second], {asking.sender.address}) == Standing(0, 0, 0, 0)


async def test_a_simulated_answer_never_counts_as_passed(
    reader: ValidationReader, asking: ValidationWriter, answering: ValidationWriter
) -> None:
    us = answering.sender.address
    await asking.request(us, 0, "data:,a", HASH)
    await answering.respond(HASH, 100, "data:,e", HASH, "simulated")
    assert standing(await reader.of_agent(0), {us}) == Standing(passed=0, failed=0, pending=0, simulated=1)


async def test_only_the_named_validator_is_listened_to(
    reader: ValidationReader, asking: ValidationWriter, answering: ValidationWriter
) -> None:
    await asking.request("0x" + "99" * 20, 0, "data:,a", HASH)
    with pytest.raises(RevertedError, match="only the named validator may answer"):
        await answering.respond(HASH, 100, "data:,e", HASH, "tdx")
    with pytest.raises(RevertedError, match="no validation request has this hash"):
        await answering.respond("0x" + "55" * 32, 100, "data:,e", HASH, "tdx")
    with pytest.raises(RevertedError, match="neither the agent's owner nor an operator"):
        await answering.request("0x" + "99" * 20, 0, "data:,a", "0x" + "66" * 32)


async def test_bytes_that_are_no_text_do_not_hide_other_requests(
    chain: LocalChain, reader: ValidationReader, asking: ValidationWriter
) -> None:
    validator = "0x" + "99" * 20
    contract = await reader.contract()
    call = contract.encode_abi("validationRequest", [checksum(validator), 0, "XXXX", b"\x09" * 32])
    owner = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    raw = bytes.fromhex(call[2:]).replace(b"XXXX", b"\xff\xfe\x00\x80")
    account = owner.account
    signed = account.sign_transaction(
        {
            "to": contract.address,
            "data": raw,
            "gas": 500_000,
            "gasPrice": 10**10,
            "nonce": owner.w3.eth.get_transaction_count(account.address),
            "chainId": chain.chain_id,
        }
    )
    receipt = owner.w3.eth.wait_for_transaction_receipt(owner.w3.eth.send_raw_transaction(signed.raw_transaction))
    assert receipt["status"] == 1
    await asking.request(validator, 0, "data:,b", HASH)

    found = await reader.requests(validator=validator)

    assert [one.request_hash for one in found] == ["0x" + "09" * 32, HASH]
    assert "�" in found[0].uri


async def test_a_chain_without_the_registry_says_so_and_other_answers_are_errors(
    chain: LocalChain, identity: IdentityReader, stranger: LocalAccount
) -> None:
    absent = ValidationReader(identity, stranger.address)
    assert not await absent.deployed()
    with pytest.raises(NoContractError):
        await absent.of_agent(0)
    other = Deployer(chain.rpc, Account.from_key(chain.owner_key))
    foreign = other.deploy("ValidationRegistry", other.deploy("IdentityRegistry").address)
    with pytest.raises(RegistryError, match="is about the agents of"):
        await ValidationReader(identity, foreign.address).deployed()
    with pytest.raises(RegistryError):
        await ValidationReader(identity, chain.token).deployed()


async def test_a_key_is_asked_about_once_per_validator(
    chain: LocalChain, reader: ValidationReader, asking: ValidationWriter, stranger: LocalAccount
) -> None:
    first = await request_validation(asking, stranger.address, key_of(chain))
    again = await request_validation(asking, stranger.address, key_of(chain))
    assert again.request_hash == first.request_hash
    assert again.transaction is None

    other_key = await request_validation(asking, stranger.address, key_of(chain, "33"))
    other_validator = await request_validation(asking, "0x" + "99" * 20, key_of(chain))
    assert len({first.request_hash, other_key.request_hash, other_validator.request_hash}) == 3
    found = await reader.requests(validator=stranger.address)
    assert [inline_key(one) for one in found] == [key_of(chain), key_of(chain, "33")]
    document = data_content(found[0].uri, max_bytes=10_000)
    assert content_hash(document) == found[0].request_hash


async def test_a_request_hash_that_was_taken_first_is_replaced_by_another(
    chain: LocalChain, reader: ValidationReader, asking: ValidationWriter, stranger: LocalAccount
) -> None:
    salts = [secrets.token_hex(32) for _ in range(3)]
    taken = content_hash(build_request(key_of(chain), salt=salts[0]))
    thief = IdentityWriter(reader.identity, stranger)
    mine = (await thief.register("https://thief.example/")).agent_id
    front = ValidationWriter(reader, thief.sender)
    await front.request("0x" + "99" * 20, mine, "data:,mine", taken)

    asked = await request_validation(asking, "0x" + "99" * 20, key_of(chain), salt=iter(salts).__next__)

    assert asked.request_hash == content_hash(build_request(key_of(chain), salt=salts[1]))
    assert [one.request_hash for one in await reader.requests(agent_id=0)] == [asked.request_hash]


async def test_a_request_that_is_always_taken_first_ends_in_a_sentence(
    chain: LocalChain, reader: ValidationReader, asking: ValidationWriter, stranger: LocalAccount
) -> None:
    salt = secrets.token_hex(32)
    thief = IdentityWriter(reader.identity, stranger)
    mine = (await thief.register("https://thief.example/")).agent_id
    taken = content_hash(build_request(key_of(chain), salt=salt))
    await ValidationWriter(reader, thief.sender).request("0x" + "99" * 20, mine, "data:,mine", taken)

    with pytest.raises(RevertedError, match="this request hash was taken before"):
        await request_validation(asking, "0x" + "99" * 20, key_of(chain), salt=lambda: salt)
