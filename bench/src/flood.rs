//! Effect of a module that floods its socket on the latency of another module.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ::client::Suite;
use config::Quota;

use crate::socket_host::{ALL_CALLS, Cgroup, LARGE_QUOTA, SocketHost, client, container};

const SUITE: Suite = Suite::Ed25519Tai;
/// Number of measured calls.
const CALLS: usize = 5000;
/// Interval between two measured calls.
const CALL_INTERVAL: Duration = Duration::from_millis(1);
/// Number of connections of the flooding module.
const CONNECTIONS: usize = 8;

/// Floods a socket until the process is killed. It runs in a process of its own, because trustd
/// identifies a module by the process that connects.
pub(crate) fn flood(socket: &Path) {
    let _cgroup = Cgroup::enter(&container(2));
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut node = client(socket);
                loop {
                    // A quota rejects some of the calls.
                    let _ = node.vrf_prove(SUITE, b"flood");
                }
            });
        }
    });
}

/// Process that floods. It is killed on drop.
struct FloodProcess(Child);

impl FloodProcess {
    fn start(socket: &Path) -> Self {
        let program = std::env::current_exe().unwrap();
        Self(Command::new(program).arg("flood").arg(socket).spawn().unwrap())
    }
}

impl Drop for FloodProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes calls at the rate of a working module, and returns the 99th percentile of their latency.
fn measure_p99(socket: &Path) -> Duration {
    let mut node = client(socket);
    let mut latencies: Vec<Duration> = (0..CALLS)
        .map(|_| {
            std::thread::sleep(CALL_INTERVAL);
            let start = Instant::now();
            node.vrf_prove(SUITE, b"other").unwrap();
            start.elapsed()
        })
        .collect();
    latencies.sort();
    latencies[CALLS * 99 / 100]
}

/// Prints the latency of a module before and while another one floods, with the default quota and
/// practically without one.
pub(crate) fn measure() {
    for (name, quota) in [("the default quota", Quota::default()), ("no quota", LARGE_QUOTA)] {
        let host = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(SocketHost::start());
        let measured = host.module(1, "measured", &ALL_CALLS, LARGE_QUOTA);
        let flooding = host.module(2, "flooding", &ALL_CALLS, quota);
        let _cgroup = Cgroup::enter(&container(1));
        let before = measure_p99(&measured);
        let _process = FloodProcess::start(&flooding);
        let during = measure_p99(&measured);
        println!(
            "FIGURE p99 of vrf/prove while another module floods over {CONNECTIONS} connections \
             with {name}: {:.2} ms, {:.2} ms before, ratio {:.2} (at most 2)",
            during.as_secs_f64() * 1e3,
            before.as_secs_f64() * 1e3,
            during.as_secs_f64() / before.as_secs_f64()
        );
    }
}
