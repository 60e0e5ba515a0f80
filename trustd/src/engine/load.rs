//! Giving the engine an image: while the later layers are still on their way, the engine unpacks
//! the earlier ones.
//!
//! The engine unpacks nothing before it has an image. So it is given parts: the first few layers as
//! an image of their own, then some more, at last the image itself, for which it then has nearly
//! all. Invariants:
//! - Each part is verified like any image, is known to be ours before the engine gets it, and has
//!   no program.
//! - One image at a time: whoever brings one holds the turn until the engine is done with it, even
//!   if nobody waits for it any more. Known images are taken away, and forgotten, by others only
//!   under the same turn.
//! - An early start that gets nowhere gives the turn back; it never keeps another image waiting for
//!   a slow registry.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::query_parameters::ImportImageOptions;
use futures_util::StreamExt as _;
use oci::{Emitter, Image, Layer, OciError, Verified};
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Engine, EngineError, refused, tag};
use crate::images::store::{Store, StoreError};

/// A part has at least so many bytes, packed: each costs the engine some time of its own.
const PART: u64 = 24 << 20;
/// An early start to which nothing comes for so long is given up.
const IDLE: Duration = Duration::from_secs(10);
/// A request that is open for longer than this comes near its deadline.
const LONGEST: Duration = Duration::from_secs(600);

/// Told of every image that the engine is about to get.
pub type Known = Arc<dyn Fn(&str) -> io::Result<()> + Send + Sync>;
/// One image at a time.
pub type Turn = Arc<tokio::sync::Mutex<()>>;

enum Order {
    /// So many layers, from the first on, are verified.
    Ready(Arc<Image>, usize),
    Finish(Verified),
}

/// A load that begins before all of the image is there. Given up before [`Loading::finish`], it
/// leaves the engine without the image.
pub struct Loading {
    orders: mpsc::UnboundedSender<Order>,
    done: oneshot::Receiver<Result<(), EngineError>>,
    /// How many layers were told of.
    told: Mutex<usize>,
}

impl Loading {
    pub fn new(engine: &Arc<Engine>, store: Arc<Store>, known: Known, turn: Turn) -> Self {
        let (orders, receiver) = mpsc::unbounded_channel();
        let (tell, done) = oneshot::channel();
        let work = Work { engine: engine.clone(), store, known, turn, parts: Vec::new() };
        tokio::spawn(work.run(receiver, tell));
        Self { orders, done, told: Mutex::default() }
    }

    /// Gives the engine the verified layers of an image, unless it has the image.
    pub fn ready(&self, image: &Arc<Image>, layers: usize) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if layers > *told {
            *told = layers;
            // Whether it gets there is seen at the end.
            let _ = self.orders.send(Order::Ready(image.clone(), layers));
        }
    }

    /// Gives the engine the rest, and makes sure that it has the image under its digest.
    pub async fn finish(self, image: Verified) -> Result<(), EngineError> {
        let Self { orders, done, .. } = self;
        let _ = orders.send(Order::Finish(image));
        let done = done.await.map_err(other)?;
        // Until here: a sender that is gone means that nobody waits.
        drop(orders);
        done
    }
}

fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> OciError {
    OciError::Io(io::Error::other(error))
}

struct Work {
    engine: Arc<Engine>,
    store: Arc<Store>,
    known: Known,
    turn: Turn,
    /// Images that are only parts of one.
    parts: Vec<String>,
}

impl Work {
    async fn run(
        mut self,
        mut orders: mpsc::UnboundedReceiver<Order>,
        done: oneshot::Sender<Result<(), EngineError>>,
    ) {
        let mut start: Option<Start> = None;
        loop {
            let order = match &start {
                // It holds others up: not for long.
                Some(_) => tokio::time::timeout(IDLE, orders.recv()).await,
                None => Ok(orders.recv().await),
            };
            match order {
                // Nobody waits for it any more.
                Ok(Some(Order::Ready(..))) if orders.is_closed() => {}
                Ok(Some(Order::Ready(image, layers))) => {
                    if start.is_none() {
                        // Somebody else's turn: then this one begins when it is whole.
                        let Ok(turn) = self.turn.clone().try_lock_owned() else { continue };
                        if self.engine.has(&image.digest).await {
                            continue;
                        }
                        start = Some(Start {
                            turn,
                            sent: BTreeSet::new(),
                            given: 0,
                            before: None,
                            current: None,
                        });
                    }
                    if let Some(begun) = &mut start
                        && let Err(error) = begun.layers(&mut self, &image, layers).await
                    {
                        println!("the engine did not take the image in parts ({error})");
                        self.give_up(start.take()).await;
                    }
                }
                Ok(Some(Order::Finish(image))) => return self.finish(start, image, done).await,
                Ok(None) => return self.give_up(start).await,
                Err(_) => self.give_up(start.take()).await,
            }
        }
    }

    async fn finish(
        mut self,
        start: Option<Start>,
        image: Verified,
        told: oneshot::Sender<Result<(), EngineError>>,
    ) {
        let (turn, upload) = match start {
            None => (self.turn.clone().lock_owned().await, None),
            Some(Start { turn, sent, before, current, .. }) => match ended(before).await {
                Ok(()) => (
                    turn,
                    Some(current.unwrap_or_else(|| Upload::begin(&self.engine, &self.store, sent))),
                ),
                Err(error) => {
                    println!(
                        "the engine did not take a part of the image ({error}); once more as a whole"
                    );
                    (turn, None)
                }
            },
        };
        // Who waits need not wait for the parts to go; the next image does.
        let _ = told.send(self.whole(upload, image).await);
        self.clear().await;
        drop(turn);
    }

    /// Brings the image: what is missing after its parts, or all of it.
    async fn whole(&self, upload: Option<Upload>, image: Verified) -> Result<(), EngineError> {
        let digest = image.digest.clone();
        if let Some(upload) = upload {
            match ended(Some(upload.finish(Whole::Image(image.clone())))).await {
                Ok(()) if self.engine.has(&digest).await => return Ok(()),
                // What is wrong with the image is wrong with it the second time.
                Err(EngineError::Image(verdict)) if !matches!(verdict, OciError::Io(_)) => {
                    return Err(verdict.into());
                }
                Err(error) => println!(
                    "the engine did not take the image after its parts ({error}); once more as a whole"
                ),
                Ok(()) => println!(
                    "the engine does not have the image after its parts; once more as a whole"
                ),
            }
            // It may have its name already, and not what belongs to it.
            self.engine.remove_image(&digest).await?;
        }
        if self.engine.has(&digest).await {
            return Ok(());
        }
        let upload = Upload::begin(&self.engine, &self.store, BTreeSet::new());
        if let Err(error) = ended(Some(upload.finish(Whole::Image(image)))).await {
            self.engine.remove_image(&digest).await?;
            return Err(error);
        }
        if !self.engine.has(&digest).await {
            return Err(EngineError::Other {
                what: "the loaded image",
                expected: digest,
                found: "no such image".into(),
            });
        }
        Ok(())
    }

    async fn give_up(&mut self, start: Option<Start>) {
        let Some(Start { turn, before, current, .. }) = start else { return };
        drop(current);
        // Not before the engine is done with it.
        let _ = ended(before).await;
        self.clear().await;
        drop(turn);
    }

    /// Takes the parts away. They stay known until a look finds that nobody needs them.
    async fn clear(&mut self) {
        for part in self.parts.drain(..) {
            if let Err(error) = self.engine.remove_image(&part).await {
                println!("a part of an image stays for now: {error}");
            }
        }
    }
}

/// An early start: the turn, and how far it is.
struct Start {
    turn: OwnedMutexGuard<()>,
    /// Layers that the engine has from parts.
    sent: BTreeSet<String>,
    given: usize,
    before: Option<JoinHandle<Result<(), EngineError>>>,
    current: Option<Upload>,
}

impl Start {
    async fn layers(
        &mut self,
        work: &mut Work,
        image: &Image,
        layers: usize,
    ) -> Result<(), EngineError> {
        let upload = self
            .current
            .get_or_insert_with(|| Upload::begin(&work.engine, &work.store, self.sent.clone()));
        if upload.begun.elapsed() > LONGEST {
            return Err(other("a part of it takes too long").into());
        }
        for layer in image.layers.iter().take(layers).skip(self.given) {
            upload.layer(layer);
        }
        self.given = self.given.max(layers);
        if self.given < image.layers.len()
            && let Some(upload) = self.current.take_if(|upload| upload.bytes >= part_size())
        {
            // Each builds on the one before: that must be unpacked first.
            ended(self.before.take()).await?;
            self.sent.extend(image.layers.iter().take(self.given).map(|l| l.digest.clone()));
            let part = image.beginning(self.given);
            (work.known)(&part.digest).map_err(OciError::Io)?;
            work.parts.push(part.digest.clone());
            self.before = Some(upload.finish(Whole::Part(part)));
            crate::util::failpoint::fail_point("part");
        }
        Ok(())
    }
}

#[cfg(not(feature = "engine-tests"))]
fn part_size() -> u64 {
    PART
}

/// Small images must do for the tests.
#[cfg(feature = "engine-tests")]
fn part_size() -> u64 {
    std::env::var("BASALT_PART").ok().and_then(|size| size.parse().ok()).unwrap_or(PART)
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
    begun: Instant,
    pieces: std::sync::mpsc::Sender<Piece>,
    bytes: u64,
    done: JoinHandle<Result<(), EngineError>>,
}

impl Upload {
    /// Without the layers that the engine has `already`.
    fn begin(engine: &Arc<Engine>, store: &Arc<Store>, already: BTreeSet<String>) -> Self {
        let (pieces, receiver) = std::sync::mpsc::channel();
        Self {
            begun: Instant::now(),
            pieces,
            bytes: 0,
            done: tokio::spawn(send(engine.clone(), store.clone(), already, receiver)),
        }
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
    // Verified bytes only; if they change on the way, the stream ends in an error and the engine
    // gets no whole archive.
    let emitting = tokio::task::spawn_blocking(move || {
        let result = emit(&store, already, &pieces, Pipe(sender.clone()));
        if result.is_err() {
            let _ =
                sender.blocking_send(Err(io::Error::other("the image is not what was verified")));
        }
        result
    });
    let body = futures_util::stream::unfold(receiver, |mut r| async {
        r.recv().await.map(|item| (item, r))
    });
    let mut answers = Box::pin(engine.0.import_image_stream(
        ImportImageOptions { quiet: true, ..Default::default() },
        body,
        None,
    ));
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

fn emit(
    store: &Store,
    already: BTreeSet<String>,
    pieces: &std::sync::mpsc::Receiver<Piece>,
    pipe: Pipe,
) -> Result<(), OciError> {
    let mut emitter = Emitter::new(io::BufWriter::with_capacity(1 << 17, pipe), already)?;
    loop {
        let image = match pieces.recv() {
            Ok(Piece::Layer(layer)) => {
                emitter.layer(store, &layer)?;
                continue;
            }
            Ok(Piece::End(Whole::Image(image))) => image,
            Ok(Piece::End(Whole::Part(part))) => {
                store.verify(part).map_err(|error| match error {
                    StoreError::Oci(error) => error,
                    error => other(error),
                })?
            }
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
