"""Oasis ROFL: an enclave that the chain vouches for, through the app daemon `rofl-appd` on a Unix socket.

There is no endpoint for quotes. The digest of the report data is published in the metadata of this replica's on-chain
registration, and the evidence says where it stands; see `attestation.evidence.rofl`. Source: docs.oasis.io, appd REST
API; oasisprotocol/oasis-sdk, rofl-appd.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import cbor2

from attestation import encoding
from attestation.digest import digest
from attestation.enclave.dstack import LocalDaemon
from attestation.errors import EnclaveError, MalformedError
from attestation.evidence.rofl import KEY_PREFIX, METADATA_NAMESPACE, NOTICE, TEE_TYPE, app_id_bytes
from attestation.keyset import REPORT_DATA_BYTES

_METADATA: Final = "/rofl/v1/metadata"
TIMEOUT_SECONDS: Final = 70.0
"""The daemon gives a transaction 60 seconds."""
CONFIRM_SECONDS: Final = 90.0
"""How long a new registration may take to appear on chain: a few blocks of about six seconds, and room for a retry."""
POLL_SECONDS: Final = 3.0
SLOTS: Final = 16
"""Digests that stand on chain at a time, the latest ones. An instance may publish 54 pairs; others may need some."""


class RoflEnclave:
    """Publishes digests through `rofl-appd`. Chosen by a URI such as ``rofl:///run/rofl-appd.sock``.

    A call over new report data changes the registration, which is a transaction that the node pays for, and takes some
    blocks. A call over report data that still stands on chain gives equal evidence, at once. Sixteen digests stand at a
    time: a verifier that takes its snapshot after sixteen later calls finds another one in the place.
    """

    tee_type = TEE_TYPE
    is_hardware = True

    def __init__(
        self,
        uri: str,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        confirm_seconds: float = CONFIRM_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._daemon = LocalDaemon(uri, scheme="rofl", name="rofl-appd", timeout_seconds=timeout_seconds)
        self.uri = uri
        self._confirm_seconds = confirm_seconds
        self._poll_seconds = poll_seconds
        self._publishing = asyncio.Lock()
        self._slots: dict[str, str] = {}  # digest -> metadata name, the least recently used first
        self._waiting: Counter[str] = Counter()  # digest -> how many wait for it; such a slot may not be taken

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:  # noqa: ARG002 - the chain has a clock
        """Where the chain vouches for this report data; the shape is that of `attestation.evidence.rofl`.

        Raises:
            EnclaveError: the daemon does not answer, too many calls wait, or the chain is too slow.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise EnclaveError(f"report data must be {REPORT_DATA_BYTES} bytes, is {len(report_data)}")
        value = digest(report_data)
        name = self._slot(value)
        self._waiting[value] += 1
        try:
            app_id = (await self._daemon.call("GET", "/rofl/v1/app/id")).decode("utf-8", "replace").strip()
            identifier = app_id_bytes(app_id, "rofl-appd's app id")
            await self._publish(name, value)
            rak = await self._confirmed(identifier, METADATA_NAMESPACE + name, value)
        except MalformedError as error:
            raise EnclaveError(f"rofl-appd's answer has another shape than published: {error}") from error
        finally:
            self._waiting -= Counter([value])
        return {
            "format": TEE_TYPE,
            "notice": NOTICE,
            "app_id": app_id,
            "rak": rak.hex(),
            "metadata_key": METADATA_NAMESPACE + name,
            "report_data": report_data.hex(),
        }

    def _slot(self, value: str) -> str:
        """The metadata name for a digest: the one that it has, a new one, or that of the least recently used."""
        name = self._slots.pop(value, None)
        if name is None and len(self._slots) < SLOTS:
            name = f"{KEY_PREFIX}{len(self._slots)}"
        elif name is None:
            idle = next((old for old in self._slots if old not in self._waiting), None)
            if idle is None:
                raise EnclaveError(f"{SLOTS} calls already wait for the chain; try again when one is through")
            name = self._slots.pop(idle)
        self._slots[value] = name
        return name

    async def _publish(self, name: str, value: str) -> None:
        # Read and set again, one at a time: older daemons have no PUT that would merge.
        async with self._publishing:
            held = encoding.as_object(await self._daemon.ask("GET", _METADATA), "metadata")
            await self._daemon.call("POST", _METADATA, {**held, name: value})

    async def _confirmed(self, app_id: bytes, key: str, value: str) -> bytes:
        """The attestation key of the replica under which the chain shows the digest: it is on chain, not only sent."""
        query = {"method": "rofl.AppInstances", "args": cbor2.dumps({"id": app_id}).hex()}
        try:
            async with asyncio.timeout(self._confirm_seconds):
                while True:
                    answer = encoding.as_object(await self._daemon.ask("POST", "/rofl/v1/query", query), "query")
                    for rak, metadata in _replicas(encoding.hex_bytes(answer.get("data"), "query.data")):
                        if metadata.get(key) == value:
                            return rak
                    await asyncio.sleep(self._poll_seconds)
        except TimeoutError as error:
            raise EnclaveError(f"the chain did not show our digest within {self._confirm_seconds:g} s") from error


def _replicas(data: bytes) -> list[tuple[bytes, Mapping[str, Any]]]:
    try:
        listed = cbor2.loads(data)
    except (cbor2.CBORError, ValueError) as error:
        raise MalformedError("query.data", "must be CBOR") from error
    if not isinstance(listed, list):
        raise MalformedError("query.data", "must be a list of registrations")
    found: list[tuple[bytes, Mapping[str, Any]]] = []
    for one in listed:
        replica = encoding.as_object(one, "query.data")
        if not isinstance(rak := replica.get("rak"), bytes) or len(rak) != 32:
            raise MalformedError("query.data.rak", "must be 32 bytes")
        found.append((rak, encoding.as_object(replica.get("metadata", {}), "query.data.metadata")))
    return found
