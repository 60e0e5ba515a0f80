// Random votes, compared with a model that is written from the rules and not from the contract.
import assert from "node:assert/strict";
import { test } from "node:test";
import { sha256, toUtf8Bytes } from "ethers";
import { Chain, person } from "./chain.mjs";

const PEOPLE = Array.from({ length: 6 }, (_, n) => person(`p${n}`));
const DIGESTS = ["a", "b", "c"].map((name) => sha256(toUtf8Bytes(name)));
const RUNS = Number(process.env.RUNS ?? 12);
const STEPS = 60;
const ZERO = "0x" + "00".repeat(32);
/** Outcomes of all runs: the calls that succeeded, and the errors of the others. */
const seen = new Set();

/** Returns a generator of pseudo-random numbers: the same seed gives the same numbers (mulberry32). */
function random(seed) {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

const DAY = 86_400n;
const LIFETIME = 30n * DAY;
const BEGIN = 1_700_000_000n;
const EXPIRIES = [BEGIN + 2000n, BEGIN + 60n * DAY, BEGIN + 5000n * DAY];

/** Open votes are kept by subject (a digest, or 0 for the approvers) and approver. */
class Model {
  constructor(who, quorum, revocations) {
    this.seq = 1n;
    this.records = new Map();
    this.open = new Map();
    Object.assign(this, { who, quorum, revocations });
  }

  /** Returns the open votes about a subject, by approver, without those that time has closed. */
  votes(subject, now) {
    const votes = this.open.get(subject) ?? new Map();
    for (const [from, { time, notAfter }] of votes) {
      if (now >= time + LIFETIME || (notAfter !== 0n && now >= notAfter)) votes.delete(from);
    }
    this.open.set(subject, votes);
    return votes;
  }

  /** Checks what is the same for every call. `deadline` is null for a call that has none. */
  admit(from, deadline, now) {
    if (!this.who.includes(from)) throw new Error("NotAnApprover");
    if (deadline !== null && now > deadline) throw new Error("TooLate");
  }

  /** Returns whether this vote completes the quorum. Throws the error that the contract should revert with. */
  ballot(from, subject, what, notAfter, needed, now) {
    const votes = this.votes(subject, now);
    const key = JSON.stringify(what, (_, value) => (typeof value === "bigint" ? String(value) : value));
    if (votes.get(from)?.key === key) throw new Error("AlreadyVoted");
    votes.set(from, { key, time: now, notAfter, status: subject === "0" ? 4 : what[0] });
    return [...votes.values()].filter((vote) => vote.key === key).length >= needed;
  }

  vote(from, digest, status, notAfter, deadline, now) {
    this.admit(from, deadline, now);
    const revokes = status === 3;
    if (!revokes && status !== 1 && status !== 2) throw new Error("NoSuchStatus");
    if (!revokes && notAfter <= now) throw new Error("ExpiresBeforeNow");
    if (this.records.get(digest)?.status === 3) throw new Error("RevocationIsFinal");
    if (!this.ballot(from, digest, [status, notAfter], notAfter, revokes ? this.revocations : this.quorum, now)) return;
    const votes = this.votes(digest, now);
    votes.delete(from);
    for (const [other, { status: cast }] of votes) if (revokes || cast !== 3) votes.delete(other);
    this.records.set(digest, { status, since: now, notAfter, seq: ++this.seq });
  }

  change(from, who, quorum, revocations, deadline, now) {
    this.admit(from, deadline, now);
    if (!this.ballot(from, "0", [who, quorum, revocations], 0n, this.quorum, now)) return;
    Object.assign(this, { who, quorum, revocations, open: new Map() });
    this.seq++;
  }

  withdraw(from, subject, now) {
    this.admit(from, null, now);
    if (!this.votes(subject, now).delete(from)) throw new Error("NoOpenVote");
  }
}

for (let run = 0; run < RUNS; run++) {
  test(`votes with seed ${run}`, async () => {
    const pick = random(run);
    const some = () => {
      const who = PEOPLE.filter(() => pick(2) === 0);
      const chosen = who.length > 0 ? who : [PEOPLE[0]];
      const quorum = 1 + pick(chosen.length);
      return [chosen.map((one) => one.address), quorum, 1 + pick(quorum)];
    };
    const chain = await Chain.begin();
    const begin = some();
    const { registry } = await chain.deploy(PEOPLE[0], ...begin);
    const model = new Model(...begin);
    // Only two candidate sets, so that a vote for one of them can reach the quorum.
    const sets = [some(), some()];
    for (let step = 0; step < STEPS; step++) {
      chain.time += pick(15) === 0 ? BigInt(pick(31)) * DAY : BigInt(pick(50));
      const from = PEOPLE[pick(PEOPLE.length)];
      const digest = DIGESTS[pick(DIGESTS.length)];
      const notAfter = EXPIRIES[pick(EXPIRIES.length)];
      const deadline = chain.time + BigInt(pick(20)) - 1n;
      const [name, args, expected] = step_of(pick, model, chain.time, { from, digest, notAfter, deadline, sets });
      let wanted = null;
      try {
        expected();
      } catch (error) {
        wanted = error.message;
      }
      seen.add(wanted ?? name);
      const found = await registry.call(from, name, ...args).then(() => null, (error) => error.message.split("(")[0]);
      assert.equal(found, wanted, `step ${step}: ${from.name} ${name} ${args}`);
      // A call changes nothing about other subjects, which is compared less often.
      const all = step % 10 === 9 || step === STEPS - 1;
      await compare(registry, model, all ? [...DIGESTS, "0"] : [digest, "0"], chain.time);
    }
  });
}

/** Returns a random call: its name, its arguments, and the same for the model. */
function step_of(pick, model, now, { from, digest, notAfter, deadline, sets }) {
  const kind = pick(12);
  if (kind === 0) return ["revoke", [digest, deadline], () => model.vote(from.address, digest, 3, 0n, deadline, now)];
  if (kind === 1) {
    const next = sets[pick(2)];
    return ["setApprovers", [...next, deadline], () => model.change(from.address, ...next, deadline, now)];
  }
  if (kind <= 3) {
    const subject = pick(4) === 0 ? "0" : digest;
    return ["withdraw", [subject === "0" ? ZERO : subject], () => model.withdraw(from.address, subject, now)];
  }
  const status = pick(12) === 0 ? 0 : 1 + pick(2);
  return ["approve", [digest, status, notAfter, deadline], () => model.vote(from.address, digest, status, notAfter, deadline, now)];
}

/** Compares the records and the open votes of the registry with those of the model. */
async function compare(registry, model, subjects, now) {
  for (const one of subjects) {
    const record = await registry.read("records", one === "0" ? ZERO : one);
    const known = model.records.get(one) ?? { status: 0, since: 0n, notAfter: 0n, seq: 0n };
    assert.deepEqual([Number(record.status), record.since, record.notAfter, record.seq], [known.status, known.since, known.notAfter, known.seq]);
    const [open] = await registry.read("openVotes", one === "0" ? ZERO : one);
    const votes = model.votes(one, now);
    const expected = model.who.map((address) => {
      const { status, notAfter, time } = votes.get(address) ?? { status: 0, notAfter: 0n, time: 0n };
      return [address, status, notAfter, time];
    });
    assert.deepEqual(open.map((vote) => [vote.approver.toLowerCase(), Number(vote.status), vote.notAfter, vote.time]), expected);
  }
  assert.equal((await registry.read("seq"))[0], model.seq);
}

test("the random votes had every outcome", { skip: RUNS < 12 }, () => {
  const outcomes = ["AlreadyVoted", "ExpiresBeforeNow", "NoOpenVote", "NoSuchStatus", "NotAnApprover", "RevocationIsFinal", "TooLate"];
  assert.deepEqual([...seen].sort(), [...outcomes, "approve", "revoke", "setApprovers", "withdraw"].sort());
});
