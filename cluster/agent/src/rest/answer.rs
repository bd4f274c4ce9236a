//! An answer, before it is HTTP.

use std::borrow::Cow;

use serde::Serialize;

use super::body::spaced_json;

/// A code, a body, and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The code.
    pub code: u16,
    /// The body; empty where only the code is told.
    pub body: Vec<u8>,
    /// The body's type.
    pub content_type: Option<&'static str>,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Answer {
    /// The code alone.
    #[must_use]
    pub fn code(code: u16) -> Self {
        Self { code, body: Vec::new(), content_type: None, headers: Vec::new() }
    }

    /// A sentence.
    #[must_use]
    pub fn text(code: u16, text: impl Into<Cow<'static, str>>) -> Self {
        let body = text.into().into_owned().into_bytes();
        Self { body, content_type: Some("text/plain; charset=utf-8"), ..Self::code(code) }
    }

    /// JSON that is made already.
    #[must_use]
    pub fn json_body(code: u16, body: Vec<u8>) -> Self {
        Self { body, content_type: Some("application/json"), ..Self::code(code) }
    }

    /// A value as JSON.
    #[must_use]
    pub fn json(code: u16, value: &impl Serialize) -> Self {
        Self::json_body(code, spaced_json(value))
    }

    /// One more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }
}
