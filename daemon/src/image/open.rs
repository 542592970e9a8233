//! Transfers that are open: how many of one source, and whether there may be one more.
//!
//! Invariants: whoever needs one gets one without waiting, or two that wait for each other would never end;
//! only what one could do without has to find room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::registry::Registry;

/// Most transfers of one source at a time of which any is more than somebody needs.
const MOST: usize = 6;

/// Parts of one layer that are fetched at a time where there is room for them …
const PARTS: usize = 4;
/// … and where there is none.
const FEWEST_PARTS: usize = 2;

/// Counts the transfers of one source.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicUsize);

impl Count {
    fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn up_if_free(&self) -> bool {
        let one_more = |open| (open < MOST).then_some(open + 1);
        let counted = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        counted.is_ok()
    }

    /// How many parts of one layer may be fetched at a time.
    pub(super) fn parts(&self) -> usize {
        let free = MOST.saturating_sub(self.0.load(Ordering::Relaxed));
        free.clamp(FEWEST_PARTS, PARTS)
    }

    fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One transfer, from when it is prepared to when nobody wants it any more.
#[derive(Debug)]
pub(super) struct Open(Arc<Registry>);

impl Open {
    /// One that is needed.
    pub(super) fn one(registry: &Arc<Registry>) -> Open {
        registry.open().up();
        Open::new(registry)
    }

    /// One that would make others faster, if there is room for it.
    pub(super) fn one_more(registry: &Arc<Registry>) -> Option<Open> {
        let is_free = registry.open().up_if_free();
        is_free.then(|| Open::new(registry))
    }

    fn new(registry: &Arc<Registry>) -> Open {
        registry.meter().opened(Instant::now());
        Open(Arc::clone(registry))
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open().down();
        self.0.meter().closed(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_needs_has_to_find_room() {
        let count = Count::default();
        for _ in 0..MOST - 1 {
            count.up();
        }
        assert!(count.up_if_free());
        assert!(!count.up_if_free());
        count.up();
        count.down();
        assert!(!count.up_if_free());
        count.down();
        assert!(count.up_if_free());
    }

    #[test]
    fn one_layer_alone_has_more_parts_at_a_time() {
        let count = Count::default();
        for (open, parts) in [4, 4, 4, 3, 2, 2, 2, 2].into_iter().enumerate() {
            assert_eq!(count.parts(), parts, "{open}");
            count.up();
        }
    }
}
