// Checks response signatures (RFC 9421) and digests (RFC 9530) with the npm library http-message-signatures.
// stdin: {directory: the JSON Web Key Set, exchanges: [{method, url, status, headers, body: base64}]}
// stdout: [{signature: true | false | null, digest: true | false, covered: [...], problem}], one for each exchange

import { createHash, createPublicKey, verify } from "node:crypto";
import { json } from "node:stream/consumers";

import library from "http-message-signatures";

const given = await json(process.stdin);

function keyFor({ keyid }) {
  const jwk = given.directory.keys.find((key) => key.kid === keyid);
  if (!jwk) return null;
  const key = createPublicKey({ key: jwk, format: "jwk" });
  return { id: keyid, algs: ["ed25519"], verify: async (data, signature) => verify(null, data, key, signature) };
}

async function check({ method, url, status, headers, body }) {
  const bytes = Buffer.from(body, "base64");
  const digest = headers["content-digest"] === `sha-256=:${createHash("sha256").update(bytes).digest("base64")}:`;
  const covered = /\(([^)]*)\)/.exec(headers["signature-input"] ?? "")?.[1].split(" ") ?? [];
  try {
    const config = { keyLookup: keyFor, requiredParams: ["created", "keyid", "tag"], all: true };
    const signature = await library.httpbis.verifyMessage(config, { status, headers }, { method, url, headers: {} });
    return { signature, digest, covered };
  } catch (error) {
    return { signature: false, digest, covered, problem: error.message };
  }
}

process.stdout.write(JSON.stringify(await Promise.all(given.exchanges.map(check))));
