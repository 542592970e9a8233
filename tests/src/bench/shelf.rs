//! A registry that has all images at once, and whose tags move without anything being pushed.

use std::net::TcpListener;

use anyhow::Result;

use crate::bootable::registry_data::keep;
use crate::image::delta::Delta;
use crate::image::{Layout, Written};
use crate::registry::Registry;

/// The registry.
#[derive(Debug)]
pub struct Shelf {
    /// The registry itself.
    pub registry: Registry,
}

impl Shelf {
    /// Starts an empty one.
    ///
    /// # Errors
    /// When `docker-registry` is not installed or does not start.
    pub fn open() -> Result<Self> {
        // Free now, and unlikely to be anybody's before the registry takes it.
        let listen = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let registry = Registry::start_with(listen, &listen.to_string(), |_| Ok(()))?;
        Ok(Self { registry })
    }

    /// Lets `bench/{name}:latest` be the image `tag` of a layout on the same file system.
    ///
    /// # Errors
    /// When there is no such image.
    pub fn offer(&self, name: &str, layout: &Layout, tag: &str) -> Result<Written> {
        let image = layout.find(tag)?;
        let repository = format!("bench/{name}");
        keep(&self.registry.data(), &repository, "latest", layout, &image)?;
        Ok(image)
    }

    /// Lets a delta be found beside its image, among those of the same name.
    ///
    /// # Errors
    /// When the layout does not have all of it.
    pub fn offer_delta(&self, name: &str, layout: &Layout, delta: &Delta) -> Result<()> {
        let repository = format!("bench/{name}");
        self.registry.offer_delta(&repository, layout, delta)
    }

    /// The reference under which [`Shelf::offer`] offers it, behind `host` for the registry.
    pub fn reference(host: &str, name: &str) -> String {
        format!("{host}/bench/{name}:latest")
    }
}
