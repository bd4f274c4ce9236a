//! Numbers with units, as PostgreSQL writes them: `10MB`, `1800s`, `1.5h`, `0x10`.

/// A number and what stands behind it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quantity<'a> {
    pub(crate) number: f64,
    /// As written; empty where there is none.
    pub(crate) unit: &'a str,
}

/// Splits `text`; `None` where it does not begin with a number.
pub(crate) fn quantity(text: &str) -> Option<Quantity<'_>> {
    let text = text.trim();
    let (sign, body) = match text.strip_prefix('-') {
        Some(body) => (-1.0, body),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let (number, rest) = if let Some(hex) = body.strip_prefix("0x").or(body.strip_prefix("0X")) {
        let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        (i64::from_str_radix(&hex[..end], 16).ok()? as f64, &hex[end..])
    } else {
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let mut end = digits(body);
        let whole = end;
        if body[end..].starts_with('.') {
            end += 1 + digits(&body[end + 1..]);
        }
        if end == 0 || &body[..end] == "." {
            return None;
        }
        // An exponent only where digits follow: `1e3`, but not the `e` of some unit.
        let tail = &body[end..];
        if let Some(exponent) = tail.strip_prefix(['e', 'E']) {
            let signed = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            let length = digits(signed);
            if length > 0 {
                end += 1 + (exponent.len() - signed.len()) + length;
            }
        }
        let number = &body[..end];
        // A leading zero means octal, as in C.
        let octal = number.len() > 1 && number.starts_with('0') && whole == end;
        let value = match octal.then(|| i64::from_str_radix(number, 8).ok()).flatten() {
            Some(value) => value as f64,
            None => number.parse().ok()?,
        };
        (value, &body[end..])
    };
    Some(Quantity { number: sign * number, unit: rest.trim() })
}

const MEMORY: [(&str, f64); 5] = [
    ("B", 1.0),
    ("kB", 1024.0),
    ("MB", 1_048_576.0),
    ("GB", 1_073_741_824.0),
    ("TB", 1_099_511_627_776.0),
];

const TIME: [(&str, f64); 6] = [
    ("us", 1.0),
    ("ms", 1_000.0),
    ("s", 1_000_000.0),
    ("min", 60_000_000.0),
    ("h", 3_600_000_000.0),
    ("d", 86_400_000_000.0),
];

/// A setting's base unit (`8kB`, `ms`): the family's units, and its own size in the smallest of them.
fn base(unit: &str) -> Option<(&'static [(&'static str, f64)], f64)> {
    let Quantity { number, unit } =
        quantity(unit).unwrap_or(Quantity { number: 1.0, unit: unit.trim() });
    let families: [&'static [(&str, f64)]; 2] = [&MEMORY, &TIME];
    families.into_iter().find_map(|family| {
        family.iter().find(|(name, _)| *name == unit).map(|(_, size)| (family, number * size))
    })
}

/// The units that `base_unit` can be written in, for messages.
pub(crate) fn allowed(base_unit: &str) -> String {
    base(base_unit).map_or_else(String::new, |(family, _)| {
        family.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    })
}

/// `text` in `base_unit`; `None` where it is no number or its unit is not one of PostgreSQL's.
pub(crate) fn to_base(text: &str, base_unit: Option<&str>) -> Option<f64> {
    let Quantity { number, unit } = quantity(text)?;
    if unit.is_empty() {
        return Some(number);
    }
    let (family, size) = base(base_unit?)?;
    let (_, factor) = family.iter().find(|(name, _)| *name == unit)?;
    Some(number * factor / size)
}

/// PostgreSQL's spelling of a unit it would refuse only for its form: `10mb`, `1G`, `30sec`.
pub(crate) fn respelled(unit: &str, base_unit: &str) -> Option<&'static str> {
    let (family, _) = base(base_unit)?;
    let lower = unit.to_ascii_lowercase();
    let alias = match lower.as_str() {
        "k" | "kib" => "kb",
        "m" | "mib" if family.len() == MEMORY.len() => "mb",
        "g" | "gib" => "gb",
        "t" | "tib" => "tb",
        "sec" | "secs" | "second" | "seconds" => "s",
        "mins" | "minute" | "minutes" => "min",
        "hr" | "hour" | "hours" => "h",
        "day" | "days" => "d",
        other => other,
    };
    family.iter().map(|(name, _)| *name).find(|name| name.to_ascii_lowercase() == alias)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_postgresql_reads_them() {
        for (text, base, expected) in [
            ("30", None, Some(30.0)),
            ("30", Some("s"), Some(30.0)),
            ("1800s", Some("s"), Some(1800.0)),
            ("30 min", Some("s"), Some(1800.0)),
            ("1h", Some("min"), Some(60.0)),
            ("1.5h", Some("min"), Some(90.0)),
            ("128MB", Some("MB"), Some(128.0)),
            ("1GB", Some("8kB"), Some(131_072.0)),
            ("-1", Some("kB"), Some(-1.0)),
            ("0x10", None, Some(16.0)),
            ("010", None, Some(8.0)),
            ("0.9", None, Some(0.9)),
            (".5", None, Some(0.5)),
            ("1e3", None, Some(1000.0)),
            ("10mb", Some("MB"), None),
            ("10MB", Some("ms"), None),
            ("10MB", None, None),
            ("MB", Some("MB"), None),
            ("", None, None),
            (".", None, None),
            ("-", None, None),
        ] {
            assert_eq!(to_base(text, base), expected, "{text} in {base:?}");
        }
    }

    #[test]
    fn a_unit_in_the_wrong_form_is_recognised() {
        for (unit, base, expected) in [
            ("mb", "kB", Some("MB")),
            ("m", "kB", Some("MB")),
            ("m", "ms", None),
            ("G", "8kB", Some("GB")),
            ("sec", "ms", Some("s")),
            ("S", "ms", Some("s")),
            ("parsec", "ms", None),
        ] {
            assert_eq!(respelled(unit, base), expected, "{unit}");
        }
    }
}
