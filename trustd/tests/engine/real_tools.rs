//! Images of other tools on a node: harmless ones run, others are refused with a reason.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use basalt_trustd::modules::ModuleStatus;
use basalt_trustd::util::error_chain::error_chain;
use ledger::Status;

use crate::node::{Node, WAIT_TIMEOUT, run, statement};
use crate::tools::{Outcome, Source, ToolBox, ToolImage, images, situations};

/// Modules that start concurrently.
const BATCH: usize = 8;

#[test]
fn images_of_all_tools_run_or_are_refused_with_a_reason() {
    run(async {
        let tools = ToolBox::start().await;
        let made = images(&tools);
        let host = format!("[[registries]]\nhost = \"{}\"\nplain = true\n", tools.registry.address);
        let node = Node::with("tools", &host).await;
        assert_outcomes(node, &tools.registry.address.to_string(), &made).await;
    });
}

#[test]
fn reported_situations_run_or_are_refused_with_a_reason() {
    run(async {
        let node = Node::start("situations").await;
        assert_outcomes(node, "", &situations()).await;
    });
}

/// Approves all images, applies a module for each, and compares what becomes of them.
async fn assert_outcomes(node: Node, registry: &str, images: &[ToolImage]) {
    let lines = images
        .iter()
        .enumerate()
        .map(|(n, image)| statement(&node.key, &image.digest, Status::Approved, n as u64 + 1));
    node.admission.extend_log(&lines.collect::<String>()).await.unwrap();
    let mut problems = BTreeMap::new();
    for batch in images.chunks(BATCH) {
        let mut applied = Vec::new();
        for image in batch {
            match push(&node, registry, image).await {
                Ok(()) => applied.push(image),
                Err(problem) => {
                    problems.extend(problem.map(|text| (image.name.clone(), text)));
                }
            }
        }
        for image in applied {
            let found = settle(&node, &module_name(image)).await;
            if let Err(problem) = compare(&node, image, &found).await {
                problems.insert(image.name.clone(), problem);
            }
        }
    }
    let list: String = problems.iter().map(|(name, text)| format!("{name}: {text}\n")).collect();
    assert!(problems.is_empty(), "{} of {}:\n{list}", problems.len(), images.len());
}

/// Returns the name of an image's module, which has at most 32 characters.
fn module_name(image: &ToolImage) -> String {
    image.name.chars().take(32).collect()
}

/// Uploads an image if it is an archive, and applies its module. Returns `Err` if the upload was
/// refused, with a problem unless that is expected.
async fn push(node: &Node, registry: &str, image: &ToolImage) -> Result<(), Option<String>> {
    let mut source = String::new();
    match &image.source {
        Source::Repository(name) => source = format!("registry = \"{registry}/{name}\"\n"),
        Source::Archive(archive) => {
            if let Err(error) = node.push(archive).await {
                let error = error_chain(&error);
                return Err(match image.outcome {
                    Outcome::Refused(reason) if error.contains(reason) => None,
                    expected => Some(format!("expected {expected:?}, the upload says: {error}")),
                });
            }
        }
    }
    let toml = format!(
        "memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n{source}[health]\n\
         stays-s = 0\n",
        image.digest
    );
    node.apply(&module_name(image), &toml);
    Ok(())
}

/// Waits until a module runs, is denied or has failed.
async fn settle(node: &Node, name: &str) -> Option<ModuleStatus> {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while Instant::now() < deadline {
        let status = node.modules.status(name);
        if matches!(
            status,
            Some(
                ModuleStatus::Running { .. }
                    | ModuleStatus::Denied { .. }
                    | ModuleStatus::Failed { .. }
            )
        ) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.modules.status(name)
}

/// Compares a module's status with the expected outcome.
async fn compare(
    node: &Node,
    image: &ToolImage,
    found: &Option<ModuleStatus>,
) -> Result<(), String> {
    match (image.outcome, found) {
        (Outcome::Runs, Some(ModuleStatus::Running { container })) => {
            let engine = node.connect_engine().await;
            let deadline = Instant::now() + WAIT_TIMEOUT;
            let mut log = String::new();
            while !log.contains(&image.word) && Instant::now() < deadline {
                log = engine.logs(container, 10).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if log.contains(&image.word) {
                return Ok(());
            }
            Err(format!("expected the output {:?}, found {log:?}", image.word))
        }
        (Outcome::Refused(reason), Some(ModuleStatus::Denied { reason: found }))
            if found.contains(reason) =>
        {
            Ok(())
        }
        (expected, found) => Err(format!("expected {expected:?}, found {found:?}")),
    }
}
