// Compiles contracts/src with the pinned solc and writes service/localchain/artifacts/<Contract>.json.
//   node compile.mjs                  write
//   node compile.mjs --check          compare instead; exit 1 when a committed artifact is not what the sources give
//   node compile.mjs --modules DIR    take solc and the library from DIR instead of ./node_modules
// The output depends on the sources, the two pinned packages and the settings below, and on nothing else.
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const here = dirname(fileURLToPath(import.meta.url));
const sourceDir = join(here, "src");
const artifactDir = join(here, "..", "service", "localchain", "artifacts");
const { values: options } = parseArgs({
  options: { check: { type: "boolean", default: false }, modules: { type: "string", default: join(here, "node_modules") } },
});
const modules = resolve(options.modules);
if (!existsSync(join(modules, "solc"))) {
  console.error(`no solc in ${modules}: run npm ci in contracts/`);
  process.exit(1);
}
const solc = createRequire(join(modules, "/"))("solc");

const settings = {
  optimizer: { enabled: true, runs: 200 },
  evmVersion: "cancun",
  viaIR: true,
  metadata: { bytecodeHash: "none", appendCBOR: false },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object"] } },
};

const files = readdirSync(sourceDir).filter((name) => name.endsWith(".sol")).sort();
const sources = Object.fromEntries(files.map((name) => [name, { content: readFileSync(join(sourceDir, name), "utf8") }]));

/** Every source that went into the build, ours and the library's, by import path. */
const used = new Map(Object.entries(sources).map(([path, { content }]) => [path, content]));

function readImport(path) {
  const file = join(modules, path);
  if (!existsSync(file)) return { error: `no such file: ${file}` };
  const contents = readFileSync(file, "utf8");
  used.set(path, contents);
  return { contents };
}

const output = JSON.parse(
  solc.compile(JSON.stringify({ language: "Solidity", sources, settings }), { import: readImport }),
);
for (const problem of output.errors ?? []) console.error(problem.formattedMessage);
if ((output.errors ?? []).length > 0) process.exit(1); // warnings are errors

const hash = createHash("sha256");
for (const path of [...used.keys()].sort()) {
  const content = used.get(path);
  hash.update(`${path}\n${Buffer.byteLength(content)}\n${content}`);
}
const sourcesSha256 = hash.digest("hex");
const compiler = `solc ${solc.version()} ${JSON.stringify({ ...settings, outputSelection: undefined })}`;

const wanted = new Map();
for (const name of files) {
  for (const [contractName, { abi, evm }] of Object.entries(output.contracts[name] ?? {})) {
    const bytecode = evm.bytecode.object;
    if (bytecode.length === 0) continue; // an interface or an abstract contract
    const artifact = { contractName, abi, bytecode: `0x${bytecode}`, compiler, sourcesSha256 };
    wanted.set(`${contractName}.json`, `${JSON.stringify(artifact, null, 2)}\n`);
  }
}

const present = (existsSync(artifactDir) ? readdirSync(artifactDir) : []).filter((name) => name.endsWith(".json"));
const surplus = present.filter((name) => !wanted.has(name));
const stale = [...wanted].filter(([name, text]) => {
  const file = join(artifactDir, name);
  return !existsSync(file) || readFileSync(file, "utf8") !== text;
});

if (options.check) {
  for (const [name] of stale) console.error(`stale: service/localchain/artifacts/${name} is not what contracts/src compiles to`);
  for (const name of surplus) console.error(`surplus: service/localchain/artifacts/${name} has no contract in contracts/src`);
  if (stale.length + surplus.length > 0) {
    console.error("Run `node contracts/compile.mjs` and commit the result.");
    process.exit(1);
  }
  console.log(`${wanted.size} artifacts are up to date`);
} else {
  mkdirSync(artifactDir, { recursive: true });
  for (const [name, text] of stale) writeFileSync(join(artifactDir, name), text);
  for (const name of surplus) rmSync(join(artifactDir, name));
  console.log(`${stale.length} of ${wanted.size} artifacts written`);
}
