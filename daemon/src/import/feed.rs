//! From an asynchronous stream of bytes to a blocking reader: one blob on its way in.
//!
//! A task pushes what the source gives into a channel that holds at most [`IN_FLIGHT`]
//! bytes; a thread reads them and hashes them as it goes. Invariant: [`Feed::finish`]
//! succeeds only if all was read and has the digest that proves it ([`Layer::proof`]).

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::bytes::{Buf as _, Bytes};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::Error;
use super::{Fetch, Observer};
use crate::image::layer::Layer;
use crate::image::reference::Digest;

/// Most bytes of one blob that wait between the network and the thread that unpacks.
pub(crate) const IN_FLIGHT: u32 = 2 * 1024 * 1024;

/// Most pieces that wait, however small they are.
const MESSAGES: usize = 256;

enum Message {
    Data(Bytes),
    Failed(Error),
    End,
}

/// The bytes of one compressed blob, hashed as they are read.
pub(crate) struct Feed {
    messages: mpsc::Receiver<Message>,
    room: Arc<Semaphore>,
    observer: Arc<dyn Observer>,
    layer: Layer,
    chunk: Bytes,
    hasher: Sha256,
    received: u64,
    ended: bool,
    failure: Option<Error>,
    /// Stops the fetching task when the reader is gone.
    _stop: DropGuard,
}

impl Feed {
    /// Starts to fetch `layer` on `runtime`; `cancel` ends it with [`Error::Cancelled`].
    pub(crate) fn open(
        runtime: &Handle,
        fetch: &Fetch,
        layer: &Layer,
        observer: &Arc<dyn Observer>,
        cancel: &CancellationToken,
    ) -> Self {
        let (sender, messages) = mpsc::channel(MESSAGES);
        let room = Arc::new(Semaphore::new(IN_FLIGHT as usize));
        let stop = cancel.child_token();
        let task = pump(
            fetch.clone(),
            layer.clone(),
            sender,
            room.clone(),
            stop.clone(),
        );
        runtime.spawn(task);
        Self {
            messages,
            room,
            observer: observer.clone(),
            layer: layer.clone(),
            chunk: Bytes::new(),
            hasher: Sha256::new(),
            received: 0,
            ended: false,
            failure: None,
            _stop: stop.drop_guard(),
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
    pub(crate) fn finish(mut self) -> Result<(), Error> {
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
        let found = Digest::from_sha256(&self.hasher.finalize().into());
        if self.received != self.layer.size {
            let found = format!("{} bytes instead of {}", self.received, self.layer.size);
            return Err(Error::DigestMismatch {
                digest: self.layer.digest,
                found,
            });
        }
        if found != *self.layer.proof() {
            let found = format!("it has the digest {found}");
            return Err(Error::DigestMismatch {
                digest: self.layer.digest,
                found,
            });
        }
        Ok(())
    }

    fn accept(&mut self, chunk: Bytes) -> io::Result<()> {
        self.received += chunk.len() as u64;
        if self.received > self.layer.size {
            let found = format!("more than the {} bytes it should have", self.layer.size);
            return self.fail(Error::DigestMismatch {
                digest: self.layer.digest.clone(),
                found,
            });
        }
        self.hasher.update(&chunk);
        self.observer.bytes(&self.layer.digest, chunk.len() as u64);
        self.chunk = chunk;
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
            match self.messages.blocking_recv() {
                Some(Message::Data(chunk)) => self.accept(chunk)?,
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => self.fail(error)?,
                // The runtime shut down under the task.
                None => self.fail(Error::Cancelled)?,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count);
        self.room.add_permits(count);
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

/// The asynchronous half: moves bytes from the source into the channel, never more than fit.
async fn pump(
    fetch: Fetch,
    layer: Layer,
    sender: mpsc::Sender<Message>,
    room: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let last = tokio::select! {
        biased;
        () = stop.cancelled() => Message::Failed(Error::Cancelled),
        result = copy(&fetch, &layer, &sender, &room) => match result {
            Ok(()) => Message::End,
            Err(error) => Message::Failed(error),
        },
    };
    // A reader that is gone has its own reason to be.
    let _ = sender.send(last).await;
}

async fn copy(
    fetch: &Fetch,
    layer: &Layer,
    sender: &mpsc::Sender<Message>,
    room: &Semaphore,
) -> Result<(), Error> {
    let mut stream = fetch(layer).await?;
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
