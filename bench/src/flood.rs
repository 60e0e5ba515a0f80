//! What a module that floods its socket does to another one's answers.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use config::Quota;

use crate::alone::{ALL, Alone, Group, MUCH, client, container};

const SUITE: &str = "ECVRF-EDWARDS25519-SHA512-TAI";
const CALLS: usize = 5000;
/// Of the module that floods.
const CONNECTIONS: usize = 8;

/// In a process of its own, for a module is known by its process: asks until it is ended.
pub(crate) fn flood(socket: &Path) {
    let _group = Group::enter(&container(2));
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                let mut node = client(socket);
                loop {
                    // Refused where a quota holds; it goes on all the same.
                    let _ = node.vrf_prove(SUITE, b"flood");
                }
            });
        }
    });
}

struct Flooder(Child);

impl Drop for Flooder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A call each millisecond or so, as a module would that works: how long the slowest of a hundred
/// takes.
fn p99(socket: &Path) -> Duration {
    let mut node = client(socket);
    let mut took: Vec<Duration> = (0..CALLS)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            let begun = Instant::now();
            node.vrf_prove(SUITE, b"other").unwrap();
            begun.elapsed()
        })
        .collect();
    took.sort();
    took[CALLS * 99 / 100]
}

pub(crate) fn measure() {
    for (what, quota) in [
        ("the quota of a module that says nothing", Quota::default()),
        ("no quota to speak of", MUCH),
    ] {
        let alone = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(Alone::start());
        let (ours, theirs) =
            (alone.module(1, "ours", &ALL, MUCH), alone.module(2, "floods", &ALL, quota));
        let _group = Group::enter(&container(1));
        let before = p99(&ours);
        let _flooder = Flooder(
            Command::new(std::env::current_exe().unwrap())
                .arg("flood")
                .arg(&theirs)
                .spawn()
                .unwrap(),
        );
        let during = p99(&ours);
        println!(
            "FIGURE another module floods over {CONNECTIONS} connections with {what}: p99 of vrf/prove {:.2} ms, {:.2} ms before, ratio {:.2} (at most 2)",
            during.as_secs_f64() * 1e3,
            before.as_secs_f64() * 1e3,
            during.as_secs_f64() / before.as_secs_f64()
        );
    }
}
