//! Streams of blob bytes, wherever they come from.
//!
//! Invariant: a stream that ends without an error delivered exactly the bytes that were announced.
//! Nothing is hashed here: the consumer hashes as it decompresses, and hashing twice would cost a core.

use futures_util::{StreamExt, stream};
use tokio_util::bytes::{Bytes, BytesMut};

use super::{ByteStream, Error};

/// Ends the stream with the given error as soon as it has delivered more than `size` bytes, or when it
/// ends with fewer. The error is made from the number of bytes seen.
pub(super) fn sized(
    inner: ByteStream,
    size: u64,
    wrong_size: impl Fn(u64) -> Error + Send + 'static,
) -> ByteStream {
    let state = (inner, 0u64, wrong_size);
    Box::pin(stream::try_unfold(
        state,
        move |(mut inner, seen, wrong_size)| async move {
            match inner.next().await.transpose()? {
                Some(chunk) => {
                    let seen = seen.saturating_add(chunk.len() as u64);
                    if seen > size {
                        return Err(wrong_size(seen));
                    }
                    Ok(Some((chunk, (inner, seen, wrong_size))))
                }
                None if seen < size => Err(wrong_size(seen)),
                None => Ok(None),
            }
        },
    ))
}

/// Reads a small blob into memory. The stream must be a [`sized`] one, or one that sees to its size itself as
/// those of registries do.
pub(super) async fn collect(mut stream: ByteStream) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = stream.next().await.transpose()? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(parts: &[&'static str]) -> ByteStream {
        let parts: Vec<_> = parts
            .iter()
            .map(|part| Ok(Bytes::from_static(part.as_bytes())))
            .collect();
        Box::pin(stream::iter(parts))
    }

    fn wrong(seen: u64) -> Error {
        Error::NotFound {
            what: seen.to_string(),
        }
    }

    #[tokio::test]
    async fn the_announced_size_passes() {
        let all = collect(sized(chunks(&["abc", "", "de"]), 5, wrong))
            .await
            .unwrap();
        assert_eq!(&all[..], b"abcde");
        assert!(
            collect(sized(chunks(&[]), 0, wrong))
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn too_much_and_too_little_do_not() {
        for (size, seen) in [(4, 5), (6, 5), (2, 3)] {
            let error = collect(sized(chunks(&["abc", "de"]), size, wrong))
                .await
                .unwrap_err();
            assert!(matches!(error, Error::NotFound { what } if what == seen.to_string()));
        }
    }
}
