import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { AbiCoder, keccak256, sha256, toUtf8Bytes } from "ethers";
import { Chain, contract, person } from "./chain.mjs";

const [ana, ben, cleo, dora, mallory] = ["ana", "ben", "cleo", "dora", "mallory"].map(person);
const digest = (name) => sha256(toUtf8Bytes(name));
const [CLEAR, PROOF, REVOKED] = [1, 2, 3];
const LATER = 2_000_000_000n;

async function registry(quorum = 2, revocations = 1, who = [ana, ben, cleo]) {
  const chain = await Chain.begin();
  return (await chain.deploy(dora, who.map((one) => one.address), quorum, revocations)).registry;
}

const status = async (registry, name) => Number((await registry.read("records", digest(name))).status);
const rejected = (promise, name) => assert.rejects(promise, (error) => error.message.startsWith(name) || assert.fail(error.message));

test("an approval needs the quorum for exactly the same status and expiry", async () => {
  const r = await registry();
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  assert.equal(await status(r, "a"), 0);
  await r.call(ben, "approve", digest("a"), PROOF, LATER);
  await r.call(cleo, "approve", digest("a"), CLEAR, LATER + 1n);
  assert.equal(await status(r, "a"), 0, "three votes for three different approvals must not count together");
  const { events } = await r.call(ben, "approve", digest("a"), CLEAR, LATER);
  assert.deepEqual(events.map((event) => event.name), ["Voted", "Changed"]);
  const record = await r.read("records", digest("a"));
  assert.deepEqual([record.status, record.since, record.notAfter, record.seq], [1n, 1_700_000_000n, LATER, 2n]);
});

test("an approver cannot vote twice, and another account cannot vote", async () => {
  const r = await registry();
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  await rejected(r.call(ana, "approve", digest("a"), CLEAR, LATER), "AlreadyVoted");
  await rejected(r.call(mallory, "approve", digest("a"), CLEAR, LATER), "NotAnApprover");
  await rejected(r.call(mallory, "revoke", digest("a")), "NotAnApprover");
  await rejected(r.call(mallory, "setApprovers", [mallory.address], 1, 1), "NotAnApprover");
});

test("one approver revokes, also an image that was never approved, and that is final", async () => {
  const r = await registry();
  for (const who of [ana, ben]) await r.call(who, "approve", digest("a"), CLEAR, LATER);
  for (const name of ["a", "never"]) {
    await r.call(cleo, "revoke", digest(name));
    assert.equal(await status(r, name), REVOKED);
    await rejected(r.call(ana, "approve", digest(name), CLEAR, LATER), "RevocationIsFinal");
    await rejected(r.call(ana, "revoke", digest(name)), "RevocationIsFinal");
  }
});

test("a revocation can need more than one approver", async () => {
  const r = await registry(3, 2);
  await r.call(ana, "revoke", digest("a"));
  assert.equal(await status(r, "a"), 0);
  await r.call(ben, "revoke", digest("a"));
  assert.equal(await status(r, "a"), REVOKED);
});

test("votes from before a change of the record do not count after it", async () => {
  const r = await registry();
  await r.call(ana, "approve", digest("a"), PROOF, LATER);
  for (const who of [ben, cleo]) await r.call(who, "approve", digest("a"), CLEAR, LATER);
  await r.call(ben, "approve", digest("a"), PROOF, LATER);
  assert.equal(await status(r, "a"), CLEAR, "ana's vote was for the earlier record");
  await r.call(cleo, "approve", digest("a"), PROOF, LATER);
  assert.equal(await status(r, "a"), PROOF);
});

test("a vote to revoke stays valid when the approval changes meanwhile", async () => {
  const r = await registry(2, 2);
  for (const who of [ana, ben]) await r.call(who, "approve", digest("a"), CLEAR, LATER);
  await r.call(ana, "revoke", digest("a"));
  for (const who of [ben, cleo]) await r.call(who, "approve", digest("a"), CLEAR, LATER + 1n);
  await r.call(cleo, "revoke", digest("a"));
  assert.equal(await status(r, "a"), REVOKED);
});

test("invalid arguments are rejected", async () => {
  const r = await registry();
  for (const bad of [0, REVOKED, 4, 255]) await rejected(r.call(ana, "approve", digest("a"), bad, LATER), "NoSuchStatus");
  await rejected(r.call(ana, "approve", digest("a"), CLEAR, r.chain.time), "ExpiresBeforeNow");
  await rejected(r.call(ana, "approve", "0x" + "00".repeat(32), CLEAR, LATER), "NoDigest");
  const many = Array.from({ length: 65 }, (_, n) => person(`m${n}`).address);
  const bad = [[[], 0, 0], [[ana.address], 2, 1], [[ana.address], 0, 0], [[ana.address], 1, 0], [[ana.address, ben.address], 1, 2]];
  bad.push([[ana.address, ana.address], 1, 1], [["0x" + "00".repeat(20)], 1, 1], [many, 1, 1]);
  for (const [who, quorum, revocations] of bad) {
    await rejected((await Chain.begin()).deploy(dora, who, quorum, revocations), "NotASetOfApprovers");
    await r.call(ana, "setApprovers", who, quorum, revocations);
    await rejected(r.call(ben, "setApprovers", who, quorum, revocations), "NotASetOfApprovers");
  }
});

test("a quorum replaces the approvers, and their earlier votes are void", async () => {
  const r = await registry();
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  const next = [[ana.address, dora.address], 2, 1];
  await r.call(ana, "setApprovers", ...next);
  assert.deepEqual([...(await r.read("approvers"))[0]], [ana, ben, cleo].map((one) => one.address).map(checksummed));
  const { events } = await r.call(ben, "setApprovers", ...next);
  assert.equal(events.at(-1).name, "ApproversChanged");
  await rejected(r.call(ben, "approve", digest("a"), CLEAR, LATER), "NotAnApprover");
  await r.call(dora, "approve", digest("a"), CLEAR, LATER);
  assert.equal(await status(r, "a"), 0, "ana's vote was cast in an earlier era");
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  assert.equal(await status(r, "a"), CLEAR);
  // The first set returns. The votes of the first era stay void.
  const back = [[ana, ben, cleo].map((one) => one.address), 2, 1];
  for (const who of [ana, dora]) await r.call(who, "setApprovers", ...back);
  await rejected(r.call(dora, "revoke", digest("a")), "NotAnApprover");
  assert.deepEqual([await r.read("era"), await r.read("quorum")].map(([value]) => value), [3n, 2n]);
});

function checksummed(address) {
  return AbiCoder.defaultAbiCoder().decode(["address"], AbiCoder.defaultAbiCoder().encode(["address"], [address]))[0];
}

test("the contract accepts no money", async () => {
  const payable = contract.abi.filter((entry) => entry.stateMutability === "payable" || entry.type === "receive" || entry.type === "fallback");
  assert.deepEqual(payable, []);
});

// lib/ledger/src/ethereum/registry.rs reads this word, and docs/chain.md describes it.
test("a record is stored in the slot and packing that nodes read", async () => {
  const shown = contract.layout.storage.map(({ label, slot, offset }) => `${slot}:${offset} ${label}`);
  assert.deepEqual(shown, ["0:0 records", "1:0 seq", "1:8 era", "1:16 quorum", "1:18 revocationQuorum", "2:0 eraOf", "3:0 list", "4:0 voted", "5:0 votes"]);
  const r = await registry();
  for (const who of [ana, ben]) await r.call(who, "approve", digest("a"), PROOF, 0x0102030405060708n);
  const slot = keccak256(AbiCoder.defaultAbiCoder().encode(["bytes32", "uint256"], [digest("a"), 0]));
  const expected = "00".repeat(7) + "0000000000000002" + "0102030405060708" + (1_700_000_000).toString(16).padStart(16, "0") + "02";
  assert.equal(await r.word(slot), "0x" + expected);
});

test("registry.json is compiled from this source, and the deployed code is the code that nodes pin", async () => {
  const kept = JSON.parse(readFileSync(new URL("../registry.json", import.meta.url), "utf8"));
  assert.deepEqual([kept.bytecode, kept.code], [contract.bytecode, contract.code], "registry.json is out of date: run node compile.mjs > registry.json");
  assert.equal(await (await registry()).code(), kept.code);
});

// Compares the gas table of docs/chain.md with measured values.
test("the gas costs are those of docs/chain.md", async () => {
  const chain = await Chain.begin();
  const { gas: deployed, registry: r } = await chain.deploy(dora, [ana, ben, cleo].map((one) => one.address), 2, 1);
  const first = (await r.call(ana, "approve", digest("a"), CLEAR, LATER)).gas;
  const second = (await r.call(ben, "approve", digest("a"), CLEAR, LATER)).gas;
  const revoked = (await r.call(cleo, "revoke", digest("a"))).gas;
  const changing = (await r.call(ana, "setApprovers", [ana.address, dora.address], 2, 1)).gas;
  const changed = (await r.call(ben, "setApprovers", [ana.address, dora.address], 2, 1)).gas;
  const measured = { deployed, first, second, revoked, changing, changed };
  const table = readFileSync(new URL("../../docs/chain.md", import.meta.url), "utf8");
  for (const [what, gas] of Object.entries(measured)) {
    const row = new RegExp(`\\| ${what} \\|.*\\| ([0-9,]+) \\|`).exec(table);
    assert.ok(row, `docs/chain.md: expected a row "${what}", found none; measured: ${JSON.stringify(measured)}`);
    assert.equal(Number(row[1].replaceAll(",", "")), gas, `docs/chain.md, ${what}: measured ${JSON.stringify(measured)}`);
  }
});
