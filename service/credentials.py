"""Under which keys the service answers: the current ones, and for what began under the ones before, still those.

A buyer attests one keyset and must get everything of one purchase under it: terms, receipts and the signature of the
response. Keys may be replaced in between; whoever asked for terms under the old ones is answered under them.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from attestation.enclave.keyring import KeyRing
from attestation.keyset import Keyset
from attestation.onchain import AgentReference

MAX_REMEMBERED: Final = 10_000
"""Requests whose terms are remembered; one that is forgotten is answered under the current keys, to be attested."""

EXPIRY_MARGIN_SECONDS: Final = 300
"""Nothing is sold under a keyset that ends sooner: the answer takes time, and the buyer needs some to check it."""


def expiry_margin(lifetime: int) -> int:
    """`EXPIRY_MARGIN_SECONDS`, or less for keysets that live so shortly that it would be most of their life."""
    return min(EXPIRY_MARGIN_SECONDS, lifetime // 4)


@dataclass(frozen=True, slots=True)
class Identity:
    """What every receipt says about who answered."""

    keyset: Keyset
    manifest_digest: str
    agent: AgentReference | None
    """None until the registry is seen to show this keyset. Nothing is sold before."""

    @property
    def registered_agent(self) -> AgentReference:
        """The agent, where there must be one.

        Raises:
            RuntimeError: there is none yet.
        """
        if self.agent is None:
            raise RuntimeError("nothing may be sold before the agent is registered")
        return self.agent


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys, the keyset that lists them, and where the chain confirms it."""

    keys: KeyRing
    identity: Identity
    key_slot: str
    """The registry metadata key that holds this keyset's record."""


class Keyholder:
    """The credentials of a running service.

    Args:
        credentials: the first ones.
        margin_seconds: a keyset with less time left than this is not sold under.
        clock: unix seconds.
    """

    def __init__(self, credentials: Credentials, *, margin_seconds: int, clock: Callable[[], int]) -> None:
        self._current = credentials
        self._previous: tuple[Credentials, ...] = ()
        self._terms: OrderedDict[str, Credentials] = OrderedDict()
        self._margin = margin_seconds
        self._clock = clock
        self._problem: str | None = None

    @property
    def current(self) -> Credentials:
        return self._current

    @property
    def problem(self) -> str | None:
        """Why the registry does not confirm the current credentials; None when it does."""
        return self._problem

    def hold_back(self, problem: str | None) -> None:
        """Sell nothing because of `problem`, a sentence for buyers and operators; None lifts that."""
        self._problem = problem

    @property
    def registered(self) -> bool:
        """Whether the registry was seen to show the current credentials."""
        return self._problem is None and self._current.identity.agent is not None

    @property
    def valid(self) -> tuple[Credentials, ...]:
        """The current credentials, then those before them whose keyset is on the chain and has not expired."""
        return (self._current, *(old for old in self._previous if self._left(old) > 0))

    def replace(self, new: Credentials) -> None:
        """Answer under `new` from now on. The registry must show its record already.

        Credentials whose slot it took are dropped: buyers could not find their key on the chain any more.
        """
        self._previous = tuple(old for old in self.valid if old.key_slot != new.key_slot)
        self._current = new
        self._terms = OrderedDict((asked, one) for asked, one in self._terms.items() if one in self._previous)

    def give_terms(self, request_digest: str) -> Credentials:
        """The current credentials, for a 402; a payment that follows is answered under the same ones."""
        # When two buyers ask the same, the later one counts: the keys of the earlier one may be gone sooner, and he
        # can attest the current ones, but nobody can attest those of the past.
        self._terms[request_digest] = self._current
        self._terms.move_to_end(request_digest)
        if len(self._terms) > MAX_REMEMBERED:
            self._terms.popitem(last=False)
        return self._current

    def terms_given(self, request_digest: str) -> Credentials:
        """The credentials to answer a paid request under."""
        given = self._terms.get(request_digest, self._current)
        return given if self.may_sell(given) else self._current

    def may_sell(self, credentials: Credentials) -> bool:
        """Whether the registry confirms this service, and a purchase under these credentials would leave the buyer time
        to check it."""
        return self.registered and self._left(credentials) >= self._margin

    def forget(self) -> None:
        """Give up all private keys."""
        for credentials in (self._current, *self._previous):
            credentials.keys.forget()
        self._terms.clear()

    def _left(self, credentials: Credentials) -> int:
        return credentials.identity.keyset.not_after - self._clock()
