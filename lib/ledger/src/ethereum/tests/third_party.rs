//! Data of third parties: networks of Snowbridge with 512 keys, in Deneb and in Electra, and Gloas
//! according to Lodestar's types.

use serde::Deserialize;

use super::super::beacon_api::{ApiBootstrap, ApiHeader, ApiUpdate};
use super::super::types::*;
use super::super::*;

#[derive(Deserialize)]
struct Chain {
    bootstrap: ApiBootstrap,
    updates: Vec<ApiUpdate>,
    execution_header: Option<ApiHeader>,
}

#[derive(Deserialize)]
struct Snowbridge {
    genesis_validators_root: Hash,
    electra: Chain,
    deneb: Chain,
}

#[derive(Deserialize)]
struct Gloas {
    genesis_validators_root: Hash,
    fork_version: Hex<4>,
    signing_root: Hash,
    bootstrap: ApiBootstrap,
    updates: Vec<ApiUpdate>,
    upgraded_header: ApiHeader,
}

fn snowbridge() -> Snowbridge {
    serde_json::from_str(include_str!("../../../tests/ethereum/snowbridge.json")).unwrap()
}

fn layout(name: &str) -> Layout {
    *LAYOUTS.iter().find(|layout| layout.name == name).unwrap()
}

fn network(root: Hash, preset: Preset, fork: &str, version: [u8; 4]) -> Network {
    // Snowbridge's headers have no branch to the execution block.
    let block_hash = layout(fork).block_hash.filter(|_| fork == "gloas");
    let forks = vec![Fork { epoch: 0, version, layout: Layout { block_hash, ..layout(fork) } }];
    Network {
        preset,
        genesis_validators_root: root.0,
        genesis_time: 0,
        seconds_per_slot: 12,
        forks,
    }
}

/// Starts at the bootstrap and applies the updates.
fn follow(
    network: &Network,
    bootstrap: ApiBootstrap,
    updates: Vec<ApiUpdate>,
) -> Result<LightClientStore, ChainError> {
    let bootstrap = Bootstrap::try_from(bootstrap).unwrap();
    let checkpoint = bootstrap.header.beacon.root();
    let mut store = LightClientStore::bootstrap(network, &checkpoint, &bootstrap)?;
    for update in updates {
        store.process_update(network, &update.try_into().unwrap(), 10_000)?;
    }
    Ok(store)
}

#[test]
fn a_network_of_512_keys_is_followed_into_its_next_period() {
    let Snowbridge { genesis_validators_root, electra, .. } = snowbridge();
    let network = network(genesis_validators_root, MAINNET, "electra", [5, 0, 0, 0]);
    let store = follow(&network, electra.bootstrap, electra.updates).unwrap();
    assert_eq!((store.finalized_header.beacon.slot, store.period(&network)), (8192, 1));
    assert_eq!(store.optimistic_header.beacon.slot, 8256);
}

#[test]
fn the_indices_before_electra_are_valid_for_deneb_and_not_for_electra() {
    for (fork, valid) in [("deneb", true), ("electra", false)] {
        let Snowbridge { genesis_validators_root, deneb, .. } = snowbridge();
        let store = follow(
            &network(genesis_validators_root, MAINNET, fork, [4, 0, 0, 0]),
            deneb.bootstrap,
            deneb.updates,
        );
        assert_eq!(store.is_ok(), valid, "{fork}");
    }
}

#[test]
fn an_altered_update_of_a_third_party_is_rejected() {
    let rejected = |alter: &dyn Fn(&mut Update), message: &str| {
        let Snowbridge { genesis_validators_root, electra, .. } = snowbridge();
        let network = network(genesis_validators_root, MAINNET, "electra", [5, 0, 0, 0]);
        let mut store = follow(&network, electra.bootstrap, Vec::new()).unwrap();
        let mut update = Update::try_from(electra.updates.into_iter().next().unwrap()).unwrap();
        alter(&mut update);
        let error = store.process_update(&network, &update, 10_000).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    let (signature, committee) = ("signature is invalid", "next sync committee");
    rejected(&|u| u.sync_aggregate.sync_committee_signature.0[50] ^= 1, signature);
    rejected(&|u| u.sync_aggregate.sync_committee_bits.0[9] ^= 1, signature);
    rejected(&|u| u.attested_header.beacon.parent_root.0[0] ^= 1, signature);
    rejected(&|u| u.next_sync_committee.as_mut().unwrap().pubkeys.rotate_left(1), committee);
    rejected(&|u| u.next_sync_committee_branch[0].0[0] ^= 1, committee);
    rejected(&|u| u.finality_branch[5].0[31] ^= 1, "finalized header");
    rejected(&|u| u.finalized_header.as_mut().unwrap().beacon.slot += 1, "finalized header");
    let Snowbridge { electra, .. } = snowbridge();
    let other = network(Hash::new([1; 32]), MAINNET, "electra", [5, 0, 0, 0]);
    assert!(
        matches!(
            follow(&other, electra.bootstrap, electra.updates),
            Err(ChainError::Signature { .. })
        ),
        "another genesis"
    );
}

#[test]
fn a_header_of_the_api_leads_to_its_execution_block() {
    let header = Header::try_from(snowbridge().electra.execution_header.unwrap()).unwrap();
    let is_valid = |name: &str| {
        let branch: Vec<Root> = header.block_hash_branch.iter().map(|hash| hash.0).collect();
        let index = layout(name).block_hash.unwrap();
        let hash = header.block_hash.unwrap().0;
        ssz::is_valid_branch(&hash, &branch, index, &header.beacon.body_root.0)
    };
    assert!(is_valid("deneb") && is_valid("electra") && is_valid("fulu"));
    assert!(!is_valid("capella") && !is_valid("gloas"));
}

#[test]
fn gloas_is_followed_according_to_its_types() {
    let gloas: Gloas =
        serde_json::from_str(include_str!("../../../tests/ethereum/gloas.json")).unwrap();
    let network = network(gloas.genesis_validators_root, MINIMAL, "gloas", gloas.fork_version.0);
    let updates: Vec<Update> =
        gloas.updates.into_iter().map(|update| update.try_into().unwrap()).collect();
    let attested = &updates[0];
    let root =
        network.signing_root(&attested.attested_header.beacon.root(), attested.signature_slot);
    assert_eq!(root, gloas.signing_root.0);
    let mut store = follow(&network, gloas.bootstrap, Vec::new()).unwrap();
    for update in &updates {
        if !store.is_redundant(&network, update) {
            store.process_update(&network, update, 10_000).unwrap();
        }
    }
    assert!(store.next_sync_committee.is_some());
    assert_eq!(store.optimistic_header, attested.attested_header);
    // A header of an earlier fork in Gloas's form has zeros at the start of its branch.
    let old = Header::try_from(gloas.upgraded_header).unwrap();
    let branch: Vec<Root> = old.block_hash_branch.iter().map(|hash| hash.0).collect();
    assert!(ssz::is_valid_branch(
        &old.block_hash.unwrap().0,
        &branch,
        layout("electra").block_hash.unwrap(),
        &old.beacon.body_root.0
    ));
}
