//! Waiting for a state of the world: always with a deadline, and always able to say what was seen last.

use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout};

/// Asks `probe` every `every` until it answers `Ok`.
///
/// # Errors
/// When the deadline passes: what was awaited and the probe's last complaint.
pub async fn until<T, F>(what: &str, deadline: Duration, every: Duration, mut probe: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<T>,
{
    let end = Instant::now() + deadline;
    let mut seen = anyhow!("nothing: the first look had not ended");
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match timeout(left, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => seen = error,
            Err(_) => {}
        }
        if Instant::now() + every >= end {
            return Err(anyhow!("{what}: not within {deadline:?}; last seen: {seen:#}"));
        }
        sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_expired_wait_tells_what_it_saw() {
        let every = Duration::from_millis(5);
        let mut n = 0;
        let error = until("the moon", Duration::from_millis(50), every, async || -> Result<()> {
            n += 1;
            Err(anyhow!("only cloud {n}"))
        });
        let error = error.await.unwrap_err().to_string();
        assert!(error.contains("the moon") && error.contains("only cloud"), "{error}");
    }
}
