//! A real HAProxy asks, as the documented deployment has it.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool_agent::rest::RestSettings;
use leaderpool_testbed::http::Http;
use leaderpool_testbed::process::{Launch, RunAs, scan};
use tokio::time::{Instant, sleep};

use crate::bed::{Bed, MINUTE, settings};

/// Ports that were free a moment ago.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = [0; N];
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_finds_the_replica_and_not_the_primary() -> Result<()> {
    // Fewer connections than checks would pile up to if any was left hanging.
    let bed = Bed::start(RestSettings { max_connections: 16, ..settings() }).await?;
    let rest = bed.address().port();
    let [stats, writes, reads] = free_ports()?;
    let dir = tempfile::tempdir()?;
    let config = format!(
        "global\n  maxconn 100\n\
         defaults\n  mode tcp\n  timeout client 5s\n  timeout connect 1s\n  timeout server 5s\n  timeout check 5s\n\
         listen stats\n  mode http\n  bind 127.0.0.1:{stats}\n  stats enable\n  stats uri /\n\
         listen writes\n  bind 127.0.0.1:{writes}\n  option httpchk OPTIONS /master\n  http-check expect status 200\n\
         \x20 default-server inter 50ms fall 2 rise 1\n  server pg1 127.0.0.1:{rest} check port {rest}\n\
         listen reads\n  bind 127.0.0.1:{reads}\n  option httpchk OPTIONS /replica\n  http-check expect status 200\n\
         \x20 default-server inter 50ms fall 2 rise 1\n  server pg1 127.0.0.1:{rest} check port {rest}\n"
    );
    std::fs::write(dir.path().join("haproxy.cfg"), config)?;
    let log = dir.path().join("haproxy.log");
    let haproxy = Launch::new("haproxy", "haproxy", dir.path(), &log, &RunAs::ourselves())
        .args(["-db", "-f", "haproxy.cfg"])
        .spawn()?;
    let page = Http::plain(stats);
    // Of each listener: the state of its server, and what the last check said.
    let look = async || -> Result<Vec<(String, String)>> {
        let csv = page.get("/;csv", Duration::from_secs(5)).await?.body;
        let mut lines = csv.lines();
        let names: Vec<&str> = lines.next().context("no header")?.split(',').collect();
        let column = |name: &str| names.iter().position(|other| *other == name);
        let (state, check) =
            (column("status").context("no status")?, column("check_status").context("no check")?);
        let servers = lines.map(|line| line.split(',').collect::<Vec<_>>());
        let servers = servers.filter(|fields| fields.get(1) == Some(&"pg1"));
        // A star marks a check that is under way; what follows is the last one's result.
        let result = |text: &str| text.trim_start_matches("* ").to_owned();
        Ok(servers.map(|fields| (fields[state].to_owned(), result(fields[check]))).collect())
    };
    let wanted = [("DOWN".to_owned(), "L7STS".to_owned()), ("UP".to_owned(), "L7OK".to_owned())];
    let result = async {
        let deadline = Instant::now() + MINUTE;
        loop {
            match look().await {
                Ok(seen) if seen == wanted => break,
                other => ensure!(
                    Instant::now() < deadline,
                    "{other:?}\n{}",
                    std::fs::read_to_string(&log)?
                ),
            }
            sleep(Duration::from_millis(50)).await;
        }
        // And that stays so over many checks, with slow clients beside them.
        let _silent = bed.connect_from([127, 0, 0, 9]).await?;
        for _ in 0..40 {
            sleep(Duration::from_millis(50)).await;
            let seen = look().await?;
            ensure!(seen == wanted, "{seen:?}");
        }
        anyhow::Ok(())
    }
    .await;
    haproxy.stop(Duration::from_secs(5)).await;
    scan::kill_under(dir.path()).await?;
    result
}
