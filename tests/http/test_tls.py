"""TLS that ends inside the enclave: the buyer speaks to the attested key or says nothing."""

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.checker import ServiceChecker
from attestation.client import PURCHASE, NotAcceptedError, PayingTransport, Purchase
from attestation.policy import Policy
from attestation.tls import make_certificate, pinned_context, server_context, spki_sha256
from attestation.verdict import Status
from service.localchain.anvil import Anvil
from tests.http.conftest import Stack, buyer_of, running
from tests.http.world import DOCUMENT

pytestmark = [pytest.mark.xdist_group("http"), pytest.mark.asyncio(loop_scope="session")]

NOW = 1_790_000_000
SIMULATED = Policy(allow_simulated=True)
DEMANDING = SIMULATED.requiring_chain().requiring("channel.tls")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shop(anvil: Anvil, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A service that serves HTTPS with a key of the enclave."""
    async with running(anvil, tmp_path_factory.mktemp("tls"), tls="enclave") as stack:
        yield stack


@dataclass
class Middleman:
    """Ends TLS with a certificate of its own, passes everything on to the real service, and reads along."""

    target: int
    heard: bytearray = field(default_factory=bytearray)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target, ssl=unchecked)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, listen: bool) -> None:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while data := await source.read(65_536):
                    if listen:
                        self.heard += data
                    sink.write(data)
                    await sink.drain()
            with contextlib.suppress(ConnectionError, RuntimeError, ssl.SSLError):
                sink.close()

        await asyncio.gather(pump(reader, far_writer, listen=True), pump(far_reader, writer, listen=False))


@pytest_asyncio.fixture(loop_scope="session")
async def middleman(shop: Stack) -> AsyncIterator[tuple[Middleman, str]]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(key, host="127.0.0.1", now=NOW)
    man = Middleman(shop.service.settings.port)
    server = await asyncio.start_server(man.handle, "127.0.0.1", 0, ssl=server_context(key, certificate))
    yield man, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def purchase_of(response: httpx.Response) -> Purchase:
    found = response.extensions[PURCHASE]
    assert isinstance(found, Purchase)
    return found


async def test_a_purchase_over_the_attested_key_passes_the_channel_check(shop: Stack) -> None:
    async with httpx.AsyncClient(transport=PayingTransport(buyer_of(shop, DEMANDING)), timeout=30) as http:
        response = await http.post(f"{shop.url}/v1/summarize", json={"document": DOCUMENT})
    verdict = purchase_of(response).verdict
    assert verdict.check("channel.tls").status is Status.PASS
    assert verdict.exit_code == 0


async def test_the_document_never_reaches_a_man_in_the_middle(shop: Stack, middleman: tuple[Middleman, str]) -> None:
    man, url = middleman
    word = f"secret{secrets.token_hex(8)}"
    async with httpx.AsyncClient(transport=PayingTransport(buyer_of(shop, DEMANDING)), timeout=30) as http:
        with pytest.raises(NotAcceptedError) as refused:
            await http.post(f"{url}/v1/summarize", json={"document": f"{DOCUMENT} {word}"})
    assert refused.value.verdict.check("channel.tls").status is Status.FAIL
    assert b"/v1/aci/attestation" in man.heard, "he must have been asked who he is"
    assert b"/v1/summarize" not in man.heard
    assert word.encode() not in man.heard


async def test_consent_to_less_does_not_make_a_wrong_key_right(shop: Stack, middleman: tuple[Middleman, str]) -> None:
    _, url = middleman
    async with ServiceChecker(policy=SIMULATED) as checker:
        found = await checker.attest(httpx.URL(url))
    assert found.verdict.exit_code == 1


async def test_after_attesting_no_other_key_is_spoken_to(shop: Stack, middleman: tuple[Middleman, str]) -> None:
    """The service's address is taken over by somebody else once it has been attested."""
    man, url = middleman
    async with ServiceChecker(policy=SIMULATED) as checker:
        found = await checker.attest(httpx.URL(shop.url))
        assert found.verdict.exit_code == 0
        with pytest.raises(httpx.TransportError):
            await checker.send(httpx.Request("POST", f"{url}/v1/summarize", content=b"secret"), found.transport)
    assert b"secret" not in man.heard


async def test_a_pinned_context_trusts_exactly_one_key() -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    certificates = [make_certificate(key, host="enclave.example", now=NOW) for key in keys]
    assert spki_sha256(certificates[0]) != spki_sha256(certificates[1])
    assert handshake(keys[0], certificates[0], pinned_context(certificates[0]))
    assert not handshake(keys[1], certificates[1], pinned_context(certificates[0]))


def handshake(key: ec.EllipticCurvePrivateKey, certificate: bytes, client: ssl.SSLContext) -> bool:
    """Whether a client connects to a server with this key, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(key, certificate).wrap_bio(to_server, to_client, server_side=True)
    asking = client.wrap_bio(to_client, to_server)
    done = {"client": False, "server": False}
    for _ in range(8):
        for name, side in (("client", asking), ("server", server)):
            try:
                side.do_handshake()
                done[name] = True
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return all(done.values())


async def test_a_keyset_that_lists_a_key_is_not_to_be_had_without_tls(shop: Stack) -> None:
    async with ServiceChecker(policy=SIMULATED) as checker:
        with pytest.raises(httpx.TransportError):
            await checker.attest(httpx.URL(shop.url.replace("https:", "http:")))
