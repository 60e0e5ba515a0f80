// Compiles the registry. As a program it writes the file that trustctl embeds:
// node compile.mjs > registry.json
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import solc from "solc";

// Every network that runs Capella has Shanghai. Newer opcodes would exclude some networks.
const SETTINGS = {
  evmVersion: "shanghai",
  optimizer: { enabled: true, runs: 200 },
  // Without the hash of the metadata, the code depends on the source only.
  metadata: { appendCBOR: false, bytecodeHash: "none" },
  outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "storageLayout"] } },
};

export function compile() {
  const content = readFileSync(new URL("ImageRegistry.sol", import.meta.url), "utf8");
  const input = { language: "Solidity", sources: { "ImageRegistry.sol": { content } }, settings: SETTINGS };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  const problems = output.errors ?? [];
  if (problems.length > 0) throw new Error(problems.map((problem) => problem.formattedMessage).join("\n"));
  const contract = output.contracts["ImageRegistry.sol"].ImageRegistry;
  return {
    abi: contract.abi,
    bytecode: "0x" + contract.evm.bytecode.object,
    code: "0x" + contract.evm.deployedBytecode.object,
    layout: contract.storageLayout,
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { bytecode, code } = compile();
  console.log(JSON.stringify({ compiler: solc.version(), bytecode, code }));
}
