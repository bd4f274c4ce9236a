//! Writing YAML: block style for a person's eyes, every scalar in JSON's notation, which YAML shares.

use std::fmt::Write as _;

use serde_json::Value;

/// A document.
pub(super) fn to_string(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0);
    out
}

fn write(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let _ = write!(out, "{indent}{key}:");
                nested(out, value, depth + 1);
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    // "- key: value": the first key shares the dash's line.
                    Value::Object(map) if !map.is_empty() => {
                        let mut block = String::new();
                        write(&mut block, item, depth + 1);
                        let _ = write!(out, "{indent}- {}", block.trim_start());
                    }
                    other => {
                        let _ = writeln!(out, "{indent}- {other}");
                    }
                }
            }
        }
        scalar => {
            let _ = writeln!(out, "{indent}{scalar}");
        }
    }
}

fn nested(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            write(out, value, depth);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write(out, value, depth);
        }
        scalar => {
            let _ = writeln!(out, " {scalar}");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn maps_lists_and_awkward_strings() {
        let value = json!({
            "a": {"on": "on", "n": 1, "none": {}},
            "list": ["x: y # z", {"encoding": "UTF8", "m": [1]}],
        });
        let text = super::to_string(&value);
        assert_eq!(
            text,
            "a:\n  n: 1\n  none: {}\n  on: \"on\"\nlist:\n  - \"x: y # z\"\n  - encoding: \"UTF8\"\n    m:\n      - 1\n"
        );
    }
}
