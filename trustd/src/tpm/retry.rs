//! Retries of commands that the TPM postpones, and reopening after an error.

use std::thread::sleep;
use std::time::{Duration, Instant};

use tss_esapi::Error;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;

use super::device::Device;
use super::error::TpmError;

/// Time after which a TPM that still postpones a command counts as failed.
const RETRY_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_INITIAL: Duration = Duration::from_millis(10);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// A device that is opened again after an error.
pub(super) struct RetryingDevice {
    /// `None` after an error; the next command opens the device.
    device: Option<Device>,
    tcti: String,
}

impl RetryingDevice {
    pub(super) fn open(tcti: &str) -> Result<Self, TpmError> {
        Ok(Self { device: Some(Device::open(tcti)?), tcti: tcti.to_owned() })
    }

    /// Runs a command, and retries it while the TPM reports that it did not start it (TPM 2.0
    /// Library, Part 2, 6.6.3: RC_RETRY, RC_TESTING, RC_YIELDED, RC_NV_RATE). Only then is a
    /// command that changes something safe to repeat. Any other response is final.
    pub(super) fn run<T>(
        &mut self,
        mut command: impl FnMut(&mut Device) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let (start, mut backoff) = (Instant::now(), BACKOFF_INITIAL);
        loop {
            let device = match &mut self.device {
                Some(device) => device,
                closed => closed.insert(Device::open(&self.tcti)?),
            };
            let error = match command(device) {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            match response_kind(&error) {
                Some(Kind::Retry | Kind::Testing | Kind::Yielded | Kind::NvRate)
                    if start.elapsed() < RETRY_TIMEOUT =>
                {
                    sleep(backoff);
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
                Some(Kind::Lockout) => return Err(TpmError::Lockout),
                _ => {}
            }
            // A command that was cut off leaves the library in an unknown state and objects in the
            // TPM. Closing the device makes the kernel's resource manager flush them. After a
            // mere error response, reopening costs almost nothing.
            self.device = None;
            return Err(error);
        }
    }

    /// Leaks the device. Freeing the C library's context while the process exits on another thread
    /// corrupted its heap; the kernel closes the device.
    pub(super) fn leak(self) {
        std::mem::forget(self.device);
    }
}

fn response_kind(error: &TpmError) -> Option<Kind> {
    match error {
        TpmError::Operation { source: Error::Tss2Error(code), .. } => code.kind(),
        _ => None,
    }
}
