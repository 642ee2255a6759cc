// Chats through OpenAI's own client; the x402 SDK's fetch, given to it as its fetch, pays.
// stdin: {url, model, key, allow: [{network, asset, maxAmountPerPayment}]}
// stdout: {models, answer, chunks, refused: {status, code, param}, receipts}

import { json } from "node:stream/consumers";

import { ExactEvmScheme } from "@x402/evm/exact/client";
import { wrapFetchWithPayment, x402Client } from "@x402/fetch";
import OpenAI from "openai";
import { privateKeyToAccount } from "viem/accounts";

const given = await json(process.stdin);
const payer = new x402Client().register("eip155:*", new ExactEvmScheme(privateKeyToAccount(given.key)));
payer.setSpendControls({ allowedAssets: given.allow });

const receipts = [];
const paying = wrapFetchWithPayment(fetch, payer);
async function noting(url, options) {
  const response = await paying(url, options);
  const id = response.headers.get("x-receipt-id");
  if (id) receipts.push(id);
  return response;
}

const client = new OpenAI({ baseURL: `${given.url}/v1`, apiKey: "none", fetch: noting, maxRetries: 0 });
const request = { model: given.model, messages: [{ role: "user", content: "Why is the sky blue?" }], max_tokens: 12 };

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const answer = await client.chat.completions.create(request);

const chunks = [];
const streamed = { ...request, seed: 1, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(streamed)) chunks.push(chunk);

let refused = null;
try {
  await client.chat.completions.create({ ...request, n: 2 });
} catch (error) {
  refused = { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
}

process.stdout.write(JSON.stringify({ models, answer, chunks, refused, receipts }));
