//! What an HTTP answer says beside its body: pure functions over status, headers and short documents.
//!
//! Invariant: text that a server wrote is shown only in part, on one line and without control characters.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, DATE, HeaderMap, RETRY_AFTER};
use serde::Deserialize;

/// Characters of a server's own explanation that are shown.
const SHOWN: usize = 200;

/// Whether the same request can succeed a little later.
pub(super) fn is_temporary(status: StatusCode) -> bool {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => true,
        // These say that it never will.
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => false,
        other => other.is_server_error(),
    }
}

/// How long the server wants to be left alone, from seconds or from a date, which is one of the
/// server's own clock if it tells that; `now` is ours.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits is longer than anybody waits, as is the most that fits.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let its_clock = headers.get(DATE).and_then(|date| date.to_str().ok());
    let its_clock = its_clock.and_then(|date| httpdate::parse_http_date(date).ok());
    Some(
        date.duration_since(its_clock.unwrap_or(now))
            .unwrap_or_default(),
    )
}

/// The first byte, the last byte and the length of the whole that a partial answer claims to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
    /// `None` when the server does not know.
    pub(super) whole: Option<u64>,
}

/// Reads `Content-Range`; `None` when it is missing or makes no sense.
pub(super) fn content_range(headers: &HeaderMap) -> Option<Range> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, whole) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let range = Range {
        first: first.trim().parse().ok()?,
        last: last.trim().parse().ok()?,
        whole: match whole.trim() {
            "*" => None,
            length => Some(length.parse().ok()?),
        },
    };
    let fits = range.whole.is_none_or(|whole| range.last < whole);
    (range.first <= range.last && fits).then_some(range)
}

/// What a registry says in the error document of the distribution specification, or a token server in
/// one of those that are usual there.
pub(super) fn explanation(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<Entry>,
        details: Option<String>,
        error_description: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = serde_json::from_slice(bytes).ok()?;
    let entry = document.errors.into_iter().next();
    let entry = entry.map(|entry| match entry.message.is_empty() {
        true => entry.code,
        false => entry.message,
    });
    let text = entry.or(document.details).or(document.error_description)?;
    let text = shown(&text);
    (!text.is_empty()).then_some(text)
}

/// What is shown of somebody else's text: its beginning, on one line.
pub(super) fn shown(text: &str) -> String {
    let printable = text.chars().filter(|c| !c.is_control());
    printable.take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).unwrap())])
    }

    #[test]
    fn overload_passes_and_refusals_do_not() {
        for status in [408, 429, 500, 502, 503, 504, 599] {
            assert!(
                is_temporary(StatusCode::from_u16(status).unwrap()),
                "{status}"
            );
        }
        for status in [200, 206, 400, 401, 403, 404, 407, 416, 418, 501, 505] {
            assert!(
                !is_temporary(StatusCode::from_u16(status).unwrap()),
                "{status}"
            );
        }
    }

    #[test]
    fn the_time_to_come_back_is_read_in_both_forms() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, seconds) in [
            ("7", Some(7)),
            ("0", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:07 GMT", Some(0)),
            ("", None),
            ("-1", None),
            ("soon", None),
        ] {
            let found = retry_after(&headers(RETRY_AFTER, value), now);
            assert_eq!(found, seconds.map(Duration::from_secs), "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
        let mut other_clock = headers(RETRY_AFTER, "Thu, 01 Jan 2037 00:00:30 GMT");
        other_clock.extend(headers(DATE, "Thu, 01 Jan 2037 00:00:00 GMT"));
        let wait = Some(Duration::from_secs(30));
        assert_eq!(retry_after(&other_clock, now), wait, "{other_clock:?}");
    }

    #[test]
    fn ranges_are_read_as_far_as_they_make_sense() {
        let range = |first, last, whole| Some(Range { first, last, whole });
        for (value, expected) in [
            ("bytes 5-9/10", range(5, 9, Some(10))),
            ("bytes 0-0/*", range(0, 0, None)),
            ("bytes 5-10/10", None),
            ("bytes 6-5/10", None),
            ("bytes */10", None),
            ("items 5-9/10", None),
            ("bytes 5-9", None),
            ("bytes -9/10", None),
        ] {
            assert_eq!(
                content_range(&headers(CONTENT_RANGE, value)),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn explanations_are_quoted_short_and_on_one_line() {
        for (document, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"not\nfor you"},{"code":"X"}]}"#,
                Some("notfor you"),
            ),
            (r#"{"errors":[{"code":"DENIED"}]}"#, Some("DENIED")),
            (
                r#"{"details":"incorrect password"}"#,
                Some("incorrect password"),
            ),
            (r#"{"error_description":"expired"}"#, Some("expired")),
            (r#"{"errors":[]}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(explanation(document.as_bytes()).as_deref(), expected);
        }
        let long = format!(r#"{{"details":"{}"}}"#, "x".repeat(300));
        assert_eq!(explanation(long.as_bytes()).unwrap().len(), SHOWN);
    }
}
