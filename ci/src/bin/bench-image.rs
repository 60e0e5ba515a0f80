//! `cargo xtask bench image`: compares the image with a Debian that has systemd, its generic kernel
//! and the same engine, in one run.
//!
//! Both boot on the same emulated board with the same processors and memory, and both report their
//! own times and memory.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use api::owner::Memory;
use ledger::Status;
use trustctl::client::{Address, Client};
use trustctl::statement;
use xtask::cmd::bench::stats::{median, seconds};
use xtask::cmd::{Session, build_image, dev, size};
use xtask::engine::progress;
use xtask::engine::sandbox::Sandbox;
use xtask::image::machine::Machine;
use xtask::image::{keys, sparse};
use xtask::qemu::boot::Boot;
use xtask::qemu::console::{Console, free_port};
use xtask::rules::{baseline, root, sysroot};

const BOOT_TIMEOUT: Duration = Duration::from_secs(900);
/// Time between the engine's first answer and the count of memory and processes, on both sides.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Used memory of the image that the README promises.
const MAX_MEMORY_MB: f64 = 87.0;
/// Share of Debian's time to the engine's first answer that the README promises.
const MAX_TIME_RATIO: f64 = 0.5;

/// Figures of one boot.
struct Run {
    engine_s: f64,
    memory_mb: f64,
    processes: f64,
}

/// Figures of one system. All except for those of the runs are counted in its files.
struct System {
    download_bytes: f64,
    root_bytes: f64,
    kernel_options: f64,
    executables: f64,
    setuid: f64,
    runs: Vec<Run>,
}

fn main() -> Result<()> {
    let boots = std::env::args().nth(1).context("expected the number of boots")?.parse()?;
    let session = Session::open_test()?;
    let image = build_image::build(&session)?;
    let graph = &session.graph;
    let baseline = graph.build(&baseline::step(&session.image))?.dir;
    let (tools, machine) = (sysroot::tools(graph)?, session.image.machine.clone());
    let dir = dev::scratch(graph, "bench")?;
    let mut basalt = count_image(&session, &image)?;
    let mut debian = count_baseline(&baseline)?;
    // From here on, the cache is only read.
    drop(session);
    // In turns, so that a busy moment of the host affects both.
    for n in 0..boots {
        let dir = dir.join(n.to_string());
        std::fs::create_dir_all(&dir)?;
        progress::line(&format!("boot {} of {boots}: Basalt, then Debian", n + 1));
        basalt.runs.push(boot_image(&tools, &machine, &image, &dir)?);
        debian.runs.push(boot_baseline(&tools, &machine, &baseline, &dir)?);
    }
    print_table(&basalt, &debian)
}

fn count_image(session: &Session, image: &Path) -> Result<System> {
    let root = root::tree(&session.graph, &session.image)?;
    let (executables, setuid) = size::executables(&root)?;
    let root = session.graph.artifact(&root::step(&session.image))?.file("root.img");
    Ok(System {
        download_bytes: file_size(&image.with_extension("img.xz"))?,
        root_bytes: file_size(&root)?,
        kernel_options: count_options(&image.with_file_name("kernel.config"))?,
        executables: executables.len() as f64,
        setuid: setuid as f64,
        runs: Vec::new(),
    })
}

fn count_baseline(dir: &Path) -> Result<System> {
    use std::os::unix::fs::MetadataExt as _;
    let number = |name: &str| -> Result<f64> {
        let text = std::fs::read_to_string(dir.join(name))?;
        let number = text.trim().parse();
        number.with_context(|| format!("{name} of the baseline is not a number: {text:?}"))
    };
    Ok(System {
        // Debian's kernel and initramfs are files of its root.
        download_bytes: file_size(&dir.join("root.img.xz"))?,
        root_bytes: dir.join("root.img").metadata()?.blocks() as f64 * 512.0,
        kernel_options: count_options(&dir.join("config"))?,
        executables: number("executables")?,
        setuid: number("setuid")?,
        runs: Vec::new(),
    })
}

fn file_size(path: &Path) -> Result<f64> {
    Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len() as f64)
}

/// Returns the number of options that are built in or built as a module.
fn count_options(config: &Path) -> Result<f64> {
    let config = std::fs::read_to_string(config)?;
    Ok(config.lines().filter(|l| l.ends_with("=y") || l.ends_with("=m")).count() as f64)
}

fn boot_image(tools: &Path, machine: &Machine, image: &Path, dir: &Path) -> Result<Run> {
    sparse::copy(image, &dir.join("disk.img"))?;
    let port = free_port()?;
    let boot = Boot { tools, machine, dir, port, tpm: true, external_network: false };
    let mut console = Console::start(&boot)?;
    let engine_s = seconds(&console.wait_for("dockerd is ready", BOOT_TIMEOUT)?)?;
    let keys = trustctl::keys::folder()?;
    for name in ["owner.key", "owner.crt"] {
        std::fs::copy(keys.join(name), dir.join(name)).with_context(|| format!("no {name}"))?;
    }
    let client = Client::new(Address::Tls(format!("127.0.0.1:{port}")), dir);
    console.wait_for("audit: module-started", BOOT_TIMEOUT)?;
    revoke_modules(&client)?;
    console.wait_for("audit: module-stopped", BOOT_TIMEOUT)?;
    std::thread::sleep(IDLE_TIME);
    let status = client.status()?.unlocked();
    let status = status.map_err(|locked| anyhow!("the node is locked: {}", locked.locked))?;
    let Memory { total_kib, available_kib } = status.memory;
    let memory = total_kib.zip(available_kib).context("the node does not report its memory")?;
    let used = memory.0.saturating_sub(memory.1) as f64;
    let processes = status.processes as f64;
    Ok(Run { engine_s, memory_mb: used * 1024.0 / 1e6, processes })
}

/// Revokes the shipped modules, so that trustd stops them: the other system runs no container.
fn revoke_modules(client: &Client) -> Result<()> {
    let mut log = client.ledger_log()?;
    let key = trustctl::keys::load_approver(&trustctl::keys::folder()?.join("approver.key"))?;
    let name = keys::node()?.ledger.name;
    for module in client.modules()?.modules {
        log = statement::append_image(&log, &module.digest, Status::Revoked, &name, &key)?;
    }
    client.push_log(log)?;
    Ok(())
}

fn boot_baseline(tools: &Path, machine: &Machine, files: &Path, dir: &Path) -> Result<Run> {
    let q = machine.qemu.as_ref().context("the machine for tests has no [qemu]")?;
    sparse::copy(&files.join("root.img"), &dir.join("debian.img"))?;
    let sandbox = Sandbox::new(tools).write(dir, "/work").read(files, "/in").cwd("/work");
    let mut args: Vec<String> =
        vec!["qemu-system-aarch64".into(), "-machine".into(), q.machine.clone()];
    args.extend(q.options.iter().cloned());
    for words in [
        "-display none -monitor none -no-reboot -serial stdio",
        "-kernel /in/vmlinuz -initrd /in/initrd -netdev user,id=net,restrict=on",
        "-drive file=debian.img,format=raw,if=none,id=disk",
        "-device virtio-blk-device,drive=disk -device",
        &q.net_device,
    ] {
        args.extend(words.split(' ').map(str::to_owned));
    }
    let line = "console=ttyAMA0 quiet loglevel=4 root=/dev/vda ro";
    args.extend(["-append".into(), line.into()]);
    let mut console = Console::from_command(sandbox.command(args)?, None, dir)?;
    console.wait_for("measure: end", BOOT_TIMEOUT)?;
    parse_baseline_run(&console.text)
}

/// Reads the figures that the baseline prints (image/baseline/measure).
fn parse_baseline_run(console: &str) -> Result<Run> {
    let mut figures = BTreeMap::new();
    for line in console.lines() {
        let Some((_, figure)) = line.split_once("measure: ") else { continue };
        let Some((name, value)) = figure.trim().split_once(' ') else { continue };
        let number = value.trim().parse::<f64>();
        let number =
            number.with_context(|| format!("the baseline's {name} is not a number: {value:?}"))?;
        figures.insert(name, number);
    }
    let figure = |name: &str| {
        figures.get(name).copied().with_context(|| format!("the baseline does not report {name}"))
    };
    Ok(Run {
        engine_s: figure("engine")?,
        memory_mb: (figure("MemTotal:")? - figure("MemAvailable:")?) * 1024.0 / 1e6,
        processes: figure("processes")?,
    })
}

/// Prints the comparison; a figure that misses the README's promise is an error.
fn print_table(basalt: &System, debian: &System) -> Result<()> {
    let middle = |system: &System, figure: fn(&Run) -> f64| {
        median(&mut system.runs.iter().map(figure).collect::<Vec<_>>())
    };
    println!("\n| | Basalt | Debian trixie | ratio |\n|---|---|---|---|");
    let row = |name: &str, a: f64, b: f64, digits: usize| {
        let ratio = if b == 0.0 { String::new() } else { format!("{:.3}", a / b) };
        println!("| {name} | {a:.digits$} | {b:.digits$} | {ratio} |");
    };
    let memory = middle(basalt, |r| r.memory_mb);
    let time = (middle(basalt, |r| r.engine_s), middle(debian, |r| r.engine_s));
    row("download, xz (MB)", basalt.download_bytes / 1e6, debian.download_bytes / 1e6, 1);
    row("root file system (MB)", basalt.root_bytes / 1e6, debian.root_bytes / 1e6, 1);
    row("kernel start to engine answers (s)", time.0, time.1, 2);
    row("memory used, idle (MB)", memory, middle(debian, |r| r.memory_mb), 1);
    row("processes", middle(basalt, |r| r.processes), middle(debian, |r| r.processes), 0);
    row("kernel options =y or =m", basalt.kernel_options, debian.kernel_options, 0);
    row("executables", basalt.executables, debian.executables, 0);
    row("of them setuid or setgid", basalt.setuid, debian.setuid, 0);
    println!(
        "\nmedians of {} boots each; no container runs on either system while memory and processes \
         are counted",
        basalt.runs.len()
    );
    let mut problems = Vec::new();
    if memory > MAX_MEMORY_MB {
        problems.push(format!("memory used: {memory:.1} MB, promised at most {MAX_MEMORY_MB}"));
    }
    if time.0 > MAX_TIME_RATIO * time.1 {
        problems.push(format!(
            "engine: {:.2} of Debian's time, promised at most {MAX_TIME_RATIO}",
            time.0 / time.1
        ));
    }
    if problems.is_empty() { Ok(()) } else { bail!("{}", problems.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_figures_of_the_baseline() {
        let console = "noise\nmeasure: engine 12.5\nmeasure: MemTotal: 1000000 kB\n";
        assert!(parse_baseline_run(console).is_err(), "kB is not a number");
        let console = "measure: engine 12.5\r\nmeasure: MemTotal: 2000000\n\
            measure: MemAvailable: 1000000\nmeasure: processes 40\nmeasure: end\n";
        let run = parse_baseline_run(console).unwrap();
        assert_eq!((run.engine_s, run.memory_mb, run.processes), (12.5, 1024.0, 40.0));
        assert!(parse_baseline_run("measure: engine 1\n").is_err(), "a figure is missing");
    }
}
