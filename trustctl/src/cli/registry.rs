//! `trustctl chain show` and `votes`: the state of a registry contract.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use ledger::ethereum::{ApprovalLevel, Hash, Record};
use serde_json::json;
use trustctl::chain::{
    Approvers, OpenVote, Proposal, RecentVotes, RecordAtBlock, Registry, VOTE_LIFETIME_SECONDS,
};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Runs `trustctl chain show`.
pub(crate) fn show(registry: &Registry, digests: &[Hash], as_json: bool) -> Result<()> {
    let address = registry.address;
    registry.verify_code()?;
    let approvers = registry.approvers()?;
    let mut value = json!({
        "contract": address, "approvers": approvers.addresses, "quorum": approvers.quorum,
        "revocation_quorum": approvers.revocation_quorum, "images": {},
    });
    if !as_json {
        let (quorum, revocation_quorum) = (approvers.quorum, approvers.revocation_quorum);
        println!(
            "{address}: {} approvers; an approval needs {quorum}, a revocation {revocation_quorum}",
            approvers.addresses.len()
        );
        approvers.addresses.iter().for_each(|approver| println!("         {approver}"));
    }
    for digest in digests {
        let latest = registry.record(digest, "latest")?;
        // A new chain has no finalized block.
        let finalized = registry.record(digest, "finalized");
        if let Err(error) = &finalized {
            eprintln!("cannot read the record at the finalized block: {error:#}");
        }
        let finalized = finalized.ok();
        value["images"][digest.to_string()] = json!({
            "latest": record_json(&latest), "final": finalized.as_ref().map(record_json),
        });
        if !as_json {
            println!("sha256:{}", measure::hex(&digest.0));
            println!("  newest {}", record_text(&latest));
            println!("  final  {}", finalized.as_ref().map_or("unknown".into(), record_text));
        }
    }
    if as_json {
        println!("{value}");
    }
    Ok(())
}

fn record_json(RecordAtBlock { record, block, time }: &RecordAtBlock) -> serde_json::Value {
    json!({ "record": record, "block": block, "age_s": now().saturating_sub(*time) })
}

fn record_text(RecordAtBlock { record, block, time }: &RecordAtBlock) -> String {
    let status = match record {
        Record::Absent => "not approved".into(),
        Record::Approved { approval: ApprovalLevel::Clear, not_after, seq, .. } => {
            format!("clear until {not_after} (change {seq})")
        }
        Record::Approved { approval: ApprovalLevel::Proof, not_after, seq, .. } => {
            format!("proof until {not_after} (change {seq})")
        }
        Record::Revoked { seq, .. } => format!("REVOKED (change {seq})"),
    };
    format!("{status}, at block {block}, {} s ago", now().saturating_sub(*time))
}

/// Runs `trustctl chain votes`. Without digests, it lists the votes about every image and about the
/// approvers.
pub(crate) fn votes(registry: &Registry, digests: &[Hash], as_json: bool) -> Result<()> {
    registry.verify_code()?;
    let approvers = registry.approvers()?;
    let recent = match digests {
        [] => registry.recent_votes()?,
        _ => RecentVotes { digests: digests.iter().copied().collect(), ..Default::default() },
    };
    let mut subjects: Vec<Option<Hash>> = recent.digests.iter().copied().map(Some).collect();
    if digests.is_empty() {
        subjects.push(None);
    }
    let mut open = Vec::new();
    for subject in subjects {
        let votes = registry.open_votes(subject.as_ref())?;
        open.extend(votes.into_iter().map(|vote| (subject, vote)));
    }
    open.sort_by_key(|(subject, vote)| (*subject, vote.proposal, vote.time));
    let now = now();
    if as_json {
        let votes: Vec<_> =
            open.iter().map(|(subject, vote)| vote_json(*subject, vote, &recent, now)).collect();
        println!("{}", json!({ "contract": registry.address, "votes": votes }));
        return Ok(());
    }
    if open.is_empty() {
        println!("{}: no vote is open", registry.address);
    }
    for group in open.chunk_by(|one, other| (one.0, one.1.proposal) == (other.0, other.1.proposal))
    {
        let (subject, OpenVote { proposal, .. }) = group[0];
        println!("{}", proposal_text(subject, proposal, &recent));
        println!("  {} of {} votes:", group.len(), required_votes(proposal, &approvers));
        group.iter().for_each(|(_, vote)| println!("  {}", vote_text(vote, now)));
    }
    Ok(())
}

fn required_votes(proposal: Proposal, approvers: &Approvers) -> u64 {
    match proposal {
        Proposal::Revoke => approvers.revocation_quorum,
        Proposal::Approve { .. } | Proposal::Approvers(_) => approvers.quorum,
    }
}

/// Returns the first second since 1970 at which a vote no longer counts.
fn closing_time(vote: &OpenVote) -> u64 {
    let closes = vote.time.saturating_add(VOTE_LIFETIME_SECONDS);
    match vote.proposal {
        Proposal::Approve { not_after, .. } => closes.min(not_after),
        Proposal::Revoke | Proposal::Approvers(_) => closes,
    }
}

fn vote_json(
    subject: Option<Hash>,
    vote: &OpenVote,
    recent: &RecentVotes,
    now: u64,
) -> serde_json::Value {
    let mut value = json!({
        "digest": subject, "approver": vote.approver, "time": vote.time,
        "age_s": now.saturating_sub(vote.time), "closes": closing_time(vote),
    });
    match vote.proposal {
        Proposal::Approve { level, not_after } => {
            value["vote"] = json!("approve");
            value["approval"] = json!(level);
            value["not_after"] = json!(not_after);
        }
        Proposal::Revoke => value["vote"] = json!("revoke"),
        Proposal::Approvers(set) => {
            value["vote"] = json!("approvers");
            let set = recent.sets.get(&set);
            value["approvers"] = json!(set.map(|set| &set.addresses));
            value["quorum"] = json!(set.map(|set| set.quorum));
            value["revocation_quorum"] = json!(set.map(|set| set.revocation_quorum));
        }
    }
    value
}

fn proposal_text(subject: Option<Hash>, proposal: Proposal, recent: &RecentVotes) -> String {
    let digest =
        subject.map(|hash| format!("sha256:{}", measure::hex(&hash.0))).unwrap_or_default();
    match proposal {
        Proposal::Approve { level, not_after } => {
            let level = if level == ApprovalLevel::Proof { "proof" } else { "clear" };
            format!("{digest}: approve as {level} until {not_after}")
        }
        Proposal::Revoke => format!("{digest}: revoke"),
        Proposal::Approvers(hash) => match recent.sets.get(&hash) {
            Some(Approvers { addresses, quorum, revocation_quorum }) => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                format!(
                    "approvers: {}; an approval would need {quorum}, a revocation \
                     {revocation_quorum}",
                    addresses.join(" ")
                )
            }
            None => format!("approvers: the set {hash}, which the node's events do not show"),
        },
    }
}

fn vote_text(vote: &OpenVote, now: u64) -> String {
    let closes = closing_time(vote).saturating_sub(now);
    format!(
        "{}  {} ago, closes in {}",
        vote.approver,
        duration_text(now.saturating_sub(vote.time)),
        duration_text(closes)
    )
}

/// Returns a duration in the greatest unit that it has two or more of.
fn duration_text(seconds: u64) -> String {
    let unit = |length, name: &str| {
        (seconds >= 2 * length).then(|| format!("{} {name}", seconds / length))
    };
    unit(86_400, "days")
        .or_else(|| unit(3600, "hours"))
        .or_else(|| unit(60, "minutes"))
        .unwrap_or_else(|| format!("{seconds} s"))
}
