//! `cargo xtask bench image`: the image beside a Debian with systemd, its generic kernel and the
//! same engine, in one run.
//!
//! Both boot on the same emulated board with the same processors and memory; each says its own
//! times and memory.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use config::Ledger;
use ledger::Status;
use trustctl::client::{Address, Client};
use trustctl::statement;

use super::boot::seconds;
use super::median;
use crate::class::root;
use crate::cmd::{self, DEFAULT_VARIANT, TEST_MACHINE, build_image, dev};
use crate::console::{Console, free_port};
use crate::machine::Machine;
use crate::plan::{Plan, Step};
use crate::qemu::Boot;
use crate::sandbox::Sandbox;
use crate::{keys, progress};

const DEADLINE: Duration = Duration::from_secs(900);
/// The same for both, after the engine answers.
const IDLE: Duration = Duration::from_secs(60);
/// What the README promises, in MB of used memory and as a share of the other's time.
const MOST_MEMORY_MB: f64 = 87.0;
const MOST_TIME: f64 = 0.5;

struct Run {
    engine_s: f64,
    memory_mb: f64,
    processes: f64,
}

/// What is compared; all but the times and the memory are counted in the files.
struct Side {
    download: f64,
    root: f64,
    options: f64,
    executables: f64,
    setuid: f64,
    runs: Vec<Run>,
}

pub(super) fn run(boots: usize) -> Result<()> {
    let plan = Plan::new(TEST_MACHINE, DEFAULT_VARIANT, false)?;
    let image = build_image::build(&plan)?;
    let other = plan.build(&Step::Baseline)?.dir;
    let (tools, machine, dir) =
        (plan.tools()?, plan.machine.clone(), dev::scratch(&plan, "bench")?);
    let mut ours = counted(&plan, &image)?;
    let mut debian = counted_baseline(&other)?;
    drop(plan);
    // In turns, so that a busy moment of the host is nobody's advantage.
    for n in 0..boots {
        let dir = dir.join(n.to_string());
        std::fs::create_dir_all(&dir)?;
        progress::line(&format!("boot {} of {boots}: Basalt, then Debian", n + 1));
        ours.runs.push(boot(&tools, &machine, &image, &dir)?);
        debian.runs.push(boot_baseline(&tools, &machine, &other, &dir)?);
    }
    table(&ours, &debian)
}

fn counted(plan: &Plan, image: &Path) -> Result<Side> {
    let (executables, setuid) = cmd::size::executables(&root::laid_out(plan)?)?;
    Ok(Side {
        download: bytes(&image.with_extension("img.xz"))?,
        root: bytes(&plan.planned(&Step::Root)?.file("root.img"))?,
        options: options(&image.with_file_name("kernel.config"))?,
        executables: executables.len() as f64,
        setuid: setuid as f64,
        runs: Vec::new(),
    })
}

fn counted_baseline(dir: &Path) -> Result<Side> {
    use std::os::unix::fs::MetadataExt as _;
    let number = |name: &str| -> Result<f64> {
        let text = std::fs::read_to_string(dir.join(name))?;
        text.trim()
            .parse()
            .with_context(|| format!("{name} of the baseline is no number: {text:?}"))
    };
    Ok(Side {
        // With the kernel and initramfs in it, as Debian has them.
        download: bytes(&dir.join("root.img.xz"))?,
        root: dir.join("root.img").metadata()?.blocks() as f64 * 512.0,
        options: options(&dir.join("config"))?,
        executables: number("executables")?,
        setuid: number("setuid")?,
        runs: Vec::new(),
    })
}

fn bytes(path: &Path) -> Result<f64> {
    Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len() as f64)
}

/// Built in or as a module.
fn options(config: &Path) -> Result<f64> {
    Ok(std::fs::read_to_string(config)?
        .lines()
        .filter(|l| l.ends_with("=y") || l.ends_with("=m"))
        .count() as f64)
}

fn boot(tools: &Path, machine: &Machine, image: &Path, dir: &Path) -> Result<Run> {
    build_image::sparse_copy(image, &dir.join("disk.img"))?;
    let port = free_port()?;
    let boot = Boot { tools, machine, dir, port, tpm: true, outside: false };
    let mut console = Console::start(&boot)?;
    let engine_s = seconds(&console.wait_for("dockerd is ready", DEADLINE)?)?;
    let keys = trustctl::keys::folder()?;
    for name in ["owner.key", "owner.crt"] {
        std::fs::copy(keys.join(name), dir.join(name)).with_context(|| format!("no {name}"))?;
    }
    let client = Client::new(Address::Tls(format!("127.0.0.1:{port}")), dir);
    console.wait_for("audit: module-started", DEADLINE)?;
    stop_modules(&client)?;
    console.wait_for("audit: module-stopped", DEADLINE)?;
    std::thread::sleep(IDLE);
    let status = client.get("/v1/status")?;
    let kib = |key: &str| {
        status["memory"][key].as_f64().with_context(|| format!("the node did not say its {key}"))
    };
    let used = kib("total_kb")? - kib("available_kb")?;
    let processes =
        status["processes"].as_f64().context("the node did not say how many processes it has")?;
    Ok(Run { engine_s, memory_mb: used * 1024.0 / 1e6, processes })
}

/// The other side runs no container, so the modules that ship are taken back: trustd stops what is
/// revoked.
fn stop_modules(client: &Client) -> Result<()> {
    let mut longer =
        client.get("/v1/ledger")?["log"].as_str().context("the node has no ledger")?.to_owned();
    let key = trustctl::keys::load_approver(&trustctl::keys::folder()?.join("approver.key"))?;
    let Ledger { name, .. } = keys::node()?.ledger;
    for module in
        client.get("/v1/modules")?["modules"].as_array().context("the node names no modules")?
    {
        longer = statement::appended(
            &longer,
            module["digest"].as_str().context("a module has no digest")?,
            Status::Revoked,
            &name,
            &key,
        )?;
    }
    client.put("/v1/ledger", &serde_json::json!({ "log": longer }))?;
    Ok(())
}

fn boot_baseline(tools: &Path, machine: &Machine, files: &Path, dir: &Path) -> Result<Run> {
    let q = machine.qemu.as_ref().context("the machine for tests has no [qemu]")?;
    build_image::sparse_copy(&files.join("root.img"), &dir.join("debian.img"))?;
    let sandbox = Sandbox::new(tools).write(dir, "/work").read(files, "/in").cwd("/work");
    let mut args: Vec<String> =
        vec!["qemu-system-aarch64".into(), "-machine".into(), q.machine.clone()];
    args.extend(q.options.iter().cloned());
    let line = "console=ttyAMA0 quiet loglevel=4 root=/dev/vda ro";
    for word in [
        "-display none -monitor none -no-reboot -serial stdio -kernel /in/vmlinuz -initrd /in/initrd -netdev user,id=net,restrict=on",
        "-drive file=debian.img,format=raw,if=none,id=disk -device virtio-blk-device,drive=disk -device",
        &q.net_device,
    ] {
        args.extend(word.split(' ').map(str::to_owned));
    }
    args.extend(["-append".into(), line.into()]);
    let mut console = Console::of(sandbox.command(args)?, None, dir)?;
    console.wait_for("measure: end", DEADLINE)?;
    said(&console.text)
}

/// What the baseline says of itself (image/baseline/measure).
fn said(console: &str) -> Result<Run> {
    let mut found = std::collections::BTreeMap::new();
    for (name, value) in
        console.lines().filter_map(|line| line.split_once("measure: ")?.1.trim().split_once(' '))
    {
        found.insert(
            name,
            value
                .trim()
                .parse::<f64>()
                .with_context(|| format!("the baseline's {name} is no number: {value:?}"))?,
        );
    }
    let take = |name: &str| {
        found.get(name).copied().with_context(|| format!("the baseline did not say {name}"))
    };
    Ok(Run {
        engine_s: take("engine")?,
        memory_mb: (take("MemTotal:")? - take("MemAvailable:")?) * 1024.0 / 1e6,
        processes: take("processes")?,
    })
}

fn table(ours: &Side, debian: &Side) -> Result<()> {
    let of = |side: &Side, what: fn(&Run) -> f64| {
        median(&mut side.runs.iter().map(what).collect::<Vec<_>>())
    };
    println!("\n| | Basalt | Debian trixie | ratio |\n|---|---|---|---|");
    let row = |what: &str, a: f64, b: f64, digits: usize| {
        let ratio = if b == 0.0 { "".into() } else { format!("{:.3}", a / b) };
        println!("| {what} | {a:.digits$} | {b:.digits$} | {ratio} |");
    };
    let (memory, time) =
        (of(ours, |r| r.memory_mb), (of(ours, |r| r.engine_s), of(debian, |r| r.engine_s)));
    row("download, xz (MB)", ours.download / 1e6, debian.download / 1e6, 1);
    row("root file system (MB)", ours.root / 1e6, debian.root / 1e6, 1);
    row("kernel start to engine answers (s)", time.0, time.1, 2);
    row("memory used, idle (MB)", memory, of(debian, |r| r.memory_mb), 1);
    row("processes", of(ours, |r| r.processes), of(debian, |r| r.processes), 0);
    row("kernel options =y or =m", ours.options, debian.options, 0);
    row("executables", ours.executables, debian.executables, 0);
    row("of them setuid or setgid", ours.setuid, debian.setuid, 0);
    println!(
        "\nmedians of {} boots each; no container runs on either side while memory and processes are counted",
        ours.runs.len()
    );
    let mut broken = Vec::new();
    if memory > MOST_MEMORY_MB {
        broken.push(format!("memory used: {memory:.1} MB, at most {MOST_MEMORY_MB} promised"));
    }
    if time.0 > MOST_TIME * time.1 {
        broken.push(format!(
            "engine: {:.2} of Debian's time, at most {MOST_TIME} promised",
            time.0 / time.1
        ));
    }
    if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("; ")) }
}
