// Buys through npm @x402/axios, and says what it got.
//
// stdin: {url, body, key}
// stdout: {status, body, settlement, requests: [whether each carried a payment]}

import { json } from "node:stream/consumers";

import { decodePaymentResponseHeader, wrapAxiosWithPayment, x402Client } from "@x402/axios";
import { ExactEvmScheme } from "@x402/evm/exact/client";
import axios from "axios";
import { privateKeyToAccount } from "viem/accounts";

const given = await json(process.stdin);
const account = privateKeyToAccount(given.key);
const requests = [];
const instance = axios.create();
instance.interceptors.request.use((config) => {
  requests.push(config.headers.has("payment-signature"));
  return config;
});
const client = new x402Client().register("eip155:*", new ExactEvmScheme(account));
const response = await wrapAxiosWithPayment(instance, client).post(given.url, given.body);
process.stdout.write(
  JSON.stringify({
    status: response.status,
    body: response.data,
    settlement: decodePaymentResponseHeader(response.headers["payment-response"]),
    requests,
  }),
);
