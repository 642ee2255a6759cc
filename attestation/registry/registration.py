"""The registration file: the JSON document behind an agent's URI (ERC-8004, "registration-v1").

The same document, served at `/.well-known/agent-registration.json` of a service's host, proves that the host and the
agent belong together: it names the agent, and the agent names it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from attestation.digest import jcs
from attestation.encoding import as_object, parse_json
from attestation.errors import MalformedError
from attestation.fetch import data_uri
from attestation.registry.erc8004 import MAX_AGENT_ID

REGISTRATION_TYPE: Final = "https://eips.ethereum.org/EIPS/eip-8004#registration-v1"
WELL_KNOWN_PATH: Final = "/.well-known/agent-registration.json"
TEE_ATTESTATION: Final = "tee-attestation"

MAX_REGISTRATION_SIZE: Final = 64 * 1024
"""Bytes; ours is under 2,000. The file comes from a host that nobody has vouched for yet."""
_MAX_ITEMS: Final = 64
_X402_VERSION: Final = "2"

_Text = Annotated[StrictStr, Field(max_length=4_096)]
_AgentRegistry = Annotated[StrictStr, Field(pattern=r"^eip155:[1-9][0-9]{0,17}:0x[0-9a-fA-F]{40}$")]


class _Model(BaseModel):
    # The document is open: fields this version does not know are somebody else's business.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Service(_Model):
    """One way to reach the agent: a name ("web", "A2A", "MCP", ...), where it is, and which version it speaks."""

    name: _Text
    endpoint: _Text
    version: _Text | None = None


class AgentReference(_Model):
    """One entry of this agent in a registry: `agentId` (0 is one) and ``eip155:<chainId>:<registry>``."""

    agent_id: Annotated[StrictInt, Field(alias="agentId", ge=0, le=MAX_AGENT_ID)]
    agent_registry: Annotated[_AgentRegistry, Field(alias="agentRegistry")]


class Registration(_Model):
    """A parsed registration file. Optional lists are empty when absent."""

    type: Literal["https://eips.ethereum.org/EIPS/eip-8004#registration-v1"]
    name: _Text
    description: _Text = ""
    image: _Text = ""
    services: Annotated[tuple[Service, ...], Field(max_length=_MAX_ITEMS)] = ()
    x402_support: Annotated[StrictBool, Field(alias="x402Support")] = False
    active: StrictBool = True
    registrations: Annotated[tuple[AgentReference, ...], Field(max_length=_MAX_ITEMS)] = ()
    supported_trust: Annotated[tuple[_Text, ...], Field(alias="supportedTrust", max_length=_MAX_ITEMS)] = ()

    def names(self, agent_registry: str, agent_id: int) -> bool:
        """Whether the file says it belongs to this agent. The case of the registry's address does not matter."""
        return any(
            entry.agent_id == agent_id and entry.agent_registry.lower() == agent_registry.lower()
            for entry in self.registrations
        )


@dataclass(frozen=True, slots=True)
class Description:
    """What an operator says about the agent. `image` is a URL or empty."""

    name: str
    description: str
    image: str = ""


def services_at(
    origin: str, *, paid: Sequence[str], page: str | None = None, a2a: str | None = None, mcp: str | None = None
) -> tuple[Service, ...]:
    """The services of an agent, in the names that explorers know. What is None is not served, and not listed.

    Args:
        origin: where the agent is, without a slash at the end.
        paid: paths that are sold with x402.
        page: path of a page for people.
        a2a: path of an A2A agent card.
        mcp: path of an MCP endpoint.
    """
    found = [("web", page, None), *(("x402", path, _X402_VERSION) for path in paid), ("A2A", a2a, None)]
    found.append(("MCP", mcp, None))
    return tuple(
        Service(name=name, endpoint=origin + path, version=version) for name, path, version in found if path is not None
    )


def registration_uri(document: Mapping[str, Any]) -> str:
    """The file as a data: URI of its RFC 8785 form: an agent's URI whose content cannot change without the chain."""
    return data_uri(jcs(dict(document)))


def build_registration(
    description: Description,
    *,
    services: Sequence[Service],
    registrations: Sequence[AgentReference],
    hardware_attested: bool,
    active: bool = True,
) -> dict[str, Any]:
    """The registration file as a JSON value.

    Args:
        hardware_attested: whether evidence of real hardware stands behind the service. A simulated enclave must pass
            False: it never lists "tee-attestation".

    Raises:
        MalformedError: a value does not fit the format.
    """
    document: dict[str, Any] = {
        "type": REGISTRATION_TYPE,
        "name": description.name,
        "description": description.description,
        "image": description.image,
        "services": [service.model_dump(exclude_none=True) for service in services],
        "x402Support": True,
        "active": active,
        "registrations": [entry.model_dump(by_alias=True) for entry in registrations],
        "supportedTrust": ["reputation", TEE_ATTESTATION] if hardware_attested else ["reputation"],
    }
    _validate(document)
    return document


def parse_registration(data: bytes) -> Registration:
    """Reads a registration file from an untrusted host.

    Raises:
        MalformedError: too large, not UTF-8 JSON, or not a registration; names the field.
    """
    if len(data) > MAX_REGISTRATION_SIZE:
        raise MalformedError("registration", f"is larger than {MAX_REGISTRATION_SIZE} bytes")
    return _validate(as_object(parse_json(data, "registration"), "registration"))


def _validate(document: dict[str, Any]) -> Registration:
    try:
        return Registration.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in ("registration", *first["loc"]))
        raise MalformedError(where, first["msg"]) from error
