"""Paths that are named in more than one place."""

from typing import Final

SUMMARIZE: Final = "/v1/summarize"
CHAT: Final = "/v1/chat/completions"
AGENT_PAGE: Final = "/agent"
AGENT_JSON: Final = "/agent.json"
AGENT_ICON: Final = "/agent.svg"
REGISTRATION: Final = "/.well-known/agent-registration.json"
ATTESTATION: Final = "/v1/aci/attestation"
