"""What the ledger keeps beside payments: receipts, names of purchases, and copies of answers."""

from collections.abc import Mapping
from typing import Any

from service.payment.authorization import PaymentKey
from service.payment.ledger_lanes import Call, Lane, Rows, number_of
from service.payment.ledger_statements import PURCHASE, Statements
from service.payment.records import NewReceipt, Row


class Register:
    """The part of the ledger that has no states.

    Methods raise:
        LedgerUnavailableError: the database failed.
    """

    def __init__(self, lanes: Mapping[str, Lane], statements: Statements, owner: str) -> None:
        self._lanes = lanes
        self._statements = statements
        self._owner = owner

    async def put_receipt(self, receipt: NewReceipt, *, now: int) -> None:
        """Keep a receipt. A receipt never changes: a second one under the same id is ignored."""
        statement = self._statements.put_receipt
        step = (statement, statement.bind(receipt_values(receipt, now)))
        await self._lanes["quick"].submit(Call((step,), number_of))

    async def receipt(self, identifier: str) -> str | None:
        """The JSON of the receipt with this receipt id, or of the newest one with this chat id."""

        def read(found: Rows, _: Rows) -> str | None:
            return found[0][0] if found else None

        step = (self._statements.receipt, self._statements.receipt.bind({"given_id": identifier}))
        return await self._lanes["read"].submit(Call((step,), read))

    async def bind_identifier(
        self, payer: str, identifier: str, request_digest: str, key: PaymentKey, now: int
    ) -> bool:
        """See `service.payment.identifier.Identifiers`."""
        network, asset, _, nonce = key
        purchase = {"request_digest": request_digest, "network": network, "asset": asset, "nonce": nonce}
        params = {
            f"new_{name}": value
            for name, value in {"payer": payer, "identifier": identifier, **purchase, "created": now}.items()
        }

        def read(bound: Rows, found: Rows) -> bool:
            return bool(bound) or [tuple(row) for row in found] == [tuple(purchase[name] for name in PURCHASE)]

        bind, find = self._statements.bind_identifier, self._statements.identifier
        call = Call(((bind, bind.bind(params)),), read, otherwise=(find, find.bind(params)), order=nonce)
        return await self._lanes["quick"].submit(call)

    async def _copy(self, row: Row) -> bytes | None:
        """This replica's own answer to a payment of another one."""
        statement = self._statements.copy
        given = {"given_payment_id": row.id, "given_owner": self._owner, "given_nonce": row.authorization.nonce}

        def read(found: Rows, _: Rows) -> bytes | None:
            return bytes(found[0][0]) if found else None

        return await self._lanes["read"].submit(Call(((statement, statement.bind(given)),), read))

    async def _put_copy(self, row: Row, result: bytes, receipt: NewReceipt, now: int) -> None:
        """Keep this replica's own answer to a payment of another one, and its receipt."""
        copy, receipt_ = self._statements.put_copy, self._statements.put_receipt
        values = {
            "new_payment_id": row.id,
            "new_owner": self._owner,
            "new_nonce": row.authorization.nonce,
            "new_result": result,
            "new_created": now,
        }
        steps = ((copy, copy.bind(values)), (receipt_, receipt_.bind(receipt_values(receipt, now))))
        await self._lanes["quick"].submit(Call(steps, number_of))


def receipt_values(receipt: NewReceipt, now: int) -> dict[str, Any]:
    """The parameters of a statement that keeps a receipt."""
    return {
        "new_receipt_id": receipt.receipt_id,
        "new_chat_id": receipt.chat_id,
        "new_receipt": receipt.receipt_json,
        "new_created": now,
    }
