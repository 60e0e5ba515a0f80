//! Our list of members, in the format of `members.go`.

use std::io;

use oci::{Limits, MemberKind, OciError, list_members};
use sha2::{Digest as _, Sha256};

/// Returns the list of an archive, or the reason of its rejection.
pub(crate) fn list(archive: &[u8]) -> Result<Vec<u8>, OciError> {
    let mut list = vec![1];
    list_members(archive, &Limits::default(), |member, content| {
        let mut hasher = Sha256::new();
        let mut buffer = [0; 4096];
        let mut size = 0;
        loop {
            let n = match content.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if n == 0 {
                break;
            }
            hasher.update(&buffer[..n]);
            size += n as u64;
        }
        assert_eq!(size, member.size);
        list.push(match member.kind {
            MemberKind::File => b'0',
            MemberKind::HardLink => b'1',
            MemberKind::SymbolicLink => b'2',
            MemberKind::Folder => b'5',
            MemberKind::Fifo => b'6',
            MemberKind::GlobalRecords => b'g',
        });
        push_text(&mut list, &member.path);
        push_text(&mut list, &member.target);
        list.extend(size.to_le_bytes());
        list.extend(hasher.finalize());
        if member.kind != MemberKind::GlobalRecords {
            list.extend(u64::from(member.uid).to_le_bytes());
            list.extend(u64::from(member.gid).to_le_bytes());
        }
        list.extend((member.attributes.len() as u32).to_le_bytes());
        for name in &member.attributes {
            push_text(&mut list, name);
        }
        Ok(())
    })?;
    Ok(list)
}

fn push_text(list: &mut Vec<u8>, text: &[u8]) {
    list.extend((text.len() as u32).to_le_bytes());
    list.extend(text);
}
