//! What to do when the TPM does not do what it is asked: ask again, or give up and say why.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tss_esapi::Error;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;

use super::TpmError;
use super::device::Device;

/// How long a TPM may test itself, or ask for the same command again.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A device that is opened anew when its connection broke.
pub(super) struct Patient {
    /// None after an error: opened at the next command.
    device: Option<Device>,
    tcti: String,
}

impl Patient {
    pub(super) fn open(tcti: &str) -> Result<Self, TpmError> {
        Ok(Self { device: Some(Device::open(tcti)?), tcti: tcti.to_owned() })
    }

    /// Asks again while the TPM says that it has not begun (TPM 2.0 Library, Part 2, 6.6.3:
    /// RC_RETRY, RC_TESTING, RC_YIELDED, RC_NV_RATE): only then is a command that changes something
    /// safe to repeat. Anything else is an answer.
    pub(super) fn ask<T>(
        &mut self,
        mut command: impl FnMut(&mut Device) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let device = match &mut self.device {
                Some(device) => device,
                closed => closed.insert(Device::open(&self.tcti)?),
            };
            let error = match command(device) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match kind(&error) {
                Some(Kind::Retry | Kind::Testing | Kind::Yielded | Kind::NvRate)
                    if begun.elapsed() < PATIENCE =>
                {
                    sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
                Some(Kind::Lockout) => return Err(TpmError::Lockout),
                _ => {}
            }
            // A command that was cut off leaves the library in the middle of it and objects in the
            // TPM. Closing the device makes the kernel's resource manager flush them; after an
            // error that is only an answer it costs next to nothing.
            self.device = None;
            return Err(error);
        }
    }

    /// Taking the C library's context down while the process ends on another thread corrupted its
    /// heap; the kernel closes the device.
    pub(super) fn leave(self) {
        std::mem::forget(self.device);
    }
}

fn kind(error: &TpmError) -> Option<Kind> {
    match error {
        TpmError::Refused { source: Error::Tss2Error(code), .. } => code.kind(),
        _ => None,
    }
}
