//! How much memory all deltas that are applied at a time may take together.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What [`Memory::default`] has: the largest file that the usual tool makes such operations for has 128 MiB,
/// and so have its predecessor and the window, of which two are in memory. With less, the delta of a layer with
/// one such file would be fetched in vain.
const BYTES: u64 = 256 << 20;

/// Memory to be shared; clones share it.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    all: u64,
    free: Mutex<u64>,
    freed: Condvar,
}

/// A part of the memory, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    pool: Arc<Pool>,
    bytes: u64,
}

impl Memory {
    /// So many bytes.
    pub fn of(bytes: u64) -> Memory {
        Memory(Arc::new(Pool {
            all: bytes,
            free: Mutex::new(bytes),
            freed: Condvar::new(),
        }))
    }

    /// How much there is, taken or not.
    pub(super) fn all(&self) -> u64 {
        self.0.all
    }

    /// Waits until so many bytes are free, and takes them; `None` if there never are. Who waits must hold no
    /// share.
    pub(super) fn take(&self, bytes: u64) -> Option<Share> {
        if bytes > self.0.all {
            return None;
        }
        let free = self.0.free();
        let enough = self.0.freed.wait_while(free, |free| *free < bytes);
        *enough.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Some(Share {
            pool: self.0.clone(),
            bytes,
        })
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::of(BYTES)
    }
}

impl Pool {
    /// Whether nobody would wait for so many bytes now.
    #[cfg(test)]
    fn has_free(&self, bytes: u64) -> bool {
        *self.free() >= bytes
    }

    fn free(&self) -> MutexGuard<'_, u64> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self.pool.free() += self.bytes;
        self.pool.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_waits_and_what_never_will_does_not() {
        let memory = Memory::of(10);
        assert!(memory.take(11).is_none());
        let (first, second) = (memory.take(6).unwrap(), memory.take(4).unwrap());
        assert!(!memory.0.has_free(1));
        drop(second);
        assert!(memory.0.has_free(4) && !memory.0.has_free(5));
        let waiting = std::thread::spawn({
            let memory = memory.clone();
            move || memory.take(5).is_some()
        });
        drop(first);
        assert!(waiting.join().unwrap());
        assert!(memory.take(10).is_some());
    }
}
