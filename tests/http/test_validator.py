"""The validator against a running service on a real chain: what scores, what does not, and that it answers once."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from eth_account import Account
from eth_account.signers.local import LocalAccount
from web3 import HTTPProvider, Web3

from attestation.client import PURCHASE, PayingTransport
from attestation.errors import MalformedError
from attestation.fetch import data_content, data_uri
from attestation.onchain import AgentOnChain, ChainView, PaymentOnChain, Record
from attestation.policy import Policy
from attestation.publishing import Publisher, content_hash
from attestation.registry.erc8004 import IdentityReader
from attestation.registry.errors import NonceTakenError
from attestation.registry.sender import Sender
from attestation.registry.validation import Request, ValidationReader, ValidationWriter
from attestation.registry.view import ChainReader
from attestation.registry.writer import IdentityWriter
from attestation.validation import KeyInQuestion, build_request, draw_salt, inline_key, request_validation
from attestation.validator import Journal, Round, Status, Validator
from attestation.validator_judge import Judge
from service.localchain.anvil import Anvil
from service.localchain.deploy import Deployer, LocalChain
from service.validation import ValidationRequests
from tests.e2e.stack import until
from tests.http.conftest import Stack, buyer_of, running
from tests.http.fakes import Clock
from tests.http.world import DOCUMENT, SUMMARIZE

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

TOLLSEAL = str(Path(sys.executable).with_name("tollseal"))


@dataclass
class Bench:
    """A validator of its own, and an agent's owner who can ask it."""

    stack: Stack
    account: LocalAccount
    asking: ValidationWriter
    reader: ValidationReader
    directory: Path
    clock: Clock

    @property
    def address(self) -> str:
        return str(self.account.address).lower()

    @property
    def key(self) -> KeyInQuestion:
        service = self.stack.service
        return KeyInQuestion(
            agent=service.identity.registered_agent,
            keyset_digest=service.identity.keyset.digest,
            payment_key=service.keyholder.current.keys.payment_address,
            key_slot=service.keyholder.current.key_slot,
            endpoint=self.stack.url,
        )

    def validator(self, *, allow_simulated: bool = True, allow_private: bool = True, **more: Any) -> Validator:
        """A newly started validator process would be one like this."""
        chain = self.stack.chain
        judge = Judge(
            Policy(allow_simulated=allow_simulated),
            more.pop("chain", None) or ChainReader(chain.rpc),
            more.pop("chain_id", chain.chain_id),
            allow_private=allow_private,
        )
        writer = ValidationWriter(self.reader, Sender(self.reader.chain, self.account))
        journal = Journal.read(self.directory / "journal.json", f"{self.reader.address}:{self.address}")
        more.setdefault("publisher", Publisher())
        return Validator(writer, judge, journal=journal, clock=self.clock, **more)

    async def ask(self, document: bytes, uri: str | None = None, *, agent_id: int = 0) -> str:
        request_hash = content_hash(document)
        await self.asking.request(self.address, agent_id, data_uri(document) if uri is None else uri, request_hash)
        return request_hash

    async def answers(self) -> int:
        """How many answers this validator has ever sent."""
        found = Deployer(self.stack.chain.rpc, self.account).w3.eth.get_transaction_count(self.account.address)
        return int(found)

    async def score(self, request_hash: str) -> tuple[int, str] | None:
        answer = await self.reader.answer(self.address, request_hash)
        return None if answer is None else (answer.response, answer.tag)

    def settings(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLSEAL_")}
        return {**clean, "TOLLSEAL_VALIDATOR_KEY": "0x" + bytes(self.account.key).hex()}

    def command(self, *more: str) -> list[str]:
        chain = self.stack.chain
        return [
            *(TOLLSEAL, "validator", "--rpc", chain.rpc, "--network", f"eip155:{chain.chain_id}"),
            *("--registry", chain.identity_registry, "--validation-registry", chain.validation_registry),
            *("--journal", str(self.directory / "process.json"), "--allow-simulated", "--allow-private", *more),
        ]

    async def process(self, *more: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.command(*more),
            env=self.settings(),
            cwd=self.directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *more: str) -> tuple[int, str, str]:
        process = await self.process(*more)
        out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode or 0, out.decode(), err.decode()


@pytest_asyncio.fixture(loop_scope="session")
async def bench(stack: Stack, tmp_path: Path) -> AsyncIterator[Bench]:
    chain = stack.chain
    account: LocalAccount = Account.create()
    Deployer(chain.rpc, account).fund(account.address)
    async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as identity:
        reader = ValidationReader(identity, chain.validation_registry)
        asking = ValidationWriter(reader, Sender(identity.chain, Account.from_key(chain.owner_key)))
        yield Bench(stack, account, asking, reader, tmp_path, Clock())


@asynccontextmanager
async def host(answer: Callable[[], Awaitable[bytes]]) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Where a requester keeps its document; the event is set when somebody asks for it."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            body = await answer()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # who asked has gone
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/request.json", asked


def only(found: Round) -> tuple[Status, int | None, str]:
    (outcome,) = found.outcomes
    return outcome.status, outcome.response, outcome.tag


async def test_a_simulated_service_scores_100_only_where_allowed_and_never_as_hardware(bench: Bench) -> None:
    asked = await request_validation(bench.asking, bench.address, bench.key)
    assert only(await bench.validator().round()) == (Status.ANSWERED, 100, "simulated")
    assert await bench.score(asked.request_hash) == (100, "simulated")


async def test_without_permission_a_simulated_service_scores_0_as_simulated(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)
    assert only(await bench.validator(allow_simulated=False).round()) == (Status.ANSWERED, 0, "simulated")


async def test_where_money_has_value_permission_does_not_help_a_simulated_service(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)
    assert only(await bench.validator(chain_id=8453).round()) == (Status.ANSWERED, 0, "simulated")


async def test_the_answer_carries_evidence_whose_hash_is_on_the_chain(bench: Bench) -> None:
    asked = await request_validation(bench.asking, bench.address, bench.key)
    await bench.validator().round()
    answer = await bench.reader.answer(bench.address, asked.request_hash)
    assert answer is not None
    content = data_content(answer.uri, max_bytes=10_000)
    assert content_hash(content) == answer.content_hash
    document = json.loads(content)
    assert document["request_hash"] == asked.request_hash
    assert document["agent"] == str(bench.key.agent)
    assert document["keyset_digest"] == bench.key.keyset_digest
    assert (document["response"], document["tag"], document["verdict"]) == (100, "simulated", "SIMULATED")
    assert document["checks"]["evidence.genuine"] == "pass"


async def test_evidence_kept_in_a_directory_holds_what_the_verdict_rests_on(bench: Bench) -> None:
    asked = await request_validation(bench.asking, bench.address, bench.key)
    publisher = Publisher((bench.directory / "evidence", "https://validator.example/evidence/"))
    await bench.validator(publisher=publisher).round()
    answer = await bench.reader.answer(bench.address, asked.request_hash)
    assert answer is not None
    (file,) = (bench.directory / "evidence").iterdir()
    assert answer.uri == f"https://validator.example/evidence/{file.name}"
    assert content_hash(file.read_bytes()) == answer.content_hash
    exchanges = json.loads(file.read_bytes())["exchanges"]
    assert set(exchanges) == {"attestation", "manifest", "nonce"}


async def test_a_bundle_is_judged_as_a_whole(bench: Bench) -> None:
    stack = bench.stack
    buyer = buyer_of(stack, Policy(allow_simulated=True).requiring_chain())
    async with httpx.AsyncClient(transport=PayingTransport(buyer), timeout=60) as http:
        response = await http.post(stack.url + SUMMARIZE, json={"document": f"{DOCUMENT} {draw_salt()}"})
    bundle = response.extensions[PURCHASE].bundle.to_json()
    key = replace(bench.key, endpoint=None, bundle=bundle)
    good = build_request(key, salt=draw_salt())
    changed = json.loads(json.dumps(bundle))
    changed["receipt"]["served_at"] += 1
    bad = build_request(replace(key, bundle=changed), salt=draw_salt())
    documents = iter([good, bad])

    async def answer() -> bytes:
        return next(documents)

    async with host(answer) as (uri, _):
        hashes = [await bench.ask(document, uri) for document in (good, bad)]
        found = await bench.validator().round()
    assert [(one.status, one.response) for one in found.outcomes] == [(Status.ANSWERED, 100), (Status.ANSWERED, 0)]
    assert "receipt.signature" in found.outcomes[1].reason
    assert [await bench.score(one) for one in hashes] == [(100, "simulated"), (0, "simulated")]


async def test_a_bundle_that_is_too_large_for_the_chain_is_not_put_there(bench: Bench) -> None:
    with pytest.raises(MalformedError, match="name a URI for it"):
        await request_validation(
            bench.asking, bench.address, replace(bench.key, endpoint=None, bundle={"x": "y" * 5_000})
        )


async def test_what_the_uri_holds_must_have_the_requests_hash(bench: Bench) -> None:
    document = build_request(bench.key, salt=draw_salt())
    await bench.ask(document, data_uri(document + b" "))
    found = await bench.validator().round()
    assert only(found) == (Status.ANSWERED, 0, "unproven")
    assert "does not have the request's hash" in found.outcomes[0].reason


async def test_a_front_runners_copy_of_a_request_scores_0_for_the_front_runner(bench: Bench) -> None:
    chain = bench.stack.chain
    thief: LocalAccount = Account.create()
    Deployer(chain.rpc, thief).fund(thief.address)
    stealing = IdentityWriter(bench.reader.identity, thief)
    agent_id = (await stealing.register("https://thief.example/")).agent_id
    document = build_request(bench.key, salt=draw_salt())
    front = ValidationWriter(bench.reader, stealing.sender)
    await front.request(bench.address, agent_id, data_uri(document), content_hash(document))

    asked = await request_validation(bench.asking, bench.address, bench.key)
    found = await bench.validator().round()

    scores = {one.agent_id: (one.response, one.tag) for one in found.outcomes}
    assert scores == {agent_id: (0, "unproven"), bench.key.agent.agent_id: (100, "simulated")}
    assert await bench.score(asked.request_hash) == (100, "simulated")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"not json", "must be JSON"),
        (b"[" * 5_000, "must be JSON|nested"),
        (b'{"format":"tollseal.validation-request/2"}', "request"),
    ],
)
async def test_what_is_no_request_scores_0_with_the_reason(bench: Bench, document: bytes, words: str) -> None:
    await bench.ask(document + b" " * int.from_bytes(os.urandom(1)))
    (outcome,) = (await bench.validator().round()).outcomes
    assert (outcome.status, outcome.response, outcome.tag) == (Status.ANSWERED, 0, "unproven")
    assert any(word in outcome.reason for word in words.split("|"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"payment_key": "0x" + "12" * 20}, "payment key"),
        ({"key_slot": "tee.key.other"}, "tee.key.main"),
    ],
)
async def test_a_request_must_name_the_key_that_the_service_proves(
    bench: Bench, changes: dict[str, Any], words: str
) -> None:
    await bench.ask(build_request(replace(bench.key, **changes), salt=draw_salt()))
    found = await bench.validator().round()
    assert only(found)[1] == 0
    assert words in found.outcomes[0].reason


@pytest.mark.parametrize(
    ("changes", "allow_private"),
    [
        ({"endpoint": "http://127.0.0.1:9"}, True),
        ({}, False),
        ({"endpoint": "http://169.254.169.254"}, True),
        ({"endpoint": "file:///etc/passwd"}, True),
        ({"endpoint": "gibberish"}, True),
        ({"keyset_digest": "sha256:" + "11" * 32}, True),
    ],
    ids=["nobody answers", "private address", "cloud metadata", "file", "no URL", "another replica's key"],
)
async def test_what_cannot_be_decided_stays_pending_and_is_tried_again_later(
    bench: Bench, changes: dict[str, Any], allow_private: bool
) -> None:
    request_hash = await bench.ask(build_request(replace(bench.key, **changes), salt=draw_salt()))

    async def restarted() -> Round:
        return await bench.validator(allow_private=allow_private).round()

    assert only(await restarted())[:2] == (Status.UNDECIDED, None)
    assert (await restarted()).outcomes == ()
    bench.clock.now += 31
    tries = [only(await restarted())]
    for _ in range(8):
        bench.clock.now += 3_601
        tries.append(only(await restarted()))
    assert [status for status, _, _ in tries] == [Status.UNDECIDED] * 8 + [Status.GIVEN_UP]
    bench.clock.now += 100_000
    assert (await bench.validator().round()).outcomes == ()
    assert await bench.score(request_hash) is None


async def test_a_chain_that_cannot_be_read_is_no_reason_to_call_a_key_bad(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)
    found = await bench.validator(chain=ChainReader("http://127.0.0.1:9")).round()
    assert only(found)[:2] == (Status.UNDECIDED, None)
    assert "registry.key" in found.outcomes[0].reason


async def test_a_key_that_the_chain_does_not_list_scores_0(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)

    class Other:
        async def view(self, *_: object) -> ChainView:
            record = Record(b"", by_owner=True, block_number=1)
            agent = AgentOnChain("0x" + "00" * 20, (record,), (record,), 1)
            return ChainView(agent=agent, payment=PaymentOnChain(confirmed=True, detail=""))

    found = await bench.validator(chain=Other()).round()
    assert only(found) == (Status.ANSWERED, 0, "simulated")
    assert "registry.key" in found.outcomes[0].reason


async def test_a_mistake_of_ours_is_not_scored(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)

    class Broken:
        async def view(self, *_: object) -> ChainView:
            raise RuntimeError("a bug")

    found = await bench.validator(chain=Broken()).round()
    assert only(found)[:2] == (Status.UNDECIDED, None)
    assert "a bug" not in found.outcomes[0].reason


async def test_a_dry_run_says_what_it_would_do_and_sends_nothing(bench: Bench) -> None:
    asked = await request_validation(bench.asking, bench.address, bench.key)
    (outcome,) = (await bench.validator().round(dry_run=True)).outcomes
    assert (outcome.status, outcome.response) == (Status.WOULD_ANSWER, 100)
    assert outcome.planned is not None
    assert outcome.planned.gas > 50_000
    assert await bench.score(asked.request_hash) is None
    assert not (bench.directory / "journal.json").exists()
    assert only(await bench.validator().round())[0] is Status.ANSWERED


async def test_only_chosen_agents_cost_gas(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)
    assert (await bench.validator(agents=[77]).round()).outcomes == ()
    assert only(await bench.validator(agents=[0]).round())[0] is Status.ANSWERED


async def test_a_request_waits_for_its_confirmations(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)
    assert (await bench.validator(confirmations=3).round()).outcomes == ()
    Deployer(bench.stack.chain.rpc, bench.account).anvil("anvil_mine", "0x2")
    assert only(await bench.validator(confirmations=3).round())[0] is Status.ANSWERED


async def test_a_request_is_answered_once_whatever_became_of_the_journal(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)
    await bench.validator().round()
    (bench.directory / "journal.json").unlink()
    assert (await bench.validator().round()).outcomes == ()
    assert (await bench.validator().round()).outcomes == ()
    assert await bench.answers() == 1


async def test_two_validators_with_one_account_answer_once(bench: Bench) -> None:
    await request_validation(bench.asking, bench.address, bench.key)
    elsewhere = Publisher((bench.directory / "evidence", "https://validator.example/evidence"))
    rounds = await asyncio.gather(
        bench.validator().round(), bench.validator(publisher=elsewhere).round(), return_exceptions=True
    )
    done = [one.outcomes for one in rounds if isinstance(one, Round)]
    assert sum(map(len, done)) == 1
    assert all(isinstance(one, Round | NonceTakenError) for one in rounds)
    assert await bench.answers() == 1


async def test_a_journal_of_another_validator_is_refused(bench: Bench) -> None:
    await bench.validator().round()
    with pytest.raises(MalformedError, match="is not a validator's journal about"):
        Journal.read(bench.directory / "journal.json", "another")


async def test_killed_between_seeing_and_answering_it_answers_once_after_a_restart(bench: Bench) -> None:
    document = build_request(bench.key, salt=draw_salt())
    go_on = asyncio.Event()

    async def answer() -> bytes:
        await go_on.wait()
        return document

    async with host(answer) as (uri, asked):
        request_hash = await bench.ask(document, uri)
        process = await bench.process("--every", "1")
        await asyncio.wait_for(asked.wait(), 60)
        process.kill()
        await process.communicate()
        assert await bench.score(request_hash) is None
        go_on.set()
        first, second = [await bench.run("--once", "--json") for _ in range(2)]
    assert [one["status"] for one in json.loads(first[1])["requests"]] == ["answered"]
    assert json.loads(second[1])["requests"] == []
    assert await bench.score(request_hash) == (100, "simulated")
    assert await bench.answers() == 1


async def test_killed_between_sending_and_seeing_it_mined_it_does_not_send_again(bench: Bench) -> None:
    deployer = Deployer(bench.stack.chain.rpc, bench.account)
    request_hash = await bench.ask(build_request(bench.key, salt=draw_salt()))
    await asyncio.to_thread(deployer.anvil, "evm_setAutomine", False)
    try:
        process = await bench.process("--every", "1")
        count = deployer.w3.eth.get_transaction_count
        await asyncio.to_thread(until, lambda: count(bench.account.address, "pending") == 1, "the answer")
        process.kill()
        await process.communicate()
        again = await bench.process("--once", "--json")
        # It must wait for what it sent in its former life; so that it does, the block comes only when it asks.
        assert again.stderr is not None
        await asyncio.wait_for(again.stderr.readline(), 60)
        await asyncio.to_thread(deployer.anvil, "evm_mine")
        out, _ = await asyncio.wait_for(again.communicate(), 60)
    finally:
        await asyncio.to_thread(deployer.anvil, "evm_setAutomine", True)
    assert again.returncode == 0
    assert json.loads(out)["requests"] == []
    assert await bench.score(request_hash) == (100, "simulated")
    assert await bench.answers() == 1


async def test_a_running_validator_answers_what_comes_and_ends_cleanly_on_a_signal(bench: Bench) -> None:
    process = await bench.process("--every", "1", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    assert b"watching for requests" in await asyncio.wait_for(process.stderr.readline(), 60)
    asked = await request_validation(bench.asking, bench.address, bench.key)
    line = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    assert (line["request_hash"], line["status"], line["response"]) == (asked.request_hash, "answered", 100)
    process.terminate()
    await process.communicate()
    assert process.returncode == 0


async def test_a_chain_without_the_registry_is_normal(bench: Bench) -> None:
    process = [*bench.command("--once")]
    process[process.index("--validation-registry") + 1] = "0x" + "77" * 20
    done = await asyncio.create_subprocess_exec(
        *process, env=bench.settings(), cwd=bench.directory, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(done.communicate(), 60)
    assert done.returncode == 0
    assert f"chain {bench.stack.chain.chain_id} has no validation registry at 0x7777" in out.decode()


async def test_asking_and_reading_from_the_command_line(bench: Bench) -> None:
    chain = bench.stack.chain
    operator = {**bench.settings(), "TOLLSEAL_AGENT_KEY": chain.operator_key}
    registry = ["--rpc", chain.rpc, "--validation-registry", chain.validation_registry]

    async def tollseal(*arguments: str) -> Any:
        done = await asyncio.create_subprocess_exec(
            TOLLSEAL, "validation", *arguments, *registry, "--json",
            env=operator, cwd=bench.directory, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(done.communicate(), 60)
        assert done.returncode == 0, out
        return json.loads(out)

    ask = ("request", "--validator", bench.address, "--url", bench.stack.url)
    planned = await tollseal(*ask, "--dry-run")
    assert planned["dry_run"] is True
    assert planned["gas"] > 100_000
    asked = await tollseal(*ask)
    assert asked["transaction"] is not None
    assert (await tollseal(*ask))["transaction"] is None
    agent = str(bench.key.agent)
    mine = [one for one in (await tollseal("list", agent))["validations"] if one["validator"] == bench.address]
    assert [(one["response"], one["trusted"], one["keyset_digest"]) for one in mine] == [
        (None, False, bench.key.keyset_digest)
    ]
    assert (await bench.run("--once"))[0] == 0
    shown = await tollseal("list", agent, "--trust", bench.address)
    assert shown["standing"] == {"passed": 0, "failed": 0, "pending": 0, "simulated": 1}
    mine = [one for one in shown["validations"] if one["trusted"]]
    assert [(one["response"], one["tag"]) for one in mine] == [(100, "simulated")]


async def test_a_request_of_another_shape_is_undecided_while_its_host_is_away(bench: Bench) -> None:
    request = Request(bench.address, 0, "https://127.0.0.1/x", "0x" + "00" * 32, (await _somewhere(bench)))
    judge = Judge(Policy(), ChainReader(bench.stack.chain.rpc), 84532)
    judgement = await judge.judge(request, bench.reader.identity.registry_id)
    assert judgement.response is None
    assert "not on the public internet" in judgement.reason


async def _somewhere(bench: Bench) -> Any:
    await bench.ask(build_request(bench.key, salt=draw_salt()))
    return (await bench.reader.requests(validator=bench.address))[-1].position


def asked_for(chain: LocalChain) -> int:
    """How many requests the chain's validation registry has ever got."""
    registry = Web3.to_checksum_address(chain.validation_registry)
    return len(Web3(HTTPProvider(chain.rpc)).eth.get_logs({"address": registry, "fromBlock": 0}))


async def test_a_service_asks_about_each_of_its_keys_once(anvil: Anvil, tmp_path: Path) -> None:
    validators = ["0x" + "d1" * 20, "0x" + "D2" * 20]
    async with running(anvil, tmp_path, ask_validators=validators) as stack:
        chain, service = stack.chain, stack.service
        async with IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry) as identity:
            reader = ValidationReader(identity, chain.validation_registry)
            await asyncio.to_thread(until, lambda: asked_for(chain) == 2, "both requests")
            found = await reader.requests(agent_id=0)
            assert [one.validator for one in found] == [one.lower() for one in validators]
            keys = [inline_key(one) for one in found]
            assert {key.keyset_digest for key in keys if key} == {service.identity.keyset.digest}
            asking = ValidationRequests(
                validators,
                service.keyholder,
                endpoint=stack.url,
                address=chain.validation_registry,
                registry=lambda: IdentityReader(chain.rpc, chain.chain_id, chain.identity_registry),
                operator=Account.from_key(chain.operator_key),
                exclusive=nullcontext,
            )
            assert await asking.once()
            assert len(await reader.requests(agent_id=0)) == 2, "another start with the same keys asks nobody again"


async def test_a_service_that_cannot_ask_goes_on(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    chain = stack.chain

    def asking(rpc: str, address: str) -> ValidationRequests:
        return ValidationRequests(
            ["0x" + "d1" * 20],
            stack.service.keyholder,
            endpoint=stack.url,
            address=address,
            registry=lambda: IdentityReader(rpc, chain.chain_id, chain.identity_registry, timeout=1),
            operator=Account.from_key(chain.operator_key),
            exclusive=nullcontext,
        )

    assert not await asking("http://127.0.0.1:9", chain.validation_registry).once()
    assert "a validation could not be asked for" in caplog.text
    assert "127.0.0.1:9" not in caplog.text
    assert await asking(chain.rpc, "0x" + "77" * 20).once(), "a chain without the registry is normal"
