//! Values as they are written: durations, port ranges, absolute paths.

use std::{
    fmt,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use crate::catalog::IpRange;

/// What a duration looks like, for messages.
pub(super) const DURATION: &str = "a duration such as \"500ms\", \"10s\", \"5m\", \"1h30m\"";

/// Returns the duration that `text` writes: numbers, each with its unit (`ms`, `s`, `m`, `h`, `d`).
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const BAD: &str = "numbers with the units ms, s, m, h, d";
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(BAD);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(BAD),
        };
        let number: u64 = number.parse().map_err(|_| BAD)?;
        let part = number.checked_mul(unit_ms).ok_or("too long")?;
        total = total.checked_add(Duration::from_millis(part)).ok_or("too long")?;
        rest = tail;
    }
    Ok(total)
}

/// Returns `duration` as [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

/// An inclusive range of ports; never empty, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    pub fn ports(&self) -> std::ops::RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').ok_or("two ports and a hyphen")?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| "ports are 1 to 65535");
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first == 0 || range.first > range.last {
            return Err("the first port is at least 1 and not above the last");
        }
        Ok(range)
    }
}

/// Returns an absolute path without `.` and `..`.
pub(super) fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) || text.contains('\0') {
        return Err("it must begin with / and have no . or .. in it");
    }
    Ok(path.components().collect())
}

/// Returns the range for virtual IPs that `text` writes; `None` for "off".
pub(super) fn virtual_range(text: &str, v4: bool) -> Result<Option<IpRange>, &'static str> {
    if text == "off" {
        return Ok(None);
    }
    let range: IpRange = text.parse()?;
    let (homes, prefixes): (&[&str], _) = if v4 {
        (
            &[
                "240.0.0.0/4",
                "198.18.0.0/15",
                "100.64.0.0/10",
                "10.0.0.0/8",
                "172.16.0.0/12",
                "192.168.0.0/16",
            ],
            8..=24,
        )
    } else {
        (&["fc00::/7"], 32..=112)
    };
    if range.first().is_ipv4() != v4 {
        return Err("it is of the other family");
    }
    if !prefixes.contains(&range.prefix()) {
        return Err("a longer prefix has too few addresses, a shorter one takes more than a mesh needs");
    }
    let mut homes = homes.iter().map(|home| home.parse::<IpRange>().expect("invariant: they are ranges"));
    if homes.any(|home| home.contains(range.first())) {
        Ok(Some(range))
    } else {
        Err("others' addresses may be in it")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn duration_reads_units_and_sums() {
        for (text, ms) in
            [("10s", 10_000), ("72h", 259_200_000), ("1h30m", 5_400_000), ("0s", 0), ("250ms", 250)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5h", "10 s", "9999999999999999999s", "99999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn port_range_is_never_empty() {
        assert_eq!("21000-21255".parse(), Ok(PortRange { first: 21000, last: 21255 }));
        for text in ["", "1", "2-1", "0-5", "1-65536", "a-b", "-"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_virtual_range_is_big_enough_and_nobody_elses() {
        for (text, v4, fits) in [
            ("240.240.0.0/16", true, true),
            ("10.9.0.0/16", true, true),
            ("10.0.0.0/8", true, true),
            ("100.64.0.0/10", true, true),
            ("10.9.9.0/25", true, false),
            ("8.8.0.0/16", true, false),
            ("127.0.0.0/8", true, false),
            ("224.0.0.0/8", true, false),
            ("fd00::/64", true, false),
            ("fd6d:6573:6800::/64", false, true),
            ("fd00::/120", false, false),
            ("2001:db8::/64", false, false),
            ("fe80::/64", false, false),
            ("10.0.0.0/8", false, false),
        ] {
            assert_eq!(virtual_range(text, v4).is_ok(), fits, "{text}");
        }
        assert_eq!(virtual_range("off", true), Ok(None));
    }

    proptest! {
        #[test]
        fn values_never_panic(text in "\\PC{0,40}|[0-9a-z-]{0,12}") {
            let _ = parse_duration(&text);
            let _ = text.parse::<PortRange>();
            let _ = absolute(&text);
        }

        #[test]
        fn a_formatted_duration_reads_back(ms in 0u64..1_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
