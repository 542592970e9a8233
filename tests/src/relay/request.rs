//! What comes in at the relay, and what can become of it.

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, for example.
    pub method: String,
    /// The path with its query.
    pub path: String,
    head: String,
}

impl Request {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let head = String::from_utf8(bytes.to_vec()).ok()?;
        let mut words = head.lines().next()?.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        words
            .next()?
            .starts_with("HTTP/")
            .then_some(Self { method, path, head })
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }

    /// The first byte that is asked for, and the last if that is said.
    pub fn range(&self) -> (u64, Option<u64>) {
        let range = self.header("range");
        let range = range.and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = range else {
            return (0, None);
        };
        (first.parse().unwrap_or(0), last.parse().ok())
    }

    pub(super) fn without_range(&self) -> Vec<u8> {
        let lines = self.head.split_inclusive("\r\n");
        let kept = lines.filter(|line| !line.to_ascii_lowercase().starts_with("range:"));
        kept.collect::<String>().into_bytes()
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Way {
    /// The registry answers.
    Pass,
    /// The registry answers, but does not hear of a range.
    Whole,
    /// The registry's answer stops after so many bytes, headers included, until it is resumed.
    Stop(u64),
    /// The connection breaks after so many bytes of the registry's answer.
    Break(u64),
    /// These bytes are the answer.
    Answer(Vec<u8>),
}

/// An answer of the relay itself; each of the headers ends with a line break.
pub fn answer(status: &str, headers: &str, body: &[u8]) -> Way {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n");
    Way::Answer([head.as_bytes(), body].concat())
}
