//! Giving the engine an image: while the later layers are still on their way, the engine unpacks the earlier ones.
//!
//! The engine unpacks nothing before it has an image. So it is given parts: the first few layers as an image of their own, then some
//! more, at last the image itself, for which it then has nearly all. Each part is verified like any image, is known to be ours
//! before the engine gets it, has no program, and is gone at the end.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::query_parameters::ImportImageOptions;
use futures_util::StreamExt as _;
use oci::{Emitter, Image, Layer, OciError, Verified};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Engine, EngineError, refused, tag};
use crate::store::{Store, StoreError};

/// A part has at least so many bytes, packed: each costs the engine some time of its own.
const PART: u64 = 24 << 20;
/// A request that is open for longer than this comes near its deadline.
const LONGEST: Duration = Duration::from_secs(600);

/// Told of every image that the engine is about to get (true), and of parts that it does not have any more (false).
pub type Known = Arc<dyn Fn(&str, bool) -> io::Result<()> + Send + Sync>;

enum Order {
    /// So many layers, from the first on, are verified.
    Ready(Arc<Image>, usize),
    Finish(Verified),
}

/// A load that begins before all of the image is there. Dropped unfinished, it leaves the engine without the image.
pub struct Loading {
    engine: Arc<Engine>,
    store: Arc<Store>,
    known: Known,
    begun: Mutex<Option<Begun>>,
}

struct Begun {
    at: Instant,
    orders: mpsc::UnboundedSender<Order>,
    done: JoinHandle<Result<(), EngineError>>,
}

impl Loading {
    pub fn new(engine: &Arc<Engine>, store: Arc<Store>, known: Known) -> Self {
        Self { engine: engine.clone(), store, known, begun: Mutex::default() }
    }

    fn begin(&self) -> Begun {
        let (orders, receiver) = mpsc::unbounded_channel();
        let work = Work { engine: self.engine.clone(), store: self.store.clone(), known: self.known.clone(), parts: Vec::new() };
        Begun { at: Instant::now(), orders, done: tokio::spawn(work.run(receiver)) }
    }

    /// Gives the engine the verified layers of an image, unless it has the image.
    pub fn ready(&self, image: &Arc<Image>, layers: usize) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it gets there is seen at the end.
        let _ = begun.get_or_insert_with(|| self.begin()).orders.send(Order::Ready(image.clone(), layers));
    }

    /// Gives the engine the rest, and makes sure that it has the image under its digest.
    pub async fn finish(self, image: Verified) -> Result<(), EngineError> {
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take().filter(|b| b.at.elapsed() < LONGEST);
        if let Some(begun) = begun {
            match finished(begun, &image).await {
                // What is wrong with the image is wrong with it the second time.
                Err(error @ EngineError::Image(_)) => return Err(error),
                Err(error) => println!("the engine did not take the image in parts ({error}); once more as a whole"),
                Ok(()) => {}
            }
        }
        if !self.engine.has(&image.digest).await {
            finished(self.begin(), &image).await?;
        }
        if !self.engine.has(&image.digest).await {
            return Err(EngineError::Other { what: "the loaded image", expected: image.digest.clone(), found: "no such image".into() });
        }
        Ok(())
    }
}

async fn finished(begun: Begun, image: &Verified) -> Result<(), EngineError> {
    let _ = begun.orders.send(Order::Finish(image.clone()));
    begun.done.await.map_err(other)?
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OciError {
    OciError::Io(io::Error::other(error))
}

struct Work {
    engine: Arc<Engine>,
    store: Arc<Store>,
    known: Known,
    /// Images that are only parts of one.
    parts: Vec<String>,
}

impl Work {
    async fn run(mut self, orders: mpsc::UnboundedReceiver<Order>) -> Result<(), EngineError> {
        let done = self.follow(orders).await;
        for part in &self.parts {
            // The image has what it needs of them. One that stays is known, and goes with the next look.
            match self.engine.remove_image(part).await {
                Ok(()) => (self.known)(part, false).map_err(OciError::Io)?,
                Err(error) => println!("a part of an image stays for now: {error}"),
            }
        }
        done
    }

    async fn follow(&mut self, mut orders: mpsc::UnboundedReceiver<Order>) -> Result<(), EngineError> {
        let (mut sent, mut given) = (BTreeSet::new(), 0);
        let (mut before, mut current) = (None, None);
        while let Some(order) = orders.recv().await {
            match order {
                Order::Ready(image, layers) => {
                    if given == 0 && self.engine.has(&image.digest).await {
                        return Ok(());
                    }
                    let upload = current.get_or_insert_with(|| Upload::begin(&self.engine, &self.store, sent.clone()));
                    for layer in image.layers.iter().take(layers).skip(given) {
                        upload.layer(layer);
                    }
                    given = given.max(layers);
                    if given < image.layers.len()
                        && let Some(upload) = current.take_if(|upload| upload.bytes >= PART)
                    {
                        // Each builds on the one before: that must be unpacked first.
                        ended(before.take()).await?;
                        sent.extend(image.layers.iter().take(given).map(|l| l.digest.clone()));
                        let part = image.beginning(given);
                        (self.known)(&part.digest, true).map_err(OciError::Io)?;
                        self.parts.push(part.digest.clone());
                        before = Some(upload.finish(Whole::Part(part)));
                    }
                }
                Order::Finish(image) => {
                    if given == 0 && self.engine.has(&image.digest).await {
                        return Ok(());
                    }
                    ended(before.take()).await?;
                    let upload = current.take().unwrap_or_else(|| Upload::begin(&self.engine, &self.store, sent));
                    return ended(Some(upload.finish(Whole::Image(image)))).await;
                }
            }
        }
        ended(before).await?;
        Err(other("the image was given up").into())
    }
}

async fn ended(load: Option<JoinHandle<Result<(), EngineError>>>) -> Result<(), EngineError> {
    match load {
        Some(load) => load.await.map_err(other)?,
        None => Ok(()),
    }
}

enum Whole {
    Part(Image),
    Image(Verified),
}

enum Piece {
    Layer(Layer),
    End(Whole),
}

/// One archive on its way into the engine.
struct Upload {
    pieces: std::sync::mpsc::Sender<Piece>,
    bytes: u64,
    done: JoinHandle<Result<(), EngineError>>,
}

impl Upload {
    /// Without the layers that the engine has `already`.
    fn begin(engine: &Arc<Engine>, store: &Arc<Store>, already: BTreeSet<String>) -> Self {
        let (pieces, receiver) = std::sync::mpsc::channel();
        Self { pieces, bytes: 0, done: tokio::spawn(send(engine.clone(), store.clone(), already, receiver)) }
    }

    fn layer(&mut self, layer: &Layer) {
        self.bytes = self.bytes.saturating_add(layer.size);
        let _ = self.pieces.send(Piece::Layer(layer.clone()));
    }

    fn finish(self, whole: Whole) -> JoinHandle<Result<(), EngineError>> {
        let _ = self.pieces.send(Piece::End(whole));
        self.done
    }
}

async fn send(
    engine: Arc<Engine>,
    store: Arc<Store>,
    already: BTreeSet<String>,
    pieces: std::sync::mpsc::Receiver<Piece>,
) -> Result<(), EngineError> {
    let (sender, receiver) = mpsc::channel(8);
    // Verified bytes only; if they change on the way, the stream ends in an error and the engine gets no whole archive.
    let emitting = tokio::task::spawn_blocking(move || {
        let result = emit(&store, already, &pieces, Pipe(sender.clone()));
        if result.is_err() {
            let _ = sender.blocking_send(Err(io::Error::other("the image is not what was verified")));
        }
        result
    });
    let body = futures_util::stream::unfold(receiver, |mut r| async { r.recv().await.map(|item| (item, r)) });
    let mut answers = Box::pin(engine.0.import_image_stream(ImportImageOptions { quiet: true, ..Default::default() }, body, None));
    let mut refusal = None;
    while let Some(answer) = answers.next().await {
        // An error can come within an answer that began well.
        if let Err(error) = answer {
            refusal = Some(error);
            break;
        }
    }
    drop(answers);
    // What is wrong with the image says more than that the engine did not like its end.
    let emitted = emitting.await.map_err(other)?;
    match (emitted, refusal) {
        (Err(error), None) => Err(error.into()),
        (Err(error), Some(_)) if !matches!(error, OciError::Io(_)) => Err(error.into()),
        (_, Some(error)) => Err(refused("load the image")(error)),
        (Ok(()), None) => Ok(()),
    }
}

fn emit(store: &Store, already: BTreeSet<String>, pieces: &std::sync::mpsc::Receiver<Piece>, pipe: Pipe) -> Result<(), OciError> {
    let mut emitter = Emitter::new(io::BufWriter::with_capacity(1 << 17, pipe), already)?;
    loop {
        let image = match pieces.recv() {
            Ok(Piece::Layer(layer)) => {
                emitter.layer(store, &layer)?;
                continue;
            }
            Ok(Piece::End(Whole::Image(image))) => image,
            Ok(Piece::End(Whole::Part(part))) => store.verify(part).map_err(|error| match error {
                StoreError::Oci(error) => error,
                error => other(error),
            })?,
            Err(_) => return Err(other("the image was given up")),
        };
        return Ok(emitter.finish(store, &image, &tag(&image.digest))?.flush()?);
    }
}

/// Sends what is written as the parts of a stream.
struct Pipe(mpsc::Sender<io::Result<bytes::Bytes>>);

impl Write for Pipe {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(bytes::Bytes::copy_from_slice(data)));
        sent.map(|()| data.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
