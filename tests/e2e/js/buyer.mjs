// Buys one answer with the x402 SDK's fetch, and checks the seller's offer and receipt with the SDK's extension.
// stdin: {url, body, key, allow: [{network, asset, maxAmountPerPayment}] or null}
// stdout: {status, body, offer, receipt, matches, accepts, exchanges}, or {refused} when the client would not pay

import { json } from "node:stream/consumers";

import { ExactEvmScheme } from "@x402/evm/exact/client";
import {
  decodeSignedOffers,
  extractOffersFromPaymentRequired,
  extractReceiptFromResponse,
  findAcceptsObjectFromSignedOffer,
  verifyOfferSignatureEIP712,
  verifyReceiptMatchesOffer,
  verifyReceiptSignatureEIP712,
} from "@x402/extensions/offer-receipt";
import { decodePaymentResponseHeader, wrapFetchWithPayment, x402Client } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";

const given = await json(process.stdin);
const account = privateKeyToAccount(given.key);
const client = new x402Client().register("eip155:*", new ExactEvmScheme(account));
if (given.allow) client.setSpendControls({ allowedAssets: given.allow });

const exchanges = [];
async function recorded(request) {
  const sent = Buffer.from(await request.clone().arrayBuffer());
  const response = await fetch(request);
  exchanges.push({
    method: request.method,
    url: request.url,
    paid: request.headers.has("payment-signature"),
    request_body: sent.toString("base64"),
    status: response.status,
    headers: Object.fromEntries(response.headers),
    body: Buffer.from(await response.clone().arrayBuffer()).toString("base64"),
  });
  return response;
}

async function buy() {
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(given.body) };
  const response = await wrapFetchWithPayment(recorded, client)(given.url, options);
  if (response.status !== 200) return { status: response.status, body: await response.text(), exchanges };
  const unpaid = exchanges[0];
  const required = JSON.parse(Buffer.from(unpaid.headers["payment-required"], "base64"));
  const [offer] = decodeSignedOffers(extractOffersFromPaymentRequired(required));
  const receipt = extractReceiptFromResponse(response);
  return {
    status: response.status,
    body: await response.json(),
    offer: await verifyOfferSignatureEIP712(offer.signedOffer),
    receipt: await verifyReceiptSignatureEIP712(receipt),
    matches: verifyReceiptMatchesOffer(receipt, offer, [account.address]),
    matches_a_stranger: verifyReceiptMatchesOffer(receipt, offer, ["0x" + "11".repeat(20)]),
    accepts: findAcceptsObjectFromSignedOffer(offer, required.accepts),
    required,
    settlement: decodePaymentResponseHeader(response.headers.get("payment-response")),
    payer: account.address,
    exchanges,
  };
}

let result;
try {
  result = await buy();
} catch (error) {
  result = { refused: error.message, exchanges };
}
process.stdout.write(JSON.stringify(result, (_, value) => (typeof value === "bigint" ? String(value) : value)));
