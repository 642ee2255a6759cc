"""AWS Nitro Enclaves, through the Nitro Secure Module at /dev/nsm.

One ioctl that carries CBOR both ways: too little to take a package for, and the one there is opens the device in a mode
that needs seeking, which this device does not do. Source: the kernel's include/uapi/linux/nsm.h and drivers/misc/nsm.c;
aws/aws-nitro-enclaves-nsm-api, docs/attestation_process.md.
"""

import asyncio
import ctypes
import fcntl
import os
from pathlib import Path
from typing import Any, Final

import cbor2

from attestation.errors import EnclaveError
from attestation.keyset import REPORT_DATA_BYTES

DEVICE: Final = Path("/dev/nsm")
_MAX_RESPONSE_BYTES: Final = 0x3000


class _Vector(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Message(ctypes.Structure):
    _fields_ = (("request", _Vector), ("response", _Vector))


_NSM_IOCTL_RAW: Final = 3 << 30 | ctypes.sizeof(_Message) << 16 | 0x0A << 8
"""``_IOWR(0x0A, 0x0, struct nsm_raw)``."""


class NitroEnclave:
    """Asks the Nitro Secure Module for attestation documents. Chosen by the URI ``nitro:``.

    The report data travels as the document's `user_data`. It asks for one document when it is created: an enclave that
    cannot attest fails there. Documents carry their time, so two calls over the same report data differ.

    Args:
        uri: exactly ``nitro:``.
        device: where the module is; another place only for tests.
    """

    tee_type = "nitro"
    is_hardware = True

    def __init__(self, uri: str, *, device: Path = DEVICE) -> None:
        if uri != "nitro:":
            raise EnclaveError(f"{uri!r}: the Nitro Secure Module takes no options", hint="Use exactly nitro:")
        self.uri = uri
        self._device = device
        self._document(bytes(REPORT_DATA_BYTES))

    async def evidence(self, report_data: bytes, *, now: int) -> dict[str, Any]:  # noqa: ARG002 - the module has a clock
        """``{"document": hex}``: the COSE_Sign1 attestation document."""
        if len(report_data) != REPORT_DATA_BYTES:
            raise EnclaveError(f"report data must be {REPORT_DATA_BYTES} bytes, is {len(report_data)}")
        return {"document": (await asyncio.to_thread(self._document, report_data)).hex()}

    def _document(self, report_data: bytes) -> bytes:
        request = cbor2.dumps({"Attestation": {"user_data": report_data, "nonce": None, "public_key": None}})
        try:
            raw = self._exchange(request)
        except OSError as error:
            raise EnclaveError(
                f"the Nitro Secure Module is not there: {self._device}: {error.strerror}",
                hint="It exists only inside a Nitro Enclave whose kernel has the nsm driver",
            ) from error
        try:
            answer = cbor2.loads(raw)
            if "Error" in answer:
                raise EnclaveError(f"the Nitro Secure Module refused: {answer['Error']!s:.100}")
            document: bytes = answer["Attestation"]["document"]
            signed = cbor2.loads(document)
            payload = cbor2.loads((signed.value if isinstance(signed, cbor2.CBORTag) else signed)[2])
            bound = payload["user_data"]
        except (cbor2.CBORError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise EnclaveError("the Nitro Secure Module's answer holds no attestation document") from error
        if bound != report_data:
            raise EnclaveError("the Nitro Secure Module's document is over other report data than was asked for")
        return document

    def _exchange(self, request: bytes) -> bytes:
        incoming = ctypes.create_string_buffer(request, len(request))
        outgoing = ctypes.create_string_buffer(_MAX_RESPONSE_BYTES)
        message = _Message(
            _Vector(ctypes.addressof(incoming), len(request)), _Vector(ctypes.addressof(outgoing), len(outgoing))
        )
        device = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _NSM_IOCTL_RAW, message)
        finally:
            os.close(device)
        return outgoing.raw[: message.response.length]
