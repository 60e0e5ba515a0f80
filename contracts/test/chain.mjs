// A chain in this process: the Shanghai EVM of EthereumJS, one block per transaction.
import { createBlock } from "@ethereumjs/block";
import { Common, Hardfork, Mainnet } from "@ethereumjs/common";
import { createLegacyTx } from "@ethereumjs/tx";
import { bytesToHex, createAddressFromPrivateKey, hexToBytes, setLengthLeft } from "@ethereumjs/util";
import { createVM, runTx } from "@ethereumjs/vm";
import { Interface, keccak256, toUtf8Bytes } from "ethers";
import { compile } from "../compile.mjs";

export const contract = compile();
export const abi = new Interface(contract.abi);
const common = new Common({ chain: Mainnet, hardfork: Hardfork.Shanghai });

/** Returns an account with a key derived from its name. */
export function person(name) {
  const key = hexToBytes(keccak256(toUtf8Bytes(name)));
  return { name, key, address: createAddressFromPrivateKey(key).toString() };
}

export class Chain {
  static async begin() {
    const chain = new Chain();
    chain.vm = await createVM({ common });
    chain.time = 1_700_000_000n;
    chain.number = 1n;
    return chain;
  }

  async send(from, to, data) {
    const block = createBlock({ header: { timestamp: this.time, number: this.number++, gasLimit: 30_000_000n, baseFeePerGas: 0n } }, { common, skipConsensusFormatValidation: true });
    const account = await this.vm.stateManager.getAccount(createAddressFromPrivateKey(from.key));
    const tx = createLegacyTx({ nonce: account?.nonce ?? 0n, gasPrice: 0n, gasLimit: 10_000_000n, to, data }, { common }).sign(from.key);
    const result = await runTx(this.vm, { tx, block, skipBalance: true });
    const { exceptionError, returnValue, logs } = result.execResult;
    if (exceptionError) {
      const error = abi.parseError(bytesToHex(returnValue));
      throw new Error(error ? `${error.name}(${error.args.join(", ")})` : exceptionError.error ?? String(exceptionError));
    }
    const events = (logs ?? []).map(([, topics, data]) => abi.parseLog({ topics: topics.map((topic) => bytesToHex(topic)), data: bytesToHex(data) }));
    return { gas: Number(result.totalGasSpent), returned: bytesToHex(returnValue), created: result.createdAddress, events };
  }

  async deploy(from, ...args) {
    const data = contract.bytecode + abi.encodeDeploy(args).slice(2);
    const sent = await this.send(from, undefined, data);
    return { ...sent, registry: new Registry(this, sent.created) };
  }
}

/** Number of the arguments of each vote before its deadline. */
const BEFORE_DEADLINE = { approve: 3, revoke: 1, setApprovers: 3 };

export class Registry {
  constructor(chain, address) {
    Object.assign(this, { chain, address });
  }

  /** Sends a call. A vote without a deadline gets one in an hour. */
  call(from, name, ...args) {
    if (args.length === BEFORE_DEADLINE[name]) args.push(this.chain.time + 3600n);
    return this.chain.send(from, this.address, abi.encodeFunctionData(name, args));
  }

  async read(name, ...args) {
    const { returned } = await this.call(person("reader"), name, ...args);
    return abi.decodeFunctionResult(name, returned);
  }

  async word(slot) {
    const word = await this.chain.vm.stateManager.getStorage(this.address, setLengthLeft(hexToBytes(slot), 32));
    return bytesToHex(setLengthLeft(word, 32));
  }

  async code() {
    return bytesToHex(await this.chain.vm.stateManager.getCode(this.address));
  }
}
