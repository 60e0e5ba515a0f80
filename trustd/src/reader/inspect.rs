//! Inspection of a layer by a reader.

use std::io::{self, Read};

use oci::{LayerInfo, Limits, OciError};

use super::process::Process;
use super::wire::{Answer, Request};
use super::{ReaderError, Readers};

/// Bytes that are passed to a reader at a time.
const CHUNK_BYTES: usize = 128 << 10;

impl Readers {
    /// Begins the inspection of a layer whose bytes will be sent.
    ///
    /// # Errors
    /// The reader cannot be started.
    pub fn begin_inspection(&self, limits: &Limits) -> Result<Inspection<'_>, ReaderError> {
        let request = Request::Inspect { limits: limits.clone() };
        let process = Process::start(self, self.inspections.take(), &request)?;
        Ok(Inspection { process, limits: limits.clone(), is_open: true })
    }

    /// Inspects the layer in `packed`, whose end shows whether it has the right digest.
    ///
    /// # Errors
    /// The errors of `packed`, which come before those of the reader; a rejection of the layer; and
    /// [`OciError::Io`] if there is no verdict.
    pub fn inspect(&self, mut packed: impl Read, limits: &Limits) -> Result<LayerInfo, OciError> {
        let mut inspection = self.begin_inspection(limits).map_err(into_verdict)?;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let n = packed.read(&mut chunk)?;
            if n == 0 {
                return inspection.finish();
            }
            if !inspection.send(&chunk[..n])? {
                let result = inspection.finish();
                // The end of the blob shows whether it has the right digest. A mismatch is the
                // better error.
                if !matches!(result, Err(OciError::Limit { .. })) {
                    io::copy(&mut packed, &mut io::sink())?;
                }
                return result;
            }
        }
    }
}

/// A layer that is being inspected.
pub struct Inspection<'a> {
    process: Process<'a>,
    limits: Limits,
    is_open: bool,
}

impl Inspection<'_> {
    /// Passes the next bytes of the layer to the reader. Returns `false` once the reader needs no
    /// more, because it has rejected the layer or ended.
    ///
    /// # Errors
    /// The reader stalls.
    pub fn send(&mut self, bytes: &[u8]) -> Result<bool, OciError> {
        if self.is_open {
            self.is_open = self.process.send(bytes).map_err(into_verdict)?;
        }
        Ok(self.is_open)
    }

    /// Ends the layer and returns its properties.
    ///
    /// # Errors
    /// A rejection of the layer, also if the reader ends or stalls; [`OciError::Io`] if there is no
    /// verdict.
    pub fn finish(mut self) -> Result<LayerInfo, OciError> {
        self.process.end_stream();
        match self.process.answer().map_err(into_verdict)? {
            Answer::Inspected(Ok(info)) => self.check(info),
            Answer::Inspected(Err(rejection)) => Err(rejection.into()),
            _ => Err(into_verdict(ReaderError::Answer("expected a layer's properties".into()))),
        }
    }

    /// Checks the form of the answer. Whether it is the right layer is decided by the comparison
    /// with manifest and config, and by the engine.
    fn check(&self, info: LayerInfo) -> Result<LayerInfo, OciError> {
        if oci::is_digest(&info.diff_id) && info.unpacked <= self.limits.unpacked {
            return Ok(info);
        }
        Err(into_verdict(ReaderError::Answer("the properties of a layer are impossible".into())))
    }
}

fn into_verdict(error: ReaderError) -> OciError {
    error.into_verdict(|problem| OciError::Layer { digest: String::new(), problem })
}
