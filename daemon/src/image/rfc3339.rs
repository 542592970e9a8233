//! Times as images write them. Pure.

/// Seconds since 1970 of an RFC 3339 time, fractions dropped; `None` for anything else, and for times
/// before 1970, which no commit can carry.
pub(super) fn unix_seconds(text: &str) -> Option<u64> {
    u64::try_from(seconds(text)?).ok()
}

/// The same, with times before 1970.
pub(crate) fn seconds(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let is = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|byte| wanted.contains(byte));
    if !(is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":")) {
        return None;
    }
    let (year, month, day) = (
        number(bytes, 0, 4)?,
        number(bytes, 5, 7)?,
        number(bytes, 8, 10)?,
    );
    let (hour, minute, second) = (
        number(bytes, 11, 13)?,
        number(bytes, 14, 16)?,
        number(bytes, 17, 19)?,
    );
    // 60 is a leap second.
    if !(1..=12).contains(&month)
        || !(1..=31).contains(&day)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let offset = zone_offset(without_fraction(bytes.get(19..)?)?)?;
    Some(days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

fn number(bytes: &[u8], from: usize, to: usize) -> Option<i64> {
    let digits = bytes.get(from..to)?;
    digits.iter().try_fold(0i64, |value, digit| {
        digit
            .is_ascii_digit()
            .then(|| value * 10 + i64::from(digit - b'0'))
    })
}

/// What follows the fraction of a second, if there is one.
fn without_fraction(bytes: &[u8]) -> Option<&[u8]> {
    let Some(fraction) = bytes.strip_prefix(b".") else {
        return Some(bytes);
    };
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit());
    match digits.count() {
        0 => None,
        digits => Some(&fraction[digits..]),
    }
}

/// Seconds east of Greenwich.
fn zone_offset(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (number(zone, 1, 3)?, number(zone, 4, 6)?);
            let seconds = (hours * 60 + minutes) * 60;
            let valid = hours <= 23 && minutes <= 59;
            valid.then_some(if *sign == b'+' { seconds } else { -seconds })
        }
        _ => None,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March put the leap day at their end, where it shifts nothing.
    let shifted = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = shifted.div_euclid(4) - shifted.div_euclid(100) + shifted.div_euclid(400);
    // 719 468 days lie between 0000-03-01 and 1970-01-01.
    shifted * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::{seconds, unix_seconds};

    #[test]
    fn times_become_seconds() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T23:59:59Z", 951_868_799),
            ("2026-08-01T12:34:56.789012345Z", 1_785_587_696),
            ("2026-08-01T14:34:56+02:00", 1_785_587_696),
            ("2026-08-01T07:04:56.5-05:30", 1_785_587_696),
            ("2100-03-01t00:00:00z", 4_107_542_400),
        ] {
            assert_eq!(unix_seconds(text), Some(seconds), "{text}");
        }
    }

    #[test]
    fn times_before_1970_are_times() {
        assert_eq!(seconds("1969-12-31T23:59:58.5Z"), Some(-2));
        assert_eq!(seconds("0001-01-01T00:00:00Z"), Some(-62_135_596_800));
    }

    #[test]
    fn anything_else_is_no_time() {
        for text in [
            "",
            "now",
            "2026-08-01",
            "2026-08-01T12:34:56",
            "2026-13-01T00:00:00Z",
            "2026-08-01T24:00:00Z",
            "2026-08-01T12:34:56.Z",
            "2026-08-01T12:34:56+0200",
            "2026-08-01T12:34:56+24:00",
            "1969-12-31T23:59:59Z",
            "2026-08-01T12:34:5éZ",
            "+026-08-01T12:34:56Z",
        ] {
            assert_eq!(unix_seconds(text), None, "{text}");
        }
    }
}
