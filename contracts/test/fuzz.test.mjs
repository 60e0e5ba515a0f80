// Random votes, compared with a model that is written from the rules and not from the contract.
import assert from "node:assert/strict";
import { test } from "node:test";
import { sha256, toUtf8Bytes } from "ethers";
import { Chain, person } from "./chain.mjs";

const PEOPLE = Array.from({ length: 6 }, (_, n) => person(`p${n}`));
const DIGESTS = ["a", "b", "c"].map((name) => sha256(toUtf8Bytes(name)));
const RUNS = Number(process.env.RUNS ?? 12);
const STEPS = 60;

/** Returns a generator of pseudo-random numbers: the same seed gives the same numbers (mulberry32). */
function random(seed) {
  return (below) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

class Model {
  constructor(who, quorum, revocations) {
    this.seq = 1n;
    this.records = new Map();
    this.open = new Map();
    Object.assign(this, { who, quorum, revocations });
  }

  /** Returns whether this vote completes the quorum. Throws the error that the contract should revert with. */
  ballot(from, what, needed) {
    const key = JSON.stringify(what, (_, value) => (typeof value === "bigint" ? String(value) : value));
    const voters = this.open.get(key) ?? new Set();
    if (voters.has(from)) throw new Error("AlreadyVoted");
    voters.add(from);
    this.open.set(key, voters);
    return voters.size >= needed;
  }

  vote(from, digest, status, notAfter, now) {
    if (!this.who.includes(from)) throw new Error("NotAnApprover");
    const revokes = status === 3;
    if (!revokes && status !== 1 && status !== 2) throw new Error("NoSuchStatus");
    if (!revokes && notAfter <= now) throw new Error("ExpiresBeforeNow");
    const known = this.records.get(digest);
    if (known?.status === 3) throw new Error("RevocationIsFinal");
    if (!this.ballot(from, [digest, status, notAfter, revokes ? 0n : (known?.seq ?? 0n)], revokes ? this.revocations : this.quorum)) return;
    this.records.set(digest, { status, since: now, notAfter, seq: ++this.seq });
  }

  change(from, who, quorum, revocations) {
    if (!this.who.includes(from)) throw new Error("NotAnApprover");
    if (!this.ballot(from, ["approvers", who, quorum, revocations], this.quorum)) return;
    Object.assign(this, { who, quorum, revocations, open: new Map() });
    this.seq++;
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
      chain.time += BigInt(pick(50));
      const from = PEOPLE[pick(PEOPLE.length)];
      const digest = DIGESTS[pick(DIGESTS.length)];
      const notAfter = 1_700_000_000n + BigInt(pick(3)) * 2000n;
      const kind = pick(10);
      const [name, args, expected] =
        kind === 0
          ? ["revoke", [digest], () => model.vote(from.address, digest, 3, 0n, chain.time)]
          : kind === 1
            ? ((next) => ["setApprovers", next, () => model.change(from.address, ...next)])(sets[pick(2)])
            : ((status) => ["approve", [digest, status, notAfter], () => model.vote(from.address, digest, status, notAfter, chain.time)])(pick(3));
      let wanted = null;
      try {
        expected();
      } catch (error) {
        wanted = error.message;
      }
      const found = await registry.call(from, name, ...args).then(() => null, (error) => error.message.split("(")[0]);
      assert.equal(found, wanted, `step ${step}: ${from.name} ${name} ${args}`);
      for (const one of DIGESTS) {
        const record = await registry.read("records", one);
        const known = model.records.get(one) ?? { status: 0, since: 0n, notAfter: 0n, seq: 0n };
        assert.deepEqual([Number(record.status), record.since, record.notAfter, record.seq], [known.status, known.since, known.notAfter, known.seq]);
      }
      assert.equal((await registry.read("seq"))[0], model.seq);
    }
  });
}
