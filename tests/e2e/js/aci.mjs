// A verifier of aci/1 written from its specification, with node's own cryptography and nothing else.
// stdin: [{report, nonce, now, receipt, request: base64, response: base64}]
// stdout: [{accepted: true} or {accepted: false, problem}], one for each case

import { createHash, createPublicKey, verify } from "node:crypto";
import { json } from "node:stream/consumers";

const sha256 = (data) => createHash("sha256").update(data).digest("hex");

// RFC 8785: ECMAScript's own number and string forms, names sorted by UTF-16 code units (ECMAScript's own order).
function jcs(value) {
  if (Array.isArray(value)) return `[${value.map(jcs).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const members = Object.keys(value).sort();
  return `{${members.map((name) => `${JSON.stringify(name)}:${jcs(value[name])}`).join(",")}}`;
}

function demand(holds, problem) {
  if (!holds) throw new Error(problem);
}

function ed25519(publicKey, message, signature) {
  demand(/^[0-9a-f]{64}$/.test(publicKey) && /^[0-9a-f]{128}$/.test(signature), "key or signature is malformed");
  const x = Buffer.from(publicKey, "hex").toString("base64url");
  const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
  return verify(null, Buffer.from(message), key, Buffer.from(signature, "hex"));
}

// Section 9.1, checks 2 and 3. Returns the keyset and its digest once they are established.
function establish({ report, nonce, now }) {
  demand(report.api_version === "aci/1", "report: api_version");
  const { workload_keyset: keyset, report_data: bound } = report.attestation;
  const digest = `sha256:${sha256(jcs(keyset))}`;
  demand(report.workload_keyset_digest === digest, "report: workload_keyset_digest");
  demand(/^[0-9a-f]{64}$/.test(nonce), "nonce");
  const statement = `{"keyset_digest":"${digest}","nonce":"${nonce}","purpose":"aci.report_data.v1"}`;
  demand(bound === sha256(statement), "report: report_data");
  demand(Number.isInteger(keyset.not_after) && now < keyset.not_after, "keyset: not_after");
  const served = report.service_capabilities.serving;
  demand(served === "direct", "report: serving");
  hardware(report.attestation, bound);
  return { keyset, digest };
}

// Section 9.1, check 1, for the published extension `simulated`: a signature chain that ends at its own root.
function hardware({ tee_type, evidence }, bound) {
  demand(tee_type === "simulated", `report: tee_type ${tee_type}`);
  demand(evidence.quote.report_data === bound + "00".repeat(32), "evidence: report_data slot");
  demand(evidence.quote.notice.startsWith("NO HARDWARE"), "evidence: notice");
  demand(ed25519(evidence.root_public_key, jcs(evidence.quote), evidence.signature), "evidence: signature");
}

// Section 9.3, checks 1 to 4. An entry whose algo is unknown is as good as absent (section 3.1).
function response({ receipt, request, response: answer }, { keyset, digest }) {
  const known = keyset.receipt_signing_keys.filter(({ algo }) => algo === "ed25519");
  const key = known.find(({ key_id }) => key_id === receipt.key_id);
  demand(key, "receipt: key_id");
  const { signature, ...unsigned } = receipt;
  demand(ed25519(key.public_key, jcs(unsigned), signature), "receipt: signature");
  demand(receipt.api_version === "aci/1", "receipt: api_version");
  demand(receipt.workload_keyset_digest === digest, "receipt: workload_keyset_digest");
  const events = receipt.event_log;
  demand(events[0].type === "request.received", "receipt: first event");
  demand(!events.some(({ type }) => type === "upstream.verified"), "receipt: a direct service has no upstream");
  const hash = (type, bytes) => {
    const found = events.filter((event) => event.type === type);
    demand(found.length === 1, `receipt: ${type} is not there once`);
    demand(found[0].body_hash === `sha256:${sha256(Buffer.from(bytes, "base64"))}`, `receipt: ${type} body_hash`);
  };
  hash("request.received", request);
  hash("response.returned", answer);
}

function judge(purchase) {
  try {
    response(purchase, establish(purchase));
    return { accepted: true };
  } catch (error) {
    return { accepted: false, problem: error.message };
  }
}

process.stdout.write(JSON.stringify((await json(process.stdin)).map(judge)));
