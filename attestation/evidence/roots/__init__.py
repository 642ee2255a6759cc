"""Hardware vendors' root certificates, pinned by the SHA-256 of their DER form.

The certificates themselves come with the evidence; a pin makes it irrelevant who delivered them. To check a pin, fetch
the certificate from the address beside it and hash it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

AMD_ARK: Final[Mapping[str, str]] = MappingProxyType(
    {
        "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": "Milan",
        "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": "Genoa",
        "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": "Turin",
    }
)
"""AMD root keys -> product line. https://kdsintf.amd.com/vcek/v1/<line>/cert_chain, its last certificate; the chain
under /vlek/v1/ ends at the same one."""

AWS_NITRO: Final[Mapping[str, str]] = MappingProxyType(
    {"641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b": "AWS Nitro Enclaves Root-G1"}
)
"""https://aws-nitro-enclaves.amazonaws.com/AWS_NitroEnclaves_Root-G1.zip"""
