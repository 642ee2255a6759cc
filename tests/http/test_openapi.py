"""The OpenAPI document is true: whatever a program makes of it, no answer is a 500, undocumented or of another form."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.http.openapi import PAYMENT_REQUIRED
from tests.http.conftest import Stack
from tests.http.world import distinct_body

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]


async def test_no_request_made_from_the_document_gets_a_500_or_an_undocumented_answer(
    stack: Stack, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{stack.url}/openapi.json", "--checks", "all", "--max-examples", "25", "--seed", "1"),
        # A document that is too short for a summary is refused, and no schema can say so.
        *("--exclude-checks", "positive_data_acceptance"),
        *("--request-timeout", "20", "--workers", "1", "--generation-database", "none", "--no-color"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def test_every_operation_documents_its_errors_and_the_signature_of_its_answers(stack: Stack) -> None:
    document = (await stack.caller.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                assert "Signature" in response["headers"], (path, status)
            assert "500" in operation["responses"], path


async def test_the_documented_402_is_the_one_that_is_sent(stack: Stack) -> None:
    document = (await stack.caller.get("/openapi.json")).json()
    documented = document["paths"]["/v1/summarize"]["post"]["responses"]["402"]
    assert documented["content"]["application/json"]["schema"] == PAYMENT_REQUIRED
    response = await stack.caller.ask(distinct_body("documented"))
    for name, header in documented["headers"].items():
        assert name in response.headers, name
        jsonschema.validate(response.headers[name], header["schema"])
    jsonschema.validate(response.json(), PAYMENT_REQUIRED, cls=jsonschema.Draft202012Validator)


async def test_the_documented_answer_is_the_one_that_is_sold(stack: Stack) -> None:
    document = (await stack.caller.get("/openapi.json")).json()
    documented = document["paths"]["/v1/summarize"]["post"]["responses"]["200"]
    answer = await stack.caller.buy(distinct_body("documented too"))
    assert answer.status_code == 200, answer.text
    assert [name for name, header in documented["headers"].items() if name not in answer.headers] == []
    name = documented["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema = {"$defs": document["components"]["schemas"], "$ref": f"#/$defs/{name}"}
    jsonschema.validate(answer.json(), resolved(schema))


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema with its references inside itself."""
    text = json.dumps(schema).replace("#/components/schemas/", "#/$defs/")
    inside: dict[str, Any] = json.loads(text)
    return inside
