//! Properties of arbitrary input.

use basalt_oci::{export, inspect};
use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// An altered archive yields the approved image or an error.
    #[test]
    fn an_altered_archive_yields_the_same_image_or_none(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let (archive, digest) = good();
        let (blobs, image) = check(&archive, &digest).unwrap();
        let expected = export(&blobs, &image, "n", Vec::new()).unwrap();
        let mut altered = archive;
        for (at, byte) in changes {
            let at = at.index(altered.len());
            altered[at] = byte;
        }
        if cuts {
            altered.truncate(cut.index(altered.len()));
        }
        if let Ok((blobs, image)) = check(&altered, &digest) {
            prop_assert_eq!(export(&blobs, &image, "n", Vec::new()).unwrap(), expected);
        }
    }

    /// No input makes the parsers panic or hang.
    #[test]
    fn random_bytes_cause_no_panic(
        junk in prop::collection::vec(any::<u8>(), 0..4096),
        start in prop::sample::select(vec![
            vec![],
            vec![0x1f, 0x8b, 8],
            vec![0x28, 0xb5, 0x2f, 0xfd],
        ]),
    ) {
        let bytes = [start, junk].concat();
        let _ = import(&mut bytes.as_slice(), &mut Memory::default(), &Limits::default());
        let limits = Limits { unpacked: 1 << 20, ..Limits::default() };
        let _ = inspect(bytes.as_slice(), &limits);
    }
}
