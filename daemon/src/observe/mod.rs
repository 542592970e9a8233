//! Facts about the host, and the few requests that are made of it.

pub mod logind;
pub mod systemd;

/// Subscribes to signals, to the end even when nobody waits for it any more. A subscription that is
/// dropped halfway leaves zbus (6.2) with a rule whose channel is closed: every later stream with the same
/// rule ends at once, and what it should have told is never heard.
///
/// # Errors
/// Those of the subscription.
pub(crate) async fn subscribed<S: Send + 'static>(
    subscription: impl Future<Output = zbus::Result<S>> + Send + 'static,
) -> zbus::Result<S> {
    let subscription = tokio::spawn(subscription).await;
    subscription.unwrap_or_else(|error| Err(zbus::Error::Failure(error.to_string())))
}
