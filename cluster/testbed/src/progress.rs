//! Telling whoever waits for a start how far it is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

/// A step of a start.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// It begins.
    Begins(&'a str),
    /// It is done, after so long.
    Done(Duration),
}

type Tell = dyn Fn(Progress<'_>) + Send + Sync;

/// Whom to tell.
#[derive(Clone, Default)]
pub(crate) struct Listener(Option<Arc<Tell>>);

impl Listener {
    pub(crate) fn new(tell: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    /// Runs one step, with word of its beginning and, where it succeeds, of its end.
    pub(crate) async fn step<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let began = Instant::now();
        self.tell(Progress::Begins(what));
        let value = work.await?;
        self.tell(Progress::Done(began.elapsed()));
        Ok(value)
    }

    fn tell(&self, progress: Progress<'_>) {
        if let Some(tell) = &self.0 {
            tell(progress);
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Listener" } else { "nobody" })
    }
}
