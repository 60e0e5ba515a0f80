//! Answers of a reader that a third party took over: frames, one after the other.
#![no_main]

use std::collections::BTreeMap;

use basalt_trustd::reader::wire::{Answer, Frame, MAX_DATA_BYTES, receive};
use libfuzzer_sys::fuzz_target;
use oci::{Limits, OciError, Platform, digests_in};
use sha2::{Digest as _, Sha256};

fuzz_target!(|data: &[u8]| {
    let (mut stream, mut buffer, mut documents) = (data, Vec::new(), BTreeMap::new());
    let digest = |bytes: &[u8]| format!("sha256:{}", measure::hex(&Sha256::digest(bytes)));
    let mut asked = String::new();
    while let Ok(frame) = receive::<Answer>(&mut stream, &mut buffer) {
        match frame {
            // Data stands for a document that trustd has verified.
            Frame::Data(document) => {
                assert!(document.len() <= MAX_DATA_BYTES);
                asked = digest(document);
                documents.insert(asked.clone(), document.to_vec());
            }
            Frame::Message(Answer::Resolved(Ok(claim))) => {
                let (platform, limits) = (Platform::linux("arm64"), Limits::default());
                let Ok(image) = claim.accept(&asked, &platform, documents.clone(), &limits) else {
                    continue;
                };
                // Whatever the answer is, it leads only to what the documents name.
                let named: Vec<&str> = documents.values().flat_map(|d| digests_in(d)).collect();
                assert!(image.digest == asked || named.contains(&image.digest.as_str()));
                for (digest, _) in image.blobs().skip(1) {
                    assert!(named.contains(&digest));
                }
            }
            Frame::Message(
                Answer::Inspected(Err(rejection))
                | Answer::Resolved(Err(rejection))
                | Answer::Imported(Err(rejection)),
            ) => {
                let error = OciError::from(rejection).to_string();
                assert!(!error.chars().any(char::is_control), "{error:?}");
            }
            Frame::Message(_) => {}
        }
    }
});
