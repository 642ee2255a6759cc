"""The ABIs as data: our own, made from the published interfaces, fitting the canonical contracts and the local ones."""

import json
from functools import cache
from pathlib import Path
from typing import Final, Literal

from eth_typing import ABI
from eth_utils.abi import event_signature_to_log_topic

AbiName = Literal["identity", "reputation", "validation", "token"]

TRANSFER: Final = event_signature_to_log_topic("Transfer(address,address,uint256)")
"""Topic of ERC-20 and ERC-721 Transfer alike; only the latter indexes its third argument."""
APPROVAL: Final = event_signature_to_log_topic("Approval(address,address,uint256)")
APPROVAL_FOR_ALL: Final = event_signature_to_log_topic("ApprovalForAll(address,address,bool)")
"""ERC-721."""
AUTHORIZATION_USED: Final = event_signature_to_log_topic("AuthorizationUsed(address,bytes32)")
"""EIP-3009."""
REGISTERED: Final = event_signature_to_log_topic("Registered(uint256,string,address)")
METADATA_SET: Final = event_signature_to_log_topic("MetadataSet(uint256,string,string,bytes)")
VALIDATION_REQUEST: Final = event_signature_to_log_topic("ValidationRequest(address,uint256,string,bytes32)")
VALIDATION_RESPONSE: Final = event_signature_to_log_topic(
    "ValidationResponse(address,uint256,bytes32,uint8,string,bytes32,string)"
)
NEW_FEEDBACK: Final = event_signature_to_log_topic(
    "NewFeedback(uint256,address,uint64,int128,uint8,string,string,string,string,string,bytes32)"
)
FEEDBACK_REVOKED: Final = event_signature_to_log_topic("FeedbackRevoked(uint256,address,uint64)")


@cache
def load(name: AbiName) -> ABI:
    """The ABI `abi/<name>.json`: ERC-8004 contracts v2.0.0, or the reading side of ERC-20 with EIP-3009."""
    abi: ABI = json.loads((Path(__file__).parent / "abi" / f"{name}.json").read_text(encoding="utf-8"))
    return abi
