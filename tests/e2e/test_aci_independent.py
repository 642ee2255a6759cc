"""A verifier of aci/1 that shares no code with ours (tests/e2e/js/aci.mjs) judges a real purchase."""

import base64
import copy
import json
import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Bought, RunScript
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]

Case = dict[str, Any]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture(scope="module")
def case(bought: Bought) -> Case:
    """The purchase as this verifier wants it."""
    bundle = bought.document
    return {
        "report": json.loads(bundle["attestation"]["response"]["body"]),
        "nonce": bundle["attestation"]["request"]["url"].partition("nonce=")[2],
        "now": int(time.time()),
        "receipt": bundle["receipt"],
        "request": b64(bundle["answer"]["request"]["body"]),
        "response": b64(bundle["answer"]["response"]["body"]),
    }


def flipped(text: str, position: int = 0) -> str:
    """The text with one character changed into another that fits there."""
    other = "1" if text[position] == "0" else "0"
    return text[:position] + other + text[position + 1 :]


def one_byte(encoded: str, position: int) -> str:
    data = bytearray(base64.b64decode(encoded))
    data[position] ^= 1
    return base64.b64encode(data).decode()


def changed(case: Case, *path: str | int, to: Any) -> Case:
    result = copy.deepcopy(case)
    at = result
    for step in path[:-1]:
        at = at[step]  # type: ignore[index]
    at[path[-1]] = to  # type: ignore[index]
    return result


def test_it_accepts_keyset_binding_and_receipt(case: Case, javascript: RunScript) -> None:
    assert javascript("aci.mjs", [case]) == [{"accepted": True}]


def test_it_rejects_one_changed_byte_wherever_that_is(case: Case, javascript: RunScript) -> None:
    keyset = case["report"]["attestation"]["workload_keyset"]
    evidence = case["report"]["attestation"]["evidence"]
    report = ("report", "attestation")
    changes = {
        "nonce": changed(case, "nonce", to=flipped(case["nonce"])),
        "keyset digest": changed(
            case, "report", "workload_keyset_digest", to=flipped(case["report"]["workload_keyset_digest"], 7)
        ),
        "report_data": changed(case, *report, "report_data", to=flipped(case["report"]["attestation"]["report_data"])),
        "subject": changed(case, *report, "workload_keyset", "subject", to=flipped(keyset["subject"], -1)),
        "not_after": changed(case, *report, "workload_keyset", "not_after", to=keyset["not_after"] + 1),
        "evidence slot": changed(
            case, *report, "evidence", "quote", "report_data", to=flipped(evidence["quote"]["report_data"], 127)
        ),
        "evidence time": changed(
            case, *report, "evidence", "quote", "issued_at", to=evidence["quote"]["issued_at"] + 1
        ),
        "evidence signature": changed(case, *report, "evidence", "signature", to=flipped(evidence["signature"])),
        "receipt signature": changed(case, "receipt", "signature", to=flipped(case["receipt"]["signature"])),
        "receipt key": changed(case, "receipt", "key_id", to="http"),
        "receipt time": changed(case, "receipt", "served_at", to=case["receipt"]["served_at"] + 1),
        "request": changed(case, "request", to=one_byte(case["request"], 20)),
        "response": changed(case, "response", to=one_byte(case["response"], 20)),
        "expired": changed(case, "now", to=keyset["not_after"]),
    }
    for index, key in enumerate(keyset["receipt_signing_keys"]):
        changes[f"public key {key['key_id']}"] = changed(
            case, *report, "workload_keyset", "receipt_signing_keys", index, "public_key", to=flipped(key["public_key"])
        )
    for index, event in enumerate(case["receipt"]["event_log"]):
        for name, value in event.items():
            if name != "type":
                to = value + 1 if isinstance(value, int) else flipped(value, -1)
                changes[f"event {event['type']} {name}"] = changed(case, "receipt", "event_log", index, name, to=to)
    verdicts = javascript("aci.mjs", list(changes.values()))
    accepted = [name for name, verdict in zip(changes, verdicts, strict=True) if verdict["accepted"]]
    assert accepted == []


def test_it_finds_the_same_receipt_by_receipt_id_and_by_answer_id(
    case: Case, stack: Stack, javascript: RunScript
) -> None:
    for identifier in (case["receipt"]["receipt_id"], case["receipt"]["chat_id"]):
        served = httpx.get(f"{stack.dev.url}/v1/aci/receipts/{identifier}").json()
        assert javascript("aci.mjs", [changed(case, "receipt", to=served)]) == [{"accepted": True}]


def test_the_headers_of_aci_are_on_every_response(stack: Stack, case: Case) -> None:
    for path in ("/healthz", "/nothing-here", "/v1/aci/attestation?nonce=short", "/v1/summarize"):
        headers = httpx.get(stack.dev.url + path).headers
        assert headers["x-aci-version"] == "aci/1"
        assert headers["x-aci-keyset-digest"] == case["report"]["workload_keyset_digest"]


def test_a_report_without_a_nonce_proves_binding_and_no_freshness(
    case: Case, stack: Stack, javascript: RunScript
) -> None:
    served = httpx.get(f"{stack.dev.url}/v1/aci/attestation").json()
    [verdict] = javascript("aci.mjs", [changed(case, "report", to=served)])
    assert verdict == {"accepted": False, "problem": "report: report_data"}


@pytest.mark.parametrize("nonce", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 63 + "\n", "０" * 64])
def test_a_nonce_that_is_not_64_lower_case_hex_is_a_400(stack: Stack, nonce: str) -> None:
    answer = httpx.get(f"{stack.dev.url}/v1/aci/attestation", params={"nonce": nonce})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_two_nonces_are_not_taken_for_one(stack: Stack) -> None:
    answer = httpx.get(f"{stack.dev.url}/v1/aci/attestation?nonce={'0' * 64}&nonce={'1' * 64}")
    assert answer.status_code == 400
