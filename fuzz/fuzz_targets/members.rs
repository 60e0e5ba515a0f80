//! Layers of third parties, compared with the engine's reader: each accepted layer has the same
//! members for Go. `BASALT_GO` names a Go toolchain; without it, only our own list is checked.
#![no_main]
// A fuzz target reports its findings by panics.
#![allow(clippy::expect_used)]

use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use oci::{Limits, MemberKind, list_members};

#[path = "../../lib/oci/tests/differential/engine.rs"]
mod engine;
#[path = "../../lib/oci/tests/differential/list.rs"]
mod list;

static ENGINE: LazyLock<Option<Mutex<engine::Engine>>> =
    LazyLock::new(|| engine::Engine::start().map(Mutex::new));

fuzz_target!(|data: &[u8]| {
    let Ok(ours) = list::list(data) else { return };
    // Every path stays below the root, in one spelling.
    let checked = list_members(data, &Limits::default(), |member, _| {
        let hard_link = (member.kind == MemberKind::HardLink).then_some(&member.target);
        for path in [Some(&member.path), hard_link].into_iter().flatten() {
            let mut components = path.split(|b| *b == b'/');
            let plain = components.all(|c| !matches!(c, b"" | b"." | b".."));
            assert!(plain || path.is_empty(), "{path:?}");
        }
        assert!(member.size == 0 || member.kind == MemberKind::File);
        Ok(())
    });
    assert!(checked.is_ok());
    // The engine's program gets the plain archive, so a compressed one is left to the other target.
    let packed = [&[0x1f, 0x8b, 8][..], &[0x28, 0xb5, 0x2f, 0xfd]];
    if packed.iter().any(|magic| data.starts_with(magic)) || data.get(1..4) == Some(b"*M\x18") {
        return;
    }
    if let Some(engine) = &*ENGINE {
        let mut engine = engine.lock().expect("no other input failed");
        let theirs = engine.list(&[data.to_vec()]).remove(0);
        assert!(ours == theirs, "ours {ours:02x?}\ntheirs {theirs:02x?}");
    }
});
