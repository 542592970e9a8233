//! From an asynchronous stream of bytes to a blocking reader: one blob on its way in.
//!
//! What an earlier attempt kept of it comes first. For the rest a task pushes what the source
//! gives into a channel that holds at most [`IN_FLIGHT`] bytes; a thread reads all of it and
//! hashes it as it goes. Invariant: [`Feed::finish`]
//! succeeds only if all was read and has the digest that proves it ([`Layer::proof`]).

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::bytes::{Buf as _, Bytes};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::Error;
use super::partial_blob::PartialBlob;
use super::{Fetch, Observer};
use crate::image::layer::Layer;
use crate::image::reference::Digest;
use crate::image::{self, ByteStream};

/// Most bytes of one blob that wait between the network and the thread that unpacks.
pub(crate) const IN_FLIGHT: u32 = 2 * 1024 * 1024;

/// Most pieces that wait, however small they are.
const MESSAGES: usize = 256;

enum Message {
    Data(Bytes),
    Failed(Error),
    End,
}

/// What became of a blob that arrived whole.
#[derive(Debug)]
pub(crate) struct Received {
    /// Bytes that the source gave.
    pub(crate) fetched: u64,
    /// All of them and those from before, until the layer is in the repository.
    pub(crate) partial: Option<PartialBlob>,
}

/// The bytes of one compressed blob, hashed as they are read.
pub(crate) struct Feed {
    /// What was kept of it, which comes first; all that is fetched is kept there, too.
    partial: Option<PartialBlob>,
    source: Source,
    /// What is fetched, once the source was asked.
    pipe: Option<Pipe>,
    observer: Arc<dyn Observer>,
    layer: Layer,
    chunk: Bytes,
    hasher: Sha256,
    /// Bytes from either.
    received: u64,
    /// Bytes from the source.
    fetched: u64,
    ended: bool,
    failure: Option<Error>,
}

impl Feed {
    /// The blob of `layer`, of which only what is not in `partial` is fetched, on `runtime`; `cancel`
    /// ends it with [`Error::Cancelled`].
    pub(crate) fn open(
        runtime: &Handle,
        fetch: &Arc<dyn Fetch>,
        layer: &Layer,
        observer: &Arc<dyn Observer>,
        cancel: &CancellationToken,
        partial: Option<PartialBlob>,
    ) -> Self {
        let source = Source {
            runtime: runtime.clone(),
            fetch: fetch.clone(),
            cancel: cancel.clone(),
        };
        let is_kept = partial.as_ref().is_some_and(|partial| partial.kept() > 0);
        // Without anything else to do it is asked at once.
        let pipe = (!is_kept).then(|| source.ask(layer, 0));
        Self {
            partial,
            source,
            pipe,
            observer: observer.clone(),
            layer: layer.clone(),
            chunk: Bytes::new(),
            hasher: Sha256::new(),
            received: 0,
            fetched: 0,
            ended: false,
            failure: None,
        }
    }

    /// Why reading failed, when it failed because of the source and not of the content.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Reads what the decompressor left over, and compares length and digest.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] when it is another blob; whatever the source failed with.
    pub(crate) fn finish(mut self) -> Result<Received, Error> {
        loop {
            match self.fill_buf() {
                Ok([]) => break,
                Ok(rest) => {
                    let count = rest.len();
                    self.consume(count);
                }
                Err(source) => {
                    let context = "receiving a layer";
                    return Err(self.failure.take().unwrap_or(Error::Io { context, source }));
                }
            }
        }
        let found = Digest::from_sha256(&self.hasher.finalize_reset().into());
        if self.received != self.layer.size {
            let found = format!("{} bytes instead of {}", self.received, self.layer.size);
            return Err(self.mismatch(found));
        }
        if found != *self.layer.proof() {
            return Err(self.mismatch(format!("it has the digest {found}")));
        }
        self.keep(PartialBlob::end);
        Ok(Received {
            fetched: self.fetched,
            partial: self.partial,
        })
    }

    /// Does something for the next time; what fails there is nobody's business now.
    fn keep(&mut self, keep: impl FnOnce(&mut PartialBlob) -> io::Result<()>) {
        if let Some(mut partial) = self.partial.take() {
            match keep(&mut partial) {
                Ok(()) => self.partial = Some(partial),
                Err(error) => partial.give_up(&error),
            }
        }
    }

    fn mismatch(&self, found: String) -> Error {
        Error::DigestMismatch {
            digest: self.layer.digest.clone(),
            found,
        }
    }

    fn accept(&mut self, chunk: Bytes) -> io::Result<()> {
        self.received += chunk.len() as u64;
        if self.received > self.layer.size {
            let found = format!("more than the {} bytes it should have", self.layer.size);
            return self.fail(self.mismatch(found));
        }
        self.hasher.update(&chunk);
        self.chunk = chunk;
        Ok(())
    }

    fn accept_fetched(&mut self, chunk: Bytes) -> io::Result<()> {
        self.accept(chunk)?;
        let count = self.chunk.len() as u64;
        self.fetched += count;
        self.observer.bytes(&self.layer.digest, count);
        let chunk = self.chunk.clone();
        self.keep(|partial| partial.append(&chunk));
        Ok(())
    }

    /// The next bytes, or the end.
    fn advance(&mut self) -> io::Result<()> {
        if self.pipe.is_none() {
            if self.source.cancel.is_cancelled() {
                return self.fail(Error::Cancelled);
            }
            if let Some(chunk) = self.partial.as_mut().and_then(PartialBlob::read) {
                return self.accept(chunk);
            }
            if self.received == self.layer.size {
                self.ended = true;
                return Ok(());
            }
        }
        let (source, layer, from) = (&self.source, &self.layer, self.received);
        let pipe = self.pipe.get_or_insert_with(|| source.ask(layer, from));
        match pipe.messages.blocking_recv() {
            Some(Message::Data(chunk)) => self.accept_fetched(chunk)?,
            Some(Message::End) => self.ended = true,
            Some(Message::Failed(error)) => self.fail(error)?,
            // The runtime shut down under the task.
            None => self.fail(Error::Cancelled)?,
        }
        Ok(())
    }

    fn fail(&mut self, error: Error) -> io::Result<()> {
        let text = error.to_string();
        self.failure = Some(error);
        self.ended = true;
        Err(io::Error::other(text))
    }
}

impl BufRead for Feed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() && !self.ended {
            self.advance()?;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
        // What was kept is through before the source is asked.
        if let Some(pipe) = &self.pipe {
            pipe.room.add_permits(count);
        }
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed")
            .field("layer", &self.layer.digest)
            .finish_non_exhaustive()
    }
}

/// Whom to ask for the bytes.
struct Source {
    runtime: Handle,
    fetch: Arc<dyn Fetch>,
    cancel: CancellationToken,
}

impl Source {
    /// Starts to fetch the layer's blob from that byte on.
    fn ask(&self, layer: &Layer, from: u64) -> Pipe {
        let (sender, messages) = mpsc::channel(MESSAGES);
        let room = Arc::new(Semaphore::new(IN_FLIGHT as usize));
        let stop = self.cancel.child_token();
        let (fetch, layer) = (self.fetch.clone(), layer.clone());
        let opening = async move { fetch.whole(&layer, from).await };
        self.runtime
            .spawn(pump(opening.boxed(), sender, room.clone(), stop.clone()));
        Pipe {
            messages,
            room,
            _stop: stop.drop_guard(),
        }
    }
}

/// What comes from a source.
struct Pipe {
    messages: mpsc::Receiver<Message>,
    room: Arc<Semaphore>,
    /// Stops the fetching task when the reader is gone.
    _stop: DropGuard,
}

type Opening = BoxFuture<'static, Result<ByteStream, image::Error>>;

/// The asynchronous half: moves bytes from the source into the channel, never more than fit.
async fn pump(
    opening: Opening,
    sender: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let last = tokio::select! {
        biased;
        () = stop.cancelled() => Message::Failed(Error::Cancelled),
        result = copy(opening, &sender, &room) => match result {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        },
    };
    // A reader that is gone has its own reason to be.
    let _ = sender.send(last).await;
}

async fn copy(
    opening: Opening,
    sender: &mpsc::Sender<Message>,
    room: &Semaphore,
) -> Result<(), Error> {
    let mut stream = opening.await?;
    while let Some(chunk) = stream.next().await {
        let mut chunk = chunk?;
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(IN_FLIGHT as usize / 2));
            let weight = u32::try_from(part.len()).unwrap_or(IN_FLIGHT);
            let Ok(permit) = room.acquire_many(weight).await else {
                return Err(Error::Cancelled);
            };
            permit.forget();
            if sender.send(Message::Data(part)).await.is_err() {
                return Err(Error::Cancelled);
            }
        }
    }
    Ok(())
}
