"""Our ABIs are the published interface: every selector, topic, indexed argument and result type."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from eth_utils.abi import (
    abi_to_signature,
    event_signature_to_log_topic,
    function_signature_to_4byte_selector,
)
from eth_utils.crypto import keccak

from attestation.registry import abi
from attestation.registry.abi import AbiName

ARTIFACTS = Path(__file__).parents[2] / "service" / "localchain" / "artifacts"
CONTRACTS = {
    "identity": "IdentityRegistry",
    "reputation": "ReputationRegistry",
    "validation": "ValidationRegistry",
    "token": "UsdToken",
}

# Signatures as published (ERC-8004 contracts v2.0.0, ERC-721, ERC-20, EIP-3009); "i:" marks indexed arguments.
FUNCTIONS: dict[AbiName, list[str]] = {
    "identity": [
        "register()",
        "register(string)",
        "register(string,(string,bytes)[])",
        "setAgentURI(uint256,string)",
        "tokenURI(uint256)",
        "getMetadata(uint256,string)",
        "setMetadata(uint256,string,bytes)",
        "getAgentWallet(uint256)",
        "setAgentWallet(uint256,address,uint256,bytes)",
        "unsetAgentWallet(uint256)",
        "isAuthorizedOrOwner(address,uint256)",
        "getVersion()",
        "eip712Domain()",
        "ownerOf(uint256)",
        "balanceOf(address)",
        "getApproved(uint256)",
        "isApprovedForAll(address,address)",
        "approve(address,uint256)",
        "setApprovalForAll(address,bool)",
        "transferFrom(address,address,uint256)",
        "safeTransferFrom(address,address,uint256)",
        "name()",
        "symbol()",
        "supportsInterface(bytes4)",
    ],
    "reputation": [
        "giveFeedback(uint256,int128,uint8,string,string,string,string,bytes32)",
        "revokeFeedback(uint256,uint64)",
        "appendResponse(uint256,address,uint64,string,bytes32)",
        "getSummary(uint256,address[],string,string)",
        "readFeedback(uint256,address,uint64)",
        "readAllFeedback(uint256,address[],string,string,bool)",
        "getClients(uint256)",
        "getLastIndex(uint256,address)",
        "getIdentityRegistry()",
        "getVersion()",
    ],
    "validation": [
        "validationRequest(address,uint256,string,bytes32)",
        "validationResponse(bytes32,uint8,string,bytes32,string)",
        "getValidationStatus(bytes32)",
        "getSummary(uint256,address[],string)",
        "getAgentValidations(uint256)",
        "getValidatorRequests(address)",
        "getIdentityRegistry()",
        "getVersion()",
    ],
    "token": [
        "balanceOf(address)",
        "decimals()",
        "name()",
        "symbol()",
        "version()",
        "DOMAIN_SEPARATOR()",
        "authorizationState(address,bytes32)",
    ],
}
EVENTS: dict[AbiName, list[str]] = {
    "identity": [
        "Registered(i:uint256,string,i:address)",
        "MetadataSet(i:uint256,i:string,string,bytes)",
        "URIUpdated(i:uint256,string,i:address)",
        "Transfer(i:address,i:address,i:uint256)",
        "Approval(i:address,i:address,i:uint256)",
        "ApprovalForAll(i:address,i:address,bool)",
    ],
    "reputation": [
        "NewFeedback(i:uint256,i:address,uint64,int128,uint8,i:string,string,string,string,string,bytes32)",
    ],
    "validation": [
        "ValidationRequest(i:address,i:uint256,string,i:bytes32)",
        "ValidationResponse(i:address,i:uint256,i:bytes32,uint8,string,bytes32,string)",
    ],
    "token": [
        "Transfer(i:address,i:address,uint256)",
        "AuthorizationUsed(i:address,i:bytes32)",
        "AuthorizationCanceled(i:address,i:bytes32)",
    ],
}
NAMES = pytest.mark.parametrize("name", get_args(AbiName))


def entries(name: AbiName, kind: str) -> list[Any]:
    return [entry for entry in abi.load(name) if entry["type"] == kind]


def shape(entry: Any) -> tuple[Any, ...]:
    """All of an entry that decides how its bytes are written and read."""
    return (
        entry["type"],
        abi_to_signature(entry),
        tuple(argument.get("indexed", False) for argument in entry["inputs"]),
        tuple(_type(result) for result in entry.get("outputs", ())),
    )


def _type(argument: Any) -> str:
    inner = ",".join(_type(part) for part in argument.get("components", ()))
    return f"({inner}){argument['type'].removeprefix('tuple')}" if inner else str(argument["type"])


@NAMES
def test_every_function_has_the_selector_of_its_published_signature(name: AbiName) -> None:
    published = {keccak(text=signature)[:4] for signature in FUNCTIONS[name]}
    ours = [function_signature_to_4byte_selector(abi_to_signature(entry)) for entry in entries(name, "function")]
    assert set(ours) == published
    assert len(ours) == len(FUNCTIONS[name])


@NAMES
def test_every_event_has_the_topic_and_the_indexed_arguments_of_its_published_signature(name: AbiName) -> None:
    published = {
        (keccak(text=signature.replace("i:", "")), tuple("i:" in part for part in signature.split(",")))
        for signature in EVENTS[name]
    }
    ours = {
        (
            event_signature_to_log_topic(abi_to_signature(entry)),
            tuple(argument["indexed"] for argument in entry["inputs"]),
        )
        for entry in entries(name, "event")
    }
    assert ours == published


@NAMES
def test_the_local_contracts_speak_every_word_of_it(name: AbiName) -> None:
    compiled = json.loads((ARTIFACTS / f"{CONTRACTS[name]}.json").read_text())["abi"]
    local = {shape(entry) for entry in compiled if entry["type"] in ("function", "event")}
    assert {shape(entry) for entry in abi.load(name)} <= local


def test_well_known_selectors_and_topics() -> None:
    """Values known from elsewhere, so that the tests above cannot agree with themselves alone."""
    by_name = {entry["name"]: shape(entry)[1] for entry in entries("identity", "function")}
    assert function_signature_to_4byte_selector(by_name["ownerOf"]).hex() == "6352211e"
    assert function_signature_to_4byte_selector(by_name["tokenURI"]).hex() == "c87b56dd"
    assert function_signature_to_4byte_selector(by_name["setApprovalForAll"]).hex() == "a22cb465"
    assert abi.TRANSFER.hex() == "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    assert abi.AUTHORIZATION_USED.hex() == "98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
    assert keccak(text="Registered(uint256,string,address)") == abi.REGISTERED
    assert keccak(text="MetadataSet(uint256,string,string,bytes)") == abi.METADATA_SET
