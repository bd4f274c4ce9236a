//! A subscriber's layer that remembers spans: what they are called, what they say, and when they ended.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// A span, as it was when it was last looked at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Its place in the order of beginnings.
    pub(crate) number: usize,
    /// That of the span around it.
    pub(crate) parent: Option<usize>,
    pub(crate) name: &'static str,
    /// Every field that it may have.
    pub(crate) declared: Vec<&'static str>,
    /// Those that it has.
    pub(crate) fields: BTreeMap<String, String>,
    /// The messages of the events in it.
    pub(crate) events: Vec<String>,
    pub(crate) closed: bool,
}

impl Seen {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }
}

/// All spans, and the means to see them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Capture(Arc<Mutex<Vec<Seen>>>);

/// The span's place in the list.
struct Number(usize);

impl Capture {
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.lock().clone()
    }

    /// Those of this name, in the order of their beginnings.
    pub(crate) fn named(&self, name: &str) -> Vec<Seen> {
        self.lock().iter().filter(|seen| seen.name == name).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let parent = span
            .parent()
            .and_then(|parent| parent.extensions().get::<Number>().map(|number| number.0));
        let mut fields = BTreeMap::new();
        attributes.record(&mut Fields(&mut fields));
        let metadata = attributes.metadata();
        let mut all = self.lock();
        span.extensions_mut().insert(Number(all.len()));
        let seen = Seen {
            number: all.len(),
            parent,
            name: metadata.name(),
            declared: metadata.fields().iter().map(|field| field.name()).collect(),
            fields,
            ..Seen::default()
        };
        all.push(seen);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(number) = span.extensions().get::<Number>() {
            values.record(&mut Fields(&mut self.lock()[number.0].fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(span) = context.event_span(event) else { return };
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        if let Some(number) = span.extensions().get::<Number>() {
            self.lock()[number.0].events.push(fields.remove("message").unwrap_or_default());
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        if let Some(number) = span.extensions().get::<Number>() {
            self.lock()[number.0].closed = true;
        }
    }
}
