//! Scalars by the rules of YAML 1.1, as PyYAML applies them.

/// One scalar: its text, and whether YAML's rules for unquoted words apply to it.
#[derive(Clone, PartialEq)]
pub(crate) struct Scalar {
    text: String,
    plain: bool,
}

/// What a scalar means where nobody asks for a kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Resolved {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text,
}

impl Scalar {
    /// An unquoted word.
    pub(crate) fn plain(text: String) -> Self {
        Self { text, plain: true }
    }

    /// Quoted, or otherwise known to be text.
    pub(crate) fn text(text: String) -> Self {
        Self { text, plain: false }
    }

    /// A number that is one already. YAML would read `1e5` as text, so it is written out.
    pub(crate) fn number(number: &serde_json::Number) -> Self {
        let mut text = number.to_string();
        if let (false, Some(value)) = (number.is_i64() || number.is_u64(), number.as_f64()) {
            text = format!("{value:?}");
            if let Some((mantissa, exponent)) = text.split_once('e') {
                let point = if mantissa.contains('.') { "" } else { ".0" };
                let sign = if exponent.starts_with('-') { "" } else { "+" };
                text = format!("{mantissa}{point}e{sign}{exponent}");
            }
        }
        Self::plain(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the words of YAML 1.1 apply (unquoted, no `!!str`).
    pub(crate) fn is_plain(&self) -> bool {
        self.plain
    }

    /// The same with other text, as after an expansion.
    pub(crate) fn with_text(&self, text: String) -> Self {
        Self { text, plain: self.plain }
    }

    pub(crate) fn resolve(&self) -> Resolved {
        if !self.plain {
            return Resolved::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Resolved::Null,
            "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
                Resolved::Bool(true)
            }
            "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
                Resolved::Bool(false)
            }
            text => integer(text)
                .map(Resolved::Int)
                .or_else(|| float(text).map(Resolved::Float))
                .unwrap_or(Resolved::Text),
        }
    }

    /// True or false, also as text: `"on"`, `'yes'`, `1`.
    pub(crate) fn as_bool(&self) -> Option<bool> {
        match self.resolve() {
            Resolved::Bool(value) => Some(value),
            Resolved::Int(0) => Some(false),
            Resolved::Int(1) => Some(true),
            Resolved::Text => parse_bool(&self.text),
            _ => None,
        }
    }

    /// A whole number, also as text: `"30"`. A fraction is not one.
    pub(crate) fn as_int(&self) -> Option<i64> {
        match self.resolve() {
            Resolved::Int(value) => Some(value),
            Resolved::Text => integer(self.text.trim()),
            _ => None,
        }
    }
}

/// The words of Patroni's own `parse_bool`, in any case.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn sign(text: &str) -> (i64, &str) {
    match text.as_bytes().first() {
        Some(b'-') => (-1, &text[1..]),
        Some(b'+') => (1, &text[1..]),
        _ => (1, text),
    }
}

/// A number of YAML 1.1: decimal, `0b`, `0x`, a leading zero for octal, `1_000`, `1:30` in base 60.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = sign(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    if digits.contains(':') {
        return sexagesimal(digits)?.checked_mul(sign);
    }
    let (radix, body) = if let Some(body) = digits.strip_prefix("0b") {
        (2, body)
    } else if let Some(body) = digits.strip_prefix("0x") {
        (16, body)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, &digits[1..])
    } else {
        (10, digits)
    };
    let body: String = body.chars().filter(|c| *c != '_').collect();
    // A sign was taken off already; from_str_radix would take another.
    if !body.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    i64::from_str_radix(&body, radix).ok()?.checked_mul(sign)
}

fn sexagesimal(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let first: String = parts.next()?.chars().filter(|c| *c != '_').collect();
    if first.starts_with('0') {
        return None;
    }
    let mut value: i64 = first.parse().ok()?;
    for part in parts {
        if part.is_empty() || part.len() > 2 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let part: i64 = part.parse().ok()?;
        if part > 59 {
            return None;
        }
        value = value.checked_mul(60)?.checked_add(part)?;
    }
    Some(value)
}

/// A fraction of YAML 1.1: it needs its point, and an exponent needs its sign.
fn float(text: &str) -> Option<f64> {
    let (sign, body) = sign(text);
    let factor = if sign < 0 { -1.0 } else { 1.0 };
    match body {
        ".inf" | ".Inf" | ".INF" => return Some(factor * f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (body, None),
    };
    if let Some(exponent) = exponent {
        let digits = exponent.strip_prefix(['+', '-'])?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
    }
    let (whole, fraction) = mantissa.split_once('.')?;
    let allowed = |s: &str| s.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    if !allowed(whole) || !allowed(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    if whole.starts_with('_') || (whole.is_empty() && fraction.starts_with('_')) {
        return None;
    }
    // `.5` is a number and `-.5` is not: so it is for PyYAML.
    if whole.is_empty() && body.len() != text.len() {
        return None;
    }
    let clean: String = body.chars().filter(|c| *c != '_').collect();
    clean.parse::<f64>().ok().map(|value| factor * value)
}
