//! One blob by several requests at a time, where it is long enough and the registry has parts.
//!
//! The part that is delivered is read as fast as it is wanted; those behind it are read while there is nothing
//! to deliver. Invariants: bytes come in order, each once, and nothing after an error; no more than
//! [`ABREAST`] parts are open or wait, so that at most as many times [`PART`] bytes are in memory, in
//! however short pieces they come; the first part alone shows whether there are parts, and where there are
//! none its answer is the whole already.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::{StreamExt as _, stream};
use tokio_util::bytes::{Bytes, BytesMut};

use super::open::Open;
use super::reference::Digest;
use super::registry::Registry;
use super::transfer::{Otherwise, Transfer};
use super::{ByteStream, Error};

/// Least bytes of a blob for which several requests are worth it.
const LARGE: u64 = 32 << 20;

/// Bytes that one request asks for. Some servers cut each connection after 8 MiB, headers included.
const PART: u64 = (8 << 20) - (64 << 10);

/// Shorter pieces are joined while they wait, because each takes room beside its bytes.
const SMALL: usize = 4 << 10;

/// Requests for one blob at a time.
const ABREAST: usize = 3;

/// Opens these bytes of a blob, which reach to its end.
///
/// # Errors
/// As [`Transfer::open`].
pub(super) async fn open(
    registry: &Arc<Registry>,
    digest: &Digest,
    wanted: Range<u64>,
) -> Result<ByteStream, Error> {
    let (at, size) = (wanted.start, wanted.end);
    // What nobody waits for takes one connection.
    let is_worth_it = size - at >= LARGE && !registry.is_background();
    let end = match is_worth_it && registry.knows_ranges() {
        true => at + PART,
        false => size,
    };
    let first = Transfer::open(registry, digest, size, at..end, Otherwise::Whole).await?;
    if first.end() == size {
        return Ok(first.into_stream());
    }
    let parallel = Parallel {
        registry: Arc::clone(registry),
        digest: digest.clone(),
        size,
        at,
        next: end,
        first: Part::of(first.or_nothing()),
        behind: VecDeque::new(),
        has_parts: true,
    };
    Ok(Box::pin(stream::unfold(
        parallel,
        |mut parallel| async move {
            let chunk = std::future::poll_fn(|context| parallel.poll(context)).await?;
            Some((chunk, parallel))
        },
    )))
}

struct Parallel {
    registry: Arc<Registry>,
    digest: Digest,
    size: u64,
    /// The next byte to deliver.
    at: u64,
    /// The first byte that no part was made for.
    next: u64,
    /// What is being delivered.
    first: Part,
    /// What comes after it, in order.
    behind: VecDeque<Part>,
    /// Cleared when the registry refuses a part after all; then what is missing comes in one.
    has_parts: bool,
}

impl Parallel {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            self.begin_more();
            let first = self.first.poll(context);
            for part in &mut self.behind {
                // All that is there if there is nothing to do but to read on, else just one piece.
                while part.read_on(context) && first.is_pending() {}
            }
            match ready!(first) {
                Some(Ok(chunk)) => {
                    self.at += chunk.len() as u64;
                    return Poll::Ready(Some(Ok(chunk)));
                }
                Some(Err(Error::NoRanges)) if self.has_parts => self.join(),
                Some(Err(error)) => {
                    // What comes behind the hole is nobody's.
                    (self.at, self.next) = (self.size, self.size);
                    self.behind.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                None if self.at == self.size => return Poll::Ready(None),
                None => self.first = self.following(),
            }
        }
    }

    /// Asks for as many parts as there may be.
    fn begin_more(&mut self) {
        while self.has_parts && self.behind.len() < ABREAST - 1 && self.next < self.size {
            let Some(open) = Open::one_more(&self.registry) else {
                return;
            };
            let part = self.part(open, self.next);
            self.behind.push_back(part);
        }
    }

    /// What is delivered when the first part is over.
    fn following(&mut self) -> Part {
        match self.behind.pop_front() {
            Some(part) => part,
            None => self.part(Open::one(&self.registry), self.at),
        }
    }

    fn part(&mut self, open: Open, start: u64) -> Part {
        let end = self.size.min(start + PART);
        self.next = end;
        let (digest, size) = (&self.digest, self.size);
        Part::of(Transfer::new(
            open,
            digest,
            size,
            start..end,
            Otherwise::Nothing,
        ))
    }

    /// Gets what is missing in one piece.
    fn join(&mut self) {
        self.has_parts = false;
        self.behind.clear();
        let (open, rest) = (Open::one(&self.registry), self.at..self.size);
        let (digest, size) = (&self.digest, self.size);
        self.first = Part::of(Transfer::new(open, digest, size, rest, Otherwise::Whole));
    }
}

/// One part, and what has arrived of it before its turn.
struct Part {
    stream: ByteStream,
    arrived: VecDeque<Result<Bytes, Error>>,
    /// What arrived behind that, in small pieces.
    small: BytesMut,
    is_over: bool,
}

impl Part {
    fn of(transfer: Transfer) -> Part {
        Part {
            stream: transfer.into_stream(),
            arrived: VecDeque::new(),
            small: BytesMut::new(),
            is_over: false,
        }
    }

    /// The next piece, to deliver it.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if self.arrived.is_empty() {
            self.join_small();
        }
        match self.arrived.pop_front() {
            Some(piece) => Poll::Ready(Some(piece)),
            None if self.is_over => Poll::Ready(None),
            None => self.read(context),
        }
    }

    /// Puts one more piece aside; tells whether there was one.
    fn read_on(&mut self, context: &mut Context<'_>) -> bool {
        if self.is_over {
            return false;
        }
        match self.read(context) {
            Poll::Ready(Some(Ok(piece))) if piece.len() < SMALL => {
                self.small.extend_from_slice(&piece);
                if self.small.len() >= SMALL {
                    self.join_small();
                }
            }
            Poll::Ready(Some(piece)) => {
                self.join_small();
                self.arrived.push_back(piece);
            }
            Poll::Ready(None) | Poll::Pending => return false,
        }
        true
    }

    /// Not to be called when it is over.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let piece = self.stream.poll_next_unpin(context);
        self.is_over = matches!(piece, Poll::Ready(None | Some(Err(_))));
        piece
    }

    fn join_small(&mut self) {
        if !self.small.is_empty() {
            let joined = std::mem::take(&mut self.small);
            self.arrived.push_back(Ok(joined.freeze()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(pieces: Vec<Result<Bytes, Error>>) -> Part {
        Part {
            stream: Box::pin(stream::iter(pieces)),
            arrived: VecDeque::new(),
            small: BytesMut::new(),
            is_over: false,
        }
    }

    /// All that it delivers from now on.
    fn delivered(part: &mut Part) -> (Vec<u8>, bool) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let (mut bytes, mut failed) = (Vec::new(), false);
        loop {
            match part.poll(&mut context) {
                Poll::Ready(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
                Poll::Ready(Some(Err(_))) => failed = true,
                Poll::Ready(None) => return (bytes, failed),
                Poll::Pending => panic!("nothing is waited for"),
            }
        }
    }

    #[test]
    fn what_comes_byte_by_byte_waits_in_few_pieces() {
        let length = 10 * SMALL + 7;
        let content: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let bytes = content
            .iter()
            .map(|byte| Ok(Bytes::copy_from_slice(&[*byte])));
        let mut part = part(bytes.collect());
        let mut context = Context::from_waker(std::task::Waker::noop());
        while part.read_on(&mut context) {}
        assert!(part.is_over);
        assert_eq!((part.arrived.len(), part.small.len()), (10, 7));
        assert_eq!(delivered(&mut part), (content, false));
    }

    #[test]
    fn the_order_stays_and_failures_come_last() {
        let content: Vec<u8> = (0..3 * SMALL).map(|at| (at % 249) as u8).collect();
        let piece = |from: usize, to: usize| Ok(Bytes::copy_from_slice(&content[from..to]));
        for read_before in 0..=5 {
            let mut part = part(vec![
                piece(0, 3),
                piece(3, 3 + SMALL),
                piece(3 + SMALL, 9 + SMALL),
                piece(9 + SMALL, 3 * SMALL),
                Err(Error::NoRanges),
            ]);
            let mut context = Context::from_waker(std::task::Waker::noop());
            for _ in 0..read_before {
                assert!(part.read_on(&mut context));
            }
            assert_eq!(
                delivered(&mut part),
                (content.clone(), true),
                "{read_before}"
            );
        }
    }
}
