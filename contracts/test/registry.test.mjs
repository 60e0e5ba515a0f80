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

const DAY = 86_400n;
const ZERO = "0x" + "00".repeat(32);
const openVotes = async (registry, subject) =>
  (await registry.read("openVotes", subject))[0].filter((vote) => vote.status !== 0n).map((vote) => [vote.approver, Number(vote.status), vote.notAfter, vote.time]);

test("a withdrawn vote does not complete an approval, and can be cast again", async () => {
  const r = await registry();
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  const { events } = await r.call(ana, "withdraw", digest("a"));
  assert.deepEqual(events.map((event) => [event.name, event.args[0], event.args[1].toLowerCase()]), [["Withdrawn", digest("a"), ana.address]]);
  await rejected(r.call(ana, "withdraw", digest("a")), "NoOpenVote");
  await r.call(ben, "approve", digest("a"), CLEAR, LATER);
  assert.equal(await status(r, "a"), 0, "ana's vote was withdrawn");
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  assert.equal(await status(r, "a"), CLEAR);
});

test("only the approver's own vote that is open can be withdrawn", async () => {
  const r = await registry(2, 2);
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  await rejected(r.call(ben, "withdraw", digest("a")), "NoOpenVote");
  await rejected(r.call(ana, "withdraw", digest("b")), "NoOpenVote");
  await rejected(r.call(ana, "withdraw", ZERO), "NoOpenVote");
  await rejected(r.call(mallory, "withdraw", digest("a")), "NotAnApprover");
  // A completed approval is changed by a revocation only.
  await r.call(ben, "approve", digest("a"), CLEAR, LATER);
  for (const who of [ana, ben]) await rejected(r.call(who, "withdraw", digest("a")), "NoOpenVote");
  assert.equal(await status(r, "a"), CLEAR);
  for (const who of [ana, ben]) await r.call(who, "revoke", digest("a"));
  for (const who of [ana, ben]) await rejected(r.call(who, "withdraw", digest("a")), "NoOpenVote");
  assert.equal(await status(r, "a"), REVOKED);
  assert.deepEqual(await openVotes(r, digest("a")), []);
});

test("a vote to revoke and a vote for other approvers can be withdrawn", async () => {
  const r = await registry(2, 2);
  await r.call(ana, "revoke", digest("a"));
  await r.call(ana, "withdraw", digest("a"));
  await r.call(ben, "revoke", digest("a"));
  assert.equal(await status(r, "a"), 0);
  const next = [[dora.address], 1, 1];
  await r.call(ana, "setApprovers", ...next);
  await r.call(ana, "withdraw", ZERO);
  await r.call(ben, "setApprovers", ...next);
  assert.equal((await r.read("isApprover", dora.address))[0], false);
  await r.call(cleo, "setApprovers", ...next);
  assert.equal((await r.read("isApprover", dora.address))[0], true);
});

test("a new vote replaces the approver's open vote about the same image or the approvers", async () => {
  const r = await registry(2, 2);
  await r.call(ana, "approve", digest("a"), CLEAR, LATER);
  await r.call(ana, "revoke", digest("a"));
  await r.call(ben, "approve", digest("a"), CLEAR, LATER);
  assert.equal(await status(r, "a"), 0, "ana now wants the image revoked");
  await r.call(ana, "approve", digest("a"), PROOF, LATER);
  await r.call(cleo, "revoke", digest("a"));
  assert.equal(await status(r, "a"), 0, "ana no longer wants the image revoked");
  // The vote that completes a change replaces too.
  await r.call(ana, "revoke", digest("b"));
  await r.call(ben, "approve", digest("b"), CLEAR, LATER);
  await r.call(ana, "approve", digest("b"), CLEAR, LATER);
  await r.call(cleo, "revoke", digest("b"));
  assert.equal(await status(r, "b"), CLEAR, "ana approved it after the vote to revoke");
  const [one, other] = [[[dora.address], 1, 1], [[mallory.address], 1, 1]];
  await r.call(ana, "setApprovers", ...other);
  await r.call(ana, "setApprovers", ...one);
  await r.call(ben, "setApprovers", ...other);
  assert.equal((await r.read("isApprover", mallory.address))[0], false, "ana is for another set now");
  await rejected(r.call(ana, "setApprovers", ...one), "AlreadyVoted");
  await r.call(cleo, "setApprovers", ...one);
  assert.equal((await r.read("isApprover", dora.address))[0], true);
});

test("a vote is open for 30 days", async () => {
  const next = [[dora.address], 1, 1];
  for (const [age, counts] of [[30n * DAY - 1n, true], [30n * DAY, false]]) {
    const r = await registry(2, 2);
    await r.call(ana, "approve", digest("a"), CLEAR, LATER);
    await r.call(ana, "revoke", digest("b"));
    await r.call(ana, "setApprovers", ...next);
    r.chain.time += age;
    if (!counts) await rejected(r.call(ana, "withdraw", digest("a")), "NoOpenVote");
    assert.equal((await openVotes(r, digest("a"))).length, counts ? 1 : 0);
    await r.call(ben, "approve", digest("a"), CLEAR, LATER);
    await r.call(ben, "revoke", digest("b"));
    assert.deepEqual([await status(r, "a"), await status(r, "b")], counts ? [CLEAR, REVOKED] : [0, 0]);
    await r.call(ben, "setApprovers", ...next);
    assert.equal((await r.read("isApprover", dora.address))[0], counts);
    if (counts) continue;
    // The approver can vote for the same again.
    await r.call(ana, "approve", digest("a"), CLEAR, LATER);
    assert.equal(await status(r, "a"), CLEAR);
  }
});

test("a vote whose approval would be expired is closed", async () => {
  const r = await registry();
  await r.call(ana, "approve", digest("a"), CLEAR, r.chain.time + 10n);
  r.chain.time += 10n;
  await rejected(r.call(ana, "withdraw", digest("a")), "NoOpenVote");
  assert.deepEqual(await openVotes(r, digest("a")), []);
});

test("a transaction that is included after its deadline counts for nothing", async () => {
  const r = await registry(1);
  const deadline = r.chain.time + 60n;
  r.chain.time += 61n;
  await rejected(r.call(ana, "approve", digest("a"), CLEAR, LATER, deadline), "TooLate");
  await rejected(r.call(ana, "revoke", digest("a"), deadline), "TooLate");
  await rejected(r.call(ana, "setApprovers", [mallory.address], 1, 1, deadline), "TooLate");
  r.chain.time -= 1n;
  await r.call(ana, "approve", digest("a"), CLEAR, LATER, deadline);
  assert.equal(await status(r, "a"), CLEAR);
});

test("the open votes are listed for each approver", async () => {
  const r = await registry(3, 2);
  const time = r.chain.time;
  await r.call(ana, "approve", digest("a"), PROOF, LATER);
  r.chain.time += 5n;
  await r.call(cleo, "revoke", digest("a"));
  const [a, c] = [ana, cleo].map((one) => checksummed(one.address));
  assert.deepEqual(await openVotes(r, digest("a")), [[a, PROOF, LATER, time], [c, REVOKED, 0n, time + 5n]]);
  const { events } = await r.call(ana, "setApprovers", [dora.address], 1, 1);
  assert.deepEqual(events.map((event) => event.name), ["VotedForApprovers"]);
  const [[vote]] = [(await r.read("openVotes", ZERO))[0]];
  const set = keccak256(AbiCoder.defaultAbiCoder().encode(["address[]", "uint16", "uint16"], [[dora.address], 1, 1]));
  assert.deepEqual([vote.approver, vote.status, vote.set], [a, 4n, set]);
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
  assert.deepEqual([await r.read("era"), await r.read("quorum")].map(([value]) => value), [4n, 2n]);
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
  assert.deepEqual(shown, ["0:0 records", "1:0 seq", "1:8 era", "1:16 quorum", "1:18 revocationQuorum", "2:0 eraOf", "3:0 list", "4:0 votes", "5:0 setOf"]);
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
  await r.call(ana, "approve", digest("b"), CLEAR, LATER);
  const withdrawn = (await r.call(ana, "withdraw", digest("b"))).gas;
  const revoked = (await r.call(cleo, "revoke", digest("a"))).gas;
  const changing = (await r.call(ana, "setApprovers", [ana.address, dora.address], 2, 1)).gas;
  const changed = (await r.call(ben, "setApprovers", [ana.address, dora.address], 2, 1)).gas;
  const many = Array.from({ length: 64 }, (_, n) => person(`m${n}`));
  const { registry: large } = await chain.deploy(dora, many.map((one) => one.address), 2, 1);
  await large.call(many[0], "approve", digest("a"), CLEAR, LATER);
  const greatest = (await large.call(many[1], "approve", digest("a"), CLEAR, LATER)).gas;
  const measured = { deployed, first, second, withdrawn, revoked, changing, changed, greatest };
  const table = readFileSync(new URL("../../docs/chain.md", import.meta.url), "utf8");
  for (const [what, gas] of Object.entries(measured)) {
    const row = new RegExp(`\\| ${what} \\|.*\\| ([0-9,]+) \\|`).exec(table);
    assert.ok(row, `docs/chain.md: expected a row "${what}", found none; measured: ${JSON.stringify(measured)}`);
    assert.equal(Number(row[1].replaceAll(",", "")), gas, `docs/chain.md, ${what}: measured ${JSON.stringify(measured)}`);
  }
});
