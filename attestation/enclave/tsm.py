"""Intel TDX and AMD SEV-SNP guests, through the kernel's configfs-tsm.

Source: the kernel's Documentation/ABI/testing/configfs-tsm-report (Linux 6.7 and newer); the certificate table in
`auxblob` is that of the SEV-ES Guest-Hypervisor Communication Block specification, MSG_REPORT_REQ (AMD 56421).
"""

import asyncio
import errno
import os
import secrets
import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from attestation import encoding
from attestation.errors import EnclaveError
from attestation.keyset import REPORT_DATA_BYTES

ROOT: Final = Path("/sys/kernel/config/tsm/report")
TEE_TYPES: Final = MappingProxyType({"tdx_guest": "tdx", "sev_guest": "sev_snp"})
"""The kernel's `provider` -> our `tee_type`."""

_ATTEMPTS: Final = 5
"""Every report has an entry of its own, so another writer is an accident; five in a row are a fault."""
_TDX_REPORT_DATA: Final = MappingProxyType({4: 48 + 520, 5: 48 + 6 + 520})
"""Quote version -> offset of the report data: header, in version 5 a body descriptor, then the TD report."""
_SNP_REPORT_BYTES: Final = 0x4A0
_VCEK, _VLEK, _ASK, _ARK = (
    UUID(name).bytes
    for name in (
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    )
)
_PEM: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class _Report:
    provider: str
    outblob: bytes
    auxblob: bytes


class _DisturbedError(Exception):
    """Something else wrote to our entry while the report was made."""


class TsmEnclave:
    """Asks the kernel for a quote (TDX) or a report (SEV-SNP). Chosen by the URI ``tsm:``.

    It makes one report when it is created: a guest that cannot attest fails there, and the kernel says which TEE it
    is. Every call asks the hardware anew, so two calls over the same report data may differ.

    Args:
        uri: exactly ``tsm:``.
        root: where configfs-tsm is; another place only for tests.
    """

    is_hardware = True

    def __init__(self, uri: str, *, root: Path = ROOT) -> None:
        if uri != "tsm:":
            raise EnclaveError(f"{uri!r}: configfs-tsm takes no options", hint="Use exactly tsm:")
        if not root.is_dir():
            raise EnclaveError(
                f"configfs-tsm is not there: {root} is not a directory",
                hint="It takes Linux 6.7 or newer in a TDX or SEV-SNP guest, and configfs at /sys/kernel/config",
            )
        self.uri = uri
        self._root = root
        provider = self._report(bytes(REPORT_DATA_BYTES)).provider
        if provider not in TEE_TYPES:
            raise EnclaveError(f"configfs-tsm speaks for {provider!r}; known: {', '.join(TEE_TYPES)}")
        self._provider = provider
        self.tee_type = TEE_TYPES[provider]

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:  # noqa: ARG002 - the TEE has no clock
        """``{"quote": hex}`` for TDX, ``{"report": hex, "certificates": [base64 DER]}`` for SEV-SNP.

        The certificates are those that the host put beside the report: VCEK or VLEK, ASK, ARK, or none.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise EnclaveError(f"report data must be {REPORT_DATA_BYTES} bytes, is {len(report_data)}")
        report = await asyncio.to_thread(self._report, report_data)
        if report.provider != self._provider:
            raise EnclaveError(f"configfs-tsm spoke for {self._provider}, and now for {report.provider!r}")
        if self.tee_type == "tdx":
            bound = tdx_report_data(report.outblob)
            evidence: dict[str, Any] = {"quote": report.outblob.hex()}
        else:
            bound = _snp_report_data(report.outblob)
            evidence = {
                "report": report.outblob.hex(),
                "certificates": [encoding.b64(der) for der in certificates(report.auxblob, report.outblob)],
            }
        if bound != report_data:
            raise EnclaveError("the kernel's report is over other report data than was asked for")
        return evidence

    def _report(self, report_data: bytes) -> _Report:
        for _ in range(_ATTEMPTS):
            try:
                return self._attempt(report_data)
            except _DisturbedError:
                continue
            except OSError as error:
                hint = "Only root may make reports" if isinstance(error, PermissionError) else None
                raise EnclaveError(f"configfs-tsm made no report: {error.strerror}", hint=hint) from error
            except ValueError as error:
                raise EnclaveError("configfs-tsm answered something that is not a number") from error
        raise EnclaveError(f"something else wrote to our configfs-tsm entries, {_ATTEMPTS} times in a row")

    def _attempt(self, report_data: bytes) -> _Report:
        entry = self._root / f"tollseal-{secrets.token_hex(16)}"
        entry.mkdir()
        try:
            generation = int(_read(entry / "generation"))
            # Under a paravisor (SVSM) the guest may not ask for the most privileged level, which is the default.
            level = int(_read_if_there(entry / "privlevel_floor") or 0)
            writes = [("inblob", report_data)]
            if level:
                writes.append(("privlevel", str(level).encode("ascii")))
            for attribute, value in writes:
                _write(entry / attribute, value)
            outblob = _read(entry / "outblob")
            auxblob = _read_if_there(entry / "auxblob")
            provider = _read(entry / "provider").decode("ascii", "replace").strip()
            if int(_read(entry / "generation")) != generation + len(writes):
                raise _DisturbedError
        except BlockingIOError as error:
            raise _DisturbedError from error
        finally:
            entry.rmdir()
        return _Report(provider, outblob, auxblob)


def _read(path: Path) -> bytes:
    # Not through a file object: that turns the kernel's "try again" into an answer of None.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    finally:
        os.close(descriptor)


def _read_if_there(path: Path) -> bytes:
    try:
        return _read(path)
    except FileNotFoundError:
        return b""


def _write(path: Path, value: bytes) -> None:
    # Without O_CREAT, which would make an ordinary file where no kernel listens.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.write(descriptor, value) != len(value):
            raise OSError(errno.EIO, "it took only a part of what was written")
    finally:
        os.close(descriptor)


def tdx_report_data(quote: bytes) -> bytes:
    """The report data in a TDX quote of version 4 or 5 (Intel TDX DCAP Quoting Library API, appendix A.3 and A.4).

    Raises:
        EnclaveError: too short, or of another version.
    """
    offset = _TDX_REPORT_DATA.get(int.from_bytes(quote[:2], "little"))
    if offset is None or len(quote) < offset + REPORT_DATA_BYTES:
        raise EnclaveError("this is not a TDX quote of version 4 or 5")
    return quote[offset : offset + REPORT_DATA_BYTES]


def _snp_report_data(report: bytes) -> bytes:
    if len(report) != _SNP_REPORT_BYTES:
        raise EnclaveError(f"a SEV-SNP report has {_SNP_REPORT_BYTES} bytes, this one {len(report)}")
    return report[0x50 : 0x50 + REPORT_DATA_BYTES]


def certificates(table: bytes, report: bytes) -> list[bytes]:
    """The chain of a GHCB certificate table as DER, leaf first: the key that signed the report, ASK, ARK.

    The host fills the table, or leaves it out: what is not there is left out here, too.

    Args:
        table: entries of GUID (16 bytes), offset and length (little-endian 32 bits), up to one of zeros; then data.
        report: the report, which says whether VCEK or VLEK signed it (SEV-SNP ABI, ATTESTATION_REPORT, 0x48).

    Raises:
        EnclaveError: an entry points outside the table, or the table has no end.
    """
    found: dict[bytes, bytes] = {}
    for start in range(0, len(table), 24):
        if len(entry := table[start : start + 24]) < 24:
            raise EnclaveError("the host's certificate table has no end")
        guid, offset, length = struct.unpack("<16sII", entry)
        if guid == bytes(16):
            break
        if offset + length > len(table):
            raise EnclaveError("the host's certificate table points outside itself")
        found[guid] = table[offset : offset + length]
    leaf = _VLEK if (report[0x48] >> 2) & 7 == 1 else _VCEK
    return [_der(found[guid]) for guid in (leaf, _ASK, _ARK) if guid in found]


def _der(certificate: bytes) -> bytes:
    if not certificate.startswith(_PEM):
        return certificate
    try:
        return ssl.PEM_cert_to_DER_cert(certificate.decode("ascii").strip("\0\r\n "))
    except ValueError as error:
        raise EnclaveError("the host's certificate table holds a broken certificate") from error
